//! What the struck side holds, beside what the calm one holds.
//!
//! Compared bit by bit: the feature table's rows in their order (all columns but `indexed_at`), `failures.parquet`, the index
//! files of `hnsw`, `per_query.parquet`, `report.md` and `summary.json` but for what was measured, and every document on the
//! server, whose vectors are also held to the table's. Not compared: what differs between two undisturbed runs (times, the names
//! of indices, the table's files and version numbers).

use std::collections::BTreeMap;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;
use imagedex::stages::store::FeatureStore;
use regex::Regex;
use serde_json::{Value, json};

use crate::shop::{Pair, Side};

/// Sections of `report.md` whose tables hold times and sizes; what else is in them stands in `summary.json` too.
const MEASURED: [&str; 4] = ["## Engines", "## Search times", "## Sizes", "## Run"];
/// Earlier indices that the default `keep` leaves.
const KEPT: usize = 1;

/// Everything in which the two sides differ, one line each.
pub fn differences(pair: &Pair<'_>) -> Vec<String> {
    let (calm, hit) = (pair.calm(), pair.hit());
    let mut found = Vec::new();
    let (calm_rows, hit_rows) = (rows(calm), rows(hit));
    match (&calm_rows, &hit_rows) {
        (Ok(calm), Ok(hit)) => {
            if calm.pictures != hit.pictures {
                found.push(format!(
                    "feature table: {} rows, other than the {} expected",
                    hit.len(),
                    calm.len()
                ));
            }
            if bits(&calm.vectors) != bits(&hit.vectors) || bits(&calm.norms) != bits(&hit.norms) {
                found.push("feature table: other vectors".to_owned());
            }
        }
        (calm, hit) => found.extend([calm, hit].into_iter().filter_map(|rows| rows.as_ref().err().cloned())),
    }
    for file in ["failures.parquet", "report/per_query.parquet", "report/junit.xml"] {
        let read = |side: &Side<'_>| fs::read(side.work.join(file)).ok();
        match (read(calm), read(hit)) {
            (Some(calm), Some(hit)) if calm == hit => {}
            (calm, hit) => found.push(format!(
                "{file}: {:?} bytes, {:?} expected",
                hit.map(|bytes| bytes.len()),
                calm.map(|bytes| bytes.len())
            )),
        }
    }
    if index_files(calm) != index_files(hit) {
        found.push("the index files of hnsw differ".to_owned());
    }
    for (name, read) in [("summary.json", summary as fn(&Side<'_>) -> String), ("report.md", markdown)] {
        found.extend(first_difference(name, &read(calm), &read(hit)));
    }
    let (calm_documents, hit_documents) = (documents(calm), documents(hit));
    if calm_documents != hit_documents {
        let keys = |of: &BTreeMap<String, Value>| of.len();
        found.push(format!(
            "Elasticsearch: {} documents, other than the {} expected",
            keys(&hit_documents),
            keys(&calm_documents)
        ));
    }
    if let Ok(rows) = &hit_rows {
        found.extend(against_the_table(rows, &hit_documents));
    }
    found.extend([calm, hit].into_iter().flat_map(order_on_the_server));
    let left = hit.leftovers();
    if !left.is_empty() {
        found.push(format!("temporary files are left: {left:?}"));
    }
    found
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// The table's rows, after it has been checked.
fn rows(side: &Side<'_>) -> Result<EmbeddingBatch, String> {
    crate::runtime().block_on(async {
        let store =
            FeatureStore::open(&side.work.join("features")).await.map_err(|error| error.to_string())?;
        let store = store.ok_or("there is no feature table")?;
        store.verify().await.map_err(|error| error.to_string())?;
        store.read(None).await.map_err(|error| error.to_string())
    })
}

fn index_files(side: &Side<'_>) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(side.work.join("hnsw")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read(entry.path()).ok()?)))
        .collect()
}

/// Names of indices and aliases, which hold the time or tell the sides apart.
fn without_names(side: &Side<'_>, text: &str) -> String {
    let index = Regex::new(&format!("{}-[0-9a-z-]+", side.alias)).expect("a pattern");
    index.replace_all(text, "INDEX").replace(&side.alias, "ALIAS")
}

fn summary(side: &Side<'_>) -> String {
    let text = fs::read_to_string(side.work.join("report/summary.json")).unwrap_or_default();
    let mut summary: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if let Some(fields) = summary.as_object_mut() {
        fields.remove("measured");
    }
    without_names(side, &serde_json::to_string_pretty(&summary).expect("JSON"))
}

/// The report without its tables of times and sizes.
fn markdown(side: &Side<'_>) -> String {
    let text = fs::read_to_string(side.work.join("report/report.md")).unwrap_or_default();
    let mut kept = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if line.starts_with("## ") {
            section = line;
        }
        if !(line.starts_with('|') && MEASURED.contains(&section)) {
            kept.push(line);
        }
    }
    without_names(side, &kept.join("\n"))
}

fn first_difference(name: &str, calm: &str, hit: &str) -> Option<String> {
    if calm.is_empty() {
        return Some(format!("{name} is missing"));
    }
    if calm == hit {
        return None;
    }
    let (mut calm, mut hit) = (calm.lines(), hit.lines());
    loop {
        match (calm.next(), hit.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => return Some(format!("{name}: {:?}, expected {:?}", b.unwrap_or(""), a.unwrap_or(""))),
        }
    }
}

/// What users search: each document, vector included, by its picture.
fn documents(side: &Side<'_>) -> BTreeMap<String, Value> {
    let Some(index) = side.node.behind(&side.alias).into_iter().next() else { return BTreeMap::new() };
    side.node.count(&index);
    let body =
        json!({ "size": 10_000, "_source": { "exclude_vectors": false }, "query": { "match_all": {} } });
    let answer = side.node.ask("POST", &format!("/{index}/_search"), Some(body));
    let hits = answer["hits"]["hits"].as_array().cloned().unwrap_or_default();
    let mut documents = BTreeMap::new();
    for hit in hits {
        let id = hit["_source"]["id"].as_str().unwrap_or_default().to_owned();
        let document = json!({ "_id": hit["_id"], "_source": hit["_source"] });
        assert!(documents.insert(id, document).is_none(), "a picture is there twice");
    }
    documents
}

/// Pictures of the gallery that the server does not hold with their class and their vector, bit for bit.
fn against_the_table(rows: &EmbeddingBatch, documents: &BTreeMap<String, Value>) -> Vec<String> {
    let gallery: Vec<usize> =
        (0..rows.len()).filter(|&row| rows.pictures[row].split == Split::Gallery).collect();
    let mut found = Vec::new();
    if gallery.len() != documents.len() {
        found.push(format!("Elasticsearch holds {} of {} pictures", documents.len(), gallery.len()));
    }
    for row in gallery {
        let picture = &rows.pictures[row];
        let source = documents.get(&picture.id).map(|document| &document["_source"]);
        let is_same = source.is_some_and(|source| {
            source["label"].as_str() == picture.label.as_deref()
                && vector(&source["embedding"]).is_some_and(|stored| bits(&stored) == bits(rows.vector(row)))
        });
        if !is_same {
            found.push(format!("Elasticsearch: {} is missing or another", picture.id));
        }
    }
    found.truncate(5);
    found
}

/// As numbers, or as base64 of them, the highest byte first.
fn vector(value: &Value) -> Option<Vec<f32>> {
    match value {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).ok()?;
            Some(
                bytes
                    .chunks_exact(4)
                    .map(|four| f32::from_be_bytes([four[0], four[1], four[2], four[3]]))
                    .collect(),
            )
        }
        // The number as it is written: by way of f64 it could be rounded twice.
        Value::Array(numbers) => numbers.iter().map(|number| number.to_string().parse().ok()).collect(),
        _ => None,
    }
}

/// One live index, no more earlier ones than are to be kept, none half made or closed to writing, no lock.
fn order_on_the_server(side: &Side<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let (behind, indices) = (side.node.behind(&side.alias), side.indices());
    if behind.len() != 1 {
        found.push(format!("alias {} stands for {behind:?}", side.alias));
    }
    if indices.len() > behind.len() + KEPT {
        found.push(format!(
            "too many indices are left: {:?}",
            indices.iter().map(|(name, _)| name).collect::<Vec<_>>()
        ));
    }
    for (name, meta) in &indices {
        if meta["state"] != "promoted" {
            found.push(format!("index {name} is {}", meta["state"]));
        }
        let index = &side.node.ask("GET", &format!("/{name}"), None)[name];
        let settings = &index["settings"]["index"];
        if settings["blocks"]["write"] == "true" || settings["refresh_interval"] == "-1" {
            found.push(format!("index {name} still has the settings of a load: {settings}"));
        }
        if index["aliases"]
            .as_object()
            .is_some_and(|aliases| aliases.keys().any(|alias| *alias != side.alias))
        {
            found.push(format!("index {name} still has the alias of a load: {}", index["aliases"]));
        }
    }
    if side.node.request("GET", &format!("/imagedex-locks/_doc/{}", side.alias), None).0 == 200 {
        found.push("a lock is left on the server".to_owned());
    }
    found
}
