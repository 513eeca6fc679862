//! The loops in plain Rust. The vector modules compile some of them again with their features on, which widens them.

use half::{bf16, f16};

use super::{QuantizedRow, Storage};

/// Partial sums kept side by side: enough for the compiler to fill vectors, and a fixed order of addition.
const LANES: usize = 16;

#[inline(always)]
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b, |a| a)
}

#[inline(always)]
pub(super) fn dot_bf16(a: &[bf16], b: &[f32]) -> f32 {
    dot(a, b, bf16::to_f32)
}

#[inline(always)]
pub(super) fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
    dot(a, b, f16::to_f32)
}

#[inline(always)]
fn dot<T: Copy>(a: &[T], b: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += widen(a[lane]) * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| widen(*a) * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
pub(super) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

#[inline(always)]
pub(super) fn dot_quantized(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    let mut total = 0.0;
    for (group, scale) in row.scales.iter().enumerate() {
        let first = group * row.group_size;
        total += scale * dot_integers(row, group, first..first + row.group_size, x);
    }
    total
}

/// The part `elements` of one group of a row, without its scale: `Σ_i (q[i] − zero_point) · x[i]`.
#[inline(always)]
pub(super) fn dot_integers(row: QuantizedRow<'_>, group: usize, elements: std::ops::Range<usize>, x: &[f32]) -> f32 {
    let zero_point = row.zero_point(group);
    let mut sums = [0.0; 8];
    for index in elements {
        sums[index % 8] += (integer(row, index) - zero_point) as f32 * x[index];
    }
    sums.iter().sum()
}

/// One integer of a row.
#[inline(always)]
fn integer(row: QuantizedRow<'_>, index: usize) -> i32 {
    match row.storage {
        Storage::Nibbles => i32::from((row.bytes[index / 2] >> (index % 2 * 4)) & 15) - 8,
        Storage::Unsigned => i32::from(row.bytes[index]) - 128,
        Storage::Signed => i32::from(row.bytes[index] as i8),
    }
}

#[inline(always)]
pub(super) fn dequantize(row: QuantizedRow<'_>, out: &mut [f32]) {
    let by_bytes = row.groups_begin_at_bytes();
    for (group, (scale, out)) in row.scales.iter().zip(out.chunks_mut(row.group_size)).enumerate() {
        let zero_point = row.zero_point(group);
        let first = group * row.group_size;
        match row.storage {
            Storage::Nibbles if by_bytes => {
                let offset = 8 + zero_point;
                let (pairs, last) = out.as_chunks_mut::<2>();
                let bytes = &row.bytes[first / 2..];
                for (pair, byte) in pairs.iter_mut().zip(bytes) {
                    *pair = [i32::from(byte & 15), i32::from(byte >> 4)].map(|q| (q - offset) as f32 * scale);
                }
                if let [last] = last {
                    *last = (i32::from(bytes[pairs.len()] & 15) - offset) as f32 * scale;
                }
            }
            Storage::Nibbles => {
                for (index, out) in out.iter_mut().enumerate() {
                    *out = (integer(row, first + index) - zero_point) as f32 * scale;
                }
            }
            Storage::Unsigned => {
                for (out, byte) in out.iter_mut().zip(&row.bytes[first..]) {
                    *out = (i32::from(*byte) - 128 - zero_point) as f32 * scale;
                }
            }
            Storage::Signed => {
                for (out, byte) in out.iter_mut().zip(&row.bytes[first..]) {
                    *out = (i32::from(*byte as i8) - zero_point) as f32 * scale;
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn widen_bf16(values: &[bf16], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        // Not `to_f32`, whose care for NaN keeps the loop from being vectorized.
        *out = f32::from_bits(u32::from(value.to_bits()) << 16);
    }
}

#[inline(always)]
pub(super) fn widen_f16(values: &[f16], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_f32();
    }
}

#[inline(always)]
pub(super) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in lanes {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] { chunk[lane] } else { largest[lane] };
        }
    }
    let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, x| largest.max(*x));
    let mut sums = [0.0; LANES];
    let (lanes, rest) = x.as_chunks_mut::<LANES>();
    for chunk in lanes {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - largest);
            sums[lane] += chunk[lane];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for x in rest {
        *x = exp(*x - largest);
        sum += *x;
    }
    let factor = 1.0 / sum;
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
pub(super) fn silu(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid(*x);
    }
}

#[inline(always)]
pub(super) fn gelu_tanh(x: &mut [f32]) {
    // (1 + tanh u) / 2 = sigmoid(2u), which does not cancel for large negative u.
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    for x in x {
        *x *= sigmoid(TWICE_SQRT_2_OVER_PI * (*x + 0.044715 * *x * *x * *x));
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `eˣ` to two units in the last place for −87 ≤ x ≤ 88; beyond, the value at the nearer end. NaN stays NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, a polynomial for `eʳ` (Cephes), and `n` written into the exponent.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let exponential = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    exponential * f32::from_bits(exponent << 23)
}

#[inline(always)]
pub(super) fn quantize_i8(x: &[f32], out: &mut [i8]) -> f32 {
    let largest = x.iter().fold(0.0, |largest, x| if x.abs() > largest { x.abs() } else { largest });
    // Epsilon for a vector of zeros, as compressed-tensors does: 0/0 would be NaN.
    let scale = if largest == 0.0 { f32::EPSILON } else { largest / 127.5 };
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x / scale).clamp(-128.0, 127.0).round_ties_even() as i8;
    }
    scale
}
