//! Chunks → the server, by several senders at once. Nothing is lost, nothing is counted twice.
//!
//! Each picture belongs to one sender, which has at most one request under way and ends it, retries included, before it
//! begins the next: so the last word on a picture is the last. The reader waits where all senders are busy. What a newcomer
//! would get wrong: HTTP status 200 says nothing about the documents; each has a status of its own, and each is read.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Deserialize;

use super::bulk::{Action, Chunk, ChunkSize, Encoder};
use super::client::{Client, Kind, Method, NoAnswer};
use super::dialect;
use super::retry::{self, ServerError, Verdict};
use crate::engines::{EngineError, Rejected};
use crate::interrupt;
use crate::stages::decode::Picture;

/// What was sent, and what became of it: `sent = indexed + deleted + rejected`, checked when the senders end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BulkCounts {
    /// Actions given to the senders.
    pub sent: u64,
    pub indexed: u64,
    /// Documents deleted, or not there any more.
    pub deleted: u64,
    /// Actions that were sent again, once for each time.
    pub retried: u64,
    pub requests: u64,
    pub bytes: u64,
    /// From the first document handed over to the last one acknowledged.
    pub seconds: f64,
    pub rejected: Vec<Rejected>,
}

/// Where senders and reader meet.
#[derive(Debug)]
struct Shared {
    counts: Mutex<BulkCounts>,
    size: Mutex<ChunkSize>,
    /// The first thing that ends the load.
    stopped: Mutex<Option<EngineError>>,
}

/// A panic of a sender is caught where it is joined; what it counted until then stands.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Senders at work, and the chunk that is being filled for each.
#[derive(Debug)]
pub struct Senders {
    client: Client,
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
    encoder: Encoder,
    started: Instant,
}

#[derive(Debug)]
struct Lane {
    open: Chunk,
    queue: Sender<Chunk>,
    thread: JoinHandle<()>,
}

impl Senders {
    /// Starts `count` senders to `index`, whose requests grow up to `most_bytes`.
    pub fn start(client: &Client, index: &str, encoder: Encoder, count: usize, most_bytes: usize) -> Senders {
        let shared = Arc::new(Shared {
            counts: Mutex::default(),
            size: Mutex::new(ChunkSize::new(most_bytes)),
            stopped: Mutex::default(),
        });
        // Only what is needed of the answer, in the order of the actions.
        let index = dialect::loading_alias(index);
        let path = format!("{index}/_bulk?require_alias=true&filter_path=error,items.*.status,items.*.error");
        let lanes = (0..count).map(|_| {
            let (queue, chunks) = bounded(1);
            let worker = Worker { client: client.clone(), path: path.clone(), shared: Arc::clone(&shared) };
            Lane { open: Chunk::default(), queue, thread: std::thread::spawn(move || worker.run(&chunks)) }
        });
        Senders { client: client.clone(), lanes: lanes.collect(), shared, encoder, started: Instant::now() }
    }

    /// Hands over a document; waits where the senders are behind.
    pub fn index(
        &mut self,
        picture: &Picture,
        norm: f32,
        vector: &[f32],
        number: u64,
    ) -> Result<(), EngineError> {
        let encoder = self.encoder;
        self.add(&picture.id, |chunk| chunk.index(&encoder, picture, norm, vector, number))
    }

    /// Hands over a deletion.
    pub fn delete(&mut self, id: &str) -> Result<(), EngineError> {
        self.add(id, |chunk| chunk.delete(id))
    }

    fn add(&mut self, id: &str, write: impl FnOnce(&mut Chunk)) -> Result<(), EngineError> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
        let which = (hash % self.lanes.len() as u64) as usize;
        if self.lanes[which].open.holds(id) {
            self.flush(which)?;
        }
        let open = &mut self.lanes[which].open;
        write(open);
        let is_full = lock(&self.shared.size).is_full(open);
        if is_full { self.flush(which) } else { Ok(()) }
    }

    fn flush(&mut self, which: usize) -> Result<(), EngineError> {
        let lane = &mut self.lanes[which];
        let next = Chunk::as_large_as(&lane.open);
        let chunk = std::mem::replace(&mut lane.open, next);
        lock(&self.shared.counts).sent += chunk.actions.len() as u64;
        // A sender that stopped has said why.
        if lane.queue.send(chunk).is_err() || lock(&self.shared.stopped).is_some() {
            return Err(self.why_stopped());
        }
        Ok(())
    }

    fn why_stopped(&self) -> EngineError {
        lock(&self.shared.stopped)
            .take()
            .unwrap_or_else(|| self.client.failed("a sender ended early; this is a bug, please report it"))
    }

    /// Waits until all is sent and answered, and gives the counts.
    pub fn finish(mut self) -> Result<BulkCounts, EngineError> {
        for which in 0..self.lanes.len() {
            if !self.lanes[which].open.is_empty() {
                self.flush(which)?;
            }
        }
        for lane in std::mem::take(&mut self.lanes) {
            drop(lane.queue);
            if lane.thread.join().is_err() {
                return Err(self.why_stopped());
            }
        }
        if let Some(error) = lock(&self.shared.stopped).take() {
            return Err(error);
        }
        let counts =
            BulkCounts { seconds: self.started.elapsed().as_secs_f64(), ..lock(&self.shared.counts).clone() };
        let BulkCounts { sent, indexed, deleted, ref rejected, .. } = counts;
        if sent != indexed + deleted + rejected.len() as u64 {
            return Err(self.client.failed(format!(
                "the books do not close: {sent} sent, but {indexed} indexed + {deleted} deleted + {} rejected",
                rejected.len()
            )));
        }
        Ok(counts)
    }
}

/// One sender.
struct Worker {
    client: Client,
    path: String,
    shared: Arc<Shared>,
}

/// The answer to a bulk request; one entry for each action, in their order.
#[derive(Debug, Deserialize)]
pub struct BulkAnswer {
    #[serde(default)]
    pub items: Vec<HashMap<String, ItemAnswer>>,
}

#[derive(Debug, Deserialize)]
pub struct ItemAnswer {
    pub status: u16,
    #[serde(default)]
    pub error: Option<ServerError>,
}

impl Worker {
    fn run(&self, chunks: &Receiver<Chunk>) {
        for chunk in chunks {
            // After a stop the queue is drained, so that the reader never waits for ever.
            if lock(&self.shared.stopped).is_some() {
                continue;
            }
            if let Err(error) = self.deliver(chunk) {
                lock(&self.shared.stopped).get_or_insert(error);
            }
        }
    }

    /// Sends a chunk until each of its actions is done or rejected.
    fn deliver(&self, mut chunk: Chunk) -> Result<(), EngineError> {
        let mut attempt = 0;
        let mut progress = Instant::now();
        loop {
            if interrupt::is_set() {
                return Err(EngineError::Interrupted);
            }
            if lock(&self.shared.stopped).is_some() {
                return Ok(());
            }
            let started = Instant::now();
            let body = Bytes::from(std::mem::take(&mut chunk.body));
            let answer = self.client.once(Method::Post, &self.path, Kind::Lines, Some(body.clone()));
            chunk.body = body.into();
            {
                let mut counts = lock(&self.shared.counts);
                counts.requests += 1;
                counts.bytes += chunk.body.len() as u64;
            }
            let (again, reason) = match self.read(&chunk, answer)? {
                Read::Busy(reason) => ((0..chunk.actions.len()).collect(), reason),
                Read::TooLarge if chunk.actions.len() > 1 => {
                    let half = chunk.actions.len() / 2;
                    let all: Vec<usize> = (0..chunk.actions.len()).collect();
                    self.deliver(chunk.subset(&all[..half]))?;
                    chunk = chunk.subset(&all[half..]);
                    continue;
                }
                Read::TooLarge => {
                    let reason = "HTTP status 413: one document is larger than the server takes".to_owned();
                    self.reject(&chunk.actions[0], reason);
                    return Ok(());
                }
                Read::Answered { again, reason } => (again, reason),
            };
            if again.is_empty() {
                if attempt == 0 {
                    let seconds = started.elapsed().as_secs_f64();
                    lock(&self.shared.size).sent(chunk.actions.len(), chunk.body.len(), seconds);
                }
                return Ok(());
            }
            if again.len() < chunk.actions.len() {
                progress = Instant::now();
            }
            lock(&self.shared.counts).retried += again.len() as u64;
            chunk = chunk.subset(&again);
            attempt += 1;
            self.client.wait(attempt, progress, &reason)?;
        }
    }

    /// Counts what is done, keeps what is rejected, and says what has to be sent again.
    fn read(
        &self,
        chunk: &Chunk,
        answer: Result<super::client::Reply, NoAnswer>,
    ) -> Result<Read, EngineError> {
        let reply = match answer {
            Ok(reply) => reply,
            Err(NoAnswer(reason)) => return Ok(Read::Busy(reason)),
        };
        if reply.status == 413 {
            return Ok(Read::TooLarge);
        }
        match reply.verdict() {
            Verdict::Done => {}
            Verdict::Retry(reason) => return Ok(Read::Busy(reason)),
            Verdict::Stop(reason) | Verdict::Reject(reason) => return Err(self.client.failed(reason)),
        }
        // A body that was cut off, or that a proxy made, counts as none.
        let items = match serde_json::from_slice::<BulkAnswer>(&reply.body) {
            Ok(answer)
                if answer.items.len() == chunk.actions.len()
                    && answer.items.iter().all(|item| item.len() == 1) =>
            {
                answer.items
            }
            Ok(answer) => {
                let (sent, answered) = (chunk.actions.len(), answer.items.len());
                return Ok(Read::Busy(format!("{sent} documents were sent, {answered} were answered")));
            }
            Err(error) => {
                return Ok(Read::Busy(format!("the answer to a bulk request is not JSON: {error}")));
            }
        };
        let (mut again, mut why) = (Vec::new(), String::new());
        let (mut indexed, mut deleted) = (0, 0);
        for (i, (action, item)) in chunk.actions.iter().zip(items).enumerate() {
            let Some(item) = item.into_values().next() else { continue };
            match retry::document(self.client.product(), action.deletes, item.status, item.error.as_ref()) {
                Verdict::Done if action.deletes => deleted += 1,
                Verdict::Done => indexed += 1,
                Verdict::Retry(reason) => {
                    again.push(i);
                    why = reason;
                }
                Verdict::Reject(reason) => self.reject(action, reason),
                Verdict::Stop(reason) => return Err(self.client.failed(reason)),
            }
        }
        let mut counts = lock(&self.shared.counts);
        counts.indexed += indexed;
        counts.deleted += deleted;
        Ok(Read::Answered { again, reason: why })
    }

    fn reject(&self, action: &Action, reason: String) {
        tracing::debug!("{}: {reason}", action.id.escape_debug());
        lock(&self.shared.counts).rejected.push(Rejected { id: action.id.clone(), reason });
    }
}

/// What an answer means for its chunk.
enum Read {
    /// Nothing was done, or nobody knows.
    Busy(String),
    TooLarge,
    /// Actions to send again, and why.
    Answered {
        again: Vec<usize>,
        reason: String,
    },
}

impl BulkCounts {
    /// Adds what further senders did.
    pub fn add(&mut self, other: BulkCounts) {
        self.sent += other.sent;
        self.indexed += other.indexed;
        self.deleted += other.deleted;
        self.retried += other.retried;
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        self.rejected.extend(other.rejected);
    }
}
