//! One contract, run against every engine; then `flat` against a brute force written down in five lines.

use imagedex::engines::faiss::FaissConfig;
use imagedex::engines::flat::{Flat, Nearest};
use imagedex::engines::hnsw::{Hnsw, HnswConfig, Storage};
use imagedex::engines::kernels::Kernel;
use imagedex::engines::{self, EngineConfig, EngineError, Hit, Query, Searcher, Source, VectorIndex};
use imagedex::metric::Metric;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;

use crate::elastic;
use crate::es_node::Node;

/// Every engine that runs inside this process, with the card of a model whose numbers are never negative.
fn engines() -> Vec<Box<dyn VectorIndex>> {
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let mut configs = vec![EngineConfig::Flat, EngineConfig::Hnsw(HnswConfig::default())];
    if cfg!(feature = "faiss") {
        let graph = FaissConfig { index: "HNSW32,Flat".to_owned(), ..FaissConfig::default() };
        configs.extend([FaissConfig::default(), graph].map(EngineConfig::Faiss));
    }
    let opened =
        configs.into_iter().map(|config| engines::open(&config, true, runtime.handle()).expect("opens"));
    let kernels =
        Kernel::available().into_iter().map(|kernel| Box::new(Flat::with_kernel(true, kernel)) as Box<_>);
    opened.chain(kernels).collect()
}

#[test]
fn elasticsearch_keeps_the_contract() {
    a_server_keeps_the_contract(Node::shared());
}

#[test]
fn opensearch_keeps_the_contract() {
    a_server_keeps_the_contract(Node::shared_opensearch());
}

#[cfg(feature = "milvus")]
#[test]
fn milvus_keeps_the_contract() {
    use imagedex::engines::milvus::{IndexKind, MilvusConfig};
    let metrics = vec![Metric::Cosine, Metric::DotProduct, Metric::L2];
    for (alias, index) in [("contract_flat", IndexKind::Flat), ("contract_hnsw", IndexKind::Hnsw)] {
        let config = crate::milvus::config(crate::milvus_node::MilvusNode::shared(), alias);
        let config = MilvusConfig { metrics: metrics.clone(), index, ..config };
        keeps_the_contract(crate::milvus::open(&config).as_mut());
        is_opened_again_and_twice(&|| crate::milvus::open(&config));
    }
}

fn a_server_keeps_the_contract(node: &Node) {
    let config = elastic::config_of(node, "contract");
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let config = EngineConfig::Elasticsearch(Box::new(config));
    let open = || engines::open(&config, true, runtime.handle()).expect("opens");
    keeps_the_contract(open().as_mut());
    is_opened_again_and_twice(&open);
}

#[test]
fn every_engine_keeps_the_contract() {
    for mut engine in engines() {
        keeps_the_contract(engine.as_mut());
    }
    // With a folder, in which graphs are kept.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let kept = || Some(folder.path().to_owned());
    let mut configs =
        vec![EngineConfig::Flat, EngineConfig::Hnsw(HnswConfig { folder: kept(), ..HnswConfig::default() })];
    if cfg!(feature = "faiss") {
        let index = "HNSW32,Flat".to_owned();
        configs.push(EngineConfig::Faiss(FaissConfig { index, folder: kept(), ..FaissConfig::default() }));
    }
    for config in configs {
        is_opened_again_and_twice(&|| engines::open(&config, true, runtime.handle()).expect("opens"));
    }
}

/// Opened again, and by two at once: the same answers, and never two loads of one alias.
fn is_opened_again_and_twice(open: &(dyn Fn() -> Box<dyn VectorIndex> + Sync)) {
    let pictures = elastic::pictures(0..300, 16, 8);
    let ask = |index: &dyn VectorIndex| {
        let metric = Metric::ALL.into_iter().find(|metric| index.supports(*metric)).expect("a metric");
        search(index, pictures.vector(7), 10, metric)
    };
    let source = Source { fingerprint: "f".to_owned(), dim: 16, table: "t".to_owned(), version: 3 };
    let mut first = open();
    let name = first.name().to_owned();
    let expected = match first.as_server() {
        None => {
            load(first.as_mut(), &pictures);
            ask(first.as_ref())
        }
        Some(server) => {
            server.prepare(&source).expect("free");
            server.create_for(&source).expect("created");
            server.upsert(&pictures).expect("put in");
            server.commit().expect("searchable");
            let refused = open().as_server().expect("a server").prepare(&source);
            assert!(matches!(refused, Err(EngineError::Locked(_))), "{name}: {refused:?}");
            server.finish().expect("complete");
            server.promote().expect("live");
            ask(first.as_ref())
        }
    };
    drop(first);
    std::thread::scope(|scope| {
        let again = || {
            let mut index = open();
            match index.as_server() {
                None => load(index.as_mut(), &pictures),
                Some(server) => server.attach("f", 16).expect("it is live"),
            }
            ask(index.as_ref())
        };
        let both = [scope.spawn(again), scope.spawn(again)];
        for answer in both {
            assert_eq!(answer.join().expect("no panic"), expected, "{name}");
        }
    });
    // What stands at that version is not loaded again.
    if let Some(server) = open().as_server() {
        let standing = server.prepare(&source).expect("free").expect("it stands");
        assert!(standing.live && standing.version == 3, "{name}: {standing:?}");
        assert_eq!(server.reuse(&standing).expect("used"), 300, "{name}");
    }
}

fn keeps_the_contract(engine: &mut dyn VectorIndex) {
    let name = engine.name().to_owned();
    let name = name.as_str();
    let metrics: Vec<Metric> = Metric::ALL.into_iter().filter(|metric| engine.supports(*metric)).collect();
    assert!(!metrics.is_empty(), "{name} supports no metric");

    // What an empty index answers.
    engine.create(3).expect(name);
    assert_eq!(engine.commit().expect(name), 0);
    for &metric in &metrics {
        assert_eq!(search(engine, &[1.0, 0.0, 0.0], 5, metric), [], "{name} {metric}: empty index");
    }

    // Changes are searchable after the commit; ids come back ascending where scores are equal.
    let pictures = [
        ("b/near", [0.9, 0.1, 0.1]),
        ("z/twin", [1.0, 0.0, 0.0]),
        ("a/twin", [1.0, 0.0, 0.0]),
        ("m/twin", [1.0, 0.0, 0.0]),
        ("far", [0.0, 0.3, 0.9]),
    ];
    engine.upsert(&batch(&pictures)).expect(name);
    engine.upsert(&EmbeddingBatch::default()).expect("an empty batch changes nothing");
    assert_eq!(engine.commit().expect(name), 5);
    assert_eq!(engine.commit().expect("nothing to commit"), 5);
    for &metric in &metrics {
        let hits = search(engine, &[1.0, 0.0, 0.0], 10, metric);
        let expected = ["a/twin", "m/twin", "z/twin", "b/near", "far"];
        assert_eq!(ids(&hits), expected, "{name} {metric}: more than the index holds is no error");
        assert_eq!(hits[0].score, hits[2].score, "{name} {metric}: twins tie");
        assert!(
            hits.windows(2).all(|pair| pair[0].score >= pair[1].score),
            "{name} {metric}: greater is closer"
        );
        assert_eq!(
            ids(&search(engine, &[1.0, 0.0, 0.0], 2, metric)),
            ["a/twin", "m/twin"],
            "{name} {metric}: k cuts"
        );
    }
    let close = |score: f32, expected: f64| {
        assert!((f64::from(score) - expected).abs() < 1e-5, "{name}: {score} {expected}")
    };
    for (metric, expected) in
        [(Metric::Cosine, 2.0), (Metric::DotProduct, 1.0), (Metric::L1, 1.0), (Metric::L2, 1.0)]
    {
        if engine.supports(metric) {
            close(search(engine, &[1.0, 0.0, 0.0], 1, metric)[0].score, expected);
        }
    }

    // Many queries at once answer as each would alone.
    let vectors = [[1.0f32, 0.0, 0.0], [0.2, 0.5, 0.7], [0.0, 1.0, 0.0]];
    let queries: Vec<Query> = vectors
        .iter()
        .flat_map(|vector| metrics.iter().map(move |&metric| Query { vector, k: 3, metric }))
        .collect();
    let together = engine.search_many(&queries).expect(name);
    for (query, hits) in queries.iter().zip(together) {
        assert_eq!(hits, engine.search(query).expect(name), "{name} {query:?}");
    }

    // Replaced, deleted, and an id that was never there.
    engine.upsert(&batch(&[("far", [1.0, 0.05, 0.0]), ("new", [0.5, 0.5, 0.5])])).expect(name);
    engine.delete(&["m/twin".to_owned(), "never/there".to_owned()]).expect(name);
    assert_eq!(engine.commit().expect(name), 5);
    for &metric in &metrics {
        let hits = search(engine, &[1.0, 0.0, 0.0], 9, metric);
        let mut found = ids(&hits);
        found.sort_unstable();
        assert_eq!(found, ["a/twin", "b/near", "far", "new", "z/twin"], "{name} {metric}");
        let rank = |id: &str| hits.iter().position(|hit| hit.id == id);
        assert!(rank("far") < rank("b/near"), "{name} {metric}: the replaced vector counts");
    }
    // Deleted and added again before one commit: the last word counts.
    engine.delete(&["new".to_owned()]).expect(name);
    engine.upsert(&batch(&[("new", [0.5, 0.5, 0.5])])).expect(name);
    engine.upsert(&batch(&[("gone", [0.5, 0.5, 0.5])])).expect(name);
    engine.delete(&["gone".to_owned()]).expect(name);
    assert_eq!(engine.commit().expect(name), 5);

    // What is refused, and leaves the index as it was.
    let metric = metrics[0];
    let refused = engine.upsert(&batch(&[("ok", [1.0, 1.0, 1.0]), ("bad", [0.0, f32::NAN, 0.0])]));
    assert!(matches!(refused, Err(EngineError::NotFinite { id }) if id == "bad"), "{name}: NaN");
    let refused = engine.upsert(&batch(&[("bad", [0.0, f32::INFINITY, 0.0])]));
    assert!(matches!(refused, Err(EngineError::NotFinite { id }) if id == "bad"), "{name}: infinity");
    let refused = engine.upsert(&batch(&[("bad", [1.0, 0.0])]));
    assert!(matches!(refused, Err(EngineError::WrongDimension { expected: 3, got: 2 })), "{name}: upsert");
    let refused = engine.search(&Query { vector: &[1.0, 0.0], k: 1, metric });
    assert!(matches!(refused, Err(EngineError::WrongDimension { expected: 3, got: 2 })), "{name}: search");
    let refused = engine.search(&Query { vector: &[1.0, f32::NAN, 0.0], k: 1, metric });
    assert!(matches!(refused, Err(EngineError::NotFinite { .. })), "{name}: query");
    let refused = engine.search(&Query { vector: &[1.0, 0.0, 0.0], k: 0, metric });
    assert!(matches!(refused, Err(EngineError::ZeroK)), "{name}: k of 0");
    for metric in Metric::ALL.into_iter().filter(|metric| !metrics.contains(metric)) {
        let refused = engine.search(&Query { vector: &[1.0, 0.0, 0.0], k: 1, metric });
        assert!(matches!(refused, Err(EngineError::UnsupportedMetric { .. })), "{name}: {metric}");
    }
    assert_eq!(engine.commit().expect(name), 5, "{name}: what was refused changed nothing");

    // Created again: empty, of another dimension.
    engine.upsert(&batch(&[("left/over", [1.0, 1.0, 1.0])])).expect(name);
    engine.create(2).expect(name);
    assert_eq!(engine.commit().expect(name), 0);
    engine.upsert(&batch(&[("only", [1.0, 0.0])])).expect(name);
    assert_eq!(engine.commit().expect(name), 1);
    assert_eq!(ids(&search(engine, &[0.5, 0.5], 3, metric)), ["only"]);
}

#[test]
fn a_gallery_in_parts_is_searched_as_one() {
    let gallery = gallery(1000, 32, false, 3);
    let asked = self::gallery(5, 32, false, 4);
    let mut flat = Flat::new(true);
    load(&mut flat, &gallery);
    for metric in Metric::ALL {
        for (i, k) in [1, 10, 1000, 5000, 7].into_iter().enumerate() {
            let query = Query { vector: asked.vector(i), k, metric };
            let mut nearest = Nearest::of(query, true);
            for part in 0..4 {
                let part =
                    gallery.only(|picture| picture.id.bytes().last().map(|last| last % 4) == Some(part));
                nearest.look_at(&part).expect("looked at");
            }
            nearest.look_at(&gallery.only(|_| false)).expect("nothing");
            let whole = flat.search(&query).expect("searched");
            assert_eq!(nearest.hits(), whole, "{metric} {k}");
        }
    }
}

#[test]
fn engines_in_memory_score_as_flat_does_and_find_most_of_what_it_finds() {
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    for unit in [true, false] {
        let gallery = gallery(2000, 64, unit, 3);
        let asked = self::gallery(100, 64, unit, 4);
        let mut flat = Flat::new(true);
        load(&mut flat, &gallery);
        let with = |config: HnswConfig| EngineConfig::Hnsw(HnswConfig { ef_search: 128, ..config });
        let mut configs = vec![
            (with(HnswConfig::default()), 0.9),
            (with(HnswConfig { storage: Storage::Bf16, ..HnswConfig::default() }), 0.9),
        ];
        if unit {
            // The row of zeros is not of length 1, so each metric would have its own graph.
            let metrics = vec![Metric::Cosine];
            configs.push((with(HnswConfig { storage: Storage::I8, metrics, ..HnswConfig::default() }), 0.8));
        }
        if cfg!(feature = "faiss") {
            configs.push((EngineConfig::Faiss(FaissConfig::default()), 1.0));
            let parameters = vec![("efSearch".to_owned(), 128.0)];
            let graph = FaissConfig { index: "HNSW32,Flat".to_owned(), parameters, ..FaissConfig::default() };
            configs.push((EngineConfig::Faiss(graph), 0.9));
        }
        for (config, least) in configs {
            let mut engine = engines::open(&config, true, runtime.handle()).expect("opens");
            load(engine.as_mut(), &gallery);
            for metric in Metric::ALL.into_iter().filter(|metric| engine.supports(*metric)) {
                let queries: Vec<Query> =
                    (0..asked.len()).map(|i| Query { vector: asked.vector(i), k: 10, metric }).collect();
                let found = engine.search_many(&queries).expect("search");
                let (mut same, mut all) = (0, 0);
                for (query, hits) in queries.iter().zip(&found) {
                    let truth = flat.search(&Query { k: gallery.len(), ..*query }).expect("search");
                    let score = |id: &str| truth.iter().find(|hit| hit.id == id).expect("it is there").score;
                    assert!(hits.iter().all(|hit| hit.score == score(&hit.id)), "{config:?} {metric}");
                    let ordered =
                        |pair: &[Hit]| (-pair[0].score, &pair[0].id) < (-pair[1].score, &pair[1].id);
                    assert!(hits.windows(2).all(ordered), "{config:?} {metric}: best first, ties by id");
                    // As near as the last of the true ones.
                    same += hits.iter().filter(|hit| hit.score >= truth[9].score).count();
                    all += 10;
                }
                let recall = same as f64 / all as f64;
                assert!(recall >= least, "{config:?} unit {unit} {metric}: recall {recall}");
            }
        }
    }
}

#[test]
fn graphs_are_kept_and_built_anew_where_anything_changed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let (path, gallery) = (folder.path().join("kept"), gallery(600, 32, true, 5));
    let hnsw = HnswConfig { folder: Some(path.clone()), ..HnswConfig::default() };
    let mut kinds = vec![(EngineConfig::Hnsw(hnsw.clone()), "cosine.usearch")];
    if cfg!(feature = "faiss") {
        let faiss = |index: &str| {
            EngineConfig::Faiss(FaissConfig {
                index: index.to_owned(),
                metrics: vec![Metric::L1],
                folder: Some(path.clone()),
                ..FaissConfig::default()
            })
        };
        kinds.extend([(faiss("Flat"), "Flat-l1.faiss"), (faiss("HNSW16,Flat"), "HNSW16_Flat-l1.faiss")]);
    }
    for (config, name) in kinds {
        let answer = |gallery: &EmbeddingBatch| {
            let mut engine = engines::open(&config, true, runtime.handle()).expect("opens");
            load(engine.as_mut(), gallery);
            let metric = Metric::ALL.into_iter().find(|metric| engine.supports(*metric)).expect("one");
            search(engine.as_ref(), gallery.vector(42), 10, metric)
        };
        let file = path.join(name);
        let first = answer(&gallery);
        let written = std::fs::read(&file).expect("it is kept");
        let time = || std::fs::metadata(&file).expect("a file").modified().expect("a time");
        let made = time();
        assert_eq!(answer(&gallery), first, "{name}: read again, the same answers");
        assert_eq!(time(), made, "{name}: nothing was built");

        // Pictures of another model in the same folder: another graph, and then the first one again.
        assert_eq!(answer(&self::gallery(600, 48, true, 5)).len(), 10, "{name}");
        assert_eq!(answer(&gallery), first, "{name}: built anew, the same answers");

        // One thread builds a graph: the same again, to the bit.
        std::fs::remove_file(path.join(format!("{name}.json"))).expect("a record");
        assert_eq!(answer(&gallery), first);
        let same = || std::fs::read(&file).expect("a file") == written;
        assert!(same(), "{name}: the same input, the same graph");

        // A damaged file is never read.
        let mut damaged = written.clone();
        damaged.truncate(written.len() / 2);
        std::fs::write(&file, &damaged).expect("writable");
        assert_eq!(answer(&gallery), first, "{name}: built anew");
        assert!(same());

        let fewer = batch(
            &(0..500).map(|i| (gallery.pictures[i].id.as_str(), gallery.vector(i))).collect::<Vec<_>>(),
        );
        let _ = answer(&fewer);
        assert!(!same(), "{name}: of other pictures");
    }
}

#[test]
fn what_a_graph_cannot_do_is_said() {
    let config = HnswConfig { storage: Storage::I8, ..HnswConfig::default() };
    let mut engine = Hnsw::new(&config, true);
    engine.create(2).expect("create");
    engine.upsert(&batch(&[("a", [1.0, 3.0]), ("b", [2.0, 0.0])])).expect("upsert");
    let refused = engine.commit().expect_err("numbers of any length").to_string();
    assert!(refused.contains("load.hnsw.storage") && refused.contains("bf16"), "{refused}");
    let of_cosine = HnswConfig { metrics: vec![Metric::Cosine], ..HnswConfig::default() };
    let mut engine = Hnsw::new(&of_cosine, true);
    load(&mut engine, &batch(&[("a", [1.0, 3.0])]));
    for (metric, reason) in [(Metric::L1, "use engine flat"), (Metric::L2, "evaluate.metrics")] {
        let refused = engine.search(&Query { vector: &[1.0, 0.0], k: 1, metric }).expect_err("no graph");
        assert!(refused.to_string().contains(reason), "{refused}");
    }
}

/// FAISS' own Python package reads our index files, and finds the same.
#[cfg(feature = "faiss")]
#[test]
fn faiss_in_python_reads_our_files() {
    let Some(python) = crate::readers::python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = imagedex::pipeline::async_runtime().expect("a runtime");
    let gallery = gallery(300, 32, false, 6);
    for (index, metric) in [
        ("Flat", Metric::L1),
        ("Flat", Metric::L2),
        ("Flat", Metric::DotProduct),
        ("HNSW16,Flat", Metric::L2),
    ] {
        let config = FaissConfig {
            index: index.to_owned(),
            metrics: vec![metric],
            folder: Some(folder.path().to_owned()),
            ..FaissConfig::default()
        };
        let mut engine = engines::open(&EngineConfig::Faiss(config), true, runtime.handle()).expect("opens");
        load(engine.as_mut(), &gallery);
        let ours = search(engine.as_ref(), gallery.vector(7), 5, metric);
        let file = folder.path().join(format!("{}-{metric}.faiss", index.replace(',', "_")));
        let query = serde_json::to_string(gallery.vector(7)).expect("numbers");
        let found = crate::readers::run_python(&python, "faiss_search.py", &[&file], folder.path(), &query);
        assert_eq!(found[0]["total"], 300, "{index} {metric}");
        // Of equal pictures FAISS takes any.
        let scores: Vec<f64> = found[0]["distances"]
            .as_array()
            .expect("distances")
            .iter()
            .map(|distance| distance.as_f64().expect("a number"))
            .map(|raw| metric.score(if metric == Metric::L2 { raw.sqrt() } else { raw }, true))
            .collect();
        for (hit, score) in ours.iter().zip(&scores) {
            let (ours, theirs) = (f64::from(hit.score), *score);
            assert!(
                (ours - theirs).abs() <= 1e-3 * ours.abs().max(1e-3),
                "{index} {metric}: {ours} {theirs}"
            );
        }
        assert_eq!(found[0]["ids"].as_array().expect("ids").len(), 5);
    }
}

#[test]
fn an_engine_without_an_index_says_so() {
    for mut engine in engines() {
        assert!(engine.search(&Query { vector: &[1.0], k: 1, metric: Metric::Cosine }).is_err());
        assert!(engine.upsert(&batch(&[("a", [1.0])])).is_err());
        assert!(engine.commit().is_err());
        assert!(engine.create(0).is_err());
    }
}

#[test]
fn a_vector_of_zeros_is_furthest_by_cosine() {
    for mut engine in engines() {
        load(
            engine.as_mut(),
            &batch(&[("a/zero", [0.0, 0.0]), ("b/opposite", [-1.0, 0.0]), ("c/same", [2.0, 0.0])]),
        );
        let hits = search(engine.as_ref(), &[1.0, 0.0], 3, Metric::Cosine);
        assert_eq!(ids(&hits), ["c/same", "a/zero", "b/opposite"]);
        assert_eq!(hits.iter().map(|hit| hit.score).collect::<Vec<_>>(), [2.0, 0.0, 0.0]);
        let hits = search(engine.as_ref(), &[0.0, 0.0], 3, Metric::Cosine);
        assert_eq!(ids(&hits), ["a/zero", "b/opposite", "c/same"]);
        assert!(hits.iter().all(|hit| hit.score == 0.0));
    }
}

#[test]
fn a_dot_product_goes_through_a_sigmoid_where_numbers_can_be_negative() {
    let mut flat = Flat::new(false);
    load(&mut flat, &batch(&[("a", [1.0, 0.0]), ("b", [-1.0, 0.0])]));
    let hits = search(&flat, &[2.0, 0.0], 2, Metric::DotProduct);
    assert_eq!(ids(&hits), ["a", "b"]);
    assert!((hits[0].score - 0.880_797).abs() < 1e-6 && (hits[1].score - 0.119_203).abs() < 1e-6, "{hits:?}");
}

/// Random clusters as image features make them: not negative, of length 1 or not, with exact copies, copies that
/// differ in the last bits, a row of zeros, and one cluster whose rows differ by less than `f32` scores can show.
fn gallery(rows: usize, dim: usize, unit: bool, seed: u64) -> EmbeddingBatch {
    let mut random = Random(seed);
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    for i in 0..rows {
        let vector: Vec<f32> = match i {
            _ if i % 11 == 3 => vectors[random.below(i)].clone(),
            _ if i % 7 == 5 => {
                let of = random.below(i);
                vectors[of].iter().map(|x| x * (1.0 + (random.unit() - 0.5) * 4.0e-7)).collect()
            }
            _ if i == 17 => vec![0.0; dim],
            _ if i > rows / 2 && i % 5 == 0 => {
                vectors[0].iter().map(|x| x + (random.unit() - 0.5) * 1.0e-4 * x).collect()
            }
            _ => (0..dim).map(|_| (random.unit() - 0.4).max(0.0) * if unit { 1.0 } else { 40.0 }).collect(),
        };
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vectors.push(if unit && length > 0.0 { vector.iter().map(|x| x / length).collect() } else { vector });
    }
    let names: Vec<String> = (0..rows).map(|i| format!("{:05}", (i * 7919) % rows)).collect();
    let rows: Vec<(&str, Vec<f32>)> = names.iter().map(String::as_str).zip(vectors).collect();
    batch(&rows)
}

/// What an exact engine must answer.
fn brute_force(gallery: &EmbeddingBatch, query: &Query) -> Vec<Hit> {
    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let score = |row: &[f32]| {
        let pairs = || query.vector.iter().zip(row).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let dot = || pairs().map(|(a, b)| a * b).sum::<f64>();
        let raw = match query.metric {
            Metric::Cosine if norm(row) * norm(query.vector) == 0.0 => -1.0,
            Metric::Cosine => (dot() / (norm(row) * norm(query.vector))).clamp(-1.0, 1.0),
            Metric::DotProduct => dot(),
            Metric::L1 => pairs().map(|(a, b)| (a - b).abs()).sum::<f64>(),
            Metric::L2 => pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
        };
        query.metric.score(raw, true) as f32
    };
    let mut hits: Vec<Hit> = (0..gallery.len())
        .map(|i| Hit { id: gallery.pictures[i].id.clone(), score: score(gallery.vector(i)) })
        .collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
    hits.truncate(query.k);
    hits
}

#[test]
fn flat_equals_brute_force_in_f64_with_every_kernel_and_any_number_of_threads() {
    for (dim, unit) in [(64, true), (37, false)] {
        let gallery = gallery(700, dim, unit, 7);
        let mut asked = self::gallery(70, dim, unit, 8);
        // Some queries are rows of the gallery, or nearly: there f32 sums cancel.
        for i in 0..30 {
            let row = gallery.vector(i * 20).iter().map(|x| x * if i % 2 == 0 { 1.0 } else { 1.0 + 2.0e-7 });
            asked.vectors[i * dim..(i + 1) * dim].copy_from_slice(&row.collect::<Vec<_>>());
        }
        let queries: Vec<Query> = (0..asked.len())
            .flat_map(|i| Metric::ALL.map(|metric| (i, metric)))
            .map(|(i, metric)| Query { vector: asked.vector(i), k: [1, 3, 10, 100, 700][i % 5], metric })
            .collect();
        let expected: Vec<Vec<Hit>> = queries.iter().map(|query| brute_force(&gallery, query)).collect();
        for kernel in Kernel::available() {
            let mut flat = Flat::with_kernel(true, kernel);
            load(&mut flat, &gallery);
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let found = pool.install(|| flat.search_many(&queries)).expect("search");
                for ((query, expected), found) in queries.iter().zip(&expected).zip(&found) {
                    assert_eq!(
                        found,
                        expected,
                        "{} {threads} {dim} {} k {}",
                        kernel.name(),
                        query.metric,
                        query.k
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_that_overflow_f32_sums_are_still_ranked() {
    let mut flat = Flat::new(true);
    let rows: Vec<(String, [f32; 2])> =
        (0..100).map(|i| (format!("{i:03}"), [1.0e30 * i as f32, 1.0e-30])).collect();
    let rows: Vec<(&str, [f32; 2])> = rows.iter().map(|(id, row)| (id.as_str(), *row)).collect();
    load(&mut flat, &batch(&rows));
    for metric in [Metric::L1, Metric::L2] {
        let hits = search(&flat, &[0.0, 1.0e-30], 3, metric);
        assert_eq!(hits[0], Hit { id: "000".to_owned(), score: 1.0 }, "{metric}");
        assert_eq!(ids(&hits)[1..], ["001", "002"], "{metric}");
    }
}

/// Linear congruential numbers (Knuth's MMIX constants): the same on every machine.
struct Random(u64);

impl Random {
    /// From 0 up to 1.
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f32) as usize).min(n - 1)
    }
}

fn batch<V: AsRef<[f32]>>(rows: &[(&str, V)]) -> EmbeddingBatch {
    let picture = |id: &str| Picture {
        id: id.to_owned(),
        split: Split::Gallery,
        label: None,
        sha256: id.to_owned(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 1,
        height: 1,
        format: "png".to_owned(),
    };
    EmbeddingBatch {
        pictures: rows.iter().map(|(id, _)| picture(id)).collect(),
        dim: rows.first().map_or(0, |(_, vector)| vector.as_ref().len()),
        vectors: rows.iter().flat_map(|(_, vector)| vector.as_ref().iter().copied()).collect(),
        norms: vec![1.0; rows.len()],
    }
}

fn load(engine: &mut dyn VectorIndex, gallery: &EmbeddingBatch) {
    engine.create(gallery.dim).expect("create");
    engine.upsert(gallery).expect("upsert");
    assert_eq!(engine.commit().expect("commit"), gallery.len() as u64);
}

fn search(engine: &dyn VectorIndex, vector: &[f32], k: usize, metric: Metric) -> Vec<Hit> {
    engine.search(&Query { vector, k, metric }).expect("search")
}

fn ids(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}
