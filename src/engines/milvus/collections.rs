//! The collections behind an alias: which are ours, made, promoted, pruned, rolled back.
//!
//! A load makes one collection for each metric; together they are a [`Load`]. A collection is ours if its property says so, for
//! this alias. Any other is never written to and never dropped, whatever it is called.

use std::collections::BTreeMap;

use chrono::Utc;
use milvus::v2::prelude::{
    AlterAliasRequest, AlterCollectionPropertiesRequest, CreateAliasRequest, CreateCollectionRequest,
    CreateIndexRequest, DescribeAliasRequest, DescribeCollectionRequest, DropCollectionRequest, IndexParam,
    IndexType, ListCollectionsRequest, MetricType, ReleaseCollectionRequest,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, failed};
use super::rows::{VECTOR, schema};
use super::{IndexKind, MilvusConfig};
use crate::engines::{EngineError, Source};
use crate::metric::Metric;

/// Milvus' numbers for a collection and for an alias that are not there.
pub const NOT_FOUND: i32 = 100;
const NO_ALIAS: i32 = 1600;
/// The property with the [`Meta`].
const PROPERTY: &str = "imagedex.load";

/// What a collection of ours says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub alias: String,
    /// The same for all collections of a load: the time at which it began.
    pub load: String,
    pub metric: Metric,
    pub state: State,
    pub source: Source,
    /// What shapes the collections: another shape is another load.
    pub shape: Value,
    /// Pictures of the source that were refused.
    pub rejected: u64,
    /// Rows when the load was complete: another number later means that somebody changed it.
    pub documents: u64,
    /// The program's version.
    pub imagedex: String,
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being filled, or left behind by a run that was killed.
    Loading,
    /// Filled and verified; no run has promoted it, or a rollback took it back.
    Complete,
    /// Users search it, or did until the next one was promoted: what a rollback can go back to.
    Promoted,
}

/// The collections of one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The time at which it began, UTC, to the millisecond.
    pub id: String,
    /// Name and meta of each metric's collection.
    pub collections: BTreeMap<Metric, (String, Meta)>,
    /// Whether the alias stands for its first metric's collection.
    pub live: bool,
}

impl Load {
    /// What is true of all its collections: the state is the least of them.
    pub fn meta(&self) -> Option<&Meta> {
        let rank = |state: State| match state {
            State::Loading => 0,
            State::Complete => 1,
            State::Promoted => 2,
        };
        self.collections.values().map(|(_, meta)| meta).min_by_key(|meta| rank(meta.state))
    }

    pub fn state(&self) -> State {
        self.meta().map_or(State::Loading, |meta| meta.state)
    }

    pub fn names(&self) -> BTreeMap<Metric, String> {
        self.collections.iter().map(|(metric, (name, _))| (*metric, name.clone())).collect()
    }
}

/// The collections behind one alias.
#[derive(Debug, Clone)]
pub struct Collections {
    client: Client,
    config: MilvusConfig,
}

impl Collections {
    pub fn new(client: &Client, config: &MilvusConfig) -> Collections {
        Collections { client: client.clone(), config: config.clone() }
    }

    /// The same for what must be done even when the run was asked to end.
    pub fn for_clean_up(&self) -> Collections {
        Collections { client: self.client.for_clean_up(), config: self.config.clone() }
    }

    /// What users search a metric by.
    pub fn alias(&self, metric: Metric) -> String {
        let alias = &self.config.alias;
        if self.config.metrics.first() == Some(&metric) { alias.clone() } else { format!("{alias}_{metric}") }
    }

    /// Our loads of this alias, the oldest first.
    pub fn ours(&self) -> Result<Vec<Load>, EngineError> {
        let names = self.client.call("its collections were not told", |client| async move {
            client.list_collections(ListCollectionsRequest::builder().build()?).await
        })?;
        let mut loads: BTreeMap<String, Load> = BTreeMap::new();
        let live = self.behind(&self.config.alias)?;
        let prefix = format!("{}_", self.config.alias);
        for name in names.collection_names().iter().filter(|name| name.starts_with(&prefix)) {
            let Some(meta) = self.meta(name)?.filter(|meta| meta.alias == self.config.alias) else {
                continue;
            };
            let load = loads.entry(meta.load.clone()).or_insert_with(|| Load {
                id: meta.load.clone(),
                collections: BTreeMap::new(),
                live: false,
            });
            load.live |= live.as_ref() == Some(name);
            load.collections.insert(meta.metric, (name.clone(), meta));
        }
        Ok(loads.into_values().collect())
    }

    /// What a collection says of itself; nothing where it is not ours, or gone.
    fn meta(&self, name: &str) -> Result<Option<Meta>, EngineError> {
        let found = self.client.ask("a collection was not described", |client| async move {
            client
                .describe_collection(DescribeCollectionRequest::builder().collection_name(name).build()?)
                .await
        })?;
        match found {
            Ok(found) => {
                let property = found.description().get_properties().get(PROPERTY);
                Ok(property.and_then(|meta| serde_json::from_str(meta).ok()))
            }
            Err(refusal) if refusal.code() == NOT_FOUND => Ok(None),
            Err(refusal) => Err(failed(format!("collection {name}: {}", refusal.reason()))),
        }
    }

    /// The collection that an alias stands for.
    pub fn behind(&self, alias: &str) -> Result<Option<String>, EngineError> {
        let found = self.client.ask("an alias was not described", |client| async move {
            client.describe_alias(DescribeAliasRequest::builder().alias(alias).build()?).await
        })?;
        match found {
            Ok(found) => Ok(Some(found.collection_name().to_owned())),
            Err(refusal) if refusal.code() == NO_ALIAS => Ok(None),
            Err(refusal) => Err(failed(format!("alias {alias}: {}", refusal.reason()))),
        }
    }

    /// Refuses aliases that cannot be moved: a collection of that name, or an alias over one that is not ours. Returns what each
    /// stands for.
    pub fn check_aliases(&self) -> Result<BTreeMap<Metric, Option<String>>, EngineError> {
        let mut behind = BTreeMap::new();
        for &metric in &self.config.metrics {
            let alias = self.alias(metric);
            let stands_for = self.behind(&alias)?;
            match &stands_for {
                Some(collection) => {
                    if self.meta(collection)?.is_none_or(|meta| meta.alias != self.config.alias) {
                        return Err(failed(format!(
                            "alias {alias} stands for {collection}, which imagedex did not make and could not go back to; name \
                             another alias in load.milvus.alias, or drop this one, and run again"
                        )));
                    }
                }
                None => self.check_no_collection(&alias)?,
            }
            behind.insert(metric, stands_for);
        }
        Ok(behind)
    }

    fn check_no_collection(&self, name: &str) -> Result<(), EngineError> {
        let found = self.client.ask("a collection was not described", |client| async move {
            client
                .describe_collection(DescribeCollectionRequest::builder().collection_name(name).build()?)
                .await
        })?;
        match found {
            Ok(_) => Err(failed(format!(
                "a collection, not an alias, is called {name}; name another one in load.milvus.alias, or rename that collection, and \
                 run again"
            ))),
            Err(refusal) if refusal.code() == NOT_FOUND => Ok(()),
            Err(refusal) => Err(failed(format!("collection {name}: {}", refusal.reason()))),
        }
    }

    /// What shapes the collections beside their vectors.
    pub fn shape(&self) -> Value {
        let config = &self.config;
        match config.index {
            IndexKind::Flat => json!({ "index": config.index }),
            IndexKind::Hnsw => {
                json!({ "index": config.index, "m": config.m, "ef_construction": config.ef_construction })
            }
        }
    }

    /// Makes empty collections beside those that users search.
    pub fn create(&self, source: &Source) -> Result<BTreeMap<Metric, String>, EngineError> {
        let load = Utc::now().format("%Y%m%dt%H%M%S%3f").to_string();
        let mut made = BTreeMap::new();
        for &metric in &self.config.metrics {
            let name = format!("{}_{metric}_{load}", self.config.alias);
            let meta = Meta {
                alias: self.config.alias.clone(),
                load: load.clone(),
                metric,
                state: State::Loading,
                source: source.clone(),
                shape: self.shape(),
                rejected: 0,
                documents: 0,
                imagedex: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let created = self.create_one(&name, metric, source.dim, &meta);
            made.insert(metric, name);
            if let Err(error) = created {
                // Whatever was made; the first error is the one to tell.
                let _ = self.for_clean_up().drop_all(made.values());
                return Err(error);
            }
        }
        Ok(made)
    }

    fn create_one(&self, name: &str, metric: Metric, dim: usize, meta: &Meta) -> Result<(), EngineError> {
        let property = json!(meta).to_string();
        self.client.call(&format!("collection {name} could not be made"), |client| {
            let property = property.clone();
            async move {
                let request = CreateCollectionRequest::builder()
                    .collection_name(name)
                    .description("pictures, made by imagedex")
                    .schema(schema(dim))
                    .num_shards(1)
                    .properties([(PROPERTY.to_owned(), property)].into());
                client.create_collection(request.build()?).await
            }
        })?;
        let index = IndexParam::new().field_name(VECTOR).index_name(VECTOR).metric_type(metric_type(metric)?);
        let index = match self.config.index {
            IndexKind::Flat => index.index_type(IndexType::Flat),
            IndexKind::Hnsw => index.index_type(IndexType::Hnsw).extra_params(
                [
                    ("M".to_owned(), self.config.m.to_string()),
                    ("efConstruction".to_owned(), self.config.ef_construction.to_string()),
                ]
                .into(),
            ),
        };
        self.client.call(&format!("the index of collection {name} could not be made"), |client| {
            let index = index.clone();
            async move {
                let request = CreateIndexRequest::builder().collection_name(name).index_param(index);
                // Not waited for here: the client's way of waiting asks for what Milvus Lite has not.
                client.create_index(request.sync(false).build()?).await
            }
        })
    }

    /// Notes how far a load has come.
    pub fn mark(
        &self,
        names: &BTreeMap<Metric, String>,
        change: impl Fn(&mut Meta),
    ) -> Result<(), EngineError> {
        for name in names.values() {
            let mut meta = self.meta(name)?.ok_or_else(|| {
                failed(format!("collection {name} was dropped or replaced by somebody else meanwhile"))
            })?;
            let before = meta.clone();
            change(&mut meta);
            if meta == before {
                continue;
            }
            let property = json!(meta).to_string();
            self.client.call(&format!("collection {name} could not be marked"), |client| {
                let property = property.clone();
                async move {
                    let request = AlterCollectionPropertiesRequest::builder().collection_name(name);
                    client.alter_collection_properties(request.property(PROPERTY, property).build()?).await
                }
            })?;
        }
        Ok(())
    }

    /// Lets each metric's alias stand for its collection. Each moves in one step; where one of them fails those before it go back.
    pub fn swap(
        &self,
        from: &BTreeMap<Metric, Option<String>>,
        to: &BTreeMap<Metric, String>,
    ) -> Result<(), EngineError> {
        // The first metric's alias says which load is live, so it moves last.
        let order = self.config.metrics.iter().rev();
        let mut moved: Vec<Metric> = Vec::new();
        for &metric in order {
            let (Some(before), Some(after)) = (from.get(&metric), to.get(&metric)) else { continue };
            if let Err(error) = self.point(&self.alias(metric), before.as_deref(), after) {
                for metric in moved {
                    if let Some(Some(before)) = from.get(&metric)
                        && let Err(error) = self.point(&self.alias(metric), Some(before), before)
                    {
                        tracing::warn!("alias {} was not put back: {error}", self.alias(metric));
                    }
                }
                return Err(error);
            }
            moved.push(metric);
        }
        Ok(())
    }

    fn point(&self, alias: &str, from: Option<&str>, to: &str) -> Result<(), EngineError> {
        let answer = match from {
            None => self.client.ask("an alias was not made", |client| async move {
                let request = CreateAliasRequest::builder().alias(alias).collection_name(to);
                client.create_alias(request.build()?).await
            })?,
            Some(_) => self.client.ask("an alias was not moved", |client| async move {
                let request = AlterAliasRequest::builder().alias(alias).collection_name(to);
                client.alter_alias(request.build()?).await
            })?,
        };
        // What stands there now decides: the answer to a first try may have been lost.
        let behind = self.behind(alias)?;
        if behind.as_deref() == Some(to) {
            return Ok(());
        }
        let reason = match answer {
            Err(refusal) => refusal.reason().to_owned(),
            Ok(()) => "it was changed by somebody else".to_owned(),
        };
        let behind = behind.as_deref().unwrap_or("nothing");
        Err(failed(format!("alias {alias} was not moved to {to}: {reason}; it stands for {behind}")))
    }

    /// Drops collections of ours. One that an alias stands for stays: Milvus would drop the alias with it.
    pub fn drop_all<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), EngineError> {
        let mut live = Vec::new();
        for &metric in &self.config.metrics {
            live.extend(self.behind(&self.alias(metric))?);
        }
        for name in names.filter(|name| !live.contains(name)) {
            self.client.call(&format!("collection {name} was not dropped"), |client| async move {
                client.drop_collection(DropCollectionRequest::builder().collection_name(name).build()?).await
            })?;
        }
        Ok(())
    }

    /// Drops what is not wanted any more: of the loads that users searched before, all but the newest `keep`, and all that were never
    /// promoted or were taken back. Those that stay give back the server's memory.
    pub fn prune(&self) -> Result<Vec<String>, EngineError> {
        let ours = self.ours()?;
        let gone = unwanted(&ours, self.config.keep);
        for load in ours.iter().filter(|load| gone.contains(&load.id)) {
            self.drop_all(load.names().values())?;
        }
        for load in ours.iter().filter(|load| !load.live && !gone.contains(&load.id)) {
            for name in load.names().values() {
                self.client.call(&format!("collection {name} was not released"), |client| async move {
                    let request = ReleaseCollectionRequest::builder().collection_name(name);
                    client.release_collection(request.build()?).await
                })?;
            }
        }
        Ok(gone)
    }

    /// Drops half-made loads, and those but `wanted` that no run has promoted. Only with the lock in hand: no other run is at work
    /// then.
    pub fn clear_unpromoted(&self, wanted: Option<&str>) -> Result<(), EngineError> {
        for load in self.ours()?.iter().filter(|load| !load.live && Some(load.id.as_str()) != wanted) {
            let why = match load.state() {
                State::Loading => "a run that was cut off has left it",
                State::Complete => "no run has promoted it",
                State::Promoted => continue,
            };
            tracing::info!("removing load {} of {}: {why}", load.id, self.config.alias);
            self.drop_all(load.names().values())?;
        }
        Ok(())
    }
}

/// Milvus' name of a metric.
fn metric_type(metric: Metric) -> Result<MetricType, EngineError> {
    match metric {
        Metric::Cosine => Ok(MetricType::Cosine),
        Metric::DotProduct => Ok(MetricType::Ip),
        Metric::L2 => Ok(MetricType::L2),
        Metric::L1 => Err(EngineError::Usage("Milvus has no l1".to_owned())),
    }
}

/// The loads to drop, of ours from the oldest to the newest.
fn unwanted(ours: &[Load], keep: usize) -> Vec<String> {
    let others = || ours.iter().filter(|load| !load.live);
    let unpromoted = others().filter(|load| load.state() != State::Promoted);
    let promoted: Vec<&Load> = others().filter(|load| load.state() == State::Promoted).collect();
    let old = &promoted[..promoted.len().saturating_sub(keep)];
    unpromoted.chain(old.iter().copied()).map(|load| load.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_as_far_as_the_least_of_its_collections() {
        let load = |id: &str, live: bool, states: [State; 2]| {
            let metrics = [Metric::Cosine, Metric::L2];
            let collection = |(metric, state): (Metric, State)| {
                let meta = Meta {
                    alias: "images".to_owned(),
                    load: id.to_owned(),
                    metric,
                    state,
                    source: Source::default(),
                    shape: Value::Null,
                    rejected: 0,
                    documents: 0,
                    imagedex: String::new(),
                };
                (metric, (format!("images_{metric}_{id}"), meta))
            };
            Load {
                id: id.to_owned(),
                collections: metrics.into_iter().zip(states).map(collection).collect(),
                live,
            }
        };
        let ours = [
            load("a", false, [State::Promoted, State::Promoted]),
            load("b", false, [State::Promoted, State::Loading]),
            load("c", true, [State::Promoted, State::Promoted]),
            load("d", false, [State::Complete, State::Promoted]),
            load("e", false, [State::Promoted, State::Promoted]),
        ];
        assert_eq!(unwanted(&ours, 1), ["b", "d", "a"]);
        assert_eq!(unwanted(&ours, 0), ["b", "d", "a", "e"]);
        assert_eq!(unwanted(&[], 1), Vec::<String>::new());
    }
}
