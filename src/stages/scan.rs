//! Folders and manifests → [`ImageRef`]s, in stable order.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The side of the search that a picture is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Searched in.
    Gallery,
    /// Searched for.
    Query,
}

impl Split {
    /// The value of the table's `split` column.
    pub fn name(self) -> &'static str {
        match self {
            Split::Gallery => "gallery",
            Split::Query => "query",
        }
    }
}

/// A picture that was found, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// Path relative to its root, `/`-separated, UTF-8. Unique within its split: the key of the table is (`split`, `id`).
    pub id: String,
    pub split: Split,
    /// The class, where one is known.
    pub label: Option<String>,
    /// Where the bytes are.
    pub path: PathBuf,
}

/// A picture whose bytes were read once, to know whether they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub image: ImageRef,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
}
