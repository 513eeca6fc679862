//! A safetensors file: whatever opens lies inside the file.
#![no_main]

use compressor_format::TensorFiles;
use compressor_fuzz::{check_refusal, check_slice, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder(&[("model.safetensors", input)]);
    in_proportion(input.len(), || match TensorFiles::open(folder.path()) {
        Ok(files) => {
            let mut bytes = 0;
            for (name, tensor) in files.iter() {
                check_slice(tensor);
                assert_eq!(files.get(name).map(|found| found.bytes.as_ptr()), Some(tensor.bytes.as_ptr()));
                assert_eq!(tensor.to_f32().is_some(), tensor.dtype.is_float());
                bytes += tensor.bytes.len();
            }
            assert!(bytes <= input.len(), "tensors share no bytes");
        }
        Err(error) => check_refusal(&error, folder.path()),
    });
});
