#![allow(clippy::unwrap_used)]

use compressor_engine::{self as engine, ActivationType, Engine, Logits, Observer, Options};
use compressor_format::{Activations, Artifact, Clipping, EmbeddingScheme, Family, Method, Override, Weights};

use super::*;
use crate::measure::kl_divergence;
use crate::quantize::tests::{architecture, calibration, checkpoint, overriding};
use crate::quantize::{Calibration, QuantizationReport, quantize};

/// Every family, and a Llama with every bias there is.
fn architectures() -> Vec<Architecture> {
    let mut all: Vec<Architecture> = Family::ALL.into_iter().map(|family| architecture(family, true)).collect();
    let mut biased = architecture(Family::Llama, false);
    (biased.attention.qkv_bias, biased.attention.output_bias, biased.mlp.bias) = (true, true, true);
    all.push(biased);
    all
}

/// Weights of which no norm is one and no bias zero, and whose inputs differ in size from channel to channel.
pub(in crate::quantize) fn uneven(architecture: &Architecture) -> Weights {
    let (architecture, config, mut tensors) = Weights::random(architecture.clone(), 5).into_parts();
    for (id, values) in &mut tensors {
        let change = |at: usize| ((at * at * 7 + at) as f32 * 0.37).sin();
        match id {
            id if id.is_matrix() => values.iter_mut().for_each(|value| *value *= 3.0),
            TensorId::Layer(_, LayerTensor::AttentionNorm(Part::Weight) | LayerTensor::MlpNorm(Part::Weight)) => {
                values.iter_mut().enumerate().for_each(|(at, value)| *value = (2.0 * change(at)).exp());
            }
            _ => values.iter_mut().enumerate().for_each(|(at, value)| *value += 0.3 * change(at)),
        }
    }
    Weights::new(architecture, config, tensors)
}

/// Logits of whole windows of the calibration text.
fn logits(folder: &std::path::Path, activations: ActivationType) -> Vec<f32> {
    let engine = Engine::open(folder, Options { activations, ..crate::engine_options() }).unwrap();
    let Calibration { tokens, window, .. } = calibration();
    let of_window = |tokens: &[u32]| engine.forward(&mut engine.cache(window), tokens, Logits::All).unwrap();
    tokens.chunks(window).flat_map(of_window).collect()
}

/// Mean divergence of the next token from the checkpoint's.
fn kl(checkpoint: &Checkpoint, artifact: &std::path::Path, activations: ActivationType) -> f64 {
    let (p, q) = (logits(checkpoint.path(), ActivationType::F32), logits(artifact, activations));
    let vocab_size = checkpoint.architecture().vocab_size;
    let places = p.chunks_exact(vocab_size).zip(q.chunks_exact(vocab_size));
    places.map(|(p, q)| kl_divergence(p, q)).sum::<f64>() / (p.len() / vocab_size) as f64
}

fn int4() -> Quantization {
    Quantization { bits: 4, group_size: Some(32), embedding: EmbeddingScheme::Dense, ..Quantization::default() }
}

fn awq() -> Quantization {
    Quantization { scaling: Scaling::Awq, ..int4() }
}

fn smoothquant() -> Quantization {
    let w8a8 = Quantization { activations: Activations::Int8, embedding: EmbeddingScheme::Dense, ..Quantization::default() };
    Quantization { scaling: Scaling::SmoothQuant, ..w8a8 }
}

fn write(checkpoint: &Checkpoint, quantization: &Quantization) -> (tempfile::TempDir, QuantizationReport) {
    let out = tempfile::tempdir().unwrap();
    let report = quantize(checkpoint, quantization, Some(&calibration()), out.path(), &mut |_, _, _| {}).unwrap();
    (out, report)
}

/// Factors from 1/4 to 4 for every input that can be scaled.
fn any_factors(architecture: &Architecture, layer: usize) -> LayerScaling {
    let shape = architecture.layers[layer];
    let (heads, head_dim) = group(architecture, layer);
    let some = |columns: usize| (0..columns).map(|at| 4f32.powf(((at * 5 + layer) as f32).sin())).collect::<Vec<f32>>();
    let of_values: Vec<f32> = some(shape.kv_heads * head_dim).chunks(head_dim).flat_map(|head| head.repeat(heads)).collect();
    let hidden = architecture.hidden_size;
    let mut factors = BTreeMap::from([(Input::Attention, some(hidden)), (Input::Output, of_values), (Input::Mlp, some(hidden))]);
    if architecture.mlp.gated {
        factors.insert(Input::Down, some(shape.intermediate_size));
    }
    LayerScaling { factors, report: Vec::new() }
}

/// Logits of two models that compute the same in f32, each with some hundred roundings on the way.
const ROUNDING: f32 = 1e-4;

#[test]
fn folding_any_factors_into_norms_and_rows_changes_no_logit_of_any_family() {
    for architecture in architectures() {
        let weights = uneven(&architecture);
        let (folder, _) = checkpoint(&weights, Dtype::F32);
        let (_, config, mut tensors) = weights.into_parts();
        let before = tensors.clone();
        for (id, values) in &mut tensors {
            if let TensorId::Layer(layer, tensor) = *id {
                any_factors(&architecture, layer).fold(&architecture, layer, tensor, values);
            }
        }
        let changed = tensors.iter().filter(|(id, values)| before[id] != **values).count();
        let per_layer = match (architecture.mlp.gated, architecture.attention.qkv_bias, architecture.mlp.bias) {
            // Both norms with their biases, query, key, value and its bias, output, up.
            (false, ..) => 10,
            // Both norms and the seven projections; biases of value and up.
            (true, values, up) => 9 + usize::from(values) + usize::from(up),
        };
        assert_eq!(changed, 2 * per_layer, "{:?}", architecture.family);
        let (scaled, _) = checkpoint(&Weights::new(architecture.clone(), config, tensors), Dtype::F32);
        let [before, after] = [&folder, &scaled].map(|folder| logits(folder.path(), ActivationType::F32));
        let largest = before.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        let apart = before.iter().zip(&after).map(|(before, after)| (before - after).abs()).fold(0.0, f32::max);
        assert!(largest > 1.0 && apart < ROUNDING * largest, "{:?}: {apart} of {largest}", architecture.family);
    }
}

#[test]
fn a_wrong_factor_does_change_the_logits() {
    // The test above can fail: one factor left out of one fold.
    let architecture = architecture(Family::Llama, true);
    let weights = uneven(&architecture);
    let (folder, _) = checkpoint(&weights, Dtype::F32);
    let (_, config, mut tensors) = weights.into_parts();
    let id = TensorId::Layer(1, LayerTensor::Up(Part::Weight));
    multiply_columns(tensors.get_mut(&id).unwrap(), &any_factors(&architecture, 1).factors[&Input::Mlp]);
    let (scaled, _) = checkpoint(&Weights::new(architecture, config, tensors), Dtype::F32);
    let [before, after] = [&folder, &scaled].map(|folder| logits(folder.path(), ActivationType::F32));
    let largest = before.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    assert!(before.iter().zip(&after).any(|(before, after)| (before - after).abs() > 100.0 * ROUNDING * largest));
}

#[test]
fn query_heads_that_share_a_value_head_share_its_factors() {
    // Two value heads of 16, each of two query heads.
    let architecture = architecture(Family::Llama, true);
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture.clone(), 5), Dtype::F32);
    let place = Place { checkpoint: &checkpoint, quantization: &awq(), layout: &[], layer: 0, input: Input::Output };
    let magnitudes: Vec<f64> = (0..64).map(f64::from).collect();
    let shared = place.shared(&magnitudes);
    // Channel 3 of the second value head is read by columns 35 and 51.
    assert_eq!((shared[35], shared[51]), (43.0, 43.0));
    assert_eq!((shared[0], shared[16], shared[15], shared[31]), (8.0, 8.0, 23.0, 23.0));
    let factors: Vec<f32> = shared.iter().map(|magnitude| *magnitude as f32).collect();
    let of_rows = factors_of_source(&architecture, 0, Input::Output, &factors);
    assert_eq!((of_rows.len(), of_rows[0], of_rows[15], of_rows[16 + 3]), (32, 8.0, 23.0, 43.0));
    let mlp = Place { input: Input::Mlp, ..place };
    assert_eq!(mlp.shared(&magnitudes), magnitudes);
}

#[test]
fn columns_take_the_factor_that_a_norm_in_few_bits_was_really_divided_by() {
    // bf16 has steps of 2⁻⁷ from 1 on: 1 / 0.99 = 1.0101 is stored as 1.0078125.
    let factors = as_stored(&[1.0, -2.0, 0.0, 1e30], Dtype::Bf16, &[0.99, 0.5, 3.0, 1e-12]);
    assert_eq!(factors, [1.0 / 1.007_812_5, 0.5, 1.0, 1.0], "nothing divides a zero, and no norm becomes infinite");
    for factor in [0.3f32, 0.77, 1.9, 6.1] {
        let norm = [0.83f32, 1.7, 0.044, -3.1];
        let really = as_stored(&norm, Dtype::F16, &[factor; 4]);
        for (weight, really) in norm.iter().zip(&really) {
            let stored = Dtype::F16.nearest(weight / factor).unwrap();
            assert_eq!(Dtype::F16.nearest(weight / really), Some(stored), "dividing by it leads to the same");
            assert!((stored * really - weight).abs() <= weight.abs() * f32::EPSILON, "{weight} {factor}");
        }
    }
}

/// The parts of an architecture that are scaled: four inputs of a layer, down's not without a gate, the last two not by SmoothQuant.
fn scaled_inputs(architecture: &Architecture, scaling: Scaling) -> usize {
    architecture.layers.len()
        * match (scaling, architecture.mlp.gated) {
            (Scaling::None, _) => 0,
            (Scaling::Awq, true) => 4,
            (Scaling::Awq, false) => 3,
            (Scaling::SmoothQuant, _) => 2,
        }
}

#[test]
fn every_family_is_scaled_opens_again_and_computes_the_same() {
    // INT8 in groups: what rounding changes is small beside what a factor on one side alone would.
    let int8 = Quantization { group_size: Some(16), embedding: EmbeddingScheme::Dense, ..Quantization::default() };
    for architecture in architectures() {
        let (_folder, checkpoint) = checkpoint(&uneven(&architecture), Dtype::Bf16);
        let plain = kl(&checkpoint, write(&checkpoint, &int8).0.path(), ActivationType::F32);
        for scaling in [Scaling::Awq, Scaling::SmoothQuant] {
            for method in [Method::RoundToNearest, Method::Gptq] {
                let quantization = Quantization { scaling, method, ..int8.clone() };
                let (out, report) = write(&checkpoint, &quantization);
                let found = kl(&checkpoint, out.path(), ActivationType::F32);
                assert!(found < 4.0 * plain, "{:?} {scaling:?} {method:?}: {found}, plain {plain}", architecture.family);
                let left = |one: &&InputScaling| matches!(one.outcome, ScalingOutcome::Left { .. });
                let all = 4 * architecture.layers.len();
                assert_eq!(report.scaling.len(), all);
                assert_eq!(all - report.scaling.iter().filter(left).count(), scaled_inputs(&architecture, scaling));
            }
        }
    }
}

/// What the first layer's gate and up projections multiply.
#[derive(Default)]
struct Seen(Vec<f32>);

impl Observer for Seen {
    fn observe(&mut self, layer: usize, place: engine::Place, activations: &[f32]) {
        if (layer, place) == (0, engine::Place::MlpInput) {
            self.0.extend_from_slice(activations);
        }
    }
}

#[test]
fn a_norm_is_divided_by_what_the_largest_inputs_and_weights_ask_for() {
    let (_folder, checkpoint) = checkpoint(&uneven(&architecture(Family::Gpt2, true)), Dtype::F32);
    let (out, _) = write(&checkpoint, &smoothquant());
    let artifact = Artifact::open(out.path()).unwrap();
    let of_layer = |tensor| TensorId::Layer(0, tensor);
    let norm = |part| {
        let id = of_layer(LayerTensor::MlpNorm(part));
        (checkpoint.tensor(id).unwrap(), artifact.values(id).unwrap())
    };
    let (weight, bias) = (norm(Part::Weight), norm(Part::Bias));
    let up = checkpoint.tensor(of_layer(LayerTensor::Up(Part::Weight))).unwrap();
    let options = Options { activations: ActivationType::F32, ..crate::engine_options() };
    let engine = Engine::open(checkpoint.path(), options).unwrap();
    let (mut seen, Calibration { tokens, window, .. }) = (Seen::default(), calibration());
    for tokens in tokens.chunks(window) {
        engine.forward_observed(&mut engine.cache(window), tokens, Logits::Last, &mut seen).unwrap();
    }
    let largest = |values: &[f32], column| values.iter().skip(column).step_by(64).fold(0f32, |most, one| most.max(one.abs()));
    for column in 0..64 {
        let expected = (largest(&seen.0, column) / largest(&up, column)).sqrt();
        for (before, after) in [&weight, &bias].map(|(before, after)| (before[column], after[column])) {
            assert!((before - expected * after).abs() <= 1e-4 * before.abs(), "{column}: {before}, {after}, {expected}");
        }
    }
}

#[test]
fn awq_never_errs_more_than_no_scaling_by_its_own_measure_and_says_what_it_chose() {
    let mut scaled = 0;
    for architecture in architectures() {
        let (_folder, checkpoint) = checkpoint(&uneven(&architecture), Dtype::Bf16);
        let overrides =
            vec![overriding("*.o_proj", |one| one.bits = Some(8)), overriding("*.attn.c_proj", |one| one.bits = Some(8))];
        let (symmetric, method) = (false, Method::Gptq);
        for quantization in [
            awq(),
            Quantization { symmetric, ..awq() },
            Quantization { clipping: Clipping::Mse, method, ..awq() },
            Quantization { clipping: Clipping::Activation, overrides: matching(overrides, &architecture), ..awq() },
        ] {
            let (_out, report) = write(&checkpoint, &quantization);
            for InputScaling { tensors, outcome } in &report.scaling {
                if let ScalingOutcome::Awq { exponent, error, error_unscaled, .. } = outcome {
                    assert!((0.0..0.96).contains(exponent) && error <= error_unscaled, "{tensors:?}: {error} {error_unscaled}");
                    assert_eq!(*exponent == 0.0, error == error_unscaled, "{tensors:?}");
                    scaled += usize::from(*exponent > 0.0);
                }
            }
        }
    }
    assert!(scaled > 100, "of 6 · 4 models with 8 inputs each, most are scaled: {scaled}");
}

/// Those overrides that name something.
fn matching(overrides: Vec<Override>, architecture: &Architecture) -> Vec<Override> {
    let module = if architecture.family == Family::Gpt2 { "*.attn.c_proj" } else { "*.o_proj" };
    overrides.into_iter().filter(|one| one.pattern == module).collect()
}

#[test]
fn errors_of_outputs_sink_where_inputs_differ_in_size() {
    let (_folder, checkpoint) = checkpoint(&uneven(&architecture(Family::Llama, true)), Dtype::F32);
    let looking = Quantization { clipping: Clipping::Activation, ..int4() };
    let sum = |quantization: &Quantization| {
        let (_out, report) = write(&checkpoint, quantization);
        report.tensors.iter().filter_map(|tensor| tensor.output_error).sum::<f64>()
    };
    let (plain, scaled) = (sum(&looking), sum(&Quantization { scaling: Scaling::Awq, ..looking.clone() }));
    assert!(scaled < 0.95 * plain, "{scaled}, without scaling {plain}");
}

#[test]
fn smoothquant_saves_what_an_outlier_channel_costs_activations_in_eight_bits() {
    let (architecture, config, mut tensors) = Weights::random(architecture(Family::Llama, true), 5).into_parts();
    for layer in 0..2 {
        for (norm, projections) in [
            (LayerTensor::AttentionNorm(Part::Weight), &[LayerTensor::Query, LayerTensor::Key, LayerTensor::Value][..]),
            (LayerTensor::MlpNorm(Part::Weight), &[LayerTensor::Gate, LayerTensor::Up][..]),
        ] {
            // One channel a thousand times as large, and as much smaller weights behind it.
            tensors.get_mut(&TensorId::Layer(layer, norm)).unwrap()[7] = 1000.0;
            for projection in projections {
                let weights = tensors.get_mut(&TensorId::Layer(layer, projection(Part::Weight))).unwrap();
                weights.iter_mut().for_each(|weight| *weight *= 3.0);
                weights.iter_mut().skip(7).step_by(64).for_each(|weight| *weight /= 1000.0);
            }
        }
    }
    let (_folder, checkpoint) = checkpoint(&Weights::new(architecture, config, tensors), Dtype::F32);
    let of = |scaling| {
        let (out, _) = write(&checkpoint, &Quantization { scaling, ..smoothquant() });
        kl(&checkpoint, out.path(), ActivationType::Int8)
    };
    let (plain, smooth) = (of(Scaling::None), of(Scaling::SmoothQuant));
    assert!(smooth < 0.1 * plain, "{smooth}, without scaling {plain}");
}

#[test]
fn inputs_that_stay_as_they_are_are_listed_with_the_reason() {
    let listed = |family, quantization: &Quantization| {
        let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(family, true), 5), Dtype::F32);
        let (_out, report) = write(&checkpoint, quantization);
        let left = report.scaling.into_iter().filter_map(|one| match one.outcome {
            ScalingOutcome::Left { reason } => Some((one.tensors.join(", "), reason)),
            ScalingOutcome::Awq { .. } | ScalingOutcome::SmoothQuant { .. } => None,
        });
        left.filter(|(tensors, _)| tensors.contains(".1.")).collect::<Vec<_>>()
    };
    let told = |tensors: &str, reason: &str| (tensors.to_owned(), reason.to_owned());
    assert_eq!(listed(Family::Llama, &awq()), []);
    let down = "transformer.h.1.mlp.c_proj.weight";
    let expected = [told(down, "an activation function stands between it and the projection before")];
    assert_eq!(listed(Family::Gpt2, &awq()), expected);
    let reason = "SmoothQuant scales what norms make";
    let expected = [told("model.layers.1.self_attn.o_proj.weight", reason), told("model.layers.1.mlp.down_proj.weight", reason)];
    assert_eq!(listed(Family::Qwen2, &smoothquant()), expected);
    let dense = |pattern| overriding(pattern, |one| one.dense = true);
    let overrides = vec![dense("*.v_proj"), dense("*.1.mlp.gate_proj"), dense("*.1.mlp.up_proj")];
    let expected = [
        told("model.layers.1.self_attn.o_proj.weight", "the projection before it stays dense, and so do its rows"),
        told("model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight", "what multiplies it stays dense"),
        told("model.layers.1.mlp.down_proj.weight", "the projection before it stays dense, and so do its rows"),
    ];
    assert_eq!(listed(Family::Llama, &Quantization { overrides, ..awq() }), expected);
}

#[test]
fn what_stays_dense_beside_integers_takes_the_factors_too() {
    let (_folder, checkpoint) = checkpoint(&uneven(&architecture(Family::Qwen3, true)), Dtype::F32);
    let int8 = Quantization { group_size: Some(16), embedding: EmbeddingScheme::Dense, ..Quantization::default() };
    let overrides = vec![overriding("*.k_proj", |one| one.dense = true), overriding("*.gate_proj", |one| one.dense = true)];
    let plain = Quantization { overrides, ..int8 };
    let scaled = Quantization { scaling: Scaling::SmoothQuant, ..plain.clone() };
    let [plain, out] = [&plain, &scaled].map(|quantization| write(&checkpoint, quantization).0);
    let found = kl(&checkpoint, out.path(), ActivationType::F32);
    assert!(found < 4.0 * kl(&checkpoint, plain.path(), ActivationType::F32), "{found}");
    let key = TensorId::Layer(0, LayerTensor::Key(Part::Weight));
    assert_ne!(Artifact::open(out.path()).unwrap().values(key).unwrap(), checkpoint.tensor(key).unwrap());
}

#[test]
fn a_scaled_quantization_goes_on_with_the_next_layer_on_any_threads_and_gives_the_same_bytes() {
    let of_static = Quantization { activations: Activations::Int8Static, ..smoothquant() };
    for quantization in [Quantization { method: Method::Gptq, ..awq() }, smoothquant(), of_static] {
        let (_folder, checkpoint) = checkpoint(&uneven(&architecture(Family::Qwen2, true)), Dtype::Bf16);
        let kept = tempfile::tempdir().unwrap();
        let kept = kept.path().join("layers");
        let run = |quantization: &Quantization, threads, kept_in: Option<&std::path::Path>, stop_after: Option<u64>| {
            let out = tempfile::tempdir().unwrap();
            let calibration = Calibration { kept_in: kept_in.map(std::path::Path::to_owned), ..calibration() };
            let mut stop = |done, _: u64, what: &str| assert!(what != "layers" || Some(done) != stop_after, "stopped");
            let mut work = || quantize(&checkpoint, quantization, Some(&calibration), out.path(), &mut stop).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let alone = std::panic::AssertUnwindSafe(|| pool.install(&mut work));
            let report = std::panic::catch_unwind(alone).ok();
            (report, fs_err::read(out.path().join("model.safetensors")).ok())
        };
        let whole = run(&quantization, 1, None, None);
        assert!(whole.1.is_some() && whole == run(&quantization, 2, None, None));
        let first = kept.join("layer-0.safetensors");
        assert!(run(&quantization, 2, Some(&kept), Some(1)).0.is_none() && first.is_file());
        let layer = fs_err::read(&first).unwrap();
        assert!(run(&quantization, 1, Some(&kept), None) == whole, "the same bytes and the same report");
        // A layer that was scaled otherwise is none of this quantization's.
        for other in [
            Quantization { scaling: Scaling::None, method: Method::Gptq, ..quantization.clone() },
            Quantization { migration_strength: 0.25, ..quantization.clone() },
        ] {
            fs_err::create_dir_all(&kept).unwrap();
            fs_err::write(&first, &layer).unwrap();
            assert!(run(&other, 1, Some(&kept), None) == run(&other, 1, None, None));
        }
    }
}

#[test]
fn names_say_how_inputs_were_scaled() {
    let gptq = |quantization| Quantization { method: Method::Gptq, ..quantization };
    let of_static = Quantization { activations: Activations::Int8Static, ..smoothquant() };
    let names = [awq(), gptq(awq()), smoothquant(), of_static, gptq(int4())].map(|quantization| quantization.name());
    let expected =
        ["INT4 g32 AWQ", "INT4 g32 AWQ GPTQ", "INT8 W8A8 SmoothQuant", "INT8 W8A8 static SmoothQuant", "INT4 g32 GPTQ"];
    assert_eq!(names, expected);
}

#[test]
fn scaling_without_text_is_refused() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let out = tempfile::tempdir().unwrap();
    for quantization in [awq(), smoothquant()] {
        let error = quantize(&checkpoint, &quantization, None, out.path(), &mut |_, _, _| {}).unwrap_err();
        let expected =
            "method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\" look at text: a dataset is needed";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn the_report_reads_back_what_it_wrote() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Gpt2, true), 5), Dtype::F32);
    for quantization in [awq(), smoothquant()] {
        let (_out, report) = write(&checkpoint, &quantization);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<QuantizationReport>(&text).unwrap(), report);
        let found = text.contains("\"awq\":{\"divided\":\"transformer.h.0.ln_1.weight\",\"exponent\":");
        assert_eq!(found, quantization.scaling == Scaling::Awq);
        assert!(text.contains("{\"tensors\":[\"transformer.h.0.mlp.c_proj.weight\"],\"left\":{\"reason\":\""), "{text}");
    }
}
