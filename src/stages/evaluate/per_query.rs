//! One row for each mode, metric and query: what the means are made of, as `per_query.parquet`.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use super::{EvaluateError, Evaluation, Measures, Mode};
use crate::engines::Hit;
use crate::metric::Metric;
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
}

/// Writes the rows of all evaluations to `path`, through a temporary file that is renamed once it is whole.
///
/// Columns: `mode engine metric query label state relevant excluded first_relevant_rank ap ap_at_r r_precision rr`,
/// then for each cut-off `hit_at_K p_at_K r_at_K ndcg_at_K`, then the lists `top_ids` and `top_scores`. Measures are
/// null for queries that are not in the means.
pub fn write_per_query(path: &Path, evaluations: &[Evaluation]) -> Result<(), EvaluateError> {
    let rows: Vec<&PerQuery> = evaluations.iter().flat_map(|evaluation| &evaluation.per_query).collect();
    let mut ks: Vec<usize> =
        evaluations.iter().flat_map(|evaluation| evaluation.ks.iter().copied()).collect();
    ks.sort_unstable();
    ks.dedup();
    let written = write_whole(path, |out| {
        let schema = batch(&[], &ks)?.schema();
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(Default::default())).build();
        let mut writer = ArrowWriter::try_new(out, schema, Some(properties))?;
        for rows in rows.chunks(ROWS) {
            writer.write(&batch(rows, &ks)?)?;
        }
        writer.close()?;
        Ok::<(), ParquetError>(())
    });
    written.map_err(|reason| EvaluateError::Write { path: path.display().to_string(), reason })
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
    for row in rows {
        ids.append_value(row.top.iter().map(|hit| Some(hit.id.as_str())));
        scores.append_value(row.top.iter().map(|hit| Some(hit.score)));
    }
    columns.push(("top_ids".to_owned(), Arc::new(ids.finish())));
    columns.push(("top_scores".to_owned(), Arc::new(scores.finish())));
    // Every column is nullable, so that batches without nulls have the schema of those with.
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
}
