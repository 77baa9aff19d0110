//! Evaluations × a committed file → [`Check`]s: is this run as good as the one that somebody trusted?
//!
//! The file holds the measures of single queries, so runs are compared query by query. It says what it was measured on as well:
//! figures over another gallery, other queries or another model cannot be compared, and that is an error, not a pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::evaluate::{Evaluation, Measure, Mode, Pair, PerQuery, compare};
use super::gate::{Check, Fall, Rule};
use super::report::{RunReport, write_whole};
use crate::metric::Metric;

/// Version of the file's layout.
pub const SCHEMA_VERSION: u32 = 1;
/// Digits of a measure that the file keeps: it is small enough to be committed then.
const DIGITS: f64 = 1e6;

/// `[baseline]` of a pipeline file.
#[derive(Debug, Clone, PartialEq)]
pub struct BaselineRule {
    pub file: PathBuf,
    /// A mean may fall so far below the baseline's.
    pub max_drop: f64,
    /// The mean of any class may fall so far.
    pub max_class_drop: f64,
}

/// Why a run cannot be held against a baseline.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    #[error(
        "there is no baseline {path}; make one from a run that you trust: imagedex baseline set PIPELINE.toml"
    )]
    Missing { path: String },
    #[error("cannot read baseline {path}: {reason}; make it anew with imagedex baseline set")]
    Read { path: String, reason: String },
    #[error(
        "baseline {path} has layout {found}, this program reads {SCHEMA_VERSION}; make it anew with imagedex baseline set"
    )]
    Schema { path: String, found: u64 },
    /// A full disk, or no right to write.
    #[error("cannot write {path}: {reason}; free some space, or name another file with baseline.file")]
    Write { path: String, reason: String },
    #[error(
        "this run cannot be compared with baseline {path}: {what}; undo the change, or accept it with imagedex baseline set"
    )]
    Incomparable { path: String, what: String },
    /// No run has been evaluated yet, or none that can be kept. Run `imagedex run` first.
    #[error("there is nothing to make a baseline from: {0}")]
    Nothing(String),
}

impl BaselineError {
    /// Whether the caller can help it by another command.
    pub fn is_usage(&self) -> bool {
        matches!(self, BaselineError::Missing { .. } | BaselineError::Nothing(_))
    }
}

/// What figures depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// Of model, preprocessing and precision.
    pub fingerprint: String,
    /// Hex SHA-256 over ids, bytes and labels.
    pub gallery: String,
    pub queries: String,
}

/// A run that somebody trusted, query by query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// [`SCHEMA_VERSION`]
    pub schema_version: u32,
    /// Name of the pipeline.
    pub name: String,
    /// The program's version.
    pub imagedex: String,
    pub measured_on: MeasuredOn,
    /// Ids of the evaluated queries of each mode; the values below follow their order.
    pub queries: BTreeMap<String, Vec<String>>,
    pub cells: Vec<Cell>,
}

/// The queries' values of one engine, mode and metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub engine: String,
    pub mode: Mode,
    pub metric: Metric,
    /// By the names that reports print: MAP, and precision at the least cut-off.
    pub values: BTreeMap<String, Vec<f64>>,
}

/// What the evaluations of a run were measured on.
fn measured_on(fingerprint: &str, evaluations: &[Evaluation]) -> Result<MeasuredOn, BaselineError> {
    let first =
        evaluations.first().ok_or_else(|| BaselineError::Nothing("nothing was evaluated".to_owned()))?;
    Ok(MeasuredOn {
        fingerprint: fingerprint.to_owned(),
        gallery: first.pictures.gallery.clone(),
        queries: first.pictures.queries.clone(),
    })
}

impl Baseline {
    /// Of a report and the rows of its single queries.
    pub fn of(report: &RunReport, rows: &[PerQuery]) -> Result<Baseline, BaselineError> {
        let fingerprint = report.provenance["fingerprint"].as_str().unwrap_or_default();
        let mut baseline = Baseline {
            schema_version: SCHEMA_VERSION,
            name: report.name.clone(),
            imagedex: env!("CARGO_PKG_VERSION").to_owned(),
            measured_on: measured_on(fingerprint, &report.evaluations)?,
            queries: BTreeMap::new(),
            cells: Vec::new(),
        };
        for evaluation in &report.evaluations {
            let measures = measures(evaluation);
            for mode in &evaluation.modes {
                for metric in &mode.metrics {
                    let found = of_cell(rows, &evaluation.engine, mode.mode, metric.metric);
                    let ids: Vec<String> = found.keys().map(|id| (*id).to_owned()).collect();
                    let values = measures.iter().map(|&measure| {
                        (measure.to_string(), found.values().map(|row| value(row, measure)).collect())
                    });
                    baseline.queries.entry(mode.mode.name().to_owned()).or_insert(ids);
                    baseline.cells.push(Cell {
                        engine: evaluation.engine.clone(),
                        mode: mode.mode,
                        metric: metric.metric,
                        values: values.collect(),
                    });
                }
            }
        }
        if baseline.queries.values().all(Vec::is_empty) {
            return Err(BaselineError::Nothing("no query was evaluated".to_owned()));
        }
        Ok(baseline)
    }

    pub fn read(path: &Path) -> Result<Baseline, BaselineError> {
        let shown = || path.display().to_string();
        let failed = |reason: String| BaselineError::Read { path: shown(), reason };
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BaselineError::Missing { path: shown() });
            }
            text => text.map_err(|error| failed(error.to_string()))?,
        };
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        match json["schema_version"].as_u64() {
            Some(version) if version == u64::from(SCHEMA_VERSION) => {}
            Some(found) => return Err(BaselineError::Schema { path: shown(), found }),
            None => return Err(failed("it has no schema_version".to_owned())),
        }
        let baseline: Baseline = serde_json::from_value(json).map_err(|error| failed(error.to_string()))?;
        for Cell { engine, mode, metric, values } in &baseline.cells {
            let queries = baseline.queries.get(mode.name()).map_or(0, Vec::len);
            if let Some((name, short)) = values.iter().find(|(_, values)| values.len() != queries) {
                return Err(failed(format!(
                    "{engine} {metric} {name}: {} values of {queries} {} queries",
                    short.len(),
                    mode.name()
                )));
            }
        }
        Ok(baseline)
    }

    /// Writes it in one piece; one value a line would make a pull request unreadable, so each list is one line.
    pub fn write(&self, path: &Path) -> Result<(), BaselineError> {
        use std::io::Write;
        write_whole(path, |out| {
            serde_json::to_writer(&mut *out, self)?;
            writeln!(out)
        })
        .map_err(|reason| BaselineError::Write { path: path.display().to_string(), reason })
    }
}

impl BaselineRule {
    /// Each engine, mode and metric of the baseline held against the same of this run.
    pub fn judge(
        &self,
        baseline: &Baseline,
        fingerprint: &str,
        evaluations: &[Evaluation],
    ) -> Result<Vec<Check>, BaselineError> {
        let incomparable =
            |what: String| BaselineError::Incomparable { path: self.file.display().to_string(), what };
        let now = measured_on(fingerprint, evaluations)?;
        let was = &baseline.measured_on;
        let changed: Vec<&str> = [
            ("the gallery", was.gallery != now.gallery),
            ("the queries", was.queries != now.queries),
            ("the model or its settings", was.fingerprint != now.fingerprint),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect();
        if !changed.is_empty() {
            let verb = if changed.len() > 1 || changed[0] == "the queries" { "are" } else { "is" };
            return Err(incomparable(format!(
                "{} {verb} not what it was measured on",
                changed.join(" and ")
            )));
        }
        let mut checks = Vec::new();
        for cell in &baseline.cells {
            let Cell { engine, mode, metric, values } = cell;
            let rows = evaluations.iter().flat_map(|evaluation| &evaluation.per_query);
            let found = of_cell(rows, engine, *mode, *metric);
            let ids = baseline.queries.get(mode.name()).map(Vec::as_slice).unwrap_or_default();
            let common: Vec<(usize, &PerQuery)> =
                ids.iter().enumerate().filter_map(|(i, id)| Some((i, *found.get(id.as_str())?))).collect();
            if common.len() < ids.len() || ids.is_empty() {
                return Err(incomparable(format!(
                    "of its {} {} queries with {engine} and {metric} this run evaluated {}",
                    ids.len(),
                    mode.name(),
                    common.len()
                )));
            }
            for (name, before) in values {
                let measure =
                    Measure::all(&ks(evaluations)).into_iter().find(|measure| measure.to_string() == *name);
                let measure = measure
                    .ok_or_else(|| incomparable(format!("it has {name}, which this run does not measure")))?;
                let pairs: Vec<(&PerQuery, f64, f64)> =
                    common.iter().map(|(i, row)| (*row, before[*i], value(row, measure))).collect();
                checks.push(self.overall(cell, name, &pairs));
                checks.extend(self.worst_class(cell, name, &pairs).filter(|_| measure == Measure::Ap));
            }
        }
        Ok(checks)
    }

    fn overall(&self, cell: &Cell, measure: &str, pairs: &[(&PerQuery, f64, f64)]) -> Check {
        let values = pairs.iter().map(|(_, before, now)| (*before, *now)).collect();
        let comparison = compare(&[Pair { a: "baseline", b: "now", values }], measure).pop();
        self.check(cell, measure, None, pairs, self.max_drop, comparison)
    }

    /// The class whose mean fell most; of several with the same fall the first by name.
    fn worst_class(&self, cell: &Cell, measure: &str, pairs: &[(&PerQuery, f64, f64)]) -> Option<Check> {
        let mut classes: BTreeMap<&str, Vec<(&PerQuery, f64, f64)>> = BTreeMap::new();
        for pair in pairs {
            classes.entry(pair.0.label.as_deref()?).or_default().push(*pair);
        }
        let checks = classes.into_iter().map(|(class, pairs)| {
            self.check(cell, measure, Some(class.to_owned()), &pairs, self.max_class_drop, None)
        });
        let fall = |check: &Check| check.minimum - check.found.unwrap_or(0.0);
        checks.reduce(|worst, check| if fall(&check) > fall(&worst) { check } else { worst })
    }

    fn check(
        &self,
        cell: &Cell,
        measure: &str,
        class: Option<String>,
        pairs: &[(&PerQuery, f64, f64)],
        tolerated: f64,
        comparison: Option<super::evaluate::Comparison>,
    ) -> Check {
        let n = pairs.len() as f64;
        let before = pairs.iter().map(|(_, before, _)| before).sum::<f64>() / n;
        let now = pairs.iter().map(|(_, _, now)| now).sum::<f64>() / n;
        Check {
            rule: Rule::Baseline,
            engine: Some(cell.engine.clone()),
            mode: Some(cell.mode),
            metric: cell.metric,
            measure: measure.to_owned(),
            minimum: before - tolerated,
            found: Some(now),
            // What the file keeps is rounded.
            passed: now >= before - tolerated - 1.0 / DIGITS,
            fall: Some(Fall { from: before, tolerated, class, queries: pairs.len(), comparison }),
        }
    }
}

fn ks(evaluations: &[Evaluation]) -> Vec<usize> {
    evaluations.first().map(|evaluation| evaluation.ks.clone()).unwrap_or_default()
}

/// What a baseline keeps of an evaluation.
fn measures(evaluation: &Evaluation) -> Vec<Measure> {
    let least_k = evaluation.ks.first().copied();
    std::iter::once(Measure::Ap).chain(least_k.map(Measure::Precision)).collect()
}

/// The evaluated queries of one engine, mode and metric, by id.
fn of_cell<'a>(
    rows: impl IntoIterator<Item = &'a PerQuery>,
    engine: &str,
    mode: Mode,
    metric: Metric,
) -> BTreeMap<&'a str, &'a PerQuery> {
    rows.into_iter()
        .filter(|row| {
            row.measures.is_some() && row.engine == engine && row.mode == mode && row.metric == metric
        })
        .map(|row| (row.query.as_str(), row))
        .collect()
}

fn value(row: &PerQuery, measure: Measure) -> f64 {
    let value = row.measures.as_ref().and_then(|measures| measure.of(measures)).unwrap_or(0.0);
    (value * DIGITS).round() / DIGITS
}
