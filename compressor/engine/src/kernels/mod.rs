//! Inner loops over slices, once for every instruction set; which one runs is chosen at run time.
//!
//! An instruction set is a token that only its detection can build, so holding one proves that its loops may run.
//! Every function gives the same bits on every call; between instruction sets the order of a sum differs, and so may its last bits.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod matmul;
pub(crate) mod scalar;

use half::{bf16, f16};

/// Which instruction set multiplies matrices by single vectors. Products with many vectors go through the `gemm` crate, which
/// makes its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Plain Rust: every machine.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Proof that this processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that this processor has AVX-512 F, BW, DQ and VL, and what [`Avx2`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// `Some` where the processor has it.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// `Some` where the processor has it.
    pub fn detect() -> Option<Self> {
        Avx2::detect()?;
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Self(()))
    }
}

/// One row of integers in groups: `Σ_g scales[g] · Σ_i (q[g, i] − zero_points[g]) · x[g, i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantizedRow<'a> {
    /// The integers as they lie in the file.
    pub(crate) bytes: &'a [u8],
    /// What the bytes hold.
    pub(crate) storage: Storage,
    /// One a group.
    pub(crate) scales: &'a [f32],
    /// One a group, where there are any.
    pub(crate) zero_points: Option<&'a [i8]>,
    /// Elements that share a scale; all groups together are the row.
    pub(crate) group_size: usize,
}

/// How the integers of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Two in a byte, low nibble first, each as `q + 8`.
    Nibbles,
    /// One in a byte, as `q + 128`.
    Unsigned,
    /// One in a byte, two's complement.
    Signed,
}

impl QuantizedRow<'_> {
    /// The group's zero point.
    #[inline(always)]
    fn zero_point(&self, group: usize) -> i32 {
        self.zero_points.map_or(0, |points| i32::from(points[group]))
    }

    /// Vector loops step over whole bytes, so no group may begin inside one.
    #[inline(always)]
    fn groups_begin_at_bytes(&self) -> bool {
        self.storage != Storage::Nibbles || self.group_size % 2 == 0 || self.scales.len() == 1
    }
}

macro_rules! dispatch {
    ($kernels:expr, $name:ident($($argument:expr),*)) => {
        match $kernels {
            Self::Scalar => scalar::$name($($argument),*),
            // SAFETY: an `Avx2` exists only where `Avx2::detect` found every feature that the function is compiled with.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { avx2::$name($($argument),*) },
            // SAFETY: an `Avx512` exists only where `Avx512::detect` found every feature that the function is compiled with.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => unsafe { avx512::$name($($argument),*) },
        }
    };
}

impl Kernels {
    /// The widest that this processor has.
    pub fn best() -> Self {
        Self::available().pop().expect("`Scalar` is always there")
    }

    /// All that this processor has, the widest last.
    pub fn available() -> Vec<Self> {
        let mut kernels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(Avx2::detect().map(Self::Avx2));
            kernels.extend(Avx512::detect().map(Self::Avx512));
        }
        kernels
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
        }
    }

    /// `Σ a[i] · b[i]`, over as many elements as both have.
    pub(crate) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        dispatch!(self, dot_f32(a, b))
    }

    /// `Σ a[i] · b[i]` with half-width `a`, widened exactly.
    pub(crate) fn dot_bf16(self, a: &[bf16], b: &[f32]) -> f32 {
        dispatch!(self, dot_bf16(a, b))
    }

    /// `Σ a[i] · b[i]` with half-precision `a`, widened exactly.
    pub(crate) fn dot_f16(self, a: &[f16], b: &[f32]) -> f32 {
        dispatch!(self, dot_f16(a, b))
    }

    /// `Σ a[i] · b[i]` of integers, exact: at most 2¹⁷ elements, so that the sum fits.
    pub(crate) fn dot_i8(self, a: &[i8], b: &[i8]) -> i32 {
        dispatch!(self, dot_i8(a, b))
    }

    /// A row of integers with a vector of as many elements.
    pub(crate) fn dot_quantized(self, row: QuantizedRow<'_>, x: &[f32]) -> f32 {
        dispatch!(self, dot_quantized(row, x))
    }

    /// A row of integers as the real numbers it stands for.
    pub(crate) fn dequantize(self, row: QuantizedRow<'_>, out: &mut [f32]) {
        dispatch!(self, dequantize(row, out));
    }

    /// Widens, exactly.
    pub(crate) fn widen_bf16(self, values: &[bf16], out: &mut [f32]) {
        dispatch!(self, widen_bf16(values, out));
    }

    /// Widens, exactly.
    pub(crate) fn widen_f16(self, values: &[f16], out: &mut [f32]) {
        dispatch!(self, widen_f16(values, out));
    }

    /// `out[i] += factor · x[i]`.
    pub(crate) fn add_scaled(self, out: &mut [f32], factor: f32, x: &[f32]) {
        dispatch!(self, add_scaled(out, factor, x));
    }

    /// `exp(x[i]) / Σ exp(x)`, in place.
    pub(crate) fn softmax(self, x: &mut [f32]) {
        dispatch!(self, softmax(x));
    }

    /// `x · sigmoid(x)`, in place.
    pub(crate) fn silu(self, x: &mut [f32]) {
        dispatch!(self, silu(x));
    }

    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, in place.
    pub(crate) fn gelu_tanh(self, x: &mut [f32]) {
        dispatch!(self, gelu_tanh(x));
    }

    /// Rounds a vector to INT8 with one scale, `max|x| / 127.5`; returns the scale.
    pub(crate) fn quantize_i8(self, x: &[f32], out: &mut [i8]) -> f32 {
        dispatch!(self, quantize_i8(x, out))
    }
}
