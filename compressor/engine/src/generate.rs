//! Greedy generation: always the most likely token.

use compressor_format::Positions;

use crate::engine::Engine;
use crate::forward::{Logits, Sequence};
use crate::{Cache, Result};

/// Sequences that go through the model together: enough to read each weight once for many tokens, few enough to keep their caches
/// near. Fixed, so that the number of threads changes no logit.
const SEQUENCES_TOGETHER: usize = 64;

/// Continues `prompt` with the most likely token, again and again, the lowest id where two are equally likely.
///
/// Ends after `max_new` tokens, with a token of `stop`, which is not returned, or where the model's learned positions end.
///
/// # Errors
/// As [`Engine::forward`]: an empty prompt, an unknown token, a prompt of more tokens than learned positions.
pub fn greedy(engine: &Engine, prompt: &[u32], max_new: usize, stop: &[u32]) -> Result<Vec<u32>> {
    let mut cache = engine.cache(prompt.len().saturating_add(max_new));
    let mut generated = Vec::new();
    let mut logits = engine.forward(&mut cache, prompt, Logits::Last)?;
    while generated.len() < max_new {
        let token = most_likely(&logits);
        if stop.contains(&token) {
            break;
        }
        generated.push(token);
        if cache.tokens >= positions(engine) {
            break;
        }
        if generated.len() < max_new {
            logits = engine.forward(&mut cache, &[token], Logits::Last)?;
        }
    }
    Ok(generated)
}

/// [`greedy`] for many prompts, the continuations in their order; they are run together and on all threads.
///
/// # Errors
/// As [`greedy`], for the first prompt that fails.
pub fn generate_batch(engine: &Engine, prompts: &[Vec<u32>], max_new: usize, stop: &[u32]) -> Result<Vec<Vec<u32>>> {
    // One group after the other: threads share the work inside a pass, and groups beside each other would nest on their stacks.
    let mut continued = Vec::with_capacity(prompts.len());
    for group in prompts.chunks(SEQUENCES_TOGETHER) {
        continued.extend(continue_together(engine, group, max_new, stop)?);
    }
    Ok(continued)
}

/// One sequence of several that are continued in step.
struct Running {
    /// Which prompt it continues.
    index: usize,
    cache: Cache,
    /// What the next pass appends: the prompt, then one token at a time.
    tokens: Vec<u32>,
}

fn continue_together(engine: &Engine, prompts: &[Vec<u32>], max_new: usize, stop: &[u32]) -> Result<Vec<Vec<u32>>> {
    let vocab_size = engine.architecture().vocab_size;
    let start = |(index, prompt): (usize, &Vec<u32>)| Running { index, cache: engine.cache(0), tokens: prompt.clone() };
    let mut running: Vec<Running> = prompts.iter().enumerate().map(start).collect();
    let mut generated = vec![Vec::new(); prompts.len()];
    for _ in 0..max_new {
        if running.is_empty() {
            break;
        }
        let mut sequences: Vec<Sequence<'_>> =
            running.iter_mut().map(|Running { cache, tokens, .. }| Sequence { cache, tokens }).collect();
        let logits = engine.forward_batch(&mut sequences, Logits::Last)?;
        let mut rows = logits.chunks_exact(vocab_size);
        running.retain_mut(|running| {
            let token = most_likely(rows.next().expect("one row for each sequence"));
            let goes_on = !stop.contains(&token);
            if goes_on {
                generated[running.index].push(token);
                running.tokens = vec![token];
            }
            goes_on && running.cache.tokens < positions(engine)
        });
    }
    Ok(generated)
}

/// Tokens that a sequence can have: rotary positions do not end.
fn positions(engine: &Engine) -> usize {
    match engine.architecture().positions {
        Positions::Learned => engine.architecture().max_position_embeddings,
        Positions::Rotary { .. } => usize::MAX,
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
