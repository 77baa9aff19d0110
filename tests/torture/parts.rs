//! Parts of the table that are commands of their own. A further part is a further line of [`PARTS`].

use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::support::root;
use crate::table::Table;

/// A part, a phase, and what runs it.
const PARTS: &[(&str, &str, Runs)] = &[
    ("faults", "Elasticsearch", Runs::Tests("elastic::")),
    ("faults", "OpenSearch", Runs::Tests("opensearch::")),
    ("faults", "bad pictures, disk, table", Runs::Tests("bad_input::")),
    ("faults", "feature table, folders", Runs::Tests("storage_faults::")),
    ("faults", "power cuts", Runs::Tests("power_loss::")),
    ("memory", "bombs", Runs::Tests("memory::")),
    // With the program that is there, or it would be built again without the engines.
    ("memory", "every command", Runs::Make(&["-o", "setup", "-o", "setup-es", "memory", "QUICK=1"])),
];

enum Runs {
    /// The tests of `tests/it` whose names hold this: each is a fault.
    Tests(&'static str),
    /// A target of the Makefile, on the program under test: it survives if it ends with 0.
    Make(&'static [&'static str]),
}

/// Runs the parts whose name or phase holds `wanted`, or `all` of them, and counts.
pub fn run(wanted: &str, table: &mut Table) {
    let is_wanted = |name: &str| wanted == "all" || name.contains(wanted);
    for (part, phase, runs) in PARTS.iter().filter(|(part, phase, _)| is_wanted(part) || is_wanted(phase)) {
        let (tried, survived) = match runs {
            Runs::Tests(name) => tests(name),
            Runs::Make(words) => {
                let program = concat!("IMAGEDEX=", env!("CARGO_BIN_EXE_imagedex"));
                let done = Command::new("make").args(words.iter()).arg(program).current_dir(root()).status();
                (1, usize::from(done.is_ok_and(|status| status.success())))
            }
        };
        table.add(part, phase, tried, survived);
    }
}

/// The program of `tests/it` that was built last, beside this one: `cargo`, started from within a test, would build all anew.
fn integration_tests() -> io::Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let folder = ours.parent().ok_or(io::ErrorKind::NotFound)?;
    let mut newest = None;
    for entry in folder.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("it-") && !name.contains('.') {
            newest = newest.max(Some((entry.metadata()?.modified()?, entry.path())));
        }
    }
    newest.map(|(_, path)| path).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// How many tests ran, and how many passed; none at all is one that failed.
fn tests(name: &str) -> (usize, usize) {
    let output =
        integration_tests().and_then(|program| Command::new(program).arg(name).current_dir(root()).output());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let result = text.lines().find_map(|line| line.strip_prefix("test result: ")).unwrap_or_default();
    // Such as `ok. 12 passed; 0 failed; 0 ignored; …`.
    let words: Vec<&str> = result.split_whitespace().collect();
    let count = |of: &str| {
        let at = words.iter().position(|word| word.trim_end_matches(';') == of)?;
        words[at.checked_sub(1)?].parse::<usize>().ok()
    };
    match (count("passed"), count("failed")) {
        (Some(passed), Some(failed)) if passed + failed > 0 => {
            if failed > 0 {
                println!("{text}");
            }
            (passed + failed, passed)
        }
        _ => {
            println!("{name}: no test ran\n{text}");
            (1, 0)
        }
    }
}
