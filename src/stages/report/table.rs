//! Rows of cells, and the table of measures that Markdown and the terminal share.

use crate::stages::evaluate::{Measure, MeasureIntervals, Measures, MetricEvaluation};

/// A table whose first column is text; all others are numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Table {
        Table { header: header.iter().map(|cell| (*cell).to_owned()).collect(), rows: Vec::new() }
    }

    /// One row for each metric.
    pub fn of_metrics(
        metrics: &[MetricEvaluation],
        ks: &[usize],
        n: usize,
        of: impl Fn(&MetricEvaluation) -> Option<&Measures>,
    ) -> Table {
        let mut header = vec!["metric".to_owned()];
        header.extend(columns(ks).iter().map(Measure::to_string));
        header.push("n".to_owned());
        let rows = metrics.iter().filter_map(|metric| {
            let measures = of(metric)?;
            let mut row = vec![metric.metric.name().to_owned()];
            row.extend(columns(ks).iter().map(|column| column.of(measures).map_or("-".to_owned(), decimal)));
            row.push(n.to_string());
            Some(row)
        });
        Table { header, rows: rows.collect() }
    }

    /// The ends of the intervals of the same measures; a row for each metric that has any.
    pub fn of_intervals(
        metrics: &[MetricEvaluation],
        ks: &[usize],
        of: impl Fn(&MetricEvaluation) -> Option<&MeasureIntervals>,
    ) -> Table {
        let mut header = vec!["metric".to_owned()];
        header.extend(columns(ks).iter().map(Measure::to_string));
        let rows = metrics.iter().filter_map(|metric| {
            let intervals = of(metric)?;
            let cells = columns(ks).into_iter().map(|column| {
                intervals
                    .interval(column)
                    .map_or("-".to_owned(), |interval| format!("{:.3} to {:.3}", interval.low, interval.high))
            });
            Some(std::iter::once(metric.metric.name().to_owned()).chain(cells).collect())
        });
        Table { header, rows: rows.collect() }
    }

    /// GitHub's Markdown. Cells must be escaped already.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let marks = (0..self.header.len()).map(|i| if i == 0 { "---" } else { "---:" });
        let mut text = line(&self.header) + &format!("|{}|\n", marks.collect::<Vec<_>>().join("|"));
        self.rows.iter().for_each(|row| text += &line(row));
        text
    }

    /// Columns lined up for a fixed-width font.
    pub fn plain(&self) -> String {
        let lines: Vec<&Vec<String>> = std::iter::once(&self.header).chain(&self.rows).collect();
        let cell_width = |row: &Vec<String>, i: usize| row.get(i).map_or(0, |cell| cell.chars().count());
        let widths: Vec<usize> = (0..self.header.len())
            .map(|i| lines.iter().map(|row| cell_width(row, i)).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in lines {
            let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
                if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// Four digits: one query in 10,000.
pub fn decimal(value: f64) -> String {
    format!("{value:.4}")
}

/// The measures that a table shows: P@k for the least cut-off, hit@k for all above 1 (hit@1 is P@1), recall and nDCG
/// for the greatest, and those without a cut-off.
fn columns(ks: &[usize]) -> Vec<Measure> {
    let (Some(&least), Some(&greatest)) = (ks.first(), ks.last()) else { return Vec::new() };
    let mut columns = vec![Measure::Precision(least)];
    columns.extend(ks.iter().filter(|k| **k > 1).map(|&k| Measure::Hit(k)));
    columns.extend([
        Measure::Recall(greatest),
        Measure::Ap,
        Measure::ApAtR,
        Measure::RPrecision,
        Measure::Rr,
        Measure::Ndcg(greatest),
    ]);
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_table() {
        let mut table = Table::new(&["metric", "MAP"]);
        table.rows.push(vec!["dot_product".to_owned(), decimal(0.5)]);
        assert_eq!(table.markdown(), "| metric | MAP |\n|---|---:|\n| dot_product | 0.5000 |\n");
        assert_eq!(table.plain(), "metric          MAP\ndot_product  0.5000\n");
    }
}
