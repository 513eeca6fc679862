//! Measures a model on held-out text with the engine.

use compressor_engine::{Engine, Logits, generate_batch};
use compressor_format::{Examples, Measured, Tokenizer, Verify, completion_matches};
use rayon::prelude::*;

use crate::Error;
use crate::rows::CUT_TOKENS;
use crate::statistics::mean;

/// Hears what is measured, how much of it is done, and of how much.
pub type Advances<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// What models are measured on.
pub struct HeldOut {
    /// Token sequences with the first scored place of each.
    pub sequences: Vec<Sequence>,
    /// Prompts with the answers expected, where every example has one.
    pub prompts: Vec<Prompt>,
    /// The token that every sequence and every prompt begins with, where the tokenizer begins texts with one.
    pub bos: Option<u32>,
    stop: Vec<u32>,
    longest_answer: usize,
    /// Tokens that the tokenizer numbers: rows of a vocabulary beyond them are padding.
    numbered: usize,
}

/// Tokens that a model predicts one after the other.
pub struct Sequence {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The first token that is scored; those before are context.
    pub first_scored: usize,
}

/// A prompt and its answer.
pub struct Prompt {
    /// Tokens of the prompt.
    pub tokens: Vec<u32>,
    /// The answer as text.
    pub answer: String,
}

/// Two models on the same tokens.
pub struct Comparison {
    /// Negative log likelihood of each scored token, reference and candidate, in nats.
    pub losses: [Vec<f64>; 2],
    /// KL(reference ‖ candidate) at each scored place, in nats.
    pub kl: Vec<f64>,
    /// Whether both pick the same token.
    pub agrees: Vec<bool>,
}

/// Logits that are held at once, where a single sequence does not need more.
const LOGIT_FLOATS: usize = 1 << 22;

impl HeldOut {
    /// Cuts the held-out split into windows, or takes its first examples.
    ///
    /// Where a tokenizer begins texts with BOS, that token stands in the place of each window's first, which is never scored; an
    /// example begins with it.
    ///
    /// # Errors
    /// Text that the tokenizer refuses, or that is shorter than one window.
    pub fn new(examples: &Examples, tokenizer: &Tokenizer, verify: &Verify) -> Result<Self, Error> {
        let mut held_out = Self {
            sequences: Vec::new(),
            prompts: Vec::new(),
            bos: tokenizer.bos_of_texts(),
            stop: tokenizer.eos().into_iter().collect(),
            longest_answer: 0,
            numbered: tokenizer.largest_id() as usize + 1,
        };
        match examples {
            Examples::Text(_) => {
                // A long text has more than is measured on; where it is cut, the last tokens could be others.
                let wanted = verify.windows.saturating_mul(verify.window).saturating_add(CUT_TOKENS);
                let mut tokens = examples.first_tokens(tokenizer, wanted)?;
                begin_windows(&mut tokens, verify.window, tokenizer.bos_of_texts());
                let windows = tokens.chunks_exact(verify.window).take(verify.windows);
                held_out.sequences =
                    windows.map(|window| Sequence { tokens: window.to_vec(), first_scored: verify.first_scored }).collect();
                if held_out.sequences.is_empty() {
                    return Err(Error::TooShort { tokens: tokens.len(), window: verify.window });
                }
            }
            Examples::Pairs(pairs) => {
                let have_answers = pairs.iter().all(|pair| !pair.prompt.is_empty());
                for pair in pairs.iter().take(verify.examples) {
                    let whole = pair.tokens(tokenizer)?.ids;
                    let prompt = tokenizer.encode_prompt(&pair.prompt)?;
                    held_out.longest_answer = held_out.longest_answer.max(whole.len() - prompt.len());
                    // Without a prompt, nothing stands before the first token to predict it from.
                    held_out.sequences.push(Sequence { first_scored: prompt.len().max(1), tokens: whole });
                    if have_answers {
                        held_out.prompts.push(Prompt { tokens: prompt, answer: pair.completion.clone() });
                    }
                }
            }
        }
        Ok(held_out)
    }

    /// Perplexity over every scored token.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn perplexity(&self, engine: &Engine, advances: Advances<'_>) -> Result<Measured, Error> {
        let vocab_size = engine.architecture().vocab_size;
        let mut losses = Vec::new();
        let mut done = 0;
        for group in self.groups(vocab_size) {
            let logits = scored_logits(engine, group)?;
            let rows = logits.chunks(vocab_size).zip(group.iter().flat_map(Sequence::scored)).collect::<Vec<_>>();
            losses.extend(rows.into_par_iter().map(|(row, token)| loss(row, token)).collect::<Vec<f64>>());
            done += group.len() as u64;
            advances("texts read", done, self.sequences.len() as u64);
        }
        Ok(Measured { value: mean(&losses).0.exp(), sample_size: losses.len() as u64 })
    }

    /// Both models on every scored token.
    ///
    /// Where their vocabularies are padded to different sizes, divergence and agreement are of the tokens that the tokenizer has.
    ///
    /// # Errors
    /// [`Error::Vocabularies`] where one of them lacks some of these, [`Error::TooLong`], and what the engine refuses.
    pub fn compare(&self, reference: &Engine, candidate: &Engine, advances: Advances<'_>) -> Result<Comparison, Error> {
        let [vocab_size, of_candidate] = [reference, candidate].map(|engine| engine.architecture().vocab_size);
        let shared = if vocab_size == of_candidate { vocab_size } else { self.numbered };
        if shared > vocab_size.min(of_candidate) {
            return Err(Error::Vocabularies { reference: vocab_size, candidate: of_candidate });
        }
        let mut comparison = Comparison { losses: [Vec::new(), Vec::new()], kl: Vec::new(), agrees: Vec::new() };
        let mut done = 0;
        for group in self.groups(vocab_size.max(of_candidate)) {
            let (ours, theirs) = (scored_logits(reference, group)?, scored_logits(candidate, group)?);
            let tokens: Vec<u32> = group.iter().flat_map(Sequence::scored).collect();
            let rows = ours.par_chunks(vocab_size).zip(theirs.par_chunks(of_candidate)).zip(tokens);
            let compared: Vec<_> = rows
                .map(|((p, q), token)| {
                    let (kept_p, kept_q) = (&p[..shared], &q[..shared]);
                    let agrees = largest(kept_p) == largest(kept_q);
                    (loss(p, token), loss(q, token), kl_divergence(kept_p, kept_q), agrees)
                })
                .collect();
            for (ours, theirs, kl, agrees) in compared {
                comparison.losses[0].push(ours);
                comparison.losses[1].push(theirs);
                comparison.kl.push(kl);
                comparison.agrees.push(agrees);
            }
            done += group.len() as u64;
            advances("texts compared", done, self.sequences.len() as u64);
        }
        Ok(comparison)
    }

    /// Which answers the model generates exactly; empty where the dataset has none.
    ///
    /// # Errors
    /// What the engine refuses, or an answer that can't be decoded.
    pub fn exact_matches(&self, engine: &Engine, tokenizer: &Tokenizer, advances: Advances<'_>) -> Result<Vec<bool>, Error> {
        let mut answers = Vec::with_capacity(self.prompts.len());
        for group in self.prompts.chunks(ANSWERED_TOGETHER) {
            let prompts: Vec<Vec<u32>> = group.iter().map(|prompt| prompt.tokens.clone()).collect();
            answers.extend(generate_batch(engine, &prompts, self.longest_answer + ANSWER_MARGIN, &self.stop)?);
            advances("examples answered", answers.len() as u64, self.prompts.len() as u64);
        }
        let matches = answers.iter().zip(&self.prompts).map(|(answer, prompt)| {
            let kept: Vec<u32> = answer.iter().copied().filter(|token| !self.stop.contains(token)).collect();
            Ok(completion_matches(&prompt.answer, &tokenizer.decode(&kept)?))
        });
        matches.collect()
    }

    /// Sequences that go through a model together: as many as keep the logits small, one where one alone is large.
    fn groups(&self, vocab_size: usize) -> impl Iterator<Item = &[Sequence]> {
        let longest = self.sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(1);
        self.sequences.chunks((LOGIT_FLOATS / (longest * vocab_size)).max(1))
    }
}

/// Examples that are answered between two looks at the progress.
const ANSWERED_TOGETHER: usize = 64;
/// Puts BOS, where a tokenizer has one for texts, in the place of each window's first token: windows keep their length and cut a text
/// where llama.cpp's do.
pub(crate) fn begin_windows(tokens: &mut [u32], window: usize, bos: Option<u32>) {
    if let Some(bos) = bos {
        tokens.chunks_mut(window).for_each(|window| window[0] = bos);
    }
}

/// Tokens that an answer may be longer than the longest expected one.
const ANSWER_MARGIN: usize = 4;

impl Sequence {
    fn scored(&self) -> impl Iterator<Item = u32> {
        self.tokens[self.first_scored..].iter().copied()
    }
}

/// The logits that predict each scored token, those of the place before it: `[scored tokens, vocab_size]`.
fn scored_logits(engine: &Engine, sequences: &[Sequence]) -> Result<Vec<f32>, Error> {
    let vocab_size = engine.architecture().vocab_size;
    let most = engine.architecture().max_position_embeddings;
    for Sequence { tokens, .. } in sequences {
        if tokens.len() - 1 > most {
            return Err(Error::TooLong { tokens: tokens.len() - 1, most });
        }
        // The engine never reads the last one, which is only predicted.
        if let Some(token) = tokens.last().copied().filter(|token| *token as usize >= vocab_size) {
            return Err(compressor_engine::Error::Token { token, position: tokens.len() - 1, vocab_size }.into());
        }
    }
    let read = |sequence: &Sequence| sequence.tokens.len() - 1;
    let from = sequences.iter().map(|sequence| sequence.first_scored - 1).min().unwrap_or(0);
    let mut caches: Vec<_> = sequences.iter().map(|sequence| engine.cache(read(sequence))).collect();
    let mut together: Vec<_> = sequences
        .iter()
        .zip(&mut caches)
        .map(|(sequence, cache)| compressor_engine::Sequence { cache, tokens: &sequence.tokens[..read(sequence)] })
        .collect();
    let logits = engine.forward_batch(&mut together, Logits::From(from))?;
    // Prompts differ in length: what was computed for the longer ones' context is left out.
    let mut scored = Vec::with_capacity(logits.len());
    let mut at = 0;
    for sequence in sequences {
        let computed = read(sequence) - from;
        let skipped = sequence.first_scored - 1 - from;
        scored.extend_from_slice(&logits[(at + skipped) * vocab_size..(at + computed) * vocab_size]);
        at += computed;
    }
    Ok(scored)
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(most) + row.iter().map(|logit| f64::from((logit - most).exp())).sum::<f64>().ln()
}

fn loss(row: &[f32], token: u32) -> f64 {
    log_sum_exp(row) - f64::from(row[token as usize])
}

/// Σ p · (log p − log q), in nats; 0 for equal logits.
pub(crate) fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let log_p = f64::from(*p) - p_norm;
        log_p.exp() * (log_p - (f64::from(*q) - q_norm))
    };
    p.iter().zip(q).map(term).sum()
}

fn largest(row: &[f32]) -> usize {
    // The first of equal ones, as greedy decoding takes it.
    row.iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (index, logit)| if *logit > best.1 { (index, *logit) } else { best })
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_by_hand() {
        // p = (¾, ¼), q = (½, ½): ¾ ln 1.5 + ¼ ln 0.5 = 0.130812.
        let p = [3f32.ln(), 0.0];
        assert!((kl_divergence(&p, &[1.0, 1.0]) - 0.130_812).abs() < 1e-6);
        assert_eq!(kl_divergence(&p, &p), 0.0);
    }

    #[test]
    fn every_window_begins_with_bos_where_texts_do() {
        let begun = |bos| {
            let mut tokens = vec![1, 5, 6, 7, 8];
            begin_windows(&mut tokens, 2, bos);
            tokens
        };
        assert_eq!(begun(Some(1)), [1, 5, 1, 7, 1]);
        assert_eq!(begun(None), [1, 5, 6, 7, 8]);
    }

    #[test]
    fn loss_by_hand() {
        // Softmax of (ln 3, 0) gives (¾, ¼).
        assert!((loss(&[3f32.ln(), 0.0], 1) - 4f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert_eq!(log_sum_exp(&[1000.0, 1000.0]), 1000.0 + std::f64::consts::LN_2);
    }

    #[test]
    fn the_first_of_equal_logits_is_picked() {
        assert_eq!(largest(&[1.0, 3.0, 3.0]), 1);
    }
}
