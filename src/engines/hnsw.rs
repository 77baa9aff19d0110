//! Approximate search in memory: a graph of near neighbours (HNSW, by `usearch`) finds candidates, [`Flat`] scores them.
//!
//! What a newcomer would get wrong: taking the graph's distances for the answer. They are in the precision of the graph,
//! which may be 8 bits a number. The candidates, some more than wanted, are scored again in `f64` from the full vectors, so a hit has
//! the same score as in [`Flat`], and ties go by id. What is approximate is which pictures are found at all: that is what the
//! report calls engine recall.
//!
//! One thread builds a graph, since the order of insertion decides what it finds; several graphs are built side by side.

use std::fmt::Display;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use super::flat::Flat;
use super::saved::{SavedIndexes, built_from};
use super::{EngineError, Footprint, Hit, Query, Searcher, VectorIndex};
use crate::interrupt;
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;

/// The name used in pipeline files and reports.
pub const NAME: &str = "hnsw";
/// Candidates beyond `k` that are scored again: they decide between near-ties at the last place.
const SPARE: usize = 6;

/// `[load.hnsw]` of a pipeline file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HnswConfig {
    /// Neighbours of a node. More: better recall, more memory, slower to build.
    pub m: usize,
    /// Candidates while the graph is built. More: better recall, slower to build.
    pub ef_construction: usize,
    /// Candidates of a search. More: better recall, slower.
    pub ef_search: usize,
    /// How the graph holds numbers. Hits are scored from the full vectors whatever it is.
    pub storage: Storage,
    /// Which metrics get a graph: those that are evaluated.
    #[serde(skip)]
    pub metrics: Vec<Metric>,
    /// Where graphs are kept between runs; without it they are built each time.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

impl Default for HnswConfig {
    fn default() -> HnswConfig {
        HnswConfig {
            m: 16,
            ef_construction: 128,
            ef_search: 64,
            storage: Storage::F32,
            metrics: Metric::ALL.to_vec(),
            folder: None,
        }
    }
}

impl HnswConfig {
    /// What is wrong with the values, as the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, value, most) in [
            ("load.hnsw.m", self.m, 256),
            ("load.hnsw.ef_construction", self.ef_construction, 10_000),
            ("load.hnsw.ef_search", self.ef_search, 10_000),
        ] {
            if value == 0 || value > most {
                return Err((key, format!("{value} is not between 1 and {most}")));
            }
        }
        Ok(())
    }
}

/// How a graph holds numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    F32,
    Bf16,
    /// For vectors of length 1 alone.
    I8,
}

/// The pictures, and a graph for each metric that ranks them its own way.
pub struct Hnsw {
    config: HnswConfig,
    flat: Flat,
    /// Empty where no picture is.
    graphs: Vec<(Metric, Index)>,
    /// Whether all vectors have length 1: cosine, dot product and L2 then rank alike, and one graph serves all.
    unit: bool,
}

impl Hnsw {
    /// An engine without an index. `non_negative` as in [`Metric::score`].
    pub fn new(config: &HnswConfig, non_negative: bool) -> Hnsw {
        Hnsw { config: config.clone(), flat: Flat::new(non_negative), graphs: Vec::new(), unit: false }
    }

    /// The metric by which the graph is built that serves `metric`.
    fn graph_metric(&self, metric: Metric) -> Metric {
        if self.unit { Metric::Cosine } else { metric }
    }

    /// The graph, from its file where that is of the same pictures.
    fn graph(&self, metric: Metric) -> Result<(Metric, Index), EngineError> {
        let rows = self.flat.rows()?;
        let HnswConfig { m, ef_construction, storage, .. } = &self.config;
        let settings = format!("usearch {metric} m={m} ef_construction={ef_construction} {storage:?}");
        let saved = self.config.folder.clone().map(SavedIndexes::new);
        let name = format!("{metric}.usearch");
        let from = match &saved {
            Some(_) => built_from(&settings, rows.ids, rows.vectors),
            None => String::new(),
        };
        let read = |path: &str| {
            let index = Index::restore(path).map_err(|error| error.to_string())?;
            // A file does not say how many threads will search.
            let threads = rayon::current_num_threads().max(1);
            index.reserve_capacity_and_threads(index.size(), threads).map_err(|error| error.to_string())?;
            Ok(index)
        };
        if let Some(index) = saved.as_ref().and_then(|saved| saved.read(&name, &from, read)) {
            // Not in the file.
            index.change_expansion_search(self.config.ef_search);
            return Ok((metric, index));
        }
        let index = self.build(metric)?;
        if let Some(saved) = saved {
            let write = |path: &str| index.save(path).map_err(|error| error.to_string());
            if let Err(reason) = saved.write(&name, &from, rows.ids, write) {
                tracing::warn!("{name} cannot be kept, and is built anew next time: {reason}");
            }
        }
        Ok((metric, index))
    }

    fn build(&self, metric: Metric) -> Result<Index, EngineError> {
        let rows = self.flat.rows()?;
        if self.config.storage == Storage::I8 && metric != Metric::Cosine {
            let reason = format!(
                "load.hnsw.storage = \"i8\" cannot rank by {metric} where vectors are not normalised; use \"bf16\" or \"f32\""
            );
            return Err(EngineError::Usage(reason));
        }
        let options = IndexOptions {
            dimensions: rows.dim,
            metric: match metric {
                Metric::Cosine => MetricKind::Cos,
                Metric::DotProduct => MetricKind::IP,
                Metric::L2 => MetricKind::L2sq,
                Metric::L1 => return Err(unsupported(metric)),
            },
            quantization: match self.config.storage {
                Storage::F32 => ScalarKind::F32,
                Storage::Bf16 => ScalarKind::BF16,
                Storage::I8 => ScalarKind::I8,
            },
            connectivity: self.config.m,
            expansion_add: self.config.ef_construction,
            expansion_search: self.config.ef_search,
            multi: false,
        };
        let index = Index::new(&options).map_err(failed)?;
        // Searches come from as many threads at once; adding is done by one.
        index
            .reserve_capacity_and_threads(rows.ids.len(), rayon::current_num_threads().max(1))
            .map_err(failed)?;
        for (row, vector) in rows.vectors.chunks_exact(rows.stride).enumerate() {
            if row.is_multiple_of(1024) && interrupt::is_set() {
                return Err(EngineError::Interrupted);
            }
            index.add(row as u64, &vector[..rows.dim]).map_err(failed)?;
        }
        Ok(index)
    }
}

fn failed(reason: impl Display) -> EngineError {
    EngineError::Failed { engine: NAME.to_owned(), reason: reason.to_string() }
}

fn unsupported(metric: Metric) -> EngineError {
    let reason = match metric {
        Metric::L1 => "graphs are built for cosine, dot_product and l2; use engine flat".to_owned(),
        _ => format!("no graph was built for it; name {metric} in evaluate.metrics"),
    };
    EngineError::UnsupportedMetric { engine: NAME.to_owned(), metric, reason }
}

impl Searcher for Hnsw {
    fn name(&self) -> &str {
        NAME
    }

    fn supports(&self, metric: Metric) -> bool {
        metric != Metric::L1 && self.config.metrics.contains(&metric)
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        if !self.supports(query.metric) {
            return Err(unsupported(query.metric));
        }
        if !self.flat.has_nearest(query)? {
            return self.flat.search(query);
        }
        let wanted = self.graph_metric(query.metric);
        let Some((_, graph)) = self.graphs.iter().find(|(metric, _)| *metric == wanted) else {
            // No pictures, no graphs.
            return Ok(Vec::new());
        };
        let wanted = query.k.saturating_add(SPARE).min(graph.size());
        let found = graph.search(query.vector, wanted).map_err(failed)?;
        self.flat.best_among(query, found.keys.iter().map(|key| *key as usize))
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        queries.par_iter().map(|query| self.search(query)).collect()
    }
}

impl VectorIndex for Hnsw {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        self.graphs.clear();
        self.flat.create(dim)
    }

    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        self.flat.upsert(batch)
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError> {
        self.flat.delete(ids)
    }

    /// Builds the graphs anew where something changed: a graph that lost and gained nodes finds less than a fresh one.
    fn commit(&mut self) -> Result<u64, EngineError> {
        let changed = self.flat.has_changes();
        let count = self.flat.commit()?;
        if changed {
            self.graphs.clear();
            self.unit = self.flat.is_unit();
            let mut wanted: Vec<Metric> = Metric::ALL
                .into_iter()
                .filter(|metric| self.supports(*metric))
                .map(|metric| self.graph_metric(metric))
                .collect();
            wanted.dedup();
            if count > 0 {
                self.graphs =
                    wanted.into_par_iter().map(|metric| self.graph(metric)).collect::<Result<_, _>>()?;
            }
        }
        Ok(count)
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        vec![self]
    }

    fn footprint(&self) -> Footprint {
        let graphs: usize = self.graphs.iter().map(|(_, graph)| graph.memory_usage()).sum();
        let memory = self.flat.footprint().memory.map(|rows| rows + graphs as u64);
        let disk = self.config.folder.clone().map(|folder| SavedIndexes::new(folder).size(""));
        Footprint { memory, disk }
    }
}
