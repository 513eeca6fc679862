//! Every key of a `config.json` that Transformers can read, at other values: the engine's answer changes as Transformers' does, stays
//! where it stays, or the key is refused by name. `tests/golden/make_config_keys.py` made the cases and Transformers' answers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compressor_engine::{Engine, Logits, Options};
use compressor_format::{Family, Model, NewTensor, TensorFiles, write_safetensors};
use serde_json::{Map, Value};

/// As between the golden models' logits and ours; Transformers' are rounded to six decimals.
const WORST_LOGIT_DIFFERENCE: f32 = 2e-5;

const MODELS: [&str; 6] = ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

/// A golden model, in parts that a case changes.
struct Base {
    config: Map<String, Value>,
    weights: Vec<u8>,
    prompt: Vec<u32>,
    logits: Vec<f32>,
}

/// What came of a case.
#[derive(Debug)]
enum Answer {
    Logits { logits: Vec<f32>, ends: Vec<u32> },
    Refused(String),
}

impl Base {
    fn read(name: &str) -> Self {
        let folder = golden("models").join(name);
        let files = TensorFiles::from_bytes(fs_err::read(folder.join("golden.safetensors")).unwrap(), "golden").unwrap();
        let ids = files.get("input_ids").unwrap().bytes.chunks_exact(8);
        let prompt: Vec<u32> = ids.map(|id| u32::try_from(i64::from_le_bytes(id.try_into().unwrap())).unwrap()).collect();
        let logits = files.get("logits").unwrap().to_f32().unwrap();
        Self {
            config: json(&folder.join("config.json")).as_object().unwrap().clone(),
            weights: fs_err::read(folder.join("model.safetensors")).unwrap(),
            logits: logits[logits.len() / prompt.len() * (prompt.len() - 1)..].to_vec(),
            prompt,
        }
    }

    fn config_of(&self, case: &Value) -> Value {
        let mut config = self.config.clone();
        for key in case["remove"].as_array().into_iter().flatten() {
            config.remove(key.as_str().unwrap());
        }
        config.extend(case["set"].as_object().cloned().unwrap_or_default());
        Value::Object(config)
    }

    fn weights_of(&self, case: &Value) -> Vec<u8> {
        let Some(head) = case["head"].as_str() else { return self.weights.clone() };
        let files = TensorFiles::from_bytes(self.weights.clone(), "weights").unwrap();
        let embedding = if self.config["model_type"] == "gpt2" { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
        let mut tensors: BTreeMap<String, _> = files.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        let mut matrix = tensors[embedding].clone();
        match head {
            "copy" => {}
            "reversed" => {
                let rows = matrix.bytes.chunks_exact(matrix.dtype.bytes() * matrix.shape[1]);
                matrix.bytes = rows.rev().flatten().copied().collect::<Vec<u8>>().into();
            }
            "alone" => drop(tensors.remove(embedding)),
            other => panic!("{other}"),
        }
        tensors.insert("lm_head.weight".to_owned(), matrix);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let new = tensors.into_iter().map(|(name, tensor)| {
            let bytes = Box::new(move || tensor.bytes.to_vec().into());
            (name, NewTensor { dtype: tensor.dtype, shape: tensor.shape, bytes })
        });
        write_safetensors(&path, new).unwrap();
        fs_err::read(path).unwrap()
    }

    fn answer(&self, config: &Value, weights: Vec<u8>) -> Answer {
        let model = match Model::from_bytes(config.to_string().as_bytes(), weights) {
            Ok(model) => model,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let engine = Engine::load(&model, Options { threads: Some(1), ..Options::default() }).unwrap();
        match engine.forward(&mut engine.cache(0), &self.prompt, Logits::Last) {
            Ok(logits) => Answer::Logits { logits, ends: model.architecture().eos_token_ids.clone() },
            Err(error) => Answer::Refused(error.to_string()),
        }
    }
}

fn differ(ours: &[f32], theirs: &[f32]) -> bool {
    !ours.iter().zip(theirs).all(|(ours, theirs)| (ours - theirs).abs() <= WORST_LOGIT_DIFFERENCE)
}

/// Goes through the cases of every model with what Transformers and the engine answer.
fn for_every_case(mut check: impl FnMut(&Base, &Value, Answer) -> Result<(), String>) {
    let golden = json(&golden("config_keys.json"));
    let models = golden["models"].as_object().unwrap();
    assert_eq!(models.keys().collect::<Vec<_>>(), MODELS, "new golden model? list it here");
    let mut wrong = Vec::new();
    for (name, cases) in models {
        let base = Base::read(name);
        for case in cases.as_array().unwrap() {
            let answer = base.answer(&base.config_of(case), base.weights_of(case));
            if let Err(what) = check(&base, case, answer) {
                let of = |key: &str| case.get(key).map(|value| format!("{key} {value} ")).unwrap_or_default();
                wrong.push(format!("{name}: {}{}{}{}{what}", of("set"), of("remove"), of("head"), of("answer")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_key_changes_our_answer_as_it_changes_transformers_or_is_refused() {
    let (mut same, mut changed, mut refused) = (0, 0, 0);
    for_every_case(|base, case, answer| {
        let logits = match answer {
            Answer::Logits { logits, .. } => logits,
            Answer::Refused(error) => {
                refused += 1;
                if case["answer"] != "refused" {
                    println!("refused here alone: {error}");
                }
                return Ok(());
            }
        };
        let theirs: Vec<f32> = match case["answer"].as_str().unwrap() {
            "other" => {
                changed += 1;
                case["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap_or(f64::NAN) as f32).collect()
            }
            // A key that stops Transformers alone, such as a null where null is no value, does not have to stop us, but it may not
            // change what we answer.
            "same" | "refused" => {
                same += 1;
                base.logits.clone()
            }
            unknown => panic!("{unknown}"),
        };
        if differ(&logits, &theirs) { Err("answered otherwise".into()) } else { Ok(()) }
    });
    println!("{same} the same, {changed} changed, {refused} refused");
    assert!(same > 1000 && changed > 100 && refused > 300, "{same} the same, {changed} changed, {refused} refused");
}

#[test]
fn keys_that_change_nothing_are_not_refused() {
    const KEYS: [&str; 14] = [
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "do_sample",
        "dtype",
        "id2label",
        "initializer_range",
        "output_hidden_states",
        "pad_token_id",
        "temperature",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ];
    for_every_case(|_, case, answer| {
        let mut keys = case["set"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        match answer {
            Answer::Refused(error) if keys.any(|key| KEYS.contains(&key)) => Err(error),
            Answer::Refused(_) | Answer::Logits { .. } => Ok(()),
        }
    });
}

#[test]
fn tokens_that_end_a_text_are_transformers() {
    for_every_case(|_, case, answer| {
        let (Some(theirs), Answer::Logits { ends, .. }) = (case["ends"].as_array(), &answer) else { return Ok(()) };
        // Numbers below 0 are no tokens; Transformers keeps them and never meets one.
        let theirs: Vec<u64> = theirs.iter().filter_map(Value::as_u64).collect();
        let ours: Vec<u64> = ends.iter().map(|end| u64::from(*end)).collect();
        if ours == theirs { Ok(()) } else { Err(format!("{ours:?} for {theirs:?}")) }
    });
}

#[test]
fn what_is_written_again_is_answered_the_same() {
    for_every_case(|base, case, answer| {
        let Answer::Logits { logits, .. } = answer else { return Ok(()) };
        let config = base.config_of(case);
        let mut architecture = Family::read(&config, "config.json").unwrap();
        architecture.tied_embeddings &= case["head"] != "reversed";
        let written = Family::write(&architecture, &config, Path::new("out")).unwrap();
        match base.answer(&written, base.weights_of(case)) {
            Answer::Logits { logits: again, .. } if logits == again => Ok(()),
            other => Err(format!("{other:?}, written as {written}")),
        }
    });
}
