//! A folder of pictures in an object store, at any depth. The rules are those of a [folder](super::folder): endings that say that
//! it is no picture are passed over, and so is what is hidden.

use std::path::{Path, PathBuf};

use super::folder::{PICTURES, RAW, raw_reason};
use super::manifest::Table;
use super::source::Object;
use super::{ImageRef, LabelRule, Scan, ScanError, Source, Split, coco, imagefolder, webdataset};
use crate::objects::{Bucket, Found, ObjectUrl};
use crate::stages::decode;

/// Bytes that tell a picture from something else.
const HEAD: u64 = 32;

/// What is read of a disk alone, and what to do instead.
const ARCHIVE: (&str, &str) = (
    "a tar file",
    "download it, or unpack it into the bucket: a folder of pictures and a manifest are read there",
);
const COCO: (&str, &str) =
    ("a COCO file", "download it and name the folder of its pictures in input.images, or write a manifest");
const METADATA: (&str, &str) = (
    "a folder's metadata",
    "name this file itself, which is read as a manifest then, or download the folder",
);

/// Lists `root`. The whole listing is read before anything is made of it: half of one would look like deleted pictures.
///
/// Errors: the store's own; a tar file, a COCO file or metadata, which a disk's folder would be read by.
pub(super) async fn scan(
    root: &ObjectUrl,
    split: Split,
    rule: &LabelRule,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let only_local = |url: &ObjectUrl, (found, remedy)| {
        Err(ScanError::NotInStores { what: split.input(), url: url.to_string(), found, remedy })
    };
    match Path::new(&root.key) {
        key if webdataset::is_archive(key) => return only_local(root, ARCHIVE),
        key if coco::is_coco(key) => return only_local(root, COCO),
        _ => {}
    }
    let bucket = Bucket::of(root)?;
    let before = scan.images.len();
    let (mut archive, mut metadata) = (None, Vec::new());
    scan.folders.note_objects(root, split);
    let mut nameless = Vec::new();
    for found in bucket.list(root)? {
        let Some(id) = root.name_of(&found.key).map(str::to_owned) else { continue };
        if id.split('/').any(|part| part.starts_with('.')) {
            scan.skip("hidden");
            continue;
        }
        if imagefolder::is_metadata(&id) {
            metadata.push(root.join(&id));
        }
        if archive.is_none() && webdataset::is_archive(Path::new(&id)) {
            archive = Some(root.join(&id));
        }
        let ending = Path::new(&id).extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some(raw) if RAW.contains(&raw) => {
                scan.fail(&id, split, "unsupported", raw_reason(raw));
            }
            Some(ending) if !PICTURES.contains(&ending) => scan.skip(ending),
            Some(_) => scan.images.push(image(root, id, found, split, rule)),
            // What consoles put there to show an empty folder.
            None if found.size == 0 => {}
            None => nameless.push((id, found)),
        }
    }
    // As of files: without an ending it may be anything, so its first bytes decide.
    let heads = bucket.heads(nameless.iter().map(|(_, found)| found.key.clone()).collect(), HEAD);
    for ((id, found), head) in nameless.into_iter().zip(heads) {
        match head.is_some_and(|head| decode::is_picture(&head)) {
            true => scan.images.push(image(root, id, found, split, rule)),
            false => scan.skip("no ending"),
        }
    }
    for url in metadata {
        let path = PathBuf::from(url.to_string());
        let table = Table::open(&path).await?;
        if table.columns.iter().any(|column| column == imagefolder::COLUMN) {
            return only_local(&url, METADATA);
        }
    }
    match archive {
        // Beside pictures they are passed over, as in any folder.
        Some(url) if scan.images.len() == before => only_local(&url, ARCHIVE),
        _ => Ok(()),
    }
}

fn image(root: &ObjectUrl, id: String, found: Found, split: Split, rule: &LabelRule) -> ImageRef {
    let url = ObjectUrl { key: found.key, ..root.clone() };
    let object = Object { url, size: Some(found.size), e_tag: found.e_tag };
    ImageRef { label: rule.label(&id), id, split, source: Source::Object(object) }
}
