//! [`DecodedImage`] → a row of an [`ImageBatch`]: resized as the model card says.
//!
//! Each filter gives Pillow's pixels, bit for bit, so that a picture is the same here and in Python. What a newcomer
//! would get wrong: a faster resizer with the same filter curve is not the same. Pillow rounds (and clips) to 8 bits
//! between its two passes, and the order of the passes shows: by up to 50 levels at hard edges.

use std::f64::consts::PI;

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
///
/// Gives `[side, side, 3]`, RGB. Integers only: the same on every machine.
///
/// # Errors
/// [`DecodeError::Corrupt`] where `rgb` is not `width` x `height` pixels, or there are none.
pub fn resize(image: &DecodedImage, side: u32, filter: Resize) -> Result<Vec<u8>, DecodeError> {
    let (width, height, side) = (image.width as usize, image.height as usize, side as usize);
    if image.rgb.len() != width * height * 3 || image.rgb.is_empty() {
        return Err(DecodeError::Corrupt(format!(
            "{} values for {width} x {height} pixels",
            image.rgb.len()
        )));
    }
    if (width, height) == (side, side) {
        return Ok(image.rgb.clone());
    }
    let curve = match filter {
        Resize::Nearest => return Ok(nearest(image, side)),
        Resize::Bilinear => TRIANGLE,
        Resize::Bicubic => CUBIC,
        Resize::Lanczos => LANCZOS,
    };
    let rows = |rgb: &[u8]| match width == side {
        true => rgb.to_vec(),
        false => stretch_rows(rgb, width, &weights(width, side, curve)),
    };
    let columns = |rgb: &[u8], width| match height == side {
        true => rgb.to_vec(),
        false => stretch_columns(rgb, width, &weights(height, side, curve)),
    };
    // Pillow 13 begins with the columns of pictures that shrink much more in height (found by trying sizes; up to at
    // least 11.3 it always began with the rows).
    let (shrinks_by, narrows_by) = (height as i64 - side as i64, width as i64 - side as i64);
    match shrinks_by > 0 && shrinks_by > 2 * narrows_by {
        true => Ok(rows(&columns(&image.rgb, width))),
        false => Ok(columns(&rows(&image.rgb), side)),
    }
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

/// A filter's weight by distance in target pixels, and the distance from which it is 0.
#[derive(Clone, Copy)]
struct Curve {
    reach: f64,
    weight: fn(f64) -> f64,
}

const TRIANGLE: Curve = Curve { reach: 1.0, weight: |x| (1.0 - x.abs()).max(0.0) };

/// Keys' cubic with a = -0.5, "Catmull-Rom" (R. Keys 1981, "Cubic convolution interpolation").
const CUBIC: Curve = Curve {
    reach: 2.0,
    weight: |x| {
        const A: f64 = -0.5;
        let x = x.abs();
        match x {
            _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    },
};

const LANCZOS: Curve = Curve {
    reach: 3.0,
    weight: |x| {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
    },
};

/// The source pixels that make up one target pixel.
struct Weights {
    first: usize,
    /// One a pixel, in units of 1 / 2^22, together 1.
    of: Vec<i32>,
}

/// Bits behind the point of a weight: 32 less 8 of the value and 2 for overshoot, as in Pillow (`Resample.c`).
const POINT: u32 = 22;

/// For each of `to` target pixels its sources among `from` (Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`).
fn weights(from: usize, to: usize, curve: Curve) -> Vec<Weights> {
    let scale = from as f64 / to as f64;
    // Making smaller widens the filter, so that every source pixel counts.
    let wide = scale.max(1.0);
    let reach = curve.reach * wide;
    (0..to)
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            // Casts cut off below 0, as `max(0, (int) …)` does.
            let first = (centre - reach + 0.5) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let narrow = 1.0 / wide;
            let weights: Vec<f64> =
                (first..end).map(|x| (curve.weight)((x as f64 - centre + 0.5) * narrow)).collect();
            // In this order: a sum of floats depends on it.
            let sum: f64 = weights.iter().sum();
            let fixed =
                |weight: f64| (weight / sum * f64::from(1 << POINT) + 0.5_f64.copysign(weight)) as i32;
            Weights { first, of: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}

/// Half a level, so that cutting off the fraction rounds.
const HALF: i32 = 1 << (POINT - 1);

fn to_level(sum: i32) -> u8 {
    (sum >> POINT).clamp(0, 255) as u8
}

/// `[height, width, 3]` → `[height, targets.len(), 3]`.
fn stretch_rows(rgb: &[u8], width: usize, targets: &[Weights]) -> Vec<u8> {
    let mut result = Vec::with_capacity(rgb.len() / width * targets.len());
    for row in rgb.chunks_exact(width * 3) {
        for Weights { first, of } in targets {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..(first + of.len()) * 3].chunks_exact(3).zip(of) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            result.extend(sums.map(to_level));
        }
    }
    result
}

/// `[height, width, 3]` → `[targets.len(), width, 3]`.
fn stretch_columns(rgb: &[u8], width: usize, targets: &[Weights]) -> Vec<u8> {
    let length = width * 3;
    let mut result = Vec::with_capacity(targets.len() * length);
    let mut sums = vec![HALF; length];
    for Weights { first, of } in targets {
        sums.fill(HALF);
        for (row, weight) in rgb[first * length..].chunks_exact(length).zip(of) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        result.extend(sums.iter().copied().map(to_level));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(found, pixels, "{filter}");
        }
    }

    /// Pillow 13 again, 4 x 9 pixels: columns first. Rows first would differ in 9 of the 27 values.
    #[test]
    fn tall_pictures_are_shrunk_in_height_first() {
        let rgb: Vec<u8> = (0..108).map(|i: u32| (i * 37 % 256) as u8).collect();
        let image = DecodedImage { rgb, width: 4, height: 9, format: "png" };
        let expected = [
            107, 127, 95, 136, 97, 141, 100, 125, 108, 147, 117, 150, 115, 146, 128, 143, 135, 129, 127, 111,
            131, 108, 151, 112, 116, 129, 151,
        ];
        assert_eq!(resize(&image, 3, Resize::Bicubic).expect("valid"), expected);
    }

    #[test]
    fn a_picture_of_the_right_size_is_left_alone() {
        let rgb = (0..224 * 224 * 3).map(|i| (i % 251) as u8).collect();
        let image = DecodedImage { rgb, width: 224, height: 224, format: "png" };
        for filter in [Resize::Nearest, Resize::Bilinear, Resize::Bicubic, Resize::Lanczos] {
            assert_eq!(resize(&image, 224, filter).expect("valid"), image.rgb);
        }
    }
}
