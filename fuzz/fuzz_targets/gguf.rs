//! A GGUF file: head, configuration, every tensor, and the model it makes.
#![no_main]

use compressor_format::{Checkpoint, GgufFile, Model};
use compressor_fuzz::{ask_model, check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder(&[("model.gguf", input)]);
    let path = folder.path().join("model.gguf");
    in_proportion(input.len(), || {
        let file = match GgufFile::open(&path) {
            Ok(file) => file,
            Err(error) => return check_refusal(&error, &path),
        };
        let mut bytes = 0;
        for tensor in file.tensors() {
            let values = file.tensor_f32(&tensor.name).expect("a tensor of this file");
            assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
            assert_eq!(tensor.bytes.len(), values.len() / tensor.kind.block_elements() * tensor.kind.block_bytes());
            bytes += tensor.bytes.len();
        }
        assert!(bytes <= input.len(), "tensors share no bytes");
        let refusals = [file.config().err(), file.adds_bos().err()];
        refusals.iter().flatten().for_each(|error| check_refusal(error, &path));
        match Checkpoint::open(&path) {
            Ok(checkpoint) => ask_model(&Model::Checkpoint(checkpoint)),
            Err(error) => check_refusal(&error, &path),
        }
    });
});
