//! Loops compiled for several instruction sets, the best of which is chosen at run time.
//!
//! The loops are ordinary Rust over slices, written so that the compiler vectorizes them: sixteen independent sums instead of one, no
//! calls but inlined arithmetic. [`vectorized`] compiles each for AVX-512, for AVX2 and for the target's own minimum.

/// Defines a function whose body is compiled for AVX-512, AVX2 and the target's minimum, and which picks at run time.
macro_rules! vectorized {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $visibility fn $name $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
            #[inline(always)]
            fn body $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
                fn avx512 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                    body $(::<$generic>)? ($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                    body $(::<$generic>)? ($($arg),*)
                }
                if $crate::fused::simd::has_avx512() {
                    // SAFETY: `has_avx512` is true only where every feature that `avx512` is compiled for was detected.
                    return unsafe { avx512 $(::<$generic>)? ($($arg),*) };
                }
                if $crate::fused::simd::has_avx2() {
                    // SAFETY: `has_avx2` is true only where both features that `avx2` is compiled for were detected.
                    return unsafe { avx2 $(::<$generic>)? ($($arg),*) };
                }
            }
            body $(::<$generic>)? ($($arg),*)
        }
    };
}

pub(crate) use vectorized;

/// True where the processor has all that the AVX-512 loops are compiled for.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && has_avx2()
}

/// True where the processor has all that the AVX2 loops are compiled for.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Independent sums in a vectorized loop: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// eˣ to 2 units in the last place, in straight-line arithmetic; 0 below −87.3, bounded above 88.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, then a polynomial of degree 6 in r and n put into the exponent (Cody and Waite 1980; the
/// coefficients are those of the Cephes library's `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let zero = x < -87.3;
    // Comparisons, not `clamp`: a NaN passes through to the loss, where it is found.
    let x = if zero { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    polynomial = polynomial * r + 1.398_2e-3;
    polynomial = polynomial * r + 8.333_452e-3;
    polynomial = polynomial * r + 4.166_579_6e-2;
    polynomial = polynomial * r + 1.666_666_5e-1;
    polynomial = polynomial * r + 0.5;
    let fraction = polynomial * r * r + r + 1.0;
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23);
    if zero { 0.0 } else { fraction * power }
}

/// Σ over lanes, in a fixed order.
#[inline(always)]
pub(crate) fn total(lanes: [f32; LANES]) -> f32 {
    let mut half = [0.0; LANES / 2];
    for (i, half) in half.iter_mut().enumerate() {
        *half = lanes[i] + lanes[i + LANES / 2];
    }
    (half[0] + half[4]) + (half[1] + half[5]) + ((half[2] + half[6]) + (half[3] + half[7]))
}

/// Σ f(i) for i below `len`, in sixteen sums.
#[inline(always)]
pub(crate) fn sum_by(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    for i in whole..len {
        lanes[i - whole] += f(i);
    }
    total(lanes)
}

vectorized! {
    /// Σ aᵢ·bᵢ.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum_by(a.len(), |i| a[i] * b[i])
    }
}

vectorized! {
    /// The largest value; NaN is passed over.
    pub(crate) fn largest(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |best, value| best.max(*value))
    }
}

vectorized! {
    /// Σ exp((xᵢ − shift) · factor).
    pub(crate) fn sum_of_exp(x: &[f32], shift: f32, factor: f32) -> f32 {
        sum_by(x.len(), |i| exp((x[i] - shift) * factor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "exp({x}) = {found}, expected {expected}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e30) > 1e38);
    }

    #[test]
    fn sums_and_maxima_take_every_element_at_every_length() {
        for len in 0..70 {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let ones = vec![1.0; len];
            assert_eq!(dot(&x, &ones), (len * len.saturating_sub(1) / 2) as f32);
            assert_eq!(largest(&x), x.last().copied().unwrap_or(f32::NEG_INFINITY));
            assert_eq!(sum_of_exp(&ones, 1.0, 3.0), len as f32);
        }
    }
}
