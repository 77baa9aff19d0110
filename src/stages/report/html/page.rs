//! [`RunReport`] → `report.html`: one file that needs nothing else, for people.
//!
//! It says what the Markdown says, in the same words and figures, and shows what needs a picture: curves, classes,
//! scores, and the queries themselves with their hits. What it is made of is on disk after a run (`summary.json`,
//! `per_query.parquet` and the picture files), so `imagedex report` can write it again.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::Value;

use super::super::table::{Table, decimal};
use super::super::{Exporter, RunReport, findings, markdown};
use super::charts::{self, Axes, Curve, Figure, Ink};
use super::gallery::{self, Gallery};
use super::thumbnails::{Pictures, Thumbnails};
use super::{escape, frame, from_markdown, list, table, table_with};
use crate::metric::Metric;
use crate::stages::evaluate::{
    Comparison, Confusion, Evaluation, Measure, MetricEvaluation, Mode, ModeEvaluation, PerQuery,
    ScoreHistogram, Thresholds,
};

pub const STYLE: &str = include_str!("report.css");
pub const SCRIPT: &str = include_str!("report.js");
/// What a page may weigh: mail and chat still take it, and a phone opens it at once.
const PAGE_BYTES: usize = 4_900_000;
/// Thumbnails get at least this, however long the text is.
const LEAST_THUMBNAIL_BYTES: usize = 500_000;
/// Bars that a chart of classes holds; its table has all.
const BARS: usize = 30;
/// Classes that a chart of mistaken classes holds.
const MATRIX: usize = 120;
/// Classes that a table of them against each other holds; of more, it lists the pairs.
const SQUARE_TABLE: usize = 30;
/// Thresholds of each metric that the table below their chart lists; `summary.json` has all.
const LISTED_THRESHOLDS: usize = 25;
/// Pairs of classes that are listed as taken for one another.
const PAIRS: usize = 15;

/// `report.html`.
#[derive(Debug, Clone, Copy)]
pub struct Html<'a> {
    pub pictures: Pictures<'a>,
}

impl Exporter for Html<'_> {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(page(report, &self.pictures).as_bytes())
    }
}

/// One mode of one engine, and what each of its queries came to.
pub struct Panel<'a> {
    pub evaluation: &'a Evaluation,
    pub mode: &'a ModeEvaluation,
    /// In the order of metrics, then of queries; none where their file is missing.
    pub rows: Vec<&'a PerQuery>,
    /// Told apart from other panels in ids.
    pub key: String,
}

impl<'a> Panel<'a> {
    fn all(report: &'a RunReport) -> Vec<Panel<'a>> {
        let modes = report
            .evaluations
            .iter()
            .flat_map(|evaluation| evaluation.modes.iter().map(move |mode| (evaluation, mode)));
        let panel = |(i, (evaluation, mode)): (usize, (&'a Evaluation, &'a ModeEvaluation))| Panel {
            evaluation,
            mode,
            rows: evaluation.per_query.iter().filter(|row| row.mode == mode.mode).collect(),
            key: format!("p{i}"),
        };
        modes.enumerate().map(panel).collect()
    }

    pub fn name(&self) -> String {
        let queries = match self.mode.mode {
            Mode::HeldOut => "held-out queries",
            Mode::LeaveOneOut => "leave-one-out",
        };
        format!("{}, {queries}", self.evaluation.engine)
    }

    /// The rows of one metric.
    pub fn of(&self, metric: Metric) -> impl Iterator<Item = &'a PerQuery> {
        self.rows.iter().copied().filter(move |row| row.metric == metric)
    }

    /// Metrics that rank alike, together; each group by the order of its first.
    pub fn rankings(&self) -> Vec<Vec<Metric>> {
        let mut rankings: Vec<Vec<Metric>> = Vec::new();
        for metric in self.mode.metrics.iter().map(|metric| metric.metric) {
            if rankings.iter().any(|ranking| ranking.contains(&metric)) {
                continue;
            }
            let same = self.mode.same_ranking.iter().find(|group| group.metrics.contains(&metric));
            rankings.push(same.map_or(vec![metric], |group| group.metrics.clone()));
        }
        rankings
    }

    fn ink(&self, metric: Metric) -> Ink {
        let place = self.mode.metrics.iter().position(|other| other.metric == metric);
        Ink::Series(place.unwrap_or(0) as u8)
    }

    /// The metric with the highest MAP.
    pub fn best(&self) -> Option<&'a MetricEvaluation> {
        findings::best(self.mode).map(|(metric, _)| metric)
    }
}

/// The names of metrics as one line says them.
pub fn names(metrics: &[Metric]) -> String {
    metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ")
}

/// A part of the page with a heading, which the navigation leads to.
pub struct Section {
    id: String,
    title: String,
    /// Which engine and mode it is about, where there are several.
    about: Option<String>,
    body: String,
}

impl Section {
    pub fn new(id: &str, title: &str, body: String) -> Section {
        Section { id: id.to_owned(), title: title.to_owned(), about: None, body }
    }

    pub fn html(&self) -> String {
        let Section { id, title, about, body } = self;
        let about = about.as_ref().map(|about| format!(" <small><bdi>{}</bdi></small>", escape(about)));
        format!(
            "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{}{}</h2>\n{body}</section>\n",
            escape(title),
            about.unwrap_or_default()
        )
    }
}

fn page(report: &RunReport, pictures: &Pictures) -> String {
    let panels = Panel::all(report);
    let galleries = gallery::of(&panels);
    let mut sections: Vec<Section> = Vec::new();
    for panel in &panels {
        let about = (panels.len() > 1).then(|| panel.name());
        let parts = [
            ("results", "Results", results(panel)),
            ("notes", "Notes", list("notes", &markdown::notes(panel.evaluation, panel.mode))),
            ("comparisons", "Comparisons", comparisons(panel)),
            ("curves", "Recall at k", curves(panel)),
            ("classes", "Classes", classes(panel)),
            ("confusion", "Mistaken classes", confusion(panel)),
            ("scores", "Scores", scores(panel)),
            ("leakage", "Leakage", leakage(panel)),
        ];
        let parts = parts.into_iter().filter(|(.., body)| !body.is_empty());
        sections.extend(parts.map(|(id, title, body)| Section {
            about: about.clone(),
            ..Section::new(&format!("{}-{id}", panel.key), title, body)
        }));
    }
    let books = Section::new("books", "Books", books(report));
    sections.insert(1.min(sections.len()), books);
    sections.extend(speed(report).map(|body| Section::new("speed", "Search times", body)));
    sections.extend(gate(report).map(|body| Section::new("gate", "Gate", body)));
    let text = sections.iter().map(|section| section.body.len()).sum::<usize>()
        + galleries.iter().map(Gallery::estimated_bytes).sum::<usize>();
    let budget = PAGE_BYTES.saturating_sub(text).max(LEAST_THUMBNAIL_BYTES);
    let thumbnails = Thumbnails::new(&gallery::pictures(&galleries), pictures, budget);
    for gallery in &galleries {
        sections.push(Section {
            about: (panels.len() > 1).then(|| gallery.panel.name()),
            ..Section::new(&format!("{}-gallery", gallery.panel.key), "Queries", gallery.html(&thumbnails))
        });
    }
    sections.extend(run(report).map(|body| Section::new("run", "Run", body)));
    let body = format!(
        "<a class=\"skip\" href=\"#main\">Skip to the results</a>\n{}{}<main id=\"main\">\n{}</main>\n",
        header(report, &panels),
        navigation(&sections),
        sections.iter().map(Section::html).collect::<String>()
    );
    frame(&format!("imagedex: {}", report.name), &[STYLE, &thumbnails.css], Some(SCRIPT), &body)
}

/// The name, and what came out in a sentence.
fn header(report: &RunReport, panels: &[Panel]) -> String {
    let mut html = format!("<header>\n<h1><span>imagedex</span> <bdi>{}</bdi></h1>\n", escape(&report.name));
    for panel in panels {
        let about = match panels {
            [_] => String::new(),
            _ => format!("<span class=\"about\"><bdi>{}</bdi></span> ", escape(&panel.name())),
        };
        html +=
            &format!("<p class=\"verdict\">{about}{}</p>\n", from_markdown(&findings::verdict(panel.mode)));
    }
    if !report.gate.is_empty() {
        let class = if report.gate.passed() { "holds" } else { "fails" };
        let text = report.gate.outcome();
        html += &format!("<p><a class=\"badge {class}\" href=\"#gate\">Gate: {text}</a></p>\n");
    }
    html + "</header>\n"
}

pub fn navigation(sections: &[Section]) -> String {
    let mut html = "<nav aria-label=\"Sections\">\n<ul>\n".to_owned();
    let mut last: Option<&str> = None;
    for section in sections {
        if let Some(about) = section.about.as_deref().filter(|about| last != Some(about)) {
            html += &format!("<li class=\"about\"><bdi>{}</bdi></li>\n", escape(about));
            last = Some(about);
        }
        html += &format!("<li><a href=\"#{}\">{}</a></li>\n", section.id, escape(&section.title));
    }
    html + "</ul>\n</nav>\n"
}

/// The table of measures.
fn results(panel: &Panel) -> String {
    let (evaluation, mode) = (panel.evaluation, panel.mode);
    let n = mode.queries.evaluated;
    let micro = Table::of_metrics(&mode.metrics, &evaluation.ks, n, |metric| metric.micro.as_ref());
    let intervals = Table::of_intervals(&mode.metrics, &evaluation.ks, |metric| metric.intervals.as_ref());
    let mut html = String::new();
    if !micro.rows.is_empty() {
        let below = if intervals.rows.is_empty() { "" } else { ", with 95 % intervals" };
        html += &table_with(&micro, Some(&intervals), &format!("Mean over queries (n = {n}){below}"));
    }
    html += &format!("<p>{}</p>\n", from_markdown(&markdown::setting(evaluation, mode)));
    let classes = mode.metrics.first().map_or(0, |metric| metric.classes.len());
    if classes > 1 {
        let by_class =
            Table::of_metrics(&mode.metrics, &evaluation.ks, classes, |metric| metric.macro_.as_ref());
        let intervals =
            Table::of_intervals(&mode.metrics, &evaluation.ks, |metric| metric.macro_intervals.as_ref());
        let below = if intervals.rows.is_empty() { "" } else { ", with 95 % intervals" };
        let caption = format!("Mean over classes (n = {classes}){below}");
        let shown = table_with(&by_class, Some(&intervals), &caption);
        html += &format!("<details><summary>{caption}</summary>{shown}</details>\n");
    }
    html
}

fn books(report: &RunReport) -> String {
    match markdown::books(report).as_slice() {
        [] => "<p>This run scanned and loaded no pictures.</p>\n".to_owned(),
        lines => list("books", lines),
    }
}

/// Metrics against each other.
fn comparisons(panel: &Panel) -> String {
    let comparisons = &panel.mode.comparisons;
    let rows: Vec<(String, [f64; 3])> = comparisons
        .iter()
        .filter_map(|comparison| {
            let Comparison { a, b, measure, difference, interval, .. } = comparison;
            let interval = interval.as_ref()?;
            Some((format!("{measure}, {a} > {b}"), [interval.low, *difference, interval.high]))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let figure = Figure {
        title: "Differences, query by query".to_owned(),
        description: "Mean over the queries, with its 95 % interval. Where the line crosses zero, the two may be equally \
                      good. p is of a randomisation test."
            .to_owned(),
        svg: charts::differences(&rows),
        legend: Vec::new(),
        figures: findings::comparisons(comparisons),
        open: true,
    };
    figure.html(&format!("{}-differences", panel.key))
}

/// hit@k and R@k for each k up to the greatest cut-off.
fn curves(panel: &Panel) -> String {
    let depth = panel.evaluation.ks.last().copied().unwrap_or(0);
    let rankings = panel.rankings();
    let hit = Curves::new(panel, &rankings, depth, |hits, row| f64::from(hits > 0 && row.relevant > 0));
    let recall = Curves::new(panel, &rankings, depth, |hits, row| hits as f64 / row.relevant.max(1) as f64);
    let (Some(hit), Some(mut recall)) = (hit, recall) else { return String::new() };
    recall.add_ceiling(panel, depth);
    let hit = hit
        .figure("Hit rate, hit@k", "Share of queries with a picture of their class among the first k hits.");
    let recall = recall.figure(
        "Recall, R@k",
        "Mean share of all pictures of the query's class that are among the first k hits.",
    );
    format!(
        "<div class=\"pair\">\n{}{}</div>\n",
        hit.html(&format!("{}-hit", panel.key)),
        recall.html(&format!("{}-recall", panel.key))
    )
}

/// Means over the evaluated queries for k = 1, 2, ….
struct Curves {
    depth: usize,
    lines: Vec<Curve>,
}

impl Curves {
    /// `value` gives a query's value from its right hits so far. Nothing where there is no line to draw.
    fn new(
        panel: &Panel,
        rankings: &[Vec<Metric>],
        depth: usize,
        value: impl Fn(usize, &PerQuery) -> f64,
    ) -> Option<Curves> {
        let mut lines = Vec::new();
        for ranking in rankings {
            let rows: Vec<&PerQuery> =
                panel.of(*ranking.first()?).filter(|row| row.measures.is_some()).collect();
            if rows.is_empty() {
                return None;
            }
            let mut sums = vec![0.0; depth];
            for row in &rows {
                let mut hits = 0;
                let mut right = row.right();
                for sum in &mut sums {
                    hits += usize::from(right.next().unwrap_or(false));
                    *sum += value(hits, row);
                }
            }
            let points = (1..).zip(sums).map(|(k, sum)| (f64::from(k), sum / rows.len() as f64));
            lines.push(Curve { name: names(ranking), ink: panel.ink(ranking[0]), points: points.collect() });
        }
        (depth > 1 && !lines.is_empty()).then_some(Curves { depth, lines })
    }

    /// What no ranking can exceed.
    fn add_ceiling(&mut self, panel: &Panel, depth: usize) {
        let Some(metric) = panel.mode.metrics.first().map(|metric| metric.metric) else { return };
        let relevant: Vec<usize> =
            panel.of(metric).filter(|row| row.measures.is_some()).map(|row| row.relevant).collect();
        let at = |k: usize| relevant.iter().map(|r| (k as f64 / *r as f64).min(1.0)).sum::<f64>();
        let points = (1..=depth).map(|k| (k as f64, at(k) / relevant.len().max(1) as f64)).collect();
        self.lines.push(Curve { name: "ceiling".to_owned(), ink: Ink::Mark, points });
    }

    fn figure(self, title: &str, description: &str) -> Figure {
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
        let highest = charts::round_up(values().fold(0.0, f64::max)).min(1.0);
        let axes = Axes {
            x: "k",
            y: "",
            x_range: (1.0, self.depth as f64),
            y_range: (0.0, highest),
            x_digits: 0,
            y_digits: if highest > 0.5 { 1 } else { 2 },
        };
        let mut figures = Table::new(&["k"]);
        figures.header.extend(self.lines.iter().map(|line| line.name.clone()));
        for k in 0..self.depth {
            let mut row = vec![(k + 1).to_string()];
            row.extend(self.lines.iter().map(|line| decimal(line.points[k].1)));
            figures.rows.push(row);
        }
        Figure {
            title: title.to_owned(),
            description: description.to_owned(),
            svg: charts::curves(&axes, &self.lines),
            legend: self.lines.iter().map(|line| (line.ink, line.name.clone())).collect(),
            figures,
            open: false,
        }
    }
}

/// A bar for each class, the worst first.
fn classes(panel: &Panel) -> String {
    let Some(metric) = panel.best().filter(|metric| metric.classes.len() > 1) else { return String::new() };
    let mut worst: Vec<(String, f64)> =
        metric.classes.iter().map(|class| (class.label.clone(), class.measures.ap)).collect();
    worst.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    let all = worst.len();
    worst.truncate(BARS);
    let which =
        if all > BARS { format!("The worst {BARS} of {all} classes") } else { "All classes".to_owned() };
    let figure = Figure {
        title: "MAP of each class".to_owned(),
        description: format!("{which}, the worst first, by {}.", metric.metric),
        svg: charts::bars(&worst),
        legend: Vec::new(),
        figures: markdown::classes(metric),
        open: false,
    };
    figure.html(&format!("{}-class", panel.key))
}

/// Which class was taken for which, as a square.
struct Square<'a> {
    classes: Vec<&'a str>,
    /// `[class of the query][class of its first hit]`
    counts: Vec<Vec<usize>>,
}

impl<'a> Square<'a> {
    fn new(confusion: &'a [Confusion]) -> Square<'a> {
        let pairs: Vec<(&str, &str, usize)> =
            confusion.iter().map(|pair| (pair.label.as_str(), found(pair), pair.queries)).collect();
        let classes: BTreeSet<&str> = pairs.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let mut counts = vec![vec![0; classes.len()]; classes.len()];
        for (query, hit, queries) in pairs {
            if let (Ok(row), Ok(column)) = (classes.binary_search(&query), classes.binary_search(&hit)) {
                counts[row][column] += queries;
            }
        }
        Square { classes, counts }
    }
}

fn found(pair: &Confusion) -> &str {
    pair.found.as_deref().unwrap_or("no label")
}

/// A row for each pair of classes.
fn pairs<'a>(confusion: impl Iterator<Item = &'a Confusion>) -> Table {
    let mut table = Table::new(&["class of the query, of its first hit", "queries"]);
    table.rows.extend(confusion.map(|pair| {
        let text = format!("{}, taken for {}", pair.label, found(pair));
        vec![markdown::escape(&text), pair.queries.to_string()]
    }));
    table
}

/// A row for each class of the queries, a column for each of their first hits.
fn square(classes: &[&str], counts: &[Vec<usize>]) -> Table {
    let mut table = Table::new(&["class of the query"]);
    table.header.extend(classes.iter().map(|class| markdown::escape(class)));
    for (class, row) in classes.iter().zip(counts) {
        let row = row.iter().map(usize::to_string);
        table.rows.push(std::iter::once(markdown::escape(class)).chain(row).collect());
    }
    table
}

fn confusion(panel: &Panel) -> String {
    let Some(metric) = panel.best() else { return String::new() };
    let mut mistakes: Vec<&Confusion> =
        metric.confusion.iter().filter(|pair| pair.found.as_ref() != Some(&pair.label)).collect();
    mistakes.sort_by_key(|pair| Reverse(pair.queries));
    let listed = pairs(mistakes.iter().copied().take(PAIRS));
    let by = metric.metric;
    let caption = match mistakes.len() {
        0 => return format!("<p>The first hit of every query is of its class, by {by}.</p>\n"),
        all if all > PAIRS => format!("Most often mistaken, {PAIRS} of {all} pairs, by {by}"),
        _ => format!("Mistaken, by {by}"),
    };
    let listed = table(&listed, &caption);
    let Square { classes, counts } = Square::new(&metric.confusion);
    if classes.len() > MATRIX {
        return listed;
    }
    let figures = match classes.len() {
        ..=SQUARE_TABLE => square(&classes, &counts),
        _ => pairs(metric.confusion.iter()),
    };
    let figure = Figure {
        title: "Class of the first hit".to_owned(),
        description: format!(
            "A row for each query's class, a column for its first hit's, by {by}. The diagonal is right."
        ),
        svg: charts::matrix(&classes, &counts),
        legend: Vec::new(),
        figures,
        open: false,
    };
    let figure = figure.html(&format!("{}-pairs", panel.key));
    format!("<div class=\"pair\">\n{figure}<div>{listed}</div>\n</div>\n")
}

/// How the scores of right and wrong hits are spread, and where the threshold between them lies.
fn scores(panel: &Panel) -> String {
    let mut html: String =
        panel.mode.metrics.iter().filter_map(|metric| distribution(panel, metric)).collect();
    if html.is_empty() {
        return html;
    }
    html += &precision_and_recall(panel);
    let best = findings::thresholds(panel.mode);
    let best = match best.rows.is_empty() {
        true => String::new(),
        false => table(&best, "Threshold with the best F1 (search --threshold)"),
    };
    format!("<div class=\"pair\">\n{html}</div>\n{best}")
}

fn distribution(panel: &Panel, metric: &MetricEvaluation) -> Option<String> {
    let Thresholds { k, best, histogram, .. } = &metric.thresholds;
    let ScoreHistogram { low, width, right, wrong } = histogram;
    let most = right.iter().chain(wrong).copied().max().filter(|most| *most > 0)?;
    let edges: Vec<f64> = (0..=right.len()).map(|i| low + width * i as f64).collect();
    let (low, high) = (*edges.first()?, *edges.last()?);
    let axes = Axes {
        x: "score",
        y: "hits",
        x_range: (low, high),
        y_range: (0.0, charts::round_up(most as f64)),
        x_digits: (2.0 - (high - low).log10()).clamp(0.0, 8.0) as usize,
        y_digits: 0,
    };
    let mut figures = Table::new(&["score from", "to", "right", "wrong"]);
    for (edge, (right, wrong)) in edges.windows(2).zip(right.iter().zip(wrong)) {
        figures.rows.push(vec![decimal(edge[0]), decimal(edge[1]), right.to_string(), wrong.to_string()]);
    }
    let mut legend = vec![(Ink::Right, "right".to_owned()), (Ink::Wrong, "wrong".to_owned())];
    let threshold = best.as_ref().map(|best| f64::from(best.point.threshold));
    legend.extend(threshold.map(|threshold| (Ink::Mark, format!("best F1, from {}", decimal(threshold)))));
    let kinds = [(Ink::Wrong, wrong.as_slice()), (Ink::Right, right.as_slice())];
    let figure = Figure {
        title: format!("Scores by {}", metric.metric),
        description: format!("The first {k} hits of each query; a greater score is closer."),
        svg: charts::histograms(&axes, &edges, &kinds, threshold),
        legend,
        figures,
        open: false,
    };
    Some(figure.html(&format!("{}-score-{}", panel.key, metric.metric)))
}

/// What a threshold costs in hits that are right, and saves in hits that are wrong.
fn precision_and_recall(panel: &Panel) -> String {
    let mut lines = Vec::new();
    let mut figures = Table::new(&["metric", "threshold", "precision", "recall", "F1"]);
    for ranking in panel.rankings() {
        let of_first = panel.mode.metrics.iter().find(|metric| Some(&metric.metric) == ranking.first());
        let Some(metric) = of_first.filter(|metric| !metric.thresholds.curve.is_empty()) else { continue };
        let points = metric.thresholds.curve.iter().map(|point| (point.recall, point.precision)).collect();
        lines.push(Curve { name: names(&ranking), ink: panel.ink(metric.metric), points });
        let curve = &metric.thresholds.curve;
        let step = curve.len().div_ceil(LISTED_THRESHOLDS).max(1);
        figures.rows.extend(curve.iter().step_by(step).map(|point| {
            let numbers = [f64::from(point.threshold), point.precision, point.recall, point.f1].map(decimal);
            std::iter::once(metric.metric.to_string()).chain(numbers).collect()
        }));
    }
    if lines.is_empty() {
        return String::new();
    }
    let axes = Axes {
        x: "recall",
        y: "precision",
        x_range: (0.0, 1.0),
        y_range: (0.0, 1.0),
        x_digits: 1,
        y_digits: 1,
    };
    let figure = Figure {
        title: "Precision and recall".to_owned(),
        description: "Each point is a threshold: the share of hits above it that are right, and the share of right hits \
                      that are above it."
            .to_owned(),
        svg: charts::curves(&axes, &lines),
        legend: lines.iter().map(|line| (line.ink, line.name.clone())).collect(),
        figures,
        open: false,
    };
    figure.html(&format!("{}-thresholds", panel.key))
}

/// What is in the gallery and among the queries; and what is labelled twice, said once for all modes.
fn leakage(panel: &Panel) -> String {
    let (evaluation, mode) = (panel.evaluation, panel.mode);
    let mut html = format!("<p>{}</p>\n", escape(&findings::leakage(mode)));
    if !mode.leakage.kinds.is_empty() {
        let of = |measures: &[Measure]| findings::with_and_without(mode, measures);
        html += &table(&of(&findings::main_measures(&evaluation.ks)), "With and without them");
        html += &format!(
            "<details><summary>Every measure with and without them</summary>{}</details>\n",
            table(&of(&Measure::all(&evaluation.ks)), "Every measure")
        );
        html += &list("notes", &markdown::twins(mode));
    }
    let errors = evaluation.label_errors.len();
    if errors > 0 && evaluation.modes.first().map(|first| first.mode) == Some(mode.mode) {
        html += &format!(
            "<h3>Label errors</h3>\n<p>The same picture under different labels, {}:</p>\n",
            findings::count(errors, "time", "times")
        );
        html += &list("notes", &markdown::label_errors(evaluation));
    }
    html
}

fn speed(report: &RunReport) -> Option<String> {
    let first = report.measured.search.first()?;
    let rows: Vec<(String, [f64; 3])> = report
        .measured
        .search
        .iter()
        .map(|timing| {
            (format!("{}, {}", timing.engine, timing.metric), [timing.p50_ms, timing.p95_ms, timing.p99_ms])
        })
        .collect();
    let figure = Figure {
        title: "Milliseconds for one query".to_owned(),
        description: format!(
            "First {} hits, {} timed. The dot is the median (p50), the ticks are p95 and p99.",
            first.k,
            markdown::counted(first.queries)
        ),
        svg: charts::times(&rows),
        legend: Vec::new(),
        figures: markdown::search_times(report),
        open: false,
    };
    Some(figure.html("times"))
}

fn gate(report: &RunReport) -> Option<String> {
    if report.gate.is_empty() {
        return None;
    }
    let failures: String = report
        .gate
        .failures()
        .iter()
        .map(|failure| format!("<li><strong>{}</strong></li>\n", escape(failure)))
        .collect();
    let failures = if failures.is_empty() { failures } else { format!("<ul>\n{failures}</ul>\n") };
    if report.gate.checks.is_empty() {
        return Some(failures);
    }
    Some(failures + &table(&markdown::checks(&report.gate), "Checks"))
}

/// How long the stages took, and what the results were made with.
fn run(report: &RunReport) -> Option<String> {
    let mut html = String::new();
    if !report.measured.stages.is_empty() {
        html += &table(&markdown::stages(report), "Stages");
    }
    if let Some(facts) = report.provenance.as_object().filter(|facts| !facts.is_empty()) {
        html += "<details><summary>Made with</summary>\n<dl>\n";
        for (name, fact) in facts {
            let text = fact.as_str().map_or_else(|| Value::to_string(fact), str::to_owned);
            html += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(&text));
        }
        html += "</dl>\n</details>\n";
    }
    (!html.is_empty()).then_some(html)
}
