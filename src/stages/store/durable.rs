//! The local file system as Delta's object store, with what Delta's own leaves out: files that survive a power cut, and the
//! checksum of each.
//!
//! Order is all. A file is written under another name, flushed to the disk (`fsync`), given its name, and then its folder is
//! flushed, which is where names are kept; only then does the call return. Delta puts the log entry after the files that it
//! names, so on the disk an entry never stands before them, and no file has its name before its content. A power cut
//! therefore leaves the table before a commit or after it. Without this, a file system may keep the name of a log entry and
//! lose its bytes, and an empty entry makes the whole table unreadable.
//!
//! Each step leans on the one before it:
//!
//! 1. Folders that are missing are made, each flushed into the one above it: else all that is in them has no way to it.
//! 2. The content is flushed before the name is given: a name may reach the disk at any time, and must find its bytes there.
//! 3. The name is flushed before the call returns: for a data file before the entry that names it is begun, for an entry before
//!    the run says that it is stored. Files that are written elsewhere ([`rewrite`](super::rewrite)) pass through [`seal`].
//! 4. The checksum comes last, in the same way. Without it a file still counts.
//!
//! Removals are not flushed. A file that comes back is named by no entry that counts, and the next clean-up removes it again.
//! `tests/it/power_loss.rs` replays the system calls of a process that writes a table, on disks that lose what was not flushed.
//!
//! Temporary files stand in the table's folder and begin with a dot, so that no reader and no clean-up takes them for more.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use deltalake::logstore::object_store::local::LocalFileSystem;
use deltalake::logstore::object_store::path::Path as Location;
use deltalake::logstore::object_store::{
    self, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, UploadPart,
};
use futures::FutureExt;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::stages::report::{folder_of, temporary_in};

/// The folder of the checksums, in the table's. Delta's readers and its vacuum pass over names that begin like this one.
pub(super) const CHECKSUMS: &str = "_checksums";

/// Local files; writes are durable once they return. Reads are those of `inner`.
#[derive(Debug)]
pub(super) struct DurableStore {
    inner: LocalFileSystem,
}

impl DurableStore {
    pub(super) fn new() -> DurableStore {
        DurableStore { inner: LocalFileSystem::new() }
    }
}

impl fmt::Display for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("durable local files")
    }
}

#[async_trait]
impl ObjectStore for DurableStore {
    async fn put_opts(
        &self,
        location: &Location,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let path = self.inner.path_to_filesystem(location)?;
        let put = move || {
            let mut file = start(&path)?;
            let mut hash = Sha256::new();
            for part in &payload {
                hash.update(part);
                file.write_all(part)?;
            }
            finish(file, &path, matches!(opts.mode, PutMode::Create), hash)
        };
        blocking(put).await.map_err(|error| failed(location, error))?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        _opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        let started = path.clone();
        let file = blocking(move || start(&started)).await.map_err(|error| failed(location, error))?;
        let file = Arc::new(Mutex::new(Some(file)));
        Ok(Box::new(Upload { location: location.clone(), path, file, offset: 0, hash: Sha256::new() }))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &Location,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Location>>,
    ) -> BoxStream<'static, object_store::Result<Location>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Location>,
        offset: &Location,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Location,
        to: &Location,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(
        &self,
        from: &Location,
        to: &Location,
        options: RenameOptions,
    ) -> object_store::Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// A file that comes in parts, which may arrive out of order.
#[derive(Debug)]
struct Upload {
    location: Location,
    path: PathBuf,
    file: Arc<Mutex<Option<NamedTempFile>>>,
    offset: u64,
    hash: Sha256,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        // Parts are handed over in order, whenever they are then written.
        data.iter().for_each(|part| self.hash.update(part));
        let offset = self.offset;
        self.offset += data.content_length() as u64;
        let (file, location) = (self.file.clone(), self.location.clone());
        let write = move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let file = file.as_mut().ok_or_else(ended)?;
            file.seek(SeekFrom::Start(offset))?;
            data.iter().try_for_each(|part| file.write_all(part))
        };
        async move { blocking(write).await.map_err(|error| failed(&location, error)) }.boxed()
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let (file, path, hash) = (self.file.clone(), self.path.clone(), std::mem::take(&mut self.hash));
        let complete = move || {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(ended)?;
            finish(file, &path, false, hash)
        };
        blocking(complete).await.map_err(|error| failed(&self.location, error))?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        drop(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }
}

fn ended() -> io::Error {
    io::Error::other("the upload has already ended")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(location: &Location, error: io::Error) -> object_store::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            object_store::Error::AlreadyExists { path: location.to_string(), source: error.into() }
        }
        _ => object_store::Error::Generic { store: "local", source: error.into() },
    }
}

/// The table's folder, of a file in it, in its log or in its change feed.
fn table_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new("."));
    match folder.file_name() {
        Some(name) if name == "_delta_log" || name == "_change_data" => folder.parent().unwrap_or(folder),
        _ => folder,
    }
}

/// Opens a temporary file for `path`, and makes the folders that are missing.
fn start(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    temporary_in(table_of(path))
}

/// Puts a complete file in its place, and beside the table's other checksums its own; all on the disk when it returns.
fn finish(file: NamedTempFile, path: &Path, must_be_new: bool, hash: Sha256) -> io::Result<()> {
    file.as_file().sync_all()?;
    match must_be_new {
        true => file.persist_noclobber(path).map_err(|error| error.error)?,
        false => file.persist(path).map_err(|error| error.error)?,
    };
    sync_folder(path.parent().unwrap_or(Path::new(".")))?;
    keep_checksum(path, hash)
}

/// The same for a file that is complete and has its name already.
pub(super) fn seal(path: &Path) -> io::Result<()> {
    let hash = hash_of(path)?;
    File::open(path)?.sync_all()?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))?;
    keep_checksum(path, hash)
}

fn keep_checksum(path: &Path, hash: Sha256) -> io::Result<()> {
    let Some(checksum) = checksum_file(path) else { return Ok(()) };
    let table = table_of(path);
    let name = path.strip_prefix(table).unwrap_or(path);
    let folder = table.join(CHECKSUMS);
    make_folder(&folder)?;
    let mut file = temporary_in(table)?;
    // As `sha256sum` writes and checks them.
    writeln!(file, "{}  {}", hex::encode(hash.finalize()), name.display())?;
    file.as_file().sync_all()?;
    file.persist(&checksum).map_err(|error| error.error)?;
    sync_folder(&folder)
}

/// Makes a folder and those above it that are missing, and flushes each new name: what is put into a folder that nobody finds
/// after a power cut is lost with it.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::create_dir(folder) {
        // Another process made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(above)
}

/// Flushes the names in a folder to the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot flush a folder; they keep names without being asked.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::EBADF)) => {}
        synced => synced?,
    }
    Ok(())
}

/// Where the checksum of one of the table's files is kept. `None` for `_last_checkpoint`, which is written over and over, and
/// which the table can do without.
pub(super) fn checksum_file(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let is_kept = name.ends_with(".parquet") || name.ends_with(".json");
    is_kept.then(|| table_of(path).join(CHECKSUMS).join(format!("{name}.sha256")))
}

/// The latest version whose log entry was written, as the checksums in the table's folder `dir` have it: an entry is on the disk
/// before its checksum is, so one that is not in the log has been lost.
pub(super) fn last_written(dir: &Path) -> io::Result<Option<u64>> {
    let entries = match fs::read_dir(dir.join(CHECKSUMS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let version = |name: &str| name.strip_suffix(ENTRY_CHECKSUM)?.parse().ok();
    let versions = entries.map(|entry| Ok(version(&entry?.file_name().to_string_lossy())));
    Ok(versions.collect::<io::Result<Vec<Option<u64>>>>()?.into_iter().flatten().max())
}

/// The end of the name of a log entry's checksum.
pub(super) const ENTRY_CHECKSUM: &str = ".json.sha256";

/// Whether a file's bytes are those that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Right,
    Wrong,
    /// Written by an imagedex that kept none, or by another program.
    None,
}

/// Reads a file as a whole and compares it with its checksum.
pub(super) fn check_sum(path: &Path) -> io::Result<Sum> {
    let Some(sidecar) = checksum_file(path) else { return Ok(Sum::None) };
    let stored = match fs::read(&sidecar) {
        Ok(stored) => stored,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Sum::None),
        Err(error) => return Err(error),
    };
    let is_hash = |hash: &&[u8]| hash.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // One that is itself damaged says nothing.
    let Some(stored) = stored.get(..64).filter(is_hash) else { return Ok(Sum::None) };
    Ok(if hex::encode(hash_of(path)?.finalize()).as_bytes() == stored { Sum::Right } else { Sum::Wrong })
}

fn hash_of(path: &Path) -> io::Result<Sha256> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash),
            read => hash.update(&buffer[..read]),
        }
    }
}
