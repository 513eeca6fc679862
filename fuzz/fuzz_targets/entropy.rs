//! A `model.entropy` of any bytes, and safetensors files that are coded and restored.
#![no_main]

use arbitrary::Arbitrary;
use compressor_format::{EntropyFile, TensorFiles, write_entropy};
use compressor_fuzz::{check_refusal, check_slice, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Coded(&'a [u8]),
    Decoded(&'a [u8]),
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Coded(bytes) => {
            let folder = folder(&[("model.entropy", bytes)]);
            let path = folder.path().join("model.entropy");
            in_proportion(bytes.len(), || match EntropyFile::open(&path).and_then(|file| Ok((file.restore()?, file))) {
                Ok((restored, file)) => {
                    assert_eq!(restored.len() as u64, file.restored_bytes());
                    let again = folder.path().join("again");
                    file.write(&again).expect("it was restored");
                    assert_eq!(fs_err::read(again).expect("just written"), *restored);
                }
                Err(error) => check_refusal(&error, &path),
            });
            match TensorFiles::open(folder.path()) {
                Ok(files) => files.iter().for_each(|(_, tensor)| check_slice(tensor)),
                Err(error) => check_refusal(&error, folder.path()),
            }
        }
        Input::Decoded(bytes) => {
            let folder = folder(&[("model.safetensors", bytes)]);
            let [decoded, coded] = ["model.safetensors", "model.entropy"].map(|name| folder.path().join(name));
            in_proportion(bytes.len(), || match write_entropy(&decoded, &coded) {
                Ok(_) => {
                    let file = EntropyFile::open(&coded).expect("what was written can be read");
                    assert_eq!(*file.restore().expect("what was written can be read"), *bytes);
                }
                Err(error) => check_refusal(&error, &decoded),
            });
        }
    }
});
