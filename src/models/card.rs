//! The model card: a TOML file that says what an ONNX image encoder takes and gives, and which files hold it.
//!
//! `models/vgg16.toml` is the one that ships. Any other encoder works through a card of its own, as long as its graph takes
//! `uint8 [N, side, side, 3]` RGB pixels (N symbolic or equal to `batch`) and returns `float32 [N, dim]`; means, channel
//! order and layout are the graph's business. Its card lists one file without `pooling`, and the pipeline then says
//! `pooling = "model"`. `models/README.md` shows one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ModelError, ModelSpec, Normalize, Pooling, Precision, Provider, Resize};

/// A card, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Recorded with every vector.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Licence of the weights, as an SPDX identifier where there is one.
    pub licence: String,
    /// Who made the weights, and where they are described.
    pub source: String,
    /// Name of the input tensor: `uint8 [N, side, side, 3]`, RGB.
    pub input: String,
    /// Name of the output tensor: `float32 [N, dim]`, not normalised.
    pub output: String,
    /// Height and width of the input in pixels.
    pub side: u32,
    /// Length of a vector.
    pub dim: usize,
    /// Whether no number of a vector is ever negative. Scores of dot products depend on it.
    #[serde(default)]
    pub non_negative: bool,
    /// The resampling filter where the pipeline names none.
    pub resize: Resize,
    /// Where `models build` gets the weights from; absent for a card whose files are brought along.
    #[serde(default)]
    pub weights: Option<WeightsSource>,
    /// The ONNX files.
    #[serde(rename = "file")]
    pub files: Vec<FileEntry>,
    /// The folder that the card was read from: its files may lie beside it.
    #[serde(skip)]
    folder: PathBuf,
}

/// The file that `models build` reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsSource {
    /// Path below the cache's `sources` folder, where set-up puts it.
    pub file: String,
    /// Hex SHA-256 of that file.
    pub sha256: String,
}

/// One ONNX file of a card.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path below the models folder, or beside the card.
    pub file: String,
    /// Hex SHA-256 of the file.
    pub sha256: String,
    /// The pooling that the graph ends with; absent: whatever the model's own graph does.
    #[serde(default = "pooling_of_the_model")]
    pub pooling: Pooling,
    /// The numbers in the file. `bf16` needs none of its own.
    pub format: Format,
}

fn pooling_of_the_model() -> Pooling {
    Pooling::Model
}

/// The number format of a file, as against the [`Precision`] that it is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Also computed in `bf16`.
    Fp32,
    /// QDQ: 8-bit weights and activations.
    Int8,
}

/// What a pipeline chooses of what a card offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    pub precision: Precision,
    pub provider: Provider,
    pub pooling: Pooling,
    pub normalize: Normalize,
    /// `None`: the card's filter.
    pub resize: Option<Resize>,
    /// Pictures per call of the runtime. No part of the fingerprint: the vectors do not depend on it.
    pub batch: usize,
}

/// Pictures per call where the pipeline names no other number: the least from which on throughput no longer rises
/// (`make bench`; `models/README.md` has the table).
pub const DEFAULT_BATCH: usize = 8;

impl Default for ModelChoice {
    /// The original's recipe, in the precision and provider that every machine has.
    fn default() -> Self {
        Self {
            precision: Precision::Fp32,
            provider: Provider::Cpu,
            pooling: Pooling::Max,
            normalize: Normalize::L2,
            resize: None,
            batch: DEFAULT_BATCH,
        }
    }
}

impl Card {
    /// The card that ships under this name (`vgg16`), else the one in this file.
    pub fn find(name_or_path: &str) -> Result<Card, ModelError> {
        match name_or_path {
            "vgg16" => Card::parse(include_str!("../../models/vgg16.toml"), Path::new("vgg16")),
            path => Card::load(Path::new(path)),
        }
    }

    /// Reads a card; unknown keys are refused.
    pub fn load(path: &Path) -> Result<Card, ModelError> {
        let text = std::fs::read_to_string(path).map_err(|error| ModelError::Card {
            path: path.display().to_string(),
            reason: format!("cannot be read: {error}"),
        })?;
        Card::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Card, ModelError> {
        let wrong = |reason: String| ModelError::Card { path: path.display().to_string(), reason };
        let mut card: Card =
            toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        card.folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        card.check().map_err(wrong)?;
        Ok(card)
    }

    fn check(&self) -> Result<(), String> {
        if self.side == 0 || self.dim == 0 {
            return Err("side and dim must be at least 1".into());
        }
        if self.files.is_empty() {
            return Err("it lists no [[file]]".into());
        }
        if self.weights.is_some() && self.files.iter().any(|entry| entry.pooling == Pooling::Model) {
            return Err("a card with [weights] names the pooling of each file: max, avg or gem".into());
        }
        for (i, entry) in self.files.iter().enumerate() {
            let sum = &entry.sha256;
            if sum.len() != 64
                || !sum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            {
                return Err(format!("sha256 of {} is not 64 lower-case hex digits: {sum:?}", entry.file));
            }
            if let Some(other) = self.files[..i]
                .iter()
                .find(|other| (other.pooling, other.format) == (entry.pooling, entry.format))
            {
                return Err(format!("{} and {} have the same pooling and format", other.file, entry.file));
            }
        }
        Ok(())
    }

    /// Applies the pipeline's choices; checks that the ONNX file is there and is the one that the card means.
    pub fn resolve(&self, models_dir: &Path, choice: &ModelChoice) -> Result<ModelSpec, ModelError> {
        let entry = self.entry(choice)?;
        let file = self.locate(models_dir, entry)?;
        let sha256 = super::sha256_of(&file)?;
        if sha256 != entry.sha256 {
            return Err(ModelError::Sha256 {
                path: file.display().to_string(),
                card: self.name.clone(),
                expected: entry.sha256.clone(),
                found: sha256,
            });
        }
        Ok(ModelSpec {
            name: self.name.clone(),
            file,
            sha256,
            input: self.input.clone(),
            output: self.output.clone(),
            side: self.side,
            dim: self.dim,
            non_negative: self.non_negative,
            batch: choice.batch,
            resize: choice.resize.unwrap_or(self.resize),
            pooling: choice.pooling,
            normalize: choice.normalize,
            precision: choice.precision,
            provider: choice.provider,
        })
    }

    /// The file that serves a choice, or why none does.
    fn entry(&self, choice: &ModelChoice) -> Result<&FileEntry, ModelError> {
        let refuse = |reason: String| ModelError::Choice { card: self.name.clone(), reason };
        if choice.batch == 0 {
            return Err(refuse("batch must be at least 1".into()));
        }
        let format = match (choice.precision, choice.provider) {
            (Precision::Bf16, Provider::Cpu) => {
                return Err(refuse(
                    "precision bf16 needs provider openvino: the cpu provider has no bf16 convolutions; \
                     choose provider = \"openvino\", or precision fp32 or int8"
                        .into(),
                ));
            }
            (Precision::Fp32 | Precision::Bf16, _) => Format::Fp32,
            (Precision::Int8, _) => Format::Int8,
        };
        let with_pooling: Vec<_> =
            self.files.iter().filter(|entry| entry.pooling == choice.pooling).collect();
        if with_pooling.is_empty() {
            let mut offered: Vec<_> = self.files.iter().map(|entry| entry.pooling.name()).collect();
            offered.dedup();
            return Err(refuse(format!("it has no pooling {}, only {}", choice.pooling, offered.join(", "))));
        }
        with_pooling.into_iter().find(|entry| entry.format == format).ok_or_else(|| {
            refuse(format!("it lists no {} file for pooling {}", choice.precision, choice.pooling))
        })
    }

    /// Where a file of the card is: in the models folder, else beside the card.
    pub(super) fn locate(&self, models_dir: &Path, entry: &FileEntry) -> Result<PathBuf, ModelError> {
        let places = [models_dir.join(&entry.file), self.folder.join(&entry.file)];
        let found = places.iter().find(|path| path.is_file()).cloned();
        found.ok_or_else(|| ModelError::Missing {
            path: places[0].display().to_string(),
            card: self.name.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: &str = r#"
        name = "tiny"
        description = "d"
        licence = "CC-BY-4.0"
        source = "s"
        input = "images"
        output = "pooled"
        side = 4
        dim = 2
        resize = "bilinear"
        [[file]]
        file = "tiny.onnx"
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        pooling = "max"
        format = "fp32"
    "#;

    fn card_of(text: &str) -> (tempfile::TempDir, Result<Card, ModelError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("card.toml");
        std::fs::write(&path, text).unwrap();
        let card = Card::load(&path);
        (folder, card)
    }

    #[test]
    fn a_choice_becomes_a_spec_when_the_file_is_the_right_one() {
        let (folder, card) = card_of(CARD);
        let card = card.unwrap();
        let models = folder.path().join("models");
        std::fs::create_dir(&models).unwrap();

        let missing = card.resolve(&models, &ModelChoice::default()).unwrap_err().to_string();
        assert!(missing.contains("make setup") && missing.contains("models build"), "{missing}");

        std::fs::write(models.join("tiny.onnx"), "abd").unwrap();
        let damaged = card.resolve(&models, &ModelChoice::default()).unwrap_err().to_string();
        assert!(damaged.contains("ba7816bf") && damaged.contains("a52d159f"), "{damaged}");

        std::fs::write(models.join("tiny.onnx"), "abc").unwrap();
        let spec = card.resolve(&models, &ModelChoice::default()).unwrap();
        assert_eq!((spec.resize, spec.side, spec.dim), (Resize::Bilinear, 4, 2));
        let nearest = ModelChoice { resize: Some(Resize::Nearest), ..Default::default() };
        assert_eq!(card.resolve(&models, &nearest).unwrap().resize, Resize::Nearest);
    }

    #[test]
    fn a_file_beside_the_card_serves_too() {
        let (folder, card) = card_of(CARD);
        std::fs::write(folder.path().join("tiny.onnx"), "abc").unwrap();
        let spec = card.unwrap().resolve(Path::new("nowhere"), &ModelChoice::default()).unwrap();
        assert_eq!(spec.file, folder.path().join("tiny.onnx"));
    }

    #[test]
    fn choices_that_cannot_be_had_say_why() {
        let (_folder, card) = card_of(CARD);
        let card = card.unwrap();
        let refused =
            |choice: ModelChoice| card.resolve(Path::new("nowhere"), &choice).unwrap_err().to_string();
        let default = ModelChoice::default;
        assert!(refused(ModelChoice { precision: Precision::Bf16, ..default() }).contains("openvino"));
        assert!(refused(ModelChoice { precision: Precision::Int8, ..default() }).contains("no int8 file"));
        assert!(refused(ModelChoice { pooling: Pooling::Gem, ..default() }).contains("only max"));
        assert!(refused(ModelChoice { batch: 0, ..default() }).contains("at least 1"));
    }

    #[test]
    fn a_faulty_card_is_refused_with_its_path() {
        for (from, to, reason) in [
            ("side = 4", "side = 4\nsize = 5", "size"),
            ("side = 4", "side = 0", "at least 1"),
            ("ba78", "BA78", "hex"),
            ("\"fp32\"", "\"fp64\"", "fp64"),
        ] {
            let (_folder, card) = card_of(&CARD.replace(from, to));
            let message = card.unwrap_err().to_string();
            assert!(message.contains("card.toml") && message.contains(reason), "{message}");
        }
        let missing = Card::load(Path::new("none/card.toml")).unwrap_err().to_string();
        assert!(missing.contains("none/card.toml"), "{missing}");
    }
}
