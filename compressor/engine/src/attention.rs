//! Causal attention of some queries over the keys and values of their sequences.

use alloc::vec;
use alloc::vec::Vec;

use crate::cache::LayerCache;
use crate::kernels::Kernels;
use crate::kernels::attention::Attend;
use crate::kernels::view::ViewMut;
use crate::pool::Pool;

/// The queries of one sequence among those of a pass.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    /// Its first row among the queries.
    pub(crate) first: usize,
    /// Its rows.
    pub(crate) tokens: usize,
    /// Tokens before the first of them.
    pub(crate) past: usize,
    /// Keys and values of the sequence, those of these tokens included.
    pub(crate) cache: &'a LayerCache,
}

impl Span<'_> {
    /// Bytes of the keys and values that these tokens see.
    pub(crate) fn bytes_read(&self) -> usize {
        self.cache.bytes_of(self.past + self.tokens)
    }
}

/// Tokens of one task: few enough for their scores to stay near, and to share out what is unequal because later tokens see more.
const TOKENS_PER_TASK: usize = 16;

/// Below this many multiplications, sharing the work out costs more than it saves.
const WORTH_SHARING: usize = 1 << 14;

/// `softmax(q kᵀ / √head_dim) v` for each query head over the keys at its own position and before.
///
/// - `queries` and `out`: `[tokens, heads · head_dim]`, the spans one after the other
/// - query head `h` reads key/value head `h / (heads / kv_heads)` (Ainslie et al. 2023, arXiv:2305.13245)
pub(crate) fn attend(
    (kernels, pool): (Kernels, &Pool),
    queries: &[f32],
    heads: usize,
    head_dim: usize,
    spans: &[Span<'_>],
    out: &mut Vec<f32>,
) {
    let width = heads * head_dim;
    out.resize(queries.len(), 0.0);
    let mut tasks = Vec::new();
    let mut rows = ViewMut::new(out, width);
    for span in spans {
        let (own, rest) = rows.split_at_row(span.tokens);
        rows = rest;
        let per_kv_head = heads / span.cache.kv_heads * head_dim;
        for (column, stripe) in own.split_columns(per_kv_head) {
            let parts = stripe.split_rows(TOKENS_PER_TASK);
            tasks.extend(parts.map(|(start, out)| Task { span, kv_head: column / per_kv_head, start, out }));
        }
    }
    let work: usize = spans.iter().map(|span| span.tokens * (span.past + span.tokens) * width).sum();
    let run = |task: Task<'_>| task.attend(kernels, queries, width);
    match work < WORTH_SHARING {
        true => tasks.into_iter().for_each(run),
        // The last tokens see most: they come first, so that no thread begins with them when the others are done.
        false => pool.for_each(tasks.into_iter().rev().collect(), &run),
    }
}

/// Some queries that follow each other, of the heads that share a key/value head.
struct Task<'a> {
    span: &'a Span<'a>,
    kv_head: usize,
    /// First query, counted in the span.
    start: usize,
    /// `[queries, heads that share · head_dim]`
    out: ViewMut<'a>,
}

impl Task<'_> {
    fn attend(mut self, kernels: Kernels, queries: &[f32], width: usize) {
        let Self { span, kv_head, start, .. } = self;
        let head = span.cache.head(kv_head);
        let (head_dim, shared) = (head.head_dim, self.out.columns());
        let heads = shared / head_dim;
        let factor = 1.0 / libm::sqrtf(head_dim as f32);
        let mut scaled = vec![0.0; self.out.rows() * shared];
        let mut seen = Vec::with_capacity(self.out.rows() * heads);
        for (row, scaled) in scaled.chunks_exact_mut(shared).enumerate() {
            let query = &queries[(span.first + start + row) * width + kv_head * shared..][..shared];
            scaled.iter_mut().zip(query).for_each(|(scaled, query)| *scaled = query * factor);
            seen.extend(core::iter::repeat_n(span.past + start + row + 1, heads));
        }
        let out = &mut self.out;
        let mut write = |row: usize, x: &[f32]| out.row(row / heads)[row % heads * head_dim..][..head_dim].copy_from_slice(x);
        kernels.run(Attend { head, queries: &scaled, seen: &seen, write: &mut write });
    }
}
