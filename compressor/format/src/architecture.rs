//! What a forward pass must know about a model, as data: the engine and the trainer both interpret an [`Architecture`].

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

#[cfg(feature = "std")]
use serde::{Deserialize, Serialize};

use crate::Family;

/// One model: sizes, the choices its family makes, and which tensors it therefore has.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Architecture {
    /// The family whose names and `config.json` it is stored with.
    pub family: Family,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of one attention head; stored, never derived: `hidden_size / heads` is false after pruning.
    pub head_dim: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Tokens that attention reaches back, itself among them, where some layer's does not reach all; at least
    /// `max_position_embeddings`. Attention through a window is not there, so no text may be longer.
    #[cfg_attr(feature = "std", serde(default, skip_serializing_if = "Option::is_none"))]
    pub window: Option<usize>,
    /// The layers in order, each with its own sizes.
    pub layers: Vec<LayerShape>,
    /// Normalization before attention, before the MLP and before the head.
    pub norm: Norm,
    /// How positions enter.
    pub positions: Positions,
    /// What attention has beside its four projections.
    pub attention: Attention,
    /// The kind of MLP.
    pub mlp: Mlp,
    /// The head multiplies by the embedding: one tensor, counted and stored once.
    pub tied_embeddings: bool,
    /// Token that starts a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// The sizes of one layer; pruning changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct LayerShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads, its GQA group.
    pub kv_heads: usize,
    /// Intermediate channels of the MLP.
    pub intermediate_size: usize,
}

/// Normalization over the hidden dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Norm {
    /// Which formula.
    pub kind: NormKind,
    /// Added to the mean square (RMS) or the variance (Layer).
    pub epsilon: f64,
}

/// The two normalizations in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + ε) · weight` (Zhang and Sennrich 2019).
    Rms,
    /// `(x − mean) / sqrt(var + ε) · weight + bias` (Ba et al. 2016).
    Layer,
}

/// How positions enter the model.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum Positions {
    /// Rotary embedding of queries and keys, halves rotated as Hugging Face stores them (Su et al. 2021).
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// Change of the frequencies for longer contexts.
        scaling: RotaryScaling,
    },
    /// A learned vector for each position, added to the embedding.
    Learned,
}

/// How rotary frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum RotaryScaling {
    /// As they are.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length the model was first trained with.
        original_max_position_embeddings: usize,
    },
    /// Every frequency divided by a number of its own, whatever the context: LongRoPE with one list for all lengths.
    PerFrequency {
        /// `[head_dim / 2]`.
        divisors: Vec<f32>,
    },
}

/// What attention has beside its four projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Attention {
    /// Query, key and value projections add a bias.
    pub qkv_bias: bool,
    /// The output projection adds a bias.
    pub output_bias: bool,
    /// Queries and keys go through an RMS norm of width `head_dim` before the rotation (Qwen3).
    pub qk_norm: bool,
}

/// The kind of MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Mlp {
    /// `down(activation(gate(x)) · up(x))`; otherwise `down(activation(up(x)))`.
    pub gated: bool,
    /// The non-linearity.
    pub activation: Activation,
    /// Every projection of the MLP adds a bias.
    pub bias: bool,
}

/// The non-linearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which Hugging Face calls `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
}

/// One tensor of a model, whatever its family stores it as. Matrices are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum TensorId {
    /// Token embedding `[vocab_size, hidden_size]`; also the head where the two are tied.
    Embedding,
    /// Learned positions `[max_position_embeddings, hidden_size]`.
    PositionEmbedding,
    /// A tensor of the layer with this index.
    Layer(usize, LayerTensor),
    /// The norm before the head, `[hidden_size]`.
    FinalNorm(Part),
    /// The head `[vocab_size, hidden_size]`, where it is not tied.
    Head,
}

/// A tensor inside a layer, in the order of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum LayerTensor {
    /// Norm before attention, `[hidden_size]`.
    AttentionNorm(Part),
    /// Query projection, `[heads · head_dim, hidden_size]`.
    Query(Part),
    /// Key projection, `[kv_heads · head_dim, hidden_size]`.
    Key(Part),
    /// Value projection, `[kv_heads · head_dim, hidden_size]`.
    Value(Part),
    /// Norm over each query head, `[head_dim]`.
    QueryNorm,
    /// Norm over each key head, `[head_dim]`.
    KeyNorm,
    /// Output projection, `[hidden_size, heads · head_dim]`.
    Output(Part),
    /// Norm before the MLP, `[hidden_size]`.
    MlpNorm(Part),
    /// Gate projection, `[intermediate_size, hidden_size]`.
    Gate(Part),
    /// Up projection, `[intermediate_size, hidden_size]`.
    Up(Part),
    /// Down projection, `[hidden_size, intermediate_size]`.
    Down(Part),
}

/// The two tensors of a projection or a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub enum Part {
    /// What multiplies.
    Weight,
    /// What is added.
    Bias,
}

impl Architecture {
    /// Sizes above this are taken for damage: no model is this wide, and the bytes of a matrix of two of them fit 64 bits.
    pub const LARGEST_SIZE: usize = 1 << 24;
    /// More layers are taken for damage: no model is this deep, and a name for each of their tensors must fit memory.
    pub const MOST_LAYERS: usize = 4096;
    /// More weights are taken for damage: 70 times the largest model that was published by 2026. Bytes of any number of copies that
    /// this program holds fit 64 bits.
    pub const MOST_PARAMETERS: u64 = 1 << 46;

    /// What is wrong with sizes that are each in their range and together describe more than any model is.
    pub fn too_large(&self) -> Option<String> {
        let (head_dim, most) = (self.head_dim, Self::LARGEST_SIZE);
        if let Some(heads) = self.layers.iter().map(|layer| layer.heads).find(|heads| heads.saturating_mul(head_dim) > most) {
            return Some(format!("{heads} attention heads of {head_dim} elements are together wider than {most}"));
        }
        let (parameters, most) = (self.parameters(), Self::MOST_PARAMETERS);
        (parameters > most).then(|| format!("its sizes make {parameters} weights, and at most {most} are read"))
    }

    /// Every tensor the model has, in the order of the computation.
    pub fn tensors(&self) -> Vec<TensorId> {
        use LayerTensor::*;
        use Part::{Bias, Weight};
        let mut tensors = vec![TensorId::Embedding];
        if self.positions == Positions::Learned {
            tensors.push(TensorId::PositionEmbedding);
        }
        let norm_bias = self.norm.kind == NormKind::Layer;
        for layer in 0..self.layers.len() {
            let candidates = [
                (AttentionNorm(Weight), true),
                (AttentionNorm(Bias), norm_bias),
                (Query(Weight), true),
                (Query(Bias), self.attention.qkv_bias),
                (Key(Weight), true),
                (Key(Bias), self.attention.qkv_bias),
                (Value(Weight), true),
                (Value(Bias), self.attention.qkv_bias),
                (QueryNorm, self.attention.qk_norm),
                (KeyNorm, self.attention.qk_norm),
                (Output(Weight), true),
                (Output(Bias), self.attention.output_bias),
                (MlpNorm(Weight), true),
                (MlpNorm(Bias), norm_bias),
                (Gate(Weight), self.mlp.gated),
                (Gate(Bias), self.mlp.gated && self.mlp.bias),
                (Up(Weight), true),
                (Up(Bias), self.mlp.bias),
                (Down(Weight), true),
                (Down(Bias), self.mlp.bias),
            ];
            tensors.extend(candidates.into_iter().filter(|(_, has)| *has).map(|(tensor, _)| TensorId::Layer(layer, tensor)));
        }
        tensors.push(TensorId::FinalNorm(Weight));
        if norm_bias {
            tensors.push(TensorId::FinalNorm(Bias));
        }
        if !self.tied_embeddings {
            tensors.push(TensorId::Head);
        }
        tensors
    }

    /// The shape of one of [`Self::tensors`]: `[out, in]` for matrices, `[width]` for vectors.
    pub fn shape(&self, tensor: TensorId) -> Vec<usize> {
        use LayerTensor::*;
        use Part::{Bias, Weight};
        let hidden = self.hidden_size;
        let (layer, tensor) = match tensor {
            TensorId::Embedding | TensorId::Head => return vec![self.vocab_size, hidden],
            TensorId::PositionEmbedding => return vec![self.max_position_embeddings, hidden],
            TensorId::FinalNorm(_) => return vec![hidden],
            TensorId::Layer(layer, tensor) => (self.layers[layer], tensor),
        };
        let (queries, keys, channels) = (layer.heads * self.head_dim, layer.kv_heads * self.head_dim, layer.intermediate_size);
        match tensor {
            AttentionNorm(_) | MlpNorm(_) => vec![hidden],
            QueryNorm | KeyNorm => vec![self.head_dim],
            Query(Weight) => vec![queries, hidden],
            Query(Bias) => vec![queries],
            Key(Weight) | Value(Weight) => vec![keys, hidden],
            Key(Bias) | Value(Bias) => vec![keys],
            Output(Weight) => vec![hidden, queries],
            Gate(Weight) | Up(Weight) => vec![channels, hidden],
            Gate(Bias) | Up(Bias) => vec![channels],
            Down(Weight) => vec![hidden, channels],
            Output(Bias) | Down(Bias) => vec![hidden],
        }
    }

    /// Number of weights, tied tensors counted once; the largest number there is where they are more.
    pub fn parameters(&self) -> u64 {
        let weights = |tensor| self.shape(tensor).iter().fold(1u64, |product, size| product.saturating_mul(*size as u64));
        self.tensors().into_iter().map(weights).fold(0, u64::saturating_add)
    }

    /// The most tokens that a text can have, where there is a limit: learned positions end, and so does a window. Rotary positions do
    /// not.
    pub fn most_tokens(&self) -> Option<usize> {
        match self.positions {
            Positions::Learned => Some(self.max_position_embeddings),
            Positions::Rotary { .. } => self.window,
        }
    }

    /// The sizes that every layer shares, or `None` where layers differ.
    pub fn uniform_layer(&self) -> Option<LayerShape> {
        let first = *self.layers.first()?;
        self.layers.iter().all(|layer| *layer == first).then_some(first)
    }
}

impl TensorId {
    /// True for what is multiplied with activations or looked up by row: embedding, head and projections.
    pub fn is_matrix(self) -> bool {
        use LayerTensor::*;
        match self {
            Self::Embedding | Self::PositionEmbedding | Self::Head => true,
            Self::FinalNorm(_) => false,
            Self::Layer(_, Query(part) | Key(part) | Value(part) | Output(part) | Gate(part) | Up(part) | Down(part)) => {
                part == Part::Weight
            }
            Self::Layer(_, AttentionNorm(_) | QueryNorm | KeyNorm | MlpNorm(_)) => false,
        }
    }

    /// True for the projections inside layers, which every quantization scheme covers.
    pub fn is_projection(self) -> bool {
        matches!(self, Self::Layer(..)) && self.is_matrix()
    }
}

impl fmt::Display for TensorId {
    /// The name Hugging Face's Llama has for it, which is the name this project uses wherever no family is at hand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use LayerTensor::*;
        let (layer, tensor) = match self {
            Self::Embedding => return f.write_str("model.embed_tokens.weight"),
            Self::PositionEmbedding => return f.write_str("model.embed_positions.weight"),
            Self::FinalNorm(part) => return write!(f, "model.norm.{part}"),
            Self::Head => return f.write_str("lm_head.weight"),
            Self::Layer(layer, tensor) => (layer, tensor),
        };
        let (module, part) = match tensor {
            AttentionNorm(part) => ("input_layernorm", part),
            Query(part) => ("self_attn.q_proj", part),
            Key(part) => ("self_attn.k_proj", part),
            Value(part) => ("self_attn.v_proj", part),
            QueryNorm => ("self_attn.q_norm", &Part::Weight),
            KeyNorm => ("self_attn.k_norm", &Part::Weight),
            Output(part) => ("self_attn.o_proj", part),
            MlpNorm(part) => ("post_attention_layernorm", part),
            Gate(part) => ("mlp.gate_proj", part),
            Up(part) => ("mlp.up_proj", part),
            Down(part) => ("mlp.down_proj", part),
        };
        write!(f, "model.layers.{layer}.{module}.{part}")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        })
    }
}
