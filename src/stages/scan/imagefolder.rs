//! A folder with `metadata.csv`, `.jsonl` or `.parquet` in it, as Hugging Face's `imagefolder` knows it.
//!
//! The file is at the top, or in the folders of splits: `train` is gallery, `test` is queries. It is a manifest whose column
//! `file_name` counts from its own folder. What a newcomer would get wrong: a file of that name without such a column is not meant,
//! and the folder is one of pictures like any other. A class may be called `train`, too: at the top, folders stand for splits where
//! all rows lie in such, or where rows lie in some of both sides.

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

/// What rows of a validation split are counted as.
pub(super) const VALIDATION_ROWS: &str = "rows of the validation split";

/// The split that the first folder of a picture's path stands for: one of ours, or (`Some(None)`) validation. Nothing for any other.
pub(super) fn split_folder(name: &str) -> Option<Option<Split>> {
    let (first, _) = name.split_once('/')?;
    let is_in = |names: &[&str]| names.contains(&first);
    match first {
        _ if is_in(&TRAIN) => Some(Some(Split::Gallery)),
        _ if is_in(&TEST) => Some(Some(Split::Query)),
        _ if is_in(&VALIDATION) => Some(None),
        _ => None,
    }
}

/// Whether folders of these kinds, one a row, are meant as splits.
pub(super) fn are_splits(folders: &[Option<Option<Split>>]) -> bool {
    let has = |split| folders.contains(&Some(Some(split)));
    folders.iter().all(Option::is_some) || (has(Split::Gallery) && has(Split::Query))
}

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
///
/// Where another input than this is named for the other side, a folder gives those of `split` alone: `photos` for the gallery and
/// `photos/validation` for the queries means no picture of `photos/test`.
pub(super) async fn scan(
    root: &Path,
    split: Split,
    options: &ScanOptions,
    scan: &mut Scan,
) -> Result<bool, ScanError> {
    let before = scan.counts();
    let (mut is_read, mut has_validation) = (false, false);
    for Metadata { file, folder, split } in find(root, split)? {
        let table = Table::open(&file).await?;
        if !table.columns.iter().any(|column| column == COLUMN) {
            let names = table.columns.join(", ");
            match names.to_ascii_lowercase().contains(COLUMN) {
                // With other separators or capitals: it was meant.
                true => tracing::warn!(
                    "{} has no column {COLUMN} but `{names}`, so the folder is read without it; columns are separated by commas, and \
                     called just so",
                    file.display()
                ),
                false => {
                    tracing::info!(
                        "{} has no column {COLUMN}, and is no metadata of pictures",
                        file.display()
                    )
                }
            }
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
        let at_top = folder.is_none();
        let prefix = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
        let rows = Rows {
            columns: &[COLUMN],
            folder: file.parent().unwrap_or(root),
            prefix: &prefix,
            split,
            labelled_by_folders: true,
            split_by_folders: at_top,
        };
        let skipped = |scan: &Scan| scan.skipped.get(VALIDATION_ROWS).copied().unwrap_or_default();
        let skipped_before = skipped(scan);
        table.scan(&rows, options, scan).await?;
        if skipped(scan) > skipped_before {
            has_validation = true;
            tracing::warn!(
                "rows of {} below a folder validation are neither gallery (train) nor queries (test); a manifest of them in input.queries \
                 takes them",
                file.display()
            );
        }
    }
    if is_read {
        let images = scan.images[before[0]..].iter().map(|image| image.id.as_str());
        let failures = scan.failures[before[1]..].iter().map(|failure| failure.path.as_str());
        let listed: HashSet<&str> = images.chain(failures).collect();
        for _ in 0..unlisted(root, split, &listed, has_validation)? {
            scan.skip("pictures that metadata does not list");
        }
    }
    if options.queries.as_ref().is_some_and(|queries| *queries != options.gallery) {
        let kept = |found: Split| found == split;
        let images = scan.images.split_off(before[0]);
        let count = images.len();
        scan.images.extend(images.into_iter().filter(|image| kept(image.split)));
        for _ in 0..count - (scan.images.len() - before[0]) {
            scan.skip("rows of the other split");
        }
        let failures = scan.failures.split_off(before[1]);
        scan.failures.extend(failures.into_iter().filter(|failure| kept(failure.split)));
    }
    Ok(is_read)
}

/// How many pictures lie in the folder that no row names; those of a validation split, whose rows were counted, are left out.
fn unlisted(
    root: &Path,
    split: Split,
    listed: &HashSet<&str>,
    has_validation: bool,
) -> Result<usize, ScanError> {
    let mut all = Scan::default();
    folder::scan(root, split, &super::LabelRule::None, &mut all)?;
    let is_counted = |id: &str| has_validation && split_folder(id) == Some(None);
    let ids = all.images.iter().map(|image| image.id.as_str());
    Ok(ids.filter(|id| !listed.contains(id) && !is_counted(id)).count())
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
