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
    let expected = "error: bits is \"four\"; it must be a whole number from 0 to 255 (tiny.toml:43)\n";
    assert_eq!(refused("bits = 4", "bits = \"four\""), expected);
}

#[test]
fn a_value_out_of_range_is_named_with_its_range() {
    let expected = "error: head_ratio is 1.5; it must lie from 0 to 1 (tiny.toml:31)\n";
    assert_eq!(refused("head_ratio = 0.5", "head_ratio = 1.5"), expected);
}

#[test]
fn a_missing_file_is_named() {
    let expected = "error: failed to open file `datasets/nothing.toml`: No such file or directory (os error 2) (tiny.toml:3)\n";
    assert_eq!(refused("datasets/home-commands.toml", "datasets/nothing.toml"), expected);
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
                    are 1, 2, 4, 8, 16, 32 (tiny.toml:44)\n\
                    hint: or allow = [\"dense\"]: what can't take its scheme then stays dense, and the report lists it\n";
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
    let new =
        "student.new = { vocab_size = 300, hidden_size = 64, layers = 2, heads = 4, kv_heads = 2, intermediate_size = 128 }";
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
    assert_eq!(text, "error: datasets/train.txt: the file is empty (0 bytes); a dataset needs text (tiny.toml:3)\n");
    fs_err::write(bench.path("datasets/train.txt"), b"good text \xff\xfe").unwrap();
    let text = refused_in(&bench, "datasets/home-commands.toml", "datasets/mine.toml");
    assert_eq!(text, "error: datasets/train.txt:1: byte 10 (0xff) is not UTF-8; convert the file to UTF-8 (tiny.toml:3)\n");
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_any_work() {
    let bench = Bench::new();
    bench.write("occupied", "a file where the folder should be");
    let recipe = TINY.replacen("seed = 3", "seed = 3\noutput = \"occupied/run\"", 1);
    bench.write("tiny.toml", &recipe);
    let way_out = "hint: set `output` to a folder on a disk that can be written\n";
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    assert_eq!(
        text,
        format!("error: the run folder occupied/run can't be written: occupied is not a folder (tiny.toml:3)\n{way_out}")
    );
    // No one can make files in there.
    #[cfg(target_os = "linux")]
    {
        let text = bench.run(&["plan", "tiny.toml", "--out", "/proc/sys/run"]).expect(2).stderr();
        assert!(text.starts_with("error: the run folder /proc/sys/run can't be written: /proc/sys: "), "{text}");
        assert!(text.ends_with(&format!("(tiny.toml:3)\n{way_out}")), "{text}");
    }
}

/// What a recipe for the model in `model` is refused with.
fn refused_model(bench: &Bench, model: &str) -> String {
    let recipe =
        format!("name = \"q\"\n[model]\npath = \"{model}\"\n[[stage]]\n[stage.quantize]\nbits = 8\nembedding = \"dense\"\n");
    bench.write("q.toml", &recipe);
    bench.run(&["plan", "q.toml"]).expect(2).stderr()
}

#[test]
fn a_model_folder_whose_tensors_and_config_disagree_is_refused_by_tensor() {
    let bench = Bench::new();
    fs_err::create_dir(bench.path("model")).unwrap();
    let source = crate::command::root().join("tests/golden/models/llama");
    fs_err::copy(source.join("model.safetensors"), bench.path("model/model.safetensors")).unwrap();
    let config = fs_err::read_to_string(source.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let (vocab_size, hidden_size) = (config["vocab_size"].as_u64().unwrap(), config["hidden_size"].as_u64().unwrap());
    config["vocab_size"] = (vocab_size + 1).into();
    bench.write("model/config.json", &config.to_string());
    let expected = format!(
        "error: model: tensor `model.embed_tokens.weight` has shape [{vocab_size}, {hidden_size}], config.json asks for [{}, \
         {hidden_size}] (q.toml:3)\n",
        vocab_size + 1
    );
    assert_eq!(refused_model(&bench, "model"), expected);
    config["model_type"] = "mamba".into();
    bench.write("model/config.json", &config.to_string());
    assert_eq!(
        refused_model(&bench, "model"),
        "error: model/config.json: model_type \"mamba\" is not a known family; known are llama, mistral, qwen2, qwen3, gpt2 (q.toml:3)\n"
    );
}

#[test]
fn a_truncated_or_hostile_model_file_is_refused_at_the_line_that_names_it() {
    let bench = Bench::new();
    fs_err::create_dir(bench.path("model")).unwrap();
    let source = crate::command::root().join("tests/golden/models/llama");
    fs_err::copy(source.join("config.json"), bench.path("model/config.json")).unwrap();
    let whole = fs_err::read(source.join("model.safetensors")).unwrap();
    let safetensors = |bytes: &[u8]| {
        fs_err::write(bench.path("model/model.safetensors"), bytes).unwrap();
        refused_model(&bench, "model")
    };
    let half = whole.len() / 2;
    assert_eq!(
        safetensors(&whole[..half]),
        format!(
            "error: model/model.safetensors: its {half} bytes are not what the header says: the file is cut short or has a tail \
             (q.toml:3)\n"
        )
    );
    assert_eq!(
        safetensors(&[0xff; 64]),
        "error: model/model.safetensors: is not a safetensors file, or its header is damaged: the header's length is impossible \
         (q.toml:3)\n"
    );
    let gguf = |bytes: &[u8]| {
        fs_err::write(bench.path("model.gguf"), bytes).unwrap();
        refused_model(&bench, "model.gguf")
    };
    let real = fs_err::read(crate::command::root().join("tests/golden/gguf/blocks.gguf")).unwrap();
    let cut = gguf(&real[..real.len() / 2]);
    assert!(cut.starts_with("error: model.gguf: ") && cut.ends_with(" (q.toml:3)\n"), "{cut}");
    // Version 3, and 2⁶⁴ − 1 tensors.
    let hostile = gguf(&[&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat());
    assert!(hostile.starts_with("error: model.gguf: ") && hostile.ends_with(" (q.toml:3)\n"), "{hostile}");
}

/// Something wrong in every part: all of it is told in one go, in the order of the lines.
#[test]
fn all_refusals_come_in_one_go_in_the_order_of_the_lines() {
    let bench = Bench::new();
    let recipe = TINY
        .replace("heads = 4\n", "heads = \"4\"\n")
        .replace("warmup_steps = 2", "warmup_stpes = 2")
        .replace("save_every = 3", "save_every = 0")
        .replace("channel_ratio = 0.5", "importance = \"weight\"")
        .replace("bits = 4\n", "")
        .replace("datasets/home-commands.toml", "datasets/nothing.toml")
        .replace("artifact_bytes = 1_000_000", "artifact_bytes = -1");
    bench.write("tiny.toml", &recipe);
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(
        errors,
        [
            "error: failed to open file `datasets/nothing.toml`: No such file or directory (os error 2) (tiny.toml:3)",
            "error: heads is \"4\"; it must be a whole number, 0 or more (tiny.toml:9)",
            "error: unknown key `warmup_stpes`, did you mean `warmup_steps`? (tiny.toml:19)",
            "error: save_every is 0; it must lie from 1 to 1000000000 (tiny.toml:26)",
            "error: importance is \"weight\" (tiny.toml:32)",
            "error: missing key `bits` (tiny.toml:42)",
            "error: artifact_bytes is -1; it must be a whole number of bytes, or a text such as \"80 MB\" or \"1.5 GiB\" (tiny.toml:51)",
        ]
    );
    // And what only the files tell, of a recipe whose text is right.
    let recipe = TINY
        .replace("sequence_length = 256\nwarmup_steps", "sequence_length = 64\nwarmup_steps")
        .replace("student.layers = 2", "student.layers = 3")
        .replace("group_size = 32", "group_size = 0");
    bench.write("tiny.toml", &recipe);
    let text = bench.run(&["plan", "tiny.toml"]).expect(2).stderr();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(errors.len(), 3, "{text}");
    assert!(
        errors[0].contains(" of 40000 examples predict more tokens than sequence_length 64, the longest ")
            && errors[0].ends_with("(tiny.toml:18)"),
        "{text}"
    );
    assert_eq!(errors[1], "error: layers 3 is not fewer than the teacher's 3 (tiny.toml:27)");
    assert_eq!(errors[2], "error: group_size 0 makes no groups; usual are 32, 64 and 128 (tiny.toml:44)");
}

/// The teacher's checkpoint fits, the state of the student's training, three numbers for each weight, does not.
#[cfg(unix)]
#[test]
fn a_file_without_room_is_told_with_the_way_out_and_what_was_finished_stays() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    let text = bench.run_with_small_files(1600, &["run", "tiny.toml"]).expect(2).stderr();
    let expected = "error: runs/tiny/.steps/2-distill/state/state-3.tmp/model.safetensors: it would be larger than a file may be \
                    here; raise the limit (`ulimit -f`) or write to another disk";
    assert_eq!(text.lines().last(), Some(expected), "{text}");
    assert!(!bench.path("runs/tiny/.steps/2-distill/state/state-3.tmp/model.safetensors.tmp").exists());
    let teacher = fs_err::read(bench.path("runs/tiny/1-train/model.safetensors")).unwrap();
    let again = bench.run(&["run", "tiny.toml"]).expect(0).stderr();
    assert_eq!(again.matches("finished before, inputs unchanged").count(), 1, "{again}");
    assert_eq!(fs_err::read(bench.path("runs/tiny/1-train/model.safetensors")).unwrap(), teacher);
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
