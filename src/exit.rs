//! The program's exit codes, and which error means which.

use crate::config::ConfigError;
use crate::engines::EngineError;
use crate::exchange::ExchangeError;
use crate::lock::LockError;
use crate::memory::MemoryError;
use crate::models::ModelError;
use crate::objects::ObjectError;
use crate::sql::SqlError;
use crate::stages::baseline::BaselineError;
use crate::stages::evaluate::EvaluateError;
use crate::stages::load::LoadError;
use crate::stages::scan::ScanError;
use crate::stages::store::StoreError;

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

/// A wrong argument, noticed after the command line was parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl Exit {
    /// The code of an error: what its cause is decides, wherever in the chain it stands. Unknown causes are infrastructure. The
    /// reader of our output going away (`| head`) is none: it has all it wanted.
    pub fn of(error: &anyhow::Error) -> Exit {
        let is_broken_pipe =
            |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<std::io::Error>() {
                Some(error) => error.kind() == std::io::ErrorKind::BrokenPipe,
                // Arrow's writers keep the text alone.
                None => cause.to_string().contains("Broken pipe (os error 32)"),
            };
        if error.chain().any(is_broken_pipe) {
            return Exit::Done;
        }
        error.chain().find_map(Exit::of_cause).unwrap_or(Exit::Infrastructure)
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
        match cause.downcast_ref::<ScanError>() {
            Some(
                ScanError::Vanished { .. } | ScanError::Changed { .. } | ScanError::ObjectsVanished { .. },
            ) => return Some(Exit::Infrastructure),
            Some(ScanError::Object(error)) => return Exit::of_cause(error),
            _ => {}
        }
        if let Some(error) = cause.downcast_ref::<ObjectError>() {
            return Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure });
        }
        if cause.is::<ConfigError>()
            || cause.is::<UsageError>()
            || cause.is::<ScanError>()
            || cause.is::<MemoryError>()
        {
            return Some(Exit::Usage);
        }
        if let Some(error) = cause.downcast_ref::<LockError>() {
            return Some(match error {
                LockError::Held { .. } | LockError::TableHeld { .. } => Exit::Locked,
                LockError::Io { .. } | LockError::TableIo { .. } => Exit::Infrastructure,
            });
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure });
        }
        if let Some(ExchangeError::Lock(error)) = cause.downcast_ref::<ExchangeError>() {
            return Exit::of_cause(error);
        }
        if let Some(error) = cause.downcast_ref::<ExchangeError>() {
            return Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure });
        }
        if let Some(error) = cause.downcast_ref::<SqlError>() {
            let infrastructure = matches!(error, SqlError::Output(_) | SqlError::Store(_));
            return Some(if infrastructure { Exit::Infrastructure } else { Exit::Usage });
        }
        if let Some(error) = cause.downcast_ref::<ModelError>() {
            return Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure });
        }
        if let Some(error) = cause.downcast_ref::<BaselineError>() {
            return Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure });
        }
        match cause.downcast_ref::<LoadError>() {
            Some(LoadError::OverBudget { .. }) => return Some(Exit::OverBudget),
            Some(LoadError::Engine(error)) => return Exit::of_cause(error),
            Some(LoadError::Store(error)) => return Exit::of_cause(error),
            _ => {}
        }
        if let Some(EvaluateError::Engine(error)) = cause.downcast_ref::<EvaluateError>() {
            return Exit::of_cause(error);
        }
        if let Some(error) = cause.downcast_ref::<EngineError>() {
            return Some(match error {
                EngineError::UnsupportedMetric { .. } | EngineError::ZeroK | EngineError::Usage(_) => {
                    Exit::Usage
                }
                EngineError::Locked(_) => Exit::Locked,
                EngineError::Interrupted => Exit::Interrupted,
                _ => Exit::Infrastructure,
            });
        }
        let error = cause.downcast_ref::<EvaluateError>()?;
        Some(if error.is_usage() { Exit::Usage } else { Exit::Infrastructure })
    }
}
