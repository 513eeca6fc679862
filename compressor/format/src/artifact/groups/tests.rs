//! Tests of what a `quantization_config` says; against compressed-tensors itself, key by key, in `engine/tests/quantization_config.rs`.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn config() -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "mixed-precision",
        "ignore": ["lm_head", "re:.*layers\\.1\\..*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "int-quantized",
                "weights": {"num_bits": 8, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "symmetric": true, "strategy": "token", "dynamic": true},
            },
            "group_1": {
                "targets": ["re:.*mlp.*"],
                "weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": false, "actorder": "weight"},
            },
            "group_2": {"targets": ["layers.0.mlp.down_proj"], "weights": {"num_bits": 4, "type": "codebook"}},
        },
    })
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut config = config();
    change(&mut config);
    Groups::read(&config, "config.json").err().unwrap().to_string().strip_prefix("config.json: ").unwrap().to_owned()
}

#[test]
fn a_name_goes_before_a_pattern_and_a_pattern_before_a_class() {
    let groups = Groups::read(&config(), "config.json").unwrap();
    let of = |module: &str, class: &str| {
        groups.of_module(module, class, "config.json").unwrap().map(|group| (group.weights, group.input))
    };
    let int8 = Some(Weights::Integers { bits: 8, is_packed: false, group_size: None, symmetric: true });
    let int4 = Some(Weights::Integers { bits: 4, is_packed: true, group_size: Some(32), symmetric: false });
    let codebooks = Some(Weights::Codebooks(Codebooks { bits: 4, rows: None }));
    assert_eq!(of("layers.0.self_attn.q_proj", "Linear"), Some((int8, Input::PerToken)));
    assert_eq!(of("layers.0.mlp.up_proj", "Linear"), Some((int4, Input::Real)));
    assert_eq!(of("layers.0.mlp.down_proj", "Linear"), Some((codebooks, Input::Real)));
    for (module, class) in [("lm_head", "Linear"), ("layers.1.mlp.up_proj", "Linear"), ("embed_tokens", "Embedding")] {
        assert_eq!(of(module, class), None, "{module}");
    }
}

#[test]
fn what_is_not_run_here_is_refused_by_name() {
    let top = |key: &str, value: Value| refused(|config| config[key] = value);
    assert_eq!(
        top("kv_cache_scheme", json!({"num_bits": 8, "dynamic": true})),
        "`quantization_config.kv_cache_scheme`: a rounded KV cache of the model's own is not run here"
    );
    assert_eq!(
        top("transform_config", json!({"config_groups": {}})),
        "`quantization_config.transform_config`: transforms of activations are not run here"
    );
    assert_eq!(
        top("sparsity_config", json!({"format": "sparse-24-bitmask"})),
        "`quantization_config.sparsity_config`: sparse weights are read in format \"dense\" alone"
    );
    assert_eq!(
        top("format", json!("marlin-24")),
        "`quantization_config.format` is \"marlin-24\"; \"pack-quantized\", \"int-quantized\" and \"codebook-packed\" are read"
    );
    assert_eq!(
        top("quantization_status", json!("frozen")),
        "`quantization_config.quantization_status` is \"frozen\"; only weights that are \"compressed\" are read (early files of \
         llm-compressor have integers and say \"frozen\": change that word)"
    );
    assert_eq!(top("modules_to_save", json!([])), "`quantization_config.modules_to_save`: this key is not known here");
    assert_eq!(top("ignore", json!("lm_head")), "`quantization_config.ignore` is no list of texts");
    assert_eq!(
        top("ignore", json!(["re:(?i)lm_head"])),
        "`quantization_config.ignore`: the pattern `re:(?i)lm_head` has `(?i`; write names instead"
    );
    assert_eq!(
        top("config_groups", json!({"W8A8": ["Linear"]})),
        "`config_groups.W8A8` names a preset, and presets are not known here"
    );
    let group = |key: &str, value: Value| refused(|config| config["config_groups"]["group_1"][key] = value);
    assert_eq!(
        group("output_activations", json!({"num_bits": 8, "dynamic": true})),
        "`config_groups.group_1.output_activations`: rounded outputs are not run here"
    );
    assert_eq!(
        group("format", json!("float-quantized")),
        "`config_groups.group_1.format` is \"float-quantized\"; \"pack-quantized\", \"int-quantized\" and \"codebook-packed\" are read"
    );
    assert_eq!(
        refused(|config| {
            config["config_groups"]["group_1"]["input_activations"] =
                config["config_groups"]["group_0"]["input_activations"].clone();
            config["config_groups"]["group_1"]["weights"] = Value::Null;
        }),
        "`config_groups.group_1.input_activations`: inputs are rounded only where the weights are integers"
    );
    assert_eq!(
        refused(|config| config["config_groups"]["group_2"]["targets"] = json!(["Linear"])),
        "`config_groups.group_0` and `config_groups.group_2` say different things of the target `Linear`"
    );
    let weights = |key: &str, value: Value| refused(|config| config["config_groups"]["group_1"]["weights"][key] = value);
    const PLACE: &str = "`config_groups.group_1.weights";
    for (key, value, said) in [
        ("type", json!("float"), ".type` is \"float\"; weights are read as \"int\" and \"codebook\""),
        ("num_bits", json!(7), ".num_bits` is 7; the engine runs 2, 3, 4, 5, 6 and 8"),
        ("num_bits", json!(9), ".num_bits` is 9; the engine runs 2, 3, 4, 5, 6 and 8"),
        ("num_bits", json!(null), ".num_bits` is null; leave the key out, or give it a value"),
        ("symmetric", json!("yes"), ".symmetric` is \"yes\"; true and false are known"),
        ("dynamic", json!("local"), ".dynamic` is \"local\"; true and false are known"),
        ("dynamic", json!(true), ".dynamic`: scales of weights are stored, not found as the model runs"),
        ("actorder", json!("group"), ".actorder` is \"group\"; columns are read in their own order, \"weight\" or \"static\""),
        ("block_structure", json!([8, 8]), ".block_structure`: blocks of rows and columns are not read"),
        ("strategy", json!("tensor"), ".strategy` is \"tensor\"; scales are read by \"group\" and by \"channel\""),
        ("strategy", json!("channel"), "`: group_size 32 does not go with strategy \"channel\""),
        ("group_size", json!(0), "`: group_size 0 does not go with strategy \"group\""),
        ("g_idx", json!(true), ".g_idx`: this key is not known here"),
    ] {
        assert_eq!(weights(key, value), format!("{PLACE}{said}"), "{key}");
    }
}

#[test]
fn other_methods_are_refused_by_what_they_are() {
    for (method, by) in
        [("gptq", " (AutoGPTQ, GPTQModel)"), ("awq", " (AutoAWQ)"), ("fp8", " (floats of 4 or 8 bits)"), ("hqq", "")]
    {
        assert_eq!(
            refused(|config| config["quant_method"] = method.into()),
            format!(
                "quant_method \"{method}\"{by} is not read; known is compressed-tensors. Open the model with dense weights that it was \
                 made from, and quantize that"
            )
        );
    }
    let older = Groups::read(&json!({"load_in_4bit": true}), "config.json").err().unwrap().to_string();
    assert!(older.starts_with("config.json: quant_method \"bitsandbytes\" is not read"), "{older}");
}
