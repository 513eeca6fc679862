//! Recipe, plan, stages, report: pruning, quantizers, verification. Never Burn: training is asked of a [`Trainer`].

mod artifact;
mod change;
mod disk;
mod error;
pub mod figures;
mod fingerprint;
mod machine;
mod measure;
mod memory;
mod page;
mod plan;
mod planner;
pub mod prune;
pub mod quantize;
mod record;
mod rows;
mod run;
mod statistics;
mod trainer;
mod verify;

pub use artifact::{open_tokenizer, write_manifest};
pub use change::Change;
pub use error::Error;
pub use machine::{describe as describe_machine, peak_memory_bytes};
pub use measure::{Advances, Comparison, HeldOut, Prompt, Sequence};
pub use page::path as page_path;
pub use plan::{ModelSize, Origin, Plan, Step, measured_within};
pub use run::{Observer, Workers, run};
pub use trainer::{Distillation, Start, Trainer, TrainingJob};
pub use verify::{Bench, BenchResult, Findings, Subject, verify, verify_alone};

/// The engine takes as many threads as the rest of the program.
fn engine_options() -> compressor_engine::Options {
    compressor_engine::Options { threads: Some(rayon::current_num_threads()), ..compressor_engine::Options::default() }
}

/// The same, as something is to be measured.
fn engine_options_of(measured: &compressor_format::Verify) -> compressor_engine::Options {
    use compressor_engine::ActivationType;
    use compressor_format::Multiplied;
    let activations = match measured.activations {
        Multiplied::Int8 => ActivationType::Int8,
        Multiplied::F32 => ActivationType::F32,
    };
    compressor_engine::Options { activations, ..engine_options() }
}
