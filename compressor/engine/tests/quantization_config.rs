//! Every key of a `quantization_config` against Transformers and compressed-tensors: another value changes the logits as it does there,
//! or is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use compressor_engine::{ActivationType, Engine, Logits, Options};
use serde_json::{Map, Value};

/// Logits are of size 1 to 10. A sum in another order can round an input the other way, where inputs are rounded.
const WORST_DIFFERENCE: [(&str, f32); 3] = [("pack", 2e-5), ("int8", 2e-5), ("static", 2e-5)];

/// What stands for a key that is taken out.
const GONE: &str = "(no key)";

/// Refused here, and computed with there.
const REFUSED_HERE: [&str; 0] = [];

#[test]
fn every_key_changes_the_logits_as_it_does_in_transformers_or_is_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantization");
    let cases: Value = serde_json::from_slice(&fs_err::read(golden.join("cases.json")).unwrap()).unwrap();
    let mut refused_here = BTreeSet::new();
    let mut opened = 0;
    for (name, most) in WORST_DIFFERENCE {
        let base = &cases[name];
        let config: Value = serde_json::from_slice(&fs_err::read(golden.join(name).join("config.json")).unwrap()).unwrap();
        let prompt: Vec<u32> = numbers(&base["prompt"]).into_iter().map(|id| id as u32).collect();
        let plain = numbers(&base["logits"]);
        let folder = tempfile::tempdir().unwrap();
        fs_err::copy(golden.join(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let answer = |config: &Value| {
            fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let options = Options { activations: ActivationType::F32, threads: Some(1), ..Options::default() };
            let engine = Engine::open(folder.path(), options)?;
            Ok(engine.forward(&mut engine.cache(prompt.len()), &prompt, Logits::All).unwrap())
        };
        let compare = |logits: Result<Vec<f32>, compressor_engine::Error>, expected: &[f32], what: &str| {
            let worst = logits.unwrap().iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= most, "{name}, {what}: logits differ by {worst}");
        };
        compare(answer(&config), &plain, "as it is");
        for case in base["cases"].as_array().unwrap() {
            let mut changed = config.clone();
            let edits: Vec<String> = case["edits"].as_array().unwrap().iter().map(|edit| apply(edit, &mut changed)).collect();
            let what = format!("{name}: {}", edits.join(", "));
            match (answer(&changed), case.get("error")) {
                (Ok(_), Some(error)) => panic!("{what}: opens, and there: {error}"),
                (Ok(logits), None) => {
                    opened += 1;
                    let expected = case["logits"].as_array().map_or_else(|| plain.clone(), |_| numbers(&case["logits"]));
                    compare(Ok(logits), &expected, &what);
                }
                (Err(error), theirs) => {
                    let error = error.to_string();
                    assert!(error.starts_with(&folder.path().display().to_string()), "{what}: {error}");
                    if theirs.is_none() {
                        refused_here.insert(format!("{what} ({error})"));
                    }
                }
            }
        }
    }
    for refused in &refused_here {
        println!("{refused}");
    }
    println!("{opened}");
    assert_eq!(REFUSED_HERE.len(), 0);
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
