//! Milvus: collections beside the live ones, filled, counted, and promoted only when they are good.
//!
//! ```text
//! pictures ─ rows ─▶ upsert ─▶ flush ─▶ index ─▶ load ─▶ count ─▶ aliases
//! queries ─▶ search, some more than asked ─▶ our scores, ties by id
//! ```

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    ConsistencyLevel, DeleteRequest, DescribeIndexRequest, Error, FieldData, FlushRequest,
    GetLoadStateRequest, Ids, IndexStateCode, InsertRequest, LoadCollectionRequest, LoadState, QueryRequest,
    ReleaseCollectionRequest, SearchRequest, SearchVectors, UpsertRequest,
};
use tokio::runtime::Handle;

use super::MilvusConfig;
use super::client::{Client, failed};
use super::collections::{Collections, Load, State};
use super::lock::AliasLock;
use super::rows::{self, Rows};
use crate::engines::elastic::BulkCounts;
use crate::engines::{
    EngineError, Filter, Hit, Query, Rejected, Searcher, Server, Source, Standing, VectorIndex,
};
use crate::interrupt;
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;

/// The most hits that Milvus returns for one query.
const MOST_HITS: usize = 16_384;
/// Queries in one request, and the hits they may return together: the client takes answers of up to 4 MB.
const SEARCHES_AT_ONCE: usize = 64;
const HITS_AT_ONCE: usize = 20_000;
/// Hits beyond those asked for, so that a tie at the last place is seen: Milvus breaks ties by no rule.
const MARGIN: usize = 16;
/// Rows and bytes of one request.
const ROWS_AT_ONCE: usize = 2_000;
const BYTES_AT_ONCE: usize = 8 << 20;
/// Pictures named in one expression.
const IDS_AT_ONCE: usize = 500;
/// Between two looks at what the server does by itself.
const LOOK: Duration = Duration::from_millis(100);

/// The engine that `config` names; nothing is sent yet.
pub fn open(
    config: &MilvusConfig,
    non_negative: bool,
    handle: &Handle,
) -> Result<Box<dyn VectorIndex>, EngineError> {
    Ok(Box::new(Milvus {
        name: config.name(),
        config: config.clone(),
        non_negative,
        handle: handle.clone(),
        connection: None,
        lock: None,
        open: None,
        waiting: Rows::default(),
        waiting_ids: HashSet::new(),
        sent: BulkCounts::default(),
        began: None,
    }))
}

/// One alias of one server.
struct Milvus {
    name: String,
    config: MilvusConfig,
    non_negative: bool,
    handle: Handle,
    connection: Option<(Client, Collections)>,
    lock: Option<AliasLock>,
    /// What is searched: the load being made, the one that stands, or the live one.
    open: Option<Open>,
    /// Rows that are not sent yet.
    waiting: Rows,
    waiting_ids: HashSet<String>,
    sent: BulkCounts,
    began: Option<Instant>,
}

/// Collections in use.
#[derive(Debug)]
struct Open {
    names: BTreeMap<Metric, String>,
    source: Source,
    /// Made by us and not finished: dropped with the engine.
    half_made: bool,
    /// Whether rows were sent that are in no segment yet.
    changed: bool,
    /// Whether the server has them in memory.
    loaded: bool,
}

impl Milvus {
    fn connected(&mut self) -> Result<&(Client, Collections), EngineError> {
        if self.connection.is_none() {
            let client = Client::connect(&self.config, &self.handle)?;
            let collections = Collections::new(&client, &self.config);
            self.connection = Some((client, collections));
        }
        self.connection()
    }

    fn connection(&self) -> Result<&(Client, Collections), EngineError> {
        self.connection.as_ref().ok_or_else(|| failed("there is no connection yet"))
    }

    fn client(&self) -> Result<&Client, EngineError> {
        Ok(&self.connection()?.0)
    }

    fn collections(&self) -> Result<&Collections, EngineError> {
        Ok(&self.connection()?.1)
    }

    fn in_use(&self) -> Result<&Open, EngineError> {
        self.open.as_ref().ok_or_else(|| failed("it holds no collection yet; create one first"))
    }

    /// The lock, held from here on.
    fn hold_lock(&mut self) -> Result<&AliasLock, EngineError> {
        if self.lock.is_none() {
            let alias = self.config.alias.clone();
            let lock = AliasLock::take(&self.connected()?.0, &alias)?;
            self.lock = Some(lock);
        }
        self.lock.as_ref().ok_or_else(|| failed("the lock was let go"))
    }

    /// Drops the collections that were begun.
    fn drop_half_made(&mut self) -> Result<(), EngineError> {
        self.waiting = Rows::default();
        self.waiting_ids.clear();
        match self.open.take_if(|open| open.half_made) {
            Some(open) => {
                let names: Vec<&str> = open.names.values().map(String::as_str).collect();
                tracing::info!("removing {}, which is not complete", names.join(", "));
                self.collections()?.for_clean_up().drop_all(open.names.values())
            }
            None => Ok(()),
        }
    }

    /// Sends the rows that wait to every metric's collection.
    fn send(&mut self) -> Result<(), EngineError> {
        if self.waiting.len() == 0 {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.waiting);
        self.waiting_ids.clear();
        let names: Vec<String> = self.in_use()?.names.values().cloned().collect();
        let client = self.client()?.clone();
        for name in &names {
            // Not an insertion: where an answer was lost and the rows are sent again, they must not be there twice.
            client.call(&format!("rows were not taken by collection {name}"), |client| {
                let columns = rows.columns();
                async move {
                    let insert =
                        InsertRequest::builder().collection_name(name.as_str()).columns(columns).build()?;
                    let answer = client.upsert(UpsertRequest::builder().insert(insert).build()?).await?;
                    match answer.failed_indices().is_empty() {
                        true => Ok(()),
                        false => Err(Error::Unexpected("some rows were refused without a reason".to_owned())),
                    }
                }
            })?;
        }
        if let Some(open) = &mut self.open {
            open.changed = true;
        }
        self.sent.indexed += rows.len() as u64;
        self.sent.requests += names.len() as u64;
        self.sent.bytes += (rows.bytes * names.len()) as u64;
        self.note_time(&client);
        Ok(())
    }

    fn note_time(&mut self, client: &Client) {
        self.sent.retried = client.retried();
        self.sent.seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
    }

    /// Writes what was sent into segments, waits until they are indexed, and has the server hold them in memory.
    fn settle(&mut self) -> Result<(), EngineError> {
        let client = self.client()?.clone();
        let open = self.in_use()?;
        let names: Vec<String> = open.names.values().cloned().collect();
        let mut loaded = open.loaded;
        if open.changed {
            client.call("rows were not flushed", |client| {
                let names = names.clone();
                async move {
                    let request = FlushRequest::builder().collection_names(names).wait_flushed_ms(120_000);
                    client.flush(request.build()?).await
                }
            })?;
            for name in &names {
                self.wait_for_index(&client, name)?;
                // A graph over new segments is used once they are read again; without one there is nothing to read.
                if loaded && !self.config.is_exact() {
                    client.call(&format!("collection {name} was not released"), |client| async move {
                        let request = ReleaseCollectionRequest::builder().collection_name(name.as_str());
                        client.release_collection(request.build()?).await
                    })?;
                }
            }
            loaded &= self.config.is_exact();
        }
        if !loaded {
            load_all(&client, &names)?;
        }
        if let Some(open) = &mut self.open {
            (open.changed, open.loaded) = (false, true);
        }
        Ok(())
    }

    fn wait_for_index(&self, client: &Client, name: &str) -> Result<(), EngineError> {
        loop {
            let answer =
                client.call(&format!("the index of collection {name} was not described"), |client| {
                    let request =
                        DescribeIndexRequest::builder().collection_name(name).field_name(rows::VECTOR);
                    async move { client.describe_index(request.build()?).await }
                })?;
            let state = answer.indexes().first().map(|index| (index.get_state(), index.get_failure_reason()));
            match state {
                Some((IndexStateCode::Finished, _)) => return Ok(()),
                Some((IndexStateCode::Failed, reason)) => {
                    return Err(failed(format!("the index of collection {name} failed: {reason}")));
                }
                None => return Err(failed(format!("collection {name} has no index any more"))),
                Some(_) => client.pause(LOOK)?,
            }
        }
    }

    /// Rows of a collection, with all that was sent to it.
    fn count(&self, name: &str) -> Result<u64, EngineError> {
        let answer =
            self.client()?.call(&format!("collection {name} was not counted"), |client| async move {
                let request = QueryRequest::builder()
                    .collection_name(name)
                    .output_fields(["count(*)"])
                    .consistency_level(ConsistencyLevel::Strong);
                client.query(request.build()?).await
            })?;
        let column = answer.results().get_output_fields().first().and_then(FieldData::as_int64);
        let count = column.and_then(|column| column.first()).and_then(|count| u64::try_from(*count).ok());
        count.ok_or_else(|| failed("its answer to count(*) has no count"))
    }

    /// The rows of every collection, which must be as many in each.
    fn count_all(&self) -> Result<u64, EngineError> {
        let mut counts = BTreeMap::new();
        for name in self.in_use()?.names.values() {
            counts.insert(self.count(name)?, name);
        }
        match counts.len() {
            1 => Ok(counts.into_keys().next().unwrap_or_default()),
            _ => Err(failed(format!("its collections hold different numbers of rows: {counts:?}"))),
        }
    }

    /// Columns of these pictures' rows.
    fn read(&self, name: &str, ids: &[String], columns: &[&str]) -> Result<Vec<FieldData>, EngineError> {
        let filter = rows::with_ids(ids);
        let answer = self.client()?.call(&format!("collection {name} was not read"), |client| {
            let request = QueryRequest::builder()
                .collection_name(name)
                .filter(filter.clone())
                .output_fields(columns.iter().copied())
                .consistency_level(ConsistencyLevel::Bounded);
            async move { client.query(request.build()?).await }
        })?;
        Ok(answer.results().get_output_fields().to_vec())
    }

    /// One request of queries that have one metric and one k.
    fn ask(&self, queries: &[Query], filters: &[Filter]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let Some(first) = queries.first() else { return Ok(Vec::new()) };
        let open = self.in_use()?;
        for query in queries {
            check(query, open.source.dim)?;
        }
        let name = open.names.get(&first.metric).ok_or_else(|| self.no_metric(first.metric))?;
        let filter = rows::passing(filters)?;
        let k = first.k.min(MOST_HITS);
        let mut limit = (k + MARGIN).min(MOST_HITS);
        let vectors: Vec<Vec<f32>> = queries.iter().map(|query| query.vector.to_vec()).collect();
        loop {
            let answer =
                self.client()?.call(&format!("a search by {} was not answered", first.metric), |client| {
                    let request = SearchRequest::builder()
                        .collection_name(name.as_str())
                        .vector_field(rows::VECTOR)
                        .vectors(SearchVectors::Float(vectors.clone()))
                        .limit(limit as i64)
                        .filter(filter.clone())
                        .consistency_level(ConsistencyLevel::Bounded);
                    let request = match self.config.is_exact() {
                        true => request,
                        // At least as many candidates as hits, or Milvus refuses.
                        false => {
                            let ef = (self.config.ef_search as usize).max(limit);
                            request.extra_params([("ef".to_owned(), ef.to_string())].into())
                        }
                    };
                    async move { client.search(request.build()?).await }
                })?;
            let results = answer.results().get_results();
            if results.len() != queries.len() {
                return Err(failed(format!(
                    "{} searches were sent, {} answered",
                    queries.len(),
                    results.len()
                )));
            }
            let mut is_cut = false;
            let mut found = Vec::with_capacity(queries.len());
            for result in results {
                let mut hits = self.hits(first.metric, result.get_ids(), result.get_scores())?;
                // The last place is tied with the last hit that came: there may be more of the same score.
                is_cut |= hits.len() == limit
                    && k < limit
                    && hits.get(k - 1).map(|hit| hit.score) == hits.last().map(|hit| hit.score);
                hits.truncate(k);
                found.push(hits);
            }
            if !is_cut || limit == MOST_HITS {
                return Ok(found);
            }
            limit = (limit * 2).min(MOST_HITS);
        }
    }

    /// Hits on our scale, by score and then by id.
    fn hits(&self, metric: Metric, ids: &Ids, scores: &[f32]) -> Result<Vec<Hit>, EngineError> {
        let score = |raw: f32| {
            // Milvus' L2 is squared; rounding may leave it below zero.
            let raw = if metric == Metric::L2 { f64::from(raw).max(0.0).sqrt() } else { f64::from(raw) };
            metric.score(raw, self.non_negative) as f32
        };
        let ids = match ids {
            Ids::VarChar(ids) => ids.as_slice(),
            // What an empty collection answers.
            _ if scores.is_empty() => &[],
            _ => return Err(failed("hits came without their ids")),
        };
        let mut hits: Vec<Hit> =
            ids.iter().zip(scores).map(|(id, raw)| Hit { id: id.clone(), score: score(*raw) }).collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        Ok(hits)
    }

    fn no_metric(&self, metric: Metric) -> EngineError {
        let reason = match metric {
            Metric::L1 => "Milvus has cosine, dot_product and l2".to_owned(),
            _ => {
                let named: Vec<&str> = self.config.metrics.iter().map(|metric| metric.name()).collect();
                format!("load.milvus.metrics names {}", named.join(", "))
            }
        };
        EngineError::UnsupportedMetric { engine: self.name.clone(), metric, reason }
    }

    fn find(&self, id: &str) -> Result<Load, EngineError> {
        let found = self.collections()?.ours()?.into_iter().find(|load| load.id == id);
        found.ok_or_else(|| failed(format!("load {id} of alias {} is gone", self.config.alias)))
    }

    fn use_load(&mut self, load: &Load, source: Source) {
        let names = load.names();
        self.open = Some(Open { names, source, half_made: false, changed: false, loaded: false });
    }
}

/// Has the server hold collections in memory, ready to be searched.
fn load_all(client: &Client, names: &[String]) -> Result<(), EngineError> {
    for name in names {
        client.call(&format!("collection {name} was not loaded"), |client| async move {
            let request = LoadCollectionRequest::builder().collection_name(name.as_str()).replica_number(1);
            client.load_collection(request.sync(false).build()?).await
        })?;
    }
    for name in names {
        loop {
            let answer = client.call(&format!("collection {name} was not loaded"), |client| async move {
                client
                    .get_load_state(GetLoadStateRequest::builder().collection_name(name.as_str()).build()?)
                    .await
            })?;
            match answer.state() {
                LoadState::Loaded => break,
                LoadState::Loading => client.pause(LOOK)?,
                state => {
                    return Err(failed(format!("collection {name} was not loaded: its state is {state:?}")));
                }
            }
        }
    }
    Ok(())
}

/// What no engine searches for.
fn check(query: &Query, dim: usize) -> Result<(), EngineError> {
    if query.k == 0 {
        return Err(EngineError::ZeroK);
    }
    if query.vector.len() != dim {
        return Err(EngineError::WrongDimension { expected: dim, got: query.vector.len() });
    }
    if query.vector.iter().any(|x| !x.is_finite()) {
        return Err(EngineError::NotFinite { id: "the query".to_owned() });
    }
    Ok(())
}

impl Drop for Milvus {
    fn drop(&mut self) {
        if let Err(error) = self.drop_half_made() {
            tracing::warn!("incomplete collections were left behind, and the next run removes them: {error}");
        }
    }
}

impl Searcher for Milvus {
    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, metric: Metric) -> bool {
        self.config.metrics.contains(&metric)
    }

    fn is_exact(&self) -> bool {
        self.config.is_exact()
    }

    fn max_k(&self) -> usize {
        MOST_HITS
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        Ok(self.ask(&[*query], &[])?.pop().unwrap_or_default())
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let mut found = Vec::with_capacity(queries.len());
        for alike in queries.chunk_by(|a, b| (a.metric, a.k) == (b.metric, b.k)) {
            let k = alike.first().map_or(1, |query| query.k).clamp(1, MOST_HITS);
            for chunk in alike.chunks((HITS_AT_ONCE / (k + MARGIN)).clamp(1, SEARCHES_AT_ONCE)) {
                found.extend(self.ask(chunk, &[])?);
            }
        }
        Ok(found)
    }
}

impl VectorIndex for Milvus {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        self.create_for(&Source { dim, ..Source::default() })
    }

    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        let dim = self.in_use()?.source.dim;
        if batch.is_empty() {
            return Ok(());
        }
        if batch.dim != dim {
            return Err(EngineError::WrongDimension { expected: dim, got: batch.dim });
        }
        for (i, picture) in batch.pictures.iter().enumerate() {
            if batch.vector(i).iter().any(|x| !x.is_finite()) {
                return Err(EngineError::NotFinite { id: picture.id.clone() });
            }
        }
        self.began.get_or_insert_with(Instant::now);
        for (i, picture) in batch.pictures.iter().enumerate() {
            self.sent.sent += 1;
            let vector = batch.vector(i);
            if vector.iter().all(|x| *x == 0.0) {
                // Milvus takes it, and then leaves it out of the hits by cosine.
                let reason = "the vector is all zeros, which has no direction".to_owned();
                self.sent.rejected.push(Rejected { id: picture.id.clone(), reason });
                continue;
            }
            // Of two rows with one id in one request Milvus keeps both.
            if self.waiting_ids.contains(&picture.id) {
                self.send()?;
            }
            let norm = batch.norms.get(i).copied().unwrap_or(1.0);
            self.waiting_ids.insert(picture.id.clone());
            self.waiting.add(picture, norm, vector);
            if self.waiting.len() >= ROWS_AT_ONCE || self.waiting.bytes >= BYTES_AT_ONCE {
                if interrupt::is_set() {
                    return Err(EngineError::Interrupted);
                }
                self.send()?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError> {
        // What was put in before is deleted, what comes after is not.
        self.send()?;
        let names: Vec<String> = self.in_use()?.names.values().cloned().collect();
        let client = self.client()?.clone();
        for ids in ids.chunks(IDS_AT_ONCE) {
            let filter = rows::with_ids(ids);
            for name in &names {
                client.call(&format!("rows were not deleted from collection {name}"), |client| {
                    let request =
                        DeleteRequest::builder().collection_name(name.as_str()).filter(filter.clone());
                    async move { client.delete(request.build()?).await }
                })?;
            }
            self.sent.sent += ids.len() as u64;
            self.sent.deleted += ids.len() as u64;
        }
        if let Some(open) = self.open.as_mut().filter(|_| !ids.is_empty()) {
            open.changed = true;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<u64, EngineError> {
        self.in_use()?;
        self.send()?;
        self.settle()?;
        self.count_all()
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        vec![self]
    }

    fn as_server(&mut self) -> Option<&mut dyn Server> {
        Some(self)
    }
}

impl Server for Milvus {
    fn preflight(&mut self) -> Result<Vec<String>, EngineError> {
        let (client, collections) = self.connected()?;
        let version = client.version()?;
        if !is_known(&version) {
            return Err(failed(format!(
                "{} is Milvus {}; imagedex speaks to Milvus 2 from 2.3 on",
                client.address(),
                version.escape_debug()
            )));
        }
        collections.check_aliases()?;
        Ok(vec![format!("Milvus {version} at {}", client.address())])
    }

    fn prepare(&mut self, source: &Source) -> Result<Option<Standing>, EngineError> {
        self.hold_lock()?;
        let (_, collections) = self.connected()?;
        collections.check_aliases()?;
        let shape = collections.shape();
        let metrics = &self.config.metrics;
        let mut fitting: Vec<Load> = Vec::new();
        for load in self.collections()?.ours()? {
            let fits = load.state() != State::Loading
                && load.collections.keys().all(|metric| metrics.contains(metric))
                && load.collections.len() == metrics.len()
                && load.collections.values().all(|(_, meta)| meta.shape == shape && meta.source == *source);
            if fits {
                fitting.push(load);
            }
        }
        // The live one first: what already serves needs no promotion.
        let standing = fitting.into_iter().max_by_key(|load| load.live);
        let standing = match standing {
            Some(load) if self.is_as_it_was(&load)? => Some(load),
            _ => None,
        };
        self.collections()?.clear_unpromoted(standing.as_ref().map(|load| load.id.as_str()))?;
        Ok(standing.and_then(|load| {
            let meta = load.meta()?;
            Some(Standing {
                index: load.id.clone(),
                version: meta.source.version,
                live: load.live,
                rejected: meta.rejected,
            })
        }))
    }

    fn reuse(&mut self, standing: &Standing) -> Result<u64, EngineError> {
        let load = self.find(&standing.index)?;
        let source = load.meta().map(|meta| meta.source.clone()).unwrap_or_default();
        self.use_load(&load, source);
        self.settle()?;
        self.count_all()
    }

    fn copy_live(&mut self, _standing: &Standing, _source: &Source) -> Result<(), EngineError> {
        // `prepare` offers no load of another version: Milvus copies no collections.
        Err(failed("a collection cannot be copied"))
    }

    fn create_for(&mut self, source: &Source) -> Result<(), EngineError> {
        if source.dim == 0 {
            return Err(failed("vectors need at least one number"));
        }
        self.hold_lock()?.check()?;
        self.connected()?;
        self.drop_half_made()?;
        (self.sent, self.began) = (BulkCounts::default(), None);
        let names = self.collections()?.create(source)?;
        let source = source.clone();
        self.open = Some(Open { names, source, half_made: true, changed: false, loaded: false });
        Ok(())
    }

    fn sent(&self) -> &BulkCounts {
        &self.sent
    }

    /// Each collection gives back an even share of them.
    fn vectors(&self, ids: &[String]) -> Result<Vec<Option<Vec<f32>>>, EngineError> {
        let names: Vec<&String> = self.in_use()?.names.values().collect();
        let mut found = BTreeMap::new();
        for (n, name) in names.iter().enumerate() {
            let share: Vec<String> = ids.iter().skip(n).step_by(names.len()).cloned().collect();
            for ids in share.chunks(IDS_AT_ONCE) {
                let columns = self.read(name, ids, &[rows::ID, rows::VECTOR])?;
                let vectors = columns.iter().find(|column| column.name() == rows::VECTOR);
                let vectors = vectors.and_then(FieldData::as_float_vectors);
                let vectors = vectors.ok_or_else(|| failed("rows came back without their vectors"))?;
                found.extend(rows::texts(&columns, rows::ID)?.iter().cloned().zip(vectors.iter().cloned()));
            }
        }
        Ok(ids.iter().map(|id| found.remove(id)).collect())
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        let Some(open) = self.open.as_ref().filter(|open| open.half_made) else { return Ok(()) };
        if let Some(lock) = &self.lock {
            lock.check()?;
        }
        let (documents, rejected) = (self.count_all()?, self.sent.rejected.len() as u64);
        self.collections()?.mark(&open.names, |meta| {
            (meta.state, meta.documents, meta.rejected) = (State::Complete, documents, rejected);
        })?;
        if let Some(open) = &mut self.open {
            open.half_made = false;
        }
        Ok(())
    }

    fn promote(&mut self) -> Result<String, EngineError> {
        let names = self.in_use()?.names.clone();
        self.hold_lock()?.check()?;
        let collections = self.collections()?;
        let before = collections.check_aliases()?;
        let said = |verb: &str| {
            let each: Vec<String> = names
                .iter()
                .map(|(metric, name)| format!("alias {} {verb} {name}", collections.alias(*metric)))
                .collect();
            each.join(", ")
        };
        if names.iter().all(|(metric, name)| before.get(metric) == Some(&Some(name.clone()))) {
            // A run that was killed right after it moved the aliases has done neither.
            collections.mark(&names, |meta| meta.state = State::Promoted)?;
            collections.prune()?;
            return Ok(said("stands already for"));
        }
        if let Some(live) = collections.ours()?.into_iter().find(|load| load.live) {
            // So it is kept for a rollback, also where a killed run had not come to that.
            collections.mark(&live.names(), |meta| meta.state = State::Promoted)?;
        }
        collections.swap(&before, &names)?;
        collections.mark(&names, |meta| meta.state = State::Promoted)?;
        let gone = collections.prune()?;
        let pruned =
            if gone.is_empty() { String::new() } else { format!("; removed load {}", gone.join(", ")) };
        Ok(format!("{}{pruned}", said("now stands for")))
    }

    fn discard(&mut self) -> Result<(), EngineError> {
        self.waiting = Rows::default();
        let Some(open) = self.open.take() else { return Ok(()) };
        self.collections()?.for_clean_up().drop_all(open.names.values())
    }

    fn rollback(&mut self) -> Result<String, EngineError> {
        self.hold_lock()?;
        let alias = self.config.alias.clone();
        let (client, collections) = self.connected()?;
        let behind = collections.check_aliases()?;
        let ours = collections.ours()?;
        let live = ours.iter().find(|load| load.live);
        let is_before = |load: &&Load| live.is_none_or(|live| load.id < live.id);
        let mut promoted = ours.iter().filter(|load| !load.live && load.state() == State::Promoted);
        let before = promoted.rfind(is_before).ok_or_else(|| {
            EngineError::Usage(format!(
                "there is no earlier load of alias {alias} to go back to; load.milvus.keep says how many stay"
            ))
        })?;
        let names = before.names();
        load_all(client, &names.values().cloned().collect::<Vec<_>>())?;
        if let Some(lock) = &self.lock {
            lock.check()?;
        }
        let collections = self.collections()?;
        collections.swap(&behind, &names)?;
        if let Some(live) = live {
            collections.mark(&live.names(), |meta| meta.state = State::Complete)?;
        }
        let after = live.map_or("nothing", |live| live.id.as_str());
        Ok(format!("alias {alias} stands for load {} again, and not for {after}", before.id))
    }

    fn attach(&mut self, fingerprint: &str, dim: usize) -> Result<(), EngineError> {
        let alias = self.config.alias.clone();
        let (client, collections) = self.connected()?;
        let address = client.address().to_owned();
        collections.check_aliases()?;
        let live = collections.ours()?.into_iter().find(|load| load.live).ok_or_else(|| {
            EngineError::Usage(format!("there is no alias {alias} at {address} yet; run the pipeline first"))
        })?;
        let from = live.meta().map(|meta| meta.source.clone()).unwrap_or_default();
        if from.fingerprint != fingerprint || from.dim != dim {
            return Err(EngineError::Usage(format!(
                "alias {alias} holds vectors made with other settings (fingerprint {} of {} numbers, here {fingerprint} of {dim}); \
                 run the pipeline to load it anew",
                from.fingerprint, from.dim
            )));
        }
        self.use_load(&live, from);
        self.settle()
    }

    fn labels(&self, ids: &[String]) -> Result<BTreeMap<String, String>, EngineError> {
        let mut labels = BTreeMap::new();
        let Some(name) = self.in_use()?.names.values().next() else { return Ok(labels) };
        for ids in ids.chunks(IDS_AT_ONCE) {
            let columns = self.read(name, ids, &[rows::ID, rows::LABEL])?;
            let (ids, of_ids) = (rows::texts(&columns, rows::ID)?, rows::texts(&columns, rows::LABEL)?);
            labels.extend(
                ids.iter().cloned().zip(of_ids.iter().cloned()).filter(|(_, label)| !label.is_empty()),
            );
        }
        Ok(labels)
    }

    fn search_filtered(&self, query: &Query, filters: &[Filter]) -> Result<Vec<Hit>, EngineError> {
        Ok(self.ask(&[*query], filters)?.pop().unwrap_or_default())
    }
}

impl Milvus {
    /// Whether every collection of a load holds as many rows as it did when the load was complete.
    fn is_as_it_was(&self, load: &Load) -> Result<bool, EngineError> {
        let names: Vec<String> = load.names().into_values().collect();
        load_all(self.client()?, &names)?;
        for (name, meta) in load.collections.values() {
            let found = self.count(name)?;
            if found != meta.documents {
                tracing::warn!(
                    "collection {name} holds {found} rows, {} when it was loaded: somebody changed it, so the load begins anew",
                    meta.documents
                );
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Versions with the calls that are made here: `v2.3.5`, `2.4.1-rc`, …
fn is_known(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(2)), Some(Ok(minor))) => minor >= 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_2_3_and_after_2_are_not_known() {
        for (version, known) in
            [("v2.3.5-lite", true), ("2.10.0", true), ("v2.2.9", false), ("v3.0.1", false), ("", false)]
        {
            assert_eq!(is_known(version), known, "{version}");
        }
    }
}
