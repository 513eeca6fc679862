//! The ways of cutting text into words before byte-level BPE.
//!
//! Merges never cross words, so a vocabulary means its tokens only with the pattern it was trained with.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// A way of cutting text into words before byte-level BPE, by `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    Default,
    Gpt2,
    Smollm,
    Qwen2,
    Llama3,
}

/// Every way, by the name that is written.
pub(super) const WORDS: [(&str, Words); 5] = [
    ("default", Words::Default),
    ("gpt-2", Words::Gpt2),
    ("smollm", Words::Smollm),
    ("qwen2", Words::Qwen2),
    ("llama-bpe", Words::Llama3),
];

/// Other names for reading. Those of one line share a case in llama.cpp (`llama-vocab.cpp`), or have the case of their own cut in the
/// same way, add no token of their own and take no whole words.
const OTHER_NAMES: [(&[&str], Words); 5] = [
    (&["llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"], Words::Llama3),
    (&["deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"], Words::Qwen2),
    (
        &["phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4"],
        Words::Gpt2,
    ),
    (&["mpt", "olmo", "jais", "trillion", "granite-docling"], Words::Gpt2),
    (&["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], Words::Smollm),
];

impl Words {
    /// The way that goes by this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let own = WORDS.iter().find(|(known, _)| *known == name).map(|(_, words)| *words);
        own.or_else(|| OTHER_NAMES.iter().find(|(names, _)| names.contains(&name)).map(|(_, words)| *words))
    }

    /// Patterns: the `tokenizer.json` of GPT-2, SmolLM2, Qwen2 and Llama 3; for `default`, llama.cpp's own (`llama-vocab.cpp`).
    pub(super) fn pre_tokenizer(self) -> PreTokenizerWrapper {
        let gpt2 = || ByteLevel::new(false, true, true).into();
        let bytes = || ByteLevel::new(false, true, false).into();
        let steps: Vec<PreTokenizerWrapper> = match self {
            Self::Gpt2 => return gpt2(),
            Self::Smollm => vec![Digits::new(true).into(), gpt2()],
            Self::Qwen2 => vec![isolate(&cased_words(r"\p{N}")), bytes()],
            Self::Llama3 => vec![isolate(&cased_words(r"\p{N}{1,3}")), bytes()],
            Self::Default => vec![
                isolate(r"[\p{P}$+<=>^~|]+"),
                isolate(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
                isolate(r"\p{N}+"),
                isolate("[0-9][0-9][0-9]"),
                bytes(),
            ],
        };
        Sequence::new(steps).into()
    }
}

/// The pattern that Qwen2 and Llama 3 share but for the length of a number.
fn cased_words(number: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// Makes every match of `pattern`, and everything between matches, a word.
fn isolate(pattern: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("the patterns above compile").into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    /// The words that `words` cuts `text` into.
    fn cut(words: Words, text: &str) -> Vec<&str> {
        let mut cut = PreTokenizedString::from(text);
        words.pre_tokenizer().pre_tokenize(&mut cut).unwrap();
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect()
    }

    #[test]
    fn other_names_mean_one_way_each() {
        let mut seen = std::collections::HashSet::new();
        for name in OTHER_NAMES.iter().flat_map(|(names, _)| *names).chain(WORDS.iter().map(|(name, _)| name)) {
            assert!(seen.insert(name), "{name} stands there twice");
            assert!(Words::named(name).is_some(), "{name}");
        }
        assert_eq!(seen.len(), 39);
        assert_eq!(Words::named("llama-v3"), Some(Words::Llama3));
        assert_eq!(Words::named("deepseek-r1-qwen"), Some(Words::Qwen2));
        assert_eq!(Words::named("LLAMA3"), None, "names are as they are written");
    }

    #[test]
    fn words_are_cut_as_each_model_cuts_them() {
        let text = "I'LL don't pay 12345 $!\n\n  ok";
        assert_eq!(cut(Words::Gpt2, text), ["I", "'", "LL", " don", "'t", " pay", " 12345", " $!", "\n\n ", " ok"]);
        assert_eq!(
            cut(Words::Smollm, text),
            ["I", "'", "LL", " don", "'t", " pay", " ", "1", "2", "3", "4", "5", " $!", "\n\n ", " ok"]
        );
        assert_eq!(
            cut(Words::Qwen2, text),
            ["I", "'LL", " don", "'t", " pay", " ", "1", "2", "3", "4", "5", " $!\n\n", " ", " ok"]
        );
        assert_eq!(cut(Words::Llama3, text), ["I", "'LL", " don", "'t", " pay", " ", "123", "45", " $!\n\n", " ", " ok"]);
        assert_eq!(
            cut(Words::Default, text),
            ["I", "'", "LL", " don", "'", "t", " pay", " ", "123", "45", " ", "$!", "\n\n ", " ok"]
        );
    }
}
