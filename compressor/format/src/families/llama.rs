//! Llama and those that differ from it by a few keys: SmolLM2, TinyLlama, Mistral, Qwen2, Qwen3.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde_json::{Map, Value};

use super::config::{Config, shown};
use super::keys::is_off;
use super::{Family, StoredTensor};
use crate::{Architecture, Attention, LayerShape, Mlp, Norm, NormKind, Positions, Result, RotaryScaling};

/// What Transformers' class of a family takes where a key is missing; for Llama it depends on other keys.
struct Defaults {
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    window: Option<usize>,
}

impl Defaults {
    fn of(family: Family) -> Self {
        match family {
            Family::Mistral => Self { kv_heads: Some(8), head_dim: None, window: Some(4096) },
            Family::Qwen2 => Self { kv_heads: Some(32), head_dim: None, window: Some(4096) },
            Family::Qwen3 => Self { kv_heads: Some(32), head_dim: Some(128), window: Some(4096) },
            Family::Llama | Family::Gpt2 => Self { kv_heads: None, head_dim: None, window: None },
        }
    }
}

/// The first of Qwen's layers that has a window, where nothing says which.
const MAX_WINDOW_LAYERS: usize = 28;

pub(super) fn read(family: Family, config: &Config<'_>) -> Result<Architecture> {
    let defaults = Defaults::of(family);
    let hidden_size = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let layer = LayerShape {
        heads,
        kv_heads: config.size_or("num_key_value_heads", defaults.kv_heads)?.unwrap_or(heads),
        intermediate_size: config.size("intermediate_size")?,
    };
    let layers = vec![layer; config.layers("num_hidden_layers")?];
    let max_position_embeddings = config.size("max_position_embeddings")?;
    let attention_bias = matches!(family, Family::Llama | Family::Qwen3) && config.flag_or("attention_bias", false)?;
    Ok(Architecture {
        family,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        head_dim: config.size_or_none("head_dim")?.or(defaults.head_dim).unwrap_or(hidden_size / heads),
        max_position_embeddings,
        window: window(family, config, layers.len(), max_position_embeddings)?,
        layers,
        norm: Norm { kind: NormKind::Rms, epsilon: config.number_or("rms_norm_eps", 1e-6)? },
        positions: rotary(config, max_position_embeddings)?,
        attention: Attention {
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: attention_bias,
            qk_norm: family == Family::Qwen3,
        },
        mlp: Mlp {
            gated: true,
            activation: config.activation("hidden_act", "silu")?,
            bias: family == Family::Llama && config.flag_or("mlp_bias", false)?,
        },
        tied_embeddings: config.flag_or("tie_word_embeddings", false)?,
        bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: config.token_ids("eos_token_id")?,
    })
}

/// How far back attention reaches, where some layer's does not reach everything.
///
/// As long as the context fits the window there is no difference, so such a model is read, and no longer text is run through it.
fn window(family: Family, config: &Config<'_>, layers: usize, context: usize) -> Result<Option<usize>> {
    let kinds = config.texts("layer_types", layers)?;
    if let Some(other) = kinds.iter().flatten().find(|kind| !matches!(**kind, "full_attention" | "sliding_attention")) {
        let other = other.escape_debug();
        let what =
            format!("`layer_types` names \"{other}\"; known are full_attention and, within the context, sliding_attention");
        return Err(config.unsupported(what));
    }
    let listed = kinds.map(|kinds| kinds.contains(&"sliding_attention"));
    let is_qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    let window = match is_qwen && !config.flag_or("use_sliding_window", false)? {
        true => None,
        false => config.size_or("sliding_window", Defaults::of(family).window)?,
    };
    let Some(window) = window else {
        return match listed {
            Some(true) => Err(config.malformed("`layer_types` names sliding_attention, and no window is set".into())),
            Some(false) | None => Ok(None),
        };
    };
    let any_slides = match listed {
        // Transformers reads the list of no other family.
        Some(any) if is_qwen => any,
        None if is_qwen => config.count_or("max_window_layers", MAX_WINDOW_LAYERS)? < layers,
        Some(_) | None => true,
    };
    if any_slides && window < context {
        let found = match config.value("sliding_window") {
            Some(value) => format!("`sliding_window` is {}", shown(value)),
            None => format!("`sliding_window` is missing, which means {window}"),
        };
        return Err(config.unsupported(format!(
            "{found}: attention through a window is not there yet, and `max_position_embeddings` is {context}; set that to at most \
             {window} for shorter texts"
        )));
    }
    Ok(any_slides.then_some(window))
}

/// Transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`; where both stand there, Transformers 5 takes
/// `rope_scaling`.
fn rotary(config: &Config<'_>, context: usize) -> Result<Positions> {
    let parameters = config.object("rope_parameters")?;
    let (key, object) = match config.object("rope_scaling")? {
        Some(scaling) => ("rope_scaling", Some(scaling)),
        None => ("rope_parameters", parameters),
    };
    let empty = Map::new();
    let mut rope = Rope { config, key, object: object.unwrap_or(&empty), asked: Vec::new() };
    let kind = rope.kind()?;
    let outside = config.value("rope_theta").map_or(Ok(10_000.0), |theta| config.as_number("rope_theta", theta));
    let theta = rope.number("rope_theta")?.map_or(outside, Ok)?;
    let partial = config.value("partial_rotary_factor").filter(|value| !value.is_null());
    for partial in [rope.value("partial_rotary_factor"), partial].into_iter().flatten() {
        if config.as_number("partial_rotary_factor", partial)? != 1.0 {
            let what = format!("`partial_rotary_factor` is {}: only whole heads are rotated here", shown(partial));
            return Err(config.unsupported(what));
        }
    }
    let trained = config.value("original_max_position_embeddings");
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => {
            // Models that were trained shorter name that length too; a linear scaling divides by the factor alone.
            rope.value("original_max_position_embeddings");
            RotaryScaling::Linear { factor: rope.needed("factor")? }
        }
        "llama3" => RotaryScaling::Llama3 {
            factor: rope.needed("factor")?,
            low_freq_factor: rope.needed("low_freq_factor")?,
            high_freq_factor: rope.needed("high_freq_factor")?,
            original_max_position_embeddings: match (trained, rope.value("original_max_position_embeddings")) {
                (Some(outside), _) => config.as_size("original_max_position_embeddings", outside)?,
                (None, Some(inside)) => config.as_size(&rope.path("original_max_position_embeddings"), inside)?,
                (None, None) => context,
            },
        },
        "longrope" => {
            let [divisors, long] = [rope.numbers("short_factor")?, rope.numbers("long_factor")?];
            if long != divisors || rope.number("attention_factor")? != Some(1.0) {
                return Err(config.unsupported(format!(
                    "`{}` is \"longrope\", which is known where `long_factor` is `short_factor` again and `attention_factor` is 1",
                    rope.path("rope_type")
                )));
            }
            // With one list and that factor, these two choose nothing.
            rope.value("factor");
            rope.value("original_max_position_embeddings");
            RotaryScaling::PerFrequency { divisors }
        }
        other => {
            let (path, other) = (rope.path("rope_type"), other.escape_debug());
            return Err(config.unsupported(format!("`{path}` is \"{other}\"; known are default, linear, llama3, longrope")));
        }
    };
    rope.refuse_others(kind)?;
    Ok(Positions::Rotary { theta, scaling })
}

/// The object that describes the rotary embedding.
struct Rope<'a, 'b> {
    config: &'b Config<'a>,
    /// The key under which it stands.
    key: &'static str,
    object: &'b Map<String, Value>,
    /// Its keys that were asked for.
    asked: Vec<&'static str>,
}

impl<'b> Rope<'_, 'b> {
    fn path(&self, inner: &str) -> String {
        format!("{}.{}", self.key, inner.escape_debug())
    }

    fn value(&mut self, inner: &'static str) -> Option<&'b Value> {
        self.asked.push(inner);
        self.object.get(inner)
    }

    /// `rope_type`, which was `type` once. A `rope_type` that is null is no type, whatever `type` says.
    fn kind(&mut self) -> Result<&'b str> {
        let old = self.value("type");
        let Some(value) = self.value("rope_type").or(old) else { return Ok("default") };
        let wrong = || {
            let what = format!("`{}` is {}; known are default, linear, llama3, longrope", self.path("rope_type"), shown(value));
            self.config.unsupported(what)
        };
        value.as_str().ok_or_else(wrong)
    }

    fn number(&mut self, inner: &'static str) -> Result<Option<f64>> {
        self.value(inner).map(|value| self.config.as_number(&self.path(inner), value)).transpose()
    }

    fn numbers(&mut self, inner: &'static str) -> Result<Vec<f32>> {
        self.asked.push(inner);
        self.config.inner_numbers(self.key, self.object, inner)
    }

    fn needed(&mut self, inner: &'static str) -> Result<f64> {
        self.number(inner)?.ok_or_else(|| self.config.missing(&self.path(inner)))
    }

    /// Refuses what this kind of scaling has no use for: parameters of another kind, or one object for each type of layer.
    fn refuse_others(&self, kind: &str) -> Result<()> {
        let other = |key: &str, value: &Value| !self.asked.contains(&key) && !is_off(value);
        let Some((key, value)) = self.object.iter().find(|(key, value)| other(key, value)) else { return Ok(()) };
        let what = format!("`{}` is {}, and rope_type \"{kind}\" has no such key; remove it", self.path(key), shown(value));
        Err(self.config.unsupported(what))
    }
}

/// Llama's own names are the ones every tensor is displayed with.
pub(super) fn stored(architecture: &Architecture) -> Vec<StoredTensor> {
    let plain = |tensor| StoredTensor { name: format!("{tensor}"), parts: vec![tensor], transposed: false };
    architecture.tensors().into_iter().map(plain).collect()
}
