//! Places that hold vectors and find the nearest ones. One trait, one contract test that every engine passes.

use serde::{Deserialize, Serialize};

use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;

pub mod flat;
pub mod kernels;

/// `load.engine` of a pipeline file: which engine, with its options where it has any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineConfig {
    /// Exact search in memory: [`flat::Flat`].
    #[default]
    Flat,
}

/// The engine that `config` names, empty: [`VectorIndex::create`] comes next.
///
/// `non_negative` is the model card's: it decides the score of a dot product (see [`Metric::score`]).
pub fn open(config: &EngineConfig, non_negative: bool) -> Box<dyn VectorIndex> {
    match config {
        EngineConfig::Flat => Box::new(flat::Flat::new(non_negative)),
    }
}

/// A vector to search for.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub vector: &'a [f32],
    /// How many hits are wanted. More than the index holds is no error: all are returned.
    pub k: usize,
    pub metric: Metric,
}

/// A picture that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    pub id: String,
    /// On the scale of [`Metric::score`]: greater is closer, for every metric and engine.
    pub score: f32,
}

/// Why an engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("engine {engine} has no metric {metric}: {reason}")]
    UnsupportedMetric { engine: String, metric: Metric, reason: String },
    #[error("a vector has {got} numbers where the index has {expected}")]
    WrongDimension { expected: usize, got: usize },
    #[error("picture {id}: the vector holds a number that is not finite")]
    NotFinite { id: String },
    #[error("k must be at least 1")]
    ZeroK,
    #[error("engine {engine} failed: {reason}")]
    Failed { engine: String, reason: String },
}

/// Something that answers queries. Hits come by score descending, then id ascending, in every engine.
pub trait Searcher {
    /// The name used in pipeline files and reports.
    fn name(&self) -> &str;

    /// Whether searches with this metric are possible.
    fn supports(&self, metric: Metric) -> bool;

    /// Whether hits are always the true nearest ones.
    fn is_exact(&self) -> bool;

    /// The most hits that one search can return. More may be asked for; a server just returns no more.
    fn max_k(&self) -> usize {
        usize::MAX
    }

    /// The `k` nearest pictures of one query.
    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError>;

    /// The answers to many queries, in their order. Engines that can share work between queries override this.
    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        queries.iter().map(|query| self.search(query)).collect()
    }
}

/// An index of vectors: what is put in with [`upsert`](VectorIndex::upsert) can be searched after
/// [`commit`](VectorIndex::commit).
pub trait VectorIndex: Searcher {
    /// Starts an empty index for vectors of `dim` numbers; what it held before is gone.
    fn create(&mut self, dim: usize) -> Result<(), EngineError>;

    /// Adds pictures, replacing those with the same id. Searchable after [`commit`](VectorIndex::commit).
    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError>;

    /// Removes pictures by id; unknown ids are no error. Takes effect with the next [`commit`](VectorIndex::commit).
    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError>;

    /// Makes what was changed searchable; returns how many pictures are searchable now.
    fn commit(&mut self) -> Result<u64, EngineError>;
}
