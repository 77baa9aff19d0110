//! Room for pictures while they are decoded: large ones wait for one another, so that together they stay within a share of the
//! memory budget.
//!
//! What a newcomer would get wrong: the room has to be there before the file is read, not only before it is decoded. So what a
//! picture will take is told from its header alone ([`bytes_of`]), which says more than its pixels: a progressive JPEG is held as
//! coefficients until its last scan.

use std::io::{BufReader, Read, Seek};
use std::sync::{Condvar, Mutex, PoisonError};

use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

use super::decode::{DecodeOptions, Exif};
use super::scan::Source;

/// Bytes that pictures take together.
#[derive(Debug)]
pub(super) struct Room {
    size: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

/// A part of the room, given back when it is dropped.
pub(super) struct Place<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    pub(super) fn new(size: u64) -> Room {
        Room { size, free: Mutex::new(size), freed: Condvar::new() }
    }

    /// Waits until so much is free. Nothing where it never will be.
    pub(super) fn take(&self, bytes: u64) -> Option<Place<'_>> {
        if bytes > self.size {
            return None;
        }
        // Nothing can be half done where a thread panicked: the number is changed in one step.
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Some(Place { room: self, bytes })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.room.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.room.freed.notify_all();
    }
}

/// Bytes that the picture in `source` takes while it is decoded, its file included. A header that cannot be read takes next to
/// nothing, for the decoder will give up at it as well.
pub(super) fn bytes_of(source: &Source, options: &DecodeOptions) -> std::io::Result<u64> {
    /// Headers, tables, and a row or two.
    const SMALL: u64 = 1 << 20;
    let exif = options.exif;
    let length = source.length()?;
    let mut file = source.open()?;
    let pixels = match ImageReader::new(BufReader::new(&mut file)).with_guessed_format()?.format() {
        Some(ImageFormat::Jpeg) => {
            file.rewind()?;
            jpeg(BufReader::new(file), exif).unwrap_or_default()
        }
        Some(format) => {
            file.rewind()?;
            // The reader must not panic, nor take much: what comes with a picture is limited as when it is decoded.
            let decoded = || other(BufReader::new(file), format, exif);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(decoded)).ok().flatten().unwrap_or_default()
        }
        None => 0,
    };
    Ok(length.saturating_add(SMALL).saturating_add(pixels))
}

/// Turned pixels are a copy.
fn turned(exif: Exif) -> u64 {
    if exif == Exif::Apply { 3 } else { 0 }
}

fn other<R: std::io::BufRead + Seek>(reader: R, format: ImageFormat, exif: Exif) -> Option<u64> {
    let decoder = ImageReader::with_format(reader, format).into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    // What is not RGB yet is copied into RGB.
    let copied = if decoder.color_type() == ColorType::Rgb8 { 0 } else { 3 };
    // What the decoders hold beside their result: planes of WebP, the frame of a GIF, a strip of TIFF.
    let beside = match format {
        ImageFormat::WebP => 8,
        ImageFormat::Gif | ImageFormat::Tiff => 4,
        _ => 0,
    };
    Some(decoder.total_bytes().saturating_add(pixels.saturating_mul(copied + beside + turned(exif))))
}

/// Walks the segments of a JPEG up to its first scan.
fn jpeg<R: Read + Seek>(mut reader: BufReader<R>, exif: Exif) -> Option<u64> {
    let number = |reader: &mut BufReader<R>| {
        let mut bytes = [0; 2];
        reader.read_exact(&mut bytes).ok().map(|()| u16::from_be_bytes(bytes))
    };
    let byte = |reader: &mut BufReader<R>| {
        let mut byte = [0; 1];
        reader.read_exact(&mut byte).ok().map(|()| byte[0])
    };
    let (mut frame, mut is_progressive) = (None, false);
    loop {
        // Between segments there may be any number of 0xff.
        while byte(&mut reader)? != 0xff {}
        let mut marker = 0xff;
        while marker == 0xff {
            marker = byte(&mut reader)?;
        }
        // Those that have no content.
        if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let mut length = i64::from(number(&mut reader)?) - 2;
        match marker {
            0xc4 | 0xc8 | 0xcc => {}
            0xc0..=0xcf => {
                byte(&mut reader)?;
                let (height, width) = (number(&mut reader)?, number(&mut reader)?);
                frame = Some((u64::from(width) * u64::from(height), byte(&mut reader)?));
                is_progressive = matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                length -= 6;
            }
            0xda => {
                let (pixels, components) = frame?;
                let inks = if components == 4 { 4 } else { 0 };
                // All coefficients are held until the last scan where there are several.
                let is_whole = byte(&mut reader)? == components && !is_progressive;
                let coefficients = if is_whole { 0 } else { 2 * u64::from(components.min(4)) };
                return Some(pixels * (3 + inks + coefficients + turned(exif)));
            }
            0xd9 => return None,
            _ => {}
        }
        reader.seek_relative(length.max(0)).ok()?;
    }
}
