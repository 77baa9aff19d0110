//! The indices behind an alias: which are ours, made, copied, promoted, pruned, rolled back.
//!
//! An index is ours if its mapping's `_meta` says so, for this alias. Any other is never written to and never deleted, whatever
//! it is called.

use std::collections::BTreeMap;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, Kind, Method};
use super::config::ElasticConfig;
use super::dialect::{self, Version};
use crate::engines::{EngineError, Source};

/// What the `_meta` of an index of ours says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub alias: String,
    pub state: State,
    pub source: Source,
    /// What shapes the index: only an index with the same shape can be copied and changed.
    pub shape: Value,
    /// Pictures of the source that the server refused.
    pub rejected: u64,
    /// Documents when the load was complete: another number later means that somebody changed it.
    #[serde(default)]
    pub documents: u64,
    /// The program's version.
    pub imagedex: String,
}

/// How far the load of an index has come.
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

/// An index of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    pub name: String,
    /// It differs where an index was deleted and made again under its name.
    pub uuid: String,
    /// Milliseconds since 1970.
    pub created: u64,
    pub live: bool,
    /// Nobody can write to it: so it is while it is copied.
    pub is_blocked: bool,
    pub meta: Meta,
}

/// `GET` of an index, the part that is read.
#[derive(Debug, Deserialize)]
struct Description {
    #[serde(default)]
    aliases: BTreeMap<String, Value>,
    #[serde(default)]
    mappings: Value,
    #[serde(default)]
    settings: Value,
}

/// The indices behind one alias.
#[derive(Debug, Clone)]
pub struct Indices {
    client: Client,
    alias: String,
}

impl Indices {
    pub fn new(client: &Client, alias: &str) -> Indices {
        Indices { client: client.clone(), alias: alias.to_owned() }
    }

    /// Our indices of this alias, the oldest first.
    pub fn ours(&self) -> Result<Vec<Owned>, EngineError> {
        let path = format!("{}-*?expand_wildcards=all&allow_no_indices=true", self.alias);
        let all: BTreeMap<String, Description> = self.client.find(&path)?.unwrap_or_default();
        let mut ours: Vec<Owned> = all
            .into_iter()
            .filter_map(|(name, index)| {
                let mut meta: Meta =
                    serde_json::from_value(index.mappings["_meta"]["imagedex"].clone()).ok()?;
                // A copy says at first what the live index says; a run that is killed then leaves it so.
                if index.aliases.contains_key(&dialect::loading_alias(&name)) {
                    meta.state = State::Loading;
                }
                let settings = &index.settings["index"];
                (meta.alias == self.alias).then(|| Owned {
                    name,
                    uuid: settings["uuid"].as_str().unwrap_or_default().to_owned(),
                    created: settings["creation_date"].as_str().and_then(|ms| ms.parse().ok()).unwrap_or(0),
                    live: index.aliases.contains_key(&self.alias),
                    is_blocked: settings["blocks"]["write"] == "true",
                    meta,
                })
            })
            .collect();
        ours.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(ours)
    }

    /// The indices that the alias stands for; none where there is no such alias.
    pub fn behind_alias(&self) -> Result<Vec<String>, EngineError> {
        let found: Option<BTreeMap<String, Value>> = self.client.find(&format!("_alias/{}", self.alias))?;
        Ok(found.unwrap_or_default().into_keys().collect())
    }

    /// Refuses an alias that cannot be moved: an index of that name, an alias over several indices, or over one that is not ours.
    pub fn check_alias(&self) -> Result<Option<String>, EngineError> {
        let (alias, key) = (&self.alias, self.client.product().key("alias"));
        let behind = self.behind_alias()?;
        if let [index] = behind.as_slice()
            && !self.ours()?.iter().any(|ours| ours.name == *index)
        {
            return Err(self.client.failed(format!(
                "alias {alias} stands for {index}, which imagedex did not make and could not go back to; name another alias in \
                 {key}, or take this one away from it (POST _aliases), and run again"
            )));
        }
        if behind.len() > 1 {
            return Err(self.client.failed(format!(
                "alias {alias} stands for several indices ({}); remove it from all but one, then run again",
                behind.join(", ")
            )));
        }
        let found: Option<BTreeMap<String, Description>> =
            if behind.is_empty() { self.client.find(alias)? } else { None };
        if found.is_some_and(|found| found.contains_key(alias)) {
            return Err(self.client.failed(format!(
                "an index, not an alias, is called {alias}; name another one in {key}, or move its documents \
                 away (POST _reindex), delete it, and run again"
            )));
        }
        Ok(behind.into_iter().next())
    }

    /// Makes an empty index beside the live one.
    pub fn create(
        &self,
        config: &ElasticConfig,
        version: Version,
        source: &Source,
    ) -> Result<Owned, EngineError> {
        let name = self.new_name(source);
        let meta = self.meta(config, State::Loading, source);
        let body = dialect::create(config, version, &name, source.dim, &json!(meta));
        self.make(Method::Put, &name, &body)
    }

    /// Makes a copy of the live index beside it: files are linked, not copied, where the file system can.
    pub fn copy(&self, config: &ElasticConfig, live: &Owned, source: &Source) -> Result<Owned, EngineError> {
        let name = self.new_name(source);
        // The server copies only what nobody can change meanwhile.
        self.block_writes(&live.name, true)?;
        let body = json!({
            "aliases": { dialect::loading_alias(&name): {} },
            "settings": { "index": {
                "blocks.write": null,
                "number_of_replicas": 0,
                "auto_expand_replicas": false,
                "refresh_interval": "-1",
            } },
        });
        let made = self.make(Method::Post, &format!("{}/_clone/{name}", live.name), &body);
        self.block_writes(&live.name, false)?;
        made?;
        // Until now it says that it is complete, as the live one does.
        self.set_meta(&name, &self.meta(config, State::Loading, source))?;
        self.described(&name)
    }

    fn make(&self, method: Method, path: &str, body: &Value) -> Result<Owned, EngineError> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let path = format!("{path}?wait_for_active_shards=1");
        let reply = self.client.answer(method, &path, Kind::Json, Some(body.to_string().into()))?;
        match reply.error() {
            // The name is unique: the index is the one that a lost answer was about.
            Some(error) if error.kind != "resource_already_exists_exception" => {
                Err(self.client.failed(format!("index {name} could not be made: {error}")))
            }
            // The server says yes, and puts its shards nowhere: every document would be refused.
            None if reply.parse::<Value>().is_ok_and(|answer| answer["shards_acknowledged"] == false) => {
                self.delete(name)?;
                Err(self.client.failed(format!(
                    "index {name} was made, but no node took its shards within 30 s; the disk may be past its low watermark \
                     (GET _cluster/allocation/explain says why)"
                )))
            }
            _ => self.described(name),
        }
    }

    fn described(&self, name: &str) -> Result<Owned, EngineError> {
        let found = self.ours()?.into_iter().find(|index| index.name == name);
        found.ok_or_else(|| self.client.failed(format!("index {name} was made, but is not there")))
    }

    /// Whether the index is still the one that was made.
    pub fn check_same(&self, index: &Owned) -> Result<(), EngineError> {
        match self.ours()?.iter().any(|found| found.name == index.name && found.uuid == index.uuid) {
            true => Ok(()),
            false => Err(self
                .client
                .failed(format!("index {} was deleted or replaced by somebody else meanwhile", index.name))),
        }
    }

    /// `<alias>-<time>-<first 8 of the fingerprint>`; the time is UTC, to the millisecond.
    fn new_name(&self, source: &Source) -> String {
        let time = Utc::now().format("%Y%m%dt%H%M%S%3f");
        let fingerprint: String =
            source.fingerprint.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        match fingerprint.is_empty() {
            true => format!("{}-{time}", self.alias),
            false => format!("{}-{time}-{}", self.alias, fingerprint.to_ascii_lowercase()),
        }
    }

    fn meta(&self, config: &ElasticConfig, state: State, source: &Source) -> Meta {
        Meta {
            alias: self.alias.clone(),
            state,
            source: source.clone(),
            shape: shape(config),
            rejected: 0,
            documents: 0,
            imagedex: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn set_meta(&self, index: &str, meta: &Meta) -> Result<(), EngineError> {
        let body = json!({ "_meta": { "imagedex": meta } });
        self.client.call::<Value>(Method::Put, &format!("{index}/_mapping"), Some(body))?;
        Ok(())
    }

    fn block_writes(&self, index: &str, block: bool) -> Result<(), EngineError> {
        let body = json!({ "index": { "blocks.write": block.then_some(true) } });
        self.client.call::<Value>(Method::Put, &format!("{index}/_settings"), Some(body))?;
        Ok(())
    }

    /// Lets the live index be written to again, where a run that was killed while it copied it has left it blocked. Only with the
    /// lock in hand.
    pub fn lift_block(&self) -> Result<(), EngineError> {
        for index in self.ours()?.iter().filter(|index| index.live && index.is_blocked) {
            tracing::info!("{} can be written to again: a run that was cut off has blocked it", index.name);
            self.block_writes(&index.name, false)?;
        }
        Ok(())
    }

    /// Gives a loaded index the settings that it is to keep, and writes down what it holds.
    pub fn finish(
        &self,
        config: &ElasticConfig,
        index: &Owned,
        source: &Source,
        (documents, rejected): (u64, u64),
    ) -> Result<(), EngineError> {
        let path = format!("{}/_alias/{}", index.name, dialect::loading_alias(&index.name));
        self.client.call::<Value>(Method::Delete, &path, None)?;
        let path = format!("{}/_settings", index.name);
        self.client.call::<Value>(Method::Put, &path, Some(dialect::finished_settings(config)))?;
        let path = format!("_cluster/health/{}?wait_for_status=yellow&timeout=30s", index.name);
        let health: Value = self.client.call(Method::Get, &path, None)?;
        if health["status"] == "red" {
            return Err(self.client.failed(format!("index {} has shards that are on no node", index.name)));
        }
        let meta = Meta { rejected, documents, ..self.meta(config, State::Complete, source) };
        self.set_meta(&index.name, &meta)
    }

    /// Notes whether an index was promoted.
    pub fn mark(&self, name: &str, state: State) -> Result<(), EngineError> {
        match self.ours()?.into_iter().find(|index| index.name == name) {
            Some(index) if index.meta.state != state => self.set_meta(name, &Meta { state, ..index.meta }),
            _ => Ok(()),
        }
    }

    /// Bytes of an index on the server's disks, all copies together, where the user may know.
    ///
    /// Of its segments: the size in `_stats` may be ten seconds old, which for a new index is a tenth of the truth.
    pub fn bytes(&self, index: &str) -> Option<u64> {
        let path = format!("{index}/_segments?filter_path=indices.*.shards.*.segments.*.size_in_bytes");
        self.client.find(&path).ok()?.map(|found: Value| sizes(&found))
    }

    /// Deletes an index of ours.
    pub fn delete(&self, index: &str) -> Result<(), EngineError> {
        let reply = self.client.answer(Method::Delete, index, Kind::Json, None)?;
        match reply.error() {
            Some(error) if reply.status != 404 => {
                Err(self.client.failed(format!("index {index} was not deleted: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Lets the alias stand for `index` alone, in one step: there is no moment without an index behind it, or with two.
    pub fn swap(&self, from: Option<&str>, to: &str) -> Result<(), EngineError> {
        let alias = &self.alias;
        if from == Some(to) {
            return Ok(());
        }
        // Without `must_exist` a removal that finds nothing is acknowledged, and leaves two indices behind the alias.
        let remove =
            from.map(|from| json!({ "remove": { "index": from, "alias": alias, "must_exist": true } }));
        let add = json!({ "add": { "index": to, "alias": alias } });
        let actions: Vec<Value> = remove.into_iter().chain([add]).collect();
        let body = json!({ "actions": actions }).to_string();
        let reply = self.client.answer(Method::Post, "_aliases", Kind::Json, Some(body.into()))?;
        // What stands there now decides: the answer to a first try may have been lost.
        let behind = self.behind_alias()?;
        if behind == [to] {
            return Ok(());
        }
        let reason = reply
            .error()
            .map_or_else(|| "it was changed by somebody else".to_owned(), |error| error.to_string());
        Err(self.client.failed(format!(
            "alias {alias} was not moved to {to}: {reason}; it stands for {}",
            behind.join(", ")
        )))
    }

    /// Deletes what is not wanted any more: of our indices that users searched before, all but the newest `keep`, and all that were
    /// never promoted or were taken back.
    pub fn prune(&self, keep: usize) -> Result<Vec<String>, EngineError> {
        let gone = unwanted(&self.ours()?, keep);
        for name in &gone {
            self.delete(name)?;
        }
        Ok(gone)
    }

    /// Deletes half-made indices, and those but `wanted` that no run has promoted. Only with the lock in hand: no other run is at work
    /// then.
    pub fn clear_unpromoted(&self, wanted: Option<&str>) -> Result<(), EngineError> {
        for index in self.ours()?.iter().filter(|index| !index.live && Some(index.name.as_str()) != wanted) {
            let why = match index.meta.state {
                State::Loading => "a run that was cut off has left it",
                State::Complete => "no run has promoted it",
                State::Promoted => continue,
            };
            tracing::info!("removing {}: {why}", index.name);
            self.delete(&index.name)?;
        }
        Ok(())
    }
}

/// What shapes an index beside its vectors.
pub fn shape(config: &ElasticConfig) -> Value {
    // The metric and index options of the graph, but not what only searches use.
    let knn = config.knn.as_ref().map(|knn| {
        json!({ "index_options": knn.options(config.product), "metric": knn.metric, "m": knn.m, "ef_construction": knn.ef_construction })
    });
    json!({ "shards": config.shards, "knn": knn, "sparse": config.sparse, "vector": config.layout.vector() })
}

/// The names to delete, of our indices from the oldest to the newest.
fn unwanted(ours: &[Owned], keep: usize) -> Vec<String> {
    let others = || ours.iter().filter(|index| !index.live);
    let unpromoted = others().filter(|index| index.meta.state != State::Promoted);
    let promoted: Vec<&Owned> = others().filter(|index| index.meta.state == State::Promoted).collect();
    let old = &promoted[..promoted.len().saturating_sub(keep)];
    unpromoted.chain(old.iter().copied()).map(|index| index.name.clone()).collect()
}

/// Of all segments in an answer.
fn sizes(answer: &Value) -> u64 {
    match answer {
        Value::Array(copies) => copies.iter().map(sizes).sum(),
        Value::Object(below) => below
            .iter()
            .map(|(name, value)| match name.as_str() {
                "size_in_bytes" => value.as_u64().unwrap_or(0),
                _ => sizes(value),
            })
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, created: u64, state: State, live: bool) -> Owned {
        let meta = Meta {
            alias: "images".to_owned(),
            state,
            source: Source::default(),
            shape: Value::Null,
            rejected: 0,
            documents: 0,
            imagedex: String::new(),
        };
        Owned { name: name.to_owned(), uuid: String::new(), created, live, is_blocked: false, meta }
    }

    #[test]
    fn the_live_index_and_the_newest_others_are_kept() {
        let ours = [
            index("a", 1, State::Promoted, false),
            index("b", 2, State::Promoted, false),
            index("c", 3, State::Loading, false),
            index("d", 4, State::Promoted, true),
            index("e", 5, State::Complete, false),
            index("f", 6, State::Promoted, false),
        ];
        assert_eq!(unwanted(&ours, 1), ["c", "e", "a", "b"]);
        assert_eq!(unwanted(&ours, 2), ["c", "e", "a"]);
        assert_eq!(unwanted(&ours, 9), ["c", "e"]);
        assert_eq!(unwanted(&[], 0), Vec::<String>::new());
    }

    #[test]
    fn a_searchs_own_options_do_not_shape_an_index() {
        use super::super::config::KnnConfig;
        let config = |num_candidates, oversample| ElasticConfig {
            knn: Some(KnnConfig { num_candidates, oversample, ..KnnConfig::default() }),
            ..ElasticConfig::default()
        };
        assert_eq!(shape(&config(50, None)), shape(&config(500, Some(3.0))));
        assert_ne!(shape(&config(50, None)), shape(&ElasticConfig::default()));
    }
}
