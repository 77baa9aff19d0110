//! Ctrl-C and SIGTERM set a flag; stages look at it between batches, so that nothing half-done is left behind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set once the user or the system asked the run to end.
pub static STOP: AtomicBool = AtomicBool::new(false);

static SINCE: OnceLock<Instant> = OnceLock::new();

/// How long ago the run was asked to end; nothing where it was not.
pub fn since() -> Option<Duration> {
    SINCE.get().map(Instant::elapsed)
}

/// Whether the run was asked to end.
pub fn is_set() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Starts listening. The first signal asks for a clean end; a second one ends the process at once.
pub fn listen() {
    let result = ctrlc::set_handler(|| {
        SINCE.get_or_init(Instant::now);
        if STOP.swap(true, Ordering::Relaxed) {
            leave(crate::exit::Exit::Interrupted);
        }
        tracing::warn!("stopping after the open batch; once more to stop at once");
    });
    if let Err(error) = result {
        tracing::warn!("signals are not handled, Ctrl-C loses the open batch: {error}");
    }
}

/// Ends the process at once: no destructors, which would pull the model's library away from the threads that are in it.
pub fn leave(exit: crate::exit::Exit) -> ! {
    // SAFETY: `_exit` takes any number and touches no memory of ours.
    unsafe { libc::_exit(i32::from(exit as u8)) }
}
