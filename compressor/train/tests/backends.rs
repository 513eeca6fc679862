//! The same short distillation on every device of this build: losses must agree with Flex.

#![allow(clippy::unwrap_used)]
#![cfg(any(feature = "ndarray", feature = "wgpu", feature = "vulkan", feature = "cuda"))]

use std::ops::ControlFlow;
use std::path::Path;

use compressor_format::{Batch, Family, StepLosses, TensorId, Weights};
use compressor_train::{Descent, Objective, Rounding, Training, logits, open_device, train};
use serde_json::json;

/// Bound on the relative difference of losses after up to four updates.
const LOSS_ERROR: f64 = 1e-4;

/// About 30,000 parameters: shaders on a software device are slow.
fn tiny(family: Family, seed: u64) -> Weights {
    let config = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 64
        }),
        _ => json!({
            "model_type": family.model_type(), "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16,
            "tie_word_embeddings": true
        }),
    };
    Weights::random(Family::read(&config, Path::new("config.json")).unwrap(), seed)
}

struct Noise;

impl Noise {
    fn batch(&self, index: u64) -> Batch {
        let (rows, length) = (3, 10);
        let token = |i: usize| ((index as usize * 17 + i * i * 7 + i) % 64) as u32;
        Batch {
            tokens: (0..rows * length).map(token).collect(),
            targets: (1..=rows * length).map(token).collect(),
            weights: (0..rows * length).map(|i| if i % length < 3 || i == 29 { 0.0 } else { 1.0 }).collect(),
            rows,
            length,
        }
    }
}

fn losses(family: Family, device: &str, rounding: Option<&Rounding<'_>>, steps: u64) -> Vec<StepLosses> {
    let teacher = tiny(family, 1);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 0.5 };
    let training = Training { steps, learning_rate: 1e-2, warmup_steps: 1, gradient_accumulation: 2, ..Training::default() };
    let mut seen = Vec::new();
    let batches = &|index| Noise.batch(index);
    let descent =
        Descent { objective, training: &training, batches, device, state_folder: None, fingerprint: "", before_save: &|| Ok(()) };
    train(tiny(family, 2), rounding, &descent, &mut |losses| {
        seen.push(*losses);
        ControlFlow::Continue(())
    })
    .unwrap();
    seen
}

/// Every weight to the nearest 64th.
fn to_64ths(_: TensorId, values: &[f32]) -> Result<Option<Vec<f32>>, String> {
    Ok(Some(values.iter().map(|value| (value * 64.0).round() / 64.0).collect()))
}

fn agrees_with_flex(device: &str) {
    for family in [Family::Llama, Family::Qwen3, Family::Gpt2] {
        let all = |device| {
            let mut seen = losses(family, device, None, 4);
            // Before the first update alone: a last bit can move a weight to the next 64th.
            seen.extend(losses(family, device, Some(&to_64ths), 1));
            seen
        };
        let (expected, found) = (all("flex"), all(device));
        assert_eq!(found.len(), 5);
        assert_ne!(found[0].loss, found[4].loss, "rounded weights are others");
        for (expected, found) in expected.iter().zip(&found) {
            let close = |expected: f64, found: f64| (expected - found).abs() <= LOSS_ERROR * expected.abs();
            assert!(close(expected.loss, found.loss), "{device} {family:?}: {found:?}, flex {expected:?}");
            assert!(close(expected.kl.unwrap(), found.kl.unwrap()), "{device} {family:?}: {found:?}, flex {expected:?}");
            assert!(close(expected.gradient_norm, found.gradient_norm), "{device} {family:?}: {found:?}, flex {expected:?}");
            assert_eq!(expected.tokens, found.tokens);
        }
        let tokens: Vec<u32> = (0..20).collect();
        let [expected, found] = ["flex", device].map(|device| logits(&tiny(family, 3), &tokens, 2, 10, device).unwrap());
        for (expected, found) in expected.iter().zip(&found) {
            assert!((expected - found).abs() < 1e-5, "{device} {family:?}: logit {found}, flex {expected}");
        }
    }
}

#[test]
#[cfg(feature = "ndarray")]
fn ndarray_agrees_with_flex() {
    agrees_with_flex("ndarray");
}

/// Skips aloud where the machine has no adapter, unless `COMPRESSOR_REQUIRE_WGPU` says that it must have one.
#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn on_adapter(device: &str) {
    match open_device(device) {
        Ok(_) => agrees_with_flex(device),
        Err(error) if std::env::var_os("COMPRESSOR_REQUIRE_WGPU").is_none() => eprintln!("skipped: {error}"),
        Err(error) => panic!("{error}, and COMPRESSOR_REQUIRE_WGPU is set"),
    }
}

#[test]
#[cfg(feature = "wgpu")]
fn wgpu_agrees_with_flex() {
    on_adapter("wgpu");
}

#[test]
#[cfg(feature = "vulkan")]
fn vulkan_agrees_with_flex() {
    on_adapter("vulkan");
}

#[test]
fn every_build_has_flex() {
    assert!(open_device("flex").is_ok());
}
