//! What a model learns from and is scored on, as one TOML file describes it.
//!
//! A description holds exactly one of `[text]` (plain text files), `[jsonl]` (one example in a line) and `[grammar]`
//! (a set that is generated). Examples become token rows in [`samples`].

mod draw;
mod files;
mod grammar;
mod jsonl;
mod mistake;
pub(crate) mod samples;
mod sentence;
mod text;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use files::FileSet;
pub use grammar::GrammarSet;
pub use jsonl::JsonlSet;
pub use text::TextSet;

use crate::{Error, Result, Tokenizer};

/// A dataset's description, read and checked; no example is read or made yet.
#[derive(Debug, Clone)]
pub enum Dataset {
    /// Plain text files.
    Text(TextSet),
    /// Files with one JSON object in a line.
    Jsonl(JsonlSet),
    /// Sentences and commands made from a grammar.
    Grammar(GrammarSet),
    /// One plain text file without a description: all of it is the train split.
    PlainText(PathBuf),
}

/// One of the three parts of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What choices are made on.
    Valid,
    /// What the figures in a report are measured on.
    Test,
}

/// The contents of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Examples {
    /// One running text.
    Text(String),
    /// Separate examples, in a fixed order.
    Pairs(Vec<Pair>),
}

impl Examples {
    /// The tokens of the first examples, or of the first lines of a text, one after the other: at least `wanted` where there are as
    /// many. The rest is not looked at.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] as [`Tokenizer::encode`] and [`Pair::tokens`].
    pub fn first_tokens(&self, tokenizer: &Tokenizer, wanted: usize) -> Result<Vec<u32>> {
        let text = match self {
            Self::Text(text) => text,
            Self::Pairs(pairs) => {
                let mut tokens = Vec::new();
                for pair in pairs {
                    if tokens.len() >= wanted {
                        break;
                    }
                    tokens.extend(pair.tokens(tokenizer)?.ids);
                }
                return Ok(tokens);
            }
        };
        let mut bytes = wanted.saturating_mul(BYTES_PER_TOKEN);
        loop {
            let cut = line_end(text, bytes);
            let tokens = tokenizer.encode(&text[..cut])?;
            if tokens.len() >= wanted || cut == text.len() {
                return Ok(tokens);
            }
            bytes = bytes.saturating_mul(2);
        }
    }

    /// What calibration reads at once: the windows of a text, or examples one by one, each of at most `window` tokens, until there are
    /// `wanted`. Of a longer example the beginning; a text that fills no window gives none.
    ///
    /// # Errors
    /// As [`Self::first_tokens`].
    pub fn sequences(&self, tokenizer: &Tokenizer, window: usize, wanted: usize) -> Result<Vec<Vec<u32>>> {
        let mut sequences = Vec::new();
        match self {
            Self::Text(_) => {
                let tokens = self.first_tokens(tokenizer, wanted.next_multiple_of(window))?;
                sequences.extend(tokens.chunks_exact(window).take(wanted.div_ceil(window)).map(<[u32]>::to_vec));
            }
            Self::Pairs(pairs) => {
                let mut seen = 0;
                for pair in pairs {
                    if seen >= wanted {
                        break;
                    }
                    let mut ids = pair.tokens(tokenizer)?.ids;
                    ids.truncate(window);
                    seen += ids.len();
                    sequences.push(ids);
                }
            }
        }
        Ok(sequences)
    }
}

/// Where the line ends that the byte `from` is in; of a very long one, where a character does.
fn line_end(text: &str, from: usize) -> usize {
    const LONGEST_LINE: usize = 1 << 16;
    let from = from.min(text.len());
    let end = from.saturating_add(LONGEST_LINE).min(text.len());
    match text.as_bytes()[from..end].iter().position(|byte| *byte == b'\n') {
        Some(more) => from + more + 1,
        None => text.ceil_char_boundary(end),
    }
}

/// Of text that a tokenizer was made for, and a little more.
const BYTES_PER_TOKEN: usize = 6;

/// A prompt and what should follow it. Only the completion is learnt; an empty prompt makes the whole text count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the model is given.
    pub prompt: String,
    /// What it should answer.
    pub completion: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    text: Option<files::Listing>,
    jsonl: Option<files::Listing>,
    grammar: Option<grammar::Description>,
}

impl Dataset {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the line of a mistake in the TOML; [`Error::Unsupported`] when an environment
    /// variable that should name the folder is not set; [`Error::Io`] when the description can't be read.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, |variable| std::env::var_os(variable).map(PathBuf::from))
    }

    fn load_with(path: &Path, folder_of: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let source = mistake::Source { path, text: &crate::read_text(path)? };
        let description: Description = toml::from_str(source.text).map_err(|error| source.explain(&error))?;
        match description {
            Description { text: Some(listing), jsonl: None, grammar: None } => {
                Ok(Self::Text(TextSet { files: FileSet::new("text", listing, &source, folder_of)? }))
            }
            Description { text: None, jsonl: Some(listing), grammar: None } => {
                Ok(Self::Jsonl(JsonlSet { files: FileSet::new("jsonl", listing, &source, folder_of)? }))
            }
            Description { text: None, jsonl: None, grammar: Some(grammar) } => {
                Ok(Self::Grammar(GrammarSet::new(grammar, &source)?))
            }
            _ => Err(Error::malformed(path, "a dataset holds exactly one of [text], [jsonl] and [grammar]")),
        }
    }

    /// Reads or makes one split. Only generated sets look at the seed: files hold what they hold.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a file is empty, is not UTF-8, has another SHA-256 or a line that is no example, or
    /// when a grammar has too few sentences; [`Error::Unsupported`] when the description names no file for this split.
    pub fn split(&self, split: Split, seed: u64) -> Result<Examples> {
        match self {
            Self::Text(set) => set.split(split).map(Examples::Text),
            Self::Jsonl(set) => set.split(split).map(Examples::Pairs),
            Self::Grammar(set) => set.split(split, seed).map(Examples::Pairs),
            Self::PlainText(path) => match split {
                Split::Train => Examples::of_text_file(path),
                Split::Valid | Split::Test => {
                    Err(Error::unsupported(path, format!("all of it is the train split; there is no {} split", split.name())))
                }
            },
        }
    }

    /// Whether the description has this split.
    pub fn has(&self, split: Split) -> bool {
        match self {
            Self::Text(TextSet { files }) | Self::Jsonl(JsonlSet { files }) => files.path(split).is_ok(),
            Self::Grammar(_) => true,
            Self::PlainText(_) => split == Split::Train,
        }
    }

    /// Every file that the splits depend on, the description first: what a fingerprint must cover.
    pub fn inputs(&self) -> Vec<PathBuf> {
        match self {
            Self::Text(TextSet { files }) | Self::Jsonl(JsonlSet { files }) => files.inputs(),
            Self::Grammar(set) => vec![set.path().to_owned()],
            Self::PlainText(path) => vec![path.clone()],
        }
    }

    /// Whether answers can be scored by exact match: whether there are prompts with completions.
    ///
    /// # Errors
    /// Those of [`Dataset::split`], because what a JSONL file holds is in its lines.
    pub fn scored(&self) -> Result<bool> {
        match self {
            Self::Text(_) | Self::PlainText(_) => Ok(false),
            Self::Grammar(_) => Ok(true),
            Self::Jsonl(set) => {
                let split = [Split::Test, Split::Valid, Split::Train].into_iter().find(|split| self.has(*split));
                let Some(split) = split else { return Ok(false) };
                Ok(set.split(split)?.iter().all(|pair| !pair.prompt.is_empty()))
            }
        }
    }
}

impl Split {
    /// All three, in the order they are used.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// The name as descriptions and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

impl Examples {
    /// All of a plain text file, without a byte order mark and with lines that end as they do on Unix.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read, [`Error::Malformed`] and [`Error::Unsupported`] where it is no text in UTF-8 or empty.
    pub fn of_text_file(path: &Path) -> Result<Self> {
        text::read(path).map(Self::Text)
    }

    /// Every text, prompts and completions apart: what a tokenizer is trained on.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Text(text) => text.split_inclusive('\n').map(str::to_owned).collect(),
            Self::Pairs(pairs) => {
                pairs.iter().flat_map(|pair| [&pair.prompt, &pair.completion]).filter(|text| !text.is_empty()).cloned().collect()
            }
        }
    }
}

/// Whether a generated completion is the expected one. White space around them does not count.
pub fn completion_matches(expected: &str, generated: &str) -> bool {
    expected.trim() == generated.trim()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mistake(toml: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.toml");
        fs_err::write(&path, toml).unwrap();
        let message = Dataset::load_with(&path, |_| None).unwrap_err().to_string();
        message.replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn a_description_of_nothing_or_of_two_things_is_refused() {
        let expected = "set.toml: a dataset holds exactly one of [text], [jsonl] and [grammar]";
        assert_eq!(mistake(""), expected);
        assert_eq!(mistake("[text]\ntest = \"a\"\n[jsonl]\ntest = \"b\"\n"), expected);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_its_neighbour() {
        assert_eq!(mistake("[txt]\n"), "set.toml:1: unknown key `txt`; the nearest is `text`");
        assert_eq!(mistake("[text]\n\ntrian = \"a.txt\"\n"), "set.toml:3: unknown key `trian`; the nearest is `train`");
        assert_eq!(
            mistake("[jsonl]\ntest = \"a\"\n[jsonl.sha256]\ntset = \"0\"\n"),
            "set.toml:4: unknown key `tset`; the nearest is `test`"
        );
    }

    #[test]
    fn a_wrong_type_and_broken_toml_are_reported_at_their_line() {
        assert_eq!(mistake("[text]\ntrain = 3\n"), "set.toml:2: invalid type: integer `3`, expected a string");
        let message = mistake("[text]\ntrain = \n");
        assert!(message.starts_with("set.toml:2: "), "{message}");
    }

    #[test]
    fn white_space_around_a_completion_does_not_count() {
        assert!(completion_matches("on study lamp", " on study lamp\n"));
        assert!(!completion_matches("on study lamp", "on study  lamp"));
    }

    #[test]
    fn texts_for_a_tokenizer_are_all_the_text() {
        let text = Examples::Text("one\ntwo\nthree".into());
        assert_eq!(text.texts().concat(), "one\ntwo\nthree");
        let pairs = Examples::Pairs(vec![Pair { prompt: String::new(), completion: "only".into() }]);
        assert_eq!(pairs.texts(), ["only"]);
    }

    #[test]
    fn the_first_tokens_are_those_of_whole_lines_or_pairs() {
        // 258 tokens: a byte each, so that six bytes are looked at for each token that is wanted, and the rest of the line.
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 258).unwrap();
        let text = Examples::Text("first line\nsecond\nthird\n".repeat(3));
        let of = |examples: &Examples, wanted| examples.first_tokens(&tokenizer, wanted).unwrap();
        let whole = of(&text, usize::MAX);
        assert_eq!(whole.len(), 72);
        for (wanted, lines) in [(0, 11), (1, 11), (2, 18), (3, 24), (4, 35)] {
            assert_eq!(of(&text, wanted), whole[..lines], "{wanted}");
        }
        assert_eq!(of(&text, 72), whole);
        assert_eq!(of(&text, 73), whole, "there are no more");

        let pair = Pair { prompt: "ab".into(), completion: "c".into() };
        let one = pair.tokens(&tokenizer).unwrap().ids;
        let pairs = Examples::Pairs(vec![pair; 3]);
        assert!(of(&pairs, 0).is_empty());
        assert_eq!(of(&pairs, one.len()), one);
        assert_eq!(of(&pairs, one.len() + 1), one.repeat(2));
        assert_eq!(of(&pairs, usize::MAX), one.repeat(3));
    }

    #[test]
    fn one_enormous_line_is_not_read_to_its_end() {
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 258).unwrap();
        let text = Examples::Text("ä".repeat(1 << 20));
        let tokens = text.first_tokens(&tokenizer, 1000).unwrap();
        assert!((1000..100_000).contains(&tokens.len()), "{}", tokens.len());
    }

    #[test]
    fn calibration_reads_no_more_at_once_than_a_window() {
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 258).unwrap();
        let text = "abcdefgh".repeat(4);
        let whole = tokenizer.encode(&text).unwrap();
        let windows = Examples::Text(text).sequences(&tokenizer, 8, 17).unwrap();
        assert_eq!(windows, whole[..24].chunks(8).map(<[u32]>::to_vec).collect::<Vec<_>>());
        assert!(Examples::Text("abc".into()).sequences(&tokenizer, 8, 17).unwrap().is_empty());

        let pair = |prompt: &str| Pair { prompt: prompt.into(), completion: "b".into() };
        let pairs = Examples::Pairs(vec![pair("a"), pair("aaaaaaaa"), pair("a"), pair("a")]);
        let lengths = |wanted| pairs.sequences(&tokenizer, 8, wanted).unwrap().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(12), [4, 8]);
        assert_eq!(lengths(13), [4, 8, 4]);
    }

    #[test]
    fn more_lines_are_read_where_those_hold_too_few_tokens() {
        // Merges of up to eight bytes: 6 bytes for a token are not enough.
        let text = "abcdefgh ".repeat(40) + "\nabcdefgh\n";
        let tokenizer = Tokenizer::train_bpe(std::iter::once(text.clone()), 270).unwrap();
        let examples = Examples::Text(text.clone());
        let whole = tokenizer.encode(&text).unwrap();
        assert!(whole.len() * BYTES_PER_TOKEN < text.len());
        assert_eq!(examples.first_tokens(&tokenizer, whole.len()).unwrap(), whole);
    }
}
