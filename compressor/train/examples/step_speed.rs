//! How long a distillation step takes: one teacher forward and one student step, as one JSON object.
//!
//!     cargo run --locked --release -p compressor-train --example step_speed -- [--teacher-hidden 256 …] [--batch 8] [--sequence 128]
//!
//! The counterpart of `benches/torch_step.py`, with its flags and its output: every size is given for `--teacher-…` and `--student-…`
//! (hidden, layers, heads, kv-heads, ff). A token is a position of the batch. `--masked 0.5` masks that part of each row's beginning,
//! as a prompt is. `--device` is one of this build's.

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use compressor_format::{Batch, Family, StepLosses, Weights};
use compressor_train::{Descent, Objective, Training, train, tune_allocator};
use serde_json::json;

/// Every flag with its default, those of the sizes as `torch_step.py` has them.
const FLAGS: [(&str, &str); 20] = [
    ("teacher-hidden", "256"),
    ("teacher-layers", "6"),
    ("teacher-heads", "8"),
    ("teacher-kv-heads", "4"),
    ("teacher-ff", "768"),
    ("student-hidden", "128"),
    ("student-layers", "4"),
    ("student-heads", "4"),
    ("student-kv-heads", "2"),
    ("student-ff", "384"),
    ("vocab", "2048"),
    ("batch", "8"),
    ("sequence", "128"),
    ("masked", "0"),
    ("temperature", "2"),
    ("kd-ratio", "0.5"),
    ("steps", "7"),
    ("warm-up", "2"),
    ("objective", "distill"),
    ("device", "cpu"),
];

struct Random {
    rows: usize,
    length: usize,
    vocab: usize,
    masked: f64,
}

impl Random {
    fn batch(&self, index: u64) -> Batch {
        let mut state = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut token = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 33) as usize % self.vocab) as u32
        };
        let elements = self.rows * self.length;
        let masked = (self.masked * self.length as f64).round() as usize;
        Batch {
            tokens: (0..elements).map(|_| token()).collect(),
            targets: (0..elements).map(|_| token()).collect(),
            weights: (0..elements).map(|i| if i % self.length < masked { 0.0 } else { 1.0 }).collect(),
            rows: self.rows,
            length: self.length,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    tune_allocator();
    let mut flags: HashMap<&str, String> = FLAGS.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let name = argument.strip_prefix("--").and_then(|name| FLAGS.iter().find(|(known, _)| *known == name));
        let (name, _) = name.ok_or_else(|| format!("`{argument}` is not a flag; see the head of this file"))?;
        flags.insert(name, arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?);
    }
    let number = |name: &str| -> Result<f64, String> { flags[name].parse().map_err(|_| format!("--{name} needs a number")) };
    let size = |name: &str| number(name).map(|value| value as usize);
    let model = |role: &str, seed: u64| -> Result<Weights, Box<dyn Error>> {
        let of = |name: &str| size(&format!("{role}-{name}"));
        let config = json!({
            "model_type": "llama", "vocab_size": size("vocab")?, "hidden_size": of("hidden")?, "num_hidden_layers": of("layers")?,
            "num_attention_heads": of("heads")?, "num_key_value_heads": of("kv-heads")?, "intermediate_size": of("ff")?,
            "max_position_embeddings": size("sequence")?, "tie_word_embeddings": true
        });
        Ok(Weights::random(Family::read(&config, Path::new(role))?, seed))
    };
    let (teacher, student) = (model("teacher", 1)?, model("student", 2)?);
    let [teacher_parameters, student_parameters] = [&teacher, &student].map(|weights| weights.architecture().parameters());
    let batches = Random { rows: size("batch")?, length: size("sequence")?, vocab: size("vocab")?, masked: number("masked")? };
    let (warm_up, steps) = (size("warm-up")?, size("steps")?);
    let training = Training { steps: (warm_up + steps) as u64, learning_rate: 3e-4, warmup_steps: 0, ..Training::default() };
    let objective = match flags["objective"].as_str() {
        "cross-entropy" => Objective::CrossEntropy,
        _ => Objective::Distill {
            teacher: &teacher,
            vocab_size: teacher.architecture().vocab_size,
            temperature: number("temperature")? as f32,
            kd_ratio: number("kd-ratio")? as f32,
        },
    };
    let mut seen: Vec<StepLosses> = Vec::new();
    let begun = Instant::now();
    let batch = |index| batches.batch(index);
    let (device, state_folder, fingerprint) = (flags["device"].as_str(), None, "");
    let descent =
        Descent { objective, training: &training, batches: &batch, device, state_folder, fingerprint, before_save: &|| Ok(()) };
    train(student, None, &descent, &mut |losses| {
        seen.push(*losses);
        ControlFlow::Continue(())
    })?;
    let total_seconds = begun.elapsed().as_secs_f64();
    let mut seconds: Vec<f64> = seen[warm_up..].iter().map(|losses| losses.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let result = json!({
        "tokens_per_second": (batches.rows * batches.length) as f64 / median,
        "step_seconds": median,
        "step_seconds_min": seconds[0],
        "step_seconds_max": seconds[seconds.len() - 1],
        "last_loss": seen[seen.len() - 1].loss,
        "teacher_parameters": teacher_parameters,
        "student_parameters": student_parameters,
        "total_seconds": total_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "settings": flags,
    });
    println!("{result}");
    Ok(())
}

/// The most memory that this process had, where Linux says so.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
