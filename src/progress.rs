//! How a person sees that work goes on: a bar on a terminal, a line every 30 seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where standard error is no terminal (cron, CI): rare enough for a log, often enough for a watchdog.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Progress of one stage over a known number of pictures.
pub struct Progress {
    stage: &'static str,
    total: u64,
    done: u64,
    failed: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts counting. Nothing is shown for no work.
    pub fn start(stage: &'static str, total: u64) -> Progress {
        let bar = (std::io::stderr().is_terminal() && total > 0).then(|| {
            let bar = ProgressBar::new(total).with_prefix(stage);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix:>8} {wide_bar} {pos}/{len} · {per_sec} · {eta} left · {msg}",
            ) {
                bar.set_style(style);
            }
            bar.set_message("0 failed");
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Progress { stage, total, done: 0, failed: 0, started: now, last_line: now, bar }
    }

    /// Counts pictures that are done and pictures that failed.
    pub fn advance(&mut self, done: usize, failed: usize) {
        self.done += done as u64;
        self.failed += failed as u64;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done + self.failed);
            if failed > 0 {
                bar.set_message(format!("{} failed", self.failed));
            }
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64();
            let handled = self.done + self.failed;
            let rate = handled as f64 / seconds;
            let left = self.total.saturating_sub(handled) as f64 / rate.max(f64::MIN_POSITIVE);
            tracing::info!(
                "{}: {handled} of {} pictures, {rate:.1}/s, {left:.0} s left, {} failed",
                self.stage,
                self.total,
                self.failed
            );
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
