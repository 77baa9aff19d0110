//! `[load.elasticsearch]` and `[load.opensearch]` of a pipeline file: the same fields, but for what one of the servers lacks.
//!
//! No secret is in here: passwords and API keys come from the environment alone, at the moment a connection is made.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use super::product::Product;
use crate::config::Budget;
use crate::metric::Metric;

/// Where the index is, what it looks like, and how it is filled.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElasticConfig {
    /// Which server it is: the section's name says so.
    #[serde(skip)]
    pub product: Product,
    /// The server. Environment: `ELASTICSEARCH_URL`, or `ES_HOST` and `ES_PORT`; `OPENSEARCH_URL`. Default:
    /// `http://localhost:9200`.
    pub url: Option<Address>,
    /// Elastic Cloud's identifier, in place of a URL. Environment: `ELASTIC_CLOUD_ID`. Not of OpenSearch.
    pub cloud_id: Option<String>,
    /// Whose password is in `ELASTIC_PASSWORD` or `OPENSEARCH_PASSWORD`. Environment: `ELASTIC_USERNAME` or
    /// `OPENSEARCH_USERNAME`. For Elasticsearch `ELASTIC_API_KEY` goes before both.
    pub user: Option<String>,
    /// PEM file with the certificate authority that signed the server's certificate.
    pub ca: Option<PathBuf>,
    /// Whether the server's certificate is checked.
    pub verify_certificates: bool,
    /// What users search. Default: the pipeline's name.
    pub alias: String,
    /// Primary shards of a new index.
    pub shards: u32,
    /// Replicas once it is loaded; without it one wherever there is a second node.
    pub replicas: Option<u32>,
    /// `refresh_interval` once it is loaded; without it the server's default.
    pub refresh_interval: Option<String>,
    /// Approximate search: in Elasticsearch by a second vector field, in OpenSearch by a graph on the one.
    pub knn: Option<KnnConfig>,
    /// Whether to store the non-zero dimensions in a `sparse_vector` field too, searched by dot product. Not of OpenSearch.
    pub sparse: bool,
    /// How vectors are sent.
    pub encoding: Encoding,
    /// Bulk requests under way at once.
    pub senders: usize,
    /// A bulk request grows up to this size.
    pub max_bulk_mb: usize,
    /// Searches of one `_msearch` request, of up to 64, that the server works on at once. Default: what the server thinks right for
    /// its nodes. Less leaves room for others.
    pub concurrent_searches: Option<usize>,
    /// Seconds after which a request counts as lost.
    pub timeout_seconds: u64,
    /// Seconds of retries without any progress after which the load is given up.
    pub give_up_seconds: u64,
    /// Documents that the server may refuse before the load fails: a count or a share.
    pub max_rejected: Budget,
    /// Earlier indices kept for `imagedex load --rollback`.
    pub keep: usize,
    /// Whether to copy the live index and apply what changed since, instead of loading all.
    pub incremental: bool,
    /// Names of the fields.
    #[serde(skip)]
    pub layout: Layout,
}

impl Default for ElasticConfig {
    fn default() -> ElasticConfig {
        ElasticConfig {
            product: Product::Elasticsearch,
            url: None,
            cloud_id: None,
            user: None,
            ca: None,
            verify_certificates: true,
            alias: String::new(),
            shards: 1,
            replicas: None,
            refresh_interval: None,
            knn: None,
            sparse: false,
            encoding: Encoding::Auto,
            senders: 2,
            max_bulk_mb: 10,
            concurrent_searches: None,
            timeout_seconds: 60,
            give_up_seconds: 300,
            max_rejected: Budget::Count(0),
            keep: 1,
            incremental: true,
            layout: Layout::Imagedex,
        }
    }
}

impl ElasticConfig {
    /// What is wrong with the values, as the key and the reason.
    pub fn check(&self) -> Result<(), (String, String)> {
        self.find_fault().map_or(Ok(()), |(field, reason)| Err((self.product.key(field), reason)))
    }

    fn find_fault(&self) -> Option<(&'static str, String)> {
        if let Err(reason) = check_name(&self.alias) {
            return Some(("alias", reason));
        }
        for (field, value, most) in [
            ("shards", self.shards as usize, 1024),
            ("senders", self.senders, 64),
            ("max_bulk_mb", self.max_bulk_mb, 95),
            ("concurrent_searches", self.concurrent_searches.unwrap_or(1), 64),
            ("timeout_seconds", self.timeout_seconds as usize, 3600),
        ] {
            if value == 0 || value > most {
                return Some((field, format!("{value} is not between 1 and {most}")));
            }
        }
        if self.url.is_some() && self.cloud_id.is_some() {
            return Some(("cloud_id", "is set beside a url; which one is meant?".to_owned()));
        }
        if let Some(knn) = &self.knn {
            if !(1..=10_000).contains(&knn.num_candidates) {
                let reason = format!("{} is not between 1 and 10000", knn.num_candidates);
                return Some(("knn.num_candidates", reason));
            }
            if knn.metric == Metric::L1 {
                let reason =
                    format!("{} has no approximate search by l1; the exact arm has it", self.product);
                return Some(("knn.metric", reason));
            }
            let (options, graph) =
                (knn.options(self.product), [("knn.m", knn.m), ("knn.ef_construction", knn.ef_construction)]);
            if !INDEX_OPTIONS.contains(&options) {
                let reason = format!("`{options}` is not one of {}", INDEX_OPTIONS.join(", "));
                return Some(("knn.index_options", reason));
            }
            for ((field, value), most) in graph.into_iter().zip([512, 3_200]) {
                match value {
                    Some(_) if !options.ends_with("hnsw") => {
                        return Some((field, format!("`{options}` has no graph")));
                    }
                    Some(value) if !(2..=most).contains(&value) => {
                        return Some((field, format!("{value} is not between 2 and {most}")));
                    }
                    _ => {}
                }
            }
            if let Some(oversample) = knn.oversample {
                if oversample != 0.0 && !(1.0..=100.0).contains(&oversample) {
                    return Some((
                        "knn.oversample",
                        format!("{oversample} is neither 0 nor between 1 and 100"),
                    ));
                }
                if knn.is_exact(self.product) {
                    let reason = format!(
                        "`{}` searches vectors as they are; only quantised ones are compared once more",
                        knn.options(self.product)
                    );
                    return Some(("knn.oversample", reason));
                }
            }
        }
        match self.product {
            Product::Elasticsearch => None,
            Product::OpenSearch => self.find_what_opensearch_lacks(),
        }
    }

    fn find_what_opensearch_lacks(&self) -> Option<(&'static str, String)> {
        if self.cloud_id.is_some() {
            return Some(("cloud_id", "is Elastic Cloud's; set url for OpenSearch".to_owned()));
        }
        if self.sparse {
            let reason = "OpenSearch has no sparse_vector field; the exact arm has the dot product";
            return Some(("sparse", reason.to_owned()));
        }
        if self.encoding == Encoding::Base64 {
            return Some(("encoding", "OpenSearch takes vectors as arrays alone".to_owned()));
        }
        let options = self.knn.as_ref()?.options(self.product);
        let reason =
            format!("`{options}` is not there in OpenSearch, whose graph is `hnsw`, of vectors as they are");
        (options != "hnsw").then_some(("knn.index_options", reason))
    }
}

/// Ways to index a `dense_vector`, of Elasticsearch 9.
const INDEX_OPTIONS: [&str; 9] =
    ["hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "bbq_disk", "flat", "int8_flat", "int4_flat", "bbq_flat"];

/// Approximate search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnnConfig {
    /// `hnsw`, `int8_hnsw`, `int4_hnsw`, `bbq_hnsw`, `bbq_disk` (not under the free licence), `flat`, `int8_flat`, `int4_flat`, `bbq_flat`. Without
    /// it `int8_hnsw`; in OpenSearch `hnsw`, the only one.
    pub index_options: Option<String>,
    /// The field's similarity: `cosine`, `l2`, or `dot_product` (of vectors of any length).
    pub metric: Metric,
    /// Neighbours of a node; the server's default where it is not set.
    pub m: Option<u32>,
    /// Candidates while the graph is built; the server's default where it is not set.
    pub ef_construction: Option<u32>,
    /// Candidates looked at on each shard by a search; OpenSearch's `ef_search`.
    pub num_candidates: usize,
    /// So many times the wanted hits are compared once more, by the vectors as they are (`rescore_vector`); 0 for none. Where it is not
    /// set the server decides: of an index that 9.1 or later made it compares three times as many of `bbq_hnsw` and `bbq_flat`, and none of
    /// the others.
    pub oversample: Option<f32>,
}

impl Default for KnnConfig {
    fn default() -> KnnConfig {
        KnnConfig {
            index_options: None,
            metric: Metric::Cosine,
            m: None,
            ef_construction: None,
            num_candidates: 100,
            oversample: None,
        }
    }
}

impl KnnConfig {
    /// Whether vectors are as they are in what is searched, not quantised.
    fn is_exact(&self, product: Product) -> bool {
        matches!(self.options(product), "hnsw" | "flat")
    }

    /// `index_options` as the server is told.
    pub fn options(&self, product: Product) -> &str {
        self.index_options.as_deref().unwrap_or(match product {
            Product::Elasticsearch => "int8_hnsw",
            Product::OpenSearch => "hnsw",
        })
    }
}

/// How vectors are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Base64 where the server takes it (9.3 and later), else numbers.
    #[default]
    Auto,
    /// Big-endian `f32`, base64.
    Base64,
    /// A JSON array of numbers.
    Array,
}

/// Names of the fields, and which there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// `id`, `label`, `embedding` and all that the feature table says of a picture.
    #[default]
    Imagedex,
    /// The original program's: `name`, `id` (a number), `image_vector`.
    Original,
}

impl Layout {
    /// The field of the exact arm's vectors.
    pub fn vector(self) -> &'static str {
        match self {
            Layout::Imagedex => "embedding",
            Layout::Original => "image_vector",
        }
    }

    /// The keyword field that holds a picture's id.
    pub fn id(self) -> &'static str {
        match self {
            Layout::Imagedex => "id",
            Layout::Original => "name",
        }
    }
}

/// An `http` or `https` URL without user or password, which would end up in logs and process lists.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(Url);

impl Address {
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Address, String> {
        // The text is not repeated: it may hold a password.
        let url = Url::parse(&text).map_err(|error| format!("the URL of the server is not one: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("the URL of the server begins with http:// or https:// and names a host".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the URL of the server holds a user or password, which others could read; set `user` beside it, and the \
                        environment variable ELASTIC_PASSWORD (OPENSEARCH_PASSWORD, MILVUS_PASSWORD) instead"
                .to_owned());
        }
        Ok(Address(url))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The variables by which other programs, too, are told where the server is: variable, field of [`ElasticConfig`], value.
/// Secrets are not among them: they never become part of a configuration.
pub fn environment(
    product: Product,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<(&'static str, &'static str, String)> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_elastic = product == Product::Elasticsearch;
    let cloud = set("ELASTIC_CLOUD_ID").filter(|_| is_elastic).map(|id| ("ELASTIC_CLOUD_ID", "cloud_id", id));
    let host = || {
        let host = set("ES_HOST").filter(|_| is_elastic && cloud.is_none())?;
        let scheme = if host.contains("://") { "" } else { "http://" };
        let port = set("ES_PORT").unwrap_or_else(|| "9200".to_owned());
        Some(("ES_HOST", "url", format!("{scheme}{host}:{port}")))
    };
    let [url, user, _] = product.variables();
    let url = set(url).map(|value| (url, "url", value)).or_else(host);
    let user = set(user).map(|value| (user, "user", value));
    url.into_iter().chain(cloud).chain(user).collect()
}

/// The servers' rules for names of indices and aliases, with room for what is appended to an alias.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 200 || !name.chars().all(allowed) || name.starts_with(['-', '_', '.'])
    {
        return Err(format!(
            "`{}` cannot name an index: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit",
            name.escape_debug()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_password_is_refused_without_repeating_it() {
        let refused =
            Address::try_from("https://elastic:s3cret@localhost:9200".to_owned()).expect_err("a password");
        assert!(refused.contains("ELASTIC_PASSWORD") && !refused.contains("s3cret"), "{refused}");
        for text in ["localhost:9200", "ftp://host", "not a url"] {
            Address::try_from(text.to_owned()).expect_err(text);
        }
        Address::try_from("http://localhost:9200/behind/a/proxy".to_owned()).expect("a path is fine");
    }

    #[test]
    fn the_environment_says_where_the_server_is() {
        let of = |product, variables: &[(&str, &str)]| {
            environment(product, &|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let found = |variables: &[(&str, &str)]| of(Product::Elasticsearch, variables);
        let url = |variables: &[(&str, &str)]| found(variables).first().map(|(_, _, value)| value.clone());
        assert_eq!(url(&[("ES_HOST", "node"), ("ES_PORT", "9201")]).as_deref(), Some("http://node:9201"));
        assert_eq!(url(&[("ES_HOST", "https://node")]).as_deref(), Some("https://node:9200"));
        let both = [("ES_HOST", "node"), ("ELASTICSEARCH_URL", "https://other")];
        assert_eq!(url(&both).as_deref(), Some("https://other"));
        assert_eq!(found(&[("ELASTIC_CLOUD_ID", "a:b"), ("ES_HOST", "node")]).len(), 1);
        assert!(found(&[("ELASTICSEARCH_URL", "")]).is_empty());
        let both = [("ES_HOST", "node"), ("OPENSEARCH_URL", "https://other"), ("OPENSEARCH_USERNAME", "me")];
        let expected = [("OPENSEARCH_URL", "url", "https://other"), ("OPENSEARCH_USERNAME", "user", "me")];
        let expected = expected.map(|(variable, field, value)| (variable, field, value.to_owned()));
        assert_eq!(of(Product::OpenSearch, &both), expected);
        assert_eq!(url(&both).as_deref(), Some("http://node:9200"));
    }

    #[test]
    fn what_opensearch_lacks_is_refused_by_its_own_key() {
        let fault = |config: ElasticConfig| {
            let config = ElasticConfig { alias: "a".to_owned(), product: Product::OpenSearch, ..config };
            config.check().err().map(|(key, _)| key)
        };
        let knn = |index_options: Option<&str>| {
            let index_options = index_options.map(str::to_owned);
            ElasticConfig {
                knn: Some(KnnConfig { index_options, ..KnnConfig::default() }),
                ..ElasticConfig::default()
            }
        };
        for (config, key) in [
            (ElasticConfig { sparse: true, ..ElasticConfig::default() }, Some("load.opensearch.sparse")),
            (
                ElasticConfig { encoding: Encoding::Base64, ..ElasticConfig::default() },
                Some("load.opensearch.encoding"),
            ),
            (
                ElasticConfig { cloud_id: Some("a:b".to_owned()), ..ElasticConfig::default() },
                Some("load.opensearch.cloud_id"),
            ),
            (ElasticConfig { senders: 0, ..ElasticConfig::default() }, Some("load.opensearch.senders")),
            (
                ElasticConfig { concurrent_searches: Some(0), ..ElasticConfig::default() },
                Some("load.opensearch.concurrent_searches"),
            ),
            (ElasticConfig { concurrent_searches: Some(4), ..ElasticConfig::default() }, None),
            (knn(Some("int8_hnsw")), Some("load.opensearch.knn.index_options")),
            (knn(Some("hnsw")), None),
            (knn(None), None),
        ] {
            assert_eq!(fault(config).as_deref(), key);
        }
    }

    #[test]
    fn a_graph_has_a_known_kind_and_size() {
        let fault = |index_options: &str, m, ef_construction| {
            let index_options = Some(index_options.to_owned());
            let knn = KnnConfig { index_options, m, ef_construction, ..KnnConfig::default() };
            let config = ElasticConfig { alias: "a".to_owned(), knn: Some(knn), ..ElasticConfig::default() };
            config.check().err().map(|(key, _)| key.replace("load.elasticsearch.knn.", ""))
        };
        assert_eq!(fault("hnsw", Some(16), Some(100)), None);
        assert_eq!(fault("bbq_disk", None, None), None);
        for options in ["foo", "", "int8"] {
            assert_eq!(fault(options, None, None).as_deref(), Some("index_options"));
        }
        assert_eq!(fault("hnsw", Some(0), None).as_deref(), Some("m"));
        assert_eq!(fault("hnsw", Some(100_000), None).as_deref(), Some("m"));
        assert_eq!(fault("int8_hnsw", None, Some(0)).as_deref(), Some("ef_construction"));
        assert_eq!(fault("int8_flat", Some(16), None).as_deref(), Some("m"));
    }

    #[test]
    fn oversampling_is_for_quantised_vectors() {
        let fault = |index_options: &str, oversample| {
            let knn = KnnConfig {
                index_options: Some(index_options.to_owned()),
                oversample: Some(oversample),
                ..KnnConfig::default()
            };
            let config = ElasticConfig { alias: "a".to_owned(), knn: Some(knn), ..ElasticConfig::default() };
            config.check().err().map(|(key, _)| key)
        };
        for oversample in [0.0, 1.0, 2.5, 100.0] {
            assert_eq!(fault("int8_hnsw", oversample), None);
        }
        for oversample in [0.5, -1.0, 101.0, f32::NAN, f32::INFINITY] {
            assert_eq!(fault("bbq_hnsw", oversample).as_deref(), Some("load.elasticsearch.knn.oversample"));
        }
        for options in ["hnsw", "flat"] {
            assert_eq!(fault(options, 3.0).as_deref(), Some("load.elasticsearch.knn.oversample"));
        }
    }

    #[test]
    fn names_follow_the_servers_rules() {
        for name in ["images", "images-vgg16", "a.b_c-1"] {
            check_name(name).expect(name);
        }
        for name in ["", "Images", "-a", "_a", ".a", "a b", "a*", "a/b", "é"] {
            check_name(name).expect_err(name);
        }
    }
}
