//! Each mistake as a person reads it: the whole of stderr.

use crate::command::{Bench, TINY};

/// What `plan` says of the tiny recipe with one text replaced by another; exit code 2, nothing written.
#[track_caller]
fn refused(from: &str, to: &str) -> String {
    refused_in(&Bench::new(), from, to)
}

#[track_caller]
fn refused_in(bench: &Bench, from: &str, to: &str) -> String {
    let recipe = TINY.replacen(from, to, 1);
    assert_ne!(recipe, TINY, "`{from}` stands in the recipe");
    bench.write("tiny.toml", &recipe);
    let ran = bench.run(&["plan", "tiny.toml"]).expect(2);
    assert_eq!(ran.stdout(), "");
    assert!(!bench.path("runs").exists(), "a plan writes nothing");
    ran.stderr()
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
    let text = refused("calibration_tokens", "calibration_token");
    let first = text.lines().next().unwrap();
    assert_eq!(first, "error: unknown key `calibration_token`, did you mean `calibration_tokens`? (tiny.toml:33)");
    assert!(text.lines().nth(1).unwrap().starts_with("hint: known here: head_ratio, channel_ratio, "), "{text}");
}

#[test]
fn a_wrong_type_is_named_with_its_line() {
    let expected = "error: invalid type: string \"four\", expected u8 (tiny.toml:43)\n";
    assert_eq!(refused("bits = 4", "bits = \"four\""), expected);
}

#[test]
fn a_value_out_of_range_is_named_with_its_range() {
    let expected = "error: head_ratio is 1.5; it must lie from 0 to 1 (tiny.toml:31)\n";
    assert_eq!(refused("head_ratio = 0.5", "head_ratio = 1.5"), expected);
}

#[test]
fn a_missing_file_is_named() {
    let text = refused("datasets/home-commands.toml", "datasets/nothing.toml");
    assert!(text.starts_with("error: ") && text.contains("datasets/nothing.toml") && text.contains("(tiny.toml:3)"), "{text}");
}

#[test]
fn stages_in_an_order_that_cannot_be_are_refused() {
    let quantize = "[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 32\n";
    let moved = TINY.replace(quantize, "").replace("[[stage]]\n[stage.prune]", &format!("{quantize}\n[[stage]]\n[stage.prune]"));
    let bench = Bench::new();
    bench.write("tiny.toml", &moved);
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(
        errors,
        [
            "error: prune can't follow quantize: it takes dense weights (tiny.toml:35)",
            "error: distill can't follow quantize: it takes dense weights (tiny.toml:41)",
        ]
    );
    assert!(text.contains("hint: move [stage.prune] before [stage.quantize]"), "{text}");
}

#[test]
fn verify_without_an_artifact_is_refused() {
    let quantize = "[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 32\n";
    let expected = "error: verify needs an artifact, and no quantize stage comes before it (tiny.toml:43)\n\
                    hint: add [stage.quantize] before [stage.verify], or remove this stage\n";
    assert_eq!(refused(quantize, ""), expected);
}

#[test]
fn a_group_size_that_does_not_divide_a_width_after_pruning_is_refused_with_the_divisors() {
    // 64 divides every width of the student, but one of its two groups of two heads of width 16 is cut.
    let expected = "error: group_size 64 does not divide heads · head_dim 32 (`model.layers.0.self_attn.o_proj.weight`); divisors of 32 \
                    are 1, 2, 4, 8, 16, 32 (tiny.toml:44)\n";
    assert_eq!(refused("group_size = 32", "group_size = 64"), expected);
}

#[test]
fn a_ratio_that_cuts_nothing_is_refused_with_the_smallest_that_does() {
    let expected = "error: head_ratio 0.3 of 2 GQA groups cuts nothing; the smallest that does is 0.5 (tiny.toml:31)\n";
    assert_eq!(refused("head_ratio = 0.5", "head_ratio = 0.3"), expected);
}

#[test]
fn a_ratio_that_leaves_no_head_is_refused() {
    let expected = "error: head_ratio 1 would leave no attention head; it must be below 1 (tiny.toml:31)\n";
    assert_eq!(refused("head_ratio = 0.5", "head_ratio = 1.0"), expected);
}

#[test]
fn vocabularies_that_differ_are_refused_with_both_sizes() {
    let new = "student.new = { vocab_size = 300, hidden_size = 16, layers = 1, heads = 2, intermediate_size = 32 }";
    let text = refused("student.layers = 2", new);
    let expected = "error: the student's vocabulary of 300 tokens differs from the teacher's 320 (tiny.toml:27)\n\
                    hint: both must predict the same tokens; give the student the teacher's vocab_size\n";
    assert_eq!(text, expected);
}

#[test]
fn a_dataset_that_is_empty_or_not_utf_8_is_refused() {
    let bench = Bench::new();
    bench.write("datasets/mine.toml", "[text]\ntrain = \"train.txt\"\ntest = \"train.txt\"\n");
    bench.write("datasets/train.txt", "");
    let text = refused_in(&bench, "datasets/home-commands.toml", "datasets/mine.toml");
    assert!(text.contains("datasets/train.txt") && text.contains("empty"), "{text}");
    fs_err::write(bench.path("datasets/train.txt"), b"good text \xff\xfe").unwrap();
    let text = refused_in(&bench, "datasets/home-commands.toml", "datasets/mine.toml");
    assert!(text.contains("datasets/train.txt") && text.contains("UTF-8") && text.contains("10"), "{text}");
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_any_work() {
    let bench = Bench::new();
    bench.write("occupied", "a file where the folder should be");
    let recipe = TINY.replacen("seed = 3", "seed = 3\noutput = \"occupied/run\"", 1);
    bench.write("tiny.toml", &recipe);
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    assert!(
        text.starts_with("error: the run folder occupied/run can't be written: occupied is not a folder (tiny.toml:3)"),
        "{text}"
    );
}

#[test]
fn several_refusals_come_in_one_go() {
    let recipe = TINY.replace("head_ratio = 0.5", "head_ratio = 0.1").replace("channel_ratio = 0.5", "channel_ratio = 0.1");
    let bench = Bench::new();
    bench.write("tiny.toml", &recipe);
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    assert_eq!(text.lines().filter(|line| line.starts_with("error")).count(), 2, "{text}");
}

#[test]
fn a_damaged_model_is_refused_by_file() {
    let bench = Bench::new();
    let model = bench.path("model");
    fs_err::create_dir(&model).unwrap();
    let source = crate::command::root().join("tests/golden/models/llama");
    fs_err::copy(source.join("config.json"), model.join("config.json")).unwrap();
    let whole = fs_err::read(source.join("model.safetensors")).unwrap();
    fs_err::write(model.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let text = bench.run(&["inspect", "model"]).expect(2).stderr();
    let expected = format!(
        "error: model/model.safetensors: its {} bytes are not what the header says: the file is cut short or has a tail\n",
        whole.len() / 2
    );
    assert_eq!(text, expected);
    bench.write("model.gguf", "GGUF but not for long");
    let text = bench.run(&["inspect", "model.gguf"]).expect(2).stderr();
    assert!(text.starts_with("error: model.gguf: "), "{text}");
}

#[test]
fn a_device_that_is_not_in_this_build_is_refused_with_the_feature_to_add() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    let text = bench.run(&["run", "tiny.toml", "--device", "cuda"]).expect(2).stderr();
    assert!(text.contains("cuda") && text.contains("--features cuda"), "{text}");
}
