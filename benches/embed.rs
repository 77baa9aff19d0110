//! Inference alone, images per second: every precision on every provider, by batch size, in one run.
//!
//! `cargo bench --bench embed` prints a Markdown table. Pixels are ready in memory; decoding is `benches/decode.rs`' business.
//! Each cell is the best of three runs of at least a second, because another process can only make a run slower, and behind
//! it the core-milliseconds per picture, which hardly depend on what else is running.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imagedex::embedders::onnx::{OnnxEmbedder, runtime_facts};
use imagedex::embedders::{Embedder, Runtime};
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::{Precision, Provider};
use imagedex::stages::decode::Picture;
use imagedex::stages::preprocess::ImageBatch;
use imagedex::stages::scan::Split;

const BATCHES: [usize; 5] = [1, 4, 8, 16, 32];
const RUNS: usize = 3;
const RUN: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = std::env::var_os("IMAGEDEX_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
    let card = Card::load(&root.join("models/vgg16.toml"))?;
    let threads = std::thread::available_parallelism()?.get();
    let runtime = Runtime { library: cache.join("runtime/onnxruntime"), threads, cache: None };
    let facts = runtime_facts(&runtime)?;
    let openvino = facts.openvino.as_deref().unwrap_or("absent");
    println!(
        "{} on {threads} threads of {}; ONNX Runtime {}, OpenVINO {openvino}\n",
        card.name, facts.cpu, facts.onnxruntime
    );
    println!("| precision | provider |{}", BATCHES.map(|batch| format!(" batch {batch} |")).concat());
    println!("|---|---|{}", "---:|".repeat(BATCHES.len()));
    for (precision, provider) in [
        (Precision::Fp32, Provider::Cpu),
        (Precision::Int8, Provider::Cpu),
        (Precision::Fp32, Provider::OpenVino),
        (Precision::Bf16, Provider::OpenVino),
        (Precision::Int8, Provider::OpenVino),
    ] {
        if provider == Provider::OpenVino && facts.openvino.is_none() {
            continue;
        }
        print!("| {precision} | {provider} |");
        for batch in BATCHES {
            let choice = ModelChoice { precision, provider, batch, ..Default::default() };
            let spec = card.resolve(&cache.join("models"), &choice)?;
            let (images_per_second, core_ms) = measure(&mut OnnxEmbedder::load(spec, &runtime)?)?;
            print!(" {images_per_second:.1} ({core_ms:.1}) |");
            std::io::stdout().flush()?;
        }
        println!();
    }
    Ok(())
}

/// Images per second, and milliseconds of all cores together per image.
fn measure(embedder: &mut OnnxEmbedder) -> Result<(f64, f64), Box<dyn Error>> {
    let batch = pictures(embedder.spec().batch, embedder.spec().side);
    embedder.embed(batch.clone())?;
    let (mut best, mut core_ms) = (0.0f64, f64::INFINITY);
    for _ in 0..RUNS {
        let (start, busy, mut images) = (Instant::now(), core_seconds(), 0.0);
        while start.elapsed() < RUN {
            images += embedder.embed(batch.clone())?.len() as f64;
        }
        best = best.max(images / start.elapsed().as_secs_f64());
        core_ms = core_ms.min((core_seconds() - busy) * 1000.0 / images);
    }
    Ok((best, core_ms))
}

/// Processor time of this process so far: `utime` and `stime` of proc(5), in hundredths of a second. NaN where there is no
/// such file.
fn core_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may hold spaces; what counts comes after its closing parenthesis.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// Noise: what the pixels are does not matter to a convolution's speed, as long as they are not all zero.
fn pictures(count: usize, side: u32) -> ImageBatch {
    let picture = |i: usize| Picture {
        id: format!("{i}.png"),
        split: Split::Gallery,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: side,
        height: side,
        format: "png".into(),
    };
    let bytes = count * (side * side * 3) as usize;
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    ImageBatch { pictures: (0..count).map(picture).collect(), pixels: (0..bytes).map(|_| noise()).collect() }
}
