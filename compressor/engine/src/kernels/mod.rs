//! Inner loops over slices, each written once over sixteen lanes and compiled for every instruction set; which one runs is chosen
//! at run time.
//!
//! - [`Simd`] is what an instruction set can do: one file for each, `scalar` in plain Rust as the judge of the others.
//! - [`Kernel`] is one loop over it; [`Kernels::run`] runs it with the instruction set at hand.
//! - An instruction set is a token that only its detection can build, so holding one proves that its loops may run.
//!
//! Every instruction set adds in the same order, so all that fuse multiplication and addition give the same bits; `scalar` rounds
//! between the two. Sums of integers are exact everywhere.

#![allow(unsafe_code)]

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dense;
pub(crate) mod integer;
pub(crate) mod lines;
#[cfg(feature = "std")]
pub(crate) mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
pub(crate) mod vector;
pub(crate) mod view;

#[cfg(target_arch = "x86_64")]
pub use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
use scalar::Scalar;

use alloc::vec;
use alloc::vec::Vec;

/// Lanes of every vector, however many registers it takes.
pub(crate) const LANES: usize = 16;

/// Input elements of one integer product: a whole number of them share a scale.
pub(crate) const BLOCK: usize = 32;

/// Which instruction set runs the inner loops. Products of f32 matrices with many vectors go through the `gemm` crate, which
/// makes its own choice. Without `std` there is nobody to ask what the processor has, and [`Self::Scalar`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Plain Rust: every machine.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 256-bit vectors with products of integers in one instruction.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    /// 512-bit vectors with products of integers in one instruction.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// 128-bit vectors of ARM with products of integers in one instruction.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Kernels {
    /// The widest that this processor has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// All that this processor has, the widest last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut kernels = vec![Self::Scalar];
        #[cfg(all(feature = "std", target_arch = "x86_64"))]
        {
            kernels.extend(Avx2::detect().map(Self::Avx2));
            kernels.extend(AvxVnni::detect().map(Self::AvxVnni));
            kernels.extend(Avx512::detect().map(Self::Avx512));
        }
        #[cfg(all(feature = "std", target_arch = "aarch64"))]
        kernels.extend(Neon::detect().map(Self::Neon));
        kernels
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512 VNNI",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "NEON",
        }
    }

    /// Runs a loop with this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => token.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => token.run(kernel),
        }
    }
}

/// One loop, with what it reads and writes.
///
/// `run` must be `#[inline(always)]`, and so must all that it calls with an `S`, or it is not compiled for the instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// The loop.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// What an instruction set can do with vectors of [`LANES`] lanes.
pub(crate) trait Simd: Copy {
    /// Sixteen floats.
    type F32: Copy;
    /// Sixteen 32-bit integers.
    type I32: Copy;

    /// Query rows that keep their sums in registers at once.
    const ROWS: usize;
    /// Thirty-two registers hold a vector each: more sums stay in them.
    const WIDE: bool;
    /// Bytes are multiplied with their sign: [`Self::dots`] takes the offset of 128 off the weights itself.
    const SIGNED: bool = false;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// Reads.
    fn load(self, x: &[f32; LANES]) -> Self::F32;
    /// Reads halves, IEEE 754 binary16 as bits, widened exactly.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F32;
    /// Reads bfloat16 as bits, widened exactly.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F32;
    /// Reads signed bytes.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F32;
    /// Writes.
    fn store(self, x: Self::F32, out: &mut [f32; LANES]);
    /// Writes bytes, rounded to the nearest, ties to even; the lanes lie within −128 and 127.
    fn store_i8(self, x: Self::F32, out: &mut [i8; LANES]);
    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a − b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Without its sign.
    fn abs(self, x: Self::F32) -> Self::F32;
    /// `x · 2ⁿ`, `n` being the low bits of `shifted` less those of [`vector::ROUND`]; both powers are normal numbers.
    fn scale_by_power(self, x: Self::F32, shifted: Self::F32) -> Self::F32;

    /// The same value in every lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// Reads signed bytes.
    fn load_i8_as_i32(self, x: &[i8; LANES]) -> Self::I32;
    /// `a + b`, wrapping.
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a · b`, the low half.
    fn mul_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// As floats, exact below 2²⁴.
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// Writes.
    #[cfg(test)]
    fn store_i32(self, x: Self::I32, out: &mut [i32; LANES]);

    /// `start[t][lane] + Σ_i weights[r][lane, i] · x[t][i]` for a block of each of `R` tiles and each of `T` vectors of activations.
    ///
    /// Weights are unsigned, element `4k + j` of row `lane` at `64 k + 4 lane + j`, unless [`Self::SIGNED`]; activations are signed.
    fn dots<const R: usize, const T: usize>(
        self,
        weights: [&[u8; LANES * BLOCK]; R],
        x: [&[i8; BLOCK]; T],
        start: [Self::I32; T],
    ) -> [[Self::I32; T]; R];

    /// As [`Self::dots`] for one vector, always without a sign, two weights in a byte: element `i` of a row in the low half of the byte that
    /// would hold it if the tile had 16 columns, element `16 + i` in the high half.
    fn dot_nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Self::I32) -> Self::I32;

    /// Column `4k + byte` of sixteen rows from the 64 bytes of `k`, as [`Self::dots`] has them.
    fn load_column(self, weights: &[u8; 4 * LANES], byte: usize) -> Self::F32;

    /// Asks for memory that is read soon; any address will do.
    fn prefetch(self, address: *const u8);
}

/// The sum of all lanes, halves folded onto each other.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, x: S::F32) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(x, &mut lanes);
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Whole vectors of a slice, and the rest padded with `padding`.
#[inline(always)]
pub(crate) fn padded<T: Copy>(rest: &[T], padding: T) -> [T; LANES] {
    let mut lanes = [padding; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}
