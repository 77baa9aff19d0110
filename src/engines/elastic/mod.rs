//! Elasticsearch and OpenSearch: an index beside the live one, loaded without losing a document, and promoted only when it is good.
//!
//! ```text
//! pictures ─ bulk ─▶ NDJSON ─ senders ─▶ server ─▶ retry: done, again, dead letter, stop
//! queries ─ dialect ─▶ script_score / knn / sparse_vector ─▶ hits
//! ```
//!
//! The exact arm scores every document by a script and is [`Elastic`] itself; its other arms are [`View`]s beside it.

mod bulk;
mod client;
mod config;
mod dialect;
mod indices;
mod lock;
mod preflight;
#[cfg(any(test, fuzzing))]
pub mod probe;
mod product;
mod retry;
mod senders;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{
    EngineError, Filter, Footprint, Hit, Query, Rejected, Searcher, Server, Source, Standing, VectorIndex,
};
use crate::metric::Metric;
use crate::stages::embed::EmbeddingBatch;
use bulk::{Encoder, document_id};
use client::{Client, Kind, Method};
pub use config::{Address, ElasticConfig, Encoding, KnnConfig, Layout, environment};
use dialect::{Arm, Found, Version};
use indices::{Indices, Owned, State};
use lock::AliasLock;
pub use product::Product;
pub use senders::BulkCounts;
use senders::Senders;

/// Searches in one request, and the hits they may return together: some megabytes of answer.
const SEARCHES_AT_ONCE: usize = 64;
const HITS_AT_ONCE: usize = 100_000;

/// One alias of one cluster.
#[derive(Debug)]
pub struct Elastic {
    config: ElasticConfig,
    client: Client,
    indices: Indices,
    non_negative: bool,
    /// Known once the server was asked.
    version: Option<Version>,
    lock: Option<AliasLock>,
    /// What is searched: the index being made, the one that stands, or the live one.
    index: Option<Open>,
    senders: Option<Senders>,
    sent: BulkCounts,
    arms: Vec<View>,
    /// The row number of the next document, for the original's layout.
    next_row: AtomicU64,
}

/// An index in use.
#[derive(Debug)]
struct Open {
    owned: Owned,
    source: Source,
    /// Made by us and not finished: it is removed when dropped.
    half_made: bool,
}

impl Elastic {
    /// A client of the cluster that `config` names; nothing is sent yet.
    pub fn open(config: &ElasticConfig, non_negative: bool, handle: &Handle) -> Result<Elastic, EngineError> {
        if config.sparse && !non_negative {
            let key = config.product.key("sparse");
            return Err(EngineError::Usage(format!(
                "{key} needs a model whose numbers are never negative (non_negative in its card)"
            )));
        }
        let client = Client::open(config, handle)?;
        Ok(Elastic {
            indices: Indices::new(&client, &config.alias),
            config: config.clone(),
            client,
            non_negative,
            version: None,
            lock: None,
            index: None,
            senders: None,
            sent: BulkCounts::default(),
            arms: Vec::new(),
            next_row: AtomicU64::new(0),
        })
    }

    fn version(&mut self) -> Result<Version, EngineError> {
        match self.version {
            Some(version) => Ok(version),
            None => Ok(*self.version.insert(preflight::version(&self.client)?)),
        }
    }

    fn index(&self) -> Result<&Open, EngineError> {
        self.index.as_ref().ok_or_else(|| self.client.failed("it holds no index yet; create one first"))
    }

    /// The lock, held from here on.
    fn hold_lock(&mut self) -> Result<&AliasLock, EngineError> {
        if self.lock.is_none() {
            self.lock = Some(AliasLock::take(&self.client, &self.config.alias)?);
        }
        self.lock.as_ref().ok_or_else(|| self.client.failed("the lock was let go"))
    }

    fn use_index(&mut self, owned: Owned, source: &Source, half_made: bool) {
        let arm = |name: &str, arm: Arm| View {
            name: format!("{} {name}", self.name()),
            arm,
            client: self.client.clone(),
            index: owned.name.clone(),
            layout: self.config.layout,
            concurrent_searches: self.config.concurrent_searches,
            non_negative: self.non_negative,
            dim: source.dim,
        };
        let knn = self.config.knn.as_ref().map(|knn| {
            let KnnConfig { metric, num_candidates, oversample, .. } = *knn;
            let options = knn.options(self.config.product);
            let rescored = oversample.map_or_else(String::new, |oversample| format!(" x {oversample}"));
            let how = Arm::Knn { metric, num_candidates, oversample };
            arm(&format!("knn {options} {num_candidates}{rescored}"), how)
        });
        let sparse = self.config.sparse.then(|| arm("sparse_vector", Arm::Sparse));
        self.arms = knn.into_iter().chain(sparse).collect();
        self.index = Some(Open { owned, source: source.clone(), half_made });
    }

    /// Removes the index that was begun, and lets go of it.
    fn drop_half_made(&mut self) -> Result<(), EngineError> {
        self.senders = None;
        match self.index.take_if(|index| index.half_made) {
            Some(index) => {
                tracing::info!("removing {}, which is not complete", index.owned.name);
                self.indices.delete(&index.owned.name)
            }
            None => Ok(()),
        }
    }

    fn encoder(&mut self) -> Result<Encoder, EngineError> {
        let version = self.version()?;
        Ok(Encoder {
            layout: self.config.layout,
            base64: dialect::sends_base64(self.config.encoding, version),
            knn: dialect::has_knn_field(&self.config),
            sparse: self.config.sparse,
        })
    }

    /// Senders at work on the index that is being made.
    fn senders(&mut self) -> Result<&mut Senders, EngineError> {
        if self.senders.is_none() {
            let encoder = self.encoder()?;
            let name = self.index()?.owned.name.clone();
            let most_bytes = self.config.max_bulk_mb << 20;
            self.senders =
                Some(Senders::start(&self.client, &name, encoder, self.config.senders, most_bytes));
        }
        self.senders.as_mut().ok_or_else(|| self.client.failed("its senders did not start"))
    }

    /// How many documents there are, and how many of them have a vector.
    fn count(&self, index: &str) -> Result<(u64, u64), EngineError> {
        let count = |body: Option<Value>| -> Result<u64, EngineError> {
            let answer: Value = self.client.call(Method::Post, &format!("{index}/_count"), body)?;
            if answer["_shards"]["failed"].as_u64() != Some(0) {
                return Err(self.client.failed(format!("index {index} could not be counted on every shard")));
            }
            answer["count"].as_u64().ok_or_else(|| self.client.failed("its answer to _count has no count"))
        };
        let exists = json!({ "query": { "exists": { "field": self.config.layout.vector() } } });
        Ok((count(None)?, count(Some(exists))?))
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        if let Err(error) = self.drop_half_made() {
            tracing::warn!("an incomplete index was left behind, and the next run removes it: {error}");
        }
    }
}

impl Searcher for Elastic {
    fn name(&self) -> &str {
        self.config.product.engine()
    }

    fn supports(&self, _metric: Metric) -> bool {
        true
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn max_k(&self) -> usize {
        dialect::MOST_HITS
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        self.search_filtered(query, &[])
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        self.exact()?.search_many(queries)
    }
}

impl Elastic {
    fn exact(&self) -> Result<View, EngineError> {
        let index = self.index()?;
        Ok(View {
            name: self.name().to_owned(),
            arm: Arm::Exact,
            client: self.client.clone(),
            index: index.owned.name.clone(),
            layout: self.config.layout,
            concurrent_searches: self.config.concurrent_searches,
            non_negative: self.non_negative,
            dim: index.source.dim,
        })
    }
}

impl VectorIndex for Elastic {
    fn create(&mut self, dim: usize) -> Result<(), EngineError> {
        self.create_for(&Source { dim, ..Source::default() })
    }

    fn upsert(&mut self, batch: &EmbeddingBatch) -> Result<(), EngineError> {
        let dim = self.index()?.source.dim;
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
        for (i, picture) in batch.pictures.iter().enumerate() {
            let vector = batch.vector(i);
            if vector.iter().all(|x| *x == 0.0) {
                // A cosine with it is no number, and one such score fails a whole search.
                let reason = "the vector is all zeros, which has no direction".to_owned();
                self.sent.rejected.push(Rejected { id: picture.id.clone(), reason });
                self.sent.sent += 1;
                continue;
            }
            let row = self.next_row.fetch_add(1, Ordering::Relaxed);
            let norm = batch.norms.get(i).copied().unwrap_or(1.0);
            self.senders()?.index(picture, norm, vector, row)?;
        }
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), EngineError> {
        self.index()?;
        ids.iter().try_for_each(|id| self.senders()?.delete(id))
    }

    fn commit(&mut self) -> Result<u64, EngineError> {
        let name = self.index()?.owned.name.clone();
        if let Some(senders) = self.senders.take() {
            let counts = senders.finish()?;
            self.sent.add(counts);
        }
        self.client.call::<Value>(Method::Post, &format!("{name}/_refresh"), None)?;
        let (documents, with_vector) = self.count(&name)?;
        if documents != with_vector {
            return Err(self.client.failed(format!(
                "index {name} has {documents} documents, of which {} have no vector",
                documents - with_vector
            )));
        }
        Ok(documents)
    }

    fn arms(&self) -> Vec<&dyn Searcher> {
        let mut arms: Vec<&dyn Searcher> = vec![self];
        arms.extend(self.arms.iter().map(|arm| arm as &dyn Searcher));
        arms
    }

    fn footprint(&self) -> Footprint {
        let disk = self.index.as_ref().and_then(|index| self.indices.bytes(&index.owned.name));
        Footprint { memory: None, disk }
    }

    fn as_server(&mut self) -> Option<&mut dyn Server> {
        Some(self)
    }
}

impl Server for Elastic {
    fn preflight(&mut self) -> Result<Vec<String>, EngineError> {
        let version = self.version()?;
        preflight::check(&self.client, &self.config, version)
    }

    fn prepare(&mut self, source: &Source) -> Result<Option<Standing>, EngineError> {
        self.version()?;
        self.hold_lock()?;
        self.indices.check_alias()?;
        self.indices.lift_block()?;
        let shape = indices::shape(&self.config);
        let fits = |index: &&Owned| {
            let (meta, from) = (&index.meta, &index.meta.source);
            meta.state != State::Loading
                && meta.shape == shape
                && (&from.fingerprint, from.dim, &from.table)
                    == (&source.fingerprint, source.dim, &source.table)
        };
        let ours = self.indices.ours()?;
        let mut fitting = Vec::new();
        for index in ours.iter().rev().filter(fits) {
            match self.count(&index.name)? {
                (found, _) if found == index.meta.documents => fitting.push(index),
                (found, _) => tracing::warn!(
                    "index {} holds {found} documents, {} when it was loaded: somebody changed it, so the load begins anew",
                    index.name,
                    index.meta.documents
                ),
            }
        }
        let at_version = fitting.iter().filter(|index| index.meta.source.version == source.version);
        // The live one first: what already serves needs no promotion.
        let at_version = at_version.max_by_key(|index| index.live);
        // What was rejected is tried again, so such an index is no base for changes.
        let live =
            fitting.iter().find(|index| index.live && self.config.incremental && index.meta.rejected == 0);
        let can_copy = dialect::can_copy(&self.config);
        if live.is_some() && at_version.is_none() && !can_copy {
            tracing::info!(
                "{} cannot copy an index without a graph, so everything is loaded; {} = {{}} would make one",
                self.config.product,
                self.config.product.key("knn")
            );
        }
        let standing = at_version.or(live.filter(|_| can_copy));
        self.indices.clear_unpromoted(standing.map(|index| index.name.as_str()))?;
        Ok(standing.map(|index| Standing {
            index: index.name.clone(),
            version: index.meta.source.version,
            live: index.live,
            rejected: index.meta.rejected,
        }))
    }

    fn reuse(&mut self, standing: &Standing) -> Result<u64, EngineError> {
        let owned = self.find(&standing.index)?;
        let source = owned.meta.source.clone();
        let name = owned.name.clone();
        self.use_index(owned, &source, false);
        Ok(self.count(&name)?.0)
    }

    fn copy_live(&mut self, standing: &Standing, source: &Source) -> Result<(), EngineError> {
        self.drop_half_made()?;
        self.hold_lock()?.check()?;
        let live = self.find(&standing.index)?;
        let made = self.indices.copy(&self.config, &live, source)?;
        self.use_index(made, source, true);
        Ok(())
    }

    fn create_for(&mut self, source: &Source) -> Result<(), EngineError> {
        if source.dim == 0 {
            return Err(self.client.failed("vectors need at least one number"));
        }
        self.drop_half_made()?;
        let version = self.version()?;
        self.hold_lock()?.check()?;
        self.sent = BulkCounts::default();
        self.next_row.store(0, Ordering::Relaxed);
        let made = self.indices.create(&self.config, version, source)?;
        self.use_index(made, source, true);
        Ok(())
    }

    fn sent(&self) -> &BulkCounts {
        &self.sent
    }

    fn vectors(&self, ids: &[String]) -> Result<Vec<Option<Vec<f32>>>, EngineError> {
        #[derive(Deserialize)]
        struct Answer {
            docs: Vec<Document>,
        }
        #[derive(Deserialize)]
        struct Document {
            #[serde(rename = "_source")]
            source: Option<HashMap<String, Box<RawValue>>>,
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let field = self.config.layout.vector();
        let hidden = match self.version {
            Some(version) if version.hides_vectors() => "&_source_exclude_vectors=false",
            _ => "",
        };
        let path = format!("{}/_mget?_source_includes={field}{hidden}", self.index()?.owned.name);
        let documents: Vec<String> = ids.iter().map(|id| document_id(id)).collect();
        let answer: Answer = self.client.call(Method::Post, &path, Some(json!({ "ids": documents })))?;
        if answer.docs.len() != ids.len() {
            return Err(self.client.failed(format!(
                "{} documents were asked for, {} came",
                ids.len(),
                answer.docs.len()
            )));
        }
        answer
            .docs
            .into_iter()
            .map(|document| match document.source.and_then(|mut source| source.remove(field)) {
                None => Ok(None),
                Some(vector) => read_vector(vector.get())
                    .map(Some)
                    .ok_or_else(|| self.client.failed("a vector came back as neither numbers nor base64")),
            })
            .collect()
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        let Some(index) = self.index.as_ref().filter(|index| index.half_made) else { return Ok(()) };
        if let Some(lock) = &self.lock {
            lock.check()?;
        }
        self.indices.check_same(&index.owned)?;
        let name = index.owned.name.clone();
        let counts = (self.count(&name)?.0, self.sent.rejected.len() as u64);
        let Some(index) = self.index.as_mut() else { return Ok(()) };
        self.indices.finish(&self.config, &index.owned, &index.source, counts)?;
        index.half_made = false;
        Ok(())
    }

    fn promote(&mut self) -> Result<String, EngineError> {
        let (name, alias) = (self.index()?.owned.name.clone(), self.config.alias.clone());
        let live = self.indices.check_alias()?;
        if live.as_deref() == Some(&name) {
            // A run that was killed right after it moved the alias has done neither.
            self.hold_lock()?.check()?;
            self.indices.mark(&name, State::Promoted)?;
            self.indices.prune(self.config.keep)?;
            return Ok(format!("alias {alias} stands for {name} already"));
        }
        self.hold_lock()?.check()?;
        self.indices.check_same(&self.index()?.owned)?;
        if let Some(live) = &live {
            // So it is kept for a rollback, also where a killed run had not come to that.
            self.indices.mark(live, State::Promoted)?;
        }
        self.indices.swap(live.as_deref(), &name)?;
        self.indices.mark(&name, State::Promoted)?;
        let gone = self.indices.prune(self.config.keep)?;
        let before = live.map_or_else(|| "nothing before it".to_owned(), |live| format!("{live} before it"));
        let pruned = if gone.is_empty() { String::new() } else { format!("; removed {}", gone.join(", ")) };
        Ok(format!("alias {alias} now stands for {name}, {before}{pruned}"))
    }

    fn discard(&mut self) -> Result<(), EngineError> {
        self.senders = None;
        let Some(index) = self.index.take() else { return Ok(()) };
        if self.indices.behind_alias()?.contains(&index.owned.name) {
            return Ok(());
        }
        self.indices.delete(&index.owned.name)
    }

    fn rollback(&mut self) -> Result<String, EngineError> {
        let alias = self.config.alias.clone();
        self.version()?;
        self.hold_lock()?;
        let live = self.indices.check_alias()?;
        let ours = self.indices.ours()?;
        let is_before = |index: &&Owned| match ours.iter().find(|index| index.live) {
            Some(live) => (index.created, &index.name) < (live.created, &live.name),
            None => true,
        };
        let mut promoted = ours.iter().filter(|index| !index.live && index.meta.state == State::Promoted);
        let before = promoted.rfind(is_before).ok_or_else(|| {
            EngineError::Usage(format!(
                "there is no earlier index of alias {alias} to go back to; {} says how many stay",
                self.config.product.key("keep")
            ))
        })?;
        self.hold_lock()?.check()?;
        self.indices.swap(live.as_deref(), &before.name)?;
        if let Some(live) = &live {
            self.indices.mark(live, State::Complete)?;
        }
        let after = live.unwrap_or_else(|| "nothing".to_owned());
        Ok(format!("alias {alias} stands for {} again, and not for {after}", before.name))
    }

    fn attach(&mut self, fingerprint: &str, dim: usize) -> Result<(), EngineError> {
        self.version()?;
        let alias = &self.config.alias;
        let live = self.indices.check_alias()?.ok_or_else(|| {
            EngineError::Usage(format!(
                "there is no alias {alias} at {} yet; run the pipeline first",
                self.client.address()
            ))
        })?;
        let owned = self.find(&live)?;
        let from = &owned.meta.source;
        // The original's index knows no fingerprint.
        if !from.fingerprint.is_empty() && from.fingerprint != fingerprint || from.dim != dim {
            return Err(EngineError::Usage(format!(
                "index {live} holds vectors made with other settings (fingerprint {} of {} numbers, here {fingerprint} of {dim}); \
                 run the pipeline to load it anew",
                from.fingerprint, from.dim
            )));
        }
        let source = from.clone();
        self.use_index(owned, &source, false);
        Ok(())
    }

    fn labels(&self, ids: &[String]) -> Result<BTreeMap<String, String>, EngineError> {
        if ids.is_empty() || self.config.layout != Layout::Imagedex {
            return Ok(BTreeMap::new());
        }
        let path = format!("{}/_mget?_source_includes=label", self.index()?.owned.name);
        let documents: Vec<String> = ids.iter().map(|id| document_id(id)).collect();
        let answer: Value = self.client.call(Method::Post, &path, Some(json!({ "ids": documents })))?;
        let label = |(id, document): (&String, &Value)| {
            Some((id.clone(), document["_source"]["label"].as_str()?.to_owned()))
        };
        Ok(ids.iter().zip(answer["docs"].as_array().into_iter().flatten()).filter_map(label).collect())
    }

    fn search_filtered(&self, query: &Query, filters: &[Filter]) -> Result<Vec<Hit>, EngineError> {
        Ok(self.exact()?.ask(&[*query], filters)?.pop().unwrap_or_default())
    }
}

impl Elastic {
    fn find(&self, name: &str) -> Result<Owned, EngineError> {
        let found = self.indices.ours()?.into_iter().find(|index| index.name == name);
        found.ok_or_else(|| {
            self.client
                .failed(format!("index {name} is not one that imagedex made for alias {}", self.config.alias))
        })
    }
}

/// A vector as the source of a document has it. Each number is parsed from its own text: by way of `f64` it could be rounded
/// twice, and seem to differ.
fn read_vector(json: &str) -> Option<Vec<f32>> {
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return bulk::decode_base64(&text);
    }
    let numbers: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    numbers.iter().map(|number| number.get().parse().ok()).collect()
}

/// One way to search one index.
#[derive(Debug)]
pub struct View {
    name: String,
    arm: Arm,
    client: Client,
    index: String,
    layout: Layout,
    /// As in [`ElasticConfig`].
    concurrent_searches: Option<usize>,
    non_negative: bool,
    dim: usize,
}

impl View {
    /// One request with all queries.
    fn ask(&self, queries: &[Query], filters: &[Filter]) -> Result<Vec<Vec<Hit>>, EngineError> {
        #[derive(Deserialize)]
        struct Answer {
            responses: Vec<Found>,
        }
        let mut body = String::new();
        for query in queries {
            check(query, self.dim)?;
            body += "{\"allow_partial_search_results\":false}\n";
            body += &dialect::search(
                self.client.product(),
                &self.arm,
                self.layout,
                query,
                filters,
                self.non_negative,
            );
            body += "\n";
        }
        let mut path = format!(
            "{}/_msearch?filter_path=error,responses.status,responses.error,responses.timed_out,responses.hits.hits.sort",
            self.index
        );
        if let Some(most) = self.concurrent_searches {
            path += &format!("&max_concurrent_searches={most}");
        }
        let (body, since, mut attempt) = (Bytes::from(body), Instant::now(), 0);
        let answer = loop {
            let reply = self.client.answer(Method::Post, &path, Kind::Lines, Some(body.clone()))?;
            if let Some(error) = reply.error() {
                return Err(self.client.failed(format!("a search was refused: {error}")));
            }
            let answer: Answer = reply.parse()?;
            // A server that starts has its shards a little later than its answers.
            let is_passing = |found: &&Found| matches!(found.status, Some(429 | 502..=504));
            match answer.responses.iter().find(is_passing) {
                Some(found) => {
                    let error = found.error.as_ref().map(ToString::to_string).unwrap_or_default();
                    attempt += 1;
                    self.client.wait(attempt, since, &format!("a search was not answered: {error}"))?;
                }
                None => break answer,
            }
        };
        if answer.responses.len() != queries.len() {
            return Err(self.client.failed(format!(
                "{} searches were sent, {} answered",
                queries.len(),
                answer.responses.len()
            )));
        }
        let hits = |(query, found): (&Query, Found)| {
            if let Some(error) = found.error {
                return Err(self.client.failed(format!("a search by {} was refused: {error}", query.metric)));
            }
            if found.timed_out || found.status.is_some_and(|status| status != 200) {
                return Err(self
                    .client
                    .failed(format!("a search by {} was not done on every shard", query.metric)));
            }
            let score = |score| self.arm.score(query.metric, score, self.non_negative);
            let found =
                found.hits.hits.into_iter().map(|hit| Hit { id: hit.sort.1, score: score(hit.sort.0) });
            Ok(found.collect())
        };
        queries.iter().zip(answer.responses).map(hits).collect()
    }
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

impl Searcher for View {
    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, metric: Metric) -> bool {
        self.arm.supports(metric)
    }

    fn is_exact(&self) -> bool {
        self.arm == Arm::Exact
    }

    fn max_k(&self) -> usize {
        dialect::MOST_HITS
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        Ok(self.ask(&[*query], &[])?.pop().unwrap_or_default())
    }

    fn search_many(&self, queries: &[Query]) -> Result<Vec<Vec<Hit>>, EngineError> {
        let most_k = queries.iter().map(|query| query.k).max().unwrap_or(1).clamp(1, dialect::MOST_HITS);
        let at_once = (HITS_AT_ONCE / most_k).clamp(1, SEARCHES_AT_ONCE);
        let mut found = Vec::with_capacity(queries.len());
        for chunk in queries.chunks(at_once) {
            if crate::interrupt::is_set() {
                return Err(EngineError::Interrupted);
            }
            found.extend(self.ask(chunk, &[])?);
        }
        Ok(found)
    }
}
