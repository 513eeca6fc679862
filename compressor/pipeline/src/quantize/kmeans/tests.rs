#![allow(clippy::unwrap_used)]

use compressor_format::{Activations, Artifact, ArtifactTensor, Clipping, EmbeddingScheme, Family, Levels, Override, Weights};
use proptest::prelude::*;

use super::*;
use crate::quantize::tests::{architecture, calibration, checkpoint, kmeans, overriding};
use crate::quantize::{Calibration, Quantization, QuantizationReport, opens_in, refusals, resolve};

/// `Σ m (v − ŵ)²` with the nearest of some levels, looked for one by one.
fn error(values: &[f32], importance: Option<&[f32]>, levels: &[f64]) -> f64 {
    let of_one = |(index, value): (usize, &f32)| {
        let nearest = levels.iter().map(|level| (f64::from(*value) - level).powi(2)).fold(f64::INFINITY, f64::min);
        nearest * importance.map_or(1.0, |importance| f64::from(importance[index % importance.len()]))
    };
    values.iter().enumerate().map(of_one).sum()
}

fn even(values: &[f32], count: usize) -> Vec<f64> {
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(f64::from(*value)), high.max(f64::from(*value))));
    (0..count).map(|level| low + level as f64 * (high - low) / (count - 1) as f64).collect()
}

/// Lloyd's turns without order or sums from the start, O(nk) each: every value looks at every centroid. Empty clusters split the
/// worst one above its mean, as there.
fn plainly(values: &[f32], importance: Option<&[f32]>, most: usize) -> Vec<f64> {
    let points: Vec<(f64, f64)> = values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            (f64::from(*value), importance.map_or(1.0, |importance| f64::from(importance[index % importance.len()])))
        })
        .collect();
    let assign = |levels: &[f64]| {
        let mut clusters = vec![Vec::new(); levels.len()];
        for point in &points {
            let nearer = |best: usize, other: usize| {
                if (point.0 - levels[other]).abs() < (point.0 - levels[best]).abs() { other } else { best }
            };
            clusters[(1..levels.len()).fold(0, nearer)].push(*point);
        }
        clusters.retain(|cluster| !cluster.is_empty());
        clusters
    };
    let mean = |cluster: &[(f64, f64)]| {
        cluster.iter().map(|(value, weight)| value * weight).sum::<f64>() / cluster.iter().map(|(_, weight)| weight).sum::<f64>()
    };
    let spread = |cluster: &[(f64, f64)]| {
        let mean = mean(cluster);
        cluster.iter().map(|(value, weight)| weight * (value - mean).powi(2)).sum::<f64>()
    };
    let mut clusters = assign(&even(values, most));
    for _ in 0..MOST_TURNS {
        while clusters.len() < most {
            let of_several = |index: &usize| clusters[*index].iter().any(|point| point.0 != clusters[*index][0].0);
            let worst = (0..clusters.len())
                .filter(of_several)
                .max_by(|left, right| spread(&clusters[*left]).total_cmp(&spread(&clusters[*right])));
            let Some(worst) = worst else { break };
            let mean = mean(&clusters[worst]);
            let upper = clusters[worst].extract_if(.., |point| point.0 > mean).collect();
            clusters.insert(worst + 1, upper);
        }
        let next = assign(&clusters.iter().map(|cluster| mean(cluster)).collect::<Vec<f64>>());
        if next == clusters {
            break;
        }
        clusters = next;
    }
    clusters.iter().map(|cluster| mean(cluster)).collect()
}

#[test]
fn six_values_with_two_centroids_by_hand() {
    // From 0 and 10: what is at most 5 is the first's, so {0, 1, 2, 5} with mean 2 and {9, 10} with 9.5. Half way lies 5.75, and
    // nothing moves.
    assert_eq!(centroids(&[10.0, 0.0, 2.0, 1.0, 9.0, 5.0], None, 2), [2.0, 9.5]);
}

#[test]
fn a_weight_that_counts_more_draws_its_centroid() {
    // 5 counts 8 times: (0 + 1 + 2 + 8 · 5) / 11 = 43 / 11 = 3.909…; half way to 9.5 lies 6.7, and nothing moves.
    let values = [10.0, 0.0, 2.0, 1.0, 9.0, 5.0];
    assert_eq!(centroids(&values, Some(&[1.0, 1.0, 1.0, 1.0, 1.0, 8.0]), 2), [(43.0f64 / 11.0) as f32, 9.5]);
    // Nothing counts: as if all did.
    assert_eq!(centroids(&values, Some(&[0.0; 6]), 2), [2.0, 9.5]);
    // The largest counts nothing, and is nobody's.
    assert_eq!(centroids(&values, Some(&[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 2), [1.0, 7.0]);
}

#[test]
fn a_centroid_that_nothing_is_nearest_to_splits_the_worst_cluster() {
    // From 0, 50 and 100 the second has nothing: {0, 1, 4} is cut above its mean 5/3.
    assert_eq!(centroids(&[0.0, 1.0, 4.0, 100.0], None, 3), [0.5, 4.0, 100.0]);
}

#[test]
fn fewer_values_than_centroids_are_kept_as_they_are() {
    let row = [0.5, -3.0, 0.5, 1.0e-3, -0.0, 7.0, 7.0, 0.0];
    assert_eq!(centroids(&row, None, 16), [-3.0, 0.0, 1.0e-3, 0.5, 7.0]);
    let (matrix, distance) = quantize(&row, 8, Codebooks { bits: 4, rows: None }, None, Dtype::F32).expect("finite");
    assert_eq!(matrix.to_f32(), row);
    assert_eq!((distance.squared_error, distance.largest), (0.0, 0.0));
    assert_eq!(matrix.centroids.shape, [1, 16]);
}

#[test]
fn rows_that_share_no_codebook_do_not_see_each_other() {
    let values: Vec<f32> = (0..4 * 40).map(|index| (index as f32 * 0.7).sin() * (1.0 + (index / 80) as f32 * 9.0)).collect();
    let codebooks = Codebooks { bits: 4, rows: Some(2) };
    let whole = quantize(&values, 40, codebooks, None, Dtype::F16).expect("finite").0;
    let alone = |part: &[f32]| quantize(part, 40, Codebooks { bits: 4, rows: None }, None, Dtype::F16).expect("finite").0;
    assert_eq!(whole.to_f32(), [alone(&values[..80]).to_f32(), alone(&values[80..]).to_f32()].concat());
    assert_eq!(whole.slice_rows(2, 2).to_f32(), alone(&values[80..]).to_f32());
}

#[test]
fn centroids_beyond_their_type_are_refused_by_row() {
    let mut values = vec![1.0; 6 * 4];
    (values[9], values[14]) = (1e6, -2e6);
    let codebooks = Codebooks { bits: 4, rows: Some(3) };
    assert_eq!(quantize(&values, 4, codebooks, None, Dtype::F16).err(), Some(2));
    values[9] = 1.0;
    assert_eq!(quantize(&values, 4, codebooks, None, Dtype::F16).err(), Some(3));
    assert!(quantize(&values, 4, codebooks, None, Dtype::Bf16).is_ok());
}

/// Sums from the start round differently from sums of each cluster.
const ROUNDING: f64 = 1e-9;

fn any_values() -> impl Strategy<Value = Vec<f32>> {
    // Bell-shaped, with an outlier now and then, and many that are equal.
    prop::collection::vec(
        prop_oneof![8 => (-1.0f32..1.0, -1.0f32..1.0).prop_map(|(one, other)| one + other), 1 => Just(0.25), 1 => -9.0f32..9.0],
        2..300,
    )
}

proptest! {
    #[test]
    fn a_plain_implementation_finds_the_same(values in any_values(), most in prop::sample::select(vec![2usize, 3, 16])) {
        let found = centroids(&values, None, most);
        let expected = plainly(&values, None, most);
        prop_assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-6, "{} {}", found, expected);
        }
    }

    #[test]
    fn a_plain_implementation_finds_the_same_with_weights(
        values in any_values(),
        importance in prop::collection::vec(0.01f32..9.0, 7),
        most in prop::sample::select(vec![2usize, 16]),
    ) {
        let values = &values[..values.len() / 7 * 7];
        prop_assume!(!values.is_empty());
        let found = centroids(values, Some(&importance), most);
        let expected = plainly(values, Some(&importance), most);
        prop_assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-6, "{} {}", found, expected);
        }
    }

    #[test]
    fn the_error_is_never_above_that_of_the_even_grid(
        values in any_values(), importance in prop::option::of(prop::collection::vec(0.01f32..9.0, 1..7)),
        most in prop::sample::select(vec![2usize, 16, 256]),
    ) {
        let width = importance.as_ref().map_or(1, Vec::len);
        let values = &values[..values.len() / width * width];
        prop_assume!(!values.is_empty());
        let found: Vec<f64> = centroids(values, importance.as_deref(), most).into_iter().map(f64::from).collect();
        let error = |levels: &[f64]| error(values, importance.as_deref(), levels);
        let (before, after) = (error(&even(values, most)), error(&found));
        prop_assert!(after <= before * (1.0 + ROUNDING) + 1e-12, "{} {}", after, before);
    }

    #[test]
    fn any_finite_values_have_finite_centroids_in_their_range(
        values in prop::collection::vec(prop_oneof![
            any::<f32>().prop_filter("finite", |value| value.is_finite()),
            Just(f32::MAX), Just(f32::MIN), Just(f32::from_bits(1)),
        ], 4..100),
        importance in prop::option::of(prop::collection::vec(prop_oneof![Just(0.0f32), Just(1e-40), Just(1.0), Just(1e38)], 4)),
    ) {
        let values = &values[..values.len() / 4 * 4];
        let found = centroids(values, importance.as_deref(), 16);
        prop_assert!(found.is_sorted() && found.len() <= 16 && !found.is_empty());
        prop_assert!(found.iter().all(|centroid| centroid.is_finite()));
        let (matrix, distance) =
            quantize(values, 4, Codebooks { bits: 4, rows: None }, importance.as_deref(), Dtype::F32).expect("f32 holds them");
        prop_assert!(distance.squared_error.is_finite());
        for (value, stands_for) in values.iter().zip(matrix.to_f32()) {
            let off = |centroid: f32| (f64::from(*value) - f64::from(centroid)).abs();
            prop_assert!(found.iter().all(|centroid| off(stands_for) <= off(*centroid) * (1.0 + ROUNDING)));
        }
    }
}

fn write(checkpoint: &compressor_format::Checkpoint, quantization: &Quantization) -> (tempfile::TempDir, QuantizationReport) {
    let out = tempfile::tempdir().unwrap();
    let report =
        crate::quantize::quantize(checkpoint, quantization, Some(&calibration()), out.path(), &mut |_, _, _| {}).unwrap();
    (out, report)
}

fn refused(quantization: &Quantization, family: Family) -> Vec<(String, Option<&'static str>)> {
    let all = refusals(quantization, &architecture(family, true), Dtype::F32);
    all.iter().map(|refusal| (refusal.to_string(), refusal.key())).collect()
}

#[test]
fn codebooks_that_can_not_be_are_refused_with_the_way_out() {
    let one = |quantization: &Quantization| {
        let found = refused(quantization, Family::Llama);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    };
    let bits = "method \"kmeans\" makes codebooks of 16 or 256 values: bits 4 or 8; found 3";
    assert_eq!(one(&Quantization { bits: 3, ..kmeans() }), (bits.to_owned(), Some("bits")));
    assert_eq!(one(&Quantization { bits: 7, ..kmeans() }).0, bits.replace('3', "7"));
    let with = |change: fn(&mut Override)| Quantization { overrides: vec![overriding("*.up_proj", change)], ..kmeans() };
    assert_eq!(one(&with(|up| up.bits = Some(3))), (bits.to_owned(), Some("overrides")));
    let groups = "method \"kmeans\" has no group_size: codebook_rows says which output rows share a codebook";
    assert_eq!(one(&Quantization { group_size: Some(32), ..kmeans() }), (groups.to_owned(), Some("group_size")));
    let groups = "overrides: method \"kmeans\" has neither group_size nor symmetric; of `model.layers.0.mlp.up_proj` only bits or \
                  dense can be said";
    assert_eq!(one(&with(|up| up.group_size = Some(32))), (groups.to_owned(), Some("overrides")));
    assert_eq!(one(&with(|up| up.symmetric = Some(true))), (groups.to_owned(), Some("overrides")));
    let rows = "codebook_rows 48 does not divide the 64 output rows of `model.layers.0.self_attn.q_proj.weight`; divisors of 64 \
                are 1, 2, 4, 8, 16, 32, 64";
    let found = refused(&Quantization { codebook_rows: Some(48), ..kmeans() }, Family::Llama);
    assert_eq!(found[0], (rows.to_owned(), Some("codebook_rows")));
    // Of 64 and 32 rows; the 96 of gate and up are whole codebooks.
    assert_eq!(found.len(), 2, "{found:?}");
    // Three matrices of 64 rows that GPT-2 stores as one of 192 are cut apart to run.
    let found = refused(&Quantization { codebook_rows: Some(96), ..kmeans() }, Family::Gpt2);
    let rows = "codebook_rows 96 does not divide the 64 output rows of `transformer.h.0.attn.c_attn.weight`; divisors of 64 are \
                1, 2, 4, 8, 16, 32, 64";
    assert_eq!(found, [(rows.to_owned(), Some("codebook_rows"))]);
    let none = "codebook_rows 0 makes no codebooks; leave it out for one per matrix";
    assert_eq!(one(&Quantization { codebook_rows: Some(0), ..kmeans() }), (none.to_owned(), Some("codebook_rows")));
    let activations = "activations \"int8\" multiplies integers, and method \"kmeans\" makes codebooks: leave one of them out";
    assert_eq!(one(&Quantization { activations: Activations::Int8, ..kmeans() }), (activations.to_owned(), Some("activations")));
    let of_static = activations.replace("int8", "int8_static");
    assert_eq!(one(&Quantization { activations: Activations::Int8Static, ..kmeans() }), (of_static, Some("activations")));
    let rows = "codebook_rows is for method \"kmeans\"; leave it out";
    assert_eq!(
        one(&Quantization { codebook_rows: Some(16), ..Quantization::default() }),
        (rows.to_owned(), Some("codebook_rows"))
    );
}

#[test]
fn a_recipe_asks_for_codebooks_without_groups_and_without_a_target() {
    let of = |keys: &str| {
        let text = format!("name = \"x\"\nmodel.path = \"m\"\n[[stage]]\n[stage.quantize]\nmethod = \"kmeans\"\n{keys}\n");
        let recipe = compressor_format::Recipe::from_toml(&text).unwrap();
        let compressor_format::Stage::Quantize(stage) = recipe.stages[0].clone() else { panic!("a quantize stage") };
        stage
    };
    let quantization = Quantization::from(&of("bits = 4\ncodebook_rows = 64"));
    assert_eq!(quantization, Quantization { codebook_rows: Some(64), ..kmeans() });
    assert_eq!(quantization.name(), "4-bit codebook per 64 rows");
    assert_eq!(refused(&Quantization::from(&of("bits = 8")), Family::Llama), []);
    let stage = of("target_bits_per_weight = 4.5");
    let target = crate::quantize::Target::of(&stage).unwrap();
    let found = target.refusals(&Quantization::from(&stage), &architecture(Family::Llama, true), Dtype::F32);
    let expected = "method \"kmeans\" makes codebooks, and a target chooses among schemes of integers: set bits = 4 or 8 instead of \
                    a target";
    let found: Vec<_> = found.iter().map(|refusal| (refusal.to_string(), refusal.key())).collect();
    assert_eq!(found, [(expected.to_owned(), Some("method"))]);
}

#[test]
fn bytes_are_indices_and_centroids() {
    let sizes = |quantization: &Quantization| resolve(quantization, &architecture(Family::Llama, true), Dtype::F32).unwrap();
    let down = |quantization: &Quantization| {
        let tensors = sizes(quantization).tensors;
        tensors.into_iter().find(|tensor| tensor.name.ends_with("0.mlp.down_proj.weight")).unwrap().bytes
    };
    // [64, 96]: half a byte each, sixteen f16, two i64.
    assert_eq!(down(&kmeans()), 64 * 96 / 2 + 16 * 2 + 16);
    assert_eq!(
        down(&Quantization { codebook_rows: Some(16), scale_dtype: Dtype::F32, ..kmeans() }),
        64 * 96 / 2 + 4 * 16 * 4 + 16
    );
    assert_eq!(down(&Quantization { bits: 8, ..kmeans() }), 64 * 96 + 256 * 2 + 16);
    // Two layers of q, k, v, o of 64 · (64 + 32 + 32 + 64) weights and an MLP of 3 · 64 · 96, in f16.
    assert_eq!(sizes(&kmeans()).decoded_bytes, 2 * 2 * 64 * (192 + 288));
    assert_eq!(sizes(&Quantization::default()).decoded_bytes, 0);
}

#[test]
fn no_other_program_opens_codebooks() {
    let dense = Quantization { embedding: EmbeddingScheme::Dense, ..kmeans() };
    let found = opens_in(&dense, &architecture(Family::Llama, true));
    let reason = "codebooks are no layout of compressed-tensors, which refuses them";
    assert_eq!(found.iter().map(|one| one.opens).collect::<Vec<_>>(), [true, false, false]);
    assert!(found[1..].iter().all(|one| one.reason == reason), "{found:?}");
    // Without a codebook it is an artifact like any other.
    let overrides = vec![overriding("*.?_proj", |one| one.dense = true), overriding("*.*_proj", |one| one.dense = true)];
    assert!(opens_in(&Quantization { overrides, ..dense }, &architecture(Family::Llama, true))[1].opens);
}

#[test]
fn more_codebooks_and_larger_ones_err_less() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Qwen3, true), 4), Dtype::F32);
    let error = |quantization: &Quantization| {
        let report = write(&checkpoint, quantization).1;
        let projections = report.tensors.iter().filter(|tensor| tensor.name.contains("proj"));
        projections.map(|tensor| tensor.relative_error).sum::<f64>()
    };
    let (whole, of_16_rows) = (error(&kmeans()), error(&Quantization { codebook_rows: Some(16), ..kmeans() }));
    assert!(of_16_rows < whole && error(&Quantization { bits: 8, ..kmeans() }) < 0.1 * of_16_rows);
}

#[test]
fn text_weighs_the_weights_and_threads_change_no_byte() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Gpt2, true), 5), Dtype::Bf16);
    let weighed = Quantization { clipping: Clipping::Activation, codebook_rows: Some(16), ..kmeans() };
    let with = |threads, quantization: &Quantization| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (out, report) = pool.install(|| write(&checkpoint, quantization));
        (fs_err::read(out.path().join("model.safetensors")).unwrap(), report)
    };
    let one = with(1, &weighed);
    assert!(one == with(2, &weighed) && one == with(5, &weighed));
    let plain = with(1, &Quantization { clipping: Clipping::None, ..weighed.clone() });
    assert!(plain == with(2, &Quantization { clipping: Clipping::None, ..weighed }));
    let sum = |report: &QuantizationReport, figure: fn(&crate::quantize::TensorReport) -> Option<f64>| {
        report.tensors.iter().filter_map(figure).sum::<f64>()
    };
    assert!(sum(&plain.1, |tensor| Some(tensor.relative_error)) < sum(&one.1, |tensor| Some(tensor.relative_error)));
    assert!(sum(&one.1, |tensor| tensor.output_error) > 0.0);
    let of_codebooks = |tensor: &&crate::quantize::TensorReport| matches!(tensor.scheme, Levels::Codebooks(_));
    let (rounded, found): (Vec<_>, Vec<_>) =
        one.1.tensors.iter().filter(of_codebooks).map(|one| (one.output_error_rounded_to_nearest, one.output_error)).unzip();
    assert!(found.len() == 8 && found.iter().all(Option::is_some));
    assert!(rounded.iter().all(Option::is_none), "no grid to round to");
}

#[test]
fn layers_of_codebooks_that_are_finished_are_taken_as_they_are() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::Bf16);
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().join("layers");
    let quantization = Quantization { clipping: Clipping::Activation, codebook_rows: Some(32), ..kmeans() };
    let run = |stop_after: Option<u64>| {
        let out = tempfile::tempdir().unwrap();
        let calibration = Calibration { kept_in: Some(kept.clone()), ..calibration() };
        let mut stop = |done, _: u64, what: &str| assert!(what != "layers" || Some(done) != stop_after, "stopped");
        let work = || crate::quantize::quantize(&checkpoint, &quantization, Some(&calibration), out.path(), &mut stop).unwrap();
        let report = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok();
        (report, fs_err::read(out.path().join("model.safetensors")).ok())
    };
    let whole = run(None);
    assert!(run(Some(1)).0.is_none());
    let first = kept.join("layer-0.safetensors");
    let layer = fs_err::read(&first).unwrap();
    assert!(run(None) == whole, "the same bytes and the same report");
    // What was kept is what is used: another index or centroid there is another artifact.
    let mut changed = layer.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (bytes, is_same) in [(&layer[..], true), (&changed, false), (&layer[..layer.len() - 1], true)] {
        fs_err::create_dir_all(&kept).unwrap();
        fs_err::write(&first, bytes).unwrap();
        assert_eq!(run(None).1 == whole.1, is_same);
    }
}

#[test]
fn overrides_choose_the_size_of_a_codebook() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let overrides =
        vec![overriding("*.down_proj", |one| one.bits = Some(8)), overriding("*.0.mlp.up_proj", |one| one.dense = true)];
    let quantization = Quantization { overrides, ..kmeans() };
    assert_eq!(quantization.name(), "4-bit codebook per matrix mixed");
    let out = write(&checkpoint, &quantization).0;
    let artifact = Artifact::open(out.path()).unwrap();
    let tensors: std::collections::BTreeMap<_, _> = artifact.stored().collect();
    let shown = |module: &str| match tensors[format!("model.{module}.weight").as_str()] {
        ArtifactTensor::Codebooks(matrix) => matrix.codebooks.to_string(),
        ArtifactTensor::Quantized(matrix) => matrix.scheme.to_string(),
        ArtifactTensor::Dense(slice) => slice.dtype.to_string(),
    };
    assert_eq!(shown("layers.0.mlp.down_proj"), "8-bit codebook per matrix");
    assert_eq!(shown("layers.1.mlp.up_proj"), "4-bit codebook per matrix");
    assert_eq!(shown("layers.0.mlp.up_proj"), "f32");
    assert_eq!(shown("embed_tokens"), "INT8, groups of 32, symmetric");
}

#[test]
fn weights_beyond_the_type_of_the_centroids_are_refused_with_the_way_out() {
    let weights = Weights::random(architecture(Family::Llama, true), 1);
    let (architecture, _, mut values) = weights.into_parts();
    let up = compressor_format::TensorId::Layer(0, compressor_format::LayerTensor::Up(compressor_format::Part::Weight));
    values.get_mut(&up).unwrap()[70] = 1e9;
    let (_folder, checkpoint) = checkpoint(&Weights::new(architecture, serde_json::json!({}), values), Dtype::F32);
    let out = tempfile::tempdir().unwrap();
    let run = |quantization: &Quantization| {
        crate::quantize::quantize(&checkpoint, quantization, Some(&calibration()), out.path(), &mut |_, _, _| {})
    };
    for clipping in [Clipping::None, Clipping::Activation] {
        let error = run(&Quantization { clipping, ..kmeans() }).unwrap_err().to_string();
        let end = "to 1e9 in row 1: quantized to 4-bit codebook per matrix with scales in f16, they stand for infinite values; \
                   scale_dtype = \"f32\" may hold them";
        assert!(error.ends_with(end), "{error}");
    }
    run(&Quantization { scale_dtype: Dtype::F32, ..kmeans() }).unwrap();
}

#[test]
fn codebooks_are_coded_and_patched_as_other_artifacts_are() {
    let (_folder, checkpoint) = checkpoint(&Weights::random(architecture(Family::Llama, true), 5), Dtype::F32);
    let old = write(&checkpoint, &kmeans()).0;
    let new = write(&checkpoint, &Quantization { codebook_rows: Some(32), ..kmeans() }).0;
    let read = |folder: &std::path::Path| {
        let artifact = Artifact::open(folder).unwrap();
        let tensors = artifact.architecture().tensors().into_iter();
        tensors.map(|id| artifact.values(id).unwrap()).collect::<Vec<_>>()
    };
    let expected = read(new.path());
    let patched = tempfile::tempdir().unwrap();
    let [delta, out] = ["delta", "out"].map(|name| patched.path().join(name));
    compressor_format::write_delta(old.path(), new.path(), &delta).unwrap();
    compressor_format::Delta::open(&delta).unwrap().apply(old.path(), &out, false).unwrap();
    assert_eq!(read(&out), expected);
    let weights = out.join("model.safetensors");
    compressor_format::write_entropy(&weights, &out.join("model.entropy")).unwrap();
    fs_err::remove_file(weights).unwrap();
    assert_eq!(read(&out), expected);
}
