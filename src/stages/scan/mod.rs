//! Folders, manifests, COCO files and archives → [`ImageRef`]s, in stable order.
//!
//! Nothing is decoded here. What a newcomer would get wrong: a file that cannot become a picture is never dropped in
//! silence. It is a [`Failure`] where somebody meant it to be one, and counted as skipped where its ending says that it
//! is something else.

mod coco;
mod find;
mod folder;
mod folders;
mod imagefolder;
mod known;
mod manifest;
mod objects;
mod pattern;
mod source;
mod tar;
mod webdataset;

pub use find::Places;
pub use folders::Folders;
pub use known::Known;
pub use manifest::is_manifest;
pub use source::{Archive, Content, Object, Source};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode::Failure;
use crate::objects::{ObjectError, ObjectUrl, hashes};
use crate::progress::Progress;

/// Why there is nothing to work on. Exit code 2: the input has to be put right.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It is not there, or may not be read. Check the path in the pipeline file, which counts from that file's folder.
    #[error("{what} {path} cannot be read: {reason}")]
    Unreadable { what: &'static str, path: PathBuf, reason: std::io::Error },
    /// The key names a file of another kind. Name the folder that holds it, or a manifest.
    #[error("{what} {path} is not a folder, nor a .csv, .jsonl or .parquet manifest, a COCO .json or a .tar")]
    NotAFolder { what: &'static str, path: PathBuf },
    #[error("{what} {path} holds no pictures ({seen}); check the path")]
    Empty { what: &'static str, path: PathBuf, seen: String },
    /// It was unmounted, renamed or removed, or its server or disk stopped answering. Exit code 4, unlike the others.
    #[error(
        "{what}: folder {path} went away while its pictures were read, and what is stored of them was kept; mount it or put it back, then \
         run again"
    )]
    Vanished { what: &'static str, path: PathBuf },
    /// Somebody wrote it anew or moved it, so places in it mean nothing any more. Exit code 4.
    #[error(
        "{what}: archive {path} changed or went away while its pictures were read, and what is stored of them was kept; let its writer \
         finish, then run again"
    )]
    Changed { what: &'static str, path: PathBuf },
    /// Pictures are read where they lie in an archive, so each must lie there whole and as it is (docs/input-and-sql.md).
    #[error("archive {path}: {reason}")]
    Archive { path: PathBuf, reason: String },
    /// Correct the name in `input.label`, or choose another rule.
    #[error("{what} {path} has no column `{column}`, which input.label names; {found}")]
    NoColumn { what: &'static str, path: PathBuf, column: String, found: String },
    /// The object store, its network, or the credentials. Exit code 4, unlike the others.
    #[error(
        "{what}: {url} stopped answering while its pictures were read ({reason}), and what is stored of them was kept; run again once it \
         answers"
    )]
    ObjectsVanished { what: &'static str, url: String, reason: String },
    /// An object store may hold a folder of pictures, or a manifest (docs/object-stores.md).
    #[error("{what} {url}: {found} is read from this machine alone; {remedy}")]
    NotInStores { what: &'static str, url: String, found: &'static str, remedy: &'static str },
    /// See ObjectError. Exit code 4 where the store does not answer.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The reason names the row, or the column that is missing. Mend the manifest (docs/input-and-sql.md).
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
    /// A column of a manifest or of a folder's metadata; a member or a JSON key of a sample; a category's `name` or `supercategory`.
    Column(String),
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
            LabelRule::Column(_) | LabelRule::None => None,
        };
        found.filter(|label| !label.is_empty()).map(str::to_owned)
    }
}

/// What is scanned.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// A folder; by its ending a manifest, a COCO file or a tar file; or a pattern of tar files. A folder or a manifest may lie in an
    /// object store (`s3://bucket/folder`).
    pub gallery: PathBuf,
    pub queries: Option<PathBuf>,
    /// What the names in a manifest or in a COCO file count from, if not from where they lie.
    pub images: Option<PathBuf>,
    pub label: LabelRule,
    /// Whether rows of a manifest may name pictures outside of its folder.
    pub outside: bool,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Sorted by (split, id), which is unique.
    pub images: Vec<ImageRef>,
    /// Sorted by (split, path).
    pub failures: Vec<Failure>,
    /// Where the images are.
    pub folders: Folders,
    /// What is no picture and need not be one, counted by ending (`txt`, `csv`, …) or as `hidden` and `no ending`.
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

    fn skip(&mut self, kind: &str) {
        *self.skipped.entry(kind.to_owned()).or_default() += 1;
    }

    /// Images, failures, skipped.
    fn counts(&self) -> [usize; 3] {
        [self.images.len(), self.failures.len(), self.skipped.values().sum()]
    }

    /// Pictures looked at: found, or failed before they could be.
    pub fn scanned(&self) -> usize {
        self.images.len() + self.failures.len()
    }

    /// Pictures without a class.
    pub fn unlabelled(&self) -> usize {
        self.images.iter().filter(|image| image.label.is_none()).count()
    }
}

/// Finds all pictures of gallery and queries.
///
/// # Errors
/// See [`ScanError`]: a root that is missing, unreadable or without pictures, a folder that goes away meanwhile. Other trouble below
/// a root is a [`Failure`].
pub async fn scan(options: &ScanOptions) -> Result<Scan, ScanError> {
    let ScanOptions { gallery, queries, .. } = options;
    let mut scan = Scan::default();
    scan_root("gallery", gallery, Split::Gallery, options, &mut scan).await?;
    require("gallery", gallery, Split::Gallery, &scan, [0; 3])?;
    // One manifest may hold both sides, and is then read once.
    if let Some(queries) = queries {
        let before = scan.counts();
        if !(queries == gallery && holds_both(queries)) {
            scan_root("queries", queries, Split::Query, options, &mut scan).await?;
        }
        require("queries", queries, Split::Query, &scan, before)?;
    }
    // Stable: of two pictures of one id the one named first stays first.
    scan.images.sort_by(|a, b| (a.split, &a.id).cmp(&(b.split, &b.id)));
    let mut images: Vec<ImageRef> = Vec::with_capacity(scan.images.len());
    for image in std::mem::take(&mut scan.images) {
        match images.last().filter(|first| (first.split, &first.id) == (image.split, &image.id)) {
            Some(first) => {
                let label = |image: &ImageRef| image.label.clone().unwrap_or_else(|| "no label".to_owned());
                let (first, again) = (label(first), label(&image));
                let reason = format!(
                    "the id is taken by an earlier row or member; it keeps that one's label ({first}), not {again}"
                );
                scan.fail(&image.id, image.split, "duplicate", reason);
            }
            None => images.push(image),
        }
    }
    scan.images = images;
    scan.folders.note_all(&scan.images)?;
    scan.folders.check()?;
    scan.failures.sort_by(|a, b| (a.split, &a.path).cmp(&(b.split, &b.path)));
    Ok(scan)
}

/// What `input.gallery` or `input.queries` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// The rest, which may also be no folder.
    Folder,
    Manifest,
    Coco,
    Archive,
    /// Of archives.
    Pattern,
    /// In an object store, and no manifest.
    Objects,
}

impl Root {
    /// Of a URL the disk is not asked.
    fn of(root: &Path) -> Root {
        match root {
            _ if ObjectUrl::of(root).is_some() => {
                if is_manifest(root) {
                    Root::Manifest
                } else {
                    Root::Objects
                }
            }
            _ if root.is_dir() => Root::Folder,
            _ if pattern::is_pattern(root) && !root.exists() => Root::Pattern,
            _ if is_manifest(root) => Root::Manifest,
            _ if coco::is_coco(root) => Root::Coco,
            _ if webdataset::is_archive(root) => Root::Archive,
            _ => Root::Folder,
        }
    }
}

/// Whether pictures of both sides may come from `root`: a manifest with a column for that, or a folder with metadata of splits.
pub fn holds_both(root: &Path) -> bool {
    is_manifest(root) || (ObjectUrl::of(root).is_none() && imagefolder::has_splits(root))
}

/// One input, all of one split but for rows that name theirs.
async fn scan_root(
    what: &'static str,
    root: &Path,
    split: Split,
    options: &ScanOptions,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let kind = Root::of(root);
    if let Some(url) = ObjectUrl::of(root) {
        return match kind {
            Root::Manifest => manifest::scan(root, split, options, scan).await,
            _ => objects::scan(&url, split, &options.label, scan).await,
        };
    }
    let unreadable = |reason| ScanError::Unreadable { what, path: root.to_owned(), reason };
    if kind == Root::Pattern {
        let base = pattern::base(root);
        let mut shards = Vec::new();
        for path in pattern::files(root).map_err(unreadable)? {
            shards.push(shard(what, &base, path)?);
        }
        return webdataset::scan(&shards, split, &options.label, scan);
    }
    let file = std::fs::metadata(root).map_err(unreadable)?;
    if file.is_dir() {
        std::fs::read_dir(root).map_err(unreadable)?;
        scan.folders.note(root, split)?;
        return match imagefolder::scan(root, split, options, scan).await? {
            true => Ok(()),
            false => folder::scan(root, split, &options.label, scan),
        };
    }
    match kind {
        _ if !file.is_file() => Err(ScanError::NotAFolder { what, path: root.to_owned() }),
        Root::Manifest => manifest::scan(root, split, options, scan).await,
        Root::Coco => coco::scan(root, split, options, scan),
        Root::Archive => {
            let shard = shard(what, root.parent().unwrap_or(Path::new("")), root.to_owned())?;
            webdataset::scan(&[shard], split, &options.label, scan)
        }
        _ => Err(ScanError::NotAFolder { what, path: root.to_owned() }),
    }
}

/// A tar file that is named itself, or by a pattern; its pictures are called by its path below `base`.
fn shard(what: &'static str, base: &Path, path: PathBuf) -> Result<webdataset::Shard, ScanError> {
    let id = folder::id(path.strip_prefix(base).unwrap_or(&path));
    match id.filter(|_| webdataset::is_archive(&path) && path.is_file()) {
        Some(id) => Ok(webdataset::Shard { path, id }),
        None => Err(ScanError::NotAFolder { what, path }),
    }
}

/// There must be pictures of this split; else what was seen since `before` says why not.
fn require(
    what: &'static str,
    root: &Path,
    split: Split,
    scan: &Scan,
    before: [usize; 3],
) -> Result<(), ScanError> {
    if scan.images.iter().any(|image| image.split == split) {
        return Ok(());
    }
    let counts = scan.counts();
    let [images, failures, skipped] = [0, 1, 2].map(|i| counts[i] - before[i]);
    let mut seen = format!("{skipped} other files, {failures} unusable ones");
    if let Some(Failure { path, reason, .. }) = scan.failures.get(before[1]) {
        seen += &format!(", such as {path}: {reason}");
    }
    if images > 0 {
        seen += &format!(", {images} rows of the other split");
    }
    Err(ScanError::Empty { what, path: root.to_owned(), seen })
}

/// A path for a person to find: bytes that are no UTF-8 are written as `\xff`.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        text += chunk.valid();
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Reads every file once. The order is kept; a file that cannot be read, or is empty, becomes a [`Failure`].
///
/// When `stop` is set the rest is left out of both lists. Files are read in pieces: their size does not matter.
pub fn hash(images: Vec<ImageRef>, stop: &AtomicBool) -> (Vec<Seen>, Vec<Failure>) {
    hash_unless_known(images, &mut Known::default(), |_| true, stop)
}

/// The same; of objects those alone are read that are not `known`, and those that are read become so.
///
/// An object that is not `stored`, and whose content is not known under another name, will be embedded whatever it is. It is not
/// read now only to be fetched again then: its hash stays empty, which is the hash of nothing.
pub fn hash_unless_known(
    images: Vec<ImageRef>,
    known: &mut Known,
    stored: impl Fn(&ImageRef) -> bool,
    stop: &AtomicBool,
) -> (Vec<Seen>, Vec<Failure>) {
    let early = hash_objects(&images, known, stored, stop);
    let hashed: Vec<Result<Seen, Failure>> = images
        .into_par_iter()
        .zip(early)
        .filter(|_| !stop.load(Ordering::Relaxed))
        .map_init(
            || vec![0; 1 << 16],
            |buffer, (image, early)| match early.unwrap_or_else(|| hash_content(&image.source, buffer)) {
                Ok(None) => Err(failure(&image, "empty", "the file is empty".to_owned())),
                Ok(Some(sha256)) => Ok(Seen { image, sha256 }),
                Err(error) => Err(failure(&image, "unreadable", error.to_string())),
            },
        )
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

/// What became of a picture's hash: nothing where it has no bytes.
type Hashed = std::io::Result<Option<String>>;

/// The hashes of those `images` that are objects, in their place. Many are read at a time, as the answer to each takes its time.
fn hash_objects(
    images: &[ImageRef],
    known: &mut Known,
    stored: impl Fn(&ImageRef) -> bool,
    stop: &AtomicBool,
) -> Vec<Option<Hashed>> {
    /// Objects between two looks at `stop`.
    const AT_ONCE: usize = 1_024;
    let mut hashed: Vec<Option<Hashed>> = images.iter().map(|_| None).collect();
    let mut wanted = Vec::new();
    let contents = known.contents();
    for (i, image) in images.iter().enumerate() {
        if let Source::Object(object) = &image.source {
            match known.hash(object) {
                Some(sha256) => hashed[i] = Some(Ok(Some(sha256))),
                None if object.size == Some(0) => hashed[i] = Some(Ok(None)),
                None if !contents.contains(&object.e_tag) && !stored(image) => {
                    hashed[i] = Some(Ok(Some(String::new())));
                }
                None => wanted.push((i, object)),
            }
        }
    }
    let mut progress = Progress::start("read", wanted.len() as u64);
    for part in wanted.chunks(AT_ONCE).take_while(|_| !stop.load(Ordering::Relaxed)) {
        let found = hashes(part.iter().map(|(_, object)| (object.url.clone(), object.size)).collect());
        let failed = found.iter().filter(|found| found.is_err()).count();
        progress.advance(part.len() - failed, failed);
        for ((i, object), found) in part.iter().zip(found) {
            if let Ok(Some(sha256)) = &found {
                known.note(object, sha256);
            }
            hashed[*i] = Some(found);
        }
    }
    progress.finish();
    hashed
}

/// Hex SHA-256 of a picture's bytes; nothing where there are none.
fn hash_content(source: &Source, buffer: &mut [u8]) -> std::io::Result<Option<String>> {
    let mut file = source.open()?;
    let mut hasher = Sha256::new();
    let mut length = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((length > 0).then(|| hex::encode(hasher.finalize()))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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

/// Hex SHA-256 of a file, read in pieces.
pub fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
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
    /// The key of `[input]` that says where its pictures are.
    fn input(self) -> &'static str {
        match self {
            Split::Gallery => "gallery",
            Split::Query => "queries",
        }
    }

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
    pub source: Source,
}

/// A picture whose bytes were read once, to know whether they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub image: ImageRef,
    /// Hex SHA-256 of the file's bytes. Empty for a new object, which is read when it is embedded.
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
