//! Files → vectors against what its parts allow, in one run: `cargo bench --bench end_to_end`.
//!
//! The parts are measured alone, in core-seconds per picture: decoding on one thread, and the model on all threads. With
//! nothing lost between them, `cores / (model + decode)` pictures a second come out; the last column says how near to
//! that the real pipeline (`stages::embed`) comes. Shop photos where `../shared` is there, else drawn ones of that size.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use imagedex::embedders::{self, EmbedError, Runtime};
use imagedex::memory::Shares;
use imagedex::models::card::{Card, ModelChoice};
use imagedex::models::{Precision, Provider};
use imagedex::stages::decode::{self, DecodeOptions, PictureOptions};
use imagedex::stages::embed;
use imagedex::stages::scan::{self, LabelRule, ScanOptions, Seen};

/// Pictures of one measurement: some seconds of work in the fastest setting.
const PICTURES: usize = 320;
/// Rounds, of which the best counts: other programs can only make one slower.
const ROUNDS: usize = 3;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = std::env::var_os("IMAGEDEX_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
    let threads = std::thread::available_parallelism()?.get();
    let runtime = Runtime { library: cache.join("runtime/onnxruntime"), threads, cache: None };
    let drawn = tempfile::tempdir()?;
    let images = images(&root.join("../shared/data/grocery/dataset/test"), drawn.path())?;
    println!("{} pictures, {threads} threads, best of {ROUNDS} rounds\n", images.len());
    println!(
        "| precision | provider | decode, core-ms | model, core-ms | parts allow, /s | end to end, /s | reached |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|");
    for (precision, provider) in [
        (Precision::Int8, Provider::OpenVino),
        (Precision::Bf16, Provider::OpenVino),
        (Precision::Int8, Provider::Cpu),
    ] {
        let choice = ModelChoice { precision, provider, ..ModelChoice::default() };
        let spec = Card::find("vgg16")?.resolve(&cache.join("models"), &choice)?;
        let mut embedder = embedders::open(spec.clone(), &runtime)?;
        let options = |threads| PictureOptions {
            decode: DecodeOptions::default(),
            side: spec.side,
            resize: spec.resize,
            batch: spec.batch,
            threads,
            shares: Shares::default(),
        };
        let go = AtomicBool::new(false);
        let (mut decode_s, mut model_s, mut whole_s) = (f64::MAX, f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            let mut batches = Vec::new();
            let started = Instant::now();
            decode::batches(&images, &options(1), &go, |decoded| {
                batches.push(decoded.batch);
                true
            });
            decode_s = decode_s.min(started.elapsed().as_secs_f64());
            let started = Instant::now();
            for batch in batches {
                embedder.embed(batch)?;
            }
            model_s = model_s.min(started.elapsed().as_secs_f64());
            let started = Instant::now();
            embed::embed(embedder.as_mut(), &images, &options(threads), &go, |_| Ok::<(), EmbedError>(()))?;
            whole_s = whole_s.min(started.elapsed().as_secs_f64());
        }
        let pictures = images.len() as f64;
        let (decode, model) = (decode_s / pictures, model_s * threads as f64 / pictures);
        let allowed = threads as f64 / (decode + model);
        let reached = pictures / whole_s;
        println!(
            "| {precision} | {provider} | {:.2} | {:.2} | {allowed:.1} | {reached:.1} | {:.0} % |",
            decode * 1e3,
            model * 1e3,
            reached / allowed * 100.0
        );
    }
    Ok(())
}

fn images(photos: &Path, drawn: &Path) -> anyhow::Result<Vec<Seen>> {
    let folder = if photos.is_dir() { photos } else { drawn };
    if folder == drawn {
        for number in 0..PICTURES as u32 {
            image::RgbImage::from_fn(348, 348, |x, y| {
                let wave = |a: u32| ((x * a + y * number + x * y / 9) % 256) as u8;
                image::Rgb([wave(1), wave(3), wave(5)])
            })
            .save(drawn.join(format!("{number}.jpg")))?;
        }
    }
    let options = ScanOptions {
        gallery: folder.to_owned(),
        queries: None,
        images: None,
        label: LabelRule::None,
        outside: false,
    };
    let scan = tokio::runtime::Builder::new_current_thread().build()?.block_on(scan::scan(&options))?;
    let (mut seen, _) = scan::hash(scan.images, &AtomicBool::new(false));
    seen.truncate(PICTURES);
    (!seen.is_empty()).then_some(seen).context("no pictures")
}
