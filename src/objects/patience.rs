//! Waiting for a store, but not for long once the run was asked to end.
//!
//! A server that hangs answers after half a minute with its first time-out, and is then asked again. Who has pressed Ctrl-C does not
//! wait for that: what is under way gets a few seconds, and from the first request that takes longer nothing is waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::interrupt;

/// From the signal on. Stores answer in milliseconds, and send a part in a second or so.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a request that begins later, such as the open batch's commit.
const MOMENT: Duration = Duration::from_secs(2);

/// How often the signal is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Set once a store took too long after the signal.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Why nothing is waited for any more; nothing where it is.
pub(super) fn over() -> Option<&'static str> {
    GIVEN_UP.load(Ordering::Relaxed).then_some("the run was asked to end, and there was no answer")
}

/// Why there is no answer.
pub(super) fn reason() -> &'static str {
    over().unwrap_or("the request was broken off")
}

/// What comes; nothing where its sender went away, or where the run was asked to end and it takes too long.
pub(super) fn answer<T>(receiver: &Receiver<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt::since().is_some_and(|since| since >= PATIENCE) && began.elapsed() >= MOMENT {
            GIVEN_UP.store(true, Ordering::Relaxed);
        }
        if over().is_some() {
            return None;
        }
    }
}
