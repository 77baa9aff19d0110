//! A row that an executor answers for one picture, and its shape on the wire.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Float32Builder, Float64Array, ListBuilder, StringArray,
    StructArray, UInt32Array, UInt64Array,
};
use datafusion::arrow::datatypes::{
    DataType, Field, Fields, Float32Type, Float64Type, UInt32Type, UInt64Type,
};
use datafusion::common::Result;
use datafusion::error::DataFusionError;

/// The stage of a row that is about the executor, not about the picture.
pub const EXECUTOR: &str = "executor";
/// The executor would not give the vectors that are asked for.
pub const REFUSED: &str = "refused";
/// Its model failed at a batch. Another try, or another executor, may do better.
pub const INFERENCE: &str = "inference";
/// It is there and has the model open: the answer to an empty location.
pub const READY: &str = "ready";
/// The kind of a picture whose reader panicked.
pub const PANIC: &str = "panic";

/// What became of one picture. Either a vector and all that is known of the picture, or stage, kind and reason of a failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Normalised as the spec says; `norm` is its length before that.
    pub embedding: Option<Vec<f32>>,
    pub norm: Option<f32>,
    /// Hex SHA-256 of the bytes that the executor read; of a failure too, unless they could not be read.
    pub sha256: Option<String>,
    pub pixel_sha256: Option<String>,
    pub dhash: Option<u64>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub format: Option<String>,
    /// As of the `failures` table, or [`EXECUTOR`].
    pub stage: Option<String>,
    pub kind: Option<String>,
    pub reason: Option<String>,
    /// Who answers: `host:port`.
    pub executor: String,
    /// What computed the vector, in one line.
    pub runtime: String,
    /// Seconds of the model on this picture: its share of its batch.
    pub seconds: f64,
}

impl Row {
    pub fn failed(executor: &str, stage: &str, kind: &str, reason: String) -> Row {
        Row {
            embedding: None,
            norm: None,
            sha256: None,
            pixel_sha256: None,
            dhash: None,
            width: None,
            height: None,
            format: None,
            stage: Some(stage.to_owned()),
            kind: Some(kind.to_owned()),
            reason: Some(reason),
            executor: executor.to_owned(),
            runtime: String::new(),
            seconds: 0.0,
        }
    }
}

/// The type that the function returns.
pub fn row_type() -> DataType {
    DataType::Struct(fields())
}

fn fields() -> Fields {
    let list = DataType::List(Arc::new(Field::new("element", DataType::Float32, true)));
    let fields = [
        ("embedding", list),
        ("norm", DataType::Float32),
        ("sha256", DataType::Utf8),
        ("pixel_sha256", DataType::Utf8),
        ("dhash", DataType::UInt64),
        ("width", DataType::UInt32),
        ("height", DataType::UInt32),
        ("format", DataType::Utf8),
        ("stage", DataType::Utf8),
        ("kind", DataType::Utf8),
        ("reason", DataType::Utf8),
        ("executor", DataType::Utf8),
        ("runtime", DataType::Utf8),
        ("seconds", DataType::Float64),
    ];
    fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect()
}

/// Rows → one array of [`row_type`].
pub fn to_array(rows: &[Row]) -> Result<ArrayRef> {
    let mut embeddings =
        ListBuilder::new(Float32Builder::new()).with_field(Field::new("element", DataType::Float32, true));
    for row in rows {
        if let Some(vector) = &row.embedding {
            embeddings.values().append_slice(vector);
        }
        embeddings.append(row.embedding.is_some());
    }
    let text = |of: fn(&Row) -> Option<&String>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| of(row).map(String::as_str)).collect::<StringArray>())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(embeddings.finish()),
        Arc::new(rows.iter().map(|row| row.norm).collect::<Float32Array>()),
        text(|row| row.sha256.as_ref()),
        text(|row| row.pixel_sha256.as_ref()),
        Arc::new(rows.iter().map(|row| row.dhash).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|row| row.width).collect::<UInt32Array>()),
        Arc::new(rows.iter().map(|row| row.height).collect::<UInt32Array>()),
        text(|row| row.format.as_ref()),
        text(|row| row.stage.as_ref()),
        text(|row| row.kind.as_ref()),
        text(|row| row.reason.as_ref()),
        text(|row| Some(&row.executor)),
        text(|row| Some(&row.runtime)),
        Arc::new(rows.iter().map(|row| Some(row.seconds)).collect::<Float64Array>()),
    ];
    Ok(Arc::new(StructArray::try_new(fields(), columns, None)?))
}

/// The array back to rows.
///
/// # Errors
/// It is of another type: from another version of this program, or of another function.
pub fn from_array(array: &ArrayRef) -> Result<Vec<Row>> {
    if array.data_type() != &row_type() {
        return Err(DataFusionError::Execution(format!("an answer of unknown form: {}", array.data_type())));
    }
    let columns = array.as_struct().columns();
    let text = |column: usize, row: usize| {
        let array = columns[column].as_string::<i32>();
        array.is_valid(row).then(|| array.value(row).to_owned())
    };
    let size = |column: usize, row: usize| {
        let array = columns[column].as_primitive::<UInt32Type>();
        array.is_valid(row).then(|| array.value(row))
    };
    let (embeddings, norms) = (columns[0].as_list::<i32>(), columns[1].as_primitive::<Float32Type>());
    let (hashes, seconds) =
        (columns[4].as_primitive::<UInt64Type>(), columns[13].as_primitive::<Float64Type>());
    let row = |i: usize| Row {
        embedding: embeddings
            .is_valid(i)
            .then(|| embeddings.value(i).as_primitive::<Float32Type>().values().to_vec()),
        norm: norms.is_valid(i).then(|| norms.value(i)),
        sha256: text(2, i),
        pixel_sha256: text(3, i),
        dhash: hashes.is_valid(i).then(|| hashes.value(i)),
        width: size(5, i),
        height: size(6, i),
        format: text(7, i),
        stage: text(8, i),
        kind: text(9, i),
        reason: text(10, i),
        executor: text(11, i).unwrap_or_default(),
        runtime: text(12, i).unwrap_or_default(),
        seconds: if seconds.is_valid(i) { seconds.value(i) } else { 0.0 },
    };
    Ok((0..array.len()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_wire() {
        let good = Row {
            embedding: Some(vec![0.25, -0.0, f32::MIN_POSITIVE]),
            norm: Some(3.5),
            sha256: Some("ab".to_owned()),
            pixel_sha256: Some("cd".to_owned()),
            dhash: Some(u64::MAX),
            width: Some(7),
            height: Some(9),
            format: Some("png".to_owned()),
            stage: None,
            kind: None,
            reason: None,
            executor: "a:1".to_owned(),
            runtime: "cpu".to_owned(),
            seconds: 0.5,
        };
        let rows = [good, Row::failed("b:2", "decode", "truncated", "it ends".to_owned())];
        assert_eq!(from_array(&to_array(&rows).expect("an array")).expect("rows"), rows);
    }

    #[test]
    fn another_form_is_refused() {
        let array: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        assert!(from_array(&array).expect_err("text").to_string().contains("unknown form"));
    }
}
