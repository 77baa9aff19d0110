//! One plain Parquet file with the table's columns, save `indexed_at`, and its provenance in the file's
//! key-value metadata.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray, new_null_array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use super::{BATCH_ROWS, ExchangeError};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::store::{
    COLUMNS, FeatureStore, NewFile, SCHEMA_VERSION, StoreError, append_rows, arrow_schema, to_record_batch,
    writer_properties,
};

/// Which columns a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    All,
    WithoutEmbedding,
}

impl Columns {
    fn places(self) -> Vec<usize> {
        let is_wanted = |name: &str| name != "indexed_at" && (self == Columns::All || name != "embedding");
        (0..COLUMNS.len()).filter(|&i| is_wanted(COLUMNS[i])).collect()
    }
}

pub(super) async fn export(store: &FeatureStore, file: &Path) -> Result<usize, ExchangeError> {
    let mut out = Writer::create(file, store, Columns::All)?;
    let mut rows = 0;
    store
        .for_each_batch::<ExchangeError>(None, BATCH_ROWS, |batch| {
            rows += batch.len();
            out.write(batch)
        })
        .await?;
    out.finish()?;
    Ok(rows)
}

/// Writes rows of a table to one file.
pub(super) struct Writer {
    writer: ArrowWriter<NewFile>,
    path: PathBuf,
    columns: Columns,
    fingerprint: String,
}

impl Writer {
    pub(super) fn create(
        path: &Path,
        store: &FeatureStore,
        columns: Columns,
    ) -> Result<Writer, ExchangeError> {
        let failed = |reason: ParquetError| StoreError::writing(path, &reason);
        let schema =
            arrow_schema().project(&columns.places()).map_err(|error| ExchangeError::invalid(path, error))?;
        let mut writer =
            ArrowWriter::try_new(NewFile::create(path)?, Arc::new(schema), Some(writer_properties()))
                .map_err(failed)?;
        let provenance = store.provenance();
        for (key, value) in [
            ("imagedex.fingerprint", provenance.fingerprint.clone()),
            ("imagedex.provenance", provenance.facts.to_string()),
            ("imagedex.dimension", provenance.dim.to_string()),
            ("imagedex.schema_version", SCHEMA_VERSION.to_string()),
        ] {
            writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        Ok(Writer { writer, path: path.to_owned(), columns, fingerprint: provenance.fingerprint.clone() })
    }

    pub(super) fn write(&mut self, batch: &EmbeddingBatch) -> Result<(), ExchangeError> {
        let rows =
            to_record_batch(batch, 0..batch.len(), &self.fingerprint, 0).project(&self.columns.places());
        let rows = rows.map_err(|error| ExchangeError::invalid(&self.path, error))?;
        self.writer.write(&rows).map_err(|error| StoreError::writing(&self.path, &error))?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), ExchangeError> {
        let out = self.writer.into_inner().map_err(|error| StoreError::writing(&self.path, &error))?;
        Ok(out.finish()?)
    }
}

/// Needs `id` and `embedding` (a list of floats); takes the table's other columns where they are there.
pub(super) fn read(path: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    read_columns(path, Columns::All)
}

/// As [`read`], for a file without vectors: `dim` is 0.
pub(super) fn read_without_embedding(path: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    read_columns(path, Columns::WithoutEmbedding)
}

fn read_columns(path: &Path, columns: Columns) -> Result<EmbeddingBatch, ExchangeError> {
    let invalid = |reason: String| ExchangeError::invalid(path, reason);
    let file = File::open(path).map_err(ExchangeError::io(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
        .map_err(|error| invalid(format!("this is not a readable Parquet file: {error}")))?;
    let mut batch = EmbeddingBatch::default();
    for rows in reader {
        let rows = rows.map_err(|error| invalid(error.to_string()))?;
        let rows = complete(&rows, columns).map_err(invalid)?;
        if batch.is_empty() && rows.num_rows() > 0 {
            let embedding = rows.column_by_name("embedding").map(|column| cast(column, &list_type()));
            let embedding =
                embedding.transpose().map_err(|error| invalid(format!("column embedding: {error}")))?;
            batch.dim = embedding.map_or(0, |lists| lists.as_list::<i32>().value_length(0) as usize);
        }
        append_rows(&rows, &mut batch).map_err(invalid)?;
    }
    Ok(batch)
}

fn list_type() -> DataType {
    DataType::new_list(DataType::Float32, true)
}

/// Adds the columns that a foreign file lacks, with what is stored for "unknown".
fn complete(rows: &RecordBatch, columns: Columns) -> Result<RecordBatch, String> {
    let n = rows.num_rows();
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; n])) };
    let number = || -> ArrayRef { Arc::new(Int32Array::from(vec![0; n])) };
    let mut all: Vec<(String, ArrayRef)> = Vec::new();
    let columns_there = COLUMNS.iter().filter(|name| !matches!(**name, "fingerprint" | "indexed_at"));
    for name in columns_there.copied() {
        let present = rows.column_by_name(name).filter(|_| name != "embedding" || columns == Columns::All);
        let column = match (present, name) {
            (Some(column), _) => column.clone(),
            (None, "id" | "embedding") if columns == Columns::All || name == "id" => {
                return Err(format!("there is no column {name}"));
            }
            (None, "label") => new_null_array(&DataType::Utf8, n),
            (None, "split") => text("gallery"),
            (None, "dhash") => Arc::new(Int64Array::from(vec![0; n])),
            (None, "width" | "height") => number(),
            (None, "norm") => Arc::new(Float32Array::from(vec![1.0; n])),
            (None, "embedding") => empty_lists(n),
            (None, _) => text(""),
        };
        all.push((name.to_owned(), column));
    }
    let fields: Vec<Field> =
        all.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
    let columns = all.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| error.to_string())
}

fn empty_lists(rows: usize) -> ArrayRef {
    use datafusion::arrow::array::ListArray;
    use datafusion::arrow::buffer::OffsetBuffer;
    let item = Arc::new(Field::new("element", DataType::Float32, true));
    Arc::new(ListArray::new(
        item,
        OffsetBuffer::from_repeated_length(0, rows),
        Arc::new(Float32Array::from(Vec::<f32>::new())),
        None,
    ))
}
