//! The `compressor` command.

mod arguments;
mod bench;
mod commands;
mod delta;
mod export;
mod failure;
mod generate;
mod interrupt;
mod profile;
mod progress;
mod prompt_cache;
mod show;
mod stages;
mod trainer;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command};
use crate::failure::{Ending, Failure};

fn main() -> ExitCode {
    compressor_train::tune_allocator();
    let arguments = Arguments::parse();
    log(arguments.verbose);
    let output = Output { json: arguments.json, threads: arguments.threads.map(usize::from) };
    output.limit_threads();
    match dispatch(arguments.command, output) {
        Ok(Ending::Passed) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::from(1),
        Ok(Ending::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        // A reader that has seen enough (`| head`) is no failure.
        Err(Failure::Other(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Other(error)) if was_stopped(&error) => {
            eprintln!("{error:#}; the same command goes on from there");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Command, output: Output) -> Result<Ending, Failure> {
    interrupt::listen()?;
    match command {
        Command::Run(arguments) => commands::run(&arguments, output),
        Command::Plan(arguments) => commands::plan(&arguments, output),
        Command::Verify(arguments) => commands::verify(&arguments, output),
        Command::Eval(arguments) => commands::eval(&arguments, output),
        Command::Generate(arguments) => generate::generate(&arguments, output),
        Command::Inspect(arguments) => commands::inspect(&arguments, output),
        Command::Bench(arguments) => bench::bench(&arguments, output),
        Command::Import(arguments) => commands::import(&arguments, output),
        Command::Export(arguments) => export::export(&arguments, output),
        Command::Delta(arguments) => delta::delta(&arguments, output),
        Command::Apply(arguments) => delta::apply(&arguments, output),
        Command::Train(arguments) => stages::train(&arguments, output),
        Command::Distill(arguments) => stages::distill(&arguments, output),
        Command::Prune(arguments) => stages::prune(&arguments, output),
        Command::Quantize(arguments) => stages::quantize(&arguments, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "compressor", &mut std::io::stdout());
            Ok(Ending::Passed)
        }
    }
}

/// How every command gives its result and how much of the machine it takes.
#[derive(Clone, Copy, Debug)]
struct Output {
    /// JSON instead of text on stdout.
    json: bool,
    threads: Option<usize>,
}

impl Output {
    /// Rayon's pool is made on first use; this comes before.
    fn limit_threads(self) {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
            pool.expect("nothing has used the pool before the first line of main");
        }
    }

    fn options(self, engine: arguments::EngineOptions) -> compressor_engine::Options {
        use compressor_engine::{ActivationType, KvType};
        compressor_engine::Options {
            threads: self.threads,
            kernels: None,
            activations: match engine.activations {
                arguments::ActivationType::Int8 => ActivationType::Int8,
                arguments::ActivationType::F32 => ActivationType::F32,
            },
            kv_type: match engine.kv_dtype {
                arguments::KvType::F32 => KvType::F32,
                arguments::KvType::F16 => KvType::F16,
                arguments::KvType::Int8 => KvType::Int8,
            },
        }
    }
}

/// Warnings always, with `-v` why steps are done or skipped and what a prompt cache saved, with `-vv` what libraries say; `RUST_LOG`
/// overrides.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    format.without_time().with_target(false).init();
}

fn was_stopped(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(compressor_pipeline::Error::Trainer(cause)) => {
            matches!(cause.downcast_ref(), Some(compressor_train::Error::Stopped { .. }))
        }
        _ => false,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe))
}
