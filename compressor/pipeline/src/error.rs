//! What can go wrong while a plan is carried out.

use std::path::PathBuf;

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    Format(#[from] compressor_format::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] compressor_engine::Error),
    /// The trainer; its message says what and the way out.
    #[error("{0:#}")]
    Trainer(anyhow::Error),
    /// A cut that the weights don't allow.
    #[error(transparent)]
    Prune(#[from] crate::prune::Refusal),
    /// Weights that can't be quantized.
    #[error(transparent)]
    Quantize(#[from] crate::quantize::Error),
    /// Learnt scales that do harm.
    #[error(
        "the learnt scales are farther from the teacher than those before: KL divergence {after:.6} instead of {before:.6} nats/token \
         on {tokens} tokens of the valid split; lower learning_rate (it is {learning_rate}), or learn from more text"
    )]
    ScalesNotBetter {
        /// Of the artifact as it was quantized.
        before: f64,
        /// With what was learnt.
        after: f64,
        /// Tokens that both were measured on.
        tokens: u64,
        /// The stage's learning rate.
        learning_rate: f64,
    },
    /// The operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The held-out text has not one window.
    #[error("the held-out text has {tokens} tokens, one window takes {window}; set `window` lower or name a longer text")]
    TooShort {
        /// Tokens there are.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// Less text than the recipe asks for.
    #[error(
        "the train split has {tokens} tokens, {key} asks for {wanted} in windows of {window}; {}", way_out(*.tokens, *.window)
    )]
    CalibrationTooShort {
        /// The recipe's key.
        key: &'static str,
        /// Tokens there are.
        tokens: usize,
        /// Tokens of all windows.
        wanted: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// Positions that a model was never made for.
    #[error(
        "a window or an example has {tokens} tokens, the model's max_position_embeddings are {most}; set `window` lower or shorten the \
         examples"
    )]
    TooLong {
        /// Tokens that the model would read.
        tokens: usize,
        /// Those that it can.
        most: usize,
    },
    /// Distributions over different vocabularies have no distance.
    #[error(
        "the reference predicts {reference} tokens, the candidate {candidate}; compare it with the checkpoint it was made from"
    )]
    Vocabularies {
        /// Tokens in the reference's vocabulary.
        reference: usize,
        /// Tokens in the candidate's.
        candidate: usize,
    },
    /// A run folder in use.
    #[error("{0}: another run is at work in this folder; wait for it, or set `output` to another folder")]
    Busy(PathBuf),
    /// A folder that this program did not make.
    #[error("{0}: is not empty, and no record says that this run filled it; move it away or choose another folder")]
    NotOurs(PathBuf),
    /// The report's page.
    #[error("report.html can't be made: {0}")]
    Page(String),
    /// The measuring program.
    #[error("could not measure {path}: {what}")]
    Bench {
        /// The artifact.
        path: PathBuf,
        /// What it said.
        what: String,
    },
}

/// What helps where there is too little text: without one whole window nothing but more.
fn way_out(tokens: usize, window: usize) -> &'static str {
    if tokens < window { "name a longer text" } else { "set it lower, name a longer text, or allow = [\"less_text\"]" }
}
