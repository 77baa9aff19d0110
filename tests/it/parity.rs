//! Label measures on real shop photos against published ones (`../shared/data/grocery/README.md`, computed with Keras'
//! preprocessing and numpy), and the original's two commands on its own pictures.

use crate::es_node::Node;
use crate::support::{cache, imagedex, root, said, shared};

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
    let work = tempfile::tempdir().expect("a temporary folder");
    let file = root().join("pipelines/grocery.toml");
    let work_is = format!("work={}", work.path().display());
    let precision_is = format!("model.precision={precision}");
    imagedex(["run", &file.to_string_lossy(), "--set", &work_is, "--set", &precision_is]).exits(0);
    let summary = std::fs::read(work.path().join("report/summary.json")).expect("summary.json");
    Some(serde_json::from_slice(&summary).expect("JSON"))
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
fn shop_photos_score_as_published_in_int8() {
    let Some(summary) = grocery("int8") else { return };
    near(figures(&summary, "cosine"), (0.356, 0.243));
    near(figures(&summary, "l1"), (0.343, 0.228));
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
    let hits = |features: &std::path::Path| {
        let said = imagedex([
            "retrieve",
            "--test_data",
            &picture.to_string_lossy(),
            "--index_file",
            &features.to_string_lossy(),
            "--provider",
            "openvino",
        ])
        .exits(0);
        said.out.lines().filter_map(|line| line.split("  ").next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let ours = hits(&file);
    assert_eq!(ours.len(), 3);
    assert!(ours[0].contains("accordion"), "{ours:?}");
    assert_eq!(ours, hits(&seed.join("train.h5")));
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
