//! Joins the pipeline with the trainer.

use std::ops::ControlFlow;

use compressor_format::{Artifact, ScalesByTensor, StepLosses, TensorId, TrainingKeys, Weights};
use compressor_pipeline::{Distillation, Start, Trainer, TrainingJob};
use compressor_train::{Descent, Objective, Rounding, Training};

use crate::interrupt;

/// Trains with Burn on one device.
pub(crate) struct Burn {
    device: String,
}

impl Burn {
    /// A trainer on a device that this build has.
    pub(crate) fn new(device: &str) -> anyhow::Result<Self> {
        compressor_train::open_device(device)?;
        Ok(Self { device: device.to_owned() })
    }

    /// The job as the trainer takes it.
    fn descent<'a, S>(&'a self, job: &TrainingJob<'a, S>, training: &'a Training) -> Descent<'a> {
        Descent {
            objective: objective(job.distillation),
            training,
            batches: job.batch,
            device: &self.device,
            state_folder: Some(job.state_folder),
            fingerprint: job.fingerprint,
            before_save: job.before_save,
        }
    }
}

impl Trainer for Burn {
    fn train(
        &self,
        job: TrainingJob<'_, Start<'_>>,
        observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    ) -> anyhow::Result<Weights> {
        let training = training(&job.keys);
        let descent = self.descent(&job, &training);
        let Start { weights, fake_quantizer } = job.start;
        let rounded = fake_quantizer
            .map(|rounds| |id: TensorId, values: &[f32]| rounds.round(id, values).map_err(|overflow| overflow.to_string()));
        let rounding = rounded.as_ref().map(|rounded| rounded as &Rounding<'_>);
        interruptible(observe, |each| compressor_train::train(weights, rounding, &descent, each))
    }

    fn learn_scales(
        &self,
        job: TrainingJob<'_, &Artifact>,
        observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    ) -> anyhow::Result<ScalesByTensor> {
        let training = training(&job.keys);
        let descent = self.descent(&job, &training);
        interruptible(observe, |each| compressor_train::learn_scales(job.start, &descent, each))
    }

    fn logits(&self, weights: &Weights, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
        Ok(compressor_train::logits(weights, tokens, 1, tokens.len(), &self.device)?)
    }
}

/// The trainer's settings from a stage's keys.
fn training(keys: &TrainingKeys) -> Training {
    Training {
        steps: keys.steps as u64,
        learning_rate: keys.learning_rate,
        min_learning_rate_ratio: keys.min_learning_rate_ratio,
        warmup_steps: keys.warmup_steps as u64,
        weight_decay: keys.weight_decay,
        beta_1: keys.beta_1,
        beta_2: keys.beta_2,
        epsilon: keys.epsilon,
        gradient_clip: Some(keys.gradient_clip),
        gradient_accumulation: keys.gradient_accumulation as u64,
        save_every: Some(keys.save_every as u64),
    }
}

fn objective(distillation: Option<Distillation<'_>>) -> Objective<'_> {
    match distillation {
        None => Objective::CrossEntropy,
        Some(distillation) => Objective::Distill {
            teacher: distillation.teacher,
            vocab_size: distillation.vocab_size,
            temperature: distillation.temperature as f32,
            kd_ratio: distillation.kd_ratio as f32,
        },
    }
}

/// Lets Ctrl-C stop a training after the step that it is in.
fn interruptible<T>(
    observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    train: impl FnOnce(&mut dyn FnMut(&StepLosses) -> ControlFlow<()>) -> Result<T, compressor_train::Error>,
) -> anyhow::Result<T> {
    let asked = interrupt::Asked::while_training();
    Ok(train(&mut |losses| match observe(losses) {
        ControlFlow::Continue(()) if asked.should_stop() => ControlFlow::Break(()),
        seen => seen,
    })?)
}
