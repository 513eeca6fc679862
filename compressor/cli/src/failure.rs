//! How a command ends, and what a person reads when it could not run.

use std::fmt;
use std::path::PathBuf;

use compressor_format::Mistake;

/// A command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Exit code 0.
    Passed,
    /// A check or the budget failed: exit code 1.
    Failed,
    /// Somebody wanted it to stop, and what there was has been given: exit code 130.
    Interrupted,
}

/// A command that could not run: exit code 2.
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

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(path, mistakes) => {
                for mistake in mistakes {
                    match (path, mistake.line) {
                        (Some(path), Some(line)) => writeln!(f, "error: {mistake} ({}:{line})", path.display())?,
                        (Some(path), None) => writeln!(f, "error: {mistake} ({})", path.display())?,
                        (None, _) => writeln!(f, "error: {mistake}")?,
                    }
                    if let Some(hint) = &mistake.hint {
                        writeln!(f, "hint: {hint}")?;
                    }
                }
                Ok(())
            }
            Self::Other(error) => writeln!(f, "error: {error:#}"),
        }
    }
}
