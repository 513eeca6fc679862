//! What every key of a GGUF file means here: it is interpreted, known not to matter, or refused by name.
//!
//! A key outside the namespaces below is a note of whoever wrote the file: llama.cpp looks for `general.`, `tokenizer.`, `split.` and
//! the architecture's own keys alone.
//!
//! Keys: llama.cpp's `llama-arch.cpp` and gguf-py's `constants.py`.

use super::GgufFile;
use super::metadata::Value;
use crate::Result;

/// What a key is to this program.
#[derive(Clone, Copy)]
enum Meaning {
    /// Read where the configuration or the tokenizer is made.
    Read,
    /// Changes nothing that is computed here; the reason.
    NoMatter(#[allow(dead_code, reason = "stands in the table for its reader")] &'static str),
    /// Changes nothing at one value; at any other it is this, which can't be read.
    Neutral(Neutral, &'static str),
}

/// A value that changes nothing.
#[derive(Clone, Copy)]
enum Neutral {
    Zero,
    One,
    /// llama.cpp takes 0 for a factor that is not there.
    ZeroOrOne,
    True,
    False,
    /// A list without items.
    Empty,
}

use Meaning::{NoMatter, Read};

const EXPERTS: Meaning = Meaning::Neutral(Neutral::Zero, "mixtures of experts");
const NO_EXPERTS: Meaning = NoMatter("there are no experts: their count is 0");
const NO_WINDOW: Meaning = NoMatter("no layer has a window: a shorter one than the context is refused");
const ONLY_YARN: Meaning = NoMatter("YaRN and LongRoPE read it, and both are refused");

/// Keys of every architecture, after its name and a dot.
const COMMON: &[(&str, Meaning)] = &[
    ("block_count", Read),
    ("context_length", Read),
    ("embedding_length", Read),
    ("embedding_length_out", Read),
    ("feed_forward_length", Read),
    ("attention.head_count", Read),
    ("attention.head_count_kv", Read),
    ("attention.key_length", Read),
    ("attention.value_length", Read),
    ("attention.scale", Read),
    ("attention.sliding_window", Read),
    ("vocab_size", Read),
    ("tensor_data_layout", Read),
    ("attention.sliding_window_pattern", NO_WINDOW),
    ("attention.key_length_swa", NO_WINDOW),
    ("attention.value_length_swa", NO_WINDOW),
    ("attention.causal", Meaning::Neutral(Neutral::True, "attention to later tokens")),
    ("attention.clamp_kqv", Meaning::Neutral(Neutral::Zero, "clamped queries, keys and values")),
    ("attention.max_alibi_bias", Meaning::Neutral(Neutral::Zero, "positions by ALiBi")),
    ("attention.output_scale", Meaning::Neutral(Neutral::ZeroOrOne, "scaled attention outputs")),
    ("attention.value_scale", Meaning::Neutral(Neutral::ZeroOrOne, "scaled values")),
    ("attention.temperature_length", Meaning::Neutral(Neutral::Zero, "attention scaled by position")),
    ("attention.temperature_scale", Meaning::Neutral(Neutral::Zero, "attention scaled by position")),
    ("attn_logit_softcapping", Meaning::Neutral(Neutral::Zero, "capped attention scores")),
    ("final_logit_softcapping", Meaning::Neutral(Neutral::Zero, "capped logits")),
    ("logit_scale", Meaning::Neutral(Neutral::ZeroOrOne, "scaled logits")),
    ("residual_scale", Meaning::Neutral(Neutral::ZeroOrOne, "scaled residuals")),
    ("embedding_scale", Meaning::Neutral(Neutral::ZeroOrOne, "scaled embeddings")),
    ("use_parallel_residual", Meaning::Neutral(Neutral::False, "attention and MLP side by side")),
    ("pooling_type", Meaning::Neutral(Neutral::Zero, "embeddings of whole texts")),
    ("nextn_predict_layers", Meaning::Neutral(Neutral::Zero, "layers that predict further tokens")),
    ("expert_count", EXPERTS),
    ("expert_used_count", EXPERTS),
    ("expert_shared_count", EXPERTS),
    ("expert_group_count", EXPERTS),
    ("expert_group_used_count", EXPERTS),
    ("expert_feed_forward_length", EXPERTS),
    ("expert_shared_feed_forward_length", EXPERTS),
    ("leading_dense_block_count", EXPERTS),
    ("interleave_moe_layer_step", EXPERTS),
    ("moe_every_n_layers", EXPERTS),
    ("router_logit_softcapping", NO_EXPERTS),
    ("expert_weights_scale", NO_EXPERTS),
    ("expert_weights_norm", NO_EXPERTS),
    ("expert_gating_func", NO_EXPERTS),
];

/// Further keys after `llama.`, `qwen2.` or `qwen3.`.
const ROTARY: &[(&str, Meaning)] = &[
    ("attention.layer_norm_rms_epsilon", Read),
    ("attention.layer_norm_epsilon", NoMatter("every norm is an RMS norm, which has an ε of its own")),
    ("rope.dimension_count", Read),
    ("rope.freq_base", Read),
    ("rope.scale_linear", Read),
    ("rope.scaling.type", Read),
    ("rope.scaling.factor", Read),
    ("rope.dimension_count_swa", NO_WINDOW),
    ("rope.freq_base_swa", NO_WINDOW),
    ("rope.scaling.finetuned", NoMatter("says how the model was trained")),
    ("rope.scaling.original_context_length", ONLY_YARN),
    ("rope.scaling.yarn_beta_fast", ONLY_YARN),
    ("rope.scaling.yarn_beta_slow", ONLY_YARN),
    ("rope.scaling.yarn_log_multiplier", Meaning::Neutral(Neutral::Zero, "YaRN")),
    ("rope.scaling.yarn_ext_factor", Meaning::Neutral(Neutral::Zero, "YaRN")),
    ("rope.scaling.yarn_attn_factor", Meaning::Neutral(Neutral::One, "scaled queries and keys")),
    ("rope.scaling.attn_factor", Meaning::Neutral(Neutral::One, "scaled queries and keys")),
    ("rope.scaling.alpha", Meaning::Neutral(Neutral::ZeroOrOne, "rotary scaling by another base")),
];

/// Further keys after `gpt2.`.
const GPT2: &[(&str, Meaning)] = &[("attention.layer_norm_epsilon", Read)];

/// Keys after `tokenizer.`.
const TOKENIZER: &[(&str, Meaning)] = &[
    ("ggml.model", Read),
    ("ggml.pre", Read),
    ("ggml.tokens", Read),
    ("ggml.token_type", Read),
    ("ggml.scores", Read),
    ("ggml.merges", Read),
    ("ggml.bos_token_id", Read),
    ("ggml.eos_token_id", Read),
    ("ggml.eot_token_id", Read),
    ("ggml.eom_token_id", Read),
    ("ggml.unknown_token_id", Read),
    ("ggml.padding_token_id", Read),
    ("ggml.add_bos_token", Read),
    ("ggml.add_space_prefix", Read),
    ("ggml.remove_extra_whitespaces", Read),
    ("chat_template", Read),
    ("ggml.add_eos_token", Meaning::Neutral(Neutral::False, "texts that end with EOS")),
    ("ggml.add_sep_token", Meaning::Neutral(Neutral::False, "texts that end with a separator")),
    ("ggml.normalizer.lowercase", Meaning::Neutral(Neutral::False, "text in small letters")),
    ("ggml.normalizer.strip_accents", Meaning::Neutral(Neutral::False, "text without accents")),
    ("ggml.precompiled_charsmap", Meaning::Neutral(Neutral::Empty, "normalization by a table")),
    ("ggml.suppress_tokens", Meaning::Neutral(Neutral::Empty, "tokens that are never said")),
    ("ggml.seperator_token_id", NOT_PUT_IN),
    ("ggml.cls_token_id", NOT_PUT_IN),
    ("ggml.mask_token_id", NOT_PUT_IN),
    ("ggml.fim_pre_token_id", INFILL),
    ("ggml.fim_suf_token_id", INFILL),
    ("ggml.fim_mid_token_id", INFILL),
    ("ggml.fim_pad_token_id", INFILL),
    ("ggml.fim_rep_token_id", INFILL),
    ("ggml.fim_sep_token_id", INFILL),
    ("ggml.prefix_token_id", INFILL),
    ("ggml.suffix_token_id", INFILL),
    ("ggml.middle_token_id", INFILL),
    ("ggml.added_tokens", NoMatter("they stand among the tokens")),
    ("ggml.token_type_count", NoMatter("BERT's types of sentences, which no architecture here has")),
    ("huggingface.json", NoMatter("the same vocabulary once more; llama.cpp reads the lists as well")),
    ("chat_templates", OTHER_TEMPLATES),
];

const NOT_PUT_IN: Meaning = NoMatter("names a token that is put into no text here");
const INFILL: Meaning = NoMatter("names a token of prompts with a gap, which are not made here");
const OTHER_TEMPLATES: Meaning = NoMatter("templates beside the one that is taken when none is named");

/// Keys of `general.` that are no mere description.
const GENERAL: &[(&str, Meaning)] =
    &[("type", Read), ("architecture", Read), ("alignment", Read), ("quantization_version", Read)];
/// All others.
const DESCRIPTION: Meaning = NoMatter("describes the file to people, or a sampler's settings, for which `generate` has flags");

/// Namespaces of files that are something else than a model.
const NO_MODEL: [(&str, &str); 6] = [
    ("adapter", "a LoRA adapter"),
    ("clip", "a projector of images"),
    ("imatrix", "statistics of activations"),
    ("controlvector", "a control vector"),
    ("xielu", "an activation with weights of its own"),
    ("diffusion", "a model that does not write from left to right"),
];

impl GgufFile {
    /// Refuses the first key that may change what the model computes and that nothing here reads.
    pub(super) fn refuse_unknown_keys(&self, architecture: &str) -> Result<()> {
        let own = if architecture == "gpt2" { GPT2 } else { ROTARY };
        for (key, value) in &self.metadata {
            let Some((namespace, name)) = key.split_once('.') else { continue };
            if namespace == architecture {
                self.check(key, value, find(name, COMMON).or_else(|| find(name, own)))?;
            } else if let Some((_, what)) = NO_MODEL.iter().find(|(other, _)| *other == namespace) {
                return Err(self.unsupported(format!("`{key}` belongs to {what}, which can't be read")));
            } else if namespace == "general" {
                self.check(key, value, find(name, GENERAL).or(Some(DESCRIPTION)))?;
            }
        }
        Ok(())
    }

    /// Refuses the first key that may change how the tokenizer cuts text and that nothing here reads.
    pub(super) fn refuse_unknown_tokenizer_keys(&self) -> Result<()> {
        for (key, value) in &self.metadata {
            let Some(name) = key.strip_prefix("tokenizer.") else { continue };
            let named_template = name.starts_with("chat_template.").then_some(OTHER_TEMPLATES);
            self.check(key, value, find(name, TOKENIZER).or(named_template))?;
        }
        Ok(())
    }

    fn check(&self, key: &str, value: &Value, meaning: Option<Meaning>) -> Result<()> {
        match meaning {
            Some(Meaning::Read | Meaning::NoMatter(_)) => Ok(()),
            Some(Meaning::Neutral(neutral, _)) if neutral.is(value) => Ok(()),
            Some(Meaning::Neutral(neutral, what)) => {
                let (found, neutral) = (value.shown(), neutral.shown());
                Err(self.unsupported(format!("`{key}` is {found}: {what} can't be read, and only {neutral} means none")))
            }
            None => {
                Err(self.unsupported(format!("`{key}` is not understood, and without it the model might compute something else")))
            }
        }
    }
}

fn find(name: &str, table: &[(&str, Meaning)]) -> Option<Meaning> {
    table.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning)
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        let number = match value {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::F32(number) => Some(f64::from(*number)),
            Value::F64(number) => Some(*number),
            Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
        };
        match self {
            Self::Zero => number == Some(0.0),
            Self::One => number == Some(1.0),
            Self::ZeroOrOne => number == Some(0.0) || number == Some(1.0),
            Self::True => matches!(value, Value::Bool(true)),
            Self::False => matches!(value, Value::Bool(false)),
            Self::Empty => matches!(value, Value::List(list) if list.is_empty()),
        }
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Zero => "0",
            Self::One => "1",
            Self::ZeroOrOne => "0 or 1",
            Self::True => "true",
            Self::False => "false",
            Self::Empty => "an empty list",
        }
    }
}
