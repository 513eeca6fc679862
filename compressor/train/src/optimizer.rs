//! AdamW with PyTorch's semantics (Loshchilov and Hutter 2019): decay apart from the moments, corrected bias, epsilon outside the root.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use compressor_format::TensorId;

use crate::Training;
pub(crate) use crate::fused::AdamWUpdate as Update;
use crate::model::Parameters;
use crate::ops::Ops;

/// The gradient of each tensor.
pub(crate) type Gradients = BTreeMap<TensorId, Tensor<2>>;

/// Running means of each tensor's gradient and of its square.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdamW {
    /// Updates made.
    pub(crate) steps: u64,
    /// Both moments; a tensor has them after its first update.
    pub(crate) moments: BTreeMap<TensorId, [Tensor<2>; 2]>,
}

/// Matrices decay, embeddings among them; norms and biases do not: they are few, and pulling them to zero only biases the model.
pub(crate) fn decays(id: TensorId) -> bool {
    id.is_matrix()
}

impl AdamW {
    /// Updates every tensor that has a gradient, after multiplying the gradients by `gradient_factor`.
    pub(crate) fn update(
        &mut self,
        ops: Ops,
        parameters: &mut Parameters,
        gradients: Gradients,
        training: &Training,
        learning_rate: f64,
        gradient_factor: f64,
    ) {
        self.steps += 1;
        let correction_1 = 1.0 - training.beta_1.powf(self.steps as f64);
        let correction_2 = 1.0 - training.beta_2.powf(self.steps as f64);
        for (id, gradient) in gradients {
            let decay = if decays(id) { training.weight_decay } else { 0.0 };
            let by = Update {
                gradient_factor: gradient_factor as f32,
                betas: (training.beta_1 as f32, training.beta_2 as f32),
                keep: (1.0 - learning_rate * decay) as f32,
                step_size: (learning_rate / correction_1) as f32,
                root_correction: (1.0 / correction_2.sqrt()) as f32,
                epsilon: training.epsilon as f32,
            };
            let moments = self.moments.remove(&id).unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
            let moments = parameters.change(id, |weight| ops.adamw(weight, gradient, moments, by));
            self.moments.insert(id, moments);
        }
    }
}

/// What gradients of this norm are multiplied with so that it is at most `clip`: PyTorch's `clip_grad_norm_`.
pub(crate) fn clip_factor(norm: f64, clip: Option<f64>) -> f64 {
    clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0))
}
