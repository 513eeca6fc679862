#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use compressor_engine::{ActivationType, Engine, Logits, Options};
use compressor_format::{Checkpoint, EmbeddingScheme, LayerTensor, Override, Part, Weights};

use super::*;
use crate::measure::kl_divergence;
use crate::quantize::tests::{architecture, calibration, checkpoint, overriding};
use crate::quantize::{Calibration, Clipping, measure_sensitivities, quantize};

fn scheme(bits: u8, group_size: usize) -> Scheme {
    Scheme { bits, group_size: Some(group_size), symmetric: true }
}

fn target(most: Most) -> Target {
    Target { most, candidates: vec![scheme(3, 32), scheme(4, 32), scheme(6, 32), scheme(8, 32)], chooses_embedding: true }
}

/// Divergences that fall by the square of the step, of tensors that matter differently.
fn made_up(choices: &[Choice]) -> Sensitivities {
    let of = |(at, choice): (usize, &Choice)| {
        let weight = 1e-3 * (1.0 + (at * 7 % 5) as f64);
        let kl = choice.candidates.iter().map(|scheme| (scheme.to_string(), weight * 4f64.powi(3 - i32::from(scheme.bits))));
        (choice.stored.name.clone(), kl.collect())
    };
    Sensitivities::made_up(choices.iter().enumerate().map(of).collect())
}

/// What settles all tensors but the query and down projections and the embedding.
fn few_open() -> Quantization {
    let settled = ["*.k_proj", "*.v_proj", "*.o_proj", "*.gate_proj", "*.up_proj"];
    let overrides: Vec<Override> = settled.map(|pattern| overriding(pattern, |one| one.bits = Some(8))).into();
    Quantization { overrides, ..Quantization::default() }
}

#[test]
fn no_other_choice_within_the_target_costs_less_and_the_file_is_never_larger() {
    let architecture = architecture(Family::Llama, true);
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture.clone(), 3), Dtype::F32);
    let quantization = few_open();
    let choices = target(Most::Bytes(0)).choices(&quantization, &architecture);
    assert_eq!(choices.len(), 5, "two layers with two matrices each, and the embedding");
    let sensitivities = made_up(&choices);

    // Every combination: its bytes, its bits per weight, its cost.
    let mut all = Vec::new();
    for combination in 0..4usize.pow(5) {
        let picked =
            choices.iter().enumerate().map(|(at, choice)| (choice, choice.candidates[combination / 4usize.pow(at as u32) % 4]));
        let cost: f64 = picked.clone().map(|(choice, scheme)| sensitivities.kl(&choice.stored.name, scheme).unwrap()).sum();
        let sizes = resolve(&settled(&quantization, picked), &architecture, Dtype::F32).unwrap();
        all.push((sizes.artifact_bytes, sizes.bits_per_weight, cost));
    }
    let (least, most) = (all.iter().map(|it| it.0).min().unwrap(), all.iter().map(|it| it.0).max().unwrap());
    let mut tried = 0;
    for bytes in (least..most + 300).step_by(151) {
        let (chosen, budget) =
            target(Most::Bytes(bytes)).choose(&quantization, &architecture, Dtype::F32, &sensitivities).unwrap();
        let sizes = resolve(&chosen, &architecture, Dtype::F32).unwrap();
        assert!(sizes.artifact_bytes <= bytes, "{} of {bytes}", sizes.artifact_bytes);
        let promised = target(Most::Bytes(bytes)).most_bytes(&quantization, &architecture, Dtype::F32);
        assert_eq!(promised.unwrap(), bytes.min(most));
        let best = all.iter().filter(|it| it.0 <= bytes).map(|it| it.2).fold(f64::INFINITY, f64::min);
        assert!((budget.kl_sum - best).abs() < 1e-12, "{bytes}: {} instead of {best}", budget.kl_sum);
        assert_eq!((budget.gap, budget.most), (0.0, Most::Bytes(bytes)));
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
    for bits in [6.67, 6.9, 7.3] {
        let most = Most::BitsPerWeight(bits);
        let (chosen, budget) = target(most).choose(&quantization, &architecture, Dtype::F32, &sensitivities).unwrap();
        let sizes = resolve(&chosen, &architecture, Dtype::F32).unwrap();
        assert!(sizes.bits_per_weight <= bits, "{} of {bits}", sizes.bits_per_weight);
        let promised = target(most).most_bytes(&quantization, &architecture, Dtype::F32).unwrap();
        assert!(sizes.artifact_bytes <= promised && promised <= sizes.artifact_bytes + 2000, "{promised}");
        let best = all.iter().filter(|it| it.1 <= bits).map(|it| it.2).fold(f64::INFINITY, f64::min);
        assert!((budget.kl_sum - best).abs() < 1e-12, "{bits}: {} instead of {best}", budget.kl_sum);
    }

    // What was promised is what is written, and what an override settles is not chosen for.
    let bytes = (least + most) / 2;
    let (chosen, _) = target(Most::Bytes(bytes)).choose(&quantization, &architecture, Dtype::F32, &sensitivities).unwrap();
    let out = tempfile::tempdir().unwrap();
    let report = quantize(&checkpoint, &chosen, None, out.path(), &mut |_, _, _| {}).unwrap();
    let written = fs_err::metadata(out.path().join("model.safetensors")).unwrap().len();
    assert_eq!(report.artifact_bytes, written);
    assert!(written <= bytes);
    let keys = report.tensors.iter().filter(|tensor| tensor.name.contains("k_proj"));
    let is_int8 =
        |tensor: &crate::quantize::TensorReport| matches!(tensor.scheme, compressor_format::Levels::Grid(Scheme { bits: 8, .. }));
    assert_eq!(keys.map(is_int8).collect::<Vec<_>>(), [true, true]);
}

#[test]
fn an_embedding_that_the_recipe_settles_is_not_chosen_for() {
    let architecture = architecture(Family::Llama, true);
    let settled = Target { chooses_embedding: false, ..target(Most::Bytes(1 << 20)) };
    let choices = settled.choices(&Quantization::default(), &architecture);
    assert_eq!(choices.len(), 14);
    assert!(choices.iter().all(|choice| choice.stored.parts[0].is_projection()));
    let dense = Quantization { embedding: EmbeddingScheme::Dense, ..Quantization::default() };
    let sizes = resolve(&settled.smallest(&dense, &architecture), &architecture, Dtype::F32).unwrap();
    assert!(sizes.dense.iter().any(|tensor| tensor.name == "model.embed_tokens.weight"));
}

#[test]
fn a_target_that_can_not_be_met_is_refused_with_what_can() {
    let architecture = architecture(Family::Llama, true);
    let refusals = |target: &Target, quantization: &Quantization| -> Vec<(String, Option<&'static str>)> {
        let refusals = target.refusals(quantization, &architecture, Dtype::F32);
        refusals.into_iter().map(|refusal| (refusal.to_string(), refusal.key())).collect()
    };
    let quantization = Quantization::default();
    let least = target(Most::Bytes(0)).least(&quantization, &architecture, Dtype::F32).unwrap();
    let expected = format!(
        "target_bytes {} is too small: the smallest artifact that the candidates make has {} bytes, 3.6700 bits per weight",
        least.artifact_bytes - 1,
        least.artifact_bytes
    );
    assert_eq!(refusals(&target(Most::Bytes(least.artifact_bytes - 1)), &quantization), [(expected, Some("target_bytes"))]);
    assert_eq!(refusals(&target(Most::Bytes(least.artifact_bytes)), &quantization), []);
    let found = refusals(&target(Most::BitsPerWeight(3.5)), &quantization);
    assert_eq!(found.len(), 1);
    assert!(found[0].0.starts_with("target_bits_per_weight 3.5 is too small: the smallest"), "{}", found[0].0);
    // What it names is enough.
    assert_eq!(refusals(&target(Most::BitsPerWeight(3.67)), &quantization), []);

    let with = |candidates: Vec<Scheme>| Target { candidates, ..target(Most::Bytes(1 << 20)) };
    let found = refusals(&with(vec![scheme(4, 64), scheme(8, 64)]), &quantization);
    let expected = "candidates: no group_size of theirs divides the 96 columns of `model.layers.0.mlp.down_proj.weight`; \
                    divisors of 96 are 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96";
    assert_eq!(found, [(expected.to_owned(), Some("candidates"))]);
    let found = refusals(&with(vec![scheme(7, 32), Scheme { bits: 4, group_size: None, symmetric: true }]), &quantization);
    let expected = [
        "bits 7 is not there; 2, 3, 4, 5, 6 and 8 are",
        "candidates: 4 bits need a group_size: one scale for a whole output channel loses too much; usual are 32, 64 and 128",
    ];
    assert_eq!(found, expected.map(|text| (text.to_owned(), Some("candidates"))));
    for activations in [Activations::Int8, Activations::Int8Static] {
        let found = refusals(&target(Most::Bytes(1 << 20)), &Quantization { activations, ..quantization.clone() });
        let expected = format!(
            "activations \"{activations}\" needs 8 bits, symmetric, per channel: leave group_size out; \
             found INT3, groups of 32, symmetric"
        );
        assert_eq!(found, [(expected, Some("activations"))]);
    }
}

/// The divergence of one tensor from an artifact in which all others are dense, by the engine as people run it.
fn by_an_artifact(checkpoint: &Checkpoint, quantization: &Quantization, choice: &Choice, scheme: Scheme) -> f64 {
    let architecture = checkpoint.architecture();
    let module = overrides::module(&choice.stored);
    let others = Family::stored(architecture).into_iter().filter(|stored| stored.name != choice.stored.name);
    let others = others.filter(|stored| stored.parts[0].is_projection());
    let overrides = others.map(|stored| overriding(overrides::module(&stored), |one| one.dense = true)).collect();
    let embedding = if module.contains("embed") { EmbeddingScheme::Int8 } else { EmbeddingScheme::Dense };
    let chosen = BTreeMap::from([(choice.stored.name.clone(), scheme)]);
    let alone = Quantization { overrides, embedding, chosen, ..quantization.clone() };
    let out = tempfile::tempdir().unwrap();
    quantize(checkpoint, &alone, None, out.path(), &mut |_, _, _| {}).unwrap();
    let options = Options { activations: ActivationType::F32, ..crate::engine_options() };
    let engines = [Engine::open(checkpoint.path(), options).unwrap(), Engine::open(out.path(), options).unwrap()];
    let Calibration { tokens, window, .. } = calibration();
    let mut found = Vec::new();
    for tokens in tokens.chunks(window) {
        let [p, q] = [&engines[0], &engines[1]]
            .map(|engine| engine.forward(&mut engine.cache(window), tokens, Logits::From(window / 4)).unwrap());
        let vocab_size = architecture.vocab_size;
        found.extend(p.chunks_exact(vocab_size).zip(q.chunks_exact(vocab_size)).map(|(p, q)| kl_divergence(p, q)));
    }
    found.iter().sum::<f64>() / found.len() as f64
}

#[test]
fn a_sensitivity_is_the_divergence_of_an_artifact_with_this_tensor_alone() {
    for clipping in [Clipping::None, Clipping::Mse] {
        let weights = Weights::random(architecture(Family::Llama, true), 5);
        let (_folder, checkpoint) = checkpoint(&weights, Dtype::F32);
        let quantization = Quantization { clipping, ..Quantization::default() };
        let target = Target { candidates: vec![scheme(3, 32), scheme(6, 32)], ..target(Most::Bytes(1 << 20)) };
        let choices = target.choices(&quantization, checkpoint.architecture());
        assert_eq!(choices.len(), 15);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(Sensitivities::FILE);
        let mut none = |_: u64, _: u64, _: &str| {};
        let measured =
            measure_sensitivities(&checkpoint, &quantization, &choices, [&calibration(); 2], &file, &mut none).unwrap();
        for choice in [&choices[0], &choices[3], &choices[7], &choices[14]] {
            for scheme in &target.candidates {
                let expected = by_an_artifact(&checkpoint, &quantization, choice, *scheme);
                let found = measured.kl(&choice.stored.name, *scheme).unwrap();
                assert!(found > 0.0 && (found / expected - 1.0).abs() < 1e-2, "{}: {found}, {expected}", choice.stored.name);
            }
        }
    }
}

#[test]
fn a_measurement_goes_on_where_it_was_stopped_with_the_same_digits_on_any_threads() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen2, false), 5), Dtype::Bf16);
    let quantization = Quantization { clipping: Clipping::Activation, ..Quantization::default() };
    let choices = target(Most::Bytes(1 << 20)).choices(&quantization, checkpoint.architecture());
    assert_eq!(choices.len(), 16, "embedding and head are two");
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, threads: usize, choices: &[Choice]| {
        let file = folder.path().join(name);
        let mut told = Vec::new();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut progress = |done: u64, of: u64, name: &str| told.push((done, of, name.to_owned()));
        let mut measure =
            || measure_sensitivities(&checkpoint, &quantization, choices, [&calibration(); 2], &file, &mut progress);
        let measured = pool.install(&mut measure).unwrap();
        (measured, told, fs_err::read(&file).unwrap())
    };
    let (whole, told, file) = run("whole.json", 1, &choices);
    assert_eq!((told.len(), told[0].0, told[15].0, told[0].1), (16, 1, 16, 16));
    // Stopped after the first five, and gone on with.
    run("parts.json", 3, &choices[..5]);
    let (parts, told, parts_file) = run("parts.json", 3, &choices);
    assert_eq!((told.len(), told[0].0), (11, 6), "what is known is not measured again");
    assert_eq!(parts, whole);
    assert!(parts_file == file);
    // A second run measures nothing; another text measures all anew.
    assert_eq!(run("parts.json", 2, &choices).1, []);
    let other = Quantization { clipping: Clipping::None, ..quantization.clone() };
    let again = measure_sensitivities(
        &checkpoint,
        &other,
        &choices[..1],
        [&calibration(); 2],
        &folder.path().join("parts.json"),
        &mut |_, _, _| {},
    );
    assert_ne!(again.unwrap().kl(&choices[0].stored.name, scheme(3, 32)), whole.kl(&choices[0].stored.name, scheme(3, 32)));
}

#[test]
fn a_matrix_of_the_last_layer_and_the_head_are_reached() {
    // Each tensor changes something: none is measured with another one's weights.
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Gpt2, true), 5), Dtype::F32);
    let choices = target(Most::Bytes(1 << 20)).choices(&Quantization::default(), checkpoint.architecture());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(Sensitivities::FILE);
    let mut none = |_: u64, _: u64, _: &str| {};
    let measured =
        measure_sensitivities(&checkpoint, &Quantization::default(), &choices, [&calibration(); 2], &file, &mut none).unwrap();
    let kls: Vec<f64> = choices.iter().map(|choice| measured.kl(&choice.stored.name, scheme(3, 32)).unwrap()).collect();
    assert!(kls.iter().all(|kl| *kl > 0.0), "{kls:?}");
    let mut different = kls.clone();
    different.sort_by(f64::total_cmp);
    different.dedup();
    assert_eq!(different.len(), choices.len(), "{kls:?}");
    assert!(matches!(choices[0].stored.parts[0], TensorId::Embedding | TensorId::Layer(_, LayerTensor::Query(Part::Weight))));
}
