//! GGUF files as people have them, against llama.cpp. Files and answers: `tests/golden/make_gguf_llama_cpp.py`.
#![cfg(feature = "std")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use compressor_engine::{ActivationType, Engine, Logits, Options};
use serde_json::Value;

/// llama.cpp keeps keys and values in f16.
const WORST_LOG_PROBABILITY_DIFFERENCE: f32 = 5e-3;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf/llama_cpp")
}

/// The most likely token after `tokens`, with its log probability.
fn next(engine: &Engine, tokens: &[u32]) -> (u32, f32) {
    let logits = engine.forward(&mut engine.cache(0), tokens, Logits::Last).unwrap();
    let (token, largest) = (0..).zip(&logits).max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap();
    (token, -logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>().ln())
}

#[test]
fn what_stands_in_a_gguf_file_changes_the_text_as_in_llama_cpp() {
    let expected: Value = serde_json::from_slice(&fs_err::read(golden().join("expected.json")).unwrap()).unwrap();
    let whole_numbers = |list: &Value| -> Vec<u32> { serde_json::from_value(list.clone()).unwrap() };
    let files = expected["files"].as_object().unwrap();
    assert_eq!(files.len(), 7);
    let mut different = BTreeSet::new();
    for (name, continuation) in files {
        let options = Options { activations: ActivationType::F32, ..Options::default() };
        let engine = Engine::open(&golden().join(name), options).unwrap();
        let mut text = whole_numbers(&expected["prompt"]);
        let tokens = whole_numbers(&continuation["tokens"]);
        for (&token, log_probability) in tokens.iter().zip(continuation["log_probabilities"].as_array().unwrap()) {
            let (found, found_log_probability) = next(&engine, &text);
            assert_eq!(found, token, "{name} after {text:?}");
            let difference = (found_log_probability - log_probability.as_f64().unwrap() as f32).abs();
            assert!(difference < WORST_LOG_PROBABILITY_DIFFERENCE, "{name} after {text:?}: {difference}");
            text.push(token);
        }
        different.insert(tokens);
    }
    assert_eq!(different.len(), 5, "fused and split are the plain model");
}
