//! Averages with their confidence intervals: what a sample can decide.

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.959_963_985;

/// The mean of a sample with its 95 % interval, by the normal approximation.
pub(crate) fn mean(values: &[f64]) -> (f64, [f64; 2]) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = Z95 * (variance / count).sqrt();
    (mean, [mean - half, mean + half])
}

/// A proportion with its 95 % interval (Wilson 1927), which stays inside 0 and 1 and does not collapse at the ends.
pub(crate) fn proportion(hits: usize, count: usize) -> (f64, [f64; 2]) {
    let (n, p) = (count as f64, hits as f64 / count as f64);
    let z2 = Z95 * Z95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // The observed value belongs to the interval; rounding must not push it out at 0 and 1.
    (p, [(centre - half).clamp(0.0, p), (centre + half).clamp(p, 1.0)])
}

/// A quantile with its 95 % interval from order statistics; the upper end is infinite where the sample can't tell.
pub(crate) fn quantile(values: &[f64], q: f64) -> (f64, [f64; 2]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let at = |rank: f64| match rank.ceil() {
        rank if rank < 1.0 => f64::NEG_INFINITY,
        rank if rank > n => f64::INFINITY,
        rank => sorted[rank as usize - 1],
    };
    let half = Z95 * (n * q * (1.0 - q)).sqrt();
    (at((n * q).max(1.0)), [at(n * q - half), at(n * q + half + 1.0)])
}

/// The smallest sample whose order statistics give a `q`-quantile an upper end: below it no limit can be proven kept.
pub(crate) fn least_sample(q: f64) -> usize {
    // The half-width grows with the root of the sample, what lies above the quantile with the sample itself: every larger one does too.
    (1..).find(|n| quantile(&vec![0.0; *n], q).1[1].is_finite()).expect("an endless range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_of_four_values_by_hand() {
        // 1, 2, 3, 4: mean 2.5, variance 5/3, standard error √(5/12) = 0.645497.
        let (value, [low, high]) = mean(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(value, 2.5);
        assert!((high - (2.5 + 1.959964 * 0.645497)).abs() < 1e-5 && (low + high - 5.0).abs() < 1e-12);
    }

    #[test]
    fn wilson_by_hand_for_8_of_10() {
        // z² = 3.841459: centre (0.8 + 0.192073) / 1.3841459 = 0.716740, half 1.415984 · √(0.016 + 0.009604) · … = 0.226577.
        let (value, [low, high]) = proportion(8, 10);
        assert_eq!(value, 0.8);
        assert!((low - 0.490162).abs() < 1e-4, "{low}");
        assert!((high - 0.943318).abs() < 1e-4, "{high}");
    }

    #[test]
    fn all_right_is_not_certainty() {
        let (value, [low, high]) = proportion(10, 10);
        assert_eq!((value, high), (1.0, 1.0));
        assert!((low - 0.722467).abs() < 1e-4, "{low}");
    }

    #[test]
    fn the_least_samples_that_decide_by_hand() {
        // 0.95 n + 1.96 √(0.0475 n) + 1 ≤ n from 110 on, 0.99 n + 1.96 √(0.0099 n) + 1 ≤ n from 563 on.
        assert_eq!([0.5, 0.95, 0.99].map(least_sample), [8, 110, 563]);
        for q in [0.5, 0.95, 0.99] {
            let least = least_sample(q);
            let upper = |n: usize| quantile(&vec![1.0; n], q).1[1];
            assert!(upper(least - 1).is_infinite() && (least..least + 300).all(|n| upper(n) == 1.0), "{q}");
        }
    }

    #[test]
    fn a_99th_percentile_of_a_hundred_has_no_upper_end() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let (value, [low, high]) = quantile(&values, 0.99);
        assert_eq!(value, 99.0);
        assert!(low < 99.0 && high.is_infinite());
        let values: Vec<f64> = (1..=10_000).map(f64::from).collect();
        let (value, [_, high]) = quantile(&values, 0.99);
        assert_eq!(value, 9900.0);
        assert!((9900.0..9930.0).contains(&high), "rank 9900 + 1.96 · 9.95 + 1: {high}");
    }
}
