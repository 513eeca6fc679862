//! Causal attention with grouped queries, on flattened sequences of any lengths.

use std::sync::Arc;

use rayon::prelude::*;

use super::gemm::{Threads, View, multiply};
use super::simd::{dot, exp, largest, sum_over, vectorized};
use super::{Matrix, Operation, OwnedMatrix};
use crate::batch::Sequences;

/// `softmax(q·kᵀ / √head_dim)·v` within each sequence and head, each position seeing itself and those before it.
///
/// Inputs: `q` `[N, heads · head_dim]`, `k` and `v` `[N, kv_heads · head_dim]`; query head `h` reads key/value head
/// `h · kv_heads / heads`. The probabilities are not kept: backward makes them again from q, k and the saved log-sums (Dao et al. 2022).
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) sequences: Arc<Sequences>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Some query rows of one head in one sequence.
#[derive(Clone, Copy)]
struct Block {
    /// First row of the sequence.
    start: usize,
    /// First query, counted from there.
    first: usize,
    /// Queries.
    rows: usize,
    /// The query head.
    head: usize,
}

/// Query rows whose scores are computed together: 64 rows of 4096 keys are 1 MiB, the second-level cache.
const BLOCK: usize = 64;

vectorized! {
    /// Scores to probabilities in place; gives the log of their sum before.
    fn softmax(scores: &mut [f32]) -> f32 {
        let shift = largest(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - shift);
        }
        let sum = sum_over([&*scores], |[score]| score);
        let factor = 1.0 / sum;
        for score in scores.iter_mut() {
            *score *= factor;
        }
        shift + sum.ln()
    }
}

vectorized! {
    /// Scores to probabilities in place, given the log of their sum.
    fn probabilities(scores: &mut [f32], log_sum: f32) {
        for score in scores.iter_mut() {
            *score = exp(*score - log_sum);
        }
    }
}

vectorized! {
    /// Gradient of the probabilities to gradient of the scores, in place: p · (g − Σ p·g).
    fn softmax_backward(gradient: &mut [f32], probabilities: &[f32], along: f32) {
        for (gradient, probability) in gradient.iter_mut().zip(probabilities) {
            *gradient = probability * (*gradient - along);
        }
    }
}

impl Attention {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// First column of a query head, and of the key/value head that serves it.
    fn columns(&self, head: usize) -> (usize, usize) {
        (head * self.head_dim, head / (self.heads / self.kv_heads) * self.head_dim)
    }

    /// `out ← scale · q·kᵀ` for a block of queries and all keys up to the last of them, `[rows, first + rows]`.
    fn scores(&self, out: &mut [f32], q: Matrix<'_>, k: Matrix<'_>, Block { start, first, rows, head }: Block) {
        let (q_column, k_column) = self.columns(head);
        let keys = first + rows;
        let queries = q.part(start + first, rows);
        let keys_of_sequence = k.part(start, keys);
        let a = View::columns(queries.values, rows, q.columns, q_column, self.head_dim);
        let b = View::columns(keys_of_sequence.values, keys, k.columns, k_column, self.head_dim);
        multiply(out, keys, a, b.transposed(), self.scale(), false, Threads::One);
    }
}

/// Zeroes the scores of keys after each query: row `r` of a block keeps `first + r + 1`.
fn cut_future(scores: &mut [f32], first: usize, keys: usize) {
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        scores[first + row + 1..].fill(0.0);
    }
}

impl Operation<3> for Attention {
    fn forward(&self, [q, k, v]: [Matrix<'_>; 3]) -> (OwnedMatrix, Vec<f32>) {
        let mut out = OwnedMatrix::zeros(q.rows, q.columns);
        let mut log_sums = vec![0.0; q.rows * self.heads];
        // One task for each block of query rows: their rows of `out` lie together.
        let mut tasks = Vec::new();
        let (mut rest_out, mut rest_sums) = (out.values.as_mut_slice(), log_sums.as_mut_slice());
        for (start, length) in self.sequences.iter() {
            for first in (0..length).step_by(BLOCK) {
                let rows = BLOCK.min(length - first);
                let (out, after_out) = rest_out.split_at_mut(rows * q.columns);
                let (sums, after_sums) = rest_sums.split_at_mut(rows * self.heads);
                (rest_out, rest_sums) = (after_out, after_sums);
                tasks.push((start, first, rows, out, sums));
            }
        }
        tasks.into_par_iter().for_each(|(start, first, rows, out, sums)| {
            let keys = first + rows;
            let mut scores = vec![0.0; rows * keys];
            for head in 0..self.heads {
                self.scores(&mut scores, q, k, Block { start, first, rows, head });
                for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                    sums[row * self.heads + head] = softmax(&mut scores[..first + row + 1]);
                }
                cut_future(&mut scores, first, keys);
                let (q_column, v_column) = self.columns(head);
                let values = v.part(start, keys);
                let b = View::columns(values.values, keys, v.columns, v_column, self.head_dim);
                let a = Matrix { values: &scores, rows, columns: keys };
                multiply(&mut out[q_column..], q.columns, a.into(), b, 1.0, false, Threads::One);
            }
        });
        (out, log_sums)
    }

    fn backward(&self, [q, k, v]: [Matrix<'_>; 3], log_sums: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 3] {
        let mut of_q = vec![0.0; q.values.len()];
        let mut of_k = vec![0.0; k.values.len()];
        let mut of_v = vec![0.0; v.values.len()];
        // One task for each sequence: every query of it adds to its keys and values.
        let mut tasks = Vec::new();
        let (mut rest_q, mut rest_k, mut rest_v) = (of_q.as_mut_slice(), of_k.as_mut_slice(), of_v.as_mut_slice());
        for (start, length) in self.sequences.iter() {
            let (of_q, after_q) = rest_q.split_at_mut(length * q.columns);
            let (of_k, after_k) = rest_k.split_at_mut(length * k.columns);
            let (of_v, after_v) = rest_v.split_at_mut(length * v.columns);
            (rest_q, rest_k, rest_v) = (after_q, after_k, after_v);
            tasks.push((start, length, of_q, of_k, of_v));
        }
        tasks.into_par_iter().for_each(|(start, length, of_q, of_k, of_v)| {
            let mut probability = vec![0.0; BLOCK.min(length) * length];
            let mut of_score = probability.clone();
            for head in 0..self.heads {
                for first in (0..length).step_by(BLOCK) {
                    let rows = BLOCK.min(length - first);
                    let keys = first + rows;
                    let probability = &mut probability[..rows * keys];
                    let of_score = &mut of_score[..rows * keys];
                    self.backward_block(
                        Block { start, first, rows, head },
                        [q, k, v],
                        log_sums,
                        gradient,
                        [probability, of_score],
                        [of_q, of_k, of_v],
                    );
                }
            }
        });
        [of_q, of_k, of_v]
    }
}

impl Attention {
    /// Adds what one block of queries contributes; `of_q`, `of_k` and `of_v` are the sequence's rows.
    fn backward_block(
        &self,
        block: Block,
        [q, k, v]: [Matrix<'_>; 3],
        log_sums: &[f32],
        gradient: Matrix<'_>,
        [probability, of_score]: [&mut [f32]; 2],
        [of_q, of_k, of_v]: [&mut [f32]; 3],
    ) {
        let Block { start, first, rows, head } = block;
        let keys = first + rows;
        let (q_column, k_column) = self.columns(head);
        let (width, kv_width, dim) = (q.columns, k.columns, self.head_dim);
        let queries = View::columns(q.part(start + first, rows).values, rows, width, q_column, dim);
        let of_out = View::columns(gradient.part(start + first, rows).values, rows, width, q_column, dim);
        let key = View::columns(k.part(start, keys).values, keys, kv_width, k_column, dim);
        let value = View::columns(v.part(start, keys).values, keys, kv_width, k_column, dim);

        self.scores(probability, q, k, block);
        for (row, scores) in probability.chunks_exact_mut(keys).enumerate() {
            probabilities(&mut scores[..first + row + 1], log_sums[(start + first + row) * self.heads + head]);
        }
        cut_future(probability, first, keys);
        multiply(of_score, keys, of_out, value.transposed(), 1.0, false, Threads::One);
        for (of_score, probability) in of_score.chunks_exact_mut(keys).zip(probability.chunks_exact(keys)) {
            // Keys after the query have probability 0, and so gradient 0.
            let along = dot(of_score, probability);
            softmax_backward(of_score, probability, along);
        }
        let probability = View::from(Matrix { values: probability, rows, columns: keys });
        let of_score = View::from(Matrix { values: of_score, rows, columns: keys });
        multiply(&mut of_q[first * width + q_column..], width, of_score, key, self.scale(), false, Threads::One);
        multiply(&mut of_k[k_column..], kv_width, of_score.transposed(), queries, self.scale(), true, Threads::One);
        multiply(&mut of_v[k_column..], kv_width, probability.transposed(), of_out, 1.0, true, Threads::One);
    }
}
