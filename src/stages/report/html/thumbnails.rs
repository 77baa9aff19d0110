//! Picture files → small pictures of gallery and queries, each embedded once however often the page shows it.
//!
//! They stand in sheets of 8 x 8: the header of a JPEG is as long as a thumbnail's pixels, and is so paid once for 64.
//! A style rule holds a sheet, and classes say which sheet, column and row an element shows; no script is needed.
//! A file that has gone, or cannot be decoded, is a blank tile that says so.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops;
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use super::escape;
use crate::objects::{Ahead, Early};
use crate::stages::decode::{self, DecodeOptions, Exif};
use crate::stages::scan::{Places, Source, Split};

/// Thumbnails in a row of a sheet, and rows.
const PER_ROW: usize = 8;
const PER_SHEET: usize = PER_ROW * PER_ROW;
/// Sides of a thumbnail in pixels and qualities of its JPEG, from the best on. Sides are multiples of 16, the block
/// that shares its colours, so that no thumbnail colours its neighbour.
const RUNGS: [(u32, f32); 5] = [(96, 76.0), (80, 70.0), (64, 66.0), (64, 54.0), (48, 50.0)];
/// Bytes of objects that are fetched before they are decoded.
const AHEAD: u64 = 64 << 20;
/// What is around a picture that is no square, on a light page and on a dark one.
const MAT: Rgb<u8> = Rgb([40, 44, 52]);

/// Where the pictures of a report are read from.
#[derive(Debug, Clone, Copy)]
pub struct Pictures<'a> {
    /// As `input.gallery`, `input.queries` and `input.images` name them.
    pub gallery: &'a Path,
    pub queries: Option<&'a Path>,
    pub images: Option<&'a Path>,
    /// Width x height above which a file is not decoded.
    pub max_pixels: u64,
}

impl Pictures<'_> {
    /// Where these are, in their order.
    fn sources(&self, wanted: &[(Split, &str)]) -> Vec<Option<Source>> {
        let mut found = vec![None; wanted.len()];
        for side in [Split::Gallery, Split::Query] {
            let root = match side {
                Split::Gallery => self.gallery,
                Split::Query => self.queries.unwrap_or(self.gallery),
            };
            let of_side = wanted.iter().enumerate().filter(|(_, (split, _))| *split == side);
            let (at, ids): (Vec<usize>, Vec<&str>) = of_side.map(|(i, (_, id))| (i, *id)).unzip();
            let sources = Places { root, images: self.images }.sources(&ids);
            at.into_iter().zip(sources).for_each(|(i, source)| found[i] = source);
        }
        found
    }

    /// At most `side` pixels wide and high, in whole; never enlarged.
    fn thumbnail(&self, source: &Source, side: u32) -> Option<RgbImage> {
        self.small(&source.read().ok()?, side)
    }

    fn small(&self, bytes: &[u8], side: u32) -> Option<RgbImage> {
        let options = DecodeOptions { exif: Exif::Apply, max_pixels: self.max_pixels };
        let image = decode::preview(bytes, &options, side).ok()?;
        let image = RgbImage::from_raw(image.width, image.height, image.rgb)?;
        Some(within(image, side))
    }
}

fn within(image: RgbImage, side: u32) -> RgbImage {
    let longer = image.width().max(image.height());
    if longer <= side {
        return image;
    }
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longer)).max(1) as u32;
    imageops::thumbnail(&image, scaled(image.width()), scaled(image.height()))
}

/// Small pictures, and the style rules that hold them.
#[derive(Debug, Default)]
pub struct Thumbnails<'a> {
    /// Longer side in pixels.
    pub side: u32,
    /// Files that could not be read or decoded.
    pub missing: usize,
    /// To be embedded in the page.
    pub css: String,
    place: HashMap<(Split, &'a str), usize>,
}

impl<'a> Thumbnails<'a> {
    /// Of these pictures, in `budget` bytes of CSS if the smallest size can do it.
    pub fn new(wanted: &[(Split, &'a str)], pictures: &Pictures, budget: usize) -> Thumbnails<'a> {
        let side = RUNGS[0].0;
        let sources = pictures.sources(wanted);
        let mut read: Vec<Option<((Split, &str), RgbImage)>> = Vec::with_capacity(wanted.len());
        for (wanted, sources) in wanted.chunks(PER_SHEET).zip(sources.chunks(PER_SHEET)) {
            // Objects are on their way while others are decoded.
            let ahead = Ahead::of(AHEAD);
            let begin = |(&picture, source): (&(Split, &'a str), &'_ Option<Source>)| {
                let early = source.as_ref().and_then(|source| source.fetch(&ahead, u64::MAX));
                (picture, source.clone(), early)
            };
            let begun: Vec<_> = wanted.iter().zip(sources).map(begin).collect();
            let small = |(picture, source, early): ((Split, &'a str), Option<Source>, Option<Early>)| {
                let small = match early {
                    Some(early) => pictures.small(&early.take().ok()?.0, side),
                    None => pictures.thumbnail(&source?, side),
                };
                Some((picture, small?))
            };
            read.par_extend(begun.into_par_iter().map(small));
        }
        let missing = read.iter().filter(|picture| picture.is_none()).count();
        let (names, mut images): (Vec<_>, Vec<_>) = read.into_iter().flatten().unzip();
        let place = names.into_iter().zip(0..).collect();
        if images.is_empty() {
            return Thumbnails { missing, ..Thumbnails::default() };
        }
        let longest = images.iter().map(|image| image.width().max(image.height())).max().unwrap_or(1);
        let (mut side, mut css) = (0, String::new());
        for (rung, &(most, quality)) in RUNGS.iter().enumerate() {
            side = most.min(longest.next_multiple_of(16));
            images = images.into_par_iter().map(|image| within(image, side)).collect();
            let is_last = rung + 1 == RUNGS.len();
            if is_last || estimate(&images, side, quality) <= budget {
                css = style(&images, side, quality);
            }
            if !css.is_empty() && (is_last || css.len() <= budget) {
                break;
            }
            css.clear();
        }
        Thumbnails { side, missing, css, place }
    }

    /// An element that shows a picture. `name` is text for those who do not see it.
    pub fn element(&self, picture: (Split, &str), name: &str) -> String {
        let name = escape(name);
        match self.place.get(&picture) {
            Some(place) => {
                let (sheet, x, y) = (place / PER_SHEET, place % PER_ROW, place % PER_SHEET / PER_ROW);
                format!("<i class=\"t s{sheet} x{x} y{y}\" role=\"img\" aria-label=\"{name}\"></i>")
            }
            None => format!("<i class=\"t gone\" role=\"img\" aria-label=\"{name} (no picture)\"></i>"),
        }
    }
}

/// Bytes of CSS that all sheets would need, from one whose pictures are taken evenly from all.
fn estimate(images: &[RgbImage], side: u32, quality: f32) -> usize {
    let step = (images.len() / PER_SHEET).max(1);
    let sample: Vec<&RgbImage> = images.iter().step_by(step).take(PER_SHEET).collect();
    let bytes = sheet(&sample, side, quality).len() * 4 / 3;
    bytes * images.len() / sample.len().max(1)
}

fn style(images: &[RgbImage], side: u32, quality: f32) -> String {
    let sheets: Vec<String> = images
        .par_chunks(PER_SHEET)
        .map(|images| STANDARD.encode(sheet(&images.iter().collect::<Vec<_>>(), side, quality)))
        .collect();
    let mut css = String::new();
    // Writing to a string cannot fail.
    for (i, sheet) in sheets.iter().enumerate() {
        let _ = writeln!(css, ".s{i}{{background-image:url(data:image/jpeg;base64,{sheet})}}");
    }
    for i in 0..PER_ROW {
        // Where a picture eight times as large as its frame begins, in percent of what does not fit.
        let at = i as f64 * 100.0 / (PER_ROW - 1) as f64;
        let _ =
            writeln!(css, ".x{i}{{background-position-x:{at:.4}%}}.y{i}{{background-position-y:{at:.4}%}}");
    }
    css
}

/// A JPEG of up to 64 pictures, each in the middle of its place. All sheets have one size, so one style fits them.
fn sheet(images: &[&RgbImage], side: u32, quality: f32) -> Vec<u8> {
    let whole = side * PER_ROW as u32;
    let mut pixels = RgbImage::from_pixel(whole, whole, MAT);
    for (place, image) in images.iter().enumerate() {
        let (column, row) = ((place % PER_ROW) as u32, (place / PER_ROW) as u32);
        let x = column * side + (side - image.width()) / 2;
        let y = row * side + (side - image.height()) / 2;
        imageops::replace(&mut pixels, *image, i64::from(x), i64::from(y));
    }
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(whole as usize, whole as usize);
    encoder.set_quality(quality);
    encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
    // Into memory, from pixels of the size that was set: there is nothing to go wrong.
    let encoded = encoder.start_compress(Vec::new()).and_then(|mut encoder| {
        encoder.write_scanlines(&pixels)?;
        encoder.finish()
    });
    encoded.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` noisy pictures of 120 x 90 in a folder.
    fn folder(count: usize) -> (tempfile::TempDir, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let names: Vec<String> = (0..count).map(|i| format!("{i}.png")).collect();
        for name in &names {
            let picture = RgbImage::from_fn(120, 90, |x, _| Rgb([random.u8(0..90), x as u8, 128]));
            picture.save(folder.path().join(name)).unwrap();
        }
        (folder, names)
    }

    #[test]
    fn thumbnails_shrink_until_they_fit() {
        let (folder, names) = folder(70);
        let pictures = Pictures { gallery: folder.path(), queries: None, images: None, max_pixels: u64::MAX };
        let wanted: Vec<(Split, &str)> = names.iter().map(|name| (Split::Gallery, name.as_str())).collect();
        let large = Thumbnails::new(&wanted, &pictures, usize::MAX);
        assert_eq!((large.side, large.missing), (96, 0));
        assert_eq!(large.css.matches("data:image/jpeg").count(), 2, "70 pictures are two sheets");
        let budget = large.css.len() / 2;
        let small = Thumbnails::new(&wanted, &pictures, budget);
        assert!(small.side < 96 && small.css.len() <= budget, "{} px, {} bytes", small.side, small.css.len());
        assert_eq!(Thumbnails::new(&wanted, &pictures, 0).side, 48, "the least there is");
    }

    #[test]
    fn a_large_jpeg_gives_the_thumbnail_of_the_same_picture() {
        let folder = tempfile::tempdir().unwrap();
        let large =
            RgbImage::from_fn(2000, 1200, |x, y| Rgb([(x / 8) as u8, (y / 5) as u8, ((x + y) / 13) as u8]));
        large.save(folder.path().join("large.jpg")).unwrap();
        let pictures = Pictures { gallery: folder.path(), queries: None, images: None, max_pixels: u64::MAX };
        let small = pictures.thumbnail(&Source::File(folder.path().join("large.jpg")), 96).unwrap();
        let whole = within(large, 96);
        assert_eq!(small.dimensions(), whole.dimensions());
        let apart = small.iter().zip(whole.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart < Some(16), "{apart:?} levels");
    }

    #[test]
    fn a_picture_that_has_gone_is_a_blank_tile() {
        let (folder, _) = folder(1);
        let pictures = Pictures { gallery: folder.path(), queries: None, images: None, max_pixels: u64::MAX };
        let wanted = [(Split::Gallery, "gone.png"), (Split::Query, "0.png")];
        let thumbnails = Thumbnails::new(&wanted, &pictures, usize::MAX);
        assert_eq!(thumbnails.missing, 1);
        let gone = thumbnails.element(wanted[0], "a \"cat\"");
        assert_eq!(
            gone,
            "<i class=\"t gone\" role=\"img\" aria-label=\"a &quot;cat&quot; (no picture)\"></i>"
        );
        let there = thumbnails.element(wanted[1], "a cat");
        assert_eq!(there, "<i class=\"t s0 x0 y0\" role=\"img\" aria-label=\"a cat\"></i>");
        assert!(Thumbnails::new(&[], &pictures, 0).css.is_empty());
    }
}
