//! The model card, read and resolved: what goes into a model, what comes out, and which file it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] #[value(name = $text)] $variant),+ }
        impl $name {
            /// The name used in pipeline files, cards and reports.
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text),+ } }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }
    };
}

named_enum!(
    /// The number format that the network computes in.
    Precision { Fp32 = "fp32", Bf16 = "bf16", Int8 = "int8" }
);
named_enum!(
    /// The part of ONNX Runtime that computes. Never chosen silently: results differ in the last bits.
    Provider { Cpu = "cpu", OpenVino = "openvino" }
);
named_enum!(
    /// How the last feature map becomes one vector.
    Pooling {
        /// The greatest value of each channel: the original's choice.
        Max = "max",
        /// The mean of each channel.
        Avg = "avg",
        /// Generalised mean with exponent 3 (Radenović, Tolias, Chum 2018, "Fine-tuning CNN image retrieval").
        Gem = "gem",
    }
);
named_enum!(
    /// What is done to the pooled vector.
    Normalize {
        /// Scaled to length 1.
        L2 = "l2",
        /// Left as it is.
        None = "none",
    }
);
named_enum!(
    /// The resampling filter, each as Pillow's filter of that name.
    Resize {
        /// What the original used: Keras' `load_img` default.
        Nearest = "nearest",
        Bilinear = "bilinear",
        Bicubic = "bicubic",
        Lanczos = "lanczos",
    }
);

/// A model card with the pipeline's choices applied: everything an embedder needs, and all that makes its vectors what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelSpec {
    /// Name of the card, such as `vgg16`.
    pub name: String,
    /// The ONNX file.
    #[serde(skip)]
    pub file: PathBuf,
    /// Hex SHA-256 of the ONNX file.
    pub sha256: String,
    /// Input tensor: `uint8 [batch, side, side, 3]`, RGB.
    pub input: String,
    /// Output tensor: `float32 [batch, dim]`, pooled, not normalised.
    pub output: String,
    /// Height and width of the input in pixels.
    pub side: u32,
    /// Length of a vector.
    pub dim: usize,
    /// Whether no number of a vector is ever negative (VGG16: ReLU, then pooling).
    pub non_negative: bool,
    /// Pictures per call of the runtime: one fixed shape, so that its arena does not grow.
    #[serde(skip)]
    pub batch: usize,
    pub resize: Resize,
    pub pooling: Pooling,
    pub normalize: Normalize,
    pub precision: Precision,
    pub provider: Provider,
}
