//! A dataset: its description, a zero byte, the file `data` beside it.
#![no_main]

use std::sync::OnceLock;

use compressor_format::{Dataset, Examples, Samples, Split, Tokenizer};
use compressor_fuzz::{check_refusal, folder, in_proportion, parts};
use libfuzzer_sys::fuzz_target;

/// A generated set is as long as its description says, whatever the file's size.
const MOST_ROWS: usize = 300;

fuzz_target!(|input: &[u8]| {
    let Some([description, data]) = parts(input) else { return };
    // Nothing outside of the folder is read.
    if [b"/".as_slice(), b"..", b"\\", b"folder_variable"].iter().any(|out| description.windows(out.len()).any(|at| at == *out)) {
        return;
    }
    let folder = folder(&[("set.toml", description), ("data", data)]);
    in_proportion(input.len(), || {
        static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
        let tokenizer = TOKENIZER.get_or_init(|| Tokenizer::train_bpe(std::iter::empty(), 258).expect("room for every byte"));
        let set = match Dataset::load(&folder.path().join("set.toml")) {
            Ok(set) => set,
            Err(error) => return check_refusal(&error, folder.path()),
        };
        if let Dataset::Grammar(grammar) = &set
            && Split::ALL.iter().any(|split| grammar.rows(*split) > MOST_ROWS)
        {
            return;
        }
        if let Ok(Examples::Text(text)) = Examples::of_text_file(&folder.path().join("data")) {
            assert!(!text.contains("\r\n"));
        }
        for split in Split::ALL.into_iter().filter(|split| set.has(*split)) {
            let examples = match set.split(split, 7) {
                Ok(examples) => examples,
                Err(error) => return check_refusal(&error, folder.path()),
            };
            if let (Dataset::Grammar(grammar), Examples::Pairs(pairs)) = (&set, &examples) {
                assert_eq!(pairs.len(), grammar.rows(split));
            }
            let Ok(first) = examples.first_tokens(tokenizer, 40) else { continue };
            let sequences = examples.sequences(tokenizer, 8, 40).expect("the same text has tokens");
            assert!(sequences.iter().all(|sequence| !sequence.is_empty() && sequence.len() <= 8));
            assert!(!matches!(examples, Examples::Text(_)) || sequences.len() == first.len().min(40) / 8);
            let Ok(samples) = Samples::new(&examples, tokenizer, 64) else { continue };
            assert!(samples.longest() <= 64);
            let rows: usize = samples.in_order(3).map(|batch| batch.rows).sum();
            assert_eq!(rows, samples.len());
        }
    });
});
