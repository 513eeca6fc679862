#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::json;

use super::*;
use crate::{Positions, RotaryScaling};

fn read(config: &Value) -> Result<Architecture> {
    Family::read(config, Path::new("config.json"))
}

fn smollm2() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    })
}

#[test]
fn smollm2_has_the_published_number_of_parameters() {
    assert_eq!(read(&smollm2()).unwrap().parameters(), 134_515_008);
}

#[test]
fn gpt2_has_the_published_number_of_parameters() {
    let config =
        json!({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024});
    assert_eq!(read(&config).unwrap().parameters(), 124_439_808);
}

#[test]
fn an_unknown_family_is_refused_with_the_known_ones() {
    let error = read(&json!({"model_type": "rwkv"})).unwrap_err();
    let expected = "config.json: model_type \"rwkv\" is not a known family; known are llama, mistral, qwen2, qwen3, gpt2";
    assert_eq!(error.to_string(), expected);
    assert_eq!(Family::ALL.len(), 5, "new family? name it here and in the README");
}

#[test]
fn contradictory_sizes_are_refused_with_both() {
    let mut config = smollm2();
    config["num_key_value_heads"] = json!(4);
    assert_eq!(
        read(&config).unwrap_err().to_string(),
        "config.json: 9 attention heads can't be shared out among 4 key/value heads"
    );
    config["num_key_value_heads"] = json!(0);
    let expected = "config.json: `num_key_value_heads` is 0, a whole number from 1 to 16777216 is needed";
    assert_eq!(read(&config).unwrap_err().to_string(), expected);
}

#[test]
fn features_that_are_not_there_are_refused_by_name() {
    let mut config = smollm2();
    config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0});
    let expected = "config.json: `rope_scaling.rope_type` is \"yarn\"; known are default, linear, llama3, longrope";
    assert_eq!(read(&config).unwrap_err().to_string(), expected);
    config = smollm2();
    config["hidden_act"] = json!("relu6");
    let expected = "config.json: `hidden_act` is \"relu6\"; known are silu, swish, gelu, gelu_new, gelu_pytorch_tanh";
    assert_eq!(read(&config).unwrap_err().to_string(), expected);
}

#[test]
fn every_family_reads_back_what_it_writes() {
    for family in Family::ALL {
        let config = match family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48
            }),
            _ => {
                let mut config = smollm2();
                config["model_type"] = json!(family.model_type());
                config["head_dim"] = json!(32);
                config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
                config["sliding_window"] = Value::Null;
                config
            }
        };
        let architecture = read(&config).unwrap();
        assert_eq!(architecture.family, family);
        let written = Family::write(&architecture, &config, Path::new("out")).unwrap();
        assert_eq!(read(&written).unwrap(), architecture, "{family:?}");
        let parts: Vec<TensorId> = Family::stored(&architecture).into_iter().flat_map(|tensor| tensor.parts).collect();
        let mut sorted = parts.clone();
        sorted.sort();
        let mut all = architecture.tensors();
        all.sort();
        assert_eq!(sorted, all, "{family:?} stores every tensor once");
    }
}

#[test]
fn transformers_4_and_5_spellings_of_rotary_scaling_read_the_same() {
    let mut old = smollm2();
    old["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
    let mut new = smollm2();
    new["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0});
    let expected = Positions::Rotary { theta: 100_000.0, scaling: RotaryScaling::Linear { factor: 4.0 } };
    assert_eq!(read(&old).unwrap().positions, expected);
    assert_eq!(read(&new).unwrap().positions, expected);
}

#[test]
fn a_llama_whose_heads_do_not_divide_its_width_is_written_as_a_mistral_which_computes_the_same() {
    let mut architecture = read(&smollm2()).unwrap();
    for layer in &mut architecture.layers {
        (layer.heads, layer.kv_heads) = (5, 1);
    }
    // Keys of a Llama that no Mistral needs stay there, and change nothing.
    let mut base = smollm2();
    base["pretraining_tp"] = json!(1);
    base["is_llama_config"] = json!(true);
    base["mlp_bias"] = json!(false);
    let written = Family::write(&architecture, &base, Path::new("out")).unwrap();
    assert_eq!((&written["model_type"], &written["architectures"]), (&json!("mistral"), &json!(["MistralForCausalLM"])));
    assert_eq!(written["sliding_window"], Value::Null);
    architecture.family = Family::Mistral;
    assert_eq!(read(&written).unwrap(), architecture);
}

#[test]
fn frequencies_divided_one_by_one_are_longrope_with_one_list() {
    let mut config = smollm2();
    let divisors: Vec<f32> = (0..32).map(|pair| 1.0 + pair as f32 / 10.0).collect();
    config["rope_scaling"] = json!({
        "rope_type": "longrope", "attention_factor": 1.0, "short_factor": divisors, "long_factor": divisors,
        "original_max_position_embeddings": 8192,
    });
    let architecture = read(&config).unwrap();
    let Positions::Rotary { scaling, .. } = &architecture.positions else { panic!("a Llama has rotary positions") };
    assert_eq!(*scaling, RotaryScaling::PerFrequency { divisors });
    let written = Family::write(&architecture, &json!({}), Path::new("config.json")).unwrap();
    assert_eq!(read(&written).unwrap(), architecture);

    let refused = |key: &str, value: Value| {
        let mut config = config.clone();
        config["rope_scaling"][key] = value;
        read(&config).unwrap_err().to_string()
    };
    let dynamic = "config.json: `rope_scaling.rope_type` is \"longrope\", which is known where `long_factor` is `short_factor` again \
                   and `attention_factor` is 1";
    assert_eq!(refused("long_factor", json!([1.0])), dynamic);
    assert_eq!(refused("attention_factor", json!(1.5)), dynamic);
    assert_eq!(refused("short_factor", json!([0.0])), "config.json: `rope_scaling.short_factor` is no list of positive numbers");
    config["rope_scaling"]["long_factor"] = json!([1.0]);
    config["rope_scaling"]["short_factor"] = json!([1.0]);
    assert_eq!(
        read(&config).unwrap_err().to_string(),
        "config.json: `short_factor` has 1 numbers, and a head has 32 frequencies"
    );
}

#[test]
fn sizes_that_no_model_has_are_refused_before_they_cost_memory() {
    let refused = |key: &str, value: Value| {
        let mut config = smollm2();
        config[key] = value;
        read(&config).unwrap_err().to_string()
    };
    assert_eq!(
        refused("num_hidden_layers", json!(16_777_216)),
        "config.json: `num_hidden_layers` is 16777216, a whole number from 1 to 4096 is needed"
    );
    assert_eq!(
        refused("head_dim", json!(16_777_216)),
        "config.json: 9 attention heads of 16777216 elements are together wider than 16777216"
    );
    assert_eq!(
        refused("hidden_size", json!(8)),
        "config.json: head_dim is missing, and a width of 8 is less than one element a head"
    );
    let scaling = |context: Value| {
        json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": context
        })
    };
    assert_eq!(
        refused("rope_scaling", scaling(json!(0.5))),
        "config.json: `rope_scaling.original_max_position_embeddings` is 0.5, a whole number from 1 to 16777216 is needed"
    );
    assert_eq!(
        refused("rope_scaling", scaling(Value::Null)),
        "config.json: `rope_scaling.original_max_position_embeddings` is null, a whole number from 1 to 16777216 is needed"
    );
}

/// What is said of SmolLM2's configuration with these keys as another family's.
fn refused(family: Family, keys: Value) -> String {
    let mut config = smollm2();
    config["model_type"] = json!(family.model_type());
    config["head_dim"] = json!(64);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    read(&config).unwrap_err().to_string()
}

#[test]
fn a_key_that_nothing_reads_is_refused_by_name_unless_it_is_off() {
    for family in [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3] {
        let name = family.model_type();
        let window = if family == Family::Mistral { json!({ "sliding_window": null }) } else { json!({}) };
        let refused = |mut keys: Value| {
            keys.as_object_mut().unwrap().extend(window.as_object().unwrap().clone());
            refused(family, keys)
        };
        assert_eq!(
            refused(json!({ "attention_multiplier": 0.5 })),
            format!(
                "config.json: `attention_multiplier` is 0.5: what it does to a {name} is not known; remove it if the model needs none of it"
            )
        );
        assert_eq!(
            refused(json!({ "attention_multiplier": null, "per_layer_config": {"0": {"intermediate_size": 8}} })),
            format!(
                "config.json: `per_layer_config` is {{\"0\":{{\"intermediate_size\":8}}}}: what it does to a {name} is not known; remove it \
                 if the model needs none of it"
            )
        );
        assert_eq!(
            refused(json!({ "is_causal": false })),
            "config.json: `is_causal` is false: tokens that see later ones are not there yet"
        );
    }
    let mut config = smollm2();
    for (key, off) in [("a", json!(null)), ("b", json!(false)), ("c", json!("")), ("d", json!([])), ("e", json!({}))] {
        config[key] = off;
    }
    assert_eq!(read(&config).unwrap(), read(&smollm2()).unwrap());
}

#[test]
fn biases_that_a_family_has_not_are_refused() {
    let expected = |key: &str, family: &str| {
        format!("config.json: `{key}` is true: what it does to a {family} is not known; remove it if the model needs none of it")
    };
    let mistral = |key: &str| refused(Family::Mistral, json!({ key: true, "sliding_window": null }));
    assert_eq!(mistral("attention_bias"), expected("attention_bias", "mistral"));
    assert_eq!(mistral("mlp_bias"), expected("mlp_bias", "mistral"));
    assert_eq!(refused(Family::Qwen2, json!({ "mlp_bias": true })), expected("mlp_bias", "qwen2"));
    assert_eq!(refused(Family::Qwen3, json!({ "mlp_bias": true })), expected("mlp_bias", "qwen3"));
}

/// The configuration of a hub's model, with what trainers add to it.
#[test]
fn keys_that_models_on_the_hub_carry_change_nothing() {
    let mut config = smollm2();
    let extra = json!({
        "_name_or_path": "x", "_attn_implementation_autoset": true, "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoConfig": "c.C"},
        "attention_dropout": 0.1, "initializer_range": 0.02, "id2label": {"0": "a"}, "label2id": {"a": 0}, "is_llama_config": true,
        "max_length": 20, "pad_token_id": -1, "pretraining_tp": 2, "rope_interleaved": false, "top_k": 50, "torch_dtype": "bfloat16",
        "transformers.js_config": {"dtype": "q4"}, "transformers_version": "4.42.3", "unsloth_fixed": true, "unsloth_version": "2024.9",
        "use_cache": true, "quantization_config": null, "tokenizer_class": "GPT2Tokenizer", "task_specific_params": {"a": 1}, "use_mrope": false,
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    assert_eq!(read(&config).unwrap(), read(&smollm2()).unwrap());
}

#[test]
fn a_window_is_refused_where_the_context_outgrows_it_and_limits_texts_where_it_fits() {
    let explained = "attention through a window is not there yet, and `max_position_embeddings` is 8192; set that to at most 4096 for \
                     shorter texts";
    assert_eq!(
        refused(Family::Mistral, json!({})),
        format!("config.json: `sliding_window` is missing, which means 4096: {explained}")
    );
    let qwen = json!({ "sliding_window": 4096, "use_sliding_window": true });
    assert_eq!(refused(Family::Qwen2, qwen.clone()), format!("config.json: `sliding_window` is 4096: {explained}"));

    let fits = |family: Family, keys: Value| {
        let mut config = smollm2();
        config["model_type"] = json!(family.model_type());
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let architecture = read(&config).unwrap();
        let written = Family::write(&architecture, &config, Path::new("out")).unwrap();
        assert_eq!(read(&written).unwrap(), architecture, "{written}");
        architecture.most_tokens()
    };
    assert_eq!(fits(Family::Mistral, json!({ "max_position_embeddings": 4096 })), Some(4096));
    assert_eq!(fits(Family::Mistral, json!({ "sliding_window": 9000 })), Some(9000));
    assert_eq!(fits(Family::Mistral, json!({ "sliding_window": null })), None);
    // Thirty layers, of which no one or the last has the window.
    assert_eq!(
        fits(Family::Qwen2, json!({ "use_sliding_window": true, "sliding_window": 8192, "max_window_layers": 29 })),
        Some(8192)
    );
    assert_eq!(fits(Family::Qwen2, json!({ "use_sliding_window": true, "sliding_window": 64, "max_window_layers": 30 })), None);
    assert_eq!(fits(Family::Qwen2, json!({ "use_sliding_window": false, "sliding_window": 64, "max_window_layers": 0 })), None);
    assert_eq!(
        refused(
            Family::Qwen2,
            json!({ "use_sliding_window": false, "sliding_window": 64, "layer_types": vec!["sliding_attention"; 30] })
        ),
        "config.json: `layer_types` names sliding_attention, and no window is set"
    );
}

#[test]
fn rope_scaling_wins_over_rope_parameters_and_one_is_written_as_both() {
    let mut config = smollm2();
    config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 5000.0 });
    config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 4.0 });
    let architecture = read(&config).unwrap();
    // The base of the frequencies stands in the object that is taken, or else outside of both.
    let expected = Positions::Rotary { theta: 100_000.0, scaling: RotaryScaling::Linear { factor: 4.0 } };
    assert_eq!(architecture.positions, expected);
    let written = Family::write(&architecture, &config, Path::new("out")).unwrap();
    assert_eq!(written["rope_scaling"], json!({ "rope_type": "linear", "factor": 4.0 }));
    assert_eq!(written["rope_parameters"], json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0 }));
    config["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0 });
    let expected = "config.json: `rope_scaling.rope_type` is \"yarn\"; known are default, linear, llama3, longrope";
    assert_eq!(read(&config).unwrap_err().to_string(), expected);
}

#[test]
fn a_rotary_embedding_that_is_only_half_understood_is_refused() {
    let of = |rope: Value| refused(Family::Llama, json!({ "rope_scaling": rope }));
    assert_eq!(
        of(json!({ "rope_type": null, "type": "linear", "factor": 2.0 })),
        "config.json: `rope_scaling.rope_type` is null; known are default, linear, llama3, longrope"
    );
    assert_eq!(
        of(json!({ "full_attention": { "rope_type": "linear" } })),
        "config.json: `rope_scaling.full_attention` is {\"rope_type\":\"linear\"}, and rope_type \"default\" has no such key; remove it"
    );
    assert_eq!(
        of(json!({ "factor": 2.0 })),
        "config.json: `rope_scaling.factor` is 2.0, and rope_type \"default\" has no such key; remove it"
    );
    assert_eq!(
        refused(Family::Llama, json!({ "partial_rotary_factor": 0.5 })),
        "config.json: `partial_rotary_factor` is 0.5: only whole heads are rotated here"
    );
}
