//! What an executor must know to embed as this machine would, as text; and whether it can.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::embedders::Runtime;
use crate::embedders::onnx::runtime_facts;
use crate::models::ModelSpec;
use crate::stages::decode::{DecodeOptions, Exif};
use crate::stages::scan::sha256_of;

/// All that decides a vector, or whether it is one. It travels with each query, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkSpec {
    /// Version of the program: the same everywhere, so that nothing about a picture or an answer is understood in two ways.
    pub imagedex: String,
    pub model: ModelSpec,
    /// Where the model's file is on the driver's machine, and below its models folder.
    pub file: PathBuf,
    pub below_models: Option<PathBuf>,
    /// Pictures per call of the runtime.
    pub batch: usize,
    pub exif: Exif,
    pub max_pixels: u64,
    /// Of the settings above, as the table has it.
    pub fingerprint: String,
    /// What the fingerprint was made from: to say what differs.
    pub facts: Value,
    /// Versions of ONNX Runtime and of the OpenVINO beside it.
    pub onnxruntime: String,
    pub openvino: Option<String>,
}

impl WorkSpec {
    /// Of a model on this machine, whose `models` folder and runtime are the driver's.
    ///
    /// # Errors
    /// The runtime cannot be loaded.
    pub fn new(
        model: &ModelSpec,
        models: &Path,
        decode: DecodeOptions,
        runtime: &Runtime,
    ) -> Result<WorkSpec, crate::embedders::EmbedError> {
        let facts = runtime_facts(runtime)?;
        let exif = decode.exif.name();
        Ok(WorkSpec {
            imagedex: env!("CARGO_PKG_VERSION").to_owned(),
            file: model.file.clone(),
            below_models: model.file.strip_prefix(models).ok().map(Path::to_owned),
            batch: model.batch,
            exif: decode.exif,
            max_pixels: decode.max_pixels,
            fingerprint: model.fingerprint(exif),
            facts: model.provenance(exif),
            onnxruntime: facts.onnxruntime,
            openvino: facts.openvino,
            model: model.clone(),
        })
    }

    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The model as it is on this machine, or why this machine would not give the same vectors.
    pub fn resolve(&self, models: &Path, runtime: &Runtime) -> Result<ModelSpec, String> {
        let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            format!("{what} is {ours} there, and {theirs} where the run was started")
        };
        let ours = env!("CARGO_PKG_VERSION");
        if self.imagedex != ours {
            return Err(differs("imagedex", &self.imagedex, &ours));
        }
        // A file of the cache has its own place on each machine; one beside a card has the same place on all.
        let file = self.below_models.as_ref().map_or_else(|| self.file.clone(), |path| models.join(path));
        if !file.is_file() {
            return Err(format!(
                "model file {} is missing; run `imagedex setup` and `imagedex models build` there",
                file.display()
            ));
        }
        let sha256 = sha256_of(&file).map_err(|error| format!("model file {}: {error}", file.display()))?;
        if sha256 != self.model.sha256 {
            let reason =
                differs(&format!("sha256 of model file {}", file.display()), &self.model.sha256, &sha256);
            return Err(format!("{reason}; delete it and run `imagedex models build` there"));
        }
        let model = ModelSpec { file, sha256, batch: self.batch, ..self.model.clone() };
        let facts = model.provenance(self.exif.name());
        if model.fingerprint(self.exif.name()) != self.fingerprint {
            let keys = facts.as_object().into_iter().flatten();
            let differences: Vec<String> = keys
                .filter(|(key, value)| self.facts.get(key) != Some(value))
                .map(|(key, value)| differs(key, &self.facts[key], value))
                .collect();
            return Err(match differences.is_empty() {
                true => differs("fingerprint", &self.fingerprint, &model.fingerprint(self.exif.name())),
                false => differences.join("; "),
            });
        }
        let facts = runtime_facts(runtime).map_err(|error| error.to_string())?;
        if facts.onnxruntime != self.onnxruntime {
            return Err(differs("ONNX Runtime", &self.onnxruntime, &facts.onnxruntime));
        }
        if facts.openvino != self.openvino {
            let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "absent".to_owned());
            return Err(differs("OpenVINO", &shown(&self.openvino), &shown(&facts.openvino)));
        }
        Ok(model)
    }
}
