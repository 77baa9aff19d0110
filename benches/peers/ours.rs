//! Our side of `make bench-peers`: works when it is told to, and says how long it took.
//!
//! Each line on standard input names a task; the answer is a line of JSON with seconds and core-seconds. So it takes turns with
//! the peers in benches/peers/*.py (see turns.py), on the same pictures, and costs nothing while others work.
//!
//!     ours embed LIST PRECISION PROVIDER    run | decode | model | vectors FILE
//!     ours decode LIST                      imagedex | image
//!     ours store NUMBERS FOLDER             write | read | size
//!
//! LIST holds a path a line; NUMBERS is float32, 512 to a row.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, bail};
use image::imageops::FilterType;
use imagedex::embedders::{self, EmbedError, Runtime};
use imagedex::memory::Shares;
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::{Precision, Provider, Resize};
use imagedex::stages::decode::{self, DecodeOptions, Picture, PictureOptions};
use imagedex::stages::embed::{self, EmbeddingBatch};
use imagedex::stages::preprocess;
use imagedex::stages::scan::{ImageRef, Seen, Source, Split};
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance};

const DIM: usize = 512;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds `--bench`; with nothing else there is nobody to take turns with.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["embed", list, precision, provider] => embed(list, precision, provider),
        ["decode", list] => decode(list),
        ["store", numbers, folder] => store(numbers, Path::new(folder)),
        _ => {
            println!("this is one side of a comparison: `make bench-peers` runs it");
            Ok(())
        }
    }
}

/// Answers tasks until the input ends. A task is its name and, at most, one argument; what it found goes into the answer.
fn serve(mut work: impl FnMut(&str, &str) -> anyhow::Result<f64>) -> anyhow::Result<()> {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (task, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let (started, busy) = (Instant::now(), core_seconds());
        let found = work(task, argument)?;
        let (seconds, busy) = (started.elapsed().as_secs_f64(), core_seconds() - busy);
        println!("{{\"seconds\": {seconds}, \"core_seconds\": {busy}, \"found\": {found}}}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Processor time of this process so far: `utime` and `stime` of proc(5), in hundredths of a second.
fn core_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may hold spaces; what counts comes after its closing parenthesis.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn embed(list: &str, precision: &str, provider: &str) -> anyhow::Result<()> {
    let cache = std::env::var_os("IMAGEDEX_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let precision = [Precision::Fp32, Precision::Bf16, Precision::Int8]
        .into_iter()
        .find(|one| one.to_string() == precision)
        .context("precision is fp32, bf16 or int8")?;
    let provider = [Provider::Cpu, Provider::OpenVino]
        .into_iter()
        .find(|one| one.to_string() == provider)
        .context("provider is cpu or openvino")?;
    let threads = std::thread::available_parallelism()?.get();
    let choice = ModelChoice { precision, provider, ..ModelChoice::default() };
    let spec = Card::find("vgg16")?.resolve(&cache.join("models"), &choice)?;
    let runtime = Runtime { library: cache.join("runtime/onnxruntime"), threads, cache: None };
    let mut embedder = embedders::open(spec.clone(), &runtime)?;
    let images = images(list)?;
    let options = |threads| PictureOptions {
        decode: DecodeOptions::default(),
        side: spec.side,
        resize: spec.resize,
        batch: spec.batch,
        threads,
        shares: Shares::default(),
    };
    let go = AtomicBool::new(false);
    let batches = || {
        let mut batches = Vec::new();
        decode::batches(&images, &options(1), &go, |decoded| {
            batches.push(decoded.batch);
            true
        });
        batches
    };
    let ready = batches();
    serve(|task, argument| {
        let mut rows = EmbeddingBatch::default();
        match task {
            "decode" => return Ok(batches().iter().map(|batch| batch.pictures.len()).sum::<usize>() as f64),
            "model" => {
                for batch in &ready {
                    rows.append(embedder.embed(batch.clone())?);
                }
            }
            "run" | "vectors" => {
                embed::embed(embedder.as_mut(), &images, &options(threads), &go, |chunk| {
                    rows.append(chunk);
                    Ok::<(), EmbedError>(())
                })?;
            }
            _ => bail!("no task {task:?}"),
        }
        if task == "vectors" {
            let bytes: Vec<u8> = rows.vectors.iter().flat_map(|number| number.to_le_bytes()).collect();
            std::fs::write(argument, bytes)?;
        }
        Ok(rows.len() as f64)
    })
}

fn images(list: &str) -> anyhow::Result<Vec<Seen>> {
    let image = |path: &str| Seen {
        image: ImageRef {
            id: path.into(),
            split: Split::Gallery,
            label: None,
            source: Source::File(path.into()),
        },
        sha256: String::new(),
    };
    let images: Vec<Seen> = std::fs::read_to_string(list)?.lines().map(image).collect();
    (!images.is_empty()).then_some(images).context("no pictures")
}

/// On this thread, from bytes in memory to 224 x 224 pixels: as the pipeline does it, and with the crate `image` alone.
fn decode(list: &str) -> anyhow::Result<()> {
    let files = images(list)?.iter().map(|seen| seen.image.source.read()).collect::<Result<Vec<_>, _>>()?;
    serve(|task, _| {
        for bytes in &files {
            match task {
                "imagedex" => {
                    let image = decode::decode(bytes, &DecodeOptions::default())?;
                    black_box(preprocess::resize(&image, 224, Resize::Nearest)?);
                }
                "image" => {
                    let image = image::load_from_memory(bytes)?.into_rgb8();
                    black_box(image::imageops::resize(&image, 224, 224, FilterType::Nearest));
                }
                _ => bail!("no task {task:?}"),
            }
        }
        Ok(files.len() as f64)
    })
}

/// A feature table of its own for each `write`; `read` and `size` are about the last one.
fn store(numbers: &str, folder: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(numbers)?;
    let vectors: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    let rows = vectors.len() / DIM;
    let picture = |i: usize| Picture {
        id: format!("class{}/{i:06}.jpg", i / 1000),
        split: Split::Gallery,
        label: Some(format!("class{}", i / 1000)),
        sha256: format!("{:016x}", (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4),
        pixel_sha256: String::new(),
        dhash: i as u64,
        width: 500,
        height: 375,
        format: "jpeg".into(),
    };
    let pictures = (0..rows).map(picture).collect();
    let batch = EmbeddingBatch { pictures, dim: DIM, vectors, norms: vec![1.0; rows] };
    let provenance = Provenance { fingerprint: "bench".into(), dim: DIM, facts: serde_json::json!({}) };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut last = PathBuf::new();
    let mut count = 0;
    serve(|task, _| match task {
        "write" => {
            count += 1;
            last = folder.join(count.to_string());
            runtime.block_on(async {
                let mut store = FeatureStore::open_or_create(&last, &provenance).await?;
                store.append(&batch, &CommitFacts::default()).await
            })?;
            Ok(rows as f64)
        }
        "read" => Ok(runtime.block_on(async {
            let store = FeatureStore::open(&last).await?.context("written before it is read")?;
            anyhow::Ok(store.read(None).await?.len())
        })? as f64),
        "size" => {
            let files = walkdir::WalkDir::new(&last).into_iter().filter_map(Result::ok);
            Ok(files
                .filter_map(|file| file.metadata().ok())
                .filter(|file| file.is_file())
                .map(|file| file.len())
                .sum::<u64>() as f64)
        }
        _ => bail!("no task {task:?}"),
    })
}
