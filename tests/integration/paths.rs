//! Paths that are no text, and things that stand under a file's name and are no file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{Bench, Ran};
use crate::export::{dense, quantized};

/// A name that is not UTF-8, and its text with a replacement character.
const ODD: &[u8] = b"odd\xff";
const SHOWN: &str = "odd\u{fffd}";

/// Runs in the bench with arguments of any bytes.
fn run(bench: &Bench, arguments: &[&[u8]]) -> Ran {
    let mut command = bench.command(&[]);
    command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    Ran(command.output().unwrap())
}

fn odd(bench: &Bench, beginning: &str) -> PathBuf {
    bench.path("").join(OsStr::from_bytes(&[beginning.as_bytes(), ODD].concat()))
}

#[test]
fn every_command_takes_paths_that_are_not_utf_8() {
    let bench = Bench::new();
    dense(&bench);
    fs_err::rename(bench.path("dense"), odd(&bench, "")).unwrap();
    bench.write("text.txt", &"the cat sat on the mat. ".repeat(40));
    let quantize: &[&[u8]] =
        &[b"quantize", ODD, b"art-odd\xff", b"--bits", b"8", b"--group-size", b"32", b"--scale-dtype", b"f16"];
    let ran = run(&bench, quantize).expect(0);
    assert!(ran.stderr().ends_with(&format!("written to art-{SHOWN}\n")), "{}", ran.stderr());
    assert!(ran.stdout().contains(&format!("\nratio: {SHOWN} in f32")), "{}", ran.stdout());
    let commands: &[&[&[u8]]] = &[
        &[b"verify", b"art-odd\xff"],
        &[b"inspect", b"art-odd\xff"],
        &[b"generate", b"art-odd\xff", b"-p", b"a", b"-n", b"2", b"--prompt-cache", b"cache-odd\xff"],
        &[b"bench", b"art-odd\xff", b"--generate-tokens", b"2"],
        &[b"eval", ODD, b"--text", b"text.txt", b"--windows", b"1", b"--window", b"16", b"--score-from", b"8"],
        &[b"prune", ODD, b"pruned-odd\xff", b"--channel-ratio", b"0.5", b"--importance", b"magnitude"],
        &[b"import", ODD, b"imp-odd\xff"],
        &[b"export", b"art-odd\xff", b"gguf-odd\xff"],
        &[b"delta", ODD, b"art-odd\xff", b"delta-odd\xff"],
        &[b"apply", ODD, b"delta-odd\xff", b"new-odd\xff"],
    ];
    for command in commands {
        run(&bench, command).expect(0);
    }
    for (command, out) in [("import", "imp2-"), ("export", "gguf2-")] {
        let model: &[u8] = if command == "import" { ODD } else { b"art-odd\xff" };
        let out_bytes = [out.as_bytes(), ODD].concat();
        let ran = run(&bench, &[b"--json", command.as_bytes(), model, &out_bytes]).expect(0);
        let json: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!(json["output"], format!("{out}{SHOWN}"), "{command}");
        assert!(odd(&bench, out).exists(), "{command}");
    }
    // Nothing was written to a name that only looks like it.
    assert!(!bench.path(SHOWN).exists() && !bench.path(&format!("art-{SHOWN}")).exists());
}

#[test]
fn a_run_goes_into_a_folder_whose_name_is_not_utf_8() {
    let bench = Bench::new();
    dense(&bench);
    bench.write("q.toml", "name = \"q\"\n[model]\npath = \"dense\"\n[[stage]]\n[stage.quantize]\nbits = 8\ngroup_size = 32\n");
    let ran = run(&bench, &[b"run", b"q.toml", b"--out", b"run-odd\xff", b"--json"]).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout()).unwrap();
    assert_eq!(report["recipe"]["output"], format!("run-{SHOWN}"));
    assert!(odd(&bench, "run-").join("report.json").is_file());
    let again = run(&bench, &[b"run", b"q.toml", b"--out", b"run-odd\xff"]).expect(0);
    assert!(again.stderr().contains("1-quantize: finished before, inputs unchanged"), "{}", again.stderr());
    let plan: Value =
        serde_json::from_str(&run(&bench, &[b"plan", b"q.toml", b"--out", b"run-odd\xff", b"--json"]).expect(0).stdout())
            .unwrap();
    assert_eq!(plan["run_folder"], format!("run-{SHOWN}"));
}

#[test]
fn a_model_in_the_current_folder_has_its_folders_name() {
    let bench = Bench::new();
    dense(&bench);
    let mut command = bench.command(&["quantize", ".", "../artifact", "--bits", "8", "--group-size", "32"]);
    let ran = Ran(command.current_dir(bench.path("dense")).output().unwrap()).expect(0);
    assert!(ran.stdout().contains("\nratio: dense in f32"), "{}", ran.stdout());
}

/// What a command says that must end at once.
fn refused(bench: &Bench, arguments: &[&str]) -> String {
    let mut command = bench.command(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{arguments:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = Ran(child.wait_with_output().unwrap()).expect(2).stderr();
    said.strip_prefix("error: ").expect("an error").trim_end().to_owned()
}

#[test]
fn pipes_and_devices_in_place_of_files_are_refused_by_name() {
    let bench = Bench::new();
    quantized(&bench, "f16");
    let pipe = |name: &str| assert!(Command::new("mkfifo").arg(bench.path(name)).status().unwrap().success());
    pipe("pipe");
    let said = "pipe: is a named pipe, not a file";
    assert_eq!(refused(&bench, &["inspect", "pipe"]), said);
    assert_eq!(refused(&bench, &["inspect", "/dev/zero"]), "/dev/zero: is a device, not a file");
    assert_eq!(refused(&bench, &["plan", "pipe"]), format!("{said} (pipe)"));
    assert_eq!(refused(&bench, &["plan", "dense"]), "dense: is a folder, not a file (dense)");
    assert_eq!(refused(&bench, &["eval", "dense", "--text", "pipe"]), said);
    assert_eq!(refused(&bench, &["eval", "dense", "--text", "/dev/zero"]), "/dev/zero: is a device, not a file");
    assert_eq!(refused(&bench, &["eval", "dense", "--dataset", "pipe"]), said);
    assert_eq!(refused(&bench, &["apply", "dense", "pipe", "new"]), said);
    assert_eq!(refused(&bench, &["generate", "dense", "-p", "a", "--prompt-cache", "pipe"]), said);
    bench.write("set.toml", "[text]\ntrain = \"pipe\"\ntest = \"pipe\"\n");
    assert_eq!(refused(&bench, &["eval", "dense", "--dataset", "set.toml"]), said);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs_err::remove_file(bench.path("dense").join(name)).unwrap();
        pipe(&format!("dense/{name}"));
        let quantize = ["generate", "dense", "-p", "a"];
        assert_eq!(refused(&bench, &quantize), format!("dense/{name}: is a named pipe, not a file"));
        fs_err::remove_file(bench.path("dense").join(name)).unwrap();
        fs_err::copy(bench.path("artifact").join(name), bench.path("dense").join(name)).unwrap();
    }
    fs_err::remove_file(bench.path("artifact/manifest.json")).unwrap();
    pipe("artifact/manifest.json");
    assert_eq!(refused(&bench, &["verify", "artifact"]), "artifact/manifest.json: is a named pipe, not a file");
}

#[test]
fn a_model_on_a_hub_is_refused_with_the_way_to_get_it() {
    let bench = Bench::new();
    let said = "org/tiny: there is no such folder, and nothing is downloaded: get it with `hf download org/tiny --local-dir tiny` and \
                give that folder";
    assert_eq!(refused(&bench, &["inspect", "org/tiny"]), said);
    assert_eq!(refused(&bench, &["generate", "org/tiny", "-p", "a"]), said);
    assert_eq!(refused(&bench, &["quantize", "org/tiny", "out", "--bits", "4"]), said);
    bench.write("q.toml", "name = \"q\"\n[model]\npath = \"org/tiny\"\n[[stage]]\n[stage.quantize]\nbits = 8\n");
    assert_eq!(refused(&bench, &["plan", "q.toml"]), format!("{said} (q.toml:3)"));
}

#[test]
fn a_companion_that_is_a_link_out_of_the_model_is_refused_before_any_work() {
    let bench = Bench::new();
    dense(&bench);
    bench.write("secret", "x");
    std::os::unix::fs::symlink("../secret", bench.path("dense/merges.txt")).unwrap();
    let target = bench.path("secret").canonicalize().unwrap();
    let said = format!(
        "dense/merges.txt: is a link to {}, outside of the model's folder: put the file itself here, or remove it",
        target.display()
    );
    assert_eq!(refused(&bench, &["quantize", "dense", "out", "--bits", "8"]), said);
    assert_eq!(refused(&bench, &["import", "dense", "out"]), said);
    assert!(!bench.path("out").exists());
    // What only reads the model reads it.
    bench.run(&["inspect", "dense"]).expect(0);
    // The links of Hugging Face's cache are followed.
    let snapshot = bench.path("hub/models--org--name/snapshots/0a1b");
    let blobs = bench.path("hub/models--org--name/blobs");
    fs_err::create_dir_all(&snapshot).unwrap();
    fs_err::create_dir_all(&blobs).unwrap();
    for (blob, name) in ["config.json", "model.safetensors", "tokenizer.json"].into_iter().enumerate() {
        fs_err::copy(bench.path("dense").join(name), blobs.join(blob.to_string())).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let cached = "hub/models--org--name/snapshots/0a1b";
    bench.run(&["quantize", cached, "out", "--bits", "8", "--group-size", "32"]).expect(0);
    assert!(!bench.path("out/tokenizer.json").is_symlink());
}

#[test]
fn names_from_files_reach_a_terminal_without_what_it_obeys() {
    let bench = Bench::new();
    bench.write("q.toml", "name = \"q\"\n[model]\npath = \"a\\u001b[31mb\\ncd\\u202e\"\n[[stage]]\n[stage.quantize]\nbits = 8\n");
    let said = refused(&bench, &["plan", "q.toml"]);
    assert!(said.contains(r"a\u{1b}[31mb\ncd\u{202e}/config.json"), "{said}");
    assert!(!said.contains(['\u{1b}', '\n', '\u{202e}']), "{said:?}");
    let ran = bench.run(&["plan", "a\u{1b}b"]).expect(2);
    assert!(ran.stderr().contains(r"a\u{1b}b"), "{}", ran.stderr());
    let ran = bench.run(&["plan", "q.toml", "a\u{1b}b"]).expect(2);
    assert!(ran.stderr().starts_with("error: unexpected argument 'a") && !ran.stderr().contains('\u{1b}'), "{:?}", ran.stderr());
}

#[test]
fn threads_that_can_not_be_started_are_an_error_with_the_way_out() {
    let bench = Bench::new();
    dense(&bench);
    let mut command = Command::new("sh");
    let limited = "ulimit -v 2000000; exec \"$0\" --threads 5000 inspect dense";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_compressor")]).current_dir(bench.path(""));
    let said = Ran(command.output().unwrap()).expect(2).stderr();
    assert!(said.starts_with("error: could not start 5000 threads: "), "{said}");
    let way_out = "; give --threads a smaller number, or raise the limits (`ulimit -u`, `ulimit -v`)\n";
    assert!(said.ends_with(way_out), "{said}");
}
