//! Places that hold vectors and find the nearest ones. One trait, one contract test that every engine passes.

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::Budget;
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::store::StoreError;

mod aligned;
pub mod elastic;
pub mod faiss;
pub mod flat;
pub mod hnsw;
pub mod kernels;
pub mod milvus;
pub mod saved;
pub mod table;

/// `load.engine` of a pipeline file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    /// Exact search in memory: [`flat::Flat`].
    #[default]
    Flat,
    /// The same in the feature table, for what memory does not hold: [`table::Table`].
    Table,
    /// A graph in memory: [`hnsw::Hnsw`].
    Hnsw,
    /// FAISS, in programs with that feature: [`faiss`].
    Faiss,
    /// An Elasticsearch server: [`elastic::Elastic`].
    Elasticsearch,
    /// An OpenSearch server, by the same [`elastic::Elastic`].
    Opensearch,
    /// A Milvus server, in programs with that feature: [`milvus`].
    Milvus,
}

/// Which engine, with its options where it has any.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum EngineConfig {
    #[default]
    Flat,
    /// The feature table's folder.
    Table(PathBuf),
    Hnsw(hnsw::HnswConfig),
    Faiss(faiss::FaissConfig),
    /// Elasticsearch or OpenSearch, as its `product` says.
    Elasticsearch(Box<elastic::ElasticConfig>),
    Milvus(milvus::MilvusConfig),
}

impl EngineConfig {
    /// The name used in reports.
    pub fn name(&self) -> String {
        match self {
            EngineConfig::Flat => "flat".to_owned(),
            EngineConfig::Table(_) => table::NAME.to_owned(),
            EngineConfig::Hnsw(_) => hnsw::NAME.to_owned(),
            EngineConfig::Faiss(config) => config.name(),
            EngineConfig::Elasticsearch(config) => config.product.engine().to_owned(),
            EngineConfig::Milvus(config) => config.name(),
        }
    }

    /// Whether it is a place that other programs search too.
    pub fn is_server(&self) -> bool {
        matches!(self, EngineConfig::Elasticsearch(_) | EngineConfig::Milvus(_))
    }

    /// Whether it holds vectors that this process gives it, whichever those are.
    pub fn is_filled_here(&self) -> bool {
        !self.is_server() && !matches!(self, EngineConfig::Table(_))
    }

    /// Bytes that a vector of `dim` numbers takes in this process at most, about: none where a server holds it.
    pub fn bytes_of_vector(&self, dim: usize) -> u64 {
        /// Id, norms and row.
        const BESIDE: usize = 96;
        // `flat` scores what the others find, so they have it as well.
        // Vectors are there twice until the load is committed.
        let vector = 2 * (4 * dim + BESIDE);
        // Links to both sides, with room to grow.
        let graph = |m: usize| 4 * dim + 16 * m;
        let bytes = match self {
            EngineConfig::Flat => vector,
            EngineConfig::Table(_) => 2 * BESIDE,
            EngineConfig::Hnsw(config) => vector + config.metrics.len() * graph(config.m),
            // As of a graph of 32 neighbours, which most of FAISS' indexes stay below.
            EngineConfig::Faiss(config) => vector + config.metrics.len() * graph(32),
            EngineConfig::Elasticsearch(_) | EngineConfig::Milvus(_) => 0,
        };
        bytes as u64
    }

    /// How many pictures the engine may refuse before a load fails.
    pub fn max_rejected(&self) -> Budget {
        match self {
            EngineConfig::Elasticsearch(config) => config.max_rejected,
            EngineConfig::Milvus(config) => config.max_rejected,
            _ => Budget::Count(0),
        }
    }
}

/// The engine that `config` names, empty. A server is not spoken to yet; `handle` is where its client will run.
///
/// `non_negative` is the model card's: it decides the score of a dot product (see [`Metric::score`]).
pub fn open(
    config: &EngineConfig,
    non_negative: bool,
    handle: &Handle,
) -> Result<Box<dyn VectorIndex>, EngineError> {
    Ok(match config {
        EngineConfig::Flat => Box::new(flat::Flat::new(non_negative)),
        EngineConfig::Table(folder) => Box::new(table::Table::new(folder.clone(), non_negative, handle)),
        EngineConfig::Hnsw(config) => Box::new(hnsw::Hnsw::new(config, non_negative)),
        EngineConfig::Faiss(config) => faiss::open(config, non_negative)?,
        EngineConfig::Elasticsearch(config) => {
            Box::new(elastic::Elastic::open(config, non_negative, handle)?)
        }
        EngineConfig::Milvus(config) => milvus::open(config, non_negative, handle)?,
    })
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
    /// Take the metric out of `evaluate.metrics`, or choose another engine (docs/engines.md).
    #[error("engine {engine} has no metric {metric}: {reason}")]
    UnsupportedMetric { engine: String, metric: Metric, reason: String },
    /// The index was made with another model. Load it again.
    #[error("a vector has {got} numbers where the index has {expected}")]
    WrongDimension { expected: usize, got: usize },
    /// The model gave a number that is none, or a damaged file was imported. Embed the picture again, or mend the file.
    #[error("picture {id}: the vector holds a number that is not finite")]
    NotFinite { id: String },
    /// Ask for at least one hit.
    #[error("k must be at least 1")]
    ZeroK,
    /// The reason is the server's or the library's own. Nothing that users search has changed; mend it, and run again.
    #[error("engine {engine} failed: {reason}")]
    Failed { engine: String, reason: String },
    /// The message names the setting.
    #[error("{0}")]
    Usage(String),
    /// Of the feature table, which engine `table` searches and an evaluation reads.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another run fills or promotes the same index. Wait for it; the message says who holds it and since when.
    #[error("{0}")]
    Locked(String),
    /// Ctrl-C or SIGTERM. What was done is stored; the next run goes on from there.
    #[error("interrupted")]
    Interrupted,
}

/// A column and the value it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub column: String,
    pub value: String,
}

/// A picture that an engine would not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    pub id: String,
    pub reason: String,
}

/// Which vectors: an index on a server records this, so that a later load knows what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Of model and preprocessing: vectors with another one cannot be compared.
    pub fingerprint: String,
    pub dim: usize,
    /// Identifier of the feature table.
    pub table: String,
    /// Its version.
    pub version: u64,
}

/// What an earlier load left on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub index: String,
    /// The version of the feature table that it shows.
    pub version: u64,
    /// Whether it is the one that users search.
    pub live: bool,
    /// Pictures that it lacks because they were rejected when it was loaded.
    pub rejected: u64,
}

/// Bytes that an index takes; nothing where they are not known or not ours to count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// In this program.
    pub memory: Option<u64>,
    /// In files, here or on the server.
    pub disk: Option<u64>,
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

    /// The engine as one that ranks whole galleries, where it can.
    fn ranker(&self) -> Option<&dyn Ranker> {
        None
    }
}

/// Takes the ranking of the query at a place: numbers of pictures and scores, best first.
pub type TakeRanking<'a> = dyn Fn(usize, Vec<(u32, f32)>) + Sync + 'a;

/// An engine in memory that names pictures by number: whole rankings of a large gallery would else be mostly copies of ids.
pub trait Ranker {
    /// The pictures, by number.
    fn ids(&self) -> &[String];

    /// As [`Searcher::search_many`], but hands the numbers and scores of each query to `take` together with the query's place
    /// in `queries`, from several threads and in no order: whole rankings are large, and these need not be there at once.
    /// Queries for one and the same vector that stand together share work.
    fn rank_each(&self, queries: &[Query], take: &TakeRanking) -> Result<(), EngineError>;
}

/// An index of vectors: what is put in with [`upsert`](VectorIndex::upsert) can be searched after
/// [`commit`](VectorIndex::commit).
pub trait VectorIndex: Searcher + Send {
    /// Starts an empty index for vectors of `dim` numbers; what it held before is gone.
    fn create(&mut self, dim: usize) -> Result<(), EngineError>;

    /// Adds pictures, replacing those with the same id. Searchable after [`commit`](VectorIndex::commit).
    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError>;

    /// Removes pictures by id; unknown ids are no error. Takes effect with the next [`commit`](VectorIndex::commit).
    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError>;

    /// Makes what was changed searchable; returns how many pictures are searchable now.
    fn commit(&mut self) -> Result<u64, EngineError>;

    /// All ways to search it that are worth measuring, the exact one first.
    fn arms(&self) -> Vec<&dyn Searcher>;

    /// How much room it takes.
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    /// The engine as a place that other programs search too, where it is one.
    fn as_server(&mut self) -> Option<&mut dyn Server> {
        None
    }
}

/// An engine on a server. An index is made beside the one that users search, filled, checked, measured, and only then put in
/// its place.
///
/// The order: [`preflight`](Server::preflight), [`prepare`](Server::prepare), then one of [`reuse`](Server::reuse),
/// [`copy_live`](Server::copy_live) or [`create_for`](Server::create_for); upserts and deletions;
/// [`commit`](VectorIndex::commit); [`finish`](Server::finish); and [`promote`](Server::promote) or
/// [`discard`](Server::discard). Whatever is dropped before `finish` leaves nothing behind.
pub trait Server: VectorIndex {
    /// Whether a load can succeed: reachable, version, privileges, alias, disk. What was found, a line each.
    fn preflight(&mut self) -> Result<Vec<String>, EngineError>;

    /// Takes the lock, clears away what a killed run left and what no run has promoted, and says what stands ready of vectors like `source`: an
    /// index at the same version, else the live one where changes can be applied to it.
    fn prepare(&mut self, source: &Source) -> Result<Option<Standing>, EngineError>;

    /// Takes what stands as it is.
    fn reuse(&mut self, standing: &Standing) -> Result<u64, EngineError>;

    /// Starts from a copy of the live index.
    fn copy_live(&mut self, standing: &Standing, source: &Source) -> Result<(), EngineError>;

    /// Starts an empty index for `source`.
    fn create_for(&mut self, source: &Source) -> Result<(), EngineError>;

    /// What the load sent since it began, and what was refused.
    fn sent(&self) -> &elastic::BulkCounts;

    /// The vectors of these pictures as the server gives them back; nothing for those that it does not have.
    fn vectors(&self, ids: &[String]) -> Result<Vec<Option<Vec<f32>>>, EngineError>;

    /// Ends the load: settings as they are to be, and the record of what the index holds.
    fn finish(&mut self) -> Result<(), EngineError>;

    /// Puts the index in the place of the live one; says what was done.
    fn promote(&mut self) -> Result<String, EngineError>;

    /// Removes the index, unless it is the live one.
    fn discard(&mut self) -> Result<(), EngineError>;

    /// Puts the index before the live one back in its place; says what was done.
    fn rollback(&mut self) -> Result<String, EngineError>;

    /// Attaches to the live index, to search it.
    fn attach(&mut self, fingerprint: &str, dim: usize) -> Result<(), EngineError>;

    /// The classes of pictures, by id, as the index has them.
    fn labels(&self, ids: &[String]) -> Result<BTreeMap<String, String>, EngineError>;

    /// The nearest among the pictures that pass all `filters`.
    fn search_filtered(&self, query: &Query, filters: &[Filter]) -> Result<Vec<Hit>, EngineError>;
}
