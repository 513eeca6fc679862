//! Measures time and memory of a model, in this process; a run measures artifacts by starting it as a child.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use compressor_engine::{Engine, Logits, Options};
use compressor_format::Model;
use compressor_pipeline::{Bench, BenchResult, Error};

use crate::arguments;
use crate::failure::{Ending, Failure};

/// Starts this very program on the model, so that the peak memory is the model's alone.
pub(crate) struct Child;

impl Bench for Child {
    fn bench(&self, model: &Path) -> Result<BenchResult, Error> {
        let failed = |what: String| Error::Bench { path: model.to_owned(), what };
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let output =
            Command::new(program).arg("bench").arg(model).arg("--json").output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
    }
}

pub(crate) fn bench(arguments: &arguments::Bench) -> Result<Ending, Failure> {
    let result = measure(arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&result)?);
        return Ok(Ending::Passed);
    }
    let mut sorted = result.token_milliseconds.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted.get((((sorted.len() as f64) * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or(f64::NAN);
    println!("load                 {:>10.1} ms", result.load_milliseconds);
    println!("first token          {:>10.1} ms after a prompt of {}", result.first_token_milliseconds, arguments.prompt_tokens);
    for (name, q) in [("token, p50", 0.5), ("token, p95", 0.95), ("token, p99", 0.99)] {
        println!("{name:<20} {:>10.2} ms", at(q));
    }
    println!("tokens per second    {:>10.1}", 1000.0 / at(0.5));
    match result.peak_memory_bytes {
        Some(bytes) => println!("peak memory          {:>10.1} MB", bytes as f64 / 1e6),
        None => println!("peak memory          not told by this operating system"),
    }
    Ok(Ending::Passed)
}

fn measure(arguments: &arguments::Bench) -> Result<BenchResult, Failure> {
    let started = Instant::now();
    let model = Model::open(&arguments.model)?;
    let engine = Engine::load(&model, Options { threads: arguments.threads, ..Options::default() })?;
    let load_milliseconds = milliseconds(started);
    let architecture = engine.architecture();
    let (vocab_size, most) = (architecture.vocab_size, architecture.max_position_embeddings);
    let prompt_tokens = arguments.prompt_tokens.clamp(1, most.saturating_sub(1).max(1));
    let tokens = arguments.tokens.min(most - prompt_tokens);
    // Any tokens cost the same; these spread over the embedding.
    let prompt: Vec<u32> = (0..prompt_tokens).map(|index| (index * 7919 % vocab_size) as u32).collect();
    let mut cache = engine.cache(prompt_tokens + tokens);
    let started = Instant::now();
    let mut next = largest(&engine.forward(&mut cache, &prompt, Logits::Last)?);
    let first_token_milliseconds = milliseconds(started);
    let mut token_milliseconds = Vec::with_capacity(tokens);
    for _ in 0..tokens {
        let started = Instant::now();
        next = largest(&engine.forward(&mut cache, &[next], Logits::Last)?);
        token_milliseconds.push(milliseconds(started));
    }
    let peak_memory_bytes = compressor_pipeline::peak_memory_bytes();
    Ok(BenchResult { load_milliseconds, first_token_milliseconds, token_milliseconds, peak_memory_bytes })
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
