//! The settings of a training, and the learning rate they ask for at each step.

use crate::Error;

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Updates of the weights.
    pub steps: u64,
    /// Highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly; 0 starts at the highest.
    pub warmup_steps: u64,
    /// The learning rate at the end, as a part of the highest: 0–1.
    pub min_learning_rate_ratio: f64,
    /// Decay of the gradient's running mean: 0–1, 1 excluded.
    pub beta_1: f64,
    /// Decay of the squared gradient's running mean: 0–1, 1 excluded.
    pub beta_2: f64,
    /// Added to the root of the squared gradient's mean.
    pub epsilon: f64,
    /// Part of each matrix removed per step, times the learning rate. Norms and biases do not decay; embeddings do.
    pub weight_decay: f64,
    /// Largest Euclidean norm of all gradients together; `None` clips nothing.
    pub gradient_clip: Option<f64>,
    /// Batches whose gradients make one step, each weighted by its unmasked tokens: the same as one large batch.
    pub gradient_accumulation: u64,
    /// Steps between two saved states; `None` saves only when stopped.
    pub save_every: Option<u64>,
}

impl Default for Training {
    /// What small language models are commonly trained with; PyTorch's epsilon.
    fn default() -> Self {
        Self {
            steps: 1000,
            learning_rate: 1e-3,
            warmup_steps: 50,
            min_learning_rate_ratio: 0.1,
            beta_1: 0.9,
            beta_2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            gradient_clip: Some(1.0),
            gradient_accumulation: 1,
            save_every: None,
        }
    }
}

impl Training {
    /// The learning rate of a step, counted from 0: linear warm-up, then half a cosine down to the smallest.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / falling as f64).min(1.0);
        let height = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * (self.min_learning_rate_ratio + (1.0 - self.min_learning_rate_ratio) * height)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let within = |name: &str, value: f64, fits: bool, range: &str| match fits {
            true => Ok(()),
            false => Err(Error::Settings(format!("{name} is {value}; it must be {range}"))),
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        within("learning_rate", self.learning_rate, positive(self.learning_rate), "above 0")?;
        let ratio = self.min_learning_rate_ratio;
        within("min_learning_rate_ratio", ratio, (0.0..=1.0).contains(&ratio), "from 0 to 1")?;
        within("beta_1", self.beta_1, (0.0..1.0).contains(&self.beta_1), "at least 0 and below 1")?;
        within("beta_2", self.beta_2, (0.0..1.0).contains(&self.beta_2), "at least 0 and below 1")?;
        within("epsilon", self.epsilon, positive(self.epsilon), "above 0")?;
        let decay = self.weight_decay;
        within("weight_decay", decay, decay.is_finite() && decay >= 0.0, "0 or above")?;
        if let Some(clip) = self.gradient_clip {
            within("gradient_clip", clip, positive(clip), "above 0")?;
        }
        within("gradient_accumulation", 0.0, self.gradient_accumulation > 0, "at least 1")?;
        within("save_every", 0.0, self.save_every != Some(0), "at least 1")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_learning_rate_rises_in_a_line_and_falls_as_a_cosine() {
        let training =
            Training { steps: 12, warmup_steps: 4, learning_rate: 0.8, min_learning_rate_ratio: 0.25, ..Training::default() };
        let at = |step| training.learning_rate_at(step);
        // A quarter of 0.8 more at each of the four steps.
        for (step, expected) in [0.2, 0.4, 0.6, 0.8].into_iter().enumerate() {
            assert!((at(step as u64) - expected).abs() < 1e-12);
        }
        assert!((at(4) - 0.8).abs() < 1e-12, "cos 0 = 1: the highest");
        // A quarter of the way: (1 + cos 45°) / 2 = 0.853553; 0.2 + 0.6 · 0.853553.
        assert!((at(6) - 0.712_132).abs() < 1e-6);
        assert!((at(8) - 0.5).abs() < 1e-12, "half of the way: 0.2 + 0.6 / 2");
        assert!((at(12) - 0.2).abs() < 1e-12, "the end: 0.25 · 0.8");
        assert!((at(99) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn settings_out_of_range_are_refused_with_the_range() {
        let refusal = |training: Training| training.check().unwrap_err().to_string();
        let default = Training::default;
        assert!(default().check().is_ok());
        assert_eq!(refusal(Training { learning_rate: 0.0, ..default() }), "learning_rate is 0; it must be above 0");
        assert_eq!(refusal(Training { learning_rate: f64::NAN, ..default() }), "learning_rate is NaN; it must be above 0");
        assert_eq!(refusal(Training { beta_2: 1.0, ..default() }), "beta_2 is 1; it must be at least 0 and below 1");
        assert_eq!(
            refusal(Training { min_learning_rate_ratio: 1.5, ..default() }),
            "min_learning_rate_ratio is 1.5; it must be from 0 to 1"
        );
        assert_eq!(refusal(Training { gradient_clip: Some(0.0), ..default() }), "gradient_clip is 0; it must be above 0");
        assert_eq!(
            refusal(Training { gradient_accumulation: 0, ..default() }),
            "gradient_accumulation is 0; it must be at least 1"
        );
    }
}
