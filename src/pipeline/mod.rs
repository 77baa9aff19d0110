//! The whole run, top to bottom, on one screen; then each phase. What it does with engines is in [`serve`].
//!
//! Between phases there are only files: the feature table, and the report's `summary.json`. So each phase can be run
//! alone, from the artefact before it, and a run that was cut off goes on where it was.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod serve;
mod verify;
mod work;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::commands::say;
use crate::config::PipelineConfig;
use crate::embedders::{self, Embedder};
use crate::engines::{EngineConfig, Filter};
use crate::exit::{Exit, UsageError};
use crate::interrupt::{self, STOP};
use crate::leftovers;
use crate::lock::{LockError, TableLock, WorkLock};
use crate::memory::{self, Ledger, Shares};
use crate::models::card::Card;
use crate::models::{self, ModelSpec};
use crate::objects::{check_upload, upload_folder};
use crate::setup;
use crate::stages::baseline::{Baseline, BaselineError};
use crate::stages::decode::{self, DecodeOptions, Failure, Picture, PictureOptions};
use crate::stages::embed;
use crate::stages::evaluate::{self, Evaluation};
use crate::stages::gate::Verdict;
use crate::stages::preprocess::{self, ImageBatch};
use crate::stages::report::prometheus::{RunFacts, Textfile};
use crate::stages::report::{self, Exporter, RunRecord, RunReport};
use crate::stages::scan::{self, ScanOptions, Seen, Source, Split, sha256_hex};
use crate::stages::store::{self, CommitFacts, FeatureStore, Provenance, StoreError};
use crate::stats::{Books, StageStats};
use serve::Served;
pub use verify::verify;

/// All phases; and what monitoring reads of them, however they end.
pub fn run(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let textfile = config.report.prometheus.as_ref().map(|path| Textfile::open(path, &config.name));
    let textfile = textfile.transpose()?;
    let mut facts = RunFacts::default();
    let ended = run_all(config, &mut facts);
    let Some(textfile) = textfile else { return ended };
    let exit = ended.as_ref().map_or_else(Exit::of, |exit| *exit);
    match (textfile.write(exit, &facts), ended) {
        (Ok(()), ended) => ended,
        (Err(error), Ok(Exit::Done)) => Err(error.into()),
        (Err(error), ended) => {
            tracing::error!("{error}");
            ended
        }
    }
}

/// Pictures → feature table → engines → measures → gate → report → what users search.
fn run_all(config: &PipelineConfig, facts: &mut RunFacts) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    run.check_upload()?;
    let baseline = run.baseline()?;
    let engines = run.engines()?;
    let mut extracted = run.extract()?;
    facts.books = Some(extracted.books);
    if extracted.exit == Exit::Interrupted {
        return run.close(extracted);
    }
    let served = run.serve(&mut extracted, engines, baseline.as_ref(), facts);
    if let Err(error) = &served {
        extracted.exit = Exit::of(error);
    }
    let exit = run.close(extracted)?;
    served.map(|()| exit)
}

/// Pictures → feature table.
pub fn extract(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let extracted = run.extract()?;
    say(extracted.books.to_string().as_bytes())?;
    run.close(extracted)
}

/// Feature table → engines. What users search on a server stays as it was: that is for [`run`], after measuring.
pub fn load(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    if run.run_file().is_file() {
        check_complete(&RunRecord::read(&run.run_file())?)?;
    }
    run.load_each(run.engines()?, |loaded| say(loaded.books.to_string().as_bytes()))?;
    Ok(Exit::Done)
}

/// Puts the index that users searched before back in its place.
pub fn rollback(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let mut went_back = 0;
    for engine in &config.engines {
        if let Some(server) = run.ready(engine)?.as_server() {
            say(format!("{}\n", server.rollback()?).as_bytes())?;
            went_back += 1;
        }
    }
    if went_back == 0 {
        let names: Vec<String> = config.engines.iter().map(EngineConfig::name).collect();
        let reason = format!("engine {} keeps no earlier index to go back to", names.join(", "));
        return Err(UsageError(reason).into());
    }
    Ok(Exit::Done)
}

/// Engines → measures → gate → report, on what was extracted before.
pub fn evaluate(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    run.check_upload()?;
    let baseline = run.baseline()?;
    let mut extracted = run.last_extract()?;
    let mut served = run.measure(run.engines()?, &mut extracted.stages)?;
    let (verdict, incomparable) = run.gate(&extracted, &served.evaluations, baseline.as_ref());
    run.report(&extracted, &mut served, &verdict)?;
    incomparable.map_or(Ok(()), Err)?;
    served.error.map_or(Ok(()), Err)?;
    Ok(verdict.exit(Exit::Done))
}

/// `summary.json` and `per_query.parquet` → Markdown, the HTML page and the table on the terminal.
pub fn report(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let path = run.report_dir().join("summary.json");
    if !path.is_file() {
        let reason =
            format!("{} is missing; run `imagedex evaluate` or `imagedex run` first", path.display());
        return Err(UsageError(reason).into());
    }
    let per_query = run.report_dir().join("per_query.parquet");
    run.render(&RunReport::read(&path)?.with_queries(&per_query)?)?;
    Ok(Exit::Done)
}

/// `summary.json` and `per_query.parquet` → the baseline file.
pub fn set_baseline(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let (summary, rows) = (run.report_dir().join("summary.json"), run.report_dir().join("per_query.parquet"));
    for path in [&summary, &rows] {
        if !path.is_file() {
            let reason =
                format!("{} is missing; run `imagedex run` or `imagedex evaluate` first", path.display());
            return Err(UsageError(reason).into());
        }
    }
    let report = RunReport::read(&summary)?;
    report.check_queries(&rows)?;
    let rows = evaluate::read_per_query(&rows).map_err(|reason| {
        anyhow::anyhow!("cannot read {}: {reason}; run `imagedex evaluate` again", rows.display())
    })?;
    let baseline = Baseline::of(&report, &rows)?;
    baseline.write(&config.baseline_file)?;
    let queries: usize = baseline.queries.values().map(Vec::len).sum();
    let file = config.baseline_file.display();
    say(
        format!("{file}: {queries} queries, {} ways to search; commit it\n", baseline.cells.len()).as_bytes()
    )?;
    if config.baseline.is_none() {
        tracing::info!("runs are held against it once the pipeline file has a section [baseline]");
    }
    Ok(Exit::Done)
}

/// Checks all that a run needs, and says what it found.
pub fn doctor(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let run = Run::start(config)?;
    let mut lines =
        vec![format!("work folder    {} is writable, no other run holds it", config.work.display())];
    let scan = run.scan()?;
    let count = |split| scan.images.iter().filter(|image| image.split == split).count();
    lines.push(format!(
        "input          {} gallery pictures, {} queries, {} unusable names",
        count(Split::Gallery),
        count(Split::Query),
        scan.failures.len()
    ));
    let spec = run.model_spec()?;
    lines.push(format!("model          {} is the one that card {} means", spec.file.display(), spec.name));
    lines.push(format!("runtime        {}", run.start_work(&spec)?.describe()));
    lines.push(match run.block_on(FeatureStore::open(&config.features))? {
        Some(_) => {
            let store = run.open_store(&spec)?;
            let rows = run.block_on(store.count(None))?;
            format!("features       {} rows, version {}, made with these settings", rows, store.version())
        }
        None => format!("features       {} is not there yet", run.table()),
    });
    run.check_upload()?;
    if let Some(to) = &config.report.upload {
        lines.push(format!("report         {to} answers"));
    }
    for engine in &config.engines {
        let mut index = run.open_engine(engine)?;
        match index.as_server() {
            None => lines.push(format!("engine         {}", index.name())),
            Some(server) => {
                lines.extend(server.preflight()?.into_iter().map(|line| format!("engine         {line}")))
            }
        }
        for &metric in &config.evaluate.metrics {
            match index.supports(metric) {
                true => {}
                // Among several engines some may lack a metric, and the report says so.
                false if config.engines.len() > 1 => {
                    lines.push(format!("engine         {} has no metric {metric}", index.name()))
                }
                false => {
                    return Err(UsageError(format!("engine {} has no metric {metric}", index.name())).into());
                }
            }
        }
    }
    say((lines.join("\n") + "\nready\n").as_bytes())?;
    Ok(Exit::Done)
}

/// The runtime for what is asynchronous: Delta and DataFusion.
pub fn async_runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Query plans recurse deeply, and these crates are compiled for size of build, not of stack frames.
        .thread_stack_size(16 << 20)
        .build()
        .context("cannot start threads for the feature table")
}

/// Seconds and counts of each stage.
#[derive(Default)]
struct StageClock {
    done: Vec<StageStats>,
}

impl StageClock {
    /// Runs a stage and notes how long it took.
    fn time<T>(&mut self, stage: &str, work: impl FnOnce() -> T) -> T {
        tracing::debug!("stage {stage}");
        let started = Instant::now();
        let result = work();
        self.note(stage, 0, 0, started.elapsed().as_secs_f64());
        result
    }

    /// Says how many pictures the last stage got, and handed on.
    fn count(&mut self, items_in: usize, items_out: usize) {
        if let Some(last) = self.done.last_mut() {
            (last.items_in, last.items_out) = (items_in as u64, items_out as u64);
        }
    }

    /// Notes what became of the pictures that were to be embedded.
    fn embedded(&mut self, wanted: usize, done: &embed::Embedded, started: Instant) {
        if wanted > 0 {
            self.note("embed", wanted, done.pictures, started.elapsed().as_secs_f64());
            self.note("embed: model at work", wanted, done.pictures, done.model_seconds);
            self.note("embed: model waits for pictures", wanted, done.pictures, done.wait_seconds);
            for (executor, share) in &done.executors {
                let embedded = share.pictures - share.failed;
                self.note(&format!("embed: {executor}"), share.pictures, embedded, share.model_seconds);
            }
        }
    }

    fn note(&mut self, stage: &str, items_in: usize, items_out: usize, seconds: f64) {
        let (items_in, items_out) = (items_in as u64, items_out as u64);
        self.done.push(StageStats { stage: stage.to_owned(), items_in, items_out, seconds, bytes: 0 });
    }
}

impl Extracted {
    /// How it ended.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Of the settings that made the vectors.
    pub fn fingerprint(&self) -> &str {
        self.provenance["fingerprint"].as_str().unwrap_or_default()
    }
}

/// What *extract* did.
pub struct Extracted {
    books: Books,
    failures: Vec<Failure>,
    stages: StageClock,
    /// What made the vectors; and the program's version.
    provenance: Value,
    table_version: u64,
    /// The budget, and what became of it.
    memory: Option<memory::Record>,
    exit: Exit,
}

/// A run on one pipeline: the lock, the async runtime, and where things are.
pub struct Run<'a> {
    config: &'a PipelineConfig,
    runtime: Runtime,
    cache: PathBuf,
    /// Of a table in an object store.
    mirror: Option<RefCell<store::Mirror>>,
    /// Held while something may be written.
    _lock: Option<WorkLock>,
}

impl<'a> Run<'a> {
    /// A run that may write.
    pub fn start(config: &'a PipelineConfig) -> anyhow::Result<Run<'a>> {
        // A budget that is too little is known before anything is done.
        Ledger::open(config.memory)?;
        let lock = WorkLock::take(&config.work)?;
        leftovers::sweep(&config.work, &config.features);
        let run = Run { _lock: Some(lock), ..Run::without_copy(config)? };
        run.pull()?;
        Ok(run)
    }

    /// A run that only reads what others have written.
    pub fn look(config: &'a PipelineConfig) -> anyhow::Result<Run<'a>> {
        let run = Run::without_copy(config)?;
        match run.pull() {
            // Whoever holds the copy keeps it what the table is.
            Err(error) if matches!(error.downcast_ref(), Some(LockError::TableHeld { .. })) => {}
            pulled => pulled?,
        }
        Ok(run)
    }

    fn without_copy(config: &'a PipelineConfig) -> anyhow::Result<Run<'a>> {
        let cache = setup::cache_dir(config.cache.as_deref());
        let mirror =
            config.features_at.as_ref().map(|url| store::Mirror::new(url, &config.features)).transpose()?;
        Ok(Run { config, runtime: async_runtime()?, cache, mirror: mirror.map(RefCell::new), _lock: None })
    }

    /// Of a table in an object store: makes its copy what the table is.
    fn pull(&self) -> anyhow::Result<()> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        let _lock = self.lock_table()?;
        Ok(mirror.borrow_mut().pull(&self.runtime)?)
    }

    /// The other way: sends the commits that the object store lacks.
    fn push(&self, store: &FeatureStore) -> anyhow::Result<()> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        tracing::debug!("stage push");
        Ok(mirror.borrow_mut().push(store)?)
    }

    /// Compacts the table; what is removed by that is removed from the object store as well.
    fn compact(&self, store: &mut FeatureStore, facts: &CommitFacts) -> anyhow::Result<()> {
        let before = self.mirror.as_ref().map(|mirror| mirror.borrow().files()).transpose()?;
        self.block_on(store.compact(facts))?;
        self.push(store)?;
        if let (Some(mirror), Some(before)) = (&self.mirror, before) {
            mirror.borrow_mut().forget(&before)?;
        }
        Ok(())
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Where the report goes is asked before there is one: a run is long.
    fn check_upload(&self) -> anyhow::Result<()> {
        Ok(self.config.report.upload.as_ref().map_or(Ok(()), check_upload)?)
    }

    pub fn report_dir(&self) -> PathBuf {
        self.config.work.join("report")
    }

    fn trec_dir(&self) -> PathBuf {
        self.report_dir().join("trec")
    }

    fn failures_file(&self) -> PathBuf {
        self.config.work.join("failures.parquet")
    }

    /// The keys of the table, where some of `images` are objects: what is not there is read but once.
    fn stored_keys(&self, images: &[scan::ImageRef]) -> anyhow::Result<HashSet<(Split, String)>> {
        let mut keys = HashSet::new();
        if images.iter().any(|image| matches!(image.source, Source::Object(_)))
            && let Some(store) = self.block_on(FeatureStore::open(&self.config.features))?
        {
            for split in [Split::Gallery, Split::Query] {
                keys.extend(self.block_on(store.ids(split))?.into_iter().map(|id| (split, id)));
            }
        }
        Ok(keys)
    }

    fn keep_known(&self, known: &scan::Known) -> anyhow::Result<()> {
        let file = self.objects_file();
        if !known.is_empty() || file.exists() {
            known.write(&file)?;
        }
        Ok(())
    }

    /// What is known of the objects that were read.
    fn objects_file(&self) -> PathBuf {
        self.config.work.join("objects.parquet")
    }

    fn scan(&self) -> anyhow::Result<scan::Scan> {
        let input = &self.config.input;
        let options = ScanOptions {
            gallery: input.gallery.clone(),
            queries: input.queries.clone(),
            images: input.images.clone(),
            label: input.label.clone(),
            outside: input.outside,
        };
        Ok(self.block_on(scan::scan(&options))?)
    }

    fn model_spec(&self) -> anyhow::Result<ModelSpec> {
        let card = Card::find(&self.config.card)?;
        Ok(card.resolve(&models::dir(&self.cache), &self.config.model)?)
    }

    fn embedder(&self, spec: ModelSpec) -> anyhow::Result<Box<dyn Embedder>> {
        Ok(embedders::open(spec, &self.inference())?)
    }

    fn inference(&self) -> embedders::Runtime {
        let library = &self.config.runtime_library;
        embedders::Runtime {
            library: library.clone().unwrap_or_else(|| setup::runtime_library(&self.cache)),
            threads: self.config.threads,
            cache: None,
        }
    }

    fn picture_options(&self, spec: &ModelSpec, shares: Shares) -> PictureOptions {
        let input = &self.config.input;
        PictureOptions {
            decode: DecodeOptions { exif: input.exif, max_pixels: input.max_pixels },
            side: spec.side,
            resize: spec.resize,
            batch: spec.batch,
            threads: self.config.threads,
            shares,
        }
    }

    /// Where the pictures are that a report shows.
    fn pictures(&self) -> report::Pictures<'_> {
        let input = &self.config.input;
        let queries = input.queries.as_deref();
        let images = input.images.as_deref();
        report::Pictures { gallery: &input.gallery, queries, images, max_pixels: input.max_pixels }
    }

    fn open_store(&self, spec: &ModelSpec) -> anyhow::Result<FeatureStore> {
        let exif = self.config.input.exif.name();
        let provenance =
            Provenance { fingerprint: spec.fingerprint(exif), dim: spec.dim, facts: spec.provenance(exif) };
        let opened = self.block_on(FeatureStore::open_or_create(&self.config.features, &provenance));
        Ok(opened.map_err(|error| match error {
            StoreError::FingerprintMismatch { differences, .. } => {
                StoreError::FingerprintMismatch { path: self.table(), differences }
            }
            other => other,
        })?)
    }

    /// The feature table, as the pipeline file names it.
    fn table(&self) -> String {
        let folder = || self.config.features.display().to_string();
        self.config.features_at.as_ref().map_or_else(folder, ToString::to_string)
    }

    /// Pictures → feature table: only what is new or changed goes through the model.
    pub fn extract(&self) -> anyhow::Result<Extracted> {
        let _lock = self.lock_table()?;
        self.extract_locked()
    }

    /// The feature table for this run alone, as long as the lock is held.
    fn lock_table(&self) -> anyhow::Result<TableLock> {
        Ok(TableLock::take(&store::lock_file(&self.config.features)?)?)
    }

    fn extract_locked(&self) -> anyhow::Result<Extracted> {
        let mut stages = StageClock::default();
        let mut ledger = Ledger::open(self.config.memory)?;
        let spec = self.model_spec()?;
        self.look_for_cluster()?;
        let scan = stages.time("scan", || self.scan())?;
        let (scanned, found, skipped) = (scan.scanned(), scan.images.len(), scan.skipped);
        stages.count(scanned, found);
        if !skipped.is_empty() {
            // Endings, and words for what has none.
            let dot = |kind: &str| if kind.contains(' ') || kind == "hidden" { "" } else { "." };
            let count = |(kind, count): (&String, &usize)| format!("{count} {}{kind}", dot(kind));
            let list: Vec<String> = skipped.iter().map(count).collect();
            tracing::info!("passed over: {}", list.join(", "));
        }
        ledger.expect(format!("the list of {found} pictures"), scan.images.iter().map(listed_bytes).sum())?;
        let (mut failures, folders) = (scan.failures, scan.folders);
        let mut known = scan::Known::read(&self.objects_file());
        let stored = self.stored_keys(&scan.images)?;
        let is_stored = |image: &scan::ImageRef| stored.contains(&(image.split, image.id.clone()));
        let hash = || scan::hash_unless_known(scan.images, &mut known, is_stored, &STOP);
        let (seen, unreadable) = stages.time("hash", hash);
        stages.count(found, seen.len());
        known.keep(&seen, interrupt::is_set());
        self.keep_known(&known)?;
        drop(stored);
        if !unreadable.is_empty() {
            folders.check()?;
        }
        failures.extend(unreadable);
        let mut store = self.open_store(&spec)?.within(ledger.shares());
        let readable = seen.len();
        let plan = stages.time("plan", || self.block_on(store.plan(seen)))?;
        stages.count(readable, plan.to_embed());
        ledger.note(format!("the list of {found} pictures and the table's log"));
        store = store.within(ledger.share(0)?);
        // What an earlier run stored, and could not send.
        self.push(&store)?;
        let mut embedded = 0;
        let mut interrupted = interrupt::is_set();
        // What an interrupted run has not looked at is not gone.
        if !interrupted && !plan.delete.is_empty() {
            let of = |split| self.block_on(store.count(Some(split)));
            let (gallery, queries) = (of(Split::Gallery)?, of(Split::Query)?);
            let stored = |split| if split == Split::Gallery { gallery } else { queries };
            plan.check_readable(&failures)?;
            plan.check_deletions(self.config.input.max_deleted, stored)?;
        }
        let mut deleted = plan.delete.len();
        let reused = plan.unchanged + plan.reuse.len();
        if !interrupted && !plan.is_empty() {
            self.note_begun(&store, &plan, scanned)?;
            let mut facts = CommitFacts(json!({ "imagedex": env!("CARGO_PKG_VERSION") }));
            tracing::debug!("stage store");
            self.block_on(store.apply(&plan.reuse, &plan.delete, &facts))?;
            self.push(&store)?;
            if plan.to_embed() > 0 {
                let mut work = stages.time("start the model", || self.start_work(&spec))?;
                tracing::info!("embedding {} pictures with {}", plan.to_embed(), work.describe());
                facts.0["runtime"] = json!(work.describe());
                if ledger.is_limited() {
                    // What the model takes shows when it works.
                    work.warm_up(blank(&spec))?;
                    ledger.note("the model");
                }
                let batch = spec.batch as u64 * u64::from(spec.side).pow(2) * 3;
                let shares = ledger.share(batch)?;
                ledger.log();
                store = store.within(shares);
                let options = self.picture_options(&spec, shares);
                let new = unread_objects(&plan.embed_new);
                let (mut kept, mut pause) = (Instant::now(), Duration::from_secs(60));
                for (images, is_new) in [(&plan.embed_new, true), (&plan.embed_changed, false)] {
                    let started = Instant::now();
                    let done = work.embed(images, &options, &STOP, |chunk, runtime| {
                        tracing::debug!("stage store");
                        facts.0["runtime"] = json!(runtime);
                        let write = async {
                            match is_new {
                                true => store.append(&chunk, &facts).await,
                                false => store.replace(&chunk, &facts).await,
                            }
                        };
                        self.block_on(write)?;
                        for picture in &chunk.pictures {
                            if let Some(object) = new.get(&(picture.split, picture.id.as_str())) {
                                known.note(object, &picture.sha256);
                            }
                        }
                        // For a run that is killed; seldom enough to take a twentieth of the time at most.
                        if !new.is_empty() && kept.elapsed() > pause {
                            let started = Instant::now();
                            self.keep_known(&known)?;
                            (kept, pause) = (Instant::now(), pause.max(20 * started.elapsed()));
                        }
                        self.push(&store)
                    });
                    // What is stored was read: the next run need not fetch it again, whatever ended this one.
                    if done.is_err()
                        && let Err(error) = self.keep_known(&known)
                    {
                        tracing::warn!("objects will be read again: {error:#}");
                    }
                    let done = done?;
                    stages.embedded(images.len(), &done, started);
                    embedded += done.pictures;
                    if done.failures.iter().any(|failure| failure.stage == "read") {
                        folders.check()?;
                    }
                    if !is_new && !done.failures.is_empty() {
                        // What is stored under these names belongs to bytes that are gone.
                        let stale: Vec<_> = done.failures.iter().map(|f| (f.split, f.path.clone())).collect();
                        self.block_on(store.apply(&[], &stale, &facts))?;
                        self.push(&store)?;
                        deleted += stale.len();
                    }
                    failures.extend(done.failures);
                    interrupted |= interrupt::is_set();
                }
            }
            self.keep_known(&known)?;
            if !interrupted {
                tracing::debug!("stage compact");
                self.compact(&mut store, &facts)?;
            }
        }
        failures.sort_by(|a, b| (a.split, &a.path).cmp(&(b.split, &b.path)));
        store::write_failures(&self.failures_file(), &failures)?;
        let books = Books {
            scanned: scanned as u64,
            embedded: embedded as u64,
            reused: reused as u64,
            failed: failures.len() as u64,
            unchanged: plan.unchanged as u64,
            deleted: deleted as u64,
            stored: self.block_on(store.count(None))? as u64,
        };
        let exit = if interrupted {
            Exit::Interrupted
        } else {
            books.check().map_err(anyhow::Error::msg)?;
            self.budget(&failures, books.scanned)
        };
        let provenance = provenance(&store);
        let table_version = store.version();
        Ok(Extracted { books, failures, stages, provenance, table_version, memory: ledger.record(), exit })
    }

    /// Says which pictures failed, and whether they are too many.
    fn budget(&self, failures: &[Failure], scanned: u64) -> Exit {
        /// Enough to see what is wrong; all of them stand in the failures table.
        const SHOWN: usize = 5;
        for failure in failures.iter().take(SHOWN) {
            tracing::warn!("{}: {}", failure.path.escape_debug(), failure.reason);
        }
        if failures.len() > SHOWN {
            tracing::warn!("… and {} more in {}", failures.len() - SHOWN, self.failures_file().display());
        }
        let budget = self.config.input.max_failures;
        if budget.is_exceeded(failures.len() as u64, scanned) {
            let file = self.failures_file();
            tracing::error!(
                "{} of {scanned} pictures failed, more than max_failures = {budget} allows; see {}",
                failures.len(),
                file.display()
            );
            return Exit::OverBudget;
        }
        Exit::Done
    }

    /// The stored table, which must be there.
    fn stored(&self) -> anyhow::Result<FeatureStore> {
        let store = self.block_on(FeatureStore::open(&self.config.features))?;
        let Some(store) = store else {
            let reason = format!("{} holds no features yet; run `imagedex extract` first", self.table());
            return Err(UsageError(reason).into());
        };
        let Some(budget) = self.config.memory else { return Ok(store) };
        let rows = self.block_on(store.count(None))?;
        Ok(store.within(Ledger::for_table(budget, rows)?.shares()))
    }

    /// The classes of gallery pictures, by id. Ids that the table does not hold are left out.
    pub fn labels(&self, ids: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
        Ok(self.block_on(self.stored()?.labels(Split::Gallery, ids))?)
    }

    /// The gallery pictures that pass all `filters`.
    pub fn passing(&self, filters: &[Filter]) -> anyhow::Result<BTreeSet<String>> {
        let store = self.stored()?;
        let wanted =
            filters.iter().map(|filter| (filter.column.as_str(), filter.value.as_str())).collect::<Vec<_>>();
        Ok(self.block_on(store.ids_where(Split::Gallery, &wanted))?.into_iter().collect())
    }

    /// Whether the measures are good enough for the index to be used.
    ///
    /// A run that cannot be held against its baseline has a report, and then ends with that error.
    fn gate(
        &self,
        extracted: &Extracted,
        evaluations: &[Evaluation],
        baseline: Option<&Baseline>,
    ) -> (Verdict, Option<BaselineError>) {
        let mut verdict = self.config.gate.judge(evaluations);
        let (Some(rule), Some(baseline)) = (&self.config.baseline, baseline) else { return (verdict, None) };
        let fingerprint = extracted.fingerprint();
        match rule.judge(baseline, fingerprint, evaluations) {
            Ok(checks) => verdict.checks.extend(checks),
            Err(error) => {
                verdict.incomparable = Some(error.to_string());
                return (verdict, Some(error));
            }
        }
        (verdict, None)
    }

    /// The baseline, read before any work: a missing one is known at once.
    fn baseline(&self) -> anyhow::Result<Option<Baseline>> {
        Ok(self.config.baseline.as_ref().map(|rule| Baseline::read(&rule.file)).transpose()?)
    }

    /// Measures → `report/` and the table on the terminal.
    fn report(
        &self,
        extracted: &Extracted,
        served: &mut Served,
        verdict: &Verdict,
    ) -> anyhow::Result<RunReport> {
        tracing::debug!("stage report");
        let evaluations = std::mem::take(&mut served.evaluations);
        let folder = self.report_dir();
        store::make_folder(&folder).map_err(|error| StoreError::io(&folder, &error))?;
        let per_query = evaluate::write_per_query(&folder.join("per_query.parquet"), &evaluations)?;
        let mut report = RunReport::new(&self.config.name, extracted.provenance.clone(), evaluations)
            .with_run(extracted.books, &extracted.failures, extracted.stages.done.clone())
            .with_loads(served.loads.clone())
            .with_engine_failures(served.failures.clone())
            .with_gate(verdict.clone());
        report.per_query_sha256 = Some(per_query);
        // Of a table that was imported there are none.
        report.books = report.books.filter(|books| *books != Books::default());
        report::export(&report, &report::Summary, &folder.join("summary.json"))?;
        self.render(&report)?;
        Ok(report)
    }

    fn render(&self, report: &RunReport) -> anyhow::Result<()> {
        let markdown = self.report_dir().join("report.md");
        report::export(report, &report::Markdown, &markdown)?;
        let page = self.report_dir().join("report.html");
        report::export(report, &report::Html { pictures: self.pictures() }, &page)?;
        report::export(report, &report::Junit, &self.report_dir().join("junit.xml"))?;
        report::github::append_step_summary(report, &markdown);
        let mut text = Vec::new();
        report::Terminal.write(report, &mut text)?;
        text.extend(format!("report: {}\nreport: {}\n", markdown.display(), page.display()).into_bytes());
        if let Some(to) = &self.config.report.upload {
            let folder = self.report_dir();
            upload_folder(&folder, to).map_err(|error| StoreError::io(&folder, &error))??;
            text.extend(format!("report: {}\n", to.join("report.html")).into_bytes());
        }
        say(&text)
    }

    /// Writes `run.json`, the books of this run, and gives its exit code.
    fn close(&self, extracted: Extracted) -> anyhow::Result<Exit> {
        let Extracted { books, failures, stages, provenance, table_version, memory, exit } = extracted;
        let record = RunRecord {
            books: Some(books),
            failures: report::count_by_kind(&failures),
            stages: stages.done,
            table_version: Some(table_version),
            memory: memory.map(memory::Record::ended),
            ..RunRecord::new(&self.config.name, exit as i32, provenance)
        };
        record.write(&self.run_file())?;
        Ok(exit)
    }

    /// Writes books that do not close before the table is changed: until they are closed, a run that was killed is known by them,
    /// and part of the pictures does not pass for all.
    fn note_begun(&self, store: &FeatureStore, plan: &store::Plan, scanned: usize) -> anyhow::Result<()> {
        let books = Books {
            scanned: scanned as u64,
            reused: plan.unchanged as u64,
            unchanged: plan.unchanged as u64,
            stored: self.block_on(store.count(None))? as u64,
            ..Books::default()
        };
        let record = RunRecord {
            books: Some(books),
            table_version: Some(store.version()),
            ..RunRecord::new(&self.config.name, Exit::Interrupted as i32, provenance(store))
        };
        Ok(record.write(&self.run_file())?)
    }

    fn run_file(&self) -> PathBuf {
        self.config.work.join("run.json")
    }

    /// The books of the run before, for phases that start from the feature table.
    fn last_extract(&self) -> anyhow::Result<Extracted> {
        let path = self.run_file();
        if !path.is_file() {
            // A table that was imported: no pictures were seen, so there are no books of them.
            let store = self.stored()?;
            return Ok(Extracted {
                books: Books::default(),
                failures: Vec::new(),
                stages: StageClock::default(),
                provenance: provenance(&store),
                table_version: store.version(),
                memory: None,
                exit: Exit::Done,
            });
        }
        let record = RunRecord::read(&path)?;
        check_complete(&record)?;
        Ok(Extracted {
            books: record.books.unwrap_or_default(),
            failures: store::read_failures(&self.failures_file())?,
            stages: StageClock {
                done: record.stages.into_iter().filter(|s| !serve::is_stage(&s.stage)).collect(),
            },
            provenance: record.provenance,
            table_version: record.table_version.unwrap_or_default(),
            memory: None,
            exit: Exit::Done,
        })
    }

    /// The vector of one picture that is not in the table, made as the table's were.
    pub fn embed_picture(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<f32>> {
        let spec = self.model_spec()?;
        self.open_existing(&spec)?;
        let mut embedder = self.embedder(spec.clone())?;
        embed_one(embedder.as_mut(), &self.picture_options(&spec, Shares::default()), path, bytes)
    }

    /// Refuses a search with other settings than the table's.
    fn open_existing(&self, spec: &ModelSpec) -> anyhow::Result<FeatureStore> {
        self.stored()?;
        self.open_store(spec)
    }

    /// The answer to a query over the run's tables.
    pub fn sql(&self, query: &str, format: crate::sql::Format) -> anyhow::Result<()> {
        let sources = crate::sql::SqlSources {
            features: Some(self.config.features.clone()),
            failures: Some(self.failures_file()),
            per_query: Some(self.report_dir().join("per_query.parquet")),
        };
        self.block_on(async {
            let context = crate::sql::session(&sources).await?;
            crate::sql::run(&context, query, format, &mut std::io::stdout().lock()).await?;
            Ok(())
        })
    }
}

/// Bytes for each picture that was found: its id, path, class and hash, and what they are compared by.
pub(crate) const LISTED_BYTES: u64 = 600;

/// The same for each object, with its URL, its ETag, and what the run before knew of it (docs/sizing.md).
pub(crate) const LISTED_OBJECT_BYTES: u64 = 950;

fn listed_bytes(image: &scan::ImageRef) -> u64 {
    match image.source {
        scan::Source::Object(_) => LISTED_OBJECT_BYTES,
        _ => LISTED_BYTES,
    }
}

/// Objects that are read for the first time when they are embedded.
fn unread_objects(images: &[Seen]) -> HashMap<(Split, &str), &scan::Object> {
    let unread =
        images.iter().filter(|seen| seen.sha256.is_empty()).filter_map(|seen| match &seen.image.source {
            Source::Object(object) => Some(((seen.image.split, seen.image.id.as_str()), object)),
            _ => None,
        });
    unread.collect()
}

/// A picture without content, for a model to warm up on.
fn blank(spec: &ModelSpec) -> ImageBatch {
    let picture = Picture {
        id: "blank".to_owned(),
        split: Split::Query,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: spec.side,
        height: spec.side,
        format: String::new(),
    };
    ImageBatch { pictures: vec![picture], pixels: vec![0; (spec.side as usize).pow(2) * 3] }
}

/// Refuses a table that an interrupted extract left: part of the pictures would pass for all.
fn check_complete(record: &RunRecord) -> anyhow::Result<()> {
    match record.books {
        Some(books) if books.check().is_err() => {
            let reason = format!(
                "the last extract was interrupted: {} of {} pictures are stored; run `imagedex extract` or `imagedex run` to go on",
                books.stored, books.scanned
            );
            Err(UsageError(reason).into())
        }
        _ => Ok(()),
    }
}

/// What made the vectors of a table; and the program's version.
fn provenance(store: &FeatureStore) -> Value {
    let mut facts = store.provenance().facts.clone();
    facts["fingerprint"] = json!(store.provenance().fingerprint);
    facts["imagedex"] = json!(env!("CARGO_PKG_VERSION"));
    facts
}

/// Decodes and embeds one picture.
pub fn embed_one(
    embedder: &mut dyn Embedder,
    options: &PictureOptions,
    path: &Path,
    bytes: &[u8],
) -> anyhow::Result<Vec<f32>> {
    let unusable = |error: decode::DecodeError| UsageError(format!("picture {}: {error}", path.display()));
    let image = decode::decode(bytes, &options.decode).map_err(unusable)?;
    let pixels = preprocess::resize(&image, options.side, options.resize).map_err(unusable)?;
    let picture = Picture {
        id: path.display().to_string(),
        split: Split::Query,
        label: None,
        sha256: sha256_hex(bytes),
        pixel_sha256: decode::pixel_sha256(&image),
        dhash: decode::dhash(&image),
        width: image.width,
        height: image.height,
        format: image.format.to_owned(),
    };
    Ok(embedder.embed(ImageBatch { pictures: vec![picture], pixels })?.vectors)
}
