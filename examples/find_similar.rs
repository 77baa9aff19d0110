//! A feature table → the nearest neighbours of one of its pictures, under each metric. No model is needed: the vectors
//! are there.
//!
//!     make index
//!     cargo run --release --example find_similar [TABLE] [ID]

use std::path::PathBuf;

use anyhow::Context;
use imagedex::engines::flat::Flat;
use imagedex::engines::{Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::pipeline::async_runtime;
use imagedex::stages::scan::Split;
use imagedex::stages::store::FeatureStore;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let table = args.next().map_or_else(|| PathBuf::from("runs/quickstart/features"), PathBuf::from);

    // The table is a Delta table: what is read is its latest version, whole, whoever writes the next one meanwhile.
    let gallery = async_runtime()?.block_on(async {
        let store =
            FeatureStore::open(&table).await?.context("there is no feature table; run `make index`")?;
        anyhow::Ok(store.read(Some(Split::Gallery)).await?)
    })?;
    println!("{} pictures, {} numbers each", gallery.len(), gallery.dim);

    // Rows are ordered by id; without an id on the command line the first picture is looked up.
    let row = match args.next() {
        Some(id) => gallery.pictures.iter().position(|picture| picture.id == id),
        None => (!gallery.is_empty()).then_some(0),
    };
    let row = row.context("the table has no such picture")?;

    // Every engine is filled in the same three steps. `true`: VGG16's numbers are never negative, which decides how a
    // dot product becomes a score.
    let mut index = Flat::new(true);
    index.create(gallery.dim)?;
    index.upsert(&gallery)?;
    index.commit()?;

    for metric in Metric::ALL {
        println!("\n{metric}: like {}", gallery.pictures[row].id);
        // The picture itself comes first, so one hit more is asked for than is shown.
        let hits = index.search(&Query { vector: gallery.vector(row), k: 6, metric })?;
        for hit in hits.iter().filter(|hit| hit.id != gallery.pictures[row].id) {
            println!("  {:.4}  {}", hit.score, hit.id);
        }
    }
    Ok(())
}
