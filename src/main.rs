//! Parses the command line, runs the command, and turns the outcome into an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use imagedex::cli::{Cli, LogFormat};
use imagedex::exit::Exit;
use imagedex::text::visible_message;
use imagedex::{commands, interrupt, memory};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;

fn main() -> ExitCode {
    memory::give_back();
    no_backtraces_in_errors();
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    quiet_panics();
    interrupt::listen();
    let exit = match commands::run(cli.command) {
        Ok(exit) => exit,
        Err(error) => {
            let exit = Exit::of(&error);
            if exit != Exit::Done {
                tracing::error!("{error:#}");
            }
            exit
        }
    };
    ExitCode::from(exit as u8)
}

/// With `RUST_BACKTRACE` set, as CI often has it, libraries would print their stacks into error sentences. Panics keep theirs.
fn no_backtraces_in_errors() {
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: nothing has been started yet, so no other thread reads the environment.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
}

/// Libraries' worker threads panic on a full disk or a damaged picture, are caught, and become one clear error; the panic's
/// own text is for those who ask (`IMAGEDEX_LOG=debug`). On the main thread it is a bug of ours, and is said.
fn quiet_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some("main") {
            report(panic);
        } else {
            tracing::debug!(target: "imagedex", "{panic}");
        }
    }));
}

fn log_to_stderr(format: LogFormat) {
    let wanted = std::env::var("IMAGEDEX_LOG").unwrap_or_default();
    // A bare level is meant for us; libraries speak where they are named (`deltalake=debug`).
    let wanted = match wanted.parse::<tracing::Level>() {
        Ok(level) => format!("off,imagedex={level}"),
        Err(_) => wanted,
    };
    let filter = EnvFilter::try_new(&wanted).ok().filter(|_| !wanted.is_empty());
    let filter = filter.unwrap_or_else(|| EnvFilter::new("off,imagedex=info"));
    // A file's name in a message could be a command to the terminal, or forge a line. JSON escapes by itself.
    let fields = debug_fn(|out, field, value| match field.name() {
        "message" => write!(out, "{}", visible_message(&format!("{value:?}"))),
        name => write!(out, "{name}={}", visible_message(&format!("{value:?}"))),
    });
    // What cannot be said is not said: its complaint about that would go to standard error as well, and panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => {
            let builder = builder.without_time().with_target(false).fmt_fields(fields.delimited(" "));
            builder.with_ansi(std::io::stderr().is_terminal()).init();
        }
    }
}
