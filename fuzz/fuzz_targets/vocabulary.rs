//! The tokenizer inside a GGUF file. Apart from `gguf`, because its patterns take longer to compile than all else.
#![no_main]

use compressor_format::GgufFile;
use compressor_fuzz::{check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder(&[("model.gguf", input)]);
    let path = folder.path().join("model.gguf");
    in_proportion(input.len(), || {
        let tokenizer = match GgufFile::open(&path).and_then(|file| file.tokenizer()) {
            Ok(tokenizer) => tokenizer,
            Err(error) => return check_refusal(&error, &path),
        };
        let text = "It's 12 \u{e9}, a\n  b";
        let tokens = |tokenizer: &tokenizers::Tokenizer| Some(tokenizer.encode(text, true).ok()?.get_ids().to_vec());
        let found = tokens(&tokenizer);
        if let Some(found) = &found {
            let _ = tokenizer.decode(found, true);
        }
        let json = tokenizer.to_string(false).expect("a tokenizer is JSON");
        let again: tokenizers::Tokenizer = json.parse().expect("what was written can be read");
        assert_eq!(tokens(&again), found, "{json}");
    });
});
