//! What fuzzing (docs/fuzzing.md) asks of the code that nobody else may call: requests that are built from any names, and answers
//! of any bytes. Compiled for tests and for fuzzing alone.

use serde_json::Value;

use super::bulk::{Chunk, Encoder, document_id};
use super::senders::BulkAnswer;
use super::{Layout, Product, retry};
use crate::stages::decode::Picture;
use crate::stages::scan::Split;

/// Ids from outside, one after the other, become two lines each, whatever they hold: no name ends its line or adds another.
pub fn bulk_request(text: &str) {
    let encoder =
        Encoder { layout: Layout::Imagedex, base64: text.len().is_multiple_of(2), knn: false, sparse: false };
    let ids: Vec<&str> = text.split('\u{1f}').collect();
    let mut chunk = Chunk::default();
    for id in &ids {
        let picture = Picture {
            id: (*id).to_owned(),
            label: Some((*id).to_owned()),
            split: Split::Gallery,
            sha256: (*id).to_owned(),
            pixel_sha256: String::new(),
            dhash: 0,
            width: 1,
            height: 1,
            format: (*id).to_owned(),
        };
        chunk.index(&encoder, &picture, 1.0, &[1.0, 0.0], 1);
    }
    let lines: Vec<&[u8]> = chunk.body.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 2 * ids.len());
    for (pair, id) in lines.chunks(2).zip(ids) {
        let [action, document] =
            [pair[0], pair[1]].map(|line| serde_json::from_slice::<Value>(line).expect("JSON"));
        assert_eq!(action, serde_json::json!({ "index": { "_id": document_id(id) } }));
        for field in ["id", "label", "sha256", "format"] {
            assert_eq!(document[field], id);
        }
    }
}

/// An answer of any bytes is understood or is none; a reason is short, however long the server's is.
pub fn bulk_answer(bytes: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<BulkAnswer>(bytes) else { return };
    for item in answer.items.into_iter().flat_map(|item| item.into_values()) {
        for deletes in [false, true] {
            let verdict = retry::document(Product::Elasticsearch, deletes, item.status, item.error.as_ref());
            if deletes && (200..300).contains(&item.status) {
                assert_eq!(verdict, retry::Verdict::Done);
            }
        }
        let _ = retry::request(Product::OpenSearch, item.status, item.error.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_name_breaks_out_of_a_bulk_request(text in any::<String>()) {
            super::bulk_request(&text);
        }

        #[test]
        fn any_answer_is_understood_or_none(
            status in any::<u16>(), kind in any::<String>(), reason in any::<Option<String>>(), cut in 0..200usize,
        ) {
            let cause = serde_json::json!({ "type": kind, "reason": reason });
            let error = serde_json::json!({ "type": kind, "reason": reason, "root_cause": [cause], "caused_by": cause });
            let answer = serde_json::json!({ "items": [{ "index": { "status": status, "error": error } }] }).to_string();
            super::bulk_answer(answer.as_bytes());
            super::bulk_answer(&answer.as_bytes()[..cut.min(answer.len())]);
        }
    }
}
