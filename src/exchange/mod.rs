//! Features in and out of other programs' files: HDF5 as the original wrote it, NumPy, CSV, one plain Parquet
//! file.
//!
//! An imported file becomes a table of its own, with the fingerprint `imported:<sha256 of the file>`: nobody
//! knows what made those vectors, so they never mix with ours. What an import cannot know is stored as empty:
//! `sha256` and `format` as `""`, `width`, `height` and `dhash` as 0, and `norm` as 1, so that vector x norm
//! is the vector as it came.
//!
//! Rows leave ordered by (`split`, `id`), so equal tables give equal files, whatever the commits that made
//! them.

mod compare;
mod csv;
mod hdf5;
mod npy;
mod parquet;

pub use compare::{Comparison, Pair, compare};

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::lock::{LockError, TableLock};
use crate::memory::{Bytes, Ledger, MemoryError};
use crate::panics;
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;
use crate::stages::store::{CommitFacts, FeatureStore, Provenance, StoreError, lock_file, validate};

/// Rows that an export holds at a time (within the reader's bands).
const BATCH_ROWS: usize = 4096;

/// Why a feature file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{path}: the ending says nothing known; use .h5 or .hdf5, .npy, .csv or .parquet")]
    UnknownFormat { path: String },
    #[error("there is no feature table in {path} yet: run `imagedex extract` first")]
    NoTable { path: String },
    /// The file does not have the layout that its ending promises; the reason says where. Mend it, or export it again.
    #[error("{path}: {reason}")]
    Invalid { path: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl ExchangeError {
    /// Whether the arguments are at fault rather than disk or table.
    pub fn is_usage(&self) -> bool {
        match self {
            ExchangeError::Store(error) => error.is_usage(),
            ExchangeError::Lock(_) => false,
            _ => true,
        }
    }

    fn invalid(path: &Path, reason: impl ToString) -> ExchangeError {
        ExchangeError::Invalid { path: path.display().to_string(), reason: reason.to_string() }
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> ExchangeError {
        move |error| ExchangeError::Store(StoreError::io(path, &error))
    }
}

/// A kind of file, known by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// `dataset_1`: float64 `[n, dim]`; `dataset_2`: the ids as byte strings of one length. The gallery
    /// alone, as there is no column for the split. Held in memory are the ids.
    Hdf5,
    /// float32 `[n, dim]`, and the other columns, row by row, in `<name>.rows.parquet` beside it.
    Npy,
    /// `id,label,split,v0,v1,…`: a column for each number, which pandas reads as numbers without further ado.
    Csv,
    /// The table's columns, save `indexed_at`, in one file.
    Parquet,
}

impl FileFormat {
    pub fn of(path: &Path) -> Result<FileFormat, ExchangeError> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("h5" | "hdf5") => Ok(FileFormat::Hdf5),
            Some("npy") => Ok(FileFormat::Npy),
            Some("csv") => Ok(FileFormat::Csv),
            Some("parquet") => Ok(FileFormat::Parquet),
            _ => Err(ExchangeError::UnknownFormat { path: path.display().to_string() }),
        }
    }
}

/// Writes the feature table in the folder `features` to `file`, in the format of its ending; returns the
/// number of rows.
///
/// The file takes its place when it is complete. In memory are the ids, and some thousand rows.
pub async fn export(features: &Path, file: &Path) -> Result<usize, ExchangeError> {
    export_within(None, features, file).await
}

/// The same within a budget.
pub async fn export_within(
    budget: Option<Bytes>,
    features: &Path,
    file: &Path,
) -> Result<usize, ExchangeError> {
    let format = FileFormat::of(file)?;
    let Some(store) = FeatureStore::open(features).await? else {
        return Err(ExchangeError::NoTable { path: features.display().to_string() });
    };
    let store = match budget {
        None => store,
        Some(budget) => {
            let rows = store.count(None).await?;
            store.within(Ledger::for_table(budget, rows)?.shares())
        }
    };
    store.check_sums()?;
    match format {
        FileFormat::Hdf5 => hdf5::export(&store, file).await,
        FileFormat::Npy => npy::export(&store, file).await,
        FileFormat::Csv => csv::export(&store, file).await,
        FileFormat::Parquet => parquet::export(&store, file).await,
    }
}

/// Reads a feature file, in the format of its ending, in its own order. Held in memory as a whole.
pub fn read(file: &Path) -> Result<EmbeddingBatch, ExchangeError> {
    if !file.exists() {
        return Err(ExchangeError::invalid(file, "there is no such file"));
    }
    let format = FileFormat::of(file)?;
    let read = || match format {
        FileFormat::Hdf5 => hdf5::read(file),
        FileFormat::Npy => npy::read(file),
        FileFormat::Csv => csv::read(file),
        FileFormat::Parquet => parquet::read(file),
    };
    panics::caught(read).unwrap_or_else(|| Err(ExchangeError::invalid(file, panics::DAMAGED)))
}

/// Makes a feature table of its own from `file`, in the new or empty folder `table`, in one commit; returns
/// the number of rows. With the same file a second time nothing is done. Holds the table's lock meanwhile, as every writer does.
pub async fn import(file: &Path, table: &Path) -> Result<usize, ExchangeError> {
    let batch = read(file)?;
    if batch.is_empty() {
        return Err(ExchangeError::invalid(file, "there are no rows in it"));
    }
    // Before the table is made, so that a bad file leaves no empty one behind.
    validate(&batch, batch.dim).map_err(|error| ExchangeError::invalid(file, error))?;
    let sha256 = sha256_of(file)?;
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
    let provenance = Provenance {
        fingerprint: format!("imported:{sha256}"),
        dim: batch.dim,
        facts: json!({"imported_sha256": sha256}),
    };
    let _lock = TableLock::take(&lock_file(table)?)?;
    let mut store = FeatureStore::open_or_create(table, &provenance).await?;
    if store.count(None).await? == 0 {
        store.append(&batch, &CommitFacts(json!({"imported_from": name}))).await?;
    }
    Ok(batch.len())
}

/// Hex SHA-256 of the file, and of its sidecar after it where it has one.
fn sha256_of(file: &Path) -> Result<String, ExchangeError> {
    let mut hash = Sha256::new();
    let mut files: Vec<PathBuf> = vec![file.to_owned()];
    if FileFormat::of(file)? == FileFormat::Npy {
        files.push(npy::sidecar(file));
    }
    for path in files {
        let mut opened = File::open(&path).map_err(ExchangeError::io(&path))?;
        io::copy(&mut opened, &mut hash).map_err(ExchangeError::io(&path))?;
    }
    Ok(hex::encode(hash.finalize()))
}

/// What is known of a picture that came without its file.
fn imported_picture(id: String) -> Picture {
    Picture {
        id,
        split: Split::Gallery,
        label: None,
        sha256: String::new(),
        pixel_sha256: String::new(),
        dhash: 0,
        width: 0,
        height: 0,
        format: String::new(),
    }
}
