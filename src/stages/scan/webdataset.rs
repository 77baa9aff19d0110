//! Tar files of samples, as WebDataset writes them: consecutive members with one key, `7.jpg` with `7.cls` or `7.json`.
//!
//! The key is the path up to the first dot of its last part. Every picture of a sample is a picture of its own, and has the sample's
//! class. What a newcomer would get wrong: classes come from the samples or, where no sample of the input has one, from the folders
//! inside the archives, so that a tar of class folders means what the folders mean.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::folder::{PICTURES, RAW, raw_reason};
use super::folders::went_away;
use super::source::Archive;
use super::tar::{Broken, Kind, Member, Members};
use super::{ImageRef, LabelRule, Scan, ScanError, Source, Split, shown};
use crate::stages::decode;

/// A tar file, and what the ids of its pictures begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub id: String,
}

/// Whether a file is taken for a tar file by its ending, a compressed one (which will be refused) too.
pub(super) fn is_archive(path: &Path) -> bool {
    const PACKED: [&str; 6] = ["gz", "zst", "zstd", "bz2", "xz", "lz4"];
    const SHORT: [&str; 5] = ["tar", "tgz", "tzst", "tbz2", "txz"];
    let ending = |path: &Path| path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending(path).as_deref() {
        Some(packed) if PACKED.contains(&packed) => {
            path.file_stem().and_then(|stem| ending(Path::new(stem))).is_some_and(|inner| inner == "tar")
        }
        Some(ending) => SHORT.contains(&ending),
        None => false,
    }
}

/// Adds the pictures of all `shards`, which are one input.
///
/// Errors: an archive that is compressed or stored sparse, or that was there and is not; no class where `rule` says they are.
pub(super) fn scan(
    shards: &[Shard],
    split: Split,
    rule: &LabelRule,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let mut input = Input { split, rule, scan, has_labels: false };
    let before = input.scan.images.len();
    let mut found: Vec<(Range<usize>, &Shard)> = Vec::new();
    for shard in shards {
        let start = input.scan.images.len();
        input.shard(shard)?;
        found.push((start..input.scan.images.len(), shard));
    }
    match (rule, shards.first()) {
        _ if input.has_labels => {}
        (LabelRule::Folder, _) => {
            for (range, shard) in found {
                for image in &mut input.scan.images[range] {
                    image.label = rule.label(&image.id[shard.id.len() + 1..]);
                }
            }
        }
        // Where all of them failed, that is what is told.
        (LabelRule::Column(column), Some(shard)) if input.scan.images.len() > before => {
            return Err(ScanError::NoColumn {
                what: split.input(),
                path: shard.path.clone(),
                column: column.clone(),
                found: "no sample has such a member or JSON key".to_owned(),
            });
        }
        _ => {}
    }
    Ok(())
}

/// The pictures with these names in an archive, in their order; nothing for one that is not there.
pub(super) fn find(archive: &Path, names: &[&str]) -> std::io::Result<Vec<Option<Source>>> {
    let file = File::open(archive)?;
    let archive = Arc::new(Archive::of(archive, &file)?);
    let mut found: HashMap<&str, Option<Source>> = names.iter().map(|name| (*name, None)).collect();
    let mut left = found.len();
    for member in Members::of(file)? {
        // What comes before a damage is found all the same.
        let Ok(Member { name, kind: Kind::File, at, length }) = member else { continue };
        let Some(place) = clean(&name).ok().and_then(|name| found.get_mut(&*name)) else { continue };
        // Of two members with one name the first is the picture.
        if place.is_none() {
            *place = Some(Source::Member { archive: archive.clone(), at, length });
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    Ok(names.iter().map(|name| found.get(name).cloned().flatten()).collect())
}

/// What is being scanned.
struct Input<'a> {
    split: Split,
    rule: &'a LabelRule,
    scan: &'a mut Scan,
    /// Whether any sample has a class of its own.
    has_labels: bool,
}

/// Members that follow one another and have one key.
#[derive(Default)]
struct Sample {
    key: String,
    /// Names, and where they lie.
    pictures: Vec<(String, Place)>,
    /// What may hold the class: the member of that name, and the JSON object.
    class: Option<(String, Place)>,
    json: Option<(String, Place)>,
}

/// First byte and length.
type Place = (u64, u64);

impl Input<'_> {
    fn shard(&mut self, shard: &Shard) -> Result<(), ScanError> {
        let vanished = || ScanError::Changed { what: self.split.input(), path: shard.path.clone() };
        let opened = File::open(&shard.path).and_then(|file| {
            let archive = Archive::of(&shard.path, &file)?;
            Ok((Arc::new(archive), Members::of(file)?))
        });
        let (archive, mut members) = match opened {
            Ok(opened) => opened,
            Err(error) if went_away(&shard.path, &error) => return Err(vanished()),
            Err(error) => {
                self.scan.fail(&shard.id, self.split, "unreadable", error);
                return Ok(());
            }
        };
        self.scan.folders.note_archive(archive.clone(), self.split);
        let mut sample = Sample::default();
        while let Some(member) = members.next() {
            match member {
                Ok(member) => self.member(shard, &archive, &members, member, &mut sample),
                Err(Broken::Refused(reason)) => {
                    let reason = format!("{reason}; unpack it, and name the folder that it is unpacked into");
                    return Err(ScanError::Archive { path: shard.path.clone(), reason });
                }
                Err(Broken::Damaged(reason)) => {
                    let reason =
                        format!("the archive is damaged or cut short: {reason}; copy or write it again");
                    // Its class may be in what is missing.
                    for (name, _) in std::mem::take(&mut sample).pictures {
                        let id = format!("{}/{name}", shard.id);
                        self.scan.fail(&id, self.split, "truncated", "the archive breaks off in its sample");
                    }
                    self.scan.fail(&shard.id, self.split, "truncated", reason);
                }
                Err(Broken::Followed) => {
                    let reason = "something follows the archive's end, and is not read; \
                                  archives are joined by tar --concatenate, not by cat";
                    self.scan.fail(&shard.id, self.split, "followed", reason);
                }
            }
        }
        self.finish(shard, &archive, &members, sample);
        Ok(())
    }

    fn member(
        &mut self,
        shard: &Shard,
        archive: &Arc<Archive>,
        members: &Members,
        member: Member,
        sample: &mut Sample,
    ) {
        let Member { name, kind, at, length } = member;
        if kind == Kind::Folder {
            return;
        }
        let name = match clean(&name) {
            Ok(name) if is_meta(&name) => return self.scan.skip("hidden"),
            Ok(name) => name,
            Err((kind, reason)) => {
                let path = format!("{}/{}", shard.id, shown(Path::new(OsStr::from_bytes(&name))));
                return self.scan.fail(&path, self.split, kind, reason);
            }
        };
        let id = format!("{}/{name}", shard.id);
        if name.split('/').any(|part| part.starts_with('.')) {
            return self.scan.skip("hidden");
        }
        let last = name.rsplit('/').next().unwrap_or(&name);
        let Some((_, endings)) = last.split_once('.') else {
            // A member without an ending belongs to no sample, and may be anything, so its first bytes decide.
            let begins = members.content(at, length, 32).is_ok_and(|head| decode::is_picture(&head));
            if kind == Kind::File && begins {
                let source = Source::Member { archive: archive.clone(), at, length };
                let label = self.rule.of_archive(&shard.id, &id);
                self.scan.images.push(ImageRef { id, split: self.split, label, source });
            } else {
                self.scan.skip("no ending");
            }
            return;
        };
        let key = &name[..name.len() - endings.len() - 1];
        let endings = endings.to_ascii_lowercase();
        let ending = endings.rsplit('.').next().unwrap_or(&endings);
        let is_picture = PICTURES.contains(&ending);
        if RAW.contains(&ending) {
            return self.scan.fail(&id, self.split, "unsupported", raw_reason(ending));
        }
        if kind != Kind::File {
            match (is_picture, kind) {
                (true, Kind::Link) => {
                    let reason = "a link in an archive is not followed; write the archive with \
                                  tar --dereference --hard-dereference";
                    self.scan.fail(&id, self.split, "link", reason);
                }
                (true, _) => self.scan.fail(&id, self.split, "not_a_file", "neither a file nor a folder"),
                (false, _) => self.scan.skip(ending),
            }
            return;
        }
        if key != sample.key {
            let key = key.to_owned();
            let done = std::mem::replace(sample, Sample { key, ..Sample::default() });
            self.finish(shard, archive, members, done);
        }
        let wanted = match self.rule {
            LabelRule::Folder => CLASS.contains(&endings.as_str()),
            LabelRule::Column(column) => endings == column.to_ascii_lowercase(),
            _ => false,
        };
        let is_read = matches!(self.rule, LabelRule::Folder | LabelRule::Column(_));
        if is_picture {
            sample.pictures.push((name, (at, length)));
        } else if wanted && sample.class.is_none() {
            sample.class = Some((name, (at, length)));
        } else if is_read && endings == "json" && sample.json.is_none() {
            sample.json = Some((name, (at, length)));
        } else {
            self.scan.skip(ending);
        }
    }

    /// Adds the pictures of a sample that is complete.
    fn finish(&mut self, shard: &Shard, archive: &Arc<Archive>, members: &Members, sample: Sample) {
        if sample.pictures.is_empty() {
            if sample.class.is_some() || sample.json.is_some() {
                self.scan.skip("samples without a picture");
            }
            return;
        }
        let class = sample.class(members, self.rule);
        self.has_labels |= match (&class, self.rule) {
            (Ok(class), _) => class.is_some(),
            // JSON that cannot be read does not say that it has the column.
            (Err(_), LabelRule::Column(_)) => sample.class.is_some() || sample.object(members).is_ok(),
            (Err(_), _) => true,
        };
        for (name, (at, length)) in sample.pictures {
            let id = format!("{}/{name}", shard.id);
            match &class {
                Ok(class) => {
                    let label = class.clone().or_else(|| self.rule.of_archive(&shard.id, &id));
                    let source = Source::Member { archive: archive.clone(), at, length };
                    self.scan.images.push(ImageRef { id, split: self.split, label, source });
                }
                Err(reason) => self.scan.fail(&id, self.split, "label", reason),
            }
        }
    }
}

/// Endings of members that are a class, as text or as a number.
const CLASS: [&str; 2] = ["cls", "class"];
/// Keys of a JSON member that may hold it, the first that is there.
const KEYS: [&str; 4] = ["label", "class", "cls", "category"];
/// A class is no book. Metadata of web pictures take a few kilobytes.
const LONGEST_CLASS: usize = 4 << 10;
const LONGEST_JSON: usize = 1 << 20;

fn content(
    members: &Members,
    (name, (at, length)): &(String, Place),
    most: usize,
) -> Result<Vec<u8>, String> {
    match *length > most as u64 {
        true => {
            Err(format!("{name} is {length} bytes long, and a class or its JSON is not read beyond {most}"))
        }
        false => members.content(*at, *length, most).map_err(|error| format!("{name}: {error}")),
    }
}

impl Sample {
    /// Its own class, where it has one. Errors: what holds it cannot be understood.
    fn class(&self, members: &Members, rule: &LabelRule) -> Result<Option<String>, String> {
        if let Some(class) = &self.class {
            let text = content(members, class, LONGEST_CLASS)?;
            let text = String::from_utf8(text).map_err(|_| format!("{} is no text in UTF-8", class.0))?;
            let text = text.trim();
            return Ok((!text.is_empty()).then(|| text.to_owned()));
        }
        let Some(object) = self.object(members)? else { return Ok(None) };
        let value = match rule {
            LabelRule::Column(column) => object.get(column).map(|value| (column.as_str(), value)),
            _ => KEYS.iter().find_map(|key| Some((*key, object.get(*key)?))),
        };
        match value {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some((_, value @ (Value::Number(_) | Value::Bool(_)))) => Ok(Some(value.to_string())),
            Some((key, _)) => {
                let name = self.json.as_ref().map_or("", |(name, _)| name);
                Err(format!("{name}: `{key}` is neither text nor a number"))
            }
        }
    }

    /// What its JSON member says, where it has one. Errors: it cannot be read, or is no object.
    fn object(&self, members: &Members) -> Result<Option<Map<String, Value>>, String> {
        let Some(json) = &self.json else { return Ok(None) };
        let bytes = content(members, json, LONGEST_JSON)?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Some(object)),
            Ok(_) => Err(format!("{}: it is no JSON object", json.0)),
            Err(error) => Err(format!("{}: {error}", json.0)),
        }
    }
}

impl LabelRule {
    /// The class of a picture whose sample has none.
    fn of_archive(&self, archive: &str, id: &str) -> Option<String> {
        match self {
            LabelRule::Regex(_) => self.label(id),
            // Below the archive: its own name is no class.
            LabelRule::TopFolder => self.label(&id[archive.len() + 1..]),
            LabelRule::Folder | LabelRule::Column(_) | LabelRule::None => None,
        }
    }
}

/// What WebDataset keeps for itself: `__info__`, and folders of such a name.
fn is_meta(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or(name);
    first.len() >= 4 && first.starts_with("__") && first.ends_with("__")
}

/// A member's name, `/`-separated, without `.` parts. Errors: kind of failure and reason.
fn clean(name: &[u8]) -> Result<String, (&'static str, &'static str)> {
    let name = std::str::from_utf8(name).ok().filter(|name| !name.contains('\0'));
    let name =
        name.ok_or(("name", "the name is not valid UTF-8; rename the file and write the archive again"))?;
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if name.starts_with('/') || parts.contains(&"..") {
        return Err((
            "outside",
            "the name leads out of the archive; write the archive from the folder of its files",
        ));
    }
    match parts.is_empty() {
        true => Err(("name", "the member has no name")),
        false => Ok(parts.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_endings() {
        for path in ["a.tar", "a.TAR", "a.tar.gz", "a.tgz", "a.tar.zst", "a-1.2.tar.xz"] {
            assert!(is_archive(Path::new(path)), "{path}");
        }
        for path in ["a.gz", "a", "tar", ".tar", "a.tar.jpg", "a.zip", "a.json.gz"] {
            assert!(!is_archive(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(clean(b"./a//b/./1.jpg").as_deref(), Ok("a/b/1.jpg"));
        assert_eq!(clean("größe/..b.jpg".as_bytes()).as_deref(), Ok("größe/..b.jpg"));
        for (name, kind) in [
            (&b"/etc/1.jpg"[..], "outside"),
            (b"a/../../1.jpg", "outside"),
            (b"..", "outside"),
            (b"a\xff.jpg", "name"),
            (b"a\0.jpg", "name"),
            (b"./", "name"),
            (b"", "name"),
        ] {
            assert_eq!(clean(name).unwrap_err().0, kind, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn what_webdataset_keeps_for_itself_is_no_sample() {
        assert!(is_meta("__info__") && is_meta("__a__/1.jpg"));
        assert!(!is_meta("__a") && !is_meta("___") && !is_meta("a/__b__") && !is_meta("__MACOSX/1.jpg"));
    }
}
