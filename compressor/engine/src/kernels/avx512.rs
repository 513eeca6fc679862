//! Sixteen lanes in one 512-bit register.

use core::arch::x86_64::*;

use super::{BLOCK, Kernel, LANES, Simd, vector};

/// Proof that this processor has AVX-512 F, BW, DQ, VL and VNNI, and what [`super::Avx2`] proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// `Some` where the processor has it.
    #[cfg(feature = "std")]
    pub fn detect() -> Option<Self> {
        super::Avx2::detect()?;
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn compiled<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: an `Avx512` exists only where `detect` found every feature that the function is compiled with.
        unsafe { compiled(self, kernel) }
    }
}

/// SAFETY of every block in here: an `Avx512` exists only where `detect` found the instructions, and an array reference has as
/// many elements as the load reads or the store writes.
macro_rules! safe {
    ($expression:expr) => {{
        // SAFETY: see above.
        unsafe { $expression }
    }};
}

/// Sixteen lanes of four bytes, broadcast from four activations.
#[inline(always)]
fn four_activations(x: &[i8; BLOCK], step: usize) -> __m512i {
    let [a, b, c, d] = x.as_chunks::<4>().0[step];
    let [a, b, c, d] = [a as u8, b as u8, c as u8, d as u8];
    safe!(_mm512_set1_epi32(i32::from_le_bytes([a, b, c, d])))
}

#[inline(always)]
fn load_bytes(bytes: &[u8; 4 * LANES]) -> __m512i {
    safe!(_mm512_loadu_si512(bytes.as_ptr().cast()))
}

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;

    const ROWS: usize = 6;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        safe!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        safe!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> __m512 {
        safe!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
        let bits = safe!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())));
        safe!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> __m512 {
        self.to_f32(self.load_i8_as_i32(x))
    }

    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32; LANES]) {
        safe!(_mm512_storeu_ps(out.as_mut_ptr(), x));
    }

    #[inline(always)]
    fn store_i8(self, x: __m512, out: &mut [i8; LANES]) {
        let bytes = safe!(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
        safe!(_mm_storeu_si128(out.as_mut_ptr().cast(), bytes));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        safe!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        safe!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        safe!(_mm512_abs_ps(x))
    }

    #[inline(always)]
    fn scale_by_power(self, x: __m512, shifted: __m512) -> __m512 {
        let bias = safe!(_mm512_set1_epi32(127 - vector::ROUND.to_bits() as i32));
        let exponent = safe!(_mm512_add_epi32(_mm512_castps_si512(shifted), bias));
        safe!(_mm512_mul_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        safe!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn load_i8_as_i32(self, x: &[i8; LANES]) -> __m512i {
        safe!(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        safe!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: __m512i, b: __m512i) -> __m512i {
        safe!(_mm512_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        safe!(_mm512_cvtepi32_ps(x))
    }

    #[cfg(test)]
    #[inline(always)]
    fn store_i32(self, x: __m512i, out: &mut [i32; LANES]) {
        safe!(_mm512_storeu_si512(out.as_mut_ptr().cast(), x));
    }

    #[inline(always)]
    fn dots<const R: usize, const T: usize>(
        self,
        weights: [&[u8; LANES * BLOCK]; R],
        x: [&[i8; BLOCK]; T],
        start: [__m512i; T],
    ) -> [[__m512i; T]; R] {
        let mut sums = [start; R];
        for step in 0..BLOCK / 4 {
            let mut registers = [start[0]; R];
            for tile in 0..R {
                registers[tile] = load_bytes(&weights[tile].as_chunks().0[step]);
            }
            for token in 0..T {
                let x = four_activations(x[token], step);
                for tile in 0..R {
                    sums[tile][token] = safe!(_mm512_dpbusd_epi32(sums[tile][token], registers[tile], x));
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn dot_nibbles(self, weights: &[u8; LANES * BLOCK / 2], x: &[i8; BLOCK], start: __m512i) -> __m512i {
        let low_half = safe!(_mm512_set1_epi8(15));
        // Two sums side by side halve the wait for each product.
        let mut sums = [start, self.splat_i32(0)];
        for step in 0..4 {
            let pairs = load_bytes(&weights.as_chunks().0[step]);
            let low = safe!(_mm512_and_si512(pairs, low_half));
            let high = safe!(_mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low_half));
            sums[0] = safe!(_mm512_dpbusd_epi32(sums[0], low, four_activations(x, step)));
            sums[1] = safe!(_mm512_dpbusd_epi32(sums[1], high, four_activations(x, step + 4)));
        }
        self.add_i32(sums[0], sums[1])
    }

    #[inline(always)]
    fn load_column(self, weights: &[u8; 4 * LANES], byte: usize) -> __m512 {
        let shift = safe!(_mm_cvtsi32_si128(8 * byte as i32));
        let bytes = safe!(_mm512_and_si512(_mm512_srl_epi32(load_bytes(weights), shift), _mm512_set1_epi32(255)));
        self.to_f32(bytes)
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        safe!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}
