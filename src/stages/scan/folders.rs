//! Are the folders, archives and buckets of the pictures still there? A folder that is unmounted or renamed while a run reads it is not one
//! whose pictures were deleted; an archive that is written anew meanwhile is not one whose pictures are damaged.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::Archive;
use super::{ImageRef, ScanError, Source, Split};
use crate::objects::{Bucket, ObjectUrl};

/// Folders, archives and places in object stores, each as it was found.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// Device and number of the inode. What is mounted, or comes, in the place of another has others.
    of_this_machine: BTreeMap<PathBuf, (Split, u64, u64)>,
    of_object_stores: BTreeMap<ObjectUrl, Split>,
    archives: Vec<(Split, Arc<Archive>)>,
}

impl Folders {
    /// Notes a folder that pictures of `split` are in.
    pub(super) fn note(&mut self, folder: &Path, split: Split) -> Result<(), ScanError> {
        if !self.of_this_machine.contains_key(folder) {
            let vanished = || ScanError::Vanished { what: split.input(), path: folder.to_owned() };
            let (device, inode) = identity(folder).ok_or_else(vanished)?;
            self.of_this_machine.insert(folder.to_owned(), (split, device, inode));
        }
        Ok(())
    }

    /// Notes a folder of an object store; one of a bucket is enough.
    pub(super) fn note_objects(&mut self, folder: &ObjectUrl, split: Split) {
        let is_of_it = |known: &ObjectUrl| (known.scheme, &known.bucket) == (folder.scheme, &folder.bucket);
        if !self.of_object_stores.keys().any(is_of_it) {
            self.of_object_stores.insert(folder.clone(), split);
        }
    }

    /// Notes the folders of all `images`.
    pub(super) fn note_all(&mut self, images: &[ImageRef]) -> Result<(), ScanError> {
        images.iter().try_for_each(|image| match (&image.source, image.source.folder()) {
            (Source::Object(object), _) => {
                self.note_objects(&object.url.folder(), image.split);
                Ok(())
            }
            (_, Some(folder)) => self.note(folder, image.split),
            (_, None) => Ok(()),
        })
    }

    /// Notes an archive that pictures of `split` are in.
    pub(super) fn note_archive(&mut self, archive: Arc<Archive>, split: Split) {
        self.archives.push((split, archive));
    }

    /// Asked where pictures that were found could not be read, before anything is made of it.
    ///
    /// Errors: a folder that is not there any more, or is another one; an archive that is gone or has changed; an object store that
    /// failed, or does not answer now.
    pub fn check(&self) -> Result<(), ScanError> {
        for (folder, split) in &self.of_object_stores {
            let trouble = Bucket::of(folder).and_then(|bucket| match bucket.trouble() {
                Some(reason) => Ok(Some(reason)),
                None => bucket.answers(folder).map(|()| None),
            });
            if let Some(reason) = trouble.unwrap_or_else(|error| Some(error.to_string())) {
                return Err(ScanError::ObjectsVanished {
                    what: split.input(),
                    url: folder.to_string(),
                    reason,
                });
            }
        }
        for (folder, (split, device, inode)) in &self.of_this_machine {
            if identity(folder) != Some((*device, *inode)) {
                return Err(ScanError::Vanished { what: split.input(), path: folder.clone() });
            }
        }
        for (split, archive) in &self.archives {
            if !archive.is_unchanged().unwrap_or_default() {
                return Err(ScanError::Changed { what: split.input(), path: archive.path().to_owned() });
            }
        }
        Ok(())
    }
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(folder).ok().map(|folder| (folder.dev(), folder.ino()))
}

/// Whether an error says that what was at `path` is not there any more, or that nobody answers for it. A link that leads nowhere
/// is itself there.
pub(super) fn went_away(path: &Path, error: &io::Error) -> bool {
    const NO_ANSWER: [i32; 6] =
        [libc::EIO, libc::ENODEV, libc::ENXIO, libc::ENOTCONN, libc::ESTALE, libc::ETIMEDOUT];
    match error.kind() {
        io::ErrorKind::NotFound => path.symlink_metadata().is_err(),
        _ => error.raw_os_error().is_some_and(|code| NO_ANSWER.contains(&code)),
    }
}
