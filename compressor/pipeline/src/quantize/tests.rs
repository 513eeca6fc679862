#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use compressor_engine::{Blocks, Engine, Logits, Observer, Options, Place};
use compressor_format::{
    Architecture, Artifact, ArtifactTensor, Family, InputRounding, LayerTensor, Manifest, Part, Reference, TensorFiles, TensorId,
    Tool, Weights,
};
use serde_json::json;

use super::*;

/// A tiny model: hidden 64, two layers, 4 heads of 16 that share 2 key/value heads, intermediate 96.
pub(super) fn architecture(family: Family, tied: bool) -> Architecture {
    let config = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2", "vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 96,
            "tie_word_embeddings": tied
        }),
        _ => json!({
            "model_type": family.model_type(), "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 32,
            "tie_word_embeddings": tied
        }),
    };
    Family::read(&config, Path::new("config.json")).unwrap()
}

pub(super) fn checkpoint(weights: &Weights, dtype: Dtype) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    weights.write(folder.path(), dtype).unwrap();
    fs_err::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

/// With scales as computed.
fn in_f32(quantization: Quantization) -> Quantization {
    Quantization { scale_dtype: Dtype::F32, ..quantization }
}

fn int4() -> Quantization {
    Quantization { bits: 4, group_size: Some(32), ..Quantization::default() }
}

/// Every kind of quantization there is.
fn kinds() -> Vec<Quantization> {
    let int8 = Quantization::default();
    vec![
        int8.clone(),
        Quantization { embedding: EmbeddingScheme::Dense, dense_dtype: Some(Dtype::Bf16), ..int8.clone() },
        Quantization { activations: Activations::Int8, ..int8.clone() },
        Quantization { activations: Activations::Int8Static, ..int8.clone() },
        Quantization { group_size: Some(16), symmetric: false, ..int8 },
        int4(),
        Quantization { symmetric: false, embedding: EmbeddingScheme::Int4, ..int4() },
        Quantization { clipping: Clipping::Mse, ..int4() },
        Quantization { clipping: Clipping::Mse, symmetric: false, embedding_group_size: 64, ..int4() },
        kmeans(),
        Quantization { bits: 8, codebook_rows: Some(16), scale_dtype: Dtype::F32, ..kmeans() },
    ]
}

pub(super) fn kmeans() -> Quantization {
    Quantization { bits: 4, method: Method::Kmeans, ..Quantization::default() }
}

fn write(checkpoint: &Checkpoint, quantization: &Quantization) -> (tempfile::TempDir, QuantizationReport) {
    let out = tempfile::tempdir().unwrap();
    let report = quantize(checkpoint, quantization, Some(&calibration()), out.path(), &mut |_, _, _| {}).unwrap();
    (out, report)
}

/// The static scales that a report tells of.
fn said_scales(report: &QuantizationReport) -> BTreeMap<String, f32> {
    report.tensors.iter().filter_map(|tensor| Some((tensor.name.clone(), tensor.input_scale?))).collect()
}

#[test]
fn every_family_opens_again_with_the_bytes_that_were_promised() {
    let mut opened = 0;
    for family in Family::ALL {
        for tied in [true, false] {
            let architecture = architecture(family, tied);
            let (_folder, checkpoint) = checkpoint(&Weights::random(architecture.clone(), 3), Dtype::F32);
            for quantization in kinds() {
                let (out, report) = write(&checkpoint, &quantization);
                let sizes = resolve(&quantization, &architecture, Dtype::F32).unwrap();
                let file_bytes = fs_err::metadata(out.path().join("model.safetensors")).unwrap().len();
                assert_eq!(sizes.artifact_bytes, file_bytes, "{family:?} {quantization:?}");
                assert_eq!(report.artifact_bytes, file_bytes);
                let artifact = Artifact::open(out.path()).unwrap();
                assert_eq!(artifact.architecture(), &architecture);
                assert_eq!(artifact.weight_bytes(), file_bytes);
                let rounding = match quantization.activations {
                    Activations::None => InputRounding::None,
                    Activations::Int8 => InputRounding::PerToken,
                    Activations::Int8Static => InputRounding::Static(said_scales(&report)),
                };
                assert_eq!(*artifact.input_rounding(), rounding);
                assert!(out.path().join("tokenizer.json").is_file());
                compare(&checkpoint, &artifact, &report);
                opened += 1;
            }
        }
    }
    assert_eq!(opened, Family::ALL.len() * 2 * 11);
}

/// What the artifact holds, read by `Artifact`, is as far from the checkpoint as the report says; what is dense is exact or rounded.
fn compare(checkpoint: &Checkpoint, artifact: &Artifact, report: &QuantizationReport) {
    let architecture = checkpoint.architecture();
    let mut seen = 0;
    for stored in Family::stored(architecture) {
        let dense: Vec<f32> = stored.parts.iter().flat_map(|part| checkpoint.tensor(*part).unwrap()).collect();
        let read: Vec<f32> = stored.parts.iter().flat_map(|part| artifact.values(*part).unwrap()).collect();
        let tensor = artifact.stored().find(|(name, _)| *name == stored.name).unwrap().1;
        let levels = match tensor {
            ArtifactTensor::Quantized(matrix) => Some(Levels::Grid(matrix.scheme)),
            ArtifactTensor::Codebooks(matrix) => Some(Levels::Codebooks(matrix.codebooks)),
            ArtifactTensor::Dense(_) => None,
        };
        match tensor {
            ArtifactTensor::Quantized(_) | ArtifactTensor::Codebooks(_) => {
                let said = report.tensors.iter().find(|tensor| tensor.name == stored.name).unwrap();
                assert_eq!(levels, Some(said.scheme), "{}", stored.name);
                let errors: Vec<f64> = dense.iter().zip(&read).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
                let squared: f64 = errors.iter().map(|error| error * error).sum();
                let norm: f64 = dense.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
                let largest = errors.iter().fold(0f64, |largest, error| largest.max(error.abs()));
                assert!((said.relative_error - squared / norm).abs() <= 1e-9 * said.relative_error, "{}", stored.name);
                assert!((said.mean_squared_error - squared / dense.len() as f64).abs() <= 1e-9 * said.mean_squared_error);
                assert_eq!(said.max_absolute_error, largest, "{}", stored.name);
                assert_eq!(said.weights, dense.len() as u64);
                seen += 1;
            }
            ArtifactTensor::Dense(slice) => {
                let rounded = slice.dtype.to_f32(&slice.dtype.from_f32(&dense).unwrap()).unwrap();
                assert_eq!(rounded, read, "{}", stored.name);
                assert!(report.dense.iter().any(|dense| dense.name == stored.name), "{} is not listed", stored.name);
                seen += 1;
            }
        }
    }
    assert_eq!(seen, report.tensors.len() + report.dense.len());
    let errors: Vec<f64> = report.tensors.iter().map(|tensor| tensor.relative_error).collect();
    assert!(errors.is_sorted_by(|left, right| left >= right), "worst first");
}

#[test]
fn a_matrix_quantizes_as_worked_by_hand() {
    // One row of two groups of 4 at 4 bits: scales 7.5 / 7.5 and 3 / 7.5.
    let row = [7.5, -7.5, 2.5, -0.4, 3.0, -1.0, 0.5, 0.0];
    let scheme = Scheme { bits: 4, group_size: Some(4), symmetric: true };
    let (matrix, distance) = quantize_matrix(&row, 8, scheme, true, &in_f32(Quantization::default()), None).unwrap();
    assert_eq!(matrix.scales, vec![1.0, 0.4].into());
    // 3 / 0.4 = 7.5 is clamped to 7, −2.5 goes to −2, 1.25 to 1.
    assert_eq!(matrix.row_integers(0), [7, -8, 2, 0, 7, -2, 1, 0]);
    // 0.5² + 0.5² + 0.5² + 0.4² + 0.2² + 0.2² + 0.1²
    assert!((distance.squared_error - 1.0).abs() < 1e-6);
    assert_eq!(distance.largest, 0.5);
    // Nibbles 15 0 10 8 15 6 9 8, the low one first.
    let Values::Packed(bytes) = &matrix.values else { panic!("asked for packed") };
    assert_eq!(bytes[..], [0x0f, 0x8a, 0x6f, 0x89]);
}

#[test]
fn the_error_is_at_most_half_a_step() {
    // Up to 128 steps go through a division and a product, each rounded to 24 bits; a scale in f16 is rounded to 11 before.
    const HALF_STEP: f32 = 0.5 + 2.0 * 128.0 * f32::EPSILON;
    const HALF_STEP_OF_F16: f32 = HALF_STEP + 128.0 / 2048.0;
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 8), Dtype::F32);
    let (int8, int3) = (Quantization::default(), Quantization { bits: 3, ..int4() });
    for (quantization, allowed) in [
        (in_f32(int8.clone()), HALF_STEP),
        (in_f32(int4()), HALF_STEP),
        (int8, HALF_STEP_OF_F16),
        (int4(), HALF_STEP_OF_F16),
        (int3, HALF_STEP_OF_F16),
    ] {
        let (out, _) = write(&checkpoint, &quantization);
        let artifact = Artifact::open(out.path()).unwrap();
        for id in checkpoint.architecture().tensors().into_iter().filter(|id| id.is_projection()) {
            let ArtifactTensor::Quantized(matrix) = artifact.tensor(id) else { panic!("{id} is dense") };
            let dense = checkpoint.tensor(id).unwrap();
            for (row, weights) in dense.chunks(matrix.columns).enumerate() {
                let read = matrix.row(row);
                for (index, (weight, read)) in weights.iter().zip(&read).enumerate() {
                    // The largest positive value lies half a step past the last one: no more than any other.
                    let scale = matrix.scales.get(row * matrix.groups() + index / matrix.group_size());
                    assert!((weight - read).abs() <= allowed * scale, "{id} row {row} column {index}: {weight} {read}");
                }
            }
        }
    }
}

#[test]
fn the_search_lowers_the_error_of_every_tensor() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen3, false), 4), Dtype::F32);
    for symmetric in [true, false] {
        let plain = write(&checkpoint, &Quantization { symmetric, ..int4() }).1;
        let searched = write(&checkpoint, &Quantization { symmetric, clipping: Clipping::Mse, ..int4() }).1;
        for tensor in &searched.tensors {
            let before = plain.tensors.iter().find(|before| before.name == tensor.name).unwrap();
            assert!(tensor.relative_error < before.relative_error, "{}", tensor.name);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Gpt2, true), 4), Dtype::F16);
    let quantization = Quantization { clipping: Clipping::Mse, ..int4() };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (out, report) = pool.install(|| write(&checkpoint, &quantization));
        let read = |name: &str| fs_err::read(out.path().join(name)).unwrap();
        (read("model.safetensors"), read("config.json"), report)
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn progress_counts_every_weight() {
    let architecture = architecture(Family::Llama, true);
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture.clone(), 1), Dtype::F32);
    let out = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let mut progress = |done, total, name: &str| seen.push((done, total, name.to_owned()));
    quantize(&checkpoint, &int4(), None, out.path(), &mut progress).unwrap();
    let total = architecture.parameters();
    assert_eq!(seen.first().unwrap(), &(50 * 64, total, "model.embed_tokens.weight".to_owned()));
    assert_eq!(seen.last().unwrap(), &(total, total, "model.norm.weight".to_owned()));
    assert_eq!(seen.len(), Family::stored(&architecture).len());
}

#[test]
fn a_tied_embedding_is_one_tensor_with_one_scheme() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 1), Dtype::F32);
    let (out, report) = write(&checkpoint, &int4());
    let embedding = report.tensors.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.scheme, Levels::Grid(Scheme { bits: 8, group_size: Some(32), symmetric: true }));
    // 50 rows of 64 bytes and 2 scales, and the shape: 8 + 16/32 bits and a little.
    assert_eq!(embedding.bytes, 50 * (64 + 2 * 2) + 16);
    assert!(report.tensors.iter().all(|tensor| tensor.name != "lm_head.weight"));
    assert!(report.dense.iter().all(|tensor| tensor.name.contains("norm")), "{:?}", report.dense);
    let files = TensorFiles::open(out.path()).unwrap();
    assert!(files.iter().all(|(name, _)| !name.starts_with("lm_head")));
}

#[test]
fn narrow_rows_are_read_with_the_bits_they_were_written_with() {
    let config = json!({
        "model_type": "llama", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "head_dim": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 6, "max_position_embeddings": 8, "tie_word_embeddings": false
    });
    let architecture = Family::read(&config, Path::new("config.json")).unwrap();
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture, 2), Dtype::F32);
    for embedding in [EmbeddingScheme::Int4, EmbeddingScheme::Int8] {
        for symmetric in [true, false] {
            let quantization = Quantization { group_size: Some(2), embedding_group_size: 4, embedding, symmetric, ..int4() };
            let (out, report) = write(&checkpoint, &quantization);
            compare(&checkpoint, &Artifact::open(out.path()).unwrap(), &report);
        }
    }
}

fn refusal(quantization: &Quantization) -> Refusal {
    resolve(quantization, &architecture(Family::Llama, true), Dtype::F32).unwrap_err()
}

#[test]
fn a_quantization_that_can_not_be_is_refused_with_the_way_out() {
    let refused = refusal(&Quantization { group_size: Some(40), ..int4() });
    let expected = "group_size 40 does not divide hidden_size 64 (`model.layers.0.self_attn.q_proj.weight`); \
                    divisors of 64 are 1, 2, 4, 8, 16, 32, 64";
    assert_eq!((refused.to_string().as_str(), refused.key()), (expected, Some("group_size")));

    let refused = refusal(&Quantization { group_size: Some(64), ..int4() });
    let expected = "group_size 64 does not divide intermediate_size 96 (`model.layers.0.mlp.down_proj.weight`); \
                    divisors of 96 are 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96";
    assert_eq!(refused.to_string(), expected);

    let refused = refusal(&Quantization { embedding_group_size: 48, ..int4() });
    let expected = "embedding_group_size 48 does not divide hidden_size 64 (`model.embed_tokens.weight`); \
                    divisors of 64 are 1, 2, 4, 8, 16, 32, 64";
    assert_eq!((refused.to_string().as_str(), refused.key()), (expected, Some("embedding_group_size")));

    let refused = refusal(&Quantization { group_size: Some(0), ..int4() });
    assert_eq!(refused.to_string(), "group_size 0 makes no groups; usual are 32, 64 and 128");

    let refused = refusal(&Quantization { bits: 7, ..int4() });
    let expected = "bits 7 is not there; 2, 3, 4, 5, 6 and 8 are";
    assert_eq!((refused.to_string().as_str(), refused.key()), (expected, Some("bits")));

    let refused = refusal(&Quantization { group_size: None, ..int4() });
    let expected = "4 bits need a group_size: one scale for a whole output channel loses too much; usual are 32, 64 and 128";
    assert_eq!(refused.to_string(), expected);

    let refused = refusal(&Quantization { activations: Activations::Int8, ..int4() });
    let expected = "activations \"int8\" needs 8 bits, symmetric, per channel: leave group_size out; \
                    found INT4, groups of 32, symmetric";
    assert_eq!((refused.to_string().as_str(), refused.key()), (expected, Some("activations")));
    let refused = refusal(&Quantization { symmetric: false, ..int8_static() });
    let expected = "activations \"int8_static\" needs 8 bits, symmetric, per channel: leave group_size out; \
                    found INT8, per channel, zero points";
    assert_eq!((refused.to_string().as_str(), refused.key()), (expected, Some("activations")));

    let refused = refusal(&Quantization { dense_dtype: Some(Dtype::I8), ..int4() });
    assert_eq!(refused.to_string(), "dense_dtype i8 is an integer type; f32, f16 and bf16 are there");

    let mut uneven = architecture(Family::Llama, true);
    uneven.layers[1].intermediate_size = 32;
    let expected = "layers of different sizes can't be written: config.json has one size for all layers";
    assert_eq!(resolve(&int4(), &uneven, Dtype::F32).unwrap_err().to_string(), expected);
}

#[test]
fn heads_and_channels_after_pruning_are_named_by_what_they_are() {
    let mut pruned = architecture(Family::Llama, true);
    pruned.layers.iter_mut().for_each(|layer| layer.intermediate_size = 176);
    pruned.head_dim = 12;
    let text = |group_size| {
        let quantization = Quantization { group_size: Some(group_size), ..int4() };
        resolve(&quantization, &pruned, Dtype::F32).unwrap_err().to_string()
    };
    let expected = "group_size 32 does not divide heads · head_dim 48 (`model.layers.0.self_attn.o_proj.weight`); \
                    divisors of 48 are 1, 2, 3, 4, 6, 8, 12, 16, 24, 48";
    assert_eq!(text(32), expected);
    pruned.hidden_size = 96;
    let quantization = Quantization { group_size: Some(48), ..int4() };
    let expected = "group_size 48 does not divide intermediate_size 176 (`model.layers.0.mlp.down_proj.weight`); \
                    divisors of 176 are 1, 2, 4, 8, 11, 16, 22, 44, 88, 176";
    assert_eq!(resolve(&quantization, &pruned, Dtype::F32).unwrap_err().to_string(), expected);
}

#[test]
fn writing_over_the_checkpoint_is_refused() {
    let (folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 1), Dtype::F32);
    let error = quantize(&checkpoint, &int4(), None, &folder.path().join("."), &mut |_, _, _| {}).unwrap_err();
    let expected = format!("{}: holds the checkpoint; an artifact needs a folder of its own", folder.path().join(".").display());
    assert_eq!(error.to_string(), expected);
}

/// A checkpoint whose tensor `id` was changed on disk, where no writer checks it.
fn with_value(id: TensorId, index: usize, value: f32) -> (tempfile::TempDir, Checkpoint) {
    let weights = Weights::random(architecture(Family::Llama, true), 1);
    let folder = tempfile::tempdir().unwrap();
    let (architecture, _, values) = weights.into_parts();
    let mut values: BTreeMap<_, _> = values;
    values.get_mut(&id).unwrap()[index] = 1234.5;
    let weights = Weights::new(architecture, json!({}), values);
    weights.write(folder.path(), Dtype::F32).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let at = bytes.windows(4).position(|four| four == 1234.5f32.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs_err::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

#[test]
fn nan_and_infinities_are_refused_by_tensor_and_place() {
    let down = TensorId::Layer(1, LayerTensor::Down(Part::Weight));
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for (id, name) in
            [(down, "model.layers.1.mlp.down_proj.weight"), (TensorId::FinalNorm(Part::Weight), "model.norm.weight")]
        {
            let (folder, checkpoint) = with_value(id, 7, value);
            let out = tempfile::tempdir().unwrap();
            let error = quantize(&checkpoint, &int4(), None, out.path(), &mut |_, _, _| {}).unwrap_err();
            assert_eq!(error.to_string(), format!("{}: tensor `{name}` holds {shown} at element 7", folder.path().display()));
            assert!(!out.path().join("model.safetensors").exists());
        }
    }
}

#[test]
fn weights_whose_scale_would_be_infinite_are_refused() {
    let down = TensorId::Layer(1, LayerTensor::Down(Part::Weight));
    let (folder, checkpoint) = with_value(down, 100, f32::MAX);
    let out = tempfile::tempdir().unwrap();
    for symmetric in [true, false] {
        let quantization = in_f32(Quantization { symmetric, ..int4() });
        let found = quantize(&checkpoint, &quantization, None, out.path(), &mut |_, _, _| {});
        if symmetric {
            // −8 steps of MAX / 7.5.
            let error = found.unwrap_err().to_string();
            let start = format!("{}: tensor `model.layers.1.mlp.down_proj.weight` holds weights from -", folder.path().display());
            assert!(error.starts_with(&start), "{error}");
            let end = "to 3.4028235e38 in row 1: quantized to INT4, groups of 32, symmetric with scales in f32, they stand for \
                       infinite values";
            assert!(error.ends_with(end), "{error}");
        } else {
            // From about 0 to MAX in fifteen steps: every integer stands for a finite value.
            found.unwrap();
        }
    }
}

#[test]
fn dense_values_that_half_precision_can_not_hold_are_refused() {
    let (folder, checkpoint) = with_value(TensorId::FinalNorm(Part::Weight), 3, -70_000.0);
    let out = tempfile::tempdir().unwrap();
    let quantization = Quantization { dense_dtype: Some(Dtype::F16), ..int4() };
    let error = quantize(&checkpoint, &quantization, None, out.path(), &mut |_, _, _| {}).unwrap_err();
    let expected = format!(
        "{}: tensor `model.norm.weight` holds -7e4, which is infinite as f16; dense_dtype = \"f32\" keeps it",
        folder.path().display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn who_opens_an_artifact_is_said_with_the_reason() {
    let shown = |quantization: &Quantization, family| {
        let opens = opens_in(quantization, &architecture(family, true)).into_iter();
        opens.map(|one| (one.program, one.opens, one.reason)).collect::<Vec<_>>()
    };
    let opens =
        |quantization: &Quantization, family| shown(quantization, family).into_iter().map(|one| one.1).collect::<Vec<_>>();
    let dense = Quantization { embedding: EmbeddingScheme::Dense, ..int4() };
    assert_eq!(opens(&dense, Family::Llama), [true, true, true]);
    assert_eq!(opens(&dense, Family::Gpt2), [true, false, false]);
    assert_eq!(opens(&Quantization { group_size: Some(16), ..dense }, Family::Llama), [true, true, false]);
    assert_eq!(opens(&int8_static(), Family::Llama), [true, true, true]);
    assert_eq!(opens(&int8_static(), Family::Gpt2), [true, false, false]);
    let quantized = shown(&int4(), Family::Llama);
    assert_eq!(quantized[0].0, "compressor");
    let expected = "it can't reload a quantized embedding, and this one is INT8: embedding = \"dense\" opens there";
    assert_eq!(quantized[1], ("transformers".to_owned(), false, expected.to_owned()));
}

#[test]
fn numbers_of_heads_that_no_other_program_takes_are_said() {
    let dense = Quantization { embedding: EmbeddingScheme::Dense, ..int4() };
    let of = |architecture: &Architecture| {
        let opens = opens_in(&dense, architecture).into_iter().map(|one| (one.opens, one.reason));
        opens.collect::<Vec<_>>()
    };
    let three_heads = |family| {
        let mut architecture = architecture(family, true);
        architecture.layers.iter_mut().for_each(|layer| (layer.heads, layer.kv_heads) = (3, 3));
        architecture
    };
    let expected = "its GPT-2 has no head_dim, and 3 heads of 16 do not make hidden_size 64: keep every head";
    let found = of(&three_heads(Family::Gpt2));
    assert!(found[0].0);
    assert_eq!(found[1..], [(false, expected.to_owned()), (false, expected.to_owned())]);

    // Written as a Mistral.
    assert!(of(&three_heads(Family::Llama)).iter().all(|one| one.0));
    let expected = "LlamaConfig refuses 3 heads, which do not divide hidden_size 64: keep a number that divides it";
    for (attention, mlp) in [(true, false), (false, true)] {
        let mut biased = three_heads(Family::Llama);
        (biased.attention.qkv_bias, biased.attention.output_bias, biased.mlp.bias) = (attention, attention, mlp);
        assert_eq!(of(&biased)[1..], [(false, expected.to_owned()), (false, expected.to_owned())]);
        biased.layers.iter_mut().for_each(|layer| (layer.heads, layer.kv_heads) = (2, 2));
        assert!(of(&biased).iter().all(|one| one.0));
    }
}

#[test]
fn the_manifest_of_an_artifact_notices_a_changed_scale() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 1), Dtype::F32);
    let (out, report) = write(&checkpoint, &int4());
    let manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        tool: Tool { name: "compressor".to_owned(), version: "0.1.0".to_owned() },
        files: Vec::new(),
        inputs: Vec::new(),
        recipe: json!({}),
        opens_in: report.opens_in,
        reference: Reference { name: "student".to_owned(), dtype: Dtype::F32, bytes: checkpoint.weight_bytes().unwrap() },
        dense_tensors: report.dense,
    };
    let manifest = manifest.write(out.path()).unwrap();
    let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(manifest.check(out.path()).unwrap().is_empty());
    let path = out.path().join("model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let mismatches = manifest.check(out.path()).unwrap();
    assert_eq!(mismatches.len(), 1);
    assert!(mismatches[0].to_string().starts_with("model.safetensors: its BLAKE3 is "), "{}", mismatches[0]);
}

/// What llm-compressor 0.14.0.1 with compressed-tensors 0.19.0 wrote, tensor by tensor, byte by byte.
#[test]
fn llm_compressor_writes_the_same_tensors() {
    let Ok(samples) = std::env::var("COMPRESSOR_SAMPLES") else {
        println!("skipped: COMPRESSOR_SAMPLES is not set");
        return;
    };
    let samples = Path::new(&samples);
    let checkpoint = Checkpoint::open(&samples.join("dense")).unwrap();
    let dense = Quantization { embedding: EmbeddingScheme::Dense, ..Quantization::default() };
    let int4 = Quantization { bits: 4, group_size: Some(32), ..dense.clone() };
    let pairs = [
        ("int4-group32-symmetric", int4.clone()),
        ("int4-group32-asymmetric", Quantization { symmetric: false, ..int4 }),
        ("int8-channel-weight-only", dense.clone()),
        ("int8-w8a8-dynamic", Quantization { activations: Activations::Int8, ..dense }),
    ];
    for (folder, quantization) in pairs {
        let (out, _) = write(&checkpoint, &in_f32(quantization));
        let (ours, theirs) = (TensorFiles::open(out.path()).unwrap(), TensorFiles::open(&samples.join(folder)).unwrap());
        let names = |files: &TensorFiles| files.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{folder}");
        assert!(names(&ours).len() > 30, "{folder}");
        for (name, tensor) in theirs.iter() {
            let own = ours.get(name).unwrap();
            assert_eq!((own.dtype, &own.shape), (tensor.dtype, &tensor.shape), "{folder} {name}");
            assert!(*own.bytes == *tensor.bytes, "{folder} {name}: bytes differ");
        }
    }
}

/// A real model: the bytes that were promised, and errors that are printed for people.
#[test]
fn smollm2_quantizes_to_the_bytes_that_were_promised() {
    let Ok(assets) = std::env::var("COMPRESSOR_ASSETS") else {
        println!("skipped: COMPRESSOR_ASSETS is not set");
        return;
    };
    let checkpoint = Checkpoint::open(&Path::new(&assets).join("smollm2-135m")).unwrap();
    for quantization in [
        Quantization::default(),
        int4(),
        Quantization { clipping: Clipping::Mse, ..int4() },
        Quantization { clipping: Clipping::Mse, symmetric: false, ..int4() },
    ] {
        let start = std::time::Instant::now();
        let (out, report) = write(&checkpoint, &quantization);
        let seconds = start.elapsed().as_secs_f64();
        let file_bytes = fs_err::metadata(out.path().join("model.safetensors")).unwrap().len();
        assert_eq!(report.artifact_bytes, file_bytes);
        assert_eq!(report.tensors.len(), 30 * 7 + 1);
        let worst = &report.tensors[0];
        let mean = report.tensors.iter().map(|tensor| tensor.relative_error).sum::<f64>() / report.tensors.len() as f64;
        println!(
            "{} {:?}: {file_bytes} bytes, {:.3} bits per weight, relative error {mean:.3e}, worst {} {:.3e}, {seconds:.2} s",
            worst.scheme, quantization.clipping, report.bits_per_weight, worst.name, worst.relative_error
        );
    }
}

/// Text for a model with a vocabulary of 50.
pub(super) fn calibration() -> Calibration {
    Calibration {
        tokens: (0..9 * 16).map(|index| (index * index * 7 + index) % 50).collect(),
        window: 16,
        kept_in: None,
        spilled_in: None,
    }
}

fn gptq() -> Quantization {
    Quantization { method: Method::Gptq, clipping: Clipping::Activation, ..int4() }
}

#[test]
fn gptq_errs_less_on_the_text_than_rounding_to_nearest_and_the_report_says_so() {
    for (family, tied) in [(Family::Llama, true), (Family::Gpt2, true), (Family::Qwen3, true), (Family::Qwen2, false)] {
        let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(family, tied), 5), Dtype::F32);
        let out = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        let mut progress = |done, of, what: &str| seen.push((done, of, what.to_owned()));
        let report = quantize(&checkpoint, &gptq(), Some(&calibration()), out.path(), &mut progress).unwrap();
        let layers = checkpoint.architecture().layers.len() as u64;
        assert_eq!(seen[0], (1, layers, "layers".to_owned()));
        let errors: Vec<(f64, f64)> = report
            .tensors
            .iter()
            .filter_map(|tensor| Some((tensor.output_error?, tensor.output_error_rounded_to_nearest?)))
            .collect();
        let projections =
            Family::stored(checkpoint.architecture()).iter().filter(|stored| stored.parts[0].is_projection()).count();
        assert_eq!(errors.len(), projections + 1, "{family:?}: the head too, which a tied embedding is");
        let (gptq, nearest) = errors.iter().fold((0.0, 0.0), |sums, error| (sums.0 + error.0, sums.1 + error.1));
        assert!(gptq > 0.0 && gptq < 0.9 * nearest, "{family:?}: {gptq}, nearest {nearest}");
        let artifact = Artifact::open(out.path()).unwrap();
        assert_eq!(artifact.stored().count(), Family::stored(checkpoint.architecture()).len());
    }
}

#[test]
fn the_number_of_threads_changes_no_byte_of_gptq() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::Bf16);
    let written = |threads| {
        let out = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| quantize(&checkpoint, &gptq(), Some(&calibration()), out.path(), &mut |_, _, _| {})).unwrap();
        fs_err::read(out.path().join("model.safetensors")).unwrap()
    };
    let one = written(1);
    assert!(one == written(2) && one == written(7));
}

#[test]
fn a_quantization_that_was_stopped_goes_on_with_the_next_layer_and_gives_the_same_bytes() {
    for symmetric in [true, false] {
        let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::Bf16);
        let kept = tempfile::tempdir().unwrap();
        let kept = kept.path().join("layers");
        let run = |kept_in: Option<&Path>, stop_after: Option<u64>| {
            let out = tempfile::tempdir().unwrap();
            let calibration = Calibration { kept_in: kept_in.map(Path::to_owned), ..calibration() };
            let quantization =
                Quantization { symmetric, overrides: vec![overriding("*.v_proj", |one| one.bits = Some(8))], ..gptq() };
            let mut stop = |done, _: u64, what: &str| {
                assert!(what != "layers" || Some(done) != stop_after, "stopped");
            };
            let work = || quantize(&checkpoint, &quantization, Some(&calibration), out.path(), &mut stop).unwrap();
            let report = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok();
            (report, fs_err::read(out.path().join("model.safetensors")).ok())
        };
        let whole = run(None, None);
        assert!(whole.0.is_some());
        let first = kept.join("layer-0.safetensors");
        let (report, file) = run(Some(&kept), Some(1));
        assert!(report.is_none() && file.is_none() && first.is_file());
        let layer = fs_err::read(&first).unwrap();
        assert!(run(Some(&kept), None) == whole, "the same bytes and the same report");
        assert!(first.is_file(), "whoever asked for the artifact removes them when it is safe");

        // What was kept is what is used: another integer there is another artifact.
        let mut changed = layer.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs_err::create_dir_all(&kept).unwrap();
        fs_err::write(&first, &changed).unwrap();
        assert!(run(Some(&kept), None).1 != whole.1);
        // Layers of another choice are none of this one's.
        let chosen = Quantization { symmetric, ..gptq() };
        let whole_of_another = {
            let out = tempfile::tempdir().unwrap();
            quantize(&checkpoint, &chosen, Some(&calibration()), out.path(), &mut |_, _, _| {}).unwrap();
            fs_err::read(out.path().join("model.safetensors")).unwrap()
        };
        fs_err::create_dir_all(&kept).unwrap();
        fs_err::write(&first, &layer).unwrap();
        let out = tempfile::tempdir().unwrap();
        let going_on = Calibration { kept_in: Some(kept.clone()), ..calibration() };
        quantize(&checkpoint, &chosen, Some(&going_on), out.path(), &mut |_, _, _| {}).unwrap();
        assert!(fs_err::read(out.path().join("model.safetensors")).unwrap() == whole_of_another);
        // A file that is no such layer is quantized again.
        for broken in [&layer[..layer.len() - 1], b"{}", &layer[..9]] {
            fs_err::create_dir_all(&kept).unwrap();
            fs_err::write(&first, broken).unwrap();
            assert!(run(Some(&kept), None) == whole);
        }
    }
}

fn int8_static() -> Quantization {
    Quantization { activations: Activations::Int8Static, embedding: EmbeddingScheme::Dense, ..Quantization::default() }
}

/// A Llama with one value everywhere in a tensor.
fn filled(id: TensorId, value: f32) -> (tempfile::TempDir, Checkpoint) {
    let (architecture, config, mut tensors) = Weights::random(architecture(Family::Llama, true), 5).into_parts();
    tensors.get_mut(&id).unwrap().fill(value);
    checkpoint(&Weights::new(architecture, config, tensors), Dtype::F32)
}

/// The largest magnitude of what each projection multiplies, on the calibration text.
struct Largest<'a> {
    architecture: &'a Architecture,
    found: BTreeMap<String, f32>,
}

impl Observer for Largest<'_> {
    fn observe(&mut self, layer: usize, place: Place, activations: &[f32]) {
        use LayerTensor::{Down, Gate, Key, Output, Query, Up, Value};
        let tensors: &[fn(Part) -> LayerTensor] = match place {
            Place::AttentionInput => &[Query, Key, Value],
            Place::OutputInput => &[Output],
            Place::MlpInput => &[Gate, Up],
            Place::DownInput => &[Down],
            Place::LayerInput | Place::LayerOutput => &[],
        };
        let largest = activations.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for stored in Family::stored(self.architecture) {
            if tensors.iter().any(|tensor| stored.parts[0] == TensorId::Layer(layer, tensor(Part::Weight))) {
                let known = self.found.entry(stored.name).or_default();
                *known = known.max(largest);
            }
        }
    }
}

#[test]
fn static_scales_reach_the_largest_input_of_a_model_with_quantized_weights() {
    const WORST_RELATIVE_DIFFERENCE: f32 = 1e-5; // Sums in another order, by the engine's forward pass.
    for (family, scaling, method) in [
        (Family::Llama, Scaling::None, Method::RoundToNearest),
        (Family::Llama, Scaling::SmoothQuant, Method::RoundToNearest),
        (Family::Qwen2, Scaling::Awq, Method::Gptq),
        (Family::Gpt2, Scaling::None, Method::RoundToNearest),
    ] {
        let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(family, true), 5), Dtype::F32);
        let quantization = Quantization { scaling, method, ..in_f32(int8_static()) };
        let (out, report) = write(&checkpoint, &quantization);
        let artifact = Artifact::open(out.path()).unwrap();
        let architecture = artifact.architecture();
        // What the layers before make of the text is what their quantized weights make of it, activations being as they are.
        let values = architecture.tensors().into_iter().map(|id| (id, artifact.values(id).unwrap())).collect();
        let engine = Engine::from_weights(&Weights::new(architecture.clone(), json!({}), values), Options::default()).unwrap();
        let mut largest = Largest { architecture, found: BTreeMap::new() };
        let Calibration { tokens, window, .. } = calibration();
        for window in tokens.chunks(window) {
            engine.forward_observed(&mut engine.cache(0), window, Logits::Last, &mut largest).unwrap();
        }
        let said = said_scales(&report);
        assert_eq!(*artifact.input_rounding(), InputRounding::Static(said.clone()));
        assert!(said.keys().eq(largest.found.keys()), "{family:?}: every projection and nothing else");
        for (name, largest) in largest.found {
            let difference = (said[&name] * 127.5 / largest - 1.0).abs();
            assert!(difference < WORST_RELATIVE_DIFFERENCE, "{family:?}, {name}: {} for {largest}", said[&name]);
        }
    }
}

#[test]
fn static_scales_are_stored_in_the_type_of_scales_and_inputs_of_zeros_have_the_smallest() {
    let (_folder, checkpoint) = filled(TensorId::Layer(0, LayerTensor::MlpNorm(Part::Weight)), 0.0);
    let exact = said_scales(&write(&checkpoint, &in_f32(int8_static())).1);
    for scale_dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let overrides = vec![overriding("model.layers.1.mlp.*", |one| one.dense = true)];
        let quantization = Quantization { scale_dtype, overrides, ..int8_static() };
        let (out, _) = write(&checkpoint, &quantization);
        let files = TensorFiles::open(out.path()).unwrap();
        let read = |name: &str| {
            let scale = files.get(&format!("model.layers.{name}.input_scale"))?;
            assert_eq!((scale.dtype, scale.shape.as_slice()), (scale_dtype, [1].as_slice()));
            scale.to_f32()
        };
        for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
            assert_eq!(read(&format!("0.{name}")), Some(vec![f32::EPSILON]), "of zeros, {scale_dtype}");
            assert_eq!(read(&format!("1.{name}")), None, "what stays dense rounds nothing");
        }
        let query = read("0.self_attn.q_proj").unwrap();
        let expected = exact["model.layers.0.self_attn.q_proj.weight"];
        assert_eq!(query, [scale_dtype.nearest(expected).unwrap()]);
        assert_eq!([read("0.self_attn.k_proj"), read("0.self_attn.v_proj")], [Some(query.clone()), Some(query)]);
    }
}

#[test]
fn inputs_that_no_static_scale_covers_are_refused_with_the_way_out() {
    let (_folder, checkpoint) = filled(TensorId::Layer(0, LayerTensor::AttentionNorm(Part::Weight)), 1e9);
    let out = tempfile::tempdir().unwrap();
    let text = calibration();
    let run = |quantization: &Quantization| quantize(&checkpoint, quantization, Some(&text), out.path(), &mut |_, _, _| {});
    let blocks = Blocks::new(&checkpoint, Options::default()).unwrap();
    let inputs = blocks.block(0).unwrap().attention_input(&blocks.embed(&text.tokens, text.window).unwrap());
    let largest = inputs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let refused = run(&int8_static()).unwrap_err().to_string();
    let expected = format!(
        "tensor `model.layers.0.self_attn.q_proj.weight`: what it multiplies reaches {largest:e} on the calibration text, which no scale \
         in f16 covers; scale_dtype = \"f32\" may hold them"
    );
    assert_eq!(refused, expected);
    let scales = said_scales(&run(&in_f32(int8_static())).unwrap());
    assert_eq!(scales["model.layers.0.self_attn.q_proj.weight"], largest / 127.5);
}

#[test]
fn static_scales_that_were_kept_give_the_same_bytes_on_any_threads() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen3, true), 5), Dtype::Bf16);
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().join("layers");
    let run = |activations, threads, kept_in: Option<&Path>, stop_after: Option<u64>| {
        let out = tempfile::tempdir().unwrap();
        let calibration = Calibration { kept_in: kept_in.map(Path::to_owned), ..calibration() };
        // Dynamic scales alone look at no text.
        let quantization = Quantization { activations, clipping: Clipping::Activation, ..int8_static() };
        let mut stop = |done, _: u64, what: &str| assert!(what != "layers" || Some(done) != stop_after, "stopped");
        let mut work = || quantize(&checkpoint, &quantization, Some(&calibration), out.path(), &mut stop).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let alone = std::panic::AssertUnwindSafe(|| pool.install(&mut work));
        let report = std::panic::catch_unwind(alone).ok();
        (report, fs_err::read(out.path().join("model.safetensors")).ok())
    };
    let [of_static, of_dynamic] = [Activations::Int8Static, Activations::Int8].map(|activations| run(activations, 1, None, None));
    assert!(of_static.1.is_some() && of_dynamic.1.is_some() && of_static.1 != of_dynamic.1);
    assert!(run(Activations::Int8Static, 2, None, None) == of_static);
    let first = kept.join("layer-0.safetensors");
    for (activations, own, other, others) in [
        (Activations::Int8Static, &of_static, Activations::Int8, &of_dynamic),
        (Activations::Int8, &of_dynamic, Activations::Int8Static, &of_static),
    ] {
        assert!(run(activations, 2, Some(&kept), Some(1)).0.is_none() && first.is_file());
        let layer = fs_err::read(&first).unwrap();
        assert!(run(activations, 1, Some(&kept), None) == *own, "the same bytes and the same report");
        // One that lost its scales is quantized again.
        let of_a_scale = b"input_scale\\\":0";
        if let Some(at) = layer.windows(of_a_scale.len()).position(|text| text == of_a_scale) {
            let mut without = layer.clone();
            without[at..][..11].copy_from_slice(b"input_other");
            fs_err::create_dir_all(&kept).unwrap();
            fs_err::write(&first, &without).unwrap();
            assert!(run(activations, 1, Some(&kept), None) == *own);
        } else {
            assert_eq!(activations, Activations::Int8, "static scales are kept");
        }
        // A layer of the other kind has no scales, or has them for nothing.
        fs_err::create_dir_all(&kept).unwrap();
        fs_err::write(&first, &layer).unwrap();
        assert!(run(other, 1, Some(&kept), None) == *others);
    }
}

#[test]
fn activations_that_are_spilled_to_disk_give_the_same_bytes_and_leave_nothing() {
    for scaling in [Scaling::None, Scaling::Awq] {
        let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen2, true), 5), Dtype::Bf16);
        let spilled = tempfile::tempdir().unwrap();
        let folder = spilled.path().join("activations");
        let run = |spilled_in: Option<PathBuf>, kept_in: Option<PathBuf>| {
            let out = tempfile::tempdir().unwrap();
            let is_spilled = spilled_in.is_some();
            let calibration = Calibration { spilled_in, kept_in, ..calibration() };
            let mut files = Vec::new();
            let mut seen = |done, _: u64, what: &str| {
                if what == "layers" && done == 1 && is_spilled {
                    files = fs_err::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                }
            };
            let quantization = Quantization { scaling, ..gptq() };
            let report = quantize(&checkpoint, &quantization, Some(&calibration), out.path(), &mut seen).unwrap();
            (report, fs_err::read(out.path().join("model.safetensors")).unwrap(), files)
        };
        let (report, bytes, _) = run(None, None);
        let (spilled_report, spilled_bytes, files) = run(Some(folder.clone()), Some(spilled.path().join("layers")));
        assert!(spilled_bytes == bytes && spilled_report == report);
        assert_eq!(files, ["residual.f32"], "inputs are gone when their projection is done");
        assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn every_width_is_written_and_read_as_it_was_rounded() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, false), 6), Dtype::F32);
    let mut bytes = Vec::new();
    for bits in Scheme::BITS {
        for symmetric in [true, false] {
            let quantization = Quantization { bits, symmetric, group_size: Some(16), ..int4() };
            let (out, report) = write(&checkpoint, &quantization);
            let artifact = Artifact::open(out.path()).unwrap();
            let found = artifact.stored().filter(|(name, tensor)| {
                matches!(tensor, ArtifactTensor::Quantized(matrix) if name.contains("proj") && matrix.scheme.bits == bits)
            });
            assert_eq!(found.count(), 14, "{bits} bits");
            if symmetric {
                bytes.push(report.artifact_bytes);
            }
        }
    }
    assert!(bytes.is_sorted() && bytes.first() < bytes.last(), "{bytes:?}");
}

#[test]
fn weights_beyond_the_type_of_the_scales_are_refused_with_the_way_out() {
    let down = TensorId::Layer(1, LayerTensor::Down(Part::Weight));
    let (_folder, checkpoint) = with_value(down, 100, 1e9);
    let out = tempfile::tempdir().unwrap();
    let error = quantize(&checkpoint, &int4(), None, out.path(), &mut |_, _, _| {}).unwrap_err().to_string();
    let end = "quantized to INT4, groups of 32, symmetric with scales in f16, they stand for infinite values; scale_dtype = \"f32\" \
               may hold them";
    assert!(error.ends_with(end), "{error}");
    let gptq = quantize(&checkpoint, &gptq(), Some(&calibration()), out.path(), &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(gptq.ends_with(end), "{gptq}");
    quantize(&checkpoint, &in_f32(int4()), None, out.path(), &mut |_, _, _| {}).unwrap();
}

#[test]
fn what_looks_at_text_is_refused_without_it_and_where_it_does_harm() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let out = tempfile::tempdir().unwrap();
    let error = quantize(&checkpoint, &gptq(), None, out.path(), &mut |_, _, _| {}).unwrap_err();
    let expected =
        "method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\" look at text: a dataset is needed";
    assert_eq!(error.to_string(), expected);
    let error = quantize(&checkpoint, &int8_static(), None, out.path(), &mut |_, _, _| {}).unwrap_err();
    assert_eq!(error.to_string(), expected);
    // One token after the other the same: every input is one vector, and without damping its Hessian has no inverse.
    let same = Calibration { tokens: vec![3], window: 1, kept_in: None, spilled_in: None };
    let undamped = Quantization { damping: 0.0, ..gptq() };
    let error = quantize(&checkpoint, &undamped, Some(&same), out.path(), &mut |_, _, _| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `model.layers.0.self_attn.q_proj.weight`: what it multiplies on the calibration text has no positive definite Hessian \
         with damping 0; raise damping, or calibration_tokens, or allow = [\"round_to_nearest\"]"
    );
    let harm = Error::WorseThanNearest { gptq: 0.5, nearest: 0.25 };
    assert_eq!(
        harm.to_string(),
        "GPTQ adds 0.5000 to the outputs of the projections on the calibration text, rounding to nearest 0.2500 (sums of relative mean \
         squares): method = \"round_to_nearest\" is better here, or more calibration_tokens, or allow = [\"round_to_nearest\"], which \
         takes the better of both for each matrix"
    );
}

pub(super) fn overriding(pattern: &str, change: impl FnOnce(&mut Override)) -> Override {
    let mut one = Override { pattern: pattern.to_owned(), bits: None, group_size: None, symmetric: None, dense: false };
    change(&mut one);
    one
}

#[test]
fn the_last_override_that_says_something_decides() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let overrides = vec![
        overriding("*.down_proj", |one| one.bits = Some(8)),
        overriding("model.layers.1.mlp.*", |one| one.group_size = Some(16)),
        overriding("*.0.self_attn.?_proj", |one| one.dense = true),
        overriding("*.0.self_attn.v_proj", |one| (one.bits, one.symmetric) = (Some(6), Some(false))),
        overriding("model.embed_tokens", |one| one.bits = Some(5)),
    ];
    let quantization = Quantization { overrides, ..int4() };
    let (out, report) = write(&checkpoint, &quantization);
    let artifact = Artifact::open(out.path()).unwrap();
    let scheme = |module: &str| {
        let name = format!("{module}.weight");
        let tensors: BTreeMap<_, _> = artifact.stored().collect();
        match tensors[name.as_str()] {
            ArtifactTensor::Quantized(matrix) => Some(matrix.scheme.to_string()),
            ArtifactTensor::Codebooks(_) | ArtifactTensor::Dense(_) => None,
        }
    };
    let expected = [
        ("model.layers.0.mlp.down_proj", Some("INT8, groups of 32, symmetric")),
        ("model.layers.1.mlp.down_proj", Some("INT8, groups of 16, symmetric")),
        ("model.layers.1.mlp.up_proj", Some("INT4, groups of 16, symmetric")),
        ("model.layers.0.mlp.up_proj", Some("INT4, groups of 32, symmetric")),
        ("model.layers.0.self_attn.q_proj", None),
        ("model.layers.0.self_attn.v_proj", Some("INT6, groups of 32, zero points")),
        ("model.layers.1.self_attn.q_proj", Some("INT4, groups of 32, symmetric")),
        ("model.embed_tokens", Some("INT5, groups of 32, symmetric")),
    ];
    for (module, expected) in expected {
        assert_eq!(scheme(module).as_deref(), expected, "{module}");
    }
    let dense = report.dense.iter().find(|dense| dense.name.contains("0.self_attn.q_proj")).unwrap();
    assert_eq!(dense.reason, "an override of the recipe asks for it");
    assert_eq!(quantization.name(), "INT4 g32 mixed");
    let config: serde_json::Value = serde_json::from_slice(&fs_err::read(out.path().join("config.json")).unwrap()).unwrap();
    let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
    assert_eq!(ignored.len(), 4, "three projections and the head: {ignored:?}");
    // Most projections are INT4 in groups of 32: their class names them, the others are named one by one.
    let targets: Vec<String> = (0..6)
        .map(|group| config["quantization_config"]["config_groups"][format!("group_{group}")]["targets"].to_string())
        .collect();
    assert!(targets.contains(&"[\"Linear\"]".to_owned()), "{targets:?}");
    assert!(targets.contains(&"[\"model.layers.1.mlp.down_proj\"]".to_owned()), "{targets:?}");
}

#[test]
fn overrides_that_can_not_be_are_refused_with_the_nearest_names() {
    let refusal = |family, overrides: Vec<Override>| {
        let quantization = Quantization { overrides, ..int4() };
        let all = refusals(&quantization, &architecture(family, true), Dtype::F32);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].key(), Some("overrides"));
        all[0].to_string()
    };
    assert_eq!(
        refusal(Family::Llama, vec![overriding("*.down_prj", |one| one.bits = Some(8))]),
        "overrides: `*.down_prj` matches no matrix; nearest are `*.down_proj`, `*.o_proj`, `*.q_proj`"
    );
    assert_eq!(
        refusal(Family::Llama, vec![overriding("model.layers.7.mlp.up_proj", |one| one.bits = Some(8))]),
        "overrides: `model.layers.7.mlp.up_proj` matches no matrix; nearest are `model.layers.0.mlp.up_proj`, \
         `model.layers.1.mlp.up_proj`, `model.layers.0.mlp.gate_proj`"
    );
    assert_eq!(
        refusal(Family::Llama, vec![overriding("*.norm", |one| one.dense = true)]),
        "overrides: `*.norm` matches no matrix; nearest are `*.q_proj`, `*.k_proj`, `*.v_proj`"
    );
    assert_eq!(
        refusal(Family::Llama, vec![overriding("***", |one| one.bits = Some(8))]),
        "overrides: `***` is no pattern: wildcards are either regular `*` or recursive `**`"
    );
    assert_eq!(
        refusal(Family::Gpt2, vec![overriding("h.0.attn.c_attn", |one| one.dense = true)]),
        "overrides: `h.0.attn.c_attn` matches no matrix; nearest are `*.c_attn`, `transformer.h.0.attn.c_attn`, `*.c_proj`"
    );
    assert_eq!(
        refusal(Family::Gpt2, vec![overriding("*.c_attn", |one| one.dense = true)]),
        "overrides: `transformer.h.0.attn.c_attn.weight` can't stay dense: its family stores matrices [in, out], and an artifact has \
         them [out, in]"
    );
    assert_eq!(
        refusal(Family::Llama, vec![overriding("*.q_proj", |one| one.bits = Some(7))]),
        "bits 7 is not there; 2, 3, 4, 5, 6 and 8 are"
    );
    assert_eq!(
        refusal(Family::Llama, vec![overriding("*.q_proj", |one| one.group_size = Some(48))]),
        "group_size 48 does not divide hidden_size 64 (`model.layers.0.self_attn.q_proj.weight`); \
         divisors of 64 are 1, 2, 4, 8, 16, 32, 64"
    );
}

#[test]
fn what_keeps_vllm_from_a_mixed_artifact_is_named() {
    let vllm = |change: fn(&mut Quantization)| {
        let mut quantization = Quantization { embedding: EmbeddingScheme::Dense, ..int4() };
        change(&mut quantization);
        let programs = opens_in(&quantization, &architecture(Family::Llama, true));
        let of = |name: &str| programs.iter().find(|program| program.program == name).unwrap().clone();
        assert!(of("transformers").opens);
        (of("vllm").opens, of("vllm").reason)
    };
    assert!(vllm(|_| {}).0);
    assert!(vllm(|quantization| quantization.overrides.push(overriding("*.down_proj", |one| one.bits = Some(8)))).0);
    let differ = "it puts `model.layers.0.self_attn.q_proj.weight` and `model.layers.0.self_attn.v_proj.weight` into one matrix, and \
                  their schemes differ";
    let found = vllm(|quantization| quantization.overrides.push(overriding("*.v_proj", |one| one.bits = Some(8))));
    assert_eq!(found, (false, differ.to_owned()));
    let found = vllm(|quantization| quantization.bits = 6);
    assert_eq!(found, (false, "its kernels know 4 and 8 bits, not 6".to_owned()));
    let found = vllm(|quantization| quantization.overrides.push(overriding("*.o_proj", |one| one.group_size = Some(16))));
    assert_eq!(found, (false, "its kernels know groups of 32, 64 and 128, not of 16".to_owned()));
}

#[test]
fn fake_quantization_gives_what_the_artifact_holds_bit_for_bit() {
    let overridden =
        |pattern: &str| Override { pattern: pattern.to_owned(), bits: None, group_size: None, symmetric: None, dense: false };
    let mixed = Quantization {
        overrides: vec![
            Override { bits: Some(3), symmetric: Some(false), ..overridden("*.0.*") },
            Override { bits: Some(6), group_size: Some(8), ..overridden("*down_proj") },
            Override { bits: Some(5), group_size: Some(32), ..overridden("*c_attn") },
            Override { bits: Some(2), group_size: Some(16), ..overridden("*embed_tokens") },
        ],
        clipping: Clipping::Mse,
        scale_dtype: Dtype::Bf16,
        ..int4()
    };
    let foreseen: Vec<Quantization> = kinds().into_iter().filter(|quantization| unforeseen(quantization).is_empty()).collect();
    assert_eq!(foreseen.len(), 7, "codebooks and INT8 activations are not");
    let (mut rounded, mut dense) = (0, 0);
    for family in Family::ALL {
        for tied in [true, false] {
            let weights = Weights::random(architecture(family, tied), 3);
            let (_folder, checkpoint) = checkpoint(&weights, Dtype::F32);
            for quantization in foreseen.iter().chain([&mixed]) {
                // Dense tensors in another type are no business of the weights.
                let quantization = Quantization {
                    dense_dtype: None,
                    overrides: applicable(quantization, weights.architecture()),
                    ..quantization.clone()
                };
                let fake = FakeQuantizer::new(&quantization, weights.architecture()).unwrap();
                let (out, _) = write(&checkpoint, &quantization);
                let artifact = Artifact::open(out.path()).unwrap();
                for (id, values) in weights.iter() {
                    let name = format!("{family:?} {} {id}", quantization.name());
                    let is_dense = matches!(artifact.tensor(id), ArtifactTensor::Dense(_));
                    let faked = fake.round(id, values).unwrap();
                    assert_eq!(faked.is_none(), is_dense, "{name}");
                    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
                    let expected = artifact.values(id).unwrap();
                    assert!(bits(faked.as_deref().unwrap_or(values)) == bits(&expected), "{name}");
                    if is_dense { dense += 1 } else { rounded += 1 }
                }
            }
        }
    }
    assert!(rounded > 1000 && dense > 500, "{rounded} matrices, {dense} dense tensors");
}

/// The overrides that match something in a model.
fn applicable(quantization: &Quantization, architecture: &Architecture) -> Vec<Override> {
    let alone = |one: &Override| Quantization { overrides: vec![one.clone()], ..quantization.clone() };
    let overrides = quantization.overrides.iter();
    overrides.filter(|one| resolve(&alone(one), architecture, Dtype::F32).is_ok()).cloned().collect()
}

#[test]
fn what_is_not_known_before_the_weights_stand_still_is_not_faked() {
    let told = |quantization: Quantization| {
        let refused = FakeQuantizer::new(&quantization, &architecture(Family::Llama, true)).unwrap_err();
        (refused.to_string(), unforeseen(&quantization).len())
    };
    let int8 = Quantization::default();
    for (quantization, what) in [
        (Quantization { method: Method::Gptq, ..int4() }, "method \"gptq\", whose integers depend on calibration text"),
        (kmeans(), "method \"kmeans\", whose codebooks are made when the weights stand still"),
        (Quantization { clipping: Clipping::Activation, ..int4() }, "clipping \"activation\", which depends on calibration text"),
        (Quantization { scaling: Scaling::Awq, ..int4() }, "scaling, whose factors depend on calibration text"),
        (Quantization { activations: Activations::Int8, ..int8 }, "activations \"int8\": weights alone are rounded in training"),
    ] {
        assert_eq!(told(quantization), (format!("weights can't be trained for {what}"), 1));
    }
    let refused = FakeQuantizer::new(&Quantization { group_size: Some(7), ..int4() }, &architecture(Family::Llama, true));
    assert!(refused.unwrap_err().to_string().starts_with("group_size 7 does not divide hidden_size 64"));
}

#[test]
fn weights_too_large_for_their_scales_are_named_in_training_too() {
    let architecture = architecture(Family::Gpt2, true);
    let fake = FakeQuantizer::new(&int4(), &architecture).unwrap();
    // The key is the second of three that are stored as one, each with 64 rows; 7.5 steps of the largest f16, 65504, end before 10⁶.
    let id = TensorId::Layer(1, LayerTensor::Key(Part::Weight));
    let mut values = vec![0.5; 64 * 64];
    values[3 * 64 + 5] = -1e6;
    assert_eq!(
        fake.round(id, &values).unwrap_err().to_string(),
        "tensor `transformer.h.1.attn.c_attn.weight` holds weights from -1e6 to 5e-1 in row 67: quantized to INT4, groups of 32, \
         symmetric with scales in f16, they stand for infinite values; scale_dtype = \"f32\" may hold them"
    );
}
