//! What can stop a training.

use std::path::PathBuf;

/// A training that can't begin or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device is not known, not in this build, or not in this machine.
    #[error("device `{name}` {what}")]
    Device {
        /// The device as it was asked for.
        name: String,
        /// What is wrong, and the way out.
        what: String,
    },
    /// A setting is out of range, or two things that must agree do not.
    #[error("{0}")]
    Settings(String),
    /// A batch contradicts itself or the model.
    #[error("batch {index}: {what}")]
    Batch {
        /// Its number.
        index: u64,
        /// What is wrong with it, with the values found.
        what: String,
    },
    /// The loss or the gradient stopped being a number.
    #[error(
        "step {step}: {quantity} is {value}; try a lower learning_rate (it is {learning_rate}), more warmup_steps, or a smaller gradient_clip"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// Which quantity.
        quantity: &'static str,
        /// NaN, inf or -inf.
        value: f64,
        /// The learning rate of this step.
        learning_rate: f64,
    },
    /// Weights can't be rounded.
    #[error("step {step}: {what}")]
    Rounding {
        /// The step, counted from 1.
        step: u64,
        /// Which weights, and why not.
        what: String,
    },
    /// The observer asked to stop; the state is saved where a folder for it was given.
    #[error("stopped after step {step}")]
    Stopped {
        /// Steps that are done.
        step: u64,
    },
    /// A saved state can't be believed.
    #[error("{path}: {what}; remove this folder to train from the beginning")]
    State {
        /// The folder of the state.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file can't be read or written.
    #[error(transparent)]
    Format(#[from] compressor_format::Error),
    /// The operating system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
