//! Perplexity of a model on a text, and its distance from a reference.

use rayon::prelude::*;

use crate::engine::Engine;
use crate::forward::Logits;
use crate::generate::most_likely;
use crate::{Error, Result};

/// How a text is cut: windows that follow each other without overlap and without an added first token. What is left after the last
/// whole window is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of one window.
    pub window: usize,
    /// Tokens `first_scored..window` of each window are scored, counted from 0; those before are context only.
    pub first_scored: usize,
    /// At most this many windows.
    pub limit: Option<usize>,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Mean negative log likelihood of the scored tokens, nats per token.
    pub mean_nll: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Windows they lie in.
    pub windows: usize,
}

/// How far a candidate's predictions are from a reference's, on the same text.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Of the reference.
    pub reference: Perplexity,
    /// Of the candidate.
    pub candidate: Perplexity,
    /// KL(reference ‖ candidate) of each scored token in the order of the text, nats.
    pub kl_divergences: Vec<f32>,
    /// Scored tokens where both find the same token most likely.
    pub agreeing_tokens: usize,
}

/// The perplexity of a model on a text.
///
/// `progress` hears the number of finished windows and of all.
///
/// # Errors
/// [`Error::Window`], [`Error::TooShort`], and as [`Engine::forward`].
pub fn perplexity(
    engine: &Engine,
    tokens: &[u32],
    windows: Windows,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    let cut = windows.cut(tokens)?;
    let mut likelihoods = Likelihoods::default();
    for (done, window) in cut.iter().enumerate() {
        let logits = windows.logits(engine, window)?;
        let scored = score(engine, &logits, &window[windows.first_scored..]);
        likelihoods.add(scored.iter().map(|scored| scored.nll));
        progress(done + 1, cut.len());
    }
    Ok(likelihoods.perplexity(cut.len()))
}

/// Runs two models over the same text, holding the logits of one window of each at a time.
///
/// `progress` hears the number of finished windows and of all.
///
/// # Errors
/// [`Error::Vocabularies`], [`Error::Window`], [`Error::TooShort`], and as [`Engine::forward`].
pub fn compare(
    reference: &Engine,
    candidate: &Engine,
    tokens: &[u32],
    windows: Windows,
    mut progress: impl FnMut(usize, usize),
) -> Result<Comparison> {
    let vocab_size = reference.architecture().vocab_size;
    if vocab_size != candidate.architecture().vocab_size {
        return Err(Error::Vocabularies { reference: vocab_size, candidate: candidate.architecture().vocab_size });
    }
    let cut = windows.cut(tokens)?;
    let (mut of_reference, mut of_candidate) = (Likelihoods::default(), Likelihoods::default());
    let mut kl_divergences = Vec::new();
    let mut agreeing_tokens = 0;
    for (done, window) in cut.iter().enumerate() {
        let targets = &window[windows.first_scored..];
        let (p, q) = (windows.logits(reference, window)?, windows.logits(candidate, window)?);
        let (scored_p, scored_q) = (score(reference, &p, targets), score(candidate, &q, targets));
        let rows = p.par_chunks_exact(vocab_size).zip(q.par_chunks_exact(vocab_size)).zip(&scored_p).zip(&scored_q);
        let kl = rows
            .map(|(((p, q), scored_p), scored_q)| kl_divergence(p, scored_p.log_normalizer, q, scored_q.log_normalizer) as f32);
        kl_divergences.extend(reference.threads.install(|| kl.collect::<Vec<f32>>()));
        agreeing_tokens += scored_p.iter().zip(&scored_q).filter(|(p, q)| p.most_likely == q.most_likely).count();
        of_reference.add(scored_p.iter().map(|scored| scored.nll));
        of_candidate.add(scored_q.iter().map(|scored| scored.nll));
        progress(done + 1, cut.len());
    }
    Ok(Comparison {
        reference: of_reference.perplexity(cut.len()),
        candidate: of_candidate.perplexity(cut.len()),
        kl_divergences,
        agreeing_tokens,
    })
}

impl Windows {
    /// The windows of a text.
    ///
    /// # Errors
    /// [`Error::Window`] where nothing would be scored, [`Error::TooShort`] where there is no whole window.
    fn cut<'a>(&self, tokens: &'a [u32]) -> Result<Vec<&'a [u32]>> {
        let Self { window, first_scored, limit } = *self;
        if first_scored == 0 || first_scored >= window {
            return Err(Error::Window { window, first_scored });
        }
        let cut: Vec<&[u32]> = tokens.chunks_exact(window).take(limit.unwrap_or(usize::MAX)).collect();
        match cut.is_empty() {
            true => Err(Error::TooShort { tokens: tokens.len(), window }),
            false => Ok(cut),
        }
    }

    /// Logits that predict the scored tokens of a window: those of the tokens one place before each.
    fn logits(&self, engine: &Engine, window: &[u32]) -> Result<Vec<f32>> {
        let context = &window[..self.window - 1];
        engine.forward(&mut engine.cache(context.len()), context, Logits::From(self.first_scored - 1))
    }
}

impl Perplexity {
    /// `exp(mean_nll)`.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

impl Comparison {
    /// Scored tokens: the sample size of every figure here.
    pub fn tokens(&self) -> usize {
        self.kl_divergences.len()
    }

    /// Mean KL divergence, nats per token; 0 for equal models.
    pub fn mean_kl(&self) -> f64 {
        self.kl_divergences.iter().map(|kl| f64::from(*kl)).sum::<f64>() / self.tokens() as f64
    }

    /// Standard error of [`Self::mean_kl`], taking tokens as independent; NaN for a single one.
    pub fn mean_kl_standard_error(&self) -> f64 {
        let (mean, tokens) = (self.mean_kl(), self.tokens() as f64);
        let squares: f64 = self.kl_divergences.iter().map(|kl| (f64::from(*kl) - mean).powi(2)).sum();
        (squares / (tokens - 1.0) / tokens).sqrt()
    }

    /// The KL divergence that `part` of the tokens stay at or below (nearest rank): 0.99 is p99.
    pub fn kl_percentile(&self, part: f64) -> f32 {
        let mut sorted = self.kl_divergences.clone();
        sorted.sort_by(f32::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    /// Part of the scored tokens where both find the same token most likely.
    pub fn top1_agreement(&self) -> f64 {
        self.agreeing_tokens as f64 / self.tokens() as f64
    }
}

/// Sum of negative log likelihoods, in the order of the text.
#[derive(Default)]
struct Likelihoods {
    nll: f64,
    tokens: usize,
}

impl Likelihoods {
    fn add(&mut self, nlls: impl Iterator<Item = f64>) {
        for nll in nlls {
            self.nll += nll;
            self.tokens += 1;
        }
    }

    fn perplexity(&self, windows: usize) -> Perplexity {
        Perplexity { mean_nll: self.nll / self.tokens as f64, tokens: self.tokens, windows }
    }
}

/// What one row of logits says.
struct Scored {
    nll: f64,
    log_normalizer: f64,
    most_likely: u32,
}

fn score(engine: &Engine, logits: &[f32], targets: &[u32]) -> Vec<Scored> {
    let rows = logits.par_chunks_exact(engine.architecture().vocab_size).zip(targets);
    let score = |(logits, target): (&[f32], &u32)| {
        let log_normalizer = log_normalizer(logits);
        let nll = log_normalizer - f64::from(logits[*target as usize]);
        Scored { nll, log_normalizer, most_likely: most_likely(logits) }
    };
    engine.threads.install(|| rows.map(score).collect())
}

/// `ln Σ exp(logits)`.
fn log_normalizer(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln()
}

/// `Σ p (ln p − ln q)` of two rows of logits with their normalizers.
fn kl_divergence(p: &[f32], p_normalizer: f64, q: &[f32], q_normalizer: f64) -> f64 {
    let term = |(p, q): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(*p) - p_normalizer, f64::from(*q) - q_normalizer);
        log_p.exp() * (log_p - log_q)
    };
    p.iter().zip(q).map(term).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Logits of the distributions (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2), each shifted by a constant.
    fn two_rows() -> ([f32; 3], [f32; 3]) {
        let log = |part: f32| part.ln();
        ([log(0.5) + 3.0, log(0.25) + 3.0, log(0.25) + 3.0], [log(0.25) - 1.0, log(0.25) - 1.0, log(0.5) - 1.0])
    }

    #[test]
    fn kl_divergence_by_hand() {
        let (p, q) = two_rows();
        // ½·ln 2 + ¼·0 + ¼·ln ½ = ¼·ln 2.
        let kl = kl_divergence(&p, log_normalizer(&p), &q, log_normalizer(&q));
        assert!((kl - 0.25 * std::f64::consts::LN_2).abs() < 1e-6, "{kl}");
        assert_eq!(kl_divergence(&p, log_normalizer(&p), &p, log_normalizer(&p)), 0.0);
    }

    #[test]
    fn a_normalizer_of_large_logits_does_not_overflow() {
        assert_eq!(log_normalizer(&[1000.0, 1000.0]), 1000.0 + std::f64::consts::LN_2);
    }

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let perplexity = Perplexity { mean_nll: 0.0, tokens: 200, windows: 1 };
        let kl_divergences: Vec<f32> = (1..=200).rev().map(|kl| kl as f32).collect();
        let comparison = Comparison { reference: perplexity, candidate: perplexity, kl_divergences, agreeing_tokens: 150 };
        assert_eq!(comparison.kl_percentile(0.99), 198.0);
        assert_eq!(comparison.kl_percentile(1.0), 200.0);
        assert_eq!(comparison.kl_percentile(0.0), 1.0);
        assert_eq!(comparison.mean_kl(), 100.5);
        assert_eq!(comparison.top1_agreement(), 0.75);
    }

    #[test]
    fn a_rest_shorter_than_a_window_is_left_out() {
        let windows = Windows { window: 4, first_scored: 2, limit: None };
        assert_eq!(windows.cut(&[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(Windows { limit: Some(1), ..windows }.cut(&[0; 8]).unwrap().len(), 1);
    }

    #[test]
    fn windows_that_score_nothing_and_short_texts_are_refused() {
        let windows = Windows { window: 4, first_scored: 4, limit: None };
        let message = windows.cut(&[0; 8]).unwrap_err().to_string();
        assert_eq!(message, "window of 4 tokens scored from 4: 1 ≤ first scored < window is needed");
        let message = Windows { first_scored: 1, ..windows }.cut(&[0; 3]).unwrap_err().to_string();
        assert_eq!(message, "the text has 3 tokens, one window needs 4: use a longer text or a shorter window");
    }
}
