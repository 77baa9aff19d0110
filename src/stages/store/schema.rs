//! The columns of the feature table, and how rows travel between them and an [`EmbeddingBatch`].
//!
//! docs/parquet-schema.md is the contract for outside readers. Two things a newcomer would get wrong: every
//! column is nullable for Delta (tables were made so when a MERGE wrote them, and stay as they are), so the
//! checks here are the only ones; and Parquet has no `u64` in Delta, so `dhash` is
//! stored as the `i64` of the same 64 bits and is negative where the highest bit is set.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Field, Float32Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::StoreError;
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;

/// Version of the columns and of their meaning. A table with another one is refused.
pub const SCHEMA_VERSION: u32 = 2;

/// The columns in their order.
pub const COLUMNS: [&str; 13] = [
    "id",
    "label",
    "split",
    "sha256",
    "pixel_sha256",
    "dhash",
    "width",
    "height",
    "format",
    "norm",
    "embedding",
    "fingerprint",
    "indexed_at",
];

/// The vector's column inside the Parquet file. Delta calls the child of a list `element`, where Arrow says
/// `item`; with the wrong name the writer ignores the properties of the column without a word.
pub const EMBEDDING_PATH: [&str; 3] = ["embedding", "list", "element"];

/// Rows of a row group: what a writer holds, what a reader decompresses at least, and what min and max of `id` can skip.
/// 4,096 x 2 KiB = 8 MiB.
pub const ROW_GROUP_ROWS: usize = 4_096;

/// Of longer vectors a row group has fewer rows.
const ROW_GROUP_BYTES: usize = 16 << 20;

fn element() -> Arc<Field> {
    static ELEMENT: LazyLock<Arc<Field>> =
        LazyLock::new(|| Arc::new(Field::new("element", DataType::Float32, true)));
    ELEMENT.clone()
}

/// The table's columns as Arrow sees them.
pub fn arrow_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let column = |name: &str, kind| Field::new(name, kind, true);
        Arc::new(Schema::new(vec![
            column("id", DataType::Utf8),
            column("label", DataType::Utf8),
            column("split", DataType::Utf8),
            column("sha256", DataType::Utf8),
            column("pixel_sha256", DataType::Utf8),
            column("dhash", DataType::Int64),
            column("width", DataType::Int32),
            column("height", DataType::Int32),
            column("format", DataType::Utf8),
            column("norm", DataType::Float32),
            column("embedding", DataType::List(element())),
            column("fingerprint", DataType::Utf8),
            column("indexed_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ]))
    });
    SCHEMA.clone()
}

/// How every Parquet file of ours is written: zstd throughout; the vector byte-stream-split, because the
/// exponent bytes of its numbers look alike and its mantissa bytes do not, and without the dictionary and the
/// statistics that are useless for it.
///
/// Delta applies these to the one operation that they are handed to, so every operation gets them.
pub fn writer_properties() -> WriterProperties {
    let embedding = ColumnPath::new(EMBEDDING_PATH.map(str::to_owned).to_vec());
    WriterProperties::builder()
        .set_created_by(concat!("imagedex ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_column_dictionary_enabled(embedding.clone(), false)
        .set_column_encoding(embedding.clone(), Encoding::BYTE_STREAM_SPLIT)
        .set_column_statistics_enabled(embedding, EnabledStatistics::None)
        .build()
}

/// Checks what Delta does not: keys there and unique within the batch, vectors of the table's length and
/// finite.
pub fn validate(batch: &EmbeddingBatch, dim: usize) -> Result<(), StoreError> {
    let mut keys = HashSet::with_capacity(batch.len());
    for (i, picture) in batch.pictures.iter().enumerate() {
        let split = picture.split.name();
        let invalid = |reason: String| StoreError::InvalidRow { split, id: picture.id.clone(), reason };
        if picture.id.is_empty() {
            return Err(invalid("the id is empty".into()));
        }
        if batch.dim != dim || batch.vectors.len() != batch.len() * dim || batch.norms.len() != batch.len() {
            return Err(invalid(format!("the vector has {} numbers where the table holds {dim}", batch.dim)));
        }
        if !batch.norms[i].is_finite() || batch.vector(i).iter().any(|number| !number.is_finite()) {
            return Err(invalid("the vector holds a number that is not finite".into()));
        }
        if i32::try_from(picture.width.max(picture.height)).is_err() {
            return Err(invalid(format!("{} x {} pixels are too many", picture.width, picture.height)));
        }
        if !keys.insert((picture.split, picture.id.as_str())) {
            return Err(StoreError::Duplicate { split, id: picture.id.clone(), place: "within one batch" });
        }
    }
    Ok(())
}

/// Some of the rows in the table's columns, in the order given.
///
/// `indexed_at_us`: microseconds since 1970-01-01 UTC.
pub fn to_record_batch(
    batch: &EmbeddingBatch,
    rows: Range<usize>,
    fingerprint: &str,
    indexed_at_us: i64,
) -> RecordBatch {
    let pictures = &batch.pictures[rows.clone()];
    let text = |get: fn(&Picture) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(pictures.iter().map(get)))
    };
    let vectors = batch.vectors[rows.start * batch.dim..rows.end * batch.dim].to_vec();
    let embedding = ListArray::new(
        element(),
        OffsetBuffer::from_repeated_length(batch.dim, pictures.len()),
        Arc::new(Float32Array::from(vectors)),
        None,
    );
    let columns: Vec<ArrayRef> = vec![
        text(|picture| &picture.id),
        Arc::new(StringArray::from_iter(pictures.iter().map(|picture| picture.label.as_deref()))),
        text(|picture| picture.split.name()),
        text(|picture| &picture.sha256),
        text(|picture| &picture.pixel_sha256),
        Arc::new(Int64Array::from_iter_values(pictures.iter().map(|picture| picture.dhash as i64))),
        Arc::new(Int32Array::from_iter_values(pictures.iter().map(|picture| picture.width as i32))),
        Arc::new(Int32Array::from_iter_values(pictures.iter().map(|picture| picture.height as i32))),
        text(|picture| &picture.format),
        Arc::new(Float32Array::from(batch.norms[rows].to_vec())),
        Arc::new(embedding),
        Arc::new(StringArray::from_iter_values(pictures.iter().map(|_| fingerprint))),
        Arc::new(TimestampMicrosecondArray::from_value(indexed_at_us, pictures.len()).with_timezone("UTC")),
    ];
    RecordBatch::try_new(arrow_schema(), columns)
        .expect("columns are built from the schema above, all of one length")
}

/// Appends rows that were read from a table, whatever string and list types the reader chose.
///
/// Errors name the column and the row's id: a null where a value must be, a vector of another length than
/// `out.dim`.
pub fn append_rows(rows: &RecordBatch, out: &mut EmbeddingBatch) -> Result<(), String> {
    let id = column(rows, "id", &DataType::Utf8)?;
    let norm = column(rows, "norm", &DataType::Float32)?;
    let embedding = column(rows, "embedding", &DataType::List(element()))?;
    let id = id.as_string::<i32>();
    refuse_nulls(id, &[("id", id), ("norm", &norm), ("embedding", &embedding)])?;
    let (norm, embedding) = (norm.as_primitive::<Float32Type>(), embedding.as_list::<i32>());
    append_pictures(rows, &mut out.pictures)?;
    for row in 0..rows.num_rows() {
        let vector = embedding.value(row);
        let vector = vector.as_primitive::<Float32Type>();
        if vector.len() != out.dim || vector.null_count() > 0 {
            let reason = format!(
                "{} numbers, {} of them null, where {} belong",
                vector.len(),
                vector.null_count(),
                out.dim
            );
            return Err(format!("picture {:?}: the vector has {reason}", id.value(row)));
        }
        out.vectors.extend_from_slice(vector.values());
        out.norms.push(norm.value(row));
    }
    Ok(())
}

fn column(rows: &RecordBatch, name: &str, kind: &DataType) -> Result<ArrayRef, String> {
    let column = rows.column_by_name(name).ok_or_else(|| format!("there is no column {name}"))?;
    cast(column, kind).map_err(|error| format!("column {name} has type {}: {error}", column.data_type()))
}

fn refuse_nulls(id: &StringArray, required: &[(&str, &dyn Array)]) -> Result<(), String> {
    for (name, column) in required {
        if let Some(row) = (0..id.len()).find(|row| column.is_null(*row)) {
            let id = if id.is_null(row) { "null" } else { id.value(row) };
            return Err(format!("picture {id:?}: column {name} is null"));
        }
    }
    Ok(())
}

/// Columns of a [`Picture`]: all that is known of it but its vector.
pub const PICTURE_COLUMNS: [&str; 9] =
    ["id", "label", "split", "sha256", "pixel_sha256", "dhash", "width", "height", "format"];

/// The same without the vectors: of [`PICTURE_COLUMNS`].
pub fn append_pictures(rows: &RecordBatch, out: &mut Vec<Picture>) -> Result<(), String> {
    let column = |name: &str, kind: &DataType| column(rows, name, kind);
    let (id, label, split) = (
        column("id", &DataType::Utf8)?,
        column("label", &DataType::Utf8)?,
        column("split", &DataType::Utf8)?,
    );
    let (sha256, pixel_sha256, format) = (
        column("sha256", &DataType::Utf8)?,
        column("pixel_sha256", &DataType::Utf8)?,
        column("format", &DataType::Utf8)?,
    );
    let (dhash, width, height) = (
        column("dhash", &DataType::Int64)?,
        column("width", &DataType::Int32)?,
        column("height", &DataType::Int32)?,
    );
    let id = id.as_string::<i32>();
    let required: [(&str, &dyn Array); 8] = [
        ("id", id),
        ("split", &split),
        ("sha256", &sha256),
        ("pixel_sha256", &pixel_sha256),
        ("format", &format),
        ("dhash", &dhash),
        ("width", &width),
        ("height", &height),
    ];
    refuse_nulls(id, &required)?;
    let (label, split, sha256) =
        (label.as_string::<i32>(), split.as_string::<i32>(), sha256.as_string::<i32>());
    let pixel_sha256 = pixel_sha256.as_string::<i32>();
    let (format, dhash) = (format.as_string::<i32>(), dhash.as_primitive::<Int64Type>());
    let (width, height) = (width.as_primitive::<Int32Type>(), height.as_primitive::<Int32Type>());
    for row in 0..rows.num_rows() {
        let id = id.value(row);
        let split = parse_split(split.value(row))
            .ok_or_else(|| format!("picture {id:?}: unknown split {:?}", split.value(row)))?;
        out.push(Picture {
            id: id.to_owned(),
            split,
            label: label.is_valid(row).then(|| label.value(row).to_owned()),
            sha256: sha256.value(row).to_owned(),
            pixel_sha256: pixel_sha256.value(row).to_owned(),
            dhash: dhash.value(row) as u64,
            width: width.value(row) as u32,
            height: height.value(row) as u32,
            format: format.value(row).to_owned(),
        });
    }
    Ok(())
}

pub fn parse_split(name: &str) -> Option<Split> {
    [Split::Gallery, Split::Query].into_iter().find(|split| split.name() == name)
}

/// Orders rows by (`split`, `id`), bytewise. The vectors move in place: no second copy of them.
pub fn sort_by_key(batch: &mut EmbeddingBatch) {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by(|&a, &b| {
        let key = |i: usize| (batch.pictures[i].split, &batch.pictures[i].id);
        key(a).cmp(&key(b))
    });
    // Row `order[i]` goes to place `i`: walk each cycle of that permutation, with one row set aside.
    let dim = batch.dim;
    let mut spare = vec![0.0; dim];
    for start in 0..order.len() {
        if order[start] == start {
            continue;
        }
        spare.copy_from_slice(batch.vector(start));
        let mut place = start;
        loop {
            let from = order[place];
            order[place] = place;
            if from == start {
                batch.vectors[place * dim..(place + 1) * dim].copy_from_slice(&spare);
                break;
            }
            batch.vectors.copy_within(from * dim..(from + 1) * dim, place * dim);
            batch.pictures.swap(place, from);
            batch.norms.swap(place, from);
            place = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn picture(split: Split, id: &str) -> Picture {
        Picture {
            id: id.to_owned(),
            split,
            label: Some("cat".into()),
            sha256: format!("{id}-bytes"),
            pixel_sha256: format!("{id}-pixels"),
            dhash: u64::MAX - 1,
            width: 32,
            height: 16,
            format: "png".into(),
        }
    }

    fn numbered(ids: &[u8]) -> EmbeddingBatch {
        EmbeddingBatch {
            pictures: ids.iter().map(|id| picture(Split::Gallery, &format!("{id:03}"))).collect(),
            dim: 2,
            vectors: ids.iter().flat_map(|&id| [id as f32, -(id as f32)]).collect(),
            norms: ids.iter().map(|&id| id as f32 + 0.5).collect(),
        }
    }

    proptest! {
        #[test]
        fn sorting_keeps_each_vector_with_its_picture(ids in proptest::collection::hash_set(any::<u8>(), 0..40)) {
            let mut ids: Vec<u8> = ids.into_iter().collect();
            let mut batch = numbered(&ids);
            sort_by_key(&mut batch);
            ids.sort();
            prop_assert_eq!(batch, numbered(&ids));
        }
    }

    #[test]
    fn rows_survive_the_columns() {
        let mut batch = numbered(&[3, 1]);
        batch.pictures[0].label = None;
        let rows = to_record_batch(&batch, 0..2, "f", 5);
        let mut back = EmbeddingBatch { dim: 2, ..Default::default() };
        append_rows(&rows, &mut back).unwrap();
        assert_eq!(back, batch);
    }

    #[test]
    fn bad_rows_are_refused_by_name() {
        let reason = |change: fn(&mut EmbeddingBatch)| {
            let mut batch = numbered(&[1, 2]);
            change(&mut batch);
            validate(&batch, 2).unwrap_err().to_string()
        };
        assert!(validate(&numbered(&[1, 2]), 2).is_ok());
        assert_eq!(
            validate(&numbered(&[1]), 3).unwrap_err().to_string(),
            "gallery picture \"001\": the vector has 2 numbers where the table holds 3"
        );
        assert!(reason(|batch| batch.vectors[3] = f32::NAN).contains("not finite"));
        assert!(reason(|batch| batch.norms[0] = f32::INFINITY).contains("not finite"));
        assert!(reason(|batch| batch.pictures[1].id = "001".into()).contains("is there twice"));
        assert!(reason(|batch| batch.pictures[1].id.clear()).contains("the id is empty"));
    }
}
