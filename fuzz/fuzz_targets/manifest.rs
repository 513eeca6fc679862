//! A `manifest.json` beside one other file.
#![no_main]

use compressor_format::Manifest;
use compressor_fuzz::{check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder(&[("manifest.json", input), ("model.safetensors", b"abc")]);
    in_proportion(input.len(), || {
        let manifest = match Manifest::read(folder.path()) {
            Ok(manifest) => manifest,
            Err(error) => return check_refusal(&error, folder.path()),
        };
        assert!(manifest.files.iter().all(|file| !file.name.contains(['/', '\\'])));
        let mismatches = manifest.check(folder.path()).expect("a folder of files");
        let listed = manifest.files.iter().any(|file| file.name == "model.safetensors");
        // Each listed file that is not there, and the one that is, unless it is what the manifest says: then it may stand for the
        // coded one too.
        let coded = manifest.files.iter().any(|file| file.name == "model.entropy");
        assert!(mismatches.len() + usize::from(listed) + usize::from(listed && coded) >= manifest.files.len());
        assert!(listed || mismatches.iter().any(|mismatch| mismatch.to_string().starts_with("model.safetensors: is not in")));
        let written = manifest.write(folder.path()).expect("what was read can be written");
        assert_eq!(written.check(folder.path()).expect("a folder of files"), []);
        assert_eq!(Manifest::read(folder.path()).expect("what was written can be read").files, written.files);
    });
});
