//! One run at a time on a work folder, and one writer at a time on a feature table. The locks are the kernel's (`flock`): what
//! counts is who holds them, not whether the file is there, so a dead process never leaves one behind.
//!
//! On NFS Linux turns `flock` into a lock on the server, so runs on several machines keep out of each other's way where the server's
//! lock manager runs. Mounted with `nolock` or `local_lock=flock` each machine knows its own runs only; two writers of one
//! table then meet at Delta's commit, where the second one fails and stores nothing more (exit code 4). Where a file system has
//! no locks at all a run ends before any work, with the system's reason.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::stages::store::make_folder;

/// Why the work folder could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another run holds {path}; wait for it, or give this run a `work` folder of its own")]
    Held { path: PathBuf },
    #[error(
        "another run is writing to the feature table ({path} is locked); wait for it, or give this run a table of its own with \
         features.table"
    )]
    TableHeld { path: PathBuf },
    #[error(
        "cannot lock the feature table with {path}: {reason}; make the folder writable, or name another one with features.table"
    )]
    TableIo { path: PathBuf, reason: std::io::Error },
    /// No right to write there, a full disk, or a read-only one. `imagedex doctor` says which.
    #[error("cannot write the work folder {path}: {reason}")]
    Io { path: PathBuf, reason: std::io::Error },
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
            move |reason| LockError::Io { path, reason }
        };
        make_folder(work).map_err(io(work))?;
        match lock(&path).map_err(io(&path))? {
            Some(file) => Ok(WorkLock { _file: file }),
            None => Err(LockError::Held { path }),
        }
    }
}

/// Held by the one writer of a feature table until dropped. Readers need none: a table's versions do not change.
#[derive(Debug)]
pub struct TableLock {
    _file: File,
}

impl TableLock {
    /// Locks the table by its lock file, in a folder that is there ([`lock_file`](crate::stages::store::lock_file)).
    pub fn take(path: &Path) -> Result<TableLock, LockError> {
        match lock(path) {
            Ok(Some(file)) => Ok(TableLock { _file: file }),
            Ok(None) => Err(LockError::TableHeld { path: path.to_owned() }),
            Err(reason) => Err(LockError::TableIo { path: path.to_owned(), reason }),
        }
    }
}

/// The locked file; `None` where another process holds it. It is opened for writing, as locks on NFS ask for.
fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(source),
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
