//! Llama and those that differ from it by a few keys: SmolLM2, TinyLlama, Mistral, Qwen2, Qwen3.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use serde_json::Value;

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
        "longrope" => {
            let [short, long] = ["short_factor", "long_factor"].map(|inner| config.inner_numbers(key, parameters, inner));
            let divisors = short?;
            if long? != divisors || number("attention_factor")? != Some(1.0) {
                return Err(config.unsupported(format!(
                    "`{key}.rope_type` is \"longrope\", which is known where `long_factor` is `short_factor` again and \
                     `attention_factor` is 1"
                )));
            }
            RotaryScaling::PerFrequency { divisors }
        }
        other => {
            return Err(
                config.unsupported(format!("`{key}.rope_type` is \"{other}\"; known are default, linear, llama3, longrope"))
            );
        }
    };
    if number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported(format!("`{key}.partial_rotary_factor`: only whole heads are rotated here")));
    }
    Ok(Positions::Rotary { theta, scaling })
}

/// Llama's own names are the ones every tensor is displayed with.
pub(super) fn stored(architecture: &Architecture) -> Vec<StoredTensor> {
    let plain = |tensor| StoredTensor { name: format!("{tensor}"), parts: vec![tensor], transposed: false };
    architecture.tensors().into_iter().map(plain).collect()
}
