//! Several engines in one run: one report, and one that fails does not take the others with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::es_node::Node;
use crate::es_proxy::{Fault, Proxy};
use crate::support::{Shop, root, shared};

/// Two classes of eight pictures, four of them queries.
fn shop(load: &str) -> Shop {
    let shop = Shop::new();
    for seed in 0..16 {
        let class = if seed < 8 { "stripes" } else { "waves" };
        let part = if seed % 4 == 3 { "queries" } else { "gallery" };
        shop.picture(&format!("{part}/{class}/{seed}.png"), seed * 7 + 1);
    }
    shop.pipeline(&format!("[input]\ngallery = 'gallery'\nqueries = 'queries'\n[load]\n{load}"));
    shop
}

fn report(shop: &Shop, file: &str) -> String {
    std::fs::read_to_string(shop.path("runs/shop/report").join(file)).expect("a report")
}

fn summary(shop: &Shop) -> Value {
    serde_json::from_str(&report(shop, "summary.json")).expect("JSON")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|one| one["engine"].as_str().expect("a name")).collect()
}

#[test]
fn every_engine_is_loaded_measured_and_reported() {
    let node = Node::shared();
    let shop = shop(&format!(
        "engine = ['flat', 'hnsw', 'elasticsearch']\n[load.elasticsearch]\nurl = '{}'\nalias = 'several'\nknn = {{}}\n",
        node.url()
    ));
    let said = shop.imagedex("run").exits(0).says("alias several now stands for");
    for engine in ["flat", "hnsw", "elasticsearch"] {
        let line = format!("gallery 12 = searchable in {engine} 12 + rejected 0");
        assert!(said.out.contains(&line), "{}", said.out);
    }
    let found = summary(&shop);
    assert_eq!(names(&found["loads"]), ["flat", "hnsw", "elasticsearch"]);
    assert_eq!(
        names(&found["evaluations"]),
        ["flat", "hnsw", "elasticsearch", "elasticsearch knn int8_hnsw 100"]
    );
    assert_eq!(names(&found["measured"]["engines"]), ["flat", "hnsw", "elasticsearch"]);
    assert!(found["measured"]["engines"][0]["memory"].as_u64().expect("bytes") > 12 * 512 * 4);
    assert!(found["measured"]["engines"][1]["disk"].as_u64().expect("bytes") > 12 * 512 * 4);
    assert!(found["measured"]["engines"][2]["disk"].as_u64().expect("bytes") > 12 * 512 * 4);
    assert_eq!(found["evaluations"][1]["unsupported"], serde_json::json!(["l1"]));
    let markdown = report(&shop, "report.md");
    for row in ["| flat, l1 |", "| hnsw, cosine |", "| elasticsearch, l2 |", "## Sizes", "## Engines"] {
        assert!(markdown.contains(row), "{row} in\n{markdown}");
    }
    assert!(!markdown.contains("hnsw, l1"), "{markdown}");

    // All engines that find the same have the same measures; and nothing is loaded twice.
    let map = |i: usize| &found["evaluations"][i]["modes"][0]["metrics"][0]["micro"]["at"];
    assert_eq!(map(0), map(2));
    shop.imagedex("run").exits(0).says("sent nothing");
    // `search` asks the first.
    shop.imagedex("load").exits(0).says("searchable in hnsw 12");
    shop.imagedex("doctor")
        .exits(0)
        .says("engine hnsw has no metric l1".trim_start_matches("engine "))
        .says("ready");
}

/// `pipelines/recall.toml` on real photos: exact engines agree to the last digit, graphs find nearly all of it.
#[test]
fn the_recall_report_over_shop_photos() {
    let Some(grocery) = shared("grocery") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let work = folder.path().join("work");
    let pipeline = root().join("pipelines/recall.toml");
    let faiss = if cfg!(feature = "faiss") { "'faiss', " } else { "" };
    let milvus = if cfg!(feature = "milvus") { ", 'milvus'" } else { "" };
    let mut run = vec!["run".to_owned(), pipeline.display().to_string()];
    for change in [
        format!("work={}", work.display()),
        format!("features.table={}", work.join("features").display()),
        format!("input.gallery={}", grocery.join("dataset/train").display()),
        format!("input.queries={}", grocery.join("dataset/test").display()),
        format!("load.engine=['flat', 'hnsw', {faiss}'elasticsearch', 'opensearch'{milvus}]"),
        format!("load.elasticsearch.url={}", Node::shared().url()),
        "load.elasticsearch.alias=recall-of-photos".to_owned(),
        format!("load.opensearch.url={}", Node::shared_opensearch().url()),
        "evaluate.max_queries=200".to_owned(),
    ] {
        run.extend(["--set".to_owned(), change]);
    }
    #[cfg(feature = "milvus")]
    for change in [
        format!("load.milvus.uri={}", crate::milvus_node::MilvusNode::shared().url()),
        "load.milvus.alias=recall_of_photos".to_owned(),
    ] {
        run.extend(["--set".to_owned(), change]);
    }
    crate::support::imagedex(run).exits(0);
    let summary = std::fs::read_to_string(work.join("report/summary.json")).expect("a report");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    let mut expected = vec!["flat", "hnsw", "elasticsearch", "elasticsearch knn int8_hnsw 100"];
    expected.extend(["opensearch", "opensearch knn hnsw 100"]);
    if cfg!(feature = "milvus") {
        expected.extend(["milvus", "milvus HNSW"]);
    }
    if cfg!(feature = "faiss") {
        expected.splice(2..2, ["faiss", "faiss HNSW32,Flat"]);
    }
    assert_eq!(names(&summary["evaluations"]), expected);
    let flat = &summary["evaluations"][0]["modes"][0]["metrics"];
    for evaluation in summary["evaluations"].as_array().expect("evaluations") {
        for metric in evaluation["modes"][0]["metrics"].as_array().expect("metrics") {
            let (engine, name) = (&evaluation["engine"], &metric["metric"]);
            let recall = metric["engine_recall"].as_array().expect("recalls").iter().last().expect("one");
            let mean = recall["mean"].as_f64().expect("a number");
            let same = flat.as_array().expect("metrics").iter().find(|of| of["metric"] == *name).expect("it");
            if evaluation["exact"] == true {
                assert_eq!(mean, 1.0, "{engine} {name}");
                let (mut ours, mut best) = (metric["micro"].clone(), same["micro"].clone());
                // A server scores in 32 bits: of two pictures that are alike to their last bit either may go first, far down in a
                // ranking, which MAP looks at to its end.
                if ["elasticsearch", "opensearch", "milvus"].iter().any(|server| engine == server) {
                    let [ours, best] =
                        [&mut ours, &mut best].map(|of| of["map"].take().as_f64().expect("MAP"));
                    assert!((ours - best).abs() < 1e-5, "{engine} {name}: {ours} {best}");
                }
                assert_eq!(ours, best, "{engine} {name}");
            } else {
                // Elasticsearch's graph holds 8 bits a number, and does not score again.
                assert!(mean > 0.85, "{engine} {name}: {recall}");
            }
            assert_eq!(metric["micro"]["at"].as_array().map(Vec::len), Some(3));
        }
    }
}

#[test]
fn an_engine_that_fails_among_others_drops_out() {
    // Nobody listens on port 9.
    let shop = shop(
        "engine = ['elasticsearch', 'flat']\n[load.elasticsearch]\nurl = 'http://127.0.0.1:9'\ngive_up_seconds = 1\ntimeout_seconds = 1\n",
    );
    let said = shop.imagedex("run").exits(4).complains("engine elasticsearch drops out: ");
    assert!(said.out.contains("gallery 12 = searchable in flat 12"), "{}", said.out);
    assert_eq!(said.err.matches("ERROR").count(), 2, "when it happens, and as the last word: {}", said.err);
    let found = summary(&shop);
    assert_eq!(names(&found["loads"]), ["flat"]);
    assert_eq!(names(&found["engine_failures"]), ["elasticsearch"]);
    assert!(report(&shop, "report.md").contains("**engine elasticsearch dropped out:**"));
    assert!(report(&shop, "report.html").contains("dropped out"));
    assert_eq!(shop.run_json()["exit_code"], 4);
    shop.imagedex("evaluate").exits(4).says("searchable in flat 12");
    shop.imagedex("load").exits(4).says("searchable in flat 12");

    // Alone it ends the run before any work.
    let alone = ["load.engine=elasticsearch"];
    let mut run = vec!["run".to_owned(), shop.path("shop.toml").to_string_lossy().into_owned()];
    run.extend(alone.iter().flat_map(|change| ["--set".to_owned(), (*change).to_owned()]));
    crate::support::imagedex(run).exits(4);
    assert_eq!(names(&summary(&shop)["loads"]), ["flat"], "the report of the run before stays");
}

#[test]
fn a_server_that_dies_in_the_middle_of_its_searches_drops_out() {
    let mut node = Node::start(&[]);
    let searches = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&searches);
    let proxy = Proxy::before(node.port(), move |asked| {
        if asked.path.contains("_msearch") {
            seen.fetch_add(1, Ordering::SeqCst);
            // Until the server is gone.
            return Fault::Delay(Duration::from_millis(300));
        }
        Fault::Pass
    });
    let shop = shop(&format!(
        "engine = ['elasticsearch', 'flat']\n[load.elasticsearch]\nurl = '{}'\ngive_up_seconds = 2\ntimeout_seconds = 2\n",
        proxy.url()
    ));
    let said = std::thread::scope(|scope| {
        let run = scope.spawn(|| shop.imagedex("run"));
        while searches.load(Ordering::SeqCst) < 2 {
            assert!(!run.is_finished(), "it ended before the server could be killed");
            std::thread::sleep(Duration::from_millis(5));
        }
        node.kill();
        run.join().expect("no panic")
    });
    let said = said.exits(4).complains("engine elasticsearch drops out: ");
    assert!(said.out.contains("gallery 12 = searchable in flat 12"), "{}", said.out);
    assert_eq!(names(&summary(&shop)["engine_failures"]), ["elasticsearch"]);
    assert_eq!(names(&summary(&shop)["evaluations"]), ["flat"]);
    // Nothing was promoted, and what was loaded is cleared away by the next run.
    node.restart();
    assert_eq!(node.behind("shop"), Vec::<String>::new());
    node.request("DELETE", "/imagedex-locks/_doc/shop?refresh=true", None);
    shop.imagedex("run").exits(0).says("alias shop now stands for");
    assert_eq!(node.indices("shop").len(), 1);
}

#[test]
fn engines_that_are_not_there_or_named_twice_are_usage_errors() {
    let shop = shop("engine = ['flat', 'flat']\n");
    shop.imagedex("run").exits(2).complains("load.engine: names an engine twice");
    shop.pipeline("[input]\ngallery = 'gallery'\n[load]\nengine = ['flat', 'annoy']\n");
    shop.imagedex("run").exits(2).complains("unknown variant `annoy`");
    shop.pipeline("[input]\ngallery = 'gallery'\n[load]\nengine = 'hnsw'\n[load.hnsw]\nm = 0\n");
    shop.imagedex("run").exits(2).complains("load.hnsw.m: 0 is not between 1 and 256");
    shop.pipeline("[input]\ngallery = 'gallery'\n[load]\nengine = 'faiss'\n[load.faiss]\nindex = 'Flatt'\n");
    let said = shop.imagedex("run").exits(2);
    match cfg!(feature = "faiss") {
        true => said.complains("index Flatt: FAISS does not know this description"),
        false => said.complains("--features faiss"),
    };
}
