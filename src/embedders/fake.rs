//! A stand-in for a model, for tests that are not about the model: no file, no runtime, microseconds a picture.
//!
//! Not reachable from a pipeline file. It keeps what the rest of the program relies on: the same bytes for the same pixels,
//! no negative number, like pictures close together. It says nothing about what pictures show.

use super::{EmbedError, Embedder, check, finish};
use crate::models::ModelSpec;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::preprocess::ImageBatch;

/// Levels per channel of the colour histogram: 4 x 4 x 4 colours.
const LEVELS: usize = 4;
const COLOURS: usize = LEVELS * LEVELS * LEVELS;

/// A coarse colour histogram, spread over `dim` numbers by a fixed random matrix without negative entries.
#[derive(Debug, Clone)]
pub struct FakeEmbedder {
    spec: ModelSpec,
    /// `[COLOURS, dim]`.
    projection: Vec<f32>,
}

impl FakeEmbedder {
    /// Takes side, dimension, batch and normalisation from `spec`; its file is never opened.
    pub fn new(spec: ModelSpec) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15;
        let projection = (0..COLOURS * spec.dim).map(|_| uniform(&mut state)).collect();
        Self { spec, projection }
    }
}

/// The next number in 0..1 of SplitMix64 (Steele, Lea, Flood 2014): short, and the same everywhere.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
}

impl Embedder for FakeEmbedder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn describe(&self) -> String {
        "colour histogram (a stand-in for tests)".into()
    }

    fn embed(&mut self, batch: ImageBatch) -> Result<EmbeddingBatch, EmbedError> {
        check(&batch, &self.spec)?;
        let dim = self.spec.dim;
        let picture_len = (self.spec.side * self.spec.side * 3) as usize;
        let mut vectors = Vec::with_capacity(batch.pictures.len() * dim);
        for pixels in batch.pixels.chunks_exact(picture_len) {
            let mut histogram = [0u32; COLOURS];
            for pixel in pixels.chunks_exact(3) {
                let level = |value: u8| usize::from(value) * LEVELS / 256;
                histogram[(level(pixel[0]) * LEVELS + level(pixel[1])) * LEVELS + level(pixel[2])] += 1;
            }
            let mut vector = vec![0f32; dim];
            for (&count, row) in
                histogram.iter().zip(self.projection.chunks_exact(dim)).filter(|(count, _)| **count > 0)
            {
                vector.iter_mut().zip(row).for_each(|(sum, weight)| *sum += count as f32 * weight);
            }
            vectors.append(&mut vector);
        }
        finish(batch, &self.spec, vectors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::batch;
    use super::*;
    use crate::models::tests::spec;

    #[test]
    fn a_picture_gives_the_same_bytes_alone_and_in_any_batch() {
        let mut embedder = FakeEmbedder::new(ModelSpec { dim: 16, ..spec() });
        let together = embedder.embed(batch(4, &[10, 200, 90])).unwrap();
        let alone = embedder.embed(batch(4, &[200])).unwrap();
        assert_eq!(together.vector(1), alone.vector(0));
        assert_ne!(together.vector(0), together.vector(1));
        assert!(together.vectors.iter().all(|&x| x >= 0.0));
        assert!(embedder.embed(ImageBatch::default()).unwrap().is_empty());
    }
}
