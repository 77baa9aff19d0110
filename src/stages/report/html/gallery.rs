//! Queries with their first hits, the worst first: what the figures look like.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::super::table::decimal;
use super::escape;
use super::page::{Panel, names};
use super::thumbnails::Thumbnails;
use crate::metric::Metric;
use crate::stages::evaluate::{Mode, PerQuery, QueryState};
use crate::stages::scan::Split;

/// Queries that a page shows, over all engines and modes.
const QUERIES: usize = 400;
/// Hits of a query, from the most on, of which the first is taken whose page is small enough.
const HITS: [usize; 6] = [10, 8, 6, 5, 4, 3];
/// Bytes of a hit in the page, its thumbnail and label aside; and of a query.
const HIT_BYTES: usize = 100;
const QUERY_BYTES: usize = 400;
/// Bytes that a thumbnail of the smallest size needs, in base64.
const THUMBNAIL_BYTES: usize = 900;
/// What all queries with their hits may weigh.
const GALLERY_BYTES: usize = 4_200_000;

/// The queries of one engine and mode that are shown.
pub struct Gallery<'a, 'p> {
    pub panel: &'p Panel<'a>,
    /// Metrics that rank alike, with the queries as they rank them.
    rankings: Vec<(Vec<Metric>, Vec<&'a PerQuery>)>,
    /// Which of how many queries these are.
    chosen: String,
    hits: usize,
}

/// The galleries of a page, as large as it can bear.
pub fn of<'a, 'p>(panels: &'p [Panel<'a>]) -> Vec<Gallery<'a, 'p>> {
    let most = QUERIES / panels.len().max(1);
    let mut galleries: Vec<Gallery> = panels.iter().filter_map(|panel| Gallery::new(panel, most)).collect();
    for hits in HITS {
        galleries.iter_mut().for_each(|gallery| gallery.hits = hits);
        let text: usize = galleries.iter().map(Gallery::estimated_bytes).sum();
        if text + pictures(&galleries).len() * THUMBNAIL_BYTES <= GALLERY_BYTES {
            break;
        }
    }
    galleries
}

/// All pictures that the galleries show, each once.
pub fn pictures<'a>(galleries: &[Gallery<'a, '_>]) -> Vec<(Split, &'a str)> {
    let mut pictures = BTreeSet::new();
    for gallery in galleries {
        for row in gallery.rankings.iter().flat_map(|(_, rows)| rows) {
            pictures.insert((gallery.queries_are(), row.query.as_str()));
            pictures.extend(row.top.iter().take(gallery.hits).map(|hit| (Split::Gallery, hit.id.as_str())));
        }
    }
    pictures.into_iter().collect()
}

/// By average precision, then by the rank of the first right hit: none, far, near. Queries without a measure come last.
fn worst_first(rows: &mut [&PerQuery]) {
    let badness = |row: &PerQuery| {
        let ap = row.measures.as_ref().map_or(f64::INFINITY, |measures| measures.ap);
        (ap, std::cmp::Reverse(row.first_relevant_rank.unwrap_or(usize::MAX)))
    };
    rows.sort_by(|a, b| {
        let ((a_ap, a_rank), (b_ap, b_rank)) = (badness(a), badness(b));
        a_ap.total_cmp(&b_ap).then(a_rank.cmp(&b_rank)).then_with(|| a.query.cmp(&b.query))
    });
}

impl<'a, 'p> Gallery<'a, 'p> {
    /// The worst `most` queries by the metric with the highest MAP, as each metric ranks them.
    fn new(panel: &'p Panel<'a>, most: usize) -> Option<Gallery<'a, 'p>> {
        let leading = panel.best().or(panel.mode.metrics.first())?.metric;
        let mut worst: Vec<&PerQuery> = panel.of(leading).collect();
        let all = worst.len();
        worst_first(&mut worst);
        worst.truncate(most);
        let shown: BTreeSet<&str> = worst.iter().map(|row| row.query.as_str()).collect();
        let rankings = panel.rankings().into_iter().map(|metrics| {
            let rows = panel.of(metrics[0]).filter(|row| shown.contains(row.query.as_str()));
            let mut rows: Vec<&PerQuery> = rows.collect();
            worst_first(&mut rows);
            (metrics, rows)
        });
        let chosen = match all {
            0 => return None,
            all if all > most => format!("The {most} worst of {all} queries by {leading}"),
            all => format!("All {all} queries"),
        };
        Some(Gallery { panel, rankings: rankings.collect(), chosen, hits: HITS[0] })
    }

    fn queries_are(&self) -> Split {
        match self.panel.mode.mode {
            Mode::HeldOut => Split::Query,
            Mode::LeaveOneOut => Split::Gallery,
        }
    }

    fn rows(&self) -> impl Iterator<Item = &'a PerQuery> {
        self.rankings.iter().flat_map(|(_, rows)| rows.iter().copied())
    }

    /// How long [`Gallery::html`] will be, about.
    pub fn estimated_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let of_row = |row: &PerQuery| {
            let hits = row.top.iter().zip(&row.top_labels).take(self.hits);
            let hits: usize = hits.map(|(hit, label)| HIT_BYTES + hit.id.len() + text(label)).sum();
            QUERY_BYTES + row.query.len() + text(&row.label) + hits
        };
        self.rows().map(of_row).sum()
    }

    pub fn html(&self, thumbnails: &Thumbnails) -> String {
        let classes: BTreeSet<Option<&str>> = self.rows().map(|row| row.label.as_deref()).collect();
        let classes: Vec<Option<&str>> = classes.into_iter().collect();
        let mut html = format!(
            "<p>{}, the one with the least average precision first, with the first {} hits of each. A hit of the \
             query's class has a <span class=\"ok\">solid frame and a check mark</span>, any other a \
             <span class=\"no\">dashed frame and a cross</span>.",
            escape(&self.chosen),
            self.hits
        );
        // Writing to a string cannot fail.
        if thumbnails.side > 0 {
            let _ = write!(html, " Pictures are shown with at most {} pixels a side.", thumbnails.side);
        }
        if thumbnails.missing > 0 {
            let _ = write!(
                html,
                " Pictures that could not be read again, and are blank: {}.",
                thumbnails.missing
            );
        }
        html += "</p>\n<div class=\"gallery\">\n";
        html += &self.filters(&classes);
        html += "<ol class=\"queries\">\n";
        for (ranking, (_, rows)) in self.rankings.iter().enumerate() {
            for row in rows {
                let class = classes.binary_search(&row.label.as_deref()).unwrap_or_default();
                self.write_query(row, ranking, class, thumbnails, &mut html);
            }
        }
        html + "</ol>\n<p class=\"more\" hidden><button type=\"button\">Show more</button></p>\n</div>\n"
    }

    /// Hidden until the script runs: without it they would do nothing.
    fn filters(&self, classes: &[Option<&str>]) -> String {
        let option =
            |value: String, text: &str| format!("<option value=\"{value}\">{}</option>", escape(text));
        let metrics: String = (0..)
            .zip(&self.rankings)
            .map(|(i, (metrics, _)): (usize, _)| option(i.to_string(), &names(metrics)))
            .collect();
        let of_class: String = (0..)
            .zip(classes)
            .map(|(i, class): (usize, _)| option(i.to_string(), class.unwrap_or("no label")))
            .collect();
        format!(
            "<fieldset class=\"filters\" hidden>\n<legend>Show</legend>\n\
             <label>Metric <select name=\"ranking\">{metrics}</select></label>\n\
             <label>Class <select name=\"class\"><option value=\"\">all</option>{of_class}</select></label>\n\
             <label><input type=\"checkbox\" name=\"misses\"> only misses (the first hit is wrong)</label>\n\
             </fieldset>\n<p class=\"count\" role=\"status\"></p>\n"
        )
    }

    fn write_query(
        &self,
        row: &PerQuery,
        ranking: usize,
        class: usize,
        thumbnails: &Thumbnails,
        html: &mut String,
    ) {
        let judged = row.label.is_some();
        let is_miss = row.measures.is_some() && row.right().next() != Some(true);
        let miss = if is_miss { " data-miss" } else { "" };
        let label = row.label.as_deref().unwrap_or("no label");
        let metrics = names(&self.rankings[ranking].0);
        // Writing to a string cannot fail.
        let _ = write!(
            html,
            "<li class=\"q\" data-r=\"{ranking}\" data-c=\"{class}\"{miss}><div class=\"ask\">{}<p><strong><bdi>{}</bdi></strong>\
             <span class=\"id\"><bdi>{}</bdi></span><span class=\"why\">{}<span class=\"by\"> by {metrics}</span></span></p></div>\n\
             <ol class=\"hits\">",
            thumbnails.element((self.queries_are(), &row.query), "query"),
            escape(label),
            escape(&row.query),
            said_of(row),
        );
        for ((hit, label), is_right) in row.top.iter().zip(&row.top_labels).zip(row.right()).take(self.hits) {
            let (class, name) = match (judged, is_right) {
                (false, _) => ("", "hit"),
                (true, true) => (" class=\"ok\"", "right hit"),
                (true, false) => (" class=\"no\"", "wrong hit"),
            };
            let _ = write!(
                html,
                "<li{class} title=\"{}, score {}\">{}<span>{}</span></li>",
                escape(&hit.id),
                decimal(f64::from(hit.score)),
                thumbnails.element((Split::Gallery, &hit.id), name),
                escape(label.as_deref().unwrap_or("no label"))
            );
        }
        *html += "</ol></li>\n";
    }
}

/// How well a query was answered.
fn said_of(row: &PerQuery) -> String {
    match (&row.measures, row.state) {
        (Some(measures), _) => {
            let rank = match row.first_relevant_rank {
                Some(rank) => format!("first right hit at rank {rank}"),
                None => "no right hit".to_owned(),
            };
            format!("AP {}, {rank}", decimal(measures.ap))
        }
        (None, QueryState::Unlabelled) => "not evaluated: it has no label".to_owned(),
        (None, _) => "not evaluated: the gallery has no picture of this class".to_owned(),
    }
}
