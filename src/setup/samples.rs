//! Sample folders cut from sheets: row `i` of a sheet is picture `i`, unrolled.
//!
//! What is written is an ImageFolder (`gallery/<class>/<class>_<number>.png`, the same for `queries`). The number is
//! the picture's place among all sheets, gallery first, so an id never means two pictures: with 50,000 gallery rows the
//! first query row is number 50000. Same sheets, same bytes, whatever the thread count.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::download::sha256_of;
use super::sources::{SampleSet, SampleSheets, SheetGroup};
use super::{SetupError, io_error, write_synced};

/// The list of a sample folder's files beside them, as `sha256sum --check` reads it.
pub const SUMS: &str = "SHA256SUMS";

/// Raised when the pictures of a set would come out differently: it is part of the stamp.
const LAYOUT: u32 = 1;

/// A picture that was written: its path below the set's folder, `/`-separated, and its hex SHA-256.
type Written = (String, String);

/// What a finished set is compared with; changes with the sheets, the layout and the counts.
pub fn recipe(sheets: &SampleSheets, set: &SampleSet, artefact_recipe: &str) -> String {
    let text = format!(
        "{LAYOUT}\n{artefact_recipe}\n{}\n{:?}\n{} {}",
        sheets.side, sheets.classes, set.gallery_per_class, set.queries_per_class
    );
    hex::encode(Sha256::digest(text))
}

/// Cuts a set from the sheets in `from` into the new folder `into`; returns the SHA-256 of its [`SUMS`] file.
///
/// # Errors
/// [`SetupError::Sheet`] where a sheet or its labels are not as the table says or a class has too few pictures;
/// [`SetupError::DiskFull`] and [`SetupError::Io`].
pub fn write(sheets: &SampleSheets, set: &SampleSet, from: &Path, into: &Path) -> Result<String, SetupError> {
    let gallery_rows = labels(from, &sheets.gallery)?.len();
    let mut written = cut(sheets, &sheets.gallery, set.gallery_per_class, 0, from, into, "gallery")?;
    written.extend(cut(sheets, &sheets.queries, set.queries_per_class, gallery_rows, from, into, "queries")?);
    written.sort();

    let mut sums = String::new();
    for (path, sha256) in &written {
        sums.push_str(&format!("{sha256}  {path}\n"));
    }
    write_synced(&into.join("README.md"), notice(set, &written).as_bytes())?;
    write_synced(&into.join(SUMS), sums.as_bytes())?;
    Ok(hex::encode(Sha256::digest(&sums)))
}

/// The pictures of a set that are missing or changed; pictures that someone added are not looked at.
///
/// `None` where the list itself is missing or not the one whose SHA-256 is `sums_sha256`: then nothing can be said.
///
/// # Errors
/// [`SetupError::Io`] for a picture that is there and cannot be read.
pub fn damaged(set_folder: &Path, sums_sha256: &str) -> Result<Option<Vec<PathBuf>>, SetupError> {
    let sums_file = set_folder.join(SUMS);
    let sums = match fs::read_to_string(&sums_file) {
        Ok(text) if hex::encode(Sha256::digest(&text)) == sums_sha256 => text,
        Ok(_) => return Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            return Ok(None);
        }
        Err(e) => return Err(io_error("read", &sums_file)(e)),
    };
    let lines: Vec<(&str, &str)> = sums.lines().filter_map(|line| line.split_once("  ")).collect();
    let bad: Result<Vec<Option<PathBuf>>, SetupError> = lines
        .par_iter()
        .map(|(sha256, path)| {
            let file = set_folder.join(path);
            let good = file.is_file() && sha256_of(&file)? == *sha256;
            Ok((!good).then(|| PathBuf::from(path)))
        })
        .collect();
    Ok(Some(bad?.into_iter().flatten().collect()))
}

/// Writes the first `per_class` pictures of each class below `into/part`, sheet by sheet.
fn cut(
    sheets: &SampleSheets,
    group: &SheetGroup,
    per_class: usize,
    first_number: usize,
    from: &Path,
    into: &Path,
    part: &str,
) -> Result<Vec<Written>, SetupError> {
    let labels = labels(from, group)?;
    let mut taken: BTreeMap<usize, usize> = (0..sheets.classes.len()).map(|class| (class, 0)).collect();
    for class in &sheets.classes {
        let folder = into.join(part).join(class);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    }

    let mut written = Vec::new();
    let mut offset = 0;
    for name in &group.sheets {
        if taken.values().all(|&n| n == per_class) {
            break; // the small set needs one sheet of five
        }
        let sheet = Sheet::read(&from.join(name), sheets.side)?;
        let mut chosen = Vec::new();
        for row in 0..sheet.rows() {
            let number = offset + row;
            let &class =
                labels.get(number).ok_or_else(|| sheet.problem("it has more rows than there are labels"))?;
            let count =
                taken.get_mut(&usize::from(class)).ok_or_else(|| sheet.problem("a label names no class"))?;
            if *count < per_class {
                *count += 1;
                chosen.push((row, number + first_number, &sheets.classes[usize::from(class)]));
            }
        }
        let pictures: Result<Vec<Written>, SetupError> = chosen
            .par_iter()
            .map(|(row, number, class)| {
                let path = format!("{part}/{class}/{class}_{number:05}.png");
                let png = sheet.png(*row)?;
                let file = into.join(&path);
                // Not flushed one by one: 60,000 flushes take minutes, and SHA256SUMS finds what a power cut spoilt.
                fs::write(&file, &png).map_err(io_error("write", &file))?;
                Ok((path, hex::encode(Sha256::digest(&png))))
            })
            .collect();
        written.extend(pictures?);
        offset += sheet.rows();
    }
    match taken.iter().find(|(_, n)| **n < per_class) {
        Some((class, n)) => Err(SetupError::Sheet {
            file: from.join(&group.labels),
            problem: format!("class {} has {n} pictures, {per_class} are wanted", sheets.classes[*class]),
        }),
        None => Ok(written),
    }
}

fn labels(from: &Path, group: &SheetGroup) -> Result<Vec<u8>, SetupError> {
    let file = from.join(&group.labels);
    let text = fs::read(&file).map_err(io_error("read", &file))?;
    serde_json::from_slice(&text).map_err(|e| SetupError::Sheet { file, problem: e.to_string() })
}

/// A decoded sheet: `rows` pictures of `side x side` RGB pixels, one per row.
struct Sheet {
    file: PathBuf,
    side: u32,
    pixels: image::RgbImage,
}

impl Sheet {
    fn read(file: &Path, side: u32) -> Result<Self, SetupError> {
        let decoded = image::open(file)
            .map_err(|e| SetupError::Sheet { file: file.to_owned(), problem: e.to_string() })?;
        let sheet = Sheet { file: file.to_owned(), side, pixels: decoded.into_rgb8() };
        if sheet.pixels.width() == side * side {
            Ok(sheet)
        } else {
            Err(sheet.problem(&format!("it is {} pixels wide, not {}", sheet.pixels.width(), side * side)))
        }
    }

    fn rows(&self) -> usize {
        self.pixels.height() as usize
    }

    /// Picture `row` as PNG bytes.
    fn png(&self, row: usize) -> Result<Vec<u8>, SetupError> {
        let length = self.pixels.width() as usize * 3;
        let rgb = &self.pixels.as_raw()[row * length..(row + 1) * length];
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive)
            .write_image(rgb, self.side, self.side, ExtendedColorType::Rgb8)
            .map_err(|e| self.problem(&e.to_string()))?;
        Ok(bytes)
    }

    fn problem(&self, problem: &str) -> SetupError {
        SetupError::Sheet { file: self.file.clone(), problem: problem.to_owned() }
    }
}

fn notice(set: &SampleSet, written: &[Written]) -> String {
    format!(
        "# {}: {} sample pictures\n\n\
         Cut by `imagedex setup` from CIFAR-10 (Alex Krizhevsky, \"Learning Multiple Layers of Features from Tiny\n\
         Images\", 2009): the first {} pictures of each class as the gallery, the first {} of the test part as queries,\n\
         lossless. The number in a name is the picture's place among the 60,000.\n\n\
         CIFAR-10 names no licence. The pictures are downloaded for your own use and are not ours to pass on:\n\
         do not commit or publish them.\n\n\
         `sha256sum --check {SUMS}` checks them, `imagedex setup --verify` also restores what is missing or changed.\n",
        set.name,
        written.len(),
        set.gallery_per_class,
        set.queries_per_class,
    )
}
