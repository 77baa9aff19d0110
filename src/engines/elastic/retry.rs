//! A response → what to do next. Pure: no clock, no network, no randomness.

use std::time::Duration;

use serde::Deserialize;

use super::product::Product;

/// What to do about one document, or about a whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// The server is busy or away: the same again, later.
    Retry(String),
    /// It will never be taken: a dead letter.
    Reject(String),
    /// Nothing will be taken any more until a person does something.
    Stop(String),
}

/// The `error` of a response, or of one document in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ServerError {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub root_cause: Vec<ServerError>,
    #[serde(default)]
    pub caused_by: Option<Box<ServerError>>,
}

impl std::fmt::Display for ServerError {
    /// The type and reason, then that of the innermost cause where it says more.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind, self.reason.as_deref().map_or("no reason given", shortened))?;
        let root = self.root_cause.first().filter(|root| root.kind != self.kind);
        let mut cause = self.caused_by.as_deref().or(root);
        while let Some(inner) = cause.and_then(|cause| cause.caused_by.as_deref()) {
            cause = Some(inner);
        }
        match cause {
            Some(cause) if cause.reason != self.reason => {
                write!(f, " ({}: {})", cause.kind, cause.reason.as_deref().map_or("", shortened))
            }
            _ => Ok(()),
        }
    }
}

/// The beginning of a reason: some repeat the whole value that they are about, a vector for example.
fn shortened(reason: &str) -> &str {
    const MOST_BYTES: usize = 600;
    &reason[..reason.floor_char_boundary(MOST_BYTES)]
}

/// What became of one document of a bulk request. `deletes` tells a deletion, of which 404 is as good as done.
pub fn document(product: Product, deletes: bool, status: u16, error: Option<&ServerError>) -> Verdict {
    let reason = || error.map_or_else(|| format!("HTTP status {status}"), ServerError::to_string);
    match status {
        200..=299 => Verdict::Done,
        404 if deletes && error.is_none() => Verdict::Done,
        429 | 502 | 503 | 504 => Verdict::Retry(reason()),
        401 | 403 => Verdict::Stop(stopped(product, status, &reason())),
        404 => Verdict::Stop(format!("{}; the index was deleted while it was loaded", reason())),
        _ => Verdict::Reject(reason()),
    }
}

/// What a whole request's status means. A status that is no error is [`Verdict::Done`]; a refusal of this very request, such as
/// a query that the server cannot parse, is [`Verdict::Reject`].
pub fn request(product: Product, status: u16, error: Option<&ServerError>) -> Verdict {
    let reason = error.map_or_else(|| format!("HTTP status {status}"), ServerError::to_string);
    match status {
        200..=299 => Verdict::Done,
        408 | 429 | 502 | 503 | 504 => Verdict::Retry(reason),
        401 | 403 => Verdict::Stop(stopped(product, status, &reason)),
        _ => Verdict::Reject(reason),
    }
}

/// A refusal that lasts, with its remedy.
fn stopped(product: Product, status: u16, reason: &str) -> String {
    let [_, _, password] = product.variables();
    let (user, options) = (product.key("user"), product.key("knn.index_options"));
    let remedy = match (product, status) {
        (Product::Elasticsearch, 401) => {
            format!("check ELASTIC_API_KEY, or {user} and {password}; they may have expired")
        }
        (Product::OpenSearch, 401) => format!("check {user} and {password}"),
        _ if reason.contains("cluster_block_exception") => {
            "the index is read-only: free disk space, or lift the block, then run again".to_owned()
        }
        _ if reason.contains("license") => {
            format!("the server's licence does not cover this; choose other {options}")
        }
        (Product::Elasticsearch, _) => {
            "the user lacks a privilege; `imagedex doctor` lists what is needed".to_owned()
        }
        (Product::OpenSearch, _) => {
            "the user lacks a privilege; docs/opensearch.md lists what is needed".to_owned()
        }
    };
    format!("{reason}; {remedy}")
}

/// The least and greatest pause between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long to wait before try number `attempt` (from 1): doubling from [`PAUSES`]' least to its greatest, of which at least
/// half; `random`, from 0 to 1, decides the rest, so that senders do not come back together.
pub fn pause(attempt: u32, random: f64) -> Duration {
    let (least, greatest) = PAUSES;
    let full = least.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(greatest);
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ES: Product = Product::Elasticsearch;

    fn error(kind: &str, reason: &str) -> ServerError {
        ServerError { kind: kind.to_owned(), reason: Some(reason.to_owned()), ..ServerError::default() }
    }

    #[test]
    fn only_what_may_pass_later_is_tried_again() {
        let rejected = error("es_rejected_execution_exception", "queue is full");
        assert!(matches!(document(ES, false, 429, Some(&rejected)), Verdict::Retry(_)));
        assert!(matches!(document(ES, false, 503, None), Verdict::Retry(_)));
        let mapping = error("strict_dynamic_mapping_exception", "[x] within [_doc] is not allowed");
        assert!(matches!(document(ES, false, 400, Some(&mapping)), Verdict::Reject(_)));
        assert!(matches!(document(ES, false, 409, None), Verdict::Reject(_)));
        let block =
            error("cluster_block_exception", "index [i] blocked by: [FORBIDDEN/8/index write (api)];");
        let Verdict::Stop(reason) = document(ES, false, 403, Some(&block)) else { panic!("a block lasts") };
        assert!(reason.contains("read-only"), "{reason}");
        let Verdict::Stop(reason) = request(ES, 401, None) else { panic!("credentials do not come back") };
        assert!(reason.contains("ELASTIC_API_KEY"), "{reason}");
        let Verdict::Stop(reason) = request(Product::OpenSearch, 401, None) else { panic!("as there") };
        assert!(
            reason.contains("OPENSEARCH_PASSWORD") && reason.contains("load.opensearch.user"),
            "{reason}"
        );
        assert!(matches!(request(ES, 500, None), Verdict::Reject(_)));
    }

    #[test]
    fn deleting_what_is_not_there_is_done() {
        assert_eq!(document(ES, true, 404, None), Verdict::Done);
        let gone = error("index_not_found_exception", "no such index");
        assert!(matches!(document(ES, true, 404, Some(&gone)), Verdict::Stop(_)));
        assert!(matches!(document(ES, false, 404, Some(&gone)), Verdict::Stop(_)));
    }

    #[test]
    fn an_errors_innermost_cause_is_said() {
        let text = r#"{"type": "document_parsing_exception", "reason": "[1:2] failed to parse", "caused_by":
            {"type": "illegal_argument_exception", "reason": "vector length does not match"}}"#;
        let error: ServerError = serde_json::from_str(text).expect("JSON");
        let expected = "document_parsing_exception: [1:2] failed to parse (illegal_argument_exception: vector length \
                        does not match)";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_reason_that_repeats_a_vector_is_cut() {
        let long = format!("failed to parse: é{}", "0.123456, ".repeat(512));
        let text = error("mapper_parsing_exception", &long).to_string();
        assert!(text.starts_with("mapper_parsing_exception: failed to parse: é0.12"), "{text}");
        assert!(text.len() < 700, "{}", text.len());
    }

    #[test]
    fn pauses_grow_are_capped_and_differ() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(100));
        assert_eq!(pause(2, 1.0), Duration::from_millis(200));
        assert_eq!(pause(2, 0.0), Duration::from_millis(100));
        assert_eq!(pause(40, 1.0), Duration::from_secs(5));
        assert!(pause(40, 0.0) >= Duration::from_millis(2500));
    }
}
