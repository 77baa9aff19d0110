//! A response → what to do next. Pure: no clock, no network, no randomness.

use std::time::Duration;

use serde::Deserialize;

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
        write!(f, "{}: {}", self.kind, self.reason.as_deref().unwrap_or("no reason given"))?;
        let root = self.root_cause.first().filter(|root| root.kind != self.kind);
        let mut cause = self.caused_by.as_deref().or(root);
        while let Some(inner) = cause.and_then(|cause| cause.caused_by.as_deref()) {
            cause = Some(inner);
        }
        match cause {
            Some(cause) if cause.reason != self.reason => {
                write!(f, " ({}: {})", cause.kind, cause.reason.as_deref().unwrap_or_default())
            }
            _ => Ok(()),
        }
    }
}

/// What became of one document of a bulk request. `deletes` tells a deletion, of which 404 is as good as done.
pub fn document(deletes: bool, status: u16, error: Option<&ServerError>) -> Verdict {
    let reason = || error.map_or_else(|| format!("HTTP status {status}"), ServerError::to_string);
    match status {
        200..=299 => Verdict::Done,
        404 if deletes && error.is_none() => Verdict::Done,
        429 | 502 | 503 | 504 => Verdict::Retry(reason()),
        401 | 403 => Verdict::Stop(stopped(status, &reason())),
        404 => Verdict::Stop(format!("{}; the index was deleted while it was loaded", reason())),
        _ => Verdict::Reject(reason()),
    }
}

/// What a whole request's status means. A status that is no error is [`Verdict::Done`]; a refusal of this very request, such as
/// a query that the server cannot parse, is [`Verdict::Reject`].
pub fn request(status: u16, error: Option<&ServerError>) -> Verdict {
    let reason = error.map_or_else(|| format!("HTTP status {status}"), ServerError::to_string);
    match status {
        200..=299 => Verdict::Done,
        408 | 429 | 502 | 503 | 504 => Verdict::Retry(reason),
        401 | 403 => Verdict::Stop(stopped(status, &reason)),
        _ => Verdict::Reject(reason),
    }
}

/// A refusal that lasts, with its remedy.
fn stopped(status: u16, reason: &str) -> String {
    let remedy = if status == 401 {
        "check ELASTIC_API_KEY, or load.elasticsearch.user and ELASTIC_PASSWORD; they may have expired"
    } else if reason.contains("cluster_block_exception") {
        "the index is read-only: free disk space, or lift the block, then run again"
    } else if reason.contains("license") {
        "the server's licence does not cover this; choose other load.elasticsearch.knn.index_options"
    } else {
        "the user lacks a privilege; `imagedex doctor` lists what is needed"
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

    fn error(kind: &str, reason: &str) -> ServerError {
        ServerError { kind: kind.to_owned(), reason: Some(reason.to_owned()), ..ServerError::default() }
    }

    #[test]
    fn only_what_may_pass_later_is_tried_again() {
        let rejected = error("es_rejected_execution_exception", "queue is full");
        assert!(matches!(document(false, 429, Some(&rejected)), Verdict::Retry(_)));
        assert!(matches!(document(false, 503, None), Verdict::Retry(_)));
        let mapping = error("strict_dynamic_mapping_exception", "[x] within [_doc] is not allowed");
        assert!(matches!(document(false, 400, Some(&mapping)), Verdict::Reject(_)));
        assert!(matches!(document(false, 409, None), Verdict::Reject(_)));
        let block =
            error("cluster_block_exception", "index [i] blocked by: [FORBIDDEN/8/index write (api)];");
        let Verdict::Stop(reason) = document(false, 403, Some(&block)) else { panic!("a block lasts") };
        assert!(reason.contains("read-only"), "{reason}");
        let Verdict::Stop(reason) = request(401, None) else { panic!("credentials do not come back") };
        assert!(reason.contains("ELASTIC_API_KEY"), "{reason}");
        assert!(matches!(request(500, None), Verdict::Reject(_)));
    }

    #[test]
    fn deleting_what_is_not_there_is_done() {
        assert_eq!(document(true, 404, None), Verdict::Done);
        let gone = error("index_not_found_exception", "no such index");
        assert!(matches!(document(true, 404, Some(&gone)), Verdict::Stop(_)));
        assert!(matches!(document(false, 404, Some(&gone)), Verdict::Stop(_)));
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
    fn pauses_grow_are_capped_and_differ() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(100));
        assert_eq!(pause(2, 1.0), Duration::from_millis(200));
        assert_eq!(pause(2, 0.0), Duration::from_millis(100));
        assert_eq!(pause(40, 1.0), Duration::from_secs(5));
        assert!(pause(40, 0.0) >= Duration::from_millis(2500));
    }
}
