//! Where the engine spends its time, as a table.

use std::collections::BTreeMap;

use compressor_engine::{Cache, Cost, Engine, Logits, Operation, Profile, memory_speed};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::out::outln;

/// Profiles of reading a prompt and of generating.
pub(crate) struct Profiles {
    prompt: Measured,
    generating: Measured,
    /// Bytes a second.
    memory_limit: f64,
    threads: usize,
}

struct Measured {
    profile: Profile,
    /// Passes through the model.
    passes: usize,
    tokens: usize,
}

impl Profiles {
    /// Runs the prompt and some tokens after it.
    pub(crate) fn measure(engine: &Engine, cache: &mut Cache, prompt: &[u32], generated: usize) -> Result<Self, Failure> {
        cache.truncate(0);
        let mut profile = Profile::start();
        engine.forward_observed(cache, prompt, Logits::Last, &mut profile)?;
        let prompt_profile = Measured { profile, passes: 1, tokens: prompt.len() };
        let mut profile = Profile::start();
        for token in (0..generated).map(|index| prompt[index % prompt.len()]) {
            profile.resume();
            engine.forward_observed(cache, &[token], Logits::Last, &mut profile)?;
        }
        let threads = engine.threads();
        let generating = Measured { profile, passes: generated, tokens: generated };
        Ok(Self { prompt: prompt_profile, generating, memory_limit: memory_speed(threads)?, threads })
    }

    /// Prints both, by operation and by layer.
    pub(crate) fn show(&self) {
        let gigabytes = self.memory_limit / 1e9;
        outln!();
        outln!("memory limit         {gigabytes:>10.1} GB/s read by {} thread(s), measured now", self.threads);
        let parts = [("reading the prompt", &self.prompt), ("generating", &self.generating)];
        for (name, measured) in parts {
            let all = measured.sum(|_, _| ()).remove(&()).unwrap_or_default();
            outln!();
            outln!("{name}, {} token(s)", measured.tokens);
            let header = ["ms/token", "share", "MB/pass", "GB/s", "of limit"];
            let [time, share, bytes, speed, limit] = header;
            outln!("{:<22}{time:>11}{share:>9}{bytes:>11}{speed:>9}{limit:>10}", "operation");
            for (operation, cost) in measured.sum(|_, operation| operation) {
                self.row(measured, operation.name(), cost, all);
            }
            self.row(measured, "all", all, all);
            let ((layer, operation), cost) = measured.slowest();
            let place = layer.map_or_else(|| "outside the layers".to_owned(), |layer| format!("layer {layer}"));
            let per_token = milliseconds(cost) / measured.tokens as f64;
            outln!("slowest: {}, {place}: {per_token:.4} ms a token", operation.name());
        }
        outln!();
        outln!("generating, by layer");
        outln!("{:<22}{:>11}{:>9}{:>11}{:>9}{:>10}", "layer", "ms/token", "share", "MB/pass", "GB/s", "of limit");
        let all = self.generating.sum(|_, _| ()).remove(&()).unwrap_or_default();
        for (layer, cost) in self.generating.sum(|layer, _| layer) {
            let name = layer.map_or_else(|| "embedding, head".to_owned(), |layer| layer.to_string());
            self.row(&self.generating, &name, cost, all);
        }
    }

    fn row(&self, measured: &Measured, name: &str, cost: Cost, all: Cost) {
        let per_token = milliseconds(cost) / measured.tokens as f64;
        let share = 100.0 * cost.time.as_secs_f64() / all.time.as_secs_f64();
        let megabytes = cost.bytes as f64 / measured.passes as f64 / 1e6;
        let speed = cost.bytes as f64 / cost.time.as_secs_f64();
        let (speed, limit) = match cost.bytes {
            0 => (String::new(), String::new()),
            _ => (format!("{:.1}", speed / 1e9), format!("{:.0} %", 100.0 * speed / self.memory_limit)),
        };
        outln!("{name:<22}{per_token:>11.4}{share:>7.1} %{megabytes:>11.2}{speed:>9}{limit:>10}");
    }

    /// The same figures for programs.
    pub(crate) fn to_json(&self) -> Value {
        let of = |measured: &Measured| -> Value {
            let operations: Vec<Value> = measured
                .profile
                .operations()
                .map(|(layer, operation, cost)| {
                    json!({
                        "layer": layer, "operation": operation.name(), "milliseconds": milliseconds(cost), "bytes": cost.bytes,
                    })
                })
                .collect();
            json!({ "tokens": measured.tokens, "operations": operations })
        };
        json!({
            "memory_bytes_per_second": self.memory_limit, "threads": self.threads, "prompt": of(&self.prompt),
            "generating": of(&self.generating),
        })
    }
}

impl Measured {
    /// Costs added up by what `key` says.
    fn sum<K: Ord>(&self, key: impl Fn(Option<usize>, Operation) -> K) -> BTreeMap<K, Cost> {
        let mut sums = BTreeMap::new();
        for (layer, operation, cost) in self.profile.operations() {
            *sums.entry(key(layer, operation)).or_insert_with(Cost::default) += cost;
        }
        sums
    }

    fn slowest(&self) -> ((Option<usize>, Operation), Cost) {
        let slowest = self.sum(|layer, operation| (layer, operation)).into_iter().max_by_key(|(_, cost)| cost.time);
        slowest.expect("a pass has operations")
    }
}

fn milliseconds(cost: Cost) -> f64 {
    1000.0 * cost.time.as_secs_f64()
}
