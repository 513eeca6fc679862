//! A delta of any bytes, applied to a folder of two files.
#![no_main]

use compressor_format::{Delta, FileHash};
use compressor_fuzz::{check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

/// What a hostile delta may write, by copying again and again, is a matter of its disk and of the fuzzer's time.
const MOST_WRITTEN: u64 = 1 << 24;

fuzz_target!(|input: &[u8]| {
    let text = "a text, ".repeat(40);
    let old = folder(&[("text", text.as_bytes()), ("same", &[7; 300])]);
    let place = folder(&[("delta", input)]);
    let [path, out] = ["delta", "out"].map(|name| place.path().join(name));
    in_proportion(input.len(), || {
        let delta = match Delta::open(&path) {
            Ok(delta) => delta,
            Err(error) => return check_refusal(&error, &path),
        };
        if delta.files().iter().fold(0, |sum: u64, file| sum.saturating_add(file.bytes)) > MOST_WRITTEN {
            return;
        }
        match delta.apply(old.path(), &out, false) {
            Ok(_) => {
                for file in delta.files() {
                    let found = FileHash::of(file.name.clone(), &out.join(&file.name)).expect("it was written");
                    assert_eq!(found, *file);
                }
                assert!(delta.files().is_empty() || !delta.apply(old.path(), &out, false).expect("it is there"), "finished before");
            }
            Err(error) => {
                assert!(!out.exists());
                let of_old = error.to_string().contains(&old.path().display().to_string());
                assert!(of_old || error.to_string().contains(&place.path().display().to_string()), "names no file: {error}");
            }
        }
    });
});
