//! The model: its card, its files, and what makes its vectors what they are.
//!
//! [`card`] is read and resolved into a [`ModelSpec`]; [`build`] makes the ONNX files out of published [`weights`];
//! [`calibrate`] measures what `int8` needs. A newcomer would take two vectors of the same network for comparable: they are
//! only when the whole [`provenance`](ModelSpec::provenance) agrees, number format and resize filter included.

pub mod build;
pub mod calibrate;
pub mod card;
pub mod onnx;
pub mod weights;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What can be wrong with a model's files, or with what was asked of them.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is not there, or may not be read. Run `make setup`.
    #[error("cannot read {path}: {reason}")]
    Read { path: String, reason: String },
    /// A full disk, or no right to write. Free some space, or choose another cache with `IMAGEDEX_CACHE`.
    #[error("cannot write {path}: {reason}")]
    Write { path: String, reason: String },
    /// The card has a key too many, too few or a wrong one (models/README.md).
    #[error("model card {path}: {reason}")]
    Card { path: String, reason: String },
    /// The card does not have what `[model]` asks for. Change the setting that the reason names.
    #[error("model {card}: {reason}")]
    Choice { card: String, reason: String },
    #[error("model file {path} of card {card} is missing; run `make setup`, or `imagedex models build`")]
    Missing { path: String, card: String },
    #[error(
        "model file {path} has sha256 {found}, but card {card} says {expected}; \
         delete the file and run `imagedex models build`, or correct the card"
    )]
    Sha256 { path: String, card: String, expected: String, found: String },
    #[error("cannot use weights {path}: {reason}; run `make setup` for the published ones")]
    Weights { path: String, reason: String },
    /// Use the weights that set-up brings, or make a card of your own with the new checksums.
    #[error(
        "built files of {card} are not the ones that its card means: {wrong}; these weights or ranges are others"
    )]
    Built { card: String, wrong: String },
    /// The file of activation ranges is damaged or of another model. Make it again with `imagedex models calibrate`.
    #[error("activation ranges {path}: {reason}")]
    Ranges { path: String, reason: String },
    /// The calibration photos never reach that layer. Calibrate with more photos.
    #[error("layer {layer} needs a greatest activation above 0, found {found}")]
    Range { layer: String, found: String },
    /// Name a folder of photos that can be decoded.
    #[error("cannot calibrate with {what}: {reason}")]
    Calibration { what: String, reason: String },
}

impl ModelError {
    /// Whether the configuration is at fault rather than a file.
    pub fn is_usage(&self) -> bool {
        matches!(self, ModelError::Choice { .. } | ModelError::Card { .. } | ModelError::Ranges { .. })
    }
}

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
        /// Whatever the model's own graph does: for cards of other encoders.
        Model = "model",
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Version of everything between a file's bytes and the pixels that enter a model: decoders, resize filters, rounding.
/// Raised whenever a picture may give other pixels than before, so that old vectors are not mixed with new ones.
pub const PREPROCESSING_VERSION: u32 = 1;

impl ModelSpec {
    /// All that makes a vector what it is, as a flat JSON object; `exif` is the policy for EXIF orientation.
    ///
    /// Batch size and threads are absent: the bytes of a vector do not depend on them.
    pub fn provenance(&self, exif: &str) -> Value {
        json!({
            "model": self.name,
            "model_sha256": self.sha256,
            "input": self.input,
            "output": self.output,
            "side": self.side,
            "dim": self.dim,
            "non_negative": self.non_negative,
            "resize": self.resize,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "precision": self.precision,
            "provider": self.provider,
            "exif": exif,
            "preprocessing_version": PREPROCESSING_VERSION,
        })
    }

    /// 16 hex digits of the SHA-256 of the [`provenance`](Self::provenance): vectors compare only where it is the same.
    pub fn fingerprint(&self, exif: &str) -> String {
        let mut text = String::new();
        canonical(&self.provenance(exif), &mut text);
        sha256_hex(text.as_bytes())[..16].to_owned()
    }
}

/// JSON without spaces and with sorted keys. `serde_json` keeps keys in insertion order when any crate of the program asks
/// for that, so the order is not left to it.
fn canonical(value: &Value, text: &mut String) {
    let Value::Object(object) = value else {
        *text += &value.to_string();
        return;
    };
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    for (i, (key, value)) in entries.into_iter().enumerate() {
        *text += if i == 0 { "{" } else { "," };
        *text += &Value::from(key.as_str()).to_string();
        *text += ":";
        canonical(value, text);
    }
    *text += if object.is_empty() { "{}" } else { "}" };
}

/// What differs between two provenances, one line per field, sorted by name: `resize: stored "nearest", ours "bilinear"`.
pub fn difference(stored: &Value, ours: &Value) -> Vec<String> {
    let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let (Some(left), Some(right)) = (stored.as_object(), ours.as_object()) else {
        return if stored == ours { Vec::new() } else { vec![format!("stored {stored}, ours {ours}")] };
    };
    let mut keys: Vec<_> = left.keys().chain(right.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| left.get(*key) != right.get(*key))
        .map(|key| format!("{key}: stored {}, ours {}", show(left.get(key)), show(right.get(key))))
        .collect()
}

/// One row of [`verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub file: String,
    pub state: FileState,
}

/// How a file of a card stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// It is the one that the card means.
    Right,
    Missing,
    /// It has this other SHA-256.
    Wrong(String),
}

impl std::fmt::Display for FileState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FileState::Right => f.write_str("ok"),
            FileState::Missing => f.write_str("missing: run `make setup`, or `imagedex models build`"),
            FileState::Wrong(sha256) => write!(f, "wrong: sha256 {sha256}"),
        }
    }
}

/// Compares every file of a card with the card's sum, in the card's order.
pub fn verify(card: &card::Card, models_dir: &Path) -> Result<Vec<Verified>, ModelError> {
    card.files
        .iter()
        .map(|entry| {
            let state = match card.locate(models_dir, entry) {
                Err(_) => FileState::Missing,
                Ok(path) => match sha256_of(&path)? {
                    sum if sum == entry.sha256 => FileState::Right,
                    sum => FileState::Wrong(sum),
                },
            };
            Ok(Verified { file: entry.file.clone(), state })
        })
        .collect()
}

/// The folder of the built ONNX files in a cache.
pub fn dir(cache: &Path) -> PathBuf {
    cache.join("models")
}

/// A whole file.
fn read_file(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path)
        .map_err(|error| ModelError::Read { path: path.display().to_string(), reason: error.to_string() })
}

/// Hex SHA-256 of a file, read in pieces.
fn sha256_of(path: &Path) -> Result<String, ModelError> {
    let wrong = |error: std::io::Error| ModelError::Read {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut file = File::open(path).map_err(wrong)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(wrong)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&piece[..n]),
        }
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec() -> ModelSpec {
        ModelSpec {
            name: "tiny".into(),
            file: "tiny.onnx".into(),
            sha256: "00".repeat(32),
            input: "images".into(),
            output: "pooled".into(),
            side: 4,
            dim: 2,
            non_negative: true,
            batch: 8,
            resize: Resize::Nearest,
            pooling: Pooling::Max,
            normalize: Normalize::L2,
            precision: Precision::Fp32,
            provider: Provider::Cpu,
        }
    }

    #[test]
    fn the_fingerprint_is_the_same_on_every_machine_and_in_every_release() {
        assert_eq!(spec().fingerprint("ignore"), "798a0d9f8ab1d545");
    }

    #[test]
    fn whatever_changes_a_vector_changes_the_fingerprint_and_nothing_else_does() {
        let same = ModelSpec { batch: 1, file: "elsewhere.onnx".into(), ..spec() };
        assert_eq!(same.fingerprint("ignore"), spec().fingerprint("ignore"));
        let others = [
            ModelSpec { name: "other".into(), ..spec() },
            ModelSpec { sha256: "11".repeat(32), ..spec() },
            ModelSpec { output: "embedding".into(), ..spec() },
            ModelSpec { resize: Resize::Bilinear, ..spec() },
            ModelSpec { pooling: Pooling::Avg, ..spec() },
            ModelSpec { normalize: Normalize::None, ..spec() },
            ModelSpec { precision: Precision::Int8, ..spec() },
            ModelSpec { provider: Provider::OpenVino, ..spec() },
        ];
        let mut seen = vec![spec().fingerprint("ignore"), spec().fingerprint("apply")];
        seen.extend(others.iter().map(|other| other.fingerprint("ignore")));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn a_difference_is_spelled_out_field_by_field() {
        let (ours, other) =
            (spec(), ModelSpec { resize: Resize::Bilinear, precision: Precision::Int8, ..spec() });
        assert_eq!(difference(&ours.provenance("ignore"), &ours.provenance("ignore")), Vec::<String>::new());
        assert_eq!(
            difference(&ours.provenance("ignore"), &other.provenance("ignore")),
            [r#"precision: stored "fp32", ours "int8""#, r#"resize: stored "nearest", ours "bilinear""#]
        );
        let old = json!({ "model": "tiny" });
        assert!(
            difference(&old, &ours.provenance("ignore"))
                .contains(&r#"dim: stored nothing, ours 2"#.to_owned())
        );
        assert_eq!(difference(&Value::Null, &old).len(), 1);
    }
}
