//! Attention of some query rows over the keys and values of one head, sixteen positions at a time.

use alloc::vec;
use alloc::vec::Vec;

use super::vector::softmax;
use super::{Kernel, LANES, Simd};
use crate::cache::{Head, HeadBlocks};

/// `softmax(q kᵀ / √head_dim) v` for some query rows that share a key/value head, each over the positions it may see
/// (Vaswani et al. 2017, arXiv:1706.03762).
///
/// Each row's sums run over positions in their order, so its result does not depend on the rows beside it.
pub(crate) struct Attend<'a> {
    pub(crate) head: Head<'a>,
    /// `[rows, head_dim]`, already divided by `√head_dim`.
    pub(crate) queries: &'a [f32],
    /// Positions that each row sees, never falling.
    pub(crate) seen: &'a [usize],
    /// Called with each row and its `head_dim` results.
    pub(crate) write: &'a mut dyn FnMut(usize, &[f32]),
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { head, queries, seen, write } = self;
        let (head_dim, width) = (head.head_dim, head.value_width);
        let rows = seen.len();
        if rows == 0 {
            return;
        }
        let blocks = seen.last().map_or(0, |most| most.div_ceil(LANES));
        let positions = blocks * LANES;
        let mut scores = vec![0.0; rows * positions];
        let mut scratch = vec![0.0; LANES * width.max(head_dim)];
        for block in 0..blocks {
            // The first row that sees the block: later ones see no less.
            let first = seen.partition_point(|seen| *seen <= block * LANES);
            let keys = widened(simd, &head.keys, block, LANES * head_dim, &mut scratch, Along::Lanes);
            let rest = queries[first * head_dim..].chunks(S::ROWS * head_dim);
            for (queries, scores) in rest.zip(scores[first * positions..].chunks_mut(S::ROWS * positions)) {
                let at = block * LANES;
                match queries.len() / head_dim {
                    1 => score::<S, 1>(simd, keys, queries, scores, at),
                    2 => score::<S, 2>(simd, keys, queries, scores, at),
                    3 => score::<S, 3>(simd, keys, queries, scores, at),
                    4 => score::<S, 4>(simd, keys, queries, scores, at),
                    5 => score::<S, 5>(simd, keys, queries, scores, at),
                    _ => score::<S, 6>(simd, keys, queries, scores, at),
                }
            }
        }
        let mut factors = Vec::with_capacity(rows);
        for (scores, seen) in scores.chunks_exact_mut(positions).zip(seen) {
            factors.push(softmax(simd, scores, *seen));
        }
        let mut sums = vec![0.0; rows * width];
        for block in 0..blocks {
            let at = block * LANES;
            let values = widened(simd, &head.values, block, LANES * width, &mut scratch, Along::Rows);
            // Rows that see a part of the block come before those that see all of it. What a row does not see is left out, not
            // weighed with zero: it may not be a number.
            let mut row = seen.partition_point(|seen| *seen <= at);
            while row < rows {
                let positions_seen = LANES.min(seen[row] - at);
                let alike = |seen: &usize| LANES.min(*seen - at) == positions_seen;
                let together = seen[row..].iter().take(S::ROWS).take_while(|seen| alike(seen)).count();
                let scores = &scores[row * positions..(row + together) * positions];
                let sums = &mut sums[row * width..(row + together) * width];
                match together {
                    1 => weigh::<S, 1>(simd, values, scores, sums, at, positions_seen),
                    2 => weigh::<S, 2>(simd, values, scores, sums, at, positions_seen),
                    3 => weigh::<S, 3>(simd, values, scores, sums, at, positions_seen),
                    4 => weigh::<S, 4>(simd, values, scores, sums, at, positions_seen),
                    5 => weigh::<S, 5>(simd, values, scores, sums, at, positions_seen),
                    _ => weigh::<S, 6>(simd, values, scores, sums, at, positions_seen),
                }
                row += together;
            }
        }
        for (row, (sums, factor)) in sums.chunks_exact_mut(width).zip(factors).enumerate() {
            sums.iter_mut().for_each(|sum| *sum *= factor);
            write(row, &sums[..head_dim]);
        }
    }
}

/// Scores of `R` queries with sixteen keys. `keys` is `[head_dim, LANES]`, `scores` `[R, positions]` of which `at` is the first.
#[inline(always)]
fn score<S: Simd, const R: usize>(simd: S, keys: &[f32], queries: &[f32], scores: &mut [f32], at: usize) {
    let head_dim = queries.len() / R;
    let positions = scores.len() / R;
    let mut rows: [&[f32]; R] = [&[]; R];
    for (row, query) in rows.iter_mut().zip(queries.chunks_exact(head_dim)) {
        *row = query;
    }
    let keys = &keys.as_chunks::<LANES>().0[..head_dim];
    let mut sums = [simd.splat(0.0); R];
    for dim in 0..head_dim {
        let key = simd.load(&keys[dim]);
        for row in 0..R {
            sums[row] = simd.mul_add(simd.splat(rows[row][dim]), key, sums[row]);
        }
    }
    for (sum, scores) in sums.iter().zip(scores.chunks_exact_mut(positions)) {
        if let Some(out) = scores[at..].first_chunk_mut() {
            simd.store(*sum, out);
        }
    }
}

/// Adds the first `seen` of sixteen values to each of `R` rows, weighed with their scores. `values` is `[LANES, width]`, `sums` `[R, width]`.
#[inline(always)]
fn weigh<S: Simd, const R: usize>(simd: S, values: &[f32], scores: &[f32], sums: &mut [f32], at: usize, seen: usize) {
    let width = values.len() / LANES;
    let values = &values[..seen * width];
    let positions = scores.len() / R;
    let mut weights = [[0.0; LANES]; R];
    for (weights, scores) in weights.iter_mut().zip(scores.chunks_exact(positions)) {
        if let Some(scores) = scores[at..].first_chunk() {
            *weights = *scores;
        }
    }
    let mut dim = 0;
    while dim < width {
        if S::WIDE && width - dim >= 4 * LANES {
            weigh_dims::<S, R, 4>(simd, values, &weights, sums, dim, width);
            dim += 4 * LANES;
        } else {
            weigh_dims::<S, R, 1>(simd, values, &weights, sums, dim, width);
            dim += LANES;
        }
    }
}

#[inline(always)]
fn weigh_dims<S: Simd, const R: usize, const D: usize>(
    simd: S,
    values: &[f32],
    weights: &[[f32; LANES]; R],
    sums: &mut [f32],
    dim: usize,
    width: usize,
) {
    let mut totals = [[simd.splat(0.0); D]; R];
    for (totals, sums) in totals.iter_mut().zip(sums.chunks_exact(width)) {
        for (total, sums) in totals.iter_mut().zip(sums[dim..].as_chunks::<LANES>().0) {
            *total = simd.load(sums);
        }
    }
    for (position, values) in values.chunks_exact(width).enumerate() {
        let values: &[[f32; LANES]] = &values[dim..].as_chunks::<LANES>().0[..D];
        let mut loaded = [simd.splat(0.0); D];
        for at in 0..D {
            loaded[at] = simd.load(&values[at]);
        }
        for row in 0..R {
            let weight = simd.splat(weights[row][position]);
            for at in 0..D {
                totals[row][at] = simd.mul_add(weight, loaded[at], totals[row][at]);
            }
        }
    }
    for (totals, sums) in totals.iter().zip(sums.chunks_exact_mut(width)) {
        for (total, sums) in totals.iter().zip(sums[dim..].as_chunks_mut::<LANES>().0) {
            simd.store(*total, sums);
        }
    }
}

/// Where the sixteen positions of a block lie, each with a scale of its own.
#[derive(Clone, Copy)]
enum Along {
    /// Keys: in the lanes.
    Lanes,
    /// Values: one after the other.
    Rows,
}

/// One block as f32: where it lies, or widened into `scratch`.
#[inline(always)]
fn widened<'a, S: Simd>(
    simd: S,
    stored: &HeadBlocks<'a>,
    block: usize,
    len: usize,
    scratch: &'a mut [f32],
    along: Along,
) -> &'a [f32] {
    let range = block * len..(block + 1) * len;
    let out = scratch[..len].as_chunks_mut::<LANES>().0;
    match *stored {
        HeadBlocks::F32(values) => return &values[range],
        HeadBlocks::F16(values) => {
            for (values, out) in values[range].as_chunks().0.iter().zip(&mut *out) {
                simd.store(simd.load_f16(values), out);
            }
        }
        HeadBlocks::Int8(integers, scales) => {
            let scales: &[f32; LANES] = &scales.as_chunks().0[block];
            let per_position = len / LANES / LANES;
            for (at, (integers, out)) in integers[range].as_chunks().0.iter().zip(&mut *out).enumerate() {
                let scale = match along {
                    Along::Lanes => simd.load(scales),
                    Along::Rows => simd.splat(scales[at / per_position]),
                };
                simd.store(simd.mul(simd.load_i8(integers), scale), out);
            }
        }
    }
    &scratch[..len]
}
