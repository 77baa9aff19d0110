//! Exact search in 200,000 x 512 vectors: `flat`, one query and 64 at once, the ten nearest by each metric.
//!
//! Read queries a second. One query is bound by memory: the vectors are 410 MB. benches/peers/exact_search.py does the same with
//! numpy, FAISS and usearch; `make bench-search` runs both in turns.

use std::hint::black_box;
use std::time::{Duration, Instant};

use imagedex::engines::flat::Flat;
use imagedex::engines::{Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;

const ROWS: usize = 200_000;
const DIM: usize = 512;
/// Rows that are added at a time.
const BATCH: usize = 4_000;
/// How long one figure is measured; the fastest round counts.
const TIME: Duration = Duration::from_secs(2);

fn main() {
    let mut state = 1;
    let mut flat = Flat::new(true);
    flat.create(DIM).expect("an index");
    for first in (0..ROWS).step_by(BATCH) {
        flat.upsert(&rows(first, BATCH, &mut state)).expect("rows");
    }
    flat.commit().expect("searchable");
    let asked = rows(0, 64, &mut state);
    for metric in Metric::ALL {
        for count in [1, 64] {
            let queries: Vec<Query> =
                (0..count).map(|i| Query { vector: asked.vector(i), k: 10, metric }).collect();
            let (started, mut fastest) = (Instant::now(), Duration::MAX);
            while started.elapsed() < TIME {
                let round = Instant::now();
                black_box(flat.search_many(&queries).expect("hits"));
                fastest = fastest.min(round.elapsed());
            }
            println!("flat {metric} {count} {:.1}", count as f64 / fastest.as_secs_f64());
        }
    }
}

/// Half of the numbers are zeros, as after a ReLU.
fn rows(first: usize, count: usize, state: &mut u64) -> EmbeddingBatch {
    let picture = |i: usize| Picture {
        id: format!("{i:07}"),
        split: Split::Gallery,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 1,
        height: 1,
        format: "png".to_owned(),
    };
    // Knuth's MMIX constants.
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5).max(0.0)
    };
    EmbeddingBatch {
        pictures: (first..first + count).map(picture).collect(),
        dim: DIM,
        vectors: (0..count * DIM).map(|_| next()).collect(),
        norms: vec![1.0; count],
    }
}
