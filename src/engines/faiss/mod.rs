//! FAISS, behind the feature `faiss`: it needs FAISS' own build (cmake, a C++ compiler, OpenBLAS), see docs/engines.md.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::one_or_many;
use crate::metric::Metric;

#[cfg_attr(feature = "faiss", path = "enabled.rs")]
#[cfg_attr(not(feature = "faiss"), path = "disabled.rs")]
mod switched;

pub use switched::open;

/// The name used in pipeline files and reports.
pub const NAME: &str = "faiss";
/// FAISS' description of an index that compares with every vector.
pub const FLAT: &str = "Flat";

/// `[load.faiss]` of a pipeline file, for one kind of index.
#[derive(Debug, Clone, PartialEq)]
pub struct FaissConfig {
    /// FAISS' own description: `Flat`, `HNSW32,Flat`, `IVF256,Flat`, …
    pub index: String,
    /// What FAISS is told before searches: `efSearch`, `nprobe`, …
    pub parameters: Vec<(String, f64)>,
    /// Which metrics get an index: those that are evaluated.
    pub metrics: Vec<Metric>,
    /// Where indexes are kept between runs; without it they are built each time.
    pub folder: Option<PathBuf>,
}

impl Default for FaissConfig {
    fn default() -> FaissConfig {
        FaissConfig {
            index: FLAT.to_owned(),
            parameters: Vec::new(),
            metrics: Metric::ALL.to_vec(),
            folder: None,
        }
    }
}

impl FaissConfig {
    /// Whether it finds the nearest ones for certain.
    pub fn is_exact(&self) -> bool {
        self.index == FLAT
    }

    /// The name used in reports: `faiss`, or with the kind of index where it is another than `Flat`.
    pub fn name(&self) -> String {
        if self.is_exact() { NAME.to_owned() } else { format!("{NAME} {}", self.index) }
    }
}

/// `[load.faiss]` as it is written: one kind of index, or several, each of which is an engine of its own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaissSection {
    /// FAISS' descriptions of indexes. Default: `Flat`.
    #[serde(deserialize_with = "one_or_many")]
    pub index: Vec<String>,
    /// Candidates of a search in a graph (`HNSW…`): FAISS' `efSearch`.
    pub ef_search: Option<u32>,
    /// Candidates while a graph is built: FAISS' `efConstruction`.
    pub ef_construction: Option<u32>,
    /// Lists that a search looks into (`IVF…`): FAISS' `nprobe`.
    pub nprobe: Option<u32>,
}

impl FaissSection {
    /// One engine for each kind of index.
    pub fn engines(&self) -> Vec<FaissConfig> {
        let kinds = if self.index.is_empty() { vec![FLAT.to_owned()] } else { self.index.clone() };
        let engine = |index: String| {
            let asked = if index.contains("HNSW") {
                vec![("efConstruction", self.ef_construction), ("efSearch", self.ef_search)]
            } else if index.contains("IVF") {
                vec![("nprobe", self.nprobe)]
            } else {
                Vec::new()
            };
            let parameters = asked
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), f64::from(value?))))
                .collect();
            FaissConfig { index, parameters, ..FaissConfig::default() }
        };
        kinds.into_iter().map(engine).collect()
    }

    /// What is wrong with the values, as the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let values = [
            ("load.faiss.ef_search", self.ef_search),
            ("load.faiss.ef_construction", self.ef_construction),
            ("load.faiss.nprobe", self.nprobe),
        ];
        for (key, value) in values {
            if value.is_some_and(|value| !(1..=65_536).contains(&value)) {
                return Err((key, format!("{} is not between 1 and 65536", value.unwrap_or_default())));
            }
        }
        Ok(())
    }
}
