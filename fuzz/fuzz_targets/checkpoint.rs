//! A checkpoint: `config.json`, a zero byte, `model.safetensors`.
#![no_main]

use compressor_format::{Checkpoint, Model};
use compressor_fuzz::{ask_model, check_refusal, folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([config, weights]) = parts(input) else { return };
    let folder = folder(&[("config.json", config), ("model.safetensors", weights)]);
    in_proportion(input.len(), || match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => ask_model(&Model::Checkpoint(checkpoint)),
        Err(error) => check_refusal(&error, folder.path()),
    });
});
