//! Where the bytes of a picture are, and how they are read.

use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::objects::{Ahead, Bucket, Early, ObjectUrl};

/// Where the bytes of a picture are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of its own.
    File(PathBuf),
    /// A slice of a tar file: `length` bytes, the first at `at`.
    Member { archive: Arc<Archive>, at: u64, length: u64 },
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

    fn bucket(&self) -> io::Result<Arc<Bucket>> {
        Bucket::of(&self.url).map_err(|error| io::Error::other(error.to_string()))
    }
}

/// The bytes of a picture, from their beginning.
pub trait Content: Read + Seek {}

impl<T: Read + Seek> Content for T {}

impl Source {
    /// The store and bucket of an object, such as `s3://shop`.
    pub fn bucket(&self) -> Option<String> {
        match self {
            Source::Object(Object { url, .. }) => Some(format!("{}://{}", url.scheme.name(), url.bucket)),
            _ => None,
        }
    }

    /// What a person names: a path, or a URL.
    pub fn of(path: &Path) -> Source {
        match ObjectUrl::of(path) {
            Some(url) => Source::Object(Object::at(url)),
            None => Source::File(path.to_owned()),
        }
    }

    /// How many bytes it is. Errors, here and below: it is not there any more, or may not be read.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Source::File(path) => Ok(std::fs::metadata(path)?.len()),
            Source::Member { length, .. } => Ok(*length),
            Source::Object(Object { size: Some(size), .. }) => Ok(*size),
            Source::Object(object) => Ok(object.bucket()?.read(&object.url.key, None)?.len() as u64),
            Source::Fetched(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Opened to be read in pieces.
    pub fn open(&self) -> io::Result<Box<dyn Content>> {
        match self {
            Source::File(path) => Ok(Box::new(File::open(path)?)),
            Source::Member { archive, at, length } => {
                Ok(Box::new(Slice { file: archive.open()?, start: *at, length: *length, position: 0 }))
            }
            Source::Object(_) | Source::Fetched(_) => Ok(Box::new(Cursor::new(self.read()?))),
        }
    }

    /// All of them.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Source::File(path) => std::fs::read(path),
            Source::Member { length, .. } => {
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(usize::try_from(*length).unwrap_or(usize::MAX))?;
                self.open()?.read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Source::Object(object) => Ok(object.bucket()?.read(&object.url.key, object.size)?.into()),
            Source::Fetched(bytes) => Ok(bytes.to_vec()),
        }
    }

    /// Begins to fetch an object of at most `most` bytes; a file, or a part of one, needs no such thing.
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
        let file = match self {
            Source::File(path) => path,
            Source::Member { archive, .. } => archive.path(),
            Source::Object(_) | Source::Fetched(_) => return None,
        };
        file.parent().filter(|folder| !folder.as_os_str().is_empty())
    }
}

/// A tar file, as it was when its headers were read: places in it mean nothing once it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    path: PathBuf,
    /// Nothing where another machine read its headers.
    state: Option<State>,
}

impl Archive {
    /// That which `file`, opened at `path`, is.
    pub(super) fn of(path: &Path, file: &File) -> io::Result<Archive> {
        Ok(Archive { path: path.to_owned(), state: Some(State::of(&file.metadata()?)) })
    }

    /// One whose headers another machine read: nothing is known of how it was then.
    pub(super) fn at(path: PathBuf) -> Archive {
        Archive { path, state: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still the same. Errors: it is not there, or may not be looked at.
    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        Ok(self.is_like(&std::fs::metadata(&self.path)?))
    }

    fn open(&self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        match self.is_like(&file.metadata()?) {
            true => Ok(file),
            false => Err(io::Error::other("the archive changed after its headers were read; run again")),
        }
    }

    fn is_like(&self, file: &Metadata) -> bool {
        self.state.is_none_or(|state| state == State::of(file))
    }
}

/// What tells a file from another, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    length: u64,
    /// Of the last change: seconds and nanoseconds.
    modified: (i64, i64),
}

impl State {
    fn of(file: &Metadata) -> State {
        State {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// A part of a file, as if it were a file of its own.
struct Slice {
    file: File,
    start: u64,
    length: u64,
    /// From its start. It may lie behind its end, as in any file.
    position: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..wanted], self.start + self.position)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within the picture")),
            count => {
                self.position += count as u64;
                Ok(count)
            }
        }
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "before the beginning");
        self.position = position.ok_or_else(outside)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_read_as_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, "0123456789").unwrap();
        let archive = Arc::new(Archive::of(&path, &File::open(&path).unwrap()).unwrap());
        let source = Source::Member { archive, at: 3, length: 4 };
        assert_eq!((source.length().unwrap(), source.read().unwrap()), (4, b"3456".to_vec()));
        let mut content = source.open().unwrap();
        let mut rest = String::new();
        assert_eq!(content.seek(SeekFrom::End(-2)).unwrap(), 2);
        content.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "56");
        assert_eq!(content.seek(SeekFrom::Start(9)).unwrap(), 9);
        assert_eq!(
            content.read(&mut [0; 8]).unwrap(),
            0,
            "behind its end there is nothing, though the file goes on"
        );
        assert!(content.seek(SeekFrom::Current(-10)).is_err());
        content.rewind().unwrap();
        assert_eq!(content.read(&mut [0; 8]).unwrap(), 4);
    }

    #[test]
    fn of_an_archive_that_changed_nothing_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, "0123456789").unwrap();
        let archive = Archive::of(&path, &File::open(&path).unwrap()).unwrap();
        assert!(archive.is_unchanged().unwrap());
        std::fs::write(folder.path().join("b.tar"), "0123456789").unwrap();
        std::fs::rename(folder.path().join("b.tar"), &path).unwrap();
        assert!(!archive.is_unchanged().unwrap());
        let source = Source::Member { archive: Arc::new(archive), at: 3, length: 4 };
        assert!(source.read().is_err_and(|error| error.to_string().contains("changed")));
    }
}
