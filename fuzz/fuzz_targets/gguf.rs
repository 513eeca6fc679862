//! A GGUF file, or two parts of a split model: head, configuration, every tensor, and the model it makes.
#![no_main]

use compressor_format::{Checkpoint, GgufFile, Model};
use compressor_fuzz::{ask_model, check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

/// The parts of a split model go by their names; a whole file may have any.
const NAMES: [&str; 2] = ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"];

fuzz_target!(|input: &[u8]| {
    let second = (1..input.len()).find(|&at| input[at..].starts_with(b"GGUF")).unwrap_or(input.len());
    let (first, second) = input.split_at(second.min(input.len()));
    let files = [(NAMES[0], first), (NAMES[1], second)];
    let folder = folder(if second.is_empty() { &files[..1] } else { &files });
    let path = folder.path().join(NAMES[0]);
    in_proportion(input.len(), || {
        let file = match GgufFile::open(&path) {
            Ok(file) => file,
            Err(error) => return check_refusal(&error, folder.path()),
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
