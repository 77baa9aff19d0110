//! What is left of a feature table when the power goes. The system calls of a process that writes one are recorded (strace), and
//! replayed on a disk that keeps what it was made to flush, and of the rest what it likes. After every call the table that such
//! a disk may hold is opened: it is the one of the last commit that returned, or of the one under way, whole in either case.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use imagedex::lock::{TableLock, WorkLock};
use imagedex::stages::decode::Failure;
use imagedex::stages::report::RunRecord;
use imagedex::stages::scan::Split::Gallery;
use imagedex::stages::store::{FeatureStore, lock_file, write_failures};
use tokio::runtime::Runtime;

use crate::store::{embed, facts, open, seen};

/// Where the child works.
const FOLDER: &str = "IMAGEDEX_POWER_LOSS";
const TABLE: &str = "runs/shop/features";
/// Written twice, when the table is done: by both ways in which a run writes a file in the place of another.
const OUTPUTS: [&str; 2] = ["runs/shop/failures.parquet", "runs/shop/run.json"];
/// The last commits, after each call of which the disk is examined: the first of all, a checkpoint, and what comes before it.
const EXAMINED: [std::ops::Range<u64>; 2] = [0..17, 98..200];

/// Writes a table in every way there is. A file `committed-VERSION-ROWS` says which commits have returned.
#[tokio::test]
#[ignore = "started by the test below, under strace"]
async fn a_process_that_writes() {
    let root = PathBuf::from(std::env::var_os(FOLDER).expect("started by the test below"));
    let table = root.join(TABLE);
    // As a run does it: what is locked is made first.
    let _work = WorkLock::take(&root.join("runs/shop")).unwrap();
    let _lock = TableLock::take(&lock_file(&table).unwrap()).unwrap();
    let mut store = open(&table).await;
    let mut rows = 0;
    let returned = |store: &FeatureStore, rows: usize| {
        std::fs::write(root.join(format!("committed-{}-{rows}", store.version())), "").unwrap();
    };
    returned(&store, rows);
    let add = async |store: &mut FeatureStore, rows: &mut usize| {
        let (name, bytes) = (format!("{rows}.jpg"), format!("b{rows}"));
        store.append(&embed(&[seen((Gallery, &name, "cat", &bytes))]), &facts()).await.unwrap();
        *rows += 1;
    };
    for _ in 0..11 {
        add(&mut store, &mut rows).await;
        returned(&store, rows);
    }
    store.replace(&embed(&[seen((Gallery, "3.jpg", "dog", "other"))]), &facts()).await.unwrap();
    returned(&store, rows);
    store.apply(&[], &[(Gallery, "5.jpg".to_owned())], &facts()).await.unwrap();
    returned(&store, rows - 1);
    assert!(store.compact(&facts()).await.unwrap());
    returned(&store, rows - 1);
    // Up to the checkpoint that Delta makes, and past it.
    while store.version() < 102 {
        add(&mut store, &mut rows).await;
        returned(&store, rows - 1);
    }
    for (i, path) in ["first", "second"].into_iter().enumerate() {
        let failure = Failure {
            path: path.to_owned(),
            split: Gallery,
            stage: "read".to_owned(),
            kind: "unreadable".to_owned(),
            reason: String::new(),
        };
        write_failures(&root.join(OUTPUTS[0]), &[failure]).unwrap();
        RunRecord::new(path, 0, serde_json::Value::Null).write(&root.join(OUTPUTS[1])).unwrap();
        std::fs::write(root.join(format!("written-{i}")), "").unwrap();
    }
}

/// What a disk has, and what it would have after a power cut.
#[derive(Default)]
struct Disk {
    files: Vec<Content>,
    folders: BTreeMap<PathBuf, Folder>,
}

/// Of a file, by number: it may have several names, or none.
#[derive(Default)]
struct Content {
    now: Vec<u8>,
    flushed: Vec<u8>,
}

#[derive(Default)]
struct Folder {
    now: BTreeMap<PathBuf, Entry>,
    flushed: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Folder,
}

/// What is lost in a power cut.
#[derive(Clone, Copy)]
enum Loss {
    /// All that was not flushed: the laziest disk.
    All,
    /// Bytes that were not flushed, but no names: files are there, and empty.
    Bytes,
    /// Names and bytes, some of them, by chance.
    Some(u64),
    /// A killed process loses nothing that it has written.
    None,
}

/// What is on a disk; `None` for a folder.
type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

impl Disk {
    fn find(&self, path: &Path) -> Option<Entry> {
        self.folders.get(path.parent()?)?.now.get(path).copied()
    }

    fn name(&mut self, path: &Path, entry: Option<Entry>) {
        let folder = self.folders.get_mut(path.parent().expect("a file")).expect("a folder that is there");
        match entry {
            Some(entry) => folder.now.insert(path.to_owned(), entry),
            None => folder.now.remove(path),
        };
    }

    fn flush(&mut self, path: &Path) {
        if let Some(folder) = self.folders.get_mut(path) {
            folder.flushed = folder.now.clone();
        } else if let Some(Entry::File(file)) = self.find(path) {
            self.files[file].flushed = self.files[file].now.clone();
        }
    }

    fn after(&self, loss: Loss, root: &Path) -> Tree {
        let mut chance = fastrand::Rng::with_seed(if let Loss::Some(seed) = loss { seed } else { 0 });
        let (mut tree, mut folders) = (Tree::new(), vec![root.to_owned()]);
        while let Some(folder) = folders.pop() {
            let Folder { now, flushed } = &self.folders[&folder];
            let names: BTreeSet<&PathBuf> = now.keys().chain(flushed.keys()).collect();
            for path in names {
                let is_flushed = match loss {
                    Loss::All => true,
                    Loss::Bytes | Loss::None => false,
                    Loss::Some(_) => chance.bool(),
                };
                match if is_flushed { flushed.get(path) } else { now.get(path) } {
                    None => {}
                    Some(Entry::Folder) => {
                        folders.push(path.clone());
                        tree.insert(path.clone(), None);
                    }
                    Some(Entry::File(file)) => {
                        let Content { now, flushed } = &self.files[*file];
                        let bytes = match loss {
                            Loss::None => now.clone(),
                            Loss::Some(_) if now != flushed => now[..chance.usize(0..=now.len())].to_vec(),
                            _ => flushed.clone(),
                        };
                        tree.insert(path.clone(), Some(bytes));
                    }
                }
            }
        }
        tree
    }
}

/// One system call: its name, its arguments with texts as bytes, and what it returned.
#[derive(Clone)]
struct Call {
    name: String,
    texts: Vec<Vec<u8>>,
    /// Paths of the file handles among the arguments.
    handles: Vec<PathBuf>,
    first: String,
    flags: String,
    returned: i64,
    /// The path of the handle that it returned.
    opened: Option<PathBuf>,
}

/// Lines of `strace -f -y -xx`, in the order in which the calls returned.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread");
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            begun.insert(thread, start);
        } else if let Some((_, end)) = call.split_once(" resumed>").filter(|_| call.starts_with("<... ")) {
            calls.extend(parse(&format!("{}{end}", begun.remove(thread).expect("begun"))));
        } else {
            calls.extend(parse(call));
        }
    }
    calls
}

fn parse(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ").or_else(|| rest.rsplit_once(" = "))?;
    let bytes = |hex: &str| -> Vec<u8> {
        hex.split("\\x").skip(1).map(|byte| u8::from_str_radix(&byte[..2], 16).expect("hex")).collect()
    };
    let path = |hex: &str| PathBuf::from(std::ffi::OsString::from_vec(bytes(hex)));
    let handle = |text: &str| Some(path(text.split_once('<')?.1.split_once('>')?.0));
    let arguments: Vec<&str> = arguments.split(", ").collect();
    Some(Call {
        name: name.to_owned(),
        texts: arguments.iter().filter(|text| text.starts_with('"')).map(|text| bytes(text)).collect(),
        handles: arguments.iter().filter_map(|text| handle(text)).collect(),
        first: arguments[0].split('<').next()?.to_owned(),
        flags: arguments.iter().filter(|text| text.contains("O_")).copied().collect(),
        returned: result.split(['<', ' ']).next()?.parse().ok()?,
        opened: handle(result),
    })
}

/// Replays calls on a disk; `examine` sees it after each that changed something, with the names made so far.
fn replay(root: &Path, calls: &[Call], mut examine: impl FnMut(&Disk)) -> Disk {
    let mut disk = Disk::default();
    disk.folders.insert(root.to_owned(), Folder::default());
    let mut offsets: HashMap<String, usize> = HashMap::new();
    for call in calls.iter().filter(|call| call.returned >= 0) {
        let paths: Vec<PathBuf> =
            call.texts.iter().map(|text| PathBuf::from(std::ffi::OsString::from_vec(text.clone()))).collect();
        let is_ours = |path: Option<&PathBuf>| path.is_some_and(|path| path.starts_with(root));
        match call.name.as_str() {
            "openat" => {
                let handle = call.returned.to_string();
                offsets.insert(handle, 0);
                let path = call.opened.as_ref().expect("a path");
                if !is_ours(Some(path)) || !call.flags.contains("O_CREAT") {
                    continue;
                }
                match disk.find(path) {
                    Some(Entry::File(file)) if call.flags.contains("O_TRUNC") => disk.files[file].now.clear(),
                    Some(_) => {}
                    None => {
                        disk.files.push(Content::default());
                        disk.name(path, Some(Entry::File(disk.files.len() - 1)));
                    }
                }
            }
            "lseek" => {
                offsets.insert(call.first.clone(), call.returned as usize);
                continue;
            }
            "write" if is_ours(call.handles.first()) => {
                let offset = offsets.get_mut(&call.first).expect("opened before");
                // One without a name is a trial whether the folder can be written.
                let Some(Entry::File(file)) = disk.find(&call.handles[0]) else { continue };
                let now = &mut disk.files[file].now;
                let end = *offset + call.returned as usize;
                now.resize(now.len().max(end), 0);
                now[*offset..end].copy_from_slice(&call.texts[0][..call.returned as usize]);
                *offset = end;
            }
            "fsync" | "fdatasync" if is_ours(call.handles.first()) => disk.flush(&call.handles[0]),
            "rename" | "renameat" | "renameat2" | "link" | "linkat" if is_ours(paths.last()) => {
                let entry = disk.find(&paths[0]).filter(|entry| *entry != Entry::Folder);
                disk.name(&paths[1], Some(entry.expect("a file is renamed, no folder")));
                if call.name.starts_with("rename") {
                    disk.name(&paths[0], None);
                }
            }
            "unlink" | "unlinkat" if is_ours(paths.last()) => disk.name(&paths[0], None),
            "mkdir" | "mkdirat" if is_ours(paths.last()) => {
                disk.name(&paths[0], Some(Entry::Folder));
                disk.folders.insert(paths[0].clone(), Folder::default());
            }
            _ => {
                let is_known = ["write", "fsync", "fdatasync", "unlink", "unlinkat", "mkdir", "mkdirat"]
                    .contains(&call.name.as_str())
                    || call.name.starts_with("rename")
                    || call.name.starts_with("link");
                assert!(is_known || !is_ours(call.handles.first()), "{} is not replayed", call.name);
                continue;
            }
        }
        examine(&disk);
    }
    disk
}

fn read_tree(folder: &Path, tree: &mut Tree) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tree.insert(path.clone(), None);
            read_tree(&path, tree);
        } else {
            tree.insert(path.clone(), Some(std::fs::read(&path).unwrap()));
        }
    }
}

/// The part of a tree in `folder`, written to another one.
fn write_tree(tree: &Tree, folder: &Path, to: &Path) {
    for (path, bytes) in tree.range(folder.to_owned()..) {
        let Ok(name) = path.strip_prefix(folder) else { break };
        match bytes {
            None => std::fs::create_dir_all(to.join(name)).unwrap(),
            Some(bytes) => std::fs::write(to.join(name), bytes).unwrap(),
        }
    }
}

/// `committed-VERSION-ROWS`
fn commits(tree: impl Iterator<Item = PathBuf>) -> BTreeMap<u64, usize> {
    tree.filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_prefix("committed-")?.split_once('-')?;
        Some((name.0.parse().ok()?, name.1.parse().ok()?))
    })
    .collect()
}

#[test]
fn a_power_cut_leaves_the_last_commit_or_the_one_under_way() {
    let folder = in_memory();
    let root = folder.path().join("disk").canonicalize().unwrap_or(folder.path().join("disk"));
    std::fs::create_dir(&root).unwrap();
    let trace = folder.path().join("trace");
    let traced = "openat,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,ftruncate,fallocate,lseek,\
                  fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat";
    let child = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-y",
            "-xx",
            "-s",
            "100000000",
            "--seccomp-bpf",
            "-e",
            &format!("trace={traced}"),
        ])
        .args(["-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["power_loss::a_process_that_writes", "--exact", "--ignored"])
        .env(FOLDER, &root)
        .output();
    let is_missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    if child.as_ref().is_err_and(is_missing) && std::env::var_os("CI").is_none() {
        eprintln!("\n*** SKIPPED: strace is not installed, so no power cut was tried ***\n");
        return;
    }
    let child = child.expect("strace starts");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));

    let calls = calls(&std::fs::read_to_string(&trace).unwrap());
    let mut whole = Tree::new();
    read_tree(&root, &mut whole);
    let mut outputs: [Vec<Vec<u8>>; 2] = Default::default();
    let replayed = replay(&root, &calls, |disk| {
        for (name, contents) in OUTPUTS.iter().zip(&mut outputs) {
            if let Some(Entry::File(file)) = disk.find(&root.join(name))
                && contents.last() != Some(&disk.files[file].now)
            {
                contents.push(disk.files[file].now.clone());
            }
        }
    });
    assert_eq!(outputs.each_ref().map(Vec::len), [2, 2], "no part of a file has its name");
    // What is replayed is what was done.
    assert!(replayed.after(Loss::None, &root) == whole);
    let all_commits = commits(whole.keys().cloned());
    assert_eq!(all_commits.keys().next_back(), Some(&102));

    // And it would be seen if it could: without flushes nothing is left of it.
    let lazy: Vec<Call> = calls.iter().filter(|call| !call.name.ends_with("sync")).cloned().collect();
    assert!(replay(&root, &lazy, |_| {}).after(Loss::All, &root).is_empty());

    let runtime = Runtime::new().unwrap();
    let (mut tried, mut examined, mut distinct) = (0_u64, 0, HashSet::new());
    replay(&root, &calls, |disk| {
        let returned = commits(disk.folders[&root].now.keys().cloned()).keys().next_back().copied();
        if !EXAMINED.iter().any(|range| range.contains(&returned.unwrap_or(0))) {
            return;
        }
        tried += 1;
        for loss in [Loss::All, Loss::Bytes, Loss::Some(2 * tried), Loss::Some(2 * tried + 1), Loss::None] {
            let tree = disk.after(loss, &root);
            let mut hash = DefaultHasher::new();
            // Files without their name yet are passed over by all who read.
            let named = tree.iter().filter(|(path, _)| !path.to_string_lossy().contains("/.imagedex-"));
            (named.collect::<Vec<_>>(), returned).hash(&mut hash);
            if distinct.insert(hash.finish()) {
                examined += 1;
                let what = format!("call {tried}, after commit {returned:?}");
                runtime.block_on(examine(&root, &tree, returned, &whole, &all_commits, &what));
                let written =
                    (0..2).filter(|i| disk.find(&root.join(format!("written-{i}"))).is_some()).count();
                for (name, contents) in OUTPUTS.iter().zip(&outputs) {
                    let left = tree.get(&root.join(name)).cloned().flatten();
                    let number =
                        left.map_or(Some(0), |left| Some(contents.iter().position(|it| *it == left)? + 1));
                    assert!(number.is_some_and(|number| number >= written), "{what}: {name}");
                }
            }
        }
    });
    assert!(examined > 200, "{examined} states of {tried} calls");
    eprintln!("{tried} calls, {examined} different states after a power cut");
}

/// A folder where flushing costs nothing: it is asked for thousands of times, and here only that it is asked for counts.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Opens what is left, checks it row by row, and writes to it.
async fn examine(
    root: &Path,
    tree: &Tree,
    returned: Option<u64>,
    whole: &Tree,
    rows_at: &BTreeMap<u64, usize>,
    what: &str,
) {
    let (left, table) = (in_memory(), root.join(TABLE));
    write_tree(tree, &table, left.path());
    let found = FeatureStore::inspect(left.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    match (&found, returned) {
        (None, None) => {}
        (None, Some(_)) => panic!("{what}: no table is left"),
        (Some(found), returned) => {
            assert!(found.problems.is_empty(), "{what}: {}", found.problems[0]);
            let version = found.version.expect("a table");
            assert!(
                (returned..=returned.map_or(Some(0), |it| Some(it + 1))).contains(&Some(version)),
                "{what}: {version}"
            );
            assert_eq!(found.rows, rows_at[&version], "{what}: rows of version {version}");
            // Versions and data files are named once and for all: each that is there in name must be there in full.
            let entry = |version: u64| table.join(format!("_delta_log/{version:020}.json"));
            for path in (0..=version).map(entry) {
                assert!(tree.get(&path) == whole.get(&path), "{what}: {}", path.display());
            }
        }
    }
    let mut store = open(left.path()).await;
    let before = store.version();
    store
        .append(&embed(&[seen((Gallery, "after.jpg", "", "after"))]), &facts())
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(store.version(), before + 1, "{what}");
    let found = FeatureStore::inspect(left.path()).await.unwrap().expect("a table");
    assert!(found.problems.is_empty(), "{what}, and one more picture: {}", found.problems[0]);
}
