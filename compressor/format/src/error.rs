//! What can be wrong with a file.

use std::io;
use std::path::{Path, PathBuf};

/// A file that can't be read, written or believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; every call goes through `fs_err`, so the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no room for a file.
    #[error("{path}: {why}; {way_out}")]
    NoRoom {
        /// The file that was to be written.
        path: PathBuf,
        /// What is full.
        why: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The file is there, but its contents contradict its format.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, with the values found.
        what: String,
    },
    /// The file is well-formed and asks for something that does not exist here.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for and what there is instead.
        what: String,
    },
    /// A tensor that the model's configuration asks for is not in its files.
    #[error("{path}: there is no tensor `{name}`, and config.json asks for it")]
    MissingTensor {
        /// The folder or file.
        path: PathBuf,
        /// The tensor's name as stored.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor `{name}` has shape {found:?}, config.json asks for {expected:?}")]
    Shape {
        /// The folder or file.
        path: PathBuf,
        /// The tensor's name as stored.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A text can't be turned into tokens, or tokens into text, or a tokenizer can't be trained.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tensor holds NaN or an infinity.
    #[error("{path}: tensor `{name}` holds {value} at element {index}")]
    NotFinite {
        /// The folder or file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// NaN, inf or -inf.
        value: f32,
        /// The first such element, in row-major order.
        index: usize,
    },
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

const FREE_SPACE: &str = "free some space or write to another disk, and start the same command again";

impl Error {
    /// `path` contradicts its format: `what` says how.
    pub fn malformed(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// The operating system's refusal to write `path`; with the way out where the disk is full or can't be written.
    pub fn not_written(path: impl AsRef<Path>, error: io::Error) -> Self {
        let (why, way_out) = match error.kind() {
            io::ErrorKind::StorageFull => ("there is no space left on its disk", FREE_SPACE),
            io::ErrorKind::QuotaExceeded => ("the quota of its disk is used up", FREE_SPACE),
            io::ErrorKind::FileTooLarge => {
                ("it would be larger than a file may be here", "raise the limit (`ulimit -f`) or write to another disk")
            }
            io::ErrorKind::ReadOnlyFilesystem => ("its disk can only be read", "write to another disk"),
            _ => return Self::Io(error),
        };
        Self::NoRoom { path: path.as_ref().to_owned(), why, way_out }
    }

    /// `path` asks for something that is not there: `what` names it and the way out.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().to_owned(), what: what.into() }
    }
}
