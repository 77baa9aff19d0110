//! The table of what was tried.

use std::fmt;

/// One line: a part and a phase of it.
struct Row {
    part: String,
    phase: String,
    tried: usize,
    survived: usize,
}

/// Faults tried, survived and lost.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Counts faults of a phase.
    pub fn add(&mut self, part: &str, phase: &str, tried: usize, survived: usize) {
        match self.rows.iter_mut().find(|row| row.part == part && row.phase == phase) {
            Some(row) => {
                row.tried += tried;
                row.survived += survived;
            }
            None => {
                self.rows.push(Row { part: part.to_owned(), phase: phase.to_owned(), tried, survived });
            }
        }
    }

    pub fn tried(&self) -> usize {
        self.rows.iter().map(|row| row.tried).sum()
    }

    pub fn lost(&self) -> usize {
        self.rows.iter().map(|row| row.tried - row.survived).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |part: &str, phase: &str, tried: &str, survived: &str, lost: &str| {
            writeln!(f, "{part:<20} {phase:<28} {tried:>6} {survived:>9} {lost:>5}")
        };
        line("part", "phase", "tried", "survived", "lost")?;
        for Row { part, phase, tried, survived } in &self.rows {
            line(part, phase, &tried.to_string(), &survived.to_string(), &(tried - survived).to_string())?;
        }
        let (tried, lost) = (self.tried(), self.lost());
        line("all", "", &tried.to_string(), &(tried - lost).to_string(), &lost.to_string())
    }
}
