#![allow(clippy::unwrap_used)]

use std::path::Path;

use compressor_format::{
    Alternative, Artifact, ArtifactTensor, Checkpoint, Clipping, Dtype, Family, Levels, Method, Scheme, Weights,
};

use super::*;
use crate::quantize::calibrated::{Gathered, Quantized, Rows};
use crate::quantize::gptq::Hessian;
use crate::quantize::tests::{architecture, calibration, checkpoint, kmeans};
use crate::quantize::{
    Calibration, EmbeddingScheme, Most, Sensitivities, Target, measure_each, measure_sensitivities, quantize, refusals, resolve,
};

fn int4(group_size: usize) -> Quantization {
    Quantization { bits: 4, group_size: Some(group_size), ..Quantization::default() }
}

fn gptq() -> Quantization {
    Quantization { method: Method::Gptq, clipping: Clipping::Activation, ..int4(32) }
}

fn scheme(bits: u8, group_size: usize) -> Scheme {
    Scheme { bits, group_size: Some(group_size), symmetric: true }
}

fn treatment(bits: u8, group_size: usize, method: Method) -> Treatment {
    Treatment::Quantized { scheme: scheme(bits, group_size).into(), method }
}

fn allowing(alternative: Alternative, quantization: Quantization) -> Quantization {
    Quantization { allow: vec![alternative], ..quantization }
}

fn write(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    text: Option<&Calibration>,
) -> (tempfile::TempDir, QuantizationReport) {
    let out = tempfile::tempdir().unwrap();
    let report = quantize(checkpoint, quantization, text, out.path(), &mut |_, _, _| {}).unwrap();
    (out, report)
}

/// What is dense, with the report of it and of the bytes.
fn dense_projections(checkpoint: &Checkpoint, quantization: &Quantization) -> (QuantizationReport, Vec<String>) {
    let (out, report) = write(checkpoint, quantization, None);
    let sizes = resolve(quantization, checkpoint.architecture(), Dtype::F32).unwrap();
    let bytes = fs_err::metadata(out.path().join("model.safetensors")).unwrap().len();
    assert_eq!((sizes.artifact_bytes, report.artifact_bytes), (bytes, bytes), "the plan's bytes are exact");
    assert_eq!(sizes.instead, report.instead);
    let artifact = Artifact::open(out.path()).unwrap();
    let is_dense = |tensor: &ArtifactTensor| matches!(tensor, ArtifactTensor::Dense(_));
    let named = artifact.stored().filter(|(name, tensor)| is_dense(tensor) && !name.contains("norm"));
    let named = named.map(|(name, _)| name.to_owned()).collect();
    (report, named)
}

#[test]
fn what_can_not_take_its_scheme_stays_dense_where_that_is_allowed_and_is_listed() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 3), Dtype::F32);
    let quantization = allowing(Alternative::Dense, int4(64));
    let (report, dense) = dense_projections(&checkpoint, &quantization);
    let downs = [0, 1].map(|layer| format!("model.layers.{layer}.mlp.down_proj.weight"));
    assert_eq!(dense, downs);
    let expected = downs.map(|name| Instead {
        name,
        asked: treatment(4, 64, Method::RoundToNearest),
        got: Treatment::Dense,
        reason: "group_size 64 does not divide its 96 columns".to_owned(),
    });
    assert_eq!(report.instead, expected);
    let told = report.dense.iter().find(|tensor| tensor.name.contains("0.mlp.down_proj")).unwrap();
    assert_eq!(told.reason, "group_size 64 does not divide its 96 columns, and the recipe allows dense");
    let line = "dense instead of INT4 g64 to nearest: `model.layers.0.mlp.down_proj.weight`, and 1 more: group_size 64 does not \
                divide its 96 columns";
    assert_eq!(report.taken_instead(), [line]);
    assert!(report.tensors.iter().all(|tensor| tensor.asked == tensor.got));

    let quantization = allowing(Alternative::Dense, Quantization { embedding_group_size: 48, ..int4(32) });
    let (report, dense) = dense_projections(&checkpoint, &quantization);
    assert_eq!(dense, ["model.embed_tokens.weight"]);
    assert_eq!(report.instead[0].reason, "embedding_group_size 48 does not divide its 64 columns");

    // Nothing is left that takes a scheme: that is said of each, and the artifact opens all the same.
    let quantization = Quantization { embedding_group_size: 48, ..allowing(Alternative::Dense, int4(40)) };
    let (report, dense) = dense_projections(&checkpoint, &quantization);
    assert_eq!((report.tensors.len(), report.instead.len(), dense.len()), (0, 15, 15));

    // Only gate and up have rows that 48 divides.
    let quantization = allowing(Alternative::Dense, Quantization { codebook_rows: Some(48), ..kmeans() });
    let (report, dense) = dense_projections(&checkpoint, &quantization);
    assert_eq!(dense.len(), 2 * 5, "{dense:?}");
    assert_eq!(report.instead[0].reason, "codebook_rows 48 does not divide its 64 output rows");
    assert_eq!(report.instead[0].asked.to_string(), "4-bit codebook per 48 rows");
}

#[test]
fn what_no_candidate_of_a_target_fits_stays_dense_where_that_is_allowed() {
    let architecture = architecture(Family::Llama, true);
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture.clone(), 3), Dtype::F32);
    let target =
        |bytes| Target { most: Most::Bytes(bytes), candidates: vec![scheme(4, 64), scheme(8, 64)], chooses_embedding: true };
    let refused = target(1 << 20).refusals(&Quantization::default(), &architecture, Dtype::F32);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].hint(false), Some(HINT));
    let allowed = allowing(Alternative::Dense, Quantization::default());
    assert_eq!(target(1 << 20).refusals(&allowed, &architecture, Dtype::F32), []);
    let choices = target(1 << 20).choices(&allowed, &architecture);
    assert_eq!(choices.len(), 2 * 6 + 1, "all but the down projections");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(Sensitivities::FILE);
    let measured = measure_sensitivities(&checkpoint, &allowed, &choices, [&calibration(); 2], &file, &mut |_, _, _| {}).unwrap();
    let least = target(0).least(&allowed, &architecture, Dtype::F32).unwrap().artifact_bytes;
    let (settled, _) = target(least + 1000).choose(&allowed, &architecture, Dtype::F32, &measured).unwrap();
    let (report, dense) = dense_projections(&checkpoint, &settled);
    assert!(report.artifact_bytes <= least + 1000);
    assert_eq!(dense, [0, 1].map(|layer| format!("model.layers.{layer}.mlp.down_proj.weight")));
    assert_eq!((report.instead.len(), report.instead[0].asked), (2, Treatment::Candidate));
    assert_eq!(report.instead[0].reason, "no candidate's group_size divides its 96 columns");
}

const HINT: &str = "or allow = [\"dense\"]: what can't take its scheme then stays dense, and the report lists it";

#[test]
fn the_refusal_names_the_alternative_unless_it_does_not_help() {
    let all = |quantization: &Quantization, family| {
        let refused = refusals(quantization, &architecture(family, true), Dtype::F32);
        let hint = |refusal: &crate::quantize::Refusal| refusal.hint(quantization.allows(Alternative::Dense));
        refused.iter().map(|refusal| (refusal.to_string(), hint(refusal))).collect::<Vec<_>>()
    };
    let found = all(&int4(64), Family::Llama);
    let expected = "group_size 64 does not divide intermediate_size 96 (`model.layers.0.mlp.down_proj.weight`); divisors of 96 are 1, 2, \
                    3, 4, 6, 8, 12, 16, 24, 32, 48, 96";
    assert_eq!(found, [(expected.to_owned(), Some(HINT))]);
    assert_eq!(all(&allowing(Alternative::Dense, int4(64)), Family::Llama), []);
    // GPT-2 stores its matrices the other way round.
    assert_eq!(all(&int4(64), Family::Gpt2)[0].1, None);
    let found = all(&allowing(Alternative::Dense, int4(64)), Family::Gpt2);
    assert_eq!(found.len(), 1);
    let hint = "it can't stay dense: its family stores matrices [in, out], and an artifact has them [out, in]";
    assert_eq!(found[0].1, Some(hint));
    // Groups of nothing are a mistake of the recipe, whatever a tensor could take.
    assert_eq!(all(&allowing(Alternative::Dense, int4(0)), Family::Llama)[0].1, None);
}

#[test]
fn what_is_as_it_was_asked_for_says_so_whatever_is_allowed() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen2, false), 5), Dtype::F32);
    let allow = vec![Alternative::Dense, Alternative::LessText];
    for quantization in [int4(32), gptq(), kmeans()] {
        let method = quantization.method;
        let quantization = Quantization { allow: allow.clone(), ..quantization };
        let (_out, report) = write(&checkpoint, &quantization, Some(&calibration()));
        assert_eq!((report.instead.len(), report.taken_instead().len()), (0, 0));
        assert_eq!(report.tensors.len(), 2 * 7 + 2);
        for tensor in &report.tensors {
            assert_eq!(tensor.asked, tensor.got, "{}", tensor.name);
            let Treatment::Quantized { scheme, method: found } = tensor.got else { panic!("{} is quantized", tensor.name) };
            assert_eq!(scheme, tensor.scheme);
            // An embedding of its own has no inputs, and the ends are no codebooks.
            let expected = match (tensor.name.as_str(), method) {
                ("model.embed_tokens.weight", _) | ("lm_head.weight", Method::Kmeans) => Method::RoundToNearest,
                (_, method) => method,
            };
            assert_eq!(found, expected, "{}", tensor.name);
        }
    }
}

#[test]
fn a_hessian_without_an_inverse_has_its_matrices_rounded_to_nearest_where_that_is_allowed() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    // One token: every input is one vector, and without damping its Hessian has no inverse.
    let same = Calibration { tokens: vec![3], window: 1, kept_in: None, spilled_in: None };
    let undamped = allowing(Alternative::RoundToNearest, Quantization { damping: 0.0, ..gptq() });
    let (out, report) = write(&checkpoint, &undamped, Some(&same));
    let nearest = write(&checkpoint, &Quantization { method: Method::RoundToNearest, ..undamped.clone() }, Some(&same));
    let [found, nearest] = [&out, &nearest.0].map(|out| Artifact::open(out.path()).unwrap());
    for module in ["q_proj", "k_proj", "v_proj"] {
        let name = format!("model.layers.0.self_attn.{module}.weight");
        let expected = Instead {
            name: name.clone(),
            asked: treatment(4, 32, Method::Gptq),
            got: treatment(4, 32, Method::RoundToNearest),
            reason: "what it multiplies on the calibration text has no positive definite Hessian with damping 0".to_owned(),
        };
        assert_eq!(report.instead.iter().find(|instead| instead.name == name), Some(&expected));
        let tensor = report.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!((tensor.asked, tensor.got), (expected.asked, expected.got));
        assert_eq!(tensor.output_error, tensor.output_error_rounded_to_nearest);
        // With the same clipping, so to the same integers as by asking for that.
        let integers = |artifact: &Artifact| match artifact.stored().find(|(other, _)| *other == name).unwrap().1 {
            ArtifactTensor::Quantized(matrix) => (0..matrix.rows).map(|row| matrix.row(row)).collect::<Vec<_>>(),
            ArtifactTensor::Codebooks(_) | ArtifactTensor::Dense(_) => panic!("{name} is a matrix of integers"),
        };
        assert_eq!(integers(&found), integers(&nearest));
    }
    // What was kept of a layer keeps it.
    let kept = tempfile::tempdir().unwrap();
    let same = Calibration { kept_in: Some(kept.path().join("layers")), ..same };
    let stopped = tempfile::tempdir().unwrap();
    let mut stop = |done, _: u64, what: &str| assert!(what != "layers" || done != 1, "stopped");
    let work = || quantize(&checkpoint, &undamped, Some(&same), stopped.path(), &mut stop);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    assert_eq!(write(&checkpoint, &undamped, Some(&same)).1, report);
}

/// One row of weights and inputs that depend on each other: where there are few levels, GPTQ sometimes loses what it borrows.
fn row(step: usize) -> (Vec<f32>, Hessian) {
    let wave = |len: usize, factor: f64| (0..len).map(move |index| ((index * index) as f64 * factor + index as f64).sin() as f32);
    let weights = wave(8, 0.37 + step as f64 * 0.013).collect();
    let free: Vec<f32> = wave(16 * 8, 0.71 + step as f64 * 0.017).collect();
    let inputs: Vec<f32> = free.iter().enumerate().map(|(index, x)| x + 2.0 * free[index - index % 8]).collect();
    (weights, Hessian::of(8, std::iter::once(inputs)))
}

#[test]
fn a_matrix_that_gptq_rounds_with_more_error_is_rounded_to_nearest_where_that_is_allowed() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let stored = &Family::stored(checkpoint.architecture())[1];
    let levels: (Levels, bool) = (scheme(2, 8).into(), true);
    let mut worse = 0;
    for step in 0..300 {
        let quantized = |allow: Vec<Alternative>| -> Quantized {
            let quantization = Quantization { allow, clipping: Clipping::None, ..gptq() };
            let (weights, hessian) = row(step);
            Gathered::new(&checkpoint, &quantization, stored, hessian)
                .unwrap()
                .quantize(stored, Rows::Memory(&weights), levels)
                .unwrap()
        };
        let (strict, allowed) = (quantized(Vec::new()), quantized(vec![Alternative::RoundToNearest]));
        let (error, nearest) = (strict.output_error.relative, strict.output_error.rounded_to_nearest.unwrap());
        assert_eq!(strict.output_error.not_gptq, None);
        if nearest < error {
            worse += 1;
            assert_eq!(allowed.output_error.not_gptq, Some(NotGptq::Worse { gptq: error }));
            assert_eq!((allowed.output_error.relative, allowed.output_error.rounded_to_nearest), (nearest, Some(nearest)));
            assert_ne!(allowed.matrix.to_f32(), strict.matrix.to_f32());
            let asked = treatment(2, 8, Method::Gptq);
            let instead = allowed.output_error.instead(&gptq(), "x", asked).unwrap();
            let reason = format!("GPTQ adds {error:.4} to its output on the calibration text, rounding to nearest {nearest:.4}");
            let got = treatment(2, 8, Method::RoundToNearest);
            assert_eq!(instead, Instead { name: "x".to_owned(), asked, got, reason });
        } else {
            assert_eq!(allowed.output_error, strict.output_error);
            assert_eq!(allowed.matrix.to_f32(), strict.matrix.to_f32());
        }
    }
    assert!((1..150).contains(&worse), "{worse} of 300");
}

#[test]
fn inputs_that_are_infinite_are_refused_whatever_is_allowed() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let stored = &Family::stored(checkpoint.architecture())[1];
    let quantization = allowing(Alternative::RoundToNearest, gptq());
    let hessian = Hessian::of(2, std::iter::once([1.0, f32::INFINITY]));
    let error = Gathered::new(&checkpoint, &quantization, stored, hessian).err().unwrap();
    let expected =
        format!("tensor `{}`: what it multiplies on the calibration text is infinite, or its squares are", stored.name);
    assert_eq!(error.to_string(), expected);
}

fn measured(file: &Path, checkpoint: &Checkpoint, quantization: &Quantization) -> (Sensitivities, usize) {
    let mut told = 0;
    let found = measure_each(checkpoint, quantization, [&calibration(); 2], file, &mut |_, _, _| told += 1);
    (found.unwrap(), told)
}

#[test]
fn each_tensor_alone_is_measured_as_a_target_measures_it_and_both_share_one_file() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    for quantization in [int4(32), gptq(), allowing(Alternative::RoundToNearest, gptq())] {
        let quantization = Quantization { embedding: EmbeddingScheme::Int4, ..quantization };
        let candidates = |bits: &[u8]| bits.iter().map(|bits| scheme(*bits, 32)).collect();
        let by_target = |bits: &[u8], file: &Path| {
            let target = Target { most: Most::Bytes(1 << 20), candidates: candidates(bits), chooses_embedding: true };
            let choices = target.choices(&quantization, checkpoint.architecture());
            measure_sensitivities(&checkpoint, &quantization, &choices, [&calibration(); 2], file, &mut |_, _, _| {}).unwrap()
        };
        let (found, told) = measured(&ours, &checkpoint, &quantization);
        assert_eq!(told, 15);
        let target = by_target(&[4], &theirs);
        let (_out, report) = write(&checkpoint, &quantization, Some(&calibration()));
        assert_eq!(report.tensors.len(), 15);
        let mut changing = 0;
        for tensor in &report.tensors {
            let kl = found.kl(&tensor.name, tensor.scheme);
            changing += usize::from(kl.unwrap() > 0.0);
            assert_eq!(kl, target.kl(&tensor.name, tensor.scheme), "{}", tensor.name);
        }
        // One that changes less than rounding does can come out as 0.
        assert!(changing >= 12, "{changing}");
        // A target's other candidates come beside what is there, and what is there is not measured again.
        let both = by_target(&[3, 4], &ours);
        assert_eq!(both.kl("model.embed_tokens.weight", scheme(4, 32)), found.kl("model.embed_tokens.weight", scheme(4, 32)));
        assert!(both.kl("model.embed_tokens.weight", scheme(3, 32)).is_some());
        let (again, told) = measured(&ours, &checkpoint, &quantization);
        assert_eq!((again, told), (both, 0));
    }
}

#[test]
fn what_is_a_codebook_or_dense_is_measured_or_left_out() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(Sensitivities::FILE);
    let quantization = allowing(Alternative::Dense, Quantization { codebook_rows: Some(48), ..kmeans() });
    let (found, told) = measured(&file, &checkpoint, &quantization);
    assert_eq!(told, 2 * 2 + 1, "gate and up, and the embedding");
    let (_out, report) = write(&checkpoint, &quantization, None);
    let kls: Vec<Option<f64>> = report.tensors.iter().map(|tensor| found.kl(&tensor.name, tensor.scheme)).collect();
    assert!(kls.len() == 5 && kls.iter().all(|kl| kl.is_some_and(|kl| kl > 0.0)), "{kls:?}");
}
