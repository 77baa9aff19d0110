//! One run at a time on a work folder. The lock is the kernel's (`flock`), so a dead process never leaves one behind.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Why the work folder could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another run holds {path}; wait for it, or give this run a `work` folder of its own")]
    Held { path: PathBuf },
    /// No right to write there, a full disk, or a read-only one. `imagedex doctor` says which.
    #[error("cannot write the work folder {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// Held until dropped.
#[derive(Debug)]
pub struct WorkLock {
    _file: File,
}

impl WorkLock {
    /// Creates `work` where it is missing and locks it.
    pub fn take(work: &Path) -> Result<WorkLock, LockError> {
        let path = work.join("lock");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { path, source }
        };
        std::fs::create_dir_all(work).map_err(io(work))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(WorkLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { path }),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let work = folder.path().join("runs/a");
        let first = WorkLock::take(&work).expect("free");
        assert!(matches!(WorkLock::take(&work), Err(LockError::Held { .. })));
        drop(first);
        WorkLock::take(&work).expect("free again");
    }
}
