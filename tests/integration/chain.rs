//! The whole chain: what it leaves, what a second run does, what a kill does.

use std::path::Path;
use std::time::{Duration, Instant};

use compressor_format::{Artifact, Checkpoint, Dtype, Outcome, Recipe, Report, Stage, TensorFiles};
use compressor_pipeline::figures::whole;
use compressor_pipeline::quantize::FakeQuantizer;

use crate::command::{Bench, TINY};

#[test]
fn every_stage_runs_and_a_second_run_skips_what_is_finished() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    let ran = bench.run(&["run", "tiny.toml"]).expect(0);
    assert!(ran.stdout().contains("artifact bytes"), "{}", ran.stdout());
    let report = Report::read(&bench.path("runs/tiny")).unwrap();
    assert_eq!(report.passed, Some(true));
    let names: Vec<&str> = report.stages.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["1-train", "2-distill", "3-prune", "4-distill", "5-quantize", "6-verify"]);
    assert!(report.checks.iter().all(|check| check.outcome != Outcome::Failed));
    // 2 of 3 layers, then one of two GQA groups and half of the channels.
    assert!(
        report.stages[1].parameters < report.stages[0].parameters && report.stages[2].parameters < report.stages[1].parameters
    );

    let planned = bench.run(&["plan", "tiny.toml"]).expect(0).stdout();
    let bytes = fs_err::metadata(bench.path("runs/tiny/5-quantize/model.safetensors")).unwrap().len();
    assert!(planned.contains(&format!(" {} ", whole(bytes))), "the plan names the artifact's {bytes} bytes:\n{planned}");

    assert!(ran.stderr().contains("report: runs/tiny/report.html\n        runs/tiny/report.json\n"), "{}", ran.stderr());
    let page = fs_err::read_to_string(bench.path("runs/tiny/report.html")).unwrap();
    for name in names.into_iter().chain(report.checks.iter().map(|check| check.name.as_str())) {
        assert!(page.contains(&format!(">{name}<")), "the page has {name}");
    }
    assert_eq!(page.matches("Tokens per second</b>").count(), 3, "one training and two distillations");

    let again = bench.run(&["run", "tiny.toml"]).expect(0);
    assert_eq!(page, fs_err::read_to_string(bench.path("runs/tiny/report.html")).unwrap(), "skipped steps keep their curves");
    assert_eq!(again.stderr().matches("finished before, inputs unchanged").count(), 6, "{}", again.stderr());

    // A changed setting redoes its step and those after it.
    bench.write("tiny.toml", &TINY.replace("bits = 4", "bits = 8"));
    let changed = bench.run(&["run", "tiny.toml"]).expect(0);
    assert_eq!(changed.stderr().matches("finished before, inputs unchanged").count(), 4, "{}", changed.stderr());
}

#[test]
fn an_artifact_whose_scale_was_changed_fails_verification_by_name() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    bench.run(&["run", "tiny.toml"]).expect(0);
    bench.run(&["verify", "runs/tiny/5-quantize"]).expect(0);
    let path = bench.path("runs/tiny/5-quantize/model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let scale = &tensors["model.layers.0.mlp.up_proj.weight_scale"]["data_offsets"][0];
    let at = 8 + header + scale.as_u64().unwrap() as usize;
    bytes[at] ^= 0x40;
    fs_err::write(&path, bytes).unwrap();
    let ran = bench.run(&["verify", "runs/tiny/5-quantize"]).expect(1);
    assert!(ran.stdout().contains("files changed"), "{}", ran.stdout());
    assert!(ran.stdout().contains("model.safetensors"), "{}", ran.stdout());
}

#[test]
fn a_broken_budget_fails_with_exit_code_1_and_keeps_the_artifact() {
    let bench = Bench::new();
    let with_budget = |bytes: u64| TINY.replace("artifact_bytes = 1_000_000", &format!("artifact_bytes = {bytes}"));
    bench.write("tiny.toml", TINY);
    let plan: serde_json::Value = serde_json::from_str(&bench.run(&["plan", "tiny.toml", "--json"]).expect(0).stdout()).unwrap();
    let weights = plan["stages"][4]["bytes"].as_u64().unwrap();
    // What the weights alone exceed is refused before any work.
    bench.write("tiny.toml", &with_budget(weights - 1));
    let refused = bench.run(&["run", "tiny.toml"]).expect(2).stderr();
    assert!(refused.contains(&format!("and the artifact has {weights} bytes of weights: 1 B too many")), "{refused}");
    assert!(!bench.path("runs").exists());
    // The tokenizer, which the run trains, comes on top.
    bench.write("tiny.toml", &with_budget(weights));
    let ran = bench.run(&["run", "tiny.toml"]).expect(1);
    let line = ran.stdout().lines().find(|line| line.contains("artifact bytes")).unwrap().to_owned();
    assert!(line.contains("FAILED"), "{line}");
    assert!(bench.path("runs/tiny/5-quantize/manifest.json").exists());
    assert_eq!(Report::read(&bench.path("runs/tiny")).unwrap().passed, Some(false));
}

#[test]
fn a_run_that_stops_leaves_a_page_of_what_it_did() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    // The second step finds a state that it can't believe.
    let state = "runs/tiny/.steps/2-distill/state/state-3";
    fs_err::create_dir_all(bench.path(state)).unwrap();
    bench.write(&format!("{state}/state.json"), r#"{"version": 9, "step": 3, "fingerprint": ""}"#);
    let stopped = bench.run(&["run", "tiny.toml"]).expect(2).stderr();
    let expected = format!("{state}: was written in version 9, this program reads version 1; remove this folder");
    assert!(stopped.contains(&expected), "{stopped}");
    let page = fs_err::read_to_string(bench.path("runs/tiny/report.html")).unwrap();
    assert!(page.contains("1 of 6 steps are finished"), "{page}");
    assert!(page.contains("Loss by step of 1-train"), "{page}");
}

/// Long enough that an interruption falls between two steps of the distillation.
fn long_distillation() -> String {
    let recipe = TINY.replace(
        "steps = 12\nbatch_size = 4\nsequence_length = 256\nsave_every = 3",
        "steps = 60\nbatch_size = 4\nsequence_length = 256\nsave_every = 3",
    );
    assert_ne!(recipe, TINY);
    recipe
}

/// Starts a run and waits until its distillation is at work.
fn distilling(bench: &Bench) -> std::process::Child {
    let mut command = bench.command(&["run", "tiny.toml"]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let patience = Instant::now();
    while steps_done(bench) < 10 {
        assert!(patience.elapsed() < Duration::from_secs(120), "the distillation never began");
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn steps_done(bench: &Bench) -> usize {
    fs_err::read_to_string(bench.path("runs/tiny/2-distill/metrics.jsonl")).map_or(0, |text| text.lines().count())
}

fn assert_same_files(whole: &Bench, interrupted: &Bench) {
    for name in ["2-distill/model.safetensors", "5-quantize/model.safetensors", "5-quantize/manifest.json"] {
        assert!(same(&whole.path("runs/tiny").join(name), &interrupted.path("runs/tiny").join(name)), "{name} differs");
    }
}

#[test]
fn a_run_killed_in_the_middle_of_distillation_ends_with_the_same_bytes() {
    let (whole, killed) = (Bench::new(), Bench::new());
    for bench in [&whole, &killed] {
        bench.write("tiny.toml", &long_distillation());
    }
    whole.run(&["run", "tiny.toml"]).expect(0);
    let mut child = distilling(&killed);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path("runs/tiny/2-distill/model.safetensors").exists(), "killed in the middle");
    killed.run(&["run", "tiny.toml"]).expect(0);
    // It went on from a saved state instead of from the start.
    let steps = steps_done(&killed);
    assert!((60..60 + 10).contains(&steps), "{steps} steps were done in both runs together");
    assert_same_files(&whole, &killed);
}

#[test]
#[cfg(unix)]
fn a_run_that_is_interrupted_saves_its_state_and_repeats_no_step() {
    let (whole, stopped) = (Bench::new(), Bench::new());
    for bench in [&whole, &stopped] {
        bench.write("tiny.toml", &long_distillation().replace("save_every = 3", "save_every = 1000"));
    }
    whole.run(&["run", "tiny.toml"]).expect(0);
    let child = distilling(&stopped);
    let signalled = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let done = steps_done(&stopped);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.ends_with(&format!("stopped after step {done}; the same command goes on from there\n")), "{said}");
    let page = fs_err::read_to_string(stopped.path("runs/tiny/report.html")).unwrap();
    assert!(page.contains("2-distill <span class=\"unfinished\">(unfinished)</span>"), "its losses so far are drawn");
    stopped.run(&["run", "tiny.toml"]).expect(0);
    assert_eq!(steps_done(&stopped), 60, "every step once");
    assert_same_files(&whole, &stopped);
}

/// A model that is trained a little, and quantized under a target over much text.
const TARGET: &str = r#"name = "tiny"
seed = 3
dataset = "datasets/home-commands.toml"

[model.new]
vocab_size = 320
hidden_size = 128
layers = 4
heads = 4
kv_heads = 2
intermediate_size = 256
max_position_embeddings = 256

[[stage]]
[stage.train]
steps = 4
batch_size = 4
sequence_length = 256

[[stage]]
[stage.quantize]
target_bytes = "300 kB"
method = "gptq"
clipping = "activation"
calibration_tokens = 16384
sensitivity_tokens = 1024
storage = "entropy"

[[stage]]
[stage.verify]
examples = 20
"#;

#[test]
fn a_quantization_killed_while_it_measures_and_in_the_middle_of_its_layers_ends_with_the_same_bytes() {
    let (whole, killed) = (Bench::new(), Bench::new());
    for bench in [&whole, &killed] {
        bench.write("tiny.toml", TARGET);
    }
    whole.run(&["run", "tiny.toml"]).expect(0);
    let artifact = whole.path("runs/tiny/2-quantize");
    let bytes = fs_err::metadata(artifact.join("model.safetensors")).unwrap().len();
    assert!((250_000..=300_000).contains(&bytes), "{bytes}");
    let coded = fs_err::metadata(artifact.join("model.entropy")).unwrap().len();
    assert!(coded < bytes, "{coded} of {bytes}");
    assert!(!whole.path("runs/tiny/.steps/2-quantize/layers").exists(), "nothing is left behind");

    let kill_at = |file: &str| {
        let mut command = killed.command(&["run", "tiny.toml"]);
        let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let patience = Instant::now();
        while !killed.path(file).exists() {
            assert!(patience.elapsed() < Duration::from_secs(120), "{file} never came");
            assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!killed.path("runs/tiny/2-quantize/manifest.json").exists(), "killed in the middle");
    };
    kill_at("runs/tiny/sensitivity.json");
    kill_at("runs/tiny/.steps/2-quantize/layers/layer-1.safetensors");
    killed.run(&["run", "tiny.toml"]).expect(0);
    for name in ["model.safetensors", "model.entropy", "manifest.json"] {
        let [whole, killed] = [&whole, &killed].map(|bench| bench.path("runs/tiny/2-quantize").join(name));
        assert!(same(&whole, &killed), "{name} differs");
    }

    // Another target measures nothing again, and opens from the coded file alone.
    let measured = fs_err::read(killed.path("runs/tiny/sensitivity.json")).unwrap();
    killed.run(&["run", "tiny.toml", "--set", "stage.2.quantize.target_bytes=\"350 kB\""]).expect(0);
    assert!(fs_err::read(killed.path("runs/tiny/sensitivity.json")).unwrap() == measured);
    let weights = killed.path("runs/tiny/2-quantize/model.safetensors");
    let bytes = fs_err::metadata(&weights).unwrap().len();
    assert!((300_001..=350_000).contains(&bytes), "{bytes}");
    fs_err::remove_file(weights).unwrap();
    killed.run(&["verify", "runs/tiny/2-quantize"]).expect(0);

    // Activations that memory is not to hold lie on the disk meanwhile, and change no byte.
    let quantize = |out: &str, most: &str| {
        let mut arguments = vec!["quantize", "runs/tiny/1-train", out, "--bits", "4", "--group-size", "32", "--method", "gptq"];
        arguments.extend(["--dataset", "datasets/home-commands.toml", "--calibration-tokens", "65536", "--max-memory", most]);
        whole.run(&arguments)
    };
    let [held, spilled] = [("held", "2 GiB"), ("spilled", "150 MB")].map(|(out, most)| {
        let ran = quantize(out, most).expect(0);
        let check = ran.stdout().lines().find(|line| line.starts_with("peak memory, 1-quantize")).unwrap_or_default().to_owned();
        assert!(check.ends_with("passed") && check.contains("≤ "), "{}", ran.stdout());
        whole.path(out).join("model.safetensors")
    });
    assert!(same(&held, &spilled));
    let refused = quantize("refused", "50 MB").expect(2).stderr();
    assert!(refused.starts_with("error: 1-quantize takes up to "), "{refused}");
    assert!(
        refused.contains(" of memory with its activations on the disk, and --max-memory allows 50.00 MB\nhint: allow "),
        "{refused}"
    );
    assert!(!whole.path("refused").exists());

    // What no choice can meet is refused before any work, at its line.
    let refused = killed.run(&["run", "tiny.toml", "--set", "stage.2.quantize.target_bytes=\"100 kB\""]).expect(2);
    assert!(refused.stderr().contains("target_bytes 100000 is too small: the smallest artifact that the candidates make has "));
}

/// A student that is distilled for the two bits that it will have.
const AWARE: &str = r#"name = "tiny"
seed = 3
dataset = "datasets/home-commands.toml"

[model.new]
vocab_size = 320
hidden_size = 64
layers = 3
heads = 4
kv_heads = 2
intermediate_size = 128
max_position_embeddings = 256

[[stage]]
[stage.train]
steps = 4
batch_size = 4
sequence_length = 256

[[stage]]
[stage.distill]
steps = 60
batch_size = 4
sequence_length = 256
save_every = 3
student.layers = 2
quantization_aware = true

[[stage]]
[stage.quantize]
bits = 2
clipping = "mse"
embedding = "int4"
symmetric = false
overrides = [{ match = "*.down_proj", bits = 5, group_size = 64 }]
"#;

#[test]
fn a_quantization_aware_distillation_is_the_same_after_a_kill_and_is_written_as_it_was_rounded() {
    let (whole, killed) = (Bench::new(), Bench::new());
    for bench in [&whole, &killed] {
        bench.write("tiny.toml", AWARE);
    }
    let planned = whole.run(&["plan", "tiny.toml"]).expect(0).stdout();
    // The cell takes two lines.
    assert!(planned.contains("f32 for INT2 g32") && planned.contains(" zp mixed\n"), "{planned}");
    whole.run(&["run", "tiny.toml"]).expect(0);
    let mut child = distilling(&killed);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path("runs/tiny/2-distill/model.safetensors").exists(), "killed in the middle");
    killed.run(&["run", "tiny.toml"]).expect(0);
    for name in ["2-distill/model.safetensors", "3-quantize/model.safetensors", "3-quantize/manifest.json"] {
        assert!(same(&whole.path("runs/tiny").join(name), &killed.path("runs/tiny").join(name)), "{name} differs");
    }

    let [dense, artifact] = ["2-distill", "3-quantize"].map(|step| whole.path("runs/tiny").join(step));
    let checkpoint = Checkpoint::open(&dense).unwrap();
    assert_eq!(checkpoint.dtype(), Dtype::F32, "the dense weights are not rounded to anything");
    let artifact = Artifact::open(&artifact).unwrap();
    let (recipe, _) = Recipe::load(&whole.path("tiny.toml")).unwrap();
    let Stage::Quantize(settings) = &recipe.stages[2] else { panic!("the third stage quantizes") };
    let fake = FakeQuantizer::new(&settings.into(), checkpoint.architecture()).unwrap();
    let mut rounded = 0;
    for (id, values) in checkpoint.weights().unwrap().iter() {
        let faked = fake.round(id, values).unwrap();
        rounded += usize::from(faked.is_some());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        assert!(bits(faked.as_deref().unwrap_or(values)) == bits(&artifact.values(id).unwrap()), "{id}");
    }
    assert_eq!(rounded, 15, "seven projections of two layers and the embedding");
    let details = &Report::read(&whole.path("runs/tiny")).unwrap().stages[1].details;
    assert_eq!(details["rounded_to"].as_str(), Some("INT2 g32 zp mixed"), "{details}");

    // Other storage rounds to the same, so nothing is distilled again.
    let again = whole.run(&["run", "tiny.toml", "--set", "stage.3.quantize.storage=\"entropy\""]).expect(0);
    assert_eq!(again.stderr().matches("finished before, inputs unchanged").count(), 2, "{}", again.stderr());
}

/// A model that is trained a little, quantized coarsely, and learns its scales.
const SCALES: &str = r#"name = "tiny"
seed = 3
dataset = "datasets/home-commands.toml"

[model.new]
vocab_size = 320
hidden_size = 64
layers = 2
heads = 4
kv_heads = 2
intermediate_size = 128
max_position_embeddings = 256

[[stage]]
[stage.train]
steps = 20
batch_size = 4
sequence_length = 256

[[stage]]
[stage.quantize]
bits = 3
embedding = "int4"
storage = "entropy"

[[stage]]
[stage.learn_scales]
steps = 40
batch_size = 4
sequence_length = 256
learning_rate = 1e-2
save_every = 3

[[stage]]
[stage.verify]
examples = 20
"#;

#[test]
fn scales_are_learnt_with_the_same_bytes_after_a_kill_and_no_integer_changes() {
    let (whole, killed) = (Bench::new(), Bench::new());
    for bench in [&whole, &killed] {
        bench.write("tiny.toml", SCALES);
    }
    whole.run(&["run", "tiny.toml"]).expect(0);
    let [quantized, learnt] = ["2-quantize", "3-learn_scales"].map(|step| whole.path("runs/tiny").join(step));
    let [before, after] = [&quantized, &learnt].map(|folder| TensorFiles::open(folder).unwrap());
    let mut changed = 0;
    for ((name, before), (other, after)) in before.iter().zip(after.iter()) {
        assert_eq!((name, before.dtype, &before.shape), (other, after.dtype, &after.shape));
        let is_same = before.bytes[..] == after.bytes[..];
        assert!(is_same || name.ends_with("_scale"), "{name} changed");
        changed += usize::from(!is_same);
    }
    assert_eq!((before.iter().count(), changed), (after.iter().count(), 15), "seven projections of two layers and the embedding");
    for name in ["config.json", "tokenizer.json"] {
        assert!(same(&quantized.join(name), &learnt.join(name)), "{name} differs");
    }
    let bytes = |folder: &Path| fs_err::metadata(folder.join("model.safetensors")).unwrap().len();
    assert_eq!(bytes(&quantized), bytes(&learnt));
    assert!(learnt.join("model.entropy").exists(), "coded for delivery as what came before");
    whole.run(&["verify", "runs/tiny/3-learn_scales"]).expect(0);

    let report = Report::read(&whole.path("runs/tiny")).unwrap();
    let details = &report.stages[2].details;
    let kl = |key: &str| details[key]["value"].as_f64().unwrap();
    assert!(kl("kl_after") < kl("kl_before"), "{details}");
    assert_eq!((details["teacher"].as_str(), details["scales_unchanged"].as_u64()), (Some("1-train"), Some(0)));
    let page = fs_err::read_to_string(whole.path("runs/tiny/report.html")).unwrap();
    for expected in ["Loss by step of 3-learn_scales", "of the valid split"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }

    let metrics = "runs/tiny/.steps/3-learn_scales/metrics.jsonl";
    let done = || fs_err::read_to_string(killed.path(metrics)).map_or(0, |text| text.lines().count());
    let mut command = killed.command(&["run", "tiny.toml"]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let patience = Instant::now();
    while done() < 7 {
        assert!(patience.elapsed() < Duration::from_secs(120), "no scale was ever learnt");
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path("runs/tiny/3-learn_scales/model.safetensors").exists(), "killed in the middle");
    killed.run(&["run", "tiny.toml"]).expect(0);
    assert!(done() < 40 + 40, "it went on from a saved state: {} steps in both runs", done());
    assert!(!killed.path("runs/tiny/.steps/3-learn_scales/state").exists(), "nothing is left behind");
    for name in ["model.safetensors", "model.entropy", "manifest.json"] {
        let [whole, killed] = [&whole, &killed].map(|bench| bench.path("runs/tiny/3-learn_scales").join(name));
        assert!(same(&whole, &killed), "{name} differs");
    }
}

#[test]
fn scales_that_are_worse_than_those_before_end_the_run() {
    let bench = Bench::new();
    bench.write("tiny.toml", &SCALES.replace("learning_rate = 1e-2", "learning_rate = 1.0").replace("steps = 40", "steps = 4"));
    let said = bench.run(&["run", "tiny.toml"]).expect(2).stderr();
    assert!(said.contains("the learnt scales are farther from the teacher than those before: KL divergence "), "{said}");
    assert!(said.contains("of the valid split; lower learning_rate (it is 1), or learn from more text"), "{said}");
    assert!(!bench.path("runs/tiny/3-learn_scales/manifest.json").exists(), "no artifact is handed out");
}

fn same(a: &Path, b: &Path) -> bool {
    fs_err::read(a).unwrap() == fs_err::read(b).unwrap()
}

#[test]
fn stage_verbs_make_checkpoints_and_artifacts_from_flags() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    bench.run(&["run", "tiny.toml"]).expect(0);
    let model = "runs/tiny/2-distill";
    bench.run(&["prune", model, "cut", "--head-ratio", "0.5", "--importance", "magnitude"]).expect(0);
    bench.run(&["quantize", "cut", "small", "--bits", "8"]).expect(0);
    bench.run(&["verify", "small"]).expect(0);
    let shown = bench.run(&["inspect", "small"]).expect(0).stdout();
    assert!(shown.contains("INT8, per channel, symmetric"), "{shown}");
    let data = ["--dataset", "datasets/home-commands.toml"];
    let train = ["train", model, "more", "--steps", "2", "--batch-size", "2", "--sequence-length", "256"];
    bench.run(&[&train[..], &data[..]].concat()).expect(0);
    let distill =
        ["distill", model, "student", "--student", "cut", "--steps", "2", "--batch-size", "2", "--sequence-length", "256"];
    bench.run(&[&distill[..], &data[..]].concat()).expect(0);
    let eval = bench.run(&[&["eval", "student", "--examples", "5", "--json"][..], &data[..]].concat()).expect(0).stdout();
    let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
    assert_eq!(eval["examples"], 5);
    let measured = ["verify", "small", "--reference", "cut", "--examples", "5", "--kl-mean", "10"];
    let checks = bench.run(&[&measured[..], &data[..]].concat()).expect(0).stdout();
    assert!(checks.contains("KL divergence, mean"), "{checks}");
    bench.run(&["generate", "student", "--prompt", "dim the lamp", "--answer", "-n", "4"]).expect(0);
    bench.run(&["bench", "small", "--generate-tokens", "4"]).expect(0);
    // A folder in use is never written over.
    let refused = bench.run(&["quantize", "cut", "small", "--bits", "4"]).expect(2);
    assert!(refused.stderr().contains("small: is not empty"), "{}", refused.stderr());
}

/// A model whose down projections take no groups of 64, and less text than is asked for.
const ALTERNATIVES: &str = r#"name = "tiny"
seed = 3
dataset = "datasets/short.toml"

[model.new]
vocab_size = 258
hidden_size = 64
layers = 2
heads = 4
kv_heads = 2
intermediate_size = 96
max_position_embeddings = 64

[[stage]]
[stage.train]
steps = 4
batch_size = 2
sequence_length = 32

[[stage]]
[stage.quantize]
bits = 4
group_size = 64
method = "gptq"
sensitivity_tokens = 64
measure_kl = true
allow = ["dense", "round_to_nearest", "less_text"]
"#;

#[test]
fn what_a_recipe_allows_is_taken_and_told_in_every_report() {
    let bench = Bench::new();
    bench.write("tiny.toml", ALTERNATIVES);
    bench.write("datasets/short.toml", "[text]\ntrain = \"short.txt\"\n");
    // A byte a token: nine windows of 64 and a rest.
    bench.write("datasets/short.txt", &"The lamp by the door.\n".repeat(28));
    let planned = bench.run(&["plan", "tiny.toml"]).expect(0).stdout();
    let ran = bench.run(&["run", "tiny.toml"]).expect(0);
    let dense = "dense instead of INT4 g64 GPTQ: `model.layers.0.mlp.down_proj.weight`, and 1 more: group_size 64 does not divide its 96 \
                 columns";
    let text = "text for quantizing: 576 tokens instead of 65536: the train split has no more whole windows";
    for line in [dense, text] {
        assert!(ran.stderr().contains(&format!("      {line}\n")), "{}", ran.stderr());
        assert!(ran.stdout().contains(&format!("2-quantize: {line}\n")), "{}", ran.stdout());
    }
    let report = Report::read(&bench.path("runs/tiny")).unwrap();
    let details = &report.stages[1].details;
    let listed = details["instead"].as_array().unwrap();
    let downs: Vec<_> = listed.iter().filter(|instead| instead["got"] == "dense").collect();
    assert_eq!(downs.len(), 2, "{listed:?}");
    assert_eq!(downs[0]["asked"]["quantized"]["method"], "gptq");
    let used: Vec<_> = details["text"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| (text["purpose"].as_str(), text["asked"].as_u64(), text["used"].as_u64()))
        .collect();
    let expected = [
        (Some("measuring_kl"), Some(64), Some(64)),
        (Some("quantizing_to_measure"), Some(512), Some(512)),
        (Some("quantizing"), Some(65_536), Some(576)),
    ];
    assert_eq!(used, expected);
    let tensors = details["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 2 * 6 + 1);
    for tensor in tensors {
        assert!(tensor["kl"].as_f64().is_some_and(|kl| kl.is_finite()), "{tensor}");
        let is_listed = listed.iter().any(|instead| instead["name"] == tensor["name"]);
        assert_eq!(is_listed, tensor["asked"] != tensor["got"], "{tensor}");
    }
    let page = fs_err::read_to_string(bench.path("runs/tiny/report.html")).unwrap();
    for shown in
        ["Not as asked, which the recipe allows", "576 tokens <strong>(asked: 65,536)</strong> for quantizing", "INT4 g64 GPTQ"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(planned.contains(&format!("2-quantize: {dense}\n")), "{planned}");
    let bytes = fs_err::metadata(bench.path("runs/tiny/2-quantize/model.safetensors")).unwrap().len();
    assert!(planned.contains(&format!(" {} ", whole(bytes))), "the plan names the artifact's {bytes} bytes:\n{planned}");
    // Nothing of it goes without being allowed.
    let refused = bench.run(&["plan", "tiny.toml", "--set", "stage.2.quantize.allow=[]"]).expect(2).stderr();
    for hint in ["hint: or allow = [\"dense\"]", "or allow = [\"less_text\"], which takes the 576 and lists it"] {
        assert!(refused.contains(hint), "{refused}");
    }
}
