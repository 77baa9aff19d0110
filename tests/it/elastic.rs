//! Elasticsearch, the real one: what is loaded is complete, whatever happens meanwhile; and users search either the old index
//! or the new one, never anything between. What OpenSearch does otherwise is in [`super::opensearch`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use imagedex::config::Budget;
use imagedex::engines::elastic::{Address, ElasticConfig, Encoding, KnnConfig};
use imagedex::engines::flat::Flat;
use imagedex::engines::{self, EngineConfig, EngineError, Filter, Query, Server, VectorIndex};
use imagedex::exchange;
use imagedex::metric::Metric;
use imagedex::pipeline::async_runtime;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::load::{self, LoadError, Loaded};
use imagedex::stages::scan::Split;
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance};
use imagedex::stats::LoadBooks;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::es_node::{ADMIN, Node, READER};
use crate::es_proxy::{Fault, Proxy};
use crate::support::{Shop, cache, imagedex, said, shared};

pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| async_runtime().expect("a runtime"))
}

/// An alias that no other test uses.
pub fn alias() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("shop{}", NEXT.fetch_add(1, Ordering::SeqCst))
}

pub fn config(url: &str, alias: &str) -> ElasticConfig {
    let url = Some(Address::try_from(url.to_owned()).expect("an address"));
    ElasticConfig { url, alias: alias.to_owned(), give_up_seconds: 120, ..ElasticConfig::default() }
}

/// The same for a server of either product.
pub fn config_of(node: &Node, alias: &str) -> ElasticConfig {
    ElasticConfig { product: node.product(), ..config(&node.url(), alias) }
}

pub fn open(config: &ElasticConfig) -> Box<dyn VectorIndex> {
    engines::open(&EngineConfig::Elasticsearch(Box::new(config.clone())), true, runtime().handle())
        .expect("opens")
}

/// Numbers that look random and are the same in every run.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}

pub fn picture(id: String) -> Picture {
    Picture {
        label: id.split_once('/').map(|(class, _)| class.to_owned()),
        sha256: format!("sha-of-{id}"),
        split: Split::Gallery,
        pixel_sha256: String::new(),
        dhash: u64::MAX,
        width: 32,
        height: 24,
        format: "png".to_owned(),
        id,
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    vector
}

/// Pictures of three classes with unit vectors of `dim` numbers, none negative, many zero.
pub fn pictures(range: std::ops::Range<usize>, dim: usize, seed: u64) -> EmbeddingBatch {
    let mut random = random(seed);
    let mut batch = EmbeddingBatch { dim, ..EmbeddingBatch::default() };
    for i in range {
        let vector: Vec<f32> =
            (0..dim).map(|_| (random() - 0.5).max(0.0) + if random() < 0.01 { 1.0 } else { 0.0 }).collect();
        let mut vector = vector;
        vector[i % dim] += 0.1;
        batch.pictures.push(picture(format!("class{}/{i:06}.png", i % 3)));
        batch.vectors.extend(unit(vector));
        batch.norms.push(1.0);
    }
    batch.sorted()
}

trait Sorted {
    fn sorted(self) -> EmbeddingBatch;
}

impl Sorted for EmbeddingBatch {
    fn sorted(self) -> EmbeddingBatch {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.sort_by(|a, b| self.pictures[*a].id.cmp(&self.pictures[*b].id));
        let mut sorted = EmbeddingBatch { dim: self.dim, ..EmbeddingBatch::default() };
        for row in rows {
            sorted.pictures.push(self.pictures[row].clone());
            sorted.vectors.extend_from_slice(self.vector(row));
            sorted.norms.push(self.norms[row]);
        }
        sorted
    }
}

/// A feature table of its own.
pub struct Table {
    _folder: TempDir,
    pub store: FeatureStore,
}

impl Table {
    pub fn of(batch: &EmbeddingBatch) -> Table {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let provenance = Provenance {
            fingerprint: "0123456789abcdef".to_owned(),
            dim: batch.dim,
            facts: json!({ "non_negative": true }),
        };
        let store =
            runtime().block_on(FeatureStore::open_or_create(folder.path(), &provenance)).expect("a table");
        let mut table = Table { _folder: folder, store };
        table.append(batch);
        table
    }

    pub fn append(&mut self, batch: &EmbeddingBatch) {
        runtime().block_on(self.store.append(batch, &CommitFacts(json!({})))).expect("appended");
    }

    pub fn replace(&mut self, batch: &EmbeddingBatch) {
        runtime().block_on(self.store.replace(batch, &CommitFacts(json!({})))).expect("replaced");
    }

    pub fn delete(&mut self, ids: &[&str]) {
        let gone: Vec<(Split, String)> = ids.iter().map(|id| (Split::Gallery, (*id).to_owned())).collect();
        runtime().block_on(self.store.apply(&[], &gone, &CommitFacts(json!({})))).expect("deleted");
    }

    pub fn rows(&self) -> EmbeddingBatch {
        runtime().block_on(self.store.read(Some(Split::Gallery))).expect("read")
    }
}

pub fn load(table: &Table, config: &ElasticConfig) -> Result<Loaded, LoadError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dead = folder.path().join("rejected.jsonl");
    load::load(runtime().handle(), &table.store, open(config), config.max_rejected, &dead)
}

pub fn server(loaded: &mut Loaded) -> &mut dyn Server {
    loaded.index.as_server().expect("a server")
}

/// Loads and promotes; the index that is live then.
pub fn publish(table: &Table, config: &ElasticConfig) -> (LoadBooks, String) {
    let mut loaded = load(table, config).expect("loaded");
    let said = server(&mut loaded).promote().expect("promoted");
    let name =
        said.split("stands for ").nth(1).and_then(|rest| rest.split([',', ' ']).next()).expect("a name");
    (loaded.books, name.to_owned())
}

/// Every vector of the table is in the index, bit for bit, and nothing else is.
#[track_caller]
pub fn holds_all(index: &mut dyn VectorIndex, rows: &EmbeddingBatch, node: &Node, name: &str) {
    assert_eq!(node.count(name), rows.len() as u64);
    let ids: Vec<String> = rows.pictures.iter().map(|picture| picture.id.clone()).collect();
    let server = index.as_server().expect("a server");
    for (start, ids) in ids.chunks(500).enumerate().map(|(i, ids)| (i * 500, ids)) {
        for (i, vector) in server.vectors(ids).expect("read back").into_iter().enumerate() {
            let vector = vector.unwrap_or_else(|| panic!("{} is missing", ids[i]));
            let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&vector), bits(rows.vector(start + i)), "{}", ids[i]);
        }
    }
}

/// Documents that a server has indexed for alias `shop` since it started.
pub fn indexed(node: &Node) -> u64 {
    let path = "/shop-*/_stats/indexing?filter_path=_all.total.indexing.index_total";
    let answer = node.try_request("GET", path, None);
    answer.ok().and_then(|(_, stats)| stats["_all"]["total"]["indexing"]["index_total"].as_u64()).unwrap_or(0)
}

#[test]
fn twenty_thousand_pictures_survive_two_kills_of_the_server() {
    let Some(seed) = shared("seed") else { return };
    let real = exchange::read(&seed.join("train.h5")).expect("the original's features");
    // Resampled: each is the mean of two real ones, weighted at random.
    let mut random = random(7);
    let mut batch = EmbeddingBatch { dim: real.dim, ..EmbeddingBatch::default() };
    for i in 0..20_000 {
        let one = real.vector((random() * real.len() as f32) as usize % real.len());
        let other = real.vector((random() * real.len() as f32) as usize % real.len());
        let weight = random();
        let mixed = one.iter().zip(other).map(|(a, b)| a * weight + b * (1.0 - weight)).collect();
        batch.pictures.push(picture(format!("real/{i:05}.jpg")));
        batch.vectors.extend(unit(mixed));
        batch.norms.push(1.0);
    }
    let table = Table::of(&batch);
    let mut node = Node::start(&[]);
    // Slow enough to be killed twice on the way: numbers as text, one sender, small requests.
    let config = ElasticConfig {
        encoding: Encoding::Array,
        senders: 1,
        max_bulk_mb: 1,
        ..config(&node.url(), "shop")
    };
    let mut loaded = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&table, &config).expect("loaded"));
        for _ in 0..2 {
            // The counter begins again with each start of the server.
            while indexed(&node) < 3000 {
                assert!(!loading.is_finished(), "the load was done before the server could be killed");
                std::thread::sleep(Duration::from_millis(5));
            }
            node.kill();
            std::thread::sleep(Duration::from_millis(500));
            node.restart();
        }
        loading.join().expect("no panic")
    });
    assert_eq!((loaded.books.gallery, loaded.books.searchable, loaded.books.rejected), (20_000, 20_000, 0));
    assert_eq!((loaded.books.sent, loaded.books.indexed), (20_000, 20_000));
    assert!(loaded.books.retried > 0, "{:?}", loaded.books);
    server(&mut loaded).promote().expect("promoted");
    let name = node.behind("shop").pop().expect("an index");
    holds_all(loaded.index.as_mut(), &table.rows(), &node, &name);
}

#[test]
fn all_four_metrics_answer_as_flat_does() {
    let rows = pictures(0..1500, 64, 3);
    let table = Table::of(&rows);
    let config = ElasticConfig {
        knn: Some(KnnConfig {
            index_options: Some("hnsw".to_owned()),
            num_candidates: 200,
            ..KnnConfig::default()
        }),
        sparse: true,
        shards: 2,
        ..config(&Node::shared().url(), &alias())
    };
    let loaded = load(&table, &config).expect("loaded");
    let queries = pictures(0..40, 64, 11);
    answers_as_flat_does(&loaded, &rows, &queries);
    let disk = loaded.index.footprint().disk.expect("the server tells");
    assert!(disk > 1500 * 64 * 4, "{disk} bytes hold fewer than the vectors");
}

#[test]
fn quantised_vectors_are_compared_once_more_where_asked() {
    let rows = pictures(0..100, 64, 3);
    let loaded = |oversample| {
        let knn = KnnConfig {
            index_options: Some("int4_flat".to_owned()),
            oversample: Some(oversample),
            ..KnnConfig::default()
        };
        let config = ElasticConfig { knn: Some(knn), ..config(&Node::shared().url(), &alias()) };
        load(&Table::of(&rows), &config).expect("loaded")
    };
    let mut flat = Flat::new(true);
    flat.create(rows.dim).expect("flat");
    flat.upsert(&rows).expect("flat");
    flat.commit().expect("flat");
    let queries = pictures(0..40, 64, 11);
    let asked: Vec<Query> = (0..queries.len())
        .map(|i| Query { vector: queries.vector(i), k: 10, metric: Metric::Cosine })
        .collect();
    let truth = engines::Searcher::search_many(&flat, &asked).expect("flat");
    // How many hits are flat's, and by how much a score is off at most.
    let compared = |oversample, name| {
        let loaded = loaded(oversample);
        let arm = loaded.index.arms()[1];
        assert_eq!(arm.name(), name);
        let found = arm.search_many(&asked).expect("searched");
        let pairs: Vec<_> = found.iter().flatten().zip(truth.iter().flatten()).collect();
        assert_eq!(pairs.len(), 400);
        let same = pairs.iter().filter(|(hit, truth)| hit.id == truth.id).count();
        (same, pairs.iter().map(|(hit, truth)| (hit.score - truth.score).abs()).fold(0.0, f32::max))
    };
    // Ten times ten are all hundred of them, so nothing of the rounding to 4 bits is left.
    let (same, off) = compared(10.0, "elasticsearch knn int4_flat 100 x 10");
    assert!(same >= 396 && off < 1e-6, "{same} of 400, {off}");
    let (fewer, off) = compared(0.0, "elasticsearch knn int4_flat 100 x 0");
    assert!(fewer < same && off > 1e-4, "{fewer} of 400, {off}");
}

#[test]
fn the_server_is_told_how_many_searches_to_work_on_at_once() {
    for (wanted, told) in [(Some(3), "&max_concurrent_searches=3"), (None, "")] {
        let (searches, as_told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (all, right) = (searches.clone(), as_told.clone());
        let proxy = Proxy::before(Node::shared().port(), move |asked| {
            if let Some((_, parameters)) = asked.path.split_once("/_msearch?") {
                all.fetch_add(1, Ordering::SeqCst);
                let (_, rest) = parameters.split_once(".sort").expect("the fields of an answer");
                right.fetch_add(usize::from(rest == told), Ordering::SeqCst);
            }
            Fault::Pass
        });
        let rows = pictures(0..200, 16, 3);
        let config = ElasticConfig { concurrent_searches: wanted, ..config(&proxy.url(), &alias()) };
        let loaded = load(&Table::of(&rows), &config).expect("loaded");
        answers_as_flat_does(&loaded, &rows, &pictures(0..100, 16, 11));
        let (searches, as_told) = (searches.load(Ordering::SeqCst), as_told.load(Ordering::SeqCst));
        assert!(searches > 4 && searches == as_told, "{as_told} of {searches}");
    }
}

#[test]
fn shop_photos_are_found_as_flat_finds_them() {
    if shared("grocery").is_none() {
        return;
    }
    let work = tempfile::tempdir().expect("a temporary folder");
    let pipeline = crate::support::root().join("pipelines/grocery.toml").display().to_string();
    let work_is = format!("work={}", work.path().display());
    imagedex(["extract", &pipeline, "--set", &work_is, "--set", "model.precision=int8"]).exits(0);
    let read = |split| {
        runtime().block_on(async {
            let store =
                FeatureStore::open(&work.path().join("features")).await.expect("opened").expect("a table");
            (store.read(Some(split)).await.expect("read"), store)
        })
    };
    let ((gallery, store), (queries, _)) = (read(Split::Gallery), read(Split::Query));
    assert_eq!((gallery.len(), queries.len()), (810, 405));
    let config = config(&Node::shared().url(), &alias());
    let dead = work.path().join("rejected.jsonl");
    let loaded =
        load::load(runtime().handle(), &store, open(&config), config.max_rejected, &dead).expect("loaded");
    answers_as_flat_does(&loaded, &gallery, &queries);
}

/// Each arm gives the first ten of flat: exact ones the same ids, ties aside, and scores within 1e-6.
#[track_caller]
pub fn answers_as_flat_does(loaded: &Loaded, rows: &EmbeddingBatch, queries: &EmbeddingBatch) {
    let mut flat = Flat::new(true);
    flat.create(rows.dim).expect("flat");
    flat.upsert(rows).expect("flat");
    flat.commit().expect("flat");
    for arm in loaded.index.arms() {
        for metric in Metric::ALL.into_iter().filter(|metric| arm.supports(*metric)) {
            let asked: Vec<Query> =
                (0..queries.len()).map(|i| Query { vector: queries.vector(i), k: 10, metric }).collect();
            let truth = engines::Searcher::search_many(&flat, &asked).expect("flat");
            let found = arm.search_many(&asked).expect("searched");
            // The weights of a sparse vector are kept to 9 bits.
            let tolerance = if arm.name().contains("sparse") { 4e-3 } else { 1e-6 };
            let mut same = 0;
            for (truth, found) in truth.iter().zip(&found) {
                assert_eq!(found.len(), 10, "{} {metric}", arm.name());
                for (i, (hit, true_hit)) in found.iter().zip(truth).enumerate() {
                    let difference = (hit.score - true_hit.score).abs();
                    if arm.is_exact() || arm.name().contains("sparse") {
                        assert!(
                            difference <= tolerance,
                            "{} {metric} rank {i}: {hit:?} {true_hit:?}",
                            arm.name()
                        );
                    }
                    same += usize::from(hit.id == true_hit.id);
                    // Another picture at this rank is right only where its score is as good as equal.
                    let is_tie = truth.iter().any(|t| t.id == hit.id) || difference <= tolerance;
                    assert!(
                        !arm.is_exact() || hit.id == true_hit.id || is_tie,
                        "{metric} rank {i}: {hit:?} {true_hit:?}"
                    );
                }
            }
            let least = if arm.is_exact() { 0.99 } else { 0.7 };
            let share = same as f64 / (10 * asked.len()) as f64;
            assert!(share >= least, "{} {metric}: {share} of the hits are flat's", arm.name());
        }
    }
}

#[test]
fn equal_scores_come_by_id_from_every_shard() {
    orders_equal_scores_by_id(Node::shared());
}

pub fn orders_equal_scores_by_id(node: &Node) {
    let vector = [0.6, 0.8];
    let mut rows = EmbeddingBatch { dim: 2, ..EmbeddingBatch::default() };
    for id in (0..60).map(|i| format!("twin/{i:02}")) {
        rows.pictures.push(picture(id));
        rows.vectors.extend(vector);
        rows.norms.push(1.0);
    }
    let table = Table::of(&rows);
    let config = ElasticConfig { shards: 3, ..config_of(node, &alias()) };
    let loaded = load(&table, &config).expect("loaded");
    for metric in Metric::ALL {
        let hits = loaded.index.search(&Query { vector: &vector, k: 25, metric }).expect("searched");
        let ids: Vec<&str> = hits.iter().map(|hit| hit.id.as_str()).collect();
        let expected: Vec<&str> = rows.pictures[..25].iter().map(|picture| picture.id.as_str()).collect();
        assert_eq!(ids, expected, "{metric}");
    }
}

#[test]
fn filters_keep_what_they_name() {
    filters(Node::shared());
}

pub fn filters(node: &Node) {
    let rows = pictures(0..90, 16, 5);
    let table = Table::of(&rows);
    let config = config_of(node, &alias());
    let mut loaded = load(&table, &config).expect("loaded");
    let filters = [Filter { column: "label".to_owned(), value: "class1".to_owned() }];
    let query = Query { vector: rows.vector(0), k: 100, metric: Metric::Cosine };
    let hits = server(&mut loaded).search_filtered(&query, &filters).expect("searched");
    assert_eq!(hits.len(), 30);
    assert!(hits.iter().all(|hit| hit.id.starts_with("class1/")));
}

#[test]
fn what_changed_is_applied_to_a_copy_of_the_live_index() {
    applies_changes_to_a_copy(Node::shared(), config_of(Node::shared(), &alias()));
}

pub fn applies_changes_to_a_copy(node: &Node, config: ElasticConfig) {
    let alias = config.alias.clone();
    let mut table = Table::of(&pictures(0..300, 32, 1));
    let (books, first) = publish(&table, &config);
    assert_eq!((books.sent_what.as_str(), books.sent), ("everything", 300));
    // Nothing changed: nothing is sent, nothing is made.
    let (books, same) = publish(&table, &config);
    assert_eq!((books.sent, same.as_str()), (0, first.as_str()));
    assert_eq!(node.indices(&alias), std::slice::from_ref(&first));
    // One added, two changed, one gone.
    table.append(&pictures(300..301, 32, 9));
    let changed = pictures(10..12, 32, 77);
    table.replace(&changed);
    table.delete(&["class2/000005.png"]);
    let (books, second) = publish(&table, &config);
    assert!(books.sent_what.starts_with("changes since version"), "{books:?}");
    assert_eq!((books.sent, books.indexed, books.removed, books.searchable), (4, 3, 1, 300));
    assert_ne!(first, second);
    assert_eq!(node.behind(&alias), std::slice::from_ref(&second));
    let mut index = open(&config);
    index.as_server().expect("a server").attach("0123456789abcdef", 32).expect("attached");
    holds_all(index.as_mut(), &table.rows(), node, &second);
    // The live index takes writes as before, and the settings are those of a finished index.
    let settings = node.ask("GET", &format!("/{second}/_settings?flat_settings=true"), None);
    let settings = &settings[&second]["settings"];
    assert_eq!(settings["index.refresh_interval"], serde_json::Value::Null);
    assert_eq!(settings["index.auto_expand_replicas"], "0-1");
    assert_ne!(settings["index.blocks.write"], "true");
    let before = node.ask("GET", &format!("/{first}/_settings?flat_settings=true"), None);
    assert_ne!(before[&first]["settings"]["index.blocks.write"], "true");
    // Most of it changed: a fresh index.
    table.replace(&pictures(0..200, 32, 123));
    let (books, _) = publish(&table, &config);
    assert_eq!(books.sent_what, "everything");
}

#[test]
fn rollback_goes_back_and_old_indices_are_pruned() {
    rolls_back_and_prunes(Node::shared());
}

pub fn rolls_back_and_prunes(node: &Node) {
    let alias = alias();
    let config = config_of(node, &alias);
    // Somebody else's index of such a name.
    node.ask("PUT", &format!("/{alias}-of-somebody-else"), None);
    let mut table = Table::of(&pictures(0..20, 8, 1));
    let mut names = Vec::new();
    for i in 0..3 {
        names.push(publish(&table, &config).1);
        table.append(&pictures(100 + i..101 + i, 8, 2));
    }
    assert_eq!(node.behind(&alias), [names[2].clone()]);
    let left: BTreeSet<String> = node.indices(&alias).into_iter().collect();
    let kept = [names[1].clone(), names[2].clone(), format!("{alias}-of-somebody-else")];
    assert_eq!(left, BTreeSet::from(kept), "one earlier index stays, and what is not ours");
    let said = open(&config).as_server().expect("a server").rollback().expect("rolled back");
    assert!(said.contains(&names[1]), "{said}");
    assert_eq!(node.behind(&alias), [names[1].clone()]);
    let refused = open(&config).as_server().expect("a server").rollback().expect_err("nothing before it");
    assert!(refused.to_string().contains("no earlier index"), "{refused}");
    // The next good load goes forward again.
    let (_, newest) = publish(&table, &config);
    assert_eq!(node.behind(&alias), [newest]);
}

#[test]
fn an_alias_that_cannot_be_moved_is_refused_before_anything_is_loaded() {
    refuses_an_alias_that_cannot_be_moved(Node::shared());
}

pub fn refuses_an_alias_that_cannot_be_moved(node: &Node) {
    let table = Table::of(&pictures(0..5, 8, 1));
    let concrete = alias();
    node.ask("PUT", &format!("/{concrete}"), None);
    let error = load(&table, &config_of(node, &concrete)).map(|_| ()).expect_err("an index of that name");
    assert!(error.to_string().contains("an index, not an alias, is called"), "{error}");
    let double = alias();
    for name in ["a", "b"] {
        node.ask("PUT", &format!("/{double}-{name}"), Some(json!({ "aliases": { double.as_str(): {} } })));
    }
    let error = load(&table, &config_of(node, &double)).map(|_| ()).expect_err("two indices");
    assert!(error.to_string().contains("stands for several indices"), "{error}");
}

#[test]
fn a_second_load_of_the_same_alias_has_to_wait() {
    makes_a_second_load_wait(Node::shared());
}

pub fn makes_a_second_load_wait(node: &Node) {
    let alias = alias();
    let config = config_of(node, &alias);
    let table = Table::of(&pictures(0..5, 8, 1));
    let first = load(&table, &config).expect("loaded");
    let refused = load(&table, &config).map(|_| ()).expect_err("locked");
    assert!(matches!(refused, LoadError::Engine(EngineError::Locked(_))), "{refused}");
    assert!(refused.to_string().contains("another run"), "{refused}");
    drop(first);
    load(&table, &config).expect("free again");
    // A run that was killed long ago left its lock and half an index.
    let stale = json!({ "owner": "dead", "host": "gone", "process": 1, "heartbeat": 1000 });
    node.ask("PUT", &format!("/imagedex-locks/_doc/{alias}?refresh=true"), Some(stale));
    load(&table, &config).expect("taken over");
}

#[test]
fn a_run_whose_lock_was_taken_over_promotes_nothing() {
    promotes_nothing_without_its_lock(Node::shared());
}

pub fn promotes_nothing_without_its_lock(node: &Node) {
    let alias = alias();
    let config = config_of(node, &alias);
    let table = Table::of(&pictures(0..5, 8, 1));
    let mut loaded = load(&table, &config).expect("loaded");
    let other = json!({ "owner": "other", "host": "elsewhere", "process": 1, "heartbeat": 1000 });
    node.ask("PUT", &format!("/imagedex-locks/_doc/{alias}?refresh=true"), Some(other));
    let refused = server(&mut loaded).promote().expect_err("not ours any more");
    assert!(matches!(refused, EngineError::Locked(_)), "{refused}");
    assert_eq!(node.behind(&alias), Vec::<String>::new());
}

#[test]
fn what_a_killed_run_left_is_cleared_away() {
    clears_away_what_a_killed_run_left(Node::shared());
}

pub fn clears_away_what_a_killed_run_left(node: &Node) {
    let alias = alias();
    let config = config_of(node, &alias);
    let table = Table::of(&pictures(0..5, 8, 1));
    let mut index = open(&config);
    index.create(8).expect("begun");
    let half_made = node.indices(&alias).pop().expect("an index");
    // As after kill -9: nothing is cleaned up, and the lock's heart beats no more.
    std::mem::forget(index);
    node.ask("DELETE", &format!("/imagedex-locks/_doc/{alias}?refresh=true"), None);
    let (_, name) = publish(&table, &config);
    assert_eq!(node.indices(&alias), std::slice::from_ref(&name));
    assert_ne!(name, half_made);
}

#[test]
fn what_a_run_that_was_killed_while_it_copied_left_is_no_earlier_index() {
    let (node, alias) = (Node::shared(), alias());
    let config = config_of(node, &alias);
    let mut table = Table::of(&pictures(0..20, 8, 1));
    let (_, live) = publish(&table, &config);
    // The live index is closed to writing, and the copy still says what the live one says: that it was promoted.
    let copy = format!("{alias}-20990101t000000000-01234567");
    let body =
        json!({ "aliases": { format!("{copy}-loading"): {} }, "settings": { "index.blocks.write": null } });
    node.ask("PUT", &format!("/{live}/_settings"), Some(json!({ "index.blocks.write": true })));
    node.ask("POST", &format!("/{live}/_clone/{copy}?wait_for_active_shards=1"), Some(body));
    table.append(&pictures(20..40, 8, 2));
    let (books, next) = publish(&table, &ElasticConfig { incremental: false, ..config.clone() });
    assert_eq!(books.sent_what, "everything");
    assert_eq!(BTreeSet::from_iter(node.indices(&alias)), BTreeSet::from([live.clone(), next]));
    let settings = node.ask("GET", &format!("/{live}/_settings?flat_settings=true"), None);
    assert_ne!(settings[&live]["settings"]["index.blocks.write"], "true");
    let said = open(&config).as_server().expect("a server").rollback().expect("rolled back");
    assert!(said.contains(&live), "{said}");
}

#[test]
fn an_index_whose_run_was_killed_right_after_the_alias_moved_is_an_earlier_index_later() {
    let (node, alias) = (Node::shared(), alias());
    let config = config_of(node, &alias);
    let mut table = Table::of(&pictures(0..20, 8, 1));
    let (_, first) = publish(&table, &config);
    table.append(&pictures(20..21, 8, 2));
    let (_, live) = publish(&table, &config);
    let mapping = |name: &str| node.ask("GET", &format!("/{name}/_mapping"), None)[name]["mappings"].clone();
    let unmark = || {
        let mut meta = mapping(&live)["_meta"].clone();
        meta["imagedex"]["state"] = "complete".into();
        node.ask("PUT", &format!("/{live}/_mapping"), Some(json!({ "_meta": meta })));
    };
    // The next run has nothing to send, and sees it through.
    unmark();
    assert_eq!(publish(&table, &config).1, live);
    assert_eq!(mapping(&live)["_meta"]["imagedex"]["state"], "promoted");
    assert_eq!(BTreeSet::from_iter(node.indices(&alias)), BTreeSet::from([first, live.clone()]));
    // The next run has more to send.
    unmark();
    table.append(&pictures(21..22, 8, 3));
    let (_, next) = publish(&table, &config);
    assert_eq!(BTreeSet::from_iter(node.indices(&alias)), BTreeSet::from([live.clone(), next]));
    let said = open(&config).as_server().expect("a server").rollback().expect("rolled back");
    assert!(said.contains(&live), "{said}");
}

#[test]
fn a_vector_of_zeros_is_a_dead_letter_and_its_budget_is_kept() {
    keeps_a_vector_of_zeros_as_a_dead_letter(Node::shared());
}

pub fn keeps_a_vector_of_zeros_as_a_dead_letter(node: &Node) {
    let alias = alias();
    let mut rows = pictures(0..50, 8, 1);
    rows.vectors[8 * 7..8 * 8].fill(0.0);
    let zero = rows.pictures[7].id.clone();
    let table = Table::of(&rows);
    let refused = load(&table, &config_of(node, &alias)).map(|_| ()).expect_err("over budget");
    assert!(matches!(&refused, LoadError::OverBudget { rejected: 1, .. }), "{refused}");
    assert_eq!(node.indices(&alias), Vec::<String>::new(), "nothing is left behind");
    let allowed = ElasticConfig { max_rejected: Budget::Count(1), ..config_of(node, &alias) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dead = folder.path().join("rejected.jsonl");
    let loaded = load::load(runtime().handle(), &table.store, open(&allowed), allowed.max_rejected, &dead)
        .expect("loaded");
    assert_eq!((loaded.books.gallery, loaded.books.searchable, loaded.books.rejected), (50, 49, 1));
    let letters = std::fs::read_to_string(dead).expect("dead letters");
    assert!(letters.contains(&zero) && letters.contains("zeros"), "{letters}");
}

#[test]
fn documents_that_the_server_refuses_are_dead_letters_with_its_reason() {
    keeps_refused_documents_as_dead_letters(Node::shared());
}

pub fn keeps_refused_documents_as_dead_letters(node: &Node) {
    // A keyword may have 32,766 bytes.
    let mut rows = pictures(0..50, 8, 1);
    rows.pictures[9].label = Some("long ".repeat(10_000));
    let table = Table::of(&rows);
    let config = ElasticConfig { max_rejected: Budget::Count(1), ..config_of(node, &alias()) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dead = folder.path().join("rejected.jsonl");
    let loaded = load::load(runtime().handle(), &table.store, open(&config), config.max_rejected, &dead)
        .expect("loaded");
    assert_eq!((loaded.books.sent, loaded.books.indexed, loaded.books.rejected), (50, 49, 1));
    assert_eq!(loaded.books.searchable, 49);
    let letters = std::fs::read_to_string(dead).expect("dead letters");
    assert!(letters.contains(&rows.pictures[9].id) && letters.contains("immense term"), "{letters}");
}

/// Loads 3,000 pictures through a proxy that spoils requests; afterwards every one is there, once.
#[track_caller]
fn survives(faults: impl Fn(&crate::es_proxy::Asked) -> Fault + Send + Sync + 'static, least_spoilt: usize) {
    let node = Node::shared();
    let proxy = Proxy::before(node.port(), faults);
    let alias = alias();
    let config = ElasticConfig { timeout_seconds: 2, ..config(&proxy.url(), &alias) };
    let table = Table::of(&pictures(0..3000, 16, 4));
    let mut loaded = load(&table, &config).expect("loaded");
    assert!(proxy.spoilt() >= least_spoilt, "only {} requests were spoilt", proxy.spoilt());
    assert_eq!((loaded.books.searchable, loaded.books.indexed, loaded.books.rejected), (3000, 3000, 0));
    server(&mut loaded).promote().expect("promoted");
    let name = node.behind(&alias).pop().expect("an index");
    holds_all(loaded.index.as_mut(), &table.rows(), node, &name);
}

#[test]
fn lost_connections_and_lost_answers_lose_no_document() {
    survives(
        |asked| match asked.bulk {
            Some(1) => Fault::Reset,
            Some(3) => Fault::LoseAnswer,
            Some(5) => Fault::CutAnswer,
            Some(7) => Fault::Delay(Duration::from_secs(3)),
            _ => Fault::Pass,
        },
        4,
    );
}

#[test]
fn a_busy_server_is_asked_again() {
    survives(
        |asked| match asked.bulk {
            Some(0) => Fault::Answer(503, "{}"),
            Some(2) => Fault::Answer(
                429,
                r#"{"error":{"type":"es_rejected_execution_exception","reason":"full"},"status":429}"#,
            ),
            Some(4) => Fault::Answer(502, "<html>a proxy's own words</html>"),
            Some(6) => Fault::Answer(200, "<html>not JSON</html>"),
            Some(8) => Fault::Answer(200, r#"{"items":[]}"#),
            _ => Fault::Pass,
        },
        5,
    );
}

#[test]
fn every_other_request_may_fail_as_well() {
    // Whatever it is for: settings, mapping, count, aliases, the lock.
    let seen = AtomicUsize::new(0);
    survives(
        move |asked| match (asked.bulk, seen.fetch_add(1, Ordering::SeqCst) % 3) {
            (None, 0) if asked.method != "DELETE" && asked.path != "/" => Fault::LoseAnswer,
            _ => Fault::Pass,
        },
        5,
    );
}

#[test]
fn a_request_that_is_too_large_is_cut_in_two() {
    let halved = AtomicUsize::new(0);
    survives(
        move |asked| match asked.bulk {
            Some(_) if halved.fetch_add(1, Ordering::SeqCst) < 3 => Fault::Answer(413, ""),
            _ => Fault::Pass,
        },
        3,
    );
}

/// A load that cannot succeed: it says why, leaves nothing behind, and the live index serves on.
#[track_caller]
fn fails(faults: impl Fn(&crate::es_proxy::Asked) -> Fault + Send + Sync + 'static, says: &str) {
    let node = Node::shared();
    let alias = alias();
    let mut table = Table::of(&pictures(0..500, 8, 1));
    let (_, live) = publish(&table, &config(&node.url(), &alias));
    table.append(&pictures(500..3000, 8, 2));
    let proxy = Proxy::before(node.port(), faults);
    let config = ElasticConfig { give_up_seconds: 2, ..config(&proxy.url(), &alias) };
    let error = load(&table, &config).map(|_| ()).expect_err("it cannot be loaded").to_string();
    assert!(error.contains(says), "{error}");
    assert_eq!(node.indices(&alias), std::slice::from_ref(&live), "nothing is left behind");
    assert_eq!(node.behind(&alias), std::slice::from_ref(&live));
    assert_eq!(node.count(&live), 500);
    let settings = node.ask("GET", &format!("/{live}/_settings?flat_settings=true"), None);
    assert_ne!(settings[&live]["settings"]["index.blocks.write"], "true");
}

#[test]
fn credentials_that_expire_half_way_end_the_load() {
    let expired = r#"{"error":{"type":"security_exception","reason":"token expired"},"status":401}"#;
    fails(
        move |asked| {
            if asked.bulk.is_some_and(|n| n >= 3) { Fault::Answer(401, expired) } else { Fault::Pass }
        },
        "ELASTIC_API_KEY",
    );
    let refused = r#"{"error":{"type":"security_exception","reason":"action [indices:data/write/bulk] is unauthorized"},"status":403}"#;
    fails(
        move |asked| {
            if asked.bulk.is_some_and(|n| n >= 2) { Fault::Answer(403, refused) } else { Fault::Pass }
        },
        "privilege",
    );
}

#[test]
fn a_server_that_stays_busy_is_given_up() {
    fails(
        |asked| if asked.bulk.is_some() { Fault::Answer(503, "{}") } else { Fault::Pass },
        "give_up_seconds",
    );
}

#[test]
fn the_servers_own_back_pressure_is_obeyed() {
    // 20 MB of requests to a server that takes 1 MB at a time; and one that queues a single request.
    for settings in [
        ["indexing_pressure.memory.limit=1mb"].as_slice(),
        &["thread_pool.write.size=1", "thread_pool.write.queue_size=1"],
    ] {
        let node = Node::start(settings);
        let config = ElasticConfig { senders: 12, max_bulk_mb: 1, ..config(&node.url(), "shop") };
        let table = Table::of(&pictures(0..6000, 256, 6));
        let mut loaded = load(&table, &config).expect("loaded");
        assert_eq!((loaded.books.searchable, loaded.books.rejected), (6000, 0));
        assert!(loaded.books.retried > 0, "{settings:?}: {:?}", loaded.books);
        server(&mut loaded).promote().expect("promoted");
        let name = node.behind("shop").pop().expect("an index");
        holds_all(loaded.index.as_mut(), &table.rows(), &node, &name);
    }
}

#[test]
fn a_full_disk_ends_the_load_with_its_remedy() {
    let node = Node::start(&[]);
    let table = Table::of(&pictures(0..3000, 16, 1));
    let config = ElasticConfig { give_up_seconds: 2, ..config(&node.url(), "shop") };
    // As the flood-stage watermark does it, as soon as the index is there.
    let error = std::thread::scope(|scope| {
        let loading =
            scope.spawn(|| load(&table, &config).map(|_| ()).expect_err("the disk is full").to_string());
        while !loading.is_finished() {
            let block = json!({ "index.blocks.read_only_allow_delete": true });
            let _ = node.try_request("PUT", "/shop-*/_settings", Some(block));
        }
        loading.join().expect("no panic")
    });
    assert!(error.contains("flood-stage"), "{error}");
    assert_eq!(node.indices("shop"), Vec::<String>::new());
}

#[test]
fn an_index_that_is_deleted_meanwhile_is_not_made_again() {
    let node = Node::start(&[]);
    let table = Table::of(&pictures(0..8000, 64, 1));
    let config = ElasticConfig { encoding: Encoding::Array, senders: 1, ..config(&node.url(), "shop") };
    let error = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&table, &config).map(|_| ()).expect_err("it is gone").to_string());
        while indexed(&node) < 1000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        for name in node.indices("shop") {
            node.ask("DELETE", &format!("/{name}"), None);
        }
        loading.join().expect("no panic")
    });
    assert!(error.contains("deleted") || error.contains("no such index"), "{error}");
    assert_eq!(node.indices("shop"), Vec::<String>::new());
}

#[test]
fn a_server_that_is_gone_for_good_is_said() {
    says_that_a_server_is_gone(Node::start(&[]));
}

pub fn says_that_a_server_is_gone(mut node: Node) {
    let table = Table::of(&pictures(0..8000, 64, 1));
    let config = ElasticConfig {
        encoding: Encoding::Array,
        senders: 1,
        give_up_seconds: 2,
        ..config_of(&node, "shop")
    };
    let error = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&table, &config).map(|_| ()).expect_err("it is gone").to_string());
        while node.indices("shop").is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        node.kill();
        loading.join().expect("no panic")
    });
    assert!(error.contains("does not answer") && error.contains("give_up_seconds"), "{error}");
    // What it left is cleared away by the next load.
    node.restart();
    node.request("DELETE", "/imagedex-locks/_doc/shop?refresh=true", None);
    let config = ElasticConfig { give_up_seconds: 60, ..config };
    let (_, name) = publish(&table, &config);
    assert_eq!(node.indices("shop"), [name]);
}

#[test]
fn what_is_not_elasticsearch_is_refused_in_plain_words() {
    let answers = [
        (
            r#"{"version":{"number":"2.19.1","distribution":"opensearch"}}"#,
            r#"is OpenSearch 2.19.1, not Elasticsearch; set load.engine = "opensearch""#,
        ),
        (r#"{"version":{"number":"7.17.0"}}"#, "speaks to 8 and 9"),
        (r#"{"hello":"world"}"#, "is not Elasticsearch"),
    ];
    for (answer, says) in answers {
        let proxy = Proxy::before(1, move |_| Fault::Answer(200, answer));
        let refused =
            open(&config(&proxy.url(), "shop")).as_server().expect("a server").preflight().expect_err(answer);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    let proxy = Proxy::before(1, move |_| Fault::Answer(200, r#"{"version":{"number":"8.17.3"}}"#));
    let knn = KnnConfig { oversample: Some(3.0), ..KnnConfig::default() };
    let config_of = |knn| ElasticConfig { knn: Some(knn), ..config(&proxy.url(), "shop") };
    let refused = open(&config_of(knn)).as_server().expect("a server").preflight().expect_err("too old");
    assert!(refused.to_string().contains("knn.oversample = 3 needs Elasticsearch 8.18"), "{refused}");
    let nobody = open(&config("http://127.0.0.1:1", "shop"))
        .as_server()
        .expect("a server")
        .preflight()
        .expect_err("nobody");
    assert!(nobody.to_string().contains("ELASTICSEARCH_URL"), "{nobody}");
}

#[test]
fn tls_a_password_and_too_few_privileges() {
    let node = Node::start_secure();
    let shop = Shop::new();
    for (name, seed) in [("gallery/cat/1.png", 1), ("gallery/cat/2.png", 2), ("gallery/dog/3.png", 3)] {
        shop.picture(name, seed);
    }
    shop.picture("queries/cat/4.png", 4);
    let pipeline = |more: &str| {
        shop.pipeline(&format!(
            "[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n\
             [load]\nengine = 'elasticsearch'\n[load.elasticsearch]\nurl = '{}'\nalias = 'shop'\n{more}",
            node.url()
        ));
    };
    let run = |password: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
        command.args(["run", &shop.path("shop.toml").to_string_lossy()]).env("IMAGEDEX_CACHE", cache());
        if let Some(password) = password {
            command.env("ELASTIC_PASSWORD", password);
        }
        said(command.output().expect("the program starts"))
    };
    let ca = format!("ca = '{}'\n", node.ca().display());
    // Each is known before a picture is decoded: there is no feature table afterwards.
    pipeline("user = 'admin'\n");
    run(Some(ADMIN.1)).exits(4).complains("load.elasticsearch.ca");
    pipeline(&ca);
    run(None).exits(4).complains("ELASTIC_API_KEY");
    pipeline(&format!("{ca}user = 'admin'\n"));
    run(None).exits(2).complains("ELASTIC_PASSWORD is not set");
    let refused = run(Some("wrong-secret")).exits(4).complains("ELASTIC_PASSWORD");
    assert!(!refused.err.contains("wrong-secret"), "{}", refused.err);
    pipeline(&format!("{ca}user = '{}'\n", READER.0));
    run(Some(READER.1)).exits(4).complains("lacks privileges").complains("create_index");
    assert!(!shop.path("runs/shop/features").exists());
    pipeline(&format!("{ca}user = 'admin'\n"));
    let done = run(Some(ADMIN.1)).exits(0).says("alias shop now stands for");
    let left = std::fs::read_to_string(shop.path("runs/shop/run.json")).expect("run.json");
    assert!(
        ![done.out, done.err, left].iter().any(|text| text.contains(ADMIN.1)),
        "the password was repeated"
    );
}

/// A pipeline over drawn pictures into a server.
pub fn drawn(node: &Node, alias: &str, more: &str) -> Shop {
    let (shop, engine) = (Shop::new(), node.product().engine());
    for i in 0..12 {
        shop.picture(&format!("gallery/{}/{i}.png", ["cat", "dog", "owl"][i % 3]), i as u32 + 1);
        shop.picture(&format!("queries/{}/{i}.png", ["cat", "dog", "owl"][i % 3]), i as u32 + 1);
    }
    shop.pipeline(&format!(
        "[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n\
         [load]\nengine = '{engine}'\n[load.{engine}]\nurl = '{}'\nalias = '{alias}'\nknn = {{}}\n\
         [evaluate]\nk = [1, 3]\n{more}",
        node.url()
    ));
    shop
}

#[test]
fn a_run_is_promoted_only_if_its_gate_holds_and_can_be_rolled_back() {
    promotes_only_if_the_gate_holds(Node::shared());
}

pub fn promotes_only_if_the_gate_holds(node: &Node) {
    let alias = alias();
    let engine = node.product().engine();
    let shop = drawn(node, &alias, "");
    shop.imagedex("run").exits(0).says("now stands for").says(&format!("{engine} knn "));
    let first = node.behind(&alias);
    assert_eq!(
        shop.run_json()["stages"].as_array().expect("stages").iter().filter(|s| s["stage"] == "load").count(),
        1
    );
    // Another picture, and a gate that nothing passes.
    shop.picture("gallery/owl/new.png", 99);
    let gate = "[gate.cosine]\n'P@1' = 1.0\n'MAP' = 1.0\n";
    let file = std::fs::read_to_string(shop.path("shop.toml")).expect("the pipeline");
    shop.pipeline(&format!("{file}{gate}"));
    shop.imagedex("run").exits(1).says("gate FAILED").says("stays as it was");
    assert_eq!(node.behind(&alias), first, "the live index serves on");
    assert_eq!(node.indices(&alias), first, "the new one is removed");
    // The next good run promotes, and only what changed was sent.
    shop.pipeline(&file);
    shop.imagedex("run").exits(0).says("changes since version").says("1 = indexed 1").says("now stands for");
    let second = node.behind(&alias);
    assert_ne!(first, second);
    // Searches go to the live index.
    let search = |more: &[&str]| {
        let picture = shop.path("queries/dog/1.png");
        let mut args = vec![
            "search".into(),
            picture.into_os_string(),
            "--pipeline".into(),
            shop.path("shop.toml").into_os_string(),
        ];
        args.extend(more.iter().map(std::ffi::OsString::from));
        imagedex(args).exits(0)
    };
    search(&["-k", "1"]).says("dog/1.png").says(engine);
    let cats = search(&["-k", "9", "--only", "label=cat"]);
    assert_eq!(cats.out.matches("cat/").count(), 4, "{}", cats.out);
    assert!(!cats.out.contains("dog/"), "{}", cats.out);
    let rollback = ["load".into(), shop.path("shop.toml").into_os_string(), "--rollback".into()];
    imagedex(rollback).exits(0).says(&first[0]);
    assert_eq!(node.behind(&alias), first);
}

/// Interrupts a second run of a shop while the requests that `is_slow` chooses are under way; says how it ended, and which index
/// was live before.
fn interrupted(
    alias: &str,
    is_slow: impl Fn(&crate::es_proxy::Asked) -> bool + Send + Sync + 'static,
) -> (Shop, crate::support::Said, Vec<String>) {
    // A server that answers so slowly that the signal comes first.
    interrupted_after(alias, Duration::from_secs(4), is_slow)
}

/// The same with answers that are late by `delay`, on which the program would wait for an hour.
fn interrupted_after(
    alias: &str,
    delay: Duration,
    is_slow: impl Fn(&crate::es_proxy::Asked) -> bool + Send + Sync + 'static,
) -> (Shop, crate::support::Said, Vec<String>) {
    let node = Node::shared();
    let shop = drawn(Node::shared(), alias, "");
    shop.imagedex("run").exits(0);
    let live = node.behind(alias);
    shop.picture("gallery/owl/new.png", 99);
    let proxy = Proxy::before(node.port(), move |asked| match is_slow(asked) {
        true => Fault::Delay(delay),
        false => Fault::Pass,
    });
    let url = format!("load.elasticsearch.url={}", proxy.url());
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .args(["run", &shop.path("shop.toml").to_string_lossy(), "--set", &url])
        .args(["--set", "load.elasticsearch.timeout_seconds=3600"])
        .env("IMAGEDEX_CACHE", cache())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    while proxy.spoilt() == 0 {
        assert!(run.try_wait().expect("a state").is_none(), "it ended before the request came");
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &run.id().to_string()]).status();
    assert!(killed.expect("kill starts").success());
    // What docs/operations.md tells service managers to allow; it takes a sixth of that.
    for _ in 0..1_200 {
        if run.try_wait().expect("a state").is_some() {
            return (shop, said(run.wait_with_output().expect("its words")), live);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run.kill().expect("killed");
    panic!("still there two minutes after the signal: {:?}", run.wait_with_output());
}

#[test]
fn a_server_that_hangs_does_not_hold_up_the_end() {
    let (node, alias) = (Node::shared(), alias());
    let hangs = std::sync::atomic::AtomicBool::new(false);
    let (_, said, live) = interrupted_after(&alias, Duration::from_secs(1_200), move |asked| {
        // From the first bulk request on nothing is answered, also what would clean up.
        hangs.fetch_or(asked.bulk.is_some(), Ordering::SeqCst) || asked.bulk.is_some()
    });
    said.exits(130);
    assert_eq!(node.behind(&alias), live);
}

#[test]
fn ctrl_c_in_the_middle_of_a_load_leaves_what_users_search_as_it_was() {
    let (node, alias) = (Node::shared(), alias());
    let (shop, said, live) = interrupted(&alias, |asked| asked.bulk.is_some());
    said.exits(130);
    assert_eq!(node.indices(&alias), live, "the half-made index is removed");
    assert_eq!(node.behind(&alias), live);
    shop.imagedex("run").exits(0).says("now stands for");
}

#[test]
fn ctrl_c_while_the_load_is_verified_leaves_what_users_search_as_it_was() {
    let (node, alias) = (Node::shared(), alias());
    let (shop, said, live) = interrupted(&alias, |asked| asked.path.contains("_mget"));
    said.exits(130);
    assert_eq!((node.indices(&alias), node.behind(&alias)), (live.clone(), live));
    shop.imagedex("run").exits(0).says("now stands for");
}

#[test]
fn ctrl_c_while_the_alias_moves_leaves_one_index_behind_it() {
    let (node, alias) = (Node::shared(), alias());
    let (shop, said, live) = interrupted(&alias, |asked| asked.path.starts_with("/_aliases"));
    // The request was on its way: it is seen through, and what stands there is said.
    let behind = node.behind(&alias);
    assert_eq!(behind.len(), 1, "{behind:?}");
    assert_ne!(behind, live);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    said.says(&behind[0]);
    shop.imagedex("run").exits(0).says("stands for");
    assert_eq!(node.behind(&alias), behind);
}

#[test]
fn a_panic_in_the_middle_removes_the_half_made_index() {
    let (node, alias) = (Node::shared(), alias());
    let rows = pictures(0..50, 8, 1);
    let config = config(&node.url(), &alias);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut index = open(&config);
        index.create(rows.dim).expect("made");
        assert_eq!(node.indices(&alias).len(), 1);
        index.upsert(&rows).expect("sent");
        panic!("for the test");
    }));
    assert!(panicked.is_err());
    assert_eq!(node.indices(&alias), Vec::<String>::new());
    // The lock is free again.
    publish(&Table::of(&rows), &config);
}

#[test]
fn an_index_whose_shards_no_node_takes_is_not_loaded() {
    let (node, alias) = (Node::shared(), alias());
    let start = format!("/{alias}-");
    let proxy = Proxy::before(node.port(), move |asked| {
        match asked.method == "PUT" && asked.path.starts_with(&start) {
            true => Fault::Answer(200, r#"{"acknowledged":true,"shards_acknowledged":false,"index":"x"}"#),
            false => Fault::Pass,
        }
    });
    let error =
        load(&Table::of(&pictures(0..5, 8, 1)), &config(&proxy.url(), &alias)).err().expect("refused");
    assert!(error.to_string().contains("no node took its shards"), "{error}");
    assert_eq!(node.indices(&alias), Vec::<String>::new());
}

/// A server that notes the head of each request, and lets nobody in.
#[test]
fn an_api_key_is_sent_and_never_shown() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let heads = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let noted = std::sync::Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            noted.lock().expect("unpoisoned").push_str(&String::from_utf8_lossy(&head[..read]));
            let body = r#"{"error":{"type":"security_exception","reason":"unable to authenticate with provided credentials"},"status":401}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let shop = drawn(Node::shared(), &alias(), "");
    let key = "dGhlOnNlY3JldC1rZXk=";
    let said = said(
        std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"))
            .args(["run", &shop.path("shop.toml").to_string_lossy()])
            .args(["--set", &format!("load.elasticsearch.url={url}")])
            .env("IMAGEDEX_CACHE", cache())
            .env("ELASTIC_API_KEY", key)
            .env("IMAGEDEX_LOG", "trace,imagedex=trace")
            .output()
            .expect("the program starts"),
    )
    .exits(4)
    .complains("unable to authenticate");
    assert!(
        heads
            .lock()
            .expect("unpoisoned")
            .to_lowercase()
            .contains(&format!("authorization: apikey {key}").to_lowercase())
    );
    for text in [&said.out, &said.err] {
        assert!(!text.contains(key) && !text.contains("the:secret-key"), "{text}");
    }
}

#[test]
fn only_what_users_searched_is_gone_back_to_and_kept() {
    let (node, alias) = (Node::shared(), alias());
    let config = ElasticConfig { incremental: false, ..config(&node.url(), &alias) };
    let mut table = Table::of(&pictures(0..30, 8, 1));
    // Nothing was promoted yet: a complete index is nothing to go back to.
    load(&table, &config).expect("loaded");
    let error = open(&config).as_server().expect("a server").rollback().expect_err("nothing to go back to");
    assert!(error.to_string().contains("no earlier index"), "{error}");
    let (_, first) = publish(&table, &config);
    // Loaded, never promoted; the next run removes it.
    table.append(&pictures(30..31, 8, 1));
    load(&table, &config).expect("loaded");
    assert_eq!(node.indices(&alias).len(), 2);
    table.append(&pictures(31..32, 8, 1));
    let (_, second) = publish(&table, &config);
    assert_eq!(BTreeSet::from_iter(node.indices(&alias)), BTreeSet::from([first.clone(), second.clone()]));
    open(&config).as_server().expect("a server").rollback().expect("back");
    assert_eq!(node.behind(&alias), [first.as_str()]);
    // What was taken back is no place to go back to, and is not kept.
    table.append(&pictures(32..33, 8, 1));
    let (_, third) = publish(&table, &config);
    assert_eq!(BTreeSet::from_iter(node.indices(&alias)), BTreeSet::from([first.clone(), third]));
    open(&config).as_server().expect("a server").rollback().expect("back");
    assert_eq!(node.behind(&alias), [first.as_str()]);
}

#[test]
fn a_live_index_that_somebody_changed_is_loaded_anew() {
    let (node, alias) = (Node::shared(), alias());
    let config = config(&node.url(), &alias);
    let mut table = Table::of(&pictures(0..30, 8, 1));
    let (_, live) = publish(&table, &config);
    let found = node.ask("GET", &format!("/{live}/_search?size=1"), None);
    let id = found["hits"]["hits"][0]["_id"].as_str().expect("an id").to_owned();
    node.ask("DELETE", &format!("/{live}/_doc/{id}?refresh=true"), None);
    assert_eq!(node.count(&live), 29);
    let (books, second) = publish(&table, &config);
    assert_eq!((books.sent_what.as_str(), books.searchable), ("everything", 30));
    // Whole again, it takes changes.
    table.append(&pictures(30..31, 8, 1));
    let (books, _) = publish(&table, &config);
    assert_eq!((books.sent, books.searchable), (1, 31));
    assert_ne!(second, live);
}

#[test]
fn an_alias_over_somebody_elses_index_is_refused() {
    let (node, alias) = (Node::shared(), alias());
    let body = json!({ "aliases": { alias.clone(): {} } });
    node.ask("PUT", &format!("/{alias}x"), Some(body));
    let error = load(&Table::of(&pictures(0..5, 8, 1)), &config(&node.url(), &alias)).err().expect("refused");
    assert!(error.to_string().contains("which imagedex did not make"), "{error}");
    assert_eq!(node.behind(&alias), [format!("{alias}x")]);
}

#[test]
fn ctrl_c_while_the_index_is_measured_removes_it() {
    let (node, alias) = (Node::shared(), alias());
    let (shop, said, live) = interrupted(&alias, |asked| asked.path.contains("_msearch"));
    said.exits(130).complains("interrupted");
    assert_eq!((node.indices(&alias), node.behind(&alias)), (live.clone(), live));
    shop.imagedex("run").exits(0).says("now stands for");
}

#[test]
fn hits_have_the_labels_that_the_index_has() {
    let alias = alias();
    let shop = drawn(Node::shared(), &alias, "");
    shop.imagedex("run").exits(0);
    // The picture leaves the table, and not the index that users search.
    std::fs::remove_file(shop.path("gallery/dog/1.png")).expect("removed");
    shop.imagedex("extract").exits(0);
    let picture = shop.path("queries/dog/1.png").display().to_string();
    let pipeline = shop.path("shop.toml").display().to_string();
    let said = imagedex(["search", &picture, "--pipeline", &pipeline, "-k", "1"]).exits(0);
    assert!(said.out.contains("dog/1.png  dog"), "{}", said.out);
}
