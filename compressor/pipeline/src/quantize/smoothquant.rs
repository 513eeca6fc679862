//! SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): inputs are divided and columns multiplied so that both have ranges that eight bits
//! hold well.
//!
//! `s_j = max |x_j|^α / max |w_j|^(1−α)` (equation 4), with `α` the migration strength: 0 levels the weights and leaves all to the inputs, 1 the
//! other way round. What a norm feeds is scaled: query, key and value together, gate and up together, `max |w_j|` being that of them all.
//! As in the paper and in the authors' program, output and down projections are left as they are.

/// Least magnitude of a weight, and least factor, as in the authors' program: pruned channels have no weights at all.
const LEAST: f64 = 1e-5;

/// One factor for each input channel, of the largest magnitudes of inputs and weights.
pub(super) fn factors(inputs: &[f64], weights: &[f64], strength: f64) -> Vec<f32> {
    let factor =
        |(input, weight): (&f64, &f64)| (input.powf(strength) / weight.max(LEAST).powf(1.0 - strength)).max(LEAST) as f32;
    inputs.iter().zip(weights).map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_channels_by_hand() {
        let (inputs, weights) = ([8.0, 2.0], [0.5, 2.0]);
        // √(8 / ½) and √(2 / 2): inputs and weights then reach 2 and 2, 2 and 2.
        assert_eq!(factors(&inputs, &weights, 0.5), [4.0, 1.0]);
        assert_eq!(factors(&inputs, &weights, 1.0), [8.0, 2.0], "all to the weights: inputs reach 1");
        assert_eq!(factors(&inputs, &weights, 0.0), [2.0, 0.5], "weights reach 1");
    }

    #[test]
    fn channels_without_inputs_or_weights_have_finite_factors() {
        let found = factors(&[0.0, 4.0, 0.0], &[1.0, 0.0, 0.0], 0.5);
        assert_eq!(found, [1e-5, (4.0f64 / 1e-5).sqrt() as f32, 1e-5]);
    }
}
