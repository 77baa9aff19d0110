//! [`EmbeddingBatch`](crate::stages::embed::EmbeddingBatch) ⇄ the feature table: a Delta table of Parquet files, one row for each picture, key
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
//! Durability: a commit that returned is on the disk ([`durable`]), so neither a killed process nor a power cut loses it. What a
//! disk damages later is found by checksum or by what cannot be decoded, is named ([`StoreError::Damaged`]), and can be
//! repaired ([`inspect`]).
//!
//! There is one committer, which holds the table's lock ([`lock_file`]). A commit that finds another's in its way all the same
//! fails ([`StoreError::Conflict`]) instead of trying again: what was checked before it (no key is there twice) would no
//! longer hold.

mod changes;
mod durable;
mod error;
mod failures;
mod inspect;
mod mirror;
mod plan;
mod read;
mod rewrite;
mod schema;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use deltalake::kernel::StructField;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use serde_json::Value;
use url::Url;

use crate::memory::Shares;

pub use changes::Changes;
pub(crate) use durable::{make_folder, sync_folder};
pub use error::{Difference, Differences, StoreError};
pub(crate) use failures::NewFile;
pub use failures::{read_failures, write_failures};
pub use inspect::{Inspection, Problem, Repaired};
pub use mirror::Mirror;
pub use plan::{Plan, Reuse};
pub use schema::{COLUMNS, EMBEDDING_PATH, ROW_GROUP_ROWS, SCHEMA_VERSION, parse_split, writer_properties};
pub(crate) use schema::{append_rows, arrow_schema, to_record_batch, validate};

const FINGERPRINT: &str = "imagedex.fingerprint";
const PROVENANCE: &str = "imagedex.provenance";
const DIMENSION: &str = "imagedex.dimension";
const VERSION: &str = "imagedex.schema_version";

/// Columns whose least and greatest values Delta keeps for each file: texts all of them.
const STATISTICS: [&str; 5] = ["id", "label", "split", "sha256", "fingerprint"];

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
    /// Made up by Delta when the table was created; another table has another.
    id: String,
    provenance: Provenance,
    /// What reading and writing may hold.
    shares: Shares,
}

impl FeatureStore {
    /// The same table, read and written within these shares of a memory budget.
    pub fn within(self, shares: Shares) -> FeatureStore {
        FeatureStore { shares, ..self }
    }

    /// Opens the table in `dir`; `None` where there is none yet (no folder, or an empty one).
    ///
    /// Errors: a folder with other files in it, a table of another program or of another version, an
    /// unreadable one.
    pub async fn open(dir: &Path) -> Result<Option<FeatureStore>, StoreError> {
        if !holds_table(dir)? {
            return Ok(None);
        }
        match FeatureStore::load(dir).await {
            // Delta names no file, and may not even see that one is missing.
            Err(error @ StoreError::Failed { .. }) => {
                Err(inspect::inspect_log(dir)?.first().map_or(error, |problem| problem.error()))
            }
            // Without its last entries, or with an empty one, a log is one of an earlier version, and Delta is content.
            Ok(store) => match inspect::damaged_entry(dir, store.version())? {
                Some(problem) => Err(problem.error()),
                None => store.missing_file().map_or(Ok(Some(store)), Err),
            },
            Err(error) => Err(error),
        }
    }

    /// Reads the log of the table in `dir`.
    async fn load(dir: &Path) -> Result<FeatureStore, StoreError> {
        let delta = |error| StoreError::delta(dir, error);
        let mut table = builder(dir)?.build().map_err(delta)?;
        table.load().await.map_err(delta)?;
        let provenance = read_provenance(dir, &table)?;
        FeatureStore::of(dir, table, provenance)
    }

    /// Opens the table in `dir`, or makes an empty one there.
    ///
    /// Errors, besides those of [`open`](FeatureStore::open): the table's fingerprint is not the one given.
    pub async fn open_or_create(dir: &Path, provenance: &Provenance) -> Result<FeatureStore, StoreError> {
        if let Some(store) = FeatureStore::open(dir).await? {
            match store.expect(provenance) {
                Ok(()) => return Ok(store),
                // Made by a run that failed before it stored anything: there is nothing in it to be kept apart.
                // A log that was written anew has version 0 as well, and rows.
                Err(_) if store.version() == 0 && store.files()?.is_empty() => {
                    // In this order: checksums without a log say that it was lost.
                    for folder in [durable::CHECKSUMS, "_delta_log"] {
                        let folder = dir.join(folder);
                        match fs::remove_dir_all(&folder) {
                            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                                return Err(StoreError::io(&folder, &error));
                            }
                            _ => sync_folder(dir).map_err(|error| StoreError::io(dir, &error))?,
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        make_folder(dir).map_err(|error| StoreError::io(dir, &error))?;
        let delta = |error| StoreError::delta(dir, error);
        let columns: Vec<StructField> = arrow_schema()
            .fields()
            .iter()
            .map(|field| field.as_ref().try_into_kernel().map_err(DeltaTableError::from))
            .collect::<Result<_, _>>()
            .map_err(delta)?;
        let configuration = [
            ("delta.enableChangeDataFeed", "true".to_owned()),
            ("delta.dataSkippingStatsColumns", STATISTICS.join(",")),
            (FINGERPRINT, provenance.fingerprint.clone()),
            (PROVENANCE, provenance.facts.to_string()),
            (DIMENSION, provenance.dim.to_string()),
            (VERSION, SCHEMA_VERSION.to_string()),
        ];
        let table = builder(dir)?
            .build()
            .map_err(delta)?
            .create()
            .with_columns(columns)
            .with_table_name("features")
            .with_comment("Image features written by imagedex")
            .with_configuration(configuration.map(|(key, value)| (key, Some(value))))
            .with_raise_if_key_not_exists(false)
            .await
            .map_err(delta)?;
        FeatureStore::of(dir, table, provenance.clone())
    }

    fn of(dir: &Path, table: DeltaTable, provenance: Provenance) -> Result<FeatureStore, StoreError> {
        let snapshot = table.snapshot().map_err(|error| StoreError::delta(dir, error))?;
        let id = snapshot.metadata().id().to_owned();
        Ok(FeatureStore { dir: dir.to_owned(), table, id, provenance, shares: Shares::default() })
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

    /// Tells this table from every other one, also from one made anew in the same folder, whose versions start over.
    pub fn table_id(&self) -> &str {
        &self.id
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        self.provenance.dim
    }

    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    fn failed(&self, reason: impl ToString) -> StoreError {
        StoreError::Failed { path: self.shown(), reason: reason.to_string() }
    }
}

/// (`split`, `id`) of the first row, from the first two columns.
fn first_key(rows: &RecordBatch) -> Option<(String, String)> {
    let text = |column: usize| {
        let column = cast(rows.column(column), &DataType::Utf8).ok()?;
        column.as_string::<i32>().iter().next()?.map(str::to_owned)
    };
    Some((text(0)?, text(1)?))
}

/// The file that a writer locks. In the table's folder, so that it is one and the same whichever work folder a run has.
pub fn lock_file(dir: &Path) -> Result<PathBuf, StoreError> {
    // Not into a folder that is somebody else's.
    holds_table(dir)?;
    make_folder(dir).map_err(|error| StoreError::io(dir, &error))?;
    Ok(dir.join(LOCK))
}

const LOCK: &str = "_lock";

/// What stands in a table's folder beside the table: none of Delta's readers looks at it.
fn is_beside(name: &str) -> bool {
    [LOCK, durable::CHECKSUMS, inspect::DAMAGED].contains(&name) || name.starts_with(".imagedex-")
}

/// Delta's access to the table in `dir`, by way of the [durable store](durable).
fn builder(dir: &Path) -> Result<DeltaTableBuilder, StoreError> {
    let url = table_url(dir)?;
    let builder = DeltaTableBuilder::from_url(url.clone()).map_err(|error| StoreError::delta(dir, error))?;
    Ok(builder.with_storage_backend(Arc::new(durable::DurableStore::new()), url))
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

/// Whether `dir` holds a Delta table, or one that lost its log; an error where it holds something else.
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
        } else if !is_beside(&entry.file_name().to_string_lossy()) {
            is_empty = false;
        }
    }
    // A log that was lost is no reason to begin a new one over the files that it named.
    if durable::last_written(dir).map_err(|error| StoreError::io(dir, &error))?.is_some() {
        return Ok(true);
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
        Ok(SCHEMA_VERSION) => {}
        _ => return Err(StoreError::OtherSchema { path, found: version.clone(), known: SCHEMA_VERSION }),
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
