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
            assert!(tokenizer.does_the_same_as(&tokenizer.clone()));
            if let Some(bos) = tokenizer.bos_of_texts() {
                assert!(bos <= tokenizer.largest_id());
            }
            // What a text becomes has a limit, and what is beyond it is refused by name.
            for text in [&*text, "", " ", "\u{FDFA}\u{FDFA} e\u{301}\u{200D}\0", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!  \r\n\n x"] {
                match tokenizer.encode_prompt(text) {
                    Ok(tokens) => {
                        assert!(tokens.len() <= 4 * (16 + 256) * (text.len() + 1), "{} tokens of {} bytes", tokens.len(), text.len());
                        if let Err(error) = tokenizer.decode(&tokens) {
                            check_refusal(&error, folder.path());
                        }
                    }
                    Err(error) => check_refusal(&error, folder.path()),
                }
            }
            let _ = tokenizer.decode(&[]);
            let _ = tokenizer.decode(&[0, 1, 2, u32::MAX]);
            let mut stream = tokenizer.stream();
            let _ = stream.push(&[0, 1]).and_then(|_| stream.push(&[2]));
        }
        Err(error) => check_refusal(&error, folder.path()),
    });
});
