//! The run's side of a cluster: cuts pictures into parts, keeps the cluster busy, checks answers, and hands them over in order.
//!
//! What a newcomer would get wrong: a part whose answer does not come is not one that failed. It may wait for its turn, as Ballista takes
//! waiting queries in no order; or its executor may be stopped, swapping, or cut off, and Ballista waits for it. So once there is nothing
//! new to send, the parts that take much longer than the others are sent once more, and later once more; the first answer counts,
//! the other queries are taken back. When no answer at all comes for long, the run ends.
//!
//! Rows that come twice cannot be stored twice: a part is done once, and chunks are handed over by this thread alone, in commits that are
//! never rebased. So the table needs no application transaction number; a run that is killed asks the table, by id and content
//! hash, what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet};

use super::answer::{EXECUTOR, READY, REFUSED, Row};
use super::job::{Cluster, Trouble, Wanted};
use super::spec::WorkSpec;
use super::{ClusterConfig, ClusterError};
use crate::memory::Shares;
use crate::progress::Progress;
use crate::stages::decode::{Failure, Picture};
use crate::stages::embed::{ChunkRule, Embedded, EmbeddingBatch, Share};
use crate::stages::scan::{Seen, Source};

/// Between two looks at what is running.
const TICK: Duration = Duration::from_millis(100);
/// Before a part that failed is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a scheduler that was there may be away, such as to be started again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the first question to a cluster is waited for before it is asked once more, and then twice as long each time: a model
/// takes some seconds to open.
const GREET_AGAIN: Duration = Duration::from_secs(10);
/// To take back what is still at the cluster when a run ends.
const SETTLE: Duration = Duration::from_secs(3);
/// Parts that may be done ahead of the first that is not, for each part in flight: they wait in memory.
const AHEAD: usize = 4;
/// Queries of a part that are at the cluster at a time.
const COPIES: usize = 3;

/// A cluster that is ready to work for this run.
pub struct Driver {
    cluster: Arc<Cluster>,
    config: ClusterConfig,
    handle: Handle,
    spec: Arc<str>,
    dim: usize,
    described: String,
}

impl Driver {
    /// Waits until some executor has opened the model.
    ///
    /// # Errors
    /// There is no scheduler, or no executor within the limit, or the one that answered would give other vectors. When `stop` is
    /// set, it waits no longer: there will be nothing to do.
    pub fn connect(
        config: &ClusterConfig,
        spec: &WorkSpec,
        handle: &Handle,
        stop: &AtomicBool,
    ) -> Result<Driver, ClusterError> {
        let cluster = Arc::new(Cluster::new(config)?);
        let text: Arc<str> = spec.to_text().into();
        let greeting = handle.block_on(async {
            let greeting = greet(cluster.clone(), config, text.clone(), stop).await;
            cluster.settle(SETTLE).await;
            greeting
        });
        let described = match greeting? {
            Some(runtime) => format!("{} (its first executor: {runtime})", config.address()),
            None => config.address(),
        };
        let (config, handle) = (config.clone(), handle.clone());
        Ok(Driver { cluster, config, handle, spec: text, dim: spec.model.dim, described })
    }

    /// Whether the scheduler answers; if not, why.
    ///
    /// # Errors
    /// The files of TLS.
    pub fn look(config: &ClusterConfig, handle: &Handle) -> Result<Result<(), String>, ClusterError> {
        let cluster = Cluster::new(config)?;
        Ok(handle.block_on(cluster.look()))
    }

    /// What computes, in one line.
    pub fn describe(&self) -> String {
        self.described.clone()
    }

    /// Embeds `images`; `commit` gets chunks in their order, that together hold each picture that could be decoded once, and what
    /// computed them.
    ///
    /// When `stop` is set, what has been answered by then is still committed, and the rest is left for the next run.
    pub fn embed<E: From<ClusterError>>(
        &self,
        images: &[Seen],
        shares: Shares,
        stop: &AtomicBool,
        commit: impl FnMut(EmbeddingBatch, &str) -> Result<(), E>,
    ) -> Result<Embedded, E> {
        let (send, receive) = unbounded_channel();
        let (in_flight, ahead) = room(&self.config, shares, self.dim);
        let parts = (0..images.len()).step_by(self.config.part);
        let parts =
            parts.map(|first| Part::of(first..(first + self.config.part).min(images.len()))).collect();
        let work = Work {
            driver: self,
            images,
            parts,
            in_flight,
            ahead,
            next: 0,
            handed_over: 0,
            queries: 0,
            send,
            receive,
            times: Vec::new(),
            last_answer: Instant::now(),
            away: None,
            trusted: BTreeSet::new(),
            progress: Progress::start("embed", images.len() as u64),
            embedded: Embedded::default(),
        };
        work.run(stop, Chunks::new(ChunkRule::within(shares, self.dim), self.dim, commit))
    }
}

/// Parts in flight, and parts whose rows may be in memory at a time: as configured, or fewer where a budget leaves rows less room.
fn room(config: &ClusterConfig, shares: Shares, dim: usize) -> (usize, usize) {
    let in_flight = config.in_flight;
    if shares.rows >= Shares::default().rows {
        return (in_flight, AHEAD * in_flight);
    }
    let most = (shares.rows(dim) / config.part).max(2);
    if most < in_flight {
        tracing::warn!("`memory` leaves room for the rows of {most} parts: no more are in flight at a time");
    }
    (in_flight.min(most), most.min(AHEAD * in_flight))
}

/// Asks for nothing but an answer: what the executor that gives it computes with.
///
/// It asks again while it waits: whoever got the question may have been stopped or cut off since.
async fn greet(
    cluster: Arc<Cluster>,
    config: &ClusterConfig,
    spec: Arc<str>,
    stop: &AtomicBool,
) -> Result<Option<String>, ClusterError> {
    let started = Instant::now();
    let none =
        || ClusterError::NoExecutor { address: config.address(), seconds: started.elapsed().as_secs() };
    // Dropped, it takes back what is still asked.
    let mut asked = JoinSet::new();
    let mut again = Duration::ZERO;
    let mut failures = 0;
    let mut said = false;
    loop {
        if started.elapsed() >= again {
            asked.spawn(cluster.clone().ask(vec![(0, String::new())], spec.clone()));
            again = (2 * again).max(GREET_AGAIN);
        }
        let answered = tokio::time::timeout(TICK, asked.join_next()).await;
        match answered {
            Ok(Some(Ok(Ok(rows)))) => {
                let row = rows.into_values().next().ok_or_else(none)?;
                return match row.kind.as_deref() {
                    Some(READY) => Ok(row.reason),
                    _ => Err(ClusterError::Refused {
                        executor: row.executor,
                        reason: row.reason.unwrap_or_default(),
                    }),
                };
            }
            Ok(Some(Ok(Err(Trouble::Away(reason))))) => {
                return Err(ClusterError::Scheduler { address: config.address(), reason });
            }
            Ok(Some(Ok(Err(Trouble::Failed(reason))))) => {
                failures += 1;
                if failures >= config.tries {
                    return Err(ClusterError::NoAnswer { address: config.address(), reason });
                }
                tracing::warn!("asking an executor of {} again: {reason}", config.address());
                again = again.min(started.elapsed() + PAUSE);
            }
            Ok(Some(Err(panic))) => {
                return Err(ClusterError::NoAnswer { address: config.address(), reason: panic.to_string() });
            }
            // It is asked again in a while.
            Ok(Some(Ok(Err(Trouble::Alone)))) => {}
            Ok(None) | Err(_) if stop.load(Ordering::Relaxed) => return Ok(None),
            Ok(None) | Err(_) if started.elapsed() > config.limit => return Err(none()),
            Ok(None) => tokio::time::sleep(TICK).await,
            Err(_) if !said && started.elapsed() > Duration::from_secs(5) => {
                said = true;
                tracing::info!("waiting for an executor of {}", config.address());
            }
            Err(_) => {}
        }
    }
}

/// Some pictures that are sent together.
struct Part {
    pictures: Range<usize>,
    /// Failed answers so far.
    tries: usize,
    /// Its queries at the cluster by number, which rises.
    running: BTreeMap<u64, Running>,
    rows: Option<Vec<Row>>,
}

/// A query that was sent.
struct Running {
    sent: Instant,
    query: AbortHandle,
}

impl Part {
    fn of(pictures: Range<usize>) -> Part {
        Part { pictures, tries: 0, running: BTreeMap::new(), rows: None }
    }

    fn is_open(&self) -> bool {
        self.rows.is_none()
    }

    /// Takes its queries back.
    fn abandon(&mut self) {
        std::mem::take(&mut self.running).into_values().for_each(|running| running.query.abort());
    }

    /// Whether it is time for one more query: the more there are, the longer the last one is waited for.
    fn is_late(&self, usual: Duration) -> bool {
        let copies = self.running.len();
        let last = self.running.values().next_back();
        self.is_open()
            && copies < COPIES
            && last.is_some_and(|last| last.sent.elapsed() > usual * copies as u32)
    }
}

/// What came back for a part, and from which of its queries.
type Event = (usize, u64, Result<BTreeMap<u64, Row>, Trouble>);

/// One call of [`Driver::embed`].
struct Work<'a> {
    driver: &'a Driver,
    images: &'a [Seen],
    parts: Vec<Part>,
    /// As [`room`] has them.
    in_flight: usize,
    ahead: usize,
    /// The first part that was not sent yet, and the first that was not handed over.
    next: usize,
    handed_over: usize,
    /// Queries that were sent.
    queries: u64,
    send: UnboundedSender<Event>,
    receive: UnboundedReceiver<Event>,
    /// Seconds from sending to answer of the last parts.
    times: Vec<f64>,
    last_answer: Instant,
    /// When the scheduler was first, and last, found not to answer.
    away: Option<(Instant, Instant)>,
    /// Executors, and the buckets where what they read was what this machine reads.
    trusted: BTreeSet<(String, String)>,
    progress: Progress,
    embedded: Embedded,
}

impl Work<'_> {
    fn run<E: From<ClusterError>, C: FnMut(EmbeddingBatch, &str) -> Result<(), E>>(
        mut self,
        stop: &AtomicBool,
        mut chunks: Chunks<E, C>,
    ) -> Result<Embedded, E> {
        let ended = self.work(stop, &mut chunks);
        for part in &mut self.parts {
            part.abandon();
        }
        self.driver.handle.block_on(self.driver.cluster.settle(SETTLE));
        let broken = ended?;
        // When it ends early, there may be parts that are done behind one that is not.
        for index in self.handed_over..self.parts.len() {
            self.hand_over(index, &mut chunks)?;
        }
        self.embedded.pictures = chunks.finish()?;
        self.progress.finish();
        if let Some(error) = broken {
            return Err(error.into());
        }
        if stop.load(Ordering::Relaxed) && !self.images.is_empty() {
            let done = self.embedded.pictures;
            tracing::warn!("interrupted: {done} of {} pictures are done and stored", self.images.len());
        }
        for (executor, share) in &self.embedded.executors {
            tracing::info!(
                "executor {executor}: {} pictures, {} failed, model at work for {:.1} s",
                share.pictures,
                share.failed,
                share.model_seconds
            );
        }
        Ok(self.embedded)
    }

    /// Until all is done, or it is asked to stop, or the cluster is of no use any more: then, why.
    fn work<E: From<ClusterError>, C: FnMut(EmbeddingBatch, &str) -> Result<(), E>>(
        &mut self,
        stop: &AtomicBool,
        chunks: &mut Chunks<E, C>,
    ) -> Result<Option<ClusterError>, E> {
        while self.handed_over < self.parts.len() && !stop.load(Ordering::Relaxed) {
            // First what came while rows were committed: of a part that is done nothing more is sent.
            let mut going = self.take_all(Duration::ZERO);
            if going.is_ok() {
                self.keep_busy();
                going = self.take_all(TICK).and_then(|()| self.look_after());
            }
            if let Err(error) = going {
                return Ok(Some(error));
            }
            while self.handed_over < self.parts.len() && !self.parts[self.handed_over].is_open() {
                self.hand_over(self.handed_over, chunks)?;
                self.handed_over += 1;
            }
        }
        Ok(None)
    }

    /// Takes all that came, after waiting for the first of it for so long.
    fn take_all(&mut self, wait: Duration) -> Result<(), ClusterError> {
        let handle = self.driver.handle.clone();
        let first = handle.block_on(async { tokio::time::timeout(wait, self.receive.recv()).await });
        let mut next = first.ok().flatten();
        while let Some((index, query, answer)) = next {
            self.take(index, query, answer)?;
            next = self.receive.try_recv().ok();
        }
        Ok(())
    }

    /// Sends new parts, and where there are none to send, the late ones again.
    fn keep_busy(&mut self) {
        let open = self.parts[self.handed_over..self.next].iter().filter(|part| part.is_open()).count();
        let ahead = (self.handed_over + self.ahead).min(self.parts.len());
        let new = (self.in_flight.saturating_sub(open)).min(ahead.saturating_sub(self.next));
        for _ in 0..new {
            self.send(self.next, Duration::ZERO);
            self.next += 1;
        }
        if new > 0 {
            return;
        }
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let usual = match times.get(times.len() / 2) {
            // Twice the usual, and a second for what is not the pictures' doing.
            Some(median) => Duration::from_secs_f64(2.0 * median + 1.0),
            None => self.driver.config.limit / 4,
        };
        if open >= self.in_flight && self.last_answer.elapsed() < usual {
            return;
        }
        let late: Vec<usize> =
            (self.handed_over..self.next).filter(|&index| self.parts[index].is_late(usual)).collect();
        for index in late {
            let part = &self.parts[index].pictures;
            tracing::info!("pictures {} to {} are late and were sent once more", part.start + 1, part.end);
            self.send(index, Duration::ZERO);
        }
    }

    fn send(&mut self, index: usize, pause: Duration) {
        self.queries += 1;
        let number = self.queries;
        let part = &mut self.parts[index];
        let images = &self.images[part.pictures.clone()];
        let wanted = images.iter().zip(part.pictures.start as u64..);
        let wanted: Vec<Wanted> =
            wanted.map(|(seen, number)| (number, seen.image.source.to_text())).collect();
        let (cluster, spec, answer) =
            (self.driver.cluster.clone(), self.driver.spec.clone(), self.send.clone());
        let asked = self.driver.handle.spawn(async move {
            tokio::time::sleep(pause).await;
            // A task of its own: a panic in a client is a failed try. Aborted with this one.
            let mut query = AbortOnDrop(tokio::spawn(cluster.ask(wanted, spec)));
            let answered = (&mut query.0).await;
            let answered = answered.unwrap_or_else(|panic| Err(Trouble::Failed(panic.to_string())));
            // Nobody listens where the run has ended.
            let _ = answer.send((index, number, answered));
        });
        part.running.insert(number, Running { sent: Instant::now(), query: asked.abort_handle() });
    }

    /// An answer, or its failure.
    fn take(
        &mut self,
        index: usize,
        query: u64,
        answer: Result<BTreeMap<u64, Row>, Trouble>,
    ) -> Result<(), ClusterError> {
        let config = &self.driver.config;
        // One that was given up may have been on its way here.
        let Some(running) = self.parts[index].running.remove(&query) else { return Ok(()) };
        if !self.parts[index].is_open() {
            return Ok(());
        }
        let reason = match answer {
            Err(Trouble::Away(reason)) => {
                let now = Instant::now();
                // Each open part asks every few seconds: nobody has found it away for long, so it was back.
                let since =
                    self.away.filter(|(_, last)| last.elapsed() < PATIENCE / 2).map(|(since, _)| since);
                if since.is_none() {
                    tracing::warn!("scheduler {} does not answer: {reason}", config.address());
                }
                let since = since.unwrap_or(now);
                self.away = Some((since, now));
                if since.elapsed() > PATIENCE {
                    return Err(ClusterError::Scheduler { address: config.address(), reason });
                }
                self.send_again(index, 2 * PAUSE);
                return Ok(());
            }
            // Not the part's doing: it waits for others, as long as the limit allows.
            Err(Trouble::Alone) => {
                tracing::debug!("no executor of {} is left", config.address());
                self.away = None;
                self.send_again(index, 2 * PAUSE);
                return Ok(());
            }
            Err(Trouble::Failed(reason)) => Bad::Part(reason),
            Ok(rows) => {
                self.last_answer = Instant::now();
                match self.check(index, rows) {
                    Ok(rows) => {
                        self.done(index, rows, running.sent);
                        self.away = None;
                        return Ok(());
                    }
                    Err(bad) => bad,
                }
            }
        };
        self.away = None;
        self.failed(index, reason)
    }

    fn failed(&mut self, index: usize, bad: Bad) -> Result<(), ClusterError> {
        let part = &mut self.parts[index];
        part.tries += 1;
        let (first, last) = (part.pictures.start, part.pictures.end - 1);
        let name = |index: usize| self.images[index].image.id.clone();
        match bad {
            Bad::Executor(error) => return Err(error),
            Bad::Picture(error) if part.tries >= self.driver.config.tries => return Err(error),
            Bad::Part(reason) if part.tries >= self.driver.config.tries => {
                let (first, last, tries) = (name(first), name(last), part.tries);
                return Err(ClusterError::Part { first, last, tries, reason });
            }
            Bad::Picture(error) => tracing::warn!("{error}; trying again"),
            Bad::Part(reason) => {
                tracing::warn!("pictures {} to {} are sent again: {reason}", first + 1, last + 1)
            }
        }
        self.send_again(index, PAUSE);
        Ok(())
    }

    /// Unless another query of the part is still at the cluster.
    fn send_again(&mut self, index: usize, pause: Duration) {
        if self.parts[index].running.is_empty() {
            self.send(index, pause);
        }
    }

    /// The rows of a part in the order of its pictures, if they are what was asked for.
    fn check(&mut self, index: usize, rows: BTreeMap<u64, Row>) -> Result<Vec<Row>, Bad> {
        let part = self.parts[index].pictures.clone();
        if !rows.keys().copied().eq(part.start as u64..part.end as u64) {
            return Err(Bad::Part("the answer is about other pictures".to_owned()));
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        for (row, seen) in rows.iter_mut().zip(&self.images[part]) {
            let reason = || row.reason.clone().unwrap_or_default();
            if row.stage.as_deref() == Some(EXECUTOR) {
                let executor = row.executor.clone();
                return Err(match row.kind.as_deref() {
                    Some(REFUSED) => Bad::Executor(ClusterError::Refused { executor, reason: reason() }),
                    _ => Bad::Part(format!("executor {executor}: {}", reason())),
                });
            }
            let is_whole = row.embedding.as_ref().is_some_and(|vector| vector.len() == self.driver.dim)
                && row.pixel_sha256.is_some();
            if row.stage.is_none() && !is_whole {
                return Err(Bad::Part(format!(
                    "executor {}: a row without a vector or a reason",
                    row.executor
                )));
            }
            let pair = seen.image.source.bucket().map(|bucket| (row.executor.clone(), bucket));
            match look(row, seen, pair.as_ref().is_some_and(|pair| self.trusted.contains(pair))) {
                Look::Good => {}
                Look::Compared => self.trusted.extend(pair),
                Look::Gone(reason) => *row = Row::failed(&row.executor, "read", "unreadable", reason),
                Look::Unread(reason) => {
                    let (executor, picture) = (&row.executor, &seen.image.id);
                    let reason =
                        format!("executor {executor} read {picture}, which cannot be read here: {reason}");
                    return Err(Bad::Part(reason));
                }
                Look::Unlike(reason) => {
                    let (executor, picture) = (row.executor.clone(), seen.image.id.clone());
                    return Err(Bad::Picture(ClusterError::Unlike { executor, picture, reason }));
                }
            }
        }
        Ok(rows)
    }

    fn done(&mut self, index: usize, rows: Vec<Row>, sent: Instant) {
        let part = &mut self.parts[index];
        part.abandon();
        if self.times.len() == 32 {
            self.times.remove(0);
        }
        self.times.push(sent.elapsed().as_secs_f64());
        let failed = rows.iter().filter(|row| row.stage.is_some()).count();
        self.progress.advance(rows.len() - failed, failed);
        for row in &rows {
            let share: &mut Share = self.embedded.executors.entry(row.executor.clone()).or_default();
            share.pictures += 1;
            share.failed += usize::from(row.stage.is_some());
            share.model_seconds += row.seconds;
            self.embedded.model_seconds += row.seconds;
        }
        part.rows = Some(rows);
    }

    /// Ends the run when nothing was answered for too long.
    fn look_after(&self) -> Result<(), ClusterError> {
        let config = &self.driver.config;
        // A scheduler that is away has its own time.
        let limit = if self.away.is_some() { config.limit.max(2 * PATIENCE) } else { config.limit };
        match self.last_answer.elapsed() > limit {
            true => {
                let seconds = self.last_answer.elapsed().as_secs();
                Err(ClusterError::NoExecutor { address: config.address(), seconds })
            }
            false => Ok(()),
        }
    }

    fn hand_over<E: From<ClusterError>, C: FnMut(EmbeddingBatch, &str) -> Result<(), E>>(
        &mut self,
        index: usize,
        chunks: &mut Chunks<E, C>,
    ) -> Result<(), E> {
        let part = &mut self.parts[index];
        let (pictures, rows) = (part.pictures.clone(), part.rows.as_mut().map(std::mem::take));
        for (row, seen) in rows.into_iter().flatten().zip(&self.images[pictures]) {
            match chunks.add(row, seen) {
                None => {}
                Some(failure) => self.embedded.failures.push(failure),
            }
        }
        chunks.commit_if_full()
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is wrong with an answer.
enum Bad {
    /// The executor would never do better.
    Executor(ClusterError),
    /// It sees something else than this machine; another one, or a second look, may do.
    Picture(ClusterError),
    Part(String),
}

/// What an executor's picture is, beside the one that is here.
enum Look {
    Good,
    /// Its bytes, of which no hash was known, were fetched here as well, and are the same.
    Compared,
    /// It is not there any more, here as there: the reason of the failure.
    Gone(String),
    /// The executor sees another picture, or none: why.
    Unlike(String),
    /// The executor read it, and whether it is the same cannot be told: why.
    Unread(String),
}

/// Compares the bytes that an executor read with those that are here. Where they differ, this machine looks again: the file may have
/// changed, or be gone, since it was first seen.
///
/// Of a new object no hash is known, and this machine does not fetch all of them to have one. It fetches the first of a bucket that an
/// executor answers for: that shows whether both mean the same store.
fn look(row: &Row, seen: &Seen, trusted: bool) -> Look {
    let is_known = !seen.sha256.is_empty();
    match &row.sha256 {
        Some(theirs) if *theirs == seen.sha256 => return Look::Good,
        Some(_) if trusted && !is_known => return Look::Good,
        _ => {}
    }
    let ours = match (hash(&seen.image.source), &seen.image.source) {
        (Ok(ours), _) => ours,
        // What stands at its place in an archive that has changed is not this picture.
        (Err(error), Source::Member { .. }) => return Look::Gone(error.to_string()),
        // Nothing to compare with, and nothing known: another look may do.
        (Err(error), _) if !is_known && row.sha256.is_some() => return Look::Unread(error.to_string()),
        (Err(_), _) => return Look::Good,
    };
    match &row.sha256 {
        None => Look::Unlike(row.reason.clone().unwrap_or_default()),
        Some(theirs) if !is_known && *theirs == ours => Look::Compared,
        Some(theirs) if *theirs == ours || (is_known && ours != seen.sha256) => Look::Good,
        Some(theirs) => Look::Unlike(format!("it is of sha256 {theirs} there, and {ours} here")),
    }
}

fn hash(source: &Source) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut source.open()?, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// Rows on their way to the table.
struct Chunks<E, C: FnMut(EmbeddingBatch, &str) -> Result<(), E>> {
    rule: ChunkRule,
    size: usize,
    open: EmbeddingBatch,
    /// What computed the open rows.
    runtimes: BTreeSet<String>,
    opened: Instant,
    handed_over: usize,
    commit: C,
}

impl<E, C: FnMut(EmbeddingBatch, &str) -> Result<(), E>> Chunks<E, C> {
    fn new(rule: ChunkRule, dim: usize, commit: C) -> Chunks<E, C> {
        let open = EmbeddingBatch { dim, ..EmbeddingBatch::default() };
        let opened = Instant::now();
        Chunks { rule, size: rule.first, open, runtimes: BTreeSet::new(), opened, handed_over: 0, commit }
    }

    /// Keeps a row; gives it back where it is a failure.
    fn add(&mut self, row: Row, seen: &Seen) -> Option<Failure> {
        let image = &seen.image;
        if let Some(stage) = row.stage {
            let (kind, reason) = (row.kind.unwrap_or_default(), row.reason.unwrap_or_default());
            return Some(Failure { path: image.id.clone(), split: image.split, stage, kind, reason });
        }
        if self.open.is_empty() {
            self.opened = Instant::now();
        }
        self.open.pictures.push(Picture {
            id: image.id.clone(),
            split: image.split,
            label: image.label.clone(),
            sha256: row.sha256.unwrap_or_default(),
            pixel_sha256: row.pixel_sha256.unwrap_or_default(),
            dhash: row.dhash.unwrap_or_default(),
            width: row.width.unwrap_or_default(),
            height: row.height.unwrap_or_default(),
            format: row.format.unwrap_or_default(),
        });
        self.open.vectors.extend(row.embedding.unwrap_or_default());
        self.open.norms.push(row.norm.unwrap_or_default());
        self.runtimes.insert(row.runtime);
        None
    }

    fn commit_if_full(&mut self) -> Result<(), E> {
        if self.open.is_empty() || (self.open.len() < self.size && self.opened.elapsed() < self.rule.age) {
            return Ok(());
        }
        self.hand_over()?;
        self.size = (self.size * 2).min(self.rule.most);
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), E> {
        let dim = self.open.dim;
        let chunk = std::mem::replace(&mut self.open, EmbeddingBatch { dim, ..EmbeddingBatch::default() });
        let runtimes: Vec<String> = std::mem::take(&mut self.runtimes).into_iter().collect();
        self.handed_over += chunk.len();
        (self.commit)(chunk, &runtimes.join("; "))
    }

    /// Hands over what is left; gives the number of all.
    fn finish(mut self) -> Result<usize, E> {
        if !self.open.is_empty() {
            self.hand_over()?;
        }
        Ok(self.handed_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::scan::{ImageRef, Split, sha256_hex};

    fn seen(source: Source, sha256: &str) -> Seen {
        let image = ImageRef { id: "1.png".to_owned(), split: Split::Gallery, label: None, source };
        Seen { image, sha256: sha256.to_owned() }
    }

    fn answer(sha256: Option<&str>) -> Row {
        let row = Row::failed("a:1", "decode", "damaged", "its reason".to_owned());
        Row { sha256: sha256.map(str::to_owned), ..row }
    }

    #[test]
    fn a_budget_bounds_the_rows_that_wait() {
        let config = ClusterConfig {
            host: String::new(),
            port: 0,
            part: 256,
            in_flight: 16,
            limit: Duration::ZERO,
            tries: 1,
            tls: None,
        };
        assert_eq!(room(&config, Shares::default(), 512), (16, 64));
        // 2,560 bytes a row: 10 parts, and of the smallest budget no part; two keep a cluster busy. As much as is ever given is no bound.
        let shares = |rows| Shares { rows, decoding: Some(1 << 30), ..Shares::default() };
        assert_eq!(room(&config, shares(Shares::default().rows), 512), (16, 64));
        assert_eq!(room(&config, shares(10 * 256 * 2_560), 512), (10, 10));
        assert_eq!(room(&config, shares(1 << 20), 512), (2, 2));
        assert_eq!(room(&ClusterConfig { in_flight: 4, ..config }, shares(10 * 256 * 2_560), 512), (4, 10));
    }

    #[test]
    fn a_part_is_late_again_after_longer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let usual = Duration::from_secs(10);
        let mut part = Part::of(0..4);
        assert!(!part.is_late(usual), "nothing was sent");
        let send = |part: &mut Part, seconds_ago: u64| {
            let query = runtime.spawn(async {}).abort_handle();
            let sent =
                Instant::now().checked_sub(Duration::from_secs(seconds_ago)).expect("it was up by then");
            part.running.insert(part.running.len() as u64, Running { sent, query });
        };
        send(&mut part, 60);
        assert!(part.is_late(usual));
        send(&mut part, 15);
        assert!(!part.is_late(usual), "the second is waited for twice as long");
        part.running.clear();
        send(&mut part, 60);
        send(&mut part, 25);
        assert!(part.is_late(usual));
        send(&mut part, 60);
        assert!(!part.is_late(usual), "three are enough");
        part.rows = Some(Vec::new());
        part.running.pop_last();
        assert!(!part.is_late(usual), "it is done");
    }

    #[test]
    fn bytes_are_looked_at_again_where_an_executor_read_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("1.png");
        std::fs::write(&path, "now").expect("writable");
        let (now, before) = (sha256_hex(b"now"), sha256_hex(b"before"));
        let file = || Source::File(path.clone());
        let is_good = |row: &Row, seen: &Seen| matches!(look(row, seen, false), Look::Good);
        assert!(is_good(&answer(Some(&now)), &seen(file(), &now)));
        assert!(
            is_good(&answer(Some(&before)), &seen(file(), &before)),
            "what was hashed is what was embedded"
        );
        assert!(is_good(&answer(Some(&now)), &seen(file(), &before)), "it changed in between");
        assert!(is_good(&answer(Some("others")), &seen(file(), &before)), "and once more");
        for sha256 in [Some("others"), None] {
            let looked = look(&answer(sha256), &seen(file(), &now), true);
            assert!(matches!(looked, Look::Unlike(_)), "{sha256:?} there, and it is whole here");
        }
        let gone = seen(Source::File(folder.path().join("gone")), &now);
        assert!(is_good(&answer(None), &gone), "the executor's reason is ours");
        // Of an archive that is not what it was, the bytes at a place are not the picture's.
        let member = Source::from_text("tar:0:3:/nowhere/a.tar").expect("a member");
        assert!(matches!(look(&answer(Some("others")), &seen(member, &now), true), Look::Gone(_)));
    }

    #[test]
    fn a_picture_without_a_hash_is_read_here_once_for_each_executor() {
        let bytes = |text: &str| seen(Source::Fetched(text.to_owned().into()), "");
        let (ours, others) = (sha256_hex(b"ours"), sha256_hex(b"others"));
        assert!(matches!(look(&answer(Some(&ours)), &bytes("ours"), false), Look::Compared));
        assert!(matches!(look(&answer(Some(&others)), &bytes("ours"), false), Look::Unlike(_)));
        assert!(matches!(look(&answer(Some(&others)), &bytes("ours"), true), Look::Good));
        assert!(matches!(look(&answer(None), &bytes("ours"), true), Look::Unlike(_)));
        let here_not = seen(Source::File("/nowhere/1.png".into()), "");
        assert!(matches!(look(&answer(Some(&ours)), &here_not, false), Look::Unread(_)));
    }
}
