//! A bucket: what is in it, and the bytes of what is in it.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, WriteMultipart,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{as_io, short};
use super::url::Scheme;
use super::{ObjectError, ObjectUrl, credentials};

/// How often something is begun again that broke off while its answer came: not all of that is tried again by `object_store`.
const TRIES: usize = 3;

fn is_broken_off(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. }) && !error.to_string().contains("max_retries")
}

/// Requests at a time where many objects are asked for: a store takes some ten to a hundred milliseconds for each.
pub(super) const AT_A_TIME: usize = 64;

/// Larger objects are fetched and sent in parts of this size, each with its own retries and time limit.
pub(super) const PART: u64 = 8 << 20;

/// Parts of an upload on their way.
const PARTS_AT_A_TIME: usize = 4;

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// What the store names the content by; another content has another.
    pub e_tag: Option<String>,
    pub changed: DateTime<Utc>,
}

impl From<ObjectMeta> for Found {
    fn from(meta: ObjectMeta) -> Found {
        Found {
            key: meta.location.to_string(),
            size: meta.size,
            e_tag: meta.e_tag,
            changed: meta.last_modified,
        }
    }
}

/// One for each bucket that is used: its connections, and whether it still answers.
pub struct Bucket {
    url: ObjectUrl,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) threads: Handle,
    trouble: Mutex<Option<String>>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.url)
    }
}

type Open = HashMap<(Scheme, Arc<str>), Arc<Bucket>>;

/// The buckets of this process, and the threads that their requests run on.
static OPEN: Mutex<Option<(Handle, Open)>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bucket {
    /// The bucket of `url`; the same one each time. Nothing is asked of it yet.
    ///
    /// # Errors
    /// Settings that are missing, such as the account of `az://`.
    pub fn of(url: &ObjectUrl) -> Result<Arc<Bucket>, ObjectError> {
        let mut open = locked(&OPEN);
        let (threads, buckets) = match open.take() {
            Some(open) => open,
            None => (threads().map_err(|error| settings(url, &error))?, Open::new()),
        };
        let (threads, buckets) = open.insert((threads, buckets));
        let name = (url.scheme, url.bucket.clone());
        if let Some(bucket) = buckets.get(&name) {
            return Ok(bucket.clone());
        }
        let bucket = Arc::new(Bucket {
            url: ObjectUrl { key: String::new(), ..url.clone() },
            store: credentials::open(url)?,
            threads: threads.clone(),
            trouble: Mutex::new(None),
        });
        buckets.insert(name, bucket.clone());
        Ok(bucket)
    }

    /// Why the bucket is no longer asked: a read failed for good, and not because the object is gone or not ours to read.
    pub fn trouble(&self) -> Option<String> {
        locked(&self.trouble).clone()
    }

    fn note(&self, error: &object_store::Error) {
        use object_store::Error::*;
        if !matches!(error, NotFound { .. } | PermissionDenied { .. } | InvalidPath { .. }) {
            locked(&self.trouble).get_or_insert_with(|| short(error));
        }
    }

    /// Whether the bucket still shows what is in it: asked where an object may not be read, as credentials may have run out.
    pub fn answers(&self, folder: &ObjectUrl) -> Result<(), ObjectError> {
        let (store, prefix) = (self.store.clone(), key(&folder.key));
        let first = async move { store.list(Some(&prefix)).try_next().await };
        self.wait(first).map(drop).map_err(|error| ObjectError::of(folder, &error))
    }

    /// Runs requests on the bucket's threads, and waits for what they come to.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> object_store::Result<T> {
        self.begin(work).recv().unwrap_or_else(|_| Err(broken_off()))
    }

    fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Receiver<T> {
        let (send, receive) = sync_channel(1);
        self.threads.spawn(async move {
            // Nobody may want it any more.
            let _ = send.send(work.await);
        });
        receive
    }

    /// All objects of a folder, at any depth, in the order of their keys.
    pub fn list(&self, folder: &ObjectUrl) -> Result<Vec<Found>, ObjectError> {
        let (store, prefix) = (self.store.clone(), key(&folder.key));
        let list = async move {
            let prefix = Some(&prefix).filter(|prefix| !prefix.as_ref().is_empty());
            let mut tries = 0;
            loop {
                tries += 1;
                match store.list(prefix).map_ok(Found::from).try_collect::<Vec<_>>().await {
                    Err(error) if tries < TRIES && is_broken_off(&error) => {}
                    listed => break listed,
                }
            }
        };
        let mut found = self.wait(list).map_err(|error| ObjectError::of(folder, &error))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// What is known of each of these objects without reading it, in their order; `None` where it is not there.
    pub fn look_up(&self, keys: Vec<String>) -> Result<Vec<Option<Found>>, ObjectError> {
        let store = self.store.clone();
        let look_up = stream::iter(keys.into_iter().map(move |name| {
            let store = store.clone();
            async move {
                match store.head(&key(&name)).await {
                    Ok(meta) => Ok(Some(Found::from(meta))),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }));
        self.wait(look_up.buffered(AT_A_TIME).try_collect())
            .map_err(|error| ObjectError::of(&self.url, &error))
    }

    /// The first bytes of each of these objects, in their order; nothing where they cannot be read.
    pub fn heads(&self, keys: Vec<String>, length: u64) -> Vec<Option<Bytes>> {
        let (store, count) = (self.store.clone(), keys.len());
        let heads = stream::iter(keys.into_iter().map(move |name| {
            let store = store.clone();
            async move { Ok(store.get_range(&key(&name), 0..length).await.ok()) }
        }));
        self.wait(heads.buffered(AT_A_TIME).try_collect()).unwrap_or_else(|_| vec![None; count])
    }

    /// The bytes of an object. `size` where it is known, so that a large one is fetched in parts.
    pub fn read(self: &Arc<Self>, name: &str, size: Option<u64>) -> io::Result<Bytes> {
        let (bucket, name) = (self.clone(), name.to_owned());
        self.begin(async move { bucket.fetch(&name, size).await })
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("broken off")))
    }

    /// The same, for the bucket's threads.
    pub(super) async fn fetch(&self, name: &str, size: Option<u64>) -> io::Result<Bytes> {
        let url = ObjectUrl { key: name.to_owned(), ..self.url.clone() };
        let mut whole = Vec::new();
        self.pieces(&url, size, |piece| {
            whole.extend_from_slice(&piece);
            Ok(())
        })
        .await?;
        Ok(whole.into())
    }

    /// Hands an object to `f`, piece by piece.
    pub(crate) async fn pieces(
        &self,
        url: &ObjectUrl,
        size: Option<u64>,
        mut f: impl FnMut(Bytes) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(reason) = self.trouble() {
            return Err(io::Error::other(format!("{}: {reason}", self.url)));
        }
        let failed = |error: object_store::Error| {
            self.note(&error);
            as_io(url, &error)
        };
        let key = key(&url.key);
        let mut parts: Vec<Option<Range<u64>>> = vec![None];
        if let Some(size) = size.filter(|size| *size > PART) {
            parts = (0..size.div_ceil(PART)).map(|i| Some(i * PART..((i + 1) * PART).min(size))).collect();
        }
        // All parts are of one content: it may be written over meanwhile.
        let mut e_tag = None;
        for range in parts {
            let mut tries = 0;
            let bytes = loop {
                let options = GetOptions {
                    range: range.clone().map(GetRange::Bounded),
                    if_match: e_tag.clone(),
                    ..GetOptions::default()
                };
                let got = match self.store.get_opts(&key, options).await {
                    Ok(got) => {
                        e_tag = e_tag.or_else(|| got.meta.e_tag.clone().filter(|_| range.is_some()));
                        got.bytes().await
                    }
                    Err(error) => Err(error),
                };
                tries += 1;
                match got {
                    Err(error) if tries < TRIES && is_broken_off(&error) => continue,
                    got => break got.map_err(failed)?,
                }
            };
            f(bytes)?;
        }
        Ok(())
    }

    /// Fetches an object into a file that is open for writing.
    pub fn download(self: &Arc<Self>, url: &ObjectUrl, size: u64, file: std::fs::File) -> io::Result<()> {
        let (bucket, url) = (self.clone(), url.clone());
        let fetch = async move {
            let mut file = file;
            bucket.pieces(&url, Some(size), |piece| io::Write::write_all(&mut file, &piece)).await
        };
        self.begin(fetch).recv().unwrap_or_else(|_| Err(io::Error::other("broken off")))
    }

    /// Writes an object, over one that is there.
    pub fn put(&self, url: &ObjectUrl, bytes: impl Into<Bytes>) -> Result<(), ObjectError> {
        let (store, key, payload) = (self.store.clone(), key(&url.key), PutPayload::from(bytes.into()));
        let put = async move { store.put(&key, payload).await };
        self.wait(put).map(drop).map_err(|error| ObjectError::of(url, &error))
    }

    /// Writes an object that must not be there yet. False, and nothing is written, where it is; also where it is this very one,
    /// which arrived when its answer did not.
    pub fn create(&self, url: &ObjectUrl, bytes: impl Into<Bytes>) -> Result<bool, ObjectError> {
        let (store, key, payload) = (self.store.clone(), key(&url.key), PutPayload::from(bytes.into()));
        let put = async move {
            let mut tries = 0;
            loop {
                tries += 1;
                match store.put_opts(&key, payload.clone(), PutOptions::from(PutMode::Create)).await {
                    Err(error) if tries < TRIES && is_broken_off(&error) => {}
                    put => break put,
                }
            }
        };
        match self.wait(put) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(ObjectError::of(url, &error)),
        }
    }

    /// Removes objects; one that is not there is none to remove.
    pub fn remove(&self, urls: &[ObjectUrl]) -> Result<(), ObjectError> {
        let store = self.store.clone();
        let keys: Vec<Key> = urls.iter().map(|url| key(&url.key)).collect();
        let remove = async move {
            for key in keys {
                match store.delete(&key).await {
                    Err(object_store::Error::NotFound { .. }) => {}
                    removed => removed?,
                }
            }
            Ok(())
        };
        self.wait(remove).map_err(|error| ObjectError::of(&self.url, &error))
    }

    /// Sends a file, in parts where it is large: then it is there as a whole or not at all.
    pub fn send(
        &self,
        file: &Path,
        url: &ObjectUrl,
        options: PutOptions,
    ) -> io::Result<Result<(), ObjectError>> {
        let (store, key) = (self.store.clone(), key(&url.key));
        if std::fs::metadata(file)?.len() <= PART {
            let payload = PutPayload::from(std::fs::read(file)?);
            let put = async move { store.put_opts(&key, payload, options).await };
            return Ok(self.wait(put).map(drop).map_err(|error| ObjectError::of(url, &error)));
        }
        let mut file = std::fs::File::open(file)?;
        let send = async move {
            let options =
                PutMultipartOptions { attributes: options.attributes, ..PutMultipartOptions::default() };
            let upload = store.put_multipart_opts(&key, options).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART as usize);
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = match upload.wait_for_capacity(PARTS_AT_A_TIME).await {
                    Ok(()) => io::Read::read(&mut file, &mut buffer).map_err(generic),
                    Err(error) => Err(error),
                };
                match read {
                    // Takes back what has arrived if it fails.
                    Ok(0) => break upload.finish().await.map(drop),
                    Ok(count) => upload.write(&buffer[..count]),
                    Err(error) => {
                        // Else the parts that arrived would lie about, unseen and paid for.
                        let _ = upload.abort().await;
                        break Err(error);
                    }
                }
            }
        };
        Ok(self.wait(send).map_err(|error| ObjectError::of(url, &error)))
    }
}

fn generic(error: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "upload", source: error.into() }
}

/// For keys that were parsed, or come from a listing.
fn key(name: &str) -> Key {
    Key::parse(name).unwrap_or_default()
}

fn broken_off() -> object_store::Error {
    object_store::Error::Generic { store: "requests", source: "they were broken off".into() }
}

fn settings(url: &ObjectUrl, error: &io::Error) -> ObjectError {
    ObjectError::Settings { url: url.to_string(), reason: error.to_string() }
}

/// Two threads for all requests. They live as long as the process.
fn threads() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("objects")
        .enable_all()
        .build()?;
    Ok(Box::leak(Box::new(runtime)).handle().clone())
}

/// Bytes of objects that may be fetched before somebody takes them.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// In KiB.
    room: Arc<Semaphore>,
    most: u32,
}

impl Ahead {
    /// Up to so many bytes; a larger object waits until it is alone.
    pub fn of(bytes: u64) -> Ahead {
        let most = (bytes >> 10).clamp(1, 1 << 20) as u32;
        Ahead { room: Arc::new(Semaphore::new(most as usize)), most }
    }

    /// Begins to fetch an object.
    pub fn fetch(&self, bucket: &Arc<Bucket>, name: &str, size: Option<u64>) -> Early {
        let room = self.room.clone();
        let needed = size.map_or(1024, |size| (size >> 10) + 1).min(u64::from(self.most)) as u32;
        let (from, name) = (bucket.clone(), name.to_owned());
        Early(bucket.begin(async move {
            let permit = room.acquire_many_owned(needed).await.map_err(io::Error::other)?;
            Ok((from.fetch(&name, size).await?, permit))
        }))
    }
}

/// An object that is on its way.
pub struct Early(Receiver<io::Result<(Bytes, OwnedSemaphorePermit)>>);

impl Early {
    /// Waits for it. Its room is free again when the second value is dropped.
    pub fn take(self) -> io::Result<(Bytes, OwnedSemaphorePermit)> {
        self.0.recv().unwrap_or_else(|_| Err(io::Error::other("broken off")))
    }
}
