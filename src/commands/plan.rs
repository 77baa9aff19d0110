//! `imagedex plan`: what a gallery of some size would take. No pipeline, no server: figures and arithmetic.

use std::fmt::Write;
use std::iter;

use crate::cli::Plan as Args;
use crate::exit::Exit;
use crate::plan::figures::Figures;
use crate::plan::wish::Wish;
use crate::plan::{self, Line, Plan};

use super::say;

/// `imagedex plan`
pub fn plan(args: &Args) -> anyhow::Result<Exit> {
    let mut index_options = Vec::new();
    for option in &args.index_options {
        if !index_options.contains(option) {
            index_options.push(*option);
        }
    }
    let wish = Wish {
        pictures: args.pictures,
        queries_per_second: args.queries_per_second,
        dimensions: args.dimensions,
        index_options,
        precision: args.precision,
        cores_per_node: args.cores_per_node,
        memory_per_node: args.memory_per_node,
        disk_per_node: args.disk_per_node,
        replicas: args.replicas,
    };
    let plan = plan::plan(&wish, &Figures::shipped()?)?;
    let text = if args.json { format!("{}\n", serde_json::to_string_pretty(&plan)?) } else { table(&plan) };
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

/// For a terminal: a line for each number, the index options side by side, and the sources below, by number.
fn table(plan: &Plan) -> String {
    let wish = &plan.wish;
    let mut text = format!(
        "{} pictures of {} numbers, {} queries/s, replicas: {}; nodes of {} cores, {} memory, {} disk\n",
        grouped(wish.pictures, 0),
        wish.dimensions,
        wish.queries_per_second,
        wish.replicas,
        wish.cores_per_node,
        amount(wish.memory_per_node, "B"),
        amount(wish.disk_per_node, "B"),
    );
    let mut sources = Vec::new();
    let head = format!("extract, {} {}", plan.model, wish.precision);
    text += &block(&head, &[("", &plan.extract)], &mut sources);
    let options: Vec<_> =
        plan.search.iter().map(|search| (search.index_option.name(), &search.lines[..])).collect();
    text += &block("search in Elasticsearch", &options, &mut sources);
    text += "\nmeasured: as it is; proportional: a measured figure times what it grows with; reasoned: by advice, a choice, or a growth carried\n\
             on beyond what was measured. How each is calculated: docs/sizing.md\n";
    for (i, source) in sources.iter().enumerate() {
        let _ = writeln!(text, "[{}] {source}", i + 1);
    }
    text
}

/// Lists of the same lines side by side, each list below its name; columns as wide as what stands in them.
fn block<'a>(head: &str, columns: &[(&str, &'a [Line])], sources: &mut Vec<&'a str>) -> String {
    let names = columns.iter().map(|(name, _)| (*name).to_owned());
    let mut rows: Vec<Vec<String>> = vec![iter::once(head.to_owned()).chain(names).collect()];
    for (i, line) in columns[0].1.iter().enumerate() {
        let mut row = vec![format!("  {}", line.what)];
        let (mut bases, mut numbers) = (Vec::new(), Vec::new());
        for (_, lines) in columns {
            let line = &lines[i];
            row.push(amount(line.value, line.unit));
            let number = number_of(sources, &line.source).to_string();
            for (list, word) in [(&mut numbers, number), (&mut bases, line.basis.to_string())] {
                if !list.contains(&word) {
                    list.push(word);
                }
            }
        }
        row.push(format!("{} [{}]", bases.join(", "), numbers.join(", ")));
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = format!("\n{:<1$}", row[0], widths[0]);
        // What is known of a line is the last, and ends where it ends.
        for (cell, width) in row[1..].iter().zip(widths[1..].iter().chain([&0])) {
            // Writing to a string cannot fail.
            let _ = write!(line, "  {cell:>width$}");
        }
        text += line.trim_end_matches(' ');
    }
    text + "\n"
}

/// The number under which a source is listed, from 1.
fn number_of<'a>(sources: &mut Vec<&'a str>, source: &'a str) -> usize {
    let place = sources.iter().position(|known| *known == source);
    place.unwrap_or_else(|| {
        sources.push(source);
        sources.len() - 1
    }) + 1
}

/// A number with its unit, bytes in the unit that suits them.
fn amount(value: f64, unit: &str) -> String {
    let number = match value {
        _ if value >= 100.0 || value == value.trunc() => grouped(value, 0),
        _ if value >= 1.0 => grouped(value, 1),
        // A share.
        _ if unit.is_empty() => format!("{value:.3}"),
        _ => plan::two_digits(value).to_string(),
    };
    match unit {
        "B" => {
            const UNITS: [(&str, f64); 5] =
                [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
            // Bytes of one document are read better as they are.
            let unit = UNITS
                .into_iter()
                .find(|(_, factor)| value >= 10.0 * factor || value >= *factor && *factor > 1e3);
            unit.map_or_else(
                || format!("{number} B"),
                |(name, factor)| format!("{} {name}", grouped(value / factor, 1)),
            )
        }
        "" => number,
        _ => format!("{number} {unit}"),
    }
}

/// A number with so many decimals, its thousands parted by commas.
fn grouped(value: f64, decimals: usize) -> String {
    let digits = format!("{value:.decimals$}");
    let whole = digits.find('.').unwrap_or(digits.len());
    let mut text = String::new();
    for (i, digit) in digits[..whole].chars().enumerate() {
        if i > 0 && (whole - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + &digits[whole..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_for_people() {
        for (value, unit, expected) in [
            (4_693.4, "B", "4,693 B"),
            (469_340_000_000.0, "B", "469.3 GB"),
            (1.5e15, "B", "1.5 PB"),
            (59_999_880.3e15, "B", "59,999,880.3 PB"),
            (0.664, "", "0.664"),
            (0.85, "core-ms", "0.85 core-ms"),
            (0.000_123, "cores", "0.00012 cores"),
            (12.0, "nodes", "12 nodes"),
            (3.25, "core-ms", "3.2 core-ms"),
            (1_234_567.0, "core-h", "1,234,567 core-h"),
        ] {
            assert_eq!(amount(value, unit), expected);
        }
    }
}
