//! The `compressor` command.

mod arguments;
mod bench;
mod commands;
mod failure;
mod progress;
mod show;
mod stages;
mod trainer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command};
use crate::failure::{Ending, Failure};

fn main() -> ExitCode {
    compressor_train::tune_allocator();
    let arguments = Arguments::parse();
    log(arguments.verbose);
    match dispatch(arguments.command) {
        Ok(Ending::Passed) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::from(1),
        // A reader that has seen enough (`| head`) is no failure.
        Err(Failure::Other(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Command) -> Result<Ending, Failure> {
    match command {
        Command::Run(arguments) => commands::run(&arguments),
        Command::Plan(arguments) => commands::plan(&arguments),
        Command::Verify(arguments) => commands::verify(&arguments),
        Command::Eval(arguments) => commands::eval(&arguments),
        Command::Generate(arguments) => commands::generate(&arguments),
        Command::Inspect(arguments) => commands::inspect(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Import(arguments) => commands::import(&arguments),
        Command::Train(arguments) => stages::train(&arguments),
        Command::Distill(arguments) => stages::distill(&arguments),
        Command::Prune(arguments) => stages::prune(&arguments),
        Command::Quantize(arguments) => stages::quantize(&arguments),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "compressor", &mut std::io::stdout());
            Ok(Ending::Passed)
        }
    }
}

/// Warnings always, more with `-v`; `RUST_LOG` overrides.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().with_target(false).init();
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe))
}
