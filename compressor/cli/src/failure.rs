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

use crate::out::errln;

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

impl Failure {
    /// Says on standard error what is wrong.
    pub(crate) fn show(&self) {
        match self {
            Self::Refused(path, mistakes) => {
                for mistake in mistakes {
                    match (path, mistake.line) {
                        (Some(path), Some(line)) => errln!("error: {mistake} ({}:{line})", path.display()),
                        (Some(path), None) => errln!("error: {mistake} ({})", path.display()),
                        (None, _) => errln!("error: {mistake}"),
                    }
                    if let Some(hint) = &mistake.hint {
                        errln!("hint: {hint}");
                    }
                }
            }
            Self::Other(error) => errln!("error: {error:#}"),
        }
    }
}
