//! AWQ (Lin et al. 2023, arXiv:2306.00978): columns whose inputs are large are multiplied by more, so that rounding takes less from them.
//!
//! - The factors are powers of the inputs' mean magnitudes, `s = mean |x|^α` (equation 5), brought to a middle of 1: divided by
//!   `√(max s · min s)`. The paper does not say so; the authors' program (llm-awq) and AutoAWQ do, and so does this.
//! - `α` is the best of 20 on a grid, as in the paper. As in those programs they are 0, 0.05 … 0.95: with 0 nothing is scaled, so the
//!   search is never worse than no scaling by its own measure.
//! - The measure is the paper's (equation 4): the mean square of what quantized weights add to the output of the projections themselves,
//!   `‖Q(W · diag(s)) · diag(s)⁻¹ · X − W · X‖²`. Those programs compare the output of the module around them, attention or the MLP,
//!   for the projections that a norm feeds. Of projections that share an input, each error is taken relative to its own output, so that
//!   a large one does not silence the others; those programs need no such choice, as their modules have one output.
//! - `Q` is what a tensor really gets: its scheme and its clipping search. GPTQ alone is stood in for by rounding to nearest: twenty
//!   runs of it would cost twenty times its hours.
//! - Weights have no part in the factors, as in the paper; AutoAWQ also divides by a power of their mean magnitudes (`duo_scaling`).

/// Exponents tried.
const EXPONENTS: usize = 20;

/// Least power of a magnitude, as in the authors' program: an input that is always zero has no say in the others' factors.
const LEAST: f64 = 1e-4;

/// What was found.
pub(super) struct Found {
    /// `α`.
    pub(super) exponent: f64,
    /// One for each input channel.
    pub(super) factors: Vec<f32>,
    /// By the measure of the search, with these factors.
    pub(super) error: f64,
    /// The same without scaling.
    pub(super) error_unscaled: f64,
}

/// The exponent with the least error, the smallest of those that share it.
///
/// - `magnitudes`: mean `|x|` of each input channel
/// - `settle`: what factors become when what is divided by them is stored
/// - `error`: the measure for some factors
pub(super) fn search(
    magnitudes: &[f64],
    settle: impl Fn(Vec<f32>) -> Vec<f32>,
    error: impl Fn(&[f32]) -> Result<f64, crate::quantize::Error>,
) -> Result<Found, crate::quantize::Error> {
    let factors = vec![1.0; magnitudes.len()];
    let error_unscaled = error(&factors)?;
    let mut best = Found { exponent: 0.0, factors, error: error_unscaled, error_unscaled };
    for exponent in (1..EXPONENTS).map(|step| step as f64 / EXPONENTS as f64) {
        let factors = settle(powers(magnitudes, exponent));
        let error = error(&factors)?;
        if error < best.error {
            best = Found { exponent, factors, error, error_unscaled };
        }
    }
    Ok(best)
}

/// `magnitude^exponent`, the product of the largest and the smallest brought to 1.
fn powers(magnitudes: &[f64], exponent: f64) -> Vec<f32> {
    let powers: Vec<f64> = magnitudes.iter().map(|magnitude| magnitude.powf(exponent).max(LEAST)).collect();
    let (least, largest) = powers.iter().fold((f64::INFINITY, 0.0f64), |(least, most), one| (least.min(*one), most.max(*one)));
    let middle = (least * largest).sqrt();
    powers.iter().map(|power| (power / middle) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use compressor_format::{Dtype, Scheme};
    use proptest::prelude::*;

    use super::*;
    use crate::quantize::round_to_nearest::{covering, round_to};

    const INT4: Scheme = Scheme { bits: 4, group_size: None, symmetric: true };

    /// `Σ m (ŵ − w)²` of one row: independent inputs with mean squares `m`.
    fn error(weights: &[f32], mean_squares: &[f64], factors: &[f32]) -> f64 {
        let scaled: Vec<f32> = weights.iter().zip(factors).map(|(weight, factor)| weight * factor).collect();
        let grid = covering(&scaled, INT4, Dtype::F32);
        let mut integers = vec![0; weights.len()];
        round_to(grid, INT4, &scaled, &mut integers);
        let stands_for = integers.iter().zip(factors).map(|(q, factor)| f32::from(*q) * grid.scale / factor);
        let errors = stands_for.zip(weights).map(|(stands_for, weight)| f64::from(stands_for - weight));
        errors.zip(mean_squares).map(|(error, mean_square)| mean_square * error * error).sum()
    }

    #[test]
    fn two_columns_by_hand() {
        // Inputs of size 4 and 1. In steps of 1/7.5 the weights are 1.5 and 7.5: both err by half a step, 16 · (1/15)² + (1/15)².
        let (weights, mean_squares) = ([0.2, 1.0], [16.0, 1.0]);
        let found = search(&[4.0, 1.0], |factors| factors, |factors| Ok(error(&weights, &mean_squares, factors))).unwrap();
        assert!((found.error_unscaled - 17.0 / 225.0).abs() < 1e-6, "{}", found.error_unscaled);
        // √4 and √1, divided by √2: the first weight becomes 0.2 · √2 and the second 1 / √2, in steps of 1 / (7.5 √2) just 3 and 7.5.
        assert_eq!((found.exponent, found.factors), (0.5, vec![2f32.sqrt(), 0.5f32.sqrt()]));
        assert!((found.error - 1.0 / 225.0).abs() < 1e-6, "{}", found.error);
    }

    #[test]
    fn of_exponents_that_err_as_much_the_smallest_is_taken() {
        let found = search(&[9.0, 1.0], |factors| factors, |_| Ok(0.5)).unwrap();
        assert_eq!((found.exponent, found.factors), (0.0, vec![1.0, 1.0]));
        let found = search(&[9.0, 1.0], |factors| factors, |factors| Ok(if factors[0] > 1.2 { 0.25 } else { 0.5 })).unwrap();
        // 3^0.2 is the first above 1.2.
        assert_eq!(found.exponent, 0.2);
    }

    #[test]
    fn an_input_that_is_always_zero_leaves_the_factors_finite() {
        assert_eq!(powers(&[0.0, 1.0], 1.0), [1e-2, 1e2]);
        assert_eq!(powers(&[0.0, 0.0], 0.5), [1.0, 1.0]);
    }

    proptest! {
        #[test]
        fn scaling_never_errs_more_than_no_scaling(
            columns in prop::collection::vec((-2.0f32..2.0, prop_oneof![0.0f64..9.0, Just(0.0), Just(1e6)]), 1..20),
        ) {
            let (weights, magnitudes): (Vec<f32>, Vec<f64>) = columns.into_iter().unzip();
            let mean_squares: Vec<f64> = magnitudes.iter().map(|magnitude| magnitude * magnitude).collect();
            let found = search(&magnitudes, |factors| factors, |factors| Ok(error(&weights, &mean_squares, factors))).unwrap();
            prop_assert!(found.error <= found.error_unscaled);
            prop_assert_eq!(found.error, error(&weights, &mean_squares, &found.factors));
            prop_assert_eq!(found.error_unscaled, error(&weights, &mean_squares, &vec![1.0; weights.len()]));
        }
    }
}
