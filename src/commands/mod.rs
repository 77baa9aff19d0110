//! What each command of the [command line](crate::cli) does. Results go to standard output, everything else to standard error.

mod cluster;
mod files;
mod original;
mod plan;
mod search;

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::{Baseline, Cli, Command, Pipeline};
use crate::config::PipelineConfig;
use crate::exit::{Exit, UsageError};
use crate::stages::scan::Source;
use crate::{pipeline, sweep};

/// Runs one command.
pub fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => pipeline::run(&config(&args)?),
        Command::Extract(args) => pipeline::extract(&config(&args)?),
        Command::Load(args) if args.rollback => pipeline::rollback(&config(&args.pipeline)?),
        Command::Load(args) => pipeline::load(&config(&args.pipeline)?),
        Command::Evaluate(args) => pipeline::evaluate(&config(&args)?),
        Command::Report(args) => pipeline::report(&config(&args)?),
        Command::Sweep(args) => sweep::sweep(&config(&args)?),
        Command::Baseline(Baseline::Set(args)) => pipeline::set_baseline(&config(&args)?),
        Command::Doctor(args) => pipeline::doctor(&config(&args)?),
        Command::Search(args) => search::search(&args),
        Command::Sql(args) => search::sql(&args),
        Command::Features(command) => files::features(&command),
        Command::Models(command) => files::models(&command),
        Command::Cluster(command) => cluster::cluster(&command),
        Command::Setup(args) => files::setup(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Index(args) => original::index(&args),
        Command::Retrieve(args) => original::retrieve(&args),
        Command::Completions { shell } => completions(shell),
    }
}

/// The pipeline file of a command, complete.
fn config(args: &Pipeline) -> anyhow::Result<PipelineConfig> {
    Ok(PipelineConfig::load(&args.pipeline, &args.overrides.set)?)
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    // Into memory first: the generator panics where standard output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "imagedex", &mut script);
    say(&script)?;
    Ok(Exit::Done)
}

/// Writes to standard output; a reader that has gone away is told apart in `main`.
pub fn say(text: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).context("standard output cannot be written to")
}

/// The bytes of a picture named on the command line, by path or URL.
fn read_picture(path: &Path) -> anyhow::Result<Vec<u8>> {
    Source::of(path)
        .read()
        .map_err(|error| UsageError(format!("cannot read picture {}: {error}", path.display())).into())
}
