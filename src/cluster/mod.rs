//! *Extract* on a cluster: executors read, decode and embed pictures; one driver cuts up the work, checks each answer, and alone
//! writes the table.
//!
//! Ballista carries the work: a `scheduler` hands out tasks, `executor`s run the query
//! `SELECT picture, embed_image(location, spec)` on them, and the `driver` sends one query for each part of
//! some hundred pictures and reads what comes back. What a newcomer would get wrong: Ballista is not trusted with the table. It writes rows twice
//! or never ends when an executor dies at the wrong moment (docs/scaling.md); so it only fans a function out, and each row that
//! comes back is checked against the list of the pictures that were sent.
//!
//! The function calls the same stages as an extract on one machine, so the vectors are the same, bit by bit, on the same kind of
//! processor. Without the feature `distributed` this module is its settings and its errors alone.

mod section;

#[cfg(feature = "distributed")]
pub mod answer;
#[cfg(feature = "distributed")]
pub mod driver;
#[cfg(feature = "distributed")]
pub mod executor;
#[cfg(feature = "distributed")]
mod job;
#[cfg(feature = "distributed")]
pub mod scheduler;
#[cfg(feature = "distributed")]
pub mod spec;
#[cfg(feature = "distributed")]
mod tls;
#[cfg(feature = "distributed")]
pub mod udf;
#[cfg(feature = "distributed")]
pub mod worker;

use std::path::PathBuf;
use std::time::Duration;

pub use section::ExtractSection;

/// Why a cluster did not do what it was asked to. What is stored is kept, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It is not running, not at this address, or speaks TLS where we do not.
    #[error(
        "scheduler {address} does not answer: {reason}; start it with `imagedex cluster scheduler`, then run again"
    )]
    Scheduler { address: String, reason: String },
    /// None is running, all have died, or none is fast enough for a part within the time.
    #[error(
        "no executor of {address} has answered for {seconds} s (extract.limit_seconds); start some with `imagedex cluster executor`, or, if \
         they are at work, lower extract.part or raise extract.limit_seconds; then run again"
    )]
    NoExecutor { address: String, seconds: u64 },
    /// The scheduler is there, and some executor too, but the question failed, or its answer cannot be fetched. It is fetched from the executor
    /// itself. Its own messages, and the scheduler's, say more.
    #[error(
        "no answer of an executor of {address} can be had: {reason}; if it cannot be reached from here, correct its --host and --port"
    )]
    NoAnswer { address: String, reason: String },
    /// It has another program, model file or runtime than this machine, whose vectors would not compare. Make it the same there.
    #[error("executor {executor} cannot take part: {reason}")]
    Refused { executor: String, reason: String },
    /// Each executor must find the pictures under the paths that they have here, and reach object stores itself: mount the same folder
    /// there, or give it the same settings and credentials of the store.
    #[error(
        "executor {executor} does not see picture {picture} as this machine does: {reason}; mount the same folder there, or for an object \
         store give it the same settings and credentials"
    )]
    Unlike { executor: String, picture: String, reason: String },
    /// Executors died of it, or failed at it, each time. The reason is the last one; the executors' own messages say more.
    #[error(
        "pictures {first} to {last} were not embedded in {tries} tries (extract.tries): {reason}; run again to go on"
    )]
    Part { first: String, last: String, tries: usize, reason: String },
    /// The file of a certificate or key cannot be read, is no PEM file, or is another's key. Correct the path.
    #[error("TLS: {path}: {reason}")]
    Tls { path: PathBuf, reason: String },
    /// The address is taken, or is not of this machine; or the folder cannot be written.
    #[error("{what} cannot start at {address}: {reason}")]
    Start { what: &'static str, address: String, reason: String },
}

impl ClusterError {
    /// Whether the settings are at fault rather than the cluster.
    pub fn is_usage(&self) -> bool {
        matches!(self, ClusterError::Tls { .. })
    }
}

/// Where and how to extract, other than on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `extract.on`: the scheduler's host and port. Default: `"local"`, which is no cluster.
    pub host: String,
    pub port: u16,
    /// `extract.part`: pictures of one task, and so what a lost executor costs. Default: 256.
    pub part: usize,
    /// `extract.in_flight`: parts at the cluster at a time; two for each task that all executors together can run keep them busy.
    /// Default: 16.
    pub in_flight: usize,
    /// `extract.limit_seconds`: after so long without an answer to any part the run ends. Default: 600.
    pub limit: Duration,
    /// `extract.tries`: how often a part that failed is sent before the run ends. Default: 3.
    pub tries: usize,
    /// `extract.ca`, `extract.cert`, `extract.key`: PEM files for mutual TLS. Default: none, unencrypted.
    pub tls: Option<TlsFiles>,
}

/// PEM files for mutual TLS: each side shows its certificate, and believes those that the authority signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl ClusterConfig {
    /// As it is written: `df://host:50050`.
    pub fn address(&self) -> String {
        format!("df://{}:{}", self.host, self.port)
    }
}

/// Host and port of `df://host:port`.
pub fn parse_address(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("`{text}` is not of the form df://host:50050");
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    // Escapes stand for what no host has.
    let is_bare =
        matches!(url.path(), "" | "/") && !text.contains(['?', '#', '@', '%']) && url.port() != Some(0);
    match url.host_str().filter(|host| url.scheme() == "df" && is_bare && !host.is_empty()) {
        Some(host) => Ok((host.to_owned(), url.port().unwrap_or(DEFAULT_PORT))),
        None => Err(wrong()),
    }
}

/// Ballista's own choice.
pub const DEFAULT_PORT: u16 = 50050;

/// What a program without the feature says.
pub const NOT_BUILT: &str = "this imagedex was built without the feature `distributed`; build it with `cargo build --release --features distributed`";
