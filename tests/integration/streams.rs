//! Standard output and standard error that can't be written, or that nobody reads.

use std::process::{Command, Stdio};

use crate::command::{Bench, Ran};
use crate::export::quantized;

/// A recipe of two short stages.
const SHORT: &str = r#"name = "short"
seed = 3
dataset = "datasets/home-commands.toml"

[model.new]
vocab_size = 320
hidden_size = 32
layers = 1
heads = 2
kv_heads = 1
intermediate_size = 64
max_position_embeddings = 256

[[stage]]
[stage.train]
steps = 2
batch_size = 1
sequence_length = 256
warmup_steps = 1

[[stage]]
[stage.quantize]
bits = 8
group_size = 32
"#;

/// What a stream of a child is.
#[derive(Clone, Copy, Debug)]
enum Stream {
    /// Read to its end.
    Read,
    /// A pipe whose reader is gone: `| true`.
    Closed,
    /// A full disk.
    #[cfg(target_os = "linux")]
    Full,
}

impl Stream {
    fn end(self) -> Stdio {
        match self {
            Self::Read => Stdio::piped(),
            Self::Closed => std::io::pipe().unwrap().1.into(),
            #[cfg(target_os = "linux")]
            Self::Full => fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap().into_file().into(),
        }
    }
}

/// Runs with these ends of standard output and standard error.
fn run(mut command: Command, [stdout, stderr]: [Stream; 2]) -> Ran {
    Ran(command.stdin(Stdio::null()).stdout(stdout.end()).stderr(stderr.end()).spawn().unwrap().wait_with_output().unwrap())
}

fn bench() -> Bench {
    let bench = Bench::new();
    quantized(&bench, "f16");
    bench.write("short.toml", SHORT);
    bench
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let bench = bench();
    let commands: &[(&[&str], i32)] = &[
        (&["--help"], 0),
        (&["--version"], 0),
        (&["completions", "zsh"], 0),
        (&["plan", "short.toml"], 0),
        (&["plan", "short.toml", "--json"], 0),
        (&["inspect", "artifact", "--tensors"], 0),
        (&["verify", "artifact"], 0),
        (&["verify", "artifact", "--artifact-bytes", "1 kB"], 1),
        (&["bench", "artifact", "--generate-tokens", "2", "--profile"], 0),
        (&["generate", "dense", "-p", "compressor", "-n", "3"], 0),
        (&["generate", "dense", "-p", "compressor", "-n", "3", "--ids"], 0),
        (&["export", "artifact", "a.gguf"], 0),
        (&["delta", "dense", "artifact", "d.delta", "--json"], 0),
        (&["plan", "nothing.toml"], 2),
        (&["plan"], 2),
    ];
    for (arguments, code) in commands {
        let closed = run(bench.command(arguments), [Stream::Closed, Stream::Read]).expect(*code);
        assert!(!closed.stderr().contains("standard output"), "{arguments:?}: {}", closed.stderr());
        run(bench.command(arguments), [Stream::Closed, Stream::Closed]).expect(*code);
        run(bench.command(arguments), [Stream::Read, Stream::Closed]).expect(*code);
    }
}

#[test]
fn a_generation_that_nobody_reads_ends() {
    let bench = bench();
    let endless = ["generate", "dense", "-p", "compressor", "-n", "100000000", "--ignore-end", "--prompt-cache", "cache"];
    run(bench.command(&endless), [Stream::Closed, Stream::Read]).expect(0);
    assert!(bench.path("cache").is_file(), "the prompt was computed, and is kept");
}

#[test]
fn a_run_whose_progress_nobody_reads_goes_on() {
    let bench = bench();
    run(bench.command(&["run", "short.toml", "-v"]), [Stream::Closed, Stream::Closed]).expect(0);
    assert!(bench.path("runs/short/report.html").is_file());
    let again = bench.run(&["run", "short.toml"]).expect(0);
    assert_eq!(again.stderr().matches("finished before, inputs unchanged").count(), 2, "{}", again.stderr());
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_can_not_be_written_are_an_error_and_what_was_computed_is_kept() {
    let bench = bench();
    let said = "error: standard output: No space left on device (os error 28); files that the command writes are complete\n";
    for arguments in [
        ["verify", "artifact"].as_slice(),
        &["verify", "artifact", "--json"],
        &["--help"],
        &["completions", "bash"],
        &["generate", "dense", "-p", "compressor", "-n", "3"],
    ] {
        assert_eq!(run(bench.command(arguments), [Stream::Full, Stream::Read]).expect(2).stderr(), said, "{arguments:?}");
        run(bench.command(arguments), [Stream::Full, Stream::Full]).expect(2);
    }
    let ran = run(bench.command(&["run", "short.toml"]), [Stream::Full, Stream::Read]).expect(2);
    assert!(ran.stderr().ends_with(said), "{}", ran.stderr());
    assert!(bench.path("runs/short/report.html").is_file());
    // The verb has cleared up behind itself, and the folder is whole.
    let ran = run(bench.command(&["quantize", "dense", "out", "--bits", "8"]), [Stream::Full, Stream::Read]).expect(2);
    assert!(ran.stderr().ends_with(&format!("written to out\n{said}")), "{}", ran.stderr());
    assert!(!bench.path(".out.compressor").exists());
    bench.run(&["verify", "out"]).expect(0);
    // Nothing stands on standard output here, and standard error is for progress.
    run(bench.command(&["delta", "dense", "artifact", "d.delta"]), [Stream::Full, Stream::Full]).expect(0);
    assert!(bench.path("d.delta").is_file());
    run(bench.command(&["plan", "nothing.toml"]), [Stream::Full, Stream::Full]).expect(2);
}

#[cfg(unix)]
#[test]
fn streams_that_are_not_there_change_nothing() {
    let bench = bench();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" verify artifact >&- 2>&-", env!("CARGO_BIN_EXE_compressor")]).current_dir(bench.path(""));
    run(command, [Stream::Read, Stream::Read]).expect(0);
}
