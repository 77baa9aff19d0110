//! Pictures → vectors. One trait, because a test needs an embedder without a model.

use crate::models::ModelSpec;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::preprocess::ImageBatch;

/// Why a batch could not be embedded. Never about one picture: those fail in `decode`.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error("cannot load the ONNX Runtime library {path}: {reason}; run `make setup`, or point runtime.library at it")]
    Runtime { path: String, reason: String },
    #[error("provider {provider} cannot be used: {reason}")]
    Provider { provider: String, reason: String },
    #[error("model {path} does not fit its card: {reason}")]
    Contract { path: String, reason: String },
    #[error("inference failed: {0}")]
    Inference(String),
}

/// Turns pixels into vectors, always the same bytes for the same pixels: alone, in any batch, on any number of threads.
pub trait Embedder: Send {
    /// The model, its shapes and its preprocessing.
    fn spec(&self) -> &ModelSpec;

    /// Embeds up to `spec().batch` pictures; fewer are padded inside, so that the runtime sees one shape only.
    fn embed(&mut self, batch: ImageBatch) -> Result<EmbeddingBatch, EmbedError>;
}
