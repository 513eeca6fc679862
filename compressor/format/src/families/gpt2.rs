//! GPT-2 and DistilGPT-2: LayerNorm, learned positions, query/key/value fused in one matrix stored `[in, out]`.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::config::Config;
use super::{Family, StoredTensor};
use crate::{Architecture, Attention, LayerShape, LayerTensor, Mlp, Norm, NormKind, Part, Positions, Result, TensorId};

/// The names that Transformers gives GPT-2's sizes beside GPT-2's own. Where both stand there, it takes these.
pub(super) const ALIASES: [(&str, &str); 4] = [
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_positions", "max_position_embeddings"),
];

pub(super) fn read(config: &Config<'_>) -> Result<Architecture> {
    for (key, expected) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if config.flag_or(key, expected)? != expected {
            return Err(config.unsupported(format!("`{key}` is {}: such a GPT-2 is not there yet", !expected)));
        }
    }
    let [hidden_size, heads, layers, positions] = ALIASES.map(|(key, alias)| config.size_by_either(alias, key));
    let (hidden_size, heads) = (hidden_size?, heads?);
    let layer =
        LayerShape { heads, kv_heads: heads, intermediate_size: config.size_or_none("n_inner")?.unwrap_or(4 * hidden_size) };
    Ok(Architecture {
        family: Family::Gpt2,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        // Transformers has no such key for GPT-2: ours, written after heads were cut.
        head_dim: config.size_or_none("head_dim")?.unwrap_or(hidden_size / heads),
        max_position_embeddings: positions?,
        window: None,
        layers: vec![layer; config.as_layers("n_layer", layers?)?],
        norm: Norm { kind: NormKind::Layer, epsilon: config.number_or("layer_norm_epsilon", 1e-5)? },
        positions: Positions::Learned,
        attention: Attention { qkv_bias: true, output_bias: true, qk_norm: false },
        mlp: Mlp { gated: false, activation: config.activation("activation_function", "gelu_new")?, bias: true },
        tied_embeddings: config.flag_or("tie_word_embeddings", true)?,
        bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: config.token_ids("eos_token_id")?,
    })
}

pub(super) fn stored(architecture: &Architecture) -> Vec<StoredTensor> {
    use LayerTensor::*;
    use Part::{Bias, Weight};
    /// A tensor of a layer, as weight or as bias.
    type Kind = fn(Part) -> LayerTensor;
    let mut stored = Vec::new();
    let mut add = |name: String, parts: Vec<TensorId>, transposed| stored.push(StoredTensor { name, parts, transposed });
    add("transformer.wte.weight".into(), vec![TensorId::Embedding], false);
    add("transformer.wpe.weight".into(), vec![TensorId::PositionEmbedding], false);
    for layer in 0..architecture.layers.len() {
        let modules: [(&str, &[Kind], bool); 6] = [
            ("ln_1", &[AttentionNorm], false),
            ("attn.c_attn", &[Query, Key, Value], true),
            ("attn.c_proj", &[Output], true),
            ("ln_2", &[MlpNorm], false),
            ("mlp.c_fc", &[Up], true),
            ("mlp.c_proj", &[Down], true),
        ];
        for (module, tensors, conv1d) in modules {
            for part in [Weight, Bias] {
                let parts = tensors.iter().map(|tensor| TensorId::Layer(layer, tensor(part))).collect();
                add(format!("transformer.h.{layer}.{module}.{part}"), parts, conv1d && part == Weight);
            }
        }
    }
    add("transformer.ln_f.weight".into(), vec![TensorId::FinalNorm(Weight)], false);
    add("transformer.ln_f.bias".into(), vec![TensorId::FinalNorm(Bias)], false);
    if !architecture.tied_embeddings {
        add("lm_head.weight".into(), vec![TensorId::Head], false);
    }
    stored
}
