//! Keys of a `config.json` that change no logits, with the reasons; a family reads every other one or refuses it.
//!
//! Which keys a family reads is not listed: [`super::config::Config`] notes what it is asked for.

use serde_json::Value;

use super::Family;

/// Keys with the reason why nothing here reads them.
type Ignored = (&'static str, &'static [&'static str]);

/// Of every family.
const EVERYWHERE: [Ignored; 11] = [
    (
        "says where the model comes from and what wrote it",
        &[
            "_commit_hash",
            "_from_auto",
            "_name_or_path",
            "architectures",
            "base_model",
            "model_name",
            "name_or_path",
            "transformers.js_config",
            "transformers_version",
            "unsloth_fixed",
            "unsloth_version",
        ],
    ),
    (
        "names Python code and tokenizer classes, which are not run; Transformers runs its own class of a family too",
        &["auto_map", "custom_pipelines", "tokenizer_class"],
    ),
    (
        "says how weights are stored, which each tensor says itself; all is computed in f32",
        &["dtype", "torch_dtype", "use_bfloat16"],
    ),
    ("says how weights are quantized: the reader of artifacts interprets it", &["quantization_config"]),
    (
        "acts in training alone",
        &[
            "attention_dropout",
            "attention_probs_dropout_prob",
            "attn_pdrop",
            "classifier_dropout",
            "dropout",
            "embd_pdrop",
            "gradient_checkpointing",
            "hidden_dropout",
            "hidden_dropout_prob",
            "initializer_factor",
            "initializer_range",
            "init_std",
            "neftune_noise_alpha",
            "resid_pdrop",
            "router_aux_loss_coef",
        ],
    ),
    (
        "chooses how a text goes on, not what follows with which probability: the command's own flags say that here",
        &[
            "assistant_confidence_threshold",
            "assistant_lookbehind",
            "bad_words_ids",
            "begin_suppress_tokens",
            "cache_implementation",
            "decoder_start_token_id",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "epsilon_cutoff",
            "eta_cutoff",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_p",
            "no_repeat_ngram_size",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "prefix",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict_in_generate",
            "suppress_tokens",
            "target_lookbehind",
            "task_specific_params",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ],
    ),
    ("belongs to heads that classify", &["finetuning_task", "id2label", "label2id", "num_labels", "_num_labels", "problem_type"]),
    (
        "chooses what Transformers returns, and with which of its equal implementations it computes it",
        &[
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_experts_implementation_internal",
            "_flash_attn_2_enabled",
            "attn_implementation",
            "chunk_size_feed_forward",
            "experts_implementation",
            "output_attentions",
            "output_hidden_states",
            "output_past",
            "return_dict",
            "tf_legacy_loss",
            "torchscript",
            "use_cache",
            "use_flash_attention_2",
            "use_flash_attn",
            "xla_device",
        ],
    ),
    (
        "names tokens that no text here is filled up, cut or opened with; a decoder is one whatever `is_decoder` says",
        &["is_decoder", "pad_token_id", "sep_token_id", "unk_token_id"],
    ),
    ("split matrices in pretraining; their product is the same", &["pretraining_tp"]),
    (
        "another program's way to say what the sizes say",
        &["ffn_dim_multiplier", "is_llama_config", "max_sequence_length", "model_max_length", "multiple_of"],
    ),
];

/// Of Llama, beside [`EVERYWHERE`].
const LLAMA: [Ignored; 1] = [(
    "chooses layers with a window, where a window shorter than the context is refused",
    &["max_window_layers", "use_sliding_window"],
)];

/// Of Mistral.
const MISTRAL: [Ignored; 1] = [(
    "chooses layers with a window, which all layers have where `sliding_window` is set",
    &["max_window_layers", "use_sliding_window"],
)];

/// Of Qwen2.
const QWEN2: [Ignored; 2] = [
    ("query, key and value have biases and the output has none, whatever is said", &["attention_bias"]),
    ("read only where `use_sliding_window` is true", &["max_window_layers", "sliding_window"]),
];

/// Of Qwen3.
const QWEN3: [Ignored; 1] = [("read only where `use_sliding_window` is true", &["max_window_layers", "sliding_window"])];

/// Of GPT-2.
const GPT2: [Ignored; 3] = [
    ("the number of positions once more, which nothing reads", &["n_ctx"]),
    ("computes the same in another order, for half precision", &["reorder_and_upcast_attn"]),
    (
        "belongs to a head that sums a text up",
        &[
            "predict_special_tokens",
            "summary_activation",
            "summary_first_dropout",
            "summary_last_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ],
    ),
];

/// True for keys that change no logits of this family, whatever their value.
pub(super) fn is_ignored(family: Family, key: &str) -> bool {
    own(family).iter().chain(&EVERYWHERE).any(|(_, keys)| keys.contains(&key))
}

fn own(family: Family) -> &'static [Ignored] {
    match family {
        Family::Llama => &LLAMA,
        Family::Mistral => &MISTRAL,
        Family::Qwen2 => &QWEN2,
        Family::Qwen3 => &QWEN3,
        Family::Gpt2 => &GPT2,
    }
}

/// True for values that switch off what a key stands for, so that an unknown key with one of them changes nothing.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.is_empty(),
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_stands_in_one_list_of_a_family_and_has_a_reason() {
        for family in Family::ALL {
            let mut keys = BTreeSet::new();
            for (reason, ignored) in own(family).iter().chain(&EVERYWHERE) {
                assert!(!reason.is_empty());
                for key in *ignored {
                    assert!(keys.insert(key), "{family:?} {key}");
                }
            }
        }
    }
}
