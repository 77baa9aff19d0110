//! Milvus, the real one: the same promises as with Elasticsearch, on collections in place of indices.

use std::time::Duration;

use imagedex::engines::elastic::Address;
use imagedex::engines::flat::Flat;
use imagedex::engines::milvus::{IndexKind, MilvusConfig};
use imagedex::engines::{self, EngineConfig, EngineError, Filter, Query, Searcher, Server, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::load::{self, LoadError, Loaded};
use serde_json::json;

use crate::elastic::{Table, alias, answers_as_flat_does, picture, pictures, runtime};
use crate::milvus_node::{ADMIN, MilvusNode};
use crate::support::{Shop, cache, imagedex, said};

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::DotProduct, Metric::L2];

pub fn config(node: &MilvusNode, alias: &str) -> MilvusConfig {
    let uri = Some(Address::try_from(node.url()).expect("an address"));
    MilvusConfig { uri, alias: alias.to_owned(), give_up_seconds: 120, ..MilvusConfig::default() }
}

pub fn open(config: &MilvusConfig) -> Box<dyn VectorIndex> {
    engines::open(&EngineConfig::Milvus(config.clone()), true, runtime().handle()).expect("opens")
}

fn load(table: &Table, config: &MilvusConfig) -> Result<Loaded, LoadError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dead = folder.path().join("rejected.jsonl");
    load::load(runtime().handle(), &table.store, open(config), config.max_rejected, &dead)
}

fn server(loaded: &mut Loaded) -> &mut dyn Server {
    loaded.index.as_server().expect("a server")
}

/// Every vector of the table is in each collection, bit for bit.
#[track_caller]
fn holds_all(loaded: &mut Loaded, rows: &EmbeddingBatch) {
    assert_eq!(loaded.books.searchable, rows.len() as u64);
    let ids: Vec<String> = rows.pictures.iter().map(|picture| picture.id.clone()).collect();
    // Which collection a vector comes from goes by its place: moved by one, each comes from another.
    for first in 0..2 {
        let asked = &ids[first..];
        for (i, vector) in server(loaded).vectors(asked).expect("read back").into_iter().enumerate() {
            let vector = vector.unwrap_or_else(|| panic!("{} is missing", asked[i]));
            let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&vector) == bits(rows.vector(first + i)), "{}", asked[i]);
        }
    }
}

#[test]
fn all_three_metrics_answer_as_flat_does() {
    let node = MilvusNode::shared();
    let (rows, queries) = (pictures(0..1500, 64, 3), pictures(0..40, 64, 11));
    let config = MilvusConfig { metrics: METRICS.to_vec(), ..config(node, &alias()) };
    let mut loaded = load(&Table::of(&rows), &config).expect("loaded");
    answers_as_flat_does(&loaded, &rows, &queries);
    holds_all(&mut loaded, &rows);
}

#[test]
fn graphs_find_most_and_score_on_our_scale() {
    let node = MilvusNode::shared();
    // Enough for a graph: Milvus searches small segments without one.
    let (rows, queries) = (pictures(0..3000, 32, 3), pictures(0..40, 32, 11));
    let config = MilvusConfig { index: IndexKind::Hnsw, metrics: METRICS.to_vec(), ..config(node, &alias()) };
    let loaded = load(&Table::of(&rows), &config).expect("loaded");
    assert_eq!((loaded.index.name(), loaded.index.is_exact()), ("milvus HNSW", false));
    let mut flat = Flat::new(true);
    flat.create(rows.dim).expect("flat");
    flat.upsert(&rows).expect("flat");
    flat.commit().expect("flat");
    for metric in METRICS {
        let mut found = 0;
        for i in 0..queries.len() {
            let query = |k| Query { vector: queries.vector(i), k, metric };
            let all = flat.search(&query(rows.len())).expect("flat");
            let hits = loaded.index.search(&query(10)).expect("searched");
            assert_eq!(hits.len(), 10);
            for hit in &hits {
                let truth = all.iter().find(|other| other.id == hit.id).expect("a picture of ours");
                let difference = (hit.score - truth.score).abs();
                assert!(difference <= 2e-6 * truth.score.max(1.0), "{metric}: {hit:?} {truth:?}");
            }
            found += hits.iter().filter(|hit| all[..10].iter().any(|other| other.id == hit.id)).count();
        }
        // Graphs differ from build to build, and by the dot product of vectors of all lengths they find fewer: 339 were seen.
        assert!(found >= 280, "{metric}: {found} of 400");
    }
}

#[test]
fn equal_scores_come_by_id_however_many_there_are() {
    let node = MilvusNode::shared();
    let mut rows = EmbeddingBatch { dim: 2, ..EmbeddingBatch::default() };
    for i in (0..60).rev() {
        rows.pictures.push(picture(format!("twin/{i:02}")));
        rows.vectors.extend([0.6, 0.8]);
        rows.norms.push(1.0);
    }
    rows.pictures.push(picture("near".to_owned()));
    rows.vectors.extend([0.8, 0.6]);
    rows.norms.push(1.0);
    let mut index = open(&config(node, &alias()));
    index.create(2).expect("created");
    index.upsert(&rows).expect("put in");
    index.commit().expect("searchable");
    for k in [1, 7, 59, 60, 61, 100] {
        let hits = index.search(&Query { vector: &[0.6, 0.8], k, metric: Metric::Cosine }).expect("searched");
        let mut expected: Vec<String> = (0..60).map(|i| format!("twin/{i:02}")).collect();
        expected.push("near".to_owned());
        expected.truncate(k);
        assert_eq!(hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>(), expected, "k {k}");
    }
}

#[test]
fn ids_and_labels_may_hold_anything() {
    let node = MilvusNode::shared();
    let ids = [
        "plain.png",
        "with \"quotes\".png",
        "back\\slash.png",
        "two\nlines.png",
        "a\"] or id != \"",
        "{template}.png",
        "%like%_.png",
        "äöü/日本語/🖼.png",
        "'single'.png",
        "tab\there.png",
    ];
    let mut rows = EmbeddingBatch { dim: 4, ..EmbeddingBatch::default() };
    for (i, id) in ids.iter().enumerate() {
        let mut picture = picture((*id).to_owned());
        picture.label = Some(format!("class {id}")).filter(|_| i > 0);
        picture.width = 100 + i as u32;
        rows.pictures.push(picture);
        rows.vectors.extend([1.0, i as f32 / 10.0, 0.5, 0.25]);
        rows.norms.push(1.0);
    }
    let mut index = open(&config(node, &alias()));
    index.create(4).expect("created");
    index.upsert(&rows).expect("put in");
    assert_eq!(index.commit().expect("searchable"), ids.len() as u64);
    let all: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    let server = index.as_server().expect("a server");
    for (id, vector) in all.iter().zip(server.vectors(&all).expect("read back")) {
        assert!(vector.is_some(), "{id}");
    }
    let labels = server.labels(&all).expect("labels");
    assert_eq!(labels.len(), ids.len() - 1, "the first has none");
    let query = Query { vector: &[1.0, 0.0, 0.5, 0.25], k: 20, metric: Metric::Cosine };
    for id in &ids[1..] {
        assert_eq!(labels[*id], format!("class {id}"));
        let filter = Filter { column: "label".to_owned(), value: format!("class {id}") };
        let hits = server.search_filtered(&query, &[filter]).expect("filtered");
        assert_eq!(hits.iter().map(|hit| hit.id.as_str()).collect::<Vec<_>>(), [*id]);
    }
    let filter = |column: &str, value: &str| Filter { column: column.to_owned(), value: value.to_owned() };
    let both = [filter("width", "103"), filter("format", "png")];
    assert_eq!(server.search_filtered(&query, &both).expect("filtered")[0].id, ids[3]);
    let refused = server.search_filtered(&query, &[filter("colour", "red")]).expect_err("no such column");
    assert!(matches!(&refused, EngineError::Usage(reason) if reason.contains("label")), "{refused}");
    // Deleted one after another, and nothing else with them.
    for (gone, id) in all.iter().enumerate() {
        index.delete(std::slice::from_ref(id)).expect("deleted");
        assert_eq!(index.commit().expect("searchable"), (ids.len() - gone - 1) as u64, "{id}");
    }
}

#[test]
fn a_load_is_promoted_taken_back_and_pruned() {
    let node = MilvusNode::shared();
    let alias = alias();
    let config = MilvusConfig { metrics: vec![Metric::Cosine, Metric::L2], ..config(node, &alias) };
    // Somebody else's of such a name.
    let theirs = format!("{alias}_cosine_of_somebody_else");
    node.make(&theirs, None);
    let mut table = Table::of(&pictures(0..20, 8, 1));
    let mut live = Vec::new();
    for i in 0..3 {
        let mut loaded = load(&table, &config).expect("loaded");
        assert_eq!((loaded.books.gallery, loaded.books.searchable), (20 + i, 20 + i));
        assert_eq!(node.behind(&alias), live.last().cloned(), "what users search stays until the end");
        let said = server(&mut loaded).promote().expect("promoted");
        assert!(said.contains(&format!("alias {alias} now stands for {alias}_cosine_")), "{said}");
        live.extend(node.behind(&alias));
        let l2 = node.behind(&format!("{alias}_l2")).expect("an alias of its own");
        assert_eq!(l2.replace("_l2_", "_cosine_"), live[i as usize], "of the same load");
        drop(loaded);
        // The same again is not sent again.
        let mut again = load(&table, &config).expect("loaded");
        assert!(again.books.sent_what.starts_with("nothing"), "{}", again.books.sent_what);
        assert!(server(&mut again).promote().expect("promoted").contains("stands already for"));
        drop(again);
        table.append(&pictures(100 + i as usize..101 + i as usize, 8, 2));
    }
    let mut kept = vec![theirs];
    kept.extend(live[1..].iter().flat_map(|name| [name.clone(), name.replace("_cosine_", "_l2_")]));
    kept.sort();
    assert_eq!(node.collections(&format!("{alias}_")), kept, "one earlier load stays, and what is not ours");
    let said = open(&config).as_server().expect("a server").rollback().expect("rolled back");
    assert!(said.contains("again"), "{said}");
    assert_eq!(node.behind(&alias).as_ref(), Some(&live[1]));
    let mut attached = open(&config);
    attached.as_server().expect("a server").attach("0123456789abcdef", 8).expect("it is searched again");
    let query = pictures(0..1, 8, 1);
    let query = Query { vector: query.vector(0), k: 50, metric: Metric::L2 };
    assert_eq!(attached.search(&query).expect("searched").len(), 21);
    let refused = open(&config).as_server().expect("a server").rollback().expect_err("nothing before it");
    assert!(refused.to_string().contains("no earlier load"), "{refused}");
    for (fingerprint, dim) in [("another", 8), ("0123456789abcdef", 9)] {
        let refused = open(&config).as_server().expect("a server").attach(fingerprint, dim);
        let refused = refused.expect_err("other settings").to_string();
        assert!(refused.contains("made with other settings"), "{refused}");
    }
}

#[test]
fn a_load_whose_run_was_killed_right_after_its_aliases_moved_is_an_earlier_load_later() {
    let node = MilvusNode::shared();
    let alias = alias();
    let config = MilvusConfig { metrics: vec![Metric::Cosine, Metric::L2], ..config(node, &alias) };
    let mut table = Table::of(&pictures(0..20, 8, 1));
    let publish = |table: &Table| {
        server(&mut load(table, &config).expect("loaded")).promote().expect("promoted");
        let cosine = node.behind(&alias).expect("an alias");
        [cosine.clone(), cosine.replace("_cosine_", "_l2_")]
    };
    let all = |loads: &[&[String; 2]]| {
        let mut names: Vec<String> = loads.iter().flat_map(|load| load.iter().cloned()).collect();
        names.sort();
        names
    };
    let unmark = |load: &[String; 2]| {
        for name in load {
            let mut meta = node.meta(name);
            meta["state"] = "complete".into();
            node.set_meta(name, &meta);
        }
    };
    let first = publish(&table);
    table.append(&pictures(20..21, 8, 2));
    let second = publish(&table);
    table.append(&pictures(21..22, 8, 3));
    // As its run left it that was killed once the aliases stood for it: not marked, and nothing pruned.
    let kept = MilvusConfig { keep: 9, ..config.clone() };
    server(&mut load(&table, &kept).expect("loaded")).promote().expect("promoted");
    let cosine = node.behind(&alias).expect("an alias");
    let live = [cosine.clone(), cosine.replace("_cosine_", "_l2_")];
    unmark(&live);
    assert_eq!(node.collections(&format!("{alias}_")), all(&[&first, &second, &live]));
    // The next run has nothing to send, and sees it through.
    assert_eq!(publish(&table), live);
    assert_eq!(live.each_ref().map(|name| node.meta(name)["state"].clone()), ["promoted", "promoted"]);
    assert_eq!(node.collections(&format!("{alias}_")), all(&[&second, &live]), "what is too old is pruned");
    // The next run has more to send.
    unmark(&live);
    table.append(&pictures(22..23, 8, 4));
    let next = publish(&table);
    assert_eq!(node.collections(&format!("{alias}_")), all(&[&live, &next]));
    let said = open(&config).as_server().expect("a server").rollback().expect("rolled back");
    assert!(said.contains("again"), "{said}");
    assert_eq!(node.behind(&alias).as_ref(), Some(&live[0]));
}

#[test]
fn aliases_that_cannot_be_moved_are_refused_before_anything_is_loaded() {
    let node = MilvusNode::shared();
    let table = Table::of(&pictures(0..5, 8, 1));
    let taken = alias();
    node.make(&taken, None);
    let error = load(&table, &config(node, &taken)).map(|_| ()).expect_err("a collection of that name");
    assert!(error.to_string().contains("a collection, not an alias, is called"), "{error}");
    let theirs = alias();
    node.make(&format!("{theirs}x"), None);
    node.point(&theirs, &format!("{theirs}x"));
    let error = load(&table, &config(node, &theirs)).map(|_| ()).expect_err("another's");
    assert!(error.to_string().contains("imagedex did not make"), "{error}");
    assert_eq!(node.collections(&theirs), [format!("{theirs}x")]);
}

#[test]
fn one_load_at_a_time_and_a_dead_runs_lock_is_taken_over() {
    let node = MilvusNode::shared();
    let alias = alias();
    let config = config(node, &alias);
    let table = Table::of(&pictures(0..5, 8, 1));
    let mut first = load(&table, &config).expect("loaded");
    let refused = load(&table, &config).map(|_| ()).expect_err("locked");
    assert!(matches!(refused, LoadError::Engine(EngineError::Locked(_))), "{refused}");
    assert!(refused.to_string().contains("another run"), "{refused}");
    // Another run believed that this one was dead.
    let lock = format!("{alias}_lock");
    let other = json!({ "owner": "other", "host": "elsewhere", "process": 1, "heartbeat": 1000 }).to_string();
    node.remove(&lock);
    node.make(&lock, Some(("imagedex.lock", &other)));
    let refused = server(&mut first).promote().expect_err("not ours any more");
    assert!(matches!(refused, EngineError::Locked(_)), "{refused}");
    assert_eq!(node.behind(&alias), None);
    drop(first);
    assert_eq!(node.collections(&lock), [lock.as_str()], "the other's lock stays");
    // That run was killed long ago, too, with half a load.
    let mut half_made = open(&config);
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| half_made.create(8));
        begun.join().expect("no panic").expect("taken over, and begun");
    });
    let left = node.collections(&format!("{alias}_cosine_"));
    assert_eq!(left.len(), 2, "{left:?}");
    std::mem::forget(half_made);
    let dead = json!({ "owner": "dead", "host": "gone", "process": 1, "heartbeat": 1000 }).to_string();
    node.remove(&lock);
    node.make(&lock, Some(("imagedex.lock", &dead)));
    let mut loaded = load(&table, &config).expect("taken over");
    server(&mut loaded).promote().expect("promoted");
    let live = node.behind(&alias).expect("live");
    assert_eq!(node.collections(&format!("{alias}_cosine_")), [live], "what they left is cleared away");
    drop(loaded);
    assert_eq!(node.collections(&lock), Vec::<String>::new(), "the lock is let go");
}

#[test]
fn a_vector_of_zeros_is_a_dead_letter() {
    let node = MilvusNode::shared();
    let mut rows = pictures(0..10, 8, 1);
    rows.vectors[16..24].fill(0.0);
    let table = Table::of(&rows);
    let config = config(node, &alias());
    let refused = load(&table, &config).map(|_| ()).expect_err("none may be refused");
    assert!(matches!(refused, LoadError::OverBudget { rejected: 1, .. }), "{refused}");
    let config = MilvusConfig { max_rejected: imagedex::config::Budget::Count(1), ..config };
    let loaded = load(&table, &config).expect("one may be");
    assert_eq!((loaded.books.searchable, loaded.books.rejected), (9, 1));
}

#[test]
fn pictures_survive_two_kills_of_the_server() {
    let mut node = MilvusNode::start(|_| Vec::new());
    let rows = pictures(0..30_000, 64, 5);
    let table = Table::of(&rows);
    let config = MilvusConfig { metrics: vec![Metric::Cosine, Metric::L2], ..config(&node, "shop") };
    let mut loaded = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&table, &config).expect("loaded"));
        while node.collections("shop_l2_").is_empty() {
            assert!(!loading.is_finished(), "the load was done before the server could be killed");
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(150));
            assert!(!loading.is_finished(), "the load was done before the server could be killed");
            node.kill();
            std::thread::sleep(Duration::from_millis(500));
            node.restart();
        }
        loading.join().expect("no panic")
    });
    assert_eq!((loaded.books.gallery, loaded.books.sent, loaded.books.indexed), (30_000, 30_000, 30_000));
    assert!(loaded.books.retried > 0, "{:?}", loaded.books);
    holds_all(&mut loaded, &rows);
    server(&mut loaded).promote().expect("promoted");
}

#[test]
fn a_server_that_is_gone_is_said() {
    let mut node = MilvusNode::start(|_| Vec::new());
    let rows = pictures(0..5, 8, 1);
    let table = Table::of(&rows);
    let patient = config(&node, "shop");
    // More than a request of a load takes on a busy machine.
    let config = MilvusConfig { give_up_seconds: 30, timeout_seconds: 30, ..patient.clone() };
    let loaded = load(&table, &config).expect("loaded");
    node.kill();
    let query = Query { vector: rows.vector(0), k: 1, metric: Metric::Cosine };
    let error = loaded.index.search(&query).expect_err("it is gone").to_string();
    assert!(error.contains("search") && error.contains("give_up_seconds"), "{error}");
    drop(loaded);
    let error = load(&table, &config).map(|_| ()).expect_err("nobody is there").to_string();
    assert!(error.contains("does not answer") && error.contains("MILVUS_URI"), "{error}");
    // What it left is used if the server still holds all of it, else replaced; its lock is not waited for here. (That a load which
    // stands is used is part of the engines' contract.)
    node.restart();
    node.remove("shop_lock");
    let mut again = load(&table, &patient).expect("loaded");
    holds_all(&mut again, &rows);
    assert_eq!(node.collections("shop_cosine_").len(), 1);
}

/// A pipeline over drawn pictures into a server.
fn shop(node: &MilvusNode, alias: &str, more: &str) -> Shop {
    let shop = Shop::new();
    for i in 0..12 {
        shop.picture(&format!("gallery/{}/{i}.png", ["cat", "dog", "owl"][i % 3]), i as u32 + 1);
        shop.picture(&format!("queries/{}/{i}.png", ["cat", "dog", "owl"][i % 3]), i as u32 + 1);
    }
    shop.pipeline(&format!(
        "[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n\
         [evaluate]\nk = [1, 3]\n[load]\nengine = 'milvus'\n[load.milvus]\nuri = '{}'\nalias = '{alias}'\n{more}",
        node.url()
    ));
    shop
}

#[test]
fn a_run_is_promoted_only_if_its_gate_holds_and_can_be_rolled_back() {
    let node = MilvusNode::shared();
    let alias = alias();
    let shop = shop(node, &alias, "metrics = ['cosine', 'l2']\nindex = ['FLAT', 'HNSW']\n");
    let said = shop.imagedex("run").exits(0).says(&format!("alias {alias} now stands for"));
    for row in ["searchable in milvus 12", "searchable in milvus HNSW 12", "milvus HNSW, held_out"] {
        assert!(said.out.contains(row), "{row} in {}", said.out);
    }
    assert!(!said.out.contains("\nl1"), "{}", said.out);
    assert!(node.behind(&format!("{alias}_hnsw_l2")).is_some());
    let first = node.behind(&alias).expect("live");
    shop.picture("gallery/owl/new.png", 99);
    let file = std::fs::read_to_string(shop.path("shop.toml")).expect("the pipeline");
    shop.pipeline(&format!("{file}[gate.cosine]\n'P@1' = 1.0\n'MAP' = 1.0\n"));
    shop.imagedex("run").exits(1).says("gate FAILED").says("stays as it was");
    assert_eq!(node.behind(&alias), Some(first.clone()), "the live collection serves on");
    assert_eq!(node.collections(&format!("{alias}_cosine_")), [first.as_str()], "the new one is removed");
    shop.pipeline(&file);
    shop.imagedex("run").exits(0).says("now stands for");
    assert_ne!(node.behind(&alias), Some(first.clone()));
    let search = |more: &[&str]| {
        let picture = shop.path("queries/dog/1.png").to_string_lossy().into_owned();
        let pipeline = shop.path("shop.toml").to_string_lossy().into_owned();
        let mut args = vec!["search".to_owned(), picture, "--pipeline".to_owned(), pipeline];
        args.extend(more.iter().map(|text| (*text).to_owned()));
        imagedex(args).exits(0)
    };
    search(&["-k", "1"]).says("dog/1.png").says("milvus");
    let cats = search(&["-k", "9", "--only", "label=cat"]);
    assert_eq!((cats.out.matches("cat/").count(), cats.out.contains("dog/")), (4, false), "{}", cats.out);
    shop.imagedex("doctor").exits(0).says("Milvus v2.3.5");
    let rollback = ["load".into(), shop.path("shop.toml").into_os_string(), "--rollback".into()];
    imagedex(rollback).exits(0).says("again");
    assert_eq!(node.behind(&alias), Some(first));
}

#[test]
fn a_run_that_is_interrupted_leaves_the_live_collection_and_nothing_else() {
    let node = MilvusNode::shared();
    let alias = alias();
    let shop = shop(node, &alias, "metrics = ['cosine', 'l2']\n");
    shop.imagedex("run").exits(0);
    let live = node.collections(&format!("{alias}_"));
    shop.picture("gallery/owl/new.png", 99);
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .args(["run", &shop.path("shop.toml").to_string_lossy()])
        .env("IMAGEDEX_CACHE", cache())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Both collections are there, and being flushed, which takes some seconds.
    while node.collections(&format!("{alias}_l2_")).len() < 2 {
        assert!(run.try_wait().expect("a state").is_none(), "it ended before it loaded");
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = run.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill starts").success());
    said(run.wait_with_output().expect("its output")).exits(130);
    assert_eq!(node.collections(&format!("{alias}_")), live, "no half a load, and no lock");
    shop.imagedex("run").exits(0).says("now stands for");
}

#[test]
fn tls_and_tokens() {
    let node = MilvusNode::start(|folder| {
        let mut script = std::process::Command::new("bash");
        script.arg(crate::support::root().join("tests/milvus-node/secure.sh")).arg(folder);
        let said = script.output().expect("bash starts");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let file = |name: &str| folder.join(name).display().to_string();
        vec![
            "common.security.tlsMode=1".to_owned(),
            "common.security.authorizationEnabled=true".to_owned(),
            format!("server_pem_path={}", file("node.pem")),
            format!("server_key_path={}", file("node.key")),
        ]
    });
    let ca = format!("ca = '{}'\n", node.ca().display());
    let run = |more: &str, secret: Option<(&str, &str)>| {
        let shop = shop(&node, "shop", more);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
        command.args(["run", &shop.path("shop.toml").to_string_lossy()]).env("IMAGEDEX_CACHE", cache());
        if let Some((name, value)) = secret {
            command.env(name, value);
        }
        (said(command.output().expect("the program starts")), shop)
    };
    run("", Some(("MILVUS_TOKEN", ADMIN))).0.exits(4).complains("load.milvus.ca");
    run(&ca, None).0.exits(4).complains("MILVUS_TOKEN");
    run(&format!("{ca}user = 'root'\n"), None).0.exits(2).complains("MILVUS_PASSWORD is not set");
    let (refused, shop) = run(&ca, Some(("MILVUS_TOKEN", "root:wrong-secret")));
    let refused = refused.exits(4).complains("MILVUS_TOKEN");
    assert!(!refused.err.contains("wrong-secret"), "{}", refused.err);
    assert!(!shop.path("runs/shop/features").exists(), "it is known before a picture is decoded");
    run(&format!("{ca}user = 'root'\n"), Some(("MILVUS_PASSWORD", "Milvus"))).0.exits(0);
    run(&ca, Some(("MILVUS_TOKEN", ADMIN))).0.exits(0).says("stands");
}

#[test]
fn retrieve_finds_what_numpy_finds() {
    let Some(seed) = crate::support::shared("seed") else { return };
    let node = MilvusNode::shared();
    let picture = std::fs::read_dir(seed.join("test")).expect("a folder").next().expect("one").expect("one");
    let retrieve = |engine: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imagedex"));
        command
            .env("IMAGEDEX_CACHE", cache())
            .env("MILVUS_HOST", "localhost")
            .env("MILVUS_PORT", node.port().to_string())
            .args(["retrieve", "--engine", engine, "--provider", "openvino", "--threshold", "0"])
            .args(["--db_name", "image_retrieval", "--test_data"])
            .arg(picture.path())
            .arg("--index_file")
            .arg(seed.join("train.h5"));
        let found = said(command.output().expect("the program starts")).exits(0).out;
        let line = |line: &str| {
            let (name, score) = line.rsplit_once("  ").expect("name and score");
            (name.to_owned(), score.parse::<f32>().expect("a number"))
        };
        found.lines().map(line).collect::<Vec<_>>()
    };
    let (numpy, first, second) = (retrieve("numpy"), retrieve("milvus"), retrieve("milvus"));
    assert_eq!(first, second);
    assert_eq!(numpy.len(), 3);
    for ((name, score), (expected, of_numpy)) in first.iter().zip(&numpy) {
        assert_eq!(name, expected);
        assert!((score - of_numpy).abs() <= 1.5e-6, "{score} {of_numpy}");
    }
    assert_eq!(node.collections("image_retrieval_cosine_").len(), 1, "the second finds the file loaded");
}
