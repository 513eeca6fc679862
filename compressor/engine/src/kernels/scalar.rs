//! Sixteen lanes in plain Rust: every machine, and the judge of the other instruction sets.

use super::{BLOCK, LANES, Simd, vector};
use crate::half;

/// Plain Rust.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

#[inline(always)]
fn each<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn both<A: Copy + Default>(a: [A; LANES], b: [A; LANES], f: impl Fn(A, A) -> A) -> [A; LANES] {
    let mut out = [A::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

impl Simd for Scalar {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];

    const ROWS: usize = 1;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F32 {
        *x
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F32 {
        each(*x, half::f16_to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F32 {
        each(*x, half::bf16_to_f32)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F32 {
        each(*x, f32::from)
    }

    #[inline(always)]
    fn store(self, x: Self::F32, out: &mut [f32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn store_i8(self, x: Self::F32, out: &mut [i8; LANES]) {
        *out = each(x, |x| libm::rintf(x) as i8);
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        both(both(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, x: Self::F32) -> Self::F32 {
        each(x, f32::abs)
    }

    #[inline(always)]
    fn scale_by_power(self, x: Self::F32, shifted: Self::F32) -> Self::F32 {
        both(x, shifted, |x, shifted| {
            let exponent = shifted.to_bits().wrapping_sub(vector::ROUND.to_bits()).wrapping_add(127);
            x * f32::from_bits(exponent << 23)
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load_i8_as_i32(self, x: &[i8; LANES]) -> Self::I32 {
        each(*x, i32::from)
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        both(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        both(a, b, i32::wrapping_mul)
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I32) -> Self::F32 {
        each(x, |x| x as f32)
    }

    #[cfg(test)]
    #[inline(always)]
    fn store_i32(self, x: Self::I32, out: &mut [i32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn dots<const R: usize, const T: usize>(
        self,
        weights: [&[u8; LANES * BLOCK]; R],
        x: [&[i8; BLOCK]; T],
        start: [Self::I32; T],
    ) -> [[Self::I32; T]; R] {
        let mut sums = [start; R];
        for (sums, weights) in sums.iter_mut().zip(weights) {
            for (sums, x) in sums.iter_mut().zip(x) {
                for (weights, x) in weights.as_chunks::<{ 4 * LANES }>().0.iter().zip(x.as_chunks::<4>().0) {
                    for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                        for (weight, x) in weights.iter().zip(x) {
                            *sum += i32::from(*weight) * i32::from(*x);
                        }
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn dot_nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Self::I32) -> Self::I32 {
        let mut sums = start;
        let (low, high) = x.split_at(BLOCK / 2);
        let x = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
        for (weights, (low, high)) in weights.as_chunks::<{ 4 * LANES }>().0.iter().zip(x) {
            for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                for (weight, (low, high)) in weights.iter().zip(low.iter().zip(high)) {
                    *sum += i32::from(weight & 15) * i32::from(*low) + i32::from(weight >> 4) * i32::from(*high);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn load_column(self, weights: &[u8; 4 * LANES], byte: usize) -> Self::F32 {
        let mut out = [0.0; LANES];
        for (out, weights) in out.iter_mut().zip(weights.as_chunks::<4>().0) {
            *out = f32::from(weights[byte]);
        }
        out
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
