//! Builds a tokenizer from the vocabulary that a GGUF file carries.
//!
//! `tokenizer.ggml.model` says which kind: `gpt2` is byte-level BPE, whose merges stand in the file and whose way of cutting text
//! into words goes by a name; `llama` is SentencePiece's BPE, whose merges follow from the tokens' scores.

use std::collections::HashSet;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Strip as StripEnds};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::GgufFile;
use super::words::{WORDS, Words};
use crate::Result;

/// A kind of vocabulary, by `tokenizer.ggml.model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteLevel(Words),
    SentencePiece,
}

/// What a token is, by `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
/// Stands in no text: its row of the embedding is there, its token is not.
pub(super) const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// SentencePiece's sign for a space, U+2581.
const SPACE: &str = "▁";
/// Longer pieces are in no vocabulary, and finding all cuts of one takes the square of its length.
const LONGEST_PIECE_BYTES: usize = 256;

/// The vocabulary of a file: ids are places in the lists.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl GgufFile {
    /// The tokenizer that the metadata describes.
    ///
    /// Encoding with special tokens puts BOS first exactly where [`GgufFile::adds_bos`] says so; encoding without never does.
    /// Characters that a byte-level vocabulary has no token for are left out, as in Transformers.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) when a list is missing, has another length or contradicts another,
    /// [`Error::Unsupported`](crate::Error::Unsupported) for another kind of vocabulary and another way of cutting words.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.refuse_unknown_tokenizer_keys()?;
        let vocabulary = self.vocabulary()?;
        let mut tokenizer = match self.kind()? {
            Kind::ByteLevel(words) => self.byte_level(words, &vocabulary)?,
            Kind::SentencePiece => self.sentencepiece(&vocabulary)?,
        };
        let added = vocabulary.tokens.iter().zip(&vocabulary.types).filter_map(|(token, kind)| match *kind {
            UNKNOWN | CONTROL => Some(AddedToken::from(token.as_str(), true)),
            USER_DEFINED => Some(AddedToken::from(token.as_str(), false).normalized(false)),
            _ => None,
        });
        tokenizer.add_tokens(added.collect::<Vec<_>>()).map_err(|error| self.malformed(format!("the added tokens: {error}")))?;
        if self.adds_bos()? {
            tokenizer.with_post_processor(Some(self.begin_with_bos(&vocabulary)?));
        }
        Ok(tokenizer)
    }

    /// Whether a text begins with BOS: `tokenizer.ggml.add_bos_token`, and where the file does not say, what llama.cpp does, which is
    /// yes for SentencePiece and `llama-bpe` vocabularies with a BOS token.
    ///
    /// # Errors
    /// As [`GgufFile::tokenizer`].
    pub fn adds_bos(&self) -> Result<bool> {
        if let Some(adds) = self.flag("tokenizer.ggml.add_bos_token")? {
            return Ok(adds);
        }
        let usual = matches!(self.kind()?, Kind::SentencePiece | Kind::ByteLevel(Words::Llama3));
        Ok(usual && self.token_id("tokenizer.ggml.bos_token_id")?.is_some())
    }

    /// The number of a token; `None` where there is none, for which some files write −1 or the largest u32.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u64>> {
        let negative = matches!(self.metadata.get(key), Some(super::Value::Signed(-1)));
        Ok(if negative { None } else { self.unsigned(key)?.filter(|&id| id != u64::from(u32::MAX)) })
    }

    /// The tokens whose numbers stand under `keys`, where they are there.
    pub(crate) fn special_tokens<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<String>; N]> {
        let tokens = self.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut found = [const { None }; N];
        for (found, key) in found.iter_mut().zip(keys) {
            let Some(id) = self.token_id(key)? else { continue };
            let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
            let token = token.ok_or_else(|| self.malformed(format!("`{key}` is {id}, and there are {} tokens", tokens.len())))?;
            *found = Some(token.clone());
        }
        Ok(found)
    }

    /// The numbers of the tokens that end a text and, where they are others, a turn or a message of a conversation.
    pub(crate) fn end_tokens(&self) -> Result<Vec<u32>> {
        let mut ends = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            let Some(id) = self.token_id(key)? else { continue };
            let id = u32::try_from(id).map_err(|_| self.malformed(format!("`{key}` is {id}, a token id is needed")))?;
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        Ok(ends)
    }

    fn kind(&self) -> Result<Kind> {
        match self.text("tokenizer.ggml.model")? {
            Some("llama") => Ok(Kind::SentencePiece),
            Some("gpt2") => {
                let known = WORDS.map(|(name, _)| name).join(", ");
                let Some(found) = self.text("tokenizer.ggml.pre")? else {
                    return Err(self.malformed(format!(
                        "there is no `tokenizer.ggml.pre`, so how to cut words is unknown (one of {known}): convert the model again"
                    )));
                };
                Words::named(found).map(Kind::ByteLevel).ok_or_else(|| {
                    let found = found.escape_debug();
                    self.unsupported(format!(
                        "`tokenizer.ggml.pre` is `{found}`, which can't be read; these can, and their other names: {known}"
                    ))
                })
            }
            Some(other) => {
                Err(self.unsupported(format!("`tokenizer.ggml.model` is `{other}`, which can't be read; these can: gpt2, llama")))
            }
            None => Err(self.malformed("there is no `tokenizer.ggml.model`: the file has no tokenizer")),
        }
    }

    fn vocabulary(&self) -> Result<Vocabulary> {
        let mut tokens =
            self.texts("tokenizer.ggml.tokens")?.ok_or_else(|| self.malformed("there is no `tokenizer.ggml.tokens`"))?;
        let types = match self.list("tokenizer.ggml.token_type")? {
            None => vec![NORMAL; tokens.len()],
            Some(list) => list.integers().ok_or_else(|| self.malformed("`tokenizer.ggml.token_type` is not a list of i32"))?,
        };
        self.same_length("tokenizer.ggml.token_type", types.len(), tokens.len())?;
        // llama.cpp gives a name to rows without one.
        for (id, token) in tokens.iter_mut().enumerate().filter(|(_, token)| token.is_empty()) {
            *token = format!("[EMPTY_{id}]");
        }
        let mut seen = HashSet::new();
        if let Some(id) = tokens.iter().position(|token| !seen.insert(token.as_str())) {
            return Err(self.malformed(format!("token {id}, `{}`, is in the vocabulary twice", tokens[id])));
        }
        Ok(Vocabulary { tokens, types })
    }

    /// Byte-level BPE (Radford et al. 2019): every byte is a character of its own, words are cut by a pattern, pairs merge by rank.
    fn byte_level(&self, words: Words, vocabulary: &Vocabulary) -> Result<Tokenizer> {
        let lines = self.texts("tokenizer.ggml.merges")?.ok_or_else(|| self.malformed("there is no `tokenizer.ggml.merges`"))?;
        let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
        let mut merges: Merges = Vec::with_capacity(lines.len());
        for (rank, line) in lines.into_iter().enumerate() {
            let parts = line.split_once(' ').filter(|(left, right)| known.contains(left) && known.contains(right));
            let Some((left, right)) = parts.filter(|(left, right)| known.contains(format!("{left}{right}").as_str())) else {
                return Err(self.malformed(format!("merge {rank}, `{line}`, is not two tokens that make a third")));
            };
            merges.push((left.to_owned(), right.to_owned()));
        }
        let model = BPE::builder()
            .vocab_and_merges(vocabulary.ids(), merges)
            // Llama 3's vocabulary has words that no chain of merges reaches.
            .ignore_merges(words == Words::Llama3)
            .build()
            .map_err(|error| self.malformed(format!("the vocabulary: {error}")))?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer()));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        if words == Words::Qwen2 {
            tokenizer.with_normalizer(Some(NFC)).map_err(|error| self.malformed(format!("the normalizer: {error}")))?;
        }
        Ok(tokenizer)
    }

    /// SentencePiece's BPE (Kudo and Richardson 2018, arXiv:1808.06226): of all neighbours that make a piece, those with the highest
    /// score merge first; characters without a piece become bytes.
    fn sentencepiece(&self, vocabulary: &Vocabulary) -> Result<Tokenizer> {
        let scores = self.list("tokenizer.ggml.scores")?.ok_or_else(|| self.malformed("there is no `tokenizer.ggml.scores`"))?;
        let scores = scores.floats().ok_or_else(|| self.malformed("`tokenizer.ggml.scores` is not a list of f32"))?;
        self.same_length("tokenizer.ggml.scores", scores.len(), vocabulary.tokens.len())?;
        let unknown = vocabulary.types.iter().position(|&kind| kind == UNKNOWN).map(|id| vocabulary.tokens[id].clone());
        let bytes = vocabulary.types.iter().filter(|&&kind| kind == BYTE).count();
        if unknown.is_none() && bytes < 256 {
            return Err(self.malformed(format!("the vocabulary has {bytes} of 256 byte tokens and no token for the unknown")));
        }
        let mut model = BPE::builder()
            .vocab_and_merges(vocabulary.ids(), self.merges_by_score(vocabulary, &scores)?)
            .fuse_unk(true)
            .byte_fallback(true);
        if let Some(unknown) = unknown {
            model = model.unk_token(unknown);
        }
        let model = model.build().map_err(|error| self.malformed(format!("the vocabulary: {error}")))?;

        let begins_with_space = self.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if self.flag("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
            normalizers.push(StripEnds::new(true, true).into());
            normalizers.push(replace(tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".to_owned()), " ").into());
        }
        if begins_with_space {
            normalizers.push(Prepend::new(SPACE.to_owned()).into());
        }
        normalizers.push(replace(" ", SPACE).into());
        let mut decoders: Vec<DecoderWrapper> = vec![replace(SPACE, " ").into(), ByteFallback::new().into(), Fuse::new().into()];
        if begins_with_space {
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(Some(tokenizers::normalizers::Sequence::new(normalizers)))
            .map_err(|error| self.malformed(format!("the normalizer: {error}")))?;
        tokenizer.with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(decoders)));
        Ok(tokenizer)
    }

    /// Every cut of every piece into two pieces, the highest score first.
    ///
    /// Cuts of one piece share its score; they follow each other by the ids of their parts, as in Transformers' conversion.
    fn merges_by_score(&self, vocabulary: &Vocabulary, scores: &[f32]) -> Result<Merges> {
        let pieces = || vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.types[*id] == NORMAL);
        let ids: std::collections::HashMap<&str, usize> = pieces().map(|(id, piece)| (piece.as_str(), id)).collect();
        let mut cuts = Vec::new();
        for (id, piece) in pieces() {
            if piece.len() > LONGEST_PIECE_BYTES {
                return Err(self.unsupported(format!(
                    "token {id} has {} bytes, and pieces have at most {LONGEST_PIECE_BYTES}",
                    piece.len()
                )));
            }
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                    cuts.push((scores[id], left_id, right_id));
                }
            }
        }
        cuts.sort_by(|(a, a_left, a_right), (b, b_left, b_right)| b.total_cmp(a).then((a_left, a_right).cmp(&(b_left, b_right))));
        let token = |id: usize| vocabulary.tokens[id].clone();
        Ok(cuts.into_iter().map(|(_, left, right)| (token(left), token(right))).collect())
    }

    fn begin_with_bos(&self, vocabulary: &Vocabulary) -> Result<TemplateProcessing> {
        let id = self.token_id("tokenizer.ggml.bos_token_id")?;
        let Some((id, token)) = id.and_then(|id| Some((id as u32, vocabulary.tokens.get(usize::try_from(id).ok()?)?))) else {
            let found = id.map_or("missing".to_owned(), |id| id.to_string());
            let tokens = vocabulary.tokens.len();
            return Err(self.malformed(format!(
                "texts begin with BOS, `tokenizer.ggml.bos_token_id` is {found}, and there are {tokens} tokens"
            )));
        };
        let bos = SpecialToken::new("bos".to_owned(), vec![id], vec![token.clone()]).expect("one id and one token");
        let mut template = TemplateProcessing::builder();
        let template = template.try_single("bos $A").and_then(|template| template.try_pair("bos $A bos:1 $B:1"));
        let template = template.map(|template| template.special_tokens(vec![bos])).map(|template| template.build());
        Ok(template.expect("the template parses").expect("it names `bos`, which is given"))
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        match list.texts() {
            Some(texts) => Ok(Some(texts)),
            None => Err(self.malformed(format!("`{key}` is not a list of strings"))),
        }
    }

    fn same_length(&self, key: &str, found: usize, tokens: usize) -> Result<()> {
        if found != tokens {
            return Err(self.malformed(format!("`{key}` has {found} items, and there are {tokens} tokens")));
        }
        Ok(())
    }
}

fn replace(pattern: impl Into<tokenizers::normalizers::replace::ReplacePattern>, content: &str) -> Replace {
    Replace::new(pattern, content).expect("the patterns above compile")
}

impl Vocabulary {
    fn ids(&self) -> Vocab {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::PathBuf;

    use super::super::sample::{Sample, read};
    use super::*;

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    fn refusal(sample: Sample) -> String {
        read(&sample.bytes()).unwrap().tokenizer().unwrap_err().to_string()
    }

    #[test]
    fn byte_level_merges_by_rank() {
        let file = read(&Sample::byte_level("gpt-2", &["l l", "Ġ a", "a ll", "Ġa ll"]).bytes()).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        let tokens = |text: &str| tokenizer.encode(text, false).unwrap().get_tokens().to_vec();
        assert_eq!(tokens("all all"), ["all", "Ġall"]);
        assert_eq!(tokens("é<|endoftext|>"), ["Ã", "©", "<|endoftext|>"]);
        let encoded = ids(&tokenizer, "all é, all");
        assert_eq!(tokenizer.decode(&encoded, false).unwrap(), "all é, all");
        assert!(!file.adds_bos().unwrap());
    }

    #[test]
    fn qwen2_composes_accents_and_others_leave_them() {
        let pre = |pre: &str| read(&Sample::byte_level(pre, &[]).bytes()).unwrap().tokenizer().unwrap();
        assert_eq!(ids(&pre("qwen2"), "e\u{301}").len(), 2, "é is two bytes");
        assert_eq!(ids(&pre("smollm"), "e\u{301}").len(), 3, "e, and a combining accent of two bytes");
    }

    #[test]
    fn llama_bpe_takes_whole_words_and_begins_with_bos() {
        let sample = Sample::byte_level("llama-bpe", &["a b", "b c", "ab c"]).u32("tokenizer.ggml.bos_token_id", 0);
        let file = read(&sample.bytes()).unwrap();
        assert!(file.adds_bos().unwrap());
        let with_bos = file.tokenizer().unwrap().encode("abc", true).unwrap();
        assert_eq!(with_bos.get_tokens(), ["<|endoftext|>", "abc"]);
        let without = sample.flag("tokenizer.ggml.add_bos_token", false);
        let encoded = read(&without.bytes()).unwrap().tokenizer().unwrap().encode("abc", true).unwrap();
        assert_eq!(encoded.get_tokens(), ["abc"]);
    }

    #[test]
    fn sentencepiece_merges_by_score_not_by_place() {
        let file = read(&Sample::sentencepiece().bytes()).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        let tokens = |text: &str| tokenizer.encode(text, false).unwrap().get_tokens().to_vec();
        // `ab` scores above `▁a`, so it merges first, and then `▁ab` is within reach.
        assert_eq!(tokens("ab a"), ["▁ab", "▁a"]);
        assert_eq!(tokens("b"), ["▁", "b"]);
        assert_eq!(tokens("b<|user|>b"), ["▁", "b", "<|user|>", "▁", "b"]);
        assert_eq!(tokens("xyzb"), ["▁", "<unk>", "b"], "no byte tokens here, and unknowns fuse");
        assert!(file.adds_bos().unwrap(), "llama.cpp adds it where the file is silent");
        assert_eq!(tokenizer.encode("ab", true).unwrap().get_ids(), [1, 5]);
        assert_eq!(tokenizer.decode(&[5, 3], true).unwrap(), "ab a");

        let bare = Sample::sentencepiece().flag("tokenizer.ggml.add_space_prefix", false);
        assert_eq!(ids(&read(&bare.bytes()).unwrap().tokenizer().unwrap(), "ab ab"), [4, 5]);
    }

    /// Vocabulary, sentences and ids of the SentencePiece library, made by `tests/golden/make_gguf_sentencepiece.py`.
    #[test]
    fn sentencepiece_agrees_with_the_sentencepiece_library() {
        let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf"));
        let tokenizer = GgufFile::open(golden.join("sentencepiece.gguf")).unwrap().tokenizer().unwrap();
        let expected = fs_err::read(golden.join("sentencepiece.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let sentences = expected["sentences"].as_array().unwrap();
        assert_eq!(sentences.len(), 14);
        for sentence in sentences {
            let text = sentence["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(sentence["ids"].clone()).unwrap();
            let found = ids(&tokenizer, text);
            assert_eq!(found, expected, "{text:?}");
            assert_eq!(tokenizer.decode(&found, false).unwrap(), text);
        }
    }

    #[test]
    fn a_saved_tokenizer_encodes_the_same() {
        let text = "ab I'll <|user|> 123 x";
        for sample in [Sample::sentencepiece(), Sample::byte_level("default", &["a b"]), Sample::byte_level("qwen2", &["Ġ I"])] {
            let tokenizer = read(&sample.bytes()).unwrap().tokenizer().unwrap();
            let saved: Tokenizer = tokenizer.to_string(false).unwrap().parse().unwrap();
            assert_eq!(saved.encode(text, true).unwrap().get_ids(), tokenizer.encode(text, true).unwrap().get_ids());
        }
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        assert_eq!(
            refusal(Sample::byte_level("tekken", &[])),
            "sample.gguf: `tokenizer.ggml.pre` is `tekken`, which can't be read; these can, and their other names: default, gpt-2, \
             smollm, qwen2, llama-bpe"
        );
        assert_eq!(
            refusal(Sample::byte_level("gpt-2", &[]).without("tokenizer.ggml.pre")),
            "sample.gguf: there is no `tokenizer.ggml.pre`, so how to cut words is unknown \
             (one of default, gpt-2, smollm, qwen2, llama-bpe): convert the model again"
        );
        let bert = Sample::sentencepiece().without("tokenizer.ggml.model").text("tokenizer.ggml.model", "bert");
        assert_eq!(refusal(bert), "sample.gguf: `tokenizer.ggml.model` is `bert`, which can't be read; these can: gpt2, llama");
        let none = Sample::sentencepiece().without("tokenizer.ggml.model");
        assert_eq!(refusal(none), "sample.gguf: there is no `tokenizer.ggml.model`: the file has no tokenizer");
    }

    #[test]
    fn other_names_of_a_way_to_cut_words_are_that_way() {
        let encoded = |pre: &str| {
            let file = read(&Sample::byte_level(pre, &["1 2", "Ġ 1"]).u32("tokenizer.ggml.bos_token_id", 0).bytes()).unwrap();
            file.tokenizer().unwrap().encode("it's 12345 here", true).unwrap().get_ids().to_vec()
        };
        for (name, other) in
            [("qwen2", "deepseek-r1-qwen"), ("llama-bpe", "llama3"), ("llama-bpe", "llama-v3"), ("gpt-2", "phi-2")]
        {
            assert_eq!(encoded(other), encoded(name), "{other}");
        }
        assert_ne!(encoded("qwen2"), encoded("llama-bpe"));
    }

    #[test]
    fn tokenizer_keys_are_interpreted_or_refused() {
        let plain = || Sample::byte_level("gpt-2", &["a b"]);
        let ids_of =
            |sample: Sample| read(&sample.bytes()).unwrap().tokenizer().unwrap().encode("ab", true).unwrap().get_ids().to_vec();
        let neutral = plain()
            .flag("tokenizer.ggml.add_eos_token", false)
            .flag("tokenizer.ggml.add_sep_token", false)
            .u32("tokenizer.ggml.fim_pre_token_id", 3)
            .integers("tokenizer.ggml.suppress_tokens", &[])
            .text("tokenizer.chat_template.tool_use", "x");
        assert_eq!(ids_of(neutral), ids_of(plain()));
        assert_eq!(
            refusal(plain().flag("tokenizer.ggml.add_eos_token", true)),
            "sample.gguf: `tokenizer.ggml.add_eos_token` is true: texts that end with EOS can't be read, and only false means none"
        );
        assert_eq!(
            refusal(plain().integers("tokenizer.ggml.suppress_tokens", &[1, 2])),
            "sample.gguf: `tokenizer.ggml.suppress_tokens` is a list of 2: tokens that are never said can't be read, and only an empty \
             list means none"
        );
        assert_eq!(
            refusal(plain().flag("tokenizer.ggml.some_day", true)),
            "sample.gguf: `tokenizer.ggml.some_day` is not understood, and without it the model might compute something else"
        );
    }

    #[test]
    fn a_number_that_stands_for_no_token_is_none() {
        let plain = || Sample::byte_level("llama-bpe", &["a b"]).without("tokenizer.ggml.eos_token_id");
        let file = |sample: Sample| read(&sample.bytes()).unwrap();
        let ends = plain()
            .u32("tokenizer.ggml.eos_token_id", 3)
            .u32("tokenizer.ggml.eot_token_id", 4)
            .u32("tokenizer.ggml.eom_token_id", 3);
        assert_eq!(file(ends).end_tokens().unwrap(), [3, 4]);
        for none in
            [plain().u32("tokenizer.ggml.eos_token_id", u32::MAX), plain().value("tokenizer.ggml.eos_token_id", 5, &[0xff; 4])]
        {
            let none = file(none);
            assert_eq!(none.end_tokens().unwrap(), [0; 0]);
            assert_eq!(none.special_tokens(["tokenizer.ggml.eos_token_id"]).unwrap(), [None]);
        }
        let unnamed = ["a", "", "b", ""];
        let kept = plain().without("tokenizer.ggml.tokens").without("tokenizer.ggml.token_type").without("tokenizer.ggml.merges");
        let kept = file(kept.texts("tokenizer.ggml.tokens", &unnamed).texts("tokenizer.ggml.merges", &[]));
        assert_eq!(kept.tokenizer().unwrap().token_to_id("[EMPTY_3]"), Some(3));
    }

    #[test]
    fn lists_that_contradict_each_other_are_refused() {
        let merges = |merges: &[&str]| {
            refusal(Sample::byte_level("gpt-2", &[]).without("tokenizer.ggml.merges").texts("tokenizer.ggml.merges", merges))
        };
        assert_eq!(merges(&["a b"]), "sample.gguf: merge 0, `a b`, is not two tokens that make a third");
        assert_eq!(merges(&["ab"]), "sample.gguf: merge 0, `ab`, is not two tokens that make a third");
        let types = Sample::sentencepiece().without("tokenizer.ggml.token_type").integers("tokenizer.ggml.token_type", &[2, 3]);
        assert_eq!(refusal(types), "sample.gguf: `tokenizer.ggml.token_type` has 2 items, and there are 10 tokens");
        let scores = Sample::sentencepiece().without("tokenizer.ggml.scores").integers("tokenizer.ggml.scores", &[2, 3]);
        assert_eq!(refusal(scores), "sample.gguf: `tokenizer.ggml.scores` is not a list of f32");
        let twice = Sample::sentencepiece().without("tokenizer.ggml.tokens").without("tokenizer.ggml.token_type");
        assert_eq!(
            refusal(twice.texts("tokenizer.ggml.tokens", &["a", "b", "a"])),
            "sample.gguf: token 2, `a`, is in the vocabulary twice"
        );
        let bos = Sample::sentencepiece().without("tokenizer.ggml.bos_token_id").u32("tokenizer.ggml.bos_token_id", 10);
        assert_eq!(
            refusal(bos),
            "sample.gguf: texts begin with BOS, `tokenizer.ggml.bos_token_id` is 10, and there are 10 tokens"
        );
        let no_unknown = Sample::sentencepiece().without("tokenizer.ggml.token_type");
        assert_eq!(refusal(no_unknown), "sample.gguf: the vocabulary has 0 of 256 byte tokens and no token for the unknown");
    }

    #[test]
    fn what_a_file_says_about_conversations_becomes_the_files_of_a_folder() {
        let sample = Sample::byte_level("llama-bpe", &["a b", "b c", "ab c"]).u32("tokenizer.ggml.bos_token_id", 0);
        let folder = tempfile::tempdir().unwrap();
        let read_back = |name: &str| fs_err::read_to_string(folder.path().join(name)).unwrap();
        let write_files = |file: &GgufFile| {
            for (name, text) in crate::chat::files(file).unwrap() {
                fs_err::write(folder.path().join(name), text).unwrap();
            }
        };
        write_files(&read(&sample.clone().bytes()).unwrap());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0, "nothing is said, nothing is written");

        let template = "{{ bos_token }}{{ messages[0].content }}";
        let sample = sample
            .text("tokenizer.chat_template", template)
            .without("tokenizer.ggml.eos_token_id")
            .u32("tokenizer.ggml.eos_token_id", 1)
            .u32("tokenizer.ggml.eot_token_id", 2);
        let file = read(&sample.clone().bytes()).unwrap();
        write_files(&file);
        let tokens = file.special_tokens(["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"]).unwrap();
        let [Some(bos), Some(eos)] = tokens else { panic!("both are there: {tokens:?}") };
        assert_eq!(bos, "<|endoftext|>");
        assert_eq!(read_back("chat_template.jinja"), template);
        assert_eq!(
            read_back("tokenizer_config.json"),
            format!(
                "{{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"bos_token\": \"{bos}\",\n  \"eos_token\": \"{eos}\"\n}}\n"
            )
        );
        assert_eq!(read_back("generation_config.json"), "{\n  \"eos_token_id\": [\n    1,\n    2\n  ]\n}\n");

        let message = crate::Message { role: crate::Role::User, content: "hi".to_owned() };
        let from_file = crate::ChatTemplate::in_gguf(&file).unwrap().render_here(std::slice::from_ref(&message)).unwrap();
        let from_folder = crate::ChatTemplate::open(folder.path()).unwrap().render_here(&[message]).unwrap();
        assert_eq!((from_file.as_str(), from_folder.as_str()), ("<|endoftext|>hi", "<|endoftext|>hi"));

        let beyond = sample.without("tokenizer.ggml.eos_token_id").u32("tokenizer.ggml.eos_token_id", 999);
        let refused = crate::ChatTemplate::in_gguf(&read(&beyond.bytes()).unwrap()).unwrap_err().to_string();
        assert!(refused.starts_with("sample.gguf: `tokenizer.ggml.eos_token_id` is 999, and there are "), "{refused}");
    }

    #[test]
    fn a_file_without_a_chat_template_is_refused() {
        let file = read(&Sample::byte_level("llama-bpe", &["a b"]).bytes()).unwrap();
        let refused = crate::ChatTemplate::in_gguf(&file).unwrap_err().to_string();
        assert_eq!(
            refused,
            "sample.gguf: has no chat template, there is no `tokenizer.chat_template`: it can only continue a text"
        );
    }
}
