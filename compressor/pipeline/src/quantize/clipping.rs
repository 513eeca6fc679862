//! A smaller grid than the one that covers a group often errs less: a few large values are clipped, all others lie closer.
//!
//! Searched per group by the sum of squared errors (OMSE, Choukroun et al. 2019, arXiv:1902.06822), each weighted by the importance `m`
//! of its input where that is known. For integers `n` the best scale is known, `Σ m·v·n / Σ m·n²` (least squares), and so is what it
//! leaves of `Σ m·v²`: `Σ m·v² − (Σ m·v·n)² / Σ m·n²`. So only the integers are searched: those of a coarse walk over the scales, then
//! those of the best scale found, until they stand still.

use compressor_format::{Dtype, Scheme};

use super::round_to_nearest::{Grid, LANES, bounds, clamp, covering, is_finite, range, round, stored};

/// Scales tried, as parts of the covering one. Above 1 because a symmetric grid reaches only to 7 steps of the 7.5 it is made of.
const WIDEST: f32 = 1.08;
/// Gaussian groups of 32 are best near 0.85 at 4 bits, groups with an outlier far below.
const NARROWEST: f32 = 0.40;
/// Distance of the scales tried.
const STEP: f32 = 0.04;
/// Zero points tried on either side of the covering one.
const ZERO_POINTS: i32 = 1;
/// Turns from integers to their best scale and back; most groups stand still after two.
const TURNS: usize = 4;

/// Space to work in, kept from group to group.
#[derive(Default)]
pub(super) struct Scratch {
    steps: Vec<f32>,
    integers: Vec<f32>,
    importance: Vec<f32>,
}

/// The grid with the least sum of squared errors that was found, weighted by `importance` where it is given; never worse than
/// [`covering`].
///
/// `scratch` is space to work in.
pub(super) fn least_squared_error(
    group: &[f32],
    importance: Option<&[f32]>,
    scheme: Scheme,
    scale_dtype: Dtype,
    scratch: &mut Scratch,
) -> Grid {
    let covering = covering(group, scheme, scale_dtype);
    if range(group) == (0.0, 0.0) || !is_finite(covering, scheme) {
        return covering;
    }
    // In steps of the covering grid nothing overflows or vanishes, whatever the size of the weights. Zeros that fill the last lanes
    // lie on every grid: they add nothing to any sum.
    let Scratch { steps, integers, importance: weights } = scratch;
    let padded = group.len().next_multiple_of(LANES);
    steps.clear();
    steps.extend(group.iter().map(|weight| weight / covering.scale));
    steps.resize(padded, 0.0);
    integers.resize(padded, 0.0);
    weights.clear();
    match importance {
        // Of the mean, so that no sum overflows or vanishes; where all inputs are zero, every grid will do.
        Some(importance) => {
            let mean = importance.iter().sum::<f32>() / importance.len() as f32;
            weights.extend(importance.iter().map(|one| if mean > 0.0 { one / mean } else { 1.0 }));
        }
        None => weights.resize(group.len(), 1.0),
    }
    weights.resize(padded, 0.0);

    let (smallest, largest) = scheme.range();
    let centre = i32::from(covering.zero_point);
    let zero_points = match scheme.symmetric {
        true => centre..=centre,
        false => (centre - ZERO_POINTS).max(smallest)..=(centre + ZERO_POINTS).min(largest),
    };
    let ratios = ((WIDEST - NARROWEST) / STEP).round() as usize;
    let (mut best, mut best_point) = (Fit { ratio: 1.0, explained: 0.0 }, covering.zero_point);
    for zero_point in zero_points {
        let bounds = (smallest as f32 - zero_point as f32, largest as f32 - zero_point as f32);
        let tried = (0..=ratios).map(|index| Fit::of(steps, weights, integers, WIDEST - index as f32 * STEP, bounds));
        let mut fit = tried.fold(best, |best, fit| if fit.explained > best.explained { fit } else { best });
        if fit.explained > best.explained {
            for _ in 0..TURNS {
                let next = Fit::of(steps, weights, integers, fit.ratio, bounds);
                if next.explained <= fit.explained {
                    break;
                }
                fit = next;
            }
            (best, best_point) = (fit, zero_point as i8);
        }
    }
    let clipped = Grid { scale: stored(covering.scale * best.ratio, scale_dtype), zero_point: best_point };
    // A scale near the smallest floats has few bits left to be fitted with.
    let error = |grid| exact_error(group, &weights[..group.len()], grid, scheme);
    let is_better = is_finite(clipped, scheme) && error(clipped) < error(covering);
    if is_better { clipped } else { covering }
}

/// The best scale for the integers that another scale led to.
#[derive(Clone, Copy)]
struct Fit {
    /// `Σ v·n / Σ n²`, in steps of the covering grid.
    ratio: f32,
    /// `(Σ v·n)² / Σ n²`: the part of `Σ v²` that is no error.
    explained: f32,
}

impl Fit {
    /// Rounds `v / ratio` to integers inside `bounds`, less the zero point, and fits a scale to them.
    fn of(steps: &[f32], importance: &[f32], integers: &mut [f32], ratio: f32, (low, high): (f32, f32)) -> Self {
        let inverse = 1.0 / ratio;
        // Two loops, each of a kind that the compiler turns into vector instructions: one without sums, one without comparisons.
        for (n, value) in integers.iter_mut().zip(steps) {
            *n = round(clamp(value * inverse, low, high));
        }
        let (mut product, mut square) = ([0.0f32; LANES], [0.0f32; LANES]);
        let weighted = steps.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0);
        for ((v, m), n) in weighted.zip(integers.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let weighted = m[lane] * n[lane];
                product[lane] += v[lane] * weighted;
                square[lane] += n[lane] * weighted;
            }
        }
        let (product, square) = (product.iter().sum::<f32>(), square.iter().sum::<f32>());
        // No integer but zero, or none that points the right way: nothing is explained.
        if product > 0.0 {
            Self { ratio: product / square, explained: product * product / square }
        } else {
            Self { ratio, explained: 0.0 }
        }
    }
}

/// `Σ m (w − ŵ)²` of a group as it will be stored and read back.
fn exact_error(group: &[f32], importance: &[f32], grid: Grid, scheme: Scheme) -> f64 {
    let (smallest, largest) = bounds(scheme);
    let zero_point = f32::from(grid.zero_point);
    let error = |(weight, importance): (&f32, &f32)| {
        let n = round(clamp(weight / grid.scale + zero_point, smallest, largest)) - zero_point;
        let off = f64::from(*weight) - f64::from(n * grid.scale);
        f64::from(*importance) * off * off
    };
    group.iter().zip(importance).map(error).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INT4: Scheme = Scheme { bits: 4, group_size: None, symmetric: true };
    const INT4_WITH_ZERO_POINTS: Scheme = Scheme { symmetric: false, ..INT4 };

    fn searched(group: &[f32], scheme: Scheme) -> Grid {
        least_squared_error(group, None, scheme, Dtype::F32, &mut Scratch::default())
    }

    #[test]
    fn values_that_lie_on_a_grid_are_found_without_error() {
        // Round to nearest takes 7 / 7.5 for a step; a step of 1 has no error.
        let group = [7.0, -3.0, 1.0, 5.0, -6.0, 2.0, 0.0, 4.0];
        let grid = searched(&group, INT4);
        assert!(error(&group, grid, INT4) < 1e-10, "{grid:?}");
        assert!((grid.scale - 1.0).abs() < 1e-5);
    }

    #[test]
    fn an_outlier_is_clipped() {
        // A step of 1.5 / 7.5 for all of 1024 values costs 1024 · 0.2² / 12; clipping one value to 1 costs 0.25 once.
        let mut group: Vec<f32> = (0..1024).map(|index| (index as f32 * 0.7).sin()).collect();
        group[5] = 1.5;
        let grid = searched(&group, INT4);
        let covering = covering(&group, INT4, Dtype::F32);
        assert!(grid.scale < 0.8 * covering.scale, "{grid:?} {covering:?}");
        assert!(error(&group, grid, INT4) < 0.8 * error(&group, covering, INT4));
    }

    #[test]
    fn zeros_stay_zeros() {
        for scheme in [INT4, INT4_WITH_ZERO_POINTS] {
            assert_eq!(searched(&[0.0; 32], scheme), covering(&[0.0; 32], scheme, Dtype::F32));
        }
    }

    fn error(group: &[f32], grid: Grid, scheme: Scheme) -> f64 {
        exact_error(group, &vec![1.0; group.len()], grid, scheme)
    }

    /// Sum of squared errors of the best of 4000 scales, and of every zero point.
    fn best_of_many(group: &[f32], scheme: Scheme) -> f64 {
        let covering = covering(group, scheme, Dtype::F32);
        let (smallest, largest) = scheme.range();
        let zero_points = if scheme.symmetric { 0..=0 } else { smallest..=largest };
        let grids = zero_points.flat_map(|zero_point| {
            (1..=4000).map(move |part| Grid { scale: covering.scale * part as f32 / 3200.0, zero_point: zero_point as i8 })
        });
        grids.map(|grid| error(group, grid, scheme)).fold(f64::INFINITY, f64::min)
    }

    /// A deterministic bell-shaped sequence: sums of eight draws.
    fn bell(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..len).map(|_| (0..8).map(|_| draw()).sum()).collect()
    }

    /// The search may miss the best grid of a single group, but not by much over many.
    const MEAN_EXCESS: f64 = 0.03;

    #[test]
    fn the_search_comes_close_to_an_exhaustive_one() {
        for scheme in [INT4, INT4_WITH_ZERO_POINTS] {
            let (mut found, mut least, mut covered) = (0.0, 0.0, 0.0);
            for seed in 1..=40 {
                let group = bell(seed, 32);
                found += error(&group, searched(&group, scheme), scheme);
                least += best_of_many(&group, scheme);
                covered += error(&group, covering(&group, scheme, Dtype::F32), scheme);
            }
            println!("{scheme}: covering {covered:.4}, found {found:.4}, least {least:.4}");
            assert!(found <= (1.0 + MEAN_EXCESS) * least, "{scheme}: found {found}, least {least}");
            assert!(found < 0.95 * covered, "{scheme}: found {found}, covering {covered}");
        }
    }

    proptest! {
        #[test]
        fn the_search_never_errs_more_than_no_search(
            group in prop::collection::vec(prop_oneof![
                any::<f32>().prop_filter("finite", |value| value.is_finite()), -1.0f32..1.0, Just(0.0), Just(f32::from_bits(3)),
            ], 1..70),
            bits in prop::sample::select(vec![4u8, 8]),
            symmetric in any::<bool>(),
        ) {
            let scheme = Scheme { bits, group_size: None, symmetric };
            let grid = searched(&group, scheme);
            prop_assert!(grid.scale > 0.0);
            let plain = covering(&group, scheme, Dtype::F32);
            if is_finite(plain, scheme) {
                prop_assert!(is_finite(grid, scheme));
                prop_assert!(error(&group, grid, scheme) <= error(&group, plain, scheme));
            }
        }
    }
}
