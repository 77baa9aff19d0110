//! A feature table in an object store, and the copy of it that this machine works on.
//!
//! All that is said of [durability](super::durable), [damage](super::inspect) and locks is said of files. So a run works on a copy
//! in its work folder, and this keeps the two alike: before a command [`pull`](Mirror::pull) fetches what the copy lacks, and after
//! each commit [`push`](Mirror::push) sends it. What is in the bucket is a Delta table like any other, and it is the one that
//! counts: the copy may be deleted at any time.
//!
//! Why that is sound: files of a Delta table are never written over. A commit's files are sent first, then its log entry, which
//! must not be there yet (`If-None-Match: *`): the store itself decides between two writers, and the second one fails
//! ([`StoreError::Conflict`]). A run that is killed between leaves files that no entry names, and the table as it was.
//!
//! What a newcomer would get wrong: *not every store has that condition*. One that ignores it would let two writers pass, so before
//! a table is made it is asked twice for the same object ([`StoreError::Unconditional`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::PutOptions;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::durable::{CHECKSUMS, checksum_file, make_folder, seal, sync_folder};
use super::{FeatureStore, StoreError, holds_table};
use crate::objects::{Bucket, Found, ObjectError, ObjectUrl};
use crate::stages::report::{folder_of, temporary_in};
use crate::stages::scan::sha256_of;

const LOG: &str = "_delta_log";

/// Asked for twice, before a table is made.
const PROBE: &str = "_imagedex_probe";

/// A table and its copy. Whoever calls holds the copy's lock.
#[derive(Debug)]
pub struct Mirror {
    url: ObjectUrl,
    bucket: Arc<Bucket>,
    dir: PathBuf,
    /// Names of the files that the bucket has.
    sent: HashSet<String>,
    /// The latest version that both have.
    common: Option<u64>,
}

/// What the copy was last: beside it, so that a copy that went away is no table that shrank.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    version: u64,
}

impl Mirror {
    /// The table at `url`, whose copy is in the folder `dir`.
    pub fn new(url: &ObjectUrl, dir: &Path) -> Result<Mirror, StoreError> {
        let bucket = Bucket::of(url)?;
        Ok(Mirror { url: url.clone(), bucket, dir: dir.to_owned(), sent: HashSet::new(), common: None })
    }

    pub fn url(&self) -> &ObjectUrl {
        &self.url
    }

    /// Makes the copy what the table is, and fetches only what it lacks. Commits that did not reach the bucket when they were made
    /// stay, and are sent by the next [`push`](Mirror::push), unless another run has committed since: then they are dropped, and
    /// what was in them is embedded again.
    pub fn pull(&mut self, runtime: &Runtime) -> Result<(), StoreError> {
        let objects = self.objects()?;
        let theirs = entries(objects.keys().map(String::as_str));
        self.sent = objects.keys().cloned().collect();
        self.common = None;
        let note = self.note();
        let Some(newest) = theirs.keys().next_back().copied() else {
            return self.without_table(&objects, note);
        };
        make_folder(&self.dir).map_err(|error| StoreError::io(&self.dir, &error))?;
        let mut ours = self.own_entries()?;
        self.common = self.last_common(&theirs, &ours, note)?;
        let is_ahead = |common: u64| ours.keys().next_back().is_some_and(|last| *last > common);
        match self.common {
            Some(common) if common < newest && is_ahead(common) => {
                tracing::warn!(
                    "another run has written to {} since the last one here: what this one could not send then is dropped and done again",
                    self.url
                );
                self.clear()?;
            }
            None if !ours.is_empty() => {
                tracing::info!("{} is another table than its copy {} was of", self.url, self.dir.display());
                self.clear()?;
            }
            _ => {}
        }
        ours = self.own_entries()?;
        // A log that begins later than ours would have a gap before it.
        let behind: BTreeMap<_, _> =
            theirs.iter().filter(|(version, _)| !ours.contains_key(version)).collect();
        let mut named = BTreeSet::new();
        let log: Vec<&String> = objects.keys().filter(|name| name.starts_with("_delta_log/")).collect();
        // Checkpoints before the entries after them; the hint at the newest one last.
        for name in log.iter().filter(|name| name.ends_with(".parquet")) {
            self.fetch(name, &objects)?;
        }
        for name in behind.values() {
            let entry = self.fetch(name, &objects)?;
            named.extend(files_of(&entry).map_err(|error| StoreError::io(&entry, &error))?);
        }
        if let Some(hint) = log.iter().find(|name| name.ends_with("_last_checkpoint")) {
            fs::remove_file(self.dir.join(hint))
                .or_else(unless_missing)
                .map_err(|error| StoreError::io(&self.dir, &error))?;
            self.fetch(hint, &objects)?;
        }
        // Those of the change feed: without them a feed is refused, and an engine is loaded in full.
        for name in
            named.iter().filter(|name| name.starts_with("_change_data/") && objects.contains_key(*name))
        {
            self.fetch(name, &objects)?;
        }
        let store = runtime.block_on(FeatureStore::load(&self.dir))?;
        for (file, size, _) in store.files_with_rows()? {
            if fs::metadata(&file).is_ok_and(|found| found.len() == size) {
                continue;
            }
            let name = name_in(&self.dir, &file);
            fs::remove_file(&file).or_else(unless_missing).map_err(|error| StoreError::io(&file, &error))?;
            self.fetch(&name, &objects)?;
        }
        if self.common.is_none_or(|common| common < newest) {
            self.common = Some(newest);
        }
        self.keep_note()
    }

    /// There is no table yet, or no longer.
    fn without_table(&self, objects: &BTreeMap<String, Found>, note: Option<Note>) -> Result<(), StoreError> {
        let not_a_table = |reason: String| StoreError::NotATable { path: self.url.to_string(), reason };
        if note.is_some() {
            return Err(not_a_table(format!(
                "it held one, of which {} is a copy; restore it, or delete that folder and {} to begin anew",
                self.dir.display(),
                self.note_file().display()
            )));
        }
        // What a run leaves that was killed while it sent its first commit.
        let is_ours = |name: &str| name == PROBE || name.starts_with("_checksums/") || is_data(name);
        if objects.keys().any(|name| !is_ours(name)) {
            return Err(not_a_table("it holds other objects, and no Delta table".to_owned()));
        }
        Ok(())
    }

    /// Sends the commits that the bucket lacks.
    pub fn push(&mut self, store: &FeatureStore) -> Result<(), StoreError> {
        let ours = self.own_entries()?;
        // The first entry is sent with the first rows.
        let next = self.common.map_or(0, |common| common + 1);
        let new: Vec<(u64, PathBuf)> =
            ours.range(next..).map(|(version, name)| (*version, self.dir.join(name))).collect();
        let Some((newest, _)) = new.last() else { return Ok(()) };
        // A table that nothing was stored in yet may still be made anew, with other settings.
        if *newest == 0 && store.files()?.is_empty() {
            return Ok(());
        }
        if self.common.is_none() {
            self.probe()?;
        }
        let mut files = BTreeSet::new();
        for (_, entry) in &new {
            files.extend(files_of(entry).map_err(|error| StoreError::io(entry, &error))?);
        }
        files.extend(store.files()?.iter().map(|file| name_in(&self.dir, file)));
        for name in files {
            self.send(&name)?;
        }
        for (version, entry) in &new {
            self.send_entry(*version, entry)?;
        }
        // Shortcuts through the log, which it does not depend on. A hint never stands before what it names.
        for name in self.log_names()?.iter().filter(|name| name.ends_with(".parquet")) {
            self.send(name)?;
        }
        let hint = self.dir.join(LOG).join("_last_checkpoint");
        if let Ok(bytes) = fs::read(&hint) {
            self.bucket.put(&self.url.join("_delta_log/_last_checkpoint"), bytes)?;
        }
        self.common = Some(*newest);
        self.keep_note()
    }

    /// The names of the copy's files, for [`forget`](Mirror::forget).
    pub fn files(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut names: BTreeSet<String> = self.log_names()?.into_iter().collect();
        for folder in ["", "_change_data"] {
            let at = self.dir.join(folder);
            let entries = match fs::read_dir(&at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| StoreError::io(&at, &error))?,
            };
            let files = entries.flatten().map(|entry| name_in(&self.dir, &entry.path()));
            names.extend(files.filter(|name| is_data(name)));
        }
        Ok(names)
    }

    /// Removes from the bucket what a clean-up has removed from the copy since `before`: files that no version of the last seven
    /// days names, and entries that a checkpoint stands for.
    pub fn forget(&mut self, before: &BTreeSet<String>) -> Result<(), StoreError> {
        let now = self.files()?;
        let mut gone = Vec::new();
        for name in before.difference(&now).filter(|name| self.sent.contains(*name)) {
            gone.push(self.url.join(name));
            gone.extend(checksum_name(name).map(|name| self.url.join(&name)));
        }
        self.sent.retain(|name| now.contains(name) || !before.contains(name));
        Ok(self.bucket.remove(&gone)?)
    }

    /// All objects of the table, by their names in its folder.
    fn objects(&self) -> Result<BTreeMap<String, Found>, StoreError> {
        let found = self.bucket.list(&self.url)?;
        let named =
            found.into_iter().filter_map(|found| Some((self.url.name_of(&found.key)?.to_owned(), found)));
        Ok(named.collect())
    }

    fn own_entries(&self) -> Result<BTreeMap<u64, String>, StoreError> {
        // Whatever else is in the folder is not ours to touch.
        holds_table(&self.dir)?;
        Ok(entries(self.log_names()?.iter().map(String::as_str)))
    }

    fn log_names(&self) -> Result<Vec<String>, StoreError> {
        let log = self.dir.join(LOG);
        let entries = match fs::read_dir(&log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| StoreError::io(&log, &error))?,
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| name_in(&self.dir, &entry.path()))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The latest version up to which both logs say the same; `None` where they have none in common. From the version of the note
    /// on they are compared byte by byte; what lies before it was compared then.
    fn last_common(
        &self,
        theirs: &BTreeMap<u64, String>,
        ours: &BTreeMap<u64, String>,
        note: Option<Note>,
    ) -> Result<Option<u64>, StoreError> {
        let from = note.map_or(0, |note| note.version);
        let mut common = None;
        for (version, name) in ours.range(from..) {
            if !theirs.contains_key(version) {
                break;
            }
            let file = self.dir.join(name);
            let ours = fs::read(&file).map_err(|error| StoreError::io(&file, &error))?;
            if self.read(name)? != ours {
                break;
            }
            common = Some(*version);
        }
        Ok(common)
    }

    /// Empties the copy.
    fn clear(&mut self) -> Result<(), StoreError> {
        let io = |error: io::Error| StoreError::io(&self.dir, &error);
        // The checksums first: without a log they would say that it was lost.
        for folder in [CHECKSUMS, LOG, "_change_data"] {
            fs::remove_dir_all(self.dir.join(folder)).or_else(unless_missing).map_err(io)?;
        }
        for entry in fs::read_dir(&self.dir).map_err(io)?.flatten() {
            if is_data(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        self.common = None;
        fs::remove_file(self.note_file()).or_else(unless_missing).map_err(io)?;
        sync_folder(&self.dir).map_err(io)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let url = self.url.join(name);
        self.bucket.read(&url.key, None).map(Vec::from).map_err(|error| self.unread(name, &error))
    }

    fn unread(&self, name: &str, error: &io::Error) -> StoreError {
        let (url, reason) = (self.url.join(name).to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::NotFound => self.damaged(name, "is missing"),
            io::ErrorKind::PermissionDenied => ObjectError::Denied { url, reason }.into(),
            _ => ObjectError::Unreachable { url, reason }.into(),
        }
    }

    fn damaged(&self, name: &str, reason: &str) -> StoreError {
        let remedy = "restore that object in the bucket, or name another folder for features.table";
        StoreError::Damaged { file: self.url.join(name).to_string(), reason: reason.to_owned(), remedy }
    }

    /// Fetches a file that the copy lacks, and compares it with the checksum that was sent with it.
    fn fetch(&self, name: &str, objects: &BTreeMap<String, Found>) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let Some(found) = objects.get(name) else { return Err(self.damaged(name, "is missing")) };
        let io = |error: io::Error| StoreError::io(&path, &error);
        make_folder(folder_of(&path)).map_err(io)?;
        let file = temporary_in(&self.dir).map_err(io)?;
        let handle = file.reopen().map_err(io)?;
        let fetched = self.bucket.download(&self.url.join(name), found.size, handle);
        fetched.map_err(|error| match error.raw_os_error() {
            Some(_) => StoreError::io(file.path(), &error),
            None => self.unread(name, &error),
        })?;
        if let Some(sum) = checksum_name(name).filter(|sum| objects.contains_key(sum)) {
            let wanted = self.read(&sum)?;
            let found = sha256_of(file.path()).map_err(io)?;
            if wanted.len() >= 64 && &wanted[..64] != found.as_bytes() {
                return Err(self.damaged(name, super::inspect::WRONG_SUM));
            }
        }
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|error| io(error.error))?;
        seal(&path).map_err(io)?;
        Ok(path)
    }

    /// Sends a file of the copy and its checksum, unless the bucket has it.
    fn send(&mut self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        if self.sent.contains(name) || !path.is_file() {
            return Ok(());
        }
        self.send_checksum(name, &path)?;
        let io = |error: io::Error| StoreError::io(&path, &error);
        self.bucket.send(&path, &self.url.join(name), PutOptions::default()).map_err(io)??;
        self.sent.insert(name.to_owned());
        Ok(())
    }

    fn send_checksum(&self, name: &str, path: &Path) -> Result<(), StoreError> {
        let file = checksum_file(path).filter(|file| file.is_file());
        if let (Some(file), Some(name)) = (file, checksum_name(name)) {
            let bytes = fs::read(&file).map_err(|error| StoreError::io(&file, &error))?;
            self.bucket.put(&self.url.join(&name), bytes)?;
        }
        Ok(())
    }

    /// Sends an entry of the log, which is the commit. One that is there already is ours if it says the same: an answer was lost.
    fn send_entry(&mut self, version: u64, entry: &Path) -> Result<(), StoreError> {
        let bytes = fs::read(entry).map_err(|error| StoreError::io(entry, &error))?;
        let name = name_in(&self.dir, entry);
        if !self.bucket.create(&self.url.join(&name), bytes.clone())? && self.read(&name)? != bytes {
            let reason = format!("version {version} is already there");
            return Err(StoreError::Conflict { path: self.url.to_string(), reason });
        }
        // After it: the checksum of another's entry is not ours to write over.
        self.send_checksum(&name, entry)?;
        self.sent.insert(name);
        Ok(())
    }

    /// Whether the store heeds the condition that commits depend on.
    fn probe(&self) -> Result<(), StoreError> {
        let url = self.url.join(PROBE);
        self.bucket.create(&url, "first")?;
        let is_heeded = !self.bucket.create(&url, "second")?;
        self.bucket.remove(&[url])?;
        match is_heeded {
            true => Ok(()),
            false => Err(StoreError::Unconditional { url: self.url.to_string() }),
        }
    }

    fn note_file(&self) -> PathBuf {
        self.dir.with_extension("json")
    }

    /// What the copy was of when it was last used; nothing where it is gone, or was of another table.
    fn note(&self) -> Option<Note> {
        let note: Note = serde_json::from_slice(&fs::read(self.note_file()).ok()?).ok()?;
        (note.url == self.url.to_string() && self.dir.join(LOG).is_dir()).then_some(note)
    }

    fn keep_note(&self) -> Result<(), StoreError> {
        let Some(version) = self.common else { return Ok(()) };
        let path = self.note_file();
        let note = serde_json::to_vec(&Note { url: self.url.to_string(), version });
        let note = note.map_err(|error| StoreError::io(&path, &io::Error::from(error)))?;
        let mut file = super::NewFile::create(&path)?;
        io::Write::write_all(&mut file, &note).map_err(|error| StoreError::io(&path, &error))?;
        file.finish()
    }
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Versions of a log, each with the name of its entry.
fn entries<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<u64, String> {
    let version = |name: &str| name.strip_prefix("_delta_log/")?.strip_suffix(".json")?.parse().ok();
    names.filter_map(|name| Some((version(name)?, name.to_owned()))).collect()
}

/// Whether it is a file of rows or of changes.
fn is_data(name: &str) -> bool {
    let name = name.strip_prefix("_change_data/").unwrap_or(name);
    name.ends_with(".parquet") && !name.contains('/')
}

/// A file's name in the table's folder, `/`-separated.
fn name_in(dir: &Path, file: &Path) -> String {
    let parts = file.strip_prefix(dir).unwrap_or(file).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Where the checksum of a file is kept.
fn checksum_name(name: &str) -> Option<String> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let is_kept = last.ends_with(".parquet") || last.ends_with(".json");
    is_kept.then(|| format!("{CHECKSUMS}/{last}.sha256"))
}

/// The files that an entry of the log adds: rows and changes.
fn files_of(entry: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(entry)?;
    let name = |line: &str| {
        let action: Value = serde_json::from_str(line).ok()?;
        let path = ["add", "cdc"].iter().find_map(|kind| action[*kind]["path"].as_str())?;
        Some(percent_decode_str(path).decode_utf8().ok()?.into_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_table_are_told_apart() {
        for (name, is_one) in [
            ("part-0.zstd.parquet", true),
            ("_change_data/cdc-1.zstd.parquet", true),
            ("_delta_log/00000000000000000010.checkpoint.parquet", false),
            ("photos/1.parquet", false),
            ("list.csv", false),
        ] {
            assert_eq!(is_data(name), is_one, "{name}");
        }
        let names = ["_delta_log/00000000000000000007.json", "_delta_log/_last_checkpoint", "7.json"];
        assert_eq!(entries(names.into_iter()).into_keys().collect::<Vec<_>>(), [7]);
        assert_eq!(checksum_name("_change_data/a.parquet").as_deref(), Some("_checksums/a.parquet.sha256"));
        assert_eq!(checksum_name("_delta_log/_last_checkpoint"), None);
    }

    #[test]
    fn an_entry_names_its_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let entry = folder.path().join("0.json");
        let text = "{\"commitInfo\":{}}\n{\"add\":{\"path\":\"a%20b.parquet\"}}\n{\"remove\":{\"path\":\"c\"}}\n\
                    {\"cdc\":{\"path\":\"_change_data/d.parquet\"}}\n";
        fs::write(&entry, text).expect("writable");
        assert_eq!(files_of(&entry).expect("read"), ["a b.parquet", "_change_data/d.parquet"]);
    }
}
