//! Label measures on real shop photos against published ones (`../shared/data/grocery/README.md`, computed with Keras'
//! preprocessing and numpy), and the original's two commands on its own pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::es_node::Node;
use crate::support::{cache, imagedex, root, said, shared};
use crate::trec::agreement;

/// Micro means of a metric in a `summary.json`: P@1 and MAP.
fn figures(summary: &serde_json::Value, metric: &str) -> (f64, f64) {
    let metrics = summary["evaluations"][0]["modes"][0]["metrics"].as_array().expect("metrics");
    let found = metrics.iter().find(|row| row["metric"] == metric).expect("the metric");
    let micro = &found["micro"];
    let at = micro["at"].as_array().expect("cut-offs").iter().find(|at| at["k"] == 1).expect("k = 1");
    (at["precision"].as_f64().expect("P@1"), micro["map"].as_f64().expect("MAP"))
}

/// Runs `pipelines/grocery.toml` with one precision.
fn grocery(precision: &str) -> Option<serde_json::Value> {
    shared("grocery")?;
    Some(grocery_with(precision, &[]))
}

/// The same with other settings.
fn grocery_with(precision: &str, settings: &[String]) -> serde_json::Value {
    let work = tempfile::tempdir().expect("a temporary folder");
    grocery_in(work.path(), precision, settings)
}

/// The same in a folder that stays.
fn grocery_in(work: &Path, precision: &str, settings: &[String]) -> serde_json::Value {
    let file = root().join("pipelines/grocery.toml");
    let work_is = format!("work={}", work.display());
    let precision_is = format!("model.precision={precision}");
    let mut arguments = vec!["run".to_owned(), file.display().to_string()];
    for setting in [work_is, precision_is].iter().chain(settings) {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    imagedex(arguments).exits(0);
    let summary = std::fs::read(work.join("report/summary.json")).expect("summary.json");
    serde_json::from_slice(&summary).expect("JSON")
}

#[track_caller]
fn near(found: (f64, f64), expected: (f64, f64)) {
    let close = (found.0 - expected.0).abs() <= 0.01 && (found.1 - expected.1).abs() <= 0.01;
    assert!(close, "P@1 and MAP {found:?}, published {expected:?}");
}

#[test]
fn shop_photos_score_as_published_in_bf16() {
    // fp32 takes minutes and is checked picture by picture in golden_features; bf16 gives its figures at a tenth of the time.
    let Some(summary) = grocery("bf16") else { return };
    near(figures(&summary, "cosine"), (0.356, 0.243));
    near(figures(&summary, "l1"), (0.343, 0.228));
}

#[test]
fn shop_photos_score_as_published_in_int8_and_trec_eval_says_the_same() {
    if shared("grocery").is_none() {
        return;
    }
    let work = tempfile::tempdir().expect("a temporary folder");
    let summary = grocery_in(work.path(), "int8", &["report.trec=true".to_owned()]);
    near(figures(&summary, "cosine"), (0.356, 0.243));
    near(figures(&summary, "l1"), (0.343, 0.228));
    let Some(found) = agreement(&[work.path().join("report")]) else { return };
    // Of 405 queries and 4 metrics: four measures without a cut-off, four at each of three.
    assert_eq!((found.runs, found.queries, found.values), (4, 4 * 405, 4 * 405 * 16), "{found:?}");
}

/// The clean gallery of the shop photos, with every tenth query leaked into it: one half as it is, the other half saved again as
/// JPEG of quality 60. Says which queries leaked, and how.
fn leak(shop: &Path, gallery: &Path) -> BTreeMap<String, &'static str> {
    let pictures = |root: &Path| -> Vec<PathBuf> {
        let files =
            walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(|entry| entry.expect("an entry"));
        files.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
    };
    let place = |file: &Path| {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        file.to_owned()
    };
    let train = shop.join("dataset/train");
    for picture in pictures(&train) {
        let inside = picture.strip_prefix(&train).expect("inside");
        std::fs::copy(&picture, place(&gallery.join(inside))).expect("copied");
    }
    let test = shop.join("dataset/test");
    let mut leaked = BTreeMap::new();
    for (i, picture) in pictures(&test).iter().enumerate().filter(|(i, _)| i % 10 == 0) {
        let inside = picture.strip_prefix(&test).expect("inside");
        let copy = place(&gallery.join(inside).with_file_name(format!("leaked_{i}.jpg")));
        let kind = if i % 20 == 0 {
            std::fs::copy(picture, copy).expect("copied");
            "bytes"
        } else {
            let image = image::open(picture).expect("decoded");
            let file = std::fs::File::create(copy).expect("made");
            image
                .write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(file, 60))
                .expect("encoded");
            "near"
        };
        leaked.insert(inside.to_string_lossy().into_owned(), kind);
    }
    leaked
}

#[test]
fn leaked_queries_are_found_and_the_figures_without_them_are_the_clean_ones() {
    let Some(shop) = shared("grocery") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gallery = folder.path().join("gallery");
    let leaked = leak(&shop, &gallery);
    assert_eq!(leaked.len(), 41);
    let clean = grocery_with("int8", &[]);
    let dirty = grocery_with("int8", &[format!("input.gallery={}", gallery.display())]);

    let none =
        |report: &serde_json::Value| report["evaluations"][0]["modes"][0]["leakage"]["pairs_in_all"].clone();
    assert_eq!(none(&clean), 0, "{:#}", clean["evaluations"][0]["modes"][0]["leakage"]);
    let leakage = &dirty["evaluations"][0]["modes"][0]["leakage"];
    let found: BTreeMap<String, &str> = leakage["pairs"]
        .as_array()
        .expect("pairs")
        .iter()
        .map(|pair| {
            (pair["query"].as_str().expect("an id").to_owned(), pair["kind"].as_str().expect("a kind"))
        })
        .collect();
    assert_eq!(found, leaked);
    assert_eq!(leakage["pairs_in_all"], 41);

    for metric in ["cosine", "dot_product", "l1", "l2"] {
        let of = |report: &serde_json::Value| {
            let metrics =
                report["evaluations"][0]["modes"][0]["metrics"].as_array().expect("metrics").clone();
            metrics.into_iter().find(|row| row["metric"] == metric).expect("the metric")
        };
        let (clean, dirty) = (of(&clean), of(&dirty));
        let map = |row: &serde_json::Value, at: &str| {
            row.pointer(at).and_then(serde_json::Value::as_f64).expect("MAP")
        };
        let (truth, low, high) = (
            map(&clean, "/micro/map"),
            map(&clean, "/intervals/low/map"),
            map(&clean, "/intervals/high/map"),
        );
        let adjusted = map(&dirty, "/leakage/without_near/micro/map");
        assert!((low..=high).contains(&adjusted), "{metric}: {adjusted} is not within {low} to {high}");
        // All that leaked was found and nothing else, so it is the clean gallery again.
        assert!((adjusted - truth).abs() < 1e-12, "{metric}: {adjusted} {truth}");
        let all = map(&dirty, "/leakage/all/micro/map");
        assert!(
            all > map(&dirty, "/leakage/without_copies/micro/map") && all > truth,
            "{metric}: {all} {truth}"
        );
        assert!(map(&dirty, "/leakage/without_copies/micro/map") > truth, "{metric}");
    }
}

#[test]
fn the_originals_commands_work_on_its_pictures() {
    let Some(seed) = shared("seed") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ours.h5");
    let train = seed.join("train");
    let index = [
        "index",
        "--train_data",
        &train.to_string_lossy(),
        "--index_file",
        &file.to_string_lossy(),
        "--provider",
        "openvino",
    ];
    imagedex(index).exits(0).says("26 pictures, 0 failed");
    let picture = seed.join("test/001_accordion_image_0001.jpg");
    // The same three hits from our file and from the one that the original wrote.
    let retrieve = |engine: &str, features: &std::path::Path, threshold: &[&str]| {
        let (picture, features) = (picture.to_string_lossy(), features.to_string_lossy());
        let flags = ["retrieve", "--engine", engine, "--test_data", &picture, "--index_file", &features];
        imagedex(flags.into_iter().chain(["--provider", "openvino"]).chain(threshold.iter().copied()))
    };
    let hits = |engine: &str, features: &std::path::Path| {
        let said = retrieve(engine, features, &["--threshold", "0"]).exits(0);
        said.out.lines().filter_map(|line| line.split("  ").next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let ours = hits("numpy", &file);
    assert_eq!(ours.len(), 3);
    assert!(ours[0].contains("accordion"), "{ours:?}");
    let original = seed.join("train.h5");
    assert_eq!(ours, hits("numpy", &original));
    if cfg!(feature = "faiss") {
        assert_eq!(ours, hits("faiss", &original));
        assert_eq!(
            retrieve("faiss", &original, &[]).exits(0).out,
            retrieve("numpy", &original, &[]).exits(0).out,
            "the same scores"
        );
    } else {
        retrieve("faiss", &original, &[]).exits(2).complains("--features faiss");
    }
    // The original's formulas: cosine * 0.5 + 0.5 on its own features, shown above 0.85.
    let shown = retrieve("numpy", &original, &[]).exits(0).out;
    let all = retrieve("numpy", &original, &["--threshold", "0"]).exits(0).out;
    let above =
        |line: &&str| line.rsplit("  ").next().is_some_and(|score| score.parse::<f32>().unwrap() > 0.85);
    assert_eq!(shown.lines().collect::<Vec<_>>(), all.lines().filter(above).collect::<Vec<_>>());
    retrieve("numpy", &original, &["--threshold", "0.999"])
        .exits(0)
        .complains("no score is above 0.999; the nearest is");
    // The same from Elasticsearch, in the original's mapping; the second search finds the file loaded.
    let node = Node::shared();
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
        command
            .env("IMAGEDEX_CACHE", cache())
            .env("ES_HOST", "127.0.0.1")
            .env("ES_PORT", node.port().to_string());
        command.args([
            "retrieve",
            "--engine",
            "es",
            "--provider",
            "openvino",
            "--db_name",
            "image_retrieval",
            "--threshold",
            "0",
        ]);
        command.arg("--test_data").arg(&picture).arg("--index_file").arg(seed.join("train.h5"));
        let found = said(command.output().expect("the program starts")).exits(0);
        let found: Vec<_> =
            found.out.lines().filter_map(|line| line.split("  ").next()).map(str::to_owned).collect();
        assert_eq!(found, ours);
        names.extend(node.behind("image_retrieval"));
    }
    assert!(names.len() == 2 && names[0] == names[1], "{names:?}");
    let made = node.ask("GET", &format!("/{}", names[0]), None)[&names[0]].clone();
    assert_eq!(made["settings"]["index"]["number_of_shards"], "2");
    let fields: Vec<&String> = made["mappings"]["properties"].as_object().expect("fields").keys().collect();
    assert_eq!(fields, ["id", "image_vector", "name"]);
}
