//! [`DecodedImage`] → a row of an [`ImageBatch`]: resized as the model card says.
//!
//! Each filter is Pillow's of that name, so that a picture gives the same pixels here and in Python.

use fast_image_resize as fir;

use super::decode::{DecodeError, DecodedImage, Picture};
use crate::models::Resize;

/// Pictures ready for an embedder.
#[derive(Debug, Clone, Default)]
pub struct ImageBatch {
    pub pictures: Vec<Picture>,
    /// `u8`, shape `[pictures.len(), side, side, 3]`, RGB. Means and channel order live in the model's graph.
    pub pixels: Vec<u8>,
}

/// Stretches a picture to `side` x `side` pixels, whatever its shape: Keras' `load_img(target_size=…)`.
pub fn resize(image: &DecodedImage, side: u32, filter: Resize) -> Result<Vec<u8>, DecodeError> {
    if (image.width, image.height) == (side, side) {
        return Ok(image.rgb.clone());
    }
    let filter = match filter {
        Resize::Nearest => return Ok(nearest(image, side as usize)),
        Resize::Bilinear => fir::FilterType::Bilinear,
        Resize::Bicubic => fir::FilterType::CatmullRom,
        Resize::Lanczos => fir::FilterType::Lanczos3,
    };
    convolve(image, side, filter, fir::CpuExtensions::default())
}

/// The pixel under the middle of each target pixel. The steps are added up as Pillow adds them up (`ImagingScaleAffine`):
/// multiplying would round otherwise for some sizes, and take the neighbouring pixel.
fn nearest(image: &DecodedImage, side: usize) -> Vec<u8> {
    let sources = |length: u32| -> Vec<usize> {
        let step = f64::from(length) / side as f64;
        let mut middle = step * 0.5;
        (0..side)
            .map(|_| {
                let source = (middle as usize).min(length as usize - 1);
                middle += step;
                source
            })
            .collect()
    };
    let (columns, rows) = (sources(image.width), sources(image.height));
    let mut pixels = Vec::with_capacity(side * side * 3);
    for y in rows {
        let row = &image.rgb[y * image.width as usize * 3..][..image.width as usize * 3];
        for &x in &columns {
            pixels.extend_from_slice(&row[x * 3..x * 3 + 3]);
        }
    }
    pixels
}

fn convolve(
    image: &DecodedImage,
    side: u32,
    filter: fir::FilterType,
    cpu: fir::CpuExtensions,
) -> Result<Vec<u8>, DecodeError> {
    let mut target = fir::images::Image::new(side, side, fir::PixelType::U8x3);
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)).use_alpha(false);
    let mut resizer = fir::Resizer::new();
    // SAFETY: `cpu` is either the default, which is what the crate found on this machine, or `None`.
    unsafe { resizer.set_cpu_extensions(cpu) };
    let source = fir::images::ImageRef::new(image.width, image.height, &image.rgb, fir::PixelType::U8x3)
        .map_err(|error| DecodeError::Corrupt(error.to_string()))?;
    resizer
        .resize(&source, &mut target, &options)
        .map_err(|error| DecodeError::Corrupt(error.to_string()))?;
    Ok(target.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> DecodedImage {
        let mut state = width * 7919 + height;
        let rgb = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        DecodedImage { rgb, width, height, format: "png" }
    }

    /// Columns that Pillow 11 takes for `resize((8, 1), NEAREST)` of pictures 3, 5, 13 and 100 pixels wide.
    #[test]
    fn nearest_takes_the_pixels_that_pillow_takes() {
        for (width, expected) in [
            (3, [0, 0, 0, 1, 1, 2, 2, 2]),
            (5, [0, 0, 1, 2, 2, 3, 4, 4]),
            (13, [0, 2, 4, 5, 7, 8, 10, 12]),
            (100, [6, 18, 31, 43, 56, 68, 81, 93]),
        ] {
            let rgb = (0..width).flat_map(|x| [x as u8; 3]).collect();
            let image = DecodedImage { rgb, width, height: 1, format: "png" };
            let pixels = nearest(&image, 8);
            let columns: Vec<u8> = pixels[..24].iter().step_by(3).copied().collect();
            assert_eq!(columns, expected, "width {width}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_pixels() {
        for (width, height) in [(32, 32), (500, 375), (31, 700), (224, 100)] {
            let image = picture(width, height);
            for filter in [fir::FilterType::Bilinear, fir::FilterType::CatmullRom, fir::FilterType::Lanczos3]
            {
                let plain = convolve(&image, 224, filter, fir::CpuExtensions::None).expect("valid");
                let fast = convolve(&image, 224, filter, fir::CpuExtensions::default()).expect("valid");
                assert_eq!(plain, fast, "{filter:?} of {width} x {height}");
            }
        }
    }

    /// `(3 + 0.5) * 512 / 224` is 8, but Pillow adds up to 7.999… and takes column 7.
    #[test]
    fn nearest_rounds_as_pillow_rounds() {
        let rgb = (0..512).flat_map(|x| [(x / 2) as u8, (x % 2) as u8, 0]).collect();
        let image = DecodedImage { rgb, width: 512, height: 1, format: "png" };
        let pixels = nearest(&image, 224);
        let columns: Vec<u16> =
            pixels[..36].chunks(3).map(|p| u16::from(p[0]) * 2 + u16::from(p[1])).collect();
        assert_eq!(columns, [1, 3, 5, 7, 10, 12, 14, 17, 19, 21, 23, 26]);
    }

    /// What Pillow 13 gives for a picture of 5 x 4 pixels.
    #[test]
    fn the_smooth_filters_are_pillows() {
        let rgb: Vec<u8> = (0..60).map(|i: u32| (i * 37 % 256) as u8).collect();
        let image = DecodedImage { rgb, width: 5, height: 4, format: "png" };
        let expected: [(Resize, [u8; 27]); 3] = [
            (
                Resize::Bilinear,
                [
                    61, 98, 135, 135, 73, 110, 153, 146, 81, 113, 150, 132, 88, 125, 133, 132, 96, 133, 164,
                    124, 128, 139, 136, 116, 110, 147, 107,
                ],
            ),
            (
                Resize::Bicubic,
                [
                    55, 92, 136, 139, 67, 115, 158, 149, 73, 112, 153, 128, 84, 133, 138, 131, 87, 138, 168,
                    119, 127, 150, 139, 110, 103, 155, 108,
                ],
            ),
            (
                Resize::Lanczos,
                [
                    56, 90, 138, 138, 66, 124, 161, 147, 65, 112, 154, 123, 83, 144, 144, 128, 79, 143, 167,
                    114, 124, 163, 142, 101, 95, 163, 114,
                ],
            ),
        ];
        for (filter, pixels) in expected {
            let found = resize(&image, 3, filter).expect("valid");
            assert!(found.iter().zip(pixels).all(|(a, b)| a.abs_diff(b) <= 1), "{filter}: {found:?}");
        }
    }

    #[test]
    fn a_picture_of_the_right_size_is_left_alone() {
        let image = picture(224, 224);
        for filter in [Resize::Nearest, Resize::Bilinear, Resize::Bicubic, Resize::Lanczos] {
            assert_eq!(resize(&image, 224, filter).expect("valid"), image.rgb);
        }
    }
}
