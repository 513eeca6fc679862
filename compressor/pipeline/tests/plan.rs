//! What a plan refuses before any work.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use compressor_format::{Draft, Mistake, Tokenizer, Weights};
use compressor_pipeline::Plan;

/// A folder with a recipe in it, `~` standing for the folder.
struct Bench(tempfile::TempDir);

impl Bench {
    /// With three examples to learn from and one to measure on.
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        bench.write("set.toml", "[jsonl]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\n");
        bench.write("train.jsonl", &"{\"prompt\": \"a\", \"completion\": \"b\"}\n".repeat(3));
        bench.write("test.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
        bench
    }

    /// With texts.
    fn with_text(train: &str, test: &str) -> Self {
        let bench = Self::new();
        bench.write("set.toml", "[text]\ntrain = \"train.txt\"\ntest = \"test.txt\"\n");
        bench.write("train.txt", train);
        bench.write("test.txt", test);
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).unwrap();
    }

    /// A checkpoint of random weights, without a tokenizer.
    fn checkpoint(&self, name: &str, config: serde_json::Value) {
        let folder = self.path(name);
        fs_err::create_dir(&folder).unwrap();
        let architecture = compressor_format::Family::read(&config, Path::new("config.json")).unwrap();
        Weights::random(architecture, 1).write(&folder, compressor_format::Dtype::F32).unwrap();
    }

    /// Mistakes as a person reads them, the folder called `~`.
    fn refused(&self, recipe: &str) -> Vec<String> {
        let folder = self.0.path().display().to_string();
        self.write("small.toml", &recipe.replace('~', &folder));
        let mistakes = Plan::of(Draft::load(&self.path("small.toml"), &[])).err().unwrap_or_default();
        let told = |Mistake { line, message, hint }: Mistake| {
            let line = line.map_or("-".to_owned(), |line| line.to_string());
            let hint = hint.map(|hint| format!(" | {hint}")).unwrap_or_default();
            format!("{line}: {message}{hint}").replace(&folder, "~")
        };
        mistakes.into_iter().map(told).collect()
    }
}

const NEW: &str = "name = \"small\"\noutput = \"~/out\"\ndataset = \"~/set.toml\"\n\n[model.new]\nvocab_size = 258\nhidden_size = 16\n\
                   layers = 1\nheads = 2\nintermediate_size = 64\n";
const OLD: &str = "name = \"small\"\noutput = \"~/out\"\ndataset = \"~/set.toml\"\n[model]\npath = \"~/model\"\n";
const TRAIN: &str = "[[stage]]\n[stage.train]\nsteps = 10\nbatch_size = 3\nsequence_length = 64\n";
const PRUNE: &str = "[[stage]]\n[stage.prune]\nchannel_ratio = 0.5\n";

fn llama() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "tie_word_embeddings": true, "hidden_act": "silu",
    })
}

fn bytes() -> Tokenizer {
    Tokenizer::train_bpe(std::iter::empty(), 258).unwrap()
}

/// A tokenizer of three words, none of which ends a text; `z` has the number given.
fn words(z: u32) -> String {
    let model = serde_json::json!({ "type": "WordLevel", "vocab": { "a": 0, "b": 1, "z": z }, "unk_token": "a" });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null, "model": model,
    })
    .to_string()
}

#[test]
fn a_batch_of_more_examples_than_there_are_is_refused_at_its_line() {
    let recipe = |rows: &str| format!("{NEW}{TRAIN}").replace("batch_size = 3", rows);
    assert_eq!(
        Bench::new().refused(&recipe("batch_size = 4")),
        [
            "14: batch_size 4 is more than the train split's 3 examples | lower it; gradient_accumulation puts several batches into one step"
        ]
    );
    assert_eq!(Bench::new().refused(&recipe("batch_size = 3")), [""; 0]);
}

#[test]
fn examples_longer_than_sequence_length_are_counted_and_the_way_out_is_named() {
    let bench = Bench::new();
    // A byte a token: 10 + 2 letters with two special tokens, the first not predicted.
    bench.write(
        "train.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"0123456789\", \"completion\": \"on\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n",
    );
    let recipe = |length: usize, most: usize| {
        format!("{NEW}max_position_embeddings = {most}\n{TRAIN}")
            .replace("sequence_length = 64", &format!("sequence_length = {length}"))
    };
    let what = "16: 1 of 3 examples predict more tokens than sequence_length 12, the longest 13; the first is \"0123456789\"";
    assert_eq!(bench.refused(&recipe(13, 64)), [""; 0]);
    assert_eq!(
        bench.refused(&recipe(12, 64)),
        [format!("{what} | raise sequence_length to 13, or shorten or leave out those examples")]
    );
    assert_eq!(
        bench.refused(&recipe(12, 12)),
        [format!("{what} | shorten or leave out those examples; the model holds 12 tokens")]
    );
    // Calibration reads as much as the model holds.
    let calibrated = format!("{NEW}max_position_embeddings = 12\n{PRUNE}");
    assert_eq!(
        bench.refused(&calibrated),
        [
            "13: 1 of 3 examples have more than the 12 tokens that calibration reads at once, the longest 13; the first is \"0123456789\" | \
          shorten or leave out those examples, or set importance to \"magnitude\""
        ]
    );
    assert_eq!(bench.refused(&format!("{calibrated}importance = \"magnitude\"\n")), [""; 0]);
}

#[test]
fn a_text_without_one_batch_or_one_window_is_refused_with_its_tokens() {
    let refused = |train: &str, test: &str, stages: &str| Bench::with_text(train, test).refused(&format!("{NEW}{stages}"));
    let long = "word ".repeat(600);
    // Three windows of 64 and the token that the last of them predicts.
    let short = "x".repeat(192);
    assert_eq!(
        refused(&short, &long, TRAIN),
        ["15: the train split has 192 tokens, a batch of 3 windows of sequence_length 64 takes 193 | lower sequence_length or \
          batch_size, or give more text"]
    );
    assert_eq!(refused(&"x".repeat(193), &long, TRAIN), [""; 0]);
    assert_eq!(
        refused("few words", &long, PRUNE),
        [
            "12: the train split has 9 tokens, calibration reads windows of 512 | give more text, or set importance to \"magnitude\""
        ]
    );
    assert_eq!(
        refused(&long, "few words", TRAIN),
        [
            "3: the test split has 9 tokens, one window takes 512 | give it more text, or leave the test split out: every model is \
          measured on it"
        ]
    );
    let verified = format!(
        "{TRAIN}[[stage]]\n[stage.quantize]\nbits = 4\nembedding = \"dense\"\ngroup_size = 16\n[[stage]]\n[stage.verify]\n"
    );
    assert_eq!(
        refused(&long, "few words", &format!("{verified}window = 64\nfirst_scored = 1\n")),
        ["23: the test split has 9 tokens, one window takes 64 | set `window` lower, or give more text"]
    );
    assert_eq!(
        refused(&long, &long, &format!("{verified}window = 600\n")),
        ["23: window 600 is longer than the model's max_position_embeddings 512"]
    );
    assert_eq!(
        refused(&long, &long, &format!("{verified}score = 0.5\n")),
        ["23: score needs a dataset with answers (prompt and completion); this one is running text"]
    );
}

#[test]
fn a_model_whose_tokenizer_can_not_read_the_dataset_is_refused_where_it_is_named() {
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    let refused = bench.refused(&format!("{OLD}{TRAIN}"));
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(
        refused[0].starts_with("5: failed to open file `~/model/tokenizer.json`: No such file")
            && refused[0].ends_with(" | the dataset is read with the model's tokenizer"),
        "{refused:?}"
    );
    // Quantizing alone reads no text.
    let quantize =
        format!("{OLD}[[stage]]\n[stage.quantize]\nbits = 8\nembedding = \"dense\"\n").replace("dataset = \"~/set.toml\"\n", "");
    assert_eq!(bench.refused(&quantize), [""; 0]);

    bench.write("model/tokenizer.json", &words(2));
    assert_eq!(
        bench.refused(&format!("{OLD}{TRAIN}")),
        ["5: tokenizer: no token is known to end a text, so separate examples can't be learnt; use a [text] dataset"]
    );
    bench.write("set.toml", "[text]\ntrain = \"train.txt\"\n");
    bench.write("train.txt", &"a b ".repeat(200));
    assert_eq!(bench.refused(&format!("{OLD}{TRAIN}")), [""; 0]);

    // A token that the model does not know, behind everything that would be enough.
    bench.write("model/tokenizer.json", &words(300));
    bench.write("train.txt", &format!("{}z", "a b ".repeat(9000)));
    assert_eq!(
        bench.refused(&format!("{OLD}{TRAIN}")),
        [
            "5: the tokenizer gives token 300, and the model's vocabulary has 258 | the tokenizer belongs to another model; put the \
          model's own beside its weights"
        ]
    );
}

#[test]
fn teacher_and_student_need_one_tokenizer() {
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    bench.checkpoint("teacher", llama());
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    bytes().save(bench.path("teacher/tokenizer.json")).unwrap();
    let recipe = format!("{OLD}{TRAIN}").replace("[stage.train]", "[stage.distill]\nteacher = \"~/teacher\"");
    assert_eq!(bench.refused(&recipe), [""; 0]);
    let other = Tokenizer::train_bpe(std::iter::repeat_n("aa".to_owned(), 9), 259).unwrap();
    other.save(bench.path("teacher/tokenizer.json")).unwrap();
    assert_eq!(
        bench.refused(&recipe),
        [
            "8: student ~/model and teacher ~/teacher have different tokenizers | both must predict the same tokens; choose a teacher \
          with the student's tokenizer"
        ]
    );
    // New weights with the same number of tokens, which will stand for others.
    let new = format!("{NEW}{TRAIN}").replace("[stage.train]", "[stage.distill]\nteacher = \"~/teacher\"");
    assert_eq!(
        bench.refused(&new),
        [
            "13: student (new) and teacher ~/teacher have different tokenizers | both must predict the same tokens; choose a teacher \
          with the student's tokenizer"
        ]
    );
}

#[test]
fn positions_must_hold_what_is_measured() {
    let bench = Bench::new();
    bench.write("test.jsonl", "{\"prompt\": \"0123456789\", \"completion\": \"on\"}\n");
    let recipe = |family: &str| {
        format!("{NEW}family = \"{family}\"\nmax_position_embeddings = 8\n{TRAIN}")
            .replace("sequence_length = 64", "sequence_length = 8")
    };
    for family in ["gpt2", "llama"] {
        assert_eq!(
            bench.refused(&recipe(family)),
            ["3: 1 of 1 examples of the test split have more tokens than the 8 that the model takes, the longest 13; the \
              first is \"0123456789\" | shorten or leave out those examples"]
        );
    }
}

#[test]
fn a_text_is_enough_to_calibrate_on_and_nothing_else() {
    let bench = Bench::with_text(&"once upon a time ".repeat(400), "");
    let model = serde_json::json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64, "tie_word_embeddings": true
    });
    bench.checkpoint("model", model);
    Tokenizer::train_bpe(std::iter::empty(), 258).unwrap().save(bench.path("model/tokenizer.json")).unwrap();
    let recipe =
        |data: &str, stages: &str| format!("name = \"tiny\"\noutput = \"~/run\"\n{data}\nmodel.path = \"~/model\"\n{stages}");
    let prune = "[[stage]]\n[stage.prune]\nchannel_ratio = 0.5\nchannel_multiple = 1\n";
    assert_eq!(bench.refused(&recipe("text = \"~/train.txt\"", prune)), [""; 0]);
    assert_eq!(
        bench.refused(&recipe("text = \"~/train.txt\"\ndataset = \"~/set.toml\"", prune)),
        ["3: `dataset` and `text` both say what is read; keep one"]
    );
    bench.write("train.txt", "short");
    assert_eq!(
        bench.refused(&recipe("text = \"~/train.txt\"", prune)),
        ["6: the train split has 5 tokens, calibration reads windows of 64 | give more text, or set importance to \"magnitude\""]
    );
    let measured = "[[stage]]\n[stage.quantize]\nbits = 8\nembedding = \"dense\"\n[[stage]]\n[stage.verify]\n";
    assert_eq!(
        bench.refused(&recipe("text = \"~/train.txt\"", measured)),
        ["10: the dataset has no test split, and this stage reads it"]
    );
}

#[test]
fn vocabularies_padded_to_different_sizes_are_one_where_their_tokens_are() {
    let bench = Bench::with_text(&"once upon a time ".repeat(400), &"there was ".repeat(400));
    let model = |vocab_size: usize| {
        serde_json::json!({
            "model_type": "llama", "vocab_size": vocab_size, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64, "tie_word_embeddings": true
        })
    };
    for (name, vocab_size) in [("teacher", 384), ("student", 320), ("small", 257)] {
        bench.checkpoint(name, model(vocab_size));
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 258).unwrap();
        tokenizer.save(bench.path(name).join("tokenizer.json")).unwrap();
    }
    let recipe = |student: &str| {
        format!(
            "name = \"tiny\"\noutput = \"~/run\"\ndataset = \"~/set.toml\"\nmodel.path = \"~/teacher\"\n[[stage]]\n[stage.distill]\n\
             steps = 1\nbatch_size = 1\nsequence_length = 32\nstudent.checkpoint = \"~/{student}\"\n"
        )
    };
    assert_eq!(bench.refused(&recipe("student")), [""; 0]);
    let missing = bench.refused(&recipe("small"));
    let expected = "the student's vocabulary of 257 tokens differs from the teacher's 384 | both must predict the same tokens";
    assert!(missing.iter().any(|mistake| mistake.contains(expected)), "{missing:?}");
}

#[test]
fn rotary_heads_need_two_halves() {
    let odd = |key: &str| format!("{NEW}{key}\n{TRAIN}");
    assert_eq!(
        Bench::new().refused(&odd("head_dim = 5")),
        ["11: head_dim 5 is odd; rotary positions turn its elements in pairs"]
    );
    assert_eq!(
        Bench::new().refused(&odd("").replace("hidden_size = 16", "hidden_size = 10")),
        ["9: hidden_size 10 / heads 2 is odd; rotary positions turn the elements of a head in pairs | set head_dim"]
    );
    assert_eq!(Bench::new().refused(&odd("head_dim = 5\nfamily = \"gpt2\"")), [""; 0]);
}

#[test]
fn a_folder_that_another_made_is_refused() {
    let bench = Bench::new();
    fs_err::create_dir_all(bench.path("out/1-train")).unwrap();
    bench.write("out/1-train/thesis.txt", "");
    assert_eq!(
        bench.refused(&format!("{NEW}{TRAIN}")),
        ["12: ~/out/1-train: is not empty, and no record says that this run filled it; move it away or choose another folder"]
    );
    fs_err::create_dir_all(bench.path("out/.steps/1-train")).unwrap();
    bench.write("out/.steps/1-train/fingerprint", "of the run before");
    assert_eq!(bench.refused(&format!("{NEW}{TRAIN}")), [""; 0]);
}

#[test]
fn a_refused_stage_hides_no_mistake_of_another_and_makes_none() {
    let stages = format!(
        "{}{PRUNE}head_ratio = 0.1\n{}[[stage]]\n[stage.quantize]\nbits = 7\ngroup_size = 48\nembedding_group_size = 0\n",
        TRAIN.replace("batch_size = 3", "batch_size = 5"),
        TRAIN.replace("[stage.train]", "[stage.distill]\nteacher = \"~/nobody\""),
    );
    let refused = Bench::new().refused(&format!("{NEW}{stages}"));
    let lines: Vec<&str> = refused.iter().map(|told| told.split(" | ").next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "14: batch_size 5 is more than the train split's 3 examples",
            "19: head_ratio 0.1 of 2 GQA groups cuts nothing; the smallest that does is 0.5",
            "22: failed to open file `~/nobody/config.json`: No such file or directory (os error 2)",
            // 48 does not divide the uncut width, but what is left of it is not known.
            "28: bits 7 is not there; 2, 3, 4, 5, 6 and 8 are",
            "30: embedding_group_size 0 makes no groups; usual are 32, 64 and 128",
        ]
    );
}

#[test]
fn every_width_that_a_group_size_does_not_divide_is_named() {
    let stages = format!("{TRAIN}[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 12\nembedding_group_size = 5\n");
    let refused = Bench::new().refused(&format!("{NEW}{stages}"));
    let starts = |at: usize, start: &str| assert!(refused[at].starts_with(start), "{refused:?}");
    assert_eq!(refused.len(), 4, "{refused:?}");
    starts(0, "19: group_size 12 does not divide hidden_size 16 (`model.layers.0.self_attn.q_proj.weight`)");
    starts(1, "19: group_size 12 does not divide heads · head_dim 16 (`model.layers.0.self_attn.o_proj.weight`)");
    starts(2, "19: group_size 12 does not divide intermediate_size 64 (`model.layers.0.mlp.down_proj.weight`)");
    starts(3, "20: embedding_group_size 5 does not divide hidden_size 16 (`model.embed_tokens.weight`)");
}

#[test]
fn a_text_with_mistakes_still_has_its_files_and_its_order_checked() {
    let bench = Bench::new();
    bench.write("train.jsonl", "");
    let recipe = format!("{OLD}{TRAIN}[[stage]]\n[stage.verify]\n").replace("batch_size = 3", "batch_sise = 3");
    assert_eq!(
        bench.refused(&recipe),
        [
            "3: ~/train.jsonl: the file is empty (0 bytes); a dataset needs text",
            "5: failed to open file `~/model/config.json`: No such file or directory (os error 2)",
            "9: unknown key `batch_sise`, did you mean `batch_size`? | known here: steps, batch_size, sequence_length, learning_rate, \
             min_learning_rate_ratio, warmup_steps, weight_decay, beta_1, beta_2, epsilon, gradient_clip, gradient_accumulation, save_every, quantization_aware",
            "12: verify needs an artifact, and no quantize stage comes before it | add [stage.quantize] before [stage.verify], or remove \
             this stage",
        ]
    );
    // What could not be read is not judged.
    let unread = recipe.replace("path = ", "paht = ").replace("[stage.verify]", "[stage.verfy]");
    let lines: Vec<String> = bench.refused(&unread).iter().map(|told| told.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["3", "5", "9", "12"]);
}

#[test]
fn a_split_that_is_broken_does_not_hide_the_other() {
    let bench = Bench::new();
    bench.write("train.jsonl", "{\"txt\": 1}\n");
    bench.write("test.jsonl", "");
    let refused = bench.refused(&format!("{NEW}{TRAIN}"));
    assert_eq!(
        refused,
        [
            "3: ~/train.jsonl:1: a line holds either `text`, or `prompt` and `completion`; did you mean `text` by `txt`?",
            "3: ~/test.jsonl: the file is empty (0 bytes); a dataset needs text",
        ]
    );
}

#[test]
fn new_weights_are_not_quantized() {
    let stages = "[[stage]]\n[stage.quantize]\nbits = 8\nembedding = \"dense\"\n[[stage]]\n[stage.verify]\n";
    assert_eq!(
        Bench::new().refused(&format!("{NEW}{stages}")),
        [
            "12: quantize has no checkpoint: the chain starts with new weights and nothing is trained before | add [stage.train] before it"
        ]
    );
}

#[test]
fn a_teacher_must_hold_what_its_student_reads() {
    let bench = Bench::new();
    let mut config = llama();
    config["max_position_embeddings"] = 32.into();
    bench.checkpoint("teacher", config);
    bytes().save(bench.path("teacher/tokenizer.json")).unwrap();
    let recipe = format!("{NEW}{TRAIN}").replace("[stage.train]", "[stage.distill]\nteacher = \"~/teacher\"");
    assert_eq!(
        bench.refused(&recipe),
        [
            "16: sequence_length 64 is longer than the teacher's max_position_embeddings 32",
            "13: student (new) and teacher ~/teacher have different tokenizers",
        ][..1]
    );
}

#[test]
fn a_gguf_file_without_a_tokenizer_can_not_become_a_folder() {
    let bench = Bench::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf/blocks.gguf");
    fs_err::copy(golden, bench.path("model.gguf")).unwrap();
    let refused = bench.refused(&format!("{OLD}{TRAIN}").replace("~/model", "~/model.gguf"));
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("5: ~/model.gguf: "), "{refused:?}");
}

#[test]
fn learning_scales_needs_an_artifact_a_dense_teacher_and_a_valid_split() {
    const QUANTIZE: &str = "[[stage]]\n[stage.quantize]\nbits = 8\nembedding_group_size = 16\n";
    const LEARN: &str = "[[stage]]\n[stage.learn_scales]\nsteps = 10\nbatch_size = 3\nsequence_length = 64\n";
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    let no_valid = "the dataset has no valid split, on which learnt scales are compared with those before | name one in the \
                    dataset's description: text that is neither trained nor tested on";
    assert_eq!(
        bench.refused(&format!("{OLD}{LEARN}")),
        [
            "7: learn_scales needs an artifact, and no quantize stage comes before it | add [stage.quantize] before \
             [stage.learn_scales], or remove this stage"
                .to_owned(),
            format!("7: {no_valid}"),
        ]
    );
    assert_eq!(bench.refused(&format!("{OLD}{QUANTIZE}{LEARN}")), [format!("11: {no_valid}")]);

    bench.write("set.toml", "[jsonl]\ntrain = \"train.jsonl\"\nvalid = \"test.jsonl\"\n");
    let twice = format!("{OLD}{QUANTIZE}{LEARN}{LEARN}");
    assert_eq!(bench.refused(&twice), [""; 0], "scales can be learnt again");
    for (teacher, expected) in [
        ("1-quantize", "teacher \"1-quantize\" is quantized | name a dense model, such as what was quantized"),
        ("2-learn_scales", "teacher \"2-learn_scales\" is quantized | name a dense model, such as what was quantized"),
    ] {
        assert_eq!(bench.refused(&format!("{twice}teacher = \"{teacher}\"\n")), [format!("20: {expected}")]);
    }
    assert_eq!(bench.refused(&format!("{twice}teacher = \"model\"\n")), [""; 0]);
    assert_eq!(
        bench.refused(&format!("{OLD}{QUANTIZE}{LEARN}{PRUNE}")),
        ["16: prune can't follow quantize: it takes dense weights | move [stage.prune] before [stage.quantize]"]
    );

    let codebooks = "[[stage]]\n[stage.quantize]\nbits = 4\nmethod = \"kmeans\"\nembedding_group_size = 16\n";
    assert_eq!(
        bench.refused(&format!("{OLD}{codebooks}{LEARN}")),
        ["12: learn_scales needs scales, and method \"kmeans\" makes codebooks | choose another method in [stage.quantize], or \
          remove this stage"]
    );

    let bench = Bench::with_text(&words(200), &words(200));
    bench.checkpoint("model", llama());
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    bench.write("set.toml", "[text]\ntrain = \"train.txt\"\nvalid = \"valid.txt\"\n");
    bench.write("valid.txt", "a few words");
    assert_eq!(
        bench.refused(&format!("{OLD}{QUANTIZE}{LEARN}")),
        ["3: the valid split has 11 tokens, one window takes 512 | give it more text"]
    );
}

#[test]
fn the_plan_of_learnt_scales_says_the_bytes_and_the_teacher() {
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    bench.write("set.toml", "[jsonl]\ntrain = \"train.jsonl\"\nvalid = \"test.jsonl\"\n");
    let recipe = format!(
        "{OLD}{PRUNE}channel_multiple = 16\n[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 16\nembedding_group_size = 16\n[[stage]]\n\
         [stage.learn_scales]\nsteps = 10\nbatch_size = 3\nsequence_length = 64\n"
    );
    assert_eq!(bench.refused(&recipe), [""; 0]);
    let plan = Plan::of(Draft::load(&bench.path("small.toml"), &[])).unwrap();
    let [_, quantize, learn] = plan.steps() else { panic!("three steps") };
    assert_eq!((&learn.output.stored_as, learn.output.weight_bytes), (&quantize.output.stored_as, quantize.output.weight_bytes));
    assert!(learn.output.is_artifact);
    // The uncut model is the largest dense one, although the artifact comes later.
    assert_eq!(learn.beside.as_ref().map(|origin| plan.name_of(origin)), Some(bench.path("model").display().to_string()));
}

#[test]
fn a_text_too_short_to_quantize_by_is_refused_with_its_whole_windows_unless_less_is_allowed() {
    const SHORT: &str = "max_position_embeddings = 64\n";
    let train = TRAIN.replace("sequence_length = 64", "sequence_length = 16");
    let refused = |text: &str, keys: &str| {
        let quantize = format!("[[stage]]\n[stage.quantize]\nembedding_group_size = 16\ngroup_size = 16\n{keys}");
        Bench::with_text(text, &"word ".repeat(600)).refused(&format!("{NEW}{SHORT}{train}{quantize}"))
    };
    // A byte a token: three windows of 64 and a half.
    let text = "x".repeat(3 * 64 + 32);
    let gptq = "bits = 4\nmethod = \"gptq\"\n";
    assert_eq!(
        refused(&text, &format!("{gptq}calibration_tokens = 200\n")),
        [
            "23: the train split has 224 tokens, calibration_tokens asks for 256 in windows of 64 | set it to 192, give more text, or allow \
          = [\"less_text\"], which takes the 192 and lists it"
        ]
    );
    assert_eq!(refused(&text, &format!("{gptq}calibration_tokens = 192\n")), [""; 0]);
    assert_eq!(refused(&text, &format!("{gptq}allow = [\"less_text\"]\n")), [""; 0]);
    let none = refused(&"x".repeat(63), &format!("{gptq}allow = [\"less_text\"]\n"));
    assert_eq!(
        none,
        [
            "18: the train split has 63 tokens, calibration_tokens asks for 65536 in windows of 64 | give more text, or leave out what looks \
          at text: method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\""
        ]
    );
    assert_eq!(
        refused(&text, "bits = 4\nmeasure_kl = true\n"),
        [
            "18: the train split has 224 tokens, sensitivity_tokens asks for 512 in windows of 64 | set it to 192, give more text, or allow = \
          [\"less_text\"], which takes the 192 and lists it"
        ]
    );
    assert_eq!(refused(&text, "bits = 4\nmeasure_kl = true\nsensitivity_tokens = 100\n"), [""; 0]);
}

#[test]
fn examples_that_are_too_few_to_quantize_by_are_refused_too() {
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    let quantize = "[[stage]]\n[stage.quantize]\nbits = 4\nmethod = \"gptq\"\ngroup_size = 16\nembedding_group_size = 16\n";
    // Three times two letters and two special tokens.
    let expected = "the train split has 12 tokens, calibration_tokens asks for 65536 in windows of 512 | give more text, or leave out what \
                    looks at text: method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\"";
    assert_eq!(bench.refused(&format!("{OLD}{quantize}")), [format!("7: {expected}")]);
}

#[test]
fn measuring_needs_a_dataset() {
    let bench = Bench::new();
    bench.checkpoint("model", llama());
    let recipe = format!("{OLD}[[stage]]\n[stage.quantize]\nbits = 8\nembedding_group_size = 16\nmeasure_kl = true\n");
    assert_eq!(
        bench.refused(&recipe.replace("dataset = \"~/set.toml\"\n", "")),
        [
            "6: quantize needs a `dataset`, and the recipe names none | add `dataset = \"…\"` or `text = \"…\"` at the top of the recipe"
        ]
    );
}

#[test]
fn what_may_stay_dense_is_planned_to_the_byte_and_is_refused_otherwise_with_the_key() {
    let bench = Bench::new();
    let mut config = llama();
    config["intermediate_size"] = 48.into();
    bench.checkpoint("model", config);
    bytes().save(bench.path("model/tokenizer.json")).unwrap();
    let recipe = |keys: &str| {
        format!("{OLD}[[stage]]\n[stage.quantize]\nbits = 4\ngroup_size = 32\nembedding_group_size = 16\n{keys}")
            .replace("group_size = 32", "group_size = 16\noverrides = [{ match = \"*.down_proj\", group_size = 32 }]")
    };
    let hint = "or allow = [\"dense\"]: what can't take its scheme then stays dense, and the report lists it";
    assert_eq!(
        bench.refused(&recipe("")),
        [format!(
            "10: group_size 32 does not divide intermediate_size 48 (`model.layers.0.mlp.down_proj.weight`); divisors of 48 are 1, 2, 3, \
             4, 6, 8, 12, 16, 24, 48 | {hint}"
        )]
    );
    assert_eq!(bench.refused(&recipe("allow = [\"dense\"]\n")), [""; 0]);
    assert_eq!(
        bench.refused(&recipe("allow = [\"dence\"]\n")),
        ["12: entry 1 of allow is \"dence\"; did you mean \"dense\"? | known here: dense, round_to_nearest, less_text"]
    );
}

#[test]
fn a_quantization_aware_stage_needs_a_quantization_that_is_known_before_it_is_done() {
    const AWARE: &str = "[[stage]]\n[stage.train]\nsteps = 10\nbatch_size = 3\nsequence_length = 64\nquantization_aware = true\n";
    const QUANTIZE: &str = "[[stage]]\n[stage.quantize]\ngroup_size = 16\nembedding_group_size = 16\n";
    let refused = |stages: &str| Bench::new().refused(&format!("{NEW}{stages}"));
    let quantized = |keys: &str| refused(&format!("{AWARE}{QUANTIZE}{keys}"));
    let healed = AWARE.replace("[stage.train]", "[stage.distill]");
    for allowed in
        ["bits = 2\n", "bits = 4\nclipping = \"mse\"\nsymmetric = false\nstorage = \"entropy\"\nscale_dtype = \"bf16\"\n"]
    {
        assert_eq!(quantized(allowed), [""; 0]);
        assert_eq!(refused(&format!("{TRAIN}{healed}{healed}{QUANTIZE}{allowed}")), [""; 0], "one such stage after the other");
    }
    assert_eq!(
        refused(AWARE),
        [
            "16: quantization_aware needs a quantize stage after it, which says what weights are rounded to | add [stage.quantize], or \
             leave quantization_aware out"
        ]
    );
    // Not one that came before.
    assert_eq!(
        refused(&format!("{TRAIN}{QUANTIZE}bits = 4\n{AWARE}")),
        [
            "22: train can't follow quantize: it takes dense weights | move [stage.train] before [stage.quantize]",
            "26: quantization_aware needs a quantize stage after it, which says what weights are rounded to | add [stage.quantize], or \
             leave quantization_aware out",
        ]
    );
    let changed = "16: quantization_aware trains the weights that [stage.quantize] rounds, and 2-";
    let student = format!("{healed}student.layers = 1\n").replace("quantization_aware = true\n", "");
    for (between, what) in [
        ("[[stage]]\n[stage.prune]\nchannel_ratio = 0.5\n", "prune changes them | move [stage.prune] before this stage"),
        (TRAIN, "train changes them | set quantization_aware in 2-train too, or leave it out here"),
        (
            &healed.replace("quantization_aware = true\n", ""),
            "distill changes them | set quantization_aware in 2-distill too, or leave it out here",
        ),
        (
            &format!("{student}quantization_aware = true\n"),
            "distill changes them | 2-distill begins with another student: leave quantization_aware out here",
        ),
    ] {
        let recipe = format!("{AWARE}{between}{QUANTIZE}bits = 4\n").replace("layers = 1\n", "layers = 2\n");
        let new = NEW.replace("layers = 1\n", "layers = 3\n");
        assert_eq!(Bench::new().refused(&format!("{new}{recipe}")), [format!("{changed}{what}")]);
    }
    let cant = "16: quantization_aware can't round to what [stage.quantize] asks for: ";
    let out = " there, or leave quantization_aware out";
    // For what looks at text, text enough.
    let text = "a few words ".repeat(600);
    let refused = |stages: &str| Bench::with_text(&text, &text).refused(&format!("{NEW}{stages}allow = [\"less_text\"]\n"));
    for (keys, what) in [
        (
            "target_bits_per_weight = 6\ncandidates = [{ bits = 4, group_size = 16 }]\n",
            "schemes that a target chooses when the weights stand still | set bits, and overrides for some matrices,",
        ),
        (
            "bits = 4\nmethod = \"gptq\"\n",
            "method \"gptq\", whose integers depend on calibration text | method = \"round_to_nearest\"",
        ),
        (
            "bits = 4\nmethod = \"kmeans\"\n",
            "method \"kmeans\", whose codebooks are made when the weights stand still | method = \"round_to_nearest\"",
        ),
        (
            "bits = 4\nclipping = \"activation\"\n",
            "clipping \"activation\", which depends on calibration text | clipping = \"mse\" or \"none\"",
        ),
        ("bits = 4\nscaling = \"awq\"\n", "scaling, whose factors depend on calibration text | scaling = \"none\""),
        ("bits = 4\nscaling = \"smoothquant\"\n", "scaling, whose factors depend on calibration text | scaling = \"none\""),
        (
            "bits = 8\nactivations = \"int8\"\n",
            "activations \"int8\": weights alone are rounded in training | activations = \"none\"",
        ),
    ] {
        let without_groups = keys.contains("target") || keys.contains("kmeans") || keys.contains("int8");
        let quantize =
            if without_groups { QUANTIZE.replace("group_size = 16\nembedding", "embedding") } else { QUANTIZE.to_owned() };
        assert_eq!(refused(&format!("{AWARE}{quantize}{keys}")), [format!("{cant}{what}{out}")], "{keys}");
    }
}

#[test]
fn a_quantization_aware_stage_is_redone_where_what_it_rounds_to_changes_and_only_there() {
    let bench = Bench::new();
    let recipe = |aware: bool, quantize: &str| {
        format!(
            "{NEW}{TRAIN}quantization_aware = {aware}\n[[stage]]\n[stage.quantize]\ngroup_size = 16\nembedding_group_size = 16\n{quantize}"
        )
    };
    let step = |aware: bool, quantize: &str| {
        assert_eq!(bench.refused(&recipe(aware, quantize)), [""; 0]);
        Plan::of(Draft::load(&bench.path("small.toml"), &[])).unwrap().steps()[0].clone()
    };
    let [plain, aware] = [false, true].map(|aware| step(aware, "bits = 4\n"));
    assert_eq!(
        (plain.quantization, aware.quantization.as_ref().map(|quantization| quantization.name())),
        (None, Some("INT4 g16".to_owned()))
    );
    // Another copy of the weights, nothing else.
    assert_eq!(aware.peak_memory_bytes - plain.peak_memory_bytes, aware.output.weight_bytes);
    for other in [
        "bits = 3\n",
        "bits = 4\nsymmetric = false\n",
        "bits = 4\nclipping = \"mse\"\n",
        "bits = 4\nscale_dtype = \"bf16\"\n",
        "bits = 4\nembedding = \"dense\"\n",
        "bits = 4\noverrides = [{ match = \"*.down_proj\", bits = 8 }]\n",
    ] {
        assert_ne!(step(true, other).fingerprint, aware.fingerprint, "{other}");
        assert_eq!(step(false, other).fingerprint, plain.fingerprint, "{other}");
    }
    for same in [
        "bits = 4\nstorage = \"entropy\"\n",
        "bits = 4\ndamping = 0.5\n",
        "bits = 4\noverrides = [{ match = \"*.down_proj\", bits = 4 }]\n",
    ] {
        assert_eq!(step(true, same).fingerprint, aware.fingerprint, "{same}");
    }
}

#[test]
fn sizes_that_are_together_more_than_any_model_is_are_refused() {
    let refused = |sizes: &[(&str, &str)]| {
        let recipe = sizes.iter().fold(format!("{NEW}{TRAIN}"), |recipe, (from, to)| recipe.replace(from, to));
        Bench::new().refused(&recipe)
    };
    let wide = [("hidden_size = 16", "hidden_size = 16777216"), ("intermediate_size = 64", "intermediate_size = 16777216")];
    let deep = ("layers = 1", "layers = 4096");
    // 7 matrices of 2⁴⁸ weights in each of 2¹² layers, 2 · 2¹² + 1 norms and 258 rows of the embedding, each 2²⁴ wide.
    assert_eq!(
        refused(&[wide[0], wide[1], deep]),
        [format!("5: its sizes make {} weights, and at most 70368744177664 are read", 7 * (1u64 << 60) + ((8193 + 258) << 24))]
    );
    let heads = ("heads = 2", "heads = 16777216\nhead_dim = 16777216");
    assert_eq!(
        refused(&[heads, wide[0], deep]),
        ["5: 16777216 attention heads of 16777216 elements are together wider than 16777216"]
    );
}

#[test]
fn a_budget_that_the_weights_alone_exceed_is_refused_with_what_is_too_much() {
    let bench = Bench::with_text("a b z", &"a b z ".repeat(1000));
    bench.checkpoint("model", llama());
    fs_err::write(bench.path("model/tokenizer.json"), words(2)).unwrap();
    let recipe = |budget: u64, keys: &str| {
        format!("{OLD}[[stage]]\n[stage.quantize]\nembedding = \"dense\"\n{keys}\n[budget]\nartifact_bytes = {budget}\n")
    };
    let tokenizer = words(2).len() as u64;
    let refused = bench.refused(&recipe(1000, "bits = 8"));
    let [mistake] = refused.as_slice() else { panic!("one mistake: {refused:?}") };
    let (start, end) = ("11: artifact_bytes is 1000, and the artifact has ", "raise the budget");
    assert!(mistake.starts_with(start) && mistake.ends_with(end), "{mistake}");
    let weights: u64 = mistake[start.len()..].split(' ').next().unwrap().parse().unwrap();
    assert!(mistake.contains(&format!("{weights} bytes of weights and {tokenizer} of its tokenizer: ")), "{mistake}");
    // A byte less than what must be there is too little, as much is enough: configuration and manifest are not known yet.
    let too_little = bench.refused(&recipe(weights + tokenizer - 1, "bits = 8"));
    assert!(too_little[0].contains("of its tokenizer: 1 B too many"), "{too_little:?}");
    assert_eq!(bench.refused(&recipe(weights + tokenizer, "bits = 8")), [""; 0]);
    // What coding leaves of the weights only the run tells.
    assert_eq!(bench.refused(&recipe(1000, "bits = 8\nstorage = \"entropy\"")), [""; 0]);
}
