//! What a program without the feature `faiss` says.

use super::FaissConfig;
use crate::engines::{EngineError, VectorIndex};

/// An error that says how to get FAISS.
pub fn open(_config: &FaissConfig, _non_negative: bool) -> Result<Box<dyn VectorIndex>, EngineError> {
    let reason = "engine faiss is not in this program: build it with `cargo build --release --features faiss`, see docs/engines.md";
    Err(EngineError::Usage(reason.to_owned()))
}
