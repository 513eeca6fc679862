//! The `compressor` command.

mod about;
mod arguments;
mod bench;
mod changed_file;
mod commands;
mod delta;
mod export;
mod failure;
mod generate;
mod interrupt;
mod out;
mod profile;
mod progress;
mod prompt_cache;
mod render;
mod show;
mod size_limit;
mod stages;
mod trainer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command};
use crate::failure::{Ending, Failure};
use crate::out::errln;

fn main() -> ExitCode {
    if render::is_asked() {
        return render::answer();
    }
    compressor_train::tune_allocator();
    size_limit::fail_where_files_are_limited();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            out::usage(&message);
            if message.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
                out::json(&failure::usage_json(&message)).expect("text has a JSON form");
            }
            return exit_code(if message.use_stderr() { failure::COULD_NOT_RUN } else { 0 });
        }
    };
    out::choose_colours(arguments.color);
    log(arguments.verbose);
    let output = Output { json: arguments.json, threads: arguments.threads.map(usize::from) };
    exit_code(match dispatch(arguments.command, output) {
        Ok(ending) => ending.exit_code(),
        Err(Failure::Other(error)) if was_stopped(&error) => {
            errln!("{error:#}; the same command goes on from there");
            Ending::Interrupted.exit_code()
        }
        Err(failure) => {
            failure.show();
            if output.json {
                out::json(&failure.to_json()).expect("text has a JSON form");
            }
            failure::COULD_NOT_RUN
        }
    })
}

/// The exit code of a command that ended with `code`, unless its results are missing from standard output.
fn exit_code(code: u8) -> ExitCode {
    ExitCode::from(match out::lost() {
        Some(error) => {
            out::error(format_args!("standard output: {error}; files that the command writes are complete"));
            failure::COULD_NOT_RUN
        }
        None => code,
    })
}

fn dispatch(command: Command, output: Output) -> Result<Ending, Failure> {
    interrupt::listen()?;
    changed_file::explain();
    output.start_threads()?;
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
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "compressor", &mut script);
            out::bytes(&script);
            Ok(Ending::Passed)
        }
    }
}

/// Addresses that a thread takes: its stack with the pages that guard it, the stack of its signals, and an arena of the allocator's.
const THREAD_BYTES: usize = 4 << 20;
const FEWER_THREADS: &str = "give --threads a smaller number, or raise the limits (`ulimit -u`, `ulimit -v`)";

/// How every command gives its result and how much of the machine it takes.
#[derive(Clone, Copy, Debug)]
struct Output {
    /// JSON instead of text on stdout.
    json: bool,
    threads: Option<usize>,
}

impl Output {
    /// Starts rayon's threads, which would panic on first use where they can't be started.
    fn start_threads(self) -> anyhow::Result<()> {
        // Always a number: without one, rayon takes RAYON_NUM_THREADS unchecked.
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        // A thread that starts with the last of the addresses ends the program inside the standard library, where no error can be caught.
        // So the room for all of them, the engine's own too, is asked for first; it is given back at once and never touched.
        let room = threads.saturating_mul(2).saturating_mul(THREAD_BYTES);
        if let Err(error) = Vec::<u8>::new().try_reserve_exact(room) {
            return Err(anyhow::anyhow!("could not start {threads} threads: {error}; {FEWER_THREADS}"));
        }
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|error| match self.threads {
            Some(threads) => anyhow::anyhow!("could not start {threads} threads: {error}; {FEWER_THREADS}"),
            None => anyhow::anyhow!("could not start a thread for each core: {error}; {FEWER_THREADS}"),
        })
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
    let format =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| out::Stderr).with_ansi(out::stderr_has_colours());
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
