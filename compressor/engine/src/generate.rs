//! Generation: one token after the other, picked by a [`Sampler`], or always the most likely one.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::engine::Engine;
use crate::forward::{Logits, Sequence};
use crate::sample::{Sampler, most_likely};
use crate::{Cache, Result};

/// Sequences that go through the model together: enough to read each weight once for many tokens, few enough to keep their caches
/// near. Fixed, so that the number of threads changes no logit.
const SEQUENCES_TOGETHER: usize = 64;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a token of `stop`, which is not handed out.
    Stop,
    /// After `max_new` tokens, or where the model's learned positions or its window end.
    Length,
    /// The caller had enough.
    Broken,
}

/// Continues `prompt` token by token, and hands each one to `take` before the next is computed.
///
/// `sampler` sees the prompt and every token. Ends as [`Finish`] says.
///
/// # Errors
/// As [`Engine::forward`]: an empty prompt, an unknown token, a prompt of more tokens than the model takes.
pub fn generate(
    engine: &Engine,
    prompt: &[u32],
    max_new: usize,
    stop: &[u32],
    sampler: &mut Sampler,
    take: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Finish> {
    let mut cache = engine.cache(prompt.len().saturating_add(max_new));
    generate_on(engine, &mut cache, prompt, max_new, stop, sampler, take)
}

/// [`generate`] on a cache that has the first tokens of `prompt`, or none. The last one is computed in any case: what comes after it
/// is asked for. The cache has the whole prompt afterwards, and what was generated.
///
/// # Errors
/// As [`generate`], and [`crate::Error::Cache`].
pub fn generate_on(
    engine: &Engine,
    cache: &mut Cache,
    prompt: &[u32],
    max_new: usize,
    stop: &[u32],
    sampler: &mut Sampler,
    mut take: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Finish> {
    cache.truncate(prompt.len().saturating_sub(1));
    let mut logits = engine.forward(cache, &prompt[cache.tokens()..], Logits::Last)?;
    sampler.see(prompt);
    for generated in 1..=max_new {
        let token = sampler.pick(&mut logits);
        if stop.contains(&token) {
            return Ok(Finish::Stop);
        }
        if take(token).is_break() {
            return Ok(Finish::Broken);
        }
        if generated == max_new || cache.tokens() >= positions(engine) {
            break;
        }
        sampler.see(&[token]);
        logits = engine.forward(cache, &[token], Logits::Last)?;
    }
    Ok(Finish::Length)
}

/// Continues `prompt` with the most likely token, again and again, the lowest id where two are equally likely.
///
/// Ends after `max_new` tokens, with a token of `stop`, which is not returned, or where the model's learned positions or its window end.
///
/// # Errors
/// As [`generate`].
pub fn greedy(engine: &Engine, prompt: &[u32], max_new: usize, stop: &[u32]) -> Result<Vec<u32>> {
    let mut generated = Vec::new();
    generate(engine, prompt, max_new, stop, &mut Sampler::greedy(), |token| {
        generated.push(token);
        ControlFlow::Continue(())
    })?;
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

/// Tokens that a sequence can have.
fn positions(engine: &Engine) -> usize {
    engine.architecture().most_tokens().unwrap_or(usize::MAX)
}
