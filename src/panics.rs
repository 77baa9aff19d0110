//! Libraries panic over some damaged files. Whoever reads a file that may be damaged reads it here, on a thread of its own, whose
//! end is the end of the reading alone; `main` keeps what a panic says from people.

/// What `read` gives; `None` where it panicked.
pub fn caught<T: Send>(read: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| scope.spawn(read).join().ok())
}

/// What is said of a file whose reader panicked.
pub const DAMAGED: &str = "its content is damaged";
