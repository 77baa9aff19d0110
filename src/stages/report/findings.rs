//! What the figures allow to say, and no more: the sentences and tables that all forms of the report share.
//!
//! Cells and sentences hold text from outside as it is; each form escapes it in its own way.

use super::table::{Table, decimal};
use crate::metric::Metric;
use crate::stages::evaluate::{
    Adjusted, Comparison, FEW_QUERIES, Interval, LabelError, Measure, Measures, MetricEvaluation,
    ModeEvaluation, WithLeakage, bare_chance, chance,
};

/// The verdict of one mode in a sentence or two.
pub fn verdict(mode: &ModeEvaluation) -> String {
    let n = mode.queries.evaluated;
    let Some((best, map)) = best(mode) else {
        return "No query could be evaluated: none has both a label and a picture of that label in the gallery.".to_owned();
    };
    if mode.is_too_small() {
        return format!("Too few queries for a verdict: n = {n}, at least {FEW_QUERIES} are needed.");
    }
    let group = mode.same_ranking.iter().find(|group| group.metrics.contains(&best.metric));
    let metrics = group.map_or(vec![best.metric], |group| group.metrics.clone());
    let interval = best.intervals.as_ref().and_then(|intervals| intervals.interval(Measure::Ap));
    let interval = interval.map_or(String::new(), |interval| format!(", 95 % {}", range(interval)));
    let head = match metrics.as_slice() {
        [one] => format!("{one} has the highest MAP, {} (n = {n}{interval})", decimal(map)),
        several => {
            format!(
                "{} rank alike and have the highest MAP, {} (n = {n}{interval})",
                names(several),
                decimal(map)
            )
        }
    };
    // Of metrics that rank alike the first one was compared.
    let stands_for = metrics.first().map_or("", |metric| metric.name());
    let compared = mode.comparisons.iter().filter(|comparison| comparison.measure == Measure::Ap.to_string());
    let (beyond, within): (Vec<&Comparison>, Vec<&Comparison>) = compared
        .filter(|comparison| comparison.a == stands_for)
        .partition(|comparison| comparison.beyond_noise);
    let list = |comparisons: &[&Comparison]| {
        let each = comparisons.iter().map(|comparison| {
            let by = format!("by {}, {}", decimal(comparison.difference), chance(comparison.p_holm));
            format!("{} ({by})", comparison.b)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let mut sentences = vec![head];
    if !beyond.is_empty() {
        sentences.push(format!("better beyond noise than {}", list(&beyond)));
    }
    if !within.is_empty() {
        sentences.push(format!("not told apart from {}", list(&within)));
    }
    format!("{}.", sentences.join("; "))
}

/// The metric with the greatest MAP, the first of equals.
pub fn best(mode: &ModeEvaluation) -> Option<(&MetricEvaluation, f64)> {
    let greater = |a: (_, f64), b: (_, f64)| if b.1 > a.1 { b } else { a };
    mode.metrics.iter().filter_map(|metric| Some((metric, metric.micro.as_ref()?.ap))).reduce(greater)
}

fn names(metrics: &[Metric]) -> String {
    metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ")
}

/// `0.3051 to 0.3802`
pub fn range(interval: Interval) -> String {
    format!("{} to {}", decimal(interval.low), decimal(interval.high))
}

/// Metrics against each other.
pub fn comparisons(comparisons: &[Comparison]) -> Table {
    let mut table = Table::new(&[
        "compared",
        "measure",
        "difference",
        "95 %",
        "won, tied, lost",
        "p (Holm)",
        "beyond noise",
    ]);
    for comparison in comparisons {
        table.rows.push(vec![
            format!("{} > {}", comparison.a, comparison.b),
            comparison.measure.clone(),
            decimal(comparison.difference),
            comparison.interval.map_or("-".to_owned(), range),
            format!("{}, {}, {}", comparison.wins, comparison.ties, comparison.losses),
            bare_chance(comparison.p_holm),
            if comparison.beyond_noise { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

/// `1 query`, `2 queries`
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// What is in the gallery and among the queries, and where that could not be looked for.
pub fn leakage(mode: &ModeEvaluation) -> String {
    let leakage = &mode.leakage;
    let kinds: Vec<String> = leakage
        .kinds
        .iter()
        .map(|kind| {
            let queries = count(kind.queries, "query", "queries");
            format!(
                "{}: {queries}, {}",
                kind.kind.name(),
                count(kind.gallery, "gallery picture", "gallery pictures")
            )
        })
        .collect();
    let contrary = leakage.pairs.iter().filter(|pair| pair.labels_differ).count();
    let mut sentences = Vec::new();
    if !kinds.is_empty() {
        sentences.push(format!("In the gallery and among the queries: {}.", kinds.join("; ")));
    } else if leakage.unhashed == 0 || leakage.unhashed < leakage.looked_through {
        sentences.push("No gallery picture is a copy or a near duplicate of a query.".to_owned());
    }
    if contrary > 0 {
        sentences.push(format!("Of the listed pairs with different labels: {contrary}."));
    }
    if leakage.unhashed > 0 {
        sentences.push(format!(
            "It was not looked for in {} of {} pictures: their vectors were imported, without hashes of the pictures.",
            leakage.unhashed, leakage.looked_through
        ));
    }
    sentences.join(" ")
}

/// These measures with and without what leaked; rows only for metrics that something leaked into.
pub fn with_and_without(mode: &ModeEvaluation, measures: &[Measure]) -> Table {
    let mut table =
        Table::new(&["", "all pictures", "as reported", "without copies", "without near duplicates"]);
    for metric in &mode.metrics {
        let Some(WithLeakage { all, without_copies, without_near }) = &metric.leakage else { continue };
        for measure in measures {
            let of = |micro: Option<&Measures>| {
                micro.and_then(|micro| measure.of(micro)).map_or("-".to_owned(), decimal)
            };
            let adjusted = |adjusted: &Adjusted| of(adjusted.micro.as_ref());
            table.rows.push(vec![
                format!("{measure}, {}", metric.metric.name()),
                adjusted(all),
                of(metric.micro.as_ref()),
                adjusted(without_copies),
                adjusted(without_near),
            ]);
        }
    }
    table
}

/// What a first look is for: MAP, and precision at the least cut-off.
pub fn main_measures(ks: &[usize]) -> [Measure; 2] {
    [Measure::Ap, Measure::Precision(ks.first().copied().unwrap_or(1))]
}

/// The best threshold of each metric; rows only where there is a right hit.
pub fn thresholds(mode: &ModeEvaluation) -> Table {
    let mut table = Table::new(&["metric", "threshold", "95 %", "precision", "recall", "F1", "F1, 95 %"]);
    for metric in &mode.metrics {
        let Some(best) = &metric.thresholds.best else { continue };
        table.rows.push(vec![
            metric.metric.name().to_owned(),
            decimal(f64::from(best.point.threshold)),
            best.threshold_interval.map_or("-".to_owned(), range),
            decimal(best.point.precision),
            decimal(best.point.recall),
            decimal(best.point.f1),
            best.f1_interval.map_or("-".to_owned(), range),
        ]);
    }
    table
}

/// One sentence for one picture under several labels.
pub fn label_error(error: &LabelError) -> String {
    format!(
        "{} have the {}, labelled {}",
        error.pictures.join(", "),
        error.kind.name(),
        error.labels.join(", ")
    )
}
