//! One pipeline file (TOML) → [`PipelineConfig`], complete and checked before any work starts.
//!
//! A value comes from a flag (`--set model.precision=fp32`), else from the environment
//! (`IMAGEDEX_MODEL__PRECISION=fp32`), else from the file, else from the default stated at the field.
//! Relative paths in the file count from the folder that holds it, so a cron job may start anywhere;
//! relative paths in flags and in the environment count from the current folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::cluster::{ClusterConfig, ExtractSection};
use crate::engines::elastic::{self, ElasticConfig, Product};
use crate::engines::faiss::{self, FaissConfig, FaissSection};
use crate::engines::hnsw::{self, HnswConfig};
use crate::engines::milvus::{self, MilvusSection};
use crate::engines::{EngineConfig, EngineName};
use crate::memory::Bytes;
use crate::metric::Metric;
use crate::models::card::{DEFAULT_BATCH, ModelChoice};
use crate::models::{Normalize, Pooling, Precision, Provider, Resize};
use crate::objects::{ObjectUrl, is_url};
use crate::stages::baseline::BaselineRule;
use crate::stages::decode::{DEFAULT_MAX_PIXELS, Exif};
use crate::stages::evaluate::Mode;
use crate::stages::gate::{Gate, Minimum, Quantity};
use crate::stages::scan::{LabelRule, holds_both};
use crate::sweep::Sweep;

/// Why a pipeline file cannot be used. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not there, or may not be read. Check the path.
    #[error("cannot read pipeline file {path}: {reason}")]
    Read { path: PathBuf, reason: std::io::Error },
    /// No TOML, or a key that does not exist; a near one is suggested. pipelines/quickstart.toml explains every key.
    #[error("{origin}: {reason}")]
    Parse { origin: String, reason: String },
    /// The key is right and its value is not; the reason says what is possible.
    #[error("{origin}: {key}: {reason}")]
    Value { origin: String, key: String, reason: String },
}

/// A pipeline file, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineFile {
    name: Option<String>,
    work: Option<PathBuf>,
    cache: Option<PathBuf>,
    memory: Option<Bytes>,
    input: InputFile,
    #[serde(default)]
    model: ModelFile,
    #[serde(default)]
    runtime: RuntimeFile,
    #[serde(default)]
    extract: ExtractSection,
    #[serde(default)]
    features: FeaturesFile,
    #[serde(default)]
    load: LoadFile,
    #[serde(default)]
    evaluate: EvaluateFile,
    #[serde(default)]
    gate: GateFile,
    baseline: Option<BaselineFile>,
    #[serde(default)]
    sweep: Sweep,
    #[serde(default)]
    report: ReportFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputFile {
    gallery: PathBuf,
    queries: Option<PathBuf>,
    images: Option<PathBuf>,
    #[serde(default)]
    outside: bool,
    label: Option<LabelFile>,
    #[serde(default)]
    exif: Exif,
    max_pixels: Option<u64>,
    max_failures: Option<Budget>,
    max_deleted: Option<Budget>,
}

/// `"folder"`, `"top_folder"`, `"none"`, `{ regex = "…" }`, or `{ column = "…" }`.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "label is \"folder\", \"top_folder\", \"none\", { regex = \"…\" } or { column = \"…\" }"
)]
enum LabelFile {
    Named(String),
    Regex { regex: String },
    Column { column: String },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    card: Option<String>,
    precision: Option<Precision>,
    provider: Option<Provider>,
    pooling: Option<Pooling>,
    normalize: Option<Normalize>,
    resize: Option<Resize>,
    batch: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeFile {
    library: Option<PathBuf>,
    threads: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesFile {
    table: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadFile {
    #[serde(default, deserialize_with = "one_or_many")]
    engine: Vec<EngineName>,
    hnsw: Option<HnswConfig>,
    faiss: Option<FaissSection>,
    elasticsearch: Option<ElasticConfig>,
    opensearch: Option<ElasticConfig>,
    milvus: Option<MilvusSection>,
}

impl LoadFile {
    /// The engines in the order in which they are named. What is wrong with one: its key and the reason.
    fn finish(
        self,
        name: &str,
        work: &Path,
        features: &Path,
        metrics: &[Metric],
    ) -> Result<Vec<EngineConfig>, (String, String)> {
        let names = if self.engine.is_empty() { vec![EngineName::default()] } else { self.engine };
        let hnsw = self.hnsw.unwrap_or_default();
        let faiss = self.faiss.unwrap_or_default();
        let server = |product: Product, section: Option<ElasticConfig>| -> Result<_, (String, String)> {
            let mut server = ElasticConfig { product, ..section.unwrap_or_default() };
            if server.alias.is_empty() {
                server.alias = name.to_ascii_lowercase();
            }
            server.check()?;
            Ok(EngineConfig::Elasticsearch(Box::new(server)))
        };
        let keyed = |(key, reason): (&str, String)| (key.to_owned(), reason);
        let mut engines = Vec::new();
        for (i, engine) in names.iter().enumerate() {
            if names[..i].contains(engine) {
                return Err(("load.engine".to_owned(), "names an engine twice".to_owned()));
            }
            match engine {
                EngineName::Flat => engines.push(EngineConfig::Flat),
                EngineName::Table => engines.push(EngineConfig::Table(features.to_owned())),
                EngineName::Hnsw => {
                    hnsw.check().map_err(keyed)?;
                    let metrics = metrics.to_vec();
                    let folder = Some(work.join(hnsw::NAME));
                    engines.push(EngineConfig::Hnsw(HnswConfig { metrics, folder, ..hnsw.clone() }));
                }
                EngineName::Faiss => {
                    faiss.check().map_err(keyed)?;
                    engines.extend(faiss.engines().into_iter().map(|config| {
                        let metrics = metrics.to_vec();
                        let folder = Some(work.join(faiss::NAME));
                        EngineConfig::Faiss(FaissConfig { metrics, folder, ..config })
                    }));
                }
                EngineName::Elasticsearch => {
                    engines.push(server(Product::Elasticsearch, self.elasticsearch.clone())?)
                }
                EngineName::Opensearch => engines.push(server(Product::OpenSearch, self.opensearch.clone())?),
                EngineName::Milvus => {
                    let mut section = self.milvus.clone().unwrap_or_default();
                    if section.alias.is_empty() {
                        section.alias = milvus::name_of(name);
                    }
                    section.check().map_err(keyed)?;
                    engines.extend(section.engines().into_iter().map(EngineConfig::Milvus));
                }
            }
        }
        Ok(engines)
    }
}

/// A value or a list of values.
pub(crate) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a name or a list of names")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(serde::de::value::StrDeserializer::new(text))?])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, sequence: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(sequence))
        }
    }

    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluateFile {
    metrics: Option<Vec<Metric>>,
    k: Option<Vec<usize>>,
    modes: Option<Vec<Mode>>,
    max_queries: Option<usize>,
    depth: Option<usize>,
}

/// For each metric the least values of its measures: `"P@1" = 0.6`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GateFile {
    #[serde(default)]
    cosine: BTreeMap<String, f64>,
    #[serde(default)]
    dot_product: BTreeMap<String, f64>,
    #[serde(default)]
    l1: BTreeMap<String, f64>,
    #[serde(default)]
    l2: BTreeMap<String, f64>,
}

impl GateFile {
    /// On an error the key at fault, and why.
    fn finish(self, evaluate: &Evaluate) -> Result<Gate, (String, String)> {
        let of_metric = [
            (Metric::Cosine, self.cosine),
            (Metric::DotProduct, self.dot_product),
            (Metric::L1, self.l1),
            (Metric::L2, self.l2),
        ];
        let mut gate = Gate::default();
        for (metric, minimums) in of_metric {
            if !minimums.is_empty() && !evaluate.metrics.contains(&metric) {
                let metrics: Vec<&str> = evaluate.metrics.iter().map(|metric| metric.name()).collect();
                let reason = format!("not one of evaluate.metrics = [{}]", metrics.join(", "));
                return Err((format!("gate.{metric}"), reason));
            }
            for (name, at_least) in minimums {
                let key = || format!("gate.{metric}.\"{name}\"");
                let quantity = Quantity::named(&name, &evaluate.ks).map_err(|reason| (key(), reason))?;
                if !(0.0..=1.0).contains(&at_least) {
                    return Err((key(), format!("{at_least} is not between 0 and 1")));
                }
                gate.minimums.push(Minimum { metric, quantity, at_least });
            }
        }
        Ok(gate)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportFile {
    #[serde(default)]
    trec: bool,
    prometheus: Option<PathBuf>,
    upload: Option<String>,
}

impl ReportFile {
    /// On an error the key at fault, and why.
    fn finish(self) -> Result<ReportFiles, (&'static str, String)> {
        if let Some(path) = &self.prometheus
            && path.extension().is_none_or(|ending| ending != "prom")
        {
            let reason =
                format!("{} does not end in .prom, and node_exporter reads no other files", path.display());
            return Err(("report.prometheus", reason));
        }
        let upload = self.upload.as_deref().map(ObjectUrl::parse).transpose();
        let upload = upload.map_err(|reason| ("report.upload", reason))?;
        Ok(ReportFiles { trec: self.trec, prometheus: self.prometheus, upload })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaselineFile {
    file: Option<PathBuf>,
    max_drop: Option<f64>,
    max_class_drop: Option<f64>,
}

impl BaselineFile {
    /// On an error the key at fault, and why.
    fn finish(self, default: PathBuf) -> Result<BaselineRule, (&'static str, String)> {
        let share = |key, value: Option<f64>, default: f64| match value.unwrap_or(default) {
            share if (0.0..=1.0).contains(&share) => Ok(share),
            other => Err((key, format!("{other} is not between 0 and 1"))),
        };
        Ok(BaselineRule {
            file: self.file.unwrap_or(default),
            max_drop: share("baseline.max_drop", self.max_drop, 0.01)?,
            max_class_drop: share("baseline.max_class_drop", self.max_class_drop, 0.1)?,
        })
    }
}

/// How many pictures may fail, be refused or be gone before a run ends with an error: a count (`20`) or a share (`"1%"`).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Budget {
    Count(u64),
    /// From 0 to 1, of the pictures scanned.
    Share(f64),
}

impl Budget {
    /// Whether `failed` of `scanned` pictures is more than allowed.
    pub fn is_exceeded(self, failed: u64, scanned: u64) -> bool {
        match self {
            Budget::Count(most) => failed > most,
            Budget::Share(share) => failed as f64 > share * scanned as f64,
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Budget::Count(most) => write!(f, "{most}"),
            Budget::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl TryFrom<Value> for Budget {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let wanted = "it must be a count such as 20, or a share such as \"1%\"";
        match &value {
            Value::Integer(count) => u64::try_from(*count).map(Budget::Count).map_err(|_| wanted.to_owned()),
            Value::String(text) => text
                .strip_suffix('%')
                .and_then(|number| number.trim().parse::<f64>().ok())
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(|percent| Budget::Share(percent / 100.0))
                .ok_or_else(|| wanted.to_owned()),
            _ => Err(wanted.to_owned()),
        }
    }
}

/// Everything that a run needs to know, finished.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// `name`: what reports call the run. Default: the file's name without its ending.
    pub name: String,
    /// `work`: the folder of the lock, the books and the report. Default: `runs/<name>` beside the file.
    pub work: PathBuf,
    /// `cache`: where set-up put the runtime and the models. Default: the user's cache folder.
    pub cache: Option<PathBuf>,
    /// `memory`: what a run may take at most, such as `"1GiB"` (docs/memory.md). Default: as much as it takes.
    pub memory: Option<Bytes>,
    pub input: Input,
    /// `model.card`: `vgg16` for the built-in one, or the path of a card.
    pub card: String,
    pub model: ModelChoice,
    /// `runtime.library`: the ONNX Runtime library. Default: the one in the cache.
    pub runtime_library: Option<PathBuf>,
    /// `runtime.threads`: of decoding and of inference. Default: one for each core.
    pub threads: usize,
    /// `extract`: `on` says where pictures are embedded: `"local"`, or a scheduler such as `"df://host:50050"` (docs/scaling.md).
    /// Default: `"local"`.
    pub cluster: Option<ClusterConfig>,
    /// `features.table`: the folder of the Delta table. Default: `features` in the work folder. For a table in an object store
    /// (`s3://bucket/folder`) its copy, `features-copy` in the work folder.
    pub features: PathBuf,
    /// Where the table is that `features` is a copy of, if it is in an object store.
    pub features_at: Option<ObjectUrl>,
    /// `load.engine`, one or several, each with its section. Searches go to the first. Default: `flat`.
    pub engines: Vec<EngineConfig>,
    pub evaluate: Evaluate,
    /// `gate`: for each metric the least values of its measures, by the names that the report prints. Default: none.
    pub gate: Gate,
    /// `baseline`: a run that this one is held against, query by query. `file` is what `imagedex baseline set` writes (default:
    /// `<name>.baseline.json` beside the pipeline file); MAP and precision may fall by `max_drop` (default 0.01), the MAP of any
    /// class by `max_class_drop` (default 0.1). Default: none, unless the section is there.
    pub baseline: Option<BaselineRule>,
    /// `sweep`: the settings that `imagedex sweep` tries. Default: none.
    pub sweep: Sweep,
    /// Where `imagedex baseline set` writes where there is no such section.
    pub baseline_file: PathBuf,
    pub report: ReportFiles,
}

/// What is written beside the report, where it is asked for.
#[derive(Debug, Clone, Default)]
pub struct ReportFiles {
    /// `report.trec`: whether whole rankings are written, as TREC run and qrels files. Default: no.
    pub trec: bool,
    /// `report.prometheus`: the file for node_exporter's textfile collector, ending in `.prom`. Default: none.
    pub prometheus: Option<PathBuf>,
    /// `report.upload`: the folder of an object store (`s3://bucket/folder`) that the report is sent to once it is written.
    /// Default: none.
    pub upload: Option<ObjectUrl>,
}

/// What is read, and how bad files are treated.
#[derive(Debug, Clone)]
pub struct Input {
    /// `input.gallery`: a folder; a CSV, JSONL or Parquet manifest; a COCO file (`.json`); a `.tar` of WebDataset, several by
    /// `shop-{000..009}.tar` or `shop-*.tar`, or a folder of them (docs/input-and-sql.md). A folder of pictures or a manifest may also lie
    /// in an object store (`s3://bucket/folder`, docs/object-stores.md).
    pub gallery: PathBuf,
    /// `input.queries`: the same for labelled test pictures.
    pub queries: Option<PathBuf>,
    /// `input.images`: the folder that the names in manifests and COCO files count from, of this machine or in an object store. Default:
    /// a manifest's own folder; for a COCO file the folder beside it that COCO's layout means.
    pub images: Option<PathBuf>,
    /// `input.outside`: whether rows of a manifest may name pictures outside of its folder. Default: no.
    pub outside: bool,
    /// `input.label`: where a picture's class comes from. Default: the folder that holds it.
    pub label: LabelRule,
    /// `input.exif`: `ignore`, as the original does, or `apply`. Default: `ignore`.
    pub exif: Exif,
    /// `input.max_pixels`: width x height above which a picture is refused unread. Default: 100 million.
    pub max_pixels: u64,
    /// `input.max_failures`. Default: 1 %.
    pub max_failures: Budget,
    /// `input.max_deleted`: count or share of the stored gallery, and of the stored queries, that may be gone from the input before
    /// a run stops with exit code 4 and changes nothing. Default: 50 % of 100 pictures or more.
    pub max_deleted: Option<Budget>,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Evaluate {
    /// `evaluate.metrics`. Default: all four.
    pub metrics: Vec<Metric>,
    /// `evaluate.k`: cut-offs. Default: 1, 5, 10.
    pub ks: Vec<usize>,
    /// `evaluate.modes`. Default: `held_out` where there are queries, else `leave_one_out`.
    pub modes: Vec<Mode>,
    /// `evaluate.max_queries`: of more held-out queries than this, so many are asked, evenly spaced. Default: all.
    pub max_queries: Option<usize>,
    /// `evaluate.depth`: hits asked for each query. Default: of an exact engine the whole gallery, so that MAP is that of the whole
    /// ranking, of another what the cut-offs need.
    pub depth: Option<usize>,
}

const PATH_KEYS: [&str; 16] = [
    "work",
    "cache",
    "input.gallery",
    "input.queries",
    "input.images",
    "model.card",
    "runtime.library",
    "extract.ca",
    "extract.cert",
    "extract.key",
    "features.table",
    "baseline.file",
    "load.elasticsearch.ca",
    "load.opensearch.ca",
    "load.milvus.ca",
    "report.prometheus",
];

impl PipelineConfig {
    /// Reads `file` and lays `overrides` (`key.path=value`, from flags) and the environment over it.
    pub fn load(file: &Path, overrides: &[String]) -> Result<PipelineConfig, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Self::load_with(file, overrides, environment)
    }

    fn load_with(
        file: &Path,
        overrides: &[String],
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<PipelineConfig, ConfigError> {
        let origin = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|reason| ConfigError::Read { path: file.to_owned(), reason })?;
        let mut table: Table =
            toml::from_str(&text).map_err(|error| parse_error(&origin, Some(&text), &error))?;
        // Read once as it stands, so that a mistake in the file is told with its line.
        let as_written = toml::from_str::<PipelineFile>(&text);
        let environment: Vec<(String, String)> = environment.collect();
        let mut changes = changes(overrides, environment.iter().cloned())?;
        for engine in named_engines(&table, &changes) {
            // Before all others, so that those win.
            changes.splice(..0, server_environment(&engine, &environment));
        }
        if changes.is_empty() || !is_missing_key(&as_written) {
            as_written.map_err(|error| parse_error(&origin, Some(&text), &error))?;
        }
        let folder = absolute(file.parent().unwrap_or(Path::new("")));
        let mut parsed = resolve_paths(&mut table, &folder)
            .try_into::<PipelineFile>()
            .map_err(|error| parse_error(&origin, None, &error));
        for change in &changes {
            change.apply(&mut table);
            let after = table.clone().try_into::<PipelineFile>();
            let after = after.map_err(|error| parse_error(&change.origin, None, &error));
            // A key that the file lacks and no change supplies is the file's mistake.
            parsed = match (parsed, after) {
                (Err(before), Err(_)) => Err(before),
                (_, after) => after,
            };
        }
        let parsed = parsed?;
        if let Some(key) = empty_path(&mut table) {
            let reason = "is empty; name a path, or leave the key away".to_owned();
            return Err(ConfigError::Value { origin, key: key.to_owned(), reason });
        }
        parsed.finish(file, &origin, &folder)
    }
}

/// Whether the file fails only because something required is missing, which an override may still supply.
fn is_missing_key(parsed: &Result<PipelineFile, toml::de::Error>) -> bool {
    parsed.as_ref().is_err_and(|error| error.message().starts_with("missing field"))
}

impl PipelineFile {
    /// URLs are for object stores, and stand where there may be one. On an error the key at fault, and why.
    fn check_urls(&self) -> Result<(), (&'static str, String)> {
        let url = |path: &Option<PathBuf>| {
            path.as_ref().and_then(|path| path.to_str()).filter(|text| is_url(text)).map(str::to_owned)
        };
        for (key, path) in [
            ("input.gallery", Some(self.input.gallery.clone())),
            ("input.queries", self.input.queries.clone()),
            ("input.images", self.input.images.clone()),
            ("features.table", self.features.table.clone()),
        ] {
            if let Some(text) = url(&path) {
                let parsed = ObjectUrl::parse(&text).map_err(|reason| (key, reason))?;
                if key == "features.table" && parsed.key.is_empty() {
                    return Err((
                        key,
                        "a table needs a folder of its own in the bucket, as in s3://bucket/features"
                            .to_owned(),
                    ));
                }
            }
        }
        let baseline = self.baseline.as_ref().and_then(|baseline| baseline.file.clone());
        for (key, path) in [
            ("work", &self.work),
            ("cache", &self.cache),
            ("runtime.library", &self.runtime.library),
            ("baseline.file", &baseline),
            ("report.prometheus", &self.report.prometheus),
        ] {
            if url(path).is_some() {
                let help = "object stores are for input.gallery, input.queries, input.images, features.table and report.upload";
                return Err((key, format!("must be on this machine; {help}")));
            }
        }
        Ok(())
    }

    fn finish(self, file: &Path, origin: &str, folder: &Path) -> Result<PipelineConfig, ConfigError> {
        let value_error = |key: &str, reason: String| ConfigError::Value {
            origin: origin.to_owned(),
            key: key.to_owned(),
            reason,
        };
        self.check_urls().map_err(|(key, reason)| value_error(key, reason))?;
        let name =
            self.name.unwrap_or_else(|| file.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        let work = self.work.unwrap_or_else(|| folder.join("runs").join(&name));
        let label = match self.input.label {
            None => LabelRule::Folder,
            Some(LabelFile::Regex { regex }) => {
                LabelRule::regex(&regex).map_err(|reason| value_error("input.label", reason.to_string()))?
            }
            Some(LabelFile::Column { column }) => LabelRule::Column(column),
            Some(LabelFile::Named(name)) => match name.as_str() {
                "folder" => LabelRule::Folder,
                "top_folder" => LabelRule::TopFolder,
                "none" => LabelRule::None,
                other => {
                    let reason = format!(
                        "`{other}` is not one of \"folder\", \"top_folder\", \"none\", {{ regex = \"…\" }}, {{ column = \"…\" }}"
                    );
                    return Err(value_error("input.label", reason));
                }
            },
        };
        if self.input.max_pixels == Some(0) {
            return Err(value_error("input.max_pixels", "0 refuses every picture".to_owned()));
        }
        let threads = match self.runtime.threads {
            Some(0) => return Err(value_error("runtime.threads", "must be at least 1".to_owned())),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let batch = self.model.batch.unwrap_or(DEFAULT_BATCH);
        if batch == 0 || batch > 1024 {
            return Err(value_error("model.batch", format!("{batch} is not between 1 and 1024")));
        }
        let metrics = self.evaluate.metrics.unwrap_or_else(|| Metric::ALL.to_vec());
        let metrics = metrics.iter().enumerate().filter(|(i, metric)| !metrics[..*i].contains(metric));
        let metrics: Vec<Metric> = metrics.map(|(_, metric)| *metric).collect();
        if metrics.is_empty() {
            return Err(value_error("evaluate.metrics", "names no metric".to_owned()));
        }
        let mut ks = self.evaluate.k.unwrap_or_else(|| vec![1, 5, 10]);
        ks.sort_unstable();
        ks.dedup();
        if ks.is_empty() || ks.contains(&0) {
            return Err(value_error("evaluate.k", "needs at least one cut-off, each at least 1".to_owned()));
        }
        let held_out = self.input.queries.is_some();
        let modes = self
            .evaluate
            .modes
            .unwrap_or_else(|| vec![if held_out { Mode::HeldOut } else { Mode::LeaveOneOut }]);
        if modes.is_empty() {
            return Err(value_error("evaluate.modes", "names no mode".to_owned()));
        }
        if modes.contains(&Mode::HeldOut) && !held_out && !holds_both(&self.input.gallery) {
            let reason = "held_out needs input.queries, or a manifest with a split column; without queries use leave_one_out";
            return Err(value_error("evaluate.modes", reason.to_owned()));
        }
        let features_at = self.features.table.as_deref().and_then(ObjectUrl::of);
        let features =
            self.features.table.filter(|_| features_at.is_none()).unwrap_or_else(|| {
                work.join(if features_at.is_some() { "features-copy" } else { "features" })
            });
        let engines = self
            .load
            .finish(&name, &work, &features, &metrics)
            .map_err(|(key, reason)| value_error(&key, reason))?;
        let (max_queries, depth) = (self.evaluate.max_queries, self.evaluate.depth);
        if max_queries == Some(0) {
            return Err(value_error("evaluate.max_queries", "0 queries measure nothing".to_owned()));
        }
        if let Some(depth) = depth.filter(|depth| ks.iter().any(|k| k > depth)) {
            let reason = format!("{depth} hits are fewer than the greatest of evaluate.k");
            return Err(value_error("evaluate.depth", reason));
        }
        let evaluate = Evaluate { metrics, ks, modes, max_queries, depth };
        let gate = self.gate.finish(&evaluate).map_err(|(key, reason)| value_error(&key, reason))?;
        let baseline_file = folder.join(format!("{name}.baseline.json"));
        let baseline = self.baseline.map(|baseline| baseline.finish(baseline_file.clone())).transpose();
        let baseline = baseline.map_err(|(key, reason)| value_error(key, reason))?;
        let cluster = self.extract.finish().map_err(|(key, reason)| value_error(key, reason))?;
        let report = self.report.finish().map_err(|(key, reason)| value_error(key, reason))?;
        Ok(PipelineConfig {
            features,
            features_at,
            name,
            work,
            cache: self.cache,
            memory: self.memory,
            input: Input {
                gallery: self.input.gallery,
                queries: self.input.queries,
                images: self.input.images,
                outside: self.input.outside,
                label,
                exif: self.input.exif,
                max_pixels: self.input.max_pixels.unwrap_or(DEFAULT_MAX_PIXELS),
                max_failures: self.input.max_failures.unwrap_or(Budget::Share(0.01)),
                max_deleted: self.input.max_deleted,
            },
            card: self.model.card.unwrap_or_else(|| "vgg16".to_owned()),
            model: ModelChoice {
                precision: self.model.precision.unwrap_or(Precision::Fp32),
                provider: self.model.provider.unwrap_or(Provider::Cpu),
                pooling: self.model.pooling.unwrap_or(Pooling::Max),
                normalize: self.model.normalize.unwrap_or(Normalize::L2),
                resize: self.model.resize,
                batch,
            },
            runtime_library: self.runtime.library,
            threads,
            cluster,
            engines,
            evaluate,
            gate,
            baseline_file: baseline.as_ref().map_or(baseline_file, |baseline| baseline.file.clone()),
            baseline,
            sweep: self.sweep,
            report,
        })
    }
}

/// One value laid over the file.
struct Change {
    /// Where it comes from, for error texts.
    origin: String,
    key: Vec<String>,
    value: Value,
}

impl Change {
    fn apply(&self, table: &mut Table) {
        let Some((last, sections)) = self.key.split_last() else { return };
        let mut table = table;
        for section in sections {
            let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert(last.clone(), self.value.clone());
    }
}

/// Environment first, flags after it, so that a flag wins.
fn changes(
    overrides: &[String],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Change>, ConfigError> {
    let mut changes = Vec::new();
    for (variable, text) in environment {
        let Some(key) = variable.strip_prefix("IMAGEDEX_") else { continue };
        // IMAGEDEX_LOG and IMAGEDEX_PIPELINE belong to the command line, not to the pipeline file.
        if matches!(key, "LOG" | "PIPELINE") {
            continue;
        }
        let key: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
        let value = value_of(&key, &text);
        changes.push(Change { origin: format!("environment variable {variable}"), key, value });
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    for text in overrides {
        let Some((key, value)) = text.split_once('=') else {
            return Err(ConfigError::Parse {
                origin: format!("--set {text}"),
                reason: "is not of the form key=value, such as model.precision=fp32".to_owned(),
            });
        };
        let key: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        let value = value_of(&key, value.trim());
        // A URL may hold a password, and this becomes part of error texts.
        let shown = if text.contains("://") { key.join(".") } else { text.clone() };
        changes.push(Change { origin: format!("--set {shown}"), key, value });
    }
    Ok(changes)
}

/// The engines that `load.engine`, as it will be, names.
fn named_engines(table: &Table, changes: &[Change]) -> Vec<String> {
    let changed = changes.iter().rev().find(|change| change.key == ["load", "engine"]);
    let value = changed.map(|change| &change.value).or_else(|| table.get("load")?.get("engine"));
    let names = match value {
        Some(Value::Array(names)) => names.iter().collect(),
        name => Vec::from_iter(name),
    };
    names.into_iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// The variables that say where an engine's server is, as changes of its section; none for one without a server.
fn server_environment(engine: &str, environment: &[(String, String)]) -> Vec<Change> {
    let variable =
        |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let found = match Product::of_engine(engine) {
        Some(product) => elastic::environment(product, &variable),
        None if engine == milvus::NAME => milvus::environment(&variable),
        None => Vec::new(),
    };
    let change = |(variable, key, value): (&str, &str, String)| Change {
        origin: format!("environment variable {variable}"),
        key: ["load", engine, key].map(str::to_owned).to_vec(),
        value: Value::String(value),
    };
    found.into_iter().map(change).collect()
}

/// Text as a TOML value where it is one, else as a string; paths count from the current folder.
fn value_of(key: &[String], text: &str) -> Value {
    let name = key.join(".");
    if PATH_KEYS.contains(&name.as_str()) && !is_no_path(&name, text) {
        return Value::String(absolute(Path::new(text)).to_string_lossy().into_owned());
    }
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether the text is no path that counts from some folder: a URL, nothing, or the name of a built-in card, which has neither folder
/// nor ending.
fn is_no_path(key: &str, text: &str) -> bool {
    text.is_empty()
        || is_url(text)
        || key == "model.card" && !text.contains(['/', '\\']) && !text.ends_with(".toml")
}

fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let joined = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // `a/../b` reads badly in messages; resolve it where that is safe, which is where `a` exists.
    joined.canonicalize().unwrap_or(joined)
}

/// The text at a key such as `input.gallery`.
fn text_at<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut String> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    match (table.get_mut(first)?, rest) {
        (Value::Table(section), Some(rest)) => text_at(section, rest),
        (Value::String(text), None) => Some(text),
        _ => None,
    }
}

/// The first of the paths that is empty text.
fn empty_path(table: &mut Table) -> Option<&'static str> {
    PATH_KEYS.into_iter().find(|key| text_at(table, key).is_some_and(|text| text.is_empty()))
}

/// Lets the relative paths of a file count from its folder.
fn resolve_paths(table: &mut Table, folder: &Path) -> Table {
    for key in PATH_KEYS {
        if let Some(text) = text_at(table, key)
            && !is_no_path(key, text)
        {
            *text = clean(&folder.join(&text)).to_string_lossy().into_owned();
        }
    }
    table.clone()
}

/// `a/b/../c` → `a/c`, by name only: the folder may not exist yet.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir if cleaned.file_name().is_some() => {
                cleaned.pop();
            }
            std::path::Component::CurDir => {}
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// A TOML error with its place, and the nearest known key where a key is unknown.
fn parse_error(origin: &str, text: Option<&str>, error: &toml::de::Error) -> ConfigError {
    let origin = match (text, error.span()) {
        (Some(text), Some(span)) => {
            format!("{origin}:{}", text[..span.start.min(text.len())].matches('\n').count() + 1)
        }
        _ => origin.to_owned(),
    };
    let message = error.message();
    let mut words = message.split('`').skip(1).step_by(2);
    let reason = match (message.starts_with("unknown field"), words.next()) {
        (true, Some(unknown)) => {
            let known: Vec<&str> = words.collect();
            let nearest = known
                .iter()
                .map(|key| (strsim::damerau_levenshtein(unknown, key), *key))
                .min()
                .filter(|(distance, _)| *distance <= 3);
            match nearest {
                Some((_, key)) => format!("unknown key `{unknown}`; did you mean `{key}`?"),
                None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
            }
        }
        _ => message.replace("missing field", "missing key").replace('\n', " "),
    };
    ConfigError::Parse { origin, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: &[&str], environment: &[(&str, &str)]) -> Result<PipelineConfig, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("shop.toml");
        std::fs::write(&file, text).expect("writable");
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        PipelineConfig::load_with(&file, &overrides, environment)
            .map_err(|error| error.to_string().replace(&file.display().to_string(), "shop.toml"))
    }

    #[test]
    fn a_short_file_gets_the_originals_recipe() {
        let config = load("[input]\ngallery = 'pictures'", &[], &[]).expect("valid");
        assert_eq!(config.name, "shop");
        assert!(config.input.gallery.is_absolute() && config.input.gallery.ends_with("pictures"));
        assert_eq!(config.model.precision, Precision::Fp32);
        assert_eq!(config.model.pooling, Pooling::Max);
        assert_eq!(config.model.resize, None);
        assert_eq!(config.evaluate.modes, [Mode::LeaveOneOut]);
        assert!(config.features.ends_with("runs/shop/features"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let error =
            load("[input]\ngallery = 'a'\n[model]\nprecison = 'fp32'", &[], &[]).expect_err("misspelt");
        assert_eq!(error, "shop.toml:4: unknown key `precison`; did you mean `precision`?");
        let error =
            load("[input]\ngallery = 'a'", &["model.pooling=median"], &[]).expect_err("no such pooling");
        assert!(error.starts_with("--set model.pooling=median: unknown variant `median`"), "{error}");
        let error =
            load("[input]\ngallery = 'a'", &[], &[("IMAGEDEX_MODLE__POOLING", "max")]).expect_err("misspelt");
        assert!(
            error.contains("IMAGEDEX_MODLE__POOLING: unknown key `modle`; did you mean `model`?"),
            "{error}"
        );
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let text = "[input]\ngallery = 'a'\n[model]\nprecision = 'fp32'\npooling = 'avg'\nbatch = 4";
        let environment = [
            ("IMAGEDEX_MODEL__PRECISION", "bf16"),
            ("IMAGEDEX_MODEL__POOLING", "gem"),
            ("IMAGEDEX_LOG", "x"),
        ];
        let config = load(text, &["model.precision=int8", "evaluate.k=[3, 1]"], &environment).expect("valid");
        assert_eq!(config.model.precision, Precision::Int8);
        assert_eq!(config.model.pooling, Pooling::Gem);
        assert_eq!(config.model.batch, 4);
        assert_eq!(config.evaluate.ks, [1, 3]);
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, expected) in [
            ("[evaluate]\nk = [0]\n[input]\ngallery = 'a'", "evaluate.k: needs at least one cut-off"),
            ("[evaluate]\nk = []\n[input]\ngallery = 'a'", "evaluate.k: needs at least one cut-off"),
            ("[input]\ngallery = 'a'\nlabel = 'year'", "input.label: `year` is not one of"),
            ("[input]\ngallery = 'a'\nlabel = { regex = '(' }", "input.label"),
            ("[input]\ngallery = 'a'\nmax_failures = '1'", "must be a count such as 20"),
            ("[evaluate]\nmodes = ['held_out']\n[input]\ngallery = 'a'", "held_out needs input.queries"),
            ("[input]\ngallery = 'a'\nmax_pixels = 0", "input.max_pixels: 0 refuses every picture"),
            ("[input]\ngallery = ''", "input.gallery: is empty; name a path"),
            ("work = ''\n[input]\ngallery = 'a'", "work: is empty; name a path, or leave the key away"),
            ("[input]\ngallery = 'a'\n[load.elasticsearch]\nca = ''", "load.elasticsearch.ca: is empty"),
            ("[model]\nbatch = 0\n[input]\ngallery = 'a'", "model.batch"),
            ("name = 'x'", "missing key `input`"),
            (
                "[gate.cosin]\nMAP = 1\n[input]\ngallery = 'a'",
                "shop.toml:1: unknown key `cosin`; did you mean `cosine`?",
            ),
            (
                "[gate.l1]\nMPA = 0.5\n[input]\ngallery = 'a'",
                "shop.toml: gate.l1.\"MPA\": no such measure; did you mean \"MAP\"?",
            ),
            (
                "[gate.l1]\n'P@3' = 0.5\n[input]\ngallery = 'a'",
                "gate.l1.\"P@3\": 3 is not one of evaluate.k = [1, 5, 10]",
            ),
            ("[gate.l1]\nMAP = 60\n[input]\ngallery = 'a'", "gate.l1.\"MAP\": 60 is not between 0 and 1"),
            ("[gate.l1]\nMAP = nan\n[input]\ngallery = 'a'", "gate.l1.\"MAP\": NaN is not between 0 and 1"),
            ("[gate.l1]\nMAP = 'high'\n[input]\ngallery = 'a'", "shop.toml:2: invalid type"),
            (
                "[evaluate]\nmax_queries = 0\n[input]\ngallery = 'a'",
                "evaluate.max_queries: 0 queries measure nothing",
            ),
            (
                "[evaluate]\ndepth = 5\n[input]\ngallery = 'a'",
                "evaluate.depth: 5 hits are fewer than the greatest of evaluate.k",
            ),
            (
                "[report]\nprometheus = 'a.txt'\n[input]\ngallery = 'a'",
                "a.txt does not end in .prom, and node_exporter reads no other files",
            ),
            ("[report]\ntreck = true\n[input]\ngallery = 'a'", "unknown key `treck`; did you mean `trec`?"),
            (
                "[gate.l1]\nMAP = 0.5\n[evaluate]\nmetrics = ['cosine', 'l2']\n[input]\ngallery = 'a'",
                "gate.l1: not one of evaluate.metrics = [cosine, l2]",
            ),
        ] {
            let error = load(text, &[], &[]).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error =
            load("[input]\ngallery = 'a'", &[], &[("IMAGEDEX_WORK", "")]).expect_err("an empty folder");
        assert!(error.contains("work: is empty"), "{error}");
    }

    #[test]
    fn a_gate_names_measures_as_the_report_does() {
        let text = "[input]\ngallery = 'a'\n[gate.cosine]\n'P@1' = 0.6\n'engine recall@10' = 1\n[gate.l2]\nMAP = 0.3";
        let config = load(text, &["gate.l2.MAP=0.4"], &[]).expect("valid");
        let gate: Vec<String> = config
            .gate
            .minimums
            .iter()
            .map(|minimum| format!("{} {} {}", minimum.metric, minimum.quantity, minimum.at_least))
            .collect();
        assert_eq!(gate, ["cosine P@1 0.6", "cosine engine recall@10 1", "l2 MAP 0.4"]);
        assert_eq!(load("[input]\ngallery = 'a'", &[], &[]).expect("valid").gate, Gate::default());
    }

    #[test]
    fn what_is_written_beside_the_report_is_asked_for() {
        let report =
            |text: &str| load(&format!("{text}\n[input]\ngallery = 'a'"), &[], &[]).expect("valid").report;
        let none = report("");
        assert!(!none.trec && none.prometheus.is_none());
        let asked = report("[report]\ntrec = true\nprometheus = '../metrics/shop.prom'");
        let path = asked.prometheus.expect("a path");
        assert!(asked.trec && path.is_absolute() && path.ends_with("metrics/shop.prom"), "{path:?}");
    }

    #[test]
    fn object_stores_stand_where_pictures_features_and_reports_are() {
        let text = "[input]\ngallery = 's3://shop/photos/'\nqueries = 'gs://shop/list.csv'\n[features]\ntable = 'az://c/features'\n\
                    [report]\nupload = 's3://shop/reports'";
        let config = load(text, &["input.queries=s3://shop/q", "input.images=gs://i"], &[]).expect("valid");
        assert_eq!(config.input.gallery, Path::new("s3://shop/photos/"));
        assert_eq!(config.input.images.as_deref(), Some(Path::new("gs://i")));
        assert_eq!(config.input.queries.as_deref(), Some(Path::new("s3://shop/q")));
        assert_eq!(config.features_at.map(|url| url.to_string()).as_deref(), Some("az://c/features"));
        assert!(config.features.ends_with("runs/shop/features-copy"));
        assert_eq!(config.report.upload.map(|url| url.to_string()).as_deref(), Some("s3://shop/reports"));
        for (text, expected) in [
            (
                "[input]\ngallery = 'https://shop/photos'",
                "input.gallery: https:// is not one of s3://, gs://, az://",
            ),
            (
                "[input]\ngallery = 's3://me:hunter2@shop/x'",
                "input.gallery: credentials do not belong into a URL",
            ),
            (
                "work = 's3://shop/work'\n[input]\ngallery = 'a'",
                "work: must be on this machine; object stores are for",
            ),
            (
                "[features]\ntable = 's3://shop'\n[input]\ngallery = 'a'",
                "features.table: a table needs a folder",
            ),
            (
                "[input]\ngallery = 'a.csv'\nimages = 'http://shop/x'",
                "input.images: http:// is not one of s3://, gs://, az://",
            ),
            ("[report]\nupload = 'reports'\n[input]\ngallery = 'a'", "report.upload: it is no URL"),
        ] {
            let error = load(text, &[], &[]).expect_err(text);
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_budget_is_a_count_or_a_share() {
        assert!(!Budget::Share(0.01).is_exceeded(1, 100));
        assert!(Budget::Share(0.01).is_exceeded(2, 100));
        assert!(Budget::Count(0).is_exceeded(1, 100));
        assert!(!Budget::Share(0.0).is_exceeded(0, 0));
    }
}
