//! The forward pass.

use alloc::vec;
use alloc::vec::Vec;

use crate::attention::{Span, attend};
use crate::cache::Cache;
use crate::engine::{Engine, Layer};
use crate::kernels::vector::{Activate, Add, Normalize};
use crate::linear::{Input, Linear, project};
use crate::norm::NormWeights;
use crate::rotary::Rotation;
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

/// Sees a forward pass: its activations, for importance and calibration, and its steps, for a profile.
pub trait Observer {
    /// The activations at one place of one layer: `[tokens, width]`. Tokens of a long prompt come in pieces.
    fn observe(&mut self, _layer: usize, _place: Place, _activations: &[f32]) {}

    /// An operation has ended, which read `bytes` of weights, keys and values; `layer` is `None` outside the layers.
    fn finished(&mut self, _operation: Operation, _layer: Option<usize>, _bytes: usize) {}
}

/// What a forward pass consists of, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Rows of the embedding.
    Embedding,
    /// Normalization before attention, and rounding of its result.
    AttentionNorm,
    /// Query, key and value projections.
    Qkv,
    /// Turning queries and keys, and writing keys and values into the cache.
    Rotary,
    /// Scores, softmax and the weighted sum of values.
    Attention,
    /// Output projection with the rounding of its input, and the residual sum.
    Output,
    /// Normalization before the MLP, and rounding of its result.
    MlpNorm,
    /// Gate and up projections.
    GateUp,
    /// The activation function with the product of gate and up, and rounding of the result.
    Activation,
    /// Down projection and the residual sum.
    Down,
    /// Final normalization and the head.
    Head,
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

impl Operation {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "attention norm",
            Self::Qkv => "q, k, v projections",
            Self::Rotary => "rotary, cache",
            Self::Attention => "attention",
            Self::Output => "output projection",
            Self::MlpNorm => "MLP norm",
            Self::GateUp => "gate, up projections",
            Self::Activation => "activation",
            Self::Down => "down projection",
            Self::Head => "norm, head",
        }
    }
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
        self.run(sequences, want, &mut Nobody)
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
        self.run(&mut [Sequence { cache, tokens }], want, observer)
    }

    /// The forward pass. Long prompts go through the model in pieces, so that activations stay small.
    fn run(&self, sequences: &mut [Sequence<'_>], want: Logits, observer: &mut dyn Observer) -> Result<Vec<f32>> {
        self.check(sequences)?;
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        for Sequence { cache, tokens } in &mut *sequences {
            let kept = cache.tokens;
            cache.layers.iter_mut().for_each(|layer| layer.reserve(kept + tokens.len(), kept));
        }
        let mut buffers = Buffers::default();
        let mut wanted = Vec::new();
        for piece in pieces(sequences, self.tokens_together()) {
            let x = self.layers(&piece, sequences, &mut buffers, observer);
            for part in &piece {
                let total = sequences[part.sequence].tokens.len();
                let skipped = match want {
                    Logits::Last => total - 1,
                    Logits::All => 0,
                    Logits::From(skipped) => skipped,
                };
                let skipped = part.first_row + skipped.saturating_sub(part.start).min(part.tokens);
                let hidden_size = self.architecture.hidden_size;
                wanted.extend_from_slice(&x[skipped * hidden_size..(part.first_row + part.tokens) * hidden_size]);
            }
        }
        let logits = self.logits(&wanted, &mut buffers, observer);
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(at) => Err(Error::NotFinite { position: at / self.architecture.vocab_size }),
            None => Ok(logits),
        }
    }

    /// Tokens that go through the model together: enough to make the most of each weight, few enough to keep activations small.
    /// Dense weights are written out as f32 for each piece, so they want longer ones.
    fn tokens_together(&self) -> usize {
        if self.layers.iter().all(|layer| layer.up.rounding.is_some()) { 96 } else { 256 }
    }

    /// All layers for some tokens, in the order of the paper; the caches have them afterwards. Returns the residual stream
    /// `[tokens, hidden_size]`.
    fn layers<'b>(
        &self,
        piece: &[PieceOf],
        sequences: &mut [Sequence<'_>],
        buffers: &'b mut Buffers,
        observer: &mut dyn Observer,
    ) -> &'b [f32] {
        let with = (self.kernels, &self.pool);
        let Buffers { x, input, queries, keys, values, attended, gate, up, output } = buffers;
        let tokens: usize = piece.iter().map(|part| part.tokens).sum();
        self.embed(piece, sequences, x);
        let positions = piece.iter().flat_map(|part| {
            let first = sequences[part.sequence].cache.tokens;
            first..first + part.tokens
        });
        let rotation = self.rotary.as_ref().map(|rotary| rotary.at(positions));
        observer.finished(Operation::Embedding, None, tokens * self.embedding.memory_bytes() / self.architecture.vocab_size);

        for (index, layer) in self.layers.iter().enumerate() {
            let here = Some(index);
            observer.observe(index, Place::LayerInput, x);
            let qkv = [&layer.query, &layer.key, &layer.value];
            self.normalize(&layer.attention_norm, x, &qkv, input);
            observer.finished(Operation::AttentionNorm, here, layer.attention_norm.memory_bytes());
            observer.observe(index, Place::AttentionInput, &input.real);
            project(with, qkv, input, [queries, keys, values]);
            observer.finished(Operation::Qkv, here, qkv.iter().map(|linear| linear.memory_bytes()).sum());
            self.rotate(layer, queries, keys, rotation.as_ref());
            for part in piece {
                let cache = &mut *sequences[part.sequence].cache;
                let width = layer.key.matrix.rows;
                for row in 0..part.tokens {
                    let at = (part.first_row + row) * width..(part.first_row + row + 1) * width;
                    cache.layers[index].write(cache.tokens + row, &keys[at.clone()], &values[at]);
                }
            }
            observer.finished(Operation::Rotary, here, 0);
            let spans: Vec<Span<'_>> = piece
                .iter()
                .map(|part| {
                    let cache = &*sequences[part.sequence].cache;
                    Span { first: part.first_row, tokens: part.tokens, past: cache.tokens, cache: &cache.layers[index] }
                })
                .collect();
            attend(with, queries, layer.heads, self.architecture.head_dim, &spans, attended);
            observer.finished(Operation::Attention, here, spans.iter().map(Span::bytes_read).sum());
            let width = layer.output.matrix.columns;
            input.prepare(with, (tokens, width), &[&layer.output], &|row, out| {
                out.copy_from_slice(&attended[row * width..][..width]);
            });
            observer.observe(index, Place::OutputInput, &input.real);
            project(with, [&layer.output], input, [output]);
            self.kernels.run(Add { out: x, x: output });
            observer.finished(Operation::Output, here, layer.output.memory_bytes());

            let gate_up = [layer.gate.as_ref().unwrap_or(&layer.up), &layer.up];
            let first = if layer.gate.is_some() { 0 } else { 1 };
            self.normalize(&layer.mlp_norm, x, &gate_up[first..], input);
            observer.finished(Operation::MlpNorm, here, layer.mlp_norm.memory_bytes());
            observer.observe(index, Place::MlpInput, &input.real);
            match &layer.gate {
                Some(gated) => project(with, [gated, &layer.up], input, [gate, up]),
                None => project(with, [&layer.up], input, [up]),
            }
            observer.finished(Operation::GateUp, here, gate_up[first..].iter().map(|linear| linear.memory_bytes()).sum());
            self.activate(layer, gate, up, &[&layer.down], input);
            observer.finished(Operation::Activation, here, 0);
            observer.observe(index, Place::DownInput, &input.real);
            project(with, [&layer.down], input, [output]);
            self.kernels.run(Add { out: x, x: output });
            observer.finished(Operation::Down, here, layer.down.memory_bytes());
            observer.observe(index, Place::LayerOutput, x);
        }
        for part in piece {
            sequences[part.sequence].cache.tokens += part.tokens;
        }
        x
    }

    fn check(&self, sequences: &[Sequence<'_>]) -> Result<()> {
        for Sequence { cache, tokens } in sequences {
            if tokens.is_empty() {
                return Err(Error::NoTokens);
            }
            self.check_tokens(tokens, cache.tokens)?;
            let head_dim = self.architecture.head_dim;
            let found: Vec<_> = cache.layers.iter().map(|layer| (layer.kv_heads, layer.head_dim)).collect();
            let expected: Vec<_> = self.layers.iter().map(|layer| (layer.key.matrix.rows / head_dim, head_dim)).collect();
            if found != expected {
                return Err(Error::Cache { found, expected });
            }
        }
        Ok(())
    }

    /// Refuses tokens after `past` others that the model does not have, or that it has no positions for.
    pub(crate) fn check_tokens(&self, tokens: &[u32], past: usize) -> Result<()> {
        let vocab_size = self.architecture.vocab_size;
        if let Some((at, token)) = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size) {
            return Err(Error::Token { token: *token, position: past + at, vocab_size });
        }
        let total = past + tokens.len();
        match self.architecture.most_tokens() {
            Some(most) if total > most => Err(Error::TooLong { tokens: total, most }),
            Some(_) | None => Ok(()),
        }
    }

    /// Embeddings of the tokens, positions added where they are learned.
    fn embed(&self, piece: &[PieceOf], sequences: &[Sequence<'_>], x: &mut Vec<f32>) {
        x.clear();
        for part in piece {
            let Sequence { cache, tokens } = &sequences[part.sequence];
            self.embed_tokens(tokens[part.start..][..part.tokens].iter().copied().zip(cache.tokens..), x);
        }
    }

    /// Appends the embeddings of tokens at their positions.
    pub(crate) fn embed_tokens(&self, tokens: impl Iterator<Item = (u32, usize)>, x: &mut Vec<f32>) {
        let hidden_size = self.architecture.hidden_size;
        let mut learned = vec![0.0; hidden_size];
        for (token, position) in tokens {
            let at = x.len();
            x.resize(at + hidden_size, 0.0);
            self.embedding.matrix.widen_row(self.kernels, token as usize, &mut x[at..]);
            if let Some(positions) = &self.position_embedding {
                positions.widen_row(self.kernels, position, &mut learned);
                self.kernels.run(Add { out: &mut x[at..], x: &learned });
            }
        }
    }

    /// Fills `input` with the residual stream, normalized, as `linears` need it.
    pub(crate) fn normalize(&self, norm: &NormWeights, x: &[f32], linears: &[&Linear], input: &mut Input) {
        let width = self.architecture.hidden_size;
        input.prepare((self.kernels, &self.pool), (x.len() / width, width), linears, &|row, out| {
            out.copy_from_slice(&x[row * width..][..width]);
            self.kernels.run(Normalize { norm, x: out });
        });
    }

    /// Fills `input` with what comes out of the activation function, times up where there is a gate, as `linears` need it.
    pub(crate) fn activate(&self, layer: &Layer, gate: &[f32], up: &[f32], linears: &[&Linear], input: &mut Input) {
        let (width, activation) = (layer.up.matrix.rows, self.architecture.mlp.activation);
        input.prepare((self.kernels, &self.pool), (up.len() / width, width), linears, &|row, out| {
            let row = row * width..(row + 1) * width;
            let gate = layer.gate.is_some().then(|| &gate[row.clone()]);
            self.kernels.run(Activate { activation, gate, up: &up[row], out });
        });
    }

    /// Normalizes the heads of queries and keys where the model does, and turns them to their positions.
    pub(crate) fn rotate(&self, layer: &Layer, queries: &mut [f32], keys: &mut [f32], rotation: Option<&Rotation>) {
        let head_dim = self.architecture.head_dim;
        let (query_width, key_width) = (layer.query.matrix.rows, layer.key.matrix.rows);
        let rows = queries.chunks_mut(ROTATED_TOGETHER * query_width).zip(keys.chunks_mut(ROTATED_TOGETHER * key_width));
        self.pool.for_each(rows.enumerate().collect(), &|(task, (queries, keys)): (usize, (&mut [f32], &mut [f32]))| {
            for (x, width, norm) in [(queries, query_width, &layer.query_norm), (keys, key_width, &layer.key_norm)] {
                for (row, x) in x.chunks_exact_mut(width).enumerate() {
                    if let Some(norm) = norm {
                        x.chunks_exact_mut(head_dim).for_each(|x| self.kernels.run(Normalize { norm, x }));
                    }
                    if let Some(rotation) = rotation {
                        rotation.apply(task * ROTATED_TOGETHER + row, x);
                    }
                }
            }
        });
    }

    pub(crate) fn logits(&self, x: &[f32], buffers: &mut Buffers, observer: &mut dyn Observer) -> Vec<f32> {
        let with = (self.kernels, &self.pool);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        self.normalize(&self.final_norm, x, &[head], &mut buffers.input);
        let mut logits = Vec::new();
        if !x.is_empty() {
            project(with, [head], &buffers.input, [&mut logits]);
        }
        observer.finished(Operation::Head, None, head.memory_bytes());
        logits
    }
}

/// What one pass after the other writes anew.
#[derive(Default)]
pub(crate) struct Buffers {
    x: Vec<f32>,
    input: Input,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    output: Vec<f32>,
}

/// Tokens of one task that turns queries and keys.
const ROTATED_TOGETHER: usize = 16;

/// Tokens of one sequence in a piece.
#[derive(Clone, Copy, Debug)]
struct PieceOf {
    sequence: usize,
    /// First token, counted in what is appended to the sequence.
    start: usize,
    tokens: usize,
    /// First row in the piece.
    first_row: usize,
}

/// The tokens of all sequences in pieces of at most `most`.
fn pieces(sequences: &[Sequence<'_>], most: usize) -> Vec<Vec<PieceOf>> {
    let mut pieces = vec![Vec::new()];
    let mut first_row = 0;
    for (sequence, Sequence { tokens, .. }) in sequences.iter().enumerate() {
        let mut start = 0;
        while start < tokens.len() {
            if first_row == most {
                pieces.push(Vec::new());
                first_row = 0;
            }
            let tokens = (tokens.len() - start).min(most - first_row);
            pieces.last_mut().expect("begins with one").push(PieceOf { sequence, start, tokens, first_row });
            (start, first_row) = (start + tokens, first_row + tokens);
        }
    }
    pieces
}

/// Sees nothing.
pub(crate) struct Nobody;

impl Observer for Nobody {}
