//! A recipe, a zero byte, and one `key=value` change in each line.
#![no_main]

use compressor_format::{Mistake, Recipe};
use compressor_fuzz::{folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([text, changes]) = parts(input) else { return };
    let folder = folder(&[("recipe.toml", text)]);
    let (Ok(text), Ok(changes)) = (str::from_utf8(text), str::from_utf8(changes)) else { return };
    in_proportion(input.len(), || {
        let (recipe, source) = match Recipe::load(&folder.path().join("recipe.toml")) {
            Ok(loaded) => loaded,
            Err(mistakes) => return check(&mistakes, Some(text)),
        };
        assert_eq!(Recipe::from_toml(text).as_ref(), Ok(&recipe));
        let written = toml::to_string(&recipe).expect("a recipe is TOML");
        assert_eq!(Recipe::from_toml(&written).as_ref(), Ok(&recipe), "{written}");
        assert_eq!(source.with(&[]).as_ref(), Ok(&recipe));
        let changes: Vec<String> = changes.lines().map(str::to_owned).collect();
        if let Err(mistakes) = source.with(&changes) {
            check(&mistakes, None);
        }
    });
});

/// There is a reason, and its line is one of the text's.
fn check(mistakes: &[Mistake], text: Option<&str>) {
    assert!(!mistakes.is_empty());
    for mistake in mistakes {
        assert!(!mistake.message.is_empty());
        if let (Some(line), Some(text)) = (mistake.line, text) {
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "{mistake:?}");
        }
    }
}
