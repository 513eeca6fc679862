//! A `manifest.json` beside one other file; and the same bytes as the record of what made a folder.
#![no_main]

use compressor_format::{Begun, Made, Manifest, NewFolder};
use compressor_fuzz::{check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let place = compressor_fuzz::folder(&[]);
    let out = place.path().join("out");
    std::fs::create_dir(&out).expect("a folder in a temporary folder");
    for (name, bytes) in [(NewFolder::RECORD, input), ("model.safetensors", b"abc")] {
        std::fs::write(out.join(name), bytes).expect("a file in a temporary folder");
    }
    for replace in [false, true] {
        match NewFolder::begin(&out, Made::By { command: "import", fingerprint: String::new() }, replace) {
            Ok(Begun::Now(_)) => assert!(replace),
            Ok(Begun::Before { .. }) => {}
            Err(error) => check_refusal(&error, &out),
        }
    }
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
