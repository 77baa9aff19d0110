//! One load at a time on an alias, whichever machine it runs on: a document that only one run can create.
//!
//! A run that was killed leaves its document behind. Its heartbeat then stands still, and another run takes it over; whoever
//! finds that its own document is gone, or another's, stops before it changes what users see. Clocks of different machines are
//! compared only to suspect a death: it counts once the document stayed the same for a heartbeat, by our own clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Kind, Method};
use crate::engines::EngineError;
use crate::interrupt;

/// The index of all locks.
pub const INDEX: &str = "imagedex-locks";
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a sign of life for so long a run is taken for dead.
const EXPIRY: Duration = Duration::from_secs(30);

/// Held until dropped.
#[derive(Debug)]
pub struct AliasLock {
    client: Client,
    path: String,
    owner: String,
    lost: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Document {
    #[serde(rename = "_seq_no")]
    seq_no: u64,
    #[serde(rename = "_primary_term")]
    primary_term: u64,
    #[serde(rename = "_source")]
    source: Holder,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Holder {
    owner: String,
    host: String,
    process: u32,
    /// Milliseconds since 1970, by the holder's clock.
    heartbeat: u64,
}

impl AliasLock {
    /// Takes the lock of `alias`, or says who has it.
    pub fn take(client: &Client, alias: &str) -> Result<AliasLock, EngineError> {
        make_index(client)?;
        let owner = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let path = format!("{INDEX}/_doc/{alias}");
        let term = match create(client, &format!("{INDEX}/_create/{alias}"), &owner)? {
            Some(term) => term,
            None => take_over(client, &path, alias, &owner)?,
        };
        let (lost, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let beat = Heart {
            client: client.clone(),
            path: path.clone(),
            owner: owner.clone(),
            lost: Arc::clone(&lost),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || beat.run(term));
        Ok(AliasLock { client: client.clone(), path, owner, lost, stop, thread: Some(thread) })
    }

    /// An error if another run has taken over; to be asked before anything that users would see.
    pub fn check(&self) -> Result<(), EngineError> {
        let ours = !self.lost.load(Ordering::SeqCst)
            && self
                .client
                .find::<Document>(&self.path)?
                .is_some_and(|found| found.source.owner == self.owner);
        match ours {
            true => Ok(()),
            false => Err(EngineError::Locked(format!(
                "another run has taken the lock {} over, as this one showed no sign of life for {} s; \
                 this one stops and leaves what users search as it is",
                self.path,
                EXPIRY.as_secs()
            ))),
        }
    }
}

impl Drop for AliasLock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It ends at its next look; a panic in it has been said already.
            let _ = thread.join();
        }
        // A connection may break just now; a server that is away gets no more than a moment, and the lock runs out by itself.
        for _ in 0..3 {
            if self.let_go().is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl AliasLock {
    /// Deletes the document if it is ours: between the look and the deletion nobody else can write it without changing its number.
    fn let_go(&self) -> Result<(), EngineError> {
        let Some(found) = once_read(&self.client, &self.path)? else { return Ok(()) };
        if found.source.owner != self.owner {
            return Ok(());
        }
        let path = format!("{}?if_seq_no={}&if_primary_term={}", self.path, found.seq_no, found.primary_term);
        let reply = self.client.once(Method::Delete, &path, Kind::Json, None);
        match reply.map_err(|error| self.client.failed(error.0))?.error() {
            Some(error) => Err(self.client.failed(error.to_string())),
            None => Ok(()),
        }
    }
}

/// Reads the document with one request: for where there is no time for retries.
fn once_read(client: &Client, path: &str) -> Result<Option<Document>, EngineError> {
    let reply = client.once(Method::Get, path, Kind::Json, None).map_err(|error| client.failed(error.0))?;
    match reply.status {
        200 => reply.parse().map(Some),
        404 => Ok(None),
        status => Err(client.failed(format!("the lock could not be read: HTTP status {status}"))),
    }
}

fn make_index(client: &Client) -> Result<(), EngineError> {
    let body = json!({
        "settings": { "index": { "number_of_shards": 1, "auto_expand_replicas": "0-1", "hidden": true } },
        "mappings": {
            "dynamic": "strict",
            "properties": {
                "owner": { "type": "keyword" },
                "host": { "type": "keyword" },
                "process": { "type": "long" },
                "heartbeat": { "type": "date", "format": "epoch_millis" },
            }
        }
    });
    let reply = client.answer(Method::Put, INDEX, Kind::Json, Some(Bytes::from(body.to_string())))?;
    match reply.error() {
        Some(error) if error.kind != "resource_already_exists_exception" => {
            Err(client.failed(format!("cannot make the index {INDEX}, which holds the locks: {error}")))
        }
        _ => Ok(()),
    }
}

fn holder(owner: &str) -> Value {
    let host = ["HOSTNAME", "COMPUTERNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = host.or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    json!({
        "owner": owner,
        "host": host.as_deref().map_or("unknown", str::trim),
        "process": std::process::id(),
        "heartbeat": now_ms(),
    })
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The document's number and term, by which the next write shows that nobody else wrote.
type Turn = (u64, u64);

fn turn(client: &Client, answer: &Value) -> Result<Turn, EngineError> {
    match (answer["_seq_no"].as_u64(), answer["_primary_term"].as_u64()) {
        (Some(number), Some(term)) => Ok((number, term)),
        _ => Err(client.failed("the lock was written, but the answer has no sequence number")),
    }
}

/// Creates the document; nothing if there is one.
fn create(client: &Client, path: &str, owner: &str) -> Result<Option<Turn>, EngineError> {
    let reply = client.answer(Method::Put, path, Kind::Json, Some(Bytes::from(holder(owner).to_string())))?;
    match reply.status {
        200 | 201 => turn(client, &reply.parse()?).map(Some),
        409 => Ok(None),
        _ => {
            Err(client
                .failed(format!("the lock could not be written: {}", reply.error().unwrap_or_default())))
        }
    }
}

/// Overwrites the document if it still is the one with this number.
fn replace(client: &Client, path: &str, last: Turn, owner: &str) -> Result<Option<Turn>, EngineError> {
    let path = format!("{path}?if_seq_no={}&if_primary_term={}", last.0, last.1);
    create(client, &path, owner)
}

/// Takes the lock of a run that shows no sign of life.
fn take_over(client: &Client, path: &str, alias: &str, owner: &str) -> Result<Turn, EngineError> {
    let held = |by: &Holder| {
        EngineError::Locked(format!(
            "another run (process {} on {}) is loading or promoting {alias}; wait for it, or, if it is dead, for its lock to \
             expire in {} s",
            by.process,
            by.host,
            EXPIRY.as_secs()
        ))
    };
    let Some(found) = client.find::<Document>(path)? else {
        // It was let go just now.
        let taken = create(client, &path.replace("/_doc/", "/_create/"), owner)?;
        return taken.ok_or_else(|| EngineError::Locked(format!("another run is about to load {alias}")));
    };
    // Our own answer may have been lost, and the request tried again.
    if found.source.owner == owner {
        return Ok((found.seq_no, found.primary_term));
    }
    if now_ms().saturating_sub(found.source.heartbeat) < EXPIRY.as_millis() as u64 {
        return Err(held(&found.source));
    }
    tracing::warn!(
        "the lock on {alias} has had no heartbeat for {} s; watching whether its run (process {} on {}) is alive",
        EXPIRY.as_secs(),
        found.source.process,
        found.source.host
    );
    let until = Instant::now() + HEARTBEAT + Duration::from_secs(1);
    while Instant::now() < until {
        if interrupt::is_set() {
            return Err(EngineError::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    replace(client, path, (found.seq_no, found.primary_term), owner)?.ok_or_else(|| held(&found.source))
}

/// The thread that shows that we are alive.
struct Heart {
    client: Client,
    path: String,
    owner: String,
    lost: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Heart {
    fn run(self, mut last: Turn) {
        let mut next = Instant::now() + HEARTBEAT;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + HEARTBEAT;
            let path = format!("{}?if_seq_no={}&if_primary_term={}", self.path, last.0, last.1);
            let body = Bytes::from(holder(&self.owner).to_string());
            // A server that is away is no loss of the lock: `check` asks again before anything is changed.
            let Ok(reply) = self.client.once(Method::Put, &path, Kind::Json, Some(body)) else { continue };
            match reply.status {
                200 | 201 => {
                    last = reply.parse().and_then(|answer| turn(&self.client, &answer)).unwrap_or(last)
                }
                // Our own write whose answer was lost, or another's.
                409 => match once_read(&self.client, &self.path) {
                    Ok(Some(found)) if found.source.owner == self.owner => {
                        last = (found.seq_no, found.primary_term)
                    }
                    Ok(_) => self.lost.store(true, Ordering::SeqCst),
                    Err(_) => {}
                },
                _ => {}
            }
        }
    }
}
