//! The table of measures for a terminal: plain text, columns lined up.

use std::io::{self, Write};

use super::findings::{count, leakage, verdict};
use super::markdown::counted;
use super::table::Table;
use super::{EngineFailure, Exporter, RunReport};
use crate::text::visible_lines;

/// A short report for a person who watched the run.
#[derive(Debug, Clone, Copy)]
pub struct Terminal;

impl Exporter for Terminal {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
        for evaluation in &report.evaluations {
            for mode in &evaluation.modes {
                let pictures = evaluation.gallery.pictures;
                writeln!(
                    out,
                    "{}, {}: {} in {}",
                    evaluation.engine,
                    mode.mode.name(),
                    counted(mode.queries.total),
                    count(pictures, "picture", "pictures")
                )?;
                let table =
                    Table::of_metrics(&mode.metrics, &evaluation.ks, mode.queries.evaluated, |metric| {
                        metric.micro.as_ref()
                    });
                if !table.rows.is_empty() {
                    write!(out, "{}", table.plain())?;
                }
                if let Some(metric) = mode.metrics.iter().find(|metric| metric.depth < pictures) {
                    writeln!(out, "MAP, MAP@R, R-prec and MRR see the first {} hits only.", metric.depth)?;
                }
                writeln!(out, "{}", verdict(mode))?;
                writeln!(out, "{}", leakage(mode))?;
            }
            if !evaluation.label_errors.is_empty() {
                writeln!(
                    out,
                    "the same picture under different labels: {}",
                    count(evaluation.label_errors.len(), "time", "times")
                )?;
            }
        }
        if !report.gate.is_empty() {
            writeln!(out, "{}", visible_lines(&report.gate.to_string()))?;
        }
        if let Some(books) = &report.books {
            write!(out, "{books}")?;
        }
        for books in &report.loads {
            write!(out, "{books}")?;
        }
        for EngineFailure { engine, reason } in &report.engine_failures {
            writeln!(out, "engine {engine} dropped out: {}", visible_lines(reason))?;
        }
        Ok(())
    }
}
