//! Means of the same per-query values under many draws: with replacement (bootstrap) and with random signs (randomisation
//! test).
//!
//! Draw d uses its own stretch of one stream of numbers, so the result does not depend on the number of threads. The stream is
//! PCG64 (XSL-RR 128/64), the generator of numpy, so that others can repeat the draws: docs/metrics.md shows how.

use std::ops::Range;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng;
use rayon::prelude::*;

/// Draws of a bootstrap or of a randomisation test: what textbooks ask for where the ends of an interval matter (Efron and
/// Tibshirani 1993, 14.3, at least 1,000 for BCa; scipy's default is 9,999).
pub const DRAWS: usize = 10_000;
/// State and stream of the generator: any would do, these are the digits of e and of pi.
const SEED: (u128, u128) = (2_718_281_828_459_045, 3_141_592_653_589_793);
/// Draws that one pass over the values serves.
const BLOCK: usize = 8;

/// Values of queries: `[queries, columns]`, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    columns: usize,
    values: Vec<f64>,
}

impl Table {
    /// Of rows of equal length.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a [f64]>) -> Table {
        let mut table = Table::default();
        for row in rows {
            debug_assert!(table.values.is_empty() || table.columns == row.len());
            table.columns = row.len();
            table.values.extend_from_slice(row);
        }
        table
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One column, from the first query to the last.
    pub fn column(&self, column: usize) -> impl Iterator<Item = f64> + Clone + '_ {
        self.values.iter().skip(column).step_by(self.columns.max(1)).copied()
    }

    /// Means of each column over `draws` draws of as many rows, with replacement: `[columns][draws]`.
    pub fn bootstrap(&self, draws: usize) -> Vec<Vec<f64>> {
        let n = self.len();
        self.means(draws, |draw, weights| {
            for index in indices(draw, n) {
                weights[index * BLOCK] += 1.0;
            }
        })
    }

    /// Means of each column over `draws` draws of a sign for each row: `[columns][draws]`.
    pub fn flipped(&self, draws: usize) -> Vec<Vec<f64>> {
        let n = self.len();
        let words = n.div_ceil(64);
        self.means(draws, |draw, weights| {
            let mut stream = stream(draw, words);
            for word in 0..words {
                let bits = stream.next_u64();
                for (bit, row) in (word * 64..n.min(word * 64 + 64)).enumerate() {
                    weights[row * BLOCK] = if bits >> bit & 1 == 0 { 1.0 } else { -1.0 };
                }
            }
        })
    }

    /// The same draws of rows, of which classes are `classes`: means over the classes that were drawn of their means.
    pub fn bootstrap_by_class(&self, classes: &[Range<usize>], draws: usize) -> Vec<Vec<f64>> {
        let (n, columns) = (self.len(), self.columns);
        let draw = |draw: usize| {
            let mut weights = vec![0.0; n];
            indices(draw, n).for_each(|index| weights[index] += 1.0);
            let (mut total, mut drawn) = (vec![0.0; columns], 0.0);
            for class in classes {
                let weight: f64 = weights[class.clone()].iter().sum();
                if weight == 0.0 {
                    continue;
                }
                drawn += 1.0;
                let mut sums = vec![0.0; columns];
                for row in class.clone().filter(|row| weights[*row] > 0.0) {
                    let values = &self.values[row * columns..(row + 1) * columns];
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weights[row] * value);
                }
                total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum / weight);
            }
            total.iter_mut().for_each(|total| *total /= drawn);
            total
        };
        if columns == 0 || n == 0 {
            return Vec::new();
        }
        let drawn: Vec<Vec<f64>> = (0..draws).into_par_iter().map(draw).collect();
        (0..columns).map(|column| drawn.iter().map(|means| means[column]).collect()).collect()
    }

    /// Weighted sums of the rows over their number. `weigh` fills the weights of one draw, each [`BLOCK`] apart.
    fn means(&self, draws: usize, weigh: impl Fn(usize, &mut [f64]) + Sync) -> Vec<Vec<f64>> {
        let (n, columns) = (self.len(), self.columns);
        let block = |first: usize| {
            let mut weights = vec![0.0; n * BLOCK];
            let drawn = BLOCK.min(draws - first);
            for draw in 0..drawn {
                weigh(first + draw, &mut weights[draw..]);
            }
            let mut sums = vec![0.0; BLOCK * columns];
            for (row, weights) in self.values.chunks_exact(columns).zip(weights.chunks_exact(BLOCK)) {
                for (sums, weight) in sums.chunks_exact_mut(columns).zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += weight * value;
                    }
                }
            }
            sums.truncate(drawn * columns);
            sums
        };
        if columns == 0 || n == 0 {
            return Vec::new();
        }
        let firsts: Vec<usize> = (0..draws).step_by(BLOCK).collect();
        let sums: Vec<Vec<f64>> = firsts.into_par_iter().map(block).collect();
        let mut means = vec![Vec::with_capacity(draws); columns];
        for draw in sums.iter().flat_map(|sums| sums.chunks_exact(columns)) {
            means.iter_mut().zip(draw).for_each(|(means, sum)| means.push(sum / n as f64));
        }
        means
    }
}

/// Where the stream of a draw begins that takes `numbers` numbers.
fn stream(draw: usize, numbers: usize) -> Pcg64 {
    let mut stream = Pcg64::new(SEED.0, SEED.1);
    stream.advance(draw as u128 * numbers as u128);
    stream
}

/// The rows of one bootstrap draw: `number * n / 2^64`, which favours no row by more than n / 2^64.
pub fn indices(draw: usize, n: usize) -> impl Iterator<Item = usize> {
    let mut stream = stream(draw, n);
    (0..n).map(move |_| ((u128::from(stream.next_u64()) * n as u128) >> 64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_the_same_whatever_is_drawn_beside_it() {
        let rows: Vec<Vec<f64>> = (0..37).map(|i| vec![f64::from(i), f64::from(i * i % 7)]).collect();
        let table = Table::new(rows.iter().map(Vec::as_slice));
        for (few, many) in [(table.bootstrap(3), table.bootstrap(50)), (table.flipped(3), table.flipped(50))]
        {
            assert_eq!(few.len(), 2);
            for (few, many) in few.iter().zip(&many) {
                assert_eq!((few.len(), many.len()), (3, 50));
                assert_eq!(few[..], many[..3]);
            }
        }
        let drawn: Vec<f64> = indices(2, 37).map(|i| rows[i][1]).collect();
        assert!((table.bootstrap(3)[1][2] - drawn.iter().sum::<f64>() / 37.0).abs() < 1e-12);
    }

    #[test]
    fn draws_are_spread_over_all_rows() {
        let mut counts = [0; 10];
        (0..1000).flat_map(|draw| indices(draw, 10)).for_each(|i| counts[i] += 1);
        // Each is 1,000 in the mean, with a standard deviation of 30.
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
