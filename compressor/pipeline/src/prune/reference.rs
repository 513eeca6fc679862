//! A forward pass in f64 with plain loops, for tests: shares no code with the engine, and no speed either.

use compressor_format::LayerTensor::*;
use compressor_format::Part::{Bias, Weight};
use compressor_format::{Activation, LayerTensor, NormKind, Part, Positions, RotaryScaling, TensorId, Weights};

/// What a layer's output and down projections read, `[tokens, width]` each.
pub(super) type Observed = Vec<(Vec<f32>, Vec<f32>)>;

/// The logits of every token, `[tokens, vocab_size]`, and what was observed in each layer.
pub(super) fn logits(weights: &Weights, tokens: &[u32]) -> (Vec<f64>, Observed) {
    let architecture = weights.architecture();
    let model = Forward { weights };
    let hidden = architecture.hidden_size;
    let mut stream: Vec<Vec<f64>> = tokens.iter().map(|&token| model.row(TensorId::Embedding, token as usize)).collect();
    if architecture.positions == Positions::Learned {
        for (position, x) in stream.iter_mut().enumerate() {
            add(x, &model.row(TensorId::PositionEmbedding, position));
        }
    }
    let mut observed = Vec::new();
    for layer in 0..architecture.layers.len() {
        let normed = stream.iter().map(|x| model.norm(x, |part| TensorId::Layer(layer, AttentionNorm(part)))).collect::<Vec<_>>();
        let heads = model.attention(layer, &normed);
        for (x, heads) in stream.iter_mut().zip(&heads) {
            add(x, &model.project(layer, Output, heads, architecture.attention.output_bias));
        }
        let mut channels = Vec::new();
        for x in &mut stream {
            let hidden = model.mlp(layer, &model.norm(x, |part| TensorId::Layer(layer, MlpNorm(part))));
            add(x, &model.project(layer, Down, &hidden, architecture.mlp.bias));
            channels.push(hidden);
        }
        let narrow = |rows: Vec<Vec<f64>>| rows.concat().into_iter().map(|value| value as f32).collect();
        observed.push((narrow(heads), narrow(channels)));
    }
    let head = if architecture.tied_embeddings { TensorId::Embedding } else { TensorId::Head };
    let last = stream.iter().map(|x| model.norm(x, TensorId::FinalNorm));
    (last.flat_map(|x| product(weights.get(head), hidden, &x)).collect(), observed)
}

struct Forward<'a> {
    weights: &'a Weights,
}

impl Forward<'_> {
    fn row(&self, id: TensorId, row: usize) -> Vec<f64> {
        let width = self.weights.architecture().hidden_size;
        wide(&self.weights.get(id)[row * width..(row + 1) * width])
    }

    fn project(&self, layer: usize, tensor: fn(Part) -> LayerTensor, x: &[f64], bias: bool) -> Vec<f64> {
        let mut y = product(self.weights.get(TensorId::Layer(layer, tensor(Weight))), x.len(), x);
        if bias {
            add(&mut y, &wide(self.weights.get(TensorId::Layer(layer, tensor(Bias)))));
        }
        y
    }

    fn norm(&self, x: &[f64], tensor: impl Fn(Part) -> TensorId) -> Vec<f64> {
        let norm = self.weights.architecture().norm;
        let weight = self.weights.get(tensor(Weight));
        match norm.kind {
            NormKind::Rms => rms(x, weight, norm.epsilon),
            NormKind::Layer => {
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
                // The mean square of what is centred is the variance.
                let mut y = rms(&centred, weight, norm.epsilon);
                add(&mut y, &wide(self.weights.get(tensor(Bias))));
                y
            }
        }
    }

    /// The heads' outputs side by side, for each token.
    fn attention(&self, layer: usize, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let architecture = self.weights.architecture();
        let (shape, head_dim) = (architecture.layers[layer], architecture.head_dim);
        let group = shape.heads / shape.kv_heads;
        let projected = |tensor, norm| -> Vec<Vec<f64>> {
            let of_token = |(position, x): (usize, &Vec<f64>)| {
                let mut y = self.project(layer, tensor, x, architecture.attention.qkv_bias);
                if let Some(norm) = norm {
                    y.chunks_exact_mut(head_dim).for_each(|head| self.turn(layer, norm, position, head));
                }
                y
            };
            inputs.iter().enumerate().map(of_token).collect()
        };
        let queries = projected(Query, Some(QueryNorm));
        let keys = projected(Key, Some(KeyNorm));
        let values = projected(Value, None);
        let mut outputs = vec![vec![0.0; shape.heads * head_dim]; inputs.len()];
        for head in 0..shape.heads {
            let own = head * head_dim..(head + 1) * head_dim;
            let shared = head / group * head_dim..(head / group + 1) * head_dim;
            for (position, output) in outputs.iter_mut().enumerate() {
                let score =
                    |key: &Vec<f64>| dot(&queries[position][own.clone()], &key[shared.clone()]) / (head_dim as f64).sqrt();
                let weights: Vec<f64> = keys[..=position].iter().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for (out, value) in output[own.clone()].iter_mut().zip(&value[shared.clone()]) {
                        *out += weight / total * value;
                    }
                }
            }
        }
        outputs
    }

    /// The norm of queries and keys where the model has one, then the rotation.
    fn turn(&self, layer: usize, norm: LayerTensor, position: usize, head: &mut [f64]) {
        let architecture = self.weights.architecture();
        if architecture.attention.qk_norm {
            let normed = rms(head, self.weights.get(TensorId::Layer(layer, norm)), architecture.norm.epsilon);
            head.copy_from_slice(&normed);
        }
        let Positions::Rotary { theta, scaling } = &architecture.positions else { return };
        assert_eq!(*scaling, RotaryScaling::None, "no model of these tests scales its frequencies");
        let half = head.len() / 2;
        for i in 0..half {
            let angle = position as f64 * theta.powf(-(i as f64) / half as f64);
            let (a, b) = (head[i], head[half + i]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[half + i] = b * angle.cos() + a * angle.sin();
        }
    }

    /// The intermediate channels of one token.
    fn mlp(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let mlp = self.weights.architecture().mlp;
        let activation = |x: f64| match mlp.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
            Activation::Gelu => unimplemented!("no model of these tests has it, and std has no error function"),
        };
        let up = self.project(layer, Up, x, mlp.bias);
        if !mlp.gated {
            return up.into_iter().map(activation).collect();
        }
        let gate = self.project(layer, Gate, x, mlp.bias);
        gate.into_iter().zip(up).map(|(gate, up)| activation(gate) * up).collect()
    }
}

fn rms(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let size = (dot(x, x) / x.len() as f64 + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / size * f64::from(*weight)).collect()
}

fn product(matrix: &[f32], width: usize, x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(width).map(|row| dot(&wide(row), x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += what);
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}
