#![allow(clippy::unwrap_used)]

use std::path::Path;

use compressor_format::LayerTensor::*;
use compressor_format::Part::{Bias, Weight};
use compressor_format::{Checkpoint, Dtype, Family, HeadUnit, LayerShape, Weights};
use compressor_format::{LayerTensor, MagnitudeNorm, Part, TensorId};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

const TOKENS: [u32; 7] = [3, 1, 20, 0, 9, 3, 23];

fn recipe(keys: Json) -> Prune {
    serde_json::from_value(keys).unwrap()
}

fn architecture(family: Family, shape: LayerShape, layers: usize) -> Architecture {
    let config = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2", "vocab_size": 24, "n_embd": 8, "n_layer": layers, "n_head": shape.heads, "n_positions": 16,
            "n_inner": shape.intermediate_size, "head_dim": 4
        }),
        _ => json!({
            "model_type": family.model_type(), "vocab_size": 24, "hidden_size": 8, "num_hidden_layers": layers, "head_dim": 4,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate_size, "max_position_embeddings": 16,
            "tie_word_embeddings": family != Family::Mistral, "attention_bias": family == Family::Llama,
            "mlp_bias": family == Family::Llama
        }),
    };
    Family::read(&config, Path::new("config.json")).unwrap()
}

/// Three layers of six query heads in three groups (six groups in GPT-2, which shares no keys) and twelve channels.
fn tiny(family: Family) -> Weights {
    let kv_heads = if family == Family::Gpt2 { 6 } else { 3 };
    lively(architecture(family, LayerShape { heads: 6, kv_heads, intermediate_size: 12 }, 3))
}

/// Random weights large enough to matter, with biases and norms that are neither zero nor one.
fn lively(architecture: Architecture) -> Weights {
    let (architecture, config, mut tensors) = Weights::random(architecture, 11).into_parts();
    for (place, (id, values)) in tensors.iter_mut().enumerate() {
        for (index, value) in values.iter_mut().enumerate() {
            *value = match id.is_matrix() {
                true => *value * 20.0,
                false => *value + 0.3 * ((place * 7 + index * 3) as f32).sin(),
            };
        }
    }
    Weights::new(architecture, config, tensors)
}

fn changed(weights: Weights, mut change: impl FnMut(TensorId, &mut Vec<f32>)) -> Weights {
    let (architecture, config, mut tensors) = weights.into_parts();
    tensors.iter_mut().for_each(|(id, values)| change(*id, values));
    Weights::new(architecture, config, tensors)
}

/// Sets columns `of[layer]`, blocks of `block`, of one projection to zero.
fn silenced(weights: Weights, tensor: LayerTensor, of: &[Vec<usize>], block: usize) -> Weights {
    let hidden = weights.architecture().hidden_size;
    changed(weights, |id, values| {
        let TensorId::Layer(layer, found) = id else { return };
        if found != tensor {
            return;
        }
        let width = values.len() / hidden;
        for (index, value) in values.iter_mut().enumerate() {
            if of[layer].contains(&(index % width / block)) {
                *value = 0.0;
            }
        }
    })
}

fn observed(weights: &Weights, pruning: &Prune) -> Scores {
    let mut scores = ActivationScores::new(weights.architecture(), pruning);
    for (layer, (heads, channels)) in reference::logits(weights, &TOKENS).1.iter().enumerate() {
        scores.observe(layer, heads, channels);
    }
    scores.finish(weights).unwrap()
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Sums in another order are all that differs.
const F64_NOISE: f64 = 1e-12;

#[test]
fn cutting_units_whose_output_weights_are_zero_leaves_the_logits_of_every_family_unchanged() {
    let channels = [vec![1, 2, 11], vec![0, 5, 6], vec![3, 4, 10]];
    let mut models = 0;
    for family in Family::ALL {
        for unit in [HeadUnit::Group, HeadUnit::Query] {
            let weights = tiny(family);
            let shape = weights.architecture().layers[0];
            let group = shape.heads / shape.kv_heads;
            // Another unit in every layer, and in every group.
            let (ratio, heads) = match (unit, group) {
                (HeadUnit::Query, 1) => continue,
                (HeadUnit::Query, _) => (0.5, [vec![0, 3, 4], vec![1, 3, 5], vec![1, 2, 5]]),
                (HeadUnit::Group, 1) => (0.34, [vec![0, 5], vec![2, 3], vec![4, 5]]),
                (HeadUnit::Group, _) => (0.34, [vec![0], vec![2], vec![1]]),
            };
            let block = if unit == HeadUnit::Group { group * 4 } else { 4 };
            let weights = silenced(weights, Output(Weight), &heads, block);
            let weights = silenced(weights, Down(Weight), &channels, 1);
            let (dense, _) = reference::logits(&weights, &TOKENS);

            for importance in ["activation", "magnitude"] {
                let pruning = recipe(json!({
                    "head_ratio": ratio, "channel_ratio": 0.25, "channel_multiple": 1, "head_unit": unit,
                    "importance": importance, "magnitude_norm": "product"
                }));
                let scores = match importance {
                    "activation" => observed(&weights, &pruning),
                    _ => magnitude(&weights, pruning.magnitude_norm),
                };
                let (pruned, cuts) = prune(weights.clone(), &pruning, &scores).unwrap();
                for (layer, units) in cuts.units.iter().enumerate() {
                    let expected = LayerCuts { layer, heads: heads[layer].clone(), channels: channels[layer].clone() };
                    assert_eq!(*units, expected, "{family:?} {unit:?} {importance}");
                }
                assert!(pruned.architecture().parameters() < weights.architecture().parameters());
                let distance = farthest(&dense, &reference::logits(&pruned, &TOKENS).0);
                assert!(distance < F64_NOISE, "{family:?} {unit:?} {importance}: {distance}");

                // The same cut without the zeros is felt: the comparison can fail.
                let whole = tiny(family);
                let (cut, _) = prune(whole.clone(), &pruning, &scores).unwrap();
                let felt = farthest(&reference::logits(&whole, &TOKENS).0, &reference::logits(&cut, &TOKENS).0);
                assert!(felt > 1e-3, "{family:?} {unit:?} {importance}: {felt}");
                models += 1;
            }
        }
    }
    assert_eq!(models, 18, "five families by group, four by query head, two importances each");
}

/// One layer, hidden size 2, head width 2; every value tells row and column: `row * 10 + column`.
fn labelled(family: Family, shape: LayerShape) -> Weights {
    let mut architecture = architecture(family, shape, 1);
    (architecture.hidden_size, architecture.head_dim) = (2, 2);
    let shapes = architecture.clone();
    changed(Weights::random(architecture, 0), |id, values| {
        let width = shapes.shape(id)[1..].iter().product::<usize>();
        let label = |index: usize| (index / width * 10 + index % width) as f32;
        values.iter_mut().enumerate().for_each(|(index, value)| *value = label(index));
    })
}

fn by_hand(queries: &[f64], groups: &[f64], channels: &[f64]) -> Scores {
    let measure = Measure::Magnitude { norm: MagnitudeNorm::L2 };
    Scores { measure, groups: vec![groups.to_vec()], queries: vec![queries.to_vec()], channels: vec![channels.to_vec()] }
}

#[test]
fn the_least_important_units_go_and_the_others_keep_their_order() {
    let weights = labelled(Family::Llama, LayerShape { heads: 4, kv_heads: 2, intermediate_size: 4 });
    let scores = by_hand(&[4.0, 3.0, 1.0, 2.0], &[9.0, 8.0], &[0.5, 0.25, 0.25, 0.25]);
    let mut pruning = recipe(json!({
        "head_ratio": 0.5, "channel_ratio": 0.5, "channel_multiple": 1, "importance": "magnitude"
    }));
    let (pruned, cuts) = prune(weights.clone(), &pruning, &scores).unwrap();
    // Group 1 owns query heads 2 and 3; of three equal channels the two with the lower index go.
    assert_eq!(cuts.units, [LayerCuts { layer: 0, heads: vec![1], channels: vec![1, 2] }]);
    assert_eq!(cuts.measure, Some(scores.measure));
    let get = |weights: &Weights, tensor| weights.get(TensorId::Layer(0, tensor)).to_vec();
    assert_eq!(get(&pruned, Query(Weight)), [0., 1., 10., 11., 20., 21., 30., 31.]);
    assert_eq!(get(&pruned, Query(Bias)), [0., 10., 20., 30.]);
    assert_eq!(get(&pruned, Key(Weight)), [0., 1., 10., 11.]);
    assert_eq!(get(&pruned, Value(Bias)), [0., 10.]);
    assert_eq!(get(&pruned, Output(Weight)), [0., 1., 2., 3., 10., 11., 12., 13.]);
    assert_eq!(get(&pruned, Output(Bias)), [0., 10.]);
    assert_eq!(get(&pruned, Gate(Weight)), [0., 1., 30., 31.]);
    assert_eq!(get(&pruned, Up(Bias)), [0., 30.]);
    assert_eq!(get(&pruned, Down(Weight)), [0., 3., 10., 13.]);
    assert_eq!(get(&pruned, Down(Bias)), [0., 10.]);
    assert_eq!(pruned.get(TensorId::Embedding), weights.get(TensorId::Embedding));

    pruning.head_unit = HeadUnit::Query;
    let (pruned, cuts) = prune(weights, &pruning, &scores).unwrap();
    // The less important of each pair, although the whole second group is less important than the first.
    assert_eq!(cuts.units[0].heads, [1, 2]);
    assert_eq!(get(&pruned, Query(Weight)), [0., 1., 10., 11., 60., 61., 70., 71.]);
    assert_eq!(get(&pruned, Key(Weight)), [0., 1., 10., 11., 20., 21., 30., 31.]);
    assert_eq!(get(&pruned, Output(Weight)), [0., 1., 6., 7., 10., 11., 16., 17.]);
    let expected = LayerShape { heads: 2, kv_heads: 2, intermediate_size: 2 };
    assert_eq!(pruned.architecture().layers, [expected]);
}

#[test]
fn cutting_twice_is_cutting_once() {
    for family in Family::ALL {
        let once = recipe(json!({"channel_ratio": 0.5, "channel_multiple": 1, "importance": "magnitude"}));
        let first = recipe(json!({"channel_ratio": 0.25, "channel_multiple": 1, "importance": "magnitude"}));
        let second = recipe(json!({"channel_ratio": 0.33, "channel_multiple": 1, "importance": "magnitude"}));
        let cut = |weights: Weights, pruning| {
            let scores = magnitude(&weights, MagnitudeNorm::L2);
            prune(weights, pruning, &scores).unwrap().0
        };
        let twice = cut(cut(tiny(family), &first), &second);
        let once = cut(tiny(family), &once);
        assert_eq!(once.architecture(), twice.architecture());
        assert!(once.iter().eq(twice.iter()), "{family:?}: 12 to 9 to 6 channels, and 12 to 6");
    }
}

#[test]
fn a_pruned_model_of_every_family_is_written_and_opened() {
    for family in Family::ALL {
        let pruning = recipe(json!({
            "head_ratio": 0.34, "channel_ratio": 0.3, "channel_multiple": 4, "layers": [1], "importance": "magnitude"
        }));
        let weights = tiny(family);
        let scores = magnitude(&weights, MagnitudeNorm::L2);
        let expected = resolve(&pruning, weights.architecture()).unwrap();
        let (pruned, _) = prune(weights, &pruning, &scores).unwrap();
        assert_eq!(*pruned.architecture(), expected);
        let folder = tempfile::tempdir().unwrap();
        pruned.write(folder.path(), Dtype::F32).unwrap();
        let opened = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(*opened.architecture(), expected, "{family:?}");
        assert!(opened.weights().unwrap().iter().eq(pruned.iter()), "{family:?}");
    }
}

#[test]
fn whole_layers_go_by_index_and_the_others_move_up() {
    let weights = tiny(Family::Qwen3);
    let pruning = recipe(json!({"layers": [1, 0]}));
    let nothing = by_hand(&[], &[], &[]);
    let (pruned, cuts) = prune(weights.clone(), &pruning, &nothing).unwrap();
    let untouched = vec![LayerCuts { layer: 2, heads: vec![], channels: vec![] }];
    assert_eq!(cuts, Cuts { measure: None, head_unit: HeadUnit::Group, layers: vec![0, 1], units: untouched });
    assert_eq!(pruned.architecture().layers.len(), 1);
    for (id, values) in pruned.iter() {
        let before = if let TensorId::Layer(0, tensor) = id { TensorId::Layer(2, tensor) } else { id };
        assert_eq!(values, weights.get(before), "{id}");
    }
}

#[test]
fn magnitude_is_the_norm_of_what_a_unit_owns() {
    // Head width 2, hidden size 2, so that every sum can be done by hand.
    let shape = LayerShape { heads: 2, kv_heads: 1, intermediate_size: 2 };
    let mut architecture = architecture(Family::Llama, shape, 1);
    (architecture.hidden_size, architecture.head_dim) = (2, 2);
    let weights = changed(Weights::random(architecture, 0), |id, values| {
        let TensorId::Layer(0, tensor) = id else { return };
        let new: &[f32] = match tensor {
            Gate(Weight) => &[1.0, -2.0, 9.0, 9.0],
            Gate(Bias) => &[2.0, 9.0],
            Up(Weight) => &[0.0, 3.0, 9.0, 9.0],
            Up(Bias) => &[-4.0, 9.0],
            // Column 0 is 4 and -3.
            Down(Weight) => &[4.0, 9.0, -3.0, 9.0],
            Query(Weight) => &[1.0, 1.0, 1.0, -1.0, 8.0, 8.0, 8.0, 8.0],
            Query(Bias) => &[2.0, -1.0, 8.0, 8.0],
            Key(Weight) => &[1.0, 0.0, 0.0, 1.0],
            Key(Bias) => &[1.0, 1.0],
            Value(Weight) => &[2.0, 0.0, 0.0, 2.0],
            Value(Bias) => &[-2.0, 2.0],
            // Head 0 has columns 0 and 1.
            Output(Weight) => &[1.0, 2.0, 0.0, 0.0, -4.0, 2.0, 0.0, 0.0],
            _ => return,
        };
        values.copy_from_slice(new);
    });
    let of = |norm| magnitude(&weights, norm);
    // Channel 0: gate 1 + 4 + 4 = 9, up 9 + 16 = 25, down 16 + 9 = 25.
    assert_eq!(of(MagnitudeNorm::L2).channels[0][0], 59_f64.sqrt());
    assert_eq!(of(MagnitudeNorm::L1).channels[0][0], 5.0 + 7.0 + 7.0);
    assert_eq!(of(MagnitudeNorm::Product).channels[0][0], 3.0 * 5.0 * 5.0);
    // Query head 0: query 4 + 5 = 9, output 1 + 4 + 16 + 4 = 25; the value it shares 8 + 8 = 16.
    assert_eq!(of(MagnitudeNorm::L2).queries[0][0], 34_f64.sqrt());
    assert_eq!(of(MagnitudeNorm::L1).queries[0][0], 7.0 + 9.0);
    assert_eq!(of(MagnitudeNorm::Product).queries[0][0], 4.0 * 5.0);
    // The group: queries 9 + 6 · 64 = 393, key 4, value 16, output 25.
    assert_eq!(of(MagnitudeNorm::L2).groups[0][0], 438_f64.sqrt());
    assert_eq!(of(MagnitudeNorm::L1).groups[0][0], 7.0 + 48.0 + 4.0 + 8.0 + 9.0);
    assert_eq!(of(MagnitudeNorm::Product).groups[0][0], 4.0 * 5.0);
}

#[test]
fn rescaling_a_unit_can_t_change_the_product_of_norms_and_changes_the_others() {
    const FACTOR: f32 = 8.0; // A power of two, so that no weight is rounded.
    for family in [Family::Llama, Family::Qwen2] {
        let weights = tiny(family);
        let rescaled = changed(weights.clone(), |id, values| {
            let scale = match id {
                TensorId::Layer(_, Up(_) | Value(_)) => FACTOR,
                TensorId::Layer(_, Down(Weight) | Output(Weight)) => 1.0 / FACTOR,
                _ => 1.0,
            };
            values.iter_mut().for_each(|value| *value *= scale);
        });
        let distance = farthest(&reference::logits(&weights, &TOKENS).0, &reference::logits(&rescaled, &TOKENS).0);
        assert!(distance < F64_NOISE, "{family:?}: the model is the same, {distance}");
        assert_eq!(magnitude(&weights, MagnitudeNorm::Product), magnitude(&rescaled, MagnitudeNorm::Product));
        for norm in [MagnitudeNorm::L1, MagnitudeNorm::L2] {
            let (before, after) = (magnitude(&weights, norm), magnitude(&rescaled, norm));
            assert_ne!(before.channels, after.channels);
            assert_ne!(before.groups, after.groups);
        }
    }
}

#[test]
fn activation_scores_are_the_size_of_what_a_unit_adds() {
    let pruning = recipe(json!({"head_ratio": 0.5}));
    for family in Family::ALL {
        let weights = tiny(family);
        let shape = weights.architecture().layers[0];
        let scores = observed(&weights, &pruning);
        assert_eq!(scores.measure, Measure::Activation { tokens: TOKENS.len() });
        let (_, seen) = reference::logits(&weights, &TOKENS);
        // Token by token: project the unit's activations alone and measure what comes out.
        let size = |layer: usize, tensor: fn(Part) -> LayerTensor, activations: &[f32], columns: std::ops::Range<usize>| {
            let matrix = weights.get(TensorId::Layer(layer, tensor(Weight)));
            let width = matrix.len() / 8;
            let squares = activations.chunks_exact(width).flat_map(|token| {
                let columns = columns.clone();
                matrix.chunks_exact(width).map(move |row| {
                    columns.clone().map(|column| f64::from(row[column]) * f64::from(token[column])).sum::<f64>().powi(2)
                })
            });
            (squares.sum::<f64>() / TOKENS.len() as f64).sqrt()
        };
        let width = shape.heads / shape.kv_heads * 4;
        for (layer, (heads, channels)) in seen.iter().enumerate() {
            let expected = (0..12).map(|channel| size(layer, Down, channels, channel..channel + 1)).collect::<Vec<_>>();
            assert!(farthest(&scores.channels[layer], &expected) < F64_NOISE);
            let expected = (0..6).map(|head| size(layer, Output, heads, head * 4..head * 4 + 4)).collect::<Vec<_>>();
            assert!(farthest(&scores.queries[layer], &expected) < F64_NOISE);
            let groups = 0..shape.kv_heads;
            let expected = groups.map(|group| size(layer, Output, heads, group * width..(group + 1) * width)).collect::<Vec<_>>();
            assert!(farthest(&scores.groups[layer], &expected) < F64_NOISE);
        }
    }
}

#[test]
fn tokens_may_come_in_any_portions() {
    let pruning = recipe(json!({"head_ratio": 0.5}));
    let weights = tiny(Family::Llama);
    let (_, seen) = reference::logits(&weights, &TOKENS);
    let mut portions = ActivationScores::new(weights.architecture(), &pruning);
    for (layer, (heads, channels)) in seen.iter().enumerate() {
        portions.observe(layer, &heads[..2 * 24], &channels[..2 * 12]);
        portions.observe_mlp(layer, &channels[2 * 12..]);
        portions.observe_attention(layer, &heads[2 * 24..]);
    }
    assert_eq!(portions.finish(&weights).unwrap(), observed(&weights, &pruning));
}

#[test]
fn activations_that_are_missing_or_not_finite_are_refused_by_layer() {
    let pruning = recipe(json!({"channel_ratio": 0.5}));
    let weights = tiny(Family::Llama);
    let mut scores = ActivationScores::new(weights.architecture(), &pruning);
    scores.observe_mlp(0, &[1.0; 12]);
    let refusal = scores.finish(&weights).unwrap_err();
    let text = "importance \"activation\" saw no token in layer 1; give calibration text or set importance to \"magnitude\"";
    assert_eq!((refusal.key(), refusal.to_string().as_str()), ("importance", text));
    for layer in [1, 2] {
        scores.observe_mlp(layer, &[1.0; 12]);
    }
    assert!(scores.finish(&weights).unwrap().groups[0].is_empty(), "heads are not measured where none is to be cut");
    scores.observe_mlp(2, &[f32::NAN; 12]);
    let refusal = scores.finish(&weights).unwrap_err();
    assert_eq!(refusal.to_string(), "importance \"activation\" met NaN or an infinity in the MLP of layer 2");
}

/// SmolLM2-135M: 30 layers, 9 heads in 3 groups of width 64, 1536 channels, 134,515,008 parameters.
fn smollm2() -> Architecture {
    let config = json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "tie_word_embeddings": true
    });
    Family::read(&config, Path::new("config.json")).unwrap()
}

#[test]
fn ratios_and_targets_become_counts() {
    let shape = |keys| {
        let after = resolve(&recipe(keys), &smollm2()).unwrap();
        let shape = after.uniform_layer().unwrap();
        (after.layers.len(), shape.heads, shape.kv_heads, shape.intermediate_size, after.parameters())
    };
    assert_eq!(smollm2().parameters(), 134_515_008);
    // A channel is 3 · 576 weights in 30 layers: 51,840. A group is 64 · 576 · (3 + 1 + 1 + 3) in 30 layers: 8,847,360.
    assert_eq!(shape(json!({"head_ratio": 0.34})), (30, 6, 2, 1536, 134_515_008 - 8_847_360));
    assert_eq!(shape(json!({"head_ratio": 0.99})).2, 1);
    assert_eq!(shape(json!({"head_ratio": 0.34, "head_unit": "query"})), (30, 6, 3, 1536, 134_515_008 - 30 * 3 * 64 * 576 * 2));
    assert_eq!(shape(json!({"channel_ratio": 0.25})), (30, 9, 3, 1152, 134_515_008 - 384 * 51_840));
    // 0.8 · 1536 = 1228.8 is 38.4 multiples of 32; 0.99 would be none, and one stays.
    assert_eq!(shape(json!({"channel_ratio": 0.2})).3, 1216);
    assert_eq!(shape(json!({"channel_ratio": 0.995})).3, 32);
    assert_eq!(shape(json!({"channel_ratio": 0.2, "channel_multiple": 1})).3, 1229);
    let mut narrow = smollm2();
    narrow.layers.fill(LayerShape { heads: 4, kv_heads: 1, intermediate_size: 40 });
    let nearest = resolve(&recipe(json!({"channel_ratio": 0.01, "channel_multiple": 16})), &narrow).unwrap();
    assert_eq!(nearest.layers[0].intermediate_size, 32, "40 is no multiple of 16: 39.6 is nearer to 32 than to 48");
    // 34,515,008 / 51,840 = 665.8 channels too many: 870 could stay, 864 is a multiple.
    assert_eq!(shape(json!({"target_parameters": 100_000_000})), (30, 9, 3, 864, 134_515_008 - 672 * 51_840));
    let exactly = 134_515_008 - 672 * 51_840;
    assert_eq!(shape(json!({"target_parameters": exactly})).3, 864);
    assert_eq!(shape(json!({"target_parameters": exactly - 1})).3, 832);
    // The group alone gives 8,847,360; 25,667,648 / 51,840 = 495.1 channels remain to be cut.
    assert_eq!(shape(json!({"target_parameters": 100_000_000, "head_ratio": 0.34})).3, 1024);
    assert_eq!(shape(json!({"target_parameters": 126_000_000, "head_ratio": 0.34})).3, 1536);
    assert_eq!(shape(json!({"layers": [5, 7], "channel_ratio": 0.25})).0, 28);
}

#[test]
fn what_can_t_be_cut_is_refused_with_the_way_out() {
    let mut one_group = smollm2();
    one_group.layers.fill(LayerShape { heads: 4, kv_heads: 1, intermediate_size: 40 });
    let mut no_groups = one_group.clone();
    no_groups.layers.fill(LayerShape { heads: 4, kv_heads: 4, intermediate_size: 32 });
    let mut one_head = one_group.clone();
    one_head.layers.fill(LayerShape { heads: 1, kv_heads: 1, intermediate_size: 96 });
    let mut two_multiples = one_group.clone();
    two_multiples.layers.fill(LayerShape { heads: 4, kv_heads: 2, intermediate_size: 64 });
    let mut uneven = smollm2();
    uneven.layers[3].intermediate_size = 1024;
    let smollm2 = smollm2();
    let cases: [(&Architecture, Json, &str, &str); 29] = [
        (&smollm2, json!({}), "prune", "nothing to cut: set head_ratio, channel_ratio, target_parameters or layers"),
        (&smollm2, json!({"head_ratio": 1.5}), "head_ratio", "head_ratio 1.5 is not between 0 and 1"),
        (&smollm2, json!({"channel_ratio": -0.1}), "channel_ratio", "channel_ratio -0.1 is not between 0 and 1"),
        (&smollm2, json!({"head_ratio": 1.0}), "head_ratio", "head_ratio 1 would leave no attention head; it must be below 1"),
        (
            &smollm2,
            json!({"channel_ratio": 1.0}),
            "channel_ratio",
            "channel_ratio 1 would leave no intermediate channel; it must be below 1",
        ),
        (
            &smollm2,
            json!({"head_ratio": 0.3}),
            "head_ratio",
            "head_ratio 0.3 of 3 GQA groups cuts nothing; the smallest that does is 0.34",
        ),
        (
            &smollm2,
            json!({"head_ratio": 0.2, "head_unit": "query"}),
            "head_ratio",
            "head_ratio 0.2 of 3 query heads in a GQA group cuts nothing; the smallest that does is 0.34",
        ),
        (
            &no_groups,
            json!({"head_ratio": 0.24}),
            "head_ratio",
            "head_ratio 0.24 of 4 GQA groups cuts nothing; the smallest that does is 0.25",
        ),
        (
            &one_group,
            json!({"head_ratio": 0.5}),
            "head_unit",
            "head_unit \"group\" has nothing to cut: the model has one GQA group; \"query\" cuts among its 4 query heads",
        ),
        (
            &no_groups,
            json!({"head_ratio": 0.5, "head_unit": "query"}),
            "head_unit",
            "head_unit \"query\" has nothing to cut: a GQA group has one query head; \"group\" cuts among the 4 groups",
        ),
        (
            &one_head,
            json!({"head_ratio": 0.5}),
            "head_unit",
            "head_unit \"group\" has nothing to cut: the model has a single attention head",
        ),
        (
            &smollm2,
            json!({"channel_ratio": 0.01}),
            "channel_ratio",
            "channel_ratio 0.01 of 1536 intermediate channels, kept in multiples of 32, cuts nothing; the smallest that does is 0.02",
        ),
        (
            // 48 is as near to 32 as to 64, and a half rounds to more.
            &two_multiples,
            json!({"channel_ratio": 0.25}),
            "channel_ratio",
            "channel_ratio 0.25 of 64 intermediate channels, kept in multiples of 32, cuts nothing; the smallest that does is 0.26",
        ),
        (
            &one_head,
            json!({"channel_ratio": 0.1}),
            "channel_ratio",
            "channel_ratio 0.1 of 96 intermediate channels, kept in multiples of 32, cuts nothing; the smallest that does is 0.17",
        ),
        (
            // Half a channel is 0.000326 of them; 0.001 would cut two.
            &smollm2,
            json!({"channel_ratio": 0.0001, "channel_multiple": 1}),
            "channel_ratio",
            "channel_ratio 0.0001 of 1536 intermediate channels, kept in multiples of 1, cuts nothing; \
             the smallest that does is 0.0004",
        ),
        (
            &no_groups,
            json!({"channel_ratio": 0.5}),
            "channel_multiple",
            "channel_multiple 32 must be below intermediate_size 32 for any channel to go",
        ),
        (
            &one_group,
            json!({"channel_ratio": 0.5, "channel_multiple": 64}),
            "channel_multiple",
            "channel_multiple 64 must be below intermediate_size 40 for any channel to go",
        ),
        (
            &smollm2,
            json!({"channel_ratio": 0.5, "channel_multiple": 0}),
            "channel_multiple",
            "channel_multiple 0 must be at least 1",
        ),
        (
            &smollm2,
            json!({"channel_ratio": 0.5, "target_parameters": 100_000_000}),
            "target_parameters",
            "target_parameters and channel_ratio both say how many channels go; give one of them",
        ),
        (
            &smollm2,
            json!({"target_parameters": 134_515_008}),
            "target_parameters",
            "target_parameters 134515008 is not below the 134515008 parameters that the model has",
        ),
        (
            // 134,515,008 − 1504 · 51,840 and 134,515,008 − 32 · 51,840.
            &smollm2,
            json!({"target_parameters": 50_000_000}),
            "target_parameters",
            "target_parameters 50000000 is out of reach: with 32 to 1504 intermediate channels kept the model has 56547648 to \
             132856128 parameters; cut heads or layers too",
        ),
        (&smollm2, json!({"layers": [4, 30]}), "layers", "layers names 30, the model has 30 layers, 0 to 29"),
        (&smollm2, json!({"layers": [4, 2, 4]}), "layers", "layers names 4 twice"),
        (
            &smollm2,
            json!({"layers": (0..30).collect::<Vec<_>>()}),
            "layers",
            "layers names all 30 layers of the model; at least one must stay",
        ),
        (
            &uneven,
            json!({"channel_ratio": 0.5}),
            "channel_ratio",
            "channel_ratio needs layers of one size, and this model's layers differ; only whole layers can be cut from it",
        ),
        (
            &uneven,
            json!({"head_ratio": 0.5}),
            "head_ratio",
            "head_ratio needs layers of one size, and this model's layers differ; only whole layers can be cut from it",
        ),
        (
            &uneven,
            json!({"target_parameters": 5}),
            "target_parameters",
            "target_parameters needs layers of one size, and this model's layers differ; only whole layers can be cut from it",
        ),
        (
            &no_groups,
            json!({"target_parameters": 1000}),
            "channel_multiple",
            "channel_multiple 32 must be below intermediate_size 32 for any channel to go",
        ),
        (
            &smollm2,
            json!({"target_parameters": 1000, "channel_multiple": 0}),
            "channel_multiple",
            "channel_multiple 0 must be at least 1",
        ),
    ];
    for (architecture, keys, key, text) in cases {
        let refusal = resolve(&recipe(keys.clone()), architecture).unwrap_err();
        assert_eq!((refusal.key(), refusal.to_string().as_str()), (key, text), "{keys}");
    }
    assert!(resolve(&recipe(json!({"layers": [3]})), &uneven).is_ok(), "the one layer of another size goes");
    let mut nan = recipe(json!({}));
    nan.head_ratio = f64::NAN;
    assert_eq!(resolve(&nan, &smollm2).unwrap_err().to_string(), "head_ratio NaN is not between 0 and 1");
}

#[test]
fn every_mistake_is_refused_at_once() {
    let pruning = recipe(json!({"head_ratio": 0.1, "channel_ratio": 0.001, "layers": [40]}));
    let keys: Vec<_> = refusals(&pruning, &smollm2()).iter().map(Refusal::key).collect();
    assert_eq!(keys, ["layers", "head_ratio", "channel_ratio"]);
    assert_eq!(resolve(&pruning, &smollm2()).unwrap_err().key(), "layers");
}

#[test]
fn reports_keep_what_was_cut_and_by_what() {
    let cuts = Cuts {
        measure: Some(Measure::Activation { tokens: 4096 }),
        head_unit: HeadUnit::Query,
        layers: vec![],
        units: vec![LayerCuts { layer: 0, heads: vec![1], channels: vec![2, 3] }],
    };
    let kept = json!({
        "measure": {"activation": {"tokens": 4096}}, "head_unit": "query", "layers": [],
        "units": [{"layer": 0, "heads": [1], "channels": [2, 3]}]
    });
    assert_eq!(serde_json::to_value(&cuts).unwrap(), kept);
    assert_eq!(serde_json::from_value::<Cuts>(kept).unwrap(), cuts);
    let shown = |norm| Measure::Magnitude { norm }.to_string();
    assert_eq!(Measure::Activation { tokens: 4096 }.to_string(), "activation on 4096 tokens");
    assert_eq!(shown(MagnitudeNorm::L2), "magnitude (L2 norm)");
    assert_eq!(shown(MagnitudeNorm::L1), "magnitude (L1 norm)");
    assert_eq!(shown(MagnitudeNorm::Product), "magnitude (product of norms)");
}

fn ratio() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1.0_f64, -0.5..1.5_f64, Just(1.0), Just(f64::NAN), Just(f64::INFINITY)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn resolving_never_panics_and_pruning_gives_what_it_says(
        (head_ratio, channel_ratio) in (ratio(), ratio()),
        target_parameters in proptest::option::weighted(0.3, 0..6000_u64),
        (query, channel_multiple) in (any::<bool>(), 0..14_usize),
        layers in proptest::collection::vec(0..4_usize, 0..3),
        (count, group, kv_heads, channels) in (1..4_usize, 1..4_usize, 1..4_usize, 1..20_usize),
    ) {
        let shape = LayerShape { heads: group * kv_heads, kv_heads, intermediate_size: channels };
        let architecture = architecture(Family::Llama, shape, count);
        let head_unit = if query { HeadUnit::Query } else { HeadUnit::Group };
        let pruning = Prune {
            head_ratio, channel_ratio, target_parameters, head_unit, channel_multiple, layers,
            ..recipe(json!({"importance": "magnitude"}))
        };
        let Ok(after) = resolve(&pruning, &architecture) else {
            for refusal in refusals(&pruning, &architecture) {
                prop_assert!(!refusal.to_string().is_empty());
                let alone = Prune { layers: vec![], target_parameters: None, ..pruning.clone() };
                if let Refusal::NoHeadCut { smallest, .. } = refusal {
                    let enough = Prune { head_ratio: smallest, channel_ratio: 0.0, ..alone.clone() };
                    prop_assert!(resolve(&enough, &architecture).unwrap().layers[0].heads < shape.heads);
                }
                if let Refusal::NoChannelCut { smallest, .. } = refusal {
                    let enough = Prune { channel_ratio: smallest, head_ratio: 0.0, ..alone };
                    prop_assert!(resolve(&enough, &architecture).unwrap().layers[0].intermediate_size < channels);
                }
            }
            return Ok(());
        };
        prop_assert!(refusals(&pruning, &architecture).is_empty());
        prop_assert!(after.parameters() < architecture.parameters());
        prop_assert!(target_parameters.is_none_or(|target| after.parameters() <= target));
        let weights = Weights::random(architecture, 1);
        let scores = magnitude(&weights, MagnitudeNorm::L1);
        let (pruned, _) = prune(weights, &pruning, &scores).unwrap();
        prop_assert_eq!(pruned.architecture(), &after);
        prop_assert!(after.uniform_layer().is_some());
    }
}
