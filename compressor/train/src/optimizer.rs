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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use compressor_format::{Family, LayerTensor, Part, Weights};
    use serde_json::json;

    use super::*;
    use crate::model::values;

    #[test]
    fn matrices_decay_and_norms_and_biases_do_not() {
        use Part::{Bias, Weight};
        let layer = |tensor| TensorId::Layer(0, tensor);
        for id in [
            TensorId::Embedding,
            TensorId::PositionEmbedding,
            TensorId::Head,
            layer(LayerTensor::Query(Weight)),
            layer(LayerTensor::Down(Weight)),
        ] {
            assert!(decays(id), "{id}");
        }
        for id in [
            TensorId::FinalNorm(Weight),
            TensorId::FinalNorm(Bias),
            layer(LayerTensor::AttentionNorm(Weight)),
            layer(LayerTensor::QueryNorm),
            layer(LayerTensor::Query(Bias)),
            layer(LayerTensor::Down(Bias)),
        ] {
            assert!(!decays(id), "{id}");
        }
    }

    #[test]
    fn two_updates_by_hand() {
        let config = json!({
            "model_type": "llama", "vocab_size": 2, "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 2, "max_position_embeddings": 4, "tie_word_embeddings": true
        });
        let architecture = Family::read(&config, std::path::Path::new("config.json")).expect("a complete configuration");
        let device = Device::flex();
        let training = Training {
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.5,
            gradient_accumulation: 1,
            ..Training::default()
        };
        let (matrix, norm) = (TensorId::Embedding, TensorId::FinalNorm(Part::Weight));
        for ops in [Ops::Fused, Ops::Plain] {
            let mut parameters = Parameters::from_weights(&Weights::random(architecture.clone(), 1), &device);
            for (id, len) in [(matrix, 4), (norm, 2)] {
                parameters.change(id, |old| (Tensor::from_data(TensorData::new(vec![1.0_f32; len], old.dims()), &device), ()));
            }
            let mut optimizer = AdamW::default();
            for (gradient, factor) in [(0.5_f32, 1.0), (2.0, -0.5)] {
                let of = |id| {
                    let shape = parameters.get(id).dims();
                    let values = vec![gradient; shape[0] * shape[1]];
                    (id, Tensor::from_data(TensorData::new(values, shape), &device))
                };
                let gradients = [of(matrix), of(norm)].into();
                optimizer.update(ops, &mut parameters, gradients, &training, 0.1, factor);
            }
            // Step 1, gradient 0.5: both moments corrected are 0.5 and 0.25, the change is 0.1 · 0.5 / 0.5; decay takes 0.1 · 0.5 · 1.
            //   norm 1 − 0.1 = 0.9; matrix 1 − 0.05 − 0.1 = 0.85
            // Step 2, gradient 2 · −0.5 = −1: m = 0.9 · 0.05 − 0.1 = −0.055, corrected by 1 − 0.81: −0.289474;
            //   v = 0.99 · 0.0025 + 0.01 = 0.012475, corrected by 1 − 0.9801: 0.626884, root 0.791760; change 0.1 · −0.365608.
            //   norm 0.9 + 0.0365608; matrix 0.85 · 0.95 + 0.0365608
            for (id, expected) in [(norm, 0.936_560_8), (matrix, 0.844_060_8)] {
                for found in values(parameters.get(id)) {
                    assert!((found - expected).abs() < 1e-6, "{ops:?} {id}: {found}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn clipping_brings_a_large_norm_to_the_limit_and_leaves_a_small_one() {
        assert_eq!(clip_factor(4.0, None), 1.0);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
    }
}
