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
        self.storage != Storage::Nibbles || self.group_size.is_multiple_of(2) || self.scales.len() == 1
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

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 7] = [0, 1, 31, 32, 33, 576, 1536];

    /// Numbers without a pattern, of both signs.
    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|index| (index as f32 * step).sin() * 2.0).collect()
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 89 + index / 7 * 31) as u8).collect()
    }

    /// A sum of `terms` computed in f32, in any order, is off by at most this much: one rounding for each of the terms at worst,
    /// in practice the square root of it.
    fn rounding(terms: impl Iterator<Item = f64>) -> f64 {
        let (mut size, mut count) = (0.0, 0.0);
        for term in terms {
            size += term.abs();
            count += 1.0;
        }
        size * (4.0 + f64::sqrt(count)) * f64::from(f32::EPSILON)
    }

    fn check_sum(found: f32, terms: Vec<f64>, what: &str) {
        let expected: f64 = terms.iter().sum();
        let allowed = rounding(terms.into_iter());
        assert!((f64::from(found) - expected).abs() <= allowed, "{what}: {found}, expected {expected} ± {allowed}");
    }

    #[test]
    fn dense_products_agree_with_sums_in_f64() {
        for kernels in Kernels::available() {
            for len in LENGTHS {
                let (a, b) = (wave(len, 0.37), wave(len, 1.91));
                let what = format!("{} of {len}", kernels.name());
                let exact = |a: &[f32]| a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
                check_sum(kernels.dot_f32(&a, &b), exact(&a), &what);
                let half: Vec<bf16> = a.iter().map(|a| bf16::from_f32(*a)).collect();
                let wide: Vec<f32> = half.iter().map(|a| a.to_f32()).collect();
                check_sum(kernels.dot_bf16(&half, &b), exact(&wide), &format!("bf16, {what}"));
                let mut out = vec![0.0; len];
                kernels.widen_bf16(&half, &mut out);
                assert_eq!(out, wide);
                let half: Vec<f16> = a.iter().map(|a| f16::from_f32(*a)).collect();
                let wide: Vec<f32> = half.iter().map(|a| a.to_f32()).collect();
                check_sum(kernels.dot_f16(&half, &b), exact(&wide), &format!("f16, {what}"));
                kernels.widen_f16(&half, &mut out);
                assert_eq!(out, wide);
            }
        }
    }

    #[test]
    fn integer_products_are_exact() {
        for kernels in Kernels::available() {
            for len in LENGTHS {
                let a: Vec<i8> = bytes(len).iter().map(|byte| *byte as i8).collect();
                let b: Vec<i8> = bytes(len + 5)[5..].iter().map(|byte| *byte as i8).collect();
                let expected: i32 = a.iter().zip(&b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                assert_eq!(kernels.dot_i8(&a, &b), expected, "{} of {len}", kernels.name());
            }
            let lowest = vec![-128i8; (1 << 17) - 1];
            assert_eq!(kernels.dot_i8(&lowest, &lowest), ((1 << 17) - 1) << 14, "the widest product fits");
        }
    }

    /// Every storage with every group size that divides a length, odd ones and whole rows among them.
    fn rows(mut check: impl FnMut(QuantizedRow<'_>, &[f64], &[f32])) -> usize {
        let mut count = 0;
        for len in LENGTHS {
            for group_size in [1, 3, 11, 16, 24, 31, 32, 33, 64, 96, 128, 192, 576, 1536] {
                if len % group_size != 0 || len == 0 {
                    continue;
                }
                let groups = len / group_size;
                let mut scales: Vec<f32> = wave(groups, 0.77).iter().map(|scale| scale.abs() + 0.01).collect();
                // An all-zero group has the scale epsilon.
                scales[groups / 2] = f32::EPSILON;
                for storage in [Storage::Nibbles, Storage::Unsigned, Storage::Signed] {
                    let stored = bytes(if storage == Storage::Nibbles { len.div_ceil(2) } else { len });
                    let points: Vec<i8> = (0..groups).map(|group| (group * 5 % 16) as i8 - 8).collect();
                    for zero_points in [None, Some(points.as_slice())] {
                        let row = QuantizedRow { bytes: &stored, storage, scales: &scales, zero_points, group_size };
                        let real: Vec<f64> = (0..len)
                            .map(|index| {
                                let q = match storage {
                                    Storage::Nibbles if index % 2 == 0 => i32::from(stored[index / 2] % 16) - 8,
                                    Storage::Nibbles => i32::from(stored[index / 2] / 16) - 8,
                                    Storage::Unsigned => i32::from(stored[index]) - 128,
                                    Storage::Signed => i32::from(stored[index] as i8),
                                };
                                let zero_point = zero_points.map_or(0, |points| i32::from(points[index / group_size]));
                                f64::from(q - zero_point) * f64::from(scales[index / group_size])
                            })
                            .collect();
                        check(row, &real, &wave(len, 1.3));
                        count += 1;
                    }
                }
            }
        }
        count
    }

    #[test]
    fn products_of_integers_in_groups_agree_with_sums_in_f64() {
        for kernels in Kernels::available() {
            let count = rows(|row, real, x| {
                let what = format!("{}, {:?}, groups of {}, {} elements", kernels.name(), row.storage, row.group_size, x.len());
                let terms = real.iter().zip(x).map(|(w, x)| w * f64::from(*x)).collect();
                check_sum(kernels.dot_quantized(row, x), terms, &what);
            });
            assert_eq!(count, 29 * 6, "combinations of length and group size, three storages, with zero points and without");
        }
    }

    #[test]
    fn dequantized_rows_are_exact_in_f32() {
        for kernels in Kernels::available() {
            rows(|row, real, x| {
                let mut out = vec![f32::NAN; x.len()];
                kernels.dequantize(row, &mut out);
                // A product of two f32 is exact in f64, so rounding it is the product in f32.
                let expected: Vec<f32> = real.iter().map(|real| *real as f32).collect();
                assert_eq!(out, expected, "{}, {:?}, groups of {}", kernels.name(), row.storage, row.group_size);
            });
        }
    }

    #[test]
    fn a_row_of_zeros_times_anything_is_zero() {
        let zeros = [0x88; 16];
        let row =
            QuantizedRow { bytes: &zeros, storage: Storage::Nibbles, scales: &[f32::EPSILON], zero_points: None, group_size: 32 };
        for kernels in Kernels::available() {
            assert_eq!(kernels.dot_quantized(row, &wave(32, 0.9)), 0.0);
        }
    }

    #[test]
    fn softmax_sums_to_one_and_keeps_ratios() {
        for kernels in Kernels::available() {
            for len in LENGTHS {
                let x = wave(len, 0.7);
                let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
                let mut found = x.clone();
                kernels.softmax(&mut found);
                for (found, x) in found.iter().zip(&x) {
                    let expected = f64::from(*x).exp() / sum;
                    assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{} of {len}", kernels.name());
                }
            }
            let mut far = [1000.0, 0.0, -1000.0, 1000.0];
            kernels.softmax(&mut far);
            assert_eq!((far[0], far[3]), (0.5, 0.5));
            assert!(far[1] < 1e-37 && far[2] < 1e-37);
        }
    }

    #[test]
    fn activations_agree_with_f64() {
        let x: Vec<f32> = (-4000..4000).map(|index| index as f32 * 0.005).collect();
        for kernels in Kernels::available() {
            let (mut silu, mut gelu) = (x.clone(), x.clone());
            kernels.silu(&mut silu);
            kernels.gelu_tanh(&mut gelu);
            for (index, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
                let expected = x / (1.0 + (-x).exp());
                assert!((f64::from(silu[index]) - expected).abs() <= 4e-7 * expected.abs() + 1e-30, "silu({x})");
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                let expected = 0.5 * x * (1.0 + u.tanh());
                assert!((f64::from(gelu[index]) - expected).abs() <= 1e-6, "gelu_tanh({x})");
            }
            let mut nan = [f32::NAN; 20];
            kernels.silu(&mut nan);
            assert!(nan.iter().all(|x| x.is_nan()), "damage is not hidden");
        }
    }

    #[test]
    fn int8_activations_round_to_even_and_reach_both_ends() {
        for kernels in Kernels::available() {
            let mut out = [0; 5];
            // scale 127.5 / 127.5 = 1: ties go to the even neighbour, the largest is cut to 127, the smallest reaches −128.
            assert_eq!(kernels.quantize_i8(&[0.5, 1.5, -2.5, 127.5, -127.5], &mut out), 1.0);
            assert_eq!(out, [0, 2, -2, 127, -128]);
            assert_eq!(kernels.quantize_i8(&[0.0; 5], &mut out), f32::EPSILON);
            assert_eq!(out, [0; 5]);
        }
    }

    #[test]
    fn adding_a_scaled_vector() {
        for kernels in Kernels::available() {
            let mut out = vec![1.0; 33];
            kernels.add_scaled(&mut out, 0.5, &[4.0; 33]);
            assert_eq!(out, [3.0; 33]);
        }
    }
}
