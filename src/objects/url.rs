//! `s3://bucket/folder/picture.jpg`: which store, which bucket, which key.
//!
//! What stands behind the bucket is the key as it is, with spaces, umlauts and percent signs: nothing is encoded or decoded.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as Key;

/// Whose protocol it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Amazon S3, and what speaks like it: MinIO, Ceph, R2, ….
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage; the bucket is a container.
    Az,
}

impl Scheme {
    const ALL: [Scheme; 3] = [Scheme::S3, Scheme::Gs, Scheme::Az];

    pub fn name(self) -> &'static str {
        match self {
            Scheme::S3 => "s3",
            Scheme::Gs => "gs",
            Scheme::Az => "az",
        }
    }
}

/// An object, or all whose keys begin with a folder's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectUrl {
    pub scheme: Scheme,
    pub bucket: Arc<str>,
    /// Without a slash at either end; empty for the whole bucket.
    pub key: String,
}

/// Whether a text is meant as a URL, of whatever kind.
pub fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

impl ObjectUrl {
    /// What a path of the pipeline file names, if that is an object store; `None` for a path of this machine.
    pub fn of(path: &Path) -> Option<ObjectUrl> {
        ObjectUrl::parse(path.to_str()?).ok()
    }

    /// On an error what is wrong, without what stands in the URL: it might be a password.
    pub fn parse(text: &str) -> Result<ObjectUrl, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it is no URL")?;
        let found = Scheme::ALL.into_iter().find(|known| known.name() == scheme.to_ascii_lowercase());
        let Some(scheme) = found else {
            return Err(format!("{scheme}:// is not one of s3://, gs://, az://"));
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err(
                "credentials do not belong into a URL; they are taken from the environment".to_owned()
            );
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if bucket.is_empty() || !bucket.bytes().all(is_name) {
            return Err(format!(
                "a bucket has a name of letters, digits, dots and dashes, as in {}://pictures/gallery",
                scheme.name()
            ));
        }
        let key = key.trim_matches('/');
        Key::parse(key).map_err(|_| "its key has an empty part, or one that is `.` or `..`".to_owned())?;
        Ok(ObjectUrl { scheme, bucket: bucket.into(), key: key.to_owned() })
    }

    /// The object `name`, which may have slashes, in this folder.
    pub fn join(&self, name: &str) -> ObjectUrl {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}/{name}", self.key) };
        ObjectUrl { key, ..self.clone() }
    }

    /// The folder that this object is in.
    pub fn folder(&self) -> ObjectUrl {
        let key = self.key.rsplit_once('/').map_or("", |(folder, _)| folder);
        ObjectUrl { key: key.to_owned(), ..self.clone() }
    }

    /// The key of an object below this folder, as counted from it.
    pub fn name_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        match self.key.as_str() {
            "" => Some(key),
            folder => key.strip_prefix(folder)?.strip_prefix('/'),
        }
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.bucket)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "/{}", self.key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_store_a_bucket_and_a_key() {
        for (text, shown) in [
            ("s3://shop/photos/2024/", "s3://shop/photos/2024"),
            ("S3://shop", "s3://shop"),
            ("gs://shop-eu/a b/ü%20.jpg", "gs://shop-eu/a b/ü%20.jpg"),
            ("az://container/x", "az://container/x"),
        ] {
            assert_eq!(ObjectUrl::parse(text).map(|url| url.to_string()).as_deref(), Ok(shown));
        }
        for (text, reason) in [
            ("https://shop/x", "https:// is not one of s3://, gs://, az://"),
            ("s3:///x", "a bucket has a name"),
            ("s3://id:secret@shop/x", "credentials do not belong into a URL"),
            ("s3://shop/a//b", "an empty part"),
            ("s3://shop/a/../b", "`..`"),
        ] {
            let error = ObjectUrl::parse(text).expect_err(text);
            assert!(error.contains(reason) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_of_this_machine_is_no_url() {
        for path in ["photos", "/data/s3:/x", "s3:/shop", "C://x y/z"] {
            assert_eq!(ObjectUrl::of(Path::new(path)), None, "{path}");
        }
        assert!(is_url("ftp://x") && !is_url("a b://x") && !is_url("://x"));
    }

    #[test]
    fn names_count_from_a_folder() {
        let folder = ObjectUrl::parse("s3://shop/photos").expect("valid");
        assert_eq!(folder.join("a/1.jpg").to_string(), "s3://shop/photos/a/1.jpg");
        assert_eq!(folder.name_of("photos/a/1.jpg"), Some("a/1.jpg"));
        assert_eq!(folder.name_of("photos2/1.jpg"), None);
        assert_eq!(folder.folder().to_string(), "s3://shop");
        assert_eq!(folder.folder().join("list.csv").folder().name_of("a.jpg"), Some("a.jpg"));
    }
}
