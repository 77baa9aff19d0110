//! Folders and manifests → [`ImageRef`]s, in stable order.
//!
//! Nothing is decoded here. What a newcomer would get wrong: a file that cannot become a picture is never dropped in
//! silence. It is a [`Failure`] where somebody meant it to be one, and counted as skipped where its ending says that it
//! is something else.

mod folder;
mod manifest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode::Failure;

/// Why there is nothing to work on. Exit code 2: the input has to be put right.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("{what} {path} cannot be read: {source}")]
    Unreadable { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what} {path} is not a folder, nor a .csv, .jsonl or .parquet manifest")]
    NotAFolder { what: &'static str, path: PathBuf },
    #[error("{what} {path} holds no pictures ({seen}); check the path")]
    Empty { what: &'static str, path: PathBuf, seen: String },
    #[error("manifest {path}: {reason}")]
    Manifest { path: PathBuf, reason: String },
}

/// Where a picture's class comes from.
#[derive(Debug, Clone, Default)]
pub enum LabelRule {
    /// The folder that holds the file: ImageFolder's rule.
    #[default]
    Folder,
    /// The first folder below the root: a coarser class where folders are nested.
    TopFolder,
    /// The group `label` of a pattern, or its first group, found in the id. Only on request: no rule guesses.
    Regex(Regex),
    /// Pictures have no class.
    None,
}

impl LabelRule {
    /// A pattern with one group, such as `^\d+_(?<label>.+)_image_`.
    pub fn regex(pattern: &str) -> Result<LabelRule, String> {
        let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
        if regex.captures_len() < 2 {
            return Err(format!("`{pattern}` has no group; put the class in parentheses"));
        }
        Ok(LabelRule::Regex(regex))
    }

    /// The class of a picture found in a folder.
    fn label(&self, id: &str) -> Option<String> {
        let mut folders = id.split('/').rev().skip(1);
        let found = match self {
            LabelRule::Folder => folders.next(),
            LabelRule::TopFolder => folders.last(),
            LabelRule::Regex(regex) => {
                let captures = regex.captures(id)?;
                captures.name("label").or_else(|| captures.get(1)).map(|group| group.as_str())
            }
            LabelRule::None => None,
        };
        found.filter(|label| !label.is_empty()).map(str::to_owned)
    }
}

/// What is scanned.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// A folder, or a manifest by its ending.
    pub gallery: PathBuf,
    pub queries: Option<PathBuf>,
    pub label: LabelRule,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Sorted by (split, id).
    pub images: Vec<ImageRef>,
    pub failures: Vec<Failure>,
    /// Files that are no pictures by their ending, counted by it (`txt`, `csv`, …).
    pub skipped: BTreeMap<String, usize>,
}

impl Scan {
    fn fail(&mut self, path: &str, split: Split, kind: &str, reason: impl std::fmt::Display) {
        self.failures.push(Failure {
            path: path.to_owned(),
            split,
            stage: "scan".to_owned(),
            kind: kind.to_owned(),
            reason: reason.to_string(),
        });
    }

    /// Pictures looked at: found, or failed before they could be.
    pub fn scanned(&self) -> usize {
        self.images.len() + self.failures.len()
    }
}

/// Finds all pictures of gallery and queries.
///
/// # Errors
/// See [`ScanError`]: a root that is missing, unreadable or without pictures. Trouble below a root is a [`Failure`].
pub async fn scan(options: &ScanOptions) -> Result<Scan, ScanError> {
    let mut scan = Scan::default();
    scan_root("gallery", &options.gallery, Split::Gallery, &options.label, &mut scan).await?;
    if let Some(queries) = &options.queries {
        scan_root("queries", queries, Split::Query, &options.label, &mut scan).await?;
    }
    scan.images.sort_by(|a, b| (a.split, &a.id).cmp(&(b.split, &b.id)));
    scan.failures.sort_by(|a, b| (a.split, &a.path).cmp(&(b.split, &b.path)));
    Ok(scan)
}

/// One folder, all of one split; or one manifest, whose rows may name their split.
async fn scan_root(
    what: &'static str,
    root: &Path,
    split: Split,
    label: &LabelRule,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let unreadable = |source| ScanError::Unreadable { what, path: root.to_owned(), source };
    let (images, failures) = (scan.images.len(), scan.failures.len());
    let kind = std::fs::metadata(root).map_err(unreadable)?;
    if kind.is_dir() {
        std::fs::read_dir(root).map_err(unreadable)?;
        folder::scan(root, split, label, scan);
    } else if crate::config::is_manifest(root) {
        manifest::scan(root, split, scan).await?;
    } else {
        return Err(ScanError::NotAFolder { what, path: root.to_owned() });
    }
    if scan.images.len() == images {
        let bad = scan.failures.len() - failures;
        let skipped: usize = scan.skipped.values().sum();
        let seen = format!("{skipped} other files, {bad} unusable ones");
        return Err(ScanError::Empty { what, path: root.to_owned(), seen });
    }
    Ok(())
}

/// Reads every file once. The order is kept; a file that cannot be read, or is empty, becomes a [`Failure`].
///
/// When `stop` is set the rest is left out of both lists.
pub fn hash(images: Vec<ImageRef>, stop: &AtomicBool) -> (Vec<Seen>, Vec<Failure>) {
    let hashed: Vec<Result<Seen, Failure>> = images
        .into_par_iter()
        .filter(|_| !stop.load(Ordering::Relaxed))
        .map(|image| match std::fs::read(&image.path) {
            Ok(bytes) if bytes.is_empty() => Err(failure(&image, "empty", "the file is empty".to_owned())),
            Ok(bytes) => Ok(Seen { sha256: sha256_hex(&bytes), image }),
            Err(error) => Err(failure(&image, "unreadable", error.to_string())),
        })
        .collect();
    let mut seen = Vec::with_capacity(hashed.len());
    let mut failures = Vec::new();
    for result in hashed {
        match result {
            Ok(image) => seen.push(image),
            Err(failure) => failures.push(failure),
        }
    }
    (seen, failures)
}

fn failure(image: &ImageRef, kind: &str, reason: String) -> Failure {
    Failure {
        path: image.id.clone(),
        split: image.split,
        stage: "read".to_owned(),
        kind: kind.to_owned(),
        reason,
    }
}

/// Hex SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The side of the search that a picture is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Searched in.
    Gallery,
    /// Searched for.
    Query,
}

impl Split {
    /// The value of the table's `split` column.
    pub fn name(self) -> &'static str {
        match self {
            Split::Gallery => "gallery",
            Split::Query => "query",
        }
    }
}

/// A picture that was found, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// Path relative to its root, `/`-separated, UTF-8. Unique within its split: the key of the table is (`split`, `id`).
    pub id: String,
    pub split: Split,
    /// The class, where one is known.
    pub label: Option<String>,
    /// Where the bytes are.
    pub path: PathBuf,
}

/// A picture whose bytes were read once, to know whether they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub image: ImageRef,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_from_folders_or_from_an_explicit_pattern() {
        let id = "Fruit/Apple/Royal-Gala/1.jpg";
        assert_eq!(LabelRule::Folder.label(id).as_deref(), Some("Royal-Gala"));
        assert_eq!(LabelRule::TopFolder.label(id).as_deref(), Some("Fruit"));
        assert_eq!(LabelRule::Folder.label("1.jpg"), None);
        assert_eq!(LabelRule::None.label(id), None);
        let rule = LabelRule::regex(r"^\d+_(?<label>.+)_image_").expect("valid");
        assert_eq!(rule.label("001_accordion_image_0002.jpg").as_deref(), Some("accordion"));
        assert_eq!(rule.label("2012_000003.jpg"), None, "a year is no class");
        assert!(LabelRule::regex("abc").is_err_and(|reason| reason.contains("no group")));
    }
}
