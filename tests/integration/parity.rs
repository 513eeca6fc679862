//! The two forward passes, written apart from each other, on every family.

use compressor_engine::{Engine, Logits, Options};
use compressor_format::Checkpoint;

use crate::command::root;

/// Both compute in f32 in different orders; the smallest mistake that was tried (an epsilon, a rotary base, the kind of GELU)
/// moves a logit by more than 2e-4.
const WORST_DIFFERENCE: f32 = 5e-5;

#[test]
fn engine_and_trainer_agree_on_every_family() {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root().join("tests/golden/models")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tokens: Vec<u32> = (0..24).map(|place| (place * 7 + 3) % checkpoint.architecture().vocab_size as u32).collect();
        let engine = Engine::open(&path, Options::default()).unwrap();
        let ours = engine.forward(&mut engine.cache(tokens.len()), &tokens, Logits::All).unwrap();
        let theirs = compressor_train::logits(&checkpoint.weights().unwrap(), &tokens, 1, tokens.len(), "cpu").unwrap();
        assert_eq!(ours.len(), theirs.len());
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= WORST_DIFFERENCE, "{}: {worst}", path.display());
        names.push(checkpoint.architecture().family);
    }
    assert_eq!(names.len(), 8, "new golden model? count it here");
    let mut families: Vec<&str> = names.iter().map(|family| family.model_type()).collect();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), compressor_format::Family::ALL.len(), "every family has a golden model: {families:?}");
}
