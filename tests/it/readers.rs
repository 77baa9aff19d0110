//! Other programs read what we write: the snippets of docs/parquet-schema.md run as they stand there, and
//! h5py sees in our HDF5 files what it sees in the original's.
//!
//! The Python packages live in `python` under the cache folder (`IMAGEDEX_CACHE`, else `.cache` beside
//! Cargo.toml), in the versions of tests/python/requirements.txt. They are fetched by pip when they are
//! missing or others.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use imagedex::exchange;
use imagedex::stages::decode::Picture;
use imagedex::stages::embed::EmbeddingBatch;
use imagedex::stages::scan::Split;
use imagedex::stages::store::{CommitFacts, FeatureStore, Provenance};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::imagedex;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DIM: usize = 512;

/// The interpreter with the packages; nothing where there is none and no continuous integration insists.
pub fn python() -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match prepare_python() {
        Ok(python) => Some(python),
        Err(reason) if std::env::var_os("CI").is_some() => panic!("{reason}"),
        Err(reason) => {
            eprintln!(
                "\n*** SKIPPED: Python cannot be prepared, so no outside reader was tested: {reason} ***\n"
            );
            None
        }
    }
}

fn prepare_python() -> Result<PathBuf, String> {
    let cache =
        std::env::var_os("IMAGEDEX_CACHE").map_or_else(|| Path::new(ROOT).join(".cache"), PathBuf::from);
    let folder = cache.join("python");
    let python = folder.join("bin/python");
    let requirements = Path::new(ROOT).join("tests/python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    // A copy of the list, written last, says that all of it is there.
    let installed = folder.join("requirements.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|list| list == wanted) {
        return Ok(python);
    }
    eprintln!(
        "\n*** fetching the Python packages of {} into {} (about 200 MB) ***\n",
        requirements.display(),
        folder.display()
    );
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let run = |command: &mut Command| match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => {
            Err(format!("{command:?} cannot be run: {error}; install Python 3.11 or later with venv and pip"))
        }
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements))?;
    std::fs::write(&installed, wanted).map_err(|error| format!("{}: {error}", installed.display()))?;
    Ok(python)
}

/// Four pictures: one a query, one without a label, ids with signs that formats stumble over.
fn pictures() -> EmbeddingBatch {
    let picture = |split, id: &str, label: Option<&str>| Picture {
        id: id.into(),
        split,
        label: label.map(str::to_owned),
        sha256: hex::encode(Sha256::digest(id)),
        pixel_sha256: String::new(),
        dhash: 0xfeed_0000_0000_0001,
        width: 32,
        height: 24,
        format: "jpeg".into(),
    };
    let pictures = vec![
        picture(Split::Gallery, "cat/a, \"b\".jpg", Some("cat")),
        picture(Split::Gallery, "cat/z.jpg", Some("cat")),
        picture(Split::Gallery, "dog/ü.jpg", None),
        picture(Split::Query, "cat/z.jpg", Some("cat")),
    ];
    // Awkward numbers: subnormal, negative zero, the last bit of 1/3, very large.
    let awkward = [1.0e-42, -0.0, 1.0 / 3.0, 3.0e38, f32::MIN_POSITIVE, 0.1, 16_777_217.0, 1.0e-7];
    let number =
        |i: usize| if i.is_multiple_of(5) { awkward[(i / 5) % 8] } else { (i as f32 * 0.7).sin().max(0.0) };
    let vectors: Vec<f32> = (0..pictures.len() * DIM).map(number).collect();
    EmbeddingBatch { norms: vec![1.5, 0.1, 2.0, 3.0], pictures, dim: DIM, vectors }
}

async fn write_table(dir: &Path, batch: &EmbeddingBatch) -> FeatureStore {
    let provenance = Provenance {
        fingerprint: "f".into(),
        dim: batch.dim,
        facts: json!({"model": "vgg16", "precision": "fp32"}),
    };
    let mut store = FeatureStore::open_or_create(dir, &provenance).await.unwrap();
    store.append(batch, &CommitFacts::default()).await.unwrap();
    store
}

fn snippets() -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/parquet-schema.md")).unwrap();
    let blocks = text.split("```python\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

pub fn run_python(python: &Path, script: &str, args: &[&Path], dir: &Path, input: &str) -> Vec<Value> {
    let mut child = Command::new(python)
        .arg(Path::new(ROOT).join("tests/python").join(script))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}, on\n{input}\n{errors}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_documented_snippet_reads_the_same_bits() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let batch = pictures();
    let table = dir.path().join("work/features");
    // Written in several commits, the last one over rows of the first, so that files that no longer count lie
    // about.
    let mut store = write_table(&table, &batch).await;
    store.replace(&batch, &CommitFacts::default()).await.unwrap();
    for file in ["features.parquet", "features.npy", "features.csv", "gallery.h5"] {
        exchange::export(&table, &dir.path().join(file)).await.unwrap();
    }
    let snippets = snippets();
    assert_eq!(snippets.len(), 9);
    for snippet in snippets {
        let rows = if snippet.contains("gallery.h5") { 3 } else { 4 };
        let bytes: Vec<u8> =
            batch.vectors[..rows * DIM].iter().flat_map(|number| number.to_le_bytes()).collect();
        let ids: Vec<&str> = batch.pictures[..rows].iter().map(|picture| picture.id.as_str()).collect();
        let expected = json!({
            "ids": ids, "dtype": "<f4", "shape": [rows, DIM], "sha256": hex::encode(Sha256::digest(bytes)),
        });
        assert_eq!(run_python(&python, "run_snippet.py", &[], dir.path(), &snippet), [expected], "{snippet}");
    }
}

#[tokio::test]
async fn h5py_sees_our_file_as_the_original() {
    let original = Path::new(ROOT).join("../shared/data/seed/train.h5");
    if !original.is_file() {
        assert!(std::env::var_os("CI").is_none(), "{} is missing", original.display());
        eprintln!(
            "\n*** SKIPPED: {} is missing, so our HDF5 was not compared with the original's ***\n",
            original.display()
        );
        return;
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (table, ours) = (dir.path().join("features"), dir.path().join("ours.h5"));
    assert_eq!(exchange::import(&original, &table).await.unwrap(), 26);
    assert_eq!(exchange::import(&original, &table).await.unwrap(), 26, "a second time nothing is done");
    let store = FeatureStore::open(&table).await.unwrap().unwrap();
    assert_eq!((store.version(), store.dim(), store.count(None).await.unwrap()), (1, 512, 26));
    assert!(store.provenance().fingerprint.starts_with("imported:"));
    assert_eq!(exchange::export(&table, &ours).await.unwrap(), 26);
    let seen = run_python(&python, "describe_h5.py", &[&original, &ours], dir.path(), "");
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0]["datasets"]["dataset_1"]["dtype"], "<f8");
    assert_eq!(seen[0]["datasets"]["dataset_2"]["dtype"], "|S28");
}

#[tokio::test]
async fn every_format_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let batch = pictures();
    let table = dir.path().join("features");
    write_table(&table, &batch).await;
    for name in ["f.parquet", "f.npy", "f.csv", "f.h5", "again.HDF5"] {
        let file = dir.path().join(name);
        let rows = exchange::export(&table, &file).await.unwrap();
        let back = exchange::read(&file).unwrap();
        assert_eq!(back.len(), rows);
        let bits = |vectors: &[f32]| vectors.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back.vectors), bits(&batch.vectors[..rows * DIM]), "{name}");
        let keys = |batch: &EmbeddingBatch| -> Vec<_> {
            batch.pictures[..rows].iter().map(|picture| (picture.split, picture.id.clone())).collect()
        };
        assert_eq!(keys(&back), keys(&batch), "{name}");
        match name {
            "f.parquet" | "f.npy" => assert_eq!(back, batch, "{name}: every column"),
            "f.csv" => assert_eq!(back.pictures[2].label, None),
            _ => assert_eq!((back.norms[0], back.pictures[0].label.as_deref()), (1.0, None)),
        }
        let imported = dir.path().join(format!("table of {name}"));
        assert_eq!(exchange::import(&file, &imported).await.unwrap(), rows);
        let imported = FeatureStore::open(&imported).await.unwrap().unwrap().read(None).await.unwrap();
        assert_eq!(imported, back, "{name}");
    }
    let leftovers = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(leftovers.into_iter().all(|name| !name.to_string_lossy().starts_with('.')));
}

#[tokio::test]
async fn two_sets_of_features_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let batch = pictures();
    write_table(&path("first"), &batch).await;
    let mut turned = batch.clone();
    turned.vectors[..DIM].rotate_left(1);
    write_table(&path("second"), &turned).await;
    exchange::export(&path("first"), &path("first.h5")).await.unwrap();

    let same = exchange::compare(&path("first"), &path("first.h5")).await.unwrap();
    assert_eq!((same.pairs.len(), same.only), (3, [1, 0]), "an .h5 file holds the gallery alone");
    assert!(same.pairs.iter().all(|pair| (pair.cosine - 1.0).abs() < 1e-12));
    let text = imagedex([
        "features".into(),
        "compare".into(),
        path("first").into_os_string(),
        path("second").into_os_string(),
        "--worst".into(),
        "1".into(),
    ])
    .exits(0)
    .out;
    assert!(text.starts_with("compared 4; only in the first 0, only in the second 0\n"), "{text}");
    let worst: Vec<_> = text.lines().skip(3).collect();
    let id = batch.pictures[0].id.escape_debug().to_string();
    assert!(worst.len() == 1 && worst[0].ends_with(&id), "the one that was turned: {text}");

    std::fs::write(path("short.csv"), "id,v0\na,1\n").unwrap();
    std::fs::write(path("other.csv"), "id,v0\nb,1\n").unwrap();
    std::fs::write(path("twice.csv"), "id,v0\na,1\na,1\n").unwrap();
    for (first, second, reason) in [
        ("first", "short.csv", "its vectors have 1 numbers"),
        ("short.csv", "other.csv", "no picture in common"),
        ("short.csv", "twice.csv", "is there twice"),
        ("first", "nothing", "there is no feature table"),
    ] {
        let error = exchange::compare(&path(first), &path(second)).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_exchanged_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let table = path("features");
    let text = exchange::export(&table, &path("x.npy")).await.unwrap_err().to_string();
    assert!(text.contains("there is no feature table"), "{text}");
    write_table(&table, &pictures()).await;
    let text = exchange::export(&table, &path("x.json")).await.unwrap_err().to_string();
    assert!(text.ends_with("use .h5 or .hdf5, .npy, .csv or .parquet"), "{text}");

    exchange::export(&table, &path("x.csv")).await.unwrap();
    let text = exchange::import(&path("x.csv"), &table).await.unwrap_err().to_string();
    assert!(text.contains("were made with other settings"), "{text}");

    for (name, content, reason) in [
        ("a.csv", "id,v0\na,1\nb,oops\n", "line 3: \"oops\" is not a number"),
        ("b.csv", "name,v0\na,1\n", "there is no column id"),
        ("c.csv", "id,split,v0\na,train,1\n", "line 2: split \"train\" is neither gallery nor query"),
        ("d.csv", "id,v0\na,1\na,2\n", "is there twice"),
        ("e.csv", "id,v0\n", "there are no rows in it"),
        ("f.csv", "id,v0\na,inf\n", "not finite"),
        ("a.npy", "nonsense", "this is not a .npy file"),
        ("a.h5", "nonsense", "this is not a readable HDF5 file"),
        ("a.parquet", "nonsense", "this is not a readable Parquet file"),
    ] {
        std::fs::write(path(name), content).unwrap();
        let text = exchange::import(&path(name), &path("new")).await.unwrap_err().to_string();
        assert!(text.contains(reason), "{name}: {text}");
        assert!(!path("new").exists(), "{name} leaves no table behind");
    }
    let text = exchange::import(&path("missing.h5"), &path("new")).await.unwrap_err().to_string();
    assert!(text.ends_with("missing.h5: there is no such file"), "{text}");

    exchange::export(&table, &path("alone.npy")).await.unwrap();
    std::fs::remove_file(path("alone.rows.parquet")).unwrap();
    let text = exchange::import(&path("alone.npy"), &path("new")).await.unwrap_err().to_string();
    assert!(text.contains("its rows have no names"), "{text}");
}
