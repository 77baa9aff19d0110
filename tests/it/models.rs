//! The model's files and the runtime: built the same everywhere, and the same bytes for one picture however it is fed.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;

use imagedex::embedders::onnx::{OnnxEmbedder, runtime_facts};
use imagedex::embedders::{Embedder, Runtime};
use imagedex::models::calibrate::Ranges;
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::onnx::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
    data_type,
};
use imagedex::models::weights::{self, KERNEL};
use imagedex::models::{FileState, ModelSpec, Normalize, Pooling, Precision, Provider, build, verify};
use imagedex::stages::decode::Picture;
use imagedex::stages::preprocess::ImageBatch;
use imagedex::stages::scan::Split;
use prost::Message;
use sha2::{Digest, Sha256};

/// What set-up downloaded and built.
pub fn cache() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache");
    let cache = std::env::var_os("IMAGEDEX_CACHE").map_or(own, PathBuf::from);
    assert!(cache.join("models").is_dir(), "{} holds no models: run `make setup`", cache.display());
    cache
}

fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

pub fn vgg16() -> Card {
    Card::load(&models_dir().join("vgg16.toml")).unwrap()
}

pub fn runtime(threads: usize) -> Runtime {
    Runtime { library: cache().join("runtime/onnxruntime"), threads, cache: None }
}

pub fn load(choice: &ModelChoice, threads: usize) -> OnnxEmbedder {
    let spec = vgg16().resolve(&cache().join("models"), choice).unwrap();
    OnnxEmbedder::load(spec, &runtime(threads)).unwrap()
}

/// The OpenVINO library that set-up brought, where there is one for this platform.
fn openvino_library() -> Option<PathBuf> {
    let files = std::fs::read_dir(runtime(1).library).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("libopenvino."))
}

/// Every precision with every provider that has it.
pub fn arms() -> Vec<(Precision, Provider)> {
    use {Precision::*, Provider::*};
    let openvino_is_there = openvino_library().is_some();
    let mut arms = vec![(Fp32, Cpu), (Int8, Cpu)];
    if openvino_is_there {
        arms.extend([(Fp32, OpenVino), (Bf16, OpenVino), (Int8, OpenVino)]);
    }
    arms
}

pub fn batch(pictures: &[&[u8]]) -> ImageBatch {
    let picture = |i: usize| Picture {
        id: format!("{i}.png"),
        split: Split::Gallery,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 224,
        height: 224,
        format: "png".into(),
    };
    ImageBatch { pictures: (0..pictures.len()).map(picture).collect(), pixels: pictures.concat() }
}

/// A picture that no other seed gives: waves of colour with some noise, so that every layer has something to see.
fn waves(seed: u32) -> Vec<u8> {
    let mut noise = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut pixels = Vec::with_capacity(224 * 224 * 3);
    for y in 0..224u32 {
        for x in 0..224u32 {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = noise >> 28;
            pixels.push((x * (seed + 1) / 2 % 256) as u8);
            pixels.push((y * (seed + 3) / 3 % 240 + grain) as u8);
            pixels.push(((x + y * seed) % 200 + grain) as u8);
        }
    }
    pixels
}

#[test]
fn one_picture_gives_the_same_bytes_alone_in_a_batch_padded_reordered_and_at_any_thread_count() {
    let pictures: Vec<_> = (0..4).map(waves).collect();
    let all: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let reversed: Vec<&[u8]> = all.iter().rev().copied().collect();
    for (precision, provider) in arms() {
        let choice = ModelChoice { precision, provider, batch: 4, ..Default::default() };
        let mut two = load(&choice, 2);
        let expected = two.embed(batch(&all)).unwrap();
        assert!(expected.vector(0) != expected.vector(1), "{precision} {provider} sees nothing");
        let same = |vector: &[f32], i: usize, how: &str| {
            let equal = vector.iter().zip(expected.vector(i)).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal, "{precision} on {provider}: picture {i} differs {how}");
        };

        let mixed = two.embed(batch(&reversed)).unwrap();
        let padded = two.embed(batch(&all[2..3])).unwrap();
        assert_eq!(padded.len(), 1);
        same(padded.vector(0), 2, "in a padded batch");
        let one = load(&choice, 1).embed(batch(&all)).unwrap();
        let mut single = load(&ModelChoice { batch: 1, ..choice }, 2);
        for i in 0..4 {
            same(mixed.vector(3 - i), i, "in another place of the batch");
            same(one.vector(i), i, "on one thread");
            same(single.embed(batch(&all[i..=i])).unwrap().vector(0), i, "in a batch of one");
        }
        assert_eq!(expected.norms, one.norms);
    }
}

#[test]
fn raw_vectors_and_normalised_ones_come_from_one_file() {
    let picture = waves(5);
    let (precision, provider) = (Precision::Int8, Provider::Cpu);
    let choice = ModelChoice { precision, provider, batch: 1, ..Default::default() };
    let unit = load(&choice, 2).embed(batch(&[&picture])).unwrap();
    let raw =
        load(&ModelChoice { normalize: Normalize::None, ..choice }, 2).embed(batch(&[&picture])).unwrap();
    assert_eq!(unit.norms, raw.norms);
    let length: f64 = unit.vectors.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() < 1e-6, "{length}");
    let norm = f64::from(raw.norms[0]);
    for (unit, raw) in unit.vectors.iter().zip(&raw.vectors) {
        assert!(*raw >= 0.0 && (f64::from(*unit) * norm - f64::from(*raw)).abs() < 1e-4, "{unit} {raw}");
    }
}

#[test]
fn a_provider_says_what_it_is() {
    for (precision, provider) in arms() {
        let choice = ModelChoice { precision, provider, batch: 2, ..Default::default() };
        let said = load(&choice, 2).describe();
        for part in [provider.name(), precision.name(), "ONNX Runtime 1.", "2 threads", "batch 2", "CPU "] {
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn openvino_is_named_with_the_version_that_it_states_itself() {
    let found = runtime_facts(&runtime(1)).unwrap().openvino;
    let Some(library) = openvino_library() else { return assert_eq!(found, None) };
    // SAFETY: `get_openvino_version` is OpenVINO's own function without arguments; it returns two pointers to static C strings.
    // The library stays loaded, as OpenVINO expects of its users.
    let stated = unsafe {
        #[repr(C)]
        struct Version {
            build: *const c_char,
            _description: *const c_char,
        }
        let library = Box::leak(Box::new(libloading::Library::new(library).unwrap()));
        let ask = library.get::<unsafe extern "C" fn() -> Version>(b"get_openvino_version").unwrap();
        CStr::from_ptr(ask().build).to_str().unwrap()
    };
    // Such as 2025.4.1-20426-82bbf0292c5.
    assert_eq!(found.as_deref(), stated.split('-').next());
    let choice =
        ModelChoice { precision: Precision::Int8, provider: Provider::OpenVino, ..Default::default() };
    let said = load(&choice, 1).describe();
    assert!(said.starts_with(&format!("openvino {} (int8)", found.unwrap())), "{said}");
}

#[test]
fn every_built_file_is_the_one_that_the_card_means() {
    let table = verify(&vgg16(), &cache().join("models")).unwrap();
    assert_eq!(table.len(), 6);
    for row in table {
        assert_eq!(row.state, FileState::Right, "{}", row.file);
    }
}

#[test]
fn both_kinds_of_weights_build_the_files_of_the_card() {
    let folder = tempfile::tempdir().unwrap();
    let (card, ranges) = (vgg16(), Ranges::shipped().unwrap());
    let source = cache().join("sources").join(&card.weights.as_ref().unwrap().file);

    let built = build::build(&card, &source, &ranges, &folder.path().join("from-onnx")).unwrap();
    assert!(built.iter().all(|file| file.made));
    let again = build::build(&card, &source, &ranges, &folder.path().join("from-onnx")).unwrap();
    assert!(again.iter().all(|file| !file.made));

    let keras = folder.path().join("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5");
    write_keras_file(&source, &keras, 1.0);
    let built = build::build(&card, &keras, &ranges, &folder.path().join("from-keras")).unwrap();
    assert!(built.iter().all(|file| file.made));

    write_keras_file(&source, &keras, 1.5);
    let message = build::build(&card, &keras, &ranges, &folder.path().join("other")).unwrap_err().to_string();
    assert!(
        message.contains("vgg16-gem-int8.onnx has sha256") && message.contains("the card says"),
        "{message}"
    );
    assert_eq!(std::fs::read_dir(folder.path().join("other")).unwrap().count(), 0, "a wrong file was kept");
}

/// The layout of Keras' file: a group per layer with `<layer>_W_1:0` (`HWIO`) and `<layer>_b_1:0`.
fn write_keras_file(source: &Path, target: &Path, first_bias_times: f32) {
    let mut builder = hdf5_pure::FileBuilder::new();
    for (i, mut conv) in weights::read(source).unwrap().into_iter().enumerate() {
        let mut hwio = Vec::with_capacity(conv.kernel.len());
        for place in 0..KERNEL * KERNEL {
            for input in 0..conv.inputs {
                for output in 0..conv.outputs {
                    hwio.push(conv.kernel[(output * conv.inputs + input) * KERNEL * KERNEL + place]);
                }
            }
        }
        if i == 0 {
            conv.bias[0] *= first_bias_times;
        }
        let shape = [KERNEL, KERNEL, conv.inputs, conv.outputs].map(|n| n as u64);
        let mut group = builder.create_group(conv.name);
        group.create_dataset(&format!("{}_W_1:0", conv.name)).with_f32_data(&hwio).with_shape(&shape);
        group
            .create_dataset(&format!("{}_b_1:0", conv.name))
            .with_f32_data(&conv.bias)
            .with_shape(&shape[3..]);
        builder.add_group(group.finish());
    }
    builder.write(target).unwrap();
}

/// The runtime can be loaded once per process, so each try gets a process of its own: this test, started again with
/// `IMAGEDEX_TEST_LIBRARY` set, loads that library and prints what happened.
#[test]
fn a_library_that_cannot_be_loaded_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(library) = std::env::var_os("IMAGEDEX_TEST_LIBRARY") {
        let runtime = Runtime { library: library.into(), threads: 1, cache: None };
        let facts = match runtime_facts(&runtime) {
            Ok(facts) => facts,
            Err(error) => return println!("ERROR {error}"),
        };
        println!("LOADED {}", facts.onnxruntime);
        let choice =
            ModelChoice { provider: Provider::OpenVino, precision: Precision::Int8, ..Default::default() };
        let spec = vgg16().resolve(&cache().join("models"), &choice).unwrap();
        match OnnxEmbedder::load(spec, &runtime) {
            Ok(embedder) => println!("USES {}", embedder.describe()),
            Err(error) => println!("ERROR {error}"),
        }
        return;
    }
    let good = cache().join("runtime/onnxruntime");
    let text = folder.path().join("libonnxruntime.so");
    std::fs::write(&text, "no library".repeat(100)).unwrap();
    let other = good.join("libonnxruntime_providers_shared.so");
    let missing = folder.path().join("none.so");
    // Started in a folder that has nothing to do with the library.
    let says = |library: &Path| {
        let this = "models::a_library_that_cannot_be_loaded_is_one_clear_error";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env("IMAGEDEX_TEST_LIBRARY", library)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let whole = says(&good);
    assert!(whole.contains("LOADED 1."), "{whole}");
    if arms().iter().any(|(_, provider)| *provider == Provider::OpenVino) {
        assert!(whole.contains("USES openvino 20"), "{whole}");
    }

    // ONNX Runtime without its providers beside it: no silent change to the CPU provider.
    let lonely = folder.path().join("lonely");
    std::fs::create_dir(&lonely).unwrap();
    let library = std::fs::read_dir(&good).unwrap().map(|entry| entry.unwrap().path());
    let library = library.filter(|path| path.to_str().unwrap().contains("libonnxruntime.")).min().unwrap();
    std::fs::copy(&library, lonely.join(library.file_name().unwrap())).unwrap();
    let said = says(&lonely);
    assert!(said.contains("LOADED") && said.contains("ERROR provider openvino cannot be used"), "{said}");

    assert!(
        says(Path::new("libonnxruntime.so")).contains("ERROR cannot load"),
        "a relative path is relative to here"
    );
    for (library, reason) in
        [(&text, "invalid ELF header"), (&other, "OrtGetApiBase"), (&missing, "No such file")]
    {
        let said = says(library);
        let path = library.file_name().unwrap().to_str().unwrap();
        assert!(said.contains("ERROR cannot load the ONNX Runtime library"), "{said}");
        assert!(said.contains(path) && said.contains("make setup") && said.contains(reason), "{said}");
    }
}

/// A card of one's own in `folder`: a tiny encoder that gives the mean colour.
pub fn mean_colour(folder: &Path) -> PathBuf {
    let node = |op: &str, input: &str, output: &str, attribute| NodeProto {
        op_type: op.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        attribute,
        ..Default::default()
    };
    let n = || Dimension::symbol("pictures");
    let pixels = vec![n(), Dimension::fixed(4), Dimension::fixed(4), Dimension::fixed(3)];
    let over_pixels = vec![AttributeProto::ints("axes", &[1, 2]), AttributeProto::int("keepdims", 0)];
    let graph = GraphProto {
        name: "mean_colour".into(),
        node: vec![
            node("Cast", "rgb", "float", vec![AttributeProto::int("to", data_type::FLOAT.into())]),
            node("ReduceMean", "float", "colour", over_pixels),
        ],
        input: vec![ValueInfoProto::tensor("rgb", data_type::UINT8, pixels)],
        output: vec![ValueInfoProto::tensor("colour", data_type::FLOAT, vec![n(), Dimension::fixed(3)])],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    let model =
        ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec();
    std::fs::write(folder.join("colour.onnx"), &model).unwrap();
    let card = format!(
        "name = 'colour'\ndescription = 'mean colour'\nlicence = 'MIT'\nsource = 'this test'\ninput = 'rgb'\noutput = 'colour'\n\
         side = 4\ndim = 3\nnon_negative = true\nresize = 'bilinear'\n\
         [[file]]\nfile = 'colour.onnx'\nformat = 'fp32'\nsha256 = '{}'\n",
        hex::encode(Sha256::digest(&model))
    );
    let path = folder.join("colour.toml");
    std::fs::write(&path, card).unwrap();
    path
}

#[test]
fn any_encoder_works_through_a_card() {
    let folder = tempfile::tempdir().unwrap();
    let card = Card::load(&mean_colour(folder.path())).unwrap();
    let choice = |provider| ModelChoice {
        provider,
        pooling: Pooling::Model,
        normalize: Normalize::None,
        batch: 3,
        ..Default::default()
    };
    let open = |provider| {
        let spec = card.resolve(&cache().join("models"), &choice(provider)).unwrap();
        imagedex::embedders::open(spec, &runtime(1))
    };
    let mut embedder = open(Provider::Cpu).unwrap();
    let found = embedder.embed(batch(&[&[30, 60, 90].repeat(16), &[1, 2, 255].repeat(16)])).unwrap();
    assert_eq!(found.vectors, [30.0, 60.0, 90.0, 1.0, 2.0, 255.0]);

    // OpenVINO leaves so small a graph to the CPU provider: which would be a silent change of provider.
    let openvino_is_there = arms().iter().any(|(_, provider)| *provider == Provider::OpenVino);
    if openvino_is_there {
        let Err(error) = open(Provider::OpenVino) else {
            panic!("nodes went to another provider in silence")
        };
        assert!(error.to_string().contains("fallback to CPU EP has been explicitly disabled"), "{error}");
    }
}

#[test]
fn a_second_runtime_in_one_process_is_refused() {
    runtime_facts(&runtime(1)).unwrap();
    let other = Runtime {
        library: cache().join("runtime/onnxruntime/libonnxruntime_providers_shared.so"),
        ..runtime(1)
    };
    let message = runtime_facts(&other).unwrap_err().to_string();
    assert!(message.contains("already uses"), "{message}");
}

#[test]
fn a_model_file_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = vgg16().resolve(&cache().join("models"), &ModelChoice::default()).unwrap();
    let refused = |file: PathBuf| {
        let Err(error) = OnnxEmbedder::load(ModelSpec { file, ..spec.clone() }, &runtime(1)) else {
            panic!("it was loaded");
        };
        error.to_string()
    };
    let text = folder.path().join("text.onnx");
    std::fs::write(&text, "no model").unwrap();
    for file in [text, folder.path().join("none.onnx")] {
        let message = refused(file.clone());
        assert!(
            message.contains(file.to_str().unwrap()) && message.contains("does not fit its card"),
            "{message}"
        );
    }
}
