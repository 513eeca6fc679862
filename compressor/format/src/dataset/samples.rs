//! Examples as rows of tokens, and rows as batches in an order that a killed run can take up again.

use serde::{Deserialize, Serialize};

use super::draw::Draw;
use super::{Examples, Pair};
use crate::{Error, Result, Tokenizer};

/// The tokens of one example.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Token numbers.
    pub ids: Vec<u32>,
    /// For each token, whether predicting it is learnt.
    pub loss: Vec<bool>,
}

/// All rows of one split as tokens.
///
/// A text becomes windows of `sequence_length + 1` tokens that share one token with the next window, so that every token
/// but the first is predicted exactly once. A pair becomes a row of its own: `prompt <|command|> completion <|end|>`. Rows
/// are not packed together, because attention would then need a mask for each of them.
#[derive(Debug, Clone)]
pub struct Samples {
    ids: Vec<u32>,
    loss: Vec<bool>,
    rows: Vec<Row>,
    pad: u32,
}

/// Where a row lies in `Samples::ids`.
#[derive(Debug, Clone, Copy)]
struct Row {
    start: usize,
    len: usize,
}

/// Rows of equal length, ready for a model. All three are row-major `[rows, length]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// What the model reads.
    pub tokens: Vec<u32>,
    /// What it should predict at each place: the next token.
    pub targets: Vec<u32>,
    /// 1 where the prediction counts; 0 in prompts and padding.
    pub weights: Vec<f32>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens in a row, padding included.
    pub length: usize,
}

/// Which batch comes next. Saved with a training state, it continues the same order without replaying it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleOrder {
    /// Seed of every epoch's order.
    pub seed: u64,
    /// How often the samples have been gone through.
    pub epoch: u64,
    /// The next batch of this epoch, counted from 0.
    pub index: u64,
}

/// Endless batches in a seeded order.
#[derive(Debug)]
pub struct Batches<'s> {
    samples: &'s Samples,
    rows: usize,
    order: SampleOrder,
    /// The current epoch's batches, one after the other; made when first needed.
    plan: Option<(u64, Vec<u32>)>,
}

/// Rows are sorted by length inside of pools of this many batches: big enough that a batch's rows are about equally long,
/// small enough that the order stays random.
const POOL_BATCHES: usize = 32;

impl Samples {
    /// Turns examples into rows of at most `sequence_length` predictions.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a pair is longer than `sequence_length`, when the tokenizer names no end of text, or when a
    /// text is shorter than one window.
    pub fn new(examples: &Examples, tokenizer: &Tokenizer, sequence_length: usize) -> Result<Self> {
        if sequence_length == 0 {
            return Err(Error::Tokenizer("sequence_length is 0; a row predicts at least one token".to_owned()));
        }
        match examples {
            Examples::Text(text) => Self::windows(tokenizer.encode(text)?, sequence_length, tokenizer.eos().unwrap_or(0)),
            Examples::Pairs(pairs) => {
                let mut samples = Self { ids: Vec::new(), loss: Vec::new(), rows: Vec::new(), pad: 0 };
                samples.pad = end_of_text(tokenizer)?;
                for pair in pairs {
                    let tokens = pair.tokens(tokenizer)?;
                    if tokens.ids.len() > sequence_length + 1 {
                        let what = format!(
                            "example {} predicts {} tokens and sequence_length is {sequence_length}; raise it to {} or shorten the \
                             example \"{}\"",
                            samples.rows.len() + 1,
                            tokens.ids.len() - 1,
                            tokens.ids.len() - 1,
                            pair.beginning()
                        );
                        return Err(Error::Tokenizer(what));
                    }
                    samples.rows.push(Row { start: samples.ids.len(), len: tokens.ids.len() });
                    samples.ids.extend(tokens.ids);
                    samples.loss.extend(tokens.loss);
                }
                Ok(samples)
            }
        }
    }

    /// Windows over one stream of tokens.
    fn windows(ids: Vec<u32>, sequence_length: usize, pad: u32) -> Result<Self> {
        let windows = ids.len().saturating_sub(1) / sequence_length;
        if windows == 0 {
            let what = format!(
                "the text has {} tokens and one window needs {}; lower sequence_length or give more text",
                ids.len(),
                sequence_length + 1
            );
            return Err(Error::Tokenizer(what));
        }
        let rows = (0..windows).map(|window| Row { start: window * sequence_length, len: sequence_length + 1 }).collect();
        Ok(Self { loss: vec![true; ids.len()], ids, rows, pad })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Predictions in the longest row: the length that a model must be able to take.
    pub fn longest(&self) -> usize {
        self.rows.iter().map(|row| row.len.saturating_sub(1)).max().unwrap_or(0)
    }

    /// Endless batches of `rows` rows each, beginning at `order`. Each epoch has its own order, rows of similar length come
    /// together, and the rows that do not fill the epoch's last batch wait for another epoch.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there are fewer rows than one batch takes.
    pub fn batches(&self, rows: usize, order: SampleOrder) -> Result<Batches<'_>> {
        if rows == 0 || self.rows.len() < rows {
            let what =
                format!("a batch takes {rows} rows and the split has {}; it takes at least 1 and at most all", self.rows.len());
            return Err(Error::Tokenizer(what));
        }
        Ok(Batches { samples: self, rows, order, plan: None })
    }

    /// The tokens of each row, in the split's order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.rows.iter().map(|row| &self.ids[row.start..row.start + row.len])
    }

    /// Every row once, in the split's order, `rows` to a batch; the last one can be smaller. For measuring.
    pub fn in_order(&self, rows: usize) -> impl Iterator<Item = Batch> + '_ {
        let all: Vec<u32> = (0..self.rows.len() as u32).collect();
        let rows = rows.max(1);
        (0..all.len().div_ceil(rows)).map(move |batch| self.batch(&all[batch * rows..all.len().min((batch + 1) * rows)]))
    }

    /// These rows, padded to the longest of them.
    fn batch(&self, rows: &[u32]) -> Batch {
        let rows: Vec<Row> = rows.iter().map(|row| self.rows[*row as usize]).collect();
        let length = rows.iter().map(|row| row.len - 1).max().unwrap_or(0);
        let mut batch = Batch {
            tokens: vec![self.pad; rows.len() * length],
            targets: vec![self.pad; rows.len() * length],
            weights: vec![0.0; rows.len() * length],
            rows: rows.len(),
            length,
        };
        for (row, at) in rows.iter().zip((0..).step_by(length)) {
            let (ids, loss) = (&self.ids[row.start..row.start + row.len], &self.loss[row.start..row.start + row.len]);
            let predictions = row.len - 1;
            batch.tokens[at..at + predictions].copy_from_slice(&ids[..predictions]);
            batch.targets[at..at + predictions].copy_from_slice(&ids[1..]);
            for (weight, loss) in batch.weights[at..at + predictions].iter_mut().zip(&loss[1..]) {
                *weight = f32::from(u8::from(*loss));
            }
        }
        batch
    }

    /// The rows of every batch of one epoch, one batch after the other.
    fn plan(&self, rows: usize, seed: u64, epoch: u64) -> Vec<u32> {
        let mut draw = Draw::new("order of samples", seed, epoch);
        let mut all: Vec<u32> = (0..self.rows.len() as u32).collect();
        draw.shuffle(&mut all);
        all.truncate(self.rows.len() / rows * rows);
        for pool in all.chunks_mut(POOL_BATCHES * rows) {
            pool.sort_by_key(|row| self.rows[*row as usize].len);
        }
        let mut batches: Vec<&[u32]> = all.chunks(rows).collect();
        draw.shuffle(&mut batches);
        batches.concat()
    }
}

impl Batches<'_> {
    /// Where the next batch stands.
    pub fn order(&self) -> SampleOrder {
        self.order
    }

    /// Batches in one epoch.
    pub fn per_epoch(&self) -> u64 {
        (self.samples.rows.len() / self.rows) as u64
    }

    /// The next batch. There is always one.
    pub fn next_batch(&mut self) -> Batch {
        // A saved position can lie behind the end of an epoch when the dataset has become smaller since.
        self.order.epoch += self.order.index / self.per_epoch();
        self.order.index %= self.per_epoch();
        let SampleOrder { seed, epoch, index } = self.order;
        let plan = match self.plan.take() {
            Some((planned, plan)) if planned == epoch => plan,
            _ => self.samples.plan(self.rows, seed, epoch),
        };
        let start = index as usize * self.rows;
        let batch = self.samples.batch(&plan[start..start + self.rows]);
        self.plan = Some((epoch, plan));
        self.order.index += 1;
        batch
    }
}

impl Pair {
    /// `prompt <|command|> completion <|end|>`, the completion and its end learnt. Tokenizers without `<|command|>` put the
    /// completion straight after the prompt.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer has no token that ends a text, or none for a part of this one.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Tokens> {
        let mut ids = tokenizer.encode_prompt(&self.prompt)?;
        let mut loss = vec![false; ids.len()];
        ids.extend(tokenizer.encode(&self.completion)?);
        ids.push(end_of_text(tokenizer)?);
        loss.resize(ids.len(), true);
        Ok(Tokens { ids, loss })
    }

    /// How it begins, on one line, for a message.
    pub fn beginning(&self) -> String {
        let text = if self.prompt.is_empty() { &self.completion } else { &self.prompt };
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut beginning: String = text.chars().take(40).collect();
        if beginning.len() < text.len() {
            beginning.push('…');
        }
        beginning
    }
}

fn end_of_text(tokenizer: &Tokenizer) -> Result<u32> {
    tokenizer.eos().ok_or_else(|| {
        Error::Tokenizer("no token is known to end a text, so separate examples can't be learnt; use a [text] dataset".to_owned())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    fn tokenizer() -> Tokenizer {
        // 258 tokens: a byte each, numbered from 2 in the order of their characters; `a` is 66.
        Tokenizer::train_bpe(std::iter::empty(), 258).unwrap()
    }

    fn pair(prompt: &str, completion: &str) -> Pair {
        Pair { prompt: prompt.into(), completion: completion.into() }
    }

    fn order(seed: u64) -> SampleOrder {
        SampleOrder { seed, epoch: 0, index: 0 }
    }

    #[test]
    fn a_pair_learns_its_completion_and_its_end() {
        let tokenizer = tokenizer();
        let (a, b, c) = (tokenizer.id("a").unwrap(), tokenizer.id("b").unwrap(), tokenizer.id("c").unwrap());
        let tokens = pair("ab", "c").tokens(&tokenizer).unwrap();
        assert_eq!(tokens.ids, [a, b, 1, c, 0]);
        assert_eq!(tokens.loss, [false, false, false, true, true]);

        let samples = Samples::new(&Examples::Pairs(vec![pair("ab", "c"), pair("", "b")]), &tokenizer, 4).unwrap();
        assert_eq!((samples.len(), samples.longest()), (2, 4));
        let batch = samples.in_order(2).next().unwrap();
        assert_eq!((batch.rows, batch.length), (2, 4));
        assert_eq!(batch.tokens, [a, b, 1, c, /**/ b, 0, 0, 0]);
        assert_eq!(batch.targets, [b, 1, c, 0, /**/ 0, 0, 0, 0]);
        assert_eq!(batch.weights, [0.0, 0.0, 1.0, 1.0, /**/ 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn windows_of_a_text_predict_every_token_once() {
        let tokenizer = tokenizer();
        let samples = Samples::new(&Examples::Text("abcdefgh".into()), &tokenizer, 3).unwrap();
        let text = tokenizer.encode("abcdefgh").unwrap();
        let batches: Vec<Batch> = samples.in_order(1).collect();
        assert_eq!(batches.len(), 2); // 7 predictions: two windows of 3, the last is left over
        assert_eq!((&batches[0].tokens[..], &batches[0].targets[..]), (&text[0..3], &text[1..4]));
        assert_eq!((&batches[1].tokens[..], &batches[1].targets[..]), (&text[3..6], &text[4..7]));
        assert!(batches.iter().all(|batch| batch.weights == [1.0; 3]));
    }

    /// 50 pairs of different lengths; the first two letters tell which is which.
    fn fifty() -> Samples {
        let pairs = (0..50_u8).map(|index| {
            let name = [b'a' + index / 10, b'a' + index % 10];
            pair(std::str::from_utf8(&name).unwrap(), &"x".repeat(1 + usize::from(index * 7 % 23)))
        });
        Samples::new(&Examples::Pairs(pairs.collect()), &tokenizer(), 40).unwrap()
    }

    #[test]
    fn a_resumed_order_is_the_unbroken_one() {
        let samples = fifty();
        let mut unbroken = samples.batches(4, order(7)).unwrap();
        assert_eq!(unbroken.per_epoch(), 12);
        for _ in 0..40 {
            // What is saved is the position alone, through JSON.
            let saved = serde_json::to_string(&unbroken.order()).unwrap();
            let mut resumed = samples.batches(4, serde_json::from_str(&saved).unwrap()).unwrap();
            assert_eq!(resumed.next_batch(), unbroken.next_batch());
        }
        assert_eq!(unbroken.order(), SampleOrder { seed: 7, epoch: 3, index: 4 });
    }

    #[test]
    fn an_epoch_has_every_row_at_most_once_and_another_order_than_the_last() {
        let samples = fifty();
        let mut batches = samples.batches(4, order(7)).unwrap();
        let mut epochs: Vec<Vec<Vec<u32>>> = Vec::new();
        for _ in 0..2 {
            let mut seen: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
            let mut names = Vec::new();
            for _ in 0..batches.per_epoch() {
                let batch = batches.next_batch();
                for row in batch.tokens.chunks(batch.length) {
                    *seen.entry(row[..2].to_vec()).or_default() += 1;
                    names.push(row[..2].to_vec());
                }
            }
            assert_eq!(seen.len(), 48);
            assert!(seen.values().all(|count| *count == 1));
            epochs.push(names);
        }
        assert_ne!(epochs[0], epochs[1]);
        let other_seed = samples.batches(4, order(8)).unwrap().next_batch();
        assert_ne!(other_seed, samples.batches(4, order(7)).unwrap().next_batch());
    }

    #[test]
    fn rows_of_similar_length_come_together() {
        let samples = fifty();
        let mut batches = samples.batches(4, order(7)).unwrap();
        let (mut places, mut padding) = (0, 0);
        for _ in 0..12 {
            let batch = batches.next_batch();
            places += batch.rows * batch.length;
            // The last prediction of a row is `<|end|>`, and everything after it is padding.
            for row in batch.weights.chunks(batch.length) {
                padding += row.iter().rev().take_while(|weight| **weight == 0.0).count();
            }
        }
        // Lengths are even in 1–23; sorted batches of 4 differ by about 2 inside, unsorted ones by about 13.
        assert!(padding * 10 < places, "{padding} of {places}");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_cut() {
        let tokenizer = tokenizer();
        // 49 letters and `<|command|>`, then 2 letters and `<|end|>`: 53 tokens, of which the first is not predicted.
        let refused = |examples, length| Samples::new(&examples, &tokenizer, length).unwrap_err().to_string();
        assert_eq!(
            refused(Examples::Pairs(vec![pair("a", "b"), pair("turn on the lamp in the study and open the blinds", "on")]), 40),
            "tokenizer: example 2 predicts 52 tokens and sequence_length is 40; raise it to 52 or shorten the example \"turn on \
             the lamp in the study and open t…\""
        );
        assert_eq!(
            refused(Examples::Text("abc".into()), 3),
            "tokenizer: the text has 3 tokens and one window needs 4; lower sequence_length or give more text"
        );
        assert_eq!(
            refused(Examples::Text("abc".into()), 0),
            "tokenizer: sequence_length is 0; a row predicts at least one token"
        );
        assert_eq!(
            fifty().batches(51, order(1)).unwrap_err().to_string(),
            "tokenizer: a batch takes 51 rows and the split has 50; it takes at least 1 and at most all"
        );
    }
}
