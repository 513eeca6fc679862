//! The model families: how each writes its `config.json` and names its tensors.
//!
//! A family is data. It reads a configuration into an [`Architecture`] and lists what is stored under which name;
//! it adds no forward pass.

mod config;
mod gpt2;
mod keys;
mod llama;
mod tied;
#[cfg(feature = "std")]
mod write;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

#[cfg(feature = "std")]
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::config::Config;
#[cfg(feature = "std")]
pub(crate) use self::config::token_ids;
#[cfg(feature = "std")]
pub(crate) use self::write::rotary_keys;
use crate::{Architecture, Error, Origin, Result, TensorId};

/// A model family, by the `model_type` of its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize), serde(rename_all = "lowercase"))]
pub enum Family {
    /// Llama, SmolLM2, TinyLlama.
    Llama,
    /// Mistral, whose sliding window is at least as wide as its context.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: norms on queries and keys.
    Qwen3,
    /// GPT-2 and DistilGPT-2: LayerNorm, learned positions, fused query/key/value, plain GELU MLP.
    Gpt2,
}

/// A tensor as a family stores it: one or several of the model's tensors, stacked along the output dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name in the safetensors file.
    pub name: String,
    /// What it holds, in order; more than one where the family fuses projections.
    pub parts: Vec<TensorId>,
    /// Stored `[in, out]`, as GPT-2's Conv1D.
    pub transposed: bool,
}

impl StoredTensor {
    /// The shape in the file.
    pub fn shape(&self, architecture: &Architecture) -> Vec<usize> {
        let mut shape = architecture.shape(self.parts[0]);
        shape[0] = self.parts.iter().map(|part| architecture.shape(*part)[0]).sum();
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

impl Family {
    /// Every family there is.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gpt2];

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Reads a `config.json`, which errors call `origin`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown family or a feature that is not there, [`Error::Malformed`] for missing or
    /// contradictory sizes. Nothing falls back: a key is interpreted, known to change nothing, or refused by name.
    pub fn read<O: Origin + ?Sized>(config: &Value, origin: &O) -> Result<Architecture> {
        let origin = origin.shown();
        let config = Config::new(config, &origin)?;
        let model_type = config.text("model_type")?;
        let family = Self::ALL.into_iter().find(|family| family.model_type() == model_type).ok_or_else(|| {
            let known = Self::ALL.map(Self::model_type).join(", ");
            Error::unsupported(&origin, format!("model_type \"{model_type}\" is not a known family; known are {known}"))
        })?;
        let architecture = match family {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::read(family, &config)?,
            Self::Gpt2 => gpt2::read(&config)?,
        };
        // Transformers takes null for false here.
        if let Some(value) = config.value("is_causal").filter(|value| **value != Value::Bool(true)) {
            let what = format!("`is_causal` is {}: tokens that see later ones are not there yet", config::shown(value));
            return Err(config.unsupported(what));
        }
        config.refuse_others(family)?;
        config.check(&architecture)?;
        Ok(architecture)
    }

    /// What `architecture` is stored as, in the order of the computation.
    pub fn stored(architecture: &Architecture) -> Vec<StoredTensor> {
        match architecture.family {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::stored(architecture),
            Self::Gpt2 => gpt2::stored(architecture),
        }
    }

    /// True for tensors that checkpoints of this family carry although nothing reads them: buffers, and a head that equals the
    /// embedding it is tied to.
    pub fn is_ignored(architecture: &Architecture, name: &str) -> bool {
        (architecture.tied_embeddings && name == "lm_head.weight")
            || name.ends_with(".rotary_emb.inv_freq")
            || (architecture.family == Self::Gpt2 && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
    }

    /// The prefix that some checkpoints leave out of every name but the head's.
    pub fn optional_prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => "model.",
        }
    }
}

#[cfg(all(test, feature = "std"))]
mod tests;
