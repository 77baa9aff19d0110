//! Where the bytes of a picture are, and how they are read.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// What is escaped in a path as text: what is no text, and the sign of an escape.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

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
    /// As text, for another process on this machine or one that sees the same files: a kind, a colon and the rest.
    ///
    /// Any bytes in a path survive: those that are no ASCII text are written `%ff`.
    pub fn to_text(&self) -> String {
        match self {
            Source::File(path) => {
                format!("file:{}", percent_encode(path.as_os_str().as_encoded_bytes(), ESCAPED))
            }
        }
    }

    /// What [`to_text`](Source::to_text) made; nothing where it is of no kind that this program knows.
    pub fn from_text(text: &str) -> Option<Source> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "file" => Some(Source::File(path_of(percent_decode_str(rest).collect())?)),
            _ => None,
        }
    }

    /// How many bytes it is.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Source::File(path) => Ok(std::fs::metadata(path)?.len()),
        }
    }

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

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_travels_as_text() {
        for path in ["/photos/a b/1.jpg", "/100%/ü:,'\".png", "relative/\n.gif"] {
            let source = Source::File(PathBuf::from(path));
            let text = source.to_text();
            assert!(text.is_ascii() && !text.contains('\n'), "{text}");
            assert_eq!(Source::from_text(&text), Some(source));
        }
        assert_eq!(Source::from_text("s4:bucket/1.jpg"), None);
        assert_eq!(Source::from_text("/photos/1.jpg"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_no_text_travels_too() {
        use std::os::unix::ffi::OsStrExt;
        let source = Source::File(Path::new(std::ffi::OsStr::from_bytes(b"/photos/caf\xe9.jpg")).to_owned());
        assert_eq!(source.to_text(), "file:/photos/caf%E9.jpg");
        assert_eq!(Source::from_text(&source.to_text()), Some(source));
    }
}
