//! Measuring against other programs: Transformers' logits of tiny models, PyTorch's perplexity of a real one.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use compressor_engine::{Engine, Options};
use compressor_format::{Checkpoint, Examples, Pair, TensorFiles, TensorId, Tokenizer, Verify, Weights};
use compressor_pipeline::HeldOut;

fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

fn golden_engine(name: &str) -> Engine {
    Engine::open(&golden_folder(name), Options::default()).unwrap()
}

/// The prompt of a golden model, and the logits that Transformers computed for it.
fn golden(name: &str) -> (Vec<u32>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden_folder(name).join("golden.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let files = TensorFiles::open(folder.path()).unwrap();
    let ids = files.get("input_ids").unwrap().bytes.chunks_exact(8);
    let ids = ids.map(|eight| i64::from_le_bytes(eight.try_into().unwrap()).try_into().unwrap()).collect();
    (ids, files.get("logits").unwrap().to_f32().unwrap())
}

/// The golden models have no text: here every token is a word, its number. `</s>` is 96, one more than they have.
fn numbers() -> Tokenizer {
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..96).map(|id| (format!("{id}"), id.into())).collect();
    let vocabulary: serde_json::Map<_, _> = vocabulary.into_iter().chain([("</s>".to_owned(), 96.into())]).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "0"}
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    Tokenizer::open(path).unwrap()
}

fn text(tokens: &[u32]) -> Examples {
    Examples::Text(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
}

fn windows(windows: usize, window: usize, first_scored: usize) -> Verify {
    Verify { windows, window, first_scored, ..Verify::default() }
}

#[test]
fn perplexity_is_that_of_transformers_logits() {
    // One window from the start: the golden logits of positions 2 to 22 predict tokens 3 to 23.
    let (tokens, logits) = golden("qwen2");
    let engine = golden_engine("qwen2");
    let vocab_size = engine.architecture().vocab_size;
    let loss = |position: usize| {
        let row = &logits[position * vocab_size..][..vocab_size];
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(row[tokens[position + 1] as usize])
    };
    let expected = (2..23).map(loss).sum::<f64>() / 21.0;
    let found =
        HeldOut::new(&text(&tokens), &numbers(), &windows(4, 24, 3)).unwrap().perplexity(&engine, &mut |_, _, _| {}).unwrap();
    assert_eq!(found.sample_size, 21);
    assert!((found.value.ln() - expected).abs() < 1e-5, "{} {expected}", found.value.ln());
}

#[test]
fn a_model_compared_with_itself_is_at_no_distance() {
    let (tokens, _) = golden("llama");
    let engine = golden_engine("llama");
    let held_out = HeldOut::new(&text(&tokens), &numbers(), &windows(100, 8, 3)).unwrap();
    let comparison = held_out.compare(&engine, &engine, &mut |_, _, _| {}).unwrap();
    assert_eq!((comparison.kl, comparison.agrees), (vec![0.0; 3 * 5], vec![true; 3 * 5]));
    assert_eq!(comparison.losses[0], comparison.losses[1]);
    let mean = comparison.losses[0].iter().sum::<f64>() / 15.0;
    assert!((held_out.perplexity(&engine, &mut |_, _, _| {}).unwrap().value.ln() - mean).abs() < 1e-12);
}

/// New weights in the sizes of the golden Llama, with another vocabulary.
fn with_vocabulary(vocab_size: usize) -> Engine {
    let mut architecture = Checkpoint::open(&golden_folder("llama")).unwrap().architecture().clone();
    architecture.vocab_size = vocab_size;
    Engine::from_weights(&Weights::random(architecture, 1), Options::default()).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> HeldOut {
    let pair = |(prompt, completion): &(&str, &str)| Pair { prompt: (*prompt).into(), completion: (*completion).into() };
    HeldOut::new(&Examples::Pairs(pairs.iter().map(pair).collect()), &numbers(), &Verify::default()).unwrap()
}

#[test]
fn examples_of_unequal_length_are_scored_as_if_alone() {
    let engine = with_vocabulary(97);
    let examples = [("7 8 9 10 11", "12"), ("20", "30 31 32"), ("40 41", "50 51")];
    let losses = |held_out: &HeldOut| held_out.compare(&engine, &engine, &mut |_, _, _| {}).unwrap().losses[0].clone();
    let together = losses(&pairs(&examples));
    let alone: Vec<f64> = examples.iter().flat_map(|example| losses(&pairs(&[*example]))).collect();
    // The completions and the end of each.
    assert_eq!(together.len(), 2 + 4 + 3);
    assert!(together.iter().zip(&alone).all(|(together, alone)| (together - alone).abs() < 1e-5), "{together:?} {alone:?}");
}

#[test]
fn examples_without_prompts_are_scored_from_their_second_token() {
    let engine = with_vocabulary(97);
    let held_out = pairs(&[("", "3 4 5"), ("", "6 7"), ("8", "9")]);
    assert_eq!(held_out.sequences.iter().map(|sequence| sequence.first_scored).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(held_out.perplexity(&engine, &mut |_, _, _| {}).unwrap().sample_size, 3 + 2 + 2);
    assert!(held_out.exact_matches(&engine, &numbers(), &mut |_, _, _| {}).unwrap().is_empty());
}

#[test]
fn a_last_token_that_the_model_does_not_know_is_refused() {
    let message = pairs(&[("3 4", "5")]).perplexity(&golden_engine("llama"), &mut |_, _, _| {}).unwrap_err().to_string();
    let expected = "token 96 at position 3, the vocabulary has 96: was the text encoded with another tokenizer?";
    assert_eq!(message, expected);
}

#[test]
fn vocabularies_that_differ_are_refused_with_both_sizes() {
    let (tokens, _) = golden("llama");
    let held_out = HeldOut::new(&text(&tokens), &numbers(), &windows(1, 8, 3)).unwrap();
    let message = held_out.compare(&golden_engine("llama"), &with_vocabulary(80), &mut |_, _, _| {}).err().unwrap().to_string();
    let expected = "the reference predicts 96 tokens, the candidate 80; compare it with the checkpoint it was made from";
    assert_eq!(message, expected);
}

/// A model with so many rows more than another, which no token has: each predicts its own number above all.
fn padded(weights: Weights, rows: usize) -> Engine {
    let (mut architecture, config, mut tensors) = weights.into_parts();
    architecture.vocab_size += rows;
    for id in [TensorId::Embedding, TensorId::Head] {
        if let Some(values) = tensors.get_mut(&id) {
            values.extend((0..rows * architecture.hidden_size).map(|_| 50.0));
        }
    }
    Engine::from_weights(&Weights::new(architecture, config, tensors), Options::default()).unwrap()
}

#[test]
fn rows_beyond_the_tokenizer_are_left_out_of_a_comparison() {
    let mut architecture = Checkpoint::open(&golden_folder("llama")).unwrap().architecture().clone();
    architecture.vocab_size = 97;
    let [one, other] = [1, 2].map(|seed| Weights::random(architecture.clone(), seed));
    let held_out = HeldOut::new(&text(&golden("llama").0), &numbers(), &windows(1, 8, 3)).unwrap();
    let engine = |weights: &Weights| Engine::from_weights(weights, Options::default()).unwrap();
    let expected = held_out.compare(&engine(&one), &engine(&other), &mut |_, _, _| {}).unwrap();
    for (reference, candidate) in [
        (engine(&one), padded(other.clone(), 7)),
        (padded(one.clone(), 7), engine(&other)),
        (padded(one.clone(), 3), padded(other.clone(), 7)),
    ] {
        let found = held_out.compare(&reference, &candidate, &mut |_, _, _| {}).unwrap();
        let difference = found.kl.iter().zip(&expected.kl).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(difference < 1e-6, "{difference}");
        assert_eq!(found.agrees, expected.agrees);
    }
}

#[test]
fn no_more_is_measured_than_a_model_holds() {
    // The golden models have 64 positions; a window's last token is only predicted.
    let tokens: Vec<u32> = (0..90).collect();
    let measured = |name: &str, window: usize| {
        let held_out = HeldOut::new(&text(&tokens), &numbers(), &windows(1, window, 3)).unwrap();
        held_out.perplexity(&golden_engine(name), &mut |_, _, _| {}).map_err(|error| error.to_string())
    };
    for name in ["llama", "gpt2"] {
        assert!(measured(name, 65).is_ok());
        assert_eq!(
            measured(name, 66).unwrap_err(),
            "a window or an example has 65 tokens, the model's max_position_embeddings are 64; set `window` lower or shorten the examples"
        );
    }
}

#[test]
fn of_a_long_text_no_more_is_read_than_is_measured() {
    let tokens: Vec<u32> = (0..500_000).map(|index| index * 7 % 96).collect();
    let whole = numbers().encode(&tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")).unwrap();
    let started = std::time::Instant::now();
    let held_out = HeldOut::new(&text(&tokens), &numbers(), &windows(3, 40, 2)).unwrap();
    let found: Vec<u32> = held_out.sequences.iter().flat_map(|sequence| sequence.tokens.clone()).collect();
    assert_eq!(found, whole[..120]);
    println!("{:?}", started.elapsed());
}

#[test]
fn text_is_cut_into_whole_windows() {
    let cut = |count: usize| {
        let held_out = HeldOut::new(&text(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), &numbers(), &windows(count, 4, 2)).unwrap();
        held_out.sequences.into_iter().map(|sequence| (sequence.tokens, sequence.first_scored)).collect::<Vec<_>>()
    };
    assert_eq!(cut(9), [(vec![0, 1, 2, 3], 2), (vec![4, 5, 6, 7], 2)]);
    assert_eq!(cut(1), [(vec![0, 1, 2, 3], 2)]);
    let message = HeldOut::new(&text(&[0; 3]), &numbers(), &windows(1, 4, 2)).err().unwrap().to_string();
    assert_eq!(message, "the held-out text has 3 tokens, one window takes 4; set `window` lower or name a longer text");
}

#[test]
fn the_perplexity_of_a_real_model_is_that_of_pytorch() {
    /// PyTorch in f32 on the same six windows.
    const PYTORCH: f64 = 22.4735;
    let folder = |name: &str| {
        let folder = std::env::var_os(name).map(PathBuf::from);
        if folder.is_none() {
            println!("skipped: {name} is not set");
        }
        folder
    };
    let Some(model) = folder("COMPRESSOR_ASSETS").map(|folder| folder.join("smollm2-135m")) else { return };
    let Some(data) = folder("COMPRESSOR_DATA_WIKITEXT2") else { return };
    let text = std::fs::read_to_string(data.join("test.txt")).unwrap();
    // Enough for six windows of 512 tokens, cut at a space.
    let text = Examples::Text(text.chars().take(20_000).collect());
    let tokenizer = Tokenizer::open(model.join("tokenizer.json")).unwrap();
    let held_out = HeldOut::new(&text, &tokenizer, &windows(6, 512, 257)).unwrap();
    assert_eq!(held_out.sequences[0].tokens[..8], [3717, 446, 6356, 389, 9226, 352, 446, 3717]);
    let found = held_out.perplexity(&Engine::open(&model, Options::default()).unwrap(), &mut |_, _, _| {}).unwrap();
    println!("perplexity {:.4} over {} tokens", found.value, found.sample_size);
    assert_eq!(found.sample_size, 6 * 255);
    assert!((found.value / PYTORCH - 1.0).abs() < 1e-3, "{}", found.value);
}
