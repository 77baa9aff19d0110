//! [`ImageRef`](super::scan::ImageRef) → [`DecodedImage`]. A bad file becomes a [`Failure`], never a stop.

use serde::{Deserialize, Serialize};

use super::scan::Split;

/// RGB pixels of one picture, as large as the file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// `[height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
    pub width: u32,
    pub height: u32,
    pub format: &'static str,
}

/// What is known of a picture besides its vector: the table's columns of the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub id: String,
    pub split: Split,
    pub label: Option<String>,
    /// Hex SHA-256 of the file's bytes.
    pub sha256: String,
    /// Perceptual difference hash of the decoded picture, 8 x 8 bits.
    pub dhash: u64,
    /// Size in pixels as the file holds it (after EXIF rotation where that is applied).
    pub width: u32,
    pub height: u32,
    /// `jpeg`, `png`, `webp`, `gif`, `bmp` or `tiff`: by content, not by extension.
    pub format: String,
}

/// A picture that could not be used: a row of the `failures` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The picture's id, or its path where it has none.
    pub path: String,
    pub split: Split,
    /// The stage that gave up: `scan`, `read`, `decode`, `embed`.
    pub stage: String,
    /// A short class for counting, such as `truncated` or `too_large`.
    pub kind: String,
    /// What is wrong, for a person.
    pub reason: String,
}
