//! Pictures → vectors. One trait, because a test needs an embedder without a model.
//!
//! [`onnx`] computes through ONNX Runtime; [`fake`] stands in for it in tests and cannot be named in a pipeline file.

pub mod fake;
pub mod onnx;

use std::path::PathBuf;

use crate::models::ModelSpec;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::preprocess::ImageBatch;

/// Why a batch could not be embedded. Never about one picture: those fail in `decode`.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error(
        "cannot load the ONNX Runtime library {path}: {reason}; run `make setup`, or point runtime.library at it"
    )]
    Runtime { path: String, reason: String },
    /// The runtime has no such provider, or it refuses this machine or model. Set `model.provider = "cpu"`, or run `make setup`.
    #[error("provider {provider} cannot be used: {reason}")]
    Provider { provider: String, reason: String },
    /// The file and its card were made for different models. Run `imagedex models build`, or correct the card.
    #[error("model {path} does not fit its card: {reason}")]
    Contract { path: String, reason: String },
    /// The runtime failed in the middle of a batch, most often out of memory. Lower `model.batch` or `runtime.threads`; what is
    /// stored is kept.
    #[error("inference failed: {0}")]
    Inference(String),
}

/// Turns pixels into vectors, always the same bytes for the same pixels: alone, in any batch, on any number of threads.
pub trait Embedder: Send {
    /// The model, its shapes and its preprocessing.
    fn spec(&self) -> &ModelSpec;

    /// What computes, in one line, for logs and `doctor`.
    fn describe(&self) -> String;

    /// Embeds up to `spec().batch` pictures; fewer are padded inside, so that the runtime sees one shape only.
    fn embed(&mut self, batch: ImageBatch) -> Result<EmbeddingBatch, EmbedError>;
}

/// Where the runtime is and what it may use. Nothing here changes a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// ONNX Runtime's shared library, or the folder that holds it. Its providers' libraries lie in the same folder.
    pub library: PathBuf,
    /// Threads of one call.
    pub threads: usize,
    /// Folder where OpenVINO keeps compiled models; `None`: it compiles every time, about as fast for VGG16.
    pub cache: Option<PathBuf>,
}

/// Loads the runtime and the model that `spec` names.
pub fn open(spec: ModelSpec, runtime: &Runtime) -> Result<Box<dyn Embedder>, EmbedError> {
    Ok(Box::new(onnx::OnnxEmbedder::load(spec, runtime)?))
}

/// Raw vectors `[pictures, dim]` → normalised as the spec says, with their lengths before. Computed in `f64`, number by
/// number in order, so that the result does not depend on the batch.
fn finish(batch: ImageBatch, spec: &ModelSpec, mut vectors: Vec<f32>) -> Result<EmbeddingBatch, EmbedError> {
    let mut norms = Vec::with_capacity(batch.pictures.len());
    for (picture, vector) in batch.pictures.iter().zip(vectors.chunks_exact_mut(spec.dim)) {
        let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if !length.is_finite() {
            return Err(EmbedError::Inference(format!(
                "the vector of {} holds a number that is not finite",
                picture.id
            )));
        }
        norms.push(length as f32);
        // A vector of zeros has no direction; it stays as it is and scores 0 everywhere.
        if spec.normalize == crate::models::Normalize::L2 && length > 0.0 {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    Ok(EmbeddingBatch { pictures: batch.pictures, dim: spec.dim, vectors, norms })
}

/// A batch has to fit: no more pictures than `spec.batch`, and the pixels of each of them.
fn check(batch: &ImageBatch, spec: &ModelSpec) -> Result<(), EmbedError> {
    let (count, side) = (batch.pictures.len(), spec.side as usize);
    if count > spec.batch {
        return Err(EmbedError::Inference(format!("{count} pictures in a batch of at most {}", spec.batch)));
    }
    let expected = count * side * side * 3;
    if batch.pixels.len() != expected {
        return Err(EmbedError::Inference(format!(
            "{} bytes of pixels for {count} pictures of {side} x {side} x 3, which take {expected}",
            batch.pixels.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Normalize, tests::spec};
    use crate::stages::decode::Picture;
    use crate::stages::scan::Split;

    pub(super) fn batch(side: u32, values: &[u8]) -> ImageBatch {
        let picture = |&value: &u8| Picture {
            id: format!("{value}.png"),
            split: Split::Gallery,
            label: None,
            sha256: String::new(),
            pixel_sha256: String::new(),
            dhash: 0,
            width: side,
            height: side,
            format: "png".into(),
        };
        let pixels = values.iter().flat_map(|&value| vec![value; (side * side * 3) as usize]).collect();
        ImageBatch { pictures: values.iter().map(picture).collect(), pixels }
    }

    #[test]
    fn vectors_get_length_one_and_keep_their_raw_length() {
        let done = finish(batch(4, &[1, 2]), &spec(), vec![3.0, 4.0, 0.0, 0.0]).unwrap();
        assert_eq!((done.vectors, done.norms), (vec![0.6, 0.8, 0.0, 0.0], vec![5.0, 0.0]));
        let raw = ModelSpec { normalize: Normalize::None, ..spec() };
        assert_eq!(finish(batch(4, &[1]), &raw, vec![3.0, 4.0]).unwrap().vectors, [3.0, 4.0]);
    }

    #[test]
    fn a_number_that_is_not_finite_is_never_stored() {
        for bad in [f32::NAN, f32::INFINITY] {
            let message = finish(batch(4, &[7]), &spec(), vec![1.0, bad]).unwrap_err().to_string();
            assert!(message.contains("7.png") && message.contains("finite"), "{message}");
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused() {
        let spec = ModelSpec { batch: 1, ..spec() };
        assert!(check(&batch(4, &[1, 2]), &spec).unwrap_err().to_string().contains("at most 1"));
        assert!(check(&batch(5, &[1]), &spec).unwrap_err().to_string().contains("75 bytes"));
        assert!(check(&batch(4, &[1]), &spec).is_ok());
    }
}
