//! The four ways to compare two vectors, and the one scale on which every engine reports them.
//!
//! Greater is closer, for every metric and every engine; the scores are those that Elasticsearch's
//! `script_score` formulas give, so that a number in a report can be checked by hand in Kibana.

use serde::{Deserialize, Serialize};

/// A way to compare two vectors. Serialised by its snake-case name (`cosine`, `dot_product`, `l1`, `l2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Metric {
    /// The angle between the vectors. Score `cosine + 1.0`, from 0 to 2.
    Cosine,
    /// The inner product. Score as given by [`Metric::score`].
    DotProduct,
    /// Manhattan distance. Score `1 / (1 + l1norm)`, from 0 to 1.
    #[value(alias = "manhattan")]
    L1,
    /// Euclidean distance. Score `1 / (1 + l2norm)`, from 0 to 1.
    #[value(alias = "euclid")]
    L2,
}

impl Metric {
    /// All metrics in the order in which reports list them.
    pub const ALL: [Metric; 4] = [Metric::Cosine, Metric::DotProduct, Metric::L1, Metric::L2];

    /// The name used in pipeline files, reports and columns.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cosine => "cosine",
            Metric::DotProduct => "dot_product",
            Metric::L1 => "l1",
            Metric::L2 => "l2",
        }
    }

    /// The score of a raw value: the cosine, the dot product, or the L1 / L2 *distance*.
    ///
    /// A dot product is reported as it is where the model's outputs are never negative, else through
    /// `sigmoid(1, e, -dot)` = `1 / (1 + e^-dot)`: a negative score fails a whole Elasticsearch search.
    pub fn score(self, raw: f64, non_negative: bool) -> f64 {
        match self {
            Metric::Cosine => raw + 1.0,
            Metric::DotProduct if non_negative => raw,
            Metric::DotProduct => 1.0 / (1.0 + (-raw).exp()),
            Metric::L1 | Metric::L2 => 1.0 / (1.0 + raw),
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
