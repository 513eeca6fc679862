//! One layer at a time over calibration text: what its projections multiply, and what comes out with other weights in their place.
//!
//! The steps are those of the forward pass, in f32. Between them stands whoever looks at the activations and changes the weights that
//! come next.

use alloc::vec::Vec;

use compressor_format::{Checkpoint, LayerTensor, Model, Part, TensorId};

use crate::attention::{Span, attend};
use crate::cache::LayerCache;
use crate::engine::Layer;
use crate::forward::{Buffers, Nobody};
use crate::kernels::vector::Add;
use crate::linear::{Input, Linear, Matrix, project};
use crate::norm::NormWeights;
use crate::{Engine, KvType, Options, Result};

/// A checkpoint of which one layer is in memory at a time.
#[derive(Debug)]
pub struct Blocks {
    model: Model,
    /// Without layers.
    engine: Engine,
}

/// One layer.
#[derive(Debug)]
pub struct Block<'a> {
    engine: &'a Engine,
    layer: Layer,
}

impl Blocks {
    /// Reads everything of a checkpoint but its layers.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn new(checkpoint: &Checkpoint, options: Options) -> Result<Self> {
        let model = Model::Checkpoint(checkpoint.clone());
        let engine = Engine::load_ends(&model, options)?;
        Ok(Self { model, engine })
    }

    /// Reads a layer.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for values that are not finite where they have to be read.
    pub fn block(&self, index: usize) -> Result<Block<'_>> {
        Ok(Block { engine: &self.engine, layer: self.engine.load_layer(&self.model, index)? })
    }

    /// What comes into the first layer, `[tokens, hidden_size]`: windows of `window` tokens, each from position 0.
    ///
    /// # Errors
    /// [`crate::Error::Token`], [`crate::Error::TooLong`]
    pub fn embed(&self, tokens: &[u32], window: usize) -> Result<Vec<f32>> {
        let mut x = Vec::new();
        for window in tokens.chunks(window) {
            self.engine.check_tokens(window, 0)?;
            self.engine.embed_tokens(window.iter().copied().zip(0..), &mut x);
        }
        Ok(x)
    }

    /// What the head multiplies, `[tokens, hidden_size]`, for what leaves the last layer.
    pub fn head_input(&self, x: &[f32]) -> Vec<f32> {
        self.engine.normalized(&self.engine.final_norm, x)
    }

    /// Logits, `[tokens, vocab_size]`, of what leaves the last layer, `[tokens, hidden_size]`.
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        self.engine.logits(x, &mut Buffers::default(), &mut Nobody)
    }

    /// Puts other weights, `[vocab_size, hidden_size]`, in the place of the embedding's, which may be the head's too, or the head's.
    ///
    /// # Panics
    /// Where `tensor` is neither, or a head that the model does not have.
    pub fn replace(&mut self, tensor: TensorId, weights: Vec<f32>) {
        let end = match tensor {
            TensorId::Embedding => &mut self.engine.embedding,
            TensorId::Head => self.engine.head.as_mut().expect("the model has a head of its own"),
            other => panic!("{other:?} is neither embedding nor head"),
        };
        end.matrix = Matrix::owned(weights, end.matrix.columns);
    }
}

impl Block<'_> {
    /// Carries the residual stream, `[tokens, hidden_size]`, through the layer: windows of `window` tokens that do not see each other.
    pub fn forward(&self, x: &mut [f32], window: usize) {
        self.add_output(x, self.output_input(self.attention_input(x), window));
        self.add_down(x, self.down_input(self.mlp_input(x)));
    }

    /// What query, key and value projections multiply, `[tokens, hidden_size]`, for what comes into the layer.
    pub fn attention_input(&self, x: &[f32]) -> Vec<f32> {
        self.engine.normalized(&self.layer.attention_norm, x)
    }

    /// What the output projection multiplies, `[tokens, heads · head_dim]`, for what the projections before attention multiply:
    /// windows of `window` tokens that do not see each other.
    pub fn output_input(&self, attention_input: Vec<f32>, window: usize) -> Vec<f32> {
        let (engine, layer) = (self.engine, &self.layer);
        let with = (engine.kernels, &engine.pool);
        let head_dim = engine.architecture.head_dim;
        let tokens = attention_input.len() / layer.query.matrix.columns;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let outputs = [&mut queries, &mut keys, &mut values];
        project(with, [&layer.query, &layer.key, &layer.value], &Input::of(attention_input), outputs);
        let rotation = engine.rotary.as_ref().map(|rotary| rotary.at((0..tokens).map(|token| token % window)));
        engine.rotate(layer, &mut queries, &mut keys, rotation.as_ref());
        let width = layer.key.matrix.rows;
        let kept = |(keys, values): (&[f32], &[f32])| {
            let tokens = keys.len() / width;
            let mut cache = LayerCache::new(width / head_dim, head_dim, 0, KvType::F32);
            cache.reserve(tokens, 0);
            for (position, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
                cache.write(position, key, value);
            }
            cache
        };
        let caches: Vec<LayerCache> = keys.chunks(window * width).zip(values.chunks(window * width)).map(kept).collect();
        let spans: Vec<Span<'_>> = caches
            .iter()
            .enumerate()
            .map(|(index, cache)| Span { first: index * window, tokens: window.min(tokens - index * window), past: 0, cache })
            .collect();
        let mut attended = Vec::new();
        attend(with, &queries, layer.heads, head_dim, &spans, &mut attended);
        attended
    }

    /// Adds what the output projection makes of its input to the residual stream, `[tokens, hidden_size]`.
    pub fn add_output(&self, x: &mut [f32], output_input: Vec<f32>) {
        self.add(&self.layer.output, x, output_input);
    }

    /// What gate and up projections multiply, `[tokens, hidden_size]`, for the residual stream after attention.
    pub fn mlp_input(&self, x: &[f32]) -> Vec<f32> {
        self.engine.normalized(&self.layer.mlp_norm, x)
    }

    /// What the down projection multiplies, `[tokens, intermediate_size]`, for what gate and up multiply.
    pub fn down_input(&self, mlp_input: Vec<f32>) -> Vec<f32> {
        let (engine, layer) = (self.engine, &self.layer);
        let with = (engine.kernels, &engine.pool);
        let input = Input::of(mlp_input);
        let (mut gate, mut up) = (Vec::new(), Vec::new());
        match &layer.gate {
            Some(gated) => project(with, [gated, &layer.up], &input, [&mut gate, &mut up]),
            None => project(with, [&layer.up], &input, [&mut up]),
        }
        let mut activated = Input::default();
        engine.activate(layer, &gate, &up, &[], &mut activated);
        activated.real
    }

    /// Adds what the down projection makes of its input to the residual stream, `[tokens, hidden_size]`: what leaves the layer.
    pub fn add_down(&self, x: &mut [f32], down_input: Vec<f32>) {
        self.add(&self.layer.down, x, down_input);
    }

    /// Puts other values in the place of a tensor's: `[out, in]` for the weight of a projection.
    ///
    /// # Panics
    /// Where the model has no such tensor.
    pub fn replace(&mut self, tensor: LayerTensor, values: Vec<f32>) {
        use LayerTensor::{AttentionNorm, Down, Gate, Key, KeyNorm, MlpNorm, Output, Query, QueryNorm, Up, Value};
        let layer = &mut self.layer;
        let (linear, part) = match tensor {
            Query(part) => (&mut layer.query, part),
            Key(part) => (&mut layer.key, part),
            Value(part) => (&mut layer.value, part),
            Output(part) => (&mut layer.output, part),
            Gate(part) => (layer.gate.as_mut().expect("the model has a gate"), part),
            Up(part) => (&mut layer.up, part),
            Down(part) => (&mut layer.down, part),
            AttentionNorm(part) => return layer.attention_norm.replace(part, values),
            MlpNorm(part) => return layer.mlp_norm.replace(part, values),
            QueryNorm => return layer.query_norm.as_mut().expect("the model has such a norm").replace(Part::Weight, values),
            KeyNorm => return layer.key_norm.as_mut().expect("the model has such a norm").replace(Part::Weight, values),
        };
        match part {
            Part::Weight => linear.matrix = Matrix::owned(values, linear.matrix.columns),
            Part::Bias => *linear.bias.as_mut().expect("the projection has a bias") = values,
        }
    }

    fn add(&self, linear: &Linear, x: &mut [f32], input: Vec<f32>) {
        let mut out = Vec::new();
        project((self.engine.kernels, &self.engine.pool), [linear], &Input::of(input), [&mut out]);
        self.engine.kernels.run(Add { out: x, x: &out });
    }
}

impl Engine {
    fn normalized(&self, norm: &NormWeights, x: &[f32]) -> Vec<f32> {
        let mut input = Input::default();
        self.normalize(norm, x, &[], &mut input);
        input.real
    }
}
