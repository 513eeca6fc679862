//! Joins the pipeline with the trainer.

use std::ops::ControlFlow;

use compressor_format::{StepLosses, Weights};
use compressor_pipeline::{Trainer, TrainingJob};
use compressor_train::{Objective, Training};

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
}

impl Trainer for Burn {
    fn train(&self, job: TrainingJob<'_>, observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>) -> anyhow::Result<Weights> {
        let keys = job.keys;
        let training = Training {
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
        };
        let objective = match &job.distillation {
            None => Objective::CrossEntropy,
            Some(distillation) => Objective::Distill {
                teacher: distillation.teacher,
                temperature: distillation.temperature as f32,
                kd_ratio: distillation.kd_ratio as f32,
            },
        };
        let interruptible = interrupt::Asked::while_training();
        let mut each = |losses: &StepLosses| match observe(losses) {
            ControlFlow::Continue(()) if interruptible.should_stop() => ControlFlow::Break(()),
            seen => seen,
        };
        let (batches, state) = (job.batch, Some(job.state_folder));
        let weights =
            compressor_train::train(job.start, objective, &training, batches, &self.device, state, job.fingerprint, &mut each)?;
        Ok(weights)
    }

    fn logits(&self, weights: &Weights, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
        Ok(compressor_train::logits(weights, tokens, 1, tokens.len(), &self.device)?)
    }
}
