//! The components of a tokenizer as the `tokenizers` crate runs them.
//!
//! What can fail, grow or take long by a parameter is done here, with a limit; the rest is the crate's own.

use std::cell::RefCell;

use fancy_regex::Regex;
use tokenizers::decoders::bpe::BPEDecoder;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers as crate_normalizers;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Prepend, Strip, StripAccents};
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::delimiter::CharDelimiterSplit;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::fixed_length::FixedLength;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::unicode_scripts::UnicodeScripts;
use tokenizers::pre_tokenizers::whitespace::{Whitespace, WhitespaceSplit};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString,
    PreTokenizerWrapper, Result, SplitDelimiterBehavior, TokenizerImpl,
};

use super::description::{Added, Decoder, Description, Model, Normalizer, PreTokenizer};
use super::search::{Clock, Found, Search, compile};

/// A tokenizer that runs.
pub(super) type Running = TokenizerImpl<ModelWrapper, Normalizers, PreTokenizers, PostProcessorWrapper, Decoders>;

/// How many times its bytes a text may become. NFKC makes eleven of one, of U+FDFA.
const MOST_GROWTH: usize = 16;
/// Added to a text of any length.
const MOST_ADDED_BYTES: usize = 256;

fn most_bytes(of: usize) -> usize {
    of.saturating_mul(MOST_GROWTH).saturating_add(MOST_ADDED_BYTES)
}

fn refuse_growth(component: &str, from: usize, to: usize) -> Result<()> {
    match to <= most_bytes(from) {
        true => Ok(()),
        false => Err(format!("its `{component}` makes {to} bytes of {from}; {} are possible", most_bytes(from)).into()),
    }
}

pub(super) fn run(description: Description) -> Result<Running> {
    let Description { normalizers, pre_tokenizers, model, begins_with: _, decoders, added } = description;
    let mut running = Running::new(model.build()?);
    if !normalizers.is_empty() {
        let normalizers = normalizers.into_iter().map(Normalizer::build).collect::<Result<_>>()?;
        running.with_normalizer(Some(Normalizers(normalizers)))?;
    }
    if !pre_tokenizers.is_empty() {
        let pre_tokenizers = pre_tokenizers.into_iter().map(PreTokenizer::build).collect::<Result<_>>()?;
        running.with_pre_tokenizer(Some(PreTokenizers(pre_tokenizers)));
    }
    if let Some(decoders) = decoders {
        running.with_decoder(Some(Decoders(decoders.into_iter().map(Decoder::build).collect::<Result<_>>()?)));
    }
    for token in added.iter().filter(|token| token.normalized && !token.content.is_empty()) {
        let mut content = NormalizedString::from(token.content.as_str());
        running.get_normalizer().map_or(Ok(()), |parts| parts.apply(&mut content))?;
        if content.is_empty() {
            // It would be found between any two characters.
            let content = &token.content;
            return Err(format!(
                "its `normalizer` leaves nothing of the added token {content:?}, which then is nowhere in a text"
            )
            .into());
        }
    }
    running.add_tokens(added.into_iter().map(|added| {
        let Added { content, single_word, lstrip, rstrip, normalized, special, .. } = added;
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }))?;
    Ok(running)
}

impl Model {
    fn build(self) -> Result<ModelWrapper> {
        Ok(match self {
            Self::Bpe { vocab, merges, unk_token, end_of_word_suffix, fuse_unk, byte_fallback, ignore_merges } => {
                let mut model = BPE::builder()
                    .vocab_and_merges(vocab, merges)
                    .fuse_unk(fuse_unk)
                    .byte_fallback(byte_fallback)
                    .ignore_merges(ignore_merges);
                if let Some(token) = unk_token {
                    model = model.unk_token(token);
                }
                if let Some(suffix) = end_of_word_suffix {
                    model = model.end_of_word_suffix(suffix);
                }
                model.build()?.into()
            }
            Self::WordPiece { vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word } => WordPiece::builder()
                .vocab(vocab)
                .unk_token(unk_token)
                .continuing_subword_prefix(continuing_subword_prefix)
                .max_input_chars_per_word(max_input_chars_per_word)
                .build()?
                .into(),
            Self::WordLevel { vocab, unk_token } => WordLevel::builder().vocab(vocab).unk_token(unk_token).build()?.into(),
            Self::Unigram { pieces, unk_id, byte_fallback } => Unigram::from(pieces, unk_id, byte_fallback)?.into(),
        })
    }
}

/// What is done to a text before it is cut, in order.
#[derive(Debug, Clone)]
pub(super) struct Normalizers(Vec<NormalizerPart>);

#[derive(Debug, Clone)]
enum NormalizerPart {
    Library(NormalizerWrapper),
    Replace { regex: Regex, content: String },
}

impl Normalizer {
    fn build(self) -> Result<NormalizerPart> {
        let library: NormalizerWrapper = match self {
            Self::Replace { pattern, content } => return Ok(NormalizerPart::Replace { regex: compile(&pattern)?, content }),
            Self::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
                BertNormalizer::new(clean_text, handle_chinese_chars, strip_accents, lowercase).into()
            }
            Self::Strip { strip_left, strip_right } => Strip::new(strip_left, strip_right).into(),
            Self::StripAccents {} => StripAccents.into(),
            Self::NFC {} => NFC.into(),
            Self::NFD {} => NFD.into(),
            Self::NFKC {} => NFKC.into(),
            Self::NFKD {} => NFKD.into(),
            Self::Lowercase {} => Lowercase.into(),
            Self::Nmt {} => Nmt.into(),
            Self::Precompiled { precompiled_charsmap } => precompiled_charsmap.normalizer().into(),
            Self::Prepend { prepend } => Prepend::new(prepend).into(),
            Self::ByteLevel {} => crate_normalizers::ByteLevel::new().into(),
        };
        Ok(NormalizerPart::Library(library))
    }
}

thread_local! {
    /// Why a text of this thread could not be normalized: the crate drops what a normalizer returns.
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The tokens of a text.
pub(super) fn encode(running: &Running, text: &str) -> Result<Vec<u32>> {
    FAILURE.take();
    let encoding = running.encode_fast(text, false)?;
    match FAILURE.take() {
        None => Ok(encoding.get_ids().to_vec()),
        Some(failure) => Err(failure.into()),
    }
}

impl tokenizers::Normalizer for Normalizers {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        self.apply(text).inspect_err(|error| FAILURE.set(Some(error.to_string())))
    }
}

impl Normalizers {
    fn apply(&self, text: &mut NormalizedString) -> Result<()> {
        let bytes = text.len();
        let clock = Clock::start();
        for part in &self.0 {
            match part {
                NormalizerPart::Library(library) => tokenizers::Normalizer::normalize(library, text)?,
                NormalizerPart::Replace { regex, content } => {
                    let found = Search { regex, clock: &clock }.find_matches(text.get())?;
                    if !text.is_empty() && found.iter().any(|((start, end), is_match)| *is_match && start == end) {
                        return Err(format!("its `normalizer` replaces `{regex}`, which matches nothing in a text").into());
                    }
                    let becomes =
                        found.iter().map(|((start, end), is_match)| if *is_match { content.len() } else { end - start });
                    refuse_growth("normalizer", bytes, becomes.sum())?;
                    text.replace(Found(found), content)?;
                }
            }
            refuse_growth("normalizer", bytes, text.len())?;
        }
        Ok(())
    }
}

/// How a text is cut into words, in order.
#[derive(Debug, Clone)]
pub(super) struct PreTokenizers(Vec<PreTokenizerPart>);

#[derive(Debug, Clone)]
enum PreTokenizerPart {
    Library(PreTokenizerWrapper),
    Split { regex: Regex, behavior: SplitDelimiterBehavior, invert: bool },
}

impl PreTokenizer {
    fn build(self) -> Result<PreTokenizerPart> {
        let library: PreTokenizerWrapper = match self {
            Self::Split { pattern, behavior, invert } => {
                return Ok(PreTokenizerPart::Split { regex: compile(&pattern)?, behavior, invert });
            }
            Self::BertPreTokenizer {} => BertPreTokenizer.into(),
            Self::ByteLevel { add_prefix_space, use_regex, .. } => ByteLevel::new(add_prefix_space, true, use_regex).into(),
            Self::CharDelimiterSplit { delimiter } => CharDelimiterSplit::new(delimiter).into(),
            Self::Metaspace { replacement, prepend_scheme, split, .. } => {
                Metaspace::new(replacement, prepend_scheme, split).into()
            }
            Self::Whitespace {} => Whitespace.into(),
            Self::WhitespaceSplit {} => WhitespaceSplit.into(),
            Self::Punctuation { behavior } => Punctuation::new(behavior).into(),
            Self::Digits { individual_digits } => Digits::new(individual_digits).into(),
            Self::UnicodeScripts {} => UnicodeScripts::new().into(),
            Self::FixedLength { length } => FixedLength::new(length).into(),
        };
        Ok(PreTokenizerPart::Library(library))
    }
}

impl tokenizers::PreTokenizer for PreTokenizers {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        let clock = Clock::start();
        for part in &self.0 {
            match part {
                PreTokenizerPart::Library(library) => library.pre_tokenize(text)?,
                PreTokenizerPart::Split { regex, behavior, invert } => {
                    let search = || Search { regex, clock: &clock };
                    match invert {
                        true => text.split(|_, word| word.split(Invert(search()), *behavior))?,
                        false => text.split(|_, word| word.split(search(), *behavior))?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// How tokens become a text, in order.
#[derive(Debug, Clone)]
pub(super) struct Decoders(Vec<DecoderPart>);

#[derive(Debug, Clone)]
enum DecoderPart {
    Library(DecoderWrapper),
    Replace { regex: Regex, content: String },
    Strip { content: char, start: usize, stop: usize },
}

impl Decoder {
    fn build(self) -> Result<DecoderPart> {
        let library: DecoderWrapper = match self {
            Self::Replace { pattern, content } => return Ok(DecoderPart::Replace { regex: compile(&pattern)?, content }),
            Self::Strip { content, start, stop } => return Ok(DecoderPart::Strip { content, start, stop }),
            Self::BPEDecoder { suffix } => BPEDecoder::new(suffix).into(),
            Self::ByteLevel { .. } => ByteLevel::default().into(),
            Self::WordPiece { prefix, cleanup } => WordPieceDecoder::new(prefix, cleanup).into(),
            Self::Metaspace { replacement, prepend_scheme, .. } => Metaspace::new(replacement, prepend_scheme, true).into(),
            Self::Fuse {} => Fuse::new().into(),
            Self::ByteFallback {} => ByteFallback::new().into(),
        };
        Ok(DecoderPart::Library(library))
    }
}

impl tokenizers::Decoder for Decoders {
    fn decode_chain(&self, mut tokens: Vec<String>) -> Result<Vec<String>> {
        let bytes = |tokens: &[String]| tokens.iter().map(String::len).sum::<usize>();
        let before = bytes(&tokens);
        let clock = Clock::start();
        // The crate's BPEDecoder wants a last token.
        if tokens.is_empty() {
            return Ok(tokens);
        }
        for part in &self.0 {
            match part {
                DecoderPart::Library(library) => tokens = library.decode_chain(tokens)?,
                DecoderPart::Replace { regex, content } => {
                    let search = Search { regex, clock: &clock };
                    let mut becomes = 0;
                    for token in &mut tokens {
                        *token = replaced(token, &search, content)?;
                        becomes += token.len();
                        refuse_growth("decoder", before, becomes)?;
                    }
                }
                DecoderPart::Strip { content, start, stop } => {
                    tokens.iter_mut().for_each(|token| *token = stripped(token, *content, *start, *stop).to_owned());
                }
            }
            refuse_growth("decoder", before, bytes(&tokens))?;
        }
        Ok(tokens)
    }
}

/// A token with `content` for every match.
fn replaced(token: &str, search: &Search, content: &str) -> Result<String> {
    let found = search.find_matches(token)?;
    Ok(found.into_iter().map(|((start, end), is_match)| if is_match { content } else { &token[start..end] }).collect())
}

/// Without so many of a character at both ends.
fn stripped(token: &str, content: char, start: usize, stop: usize) -> &str {
    let mut token = token;
    for _ in 0..start {
        let Some(rest) = token.strip_prefix(content) else { break };
        token = rest;
    }
    for _ in 0..stop {
        let Some(rest) = token.strip_suffix(content) else { break };
        token = rest;
    }
    token
}
