//! `imagedex plan`: what a gallery of some size would take. No pipeline, no server: figures and arithmetic.

use std::fmt::Write;

use crate::cli::Plan as Args;
use crate::exit::Exit;
use crate::plan::{self, Figures, Line, Plan, Wish};

use super::say;

/// `imagedex plan`
pub fn plan(args: &Args) -> anyhow::Result<Exit> {
    let mut index_options = args.index_options.clone();
    index_options.dedup();
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

/// For a terminal: a line for each number, and the sources below, by number.
fn table(plan: &Plan) -> String {
    let Wish { pictures, queries_per_second, dimensions, replicas, cores_per_node, memory_per_node, disk_per_node, .. } =
        &plan.wish;
    let mut text = format!(
        "{} pictures of {dimensions} numbers, {queries_per_second} queries/s, {replicas} replicas; nodes of {cores_per_node} cores, \
         {} memory, {} disk\n",
        grouped(*pictures),
        amount(*memory_per_node, "B"),
        amount(*disk_per_node, "B"),
    );
    let mut sources: Vec<&str> = Vec::new();
    let parts = plan.search.iter().map(|search| (format!("elasticsearch, {}", search.index_option.name()), &search.lines));
    for (head, lines) in std::iter::once(("extract".to_owned(), &plan.extract)).chain(parts) {
        text += &format!("\n{head}\n");
        for line in lines {
            let number = number_of(&mut sources, &line.source);
            let Line { what, value, unit, basis, .. } = line;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {what:<52} {:>16}  {:<12} [{number}]", amount(*value, unit), basis.to_string());
        }
    }
    text += "\nmeasured: as it is; scaled: times what it is proportional to; extrapolated: a growth carried on beyond what was measured;\n\
             assumed: advice or a choice. How they were measured: docs/scaling.md\n";
    for (i, source) in sources.iter().enumerate() {
        let _ = writeln!(text, "[{}] {source}", i + 1);
    }
    text
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
    let number = if value >= 100.0 || value == value.trunc() {
        grouped(value)
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    };
    match unit {
        "B" => {
            const UNITS: [(&str, f64); 5] = [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
            // Bytes of one document are read better as they are.
            let unit = UNITS.into_iter().find(|(_, factor)| value >= 10.0 * factor || value >= *factor && *factor > 1e3);
            unit.map_or_else(|| format!("{number} B"), |(name, factor)| format!("{:.1} {name}", value / factor))
        }
        "" => number,
        _ => format!("{number} {unit}"),
    }
}

/// A whole number, its thousands parted by commas.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
            (0.664, "", "0.664"),
            (12.0, "nodes", "12 nodes"),
            (3.25, "core-ms", "3.2 core-ms"),
            (1_234_567.0, "core-h", "1,234,567 core-h"),
        ] {
            assert_eq!(amount(value, unit), expected);
        }
    }
}
