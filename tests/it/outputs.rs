//! What machines read of a run, read by the programs that are made for it: JUnit XML, Prometheus' text format, a GitHub step's
//! summary, and `summary.json` by its schema.

use std::path::{Path, PathBuf};
use std::process::Command;

use imagedex::engines::{Footprint, Searcher};
use imagedex::lock::WorkLock;
use imagedex::metric::Metric;
use imagedex::stages::decode::Failure;
use imagedex::stages::evaluate::{self, EvaluateOptions, Mode};
use imagedex::stages::gate::{Check, Fall, Rule, Verdict};
use imagedex::stages::report::{self, EngineFailure, Load, RunReport, SCHEMA_VERSION, Summary};
use imagedex::stages::scan::Split;
use imagedex::stats::{Books, LoadBooks, StageStats};
use serde_json::{Value, json};

use crate::readers::{python, run_python};
use crate::support::{Said, Shop, cache, imagedex, root, said};
use crate::trec::{flat, pictures};

/// Two classes of three pictures, each a query among the others.
fn shop(rest: &str) -> Shop {
    let shop = Shop::new();
    for seed in 0..6 {
        let class = if seed < 3 { "stripes" } else { "waves" };
        shop.picture(&format!("gallery/{class}/{seed}.png"), seed * 7 + 1);
    }
    shop.pipeline(&format!("{rest}\n[input]\ngallery = 'gallery'\n"));
    shop
}

fn run_with(shop: &Shop, setting: &str) -> Said {
    imagedex(["run".into(), shop.path("shop.toml").into_os_string(), "--set".into(), setting.into()])
}

fn summary(shop: &Shop) -> Value {
    serde_json::from_slice(&std::fs::read(shop.path("runs/shop/report/summary.json")).unwrap()).unwrap()
}

/// The samples of a metrics file.
struct Samples(Value);

impl Samples {
    fn of(python: &Path, file: &Path) -> Samples {
        Samples(run_python(python, "prometheus.py", &[file], Path::new("."), "").remove(0)["samples"].take())
    }

    /// Values of a metric whose samples have all these labels.
    fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let samples = self.0.as_array().unwrap().iter().filter(|sample| {
            sample[0] == name && labels.iter().all(|(label, value)| sample[1][label] == *value)
        });
        samples.map(|sample| sample[2].as_f64().unwrap()).collect()
    }

    #[track_caller]
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let values = self.values(name, labels);
        assert_eq!(values.len(), 1, "{name} {labels:?} in {}", self.0);
        values[0]
    }
}

#[test]
fn prometheus_hears_of_every_end_of_a_run() {
    let Some(python) = python() else { return };
    let name = "a \\ \"shop\"\nof two";
    let shop = shop(&format!(
        "name = {name:?}\nwork = 'runs/shop'\n[gate.cosine]\n'hit@10' = 1\n[report]\nprometheus = 'metrics/shop.prom'\n"
    ));
    shop.imagedex("run").exits(2).complains("metrics: there is no such folder; make it, or name the one");
    assert!(!shop.path("runs").exists(), "known before any work");
    let file = shop.path("metrics/shop.prom");
    std::fs::create_dir(shop.path("metrics")).unwrap();
    let ended_with = |code: i32| {
        let samples = Samples::of(&python, &file);
        assert_eq!(samples.value("imagedex_last_run_exit_code", &[("pipeline", name)]), f64::from(code));
        assert!(samples.value("imagedex_last_run_timestamp_seconds", &[("pipeline", name)]) > 1.7e9);
        assert!(samples.value("imagedex_run_duration_seconds", &[("pipeline", name)]) > 0.0);
        samples
    };

    shop.imagedex("run").exits(0);
    let samples = ended_with(0);
    let success = samples.value("imagedex_last_success_timestamp_seconds", &[]);
    assert_eq!(success, samples.value("imagedex_last_run_timestamp_seconds", &[]));
    let (books, summary) = (shop.run_json()["books"].clone(), summary(&shop));
    for outcome in ["embedded", "reused", "failed"] {
        assert_eq!(samples.value("imagedex_pictures", &[("outcome", outcome)]), books[outcome]);
    }
    assert_eq!(samples.values("imagedex_pictures", &[]).iter().sum::<f64>(), 6.0);
    assert_eq!(samples.value("imagedex_load_documents", &[("engine", "flat"), ("outcome", "indexed")]), 6.0);
    for (i, metric) in Metric::ALL.iter().enumerate() {
        let means = &summary["evaluations"][0]["modes"][0]["metrics"][i];
        let of = |measure| {
            let labels = [("metric", metric.name()), ("mode", "leave_one_out"), ("measure", measure)];
            samples.value("imagedex_measure", &labels)
        };
        assert_eq!(of("MAP"), means["micro"]["map"]);
        assert_eq!(of("nDCG@5"), means["micro"]["at"][1]["ndcg"]);
        assert_eq!(of("engine recall@10"), means["engine_recall"][2]["mean"]);
    }
    let gate = |samples: &Samples, result| samples.value("imagedex_gate_checks", &[("result", result)]);
    assert_eq!((gate(&samples, "passed"), gate(&samples, "failed")), (1.0, 0.0));

    // Long ago, so that a second that is the same cannot hide a mistake.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&format!(" {success}\n"), " 1000000000\n")).unwrap();
    let last_success = |samples: &Samples| samples.value("imagedex_last_success_timestamp_seconds", &[]);
    run_with(&shop, "gate.l1.R@1=0.9").exits(1);
    let samples = ended_with(1);
    assert_eq!((gate(&samples, "passed"), gate(&samples, "failed")), (1.0, 1.0));
    assert_eq!(last_success(&samples), 1e9);

    run_with(&shop, "input.gallery=nowhere").exits(2);
    let samples = ended_with(2);
    assert_eq!(samples.values("imagedex_pictures", &[]), [] as [f64; 0], "it got to none");
    assert_eq!(last_success(&samples), 1e9);

    std::fs::write(shop.path("gallery/waves/broken.png"), "no picture").unwrap();
    run_with(&shop, "input.max_failures=0").exits(3);
    let samples = ended_with(3);
    assert_eq!(samples.value("imagedex_pictures", &[("outcome", "failed")]), 1.0);

    // The model is started only for pictures that are new.
    shop.picture("gallery/waves/new.png", 99);
    let failed = run_with(&shop, "runtime.library=nowhere.so");
    assert_ne!(failed.code, 0);
    assert_eq!(last_success(&ended_with(failed.code)), 1e9);

    let lock = WorkLock::take(&shop.path("runs/shop")).unwrap();
    shop.imagedex("run").exits(75);
    assert_eq!(last_success(&ended_with(75)), 1e9);
    drop(lock);
    let left: Vec<_> = std::fs::read_dir(shop.path("metrics")).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
}

#[test]
fn ci_reads_the_gate_as_tests() {
    let Some(python) = python() else { return };
    let gate = "[gate.cosine]\n'R@1' = 0.9\n'hit@10' = 1\n";
    let shop = shop(&format!("name = \"a <shop> & \\u0001 'more'\"\nwork = 'runs/shop'\n{gate}"));
    shop.imagedex("run").exits(1);
    let file = shop.path("runs/shop/report/junit.xml");
    let read = || run_python(&python, "junit.py", &[&file], Path::new("."), "").remove(0);
    let junit = read();
    assert_eq!(junit["suites"], json!(["imagedex: a <shop> & \u{fffd} 'more'"]));
    assert_eq!(junit["properties"]["model"], "vgg16");
    let found = summary(&shop)["gate"]["checks"][0]["found"].as_f64().unwrap();
    let class = "a <shop> & \u{fffd} 'more'.flat.leave_one_out";
    assert_eq!(
        junit["tests"],
        json!([
            {
                "class": class, "name": "cosine R@1 at least 0.9", "result": ["Failure"],
                "message": [format!("flat leave_one_out cosine R@1 {found:.4} is below 0.9")],
            },
            { "class": class, "name": "cosine hit@10 at least 1", "result": [], "message": [] },
        ])
    );
    // `report` writes it again; without a gate there is nothing to pass.
    std::fs::remove_file(&file).unwrap();
    shop.imagedex("report").exits(0);
    assert_eq!(read(), junit);
    shop.pipeline("name = 'plain'\nwork = 'runs/shop'\n[input]\ngallery = 'gallery'\n");
    shop.imagedex("evaluate").exits(0);
    let tests = &read()["tests"];
    assert_eq!((tests.as_array().unwrap().len(), &tests[0]["result"]), (1, &json!(["Skipped"])), "{tests}");
}

#[test]
fn a_github_step_shows_the_report() {
    let shop = shop("");
    shop.imagedex("run").exits(0);
    let report_with = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imagedex"));
        command.arg("report").arg(shop.path("shop.toml"));
        command.env("IMAGEDEX_CACHE", cache()).env("GITHUB_STEP_SUMMARY", file);
        said(command.output().unwrap())
    };
    let markdown = std::fs::read_to_string(shop.path("runs/shop/report/report.md")).unwrap();
    let file = shop.path("step.md");
    std::fs::write(&file, "said before").unwrap();
    report_with(&file).exits(0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("said before\n{markdown}"));
    let folder = shop.path("gallery");
    report_with(&folder)
        .exits(0)
        .complains(&format!("GITHUB_STEP_SUMMARY: cannot append to {}", folder.display()))
        .complains("report.md");
    report_with(Path::new("")).exits(0);
}

#[test]
fn whole_rankings_are_written_where_they_are_asked_for() {
    let shop = shop("");
    shop.imagedex("run").exits(0);
    let trec = shop.path("runs/shop/report/trec");
    assert!(!trec.exists());
    run_with(&shop, "report.trec=true").exits(0).complains("TREC: 5 files");
    assert_eq!(std::fs::read_dir(&trec).unwrap().count(), 5);
    std::fs::remove_dir_all(&trec).unwrap();
    std::fs::write(&trec, "in the way").unwrap();
    run_with(&shop, "report.trec=true")
        .exits(4)
        .complains(&format!("cannot write {}", trec.display()))
        .complains("report.trec = false");
}

/// A report that has everything a report can have.
fn full_report() -> RunReport {
    let mut random = fastrand::Rng::with_seed(3);
    let gallery = pictures(&mut random, Split::Gallery, 40, &["a", "b", "c", ""]);
    let queries = pictures(&mut random, Split::Query, 20, &["a", "b", "c", "owl", ""]);
    let flat = flat(&gallery);
    let options =
        EvaluateOptions { modes: vec![Mode::HeldOut, Mode::LeaveOneOut], ..EvaluateOptions::default() };
    let evaluations = vec![evaluate::evaluate(&flat, &gallery, &queries, &options).unwrap()];
    let comparison = evaluations[0].modes[1].comparisons.first().cloned();
    let check = |rule, fall| Check {
        rule,
        engine: Some(flat.name().to_owned()),
        mode: Some(Mode::HeldOut),
        metric: Metric::L1,
        measure: "MAP".to_owned(),
        minimum: 0.5,
        found: Some(0.25),
        passed: false,
        fall,
    };
    let fall = Fall { from: 0.5, tolerated: 0.01, class: Some("a".to_owned()), queries: 9, comparison };
    let unmeasured =
        Check { engine: None, mode: None, found: None, passed: false, ..check(Rule::Minimum, None) };
    let checks = vec![
        check(Rule::Minimum, None),
        unmeasured,
        check(Rule::ExactEngine, None),
        check(Rule::Baseline, Some(fall)),
    ];
    let failure = Failure {
        path: "a.png".into(),
        split: Split::Gallery,
        stage: "decode".into(),
        kind: "corrupt".into(),
        reason: "torn".into(),
    };
    let stage = StageStats { stage: "scan".into(), items_in: 2, items_out: 1, bytes: 3, seconds: 0.5 };
    let books = LoadBooks { engine: "flat".into(), sent_what: "everything".into(), ..LoadBooks::default() };
    let load = Load { books, seconds: 0.5, footprint: Footprint { memory: Some(9), disk: None } };
    RunReport::new("full", json!({"model": "vgg16"}), evaluations)
        .with_run(Books::default(), &[failure], vec![stage])
        .with_loads(vec![load])
        .with_engine_failures(vec![EngineFailure { engine: "milvus".into(), reason: "it is down".into() }])
        .with_gate(Verdict { checks, incomparable: None })
}

/// A field of the report that docs/summary.schema.json lacks is an error here, and so is one that the report has no more. To add
/// one: its type and a sentence in `properties`, its name in `required` unless it may be left out.
#[test]
fn summaries_and_their_schema_say_the_same() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, report: &RunReport| -> PathBuf {
        let path = folder.path().join(name);
        report::export(report, &Summary, &path).unwrap();
        path
    };
    let full = write("full.json", &full_report());
    let empty = write("empty.json", &RunReport::new("empty", json!({}), Vec::new()));
    let shop = shop("");
    shop.imagedex("run").exits(0);
    let of_a_run = shop.path("runs/shop/report/summary.json");
    let schema = root().join("docs/summary.schema.json");
    let hold = |files: &[&Path]| {
        let arguments: Vec<&Path> = [schema.as_path()].into_iter().chain(files.iter().copied()).collect();
        run_python(&python, "json_schema.py", &arguments, Path::new("."), "").remove(0)
    };
    let held = hold(&[&full, &empty, &of_a_run]);
    assert_eq!(held["version"], SCHEMA_VERSION);
    assert_eq!(held["errors"], json!([]), "add, change or remove these fields in {}", schema.display());
    assert_eq!(held["unseen"], json!([]), "parts of the schema that no report has");

    // The schema is no rubber stamp.
    let good: Value = serde_json::from_slice(&std::fs::read(&full).unwrap()).unwrap();
    let metric = "/evaluations/0/modes/0/metrics/0";
    for (at, wrong, reason) in [
        ("/schema_version".to_owned(), json!(0), "was expected"),
        (format!("{metric}/metric"), json!("hamming"), "is not one of"),
        (format!("{metric}/micro/map"), json!(1.5), "greater than the maximum"),
        (format!("{metric}/micro/at/0"), json!({"k": 1}), "is a required property"),
        ("/books".to_owned(), json!({"fresh": 1}), "is not valid under any"),
        ("/measured/stages/0/seconds".to_owned(), json!(null), "is not of type"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(&at).unwrap() = wrong;
        let path = folder.path().join("bad.json");
        std::fs::write(&path, bad.to_string()).unwrap();
        let errors = hold(&[&path])["errors"].clone();
        assert!(errors.to_string().contains(reason), "{at}: {errors}");
    }
}
