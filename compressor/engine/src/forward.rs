//! The forward pass.

use compressor_format::Activation;

use crate::attention::{Span, attend};
use crate::cache::Cache;
use crate::engine::{Engine, Layer};
use crate::linear::project;
use crate::norm::NormWeights;
use crate::rotary::Rotation;
use crate::rows::for_each_row;
use crate::{Error, Result};

/// Tokens to append to a sequence.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// What the sequence has so far; the tokens are appended to it.
    pub cache: &'a mut Cache,
    /// At least one.
    pub tokens: &'a [u32],
}

/// Which of the given tokens need logits: what comes after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last one of each sequence.
    Last,
    /// All of them.
    All,
    /// Those from this one on, counted from 0 among the tokens of each sequence.
    From(usize),
}

/// Sees the activations of a forward pass, for importance and calibration.
pub trait Observer: Send {
    /// The activations at one place of one layer: `[tokens, width]`.
    fn observe(&mut self, layer: usize, place: Place, activations: &[f32]);
}

/// Where activations are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// What comes into the layer, `[tokens, hidden_size]`.
    LayerInput,
    /// What query, key and value projections multiply, `[tokens, hidden_size]`.
    AttentionInput,
    /// What the output projection multiplies, `[tokens, heads · head_dim]`.
    OutputInput,
    /// What gate and up projections multiply, `[tokens, hidden_size]`.
    MlpInput,
    /// What the down projection multiplies, `[tokens, intermediate_size]`.
    DownInput,
    /// What leaves the layer, `[tokens, hidden_size]`.
    LayerOutput,
}

impl Engine {
    /// Appends tokens to a sequence.
    ///
    /// Returns the logits that `want` asks for, `[positions, vocab_size]`.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::Token`], [`Error::TooLong`] and [`Error::Cache`] before anything is computed;
    /// [`Error::NotFinite`] after.
    pub fn forward(&self, cache: &mut Cache, tokens: &[u32], want: Logits) -> Result<Vec<f32>> {
        self.forward_batch(&mut [Sequence { cache, tokens }], want)
    }

    /// Appends tokens to each of several sequences, which do not see each other.
    ///
    /// Returns the logits that `want` asks for, `[positions, vocab_size]`, one sequence after the other.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_batch(&self, sequences: &mut [Sequence<'_>], want: Logits) -> Result<Vec<f32>> {
        self.threads.install(|| self.run(sequences, want, &mut Nobody))
    }

    /// As [`Self::forward`], with someone who sees the activations.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_observed(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        self.threads.install(|| self.run(&mut [Sequence { cache, tokens }], want, observer))
    }

    /// The forward pass, in the order of the paper. `x` is the residual stream, `[tokens, hidden_size]`.
    fn run(&self, sequences: &mut [Sequence<'_>], want: Logits, observer: &mut dyn Observer) -> Result<Vec<f32>> {
        self.check(sequences)?;
        let hidden_size = self.architecture.hidden_size;
        let mut x = self.embed(sequences);
        let positions = sequences.iter().flat_map(|sequence| {
            let past = sequence.cache.tokens;
            past..past + sequence.tokens.len()
        });
        let rotation = self.rotary.as_ref().map(|rotary| rotary.at(positions));

        for (index, layer) in self.layers.iter().enumerate() {
            observer.observe(index, Place::LayerInput, &x);
            let normalized = normalize(&layer.attention_norm, &x);
            observer.observe(index, Place::AttentionInput, &normalized);
            let attended = self.attention(index, &normalized, rotation.as_ref(), sequences);
            observer.observe(index, Place::OutputInput, &attended);
            let [output] = project(self.kernels, [&layer.output], &attended);
            add(&mut x, &output);

            let normalized = normalize(&layer.mlp_norm, &x);
            observer.observe(index, Place::MlpInput, &normalized);
            let channels = self.channels(layer, &normalized);
            observer.observe(index, Place::DownInput, &channels);
            let [output] = project(self.kernels, [&layer.down], &channels);
            add(&mut x, &output);
            observer.observe(index, Place::LayerOutput, &x);
        }

        let mut wanted = Vec::new();
        let mut first = 0;
        for sequence in sequences {
            let tokens = sequence.tokens.len();
            sequence.cache.tokens += tokens;
            let skipped = match want {
                Logits::Last => tokens - 1,
                Logits::All => 0,
                Logits::From(skipped) => skipped.min(tokens),
            };
            wanted.extend_from_slice(&x[(first + skipped) * hidden_size..(first + tokens) * hidden_size]);
            first += tokens;
        }
        for_each_row(&mut wanted, hidden_size, |_, x| self.final_norm.apply(x));
        let logits = self.logits(&wanted);
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(at) => Err(Error::NotFinite { position: at / self.architecture.vocab_size }),
            None => Ok(logits),
        }
    }

    fn check(&self, sequences: &[Sequence<'_>]) -> Result<()> {
        let vocab_size = self.architecture.vocab_size;
        for Sequence { cache, tokens } in sequences {
            if tokens.is_empty() {
                return Err(Error::NoTokens);
            }
            let unknown = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size);
            if let Some((at, token)) = unknown {
                return Err(Error::Token { token: *token, position: cache.tokens + at, vocab_size });
            }
            let total = cache.tokens + tokens.len();
            let positions = self.architecture.max_position_embeddings;
            if self.position_embedding.is_some() && total > positions {
                return Err(Error::TooLong { tokens: total, positions });
            }
            let found: Vec<usize> = cache.layers.iter().map(|layer| layer.width).collect();
            let expected: Vec<usize> = self.layers.iter().map(|layer| layer.key.matrix.rows).collect();
            if found != expected {
                return Err(Error::Cache { found, expected });
            }
        }
        Ok(())
    }

    /// Embeddings of the tokens, positions added where they are learned.
    fn embed(&self, sequences: &[Sequence<'_>]) -> Vec<f32> {
        let hidden_size = self.architecture.hidden_size;
        let tokens: Vec<(u32, usize)> =
            sequences.iter().flat_map(|Sequence { cache, tokens }| tokens.iter().copied().zip(cache.tokens..)).collect();
        let mut x = vec![0.0; tokens.len() * hidden_size];
        for_each_row(&mut x, hidden_size, |row, x| {
            let (token, position) = tokens[row];
            self.embedding.matrix.widen_row(self.kernels, token as usize, x);
            if let Some(positions) = &self.position_embedding {
                let mut learned = vec![0.0; hidden_size];
                positions.widen_row(self.kernels, position, &mut learned);
                add(x, &learned);
            }
        });
        x
    }

    /// Attention of one layer without its output projection; appends keys and values to the caches.
    fn attention(&self, index: usize, x: &[f32], rotation: Option<&Rotation>, sequences: &mut [Sequence<'_>]) -> Vec<f32> {
        let layer = &self.layers[index];
        let head_dim = self.architecture.head_dim;
        let [mut queries, mut keys, values] = project(self.kernels, [&layer.query, &layer.key, &layer.value], x);
        for (x, linear, norm) in [(&mut queries, &layer.query, &layer.query_norm), (&mut keys, &layer.key, &layer.key_norm)] {
            for_each_row(x, linear.matrix.rows, |row, x| {
                if let Some(norm) = norm {
                    x.chunks_exact_mut(head_dim).for_each(|head| norm.apply(head));
                }
                if let Some(rotation) = rotation {
                    rotation.apply(row, x);
                }
            });
        }
        let width = layer.key.matrix.rows;
        let mut first = 0;
        let mut spans = Vec::with_capacity(sequences.len());
        for Sequence { cache, tokens } in sequences {
            let rows = first * width..(first + tokens.len()) * width;
            let cache = &mut cache.layers[index];
            cache.keys.extend_from_slice(&keys[rows.clone()]);
            cache.values.extend_from_slice(&values[rows]);
            spans.push(Span { first, tokens: tokens.len(), cache });
            first += tokens.len();
        }
        attend(self.kernels, &queries, layer.heads, head_dim, &spans)
    }

    /// The MLP without its down projection: `activation(gate(x)) · up(x)`, or `activation(up(x))`.
    fn channels(&self, layer: &Layer, x: &[f32]) -> Vec<f32> {
        let width = layer.up.matrix.rows;
        let Some(gate) = &layer.gate else {
            let [mut channels] = project(self.kernels, [&layer.up], x);
            for_each_row(&mut channels, width, |_, channels| self.activate(channels));
            return channels;
        };
        let [mut channels, up] = project(self.kernels, [gate, &layer.up], x);
        for_each_row(&mut channels, width, |row, channels| {
            self.activate(channels);
            channels.iter_mut().zip(&up[row * width..]).for_each(|(channel, up)| *channel *= up);
        });
        channels
    }

    fn activate(&self, x: &mut [f32]) {
        match self.architecture.mlp.activation {
            Activation::Silu => self.kernels.silu(x),
            Activation::GeluTanh => self.kernels.gelu_tanh(x),
            Activation::Gelu => {
                for x in x {
                    *x *= 0.5 * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2));
                }
            }
        }
    }

    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let [logits] = project(self.kernels, [self.head.as_ref().unwrap_or(&self.embedding)], x);
        logits
    }
}

/// Sees nothing.
struct Nobody;

impl Observer for Nobody {
    fn observe(&mut self, _: usize, _: Place, _: &[f32]) {}
}

fn normalize(norm: &NormWeights, x: &[f32]) -> Vec<f32> {
    let mut normalized = x.to_vec();
    for_each_row(&mut normalized, norm.weight.len(), |_, x| norm.apply(x));
    normalized
}

fn add(x: &mut [f32], other: &[f32]) {
    x.iter_mut().zip(other).for_each(|(x, other)| *x += other);
}
