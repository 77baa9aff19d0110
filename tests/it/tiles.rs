//! Galleries that are read in tiles: the same answers and the same evaluation as from memory.

use std::path::Path;

use imagedex::engines::flat::Flat;
use imagedex::engines::{self, EngineConfig, EngineError, Hit, Query, Searcher, VectorIndex, table};
use imagedex::metric::Metric;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::evaluate::{self, EvaluateError, EvaluateOptions, GalleryRows, Mode};
use imagedex::stages::scan::Split;
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance, Tiles};
use serde_json::{Value, json};

use crate::support::Shop;

const DIM: usize = 16;
/// Of which 16 MiB, a tile, hold 29,127.
const GALLERY: usize = 70_000;

/// Rows of twelve classes. Every seventh vector is one of few, so that there are ties in and across tiles; every hundredth picture
/// has the bytes of another, and every fiftieth looks like another.
fn rows(numbers: std::ops::Range<usize>, split: Split) -> EmbeddingBatch {
    let mix = |number: usize, i: usize| {
        let mut x = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i as u64 + 1) << 7;
        x ^= x >> 31;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ x >> 29) >> 40
    };
    let mut batch = EmbeddingBatch { dim: DIM, ..EmbeddingBatch::default() };
    for number in numbers {
        let of = if number % 7 == 0 { number % 11 } else { number };
        batch.vectors.extend((0..DIM).map(|i| mix(of, i) as f32 / (1 << 24) as f32));
        batch.norms.push(1.0);
        batch.pictures.push(Picture {
            id: format!("{number:06}.png"),
            split,
            label: (number % 13 != 0).then(|| format!("class {}", number % 13)),
            sha256: format!("bytes {}", if number % 100 == 0 { number % 900 } else { number }),
            pixel_sha256: format!("pixels {number}"),
            dhash: if number % 50 == 0 { 7 } else { mix(number, 99) << 32 | mix(number, 98) },
            width: 32,
            height: 32,
            format: "png".to_owned(),
        });
    }
    batch
}

/// A feature table of so many gallery pictures, and forty queries.
fn store(folder: &Path, gallery: usize) -> (tokio::runtime::Runtime, FeatureStore) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let provenance = Provenance { fingerprint: "f".into(), dim: DIM, facts: json!({}) };
    let store = runtime.block_on(async {
        let mut store = FeatureStore::open_or_create(folder, &provenance).await.expect("made");
        for start in (0..gallery).step_by(20_000) {
            let part = rows(start..(start + 20_000).min(gallery), Split::Gallery);
            store.append(&part, &CommitFacts::default()).await.expect("written");
        }
        let queries = rows(10..50, Split::Query);
        store.append(&queries, &CommitFacts::default()).await.expect("written");
        store
    });
    (runtime, store)
}

fn load(index: &mut dyn VectorIndex, gallery: &EmbeddingBatch) {
    index.create(gallery.dim).expect("made");
    index.upsert(gallery).expect("taken");
    assert_eq!(index.commit().expect("committed"), gallery.len() as u64);
}

/// Leaves out every third hit.
struct Forgetful<'a>(&'a Flat);

impl Searcher for Forgetful<'_> {
    fn name(&self) -> &str {
        "forgetful"
    }
    fn supports(&self, _metric: Metric) -> bool {
        true
    }
    fn is_exact(&self) -> bool {
        false
    }
    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        let hits = self.0.search(query)?.into_iter().enumerate();
        Ok(hits.filter(|(i, _)| i % 3 != 2).map(|(_, hit)| hit).collect())
    }
}

#[test]
fn what_is_read_in_tiles_is_found_and_measured_as_from_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (runtime, store) = store(folder.path(), GALLERY);
    let read = |split| runtime.block_on(store.read(Some(split))).expect("readable");
    let (gallery, queries) = (read(Split::Gallery), read(Split::Query));
    assert_eq!(runtime.block_on(store.pictures(Split::Gallery)).expect("readable"), gallery.pictures);
    let tiles = Tiles::of(store, runtime.handle()).expect("readable");
    let mut number = 0;
    tiles
        .each(|_| -> Result<(), EngineError> {
            number += 1;
            Ok(())
        })
        .expect("readable");
    assert_eq!(number, 3, "several tiles, or this test shows nothing");

    let mut flat = Flat::new(true);
    load(&mut flat, &gallery);
    let config = EngineConfig::Table(folder.path().to_owned());
    let mut table = engines::open(&config, true, runtime.handle()).expect("opened");
    load(table.as_mut(), &gallery);

    let asked: Vec<Query> = Metric::ALL
        .into_iter()
        .flat_map(|metric| [1, 10, table::MOST_HITS].map(|k| (metric, k)))
        .flat_map(|(metric, k)| (0..queries.len()).map(move |i| (metric, k, i)))
        .map(|(metric, k, i)| Query { vector: queries.vector(i), k, metric })
        .collect();
    assert!(table.search_many(&asked).expect("found") == flat.search_many(&asked).expect("found"));
    let all = Query { k: usize::MAX, ..asked[0] };
    assert_eq!(table.search(&all).expect("found").len(), table::MOST_HITS);

    let stored = GalleryRows::Stored { pictures: &gallery.pictures, dim: DIM, tiles: &tiles };
    let options = EvaluateOptions { timing: false, depth: Some(300), ..EvaluateOptions::default() };
    let evaluate = |index: &dyn Searcher, rows: GalleryRows| {
        let evaluation = evaluate::evaluate_into(index, rows, &queries, &options, None).expect("measured");
        let mut found = serde_json::to_value(&evaluation).expect("JSON");
        found["engine"] = json!("");
        (
            found,
            evaluation
                .per_query
                .into_iter()
                .map(|row| (row.query, row.measures, row.top))
                .collect::<Vec<_>>(),
        )
    };
    let truth = evaluate(&flat, GalleryRows::Held(&gallery));
    assert!(truth == evaluate(&flat, stored));
    assert!(truth == evaluate(table.as_ref(), stored));
    let mode = &truth.0["modes"][0];
    assert_eq!(mode["metrics"][0]["engine_recall"][2]["mean"], 1.0);
    let kinds: Vec<&Value> = mode["leakage"]["kinds"].as_array().expect("a list").iter().collect();
    assert!(kinds.len() > 1, "{kinds:?}: twins across tiles, or this test shows less");

    let forgetful = Forgetful(&flat);
    let truth = evaluate(&forgetful, GalleryRows::Held(&gallery));
    assert!(truth == evaluate(&forgetful, stored));
    let recall = truth.0["modes"][0]["metrics"][0]["engine_recall"][2]["mean"].as_f64().expect("a number");
    assert!((0.6..0.8).contains(&recall), "{recall}");

    let leave_one_out = EvaluateOptions { modes: vec![Mode::LeaveOneOut], ..options };
    let refused = evaluate::evaluate_into(&flat, stored, &queries, &leave_one_out, None);
    assert!(matches!(refused, Err(EvaluateError::NotHeld)), "{refused:?}");
}

#[test]
fn a_table_that_changed_since_it_was_loaded_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (runtime, mut store) = store(folder.path(), 300);
    let gallery = runtime.block_on(store.read(Some(Split::Gallery))).expect("readable");
    let config = EngineConfig::Table(folder.path().to_owned());
    let mut table = engines::open(&config, true, runtime.handle()).expect("opened");
    table.create(DIM).expect("made");
    table.upsert(&gallery).expect("taken");
    let more = rows(300..301, Split::Gallery);
    runtime.block_on(store.append(&more, &CommitFacts::default())).expect("written");
    let refused = table.commit().expect_err("refused").to_string();
    assert!(refused.contains("the feature table changed while it was read"), "{refused}");
}

#[test]
fn engine_table_stands_beside_the_others_in_a_pipeline() {
    let shop = Shop::new();
    for seed in 0..16 {
        let class = if seed < 8 { "stripes" } else { "waves" };
        let part = if seed % 4 == 3 { "queries" } else { "gallery" };
        shop.picture(&format!("{part}/{class}/{seed}.png"), seed * 7 + 1);
    }
    let pipeline = |engines: &str, rest: &str| {
        shop.pipeline(&format!(
            "[input]\ngallery = 'gallery'\nqueries = 'queries'\n[load]\nengine = {engines}\n{rest}"
        ));
    };
    let summary = || -> Value {
        let text = std::fs::read_to_string(shop.path("runs/shop/report/summary.json")).expect("a report");
        serde_json::from_str(&text).expect("JSON")
    };
    for modes in ["['held_out']", "['held_out', 'leave_one_out']"] {
        pipeline("['flat', 'table']", &format!("[evaluate]\nmodes = {modes}\n"));
        shop.imagedex("run").exits(0).says("gallery 12 = searchable in table 12 + rejected 0");
        let mut found = summary()["evaluations"].take();
        assert_eq!(found[1]["engine"], "table");
        found[1]["engine"] = json!("flat");
        assert_eq!(found[0], found[1]);
    }

    // `search` reads the table with either engine.
    let search = |engine: &str| {
        let image = shop.path("queries/waves/11.png").display().to_string();
        let pipeline = shop.path("shop.toml").display().to_string();
        let said = crate::support::imagedex([
            "search",
            &image,
            "--pipeline",
            &pipeline,
            "--engine",
            engine,
            "--json",
        ])
        .exits(0);
        serde_json::from_str::<Value>(&said.out).expect("JSON")["hits"].take()
    };
    assert_eq!(search("table"), search("flat"));
    pipeline("'table'", "[sweep]\npooling = ['max']\n");
    shop.imagedex("sweep").exits(2).complains("load.engine names table");
}
