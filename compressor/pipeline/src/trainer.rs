//! What the pipeline asks of a trainer, so that it needs no Burn.

use std::path::Path;

use compressor_format::{Batch, TrainingKeys, Weights};
use serde::{Deserialize, Serialize};

/// Trains and distills; `compressor-train` does it with Burn, tests with a stand-in.
pub trait Trainer {
    /// Trains `job.start` and gives the new weights.
    ///
    /// Continues from the state in `job.state_folder` where one with the same fingerprint lies there: a run that was killed and
    /// started again ends with the same weights as one left alone.
    ///
    /// # Errors
    /// Loss that is not finite, a state that can't be written; with the way out.
    fn train(&self, job: TrainingJob<'_>, observe: &mut dyn FnMut(&Losses)) -> anyhow::Result<Weights>;

    /// The logits `[tokens, vocab_size]` of one sequence: the proof of the engine.
    ///
    /// # Errors
    /// A device that is not there.
    fn logits(&self, weights: &Weights, tokens: &[u32]) -> anyhow::Result<Vec<f32>>;
}

/// Everything a training stage needs.
pub struct TrainingJob<'a> {
    /// What is trained.
    pub start: Weights,
    /// What is learnt from beside the data.
    pub distillation: Option<Distillation<'a>>,
    /// Steps, batch, optimizer.
    pub keys: TrainingKeys,
    /// Micro-batch number k, the same each time it is asked for.
    pub batch: &'a dyn Fn(u64) -> Batch,
    /// Where the state is saved.
    pub state_folder: &'a Path,
    /// What the state belongs to.
    pub fingerprint: &'a str,
}

/// The teacher and how much it counts.
pub struct Distillation<'a> {
    /// Its weights.
    pub teacher: &'a Weights,
    /// Divides both logits before the softmax.
    pub temperature: f64,
    /// Part of the KL term in the loss.
    pub kd_ratio: f64,
}

/// The losses of one step, mean per learnt token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// The step, from 1.
    pub step: u64,
    /// What is minimized.
    pub loss: f64,
    /// Cross entropy with the data, nats.
    pub cross_entropy: f64,
    /// KL divergence from the teacher at the stage's temperature, nats, without the factor T².
    pub kl: Option<f64>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens that went through the model in this step.
    pub tokens: u64,
    /// Seconds this step took.
    pub seconds: f64,
}
