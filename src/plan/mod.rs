//! What a gallery of a given size takes: processors, disk, memory, shards, nodes. Arithmetic on measured figures, and nothing else.
//!
//! [`figures`] reads the measurements (`docs/sizing.tsv`; `make bench-es-sizing` takes them anew), [`wish`] is what is asked for. What a
//! newcomer would get wrong: a line is no better than its [`Basis`]. Bytes grow with pictures, and were measured; what a search in a
//! graph costs among a thousand times as many pictures was not, and the line says so. `docs/sizing.md` has the formulas in words.

pub mod figures;
pub mod wish;

use std::fmt;

use serde::Serialize;

use figures::Figures;
use wish::{IndexOption, Wish};

/// The vectors that were measured have so many numbers.
const MEASURED_DIMENSIONS: f64 = 512.0;

/// Cores are planned to be busy for half of the time: beyond, queries wait for one another.
const BUSY: f64 = 0.5;

/// `cluster.routing.allocation.disk.watermark.low`: no shard is put on a node whose disk is fuller.
const FULL: f64 = 0.85;

/// Elastic's advice for the heap: half of the memory, and never more than where pointers stay compressed. Bytes.
const MOST_HEAP: f64 = 31e9;

/// Elastic's advice for the size of a shard.
const SHARD_BYTES: f64 = 50e9;
const SHARD_DOCUMENTS: f64 = 200e6;

/// `index.merge.policy.max_merged_segment`: the server's own merges make no larger segments.
const SEGMENT_BYTES: f64 = 5.0 * (1u64 << 30) as f64;

/// While a load waits for its promotion there are three indices: the new one, the live one, and the one kept to go back to.
const INDICES: f64 = 3.0;

/// The searches that are planned with look at so many candidates in each shard.
const CANDIDATES: &str = "candidates=100";
/// The same, and a quantised vector's nearest three times ten are compared again as they are.
const RESCORED: &str = "candidates=100,oversample=3";
/// So many vectors each shard reads as they are, to rescore a query: three times ten.
const RESCORED_VECTORS: f64 = 30.0;
/// As many shards as searches in several were measured in.
const MEASURED_SHARDS: f64 = 4.0;

/// How a line of a plan is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A measured figure, as it was measured.
    Measured,
    /// A measured figure times what it is proportional to.
    Proportional,
    /// From measured figures, by somebody's advice, a choice of ours, or a growth carried on beyond what was measured.
    Reasoned,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Basis::Measured => "measured",
            Basis::Proportional => "proportional",
            Basis::Reasoned => "reasoned",
        })
    }
}

/// One number of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Its name in JSON.
    pub name: &'static str,
    /// The same in words.
    pub what: String,
    pub value: f64,
    /// `B`, `core-h`, `core-ms`, `cores`, `nodes`, …
    pub unit: &'static str,
    pub basis: Basis,
    /// Command, date and machine of the measurement, or whose advice it is.
    pub source: String,
}

/// What it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub wish: Wish,
    /// Pictures to feature table.
    pub extract: Vec<Line>,
    /// The table in Elasticsearch, by each index option.
    pub search: Vec<Search>,
}

/// Search by one index option.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    pub index_option: IndexOption,
    pub lines: Vec<Line>,
}

/// Calculates a plan.
///
/// # Errors
/// A figure that is not in the table: of the shipped one a test knows that it has all.
pub fn plan(wish: &Wish, figures: &Figures) -> anyhow::Result<Plan> {
    let search = wish
        .index_options
        .iter()
        .map(|option| Ok(Search { index_option: *option, lines: search(wish, *option, figures)? }));
    Ok(Plan {
        wish: wish.clone(),
        extract: extract(wish, figures)?,
        search: search.collect::<anyhow::Result<_>>()?,
    })
}

/// The lines of a plan so far. Each is given once, and its value goes on into the next.
#[derive(Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn add(
        &mut self,
        name: &'static str,
        what: &str,
        value: f64,
        unit: &'static str,
        basis: Basis,
        source: &str,
    ) -> f64 {
        self.0.push(Line { name, what: what.to_owned(), value, unit, basis, source: source.to_owned() });
        value
    }
}

fn extract(wish: &Wish, figures: &Figures) -> anyhow::Result<Vec<Line>> {
    use Basis::{Measured, Proportional, Reasoned};
    let (n, mut lines) = (wish.pictures, Lines::default());
    for figure in figures.all("extract.cpu", wish.precision.name()) {
        let (machine, source) = (&figure.setting, &figure.source);
        lines.add(
            "core_ms_a_picture",
            &format!("a picture, on an {machine}"),
            figure.value,
            "core-ms",
            Measured,
            source,
        );
        let hours = lines.add(
            "core_hours",
            "  all pictures",
            figure.value * n / 3.6e6,
            "core-h",
            Proportional,
            source,
        );
        let source = "all cores as fast together as one alone";
        lines.add(
            "node_hours",
            "  on one node",
            hours / f64::from(wish.cores_per_node),
            "h",
            Reasoned,
            source,
        );
    }
    let table = figures.largest("table.bytes", "-", "-")?;
    let bytes = table.value * n * f64::from(wish.dimensions) / MEASURED_DIMENSIONS;
    lines.add("table_bytes", "feature table, on disk", bytes, "B", Proportional, &table.source);
    let source = "what the budget of a run counts for each picture (docs/memory.md)";
    let list = crate::pipeline::LISTED_BYTES as f64 * n;
    lines.add("list_bytes", "list of pictures, in memory", list, "B", Proportional, source);
    Ok(lines.0)
}

fn search(wish: &Wish, option: IndexOption, figures: &Figures) -> anyhow::Result<Vec<Line>> {
    use Basis::{Measured, Proportional, Reasoned};
    let (n, mut lines) = (wish.pictures, Lines::default());
    let copies = f64::from(wish.replicas) + 1.0;

    let document = Document::of(option, wish.dimensions, figures)?;
    let source = &document.source;
    let basis = if f64::from(wish.dimensions) == MEASURED_DIMENSIONS { Measured } else { Proportional };
    lines.add("disk_a_document", "disk, a document", document.disk, "B", basis, source);
    let primary =
        lines.add("disk_primary", "  all documents, once", document.disk * n, "B", Proportional, source);
    let all = lines.add("disk_all", "  with replicas", primary * copies, "B", Proportional, source);
    let advice = "the new index, the live one, and the one to go back to (load.elasticsearch.keep = 1)";
    let peak =
        lines.add("disk_peak", "  while a load waits for promotion", all * INDICES, "B", Reasoned, advice);
    lines.add("memory_a_document", "page cache, a document", document.memory, "B", basis, source);
    let memory = lines.add(
        "memory_all",
        "  all documents, with replicas",
        document.memory * n * copies,
        "B",
        Proportional,
        source,
    );

    let advice = "Elastic, Size your shards: at most 50 GB and 200 million documents each";
    let shards = (primary / SHARD_BYTES).max(n / SHARD_DOCUMENTS).ceil();
    let shards = lines.add("shards", "primary shards", shards, "shards", Reasoned, advice);
    let advice = "the server merges to no more than 5 GiB (index.merge.policy.max_merged_segment)";
    let segments = (primary / SEGMENT_BYTES).ceil().max(shards);
    let segments = lines.add("segments", "segments, of all shards", segments, "segments", Reasoned, advice);

    let (query, basis, source) = query(option, n, segments, wish.dimensions, figures)?;
    let query = lines.add("core_ms_a_query", "a query", query, "core-ms", basis, &source);
    let cores = query / 1e3 * wish.queries_per_second / BUSY;
    let cores = lines.add(
        "cores",
        "  all queries of a second",
        cores,
        "cores",
        Reasoned,
        "cores busy for half of the time",
    );
    let reads = match setting(option) {
        Some(RESCORED) => RESCORED_VECTORS * shards * wish.queries_per_second,
        _ => 0.0,
    };
    let advice =
        "each shard reads three times ten vectors as they are, from disk unless they happen to be cached";
    lines.add("rescoring_reads", "  vectors read to rescore them", reads, "reads/s", Reasoned, advice);
    let recall = recall(option, figures)?;
    lines.add("recall_measured", &recall.0, recall.1, "", Measured, &recall.2);

    let heap = (wish.memory_per_node / 2.0).min(MOST_HEAP);
    let advice = "Elastic: half of a node's memory for the heap, 31 GB at most; the rest is page cache";
    lines.add("heap", "heap of a node", heap, "B", Reasoned, advice);
    let by_memory = (memory / (wish.memory_per_node - heap)).ceil();
    let by_memory = lines.add("nodes_by_memory", "nodes by page cache", by_memory, "nodes", Reasoned, advice);
    let advice = "disks filled to 85 %, beyond which the server puts no shard on a node";
    let by_disk = (peak / FULL / wish.disk_per_node).ceil();
    let by_disk = lines.add("nodes_by_disk", "nodes by disk", by_disk, "nodes", Reasoned, advice);
    let by_cores = (cores / f64::from(wish.cores_per_node)).ceil();
    let by_cores =
        lines.add("nodes_by_cores", "nodes by cores", by_cores, "nodes", Reasoned, "the cores above");
    let nodes = by_memory.max(by_disk).max(by_cores).max(copies);
    lines.add("nodes", "nodes", nodes, "nodes", Reasoned, "the most of the three, and one for each copy");

    let load = figures.largest("load.cpu", document.key, "until merges rest")?;
    // The server merges graphs again and again: that grows faster than the documents do.
    let basis = if option == IndexOption::Exact { Proportional } else { Reasoned };
    lines.add(
        "load_core_hours",
        "load, the server's part",
        load.value * n / 3.6e6,
        "core-h",
        basis,
        &load.source,
    );
    Ok(lines.0)
}

/// What a document takes, in bytes.
struct Document {
    /// The option's name in the figures.
    key: &'static str,
    disk: f64,
    /// What a search touches of it.
    memory: f64,
    source: String,
}

impl Document {
    fn of(option: IndexOption, dimensions: u32, figures: &Figures) -> anyhow::Result<Document> {
        let key = if option == IndexOption::Exact { "none" } else { option.name() };
        let of = |name, setting| anyhow::Ok(figures.largest(name, key, setting)?.value);
        let beside_heap = |name| of(name, "beside the heap");
        let exact = of("disk.exact", "field embedding")?;
        let (graph, knn) = match option {
            IndexOption::Exact => (0.0, 0.0),
            _ => (beside_heap("offheap.vex")?, of("disk.knn", "field embedding_knn")?),
        };
        let searched = match option {
            IndexOption::Exact => exact,
            IndexOption::Hnsw => beside_heap("offheap.vec")?,
            IndexOption::Int8Hnsw | IndexOption::Int4Hnsw => beside_heap("offheap.veq")?,
            IndexOption::BbqHnsw => beside_heap("offheap.veb")?,
        };
        // Vectors grow with their numbers; a graph, and what else is known of a picture, does not.
        let times = f64::from(dimensions) / MEASURED_DIMENSIONS;
        let store = figures.largest("disk.store", key, "primary")?;
        let vectors = exact + of("disk.source", "field _source")? + knn - graph;
        Ok(Document {
            key,
            disk: store.value + vectors * (times - 1.0),
            memory: searched * times + graph,
            source: store.source.clone(),
        })
    }
}

/// Core-milliseconds of all nodes for a query, and how they are known.
fn query(
    option: IndexOption,
    n: f64,
    segments: f64,
    dimensions: u32,
    figures: &Figures,
) -> anyhow::Result<(f64, Basis, String)> {
    let times = f64::from(dimensions) / MEASURED_DIMENSIONS;
    let Some(setting) = setting(option) else {
        let scan = figures.largest("scan.cpu", "cosine", "script_score")?;
        return Ok((scan.value / scan.documents * n * times, Basis::Proportional, scan.source.clone()));
    };
    // A search goes down each segment's graph: the first costs what one shard of one segment was measured to cost, each further one
    // what each further shard did. The way down a graph is as long as the logarithm of its documents.
    let one = figures.largest("knn.cpu", option.name(), setting)?;
    let several = figures.largest("shards4.cpu", option.name(), setting)?;
    let further = ((several.value - one.value) / (MEASURED_SHARDS - 1.0)).max(0.0);
    let longer = ((n / segments).ln() / one.documents.ln()).max(1.0);
    Ok(((one.value + further * (segments - 1.0)) * longer * times, Basis::Reasoned, one.source.clone()))
}

/// What share of the ten nearest a search was measured to find among real pictures: in words, as a number, and its source.
fn recall(option: IndexOption, figures: &Figures) -> anyhow::Result<(String, f64, String)> {
    let Some(setting) = setting(option) else {
        return Ok(("  of the ten nearest, found".to_owned(), 1.0, "every document is compared".to_owned()));
    };
    let figure = figures.largest("knn.recall", option.name(), setting)?;
    Ok((
        "  of the ten nearest, found".to_owned(),
        figure.value,
        format!("{}, {} pictures", figure.source, figure.documents),
    ))
}

/// How an option is searched: what is quantised needs its hits rescored to find the nearest. `None` without a graph.
fn setting(option: IndexOption) -> Option<&'static str> {
    match option {
        IndexOption::Exact => None,
        IndexOption::Hnsw => Some(CANDIDATES),
        IndexOption::Int8Hnsw | IndexOption::Int4Hnsw | IndexOption::BbqHnsw => Some(RESCORED),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use proptest::prelude::*;

    use super::*;
    use crate::models::Precision;

    fn wish(pictures: f64) -> Wish {
        Wish {
            pictures,
            queries_per_second: 50.0,
            dimensions: 512,
            index_options: IndexOption::value_variants().to_vec(),
            precision: Precision::Int8,
            cores_per_node: 16,
            memory_per_node: 64e9,
            disk_per_node: 2e12,
            replicas: 1,
        }
    }

    fn shipped() -> Figures {
        Figures::shipped().expect("the table is sound")
    }

    fn value(lines: &[Line], name: &str) -> f64 {
        lines.iter().find(|line| line.name == name).expect(name).value
    }

    #[test]
    fn the_shipped_table_has_all_figures_and_each_line_has_a_source() {
        for precision in Precision::value_variants() {
            let plan = plan(&Wish { precision: *precision, ..wish(1e6) }, &shipped())
                .expect("all figures are there");
            assert_eq!(plan.search.len(), IndexOption::value_variants().len());
            for line in plan.search.iter().flat_map(|search| &search.lines).chain(&plan.extract) {
                assert!(!line.source.is_empty() && line.value.is_finite() && line.value >= 0.0, "{line:?}");
            }
            assert!(value(&plan.extract, "core_hours") > 0.0, "{precision}");
        }
    }

    /// With figures as round as these a plan can be checked by hand.
    #[test]
    fn a_plan_of_round_figures_is_what_one_calculates_by_hand() {
        let rows = "extract.cpu int8 EPYC 32 36;table.bytes - - 10 2000;disk.store int8_hnsw primary 1000 5000;\
            disk.exact int8_hnsw field+embedding 1000 1500;disk.source int8_hnsw field+_source 1000 1200;\
            disk.knn int8_hnsw field+embedding_knn 1000 2100;offheap.veq int8_hnsw beside+the+heap 1000 500;\
            offheap.vex int8_hnsw beside+the+heap 1000 100;load.cpu int8_hnsw until+merges+rest 1000 1;\
            knn.cpu int8_hnsw candidates=100,oversample=3 2000000 2;shards4.cpu int8_hnsw candidates=100,oversample=3 2000000 5;\
            knn.recall int8_hnsw candidates=100,oversample=3 1000 0.9";
        let rows = rows
            .split(';')
            .map(|row| format!("{}\tunit\tmake a\n", row.trim().replace(' ', "\t").replace('+', " ")));
        let figures = Figures::parse(&rows.collect::<String>()).expect("well-formed");
        let wish = Wish { index_options: vec![IndexOption::Int8Hnsw], ..wish(1e8) };
        let made = plan(&wish, &figures).expect("all there");
        let (extract, search) = (&made.extract[..], &made.search[0].lines[..]);
        let close = |lines, name: &str, expected: f64| {
            let value = value(lines, name);
            assert!((value - expected).abs() <= 1e-9 * expected, "{name}: {value} and not {expected}");
        };
        close(extract, "core_hours", 1000.0);
        close(extract, "node_hours", 62.5);
        close(extract, "table_bytes", 2e11);
        close(extract, "list_bytes", 6e10);
        close(search, "disk_primary", 5e11);
        close(search, "disk_all", 1e12);
        close(search, "disk_peak", 3e12);
        close(search, "memory_all", 600.0 * 2e8);
        close(search, "shards", 10.0);
        // 500 GB in segments of 5.37 GB.
        close(search, "segments", 94.0);
        // 2 ms for the first segment, (5 - 2) / 3 = 1 ms for each of 93 others; none has as many documents as were measured.
        close(search, "core_ms_a_query", 95.0);
        close(search, "cores", 9.5);
        close(search, "rescoring_reads", 10.0 * 30.0 * 50.0);
        close(search, "recall_measured", 0.9);
        // 120 GB in 33 GB a node; 3 TB in 1.7 TB a node; 9.5 cores.
        close(search, "heap", 31e9);
        close(search, "nodes_by_memory", 4.0);
        close(search, "nodes_by_disk", 2.0);
        close(search, "nodes_by_cores", 1.0);
        close(search, "nodes", 4.0);
        close(search, "load_core_hours", 1e8 / 3.6e6);

        // Half the numbers: 4,700 bytes of a document are vectors, 500 of the page cache's 600, and all of the feature table.
        let made = plan(&Wish { dimensions: 256, ..wish }, &figures).expect("all there");
        close(&made.search[0].lines, "disk_a_document", 5000.0 - 4700.0 / 2.0);
        close(&made.search[0].lines, "memory_a_document", 350.0);
        close(&made.extract, "table_bytes", 1e11);
    }

    #[test]
    fn a_plan_for_what_was_measured_is_what_was_measured() {
        let figures = shipped();
        let measured = |name, option, setting| figures.largest(name, option, setting).expect(name).value;
        let documents = figures.largest("disk.store", "int8_hnsw", "primary").expect("there").documents;
        let made = plan(&Wish { replicas: 0, ..wish(documents) }, &figures).expect("plan");
        for Search { index_option, lines } in &made.search {
            let key = if *index_option == IndexOption::Exact { "none" } else { index_option.name() };
            assert_eq!(value(lines, "disk_all"), measured("disk.store", key, "primary") * documents, "{key}");
            assert_eq!((value(lines, "shards"), value(lines, "segments")), (1.0, 1.0), "{key}");
            let query = match setting(*index_option) {
                Some(setting) => measured("knn.cpu", key, setting),
                None => measured("scan.cpu", "cosine", "script_score"),
            };
            assert!((value(lines, "core_ms_a_query") - query).abs() <= 1e-9 * query, "{key}");
        }
    }

    proptest! {
        #[test]
        fn more_pictures_never_take_less(a in 1u64..10_000_000_000, b in 1u64..10_000_000_000, dimensions in 1u32..4096) {
            let of = |pictures: u64| plan(&Wish { dimensions, ..wish(pictures as f64) }, &shipped()).expect("plan");
            let (fewer, more) = (of(a.min(b)), of(a.max(b)));
            for (fewer, more) in fewer.search.iter().zip(&more.search) {
                for (fewer, more) in fewer.lines.iter().zip(&more.lines) {
                    prop_assert_eq!(fewer.name, more.name);
                    prop_assert!(fewer.value <= more.value * (1.0 + 1e-12), "{:?} {:?}", fewer, more);
                }
            }
            for (fewer, more) in fewer.extract.iter().zip(&more.extract) {
                prop_assert!(fewer.value <= more.value, "{:?} {:?}", fewer, more);
            }
        }

        #[test]
        fn bytes_are_proportional_to_pictures(pictures in 1u64..1_000_000_000) {
            let of = |pictures: u64| plan(&wish(pictures as f64), &shipped()).expect("plan");
            let (once, twice) = (of(pictures), of(2 * pictures));
            for (once, twice) in once.search.iter().zip(&twice.search) {
                for name in ["disk_all", "disk_peak", "memory_all"] {
                    let (once, twice) = (value(&once.lines, name), value(&twice.lines, name));
                    prop_assert!((twice / once - 2.0).abs() < 1e-9, "{name}: {once} {twice}");
                }
            }
        }
    }
}
