//! What a GGUF file says about its model, in the words of a Hugging Face `config.json`.
//!
//! Which keys are read at all is in `keys`; defaults are llama.cpp's.

use serde_json::{Map, Value, json};

use super::{GgufFile, rotary};
use crate::families::rotary_keys;
use crate::{Result, RotaryScaling};

/// An architecture that a configuration can be made for: its name in GGUF, then in Transformers.
const ARCHITECTURES: [(&str, &str); 4] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM"), ("gpt2", "GPT2LMHeadModel")];

/// `rope.freq_base` where it is missing.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// The version of the blocks' layout that is read, `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u64 = 2;
/// How far `attention.scale` may lie from `1/√head_dim`, relatively: it is written as f32.
const SCALE_ROUNDING: f64 = 1e-6;
/// The one known `tensor_data_layout`: rotary pairs side by side, which every Llama file has.
const INTERLEAVED_ROTARY: &str = "Meta AI original pth";

impl GgufFile {
    /// The value of `general.architecture`: `llama` (which Mistral's files say too), `qwen2`, `qwen3` or `gpt2`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is missing, [`Error::Unsupported`] when it is another.
    pub fn architecture(&self) -> Result<&'static str> {
        match self.text("general.type")? {
            None | Some("model") => {}
            Some(other) => {
                let what = match other {
                    "adapter" => "a LoRA adapter for a model",
                    "mmproj" => "a projector of images for a model",
                    "imatrix" => "statistics of a model's activations",
                    _ => "something else than a model",
                };
                return Err(self.unsupported(format!("`general.type` is `{}`: the file holds {what}", other.escape_debug())));
            }
        }
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
    /// the same bytes again. Rotary scaling stands in `rope_parameters` and, for older readers, in `rope_scaling`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a key is missing or contradicts the tensors, [`Error::Unsupported`] for another architecture, for
    /// experts, for YaRN and LongRoPE, and for every other key that may change what the model computes and is not understood.
    pub fn config(&self) -> Result<Value> {
        let architecture = self.architecture()?;
        self.refuse_unknown_keys(architecture)?;
        let version = self.unsigned("general.quantization_version")?.unwrap_or(QUANTIZATION_VERSION);
        if version != QUANTIZATION_VERSION && self.tensors().any(|tensor| tensor.kind.block_elements() > 1) {
            return Err(self.unsupported(format!(
                "`general.quantization_version` is {version}, whose blocks are laid out in another way; only \
                 {QUANTIZATION_VERSION} can be read"
            )));
        }
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
        // llama.cpp takes each bias where it is; one that is left out is read as zeros.
        let layers = self.layers()?;
        if self.architecture != "qwen2" {
            let has = self.file.has_bias(layers, &["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"]);
            config.insert("attention_bias".into(), has.into());
        }
        if self.architecture == "llama" {
            config.insert("mlp_bias".into(), self.file.has_bias(layers, &["ffn_gate", "ffn_up", "ffn_down"]).into());
        } else {
            config.insert("use_sliding_window".into(), false.into());
        }
        self.rope(&mut config, head_dim)?;
        Ok(config.into())
    }

    fn gpt2(&self) -> Result<Value> {
        let (vocab_size, hidden_size) = self.embedding()?;
        let heads = self.count("attention.head_count")?;
        let kv_heads = self.count_or("attention.head_count_kv", heads)?;
        if hidden_size % heads != 0 || kv_heads != heads {
            return Err(self
                .file
                .malformed(format!("{heads} heads and {kv_heads} key/value heads do not share a width of {hidden_size}")));
        }
        self.head_dim(hidden_size, heads)?;
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
        let token = |name: &str| -> Result<Value> {
            let id = self.file.token_id(&format!("tokenizer.ggml.{name}_token_id"))?;
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

    /// Rows and columns of the embedding, checked against what the keys say of them.
    fn embedding(&self) -> Result<(u64, u64)> {
        if self.file.tensors.is_empty() {
            return Err(self.file.unsupported("holds no tensors, at most a vocabulary: it is no model"));
        }
        let (rows, hidden_size) = self.embedding_shape()?;
        for (key, expected) in [("vocab_size", rows), ("embedding_length_out", hidden_size)] {
            let found = self.count_or(key, expected)?;
            if found != expected {
                let key = self.key(key);
                return Err(self
                    .file
                    .malformed(format!("`{key}` is {found}, and tensor `token_embd.weight` has shape [{rows}, {hidden_size}]")));
            }
        }
        let tokens = self.file.list("tokenizer.ggml.tokens")?.map_or(0, super::List::len);
        if tokens as u64 > rows {
            return Err(self.file.malformed(format!(
                "`tokenizer.ggml.tokens` has {tokens} tokens, and tensor `token_embd.weight` has rows for {rows}"
            )));
        }
        Ok((rows, hidden_size))
    }

    fn embedding_shape(&self) -> Result<(u64, u64)> {
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
        let usual = 1.0 / (head_dim as f64).sqrt();
        let scale = self.file.float(&self.key("attention.scale"))?.filter(|&scale| scale != 0.0);
        if let Some(scale) = scale.filter(|scale| (scale / usual - 1.0).abs() > SCALE_ROUNDING) {
            let key = self.key("attention.scale");
            return Err(self.file.unsupported(format!("`{key}` is {scale}, only 1/√{head_dim}, {usual}, can be read")));
        }
        self.refuse_window()?;
        self.refuse_layout()?;
        Ok(head_dim)
    }

    /// A window that reaches over the whole context is none.
    fn refuse_window(&self) -> Result<()> {
        let (key, context) = (self.key("attention.sliding_window"), self.count("context_length")?);
        match self.file.unsigned(&key)?.filter(|&window| window > 0 && window < context) {
            None => Ok(()),
            Some(window) => Err(self.file.unsupported(format!(
                "`{key}` is {window}, and the context has {context} tokens: attention through a window can't be read"
            ))),
        }
    }

    fn refuse_layout(&self) -> Result<()> {
        let key = self.key("tensor_data_layout");
        match self.file.text(&key)?.filter(|&layout| layout != INTERLEAVED_ROTARY) {
            None => Ok(()),
            Some(layout) => Err(self.file.unsupported(format!("`{key}` is `{}`, which is unknown", layout.escape_debug()))),
        }
    }

    fn rope(&self, config: &mut Map<String, Value>, head_dim: u64) -> Result<()> {
        let theta = self.file.float(&self.key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA);
        if theta <= 0.0 {
            return Err(self.file.malformed(format!("`{}` is {theta}, expected a number above 0", self.key("rope.freq_base"))));
        }
        let factor = self.linear_factor()?;
        let scaling = match self.divisors(head_dim)? {
            Some(mut divisors) => {
                divisors.iter_mut().for_each(|divisor| *divisor *= factor as f32);
                rotary::scaling(theta, divisors)
            }
            None if factor == 1.0 => RotaryScaling::None,
            None => RotaryScaling::Linear { factor },
        };
        let (old, new) = rotary_keys(theta, &scaling, self.count("context_length")?);
        if !old.is_null() {
            config.insert("rope_scaling".into(), old);
        }
        config.insert("rope_parameters".into(), new);
        config.insert("rope_theta".into(), theta.into());
        Ok(())
    }

    /// What every frequency is divided by. Without a type the scaling is linear, and a factor of 0 is none, as in llama.cpp.
    fn linear_factor(&self) -> Result<f64> {
        let key = self.key("rope.scaling.type");
        match self.file.text(&key)?.unwrap_or("linear") {
            "none" => Ok(1.0),
            "linear" => {
                let factor = self.file.float(&self.key("rope.scaling.factor"))?;
                let factor = factor.map_or_else(|| self.file.float(&self.key("rope.scale_linear")), |factor| Ok(Some(factor)))?;
                match factor.filter(|&factor| factor != 0.0).unwrap_or(1.0) {
                    factor if factor > 0.0 => Ok(factor),
                    factor => {
                        Err(self.file.malformed(format!("the rotary scaling factor is {factor}, expected a number above 0")))
                    }
                }
            }
            other => {
                let other = other.escape_debug();
                Err(self.file.unsupported(format!("`{key}` is `{other}`; these can be read: none, linear")))
            }
        }
    }

    /// The divisors of the frequencies; llama.cpp reads them for its Llama alone.
    fn divisors(&self, head_dim: u64) -> Result<Option<Vec<f32>>> {
        match self.architecture {
            "llama" => self.file.frequency_divisors((head_dim / 2) as usize),
            _ => Ok(None),
        }
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
        for kind in ["yarn", "longrope"] {
            assert_eq!(
                refusal(Sample::llama().text("llama.rope.scaling.type", kind)),
                format!("sample.gguf: `llama.rope.scaling.type` is `{kind}`; these can be read: none, linear")
            );
        }
        assert_eq!(
            refusal(Sample::llama().f32("llama.rope.scaling.factor", -4.0)),
            "sample.gguf: the rotary scaling factor is -4, expected a number above 0"
        );
    }

    /// As llama.cpp's `load_hparams` and `llama_context` have it.
    #[test]
    fn a_factor_is_linear_without_a_type_and_nothing_with_none() {
        let factor = |sample: Sample| config(sample)["rope_parameters"]["factor"].clone();
        let (new, old) = ("llama.rope.scaling.factor", "llama.rope.scale_linear");
        assert_eq!(factor(Sample::llama().f32(new, 2.0)), 2.0);
        assert_eq!(factor(Sample::llama().f32(old, 2.0)), 2.0);
        assert_eq!(factor(Sample::llama().f32(new, 2.0).f32(old, 8.0)), 2.0, "the new key is looked at first");
        let none = || Sample::llama().text("llama.rope.scaling.type", "none");
        let linear = || Sample::llama().text("llama.rope.scaling.type", "linear");
        let plain = [none().f32(new, 2.0), none().f32(old, 2.0), linear(), linear().f32(new, 0.0), Sample::llama().f32(new, 1.0)];
        for sample in plain {
            assert_eq!(config(sample), config(Sample::llama()));
        }
    }

    #[test]
    fn divisors_of_frequencies_become_llama3_or_stay_as_they_are() {
        let divided = |divisors: &[f32], sample: Sample| {
            let bytes: Vec<u8> = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
            sample.tensor("rope_freqs.weight", &[divisors.len() as u64], 0, &bytes)
        };
        let read = |divisors: &[f32]| config(divided(divisors, Sample::llama()))["rope_parameters"].clone();
        assert_eq!(read(&[1.0, 1.0])["rope_type"], "default");
        assert_eq!(read(&[4.0, 4.0]), json!({ "rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0 }));
        // Wavelength 628 of pair 1 lies between 1024 / 4 and 1024 / 1.
        let smooth = (1024.0 / (2.0 * std::f64::consts::PI * 100.0) - 1.0) / 3.0;
        let llama3 = read(&[1.0, (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32]);
        assert_eq!((&llama3["rope_type"], &llama3["high_freq_factor"]), (&json!("llama3"), &json!(4.0)));
        let own = json!({
            "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "short_factor": [3.0, 2.0], "long_factor": [3.0, 2.0],
            "original_max_position_embeddings": 64, "rope_theta": 10000.0,
        });
        assert_eq!(read(&[3.0, 2.0]), own);
        let both = config(divided(&[3.0, 2.0], Sample::llama().f32("llama.rope.scaling.factor", 2.0)));
        assert_eq!(both["rope_parameters"]["short_factor"], json!([6.0, 4.0]), "a linear factor divides as well");
        for sample in [divided(&[1.0, 8.0], Sample::llama()), divided(&[3.0, 2.0], Sample::llama())] {
            crate::Family::read(&config(sample), "sample.gguf").unwrap();
        }

        assert_eq!(
            refusal(divided(&[1.0, 0.0], Sample::llama())),
            "sample.gguf: tensor `rope_freqs.weight` holds 0, expected numbers above 0"
        );
        assert_eq!(
            refusal(divided(&[1.0], Sample::llama())),
            "sample.gguf: tensor `rope_freqs.weight` is F32 of shape [1], expected F32 of shape [2]: half the size of a head"
        );
    }

    #[test]
    fn keys_at_values_that_change_nothing_are_read_and_at_others_refused() {
        let f32_bytes = |number: f32| number.to_le_bytes().to_vec();
        let u32_bytes = |number: u32| number.to_le_bytes().to_vec();
        let (f32s, u32s, flags) = (6, 4, 7);
        let cases = [
            (
                "logit_scale",
                f32s,
                f32_bytes(1.0),
                f32_bytes(0.5),
                "is 0.5: scaled logits can't be read, and only 0 or 1 means none",
            ),
            (
                "attention.clamp_kqv",
                f32s,
                f32_bytes(0.0),
                f32_bytes(8.0),
                "is 8: clamped queries, keys and values can't be read, and only 0 means none",
            ),
            ("expert_count", u32s, u32_bytes(0), u32_bytes(8), "is 8: mixtures of experts can't be read, and only 0 means none"),
            (
                "attention.causal",
                flags,
                vec![1],
                vec![0],
                "is false: attention to later tokens can't be read, and only true means none",
            ),
            (
                "use_parallel_residual",
                flags,
                vec![0],
                vec![1],
                "is true: attention and MLP side by side can't be read, and only false means none",
            ),
            (
                "rope.scaling.attn_factor",
                f32s,
                f32_bytes(1.0),
                f32_bytes(2.0),
                "is 2: scaled queries and keys can't be read, and only 1 means none",
            ),
            ("attention.scale", f32s, f32_bytes(0.5), f32_bytes(0.25), "is 0.25, only 1/√4, 0.5, can be read"),
            (
                "attention.sliding_window",
                u32s,
                u32_bytes(64),
                u32_bytes(63),
                "is 63, and the context has 64 tokens: attention through a window can't be read",
            ),
            ("vocab_size", u32s, u32_bytes(5), u32_bytes(6), "is 6, and tensor `token_embd.weight` has shape [5, 8]"),
            (
                "pooling_type",
                u32s,
                u32_bytes(0),
                u32_bytes(3),
                "is 3: embeddings of whole texts can't be read, and only 0 means none",
            ),
        ];
        for (key, kind, neutral, other, expected) in cases {
            let key = format!("llama.{key}");
            assert_eq!(config(Sample::llama().value(&key, kind, &neutral)), config(Sample::llama()), "{key}");
            assert_eq!(refusal(Sample::llama().value(&key, kind, &other)), format!("sample.gguf: `{key}` {expected}"));
        }
        for (key, value) in
            [("rope.scaling.original_context_length", 8), ("rope.scaling.finetuned", 1), ("expert_gating_func", 2)]
        {
            assert_eq!(config(Sample::llama().u32(&format!("llama.{key}"), value)), config(Sample::llama()), "{key}");
        }
    }

    #[test]
    fn notes_and_descriptions_are_no_part_of_the_model() {
        let described =
            Sample::llama().text("general.name", "a").f32("general.sampling.temp", 0.6).text("mradermacher.quantized_by", "b");
        assert_eq!(config(described), config(Sample::llama()));
        assert_eq!(config(Sample::llama().text("general.type", "model")), config(Sample::llama()));
        assert_eq!(
            refusal(Sample::llama().text("general.type", "adapter")),
            "sample.gguf: `general.type` is `adapter`: the file holds a LoRA adapter for a model"
        );
        assert_eq!(
            refusal(Sample::default().text("general.type", "imatrix")),
            "sample.gguf: `general.type` is `imatrix`: the file holds statistics of a model's activations"
        );
        assert_eq!(
            refusal(Sample::llama().f32("adapter.lora.alpha", 16.0)),
            "sample.gguf: `adapter.lora.alpha` belongs to a LoRA adapter, which can't be read"
        );
        let vocabulary = Sample::sentencepiece().text("general.architecture", "llama");
        assert_eq!(refusal(vocabulary), "sample.gguf: holds no tensors, at most a vocabulary: it is no model");
        let blocks = Sample::llama().u32("general.quantization_version", 1).tensor("blk.0.ffn_up.weight", &[32], 8, &[0; 34]);
        assert_eq!(
            refusal(blocks),
            "sample.gguf: `general.quantization_version` is 1, whose blocks are laid out in another way; only 2 can be read"
        );
    }

    #[test]
    fn a_bias_in_any_layer_is_one_in_all() {
        let with = |name: &str, width| config(Sample::llama().counting(name, &[width]));
        for (name, width) in [("blk.0.attn_q.bias", 8), ("blk.0.attn_v.bias", 4), ("blk.0.attn_output.bias", 8)] {
            assert_eq!(
                (&with(name, width)["attention_bias"], &with(name, width)["mlp_bias"]),
                (&json!(true), &json!(false)),
                "{name}"
            );
        }
        for (name, width) in [("blk.0.ffn_gate.bias", 12), ("blk.0.ffn_down.bias", 8)] {
            assert_eq!(
                (&with(name, width)["attention_bias"], &with(name, width)["mlp_bias"]),
                (&json!(false), &json!(true)),
                "{name}"
            );
        }
        assert_eq!(with("blk.1.attn_q.bias", 8)["attention_bias"], false, "there is one layer");
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        assert_eq!(
            refusal(Sample::default().text("general.architecture", "mamba")),
            "sample.gguf: the architecture `mamba` can't be read; these can: llama, qwen2, qwen3, gpt2"
        );
        assert_eq!(refusal(Sample::default()), "sample.gguf: there is no `general.architecture`");
        assert_eq!(
            refusal(Sample::llama().u32("llama.attention.indexer.top_k", 4096)),
            "sample.gguf: `llama.attention.indexer.top_k` is not understood, and without it the model might compute something else"
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
