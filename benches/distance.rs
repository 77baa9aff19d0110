//! Each kernel beside its naive twin: one query and 64 queries over 20,000 x 512, one thread.
//!
//! Read the throughput, in compared pairs a second. One query is bound by memory (a pair is 2 KB), 64 by arithmetic.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imagedex::engines::kernels::{self, Kernel, Sum};
use std::hint::black_box;

const ROWS: usize = 20_000;
const DIM: usize = 512;
/// Rows per call, as `flat` has it.
const BLOCK: usize = 64;

fn distance(criterion: &mut Criterion) {
    let (gallery, queries) = (numbers(ROWS * DIM, 1), numbers(64 * DIM, 2));
    let (rows, width) = (kernels::lanes(&gallery, DIM), kernels::width(DIM));
    for sum in Sum::ALL {
        let mut group = criterion.benchmark_group(format!("{sum:?}"));
        group.sample_size(10);
        group.throughput(Throughput::Elements(ROWS as u64));
        group.bench_function("naive f64, 1 query", |bencher| {
            let query = &queries[..DIM];
            bencher
                .iter(|| gallery.chunks_exact(DIM).map(|row| kernels::naive(sum, query, row)).sum::<f64>());
        });
        for count in [1, 32] {
            let queries = kernels::lanes(&queries[..count * DIM], DIM);
            group.throughput(Throughput::Elements((ROWS * count) as u64));
            for kernel in Kernel::available() {
                let mut out = vec![0.0; count * ROWS];
                let name = format!("exact f64, {count} queries");
                group.bench_function(BenchmarkId::new(kernel.name(), name), |bencher| {
                    bencher.iter(|| kernel.exact(sum, &queries, &rows, width, black_box(&mut out)));
                });
            }
        }
        for count in [1, 64] {
            let queries = kernels::lanes(&queries[..count * DIM], DIM);
            group.throughput(Throughput::Elements((ROWS * count) as u64));
            for kernel in Kernel::available() {
                let mut out = vec![0.0; count * BLOCK];
                group.bench_function(
                    BenchmarkId::new(kernel.name(), format!("fast f32, {count} queries")),
                    |bencher| {
                        bencher.iter(|| {
                            for block in rows.chunks(BLOCK * width) {
                                let out = &mut out[..count * (block.len() / width)];
                                kernel.fast(sum, &queries, block, width, black_box(out));
                            }
                        });
                    },
                );
            }
        }
        group.finish();
    }
}

/// Numbers from 0 to 1 by a linear congruential generator (Knuth's MMIX constants).
fn numbers(count: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

criterion_group!(benches, distance);
criterion_main!(benches);
