//! A `tokenizer.json`, a zero byte, and a text.
#![no_main]

use compressor_format::Tokenizer;
use compressor_fuzz::{check_refusal, folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some([json, text]) = parts(input) else { return };
    let folder = folder(&[("tokenizer.json", json)]);
    in_proportion(input.len(), || match Tokenizer::open(folder.path().join("tokenizer.json")) {
        Ok(tokenizer) => {
            assert_eq!(tokenizer.json(), json);
            let text = String::from_utf8_lossy(text);
            let _ = (tokenizer.eos(), tokenizer.command(), tokenizer.vocab_size());
            if let Ok(tokens) = tokenizer.encode_prompt(&text) {
                let _ = tokenizer.decode(&tokens);
            }
            let _ = tokenizer.decode(&[0, 1, 2, u32::MAX]);
        }
        Err(error) => check_refusal(&error, folder.path()),
    });
});
