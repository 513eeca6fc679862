//! A decoder interpreted from its architecture: embedding, layers, final norm, logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use compressor_format::{Architecture, Batch, LayerTensor, Part, Positions, RotaryScaling, TensorId, Weights};
use serde_json::Value;

use crate::Error;
use crate::batch::{self, Packed, Sequences};
use crate::device::open_device;
use crate::fused::RotaryTable;
use crate::ops::{Heads, Ops};

/// Tensors of a model by what they are: its weights, or what is learnt of them. Matrices are `[out, in]` as everywhere in this project, vectors `[1, width]`.
///
/// A tied head has no entry of its own, so it can't drift away from the embedding.
#[derive(Clone, Debug)]
pub(crate) struct Parameters(BTreeMap<TensorId, Tensor<2>>);

/// The rows and columns of each tensor.
pub(crate) type Shapes = BTreeMap<TensorId, [usize; 2]>;

/// The shapes of a model's tensors; vectors have one row.
pub(crate) fn shapes(architecture: &Architecture) -> Shapes {
    let shape = |id| match architecture.shape(id)[..] {
        [columns] => (id, [1, columns]),
        [rows, columns] => (id, [rows, columns]),
        _ => unreachable!("tensors of models are vectors and matrices"),
    };
    architecture.tensors().into_iter().map(shape).collect()
}

/// A forward pass over the tensors of one architecture.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub(crate) architecture: Architecture,
    pub(crate) ops: Ops,
}

impl Decoder {
    /// The normalized activations before the head, `[scored, hidden_size]`, at those rows alone.
    ///
    /// - `parameters`: plain tensors, or tracked ones where gradients are wanted
    /// - `embedded`: [`Self::embed`] of the same batch, `[N, hidden_size]`
    pub(crate) fn hidden(&self, parameters: &Parameters, embedded: Tensor<2>, packed: &Packed) -> Tensor<2> {
        let rotary = self.rotary_table(packed.sequences.longest()).map(Arc::new);
        let last = self.architecture.layers.len().checked_sub(1);
        let mut x = embedded;
        let mut picked = packed.scored.len() == packed.tokens.len();
        for layer in 0..self.architecture.layers.len() {
            let attended = self.attend(layer, parameters, x.clone(), rotary.as_ref(), &packed.sequences);
            // After the last attention no row sees another: those that don't count need not go on.
            let (attended, residual) = match !picked && Some(layer) == last {
                true => {
                    picked = true;
                    (self.ops.gather(attended, &packed.scored), self.ops.gather(x, &packed.scored))
                }
                false => (attended, x),
            };
            let x_attended = residual + self.project(layer, LayerTensor::Output, parameters, attended);
            x = x_attended.clone() + self.mlp(layer, parameters, x_attended);
        }
        if !picked {
            x = self.ops.gather(x, &packed.scored);
        }
        self.norm(TensorId::FinalNorm, parameters, x)
    }

    /// What the layers begin with: token embeddings, and learned positions where the model has them, `[N, hidden_size]`.
    pub(crate) fn embed(&self, parameters: &Parameters, packed: &Packed) -> Tensor<2> {
        let tokens = self.ops.gather(parameters.get(TensorId::Embedding), &packed.tokens);
        match self.architecture.positions {
            Positions::Rotary { .. } => tokens,
            Positions::Learned => {
                let positions = packed.sequences.positions().collect();
                tokens + self.ops.gather(parameters.get(TensorId::PositionEmbedding), &positions)
            }
        }
    }

    /// Which tensor is the head.
    pub(crate) fn head(&self) -> TensorId {
        if self.architecture.tied_embeddings { TensorId::Embedding } else { TensorId::Head }
    }

    fn attend(
        &self,
        layer: usize,
        parameters: &Parameters,
        x: Tensor<2>,
        rotary: Option<&Arc<RotaryTable>>,
        sequences: &Arc<Sequences>,
    ) -> Tensor<2> {
        use LayerTensor::{AttentionNorm, Key, KeyNorm, Query, QueryNorm, Value};
        let shape = self.architecture.layers[layer];
        let sizes = Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: self.architecture.head_dim };
        let x = self.norm(|part| TensorId::Layer(layer, AttentionNorm(part)), parameters, x);
        let positioned = |projection: fn(Part) -> LayerTensor, norm| {
            let mut x = self.project(layer, projection, parameters, x.clone());
            if self.architecture.attention.qk_norm {
                x = self.ops.rms_norm(x, parameters.get(TensorId::Layer(layer, norm)), self.architecture.norm.epsilon as f32);
            }
            match rotary {
                Some(table) => self.ops.rotate(x, table, sequences),
                None => x,
            }
        };
        let (q, k) = (positioned(Query, QueryNorm), positioned(Key, KeyNorm));
        let v = self.project(layer, Value, parameters, x);
        self.ops.attention(sizes, q, k, v, sequences)
    }

    fn mlp(&self, layer: usize, parameters: &Parameters, x: Tensor<2>) -> Tensor<2> {
        use LayerTensor::{Down, Gate, MlpNorm, Up};
        let activation = self.architecture.mlp.activation;
        let x = self.norm(|part| TensorId::Layer(layer, MlpNorm(part)), parameters, x);
        let up = self.project(layer, Up, parameters, x.clone());
        let inner = match self.architecture.mlp.gated {
            true => self.ops.gate(activation, self.project(layer, Gate, parameters, x), up),
            false => self.ops.activate(activation, up),
        };
        self.project(layer, Down, parameters, inner)
    }

    fn norm(&self, tensor: impl Fn(Part) -> TensorId, parameters: &Parameters, x: Tensor<2>) -> Tensor<2> {
        self.ops.norm(self.architecture.norm, x, parameters.get(tensor(Part::Weight)), parameters.find(tensor(Part::Bias)))
    }

    fn project(&self, layer: usize, tensor: fn(Part) -> LayerTensor, parameters: &Parameters, x: Tensor<2>) -> Tensor<2> {
        let of = |part| TensorId::Layer(layer, tensor(part));
        self.ops.linear(x, parameters.get(of(Part::Weight)), parameters.find(of(Part::Bias)))
    }

    /// Cosines and sines for the first `positions` positions; `None` where positions are learned.
    fn rotary_table(&self, positions: usize) -> Option<RotaryTable> {
        let Positions::Rotary { theta, scaling } = &self.architecture.positions else {
            return None;
        };
        let half = self.architecture.head_dim / 2;
        let frequencies: Vec<f64> =
            (0..half).map(|i| scaled(i, theta.powf(-(2.0 * i as f64) / self.architecture.head_dim as f64), scaling)).collect();
        let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Some(RotaryTable { cosines, sines, half })
    }
}

/// The `i`-th rotary frequency after the scaling for longer contexts.
fn scaled(i: usize, frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::PerFrequency { ref divisors } => frequency / f64::from(divisors[i]),
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            // Turns made within the original context: few are low frequencies, many are high ones.
            let turns = original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    }
}

impl Parameters {
    /// Puts tensors onto a device.
    pub(crate) fn new(shapes: &Shapes, values: impl IntoIterator<Item = (TensorId, Vec<f32>)>, device: &Device) -> Self {
        let tensor = |(id, values): (TensorId, Vec<f32>)| (id, Tensor::from_data(TensorData::new(values, shapes[&id]), device));
        values.into_iter().map(tensor).collect()
    }

    /// The same from weights that stay.
    pub(crate) fn from_weights(weights: &Weights, device: &Device) -> Self {
        Self::new(&shapes(weights.architecture()), weights.iter().map(|(id, values)| (id, values.to_vec())), device)
    }

    /// Brings the tensors back.
    pub(crate) fn into_weights(self, architecture: Architecture, config: Value) -> Weights {
        let values = |(id, tensor): (_, Tensor<2>)| (id, values(tensor));
        Weights::new(architecture, config, self.0.into_iter().map(values).collect())
    }

    pub(crate) fn get(&self, id: TensorId) -> Tensor<2> {
        self.0[&id].clone()
    }

    fn find(&self, id: TensorId) -> Option<Tensor<2>> {
        self.0.get(&id).cloned()
    }

    /// Tensors whose gradients Burn computes: all but the embeddings and the head, whose gradients `train.rs` puts together itself.
    pub(crate) fn tracked(&self) -> Self {
        let by_burn = self.0.iter().filter(|(id, _)| matches!(id, TensorId::Layer(..) | TensorId::FinalNorm(_)));
        Self(by_burn.map(|(id, tensor)| (*id, tensor.clone().autodiff().require_grad())).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TensorId, &Tensor<2>)> {
        self.0.iter().map(|(id, tensor)| (*id, tensor))
    }

    /// Replaces a tensor by what `change` makes of it; it is not shared with this map meanwhile.
    pub(crate) fn change<T>(&mut self, id: TensorId, change: impl FnOnce(Tensor<2>) -> (Tensor<2>, T)) -> T {
        let tensor = self.0.remove(&id).expect("gradients are of this model's tensors");
        let (tensor, rest) = change(tensor);
        self.0.insert(id, tensor);
        rest
    }
}

impl FromIterator<(TensorId, Tensor<2>)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (TensorId, Tensor<2>)>>(tensors: I) -> Self {
        Self(tensors.into_iter().collect())
    }
}

/// The values of a tensor, on the host.
pub(crate) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("every tensor of this crate is f32")
}

/// The logits `[rows, length, vocab_size]` of token sequences of one length, `tokens` `[rows, length]`.
///
/// # Errors
/// [`Error::Device`] as [`open_device`]; [`Error::Batch`] where tokens are outside the vocabulary or not `rows · length`.
pub fn logits(weights: &Weights, tokens: &[u32], rows: usize, length: usize, device: &str) -> Result<Vec<f32>, Error> {
    let device = open_device(device)?;
    let (targets, weights_of_all) = (vec![0; tokens.len()], vec![1.0; tokens.len()]);
    let batch = Batch { tokens: tokens.to_vec(), targets, weights: weights_of_all, rows, length };
    batch::check(&batch, 0, weights.architecture(), weights.architecture().vocab_size)?;
    let decoder = Decoder { architecture: weights.architecture().clone(), ops: Ops::of(&device) };
    let parameters = Parameters::from_weights(weights, &device);
    let packed = decoder.ops.pack(&batch);
    let hidden = decoder.hidden(&parameters, decoder.embed(&parameters, &packed), &packed);
    Ok(values(decoder.ops.linear(hidden, parameters.get(decoder.head()), None)))
}
