//! Objects that were read before: their hashes, so that an object whose ETag and size are as they were is not fetched again only to
//! find that it is the same.
//!
//! It is a small Parquet file in the work folder. Nothing depends on it but time: without it, every object is read once more.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::source::Object;
use super::{Seen, Source};
use crate::panics;
use crate::stages::store::{NewFile, StoreError, writer_properties};

/// Rows written at a time; an array of texts holds 2 GiB.
const ROWS: usize = 1 << 18;

/// Hashes by URL.
#[derive(Debug, Default)]
pub struct Known(HashMap<String, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    e_tag: String,
    /// Bytes.
    size: u64,
    /// Hex, of all bytes.
    sha256: String,
}

impl Known {
    /// What the file at `path` says; nothing where it is missing or damaged.
    pub fn read(path: &Path) -> Known {
        if !path.is_file() {
            return Known::default();
        }
        let read = panics::caught(|| rows(path));
        match read.unwrap_or_else(|| Err(panics::DAMAGED.to_owned())) {
            Ok(known) => known,
            Err(reason) => {
                tracing::warn!("{} cannot be read, so all objects are: {reason}", path.display());
                Known::default()
            }
        }
    }

    /// The hash of an object that is as it was.
    pub(super) fn hash(&self, object: &Object) -> Option<String> {
        let entry = self.0.get(&object.url.to_string())?;
        let is_same = object.e_tag.as_ref() == Some(&entry.e_tag) && object.size == Some(entry.size);
        is_same.then(|| entry.sha256.clone())
    }

    /// The ETags of all contents.
    pub(super) fn contents(&self) -> HashSet<Option<String>> {
        self.0.values().map(|entry| Some(entry.e_tag.clone())).collect()
    }

    /// Notes the hash of an object; of one without an ETag nobody could say later that it is the same.
    pub fn note(&mut self, object: &Object, sha256: &str) {
        if let (Some(e_tag), Some(size)) = (&object.e_tag, object.size) {
            let entry = Entry { e_tag: e_tag.clone(), size, sha256: sha256.to_owned() };
            self.0.insert(object.url.to_string(), entry);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets what was not `seen`; all of it is kept where the run was asked to end before it had seen everything.
    pub fn keep(&mut self, seen: &[Seen], is_interrupted: bool) {
        if is_interrupted {
            return;
        }
        let urls: HashSet<String> = seen
            .iter()
            .filter_map(|seen| match &seen.image.source {
                Source::Object(object) => Some(object.url.to_string()),
                _ => None,
            })
            .collect();
        self.0.retain(|url, _| urls.contains(url));
    }

    /// Writes it, over that of the run before.
    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|(url, _)| *url);
        let failed = |error: ArrowError| StoreError::Failed {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        let writing = |error| StoreError::writing(path, &error);
        let file = NewFile::create(path)?;
        let schema = batch(&[]).map_err(failed)?.schema();
        let mut writer = ArrowWriter::try_new(file, schema, Some(writer_properties())).map_err(writing)?;
        for rows in rows.chunks(ROWS) {
            writer.write(&batch(rows).map_err(failed)?).map_err(writing)?;
        }
        writer.into_inner().map_err(writing)?.finish()
    }
}

fn batch(rows: &[(&String, &Entry)]) -> Result<RecordBatch, ArrowError> {
    let text = |get: fn(&Entry) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, entry)| get(entry))))
    };
    let columns: [(&str, ArrayRef); 4] = [
        ("url", Arc::new(StringArray::from_iter_values(rows.iter().map(|(url, _)| url)))),
        ("e_tag", text(|entry| &entry.e_tag)),
        ("size", Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, entry)| entry.size)))),
        ("sha256", text(|entry| &entry.sha256)),
    ];
    RecordBatch::try_from_iter(columns)
}

fn rows(path: &Path) -> Result<Known, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
    let mut known = HashMap::new();
    for rows in reader.map_err(|error| error.to_string())? {
        let rows = rows.map_err(|error| error.to_string())?;
        let text =
            |name: &str| rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>().cloned());
        let size = rows.column_by_name("size").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let (Some(url), Some(e_tag), Some(size), Some(sha256)) =
            (text("url"), text("e_tag"), size, text("sha256"))
        else {
            return Err("it has other columns than it should".to_owned());
        };
        for row in 0..rows.num_rows() {
            let (e_tag, sha256) = (e_tag.value(row).to_owned(), sha256.value(row).to_owned());
            known.insert(url.value(row).to_owned(), Entry { e_tag, size: size.value(row), sha256 });
        }
    }
    Ok(Known(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectUrl;

    #[test]
    fn an_object_is_known_as_long_as_it_is_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("objects.parquet");
        let url = ObjectUrl::parse("s3://shop/a.jpg").expect("valid");
        let object = Object { url, size: Some(7), e_tag: Some("\"1\"".to_owned()) };
        let mut known = Known::read(&file);
        known.note(&object, "abc");
        known.note(&Object { e_tag: None, ..object.clone() }, "not kept");
        known.write(&file).expect("written");
        let known = Known::read(&file);
        assert_eq!(known.hash(&object).as_deref(), Some("abc"));
        for other in [
            Object { size: Some(8), ..object.clone() },
            Object { e_tag: Some("\"2\"".to_owned()), ..object.clone() },
            Object { e_tag: None, ..object.clone() },
            Object::at(object.url.join("b")),
        ] {
            assert_eq!(known.hash(&other), None, "{other:?}");
        }
        let mut many = Known::default();
        let places: Vec<Object> = (0..2 * ROWS + 1)
            .map(|i| Object { url: object.url.join(&i.to_string()), ..object.clone() })
            .collect();
        places.iter().for_each(|place| many.note(place, "abc"));
        many.write(&file).expect("written");
        let many = Known::read(&file);
        assert!(places.iter().all(|place| many.hash(place).is_some()), "more than are written at a time");
        std::fs::write(&file, b"PAR1 and no more").expect("writable");
        assert_eq!(Known::read(&file).hash(&object), None, "a damaged file costs time alone");
    }
}
