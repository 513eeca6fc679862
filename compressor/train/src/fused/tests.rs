//! Every fused operation against two judges: central differences, and the same operation composed of Burn's own with Burn's gradients.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use compressor_format::Activation;

use super::*;
use crate::batch::Sequences;
use crate::model::values;
use crate::ops::{Heads, Ops};

/// Numbers between −1 and 1 that look random and are the same everywhere.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn plain_tensor(values: &[f32], [rows, columns]: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [rows, columns]), &Device::flex())
}

/// Σ out · weights, in f64.
fn weighted_sum(out: &[f32], weights: &[f32]) -> f64 {
    out.iter().zip(weights).map(|(out, weight)| f64::from(*out) * f64::from(*weight)).sum()
}

/// Step of the central differences: their error is about its square plus 1e-7 over it.
const STEP: f32 = 5e-3;
/// Bound on the difference between a gradient and central differences in f32, for values and gradients of about 1.
const DIFFERENCE_ERROR: f64 = 1e-3;
/// Bound on the difference between two f32 computations of values of about 1.
const ROUNDING_ERROR: f32 = 5e-6;

/// Compares an operation's result and gradients with both judges.
fn judge(name: &str, shapes: &[[usize; 2]], operation: impl Fn(Ops, Vec<Tensor<2>>) -> Tensor<2>) {
    let inputs: Vec<Vec<f32>> = (0..).zip(shapes).map(|(seed, [rows, columns])| noise(rows * columns, seed + 3)).collect();
    let result = |inputs: &[Vec<f32>]| {
        values(operation(Ops::Fused, inputs.iter().zip(shapes).map(|(values, shape)| plain_tensor(values, *shape)).collect()))
    };
    let out = result(&inputs);
    let weights = noise(out.len(), 99);
    let with_gradients = |ops| {
        let leaves: Vec<Tensor<2>> =
            inputs.iter().zip(shapes).map(|(values, shape)| plain_tensor(values, *shape).autodiff().require_grad()).collect();
        let out = operation(ops, leaves.clone());
        let weights = plain_tensor(&weights, out.dims());
        let mut gradients = (out.clone() * weights).sum().backward();
        let of_inputs: Vec<Vec<f32>> = leaves.iter().map(|leaf| values(leaf.grad_remove(&mut gradients).unwrap())).collect();
        (values(out.without_autodiff()), of_inputs)
    };
    let (tracked, gradients) = with_gradients(Ops::Fused);
    assert_eq!(tracked, out, "{name}: recording changes nothing");
    let (plain, plain_gradients) = with_gradients(Ops::Plain);
    assert_close(&format!("{name}: result"), &out, &plain, ROUNDING_ERROR);
    for (number, (fused, plain)) in gradients.iter().zip(&plain_gradients).enumerate() {
        assert_close(&format!("{name}: gradient of input {number}"), fused, plain, ROUNDING_ERROR);
    }
    for (number, gradient) in gradients.iter().enumerate() {
        for element in 0..gradient.len() {
            let moved = |by: f32| {
                let mut inputs = inputs.clone();
                inputs[number][element] += by;
                weighted_sum(&result(&inputs), &weights)
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
            let found = f64::from(gradient[element]);
            assert!(
                (found - difference).abs() <= DIFFERENCE_ERROR * difference.abs().max(1.0),
                "{name}: gradient of input {number}, element {element}: {found}, differences give {difference}"
            );
        }
    }
}

/// Compares two computations, by the largest value in them.
pub(crate) fn assert_close(name: &str, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
    for (element, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound * largest, "{name}, element {element}: {found}, expected {expected}");
    }
}

#[test]
fn linear_has_the_right_gradients() {
    judge("linear", &[[5, 7], [4, 7]], |ops, inputs| ops.linear(inputs[0].clone(), inputs[1].clone(), None));
    judge("with a bias", &[[5, 7], [4, 7], [1, 4]], |ops, inputs| {
        ops.linear(inputs[0].clone(), inputs[1].clone(), Some(inputs[2].clone()))
    });
}

#[test]
fn norms_have_the_right_gradients() {
    use compressor_format::{Norm, NormKind};
    judge("RMSNorm", &[[3, 19], [1, 19]], |ops, inputs| ops.rms_norm(inputs[0].clone(), inputs[1].clone(), 1e-5));
    judge("RMSNorm of heads", &[[3, 24], [1, 8]], |ops, inputs| ops.rms_norm(inputs[0].clone(), inputs[1].clone(), 1e-5));
    judge("LayerNorm", &[[3, 19], [1, 19], [1, 19]], |ops, inputs| {
        let norm = Norm { kind: NormKind::Layer, epsilon: 1e-5 };
        ops.norm(norm, inputs[0].clone(), inputs[1].clone(), Some(inputs[2].clone()))
    });
}

#[test]
fn activations_have_the_right_gradients() {
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        judge(&format!("{activation:?}"), &[[3, 21]], |ops, inputs| ops.activate(activation, inputs[0].clone() * 3.0));
        judge(&format!("{activation:?} gate"), &[[3, 21], [3, 21]], |ops, inputs| {
            ops.gate(activation, inputs[0].clone() * 3.0, inputs[1].clone())
        });
    }
}

#[test]
fn picking_rows_has_the_right_gradients_where_one_is_picked_twice() {
    let rows: Arc<[u32]> = [2, 0, 2].into();
    judge("gather", &[[4, 3]], |ops, inputs| ops.gather(inputs[0].clone(), &rows));
}

#[test]
fn rows_are_added_where_they_were_picked() {
    for ops in [Ops::Fused, Ops::Plain] {
        let into = plain_tensor(&[1., 1., 1., 1., 1., 1.], [3, 2]);
        let from = plain_tensor(&[1., 2., 3., 4., 5., 6.], [3, 2]);
        assert_eq!(values(ops.scatter_add(into, &[2, 0, 2], from)), [4., 5., 1., 1., 7., 9.], "{ops:?}");
    }
}

#[test]
fn rotation_has_the_right_gradients_and_halves() {
    let half = 3;
    let angles = noise(4 * half, 8);
    let table = Arc::new(RotaryTable {
        cosines: angles.iter().map(|angle| angle.cos()).collect(),
        sines: angles.iter().map(|angle| angle.sin()).collect(),
        half,
    });
    let sequences = Arc::new(Sequences::rectangle(2, 4));
    judge("rotation", &[[8, 12]], |ops, inputs| ops.rotate(inputs[0].clone(), &table, &sequences));

    // One head of four at position 1, a quarter turn and none: [a, b, c, d] → [−c, b, a, d].
    let table = Arc::new(RotaryTable { cosines: vec![1., 1., 0., 1.], sines: vec![0., 0., 1., 0.], half: 2 });
    let sequences = Arc::new(Sequences::rectangle(1, 2));
    let x = plain_tensor(&[1., 2., 3., 4., 1., 2., 3., 4.], [2, 4]);
    for ops in [Ops::Fused, Ops::Plain] {
        assert_eq!(values(ops.rotate(x.clone(), &table, &sequences)), [1., 2., 3., 4., -3., 2., 1., 4.], "{ops:?}");
    }
}

#[test]
fn attention_has_the_right_gradients_with_grouped_queries() {
    let sequences = Arc::new(Sequences::rectangle(2, 5));
    let sizes = Heads { heads: 4, kv_heads: 2, head_dim: 3 };
    judge("attention", &[[10, 12], [10, 6], [10, 6]], |ops, inputs| {
        ops.attention(sizes, inputs[0].clone() * 2.0, inputs[1].clone() * 2.0, inputs[2].clone(), &sequences)
    });
}

#[test]
fn attention_over_several_blocks_of_queries_agrees_with_the_composition() {
    let sequences = Arc::new(Sequences::rectangle(1, 150));
    let sizes = Heads { heads: 2, kv_heads: 1, head_dim: 8 };
    let shapes = [[150, 16], [150, 8], [150, 8]];
    let run = |ops: Ops| {
        let leaves: Vec<_> = (0..)
            .zip(shapes)
            .map(|(seed, shape)| plain_tensor(&noise(shape[0] * shape[1], seed), shape).autodiff().require_grad())
            .collect();
        let out = ops.attention(sizes, leaves[0].clone(), leaves[1].clone(), leaves[2].clone(), &sequences);
        let mut gradients = (out.clone() * plain_tensor(&noise(2400, 7), [150, 16])).sum().backward();
        let gradients: Vec<_> = leaves.iter().map(|leaf| values(leaf.grad_remove(&mut gradients).unwrap())).collect();
        (values(out.without_autodiff()), gradients)
    };
    let ((fused, fused_gradients), (plain, plain_gradients)) = (run(Ops::Fused), run(Ops::Plain));
    assert_close("result", &fused, &plain, ROUNDING_ERROR);
    for (fused, plain) in fused_gradients.iter().zip(&plain_gradients) {
        assert_close("gradient", fused, plain, ROUNDING_ERROR);
    }
}

#[test]
fn sequences_of_different_lengths_do_not_see_each_other() {
    // Two sequences packed together give what each gives alone.
    let sizes = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
    let operation = |starts: &[usize]| {
        let sequences = Arc::new(Sequences::from_starts(starts));
        Attention { sequences, heads: sizes.heads, kv_heads: sizes.kv_heads, head_dim: sizes.head_dim }
    };
    let (q, k, v, gradient) = (noise(7 * 8, 1), noise(7 * 4, 2), noise(7 * 4, 3), noise(7 * 8, 4));
    let run = |starts: &[usize], rows: std::ops::Range<usize>| {
        let of = |values, columns| Matrix { values, rows: 7, columns }.part(rows.start, rows.len());
        let (inputs, operation) = ([of(&q, 8), of(&k, 4), of(&v, 4)], operation(starts));
        let (out, saved) = operation.forward(inputs);
        (out.values, operation.backward(inputs, &saved, of(&gradient, 8)))
    };
    let (together, gradients_together) = run(&[0, 3, 7], 0..7);
    let (first, gradients_first) = run(&[0, 3], 0..3);
    let (second, gradients_second) = run(&[0, 4], 3..7);
    assert_eq!(together, [first, second].concat());
    for input in 0..3 {
        assert_eq!(gradients_together[input], [gradients_first[input].clone(), gradients_second[input].clone()].concat());
    }
}
