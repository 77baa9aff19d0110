//! Index files of engines in memory: what took minutes to build is kept, and read again where it is still the same.
//!
//! A file is named after what it is for, and a record beside it says what it was built from and what its bytes hash to. Only a
//! file whose record agrees is handed to a native library, which may crash on damaged bytes. All else is built anew: an index
//! file is never the only place where something is.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::stages::report::temporary_in;
use crate::stages::scan::sha256_of;

/// A folder of index files.
#[derive(Debug, Clone)]
pub struct SavedIndexes {
    folder: PathBuf,
}

/// What stands beside an index file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Of the pictures, their vectors and the settings.
    built_from: String,
    /// Of the file.
    sha256: String,
    /// The pictures by number, as the file knows them.
    ids: Vec<String>,
}

/// The sum over all that an index is built from: the settings, the ids, and the vectors of shape `[ids.len(), dim]`.
pub fn built_from(settings: &str, ids: &[String], vectors: &[f32]) -> String {
    let mut hash = Sha256::new();
    for text in std::iter::once(settings).chain(ids.iter().map(String::as_str)) {
        // Its length before each text: no two lists run together alike.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let mut bytes = Vec::with_capacity(4 << 16);
    for chunk in vectors.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes()));
        hash.update(&bytes);
    }
    hex::encode(hash.finalize())
}

impl SavedIndexes {
    /// The folder is made when something is written.
    pub fn new(folder: PathBuf) -> SavedIndexes {
        SavedIndexes { folder }
    }

    /// The index called `name`, read by `read`, where it was built from the same; nothing where it was not, or is damaged.
    pub fn read<T>(
        &self,
        name: &str,
        built_from: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let record: Record = serde_json::from_slice(&fs::read(self.record(name)).ok()?).ok()?;
        let file = self.folder.join(name);
        if record.built_from != built_from {
            tracing::info!("{} is of other pictures or settings; it is built anew", file.display());
            return None;
        }
        let read = || {
            if sha256_of(&file).map_err(|error| error.to_string())? != record.sha256 {
                return Err("it is not the file that was written".to_owned());
            }
            read(file.to_str().ok_or("its path is not valid UTF-8")?)
        };
        read()
            .inspect_err(|reason| {
                tracing::warn!("{} cannot be used: {reason}; it is built anew", file.display())
            })
            .ok()
    }

    /// Keeps an index: `write` gets the path that it shall write to. A crash leaves the one before, or none.
    pub fn write(
        &self,
        name: &str,
        built_from: &str,
        ids: &[String],
        write: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        fs::create_dir_all(&self.folder).map_err(failed)?;
        // A name of its own, and gone unless it is given the other: a search beside a run may build the same index.
        let part = || temporary_in(&self.folder).map(NamedTempFile::into_temp_path);
        let file = part().map_err(failed)?;
        write(file.to_str().ok_or("the path is not valid UTF-8")?)?;
        File::open(&file).and_then(|file| file.sync_all()).map_err(failed)?;
        let sha256 = sha256_of(&file).map_err(failed)?;
        // Without a record the file counts for nothing, so the order is: no record, file, record.
        match fs::remove_file(self.record(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        file.persist(self.folder.join(name)).map_err(|error| failed(error.error))?;
        let record = Record { built_from: built_from.to_owned(), sha256, ids: ids.to_vec() };
        let file = part().map_err(failed)?;
        fs::write(&file, serde_json::to_vec(&record).map_err(|error| error.to_string())?).map_err(failed)?;
        file.persist(self.record(name)).map_err(|error| failed(error.error))
    }

    /// Bytes on disk of the indexes whose names begin so, and of their records.
    pub fn size(&self, beginning: &str) -> u64 {
        let Ok(entries) = fs::read_dir(&self.folder) else { return 0 };
        let ours =
            entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
        ours.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    fn record(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_only_where_nothing_changed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let saved = SavedIndexes::new(folder.path().join("indexes"));
        let ids = ["a".to_owned(), "b".to_owned()];
        let write = |text: &'static str| move |path: &str| fs::write(path, text).map_err(|e| e.to_string());
        let read = |path: &str| fs::read_to_string(path).map_err(|e| e.to_string());
        let from = built_from("m 16", &ids, &[1.0, 2.0]);
        assert_eq!(saved.read("graph", &from, read), None);
        saved.write("graph", &from, &ids, write("one")).expect("written");
        assert_eq!(saved.read("graph", &from, read).as_deref(), Some("one"));
        saved.write("graph", &from, &ids, |_| Err("full".to_owned())).expect_err("told");
        assert_eq!(saved.read("graph", &from, read).as_deref(), Some("one"), "the one before stays");

        let others = [
            built_from("m 32", &ids, &[1.0, 2.0]),
            built_from("m 16", &["ab".to_owned(), String::new()], &[1.0, 2.0]),
            built_from("m 16", &ids, &[1.0, 3.0]),
        ];
        for other in &others {
            assert_ne!(*other, from);
            assert_eq!(saved.read("graph", other, read), None);
        }
        fs::write(folder.path().join("indexes/graph"), "onf").expect("writable");
        assert_eq!(saved.read("graph", &from, read), None, "a flipped bit");
        saved.write("graph", &from, &ids, write("two")).expect("written");
        assert_eq!(saved.read("graph", &from, read).as_deref(), Some("two"));
        fs::write(folder.path().join("indexes/graph.json"), "{").expect("writable");
        assert_eq!(saved.read("graph", &from, read), None, "a damaged record");
    }
}
