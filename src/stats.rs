//! What a run counts. The books are checked at its end: a picture that is nowhere is a bug, and it is said.

use serde::{Deserialize, Serialize};

/// Where every picture went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Pictures found, or meant to be found.
    pub scanned: u64,
    /// Went through the model in this run.
    pub embedded: u64,
    /// Had their vector already: unchanged, renamed, copied or relabelled.
    pub reused: u64,
    /// Could not be used; each is a row of the failures table.
    pub failed: u64,
    /// Rows taken out of the table: pictures that vanished, or can no longer be read.
    pub deleted: u64,
    /// Rows in the table at the end.
    pub stored: u64,
}

impl Books {
    /// `scanned = embedded + reused + failed`, and `embedded + reused = stored`.
    pub fn check(&self) -> Result<(), String> {
        let Books { scanned, embedded, reused, failed, stored, .. } = *self;
        if scanned != embedded + reused + failed {
            return Err(format!("{scanned} scanned, but {embedded} embedded + {reused} reused + {failed} failed"));
        }
        if embedded + reused != stored {
            return Err(format!("{embedded} embedded + {reused} reused, but {stored} stored"));
        }
        Ok(())
    }
}

impl std::fmt::Display for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Books { scanned, embedded, reused, failed, deleted, stored } = self;
        write!(
            f,
            "books: {scanned} scanned = {embedded} embedded + {reused} reused + {failed} failed; \
             {stored} stored, {deleted} deleted"
        )
    }
}

/// What one stage did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageStats {
    pub stage: String,
    pub items_in: u64,
    pub items_out: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_is_nowhere_is_noticed() {
        let good = Books { scanned: 9, embedded: 4, reused: 3, failed: 2, deleted: 5, stored: 7 };
        assert_eq!(good.check(), Ok(()));
        assert!(Books { scanned: 10, ..good.clone() }.check().is_err());
        assert!(Books { stored: 6, ..good }.check().is_err());
    }
}
