//! A picture's place as text, for another process: an executor on a machine that sees the same files and object stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use super::source::{Archive, Object, Source};
use crate::objects::ObjectUrl;

/// What is escaped: what is no text, and the sign of an escape.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

impl Source {
    /// A kind, a colon and the rest: `file:/photos/1.jpg`, `tar:512:9000:/photos/a.tar`, `object:9000:s3://shop/1.jpg`.
    ///
    /// Any bytes in a path survive: those that are no ASCII text are written `%FF`. Of an object its ETag is left out, and of an
    /// archive how it was when its headers were read: both may differ where another machine looks. Whoever sends it compares hashes.
    pub fn to_text(&self) -> String {
        match self {
            Source::File(path) => format!("file:{}", escaped(path)),
            Source::Member { archive, at, length } => {
                format!("tar:{at}:{length}:{}", escaped(archive.path()))
            }
            Source::Object(object) => {
                let size = object.size.map(|size| size.to_string()).unwrap_or_default();
                let url = object.url.to_string();
                format!("object:{size}:{}", percent_encode(url.as_bytes(), ESCAPED))
            }
            Source::Fetched(bytes) => format!("bytes:{}", hex::encode(bytes)),
        }
    }

    /// What [`to_text`](Source::to_text) made; nothing where it is of no kind that this program knows.
    pub fn from_text(text: &str) -> Option<Source> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "file" => Some(Source::File(path_of(rest))),
            "tar" => {
                let mut parts = rest.splitn(3, ':');
                let (at, length) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                let archive = Arc::new(Archive::at(path_of(parts.next()?)));
                Some(Source::Member { archive, at, length })
            }
            "object" => {
                let (size, url) = rest.split_once(':')?;
                let size = if size.is_empty() { None } else { Some(size.parse().ok()?) };
                let url = percent_decode_str(url).decode_utf8().ok()?;
                Some(Source::Object(Object { size, ..Object::at(ObjectUrl::parse(&url).ok()?) }))
            }
            "bytes" => Some(Source::Fetched(hex::decode(rest).ok()?.into())),
            _ => None,
        }
    }
}

fn escaped(path: &Path) -> String {
    percent_encode(path.as_os_str().as_encoded_bytes(), ESCAPED).to_string()
}

fn path_of(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(percent_decode_str(text).collect()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_travels_as_text() {
        let member = |path: &str| {
            let archive = Arc::new(Archive::at(PathBuf::from(path)));
            Source::Member { archive, at: 512, length: 9_000 }
        };
        let object = |url: &str, size| {
            let url = ObjectUrl::parse(url).expect("a URL");
            Source::Object(Object { size, ..Object::at(url) })
        };
        for source in [
            Source::File(PathBuf::from("/photos/a b/1.jpg")),
            Source::File(PathBuf::from("/100%/ü:,'\".png")),
            Source::File(PathBuf::from("relative/\n.gif")),
            member("/photos/a:b ü.tar"),
            object("s3://shop/a b/ü%20:1.jpg", Some(7)),
            object("gs://shop/1.jpg", None),
            Source::Fetched(vec![0, 255, b':'].into()),
        ] {
            let text = source.to_text();
            assert!(text.is_ascii() && !text.contains('\n'), "{text}");
            assert_eq!(Source::from_text(&text), Some(source));
        }
        for text in [
            "s4:bucket/1.jpg",
            "/photos/1.jpg",
            "tar:1:/a.tar",
            "tar:1:x:/a.tar",
            "object:s3://shop/1.jpg",
            "object:7:ftp://shop/1.jpg",
            "bytes:0",
        ] {
            assert_eq!(Source::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_travels_too() {
        use std::os::unix::ffi::OsStrExt;
        let source = Source::File(Path::new(std::ffi::OsStr::from_bytes(b"/photos/caf\xe9.jpg")).to_owned());
        assert_eq!(source.to_text(), "file:/photos/caf%E9.jpg");
        assert_eq!(Source::from_text(&source.to_text()), Some(source));
    }

    #[test]
    fn a_member_that_travelled_is_read_from_the_archive_that_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tar");
        let archive = Arc::new(Archive::at(path.clone()));
        let text = Source::Member { archive, at: 3, length: 4 }.to_text();
        let source = Source::from_text(&text).expect("a member");
        assert!(source.read().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
        std::fs::write(&path, "0123456789").expect("writable");
        assert_eq!(source.read().expect("readable"), b"3456");
        std::fs::write(&path, "01234").expect("writable");
        assert!(source.read().is_err_and(|error| error.to_string().contains("ends within")));
    }
}
