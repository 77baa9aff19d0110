//! A folder of pictures in an object store, at any depth. The rules are those of a [folder](super::folder): endings that say that
//! it is no picture are passed over, and so is what is hidden.

use std::path::Path;

use super::folder::{PICTURES, RAW};
use super::source::Object;
use super::{ImageRef, LabelRule, Scan, ScanError, Source, Split};
use crate::objects::{Bucket, Found, ObjectUrl};
use crate::stages::decode;

/// Bytes that tell a picture from something else.
const HEAD: u64 = 32;

/// Lists `root`. The whole listing is read before anything is made of it: half of one would look like deleted pictures.
pub(super) fn scan(
    root: &ObjectUrl,
    split: Split,
    rule: &LabelRule,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let bucket = Bucket::of(root)?;
    scan.folders.note_objects(root, split);
    let mut nameless = Vec::new();
    for found in bucket.list(root)? {
        let Some(id) = root.name_of(&found.key).map(str::to_owned) else { continue };
        if id.split('/').any(|part| part.starts_with('.')) {
            scan.skip("hidden");
            continue;
        }
        let ending = Path::new(&id).extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some(raw) if RAW.contains(&raw) => {
                let reason =
                    format!("raw photographs ({raw}) are not supported; convert the file to jpeg or png");
                scan.fail(&id, split, "unsupported", reason);
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
    Ok(())
}

fn image(root: &ObjectUrl, id: String, found: Found, split: Split, rule: &LabelRule) -> ImageRef {
    let url = ObjectUrl { key: found.key, ..root.clone() };
    let object = Object { url, size: Some(found.size), e_tag: found.e_tag };
    ImageRef { label: rule.label(&id), id, split, source: Source::Object(object) }
}
