//! The scales of a quantized model as what is learnt, while its integers stay.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use compressor_format::{Artifact, ArtifactTensor, QuantizedMatrix, ScalesByTensor, TensorId};
use rayon::prelude::*;

use crate::Error;
use crate::fused::simd::dot;
use crate::fused::{OwnedMatrix, flex, from_matrix, matrix};
use crate::model::{Parameters, Shapes, shapes, values};
use crate::ops::Ops;
use crate::optimizer::Gradients;

/// A quantized model whose scales are learnt: `W[r, i] = (q[r, i] − z[r, g]) · s[r, g] · exp(θ[r, g])`, group `g` that of input `i`.
///
/// The integers `q`, the zero points `z` and the scales `s` are the artifact's; θ, `[rows, groups]`, begins at zero and is what the
/// optimizer changes. Kim et al. 2023 (arXiv:2305.14152, eq. 2) add to the scales instead. Here they are multiplied: AdamW's
/// steps have one size for all, scales of one model differ a hundredfold, and so a step is the same part of each; and the
/// exponential keeps every scale's sign.
#[derive(Debug)]
pub(crate) struct LearntScales {
    matrices: BTreeMap<TensorId, Integers>,
    /// Everything that has no scales.
    dense: Parameters,
}

/// A matrix of integers in the form that the operations take.
// A few hundred of them, and all of a model are of one kind.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Integers {
    /// As it lies in its file; weights are made of it row by row.
    Stored(QuantizedMatrix),
    /// On a device: `q − z` `[rows · groups, group_size]` and the scales `[rows, groups]`.
    OnDevice { integers: Tensor<2>, scales: Tensor<2> },
}

impl LearntScales {
    /// Reads an artifact.
    ///
    /// # Errors
    /// [`Error::Format`] for dense values that are not finite; [`Error::Settings`] where nothing is quantized.
    pub(crate) fn read(artifact: &Artifact, ops: Ops, device: &Device) -> Result<Self, Error> {
        let (mut matrices, mut dense) = (BTreeMap::new(), Vec::new());
        for id in artifact.architecture().tensors() {
            match artifact.tensor(id) {
                ArtifactTensor::Quantized(matrix) => {
                    matrices.insert(id, Integers::new(matrix, ops, device));
                }
                ArtifactTensor::Dense(_) | ArtifactTensor::Codebooks(_) => dense.push((id, artifact.values(id)?)),
            }
        }
        if matrices.is_empty() {
            return Err(Error::Settings("every tensor of the artifact is dense: there are no scales to learn".to_owned()));
        }
        let dense = Parameters::new(&shapes(artifact.architecture()), dense, device);
        Ok(Self { matrices, dense })
    }

    /// The shape of θ for each matrix.
    pub(crate) fn shapes(&self) -> Shapes {
        self.matrices.iter().map(|(id, integers)| (*id, integers.shape())).collect()
    }

    /// The weights that θ makes, dense ones as they are.
    pub(crate) fn weights(&self, theta: &Parameters) -> Parameters {
        let matrices = self.matrices.iter().map(|(id, integers)| (*id, integers.weights(theta.get(*id))));
        self.dense.iter().map(|(id, tensor)| (id, tensor.clone())).chain(matrices).collect()
    }

    /// The gradients of θ: `∂L/∂θ[r, g] = Σ_i ∂L/∂W[r, i] · W[r, i]` over the group, since `∂W/∂θ = W`.
    ///
    /// - `weights`: what [`Self::weights`] made of the same θ
    /// - `of_weights`: the gradients of the loss with respect to them
    pub(crate) fn gradients(&self, weights: &Parameters, mut of_weights: Gradients) -> Gradients {
        let of_theta = |(id, integers): (&TensorId, &Integers)| {
            let of_weights = of_weights.remove(id).expect("every tensor of the model has a gradient");
            (*id, integers.of_theta(weights.get(*id), of_weights))
        };
        self.matrices.iter().map(of_theta).collect()
    }

    /// The scales that θ makes, as f32.
    pub(crate) fn scales(&self, theta: &Parameters) -> ScalesByTensor {
        self.matrices.iter().map(|(id, integers)| (*id, integers.scales(theta.get(*id)))).collect()
    }
}

impl Integers {
    fn new(matrix: QuantizedMatrix, ops: Ops, device: &Device) -> Self {
        match ops {
            Ops::Fused => Self::Stored(matrix),
            Ops::Plain => {
                let (size, shape) = (matrix.group_size(), [matrix.rows, matrix.groups()]);
                let scales: Vec<f32> = matrix.scales.iter().collect();
                let ones = vec![1.0; scales.len()];
                let integers = QuantizedMatrix { scales: ones.into(), ..matrix }.to_f32();
                let tensor = |values, shape| Tensor::from_data(TensorData::new(values, shape), device);
                Self::OnDevice { integers: tensor(integers, [shape[0] * shape[1], size]), scales: tensor(scales, shape) }
            }
        }
    }

    /// `[rows, groups]`.
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Stored(matrix) => [matrix.rows, matrix.groups()],
            Self::OnDevice { scales, .. } => scales.dims(),
        }
    }

    fn scales(&self, theta: Tensor<2>) -> Vec<f32> {
        match self {
            Self::Stored(matrix) => matrix.scales.iter().zip(values(theta)).map(|(scale, theta)| scale * theta.exp()).collect(),
            Self::OnDevice { scales, .. } => values(scales.clone() * theta.exp()),
        }
    }

    /// `[rows, columns]` from θ `[rows, groups]`.
    fn weights(&self, theta: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Stored(matrix) => {
                let scaled = QuantizedMatrix { scales: self.scales(theta).into(), ..matrix.clone() };
                from_matrix(OwnedMatrix { values: scaled.to_f32(), rows: matrix.rows, columns: matrix.columns })
            }
            Self::OnDevice { integers, scales } => {
                let ([rows, groups], [all_groups, size]) = (scales.dims(), integers.dims());
                let scales = (scales.clone() * theta.exp()).reshape([all_groups, 1]);
                (integers.clone() * scales).reshape([rows, groups * size])
            }
        }
    }

    /// The gradient of θ, `[rows, groups]`, from weights and their gradient, `[rows, columns]`.
    fn of_theta(&self, weights: Tensor<2>, of_weights: Tensor<2>) -> Tensor<2> {
        let [rows, groups] = self.shape();
        match self {
            Self::Stored(stored) => {
                let (weights, of_weights) = (flex(weights), flex(of_weights));
                let size = stored.group_size();
                let pairs = matrix(&weights).values.par_chunks(size).zip(matrix(&of_weights).values.par_chunks(size));
                let values = pairs.with_min_len(1024).map(|(weights, gradients)| dot(weights, gradients)).collect();
                from_matrix(OwnedMatrix { values, rows, columns: groups })
            }
            Self::OnDevice { integers, .. } => (weights * of_weights).reshape(integers.dims()).sum_dim(1).reshape([rows, groups]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ops::ControlFlow;
    use std::path::Path;

    use compressor_format::{
        Dtype, Family, InputRounding, NewArtifact, NewArtifactTensor, Scheme, StoredTensor, Values, WeightBytes, Weights, pack,
    };
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::fused::tests::{assert_close, noise};
    use crate::model::Decoder;
    use crate::train::tests::{batch, gradients_at};
    use crate::{Descent, Objective, Training, learn_scales};

    const INT3: Scheme = Scheme { bits: 3, group_size: Some(8), symmetric: true };

    fn tiny(family: Family, seed: u64) -> Weights {
        let config = match family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "n_inner": 24
            }),
            _ => json!({
                "model_type": family.model_type(), "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 6,
                "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 12,
                "tie_word_embeddings": family != Family::Mistral
            }),
        };
        Weights::random(Family::read(&config, Path::new("config.json")).unwrap(), seed)
    }

    /// Integers and scales of a matrix, each group from its largest value; zero points that nothing asks for.
    fn rounded(values: &[f32], columns: usize, scheme: Scheme, packed: bool) -> QuantizedMatrix {
        let (smallest, largest) = scheme.range();
        let size = scheme.group_size.unwrap_or(columns);
        let point = |group: usize| if scheme.symmetric { 0 } else { (group % 3) as i32 - 1 };
        let scale = |group: &[f32]| group.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / largest as f32;
        let scales: Vec<f32> = values.chunks(size).map(|group| Dtype::F16.nearest(scale(group)).unwrap()).collect();
        let integers: Vec<i8> = values
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let nearest = (value / scales[index / size]).round() as i32 + point(index / size);
                nearest.clamp(smallest, largest) as i8
            })
            .collect();
        let bytes = |bytes: Vec<u8>| WeightBytes::Owned(bytes.into());
        QuantizedMatrix {
            rows: values.len() / columns,
            columns,
            scheme,
            values: match packed {
                true => Values::Packed(bytes(integers.chunks(columns).flat_map(|row| pack(row, scheme.bits)).collect())),
                false => Values::Signed(bytes(integers.iter().map(|q| *q as u8).collect())),
            },
            zero_points: (!scheme.symmetric).then(|| (0..scales.len()).map(|group| point(group) as i8).collect()),
            scales: scales.into(),
        }
    }

    /// An artifact of a model, embedding and head quantized too.
    fn artifact(weights: &Weights, scheme: Scheme, packed: bool) -> (TempDir, Artifact) {
        let architecture = weights.architecture();
        let of: BTreeMap<TensorId, &[f32]> = weights.iter().collect();
        let tensor = |stored: StoredTensor| {
            let values: Vec<f32> = stored.parts.iter().flat_map(|part| of[part].iter().copied()).collect();
            let shape = architecture.shape(stored.parts[0]);
            let is_end = matches!(stored.parts[0], TensorId::Embedding | TensorId::Head);
            let tensor = match is_end || stored.parts[0].is_projection() && shape.len() == 2 {
                true => NewArtifactTensor::Quantized(rounded(&values, shape[1], scheme, packed || is_end)),
                false => NewArtifactTensor::Dense(values),
            };
            (stored, tensor)
        };
        let folder = tempfile::tempdir().unwrap();
        let new = NewArtifact {
            architecture,
            config: &json!({}),
            dense_dtype: Dtype::F32,
            scale_dtype: Dtype::F16,
            tensors: Family::stored(architecture).into_iter().map(tensor).collect(),
            input_rounding: if packed { InputRounding::None } else { InputRounding::PerToken },
        };
        new.write(folder.path()).unwrap();
        let artifact = Artifact::open(folder.path()).unwrap();
        (folder, artifact)
    }

    #[test]
    fn a_gradient_worked_by_hand() {
        // Integers (1, −2) and (3, 0), zero points 0 and 1, scales ½ and 2; θ = (ln 2, 0) makes scales 1 and 2, so
        // W = ((1, −2), (4, −2)). With ∂L/∂W = ((1, ¼), (¼, −1)): ∂L/∂θ = (1 − ½, 1 + 2).
        let scheme = Scheme { bits: 4, group_size: Some(2), symmetric: false };
        let matrix = QuantizedMatrix {
            rows: 2,
            columns: 2,
            scheme,
            values: Values::Packed(WeightBytes::Owned([pack(&[1, -2], 4), pack(&[3, 0], 4)].concat().into())),
            scales: vec![0.5, 2.0].into(),
            zero_points: Some(vec![0, 1]),
        };
        let device = Device::flex();
        let tensor = |values: &[f32], shape: [usize; 2]| Tensor::from_data(TensorData::new(values.to_vec(), shape), &device);
        for ops in [Ops::Fused, Ops::Plain] {
            let integers = Integers::new(matrix.clone(), ops, &device);
            let theta: Tensor<2> = tensor(&[std::f32::consts::LN_2, 0.0], [2, 1]);
            let weights = integers.weights(theta.clone());
            assert_close("weights", &values(weights.clone()), &[1.0, -2.0, 4.0, -2.0], 1e-6);
            let gradient = integers.of_theta(weights, tensor(&[1.0, 0.25, 0.25, -1.0], [2, 2]));
            assert_eq!(gradient.dims(), [2, 1]);
            assert_close("gradient", &values(gradient), &[0.5, 3.0], 1e-6);
            assert_close("scales", &integers.scales(theta), &[1.0, 2.0], 1e-6);
        }
    }

    #[test]
    fn learning_begins_with_the_weights_that_the_artifact_stands_for() {
        let device = Device::flex();
        for ops in [Ops::Fused, Ops::Plain] {
            let (_folder, artifact) = artifact(&tiny(Family::Gpt2, 1), INT3, true);
            let scales = LearntScales::read(&artifact, ops, &device).unwrap();
            let theta = scales.shapes().into_iter().map(|(id, shape)| (id, Tensor::zeros(shape, &device))).collect();
            let weights = scales.weights(&theta);
            for id in artifact.architecture().tensors() {
                assert_eq!(values(weights.get(id)), artifact.values(id).unwrap(), "{ops:?} {id}");
            }
        }
    }

    /// What is learnt at some distance from the beginning.
    fn theta(scales: &LearntScales) -> BTreeMap<TensorId, Vec<f32>> {
        let small = |count, seed| noise(count, seed).into_iter().map(|value| 0.1 * value).collect();
        scales
            .shapes()
            .into_iter()
            .enumerate()
            .map(|(seed, (id, [rows, groups]))| (id, small(rows * groups, seed as u64)))
            .collect()
    }

    /// T² · KL and its gradient by θ.
    fn loss_at(
        artifact: &Artifact,
        teacher: &Weights,
        ops: Ops,
        change: impl FnOnce(&mut BTreeMap<TensorId, Vec<f32>>),
    ) -> (f64, BTreeMap<TensorId, Vec<f32>>) {
        let device = Device::flex();
        let scales = LearntScales::read(artifact, ops, &device).unwrap();
        let mut theta = theta(&scales);
        change(&mut theta);
        let weights = scales.weights(&Parameters::new(&scales.shapes(), theta, &device));
        let decoder = Decoder { architecture: artifact.architecture().clone(), ops };
        let objective =
            Objective::Distill { teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 1.0 };
        let (loss, of_weights) = gradients_at(&decoder, &weights, objective, &batch(), &device);
        (loss, scales.gradients(&weights, of_weights).into_iter().map(|(id, gradient)| (id, values(gradient))).collect())
    }

    #[test]
    fn every_scheme_of_every_family_has_the_gradient_that_differences_find() {
        let groups = [2, 3, 4, 5, 6, 8].map(|bits| (Scheme { bits, group_size: Some(8), symmetric: bits % 2 == 0 }, true));
        let channels = [false, true].map(|packed| (Scheme { bits: 8, group_size: None, symmetric: true }, packed));
        for (index, (scheme, packed)) in groups.into_iter().chain(channels).enumerate() {
            let family = Family::ALL[index % Family::ALL.len()];
            let (_folder, artifact) = artifact(&tiny(family, 1), scheme, packed);
            let teacher = tiny(family, 2);
            let (_, fused) = loss_at(&artifact, &teacher, Ops::Fused, |_| {});
            let (_, plain) = loss_at(&artifact, &teacher, Ops::Plain, |_| {});
            assert_eq!(fused.len(), plain.len());
            for (id, fused) in &fused {
                let name = format!("{family:?}, {scheme}: {id}");
                let largest = fused.iter().copied().enumerate().max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()));
                let (at, gradient) = largest.unwrap();
                let relative = |values: &[f32]| values.iter().map(|value| value / gradient.abs()).collect::<Vec<f32>>();
                assert_close(&name, &relative(fused), &relative(&plain[id]), 1e-3);
                let moved =
                    |step: f32| loss_at(&artifact, &teacher, Ops::Fused, |theta| theta.get_mut(id).unwrap()[at] += step).0;
                const STEP: f32 = 1e-2;
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
                // The loss is a sum of f32: its rounding, divided by the step, is the least that can be seen.
                let bound = 0.01 * f64::from(gradient.abs()) + 1e-5;
                assert!((difference - f64::from(gradient)).abs() < bound, "{name}: {difference}, gradient {gradient}");
            }
        }
    }

    fn learn(
        artifact: &Artifact,
        teacher: &Weights,
        training: &Training,
        state: Option<&Path>,
        stop_after: u64,
    ) -> (Result<ScalesByTensor, Error>, Vec<f64>) {
        let objective =
            Objective::Distill { teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 1.0 };
        let mut seen = Vec::new();
        let batches = |index: u64| {
            let mut batch = batch();
            batch.tokens.iter_mut().for_each(|token| *token = (*token + index as u32 * 7) % 30);
            batch
        };
        let (batches, fingerprint) = (&batches, "a fingerprint");
        let descent =
            Descent { objective, training, batches, device: "cpu", state_folder: state, fingerprint, before_save: &|| Ok(()) };
        let learnt = learn_scales(artifact, &descent, &mut |losses| {
            seen.push(losses.kl.unwrap());
            if losses.step == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (learnt, seen)
    }

    fn training(steps: u64) -> Training {
        Training { steps, learning_rate: 1e-2, warmup_steps: 2, weight_decay: 0.0, save_every: Some(4), ..Training::default() }
    }

    #[test]
    fn scales_are_learnt_and_what_is_written_keeps_the_sign_of_each() {
        for family in Family::ALL {
            let teacher = tiny(family, 1);
            // Two bits that reach to the largest value: far from the best grid.
            let (_folder, artifact) = artifact(&teacher, Scheme { bits: 2, ..INT3 }, true);
            let (learnt, seen) = learn(&artifact, &teacher, &training(61), None, 0);
            // The first batch and the last are the same.
            assert!(seen[60] < 0.8 * seen[0], "{family:?}: {} fell to {} only", seen[0], seen[60]);
            let mut moved = 0;
            for (id, scales) in learnt.unwrap() {
                let ArtifactTensor::Quantized(matrix) = artifact.tensor(id) else { panic!("{id} has scales") };
                for (old, new) in matrix.scales.iter().zip(scales) {
                    assert!(new.is_finite() && new * old > 0.0, "{id}: {old} became {new}");
                    moved += usize::from(new != old);
                }
            }
            assert!(moved > 100, "{family:?}: {moved} scales moved");
        }
    }

    #[test]
    fn stopped_and_continued_is_the_same_bit_for_bit_as_left_alone() {
        let teacher = tiny(Family::Qwen3, 1);
        let (_folder, artifact) = artifact(&teacher, INT3, true);
        let (whole, all) = learn(&artifact, &teacher, &training(12), None, 0);
        let state = tempfile::tempdir().unwrap();
        let (stopped, first) = learn(&artifact, &teacher, &training(12), Some(state.path()), 7);
        assert_eq!(stopped.unwrap_err().to_string(), "stopped after step 7");
        let (continued, last) = learn(&artifact, &teacher, &training(12), Some(state.path()), 0);
        assert_eq!([first, last].concat(), all);
        let bits = |scales: ScalesByTensor| {
            scales
                .into_iter()
                .map(|(id, scales)| (id, scales.into_iter().map(f32::to_bits).collect()))
                .collect::<Vec<(_, Vec<_>)>>()
        };
        assert_eq!(bits(continued.unwrap()), bits(whole.unwrap()));
    }

    #[test]
    fn an_artifact_without_integers_has_nothing_to_learn() {
        let weights = tiny(Family::Llama, 1);
        let (folder, _) = artifact(&weights, INT3, true);
        let dense = Family::stored(weights.architecture()).into_iter().map(|stored| {
            let values =
                weights.iter().filter(|(id, _)| stored.parts.contains(id)).flat_map(|(_, values)| values.to_vec()).collect();
            (stored, NewArtifactTensor::Dense(values))
        });
        let new = NewArtifact {
            architecture: weights.architecture(),
            config: &json!({}),
            dense_dtype: Dtype::F32,
            scale_dtype: Dtype::F16,
            tensors: dense.collect(),
            input_rounding: InputRounding::None,
        };
        new.write(folder.path()).unwrap();
        let artifact = Artifact::open(folder.path()).unwrap();
        let (learnt, seen) = learn(&artifact, &weights, &training(1), None, 0);
        assert_eq!(learnt.unwrap_err().to_string(), "every tensor of the artifact is dense: there are no scales to learn");
        assert!(seen.is_empty());
    }
}
