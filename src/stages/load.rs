//! Feature table → engine: [`Loaded`], with its books closed.
//!
//! In memory everything is loaded anew. On a server an index is made beside the live one: from nothing, or, where the live one
//! shows an earlier version of the same table, from a copy of it and what changed since. Either is verified before anybody
//! searches it: counted, and sampled vectors read back and compared bit by bit.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use tokio::runtime::Handle;

use super::embed::EmbeddingBatch;
use super::report::write_whole;
use super::scan::Split;
use super::store::{FeatureStore, StoreError};
use crate::config::Budget;
use crate::engines::elastic::BulkCounts;
use crate::engines::{EngineError, Rejected, Server, Source, VectorIndex};
use crate::interrupt;
use crate::stats::{LoadBooks, StageStats};

/// Rows that are in memory at once.
const BATCH_ROWS: usize = 4096;
/// Vectors that are read back from a server.
const SAMPLE: usize = 200;

/// An engine that holds the gallery.
pub struct Loaded {
    pub index: Box<dyn VectorIndex>,
    pub books: LoadBooks,
    /// What a server was sent, and how long that took.
    pub bulk: Option<StageStats>,
}

/// Why the gallery could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine does not hold what was sent. Nothing was promoted; run again, and look at the server's log if it stays.
    #[error("{0}")]
    Books(String),
    /// The engine changed a vector, or lost it. Run again; if it stays, another program writes to the index.
    #[error("picture {id} came back from {engine} {how}; nothing was promoted")]
    Differs { engine: String, id: String, how: &'static str },
    #[error(
        "{rejected} of {gallery} pictures were rejected, more than load.{engine}.max_rejected = {budget} allows; see {file}"
    )]
    OverBudget { engine: String, rejected: u64, gallery: u64, budget: Budget, file: String },
    /// A full disk, or no right to write.
    #[error("cannot write {path}: {reason}; free some space, or name another `work` folder")]
    Write { path: String, reason: String },
}

/// Loads the gallery of `store` into `index`. Pictures that the engine refuses are written to `dead_letters`, one JSON object a line.
pub fn load(
    handle: &Handle,
    store: &FeatureStore,
    mut index: Box<dyn VectorIndex>,
    budget: Budget,
    dead_letters: &Path,
) -> Result<Loaded, LoadError> {
    let gallery = handle.block_on(store.count(Some(Split::Gallery)))? as u64;
    let mut books = LoadBooks { engine: index.name().to_owned(), gallery, ..LoadBooks::default() };
    let mut bulk = None;
    match index.as_server() {
        None => {
            store.check_sums()?;
            index.create(store.dim())?;
            handle.block_on(store.for_each_batch(
                Some(Split::Gallery),
                BATCH_ROWS,
                |batch| -> Result<(), LoadError> {
                    books.sent += batch.len() as u64;
                    Ok(index.upsert(batch)?)
                },
            ))?;
            books.searchable = index.commit()?;
            books.indexed = books.sent;
            books.sent_what = "everything".to_owned();
            books.check().map_err(LoadError::Books)?;
        }
        Some(server) => {
            load_server(handle, store, server, &mut books, budget, dead_letters)?;
            bulk = said(server.sent());
        }
    }
    Ok(Loaded { index, books, bulk })
}

/// Says how fast the documents went; nothing where none was sent.
fn said(sent: &BulkCounts) -> Option<StageStats> {
    let stats = StageStats {
        stage: "load: bulk".to_owned(),
        items_in: sent.sent,
        items_out: sent.indexed + sent.deleted,
        bytes: sent.bytes,
        seconds: sent.seconds,
    };
    if sent.requests == 0 {
        return None;
    }
    tracing::info!(
        "{} documents in {} requests, {:.1} MB in {:.2} s: {:.0} a second",
        stats.items_out,
        sent.requests,
        stats.bytes as f64 / 1e6,
        stats.seconds,
        stats.items_per_second()
    );
    Some(stats)
}

fn load_server(
    handle: &Handle,
    store: &FeatureStore,
    server: &mut dyn Server,
    books: &mut LoadBooks,
    budget: Budget,
    dead_letters: &Path,
) -> Result<(), LoadError> {
    let source = Source {
        fingerprint: store.provenance().fingerprint.clone(),
        dim: store.dim(),
        table: store.table_id().to_owned(),
        version: store.version(),
    };
    let standing = server.prepare(&source)?;
    let changes = match &standing {
        Some(standing) => handle.block_on(store.changes_since(standing.version, Split::Gallery))?,
        None => None,
    };
    let mut sample = Sample::of(books.gallery);
    match (standing, changes) {
        (Some(standing), Some(changes)) if changes.is_empty() => {
            books.sent_what = format!("nothing, {} holds it all", standing.index);
            books.rejected = standing.rejected;
            books.searchable = server.reuse(&standing)?;
            return books.check().map_err(LoadError::Books);
        }
        // Where most of it changed a fresh index is smaller, and no slower to make.
        (Some(standing), Some(changes))
            if standing.live
                && (changes.upserted.len() + changes.deleted.len()) as u64 <= books.gallery / 2 =>
        {
            books.sent_what = format!("changes since version {}", standing.version);
            server.copy_live(&standing, &source)?;
            server.delete(&changes.deleted)?;
            let upsert = |batch: &EmbeddingBatch| upsert(server, batch, &mut sample);
            handle.block_on(store.for_each_row_of(Split::Gallery, &changes.upserted, BATCH_ROWS, upsert))?;
        }
        _ => {
            books.sent_what = "everything".to_owned();
            store.check_sums()?;
            server.create_for(&source)?;
            let upsert = |batch: &EmbeddingBatch| upsert(server, batch, &mut sample);
            handle.block_on(store.for_each_batch(Some(Split::Gallery), BATCH_ROWS, upsert))?;
        }
    }
    books.searchable = server.commit()?;
    let sent = server.sent();
    (books.sent, books.indexed, books.removed, books.retried) =
        (sent.sent, sent.indexed, sent.deleted, sent.retried);
    books.rejected = sent.rejected.len() as u64;
    write_dead_letters(dead_letters, &sent.rejected)?;
    books.check().map_err(LoadError::Books)?;
    if budget.is_exceeded(books.rejected, books.gallery) {
        return Err(LoadError::OverBudget {
            engine: books.engine.clone(),
            rejected: books.rejected,
            gallery: books.gallery,
            budget,
            file: dead_letters.display().to_string(),
        });
    }
    sample.compare(server)?;
    if interrupt::is_set() {
        return Err(EngineError::Interrupted.into());
    }
    Ok(server.finish()?)
}

fn upsert(server: &mut dyn Server, batch: &EmbeddingBatch, sample: &mut Sample) -> Result<(), LoadError> {
    if interrupt::is_set() {
        return Err(EngineError::Interrupted.into());
    }
    sample.take(batch);
    Ok(server.upsert(batch)?)
}

/// Vectors that were sent, evenly spaced over all of them.
struct Sample {
    every: usize,
    seen: usize,
    vectors: BTreeMap<String, Vec<f32>>,
}

impl Sample {
    fn of(gallery: u64) -> Sample {
        Sample { every: (gallery as usize / SAMPLE).max(1), seen: 0, vectors: BTreeMap::new() }
    }

    fn take(&mut self, batch: &EmbeddingBatch) {
        for (i, picture) in batch.pictures.iter().enumerate() {
            if self.seen.is_multiple_of(self.every) {
                self.vectors.insert(picture.id.clone(), batch.vector(i).to_vec());
            }
            self.seen += 1;
        }
    }

    /// Reads the same vectors back; each must have come through as it was sent, unless it was refused.
    fn compare(&self, server: &dyn Server) -> Result<(), LoadError> {
        let rejected: Vec<&str> =
            server.sent().rejected.iter().map(|rejected| rejected.id.as_str()).collect();
        let ids: Vec<String> =
            self.vectors.keys().filter(|id| !rejected.contains(&id.as_str())).cloned().collect();
        for ids in ids.chunks(50) {
            for (id, found) in ids.iter().zip(server.vectors(ids)?) {
                let differs =
                    |how| LoadError::Differs { engine: server.name().to_owned(), id: id.clone(), how };
                let found = found.ok_or_else(|| differs("without its vector"))?;
                let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                if self.vectors.get(id).is_none_or(|sent| bits(sent) != bits(&found)) {
                    return Err(differs("with another vector than was sent"));
                }
            }
        }
        Ok(())
    }
}

/// Replaces the file of the load before, once the new one is whole; none where nothing was rejected.
fn write_dead_letters(path: &Path, rejected: &[Rejected]) -> Result<(), LoadError> {
    let failed = |reason: String| LoadError::Write { path: path.display().to_string(), reason };
    if rejected.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error.to_string())),
            _ => Ok(()),
        };
    }
    for letter in rejected.iter().take(5) {
        tracing::warn!("rejected {}: {}", letter.id.escape_debug(), letter.reason);
    }
    write_whole(path, |file| -> io::Result<()> {
        let mut file = io::BufWriter::new(file);
        for letter in rejected {
            serde_json::to_writer(&mut file, letter)?;
            writeln!(file)?;
        }
        file.flush()
    })
    .map_err(failed)
}
