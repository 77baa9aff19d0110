//! Objects → hex SHA-256 of their bytes, many at a time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::bucket::{AT_A_TIME, PART};
use super::{Bucket, ObjectUrl};

/// MiB of objects that are in memory at a time.
const ROOM_MIB: u32 = 128;

/// Reads each object once; the answers are in the order asked. Nothing for an object without bytes.
pub fn hashes(wanted: Vec<(ObjectUrl, Option<u64>)>) -> Vec<io::Result<Option<String>>> {
    let count = wanted.len();
    let Some(first) = wanted.first() else { return Vec::new() };
    let threads = match Bucket::of(&first.0) {
        Ok(bucket) => bucket.threads.clone(),
        Err(error) => return (0..count).map(|_| Err(io::Error::other(error.to_string()))).collect(),
    };
    let (send, receive) = sync_channel(1);
    threads.spawn(async move {
        let room = Arc::new(Semaphore::new(ROOM_MIB as usize));
        let hashes = stream::iter(wanted.into_iter().map(|(url, size)| hash(url, size, room.clone())));
        let hashes: Vec<_> = hashes.buffered(AT_A_TIME).collect().await;
        // Nobody may want them any more.
        let _ = send.send(hashes);
    });
    let broken_off = |_| (0..count).map(|_| Err(io::Error::other("broken off"))).collect();
    receive.recv().unwrap_or_else(broken_off)
}

async fn hash(url: ObjectUrl, size: Option<u64>, room: Arc<Semaphore>) -> io::Result<Option<String>> {
    let bucket = Bucket::of(&url).map_err(|error| io::Error::other(error.to_string()))?;
    let needed = (size.unwrap_or(PART).min(PART) >> 20) as u32 + 1;
    let _permit = room.acquire_many(needed).await.map_err(io::Error::other)?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let hashed = bucket.pieces(&url, size, |piece| {
        hash.update(&piece);
        length += piece.len();
        Ok(())
    });
    hashed.await?;
    Ok((length > 0).then(|| hex::encode(hash.finalize())))
}
