//! What a `tokenizer.json` may say: a closed list of components, each with the range of its parameters.
//!
//! The file is a program from elsewhere. The `tokenizers` crate runs it on trust: it panics where a parameter is absurd, and takes what
//! it does not know for something else. So nothing of the file reaches that crate before it was found here. `truncation` and `padding`
//! are for a server's batches and are never applied, `version` is looked at, and of `post_processor` only what stands before a text is
//! used, see [`Description::begins_with`].

// Variants have the names that files have.
#![allow(clippy::enum_variant_names, clippy::upper_case_acronyms)]

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::charsmap::Charsmap;

/// A tokenizer as data.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) normalizers: Vec<Normalizer>,
    pub(super) pre_tokenizers: Vec<PreTokenizer>,
    pub(super) model: Model,
    /// The token that a text begins with, by the file's `post_processor`.
    pub(super) begins_with: Option<u32>,
    /// `None` where tokens are only set side by side, with spaces between them.
    pub(super) decoders: Option<Vec<Decoder>>,
    pub(super) added: Vec<Added>,
}

/// Why a file is refused, without its path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What it says can't be so.
    Malformed(String),
    /// What it says is not done here.
    Unsupported(String),
}

/// Steps of one component; the longest real one has about ten.
const MOST_STEPS: usize = 32;
/// Characters that a component puts in or takes out are few. A real vocabulary's longest is `</w>`.
const LONGEST_TEXT_BYTES: usize = 256;
/// The longest real pattern has some six hundred.
const LONGEST_PATTERN_BYTES: usize = 2048;
/// Numbers of tokens end here; the largest real vocabulary has about a million.
pub(super) const MOST_TOKENS: u32 = 1 << 24;
/// Unigram looks up every beginning of the rest of a text, so the time that a text takes grows with the longest piece.
const LONGEST_PIECE_BYTES: usize = 256;
/// WordPiece looks up every part of a word; BERT's own limit is 100.
const LONGEST_WORD_CHARACTERS: usize = 256;
/// Spaces that a SentencePiece decoder takes from the start.
const MOST_STRIPPED: usize = 256;

/// What is done to a text before it is cut.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Normalizer {
    BertNormalizer { clean_text: bool, handle_chinese_chars: bool, strip_accents: Option<bool>, lowercase: bool },
    Strip { strip_left: bool, strip_right: bool },
    StripAccents {},
    NFC {},
    NFD {},
    NFKC {},
    NFKD {},
    Lowercase {},
    Nmt {},
    Precompiled { precompiled_charsmap: Charsmap },
    Replace { pattern: Pattern, content: String },
    Prepend { prepend: String },
    ByteLevel {},
}

/// What `Replace` and `Split` look for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) enum Pattern {
    /// These characters.
    String(String),
    /// What the expression matches.
    Regex(String),
}

/// How a text is cut into words.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PreTokenizer {
    BertPreTokenizer {},
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: Option<Irrelevant>,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    CharDelimiterSplit {
        delimiter: char,
    },
    Metaspace {
        replacement: char,
        #[serde(default)]
        add_prefix_space: Option<bool>,
        #[serde(default = "always")]
        prepend_scheme: PrependScheme,
        #[serde(default = "yes")]
        split: bool,
        #[serde(default, rename = "str_rep")]
        _str_rep: Option<Irrelevant>,
    },
    Whitespace {},
    WhitespaceSplit {},
    Split {
        pattern: Pattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    Punctuation {
        #[serde(default = "isolated")]
        behavior: SplitDelimiterBehavior,
    },
    Digits {
        individual_digits: bool,
    },
    UnicodeScripts {},
    FixedLength {
        #[serde(default = "five")]
        length: usize,
    },
}

/// How tokens become a text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Decoder {
    BPEDecoder {
        suffix: String,
    },
    ByteLevel {
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: Option<Irrelevant>,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: Option<Irrelevant>,
        #[serde(default, rename = "use_regex")]
        _use_regex: Option<Irrelevant>,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    Metaspace {
        replacement: char,
        #[serde(default)]
        add_prefix_space: Option<bool>,
        #[serde(default = "always")]
        prepend_scheme: PrependScheme,
        #[serde(default, rename = "split")]
        _split: Option<Irrelevant>,
        #[serde(default, rename = "str_rep")]
        _str_rep: Option<Irrelevant>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Fuse {},
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    ByteFallback {},
}

/// A parameter that changes no token and no text: offsets are never asked for. Any two are equal.
#[derive(Debug, Clone)]
pub(super) struct Irrelevant;

impl<'de> Deserialize<'de> for Irrelevant {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl PartialEq for Irrelevant {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

fn yes() -> bool {
    true
}

fn always() -> PrependScheme {
    PrependScheme::Always
}

fn isolated() -> SplitDelimiterBehavior {
    SplitDelimiterBehavior::Isolated
}

fn five() -> usize {
    5
}

/// What makes tokens of words.
#[derive(Debug)]
pub(super) enum Model {
    Bpe {
        vocab: Vocab,
        merges: Merges,
        unk_token: Option<String>,
        end_of_word_suffix: Option<String>,
        fuse_unk: bool,
        byte_fallback: bool,
        ignore_merges: bool,
    },
    WordPiece {
        vocab: Vocab,
        unk_token: String,
        continuing_subword_prefix: String,
        max_input_chars_per_word: usize,
    },
    WordLevel {
        vocab: Vocab,
        unk_token: String,
    },
    Unigram {
        /// Pieces with their scores; a number is a place.
        pieces: Vec<(String, f64)>,
        unk_id: Option<usize>,
        byte_fallback: bool,
    },
}

/// A model without its lists.
#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Settings {
    #[serde(rename = "BPE")]
    Bpe {
        dropout: Option<f64>,
        unk_token: Option<String>,
        continuing_subword_prefix: Option<String>,
        end_of_word_suffix: Option<String>,
        fuse_unk: Option<bool>,
        byte_fallback: Option<bool>,
        ignore_merges: Option<bool>,
    },
    WordPiece {
        unk_token: String,
        continuing_subword_prefix: String,
        max_input_chars_per_word: usize,
    },
    WordLevel {
        unk_token: String,
    },
    Unigram {
        unk_id: Option<usize>,
        #[serde(default)]
        byte_fallback: bool,
    },
}

/// A token that stands in no word: it is found in a text before the text is cut.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Added {
    /// Tokens are numbered anew, as Transformers does it: by the vocabulary, else behind it.
    #[serde(rename = "id")]
    _id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PostProcessor {
    BertProcessing {
        #[serde(rename = "sep")]
        _sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        #[serde(rename = "sep")]
        _sep: (String, u32),
        cls: (String, u32),
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: Option<Irrelevant>,
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: Option<Irrelevant>,
    },
    ByteLevel {
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: Option<Irrelevant>,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: Option<Irrelevant>,
        #[serde(default, rename = "use_regex")]
        _use_regex: Option<Irrelevant>,
    },
    TemplateProcessing {
        single: Vec<Piece>,
        /// For two texts at once, which are never given.
        #[serde(default, rename = "pair")]
        _pair: Option<Irrelevant>,
        special_tokens: serde_json::Map<String, Value>,
    },
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: SequenceId },
    SpecialToken { id: String },
}

#[derive(Deserialize, PartialEq)]
enum SequenceId {
    A,
    B,
}

#[derive(Deserialize)]
struct SpecialToken {
    ids: Vec<u32>,
}

impl Description {
    /// Reads a file's JSON.
    pub(super) fn read(mut json: Value) -> Result<Self, Refusal> {
        let Some(file) = json.as_object_mut() else {
            return Err(malformed("this is no tokenizer.json: it is no object".to_owned()));
        };
        let known = [
            "version",
            "truncation",
            "padding",
            "added_tokens",
            "normalizer",
            "pre_tokenizer",
            "model",
            "post_processor",
            "decoder",
        ];
        if let Some(key) = file.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(unsupported(format!("`{}` is no part of a tokenizer.json", shortened(key))));
        }
        if let Some(version) = file.get("version").filter(|version| *version != "1.0") {
            return Err(unsupported(format!("`version` is {}, known is \"1.0\"", short(version))));
        }
        let mut take = |key: &str| file.remove(key).unwrap_or(Value::Null);
        let normalizers = steps(take("normalizer"), "normalizer", "normalizers")?.unwrap_or_default();
        let pre_tokenizers = steps(take("pre_tokenizer"), "pre_tokenizer", "pretokenizers")?.unwrap_or_default();
        let processors = steps(take("post_processor"), "post_processor", "processors")?.unwrap_or_default();
        let decoders = steps(take("decoder"), "decoder", "decoders")?;
        let added: Vec<Added> = match take("added_tokens") {
            Value::Null => Vec::new(),
            Value::Array(list) => {
                let one = |(at, added)| {
                    let added: Added = component(added, &format!("added_tokens[{at}]"))?;
                    is_short(&format!("added_tokens[{at}].content"), &added.content).map(|()| added)
                };
                list.into_iter().enumerate().map(one).collect::<Result<_, _>>()?
            }
            other => return Err(malformed(format!("`added_tokens` is {}, which is no list", short(&other)))),
        };
        let description = Self {
            model: Model::read(take("model"))?,
            begins_with: begins_with(processors)?,
            normalizers: checked(normalizers, Normalizer::canonical)?,
            pre_tokenizers: checked(pre_tokenizers, PreTokenizer::canonical)?,
            decoders: decoders.map(|decoders| checked(decoders, Decoder::canonical)).transpose()?,
            added,
        };
        let widens = |step: &&PreTokenizer| matches!(step, PreTokenizer::ByteLevel { .. } | PreTokenizer::Metaspace { .. });
        if description.pre_tokenizers.iter().filter(widens).count() > 2 {
            // Each can make two or three bytes of one.
            return Err(unsupported("`pre_tokenizer` has ByteLevel or Metaspace more than twice".to_owned()));
        }
        Ok(description)
    }

    /// Whether both make the same tokens of every text, and the same text of tokens.
    pub(super) fn does_the_same_as(&self, other: &Self) -> bool {
        self.normalizers == other.normalizers
            && self.pre_tokenizers == other.pre_tokenizers
            && self.decoders == other.decoders
            && self.begins_with == other.begins_with
            && self.model.does_the_same_as(&other.model)
            && self.added_tokens() == other.added_tokens()
    }

    /// Added tokens by what is written, without what makes no difference.
    fn added_tokens(&self) -> Vec<Added> {
        // Found before the text is normalized or after it: all one where nothing is normalized and none is found before another.
        let is_mixed = self.added.iter().any(|added| added.normalized != self.added[0].normalized);
        let matters = is_mixed || !self.normalizers.is_empty();
        let mut added = self.added.clone();
        // A token outside of the vocabulary is numbered by its place among those.
        added.sort_by_cached_key(|added| self.model.has(&added.content).then(|| added.content.clone()).ok_or(()));
        for token in &mut added {
            token._id = 0;
            token.normalized &= matters;
        }
        added
    }
}

impl Model {
    fn read(json: Value) -> Result<Self, Refusal> {
        let Value::Object(mut json) = json else {
            return Err(malformed(format!("this is no tokenizer.json: `model` is {}, which is no object", short(&json))));
        };
        let vocab = json.remove("vocab").unwrap_or(Value::Null);
        let merges = json.remove("merges").unwrap_or(Value::Null);
        if !json.contains_key("type") {
            // GPT-2's own file has none.
            let kind = match (&merges, &vocab) {
                (Value::Array(_), Value::Object(_)) => "BPE",
                (_, Value::Object(_)) if json.contains_key("continuing_subword_prefix") => "WordPiece",
                (_, Value::Object(_)) => "WordLevel",
                (_, Value::Array(_)) => "Unigram",
                _ => return Err(malformed("`model.type` is missing, and `model.vocab` tells no kind of model".to_owned())),
            };
            json.insert("type".to_owned(), kind.into());
        }
        let settings = component(Value::Object(json), "model")?;
        if !merges.is_null() && !matches!(settings, Settings::Bpe { .. }) {
            return Err(malformed("`model.merges` is there, and only BPE merges".to_owned()));
        }
        match settings {
            Settings::Bpe {
                dropout,
                unk_token,
                continuing_subword_prefix,
                end_of_word_suffix,
                fuse_unk,
                byte_fallback,
                ignore_merges,
            } => {
                if let Some(dropout) = dropout.filter(|dropout| *dropout != 0.0) {
                    return Err(unsupported(format!("`model.dropout` is {dropout}, which no family here has")));
                }
                if let Some(prefix) = continuing_subword_prefix.filter(|prefix| !prefix.is_empty()) {
                    let prefix = short(&prefix.into());
                    return Err(unsupported(format!("`model.continuing_subword_prefix` is {prefix}, which no family here has")));
                }
                let vocab = vocabulary(vocab)?;
                let merges = read_merges(merges, &vocab)?;
                if let Some(unknown) = unk_token.as_deref().filter(|token| !token.is_empty()) {
                    is_in_vocabulary("unk_token", unknown, &vocab)?;
                }
                let end_of_word_suffix = end_of_word_suffix.filter(|suffix| !suffix.is_empty());
                if let Some(suffix) = &end_of_word_suffix {
                    is_short("model.end_of_word_suffix", suffix)?;
                }
                let [fuse_unk, byte_fallback, ignore_merges] =
                    [fuse_unk, byte_fallback, ignore_merges].map(|flag| flag.unwrap_or(false));
                Ok(Self::Bpe { vocab, merges, unk_token, end_of_word_suffix, fuse_unk, byte_fallback, ignore_merges })
            }
            Settings::WordPiece { unk_token, continuing_subword_prefix, max_input_chars_per_word } => {
                let vocab = vocabulary(vocab)?;
                is_in_vocabulary("unk_token", &unk_token, &vocab)?;
                is_short("model.continuing_subword_prefix", &continuing_subword_prefix)?;
                if !(1..=LONGEST_WORD_CHARACTERS).contains(&max_input_chars_per_word) {
                    return Err(unsupported(format!(
                        "`model.max_input_chars_per_word` is {max_input_chars_per_word}; 1 to {LONGEST_WORD_CHARACTERS} are possible"
                    )));
                }
                Ok(Self::WordPiece { vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word })
            }
            Settings::WordLevel { unk_token } => Ok(Self::WordLevel { vocab: vocabulary(vocab)?, unk_token }),
            Settings::Unigram { unk_id, byte_fallback } => {
                let pieces: Vec<(String, f64)> = component(vocab, "model.vocab")?;
                if let Some(at) = pieces.iter().position(|(piece, _)| piece.is_empty() || piece.len() > LONGEST_PIECE_BYTES) {
                    let bytes = pieces[at].0.len();
                    return Err(unsupported(format!(
                        "`model.vocab[{at}]` has {bytes} bytes; pieces have 1 to {LONGEST_PIECE_BYTES}"
                    )));
                }
                if pieces.len() > MOST_TOKENS as usize || unk_id.is_some_and(|id| id >= pieces.len()) {
                    let id = unk_id.unwrap_or_default();
                    return Err(malformed(format!("`model.unk_id` is {id}, and `model.vocab` has {} pieces", pieces.len())));
                }
                Ok(Self::Unigram { pieces, unk_id, byte_fallback })
            }
        }
    }

    fn has(&self, token: &str) -> bool {
        match self {
            Self::Bpe { vocab, .. } | Self::WordPiece { vocab, .. } | Self::WordLevel { vocab, .. } => vocab.contains_key(token),
            Self::Unigram { pieces, .. } => pieces.iter().any(|(piece, _)| piece == token),
        }
    }

    fn does_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Bpe { vocab, merges, unk_token, end_of_word_suffix, fuse_unk, byte_fallback, ignore_merges },
                Self::Bpe {
                    vocab: their_vocab,
                    merges: their_merges,
                    unk_token: their_unknown,
                    end_of_word_suffix: their_suffix,
                    fuse_unk: their_fuse,
                    byte_fallback: their_fallback,
                    ignore_merges: their_ignore,
                },
            ) => {
                // An empty name is that of no token: GPT-2's file has it, and Transformers writes it without.
                let named = |token: &Option<String>| token.clone().filter(|token| !token.is_empty());
                let (ours, theirs) = (named(unk_token), named(their_unknown));
                vocab == their_vocab
                    && merges == their_merges
                    && end_of_word_suffix == their_suffix
                    && byte_fallback == their_fallback
                    && ignore_merges == their_ignore
                    && ours == theirs
                    && (fuse_unk == their_fuse || ours.is_none())
            }
            (
                Self::WordPiece { vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word },
                Self::WordPiece {
                    vocab: their_vocab,
                    unk_token: their_unknown,
                    continuing_subword_prefix: their_prefix,
                    max_input_chars_per_word: their_most,
                },
            ) => {
                (vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word)
                    == (their_vocab, their_unknown, their_prefix, their_most)
            }
            (Self::WordLevel { vocab, unk_token }, Self::WordLevel { vocab: their_vocab, unk_token: their_unknown }) => {
                (vocab, unk_token) == (their_vocab, their_unknown)
            }
            (
                Self::Unigram { pieces, unk_id, byte_fallback },
                Self::Unigram { pieces: their_pieces, unk_id: their_unknown, byte_fallback: their_fallback },
            ) => (pieces, unk_id, byte_fallback) == (their_pieces, their_unknown, their_fallback),
            (Self::Bpe { .. } | Self::WordPiece { .. } | Self::WordLevel { .. } | Self::Unigram { .. }, _) => false,
        }
    }
}

impl Normalizer {
    fn canonical(self, place: &str) -> Result<Self, Refusal> {
        match &self {
            Self::Replace { pattern, content } => check_replace(pattern, content, place)?,
            Self::Prepend { prepend } if prepend.is_empty() => {
                return Err(unsupported(format!("`{place}.prepend` is empty, and so there is nothing to prepend")));
            }
            Self::Prepend { prepend } => is_short(&format!("{place}.prepend"), prepend)?,
            Self::BertNormalizer { .. }
            | Self::Strip { .. }
            | Self::StripAccents {}
            | Self::NFC {}
            | Self::NFD {}
            | Self::NFKC {}
            | Self::NFKD {}
            | Self::Lowercase {}
            | Self::Nmt {}
            | Self::Precompiled { .. }
            | Self::ByteLevel {} => {}
        }
        Ok(match self {
            Self::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
                let strip_accents = Some(strip_accents.unwrap_or(lowercase));
                Self::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase }
            }
            other => other,
        })
    }
}

impl PreTokenizer {
    fn canonical(self, place: &str) -> Result<Self, Refusal> {
        Ok(match self {
            Self::Metaspace { replacement, add_prefix_space, prepend_scheme, split, _str_rep } => {
                let prepend_scheme = scheme(add_prefix_space, prepend_scheme, place)?;
                Self::Metaspace { replacement, add_prefix_space: None, prepend_scheme, split, _str_rep: None }
            }
            Self::ByteLevel { add_prefix_space, use_regex, .. } => {
                Self::ByteLevel { add_prefix_space, _trim_offsets: None, use_regex }
            }
            Self::Split { pattern, behavior, invert } => {
                pattern.check(place)?;
                Self::Split { pattern, behavior, invert }
            }
            Self::FixedLength { length: 0 } => {
                return Err(malformed(format!("`{place}.length` is 0; a word has at least one character")));
            }
            other => other,
        })
    }
}

impl Decoder {
    fn canonical(self, place: &str) -> Result<Self, Refusal> {
        Ok(match self {
            Self::Metaspace { replacement, add_prefix_space, prepend_scheme, .. } => {
                // Only whether there is a first space matters for taking it away.
                let prepend_scheme = match scheme(add_prefix_space, prepend_scheme, place)? {
                    PrependScheme::First | PrependScheme::Always => PrependScheme::Always,
                    PrependScheme::Never => PrependScheme::Never,
                };
                Self::Metaspace { replacement, add_prefix_space: None, prepend_scheme, _split: None, _str_rep: None }
            }
            Self::ByteLevel { .. } => Self::ByteLevel { _add_prefix_space: None, _trim_offsets: None, _use_regex: None },
            Self::Replace { pattern, content } => {
                check_replace(&pattern, &content, place)?;
                Self::Replace { pattern, content }
            }
            Self::Strip { content, start, stop } => {
                if let Some((key, found)) =
                    [("start", start), ("stop", stop)].into_iter().find(|(_, found)| *found > MOST_STRIPPED)
                {
                    return Err(unsupported(format!("`{place}.{key}` is {found}; 0 to {MOST_STRIPPED} are possible")));
                }
                Self::Strip { content, start, stop }
            }
            Self::BPEDecoder { suffix } => {
                is_short(&format!("{place}.suffix"), &suffix)?;
                if suffix.is_empty() {
                    return Err(malformed(format!("`{place}.suffix` is empty; it ends a word")));
                }
                Self::BPEDecoder { suffix }
            }
            Self::WordPiece { prefix, cleanup } => {
                is_short(&format!("{place}.prefix"), &prefix)?;
                if prefix.is_empty() {
                    return Err(malformed(format!("`{place}.prefix` is empty; it goes on with a word")));
                }
                Self::WordPiece { prefix, cleanup }
            }
            Self::Fuse {} | Self::ByteFallback {} => self,
        })
    }
}

impl Pattern {
    pub(super) fn expression(&self) -> String {
        match self {
            Self::String(text) => fancy_regex::escape(text).into_owned(),
            Self::Regex(expression) => expression.clone(),
        }
    }

    fn check(&self, place: &str) -> Result<(), Refusal> {
        let (Self::String(text) | Self::Regex(text)) = self;
        if text.len() > LONGEST_PATTERN_BYTES {
            let bytes = text.len();
            return Err(unsupported(format!("`{place}.pattern` has {bytes} bytes; {LONGEST_PATTERN_BYTES} are possible")));
        }
        super::search::compile(self).map(drop).map_err(|error| malformed(format!("`{place}.pattern` is no pattern: {error}")))
    }
}

fn check_replace(pattern: &Pattern, content: &str, place: &str) -> Result<(), Refusal> {
    pattern.check(place)?;
    is_short(&format!("{place}.content"), content)?;
    let matches_nothing = super::search::compile(pattern).is_ok_and(|found| found.is_match("").unwrap_or(true));
    if matches_nothing {
        return Err(malformed(format!("`{place}.pattern` matches an empty text, which can't be replaced")));
    }
    Ok(())
}

fn scheme(add_prefix_space: Option<bool>, scheme: PrependScheme, place: &str) -> Result<PrependScheme, Refusal> {
    match (add_prefix_space, scheme) {
        (Some(false), PrependScheme::Never) | (None | Some(true), _) => Ok(scheme),
        (Some(false), PrependScheme::Always | PrependScheme::First) => {
            Err(malformed(format!("`{place}.add_prefix_space` is false, and `prepend_scheme` says otherwise")))
        }
    }
}

/// The token before a text. What a post-processor puts behind one ends it, and a prompt goes on.
fn begins_with(processors: Vec<(String, PostProcessor)>) -> Result<Option<u32>, Refusal> {
    let mut before = Vec::new();
    for (place, processor) in processors {
        let outer = match processor {
            PostProcessor::ByteLevel { .. } => continue,
            PostProcessor::BertProcessing { cls: (_, id), .. } | PostProcessor::RobertaProcessing { cls: (_, id), .. } => {
                vec![id]
            }
            PostProcessor::TemplateProcessing { single, special_tokens, .. } => {
                let is_text = |piece: &Piece| matches!(piece, Piece::Sequence { id: SequenceId::A });
                let text = single.iter().position(is_text);
                if single.iter().filter(|piece| matches!(piece, Piece::Sequence { .. })).count() != 1 || text.is_none() {
                    return Err(malformed(format!("`{place}.single` must hold the text A once, and no other")));
                }
                let mut ids = Vec::new();
                for (at, piece) in single.into_iter().enumerate() {
                    let Piece::SpecialToken { id } = piece else { continue };
                    let Some(token) = special_tokens.get(&id) else {
                        return Err(malformed(format!("`{place}.single[{at}]` is `{id}`, which `special_tokens` does not have")));
                    };
                    let token: SpecialToken = component(token.clone(), &format!("{place}.special_tokens.{id}"))?;
                    if Some(at) < text {
                        ids.extend(token.ids);
                    }
                }
                ids
            }
        };
        before.splice(0..0, outer);
    }
    match before.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => Err(unsupported(format!("`post_processor` puts the tokens {several:?} before a text; one is possible"))),
    }
}

/// The steps of a component in their order, each with its place; `None` where the component is null.
fn steps<T: DeserializeOwned>(value: Value, place: &str, list: &str) -> Result<Option<Vec<(String, T)>>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut found = Vec::new();
    gather(value, place.to_owned(), list, &mut found)?;
    Ok(Some(found))
}

/// Sequences can lie in sequences.
fn gather<T: DeserializeOwned>(value: Value, place: String, list: &str, found: &mut Vec<(String, T)>) -> Result<(), Refusal> {
    if value["type"] != "Sequence" {
        if found.len() == MOST_STEPS {
            return Err(unsupported(format!("`{place}` is step {} of its kind; {MOST_STEPS} are possible", MOST_STEPS + 1)));
        }
        let step = component(value, &place)?;
        found.push((place, step));
        return Ok(());
    }
    let Value::Object(mut sequence) = value else { unreachable!("it has a `type`") };
    let inner = sequence.remove(list);
    if let Some(key) = sequence.keys().find(|key| *key != "type") {
        return Err(unsupported(format!("`{place}.{}` is no part of a Sequence", shortened(key))));
    }
    let Some(Value::Array(inner)) = inner else {
        return Err(malformed(format!("`{place}.{list}` is no list")));
    };
    for (at, step) in inner.into_iter().enumerate() {
        gather(step, format!("{place}.{list}[{at}]"), list, found)?;
    }
    Ok(())
}

/// Steps whose parameters are in range, each in the one form of all that mean the same.
fn checked<T>(steps: Vec<(String, T)>, canonical: impl Fn(T, &str) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    steps.into_iter().map(|(place, step)| canonical(step, &place)).collect()
}

/// One component. What its kind is and which parameters it has is all in its type.
fn component<T: DeserializeOwned>(value: Value, place: &str) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(|error| unsupported(format!("`{place}`: {error}")))
}

/// Tokens with their numbers.
fn vocabulary(value: Value) -> Result<Vocab, Refusal> {
    let Value::Object(tokens) = value else {
        return Err(malformed(format!("`model.vocab` is {}, which is no object", short(&value))));
    };
    let mut numbers = HashSet::with_capacity(tokens.len());
    let number = |(token, id): (String, Value)| {
        let Some(number) = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < MOST_TOKENS) else {
            let token = shortened(&token);
            return Err(malformed(format!(
                "`model.vocab`: `{token}` has number {}; numbers are below {MOST_TOKENS}",
                short(&id)
            )));
        };
        if !numbers.insert(number) {
            return Err(malformed(format!("`model.vocab`: `{}` has number {number}, as another token does", shortened(&token))));
        }
        Ok((token, number))
    };
    tokens.into_iter().map(number).collect()
}

/// Pairs of tokens, as two texts or as one with a space between them.
fn read_merges(value: Value, vocab: &Vocab) -> Result<Merges, Refusal> {
    let Value::Array(lines) = value else {
        return Err(malformed(format!("`model.merges` is {}, which is no list", short(&value))));
    };
    let mut merges = Merges::with_capacity(lines.len());
    for (rank, line) in lines.into_iter().enumerate() {
        let parts = match &line {
            // The first line of a `merges.txt`.
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' '),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        };
        let made =
            parts.filter(|(left, right)| [*left, *right, &format!("{left}{right}")].iter().all(|part| vocab.contains_key(*part)));
        let Some((left, right)) = made else {
            return Err(malformed(format!("merge {rank}, {}, is not two tokens that make a third", short(&line))));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

fn is_in_vocabulary(key: &str, token: &str, vocab: &Vocab) -> Result<(), Refusal> {
    match vocab.contains_key(token) {
        true => Ok(()),
        false => Err(malformed(format!("`model.{key}` is `{}`, which is no token of `model.vocab`", shortened(token)))),
    }
}

fn is_short(place: &str, text: &str) -> Result<(), Refusal> {
    match text.len() <= LONGEST_TEXT_BYTES {
        true => Ok(()),
        false => Err(unsupported(format!("`{place}` has {} bytes; {LONGEST_TEXT_BYTES} are possible", text.len()))),
    }
}

fn malformed(what: String) -> Refusal {
    Refusal::Malformed(what)
}

fn unsupported(what: String) -> Refusal {
    Refusal::Unsupported(what)
}

/// JSON for a message, cut where it is long.
fn short(value: &Value) -> String {
    shortened(&value.to_string())
}

fn shortened(text: &str) -> String {
    let mut beginning: String = text.chars().take(80).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    beginning
}
