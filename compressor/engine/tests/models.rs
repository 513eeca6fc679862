//! The engine against other programs: Transformers on tiny models of every family, llm-compressor's artifacts, a real model.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use compressor_engine::{Engine, Kernels, Logits, Options, Sequence, Windows, compare, generate_batch, greedy, perplexity};
use compressor_format::TensorFiles;

/// Logits of the golden models are of size 1 to 10; both sides compute in f32 and differ in the order of their sums.
const WORST_LOGIT_DIFFERENCE: f32 = 2e-4;

const GOLDEN: [&str; 8] = ["gpt2", "llama", "llama-head-dim", "llama-sharded-bf16", "llama3-rope", "mistral", "qwen2", "qwen3"];

fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

/// What Transformers computed: prompt, logits of each position, and a prefix of the prompt with its greedy continuation.
struct Golden {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    generated_ids: Vec<u32>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let bytes = fs_err::read(golden_folder(name).join("golden.safetensors")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let files = TensorFiles::open(folder.path()).unwrap();
        let ids = |name| {
            let integers =
                files.get(name).unwrap().bytes.chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap()));
            integers.map(|id| u32::try_from(id).unwrap()).collect::<Vec<u32>>()
        };
        Self {
            input_ids: ids("input_ids"),
            logits: files.get("logits").unwrap().to_f32().unwrap(),
            generated_ids: ids("generated_ids"),
        }
    }
}

fn open(path: &Path) -> Engine {
    Engine::open(path, Options::default()).unwrap()
}

fn all_logits(engine: &Engine, tokens: &[u32]) -> Vec<f32> {
    engine.forward(&mut engine.cache(tokens.len()), tokens, Logits::All).unwrap()
}

fn worst_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_golden_model_is_tested() {
    let mut names: Vec<String> = fs_err::read_dir(golden_folder("."))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, GOLDEN, "new golden model? list it here");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        for kernels in Kernels::available() {
            let engine = Engine::open(&golden_folder(name), Options { kernels: Some(kernels), ..Options::default() }).unwrap();
            let worst = worst_difference(&all_logits(&engine, &golden.input_ids), &golden.logits);
            println!("{name}, {}: logits differ by at most {worst:e}", kernels.name());
            assert!(worst <= WORST_LOGIT_DIFFERENCE, "{name}: {worst}");
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in GOLDEN {
        let generated = Golden::read(name).generated_ids;
        let engine = open(&golden_folder(name));
        assert_eq!(greedy(&engine, &generated[..8], 16, &[]).unwrap(), generated[8..], "{name}");
    }
}

#[test]
fn token_by_token_and_in_pieces_is_the_whole_prompt() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        for kernels in Kernels::available() {
            let engine = Engine::open(&golden_folder(name), Options { kernels: Some(kernels), threads: Some(1) }).unwrap();
            let mut cache = engine.cache(0);
            let single: Vec<f32> =
                golden.input_ids.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap()).collect();
            let worst = worst_difference(&single, &golden.logits);
            println!("{name}, {}, token by token: logits differ by at most {worst:e}", kernels.name());
            assert!(worst <= WORST_LOGIT_DIFFERENCE, "{name}, {}: {worst}", kernels.name());
        }
        let mut cache = engine.cache(24);
        let pieces: Vec<f32> = [&golden.input_ids[..5], &golden.input_ids[5..7], &golden.input_ids[7..]]
            .into_iter()
            .flat_map(|piece| engine.forward(&mut cache, piece, Logits::All).unwrap())
            .collect();
        assert!(worst_difference(&pieces, &golden.logits) <= WORST_LOGIT_DIFFERENCE, "{name}");
        cache.truncate(5);
        let again = engine.forward(&mut cache, &golden.input_ids[5..], Logits::From(18)).unwrap();
        let vocab_size = engine.architecture().vocab_size;
        assert_eq!(again.len(), vocab_size);
        assert!(worst_difference(&again, &golden.logits[23 * vocab_size..]) <= WORST_LOGIT_DIFFERENCE, "{name}");
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        let (mut first, mut second) = (engine.cache(0), engine.cache(0));
        engine.forward(&mut second, &golden.input_ids[..9], Logits::Last).unwrap();
        let mut sequences = [
            Sequence { cache: &mut first, tokens: &golden.input_ids[..6] },
            Sequence { cache: &mut second, tokens: &golden.input_ids[9..10] },
        ];
        let logits = engine.forward_batch(&mut sequences, Logits::Last).unwrap();
        let vocab_size = engine.architecture().vocab_size;
        let row = |token: usize| &golden.logits[token * vocab_size..(token + 1) * vocab_size];
        assert!(worst_difference(&logits, &[row(5), row(9)].concat()) <= WORST_LOGIT_DIFFERENCE, "{name}");
        assert_eq!((first.tokens(), second.tokens()), (6, 10));
    }
}

#[test]
fn a_batch_of_prompts_continues_each_as_if_alone() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        // More than go through the model together, of different lengths.
        let prompts: Vec<Vec<u32>> = (0..70).map(|index| golden.input_ids[index % 7..8 + index % 13].to_vec()).collect();
        let stop = &golden.generated_ids[12..13];
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| greedy(&engine, prompt, 9, stop).unwrap()).collect();
        assert_eq!(generate_batch(&engine, &prompts, 9, stop).unwrap(), expected, "{name}");
        assert!(expected.iter().any(|tokens| tokens.len() < 9), "{name}: some continuation should meet the stop token");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let of = |threads| {
            let engine = Engine::open(&golden_folder(name), Options { threads: Some(threads), kernels: None }).unwrap();
            all_logits(&engine, &golden.input_ids).into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let one = of(1);
        assert_eq!(of(2), one, "{name}");
        assert_eq!(of(5), one, "{name}");
    }
}

#[test]
fn mistakes_are_refused_with_both_values() {
    let engine = open(&golden_folder("gpt2"));
    let message = |tokens: &[u32]| engine.forward(&mut engine.cache(0), tokens, Logits::Last).unwrap_err().to_string();
    let vocab_size = engine.architecture().vocab_size;
    let positions = engine.architecture().max_position_embeddings;
    assert_eq!(
        message(&[3, 4, 100_000]),
        format!("token 100000 at position 2, the vocabulary has {vocab_size}: was the text encoded with another tokenizer?")
    );
    assert_eq!(
        message(&vec![3; positions + 1]),
        format!(
            "the sequence has {} tokens, the model has {positions} learned positions: use a shorter text or window",
            positions + 1
        )
    );
    assert_eq!(message(&[]), "no tokens: a forward pass needs at least one");
    let other = open(&golden_folder("llama"));
    assert_eq!(
        engine.forward(&mut other.cache(0), &[3], Logits::Last).unwrap_err().to_string(),
        "the cache was made for another model: its layers hold [16, 16] elements a token, this model's [32, 32]"
    );
}

#[test]
fn rotary_models_run_past_the_length_they_were_made_for() {
    let engine = open(&golden_folder("llama"));
    let tokens = vec![5; engine.architecture().max_position_embeddings + 10];
    assert_eq!(engine.forward(&mut engine.cache(0), &tokens, Logits::Last).unwrap().len(), engine.architecture().vocab_size);
}

#[test]
fn a_model_compared_with_itself_is_at_no_distance() {
    let golden = Golden::read("llama");
    let engine = open(&golden_folder("llama"));
    let windows = Windows { window: 8, first_scored: 3, limit: None };
    let comparison = compare(&engine, &engine, &golden.input_ids, windows, |_, _| ()).unwrap();
    assert_eq!(comparison.tokens(), 3 * 5);
    assert_eq!((comparison.mean_kl(), comparison.kl_percentile(0.99), comparison.top1_agreement()), (0.0, 0.0, 1.0));
    assert_eq!(comparison.reference, perplexity(&engine, &golden.input_ids, windows, |_, _| ()).unwrap());
}

#[test]
fn perplexity_is_that_of_transformers_logits() {
    // One window from the start: the golden logits of positions 2 to 22 predict tokens 3 to 23.
    let golden = Golden::read("qwen2");
    let engine = open(&golden_folder("qwen2"));
    let vocab_size = engine.architecture().vocab_size;
    let nll = |position: usize| {
        let logits = &golden.logits[position * vocab_size..][..vocab_size];
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(logits[golden.input_ids[position + 1] as usize])
    };
    let expected = (2..23).map(nll).sum::<f64>() / 21.0;
    let mut heard = Vec::new();
    let windows = Windows { window: 24, first_scored: 3, limit: Some(4) };
    let found = perplexity(&engine, &golden.input_ids, windows, |done, all| heard.push((done, all))).unwrap();
    assert_eq!((found.tokens, found.windows, heard), (21, 1, vec![(1, 1)]));
    assert!((found.mean_nll - expected).abs() < 1e-5, "{} {expected}", found.mean_nll);
}
