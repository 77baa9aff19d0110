//! What a gallery of a given size takes: processors, disk, memory, shards. Arithmetic on measured figures, and nothing else.
//!
//! The figures are rows of `docs/sizing.tsv`, each with the command that measured it; `make bench-es-sizing` measures them anew.
//! What a newcomer would get wrong: a line of a plan is no better than its [`Basis`]. Bytes are proportional to pictures, and
//! measured; what a graph costs over a thousand times as many pictures is not, and the line says so.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::models::Precision;

/// The measured figures, as they are in the repository.
const SHIPPED: &str = include_str!("../docs/sizing.tsv");

/// The vectors that were measured have so many numbers.
const MEASURED_DIMENSIONS: f64 = 512.0;

/// Bytes for each picture in the list that an extraction holds: `LISTED_BYTES` of the pipeline.
const LISTED_BYTES: f64 = 600.0;

/// Cores are planned to be busy for half of the time: beyond, queries wait for one another.
const LOAD: f64 = 0.5;

/// A disk is filled no further than this: at `cluster.routing.allocation.disk.watermark.low`, 85 %, no shard is put on a node.
const FILLED: f64 = 0.85;

/// Elastic's advice for the heap: half of the memory, and never more than where pointers stay compressed.
const MOST_HEAP: f64 = 31e9;

/// Elastic's advice for a shard: 10 to 50 GB, and at most 200 million documents. Lucene's own limit is 2,147,483,519.
const SHARD_BYTES: f64 = 50e9;
const SHARD_DOCUMENTS: f64 = 200e6;

/// `index.merge.policy.max_merged_segment`: the server's own merges make no larger segments.
const SEGMENT_BYTES: f64 = 5.0 * (1u64 << 30) as f64;

/// While a load waits for its promotion there are three indices: the new one, the live one, and the one kept to go back to.
const INDICES: f64 = 3.0;

/// Setting of the searches whose cost and recall are planned with.
const CANDIDATES: &str = "candidates=100";

/// How vectors are kept for searching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum IndexOption {
    /// No graph: `script_score` over all documents, exact
    Exact,
    /// A graph over the vectors as they are
    Hnsw,
    /// A graph over a byte a number
    Int8Hnsw,
    /// A graph over half a byte a number
    Int4Hnsw,
    /// A graph over a bit a number, rescored
    BbqHnsw,
}

impl IndexOption {
    /// The name in `index_options`, and in the table of figures.
    pub fn name(self) -> &'static str {
        match self {
            IndexOption::Exact => "exact",
            IndexOption::Hnsw => "hnsw",
            IndexOption::Int8Hnsw => "int8_hnsw",
            IndexOption::Int4Hnsw => "int4_hnsw",
            IndexOption::BbqHnsw => "bbq_hnsw",
        }
    }

    /// How it is searched: what is quantised to less than a byte needs its hits rescored to find the nearest.
    fn setting(self) -> String {
        match self {
            IndexOption::Int4Hnsw | IndexOption::BbqHnsw => format!("{CANDIDATES},oversample=3"),
            _ => CANDIDATES.to_owned(),
        }
    }
}

/// One measured number.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub figure: String,
    pub option: String,
    pub setting: String,
    /// Of how many documents.
    pub documents: f64,
    pub value: f64,
    pub unit: String,
    /// Command, date and machine.
    pub source: String,
}

/// The table of figures.
#[derive(Debug, Clone)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// The figures in the repository.
    ///
    /// # Errors
    /// A row that cannot be read: the program was built from a damaged table.
    pub fn shipped() -> anyhow::Result<Figures> {
        Figures::parse(SHIPPED)
    }

    fn parse(text: &str) -> anyhow::Result<Figures> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#']));
        let rows = lines.filter(|line| !line.starts_with("figure\t")).map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let [figure, option, setting, documents, value, unit, source] = cells[..] else {
                anyhow::bail!("docs/sizing.tsv: `{line}` has not seven cells");
            };
            Ok(Figure {
                figure: figure.to_owned(),
                option: option.to_owned(),
                setting: setting.to_owned(),
                documents: documents.parse()?,
                value: value.parse()?,
                unit: unit.to_owned(),
                source: source.to_owned(),
            })
        });
        Ok(Figures(rows.collect::<anyhow::Result<_>>()?))
    }

    /// The rows of a figure, the one of the fewest documents first.
    fn series(&self, figure: &str, option: &str, setting: &str) -> Vec<&Figure> {
        let wanted = |row: &&Figure| row.figure == figure && row.option == option && row.setting == setting;
        let mut rows: Vec<&Figure> = self.0.iter().filter(wanted).collect();
        rows.sort_by(|a, b| a.documents.total_cmp(&b.documents));
        rows
    }

    /// The row of the most documents.
    fn of(&self, figure: &str, option: &str, setting: &str) -> anyhow::Result<&Figure> {
        let found = self.series(figure, option, setting).pop();
        found.ok_or_else(|| anyhow::anyhow!("docs/sizing.tsv has no {figure} of {option}, {setting}"))
    }

    /// The same, 0 where there is none: an option without a graph has no bytes of one.
    fn bytes(&self, figure: &str, option: &str) -> f64 {
        self.of(figure, option, "beside the heap").map_or(0.0, |row| row.value)
    }
}

/// How a line of a plan is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A measured figure, as it was measured.
    Measured,
    /// A measured figure times what it is proportional to: bytes, time of pictures.
    Scaled,
    /// A measured growth, carried on beyond what was measured.
    Extrapolated,
    /// Somebody's advice, or a choice of ours, alone or times what stands above it.
    Assumed,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Basis::Measured => "measured",
            Basis::Scaled => "scaled",
            Basis::Extrapolated => "extrapolated",
            Basis::Assumed => "assumed",
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

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wish {
    pub pictures: f64,
    pub queries_per_second: f64,
    pub dimensions: u32,
    pub index_options: Vec<IndexOption>,
    pub precision: Precision,
    pub cores_per_node: u32,
    /// Bytes.
    pub memory_per_node: f64,
    /// Bytes.
    pub disk_per_node: f64,
    pub replicas: u32,
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

impl Search {
    /// The value of a line.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.lines.iter().find(|line| line.name == name).map(|line| line.value)
    }
}

/// Calculates a plan.
///
/// # Errors
/// A figure that is not in the table: of the shipped one a test knows that it has all.
pub fn plan(wish: &Wish, figures: &Figures) -> anyhow::Result<Plan> {
    let search = wish.index_options.iter().map(|option| search(wish, *option, figures));
    Ok(Plan {
        wish: wish.clone(),
        extract: extract(wish, figures)?,
        search: search.collect::<anyhow::Result<_>>()?,
    })
}

/// A list of lines in the making.
struct Lines(Vec<Line>);

impl Lines {
    fn add(
        &mut self,
        name: &'static str,
        what: impl Into<String>,
        (value, unit): (f64, &'static str),
        basis: Basis,
        source: impl Into<String>,
    ) -> f64 {
        self.0.push(Line { name, what: what.into(), value, unit, basis, source: source.into() });
        value
    }
}

fn extract(wish: &Wish, figures: &Figures) -> anyhow::Result<Vec<Line>> {
    use Basis::{Assumed, Measured, Scaled};
    let mut lines = Lines(Vec::new());
    let rows: Vec<&Figure> =
        figures.0.iter().filter(|row| row.figure == "extract.cpu" && row.option == wish.precision.name()).collect();
    for row in rows {
        let what = format!("{} on {}, a picture", row.option, row.setting);
        lines.add("core_ms_a_picture", what, (row.value, "core-ms"), Measured, &row.source);
        let hours = row.value * wish.pictures / 3.6e6;
        lines.add("core_hours", "  all pictures", (hours, "core-h"), Scaled, &row.source);
        let node = hours / f64::from(wish.cores_per_node);
        let what = format!("  on one node of {} cores", wish.cores_per_node);
        lines.add("node_hours", what, (node, "h"), Assumed, "all cores as fast together as alone");
    }
    let table = figures.of("table.bytes", "-", "-")?;
    let bytes = table.value * wish.pictures * f64::from(wish.dimensions) / MEASURED_DIMENSIONS;
    lines.add("table_bytes", "feature table", (bytes, "B"), Scaled, &table.source);
    let source = "600 B a picture that the budget of a run counts (docs/memory.md)";
    lines.add("list_bytes", "the list of pictures, in memory", (LISTED_BYTES * wish.pictures, "B"), Scaled, source);
    Ok(lines.0)
}

fn search(wish: &Wish, option: IndexOption, figures: &Figures) -> anyhow::Result<Search> {
    use Basis::{Assumed, Extrapolated, Measured, Scaled};
    let mut lines = Lines(Vec::new());
    let (n, copies) = (wish.pictures, f64::from(wish.replicas) + 1.0);
    let scale = f64::from(wish.dimensions) / MEASURED_DIMENSIONS;
    let key = if option == IndexOption::Exact { "none" } else { option.name() };
    let basis = if scale == 1.0 { Measured } else { Scaled };

    // Disk. The graph does not grow with the numbers of a vector, and what else is known of a picture does not either.
    let store = figures.of("disk.store", key, "primary")?;
    let graph = figures.bytes("offheap.vex", key);
    let rest = figures.of("disk.document", key, "all other fields")?.value;
    let a_document = rest + graph + (store.value - rest - graph) * scale;
    lines.add("disk_a_document", "disk, a document", (a_document, "B"), basis, &store.source);
    let primary = lines.add("disk_primary", "  all documents once", (a_document * n, "B"), Scaled, &store.source);
    let what = format!("  with {} replicas", wish.replicas);
    let all = lines.add("disk_all", what, (primary * copies, "B"), Scaled, "times the copies");
    let source = "the new index, the live one, and the one to go back to (load.elasticsearch.keep = 1)";
    let peak = lines.add("disk_peak", "  while a load waits for promotion", (all * INDICES, "B"), Assumed, source);

    // Memory.
    let resident = match option {
        IndexOption::Exact => figures.of("disk.exact", key, "field embedding")?.value * scale,
        IndexOption::Hnsw => figures.bytes("offheap.vec", key) * scale + graph,
        _ => (figures.bytes("offheap.veq", key) + figures.bytes("offheap.veb", key)) * scale + graph,
    };
    let what = match option {
        IndexOption::Exact => "memory for the vectors, a document",
        _ => "memory for vectors and graph, a document",
    };
    lines.add("memory_a_document", what, (resident, "B"), basis, &store.source);
    let memory = lines.add("memory_all", "  all copies", (resident * n * copies, "B"), Scaled, &store.source);

    // Shards and segments.
    let shards = (primary / SHARD_BYTES).max(n / SHARD_DOCUMENTS).ceil().max(1.0);
    let source = "Elastic, \"Size your shards\": 50 GB and 200 million documents at most";
    lines.add("shards", "primary shards", (shards, "shards"), Assumed, source);
    let a_segment = (SEGMENT_BYTES / a_document).min(n / shards).max(1.0);
    let segments = (n / a_segment).ceil();
    let source = "index.merge.policy.max_merged_segment = 5 GB, the server's default";
    lines.add("segments", "segments", (segments, "segments"), Assumed, source);

    // Processors.
    let (a_query, source) = match option {
        IndexOption::Exact => {
            let row = figures.of("scan.cpu", "cosine", "script_score")?;
            (row.value / row.documents * n * scale, row.source.clone())
        }
        _ => knn(option, a_segment, segments, scale, figures)?,
    };
    let basis = if option == IndexOption::Exact { Scaled } else { Extrapolated };
    let what = match option {
        IndexOption::Exact => "a query by cosine".to_owned(),
        _ => format!("a query, {}", option.setting().replace('=', " ").replace(',', ", ")),
    };
    lines.add("core_ms_a_query", what, (a_query, "core-ms"), basis, source);
    let source = "busy for half of the time";
    let cores = a_query / 1e3 * wish.queries_per_second / LOAD;
    let what = format!("  {} queries/s", wish.queries_per_second);
    let cores = lines.add("cores", what, (cores, "cores"), Assumed, source);
    if option != IndexOption::Exact {
        let row = figures.of("knn.recall", key, &option.setting())?;
        let what = format!("  of the ten nearest it found in {} pictures", row.documents);
        lines.add("recall_measured", what, (row.value, ""), Measured, &row.source);
    }

    // Nodes.
    let cache = wish.memory_per_node - (wish.memory_per_node / 2.0).min(MOST_HEAP);
    let source = "Elastic's advice: half of the memory for the heap, 31 GB at most; the rest holds vectors";
    let by_memory = lines.add("nodes_by_memory", "nodes by memory", ((memory / cache).ceil(), "nodes"), Assumed, source);
    let source = "filled to 85 %, where the server stops putting shards on a node";
    let by_disk = (peak / FILLED / wish.disk_per_node).ceil();
    let by_disk = lines.add("nodes_by_disk", "nodes by disk", (by_disk, "nodes"), Assumed, source);
    let by_cores = (cores / f64::from(wish.cores_per_node)).ceil();
    let by_cores = lines.add("nodes_by_cores", "nodes by processors", (by_cores, "nodes"), Assumed, "cores above");
    let nodes = by_memory.max(by_disk).max(by_cores).max(copies);
    lines.add("nodes", "nodes", (nodes, "nodes"), Assumed, "the most of these, and one for each copy");

    // Loading.
    let (load, merge) = (figures.of("load.cpu", key, "until searchable")?, figures.of("merge.cpu", key, "to one segment")?);
    let hours = (load.value + merge.value) * n * copies / 3.6e6;
    let what = "loading and merging, all copies";
    lines.add("load_core_hours", what, (hours, "core-h"), Extrapolated, &load.source);
    Ok(Search { index_option: option, lines: lines.0 })
}

/// Core-milliseconds of a query over so many segments of so many documents, and where that comes from.
fn knn(
    option: IndexOption,
    a_segment: f64,
    segments: f64,
    scale: f64,
    figures: &Figures,
) -> anyhow::Result<(f64, String)> {
    let rows = figures.series("knn.cpu", option.name(), &option.setting());
    let last = figures.of("knn.cpu", option.name(), &option.setting())?;
    let first = rows.first().unwrap_or(&last);
    // A search walks down a graph: each time there are e times as many documents it takes so much longer. Never less: what was
    // measured has noise.
    let steps = (last.documents / first.documents).ln();
    let slope = if steps > 0.0 { ((last.value - first.value) / steps).max(0.0) } else { 0.0 };
    let one = (last.value + slope * (a_segment / last.documents).ln()).max(first.value.min(last.value));
    Ok((one * segments * scale, last.source.clone()))
}

/// Bounds within which a plan means anything.
const MOST_PICTURES: f64 = 1e12;
const MOST_QUERIES: f64 = 1e7;

/// A number of pictures: `100000000` or `1e8`.
pub fn pictures(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    if number.fract() != 0.0 || !(1.0..=MOST_PICTURES).contains(&number) {
        return Err(format!("a whole number from 1 to {MOST_PICTURES:e} is wanted, such as 1e8"));
    }
    Ok(number)
}

/// A number of queries a second.
pub fn rate(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    if number <= 0.0 || number > MOST_QUERIES {
        return Err(format!("a number above 0, up to {MOST_QUERIES:e}, is wanted, such as 50"));
    }
    Ok(number)
}

/// Bytes, of `64GB`, `1.5TiB`; from 1 GB to 1 PB.
pub fn size(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 6] = [
        ("TiB", (1u64 << 40) as f64),
        ("GiB", (1u64 << 30) as f64),
        ("MiB", (1u64 << 20) as f64),
        ("TB", 1e12),
        ("GB", 1e9),
        ("MB", 1e6),
    ];
    let parsed = UNITS.into_iter().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit)?;
        Some(number(digits.trim_end()).ok()? * factor)
    });
    match parsed {
        Some(bytes) if (1e9..=1e15).contains(&bytes) => Ok(bytes),
        _ => Err("a size from 1GB to 1000TB is wanted, such as 64GB (MiB, GiB, TiB, MB, GB, TB)".to_owned()),
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("this is no number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn the_shipped_table_has_all_figures_and_each_has_a_source() {
        for precision in Precision::value_variants() {
            let wish = Wish { precision: *precision, ..wish(1e6) };
            let plan = plan(&wish, &shipped()).expect("all figures are there");
            assert_eq!(plan.search.len(), IndexOption::value_variants().len());
            let lines = plan.search.iter().flat_map(|search| &search.lines).chain(&plan.extract);
            for line in lines {
                assert!(!line.source.is_empty() && line.value.is_finite() && line.value >= 0.0, "{line:?}");
            }
            assert!(plan.extract.iter().any(|line| line.name == "core_hours"), "{precision}");
        }
        for row in shipped().0 {
            assert!(row.source.contains("make ") || row.source.contains("cargo bench"), "{row:?}");
        }
    }

    /// With figures as round as these the plan can be checked by hand.
    #[test]
    fn a_plan_of_round_figures_is_what_one_calculates_by_hand() {
        let table = "extract.cpu\tint8\tEPYC\t32\t36\tcore-ms\tmake a\n\
            table.bytes\t-\t-\t10\t2000\tB\tmake b\n\
            disk.store\tint8_hnsw\tprimary\t1000\t5000\tB\tmake c\n\
            disk.document\tint8_hnsw\tall other fields\t1000\t300\tB\tmake c\n\
            offheap.veq\tint8_hnsw\tbeside the heap\t1000\t500\tB\tmake c\n\
            offheap.vex\tint8_hnsw\tbeside the heap\t1000\t100\tB\tmake c\n\
            load.cpu\tint8_hnsw\tuntil searchable\t1000\t1\tcore-ms\tmake c\n\
            merge.cpu\tint8_hnsw\tto one segment\t1000\t2\tcore-ms\tmake c\n\
            knn.recall\tint8_hnsw\tcandidates=100\t1000\t0.9\tof 10\tmake c\n\
            knn.cpu\tint8_hnsw\tcandidates=100\t1000\t2\tcore-ms\tmake c\n";
        let figures = Figures::parse(table).expect("well-formed");
        let wish = Wish { index_options: vec![IndexOption::Int8Hnsw], ..wish(1e8) };
        let plan = plan(&wish, &figures).expect("all there");
        let extract = |name| plan.extract.iter().find(|line| line.name == name).map(|line| line.value);
        assert_eq!(extract("core_hours"), Some(1000.0));
        assert_eq!(extract("table_bytes"), Some(2e11));
        let value = |name: &str| plan.search[0].value(name).expect(name);
        assert_eq!(value("disk_primary"), 5e11);
        assert_eq!(value("disk_all"), 1e12);
        assert_eq!(value("disk_peak"), 3e12);
        assert_eq!(value("memory_all"), 600.0 * 2e8);
        assert_eq!(value("shards"), 10.0);
        // 5 GiB hold 1,073,741 documents; 100,000,000 of them are 94 segments.
        assert_eq!(value("segments"), 94.0);
        assert_eq!(value("core_ms_a_query"), 188.0);
        assert_eq!(value("cores"), 0.188 * 50.0 / 0.5);
        // 120 GB in 33 GB a node; 3 TB in 1.7 TB a node; 18.8 cores.
        assert_eq!(value("nodes_by_memory"), 4.0);
        assert_eq!(value("nodes_by_disk"), 2.0);
        assert_eq!(value("nodes_by_cores"), 2.0);
        assert_eq!(value("nodes"), 4.0);
        assert_eq!(value("load_core_hours"), 3.0 * 2e8 / 3.6e6);
    }

    #[test]
    fn half_the_numbers_take_less_than_all_but_more_than_half() {
        let half = Wish { dimensions: 256, ..wish(1e8) };
        let (half, whole) = (plan(&half, &shipped()).expect("plan"), plan(&wish(1e8), &shipped()).expect("plan"));
        for (half, whole) in half.search.iter().zip(&whole.search) {
            for name in ["disk_primary", "memory_all"] {
                let (half, whole) = (half.value(name).expect(name), whole.value(name).expect(name));
                assert!(half < whole && half >= whole / 2.0, "{name}: {half} {whole}");
            }
        }
    }

    proptest! {
        #[test]
        fn more_pictures_never_take_less(a in 1u64..10_000_000_000, b in 1u64..10_000_000_000, dimensions in 1u32..4096) {
            let of = |pictures: u64| {
                let wish = Wish { dimensions, ..wish(pictures as f64) };
                plan(&wish, &shipped()).expect("plan")
            };
            let (fewer, more) = (of(a.min(b)), of(a.max(b)));
            for (fewer, more) in fewer.search.iter().zip(&more.search) {
                for (fewer, more) in fewer.lines.iter().zip(&more.lines) {
                    prop_assert_eq!(fewer.name, more.name);
                    prop_assert!(fewer.value <= more.value, "{:?} {:?}", fewer, more);
                }
            }
            for (fewer, more) in fewer.extract.iter().zip(&more.extract) {
                prop_assert!(fewer.value <= more.value, "{:?} {:?}", fewer, more);
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic_or_pass_nonsense(text in "[-+0-9.eEinfNaGTB]{0,12}") {
            for number in [pictures(&text), rate(&text), size(&text)].into_iter().flatten() {
                prop_assert!(number > 0.0 && number.is_finite());
            }
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["0", "-1", "NaN", "inf", "1.5", "1e13", "", "many"] {
            pictures(text).expect_err(text);
        }
        for text in ["0", "-0.5", "NaN", "inf", "1e8"] {
            rate(text).expect_err(text);
        }
        for text in ["64", "GB", "0GB", "-64GB", "NaNGB", "1MB", "2000TB"] {
            size(text).expect_err(text);
        }
        assert_eq!((pictures("1e8"), rate("0.5"), size("64 GB")), (Ok(1e8), Ok(0.5), Ok(64e9)));
    }
}
