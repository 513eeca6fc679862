//! Rotary position embedding, halves rotated (Su et al. 2021, in the order Hugging Face stores).

use std::sync::Arc;

use rayon::prelude::*;

use super::{Matrix, Operation, OwnedMatrix};
use crate::batch::Sequences;

/// Cosine and sine of every position's angles, `[positions, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub(crate) struct RotaryTable {
    pub(crate) cosines: Vec<f32>,
    pub(crate) sines: Vec<f32>,
    pub(crate) half: usize,
}

/// Rotates each head of each row by the angles of its position: input `[N, heads · head_dim]`.
///
/// With `x = [x₁, x₂]` in halves: `[x₁·cos − x₂·sin, x₂·cos + x₁·sin]`. Backward is the rotation by the opposite angles.
#[derive(Clone, Debug)]
pub(crate) struct Rotate {
    pub(crate) table: Arc<RotaryTable>,
    pub(crate) sequences: Arc<Sequences>,
}

impl Rotate {
    fn rotated(&self, x: Matrix<'_>, sign: f32) -> Vec<f32> {
        let half = self.table.half;
        let positions: Vec<u32> = self.sequences.positions().collect();
        let mut out = vec![0.0; x.values.len()];
        let rows = out.par_chunks_mut(x.columns).zip(x.values.par_chunks(x.columns)).zip(positions).with_min_len(32);
        rows.for_each(|((out, x), position)| {
            let first = position as usize * half;
            let (cosines, sines) = (&self.table.cosines[first..first + half], &self.table.sines[first..first + half]);
            for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                let ((out_1, out_2), (x_1, x_2)) = (out.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    out_1[i] = x_1[i] * cosines[i] - x_2[i] * sines[i] * sign;
                    out_2[i] = x_2[i] * cosines[i] + x_1[i] * sines[i] * sign;
                }
            }
        });
        out
    }
}

impl Operation<1> for Rotate {
    fn forward(&self, [x]: [Matrix<'_>; 1]) -> (OwnedMatrix, Vec<f32>) {
        (OwnedMatrix { values: self.rotated(x, 1.0), rows: x.rows, columns: x.columns }, Vec::new())
    }

    fn backward(&self, _: [Matrix<'_>; 1], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 1] {
        [self.rotated(gradient, -1.0)]
    }
}
