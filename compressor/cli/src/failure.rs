//! How a command ends: its exit code, and what a person reads when it could not run.
//!
//! | exit code | means |
//! |---|---|
//! | 0 | it ran, and what was checked passed |
//! | 1 | it ran, and a check or the budget failed or could not be decided; what was written is kept |
//! | 2 | it could not run, or its results could not be written: to files or to standard output |
//! | 130 | it was interrupted, as shells have it: 128 and the number of SIGINT |
//!
//! A reader of standard output that goes away changes none of them; see `out.rs`.

use std::path::PathBuf;

use compressor_format::Mistake;
use compressor_pipeline::figures::whole;
use serde_json::{Value, json};

use crate::out::{self, errln};

/// A command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// What was checked passed.
    Passed,
    /// A check or the budget failed.
    Failed,
    /// Somebody wanted it to stop, and what there was has been given.
    Interrupted,
}

impl Ending {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Interrupted => 130,
        }
    }
}

/// The exit code of a command that could not run.
pub(crate) const COULD_NOT_RUN: u8 = 2;

/// Why a command could not run.
pub(crate) enum Failure {
    /// A recipe that is refused, with everything that is wrong in it.
    Refused(Option<PathBuf>, Vec<Mistake>),
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Most mistakes that are shown. A recipe's text has at most 51; its files and stages can have more.
const MOST_SHOWN: usize = 60;

impl Failure {
    /// Says on standard error what is wrong.
    pub(crate) fn show(&self) {
        match self {
            Self::Refused(path, mistakes) => {
                for mistake in mistakes.iter().take(MOST_SHOWN) {
                    match (path, mistake.line) {
                        (Some(path), Some(line)) => out::error(format_args!("{mistake} ({}:{line})", path.display())),
                        (Some(path), None) => out::error(format_args!("{mistake} ({})", path.display())),
                        (None, _) => out::error(format_args!("{mistake}")),
                    }
                    if let Some(hint) = &mistake.hint {
                        errln!("hint: {hint}");
                    }
                }
                if mistakes.len() > MOST_SHOWN {
                    errln!("… and {} more", whole((mistakes.len() - MOST_SHOWN) as u64));
                }
            }
            Self::Other(error) => out::error(format_args!("{error:#}")),
        }
    }

    /// The same for scripts, which read standard output: `error`, and where a recipe is refused `mistakes`, each with its message and
    /// where there are any its line and hint.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Refused(path, mistakes) => {
                let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
                let error = match mistakes.len() {
                    0 | 1 => first,
                    count => format!("{first}, and {} more", whole(count as u64 - 1)),
                };
                let mistakes = mistakes
                    .iter()
                    .map(|mistake| json!({ "message": mistake.message, "line": mistake.line, "hint": mistake.hint }));
                let file = path.as_ref().map(|path| path.display().to_string());
                json!({ "error": error, "file": file, "mistakes": mistakes.collect::<Vec<_>>() })
            }
            Self::Other(error) => json!({ "error": format!("{error:#}") }),
        }
    }
}

/// What clap refuses, for scripts: its first line says what.
pub(crate) fn usage_json(message: &clap::Error) -> Value {
    let text = message.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    json!({ "error": first.strip_prefix("error: ").unwrap_or(first) })
}
