//! The report as Markdown, fit for a comment on a pull request.
//!
//! Labels and file names come from outside: everything that is not ours goes through [`escape`], or a label such as
//! `a|b`, `@team` or `<img …>` would break tables, notify people or load pictures.

use std::io::{self, Write};

use serde_json::Value;

use super::findings::{self, best, verdict};
use super::table::{Table, decimal};
use super::{EngineFailure, EngineSize, Exporter, RunReport};
use crate::stages::evaluate::{
    Evaluation, Measure, MetricEvaluation, Mode, ModeEvaluation, SearchTiming, TwinPair,
};
use crate::stages::gate::{Rule, Verdict};
use crate::text::turns_direction;

/// Classes shown in the table of the worst.
const WORST_CLASSES: usize = 5;
/// Unanswerable queries listed by name; `summary.json` has all.
const LISTED: usize = 10;
/// Classes with fewer queries are marked: one query more or less moves their figures a lot.
const FEW_IN_CLASS: usize = 5;

/// The report as Markdown.
#[derive(Debug, Clone, Copy)]
pub struct Markdown;

impl Exporter for Markdown {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "# imagedex: {}\n", escape(&report.name))?;
        write_gate(&report.gate, out)?;
        write_engines(report, out)?;
        for evaluation in &report.evaluations {
            for mode in &evaluation.modes {
                write_mode(evaluation, mode, out)?;
            }
            write_label_errors(evaluation, out)?;
        }
        write_search_times(report, out)?;
        write_sizes(report, out)?;
        write_run(report, out)?;
        write_provenance(&report.provenance, out)
    }
}

/// What failed, one line each; then every check.
fn write_gate(gate: &Verdict, out: &mut dyn Write) -> io::Result<()> {
    if gate.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Gate: {}\n", gate.outcome())?;
    let failures = gate.failures();
    for failure in &failures {
        writeln!(out, "- **{}**", escape(failure))?;
    }
    if !failures.is_empty() {
        writeln!(out)?;
    }
    if gate.checks.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", checks(gate).markdown())
}

/// A row for each check of the gate.
pub(super) fn checks(gate: &Verdict) -> Table {
    let mut table = Table::new(&["check", "found", "at least", "holds"]);
    for check in &gate.checks {
        let engine = check.engine.as_deref().unwrap_or("any engine");
        let mode = check.mode.map_or("any mode", Mode::name);
        let rule = match check.rule {
            Rule::Minimum => "",
            Rule::ExactEngine => " (built in)",
            Rule::Baseline => " (baseline)",
        };
        let class = check.fall.as_ref().and_then(|fall| fall.class.as_ref());
        let class = class.map_or(String::new(), |class| format!(" of class {class}"));
        table.rows.push(vec![
            escape(&format!("{engine}, {mode}: {} {}{class}{rule}", check.metric, check.measure)),
            check.found_text(),
            if check.fall.is_some() { decimal(check.minimum) } else { check.minimum.to_string() },
            if check.passed { "yes" } else { "**no**" }.to_owned(),
        ]);
    }
    table
}

fn write_mode(evaluation: &Evaluation, mode: &ModeEvaluation, out: &mut dyn Write) -> io::Result<()> {
    let what = match mode.mode {
        Mode::HeldOut => "held-out queries",
        Mode::LeaveOneOut => "leave-one-out",
    };
    writeln!(out, "## {}: {what}\n", escape(&evaluation.engine))?;
    writeln!(out, "**{}**\n", verdict(mode))?;
    writeln!(out, "{}\n", setting(evaluation, mode))?;
    let n = mode.queries.evaluated;
    let micro = Table::of_metrics(&mode.metrics, &evaluation.ks, n, |metric| metric.micro.as_ref());
    if !micro.rows.is_empty() {
        writeln!(out, "Mean over queries (n = {n}):\n\n{}", micro.markdown())?;
    }
    let intervals = Table::of_intervals(&mode.metrics, &evaluation.ks, |metric| metric.intervals.as_ref());
    if !intervals.rows.is_empty() {
        writeln!(
            out,
            "95 % intervals, over queries (hit@k Wilson, others bootstrap):\n\n{}",
            intervals.markdown()
        )?;
    }
    if !mode.comparisons.is_empty() {
        let table = findings::comparisons(&mode.comparisons);
        writeln!(out, "Query by query (randomisation test):\n\n{}", table.markdown())?;
    }
    let classes = mode.metrics.first().map_or(0, |metric| metric.classes.len());
    if classes > 1 {
        let by_class =
            Table::of_metrics(&mode.metrics, &evaluation.ks, classes, |metric| metric.macro_.as_ref());
        writeln!(out, "Mean over classes (n = {classes}):\n\n{}", by_class.markdown())?;
        let intervals =
            Table::of_intervals(&mode.metrics, &evaluation.ks, |metric| metric.macro_intervals.as_ref());
        if !intervals.rows.is_empty() {
            writeln!(out, "95 % intervals of those, over queries (bootstrap):\n\n{}", intervals.markdown())?;
        }
    }
    for note in notes(evaluation, mode) {
        writeln!(out, "- {note}")?;
    }
    writeln!(out)?;
    write_worst_classes(mode, out)?;
    write_leakage(evaluation, mode, out)?;
    let thresholds = findings::thresholds(mode);
    if !thresholds.rows.is_empty() {
        let k = evaluation.ks.last().copied().unwrap_or(1).min(evaluation.gallery.pictures);
        writeln!(
            out,
            "Threshold with the best F1, over the first {k} hits of each query (`search --threshold`):\n\n{}",
            thresholds.markdown()
        )?;
    }
    Ok(())
}

/// What was searched for, in what and how.
pub(super) fn setting(evaluation: &Evaluation, mode: &ModeEvaluation) -> String {
    let facts = &evaluation.gallery;
    let kind = if evaluation.exact { "exact" } else { "approximate" };
    format!(
        "{} in a gallery of {} pictures, {} labelled, {} classes; {} numbers a vector, {kind} search.",
        counted(mode.queries.total),
        facts.pictures,
        facts.labelled,
        facts.classes,
        facts.dim
    )
}

/// The same figures with and without what is in the gallery and among the queries.
fn write_leakage(evaluation: &Evaluation, mode: &ModeEvaluation, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "**Leakage.** {}\n", findings::leakage(mode))?;
    if mode.leakage.kinds.is_empty() {
        return Ok(());
    }
    let main = findings::with_and_without(mode, &findings::main_measures(&evaluation.ks));
    let every = findings::with_and_without(mode, &Measure::all(&evaluation.ks));
    writeln!(out, "{}", main.markdown())?;
    writeln!(out, "<details><summary>Every measure</summary>\n\n{}\n</details>\n", every.markdown())?;
    twins(mode).iter().try_for_each(|line| writeln!(out, "- {line}"))?;
    writeln!(out)
}

/// Pictures that are in the gallery and among the queries, a pair each.
pub(super) fn twins(mode: &ModeEvaluation) -> Vec<String> {
    let leakage = &mode.leakage;
    let pair = |pair: &TwinPair| {
        let labels = if pair.labels_differ { ", **labels differ**" } else { "" };
        format!(
            "{} = {} ({}, {} bits, cosine {}{labels})",
            escape(&pair.query),
            escape(&pair.gallery),
            pair.kind.name(),
            pair.bits,
            decimal(pair.cosine)
        )
    };
    let mut lines: Vec<String> = leakage.pairs.iter().take(LISTED).map(pair).collect();
    let more = leakage.pairs_in_all.saturating_sub(LISTED);
    lines.extend((more > 0).then(|| format!("… and {more} more pairs")));
    lines
}

fn write_label_errors(evaluation: &Evaluation, out: &mut dyn Write) -> io::Result<()> {
    let errors = &evaluation.label_errors;
    if errors.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "**Label errors**: the same picture under different labels, {}:\n",
        findings::count(errors.len(), "time", "times")
    )?;
    label_errors(evaluation).iter().try_for_each(|line| writeln!(out, "- {line}"))?;
    writeln!(out)
}

/// Pictures that are the same and labelled differently, a group each.
pub(super) fn label_errors(evaluation: &Evaluation) -> Vec<String> {
    let errors = &evaluation.label_errors;
    let mut lines: Vec<String> =
        errors.iter().take(LISTED).map(|error| escape(&findings::label_error(error))).collect();
    let more = errors.len().saturating_sub(LISTED);
    lines.extend((more > 0).then(|| format!("… and {more} more")));
    lines
}

pub(super) fn counted(queries: usize) -> String {
    findings::count(queries, "query", "queries")
}

/// What a reader of the tables must know besides, a sentence each.
pub(super) fn notes(evaluation: &Evaluation, mode: &ModeEvaluation) -> Vec<String> {
    let mut notes = Vec::new();
    let queries = &mode.queries;
    for group in &mode.same_ranking {
        let names: Vec<&str> = group.metrics.iter().map(|metric| metric.name()).collect();
        notes.push(format!(
            "Same ranking: {} put the same pictures in the same order (the first {} hits of {}, near-ties aside); what \
             differs between them there is rounding.",
            names.join(", "),
            group.depth,
            counted(group.queries)
        ));
    }
    if let Some((_, last)) =
        best(mode).and_then(|(metric, _)| metric.micro.as_ref()?.at.split_last().map(|(l, _)| (metric, l)))
        && last.recall_ceiling < 1.0
    {
        notes.push(format!(
            "R@{} cannot exceed {}: classes hold more pictures than {} hits can show.",
            last.k,
            decimal(last.recall_ceiling),
            last.k
        ));
    }
    if queries.unanswerable > 0 {
        notes.push(unanswerable(mode));
    }
    if queries.unlabelled > 0 {
        notes.push(format!("Without a label, so left out of the means: {}.", counted(queries.unlabelled)));
    }
    if queries.with_copies > 0 {
        notes.push(format!(
            "With copies of their bytes in the gallery: {}; such hits taken out of rankings and relevant sets: {}.",
            counted(queries.with_copies),
            queries.copies_removed
        ));
    }
    notes.extend(mode.metrics.iter().filter_map(ties));
    notes.extend(mode.metrics.iter().filter_map(|metric| engine_recall(evaluation, metric)));
    let others = evaluation.gallery.pictures.saturating_sub(usize::from(mode.mode == Mode::LeaveOneOut));
    for k in evaluation.ks.iter().filter(|k| **k > others) {
        notes.push(format!(
            "There are only {others} pictures to find: P@{k} still divides by {k}, and cannot exceed {}.",
            decimal(others as f64 / *k as f64)
        ));
    }
    for metric in mode.metrics.iter().filter(|metric| metric.depth < evaluation.gallery.pictures) {
        notes.push(format!("{}: MAP and MRR are over the first {} hits.", metric.metric, metric.depth));
    }
    for metric in mode.metrics.iter().filter(|metric| metric.repeated_hits > 0) {
        notes.push(format!(
            "{}: the engine repeated {} hits; they were dropped.",
            metric.metric, metric.repeated_hits
        ));
    }
    if !evaluation.unsupported.is_empty() {
        let names: Vec<&str> = evaluation.unsupported.iter().map(|metric| metric.name()).collect();
        notes.push(format!("Not measured, since the engine does not have them: {}.", names.join(", ")));
    }
    notes
}

fn unanswerable(mode: &ModeEvaluation) -> String {
    let listed = mode.unanswerable.iter().take(LISTED);
    let listed: Vec<String> =
        listed.map(|query| format!("{} ({})", escape(&query.id), escape(&query.label))).collect();
    let more = mode.unanswerable.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let both = mode.metrics.iter().filter_map(|metric| {
        let with = decimal(metric.micro_with_unanswerable.as_ref()?.ap);
        Some(format!("{} {} ({with})", metric.metric, decimal(metric.micro.as_ref()?.ap)))
    });
    let both: Vec<String> = both.collect();
    let both = if both.is_empty() {
        String::new()
    } else {
        format!(" MAP without (with them as 0): {}.", both.join(", "))
    };
    format!(
        "Without a relevant picture in the gallery, so left out of the means: {}: {}{more}.{both}",
        counted(mode.queries.unanswerable),
        listed.join(", ")
    )
}

fn ties(metric: &MetricEvaluation) -> Option<String> {
    let at: Vec<String> = metric
        .ties
        .iter()
        .filter(|ties| ties.queries > 0)
        .map(|ties| {
            let of = &ties.precision;
            format!(
                "k = {}: {}, P@{} from {} to {}, expected {}",
                ties.k,
                counted(ties.queries),
                ties.k,
                decimal(of.worst),
                decimal(of.best),
                decimal(of.expected)
            )
        })
        .collect();
    (!at.is_empty()).then(|| format!("{}: ties across rank k ({}).", metric.metric, at.join("; ")))
}

/// Said of approximate engines always, of exact ones where it is not 1.
fn engine_recall(evaluation: &Evaluation, metric: &MetricEvaluation) -> Option<String> {
    let at: Vec<String> = metric
        .engine_recall
        .iter()
        .filter(|recall| !evaluation.exact || recall.mean < 1.0)
        .map(|recall| {
            format!("{} at {} (worst query {})", decimal(recall.mean), recall.k, decimal(recall.worst))
        })
        .collect();
    if at.is_empty() {
        return None;
    }
    let warning =
        if evaluation.exact { " **An exact engine must reach 1: its answers are wrong.**" } else { "" };
    Some(format!("{}: engine recall against exact search {}.{warning}", metric.metric, at.join(", ")))
}

fn write_worst_classes(mode: &ModeEvaluation, out: &mut dyn Write) -> io::Result<()> {
    let Some((metric, _)) = best(mode).filter(|(metric, _)| metric.classes.len() > 1) else {
        return Ok(());
    };
    let mut table = classes(metric);
    table.rows.truncate(WORST_CLASSES);
    writeln!(out, "Worst classes by MAP ({}):\n\n{}", metric.metric, table.markdown())
}

/// A row for each class, the one with the least MAP first.
pub(super) fn classes(metric: &MetricEvaluation) -> Table {
    let mut classes: Vec<_> = metric.classes.iter().collect();
    classes.sort_by(|a, b| a.measures.ap.total_cmp(&b.measures.ap).then_with(|| a.label.cmp(&b.label)));
    let mut table = Table::new(&["class", "MAP", "MRR", "R-prec", "queries", "gallery"]);
    for class in classes {
        let few = if class.queries < FEW_IN_CLASS { " (few)" } else { "" };
        table.rows.push(vec![
            escape(&class.label),
            decimal(class.measures.ap),
            decimal(class.measures.rr),
            decimal(class.measures.r_precision),
            format!("{}{few}", class.queries),
            class.gallery.to_string(),
        ]);
    }
    table
}

/// Engines side by side, where there are several.
fn write_engines(report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
    if report.loads.len() + report.engine_failures.len() < 2 {
        return Ok(());
    }
    writeln!(out, "## Engines\n")?;
    dropped_out(report).iter().try_for_each(|line| writeln!(out, "- {line}"))?;
    writeln!(out, "\n{}", engines(report).markdown())
}

/// Which engines failed, a sentence each.
fn dropped_out(report: &RunReport) -> Vec<String> {
    let line = |EngineFailure { engine, reason }: &EngineFailure| {
        format!("**engine {} dropped out:** {}", escape(engine), escape(reason))
    };
    report.engine_failures.iter().map(line).collect()
}

/// What engines cost, where there are several.
fn write_sizes(report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
    match report.measured.engines.len() {
        0 | 1 => Ok(()),
        _ => writeln!(out, "## Sizes\n\n{}", sizes(report).markdown()),
    }
}

/// A row for each engine and metric: what it finds, and how fast. Measures at the greatest k.
pub(super) fn engines(report: &RunReport) -> Table {
    let k = report.evaluations.iter().filter_map(|evaluation| evaluation.ks.last()).max().copied();
    let k = k.unwrap_or(1);
    let header = [
        "engine, metric",
        "P@1",
        &format!("hit@{k}"),
        &format!("engine recall@{k}"),
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "queries/s, batched",
    ];
    let mut table = Table::new(&header);
    for evaluation in &report.evaluations {
        let Some(mode) = evaluation.modes.first() else { continue };
        for metric in &mode.metrics {
            let at = |k: usize| metric.micro.as_ref()?.at.iter().find(|at| at.k == k);
            let recall = metric.engine_recall.iter().find(|recall| recall.k == k);
            let timing = report
                .measured
                .search
                .iter()
                .find(|timing| timing.engine == evaluation.engine && timing.metric == metric.metric);
            let time = |of: fn(&SearchTiming) -> f64| {
                timing.map_or("-".to_owned(), |timing| milliseconds(of(timing)))
            };
            table.rows.push(vec![
                format!("{}, {}", escape(&evaluation.engine), metric.metric),
                at(1).map_or("-".to_owned(), |at| decimal(at.precision)),
                at(k).map_or("-".to_owned(), |at| decimal(at.hit)),
                recall.map_or("-".to_owned(), |recall| decimal(recall.mean)),
                time(|timing| timing.p50_ms),
                time(|timing| timing.p95_ms),
                time(|timing| timing.p99_ms),
                timing.map_or("-".to_owned(), |timing| format!("{:.0}", timing.queries_per_second_batched)),
            ]);
        }
    }
    table
}

/// A row for each engine: what a load takes, and how much room.
pub(super) fn sizes(report: &RunReport) -> Table {
    let mut table = Table::new(&["engine", "pictures", "load s", "pictures/s", "memory MB", "disk MB"]);
    let mb = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
    for EngineSize { engine, pictures, seconds, footprint } in &report.measured.engines {
        let rate = if *seconds > 0.0 { *pictures as f64 / seconds } else { 0.0 };
        table.rows.push(vec![
            escape(engine),
            pictures.to_string(),
            format!("{seconds:.2}"),
            format!("{rate:.0}"),
            mb(footprint.memory),
            mb(footprint.disk),
        ]);
    }
    table
}

fn write_search_times(report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
    let Some(first) = report.measured.search.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "## Search times\n\nFirst {} hits, {} timed:\n\n{}",
        first.k,
        counted(first.queries),
        search_times(report).markdown()
    )
}

/// A row for each engine and metric.
/// Small galleries take microseconds.
fn milliseconds(ms: f64) -> String {
    if ms < 0.1 { format!("{ms:.3}") } else { format!("{ms:.2}") }
}

pub(super) fn search_times(report: &RunReport) -> Table {
    let header = ["engine, metric", "p50 ms", "p95 ms", "p99 ms", "queries/s", "queries/s, batched"];
    let mut table = Table::new(&header);
    for timing in &report.measured.search {
        let [p50, p95, p99] = [timing.p50_ms, timing.p95_ms, timing.p99_ms].map(milliseconds);
        table.rows.push(vec![
            format!("{}, {}", escape(&timing.engine), timing.metric),
            p50,
            p95,
            p99,
            format!("{:.0}", timing.queries_per_second),
            format!("{:.0}", timing.queries_per_second_batched),
        ]);
    }
    table
}

fn write_run(report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
    if report.books.is_none() && report.failures.is_empty() && report.measured.stages.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Run\n")?;
    books(report).iter().try_for_each(|line| writeln!(out, "- {line}"))?;
    writeln!(out)?;
    if !report.measured.stages.is_empty() {
        writeln!(out, "{}", stages(report).markdown())?;
    }
    Ok(())
}

/// Where the pictures went, a sentence each.
pub(super) fn books(report: &RunReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(books) = &report.books {
        lines.extend(books.to_string().lines().map(str::to_owned));
        lines.extend(books.check().err().map(|difference| format!("**{difference}**")));
    }
    lines.extend(
        report
            .loads
            .iter()
            .flat_map(|books| books.to_string().lines().map(str::to_owned).collect::<Vec<_>>()),
    );
    lines.extend(dropped_out(report));
    if !report.failures.is_empty() {
        let kinds: Vec<String> =
            report.failures.iter().map(|(kind, count)| format!("{} {count}", escape(kind))).collect();
        lines.push(format!("failures by kind: {}", kinds.join(", ")));
    }
    lines
}

/// A row for each stage.
pub(super) fn stages(report: &RunReport) -> Table {
    let mut table = Table::new(&["stage", "in", "out", "MB", "seconds", "items/s"]);
    for stage in &report.measured.stages {
        table.rows.push(vec![
            escape(&stage.stage),
            stage.items_in.to_string(),
            stage.items_out.to_string(),
            format!("{:.1}", stage.bytes as f64 / 1e6),
            format!("{:.1}", stage.seconds),
            format!("{:.1}", stage.items_per_second()),
        ]);
    }
    table
}

/// One line for each fact, folded away.
fn write_provenance(provenance: &Value, out: &mut dyn Write) -> io::Result<()> {
    let Some(facts) = provenance.as_object().filter(|facts| !facts.is_empty()) else {
        return Ok(());
    };
    writeln!(out, "<details><summary>Made with</summary>\n")?;
    for (name, fact) in facts {
        let text = fact.as_str().map_or_else(|| fact.to_string(), str::to_owned);
        writeln!(out, "- {}: {}", escape(name), escape(&text))?;
    }
    writeln!(out, "\n</details>")
}

/// Text from outside as Markdown that shows exactly that text, within one line and one cell.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            // A mention, a reference to an issue, the end of a cell: no backslash stops these everywhere.
            '@' => escaped += "&#64;",
            '#' => escaped += "&#35;",
            '|' => escaped += "&#124;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '(' | ')' | '!' | '~' | '$' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '\n' | '\r' => escaped.push('↵'),
            c if c.is_control() || turns_direction(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_act() {
        assert_eq!(escape("a|b\nc"), "a&#124;b↵c");
        assert_eq!(escape("<img src=x> & `code`"), "&lt;img src=x&gt; &amp; \\`code\\`");
        assert_eq!(escape("@team #1 [x](y) snake_case"), "&#64;team &#35;1 \\[x\\]\\(y\\) snake\\_case");
        assert_eq!(escape("bell\u{7}"), "bell\u{fffd}");
        assert_eq!(escape("gpj.\u{202e}live"), "gpj.\u{fffd}live");
        assert_eq!(escape("größe 中"), "größe 中");
    }
}
