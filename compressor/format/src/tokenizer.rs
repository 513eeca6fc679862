//! Text to tokens and back, and a byte-pair tokenizer of one's own.

mod charsmap;
mod description;
mod parts;
mod search;

use std::io::Write;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, TokenizerBuilder,
    TokenizerImpl, Trainer as _,
};

use crate::encoding::unmarked;
use crate::{Error, Result, write_beside};
use description::{Description, Refusal};

/// Ends an example in tokenizers that are trained here.
pub(crate) const END: &str = "<|end|>";
/// Stands between a prompt and its completion in tokenizers that are trained here.
pub(crate) const COMMAND: &str = "<|command|>";

/// What the families at hand end a text with, the most specific first. A model's own config.json decides where it names one.
const ENDS: [&str; 6] = [END, "<|im_end|>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"];
/// Byte-level BPE starts from the 256 bytes.
const BYTES: usize = 256;

/// A `tokenizer.json`, ready for use.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    tokenizer: parts::Running,
    bos_of_texts: Option<u32>,
    /// What errors call it.
    path: PathBuf,
    json: Vec<u8>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of Hugging Face's `tokenizers`: a closed list of components, with limits to what each may ask for.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be read, [`Error::Malformed`] when it is no tokenizer, [`Error::Unsupported`] for a component or a
    /// parameter that is not known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut json = crate::read_file(path, crate::LIST_BYTES)?;
        // A byte order mark is left out for good: other programs stumble over it.
        json.drain(..json.len() - unmarked(path, &json)?.len());
        Self::from_json(path, json)
    }

    /// Writes the `tokenizer.json` that was read or trained, byte for byte.
    ///
    /// # Errors
    /// Those of [`write_beside`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_beside(path, |file| Ok(file.write_all(&self.json)?))
    }

    /// Reads the bytes of a `tokenizer.json`; errors name `path`.
    pub(crate) fn from_json(path: &Path, json: Vec<u8>) -> Result<Self> {
        let no_tokenizer =
            |error: &dyn std::fmt::Display| Error::unreadable(path, &json, format!("this is no tokenizer.json: {error}"));
        let value = serde_json::from_slice(&json).map_err(|error| no_tokenizer(&error))?;
        let description = Description::read(value).map_err(|refusal| match refusal {
            Refusal::Malformed(what) => Error::malformed(path, what),
            Refusal::Unsupported(what) => Error::unsupported(path, what),
        })?;
        let bos_of_texts = description.begins_with;
        let tokenizer = parts::run(description).map_err(|error| no_tokenizer(&error))?;
        if let Some(id) = bos_of_texts.filter(|id| tokenizer.id_to_token(*id).is_none()) {
            return Err(Error::malformed(path, format!("`post_processor` puts token {id} before a text, which is no token")));
        }
        Ok(Self { tokenizer, bos_of_texts, path: path.to_owned(), json })
    }

    /// Whether both make the same tokens of every text, and the same text of tokens, however their files are written: with merges as
    /// pairs or as lines, their keys in another order, for other batches.
    pub fn does_the_same_as(&self, other: &Self) -> bool {
        let read = |tokenizer: &Self| {
            let json = serde_json::from_slice(&tokenizer.json).expect("`from_json` has read it");
            Description::read(json).expect("`from_json` has read it")
        };
        self.json == other.json || read(self).does_the_same_as(&read(other))
    }

    /// The token that a text of this tokenizer begins with, where there is one: what its `post_processor` puts before a text, as
    /// Transformers does it. `add_bos_token` in `tokenizer_config.json` does not count where there is a `tokenizer.json`.
    ///
    /// A chat template writes it itself.
    pub fn bos_of_texts(&self) -> Option<u32> {
        self.bos_of_texts
    }

    /// The tokens of a text, without any that a model's template would add around it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the tokenizer has no token for a part of the text, or asks for too much: more bytes than
    /// sixteen times the text's, or more time than a text of this length may take.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        parts::encode(&self.tokenizer, text).map_err(|error| self.failed(&error))
    }

    /// The tokens of a text from its beginning, as a model reads it: with [`Tokenizer::bos_of_texts`] before it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text)?;
        tokens.splice(0..0, self.bos_of_texts);
        Ok(tokens)
    }

    /// The text of tokens; special tokens are left out.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the tokenizer's decoder refuses them, or asks for too much.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &tokenizers::Error) -> Error {
        Error::unsupported(&self.path, error.to_string())
    }

    /// Turns tokens into text as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, tokens: Vec::new(), settled: 0, given: 0 }
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The largest number that a token has; numbers can leave gaps.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The number of a token that is written like this, if there is one.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token that ends a text, by the names that the known families use.
    pub fn eos(&self) -> Option<u32> {
        ENDS.iter().find_map(|name| self.id(name))
    }

    /// The token between a prompt and its completion; tokenizers from elsewhere have none.
    pub fn command(&self) -> Option<u32> {
        self.id(COMMAND)
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// What a model is given to complete: the prompt's tokens as those of [`Tokenizer::encode_text`], and [`COMMAND`] where the
    /// tokenizer has it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode_text(prompt)?;
        if !prompt.is_empty() {
            tokens.extend(self.command());
        }
        Ok(tokens)
    }

    /// Trains a byte-level BPE tokenizer: [`END`] is token 0, [`COMMAND`] token 1, then the 256 bytes, then the merges
    /// by falling frequency. The same texts give the same bytes; a small text can give fewer tokens than asked for.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when `vocab_size` leaves no room for the bytes.
    ///
    /// Method: Sennrich et al. 2016, arXiv:1508.07909, on the bytes of pieces that GPT-2's pattern cuts.
    pub fn train_bpe(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<Self> {
        if vocab_size < BYTES + 2 {
            let what = format!("vocab_size is {vocab_size}; {BYTES} bytes and 2 special tokens need at least {}", BYTES + 2);
            return Err(Error::Tokenizer(what));
        }
        let trained = train(texts, vocab_size).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Self::from_json(Path::new("tokenizer.json"), trained)
    }
}

/// Text from tokens that come one after the other.
///
/// What a token says can depend on its neighbours: byte-level tokens hold parts of a character, SentencePiece drops the space before
/// the first word. So tokens are decoded together with some before them, and the text that those alone have is left out.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens that the last piece came from, then those whose text may change yet.
    tokens: Vec<u32>,
    /// How many of `tokens` the last piece came from.
    settled: usize,
    /// Bytes of the unsettled tokens' text that have been given all the same.
    given: usize,
}

/// What a decoder puts where bytes are no character.
const NO_CHARACTER: char = '\u{FFFD}';
/// The longest beginning of a character, in bytes; decoders make at most one [`NO_CHARACTER`] of each.
const LONGEST_BEGINNING: usize = 3;

impl TextStream<'_> {
    /// Takes the next tokens, and gives the text that is certain now; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokens: &[u32]) -> Result<String> {
        self.tokens.extend_from_slice(tokens);
        let text = self.unsettled()?;
        let open = text.chars().rev().take_while(|character| *character == NO_CHARACTER).count();
        if open == 0 {
            let piece = self.since(&text, text.len());
            // Tokens without text, such as special ones, say nothing about a space before the next: they go with the last piece.
            if !piece.is_empty() {
                self.tokens.drain(..self.settled);
            }
            (self.settled, self.given) = (self.tokens.len(), 0);
            return Ok(piece);
        }
        let certain = text.len() - open.min(LONGEST_BEGINNING) * NO_CHARACTER.len_utf8();
        let piece = self.since(&text, certain);
        self.given += piece.len();
        Ok(piece)
    }

    /// The rest: what an incomplete character looks like, if there is one.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let text = self.unsettled()?;
        Ok(self.since(&text, text.len()))
    }

    /// The text of the unsettled tokens.
    fn unsettled(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.tokens[..self.settled])?;
        match self.tokenizer.decode(&self.tokens)?.strip_prefix(&before) {
            Some(text) => Ok(text.to_owned()),
            // A byte can undo the character before it where a decoder takes both as one run; what has been given stays.
            None => self.tokenizer.decode(&self.tokens[self.settled..]),
        }
    }

    /// What of `text[..end]` has not been given.
    fn since(&self, text: &str, end: usize) -> String {
        text.get(self.given..end).unwrap_or_default().to_owned()
    }
}

/// Most characters of a word that merges are learnt of. The crate takes time by the square of them, and no word is as long: a text
/// without a break is.
const LONGEST_WORD: usize = 1000;

/// A word in pieces of at most [`LONGEST_WORD`] characters.
fn in_pieces(word: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while let Some((end, _)) = rest.char_indices().nth(LONGEST_WORD) {
        pieces.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    pieces.push(rest.to_owned());
    pieces
}

fn train(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> tokenizers::Result<Vec<u8>> {
    // Special tokens come first, the bytes are sorted, and merges of equal frequency are taken in the order of their parts'
    // numbers, so no hash map's order reaches the result. The tests below watch over it.
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END, true), AddedToken::from(COMMAND, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .with_post_processor(None)
        .with_decoder(Some(ByteLevel::default()))
        .build()?;
    let cutter = ByteLevel::new(false, false, true);
    trainer.feed(texts, |text| {
        let mut cut = PreTokenizedString::from(text);
        cutter.pre_tokenize(&mut cut)?;
        let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter();
        Ok(words.flat_map(|(word, ..)| in_pieces(word)).collect())
    })?;
    let mut model = BPE::default();
    let special_tokens = trainer.train(&mut model)?;
    tokenizer.with_model(model);
    tokenizer.add_special_tokens(special_tokens)?;
    Ok(tokenizer.to_string(true)?.into_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn small() -> Tokenizer {
        Tokenizer::train_bpe(["low low low lower lower newest".to_owned()].into_iter(), 300).unwrap()
    }

    #[test]
    fn a_text_without_a_break_is_learnt_from_in_pieces() {
        let sizes = |word: &str| in_pieces(word).iter().map(|piece| piece.chars().count()).collect::<Vec<_>>();
        assert_eq!(sizes(&"中".repeat(2500)), [1000, 1000, 500]);
        assert_eq!(sizes(&"=".repeat(1000)), [1000]);
        assert_eq!(in_pieces("low"), ["low"]);
        let joined = in_pieces(&"aé".repeat(1500)).concat();
        assert_eq!(joined, "aé".repeat(1500));
        let tokenizer = Tokenizer::train_bpe(["ab".repeat(5000)].into_iter(), 300).unwrap();
        assert!(tokenizer.id("abababab").is_some());
    }

    #[test]
    fn merges_are_the_most_frequent_pairs() {
        let tokenizer = small();
        assert_eq!((tokenizer.eos(), tokenizer.command()), (Some(0), Some(1)));
        // Pieces: `low` 1, ` low` 2, ` lower` 2, ` newest` 1. Pairs: l-o 5 and o-w 5 come first, and then ` `-low 4.
        // `lo` before `ow`: the bytes are numbered in the order of their characters, and l < o.
        assert_eq!((tokenizer.id("lo"), tokenizer.id("low"), tokenizer.id("Ġlow")), (Some(258), Some(259), Some(260)));
        assert_eq!(tokenizer.encode("low low").unwrap(), [259, 260]);
        assert_eq!(tokenizer.encode_prompt("low").unwrap(), [259, 1]);
        assert_eq!(tokenizer.encode_prompt("").unwrap(), [0_u32; 0]);
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        let refused = Tokenizer::train_bpe(std::iter::empty(), 257).unwrap_err().to_string();
        assert_eq!(refused, "tokenizer: vocab_size is 257; 256 bytes and 2 special tokens need at least 258");
        assert_eq!(Tokenizer::train_bpe(std::iter::empty(), 258).unwrap().vocab_size(), 258);
    }

    #[test]
    fn saving_keeps_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a.json"), folder.path().join("b.json"));
        let tokenizer = small();
        tokenizer.save(&first).unwrap();
        Tokenizer::open(&first).unwrap().save(&second).unwrap();
        assert_eq!(fs_err::read(&first).unwrap(), fs_err::read(&second).unwrap());
        assert_eq!(fs_err::read(&first).unwrap(), tokenizer.json());
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs_err::write(&path, "{\"model\": 3}").unwrap();
        let refused = Tokenizer::open(&path).unwrap_err().to_string();
        assert!(refused.contains("tokenizer.json: this is no tokenizer.json: "), "{refused}");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 258).unwrap();
        let text = String::from_utf8(tokenizer.json().to_vec()).unwrap();
        // The vocabulary is most of the file and all alike; the library's own readers stand before it.
        let head = text.find("\"vocab\"").unwrap();
        for length in (1..text.len()).filter(|length| *length < head || length % 97 == 0) {
            fs_err::write(&path, &text.as_bytes()[..length]).unwrap();
            let refused = Tokenizer::open(&path).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{}: this is no tokenizer.json: ", path.display())), "{refused}");
        }
        fs_err::write(&path, text.replace("\"decoder\": {", "\"decoder\": {3")).unwrap();
        let refused = Tokenizer::open(&path).unwrap_err().to_string();
        assert!(refused.contains("this is no tokenizer.json: key must be a string at line "), "{refused}");
    }

    #[test]
    fn what_the_library_takes_on_trust_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut json: Value = serde_json::from_slice(small().json()).unwrap();
            change(&mut json);
            fs_err::write(&path, json.to_string()).unwrap();
            let refused = Tokenizer::open(&path).unwrap_err().to_string();
            refused.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
        };
        let merges = |merges: Value| refused(&move |json| json["model"]["merges"] = merges.clone());
        let long = "n".repeat(40);
        assert_eq!(
            refused(&|json| {
                json["model"]["vocab"] = serde_json::json!({"a": 0, "b": 1});
                json["model"]["merges"] = serde_json::json!([["a", "b"]]);
            }),
            "merge 0, [\"a\",\"b\"], is not two tokens that make a third"
        );
        assert_eq!(merges(serde_json::json!(["l o", "lo"])), "merge 1, \"lo\", is not two tokens that make a third");
        assert_eq!(
            merges(serde_json::json!([["l", long]])),
            format!("merge 0, [\"l\",\"{long}\"], is not two tokens that make a third")
        );
        assert_eq!(
            refused(&|json| json["model"]["continuing_subword_prefix"] = "##".into()),
            "`model.continuing_subword_prefix` is \"##\", which no family here has"
        );
        assert_eq!(refused(&|json| json["model"]["dropout"] = 0.1.into()), "`model.dropout` is 0.1, which no family here has");
        let part = |key: &str, part: Value| refused(&move |json| json[key] = part.clone());
        assert_eq!(
            part(
                "normalizer",
                json!({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}]})
            ),
            "`normalizer.normalizers[0]`: precompiled_charsmap is damaged: it has no length"
        );
        assert_eq!(
            part("normalizer", json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "xy"})),
            "`normalizer.pattern` matches an empty text, which can't be replaced"
        );
        assert_eq!(
            part(
                "decoder",
                json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": "a", "start": 0, "stop": 1000}]})
            ),
            "`decoder.decoders[0].stop` is 1000; 0 to 256 are possible"
        );
        assert_eq!(
            part("decoder", json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": true})),
            "`decoder`: unknown variant `CTC`, expected one of `BPEDecoder`, `ByteLevel`, `WordPiece`, `Metaspace`, `Replace`, \
             `Fuse`, `Strip`, `ByteFallback`"
        );
        assert_eq!(
            part("pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": false, "use_rgx": true})),
            "`pre_tokenizer`: unknown field `use_rgx`, expected one of `add_prefix_space`, `trim_offsets`, `use_regex`"
        );
        assert_eq!(
            part("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            "`pre_tokenizer.length` is 0; a word has at least one character"
        );
        assert_eq!(
            part("normalizer", json!({"type": "Prepend", "prepend": "a".repeat(300)})),
            "`normalizer.prepend` has 300 bytes; 256 are possible"
        );
        assert_eq!(
            part("normalizer", json!({"type": "Prepend", "prepend": ""})),
            "`normalizer.prepend` is empty, and so there is nothing to prepend"
        );
        let added = |content: &str| {
            json!([{"id": 9, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
                "special": false}])
        };
        assert_eq!(part("added_tokens", added(&"h".repeat(300))), "`added_tokens[0].content` has 300 bytes; 256 are possible");
        assert_eq!(part("normaliser", json!(null)), "`normaliser` is no part of a tokenizer.json");
        assert_eq!(part("model", json!({"vocab": 3})), "`model.type` is missing, and `model.vocab` tells no kind of model");
        assert_eq!(
            part("model", json!({"type": "BPE", "vocab": {"a": 4_294_967_295_u32}, "merges": []})),
            "`model.vocab`: `a` has number 4294967295; numbers are below 16777216"
        );
        assert_eq!(
            part("model", json!({"vocab": {"a": 0, "b": 0}, "merges": []})),
            "`model.vocab`: `b` has number 0, as another token does"
        );
        assert_eq!(
            part("model", json!({"vocab": {"a": 0}, "merges": [], "unk_token": "b"})),
            "`model.unk_token` is `b`, which is no token of `model.vocab`"
        );
        assert_eq!(
            part("model", json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]})),
            "`model.unk_id` is 7, and `model.vocab` has 1 pieces"
        );
        assert_eq!(
            part("model", json!({"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0]]})),
            "`model.vocab[0]` has 0 bytes; pieces have 1 to 256"
        );
        assert_eq!(
            part(
                "post_processor",
                json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}})
            ),
            "`post_processor.single[0]` is `x`, which `special_tokens` does not have"
        );
    }

    /// A tokenizer of bytes with other components.
    fn with(parts: &[(&str, Value)]) -> Tokenizer {
        let mut json: Value = serde_json::from_slice(small().json()).unwrap();
        for (key, part) in parts {
            json[*key] = part.clone();
        }
        Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().into_bytes()).unwrap()
    }

    /// Small tokenizers with the components of real ones, made by `tests/golden/make_tokenizers.py` with what the Python library makes
    /// of texts.
    #[test]
    fn tokenizers_of_every_kind_give_what_the_library_gives() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tokenizers.json");
        let golden: serde_json::Map<String, Value> = serde_json::from_slice(&fs_err::read(golden).unwrap()).unwrap();
        assert_eq!(golden.len(), 15);
        for (name, kind) in golden {
            let tokenizer = Tokenizer::from_json(Path::new(&name), kind["tokenizer"].to_string().into_bytes()).unwrap();
            let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
            for row in kind["texts"].as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                assert_eq!(tokenizer.encode(text).unwrap(), ids(&row["ids"]), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&ids(&row["ids"])).unwrap(), row["decoded"].as_str().unwrap(), "{name}: {text:?}");
                // What comes behind a text is left out.
                assert!(ids(&row["with_special"]).starts_with(&tokenizer.encode_text(text).unwrap()), "{name}: {text:?}");
            }
            let begins = ["llama3", "deepseek-v3", "llama1", "mistral", "gemma", "bert"].contains(&name.as_str());
            assert_eq!(tokenizer.bos_of_texts().is_some(), begins, "{name}");
        }
    }

    #[test]
    fn replacements_that_multiply_a_text_are_refused_when_they_do() {
        let tenfold = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"});
        let bomb = with(&[("normalizer", json!({"type": "Sequence", "normalizers": vec![tenfold.clone(); 9]}))]);
        let refused = bomb.encode("a hello").unwrap_err().to_string();
        assert_eq!(refused, "tokenizer.json: its `normalizer` makes 700 bytes of 7; 368 are possible");
        let bomb = with(&[("decoder", json!({"type": "Sequence", "decoders": vec![tenfold; 9]}))]);
        let refused = bomb.decode(&small().encode("low hey").unwrap()).unwrap_err().to_string();
        assert_eq!(refused, "tokenizer.json: its `decoder` makes 400 bytes of 8; 384 are possible");
    }

    #[test]
    fn a_pattern_that_goes_back_for_ever_is_refused() {
        let pattern = "(a|b|ab)*(?>c)";
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let refused = with(&[("pre_tokenizer", split)]).encode(&"ab".repeat(30)).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!("tokenizer.json: the pattern `{pattern}` fails at byte 0 of a text: ")),
            "{refused}"
        );
    }

    /// The crate would look for it between any two characters, and inside of them.
    #[test]
    fn an_added_token_of_which_the_normalizer_leaves_nothing_is_refused() {
        let all: Vec<(Value, &str)> = vec![
            (json!({"type": "StripAccents"}), "\u{301}"),
            (json!({"type": "Replace", "pattern": {"String": "x"}, "content": ""}), "xx"),
            (json!({"type": "Strip", "strip_left": true, "strip_right": true}), "\u{a0}"),
        ];
        for (normalizer, content) in all {
            let mut json: Value = serde_json::from_slice(small().json()).unwrap();
            json["normalizer"] = normalizer;
            json["added_tokens"] = json!([{"id": 9, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": false}]);
            let refused = Tokenizer::from_json(Path::new("t"), json.to_string().into_bytes()).unwrap_err().to_string();
            let expected =
                format!("its `normalizer` leaves nothing of the added token {content:?}, which then is nowhere in a text");
            assert!(refused.ends_with(&expected), "{refused}");
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_between_characters_is_not_replaced() {
        let replace = json!({"type": "Replace", "pattern": {"Regex": "(?=l)"}, "content": "-"});
        let refused = with(&[("normalizer", replace)]).encode("low").unwrap_err().to_string();
        assert_eq!(refused, "tokenizer.json: its `normalizer` replaces `(?=l)`, which matches nothing in a text");
    }

    #[test]
    fn a_decoder_strips_no_more_than_is_there() {
        let strip = json!({"type": "Strip", "content": "l", "start": 3, "stop": 5});
        let tokenizer = with(&[("decoder", strip)]);
        assert_eq!(tokenizer.decode(&[tokenizer.id("l").unwrap(), tokenizer.id("low").unwrap()]).unwrap(), "ow");
    }

    #[test]
    fn a_text_begins_with_what_the_post_processor_puts_before_it() {
        let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let template = |single: Value| {
            json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {
                "<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}
            }})
        };
        let bos = |post: Value| with(&[("post_processor", post)]).bos_of_texts();
        let (byte_level, before) =
            (json!({"type": "ByteLevel", "add_prefix_space": true}), template(json!([piece("<|end|>"), text])));
        assert_eq!(bos(json!(null)), None);
        assert_eq!(bos(byte_level.clone()), None);
        assert_eq!(bos(before.clone()), Some(0));
        assert_eq!(bos(json!({"type": "Sequence", "processors": [byte_level, before]})), Some(0));
        assert_eq!(bos(template(json!([text, piece("<|end|>")]))), None, "what ends a text is not put behind one that goes on");
        assert_eq!(bos(json!({"type": "BertProcessing", "sep": ["a", 3], "cls": ["<|command|>", 1]})), Some(1));
        let tokenizer = with(&[("post_processor", template(json!([piece("<|end|>"), text])))]);
        assert_eq!((tokenizer.encode("low").unwrap(), tokenizer.encode_text("low").unwrap()), (vec![259], vec![0, 259]));
    }

    #[test]
    fn tokenizers_are_compared_by_what_they_do() {
        let original = small();
        let json = || -> Value { serde_json::from_slice(original.json()).unwrap() };
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut json = json();
            change(&mut json);
            let other = Tokenizer::from_json(Path::new("other.json"), json.to_string().into_bytes()).unwrap();
            assert_eq!(other.does_the_same_as(&original), original.does_the_same_as(&other));
            original.does_the_same_as(&other)
        };
        assert!(changed(&|_| ()), "on one line");
        assert!(changed(&|json| {
            let lines = json["model"]["merges"].as_array().unwrap().iter();
            json["model"]["merges"] =
                lines.map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))).collect();
        }));
        assert!(changed(&|json| json["added_tokens"].as_array_mut().unwrap().reverse()));
        assert!(changed(&|json| json["added_tokens"][0]["normalized"] = json["added_tokens"][1]["normalized"].clone()));
        assert!(changed(&|json| {
            json["padding"] = json!(3);
            json["pre_tokenizer"]["trim_offsets"] = json!(false);
            json["decoder"]["use_regex"] = json!(false);
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [json["pre_tokenizer"]]});
            let Value::Object(model) = &mut json["model"] else { unreachable!() };
            for key in ["type", "dropout", "unk_token", "continuing_subword_prefix", "byte_fallback", "ignore_merges"] {
                model.remove(key);
            }
        }));
        assert!(!changed(&|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true)));
        assert!(!changed(&|json| json["model"]["merges"].as_array_mut().unwrap().swap(0, 1)));
        assert!(!changed(&|json| json["normalizer"] = json!({"type": "NFC"})));
        assert!(!changed(&|json| json["added_tokens"][0]["lstrip"] = json!(true)));
        assert!(!changed(&|json| json["decoder"] = json!(null)));
        assert!(!changed(&|json| json["post_processor"] = json!({"type": "BertProcessing", "sep": ["a", 3], "cls": ["b", 1]})));
    }

    #[test]
    fn settings_for_batches_do_not_cut_or_pad_a_text() {
        let mut json: Value = serde_json::from_slice(small().json()).unwrap();
        json["truncation"] = serde_json::json!({
            "max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"
        });
        json["padding"] = serde_json::json!({
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"
        });
        let tokenizer = Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().into_bytes()).unwrap();
        assert_eq!(tokenizer.encode("low low").unwrap(), [259, 260]);
    }

    /// Texts full of ties: few letters, so that many pairs are equally frequent and one token arises in several ways.
    fn ties(seed: u64) -> Vec<String> {
        let mut state = seed;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut word = || -> String { (0..2 + next(9)).map(|_| char::from(b'a' + next(3) as u8)).collect() };
        (0..300).map(|_| format!("{} {}", word(), word())).collect()
    }

    #[test]
    fn training_again_gives_the_same_bytes() {
        for seed in 0..20 {
            let texts = ties(seed);
            let first = Tokenizer::train_bpe(texts.iter().cloned(), 600).unwrap();
            for _ in 0..4 {
                // Every hash map in the trainer gets fresh random keys.
                assert_eq!(Tokenizer::train_bpe(texts.iter().cloned(), 600).unwrap().json(), first.json());
            }
            let mut backwards = texts;
            backwards.reverse();
            assert_eq!(Tokenizer::train_bpe(backwards.into_iter(), 600).unwrap().json(), first.json());
        }
    }

    #[test]
    fn training_in_other_processes_with_other_thread_counts_gives_the_same_bytes() {
        const MARK: &str = "COMPRESSOR_TEST_PRINT_HASH";
        let texts = ties(1);
        let hash = blake3::hash(Tokenizer::train_bpe(texts.into_iter(), 600).unwrap().json()).to_string();
        if std::env::var_os(MARK).is_some() {
            println!("hash {hash}");
            return;
        }
        for threads in ["1", "2", "5"] {
            let name = "tokenizer::tests::training_in_other_processes_with_other_thread_counts_gives_the_same_bytes";
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(MARK, "1")
                .env("RAYON_NUM_THREADS", threads)
                .output()
                .unwrap();
            let printed = String::from_utf8(child.stdout).unwrap();
            assert!(printed.contains(&format!("hash {hash}")), "{threads} threads: {printed}");
        }
    }

    /// Byte pair encoding as Sennrich et al. write it: recount everything after every merge.
    fn slow_merges(texts: &[&str], merges: usize) -> Vec<String> {
        let mut counts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        for text in texts {
            for (index, word) in text.split(' ').enumerate() {
                let word = if index == 0 { word.to_owned() } else { format!("Ġ{word}") };
                *counts.entry(word.chars().map(String::from).collect()).or_default() += 1;
            }
        }
        let mut made = Vec::new();
        for _ in 0..merges {
            let mut pairs: BTreeMap<(String, String), usize> = BTreeMap::new();
            for (word, count) in &counts {
                for pair in word.windows(2) {
                    *pairs.entry((pair[0].clone(), pair[1].clone())).or_default() += count;
                }
            }
            let Some(most) = pairs.values().max().copied() else { break };
            let best: Vec<_> = pairs.iter().filter(|(_, count)| **count == most).collect();
            assert_eq!(best.len(), 1, "the text of this test must have no ties: {best:?}");
            let (left, right) = best[0].0.clone();
            counts = counts
                .into_iter()
                .map(|(word, count)| {
                    let mut merged: Vec<String> = Vec::new();
                    let mut rest = word.as_slice();
                    while let Some((first, after)) = rest.split_first() {
                        if *first == left && after.first() == Some(&right) {
                            merged.push(format!("{left}{right}"));
                            rest = &after[1..];
                        } else {
                            merged.push(first.clone());
                            rest = after;
                        }
                    }
                    (merged, count)
                })
                .collect();
            made.push(format!("{left}{right}"));
        }
        made
    }

    #[test]
    fn merges_agree_with_a_slow_count() {
        let texts = ["aaaa bab bab bab", "bab caab caab", "aaaa aaaa aaaa aab", "cab aab bab"];
        let expected = slow_merges(&texts, 3);
        let tokenizer = Tokenizer::train_bpe(texts.iter().map(|text| (*text).to_owned()), 261).unwrap();
        let found: Vec<Option<u32>> = expected.iter().map(|merge| tokenizer.id(merge)).collect();
        assert_eq!(found, [Some(258), Some(259), Some(260)], "{expected:?}");
    }

    /// The pieces that tokens give one at a time, the last at the end.
    fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<String> = tokens.iter().map(|token| stream.push(&[*token]).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    /// A vocabulary as SentencePiece's: a space is `▁`, characters without a token of their own are bytes.
    fn sentencepiece() -> Tokenizer {
        let mut vocab: serde_json::Map<String, Value> = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
        for (token, id) in ["▁Hello", "▁world", "!", "</s>"].into_iter().zip(256..) {
            vocab.insert(token.to_owned(), id.into());
        }
        let json = serde_json::json!({
            "version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "added_tokens": [{
                "id": 259, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true
            }],
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
                { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
            ] },
            "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": null }
        });
        Tokenizer::from_json(Path::new("tokenizer.json"), json.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        let tokenizer = small();
        let tokens = tokenizer.encode("é😀").unwrap();
        assert_eq!(tokens.len(), 6, "a token for each byte");
        assert_eq!(pieces(&tokenizer, &tokens), ["", "é", "", "", "", "😀", ""]);
        // Cut short: what is there of it looks as it does in a text decoded at once.
        assert_eq!(pieces(&tokenizer, &tokens[..4]), ["", "é", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn bytes_that_never_become_a_character_are_given_three_later() {
        let tokenizer = small();
        let second_byte = tokenizer.encode("é").unwrap()[1];
        let (one, three) = ("\u{FFFD}", "\u{FFFD}\u{FFFD}\u{FFFD}");
        assert_eq!(pieces(&tokenizer, &[second_byte; 6]), ["", "", "", one, one, one, three]);
        // The sign for no character is a character too.
        let tokens = tokenizer.encode("\u{FFFD}€").unwrap();
        assert_eq!(pieces(&tokenizer, &tokens), ["", "", "", "", "", "\u{FFFD}€", ""]);
    }

    #[test]
    fn sentencepiece_keeps_the_spaces_between_words_and_drops_the_first() {
        let tokenizer = sentencepiece();
        let tokens = [256, 257, 0xC3, 0xA9, 258, 0xE2, 0x82, 0xAC, 257];
        let expected = ["Hello", " world", "", "é", "!", "", "", "€", " world", ""];
        assert_eq!(pieces(&tokenizer, &tokens), expected);
        assert_eq!(expected.concat(), tokenizer.decode(&tokens).unwrap());
        // After a prompt the first word is not the first.
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(&[256]).unwrap(), "Hello");
        assert_eq!(stream.push(&[257]).unwrap(), " world");
    }

    #[test]
    fn special_tokens_have_no_text_and_disturb_none() {
        let tokenizer = sentencepiece();
        assert_eq!(pieces(&tokenizer, &[256, 259, 257, 259, 259, 258]), ["Hello", "", " world", "", "", "!", ""]);
        let tokenizer = small();
        let mut tokens = tokenizer.encode("low é").unwrap();
        tokens.insert(1, 0);
        tokens.push(0);
        assert_eq!(pieces(&tokenizer, &tokens).concat(), "low é");
    }

    #[test]
    fn a_byte_that_undoes_a_character_takes_nothing_back() {
        // The decoder makes three signs of the run of three bytes, of which the first two were a character when they came.
        assert_eq!(pieces(&sentencepiece(), &[0xC3, 0xA9, 0xFF, 258]), ["", "é", "", "\u{FFFD}!", ""]);
    }

    proptest! {
        #[test]
        fn every_text_comes_back_piece_by_piece(text in "\\PC{0,40}") {
            prop_assume!(!text.contains("<|"));
            let tokenizer = small();
            prop_assert_eq!(pieces(&tokenizer, &tokenizer.encode(&text).unwrap()).concat(), text);
        }

        #[test]
        fn any_tokens_give_pieces(tokens in proptest::collection::vec(0_u32..260, 0..40)) {
            pieces(&sentencepiece(), &tokens);
            pieces(&small(), &tokens);
        }

        #[test]
        fn every_text_comes_back(text in "\\PC{0,60}") {
            prop_assume!(!text.contains("<|"));
            let tokenizer = small();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }
    }
}
