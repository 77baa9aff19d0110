//! Where the bytes of a picture are, and how they are read.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::objects::{Ahead, Bucket, Early, ObjectUrl};

/// Where the bytes of a picture are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of its own.
    File(PathBuf),
    /// In an object store.
    Object(Object),
    /// In memory: they were fetched early.
    Fetched(Bytes),
}

/// An object, and what a listing said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub url: ObjectUrl,
    /// Bytes.
    pub size: Option<u64>,
    /// What the store names the content by.
    pub e_tag: Option<String>,
}

impl Object {
    /// One of which only the place is known.
    pub fn at(url: ObjectUrl) -> Object {
        Object { url, size: None, e_tag: None }
    }

    fn bucket(&self) -> io::Result<std::sync::Arc<Bucket>> {
        Bucket::of(&self.url).map_err(|error| io::Error::other(error.to_string()))
    }
}

/// The bytes of a picture, from their beginning.
pub trait Content: Read + Seek {}

impl<T: Read + Seek> Content for T {}

impl Source {
    /// What a person names: a path, or a URL.
    pub fn of(path: &Path) -> Source {
        match ObjectUrl::of(path) {
            Some(url) => Source::Object(Object::at(url)),
            None => Source::File(path.to_owned()),
        }
    }

    /// How many bytes it is.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Source::File(path) => Ok(std::fs::metadata(path)?.len()),
            Source::Object(Object { size: Some(size), .. }) => Ok(*size),
            Source::Object(object) => Ok(object.bucket()?.read(&object.url.key, None)?.len() as u64),
            Source::Fetched(bytes) => Ok(bytes.len() as u64),
        }
    }

    pub fn open(&self) -> io::Result<Box<dyn Content>> {
        match self {
            Source::File(path) => Ok(Box::new(File::open(path)?)),
            other => Ok(Box::new(Cursor::new(other.read()?))),
        }
    }

    /// All of them.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Source::File(path) => std::fs::read(path),
            Source::Object(object) => Ok(object.bucket()?.read(&object.url.key, object.size)?.into()),
            Source::Fetched(bytes) => Ok(bytes.to_vec()),
        }
    }

    /// Begins to fetch an object of at most `most` bytes; a file needs no such thing.
    pub fn fetch(&self, ahead: &Ahead, most: u64) -> Option<Early> {
        match self {
            Source::Object(object) if object.size.is_none_or(|size| size <= most) => {
                Some(ahead.fetch(&object.bucket().ok()?, &object.url.key, object.size))
            }
            _ => None,
        }
    }

    /// The folder of this machine that it lies in, where it has a name.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Source::File(path) => path.parent().filter(|folder| !folder.as_os_str().is_empty()),
            Source::Object(_) | Source::Fetched(_) => None,
        }
    }
}
