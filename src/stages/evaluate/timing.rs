//! How long searches take. The figures differ between runs, so no result but [`SearchTiming`] holds any.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::engines::{EngineError, Query, Searcher};
use crate::metric::Metric;

/// Queries that are timed, at most.
const TIMED_QUERIES: usize = 200;
/// After so many seconds of one metric what has been timed is enough, from [`LEAST_TIMED`] queries on.
const TIMED_SECONDS: f64 = 10.0;
const LEAST_TIMED: usize = 3;

/// Latency and throughput of one engine and metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchTiming {
    pub engine: String,
    pub metric: Metric,
    /// Hits that are shown: what is asked for, or all that there are.
    pub k: usize,
    /// Queries timed, evenly spaced over all of them; fewer where each takes long.
    pub queries: usize,
    /// Milliseconds that half of the queries, searched one after another, stayed within.
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    /// One query after another.
    pub queries_per_second: f64,
    /// The same queries given to the engine at once.
    pub queries_per_second_batched: f64,
}

/// Times at most [`TIMED_QUERIES`] of `vectors` for each metric.
pub fn time(
    index: &dyn Searcher,
    vectors: &[&[f32]],
    metrics: &[Metric],
    k: usize,
) -> Result<Vec<SearchTiming>, EngineError> {
    let sample = evenly_spaced(vectors, TIMED_QUERIES);
    let time_one = |&metric: &Metric| {
        let queries: Vec<Query> = sample.iter().map(|vector| Query { vector, k, metric }).collect();
        // Not timed: the first search pays for what the engine sets up once.
        let hits = queries.first().map_or(Ok(0), |first| index.search(first).map(|hits| hits.len()))?;
        let mut milliseconds = Vec::with_capacity(queries.len());
        let began = Instant::now();
        for query in &queries {
            let start = Instant::now();
            index.search(query)?;
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
            if milliseconds.len() >= LEAST_TIMED && began.elapsed().as_secs_f64() > TIMED_SECONDS {
                break;
            }
        }
        let queries = &queries[..milliseconds.len()];
        let start = Instant::now();
        index.search_many(queries)?;
        let batched = start.elapsed().as_secs_f64();
        let one_by_one = milliseconds.iter().sum::<f64>() / 1e3;
        milliseconds.sort_unstable_by(f64::total_cmp);
        let per_second = |seconds: f64| if seconds > 0.0 { queries.len() as f64 / seconds } else { 0.0 };
        Ok(SearchTiming {
            engine: index.name().to_owned(),
            metric,
            k: k.min(hits),
            queries: queries.len(),
            p50_ms: percentile(&milliseconds, 50),
            p95_ms: percentile(&milliseconds, 95),
            p99_ms: percentile(&milliseconds, 99),
            queries_per_second: per_second(one_by_one),
            queries_per_second_batched: per_second(batched),
        })
    };
    metrics.iter().map(time_one).collect()
}

/// At most `most` items, the first and then at equal steps.
pub fn evenly_spaced<T: Copy>(items: &[T], most: usize) -> Vec<T> {
    let count = items.len().min(most);
    (0..count).map(|i| items[i * items.len() / count]).collect()
}

/// The least value that at least `percent` % of the ascending `values` do not exceed (nearest rank); 0 of none.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 95), percentile(&values, 99)),
            (100.0, 190.0, 198.0)
        );
        assert_eq!(percentile(&[7.0], 99), 7.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }

    #[test]
    fn a_sample_is_spread_over_all() {
        assert_eq!(evenly_spaced(&[0, 1, 2, 3, 4, 5, 6, 7], 4), [0, 2, 4, 6]);
        assert_eq!(evenly_spaced(&[0, 1], 4), [0, 1]);
        assert!(evenly_spaced::<u8>(&[], 4).is_empty());
    }
}
