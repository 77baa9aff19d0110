//! Documents → NDJSON. Pure: what is sent, not how.

use std::collections::HashSet;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::config::Layout;
use crate::stages::decode::Picture;

/// How the documents of an index are written.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    pub layout: Layout,
    /// Vectors as base64 of big-endian `f32`, which servers from 9.3 on take; else as arrays of numbers.
    pub base64: bool,
    /// Whether there is a field `embedding_knn`.
    pub knn: bool,
    /// Whether there is a field `embedding_sparse`.
    pub sparse: bool,
}

/// The `_id` of a picture: the same for the same picture, so that sending twice is harmless; of a length that the server
/// takes (512 bytes), however long the path is.
pub fn document_id(id: &str) -> String {
    hex::encode(&Sha256::digest(id.as_bytes())[..16])
}

/// One action of a bulk request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The picture's id, not the document's.
    pub id: String,
    pub deletes: bool,
    lines: Range<usize>,
}

/// The body of a bulk request, and what it is made of.
#[derive(Debug, Default)]
pub struct Chunk {
    pub actions: Vec<Action>,
    pub body: Vec<u8>,
    ids: HashSet<String>,
}

impl Chunk {
    /// An empty one with room for as much: growing by doubling would copy each body once more.
    pub fn as_large_as(other: &Chunk) -> Chunk {
        let body = Vec::with_capacity(other.body.len() + other.body.len() / 8);
        Chunk {
            body,
            actions: Vec::with_capacity(other.actions.len()),
            ids: HashSet::with_capacity(other.ids.len()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Whether the picture is in this chunk already. A second action on it must wait for the first to be done: one of the two
    /// could be retried after the other.
    pub fn holds(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// Adds a document. `number` is its row, which the original's layout stores.
    pub fn index(&mut self, encoder: &Encoder, picture: &Picture, norm: f32, vector: &[f32], number: u64) {
        let start = self.body.len();
        self.line("index", &picture.id);
        let layout = encoder.layout;
        self.field('{', layout.id(), &picture.id);
        match layout {
            Layout::Original => self.field(',', "id", &number),
            Layout::Imagedex => {
                if let Some(label) = &picture.label {
                    self.field(',', "label", label);
                }
                self.field(',', "sha256", &picture.sha256);
                // As the feature table has it: the same 64 bits, signed.
                self.field(',', "dhash", &(picture.dhash as i64));
                self.field(',', "width", &picture.width);
                self.field(',', "height", &picture.height);
                self.field(',', "format", &picture.format);
                self.field(',', "norm", &norm);
            }
        }
        self.vector(encoder, layout.vector(), vector);
        if encoder.knn {
            self.vector(encoder, KNN_FIELD, vector);
        }
        if encoder.sparse {
            self.key(',', SPARSE_FIELD);
            // The server takes no weight that is not a normal number above zero.
            let weights = vector.iter().enumerate().filter(|(_, weight)| **weight >= f32::MIN_POSITIVE);
            for (n, (dimension, weight)) in weights.enumerate() {
                self.body.push(if n == 0 { b'{' } else { b',' });
                self.json(&dimension.to_string());
                self.body.push(b':');
                self.json(weight);
            }
            self.body.push(b'}');
        }
        self.body.extend_from_slice(b"}\n");
        self.note(&picture.id, false, start);
    }

    /// Adds a deletion.
    pub fn delete(&mut self, id: &str) {
        let start = self.body.len();
        self.line("delete", id);
        self.note(id, true, start);
    }

    /// The same actions again, only those at `which`.
    pub fn subset(&self, which: &[usize]) -> Chunk {
        let mut chunk = Chunk::default();
        for &i in which {
            let action = &self.actions[i];
            let start = chunk.body.len();
            chunk.body.extend_from_slice(&self.body[action.lines.clone()]);
            chunk.note(&action.id, action.deletes, start);
        }
        chunk
    }

    fn note(&mut self, id: &str, deletes: bool, start: usize) {
        self.ids.insert(id.to_owned());
        self.actions.push(Action { id: id.to_owned(), deletes, lines: start..self.body.len() });
    }

    fn line(&mut self, action: &str, id: &str) {
        let id = document_id(id);
        self.body.extend_from_slice(format!("{{\"{action}\":{{\"_id\":\"{id}\"}}}}\n").as_bytes());
    }

    fn vector(&mut self, encoder: &Encoder, name: &str, vector: &[f32]) {
        self.key(',', name);
        if encoder.base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_be_bytes()).collect();
            self.body.push(b'"');
            let start = self.body.len();
            self.body.resize(start + bytes.len().div_ceil(3) * 4, 0);
            // The buffer has just been given the length that base64 has.
            let written = STANDARD.encode_slice(&bytes, &mut self.body[start..]).unwrap_or_default();
            self.body.truncate(start + written);
            self.body.push(b'"');
        } else {
            self.json(vector);
        }
    }

    fn field<T: serde::Serialize + ?Sized>(&mut self, before: char, name: &str, value: &T) {
        self.key(before, name);
        self.json(value);
    }

    /// Names are ours, and need no escapes.
    fn key(&mut self, before: char, name: &str) {
        self.body.extend_from_slice(format!("{before}\"{name}\":").as_bytes());
    }

    /// Numbers in the fewest digits that give them back; strings escaped, so that no name can end the line.
    fn json<T: serde::Serialize + ?Sized>(&mut self, value: &T) {
        // Writing text and numbers to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.body, value);
    }
}

/// The field of the approximate arm.
pub const KNN_FIELD: &str = "embedding_knn";
/// The field of the sparse arm.
pub const SPARSE_FIELD: &str = "embedding_sparse";

/// The vector in a document's source, as either encoding has it.
pub fn decode_base64(text: &str) -> Option<Vec<f32>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| numbers.iter().map(|number| f32::from_be_bytes(*number)).collect())
}

/// How many documents a request should hold: doubled as long as that makes the load faster, under a cap of bytes.
#[derive(Debug)]
pub struct ChunkSize {
    documents: usize,
    most_bytes: usize,
    settled: bool,
    /// Documents and seconds of the requests of the present size.
    requests: u32,
    total: (f64, f64),
    /// The best size so far, and its documents per second.
    best: (usize, f64),
}

impl ChunkSize {
    const FIRST: usize = 500;
    /// Requests of one size before it is judged: the first of a connection is slow.
    const SAMPLES: u32 = 4;
    /// A size is better only if it is faster by this factor: larger requests cost memory on both sides.
    const GAIN: f64 = 1.05;

    pub fn new(most_bytes: usize) -> ChunkSize {
        let best = (ChunkSize::FIRST, 0.0);
        ChunkSize {
            documents: ChunkSize::FIRST,
            most_bytes,
            settled: false,
            requests: 0,
            total: (0.0, 0.0),
            best,
        }
    }

    /// Whether a chunk is large enough to be sent.
    pub fn is_full(&self, chunk: &Chunk) -> bool {
        chunk.actions.len() >= self.documents || chunk.body.len() >= self.most_bytes
    }

    /// Takes note of a request that went through at the first try.
    pub fn sent(&mut self, documents: usize, bytes: usize, seconds: f64) {
        if self.settled || documents != self.documents {
            return;
        }
        self.requests += 1;
        self.total = (self.total.0 + documents as f64, self.total.1 + seconds);
        if self.requests < ChunkSize::SAMPLES {
            return;
        }
        let rate = self.total.0 / self.total.1.max(1e-9);
        let is_better = rate > self.best.1 * ChunkSize::GAIN;
        if is_better {
            self.best = (self.documents, rate);
        }
        let fits = 2 * bytes <= self.most_bytes;
        self.settled = !(is_better && fits);
        self.documents = if self.settled { self.best.0 } else { 2 * self.documents };
        (self.requests, self.total) = (0, (0.0, 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::scan::Split;
    use serde_json::Value;

    fn picture(id: &str) -> Picture {
        Picture {
            id: id.to_owned(),
            split: Split::Gallery,
            label: Some("a \"b\"\nc".to_owned()),
            sha256: "ab".to_owned(),
            pixel_sha256: String::new(),
            dhash: u64::MAX,
            width: 4,
            height: 3,
            format: "png".to_owned(),
        }
    }

    fn encoder(base64: bool) -> Encoder {
        Encoder { layout: Layout::Imagedex, base64, knn: true, sparse: true }
    }

    fn lines(chunk: &Chunk) -> Vec<Value> {
        let text = std::str::from_utf8(&chunk.body).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    #[test]
    fn names_cannot_break_out_of_their_line() {
        let mut chunk = Chunk::default();
        let id = "a\n{\"delete\":{\"_index\":\"other\"}}\r\n\u{2028}\"\\";
        chunk.index(&encoder(false), &picture(id), 1.5, &[0.1, 0.0, 0.25], 7);
        chunk.delete(id);
        let lines = lines(&chunk);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["index"]["_id"], document_id(id));
        assert_eq!(lines[1]["id"], id);
        assert_eq!(lines[1]["label"], "a \"b\"\nc");
        assert_eq!(lines[1]["dhash"], -1);
        assert_eq!(lines[1]["embedding_sparse"], serde_json::json!({ "0": 0.1, "2": 0.25 }));
        assert_eq!(lines[2]["delete"]["_id"], document_id(id));
    }

    #[test]
    fn both_encodings_give_the_same_bits() {
        let vector: Vec<f32> = (0..512).map(|i| 1.0 / (i as f32 + 3.0)).collect();
        for base64 in [false, true] {
            let mut chunk = Chunk::default();
            chunk.index(&encoder(base64), &picture("p"), 1.0, &vector, 0);
            let document = &lines(&chunk)[1];
            let read = match &document["embedding"] {
                Value::String(text) => decode_base64(text).expect("base64"),
                numbers => serde_json::from_value(numbers.clone()).expect("numbers"),
            };
            assert_eq!(read, vector);
        }
    }

    #[test]
    fn the_originals_layout_has_its_three_fields() {
        let mut chunk = Chunk::default();
        let encoder = Encoder { layout: Layout::Original, base64: false, knn: false, sparse: false };
        chunk.index(&encoder, &picture("cat.jpg"), 1.0, &[1.0], 3);
        assert_eq!(
            lines(&chunk)[1],
            serde_json::json!({ "name": "cat.jpg", "id": 3, "image_vector": [1.0] })
        );
    }

    #[test]
    fn a_subset_holds_the_same_lines() {
        let mut chunk = Chunk::default();
        for id in ["a", "b", "c"] {
            chunk.index(&encoder(true), &picture(id), 1.0, &[1.0, 2.0], 0);
        }
        let subset = chunk.subset(&[0, 2]);
        assert_eq!(subset.actions.iter().map(|action| action.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(lines(&subset), [&lines(&chunk)[0..2], &lines(&chunk)[4..6]].concat());
        assert!(subset.holds("c") && !subset.holds("b"));
    }

    #[test]
    fn the_size_doubles_while_that_pays() {
        let rate_at =
            |documents: usize| if documents <= 2000 { 1000.0 * documents as f64 } else { 500_000.0 };
        let mut size = ChunkSize::new(100_000_000);
        for _ in 0..40 {
            let documents = size.documents;
            size.sent(documents, documents * 1000, documents as f64 / rate_at(documents));
        }
        assert_eq!(size.documents, 2000);
        let mut size = ChunkSize::new(1_450_000);
        for _ in 0..40 {
            let documents = size.documents;
            size.sent(documents, documents * 1000, documents as f64 / rate_at(documents));
        }
        assert_eq!(size.documents, 1000, "2,000 would be over the cap of bytes");
    }
}
