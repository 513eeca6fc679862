//! Sixteen lanes in four 128-bit registers of ARM, with products of integers in one instruction (ARMv8.2 `dotprod`).

use core::arch::aarch64::*;
use core::arch::asm;

use super::{BLOCK, Kernel, LANES, Simd, vector};

/// Proof that this processor has NEON and the dot products of ARMv8.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    /// `Some` where the processor has it.
    #[cfg(feature = "std")]
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod");
        has.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<K: Kernel>(token: Neon, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: a `Neon` exists only where `detect` found every feature that the function is compiled with.
        unsafe { compiled(self, kernel) }
    }
}

/// SAFETY of every block in here: a `Neon` exists only where `detect` found the instructions, and an array reference has as many
/// elements as the loads read or the stores write.
macro_rules! safe {
    ($expression:expr) => {{
        // SAFETY: see above.
        #[allow(unused_unsafe)]
        unsafe {
            $expression
        }
    }};
}

type Floats = [float32x4_t; 4];
type Integers = [int32x4_t; 4];

/// One operation on all quarters of each argument.
macro_rules! quarters {
    ($operation:ident($($argument:expr),*)) => {{
        [
            safe!($operation($($argument[0]),*)),
            safe!($operation($($argument[1]),*)),
            safe!($operation($($argument[2]),*)),
            safe!($operation($($argument[3]),*)),
        ]
    }};
}

/// Adds to each of four lanes the products of four signed bytes of `weights` with four of `x`, those of `step`.
///
/// The intrinsic is not in stable Rust yet.
#[inline(always)]
fn add_products(sum: int32x4_t, weights: int8x16_t, x: int8x16_t, step: usize) -> int32x4_t {
    let mut sum = sum;
    macro_rules! sdot {
        ($lane:literal) => {
            // SAFETY: a `Neon` exists only where `detect` found `dotprod`; the instruction touches these registers alone.
            unsafe {
                asm!(
                    concat!("sdot {sum:v}.4s, {weights:v}.16b, {x:v}.4b[", $lane, "]"),
                    sum = inout(vreg) sum, weights = in(vreg) weights, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                )
            }
        };
    }
    match step {
        0 => sdot!("0"),
        1 => sdot!("1"),
        2 => sdot!("2"),
        _ => sdot!("3"),
    }
    sum
}

/// Sixteen activations: four steps.
#[inline(always)]
fn sixteen(x: &[i8; BLOCK], half: usize) -> int8x16_t {
    let x: &[i8; LANES] = &x.as_chunks().0[half];
    safe!(vld1q_s8(x.as_ptr()))
}

/// The four bytes of each of four rows.
#[inline(always)]
fn load_bytes(line: &[u8; 4 * LANES], quarter: usize) -> uint8x16_t {
    let bytes: &[u8; 16] = &line.as_chunks().0[quarter];
    safe!(vld1q_u8(bytes.as_ptr()))
}

impl Simd for Neon {
    type F32 = Floats;
    type I32 = Integers;

    const ROWS: usize = 4;
    const WIDE: bool = false;
    const SIGNED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        [safe!(vdupq_n_f32(x)); 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Floats {
        let x: [&[f32; 4]; 4] = core::array::from_fn(|quarter| &x.as_chunks().0[quarter]);
        [
            safe!(vld1q_f32(x[0].as_ptr())),
            safe!(vld1q_f32(x[1].as_ptr())),
            safe!(vld1q_f32(x[2].as_ptr())),
            safe!(vld1q_f32(x[3].as_ptr())),
        ]
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Floats {
        let mut wide = [0.0; LANES];
        for (wide, bits) in wide.iter_mut().zip(x) {
            *wide = crate::half::f16_to_f32(*bits);
        }
        self.load(&wide)
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Floats {
        let mut wide = [0.0; LANES];
        for (wide, bits) in wide.iter_mut().zip(x) {
            *wide = crate::half::bf16_to_f32(*bits);
        }
        self.load(&wide)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Floats {
        self.to_f32(self.load_i8_as_i32(x))
    }

    #[inline(always)]
    fn store(self, x: Floats, out: &mut [f32; LANES]) {
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            safe!(vst1q_f32(out.as_mut_ptr(), x));
        }
    }

    #[inline(always)]
    fn store_i8(self, x: Floats, out: &mut [i8; LANES]) {
        let x = quarters!(vcvtnq_s32_f32(x));
        let low = safe!(vcombine_s16(vqmovn_s32(x[0]), vqmovn_s32(x[1])));
        let high = safe!(vcombine_s16(vqmovn_s32(x[2]), vqmovn_s32(x[3])));
        safe!(vst1q_s8(out.as_mut_ptr(), vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))));
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        quarters!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        quarters!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        quarters!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        quarters!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        quarters!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        let smaller = quarters!(vcltq_f32(a, b));
        quarters!(vbslq_f32(smaller, a, b))
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        let larger = quarters!(vcgtq_f32(a, b));
        quarters!(vbslq_f32(larger, a, b))
    }

    #[inline(always)]
    fn abs(self, x: Floats) -> Floats {
        quarters!(vabsq_f32(x))
    }

    #[inline(always)]
    fn scale_by_power(self, x: Floats, shifted: Floats) -> Floats {
        let bias = [safe!(vdupq_n_s32(127 - vector::ROUND.to_bits() as i32)); 4];
        let bits = quarters!(vreinterpretq_s32_f32(shifted));
        let exponents = quarters!(vaddq_s32(bits, bias));
        let twenty_three = [safe!(vdupq_n_s32(23)); 4];
        let bits = quarters!(vshlq_s32(exponents, twenty_three));
        self.mul(x, quarters!(vreinterpretq_f32_s32(bits)))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Integers {
        [safe!(vdupq_n_s32(x)); 4]
    }

    #[inline(always)]
    fn load_i8_as_i32(self, x: &[i8; LANES]) -> Integers {
        let bytes = safe!(vld1q_s8(x.as_ptr()));
        let (low, high) = (safe!(vmovl_s8(vget_low_s8(bytes))), safe!(vmovl_s8(vget_high_s8(bytes))));
        [
            safe!(vmovl_s16(vget_low_s16(low))),
            safe!(vmovl_s16(vget_high_s16(low))),
            safe!(vmovl_s16(vget_low_s16(high))),
            safe!(vmovl_s16(vget_high_s16(high))),
        ]
    }

    #[inline(always)]
    fn add_i32(self, a: Integers, b: Integers) -> Integers {
        quarters!(vaddq_s32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: Integers, b: Integers) -> Integers {
        quarters!(vmulq_s32(a, b))
    }

    #[inline(always)]
    fn to_f32(self, x: Integers) -> Floats {
        quarters!(vcvtq_f32_s32(x))
    }

    #[cfg(test)]
    #[inline(always)]
    fn store_i32(self, x: Integers, out: &mut [i32; LANES]) {
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            safe!(vst1q_s32(out.as_mut_ptr(), x));
        }
    }

    #[inline(always)]
    fn dots<const R: usize, const T: usize>(
        self,
        weights: [&[u8; LANES * BLOCK]; R],
        x: [&[i8; BLOCK]; T],
        start: [Integers; T],
    ) -> [[Integers; T]; R] {
        let sign = safe!(vdupq_n_u8(128));
        let mut sums = [start; R];
        for (sums, weights) in sums.iter_mut().zip(weights) {
            for (step, line) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
                for quarter in 0..4 {
                    let weights = safe!(vreinterpretq_s8_u8(veorq_u8(load_bytes(line, quarter), sign)));
                    for token in 0..T {
                        let x = sixteen(x[token], step / 4);
                        sums[token][quarter] = add_products(sums[token][quarter], weights, x, step % 4);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn dot_nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Integers) -> Integers {
        let (low, high) = (sixteen(x, 0), sixteen(x, 1));
        let low_half = safe!(vdupq_n_u8(15));
        let mut sums = start;
        for (step, line) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
            for quarter in 0..4 {
                let pairs = load_bytes(line, quarter);
                let low_weights = safe!(vreinterpretq_s8_u8(vandq_u8(pairs, low_half)));
                let high_weights = safe!(vreinterpretq_s8_u8(vshrq_n_u8::<4>(pairs)));
                sums[quarter] = add_products(sums[quarter], low_weights, low, step);
                sums[quarter] = add_products(sums[quarter], high_weights, high, step);
            }
        }
        sums
    }

    #[inline(always)]
    fn load_column(self, weights: &[u8; 4 * LANES], byte: usize) -> Floats {
        let mut column = [0.0; LANES];
        for (out, weights) in column.iter_mut().zip(weights.as_chunks::<4>().0) {
            *out = f32::from(weights[byte]);
        }
        self.load(&column)
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
