//! W8A8 with static scales, as a person sees it.

use crate::command::{Bench, Ran};
use crate::export::dense;

/// Quantizes the golden Llama on text of letters into a folder.
fn quantize(bench: &Bench, folder: &str, others: &[&str]) -> Ran {
    let asked = ["quantize", "dense", folder, "--bits", "8", "--activations", "int8_static", "--embedding", "dense"];
    bench.run(&[asked.as_slice(), others].concat())
}

/// The model, and text for it.
fn bench() -> Bench {
    let bench = Bench::new();
    dense(&bench);
    bench.write("letters.toml", "[text]\ntrain = \"train.txt\"\n");
    bench.write("train.txt", &"thequickbrownfoxjumpsoverthelazydog".repeat(16));
    bench
}

const TEXT: [&str; 4] = ["--dataset", "letters.toml", "--calibration-tokens", "256"];

#[test]
fn static_scales_need_text_and_one_scale_for_a_channel() {
    let bench = bench();
    let refused = quantize(&bench, "artifact", &[]).expect(2).stderr();
    let expected = "error: quantize needs a `dataset`, and the recipe names none\n\
                    hint: add `dataset = \"…\"` or `text = \"…\"` at the top of the recipe\n";
    assert_eq!(refused, expected);
    let refused = quantize(&bench, "artifact", &[&TEXT[..], &["--group-size", "32"]].concat()).expect(2).stderr();
    let expected = "error: activations \"int8_static\" needs 8 bits, symmetric, per channel: leave group_size out; \
                    found INT8, groups of 32, symmetric\n";
    assert_eq!(refused, expected);
    let short = quantize(&bench, "artifact", &["--dataset", "letters.toml", "--calibration-tokens", "700"]).expect(2).stderr();
    let expected = "error: the train split has 560 tokens, calibration_tokens asks for 704 in windows of 64\nhint: set it to 512, \
                    give more text, or allow = [\"less_text\"], which takes the 512 and lists it\n";
    assert!(short.ends_with(expected), "{short}");
    bench.write("train.txt", "a");
    let none = quantize(&bench, "artifact", &TEXT).expect(2).stderr();
    let expected = "error: the train split has 1 tokens, calibration_tokens asks for 256 in windows of 64\n\
                    hint: give more text, or leave out what looks at text: method \"gptq\", clipping \"activation\", scaling and \
                    activations \"int8_static\"\n";
    assert_eq!(none, expected);
    assert!(!bench.path("artifact/config.json").exists());
}

#[test]
fn an_artifact_with_static_scales_goes_where_every_other_goes() {
    let bench = bench();
    quantize(&bench, "artifact", &[&TEXT[..], &["--storage", "entropy"]].concat()).expect(0);
    bench.run(&["verify", "artifact"]).expect(0);
    let shown = bench.run(&["inspect", "artifact"]).expect(0).stdout();
    assert!(shown.contains("\nactivations   INT8, one stored scale for each projection\n"), "{shown}");
    let answer = |folder: &str, activations: &str| {
        let asked = ["-p", "compressor", "-n", "20", "--ids", "--ignore-end", "--activations", activations];
        bench.run(&[&["generate", folder], asked.as_slice()].concat()).expect(0).stdout()
    };
    // The artifact itself says how its inputs are rounded, and nothing else of it is in integers.
    let own = answer("artifact", "int8");
    assert_eq!(answer("artifact", "f32"), own);
    // Coded, and by a delta from an artifact of other scales.
    quantize(&bench, "other", &["--dataset", "letters.toml", "--calibration-tokens", "64"]).expect(0);
    bench.run(&["delta", "other", "artifact", "update"]).expect(0);
    bench.run(&["apply", "other", "update", "updated"]).expect(0);
    assert_eq!(answer("updated", "int8"), own);
    let weights = |folder: &str| fs_err::read(bench.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("updated") == weights("artifact") && weights("other") != weights("artifact"));
    fs_err::remove_file(bench.path("artifact/model.safetensors")).unwrap();
    assert_eq!(answer("artifact", "int8"), own);
    // GGUF has no word for them, and the command says so.
    let exported = bench.run(&["export", "artifact", "model.gguf"]).expect(0);
    assert_eq!(exported.stdout().lines().next(), Some("tensors  6 F32, 14 Q8_0"));
    let expected = "note: INT8 activations are not carried over: GGUF has no word for them, llama.cpp rounds activations as it does\n\
                    written to model.gguf\n";
    assert_eq!(exported.stderr(), expected);
}
