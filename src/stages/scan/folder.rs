//! A folder of pictures, or of tar files that hold them, at any depth.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use super::folders::went_away;
use super::webdataset::{self, Shard};
use super::{ImageRef, LabelRule, Scan, ScanError, Source, Split, shown};
use crate::stages::decode;

/// Endings that say "a picture". `decode` goes by the content; of those it cannot read it says so.
pub(super) const PICTURES: [&str; 18] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "heic", "heif",
    "avif", "jxl", "jp2", "ico",
];

/// Endings of raw photographs. They look like TIFF inside, whose first page would be a thumbnail.
pub(super) const RAW: [&str; 9] = ["dng", "cr2", "nef", "nrw", "arw", "orf", "rw2", "raf", "pef"];

pub(super) fn raw_reason(ending: &str) -> String {
    format!("raw photographs ({ending}) are not supported; convert the file to jpeg or png")
}

/// Walks `root`, following links; a loop of links is a failure, hidden files and folders are passed over. Tar files are read where
/// there are no pictures beside them.
///
/// Errors: a folder that was there and is not, which is no folder without pictures; those of [`webdataset::scan`].
pub(super) fn scan(root: &Path, split: Split, rule: &LabelRule, scan: &mut Scan) -> Result<(), ScanError> {
    let above = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let before = scan.images.len();
    let mut shards = Vec::new();
    let mut walk = WalkDir::new(root).follow_links(true).into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if entry.depth() > 0 && is_hidden(entry.file_name()) => {
                scan.skip("hidden");
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
            }
            Ok(entry) if entry.file_type().is_dir() => {
                // The walk knows the folders that it came through, not those above its root.
                let leads_up = || entry.path().canonicalize().is_ok_and(|target| above.starts_with(target));
                if entry.depth() > 0 && entry.path_is_symlink() && leads_up() {
                    scan.fail(
                        &shown(entry.path().strip_prefix(root).unwrap_or(entry.path())),
                        split,
                        "link_loop",
                        LOOP,
                    );
                    walk.skip_current_dir();
                }
            }
            Ok(entry) if entry.file_type().is_file() && webdataset::is_archive(entry.path()) => {
                shards.push(entry.into_path());
            }
            Ok(entry) => file(root, &entry, split, rule, scan),
            Err(error) if error.path().and_then(Path::file_name).is_some_and(is_hidden) => {
                scan.skip("hidden")
            }
            Err(error) => {
                let path = error
                    .path()
                    .map_or_else(String::new, |path| shown(path.strip_prefix(root).unwrap_or(path)));
                match (error.loop_ancestor(), error.io_error()) {
                    (Some(_), _) => scan.fail(&path, split, "link_loop", LOOP),
                    (None, Some(io)) if error.path().is_some_and(|path| went_away(path, io)) => {
                        let path = error.path().unwrap_or(root).to_owned();
                        return Err(ScanError::Vanished { what: split.input(), path });
                    }
                    (None, Some(error)) => scan.fail(&path, split, "unreadable", error),
                    (None, None) => scan.fail(&path, split, "unreadable", error),
                }
            }
        }
    }
    if scan.images.len() > before {
        if let LabelRule::Column(column) = rule {
            return Err(ScanError::NoColumn {
                what: split.input(),
                path: root.to_owned(),
                column: column.clone(),
                found: "a folder has columns where it holds a metadata.csv, .jsonl or .parquet".to_owned(),
            });
        }
        for shard in shards {
            scan.skip(&shard.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase());
        }
        return Ok(());
    }
    let mut named = Vec::new();
    for path in shards {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        match id(relative) {
            Some(id) => named.push(Shard { path, id }),
            None => scan.fail(&shown(relative), split, "name", NO_TEXT),
        }
    }
    named.sort_by(|a, b| a.id.cmp(&b.id));
    webdataset::scan(&named, split, rule, scan)
}

const NO_TEXT: &str = "the name is not valid UTF-8; rename the file or its folder";

/// A path below a root, `/`-separated; nothing where it is no UTF-8.
pub(super) fn id(relative: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = relative.components().map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

const LOOP: &str = "a symbolic link that leads back to a folder above it; remove the link";

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn file(root: &Path, entry: &DirEntry, split: Split, rule: &LabelRule, scan: &mut Scan) {
    let path = entry.path();
    let relative = path.strip_prefix(root).unwrap_or(path);
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some(raw) if RAW.contains(&raw) => {
            return scan.fail(&shown(relative), split, "unsupported", raw_reason(raw));
        }
        Some(ending) if !PICTURES.contains(&ending) => return scan.skip(ending),
        None if !begins_as_picture(path) => return scan.skip("no ending"),
        _ if !entry.file_type().is_file() => {
            return scan.fail(&shown(relative), split, "not_a_file", "neither a file nor a folder");
        }
        _ => {}
    }
    let Some(id) = id(relative) else { return scan.fail(&shown(relative), split, "name", NO_TEXT) };
    scan.images.push(ImageRef { label: rule.label(&id), id, split, source: Source::File(path.to_owned()) });
}

/// A file without an ending may be anything (`LICENSE`, `Makefile`), so its first bytes decide.
fn begins_as_picture(path: &Path) -> bool {
    let mut head = Vec::new();
    let is_file = std::fs::metadata(path).is_ok_and(|kind| kind.is_file());
    is_file
        && File::open(path).and_then(|file| file.take(32).read_to_end(&mut head)).is_ok()
        && decode::is_picture(&head)
}
