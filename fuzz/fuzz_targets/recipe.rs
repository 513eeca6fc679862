//! A recipe, a zero byte, and one `key=value` change in each line.
#![no_main]

use compressor_format::{Architecture, Draft, Mistake, ModelSource, Place, Recipe};
use compressor_fuzz::{folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([text, changes]) = parts(input) else { return };
    let folder = folder(&[("recipe.toml", text)]);
    let (Ok(text), Ok(changes)) = (str::from_utf8(text), str::from_utf8(changes)) else { return };
    let path = folder.path().join("recipe.toml");
    in_proportion(input.len(), || {
        match Recipe::load(&path) {
            Ok((recipe, _)) => {
                assert!(recipe.stages.len() <= 256);
                if let ModelSource::New(sizes) = &recipe.model {
                    assert!(sizes.layers <= Architecture::MOST_LAYERS && sizes.hidden_size <= Architecture::LARGEST_SIZE);
                }
                assert_eq!(Recipe::from_toml(text).as_ref(), Ok(&recipe));
                let written = toml::to_string(&recipe).expect("a recipe is TOML");
                assert_eq!(Recipe::from_toml(&written).as_ref(), Ok(&recipe), "{written}");
            }
            Err(mistakes) => {
                // The others are counted.
                assert!(mistakes.len() <= 51, "{} mistakes", mistakes.len());
                check(&mistakes, text);
            }
        }
        let changes: Vec<String> = changes.lines().map(str::to_owned).collect();
        let draft = Draft::load(&path, &changes);
        assert!(draft.recipe().is_some() || !draft.mistakes().is_empty());
        let is_sound = draft.is_sound(&Place::default());
        assert_eq!(is_sound, draft.mistakes().is_empty() && draft.recipe().is_some());
        assert!(!is_sound || draft.knows_stages());
        match draft.finish() {
            Ok(_) => assert!(is_sound),
            Err(mistakes) => check(&mistakes, text),
        }
    });
});

/// There is a reason, and its line is one of the text's.
fn check(mistakes: &[Mistake], text: &str) {
    assert!(!mistakes.is_empty());
    for mistake in mistakes {
        assert!(!mistake.message.is_empty());
        if let Some(line) = mistake.line {
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "{mistake:?}");
        }
    }
}
