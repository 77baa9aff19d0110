//! [`RunReport`] → what people and machines read of a run: `summary.json`, Markdown for a pull request, a page for a
//! browser, JUnit XML for CI, a table on the terminal; and `run.json`, the record of how the run itself went. Not made from
//! it, since they tell of more than a report holds: whole rankings ([`trec`]), and runs that came to no report
//! ([`prometheus`]).
//!
//! `summary.json` is the report: the others are made from it, so `imagedex report` can write them again from it alone
//! (the page needs `per_query.parquet` and the picture files as well).
//! Its part `measured` holds all that differs between two runs over the same input; the rest may be compared as text.

mod findings;
pub mod github;
pub mod html;
mod junit;
mod markdown;
pub mod prometheus;
mod table;
mod terminal;
pub mod trec;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::engines::Footprint;
use crate::memory::Record;
use crate::stages::decode::Failure;
use crate::stages::evaluate::{Evaluation, SearchTiming, read_per_query};
use crate::stages::gate::Verdict;
use crate::stages::scan::sha256_of;
use crate::stages::store::sync_folder;
use crate::stats::{Books, LoadBooks, StageStats};

pub use findings::range;
pub use html::{Html, Pictures, sweep_page};
pub use junit::Junit;
pub use markdown::{Markdown, escape};
pub use table::{Table, decimal};
pub use terminal::Terminal;

/// Version of the layout of `summary.json` and `run.json`: raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Why a report could not be written, or read back.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A full disk, or no right to write.
    #[error("cannot write {path}: {reason}; free some space, or name another `work` folder")]
    Write { path: String, reason: String },
    #[error("cannot read {path}: {reason}; `imagedex run` writes it anew")]
    Read { path: String, reason: String },
    #[error("{path} has layout {found}, this program reads {SCHEMA_VERSION}: run `imagedex evaluate` again")]
    Schema { path: String, found: u64 },
    #[error(
        "{path} and the summary.json beside it are of two runs, as a run was cut off while it wrote them; run `imagedex evaluate`, which \
         writes both"
    )]
    OfTwoRuns { path: String },
}

/// All that there is to say of a run's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Name of the pipeline.
    pub name: String,
    /// What the results were made with: model, preprocessing, versions.
    pub provenance: Value,
    /// Where the pictures went; nothing where this run scanned none.
    pub books: Option<Books>,
    /// Where the pictures of each load went.
    pub loads: Vec<LoadBooks>,
    /// Engines that dropped out while others went on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_failures: Vec<EngineFailure>,
    /// Pictures that could not be used, by kind.
    pub failures: BTreeMap<String, u64>,
    /// One for each way to search an engine.
    pub evaluations: Vec<Evaluation>,
    /// Whether they are good enough; left out where nothing was asked and nothing was wrong.
    #[serde(default, skip_serializing_if = "Verdict::is_empty")]
    pub gate: Verdict,
    /// Of the `per_query.parquet` that was written with it: what tells the two files of one run from those of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_query_sha256: Option<String>,
    /// What differs from run to run.
    pub measured: Measured,
}

/// Times and sizes, the only part of a report that two runs over the same input do not share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub stages: Vec<StageStats>,
    pub engines: Vec<EngineSize>,
    pub search: Vec<SearchTiming>,
}

/// What it took to load an engine, and how large it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineSize {
    pub engine: String,
    /// Pictures that can be searched.
    pub pictures: u64,
    /// Wall-clock time of the load: reading the feature table, building or sending, checking.
    pub seconds: f64,
    #[serde(flatten)]
    pub footprint: Footprint,
}

/// An engine that was loaded.
#[derive(Debug, Clone)]
pub struct Load {
    pub books: LoadBooks,
    /// Wall-clock time.
    pub seconds: f64,
    pub footprint: Footprint,
}

/// An engine that dropped out of a run with several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineFailure {
    pub engine: String,
    pub reason: String,
}

impl RunReport {
    /// A report with the evaluations' timings set apart.
    pub fn new(name: &str, provenance: Value, evaluations: Vec<Evaluation>) -> RunReport {
        let mut report = RunReport {
            schema_version: SCHEMA_VERSION,
            name: name.to_owned(),
            provenance,
            books: None,
            loads: Vec::new(),
            engine_failures: Vec::new(),
            failures: BTreeMap::new(),
            evaluations,
            gate: Verdict::default(),
            per_query_sha256: None,
            measured: Measured::default(),
        };
        for evaluation in &mut report.evaluations {
            report.measured.search.append(&mut evaluation.timings);
        }
        report
    }

    /// With the books and failures of the run that extracted the pictures, and what its stages did.
    pub fn with_run(mut self, books: Books, failures: &[Failure], stages: Vec<StageStats>) -> RunReport {
        self.books = Some(books);
        self.failures = count_by_kind(failures);
        self.measured.stages = stages;
        self
    }

    /// With the books of each load, and what it took.
    pub fn with_loads(mut self, loads: Vec<Load>) -> RunReport {
        for Load { books, seconds, footprint } in loads {
            let (engine, pictures) = (books.engine.clone(), books.searchable);
            self.measured.engines.push(EngineSize { engine, pictures, seconds, footprint });
            self.loads.push(books);
        }
        self
    }

    /// With the engines that dropped out.
    pub fn with_engine_failures(mut self, failures: Vec<EngineFailure>) -> RunReport {
        self.engine_failures = failures;
        self
    }

    /// With what the gate says of the evaluations.
    pub fn with_gate(mut self, gate: Verdict) -> RunReport {
        self.gate = gate;
        self
    }

    /// Refuses a `per_query.parquet` of another run than this report's.
    pub fn check_queries(&self, path: &Path) -> Result<(), ReportError> {
        let shown = || path.display().to_string();
        let Some(ours) = &self.per_query_sha256 else { return Ok(()) };
        match sha256_of(path) {
            Ok(found) if found == *ours => Ok(()),
            Ok(_) => Err(ReportError::OfTwoRuns { path: shown() }),
            Err(error) => Err(ReportError::Read { path: shown(), reason: error.to_string() }),
        }
    }

    /// With what each query came to, from the evaluation's `per_query.parquet`. Without that file there is still a report.
    ///
    /// Errors: the file is of another run.
    pub fn with_queries(mut self, path: &Path) -> Result<RunReport, ReportError> {
        if path.exists() {
            self.check_queries(path)?;
        }
        let rows = read_per_query(path).unwrap_or_else(|reason| {
            tracing::warn!("no page shows single queries: cannot read {}: {reason}", path.display());
            Vec::new()
        });
        for row in rows {
            if let Some(of) = self.evaluations.iter_mut().find(|of| of.engine == row.engine) {
                of.per_query.push(row);
            }
        }
        Ok(self)
    }

    /// Reads a `summary.json`. The rows of single queries are not in it.
    pub fn read(path: &Path) -> Result<RunReport, ReportError> {
        let failed = |reason: String| ReportError::Read { path: path.display().to_string(), reason };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        match value.get("schema_version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(SCHEMA_VERSION) => {}
            Some(found) => return Err(ReportError::Schema { path: path.display().to_string(), found }),
            None => return Err(failed("it has no schema_version".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| failed(error.to_string()))
    }
}

/// How many failures there are of each kind.
pub fn count_by_kind(failures: &[Failure]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for failure in failures {
        *counts.entry(failure.kind.clone()).or_default() += 1;
    }
    counts
}

/// Writes a report in one format.
pub trait Exporter {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()>;
}

/// `summary.json`: indented, keys in the order of the fields, numbers in full precision.
#[derive(Debug, Clone, Copy)]
pub struct Summary;

impl Exporter for Summary {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, report)?;
        writeln!(out)
    }
}

/// Writes a report to a file, which is replaced once the new one is whole.
pub fn export(report: &RunReport, exporter: &dyn Exporter, path: &Path) -> Result<(), ReportError> {
    write_whole(path, |out| {
        let mut out = io::BufWriter::new(out);
        exporter.write(report, &mut out)?;
        out.flush()
    })
    .map_err(|reason| ReportError::Write { path: path.display().to_string(), reason })
}

/// How a run went: `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    pub name: String,
    /// As the shell saw it; docs and `imagedex --help` list them.
    pub exit_code: i32,
    pub provenance: Value,
    pub books: Option<Books>,
    pub failures: BTreeMap<String, u64>,
    pub stages: Vec<StageStats>,
    /// Version of the feature table after the run; a run that changes nothing leaves it as it was.
    pub table_version: Option<u64>,
    /// Where the pipeline file has a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Record>,
}

impl RunRecord {
    /// The record of a run that ended with `exit_code`.
    pub fn new(name: &str, exit_code: i32, provenance: Value) -> RunRecord {
        RunRecord {
            schema_version: SCHEMA_VERSION,
            name: name.to_owned(),
            exit_code,
            provenance,
            books: None,
            failures: BTreeMap::new(),
            stages: Vec::new(),
            table_version: None,
            memory: None,
        }
    }

    /// Reads a `run.json`.
    pub fn read(path: &Path) -> Result<RunRecord, ReportError> {
        let failed = |reason: String| ReportError::Read { path: path.display().to_string(), reason };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
    }

    /// Writes it to a file, which is replaced once the new one is whole.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        write_whole(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            writeln!(out)
        })
        .map_err(|reason| ReportError::Write { path: path.display().to_string(), reason })
    }
}

/// Writes a file beside `path` and renames it over `path` once it is whole and on disk, and flushes the name as well: readers
/// see the old file or the new one, never half of either, also after a power cut. On an error says why, and leaves the old one.
/// A pipe or a device is written to, and stays what it is.
pub(crate) fn write_whole<E: fmt::Display + From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), String> {
    if fs::metadata(path).is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(|error| error.to_string())?;
        return write(&mut file).map_err(|error| error.to_string());
    }
    let mut file = temporary_in(folder_of(path)).map_err(|error| error.to_string())?;
    write(file.as_file_mut()).map_err(|error| error.to_string())?;
    file.as_file().sync_all().map_err(|error| error.to_string())?;
    file.persist(path).map_err(|error| error.error.to_string())?;
    sync_folder(folder_of(path)).map_err(|error| error.to_string())
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that goes away unless it is given its name.
pub(crate) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes a file like any other, as the umask says.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".imagedex-").tempfile_in(folder)
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn a_pipe_is_written_to_and_stays_a_pipe() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("page.html");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts");
        assert!(made.success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut text = String::new();
                File::open(pipe).and_then(|mut pipe| pipe.read_to_string(&mut text)).map(|_| text)
            }
        });
        write_whole(&pipe, |out| out.write_all(b"a page")).expect("written");
        assert_eq!(reader.join().expect("no panic").expect("read"), "a page");
        assert!(fs::metadata(&pipe).expect("there").file_type().is_fifo());
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing beside it");
    }
}
