//! What can go wrong with the feature table, sorted by what a caller does about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use datafusion::error::DataFusionError;
use deltalake::DeltaTableError;
use deltalake::kernel::transaction::TransactionError;

use crate::config::Budget;
use crate::objects::ObjectError;

/// One setting that the stored vectors were made with, beside the one asked for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub field: String,
    /// As JSON; `none` where the table does not know the field.
    pub stored: String,
    /// As JSON; `none` where this run does not know the field.
    pub ours: String,
}

/// Shown as `precision: "fp32" in the table, "int8" asked for; …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences(pub Vec<Difference>);

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Difference { field, stored, ours }) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{field}: {stored} in the table, {ours} asked for")?;
        }
        Ok(())
    }
}

/// What is wrong with the feature table, or with rows for it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the vectors in {path} were made with other settings ({differences}); \
         name another `features` folder for these settings, or delete that one to embed everything again"
    )]
    FingerprintMismatch { path: String, differences: Differences },
    #[error("{path} is not a feature table: {reason}; name an empty or new folder for `features`")]
    NotATable { path: String, reason: String },
    #[error(
        "{path} has schema version {found}, this imagedex reads and writes {known}; use the imagedex that wrote it, or delete the folder \
         to embed again"
    )]
    OtherSchema { path: String, found: String, known: u32 },
    /// The file system said no; the remedy goes by the kind of error.
    #[error("{path}: {reason}; {remedy}")]
    Io { path: String, reason: String, remedy: &'static str },
    #[error("the feature table is damaged: {file} {reason}; {remedy}")]
    Damaged { file: String, reason: String, remedy: &'static str },
    #[error(
        "{gone} of {stored} {split} pictures are no longer in the input, more than input.max_deleted = {budget} allows, so nothing was \
         changed; if a folder is not mounted, mount it; if the pictures are gone for good, run once with \
         --set input.max_deleted=100%"
    )]
    TooManyGone { split: &'static str, gone: usize, stored: usize, budget: Budget },
    #[error(
        "{gone} {split} pictures are stored below {folder}, which cannot be read now ({reason}), so nothing was changed; mount it or make \
         it readable; if the pictures are gone for good, remove {folder} from the input"
    )]
    BelowUnreadable { split: &'static str, folder: String, reason: String, gone: usize },
    #[error("{path} cannot be read: {reason}; run `imagedex extract` to write it again")]
    Unreadable { path: String, reason: String },
    #[error(
        "{path} was written by a program that is newer than this one: {reason}; use a newer imagedex, or name another table"
    )]
    Newer { path: String, reason: String },
    #[error(
        "{url} is in a store that writes over objects although it is asked not to (If-None-Match), so two runs could spoil the table; use \
         another store for features.table, or a newer version of this one"
    )]
    Unconditional { url: String },
    /// See ObjectError. Exit code 2 where the configuration is at fault.
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("another program wrote to {path} at the same time ({reason}); let it finish, then run again")]
    Conflict { path: String, reason: String },
    /// A file that is imported holds what no table can. Mend the file, and import it again.
    #[error("{split} picture {id:?}: {reason}")]
    InvalidRow { split: &'static str, id: String, reason: String },
    /// A file that is imported names a picture twice. Mend the file, and import it again.
    #[error("{split} picture {id:?} is there twice: {place}")]
    Duplicate { split: &'static str, id: String, place: &'static str },
    /// None of the other kinds; the reason is that of the Delta library. Run again; if it stays, restore the table or delete its
    /// folder.
    #[error("{path}: {reason}")]
    Failed { path: String, reason: String },
}

impl StoreError {
    /// Whether the configuration is at fault rather than disk, table or another program.
    pub fn is_usage(&self) -> bool {
        match self {
            StoreError::FingerprintMismatch { .. }
            | StoreError::NotATable { .. }
            | StoreError::Unconditional { .. } => true,
            StoreError::Object(error) => error.is_usage(),
            _ => false,
        }
    }

    /// A file of the table's that cannot be read, or is not as it was written.
    pub(crate) fn damaged(file: &Path, reason: &str) -> StoreError {
        let remedy = "run `imagedex features verify --repair` with the pipeline file: it takes out what is damaged and embeds it again";
        StoreError::Damaged { file: file.display().to_string(), reason: reason.to_owned(), remedy }
    }

    /// An I/O error on `path`, with the remedy that fits its kind.
    pub(crate) fn io(path: &Path, error: &io::Error) -> StoreError {
        use io::ErrorKind::*;
        let remedy = match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => {
                "free some disk space, then run again: what is committed is kept"
            }
            PermissionDenied | ReadOnlyFilesystem => "make it writable, or name another folder",
            NotFound => "check the path",
            _ => "check the disk",
        };
        StoreError::Io { path: path.display().to_string(), reason: error.to_string(), remedy }
    }

    /// Sorts an error of Delta's into ours. The operating system's reason wins, wherever in the chain it
    /// hides.
    pub(crate) fn delta(path: &Path, error: DeltaTableError) -> StoreError {
        let shown = path.display().to_string();
        if let Some(cause) = find_io(&error) {
            return StoreError::io(path, cause);
        }
        match error {
            DeltaTableError::VersionAlreadyExists(version) => {
                StoreError::Conflict { path: shown, reason: format!("version {version} is already there") }
            }
            DeltaTableError::Transaction {
                source:
                    source @ (TransactionError::CommitConflict(_) | TransactionError::MaxCommitAttempts(_)),
            } => StoreError::Conflict { path: shown, reason: source.to_string() },
            error => {
                let reason = one_line(&error.to_string());
                match reason.contains("nsupported minimum reader")
                    || reason.contains("nsupported table feature")
                {
                    true => StoreError::Newer { path: shown, reason },
                    false => StoreError::Failed { path: shown, reason },
                }
            }
        }
    }

    /// An error of a file writer's, on the file that it was writing.
    pub(crate) fn writing(path: &Path, error: &(dyn Error + 'static)) -> StoreError {
        match find_io(error) {
            Some(cause) => StoreError::io(path, cause),
            None => {
                StoreError::Failed { path: path.display().to_string(), reason: one_line(&error.to_string()) }
            }
        }
    }

    pub(crate) fn datafusion(path: &Path, error: DataFusionError) -> StoreError {
        match find_io(&error) {
            Some(cause) => StoreError::io(path, cause),
            None => {
                StoreError::Failed { path: path.display().to_string(), reason: one_line(&error.to_string()) }
            }
        }
    }
}

/// Errors of the query engine carry back traces and plans over many lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Kinds that only the operating system gives; others are also used for what a file's content does wrong.
fn is_about_the_disk(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge | PermissionDenied | ReadOnlyFilesystem)
}

/// The operating system's error at the bottom of a chain.
fn find_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // It may be a mere wrapper around something that has a true one inside.
            let inner = io.get_ref().and_then(|inner| find_io(inner));
            let is_true = io.raw_os_error().is_some() || is_about_the_disk(io.kind());
            return inner.or(is_true.then_some(io));
        }
        next = match error.downcast_ref::<DataFusionError>() {
            // `source()` steps over errors that are shared between partitions.
            Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
            _ => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_its_remedy_however_deep_it_hides() {
        let full = io::Error::from_raw_os_error(28);
        let error = DeltaTableError::from(deltalake::ObjectStoreError::Generic {
            store: "local",
            source: Box::new(full),
        });
        let error = StoreError::delta(Path::new("features"), error);
        assert!(matches!(&error, StoreError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("free some disk space"), "{error}");
        assert!(!error.is_usage());
    }

    #[test]
    fn a_lost_race_is_a_conflict() {
        let error = StoreError::delta(Path::new("features"), DeltaTableError::VersionAlreadyExists(7));
        assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    }
}
