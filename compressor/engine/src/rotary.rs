//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as Hugging Face stores them.

use alloc::vec::Vec;
use core::f32::consts::PI;

use compressor_format::RotaryScaling;

/// The angle by which each pair of a head turns from one position to the next.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// `[head_dim / 2]`.
    frequencies: Vec<f32>,
}

/// Cosines and sines of some positions, each `[positions, head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct Rotation {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// Frequencies `theta^(−2i / head_dim)`, changed by `scaling`; in f32, as Transformers computes them.
    pub(crate) fn new(theta: f64, scaling: &RotaryScaling, head_dim: usize) -> Self {
        let frequency = |pair: usize| {
            let frequency = 1.0 / libm::powf(theta as f32, (2 * pair) as f32 / head_dim as f32);
            match *scaling {
                RotaryScaling::None => frequency,
                RotaryScaling::Linear { factor } => frequency / factor as f32,
                RotaryScaling::PerFrequency { ref divisors } => frequency / divisors[pair],
                RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                    let context = original_max_position_embeddings as f32;
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength > context / low {
                        frequency / factor
                    } else if wavelength < context / high {
                        frequency
                    } else {
                        let smooth = (context / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                }
            }
        };
        Self { frequencies: (0..head_dim / 2).map(frequency).collect() }
    }

    /// Cosines and sines of `positions`.
    pub(crate) fn at(&self, positions: impl Iterator<Item = usize>) -> Rotation {
        // The angle is rounded to f32 as in Transformers; its sine and cosine are then exact to the last place.
        let angles: Vec<f64> = positions
            .flat_map(|position| self.frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency)))
            .collect();
        Rotation {
            cosines: angles.iter().map(|angle| libm::cos(*angle) as f32).collect(),
            sines: angles.iter().map(|angle| libm::sin(*angle) as f32).collect(),
            half: self.frequencies.len(),
        }
    }
}

impl Rotation {
    /// Rotates every head of `x`, `[heads, head_dim]`, to the position in this place.
    pub(crate) fn apply(&self, place: usize, x: &mut [f32]) {
        let cosines = &self.cosines[place * self.half..][..self.half];
        let sines = &self.sines[place * self.half..][..self.half];
        for head in x.chunks_exact_mut(2 * self.half) {
            let (front, back) = head.split_at_mut(self.half);
            for pair in 0..self.half {
                let (a, b) = (front[pair], back[pair]);
                front[pair] = a * cosines[pair] - b * sines[pair];
                back[pair] = b * cosines[pair] + a * sines[pair];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    #[test]
    fn position_zero_turns_nothing_and_the_first_pair_turns_by_one_radian() {
        let rotation = Rotary::new(10_000.0, &RotaryScaling::None, 4).at(0..2);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rotation.apply(0, &mut x);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
        // Pair (1, 3) by 1, pair (2, 4) by 10000^(−1/2) = 0.01.
        rotation.apply(1, &mut x);
        let expected = [
            1f64.cos() - 3.0 * 1f64.sin(),
            2.0 * 0.01f64.cos() - 4.0 * 0.01f64.sin(),
            3.0 * 1f64.cos() + 1f64.sin(),
            4.0 * 0.01f64.cos() + 2.0 * 0.01f64.sin(),
        ];
        for (found, expected) in x.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rotary::new(10_000.0, &RotaryScaling::None, 8).frequencies;
        let scaled = Rotary::new(10_000.0, &RotaryScaling::Linear { factor: 4.0 }, 8).frequencies;
        assert_eq!(scaled, plain.iter().map(|frequency| frequency / 4.0).collect::<Vec<f32>>());
    }

    #[test]
    fn each_frequency_is_divided_by_its_own_number() {
        let plain = Rotary::new(10_000.0, &RotaryScaling::None, 4).frequencies;
        let divisors = vec![1.0, 2.5];
        let scaled = Rotary::new(10_000.0, &RotaryScaling::PerFrequency { divisors }, 4).frequencies;
        assert_eq!(scaled, [plain[0], plain[1] / 2.5]);
    }

    #[test]
    fn llama3_keeps_high_frequencies_divides_low_ones_and_blends_between() {
        let plain = Rotary::new(500_000.0, &RotaryScaling::None, 128).frequencies;
        let scaled = Rotary::new(500_000.0, &LLAMA3, 128).frequencies;
        assert_eq!(scaled[0], plain[0], "wavelength 6.3 is below 8192 / 4");
        assert_eq!(scaled[63], plain[63] / 8.0, "the longest wavelength is above 8192");
        // Pair 30: wavelength 2π · 500000^(60/128) = 2948, smooth = (8192/2948 − 1)/3 = 0.593.
        let smooth = (8192.0 / (2.0 * core::f64::consts::PI * 500_000f64.powf(60.0 / 128.0)) - 1.0) / 3.0;
        assert!((0.59..0.60).contains(&smooth));
        let expected = f64::from(plain[30]) * ((1.0 - smooth) / 8.0 + smooth);
        assert!((f64::from(scaled[30]) / expected - 1.0).abs() < 1e-5);
    }
}
