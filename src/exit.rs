//! The program's exit codes.

/// How a run ended, as the shell, cron and CI see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    /// A quality gate failed.
    Gate = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Finished, but more pictures failed than the budget allows.
    OverBudget = 3,
    /// Engine, runtime, model file or disk.
    Infrastructure = 4,
    /// Another run holds the lock.
    Locked = 75,
    /// Ctrl-C or SIGTERM: the open batch was finished and committed.
    Interrupted = 130,
}
