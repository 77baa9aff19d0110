//! Exact search in the feature table itself, for galleries that memory does not hold: the table is read in tiles, and of each
//! query only the best hits so far are kept.
//!
//! The hits are those of [`Flat`], with which each tile is searched. What a newcomer would get wrong: asking for one query at a
//! time. Every call reads the whole table, so many queries belong into one.

use std::path::PathBuf;
use std::sync::Mutex;

use tokio::runtime::Handle;

use super::flat::Flat;
use super::{EngineError, Footprint, Hit, Query, Ranker, Searcher, TakeRanking, VectorIndex};
use crate::interrupt;
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::store::{FeatureStore, Tiles};

/// The name in pipeline files and reports.
pub const NAME: &str = "table";

/// The most hits of one query: whole rankings would be the gallery's length for each.
pub const MOST_HITS: usize = 1_000;

/// Hits that are kept at once, over all queries that share a pass over the table: 64 MB.
const HITS_AT_ONCE: usize = 8 << 20;

/// The gallery where it is stored: in memory are the ids.
#[derive(Debug)]
pub struct Table {
    non_negative: bool,
    /// The feature table's folder.
    folder: PathBuf,
    handle: Handle,
    dim: usize,
    /// What was loaded since `create`.
    loaded: Vec<String>,
    tiles: Option<Tiles>,
}

impl Table {
    /// Of the table in `folder`, which is read on `handle`. `non_negative` as in [`Metric::score`].
    pub fn new(folder: PathBuf, non_negative: bool, handle: &Handle) -> Table {
        Table { non_negative, folder, handle: handle.clone(), dim: 0, loaded: Vec::new(), tiles: None }
    }

    fn tiles(&self) -> Result<&Tiles, EngineError> {
        self.tiles.as_ref().ok_or_else(|| failed("it holds no index yet; create one first"))
    }

    /// The best rows of each query, by one pass over the table.
    fn best(&self, queries: &[Query]) -> Result<Vec<Vec<(u32, f32)>>, EngineError> {
        let best: Vec<Mutex<Vec<(u32, f32)>>> = queries.iter().map(|_| Mutex::default()).collect();
        let mut flat = Flat::new(self.non_negative);
        let mut before = 0;
        self.tiles()?.each(|tile| -> Result<(), EngineError> {
            if interrupt::is_set() {
                return Err(EngineError::Interrupted);
            }
            flat.create(tile.dim)?;
            flat.upsert(tile)?;
            flat.commit()?;
            flat.rank_each(queries, &|i, ranked| {
                let Ok(mut best) = best[i].lock() else { return };
                best.extend(ranked.into_iter().map(|(row, score)| (before + row, score)));
                // Two runs that are in order. Of equal scores the lower row, which is the lesser id, goes first.
                best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                best.truncate(queries[i].k);
            })?;
            before += tile.len() as u32;
            Ok(())
        })?;
        Ok(best.into_iter().map(|best| best.into_inner().unwrap_or_default()).collect())
    }
}

fn failed(reason: &str) -> EngineError {
    EngineError::Failed { engine: NAME.to_owned(), reason: reason.to_owned() }
}

impl Searcher for Table {
    fn name(&self) -> &str {
        NAME
    }

    fn supports(&self, _metric: Metric) -> bool {
        true
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn max_k(&self) -> usize {
        MOST_HITS
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        Ok(self.search_many(std::slice::from_ref(query))?.pop().unwrap_or_default())
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let hits: Vec<Mutex<Vec<Hit>>> = queries.iter().map(|_| Mutex::default()).collect();
        self.rank_each(queries, &|i, ranked| {
            let hit = |(row, score): (u32, f32)| Hit { id: self.ids()[row as usize].clone(), score };
            if let Ok(mut hits) = hits[i].lock() {
                *hits = ranked.into_iter().map(hit).collect();
            }
        })?;
        Ok(hits.into_iter().map(|hits| hits.into_inner().unwrap_or_default()).collect())
    }

    fn ranker(&self) -> Option<&dyn Ranker> {
        Some(self)
    }
}

impl Ranker for Table {
    fn ids(&self) -> &[String] {
        self.tiles.as_ref().map(Tiles::ids).unwrap_or_default()
    }

    fn rank_each(&self, queries: &[Query], take: &TakeRanking) -> Result<(), EngineError> {
        let queries: Vec<Query> =
            queries.iter().map(|query| Query { k: query.k.min(MOST_HITS), ..*query }).collect();
        let most_k = queries.iter().map(|query| query.k).max().unwrap_or(1).max(1);
        let at_once = HITS_AT_ONCE / most_k;
        for (pass, queries) in queries.chunks(at_once).enumerate() {
            let best = self.best(queries)?;
            best.into_iter().enumerate().for_each(|(i, ranked)| take(pass * at_once + i, ranked));
        }
        Ok(())
    }
}

impl VectorIndex for Table {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        if dim == 0 {
            return Err(failed("vectors need at least one number"));
        }
        (self.dim, self.tiles) = (dim, None);
        self.loaded.clear();
        Ok(())
    }

    /// Looks at the rows, and keeps their ids.
    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        if batch.is_empty() {
            return Ok(());
        }
        if batch.dim != self.dim {
            return Err(EngineError::WrongDimension { expected: self.dim, got: batch.dim });
        }
        for (i, picture) in batch.pictures.iter().enumerate() {
            if batch.vector(i).iter().any(|x| !x.is_finite()) {
                return Err(EngineError::NotFinite { id: picture.id.clone() });
            }
        }
        self.loaded.extend(batch.pictures.iter().map(|picture| picture.id.clone()));
        Ok(())
    }

    /// Nothing is ever taken out: what is searched is the feature table.
    fn delete(&mut self, _ids: &[String]) -> Result<(), EngineError> {
        Err(failed("it searches the feature table as it is; take pictures out of that"))
    }

    fn commit(&mut self) -> Result<u64, EngineError> {
        let store = self.handle.block_on(FeatureStore::open(&self.folder))?;
        let store = store.ok_or_else(|| failed("there is no feature table; extract first"))?;
        let tiles = Tiles::of(store, &self.handle)?;
        if u32::try_from(tiles.ids().len()).is_err() {
            return Err(failed("it holds at most 2^32 - 1 pictures"));
        }
        if tiles.ids() != self.loaded {
            return Err(failed("the feature table changed while it was read; run again"));
        }
        self.loaded = Vec::new();
        Ok(self.tiles.insert(tiles).ids().len() as u64)
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        vec![self]
    }

    fn footprint(&self) -> Footprint {
        let bytes: usize = self.ids().iter().map(|id| id.capacity() + size_of::<String>()).sum();
        Footprint { memory: Some(bytes as u64), disk: None }
    }
}
