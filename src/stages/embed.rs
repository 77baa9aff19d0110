//! [`ImageBatch`](super::preprocess::ImageBatch) → [`EmbeddingBatch`] through an [`Embedder`](crate::embedders::Embedder).

use super::decode::Picture;

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
