//! What can be wrong with a file, or with bytes that hold one.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::Origin;

/// A file that can't be read, written or believed.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused; every call goes through `fs_err`, so the message names the path.
    #[cfg(feature = "std")]
    Io(std::io::Error),
    /// There is no room for a file.
    #[cfg(feature = "std")]
    NoRoom {
        /// The file that was to be written.
        path: String,
        /// What is full.
        why: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// What was to be written is not, because it would harm what is there.
    #[cfg(feature = "std")]
    Refused {
        /// What was to be written.
        path: String,
        /// What is there, and the way out.
        what: String,
    },
    /// The file is there, but its contents contradict its format.
    Malformed {
        /// The file.
        path: String,
        /// What is wrong, where in the file, with the values found.
        what: String,
    },
    /// The file is well-formed and asks for something that does not exist here.
    Unsupported {
        /// The file.
        path: String,
        /// What it asks for and what there is instead.
        what: String,
    },
    /// A tensor that the model's configuration asks for is not in its files.
    MissingTensor {
        /// The folder or file.
        path: String,
        /// The tensor's name as stored.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    Shape {
        /// The folder or file.
        path: String,
        /// The tensor's name as stored.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A text can't be turned into tokens, or tokens into text, or a tokenizer can't be trained.
    #[cfg(feature = "std")]
    Tokenizer(String),
    /// A tensor holds NaN or an infinity.
    NotFinite {
        /// The folder or file.
        path: String,
        /// The tensor's name.
        name: String,
        /// NaN, inf or -inf.
        value: f32,
        /// The first such element, in row-major order.
        index: usize,
    },
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = core::result::Result<T, E>;

impl Error {
    /// `origin` contradicts its format: `what` says how.
    pub fn malformed(origin: impl Origin, what: impl Into<String>) -> Self {
        Self::Malformed { path: origin.shown(), what: what.into() }
    }

    /// `origin` asks for something that is not there: `what` names it and the way out.
    pub fn unsupported(origin: impl Origin, what: impl Into<String>) -> Self {
        Self::Unsupported { path: origin.shown(), what: what.into() }
    }
}

/// Refuses NaN and infinities by tensor and place.
///
/// # Errors
/// [`Error::NotFinite`].
pub fn check_finite<O: Origin + ?Sized>(origin: &O, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite { path: origin.shown(), name: name.to_owned(), value: values[index], index }),
    }
}

// By hand, because `thiserror` would bring a compiler's worth of crates into a build for firmware.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "std")]
            Self::Io(error) => error.fmt(f),
            #[cfg(feature = "std")]
            Self::NoRoom { path, why, way_out } => write!(f, "{path}: {why}; {way_out}"),
            #[cfg(feature = "std")]
            Self::Refused { path, what } => write!(f, "{path}: {what}"),
            Self::Malformed { path, what } | Self::Unsupported { path, what } => write!(f, "{path}: {what}"),
            Self::MissingTensor { path, name } => write!(f, "{path}: there is no tensor `{name}`, and config.json asks for it"),
            Self::Shape { path, name, found, expected } => {
                write!(f, "{path}: tensor `{name}` has shape {found:?}, config.json asks for {expected:?}")
            }
            #[cfg(feature = "std")]
            Self::Tokenizer(what) => write!(f, "tokenizer: {what}"),
            Self::NotFinite { path, name, value, index } => {
                write!(f, "{path}: tensor `{name}` holds {value} at element {index}")
            }
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            #[cfg(feature = "std")]
            Self::Io(error) => error.source(),
            _ => None,
        }
    }
}

#[cfg(feature = "std")]
mod of_the_system {
    use alloc::string::String;
    use std::io;

    use super::Error;
    use crate::Origin;

    const FREE_SPACE: &str = "free some space or write to another disk, and start the same command again";

    impl Error {
        /// `path` is not written: `what` says what is there and the way out.
        pub fn refused(path: impl Origin, what: impl Into<String>) -> Self {
            Self::Refused { path: path.shown(), what: what.into() }
        }

        /// The operating system's refusal to write `path`; with the way out where the disk is full or can't be written.
        pub fn not_written(path: impl Origin, error: io::Error) -> Self {
            let (why, way_out) = match error.kind() {
                io::ErrorKind::StorageFull => ("there is no space left on its disk", FREE_SPACE),
                io::ErrorKind::QuotaExceeded => ("the quota of its disk is used up", FREE_SPACE),
                io::ErrorKind::FileTooLarge => {
                    ("it would be larger than a file may be here", "raise the limit (`ulimit -f`) or write to another disk")
                }
                io::ErrorKind::ReadOnlyFilesystem => ("its disk can only be read", "write to another disk"),
                _ => return Self::Io(error),
            };
            Self::NoRoom { path: path.shown(), why, way_out }
        }
    }

    impl From<io::Error> for Error {
        fn from(error: io::Error) -> Self {
            Self::Io(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec;

    use super::*;

    fn owned(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn every_error_names_the_file_and_both_values() {
        let path = || owned("model.safetensors");
        let name = || owned("lm_head.weight");
        let texts = [
            (Error::malformed("config.json", "is empty"), "config.json: is empty"),
            (Error::unsupported("config.json", "is of 2019"), "config.json: is of 2019"),
            (
                Error::MissingTensor { path: path(), name: name() },
                "model.safetensors: there is no tensor `lm_head.weight`, and config.json asks for it",
            ),
            (
                Error::Shape { path: path(), name: name(), found: vec![2, 3], expected: vec![3] },
                "model.safetensors: tensor `lm_head.weight` has shape [2, 3], config.json asks for [3]",
            ),
            (
                Error::NotFinite { path: path(), name: name(), value: f32::NEG_INFINITY, index: 7 },
                "model.safetensors: tensor `lm_head.weight` holds -inf at element 7",
            ),
        ];
        for (error, text) in texts {
            assert_eq!(error.to_string(), text);
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn what_the_system_says_is_passed_on() {
        let inner = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file `a`");
        assert_eq!(Error::from(inner).to_string(), "no such file `a`");
        assert_eq!(Error::Tokenizer(owned("no token for `ü`")).to_string(), "tokenizer: no token for `ü`");
        let full = Error::NoRoom { path: owned("a"), why: "it is full", way_out: "empty it" };
        assert_eq!(full.to_string(), "a: it is full; empty it");
    }
}
