//! The trainer against PyTorch: the same tiny model, batches and settings give the same losses, step by step.
//!
//! `tests/golden/make_adamw.py` made the files and says its versions in them.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use compressor_format::{Batch, Checkpoint, Weights};
use compressor_train::{Descent, Objective, Training, train};
use serde::Deserialize;

/// Bound on the relative difference of losses, norms and rates.
const ERROR: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    settings: Settings,
    temperature: f32,
    kd_ratio: f32,
    rows: usize,
    length: usize,
    batches: Vec<Stored>,
    runs: Runs,
}

#[derive(Deserialize)]
struct Settings {
    steps: u64,
    learning_rate: f64,
    warmup_steps: u64,
    min_learning_rate_ratio: f64,
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    weight_decay: f64,
    gradient_clip: f64,
}

#[derive(Deserialize)]
struct Stored {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

#[derive(Deserialize)]
struct Runs {
    cross_entropy: Vec<Step>,
    distill: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    cross_entropy: f64,
    kl: Option<f64>,
    gradient_norm: f64,
    learning_rate: f64,
}

impl Golden {
    fn batch(&self, index: u64) -> Batch {
        let Stored { tokens, targets, weights } = &self.batches[index as usize];
        let (tokens, targets, weights) = (tokens.clone(), targets.clone(), weights.clone());
        Batch { tokens, targets, weights, rows: self.rows, length: self.length }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn weights(name: &str) -> Weights {
    Checkpoint::open(&folder().join(name)).unwrap().weights().unwrap()
}

fn agrees(golden: &Golden, objective: Objective<'_>, expected: &[Step]) {
    let of = &golden.settings;
    let training = Training {
        steps: of.steps,
        learning_rate: of.learning_rate,
        warmup_steps: of.warmup_steps,
        min_learning_rate_ratio: of.min_learning_rate_ratio,
        beta_1: of.beta_1,
        beta_2: of.beta_2,
        epsilon: of.epsilon,
        weight_decay: of.weight_decay,
        gradient_clip: Some(of.gradient_clip),
        gradient_accumulation: 1,
        save_every: None,
    };
    let mut found = Vec::new();
    let batches = &|index| golden.batch(index);
    let descent = Descent {
        objective,
        training: &training,
        batches,
        device: "cpu",
        state_folder: None,
        fingerprint: "",
        before_save: &|| Ok(()),
    };
    train(weights("adamw-student"), None, &descent, &mut |losses| {
        found.push(*losses);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let close = |name: &str, found: f64, expected: f64| {
            assert!((found - expected).abs() <= ERROR * expected.abs(), "{name}: {found}, PyTorch has {expected}");
        };
        close("loss", found.loss, expected.loss);
        close("cross entropy", found.cross_entropy, expected.cross_entropy);
        close("gradient norm", found.gradient_norm, expected.gradient_norm);
        close("learning rate", found.learning_rate, expected.learning_rate);
        assert_eq!(found.kl.is_some(), expected.kl.is_some());
        if let (Some(found), Some(expected)) = (found.kl, expected.kl) {
            close("KL divergence", found, expected);
        }
    }
}

#[test]
fn six_steps_of_training_and_of_distilling_give_pytorchs_losses() {
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder().join("adamw.json")).unwrap()).unwrap();
    assert_eq!(golden.runs.cross_entropy.len(), 6);
    agrees(&golden, Objective::CrossEntropy, &golden.runs.cross_entropy);
    let teacher = weights("adamw-teacher");
    let (temperature, kd_ratio) = (golden.temperature, golden.kd_ratio);
    agrees(
        &golden,
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature, kd_ratio },
        &golden.runs.distill,
    );
}
