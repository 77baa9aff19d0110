//! [`DecodedImage`](super::decode::DecodedImage) → a row of an [`ImageBatch`]: resized as the model card says.

use super::decode::Picture;

/// Pictures ready for an embedder.
#[derive(Debug, Clone, Default)]
pub struct ImageBatch {
    pub pictures: Vec<Picture>,
    /// `u8`, shape `[pictures.len(), side, side, 3]`, RGB. Means and channel order live in the model's graph.
    pub pixels: Vec<u8>,
}
