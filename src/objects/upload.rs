//! A folder of this machine → objects.

use std::io;
use std::path::Path;

use object_store::{Attribute, Attributes, PutOptions};
use walkdir::WalkDir;

use super::{Bucket, ObjectError, ObjectUrl};

/// Sends all files of a folder, at any depth; names that begin with a dot are left out. Returns how many they were.
///
/// Files stay where they are; objects of the same names are written over, others are let alone.
///
/// # Errors
/// The outer one is the disk's, the inner one the store's.
pub fn upload_folder(folder: &Path, to: &ObjectUrl) -> io::Result<Result<usize, ObjectError>> {
    let bucket = match Bucket::of(to) {
        Ok(bucket) => bucket,
        Err(error) => return Ok(Err(error)),
    };
    let mut count = 0;
    let is_shown = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
    };
    for entry in WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(is_shown) {
        let entry = entry.map_err(io::Error::from)?;
        if !entry.file_type().is_file() {
            continue;
        }
        let parts = entry.path().strip_prefix(folder).unwrap_or(entry.path()).components();
        let name: Vec<_> = parts.map(|part| part.as_os_str().to_string_lossy()).collect();
        let options = PutOptions::from(attributes(entry.path()));
        if let Err(error) = bucket.send(entry.path(), &to.join(&name.join("/")), options)? {
            return Ok(Err(error));
        }
        count += 1;
    }
    Ok(Ok(count))
}

/// What a browser must know to show a page rather than to save it.
fn attributes(file: &Path) -> Attributes {
    let kind = match file.extension().and_then(|ending| ending.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("md") => "text/markdown; charset=utf-8",
        Some("json") => "application/json",
        Some("xml") => "application/xml",
        Some("parquet") => "application/vnd.apache.parquet",
        _ => "text/plain; charset=utf-8",
    };
    Attributes::from_iter([(Attribute::ContentType, kind)])
}
