//! What a plan refuses before any work.

#![allow(clippy::unwrap_used)]

use compressor_format::Recipe;
use compressor_pipeline::Plan;

const RECIPE: &str = r#"name = "small"
dataset = "DATASET"
output = "OUTPUT"

[model.new]
vocab_size = 258
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32

[[stage]]
[stage.train]
steps = 10
batch_size = 4
sequence_length = 64
"#;

/// Plans [`RECIPE`] for three examples to learn from, with one replacement: each mistake with its line and the way out.
fn mistakes(from: &str, to: &str) -> Vec<(Option<usize>, String, Option<String>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("set.toml", "[jsonl]\ntrain = \"train.jsonl\"\n");
    write("train.jsonl", &"{\"prompt\": \"a\", \"completion\": \"b\"}\n".repeat(3));
    let text = RECIPE.replace("DATASET", &path("set.toml")).replace("OUTPUT", &path("out")).replace(from, to);
    write("small.toml", &text);
    let (recipe, text) = Recipe::load(&folder.path().join("small.toml")).unwrap();
    let mistakes = Plan::new(recipe, Some(&text)).err().unwrap_or_default();
    mistakes.into_iter().map(|mistake| (mistake.line, mistake.message, mistake.hint)).collect()
}

#[test]
fn a_batch_of_more_examples_than_there_are_is_refused_at_its_line() {
    let hint = "lower it; gradient_accumulation puts several batches into one step".to_owned();
    let expected = (Some(15), "batch_size 4 is more than the train split's 3 examples".to_owned(), Some(hint));
    assert_eq!(mistakes("", ""), [expected]);
    assert_eq!(mistakes("batch_size = 4", "batch_size = 3"), []);
}
