//! The feature table: what is committed, what is not, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use deltalake::DeltaTable;
use deltalake::protocol::SaveMode;
use imagedex::config::Budget;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split::{self, Gallery, Query};
use imagedex::stages::scan::{ImageRef, Seen, Source};
use imagedex::stages::store::{Changes, CommitFacts, FeatureStore, Plan, Provenance, StoreError};
use parquet::basic::{Compression, Encoding};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::json;

const DIM: usize = 8;

/// A picture as a test names it: split, id, label, and the word that its bytes consist of.
pub type Shot<'a> = (Split, &'a str, &'a str, &'a str);

/// A vector that only the bytes decide, as with a real network.
fn vector_of(bytes: &str) -> Vec<f32> {
    let seed = bytes.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    (0..DIM as u32).map(|i| (seed.wrapping_mul(i + 1) % 1000) as f32 / 999.0).collect()
}

pub fn seen((split, id, label, bytes): Shot) -> Seen {
    Seen {
        image: ImageRef {
            id: id.to_owned(),
            split,
            label: (!label.is_empty()).then(|| label.to_owned()),
            source: Source::File(PathBuf::from(id)),
        },
        sha256: format!("sha-of-{bytes}"),
    }
}

pub fn embed(pictures: &[Seen]) -> EmbeddingBatch {
    let mut batch = EmbeddingBatch { dim: DIM, ..Default::default() };
    for Seen { image, sha256 } in pictures {
        let vector = vector_of(sha256);
        batch.norms.push(vector.iter().sum());
        batch.vectors.extend(vector);
        batch.pictures.push(Picture {
            id: image.id.clone(),
            split: image.split,
            label: image.label.clone(),
            sha256: sha256.clone(),
            pixel_sha256: String::new(),
            dhash: u64::MAX - sha256.len() as u64,
            width: 32,
            height: 24,
            format: "png".into(),
        });
    }
    batch
}

fn provenance(precision: &str) -> Provenance {
    Provenance {
        fingerprint: format!("vgg16-{precision}"),
        dim: DIM,
        facts: json!({"model": "vgg16", "precision": precision, "side": 224}),
    }
}

pub fn facts() -> CommitFacts {
    CommitFacts(json!({"cpu": "test"}))
}

pub async fn open(dir: &Path) -> FeatureStore {
    FeatureStore::open_or_create(dir, &provenance("fp32")).await.unwrap()
}

/// One whole run over the pictures: plan, embed, write. Returns the plan.
async fn run(dir: &Path, shots: &[Shot<'_>]) -> Plan {
    let mut store = open(dir).await;
    let pictures: Vec<Seen> = shots.iter().copied().map(seen).collect();
    let plan = store.plan(pictures.clone()).await.unwrap();
    store.apply(&plan.reuse, &plan.delete, &facts()).await.unwrap();
    store.append(&embed(&plan.embed_new), &facts()).await.unwrap();
    store.replace(&embed(&plan.embed_changed), &facts()).await.unwrap();
    store.verify().await.unwrap();
    assert_eq!(
        rows(dir).await,
        sorted(embed(&pictures)),
        "the table holds exactly what a run from nothing would"
    );
    plan
}

async fn rows(dir: &Path) -> EmbeddingBatch {
    open(dir).await.read(None).await.unwrap()
}

fn sorted(batch: EmbeddingBatch) -> EmbeddingBatch {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|&i| (batch.pictures[i].split, batch.pictures[i].id.clone()));
    EmbeddingBatch {
        pictures: order.iter().map(|&i| batch.pictures[i].clone()).collect(),
        dim: batch.dim,
        vectors: order.iter().flat_map(|&i| batch.vector(i).to_vec()).collect(),
        norms: order.iter().map(|&i| batch.norms[i]).collect(),
    }
}

fn names(pictures: &[Seen]) -> Vec<&str> {
    pictures.iter().map(|seen| seen.image.id.as_str()).collect()
}

fn copies(plan: &Plan) -> Vec<(&str, &str)> {
    plan.reuse.iter().map(|reuse| (reuse.image.id.as_str(), reuse.source.1.as_str())).collect()
}

#[tokio::test]
async fn a_second_run_commits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shots = [(Gallery, "b.jpg", "cat", "B"), (Gallery, "a.jpg", "", "A"), (Query, "q.jpg", "cat", "Q")];
    let first = run(dir.path(), &shots).await;
    assert_eq!(names(&first.embed_new), ["b.jpg", "a.jpg", "q.jpg"], "in the order seen");
    let version = open(dir.path()).await.version();

    let second = run(dir.path(), &shots).await;
    assert!(second.is_empty(), "{second:?}");
    assert_eq!(second.unchanged, 3);
    let mut store = open(dir.path()).await;
    assert!(!store.compact(&facts()).await.unwrap());
    assert_eq!(store.version(), version);
}

#[tokio::test]
async fn exactly_the_differences_are_done() {
    let dir = tempfile::tempdir().unwrap();
    run(
        dir.path(),
        &[
            (Gallery, "same.jpg", "cat", "S"),
            (Gallery, "changed.jpg", "cat", "C1"),
            (Gallery, "old-name.jpg", "dog", "R"),
            (Gallery, "gone.jpg", "dog", "G"),
            (Gallery, "relabelled.jpg", "dog", "L"),
        ],
    )
    .await;
    let plan = run(
        dir.path(),
        &[
            (Gallery, "same.jpg", "cat", "S"),
            (Gallery, "changed.jpg", "cat", "C2"),
            (Gallery, "new-name.jpg", "wolf", "R"),
            (Gallery, "relabelled.jpg", "wolf", "L"),
            (Gallery, "added.jpg", "cat", "A"),
        ],
    )
    .await;
    assert_eq!(names(&plan.embed_new), ["added.jpg"]);
    assert_eq!(names(&plan.embed_changed), ["changed.jpg"]);
    assert_eq!(copies(&plan), [("new-name.jpg", "old-name.jpg"), ("relabelled.jpg", "relabelled.jpg")]);
    assert_eq!(plan.delete, [(Gallery, "gone.jpg".to_owned()), (Gallery, "old-name.jpg".to_owned())]);
    assert_eq!((plan.unchanged, plan.relabelled, plan.to_embed()), (1, 1, 2));
}

#[tokio::test]
async fn a_copy_takes_the_vector_and_survives_its_source() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "one.jpg", "cat", "X")]).await;
    let plan = run(dir.path(), &[(Gallery, "copy.jpg", "cat", "X"), (Gallery, "one.jpg", "cat", "X")]).await;
    assert_eq!(copies(&plan), [("copy.jpg", "one.jpg")]);
    let plan = run(dir.path(), &[(Query, "moved.jpg", "cat", "X")]).await;
    assert_eq!(plan.to_embed(), 0);
    assert_eq!(plan.delete.len(), 2);
}

#[tokio::test]
async fn renumbering_embeds_the_newcomer_alone() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "1.jpg", "", "A"), (Gallery, "2.jpg", "", "B"), (Gallery, "3.jpg", "", "C")])
        .await;
    let plan = run(
        dir.path(),
        &[
            (Gallery, "1.jpg", "", "NEW"),
            (Gallery, "2.jpg", "", "A"),
            (Gallery, "3.jpg", "", "B"),
            (Gallery, "4.jpg", "", "C"),
        ],
    )
    .await;
    assert_eq!(names(&plan.embed_changed), ["1.jpg"]);
    assert_eq!(copies(&plan), [("2.jpg", "1.jpg"), ("3.jpg", "2.jpg"), ("4.jpg", "3.jpg")]);
    let swapped = run(
        dir.path(),
        &[
            (Gallery, "1.jpg", "", "A"),
            (Gallery, "2.jpg", "", "NEW"),
            (Gallery, "3.jpg", "", "C"),
            (Gallery, "4.jpg", "", "B"),
        ],
    )
    .await;
    assert_eq!((swapped.to_embed(), swapped.reuse.len()), (0, 4));
}

#[tokio::test]
async fn gallery_and_query_may_share_an_id() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "x.jpg", "cat", "G"), (Query, "x.jpg", "dog", "Q")]).await;
    let store = open(dir.path()).await;
    assert_eq!(store.count(None).await.unwrap(), 2);
    assert_eq!(store.count(Some(Query)).await.unwrap(), 1);
    assert_eq!(store.read(Some(Query)).await.unwrap().pictures[0].label.as_deref(), Some("dog"));
    let plan = run(dir.path(), &[(Gallery, "x.jpg", "cat", "G")]).await;
    assert_eq!(plan.delete, [(Query, "x.jpg".to_owned())]);
}

#[tokio::test]
async fn a_killed_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let shots = [(Gallery, "a.jpg", "", "A"), (Gallery, "b.jpg", "", "B"), (Gallery, "c.jpg", "", "C")];
    let pictures: Vec<Seen> = shots.into_iter().map(seen).collect();
    {
        let mut store = open(dir.path()).await;
        let plan = store.plan(pictures.clone()).await.unwrap();
        store.append(&embed(&plan.embed_new[..2]), &facts()).await.unwrap();
    }
    let plan = run(dir.path(), &shots).await;
    assert_eq!(names(&plan.embed_new), ["c.jpg"]);
}

#[tokio::test]
async fn a_table_made_by_a_killed_process_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("_delta_log")).unwrap();
    assert!(FeatureStore::open(dir.path()).await.unwrap().is_none());
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
}

#[tokio::test]
async fn duplicates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
    let mut store = open(dir.path()).await;
    let twice = [seen((Gallery, "b.jpg", "", "B")), seen((Gallery, "b.jpg", "", "C"))];
    assert!(matches!(store.plan(twice.to_vec()).await, Err(StoreError::Duplicate { .. })));
    for batch in [embed(&twice), embed(&[seen((Gallery, "a.jpg", "", "A"))])] {
        let error = store.append(&batch, &facts()).await.unwrap_err();
        assert!(matches!(error, StoreError::Duplicate { .. }), "{error}");
    }
    assert_eq!(store.count(None).await.unwrap(), 1);
}

#[tokio::test]
async fn other_settings_are_refused_and_spelled_out() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
    let error = FeatureStore::open_or_create(dir.path(), &provenance("int8")).await.unwrap_err();
    assert!(error.is_usage());
    let text = error.to_string();
    assert!(text.contains(r#"(precision: "fp32" in the table, "int8" asked for)"#), "{text}");
    let other = Provenance { dim: 4, ..provenance("fp32") };
    let text = FeatureStore::open_or_create(dir.path(), &other).await.unwrap_err().to_string();
    assert!(text.contains("dimension: 8 in the table, 4 asked for"), "{text}");
}

#[tokio::test]
async fn a_folder_that_is_no_table_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(FeatureStore::open(&dir.path().join("nothing")).await.unwrap().is_none());
    assert!(FeatureStore::open(dir.path()).await.unwrap().is_none(), "an empty folder");
    let file = dir.path().join("photo.jpg");
    std::fs::write(&file, "x").unwrap();
    for path in [dir.path(), file.as_path()] {
        let error = FeatureStore::open_or_create(path, &provenance("fp32")).await.unwrap_err();
        assert!(matches!(error, StoreError::NotATable { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_table_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).await;
    let log = dir.path().join("_delta_log/00000000000000000000.json");
    let text = std::fs::read_to_string(&log).unwrap();
    let newer = text.replace(r#""imagedex.schema_version":"2""#, r#""imagedex.schema_version":"3""#);
    assert_ne!(newer, text);
    std::fs::write(&log, newer).unwrap();
    let error = FeatureStore::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherSchema { .. }), "{error}");
}

#[tokio::test]
async fn a_path_with_spaces_and_signs_works() {
    let dir = tempfile::tempdir().unwrap();
    run(&dir.path().join("a b #1 ?x 'ä'"), &[(Gallery, "it's %41 ä\n.jpg", "", "A")]).await;
    let error =
        FeatureStore::open_or_create(&dir.path().join("a%20b"), &provenance("fp32")).await.unwrap_err();
    assert!(error.to_string().contains("percent sign"), "{error}");
}

#[tokio::test]
async fn a_cut_off_or_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A"), (Gallery, "b.jpg", "", "B")]).await;
    let store = open(dir.path()).await;
    let [file] = &store.files().unwrap()[..] else { panic!("one file") };
    let bytes = std::fs::read(file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();

    let damages: [(&str, Option<Vec<u8>>); 3] = [
        ("missing", None),
        ("cut off", Some(bytes[..bytes.len() / 2].to_vec())),
        ("overwritten", Some(vec![0; bytes.len()])),
    ];
    for (what, bytes) in damages {
        match bytes {
            Some(bytes) => std::fs::write(file, bytes).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        // What is gone or too short shows when the table is opened.
        let opened = FeatureStore::open(dir.path()).await;
        assert_eq!(opened.is_ok(), what == "overwritten", "{what}");
        let error = store.read(None).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { file, .. } if file.ends_with(name)),
            "{what}: {error}"
        );
        let error = store.plan(vec![seen((Gallery, "a.jpg", "", "A"))]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { .. }), "{what}: {error}");
    }
}

#[tokio::test]
async fn two_writers_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (open(dir.path()).await, open(dir.path()).await);
    one.append(&embed(&[seen((Gallery, "a.jpg", "", "A"))]), &facts()).await.unwrap();
    let batch = embed(&[seen((Gallery, "a.jpg", "", "A"))]);
    for error in
        [two.append(&batch, &facts()).await.unwrap_err(), two.replace(&batch, &facts()).await.unwrap_err()]
    {
        assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    }
    assert_eq!(open(dir.path()).await.count(None).await.unwrap(), 1);
}

#[tokio::test]
async fn half_of_a_large_gallery_is_not_deleted_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..120).map(|i| format!("{i:03}.jpg")).collect();
    let shots: Vec<Shot> = ids.iter().map(|id| (Gallery, id.as_str(), "", id.as_str())).collect();
    run(dir.path(), &shots).await;
    let store = open(dir.path()).await;
    let check = async |shots: &[Shot<'_>], allowed: Option<Budget>| {
        let pictures: Vec<Seen> = shots.iter().copied().map(seen).collect();
        let plan = store.plan(pictures.clone()).await.unwrap();
        plan.check_deletions(allowed, |split| if split == Gallery { 120 } else { 0 })
    };
    assert!(check(&shots[..60], None).await.is_ok());
    let error = check(&shots[..59], None).await.unwrap_err().to_string();
    assert!(error.contains("61 of 120 gallery pictures") && error.contains("50%"), "{error}");
    assert!(check(&shots[..59], Some(Budget::Count(61))).await.is_ok());
    assert!(check(&shots[..118], Some(Budget::Count(1))).await.is_err());
    let renamed: Vec<String> = ids.iter().map(|id| format!("new/{id}")).collect();
    let moved: Vec<Shot> =
        renamed.iter().zip(&ids).map(|(new, old)| (Gallery, new.as_str(), "", old.as_str())).collect();
    assert!(check(&moved, None).await.is_ok(), "pictures that moved are not gone");
}

#[tokio::test]
async fn compaction_keeps_rows_and_order_and_settles() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    let pictures: Vec<Seen> =
        (0..20).map(|i| seen((Gallery, &format!("{i:02}.jpg"), "", &i.to_string()))).collect();
    for part in pictures.chunks(2) {
        store.append(&embed(part), &facts()).await.unwrap();
    }
    assert_eq!(store.files().unwrap().len(), 10);
    assert!(store.compact(&facts()).await.unwrap());
    assert_eq!(store.files().unwrap().len(), 1);
    check_footer(&store.files().unwrap()[0]);
    let version = store.version();
    assert!(!store.compact(&facts()).await.unwrap());
    assert_eq!(store.version(), version);
    assert_eq!(rows(dir.path()).await, embed(&pictures));
    assert!(open(dir.path()).await.plan(pictures.clone()).await.unwrap().is_empty());
}

#[tokio::test]
async fn compaction_sweeps_up_after_killed_runs_but_leaves_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
    run(dir.path(), &[(Gallery, "a.jpg", "", "A2")]).await;
    let file = |name: &str, days: u64| {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
        path
    };
    let old = file("part-00000-left-behind.zstd.parquet", 8);
    let young = file("part-00000-just-written.zstd.parquet", 6);
    let notes = file("notes.txt", 8);
    let mut store = open(dir.path()).await;
    assert!(!store.compact(&facts()).await.unwrap());
    assert!(old.exists() && notes.exists(), "with a person's file about, nothing is swept up");
    std::fs::remove_file(&notes).unwrap();
    assert!(store.compact(&facts()).await.unwrap());
    assert!(!old.exists() && young.exists());
    assert!(!store.compact(&facts()).await.unwrap());
    assert_eq!(store.read(None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_turned_out_undecodable_is_taken_out_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A"), (Gallery, "b.jpg", "", "B")]).await;
    let mut store = open(dir.path()).await;
    let plan = store
        .plan(vec![seen((Gallery, "a.jpg", "", "broken")), seen((Gallery, "b.jpg", "", "B"))])
        .await
        .unwrap();
    assert_eq!(names(&plan.embed_changed), ["a.jpg"]);
    let gone = [(Gallery, "a.jpg".to_owned()), (Gallery, "never-stored.jpg".to_owned())];
    store.apply(&[], &gone, &facts()).await.unwrap();
    store.verify().await.unwrap();
    assert_eq!(store.ids(Gallery).await.unwrap(), ["b.jpg"]);
}

#[tokio::test]
async fn a_source_that_changed_in_between_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
    let mut store = open(dir.path()).await;
    let pictures = [seen((Gallery, "a.jpg", "", "A2")), seen((Gallery, "b.jpg", "", "A"))];
    let plan = store.plan(pictures.to_vec()).await.unwrap();
    store.replace(&embed(&plan.embed_changed), &facts()).await.unwrap();
    let error = store.apply(&plan.reuse, &plan.delete, &facts()).await.unwrap_err();
    assert!(error.to_string().contains("run again"), "{error}");
}

#[tokio::test]
async fn commits_carry_the_facts_of_their_run() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A")]).await;
    run(dir.path(), &[(Gallery, "b.jpg", "", "A")]).await;
    for version in 1..=2 {
        let log = std::fs::read_to_string(dir.path().join(format!("_delta_log/{version:020}.json"))).unwrap();
        assert!(log.contains(r#""imagedex":{"cpu":"test"}"#), "{log}");
    }
    let store = open(dir.path()).await;
    assert_eq!(store.version(), 2, "a rename is one commit");
    assert_eq!(store.provenance(), &provenance("fp32"));
}

#[tokio::test]
async fn batches_cover_the_table_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut shots = Vec::new();
    let ids: Vec<String> = (0..23).map(|i| format!("{:02}.jpg", 22 - i)).collect();
    for id in &ids {
        shots.push((Gallery, id.as_str(), "", id.as_str()));
        if id.starts_with('1') {
            shots.push((Query, id.as_str(), "", id.as_str()));
        }
    }
    run(dir.path(), &shots).await;
    let store = open(dir.path()).await;
    let mut all = EmbeddingBatch::default();
    let mut sizes = Vec::new();
    store
        .for_each_batch::<StoreError>(None, 10, |batch| {
            sizes.push(batch.len());
            all.append(batch.clone());
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(sizes, [10, 10, 3, 10]);
    assert_eq!(all, store.read(None).await.unwrap());
}

#[tokio::test]
async fn rows_of_given_ids_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..30).map(|i| format!("{i:02} it's.jpg")).collect();
    let shots: Vec<Shot> = ids.iter().map(|id| (Gallery, id.as_str(), "", id.as_str())).collect();
    run(dir.path(), &[&shots[..], &[(Query, "05 it's.jpg", "", "Q")]].concat()).await;
    let store = open(dir.path()).await;
    let wanted: Vec<String> = ids.iter().skip(1).step_by(4).cloned().collect();
    let read = async |ids: &[String]| {
        let (mut all, mut sizes) = (EmbeddingBatch { dim: DIM, ..EmbeddingBatch::default() }, Vec::new());
        let done = store.for_each_row_of::<StoreError>(Gallery, ids, 3, |batch| {
            sizes.push(batch.len());
            all.append(batch.clone());
            Ok(())
        });
        done.await.map(|()| (all, sizes))
    };
    let (rows, sizes) = read(&wanted).await.unwrap();
    assert_eq!(sizes, [3, 3, 2]);
    let shots: Vec<Seen> = wanted.iter().map(|id| seen((Gallery, id, "", id))).collect();
    assert_eq!(rows, embed(&shots));
    assert!(read(&[]).await.unwrap().1.is_empty());
    let error = read(&["05 it's.jpg".into(), "nowhere.jpg".into()]).await.unwrap_err();
    assert!(error.to_string().contains("1 of 2 pictures asked for are not there"), "{error}");
}

fn changes(from: u64, to: u64, upserted: &[&str], deleted: &[&str]) -> Option<Changes> {
    let owned = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect();
    Some(Changes { from, to, upserted: owned(upserted), deleted: owned(deleted) })
}

#[tokio::test]
async fn the_change_feed_lists_each_picture_once() {
    let dir = tempfile::tempdir().unwrap();
    let since = async |version| open(dir.path()).await.changes_since(version, Gallery).await.unwrap();
    run(dir.path(), &[(Gallery, "a", "", "A"), (Gallery, "b", "", "B"), (Query, "q", "", "Q")]).await;
    assert_eq!(since(0).await, changes(0, 1, &["a", "b"], &[]));
    assert_eq!(since(1).await, changes(1, 1, &[], &[]));
    assert_eq!(since(2).await, None, "a version that the table never had");

    // A rename, a change and a newcomer: three commits.
    run(dir.path(), &[(Gallery, "a", "", "A2"), (Gallery, "c", "", "B"), (Gallery, "d", "", "D")]).await;
    assert_eq!(since(1).await, changes(1, 4, &["a", "c", "d"], &["b"]));
    assert_eq!(since(0).await, changes(0, 4, &["a", "c", "d"], &["b"]), "b came and went");
    let store = open(dir.path()).await;
    assert_eq!(store.changes_since(1, Query).await.unwrap(), changes(1, 4, &[], &["q"]));
    assert_eq!(store.changes_since(2, Query).await.unwrap(), changes(2, 4, &[], &[]));

    // Gone and back, as it was: listed, for it was written again.
    run(dir.path(), &[(Gallery, "a", "", "A2"), (Gallery, "c", "", "B")]).await;
    run(dir.path(), &[(Gallery, "a", "", "A2"), (Gallery, "c", "", "B"), (Gallery, "d", "", "D")]).await;
    assert_eq!(since(4).await, changes(4, 6, &["d"], &[]));
    assert_ne!(store.table_id(), "");
    assert_eq!(store.table_id(), open(dir.path()).await.table_id());
    let other = tempfile::tempdir().unwrap();
    assert_ne!(store.table_id(), open(other.path()).await.table_id());
}

async fn delta(dir: &Path) -> DeltaTable {
    deltalake::open_table(url::Url::from_directory_path(dir).unwrap()).await.unwrap()
}

/// Other programs overwrite rows by predicate; the feed then has each of them as deleted and as inserted, in no order.
#[tokio::test]
async fn rows_that_another_program_overwrote_are_not_taken_for_deleted() {
    use datafusion::prelude::{col, lit};
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..40).map(|i| format!("{i:02}")).collect();
    let shots: Vec<Shot> = ids.iter().map(|id| (Gallery, id.as_str(), "", id.as_str())).collect();
    run(dir.path(), &shots).await;
    let features = open(dir.path()).await.context().await.unwrap();
    let rows = features.sql("SELECT * FROM features WHERE id >= '10' AND id <> '20'").await.unwrap();
    let rows = rows.collect().await.unwrap();
    let overwrite = delta(dir.path()).await.write(rows).with_save_mode(SaveMode::Overwrite);
    overwrite.with_replace_where(col("id").gt_eq(lit("10"))).await.unwrap();
    let store = open(dir.path()).await;
    let expected: Vec<&str> = ids[10..].iter().map(String::as_str).filter(|id| *id != "20").collect();
    assert_eq!(store.changes_since(1, Gallery).await.unwrap(), changes(1, 2, &expected, &["20"]));
}

#[tokio::test]
async fn a_feed_that_was_swept_up_says_so() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a", "", "A"), (Gallery, "b", "", "B")]).await;
    run(dir.path(), &[(Gallery, "a", "", "A2")]).await;
    delta(dir.path()).await.optimize().await.unwrap();
    // What vacuum does once seven days are over.
    let live = open(dir.path()).await.files().unwrap();
    for file in walk(dir.path()).into_iter().chain(walk(&dir.path().join("_change_data"))) {
        if !live.contains(&file) {
            std::fs::remove_file(file).unwrap();
        }
    }
    let store = open(dir.path()).await;
    assert_eq!(store.changes_since(0, Gallery).await.unwrap(), None);
    let now = store.version();
    assert_eq!(store.changes_since(now, Gallery).await.unwrap(), changes(now, now, &[], &[]));
    // The log of old versions goes too, in time.
    run(dir.path(), &[(Gallery, "a", "", "A3")]).await;
    std::fs::remove_file(dir.path().join("_delta_log/00000000000000000002.json")).unwrap();
    assert_eq!(store.changes_since(1, Gallery).await.unwrap(), None);
}

/// Contents of the table by (split, id): label and bytes.
type Content = BTreeMap<(Split, String), (String, String)>;

/// Runs with random additions, changes, renames, copies, relabellings and deletions, compaction between them; then the
/// changes between every two versions that a run ended with.
#[tokio::test]
async fn changes_lead_from_any_version_to_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 20_261_123_u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut content = Content::new();
    let mut history: Vec<(u64, Content)> = Vec::new();
    for _ in 0..24 {
        for _ in 0..=below(4) {
            let split = if below(4) == 0 { Query } else { Gallery };
            let key = (split, format!("{}.jpg", below(9)));
            match below(3) {
                0 => drop(content.remove(&key)),
                _ => {
                    drop(content.insert(key, (format!("label {}", below(3)), format!("bytes {}", below(12)))))
                }
            }
        }
        let shots: Vec<Shot> = content
            .iter()
            .map(|((split, id), (label, bytes))| (*split, id.as_str(), label.as_str(), bytes.as_str()))
            .collect();
        run(dir.path(), &shots).await;
        if below(3) == 0 {
            delta(dir.path()).await.optimize().await.unwrap();
        }
        history.push((open(dir.path()).await.version(), content.clone()));
    }

    let store = open(dir.path()).await;
    for (i, (version, before)) in history.iter().enumerate() {
        for split in [Gallery, Query] {
            let of = |content: &Content| -> BTreeMap<String, (String, String)> {
                let of_split = content.iter().filter(|((of, _), _)| *of == split);
                of_split.map(|((_, id), row)| (id.clone(), row.clone())).collect()
            };
            let (mut held, now) = (of(before), of(&content));
            let changes = store.changes_since(*version, split).await.unwrap().unwrap();
            assert!(changes.upserted.is_sorted() && changes.deleted.is_sorted());
            let ever: BTreeSet<String> =
                history[i..].iter().flat_map(|(_, content)| of(content).into_keys()).collect();
            let touched =
                |id: &&String| history[i..].iter().any(|(_, content)| of(content).get(*id) != held.get(*id));
            let touched: BTreeSet<&String> = ever.iter().filter(touched).collect();
            let listed: BTreeSet<&String> = changes.upserted.iter().chain(&changes.deleted).collect();
            assert_eq!(listed, touched, "nothing that no run touched, from version {version}");
            changes.deleted.iter().for_each(|id| drop(held.remove(id)));
            changes.upserted.iter().for_each(|id| drop(held.insert(id.clone(), now[id].clone())));
            assert_eq!(held, now, "from version {version}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_commit_writes_the_documented_encoding() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[(Gallery, "a.jpg", "", "A"), (Gallery, "b.jpg", "", "B")]).await;
    open(dir.path()).await.files().unwrap().iter().for_each(|file| check_footer(file));
    run(dir.path(), &[(Gallery, "a.jpg", "", "A2"), (Gallery, "c.jpg", "", "B")]).await;
    let changes = walk(&dir.path().join("_change_data"));
    assert!(!changes.is_empty(), "the change feed is on");
    for file in open(dir.path()).await.files().unwrap().iter().chain(&changes) {
        check_footer(file);
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

fn check_footer(file: &Path) {
    let reader = SerializedFileReader::new(std::fs::File::open(file).unwrap()).unwrap();
    let row_group = reader.metadata().row_group(0);
    let column =
        |path: &str| row_group.columns().iter().find(|column| column.column_path().string() == path).unwrap();
    let embedding = column("embedding.list.element");
    assert!(
        embedding.encodings().any(|encoding| encoding == Encoding::BYTE_STREAM_SPLIT),
        "{}",
        file.display()
    );
    assert_eq!(embedding.dictionary_page_offset(), None);
    assert!(embedding.statistics().is_none());
    assert!(matches!(embedding.compression(), Compression::ZSTD(_)));
    assert!(matches!(column("id").compression(), Compression::ZSTD(_)));
    assert!(column("id").statistics().is_some());
}
