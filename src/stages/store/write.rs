//! Rows into the table: each call is one atomic commit, or none where there is nothing to do.

use std::fs;
use std::io::Write;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::SessionContext;
use deltalake::delta_datafusion::create_session;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::operations::vacuum::VacuumMode;
use serde_json::Value;

use super::durable::CHECKSUMS;
use super::rewrite::Op;
use super::schema::{to_record_batch, validate};
use super::{CommitFacts, FeatureStore, StoreError, first_key, parse_split, writer_properties};
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;

/// [`FeatureStore::compact`] leaves a table of up to this many files alone. Opening and reading slow down by
/// tenths of a millisecond with each file (5 ms at 15 files, 59 ms at 300); rewriting them all costs seconds.
const COMPACT_ABOVE: usize = 8;

/// Size that compaction aims at: about 150,000 pictures with 512 numbers each.
const TARGET_BYTES: NonZeroU64 = NonZeroU64::new(256 << 20).expect("not zero");

/// Rows that are turned into columns at a time.
const PART_ROWS: usize = 1_024;

impl FeatureStore {
    /// Adds pictures whose keys are not in the table yet: one commit, rows in the order given; none for an
    /// empty batch.
    ///
    /// Errors: a vector of another length, a number that is not finite, a key that is there already or twice
    /// in the batch.
    pub async fn append(&mut self, batch: &EmbeddingBatch, facts: &CommitFacts) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        validate(batch, self.dim())?;
        if let Some((split, id)) = self.first_stored_key(batch).await? {
            return Err(StoreError::Duplicate {
                split: split.name(),
                id,
                place: "it is already in the table",
            });
        }
        self.check_writable()?;
        let (fingerprint, now) = (self.provenance.fingerprint.clone(), now_us());
        // Part by part, so that the rows are not in memory twice.
        let parts = (0..batch.len()).step_by(PART_ROWS).map(|start| {
            let rows = start..batch.len().min(start + PART_ROWS);
            to_record_batch(batch, rows, &fingerprint, now)
        });
        self.add(parts, facts).await
    }

    /// Writes pictures over the rows with the same keys, and adds those that have none: one commit; none for
    /// an empty batch.
    ///
    /// Each call rewrites every file that holds such a row (see [`rewrite`](super::rewrite)), so hand over as many pictures at a
    /// time as memory allows.
    pub async fn replace(&mut self, batch: &EmbeddingBatch, facts: &CommitFacts) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        validate(batch, self.dim())?;
        let rows = to_record_batch(batch, 0..batch.len(), &self.provenance.fingerprint, now_us());
        let source = SessionContext::new()
            .read_batch(rows)
            .map_err(|error| StoreError::datafusion(&self.dir, error))?;
        let ops =
            batch.pictures.iter().map(|picture| ((picture.split, picture.id.as_str()), Op::Put)).collect();
        self.rewrite(&ops, Some(source), facts).await
    }

    /// Joins small files into large ones once there are more than [`COMPACT_ABOVE`], keeping the order of the
    /// rows, and removes files that nothing has referred to for seven days. Returns whether anything was
    /// done; commits nothing otherwise.
    pub async fn compact(&mut self, facts: &CommitFacts) -> Result<bool, StoreError> {
        let before = self.version();
        let delta = |error| StoreError::delta(&self.dir, error);
        if self.files()?.len() > COMPACT_ABOVE {
            // Damage would be copied into a new file, whose checksum is right.
            self.check_sums()?;
            self.check_writable()?;
            let (table, _) = self
                .table
                .clone()
                .optimize()
                .with_target_size(TARGET_BYTES)
                .with_session_state(Arc::new(write_session()))
                .with_writer_properties(writer_properties())
                .with_commit_properties(commit_properties(facts))
                .with_max_concurrent_tasks(1)
                .await
                .map_err(|error| self.diagnose().unwrap_or_else(|| delta(error)))?;
            self.table = table;
        }
        // Full mode also finds what a killed commit left behind, and old change data. It would take a
        // person's own files for such, so it is for folders that hold none. With nothing to remove, neither
        // mode commits anything.
        let (_, stale) = self
            .table
            .clone()
            .vacuum()
            .with_mode(VacuumMode::Full)
            .with_dry_run(true)
            .await
            .map_err(delta)?;
        let mode = if stale.files_deleted.iter().all(|file| is_ours(file)) {
            VacuumMode::Full
        } else {
            VacuumMode::Lite
        };
        let vacuum =
            self.table.clone().vacuum().with_mode(mode).with_commit_properties(commit_properties(facts));
        (self.table, _) = vacuum.await.map_err(delta)?;
        self.sweep()?;
        Ok(self.version() != before)
    }

    /// Takes the files that are no longer there out of the table, in one commit; none where all are there.
    pub(super) async fn take_out_missing(&mut self, facts: &CommitFacts) -> Result<(), StoreError> {
        self.check_writable()?;
        let check = self.table.clone().filesystem_check().with_commit_properties(commit_properties(facts));
        (self.table, _) = check.await.map_err(|error| StoreError::delta(&self.dir, error))?;
        Ok(())
    }

    /// Removes checksums of files that are gone, and files that killed writers left half written. The caller is the one writer.
    fn sweep(&self) -> Result<(), StoreError> {
        let checksums = self.dir.join(CHECKSUMS);
        let io = |error: std::io::Error| StoreError::io(&checksums, &error);
        let entries = match fs::read_dir(&checksums) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(io)?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(file) = name.strip_suffix(".sha256") else { continue };
            let places = ["", "_delta_log", "_change_data"].map(|folder| self.dir.join(folder).join(file));
            if places.iter().all(|place| !place.exists()) {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        let entries = fs::read_dir(&self.dir).map_err(|error| StoreError::io(&self.dir, &error))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".imagedex-") && entry.path().is_file() {
                fs::remove_file(entry.path()).map_err(|error| StoreError::io(&entry.path(), &error))?;
            }
        }
        Ok(())
    }

    /// The first picture of `batch` that the table holds already.
    async fn first_stored_key(&self, batch: &EmbeddingBatch) -> Result<Option<(Split, String)>, StoreError> {
        let context = self.context().await?;
        let text = |get: fn(&Picture) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(batch.pictures.iter().map(get)))
        };
        let keys = [("split", text(|picture| picture.split.name())), ("id", text(|picture| &picture.id))];
        let keys = RecordBatch::try_from_iter(keys).map_err(|error| self.failed(error))?;
        context.register_batch("keys", keys).map_err(|error| StoreError::datafusion(&self.dir, error))?;
        let query = "SELECT keys.split, keys.id
                     FROM keys JOIN features ON features.split = keys.split AND features.id = keys.id
                     ORDER BY 1, 2 LIMIT 1";
        let found = self.collect(context.sql(query).await).await?;
        Ok(found.iter().find_map(first_key).and_then(|(split, id)| Some((parse_split(&split)?, id))))
    }

    /// Delta's writers report a folder that cannot be written with a panic in a thread of theirs before they
    /// give the error.
    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        let io = |error: std::io::Error| StoreError::io(&self.dir, &error);
        let mut probe = tempfile::tempfile_in(&self.dir).map_err(io)?;
        probe.write_all(&[0; 4096]).map_err(io)
    }
}

/// Whether a path in the table's folder is one that Delta names.
fn is_ours(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with(".parquet") && (name.starts_with("part-") || name.starts_with("cdc-"))
}

pub(super) fn now_us() -> i64 {
    // A clock before 1970 is not worth an error: the column is for people.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}

pub(super) fn commit_properties(facts: &CommitFacts) -> CommitProperties {
    let properties = CommitProperties::default().with_max_retries(0);
    match &facts.0 {
        Value::Null => properties,
        facts => properties.with_metadata([("imagedex".to_owned(), facts.clone())]),
    }
}

/// Delta's own session, on one partition: one file for each commit, its rows in an order that does not depend
/// on the cores.
fn write_session() -> SessionState {
    let state = create_session().state();
    let config = state.config().clone().with_target_partitions(1);
    SessionStateBuilder::new_from_existing(state).with_config(config).build()
}
