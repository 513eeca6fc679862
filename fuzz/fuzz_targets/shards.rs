//! An index and two shards: `model.safetensors.index.json`, a zero byte, what `a` and `b` both hold.
#![no_main]

use compressor_format::TensorFiles;
use compressor_fuzz::{check_refusal, check_slice, folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([index, shard]) = parts(input) else { return };
    let folder = folder(&[("model.safetensors.index.json", index), ("a", shard), ("b", shard)]);
    in_proportion(input.len(), || match TensorFiles::open(folder.path()) {
        Ok(files) => {
            assert!(files.files().iter().all(|file| file.parent() == Some(folder.path())), "{:?}", files.files());
            files.iter().for_each(|(_, tensor)| check_slice(tensor));
        }
        Err(error) => check_refusal(&error, folder.path()),
    });
});
