//! Where the bytes of a picture are, and how they are read.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

/// Where the bytes of a picture are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of its own.
    File(PathBuf),
}

/// The bytes of a picture, from their beginning.
pub trait Content: Read + Seek {}

impl<T: Read + Seek> Content for T {}

impl Source {
    /// How many bytes it is. Errors, here and below: it is not there any more, or may not be read.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Source::File(path) => Ok(std::fs::metadata(path)?.len()),
        }
    }

    /// Opened to be read in pieces.
    pub fn open(&self) -> io::Result<Box<dyn Content>> {
        match self {
            Source::File(path) => Ok(Box::new(File::open(path)?)),
        }
    }

    /// All of them.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Source::File(path) => std::fs::read(path),
        }
    }

    /// The folder of this machine that it lies in, where it has a name.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Source::File(path) => path.parent().filter(|folder| !folder.as_os_str().is_empty()),
        }
    }
}
