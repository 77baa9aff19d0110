//! Where the gallery's vectors are while it is evaluated: in memory, or in the feature table.

use crate::engines::EngineError;
use crate::stages::decode::Picture;
use crate::stages::embed::EmbeddingBatch;
use crate::stages::store::Tiles;

/// The gallery of an evaluation. What is known of its pictures is in memory; row numbers are places among those.
#[derive(Debug, Clone, Copy)]
pub enum GalleryRows<'a> {
    /// With its vectors, which leave-one-out searches for.
    Held(&'a EmbeddingBatch),
    /// Its vectors are read from a table each time they are looked at, in tiles: they may be more than memory holds.
    Stored {
        /// In the order of `tiles`.
        pictures: &'a [Picture],
        dim: usize,
        tiles: &'a Tiles,
    },
}

impl<'a> GalleryRows<'a> {
    pub fn pictures(&self) -> &'a [Picture] {
        match self {
            GalleryRows::Held(batch) => &batch.pictures,
            GalleryRows::Stored { pictures, .. } => pictures,
        }
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        match self {
            GalleryRows::Held(batch) => batch.dim,
            GalleryRows::Stored { dim, .. } => *dim,
        }
    }

    /// The vectors, where they are in memory.
    pub fn held(&self) -> Option<&'a EmbeddingBatch> {
        match self {
            GalleryRows::Held(batch) => Some(batch),
            GalleryRows::Stored { .. } => None,
        }
    }

    /// Hands the rows to `look`, each tile with the number of its first row.
    pub fn each_tile(&self, mut look: impl FnMut(usize, &EmbeddingBatch)) -> Result<(), EngineError> {
        match self {
            GalleryRows::Held(batch) => look(0, batch),
            GalleryRows::Stored { tiles, .. } => {
                let mut first = 0;
                tiles.each(|tile| -> Result<(), EngineError> {
                    if crate::interrupt::is_set() {
                        return Err(EngineError::Interrupted);
                    }
                    look(first, tile);
                    first += tile.len();
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}
