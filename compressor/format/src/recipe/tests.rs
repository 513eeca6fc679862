#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const RECIPE: &str = r#"name = "small"
dataset = "set.toml"

[model.new]
vocab_size = 512
hidden_size = 64
layers = 2
heads = 4
intermediate_size = 128

[[stage]]
[stage.train]
steps = 10

[[stage]]
[stage.distill]
steps = 200
temperature = 2.0
student.layers = 1

[[stage]]
[stage.prune]
head_ratio = 0.25
"#;

fn draft(text: &str, changes: &[&str]) -> Draft {
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    Draft::new("small.toml".into(), text.to_owned(), &changes)
}

fn read(text: &str) -> Recipe {
    draft(text, &[]).finish().unwrap().0
}

fn mistakes(of: &str) -> Vec<(Option<usize>, String)> {
    draft(of, &[]).finish().unwrap_err().into_iter().map(|mistake| (mistake.line, mistake.message)).collect()
}

/// The one mistake in [`RECIPE`] with a text replaced.
#[track_caller]
fn mistake(from: &str, to: &str) -> Mistake {
    let wrong = RECIPE.replacen(from, to, 1);
    assert_ne!(wrong, RECIPE, "`{from}` stands in the recipe");
    let mut mistakes = draft(&wrong, &[]).finish().unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    mistakes.remove(0)
}

fn at(line: usize, message: &str) -> Mistake {
    Mistake { line: Some(line), ..Mistake::new(message) }
}

#[test]
fn a_recipe_reads_in_the_order_it_runs() {
    let recipe = read(RECIPE);
    assert_eq!(recipe.stages.iter().map(Stage::name).collect::<Vec<_>>(), ["train", "distill", "prune"]);
    let Stage::Distill(distill) = &recipe.stages[1] else { panic!("a distill stage") };
    assert_eq!(distill.student, Some(Student::Layers(1)));
    assert_eq!(recipe.run_folder(), Path::new("runs/small"));
}

#[test]
fn a_key_is_found_at_its_line() {
    let text = RecipeText::new("small.toml".into(), RECIPE.to_owned());
    assert_eq!(text.line(&Place::stage(1, "distill").then("temperature")), Some(18));
    assert_eq!(text.line(&Place::stage(2, "prune").then("head_ratio")), Some(23));
    // A key that is not written is found at the table that would hold it.
    assert_eq!(text.line(&Place::stage(2, "prune").then("channel_ratio")), Some(22));
}

#[test]
fn unknown_keys_are_all_named_with_the_nearest_known_one() {
    let wrong = RECIPE.replace("temperature", "temprature").replace("head_ratio", "heads_ratio");
    assert_eq!(
        mistakes(&wrong),
        [
            (Some(18), "unknown key `temprature`, did you mean `temperature`?".to_owned()),
            (Some(23), "unknown key `heads_ratio`, did you mean `head_ratio`?".to_owned()),
        ]
    );
}

#[test]
fn an_unknown_stage_is_named_at_its_line() {
    let wrong = RECIPE.replace("[stage.prune]", "[stage.prunes]");
    assert_eq!(mistakes(&wrong), [(Some(22), "unknown key `prunes`, did you mean `prune`?".to_owned())]);
}

#[test]
fn a_wrong_type_is_named_at_its_line_with_what_it_must_be() {
    let steps = |value: &str| mistake("steps = 200", &format!("steps = {value}"));
    assert_eq!(steps("\"many\""), at(17, "steps is \"many\"; it must be a whole number, 0 or more"));
    assert_eq!(steps("-3"), at(17, "steps is -3; it must be a whole number, 0 or more"));
    assert_eq!(steps("2.5"), at(17, "steps is 2.5; it must be a whole number, 0 or more"));
    assert_eq!(steps("[200]"), at(17, "steps is a list; it must be a whole number, 0 or more"));
    assert_eq!(mistake("temperature = 2.0", "temperature = true"), at(18, "temperature is true; it must be a number"));
    assert_eq!(mistake("name = \"small\"", "name = 1979-05-27"), at(1, "name is 1979-05-27; it must be a text in quotes"));
    let prune = |key: &str| mistake("head_ratio = 0.25", &format!("head_ratio = 0.25\n{key}"));
    assert_eq!(prune("layers = [1, \"2\"]"), at(24, "entry 2 of layers is \"2\"; it must be a whole number, 0 or more"));
    assert_eq!(prune("layers = 1"), at(24, "layers is 1; it must be a list"));
    let quantize = |keys: &str| mistake("[stage.prune]\nhead_ratio = 0.25", &format!("[stage.quantize]\n{keys}"));
    assert_eq!(quantize("bits = 300"), at(23, "bits is 300; it must be a whole number from 0 to 255"));
    assert_eq!(quantize("bits = 8\nsymmetric = \"no\""), at(24, "symmetric is \"no\"; it must be true or false"));
    let size = "target_bytes is \"many\"; it must be a whole number of bytes, or a text such as \"80 MB\" or \"1.5 GiB\"";
    assert_eq!(quantize("target_bytes = \"many\""), at(23, size));
    assert_eq!(
        mistake("[model.new]", "[model.new]\ntied_embeddings = 1"),
        at(5, "tied_embeddings is 1; it must be true or false")
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_and_all_known() {
    let importance = |value: &str| mistake("head_ratio = 0.25", &format!("head_ratio = 0.25\nimportance = {value}"));
    let known = "known here: activation, magnitude";
    assert_eq!(importance("\"activations\""), at(24, "importance is \"activations\"; did you mean \"activation\"?").hint(known));
    assert_eq!(importance("\"size\""), at(24, "importance is \"size\"").hint(known));
    assert_eq!(importance("1"), at(24, "importance is 1; it must hold one of activation, magnitude"));
    assert_eq!(importance("{ magnitude = 2 }"), at(24, "magnitude holds a value; write its name alone, \"magnitude\""));
    assert_eq!(
        mistake("vocab_size = 512", "vocab_size = 512\nfamily = \"lama\""),
        at(6, "family is \"lama\"; did you mean \"llama\"?").hint("known here: llama, mistral, qwen2, qwen3, gpt2")
    );
}

#[test]
fn a_table_of_another_shape_is_named() {
    let stages = "train, distill, prune, quantize, learn_scales, verify";
    assert_eq!(
        mistake("student.layers = 1", "student = \"new\""),
        at(19, "student is \"new\" and nothing more; write student.new = …")
    );
    assert_eq!(
        mistake("student.layers = 1", "student = {}"),
        at(19, "student is empty; it must hold one of new, layers, checkpoint")
    );
    assert_eq!(
        mistake("[[stage]]\n[stage.prune]\nhead_ratio = 0.25", "[[stage]]"),
        at(21, &format!("entry 3 of stage is empty; it must hold one of {stages}"))
    );
    assert_eq!(
        mistake("[[stage]]\n[stage.prune]", "[stage.prune]"),
        at(15, "entry 2 of stage holds `distill` and `prune`; it must hold one of them")
    );
    assert_eq!(
        mistake("[model.new]", "[model]\npath = \"here\"\n[model.new]"),
        at(4, "model holds `new` and `path`; it must hold one of them")
    );
    let one = "name = \"a\"\nmodel.path = \"b\"\n[stage.verify]\n";
    assert_eq!(
        draft(one, &[]).finish().unwrap_err(),
        [at(3, "stage is a table; it must be a list").hint("write [[stage]], in two brackets, for each entry")]
    );
}

#[test]
fn values_out_of_range_are_all_named() {
    let wrong = RECIPE.replace("temperature = 2.0", "temperature = 0.0").replace("head_ratio = 0.25", "head_ratio = -0.25");
    assert_eq!(
        mistakes(&wrong),
        [
            (Some(18), "temperature is 0; it must lie from more than 0 to 1000000".to_owned()),
            (Some(23), "head_ratio is -0.25; it must lie from 0 to 1".to_owned()),
        ]
    );
}

#[test]
fn a_name_on_a_hub_is_refused_as_such() {
    let text = "name = \"x\"\nmodel.path = \"hf:org/model\"\n[[stage]]\n[stage.quantize]\nbits = 8\n";
    let refused = Recipe::from_toml(text).unwrap_err();
    let message =
        "hf:org/model: nothing is downloaded: get it with `hf download org/model --local-dir model` and give that folder";
    assert_eq!(refused, [at(2, message)]);
}

#[test]
fn a_vocabulary_must_hold_the_bytes_and_two_special_tokens() {
    let with = |vocab_size: usize| RECIPE.replace("vocab_size = 512", &format!("vocab_size = {vocab_size}"));
    assert_eq!(mistakes(&with(257)), [(Some(5), "vocab_size is 257; it must lie from 258 to 16777216".to_owned())]);
    read(&with(258));
}

#[test]
fn missing_keys_are_all_named_at_their_tables() {
    assert_eq!(mistake("steps = 200\n", ""), at(16, "missing key `steps`"));
    let wrong =
        RECIPE.replace("hidden_size = 64\nlayers = 2\n", "").replace("steps = 200\n", "").replace("name = \"small\"\n", "");
    let missing = |line: Option<usize>, key: &str| (line, format!("missing key `{key}`"));
    assert_eq!(
        mistakes(&wrong),
        [missing(Some(3), "hidden_size"), missing(Some(3), "layers"), missing(Some(13), "steps"), missing(None, "name")]
    );
    assert_eq!(
        mistakes("seed = 1\n"),
        [missing(None, "name"), missing(None, "model"), (None, "there is no [[stage]]: nothing to do".to_owned())]
    );
}

#[test]
fn a_misspelt_key_is_not_missing_as_well() {
    assert_eq!(mistake("steps = 200", "step = 200").message, "unknown key `step`, did you mean `steps`?");
}

#[test]
fn a_range_that_depends_on_what_could_not_be_read_is_left_out() {
    // Warm-up ends before `steps`, whatever those are; the learning rate beside it and the next stage do not care.
    let steps = "steps = \"ten\"\nwarmup_steps = 20\nlearning_rate = 2.0";
    let wrong = RECIPE.replace("steps = 10", steps).replace("temperature = 2.0", "temperature = -1");
    assert_eq!(
        mistakes(&wrong),
        [
            (Some(13), "steps is \"ten\"; it must be a whole number, 0 or more".to_owned()),
            (Some(15), "learning_rate is 2; it must lie from more than 0 to 1".to_owned()),
            (Some(20), "temperature is -1; it must lie from more than 0 to 1000000".to_owned()),
        ]
    );
}

#[test]
fn mistakes_of_every_kind_come_in_one_go_and_in_the_order_of_lines() {
    let wrong = "name = \"a/b\"\nsed = 3\n\n[model]\npaht = \"m\"\n\n[[stage]]\n[stage.train]\nsteps = 1.5\n\n[[stage]]\n[stage.prune]\n\
                 importance = \"size\"\nhead_ratio = 7\n\n[[stage]]\n[stage.quantise]\nbits = 4\n\n[[stage]]\n[stage.verify]\n\
                 windows = 0\nkl_maen = 1\n\n[budget]\nartifact_bytes = \"1 XB\"\ntoken_milliseconds_p50 = 0\n";
    let found: Vec<String> = mistakes(wrong).into_iter().map(|(line, message)| format!("{}: {message}", line.unwrap())).collect();
    assert_eq!(
        found,
        [
            "1: name \"a/b\" can't name a folder; letters, digits, `-`, `_` and `.` can",
            "2: unknown key `sed`, did you mean `seed`?",
            "5: unknown key `paht`, did you mean `path`?",
            "9: steps is 1.5; it must be a whole number, 0 or more",
            "13: importance is \"size\"",
            "14: head_ratio is 7; it must lie from 0 to 1",
            "17: unknown key `quantise`, did you mean `quantize`?",
            "22: windows is 0; it must lie from 1 to 1000000000",
            "23: unknown key `kl_maen`, did you mean `kl_mean`?",
            "26: artifact_bytes is \"1 XB\"; it must be a whole number of bytes, or a text such as \"80 MB\" or \"1.5 GiB\"",
            "27: token_milliseconds_p50 is 0; it must lie from more than 0 to 1000000000",
        ]
    );
}

#[test]
fn text_that_is_no_toml_is_refused_at_every_line() {
    let found = mistakes("name = \"a\"\nseed = = 3\n[model\npath = \"b\"\nname = 3\n");
    let expected = [(2, "extra `=`, expected nothing"), (3, "unclosed table, expected `]`")];
    assert_eq!(found, expected.map(|(line, message)| (Some(line), message.to_owned())));
    assert_eq!(mistakes("seed = 1\nseed = 2\n"), [(Some(2), "duplicate key".to_owned())]);
}

#[test]
fn keys_are_changed_without_editing_the_file() {
    let changes = ["stage.2.distill.steps=50", "name=other", "stage.3.prune.importance=magnitude", "budget.artifact_bytes=5"];
    let (recipe, _) = draft(RECIPE, &changes).finish().unwrap();
    let Stage::Distill(distill) = &recipe.stages[1] else { panic!("a distill stage") };
    assert_eq!((distill.steps, recipe.name.as_str(), recipe.budget.artifact_bytes), (50, "other", Some(ByteSize(5))));
    let refused = |change: &str| draft(RECIPE, &[change]).finish().unwrap_err()[0].message.clone();
    assert_eq!(
        refused("stage.9.distill.steps=1"),
        "--set stage.9.distill.steps=1: `9` is not one of the 3 stages, counted from 1"
    );
    let deep = format!("{}=1", ["a"; 60_000].join("."));
    assert_eq!(refused(&deep), "--set: a key of 60000 parts; at most 16 are possible");
    assert_eq!(refused("steps"), "--set steps: a key, `=` and a value are needed");
    assert_eq!(refused("name.more=1"), "--set name.more=1: `name` is a string, not a table");
    assert_eq!(refused("stage.2.distill.stepz=1"), "--set stage.2.distill.stepz=1: unknown key `stepz`, did you mean `steps`?");
}

#[test]
fn a_mistake_is_at_the_change_that_made_it_or_at_its_own_line() {
    let mistakes =
        draft(&RECIPE.replace("head_ratio = 0.25", "head_ratio = 2"), &["stage.2.distill.kd_ratio=3"]).finish().unwrap_err();
    assert_eq!(
        mistakes,
        [
            at(23, "head_ratio is 2; it must lie from 0 to 1"),
            Mistake::new("--set stage.2.distill.kd_ratio=3: kd_ratio is 3; it must lie from 0 to 1"),
        ]
    );
}

proptest! {
    #[test]
    fn any_text_ends_in_a_recipe_or_in_mistakes(text in ".{0,80}(\n.{0,40}){0,4}") {
        if let Err(mistakes) = draft(&text, &[]).finish() {
            prop_assert!(!mistakes.is_empty());
        }
    }

    /// Any value in the place of any value of a whole recipe: never a panic, and every mistake has a line.
    #[test]
    fn any_value_anywhere_is_read_or_refused(line in 0..RECIPE.lines().count(), value in prop::sample::select(VALUES)) {
        let mut lines: Vec<String> = RECIPE.lines().map(str::to_owned).collect();
        if let Some((key, _)) = lines[line].clone().split_once('=') {
            lines[line] = format!("{key}= {value}");
            if let Err(mistakes) = draft(&lines.join("\n"), &[]).finish() {
                prop_assert!(!mistakes.is_empty() && mistakes.iter().all(|mistake| mistake.line.is_some()), "{mistakes:?}");
            }
        }
    }
}

const VALUES: &[&str] =
    &["1", "-1", "0.5", "nan", "true", "\"llama\"", "\"new\"", "[]", "[{}]", "{}", "{ new = 1 }", "{ path = [] }", "1979-05-27"];

#[test]
fn migration_strength_is_smoothquants_alone() {
    let read = |keys: &str| {
        let text = format!("name = \"x\"\nmodel.path = \"m\"\n[[stage]]\n[stage.quantize]\nbits = 8\n{keys}\n");
        Recipe::from_toml(&text).map(|recipe| match recipe.stages.into_iter().next() {
            Some(Stage::Quantize(stage)) => (stage.scaling, stage.migration_strength),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(read("").unwrap(), (Scaling::None, None));
    assert_eq!(read("scaling = \"none\"").unwrap(), (Scaling::None, None));
    assert_eq!(read("scaling = \"awq\"").unwrap(), (Scaling::Awq, None));
    assert_eq!(read("scaling = \"smoothquant\"\nmigration_strength = 0").unwrap(), (Scaling::SmoothQuant, Some(0.0)));
    let message = "migration_strength is set, and scaling is not \"smoothquant\"";
    let hint = "leave migration_strength out, or set scaling = \"smoothquant\"";
    for keys in ["migration_strength = 0.5", "migration_strength = 0.5\nscaling = \"awq\""] {
        assert_eq!(read(keys).unwrap_err(), [at(6, message).hint(hint)], "{keys}");
    }
    let message = "migration_strength is 1.5; it must lie from 0 to 1";
    assert_eq!(read("migration_strength = 1.5\nscaling = \"smoothquant\"").unwrap_err(), [at(6, message)]);
    let found = at(6, "scaling is \"smooth_quant\"; did you mean \"smoothquant\"?").hint("known here: none, awq, smoothquant");
    assert_eq!(read("scaling = \"smooth_quant\"").unwrap_err(), [found]);
}

#[test]
fn bits_are_given_or_a_target_chooses_them() {
    let read = |keys: &str| {
        let text = format!("name = \"x\"\nmodel.path = \"m\"\n[[stage]]\n[stage.quantize]\n{keys}\n");
        let shown = |mistake: Mistake| {
            let hint = mistake.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}: {}{hint}", mistake.line.unwrap_or(0), mistake.message)
        };
        Recipe::from_toml(&text).map_err(|mistakes| mistakes.into_iter().map(shown).collect::<Vec<_>>())
    };
    let Stage::Quantize(stage) = &read("target_bytes = \"80 MB\"").unwrap().stages[0] else { panic!("a quantize stage") };
    assert_eq!((stage.bits, stage.target_bytes, stage.embedding), (None, Some(ByteSize(80_000_000)), None));
    assert_eq!((stage.candidates.len(), stage.candidates[0]), (5, CandidateScheme { bits: 3, group_size: Some(32) }));
    assert!(read("target_bits_per_weight = 4.5\ncandidates = [{ bits = 8 }]").is_ok());
    let refused = [
        ("symmetric = true", "4: missing key `bits` (or set target_bytes, which chooses them)"),
        (
            "bits = 4\ntarget_bytes = 5",
            "5: bits and target_bytes are both set: a target chooses the bits of each matrix (leave bits out; `overrides` settle \
             those of some matrices)",
        ),
        (
            "target_bytes = 5\ntarget_bits_per_weight = 4",
            "6: target_bytes and target_bits_per_weight are both set (leave one of them out)",
        ),
        ("target_bytes = 5\ncandidates = []", "6: candidates is empty: target_bytes has nothing to choose from (name some)"),
        (
            "target_bytes = 5\ngroup_size = 32",
            "6: group_size is set, and target_bytes chooses among the group sizes of `candidates` (leave group_size out)",
        ),
        ("target_bits_per_weight = 0", "5: target_bits_per_weight is 0; it must lie from more than 0 to 32"),
    ];
    for (keys, expected) in refused {
        assert_eq!(read(keys).unwrap_err(), [expected.to_owned()], "{keys}");
    }
}

#[test]
fn sizes_that_no_model_has_are_refused() {
    assert_eq!(mistake("layers = 2", "layers = 16777216"), at(7, "layers is 16777216; it must lie from 1 to 4096"));
    assert_eq!(mistake("student.layers = 1", "student.layers = 4097"), at(19, "layers is 4097; it must lie from 1 to 4096"));
    assert_eq!(mistake("heads = 4", "heads = nan").message, "heads is nan; it must be a whole number, 0 or more");
    assert_eq!(mistake("temperature = 2.0", "temperature = nan").message.split(" is ").next(), Some("temperature"));
    assert_eq!(mistake("temperature = 2.0", "temperature = inf").message.split(" is ").next(), Some("temperature"));
    let date = mistake("temperature = 2.0", "temperature = 2026-12-01").message;
    assert_eq!(date, "temperature is 2026-12-01; it must be a number");
}

#[test]
fn many_stages_take_no_longer_than_their_number() {
    let started = std::time::Instant::now();
    let of = |count: usize| mistakes(&format!("{RECIPE}{}", "[[stage]]\n".repeat(count)));
    assert_eq!(of(4000), [(Some(11), "there are 4003 stages; a recipe has at most 256".to_owned())]);
    let some = of(200);
    assert_eq!(some.len(), 51);
    assert_eq!(some[50], (None, "and 150 more mistakes: is this a recipe?".to_owned()));
    // Each lacks a key.
    let lacking = mistakes(&format!("{RECIPE}{}", "[[stage]]\n[stage.train]\n".repeat(250)));
    assert_eq!(lacking.len(), 51);
    assert!(lacking[0].1 == "missing key `steps`", "{lacking:?}");
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn mistakes_are_counted_beyond_those_that_are_told() {
    let text = "Call me Ishmael. Some years ago\n".repeat(30_000);
    let told = mistakes(&text);
    assert_eq!(told.len(), 51);
    assert!(told[50].1.starts_with("and ") && told[50].1.ends_with(" more mistakes: is this a recipe?"), "{:?}", told[50]);
    let keys: String = (0..5000).map(|key| format!("key_{key} = 1\n")).collect();
    assert_eq!(mistakes(&format!("{keys}{RECIPE}")).len(), 51);
}

#[test]
fn absurd_texts_are_refused_in_few_words() {
    let long = "k".repeat(100_000);
    let words = mistakes(&format!("{long} = 1\n{RECIPE}")).remove(0).1;
    assert!(words.starts_with("unknown key `kkk") && words.len() < 200, "{}", words.len());
    let words = mistakes(&RECIPE.replace("steps = 10", &format!("steps = \"{long}\""))).remove(0).1;
    assert!(words.len() < 200, "{}", words.len());
    for nested in [format!("a = {}1{}\n", "[".repeat(50_000), "]".repeat(50_000)), format!("{}b = 1\n", "a.".repeat(50_000))] {
        assert!(!mistakes(&format!("{nested}{RECIPE}")).is_empty());
    }
    for huge in ["99999999999999999999", "1e999", "0x7fffffffffffffff"] {
        assert!(!mistakes(&RECIPE.replace("steps = 10", &format!("steps = {huge}"))).is_empty(), "{huge}");
    }
    assert!(mistakes(&RECIPE.replace("steps = 10", "steps = 10\nsteps = 11"))[0].1.contains("duplicate key"));
}

#[test]
fn a_file_that_is_too_large_for_a_recipe_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs_err::write(&path, vec![0; (1 << 20) + 1]).unwrap();
    let mistakes = Recipe::load(&path).unwrap_err();
    let expected = format!("{}: is no recipe: it has 1048577 bytes, and at most 1048576 are read", path.display());
    assert_eq!(mistakes, [Mistake::new(expected)]);
}

#[test]
fn learning_scales_has_defaults_of_its_own_and_no_decay() {
    let read = |keys: &str| {
        let text = RECIPE.replacen("[stage.prune]\nhead_ratio = 0.25\n", &format!("[stage.learn_scales]\nsteps = 9\n{keys}"), 1);
        draft(&text, &[]).finish().map(|(recipe, _)| recipe)
    };
    let Stage::LearnScales(stage) = &read("").unwrap().stages[2] else { panic!("a stage that learns scales") };
    let Stage::Train(train) = &read("").unwrap().stages[0] else { panic!("a training stage") };
    assert_eq!((stage.temperature, &stage.teacher), (2.0, &None));
    // All else as a training has it.
    let keys =
        TrainingKeys { steps: 10, weight_decay: train.weight_decay, learning_rate: train.learning_rate, ..stage.training() };
    assert_eq!((keys, stage.training().weight_decay), (train.training(), 0.0));
    let refused = |keys: &str| read(keys).unwrap_err().into_iter().map(|mistake| mistake.message).collect::<Vec<_>>();
    assert_eq!(refused("temperature = 0.0"), ["temperature is 0; it must lie from more than 0 to 1000000"]);
    assert_eq!(refused("warmup_steps = 9"), ["warmup_steps is 9; it must lie from 0 to 8"]);
    assert_eq!(refused("kd_ratio = 0.5").len(), 1, "the teacher alone is learnt from");
}
