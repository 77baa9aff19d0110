//! An id → the picture's bytes, long after the scan: a report shows pictures of the table, a search those that an engine names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::manifest::{self, Home};
use super::{Root, Source, coco, pattern, webdataset};
use crate::objects::is_url;

/// Where pictures are, for those who have only their ids.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// `input.gallery`, or `input.queries`.
    pub root: &'a Path,
    /// `input.images`.
    pub images: Option<&'a Path>,
}

impl Places<'_> {
    /// The pictures with these ids, in their order. The headers of each archive are read once.
    ///
    /// A server may answer with any id: nothing where it would lead out of the folder. A manifest may name pictures anywhere, if it
    /// is allowed to, by URL as well. Of a file or an object it is not said that it is there, of a part of an archive it is.
    pub fn sources(&self, ids: &[&str]) -> Vec<Option<Source>> {
        let Places { root, images } = *self;
        let kind = Root::of(root);
        let folder = match kind {
            Root::Manifest => {
                let home = Home::of(&manifest::folder(root, images));
                return ids.iter().map(|id| home.source(id)).collect();
            }
            Root::Coco => coco::folder(root, images),
            Root::Folder | Root::Objects => root.to_owned(),
            Root::Archive => root.parent().unwrap_or(Path::new("")).to_owned(),
            Root::Pattern => pattern::base(root),
        };
        let home = Home::of(&folder);
        let is_on_disk = matches!(home, Home::Disk(_));
        let holds_files = matches!(kind, Root::Coco | Root::Folder | Root::Objects);
        let mut found = vec![None; ids.len()];
        let mut members: BTreeMap<PathBuf, Vec<(usize, &str)>> = BTreeMap::new();
        let is_within = |id: &str| !is_url(id) && !leads_out(Path::new(id));
        for (place, id) in ids.iter().enumerate().filter(|(_, id)| is_within(id)) {
            match is_on_disk.then(|| archive(&folder, id)).flatten() {
                Some((archive, name)) => members.entry(archive).or_default().push((place, name)),
                None if holds_files => found[place] = home.source(id),
                None => {}
            }
        }
        for (archive, wanted) in members {
            let names: Vec<&str> = wanted.iter().map(|(_, name)| *name).collect();
            // Of an archive that cannot be read nothing is found.
            let sources = webdataset::find(&archive, &names).unwrap_or_default();
            for ((place, _), source) in wanted.into_iter().zip(sources) {
                found[place] = source;
            }
        }
        found
    }
}

/// The archive that an id begins with, and the name of the member. A folder may be called `a.tar`, too.
fn archive<'a>(folder: &Path, id: &'a str) -> Option<(PathBuf, &'a str)> {
    id.match_indices('/').find_map(|(end, _)| {
        let path = folder.join(&id[..end]);
        (webdataset::is_archive(&path) && path.is_file()).then(|| (path, &id[end + 1..]))
    })
}

/// Whether a path, taken from some folder, may end outside of it: it is absolute, or has a part `..`.
pub(super) fn leads_out(path: &Path) -> bool {
    !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(root: &str, id: &str) -> Option<Source> {
        Places { root: Path::new(root), images: None }.sources(&[id]).remove(0)
    }

    #[test]
    fn an_id_does_not_lead_out_of_a_folder() {
        let file = |path: &str| Some(Source::File(PathBuf::from(path)));
        assert_eq!(source("photos", "a/..b/1.jpg"), file("photos/a/..b/1.jpg"));
        for root in ["photos", "photos/1.tar", "photos/{1..3}.tar", "photos/all.json"] {
            for id in ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg", ".."] {
                assert_eq!(source(root, id), None, "{root}: {id}");
            }
        }
        assert_eq!(source("lists/a.csv", "../1.jpg"), file("lists/../1.jpg"));
        let manifest = Places { root: Path::new("lists/a.csv"), images: Some(Path::new("photos")) };
        assert_eq!(manifest.sources(&["1.jpg"]), [file("photos/1.jpg")]);
    }

    #[test]
    fn an_id_in_a_bucket_names_an_object() {
        let url = |source| match source {
            Some(Source::Object(object)) => Some(object.url.to_string()),
            None => None,
            other => panic!("{other:?}"),
        };
        let named = |root: &str, id: &str| url(source(root, id));
        assert_eq!(named("s3://shop/photos", "a/1.jpg").as_deref(), Some("s3://shop/photos/a/1.jpg"));
        assert_eq!(named("s3://shop", "a.tar/1.jpg").as_deref(), Some("s3://shop/a.tar/1.jpg"));
        for id in ["../1.jpg", "/etc/1.jpg", "s3://other/1.jpg"] {
            assert_eq!(named("s3://shop/photos", id), None, "{id}");
            assert_eq!(named("photos", id), None, "{id}");
        }
        assert_eq!(
            named("s3://shop/photos/list.csv", "a/1.jpg").as_deref(),
            Some("s3://shop/photos/a/1.jpg")
        );
        assert_eq!(named("s3://shop/photos/list.csv", "../1.jpg").as_deref(), Some("s3://shop/1.jpg"));
        assert_eq!(named("s3://shop/list.csv", "../1.jpg"), None, "there is nothing above a bucket");
        assert_eq!(named("s3://shop/list.csv", "/etc/1.jpg"), None, "that is one of this machine");
        assert_eq!(named("lists/a.csv", "gs://other/1.jpg").as_deref(), Some("gs://other/1.jpg"));
        let images = Some(Path::new("s3://shop/photos"));
        for root in ["lists/a.csv", "s3://other/a.csv", "annotations/all.json"] {
            let found = Places { root: Path::new(root), images }.sources(&["1.jpg"]).remove(0);
            assert_eq!(url(found).as_deref(), Some("s3://shop/photos/1.jpg"), "{root}");
        }
    }
}
