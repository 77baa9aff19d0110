//! [`ImageBatch`](super::preprocess::ImageBatch) → [`EmbeddingBatch`] through an [`Embedder`].
//!
//! Decoding runs ahead on its own threads and hands batches over through a short queue; the model works on this
//! thread and hands chunks to the store. What is in memory is the queue and one chunk, however many pictures there are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::decode::{self, Decoded, Failure, Picture, PictureOptions};
use super::scan::Seen;
use crate::embedders::{EmbedError, Embedder};
use crate::memory::Shares;
use crate::progress::Progress;

/// Pictures with their vectors: what the store writes, what it reads back, and what engines load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbeddingBatch {
    pub pictures: Vec<Picture>,
    /// Length of one vector.
    pub dim: usize,
    /// `f32`, shape `[pictures.len(), dim]`, normalised as the configuration says.
    pub vectors: Vec<f32>,
    /// L2 norm of each vector before normalisation, so that un-normalised vectors can be rebuilt.
    pub norms: Vec<f32>,
}

impl EmbeddingBatch {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The vector of picture `i`.
    pub fn vector(&self, i: usize) -> &[f32] {
        &self.vectors[i * self.dim..(i + 1) * self.dim]
    }

    /// At most `most` of the rows, evenly spaced, in their order.
    pub fn evenly_spaced(self, most: usize) -> EmbeddingBatch {
        let count = self.len().min(most);
        if count == self.len() {
            return self;
        }
        self.of_rows(&(0..count).map(|i| i * self.len() / count).collect::<Vec<_>>())
    }

    /// The rows whose pictures are wanted, in their order.
    pub fn only(&self, wanted: impl Fn(&Picture) -> bool) -> EmbeddingBatch {
        self.of_rows(&(0..self.len()).filter(|&row| wanted(&self.pictures[row])).collect::<Vec<_>>())
    }

    fn of_rows(&self, rows: &[usize]) -> EmbeddingBatch {
        EmbeddingBatch {
            pictures: rows.iter().map(|&row| self.pictures[row].clone()).collect(),
            dim: self.dim,
            vectors: rows.iter().flat_map(|&row| self.vector(row)).copied().collect(),
            norms: rows.iter().map(|&row| self.norms[row]).collect(),
        }
    }

    /// Appends the rows of `other`, which has the same `dim` (or either is empty).
    pub fn append(&mut self, mut other: EmbeddingBatch) {
        if self.is_empty() {
            self.dim = other.dim;
        }
        assert!(other.is_empty() || other.dim == self.dim, "batches of different dimension");
        self.pictures.append(&mut other.pictures);
        self.vectors.append(&mut other.vectors);
        self.norms.append(&mut other.norms);
    }
}

/// When the open chunk is handed to the store: kill -9 loses at most this much work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkRule {
    /// Rows of the first chunk; each further one is twice as large, up to `most`: a table likes few large files.
    pub first: usize,
    pub most: usize,
    /// A chunk older than this is handed over whatever its size.
    pub age: Duration,
}

impl ChunkRule {
    /// For rows of `dim` numbers within a share of memory.
    pub(crate) fn within(shares: Shares, dim: usize) -> ChunkRule {
        let most = shares.rows(dim);
        ChunkRule { first: most.min(4_096), most, age: Duration::from_secs(120) }
    }
}

/// What became of the pictures.
#[derive(Debug, Default)]
pub struct Embedded {
    /// Pictures embedded and handed over.
    pub pictures: usize,
    pub failures: Vec<Failure>,
    /// Wall-clock seconds in which the model worked.
    pub model_seconds: f64,
    /// Wall-clock seconds in which the model waited for decoded pictures.
    pub wait_seconds: f64,
    /// On a cluster: what each executor did, by its name.
    pub executors: BTreeMap<String, Share>,
}

/// What one executor did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// Pictures that it answered for, and those of them that failed.
    pub pictures: usize,
    pub failed: usize,
    /// Wall-clock seconds in which its model worked on them.
    pub model_seconds: f64,
}

/// Embeds `images` in their order; `commit` gets chunks that together hold each picture that could be decoded once.
///
/// When `stop` is set, what is decoded by then is still embedded and committed, and the rest is left for the next run.
pub fn embed<E: From<EmbedError>>(
    embedder: &mut dyn Embedder,
    images: &[Seen],
    options: &PictureOptions,
    stop: &AtomicBool,
    mut commit: impl FnMut(EmbeddingBatch) -> Result<(), E>,
) -> Result<Embedded, E> {
    let mut progress = Progress::start("embed", images.len() as u64);
    let mut embedded = Embedded::default();
    let mut open = EmbeddingBatch::default();
    let mut opened = Instant::now();
    let chunks = ChunkRule::within(options.shares, embedder.spec().dim);
    let mut size = chunks.first;
    let (send, receive) = crossbeam_channel::bounded::<Decoded>(options.shares.queue);
    std::thread::scope(|scope| {
        // Moved into the scope: an early return drops it, and the decoder ends at its next `send`.
        let receive = receive;
        scope.spawn(move || decode::batches(images, options, stop, |decoded| send.send(decoded).is_ok()));
        loop {
            let waiting = Instant::now();
            let Ok(Decoded { batch, failures }) = receive.recv() else { break };
            embedded.wait_seconds += waiting.elapsed().as_secs_f64();
            progress.advance(batch.pictures.len(), failures.len());
            embedded.failures.extend(failures);
            if batch.pictures.is_empty() {
                continue;
            }
            let working = Instant::now();
            let vectors = embedder.embed(batch)?;
            embedded.model_seconds += working.elapsed().as_secs_f64();
            if open.is_empty() {
                opened = Instant::now();
            }
            embedded.pictures += vectors.len();
            open.append(vectors);
            if open.len() >= size || opened.elapsed() >= chunks.age {
                commit(std::mem::take(&mut open))?;
                size = (size * 2).min(chunks.most);
            }
        }
        if !open.is_empty() {
            commit(open)?;
        }
        progress.finish();
        if stop.load(Ordering::Relaxed) && !images.is_empty() {
            tracing::warn!(
                "interrupted: {} of {} pictures are done and stored",
                embedded.pictures,
                images.len()
            );
        }
        Ok(embedded)
    })
}
