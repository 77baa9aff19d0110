//! From an engine's answers to a report: what is counted, what is left out, what is said.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use imagedex::engines::flat::Flat;
use imagedex::engines::{EngineError, Hit, Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::decode::{Failure, Picture};
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::evaluate::{
    self, EvaluateError, EvaluateOptions, Evaluation, Mode, QueryCounts, QueryState, Sameness, Space,
    read_per_query, write_per_query,
};
use imagedex::stages::report::{
    self, Exporter, Markdown, Pictures, ReportError, RunRecord, RunReport, Summary, Terminal,
};
use imagedex::stages::scan::Split;
use imagedex::stats::{Books, StageStats};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

/// `(id, label, vector)`; an empty label is none. The bytes' hash is the id without what follows a `#`, so that
/// `cat/1#copy` has the bytes of `cat/1`.
type Row<'a> = (&'a str, &'a str, [f32; 2]);

const GALLERY: [Row; 6] = [
    ("cat/1", "cat", [1.0, 0.0]),
    ("cat/2", "cat", [0.8, 0.6]),
    ("cat/3", "cat", [0.0, 1.0]),
    ("dog/1", "dog", [0.96, 0.28]),
    ("dog/2", "dog", [0.6, 0.8]),
    ("stray", "", [0.28, 0.96]),
];

fn batch(rows: &[Row], split: Split) -> EmbeddingBatch {
    let picture = |(id, label, _): &Row| Picture {
        id: (*id).to_owned(),
        split,
        label: (!label.is_empty()).then(|| (*label).to_owned()),
        sha256: id.split('#').next().unwrap_or_default().to_owned(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 0,
        height: 0,
        format: "png".to_owned(),
    };
    EmbeddingBatch {
        pictures: rows.iter().map(picture).collect(),
        dim: 2,
        vectors: rows.iter().flat_map(|(_, _, vector)| *vector).collect(),
        norms: (1..=rows.len()).map(|i| i as f32).collect(),
    }
}

fn flat(gallery: &EmbeddingBatch) -> Flat {
    let mut flat = Flat::new(true);
    flat.create(gallery.dim).expect("create");
    flat.upsert(gallery).expect("upsert");
    flat.commit().expect("commit");
    flat
}

fn options(modes: &[Mode]) -> EvaluateOptions {
    EvaluateOptions {
        ks: vec![3, 1, 2, 1],
        modes: modes.to_vec(),
        timing: false,
        ..EvaluateOptions::default()
    }
}

fn evaluate(gallery: &[Row], queries: &[Row], modes: &[Mode]) -> Evaluation {
    let gallery = batch(gallery, Split::Gallery);
    let index = flat(&gallery);
    evaluate::evaluate(&index, &gallery, &batch(queries, Split::Query), &options(modes)).expect("evaluated")
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} for {b}");
}

#[test]
fn held_out_queries_by_hand() {
    // By cosine "cat/q" sees cat/1, dog/1, cat/2, dog/2, stray, cat/3; "dog/q" sees the same from dog/2 on.
    let queries = [
        ("cat/q", "cat", [1.0, 0.0]),
        ("dog/q", "dog", [0.6, 0.8]),
        ("owl/q", "owl", [1.0, 0.0]),
        ("who", "", [1.0, 0.0]),
    ];
    let evaluation = evaluate(&GALLERY, &queries, &[Mode::HeldOut]);
    assert_eq!(evaluation.ks, [1, 2, 3]);
    assert_eq!(
        (evaluation.gallery.pictures, evaluation.gallery.labelled, evaluation.gallery.classes),
        (6, 5, 2)
    );
    let mode = &evaluation.modes[0];
    assert_eq!(
        mode.queries,
        QueryCounts {
            total: 4,
            evaluated: 2,
            unanswerable: 1,
            unlabelled: 1,
            with_copies: 0,
            copies_removed: 0
        }
    );
    assert_eq!((mode.unanswerable[0].id.as_str(), mode.unanswerable[0].label.as_str()), ("owl/q", "owl"));
    let cosine = &mode.metrics[0];
    assert_eq!((cosine.metric, cosine.depth), (Metric::Cosine, 6));
    // cat/q: ranks 1, 3, 6 of three relevant. dog/q: cosines dog/2 1, cat/2 .96, stray .936, cat/3 .8, dog/1 .8, cat/1 .6;
    // cat/3 and dog/1 both 0.8 up to rounding, so rank 4 or 5.
    let cat = &cosine.classes[0];
    assert_eq!((cat.label.as_str(), cat.queries, cat.gallery), ("cat", 1, 3));
    close(cat.measures.ap, (1.0 + 2.0 / 3.0 + 3.0 / 6.0) / 3.0);
    close(cat.measures.ap_at_r, (1.0 + 2.0 / 3.0) / 3.0);
    close(cat.measures.r_precision, 2.0 / 3.0);
    close(cat.measures.at(2).expect("cut-off").precision, 0.5);
    close(cat.measures.at(2).expect("cut-off").recall, 1.0 / 3.0);
    close(cat.measures.at(2).expect("cut-off").recall_ceiling, 2.0 / 3.0);
    let micro = cosine.micro.as_ref().expect("two queries");
    let by_class = cosine.macro_.as_ref().expect("two classes");
    close(micro.ap, (cat.measures.ap + cosine.classes[1].measures.ap) / 2.0);
    close(by_class.ap, micro.ap);
    close(cosine.micro_with_unanswerable.as_ref().expect("three queries").ap, micro.ap * 2.0 / 3.0);
    close(micro.rr, 1.0);
    assert!(
        cosine
            .engine_recall
            .iter()
            .all(|recall| recall.mean == 1.0 && recall.worst == 1.0 && recall.queries == 4)
    );
}

#[test]
fn classes_weigh_the_same_in_the_macro_mean() {
    let queries = [
        ("cat/a", "cat", [1.0, 0.0]),
        ("cat/b", "cat", [1.0, 0.01]),
        ("cat/c", "cat", [1.0, 0.02]),
        ("dog/a", "dog", [0.0, 1.0]),
    ];
    let evaluation = evaluate(&GALLERY, &queries, &[Mode::HeldOut]);
    let cosine = &evaluation.modes[0].metrics[0];
    let [cat, dog] = &cosine.classes[..] else { panic!("two classes") };
    assert_eq!((cat.queries, dog.queries), (3, 1));
    close(cosine.macro_.as_ref().expect("classes").rr, (cat.measures.rr + dog.measures.rr) / 2.0);
    close(cosine.micro.as_ref().expect("queries").rr, (3.0 * cat.measures.rr + dog.measures.rr) / 4.0);
    assert_ne!(cat.measures.rr, dog.measures.rr);
}

#[test]
fn a_query_never_finds_itself_whatever_its_name() {
    let mut gallery = GALLERY.to_vec();
    gallery.push(("other/name", "cat", [1.0, 0.0]));
    let mut queries = batch(&[("cat/q", "cat", [1.0, 0.0]), ("cat/1", "cat", [0.0, 1.0])], Split::Query);
    queries.pictures[0].sha256 = "other/name".to_owned();
    queries.pictures[1].sha256 = "different bytes, same name".to_owned();
    let gallery = batch(&gallery, Split::Gallery);
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options(&[Mode::HeldOut]))
        .expect("evaluated");
    let mode = &evaluation.modes[0];
    assert_eq!((mode.queries.with_copies, mode.queries.copies_removed), (1, 1));
    let rows: Vec<_> = evaluation.per_query.iter().filter(|row| row.metric == Metric::Cosine).collect();
    assert_eq!((rows[0].query.as_str(), rows[0].relevant, rows[0].excluded), ("cat/1", 4, 0));
    assert_eq!((rows[1].query.as_str(), rows[1].relevant, rows[1].excluded), ("cat/q", 3, 1));
    assert_eq!(
        rows[1].top.iter().map(|hit| hit.id.as_str()).collect::<Vec<_>>(),
        ["cat/1", "dog/1", "cat/2"]
    );
}

#[test]
fn leave_one_out_takes_the_picture_and_its_copies_out() {
    let mut gallery = GALLERY.to_vec();
    gallery.push(("cat/1#copy", "cat", [1.0, 0.0]));
    gallery.push(("owl/only", "owl", [0.5, 0.5]));
    let evaluation = evaluate(&gallery, &[], &[Mode::LeaveOneOut]);
    let mode = &evaluation.modes[0];
    assert_eq!(
        mode.queries,
        QueryCounts {
            total: 8,
            evaluated: 6,
            unanswerable: 1,
            unlabelled: 1,
            with_copies: 2,
            copies_removed: 2
        }
    );
    assert_eq!(mode.unanswerable[0].id, "owl/only");
    for row in &evaluation.per_query {
        assert!(row.top.iter().all(|hit| hit.id != row.query), "{row:?}");
        assert!(
            !row.query.starts_with("cat/1") || row.top.iter().all(|hit| !hit.id.starts_with("cat/1")),
            "{row:?}"
        );
    }
    let of_state = |state| evaluation.per_query.iter().filter(|row| row.state == state).count();
    assert_eq!((of_state(QueryState::Evaluated), of_state(QueryState::Unlabelled)), (24, 4));
}

#[test]
fn ties_across_rank_k_are_counted_with_their_range() {
    // cat/1, cat/2 and dog/1 are one point: which two come first is up to their ids.
    let gallery = [
        ("cat/1", "cat", [1.0, 0.0]),
        ("cat/2", "cat", [1.0, 0.0]),
        ("dog/1", "dog", [1.0, 0.0]),
        ("dog/2", "dog", [0.0, 1.0]),
    ];
    let evaluation = evaluate(&gallery, &[("q", "dog", [1.0, 0.0])], &[Mode::HeldOut]);
    for metric in &evaluation.modes[0].metrics {
        let [one, two, three] = &metric.ties[..] else { panic!("three cut-offs") };
        assert_eq!((one.queries, two.queries, three.queries), (1, 1, 0), "{}", metric.metric);
        close(two.hit.worst, 0.0);
        close(two.hit.expected, 2.0 / 3.0);
        close(two.precision.expected, 1.0 / 3.0);
        close(two.precision.best, 0.5);
        close(three.precision.expected, 1.0 / 3.0);
        close(metric.micro.as_ref().expect("one query").at(2).expect("cut-off").hit, 0.0);
    }
}

#[test]
fn on_vectors_of_length_one_three_metrics_rank_alike() {
    let unit = |mut batch: EmbeddingBatch| {
        for (vector, norm) in batch.vectors.chunks_exact_mut(batch.dim).zip(&mut batch.norms) {
            *norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= *norm);
        }
        batch
    };
    let (gallery, queries) = (unit(many(300, Split::Gallery)), unit(many(60, Split::Query)));
    let options = EvaluateOptions { ks: vec![1, 10], ..options(&[Mode::HeldOut]) };
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options).expect("evaluated");
    let groups = &evaluation.modes[0].same_ranking;
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].metrics, [Metric::Cosine, Metric::DotProduct, Metric::L2]);
    assert_eq!((groups[0].queries, groups[0].depth), (60, 50));
    let text = markdown(&RunReport::new("x", json!({}), vec![evaluation]));
    assert!(text.contains("- Same ranking: cosine, dot_product, l2 put the same pictures"), "{text}");
    let verdict = text.lines().find(|line| line.starts_with("**")).expect("a verdict");
    assert_eq!(
        verdict,
        "**cosine, dot_product, l2 rank alike and have the highest MAP, 0.4323 (n = 58, 95 % 0.3821 to 0.4800); \
         better beyond noise than l1 (by 0.1175, p < 0.001).**"
    );

    // With their raw lengths they do not.
    let (gallery, queries) = (Space::Raw.of(&gallery), Space::Raw.of(&queries));
    let options = EvaluateOptions { space: Space::Raw, ..options };
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options).expect("evaluated");
    assert_eq!((evaluation.space, evaluation.modes[0].same_ranking.len()), (Space::Raw, 0));
}

/// Hundreds of pictures in ten classes, with ties and copies.
fn many(rows: usize, split: Split) -> EmbeddingBatch {
    let dim = 24;
    let mut state = 11 + split as u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut all = EmbeddingBatch { dim, ..EmbeddingBatch::default() };
    for i in 0..rows {
        let class = i % 10;
        let mut vector: Vec<f32> = (0..dim).map(|d| unit() + if d == class { 1.0 } else { 0.0 }).collect();
        if i % 13 == 7 {
            vector = all.vector(i / 2).to_vec();
        }
        all.vectors.extend(vector);
        all.norms.push(1.0);
        all.pictures.push(Picture {
            id: format!("{}/{i:04}", split.name()),
            split,
            label: (i % 31 != 5).then(|| format!("class {class}")),
            sha256: if i % 40 == 3 { "shared".to_owned() } else { format!("{}{i}", split.name()) },
            pixel_sha256: String::new(),
            dhash: 0,
            width: 0,
            height: 0,
            format: "png".to_owned(),
        });
    }
    all
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_order_of_pictures() {
    let (gallery, queries) = (many(400, Split::Gallery), many(90, Split::Query));
    let reversed = |batch: &EmbeddingBatch| {
        let mut reversed = EmbeddingBatch { dim: batch.dim, ..EmbeddingBatch::default() };
        for i in (0..batch.len()).rev() {
            reversed.pictures.push(batch.pictures[i].clone());
            reversed.vectors.extend(batch.vector(i));
            reversed.norms.push(batch.norms[i]);
        }
        reversed
    };
    let run = |threads: usize, gallery: &EmbeddingBatch, queries: &EmbeddingBatch| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let options = options(&[Mode::HeldOut, Mode::LeaveOneOut]);
        let evaluation = pool
            .install(|| evaluate::evaluate(&flat(gallery), gallery, queries, &options))
            .expect("evaluated");
        let mut summary = Vec::new();
        let report = RunReport::new("many", json!({}), vec![evaluation.clone()]);
        Summary.write(&report, &mut summary).expect("written");
        (summary, evaluation.per_query)
    };
    let one = run(1, &gallery, &queries);
    assert!(one == run(2, &gallery, &queries), "two threads");
    assert!(one == run(3, &reversed(&gallery), &reversed(&queries)), "reversed");
}

/// An engine that answers wrongly in a way of choice.
struct Faulty<F: Fn(Vec<Hit>) -> Vec<Hit>> {
    flat: Flat,
    fault: F,
    most_asked: AtomicUsize,
}

impl<F: Fn(Vec<Hit>) -> Vec<Hit>> Searcher for Faulty<F> {
    fn name(&self) -> &str {
        "faulty"
    }
    fn supports(&self, metric: Metric) -> bool {
        metric != Metric::L1
    }
    fn is_exact(&self) -> bool {
        false
    }
    fn search(&self, query: &Query) -> Result<Vec<Hit>, EngineError> {
        self.most_asked.fetch_max(query.k, Ordering::Relaxed);
        Ok((self.fault)(self.flat.search(query)?))
    }
}

fn with_fault(fault: impl Fn(Vec<Hit>) -> Vec<Hit>) -> (Result<Evaluation, EvaluateError>, usize) {
    let gallery = batch(&GALLERY, Split::Gallery);
    let index = Faulty { flat: flat(&gallery), fault, most_asked: AtomicUsize::new(0) };
    let queries = batch(&[("q", "cat", [1.0, 0.0])], Split::Query);
    let options = EvaluateOptions { ks: vec![1, 2], ..options(&[Mode::HeldOut]) };
    let evaluation = evaluate::evaluate(&index, &gallery, &queries, &options);
    (evaluation, index.most_asked.into_inner())
}

#[test]
fn an_engine_that_misses_the_nearest_is_found_out() {
    let (evaluation, most_asked) = with_fault(|hits| hits.into_iter().skip(1).collect());
    let evaluation = evaluation.expect("evaluated");
    assert_eq!(evaluation.unsupported, [Metric::L1]);
    let cosine = &evaluation.modes[0].metrics[0];
    let means: Vec<f64> = cosine.engine_recall.iter().map(|recall| recall.mean).collect();
    assert_eq!(means, [0.0, 0.5]);
    // An approximate engine is asked for what users ask: two, and one to see ties.
    assert_eq!((cosine.depth, most_asked), (3, 3));
    let text = markdown(&RunReport::new("x", json!({}), vec![evaluation]));
    assert!(text.contains("cosine: engine recall against exact search 0.0000 at 1"), "{text}");
    assert!(text.contains("cosine: MAP and MRR are over the first 3 hits."), "{text}");
    assert!(text.contains("Not measured, since the engine does not have them: l1."), "{text}");
}

#[test]
fn repeated_hits_count_once() {
    let (evaluation, _) = with_fault(|hits| hits.iter().flat_map(|hit| [hit.clone(), hit.clone()]).collect());
    let evaluation = evaluation.expect("evaluated");
    let cosine = &evaluation.modes[0].metrics[0];
    assert_eq!(cosine.repeated_hits, 3);
    assert_eq!(cosine.engine_recall.iter().map(|recall| recall.mean).collect::<Vec<_>>(), [1.0, 0.5]);
    close(cosine.micro.as_ref().expect("one query").at(2).expect("cut-off").precision, 0.5);
}

#[test]
fn what_cannot_be_measured_is_one_clear_error() {
    let (evaluation, _) = with_fault(|_| vec![Hit { id: "old/picture".to_owned(), score: 1.0 }]);
    let message = evaluation.expect_err("unknown").to_string();
    assert_eq!(
        message,
        "engine faulty returned old/picture, which is not in the gallery: load the gallery again"
    );

    let (gallery, queries) =
        (batch(&GALLERY, Split::Gallery), batch(&[("q", "cat", [1.0, 0.0])], Split::Query));
    let index = flat(&gallery);
    let empty = EmbeddingBatch::default();
    let options = options(&[Mode::HeldOut]);
    let refused = |gallery: &EmbeddingBatch, queries: &EmbeddingBatch, options: EvaluateOptions| {
        evaluate::evaluate(&index, gallery, queries, &options).expect_err("refused").to_string()
    };
    assert_eq!(
        refused(&empty, &queries, options.clone()),
        "the gallery is empty: there is nothing to search in; check input.gallery"
    );
    assert_eq!(
        refused(&gallery, &empty, options.clone()),
        "there are no query pictures: set input.queries, or evaluate.modes = [\"leave_one_out\"]"
    );
    assert_eq!(
        refused(&gallery, &queries, EvaluateOptions { ks: vec![5, 0], ..options.clone() }),
        "evaluate.k holds 0: a cut-off is at least 1"
    );
    assert_eq!(
        refused(&gallery, &queries, EvaluateOptions { ks: vec![], ..options.clone() }),
        "no k to evaluate: name at least one in evaluate.k"
    );
    assert_eq!(
        refused(&gallery, &queries, EvaluateOptions { metrics: vec![], ..options.clone() }),
        "no metrics to evaluate: name at least one in evaluate.metrics"
    );
    let mut longer = queries.clone();
    (longer.dim, longer.vectors) = (3, vec![1.0, 0.0, 0.0]);
    assert!(
        refused(&gallery, &longer, options.clone())
            .starts_with("the queries' vectors have 3 numbers, the gallery's 2")
    );
    let twice = batch(&[GALLERY[0], GALLERY[0]], Split::Gallery);
    assert_eq!(
        refused(&twice, &queries, options),
        "gallery picture cat/1 is there twice: ids must be unique"
    );
}

#[test]
fn without_answerable_queries_there_are_counts_and_no_figures() {
    let evaluation = evaluate(&GALLERY, &[("q", "owl", [1.0, 0.0]), ("p", "", [1.0, 0.0])], &[Mode::HeldOut]);
    let mode = &evaluation.modes[0];
    assert_eq!((mode.queries.evaluated, mode.metrics[0].micro.as_ref()), (0, None));
    let text = markdown(&RunReport::new("x", json!({}), vec![evaluation]));
    assert!(text.contains("**No query could be evaluated"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
}

/// Whatever the pictures are like, each figure is a number or is said not to be there, in every format.
#[test]
fn odd_collections_have_reports_without_nonsense() {
    let twins: Vec<Row> = ["a/1", "a/2#a/1", "b/1", "b/2"].map(|id| (id, &id[..1], [0.6, 0.8])).to_vec();
    let of = |label: &'static str| move |id: &'static str| -> Row<'static> { (id, label, [0.6, 0.8]) };
    let zeros: Vec<Row> = vec![("a/1", "a", [0.0, 0.0]), ("a/2", "a", [0.0, 0.0]), ("b/1", "b", [0.0, 0.0])];
    let cat_query = ("q", "cat", [0.9, 0.1]);
    let unlabelled: Vec<Row> = vec![("1", "", [1.0, 0.0]), ("2", "cat", [0.0, 1.0]), ("3", "", [0.6, 0.8])];
    let cases: [(&str, Vec<Row>, Vec<Row>); 9] = [
        ("one query", GALLERY.to_vec(), vec![cat_query]),
        ("one class", ["c/1", "c/2", "c/3"].map(of("c")).to_vec(), ["q/1", "q/2"].map(of("c")).to_vec()),
        ("one picture", vec![GALLERY[0]], vec![cat_query]),
        ("all alike", twins.clone(), ["q/1", "q/2"].map(of("a")).to_vec()),
        ("queries are the gallery", GALLERY.to_vec(), GALLERY.to_vec()),
        ("vectors of zeros", zeros, vec![("q", "a", [0.0, 0.0])]),
        ("labels missing for some", unlabelled, vec![("q", "", [1.0, 0.0]), ("p", "cat", [1.0, 0.0])]),
        ("nothing to find", GALLERY.to_vec(), vec![("q", "owl", [1.0, 0.0])]),
        (
            "one picture under two labels",
            vec![("a/1", "a", [1.0, 0.0]), ("a/1#b", "b", [1.0, 0.0]), ("b/2", "b", [0.0, 1.0])],
            vec![("q", "a", [0.8, 0.6])],
        ),
    ];
    for (case, gallery, queries) in cases {
        let (gallery, queries) = (batch(&gallery, Split::Gallery), batch(&queries, Split::Query));
        let options = EvaluateOptions {
            // More than any of these galleries holds.
            ks: vec![1, 50],
            modes: vec![Mode::HeldOut, Mode::LeaveOneOut],
            ..EvaluateOptions::default()
        };
        let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options)
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        if case == "one picture under two labels" {
            assert_eq!(evaluation.label_errors.len(), 1);
        }
        let report = RunReport::new(case, json!({}), vec![evaluation]);
        let pictures = Pictures { gallery: Path::new("nowhere"), queries: None, images: None, max_pixels: 1 };
        let html = report::Html { pictures };
        let exporters: [&dyn Exporter; 5] = [&Summary, &Markdown, &Terminal, &html, &report::Junit];
        for exporter in exporters {
            let mut text = Vec::new();
            exporter.write(&report, &mut text).unwrap_or_else(|error| panic!("{case}: {error}"));
            let text = String::from_utf8(text).expect("UTF-8");
            let words = text.split(|c: char| !c.is_alphanumeric());
            for word in words {
                assert!(!["NaN", "nan", "inf"].contains(&word), "{case}: {word} in\n{text}");
            }
        }
        let mut summary = Vec::new();
        Summary.write(&report, &mut summary).expect("written");
        let found: RunReport =
            serde_json::from_slice(&summary).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(found.evaluations[0].modes.len(), 2, "{case}");
    }
}

#[test]
fn searches_are_timed_apart_from_the_results() {
    let gallery = batch(&GALLERY, Split::Gallery);
    let queries = batch(&[("q", "cat", [1.0, 0.0])], Split::Query);
    let options = EvaluateOptions { timing: true, ..options(&[Mode::HeldOut]) };
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options).expect("evaluated");
    assert_eq!(evaluation.timings.len(), 4);
    assert_eq!((evaluation.timings[0].k, evaluation.timings[0].queries), (3, 1));
    let report = RunReport::new("x", json!({}), vec![evaluation]);
    assert_eq!((report.measured.search.len(), report.evaluations[0].timings.len()), (4, 0));
    assert!(markdown(&report).contains("## Search times\n\nFirst 3 hits, 1 query timed"));
}

fn markdown(report: &RunReport) -> String {
    let mut text = Vec::new();
    Markdown.write(report, &mut text).expect("written");
    String::from_utf8(text).expect("UTF-8")
}

fn full_report() -> RunReport {
    let queries =
        [("cat/q", "cat", [1.0, 0.0]), ("dog/q", "dog", [0.6, 0.8]), ("a|b\n<b>", "@owl", [1.0, 0.0])];
    let evaluation = evaluate(&GALLERY, &queries, &[Mode::HeldOut]);
    let books = Books { scanned: 10, embedded: 4, reused: 5, unchanged: 5, failed: 1, stored: 9, deleted: 0 };
    let failure = Failure {
        path: "cat/broken.jpg".to_owned(),
        split: Split::Gallery,
        stage: "decode".to_owned(),
        kind: "truncated".to_owned(),
        reason: "the file ends early".to_owned(),
    };
    let stage =
        StageStats { stage: "decode".to_owned(), items_in: 5, items_out: 4, bytes: 2_000_000, seconds: 0.5 };
    let provenance = json!({ "model": "vgg16", "version": "0.1.0" });
    RunReport::new("shop", provenance, vec![evaluation]).with_run(books, &[failure], vec![stage])
}

#[test]
fn the_markdown_report() {
    insta::assert_snapshot!(markdown(&full_report()));
}

#[test]
fn the_terminal_report() {
    let mut text = Vec::new();
    Terminal.write(&full_report(), &mut text).expect("written");
    insta::assert_snapshot!(String::from_utf8(text).expect("UTF-8"));
}

#[test]
fn summary_json_is_the_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("summary.json");
    let written = full_report();
    report::export(&written, &Summary, &path).expect("written");
    let read = RunReport::read(&path).expect("read");
    assert_eq!((&read.name, &read.books, &read.failures), (&written.name, &written.books, &written.failures));
    let (mode, written_mode) = (&read.evaluations[0].modes[0], &written.evaluations[0].modes[0]);
    assert_eq!((mode.queries, &mode.unanswerable), (written_mode.queries, &written_mode.unanswerable));
    assert_eq!(markdown(&read), markdown(&written));

    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replace("\"schema_version\": 1", "\"schema_version\": 7")).expect("written");
    assert!(matches!(RunReport::read(&path), Err(ReportError::Schema { found: 7, .. })));
    std::fs::write(&path, "{").expect("written");
    assert!(matches!(RunReport::read(&path), Err(ReportError::Read { .. })));
    assert!(matches!(RunReport::read(&folder.path().join("none")), Err(ReportError::Read { .. })));
    let nowhere = folder.path().join("no/such/folder/summary.json");
    assert!(matches!(report::export(&written, &Summary, &nowhere), Err(ReportError::Write { .. })));
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "no temporary file stays");
}

#[test]
fn run_json_says_how_the_run_went() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.json");
    let mut record = RunRecord::new("shop", 3, json!({ "model": "vgg16" }));
    record.books = Some(Books { scanned: 1, failed: 1, ..Books::default() });
    record.write(&path).expect("written");
    record.write(&path).expect("written over");
    let value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    assert_eq!((&value["exit_code"], &value["books"]["failed"]), (&json!(3), &json!(1)));
}

#[test]
fn per_query_rows_are_a_parquet_file() {
    let queries = [("cat/q", "cat", [1.0, 0.0]), ("owl/q", "owl", [1.0, 0.0])];
    let evaluation = evaluate(&GALLERY, &queries, &[Mode::HeldOut, Mode::LeaveOneOut]);
    assert_eq!(evaluation.per_query.len(), 4 * (2 + 6));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("per_query.parquet");
    write_per_query(&path, std::slice::from_ref(&evaluation)).expect("written");
    let file = std::fs::File::open(&path).expect("opened");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("a reader");
    let batches: Vec<_> = reader.map(|batch| batch.expect("a batch")).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), evaluation.per_query.len());
    let schema = batches[0].schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        names.join(" "),
        "mode engine metric query label state relevant excluded first_relevant_rank ap ap_at_r r_precision rr \
         hit_at_1 p_at_1 r_at_1 ndcg_at_1 hit_at_2 p_at_2 r_at_2 ndcg_at_2 hit_at_3 p_at_3 r_at_3 ndcg_at_3 \
         top_ids top_scores top_labels"
    );
    let ap = batches[0].column_by_name("ap").expect("ap");
    assert_eq!((ap.is_null(0), ap.is_null(1)), (false, true), "owl/q is not in the means");
    assert_eq!(read_per_query(&path).expect("read"), evaluation.per_query);
    write_per_query(&path, &[]).expect("no rows are a file too");
    assert!(read_per_query(&path).expect("read").is_empty());
}

/// Pictures with the signs that twins are known by.
fn signed(split: Split, rows: &[(&str, &str, &str, u64, [f32; 2])]) -> EmbeddingBatch {
    let mut batch = EmbeddingBatch { dim: 2, ..EmbeddingBatch::default() };
    for (id, label, pixels, dhash, vector) in rows {
        batch.vectors.extend(vector);
        batch.norms.push(1.0);
        batch.pictures.push(Picture {
            id: (*id).to_owned(),
            split,
            label: Some((*label).to_owned()),
            sha256: id.split('#').next().unwrap_or_default().to_owned(),
            pixel_sha256: (*pixels).to_owned(),
            dhash: *dhash,
            width: 8,
            height: 8,
            format: "png".to_owned(),
        });
    }
    batch
}

const FAR: u64 = 0xffff_0000_ffff_0000;

#[test]
fn twins_are_known_by_bytes_pixels_or_looks_and_taken_out_for_all_queries() {
    let gallery = signed(
        Split::Gallery,
        &[
            ("a#1", "cat", "", FAR, [1.0, 0.0]),
            ("b", "cat", "same pixels", FAR, [0.0, 1.0]),
            ("c", "cat", "", 0b111, [0.8, 0.6]),
            // Close in features alone, and in looks alone.
            ("d", "dog", "", FAR, [0.8, 0.6]),
            ("e", "cat", "", 0b1, [-1.0, 0.0]),
        ],
    );
    let queries = signed(
        Split::Query,
        &[
            ("a#2", "cat", "", 1 << 60, [1.0, 0.0]),
            ("q", "dog", "same pixels", !0, [0.6, 0.8]),
            ("r", "cat", "", 0, [0.8, 0.6]),
        ],
    );
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options(&[Mode::HeldOut]))
        .expect("evaluated");
    let mode = &evaluation.modes[0];
    let pairs: Vec<_> = mode
        .leakage
        .pairs
        .iter()
        .map(|pair| (pair.query.as_str(), pair.gallery.as_str(), pair.kind, pair.labels_differ))
        .collect();
    assert_eq!(
        pairs,
        [
            ("a#2", "a#1", Sameness::Bytes, false),
            ("q", "b", Sameness::Pixels, true),
            ("r", "c", Sameness::Near, false)
        ]
    );
    let counts: Vec<_> =
        mode.leakage.kinds.iter().map(|kind| (kind.kind, kind.queries, kind.gallery)).collect();
    assert_eq!(counts, [(Sameness::Bytes, 1, 1), (Sameness::Pixels, 1, 1), (Sameness::Near, 1, 1)]);
    let cosine = mode.metrics[0].leakage.as_ref().expect("with and without");
    // Without twins only "d", a dog, and "e", a cat behind it, are left.
    assert_eq!(cosine.all.queries, 3);
    assert_eq!(cosine.without_near.queries, 3);
    let micro = cosine.without_near.micro.as_ref().expect("means");
    assert!((micro.ap - (0.5 + 1.0 + 0.5) / 3.0).abs() < 1e-12, "{micro:?}");
    // The same pixels under "cat" and "dog".
    assert_eq!(evaluation.label_errors.len(), 1);
    assert_eq!(evaluation.label_errors[0].pictures, ["gallery/b", "query/q"]);
    let text = markdown(&RunReport::new("x", json!({}), vec![evaluation]));
    assert!(
        text.contains(
            "**Leakage.** In the gallery and among the queries: same bytes: 1 query, 1 gallery picture"
        ),
        "{text}"
    );
    assert!(text.contains("**Label errors**"), "{text}");
}

#[test]
fn leave_one_out_takes_out_the_twins_of_the_query_at_hand() {
    let gallery = signed(
        Split::Gallery,
        &[
            ("a", "cat", "", 0b1, [1.0, 0.0]),
            ("b", "cat", "", 0b11, [0.99, 0.141]),
            ("c", "dog", "", FAR, [0.6, 0.8]),
            ("d", "cat", "", !FAR, [0.0, 1.0]),
        ],
    );
    let evaluation = evaluate::evaluate(
        &flat(&gallery),
        &gallery,
        &EmbeddingBatch::default(),
        &options(&[Mode::LeaveOneOut]),
    )
    .expect("evaluated");
    let mode = &evaluation.modes[0];
    assert_eq!(mode.leakage.pairs_in_all, 1, "{:?}", mode.leakage);
    assert_eq!((mode.leakage.kinds[0].queries, mode.leakage.kinds[0].gallery), (2, 2));
    let cosine = mode.metrics[0].leakage.as_ref().expect("with and without");
    // "a" finds "c" first, then "d"; "b" the same; "d" finds "c", "b", "a".
    let micro = cosine.without_near.micro.as_ref().expect("means");
    assert!((micro.ap - (0.5 + 0.5 + (1.0 / 2.0 + 2.0 / 3.0) / 2.0) / 3.0).abs() < 1e-12, "{micro:?}");
}

#[test]
fn what_is_said_of_metrics_is_what_was_tested() {
    let (gallery, queries) = (many(400, Split::Gallery), many(90, Split::Query));
    let options = EvaluateOptions { timing: false, ..EvaluateOptions::default() };
    let evaluation = evaluate::evaluate(&flat(&gallery), &gallery, &queries, &options).expect("evaluated");
    let mode = &evaluation.modes[0];
    assert!(mode.comparisons.iter().all(|comparison| comparison.p <= comparison.p_holm));
    for metric in &mode.metrics {
        let (micro, intervals) =
            (metric.micro.as_ref().expect("means"), metric.intervals.as_ref().expect("intervals"));
        for measure in evaluate::Measure::all(&evaluation.ks) {
            let interval = intervals.interval(measure).expect("an interval");
            assert!(interval.contains(measure.of(micro).expect("a mean")), "{measure}: {interval:?}");
        }
        let confusion: usize = metric.confusion.iter().map(|confusion| confusion.queries).sum();
        assert_eq!(confusion, mode.queries.evaluated);
    }
    let text = markdown(&RunReport::new("x", json!({}), vec![evaluation]));
    assert!(text.contains("beyond noise"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}
