//! Queries × metrics → [`Evaluation`]: how good the answers of an engine are.
//!
//! Two recalls that must not be mixed are measured, each under its own name. *Label recall* ([`Measures`]) asks whether
//! the nearest pictures have the query's label: that is about the features and the metric. *Engine recall*
//! ([`EngineRecall`]) asks whether the engine returned the nearest pictures at all: 1 for an exact engine, and
//! computed for it too, as a check.
//!
//! All results but [`Evaluation::timings`] are the same whatever the machine or the number of threads: queries go by
//! id, and sums from first to last.

mod intervals;
mod judge;
mod leakage;
mod measures;
mod paired;
mod per_query;
mod ranking;
mod relevance;
mod resample;
mod rows;
mod sink;
mod thresholds;
mod timing;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engines::{EngineError, Hit, Query, Ranker, Searcher};
use crate::metric::Metric;
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;

pub use intervals::{Interval, MeasureIntervals, bootstrap, bootstrap_by_class, wilson};
pub use leakage::{LabelError, Leakage, LeakedKind, NEAR_BITS, NEAR_COSINE, Sameness, TwinPair};
pub use measures::{AtK, Bounds, Measure, Measures, TieAtK};
pub use paired::{Comparison, Contender, Pair, SIGNIFICANT, all_pairs, bare_chance, chance, compare};
pub use per_query::{PerQuery, QueryState, read_per_query, write_per_query};
pub use ranking::SameRanking;
pub use resample::{DRAWS, Table};
pub use rows::GalleryRows;
pub use sink::{FullRanking, RankingSink};
pub use thresholds::{BestThreshold, ScoreHistogram, ThresholdPoint, Thresholds};
pub use timing::SearchTiming;

use judge::{Judge, Outcome};
use leakage::Twins;
use ranking::{Answer, Ranked};
use relevance::{Gallery, Judgement};

/// With fewer evaluated queries than this a difference between metrics says next to nothing: at 30, a share near one
/// half still has a 95 % interval of ± 0.17 (Wilson).
pub const FEW_QUERIES: usize = 30;
/// Hits that are in memory at once, over all queries of a chunk: some 100 MB.
const HITS_AT_ONCE: usize = 1_000_000;
/// Queries on which an exact engine is checked against a scan of all rows.
const CHECKED_QUERIES: usize = 100;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    #[error("the gallery is empty: there is nothing to search in; check input.gallery")]
    EmptyGallery,
    #[error("there are no query pictures: set input.queries, or evaluate.modes = [\"leave_one_out\"]")]
    NoQueries,
    #[error("no {0} to evaluate: name at least one in evaluate.{0}")]
    NothingAsked(&'static str),
    #[error("evaluate.k holds 0: a cut-off is at least 1")]
    ZeroK,
    #[error(
        "the queries' vectors have {queries} numbers, the gallery's {gallery}: extract both with one model"
    )]
    Dimensions { gallery: usize, queries: usize },
    /// A feature file that was imported names a picture twice. Mend the file, and import it again.
    #[error("gallery picture {id} is there twice: ids must be unique")]
    RepeatedId { id: String },
    /// A mistake of whoever calls: pipelines hold the gallery where leave-one-out is among `evaluate.modes`.
    #[error(
        "leave_one_out searches for the gallery's own pictures, so their vectors must be in memory: take it out of evaluate.modes"
    )]
    NotHeld,
    #[error("engine {engine} returned {id}, which is not in the gallery: load the gallery again")]
    UnknownHit { engine: String, id: String },
    #[error(
        "engine {engine} has none of the metrics asked for ({metrics}): change evaluate.metrics or load.engine"
    )]
    NoSupportedMetric { engine: String, metrics: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// `reason` ends with a remedy.
    #[error("cannot write {path}: {reason}, or leave report.trec = false")]
    Rankings { path: String, reason: String },
    /// A full disk, or no right to write.
    #[error("cannot write {path}: {reason}; free some space, or name another `work` folder")]
    Write { path: String, reason: String },
}

impl EvaluateError {
    /// Whether another configuration would help, rather than another state of engine, gallery or disk.
    pub fn is_usage(&self) -> bool {
        match self {
            EvaluateError::NoQueries
            | EvaluateError::NothingAsked(_)
            | EvaluateError::ZeroK
            | EvaluateError::NotHeld
            | EvaluateError::NoSupportedMetric { .. } => true,
            EvaluateError::Engine(error) => {
                matches!(error, EngineError::UnsupportedMetric { .. } | EngineError::ZeroK)
            }
            EvaluateError::EmptyGallery
            | EvaluateError::Dimensions { .. }
            | EvaluateError::RepeatedId { .. }
            | EvaluateError::UnknownHit { .. }
            | EvaluateError::Rankings { .. }
            | EvaluateError::Write { .. } => false,
        }
    }
}

/// Which pictures are the queries.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Pictures kept apart from the gallery.
    HeldOut,
    /// Each gallery picture in turn, searched for among the others.
    LeaveOneOut,
}

impl Mode {
    /// The name used in pipeline files, reports and columns.
    pub fn name(self) -> &'static str {
        match self {
            Mode::HeldOut => "held_out",
            Mode::LeaveOneOut => "leave_one_out",
        }
    }
}

/// Which vectors were compared. Cosine, dot product and L2 rank alike on vectors of length 1, and differ on raw ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// As the feature table holds them.
    #[default]
    Stored,
    /// With their raw lengths: each vector times its norm. Gallery, queries and index are made with [`Space::of`].
    Raw,
}

impl Space {
    /// The batch with its vectors in this space.
    pub fn of(self, batch: &EmbeddingBatch) -> EmbeddingBatch {
        let mut batch = batch.clone();
        if self == Space::Raw && batch.dim > 0 {
            for (vector, norm) in batch.vectors.chunks_exact_mut(batch.dim).zip(&batch.norms) {
                vector.iter_mut().for_each(|x| *x *= norm);
            }
        }
        batch
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluateOptions {
    pub metrics: Vec<Metric>,
    /// Cut-offs; sorted and made unique.
    pub ks: Vec<usize>,
    pub modes: Vec<Mode>,
    /// The space that gallery, queries and index are in; recorded, not converted.
    pub space: Space,
    /// Hits asked for each query. Without it, of an exact engine the whole gallery, so that MAP is that of the full
    /// ranking; of another what the cut-offs need, since asking for more would make its answers better than users get.
    pub depth: Option<usize>,
    /// Whether searches are timed as well.
    pub timing: bool,
}

impl Default for EvaluateOptions {
    fn default() -> EvaluateOptions {
        EvaluateOptions {
            metrics: Metric::ALL.to_vec(),
            ks: vec![1, 5, 10],
            modes: vec![Mode::HeldOut],
            space: Space::Stored,
            depth: None,
            timing: true,
        }
    }
}

/// All that was measured of one engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub engine: String,
    /// Whether the engine promises the true nearest pictures.
    pub exact: bool,
    pub space: Space,
    /// Cut-offs, ascending.
    pub ks: Vec<usize>,
    pub gallery: GalleryFacts,
    pub pictures: PictureHashes,
    /// Metrics asked for that the engine does not have.
    pub unsupported: Vec<Metric>,
    /// Pictures, queries among them, that are equal and labelled differently.
    pub label_errors: Vec<LabelError>,
    pub modes: Vec<ModeEvaluation>,
    /// How long searches took: the one part that differs between runs, so a report keeps it elsewhere.
    #[serde(skip)]
    pub timings: Vec<SearchTiming>,
    /// One row for each mode, metric and query.
    #[serde(skip)]
    pub per_query: Vec<PerQuery>,
}

/// Which pictures these were: two evaluations with the same hashes had the same pictures and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureHashes {
    /// Hex SHA-256 over the id, the bytes' SHA-256 and the label of each picture, by id.
    pub gallery: String,
    pub queries: String,
}

/// What was searched in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GalleryFacts {
    pub pictures: usize,
    pub labelled: usize,
    pub classes: usize,
    /// Numbers in a vector.
    pub dim: usize,
}

/// The results of one mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModeEvaluation {
    pub mode: Mode,
    pub queries: QueryCounts,
    /// The queries without a relevant picture.
    pub unanswerable: Vec<UnanswerableQuery>,
    pub metrics: Vec<MetricEvaluation>,
    /// Groups of metrics that ranked alike for every query.
    pub same_ranking: Vec<SameRanking>,
    /// Metrics compared query by query; of those that rank alike the first one stands for all.
    pub comparisons: Vec<Comparison>,
    /// Pictures that are in the gallery and among the queries.
    pub leakage: Leakage,
}

impl ModeEvaluation {
    /// Whether there are too few queries to tell metrics apart.
    pub fn is_too_small(&self) -> bool {
        self.queries.evaluated < FEW_QUERIES
    }
}

/// Where the queries went: `total = evaluated + unanswerable + unlabelled`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryCounts {
    pub total: usize,
    /// In the means.
    pub evaluated: usize,
    /// Labelled, but no gallery picture has that label.
    pub unanswerable: usize,
    /// Without a label.
    pub unlabelled: usize,
    /// Queries whose bytes are in the gallery too (in leave-one-out, under another id).
    pub with_copies: usize,
    /// Those gallery pictures, taken out of rankings and relevant sets; a picture counts for each such query.
    pub copies_removed: usize,
}

/// A query that the gallery has no right answer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnanswerableQuery {
    pub id: String,
    pub label: String,
}

/// The results of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricEvaluation {
    pub metric: Metric,
    /// Hits asked for each query: what a ranking holds at most.
    pub depth: usize,
    /// Hits that repeated an id, and were dropped. An engine should return none.
    pub repeated_hits: usize,
    /// Mean over the evaluated queries; nothing where there are none.
    pub micro: Option<Measures>,
    /// 95 % intervals of those means; nothing of fewer than two queries.
    pub intervals: Option<MeasureIntervals>,
    /// Mean over the classes of their means.
    #[serde(rename = "macro")]
    pub macro_: Option<Measures>,
    /// 95 % intervals of those; nothing of fewer than two queries.
    pub macro_intervals: Option<MeasureIntervals>,
    /// Mean over evaluated and unanswerable queries, all measures of the latter 0.
    pub micro_with_unanswerable: Option<Measures>,
    /// Classes with evaluated queries, by name.
    pub classes: Vec<ClassMeasures>,
    /// What ties do, one entry for each cut-off.
    pub ties: Vec<Ties>,
    /// One entry for each cut-off.
    pub engine_recall: Vec<EngineRecall>,
    /// The same with and without what leaked; nothing where nothing did.
    pub leakage: Option<WithLeakage>,
    /// From which score on a hit is to be believed.
    pub thresholds: Thresholds,
    /// Of the first hits: which class was found for which.
    pub confusion: Vec<Confusion>,
}

/// Means with and without twins of queries in the gallery. [`MetricEvaluation::micro`] lies between the first two: it takes out
/// copies of the query at hand alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WithLeakage {
    /// Nothing is taken out (in leave-one-out the query itself is).
    pub all: Adjusted,
    /// Without pictures with the bytes or pixels of a query.
    pub without_copies: Adjusted,
    /// Without near duplicates either.
    pub without_near: Adjusted,
}

/// Means over another gallery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adjusted {
    /// Queries that have a relevant picture in it.
    pub queries: usize,
    pub micro: Option<Measures>,
    pub intervals: Option<MeasureIntervals>,
}

/// How often the first hit of queries of a class is of which class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    pub label: String,
    /// Nothing where the picture found has no label.
    pub found: Option<String>,
    pub queries: usize,
}

/// The measures of the queries of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassMeasures {
    pub label: String,
    /// Evaluated queries.
    pub queries: usize,
    /// Gallery pictures of the class.
    pub gallery: usize,
    pub measures: Measures,
}

/// What hits with equal scores do to the first k.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ties {
    pub k: usize,
    /// Evaluated queries with a tie across rank k.
    pub queries: usize,
    /// Means over all evaluated queries, over the orders of their ties within the hits asked for.
    pub hit: Bounds,
    pub precision: Bounds,
}

/// How many of the truly nearest k pictures an engine returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineRecall {
    pub k: usize,
    /// Queries this was measured on: all of an approximate engine, evenly spaced ones of an exact engine.
    pub queries: usize,
    /// Mean over the queries: distinct pictures among the first k hits that are as near as the k-th nearest, / k.
    pub mean: f64,
    /// The least of any query.
    pub worst: f64,
}

/// Measures how well `index`, which holds `gallery`, answers `queries`.
///
/// Leave-one-out takes its queries from the gallery; `queries` may be empty then.
pub fn evaluate(
    index: &dyn Searcher,
    gallery: &EmbeddingBatch,
    queries: &EmbeddingBatch,
    options: &EvaluateOptions,
) -> Result<Evaluation, EvaluateError> {
    evaluate_into(index, GalleryRows::Held(gallery), queries, options, None)
}

/// The same, with the gallery's vectors where they are, and every whole ranking handed to `sink` on the way.
pub fn evaluate_into(
    index: &dyn Searcher,
    gallery: GalleryRows,
    queries: &EmbeddingBatch,
    options: &EvaluateOptions,
    mut sink: Option<&mut (dyn RankingSink + '_)>,
) -> Result<Evaluation, EvaluateError> {
    let ks = cut_offs(options)?;
    check_pictures(&gallery, queries, options)?;
    let (metrics, unsupported): (Vec<Metric>, Vec<Metric>) =
        options.metrics.iter().copied().partition(|metric| index.supports(*metric));
    if metrics.is_empty() {
        let asked: Vec<&str> = options.metrics.iter().map(|metric| metric.name()).collect();
        return Err(EvaluateError::NoSupportedMetric {
            engine: index.name().to_owned(),
            metrics: asked.join(", "),
        });
    }
    let gallery = Gallery::new(gallery)?;
    let mut evaluation = Evaluation {
        engine: index.name().to_owned(),
        exact: index.is_exact(),
        space: options.space,
        gallery: GalleryFacts {
            pictures: gallery.pictures.len(),
            labelled: gallery.labelled(),
            classes: gallery.classes.len(),
            dim: gallery.rows.dim(),
        },
        ks,
        pictures: PictureHashes { gallery: hash_of(gallery.pictures), queries: hash_of(&queries.pictures) },
        unsupported,
        label_errors: leakage::label_errors(&[gallery.pictures, &queries.pictures]),
        modes: Vec::new(),
        timings: Vec::new(),
        per_query: Vec::new(),
    };
    for &mode in &options.modes {
        let judgements = Judgement::all(mode, &gallery, queries)?;
        let twins = Twins::find(mode, &gallery, &judgements)?;
        let run = Run {
            index,
            ranker: ranker(index, &gallery),
            gallery: &gallery,
            judgements: &judgements,
            twins: &twins,
            mode,
            ks: &evaluation.ks,
            depth: options.depth,
        };
        if let Some(sink) = sink.as_deref_mut() {
            sink::tell_relevant(sink, index.name(), mode, &gallery, &judgements)?;
        }
        let (results, per_query) = run.all(&metrics, sink.as_deref_mut())?;
        evaluation.modes.push(results);
        evaluation.per_query.extend(per_query);
        if options.timing && evaluation.timings.is_empty() {
            let vectors: Vec<&[f32]> = judgements.iter().map(|judgement| judgement.vector).collect();
            evaluation.timings = timing::time(index, &vectors, &metrics, run.most_k())?;
        }
    }
    Ok(evaluation)
}

/// Nothing where the engine's pictures are not the gallery's: then each hit is looked up, and the first unknown one is named.
fn ranker<'a>(index: &'a dyn Searcher, gallery: &Gallery) -> Option<(&'a dyn Ranker, Vec<u32>)> {
    let ranker = index.ranker()?;
    let row_of: Option<Vec<u32>> = ranker.ids().iter().map(|id| gallery.row(id)).collect();
    Some((ranker, row_of?))
}

/// Hits by the gallery's rows.
fn rows_of(hits: Vec<Hit>, gallery: &Gallery, engine: &str) -> Result<Ranked, EvaluateError> {
    let row = |hit: Hit| match gallery.row(&hit.id) {
        Some(row) => Ok((row, hit.score)),
        None => Err(EvaluateError::UnknownHit { engine: engine.to_owned(), id: hit.id }),
    };
    hits.into_iter().map(row).collect()
}

fn hash_of(pictures: &[Picture]) -> String {
    let mut pictures: Vec<[&str; 3]> = pictures
        .iter()
        .map(|picture| [&*picture.id, &*picture.sha256, picture.label.as_deref().unwrap_or_default()])
        .collect();
    pictures.sort_unstable();
    let mut hash = Sha256::new();
    for text in pictures.iter().flatten() {
        // Its length before each text: no two lists run together alike.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

fn cut_offs(options: &EvaluateOptions) -> Result<Vec<usize>, EvaluateError> {
    let mut ks = options.ks.clone();
    ks.sort_unstable();
    ks.dedup();
    match ks.first() {
        None => Err(EvaluateError::NothingAsked("k")),
        Some(0) => Err(EvaluateError::ZeroK),
        Some(_) => Ok(ks),
    }
}

fn check_pictures(
    gallery: &GalleryRows,
    queries: &EmbeddingBatch,
    options: &EvaluateOptions,
) -> Result<(), EvaluateError> {
    if options.metrics.is_empty() {
        return Err(EvaluateError::NothingAsked("metrics"));
    }
    if options.modes.is_empty() {
        return Err(EvaluateError::NothingAsked("modes"));
    }
    if gallery.pictures().is_empty() {
        return Err(EvaluateError::EmptyGallery);
    }
    if options.modes.contains(&Mode::HeldOut) {
        if queries.is_empty() {
            return Err(EvaluateError::NoQueries);
        }
        if queries.dim != gallery.dim() {
            return Err(EvaluateError::Dimensions { gallery: gallery.dim(), queries: queries.dim });
        }
    }
    Ok(())
}

/// One mode of one evaluation.
struct Run<'a> {
    index: &'a dyn Searcher,
    /// The engine where it ranks by number, and the gallery's row of each number.
    ranker: Option<(&'a dyn Ranker, Vec<u32>)>,
    gallery: &'a Gallery<'a>,
    judgements: &'a [Judgement<'a>],
    twins: &'a Twins,
    mode: Mode,
    ks: &'a [usize],
    depth: Option<usize>,
}

impl Run<'_> {
    fn all(
        &self,
        metrics: &[Metric],
        sink: Option<&mut (dyn RankingSink + '_)>,
    ) -> Result<(ModeEvaluation, Vec<PerQuery>), EvaluateError> {
        let mut results = Vec::new();
        let mut rows = Vec::new();
        let mut rankings = Vec::new();
        let mut measures: Vec<(Metric, Vec<Measures>)> = Vec::new();
        let outcomes = self.outcomes(metrics, sink)?;
        let recalls = self.engine_recalls(metrics)?;
        for ((&metric, outcomes), engine_recall) in metrics.iter().zip(outcomes).zip(recalls) {
            rows.extend(
                self.judgements
                    .iter()
                    .zip(&outcomes)
                    .map(|(judgement, outcome)| self.row(metric, judgement, outcome)),
            );
            results.push(self.summary(metric, &outcomes, engine_recall));
            measures.push((metric, outcomes.iter().filter_map(|outcome| outcome.measures.clone()).collect()));
            rankings.push((metric, outcomes.into_iter().map(|outcome| outcome.top).collect()));
        }
        let counted =
            |is: QueryState| self.judgements.iter().filter(|judgement| judgement.state() == is).count();
        let queries = QueryCounts {
            total: self.judgements.len(),
            evaluated: counted(QueryState::Evaluated),
            unanswerable: counted(QueryState::Unanswerable),
            unlabelled: counted(QueryState::Unlabelled),
            with_copies: self.judgements.iter().filter(|judgement| judgement.copies > 0).count(),
            copies_removed: self.judgements.iter().map(|judgement| judgement.copies).sum(),
        };
        let unanswerable =
            self.judgements.iter().filter(|judgement| judgement.state() == QueryState::Unanswerable);
        let unanswerable = unanswerable.map(|judgement| UnanswerableQuery {
            id: judgement.id.to_owned(),
            label: judgement.label.unwrap_or_default().to_owned(),
        });
        let same_ranking = ranking::same(&rankings, self.most_k().max(ranking::COMPARED));
        let results = ModeEvaluation {
            comparisons: self.comparisons(&measures, &same_ranking),
            leakage: self.twins.leakage(self.gallery, self.judgements),
            mode: self.mode,
            queries,
            unanswerable: unanswerable.collect(),
            metrics: results,
            same_ranking,
        };
        Ok((results, rows))
    }

    /// Metrics against each other by MAP and by precision at the least cut-off.
    fn comparisons(&self, measures: &[(Metric, Vec<Measures>)], same: &[SameRanking]) -> Vec<Comparison> {
        let stands_for_itself = |metric: &Metric| {
            !same.iter().any(|group| group.metrics.contains(metric) && group.metrics.first() != Some(metric))
        };
        let queries: Vec<(Metric, Vec<&Measures>)> = measures
            .iter()
            .filter(|(metric, _)| stands_for_itself(metric))
            .map(|(metric, measures)| (*metric, measures.iter().collect()))
            .collect();
        let contenders: Vec<Contender> =
            queries.iter().map(|(metric, queries)| Contender { name: metric.name(), queries }).collect();
        let least_k = self.ks.first().copied().unwrap_or(1);
        all_pairs(&contenders, &[Measure::Ap, Measure::Precision(least_k)])
    }

    /// The greatest cut-off.
    fn most_k(&self) -> usize {
        self.ks.last().copied().unwrap_or(1)
    }

    fn depth(&self) -> usize {
        let pictures = self.gallery.pictures.len();
        let most_excluded =
            self.judgements.iter().map(|judgement| judgement.excluded.len()).max().unwrap_or(0);
        // One more than the cut-off shows whether a tie crosses it; twins come first, and are taken out.
        let needed = self.most_k() + most_excluded.max(self.twins.most()) + 1;
        let wanted = self.depth.unwrap_or(if self.index.is_exact() { pictures } else { needed });
        wanted.min(self.index.max_k()).clamp(1, pictures)
    }

    /// Searches for every query by every metric, and judges what came back: a list for each metric.
    fn outcomes(
        &self,
        metrics: &[Metric],
        mut sink: Option<&mut (dyn RankingSink + '_)>,
    ) -> Result<Vec<Vec<Outcome>>, EvaluateError> {
        if let (Some((ranker, row_of)), None) = (&self.ranker, &sink) {
            return self.ranked(*ranker, row_of, metrics);
        }
        let one_metric = |&metric: &Metric| self.outcomes_of(metric, sink.as_deref_mut());
        metrics.iter().map(one_metric).collect()
    }

    /// The same from an engine that ranks by number: all metrics at once, and each ranking judged as it comes.
    fn ranked(
        &self,
        ranker: &dyn Ranker,
        row_of: &[u32],
        metrics: &[Metric],
    ) -> Result<Vec<Vec<Outcome>>, EvaluateError> {
        let k = self.depth();
        let judge = self.judge(false);
        let vectors = self.judgements.iter().map(|judgement| judgement.vector);
        let queries: Vec<Query> = vectors
            .flat_map(|vector| metrics.iter().map(move |&metric| Query { vector, k, metric }))
            .collect();
        let judged: Vec<OnceLock<Outcome>> = queries.iter().map(|_| OnceLock::new()).collect();
        ranker.rank_each(&queries, &|i, mut ranked| {
            ranked.iter_mut().for_each(|(row, _)| *row = row_of[*row as usize]);
            let query = i / metrics.len();
            judged[i].get_or_init(|| judge.judge(query, &self.judgements[query], ranked));
        })?;
        let mut outcomes: Vec<Vec<Outcome>> = metrics.iter().map(|_| Vec::new()).collect();
        for (i, outcome) in judged.into_iter().enumerate() {
            outcomes[i % metrics.len()].extend(outcome.into_inner());
        }
        Ok(outcomes)
    }

    /// The same from any engine, and for a sink: a metric at a time, some queries at a time.
    fn outcomes_of(
        &self,
        metric: Metric,
        mut sink: Option<&mut (dyn RankingSink + '_)>,
    ) -> Result<Vec<Outcome>, EvaluateError> {
        let k = self.depth();
        let at_once = (HITS_AT_ONCE / k).clamp(1, 1024);
        let judge = self.judge(sink.is_some());
        let (gallery, engine) = (self.gallery, self.index.name());
        let mut outcomes = Vec::with_capacity(self.judgements.len());
        for (number, chunk) in self.judgements.chunks(at_once).enumerate() {
            let queries: Vec<Query> =
                chunk.iter().map(|judgement| Query { vector: judgement.vector, k, metric }).collect();
            let found = self.index.search_many(&queries)?;
            let mut judged: Vec<Outcome> = chunk
                .par_iter()
                .zip(found)
                .enumerate()
                .map(|(i, (judgement, hits))| {
                    Ok(judge.judge(number * at_once + i, judgement, rows_of(hits, gallery, engine)?))
                })
                .collect::<Result<_, EvaluateError>>()?;
            if let Some(sink) = sink.as_deref_mut() {
                let of = (engine, self.mode, metric);
                sink::tell_rankings(sink, of, gallery, chunk, &mut judged)?;
            }
            outcomes.extend(judged);
        }
        Ok(outcomes)
    }

    fn judge(&self, keep_whole: bool) -> Judge<'_> {
        Judge { gallery: self.gallery, twins: self.twins, ks: self.ks, keep_whole }
    }

    fn summary(
        &self,
        metric: Metric,
        outcomes: &[Outcome],
        engine_recall: Vec<EngineRecall>,
    ) -> MetricEvaluation {
        let micro = Measures::mean(outcomes.iter().filter_map(|outcome| outcome.measures.as_ref()));
        let evaluated = outcomes.iter().filter(|outcome| outcome.measures.is_some()).count();
        let unanswerable =
            self.judgements.iter().filter(|judgement| judgement.state() == QueryState::Unanswerable).count();
        let share = evaluated as f64 / (evaluated + unanswerable).max(1) as f64;
        let of_class = self.by_class(outcomes);
        let classes = self.classes(&of_class);
        MetricEvaluation {
            metric,
            depth: self.depth(),
            repeated_hits: outcomes.iter().map(|outcome| outcome.repeated).sum(),
            macro_: Measures::mean(classes.iter().map(|class| &class.measures)),
            macro_intervals: MeasureIntervals::by_class(&of_class),
            micro_with_unanswerable: micro.as_ref().map(|micro| micro.scaled(share)),
            intervals: MeasureIntervals::of(
                &outcomes.iter().filter_map(|outcome| outcome.measures.as_ref()).collect::<Vec<_>>(),
            ),
            leakage: (!self.twins.is_empty()).then(|| WithLeakage {
                all: Adjusted::of(outcomes, 0),
                without_copies: Adjusted::of(outcomes, 1),
                without_near: Adjusted::of(outcomes, 2),
            }),
            thresholds: self.thresholds(outcomes),
            confusion: self.confusion(outcomes),
            micro,
            classes,
            ties: self.ties(outcomes),
            engine_recall,
        }
    }

    fn thresholds(&self, outcomes: &[Outcome]) -> Thresholds {
        let labelled =
            self.judgements.iter().zip(outcomes).filter(|(judgement, _)| judgement.label.is_some());
        let queries: Vec<_> = labelled
            .map(|(judgement, outcome)| {
                let is_right = |row| judgement.class.is_some_and(|class| self.gallery.is_of(row, class));
                let hits = outcome.top.iter().take(self.most_k());
                hits.map(|&(row, score)| (score, is_right(row))).collect()
            })
            .collect();
        Thresholds::of(&queries, self.most_k())
    }

    fn confusion(&self, outcomes: &[Outcome]) -> Vec<Confusion> {
        let mut counts: BTreeMap<(&str, Option<&str>), usize> = BTreeMap::new();
        for (judgement, outcome) in self.judgements.iter().zip(outcomes) {
            if let (Some(label), Some(_), Some((row, _))) =
                (judgement.label, &outcome.measures, outcome.top.first())
            {
                let found = self.gallery.pictures[*row as usize].label.as_deref();
                *counts.entry((label, found)).or_default() += 1;
            }
        }
        let confusion = counts.into_iter().map(|((label, found), queries)| Confusion {
            label: label.to_owned(),
            found: found.map(str::to_owned),
            queries,
        });
        confusion.collect()
    }

    /// The measures of the evaluated queries of each class.
    fn by_class<'o>(&self, outcomes: &'o [Outcome]) -> Vec<Vec<&'o Measures>> {
        let mut of_class: Vec<Vec<&Measures>> = vec![Vec::new(); self.gallery.classes.len()];
        for (judgement, outcome) in self.judgements.iter().zip(outcomes) {
            if let (Some(class), Some(measures)) = (judgement.class, &outcome.measures) {
                of_class[class as usize].push(measures);
            }
        }
        of_class
    }

    fn classes(&self, of_class: &[Vec<&Measures>]) -> Vec<ClassMeasures> {
        let classes = of_class.iter().enumerate().filter_map(|(class, measures)| {
            Some(ClassMeasures {
                label: self.gallery.classes[class].to_owned(),
                queries: measures.len(),
                gallery: self.gallery.class_sizes[class],
                measures: Measures::mean(measures.iter().copied())?,
            })
        });
        classes.collect()
    }

    fn ties(&self, outcomes: &[Outcome]) -> Vec<Ties> {
        let judged: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.measures.is_some()).collect();
        let mean = |of: &dyn Fn(&Outcome) -> f64| {
            judged.iter().map(|outcome| of(outcome)).sum::<f64>() / judged.len().max(1) as f64
        };
        let bounds = |of: &dyn Fn(&Outcome) -> Bounds| Bounds {
            worst: mean(&|outcome| of(outcome).worst),
            expected: mean(&|outcome| of(outcome).expected),
            best: mean(&|outcome| of(outcome).best),
        };
        let at = self.ks.iter().enumerate().map(|(i, &k)| Ties {
            k,
            queries: judged.iter().filter(|outcome| outcome.ties[i].crosses).count(),
            hit: bounds(&|outcome| outcome.ties[i].hit),
            precision: bounds(&|outcome| outcome.ties[i].precision),
        });
        at.collect()
    }

    /// For each metric its recall at each cut-off. Asks for no more hits than the greatest, as a user would: an approximate engine
    /// finds more of the first ten when it is asked for a thousand.
    fn engine_recalls(&self, metrics: &[Metric]) -> Result<Vec<Vec<EngineRecall>>, EvaluateError> {
        let vectors: Vec<&[f32]> = self.judgements.iter().map(|judgement| judgement.vector).collect();
        let most = if self.index.is_exact() { CHECKED_QUERIES } else { usize::MAX };
        let asked = timing::evenly_spaced(&vectors, most);
        let k = self.most_k();
        let queries: Vec<Query> = metrics
            .iter()
            .flat_map(|&metric| asked.iter().map(move |vector| Query { vector, k, metric }))
            .collect();
        let mut answers = Vec::with_capacity(queries.len());
        for queries in queries.chunks(1024) {
            let found = self.index.search_many(queries)?;
            answers.extend(queries.iter().zip(found).map(|(query, hits)| Answer {
                vector: query.vector,
                metric: query.metric,
                rows: hits.iter().take(k).filter_map(|hit| self.gallery.row(&hit.id)).collect(),
            }));
        }
        let recalls = ranking::recalls(self.gallery, &answers, self.ks)?;
        let of_metric = |recalls: &[Vec<f64>]| -> Vec<EngineRecall> {
            let at = self.ks.iter().enumerate().map(|(i, &k)| {
                let at_k = recalls.iter().map(|recalls| recalls[i]);
                EngineRecall {
                    k,
                    queries: recalls.len(),
                    mean: at_k.clone().sum::<f64>() / recalls.len().max(1) as f64,
                    worst: at_k.fold(1.0, f64::min),
                }
            });
            at.collect()
        };
        Ok((0..metrics.len()).map(|i| of_metric(&recalls[i * asked.len()..(i + 1) * asked.len()])).collect())
    }

    fn row(&self, metric: Metric, judgement: &Judgement, outcome: &Outcome) -> PerQuery {
        let picture = |row: u32| &self.gallery.pictures[row as usize];
        let top = outcome.top.iter().take(self.most_k());
        PerQuery {
            mode: self.mode,
            engine: self.index.name().to_owned(),
            metric,
            query: judgement.id.to_owned(),
            label: judgement.label.map(str::to_owned),
            state: judgement.state(),
            relevant: judgement.relevant,
            excluded: judgement.excluded.len(),
            first_relevant_rank: outcome.first_relevant_rank,
            measures: outcome.measures.clone(),
            top_labels: top.clone().map(|&(row, _)| picture(row).label.clone()).collect(),
            top: top.map(|&(row, score)| Hit { id: picture(row).id.clone(), score }).collect(),
        }
    }
}

impl Adjusted {
    fn of(outcomes: &[Outcome], which: usize) -> Adjusted {
        let measures: Vec<&Measures> =
            outcomes.iter().filter_map(|outcome| outcome.adjusted[which].as_ref()).collect();
        Adjusted {
            queries: measures.len(),
            micro: Measures::mean(measures.iter().copied()),
            intervals: MeasureIntervals::of(&measures),
        }
    }
}
