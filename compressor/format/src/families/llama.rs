//! Llama and those that differ from it by a few keys: SmolLM2, TinyLlama, Mistral, Qwen2, Qwen3.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::{Family, StoredTensor};
use crate::{Architecture, Attention, LayerShape, Mlp, Norm, NormKind, Positions, Result, RotaryScaling};

pub(super) fn read(family: Family, config: &Config<'_>) -> Result<Architecture> {
    let hidden_size = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let layer = LayerShape {
        heads,
        kv_heads: config.size_or_none("num_key_value_heads")?.unwrap_or(heads),
        intermediate_size: config.size("intermediate_size")?,
    };
    let head_dim = match config.size_or_none("head_dim")? {
        Some(head_dim) => head_dim,
        // Transformers' default for Qwen3 is 128 whatever the other sizes are.
        None if family == Family::Qwen3 => 128,
        None => hidden_size / heads,
    };
    let window = match family {
        Family::Qwen2 | Family::Qwen3 if !config.flag_or("use_sliding_window", false)? => None,
        _ => config.size_or_none("sliding_window")?,
    };
    let max_position_embeddings = config.size("max_position_embeddings")?;
    if let Some(window) = window.filter(|window| *window < max_position_embeddings) {
        return Err(config.unsupported(format!(
            "`sliding_window` is {window}: windowed attention is not there yet; set it to null to use full attention"
        )));
    }
    let attention_bias = config.flag_or("attention_bias", false)?;
    Ok(Architecture {
        family,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        head_dim,
        max_position_embeddings,
        layers: vec![layer; config.layers("num_hidden_layers")?],
        norm: Norm { kind: NormKind::Rms, epsilon: config.number_or("rms_norm_eps", 1e-6)? },
        positions: rotary(config)?,
        attention: Attention {
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            qk_norm: family == Family::Qwen3,
        },
        mlp: Mlp { gated: true, activation: config.activation("hidden_act", "silu")?, bias: config.flag_or("mlp_bias", false)? },
        tied_embeddings: config.flag_or("tie_word_embeddings", false)?,
        bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: config.token_ids("eos_token_id")?,
    })
}

/// Transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`; both are in use.
fn rotary(config: &Config<'_>) -> Result<Positions> {
    let (key, scaling) = match config.object("rope_parameters")? {
        Some(parameters) => ("rope_parameters", Some(parameters)),
        None => ("rope_scaling", config.object("rope_scaling")?),
    };
    let Some(parameters) = scaling else {
        return Ok(Positions::Rotary { theta: config.number_or("rope_theta", 10_000.0)?, scaling: RotaryScaling::None });
    };
    let number = |inner: &str| config.inner_number(key, parameters, inner);
    let needed = |inner: &str| number(inner)?.ok_or_else(|| config.missing(&format!("{key}.{inner}")));
    let theta = match number("rope_theta")? {
        Some(theta) => theta,
        None => config.number_or("rope_theta", 10_000.0)?,
    };
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: needed("factor")? },
        "llama3" => RotaryScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings: config.inner_size(key, parameters, "original_max_position_embeddings")?,
        },
        other => {
            return Err(config.unsupported(format!("`{key}.rope_type` is \"{other}\"; known are default, linear, llama3")));
        }
    };
    if number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported(format!("`{key}.partial_rotary_factor`: only whole heads are rotated here")));
    }
    Ok(Positions::Rotary { theta, scaling })
}

/// The family whose configuration can say these sizes.
///
/// Transformers refuses a Llama whose heads do not divide `hidden_size`, even with `head_dim` set, which is what cutting heads
/// often leaves. A Mistral without a window computes the same and is not refused.
pub(super) fn family_that_can_say(architecture: &Architecture, layer: LayerShape) -> Family {
    let refused = architecture.family == Family::Llama && !architecture.hidden_size.is_multiple_of(layer.heads);
    let is_plain = !architecture.attention.qkv_bias && !architecture.mlp.bias;
    if refused && is_plain { Family::Mistral } else { architecture.family }
}

pub(super) fn write(architecture: &Architecture, layer: LayerShape, config: &mut Map<String, Value>) {
    let family = family_that_can_say(architecture, layer);
    let class = match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Gpt2 => unreachable!("written by gpt2.rs"),
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
        set("use_sliding_window", json!(false));
        // Transformers writes one entry a layer, and refuses a list of another length.
        set("layer_types", json!(vec!["full_attention"; architecture.layers.len()]));
    }
    if family == Family::Mistral {
        set("sliding_window", Value::Null);
    }
    if let Positions::Rotary { theta, scaling } = architecture.positions {
        set("rope_theta", json!(theta));
        let (old, new) = match scaling {
            RotaryScaling::None => (Value::Null, json!({"rope_theta": theta, "rope_type": "default"})),
            RotaryScaling::Linear { factor } => (
                json!({"rope_type": "linear", "factor": factor}),
                json!({"rope_theta": theta, "rope_type": "linear", "factor": factor}),
            ),
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let mut scaling = json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                });
                let old = scaling.clone();
                scaling["rope_theta"] = json!(theta);
                (old, scaling)
            }
        };
        set("rope_scaling", old);
        set("rope_parameters", new);
    }
    super::gpt2::write_tokens(architecture, config);
}

/// The name Transformers has for the non-linearity.
pub(super) fn activation_name(architecture: &Architecture) -> &'static str {
    match architecture.mlp.activation {
        crate::Activation::Silu => "silu",
        crate::Activation::Gelu => "gelu",
        crate::Activation::GeluTanh => "gelu_new",
    }
}

/// Llama's own names are the ones every tensor is displayed with.
pub(super) fn stored(architecture: &Architecture) -> Vec<StoredTensor> {
    let plain = |tensor| StoredTensor { name: format!("{tensor}"), parts: vec![tensor], transposed: false };
    architecture.tensors().into_iter().map(plain).collect()
}
