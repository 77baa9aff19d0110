//! One picture → its vector, step by step: what the pipeline does with each of thousands.
//!
//!     make setup
//!     cargo run --release --example embed_one_image PICTURE.jpg

use std::path::PathBuf;

use anyhow::Context;
use imagedex::embedders::{self, Runtime};
use imagedex::models::card::{Card, ModelChoice};
use imagedex::setup;
use imagedex::stages::decode::{self, DecodeOptions, Picture};
use imagedex::stages::preprocess::{self, ImageBatch};
use imagedex::stages::scan::{Split, sha256_hex};

fn main() -> anyhow::Result<()> {
    let path: PathBuf = std::env::args_os().nth(1).context("which picture?")?.into();

    // The card says what the model takes and gives; the choice says how it is computed: here fp32 on the CPU provider,
    // in batches of one. Together they decide every bit of the vector.
    let cache = setup::cache_dir(None);
    let choice = ModelChoice { batch: 1, ..ModelChoice::default() };
    let spec = Card::find("vgg16")?.resolve(&imagedex::models::dir(&cache), &choice)?;

    // The runtime is a library that set-up downloaded, loaded now. Threads change the speed, never the vector.
    let runtime = Runtime { library: setup::runtime_library(&cache), threads: 2, cache: None };
    let mut embedder = embedders::open(spec.clone(), &runtime)?;
    println!("{}", embedder.describe());

    // Bytes → RGB pixels of any size → RGB pixels of the model's size. Means and channel order are the graph's business.
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = decode::decode(&bytes, &DecodeOptions::default())?;
    let pixels = preprocess::resize(&image, spec.side, spec.resize)?;

    // A batch carries what is known of its pictures beside their pixels, [n, side, side, 3].
    let picture = Picture {
        id: path.display().to_string(),
        split: Split::Query,
        label: None,
        sha256: sha256_hex(&bytes),
        pixel_sha256: decode::pixel_sha256(&image),
        dhash: decode::dhash(&image),
        width: image.width,
        height: image.height,
        format: image.format.to_owned(),
    };
    let embedded = embedder.embed(ImageBatch { pictures: vec![picture], pixels })?;

    // One vector of length 1, and the length that it had before.
    let vector = embedded.vector(0);
    println!("{} numbers, norm {}; the first: {:?}", vector.len(), embedded.norms[0], &vector[..8]);
    Ok(())
}
