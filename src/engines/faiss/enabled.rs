//! The engine. FAISS finds candidates, some more than wanted, and [`Flat`] scores them again in `f64`.
//!
//! What a newcomer would get wrong: taking FAISS' distances for the answer. Their last bits differ between one query and a batch.
//! Scored again, a hit has the same score as in [`Flat`], and ties go
//! by id. Cosine is the inner product of normalised vectors, as FAISS' users know it.
//!
//! FAISS answers a batch with all cores and one query with one core. Its OpenMP threads spin while they wait, unless
//! `OMP_WAIT_POLICY=passive` is set before the program starts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use faiss::index::autotune::ParameterSpace;
use faiss::index::io::{read_index, write_index};
use faiss::index::{FromInnerPtr, Index, IndexImpl};
use faiss_sys::{
    FaissMetricType, FaissMetricType_METRIC_INNER_PRODUCT, FaissMetricType_METRIC_L1,
    FaissMetricType_METRIC_L2, faiss_index_factory,
};

use super::FaissConfig;
use crate::engines::flat::Flat;
use crate::engines::saved::{SavedIndexes, built_from};
use crate::engines::{EngineError, Footprint, Hit, Query, Searcher, VectorIndex};
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;

/// Candidates beyond `k` that are scored again: they decide between near-ties at the last place.
const SPARE: usize = 6;
/// Vectors that are copied at a time on their way into an index.
const ROWS_AT_ONCE: usize = 4096;

/// An engine without an index. `non_negative` as in [`Metric::score`].
pub fn open(config: &FaissConfig, non_negative: bool) -> Result<Box<dyn VectorIndex>, EngineError> {
    Ok(Box::new(Faiss {
        name: config.name(),
        config: config.clone(),
        flat: Flat::new(non_negative),
        indexes: BTreeMap::new(),
        bytes: 0,
    }))
}

/// The pictures, and a FAISS index of them for each metric.
struct Faiss {
    name: String,
    config: FaissConfig,
    flat: Flat,
    /// Empty where no picture is.
    indexes: BTreeMap<Metric, Mutex<IndexImpl>>,
    /// Of the vectors in FAISS.
    bytes: u64,
}

impl Faiss {
    fn failed(&self, reason: impl Display) -> EngineError {
        // FAISS begins with the place in its source: "Error in … at /path/file.cpp:12: reason".
        let text = reason.to_string();
        let reason = match text.find(".cpp:").and_then(|at| text[at..].split_once(": ")) {
            Some((_, reason)) => reason.trim().to_owned(),
            None => text,
        };
        EngineError::Failed {
            engine: self.name.clone(),
            reason: format!("index {}: {reason}", self.config.index),
        }
    }

    /// What the names of its files begin with. FAISS' descriptions hold commas, and may hold more.
    fn kind(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        self.config.index.chars().map(plain).chain(['-']).collect()
    }

    fn index(&self, metric: Metric) -> Option<MutexGuard<'_, IndexImpl>> {
        // A panic in FAISS' wrapper leaves the index as it was: searches change nothing.
        Some(self.indexes.get(&metric)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The index, from its file where that is of the same pictures.
    fn kept_or_built(&self, metric: Metric) -> Result<IndexImpl, EngineError> {
        let rows = self.flat.rows()?;
        let saved = self.config.folder.clone().map(SavedIndexes::new);
        let name = format!("{}{metric}.faiss", self.kind());
        let from = match &saved {
            Some(_) => {
                let settings = format!("{} {metric} {:?}", self.config.index, self.config.parameters);
                built_from(&settings, rows.ids, rows.vectors)
            }
            None => String::new(),
        };
        let read = |path: &str| read_index(path).map_err(|error| self.failed(error).to_string());
        let index = match saved.as_ref().and_then(|saved| saved.read(&name, &from, read)) {
            Some(index) => index,
            None => {
                let index = self.build(metric)?;
                if let Some(saved) = saved {
                    let write = |path: &str| {
                        write_index(&index, path).map_err(|error| self.failed(error).to_string())
                    };
                    if let Err(reason) = saved.write(&name, &from, rows.ids, write) {
                        tracing::warn!("{name} cannot be kept, and is built anew next time: {reason}");
                    }
                }
                index
            }
        };
        Ok(index)
    }

    fn build(&self, metric: Metric) -> Result<IndexImpl, EngineError> {
        let rows = self.flat.rows()?;
        let mut index = self.factory(rows.dim, metric)?;
        self.tell(&index)?;
        let all = || rows.vectors.chunks(rows.stride * ROWS_AT_ONCE);
        let compact = |vectors: &[f32]| -> Vec<f32> {
            let rows_of = vectors.chunks_exact(rows.stride).map(|row| &row[..rows.dim]);
            rows_of.flat_map(|row| prepared(metric, row).into_owned()).collect()
        };
        if !index.is_trained() {
            let sample: Vec<f32> = all().flat_map(compact).collect();
            index.train(&sample).map_err(|error| self.failed(error))?;
        }
        // The order of insertion decides what a graph finds, so one thread inserts.
        let threads = one_thread();
        for vectors in all() {
            index.add(&compact(vectors)).map_err(|error| self.failed(error))?;
        }
        drop(threads);
        Ok(index)
    }

    /// An empty index. The crate's own factory knows no L1.
    fn factory(&self, dim: usize, metric: Metric) -> Result<IndexImpl, EngineError> {
        let metric: FaissMetricType = match metric {
            Metric::Cosine | Metric::DotProduct => FaissMetricType_METRIC_INNER_PRODUCT,
            Metric::L1 => FaissMetricType_METRIC_L1,
            Metric::L2 => FaissMetricType_METRIC_L2,
        };
        let dim = i32::try_from(dim).map_err(|error| self.failed(error))?;
        let description = CString::new(&*self.config.index).map_err(|error| self.failed(error))?;
        let mut inner = std::ptr::null_mut();
        // SAFETY: `inner` is a place for one pointer, `description` a string that ends with 0 and outlives the call.
        let code = unsafe { faiss_index_factory(&mut inner, dim, description.as_ptr(), metric) };
        if code != 0 || inner.is_null() {
            let reason = "FAISS does not know this description of an index, or not for this metric";
            return Err(EngineError::Usage(self.failed(reason).to_string()));
        }
        // SAFETY: `inner` is a fresh CPU index that nobody else holds.
        Ok(unsafe { IndexImpl::from_inner_ptr(inner) })
    }

    fn tell(&self, index: &IndexImpl) -> Result<(), EngineError> {
        let space = ParameterSpace::new().map_err(|error| self.failed(error))?;
        for (name, value) in &self.config.parameters {
            space.set_index_parameter(index, name, *value).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}

unsafe extern "C" {
    safe fn omp_get_max_threads() -> std::ffi::c_int;
    safe fn omp_set_num_threads(threads: std::ffi::c_int);
}

/// As many threads as before, once dropped.
struct Threads(std::ffi::c_int);

/// Lets FAISS use one thread for what this thread asks of it.
fn one_thread() -> Threads {
    let before = omp_get_max_threads();
    omp_set_num_threads(1);
    Threads(before)
}

impl Drop for Threads {
    fn drop(&mut self) {
        omp_set_num_threads(self.0);
    }
}

/// How many queries FAISS gets together. From 20 on it computes L2 by way of dot products, which are too coarse to tell near
/// duplicates apart.
fn at_once(metric: Metric) -> usize {
    if metric == Metric::L2 { 19 } else { usize::MAX }
}

/// The vector as FAISS gets it: normalised for cosine. A vector of zeros stays one; [`Flat`] puts it last.
fn prepared(metric: Metric, vector: &[f32]) -> Cow<'_, [f32]> {
    if metric != Metric::Cosine {
        return Cow::Borrowed(vector);
    }
    match vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() {
        0.0 => Cow::Borrowed(vector),
        norm => vector.iter().map(|x| (f64::from(*x) / norm) as f32).collect(),
    }
}

impl Searcher for Faiss {
    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, metric: Metric) -> bool {
        self.config.metrics.contains(&metric)
    }

    fn is_exact(&self) -> bool {
        self.config.is_exact()
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        Ok(self.search_many(std::slice::from_ref(query))?.pop().unwrap_or_default())
    }

    /// Queries that follow each other with one metric and `k` go to FAISS together.
    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let mut answers = Vec::with_capacity(queries.len());
        let alike = queries.chunk_by(|a, b| a.metric == b.metric && a.k == b.k);
        for together in alike.flat_map(|alike| alike.chunks(at_once(alike[0].metric))) {
            let Query { metric, k, .. } = together[0];
            if !self.supports(metric) {
                let reason = format!("no index was built for it; name {metric} in evaluate.metrics");
                return Err(EngineError::UnsupportedMetric { engine: self.name.clone(), metric, reason });
            }
            let nearest =
                together.iter().map(|query| self.flat.has_nearest(query)).collect::<Result<Vec<_>, _>>()?;
            let Some(mut index) = self.index(metric) else {
                answers.extend(together.iter().map(|_| Vec::new()));
                continue;
            };
            let wanted = k.saturating_add(SPARE).min(self.flat.rows()?.ids.len());
            let vectors: Vec<f32> =
                together.iter().flat_map(|query| prepared(metric, query.vector).into_owned()).collect();
            let found = index.search(&vectors, wanted).map_err(|error| self.failed(error))?;
            for ((query, labels), has_nearest) in
                together.iter().zip(found.labels.chunks_exact(wanted)).zip(nearest)
            {
                if !has_nearest {
                    answers.push(self.flat.search(query)?);
                    continue;
                }
                // FAISS fills up with -1 where it found fewer.
                let rows = labels.iter().filter_map(|label| label.get()).map(|row| row as usize);
                answers.push(self.flat.best_among(query, rows)?);
            }
        }
        Ok(answers)
    }
}

impl VectorIndex for Faiss {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        self.indexes.clear();
        self.flat.create(dim)
    }

    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        self.flat.upsert(batch)
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError> {
        self.flat.delete(ids)
    }

    /// Builds the indexes anew where something changed: not all of FAISS' kinds can remove or replace.
    fn commit(&mut self) -> Result<u64, EngineError> {
        let changed = self.flat.has_changes();
        let count = self.flat.commit()?;
        if changed {
            self.indexes.clear();
            let (dim, metrics) = (self.flat.rows()?.dim, self.config.metrics.clone());
            for metric in metrics.iter().copied().filter(|_| count > 0) {
                self.indexes.insert(metric, Mutex::new(self.kept_or_built(metric)?));
            }
            self.bytes = self.indexes.len() as u64 * count * 4 * dim as u64;
        }
        Ok(count)
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        vec![self]
    }

    fn footprint(&self) -> Footprint {
        let memory = self.flat.footprint().memory.map(|rows| rows + self.bytes);
        let disk = self.config.folder.clone().map(|folder| SavedIndexes::new(folder).size(&self.kind()));
        Footprint { memory, disk }
    }
}
