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

    fn advance(&mut self, position: u64, of: u64, message: String) {
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(|| bar(of));
            bar.set_length(of);
            bar.set_position(position);
            bar.set_message(message);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            errln!("  {position}/{of}  {message}");
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(of: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:20} {pos}/{len}  {msg}  {eta} left").expect("a constant template");
    ProgressBar::new(of).with_style(style.progress_chars("━╸ "))
}

impl Observer for Progress {
    fn begins(&mut self, step: &Step, number: usize, of: usize) {
        (self.tokens, self.seconds) = (0, 0.0);
        errln!("[{number}/{of}] {}", step.name);
    }

    fn skips(&mut self, step: &Step, _: &StageReport) {
        errln!("{}: finished before, inputs unchanged", step.name);
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
