//! [`SweepReport`] → `sweep.html`: every setting with its interval on one axis, the best first.

use super::charts::{self, Figure, Ink};
use super::page::{SCRIPT, STYLE, Section, navigation};
use super::{escape, frame};
use crate::sweep::{RankedSetting, Ranking, SweepReport};

/// Settings that the chart holds, the best ones; its table has all.
const CHARTED: usize = 60;

/// `sweep.html`: one file that needs nothing else. It says what `sweep.md` says, in the same words and figures.
pub fn sweep_page(report: &SweepReport) -> String {
    let mut header =
        format!("<header>\n<h1><span>imagedex sweep</span> <bdi>{}</bdi></h1>\n", escape(&report.name));
    let mut sections = Vec::new();
    for ranking in &report.rankings {
        let mode = ranking.mode.name();
        let about = match report.rankings.as_slice() {
            [_] => String::new(),
            _ => format!("<span class=\"about\">{}</span> ", escape(mode)),
        };
        header += &format!("<p class=\"verdict\">{about}{}</p>\n", escape(&ranking.verdict()));
        sections.push(Section::new(
            mode,
            &format!("Settings, {}", mode.replace('_', "-")),
            settings(ranking),
        ));
    }
    let how = format!("<p>{}</p>\n", escape(SweepReport::HOW));
    sections.push(Section::new("how", "How to read it", how));
    let body = format!(
        "<a class=\"skip\" href=\"#main\">Skip to the settings</a>\n{header}</header>\n{}<main id=\"main\">\n{}</main>\n",
        navigation(&sections),
        sections.iter().map(Section::html).collect::<String>()
    );
    frame(&format!("imagedex sweep: {}", report.name), &[STYLE], Some(SCRIPT), &body)
}

fn settings(ranking: &Ranking) -> String {
    let best = Ink::Series(0);
    let ink = |row: &RankedSetting| match &row.comparison {
        Some(comparison) if comparison.beyond_noise => Ink::Axis,
        _ => best,
    };
    let drawn = ranking.rows.iter().filter_map(|row| {
        let interval = row.interval?;
        Some((row.name.clone(), ink(row), [interval.low, row.map, interval.high]))
    });
    let drawn: Vec<(String, Ink, [f64; 3])> = drawn.take(CHARTED).collect();
    let which = match ranking.rows.len() {
        all if all > drawn.len() => format!("The best {} of {all} settings", drawn.len()),
        all => format!("All {all} settings"),
    };
    let figure = Figure {
        title: "MAP of each setting".to_owned(),
        description: format!(
            "{which}, the best first: mean over {} queries, with its 95 % interval.",
            ranking.queries
        ),
        svg: charts::intervals(&drawn),
        legend: vec![
            (best, "the best, and those not told apart from it".to_owned()),
            (Ink::Axis, "worse beyond noise".to_owned()),
        ],
        figures: ranking.escaped_table(),
        open: true,
    };
    figure.html(ranking.mode.name())
}
