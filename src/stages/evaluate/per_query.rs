//! One row for each mode, metric and query: what the means are made of, as `per_query.parquet`.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Builder, Float64Array, ListArray, ListBuilder, RecordBatch, StringArray,
    StringBuilder, UInt32Array,
};
use arrow::datatypes::Float32Type;
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AtK, EvaluateError, Evaluation, Measures, Mode};
use crate::engines::Hit;
use crate::metric::Metric;
use crate::panics;
use crate::stages::report::write_whole;

/// Rows per batch handed to the writer.
const ROWS: usize = 8192;

/// Whether a query is in the means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryState {
    Evaluated,
    /// Labelled, but no gallery picture has that label.
    Unanswerable,
    Unlabelled,
}

impl QueryState {
    /// The value of the `state` column.
    pub fn name(self) -> &'static str {
        match self {
            QueryState::Evaluated => "evaluated",
            QueryState::Unanswerable => "unanswerable",
            QueryState::Unlabelled => "unlabelled",
        }
    }
}

/// What one search came to.
#[derive(Debug, Clone, PartialEq)]
pub struct PerQuery {
    pub mode: Mode,
    pub engine: String,
    pub metric: Metric,
    /// Id of the query.
    pub query: String,
    pub label: Option<String>,
    pub state: QueryState,
    /// Relevant pictures in the gallery, excluded ones aside.
    pub relevant: usize,
    /// Gallery pictures that are the query itself, taken out.
    pub excluded: usize,
    /// From 1; nothing where no relevant picture was returned.
    pub first_relevant_rank: Option<usize>,
    /// Only of evaluated queries.
    pub measures: Option<Measures>,
    /// The first hits, as many as the greatest cut-off.
    pub top: Vec<Hit>,
    /// The classes of these hits.
    pub top_labels: Vec<Option<String>>,
}

impl PerQuery {
    /// Whether each of the first hits has the query's label.
    pub fn right(&self) -> impl Iterator<Item = bool> {
        self.top_labels.iter().map(|label| label.is_some() && *label == self.label)
    }
}

/// Writes the rows of all evaluations to `path`, through a temporary file that is renamed once it is whole.
///
/// Columns: `mode engine metric query label state relevant excluded first_relevant_rank ap ap_at_r r_precision rr`,
/// then for each cut-off `hit_at_K p_at_K r_at_K ndcg_at_K`, then the lists `top_ids`, `top_scores` and `top_labels`.
/// Measures are null for queries that are not in the means. Returns the file's SHA-256 in hex.
pub fn write_per_query(path: &Path, evaluations: &[Evaluation]) -> Result<String, EvaluateError> {
    let rows: Vec<&PerQuery> = evaluations.iter().flat_map(|evaluation| &evaluation.per_query).collect();
    let mut ks: Vec<usize> =
        evaluations.iter().flat_map(|evaluation| evaluation.ks.iter().copied()).collect();
    ks.sort_unstable();
    ks.dedup();
    let mut hash = Sha256::new();
    let written = write_whole(path, |out| {
        let schema = batch(&[], &ks)?.schema();
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(Default::default())).build();
        let mut writer = ArrowWriter::try_new(&mut *out, schema, Some(properties))?;
        for rows in rows.chunks(ROWS) {
            writer.write(&batch(rows, &ks)?)?;
        }
        writer.close()?;
        out.rewind()?;
        io::copy(out, &mut hash)?;
        Ok::<(), ParquetError>(())
    });
    written.map_err(|reason| EvaluateError::Write { path: path.display().to_string(), reason })?;
    Ok(hex::encode(hash.finalize()))
}

fn batch(rows: &[&PerQuery], ks: &[usize]) -> Result<RecordBatch, ArrowError> {
    let text = |of: &dyn Fn(&PerQuery) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| of(row)).collect::<StringArray>())
    };
    let count = |of: &dyn Fn(&PerQuery) -> Option<usize>| -> ArrayRef {
        let counts = rows.iter().map(|row| of(row).map(|count| u32::try_from(count).unwrap_or(u32::MAX)));
        Arc::new(counts.collect::<UInt32Array>())
    };
    let number = |of: &dyn Fn(&Measures) -> Option<f64>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| row.measures.as_ref().and_then(of)).collect::<Float64Array>())
    };
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("mode".to_owned(), text(&|row| Some(row.mode.name().to_owned()))),
        ("engine".to_owned(), text(&|row| Some(row.engine.clone()))),
        ("metric".to_owned(), text(&|row| Some(row.metric.name().to_owned()))),
        ("query".to_owned(), text(&|row| Some(row.query.clone()))),
        ("label".to_owned(), text(&|row| row.label.clone())),
        ("state".to_owned(), text(&|row| Some(row.state.name().to_owned()))),
        ("relevant".to_owned(), count(&|row| Some(row.relevant))),
        ("excluded".to_owned(), count(&|row| Some(row.excluded))),
        ("first_relevant_rank".to_owned(), count(&|row| row.first_relevant_rank)),
        ("ap".to_owned(), number(&|measures| Some(measures.ap))),
        ("ap_at_r".to_owned(), number(&|measures| Some(measures.ap_at_r))),
        ("r_precision".to_owned(), number(&|measures| Some(measures.r_precision))),
        ("rr".to_owned(), number(&|measures| Some(measures.rr))),
    ];
    for &k in ks {
        columns.push((format!("hit_at_{k}"), number(&|measures| Some(measures.at(k)?.hit))));
        columns.push((format!("p_at_{k}"), number(&|measures| Some(measures.at(k)?.precision))));
        columns.push((format!("r_at_{k}"), number(&|measures| Some(measures.at(k)?.recall))));
        columns.push((format!("ndcg_at_{k}"), number(&|measures| Some(measures.at(k)?.ndcg))));
    }
    let mut ids = ListBuilder::new(StringBuilder::new());
    let mut scores = ListBuilder::new(Float32Builder::new());
    let mut labels = ListBuilder::new(StringBuilder::new());
    for row in rows {
        ids.append_value(row.top.iter().map(|hit| Some(hit.id.as_str())));
        scores.append_value(row.top.iter().map(|hit| Some(hit.score)));
        labels.append_value(row.top_labels.iter().map(|label| label.as_deref()));
    }
    columns.push(("top_ids".to_owned(), Arc::new(ids.finish())));
    columns.push(("top_scores".to_owned(), Arc::new(scores.finish())));
    columns.push(("top_labels".to_owned(), Arc::new(labels.finish())));
    // Every column is nullable, so that batches without nulls have the schema of those with.
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
}

/// Reads what [`write_per_query`] wrote. The error says what is wrong with the file.
pub fn read_per_query(path: &Path) -> Result<Vec<PerQuery>, String> {
    panics::caught(|| read(path)).unwrap_or_else(|| Err(panics::DAMAGED.to_owned()))
}

fn read(path: &Path) -> Result<Vec<PerQuery>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
    let mut rows = Vec::new();
    for batch in reader.map_err(|error| error.to_string())? {
        read_batch(&batch.map_err(|error| error.to_string())?, &mut rows)?;
    }
    Ok(rows)
}

fn read_batch(batch: &RecordBatch, rows: &mut Vec<PerQuery>) -> Result<(), String> {
    let text = |name: &str| column::<StringArray>(batch, name);
    let count = |name: &str| column::<UInt32Array>(batch, name);
    let number = |name: &str| column::<Float64Array>(batch, name);
    let list = |name: &str| column::<ListArray>(batch, name);
    let (mode, engine, metric) = (text("mode")?, text("engine")?, text("metric")?);
    let (query, label, state) = (text("query")?, text("label")?, text("state")?);
    let (relevant, excluded, rank) = (count("relevant")?, count("excluded")?, count("first_relevant_rank")?);
    let means = [number("ap")?, number("ap_at_r")?, number("r_precision")?, number("rr")?];
    let mut at = Vec::new();
    for k in cut_offs(batch) {
        let columns = ["hit", "p", "r", "ndcg"].map(|name| number(&format!("{name}_at_{k}")));
        let [hit, precision, recall, ndcg] = columns;
        at.push((k, hit?, precision?, recall?, ndcg?));
    }
    let (ids, scores, labels) = (list("top_ids")?, list("top_scores")?, list("top_labels")?);
    for i in 0..batch.num_rows() {
        let relevant = relevant.value(i) as usize;
        let [ap, ap_at_r, r_precision, rr] = means.map(|column| column.value(i));
        let at = at.iter().map(|&(k, hit, precision, recall, ndcg)| AtK {
            k,
            hit: hit.value(i),
            precision: precision.value(i),
            recall: recall.value(i),
            recall_ceiling: (k as f64 / relevant.max(1) as f64).min(1.0),
            ndcg: ndcg.value(i),
        });
        let measures = Measures { ap, ap_at_r, r_precision, rr, at: at.collect() };
        let (ids, labels) = (texts(&ids.value(i))?, texts(&labels.value(i))?);
        let scores = scores.value(i);
        let scores = scores.as_primitive_opt::<Float32Type>().ok_or("top_scores holds no numbers")?.values();
        let hits = ids.into_iter().flatten().zip(scores).map(|(id, &score)| Hit { id, score });
        rows.push(PerQuery {
            mode: named(mode.value(i))?,
            engine: engine.value(i).to_owned(),
            metric: named(metric.value(i))?,
            query: query.value(i).to_owned(),
            label: label.is_valid(i).then(|| label.value(i).to_owned()),
            state: named(state.value(i))?,
            relevant,
            excluded: excluded.value(i) as usize,
            first_relevant_rank: rank.is_valid(i).then(|| rank.value(i) as usize),
            measures: means[0].is_valid(i).then_some(measures),
            top: hits.collect(),
            top_labels: labels,
        });
    }
    Ok(())
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column {name}"))?;
    column.as_any().downcast_ref().ok_or_else(|| format!("its column {name} is a {}", column.data_type()))
}

/// Ascending, as they were written.
fn cut_offs(batch: &RecordBatch) -> Vec<usize> {
    let schema = batch.schema_ref();
    schema.fields().iter().filter_map(|field| field.name().strip_prefix("hit_at_")?.parse().ok()).collect()
}

fn texts(list: &ArrayRef) -> Result<Vec<Option<String>>, String> {
    let texts = list.as_string_opt::<i32>().ok_or("a list of hits holds no text")?;
    Ok(texts.iter().map(|text| text.map(str::to_owned)).collect())
}

/// A value by the name that files use.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    T::deserialize(name.into_deserializer()).map_err(|error: serde::de::value::Error| error.to_string())
}
