//! Picks the next token from its logits: the most likely one, or one by chance from those that the filters leave.
//!
//! The filters follow each other as in Transformers: repetition penalty, temperature, top-k, top-p, min-p. llama.cpp by default puts
//! the temperature last, so that there top-p and min-p see the probabilities before it.
//!
//! Plain `core` and `alloc`, with `libm` for the exponential: the same seed picks the same tokens on every machine.

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

/// How the next token is picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits, 0 or more. At 0 the most likely token is taken and no filter but the penalty matters.
    pub temperature: f32,
    /// Keeps so many of the most likely tokens, 1 or more; of equal ones the lowest ids, where Transformers keeps all of them.
    pub top_k: Option<usize>,
    /// Keeps the fewest most likely tokens that together have at least this probability, above 0 and at most 1.
    ///
    /// Method: Holtzman et al. 2020, arXiv:1904.09751, §3.1.
    pub top_p: Option<f32>,
    /// Keeps tokens with at least this part of the most likely one's probability, 0 to 1.
    ///
    /// Method: Nguyen et al. 2024, arXiv:2407.01082, §3.
    pub min_p: Option<f32>,
    /// Divides the positive logits of tokens that are in the text so far and multiplies the negative ones, above 0; 1 changes nothing.
    ///
    /// Method: Keskar et al. 2019, arXiv:1909.05858, §4.1; negative logits as in Transformers, where dividing would favour them.
    pub repetition_penalty: f32,
    /// Seeds every choice.
    pub seed: u64,
}

impl Default for Sampling {
    /// The most likely token.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A setting outside of its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InvalidSampling {
    /// Negative, NaN or infinite.
    Temperature(f32),
    /// Nothing would be left.
    TopK,
    /// No probability, or none at all.
    TopP(f32),
    /// No part of a probability.
    MinP(f32),
    /// 0, negative, NaN or infinite.
    RepetitionPenalty(f32),
}

impl fmt::Display for InvalidSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temperature(found) => write!(f, "temperature is {found}; it must be a number of 0 or more"),
            Self::TopK => write!(f, "top-k is 0; it must be at least 1"),
            Self::TopP(found) => write!(f, "top-p is {found}; it must be above 0 and at most 1"),
            Self::MinP(found) => write!(f, "min-p is {found}; it must lie from 0 to 1"),
            Self::RepetitionPenalty(found) => write!(f, "repetition penalty is {found}; it must be a number above 0"),
        }
    }
}

impl core::error::Error for InvalidSampling {}

impl Sampling {
    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`InvalidSampling`] for the first setting outside of its range.
    pub fn check(&self) -> Result<(), InvalidSampling> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(InvalidSampling::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(InvalidSampling::TopK);
        }
        if let Some(top_p) = self.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
            return Err(InvalidSampling::TopP(top_p));
        }
        if let Some(min_p) = self.min_p.filter(|min_p| !(0.0..=1.0).contains(min_p)) {
            return Err(InvalidSampling::MinP(min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return Err(InvalidSampling::RepetitionPenalty(self.repetition_penalty));
        }
        Ok(())
    }
}

/// Picks one token after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    generator: Pcg32,
    /// Which tokens are in the text so far; left empty where nothing asks.
    seen: Vec<bool>,
    /// Kept between tokens for its memory.
    candidates: Vec<Candidate>,
}

/// A token that may be picked.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Its probability ÷ that of the most likely token.
    weight: f32,
}

impl Candidate {
    /// The most likely token first, of equal ones the lowest id.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// Starts at the seed, with no token in the text.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self, InvalidSampling> {
        sampling.check()?;
        let generator = Pcg32::new(sampling.seed, STREAM);
        Ok(Self { sampling, generator, seen: Vec::new(), candidates: Vec::new() })
    }

    /// Always the most likely token.
    pub fn greedy() -> Self {
        let sampling = Sampling::default();
        Self { sampling, generator: Pcg32::new(sampling.seed, STREAM), seen: Vec::new(), candidates: Vec::new() }
    }

    /// Tokens that the text has now: the prompt, and each token that was picked.
    pub fn see(&mut self, tokens: &[u32]) {
        if self.sampling.repetition_penalty == 1.0 {
            return;
        }
        for token in tokens {
            let token = *token as usize;
            if self.seen.len() <= token {
                self.seen.resize(token + 1, false);
            }
            self.seen[token] = true;
        }
    }

    /// Picks the next token.
    ///
    /// - `logits`: `[vocab_size]`, finite and not empty; the penalty is left in them
    pub fn pick(&mut self, logits: &mut [f32]) -> u32 {
        self.penalize(logits);
        if self.sampling.temperature == 0.0 {
            return most_likely(logits);
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0..).map(|(&logit, token)| {
            // The largest logit comes off first: what remains is at most 0, and no exponential overflows.
            let weight = libm::expf((logit - largest) / self.sampling.temperature);
            Candidate { token, logit, weight }
        }));
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        self.draw()
    }

    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for (logit, _) in logits.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            // A penalty near 0 or far above 1 must not make infinities, whose difference is NaN.
            *logit = penalized.clamp(f32::MIN, f32::MAX);
        }
    }

    fn keep_top_k(&mut self) {
        let Some(k) = self.sampling.top_k.filter(|k| *k < self.candidates.len()) else { return };
        self.candidates.select_nth_unstable_by(k - 1, Candidate::order);
        self.candidates.truncate(k);
    }

    fn keep_top_p(&mut self) {
        let Some(top_p) = self.sampling.top_p.filter(|top_p| *top_p < 1.0) else { return };
        let total = self.total();
        let goal = f64::from(top_p) * total;
        // Tokens below this weight have less than 1 − p together, so the others reach the goal without them: a vocabulary has
        // thousands that need no sorting.
        let smallest = (total - goal) / self.candidates.len() as f64;
        self.candidates.retain(|candidate| f64::from(candidate.weight) >= smallest);
        self.candidates.sort_unstable_by(Candidate::order);
        let mut sum = 0.0;
        let reached = self.candidates.iter().position(|candidate| {
            sum += f64::from(candidate.weight);
            sum >= goal
        });
        self.candidates.truncate(reached.map_or(self.candidates.len(), |last| last + 1));
    }

    fn keep_min_p(&mut self) {
        let Some(min_p) = self.sampling.min_p else { return };
        // The most likely token has weight 1 and passed the filters before.
        self.candidates.retain(|candidate| candidate.weight >= min_p);
    }

    /// One candidate, each with its weight ÷ the sum of the weights.
    fn draw(&mut self) -> u32 {
        // Selecting and sorting leave an order of their own; by id, equal candidates make equal choices whatever filtered them.
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        let mut left = self.generator.fraction() * self.total();
        let mut picked = None;
        for candidate in self.candidates.iter().filter(|candidate| candidate.weight > 0.0) {
            picked = Some(candidate.token);
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                break;
            }
        }
        // Rounding can leave a rest after the last candidate, which is then the one.
        picked.expect("the most likely token has weight 1 and passes every filter")
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }
}

/// The first of the largest logits.
pub(crate) fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The generator's stream; any number does, and this one stays.
const STREAM: u64 = 0;

/// PCG-XSH-RR with 64 bits of state and 32 of output: a congruential generator whose output is shifted and rotated by its own bits.
///
/// Method: O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation",
/// HMC-CS-2014-0905, §6.3.1.
#[derive(Clone, Debug)]
struct Pcg32 {
    state: u64,
    /// Odd; chooses the stream.
    increment: u64,
}

impl Pcg32 {
    /// Knuth's multiplier for 64 bits.
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

    fn new(seed: u64, stream: u64) -> Self {
        let mut generator = Self { state: 0, increment: stream << 1 | 1 };
        generator.next();
        generator.state = generator.state.wrapping_add(seed);
        generator.next();
        generator
    }

    fn next(&mut self) -> u32 {
        let before = self.state;
        self.state = before.wrapping_mul(Self::MULTIPLIER).wrapping_add(self.increment);
        let shifted = ((before >> 18 ^ before) >> 27) as u32;
        shifted.rotate_right((before >> 59) as u32)
    }

    /// A multiple of 2⁻⁵³ from 0 to below 1, all equally likely.
    fn fraction(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next()), u64::from(self.next()));
        ((high << 32 | low) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    const WARM: Sampling = Sampling { temperature: 1.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0, seed: 7 };

    /// Logits of these probabilities, whatever their sum.
    fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|probability| libm::log(*probability) as f32).collect()
    }

    /// How often each token is picked.
    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.pick(&mut logits.to_vec()) as usize] += 1;
        }
        counts
    }

    /// Which tokens are ever picked.
    fn kept(sampling: Sampling, probabilities: &[f64]) -> Vec<usize> {
        // The rarest kept token of these tests has 1 in 20: it is missed once in 0.95⁻²⁰⁰⁰ = 10⁴⁴ tests.
        let counts = counts(sampling, &logits(probabilities), 2000);
        (0..counts.len()).filter(|token| counts[*token] > 0).collect()
    }

    /// What the first logits become.
    fn penalized(penalty: f32, seen: &[u32], mut logits: Vec<f32>) -> Vec<f32> {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: penalty, ..Sampling::default() }).unwrap();
        sampler.see(seen);
        sampler.pick(&mut logits);
        logits
    }

    #[test]
    fn the_generator_gives_the_numbers_of_its_authors_demonstration() {
        // The first line of pcg32-demo, seeded with 42 and 54.
        let mut generator = Pcg32::new(42, 54);
        let numbers: Vec<u32> = (0..6).map(|_| generator.next()).collect();
        assert_eq!(numbers, [0xa15c_02b7, 0x7b47_f409, 0xba1d_3330, 0x83d2_f293, 0xbfa4_784b, 0xcbed_606e]);
    }

    #[test]
    fn fractions_begin_with_the_generators_high_bits() {
        let mut generator = Pcg32::new(42, 54);
        // 0xa15c02b7_7b47f409 ÷ 2⁶⁴, cut after 53 bits.
        let expected = 0xa15c_02b7_7b47_f409_u64 as f64 / 18_446_744_073_709_551_616.0;
        assert!((generator.fraction() - expected).abs() <= f64::EPSILON);
        assert!((0..10_000).map(|_| generator.fraction()).all(|fraction| (0.0..1.0).contains(&fraction)));
    }

    #[test]
    fn the_most_likely_token_is_the_lowest_of_equal_ones() {
        assert_eq!(Sampler::greedy().pick(&mut [1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(Sampler::greedy().pick(&mut [-5.0]), 0);
    }

    #[test]
    fn the_penalty_divides_positive_logits_and_multiplies_negative_ones_once_a_token() {
        assert_eq!(penalized(2.0, &[0, 1, 3, 3, 3], vec![4.0, -1.0, 4.0, 6.0]), [2.0, -2.0, 4.0, 3.0]);
        assert_eq!(penalized(0.5, &[0, 1], vec![4.0, -1.0, 4.0]), [8.0, -0.5, 4.0]);
        assert_eq!(penalized(1.0, &[0, 1], vec![4.0, -1.0, 4.0]), [4.0, -1.0, 4.0]);
    }

    #[test]
    fn the_penalty_turns_the_choice_of_the_most_likely_token() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 1.5, ..Sampling::default() }).unwrap();
        assert_eq!(sampler.pick(&mut [3.0, 2.5, 1.0]), 0);
        sampler.see(&[0]);
        assert_eq!(sampler.pick(&mut [3.0, 2.5, 1.0]), 1, "3 ÷ 1.5 = 2");
        sampler.see(&[1]);
        assert_eq!(sampler.pick(&mut [3.0, 2.5, 1.0]), 0, "2.5 ÷ 1.5 = 1.67");
    }

    #[test]
    fn a_token_beyond_the_logits_changes_nothing() {
        assert_eq!(penalized(2.0, &[9], vec![4.0, 2.0]), [4.0, 2.0]);
    }

    #[test]
    fn extreme_settings_pick_a_token_all_the_same() {
        let tiny = Sampling { temperature: 1e-45, repetition_penalty: 1e-38, ..WARM };
        let huge = Sampling { temperature: 3e38, repetition_penalty: 3e38, top_p: Some(1e-30), min_p: Some(1.0), ..WARM };
        for sampling in [tiny, huge] {
            let mut sampler = Sampler::new(sampling).unwrap();
            sampler.see(&[1, 2]);
            assert!(sampler.pick(&mut [1.0, 1e10, -1e10, 1e10]) < 4);
        }
        // At a temperature so low the difference of 0.1 is certain.
        assert_eq!(counts(Sampling { temperature: 1e-6, ..WARM }, &[1.0, 1.1, 0.9], 100), [0, 100, 0]);
    }

    #[test]
    fn top_k_keeps_the_most_likely_and_of_equal_ones_the_lowest() {
        let probabilities = [0.1, 0.4, 0.1, 0.3, 0.1];
        assert_eq!(kept(Sampling { top_k: Some(1), ..WARM }, &probabilities), [1]);
        assert_eq!(kept(Sampling { top_k: Some(2), ..WARM }, &probabilities), [1, 3]);
        assert_eq!(kept(Sampling { top_k: Some(3), ..WARM }, &probabilities), [0, 1, 3]);
        assert_eq!(kept(Sampling { top_k: Some(4), ..WARM }, &probabilities), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_k: Some(99), ..WARM }, &probabilities), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let probabilities = [0.05, 0.5, 0.15, 0.3];
        // Sums from the most likely: 0.5, 0.8, 0.95, 1.
        assert_eq!(kept(Sampling { top_p: Some(0.01), ..WARM }, &probabilities), [1]);
        assert_eq!(kept(Sampling { top_p: Some(0.49), ..WARM }, &probabilities), [1]);
        assert_eq!(kept(Sampling { top_p: Some(0.51), ..WARM }, &probabilities), [1, 3]);
        assert_eq!(kept(Sampling { top_p: Some(0.79), ..WARM }, &probabilities), [1, 3]);
        assert_eq!(kept(Sampling { top_p: Some(0.81), ..WARM }, &probabilities), [1, 2, 3]);
        assert_eq!(kept(Sampling { top_p: Some(0.96), ..WARM }, &probabilities), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_p: Some(1.0), ..WARM }, &probabilities), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_agrees_with_sorting_everything() {
        let mut generator = Pcg32::new(3, 1);
        for round in 1..60 {
            let logits: Vec<f32> = (0..50 * round).map(|_| (12.0 * generator.fraction()) as f32).collect();
            let top_p = (generator.fraction() as f32).max(0.01);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            let total: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit))).sum();
            let mut sum = 0.0;
            let reaches = |token: &&usize| {
                let before = sum;
                sum += libm::exp(f64::from(logits[**token])) / total;
                before < f64::from(top_p)
            };
            let mut expected: Vec<u32> = order.iter().take_while(reaches).map(|token| *token as u32).collect();
            expected.sort_unstable();

            let mut sampler = Sampler::new(Sampling { top_p: Some(top_p), ..WARM }).unwrap();
            sampler.pick(&mut logits.clone());
            let found: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
            assert_eq!(found, expected, "{} logits, top-p {top_p}", logits.len());
        }
    }

    #[test]
    fn min_p_keeps_what_is_near_the_most_likely() {
        let probabilities = [0.5, 0.24, 0.16, 0.1];
        // Against 0.5: 1, 0.48, 0.32, 0.2.
        assert_eq!(kept(Sampling { min_p: Some(0.0), ..WARM }, &probabilities), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { min_p: Some(0.19), ..WARM }, &probabilities), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { min_p: Some(0.21), ..WARM }, &probabilities), [0, 1, 2]);
        assert_eq!(kept(Sampling { min_p: Some(0.47), ..WARM }, &probabilities), [0, 1]);
        assert_eq!(kept(Sampling { min_p: Some(1.0), ..WARM }, &probabilities), [0]);
    }

    #[test]
    fn the_filters_follow_each_other() {
        let probabilities = [0.4, 0.3, 0.2, 0.1];
        // top-k leaves 4/7 and 3/7: the first alone reaches 0.55 then, and did not before.
        assert_eq!(kept(Sampling { top_k: Some(2), top_p: Some(0.55), ..WARM }, &probabilities), [0]);
        assert_eq!(kept(Sampling { top_p: Some(0.55), ..WARM }, &probabilities), [0, 1]);
        // The temperature comes before top-p: at 0.5 probabilities are squared, 16 : 9 : 4 : 1 of 30.
        assert_eq!(kept(Sampling { temperature: 0.5, top_p: Some(0.52), ..WARM }, &probabilities), [0]);
        // And before min-p: 9 ÷ 16 is 0.56, where 3 ÷ 4 passed.
        assert_eq!(kept(Sampling { min_p: Some(0.6), ..WARM }, &probabilities), [0, 1]);
        assert_eq!(kept(Sampling { temperature: 0.5, min_p: Some(0.6), ..WARM }, &probabilities), [0]);
    }

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        const DRAWS: usize = 100_000;
        // 99.99 % of the chi-squared distribution with 3 degrees of freedom lies below.
        const CHI_SQUARED: f64 = 21.11;
        let probabilities = [0.4, 0.3, 0.2, 0.1];
        for (temperature, expected) in
            [(1.0, probabilities), (0.5, [16.0 / 30.0, 9.0 / 30.0, 4.0 / 30.0, 1.0 / 30.0]), (1e9, [0.25; 4])]
        {
            let counts = counts(Sampling { temperature, ..WARM }, &logits(&probabilities), DRAWS);
            let distance: f64 = counts
                .iter()
                .zip(expected)
                .map(|(count, probability)| {
                    let expected = probability * DRAWS as f64;
                    (*count as f64 - expected) * (*count as f64 - expected) / expected
                })
                .sum();
            assert!(distance < CHI_SQUARED, "temperature {temperature}: {counts:?}, chi-squared {distance}");
        }
    }

    #[test]
    fn what_is_left_keeps_its_proportions() {
        const DRAWS: usize = 100_000;
        // Two tokens, 4 : 3; five standard deviations of a binomial count are √(100000 · 4/7 · 3/7) · 5 = 782.5.
        const FIVE_DEVIATIONS: f64 = 782.5;
        let filters =
            [Sampling { top_k: Some(2), ..WARM }, Sampling { top_p: Some(0.65), ..WARM }, Sampling { min_p: Some(0.7), ..WARM }];
        for sampling in filters {
            let counts = counts(sampling, &logits(&[0.4, 0.3, 0.2, 0.1]), DRAWS);
            assert_eq!(counts[2..], [0, 0]);
            let error = (counts[0] as f64 - DRAWS as f64 * 4.0 / 7.0).abs();
            assert!(error < FIVE_DEVIATIONS, "{sampling:?}: {counts:?}");
        }
    }

    #[test]
    fn the_same_seed_picks_the_same_tokens() {
        let picked = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, top_p: Some(0.9), ..WARM }).unwrap();
            (0..50).map(|_| sampler.pick(&mut logits(&[0.4, 0.3, 0.2, 0.1]))).collect::<Vec<u32>>()
        };
        assert_eq!(picked(1), picked(1));
        assert_ne!(picked(1), picked(2));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = |sampling: Sampling| Sampler::new(sampling).unwrap_err().to_string();
        let temperature = |temperature| refused(Sampling { temperature, ..WARM });
        assert_eq!(temperature(-1.0), "temperature is -1; it must be a number of 0 or more");
        assert_eq!(temperature(f32::NAN), "temperature is NaN; it must be a number of 0 or more");
        assert_eq!(temperature(f32::INFINITY), "temperature is inf; it must be a number of 0 or more");
        assert_eq!(refused(Sampling { top_k: Some(0), ..WARM }), "top-k is 0; it must be at least 1");
        for (top_p, shown) in [(0.0, "0"), (1.5, "1.5"), (-0.1, "-0.1"), (f32::NAN, "NaN")] {
            let expected = alloc::format!("top-p is {shown}; it must be above 0 and at most 1");
            assert_eq!(refused(Sampling { top_p: Some(top_p), ..WARM }), expected);
        }
        for (min_p, shown) in [(-0.5, "-0.5"), (1.5, "1.5"), (f32::NAN, "NaN")] {
            let expected = alloc::format!("min-p is {shown}; it must lie from 0 to 1");
            assert_eq!(refused(Sampling { min_p: Some(min_p), ..WARM }), expected);
        }
        for (repetition_penalty, shown) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            let expected = alloc::format!("repetition penalty is {shown}; it must be a number above 0");
            assert_eq!(refused(Sampling { repetition_penalty, ..WARM }), expected);
        }
        let edges = Sampling { temperature: 0.0, top_k: Some(1), top_p: Some(1.0), min_p: Some(0.0), ..WARM };
        assert_eq!(edges.check(), Ok(()));
        assert_eq!(Sampling { min_p: Some(1.0), ..edges }.check(), Ok(()));
    }
}
