//! How the last run ended, for node_exporter's textfile collector: metrics in Prometheus' text format, in a file that is
//! written however a run ends.
//!
//! What a newcomer would get wrong: a failed run must not forget when one last succeeded, since that is what alerts go by. So
//! that time is carried over from the file before. Every metric has the pipeline's name as a label: node_exporter merges the
//! files of its folder, and refuses all of them where two say the same.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{ReportError, RunReport, folder_of, write_whole};
use crate::exit::{Exit, UsageError};
use crate::stages::evaluate::Measure;
use crate::stats::{Books, LoadBooks};

const LAST_SUCCESS: &str = "imagedex_last_success_timestamp_seconds";

/// What a run has found out, as far as it came.
#[derive(Debug, Clone, Default)]
pub struct RunFacts {
    pub books: Option<Books>,
    pub loads: Vec<LoadBooks>,
    pub report: Option<RunReport>,
}

/// The file of one pipeline.
#[derive(Debug)]
pub struct Textfile {
    path: PathBuf,
    pipeline: String,
    started: Instant,
}

impl Textfile {
    /// A file that can be written, as far as can be known before; the run starts now.
    pub fn open(path: &Path, pipeline: &str) -> Result<Textfile, UsageError> {
        let refuse = |what: &Path, reason: &str| {
            Err(UsageError(format!("report.prometheus: {}: {reason}", what.display())))
        };
        if path.is_dir() {
            return refuse(path, "this is a folder; name a file in it that ends in .prom");
        }
        let folder = folder_of(path);
        if !folder.is_dir() {
            let remedy = "there is no such folder; make it, or name the one that node_exporter reads \
                          (--collector.textfile.directory)";
            return refuse(folder, remedy);
        }
        // Nameless, so nothing is left of it.
        if let Err(error) = tempfile::tempfile_in(folder) {
            return refuse(folder, &format!("this run may not write there ({error}); give it the right to"));
        }
        Ok(Textfile { path: path.to_owned(), pipeline: pipeline.to_owned(), started: Instant::now() })
    }

    /// Replaces the file by what there is to say of a run that ends now.
    pub fn write(&self, exit: Exit, facts: &RunFacts) -> Result<(), ReportError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let ended = Ended {
            exit,
            now,
            last_success: if exit == Exit::Done { now } else { self.last_success() },
            seconds: self.started.elapsed().as_secs_f64(),
        };
        let text = text(&self.pipeline, &ended, facts);
        write_whole(&self.path, |out| io::Write::write_all(out, text.as_bytes()))
            .map_err(|reason| ReportError::Write { path: self.path.display().to_string(), reason })
    }

    /// What the file before says; 0 where there is none.
    fn last_success(&self) -> u64 {
        let before = match fs::read(&self.path) {
            Ok(before) => String::from_utf8_lossy(&before).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
            Err(error) => {
                tracing::warn!(
                    "cannot read {}: {error}; when a run last succeeded is lost",
                    self.path.display()
                );
                return 0;
            }
        };
        let name = format!("{LAST_SUCCESS}{} ", labels(&[("pipeline", &self.pipeline)]));
        let found = before.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
        found.unwrap_or_default()
    }
}

/// How a run ended. Times in seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Ended {
    exit: Exit,
    now: u64,
    last_success: u64,
    /// How long it took.
    seconds: f64,
}

/// The whole file.
fn text(pipeline: &str, ended: &Ended, facts: &RunFacts) -> String {
    let mut text = Text { pipeline, text: String::new() };
    text.one(
        "imagedex_last_run_timestamp_seconds",
        "When the last run ended, in seconds since 1970.",
        ended.now as f64,
    );
    text.one(
        "imagedex_last_run_exit_code",
        "How the last run ended: 0 done, 1 gate, 2 usage, 3 too many failed pictures, 4 infrastructure, 75 locked, 130 interrupted.",
        f64::from(ended.exit as u8),
    );
    text.one(
        LAST_SUCCESS,
        "When a run last ended with exit code 0, in seconds since 1970; 0: never.",
        ended.last_success as f64,
    );
    text.one("imagedex_run_duration_seconds", "How long the last run took.", ended.seconds);
    if let Some(books) = &facts.books {
        write_books(books, &mut text);
    }
    if !facts.loads.is_empty() {
        write_loads(&facts.loads, &mut text);
    }
    if let Some(report) = &facts.report {
        write_report(report, &mut text);
    }
    text.text
}

fn write_books(books: &Books, text: &mut Text) {
    let outcomes = [("embedded", books.embedded), ("reused", books.reused), ("failed", books.failed)];
    text.family(
        "imagedex_pictures",
        "Pictures that the last run scanned, by what became of them.",
        outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], count as f64)),
    );
    text.one("imagedex_feature_rows", "Rows of the feature table after the last run.", books.stored as f64);
    text.one(
        "imagedex_feature_rows_deleted",
        "Rows that the last run removed since their pictures are gone.",
        books.deleted as f64,
    );
}

fn write_loads(loads: &[LoadBooks], text: &mut Text) {
    let documents = loads.iter().flat_map(|load| {
        let rejected = load.sent.saturating_sub(load.indexed + load.removed);
        let outcomes = [("indexed", load.indexed), ("removed", load.removed), ("rejected", rejected)];
        outcomes.map(|(outcome, count)| (vec![("engine", &*load.engine), ("outcome", outcome)], count as f64))
    });
    text.family(
        "imagedex_load_documents",
        "Documents and deletions that the last run sent to the engine, by what became of them.",
        documents,
    );
    let pictures = loads.iter().flat_map(|load| {
        let states = [("searchable", load.searchable), ("rejected", load.rejected)];
        states.map(|(state, count)| (vec![("engine", &*load.engine), ("state", state)], count as f64))
    });
    text.family("imagedex_gallery_pictures", "Gallery pictures, by whether searches find them.", pictures);
}

fn write_report(report: &RunReport, text: &mut Text) {
    let mut measures = Vec::new();
    for evaluation in &report.evaluations {
        for (mode, metric) in evaluation
            .modes
            .iter()
            .flat_map(|mode| mode.metrics.iter().map(move |metric| (mode.mode, metric)))
        {
            let mut push = |measure: String, value: f64| {
                measures.push((
                    evaluation.engine.as_str(),
                    metric.metric.name(),
                    mode.name(),
                    measure,
                    value,
                ));
            };
            if let Some(micro) = &metric.micro {
                let of_queries = Measure::all(&evaluation.ks).into_iter();
                of_queries
                    .filter_map(|measure| Some((measure, measure.of(micro)?)))
                    .for_each(|(measure, value)| push(measure.to_string(), value));
            }
            for recall in metric.engine_recall.iter().filter(|recall| recall.queries > 0) {
                push(format!("engine recall@{}", recall.k), recall.mean);
            }
        }
    }
    text.family(
        "imagedex_measure",
        "Means over the evaluated queries of the last run, by the names of its report.",
        measures.iter().map(|(engine, metric, mode, measure, value)| {
            let labels = [("engine", *engine), ("metric", *metric), ("mode", *mode), ("measure", measure)];
            (labels.to_vec(), *value)
        }),
    );
    let passed = report.gate.checks.iter().filter(|check| check.passed).count();
    let failed = report.gate.checks.len() - passed + usize::from(report.gate.incomparable.is_some());
    let results = [("passed", passed), ("failed", failed)];
    text.family(
        "imagedex_gate_checks",
        "Checks of the last run's gate.",
        results.map(|(result, count)| (vec![("result", result)], count as f64)),
    );
}

/// Lines of the format, each metric with the pipeline as its first label.
struct Text<'a> {
    pipeline: &'a str,
    text: String,
}

impl Text<'_> {
    /// A metric that has one value.
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, [(Vec::new(), value)]);
    }

    /// All values of a metric. `help` is one line without a backslash.
    fn family<'b>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'b str, &'b str)>, f64)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (further, value) in values {
            let all = [&[("pipeline", self.pipeline)], &*further].concat();
            let _ = writeln!(self.text, "{name}{} {value}", labels(&all));
        }
    }
}

/// `{name="value",…}`, with the three characters escaped that the format asks for.
fn labels(labels: &[(&str, &str)]) -> String {
    let escape = |value: &str| value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", labels.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"# HELP imagedex_last_run_timestamp_seconds When the last run ended, in seconds since 1970.
# TYPE imagedex_last_run_timestamp_seconds gauge
imagedex_last_run_timestamp_seconds{pipeline="a \"b\"\\c\nd"} 1700000000
"#;

    #[test]
    fn names_from_outside_stay_inside_their_label() {
        let ended = Ended { exit: Exit::Gate, now: 1_700_000_000, last_success: 0, seconds: 1.5 };
        let text = text("a \"b\"\\c\nd", &ended, &RunFacts::default());
        assert!(text.starts_with(FIRST), "{text}");
        assert_eq!(text.lines().count(), 12, "{text}");
        assert!(
            text.ends_with("imagedex_run_duration_seconds{pipeline=\"a \\\"b\\\"\\\\c\\nd\"} 1.5\n"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_run_does_not_forget_the_last_success() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.prom");
        let last_success = || {
            let text = fs::read_to_string(&path).expect("a file");
            let line =
                text.lines().find_map(|line| line.strip_prefix("imagedex_last_success_timestamp_seconds"));
            line.expect("a line").to_owned()
        };
        let file = Textfile::open(&path, "a\n\"b").expect("writable");
        file.write(Exit::Infrastructure, &RunFacts::default()).expect("written");
        assert_eq!(last_success(), "{pipeline=\"a\\n\\\"b\"} 0");
        file.write(Exit::Done, &RunFacts::default()).expect("written");
        let success = last_success();
        assert!(!success.ends_with(" 0"), "{success}");
        // Long ago, so that a clock's tick cannot hide a mistake.
        let text = fs::read_to_string(&path).expect("a file");
        let then = text.replace(&success, "{pipeline=\"a\\n\\\"b\"} 1000000000");
        for exit in [Exit::Gate, Exit::OverBudget, Exit::Interrupted, Exit::Locked] {
            fs::write(&path, &then).expect("writable");
            file.write(exit, &RunFacts::default()).expect("written");
            assert_eq!(last_success(), "{pipeline=\"a\\n\\\"b\"} 1000000000");
        }
        let other = Textfile::open(&path, "other").expect("writable");
        other.write(Exit::Gate, &RunFacts::default()).expect("written");
        assert_eq!(last_success(), "{pipeline=\"other\"} 0", "another pipeline's success is not ours");
        fs::write(&path, b"\xff no such format").expect("writable");
        file.write(Exit::Gate, &RunFacts::default()).expect("written");
        assert_eq!(last_success(), "{pipeline=\"a\\n\\\"b\"} 0");
    }

    #[test]
    fn a_place_that_will_not_do_is_known_before_the_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let said = |path: &Path| Textfile::open(path, "a").expect_err("refused").to_string();
        let text = said(folder.path());
        assert!(text.contains("this is a folder; name a file in it"), "{text}");
        let text = said(&folder.path().join("none/a.prom"));
        assert!(text.contains("none: there is no such folder; make it"), "{text}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left of the trial");
        // What comes up later is told at the end.
        let path = folder.path().join("a.prom");
        let file = Textfile::open(&path, "a").expect("writable");
        fs::create_dir(&path).expect("made");
        let text = file.write(Exit::Done, &RunFacts::default()).expect_err("a folder is there").to_string();
        assert!(text.starts_with(&format!("cannot write {}: ", path.display())), "{text}");
    }
}
