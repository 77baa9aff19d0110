//! Other tools compute our measures from the TREC files that we write: `ir_measures`, which runs `trec_eval`'s own code
//! (tests/python/trec.py), on random rankings with all that makes them awkward. `parity` does the same on shop photos.

use std::path::{Path, PathBuf};

use imagedex::engines::flat::Flat;
use imagedex::engines::{EngineError, Hit, Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::evaluate::{self, EvaluateOptions, GalleryRows, Mode, write_per_query};
use imagedex::stages::report::trec::TrecFolder;
use imagedex::stages::report::{self, RunReport};
use imagedex::stages::scan::Split;
use serde_json::json;

use crate::readers::{python, run_python};

/// What [`agreement`] found.
#[derive(Debug, Default, PartialEq)]
pub struct Agreement {
    pub runs: usize,
    /// Runs without a query that could be evaluated; they have no files.
    pub empty: usize,
    pub queries: usize,
    /// Queries without a label or without a right answer, which are in no file.
    pub left_out: usize,
    /// Evaluated queries without a hit.
    pub unanswered: usize,
    /// Measures of queries that were compared.
    pub values: usize,
    /// The greatest difference of a query or of a mean.
    pub worst: f64,
}

/// Holds the measures of reports to those that `ir_measures` computes from their TREC files; nothing where there is no Python.
pub fn agreement(reports: &[PathBuf]) -> Option<Agreement> {
    let python = python()?;
    let reports: Vec<&Path> = reports.iter().map(PathBuf::as_path).collect();
    let mut all = Agreement::default();
    for run in run_python(&python, "trec.py", &reports, Path::new("."), "") {
        let count = |name: &str| run[name].as_u64().unwrap_or_default() as usize;
        all.runs += 1;
        all.queries += count("queries");
        all.left_out += count("left_out");
        if count("queries") == 0 {
            all.empty += 1;
            continue;
        }
        all.unanswered += count("unanswered");
        all.values += count("values");
        assert_eq!(run["misplaced"], 0, "{run}");
        for name in ["worst_query", "worst_mean"] {
            let worst = run[name].as_f64().unwrap_or(f64::INFINITY);
            assert!(worst < 1e-9, "{run}");
            all.worst = all.worst.max(worst);
        }
    }
    Some(all)
}

/// Answers as a poor engine might: nothing to some queries, to others a few hits, one of them twice.
struct Poor<'a>(&'a Flat);

impl Searcher for Poor<'_> {
    fn name(&self) -> &str {
        "poor/engine é"
    }

    fn supports(&self, metric: Metric) -> bool {
        self.0.supports(metric)
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        let mut hits = self.0.search(query)?;
        match query.vector.iter().map(|x| (x * 2.0) as usize).sum::<usize>() % 3 {
            0 => hits.clear(),
            1 => {
                hits.truncate(3);
                hits.extend(hits.first().cloned());
            }
            _ => {}
        }
        Ok(hits)
    }
}

/// Vectors from a coarse grid, so that most scores tie; labels of some; ids that a line of words cannot hold; bytes that are shared.
pub fn pictures(random: &mut fastrand::Rng, split: Split, count: usize, labels: &[&str]) -> EmbeddingBatch {
    let awkward = [" ", "%20", "\u{a0}", "ü", "\t", "中", "\u{1f}", ".", "#"];
    let picture = |i: usize, random: &mut fastrand::Rng| Picture {
        id: format!("{}{}{i}.jpg", awkward[random.usize(..awkward.len())], awkward[i % awkward.len()]),
        split,
        label: random.choice(labels).filter(|label| !label.is_empty()).map(|label| (*label).to_owned()),
        sha256: format!("{:064x}", random.u32(..60)),
        pixel_sha256: format!("{:064x}", random.u32(..90)),
        dhash: u64::from(random.u8(..4)) * 0x0001_0001_0001_0001,
        width: 1,
        height: 1,
        format: "png".to_owned(),
    };
    let pictures = (0..count).map(|i| picture(i, random)).collect();
    let vectors = (0..count * 3).map(|_| random.u32(..3) as f32 / 2.0).collect();
    EmbeddingBatch { pictures, dim: 3, vectors, norms: vec![1.0; count] }
}

/// An exact engine that holds them.
pub fn flat(gallery: &EmbeddingBatch) -> Flat {
    let mut flat = Flat::new(true);
    flat.create(gallery.dim).unwrap();
    flat.upsert(gallery).unwrap();
    flat.commit().unwrap();
    flat
}

/// Evaluates random pictures with two engines, and writes all that a run would.
fn write_report(seed: u64, folder: &Path) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (gallery_count, query_count) = (random.usize(2..30), random.usize(1..20));
    let gallery = pictures(&mut random, Split::Gallery, gallery_count, &["a", "b", "c", "only", ""]);
    // Every tenth time no query has a right answer.
    let asked: &[&str] = if seed % 10 == 9 { &["owl", ""] } else { &["a", "b", "c", "owl", ""] };
    let queries = pictures(&mut random, Split::Query, query_count, asked);
    let flat = flat(&gallery);
    let options = EvaluateOptions {
        ks: vec![1, 3, 50],
        modes: vec![Mode::HeldOut, Mode::LeaveOneOut],
        timing: false,
        ..EvaluateOptions::default()
    };
    let mut trec = TrecFolder::create(&folder.join("trec")).unwrap();
    // Both now and then; most of a report's time goes into intervals.
    let poor = Poor(&flat);
    let both: [&dyn Searcher; 2] = [&flat, &poor];
    let engines = match seed % 5 {
        0 => &both[..],
        1 | 2 => &both[..1],
        _ => &both[1..],
    };
    let evaluations: Vec<_> = engines
        .iter()
        .map(|engine| {
            evaluate::evaluate_into(*engine, GalleryRows::Held(&gallery), &queries, &options, Some(&mut trec))
                .unwrap()
        })
        .collect();
    trec.finish().unwrap();
    if seed == 0 {
        let alone = evaluate::evaluate(&flat, &gallery, &queries, &options).unwrap();
        assert_eq!(alone, evaluations[0], "who listens changes nothing");
    }
    write_per_query(&folder.join("per_query.parquet"), &evaluations).unwrap();
    let report = RunReport::new("random", json!({}), evaluations);
    report::export(&report, &report::Summary, &folder.join("summary.json")).unwrap();
}

#[test]
fn ir_measures_computes_our_measures_from_our_files() {
    let folder = tempfile::tempdir().unwrap();
    let reports: Vec<PathBuf> = (0..50).map(|seed| folder.path().join(seed.to_string())).collect();
    for (seed, report) in (0..).zip(&reports) {
        std::fs::create_dir(report).unwrap();
        write_report(seed, report);
    }
    let Some(found) = agreement(&reports) else { return };
    // 60 engines, 2 modes and 4 metrics.
    assert_eq!(found.runs, 480);
    assert!(found.empty >= 20, "{found:?}");
    assert!(found.queries > 2_500 && found.left_out > 500 && found.unanswered > 250, "{found:?}");
    // Four measures without a cut-off, four at each of three.
    assert_eq!(found.values, found.queries * 16, "{found:?}");
    eprintln!("{found:?}");
}
