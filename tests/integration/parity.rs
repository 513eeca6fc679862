//! The two forward passes, written apart from each other, on every family.

use compressor_engine::{ActivationType, Engine, Logits, Options};
use compressor_format::{Artifact, Checkpoint, EmbeddingScheme, Model, Weights};
use compressor_pipeline::quantize::{Quantization, quantize};

use crate::command::root;

/// Both compute in f32 in different orders; the smallest mistake that was tried (an epsilon, a rotary base, the kind of GELU)
/// moves a logit by more than 2e-4.
pub(crate) const WORST_DIFFERENCE: f32 = 5e-5;

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

#[test]
fn engine_and_trainer_agree_on_what_integers_stand_for() {
    let quantizations = [
        Quantization { embedding_group_size: 8, ..Quantization::default() },
        Quantization {
            bits: 4,
            group_size: Some(4),
            symmetric: false,
            embedding: EmbeddingScheme::Int3,
            embedding_group_size: 4,
            ..Quantization::default()
        },
    ];
    let mut count = 0;
    for entry in fs_err::read_dir(root().join("tests/golden/models")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
        for quantization in &quantizations {
            let folder = tempfile::tempdir().unwrap();
            quantize(&checkpoint, quantization, None, folder.path(), &mut |_, _, _| {}).unwrap();
            let artifact = Artifact::open(folder.path()).unwrap();
            let values = |id| (id, artifact.values(id).unwrap());
            let tensors = artifact.architecture().tensors().into_iter().map(values).collect();
            let weights = Weights::new(artifact.architecture().clone(), artifact.config().clone(), tensors);
            let tokens: Vec<u32> = (0..24).map(|place| (place * 7 + 3) % weights.architecture().vocab_size as u32).collect();
            let options = Options { activations: ActivationType::F32, ..Options::default() };
            let engine = Engine::load(&Model::Artifact(artifact.clone()), options).unwrap();
            let ours = engine.forward(&mut engine.cache(tokens.len()), &tokens, Logits::All).unwrap();
            let theirs = compressor_train::logits(&weights, &tokens, 1, tokens.len(), "cpu").unwrap();
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= WORST_DIFFERENCE, "{}, {}: {worst}", path.display(), quantization.name());
            count += 1;
        }
    }
    assert_eq!(count, 16, "new golden model? count it here");
}
