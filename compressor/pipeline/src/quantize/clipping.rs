//! A smaller grid than the one that covers a group often errs less: a few large values are clipped, all others lie closer.
//!
//! Searched per group by the sum of squared errors, as in OMSE (Choukroun et al. 2019, arXiv:1902.06822) and HQQ's and llama.cpp's
//! searches: a coarse walk over the scales, then the scale that is best for the integers found (least squares), in turns.

use compressor_format::Scheme;

use super::round_to_nearest::{Grid, LANES, bounds, clamp, covering, is_finite, range, round};

/// Scales tried, as parts of the covering one. Above 1 because a symmetric grid reaches only to 7 steps of the 7.5 it is made of.
const WIDEST: f32 = 1.08;
/// Gaussian groups of 32 are best near 0.85 at 4 bits, groups with an outlier far below.
const NARROWEST: f32 = 0.40;
/// Distance of the scales tried; the turns of least squares end between two.
const STEP: f32 = 0.02;
/// Zero points tried on either side of the covering one.
const ZERO_POINTS: i32 = 2;
/// Turns of least squares; most groups stand still after two.
const TURNS: usize = 4;

/// The grid with the least sum of squared errors that was found; never worse than [`covering`].
///
/// `steps` is scratch space.
pub(super) fn least_squared_error(group: &[f32], scheme: Scheme, steps: &mut Vec<f32>) -> Grid {
    let covering = covering(group, scheme);
    if range(group) == (0.0, 0.0) || !is_finite(covering, scheme) {
        return covering;
    }
    // In steps of the covering grid nothing overflows or vanishes, whatever the size of the weights. Zeros that fill the last lanes
    // lie on every grid: they add no error.
    steps.clear();
    steps.extend(group.iter().map(|weight| weight / covering.scale));
    steps.resize(group.len().next_multiple_of(LANES), 0.0);

    let (smallest, largest) = scheme.range();
    let centre = i32::from(covering.zero_point);
    let zero_points = match scheme.symmetric {
        true => centre..=centre,
        false => (centre - ZERO_POINTS).max(smallest)..=(centre + ZERO_POINTS).min(largest),
    };
    let ratios = ((WIDEST - NARROWEST) / STEP).round() as usize;
    let mut best = Candidate { ratio: 1.0, zero_point: centre as f32, error: f32::INFINITY };
    best.error = squared_error(steps, best.ratio, best.zero_point, scheme).error;
    for zero_point in zero_points {
        let zero_point = zero_point as f32;
        let start = Candidate { ratio: 1.0, zero_point, error: f32::INFINITY };
        let tried = (0..=ratios).map(|index| WIDEST - index as f32 * STEP);
        let nearest = tried.fold(start, |nearest, ratio| {
            let error = squared_error(steps, ratio, zero_point, scheme).error;
            if error < nearest.error { Candidate { ratio, zero_point, error } } else { nearest }
        });
        let refined = refine(steps, nearest, scheme);
        if refined.error < best.error {
            best = refined;
        }
    }
    let clipped = Grid { scale: covering.scale * best.ratio, zero_point: best.zero_point as i8 };
    // A scale near the smallest floats has few bits left to be refined with.
    let better = exact_error(group, clipped, scheme) < exact_error(group, covering, scheme);
    if better && is_finite(clipped, scheme) { clipped } else { covering }
}

/// A grid in steps of the covering one.
#[derive(Clone, Copy)]
struct Candidate {
    ratio: f32,
    zero_point: f32,
    error: f32,
}

/// Alternates between the integers that are best for the scale and the scale that is best for the integers.
fn refine(steps: &[f32], mut best: Candidate, scheme: Scheme) -> Candidate {
    for _ in 0..TURNS {
        let Sums { product, square, .. } = squared_error(steps, best.ratio, best.zero_point, scheme);
        let ratio = product / square;
        if !(ratio.is_finite() && ratio > 0.0) {
            break;
        }
        let error = squared_error(steps, ratio, best.zero_point, scheme).error;
        if error >= best.error {
            break;
        }
        best = Candidate { ratio, error, ..best };
    }
    best
}

/// What one pass over a group sums up; `n` is an integer less the zero point.
struct Sums {
    /// `Σ (v − ratio · n)²`
    error: f32,
    /// `Σ v · n`
    product: f32,
    /// `Σ n²`
    square: f32,
}

/// Lane by lane, so that the compiler can use vectors and the order of the sums is fixed.
#[inline]
fn squared_error(steps: &[f32], ratio: f32, zero_point: f32, scheme: Scheme) -> Sums {
    let (smallest, largest) = bounds(scheme);
    let inverse = 1.0 / ratio;
    let (low, high) = (smallest - zero_point, largest - zero_point);
    let (mut error, mut product, mut square) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for chunk in steps.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let value = chunk[lane];
            let n = round(clamp(value * inverse, low, high));
            let off = value - n * ratio;
            error[lane] += off * off;
            product[lane] += value * n;
            square[lane] += n * n;
        }
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().sum();
    Sums { error: sum(error), product: sum(product), square: sum(square) }
}

/// `Σ (w − ŵ)²` of a group as it will be stored and read back.
fn exact_error(group: &[f32], grid: Grid, scheme: Scheme) -> f64 {
    let (smallest, largest) = bounds(scheme);
    let zero_point = f32::from(grid.zero_point);
    let error = |weight: &f32| {
        let n = round(clamp(weight / grid.scale + zero_point, smallest, largest)) - zero_point;
        let off = f64::from(*weight) - f64::from(n * grid.scale);
        off * off
    };
    group.iter().map(error).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INT4: Scheme = Scheme { bits: 4, group_size: None, symmetric: true };
    const INT4_WITH_ZERO_POINTS: Scheme = Scheme { symmetric: false, ..INT4 };

    fn searched(group: &[f32], scheme: Scheme) -> Grid {
        least_squared_error(group, scheme, &mut Vec::new())
    }

    #[test]
    fn values_that_lie_on_a_grid_are_found_without_error() {
        // Round to nearest takes 7 / 7.5 for a step; a step of 1 has no error.
        let group = [7.0, -3.0, 1.0, 5.0, -6.0, 2.0, 0.0, 4.0];
        let grid = searched(&group, INT4);
        assert!(exact_error(&group, grid, INT4) < 1e-10, "{grid:?}");
        assert!((grid.scale - 1.0).abs() < 1e-5);
    }

    #[test]
    fn an_outlier_is_clipped() {
        // A step of 1.5 / 7.5 for all of 1024 values costs 1024 · 0.2² / 12; clipping one value to 1 costs 0.25 once.
        let mut group: Vec<f32> = (0..1024).map(|index| (index as f32 * 0.7).sin()).collect();
        group[5] = 1.5;
        let grid = searched(&group, INT4);
        let covering = covering(&group, INT4);
        assert!(grid.scale < 0.8 * covering.scale, "{grid:?} {covering:?}");
        assert!(exact_error(&group, grid, INT4) < 0.8 * exact_error(&group, covering, INT4));
    }

    #[test]
    fn zeros_stay_zeros() {
        for scheme in [INT4, INT4_WITH_ZERO_POINTS] {
            assert_eq!(searched(&[0.0; 32], scheme), covering(&[0.0; 32], scheme));
        }
    }

    /// Sum of squared errors of the best of 4000 scales, and of every zero point.
    fn best_of_many(group: &[f32], scheme: Scheme) -> f64 {
        let covering = covering(group, scheme);
        let (smallest, largest) = scheme.range();
        let zero_points = if scheme.symmetric { 0..=0 } else { smallest..=largest };
        let grids = zero_points.flat_map(|zero_point| {
            (1..=4000).map(move |part| Grid { scale: covering.scale * part as f32 / 3200.0, zero_point: zero_point as i8 })
        });
        grids.map(|grid| exact_error(group, grid, scheme)).fold(f64::INFINITY, f64::min)
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
                found += exact_error(&group, searched(&group, scheme), scheme);
                least += best_of_many(&group, scheme);
                covered += exact_error(&group, covering(&group, scheme), scheme);
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
            let plain = covering(&group, scheme);
            if is_finite(plain, scheme) {
                prop_assert!(is_finite(grid, scheme));
                prop_assert!(exact_error(&group, grid, scheme) <= exact_error(&group, plain, scheme));
            }
        }
    }
}
