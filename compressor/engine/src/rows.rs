//! The same work on every row of a matrix.

use rayon::prelude::*;

/// Below this many values, sharing the work out costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// Calls `work` with the index and the values of each row of `[rows, width]`.
pub(crate) fn for_each_row(values: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() < WORTH_SHARING {
        values.chunks_exact_mut(width).enumerate().for_each(|(row, values)| work(row, values));
    } else {
        values.par_chunks_exact_mut(width).enumerate().for_each(|(row, values)| work(row, values));
    }
}
