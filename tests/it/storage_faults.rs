//! What happens to the feature table when its storage fails: it is found, named and repaired, and nothing else is done again.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imagedex::stages::store::FeatureStore;
use serde_json::json;

use crate::support::{Said, Shop, cache, imagedex, said};

/// A table of two commits: three gallery pictures and a query, then two more.
fn shop() -> Shop {
    let shop = Shop::new();
    for seed in [1, 2, 3] {
        shop.picture(&format!("gallery/a/{seed}.png"), seed);
    }
    shop.picture("queries/a/4.png", 4);
    shop.imagedex("extract").exits(0);
    for seed in [40, 41] {
        shop.picture(&format!("gallery/b/{seed}.png"), seed);
    }
    shop.imagedex("extract").exits(0);
    shop
}

fn verify(shop: &Shop, more: &[&str]) -> Said {
    let pipeline = shop.path("shop.toml").into_os_string();
    let args = ["features".into(), "verify".into(), pipeline];
    imagedex(args.into_iter().chain(more.iter().map(|arg| arg.into())))
}

fn entry(shop: &Shop, version: u64) -> PathBuf {
    shop.path(&format!("runs/shop/features/_delta_log/{version:020}.json"))
}

/// The table's Parquet file with the most bytes: that of the first commit.
fn largest(shop: &Shop) -> PathBuf {
    let files = std::fs::read_dir(shop.path("runs/shop/features")).unwrap().flatten();
    let parquet =
        files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "parquet"));
    parquet.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn cut(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

/// The books of an extract that has nothing to do: the table holds what one from nothing would.
fn is_whole(shop: &Shop) {
    verify(shop, &[]).exits(0).says("6 sound rows").says("; sound");
    shop.imagedex("extract").exits(0);
    let books = &shop.run_json()["books"];
    assert_eq!((&books["embedded"], &books["reused"], &books["stored"]), (&json!(0), &json!(6), &json!(6)));
}

#[test]
fn a_damaged_file_is_named_and_only_its_pictures_are_embedded_again() {
    let shop = shop();
    verify(&shop, &[]).exits(0).says("2 files, 6 sound rows, version 2; sound");
    let damages: [fn(&Path); 3] = [flip, cut, |file| std::fs::remove_file(file).unwrap()];
    for damage in damages {
        let file = largest(&shop);
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        damage(&file);
        verify(&shop, &[]).exits(4).says(&name).says("1 problem").complains("features verify --repair");
        shop.imagedex("evaluate").exits(4).complains(&name).complains("imagedex features verify --repair");
        verify(&shop, &["--repair"]).exits(0).says("4 rows taken out").says("embedded again: 4 pictures");
        is_whole(&shop);
    }
}

#[test]
fn a_damaged_log_is_written_anew_from_what_is_known() {
    for (version, embedded) in [(2, 2), (1, 4)] {
        let shop = shop();
        cut(&entry(&shop, version));
        let name = format!("{version:020}.json");
        verify(&shop, &[]).exits(4).says(&name);
        shop.imagedex("extract").exits(4).complains(&name).complains("imagedex features verify --repair");
        let again = format!("embedded again: {embedded} pictures");
        verify(&shop, &["--repair"]).exits(0).says("the log was written anew").says(&again);
        is_whole(&shop);
    }
}

#[test]
fn a_log_that_lost_its_first_entry_is_kept_beside_a_new_table() {
    let shop = shop();
    std::fs::write(entry(&shop, 0), "").unwrap();
    verify(&shop, &["--repair"]).exits(0).says("features.damaged-").says("embedded again: 6 pictures");
    is_whole(&shop);
    let kept = std::fs::read_dir(shop.path("runs/shop")).unwrap().flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("features.damaged-"));
    assert_eq!(kept.count(), 1);
}

#[test]
fn a_log_that_lost_its_last_entries_is_no_earlier_version() {
    for lost in [1, 2] {
        let shop = shop();
        for version in 3 - lost..3 {
            std::fs::remove_file(entry(&shop, version)).unwrap();
        }
        let name = format!("{:020}.json is missing", 3 - lost);
        verify(&shop, &[]).exits(4).says(&name);
        for command in ["extract", "evaluate"] {
            shop.imagedex(command).exits(4).complains(&name).complains("imagedex features verify --repair");
        }
        let again = format!("embedded again: {} pictures", if lost == 1 { 2 } else { 6 });
        verify(&shop, &["--repair"]).exits(0).says("the log was written anew").says(&again);
        is_whole(&shop);
        // Nothing of the old log is missed when the new one comes to its versions.
        for seed in 50..53 {
            shop.picture(&format!("gallery/b/{seed}.png"), seed);
            shop.imagedex("extract").exits(0);
        }
        verify(&shop, &[]).exits(0).says("9 sound rows").says("; sound");
    }
}

#[test]
fn a_table_without_its_log_is_kept_beside_a_new_one() {
    let empty = |log: &Path| {
        std::fs::remove_dir_all(log).unwrap();
        std::fs::create_dir(log).unwrap();
    };
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 2] = [
        ("_delta_log is missing", |log| std::fs::remove_dir_all(log).unwrap()),
        ("_delta_log has lost its entries", empty),
    ];
    for (named, damage) in damages {
        let shop = shop();
        let file = largest(&shop);
        damage(&shop.path("runs/shop/features/_delta_log"));
        verify(&shop, &[]).exits(4).says(named);
        for command in ["extract", "evaluate", "doctor"] {
            shop.imagedex(command).exits(4).complains(named).complains("imagedex features verify --repair");
        }
        assert!(file.is_file(), "nothing was begun over it");
        verify(&shop, &["--repair"]).exits(0).says("features.damaged-").says("embedded again: 6 pictures");
        is_whole(&shop);
    }
}

#[test]
fn pictures_that_vanish_all_at_once_are_not_deleted_unasked() {
    let shop = shop();
    shop.pipeline("[input]\ngallery = 'gallery'\nqueries = 'queries'\nmax_deleted = '50%'\n");
    std::fs::rename(shop.path("gallery/a"), shop.path("gallery/renamed")).unwrap();
    shop.imagedex("extract").exits(0);
    let version = shop.run_json()["table_version"].clone();
    std::fs::rename(shop.path("gallery/renamed"), shop.path("away")).unwrap();
    shop.imagedex("extract")
        .exits(4)
        .complains("3 of 5 gallery pictures")
        .complains("--set input.max_deleted=100%");
    std::fs::rename(shop.path("away"), shop.path("gallery/renamed")).unwrap();
    shop.imagedex("extract").exits(0);
    assert_eq!(shop.run_json()["table_version"], version, "nothing was changed");
    std::fs::remove_dir_all(shop.path("gallery/renamed")).unwrap();
    let pipeline = shop.path("shop.toml");
    imagedex(["extract", &pipeline.to_string_lossy(), "--set", "input.max_deleted=100%"]).exits(0);
    assert_eq!(shop.run_json()["books"]["deleted"], json!(3));
}

#[test]
fn a_report_is_not_made_of_two_runs() {
    let shop = shop();
    let (summary, per_query) =
        (shop.path("runs/shop/report/summary.json"), shop.path("runs/shop/report/per_query.parquet"));
    let both = || [std::fs::read(&summary).unwrap(), std::fs::read(&per_query).unwrap()];
    shop.imagedex("run").exits(0);
    let before = both();
    shop.picture("queries/b/42.png", 42);
    shop.imagedex("run").exits(0);
    let after = both();
    shop.imagedex("report").exits(0);
    let pipeline = shop.path("shop.toml");
    let set = || imagedex(["baseline", "set", &pipeline.to_string_lossy()]);
    // As a kill between the two files leaves them.
    std::fs::write(&summary, &before[0]).unwrap();
    let markdown = std::fs::read(shop.path("runs/shop/report/report.md")).unwrap();
    for said in [shop.imagedex("report"), set()] {
        said.exits(4).complains("per_query.parquet").complains("of two runs").complains("imagedex evaluate");
    }
    assert_eq!(std::fs::read(shop.path("runs/shop/report/report.md")).unwrap(), markdown, "left as it was");
    shop.imagedex("evaluate").exits(0);
    shop.imagedex("report").exits(0);
    set().exits(0);
    assert_eq!(both()[1], after[1], "the same again");
}

#[test]
fn one_writer_at_a_time_whatever_the_work_folder() {
    let shop = shop();
    // The file that a dead process left is there already, and does no harm.
    let lock = std::fs::File::options().write(true).open(shop.path("runs/shop/features/_lock")).unwrap();
    lock.lock().unwrap();
    shop.picture("gallery/b/42.png", 42);
    let table = format!("features.table={}", shop.path("runs/shop/features").display());
    let (work, pipeline) = (format!("work={}", shop.path("other").display()), shop.path("shop.toml"));
    let args = ["extract", &pipeline.to_string_lossy(), "--set", &work, "--set", &table];
    let said = imagedex(args).exits(75).complains("another run is writing to the feature table");
    assert!(!said.err.contains("embedding"), "{}", said.err);
    verify(&shop, &[]).exits(0).says("6 sound rows");
    drop(lock);
    imagedex(args).exits(0).says("embedded 1 ");
}

#[test]
fn an_import_is_a_writer_too() {
    let shop = Shop::new();
    let (file, table) = (shop.path("rows.csv"), shop.path("table"));
    std::fs::write(&file, "id,label,split,v0,v1\na,x,gallery,1,0\n").unwrap();
    let import =
        || imagedex(["features".into(), "import".into(), file.clone(), "--table".into(), table.clone()]);
    std::fs::create_dir(&table).unwrap();
    let lock = std::fs::File::create(table.join("_lock")).unwrap();
    lock.lock().unwrap();
    import().exits(75).complains("another run is writing to the feature table");
    assert!(!table.join("_delta_log").exists(), "nothing was written");
    drop(lock);
    import().exits(0).says("1 rows");
}

/// Runs `extract`; once the model is being started, that is after all files were read once, and before any is decoded, `then`.
fn extract_while(shop: &Shop, then: impl FnOnce()) -> Said {
    let mut run = Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .arg("extract")
        .arg(shop.path("shop.toml"))
        .env("IMAGEDEX_CACHE", cache())
        .env("IMAGEDEX_LOG", "debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut log, mut err) = (BufReader::new(run.stderr.take().unwrap()), String::new());
    while !err.ends_with("stage start the model\n") && log.read_line(&mut err).unwrap() > 0 {}
    then();
    log.read_to_string(&mut err).unwrap();
    Said { err, ..said(run.wait_with_output().unwrap()) }
}

#[test]
fn a_gallery_that_goes_away_in_the_middle_of_a_run_deletes_nothing() {
    let shop = shop();
    let (gallery, away) = (shop.path("gallery"), shop.path("away"));
    // The model may be faster than we are; then the run is done, and another one is tried.
    let mut tries = 0..20;
    let said = loop {
        let seed = 100 + tries.next().expect("the gallery is away before it is read, some time");
        // A stored picture that changed, and a new one.
        shop.picture("gallery/a/1.png", seed);
        shop.picture("gallery/b/new.png", seed + 100);
        let said = extract_while(&shop, || std::fs::rename(&gallery, &away).unwrap());
        std::fs::rename(&away, &gallery).unwrap();
        if said.code != 0 {
            break said;
        }
    };
    let said = said.exits(4).complains("went away").complains("mount it or put it back");
    assert!(said.err.contains(&gallery.display().to_string()), "{}", said.err);
    verify(&shop, &[]).exits(0).says(if tries.start == 1 { "6 sound rows" } else { "7 sound rows" });
    shop.imagedex("load").exits(2).complains("imagedex extract");
    shop.imagedex("extract").exits(0).says("stored 7");
    assert_eq!(shop.run_json()["books"]["deleted"], json!(0));
}

#[test]
fn a_table_of_the_future_is_refused_and_left_alone() {
    let changes = [
        (r#""imagedex.schema_version":"2""#, r#""imagedex.schema_version":"3""#, "schema version 3"),
        (r#""minReaderVersion":1"#, r#""minReaderVersion":99"#, "newer than this one"),
    ];
    for (ours, newer, says) in changes {
        let shop = shop();
        let text = std::fs::read_to_string(entry(&shop, 0)).unwrap();
        assert!(text.contains(ours), "{text}");
        std::fs::write(entry(&shop, 0), text.replace(ours, newer)).unwrap();
        // As a newer imagedex would have written it: with its own checksum, or none.
        std::fs::remove_dir_all(shop.path("runs/shop/features/_checksums")).unwrap();
        for command in ["extract", "evaluate"] {
            let said = shop.imagedex(command).exits(4).complains(says);
            assert!(!said.err.contains("panicked"), "{}", said.err);
        }
        assert!(entry(&shop, 2).is_file());
    }
}

/// Runs a command on the pipeline in a mount name space of its own, after the shell's `mounts`: `$1` is the work folder, `$2` the
/// gallery. Then prints the `$1/rejected.jsonl` that is there, if any. `None`, said loudly, where there are no such name spaces;
/// in CI there must be.
#[cfg(target_os = "linux")]
fn with_mounts(shop: &Shop, mounts: &str, command: &str) -> Option<Said> {
    let script = format!(
        "{mounts} && {{ \"$3\" {command} \"$4\"; code=$?; cat \"$1/rejected.jsonl\" 2>/dev/null; exit $code; }}"
    );
    let run = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(shop.path("runs/shop"))
        .arg(shop.path("gallery"))
        .arg(env!("CARGO_BIN_EXE_imagedex"))
        .arg(shop.path("shop.toml"))
        .env("IMAGEDEX_CACHE", cache())
        .env_remove("IMAGEDEX_PIPELINE")
        .output()
        .expect("unshare is part of util-linux");
    let said = said(run);
    if said.err.contains("unshare:") && std::env::var_os("CI").is_none() {
        eprintln!("\n*** SKIPPED: no mount name spaces here, so mounts were not tried ***\n{}", said.err);
        return None;
    }
    Some(said)
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let shop = shop();
    shop.imagedex("run").exits(0);
    let read_only = |folder: &str| {
        format!("mount --bind \"$1{folder}\" \"$1{folder}\" && mount -o remount,ro,bind \"$1{folder}\"")
    };
    let cases = [
        ("/features", "extract", "features/_lock"),
        ("", "extract", "shop/lock"),
        ("/report", "evaluate", "report"),
    ];
    for (folder, command, named) in cases {
        let Some(said) = with_mounts(&shop, &read_only(folder), command) else { return };
        said.exits(4).complains(named).complains("Read-only file system");
    }
    let Some(said) = with_mounts(&shop, &read_only("/features"), "evaluate") else { return };
    said.exits(0);
    is_whole(&shop);
}

#[test]
fn what_lies_below_a_folder_that_cannot_be_read_is_not_deleted() {
    let shop = shop();
    let (there, away) = (shop.path("gallery/a"), shop.path("away"));
    std::fs::rename(&there, &away).unwrap();
    std::os::unix::fs::symlink(shop.path("not/mounted"), &there).unwrap();
    let pipeline = shop.path("shop.toml");
    // However many failures and deletions are allowed.
    let sets = ["--set", "input.max_failures=100%", "--set", "input.max_deleted=100%"];
    let run = || imagedex(["extract", &pipeline.to_string_lossy()].into_iter().chain(sets));
    run()
        .exits(4)
        .complains("3 gallery pictures are stored below a, which cannot be read now")
        .complains("mount it");
    verify(&shop, &[]).exits(0).says("6 sound rows");
    // What has come up elsewhere is not lost.
    std::fs::rename(&away, shop.path("gallery/c")).unwrap();
    run().exits(0);
    assert_eq!(shop.run_json()["books"]["embedded"], json!(0));
    std::fs::rename(shop.path("gallery/c"), &away).unwrap();
    std::fs::remove_file(&there).unwrap();
    run().exits(0);
    assert_eq!(shop.run_json()["books"]["deleted"], json!(3), "no folder, no pictures");
}

#[test]
fn an_emptied_log_entry_is_named_by_every_command() {
    let shop = shop();
    let last = entry(&shop, shop.run_json()["table_version"].as_u64().unwrap());
    std::fs::write(&last, "").unwrap();
    let name = last.file_name().unwrap().to_string_lossy().into_owned();
    for command in ["extract", "load", "evaluate", "run"] {
        shop.imagedex(command).exits(4).complains(&name).complains("features verify --repair");
    }
    let pipeline = shop.path("shop.toml");
    imagedex(["sql", "SELECT count(*) FROM features", &pipeline.to_string_lossy()]).exits(4).complains(&name);
    verify(&shop, &["--repair"]).exits(0);
    shop.imagedex("extract").exits(0);
    is_whole(&shop);
}

#[cfg(target_os = "linux")]
#[test]
fn an_empty_mount_point_is_no_empty_gallery() {
    let shop = shop();
    let Some(said) = with_mounts(&shop, "mount -t tmpfs none \"$2\"", "extract") else { return };
    said.exits(2).complains("no pictures");
    is_whole(&shop);
}

/// A file system of one page, which a file takes up: whatever is written there in its place or beside it finds no room.
#[cfg(target_os = "linux")]
fn full(folder: &str, file: &str) -> String {
    format!("mount -t tmpfs -o size=4k none \"{folder}\" && echo before > \"{folder}/{file}\"")
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_for_dead_letters_is_one_clear_error_and_keeps_those_before() {
    let node = crate::es_node::Node::shared();
    let shop = Shop::new();
    let alias = crate::elastic::alias();
    let table = shop.path("features");
    // A vector of zeros, which no server takes.
    std::fs::write(shop.path("rows.csv"), "id,label,split,v0,v1\na,x,gallery,1,0\nb,x,gallery,0,0\n")
        .unwrap();
    imagedex(["features".into(), "import".into(), shop.path("rows.csv"), "--table".into(), table.clone()])
        .exits(0);
    shop.pipeline(&format!(
        "[input]\ngallery = 'gallery'\n[features]\ntable = '{}'\n[load]\nengine = 'elasticsearch'\n\
         [load.elasticsearch]\nurl = '{}'\nalias = '{alias}'\nmax_rejected = 1\n",
        table.display(),
        node.url()
    ));
    std::fs::create_dir_all(shop.path("runs/shop")).unwrap();
    let Some(said) = with_mounts(&shop, &full("$1", "rejected.jsonl"), "load") else { return };
    said.exits(4)
        .complains("rejected.jsonl: No space left on device")
        .complains("free some space")
        .says("before\n");
    assert_eq!(node.indices(&alias), Vec::<String>::new(), "nothing is left behind");
    shop.imagedex("load").exits(0);
    let letters = std::fs::read_to_string(shop.path("runs/shop/rejected.jsonl")).unwrap();
    assert!(letters.starts_with("{\"id\":\"b\""), "{letters}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_for_the_report_is_one_clear_error() {
    let shop = shop();
    shop.imagedex("run").exits(0);
    for command in ["evaluate", "report"] {
        // What `report` reads must be there: the old files are copied, and fill the disk.
        let copied = "cp -r \"$1/report\" \"$1/copy\" && mount -t tmpfs -o size=2m none \"$1/report\" && cp -r \"$1/copy/.\" \
                      \"$1/report\" && rm -r \"$1/copy\" && { cat /dev/zero > \"$1/report/filled\" 2>/dev/null || true; }";
        let Some(said) = with_mounts(&shop, copied, command) else { return };
        let said = said.exits(4).complains("No space left on device").complains("free some space");
        assert_eq!(said.err.matches("No space left on device").count(), 1, "{}", said.err);
        assert!(said.err.contains(&shop.path("runs/shop/report").display().to_string()), "{}", said.err);
    }
    shop.imagedex("report").exits(0);
}

#[test]
fn files_that_are_rewritten_get_checksums_and_damage_is_not_copied() {
    let shop = shop();
    let rename = |from: &str, to: &str| {
        std::fs::rename(shop.path("gallery/a").join(from), shop.path("gallery/a").join(to)).expect("works");
    };
    let parquet = |folder: &str| -> Vec<PathBuf> {
        let files = std::fs::read_dir(shop.path("runs/shop/features").join(folder)).expect("works").flatten();
        files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
            .collect()
    };
    rename("1.png", "5.png");
    shop.imagedex("extract").exits(0);
    let rewritten = [parquet(""), parquet("_change_data")];
    assert!(!rewritten[1].is_empty(), "the change feed has a file");
    for file in rewritten.iter().flatten() {
        let name = format!("{}.sha256", file.file_name().expect("works").to_str().expect("works"));
        let sum = shop.path("runs/shop/features/_checksums").join(name);
        assert!(sum.is_file(), "{} is missing", sum.display());
    }
    is_whole(&shop);

    rewritten[0].iter().for_each(|file| flip(file));
    let entries = || std::fs::read_dir(shop.path("runs/shop/features/_delta_log")).expect("works").count();
    let before = entries();
    rename("2.png", "6.png");
    shop.imagedex("extract").exits(4).complains("the feature table is damaged");
    assert_eq!(entries(), before, "nothing was committed");
}

#[test]
fn damage_of_a_file_without_checksum_is_named_whatever_its_reader_does() {
    let shop = shop();
    let (table, file) = (shop.path("runs/shop/features"), largest(&shop));
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_dir_all(table.join("_checksums")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut found, mut refused) = (0, 0);
    for at in (whole.len().saturating_sub(6_000)..whole.len()).step_by(13) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&file, damaged).unwrap();
        let problems = runtime.block_on(FeatureStore::inspect(&table)).unwrap().unwrap().problems;
        assert!(problems.iter().all(|problem| problem.file == file), "byte {at}: {problems:?}");
        found += problems.len();
        // What a run asks first reads the keys; an export reads all.
        let read = async || {
            let store = FeatureStore::open(&table).await?.unwrap();
            store.plan(Vec::new()).await?;
            store.read(None).await
        };
        if let Err(error) = runtime.block_on(read()) {
            assert!(error.to_string().contains("features verify --repair"), "byte {at}: {error}");
            refused += 1;
        }
    }
    assert!(found > 0 && refused > 0, "{found} found, {refused} refused");
}

#[test]
fn a_damaged_feature_file_is_an_error_and_no_panic() {
    let shop = shop();
    let file = shop.path("features.parquet");
    let export = ["features".into(), "export".into(), file.clone(), shop.path("shop.toml")];
    imagedex(export).exits(0);
    let whole = std::fs::read(&file).unwrap();
    // The schema that Arrow keeps for itself, and the footer around it, stand at the end.
    let refused = (whole.len().saturating_sub(6_000)..whole.len()).step_by(11).filter(|&at| {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&file, damaged).unwrap();
        imagedex::exchange::read(&file).is_err()
    });
    assert!(refused.count() > 0);
    std::fs::write(&file, whole).unwrap();
    assert_eq!(imagedex::exchange::read(&file).expect("mended").len(), 6);
}
