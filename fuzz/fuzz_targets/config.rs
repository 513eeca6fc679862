//! A `config.json` of any family: what is read is written and read again the same, and a key that nothing knows is refused by name.
#![no_main]

use std::collections::BTreeSet;
use std::path::Path;

use compressor_format::{Architecture, Family, StoredTensor};
use compressor_fuzz::{check_refusal, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(input) else { return };
    let path = Path::new("fuzzed/config.json");
    in_proportion(input.len(), || {
        let architecture = match Family::read(&config, path) {
            Ok(architecture) => architecture,
            Err(error) => return check_refusal(&error, path),
        };
        check_tensors(&architecture);
        assert!(architecture.most_tokens().is_none_or(|most| most >= architecture.max_position_embeddings));
        let mut more = config.clone();
        more["no such key"] = true.into();
        let refusal = Family::read(&more, path).expect_err("nothing knows this key").to_string();
        assert!(refusal.contains("`no such key` is true"), "{refusal}");
        let written = Family::write(&architecture, &config, path).expect("its layers are alike");
        let again = Family::read(&written, path).expect("what was written can be read");
        // A Llama whose heads do not divide its width is written as the Mistral it equals.
        assert_eq!(Architecture { family: architecture.family, ..again }, architecture, "{written}");
    });
});

/// Names differ, and no size is zero or more than can be counted.
fn check_tensors(architecture: &Architecture) {
    let stored = Family::stored(architecture);
    let mut names = BTreeSet::new();
    for tensor in &stored {
        assert!(names.insert(&tensor.name), "{}", tensor.name);
        assert!(bytes(tensor, architecture).is_some_and(|bytes| bytes > 0), "{} {:?}", tensor.name, tensor.shape(architecture));
    }
    let parts: usize = stored.iter().map(|tensor| tensor.parts.len()).sum();
    assert_eq!(parts, architecture.tensors().len(), "each tensor is stored once");
    assert!(architecture.parameters() > 0);
}

fn bytes(tensor: &StoredTensor, architecture: &Architecture) -> Option<usize> {
    tensor.shape(architecture).iter().try_fold(8usize, |bytes, size| bytes.checked_mul(*size))
}
