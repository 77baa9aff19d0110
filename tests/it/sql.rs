//! `imagedex sql` as its user sees it: tables, functions, formats, refusals.

use std::path::Path;

use imagedex::sql::{self, Format, SqlSources};
use imagedex::stages::decode::{Failure, Picture};
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance, write_failures};
use serde_json::{Value, json};

/// Three cats and dogs with vectors of two numbers, and one failure.
async fn sources(dir: &Path) -> SqlSources {
    let provenance = Provenance { fingerprint: "f".into(), dim: 2, facts: json!({}) };
    let mut store = FeatureStore::open_or_create(&dir.join("features"), &provenance).await.unwrap();
    let picture = |id: &str, label: &str| Picture {
        id: id.into(),
        split: Split::Gallery,
        label: Some(label.into()),
        sha256: id.into(),
        pixel_sha256: String::new(),
        dhash: 1 << 63,
        width: 3,
        height: 2,
        format: "png".into(),
    };
    let batch = EmbeddingBatch {
        pictures: vec![picture("a", "cat"), picture("b", "dog"), picture("c", "cat")],
        dim: 2,
        vectors: vec![1.0, 0.0, 0.0, 2.0, 0.0, 0.0],
        norms: vec![1.0, 2.0, 0.0],
    };
    store.append(&batch, &CommitFacts::default()).await.unwrap();
    let failure = Failure {
        path: "bad, \"worse\".jpg".into(),
        split: Split::Query,
        stage: "decode".into(),
        kind: "truncated".into(),
        reason: "short".into(),
    };
    write_failures(&dir.join("failures.parquet"), &[failure]).unwrap();
    SqlSources {
        features: Some(dir.join("features")),
        failures: Some(dir.join("failures.parquet")),
        per_query: Some(dir.join("per_query.parquet")),
    }
}

async fn ask(query: &str, format: Format) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let context = sql::session(&sources(dir.path()).await).await.unwrap();
    let mut out = Vec::new();
    sql::run(&context, query, format, &mut out).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

async fn values(query: &str) -> Value {
    serde_json::from_str(&ask(query, Format::Json).await.unwrap()).unwrap()
}

#[tokio::test]
async fn labels_are_counted() {
    let found = values("SELECT label, count(*) AS n FROM features GROUP BY label ORDER BY n DESC").await;
    assert_eq!(found, json!([{"label": "cat", "n": 2}, {"label": "dog", "n": 1}]));
}

#[tokio::test]
async fn vectors_are_compared() {
    let query = "SELECT id, dot_product(embedding, [0.5, 2]) AS dot, l1_distance(embedding, [0.5, 2]) AS l1,
                        l2_distance(embedding, [3.0, 4.0]) AS l2,
                        cosine_similarity(embedding, [0.0, 3.0]) AS cosine
                 FROM features ORDER BY cosine DESC, id";
    assert_eq!(
        values(query).await,
        json!([
            {"id": "b", "dot": 4.0, "l1": 0.5, "l2": 13_f64.sqrt(), "cosine": 1.0},
            {"id": "a", "dot": 0.5, "l1": 2.5, "l2": 20_f64.sqrt(), "cosine": 0.0},
            {"id": "c", "dot": 0.0, "l1": 2.5, "l2": 5.0, "cosine": null},
        ])
    );
    let pairs = "SELECT a.id AS a, b.id AS b FROM features a, features b
                 WHERE a.id < b.id ORDER BY l2_distance(a.embedding, b.embedding), 1, 2";
    assert_eq!(
        values(pairs).await,
        json!([{"a": "a", "b": "c"}, {"a": "b", "b": "c"}, {"a": "a", "b": "b"}])
    );
}

#[tokio::test]
async fn every_kind_of_list_is_a_vector() {
    for kind in ["List(Float32)", "LargeList(Float32)", "FixedSizeList(2, Float64)", "List(Int64)"] {
        let query = format!("SELECT l2_distance(arrow_cast([3, 0], '{kind}'), [0, 4]) AS d");
        assert_eq!(values(&query).await, json!([{"d": 5.0}]), "{kind}");
    }
    assert_eq!(values("SELECT l1_distance(NULL, [1.0]) AS d").await, json!([{"d": null}]));
    assert_eq!(values("SELECT l1_distance([1.0, NULL], [1.0, 2.0]) AS d").await, json!([{"d": null}]));
    let text = ask("SELECT dot_product(embedding, [1.0]) FROM features", Format::Json).await.unwrap_err();
    assert!(text.contains("vectors of 2 and 1 numbers"), "{text}");
    let text = ask("SELECT dot_product(id, embedding) FROM features", Format::Json).await.unwrap_err();
    assert!(text.contains("takes two lists of numbers"), "{text}");
}

#[tokio::test]
async fn answers_have_three_forms() {
    let query = "SELECT id, embedding, [1, 2, 3, 4, 5] AS long FROM features ORDER BY id LIMIT 1";
    assert_eq!(
        ask(query, Format::Table).await.unwrap(),
        "\
+----+------------+-------------------+
| id | embedding  | long              |
+----+------------+-------------------+
| a  | [1.0, 0.0] | [1, 2, 3, 4, … 5] |
+----+------------+-------------------+
"
    );
    assert_eq!(
        ask(query, Format::Csv).await.unwrap(),
        "id,embedding,long\na,\"[1.0,0.0]\",\"[1,2,3,4,5]\"\n"
    );
    assert_eq!(values(query).await, json!([{"id": "a", "embedding": [1.0, 0.0], "long": [1, 2, 3, 4, 5]}]));
    let failures = ask("SELECT path, split FROM failures", Format::Csv).await.unwrap();
    assert_eq!(failures, "path,split\n\"bad, \"\"worse\"\".jpg\",query\n");
}

#[tokio::test]
async fn an_answer_without_rows_keeps_its_columns() {
    let query = "SELECT id, embedding FROM features WHERE id = 'nothing'";
    assert_eq!(ask(query, Format::Csv).await.unwrap(), "id,embedding\n");
    assert_eq!(ask(query, Format::Json).await.unwrap(), "[]\n");
    assert!(ask(query, Format::Table).await.unwrap().contains("| id | embedding |"));
}

#[tokio::test]
async fn looking_around_is_possible() {
    for query in [
        "SHOW TABLES",
        "DESCRIBE features",
        "SHOW COLUMNS FROM failures",
        "EXPLAIN SELECT id FROM features",
        "EXPLAIN ANALYZE SELECT count(*) FROM features",
        "WITH cats AS (SELECT * FROM features WHERE label = 'cat') SELECT count(*) FROM cats",
        "SELECT date_trunc('hour', indexed_at), round(sqrt(norm), 2), cardinality(embedding) FROM features;",
    ] {
        ask(query, Format::Table).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    }
}

#[tokio::test]
async fn a_table_that_is_not_there_yet_is_explained() {
    for query in [
        "SELECT * FROM per_query",
        "DESCRIBE per_query",
        "SELECT (SELECT max(k) FROM per_query) FROM features",
    ] {
        let text = ask(query, Format::Table).await.unwrap_err();
        assert_eq!(text, "there is no table per_query yet: `imagedex evaluate` makes it", "{query}");
    }
    let empty = sql::session(&SqlSources::default()).await.unwrap();
    let error = sql::run(&empty, "SELECT 1 FROM features", Format::Csv, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no table features yet: `imagedex extract` makes it");
    let text = ask("SELECT * FROM pictures", Format::Table).await.unwrap_err();
    assert!(text.contains("pictures"), "{text}");
}

#[tokio::test]
async fn writing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stolen.csv").display().to_string();
    for query in [
        "DELETE FROM features".to_owned(),
        "DROP TABLE features".into(),
        "INSERT INTO failures VALUES ('a', 'b', 'c', 'd', 'e')".into(),
        "UPDATE features SET label = 'x'".into(),
        "CREATE TABLE t AS SELECT 1".into(),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{file}'"),
        format!("COPY features TO '{file}'"),
        format!("EXPLAIN ANALYZE COPY failures TO '{file}'"),
        "SET datafusion.execution.batch_size = 1".into(),
    ] {
        let text = ask(&query, Format::Table).await.unwrap_err();
        assert!(text.contains("only SELECT, EXPLAIN, DESCRIBE and SHOW"), "{query}: {text}");
    }
    assert!(!Path::new(&file).exists());
    assert_eq!(
        ask("SELECT 1; SELECT 2", Format::Csv).await.unwrap_err(),
        "one statement at a time, please: there are 2"
    );
}
