//! Round to nearest: a grid from the range of a group, and the integers that lie nearest on it.
//!
//! The order of every operation is the one compressed-tensors uses, so that the integers are the same: clamp before rounding, half
//! to even, divide by the f32 scale (multiplying by its inverse moves integers that lie half way).

use compressor_format::{Dtype, Scheme};

/// Where the integers of one group lie on the real line: `real = scale · (q − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Grid {
    /// Distance of neighbours; positive.
    pub(super) scale: f32,
    /// The integer that stands for zero; 0 where the scheme is symmetric.
    pub(super) zero_point: i8,
}

/// What takes the place of a scale of zero: pruning makes groups of zeros, and 0/0 would write NaN. A value of every float type.
pub(super) const SMALLEST_SCALE: f32 = f32::EPSILON;

/// The grid that covers a group from its smallest to its largest value.
///
/// - symmetric: `scale = max |w| / ((q_max − q_min) / 2)`
/// - with zero points: `scale = (high − low) / (q_max − q_min)`, `zero_point = round(q_min − low / scale)`; zero lies inside `low..high`
///
/// The scale is rounded to `scale_dtype`, a float type, and infinite where the range overflows it: see [`is_finite`].
pub(super) fn covering(group: &[f32], scheme: Scheme, scale_dtype: Dtype) -> Grid {
    let (low, high) = range(group);
    let (smallest, largest) = bounds(scheme);
    let (span, steps) = match scheme.symmetric {
        true => ((-low).max(high), (largest - smallest) / 2.0),
        false => (high - low, largest - smallest),
    };
    let scale = stored(span / steps, scale_dtype);
    if scheme.symmetric || span == 0.0 {
        return Grid { scale, zero_point: 0 };
    }
    Grid { scale, zero_point: round(clamp(smallest - low / scale, smallest, largest)) as i8 }
}

/// A scale as it is stored in a float type: positive.
pub(super) fn stored(scale: f32, scale_dtype: Dtype) -> f32 {
    let nearest = scale_dtype.nearest(scale).expect("scales have a float type");
    if nearest == 0.0 { SMALLEST_SCALE } else { nearest }
}

/// The nearest integers: `q = round(clamp(w / scale + zero_point))`.
pub(super) fn round_to(grid: Grid, scheme: Scheme, group: &[f32], integers: &mut [i8]) {
    let (smallest, largest) = bounds(scheme);
    let zero_point = f32::from(grid.zero_point);
    for (integer, weight) in integers.iter_mut().zip(group) {
        *integer = round(clamp(weight / grid.scale + zero_point, smallest, largest)) as i8;
    }
}

/// True where the scale and everything the integers can stand for is finite.
pub(super) fn is_finite(grid: Grid, scheme: Scheme) -> bool {
    let (smallest, largest) = bounds(scheme);
    let zero_point = f32::from(grid.zero_point);
    grid.scale.is_finite()
        && ((smallest - zero_point) * grid.scale).is_finite()
        && ((largest - zero_point) * grid.scale).is_finite()
}

/// Smallest and largest value, zero among them.
pub(super) fn range(group: &[f32]) -> (f32, f32) {
    // Lanes of their own let the compiler use vectors; which of two equal zeros wins changes nothing.
    let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = group.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
        }
    }
    let all = |lanes: [f32; LANES], pick: fn(f32, f32) -> f32| lanes.into_iter().chain(rest.iter().copied()).fold(0.0, pick);
    (all(low, f32::min), all(high, f32::max))
}

/// Floats handled at a time.
pub(super) const LANES: usize = 8;

/// Smallest and largest integer, as floats.
pub(super) fn bounds(scheme: Scheme) -> (f32, f32) {
    let (smallest, largest) = scheme.range();
    (smallest as f32, largest as f32)
}

/// `f32::clamp` without its assertion, which keeps the loop from becoming vector instructions.
#[inline]
pub(super) fn clamp(value: f32, low: f32, high: f32) -> f32 {
    let value = if value < low { low } else { value };
    if value > high { high } else { value }
}

/// Rounds half to even; `|value| ≤ 2²²`.
///
/// Adding 1.5 · 2²³ leaves no bit for a fraction, so the addition itself rounds. `round_ties_even` is a call into the C library on
/// processors before SSE4.1, which the default build has to run on.
#[inline]
pub(super) fn round(value: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (value + NO_FRACTION) - NO_FRACTION
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYMMETRIC: Scheme = Scheme { bits: 4, group_size: Some(4), symmetric: true };
    const WITH_ZERO_POINTS: Scheme = Scheme { bits: 4, group_size: Some(4), symmetric: false };

    fn integers(grid: Grid, scheme: Scheme, group: &[f32]) -> Vec<i8> {
        let mut integers = vec![0; group.len()];
        round_to(grid, scheme, group, &mut integers);
        integers
    }

    #[test]
    fn int4_symmetric_by_hand() {
        // The largest magnitude 7.5 gives scale 1: 7.5 is clamped to 7, −7.5 goes to the even −8, 2.5 to the even 2.
        let group = [7.5, -7.5, 2.5, -0.4];
        let grid = covering(&group, SYMMETRIC, Dtype::F32);
        assert_eq!(grid, Grid { scale: 1.0, zero_point: 0 });
        assert_eq!(integers(grid, SYMMETRIC, &group), [7, -8, 2, 0]);
    }

    #[test]
    fn int4_with_zero_points_by_hand() {
        // From −3 to 4.5: scale 7.5 / 15 = 0.5, zero point −8 + 6 = −2.
        let group = [-3.0, 4.5, 0.0, 1.25];
        let grid = covering(&group, WITH_ZERO_POINTS, Dtype::F32);
        assert_eq!(grid, Grid { scale: 0.5, zero_point: -2 });
        assert_eq!(integers(grid, WITH_ZERO_POINTS, &group), [-8, 7, -2, 0]);
    }

    #[test]
    fn zero_lies_on_the_grid_of_a_group_that_does_not_reach_it() {
        let grid = covering(&[3.0, 2.0, 1.0, 1.5], WITH_ZERO_POINTS, Dtype::F32);
        assert_eq!(grid, Grid { scale: 0.2, zero_point: -8 });
    }

    #[test]
    fn int8_by_hand() {
        let scheme = Scheme { bits: 8, group_size: None, symmetric: true };
        let group = [127.5, -127.5, 63.0, 0.5];
        let grid = covering(&group, scheme, Dtype::F32);
        assert_eq!(grid, Grid { scale: 1.0, zero_point: 0 });
        assert_eq!(integers(grid, scheme, &group), [127, -128, 63, 0]);
    }

    #[test]
    fn an_all_zero_group_keeps_its_zeros() {
        for scheme in [SYMMETRIC, WITH_ZERO_POINTS] {
            let grid = covering(&[0.0, -0.0, 0.0, 0.0], scheme, Dtype::F32);
            assert_eq!(grid, Grid { scale: 2f32.powi(-23), zero_point: 0 });
            assert_eq!(integers(grid, scheme, &[0.0, -0.0, 0.0, 0.0]), [0; 4]);
        }
    }

    #[test]
    fn a_range_that_overflows_is_not_finite() {
        assert!(!is_finite(covering(&[f32::MAX, f32::MIN], WITH_ZERO_POINTS, Dtype::F32), WITH_ZERO_POINTS));
        // −8 steps of MAX / 7.5 lie past MAX.
        assert!(!is_finite(covering(&[f32::MAX], SYMMETRIC, Dtype::F32), SYMMETRIC));
        assert!(is_finite(covering(&[f32::MAX / 2.0], SYMMETRIC, Dtype::F32), SYMMETRIC));
    }

    #[test]
    fn the_rounding_is_the_one_of_ieee_754() {
        for value in (-2600..=2600).map(|twentieth| twentieth as f32 / 20.0) {
            assert_eq!(round(value), value.round_ties_even(), "{value}");
        }
    }

    fn any_scheme() -> impl Strategy<Value = Scheme> {
        (prop::sample::select(vec![4u8, 8]), any::<bool>()).prop_map(|(bits, symmetric)| Scheme {
            bits,
            group_size: None,
            symmetric,
        })
    }

    /// Half a step, and half a step more where the clamp cuts the end of a symmetric range or the zero point was rounded; the
    /// divisions, the product and the sum with the zero point each round to 24 bits.
    const WORST_STEPS: f64 = 1.0 + 512.0 * f32::EPSILON as f64;
    const HALF_STEP: f64 = 0.5 + 512.0 * f32::EPSILON as f64;

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_step_inside_the_range(
            group in prop::collection::vec(prop_oneof![-1e3f32..1e3, Just(0.0), -1e-3f32..1e-3], 1..70),
            scheme in any_scheme(),
        ) {
            let grid = covering(&group, scheme, Dtype::F32);
            let (smallest, largest) = scheme.range();
            for (weight, q) in group.iter().zip(integers(grid, scheme, &group)) {
                let q = i32::from(q);
                prop_assert!((smallest..=largest).contains(&q));
                let steps = (f64::from(*weight) / f64::from(grid.scale) - f64::from(q - i32::from(grid.zero_point))).abs();
                let worst = if q == smallest || q == largest { WORST_STEPS } else { HALF_STEP };
                prop_assert!(steps <= worst, "{weight} is {steps} steps from {q} of {grid:?}");
            }
        }

        #[test]
        fn no_value_makes_a_scale_of_zero_or_nan(
            group in prop::collection::vec(prop_oneof![
                any::<f32>().prop_filter("finite", |value| value.is_finite()),
                Just(f32::MAX), Just(f32::MIN), Just(f32::from_bits(1)), Just(-f32::MIN_POSITIVE), Just(0.0),
            ], 1..40),
            scheme in any_scheme(),
        ) {
            let grid = covering(&group, scheme, Dtype::F32);
            prop_assert!(grid.scale > 0.0, "{grid:?}");
            if is_finite(grid, scheme) {
                let zero_point = i32::from(grid.zero_point);
                for q in integers(grid, scheme, &group) {
                    prop_assert!(((i32::from(q) - zero_point) as f32 * grid.scale).is_finite());
                }
            }
        }
    }
}
