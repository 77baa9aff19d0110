//! 95 % intervals: how far a mean would move with other queries of the same kind.
//!
//! They say nothing of another gallery, and of queries that depend on each other (ten photos of one product) they promise too
//! much.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::measures::{Measure, Measures};
use super::resample::{DRAWS, Table};

/// Of 100 such intervals 95 hold the true mean.
pub const CONFIDENCE: f64 = 0.95;

/// From `low` to `high`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The intervals of the means of all measures: their lower ends, and their upper ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasureIntervals {
    pub low: Measures,
    pub high: Measures,
}

impl MeasureIntervals {
    /// Over queries: Wilson's for `hit@k` and P@1, shares of them; bootstrapped (BCa) for the others. Nothing of fewer than two.
    pub fn of(queries: &[&Measures]) -> Option<MeasureIntervals> {
        let (first, rows) = (queries.first()?, queries.iter().map(|measures| measures.values()));
        if queries.len() < 2 {
            return None;
        }
        let rows: Vec<Vec<f64>> = rows.collect();
        let table = Table::new(rows.iter().map(Vec::as_slice));
        let intervals = bootstrap(&table);
        let ends = |end: fn(&Interval) -> f64| -> Vec<f64> { intervals.iter().map(end).collect() };
        let mut low = first.with_values(&ends(|interval| interval.low));
        let mut high = first.with_values(&ends(|interval| interval.high));
        for (low, high) in low.at.iter_mut().zip(&mut high.at) {
            let hits: f64 = queries.iter().filter_map(|measures| Measure::Hit(low.k).of(measures)).sum();
            let interval = wilson(hits as usize, queries.len());
            (low.hit, high.hit) = (interval.low, interval.high);
            if low.k == 1 {
                (low.precision, high.precision) = (interval.low, interval.high);
            }
        }
        Some(MeasureIntervals { low, high })
    }

    /// Over the same draws of queries, of the mean over classes of their means; bootstrapped (BCa). Nothing of fewer than two queries.
    ///
    /// A class that a draw leaves out is left out of its mean, as it would be had those queries been asked.
    pub fn by_class(classes: &[Vec<&Measures>]) -> Option<MeasureIntervals> {
        let queries = || classes.iter().flatten();
        let first = queries().next()?;
        if queries().count() < 2 {
            return None;
        }
        let rows: Vec<Vec<f64>> = queries().map(|measures| measures.values()).collect();
        let table = Table::new(rows.iter().map(Vec::as_slice));
        let mut ranges = Vec::new();
        let mut next = 0;
        for class in classes.iter().filter(|class| !class.is_empty()) {
            ranges.push(next..next + class.len());
            next += class.len();
        }
        let intervals = bootstrap_by_class(&table, &ranges);
        let ends = |end: fn(&Interval) -> f64| -> Vec<f64> { intervals.iter().map(end).collect() };
        Some(MeasureIntervals {
            low: first.with_values(&ends(|interval| interval.low)),
            high: first.with_values(&ends(|interval| interval.high)),
        })
    }

    /// The interval of one measure, if its cut-off is one of the cut-offs.
    pub fn interval(&self, measure: Measure) -> Option<Interval> {
        Some(Interval { low: measure.of(&self.low)?, high: measure.of(&self.high)? })
    }
}

/// Wilson's interval of a share: `hits` of `n`. It stays within 0 and 1, and holds for shares near them.
pub fn wilson(hits: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p, z) = (n as f64, hits as f64 / n as f64, normal_quantile(0.5 + CONFIDENCE / 2.0));
    let (middle, scale) = (p + z * z / (2.0 * n), 1.0 + z * z / n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    // At the ends rounding would leave it a little within.
    let low = if p == 0.0 { 0.0 } else { (middle - half) / scale };
    let high = if p == 1.0 { 1.0 } else { (middle + half) / scale };
    Interval { low, high }
}

/// The interval of each column's mean, by [`DRAWS`] draws.
pub fn bootstrap(table: &Table) -> Vec<Interval> {
    let draws = table.bootstrap(DRAWS);
    draws.into_iter().enumerate().map(|(column, means)| bca(table.column(column), means)).collect()
}

/// The interval of each column's mean over classes of their means; the rows of a class are those of a range.
pub fn bootstrap_by_class(table: &Table, classes: &[Range<usize>]) -> Vec<Interval> {
    let draws = table.bootstrap_by_class(classes, DRAWS);
    let of_column = |(column, means): (usize, Vec<f64>)| {
        let values: Vec<f64> = table.column(column).collect();
        let count = classes.len() as f64;
        let mean_of = |class: &Range<usize>| values[class.clone()].iter().sum::<f64>() / class.len() as f64;
        let mean = classes.iter().map(mean_of).sum::<f64>() / count;
        if let Some(same) = all_equal(values.iter().copied()) {
            return Interval { low: same, high: same };
        }
        // Without one query at a time: its class has another mean then, or is gone.
        let mut without = Vec::with_capacity(values.len());
        for class in classes {
            let (own, n) = (mean_of(class), class.len() as f64);
            without.extend(values[class.clone()].iter().map(|value| match class.len() {
                1 => (mean * count - own) / (count - 1.0),
                _ => mean + ((own * n - value) / (n - 1.0) - own) / count,
            }));
        }
        let middle = without.iter().sum::<f64>() / without.len() as f64;
        let (two, three) = moments(without.iter().map(|value| middle - value));
        ends(mean, three / (6.0 * two.powf(1.5)), means)
    };
    draws.into_iter().enumerate().map(of_column).collect()
}

/// The bias-corrected and accelerated interval of a mean (Efron 1987), from `values` and the means of their draws.
///
/// The acceleration is that of the jackknife, which has a closed form for a mean; quantiles are interpolated as numpy does.
pub fn bca(values: impl Iterator<Item = f64> + Clone, means: Vec<f64>) -> Interval {
    let mean = values.clone().sum::<f64>() / values.clone().count() as f64;
    if let Some(same) = all_equal(values.clone()) {
        return Interval { low: same, high: same };
    }
    let (two, three) = moments(values.map(|value| value - mean));
    ends(mean, three / (6.0 * two.powf(1.5)), means)
}

/// The one value that all of them are: equal values leave no doubt. Their sum is rounded, they are not.
fn all_equal(mut values: impl Iterator<Item = f64>) -> Option<f64> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// The sums of squares and of cubes.
fn moments(differences: impl Iterator<Item = f64>) -> (f64, f64) {
    differences.fold((0.0, 0.0), |(two, three), d| (two + d * d, three + d * d * d))
}

/// The ends of the interval of a figure, from its draws.
fn ends(figure: f64, acceleration: f64, mut draws: Vec<f64>) -> Interval {
    let [Some(least), Some(most)] =
        [draws.iter().copied().reduce(f64::min), draws.iter().copied().reduce(f64::max)]
    else {
        return Interval { low: figure, high: figure };
    };
    draws.sort_unstable_by(f64::total_cmp);
    // Draws that equal the figure but for rounding are neither above nor below it.
    let tolerance = 1e-12 * figure.abs().max(1e-3);
    let below = draws.partition_point(|drawn| *drawn < figure - tolerance);
    let up_to = draws.partition_point(|drawn| *drawn <= figure + tolerance);
    let bias = normal_quantile((below + up_to) as f64 / (2 * draws.len()) as f64);
    let end = |share: f64| {
        let z = bias + normal_quantile(share);
        quantile(&draws, normal().cdf(bias + z / (1.0 - acceleration * z)))
    };
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let (low, high) = (end(tail), end(1.0 - tail));
    // Where nearly all draws lie on one side of the figure there is no better statement than their range.
    if low.is_finite() && high.is_finite() {
        Interval { low, high }
    } else {
        Interval { low: least, high: most }
    }
}

/// The value below which `share` of the ascending `values` lie, between two of them in proportion (numpy's `linear`).
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    if at.is_nan() {
        return f64::NAN;
    }
    let (below, part) = (at.floor(), at - at.floor());
    let (low, high) = (values[(below as usize).min(last)], values[(below as usize + 1).min(last)]);
    low + (high - low) * part
}

fn normal() -> Normal {
    Normal::standard()
}

/// The number that a standard normal variable stays below in `share` of the cases.
fn normal_quantile(share: f64) -> f64 {
    normal().inverse_cdf(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.binomtest(hits, n).proportion_ci(method='wilson')`, scipy 1.17.
    #[test]
    fn wilsons_interval_is_scipys() {
        for (hits, n, low, high) in [
            (0, 1, 0.0, 0.793_450_685_622_762_7),
            (5, 10, 0.236_593_090_512_564, 0.763_406_909_487_436_1),
            (131, 405, 0.279_740_552_750_620_5, 0.370_490_614_087_291_56),
            (405, 405, 0.990_604_037_976_542_6, 1.0),
        ] {
            let interval = wilson(hits, n);
            assert!((interval.low - low).abs() < 1e-12, "{interval:?}");
            assert!((interval.high - high).abs() < 1e-12, "{interval:?}");
        }
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        for value in [0.0, 0.1, 1.0, 0.333_333_333_333_333_3] {
            let rows = vec![[value]; 57];
            let table = Table::new(rows.iter().map(<[f64; 1]>::as_slice));
            let interval = bootstrap(&table)[0];
            assert_eq!(interval, Interval { low: value, high: value });
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| quantile(&values, share)),
            [1.0, 1.5, 2.0, 3.0, 4.0]
        );
        assert!(quantile(&values, f64::NAN).is_nan() && quantile(&[], 0.5).is_nan());
    }

    /// Of samples of a known mean, the interval must miss about 5 %.
    #[test]
    fn intervals_hold_the_true_mean_as_often_as_they_say() {
        let (mut random, mut missed, samples) = (fastrand::Rng::with_seed(3), 0, 200);
        for _ in 0..samples {
            // Skewed, as average precision is: the square of a uniform number has mean 1 / 3.
            let rows: Vec<[f64; 1]> = (0..60).map(|_| [random.f64().powi(2)]).collect();
            let table = Table::new(rows.iter().map(<[f64; 1]>::as_slice));
            let draws = table.bootstrap(1000).remove(0);
            missed += usize::from(!bca(table.column(0), draws).contains(1.0 / 3.0));
        }
        // 10 in the mean, with a standard deviation of 3.
        assert!((2..24).contains(&missed), "{missed} of {samples}");
    }
}
