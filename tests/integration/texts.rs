//! Text as people have it: to calibrate on, to measure on, as Windows writes it.

use crate::command::Bench;
use crate::export::dense;

/// A model that holds 64 tokens, and text.
fn bench() -> Bench {
    let bench = Bench::new();
    dense(&bench);
    bench.write("text.txt", &"the quick brown fox jumps over the lazy dog\n".repeat(60));
    bench
}

const CUT: [&str; 2] = ["--channel-ratio", "0.5"];

#[test]
fn pruning_without_text_is_refused_unless_it_is_asked_for() {
    let bench = bench();
    let prune = |others: &[&str]| bench.run(&[&["prune", "dense", "pruned"], &CUT[..], others].concat());
    let refused = prune(&[]).expect(2).stderr();
    let expected = "error: what is removed is chosen by activations on text: give --text FILE or --dataset TOML; --importance magnitude \
                    needs no text, and without training afterwards it destroys a real model\n";
    assert_eq!(refused, expected);
    prune(&["--text", "text.txt"]).expect(0);
    bench.run(&["prune", "dense", "by-magnitude", "--channel-ratio", "0.5", "--importance", "magnitude"]).expect(0);
    bench.write("set.toml", "[text]\ntrain = \"text.txt\"\n");
    bench.run(&["prune", "dense", "by-dataset", "--channel-ratio", "0.5", "--dataset", "set.toml"]).expect(0);
    let weights = |folder: &str| fs_err::read(bench.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("pruned") == weights("by-dataset") && weights("pruned") != weights("by-magnitude"));
}

#[test]
fn a_text_file_is_enough_to_quantize_by() {
    let bench = bench();
    let quantize = ["quantize", "dense", "artifact", "--bits", "4", "--method", "gptq", "--calibration-tokens", "256"];
    bench.run(&[&quantize[..], &["--group-size", "16", "--text", "text.txt"]].concat()).expect(0);
    let both = bench.run(&[&quantize[..], &["--text", "text.txt", "--dataset", "set.toml"]].concat()).expect(2).stderr();
    assert!(both.contains("cannot be used with"), "{both}");
}

#[test]
fn no_window_is_longer_than_what_the_model_holds() {
    let bench = bench();
    let eval = |others: &[&str]| bench.run(&[&["eval", "dense", "--text", "text.txt", "--windows", "2"], others].concat());
    let by_default = eval(&[]).expect(0);
    let note = "measured in windows of 64 tokens instead of 512: the model's max_position_embeddings are 64\n";
    assert_eq!(by_default.stderr(), note);
    assert!(by_default.stdout().contains("(62 tokens scored"), "{}", by_default.stdout());
    let refused = eval(&["--window", "65"]).expect(2).stderr();
    assert_eq!(refused, "error: --window 65 is longer than the model's max_position_embeddings 64\n");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_no_figure() {
    let bench = bench();
    let perplexity = |text: &str| {
        bench.write("other.txt", text);
        let shown = bench.run(&["eval", "dense", "--text", "other.txt", "--windows", "2", "--window", "64"]).expect(0).stdout();
        shown.split_whitespace().nth(1).unwrap().to_owned()
    };
    let text = "the quick brown fox\njumps over the lazy dog\n".repeat(60);
    let marked = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(perplexity(&marked), perplexity(&text));
}
