//! What a gallery of a given size takes: processors, disk, memory, shards, nodes. Arithmetic on measured figures, and nothing else.
//!
//! [`figures`] reads the measurements (`docs/sizing.tsv`; `make bench-es-sizing` takes them anew), [`wish`] is what is asked for. What a
//! newcomer would get wrong: a line is no better than its [`Basis`]. Bytes grow with pictures, and were measured; what a search in a
//! graph costs among a thousand times as many pictures was not, and the line says so. `docs/sizing.md` has the formulas in words.

pub mod figures;
pub mod wish;

use std::fmt;

use serde::Serialize;

use figures::{Figure, Figures};
use wish::{IndexOption, Wish};

/// Whose extract and vectors were measured; no other model's were.
const MODEL: &str = "VGG16";
/// They have so many numbers.
const MEASURED_DIMENSIONS: f64 = 512.0;

/// Cores are planned to be busy for half of the time: beyond, queries wait for one another.
const BUSY: f64 = 0.5;

/// The server puts no shard on a node whose disk has less left than this: `cluster.routing.allocation.disk.watermark.low`, and its
/// `max_headroom`. A share, and at most so many bytes.
const FREE_SHARE: f64 = 0.15;
const MOST_FREE: f64 = 200.0 * GIB;

/// Elastic's advice for the heap: half of the memory, and never more than where pointers stay compressed. Bytes.
const MOST_HEAP: f64 = 31.0 * GIB;

/// So much of the memory beside the heap is counted as page cache: the rest is the system's, and the server's own outside its heap.
const CACHE: f64 = 0.85;

/// With fewer nodes than this, but more than one, the loss of one would leave no majority to elect a master.
const QUORUM: f64 = 3.0;

/// Elastic's advice for the size of a shard.
const SHARD_BYTES: f64 = 50e9;
const SHARD_DOCUMENTS: f64 = 200e6;

/// The server's merges make no segment larger than 5 GiB (`index.merge.policy.max_merged_segment`), and let those of more than half
/// of that be: three quarters in the middle.
const SEGMENT_BYTES: f64 = 0.75 * 5.0 * GIB;

/// While a load waits for its promotion there are three indices: the new one, the live one, and the one kept to go back to.
const INDICES: f64 = 3.0;

/// The server refuses an index with which there would be more shards than so many for each node: `cluster.max_shards_per_node`.
const SHARDS_A_NODE: f64 = 1000.0;

/// Searches ask for the ten nearest.
const NEAREST: f64 = 10.0;
/// Those in a graph look at so many candidates in each shard.
const CANDIDATES: &str = "candidates=100";
/// The same, and of quantised vectors the nearest three times ten are compared again as they are.
const RESCORED: &str = "candidates=100,oversample=3";
const OVERSAMPLE: f64 = 3.0;
/// As many shards as searches in several were measured in.
const MEASURED_SHARDS: f64 = 4.0;

/// Bytes kept beside each vector, whatever its numbers: of the exact field its length, of quantised ones what corrects their rounding.
const BESIDE_EXACT: f64 = 4.0;
const BESIDE_SCALAR: f64 = 16.0;
const BESIDE_BINARY: f64 = 14.0;
/// Elastic's estimate of a graph, bytes a document: four for each of 16 neighbours (`m`).
const GRAPH: f64 = 64.0;

const GIB: f64 = (1u64 << 30) as f64;

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
    /// Where it was measured, if each of several machines has such a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
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
    /// Whose extract is priced.
    pub model: &'static str,
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
/// What Elasticsearch would refuse, or a figure that is not in the table: of the shipped one a test knows that it has all.
pub fn plan(wish: &Wish, figures: &Figures) -> anyhow::Result<Plan> {
    wish.check()?;
    let search = wish
        .index_options
        .iter()
        .map(|option| Ok(Search { index_option: *option, lines: search(wish, *option, figures)? }));
    Ok(Plan {
        wish: wish.clone(),
        model: MODEL,
        extract: extract(wish, figures)?,
        search: search.collect::<anyhow::Result<_>>()?,
    })
}

/// The lines of a plan so far. Each is given once, and its value goes on into the next.
#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    /// Of those to come.
    machine: Option<String>,
}

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
        let (what, machine, source) = (what.to_owned(), self.machine.clone(), source.to_owned());
        self.lines.push(Line { name, what, machine, value, unit, basis, source });
        value
    }
}

fn extract(wish: &Wish, figures: &Figures) -> anyhow::Result<Vec<Line>> {
    use Basis::{Measured, Proportional, Reasoned};
    let (n, mut lines) = (wish.pictures, Lines::default());
    for figure in figures.all("extract.cpu", wish.precision.name()) {
        let (machine, source) = (&figure.setting, &figure.source);
        lines.machine = Some(machine.clone());
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
    lines.machine = None;
    let table = figures.largest("table.bytes", "-", "-")?;
    let bytes = table.value * n * times(wish.dimensions);
    lines.add("table_bytes", "feature table, on disk", bytes, "B", Proportional, &table.source);
    let source = "what the budget of a run counts for each picture (docs/memory.md)";
    let list = crate::pipeline::LISTED_BYTES as f64 * n;
    lines.add("list_bytes", "list of a folder's pictures, in memory", list, "B", Proportional, source);
    let source = "in a later run, with URLs, ETags and hashes of the run before (docs/sizing.md)";
    lines.add(
        "list_bytes_objects",
        "  of a bucket's",
        crate::pipeline::LISTED_OBJECT_BYTES as f64 * n,
        "B",
        Reasoned,
        source,
    );
    Ok(lines.lines)
}

fn search(wish: &Wish, option: IndexOption, figures: &Figures) -> anyhow::Result<Vec<Line>> {
    use Basis::{Measured, Proportional, Reasoned};
    let (n, mut lines) = (wish.pictures, Lines::default());

    let document = Document::of(option, wish.dimensions, figures)?;
    let source = &document.source;
    let basis = if is_measured(wish.dimensions) { Measured } else { Proportional };
    lines.add("disk_a_document", "disk, a document", document.disk, "B", basis, source);
    let primary =
        lines.add("disk_primary", "  all documents, once", document.disk * n, "B", Proportional, source);
    let (basis, cached, source) = match option {
        IndexOption::Exact => (basis, Proportional, source.clone()),
        _ => {
            let advice = "a graph is 64 B at least (Elastic, Tune approximate kNN search: 4 x m)";
            (Reasoned, Reasoned, format!("{source}; {advice}"))
        }
    };
    lines.add("memory_a_document", "page cache, a document", document.memory, "B", basis, &source);
    let memory =
        lines.add("memory_primary", "  all documents, once", document.memory * n, "B", cached, &source);

    let advice = "Elastic: half of a node's memory for the heap, 31 GiB at most";
    let heap = (wish.memory_per_node / 2.0).min(MOST_HEAP);
    let heap = lines.add("heap", "heap of a node", heap, "B", Reasoned, advice);
    let choice = "a choice of ours: 85 % of the memory beside the heap";
    let cache = (wish.memory_per_node - heap) * CACHE;
    let cache = lines.add("cache", "page cache of a node", cache, "B", Reasoned, choice);
    let default = "the server leaves 15 % of a disk free, 200 GiB at most (cluster.routing.allocation.disk.watermark.low)";
    let room = wish.disk_per_node - (FREE_SHARE * wish.disk_per_node).min(MOST_FREE);
    let room = lines.add("room", "disk of a node, as far as it is filled", room, "B", Reasoned, default);
    // Nodes that one copy of all shards fills: no shard may be larger than a node.
    let (by_memory, by_disk) = (memory / cache, primary * INDICES / room);

    let advice = "Elastic, Size your shards: at most 50 GB and 200 million documents each; none larger than a node takes; \
                  more than 1,024 are several indices (load.elasticsearch.shards)";
    let shards = (primary / SHARD_BYTES).max(n / SHARD_DOCUMENTS).max(by_memory).max(by_disk).ceil();
    let shards = lines.add("shards", "primary shards", shards, "shards", Reasoned, advice);
    let small = figures.largest("load.segments", document.key, "before that merge")?;
    let advice = format!("{}: so many small ones in each shard; the others 2.5 to 5 GiB", small.source);
    let segments = (shards * small.value + primary / SEGMENT_BYTES).ceil();
    let segments = lines.add("segments", "segments, of all shards", segments, "segments", Reasoned, &advice);

    let cores = searches(&mut lines, wish, option, shards, segments, figures)?;
    let by_cores = (cores / f64::from(wish.cores_per_node)).ceil();
    let by_cores =
        lines.add("nodes_by_cores", "nodes by cores", by_cores, "nodes", Reasoned, "the cores above");
    let copies = (by_cores / shards).ceil().max(f64::from(wish.replicas) + 1.0);
    let why = "replicas and one, and as many as give each node by cores a shard; for `exact` smaller shards would do, with no more disk";
    let copies = lines.add("copies", "copies of each shard", copies, "copies", Reasoned, why);
    let all = primary * copies;
    lines.add("disk_all", "  disk, all copies", all, "B", Reasoned, "the copies above");
    let advice = "the new index, the live one, and the one to go back to (load.elasticsearch.keep = 1)";
    lines.add("disk_peak", "  while a load waits for promotion", all * INDICES, "B", Reasoned, advice);
    let why = "the copies above, of the live index alone: a load beside it drives some of it out";
    lines.add("memory_all", "  page cache, all copies", memory * copies, "B", Reasoned, why);
    let by_memory = (by_memory * copies).ceil();
    let why = "page cache of all copies in that of a node";
    let by_memory = lines.add("nodes_by_memory", "nodes by page cache", by_memory, "nodes", Reasoned, why);
    let by_disk = (by_disk * copies).ceil();
    let why = "all copies, while a load waits, in what is filled of a node's disk";
    let by_disk = lines.add("nodes_by_disk", "nodes by disk", by_disk, "nodes", Reasoned, why);
    let by_shards = (shards * copies * INDICES / SHARDS_A_NODE).ceil();
    let limit =
        "all copies, while a load waits: the server allows 1,000 for each node (cluster.max_shards_per_node)";
    let by_shards = lines.add("nodes_by_shards", "nodes by shards", by_shards, "nodes", Reasoned, limit);
    let why = "the most of the four, one for each copy; one to spare where there are replicas; of several at least 3, to elect a master";
    let nodes = nodes(by_memory.max(by_disk).max(by_shards).max(by_cores), copies);
    lines.add("nodes", "nodes", nodes, "nodes", Reasoned, why);

    let load = figures.largest("load.cpu", document.key, "until merges rest")?;
    // The server merges graphs again and again: that grows faster than the documents do. And not all of a load is vectors.
    let is_proportional = option == IndexOption::Exact && is_measured(wish.dimensions);
    let basis = if is_proportional { Proportional } else { Reasoned };
    let hours = load.value * n * times(wish.dimensions) / 3.6e6;
    let source = source_of(load, wish.dimensions);
    lines.add("load_core_hours", "load, the server's part", hours, "core-h", basis, &source);
    Ok(lines.lines)
}

/// The lines of searches. The cores they take.
fn searches(
    lines: &mut Lines,
    wish: &Wish,
    option: IndexOption,
    shards: f64,
    segments: f64,
    figures: &Figures,
) -> anyhow::Result<f64> {
    use Basis::Reasoned;
    let oversample = if setting(option) == Some(RESCORED) { OVERSAMPLE } else { 0.0 };
    let unset = figures.largest("knn.recall", IndexOption::Int8Hnsw.name(), CANDIDATES)?.value;
    let choice = format!(
        "a choice: knn = {{ num_candidates = 100, oversample = 3 }}; without oversample, the default, int8_hnsw found {unset:.3}"
    );
    let what = "cosine, k 10; graphs: 100 candidates, rescored x";
    let oversample = lines.add("oversample", what, oversample, "", Reasoned, &choice);
    let (query, basis, source) = query(option, wish.pictures, segments, wish.dimensions, figures)?;
    let source = format!("{source}; two digits, since it varies by a fifth");
    let query = lines.add("core_ms_a_query", "a query", two_digits(query), "core-ms", basis, &source);
    let cores = query / 1e3 * wish.queries_per_second / BUSY;
    let choice = "a choice of ours: cores busy for half of the time";
    lines.add("cores", "  all queries of a second", cores, "cores", Reasoned, choice);
    let reads = oversample * NEAREST * shards * wish.queries_per_second;
    let advice =
        "each shard reads three times ten vectors as they are, from disk unless they happen to be cached";
    lines.add("rescoring_reads", "  vectors read to rescore them", reads, "reads/s", Reasoned, advice);
    let (found, basis, source) = recall(option, wish.dimensions, figures)?;
    let what = format!("  of the ten nearest, found among {} thousand", found.documents / 1e3);
    lines.add("recall", &what, found.value, "", basis, &source);
    Ok(cores)
}

/// Nodes, of those that page cache, disk and cores need and the copies of each shard. The one to spare takes the shards of one that is lost.
fn nodes(needed: f64, copies: f64) -> f64 {
    let spare = if copies > 1.0 { 1.0 } else { 0.0 };
    let nodes = (needed + spare).max(copies);
    if nodes > 1.0 { nodes.max(QUORUM) } else { nodes }
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
        // Vectors grow with their numbers; a graph, and what else is known of a picture, does not.
        let growth = |bytes: f64, fixed: f64| (bytes - fixed) * (times(dimensions) - 1.0);
        let store = figures.largest("disk.store", key, "primary")?;
        let exact = of("disk.exact", "field embedding")?;
        let disk =
            store.value + growth(exact, BESIDE_EXACT) + growth(of("disk.source", "field _source")?, 0.0);
        let source = store.source.clone();
        let (searched, beside) = match option {
            IndexOption::Exact => {
                return Ok(Document { key, disk, memory: exact + growth(exact, BESIDE_EXACT), source });
            }
            IndexOption::Hnsw => ("offheap.vec", 0.0),
            IndexOption::Int8Hnsw | IndexOption::Int4Hnsw => ("offheap.veq", BESIDE_SCALAR),
            IndexOption::BbqHnsw => ("offheap.veb", BESIDE_BINARY),
        };
        let searched = of(searched, "beside the heap")?;
        let graph = of("offheap.vex", "beside the heap")?;
        Ok(Document {
            key,
            disk: disk + growth(of("disk.knn", "field embedding_knn")?, graph + beside),
            memory: searched + growth(searched, beside) + graph.max(GRAPH),
            source,
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
    let times = times(dimensions);
    // To be read, parsed and answered: that costs as much whatever is searched.
    let answering = figures.largest("query.cpu", "-", "ten documents")?.value;
    let Some(setting) = setting(option) else {
        let scan = figures.largest("scan.cpu", "cosine", "script_score")?;
        let answering = answering.min(scan.value);
        let comparing = (scan.value - answering) / scan.documents * n * times;
        return Ok((answering + comparing, Basis::Proportional, scan.source.clone()));
    };
    // A search goes down each segment's graph: the first costs what one shard of one segment was measured to cost, each further one
    // what each further shard did. The way down a graph is as long as the logarithm of its documents.
    let one = figures.largest("knn.cpu", option.name(), setting)?;
    let several = figures.largest("shards4.cpu", option.name(), setting)?;
    let answering = answering.min(one.value);
    let further = ((several.value - one.value) / (MEASURED_SHARDS - 1.0)).max(0.0);
    let longer = ((n / segments).ln() / one.documents.ln()).max(1.0);
    let comparing = (one.value - answering + further * (segments - 1.0)) * longer * times;
    Ok((answering + comparing, Basis::Reasoned, one.source.clone()))
}

/// How many times the numbers of a measured vector.
fn times(dimensions: u32) -> f64 {
    f64::from(dimensions) / MEASURED_DIMENSIONS
}

fn is_measured(dimensions: u32) -> bool {
    times(dimensions) == 1.0
}

/// The source of a figure that other vectors may change otherwise than in proportion.
fn source_of(figure: &Figure, dimensions: u32) -> String {
    let other = if is_measured(dimensions) { "" } else { "; measured with 512 numbers" };
    format!("{}{other}", figure.source)
}

/// The number to two digits.
pub fn two_digits(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

/// What share of the ten nearest a search was measured to find among real pictures, how it is known, and its source.
fn recall(
    option: IndexOption,
    dimensions: u32,
    figures: &Figures,
) -> anyhow::Result<(&Figure, Basis, String)> {
    Ok(match setting(option) {
        Some(setting) => {
            let found = figures.largest("knn.recall", option.name(), setting)?;
            let basis = if is_measured(dimensions) { Basis::Measured } else { Basis::Reasoned };
            (found, basis, source_of(found, dimensions))
        }
        None => {
            let flat = figures.largest("knn.recall", "flat", CANDIDATES)?;
            let source = source_of(flat, dimensions);
            (flat, Basis::Reasoned, format!("every document is compared, as by `flat`: {source}"))
        }
    })
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
            disk.exact int8_hnsw field+embedding 1000 1504;disk.source int8_hnsw field+_source 1000 1200;\
            disk.knn int8_hnsw field+embedding_knn 1000 2112;offheap.veq int8_hnsw beside+the+heap 1000 496;\
            offheap.vex int8_hnsw beside+the+heap 1000 96;load.cpu int8_hnsw until+merges+rest 1000 1;\
            load.segments int8_hnsw before+that+merge 1000 2;query.cpu - ten+documents 1000 1;\
            knn.cpu int8_hnsw candidates=100,oversample=3 2000000 2;shards4.cpu int8_hnsw candidates=100,oversample=3 2000000 5;\
            knn.recall int8_hnsw candidates=100 1000 0.8;knn.recall int8_hnsw candidates=100,oversample=3 1000 0.9";
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
        close(extract, "list_bytes_objects", 9.5e10);
        close(search, "disk_primary", 5e11);
        // 496 B of the vector and 96 of the graph.
        close(search, "memory_primary", 592.0 * 1e8);
        close(search, "heap", 32e9);
        close(search, "cache", 27.2e9);
        // Less than 15 % of 2 TB.
        close(search, "room", 2e12 - 200.0 * 1024.0f64.powi(3));
        close(search, "shards", 10.0);
        // Two small ones in each shard, and 124.2 of 4.03 GB.
        close(search, "segments", 145.0);
        // 1 ms whatever is searched, 1 ms more for the first segment, (5 - 2) / 3 = 1 ms for each of 144 others; none has as many
        // documents as were measured. 146, to two digits.
        close(search, "core_ms_a_query", 150.0);
        close(search, "cores", 15.0);
        close(search, "rescoring_reads", 10.0 * 30.0 * 50.0);
        close(search, "recall", 0.9);
        close(search, "nodes_by_cores", 1.0);
        close(search, "copies", 2.0);
        close(search, "disk_all", 1e12);
        close(search, "disk_peak", 3e12);
        close(search, "memory_all", 592.0 * 2e8);
        // 118.4 GB in 27.2 GB a node; 3 TB in 1.785 TB; and one to spare.
        close(search, "nodes_by_memory", 5.0);
        close(search, "nodes_by_disk", 2.0);
        close(search, "nodes_by_shards", 1.0);
        close(search, "nodes", 6.0);
        close(search, "load_core_hours", 1e8 / 3.6e6);

        // Half the numbers: of a document 1,500 + 1,200 + 2,000 B grow with them, and 480 of the page cache's 592; and all of the
        // feature table and of the load.
        let made = plan(&Wish { dimensions: 256, ..wish.clone() }, &figures).expect("all there");
        close(&made.search[0].lines, "disk_a_document", 5000.0 - 4700.0 / 2.0);
        close(&made.search[0].lines, "memory_a_document", 592.0 - 480.0 / 2.0);
        close(&made.extract, "table_bytes", 1e11);
        close(&made.search[0].lines, "load_core_hours", 1e8 / 3.6e6 / 2.0);

        // 50 PB are 1,000,000 shards, in two copies of three indices.
        let (memory_per_node, disk_per_node) = (1e15, 1e15);
        let huge =
            Wish { pictures: 1e13, queries_per_second: 1.0, memory_per_node, disk_per_node, ..wish.clone() };
        let made = plan(&huge, &figures).expect("all there");
        close(&made.search[0].lines, "nodes_by_shards", 6_000.0);
        close(&made.search[0].lines, "nodes", 6_001.0);

        // 75,000 cores of 16: ten shards go round once each has 469 copies.
        let made = plan(&Wish { queries_per_second: 250_000.0, ..wish }, &figures).expect("all there");
        close(&made.search[0].lines, "nodes_by_cores", 4_688.0);
        close(&made.search[0].lines, "copies", 469.0);
        close(&made.search[0].lines, "disk_all", 469.0 * 5e11);
    }

    #[test]
    fn of_vectors_that_were_not_measured_less_is_known() {
        for (dimensions, is_measured) in [(512, true), (768, false)] {
            let made = plan(&Wish { dimensions, ..wish(1e6) }, &shipped()).expect("plan");
            for Search { index_option, lines } in &made.search {
                let line = |name| lines.iter().find(|line: &&Line| line.name == name).expect(name);
                for name in ["recall", "load_core_hours"] {
                    let line = line(name);
                    assert_eq!(line.source.contains("measured with 512"), !is_measured, "{line:?}");
                    assert!(is_measured || line.basis == Basis::Reasoned, "{line:?}");
                }
                let is_exact = *index_option == IndexOption::Exact;
                let (found, load) = (line("recall").basis, line("load_core_hours").basis);
                assert_eq!(found == Basis::Measured, is_measured && !is_exact, "{index_option:?}");
                assert_eq!(load == Basis::Proportional, is_measured && is_exact, "{index_option:?}");
            }
        }
    }

    #[test]
    fn one_node_stays_one_and_several_are_three_at_least() {
        for ((needed, copies), expected) in [
            ((1.0, 1.0), 1.0),
            ((2.0, 1.0), 3.0),
            ((4.0, 1.0), 4.0),
            ((1.0, 2.0), 3.0),
            ((4.0, 2.0), 5.0),
            ((2.0, 4.0), 4.0),
        ] {
            assert_eq!(nodes(needed, copies), expected, "{needed} {copies}");
        }
    }

    /// Searches were timed in one segment, after a merge; a plan counts those that there are before.
    #[test]
    fn a_plan_for_what_was_measured_is_what_was_measured() {
        let figures = shipped();
        let measured = |name, option, setting| figures.largest(name, option, setting).expect(name).value;
        let documents = figures.largest("disk.store", "int8_hnsw", "primary").expect("there").documents;
        let made = plan(&Wish { replicas: 0, ..wish(documents) }, &figures).expect("plan");
        for Search { index_option, lines } in &made.search {
            let key = if *index_option == IndexOption::Exact { "none" } else { index_option.name() };
            assert_eq!(value(lines, "disk_all"), measured("disk.store", key, "primary") * documents, "{key}");
            let segments = measured("load.segments", key, "before that merge");
            assert_eq!((value(lines, "shards"), value(lines, "nodes")), (1.0, 1.0), "{key}");
            assert_eq!(value(lines, "segments"), segments + 1.0, "{key}");
            let expected = match setting(*index_option) {
                Some(setting) => measured("knn.cpu", key, setting),
                None => measured("scan.cpu", "cosine", "script_score"),
            };
            let (merged, ..) = query(*index_option, documents, 1.0, 512, &figures).expect("figures");
            assert!((merged - expected).abs() <= 1e-9 * expected, "{key}");
            assert!(value(lines, "core_ms_a_query") >= two_digits(merged), "{key}");
        }
    }

    #[test]
    fn two_digits_are_kept() {
        for (value, kept) in [(0.95, 0.95), (104.7, 100.0), (32_551.0, 33_000.0), (9.96, 10.0)] {
            assert_eq!(two_digits(value), kept);
        }
    }

    proptest! {
        /// As long as no copies are needed for the cores' sake: more pictures are more shards, which go round with fewer copies.
        #[test]
        fn more_pictures_never_take_less(a in 1u64..10_000_000_000, b in 1u64..10_000_000_000, dimensions in 32u32..2048) {
            let of = |pictures: u64| {
                let wish = Wish { dimensions: 2 * dimensions, queries_per_second: 1e-3, ..wish(pictures as f64) };
                plan(&wish, &shipped()).expect("plan")
            };
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
                for name in ["disk_primary", "memory_primary"] {
                    let (once, twice) = (value(&once.lines, name), value(&twice.lines, name));
                    prop_assert!((twice / once - 2.0).abs() < 1e-9, "{name}: {once} {twice}");
                }
            }
        }

        /// Each node has a shard, but for the one to spare and the third of a quorum; and none more than the server allows.
        #[test]
        fn a_plan_can_be_placed(
            pictures in 1u64..1_000_000_000_000,
            queries_per_second in 1e-3..1e6,
            replicas in 0u32..=10,
            memory_per_node in 1e9..1e15,
            disk_per_node in 1e9..1e15,
        ) {
            let wish = Wish { queries_per_second, replicas, memory_per_node, disk_per_node, ..wish(pictures as f64) };
            for Search { lines, .. } in plan(&wish, &shipped()).expect("plan").search {
                let value = |name| value(&lines, name);
                let placed = value("shards") * value("copies");
                for name in ["nodes_by_cores", "nodes_by_memory", "nodes_by_disk", "nodes_by_shards", "copies"] {
                    prop_assert!(value(name) <= placed, "{}: {:?}", name, lines);
                }
                prop_assert!(value("nodes") <= (placed + 1.0).max(QUORUM), "{:?}", lines);
                prop_assert!(value("copies") <= value("nodes"), "{:?}", lines);
                prop_assert!(placed * INDICES <= value("nodes") * SHARDS_A_NODE, "{:?}", lines);
            }
        }
    }
}
