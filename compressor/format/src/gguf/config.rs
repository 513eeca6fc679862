//! What a GGUF file says about its model, in the words of a Hugging Face `config.json`.
//!
//! A key of the architecture that stands in no list below may change what the model computes, so it is refused by name.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; defaults are llama.cpp's.

use serde_json::{Map, Value, json};

use super::GgufFile;
use crate::{Error, Result};

/// An architecture that a configuration can be made for: its name in GGUF, then in Transformers.
const ARCHITECTURES: [(&str, &str); 4] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("gpt2", "GPT2LMHeadModel")];

/// Keys that are understood, after `llama.`, `qwen2.` or `qwen3.`.
const ROTARY_KEYS: [&str; 20] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
];

/// Keys that are understood after `gpt2.`.
const GPT2_KEYS: [&str; 8] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_epsilon",
    "vocab_size",
];

/// `rope.freq_base` where it is missing.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// The one known `tensor_data_layout`: rotary pairs side by side, which every Llama file has.
const INTERLEAVED_ROTARY: &str = "Meta AI original pth";

impl GgufFile {
    /// The value of `general.architecture`: `llama` (which Mistral's files say too), `qwen2`, `qwen3` or `gpt2`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is missing, [`Error::Unsupported`] when it is another.
    pub fn architecture(&self) -> Result<&'static str> {
        let found = self.text("general.architecture")?.ok_or_else(|| self.malformed("there is no `general.architecture`"))?;
        match ARCHITECTURES.iter().find(|(name, _)| *name == found) {
            Some((name, _)) => Ok(name),
            None => {
                let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
                Err(self.unsupported(format!("the architecture `{found}` can't be read; these can: {known}")))
            }
        }
    }

    /// The model's configuration, with Transformers' keys.
    ///
    /// `vocab_size` is the number of rows of `token_embd.weight`; embeddings are tied when there is no `output.weight`, or when it is
    /// the same bytes again. Linear rotary scaling stands in `rope_parameters` and, for older readers, in `rope_scaling`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a key is missing or contradicts the tensors, [`Error::Unsupported`] for another architecture, for
    /// experts, for rotary scaling other than linear, and for a key of the architecture that is not understood.
    pub fn config(&self) -> Result<Value> {
        let architecture = self.architecture()?;
        let keys = Keys { file: self, architecture };
        match architecture {
            "gpt2" => keys.gpt2(),
            _ => keys.rotary(),
        }
    }
}

/// The keys of one architecture in a file.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
}

impl Keys<'_> {
    /// Llama, Qwen2 and Qwen3.
    fn rotary(&self) -> Result<Value> {
        self.refuse_unknown(&ROTARY_KEYS)?;
        if self.file.unsigned(&self.key("expert_count"))?.unwrap_or(0) > 0 {
            return Err(self
                .file
                .unsupported(format!("`{}` is above 0: mixtures of experts can't be read", self.key("expert_count"))));
        }
        if let Some(layout) = self.file.text(&self.key("tensor_data_layout"))?.filter(|&layout| layout != INTERLEAVED_ROTARY) {
            return Err(self.file.unsupported(format!("`{}` is `{layout}`, which is unknown", self.key("tensor_data_layout"))));
        }
        let (vocab_size, hidden_size) = self.embedding()?;
        let heads = self.count("attention.head_count")?;
        let kv_heads = self.count_or("attention.head_count_kv", heads)?;
        let head_dim = self.head_dim(hidden_size, heads)?;

        let mut config = self.common(vocab_size)?;
        config.insert("hidden_size".into(), hidden_size.into());
        config.insert("num_hidden_layers".into(), self.layers()?.into());
        config.insert("num_attention_heads".into(), heads.into());
        config.insert("num_key_value_heads".into(), kv_heads.into());
        config.insert("head_dim".into(), head_dim.into());
        config.insert("intermediate_size".into(), self.count("feed_forward_length")?.into());
        config.insert("hidden_act".into(), "silu".into());
        config.insert("rms_norm_eps".into(), self.float("attention.layer_norm_rms_epsilon")?.into());
        config.insert("max_position_embeddings".into(), self.count("context_length")?.into());
        config.insert("attention_bias".into(), self.file.tensor("blk.0.attn_q.bias").is_some().into());
        if self.architecture == "llama" {
            config.insert("mlp_bias".into(), self.file.tensor("blk.0.ffn_up.bias").is_some().into());
        } else {
            config.insert("use_sliding_window".into(), false.into());
        }
        self.rope(&mut config)?;
        Ok(config.into())
    }

    fn gpt2(&self) -> Result<Value> {
        self.refuse_unknown(&GPT2_KEYS)?;
        let (vocab_size, hidden_size) = self.embedding()?;
        let heads = self.count("attention.head_count")?;
        let kv_heads = self.count_or("attention.head_count_kv", heads)?;
        if hidden_size % heads != 0 || kv_heads != heads {
            return Err(self
                .file
                .malformed(format!("{heads} heads and {kv_heads} key/value heads do not share a width of {hidden_size}")));
        }
        let mut config = self.common(vocab_size)?;
        config.insert("n_embd".into(), hidden_size.into());
        config.insert("n_layer".into(), self.layers()?.into());
        config.insert("n_head".into(), heads.into());
        config.insert("n_positions".into(), self.count("context_length")?.into());
        config.insert("n_inner".into(), self.count("feed_forward_length")?.into());
        config.insert("layer_norm_epsilon".into(), self.float("attention.layer_norm_epsilon")?.into());
        config.insert("activation_function".into(), "gelu_new".into());
        Ok(config.into())
    }

    /// The keys that every family has.
    fn common(&self, vocab_size: u64) -> Result<Map<String, Value>> {
        let (_, class) = ARCHITECTURES.iter().find(|(name, _)| *name == self.architecture).expect("it came from this list");
        // Files without such a token write the largest u32.
        let token = |name: &str| -> Result<Value> {
            let id = self.file.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
            Ok(id.filter(|&id| id < vocab_size).map_or(Value::Null, Value::from))
        };
        let config = json!({
            "model_type": self.architecture,
            "architectures": [class],
            "vocab_size": vocab_size,
            "tie_word_embeddings": self.tied(),
            "bos_token_id": token("bos")?,
            "eos_token_id": token("eos")?,
            "pad_token_id": token("padding")?,
        });
        let Value::Object(config) = config else { unreachable!("`json!` of braces is an object") };
        Ok(config)
    }

    fn tied(&self) -> bool {
        match (self.file.tensor("token_embd.weight"), self.file.tensor("output.weight")) {
            (Some(embedding), Some(output)) => {
                embedding.shape == output.shape && embedding.kind == output.kind && *embedding.bytes == *output.bytes
            }
            _ => true,
        }
    }

    /// Rows and columns of the embedding, the columns checked against `embedding_length`.
    fn embedding(&self) -> Result<(u64, u64)> {
        let hidden_size = self.count("embedding_length")?;
        match self.file.tensor("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
            Some(&[rows, columns]) if columns as u64 == hidden_size => Ok((rows as u64, hidden_size)),
            Some(shape) => Err(self.file.malformed(format!(
                "tensor `token_embd.weight` has shape {shape:?}, and `{}` is {hidden_size}",
                self.key("embedding_length")
            ))),
            None => Err(self.file.malformed("there is no tensor `token_embd.weight`")),
        }
    }

    fn layers(&self) -> Result<u64> {
        let (layers, tensors) = (self.count("block_count")?, self.file.tensors().len());
        if layers > tensors as u64 {
            return Err(self
                .file
                .malformed(format!("`{}` is {layers}, and there are {tensors} tensors", self.key("block_count"))));
        }
        Ok(layers)
    }

    fn head_dim(&self, hidden_size: u64, heads: u64) -> Result<u64> {
        let head_dim = match self.file.unsigned(&self.key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(self.file.malformed(format!("{heads} heads do not divide the width {hidden_size}"))),
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            let found = self.count_or(key, head_dim)?;
            if found != head_dim {
                return Err(self
                    .file
                    .unsupported(format!("`{}` is {found}, only the size of a head, {head_dim}, can be read", self.key(key))));
            }
        }
        Ok(head_dim)
    }

    fn rope(&self, config: &mut Map<String, Value>) -> Result<()> {
        if let Some(tensor) = self.file.tensors().find(|tensor| tensor.name.starts_with("rope_")) {
            return Err(self.file.unsupported(format!(
                "tensor `{}` scales rotary frequencies one by one (Llama 3.1, Phi-3), which can't be read",
                tensor.name
            )));
        }
        let factor = match self.file.text(&self.key("rope.scaling.type"))? {
            Some("linear") => Some(self.float("rope.scaling.factor")?),
            None | Some("none") => self.file.float(&self.key("rope.scale_linear"))?,
            Some(other) => {
                let key = self.key("rope.scaling.type");
                return Err(self.file.unsupported(format!("`{key}` is `{other}`; these can be read: none, linear")));
            }
        };
        if let Some(factor) = factor.filter(|&factor| factor <= 0.0) {
            return Err(self.file.malformed(format!("the rotary scaling factor is {factor}, expected a number above 0")));
        }
        let theta = self.file.float(&self.key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA);
        match factor.filter(|&factor| factor != 1.0) {
            None => config.insert("rope_parameters".into(), json!({ "rope_theta": theta, "rope_type": "default" })),
            Some(factor) => {
                config.insert("rope_scaling".into(), json!({ "rope_type": "linear", "factor": factor }));
                config.insert("rope_parameters".into(), json!({ "rope_theta": theta, "rope_type": "linear", "factor": factor }))
            }
        };
        config.insert("rope_theta".into(), theta.into());
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A whole number above 0.
    fn count(&self, name: &str) -> Result<u64> {
        let key = self.key(name);
        if let Some(super::Value::List(_)) = self.file.metadata.get(&key) {
            return Err(self.file.unsupported(format!("`{key}` is a list: sizes that differ between layers can't be read")));
        }
        match self.file.unsigned(&key)? {
            None => Err(self.file.malformed(format!("there is no `{key}`"))),
            Some(0) => Err(self.file.malformed(format!("`{key}` is 0"))),
            Some(count) => Ok(count),
        }
    }

    fn count_or(&self, name: &str, missing: u64) -> Result<u64> {
        if self.file.metadata.contains_key(&self.key(name)) { self.count(name) } else { Ok(missing) }
    }

    fn float(&self, name: &str) -> Result<f64> {
        self.file.float(&self.key(name))?.ok_or_else(|| self.file.malformed(format!("there is no `{}`", self.key(name))))
    }

    fn refuse_unknown(&self, known: &[&str]) -> Result<(), Error> {
        let unknown = self.file.metadata.keys().find(|key| {
            key.strip_prefix(self.architecture).and_then(|key| key.strip_prefix('.')).is_some_and(|name| !known.contains(&name))
        });
        match unknown {
            None => Ok(()),
            Some(key) => Err(self
                .file
                .unsupported(format!("`{key}` is not understood, and without it the model might compute something else"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::sample::{Sample, read};
    use super::*;

    fn config(sample: Sample) -> Value {
        read(&sample.bytes()).unwrap().config().unwrap()
    }

    fn refusal(sample: Sample) -> String {
        read(&sample.bytes()).unwrap().config().unwrap_err().to_string()
    }

    #[test]
    fn a_llama_file_gives_the_keys_of_transformers() {
        let expected = json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 5,
            "tie_word_embeddings": true,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": null,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "intermediate_size": 12,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            "attention_bias": false,
            "mlp_bias": false,
            "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
            "rope_theta": 10000.0,
        });
        assert_eq!(config(Sample::llama()), expected);
    }

    #[test]
    fn a_gpt2_file_gives_gpt2_keys() {
        let expected = json!({
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": 5,
            "tie_word_embeddings": true,
            "bos_token_id": null,
            "eos_token_id": null,
            "pad_token_id": null,
            "n_embd": 4,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 6,
            "n_inner": 16,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
        });
        assert_eq!(config(Sample::gpt2()), expected);
    }

    #[test]
    fn the_families_read_it() {
        for sample in [Sample::llama(), Sample::gpt2(), qwen3()] {
            let architecture = crate::Family::read(&config(sample), "sample.gguf").unwrap();
            assert_eq!((architecture.layers.len(), architecture.layers[0].heads, architecture.vocab_size), (1, 2, 5));
        }
    }

    fn qwen3() -> Sample {
        Sample::default()
            .text("general.architecture", "qwen3")
            .u32("qwen3.block_count", 1)
            .u32("qwen3.context_length", 64)
            .u32("qwen3.embedding_length", 8)
            .u32("qwen3.feed_forward_length", 12)
            .u32("qwen3.attention.head_count", 2)
            .u32("qwen3.attention.key_length", 16)
            .u32("qwen3.attention.value_length", 16)
            .f32("qwen3.rope.freq_base", 1e6)
            .f32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
            .counting("token_embd.weight", &[5, 8])
    }

    #[test]
    fn qwen3_stores_its_head_dim() {
        let config = config(qwen3());
        assert_eq!((&config["model_type"], &config["head_dim"]), (&json!("qwen3"), &json!(16)));
        assert_eq!((&config["num_key_value_heads"], &config["rope_theta"]), (&json!(2), &json!(1e6)));
        assert_eq!((&config["use_sliding_window"], &config["rms_norm_eps"]), (&json!(false), &json!(1e-6)));
    }

    #[test]
    fn an_output_tensor_unties_unless_it_is_the_embedding_again() {
        assert_eq!(config(Sample::llama().counting("output.weight", &[5, 8]))["tie_word_embeddings"], true);
        let other = Sample::llama().tensor("output.weight", &[8, 5], 0, &[0; 160]);
        assert_eq!(config(other)["tie_word_embeddings"], false);
    }

    #[test]
    fn linear_rotary_scaling_is_translated_and_others_are_refused() {
        let linear = config(Sample::llama().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0));
        assert_eq!(linear["rope_parameters"], json!({ "rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0 }));
        assert_eq!(linear["rope_scaling"], json!({ "rope_type": "linear", "factor": 4.0 }));
        assert_eq!(
            refusal(Sample::llama().text("llama.rope.scaling.type", "yarn")),
            "sample.gguf: `llama.rope.scaling.type` is `yarn`; these can be read: none, linear"
        );
        assert_eq!(
            refusal(Sample::llama().counting("rope_freqs.weight", &[2])),
            "sample.gguf: tensor `rope_freqs.weight` scales rotary frequencies one by one (Llama 3.1, Phi-3), which can't be read"
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        assert_eq!(
            refusal(Sample::default().text("general.architecture", "mamba")),
            "sample.gguf: the architecture `mamba` can't be read; these can: llama, qwen2, qwen3, gpt2"
        );
        assert_eq!(refusal(Sample::default()), "sample.gguf: there is no `general.architecture`");
        assert_eq!(
            refusal(Sample::llama().u32("llama.attention.sliding_window", 4096)),
            "sample.gguf: `llama.attention.sliding_window` is not understood, and without it the model might compute something else"
        );
        assert_eq!(
            refusal(Sample::llama().u32("llama.expert_count", 8)),
            "sample.gguf: `llama.expert_count` is above 0: mixtures of experts can't be read"
        );
        assert_eq!(
            refusal(Sample::llama().without("llama.rope.dimension_count").u32("llama.rope.dimension_count", 2)),
            "sample.gguf: `llama.rope.dimension_count` is 2, only the size of a head, 4, can be read"
        );
        assert_eq!(
            refusal(Sample::llama().without("llama.attention.head_count_kv").integers("llama.attention.head_count_kv", &[1])),
            "sample.gguf: `llama.attention.head_count_kv` is a list: sizes that differ between layers can't be read"
        );
    }

    #[test]
    fn keys_that_contradict_the_tensors_are_refused() {
        assert_eq!(refusal(Sample::llama().without("llama.block_count")), "sample.gguf: there is no `llama.block_count`");
        assert_eq!(
            refusal(Sample::llama().without("llama.block_count").u32("llama.block_count", 9)),
            "sample.gguf: `llama.block_count` is 9, and there are 4 tensors"
        );
        assert_eq!(
            refusal(Sample::llama().without("llama.attention.head_count").u32("llama.attention.head_count", 3)),
            "sample.gguf: 3 heads do not divide the width 8"
        );
        assert_eq!(
            refusal(Sample::llama().without("llama.attention.head_count").u32("llama.attention.head_count", 0)),
            "sample.gguf: `llama.attention.head_count` is 0"
        );
        assert_eq!(
            refusal(Sample::llama().without("llama.embedding_length").u32("llama.embedding_length", 16)),
            "sample.gguf: tensor `token_embd.weight` has shape [5, 8], and `llama.embedding_length` is 16"
        );
    }
}
