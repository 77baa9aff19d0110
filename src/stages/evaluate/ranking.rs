//! Rankings compared: of two metrics with each other, and of an engine with the exact one.
//!
//! Both comparisons need a tolerance, or rounding would look like a difference: two hits whose values differ by less
//! than [`TOLERANCE`] may stand in either order.

use std::borrow::Cow;
use std::collections::HashSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::relevance::Gallery;
use crate::engines::EngineError;
use crate::engines::kernels::{self, Kernel, Lanes, Sum};
use crate::metric::Metric;

/// Hits of each query that are compared, at least: at the first few alone metrics that differ may look alike.
pub const COMPARED: usize = 50;
/// Hits kept beyond those compared, so that a near-tie at the last place can be recognised.
pub const MARGIN: usize = 8;
/// Relative, for values above 1 (absolute below): what vectors of length 1 ± 6e-8 and scores in `f32` leave uncertain.
const TOLERANCE: f64 = 1e-6;

/// Rows of the gallery with their scores, best first.
pub type Ranked = Vec<(u32, f32)>;

/// Metrics that put the same pictures in the same order for every query, near-ties aside.
///
/// On vectors of length 1 cosine, dot product and L2 do: |a − b|² = 2 − 2·a·b.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SameRanking {
    pub metrics: Vec<Metric>,
    /// Hits of each query that were compared.
    pub depth: usize,
    pub queries: usize,
}

/// Groups the metrics that rank alike; a group has at least two.
pub fn same(rankings: &[(Metric, Vec<Ranked>)], depth: usize) -> Vec<SameRanking> {
    let mut groups: Vec<(usize, Vec<Metric>)> = Vec::new();
    for (i, (metric, ranked)) in rankings.iter().enumerate() {
        let alike = |&&mut (of, _): &&mut (usize, Vec<Metric>)| {
            let (other, other_ranked) = &rankings[of];
            ranked.iter().zip(other_ranked).all(|(a, b)| agree((*metric, a), (*other, b), depth))
        };
        match groups.iter_mut().find(alike) {
            Some((_, metrics)) => metrics.push(*metric),
            None => groups.push((i, vec![*metric])),
        }
    }
    let queries = rankings.first().map_or(0, |(_, ranked)| ranked.len());
    let longest = rankings.iter().flat_map(|(_, ranked)| ranked).map(Vec::len).max().unwrap_or(0);
    let depth = depth.min(longest);
    // Of rankings without a hit nothing is known.
    let groups = groups.into_iter().filter(|(_, metrics)| metrics.len() > 1 && depth > 0);
    groups.map(|(_, metrics)| SameRanking { metrics, depth, queries }).collect()
}

/// Whether the first `depth` hits are the same. Where they differ, the two hits must be near-ties by both metrics.
fn agree((a_metric, a): (Metric, &Ranked), (b_metric, b): (Metric, &Ranked), depth: usize) -> bool {
    let near = |metric: Metric, ranked: &Ranked, row: u32, score: f32| {
        let other = ranked.iter().find(|(other, _)| *other == row);
        other.is_some_and(|(_, other)| {
            let (x, y) = (comparable(metric, *other), comparable(metric, score));
            (x - y).abs() <= TOLERANCE * x.abs().max(1.0)
        })
    };
    a.len() == b.len()
        && a.iter().zip(b).take(depth).all(|(&(a_row, a_score), &(b_row, b_score))| {
            a_row == b_row || near(a_metric, a, b_row, a_score) && near(b_metric, b, a_row, b_score)
        })
}

/// A score as a value whose rounding errors are near [`TOLERANCE`]'s scale: distances themselves, squared for L2.
fn comparable(metric: Metric, score: f32) -> f64 {
    let score = f64::from(score);
    match metric {
        Metric::Cosine | Metric::DotProduct => score,
        Metric::L1 => 1.0 / score - 1.0,
        Metric::L2 => (1.0 / score - 1.0).powi(2),
    }
}

/// The first hits of an engine to one query.
pub struct Answer<'a> {
    pub vector: &'a [f32],
    pub metric: Metric,
    /// Rows of the gallery, best first.
    pub rows: Vec<u32>,
}

/// For each answer and each cut-off k (ascending): the share of the k nearest that the answer has among its first k. A distinct
/// picture counts as found when it is as near as the k-th nearest, within [`TOLERANCE`], as in ann-benchmarks.
///
/// One pass over the gallery's vectors. Errors: of reading them.
pub fn recalls(gallery: &Gallery, answers: &[Answer], ks: &[usize]) -> Result<Vec<Vec<f64>>, EngineError> {
    let kernel = Kernel::best();
    let dim = gallery.rows.dim();
    let most_k = ks.last().copied().unwrap_or(1);
    let of = |answer| Truth::of(answer, dim, kernel);
    let mut truths: Vec<Truth> = answers.par_iter().map(of).collect();
    gallery.rows.each_tile(|first, tile| {
        let rows = kernels::lanes(&tile.vectors, dim);
        let lengths = rows.chunks_exact(kernels::width(dim)).map(|row| length(row, kernel)).collect();
        let tile = Tile { first, rows: &rows, lengths };
        truths.par_iter_mut().for_each(|truth| truth.look_at(&tile, kernel, most_k));
    })?;
    Ok(truths.iter().map(|truth| ks.iter().map(|&k| truth.recall(k)).collect()).collect())
}

/// Some rows of the gallery.
struct Tile<'a> {
    /// The row number of the first.
    first: usize,
    /// `[pictures, width]`
    rows: &'a [Lanes],
    lengths: Vec<f64>,
}

/// What an answer is held against: how near the nearest are, and its own hits.
struct Truth<'a> {
    answer: &'a Answer<'a>,
    vector: Cow<'a, [Lanes]>,
    length: f64,
    /// Of the nearest pictures, the greatest first.
    best: Vec<f64>,
    /// Of each hit.
    hits: Vec<f64>,
}

impl<'a> Truth<'a> {
    fn of(answer: &'a Answer, dim: usize, kernel: Kernel) -> Truth<'a> {
        let vector = kernels::lanes(answer.vector, dim);
        let length = length(&vector, kernel);
        Truth { answer, vector, length, best: Vec::new(), hits: vec![f64::NEG_INFINITY; answer.rows.len()] }
    }

    fn look_at(&mut self, tile: &Tile, kernel: Kernel, most_k: usize) {
        let mut nearness = self.nearness(tile, kernel);
        for (hit, row) in self.hits.iter_mut().zip(&self.answer.rows) {
            if let Some(found) = (*row as usize).checked_sub(tile.first).and_then(|i| nearness.get(i)) {
                *hit = *found;
            }
        }
        if nearness.len() > most_k {
            nearness.select_nth_unstable_by(most_k - 1, |a, b| b.total_cmp(a));
            nearness.truncate(most_k);
        }
        self.best.extend(nearness);
        self.best.sort_unstable_by(|a, b| b.total_cmp(a));
        self.best.truncate(most_k);
    }

    fn recall(&self, k: usize) -> f64 {
        let there = k.min(self.best.len());
        let last = self.best[there - 1];
        let enough = last - TOLERANCE * last.abs().max(1.0);
        let hits = self.answer.rows.iter().zip(&self.hits).take(k);
        let found: HashSet<u32> = hits.filter(|(_, hit)| **hit >= enough).map(|(row, _)| *row).collect();
        found.len() as f64 / there as f64
    }

    /// In `f64`: the cosine, the dot product, or the distance (L2: squared) negated.
    fn nearness(&self, tile: &Tile, kernel: Kernel) -> Vec<f64> {
        let sums = |sum: Sum| {
            let mut sums = vec![0.0; tile.lengths.len()];
            kernel.exact(sum, &self.vector, tile.rows, self.vector.len(), &mut sums);
            sums
        };
        match self.answer.metric {
            Metric::DotProduct => sums(Sum::Dot),
            Metric::L1 => sums(Sum::L1).into_iter().map(|sum| -sum).collect(),
            Metric::L2 => sums(Sum::SquaredL2).into_iter().map(|sum| -sum).collect(),
            Metric::Cosine => {
                let own = self.length;
                let cosine =
                    |(dot, length): (f64, &f64)| if own * length > 0.0 { dot / (own * length) } else { -1.0 };
                sums(Sum::Dot).into_iter().zip(&tile.lengths).map(cosine).collect()
            }
        }
    }
}

fn length(vector: &[Lanes], kernel: Kernel) -> f64 {
    let mut squared = [0.0];
    kernel.exact(Sum::Dot, vector, vector, vector.len(), &mut squared);
    squared[0].sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ties_may_stand_in_either_order_and_others_may_not() {
        let by_cosine = vec![(0, 1.9), (1, 1.800_000_1), (2, 1.8), (3, 1.5)];
        let by_dot = vec![(0, 0.9), (2, 0.8), (1, 0.8), (3, 0.5)];
        let swapped = vec![(1, 0.9), (0, 0.8), (2, 0.8), (3, 0.5)];
        let same_as = |other: &Ranked| {
            same(&[(Metric::Cosine, vec![by_cosine.clone()]), (Metric::DotProduct, vec![other.clone()])], 4)
        };
        assert_eq!(
            same_as(&by_dot),
            [SameRanking { metrics: vec![Metric::Cosine, Metric::DotProduct], depth: 4, queries: 1 }]
        );
        assert_eq!(same_as(&swapped), []);
        assert_eq!(same_as(&vec![(0, 0.9)]), []);
    }

    #[test]
    fn groups_are_found_across_other_metrics() {
        let (one, other) = (vec![vec![(0, 0.9), (1, 0.5)]], vec![vec![(1, 0.9), (0, 0.5)]]);
        let rankings = [
            (Metric::Cosine, one.clone()),
            (Metric::DotProduct, one.clone()),
            (Metric::L1, other),
            (Metric::L2, one),
        ];
        let groups = same(&rankings, 2);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].metrics, [Metric::Cosine, Metric::DotProduct, Metric::L2]);
    }
}
