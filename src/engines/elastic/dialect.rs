//! What the two servers are told, and how their scores are read: settings, mappings, queries. Pure.
//!
//! | | Elasticsearch | OpenSearch |
//! |---|---|---|
//! | exact arm | `dense_vector`, not indexed | `knn_vector` |
//! | kNN arm | a second, indexed field; `knn` beside `query` | a graph on the same field; `knn` inside `query` |
//! | scripts | `l1norm(params.q, 'f')` | `l1Norm(params.q, doc['f'])` |

use serde::Deserialize;
use serde_json::{Value, json};

use super::bulk::{KNN_FIELD, SPARSE_FIELD};
use super::config::{ElasticConfig, Encoding, KnnConfig, Layout};
use super::product::Product;
use crate::engines::{Filter, Query};
use crate::metric::Metric;

/// A server's version. What it can is said of Elasticsearch; OpenSearch, whose versions are all lower, can none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Of `9.5.3` or `8.19.0-SNAPSHOT`.
    pub fn parse(text: &str) -> Option<Version> {
        let mut parts = text.split('.');
        Some(Version { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }

    /// Whether `dense_vector` takes base64.
    pub fn takes_base64(self) -> bool {
        self >= Version { major: 9, minor: 3 }
    }

    /// Whether `_source` leaves vectors out unless asked.
    pub fn hides_vectors(self) -> bool {
        self >= Version { major: 9, minor: 2 }
    }

    /// Whether `knn` takes `rescore_vector`; not to rescore, `oversample: 0`, can be asked of later ones.
    pub fn rescores(self, oversample: f32) -> bool {
        match oversample {
            0.0 => self >= Version { major: 9, minor: 1 } || self.major == 8 && self.minor >= 19,
            _ => self >= Version { major: 8, minor: 18 },
        }
    }

    /// Whether `sparse_vector` prunes unless told not to, and can be told so in the mapping.
    pub fn prunes_sparse(self) -> bool {
        self >= Version { major: 9, minor: 1 } || self.major == 8 && self.minor >= 19
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether vectors are sent as base64.
pub fn sends_base64(encoding: Encoding, version: Version) -> bool {
    match encoding {
        Encoding::Auto => version.takes_base64(),
        Encoding::Base64 => true,
        Encoding::Array => false,
    }
}

/// The name by which an index is written to while it is loaded. Bulk requests ask for an alias: to a plain name of an index that
/// was deleted meanwhile, the server would make a new one, without our mapping.
pub fn loading_alias(index: &str) -> String {
    format!("{index}-loading")
}

/// The body that creates an index, as it is while it is loaded: no refreshes, no replicas.
pub fn create(config: &ElasticConfig, version: Version, name: &str, dim: usize, meta: &Value) -> Value {
    let mut index = json!({
        "number_of_shards": config.shards,
        "number_of_replicas": 0,
        "auto_expand_replicas": false,
        "refresh_interval": "-1",
    });
    if config.product == Product::OpenSearch {
        // Switched on, it would build a graph on every vector field, asked for or not.
        index["knn"] = json!(config.knn.is_some());
    }
    json!({
        "aliases": { loading_alias(name): {} },
        "settings": { "index": index },
        "mappings": {
            "dynamic": "strict",
            "_meta": { "imagedex": meta },
            "properties": properties(config, version, dim),
        }
    })
}

fn properties(config: &ElasticConfig, version: Version, dim: usize) -> Value {
    let vector = vector_field(config, dim);
    match config.layout {
        Layout::Original => {
            return json!({ "name": { "type": "keyword" }, "id": { "type": "long" }, "image_vector": vector });
        }
        Layout::Imagedex => {}
    }
    let mut properties = json!({
        "id": { "type": "keyword" },
        "label": { "type": "keyword" },
        "sha256": { "type": "keyword" },
        "dhash": { "type": "long" },
        "width": { "type": "integer" },
        "height": { "type": "integer" },
        "format": { "type": "keyword" },
        "norm": { "type": "float" },
        "embedding": vector,
    });
    if let Some(knn) = config.knn.as_ref().filter(|_| has_knn_field(config)) {
        properties[KNN_FIELD] = knn_field(knn, dim);
    }
    if config.sparse {
        properties[SPARSE_FIELD] = match version.prunes_sparse() {
            true => json!({ "type": "sparse_vector", "index_options": { "prune": false } }),
            false => json!({ "type": "sparse_vector" }),
        };
    }
    properties
}

/// Whether the server can copy the index. OpenSearch 2 cannot where a `knn_vector` has no graph: the copy's shards are put nowhere
/// (issue 2540 of its k-NN plugin).
pub fn can_copy(config: &ElasticConfig) -> bool {
    config.product == Product::Elasticsearch || config.knn.is_some()
}

/// Whether approximate search has a field of its own.
pub fn has_knn_field(config: &ElasticConfig) -> bool {
    config.product == Product::Elasticsearch && config.knn.is_some()
}

/// The field of the exact arm.
fn vector_field(config: &ElasticConfig, dim: usize) -> Value {
    match (config.product, &config.knn) {
        (Product::Elasticsearch, _) => json!({ "type": "dense_vector", "dims": dim, "index": false }),
        (Product::OpenSearch, None) => json!({ "type": "knn_vector", "dimension": dim }),
        (Product::OpenSearch, Some(knn)) => {
            let method = json!({
                "name": knn.options(Product::OpenSearch),
                "engine": "lucene",
                "space_type": similarity(Product::OpenSearch, knn.metric),
                "parameters": graph(knn),
            });
            json!({ "type": "knn_vector", "dimension": dim, "method": method })
        }
    }
}

/// Elasticsearch's field of the approximate arm.
fn knn_field(knn: &KnnConfig, dim: usize) -> Value {
    let mut options = graph(knn);
    options["type"] = json!(knn.options(Product::Elasticsearch));
    let similarity = similarity(Product::Elasticsearch, knn.metric);
    json!({ "type": "dense_vector", "dims": dim, "index": true, "similarity": similarity, "index_options": options })
}

/// The parameters of a graph that are not left to the server.
fn graph(knn: &KnnConfig) -> Value {
    let parameters = [("m", knn.m), ("ef_construction", knn.ef_construction)];
    let set = parameters.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?))));
    Value::Object(set.collect())
}

/// A metric as approximate search calls it.
fn similarity(product: Product, metric: Metric) -> &'static str {
    match (product, metric) {
        (Product::Elasticsearch, Metric::Cosine) => "cosine",
        (Product::Elasticsearch, Metric::L2) => "l2_norm",
        // `dot_product` takes unit vectors alone; this one takes all, and ranks alike.
        (Product::Elasticsearch, Metric::DotProduct) => "max_inner_product",
        (Product::OpenSearch, Metric::Cosine) => "cosinesimil",
        (Product::OpenSearch, Metric::L2) => "l2",
        (Product::OpenSearch, Metric::DotProduct) => "innerproduct",
        (_, Metric::L1) => unreachable!("refused when the configuration was read"),
    }
}

/// The settings of an index that is loaded.
pub fn finished_settings(config: &ElasticConfig) -> Value {
    let mut index = json!({ "refresh_interval": config.refresh_interval });
    match config.replicas {
        Some(replicas) => index["number_of_replicas"] = json!(replicas),
        None => index["auto_expand_replicas"] = json!("0-1"),
    }
    json!({ "index": index })
}

/// A way to search an index.
#[derive(Debug, Clone, PartialEq)]
pub enum Arm {
    /// `script_score` over all documents.
    Exact,
    /// The graph of `embedding_knn`, or in OpenSearch of `embedding`.
    Knn { metric: Metric, num_candidates: usize, oversample: Option<f32> },
    /// The inverted index of `embedding_sparse`: dot products of weights kept to 9 bits.
    Sparse,
}

impl Arm {
    pub fn supports(&self, metric: Metric) -> bool {
        match self {
            Arm::Exact => true,
            Arm::Knn { metric: own, .. } => *own == metric,
            Arm::Sparse => metric == Metric::DotProduct,
        }
    }

    /// A score of ours, from what the server calls `_score`.
    pub fn score(&self, metric: Metric, score: f32, non_negative: bool) -> f32 {
        let score = f64::from(score);
        let raw = match (self, metric) {
            (Arm::Exact, _) => return score as f32,
            // The servers' formulas, which are Lucene's, turned round: (1 + cos) / 2, 1 / (1 + d²), and 1 + dot or 1 / (1 - dot) below 0.
            (Arm::Knn { .. }, Metric::Cosine) => 2.0 * score - 1.0,
            (Arm::Knn { .. }, Metric::L2) => (1.0 / score - 1.0).max(0.0).sqrt(),
            (Arm::Knn { .. }, _) if score >= 1.0 => score - 1.0,
            (Arm::Knn { .. }, _) => 1.0 - 1.0 / score,
            (Arm::Sparse, _) => score,
        };
        metric.score(raw, non_negative) as f32
    }
}

/// The body of a search: hits by score descending, then id ascending; each hit's `sort` holds both, so no source is fetched.
pub fn search(
    product: Product,
    arm: &Arm,
    layout: Layout,
    query: &Query,
    filters: &[Filter],
    non_negative: bool,
) -> String {
    let k = query.k;
    // Vectors are written as text: as `f64` each number would take twice the digits, and say no more.
    let vector = serde_json::to_string(query.vector).unwrap_or_default();
    let filter = filters
        .iter()
        .map(|filter| json!({ "term": { filter.column.as_str(): { "value": filter.value } } }))
        .collect::<Vec<_>>();
    let base = match filter.is_empty() {
        true => json!({ "match_all": {} }),
        false => json!({ "bool": { "filter": filter } }),
    };
    let wanted = match arm {
        Arm::Exact => {
            let source = script(product, layout.vector(), query.metric, non_negative);
            format!(
                r#""query":{{"script_score":{{"query":{base},"script":{{"source":{},"params":{{"q":{vector}}}}}}}}}"#,
                json!(source)
            )
        }
        Arm::Knn { num_candidates, oversample, .. } => {
            let candidates = (*num_candidates).max(k).min(MOST_HITS);
            let k = k.min(candidates);
            match product {
                Product::Elasticsearch => {
                    let filter = Value::from(filter);
                    let rescore = oversample.map_or_else(String::new, |oversample| {
                        format!(r#","rescore_vector":{{"oversample":{oversample}}}"#)
                    });
                    format!(
                        r#""knn":{{"field":"{KNN_FIELD}","query_vector":{vector},"k":{k},"num_candidates":{candidates},"filter":{filter}{rescore}}}"#
                    )
                }
                Product::OpenSearch => {
                    let field = layout.vector();
                    format!(
                        r#""query":{{"knn":{{"{field}":{{"vector":{vector},"k":{k},"method_parameters":{{"ef_search":{candidates}}},"filter":{base}}}}}}}"#
                    )
                }
            }
        }
        Arm::Sparse => {
            let weights = query.vector.iter().enumerate().filter(|(_, weight)| **weight >= f32::MIN_POSITIVE);
            let weights: Vec<String> = weights.map(|(i, weight)| format!("\"{i}\":{weight}")).collect();
            let filter = Value::from(filter);
            format!(
                r#""query":{{"bool":{{"filter":{filter},"must":[{{"sparse_vector":{{"field":"{SPARSE_FIELD}","query_vector":{{{}}},"prune":false}}}}]}}}}"#,
                weights.join(",")
            )
        }
    };
    let id = layout.id();
    format!(
        r#"{{"size":{},"_source":false,"track_total_hits":false,"sort":[{{"_score":"desc"}},{{"{id}":"asc"}}],{wanted}}}"#,
        k.min(MOST_HITS)
    )
}

/// `index.max_result_window` of an index that sets none.
pub const MOST_HITS: usize = 10_000;

/// The score of a document, as [`Metric::score`] has it. The vector is a parameter, so each of these texts is compiled once.
pub fn script(product: Product, field: &str, metric: Metric, non_negative: bool) -> String {
    let of = match product {
        Product::Elasticsearch => format!("(params.q, '{field}')"),
        Product::OpenSearch => format!("(params.q, doc['{field}'])"),
    };
    let (l1, l2, dot) = match product {
        Product::Elasticsearch => (format!("l1norm{of}"), format!("l2norm{of}"), format!("dotProduct{of}")),
        Product::OpenSearch => {
            (format!("l1Norm{of}"), format!("Math.sqrt(l2Squared{of})"), format!("innerProduct{of}"))
        }
    };
    let score = match metric {
        Metric::Cosine => format!("cosineSimilarity{of} + 1.0"),
        Metric::L1 => format!("1 / (1 + {l1})"),
        Metric::L2 => format!("1 / (1 + {l2})"),
        Metric::DotProduct if non_negative => dot,
        Metric::DotProduct => format!("sigmoid(1, Math.E, -{dot})"),
    };
    format!("doc['{field}'].size() == 0 ? 0 : {score}")
}

/// The part of a search's answer that is read.
#[derive(Debug, Default, Deserialize)]
pub struct Found {
    #[serde(default)]
    pub status: Option<u16>,
    #[serde(default)]
    pub error: Option<super::retry::ServerError>,
    #[serde(default)]
    pub timed_out: bool,
    #[serde(default)]
    pub hits: Hits,
}

#[derive(Debug, Default, Deserialize)]
pub struct Hits {
    #[serde(default)]
    pub hits: Vec<FoundHit>,
}

#[derive(Debug, Deserialize)]
pub struct FoundHit {
    /// Score and id.
    pub sort: (f32, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_say_what_they_can() {
        let version = |text| Version::parse(text).expect(text);
        assert!(version("9.5.3").takes_base64() && version("9.3.0").takes_base64());
        assert!(!version("9.2.8").takes_base64() && version("9.2.8").hides_vectors());
        assert!(!version("8.19.0-SNAPSHOT").hides_vectors() && version("8.19.0").prunes_sparse());
        assert!(!version("9.0.0").prunes_sparse() && version("10.0.1").prunes_sparse());
        let rescore = |text: &'static str, oversample| version(text).rescores(oversample);
        assert!(!rescore("8.17.9", 3.0) && rescore("8.18.0", 3.0) && rescore("9.0.0", 3.0));
        assert!(
            !rescore("8.18.9", 0.0)
                && rescore("8.19.0", 0.0)
                && !rescore("9.0.9", 0.0)
                && rescore("9.1.0", 0.0)
        );
        assert_eq!(Version::parse("newest"), None);
    }

    #[test]
    fn every_query_is_json_and_breaks_ties_by_id() {
        let vector = [0.5, 0.0, 0.25];
        let filters = [Filter { column: "label".to_owned(), value: "a\"b\n".to_owned() }];
        let knn = Arm::Knn { metric: Metric::Cosine, num_candidates: 50, oversample: Some(2.5) };
        let [es, os] = Product::ALL;
        for (product, arm) in
            [(es, Arm::Exact), (es, knn.clone()), (es, Arm::Sparse), (os, Arm::Exact), (os, knn)]
        {
            let query = Query { vector: &vector, k: 7, metric: Metric::DotProduct };
            for filters in [&filters[..], &[]] {
                let body = search(product, &arm, Layout::Imagedex, &query, filters, true);
                assert!(!body.contains('\n'), "msearch takes one line: {body}");
                let body: Value = serde_json::from_str(&body).expect("JSON");
                assert_eq!(body["sort"][1]["id"], "asc");
                assert_eq!(body["size"], 7);
                let rescores = product == Product::Elasticsearch && matches!(arm, Arm::Knn { .. });
                assert_eq!(body["knn"]["rescore_vector"]["oversample"].as_f64(), rescores.then_some(2.5));
                assert_eq!(body.to_string().contains("a\\\"b"), !filters.is_empty());
            }
        }
    }

    #[test]
    fn approximate_scores_are_put_on_our_scale() {
        let knn = |metric| Arm::Knn { metric, num_candidates: 1, oversample: None };
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(knn(Metric::Cosine).score(Metric::Cosine, 0.9, true), 1.8);
        // A distance of 2: the server says 1 / (1 + 4).
        close(knn(Metric::L2).score(Metric::L2, 0.2, true), 1.0 / 3.0);
        close(knn(Metric::DotProduct).score(Metric::DotProduct, 1.5, true), 0.5);
        close(knn(Metric::DotProduct).score(Metric::DotProduct, 0.5, false), 1.0 / (1.0 + 1f32.exp()));
        close(Arm::Sparse.score(Metric::DotProduct, 0.75, true), 0.75);
    }
}
