//! A folder of pictures, at any depth.

use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use super::{ImageRef, LabelRule, Scan, Split};

/// Endings of the formats that `decode` reads. A file without an ending is looked at too: content decides.
const ENDINGS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Walks `root`, following links; a loop of links is a failure, hidden files are passed over.
pub(super) fn scan(root: &Path, split: Split, rule: &LabelRule, scan: &mut Scan) {
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => file(root, &entry, split, rule, scan),
            Ok(_) => {}
            Err(error) => {
                let path = error.path().map(|path| path.strip_prefix(root).unwrap_or(path));
                let path = path.map_or_else(String::new, |path| path.to_string_lossy().into_owned());
                let (kind, reason) = match error.loop_ancestor() {
                    Some(_) => ("link_loop", "a symbolic link that leads back to a folder above it".to_owned()),
                    None => {
                        ("unreadable", error.io_error().map_or_else(|| error.to_string(), ToString::to_string))
                    }
                };
                scan.fail(&path, split, kind, reason);
            }
        }
    }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

fn file(root: &Path, entry: &DirEntry, split: Split, rule: &LabelRule, scan: &mut Scan) {
    let path = entry.path();
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    if let Some(ending) = ending
        && !ENDINGS.contains(&ending.as_str())
    {
        *scan.skipped.entry(ending).or_default() += 1;
        return;
    }
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Option<Vec<&str>> = relative.components().map(|part| part.as_os_str().to_str()).collect();
    let Some(parts) = parts else {
        let reason = "the name is not valid UTF-8; rename the file or its folder";
        scan.fail(&relative.to_string_lossy(), split, "name", reason);
        return;
    };
    let id = parts.join("/");
    scan.images.push(ImageRef { label: rule.label(&id), id, split, path: path.to_owned() });
}
