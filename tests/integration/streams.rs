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

/// A checkpoint of letters with so wide a model that its file has many pages.
#[cfg(target_os = "linux")]
fn wide_model(bench: &Bench) {
    use compressor_format::{Checkpoint, Dtype, Weights};
    crate::export::dense(bench);
    let mut architecture = Checkpoint::open(&bench.path("dense")).unwrap().architecture().clone();
    architecture.hidden_size = 256;
    architecture.layers.iter_mut().for_each(|layer| layer.intermediate_size = 2048);
    fs_err::create_dir(bench.path("wide")).unwrap();
    Weights::random(architecture, 1).write(&bench.path("wide"), Dtype::F32).unwrap();
    fs_err::copy(bench.path("dense/tokenizer.json"), bench.path("wide/tokenizer.json")).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_that_is_cut_short_while_it_is_read_ends_the_command_with_a_reason() {
    let bench = Bench::new();
    wide_model(&bench);
    bench.write("text.txt", &"compressor".repeat(20_000));
    let eval = ["eval", "wide", "--text", "text.txt", "--windows", "3000", "--window", "64", "--score-from", "1"];
    let child = bench.command(&eval).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let maps = format!("/proc/{}/maps", child.id());
    for _ in 0..3000 {
        if fs_err::read_to_string(&maps).unwrap().contains("wide/model.safetensors") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    let file = fs_err::OpenOptions::new().write(true).open(bench.path("wide/model.safetensors")).unwrap();
    file.set_len(1000).unwrap();
    let ran = Ran(child.wait_with_output().unwrap()).expect(2);
    let said = "error: a file was cut short or could no longer be read while it was in use: another program changed it, or its disk failed; \
                leave the files of a model as they are while it works\n";
    assert_eq!(ran.stderr(), said);
}

#[test]
fn the_outcome_stands_in_words_and_in_colour_where_it_is_asked_for() {
    let bench = bench();
    let verify = ["verify", "artifact", "--artifact-bytes", "1 kB"];
    let plain = bench.run(&verify).expect(1).stdout();
    let files = fs_err::read_dir(bench.path("artifact")).unwrap().map(Result::unwrap);
    // The record of the command that made it is no part of it.
    let bytes: u64 = files.filter(|file| file.file_name() != ".compressor.json").map(|file| file.metadata().unwrap().len()).sum();
    let beyond = format!("{:.1} kB", (bytes - 1000) as f64 / 1e3);
    assert!(plain.ends_with(&format!("\n1 of 3 limits exceeded: artifact bytes by {beyond}\n")), "{plain}");
    assert!(plain.contains("  FAILED\n") && !plain.contains('\u{1b}'), "{plain:?}");
    let coloured = bench.run(&[&verify[..], &["--color", "always"]].concat()).expect(1).stdout();
    assert!(
        coloured.contains("\u{1b}[1;31mFAILED\u{1b}[0m\n") && coloured.contains("\u{1b}[32mpassed\u{1b}[0m\n"),
        "{coloured:?}"
    );
    let asked = |name: &str, value: &str| {
        Ran(bench.command(&verify).env(name, value).output().unwrap()).expect(1).stdout().contains('\u{1b}')
    };
    assert!(asked("CLICOLOR_FORCE", "1") && !asked("NO_COLOR", "1") && !asked("CLICOLOR_FORCE", "0"));
    let both = Ran(bench.command(&verify).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output().unwrap()).expect(1).stdout();
    assert!(!both.contains('\u{1b}'), "{both:?}");
    let kept = bench.run(&["verify", "artifact"]).expect(0).stdout();
    assert!(kept.ends_with("\nall 2 limits are kept\n"), "{kept}");
}

#[test]
fn scripts_read_why_a_command_could_not_run() {
    let bench = bench();
    let read = |arguments: &[&str]| -> serde_json::Value {
        let ran = bench.run(arguments).expect(2);
        assert!(ran.stderr().starts_with("error: "), "{}", ran.stderr());
        serde_json::from_str(&ran.stdout()).unwrap()
    };
    let missing = "failed to open file `nothing/config.json`: No such file or directory (os error 2)";
    assert_eq!(read(&["--json", "inspect", "nothing"]), serde_json::json!({ "error": missing }));
    bench.write("wrong.toml", &SHORT.replace("seed = 3", "sead = 3"));
    let message = "unknown key `sead`, did you mean `seed`?";
    let hint = "known here: name, seed, dataset, text, output, model, stage, budget";
    let expected = serde_json::json!({
        "error": message, "file": "wrong.toml", "mistakes": [{ "message": message, "line": 2, "hint": hint }]
    });
    assert_eq!(read(&["plan", "wrong.toml", "--json"]), expected);
    assert_eq!(read(&["plan", "--jsom", "--json"])["error"], "unexpected argument '--jsom' found");
    // Without the flag, standard output stays empty.
    assert_eq!(bench.run(&["plan", "wrong.toml"]).expect(2).stdout(), "");
}

#[test]
fn a_hundred_mistakes_are_counted() {
    let bench = bench();
    let unknown: String = (0..100).map(|index| format!("key_{index} = 1\n")).collect();
    bench.write("wrong.toml", &format!("{unknown}{SHORT}"));
    let said = bench.run(&["plan", "wrong.toml"]).expect(2).stderr();
    assert_eq!(said.matches("error: unknown key").count(), 50, "{said}");
    assert!(said.ends_with("error: and 50 more mistakes: is this a recipe? (wrong.toml)\n"), "{said}");
}

/// Names as long as they come in tables.
const LONG: &str = r#"name = "a-long-chain"
dataset = "letters.toml"
[model]
path = "Llama-of-letters-2026-10-31-Instruct"
[[stage]]
[stage.distill]
steps = 2
batch_size = 1
sequence_length = 64
student.layers = 1
[[stage]]
[stage.quantize]
bits = 4
group_size = 8
symmetric = false
method = "gptq"
scaling = "awq"
calibration_tokens = 64
[[stage]]
[stage.learn_scales]
steps = 2
teacher = "model"
batch_size = 1
sequence_length = 64
[[stage]]
[stage.verify]
windows = 2
window = 32
first_scored = 16
"#;

#[test]
fn tables_fit_eighty_columns_whatever_the_names() {
    let bench = Bench::new();
    crate::export::dense(&bench);
    fs_err::rename(bench.path("dense"), bench.path("Llama-of-letters-2026-10-31-Instruct")).unwrap();
    let config = bench.path("Llama-of-letters-2026-10-31-Instruct/config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    fs_err::write(&config, text.replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 256")).unwrap();
    bench.write("letters.toml", "[text]\ntrain = \"letters\"\nvalid = \"letters\"\ntest = \"letters\"\n");
    bench.write("letters", &"compressor".repeat(1000));
    bench.write("long.toml", LONG);
    let fits = |shown: &str| {
        for line in shown.lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}\n{shown}", line.chars().count());
        }
    };
    let planned = bench.run(&["plan", "long.toml"]).expect(0).stdout();
    fits(&planned);
    assert!(
        planned.contains("\nwill be written to runs/a-long-chain; ~ is an estimate, artifact bytes are exact\n"),
        "{planned}"
    );
    let ran = bench.run(&["run", "long.toml"]).expect(0).stdout();
    // What a step is measured against may be a sentence; tables are rows.
    fits(&ran.lines().take_while(|line| !line.starts_with("ratio: ")).map(|line| format!("{line}\n")).collect::<String>());
}
