//! Pictures → vectors through ONNX Runtime, on its own CPU provider or on OpenVINO.
//!
//! The runtime is a shared library that is loaded once per process, from a path; nothing is linked. What a newcomer would
//! get wrong:
//!
//! - A provider that cannot be had must be an error. ONNX Runtime would fall back to its CPU provider, and the vectors would
//!   be other ones than the configuration says.
//! - OpenVINO computes in `bf16` by itself where the processor can. Its precision is therefore always stated, for `int8`
//!   too, whose few float layers would otherwise differ from machine to machine.
//! - The batch has one shape for the whole run. Changing shapes make the runtime's arena grow, and OpenVINO compile again.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider};
use ort::logging::LogLevel;
use ort::session::{OutputSelector, RunOptions, Session};
use ort::value::TensorRef;
use prost::Message;
use serde::Serialize;
use serde_json::json;

use super::{EmbedError, Embedder, Runtime, check, finish};
use crate::models::onnx::{ModelHeader, TensorType, ValueInfoProto, data_type};
use crate::models::{ModelSpec, Precision, Provider};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::preprocess::ImageBatch;

/// A loaded model.
pub struct OnnxEmbedder {
    spec: ModelSpec,
    session: Session,
    /// Only the output that the card names is fetched.
    fetch: RunOptions<ort::session::HasSelectedOutputs>,
    facts: RuntimeFacts,
    threads: usize,
    /// `[batch, side, side, 3]`: one batch, padded.
    pixels: Vec<u8>,
}

impl OnnxEmbedder {
    /// Loads the runtime, checks the file against its card, then opens it on the provider that the spec names.
    pub fn load(spec: ModelSpec, runtime: &Runtime) -> Result<Self, EmbedError> {
        let batch_symbol = check_contract(&spec)?;
        let environment = environment(&runtime.library)?;
        let facts = runtime_facts(runtime)?;
        let session = open_session(&spec, runtime, environment, batch_symbol.as_deref())?;
        let fetch = RunOptions::new()
            .map(|options| options.with_outputs(OutputSelector::no_default().with(&spec.output)))
            .map_err(inference)?;
        let side = spec.side as usize;
        let pixels = vec![0; spec.batch * side * side * 3];
        Ok(Self { session, fetch, facts, threads: runtime.threads, pixels, spec })
    }
}

impl Embedder for OnnxEmbedder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Such as `openvino 2025.4.1 (int8) via ONNX Runtime 1.24.1, 2 threads, batch 8; CPU Intel(R) Xeon(R) ...`.
    fn describe(&self) -> String {
        let RuntimeFacts { onnxruntime, openvino, cpu } = &self.facts;
        let provider = match (self.spec.provider, openvino) {
            (Provider::OpenVino, Some(version)) => format!("openvino {version}"),
            (provider, _) => provider.name().to_owned(),
        };
        let (precision, batch) = (self.spec.precision, self.spec.batch);
        let threads = format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" });
        format!(
            "{provider} ({precision}) via ONNX Runtime {onnxruntime}, {threads}, batch {batch}; CPU {cpu}"
        )
    }

    fn embed(&mut self, batch: ImageBatch) -> Result<EmbeddingBatch, EmbedError> {
        check(&batch, &self.spec)?;
        let (count, side, dim) = (batch.pictures.len(), self.spec.side as usize, self.spec.dim);
        if count == 0 {
            return finish(batch, &self.spec, Vec::new());
        }
        let (filled, padding) = self.pixels.split_at_mut(batch.pixels.len());
        filled.copy_from_slice(&batch.pixels);
        padding.fill(0);
        let input = TensorRef::from_array_view(([self.spec.batch, side, side, 3], &*self.pixels))
            .map_err(inference)?;
        let inputs = ort::inputs![self.spec.input.as_str() => input];
        let outputs = self.session.run_with_options(inputs, &self.fetch).map_err(inference)?;
        let (shape, vectors) =
            outputs[self.spec.output.as_str()].try_extract_tensor::<f32>().map_err(inference)?;
        if **shape != [self.spec.batch as i64, dim as i64] {
            return Err(EmbedError::Inference(format!(
                "output {} has shape {shape:?} instead of [{}, {dim}]",
                self.spec.output, self.spec.batch
            )));
        }
        let vectors = vectors[..count * dim].to_vec();
        drop(outputs);
        finish(batch, &self.spec, vectors)
    }
}

fn inference(error: ort::Error) -> EmbedError {
    EmbedError::Inference(error.to_string())
}

fn open_session(
    spec: &ModelSpec,
    runtime: &Runtime,
    environment: &Environment,
    batch_symbol: Option<&str>,
) -> Result<Session, EmbedError> {
    let provider_error =
        |error: String| EmbedError::Provider { provider: spec.provider.name().into(), reason: error };
    let configured = || -> ort::Result<_> {
        let mut builder = Session::builder(environment)?
            .with_intra_threads(runtime.threads)?
            // Threads that spin between two layers would take cores from the decoders, which run at the same time.
            .with_intra_op_spinning(false)?
            // On processors without VNNI the fast 8-bit products can overflow; this asks for the ones that cannot.
            .with_precise_qmm()?;
        if let Some(symbol) = batch_symbol {
            builder = builder.with_dimension_override(symbol, spec.batch as i64)?;
        }
        if spec.provider == Provider::OpenVino {
            builder = builder.with_disable_cpu_fallback()?.with_execution_providers([openvino(
                spec.precision,
                runtime,
            )
            .build()
            .error_on_failure()])?;
        }
        Ok(builder)
    };
    let mut builder = configured().map_err(|error| provider_error(error.to_string()))?;
    builder.commit_from_file(&spec.file).map_err(|error| match spec.provider {
        Provider::OpenVino => provider_error(format!("{} cannot be compiled: {error}", spec.file.display())),
        Provider::Cpu => contract(spec, error.to_string()),
    })
}

/// OpenVINO on the CPU, with every setting that could otherwise depend on the machine.
fn openvino(precision: Precision, runtime: &Runtime) -> ep::OpenVINO {
    let hint = match precision {
        Precision::Bf16 => "bf16",
        Precision::Fp32 | Precision::Int8 => "f32",
    };
    let mut device = json!({
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": runtime.threads.to_string(),
        "NUM_STREAMS": "1",
    });
    if runtime.threads < std::thread::available_parallelism().map_or(1, usize::from) {
        // Pinned, the threads of each process on a machine are on its first cores: two with one thread each share a core.
        device["ENABLE_CPU_PINNING"] = json!("NO");
    }
    if let Some(cache) = &runtime.cache {
        device["CACHE_DIR"] = json!(cache);
    }
    let config = json!({ "CPU": device });
    ep::OpenVINO::default().with_device_type("CPU").with_arbitrary_config("load_config", config)
}

fn contract(spec: &ModelSpec, reason: String) -> EmbedError {
    EmbedError::Contract { path: spec.file.display().to_string(), reason }
}

/// Compares the file's input and output with the card, before any runtime sees it. Returns the name of the batch
/// dimension where it is a free one.
fn check_contract(spec: &ModelSpec) -> Result<Option<String>, EmbedError> {
    let wrong = |reason: String| contract(spec, reason);
    let bytes = std::fs::read(&spec.file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let header = ModelHeader::decode(&*bytes).map_err(|error| wrong(format!("not an ONNX file: {error}")))?;
    let graph = header.graph.ok_or_else(|| wrong("not an ONNX file with a graph".into()))?;
    let find = |values: &[ValueInfoProto], kind: &str, name: &str| {
        let names = || values.iter().map(|value| value.name.as_str()).collect::<Vec<_>>().join(", ");
        let value = values.iter().find(|value| value.name == name);
        let value = value.ok_or_else(|| wrong(format!("it has no {kind} {name}, only {}", names())))?;
        value
            .r#type
            .as_ref()
            .and_then(|kind| kind.tensor_type.clone())
            .ok_or_else(|| wrong(format!("{name} is no tensor")))
    };
    let (batch, side) = (spec.batch as i64, i64::from(spec.side));
    let input = find(&graph.input, "input", &spec.input)?;
    let output = find(&graph.output, "output", &spec.output)?;
    expect(&input, data_type::UINT8, "uint8", &[batch, side, side, 3])
        .map_err(|reason| wrong(format!("input {}: {reason}", spec.input)))?;
    expect(&output, data_type::FLOAT, "float32", &[batch, spec.dim as i64])
        .map_err(|reason| wrong(format!("output {}: {reason}", spec.output)))?;
    Ok(input.shape.and_then(|shape| shape.dim.into_iter().next()).and_then(|dim| dim.dim_param))
}

/// A tensor of this type whose dimensions are these, or not fixed.
fn expect(found: &TensorType, elem_type: i32, type_name: &str, shape: &[i64]) -> Result<(), String> {
    if found.elem_type != elem_type {
        return Err(format!(
            "its elements are of ONNX type {}, not {type_name} ({elem_type})",
            found.elem_type
        ));
    }
    let Some(found) = &found.shape else { return Ok(()) };
    let fits = found.dim.len() == shape.len()
        && found
            .dim
            .iter()
            .zip(shape)
            .all(|(dim, expected)| dim.dim_value.is_none_or(|value| value == *expected));
    if fits {
        return Ok(());
    }
    let show = |dim: &crate::models::onnx::Dimension| match (&dim.dim_value, &dim.dim_param) {
        (Some(value), _) => value.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => "?".into(),
    };
    let dims: Vec<_> = found.dim.iter().map(show).collect();
    Err(format!("its shape is [{}], not {shape:?} (batch first)", dims.join(", ")))
}

/// The runtime of this process: the library that it was loaded from, and its environment. `ort` allows one per process, and
/// lets go of it when its last owner does, so it is kept here for good.
static ENVIRONMENT: OnceLock<(PathBuf, Environment)> = OnceLock::new();

/// Loads the runtime's library, once; a second, different one is refused.
pub(crate) fn environment(library: &Path) -> Result<&'static Environment, EmbedError> {
    static LOADING: Mutex<()> = Mutex::new(());
    let path = library_file(library)?;
    let failed = |reason: String| EmbedError::Runtime { path: path.display().to_string(), reason };
    // A thread that panicked here left nothing half done: the environment is set in one step.
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = ENVIRONMENT.get() {
        return if *loaded == path {
            Ok(environment)
        } else {
            Err(failed(format!("this process already uses {}", loaded.display())))
        };
    }
    let log = |level: LogLevel, _: &str, _: &str, _: &str, message: &str| match level {
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(target: "onnxruntime", "{message}"),
        _ => tracing::debug!(target: "onnxruntime", "{message}"),
    };
    let builder = ort::init_from(&path).map_err(|error| failed(load_reason(&error)))?;
    let environment = builder
        .with_name("imagedex")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|error| failed(error.to_string()))?;
    environment.set_log_level(LogLevel::Warning);
    Ok(&ENVIRONMENT.get_or_init(|| (path, environment)).1)
}

/// Why a library was not loaded, with the loader's own words, which `libloading` keeps in the error's source.
fn load_reason(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => match std::error::Error::source(error) {
            Some(source) => source.to_string(),
            None => error.to_string(),
        },
        other => other.to_string(),
    }
}

/// The library itself, as an absolute path: `library`, or the one in the folder `library`.
fn library_file(library: &Path) -> Result<PathBuf, EmbedError> {
    let failed = |reason: String| EmbedError::Runtime { path: library.display().to_string(), reason };
    let path = library.canonicalize().map_err(|error| failed(error.to_string()))?;
    if !path.is_dir() {
        return Ok(path);
    }
    // libonnxruntime.so.1.24.1, libonnxruntime.1.24.1.dylib, onnxruntime.dll: but not libonnxruntime_providers_shared.so.
    let is_runtime = |name: &str| {
        let known = ["libonnxruntime.so", "libonnxruntime.dylib", "onnxruntime.dll"].contains(&name);
        known
            || name.starts_with("libonnxruntime.so.")
            || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
    };
    let names = std::fs::read_dir(&path).map_err(|error| failed(error.to_string()))?;
    let mut found: Vec<_> = names
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_runtime))
        .collect();
    found.sort();
    found.into_iter().next().ok_or_else(|| failed("the folder holds no libonnxruntime".into()))
}

/// What computed a vector, besides the model: recorded beside each commit, no part of the fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeFacts {
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// Version of the OpenVINO library that lies beside it, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openvino: Option<String>,
    /// Name of the processor and those of its instruction sets on which the arithmetic depends.
    pub cpu: String,
}

/// Loads the runtime where that was not done yet, and asks it.
pub fn runtime_facts(runtime: &Runtime) -> Result<RuntimeFacts, EmbedError> {
    environment(&runtime.library)?;
    let path = library_file(&runtime.library)?;
    let failed = |reason: String| EmbedError::Runtime { path: path.display().to_string(), reason };
    let onnxruntime = onnxruntime_version(&path).map_err(|error| failed(error.to_string()))?;
    Ok(RuntimeFacts { onnxruntime, openvino: path.parent().and_then(openvino_version), cpu: cpu() })
}

/// The version that the library itself states.
fn onnxruntime_version(path: &Path) -> Result<String, libloading::Error> {
    // SAFETY: `environment` has loaded this very library, so loading it again runs no code of it. `OrtGetApiBase` is the entry
    // point of the C API; it takes nothing and returns a pointer to a static table, whose `GetVersionString` returns a
    // static C string.
    unsafe {
        let library = libloading::Library::new(path)?;
        let base = library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase")?();
        let version: *const c_char = ((*base).GetVersionString)();
        Ok(CStr::from_ptr(version).to_string_lossy().into_owned())
    }
}

/// The version in the name of the OpenVINO library in `folder`.
fn openvino_version(folder: &Path) -> Option<String> {
    let names =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let linux = name.strip_prefix("libopenvino.so.");
            release(linux.or_else(|| name.strip_prefix("libopenvino.")?.strip_suffix(".dylib"))?)
        })
        .max()
}

/// `2025.4.1`, from that or from `2541`: the name that the loader asks for has two digits of the year, then one each.
fn release(suffix: &str) -> Option<String> {
    let digits = suffix.bytes().all(|byte| byte.is_ascii_digit());
    match suffix.len() {
        4 if digits => Some(format!("20{}.{}.{}", &suffix[..2], &suffix[2..3], &suffix[3..])),
        _ => suffix.contains('.').then(|| suffix.to_owned()),
    }
}

/// Instruction sets that decide which kernels compute, and so the last bits: Linux' names, strongest first.
const INSTRUCTION_SETS: [&str; 7] =
    ["amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2"];

/// Name of the processor, with the instruction sets in parentheses.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_of(&text).unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH))
}

fn cpu_of(cpuinfo: &str) -> Option<String> {
    let field = |name: &str| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let name = field("model name")?;
    let flags: Vec<_> = field("flags").unwrap_or_default().split(' ').collect();
    let sets: Vec<_> = INSTRUCTION_SETS.into_iter().filter(|set| flags.contains(set)).collect();
    Some(if sets.is_empty() { name.to_owned() } else { format!("{name} ({})", sets.join(" ")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::onnx::{Dimension, GraphProto, ModelProto};
    use crate::models::tests::spec;

    fn model(folder: &Path, input: ValueInfoProto, output: ValueInfoProto) -> ModelSpec {
        let graph = GraphProto { input: vec![input], output: vec![output], ..Default::default() };
        let file = folder.join("model.onnx");
        std::fs::write(&file, ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec())
            .unwrap();
        ModelSpec { file, ..spec() }
    }

    fn dims(batch: Dimension, rest: &[i64]) -> Vec<Dimension> {
        std::iter::once(batch).chain(rest.iter().map(|&value| Dimension::fixed(value))).collect()
    }

    #[test]
    fn a_model_must_have_the_tensors_of_its_card() {
        let folder = tempfile::tempdir().unwrap();
        let images = |batch| ValueInfoProto::tensor("images", data_type::UINT8, dims(batch, &[4, 4, 3]));
        let pooled = |rest: &[i64]| {
            ValueInfoProto::tensor("pooled", data_type::FLOAT, dims(Dimension::symbol("N"), rest))
        };
        let n = || Dimension::symbol("N");

        let right = model(folder.path(), images(n()), pooled(&[2]));
        assert_eq!(check_contract(&right).unwrap().as_deref(), Some("N"));
        let fixed = model(folder.path(), images(Dimension::fixed(8)), pooled(&[2]));
        assert_eq!(check_contract(&fixed).unwrap(), None);

        for (input, output, reason) in [
            (images(Dimension::fixed(3)), pooled(&[2]), "[3, 4, 4, 3], not [8, 4, 4, 3]"),
            (images(n()), pooled(&[7]), "[N, 7], not [8, 2]"),
            (images(n()), pooled(&[2, 1, 1]), "[N, 2, 1, 1]"),
            (
                ValueInfoProto::tensor("images", data_type::FLOAT, dims(n(), &[4, 4, 3])),
                pooled(&[2]),
                "not uint8",
            ),
            (
                ValueInfoProto::tensor("pixels", data_type::UINT8, dims(n(), &[4, 4, 3])),
                pooled(&[2]),
                "only pixels",
            ),
        ] {
            let message = check_contract(&model(folder.path(), input, output)).unwrap_err().to_string();
            assert!(message.contains("model.onnx") && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn the_library_is_found_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let message = library_file(folder.path()).unwrap_err().to_string();
        assert!(message.contains("make setup") && message.contains("holds no libonnxruntime"), "{message}");
        for name in ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.24.1"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(library_file(folder.path()).unwrap().ends_with("libonnxruntime.so.1.24.1"));
    }

    #[test]
    fn openvinos_version_is_in_any_of_its_names() {
        for (names, version) in [
            (&["libopenvino.so.2541"][..], Some("2025.4.1")),
            (&["libopenvino.so.2025.4.1", "libopenvino.so.2541", "libopenvino.so"], Some("2025.4.1")),
            (&["libopenvino.2541.dylib"], Some("2025.4.1")),
            (&["libopenvino.so", "libopenvino_c.so.2541", "libopenvino_onnx_frontend.so.2541"], None),
            (&[], None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::write(folder.path().join(name), "").unwrap();
            }
            assert_eq!(openvino_version(folder.path()).as_deref(), version, "{names:?}");
        }
    }

    #[test]
    fn the_processor_is_named_with_what_matters() {
        let text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni sse2\n";
        assert_eq!(cpu_of(text).as_deref(), Some("Some CPU (avx512_vnni avx512f avx2)"));
        assert_eq!(cpu_of(""), None);
    }
}
