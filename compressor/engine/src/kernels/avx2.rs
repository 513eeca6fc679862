//! Sixteen lanes in two 256-bit registers; with AVX-VNNI, products of integers in one instruction.

use core::arch::x86_64::*;

use super::{BLOCK, Kernel, LANES, Simd, vector};

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that this processor has AVX-VNNI and what [`Avx2`] proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvxVnni(Avx2);

impl Avx2 {
    /// `Some` where the processor has it.
    #[cfg(feature = "std")]
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: an `Avx2` exists only where `detect` found every feature that the function is compiled with.
        unsafe { compiled(self, kernel) }
    }
}

impl AvxVnni {
    /// `Some` where the processor has it.
    #[cfg(feature = "std")]
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avxvnni");
        Avx2::detect().filter(|_| has).map(Self)
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn compiled<K: Kernel>(token: AvxVnni, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: an `AvxVnni` exists only where `detect` found every feature that the function is compiled with.
        unsafe { compiled(self, kernel) }
    }
}

/// SAFETY of every block in here: a token exists only where `detect` found the instructions, and an array reference has as many
/// elements as the loads read or the stores write.
macro_rules! safe {
    ($expression:expr) => {{
        // SAFETY: see above.
        unsafe { $expression }
    }};
}

/// Low and high eight lanes.
type Floats = [__m256; 2];
type Integers = [__m256i; 2];

/// One operation on both halves of each argument.
macro_rules! halves {
    ($operation:ident($($argument:ident),*)) => {
        [safe!($operation($($argument[0]),*)), safe!($operation($($argument[1]),*))]
    };
}

/// Four activations, eight times.
#[inline(always)]
fn four_activations(x: &[i8; BLOCK], step: usize) -> __m256i {
    let [a, b, c, d] = x.as_chunks::<4>().0[step];
    let [a, b, c, d] = [a as u8, b as u8, c as u8, d as u8];
    safe!(_mm256_set1_epi32(i32::from_le_bytes([a, b, c, d])))
}

/// The four bytes of each of eight rows.
#[inline(always)]
fn load_bytes(bytes: &[u8], half: usize) -> __m256i {
    let bytes: &[u8; 32] = &bytes.as_chunks().0[half];
    safe!(_mm256_loadu_si256(bytes.as_ptr().cast()))
}

#[inline(always)]
fn low_nibbles(bytes: __m256i) -> __m256i {
    safe!(_mm256_and_si256(bytes, _mm256_set1_epi8(15)))
}

#[inline(always)]
fn high_nibbles(bytes: __m256i) -> __m256i {
    low_nibbles(safe!(_mm256_srli_epi16::<4>(bytes)))
}

/// Sums of pairs of products in 16 bits: nibbles up to 15 times −128, twice, for at most eight steps, fit.
#[inline(always)]
fn add_pairs(sums: __m256i, nibbles: __m256i, x: __m256i) -> __m256i {
    safe!(_mm256_add_epi16(sums, _mm256_maddubs_epi16(nibbles, x)))
}

/// Sums of pairs, added two by two.
#[inline(always)]
fn widen_pairs(sums: __m256i) -> __m256i {
    safe!(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)))
}

#[inline(always)]
fn load_halves(x: &[u16; 8]) -> __m256 {
    safe!(_mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())))
}

#[inline(always)]
fn load_short_floats(x: &[u16; 8]) -> __m256 {
    let bits = safe!(_mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())));
    safe!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
}

/// One byte of each of eight rows.
#[inline(always)]
fn load_column(weights: &[u8; 4 * LANES], half: usize, byte: usize) -> __m256 {
    let shift = safe!(_mm_cvtsi32_si128(8 * byte as i32));
    let shifted = safe!(_mm256_srl_epi32(load_bytes(weights, half), shift));
    safe!(_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255))))
}

/// Two to the number that the low bits hold: see [`Simd::scale_by_power`].
#[inline(always)]
fn power(shifted: __m256) -> __m256 {
    let bias = safe!(_mm256_set1_epi32(127 - vector::ROUND.to_bits() as i32));
    let exponent = safe!(_mm256_add_epi32(_mm256_castps_si256(shifted), bias));
    safe!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
}

/// The products of integers, in which the two instruction sets differ.
trait Products: Copy {
    fn bytes(self, weights: &[u8; LANES * BLOCK], x: &[i8; BLOCK], start: Integers) -> Integers;
    fn nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Integers) -> Integers;
}

impl Products for Avx2 {
    /// A byte is its low nibble and 16 times its high one: the instruction that multiplies bytes in pairs adds them in 16 bits,
    /// which whole bytes would overflow.
    #[inline(always)]
    fn bytes(self, weights: &[u8; LANES * BLOCK], x: &[i8; BLOCK], start: Integers) -> Integers {
        let mut sums = start;
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut low = safe!(_mm256_setzero_si256());
            let mut high = low;
            for (step, weights) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
                let (bytes, x) = (load_bytes(weights, half), four_activations(x, step));
                low = add_pairs(low, low_nibbles(bytes), x);
                high = add_pairs(high, high_nibbles(bytes), x);
            }
            let high = safe!(_mm256_slli_epi32::<4>(widen_pairs(high)));
            *sums = safe!(_mm256_add_epi32(*sums, _mm256_add_epi32(widen_pairs(low), high)));
        }
        sums
    }

    #[inline(always)]
    fn nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Integers) -> Integers {
        let mut sums = start;
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut pairs = safe!(_mm256_setzero_si256());
            for (step, weights) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
                let bytes = load_bytes(weights, half);
                pairs = add_pairs(pairs, low_nibbles(bytes), four_activations(x, step));
                pairs = add_pairs(pairs, high_nibbles(bytes), four_activations(x, step + 4));
            }
            *sums = safe!(_mm256_add_epi32(*sums, widen_pairs(pairs)));
        }
        sums
    }
}

impl Products for AvxVnni {
    #[inline(always)]
    fn bytes(self, weights: &[u8; LANES * BLOCK], x: &[i8; BLOCK], start: Integers) -> Integers {
        let mut sums = start;
        for (step, weights) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
            let x = four_activations(x, step);
            for (half, sums) in sums.iter_mut().enumerate() {
                *sums = safe!(_mm256_dpbusd_avx_epi32(*sums, load_bytes(weights, half), x));
            }
        }
        sums
    }

    #[inline(always)]
    fn nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Integers) -> Integers {
        let mut sums = start;
        for (step, weights) in weights.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
            let (low, high) = (four_activations(x, step), four_activations(x, step + 4));
            for (half, sums) in sums.iter_mut().enumerate() {
                let bytes = load_bytes(weights, half);
                *sums = safe!(_mm256_dpbusd_avx_epi32(*sums, low_nibbles(bytes), low));
                *sums = safe!(_mm256_dpbusd_avx_epi32(*sums, high_nibbles(bytes), high));
            }
        }
        sums
    }
}

macro_rules! simd {
    ($token:ty) => {
        impl Simd for $token {
            type F32 = Floats;
            type I32 = Integers;

            const ROWS: usize = 3;
            const WIDE: bool = false;

            #[inline(always)]
            fn splat(self, x: f32) -> Floats {
                [safe!(_mm256_set1_ps(x)); 2]
            }

            #[inline(always)]
            fn load(self, x: &[f32; LANES]) -> Floats {
                let [low, high] = x.as_chunks::<8>().0 else { unreachable!("sixteen lanes are two halves") };
                [safe!(_mm256_loadu_ps(low.as_ptr())), safe!(_mm256_loadu_ps(high.as_ptr()))]
            }

            #[inline(always)]
            fn load_f16(self, x: &[u16; LANES]) -> Floats {
                let [low, high] = x.as_chunks::<8>().0 else { unreachable!("sixteen lanes are two halves") };
                [load_halves(low), load_halves(high)]
            }

            #[inline(always)]
            fn load_bf16(self, x: &[u16; LANES]) -> Floats {
                let [low, high] = x.as_chunks::<8>().0 else { unreachable!("sixteen lanes are two halves") };
                [load_short_floats(low), load_short_floats(high)]
            }

            #[inline(always)]
            fn load_i8(self, x: &[i8; LANES]) -> Floats {
                self.to_f32(self.load_i8_as_i32(x))
            }

            #[inline(always)]
            fn store(self, x: Floats, out: &mut [f32; LANES]) {
                let [low, high] = out.as_chunks_mut::<8>().0 else { unreachable!("sixteen lanes are two halves") };
                safe!(_mm256_storeu_ps(low.as_mut_ptr(), x[0]));
                safe!(_mm256_storeu_ps(high.as_mut_ptr(), x[1]));
            }

            #[inline(always)]
            fn store_i8(self, x: Floats, out: &mut [i8; LANES]) {
                let x = halves!(_mm256_cvtps_epi32(x));
                // Packing works inside each 128-bit half, so the middle quarters have to change places.
                let words = safe!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1])));
                let bytes = safe!(_mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)));
                safe!(_mm_storeu_si128(out.as_mut_ptr().cast(), bytes));
            }

            #[inline(always)]
            fn add(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_add_ps(a, b))
            }

            #[inline(always)]
            fn sub(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_sub_ps(a, b))
            }

            #[inline(always)]
            fn mul(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_mul_ps(a, b))
            }

            #[inline(always)]
            fn div(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_div_ps(a, b))
            }

            #[inline(always)]
            fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
                halves!(_mm256_fmadd_ps(a, b, c))
            }

            #[inline(always)]
            fn min(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_min_ps(a, b))
            }

            #[inline(always)]
            fn max(self, a: Floats, b: Floats) -> Floats {
                halves!(_mm256_max_ps(a, b))
            }

            #[inline(always)]
            fn abs(self, x: Floats) -> Floats {
                let sign = self.splat(-0.0);
                halves!(_mm256_andnot_ps(sign, x))
            }

            #[inline(always)]
            fn scale_by_power(self, x: Floats, shifted: Floats) -> Floats {
                self.mul(x, [power(shifted[0]), power(shifted[1])])
            }

            #[inline(always)]
            fn splat_i32(self, x: i32) -> Integers {
                [safe!(_mm256_set1_epi32(x)); 2]
            }

            #[inline(always)]
            fn load_i8_as_i32(self, x: &[i8; LANES]) -> Integers {
                let [low, high] = x.as_chunks::<8>().0 else { unreachable!("sixteen lanes are two halves") };
                let halves = [low.as_ptr().cast(), high.as_ptr().cast()];
                [safe!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(halves[0]))), safe!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(halves[1])))]
            }

            #[inline(always)]
            fn add_i32(self, a: Integers, b: Integers) -> Integers {
                halves!(_mm256_add_epi32(a, b))
            }

            #[inline(always)]
            fn mul_i32(self, a: Integers, b: Integers) -> Integers {
                halves!(_mm256_mullo_epi32(a, b))
            }

            #[inline(always)]
            fn to_f32(self, x: Integers) -> Floats {
                halves!(_mm256_cvtepi32_ps(x))
            }

            #[cfg(test)]
            #[inline(always)]
            fn store_i32(self, x: Integers, out: &mut [i32; LANES]) {
                for (out, x) in out.as_chunks_mut::<8>().0.iter_mut().zip(x) {
                    safe!(_mm256_storeu_si256(out.as_mut_ptr().cast(), x));
                }
            }

            #[inline(always)]
            fn dots<const R: usize, const T: usize>(
                self,
                weights: [&[u8; LANES * BLOCK]; R],
                x: [&[i8; BLOCK]; T],
                start: [Integers; T],
            ) -> [[Integers; T]; R] {
                let mut sums = [start; R];
                for tile in 0..R {
                    for token in 0..T {
                        sums[tile][token] = self.bytes(weights[tile], x[token], start[token]);
                    }
                }
                sums
            }

            #[inline(always)]
            fn dot_nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: Integers) -> Integers {
                self.nibbles(weights, x, start)
            }

            #[inline(always)]
            fn load_column(self, weights: &[u8; 4 * LANES], byte: usize) -> Floats {
                [load_column(weights, 0, byte), load_column(weights, 1, byte)]
            }

            #[inline(always)]
            fn prefetch(self, address: *const u8) {
                safe!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
            }
        }
    };
}

simd!(Avx2);
simd!(AvxVnni);
