//! One pipeline under several settings → one table: which setting is best, and which of the others are worse beyond noise.
//!
//! Pictures are embedded once for each model setting, in a feature table of its own beside the pipeline's; spaces and metrics
//! share it. What a newcomer would get wrong: the best of many settings looks better than it is, since the largest of many noisy
//! figures is large by luck too. So the differences to it are tested query by query, and adjusted for their number.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::commands::say;
use crate::config::PipelineConfig;
use crate::exit::{Exit, UsageError};
use crate::interrupt;
use crate::models::{Normalize, Pooling, Precision, Resize};
use crate::pipeline::Run;
use crate::stages::evaluate::{
    self, Comparison, Evaluation, FEW_QUERIES, Interval, Measure, MetricEvaluation, Mode, Pair, Space,
    bare_chance,
};
use crate::stages::report::{SCHEMA_VERSION, Table, decimal, escape, range, sweep_page, write_whole};

/// `[sweep]` of a pipeline file: the values to try of each setting; what is left out stays as the pipeline has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sweep {
    pub pooling: Vec<Pooling>,
    pub precision: Vec<Precision>,
    pub resize: Vec<Resize>,
    /// `stored`: as the table holds the vectors; `raw`: with their lengths, on which cosine, dot product and L2 differ.
    pub space: Vec<Space>,
}

/// A model setting and a space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    pub pooling: Pooling,
    pub precision: Precision,
    /// Nothing: the card's filter.
    pub resize: Option<Resize>,
    pub space: Space,
}

impl Setting {
    /// `max fp32`, `avg int8 bilinear raw`
    pub fn name(&self) -> String {
        let resize = self.resize.map(|resize| format!(" {}", resize.name())).unwrap_or_default();
        let space = if self.space == Space::Raw { " raw" } else { "" };
        format!("{} {}{resize}{space}", self.pooling.name(), self.precision.name())
    }
}

/// One setting, evaluated with one way to search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepCell {
    pub setting: Setting,
    pub fingerprint: String,
    pub evaluation: Evaluation,
}

/// `sweep.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Of all reports.
    pub schema_version: u32,
    pub name: String,
    pub cells: Vec<SweepCell>,
    /// Of each mode.
    pub rankings: Vec<Ranking>,
}

/// All settings and metrics of a mode, the best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    pub mode: Mode,
    /// Evaluated queries, the same ones for all.
    pub queries: usize,
    /// The least cut-off: that of [`RankedSetting::precision`].
    pub least_k: usize,
    pub rows: Vec<RankedSetting>,
}

/// A setting with the metrics that rank alike under it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedSetting {
    /// `avg fp32 raw, flat: cosine`; of metrics that rank alike the first one stands for all.
    pub name: String,
    pub map: f64,
    pub interval: Option<Interval>,
    /// Precision at the least cut-off.
    pub precision: Option<f64>,
    /// The best setting against this one, by MAP; nothing of the best itself.
    pub comparison: Option<Comparison>,
}

/// Runs the sweep of `config` and writes `report/sweep.json`, `report/sweep.md` and `report/sweep.html`.
pub fn sweep(config: &PipelineConfig) -> anyhow::Result<Exit> {
    let settings = settings(config)?;
    let run = Run::start(config)?;
    let mut cells = Vec::new();
    for (i, (setting, variant)) in settings.iter().enumerate() {
        tracing::info!("setting {} of {}: {}", i + 1, settings.len(), setting.name());
        // The pipeline's own work folder is held already.
        let variant_run =
            if variant.work == config.work { Run::look(variant)? } else { Run::start(variant)? };
        let extracted = variant_run.extract()?;
        if extracted.exit() != Exit::Done || interrupt::is_set() {
            return Ok(extracted.exit());
        }
        let spaces =
            if config.sweep.space.is_empty() { vec![Space::Stored] } else { config.sweep.space.clone() };
        for space in spaces {
            let setting = Setting { space, ..setting.clone() };
            for evaluation in variant_run.evaluate_in_memory(space)? {
                let fingerprint = extracted.fingerprint().to_owned();
                cells.push(SweepCell { setting: setting.clone(), fingerprint, evaluation });
            }
        }
    }
    let report = SweepReport {
        schema_version: SCHEMA_VERSION,
        name: config.name.clone(),
        rankings: config.evaluate.modes.iter().filter_map(|&mode| Ranking::of(mode, &cells)).collect(),
        cells,
    };
    let folder = run.report_dir();
    std::fs::create_dir_all(&folder)
        .map_err(|error| anyhow::anyhow!("cannot make {}: {error}", folder.display()))?;
    let failed =
        |reason: String| anyhow::anyhow!("cannot write the sweep into {}: {reason}", folder.display());
    write_whole(&folder.join("sweep.json"), |out| {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)
    })
    .map_err(failed)?;
    write_whole(&folder.join("sweep.md"), |out| report.markdown(out)).map_err(failed)?;
    let page = sweep_page(&report);
    write_whole(&folder.join("sweep.html"), |out| out.write_all(page.as_bytes())).map_err(failed)?;
    let mut text = Vec::new();
    report.plain(&mut text)?;
    for name in ["sweep.md", "sweep.html"] {
        text.extend(format!("report: {}\n", folder.join(name).display()).into_bytes());
    }
    say(&text)?;
    Ok(Exit::Done)
}

/// Each model setting, with the pipeline that it makes.
fn settings(config: &PipelineConfig) -> anyhow::Result<Vec<(Setting, PipelineConfig)>> {
    let Sweep { pooling, precision, resize, space } = &config.sweep;
    let own = &config.model;
    let or = |values: &[Pooling]| if values.is_empty() { vec![own.pooling] } else { values.to_vec() };
    let precisions = if precision.is_empty() { vec![own.precision] } else { precision.clone() };
    let resizes: Vec<Option<Resize>> =
        if resize.is_empty() { vec![own.resize] } else { resize.iter().copied().map(Some).collect() };
    if space.contains(&Space::Raw) && own.normalize == Normalize::None {
        let reason =
            "sweep.space: the vectors of model.normalize = \"none\" are raw already; leave sweep.space out";
        return Err(UsageError(reason.to_owned()).into());
    }
    if config.sweep == Sweep::default() {
        let reason = "the pipeline file has no section [sweep]; name what to try, such as pooling = [\"max\", \"avg\"]";
        return Err(UsageError(reason.to_owned()).into());
    }
    if let Some(server) = config.engines.iter().find(|engine| !engine.is_filled_here()) {
        let reason = format!(
            "a sweep searches in memory, and load.engine names {}; try --set load.engine=flat",
            server.name()
        );
        return Err(UsageError(reason).into());
    }
    let mut settings = Vec::new();
    for &pooling in &or(pooling) {
        for &precision in &precisions {
            for &resize in &resizes {
                let setting = Setting { pooling, precision, resize, space: Space::Stored };
                let mut variant = config.clone();
                (variant.model.pooling, variant.model.precision, variant.model.resize) =
                    (pooling, precision, resize);
                if variant.model != config.model {
                    variant.work = config.work.join("sweep").join(setting.name().replace(' ', "-"));
                    variant.features = variant.work.join("features");
                    variant.features_at = None;
                }
                settings.push((setting, variant));
            }
        }
    }
    Ok(settings)
}

/// One line of a ranking, before it is compared.
struct Contender<'a> {
    name: String,
    metric: &'a MetricEvaluation,
    least_k: usize,
    /// Average precision by query.
    aps: BTreeMap<&'a str, f64>,
}

impl Ranking {
    /// Nothing where no query was evaluated.
    fn of(mode: Mode, cells: &[SweepCell]) -> Option<Ranking> {
        let mut contenders: Vec<Contender> = cells.iter().flat_map(|cell| contenders(mode, cell)).collect();
        let map = |contender: &Contender| contender.metric.micro.as_ref().map_or(0.0, |micro| micro.ap);
        // Of equals the first setting of the file.
        contenders.sort_by(|a, b| map(b).total_cmp(&map(a)));
        let (best, others) = contenders.split_first()?;
        let common: Vec<&str> = best
            .aps
            .keys()
            .copied()
            .filter(|query| others.iter().all(|other| other.aps.contains_key(query)))
            .collect();
        let pairs: Vec<Pair> = others
            .iter()
            .map(|other| Pair {
                a: &best.name,
                b: &other.name,
                values: common.iter().map(|query| (best.aps[query], other.aps[query])).collect(),
            })
            .collect();
        let mut compared = evaluate::compare(&pairs, &Measure::Ap.to_string()).into_iter();
        let rows = contenders.iter().enumerate().map(|(i, contender)| RankedSetting {
            name: contender.name.clone(),
            map: map(contender),
            interval: contender
                .metric
                .intervals
                .as_ref()
                .and_then(|intervals| intervals.interval(Measure::Ap)),
            precision: contender
                .metric
                .micro
                .as_ref()
                .and_then(|micro| Measure::Precision(contender.least_k).of(micro)),
            comparison: if i == 0 { None } else { compared.next() },
        });
        Some(Ranking { mode, queries: common.len(), least_k: best.least_k, rows: rows.collect() })
    }

    /// The best setting, and what is known of the others.
    pub fn verdict(&self) -> String {
        let Some(best) = self.rows.first() else { return "nothing was evaluated".to_owned() };
        if self.queries < FEW_QUERIES {
            return format!(
                "Too few queries for a verdict: n = {}, at least {FEW_QUERIES} are needed.",
                self.queries
            );
        }
        let compared: Vec<&Comparison> = self.rows.iter().filter_map(|row| row.comparison.as_ref()).collect();
        let worse = compared.iter().filter(|comparison| comparison.beyond_noise).count();
        let head = format!("{} has the highest MAP, {} (n = {})", best.name, decimal(best.map), self.queries);
        match compared.len() {
            0 => format!("{head}."),
            all => format!(
                "{head}; of the {all} others, worse beyond noise: {worse}, not told apart from it: {}.",
                all - worse
            ),
        }
    }

    fn table(&self) -> Table {
        let precision = format!("P@{}", self.least_k);
        let heads = ["setting", "MAP", "95 %", &precision, "below the best", "p (Holm)", "beyond noise"];
        let mut table = Table::new(&heads);
        for row in &self.rows {
            let compared = row.comparison.as_ref();
            let cell = |of: &dyn Fn(&Comparison) -> String| compared.map_or("-".to_owned(), of);
            table.rows.push(vec![
                row.name.clone(),
                decimal(row.map),
                row.interval.map_or("-".to_owned(), range),
                row.precision.map_or("-".to_owned(), decimal),
                cell(&|comparison| decimal(comparison.difference)),
                cell(&|comparison| bare_chance(comparison.p_holm)),
                cell(&|comparison| if comparison.beyond_noise { "yes" } else { "no" }.to_owned()),
            ]);
        }
        table
    }

    /// The same as text of Markdown: names of engines come from outside.
    pub fn escaped_table(&self) -> Table {
        let mut table = self.table();
        for row in &mut table.rows {
            row[0] = escape(&row[0]);
        }
        table
    }
}

/// The metrics of a cell, those that rank alike as one.
fn contenders<'a>(mode: Mode, cell: &'a SweepCell) -> Vec<Contender<'a>> {
    let evaluation = &cell.evaluation;
    let Some(found) = evaluation.modes.iter().find(|found| found.mode == mode) else { return Vec::new() };
    let contender = |metric: &'a MetricEvaluation| {
        let group = found.same_ranking.iter().find(|group| group.metrics.contains(&metric.metric));
        if group.is_some_and(|group| group.metrics.first() != Some(&metric.metric)) || metric.micro.is_none()
        {
            return None;
        }
        let metrics = group.map_or(vec![metric.metric], |group| group.metrics.clone());
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name()).collect();
        let rows = evaluation.per_query.iter().filter(|row| row.mode == mode && row.metric == metric.metric);
        Some(Contender {
            name: format!("{}, {}: {}", cell.setting.name(), evaluation.engine, names.join(" = ")),
            metric,
            least_k: evaluation.ks.first().copied().unwrap_or(1),
            aps: rows.filter_map(|row| Some((row.query.as_str(), row.measures.as_ref()?.ap))).collect(),
        })
    };
    found.metrics.iter().filter_map(contender).collect()
}

impl SweepReport {
    /// How its tables are made.
    pub const HOW: &str = "Metrics joined by = put the same pictures in the same order. Each setting is held against the best one, \
                           query by query (randomisation test, Holm's adjustment).";

    fn markdown(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "# imagedex sweep: {}\n", escape(&self.name))?;
        for ranking in &self.rankings {
            writeln!(out, "## {}\n\n**{}**\n", ranking.mode.name(), escape(&ranking.verdict()))?;
            writeln!(out, "{}", ranking.escaped_table().markdown())?;
        }
        writeln!(out, "{}", SweepReport::HOW)
    }

    fn plain(&self, out: &mut dyn Write) -> io::Result<()> {
        for ranking in &self.rankings {
            write!(out, "{}", ranking.table().plain())?;
            writeln!(out, "{}", ranking.verdict())?;
        }
        Ok(())
    }
}
