//! What a run counts: pictures in its [`Books`], work in the [`StageStats`] of each stage.
//!
//! The books are closed at the end of every run: each picture that was scanned is in exactly one place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the pictures of one run went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Found by the scan.
    pub scanned: u64,
    /// Embedded by this run.
    pub embedded: u64,
    /// Had a vector from an earlier run, or from a picture with the same bytes.
    pub reused: u64,
    /// Of those reused: rows that stay exactly as they were.
    pub unchanged: u64,
    /// Could not be used; each is a row of `failures`.
    pub failed: u64,
    /// Rows of the feature table after the run.
    pub stored: u64,
    /// Rows removed because their pictures are gone.
    pub deleted: u64,
}

impl Books {
    /// Whether every picture is accounted for; if not, the sums that differ.
    pub fn check(&self) -> Result<(), String> {
        let Books { scanned, embedded, reused, unchanged, failed, stored, .. } = *self;
        if scanned != embedded + reused + failed {
            return Err(format!(
                "the books do not close: {scanned} scanned, but {embedded} embedded + {reused} reused + {failed} failed"
            ));
        }
        if embedded + reused != stored {
            return Err(format!(
                "the books do not close: {embedded} embedded + {reused} reused, but {stored} stored"
            ));
        }
        if unchanged > reused {
            return Err(format!("the books do not close: {unchanged} unchanged, but {reused} reused"));
        }
        Ok(())
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Books { scanned, embedded, reused, unchanged, failed, stored, deleted } = self;
        writeln!(f, "scanned {scanned} = embedded {embedded} + reused {reused} + failed {failed}")?;
        writeln!(f, "stored {stored} = embedded + reused; unchanged {unchanged}, deleted {deleted}")
    }
}

/// Where the pictures of one load went: `gallery = searchable + rejected`, and `sent = indexed + removed + rejected now`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBooks {
    pub engine: String,
    /// What was sent: `everything`, `changes since version N`, or `nothing`.
    pub sent_what: String,
    /// Gallery pictures in the feature table.
    pub gallery: u64,
    /// Of them, those that searches find.
    pub searchable: u64,
    /// Of them, those that the engine refused; each is a row of `rejected.jsonl`.
    pub rejected: u64,
    /// Documents and deletions sent by this run, each once.
    pub sent: u64,
    pub indexed: u64,
    /// Deletions among those sent.
    pub removed: u64,
    /// How often a document was sent again.
    pub retried: u64,
}

impl LoadBooks {
    /// Whether every picture is accounted for; if not, the sums that differ.
    pub fn check(&self) -> Result<(), String> {
        let LoadBooks { engine, gallery, searchable, rejected, sent, indexed, removed, .. } = self;
        if *gallery != searchable + rejected {
            return Err(format!(
                "the books do not close: {gallery} gallery pictures are stored, but {searchable} searchable in {engine} + \
                 {rejected} rejected"
            ));
        }
        // What an earlier load had rejected may be in `rejected` beside what this one sent.
        if indexed + removed > *sent || *sent > indexed + removed + rejected {
            return Err(format!(
                "the books do not close: {sent} sent to {engine}, but {indexed} indexed + {removed} removed + {rejected} rejected"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for LoadBooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadBooks { engine, sent_what, gallery, searchable, rejected, sent, indexed, removed, retried } =
            self;
        writeln!(f, "gallery {gallery} = searchable in {engine} {searchable} + rejected {rejected}")?;
        let refused = sent.saturating_sub(indexed + removed);
        writeln!(
            f,
            "sent {sent_what}: {sent} = indexed {indexed} + removed {removed} + rejected {refused}; {retried} sent again"
        )
    }
}

/// What one stage did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStats {
    /// Its name: `scan`, `decode`, `embed`, `store`, `load`, `evaluate`.
    pub stage: String,
    pub items_in: u64,
    pub items_out: u64,
    /// Bytes read or written, whichever the stage is about.
    pub bytes: u64,
    /// Wall-clock time.
    pub seconds: f64,
}

impl StageStats {
    /// Items that left the stage in a second, or 0 where no time passed.
    pub fn items_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.items_out as f64 / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_close_only_where_every_picture_is_in_one_place() {
        let books =
            Books { scanned: 10, embedded: 3, reused: 6, unchanged: 5, failed: 1, stored: 9, deleted: 2 };
        assert_eq!(books.check(), Ok(()));
        assert_eq!(
            books.to_string(),
            "scanned 10 = embedded 3 + reused 6 + failed 1\nstored 9 = embedded + reused; unchanged 5, deleted 2\n"
        );
        let lost = Books { failed: 0, ..books }.check().expect_err("one is lost");
        assert_eq!(lost, "the books do not close: 10 scanned, but 3 embedded + 6 reused + 0 failed");
        let unstored = Books { stored: 8, ..books }.check().expect_err("one was not stored");
        assert_eq!(unstored, "the books do not close: 3 embedded + 6 reused, but 8 stored");
        assert!(Books { unchanged: 7, ..books }.check().is_err());
    }

    #[test]
    fn a_loads_books_close_only_where_every_picture_is_in_one_place() {
        let books = LoadBooks {
            engine: "flat".to_owned(),
            sent_what: "everything".to_owned(),
            gallery: 10,
            searchable: 9,
            rejected: 1,
            sent: 10,
            indexed: 9,
            removed: 0,
            retried: 2,
        };
        assert_eq!(books.check(), Ok(()));
        assert_eq!(
            books.to_string(),
            "gallery 10 = searchable in flat 9 + rejected 1\n\
             sent everything: 10 = indexed 9 + removed 0 + rejected 1; 2 sent again\n"
        );
        // Changes sent to a copy of what is there already.
        let changes =
            LoadBooks { sent: 3, indexed: 2, removed: 1, searchable: 10, rejected: 0, ..books.clone() };
        assert_eq!(changes.check(), Ok(()));
        for lost in [
            LoadBooks { searchable: 8, ..books.clone() },
            LoadBooks { indexed: 8, ..books.clone() },
            LoadBooks { indexed: 11, ..books },
        ] {
            lost.check().expect_err("one is lost, or doubled");
        }
    }
}
