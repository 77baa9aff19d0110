//! The `failures` table: one plain Parquet file, written anew by every run. Small, and nobody needs its
//! history.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use tempfile::NamedTempFile;

use super::{StoreError, parse_split, writer_properties};
use crate::panics;
use crate::stages::decode::Failure;
use crate::stages::report::folder_of;

const COLUMNS: [&str; 5] = ["path", "split", "stage", "kind", "reason"];

/// Writes the failures of a run in the order given, over those of the run before. Readers see the old file or
/// the new one.
pub fn write_failures(path: &Path, failures: &[Failure]) -> Result<(), StoreError> {
    let text = |get: fn(&Failure) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(failures.iter().map(get)))
    };
    let columns = vec![
        text(|failure| &failure.path),
        text(|failure| failure.split.name()),
        text(|failure| &failure.stage),
        text(|failure| &failure.kind),
        text(|failure| &failure.reason),
    ];
    let schema = Arc::new(Schema::new(COLUMNS.map(|name| Field::new(name, DataType::Utf8, false)).to_vec()));
    let rows =
        RecordBatch::try_new(schema.clone(), columns).expect("five columns of text, all of one length");
    let failed = |error: ParquetError| StoreError::writing(path, &error);
    let mut writer =
        ArrowWriter::try_new(NewFile::create(path)?, schema, Some(writer_properties())).map_err(failed)?;
    writer.write(&rows).map_err(failed)?;
    writer.into_inner().map_err(failed)?.finish()
}

/// Reads the failures of the last run.
pub fn read_failures(path: &Path) -> Result<Vec<Failure>, StoreError> {
    let damaged =
        || StoreError::Unreadable { path: path.display().to_string(), reason: panics::DAMAGED.to_owned() };
    panics::caught(|| read(path)).unwrap_or_else(|| Err(damaged()))
}

fn read(path: &Path) -> Result<Vec<Failure>, StoreError> {
    let damaged = |reason: String| StoreError::Unreadable { path: path.display().to_string(), reason };
    let file = File::open(path).map_err(|error| StoreError::io(path, &error))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
    let mut failures = Vec::new();
    for rows in reader.map_err(|error| damaged(error.to_string()))? {
        let rows = rows.map_err(|error| damaged(error.to_string()))?;
        let column = |name: &str| {
            let column =
                rows.column_by_name(name).ok_or_else(|| damaged(format!("there is no column {name}")))?;
            cast(column, &DataType::Utf8).map_err(|error| damaged(error.to_string()))
        };
        let columns =
            [column("path")?, column("split")?, column("stage")?, column("kind")?, column("reason")?];
        let [path, split, stage, kind, reason] = columns.each_ref().map(|column| column.as_string::<i32>());
        for row in 0..rows.num_rows() {
            let split = parse_split(split.value(row))
                .ok_or_else(|| damaged(format!("unknown split {:?}", split.value(row))))?;
            let text = |column: &StringArray| column.value(row).to_owned();
            failures.push(Failure {
                path: text(path),
                split,
                stage: text(stage),
                kind: text(kind),
                reason: text(reason),
            });
        }
    }
    Ok(failures)
}

/// A file that is written under another name beside its place and takes that place when it is complete.
/// Dropped before, it is gone without a trace.
pub(crate) struct NewFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Starts a file for `path`; makes the folder where it is missing.
    pub(crate) fn create(path: &Path) -> Result<NewFile, StoreError> {
        let io = |error: io::Error| StoreError::io(path, &error);
        let dir = folder_of(path);
        super::make_folder(dir).map_err(io)?;
        let temporary = tempfile::Builder::new().prefix(".imagedex-").tempfile_in(dir).map_err(io)?;
        Ok(NewFile { temporary, path: path.to_owned() })
    }

    /// Where it is as long as it is not complete.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Flushes it to the disk, puts it in its place, and flushes its name.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        let NewFile { temporary, path } = self;
        let io = |error: io::Error| StoreError::io(&path, &error);
        readable_like_other_files(temporary.as_file()).map_err(io)?;
        temporary.as_file().sync_all().map_err(io)?;
        temporary.persist(&path).map_err(|error| io(error.error))?;
        super::sync_folder(folder_of(&path)).map_err(io)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.temporary.seek(to)
    }
}

/// Temporary files are made for their owner only; a result is for everyone whom the folder lets in.
#[cfg(unix)]
fn readable_like_other_files(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_like_other_files(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::scan::Split;

    #[test]
    fn failures_come_back_as_written_and_replace_those_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/failures.parquet");
        let failure = |path: &str| Failure {
            path: path.into(),
            split: Split::Query,
            stage: "decode".into(),
            kind: "truncated".into(),
            reason: "ends \"early\"\nafter 3 bytes".into(),
        };
        write_failures(&path, &[failure("b"), failure("a")]).unwrap();
        assert_eq!(read_failures(&path).unwrap(), [failure("b"), failure("a")]);
        write_failures(&path, &[]).unwrap();
        assert_eq!(read_failures(&path).unwrap(), []);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_cut_off_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("failures.parquet");
        std::fs::write(&path, b"PAR1").unwrap();
        let error = read_failures(&path).unwrap_err();
        assert!(
            matches!(&error, StoreError::Unreadable { path, .. } if path.ends_with("failures.parquet")),
            "{error}"
        );
    }
}
