//! Figures that stand in one table: of one measurement, and against the model that the chain starts from.

use compressor_format::{ORIGINAL, Report};
use compressor_pipeline::figures::whole;
use serde_json::Value;

use crate::command::Bench;
use crate::export::dense;

const WINDOW: &str = "window = 32\nfirst_scored = 17\nallow_undecided = true\n";

/// A model is pruned, quantized and verified; more stages come behind that.
pub(crate) fn recipe(windows: usize, more: &str) -> String {
    let verify = format!("[[stage]]\n[stage.verify]\nwindows = {windows}\n{WINDOW}");
    format!(
        "name = \"short\"\nseed = 3\ndataset = \"set.toml\"\n[model]\npath = \"dense\"\n[[stage]]\n[stage.prune]\nchannel_ratio = 0.5\n\
         importance = \"magnitude\"\n[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 16\n{verify}{more}"
    )
}

pub(crate) fn bench() -> Bench {
    let bench = Bench::new();
    dense(&bench);
    bench.write("test.txt", &"the quick brown fox jumps over the lazy dog\n".repeat(60));
    bench.write("set.toml", "[text]\ntrain = \"test.txt\"\ntest = \"test.txt\"\n");
    bench
}

fn report(bench: &Bench) -> Report {
    Report::read(&bench.path("runs/short")).unwrap()
}

/// Name, perplexity and tokens of each row.
fn rows(report: &Report) -> Vec<(String, f64, u64)> {
    let measured = report.stages.iter().map(|step| (step, step.perplexity.unwrap()));
    measured.map(|(step, perplexity)| (step.name.clone(), perplexity.value, perplexity.sample_size)).collect()
}

#[test]
fn the_model_that_a_chain_starts_from_is_row_0_and_the_change_is_since_then() {
    let bench = bench();
    bench.write("short.toml", &recipe(4, ""));
    let ran = bench.run(&["run", "short.toml"]).expect(0);
    let report = report(&bench);
    let rows = rows(&report);
    let names: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(names, [ORIGINAL, "1-prune", "2-quantize", "3-verify"]);
    assert!(rows.iter().all(|row| row.2 == 4 * 15), "{rows:?}");
    // As `eval` measures it.
    let eval = ["eval", "dense", "--dataset", "set.toml", "--windows", "4", "--window", "32", "--json"];
    let evaluated: Value = serde_json::from_str(&bench.run(&eval).expect(0).stdout()).unwrap();
    assert_eq!(evaluated["perplexity"].as_f64().unwrap(), rows[0].1);
    assert_eq!(report.stages[0].bytes, fs_err::metadata(bench.path("dense/model.safetensors")).unwrap().len());

    let change = 100.0 * (rows[3].1 / rows[0].1 - 1.0);
    let quantizing = 100.0 * report.check("perplexity increase").unwrap().value;
    let signed = |value: f64| format!("{}{:.2} %", if value < 0.0 { '−' } else { '+' }, value.abs());
    let (change, quantizing) = (signed(change), signed(quantizing));
    assert_ne!(change, quantizing);
    let since = format!("change of perplexity: {change} since 0-original ({:.3})\n", rows[0].1);
    let said = format!("{since}{:22}{quantizing} by quantizing alone\n", "");
    assert!(ran.stdout().contains(&said), "{said}{}", ran.stdout());
    let page = fs_err::read_to_string(bench.path("runs/short/report.html")).unwrap();
    assert!(page.contains(&format!("since 0-original ({:.3})", rows[0].1)) && page.contains(&change), "{change}");
    assert!(page.contains(&format!("by quantizing alone {quantizing}")), "{quantizing}");

    // It is measured once, and again when another file is in its place.
    assert_eq!(ran.stderr().matches("0-original: measuring\n").count(), 1);
    assert!(!bench.run(&["run", "short.toml"]).expect(0).stderr().contains("measuring"));
    bench.run(&["prune", "dense", "other", "--head-ratio", "0.5", "--importance", "magnitude"]).expect(0);
    fs_err::remove_dir_all(bench.path("dense")).unwrap();
    fs_err::rename(bench.path("other"), bench.path("dense")).unwrap();
    let again = bench.run(&["run", "short.toml"]).expect(0);
    assert!(again.stderr().starts_with("0-original: measuring\n[1/3] 1-prune\n"), "{}", again.stderr());
}

#[test]
fn the_plan_tells_what_the_whole_folder_takes() {
    let bench = bench();
    bench.write("short.toml", &format!("{}[budget]\nartifact_bytes = 90_000\n", recipe(2, "")));
    let plan: Value = serde_json::from_str(&bench.run(&["plan", "short.toml", "--json"]).expect(0).stdout()).unwrap();
    let planned = plan["stages"][1]["folder_bytes"].as_u64().unwrap();
    bench.run(&["run", "short.toml"]).expect(0);
    let files = fs_err::read_dir(bench.path("runs/short/2-quantize")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(report(&bench).check("artifact bytes").unwrap().value as u64, bytes);
    // Configuration and manifest are estimated.
    assert!(planned.abs_diff(bytes) < 2000, "planned {planned}, written {bytes}");
    let shown = bench.run(&["plan", "short.toml"]).expect(0).stdout();
    let line = format!("2-quantize: ~{} bytes in all files, the budget allows 90,000\n", whole(planned));
    assert!(shown.ends_with(&line), "{shown}");
}

#[test]
fn figures_of_another_measurement_are_measured_again_and_nothing_else_is_done_again() {
    let bench = bench();
    bench.write("short.toml", &recipe(4, ""));
    bench.run(&["run", "short.toml"]).expect(0);
    let before = report(&bench);
    let fewer = bench.run(&["run", "short.toml", "--set", "stage.3.verify.windows=2"]).expect(0);
    let expected = "0-original: measuring\n1-prune: measuring\n1-prune: finished before, inputs unchanged\n2-quantize: measuring\n\
                    2-quantize: finished before, inputs unchanged\n[3/3] 3-verify\n";
    assert!(fewer.stderr().starts_with(expected), "{}", fewer.stderr());
    let after = report(&bench);
    assert!(rows(&after).iter().all(|row| row.2 == 2 * 15), "{:?}", rows(&after));
    assert!(!bench.run(&["run", "short.toml", "--set", "stage.3.verify.windows=2"]).expect(0).stderr().contains("measuring"));
    bench.run(&["run", "short.toml"]).expect(0);
    assert_eq!(rows(&report(&bench)), rows(&before));

    // The version before noted nowhere how it had measured.
    let record = bench.path("runs/short/.steps/2-quantize/step.json");
    let mut old: Value = serde_json::from_slice(&fs_err::read(&record).unwrap()).unwrap();
    for key in ["measurement", "inputs"] {
        old.as_object_mut().unwrap().remove(key).unwrap();
    }
    old["report"]["perplexity"]["value"] = 1.0.into();
    fs_err::write(&record, old.to_string()).unwrap();
    let resumed = bench.run(&["run", "short.toml"]).expect(0);
    assert!(resumed.stderr().contains("2-quantize: measuring\n2-quantize: finished before"), "{}", resumed.stderr());
    assert_eq!(rows(&report(&bench)), rows(&before));
}

#[test]
fn every_verification_is_of_its_own_windows_and_every_row_of_the_last_ones() {
    let bench = bench();
    let last = format!("[[stage]]\n[stage.verify]\nwindows = 6\n{WINDOW}");
    bench.write("short.toml", &recipe(2, &last));
    bench.run(&["run", "short.toml"]).expect(0);
    let found = report(&bench);
    assert!(rows(&found).iter().all(|row| row.2 == 6 * 15), "{:?}", rows(&found));
    let of_checks: Vec<u64> =
        found.checks.iter().filter(|check| check.name == "KL divergence, mean").map(|check| check.sample_size).collect();
    assert_eq!(of_checks, [2 * 15, 6 * 15]);
    // What the first one can't measure is refused before any work, too.
    bench.write("short.toml", &recipe(2, &last).replacen("window = 32", "window = 65", 1));
    let refused = bench.run(&["plan", "short.toml"]).expect(2).stderr();
    assert!(refused.contains("window 65 is longer than the model's max_position_embeddings 64"), "{refused}");
}

#[test]
fn an_original_that_memory_does_not_hold_is_named_as_not_measured() {
    let bench = bench();
    // Many layers: quantizing holds a few matrices, measuring the original all of them.
    let new = "[model.new]\nvocab_size = 300\nhidden_size = 32\nlayers = 48\nheads = 4\nintermediate_size = 64\n\
               max_position_embeddings = 64\n";
    let train = "[[stage]]\n[stage.train]\nsteps = 1\nbatch_size = 1\nsequence_length = 16\n";
    bench.write("deep.toml", &format!("name = \"deep\"\ndataset = \"set.toml\"\n{new}{train}"));
    bench.run(&["run", "deep.toml"]).expect(0);
    let quantize = "[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 16\n";
    let path = "[model]\npath = \"runs/deep/1-train\"\n";
    bench.write("short.toml", &format!("name = \"short\"\ndataset = \"set.toml\"\n{path}{quantize}"));
    let plan: Value = serde_json::from_str(&bench.run(&["plan", "short.toml", "--json"]).expect(0).stdout()).unwrap();
    let allowed = plan["stages"][0]["peak_memory_bytes"].as_u64().unwrap();
    let ran = bench.run(&["run", "short.toml", "--max-memory", &allowed.to_string()]).expect(0);
    assert!(ran.stdout().contains("0-original: not measured: takes up to "), "{}", ran.stdout());
    let found = report(&bench);
    assert!(found.stages[0].perplexity.is_none() && found.stages[1].perplexity.is_some());
    assert!(fs_err::read_to_string(bench.path("runs/short/report.html")).unwrap().contains("not measured: takes up to "));
    // With enough of it, it is.
    bench.run(&["run", "short.toml"]).expect(0);
    assert!(report(&bench).stages[0].perplexity.is_some());
}
