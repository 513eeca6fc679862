//! What the pipeline asks of a trainer, so that it needs no Burn.

use std::ops::ControlFlow;
use std::path::Path;

use compressor_format::{Artifact, Batch, ScalesByTensor, StepLosses, TrainingKeys, Weights};

use crate::quantize::FakeQuantizer;

/// Trains and distills; `compressor-train` does it with Burn, tests with a stand-in.
pub trait Trainer {
    /// Trains `job.start` and gives the new weights.
    ///
    /// Continues from the state in `job.state_folder` where one with the same fingerprint lies there: a run that was killed and
    /// started again ends with the same weights as one left alone. `observe` sees every step and may stop the training, which then
    /// saves its state.
    ///
    /// # Errors
    /// Loss that is not finite, weights that can't be rounded, a state that can't be written, a training that was stopped; with the way
    /// out.
    fn train(
        &self,
        job: TrainingJob<'_, Start<'_>>,
        observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    ) -> anyhow::Result<Weights>;

    /// Trains the scales of `job.start`, whose integers stay, and gives the new ones as f32; all else is as in [`Self::train`].
    ///
    /// # Errors
    /// As [`Self::train`].
    fn learn_scales(
        &self,
        job: TrainingJob<'_, &Artifact>,
        observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    ) -> anyhow::Result<ScalesByTensor>;

    /// The logits `[tokens, vocab_size]` of one sequence: the proof of the engine.
    ///
    /// # Errors
    /// A device that is not there.
    fn logits(&self, weights: &Weights, tokens: &[u32]) -> anyhow::Result<Vec<f32>>;
}

/// Weights to train.
pub struct Start<'a> {
    /// They themselves.
    pub weights: Weights,
    /// Rounds them before every forward pass; the gradients of what it makes of them are theirs.
    pub fake_quantizer: Option<&'a FakeQuantizer>,
}

/// Everything a training stage needs.
pub struct TrainingJob<'a, S> {
    /// What is trained.
    pub start: S,
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
    /// Called before a state is saved, which covers the steps that `observe` has seen; with its error nothing is saved.
    pub before_save: &'a dyn Fn() -> compressor_format::Result<()>,
}

/// The teacher and how much it counts.
#[derive(Clone, Copy)]
pub struct Distillation<'a> {
    /// Its weights.
    pub teacher: &'a Weights,
    /// Tokens that teacher and student predict both: rows beyond them are padding, and in neither softmax.
    pub vocab_size: usize,
    /// Divides both logits before the softmax.
    pub temperature: f64,
    /// Part of the KL term in the loss.
    pub kd_ratio: f64,
}
