//! [`Seen`] → [`DecodedImage`] → full [`ImageBatch`]es, in parallel. A bad file becomes a [`Failure`], never a stop.
//!
//! The pixels are those that Pillow gives for `Image.open(file).convert("RGB")`, because that is what the original's
//! features were computed from. So JPEG is decoded by libjpeg (the `mozjpeg` crate: same integer IDCT and chroma
//! upsampling as Pillow's, bit for bit) and not by a faster decoder that rounds otherwise: a difference of 3 levels in
//! 1 % of the values moves a VGG16 vector by 1e-5. What becomes of the unusual:
//!
//! - grey is repeated three times; alpha is dropped, not blended; palettes are expanded
//! - 16 bits keep their high byte, grey ones too (Pillow clips 16-bit grey at 255, which leaves white)
//! - CMYK and YCCK JPEG are taken as Adobe writes them (inverted), as Pillow does, without colour profile
//! - of animations the first frame is taken (black around it where it is smaller than the whole, where Pillow takes
//!   the palette's first colour); of multi-page TIFF the first page
//! - the EXIF orientation is [an option](Exif) for every format (Pillow always applies it to TIFF)
//! - TIFF of palettes, YCbCr, grey with alpha or floating-point numbers is not supported, and said so
//! - a JPEG without its end is refused, as by Pillow; what follows the end is ignored

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use mozjpeg::Marker;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::preprocess::{self, ImageBatch};
use super::room::{self, Room};
use super::scan::{Seen, Source, Split, sha256_hex};
use crate::memory::{Bytes, Shares};
use crate::models::Resize;
use crate::objects::{Ahead, Early};

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
    /// Of the decoded picture, as [`pixel_sha256`] makes it: the same for files that differ and show the same.
    pub pixel_sha256: String,
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

/// The default of [`DecodeOptions::max_pixels`]: 100 million, as from a 10,000 x 10,000 camera back.
pub const DEFAULT_MAX_PIXELS: u64 = 100_000_000;

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { exif: Exif::Ignore, max_pixels: DEFAULT_MAX_PIXELS }
    }
}

/// Why a file is no usable picture.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Often a copy that was broken off. Copy the file again, or remove it.
    #[error("the file is empty")]
    Empty,
    /// The content decides, not the ending. Convert the file, or remove it.
    #[error("the content is no picture that imagedex knows (jpeg, png, webp, gif, bmp, tiff)")]
    NotAPicture,
    #[error("{0}; convert the file to jpeg or png")]
    Unsupported(String),
    #[error("the file ends before the picture does; copy or download it again")]
    Truncated,
    /// Bytes are missing or wrong. Copy the file again, or remove it.
    #[error("the content is damaged: {0}")]
    Corrupt(String),
    /// A photo larger than the limit, or a small file that would fill the memory. Raise the limit only for files you trust.
    #[error("{width} x {height} pixels are more than the {max} allowed; see input.max_pixels")]
    TooLarge { width: u32, height: u32, max: u64 },
    /// The file is far longer than any picture within the limit. Raise the limit only for files you trust.
    #[error("a file of {bytes} bytes is more than pictures of {max} pixels need; see input.max_pixels")]
    TooLong { bytes: u64, max: u64 },
    /// The budget of the pipeline file has no room for a picture of this size, even alone.
    #[error(
        "it takes {} to be decoded, more than the {} that memory leaves for pictures; raise memory",
        Bytes(*bytes),
        Bytes(*most)
    )]
    NoRoom { bytes: u64, most: u64 },
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
            DecodeError::TooLarge { .. } | DecodeError::TooLong { .. } | DecodeError::NoRoom { .. } => {
                "too_large"
            }
        }
    }
}

/// Bytes of a file → pixels. The content decides what it is, not the name.
///
/// # Errors
/// See [`DecodeError`]. A decoder that panics is an error as well: it must cost one picture, not the run.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<DecodedImage, DecodeError> {
    decode_for(bytes, options, u32::MAX)
}

/// The same for a small view of at most `side` pixels: the picture may come smaller than it is, but not smaller than that.
///
/// A JPEG is decoded at a half, a quarter or an eighth of its size at once, which takes a fraction of the time.
///
/// # Errors
/// As of [`decode`].
pub fn preview(bytes: &[u8], options: &DecodeOptions, side: u32) -> Result<DecodedImage, DecodeError> {
    decode_for(bytes, options, side)
}

fn decode_for(bytes: &[u8], options: &DecodeOptions, side: u32) -> Result<DecodedImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let (format, name) = format_of(bytes)?;
    let rgb = match format {
        ImageFormat::Jpeg => jpeg(bytes, options, side)?,
        _ => caught(|| other_format(bytes, format, options))?,
    };
    let (width, height) = rgb.dimensions();
    Ok(DecodedImage { rgb: rgb.into_raw(), width, height, format: name })
}

/// Whether a file that begins with `head` (32 bytes are enough) is one that [`decode`] reads.
pub(super) fn is_picture(head: &[u8]) -> bool {
    format_of(head).is_ok()
}

fn format_of(bytes: &[u8]) -> Result<(ImageFormat, &'static str), DecodeError> {
    let unsupported = |name: &str| Err(DecodeError::Unsupported(format!("{name} is not supported")));
    match bytes {
        // ISO media: the brand says which.
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => {
            return unsupported(match brand {
                [b'h', b'e', ..] | [b'm', b'i', b'f', ..] | [b'm', b's', b'f', ..] => "heic",
                [b'a', b'v', b'i', ..] => "avif",
                _ => "video",
            });
        }
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => return unsupported("jpeg xl"),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] => return unsupported("jpeg 2000"),
        // Two letters are little proof: the length of the second header must be one of those that exist.
        [b'B', b'M', rest @ ..] if !matches!(rest.get(12), Some(12 | 16 | 40 | 52 | 56 | 64 | 108 | 124)) => {
            return Err(DecodeError::NotAPicture);
        }
        _ => {}
    }
    match image::guess_format(bytes).map_err(|_| DecodeError::NotAPicture)? {
        format @ ImageFormat::Jpeg => Ok((format, "jpeg")),
        format @ ImageFormat::Png => Ok((format, "png")),
        format @ ImageFormat::WebP => Ok((format, "webp")),
        format @ ImageFormat::Gif => Ok((format, "gif")),
        format @ ImageFormat::Bmp => Ok((format, "bmp")),
        format @ ImageFormat::Tiff => Ok((format, "tiff")),
        other => unsupported(&format!("{other:?}").to_ascii_lowercase()),
    }
}

/// Runs a decoder; its panic becomes an error. libjpeg's own errors come this way too (without a panic message).
fn caught<T>(decoder: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    // Sound although asserted: what the decoder worked on is dropped with it.
    catch_unwind(AssertUnwindSafe(decoder)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the decoder gave up");
        let text = text.trim_start_matches("libjpeg fatal error: ");
        // Lossless, 12-bit and arithmetic-coded JPEG: whole files of a kind that nobody else writes.
        let kinds =
            ["Unsupported JPEG", "Unsupported color conversion", "Sorry, arithmetic", "Requested feature"];
        Err(match kinds.iter().any(|kind| text.starts_with(kind)) {
            true => DecodeError::Unsupported(format!("this kind of jpeg is not supported ({text})")),
            false => DecodeError::Corrupt(text.to_owned()),
        })
    })
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

/// Scans of one JPEG. Progressive files have about ten; one made to keep a decoder busy has thousands, each as dear as
/// the first. The limit is that of libjpeg-turbo's own fuzzers.
const MAX_SCANS: usize = 500;

fn jpeg(bytes: &[u8], options: &DecodeOptions, side: u32) -> Result<RgbImage, DecodeError> {
    let ran_out = Cell::new(false);
    match caught(|| libjpeg(bytes, &ran_out, options, side)) {
        Err(error @ (DecodeError::TooLarge { .. } | DecodeError::Unsupported(_))) => Err(error),
        _ if ran_out.get() => Err(DecodeError::Truncated),
        result => result,
    }
}

fn libjpeg(
    bytes: &[u8],
    ran_out: &Cell<bool>,
    options: &DecodeOptions,
    side: u32,
) -> Result<RgbImage, DecodeError> {
    let damaged = |error: std::io::Error| DecodeError::Corrupt(error.to_string());
    let markers: &[Marker] = match options.exif {
        Exif::Ignore => mozjpeg::NO_MARKERS,
        Exif::Apply => &[Marker::APP(1)],
    };
    let header = mozjpeg::Decompress::builder().with_markers(markers);
    let mut header = header.from_reader(Watched { bytes, ran_out }).map_err(damaged)?;
    let (width, height) = (header.width() as u32, header.height() as u32);
    check_size(width, height, options)?;
    // Each block of 8 x 8 costs at least a bit. A header that promises more would only cost memory: libjpeg clears the
    // coefficients of a progressive file, six bytes a pixel, before it reads the first of them.
    if (bytes.len() as u64) < u64::from(width) * u64::from(height) / 512 {
        return Err(DecodeError::Truncated);
    }
    // Whole, a half, a quarter or an eighth: what libjpeg does fast.
    let eighths = [1, 2, 4].into_iter().find(|eighths| width.max(height) / 8 * eighths >= side);
    if let Some(eighths) = eighths {
        header.scale(eighths as u8);
    }
    // Compressed data holds no such pair: there, 0xff is followed by 0.
    if bytes.windows(2).filter(|pair| pair[0] == 0xff && pair[1] == 0xda).count() > MAX_SCANS {
        return Err(DecodeError::Corrupt(format!("a jpeg of more than {MAX_SCANS} scans")));
    }
    let orientation = header
        .markers()
        .find_map(|marker| Orientation::from_exif_chunk(marker.data.strip_prefix(b"Exif\0\0")?))
        .unwrap_or(Orientation::NoTransforms);
    let (pixels, rest) = if header.components().len() == 4 {
        let mut image = header.to_colorspace(mozjpeg::ColorSpace::JCS_CMYK).map_err(damaged)?;
        let inks = image.read_scanlines::<[u8; 4]>().map_err(damaged)?;
        (inks.into_iter().flat_map(rgb_of_adobe_cmyk).collect(), image)
    } else {
        let mut image = header.rgb().map_err(damaged)?;
        (image.read_scanlines::<u8>().map_err(damaged)?, image)
    };
    let (width, height) = (rest.width() as u32, rest.height() as u32);
    // Looks for the end marker: without it a file was cut, if only by a byte. Pillow thinks so too.
    rest.finish().map_err(damaged)?;
    turned(from_raw(width, height, pixels)?, orientation)
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
    limits.max_alloc = Some(byte_limit(match png_size(bytes, format) {
        // Here the limit is for a row of pixels and for what comes with the picture: a colour profile is inflated before the
        // size is asked for, and a megabyte of it can hold a gigabyte.
        Some((width, height)) => {
            check_size(width, height, options)?;
            width.into()
        }
        None => options.max_pixels,
    }));
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
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|p| [0, 1, 2].map(|i| high(&p.0[i]))).collect()
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err(DecodeError::Unsupported(
                "a picture of floating-point numbers is not supported".to_owned(),
            ));
        }
        eight_bits => eight_bits.into_rgb8().into_raw(),
    };
    turned(from_raw(width, height, rgb)?, orientation)
}

/// Width and height of a PNG, from its first chunk.
fn png_size(bytes: &[u8], format: ImageFormat) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (format == ImageFormat::Png).then_some(())?;
    Some((number(16)?, number(20)?))
}

/// Bytes that a picture may take: eight a pixel (16 bits of RGBA), and something for tables, metadata and padding.
fn byte_limit(max_pixels: u64) -> u64 {
    max_pixels.saturating_mul(8).saturating_add(64 << 20)
}

fn from_raw(width: u32, height: u32, rgb: Vec<u8>) -> Result<RgbImage, DecodeError> {
    RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| DecodeError::Corrupt("the decoder returned too few pixels".to_owned()))
}

fn turned(rgb: RgbImage, orientation: Orientation) -> Result<RgbImage, DecodeError> {
    if orientation == Orientation::NoTransforms {
        return Ok(rgb);
    }
    let mut image = DynamicImage::ImageRgb8(rgb);
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn decode_error(error: ImageError, options: &DecodeOptions) -> DecodeError {
    match error {
        ImageError::Unsupported(error) => DecodeError::Unsupported(format!("not supported: {error}")),
        ImageError::Limits(error) if matches!(error.kind(), LimitErrorKind::InsufficientMemory) => {
            DecodeError::Corrupt(format!("it asks for more memory than {} pixels need", options.max_pixels))
        }
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated
        }
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

/// Hex SHA-256 of width and height (`u32`, little-endian) and the RGB pixels, row by row.
pub fn pixel_sha256(image: &DecodedImage) -> String {
    let hash = Sha256::new().chain_update(image.width.to_le_bytes()).chain_update(image.height.to_le_bytes());
    hex::encode(hash.chain_update(&image.rgb).finalize())
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
        let mut sums = [0_u64; 3];
        for y in ys {
            for pixel in image.rgb[(y * width + xs.start) * 3..(y * width + xs.end) * 3].chunks_exact(3) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += u64::from(*value);
                }
            }
        }
        // ITU-R 601 luma in thousandths.
        (299 * sums[0] + 587 * sums[1] + 114 * sums[2]) / count
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
    /// Threads that decode; 0 for one a core.
    pub threads: usize,
    /// What may be in memory at a time.
    pub shares: Shares,
}

/// A batch, and what failed on the way to it.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Full, but for the last one.
    pub batch: ImageBatch,
    pub failures: Vec<Failure>,
}

/// Reads and decodes `images` on threads of its own and hands out batches in their order.
///
/// Files are taken up one by one, so that a large one keeps only one thread busy, and up to a batch of them beyond the
/// one that is being handed out: while `send` waits for the model, the next batch gets ready. In memory are thus at most
/// two batches of resized pictures, and one decoded picture per thread; large ones wait for one another where the budget
/// gives them less [room] than they take together.
///
/// An object begins to come as soon as it is taken up: while some are decoded, as many as are taken up are on their way.
///
/// Ends when `send` returns false. When `stop` is set no further file is taken up; what was is still handed out.
pub fn batches(
    images: &[Seen],
    options: &PictureOptions,
    stop: &AtomicBool,
    mut send: impl FnMut(Decoded) -> bool,
) {
    let room = options.shares.decoding.map(Room::new);
    let room = room.as_ref();
    let early =
        Ahead::of(options.shares.decoding.map_or(OBJECTS_AHEAD, |bytes| (bytes / 4).min(OBJECTS_AHEAD)));
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(options.threads).thread_name(|i| format!("decode-{i}"));
    let Ok(pool) = pool.build() else {
        // The system refuses further threads: the work is done on this one.
        let images = images.iter().take_while(|_| !stop.load(Ordering::Relaxed));
        let mut results = images.map(|seen| picture(seen, options, room, None));
        while let Some(decoded) = next_batch(options.batch, || results.next()) {
            if !send(decoded) {
                break;
            }
        }
        return;
    };
    let ahead = options.batch + 2 * pool.current_num_threads();
    let abandoned = AtomicBool::new(false);
    let (finished, results) = crossbeam_channel::unbounded();
    // The scope ends when every task has, whichever way this function is left.
    pool.in_place_scope_fifo(|scope| {
        // Slot i belongs to image `taken - slots.len() + i`: filled in any order, emptied from the front.
        let mut slots: VecDeque<Option<Result<Row, Failure>>> = VecDeque::new();
        let mut taken = 0;
        let mut next = || {
            loop {
                while slots.len() < ahead && taken < images.len() && !stop.load(Ordering::Relaxed) {
                    let (index, seen) = (taken, &images[taken]);
                    let (finished, abandoned) = (finished.clone(), &abandoned);
                    let early = seen.image.source.fetch(&early, byte_limit(options.decode.max_pixels));
                    scope.spawn_fifo(move |_| {
                        if !abandoned.load(Ordering::Relaxed) {
                            // The receiver lives as long as this scope's body; after that nobody wants the result.
                            let _ = finished.send((index, picture(seen, options, room, early)));
                        }
                    });
                    slots.push_back(None);
                    taken += 1;
                }
                match slots.pop_front()? {
                    Some(result) => return Some(result),
                    None => slots.push_front(None),
                }
                let (index, result) = results.recv().ok()?;
                let first = taken - slots.len();
                slots[index - first] = Some(result);
            }
        };
        while let Some(decoded) = next_batch(options.batch, &mut next) {
            if !send(decoded) {
                abandoned.store(true, Ordering::Relaxed);
                break;
            }
        }
    });
}

/// Bytes of objects that may be fetched before they are decoded, where no budget says less.
const OBJECTS_AHEAD: u64 = 128 << 20;

/// A picture and its pixels, `[side, side, 3]`.
type Row = (Picture, Vec<u8>);

/// Gathers `size` pictures, or what is left; nothing when nothing is left.
fn next_batch(size: usize, mut next: impl FnMut() -> Option<Result<Row, Failure>>) -> Option<Decoded> {
    let mut open = Decoded::default();
    while open.batch.pictures.len() < size {
        match next() {
            Some(Ok((picture, pixels))) => {
                open.batch.pictures.push(picture);
                open.batch.pixels.extend_from_slice(&pixels);
            }
            Some(Err(failure)) => open.failures.push(failure),
            None => break,
        }
    }
    (!open.batch.pictures.is_empty() || !open.failures.is_empty()).then_some(open)
}

/// One file → its facts and its pixels.
fn picture(
    seen: &Seen,
    options: &PictureOptions,
    room: Option<&Room>,
    early: Option<Early>,
) -> Result<Row, Failure> {
    let image = &seen.image;
    let fail = |stage: &str, kind: &str, reason: String| Failure {
        path: image.id.clone(),
        split: image.split,
        stage: stage.to_owned(),
        kind: kind.to_owned(),
        reason,
    };
    let unreadable = |error: std::io::Error| fail("read", "unreadable", error.to_string());
    let unusable = |error: DecodeError| fail("decode", error.kind(), error.to_string());
    let length = image.source.length().map_err(unreadable)?;
    if length > byte_limit(options.decode.max_pixels) {
        return Err(unusable(DecodeError::TooLong { bytes: length, max: options.decode.max_pixels }));
    }
    let (source, _fetched) = match early {
        None => (image.source.clone(), None),
        Some(early) => {
            let (bytes, room) = early.take().map_err(unreadable)?;
            (Source::Fetched(bytes), Some(room))
        }
    };
    let _place = match room {
        None => None,
        Some(room) => {
            let bytes = room::bytes_of(&source, &options.decode).map_err(unreadable)?;
            let place = room.take(bytes).ok_or(DecodeError::NoRoom { bytes, most: room.size() });
            Some(place.map_err(unusable)?)
        }
    };
    let bytes = source.read().map_err(unreadable)?;
    let prepare = || {
        let decoded = decode(&bytes, &options.decode)?;
        let pixels = preprocess::resize(&decoded, options.side, options.resize)?;
        Ok((pixel_sha256(&decoded), dhash(&decoded), decoded.width, decoded.height, decoded.format, pixels))
    };
    let (pixel_sha256, dhash, width, height, format, pixels) = caught(prepare).map_err(unusable)?;
    let picture = Picture {
        id: image.id.clone(),
        split: image.split,
        label: image.label.clone(),
        // Of the bytes that were decoded: the file may have changed since it was first seen.
        sha256: sha256_hex(&bytes),
        pixel_sha256,
        dhash,
        width,
        height,
        format: format.to_owned(),
    };
    Ok((picture, pixels))
}
