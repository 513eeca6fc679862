#![allow(clippy::unwrap_used)]

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

fn text(text: &str) -> RecipeText {
    RecipeText { path: "small.toml".into(), text: text.to_owned() }
}

fn mistakes(of: &str) -> Vec<(Option<usize>, String)> {
    text(of).parse().unwrap_err().into_iter().map(|mistake| (mistake.line, mistake.message)).collect()
}

#[test]
fn a_recipe_reads_in_the_order_it_runs() {
    let recipe = text(RECIPE).parse().unwrap();
    assert_eq!(recipe.stages.iter().map(Stage::name).collect::<Vec<_>>(), ["train", "distill", "prune"]);
    let Stage::Distill(distill) = &recipe.stages[1] else { panic!("a distill stage") };
    assert_eq!(distill.student, Some(Student::Layers(1)));
    assert_eq!(recipe.run_folder(), Path::new("runs/small"));
}

#[test]
fn a_key_is_found_at_its_line() {
    let text = text(RECIPE);
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
fn a_wrong_type_is_named_at_its_line() {
    let wrong = RECIPE.replace("steps = 200", "steps = \"many\"");
    assert_eq!(mistakes(&wrong), [(Some(17), "invalid type: string \"many\", expected usize".to_owned())]);
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
fn a_vocabulary_must_hold_the_bytes_and_two_special_tokens() {
    let with = |vocab_size: usize| RECIPE.replace("vocab_size = 512", &format!("vocab_size = {vocab_size}"));
    assert_eq!(mistakes(&with(257)), [(Some(5), "vocab_size is 257; it must lie from 258 to 16777216".to_owned())]);
    assert!(text(&with(258)).parse().is_ok());
}

#[test]
fn a_missing_key_is_named_at_its_table() {
    let wrong = RECIPE.replace("steps = 200\n", "");
    assert_eq!(mistakes(&wrong), [(Some(16), "missing field `steps`".to_owned())]);
}

#[test]
fn text_that_is_no_toml_is_refused_at_its_line() {
    let found = mistakes("name = \"a\"\nseed = = 3\n");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, Some(2));
}

#[test]
fn two_sources_of_a_model_are_refused() {
    let wrong = RECIPE.replace("[model.new]", "[model]\npath = \"here\"\n[model.new]");
    assert_eq!(mistakes(&wrong).len(), 1);
}

#[test]
fn keys_are_changed_without_editing_the_file() {
    let changes = ["stage.2.distill.steps=50", "name=other", "stage.3.prune.importance=magnitude", "budget.artifact_bytes=5"];
    let recipe = text(RECIPE).with(&changes.map(str::to_owned)).unwrap();
    let Stage::Distill(distill) = &recipe.stages[1] else { panic!("a distill stage") };
    assert_eq!((distill.steps, recipe.name.as_str(), recipe.budget.artifact_bytes), (50, "other", Some(5)));
    let refused = |change: &str| text(RECIPE).with(&[change.to_owned()]).unwrap_err()[0].message.clone();
    assert_eq!(
        refused("stage.9.distill.steps=1"),
        "--set stage.9.distill.steps=1: `9` is not one of the 3 stages, counted from 1"
    );
    let deep = format!("{}=1", ["a"; 60_000].join("."));
    assert_eq!(refused(&deep), "--set: a key of 60000 parts; at most 16 are possible");
    assert_eq!(refused("steps"), "--set steps: a key, `=` and a value are needed");
    assert_eq!(refused("name.more=1"), "--set name.more=1: `name` is a string, not a table");
    assert_eq!(refused("stage.2.distill.stepz=1"), "unknown key `stepz`, did you mean `steps`?");
}
