//! The gallery of a feature table in tiles, for whoever looks at every vector and cannot hold them all.

use tokio::runtime::Handle;

use super::{FeatureStore, StoreError};
use crate::stages::embed::EmbeddingBatch;
use crate::stages::scan::Split;

/// The gallery of one version of a table. Its ids are in memory, its vectors are not.
#[derive(Debug, Clone)]
pub struct Tiles {
    store: FeatureStore,
    handle: Handle,
    ids: Vec<String>,
}

impl Tiles {
    /// `handle` is where the table is read.
    pub fn of(store: FeatureStore, handle: &Handle) -> Result<Tiles, StoreError> {
        let ids = handle.block_on(store.ids(Split::Gallery))?;
        Ok(Tiles { store, handle: handle.clone(), ids })
    }

    /// Of all pictures, ascending.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Hands every row to `f` in the order of the ids, a band of [`Shares::rows`](crate::memory::Shares::rows) at a time: the same
    /// tiles each time.
    pub fn each<E: From<StoreError>>(
        &self,
        f: impl FnMut(&EmbeddingBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        self.handle.block_on(self.store.for_each_row_of(Split::Gallery, &self.ids, usize::MAX, f))
    }
}
