//! The tokenizer of an artifact's folder as GGUF's metadata.
//!
//! `tokenizer.json` can say more than GGUF, where the way of cutting text into words is a name that stands for all that llama.cpp does
//! to a text. So everything else in it must be as that name means it; what is not is refused.

use std::path::Path;

use serde_json::Value;
use tokenizers::PreTokenizerWrapper;

use super::head::Head;
use crate::gguf::vocabulary::{CONTROL, NORMAL, UNUSED, USER_DEFINED};
use crate::gguf::words::{WORDS, Words};
use crate::{Artifact, ChatTemplate, Error, Result, Tokenizer, chat, end_tokens};

/// A `tokenizer.json`, read as the text it is.
struct Source<'a> {
    path: &'a Path,
    json: Value,
}

/// Adds everything under `tokenizer.`.
pub(super) fn describe(artifact: &Artifact, head: &mut Head) -> Result<()> {
    let folder = artifact.path();
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::open(&path)?;
    let json = serde_json::from_slice(tokenizer.json()).expect("`open` has read it");
    let source = Source { path: &path, json };
    let (name, words) = source.words()?;
    source.refuse_other_than(words)?;

    let (tokens, types) = source.tokens(&tokenizer, artifact.architecture().vocab_size)?;
    head.text("tokenizer.ggml.model", "gpt2");
    head.text("tokenizer.ggml.pre", name);
    head.texts("tokenizer.ggml.tokens", &tokens);
    head.integers("tokenizer.ggml.token_type", &types);
    head.texts("tokenizer.ggml.merges", &source.merges()?);

    let named = Named::read(artifact, &tokenizer, tokens.len())?;
    let adds_bos = source.adds_bos(&tokenizer, named.bos)?;
    head.u32("tokenizer.ggml.bos_token_id", named.bos.unwrap_or(named.eos));
    head.u32("tokenizer.ggml.eos_token_id", named.eos);
    let others = [("eot", named.eot), ("unknown", named.unknown), ("padding", named.padding)];
    for (key, id) in others.into_iter().filter_map(|(key, id)| Some((key, id?))) {
        head.u32(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    head.flag("tokenizer.ggml.add_bos_token", adds_bos);
    if let Some(template) = ChatTemplate::in_folder(folder)? {
        head.text("tokenizer.chat_template", template.source());
    }
    Ok(())
}

impl Source<'_> {
    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::unsupported(self.path, what)
    }

    /// The way of cutting text into words, with its name.
    fn words(&self) -> Result<(&'static str, Words)> {
        let model = &self.json["model"];
        if model["type"] != "BPE" || model["byte_fallback"] == true {
            let kind = if model["byte_fallback"] == true { "SentencePiece's BPE" } else { "no BPE" };
            return Err(self.unsupported(format!("its model is {kind}; only byte-level BPE can be written as GGUF")));
        }
        let found = &self.json["pre_tokenizer"];
        let steps: Option<PreTokenizerWrapper> = serde_json::from_value(found.clone()).ok();
        let steps = steps.map(flat);
        let is_found = |(_, words): &(_, Words)| steps.as_ref() == Some(&flat(words.pre_tokenizer()));
        WORDS.into_iter().find(is_found).ok_or_else(|| {
            let known = WORDS.map(|(name, _)| name).join(", ");
            self.unsupported(format!(
                "its `pre_tokenizer` cuts words in a way that has no name here, and GGUF has only names; known are {known}; found \
                 {found}"
            ))
        })
    }

    /// Refuses what llama.cpp would do otherwise.
    fn refuse_other_than(&self, words: Words) -> Result<()> {
        let model = &self.json["model"];
        let suffix = &model["end_of_word_suffix"];
        if !suffix.is_null() && *suffix != "" {
            return Err(self.unsupported(format!("`model.end_of_word_suffix` is {suffix}, which GGUF can't say")));
        }
        let ignores_merges = model["ignore_merges"] == true;
        if ignores_merges != (words == Words::Llama3) {
            return Err(self.unsupported(format!(
                "`model.ignore_merges` is {ignores_merges}, and llama.cpp does the other for texts that are cut in this way"
            )));
        }
        let normalizer = &self.json["normalizer"];
        let is_known = normalizer.is_null() || words == Words::Qwen2 && normalizer["type"] == "NFC";
        if !is_known {
            return Err(self.unsupported(format!("its `normalizer` is {normalizer}, and llama.cpp has none for this vocabulary")));
        }
        for added in self.added() {
            let flags = ["lstrip", "rstrip", "single_word"];
            if let Some(flag) = flags.into_iter().find(|flag| added[flag] == true) {
                let content = &added["content"];
                return Err(self.unsupported(format!("the added token {content} has `{flag}`, which GGUF can't say")));
            }
        }
        Ok(())
    }

    fn added(&self) -> impl Iterator<Item = &Value> {
        self.json["added_tokens"].as_array().into_iter().flatten()
    }

    /// Every token with its type, by number: as many as the embedding has rows.
    fn tokens(&self, tokenizer: &Tokenizer, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
        let vocabulary = self.json["model"]["vocab"].as_object().into_iter().flatten();
        let normal = vocabulary.map(|(token, _)| (token.as_str(), NORMAL));
        let added = self.added().filter_map(|added| {
            let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            Some((added["content"].as_str()?, kind))
        });
        for (token, kind) in normal.chain(added) {
            // Added tokens are numbered by the library, whatever the file says; one without characters it leaves out.
            let Some(id) = tokenizer.id(token) else { continue };
            let Some(place) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) else {
                return Err(self.unsupported(format!("token `{token}` has number {id}, and the embedding has {rows} rows")));
            };
            *place = Some((token.to_owned(), kind));
        }
        // Embeddings are often longer than the vocabulary; llama.cpp wants a token for each row.
        let named = |(id, token): (usize, Option<(String, i32)>)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
        Ok(tokens.into_iter().enumerate().map(named).unzip())
    }

    fn merges(&self) -> Result<Vec<String>> {
        let merges = self.json["model"]["merges"].as_array().into_iter().flatten();
        let line = |merge: &Value| match merge {
            // The library takes a first line with its version for none.
            Value::String(line) if line.starts_with("#version") => None,
            Value::String(line) => Some(Ok(line.clone())),
            pair => {
                let (left, right) = pair[0].as_str().zip(pair[1].as_str()).expect("`Tokenizer::open` has checked the merges");
                match left.contains(' ') || right.contains(' ') {
                    true => Some(Err(self.unsupported(format!("merge {pair} has a space in a token, which GGUF can't say")))),
                    false => Some(Ok(format!("{left} {right}"))),
                }
            }
        };
        merges.filter_map(line).collect()
    }

    /// Whether texts begin with BOS, by what the tokenizer does.
    fn adds_bos(&self, tokenizer: &Tokenizer, bos: Option<u32>) -> Result<bool> {
        match (tokenizer.bos_of_texts(), bos) {
            (None, _) => Ok(false),
            (Some(before), Some(bos)) if before == bos => Ok(true),
            (Some(before), named) => {
                let named = named.map_or("no token".to_owned(), |bos| format!("token {bos}"));
                Err(self.unsupported(format!(
                    "its `post_processor` puts token {before} before a text, and tokenizer_config.json or config.json name {named} as \
                     BOS; only BOS can be written as GGUF"
                )))
            }
        }
    }
}

/// The steps of a pre-tokenizer, without what bears on places in the text alone.
fn flat(words: PreTokenizerWrapper) -> Vec<PreTokenizerWrapper> {
    match words {
        PreTokenizerWrapper::Sequence(steps) => steps.into_iter().flat_map(flat).collect(),
        PreTokenizerWrapper::ByteLevel(bytes) => vec![bytes.trim_offsets(true).into()],
        other => vec![other],
    }
}

/// Tokens with a meaning, by number.
struct Named {
    bos: Option<u32>,
    eos: u32,
    /// Ends a turn, where that is another token.
    eot: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

impl Named {
    fn read(artifact: &Artifact, tokenizer: &Tokenizer, tokens: usize) -> Result<Self> {
        let (folder, architecture) = (artifact.path(), artifact.architecture());
        let special = chat::special_tokens(folder)?;
        let named = |name: &str| special.get(name).and_then(|token| tokenizer.id(token));
        let in_range = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < tokens);
        let ends = named("eos_token").into_iter().chain(architecture.eos_token_ids.iter().copied());
        let ends: Vec<u32> = ends.chain(end_tokens(folder, tokenizer)?).filter(in_range).collect();
        let Some(eos) = ends.first().copied().or_else(|| tokenizer.eos()) else {
            let what =
                "names no token that ends a text, and llama.cpp would take number 11 for it; set eos_token_id in config.json";
            return Err(Error::unsupported(folder, what));
        };
        Ok(Self {
            bos: named("bos_token").or(architecture.bos_token_id).filter(in_range),
            eos,
            eot: ends.into_iter().find(|end| *end != eos),
            unknown: named("unk_token"),
            padding: named("pad_token"),
        })
    }
}
