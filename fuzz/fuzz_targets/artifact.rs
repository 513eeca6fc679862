//! An artifact: `config.json`, a zero byte, `model.safetensors`.
#![no_main]

use compressor_format::{Artifact, Model};
use compressor_fuzz::{ask_model, check_refusal, folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([config, weights]) = parts(input) else { return };
    let folder = folder(&[("config.json", config), ("model.safetensors", weights)]);
    in_proportion(input.len(), || match Artifact::open(folder.path()) {
        Ok(artifact) => ask_model(&Model::Artifact(artifact)),
        Err(error) => check_refusal(&error, folder.path()),
    });
});
