//! What a program without the feature `milvus` says.

use tokio::runtime::Handle;

use super::MilvusConfig;
use crate::engines::{EngineError, VectorIndex};

/// An error that says how to get Milvus.
pub fn open(
    _config: &MilvusConfig,
    _non_negative: bool,
    _handle: &Handle,
) -> Result<Box<dyn VectorIndex>, EngineError> {
    let reason = "engine milvus is not in this program: build it with `cargo build --release --features milvus`, see docs/milvus.md";
    Err(EngineError::Usage(reason.to_owned()))
}
