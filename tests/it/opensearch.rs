//! OpenSearch, the real one: what it is told otherwise than Elasticsearch, and that the same promises hold. The bodies of most
//! tests are [`super::elastic`]'s, which run on either.

use std::time::Duration;

use imagedex::engines::elastic::{ElasticConfig, KnnConfig, Product};
use imagedex::engines::flat::Flat;
use imagedex::engines::{EngineError, Query, Searcher, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::embed::EmbeddingBatch;
use serde_json::json;

use crate::elastic::{self, Table, alias, config_of, drawn, holds_all, load, open, pictures, publish};
use crate::es_node::Node;
use crate::es_proxy::{Fault, Proxy};
use crate::support::{cache, said};

fn with_knn(config: ElasticConfig, metric: Metric) -> ElasticConfig {
    ElasticConfig { knn: Some(KnnConfig { metric, ..KnnConfig::default() }), ..config }
}

/// As pictures have them without normalising: of different lengths.
fn of_many_lengths(mut batch: EmbeddingBatch) -> EmbeddingBatch {
    for (i, row) in batch.vectors.chunks_mut(batch.dim).enumerate() {
        row.iter_mut().for_each(|x| *x *= 0.5 + (i % 7) as f32);
    }
    batch
}

#[test]
fn all_four_metrics_answer_as_flat_does() {
    let node = Node::shared_opensearch();
    let queries = pictures(0..30, 64, 11);
    // With a graph beside the scripts, and without one.
    let plain = ElasticConfig { shards: 2, ..config_of(node, &alias()) };
    let rows = pictures(0..600, 64, 3);
    elastic::answers_as_flat_does(&load(&Table::of(&rows), &plain).expect("loaded"), &rows, &queries);
    let graph = with_knn(ElasticConfig { shards: 2, ..config_of(node, &alias()) }, Metric::Cosine);
    elastic::answers_as_flat_does(&load(&Table::of(&rows), &graph).expect("loaded"), &rows, &queries);
}

#[test]
fn scores_of_graphs_are_on_our_scale() {
    let node = Node::shared_opensearch();
    for metric in [Metric::Cosine, Metric::L2, Metric::DotProduct] {
        let rows = of_many_lengths(pictures(0..400, 32, 3));
        let queries = pictures(0..20, 32, 11);
        let loaded = load(&Table::of(&rows), &with_knn(config_of(node, &alias()), metric)).expect("loaded");
        let mut flat = Flat::new(true);
        flat.create(rows.dim).expect("flat");
        flat.upsert(&rows).expect("flat");
        flat.commit().expect("flat");
        let arms = loaded.index.arms();
        let [_, graph] = arms.as_slice() else { panic!("two arms") };
        assert_eq!(graph.name(), "opensearch knn hnsw 100");
        assert!(!graph.is_exact());
        assert_eq!(Metric::ALL.map(|other| graph.supports(other)), Metric::ALL.map(|other| other == metric));
        let mut found = 0;
        for i in 0..queries.len() {
            let query = |k| Query { vector: queries.vector(i), k, metric };
            let all = flat.search(&query(rows.len())).expect("flat");
            let hits = graph.search(&query(10)).expect("searched");
            assert_eq!(hits.len(), 10);
            for hit in &hits {
                let truth = all.iter().find(|other| other.id == hit.id).expect("a picture of ours");
                let difference = (hit.score - truth.score).abs();
                assert!(difference <= 1e-6 * truth.score.max(1.0), "{metric}: {hit:?} {truth:?}");
            }
            found += hits.iter().filter(|hit| all[..10].iter().any(|other| other.id == hit.id)).count();
        }
        assert!(found >= 190, "{metric}: {found} of 200");
    }
}

#[test]
fn vectors_come_back_bit_by_bit() {
    let node = Node::shared_opensearch();
    let mut rows = of_many_lengths(pictures(0..700, 96, 5));
    // Numbers whose shortest text is long, tiny ones, and a negative zero.
    rows.vectors[..5].copy_from_slice(&[0.1 + 0.2, 1.0 / 3.0, f32::MIN_POSITIVE, 1.175_494_2e-38, -0.0]);
    let table = Table::of(&rows);
    let alias = alias();
    let mut loaded = load(&table, &with_knn(config_of(node, &alias), Metric::L2)).expect("loaded");
    elastic::server(&mut loaded).promote().expect("promoted");
    let name = node.behind(&alias).pop().expect("an index");
    holds_all(loaded.index.as_mut(), &table.rows(), node, &name);
}

#[test]
fn equal_scores_come_by_id_from_every_shard() {
    elastic::orders_equal_scores_by_id(Node::shared_opensearch());
}

#[test]
fn filters_keep_what_they_name() {
    elastic::filters(Node::shared_opensearch());
}

#[test]
fn what_changed_is_applied_to_a_copy_of_the_live_index() {
    let node = Node::shared_opensearch();
    elastic::applies_changes_to_a_copy(node, with_knn(config_of(node, &alias()), Metric::Cosine));
}

#[test]
fn an_index_without_a_graph_cannot_be_copied_and_is_loaded_whole() {
    let node = Node::shared_opensearch();
    let config = config_of(node, &alias());
    let mut table = Table::of(&pictures(0..30, 8, 1));
    let (_, first) = publish(&table, &config);
    // What stands there is as good as ever.
    assert_eq!(publish(&table, &config).1, first);
    table.append(&pictures(30..31, 8, 1));
    let (books, second) = publish(&table, &config);
    assert_eq!((books.sent_what.as_str(), books.sent, books.searchable), ("everything", 31, 31));
    assert_ne!(second, first);
}

#[test]
fn rollback_goes_back_and_old_indices_are_pruned() {
    elastic::rolls_back_and_prunes(Node::shared_opensearch());
}

#[test]
fn an_alias_that_cannot_be_moved_is_refused_before_anything_is_loaded() {
    elastic::refuses_an_alias_that_cannot_be_moved(Node::shared_opensearch());
}

#[test]
fn a_second_load_of_the_same_alias_has_to_wait() {
    elastic::makes_a_second_load_wait(Node::shared_opensearch());
}

#[test]
fn a_run_whose_lock_was_taken_over_promotes_nothing() {
    elastic::promotes_nothing_without_its_lock(Node::shared_opensearch());
}

#[test]
fn what_a_killed_run_left_is_cleared_away() {
    elastic::clears_away_what_a_killed_run_left(Node::shared_opensearch());
}

#[test]
fn documents_that_the_server_refuses_are_dead_letters_with_its_reason() {
    elastic::keeps_refused_documents_as_dead_letters(Node::shared_opensearch());
}

#[test]
fn a_vector_of_zeros_is_a_dead_letter_and_its_budget_is_kept() {
    elastic::keeps_a_vector_of_zeros_as_a_dead_letter(Node::shared_opensearch());
}

#[test]
fn a_run_is_promoted_only_if_its_gate_holds_and_can_be_rolled_back() {
    elastic::promotes_only_if_the_gate_holds(Node::shared_opensearch());
}

#[test]
fn a_server_that_is_gone_for_good_is_said() {
    elastic::says_that_a_server_is_gone(Node::opensearch(&[]));
}

#[test]
fn a_run_whose_server_is_killed_in_the_middle_of_the_load_promotes_nothing() {
    let mut node = Node::opensearch(&[]);
    let shop = drawn(&node, "shop", "");
    shop.imagedex("run").exits(0);
    let live = node.behind("shop");
    shop.picture("gallery/owl/new.png", 99);
    // A bulk request is under way when the server dies.
    let proxy = Proxy::before(node.port(), |asked| match asked.bulk {
        Some(_) => Fault::Delay(Duration::from_secs(2)),
        None => Fault::Pass,
    });
    let settings =
        [format!("load.opensearch.url={}", proxy.url()), "load.opensearch.give_up_seconds=1".to_owned()];
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .args(["run", &shop.path("shop.toml").to_string_lossy()])
        .args(["--set", &settings[0], "--set", &settings[1]])
        .env("IMAGEDEX_CACHE", cache())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    while proxy.spoilt() == 0 {
        assert!(run.try_wait().expect("a state").is_none(), "it ended before the request came");
        std::thread::sleep(Duration::from_millis(10));
    }
    node.kill();
    let said = said(run.wait_with_output().expect("it ends")).exits(4);
    let said = said.complains("engine opensearch failed").complains("load.opensearch.give_up_seconds");
    assert_eq!(said.err.matches("ERROR").count(), 1, "{}", said.err);
    node.restart();
    assert_eq!(node.behind("shop"), live);
    // The dead run could not let go of its lock, nor remove what it had begun.
    node.request("DELETE", "/imagedex-locks/_doc/shop?refresh=true", None);
    shop.imagedex("run").exits(0).says("now stands for");
    assert_ne!(node.behind("shop"), live);
    assert_eq!(node.indices("shop").len(), 2, "the new one and the one before");
}

#[test]
fn an_index_of_another_dimension_is_not_searched_and_never_changed() {
    let node = Node::shared_opensearch();
    let alias = alias();
    let config = config_of(node, &alias);
    let (_, narrow) = publish(&Table::of(&pictures(0..20, 8, 1)), &config);
    let mut index = open(&config);
    let refused =
        index.as_server().expect("a server").attach("0123456789abcdef", 16).expect_err("16 numbers");
    assert!(matches!(refused, EngineError::Usage(_)), "{refused}");
    assert!(refused.to_string().contains("of 8 numbers") && refused.to_string().contains("load it anew"));
    // A load makes one beside it.
    let wide = Table::of(&pictures(0..20, 16, 1));
    let (books, name) = publish(&wide, &config);
    assert_eq!((books.sent_what.as_str(), books.searchable), ("everything", 20));
    let mapping = |index: &str| {
        let mapping = node.ask("GET", &format!("/{index}/_mapping"), None);
        mapping[index]["mappings"]["properties"]["embedding"]["dimension"].as_u64()
    };
    assert_eq!((mapping(&narrow), mapping(&name)), (Some(8), Some(16)));
    assert_eq!((node.behind(&alias), node.count(&narrow)), (vec![name], 20));
}

#[test]
fn somebody_elses_index_under_our_alias_is_refused() {
    let (node, alias) = (Node::shared_opensearch(), alias());
    let field = json!({ "embedding": { "type": "knn_vector", "dimension": 4 } });
    let body = json!({ "aliases": { alias.clone(): {} }, "mappings": { "properties": field } });
    node.ask("PUT", &format!("/{alias}-theirs"), Some(body));
    let refused = load(&Table::of(&pictures(0..5, 8, 1)), &config_of(node, &alias)).err().expect("refused");
    let refused = refused.to_string();
    assert!(
        refused.contains("imagedex did not make") && refused.contains("load.opensearch.alias"),
        "{refused}"
    );
    assert_eq!(node.behind(&alias), [format!("{alias}-theirs")]);
}

#[track_caller]
fn preflight(config: &ElasticConfig) -> Result<Vec<String>, EngineError> {
    open(config).as_server().expect("a server").preflight()
}

#[test]
fn each_product_says_how_the_other_is_reached() {
    let node = Node::shared_opensearch();
    let found = preflight(&with_knn(config_of(node, "shop"), Metric::Cosine)).expect("all is well");
    assert!(found[0].starts_with("OpenSearch 2.19 at"), "{found:?}");
    assert!(found.iter().any(|line| line.contains("k-NN plugin")), "{found:?}");
    for (node, other) in [(node, Product::Elasticsearch), (Node::shared(), Product::OpenSearch)] {
        let config = ElasticConfig { product: other, ..config_of(node, "shop") };
        let refused = preflight(&config).expect_err("the other product");
        assert!(matches!(refused, EngineError::Usage(_)), "{refused}");
        let (is, engine) = (node.product(), node.product().engine());
        let says = refused.to_string();
        assert!(says.contains(&format!("is {is} ")) && says.contains(&format!("not {other}")), "{says}");
        assert!(says.contains(&format!("set load.engine = \"{engine}\"")), "{says}");
    }
    // From the program, with nothing done.
    let shop = drawn(node, &alias(), "");
    let text = std::fs::read_to_string(shop.path("shop.toml")).expect("the pipeline");
    shop.pipeline(&text.replace("opensearch", "elasticsearch"));
    shop.imagedex("run").exits(2).complains("set load.engine = \"opensearch\"");
    assert!(!shop.path("runs/shop/features").exists());
}

#[test]
fn other_versions_a_missing_plugin_and_nobody_are_refused_in_plain_words() {
    let knn = |config| with_knn(config, Metric::Cosine);
    for (answer, says) in [
        (
            r#"{"version":{"number":"1.3.20","distribution":"opensearch"}}"#,
            "is OpenSearch 1.3; imagedex speaks to 2",
        ),
        (r#"{"version":{"number":"3.1.0","distribution":"opensearch"}}"#, "3 is not tested yet"),
        (
            r#"{"version":{"number":"2.15.0","distribution":"opensearch"}}"#,
            "load.opensearch.knn needs OpenSearch 2.16",
        ),
        (
            r#"{"version":{"number":"1.0.0","distribution":"somesearch"}}"#,
            "is somesearch 1.0.0, not OpenSearch",
        ),
        (r#"{"hello":"world"}"#, "is not OpenSearch"),
    ] {
        let proxy = Proxy::before(1, move |_| Fault::Answer(200, answer));
        let config = ElasticConfig { product: Product::OpenSearch, ..elastic::config(&proxy.url(), "shop") };
        let refused = preflight(&knn(config)).expect_err(answer).to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let node = Node::shared_opensearch();
    let bare = r#"{"nodes":{"x":{"name":"node-7","plugins":[],"modules":[{"name":"lang-painless"}]}}}"#;
    let proxy = Proxy::before(node.port(), move |asked| match asked.path.starts_with("/_nodes/plugins") {
        true => Fault::Answer(200, bare),
        false => Fault::Pass,
    });
    let config = ElasticConfig { product: Product::OpenSearch, ..elastic::config(&proxy.url(), "shop") };
    let refused = preflight(&config).expect_err("no plugin").to_string();
    assert!(refused.contains("opensearch-knn on node-7"), "{refused}");
    // Nobody there, from the program.
    let shop = drawn(node, &alias(), "");
    let text = std::fs::read_to_string(shop.path("shop.toml")).expect("the pipeline");
    shop.pipeline(&text.replace(&node.url(), "http://127.0.0.1:1"));
    shop.imagedex("run").exits(4).complains("OPENSEARCH_URL").complains("load.opensearch.url");
    assert!(!shop.path("runs/shop/features").exists());
}

#[test]
fn lost_answers_and_a_busy_server_lose_no_document() {
    let node = Node::shared_opensearch();
    let proxy = Proxy::before(node.port(), |asked| match asked.bulk {
        Some(0) => Fault::LoseAnswer,
        Some(2) => Fault::Reset,
        Some(4) => Fault::Answer(
            429,
            r#"{"error":{"type":"rejected_execution_exception","reason":"full"},"status":429}"#,
        ),
        _ => Fault::Pass,
    });
    let alias = alias();
    let config = ElasticConfig { product: Product::OpenSearch, ..elastic::config(&proxy.url(), &alias) };
    let table = Table::of(&pictures(0..3000, 16, 4));
    let mut loaded = load(&table, &config).expect("loaded");
    assert!(proxy.spoilt() >= 3, "only {} requests were spoilt", proxy.spoilt());
    assert_eq!((loaded.books.searchable, loaded.books.rejected), (3000, 0));
    elastic::server(&mut loaded).promote().expect("promoted");
    let name = node.behind(&alias).pop().expect("an index");
    holds_all(loaded.index.as_mut(), &table.rows(), node, &name);
}
