//! [`EmbeddingBatch`] ⇄ the feature table: a Delta table of Parquet files, one row for each picture, key
//! (`split`, `id`).
//!
//! A run asks [`FeatureStore::plan`] what is to be done, embeds what it must, and writes with
//! [`append`](FeatureStore::append), [`apply`](FeatureStore::apply) and [`replace`](FeatureStore::replace);
//! each call is one atomic commit, or none where there is nothing to do. So a run that is killed loses the
//! open batch alone, and the next one asks the table, not a journal of its own, what is missing.
//!
//! What a newcomer would get wrong: *never read `*.parquet` by a glob*. Replaced files stay in the folder for
//! seven days, for readers of older versions and of the change feed; only the log in `_delta_log` knows which
//! ones count.
//!
//! Durability: Delta's local store writes a temporary file and renames it, without `fsync`. A killed process
//! loses nothing that was committed. A power cut may lose the last seconds, as the operating system flushes
//! files and their names on its own time; a file that came out too short is then reported by name
//! ([`StoreError::Damaged`]).
//!
//! There is one committer. A commit that finds another's in its way fails ([`StoreError::Conflict`]) instead
//! of trying again: what was checked before it (no key is there twice) would no longer hold.

mod error;
mod failures;
mod plan;
mod schema;

use std::fs;
use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::{Expr, SessionContext, col, lit};
use deltalake::delta_datafusion::create_session;
use deltalake::kernel::StructField;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::operations::vacuum::VacuumMode;
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures::StreamExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use url::Url;

pub use error::{Difference, Differences, StoreError};
pub(crate) use failures::NewFile;
pub use failures::{read_failures, write_failures};
pub use plan::{Plan, Reuse};
pub use schema::{COLUMNS, EMBEDDING_PATH, ROW_GROUP_ROWS, SCHEMA_VERSION, parse_split, writer_properties};
pub(crate) use schema::{append_rows, arrow_schema, sort_by_key, to_record_batch, validate};

use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;

const FINGERPRINT: &str = "imagedex.fingerprint";
const PROVENANCE: &str = "imagedex.provenance";
const DIMENSION: &str = "imagedex.dimension";
const VERSION: &str = "imagedex.schema_version";

/// [`FeatureStore::compact`] leaves a table of up to this many files alone. Opening and reading slow down by
/// tenths of a millisecond with each file (5 ms at 15 files, 59 ms at 300); rewriting them all costs seconds.
const COMPACT_ABOVE: usize = 8;

/// Size that compaction aims at: about 150,000 pictures with 512 numbers each.
const TARGET_BYTES: NonZeroU64 = NonZeroU64::new(256 << 20).expect("not zero");

/// Pictures that [`FeatureStore::for_each_batch`] holds at a time: 128 MiB of vectors with 512 numbers each.
const BAND_ROWS: usize = 65_536;

/// What makes two vectors comparable. Stored in the table's metadata; a table takes vectors of one
/// fingerprint only.
#[derive(Debug, Clone, PartialEq)]
pub struct Provenance {
    /// A hash of the facts.
    pub fingerprint: String,
    /// Numbers in a vector.
    pub dim: usize,
    /// A flat JSON object: model, preprocessing, pooling, precision, provider, …: what a mismatch is
    /// explained with.
    pub facts: Value,
}

/// What is worth knowing about the run that commits, such as runtime, CPU and program version: JSON beside
/// each commit in the table's history, under the key `imagedex`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommitFacts(pub Value);

/// A feature table at one version. Every write moves it to the version that it made.
#[derive(Debug, Clone)]
pub struct FeatureStore {
    dir: PathBuf,
    table: DeltaTable,
    provenance: Provenance,
}

impl FeatureStore {
    /// Opens the table in `dir`; `None` where there is none yet (no folder, or an empty one).
    ///
    /// Errors: a folder with other files in it, a table of another program or of a newer version, an
    /// unreadable one.
    pub async fn open(dir: &Path) -> Result<Option<FeatureStore>, StoreError> {
        if !holds_table(dir)? {
            return Ok(None);
        }
        let delta = |error| StoreError::delta(dir, error);
        let mut table =
            DeltaTableBuilder::from_url(table_url(dir)?).and_then(DeltaTableBuilder::build).map_err(delta)?;
        table.load().await.map_err(delta)?;
        let provenance = read_provenance(dir, &table)?;
        Ok(Some(FeatureStore { dir: dir.to_owned(), table, provenance }))
    }

    /// Opens the table in `dir`, or makes an empty one there.
    ///
    /// Errors, besides those of [`open`](FeatureStore::open): the table's fingerprint is not the one given.
    pub async fn open_or_create(dir: &Path, provenance: &Provenance) -> Result<FeatureStore, StoreError> {
        if let Some(store) = FeatureStore::open(dir).await? {
            store.expect(provenance)?;
            return Ok(store);
        }
        fs::create_dir_all(dir).map_err(|error| StoreError::io(dir, &error))?;
        let delta = |error| StoreError::delta(dir, error);
        let columns: Vec<StructField> = arrow_schema()
            .fields()
            .iter()
            .map(|field| field.as_ref().try_into_kernel().map_err(DeltaTableError::from))
            .collect::<Result<_, _>>()
            .map_err(delta)?;
        let configuration = [
            ("delta.enableChangeDataFeed", "true".to_owned()),
            ("delta.dataSkippingStatsColumns", "id,label,split,sha256,fingerprint".to_owned()),
            (FINGERPRINT, provenance.fingerprint.clone()),
            (PROVENANCE, provenance.facts.to_string()),
            (DIMENSION, provenance.dim.to_string()),
            (VERSION, SCHEMA_VERSION.to_string()),
        ];
        let table = DeltaTable::try_from_url(table_url(dir)?)
            .await
            .map_err(delta)?
            .create()
            .with_columns(columns)
            .with_table_name("features")
            .with_comment("Image features written by imagedex")
            .with_configuration(configuration.map(|(key, value)| (key, Some(value))))
            .with_raise_if_key_not_exists(false)
            .await
            .map_err(delta)?;
        Ok(FeatureStore { dir: dir.to_owned(), table, provenance: provenance.clone() })
    }

    /// Refuses a fingerprint other than the table's, and says what differs.
    fn expect(&self, ours: &Provenance) -> Result<(), StoreError> {
        let stored = &self.provenance;
        if stored.fingerprint == ours.fingerprint && stored.dim == ours.dim {
            return Ok(());
        }
        let mut differences = differing_facts(&stored.facts, &ours.facts);
        let also =
            |field: &str, stored: String, ours: String| Difference { field: field.to_owned(), stored, ours };
        if stored.dim != ours.dim {
            differences.push(also("dimension", stored.dim.to_string(), ours.dim.to_string()));
        }
        if differences.is_empty() {
            differences.push(also("fingerprint", stored.fingerprint.clone(), ours.fingerprint.clone()));
        }
        Err(StoreError::FingerprintMismatch { path: self.shown(), differences: Differences(differences) })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of the table's latest commit. A run that changes nothing leaves it as it is.
    pub fn version(&self) -> u64 {
        self.table.version().unwrap_or_default()
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        self.provenance.dim
    }

    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The table for a query of one's own, under the name `features`.
    pub async fn context(&self) -> Result<SessionContext, StoreError> {
        let context = SessionContext::new();
        self.register(&context).await?;
        Ok(context)
    }

    /// Makes the table known to `context` under the name `features`.
    pub async fn register(&self, context: &SessionContext) -> Result<(), StoreError> {
        let datafusion = |error| StoreError::datafusion(&self.dir, error);
        let session = context.state();
        self.table
            .update_datafusion_session(&session)
            .map_err(|error| StoreError::delta(&self.dir, error))?;
        let provider = self.table.table_provider().await.map_err(datafusion)?;
        context.register_table("features", provider).map_err(datafusion)?;
        Ok(())
    }

    /// Number of pictures, of one split or of both.
    pub async fn count(&self, split: Option<Split>) -> Result<usize, StoreError> {
        let table = self.features(split.map(is_split)).await?;
        match table.count().await {
            Ok(count) => Ok(count),
            Err(error) => Err(self.read_error(error)),
        }
    }

    /// All rows, of one split or of both, ordered by (`split`, `id`): the same answer whatever the commits
    /// before.
    pub async fn read(&self, split: Option<Split>) -> Result<EmbeddingBatch, StoreError> {
        let rows = self.count(split).await?;
        self.read_rows(split.map(is_split), rows).await
    }

    /// Hands all rows to `f`, ordered by (`split`, `id`), `batch_rows` at a time (the last of a split may be
    /// shorter).
    ///
    /// Bounded memory: rows are read in bands of [`BAND_ROWS`], each found by the first and last id in it. As
    /// pictures are written in the order of their ids, most files and row groups of other bands are skipped
    /// unread.
    pub async fn for_each_batch<E: From<StoreError>>(
        &self,
        split: Option<Split>,
        batch_rows: usize,
        mut f: impl FnMut(&EmbeddingBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let batch_rows = batch_rows.max(1);
        let band_rows = BAND_ROWS.div_ceil(batch_rows) * batch_rows;
        for split in split.map_or(vec![Split::Gallery, Split::Query], |split| vec![split]) {
            let ids = self.ids(split).await?;
            for band in ids.chunks(band_rows) {
                let [first, .., last] = band else {
                    let id = band.first().cloned().unwrap_or_default();
                    f(&self.read_rows(Some(is_split(split).and(col("id").eq(lit(id)))), 1).await?)?;
                    continue;
                };
                let band_filter = is_split(split)
                    .and(col("id").gt_eq(lit(first.as_str())))
                    .and(col("id").lt_eq(lit(last.as_str())));
                let rows = self.read_rows(Some(band_filter), band.len()).await?;
                for start in (0..rows.len()).step_by(batch_rows) {
                    f(&slice(&rows, start, batch_rows.min(rows.len() - start)))?;
                }
            }
        }
        Ok(())
    }

    /// The ids of a split, in order.
    pub async fn ids(&self, split: Split) -> Result<Vec<String>, StoreError> {
        let rows = self.features(Some(is_split(split))).await?;
        let rows = self.collect(rows.select_columns(&["id"])).await?;
        let mut ids: Vec<String> = Vec::new();
        for batch in rows {
            let column = datafusion::arrow::compute::cast(batch.column(0), &DataType::Utf8);
            let column = column.map_err(|error| self.failed(error))?;
            ids.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        ids.sort();
        Ok(ids)
    }

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
        let rows = to_record_batch(batch, &self.provenance.fingerprint, now_us());
        self.table = self
            .table
            .clone()
            .write([rows])
            .with_session_state(Arc::new(write_session()))
            .with_writer_properties(writer_properties())
            .with_commit_properties(commit_properties(facts))
            .await
            .map_err(|error| StoreError::delta(&self.dir, error))?;
        Ok(())
    }

    /// Writes pictures over the rows with the same keys, and adds those that have none: one commit; none for
    /// an empty batch.
    ///
    /// Each call rewrites every file that holds such a row, so hand over as many pictures at a time as memory
    /// allows.
    pub async fn replace(&mut self, batch: &EmbeddingBatch, facts: &CommitFacts) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        validate(batch, self.dim())?;
        let rows = to_record_batch(batch, &self.provenance.fingerprint, now_us());
        let rows = with_column(&rows, "op", Arc::new(StringArray::from(vec!["put"; batch.len()])));
        let source = SessionContext::new()
            .read_batch(rows)
            .map_err(|error| StoreError::datafusion(&self.dir, error))?;
        self.merge(source, facts).await
    }

    /// Rows of `source` (the table's columns and `op`: `put` or `delete`) into the table: one commit.
    async fn merge(&mut self, source: DataFrame, facts: &CommitFacts) -> Result<(), StoreError> {
        self.check_writable()?;
        let op = |name: &str| col("s.op").eq(lit(name));
        let key = col("t.split").eq(col("s.split")).and(col("t.id").eq(col("s.id")));
        let from_source = |name: &str| col(format!("s.{name}"));
        let merge = self
            .table
            .clone()
            .merge(source, key)
            .with_source_alias("s")
            .with_target_alias("t")
            .with_session_state(Arc::new(write_session()))
            .with_writer_properties(writer_properties())
            .with_commit_properties(commit_properties(facts))
            .when_matched_delete(|delete| delete.predicate(op("delete")))
            .and_then(|merge| {
                merge.when_matched_update(|update| {
                    COLUMNS.iter().fold(update.predicate(op("put")), |update, name| {
                        update.update(*name, from_source(name))
                    })
                })
            })
            .and_then(|merge| {
                merge.when_not_matched_insert(|insert| {
                    COLUMNS.iter().fold(insert.predicate(op("put")), |insert, name| {
                        insert.set(*name, from_source(name))
                    })
                })
            });
        let merged = match merge {
            Ok(merge) => merge.await,
            Err(error) => Err(error),
        };
        match merged {
            Ok((table, _)) => {
                self.table = table;
                Ok(())
            }
            Err(error) => Err(self.diagnose().unwrap_or_else(|| StoreError::delta(&self.dir, error))),
        }
    }

    /// Joins small files into large ones once there are more than [`COMPACT_ABOVE`], keeping the order of the
    /// rows, and removes files that nothing has referred to for seven days. Returns whether anything was
    /// done; commits nothing otherwise.
    pub async fn compact(&mut self, facts: &CommitFacts) -> Result<bool, StoreError> {
        let before = self.version();
        let delta = |error| StoreError::delta(&self.dir, error);
        if self.files()?.len() > COMPACT_ABOVE {
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
                .map_err(delta)?;
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
        Ok(self.version() != before)
    }

    /// Checks every row: values where they must be, vectors of the table's length, keys unique, one
    /// fingerprint.
    pub async fn verify(&self) -> Result<(), StoreError> {
        let context = self.context().await?;
        let nulls: Vec<String> =
            COLUMNS.iter().filter(|name| **name != "label").map(|name| format!("{name} IS NULL")).collect();
        let checks = [
            (
                format!("SELECT split, id FROM features WHERE {} LIMIT 1", nulls.join(" OR ")),
                "a value is missing",
            ),
            (
                format!(
                    "SELECT split, id FROM features WHERE cardinality(embedding) <> {} LIMIT 1",
                    self.dim()
                ),
                "the vector has another length than the table's",
            ),
            (
                "SELECT split, id FROM features GROUP BY split, id HAVING count(*) > 1 LIMIT 1".into(),
                "the key is there twice",
            ),
            (
                format!(
                    "SELECT split, id FROM features WHERE fingerprint <> '{}' LIMIT 1",
                    self.provenance.fingerprint.replace('\'', "''")
                ),
                "the vector has another fingerprint than the table",
            ),
        ];
        for (query, reason) in checks {
            let found = self.collect(context.sql(&query).await).await?;
            if let Some((split, id)) = found.iter().find_map(first_key) {
                return Err(StoreError::Failed {
                    path: self.shown(),
                    reason: format!("{split} picture {id:?}: {reason}"),
                });
            }
        }
        Ok(())
    }

    /// The Parquet files that make up this version.
    pub fn files(&self) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.files_with_size()?.into_iter().map(|(file, _)| file).collect())
    }

    fn files_with_size(&self) -> Result<Vec<(PathBuf, u64)>, StoreError> {
        let snapshot = self.table.snapshot().map_err(|error| StoreError::delta(&self.dir, error))?;
        let file = |path: &str| path.split('/').fold(self.dir.clone(), |dir, part| dir.join(part));
        Ok(snapshot
            .log_data()
            .into_iter()
            .map(|add| (file(add.object_store_path().as_ref()), add.size().max(0) as u64))
            .collect())
    }

    async fn features(&self, filter: Option<Expr>) -> Result<DataFrame, StoreError> {
        let context = self.context().await?;
        let table = context.table("features").await.and_then(|table| match filter {
            Some(filter) => table.filter(filter),
            None => Ok(table),
        });
        table.map_err(|error| StoreError::datafusion(&self.dir, error))
    }

    async fn collect(
        &self,
        rows: Result<DataFrame, DataFusionError>,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let collected = match rows {
            Ok(rows) => rows.collect().await,
            Err(error) => Err(error),
        };
        collected.map_err(|error| self.read_error(error))
    }

    /// `expected` is the number of rows, for which memory is set aside.
    async fn read_rows(&self, filter: Option<Expr>, expected: usize) -> Result<EmbeddingBatch, StoreError> {
        let mut batch = EmbeddingBatch {
            pictures: Vec::with_capacity(expected),
            dim: self.dim(),
            vectors: Vec::with_capacity(expected * self.dim()),
            norms: Vec::with_capacity(expected),
        };
        let mut rows = match self.features(filter).await?.execute_stream().await {
            Ok(rows) => rows,
            Err(error) => return Err(self.read_error(error)),
        };
        while let Some(part) = rows.next().await {
            let part = part.map_err(|error| self.read_error(error))?;
            append_rows(&part, &mut batch).map_err(|reason| self.failed(reason))?;
        }
        sort_by_key(&mut batch);
        Ok(batch)
    }

    /// The first picture of `batch` that the table holds already.
    async fn first_stored_key(&self, batch: &EmbeddingBatch) -> Result<Option<(Split, String)>, StoreError> {
        let context = self.context().await?;
        let text = |get: fn(&crate::stages::decode::Picture) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(batch.pictures.iter().map(get)))
        };
        let keys = [("split", text(|picture| picture.split.name())), ("id", text(|picture| &picture.id))];
        let keys = RecordBatch::try_from_iter(keys).map_err(|error| self.failed(error))?;
        context.register_batch("keys", keys).map_err(|error| StoreError::datafusion(&self.dir, error))?;
        let query = "SELECT keys.split, keys.id FROM keys JOIN features ON features.split = keys.split AND features.id = keys.id
                     ORDER BY 1, 2 LIMIT 1";
        let found = self.collect(context.sql(query).await).await?;
        Ok(found.iter().find_map(first_key).and_then(|(split, id)| Some((parse_split(&split)?, id))))
    }

    /// Delta's writers report a folder that cannot be written with a panic in a thread of theirs before they
    /// give the error.
    fn check_writable(&self) -> Result<(), StoreError> {
        let io = |error: std::io::Error| StoreError::io(&self.dir, &error);
        let mut probe = tempfile::tempfile_in(&self.dir).map_err(io)?;
        probe.write_all(&[0; 4096]).map_err(io)
    }

    fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    fn failed(&self, reason: impl ToString) -> StoreError {
        StoreError::Failed { path: self.shown(), reason: reason.to_string() }
    }

    /// Why reading failed: the query engine does not name the file, so the files are tried one by one.
    fn read_error(&self, error: DataFusionError) -> StoreError {
        self.diagnose().unwrap_or_else(|| StoreError::datafusion(&self.dir, error))
    }

    /// The first of the table's files that is missing, has another size than when it was written, or cannot
    /// be read.
    fn diagnose(&self) -> Option<StoreError> {
        for (file, size) in self.files_with_size().ok()? {
            let damaged =
                |reason: String| Some(StoreError::Damaged { file: file.display().to_string(), reason });
            match fs::metadata(&file) {
                Ok(metadata) if metadata.len() != size => {
                    return damaged(format!("it has {} bytes of {size}", metadata.len()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return damaged("it is missing".into());
                }
                Err(error) => return Some(StoreError::io(&file, &error)),
            }
            let opened = match fs::File::open(&file) {
                Ok(opened) => opened,
                Err(error) => return Some(StoreError::io(&file, &error)),
            };
            let read = ParquetRecordBatchReaderBuilder::try_new(opened)
                .and_then(|builder| builder.build())
                .map_err(|error| error.to_string())
                .and_then(|mut rows| {
                    rows.try_for_each(|rows| rows.map(drop)).map_err(|error| error.to_string())
                });
            if let Err(reason) = read {
                return damaged(reason);
            }
        }
        None
    }
}

fn is_split(split: Split) -> Expr {
    col("split").eq(lit(split.name()))
}

/// Whether a path in the table's folder is one that Delta names.
fn is_ours(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with(".parquet") && (name.starts_with("part-") || name.starts_with("cdc-"))
}

fn slice(rows: &EmbeddingBatch, start: usize, len: usize) -> EmbeddingBatch {
    EmbeddingBatch {
        pictures: rows.pictures[start..start + len].to_vec(),
        dim: rows.dim,
        vectors: rows.vectors[start * rows.dim..(start + len) * rows.dim].to_vec(),
        norms: rows.norms[start..start + len].to_vec(),
    }
}

/// (`split`, `id`) of the first row, from the first two columns.
fn first_key(rows: &RecordBatch) -> Option<(String, String)> {
    let text = |column: usize| {
        let column = datafusion::arrow::compute::cast(rows.column(column), &DataType::Utf8).ok()?;
        column.as_string::<i32>().iter().next()?.map(str::to_owned)
    };
    Some((text(0)?, text(1)?))
}

fn with_column(rows: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
    let columns = rows.columns().iter().cloned().chain([column]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .expect("a column of the same length, with its own field")
}

fn now_us() -> i64 {
    // A clock before 1970 is not worth an error: the column is for people.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}

fn commit_properties(facts: &CommitFacts) -> CommitProperties {
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

fn table_url(dir: &Path) -> Result<Url, StoreError> {
    let absolute = std::path::absolute(dir).map_err(|error| StoreError::io(dir, &error))?;
    // Delta decodes the URL twice on some of its ways: `a%20b` would be made in one place and looked for in
    // another.
    if absolute.to_string_lossy().contains('%') {
        let reason = "its path holds a percent sign, which Delta tables cannot have".into();
        return Err(StoreError::NotATable { path: dir.display().to_string(), reason });
    }
    Url::from_directory_path(&absolute).map_err(|()| StoreError::NotATable {
        path: dir.display().to_string(),
        reason: "its path cannot be written as a URL".into(),
    })
}

/// Whether `dir` holds a Delta table; an error where it holds something else.
fn holds_table(dir: &Path) -> Result<bool, StoreError> {
    let not_a_table =
        |reason: &str| StoreError::NotATable { path: dir.display().to_string(), reason: reason.to_owned() };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(not_a_table("it is a file"));
        }
        Err(error) => return Err(StoreError::io(dir, &error)),
    };
    let mut is_empty = true;
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io(dir, &error))?;
        if entry.file_name() == "_delta_log" {
            // A process killed while it made the table leaves the folder of the log behind, empty.
            let mut log =
                fs::read_dir(entry.path()).map_err(|error| StoreError::io(&entry.path(), &error))?;
            if log.any(|file| {
                file.is_ok_and(|file| {
                    file.path().extension().is_some_and(|end| end == "json" || end == "parquet")
                })
            }) {
                return Ok(true);
            }
        } else {
            is_empty = false;
        }
    }
    if is_empty { Ok(false) } else { Err(not_a_table("it holds other files, and no Delta table")) }
}

fn read_provenance(dir: &Path, table: &DeltaTable) -> Result<Provenance, StoreError> {
    let snapshot = table.snapshot().map_err(|error| StoreError::delta(dir, error))?;
    let configuration = snapshot.metadata().configuration();
    let path = dir.display().to_string();
    let Some(version) = configuration.get(VERSION) else {
        return Err(StoreError::NotATable { path, reason: "it is another program's Delta table".into() });
    };
    match version.parse::<u32>() {
        Ok(version) if version <= SCHEMA_VERSION => {}
        _ => return Err(StoreError::NewerSchema { path, found: version.clone(), known: SCHEMA_VERSION }),
    }
    let missing = |key: &str| StoreError::NotATable {
        path: dir.display().to_string(),
        reason: format!("its table property {key} is missing or unreadable"),
    };
    let fingerprint = configuration.get(FINGERPRINT).ok_or_else(|| missing(FINGERPRINT))?.clone();
    let dim =
        configuration.get(DIMENSION).and_then(|dim| dim.parse().ok()).ok_or_else(|| missing(DIMENSION))?;
    let facts = configuration.get(PROVENANCE).and_then(|facts| serde_json::from_str(facts).ok());
    Ok(Provenance { fingerprint, dim, facts: facts.ok_or_else(|| missing(PROVENANCE))? })
}

fn differing_facts(stored: &Value, ours: &Value) -> Vec<Difference> {
    let empty = serde_json::Map::new();
    let (stored, ours) = (stored.as_object().unwrap_or(&empty), ours.as_object().unwrap_or(&empty));
    let mut fields: Vec<&String> = stored.keys().chain(ours.keys()).collect();
    fields.sort();
    fields.dedup();
    let shown = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    fields
        .into_iter()
        .filter(|field| stored.get(*field) != ours.get(*field))
        .map(|field| Difference {
            field: field.clone(),
            stored: shown(stored.get(field)),
            ours: shown(ours.get(field)),
        })
        .collect()
}
