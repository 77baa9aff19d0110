//! From which score on is a hit to be believed? Precision and recall over thresholds, and the threshold with the best F1.
//!
//! What is judged is what a search shows: the first k hits of each labelled query, k the greatest cut-off. A threshold keeps the
//! hits whose score is at least that. *Precision* is the share of right hits among those kept, *recall* the share of the right
//! hits that are kept: 1 where nothing is held back, however many right pictures lie beyond the first k. Queries that have no
//! right answer count too: all their hits are wrong, and a good threshold keeps none of them.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::intervals::{CONFIDENCE, Interval, quantile};
use super::resample::indices;

/// Draws for the interval of the best threshold; each searches all thresholds anew.
const DRAWS: usize = 1_000;
/// Points of the curve, at most: evenly spaced over the hits.
const POINTS: usize = 100;
/// Bars of the histograms.
const BARS: usize = 40;

/// What thresholds do to the hits of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Hits of each query that were judged, at most.
    pub k: usize,
    /// Labelled queries.
    pub queries: usize,
    /// Right and wrong hits.
    pub right: usize,
    pub wrong: usize,
    /// By threshold, descending. Nothing where there is no right hit.
    pub curve: Vec<ThresholdPoint>,
    pub best: Option<BestThreshold>,
    pub histogram: ScoreHistogram,
}

/// One threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThresholdPoint {
    /// A score of the metric: the least that is kept.
    pub threshold: f32,
    pub precision: f64,
    pub recall: f64,
    /// 2 × precision × recall / (precision + recall)
    pub f1: f64,
}

/// The threshold with the greatest F1; of equals, the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BestThreshold {
    #[serde(flatten)]
    pub point: ThresholdPoint,
    /// 95 %, bootstrapped over queries (percentiles), of the best threshold and of its F1; nothing of fewer than two queries.
    pub threshold_interval: Option<Interval>,
    pub f1_interval: Option<Interval>,
}

/// How the scores of right and of wrong hits are spread: bar i goes from `low + i × width` to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreHistogram {
    pub low: f64,
    pub width: f64,
    pub right: Vec<usize>,
    pub wrong: Vec<usize>,
}

/// A hit of a query: its score, and whether it is right.
pub type JudgedHit = (f32, bool);

impl Thresholds {
    /// Of the first `k` hits of each labelled query.
    pub fn of(queries: &[Vec<JudgedHit>], k: usize) -> Thresholds {
        let mut hits: Vec<PooledHit> = (0u32..)
            .zip(queries)
            .flat_map(|(query, hits)| {
                hits.iter().take(k).map(move |&(score, right)| PooledHit { score, right, query })
            })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        let right = hits.iter().filter(|hit| hit.right).count();
        let all = points(&hits, &vec![1; queries.len()]);
        let best = best(&all).map(|point| {
            let (thresholds, f1s) = match queries.len() {
                0 | 1 => (None, None),
                several => {
                    let (thresholds, f1s) = redraw(&hits, several);
                    (Some(middle(thresholds)), Some(middle(f1s)))
                }
            };
            BestThreshold { point, threshold_interval: thresholds, f1_interval: f1s }
        });
        Thresholds {
            k,
            queries: queries.len(),
            right,
            wrong: hits.len() - right,
            curve: spaced(all),
            best,
            histogram: ScoreHistogram::of(&hits),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct PooledHit {
    score: f32,
    right: bool,
    query: u32,
}

/// A point for each score that occurs, descending; hits count as often as their query does.
fn points(hits: &[PooledHit], weight_of: &[u32]) -> Vec<ThresholdPoint> {
    let weight = |hit: &PooledHit| f64::from(weight_of[hit.query as usize]);
    let all_right: f64 = hits.iter().filter(|hit| hit.right).map(weight).sum();
    if all_right == 0.0 {
        return Vec::new();
    }
    let (mut kept, mut right) = (0.0, 0.0);
    let mut points = Vec::new();
    for (i, hit) in hits.iter().enumerate() {
        kept += weight(hit);
        right += if hit.right { weight(hit) } else { 0.0 };
        let is_last_of_score = hits.get(i + 1).is_none_or(|next| next.score < hit.score);
        if is_last_of_score && kept > 0.0 {
            let f1 = 2.0 * right / (kept + all_right);
            points.push(ThresholdPoint {
                threshold: hit.score,
                precision: right / kept,
                recall: right / all_right,
                f1,
            });
        }
    }
    points
}

fn best(points: &[ThresholdPoint]) -> Option<ThresholdPoint> {
    points.iter().copied().reduce(|best, point| if point.f1 > best.f1 { point } else { best })
}

/// The best thresholds and their F1 over queries drawn again.
fn redraw(hits: &[PooledHit], queries: usize) -> (Vec<f64>, Vec<f64>) {
    let drawn = |draw: usize| {
        let mut weights = vec![0; queries];
        indices(draw, queries).for_each(|query| weights[query] += 1);
        best(&points(hits, &weights)).map(|point| (f64::from(point.threshold), point.f1))
    };
    // A draw of queries without a right hit has no best threshold.
    let found: Vec<Option<(f64, f64)>> = (0..DRAWS).into_par_iter().map(drawn).collect();
    found.into_iter().flatten().unzip()
}

fn middle(mut values: Vec<f64>) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
}

/// At most [`POINTS`] of the points, the first and the last among them.
fn spaced(points: Vec<ThresholdPoint>) -> Vec<ThresholdPoint> {
    if points.len() <= POINTS {
        return points;
    }
    (0..POINTS).map(|i| points[i * (points.len() - 1) / (POINTS - 1)]).collect()
}

impl ScoreHistogram {
    fn of(hits: &[PooledHit]) -> ScoreHistogram {
        let scores = || hits.iter().map(|hit| f64::from(hit.score));
        let (low, high) = scores()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), score| (low.min(score), high.max(score)));
        if low >= high {
            // One bar, or none.
            let count = |right: bool| vec![hits.iter().filter(|hit| hit.right == right).count()];
            let low = if low.is_finite() { low } else { 0.0 };
            return ScoreHistogram { low, width: 0.0, right: count(true), wrong: count(false) };
        }
        let width = (high - low) / BARS as f64;
        let mut histogram = ScoreHistogram { low, width, right: vec![0; BARS], wrong: vec![0; BARS] };
        for hit in hits {
            let bar = (((f64::from(hit.score) - low) / width) as usize).min(BARS - 1);
            let bars = if hit.right { &mut histogram.right } else { &mut histogram.wrong };
            bars[bar] += 1;
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn the_best_threshold_splits_right_from_wrong() {
        let queries = [
            vec![(1.9, true), (1.8, true), (1.2, false)],
            vec![(1.7, true), (1.3, false), (1.1, true)],
            vec![(1.25, false)],
        ];
        let found = Thresholds::of(&queries, 3);
        assert_eq!((found.queries, found.right, found.wrong), (3, 4, 3));
        let best = found.best.expect("there are right hits");
        // Three of three kept are right, one right hit is held back.
        assert_eq!(best.point.threshold, 1.7);
        close(best.point.precision, 1.0);
        close(best.point.recall, 0.75);
        close(best.point.f1, 6.0 / 7.0);
        assert!(best.f1_interval.is_some_and(|f1| f1.contains(best.point.f1)), "{best:?}");
        let last = found.curve.last().expect("a curve");
        close(last.recall, 1.0);
        close(last.precision, 4.0 / 7.0);
        // Only the first hit of each.
        let found = Thresholds::of(&queries, 1);
        assert_eq!((found.right, found.wrong), (2, 1));
    }

    #[test]
    fn equal_scores_are_kept_or_dropped_together() {
        let found = Thresholds::of(&[vec![(1.5, true), (1.5, false)]], 10);
        assert_eq!(found.curve.len(), 1);
        assert_eq!(found.best.and_then(|best| best.f1_interval), None, "of one query there is none");
        close(found.curve[0].precision, 0.5);
        assert_eq!(found.histogram.right, [1]);
    }

    #[test]
    fn without_a_right_hit_there_is_no_advice() {
        for queries in [vec![], vec![vec![]], vec![vec![(1.0, false), (0.5, false)]]] {
            let found = Thresholds::of(&queries, 10);
            assert!(found.best.is_none() && found.curve.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn histograms_hold_every_hit_and_curves_stay_short() {
        let hits: Vec<JudgedHit> = (0..5000).map(|i| (1.0 + i as f32 / 5000.0, i % 3 == 0)).collect();
        let queries: Vec<Vec<JudgedHit>> = hits.chunks(10).map(<[JudgedHit]>::to_vec).collect();
        let found = Thresholds::of(&queries, 10);
        assert_eq!(found.curve.len(), POINTS);
        assert_eq!(found.histogram.right.iter().sum::<usize>(), found.right);
        assert_eq!(found.histogram.wrong.iter().sum::<usize>(), found.wrong);
        assert!(found.curve.is_sorted_by(|a, b| a.threshold > b.threshold && a.recall <= b.recall));
    }
}
