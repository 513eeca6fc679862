//! Writes an architecture as its family's `config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Family;
use super::gpt2::ALIASES;
use crate::{Activation, Architecture, Error, LayerShape, Positions, Result, RotaryScaling};

impl Family {
    /// The `config.json` of `architecture`: `base` with every key that follows from the architecture set anew.
    ///
    /// `base` is the configuration the model was read with, so that what this project does not know survives; an empty object
    /// for a new model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where layers differ: no family's `config.json` can say that.
    pub fn write(architecture: &Architecture, base: &Value, path: &Path) -> Result<Value> {
        let layer = architecture.uniform_layer().ok_or_else(|| {
            Error::unsupported(path, "layers of different sizes can't be written: config.json has one size for all layers")
        })?;
        let mut config = match base {
            Value::Object(map) => map.clone(),
            _ => serde_json::Map::new(),
        };
        match architecture.family {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama(architecture, layer, &mut config),
            Self::Gpt2 => gpt2(architecture, layer, &mut config),
        }
        Ok(Value::Object(config))
    }

    /// The family under whose name `architecture` with these layers is written: its own, or one that computes the same and whose
    /// configuration can say these sizes where its own can't.
    pub fn written_as(architecture: &Architecture, layer: LayerShape) -> Self {
        match architecture.family {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => family_that_can_say(architecture, layer),
            Self::Gpt2 => Self::Gpt2,
        }
    }
}

/// The family whose configuration can say these sizes.
///
/// Transformers refuses a Llama whose heads do not divide `hidden_size`, even with `head_dim` set, which is what cutting heads
/// often leaves. A Mistral without a window computes the same and is not refused.
fn family_that_can_say(architecture: &Architecture, layer: LayerShape) -> Family {
    let refused = architecture.family == Family::Llama && !architecture.hidden_size.is_multiple_of(layer.heads);
    let is_plain = !architecture.attention.qkv_bias && !architecture.mlp.bias;
    if refused && is_plain { Family::Mistral } else { architecture.family }
}

/// Llama and those that differ from it by a few keys.
fn llama(architecture: &Architecture, layer: LayerShape, config: &mut Map<String, Value>) {
    let family = family_that_can_say(architecture, layer);
    let class = match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Gpt2 => unreachable!("written by `gpt2`"),
    };
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("architectures", json!([class]));
    set("model_type", json!(family.model_type()));
    set("vocab_size", json!(architecture.vocab_size));
    set("hidden_size", json!(architecture.hidden_size));
    set("head_dim", json!(architecture.head_dim));
    set("num_hidden_layers", json!(architecture.layers.len()));
    set("num_attention_heads", json!(layer.heads));
    set("num_key_value_heads", json!(layer.kv_heads));
    set("intermediate_size", json!(layer.intermediate_size));
    set("max_position_embeddings", json!(architecture.max_position_embeddings));
    set("rms_norm_eps", json!(architecture.norm.epsilon));
    set("hidden_act", json!(activation_name(architecture)));
    set("tie_word_embeddings", json!(architecture.tied_embeddings));
    if family != Family::Qwen2 {
        set("attention_bias", json!(architecture.attention.qkv_bias));
    }
    if family == Family::Llama {
        set("mlp_bias", json!(architecture.mlp.bias));
    }
    if matches!(family, Family::Qwen2 | Family::Qwen3) {
        set("use_sliding_window", json!(architecture.window.is_some()));
        set("sliding_window", json!(architecture.window));
        // Transformers writes one entry a layer, and refuses a list of another length. No text outgrows the window, so which of the
        // layers have it makes no difference.
        let kind = if architecture.window.is_some() { "sliding_attention" } else { "full_attention" };
        set("layer_types", json!(vec![kind; architecture.layers.len()]));
    }
    if family == Family::Mistral {
        set("sliding_window", json!(architecture.window));
    }
    if let Positions::Rotary { theta, scaling } = &architecture.positions {
        let (old, new) = rotary_keys(*theta, scaling, architecture.max_position_embeddings as u64);
        set("rope_theta", json!(theta));
        set("rope_scaling", old);
        set("rope_parameters", new);
    }
    write_tokens(architecture, config);
}

/// A rotary embedding as Transformers 4 has it under `rope_scaling`, null where nothing is scaled, and as Transformers 5 has it under
/// `rope_parameters`.
pub(crate) fn rotary_keys(theta: f64, scaling: &RotaryScaling, context: u64) -> (Value, Value) {
    match scaling {
        RotaryScaling::None => (Value::Null, json!({"rope_theta": theta, "rope_type": "default"})),
        RotaryScaling::Linear { factor } => (
            json!({"rope_type": "linear", "factor": factor}),
            json!({"rope_theta": theta, "rope_type": "linear", "factor": factor}),
        ),
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => with_theta(
            theta,
            json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor, "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        ),
        // The context is not longer than it was, and nothing but the frequencies changes.
        RotaryScaling::PerFrequency { divisors } => with_theta(
            theta,
            json!({
                "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "short_factor": divisors, "long_factor": divisors,
                "original_max_position_embeddings": context,
            }),
        ),
    }
}

fn with_theta(theta: f64, scaling: Value) -> (Value, Value) {
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(theta);
    (scaling, parameters)
}

fn gpt2(architecture: &Architecture, layer: LayerShape, config: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("architectures", json!(["GPT2LMHeadModel"]));
    set("model_type", json!("gpt2"));
    set("vocab_size", json!(architecture.vocab_size));
    set("n_embd", json!(architecture.hidden_size));
    set("n_layer", json!(architecture.layers.len()));
    set("n_head", json!(layer.heads));
    set("n_inner", json!(layer.intermediate_size));
    set("n_positions", json!(architecture.max_position_embeddings));
    set("layer_norm_epsilon", json!(architecture.norm.epsilon));
    set("activation_function", json!(activation_name(architecture)));
    set("tie_word_embeddings", json!(architecture.tied_embeddings));
    if layer.heads * architecture.head_dim == architecture.hidden_size {
        config.remove("head_dim");
    } else {
        config.insert("head_dim".to_owned(), json!(architecture.head_dim));
    }
    for (_, alias) in ALIASES {
        config.remove(alias);
    }
    write_tokens(architecture, config);
}

/// The keys that name the first and the last token of a text.
fn write_tokens(architecture: &Architecture, config: &mut Map<String, Value>) {
    config.insert("bos_token_id".to_owned(), json!(architecture.bos_token_id));
    let eos = match architecture.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    config.insert("eos_token_id".to_owned(), eos);
}

/// The name Transformers has for the non-linearity.
fn activation_name(architecture: &Architecture) -> &'static str {
    match architecture.mlp.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
    }
}
