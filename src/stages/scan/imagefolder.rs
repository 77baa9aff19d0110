//! A folder with `metadata.csv`, `.jsonl` or `.parquet` in it, as Hugging Face's `imagefolder` knows it.
//!
//! The file is at the top, or in the folders of splits: `train` is gallery, `test` is queries. It is a manifest whose column
//! `file_name` counts from its own folder. What a newcomer would get wrong: a file of that name without such a column is not meant,
//! and the folder is one of pictures like any other.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::manifest::{Rows, Table};
use super::{Scan, ScanError, ScanOptions, Split, folder};

const FILES: [&str; 3] = ["metadata.csv", "metadata.jsonl", "metadata.parquet"];

/// The column that makes a table metadata of pictures.
pub(super) const COLUMN: &str = "file_name";

/// Names of folders that stand for a split.
const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&str; 4] = ["test", "testing", "eval", "evaluation"];
const VALIDATION: [&str; 4] = ["validation", "valid", "dev", "val"];

/// A table of metadata, and where it is.
struct Metadata {
    file: PathBuf,
    /// Of the folder that it is in, below the root; nothing at the top.
    folder: Option<&'static str>,
    /// That of its pictures; nothing for the validation split.
    split: Option<Split>,
}

/// Whether a folder has metadata that could name pictures of both sides.
pub(super) fn has_splits(root: &Path) -> bool {
    find(root, Split::Gallery).is_ok_and(|found| !found.is_empty())
}

/// Whether a file would be metadata by its path below a folder.
pub(super) fn is_metadata(id: &str) -> bool {
    let (folder, file) = id.rsplit_once('/').unwrap_or(("", id));
    let is_split = |names: &[&str]| names.contains(&folder);
    FILES.contains(&file)
        && (folder.is_empty() || is_split(&TRAIN) || is_split(&TEST) || is_split(&VALIDATION))
}

/// Adds the pictures that its metadata list. `false` where it has none.
pub(super) async fn scan(
    root: &Path,
    split: Split,
    options: &ScanOptions,
    scan: &mut Scan,
) -> Result<bool, ScanError> {
    let before = scan.counts();
    let mut is_read = false;
    for Metadata { file, folder, split } in find(root, split)? {
        let table = Table::open(&file).await?;
        if !table.columns.iter().any(|column| column == COLUMN) {
            tracing::info!("{} has no column {COLUMN}, and is no metadata of pictures", file.display());
            continue;
        }
        is_read = true;
        let Some(split) = split else {
            tracing::warn!(
                "{} is neither gallery (train) nor queries (test); input.queries may name its folder",
                file.display()
            );
            continue;
        };
        let prefix = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
        let rows = Rows {
            columns: &[COLUMN],
            folder: file.parent().unwrap_or(root),
            prefix: &prefix,
            split,
            labelled_by_folders: true,
        };
        table.scan(&rows, options, scan).await?;
    }
    if is_read {
        let images = scan.images[before[0]..].iter().map(|image| image.id.as_str());
        let failures = scan.failures[before[1]..].iter().map(|failure| failure.path.as_str());
        let listed: HashSet<&str> = images.chain(failures).collect();
        for _ in 0..unlisted(root, split, &listed)? {
            scan.skip("pictures that metadata does not list");
        }
    }
    Ok(is_read)
}

/// How many pictures lie in the folder that no row names.
fn unlisted(root: &Path, split: Split, listed: &HashSet<&str>) -> Result<usize, ScanError> {
    let mut all = Scan::default();
    folder::scan(root, split, &super::LabelRule::None, &mut all)?;
    Ok(all.images.iter().filter(|image| !listed.contains(image.id.as_str())).count())
}

/// The metadata of `root`: at its top, or else in its folders of splits.
fn find(root: &Path, split: Split) -> Result<Vec<Metadata>, ScanError> {
    if let Some(file) = file_in(root)? {
        return Ok(vec![Metadata { file, folder: None, split: Some(split) }]);
    }
    let named = |names: &'static [&'static str], split| names.iter().map(move |name| (*name, split));
    let splits = named(&TEST, Some(Split::Query)).chain(named(&TRAIN, Some(Split::Gallery)));
    let mut found = Vec::new();
    for (folder, split) in splits.chain(named(&VALIDATION, None)) {
        if let Some(file) = file_in(&root.join(folder))? {
            found.push(Metadata { file, folder: Some(folder), split });
        }
    }
    Ok(found)
}

/// Errors: two of them in one folder.
fn file_in(folder: &Path) -> Result<Option<PathBuf>, ScanError> {
    let mut files = FILES.iter().map(|name| folder.join(name)).filter(|file| file.is_file());
    let (first, second) = (files.next(), files.next());
    match second {
        Some(path) => {
            let reason = "another file of metadata lies beside it; keep one of them".to_owned();
            Err(ScanError::Manifest { path, reason })
        }
        None => Ok(first),
    }
}
