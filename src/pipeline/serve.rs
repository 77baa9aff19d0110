//! Feature table → engines → measures → gate → report → what users search.
//!
//! A run may have several engines. What a newcomer would get wrong: what an error of one of them means. Where it is the only one,
//! the run ends with it. Among several it drops out: the others are loaded, measured and promoted, its failure stands in the report,
//! and the run still ends with that error.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Extracted, Run, StageClock};
use crate::commands::say;
use crate::engines::flat::Nearest;
use crate::engines::{self, EngineConfig, EngineError, Filter, Hit, Query, VectorIndex};
use crate::exit::{Exit, UsageError};
use crate::interrupt;
use crate::memory::Ledger;
use crate::models::card::Card;
use crate::stages::baseline::Baseline;
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::evaluate::{self, EvaluateOptions, Evaluation, GalleryRows, Mode, RankingSink, Space};
use crate::stages::load::{self, Loaded};
use crate::stages::report::prometheus::RunFacts;
use crate::stages::report::trec::TrecFolder;
use crate::stages::report::{EngineFailure, Load};
use crate::stages::scan::Split;
use crate::stages::store::{FeatureStore, Tiles};

/// Rows that a search reads at a time: of 512 numbers some 100 MB with what is made of them.
const PART_ROWS: usize = 16_384;

/// Bytes for each picture that is evaluated, beside its vector: its facts, and its place in a ranking.
const EVALUATED_BYTES: u64 = 600;

/// Engines that are ready to be loaded, and those that dropped out.
pub struct Engines {
    ready: Vec<(EngineConfig, Box<dyn VectorIndex>)>,
    dropped: Dropped,
}

/// Engines that failed while others go on.
struct Dropped {
    /// There are no others.
    is_alone: bool,
    failures: Vec<EngineFailure>,
    first: Option<anyhow::Error>,
}

impl Dropped {
    /// Notes a failure, or gives it back where the run cannot go on.
    fn note(&mut self, engine: String, error: anyhow::Error) -> anyhow::Result<()> {
        if self.is_alone || Exit::of(&error) == Exit::Interrupted {
            return Err(error);
        }
        tracing::error!("engine {engine} drops out: {error:#}");
        self.failures.push(EngineFailure { engine, reason: format!("{error:#}") });
        self.first.get_or_insert(error);
        Ok(())
    }
}

/// What the engines of a run came to.
#[derive(Default)]
pub struct Served {
    pub evaluations: Vec<Evaluation>,
    pub loads: Vec<Load>,
    pub failures: Vec<EngineFailure>,
    /// Of the first engine that failed among others: the run ends with it.
    pub error: Option<anyhow::Error>,
    /// Loaded and measured, and not yet what users search.
    servers: Vec<Box<dyn VectorIndex>>,
}

impl Served {
    /// Removes what was loaded for nothing.
    fn discard(&mut self) {
        for server in self.servers.iter_mut().filter_map(|index| index.as_server()) {
            if let Err(error) = server.discard() {
                tracing::warn!("the new index was left behind, and the next run removes it: {error}");
            }
        }
        self.servers.clear();
    }
}

/// What a search found.
pub struct Answer {
    /// Its name in reports.
    pub engine: String,
    /// The closest first.
    pub hits: Vec<Hit>,
    /// Classes of the hits, by id.
    pub labels: BTreeMap<String, String>,
}

/// What an evaluation is made of.
struct TestSet {
    gallery: TestGallery,
    queries: EmbeddingBatch,
}

/// As [`GalleryRows`], and whose they are.
enum TestGallery {
    Held(EmbeddingBatch),
    Stored { pictures: Vec<Picture>, dim: usize, tiles: Tiles },
}

impl TestSet {
    fn rows(&self) -> GalleryRows<'_> {
        match &self.gallery {
            TestGallery::Held(batch) => GalleryRows::Held(batch),
            TestGallery::Stored { pictures, dim, tiles } => {
                GalleryRows::Stored { pictures, dim: *dim, tiles }
            }
        }
    }
}

fn ids_of(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(|hit| hit.id.clone()).collect()
}

/// Whether a stage of this name is one of ours, done anew by each evaluation.
pub fn is_stage(name: &str) -> bool {
    name == "evaluate" || name == "load" || name.starts_with("load: ")
}

impl Run<'_> {
    /// An engine, nothing in it and nothing asked of it yet.
    pub fn open_engine(&self, config: &EngineConfig) -> anyhow::Result<Box<dyn VectorIndex>> {
        let non_negative = Card::find(&self.config.card)?.non_negative;
        Ok(engines::open(config, non_negative, self.runtime.handle())?)
    }

    /// The same, ready for a load: a server that would not take it is known before a picture is decoded.
    pub fn ready(&self, config: &EngineConfig) -> anyhow::Result<Box<dyn VectorIndex>> {
        let mut index = self.open_engine(config)?;
        if let Some(server) = index.as_server() {
            server.preflight()?.iter().for_each(|line| tracing::info!("{line}"));
        }
        Ok(index)
    }

    /// All engines of the run, ready for a load.
    pub fn engines(&self) -> anyhow::Result<Engines> {
        let is_alone = self.config.engines.len() == 1;
        let mut dropped = Dropped { is_alone, failures: Vec::new(), first: None };
        let mut ready = Vec::new();
        for config in &self.config.engines {
            match self.ready(config) {
                Ok(index) => ready.push((config.clone(), index)),
                Err(error) => dropped.note(config.name(), error)?,
            }
        }
        Ok(Engines { ready, dropped })
    }

    /// The nearest pictures that pass all `filters`, by the first engine of the run: on a server what users search; else what the
    /// feature table holds, which `flat` reads part by part, so that it need not fit into memory.
    pub fn search(&self, query: &Query, filters: &[Filter]) -> anyhow::Result<Answer> {
        let store = self.stored()?;
        let config = &self.config.engines[0];
        let mut index = self.open_engine(config)?;
        let engine = index.name().to_owned();
        if !index.supports(query.metric) {
            let reason = format!("engine {engine} has no metric {}", query.metric);
            return Err(UsageError(reason).into());
        }
        if let Some(server) = index.as_server() {
            server.attach(&store.provenance().fingerprint, store.dim())?;
            let hits = match filters {
                [] => server.search(query)?,
                _ => server.search_filtered(query, filters)?,
            };
            let labels = server.labels(&ids_of(&hits))?;
            return Ok(Answer { engine, hits, labels });
        }
        let passing = match filters {
            [] => None,
            _ => Some(self.passing(filters)?),
        };
        let hits = match (config, &passing) {
            (EngineConfig::Flat | EngineConfig::Table(_), _) => {
                self.search_in_parts(&store, query, passing.as_ref())?
            }
            (_, None) => self.load(config, index)?.index.search(query)?,
            (_, Some(passing)) => {
                // All of them, of which those that pass.
                let mut hits = self.load(config, index)?.index.search(&Query { k: usize::MAX, ..*query })?;
                hits.retain(|hit| passing.contains(&hit.id));
                hits.truncate(query.k);
                hits
            }
        };
        let labels = self.labels(&ids_of(&hits))?;
        Ok(Answer { engine, hits, labels })
    }

    fn search_in_parts(
        &self,
        store: &FeatureStore,
        query: &Query,
        passing: Option<&BTreeSet<String>>,
    ) -> anyhow::Result<Vec<Hit>> {
        let mut nearest = Nearest::of(*query, Card::find(&self.config.card)?.non_negative);
        self.block_on(store.for_each_batch(Some(Split::Gallery), PART_ROWS, |part| -> anyhow::Result<()> {
            match passing {
                None => nearest.look_at(part)?,
                Some(passing) => nearest.look_at(&part.only(|picture| passing.contains(&picture.id)))?,
            }
            Ok(())
        }))?;
        Ok(nearest.hits())
    }

    /// Feature table → engine. The gallery alone is loaded; queries are asked.
    fn load(&self, config: &EngineConfig, index: Box<dyn VectorIndex>) -> anyhow::Result<Loaded> {
        let store = self.stored()?;
        let among_several = (self.config.engines.len() > 1).then(|| config.name());
        let dead_letters = self.config.work.join(dead_letters(among_several.as_deref()));
        Ok(load::load(self.runtime.handle(), &store, index, config.max_rejected(), &dead_letters)?)
    }

    /// Refuses an engine that would not fit into the budget; `test_set`: beside the pictures that are evaluated.
    fn expect(&self, config: &EngineConfig, test_set: bool) -> anyhow::Result<()> {
        let Some(budget) = self.config.memory else { return Ok(()) };
        let store = self.stored()?;
        let count = |split| self.block_on(store.count(split));
        let (rows, gallery) = (count(None)?, count(Some(Split::Gallery))? as u64);
        let mut ledger = Ledger::for_table(budget, rows)?;
        if test_set {
            let vectors = if self.holds_gallery() { rows as u64 } else { rows as u64 - gallery };
            let bytes = 4 * store.dim() as u64 * vectors + EVALUATED_BYTES * rows as u64;
            ledger.reserve(format!("{rows} pictures to evaluate"), bytes);
        }
        ledger.expect(
            format!("the vectors in {}", config.name()),
            gallery * config.bytes_of_vector(store.dim()),
        )?;
        Ok(())
    }

    /// Feature table → every engine. `then` gets each that is loaded.
    pub fn load_each(
        &self,
        engines: Engines,
        mut then: impl FnMut(&Loaded) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Engines { ready, mut dropped } = engines;
        for (config, index) in ready {
            match self.expect(&config, false).and_then(|()| self.load(&config, index)) {
                Ok(loaded) => then(&loaded)?,
                Err(error) => dropped.note(config.name(), error)?,
            }
        }
        dropped.first.map_or(Ok(()), Err)
    }

    /// Feature table → engines → measures. Each engine in memory is let go of before the next one is loaded.
    pub(super) fn measure(&self, engines: Engines, stages: &mut StageClock) -> anyhow::Result<Served> {
        let mut served = Served::default();
        if let Err(error) = self.measure_each(engines, stages, &mut served) {
            served.discard();
            return Err(error);
        }
        Ok(served)
    }

    fn measure_each(
        &self,
        engines: Engines,
        stages: &mut StageClock,
        served: &mut Served,
    ) -> anyhow::Result<()> {
        let Engines { ready, mut dropped } = engines;
        let trec = self.config.report.trec.then(|| TrecFolder::create(&self.trec_dir()));
        let mut trec = trec.transpose()?;
        let mut test_set = None;
        for (config, index) in ready {
            let name = config.name();
            let stage = if dropped.is_alone { "load".to_owned() } else { format!("load: {name}") };
            let started = Instant::now();
            let loaded = self.expect(&config, test_set.is_none());
            let loaded = stages.time(&stage, || loaded.and_then(|()| self.load(&config, index)));
            let mut loaded = match loaded {
                Ok(loaded) => loaded,
                Err(error) => {
                    dropped.note(name, error)?;
                    continue;
                }
            };
            let seconds = started.elapsed().as_secs_f64();
            stages.count(loaded.books.gallery as usize, loaded.books.searchable as usize);
            stages.done.extend(loaded.bulk.take());
            let footprint = loaded.index.footprint();
            served.loads.push(Load { books: loaded.books.clone(), seconds, footprint });
            let test_set = match &test_set {
                Some(test_set) => test_set,
                None => test_set.insert(self.test_set()?),
            };
            let evaluated =
                stages.time("evaluate", || self.evaluate(loaded.index.as_ref(), test_set, trec.as_mut()));
            let is_server = loaded.index.as_server().is_some();
            if is_server {
                served.servers.push(loaded.index);
            }
            match evaluated {
                Ok(evaluations) => served.evaluations.extend(evaluations),
                Err(error) => {
                    if let Some(mut index) = served.servers.pop_if(|_| is_server && !dropped.is_alone)
                        && let Some(server) = index.as_server()
                        && let Err(error) = server.discard()
                    {
                        tracing::warn!("the new index was left behind, and the next run removes it: {error}");
                    }
                    dropped.note(name, error)?;
                }
            }
        }
        if let Some(trec) = trec {
            let written = trec.finish()?;
            let (folder, mb) = (self.trec_dir(), written.bytes as f64 / 1e6);
            tracing::info!("TREC: {} files of {mb:.1} MB in {}", written.files, folder.display());
        }
        (served.failures, served.error) = (dropped.failures, dropped.first);
        Ok(())
    }

    /// Whether an evaluation has the gallery's vectors in memory: in leave-one-out they are the queries.
    fn holds_gallery(&self) -> bool {
        self.config.evaluate.modes.contains(&Mode::LeaveOneOut)
    }

    fn test_set(&self) -> anyhow::Result<TestSet> {
        let store = self.stored()?;
        let queries = self.queries(&store)?;
        let gallery = if self.holds_gallery() {
            TestGallery::Held(self.block_on(store.read(Some(Split::Gallery)))?)
        } else {
            let pictures = self.block_on(store.pictures(Split::Gallery))?;
            TestGallery::Stored {
                pictures,
                dim: store.dim(),
                tiles: Tiles::of(store, self.runtime.handle())?,
            }
        };
        Ok(TestSet { gallery, queries })
    }

    fn queries(&self, store: &FeatureStore) -> anyhow::Result<EmbeddingBatch> {
        let queries = self.block_on(store.read(Some(Split::Query)))?;
        Ok(queries.evenly_spaced(self.config.evaluate.max_queries.unwrap_or(usize::MAX)))
    }

    /// Queries against each way to search the engine.
    fn evaluate(
        &self,
        index: &dyn VectorIndex,
        test_set: &TestSet,
        mut trec: Option<&mut TrecFolder>,
    ) -> anyhow::Result<Vec<Evaluation>> {
        let options = self.evaluate_options();
        let mut evaluations = Vec::new();
        for arm in index.arms() {
            let supported = options.metrics.iter().any(|metric| arm.supports(*metric));
            if !supported && !evaluations.is_empty() {
                tracing::info!("{} has none of the metrics asked for", arm.name());
                continue;
            }
            let sink = trec.as_deref_mut().map(|trec| trec as &mut dyn RankingSink);
            evaluations.push(evaluate::evaluate_into(
                arm,
                test_set.rows(),
                &test_set.queries,
                &options,
                sink,
            )?);
        }
        Ok(evaluations)
    }

    fn evaluate_options(&self) -> EvaluateOptions {
        let wanted = &self.config.evaluate;
        EvaluateOptions {
            metrics: wanted.metrics.clone(),
            ks: wanted.ks.clone(),
            modes: wanted.modes.clone(),
            depth: wanted.depth,
            ..EvaluateOptions::default()
        }
    }

    /// The same in memory, on vectors in `space`, without timing: what a sweep compares.
    pub fn evaluate_in_memory(&self, space: Space) -> anyhow::Result<Vec<Evaluation>> {
        let store = self.stored()?;
        let gallery = space.of(&self.block_on(store.read(Some(Split::Gallery)))?);
        let queries = space.of(&self.queries(&store)?);
        let options = EvaluateOptions { space, timing: false, ..self.evaluate_options() };
        let mut evaluations = Vec::new();
        for config in &self.config.engines {
            let mut index = self.open_engine(config)?;
            index.create(gallery.dim)?;
            index.upsert(&gallery)?;
            index.commit()?;
            for arm in index.arms() {
                evaluations.push(evaluate::evaluate(arm, &gallery, &queries, &options)?);
            }
        }
        Ok(evaluations)
    }

    /// Feature table → engines → measures → gate → report → what users search. What is not promoted is removed.
    pub fn serve(
        &self,
        extracted: &mut Extracted,
        engines: Engines,
        baseline: Option<&Baseline>,
        facts: &mut RunFacts,
    ) -> anyhow::Result<()> {
        let mut served = self.measure(engines, &mut extracted.stages)?;
        facts.loads = served.loads.iter().map(|load| load.books.clone()).collect();
        let judged = self.judge(extracted, &mut served, baseline, facts);
        if judged.is_err() {
            served.discard();
        }
        judged?;
        served.error.map_or(Ok(()), Err)
    }

    /// Measures → gate → report → promotion.
    fn judge(
        &self,
        extracted: &mut Extracted,
        served: &mut Served,
        baseline: Option<&Baseline>,
        facts: &mut RunFacts,
    ) -> anyhow::Result<()> {
        let (verdict, incomparable) = self.gate(extracted, &served.evaluations, baseline);
        extracted.exit = verdict.exit(extracted.exit);
        facts.report = Some(self.report(extracted, served, &verdict)?);
        incomparable.map_or(Ok(()), Err)?;
        self.promote(extracted, served)
    }

    /// Puts what was loaded in the place of what users search, unless the run found a reason not to.
    fn promote(&self, extracted: &Extracted, served: &mut Served) -> anyhow::Result<()> {
        tracing::debug!("stage promote");
        while let Some(index) = served.servers.first_mut() {
            let Some(server) = index.as_server() else { break };
            if interrupt::is_set() {
                return Err(EngineError::Interrupted.into());
            }
            match extracted.exit {
                Exit::Done => say(format!("{}\n", server.promote()?).as_bytes())?,
                Exit::Gate => {
                    server.discard()?;
                    say(b"the gate does not hold: what users search stays as it was, and the new index is removed\n")?;
                }
                _ => {
                    server.discard()?;
                    tracing::warn!(
                        "too many pictures failed: what users search stays as it was, and the new index is removed"
                    );
                }
            }
            // It is what users search now, or gone: nothing that may still fail takes it back.
            served.servers.remove(0);
        }
        Ok(())
    }
}

/// The file of what an engine refused. Each of several engines has its own: a load replaces the file, or removes it.
fn dead_letters(among_several: Option<&str>) -> String {
    match among_several {
        None => "rejected.jsonl".to_owned(),
        Some(engine) => {
            let plain = engine.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            format!("rejected-{plain}.jsonl")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_engines_has_its_own_dead_letters() {
        assert_eq!(dead_letters(None), "rejected.jsonl");
        assert_eq!(dead_letters(Some("opensearch")), "rejected-opensearch.jsonl");
        assert_eq!(dead_letters(Some("milvus IVF_FLAT/2")), "rejected-milvus-IVF-FLAT-2.jsonl");
    }
}
