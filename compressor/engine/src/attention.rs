//! Causal attention of some queries over the keys and values of their sequences (Vaswani et al. 2017, arXiv:1706.03762).

use rayon::prelude::*;

use crate::cache::LayerCache;
use crate::kernels::Kernels;
use crate::kernels::matmul::{View, ViewMut, multiply};

/// The queries of one sequence among those of a batch.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    /// Its first row among the queries.
    pub(crate) first: usize,
    /// Its rows; the cache holds their keys too, as its last.
    pub(crate) tokens: usize,
    /// Keys and values of the sequence.
    pub(crate) cache: &'a LayerCache,
}

/// Queries and the keys they meet are taken in blocks of this many queries: large enough for a matrix product to be fast, small
/// enough to skip most keys that come after a query.
const QUERIES_PER_BLOCK: usize = 64;

/// Below this many multiplications, sharing the work out costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// `softmax(q kᵀ / √head_dim) v` for each query head over the keys at its own position and before.
///
/// - `queries`: `[tokens, heads · head_dim]`, the spans one after the other; the result has the same shape
/// - query head `h` reads key/value head `h / (heads / kv_heads)` (Ainslie et al. 2023, arXiv:2305.13245)
pub(crate) fn attend(kernels: Kernels, queries: &[f32], heads: usize, head_dim: usize, spans: &[Span<'_>]) -> Vec<f32> {
    let blocks = |span: &Span<'_>| (0..span.tokens).step_by(QUERIES_PER_BLOCK);
    let tasks: Vec<Block<'_>> = spans
        .iter()
        .flat_map(|span| {
            (0..heads).flat_map(move |head| blocks(span).map(move |start| Block { span, head, start, heads, head_dim }))
        })
        .collect();
    let work: usize = spans.iter().map(|span| span.tokens * span.cache.keys.len() / span.cache.width * heads * head_dim).sum();
    let attended: Vec<Vec<f32>> = match work < WORTH_SHARING {
        true => tasks.iter().map(|task| task.attend(kernels, queries)).collect(),
        false => tasks.par_iter().map(|task| task.attend(kernels, queries)).collect(),
    };
    let mut out = vec![0.0; queries.len()];
    for (task, block) in tasks.iter().zip(attended) {
        for (row, values) in block.chunks_exact(head_dim).enumerate() {
            let at = ((task.span.first + task.start + row) * heads + task.head) * head_dim;
            out[at..at + head_dim].copy_from_slice(values);
        }
    }
    out
}

/// Some queries of one head that follow each other.
#[derive(Clone, Copy)]
struct Block<'a> {
    span: &'a Span<'a>,
    head: usize,
    /// First query, counted in the span.
    start: usize,
    heads: usize,
    head_dim: usize,
}

impl Block<'_> {
    /// `[queries, head_dim]`.
    fn attend(&self, kernels: Kernels, queries: &[f32]) -> Vec<f32> {
        let Self { span, head, start, heads, head_dim } = *self;
        let width = span.cache.width;
        let count = QUERIES_PER_BLOCK.min(span.tokens - start);
        let before = span.cache.keys.len() / width - span.tokens + start;
        let positions = before + count;
        let kv_head = head / (heads * head_dim / width);
        let (keys, values) = (&span.cache.keys[kv_head * head_dim..], &span.cache.values[kv_head * head_dim..]);
        let queries = &queries[((span.first + start) * heads + head) * head_dim..];
        let factor = 1.0 / (head_dim as f32).sqrt();
        let mut scores = vec![0.0; count * positions];
        let mut out = vec![0.0; count * head_dim];
        if count == 1 {
            for (score, key) in scores.iter_mut().zip(keys.chunks(width)) {
                *score = factor * kernels.dot_f32(&queries[..head_dim], &key[..head_dim]);
            }
            kernels.softmax(&mut scores);
            for (score, value) in scores.iter().zip(values.chunks(width)) {
                kernels.add_scaled(&mut out, *score, &value[..head_dim]);
            }
            return out;
        }
        let queries = View::new(queries, count, head_dim, heads * head_dim);
        let keys = View::new(keys, positions, head_dim, width);
        multiply(&mut ViewMut::new(&mut scores, positions), factor, queries, keys.transposed());
        for (row, scores) in scores.chunks_exact_mut(positions).enumerate() {
            let (seen, unseen) = scores.split_at_mut(before + row + 1);
            kernels.softmax(seen);
            unseen.fill(0.0);
        }
        let values = View::new(values, positions, head_dim, width);
        multiply(&mut ViewMut::new(&mut out, head_dim), 1.0, View::new(&scores, count, positions, positions), values);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_average_the_values_up_to_the_query() {
        let cache = LayerCache { width: 2, keys: vec![0.0; 6], values: vec![3.0, 0.0, 5.0, 6.0, 1.0, 0.0] };
        let span = Span { first: 0, tokens: 2, cache: &cache };
        // Two query heads on one key/value head; the queries stand at positions 1 and 2.
        let out = attend(Kernels::Scalar, &[1.0; 8], 2, 2, &[span]);
        let expected = [4.0, 3.0, 4.0, 3.0, 3.0, 2.0, 3.0, 2.0];
        for (found, expected) in out.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{out:?}");
        }
    }

    #[test]
    fn blocks_agree_with_one_query_at_a_time() {
        let (tokens, heads, kv_heads, head_dim) = (QUERIES_PER_BLOCK + 7, 4, 2, 8);
        let width = kv_heads * head_dim;
        let wave = |len: usize, step: f32| (0..len).map(|index| (index as f32 * step).sin()).collect::<Vec<f32>>();
        let queries = wave(tokens * heads * head_dim, 0.7);
        let (keys, values) = (wave(tokens * width, 1.3), wave(tokens * width, 2.1));
        let cache = LayerCache { width, keys: keys.clone(), values: values.clone() };
        let whole = attend(Kernels::best(), &queries, heads, head_dim, &[Span { first: 0, tokens, cache: &cache }]);
        for token in 0..tokens {
            let end = (token + 1) * width;
            let cache = LayerCache { width, keys: keys[..end].to_vec(), values: values[..end].to_vec() };
            let row = token * heads * head_dim..(token + 1) * heads * head_dim;
            let one =
                attend(Kernels::Scalar, &queries[row.clone()], heads, head_dim, &[Span { first: 0, tokens: 1, cache: &cache }]);
            for (found, expected) in whole[row].iter().zip(one) {
                assert!((found - expected).abs() < 1e-5, "token {token}: {found} {expected}");
            }
        }
    }
}
