//! Is a table sound? If not: what is wrong with it, and how what is left of it is saved.
//!
//! Everything is read: the log, each file that counts, each row. A file that holds what nobody wrote into it is found by its
//! SHA-256, which [`durable`](super::durable) keeps beside the table; without one (the file is older than checksums, or
//! another program's) by what cannot be decoded, and by rows that cannot be right.
//!
//! A repair takes out files, not rows: of a damaged file no row is to be believed. Nothing is deleted: what is taken out is
//! moved to `_damaged` in the table's folder. What a newcomer would get wrong: *a log that lost an entry must not go on
//! counting where it was*. An engine that was loaded at version 7 would take another version 7 for its own; so the log is
//! written anew, for a table with a new id, and engines are then loaded in full.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::Utc;
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::durable::{
    CHECKSUMS, ENTRY_CHECKSUM, Sum, check_sum, checksum_file, last_written, make_folder, sync_folder,
};
use super::schema::{append_rows, validate};
use super::{CommitFacts, FeatureStore, StoreError, builder, holds_table};
use crate::panics;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::report::temporary_in;
use crate::stages::scan::Split;

/// Where a repair puts what it takes out, in the table's folder.
pub(super) const DAMAGED: &str = "_damaged";

/// How far the length of a vector may be from what it must be: float32 numbers of at most some thousands.
const NORM_TOLERANCE: f64 = 1e-3;

/// What was found in a table.
#[derive(Debug, Default)]
pub struct Inspection {
    /// In the order found: the log, then the files. Empty for a table that is sound.
    pub problems: Vec<Problem>,
    /// Parquet files that count. 0 where the log does not say which do.
    pub files: usize,
    /// Of `files`, those that were written without a checksum.
    pub without_checksum: usize,
    /// Rows that were read and are right.
    pub rows: usize,
    /// The table's version, where its log can be read.
    pub version: Option<u64>,
}

/// One thing that is wrong.
#[derive(Debug)]
pub struct Problem {
    pub file: PathBuf,
    pub reason: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The log entry of this version is lost.
    Entry(u64),
    /// The table can do without it.
    Spare,
    /// So many rows are lost.
    Data(u64),
    /// A row that is there more than once.
    Duplicate(Split, String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.file.display(), self.reason)
    }
}

impl Problem {
    pub(super) fn error(&self) -> StoreError {
        StoreError::damaged(&self.file, &self.reason)
    }
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Rows that the log says were in what was taken out.
    pub taken_out: u64,
    /// Whether rows may be missing now: all that a lost log entry added.
    pub may_lack_rows: bool,
    /// Where what was taken out is now.
    pub moved_to: PathBuf,
    /// Whether nothing could be saved, so that the whole table was moved there.
    pub is_whole_table: bool,
}

impl FeatureStore {
    /// Reads the whole table in `dir`, and says what is wrong with it; `None` where there is none.
    ///
    /// Errors: what is no damage, such as a table of another version, or a disk that cannot be read.
    pub async fn inspect(dir: &Path) -> Result<Option<Inspection>, StoreError> {
        if !holds_table(dir)? {
            return Ok(None);
        }
        let mut found = Inspection { problems: inspect_log(dir)?, ..Inspection::default() };
        if found.problems.iter().any(|problem| matches!(problem.kind, Kind::Entry(_))) {
            return Ok(Some(found));
        }
        match FeatureStore::load(dir).await {
            Ok(store) => {
                found.version = Some(store.version());
                store.inspect_files(&mut found)?;
            }
            // A damaged piece that can be spared may still keep the log from being read.
            Err(_) if !found.problems.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(Some(found))
    }

    fn inspect_files(&self, found: &mut Inspection) -> Result<(), StoreError> {
        let mut keys: HashSet<(Split, String)> = HashSet::new();
        let mut twice: BTreeMap<(Split, String), PathBuf> = BTreeMap::new();
        for (file, size, rows) in self.files_with_rows()? {
            found.files += 1;
            let mut problem = |reason: String| {
                found.problems.push(Problem { file: file.clone(), reason, kind: Kind::Data(rows) })
            };
            match whole(&file, Some(size)).map_err(|error| StoreError::io(&file, &error))? {
                Whole::Damaged(reason) => {
                    problem(reason);
                    continue;
                }
                Whole::WithoutChecksum => found.without_checksum += 1,
                Whole::Right => {}
            }
            let mut of_file = Vec::new();
            match self.inspect_rows(&file, &mut of_file) {
                Err(reason) => problem(reason),
                Ok(read) if read as u64 != rows => problem(format!("has {read} rows of {rows}")),
                Ok(read) => {
                    found.rows += read;
                    for key in of_file {
                        if keys.contains(&key) {
                            twice.insert(key, file.clone());
                        } else {
                            keys.insert(key);
                        }
                    }
                }
            }
        }
        found.problems.extend(twice.into_iter().map(|((split, id), file)| Problem {
            file,
            reason: format!("holds {} picture {id:?}, which is in the table already", split.name()),
            kind: Kind::Duplicate(split, id),
        }));
        Ok(())
    }

    /// Reads each row of a file; returns how many there are, and their keys in `keys`.
    fn inspect_rows(&self, file: &Path, keys: &mut Vec<(Split, String)>) -> Result<usize, String> {
        let mut rows = 0;
        read_parquet(file, |batch| {
            let mut pictures = EmbeddingBatch { dim: self.dim(), ..EmbeddingBatch::default() };
            append_rows(batch, &mut pictures)?;
            validate(&pictures, self.dim()).map_err(|error| error.to_string())?;
            self.inspect_norms(&pictures)?;
            let fingerprint = batch.column_by_name("fingerprint").ok_or("has no column fingerprint")?;
            let fingerprint = cast(fingerprint, &DataType::Utf8).map_err(|error| error.to_string())?;
            let fingerprint = fingerprint.as_string::<i32>();
            let is_ours = |row: usize| {
                fingerprint.is_valid(row) && fingerprint.value(row) == self.provenance.fingerprint
            };
            if let Some(row) = (0..batch.num_rows()).find(|row| !is_ours(*row)) {
                let id = &pictures.pictures[row].id;
                return Err(format!("picture {id:?} has another fingerprint than the table"));
            }
            rows += batch.num_rows();
            keys.extend(pictures.pictures.into_iter().map(|picture| (picture.split, picture.id)));
            Ok(())
        })?;
        Ok(rows)
    }

    /// A normalised vector has length 1, another one its norm, and one of zeros none. Imported ones promise nothing.
    fn inspect_norms(&self, batch: &EmbeddingBatch) -> Result<(), String> {
        let normalize = self.provenance.facts["normalize"].as_str();
        for (row, picture) in batch.pictures.iter().enumerate() {
            let square: f64 = batch.vector(row).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let (length, norm) = (square.sqrt(), f64::from(batch.norms[row]));
            let wanted = match normalize {
                Some("l2") if norm > 0.0 => 1.0,
                Some("l2" | "none") => norm,
                _ => continue,
            };
            if (length - wanted).abs() > NORM_TOLERANCE * wanted.max(1e-6) {
                let id = &picture.id;
                return Err(format!(
                    "picture {id:?} has a vector of length {length} where it must be {wanted}"
                ));
            }
        }
        Ok(())
    }

    /// Compares the files that count with their checksums; without one a file passes.
    pub fn check_sums(&self) -> Result<(), StoreError> {
        for file in self.files()? {
            match check_sum(&file) {
                Ok(Sum::Wrong) => return Err(StoreError::damaged(&file, WRONG_SUM)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(StoreError::damaged(&file, MISSING));
                }
                Err(error) => return Err(StoreError::io(&file, &error)),
            }
        }
        Ok(())
    }

    /// Takes out of the table in `dir` what [`inspect`](FeatureStore::inspect) found. Afterwards the table is sound, or gone
    /// as a whole, and what was taken out is to be embedded again. The caller holds the table's lock.
    pub async fn repair(dir: &Path, found: &Inspection, facts: &CommitFacts) -> Result<Repaired, StoreError> {
        let now = Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
        let moved_to = dir.join(DAMAGED).join(&now);
        let mut repaired = Repaired { moved_to: moved_to.clone(), ..Repaired::default() };
        for problem in &found.problems {
            if matches!(problem.kind, Kind::Spare) {
                move_aside(&problem.file, &moved_to)?;
            }
        }
        let lost: BTreeSet<u64> = found
            .problems
            .iter()
            .filter_map(|problem| if let Kind::Entry(version) = problem.kind { Some(version) } else { None })
            .collect();
        if !lost.is_empty() {
            repaired.may_lack_rows = true;
            if !rebuild_log(dir, &lost, &moved_to).await? {
                repaired.is_whole_table = true;
                repaired.moved_to = move_whole(dir, &now)?;
                return Ok(repaired);
            }
        }
        // Twice at most: rows are taken out once all files can be read.
        for _ in 0..3 {
            let Some(left) = FeatureStore::inspect(dir).await? else { break };
            if left.problems.is_empty() {
                return Ok(repaired);
            }
            let mut store = FeatureStore::load(dir).await?;
            let mut files = 0;
            for problem in &left.problems {
                if let Kind::Data(rows) = problem.kind {
                    files += 1;
                    repaired.taken_out += rows;
                    move_aside(&problem.file, &moved_to)?;
                }
            }
            if files > 0 {
                store.take_out_missing(facts).await?;
                continue;
            }
            let twice: Vec<(Split, String)> = left
                .problems
                .into_iter()
                .filter_map(|problem| match problem.kind {
                    Kind::Duplicate(split, id) => Some((split, id)),
                    _ => None,
                })
                .collect();
            repaired.taken_out += twice.len() as u64;
            store.apply(&[], &twice, facts).await?;
        }
        match FeatureStore::inspect(dir).await?.and_then(|left| left.problems.into_iter().next()) {
            Some(problem) => Err(problem.error()),
            None => Ok(repaired),
        }
    }
}

pub(super) const WRONG_SUM: &str = "does not hold the bytes that were written (SHA-256)";
const MISSING: &str = "is missing";

/// Whether a file is there, of the right size, and as it was written.
enum Whole {
    Right,
    WithoutChecksum,
    Damaged(String),
}

/// What shows of a file's damage without reading it.
pub(super) fn damage_unread(file: &Path, size: Option<u64>) -> io::Result<Option<String>> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(MISSING.to_owned())),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return Ok(Some("is no file".to_owned()));
    }
    let other = size.filter(|size| *size != metadata.len());
    Ok(other.map(|size| format!("has {} bytes of {size}", metadata.len())))
}

fn whole(file: &Path, size: Option<u64>) -> io::Result<Whole> {
    if let Some(reason) = damage_unread(file, size)? {
        return Ok(Whole::Damaged(reason));
    }
    Ok(match check_sum(file)? {
        Sum::Right => Whole::Right,
        Sum::None => Whole::WithoutChecksum,
        Sum::Wrong => Whole::Damaged(WRONG_SUM.to_owned()),
    })
}

/// Hands each batch of rows of a Parquet file to `f`. On an error says what is wrong with the file.
pub(super) fn read_parquet(
    file: &Path,
    mut f: impl FnMut(&datafusion::arrow::array::RecordBatch) -> Result<(), String> + Send,
) -> Result<(), String> {
    let undecodable = |error: &dyn std::fmt::Display| format!("cannot be decoded: {error}");
    let read = || {
        let opened = fs::File::open(file).map_err(|error| error.to_string())?;
        let rows = ParquetRecordBatchReaderBuilder::try_new(opened).and_then(|builder| builder.build());
        for batch in rows.map_err(|error| undecodable(&error))? {
            f(&batch.map_err(|error| undecodable(&error))?)?;
        }
        Ok(())
    };
    panics::caught(read).unwrap_or_else(|| Err(undecodable(&panics::DAMAGED)))
}

/// What is wrong with the table's log.
pub(super) fn inspect_log(dir: &Path) -> Result<Vec<Problem>, StoreError> {
    let log = dir.join("_delta_log");
    let is_lost = |reason: &str| {
        Ok(vec![Problem { file: log.clone(), reason: reason.to_owned(), kind: Kind::Entry(0) }])
    };
    let (mut commits, mut checkpoints) = (BTreeMap::new(), Vec::new());
    let entries = match fs::read_dir(&log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return is_lost(MISSING),
        entries => entries.map_err(|error| StoreError::io(&log, &error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io(&log, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((Ok(version), ending)) =
            name.split_once('.').map(|(version, end)| (version.parse::<u64>(), end))
        else {
            continue;
        };
        if ending == "json" {
            commits.insert(version, entry.path());
        } else if ending.starts_with("checkpoint") && ending.ends_with("parquet") {
            checkpoints.push((version, entry.path()));
        }
    }
    if commits.is_empty() && checkpoints.is_empty() {
        return is_lost("has lost its entries");
    }
    checkpoints.sort();
    let mut problems = Vec::new();
    let mut base = None;
    for (version, file) in &checkpoints {
        let reason = match whole(file, None).map_err(|error| StoreError::io(file, &error))? {
            Whole::Damaged(reason) => Some(reason),
            _ => read_parquet(file, |_| Ok(())).err(),
        };
        match reason {
            Some(reason) => problems.push(Problem { file: file.clone(), reason, kind: Kind::Spare }),
            None => base = Some(*version),
        }
    }
    let hint = log.join("_last_checkpoint");
    match fs::read(&hint) {
        Ok(text) => {
            let version =
                serde_json::from_slice::<Value>(&text).ok().and_then(|hint| hint["version"].as_u64());
            let is_there = |version| checkpoints.iter().any(|(checkpoint, _)| *checkpoint == version);
            if !version.is_some_and(is_there) {
                let reason = "names no checkpoint".to_owned();
                problems.push(Problem { file: hint, reason, kind: Kind::Spare });
            } else if !problems.is_empty() {
                // It may name a damaged one.
                let reason = "names a damaged checkpoint".to_owned();
                problems.push(Problem { file: hint, reason, kind: Kind::Spare });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io(&hint, &error)),
    }
    let first = base.map_or(0, |base| base + 1);
    let written = last_written(dir).map_err(|error| StoreError::io(dir, &error))?;
    let last = commits.keys().next_back().copied().max(written);
    for (version, file) in &commits {
        if let Some(reason) = damage_of_entry(file).map_err(|error| StoreError::io(file, &error))? {
            let kind = if *version < first { Kind::Spare } else { Kind::Entry(*version) };
            problems.push(Problem { file: file.clone(), reason, kind });
        }
    }
    for version in first..last.map_or(first, |last| last + 1) {
        if !commits.contains_key(&version) {
            let file = log.join(format!("{version:020}.json"));
            problems.push(Problem { file, reason: MISSING.to_owned(), kind: Kind::Entry(version) });
        }
    }
    if base.is_none() && last.is_none() {
        let file = log.join(format!("{:020}.json", 0));
        problems.push(Problem { file, reason: MISSING.to_owned(), kind: Kind::Entry(0) });
    }
    Ok(problems)
}

/// The first damaged entry of a log that was read as of `version`, of those since its last checkpoint; the next entry counts as well,
/// if it was written and is gone.
pub(super) fn damaged_entry(dir: &Path, version: u64) -> Result<Option<Problem>, StoreError> {
    let entry = |version: u64| dir.join("_delta_log").join(format!("{version:020}.json"));
    let problem = |version, reason| Problem { file: entry(version), reason, kind: Kind::Entry(version) };
    let is_checkpoint = |version: &u64| entry(*version).with_extension("checkpoint.parquet").exists();
    for version in (0..=version).rev().take_while(|version| !is_checkpoint(version)) {
        let file = entry(version);
        match damage_of_entry(&file) {
            // Swept up: it is older than a checkpoint of several parts, whose names are others. Delta would have missed it otherwise.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            damage => {
                if let Some(reason) = damage.map_err(|error| StoreError::io(&file, &error))? {
                    return Ok(Some(problem(version, reason)));
                }
            }
        }
    }
    let next = entry(version + 1);
    let is_written = checksum_file(&next).is_some_and(|sum| sum.exists());
    let is_lost = is_written && !next.try_exists().map_err(|error| StoreError::io(&next, &error))?;
    Ok(is_lost.then(|| problem(version + 1, MISSING.to_owned())))
}

/// What is wrong with one entry of the log.
fn damage_of_entry(file: &Path) -> io::Result<Option<String>> {
    if let Whole::Damaged(reason) = whole(file, None)? {
        return Ok(Some(reason));
    }
    Ok(actions(file)?.err())
}

/// The actions of a log entry, one JSON object a line.
fn actions(file: &Path) -> io::Result<Result<Vec<Value>, String>> {
    const ACTIONS: [&str; 8] =
        ["commitInfo", "protocol", "metaData", "add", "remove", "cdc", "txn", "domainMetadata"];
    let bytes = fs::read(file)?;
    let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(Err("is no text".to_owned())) };
    let mut actions = Vec::new();
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str::<Value>(line) {
            Ok(action) if ACTIONS.iter().any(|name| action.get(name).is_some_and(Value::is_object)) => {
                actions.push(action)
            }
            Ok(_) => return Ok(Err(format!("holds no action of Delta's in line {}", i + 1))),
            Err(error) => return Ok(Err(format!("is no JSON in line {}: {error}", i + 1))),
        }
    }
    Ok(if actions.is_empty() { Err("is empty".to_owned()) } else { Ok(actions) })
}

/// Writes the log anew, as a table with a new id and one entry: the files that counted before the first lost entry, and what
/// later entries say. `false` where nothing is known, because the first entry of all is lost.
///
/// A file that a lost entry took away may come back. Its rows are true of the pictures' bytes they name, so the next run
/// finds those that are stale; keys that are then there twice are taken out by the caller.
async fn rebuild_log(dir: &Path, lost: &BTreeSet<u64>, moved_to: &Path) -> Result<bool, StoreError> {
    let Some(version) = lost.first().and_then(|first| first.checked_sub(1)) else { return Ok(false) };
    let delta = |error| StoreError::delta(dir, error);
    let mut table = builder(dir)?.build().map_err(delta)?;
    // `load` would read the latest version, whatever the builder was told.
    if let Err(error) = table.load_version(version).await {
        tracing::warn!("version {version} of {} cannot be read either: {error}", dir.display());
        return Ok(false);
    }
    let snapshot = table.snapshot().map_err(delta)?;
    let failed = |error: serde_json::Error| StoreError::Failed {
        path: dir.display().to_string(),
        reason: error.to_string(),
    };
    let mut protocol = json!({"protocol": serde_json::to_value(snapshot.protocol()).map_err(failed)?});
    let mut metadata = json!({"metaData": serde_json::to_value(snapshot.metadata()).map_err(failed)?});
    let mut adds: BTreeMap<String, Value> = BTreeMap::new();
    for file in snapshot.log_data() {
        #[expect(deprecated, reason = "nothing else gives an action that can be written again")]
        let add = serde_json::to_value(file.add_action()).map_err(failed)?;
        if let Some(path) = add["path"].as_str() {
            adds.insert(path.to_owned(), json!({ "add": add }));
        }
    }
    let log = dir.join("_delta_log");
    let mut later: Vec<(u64, PathBuf)> = fs::read_dir(&log)
        .map_err(|error| StoreError::io(&log, &error))?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let later = name.strip_suffix(".json")?.parse::<u64>().ok()?;
            (later > version && !lost.contains(&later)).then(|| (later, entry.path()))
        })
        .collect();
    later.sort();
    for (_, file) in later {
        let Ok(actions) = actions(&file).map_err(|error| StoreError::io(&file, &error))? else { continue };
        for action in actions {
            let path_of = |name: &str| action[name]["path"].as_str().map(str::to_owned);
            if let Some(path) = path_of("add") {
                adds.insert(path, action);
            } else if let Some(path) = path_of("remove") {
                adds.remove(&path);
            } else if action.get("metaData").is_some() {
                metadata = action;
            } else if action.get("protocol").is_some() {
                protocol = action;
            }
        }
    }
    metadata["metaData"]["id"] = json!(new_id());
    let lines = [protocol, metadata].into_iter().chain(adds.into_values());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    replace_log(dir, &text, moved_to)?;
    Ok(true)
}

/// Random, in the form of a UUID.
fn new_id() -> String {
    let hex = format!("{:032x}", fastrand::u128(..));
    let part = |from: usize, to: usize| &hex[from..to];
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// Moves the log aside and puts one in its place whose only entry is `text`.
fn replace_log(dir: &Path, text: &str, moved_to: &Path) -> Result<(), StoreError> {
    let log = dir.join("_delta_log");
    let io = |error: io::Error| StoreError::io(&log, &error);
    let new = dir.join(".imagedex-log");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => fs::create_dir(&new).map_err(io)?,
    }
    let mut file = temporary_in(&new).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(new.join(format!("{:020}.json", 0))).map_err(|error| io(error.error))?;
    sync_folder(&new).map_err(io)?;
    // Those of the old log would not fit the new one.
    let entries = fs::read_dir(&log).map_err(io)?;
    for entry in entries.flatten() {
        if let Some(sum) = checksum_file(&entry.path()).filter(|sum| sum.exists()) {
            fs::remove_file(&sum).map_err(io)?;
        }
    }
    move_aside(&log, moved_to)?;
    fs::rename(&new, &log).map_err(io)?;
    sync_folder(dir).map_err(io)?;
    // Those of lost entries, which the new log would seem to have lost as soon as it comes to their versions.
    for entry in fs::read_dir(dir.join(CHECKSUMS)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(ENTRY_CHECKSUM) {
            fs::remove_file(entry.path()).map_err(io)?;
        }
    }
    Ok(())
}

/// Moves a file or a folder of the table to `folder`; one that is not there is none to move.
fn move_aside(file: &Path, folder: &Path) -> Result<(), StoreError> {
    let io = |error: io::Error| StoreError::io(file, &error);
    make_folder(folder).map_err(io)?;
    let Some(name) = file.file_name() else { return Ok(()) };
    match fs::rename(file, folder.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => moved.map_err(io)?,
    }
    if let Some(sum) = checksum_file(file).filter(|sum| sum.exists()) {
        fs::remove_file(&sum).map_err(io)?;
    }
    for folder in file.parent().into_iter().chain([folder]) {
        sync_folder(folder).map_err(io)?;
    }
    Ok(())
}

/// Moves the table as a whole to a folder beside it; returns which.
fn move_whole(dir: &Path, now: &str) -> Result<PathBuf, StoreError> {
    // Without a slash at its end.
    let mut to = dir.components().collect::<PathBuf>().into_os_string();
    to.push(format!(".damaged-{now}"));
    let to = PathBuf::from(to);
    fs::rename(dir, &to).map_err(|error| StoreError::io(dir, &error))?;
    Ok(to)
}
