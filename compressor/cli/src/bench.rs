//! Measures time and memory of a model, in this process; a run measures artifacts by starting it as a child.

use std::path::Path;
use std::time::Instant;

use compressor_engine::{Engine, Logits};
use compressor_pipeline::{Bench, BenchResult, Error};

use crate::Output;
use crate::arguments;
use crate::failure::{Ending, Failure};
use crate::out::outln;
use crate::profile::Profiles;
use crate::progress::Progress;
use crate::render::own_program;

/// Starts this very program on the model, so that the peak memory is the model's alone.
pub(crate) struct Child;

impl Bench for Child {
    fn bench(&self, model: &Path, tokens: usize) -> Result<BenchResult, Error> {
        let failed = |what: String| Error::Bench { path: model.to_owned(), what };
        let output = own_program()
            .map_err(|error| failed(error.to_string()))?
            .args(["bench", "--json", "--generate-tokens", &tokens.to_string(), "--"])
            .arg(model)
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(said.trim_start_matches("error: ").lines().collect::<Vec<_>>().join(", ")));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
    }
}

pub(crate) fn bench(arguments: &arguments::Bench, output: Output) -> Result<Ending, Failure> {
    let Measured { result, model_bytes, cache_bytes, profiles } = measure(arguments, output)?;
    if output.json {
        let mut json = serde_json::to_value(&result)?;
        if let Some(profiles) = profiles {
            json["profile"] = profiles.to_json();
        }
        // One line: the times of single tokens would be a page.
        outln!("{json}");
        return Ok(Ending::Passed);
    }
    let mut sorted = result.token_milliseconds.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted.get((((sorted.len() as f64) * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or(f64::NAN);
    outln!("load                 {:>10.1} ms", result.load_milliseconds);
    let first = result.first_token_milliseconds;
    outln!("first token          {first:>10.1} ms after a prompt of {}", result.prompt_tokens);
    outln!("load to first token  {:>10.1} ms", result.load_milliseconds + first);
    outln!("prompt               {:>10.1} tokens/s", result.prompt_tokens_per_second);
    outln!("generating           {:>10.1} tokens/s over {} tokens", result.generate_tokens_per_second, sorted.len());
    for (name, q) in [("token, p50", 0.5), ("token, p95", 0.95), ("token, p99", 0.99)] {
        outln!("{name:<20} {:>10.2} ms", at(q));
    }
    outln!("weights              {:>10.1} MB", model_bytes as f64 / 1e6);
    outln!("keys and values      {:>10.1} MB", cache_bytes as f64 / 1e6);
    match result.peak_memory_bytes {
        Some(bytes) => outln!("peak memory          {:>10.1} MB", bytes as f64 / 1e6),
        None => outln!("peak memory          not told by this operating system"),
    }
    if let Some(profiles) = profiles {
        profiles.show();
    }
    Ok(Ending::Passed)
}

/// Tokens of the prompt where none are asked for, and the model holds as many.
const PROMPT_TOKENS: usize = 16;

struct Measured {
    result: BenchResult,
    model_bytes: usize,
    cache_bytes: usize,
    profiles: Option<Profiles>,
}

fn measure(arguments: &arguments::Bench, output: Output) -> Result<Measured, Failure> {
    let started = Instant::now();
    let engine = Engine::open(&arguments.model, output.options(arguments.engine))?;
    let load_milliseconds = milliseconds(started);
    let architecture = engine.architecture();
    let (vocab_size, most) = (architecture.vocab_size, architecture.max_position_embeddings);
    let prompt_tokens = arguments.prompt_tokens.unwrap_or(PROMPT_TOKENS.min(most.saturating_sub(1)));
    let generated = arguments.generate_tokens;
    if prompt_tokens == 0 || generated == 0 || prompt_tokens >= most {
        let what = format!("--prompt-tokens {prompt_tokens} and --generate-tokens {generated} must be above 0");
        return Err(anyhow::anyhow!("{what}, and the prompt shorter than the {most} tokens that the model holds").into());
    }
    // Any tokens cost the same; these spread over the embedding.
    let prompt: Vec<u32> = (0..prompt_tokens).map(|index| (index * 7919 % vocab_size) as u32).collect();
    // More tokens than the model holds are generated in rounds, each after the same prompt.
    let longest = prompt_tokens.saturating_add(generated).min(most);
    let mut cache = engine.cache(longest);
    let started = Instant::now();
    engine.forward(&mut cache, &prompt, Logits::Last)?;
    let first_token_milliseconds = milliseconds(started);
    // Once more, now that code and weights are where they stay.
    cache.truncate(0);
    let started = Instant::now();
    let mut next = largest(&engine.forward(&mut cache, &prompt, Logits::Last)?);
    let prompt_milliseconds = milliseconds(started);
    let mut token_milliseconds = Vec::with_capacity(generated);
    let mut progress = Progress::new();
    for done in 1..=generated {
        if cache.tokens() == longest {
            cache.truncate(prompt_tokens);
        }
        let started = Instant::now();
        next = largest(&engine.forward(&mut cache, &[next], Logits::Last)?);
        token_milliseconds.push(milliseconds(started));
        progress.advance(done as u64, generated as u64, "tokens".to_owned());
    }
    progress.clear();
    let result = BenchResult {
        load_milliseconds,
        prompt_tokens: prompt_tokens as u64,
        first_token_milliseconds,
        prompt_tokens_per_second: 1000.0 * prompt_tokens as f64 / prompt_milliseconds,
        generate_tokens_per_second: 1000.0 * generated as f64 / token_milliseconds.iter().sum::<f64>(),
        token_milliseconds,
        peak_memory_bytes: compressor_pipeline::peak_memory_bytes(),
    };
    let (model_bytes, cache_bytes) = (engine.memory_bytes(), cache.memory_bytes());
    // After the peak was read: finding the limit takes memory of its own.
    let profiles =
        arguments.profile.then(|| Profiles::measure(&engine, &mut cache, &prompt, longest - prompt_tokens)).transpose()?;
    Ok(Measured { result, model_bytes, cache_bytes, profiles })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn largest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (index, logit)| {
            if *logit > best.1 { (index, *logit) } else { best }
        },
    );
    best.0 as u32
}
