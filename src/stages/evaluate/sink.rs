//! Whole rankings for whoever wants them, as they are made: an [`Evaluation`](super::Evaluation) keeps the first hits alone,
//! since 10,000 queries in a gallery of 60,000 pictures have 600 million hits.
//!
//! A sink is told of the queries in the means and of no others, and of the hits that count: so measures computed from what
//! it was told are ours.

use super::judge::Outcome;
use super::relevance::{Gallery, Judgement};
use super::{EvaluateError, Mode, QueryState};
use crate::metric::Metric;

/// Takes in whole rankings.
pub trait RankingSink {
    /// The right answers to a query, by id in the gallery's order. All of a mode come before its rankings.
    fn relevant(
        &mut self,
        engine: &str,
        mode: Mode,
        query: &str,
        relevant: &[&str],
    ) -> Result<(), EvaluateError>;

    /// What was found for a query. The queries of one engine, mode and metric come one after another, by id.
    fn ranking(&mut self, ranking: &FullRanking) -> Result<(), EvaluateError>;
}

/// One query's hits by one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct FullRanking<'a> {
    pub engine: &'a str,
    pub mode: Mode,
    pub metric: Metric,
    pub query: &'a str,
    /// Ids, best first; without repeated hits and without copies of the query.
    pub hits: Vec<&'a str>,
}

pub fn tell_relevant(
    sink: &mut dyn RankingSink,
    engine: &str,
    mode: Mode,
    gallery: &Gallery,
    judgements: &[Judgement],
) -> Result<(), EvaluateError> {
    for judgement in evaluated(judgements) {
        let Some(class) = judgement.class else { continue };
        let rows = (0u32..).zip(gallery.pictures);
        let relevant: Vec<&str> = rows
            .filter(|(row, _)| gallery.is_of(*row, class) && judgement.excluded.binary_search(row).is_err())
            .map(|(_, picture)| picture.id.as_str())
            .collect();
        sink.relevant(engine, mode, judgement.id, &relevant)?;
    }
    Ok(())
}

/// Takes the whole rankings out of `outcomes`.
pub fn tell_rankings(
    sink: &mut dyn RankingSink,
    (engine, mode, metric): (&str, Mode, Metric),
    gallery: &Gallery,
    judgements: &[Judgement],
    outcomes: &mut [Outcome],
) -> Result<(), EvaluateError> {
    for (judgement, outcome) in judgements.iter().zip(outcomes) {
        let Some(whole) = outcome.whole.take() else { continue };
        if judgement.state() == QueryState::Evaluated {
            let hits = whole.iter().map(|(row, _)| gallery.pictures[*row as usize].id.as_str());
            let hits = hits.collect();
            sink.ranking(&FullRanking { engine, mode, metric, query: judgement.id, hits })?;
        }
    }
    Ok(())
}

fn evaluated<'a, 'b>(judgements: &'b [Judgement<'a>]) -> impl Iterator<Item = &'b Judgement<'a>> {
    judgements.iter().filter(|judgement| judgement.state() == QueryState::Evaluated)
}
