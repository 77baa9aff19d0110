//! The feature table with 10,000 pictures of 512 numbers: writing, reading, and the comparison that every run
//! starts with.

use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::{ImageRef, Seen, Source, Split};
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance};
use tokio::runtime::Runtime;

const ROWS: usize = 10_000;
const DIM: usize = 512;

fn pictures() -> EmbeddingBatch {
    // VGG16 features are never negative, and about one in five is zero.
    let number = |i: usize| {
        let hash = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        if hash.is_multiple_of(5) { 0.0 } else { hash as f32 / (1 << 24) as f32 }
    };
    let picture = |i: usize| Picture {
        id: format!("class{}/{i:06}.jpg", i / 1000),
        split: Split::Gallery,
        label: Some(format!("class{}", i / 1000)),
        sha256: format!("{i:064x}"),
        pixel_sha256: String::new(),
        dhash: i as u64,
        width: 500,
        height: 375,
        format: "jpeg".into(),
    };
    EmbeddingBatch {
        pictures: (0..ROWS).map(picture).collect(),
        dim: DIM,
        vectors: (0..ROWS * DIM).map(number).collect(),
        norms: vec![1.0; ROWS],
    }
}

/// The same pictures as the scan sees them, one in a hundred with other bytes.
fn seen(batch: &EmbeddingBatch) -> Vec<Seen> {
    let seen = |(i, picture): (usize, &Picture)| Seen {
        image: ImageRef {
            id: picture.id.clone(),
            split: picture.split,
            label: picture.label.clone(),
            source: Source::File(PathBuf::from(&picture.id)),
        },
        sha256: if i % 100 == 0 { "changed".into() } else { picture.sha256.clone() },
    };
    batch.pictures.iter().enumerate().map(seen).collect()
}

async fn table(dir: &Path) -> FeatureStore {
    let provenance = Provenance { fingerprint: "bench".into(), dim: DIM, facts: serde_json::json!({}) };
    FeatureStore::open_or_create(dir, &provenance).await.expect("opens")
}

fn store(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("starts");
    let batch = pictures();
    let seen = seen(&batch);
    let facts = CommitFacts::default();
    let dir = tempfile::tempdir().expect("makes a folder");
    let mut filled = runtime.block_on(table(dir.path()));
    runtime.block_on(filled.append(&batch, &facts)).expect("writes");

    let mut group = criterion.benchmark_group("10,000 pictures");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("append", |bencher| {
        bencher.iter_batched_ref(
            || {
                let dir = tempfile::tempdir().expect("makes a folder");
                let store = runtime.block_on(table(dir.path()));
                (dir, store)
            },
            |(_, store)| runtime.block_on(store.append(&batch, &facts)).expect("writes"),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| runtime.block_on(filled.read(None)).expect("reads"));
    });
    group.bench_function("plan", |bencher| {
        bencher.iter(|| runtime.block_on(filled.plan(seen.clone())).expect("compares"));
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
