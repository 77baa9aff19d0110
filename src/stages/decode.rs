//! [`Seen`] → [`DecodedImage`] → full [`ImageBatch`]es, in parallel. A bad file becomes a [`Failure`], never a stop.
//!
//! The pixels are those that Pillow gives for `Image.open(file).convert("RGB")`, because that is what the original's
//! features were computed from. So JPEG is decoded by libjpeg (the `mozjpeg` crate: same integer IDCT and chroma
//! upsampling as Pillow's, bit for bit) and not by a faster decoder that rounds otherwise: a difference of 3 levels in
//! 1 % of the values moves a VGG16 vector by 1e-5. What becomes of the unusual:
//!
//! - grey is repeated three times; alpha is dropped, not blended; palettes are expanded
//! - 16 bits keep their high byte
//! - CMYK and YCCK JPEG are taken as Adobe writes them (inverted), as Pillow does, without colour profile
//! - of animations the first frame is taken; of multi-page TIFF the first page

use std::cell::Cell;
use std::io::{BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::preprocess::{self, ImageBatch};
use super::scan::{Seen, Split, sha256_hex};
use crate::models::Resize;

/// RGB pixels of one picture, as large as the file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// `[height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
    pub width: u32,
    pub height: u32,
    /// `jpeg`, `png`, `webp`, `gif`, `bmp` or `tiff`.
    pub format: &'static str,
}

/// What is known of a picture besides its vector: the table's columns of the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub id: String,
    pub split: Split,
    pub label: Option<String>,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
    /// Perceptual difference hash of the decoded picture, 8 x 8 bits.
    pub dhash: u64,
    /// Size in pixels as the file holds it (after EXIF rotation where that is applied).
    pub width: u32,
    pub height: u32,
    /// `jpeg`, `png`, `webp`, `gif`, `bmp` or `tiff`: by content, not by extension.
    pub format: String,
}

/// A picture that could not be used: a row of the `failures` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The picture's id, or its path where it has none.
    pub path: String,
    pub split: Split,
    /// The stage that gave up: `scan`, `read`, `decode`.
    pub stage: String,
    /// A short class for counting, such as `truncated` or `too_large`.
    pub kind: String,
    /// What is wrong, for a person.
    pub reason: String,
}

/// What is done about a file's EXIF orientation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exif {
    /// The pixels stay as stored: the original's behaviour.
    #[default]
    Ignore,
    /// The picture is turned as a viewer would show it.
    Apply,
}

impl Exif {
    /// The name used in pipeline files and fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            Exif::Ignore => "ignore",
            Exif::Apply => "apply",
        }
    }
}

/// How files are decoded.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions {
    pub exif: Exif,
    /// Width x height above which a file is refused from its header, before memory is asked for.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { exif: Exif::Ignore, max_pixels: crate::config::DEFAULT_MAX_PIXELS }
    }
}

/// Why a file is no usable picture.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the file is empty")]
    Empty,
    #[error("the content is no picture that imagedex knows (jpeg, png, webp, gif, bmp, tiff)")]
    NotAPicture,
    #[error("{0} is not supported; convert the file to jpeg or png")]
    Unsupported(String),
    #[error("the file ends before the picture does")]
    Truncated,
    #[error("the content is damaged: {0}")]
    Corrupt(String),
    #[error("{width} x {height} pixels are more than the {max} allowed; see input.max_pixels")]
    TooLarge { width: u32, height: u32, max: u64 },
}

impl DecodeError {
    /// A short class for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            DecodeError::Empty => "empty",
            DecodeError::NotAPicture => "not_a_picture",
            DecodeError::Unsupported(_) => "unsupported",
            DecodeError::Truncated => "truncated",
            DecodeError::Corrupt(_) => "corrupt",
            DecodeError::TooLarge { .. } => "too_large",
        }
    }
}

/// Bytes of a file → pixels. The content decides what it is, not the name.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<DecodedImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| DecodeError::NotAPicture)?;
    let name = match format {
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        ImageFormat::Bmp => "bmp",
        ImageFormat::Tiff => "tiff",
        other => return Err(DecodeError::Unsupported(format!("format {other:?}").to_ascii_lowercase())),
    };
    // libjpeg reports damage by unwinding; and a panic in any decoder must cost one picture, not the run.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        ImageFormat::Jpeg => jpeg(bytes, options),
        _ => other_format(bytes, format, options),
    }));
    let rgb = match decoded {
        Ok(result) => result?,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the decoder gave up");
            return Err(DecodeError::Corrupt(text.trim_start_matches("libjpeg fatal error: ").to_owned()));
        }
    };
    let (width, height) = rgb.dimensions();
    Ok(DecodedImage { rgb: rgb.into_raw(), width, height, format: name })
}

fn check_size(width: u32, height: u32, options: &DecodeOptions) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::Corrupt("the picture has no pixels".to_owned()));
    }
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(DecodeError::TooLarge { width, height, max: options.max_pixels });
    }
    Ok(())
}

/// A file in memory that notes when it was read past its end: libjpeg fills up what is missing with grey.
struct Watched<'a> {
    bytes: &'a [u8],
    ran_out: &'a Cell<bool>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        self.ran_out.set(self.ran_out.get() || (count == 0 && !buffer.is_empty()));
        Ok(count)
    }
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.ran_out.set(self.ran_out.get() || self.bytes.is_empty());
        Ok(self.bytes)
    }

    fn consume(&mut self, count: usize) {
        self.bytes = &self.bytes[count..];
    }
}

fn jpeg(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage, DecodeError> {
    let damaged = |error: std::io::Error| DecodeError::Corrupt(error.to_string());
    let ran_out = Cell::new(false);
    let header = mozjpeg::Decompress::new_reader(Watched { bytes, ran_out: &ran_out }).map_err(damaged)?;
    let (width, height) = (header.width() as u32, header.height() as u32);
    check_size(width, height, options)?;
    let cmyk = header.components().len() == 4;
    let pixels = if cmyk {
        let mut image = header.to_colorspace(mozjpeg::ColorSpace::JCS_CMYK).map_err(damaged)?;
        let inks = image.read_scanlines::<[u8; 4]>().map_err(damaged)?;
        inks.into_iter().flat_map(rgb_of_adobe_cmyk).collect()
    } else {
        let mut image = header.rgb().map_err(damaged)?;
        image.read_scanlines::<u8>().map_err(damaged)?
    };
    if ran_out.get() {
        return Err(DecodeError::Truncated);
    }
    let rgb = RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| DecodeError::Corrupt("the decoder returned too few pixels".to_owned()))?;
    if options.exif == Exif::Ignore {
        return Ok(rgb);
    }
    let orientation = image::codecs::jpeg::JpegDecoder::new(Cursor::new(bytes))
        .and_then(|mut decoder| decoder.orientation())
        .unwrap_or(Orientation::NoTransforms);
    Ok(turned(rgb, orientation))
}

/// Adobe stores 255 for no ink. Rounded as Pillow's CMYK → RGB conversion does.
fn rgb_of_adobe_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let times = |ink: u8| {
        let product = u32::from(255 - ink) * u32::from(k) + 128;
        (u32::from(k) - (((product >> 8) + product) >> 8)) as u8
    };
    [times(c), times(m), times(y)]
}

fn other_format(bytes: &[u8], format: ImageFormat, options: &DecodeOptions) -> Result<RgbImage, DecodeError> {
    let wrong = |error| decode_error(error, options);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    // Eight bytes a pixel is the most that a decoder needs (16 bits of RGBA).
    limits.max_alloc = Some(options.max_pixels.saturating_mul(8).saturating_add(64 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, options)?;
    let orientation = match options.exif {
        Exif::Ignore => Orientation::NoTransforms,
        Exif::Apply => decoder.orientation().unwrap_or(Orientation::NoTransforms),
    };
    let image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    let high = |value: &u16| (value >> 8) as u8;
    let rgb = match image {
        DynamicImage::ImageLuma16(image) => image.pixels().flat_map(|p| [high(&p.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| [high(&p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => image.pixels().flat_map(|p| [0, 1, 2].map(|i| high(&p.0[i]))).collect(),
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err(DecodeError::Unsupported("a picture of floating-point numbers".to_owned()));
        }
        eight_bits => eight_bits.into_rgb8().into_raw(),
    };
    let rgb = RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| DecodeError::Corrupt("the decoder returned too few pixels".to_owned()))?;
    Ok(turned(rgb, orientation))
}

fn turned(rgb: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let mut image = DynamicImage::ImageRgb8(rgb);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

fn decode_error(error: ImageError, options: &DecodeOptions) -> DecodeError {
    match error {
        ImageError::Unsupported(error) => DecodeError::Unsupported(error.to_string()),
        ImageError::Limits(error) if matches!(error.kind(), LimitErrorKind::InsufficientMemory) => {
            DecodeError::Corrupt(format!("it asks for more memory than {} pixels need", options.max_pixels))
        }
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => DecodeError::Truncated,
        other => {
            let text = other.to_string();
            let ended = ["unexpected end", "unexpected eof", "failed to fill whole buffer"];
            match ended.iter().any(|words| text.to_ascii_lowercase().contains(words)) {
                true => DecodeError::Truncated,
                false => DecodeError::Corrupt(text),
            }
        }
    }
}

/// Perceptual hash: the picture as 9 x 8 grey areas; a bit says whether an area is brighter than its right neighbour
/// (difference hash, N. Krawetz 2013). Bit 63 is the top left. Similar pictures differ in few bits.
pub fn dhash(image: &DecodedImage) -> u64 {
    const COLUMNS: usize = 9;
    const ROWS: usize = 8;
    let (width, height) = (image.width as usize, image.height as usize);
    // An area has at least one pixel, also in pictures smaller than the grid.
    let span = |i: usize, parts: usize, length: usize| {
        let start = i * length / parts;
        start..((i + 1) * length / parts).max(start + 1)
    };
    let grey = |row: usize, column: usize| -> u64 {
        let (ys, xs) = (span(row, ROWS, height), span(column, COLUMNS, width));
        let count = (ys.len() * xs.len()) as u64;
        let sum: u64 = ys
            .flat_map(|y| image.rgb[(y * width + xs.start) * 3..(y * width + xs.end) * 3].chunks_exact(3))
            // ITU-R 601 luma in thousandths.
            .map(|p| 299 * u64::from(p[0]) + 587 * u64::from(p[1]) + 114 * u64::from(p[2]))
            .sum();
        sum / count
    };
    let mut bits = 0;
    for row in 0..ROWS {
        let mut left = grey(row, 0);
        for column in 1..COLUMNS {
            let right = grey(row, column);
            bits = bits << 1 | u64::from(left > right);
            left = right;
        }
    }
    bits
}

/// From a file to a row of a batch.
#[derive(Debug, Clone, Copy)]
pub struct PictureOptions {
    pub decode: DecodeOptions,
    /// Height and width that the model wants, in pixels.
    pub side: u32,
    pub resize: Resize,
    /// Pictures of a batch.
    pub batch: usize,
    /// Threads that decode.
    pub threads: usize,
}

/// A batch, and what failed on the way to it.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Full, but for the last one.
    pub batch: ImageBatch,
    pub failures: Vec<Failure>,
}

/// Files taken up at once, for each thread: some, so that one slow file does not leave the others idle; few, so that
/// the model gets its first batch soon and memory stays small.
const FILES_PER_THREAD: usize = 8;

/// Reads and decodes `images` on `options.threads` threads and hands out batches in their order.
///
/// Ends early when `stop` is set or `send` returns false. In memory are the files taken up and one batch.
pub fn batches(
    images: &[Seen],
    options: &PictureOptions,
    stop: &AtomicBool,
    mut send: impl FnMut(Decoded) -> bool + Send,
) {
    // Without threads of its own (the system refuses more), the work is done on this one.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().ok();
    let mut open = Decoded::default();
    for block in images.chunks(FILES_PER_THREAD * options.threads.max(1)) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let prepare = || block.par_iter().with_max_len(1).map(|seen| picture(seen, options)).collect::<Vec<_>>();
        let prepared = match &pool {
            Some(pool) => pool.install(prepare),
            None => block.iter().map(|seen| picture(seen, options)).collect(),
        };
        for result in prepared {
            match result {
                Ok((picture, pixels)) => {
                    open.batch.pictures.push(picture);
                    open.batch.pixels.extend_from_slice(&pixels);
                }
                Err(failure) => open.failures.push(failure),
            }
            if open.batch.pictures.len() == options.batch && !send(std::mem::take(&mut open)) {
                return;
            }
        }
    }
    if !open.batch.pictures.is_empty() || !open.failures.is_empty() {
        send(open);
    }
}

/// One file → its facts and its pixels `[side, side, 3]`.
fn picture(seen: &Seen, options: &PictureOptions) -> Result<(Picture, Vec<u8>), Failure> {
    let image = &seen.image;
    let fail = |stage: &str, kind: &str, reason: String| Failure {
        path: image.id.clone(),
        split: image.split,
        stage: stage.to_owned(),
        kind: kind.to_owned(),
        reason,
    };
    let bytes = std::fs::read(&image.path).map_err(|error| fail("read", "unreadable", error.to_string()))?;
    let unusable = |error: DecodeError| fail("decode", error.kind(), error.to_string());
    let decoded = decode(&bytes, &options.decode).map_err(unusable)?;
    let pixels = preprocess::resize(&decoded, options.side, options.resize).map_err(unusable)?;
    let picture = Picture {
        id: image.id.clone(),
        split: image.split,
        label: image.label.clone(),
        // Of the bytes that were decoded: the file may have changed since it was first seen.
        sha256: sha256_hex(&bytes),
        dhash: dhash(&decoded),
        width: decoded.width,
        height: decoded.height,
        format: decoded.format.to_owned(),
    };
    Ok((picture, pixels))
}
