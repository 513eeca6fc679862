//! The dataset's splits in tokens, as far as a plan must know them: whether a stage finds enough to read, and nothing too long.
//!
//! Pairs are counted whole. Of a text no more is turned into tokens than proves that there are enough of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use compressor_format::{Examples, Pair, Result, Split, Tokenizer};
use rayon::prelude::*;

/// Which tokenizer a model has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TokenizerOf {
    /// The one that lies with a model.
    Model(PathBuf),
    /// One of so many tokens, which the run will train on the train split.
    Trained(usize),
}

/// What stages read.
#[derive(Default)]
pub(crate) struct Rows {
    train: Option<Examples>,
    valid: Option<Examples>,
    test: Option<Examples>,
    /// By what is counted, and up to which length a bound is enough.
    counted: HashMap<(TokenizerOf, Split, usize), Rc<Counted>>,
}

/// The examples of a split in tokens.
#[derive(Debug)]
pub(crate) struct Counted {
    /// What each predicts: all tokens of its row but the first. A bound where that is enough.
    pub(crate) predictions: Vec<usize>,
    /// The largest token number among them.
    pub(crate) largest_id: u32,
}

/// Examples that do not fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) count: usize,
    pub(crate) of: usize,
    /// Tokens that the longest predicts.
    pub(crate) longest: usize,
    /// How the first of them begins.
    pub(crate) first: String,
}

/// Text that a tokenizer is trained on in a plan, about a second's worth. What a longer one would say is left to the run.
const CHEAP_BYTES: usize = 4 << 20;
/// Between prompt and completion, and at the end.
const SPECIAL_TOKENS: usize = 2;
/// Tokens that cutting a text can add at the cut.
pub(crate) const CUT_TOKENS: usize = 64;

impl Rows {
    pub(crate) fn put(&mut self, split: Split, examples: Examples) {
        match split {
            Split::Train => self.train = Some(examples),
            Split::Valid => self.valid = Some(examples),
            Split::Test => self.test = Some(examples),
        }
    }

    pub(crate) fn examples(&self, split: Split) -> Option<&Examples> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Valid => self.valid.as_ref(),
            Split::Test => self.test.as_ref(),
        }
    }

    /// The pairs of a split; `None` where it is a text or could not be read.
    pub(crate) fn pairs(&self, split: Split) -> Option<&[Pair]> {
        match self.examples(split)? {
            Examples::Pairs(pairs) => Some(pairs),
            Examples::Text(_) => None,
        }
    }

    /// The text of a split; `None` where it is pairs or could not be read.
    pub(crate) fn text(&self, split: Split) -> Option<&str> {
        match self.examples(split)? {
            Examples::Text(text) => Some(text),
            Examples::Pairs(_) => None,
        }
    }

    /// The tokenizer that the run will train, where that is cheap.
    pub(crate) fn train_tokenizer(&self, vocab_size: usize) -> Result<Option<Tokenizer>> {
        let Some(train) = &self.train else { return Ok(None) };
        let texts = train.texts();
        match texts.iter().map(String::len).sum::<usize>() <= CHEAP_BYTES {
            true => Tokenizer::train_bpe(texts.into_iter(), vocab_size).map(Some),
            false => Ok(None),
        }
    }

    /// Whether no pair of a split can predict more than `most` tokens of a tokenizer that is not trained yet.
    pub(crate) fn surely_fit(&self, split: Split, most: usize) -> bool {
        self.pairs(split).is_none_or(|pairs| pairs.iter().all(|pair| most_predictions(pair) <= most))
    }

    /// The first `count` pairs of a split in tokens, those that may predict more than `most` exactly.
    pub(crate) fn count(
        &mut self,
        split: Split,
        count: usize,
        most: usize,
        of: &TokenizerOf,
        tokenizer: &Tokenizer,
    ) -> Result<Rc<Counted>> {
        // What a tokenizer from elsewhere does to a text is not known before it does it.
        let enough = if let TokenizerOf::Trained(_) = of { most } else { 0 };
        let key = (of.clone(), split, enough);
        if let Some(counted) = self.counted.get(&key) {
            return Ok(Rc::clone(counted));
        }
        let pairs = self.pairs(split).unwrap_or_default();
        let row = |pair: &Pair| {
            if most_predictions(pair) <= enough {
                return Ok((most_predictions(pair), 0));
            }
            let ids = pair.tokens(tokenizer)?.ids;
            Ok((ids.len() - 1, ids.into_iter().max().unwrap_or(0)))
        };
        let rows = pairs[..pairs.len().min(count)].par_iter().map(row).collect::<Result<Vec<(usize, u32)>>>()?;
        let largest_id = rows.iter().map(|(_, id)| *id).max().unwrap_or(0);
        let counted =
            Rc::new(Counted { predictions: rows.into_iter().map(|(predictions, _)| predictions).collect(), largest_id });
        self.counted.insert(key, Rc::clone(&counted));
        Ok(counted)
    }

    /// The pairs of a split that predict more than `most` tokens.
    pub(crate) fn too_long(&self, split: Split, counted: &Counted, most: usize) -> Option<TooLong> {
        let long = || counted.predictions.iter().enumerate().filter(|(_, predictions)| **predictions > most);
        let (first, _) = long().next()?;
        Some(TooLong {
            count: long().count(),
            of: counted.predictions.len(),
            longest: counted.predictions.iter().copied().max().unwrap_or(0),
            first: self.pairs(split).map(|pairs| pairs[first].beginning()).unwrap_or_default(),
        })
    }
}

/// The most that a pair can predict with a byte-level tokenizer, whatever it learns: no token is less than a byte.
fn most_predictions(pair: &Pair) -> usize {
    pair.prompt.len() + pair.completion.len() + SPECIAL_TOKENS - 1
}

/// Tokens from the beginning of a text: more than `enough`, or all there are.
pub(crate) fn beginning(text: &str, tokenizer: &Tokenizer, enough: usize) -> Result<Vec<u32>> {
    let mut bytes = enough.saturating_mul(8).max(1 << 12);
    loop {
        let cut = text.floor_char_boundary(bytes);
        let tokens = tokenizer.encode(&text[..cut])?;
        if cut == text.len() || tokens.len() >= enough.saturating_add(CUT_TOKENS) {
            return Ok(tokens);
        }
        bytes = bytes.saturating_mul(2);
    }
}

/// Whether a text has `enough` tokens of a byte-level tokenizer that is not trained yet: no token holds two words, and none is
/// less than a byte. `None` where it depends on the tokenizer.
pub(crate) fn has_tokens(text: &str, enough: usize) -> Option<bool> {
    match text.split_whitespace().take(enough).count() {
        words if words >= enough => Some(true),
        _ if text.len() < enough => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bytes() -> Tokenizer {
        Tokenizer::train_bpe(std::iter::empty(), 258).unwrap()
    }

    fn rows(pairs: &[(&str, &str)]) -> Rows {
        let pair = |(prompt, completion): &(&str, &str)| Pair { prompt: (*prompt).into(), completion: (*completion).into() };
        let mut rows = Rows::default();
        rows.put(Split::Train, Examples::Pairs(pairs.iter().map(pair).collect()));
        rows
    }

    #[test]
    fn pairs_that_are_too_long_are_counted() {
        let mut rows = rows(&[("on", "1"), ("off", "0"), ("dim", "50")]);
        // A byte a token, `<|command|>` and `<|end|>`; the first token is not predicted: 4, 5 and 6.
        let mut count = |most| rows.count(Split::Train, usize::MAX, most, &TokenizerOf::Trained(258), &bytes()).unwrap();
        let (exact, bounded) = (count(0), count(5));
        assert_eq!((&exact.predictions[..], &bounded.predictions[..]), (&[4, 5, 6][..], &[4, 5, 6][..]));
        assert_eq!(rows.too_long(Split::Train, &exact, 6), None);
        let expected = TooLong { count: 2, of: 3, longest: 6, first: "off".to_owned() };
        assert_eq!(rows.too_long(Split::Train, &exact, 4), Some(expected));
        assert!(rows.surely_fit(Split::Train, 6) && !rows.surely_fit(Split::Train, 5));
    }

    #[test]
    fn a_bound_stands_only_for_what_fits_by_it() {
        let tokenizer = Tokenizer::train_bpe(std::iter::repeat_n("aaaaaaaa".to_owned(), 9), 300).unwrap();
        let mut rows = rows(&[("aaaaaaaa", "a"), ("aaaaaaaa", "aa")]);
        // `aaaaaaaa` is one token then: 3 and 3 or 4 predictions, 10 and 11 at most.
        let counted = rows.count(Split::Train, usize::MAX, 10, &TokenizerOf::Trained(300), &tokenizer).unwrap();
        assert_eq!(counted.predictions[0], 10);
        assert!(counted.predictions[1] < 10, "{counted:?}");
    }

    #[test]
    fn no_more_of_a_text_is_read_than_is_needed() {
        let text = "word ".repeat(100_000);
        let tokens = beginning(&text, &bytes(), 1000).unwrap();
        assert!((1000 + CUT_TOKENS..20_000).contains(&tokens.len()), "{}", tokens.len());
        assert_eq!(beginning("abc", &bytes(), 1000).unwrap().len(), 3);
        // The cut is never inside of a character.
        beginning(&"ä".repeat(5000), &bytes(), 1).unwrap();
    }

    #[test]
    fn words_and_bytes_bound_the_tokens_of_any_byte_level_tokenizer() {
        assert_eq!(has_tokens("one two three", 3), Some(true));
        assert_eq!(has_tokens("one two three", 14), Some(false));
        assert_eq!(has_tokens("one two three", 4), None);
    }
}
