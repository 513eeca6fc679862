//! What the engine refuses.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A model or an input that can't be run.
#[derive(Debug)]
pub enum Error {
    /// The model's files.
    Format(compressor_format::Error),
    /// The sizes of a model contradict each other.
    Layer {
        /// Index of the layer.
        layer: usize,
        /// Which sizes, and what must hold.
        what: String,
    },
    /// The operating system gave no threads.
    #[cfg(feature = "std")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing to run.
    NoTokens,
    /// A token that the model has no embedding for.
    Token {
        /// The token.
        token: u32,
        /// Where in its sequence, counted from 0.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Learned positions end, and so does what a window reaches; rotary positions do not.
    TooLong {
        /// Tokens, those in the cache included.
        tokens: usize,
        /// The most that the model can take.
        most: usize,
    },
    /// A cache that another model filled.
    Cache {
        /// Key/value heads and elements of each, layer by layer, in the cache.
        found: Vec<(usize, usize)>,
        /// The same in the model.
        expected: Vec<(usize, usize)>,
    },
    /// Keys and values of a prompt that this engine did not compute so.
    #[cfg(feature = "std")]
    Stored {
        /// What it has, and what this engine would have.
        what: String,
    },
    /// NaN or an infinity came out.
    NotFinite {
        /// Row of the returned logits.
        position: usize,
    },
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = core::result::Result<T, E>;

// By hand, as in `compressor_format`: `thiserror` would bring a compiler's worth of crates into a build for firmware.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::Layer { layer, what } => write!(f, "layer {layer}: {what}"),
            #[cfg(feature = "std")]
            Self::Threads { threads, source } => write!(f, "could not start {threads} threads: {source}; take fewer (--threads)"),
            Self::NoTokens => write!(f, "no tokens: a forward pass needs at least one"),
            Self::Token { token, position, vocab_size } => write!(
                f,
                "token {token} at position {position}, the vocabulary has {vocab_size}: was the text encoded with another tokenizer?"
            ),
            Self::TooLong { tokens, most } => {
                write!(f, "the sequence has {tokens} tokens, the model takes at most {most}: use a shorter text or window")
            }
            Self::Cache { found, expected } => write!(
                f,
                "the cache was made for another model: its layers have {found:?} key/value heads and elements of each, this model's {expected:?}"
            ),
            #[cfg(feature = "std")]
            Self::Stored { what } => write!(f, "the stored prompt does not fit: {what}"),
            Self::NotFinite { position } => {
                write!(f, "the logits of position {position} are not finite: a weight of the model is damaged or overflows")
            }
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            // Its text is this error's text, so what is behind it is behind this one.
            Self::Format(error) => error.source(),
            #[cfg(feature = "std")]
            Self::Threads { source, .. } => Some(source),
            #[cfg(feature = "std")]
            Self::Stored { .. } => None,
            Self::Layer { .. }
            | Self::NoTokens
            | Self::Token { .. }
            | Self::TooLong { .. }
            | Self::Cache { .. }
            | Self::NotFinite { .. } => None,
        }
    }
}

impl From<compressor_format::Error> for Error {
    fn from(error: compressor_format::Error) -> Self {
        Self::Format(error)
    }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::string::ToString;
    use alloc::vec;
    use core::error::Error as _;

    use super::*;

    #[test]
    fn every_error_says_what_was_found_and_what_must_hold() {
        let texts = [
            (compressor_format::Error::malformed("config.json", "is empty").into(), "config.json: is empty"),
            (
                Error::Layer { layer: 3, what: "the MLP has no intermediate channels".to_owned() },
                "layer 3: the MLP has no intermediate channels",
            ),
            (Error::NoTokens, "no tokens: a forward pass needs at least one"),
            (
                Error::Token { token: 9, position: 2, vocab_size: 8 },
                "token 9 at position 2, the vocabulary has 8: was the text encoded with another tokenizer?",
            ),
            (
                Error::TooLong { tokens: 9, most: 8 },
                "the sequence has 9 tokens, the model takes at most 8: use a shorter text or window",
            ),
            (
                Error::Cache { found: vec![(1, 16), (1, 16)], expected: vec![(2, 16)] },
                "the cache was made for another model: its layers have [(1, 16), (1, 16)] key/value heads and elements of each, this model's \
                 [(2, 16)]",
            ),
            (
                Error::NotFinite { position: 4 },
                "the logits of position 4 are not finite: a weight of the model is damaged or overflows",
            ),
        ];
        for (error, text) in texts {
            assert_eq!(error.to_string(), text);
            assert!(error.source().is_none(), "{text}");
        }
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_stored_prompt_that_does_not_fit_is_refused_with_what_differs() {
        let error = Error::Stored { what: "it has 3 layers, the model 2".to_owned() };
        assert_eq!(error.to_string(), "the stored prompt does not fit: it has 3 layers, the model 2");
        assert!(error.source().is_none());
    }

    #[cfg(feature = "std")]
    #[test]
    fn what_the_system_says_about_threads_is_passed_on() {
        let source = std::io::Error::other("no room");
        let error = Error::Threads { threads: 7, source };
        assert_eq!(error.to_string(), "could not start 7 threads: no room; take fewer (--threads)");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("no room"));
    }
}
