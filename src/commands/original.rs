//! The original's two commands under their own flags: a folder → one HDF5 file, and a search in such a file.

use std::path::Path;

use anyhow::Context;
use tokio::runtime::Runtime;

use crate::cli::{Compute, Index, OriginalEngine, Retrieve};
use crate::embedders::{self, Embedder};
use crate::engines::elastic::{self, Address, ElasticConfig, Layout, Product};
use crate::engines::faiss::FaissConfig;
use crate::engines::milvus::{self, MilvusConfig};
use crate::engines::{self, EngineConfig, EngineError, Query, Source, VectorIndex};
use crate::exchange;
use crate::exit::{Exit, UsageError};
use crate::interrupt::STOP;
use crate::memory::Shares;
use crate::metric::Metric;
use crate::models::card::{Card, ModelChoice};
use crate::models::{self, ModelSpec};
use crate::pipeline::{self, async_runtime};
use crate::setup;
use crate::stages::decode::{DecodeOptions, Exif, PictureOptions};
use crate::stages::embed::{self, EmbeddingBatch};
use crate::stages::scan::{self, LabelRule, ScanOptions, sha256_hex};
use crate::stages::store::{CommitFacts, FeatureStore, Provenance};

use super::{files, read_picture, say};

/// The original's `retrieval.py` shows this many hits.
const HITS: usize = 3;

/// `imagedex index`
pub fn index(args: &Index) -> anyhow::Result<Exit> {
    if exchange::FileFormat::of(&args.index_file)? != exchange::FileFormat::Hdf5 {
        return Err(UsageError(format!("{} does not end in .h5", args.index_file.display())).into());
    }
    let options = ScanOptions {
        gallery: args.train_data.clone(),
        queries: None,
        images: None,
        label: LabelRule::None,
        outside: false,
    };
    let runtime = async_runtime()?;
    let scan = runtime.block_on(scan::scan(&options))?;
    let (seen, unreadable) = scan::hash(scan.images, &STOP);
    let mut failures = scan.failures;
    failures.extend(unreadable);
    let spec = spec(&args.compute)?;
    let mut embedder = open(spec.clone(), &args.compute)?;
    // The file is an export of a feature table, as any other; this one is thrown away.
    let folder = args.index_file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = tempfile::tempdir_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write beside {}", args.index_file.display()))?;
    let exif = Exif::Ignore.name();
    let provenance =
        Provenance { fingerprint: spec.fingerprint(exif), dim: spec.dim, facts: spec.provenance(exif) };
    let mut store = runtime.block_on(FeatureStore::open_or_create(folder.path(), &provenance))?;
    let facts = CommitFacts(serde_json::Value::Null);
    let done = embed::embed(
        embedder.as_mut(),
        &seen,
        &picture_options(&spec),
        &STOP,
        |chunk| -> anyhow::Result<()> { Ok(runtime.block_on(store.append(&chunk, &facts))?) },
    )?;
    failures.extend(done.failures);
    if crate::interrupt::is_set() {
        return Ok(Exit::Interrupted);
    }
    let rows = runtime.block_on(exchange::export(folder.path(), &args.index_file))?;
    for failure in &failures {
        tracing::warn!("{}: {}", failure.path.escape_debug(), failure.reason);
    }
    let text = format!("{}: {} pictures, {} failed\n", args.index_file.display(), rows, failures.len());
    say(text.as_bytes())?;
    Ok(if failures.is_empty() { Exit::Done } else { Exit::OverBudget })
}

/// `imagedex retrieve`
pub fn retrieve(args: &Retrieve) -> anyhow::Result<Exit> {
    let gallery = exchange::read(&args.index_file)?;
    let spec = spec(&args.compute)?;
    if gallery.dim != spec.dim {
        let reason = format!(
            "{} holds vectors of {} numbers, the model gives {}",
            args.index_file.display(),
            gallery.dim,
            spec.dim
        );
        return Err(UsageError(reason).into());
    }
    let bytes = read_picture(&args.test_data)?;
    let runtime = async_runtime()?;
    let index: Box<dyn VectorIndex> = match args.engine {
        OriginalEngine::Numpy => in_memory(&EngineConfig::Flat, &gallery, spec.non_negative, &runtime)?,
        OriginalEngine::Faiss => {
            let config = FaissConfig { metrics: vec![Metric::Cosine], ..FaissConfig::default() };
            in_memory(&EngineConfig::Faiss(config), &gallery, spec.non_negative, &runtime)?
        }
        OriginalEngine::Es => {
            on_server(args, &in_elasticsearch(args)?, &gallery, spec.non_negative, &runtime)?
        }
        OriginalEngine::Milvus => on_server(args, &in_milvus(args)?, &gallery, spec.non_negative, &runtime)?,
    };
    let options = picture_options(&spec);
    let mut embedder = open(spec, &args.compute)?;
    let vector = pipeline::embed_one(embedder.as_mut(), &options, &args.test_data, &bytes)?;
    let hits = index.search(&Query { vector: &vector, k: HITS, metric: Metric::Cosine })?;
    // Ours is cosine + 1; the original's is cosine * 0.5 + 0.5.
    let hits: Vec<(String, f32)> = hits.into_iter().map(|hit| (hit.id, hit.score / 2.0)).collect();
    let mut text = String::new();
    for (name, score) in hits.iter().filter(|(_, score)| *score > args.threshold) {
        text += &format!("{}  {score:.6}\n", name.escape_debug());
    }
    if let (true, Some((name, score))) = (text.is_empty(), hits.first()) {
        tracing::warn!(
            "no score is above {}; the nearest is {} with {score:.6}: --threshold 0 shows it",
            args.threshold,
            name.escape_debug()
        );
    }
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

/// The file's vectors in an engine that holds nothing between runs.
fn in_memory(
    config: &EngineConfig,
    gallery: &EmbeddingBatch,
    non_negative: bool,
    runtime: &Runtime,
) -> anyhow::Result<Box<dyn VectorIndex>> {
    let mut index = engines::open(config, non_negative, runtime.handle())?;
    index.create(gallery.dim)?;
    index.upsert(gallery)?;
    index.commit()?;
    Ok(index)
}

/// The file's vectors behind alias `--db_name`. The original deletes and reloads the index for each search; here that is done once
/// for each file, beside the index in use.
fn on_server(
    args: &Retrieve,
    config: &EngineConfig,
    gallery: &EmbeddingBatch,
    non_negative: bool,
    runtime: &Runtime,
) -> anyhow::Result<Box<dyn VectorIndex>> {
    let file = std::fs::read(&args.index_file)
        .with_context(|| format!("cannot read {}", args.index_file.display()))?;
    let source =
        Source { fingerprint: sha256_hex(&file), dim: gallery.dim, table: "hdf5".to_owned(), version: 0 };
    let mut index = engines::open(config, non_negative, runtime.handle())?;
    let Some(server) = index.as_server() else { return Ok(index) };
    match server.prepare(&source)? {
        Some(standing) => {
            server.reuse(&standing)?;
        }
        None => {
            server.create_for(&source)?;
            server.upsert(gallery)?;
            let (found, rejected) = (server.commit()?, server.sent().rejected.len());
            if found != gallery.len() as u64 {
                let reason =
                    format!("{found} of {} pictures are searchable, {rejected} rejected", gallery.len());
                return Err(EngineError::Failed { engine: config.name(), reason }.into());
            }
            server.finish()?;
        }
    }
    tracing::info!("{}", server.promote()?);
    Ok(index)
}

/// Elasticsearch as the environment names it, with the original's mapping and shards.
fn in_elasticsearch(args: &Retrieve) -> anyhow::Result<EngineConfig> {
    let mut config = ElasticConfig {
        alias: args.db_name.clone(),
        shards: 2,
        layout: Layout::Original,
        incremental: false,
        ..ElasticConfig::default()
    };
    for (variable, field, value) in
        elastic::environment(Product::Elasticsearch, &|name| std::env::var(name).ok())
    {
        match field {
            "url" => config.url = Some(address(variable, value)?),
            "cloud_id" => config.cloud_id = Some(value),
            _ => config.user = Some(value),
        }
    }
    config.check().map_err(|(_, reason)| UsageError(format!("--db_name: {reason}")))?;
    Ok(EngineConfig::Elasticsearch(Box::new(config)))
}

/// Milvus as the environment names it.
fn in_milvus(args: &Retrieve) -> anyhow::Result<EngineConfig> {
    let mut config = MilvusConfig { alias: args.db_name.clone(), ..MilvusConfig::default() };
    for (variable, field, value) in milvus::environment(&|name| std::env::var(name).ok()) {
        match field {
            "uri" => config.uri = Some(address(variable, value)?),
            _ => config.user = Some(value),
        }
    }
    milvus::check_name(&config.alias).map_err(|reason| UsageError(format!("--db_name: {reason}")))?;
    Ok(EngineConfig::Milvus(config))
}

fn address(variable: &str, value: String) -> Result<Address, UsageError> {
    Address::try_from(value).map_err(|reason| UsageError(format!("{variable}: {reason}")))
}

/// The original's recipe, computed as asked.
fn spec(compute: &Compute) -> anyhow::Result<ModelSpec> {
    let choice =
        ModelChoice { precision: compute.precision, provider: compute.provider, ..ModelChoice::default() };
    Ok(Card::find("vgg16")?.resolve(&models::dir(&cache(compute)), &choice)?)
}

fn open(spec: ModelSpec, compute: &Compute) -> anyhow::Result<Box<dyn Embedder>> {
    let library = setup::runtime_library(&cache(compute));
    Ok(embedders::open(spec, &embedders::Runtime { library, threads: files::threads(), cache: None })?)
}

fn cache(compute: &Compute) -> std::path::PathBuf {
    setup::cache_dir(compute.cache.as_deref().map(Path::new))
}

fn picture_options(spec: &ModelSpec) -> PictureOptions {
    PictureOptions {
        decode: DecodeOptions::default(),
        side: spec.side,
        resize: spec.resize,
        batch: spec.batch,
        threads: files::threads(),
        shares: Shares::default(),
    }
}
