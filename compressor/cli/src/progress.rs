//! What a person sees while a run works: bars on a terminal, a line now and then in a pipe.

use std::time::{Duration, Instant};

use compressor_format::{StageReport, StepLosses};
use compressor_pipeline::{Observer, Step, figures};
use indicatif::{ProgressBar, ProgressStyle};

use crate::out::{self, errln};
use crate::show;

/// Tells on stderr what a run does.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    is_terminal: bool,
    last_line: Instant,
    tokens: u64,
    seconds: f64,
}

/// In a pipe, one line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bar: None, is_terminal: out::stderr_is_terminal(), last_line: Instant::now(), tokens: 0, seconds: 0.0 }
    }

    /// Shows how far the work is.
    pub(crate) fn advance(&mut self, position: u64, of: u64, message: String) {
        if self.is_terminal {
            // Other work than before: what is left of it is not estimated from the speed of that.
            if self.bar.as_ref().is_some_and(|bar| bar.length() != Some(of)) {
                self.clear();
            }
            let bar = self.bar.get_or_insert_with(|| bar(of));
            // Names of tensors are other people's.
            bar.set_message(out::escaped(&format!("{}  {message}", far(position, of))).into_owned());
            bar.set_position(position);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            errln!("  {}  {message}", far(position, of));
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// `12/400`, and `20.5 M/134.5 M` where single elements are counted.
fn far(position: u64, of: u64) -> String {
    const COUNTED_ROUGHLY: u64 = 1_000_000;
    match of < COUNTED_ROUGHLY {
        true => format!("{}/{}", figures::whole(position), figures::whole(of)),
        false => format!("{}/{}", figures::count(position as f64), figures::count(of as f64)),
    }
}

fn bar(of: u64) -> ProgressBar {
    // The message takes what the rest leaves of the terminal's width: a longer one is cut, so the line never wraps.
    let style = ProgressStyle::with_template("  {bar:12} {wide_msg}  {eta} left").expect("a constant template");
    ProgressBar::new(of).with_style(style.progress_chars("━╸ "))
}

impl Observer for Progress {
    fn begins(&mut self, step: &Step, number: usize, of: usize) {
        self.clear();
        (self.tokens, self.seconds) = (0, 0.0);
        errln!("[{number}/{of}] {}", step.name);
    }

    fn skips(&mut self, step: &Step, _: &StageReport) {
        self.clear();
        errln!("{}: finished before, inputs unchanged", step.name);
    }

    fn measures(&mut self, model: &str) {
        errln!("{model}: measuring");
    }

    fn losses(&mut self, losses: &StepLosses, steps: u64) {
        self.tokens += losses.tokens;
        self.seconds += losses.seconds;
        let kl = losses.kl.map(|kl| format!("  KL {kl:.4}")).unwrap_or_default();
        let speed = self.tokens as f64 / self.seconds;
        self.advance(losses.step, steps, format!("loss {:.4}{kl}  {} tokens/s", losses.loss, figures::count(speed)));
    }

    fn advances(&mut self, what: &str, done: u64, of: u64) {
        self.advance(done, of, what.to_owned());
    }

    fn ends(&mut self, _: &Step, report: &StageReport) {
        self.clear();
        errln!("      {}", show::step_line(report));
        for line in show::taken_instead(report) {
            errln!("      {line}");
        }
    }
}
