//! An id → the picture's bytes, long after the scan: a report shows pictures of the table, a search those that an engine names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::{Root, Source, coco, pattern, webdataset};

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
    /// is allowed to. Of a file it is not said that it is there, of a part of an archive it is.
    pub fn sources(&self, ids: &[&str]) -> Vec<Option<Source>> {
        let Places { root, images } = *self;
        let beside = root.parent().unwrap_or(Path::new(""));
        let kind = Root::of(root);
        let folder = match kind {
            Root::Manifest => {
                let folder = images.unwrap_or(beside);
                return ids.iter().map(|id| Some(Source::File(folder.join(id)))).collect();
            }
            Root::Coco => coco::folder(root, images),
            Root::Folder => root.to_owned(),
            Root::Archive => beside.to_owned(),
            Root::Pattern => pattern::base(root),
        };
        let holds_files = matches!(kind, Root::Coco | Root::Folder);
        let mut found = vec![None; ids.len()];
        let mut members: BTreeMap<PathBuf, Vec<(usize, &str)>> = BTreeMap::new();
        for (place, id) in ids.iter().enumerate().filter(|(_, id)| !leads_out(Path::new(id))) {
            match archive(&folder, id) {
                Some((archive, name)) => members.entry(archive).or_default().push((place, name)),
                None if holds_files => found[place] = Some(Source::File(folder.join(id))),
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
}
