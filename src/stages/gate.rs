//! Evaluations × minimum values → [`Verdict`]: is the index good enough to be used?
//!
//! What a newcomer would get wrong: a check that cannot be made has failed. A metric that no engine has, or queries of
//! which none could be evaluated, must not let an index through that nobody has measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::metric::Metric;
use crate::stages::evaluate::{
    Comparison, EngineRecall, Evaluation, Measure, MetricEvaluation, Mode, chance,
};

/// How far below its minimum a value may stay: a mean over 49 queries, each 1, is 0.9999999999999999.
const ROUNDING: f64 = 1e-9;
/// Failed checks that the one sentence of a verdict spells out.
const SPELLED_OUT: usize = 3;

/// What a minimum can be set for, by its name in pipeline files and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// The mean over the evaluated queries.
    Label(Measure),
    /// The mean share of the truly nearest k pictures that the engine returned.
    EngineRecall(usize),
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantity::Label(measure) => measure.fmt(f),
            Quantity::EngineRecall(k) => write!(f, "engine recall@{k}"),
        }
    }
}

impl Quantity {
    /// All that an evaluation at these cut-offs measures.
    fn all(ks: &[usize]) -> Vec<Quantity> {
        let label = Measure::all(ks).into_iter().map(Quantity::Label);
        label.chain(ks.iter().map(|&k| Quantity::EngineRecall(k))).collect()
    }

    /// The one with this name. The error says why there is none, and what may have been meant.
    pub fn named(name: &str, ks: &[usize]) -> Result<Quantity, String> {
        let known = Quantity::all(ks);
        if let Some(found) = known.iter().find(|quantity| quantity.to_string() == name) {
            return Ok(*found);
        }
        let cut_off = name.rsplit_once('@').and_then(|(_, k)| k.parse().ok());
        if let Some(k) = cut_off
            && Quantity::all(&[k]).iter().any(|quantity| quantity.to_string() == name)
        {
            let ks: Vec<String> = ks.iter().map(usize::to_string).collect();
            return Err(format!("{k} is not one of evaluate.k = [{}]", ks.join(", ")));
        }
        let names: Vec<String> = known.iter().map(Quantity::to_string).collect();
        let distance =
            |known: &String| strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase());
        match names.iter().map(|known| (distance(known), known)).min().filter(|(distance, _)| *distance <= 2)
        {
            Some((_, nearest)) => Err(format!("no such measure; did you mean \"{nearest}\"?")),
            None => Err(format!("no such measure; known here: {}", names.join(", "))),
        }
    }

    /// Its value; nothing where no query was evaluated.
    fn of(self, metric: &MetricEvaluation) -> Option<f64> {
        match self {
            Quantity::Label(measure) => measure.of(metric.micro.as_ref()?),
            Quantity::EngineRecall(k) => {
                metric.engine_recall.iter().find(|recall| recall.k == k).and_then(mean_recall)
            }
        }
    }
}

fn mean_recall(recall: &EngineRecall) -> Option<f64> {
    (recall.queries > 0).then_some(recall.mean)
}

/// A value that must be reached, by every engine that has the metric and in every mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Minimum {
    pub metric: Metric,
    pub quantity: Quantity,
    /// From 0 to 1.
    pub at_least: f64,
}

/// `[gate]` of a pipeline file: what an index must reach before it is used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gate {
    pub minimums: Vec<Minimum>,
}

impl Gate {
    /// Holds every minimum against every engine and mode; and every engine that says it is exact to its word, which
    /// is listed only where it is broken.
    pub fn judge(&self, evaluations: &[Evaluation]) -> Verdict {
        let mut checks = Vec::new();
        for minimum in &self.minimums {
            let of_metric: Vec<Check> = measured(evaluations)
                .filter(|(_, _, metric)| metric.metric == minimum.metric)
                .map(|(evaluation, mode, metric)| minimum.check(evaluation, mode, metric))
                .collect();
            if of_metric.is_empty() {
                checks.push(minimum.without_an_engine());
            }
            checks.extend(of_metric);
        }
        checks.extend(measured(evaluations).filter(|(evaluation, _, _)| evaluation.exact).flat_map(
            |(evaluation, mode, metric)| {
                metric
                    .engine_recall
                    .iter()
                    .filter_map(move |recall| inexact(evaluation, mode, metric, recall))
            },
        ));
        Verdict { checks, incomparable: None }
    }
}

/// Everything that was measured: each metric of each mode of each engine.
fn measured(evaluations: &[Evaluation]) -> impl Iterator<Item = (&Evaluation, Mode, &MetricEvaluation)> {
    evaluations.iter().flat_map(|evaluation| {
        evaluation
            .modes
            .iter()
            .flat_map(move |mode| mode.metrics.iter().map(move |metric| (evaluation, mode.mode, metric)))
    })
}

impl Minimum {
    fn check(&self, evaluation: &Evaluation, mode: Mode, metric: &MetricEvaluation) -> Check {
        let found = self.quantity.of(metric);
        Check {
            rule: Rule::Minimum,
            engine: Some(evaluation.engine.clone()),
            mode: Some(mode),
            metric: self.metric,
            measure: self.quantity.to_string(),
            minimum: self.at_least,
            found,
            passed: found.is_some_and(|found| found >= self.at_least - ROUNDING),
            fall: None,
        }
    }

    fn without_an_engine(&self) -> Check {
        Check {
            rule: Rule::Minimum,
            engine: None,
            mode: None,
            metric: self.metric,
            measure: self.quantity.to_string(),
            minimum: self.at_least,
            found: None,
            passed: false,
            fall: None,
        }
    }
}

/// The failed check of an engine that broke its word. Near-ties may stand in either order: see [`EngineRecall`].
fn inexact(
    evaluation: &Evaluation,
    mode: Mode,
    metric: &MetricEvaluation,
    recall: &EngineRecall,
) -> Option<Check> {
    let found = mean_recall(recall).filter(|mean| *mean < 1.0 - ROUNDING)?;
    Some(Check {
        rule: Rule::ExactEngine,
        engine: Some(evaluation.engine.clone()),
        mode: Some(mode),
        metric: metric.metric,
        measure: Quantity::EngineRecall(recall.k).to_string(),
        minimum: 1.0,
        found: Some(found),
        passed: false,
        fall: None,
    })
}

/// Where a check comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A minimum that the pipeline file sets.
    Minimum,
    /// An engine that says it is exact must return the nearest pictures. Always on.
    ExactEngine,
    /// Queries must do about as well as in the baseline.
    Baseline,
}

/// What a check against a baseline compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fall {
    /// The baseline's mean.
    pub from: f64,
    /// How far below it this run's may be.
    pub tolerated: f64,
    /// The class whose queries these are; nothing where they are all of them.
    pub class: Option<String>,
    pub queries: usize,
    /// Query by query; nothing of a single class, whose queries are too few.
    pub comparison: Option<Comparison>,
}

/// One value held against one minimum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub rule: Rule,
    /// Nothing where no engine has the metric.
    pub engine: Option<String>,
    pub mode: Option<Mode>,
    pub metric: Metric,
    /// Its name in reports, such as `P@1` or `engine recall@10`.
    pub measure: String,
    /// From 0 to 1.
    pub minimum: f64,
    /// Nothing where it could not be measured, which is a failure.
    pub found: Option<f64>,
    pub passed: bool,
    /// Only of checks against a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<Fall>,
}

impl Check {
    /// The value as reports print it; with all its digits where four would hide that it is too low.
    pub fn found_text(&self) -> String {
        let Some(found) = self.found else { return "-".to_owned() };
        let short = format!("{found:.4}");
        let hides = !self.passed && short.parse::<f64>().is_ok_and(|short| short >= self.minimum);
        if hides { found.to_string() } else { short }
    }
}

/// One clause: `flat cosine P@1 0.5833 is below 0.6`; with `{:#}` the mode stands after the engine.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Check { metric, measure, minimum, .. } = self;
        let Some(engine) = &self.engine else {
            return write!(f, "{metric} {measure} was not measured: no engine here has that metric");
        };
        write!(f, "{engine} ")?;
        if let Some(mode) = self.mode.filter(|_| f.alternate()) {
            write!(f, "{} ", mode.name())?;
        }
        let found = self.found_text();
        if let Some(fall) = &self.fall {
            let of_class = fall.class.as_ref().map_or(String::new(), |class| format!(" of class {class}"));
            let (from, tolerated) = (format!("{:.4}", fall.from), fall.tolerated);
            return match self.passed {
                true => write!(
                    f,
                    "{metric} {measure}{of_class} {found} is within {tolerated} of the baseline's {from}"
                ),
                false => {
                    write!(
                        f,
                        "{metric} {measure}{of_class} fell from the baseline's {from} to {found}, by more than {tolerated}"
                    )?;
                    match &fall.comparison {
                        Some(Comparison { interval: Some(interval), p, .. }) => write!(
                            f,
                            " (95 % of the fall {:.4} to {:.4}, {}, {} queries)",
                            interval.low,
                            interval.high,
                            chance(*p),
                            fall.queries
                        ),
                        _ => write!(f, " ({} queries)", fall.queries),
                    }
                }
            };
        }
        match self.rule {
            _ if self.found.is_none() => {
                write!(f, "{metric} {measure} was not measured: no query could be evaluated")
            }
            Rule::ExactEngine => write!(f, "says it is exact, but its {metric} {measure} is {found}"),
            Rule::Minimum | Rule::Baseline if self.passed => {
                write!(f, "{metric} {measure} {found} is at least {minimum}")
            }
            Rule::Minimum | Rule::Baseline => write!(f, "{metric} {measure} {found} is below {minimum}"),
        }
    }
}

/// What the gate says of one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Empty where no gate is set and every exact engine kept its word.
    pub checks: Vec<Check>,
    /// Why the run cannot be held against its baseline, where that is so: an error, not a pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomparable: Option<String>,
}

impl Verdict {
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.incomparable.is_none()
    }

    pub fn passed(&self) -> bool {
        self.failed() == 0 && self.incomparable.is_none()
    }

    fn failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.passed).count()
    }

    /// What became of the checks, as a heading says it.
    pub fn outcome(&self) -> String {
        match (self.failed(), self.checks.len()) {
            (0, _) if self.incomparable.is_some() => "FAILED, the baseline does not fit".to_owned(),
            (0, all) => format!("{all} of {all} checks hold"),
            (failed, all) => format!("FAILED, {failed} of {all} checks"),
        }
    }

    /// Each failed check in one clause, which names the mode where there are several; and what is not comparable.
    pub fn failures(&self) -> Vec<String> {
        let mut modes = self.checks.iter().filter_map(|check| check.mode);
        let first = modes.next();
        let several = modes.any(|mode| Some(mode) != first);
        let failed = self.checks.iter().filter(|check| !check.passed);
        let failed = failed.map(|check| if several { format!("{check:#}") } else { check.to_string() });
        failed.chain(self.incomparable.clone()).collect()
    }

    /// The exit code of a run that would end with `otherwise`. A failed gate comes before too many failed pictures: it
    /// says that the index is not to be used. A baseline that does not fit comes before both.
    pub fn exit(&self, otherwise: Exit) -> Exit {
        match self.incomparable {
            Some(_) => Exit::Infrastructure,
            None if self.passed() => otherwise,
            None => Exit::Gate,
        }
    }
}

/// One sentence; nothing of an empty verdict.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.failures();
        if self.is_empty() {
            return Ok(());
        }
        if failures.is_empty() {
            return write!(f, "gate: {}", self.outcome());
        }
        let more = failures.len().saturating_sub(SPELLED_OUT);
        write!(f, "gate FAILED: {}", failures[..failures.len() - more].join("; "))?;
        if more > 0 { write!(f, "; and {more} more") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::evaluate::{
        GalleryFacts, Leakage, Measures, ModeEvaluation, QueryCounts, Space, Thresholds,
    };

    /// One metric in one mode: the share of queries whose first hit is right, and engine recall@1.
    fn metric(metric: Metric, right: &[bool], recall: f64) -> MetricEvaluation {
        let measures: Vec<Measures> =
            right.iter().map(|&is_right| Measures::of(&[is_right, !is_right], 1, &[1])).collect();
        MetricEvaluation {
            metric,
            depth: 2,
            repeated_hits: 0,
            micro: Measures::mean(&measures),
            macro_: None,
            macro_intervals: None,
            micro_with_unanswerable: None,
            classes: Vec::new(),
            ties: Vec::new(),
            engine_recall: vec![EngineRecall { k: 1, queries: right.len(), mean: recall, worst: recall }],
            intervals: None,
            leakage: None,
            thresholds: Thresholds::of(&[], 1),
            confusion: Vec::new(),
        }
    }

    fn evaluation(engine: &str, exact: bool, modes: Vec<(Mode, Vec<MetricEvaluation>)>) -> Evaluation {
        let modes = modes.into_iter().map(|(mode, metrics)| ModeEvaluation {
            mode,
            queries: QueryCounts::default(),
            unanswerable: Vec::new(),
            metrics,
            same_ranking: Vec::new(),
            comparisons: Vec::new(),
            leakage: Leakage::default(),
        });
        Evaluation {
            engine: engine.to_owned(),
            exact,
            space: Space::Stored,
            ks: vec![1],
            gallery: GalleryFacts { pictures: 2, labelled: 2, classes: 1, dim: 2 },
            pictures: Default::default(),
            unsupported: Vec::new(),
            label_errors: Vec::new(),
            modes: modes.collect(),
            timings: Vec::new(),
            per_query: Vec::new(),
        }
    }

    fn gate(minimums: &[(Metric, &str, f64)]) -> Gate {
        let minimum = |&(metric, name, at_least): &(Metric, &str, f64)| Minimum {
            metric,
            quantity: Quantity::named(name, &[1]).expect("a name"),
            at_least,
        };
        Gate { minimums: minimums.iter().map(minimum).collect() }
    }

    const HALF: &[bool] = &[true, false];

    #[test]
    fn every_engine_and_mode_must_hold() {
        let all = [
            evaluation("flat", true, vec![(Mode::HeldOut, vec![metric(Metric::Cosine, HALF, 1.0)])]),
            evaluation("graph", false, vec![(Mode::HeldOut, vec![metric(Metric::Cosine, &[false], 0.9)])]),
        ];
        let verdict = gate(&[(Metric::Cosine, "P@1", 0.5), (Metric::Cosine, "MRR", 0.5)]).judge(&all);
        assert_eq!(verdict.checks.len(), 4);
        assert_eq!(verdict.to_string(), "gate FAILED: graph cosine P@1 0.0000 is below 0.5");
        assert_eq!(verdict.exit(Exit::OverBudget), Exit::Gate);
        let verdict = gate(&[(Metric::Cosine, "P@1", 0.5), (Metric::Cosine, "MAP", 0.75)]).judge(&all[..1]);
        assert_eq!(verdict.to_string(), "gate: 2 of 2 checks hold");
        assert_eq!(verdict.exit(Exit::OverBudget), Exit::OverBudget);
        let verdict = gate(&[(Metric::Cosine, "engine recall@1", 0.95)]).judge(&all);
        assert_eq!(verdict.to_string(), "gate FAILED: graph cosine engine recall@1 0.9000 is below 0.95");
    }

    #[test]
    fn several_modes_are_named() {
        let of = |mode, right: &[bool]| (mode, vec![metric(Metric::L1, right, 1.0)]);
        let modes = vec![of(Mode::HeldOut, HALF), of(Mode::LeaveOneOut, &[false])];
        let verdict = gate(&[(Metric::L1, "P@1", 0.4)]).judge(&[evaluation("flat", true, modes)]);
        assert_eq!(verdict.to_string(), "gate FAILED: flat leave_one_out l1 P@1 0.0000 is below 0.4");
    }

    #[test]
    fn what_was_not_measured_has_failed() {
        let nothing = metric(Metric::Cosine, &[], 0.0);
        let all = [evaluation("flat", true, vec![(Mode::HeldOut, vec![nothing])])];
        let wanted = gate(&[
            (Metric::Cosine, "P@1", 0.0),
            (Metric::Cosine, "engine recall@1", 0.0),
            (Metric::L1, "MAP", 0.0),
        ]);
        let verdict = wanted.judge(&all);
        assert_eq!(
            verdict.failures(),
            [
                "flat cosine P@1 was not measured: no query could be evaluated",
                "flat cosine engine recall@1 was not measured: no query could be evaluated",
                "l1 MAP was not measured: no engine here has that metric",
            ]
        );
        assert_eq!(wanted.judge(&[]).failures().len(), 3);
        assert!(Gate::default().judge(&[]).passed());
    }

    #[test]
    fn an_exact_engine_is_held_to_its_word_and_an_approximate_one_is_not() {
        let of = |exact, recall| {
            evaluation("e", exact, vec![(Mode::HeldOut, vec![metric(Metric::L2, HALF, recall)])])
        };
        let verdict = Gate::default().judge(&[of(true, 0.98)]);
        assert_eq!(
            verdict.to_string(),
            "gate FAILED: e says it is exact, but its l2 engine recall@1 is 0.9800"
        );
        for kept in [of(true, 1.0), of(true, 1.0 - 1e-12), of(false, 0.5)] {
            assert_eq!(Gate::default().judge(&[kept]), Verdict::default());
        }
    }

    #[test]
    fn rounding_does_no_harm_and_is_not_shown_as_reached() {
        // A hit for each of 49 queries: their mean is 0.9999999999999999.
        let all =
            [evaluation("flat", true, vec![(Mode::HeldOut, vec![metric(Metric::L2, &[true; 49], 1.0)])])];
        assert!(gate(&[(Metric::L2, "hit@1", 1.0)]).judge(&all).passed());
        let mut near = all;
        near[0].modes[0].metrics[0].engine_recall[0].mean = 0.99999;
        near[0].exact = false;
        let verdict = gate(&[(Metric::L2, "engine recall@1", 1.0)]).judge(&near);
        assert_eq!(verdict.to_string(), "gate FAILED: flat l2 engine recall@1 0.99999 is below 1");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names = ["P@1", "MAP", "MRR", "hit@1", "R@1"];
        let minimums: Vec<_> = names.map(|name| (Metric::L1, name, 1.0)).to_vec();
        let text = gate(&minimums).judge(&[]).to_string();
        assert_eq!(text.matches("l1").count(), 3);
        assert!(text.ends_with("; and 2 more"), "{text}");
    }

    #[test]
    fn measures_are_known_by_the_names_that_reports_print() {
        let named = |name| Quantity::named(name, &[1, 10]).map(|quantity| quantity.to_string());
        for name in ["P@1", "hit@10", "R@10", "nDCG@1", "MAP", "MAP@R", "R-prec", "MRR", "engine recall@10"] {
            assert_eq!(named(name), Ok(name.to_owned()));
        }
        let reason = |name| named(name).expect_err(name);
        assert_eq!(reason("p@1"), "no such measure; did you mean \"P@1\"?");
        assert_eq!(reason("MPA"), "no such measure; did you mean \"MAP\"?");
        assert_eq!(reason("engine_recall@10"), "no such measure; did you mean \"engine recall@10\"?");
        assert_eq!(reason("P@5"), "5 is not one of evaluate.k = [1, 10]");
        assert_eq!(reason("engine recall@5"), "5 is not one of evaluate.k = [1, 10]");
        assert!(reason("precision").starts_with("no such measure; known here: P@1, P@10, hit@1, "));
        for name in ["P@01", "P@+1", "P@0", "P@", "@", "", "MAP@1"] {
            assert!(named(name).is_err(), "{name}");
        }
    }
}
