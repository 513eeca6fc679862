//! Rotary frequencies that are divided one by one: the tensor `rope_freqs.weight`, which Llama 3.1 and later have.
//!
//! llama.cpp's converter computes the divisors from Llama 3.1's four parameters. They are found again here, because that is how
//! Transformers and others know the scaling; divisors that no such parameters give stay as they are.
//!
//! With the wavelength `w = 2π/frequency`, `1/divisor` is 1 up to `original/high`, `1/factor` from `original/low` on, and on a line over
//! `1/w` between the two. The line has two parameters and the scaling four, so they are found up to a common multiple of `low`, `high`
//! and `original`: the smallest one that makes `original` whole, where `low` is 1.

use std::f64::consts::TAU;

use super::{GgmlType, GgufFile};
use crate::{Result, RotaryScaling};

/// The tensor with a divisor for each frequency.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// How far `1/divisor` may lie from what parameters give: some roundings to f32 of numbers up to 1.
const ROUNDING: f64 = 8.0 * f32::EPSILON as f64;
/// `high/low` of every published model; taken where the divisors leave it open.
const USUAL_RATIO: f64 = 4.0;
/// Factors that are tried where no frequency is divided by the whole factor.
const USUAL_FACTORS: [f64; 6] = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// Low factors that are tried.
const LOW_FACTORS: std::ops::RangeInclusive<u32> = 1..=8;
/// Longer ones are no model's.
const LONGEST_CONTEXT: f64 = (1 << 24) as f64;
/// High factors are multiples of its inverse.
const HIGH_STEPS: f64 = 64.0;

impl GgufFile {
    /// The divisors of `rope_freqs.weight`, one for each of `half` frequencies; `None` where there is no such tensor.
    pub(super) fn frequency_divisors(&self, half: usize) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensor(ROPE_FREQS) else { return Ok(None) };
        if tensor.shape != [half] || tensor.kind != GgmlType::F32 {
            return Err(self.malformed(format!(
                "tensor `{ROPE_FREQS}` is {} of shape {:?}, expected F32 of shape [{half}]: half the size of a head",
                tensor.kind.name(),
                tensor.shape
            )));
        }
        let divisors = self.tensor_f32(ROPE_FREQS)?;
        match divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
            Some(divisor) => Err(self.malformed(format!("tensor `{ROPE_FREQS}` holds {divisor}, expected numbers above 0"))),
            None => Ok(Some(divisors)),
        }
    }
}

/// The scaling that divides each frequency by its divisor.
pub(super) fn scaling(theta: f64, divisors: Vec<f32>) -> RotaryScaling {
    match divisors.first() {
        Some(&first) if divisors.iter().all(|&divisor| divisor == first) => match first {
            1.0 => RotaryScaling::None,
            _ => RotaryScaling::Linear { factor: first.into() },
        },
        _ => llama3(theta, &divisors).unwrap_or(RotaryScaling::PerFrequency { divisors }),
    }
}

/// What each of `half` frequencies is divided by; `None` where nothing is divided.
pub(super) fn divisors(scaling: &RotaryScaling, theta: f64, half: usize) -> Option<Vec<f32>> {
    match scaling {
        RotaryScaling::None => None,
        RotaryScaling::Linear { factor } => Some(vec![*factor as f32; half]),
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let line = Line::new(*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings as f64);
            Some((0..half).map(|pair| (1.0 / line.kept(wavelength(theta, pair, half))) as f32).collect())
        }
        RotaryScaling::PerFrequency { divisors } => Some(divisors.clone()),
    }
}

fn wavelength(theta: f64, pair: usize, half: usize) -> f64 {
    TAU * theta.powf(pair as f64 / half as f64)
}

/// `1/divisor` over `1/wavelength`, before it is cut off at `1/factor` and 1.
struct Line {
    slope: f64,
    at_zero: f64,
    factor: f64,
}

impl Line {
    fn new(factor: f64, low: f64, high: f64, original: f64) -> Self {
        let per_unit = (1.0 - 1.0 / factor) / (high - low);
        Self { slope: original * per_unit, at_zero: 1.0 / factor - low * per_unit, factor }
    }

    /// The part of a frequency that is kept.
    fn kept(&self, wavelength: f64) -> f64 {
        (self.at_zero + self.slope / wavelength).clamp(1.0 / self.factor, 1.0)
    }
}

/// Llama 3.1's parameters for these divisors, within rounding; `None` where there are none.
fn llama3(theta: f64, divisors: &[f32]) -> Option<RotaryScaling> {
    let kept: Vec<f64> = divisors.iter().map(|&divisor| 1.0 / f64::from(divisor)).collect();
    let wavelengths: Vec<f64> = (0..divisors.len()).map(|pair| wavelength(theta, pair, divisors.len())).collect();
    let smallest = kept.iter().copied().fold(1.0, f64::min);
    // The decimal that was meant, where a divisor is the whole factor.
    let largest = divisors.iter().copied().fold(1.0, f32::max).into();
    [largest].into_iter().chain(USUAL_FACTORS).filter(|factor| 1.0 / factor <= smallest).find_map(|factor| {
        let between = |kept: f64| kept < 1.0 - ROUNDING && kept > 1.0 / factor + ROUNDING;
        let mut blended = wavelengths.iter().zip(&kept).filter(|(_, kept)| between(**kept)).map(|(w, kept)| (*w, *kept));
        let first = blended.next()?;
        let whole = 1.0 - 1.0 / factor;
        let (slope, at_zero) = match blended.next_back() {
            Some(last) => {
                let slope = (first.1 - last.1) / (1.0 / first.0 - 1.0 / last.0);
                (slope, first.1 - slope / first.0)
            }
            None => {
                let at_zero = 1.0 / factor - whole / (USUAL_RATIO - 1.0);
                ((first.1 - at_zero) * first.0, at_zero)
            }
        };
        let ratio = 1.0 + whole / (1.0 / factor - at_zero);
        let original = slope * (ratio - 1.0) / whole;
        LOW_FACTORS.map(f64::from).find_map(|low| {
            let high = (ratio * low * HIGH_STEPS).round() / HIGH_STEPS;
            let original = (original * low).round();
            let is_sound = high > low && high.is_finite() && (1.0..=LONGEST_CONTEXT).contains(&original);
            let line = is_sound.then(|| Line::new(factor, low, high, original))?;
            let fits = wavelengths.iter().zip(&kept).all(|(&w, kept)| (line.kept(w) - kept).abs() <= ROUNDING);
            fits.then_some(RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original as usize,
            })
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn parameters(factor: f64, low: f64, high: f64, original: usize) -> RotaryScaling {
        RotaryScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original }
    }

    #[test]
    fn divisors_are_worked_by_hand() {
        // Wavelengths 6.28, 19.87, 62.83, 198.7 of theta 10000 and heads of 8; 64/4 = 16 and 64/1 = 64 are the bounds.
        let found = divisors(&parameters(8.0, 1.0, 4.0, 64), 10_000.0, 4).unwrap();
        let smooth = |wavelength: f64| (64.0 / wavelength - 1.0) / 3.0;
        let blended = |wavelength| (1.0 / ((1.0 - smooth(wavelength)) / 8.0 + smooth(wavelength))) as f32;
        assert_eq!(found[0], 1.0);
        assert!((found[1] / blended(TAU * 10.0) - 1.0).abs() < 1e-6);
        assert_eq!(found[2..], [8.0, 8.0]);
    }

    #[test]
    fn the_published_parameters_are_found_again() {
        let published = [
            (500_000.0, 64, parameters(8.0, 1.0, 4.0, 8192)),  // Llama 3.1 8B and 70B
            (500_000.0, 32, parameters(32.0, 1.0, 4.0, 8192)), // Llama 3.2 1B
            (500_000.0, 64, parameters(32.0, 1.0, 4.0, 8192)), // Llama 3.2 3B
            (1_000_000.0, 64, parameters(16.0, 1.0, 8.0, 4096)),
            (10_000.0, 8, parameters(8.0, 1.0, 4.0, 64)),
        ];
        for (theta, half, scaling) in published {
            let divisors = divisors(&scaling, theta, half).unwrap();
            assert_eq!(super::scaling(theta, divisors), scaling);
        }
    }

    #[test]
    fn divisors_of_no_such_shape_stay_as_they_are() {
        assert_eq!(scaling(10_000.0, vec![1.0; 4]), RotaryScaling::None);
        assert_eq!(scaling(10_000.0, vec![4.0; 4]), RotaryScaling::Linear { factor: 4.0 });
        for divisors in [vec![1.0, 3.0, 2.0, 8.0], vec![0.5, 1.0, 1.0, 1.0], vec![1.0, 1.5, 2.5, 8.0, 9.0]] {
            assert_eq!(scaling(10_000.0, divisors.clone()), RotaryScaling::PerFrequency { divisors });
        }
    }

    proptest! {
        #[test]
        fn whatever_is_found_divides_as_the_file_says(
            theta in 1_000.0f64..2_000_000.0,
            half in 2usize..65,
            factor in 1.5f64..64.0,
            low in 0.5f64..4.0,
            ratio in 1.1f64..16.0,
            original in 16usize..100_000,
        ) {
            let file = divisors(&parameters(factor, low, low * ratio, original), theta, half).unwrap();
            let found = divisors(&scaling(theta, file.clone()), theta, half).unwrap_or(vec![1.0; half]);
            for (found, file) in found.iter().zip(&file) {
                prop_assert!((1.0 / f64::from(*found) - 1.0 / f64::from(*file)).abs() <= 2.0 * ROUNDING, "{found} {file}");
            }
        }
    }
}
