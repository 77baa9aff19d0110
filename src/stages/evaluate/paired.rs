//! Two ways to search, compared query by query: is one better, or is the difference noise?
//!
//! What a newcomer would get wrong: two intervals that overlap do not show that there is no difference. Most of what makes one
//! query harder than another is shared by both ways, and cancels in the difference.

use serde::{Deserialize, Serialize};

use super::intervals::{self, Interval};
use super::measures::{Measure, Measures};
use super::resample::{DRAWS, Table};

/// A difference is said to be beyond noise below this chance, all comparisons taken together.
pub const SIGNIFICANT: f64 = 0.05;
/// With so few queries that differ, all signs are tried instead of drawn: 2^13 is below [`DRAWS`].
const ALL_SIGNS: usize = 13;
/// Differences below this are rounding.
const ROUNDING: f64 = 1e-12;

/// Two ways to search compared by one measure, over the same queries. `a` is the one with the greater mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    /// As reports name it: `MAP`, `P@1`.
    pub measure: String,
    /// Mean over the queries of `a` less `b`.
    pub difference: f64,
    /// 95 %, bootstrapped (BCa); nothing of fewer than two queries.
    pub interval: Option<Interval>,
    /// Queries on which `a` is better, equal and worse.
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    /// How often a difference at least this great comes from tossing a coin for which of the two is which (two-sided).
    pub p: f64,
    /// The same, adjusted by Holm's method for all comparisons by this measure.
    pub p_holm: f64,
    /// Whether [`Comparison::p_holm`] is below 5 %.
    pub beyond_noise: bool,
}

/// `p = 0.012`, or `p < 0.001`: no number of draws can give 0.
pub fn chance(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") }
}

/// The same under a heading that says p: `0.012`, `< 0.001`.
pub fn bare_chance(p: f64) -> String {
    chance(p).trim_start_matches("p ").trim_start_matches("= ").to_owned()
}

/// One way to search: its name, and the measures of the queries, in one order for all ways.
pub struct Contender<'a> {
    pub name: &'a str,
    pub queries: &'a [&'a Measures],
}

/// The values of two ways to search, query by query.
pub struct Pair<'a> {
    pub a: &'a str,
    pub b: &'a str,
    pub values: Vec<(f64, f64)>,
}

/// Each pair of the contenders by each measure.
pub fn all_pairs(contenders: &[Contender], measures: &[Measure]) -> Vec<Comparison> {
    let pairs: Vec<(&Contender, &Contender)> = contenders
        .iter()
        .enumerate()
        .flat_map(|(i, a)| contenders[i + 1..].iter().map(move |b| (a, b)))
        .collect();
    let by = |measure: &Measure| {
        let value = |queries: &Measures| measure.of(queries).unwrap_or(0.0);
        let pair = |(a, b): &(&Contender, &Contender)| -> Vec<(f64, f64)> {
            a.queries.iter().zip(b.queries).map(|(a, b)| (value(a), value(b))).collect()
        };
        let pairs: Vec<Pair> =
            pairs.iter().map(|both| Pair { a: both.0.name, b: both.1.name, values: pair(both) }).collect();
        compare(&pairs, &measure.to_string())
    };
    measures.iter().flat_map(by).collect()
}

/// The pairs by one measure; all over the same queries.
pub fn compare(pairs: &[Pair], measure: &str) -> Vec<Comparison> {
    let n = pairs.iter().map(|pair| pair.values.len()).min().unwrap_or(0);
    let difference = |pair: &Pair, i: usize| rounded(pair.values[i].0 - pair.values[i].1);
    let rows: Vec<Vec<f64>> =
        (0..n).map(|i| pairs.iter().map(|pair| difference(pair, i)).collect()).collect();
    let table = Table::new(rows.iter().map(Vec::as_slice));
    if table.is_empty() {
        return Vec::new();
    }
    let intervals = (n >= 2).then(|| intervals::bootstrap(&table));
    let flipped = table.flipped(DRAWS);
    let mut comparisons: Vec<Comparison> = pairs
        .iter()
        .enumerate()
        .map(|(column, pair)| {
            let difference = table.column(column).sum::<f64>() / n as f64;
            let count = |is: fn(f64) -> bool| table.column(column).filter(|d| is(*d)).count();
            let (wins, losses) = (count(|d| d > 0.0), count(|d| d < 0.0));
            let p = if wins + losses <= ALL_SIGNS {
                exact_p(&table.column(column).filter(|d| *d != 0.0).collect::<Vec<_>>())
            } else {
                drawn_p(difference, &flipped[column])
            };
            let comparison = Comparison {
                a: pair.a.to_owned(),
                b: pair.b.to_owned(),
                measure: measure.to_owned(),
                difference,
                interval: intervals.as_ref().map(|intervals| intervals[column]),
                wins,
                ties: n - wins - losses,
                losses,
                p,
                p_holm: p,
                beyond_noise: false,
            };
            comparison.greater_first()
        })
        .collect();
    let adjusted = holm(&comparisons.iter().map(|comparison| comparison.p).collect::<Vec<_>>());
    for (comparison, p_holm) in comparisons.iter_mut().zip(adjusted) {
        comparison.p_holm = p_holm;
        comparison.beyond_noise = p_holm < SIGNIFICANT;
    }
    comparisons
}

impl Comparison {
    fn greater_first(self) -> Comparison {
        if self.difference >= 0.0 {
            return self;
        }
        Comparison {
            a: self.b,
            b: self.a,
            difference: -self.difference,
            interval: self
                .interval
                .map(|Interval { low, high }| Interval { low: 0.0 - high, high: 0.0 - low }),
            wins: self.losses,
            losses: self.wins,
            ..self
        }
    }
}

fn rounded(difference: f64) -> f64 {
    if difference.abs() < ROUNDING { 0.0 } else { difference }
}

/// Over drawn signs. The signs that were found are counted as one more draw, so no chance is 0 (Phipson and Smyth 2010).
fn drawn_p(mean: f64, drawn: &[f64]) -> f64 {
    two_sided(mean, drawn.iter().copied(), 1.0)
}

/// Over all signs of the differences that are not 0.
fn exact_p(differences: &[f64]) -> f64 {
    let sum = |signs: u32| -> f64 {
        differences.iter().enumerate().map(|(i, d)| if signs >> i & 1 == 0 { *d } else { -d }).sum()
    };
    two_sided(sum(0), (0..1u32 << differences.len()).map(sum), 0.0)
}

/// Twice the smaller tail, as scipy's `permutation_test` counts it: values that differ by rounding count as equal.
fn two_sided(found: f64, drawn: impl Iterator<Item = f64>, found_too: f64) -> f64 {
    let rounding = 1e-12 * found.abs();
    let (mut count, mut up, mut down) = (found_too, found_too, found_too);
    for drawn in drawn {
        count += 1.0;
        up += f64::from(u8::from(drawn >= found - rounding));
        down += f64::from(u8::from(drawn <= found + rounding));
    }
    (2.0 * f64::min(up, down) / count).min(1.0)
}

/// Holm's adjustment: the smallest chance times the number of comparisons, the next times one less, and none below one before.
fn holm(chances: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|&i, &j| chances[i].total_cmp(&chances[j]));
    let mut adjusted = vec![0.0; chances.len()];
    let mut least: f64 = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        least = least.max((chances[i] * (chances.len() - rank) as f64).min(1.0));
        adjusted[i] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries(aps: &[f64]) -> Vec<Measures> {
        aps.iter()
            .map(|ap| Measures { ap: *ap, ap_at_r: 0.0, r_precision: 0.0, rr: 0.0, at: Vec::new() })
            .collect()
    }

    fn compared(a: &[f64], b: &[f64]) -> Comparison {
        let (a, b) = (queries(a), queries(b));
        let (a, b): (Vec<&Measures>, Vec<&Measures>) = (a.iter().collect(), b.iter().collect());
        let contenders = [Contender { name: "a", queries: &a }, Contender { name: "b", queries: &b }];
        all_pairs(&contenders, &[Measure::Ap]).remove(0)
    }

    #[test]
    fn the_better_one_is_named_first() {
        let found = compared(&[0.1, 0.2, 0.3, 0.5], &[0.2, 0.4, 0.3, 0.4]);
        assert_eq!((found.a.as_str(), found.b.as_str()), ("b", "a"));
        assert_eq!((found.wins, found.ties, found.losses), (2, 1, 1));
        assert!((found.difference - 0.05).abs() < 1e-12);
        assert!(found.interval.is_some_and(|interval| interval.contains(0.05)));
        // Of the 8 signs of 0.1, 0.2 and -0.1, three give a sum of at least 0.2.
        assert_eq!(found.p, 0.75);
    }

    #[test]
    fn equal_ways_differ_by_chance_for_certain() {
        let same = [0.1, 0.7, 0.3];
        let found = compared(&same, &same);
        assert_eq!((found.p, found.p_holm, found.beyond_noise, found.difference), (1.0, 1.0, false, 0.0));
    }

    #[test]
    fn a_difference_on_every_query_is_beyond_noise() {
        let a: Vec<f64> = (0..200).map(|i| f64::from(i % 10) / 20.0).collect();
        let b: Vec<f64> = a.iter().map(|ap| ap + 0.05).collect();
        let found = compared(&a, &b);
        assert!(found.beyond_noise && found.p <= 3.0 / 10_001.0, "{found:?}");
    }

    #[test]
    fn holms_adjustment_never_falls() {
        let close = |found: &[f64], wanted: &[f64]| {
            assert_eq!(found.len(), wanted.len());
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        close(&holm(&[0.01, 0.04, 0.03]), &[0.03, 0.06, 0.06]);
        close(&holm(&[0.5, 0.9]), &[1.0, 1.0]);
        close(&holm(&[]), &[]);
    }

    /// Random noise must be called a difference about as often as the level says, not more.
    #[test]
    fn noise_is_seldom_called_a_difference() {
        let (mut random, mut called, trials) = (fastrand::Rng::with_seed(1), 0, 200);
        for _ in 0..trials {
            let draw = |random: &mut fastrand::Rng| (0..40).map(|_| random.f64()).collect::<Vec<_>>();
            let (a, b) = (draw(&mut random), draw(&mut random));
            called += usize::from(compared(&a, &b).beyond_noise);
        }
        // 10 in the mean, with a standard deviation of 3.
        assert!(called < 24, "{called} of {trials}");
    }
}
