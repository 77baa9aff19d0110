//! Parses the command line, runs the command, and turns the outcome into an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use imagedex::cli::{Cli, LogFormat};
use imagedex::exit::Exit;
use imagedex::{commands, interrupt};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    interrupt::listen();
    let exit = match commands::run(cli.command) {
        Ok(exit) => exit,
        // The reader of our output went away (`| head`): it has all it wanted.
        Err(error) if is_broken_pipe(&error) => Exit::Done,
        Err(error) => {
            tracing::error!("{error:#}");
            Exit::of(&error)
        }
    };
    ExitCode::from(exit as u8)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn log_to_stderr(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env("IMAGEDEX_LOG").unwrap_or_else(|_| EnvFilter::new("off,imagedex=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => {
            builder.without_time().with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
        }
    }
}
