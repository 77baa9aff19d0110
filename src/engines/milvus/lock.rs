//! One load at a time on an alias, whichever machine it runs on: a collection that only one run can create.
//!
//! Milvus refuses a collection whose name is taken by one that differs; each run's differs by its description. A run that was
//! killed leaves its collection behind: its heartbeat, a property, then stands still, and another run takes over. Milvus has no
//! step that looks and deletes at once, so two runs that take over from the same dead one at the same moment can both believe
//! they did, for a moment: each looks again before it changes anything that users would see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use milvus::v2::prelude::{
    AlterCollectionPropertiesRequest, CollectionSchema, CreateCollectionRequest, DataType,
    DescribeCollectionRequest, DropCollectionRequest, FieldSchema,
};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::collections::NOT_FOUND;
use crate::engines::EngineError;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a sign of life for so long a run is taken for dead.
const EXPIRY: Duration = Duration::from_secs(30);
/// The property with the [`Holder`].
const PROPERTY: &str = "imagedex.lock";

/// Held until dropped.
#[derive(Debug)]
pub struct AliasLock {
    client: Client,
    name: String,
    owner: String,
    lost: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    owner: String,
    host: String,
    process: u32,
    /// Milliseconds since 1970, by the holder's clock.
    heartbeat: u64,
}

impl Holder {
    fn us(owner: &str) -> Holder {
        let host = ["HOSTNAME", "COMPUTERNAME"].iter().find_map(|name| std::env::var(name).ok());
        let host = host.or_else(|| std::fs::read_to_string("/etc/hostname").ok());
        Holder {
            owner: owner.to_owned(),
            host: host.as_deref().map_or("unknown", str::trim).to_owned(),
            process: std::process::id(),
            heartbeat: now_ms(),
        }
    }

    fn written(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl AliasLock {
    /// Takes the lock of `alias`, or says who has it.
    pub fn take(client: &Client, alias: &str) -> Result<AliasLock, EngineError> {
        let owner = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let name = format!("{alias}_lock");
        if !create(client, &name, &owner)? {
            take_over(client, &name, alias, &owner)?;
        }
        let (lost, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let heart = Heart {
            client: client.clone(),
            name: name.clone(),
            owner: owner.clone(),
            lost: Arc::clone(&lost),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || heart.run());
        Ok(AliasLock { client: client.clone(), name, owner, lost, stop, thread: Some(thread) })
    }

    /// An error if another run has taken over; to be asked before anything that users would see.
    pub fn check(&self) -> Result<(), EngineError> {
        let ours = !self.lost.load(Ordering::SeqCst)
            && holder(&self.client, &self.name)?.is_some_and(|holder| holder.owner == self.owner);
        match ours {
            true => Ok(()),
            false => Err(EngineError::Locked(format!(
                "another run has taken the lock {} over, as this one showed no sign of life for {} s; \
                 this one stops and leaves what users search as it is",
                self.name,
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
        // One try: a server that is away gets no more than a moment, and the lock runs out by itself.
        if holder_once(&self.client, &self.name).is_some_and(|holder| holder.owner == self.owner) {
            let name = self.name.as_str();
            let gone = self.client.once(|client| async move {
                client.drop_collection(DropCollectionRequest::builder().collection_name(name).build()?).await
            });
            if let Err(error) = gone {
                tracing::debug!("the lock {name} was left behind, and expires: {error}");
            }
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Creates the collection; false if there is another's.
fn create(client: &Client, name: &str, owner: &str) -> Result<bool, EngineError> {
    let holder = Holder::us(owner).written();
    let made = client.ask("the lock could not be written", |client| {
        let holder = holder.clone();
        async move {
            let field = |name: &str, data_type| FieldSchema::new().name(name).data_type(data_type);
            let schema = CollectionSchema::new()
                .add_field(field("id", DataType::Int64).primary_key(true))
                // Milvus wants one in each collection.
                .add_field(field("none", DataType::FloatVector).dimension(2));
            let request = CreateCollectionRequest::builder()
                .collection_name(name)
                .description(owner)
                .schema(schema)
                .num_shards(1)
                .properties([(PROPERTY.to_owned(), holder)].into());
            client.create_collection(request.build()?).await
        }
    })?;
    match made {
        Ok(()) => Ok(true),
        // It has no number of its own for this.
        Err(refusal) if refusal.reason().contains("create duplicate collection") => Ok(false),
        Err(refusal) => {
            Err(super::client::failed(format!("the lock {name} could not be made: {}", refusal.reason())))
        }
    }
}

async fn read(
    client: milvus::v2::ClientV2,
    name: &str,
) -> Result<Option<Holder>, milvus::v2::prelude::Error> {
    let request = DescribeCollectionRequest::builder().collection_name(name).build()?;
    let answer = client.describe_collection(request).await?;
    let properties = answer.description().get_properties();
    Ok(properties.get(PROPERTY).and_then(|holder| serde_json::from_str(holder).ok()))
}

/// Who has the lock; nobody where there is none.
fn holder(client: &Client, name: &str) -> Result<Option<Holder>, EngineError> {
    match client.ask("the lock could not be read", |client| read(client, name))? {
        Ok(holder) => Ok(holder),
        Err(refusal) if refusal.code() == NOT_FOUND => Ok(None),
        Err(refusal) => {
            Err(super::client::failed(format!("the lock {name} could not be read: {}", refusal.reason())))
        }
    }
}

/// The same with one request, for where there is no time for more.
fn holder_once(client: &Client, name: &str) -> Option<Holder> {
    client.once(|client| read(client, name)).ok().flatten()
}

/// Takes the lock of a run that shows no sign of life.
fn take_over(client: &Client, name: &str, alias: &str, owner: &str) -> Result<(), EngineError> {
    let held = |by: &Holder| {
        EngineError::Locked(format!(
            "another run (process {} on {}) is loading or promoting {alias}; wait for it, or, if it is dead, for its lock to \
             expire in {} s",
            by.process,
            by.host,
            EXPIRY.as_secs()
        ))
    };
    let about_to = || EngineError::Locked(format!("another run is about to load {alias}"));
    let Some(found) = holder(client, name)? else {
        // It was let go just now.
        return if create(client, name, owner)? { Ok(()) } else { Err(about_to()) };
    };
    // Our own answer may have been lost, and the request tried again.
    if found.owner == owner {
        return Ok(());
    }
    if now_ms().saturating_sub(found.heartbeat) < EXPIRY.as_millis() as u64 {
        return Err(held(&found));
    }
    tracing::warn!(
        "the lock on {alias} has had no heartbeat for {} s; watching whether its run (process {} on {}) is alive",
        EXPIRY.as_secs(),
        found.process,
        found.host
    );
    client.pause(HEARTBEAT + Duration::from_secs(1))?;
    if holder(client, name)?.as_ref() != Some(&found) {
        return Err(held(&found));
    }
    client.call("the lock of a dead run could not be removed", |client| async move {
        client.drop_collection(DropCollectionRequest::builder().collection_name(name).build()?).await
    })?;
    if !create(client, name, owner)? {
        return Err(about_to());
    }
    // Who else saw the same dead run has removed ours by now, if at all.
    client.pause(Duration::from_secs(1))?;
    match holder(client, name)? {
        Some(found) if found.owner == owner => Ok(()),
        _ => Err(about_to()),
    }
}

/// The thread that shows that we are alive.
struct Heart {
    client: Client,
    name: String,
    owner: String,
    lost: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Heart {
    fn run(self) {
        let mut next = Instant::now() + HEARTBEAT;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + HEARTBEAT;
            // A server that is away is no loss of the lock: `check` asks again before anything is changed.
            let Some(found) = holder_once(&self.client, &self.name) else { continue };
            if found.owner != self.owner {
                self.lost.store(true, Ordering::SeqCst);
                return;
            }
            let (name, holder) = (self.name.as_str(), Holder::us(&self.owner).written());
            let beat = self.client.once(|client| {
                let holder = holder.clone();
                async move {
                    let request = AlterCollectionPropertiesRequest::builder().collection_name(name);
                    client.alter_collection_properties(request.property(PROPERTY, holder).build()?).await
                }
            });
            if let Err(error) = beat {
                tracing::debug!("the lock {name} showed no sign of life this time: {error}");
            }
        }
    }
}
