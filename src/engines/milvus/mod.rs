//! Milvus, behind the feature `milvus`: its client brings a gRPC stack of its own, see docs/milvus.md.
//!
//! A collection has one index with one metric, so a load makes a collection for each metric, beside those that users search;
//! aliases move to them at the end, as with Elasticsearch.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::elastic::Address;
use crate::config::{Budget, one_or_many};
use crate::metric::Metric;

#[cfg(feature = "milvus")]
mod client;
#[cfg(feature = "milvus")]
mod collections;
#[cfg(feature = "milvus")]
mod lock;
#[cfg(feature = "milvus")]
mod rows;

#[cfg_attr(feature = "milvus", path = "enabled.rs")]
#[cfg_attr(not(feature = "milvus"), path = "disabled.rs")]
mod switched;

pub use switched::open;

/// The name used in pipeline files and reports.
pub const NAME: &str = "milvus";

/// How a collection is searched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum IndexKind {
    /// Every vector is compared with.
    #[default]
    Flat,
    /// A graph.
    Hnsw,
}

/// `[load.milvus]` of a pipeline file, for one kind of index.
#[derive(Debug, Clone, PartialEq)]
pub struct MilvusConfig {
    /// The server. Environment: `MILVUS_URI`, or `MILVUS_HOST` and `MILVUS_PORT`. Default: `http://localhost:19530`.
    pub uri: Option<Address>,
    /// Whose password is in `MILVUS_PASSWORD`. Environment: `MILVUS_USERNAME`. `MILVUS_TOKEN` goes before both.
    pub user: Option<String>,
    /// PEM file with the certificate authority that signed the server's certificate.
    pub ca: Option<PathBuf>,
    /// The server's database; without it the server's default one.
    pub database: Option<String>,
    /// What users search: the alias of the first metric's collection; of others, with `_` and the metric after it.
    pub alias: String,
    /// One collection for each. Milvus has no `l1`.
    pub metrics: Vec<Metric>,
    pub index: IndexKind,
    /// Neighbours of a node: Milvus' `M`.
    pub m: u32,
    /// Candidates while the graph is built: `efConstruction`.
    pub ef_construction: u32,
    /// Candidates of a search: `ef`.
    pub ef_search: u32,
    /// Seconds after which a request counts as lost.
    pub timeout_seconds: u64,
    /// Seconds of retries of one request after which it is given up.
    pub give_up_seconds: u64,
    /// Pictures that may be refused before the load fails: a count or a share.
    pub max_rejected: Budget,
    /// Earlier loads kept for `imagedex load --rollback`.
    pub keep: usize,
}

impl Default for MilvusConfig {
    fn default() -> MilvusConfig {
        MilvusSection::default().engines().remove(0)
    }
}

impl MilvusConfig {
    /// Whether it finds the nearest ones for certain.
    pub fn is_exact(&self) -> bool {
        self.index == IndexKind::Flat
    }

    /// The name used in reports: `milvus`, or with the kind of index where it is another than `FLAT`.
    pub fn name(&self) -> String {
        match self.index {
            IndexKind::Flat => NAME.to_owned(),
            IndexKind::Hnsw => format!("{NAME} HNSW"),
        }
    }
}

/// `[load.milvus]` as it is written: one kind of index, or several, each of which is an engine of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MilvusSection {
    pub uri: Option<Address>,
    pub user: Option<String>,
    pub ca: Option<PathBuf>,
    pub database: Option<String>,
    pub alias: String,
    #[serde(deserialize_with = "one_or_many")]
    pub metrics: Vec<Metric>,
    /// Default: `FLAT`. The alias of a second one ends in its name.
    #[serde(deserialize_with = "one_or_many")]
    pub index: Vec<IndexKind>,
    pub m: u32,
    pub ef_construction: u32,
    pub ef_search: u32,
    pub timeout_seconds: u64,
    pub give_up_seconds: u64,
    pub max_rejected: Budget,
    pub keep: usize,
}

impl Default for MilvusSection {
    fn default() -> MilvusSection {
        MilvusSection {
            uri: None,
            user: None,
            ca: None,
            database: None,
            alias: String::new(),
            metrics: vec![Metric::Cosine],
            index: vec![IndexKind::Flat],
            // The values of Milvus' own examples.
            m: 16,
            ef_construction: 200,
            ef_search: 64,
            timeout_seconds: 60,
            give_up_seconds: 300,
            max_rejected: Budget::Count(0),
            keep: 1,
        }
    }
}

impl MilvusSection {
    /// One engine for each kind of index.
    pub fn engines(&self) -> Vec<MilvusConfig> {
        let engine = |(i, &index): (usize, &IndexKind)| MilvusConfig {
            alias: match (i, index) {
                (0, _) => self.alias.clone(),
                (_, IndexKind::Flat) => format!("{}_flat", self.alias),
                (_, IndexKind::Hnsw) => format!("{}_hnsw", self.alias),
            },
            uri: self.uri.clone(),
            user: self.user.clone(),
            ca: self.ca.clone(),
            database: self.database.clone(),
            metrics: self.metrics.clone(),
            index,
            m: self.m,
            ef_construction: self.ef_construction,
            ef_search: self.ef_search,
            timeout_seconds: self.timeout_seconds,
            give_up_seconds: self.give_up_seconds,
            max_rejected: self.max_rejected,
            keep: self.keep,
        };
        self.index.iter().enumerate().map(engine).collect()
    }

    /// What is wrong with the values, as the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Err(reason) = check_name(&self.alias) {
            return Err(("load.milvus.alias", reason));
        }
        if self.metrics.is_empty() || has_twice(&self.metrics) {
            return Err(("load.milvus.metrics", "names each metric once, and at least one".to_owned()));
        }
        if self.metrics.contains(&Metric::L1) {
            let reason = "Milvus has no l1; it has cosine, dot_product and l2".to_owned();
            return Err(("load.milvus.metrics", reason));
        }
        if self.index.is_empty() || has_twice(&self.index) {
            return Err(("load.milvus.index", "names each kind once, and at least one".to_owned()));
        }
        for (key, value, least, most) in [
            // Milvus' own limits.
            ("load.milvus.m", u64::from(self.m), 4, 64),
            ("load.milvus.ef_construction", u64::from(self.ef_construction), 8, 512),
            ("load.milvus.ef_search", u64::from(self.ef_search), 1, 32_768),
            ("load.milvus.timeout_seconds", self.timeout_seconds, 1, 3600),
        ] {
            if !(least..=most).contains(&value) {
                return Err((key, format!("{value} is not between {least} and {most}")));
            }
        }
        Ok(())
    }
}

fn has_twice<T: PartialEq>(values: &[T]) -> bool {
    values.iter().enumerate().any(|(i, value)| values[..i].contains(value))
}

/// A name that Milvus takes, made of any other: letters, digits and `_`, beginning with no digit.
pub fn name_of(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = text.chars().map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// Milvus' rules for names of collections and aliases, with room for what is appended to an alias.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 200 || name_of(name) != name {
        return Err(format!(
            "`{}` cannot name a collection of Milvus: letters, digits and `_`, beginning with no digit",
            name.escape_debug()
        ));
    }
    Ok(())
}

/// The variables by which other programs, too, are told where the server is: variable, field, value. No secrets.
pub fn environment(variable: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, &'static str, String)> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let host = || {
        let host = set("MILVUS_HOST")?;
        let scheme = if host.contains("://") { "" } else { "http://" };
        let port = set("MILVUS_PORT").unwrap_or_else(|| "19530".to_owned());
        Some(("MILVUS_HOST", "uri", format!("{scheme}{host}:{port}")))
    };
    let uri = set("MILVUS_URI").map(|value| ("MILVUS_URI", "uri", value)).or_else(host);
    let user = set("MILVUS_USERNAME").map(|value| ("MILVUS_USERNAME", "user", value));
    uri.into_iter().chain(user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl Fn(&mut MilvusSection)) -> Option<&'static str> {
        let mut section = MilvusSection { alias: "images".to_owned(), ..MilvusSection::default() };
        change(&mut section);
        section.check().err().map(|(key, _)| key)
    }

    #[test]
    fn what_milvus_would_refuse_is_refused_before_it_is_asked() {
        assert_eq!(fault(|_| {}), None);
        assert_eq!(fault(|section| section.alias = "with-dash".to_owned()), Some("load.milvus.alias"));
        assert_eq!(fault(|section| section.alias = "1st".to_owned()), Some("load.milvus.alias"));
        assert_eq!(fault(|section| section.metrics = vec![Metric::L1]), Some("load.milvus.metrics"));
        assert_eq!(fault(|section| section.metrics.clear()), Some("load.milvus.metrics"));
        assert_eq!(fault(|section| section.index = vec![IndexKind::Hnsw; 2]), Some("load.milvus.index"));
        assert_eq!(fault(|section| section.m = 65), Some("load.milvus.m"));
        assert_eq!(fault(|section| section.timeout_seconds = 0), Some("load.milvus.timeout_seconds"));
    }

    #[test]
    fn any_pipelines_name_becomes_one_that_milvus_takes() {
        for (text, expected) in [("quickstart", "quickstart"), ("my-shop.v2", "my_shop_v2"), ("2nd", "_2nd")]
        {
            assert_eq!(name_of(text), expected);
            check_name(&name_of(text)).expect("it is taken");
        }
    }

    #[test]
    fn each_kind_of_index_is_an_engine_with_an_alias_of_its_own() {
        let section = MilvusSection {
            alias: "images".to_owned(),
            index: vec![IndexKind::Flat, IndexKind::Hnsw],
            ..MilvusSection::default()
        };
        let engines = section.engines();
        let named: Vec<_> = engines.iter().map(|engine| (engine.name(), engine.alias.as_str())).collect();
        assert_eq!(named, [("milvus".to_owned(), "images"), ("milvus HNSW".to_owned(), "images_hnsw")]);
    }

    #[test]
    fn the_environment_says_where_the_server_is() {
        let found = |variables: &[(&str, &str)]| {
            environment(&|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let host = [("MILVUS_HOST", "node"), ("MILVUS_PORT", "19531")];
        assert_eq!(found(&host), [("MILVUS_HOST", "uri", "http://node:19531".to_owned())]);
        let both = [("MILVUS_HOST", "node"), ("MILVUS_URI", "https://other:1"), ("MILVUS_USERNAME", "me")];
        let expected = [("MILVUS_URI", "uri", "https://other:1"), ("MILVUS_USERNAME", "user", "me")];
        assert_eq!(found(&both), expected.map(|(variable, key, value)| (variable, key, value.to_owned())));
        assert!(found(&[("MILVUS_HOST", "")]).is_empty());
    }
}
