//! What the engine refuses.

/// A model or an input that can't be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files.
    #[error(transparent)]
    Format(#[from] compressor_format::Error),
    /// The sizes of a model contradict each other.
    #[error("layer {layer}: {what}")]
    Layer {
        /// Index of the layer.
        layer: usize,
        /// Which sizes, and what must hold.
        what: String,
    },
    /// The operating system gave no threads.
    #[error("could not start {threads} threads: {source}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing to run.
    #[error("no tokens: a forward pass needs at least one")]
    NoTokens,
    /// A token that the model has no embedding for.
    #[error(
        "token {token} at position {position}, the vocabulary has {vocab_size}: was the text encoded with another tokenizer?"
    )]
    Token {
        /// The token.
        token: u32,
        /// Where in its sequence, counted from 0.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Learned positions end; rotary ones do not.
    #[error("the sequence has {tokens} tokens, the model has {positions} learned positions: use a shorter text or window")]
    TooLong {
        /// Tokens, those in the cache included.
        tokens: usize,
        /// Rows of the position embedding.
        positions: usize,
    },
    /// A cache that another model filled.
    #[error("the cache was made for another model: its layers hold {found:?} elements a token, this model's {expected:?}")]
    Cache {
        /// Elements of a key, layer by layer, in the cache.
        found: Vec<usize>,
        /// The same in the model.
        expected: Vec<usize>,
    },
    /// Keys and values of a prompt that this engine did not compute so.
    #[cfg(feature = "std")]
    #[error("the stored prompt does not fit: {what}")]
    Stored {
        /// What it has, and what this engine would have.
        what: String,
    },
    /// NaN or an infinity came out.
    #[error("the logits of position {position} are not finite: a weight of the model is damaged or overflows")]
    NotFinite {
        /// Row of the returned logits.
        position: usize,
    },
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
