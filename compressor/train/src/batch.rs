//! Batches of token sequences, and how they lie in the flattened activations.

use std::sync::Arc;

use compressor_format::{Architecture, Batch, Positions};

use crate::Error;

/// Refuses a batch that contradicts itself or the model.
pub(crate) fn check(batch: &Batch, index: u64, architecture: &Architecture, vocab_size: usize) -> Result<(), Error> {
    let Batch { tokens, targets, weights, rows, length } = batch;
    let refused = |what: String| Err(Error::Batch { index, what });
    let elements = rows * length;
    for (name, found) in [("tokens", tokens.len()), ("targets", targets.len()), ("weights", weights.len())] {
        if found != elements {
            return refused(format!("has {found} {name}, and {rows} rows of {length} ask for {elements}"));
        }
    }
    let longest = architecture.max_position_embeddings;
    if *length > longest && architecture.positions == Positions::Learned {
        return refused(format!("has rows of {length} tokens, the model has {longest} learned positions"));
    }
    for (name, ids) in [("token", tokens), ("target", targets)] {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return refused(format!("{name} {id} is outside the vocabulary of {vocab_size}"));
        }
    }
    match weights.iter().find(|weight| **weight != 0.0 && **weight != 1.0) {
        Some(weight) => refused(format!("holds the weight {weight}; a loss mask is 0 or 1")),
        None => Ok(()),
    }
}

/// A batch as the model computes it: sequences one after another in flattened activations `[N, hidden_size]`.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// Where each sequence lies.
    pub(crate) sequences: Arc<Sequences>,
    /// The token of each activation row, `[N]`.
    pub(crate) tokens: Arc<[u32]>,
    /// The activation rows whose prediction counts, ascending, `[M]`.
    pub(crate) scored: Arc<[u32]>,
    /// What each of them should predict, `[M]`.
    pub(crate) targets: Arc<[u32]>,
}

/// Where sequences lie in flattened activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequences {
    /// First row of each sequence, and after the last the number of rows.
    starts: Vec<usize>,
}

impl Packed {
    /// Leaves out what can't change the loss: under causal attention, everything after the last position that counts.
    pub(crate) fn trimmed(batch: &Batch) -> Self {
        Self::new(batch, |mask| mask.iter().rposition(|weight| *weight != 0.0).map_or(0, |last| last + 1))
    }

    /// Keeps every sequence whole, for devices that want them in one rectangle.
    pub(crate) fn rectangular(batch: &Batch) -> Self {
        Self::new(batch, <[f32]>::len)
    }

    fn new(batch: &Batch, used: impl Fn(&[f32]) -> usize) -> Self {
        let (mut tokens, mut scored, mut targets, mut starts) = (Vec::new(), Vec::new(), Vec::new(), vec![0]);
        for row in 0..batch.rows {
            let first = row * batch.length;
            let mask = &batch.weights[first..first + batch.length];
            let used = used(mask);
            if used == 0 {
                continue;
            }
            for (position, weight) in mask[..used].iter().enumerate() {
                if *weight != 0.0 {
                    scored.push(tokens.len() as u32);
                    targets.push(batch.targets[first + position]);
                }
                tokens.push(batch.tokens[first + position]);
            }
            starts.push(tokens.len());
        }
        Self { sequences: Arc::new(Sequences { starts }), tokens: tokens.into(), scored: scored.into(), targets: targets.into() }
    }
}

impl Sequences {
    /// Sequences of one length.
    #[cfg(test)]
    pub(crate) fn rectangle(rows: usize, length: usize) -> Self {
        Self { starts: (0..=rows).map(|row| row * length).collect() }
    }

    /// Sequences that begin at these rows, the last being where they all end.
    #[cfg(test)]
    pub(crate) fn from_starts(starts: &[usize]) -> Self {
        Self { starts: starts.to_vec() }
    }

    /// Length of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }

    /// First row and length of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        self.starts.windows(2).map(|pair| (pair[0], pair[1] - pair[0]))
    }

    /// The length of each.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.iter().map(|(_, length)| length)
    }

    /// The position within its sequence of each row.
    pub(crate) fn positions(&self) -> impl Iterator<Item = u32> {
        self.lengths().flat_map(|length| 0..length as u32)
    }

    /// Number and length of the sequences, where all have the same.
    pub(crate) fn as_rectangle(&self) -> Option<(usize, usize)> {
        let longest = self.longest();
        self.lengths().all(|length| length == longest).then_some((self.starts.len() - 1, longest))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn batch() -> Batch {
        Batch {
            tokens: vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            targets: vec![2, 3, 4, 0, 6, 7, 8, 0, 10, 11, 12, 0],
            weights: vec![0., 1., 1., 0., 0., 0., 0., 0., 0., 0., 0., 1.],
            rows: 3,
            length: 4,
        }
    }

    #[test]
    fn trimming_drops_tails_and_empty_rows() {
        let packed = Packed::trimmed(&batch());
        assert_eq!(packed.tokens[..], [1, 2, 3, 9, 10, 11, 12]);
        assert_eq!(packed.scored[..], [1, 2, 6]);
        assert_eq!(packed.targets[..], [3, 4, 0]);
        assert_eq!(packed.sequences.iter().collect::<Vec<_>>(), [(0, 3), (3, 4)]);
        assert_eq!(packed.sequences.positions().collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 3]);
        assert_eq!(packed.sequences.as_rectangle(), None);
    }

    #[test]
    fn a_rectangle_keeps_every_token() {
        let packed = Packed::rectangular(&batch());
        assert_eq!(packed.tokens[..], batch().tokens);
        assert_eq!(packed.scored[..], [1, 2, 11]);
        assert_eq!(packed.sequences.as_rectangle(), Some((3, 4)));
        assert_eq!(*packed.sequences, Sequences::rectangle(3, 4));
    }
}
