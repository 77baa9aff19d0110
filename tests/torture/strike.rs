//! A run of the program, and a signal at a chosen moment of it. The program's own log says in which stage it is.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::support::cache;

/// What is counted.
pub const PHASES: [&str; 5] = ["extract", "load", "evaluate", "report", "promote"];

/// A run that was asked to end and has not for so long hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The phase of a stage that the log names.
fn phase_of(stage: &str) -> usize {
    match stage.split([':', ' ']).next().unwrap_or_default() {
        "load" => 1,
        "evaluate" => 2,
        "report" => 3,
        "promote" => 4,
        _ => 0,
    }
}

/// When to strike: so long after a stage began for the `nth` time, counted from 0.
pub struct Strike {
    pub stage: String,
    pub nth: usize,
    pub after: Duration,
    /// Signals, sent one right after the other.
    pub how: Vec<i32>,
}

/// A stage of a run that has ended.
pub struct Span {
    pub stage: String,
    pub nth: usize,
    pub phase: usize,
    pub duration: Duration,
}

impl Span {
    /// Whether a run that finds all pictures extracted passes over this stage.
    pub fn only_with_work(&self) -> bool {
        ["start the model", "store", "compact"].contains(&self.stage.as_str())
    }
}

/// How a run ended.
pub struct Ended {
    pub status: ExitStatus,
    /// The phase in which it was struck, as a place in [`PHASES`].
    pub struck_in: Option<usize>,
    /// Begin of each stage since the start.
    stages: Vec<(String, Duration)>,
    took: Duration,
    log: String,
    out: String,
    hangs: bool,
}

impl Ended {
    /// The stages in order, with their durations.
    pub fn spans(&self) -> Vec<Span> {
        let ends = self.stages.iter().skip(1).map(|(_, begin)| *begin).chain([self.took]);
        let mut spans: Vec<Span> = Vec::new();
        for ((stage, begin), end) in self.stages.iter().zip(ends) {
            let nth = spans.iter().filter(|span| span.stage == *stage).count();
            let (stage, phase) = (stage.clone(), phase_of(stage));
            spans.push(Span { stage, nth, phase, duration: end.saturating_sub(*begin) });
        }
        spans
    }

    /// Whether it came to a phase.
    pub fn reached(&self, phase: &str) -> bool {
        self.stages.iter().any(|(stage, _)| PHASES[phase_of(stage)] == phase)
    }

    /// All that it printed.
    pub fn said(&self) -> String {
        format!("{}\n--- standard error\n{}--- standard output\n{}", self.status, self.log, self.out)
    }

    pub fn must_be_done(&self, what: &str) -> Result<(), String> {
        match self.status.code() {
            Some(0) => Ok(()),
            _ => Err(format!("{what} ended with {}", self.said())),
        }
    }

    /// A signal that asks ends the run with 130, or comes too late for that.
    pub fn must_have_ended_well(&self, strike: &Strike) -> Result<(), String> {
        if self.hangs {
            return Err(format!("it did not end within {} s", PATIENCE.as_secs()));
        }
        let signal = strike.how[0];
        let is_fine = match (self.status.code(), self.status.signal()) {
            (Some(0), _) => true,
            (Some(130), _) => signal != libc::SIGKILL,
            // Before it listens to signals there is nothing that it would have to put in order.
            (None, Some(by)) => by == signal && (signal == libc::SIGKILL || self.stages.len() <= 1),
            _ => false,
        };
        if is_fine { Ok(()) } else { Err(format!("signal {signal} ended it with {}", self.status)) }
    }

    /// It ended by itself, and so had the time to put everything in order.
    pub fn is_tidy(&self) -> bool {
        match self.status.code() {
            Some(0) => true,
            Some(130) => !self.log.contains("asked twice"),
            _ => false,
        }
    }
}

/// Runs a pipeline, and strikes where that is wanted.
pub fn run(pipeline: &Path, strike: Option<&Strike>) -> Ended {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_imagedex"))
        .arg("run")
        .arg(pipeline)
        .env("IMAGEDEX_CACHE", cache())
        .env("IMAGEDEX_LOG", "debug")
        .env_remove("IMAGEDEX_PIPELINE")
        .env_remove("GITHUB_STEP_SUMMARY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (err, mut out) = (child.stderr.take().expect("piped"), child.stdout.take().expect("piped"));
    let (send, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(err).lines().map_while(Result::ok) {
            if send.send((started.elapsed(), line)).is_err() {
                break;
            }
        }
    });
    let printer = std::thread::spawn(move || {
        let mut text = String::new();
        // What a killed program printed may end in the middle.
        let _ = out.read_to_string(&mut text);
        text
    });
    let mut stages = vec![("start".to_owned(), Duration::ZERO)];
    let mut log = String::new();
    let mut due = strike.filter(|strike| strike.stage == "start").map(|strike| strike.after);
    let (mut struck_in, mut deadline, mut hangs) = (None, None, false);
    loop {
        let now = started.elapsed();
        if let (Some(at), Some(strike)) = (due, strike)
            && now >= at
        {
            due = None;
            deadline = Some(now + PATIENCE);
            // A process that has just ended is a zombie until we ask for it: no other one has its number.
            if child.try_wait().expect("its state").is_none() {
                struck_in = stages.last().map(|(stage, _)| phase_of(stage));
                for (nth, signal) in strike.how.iter().enumerate() {
                    if nth > 0 {
                        // The first one must have arrived: two at once are one.
                        std::thread::sleep(Duration::from_millis(30));
                        log.push_str("(asked twice)\n");
                    }
                    // SAFETY: `kill` takes any numbers; this process is our child, which we have not waited for.
                    unsafe { libc::kill(child.id() as i32, *signal) };
                }
            }
        }
        if deadline.is_some_and(|deadline| now > deadline) {
            hangs = true;
            child.kill().expect("it can be killed");
            break;
        }
        let wait =
            due.map_or(Duration::from_millis(50), |at| at.saturating_sub(now).min(Duration::from_millis(50)));
        match lines.recv_timeout(wait) {
            Ok((at, line)) => {
                if let Some(stage) = line.trim_start().strip_prefix("DEBUG stage ") {
                    if let Some(strike) = strike
                        && struck_in.is_none()
                        && stage == strike.stage
                        && stages.iter().filter(|(seen, _)| seen == stage).count() == strike.nth
                    {
                        due = Some(at + strike.after);
                    }
                    stages.push((stage.to_owned(), at));
                }
                log.push_str(&line);
                log.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().expect("it has ended");
    let took = started.elapsed();
    reader.join().expect("reads");
    let out = printer.join().expect("reads");
    Ended { status, struck_in, stages, took, log, out, hangs }
}
