//! Every key of a `quantization_config` against Transformers and compressed-tensors: another value changes the logits as it does there,
//! or is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use compressor_engine::{ActivationType, Engine, Logits, Options};
use serde_json::{Map, Value};

/// Logits are of size 1 to 10, and both sides compute in f32.
const WORST_DIFFERENCE: f32 = 2e-5;
/// The largest element of a token stands at exactly 127.5 of its scale, where the last bit decides how it is rounded: one change of the
/// golden ones, at two places in the file, goes the other way.
const WORST_STEP: f32 = 3e-2;
const STEPS: usize = 2;

/// What stands for a key that is taken out.
const GONE: &str = "(no key)";

/// Changes that open.
const OPENED: usize = 219;
/// Keys whose other values are refused here, and computed with there: rounded, passed over, or taken for what they are like (`"8"`).
const REFUSED_HERE: [&str; 23] = [
    "config_groups",
    "config_groups.a_group",
    "config_groups.group_0.format",
    "config_groups.group_0.input_activations.actorder",
    "config_groups.group_0.input_activations.dynamic",
    "config_groups.group_0.input_activations.group_size",
    "config_groups.group_0.input_activations.num_bits",
    "config_groups.group_0.input_activations.scale_dtype",
    "config_groups.group_0.input_activations.strategy",
    "config_groups.group_0.input_activations.symmetric",
    "config_groups.group_0.input_activations.type",
    "config_groups.group_0.output_activations",
    "config_groups.group_0.weights.group_size",
    "config_groups.group_0.weights.num_bits",
    "config_groups.group_0.weights.strategy",
    "config_groups.group_0.weights.symmetric",
    "config_groups.group_0.weights.type",
    "config_groups.group_1",
    "format",
    "kv_cache_scheme",
    "sparsity_config",
    "transform_config",
    "unknown",
];

#[test]
fn every_key_changes_the_logits_as_it_does_in_transformers_or_is_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantization");
    let cases: Value = serde_json::from_slice(&fs_err::read(golden.join("cases.json")).unwrap()).unwrap();
    let mut refused_here = BTreeSet::new();
    let (mut opened, mut steps) = (0, 0);
    for name in ["pack", "int8", "static"] {
        let base = &cases[name];
        let config: Value = serde_json::from_slice(&fs_err::read(golden.join(name).join("config.json")).unwrap()).unwrap();
        let prompt: Vec<u32> = numbers(&base["prompt"]).into_iter().map(|id| id as u32).collect();
        let plain = numbers(&base["logits"]);
        let folder = tempfile::tempdir().unwrap();
        fs_err::copy(golden.join(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let answer = |config: &Value| -> Result<Vec<f32>, compressor_engine::Error> {
            fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let options = Options { activations: ActivationType::F32, threads: Some(1), ..Options::default() };
            let engine = Engine::open(folder.path(), options)?;
            Ok(engine.forward(&mut engine.cache(prompt.len()), &prompt, Logits::All).unwrap())
        };
        let mut compare = |logits: &[f32], expected: &[f32], what: &str| {
            assert_eq!(logits.len(), expected.len());
            let worst = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            steps += usize::from(name == "int8" && worst > WORST_DIFFERENCE && worst <= WORST_STEP);
            assert!(worst <= WORST_DIFFERENCE || name == "int8" && worst <= WORST_STEP, "{what}: logits differ by {worst}");
        };
        compare(&answer(&config).unwrap(), &plain, name);
        for case in base["cases"].as_array().unwrap() {
            let mut changed = config.clone();
            let edits: Vec<String> = case["edits"].as_array().unwrap().iter().map(|edit| apply(edit, &mut changed)).collect();
            let what = format!("{name}: {}", edits.join(", "));
            match (answer(&changed), case.get("error")) {
                (Ok(_), Some(error)) => panic!("{what}: opens, and there: {error}"),
                (Ok(logits), None) => {
                    opened += 1;
                    let expected = case["logits"].as_array().map_or_else(|| plain.clone(), |_| numbers(&case["logits"]));
                    compare(&logits, &expected, &what);
                }
                (Err(error), theirs) => {
                    let error = error.to_string();
                    assert!(error.starts_with(&folder.path().display().to_string()), "{what}: {error}");
                    if theirs.is_none() {
                        refused_here.extend(edits.iter().map(|edit| edit.split(" = ").next().unwrap().to_owned()));
                    }
                }
            }
        }
    }
    let refused_here: Vec<&str> = refused_here.iter().map(String::as_str).collect();
    assert_eq!(refused_here, REFUSED_HERE);
    assert_eq!((opened, steps), (OPENED, STEPS));
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Makes a change and says which.
fn apply(edit: &Value, config: &mut Value) -> String {
    let path: Vec<&str> = edit[0].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    let (last, tables) = path.split_last().unwrap();
    let table: &mut Map<String, Value> = tables.iter().fold(config, |table, key| &mut table[*key]).as_object_mut().unwrap();
    match edit[1] == GONE {
        true => {
            table.remove(*last);
        }
        false => {
            table.insert((*last).to_owned(), edit[1].clone());
        }
    }
    format!("{} = {}", path[1..].join("."), edit[1])
}
