//! GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1): columns are rounded one after the other, and what each rounding adds to
//! the layer's output on calibration text is taken back by the columns that are still open.
//!
//! - Columns with the largest inputs go first (`activation_order`, the authors' later `--act-order`), with the scales of all groups found
//!   beforehand on the weights as they were (their `--static-groups`): so the integers stay in the order of the columns, and every
//!   reader of the format opens them. In the order of the columns, a group's scale is found when its first column's turn comes, as in
//!   the paper.
//! - `damping` times the mean of the diagonal is added to it (section 3.3, step 3).
//! - A column whose input is always zero has no say: its weights are rounded to nearest.

use std::ops::Range;

use compressor_format::Scheme;
use rayon::prelude::*;

use super::cholesky::inverse_factor;
use super::product::{Strided, product};
use super::round_to_nearest::{Grid, round_to};

/// `Σ x xᵀ` over the inputs of a projection.
pub(super) struct Hessian {
    columns: usize,
    /// `[columns, columns]`, of which the lower triangle is kept, in whole stripes.
    sums: Vec<f32>,
    /// Inputs that were added.
    pub(super) vectors: usize,
}

/// What rounding in order needs to know of the inputs.
pub(super) struct Inputs {
    columns: usize,
    /// The column that is rounded when.
    order: Vec<usize>,
    /// `[columns, columns]` upper factor of the inverse, in that order.
    factor: Vec<f32>,
}

/// Rows that one task sums or multiplies, and columns that are rounded before the others are told.
const STRIPE: usize = 128;

/// Rows of weights that one task rounds.
const ROWS: usize = 32;

/// The Hessian has no inverse, however it was damped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPositiveDefinite;

impl Hessian {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, sums: vec![0.0; columns * columns], vectors: 0 }
    }

    /// Of inputs in parts, each `[vectors, columns]`.
    pub(super) fn of(columns: usize, parts: impl Iterator<Item = impl AsRef<[f32]>>) -> Self {
        let mut hessian = Self::new(columns);
        parts.for_each(|part| hessian.add(part.as_ref()));
        hessian
    }

    /// Adds some inputs, `[vectors, columns]`.
    pub(super) fn add(&mut self, x: &[f32]) {
        let columns = self.columns;
        let vectors = x.len() / columns;
        self.vectors += vectors;
        self.sums.par_chunks_mut(STRIPE * columns).enumerate().for_each(|(stripe, sums)| {
            let first = stripe * STRIPE;
            let rows = sums.len() / columns;
            let left = Strided { values: &x[first.min(x.len())..], row: 1, column: columns };
            let right = Strided { values: x, row: columns, column: 1 };
            product((sums, columns), (rows, first + rows, vectors), left, right, 1.0);
        });
    }

    /// Adds inputs that have nothing to do with each other and are all of one size: `part` of the mean of those that are there.
    pub(super) fn add_even(&mut self, part: f32) {
        let columns = self.columns;
        let mean = (0..columns).map(|column| self.sums[column * columns + column]).sum::<f32>() / columns as f32;
        (0..columns).for_each(|column| self.sums[column * columns + column] += part * mean);
    }

    /// Mean square of each input.
    pub(super) fn mean_squares(&self) -> Vec<f32> {
        let vectors = self.vectors.max(1) as f32;
        (0..self.columns).map(|column| self.sums[column * self.columns + column] / vectors).collect()
    }

    /// `Σ_rows e H eᵀ` over the number of inputs: what errors of the weights, `[rows, columns]`, add to the output's mean square.
    pub(super) fn output_error(&self, errors: &[f32]) -> f64 {
        let columns = self.columns;
        self.output_error_by_rows(errors.len() / columns, |rows| errors[rows.start * columns..rows.end * columns].to_vec())
    }

    /// The same, where `errors` gives those of some rows of `rows` in all.
    pub(super) fn output_error_by_rows(&self, rows: usize, errors: impl Fn(Range<usize>) -> Vec<f32> + Sync) -> f64 {
        let columns = self.columns;
        // Halved diagonal: twice the lower triangle is the whole.
        let mut lower = self.sums.clone();
        for (row, sums) in lower.chunks_exact_mut(columns).enumerate() {
            sums[row] *= 0.5;
            sums[row + 1..].fill(0.0);
        }
        let stripe = |stripe: usize| {
            let errors = errors(stripe * STRIPE..rows.min((stripe + 1) * STRIPE));
            let mut out = vec![0.0; errors.len()];
            // Of a stripe's columns, the rows above it are zero.
            for first in (0..columns).step_by(STRIPE) {
                let left = Strided { values: &errors[first..], row: columns, column: 1 };
                let right = Strided { values: &lower[first * columns + first..], row: columns, column: 1 };
                let size = (errors.len() / columns, STRIPE.min(columns - first), columns - first);
                product((&mut out[first..], columns), size, left, right, 1.0);
            }
            out.iter().zip(&errors).map(|(out, error)| f64::from(*out) * f64::from(*error)).sum()
        };
        let stripes: Vec<f64> = (0..rows.div_ceil(STRIPE)).into_par_iter().map(stripe).collect();
        2.0 * stripes.iter().sum::<f64>() / self.vectors.max(1) as f64
    }

    /// The order of the columns and the factor.
    pub(super) fn inputs(&self, damping: f64, activation_order: bool) -> Result<Inputs, NotPositiveDefinite> {
        let columns = self.columns;
        let diagonal = |column: usize| self.sums[column * columns + column];
        let mut order: Vec<usize> = (0..columns).collect();
        if activation_order {
            order.sort_by(|left, right| diagonal(*right).total_cmp(&diagonal(*left)).then(left.cmp(right)));
        }
        let mean = (0..columns).map(|column| f64::from(diagonal(column))).sum::<f64>() / columns as f64;
        let damped = |row: usize, column: usize| {
            let (high, low) = (order[row].max(order[column]), order[row].min(order[column]));
            let sum = f64::from(self.sums[high * columns + low]);
            let dead = if row == column && sum == 0.0 { 1.0 } else { 0.0 };
            sum + if row == column { damping * mean + dead } else { 0.0 }
        };
        let factor = inverse_factor(damped, columns).ok_or(NotPositiveDefinite)?;
        Ok(Inputs { columns, order, factor: factor.into_iter().map(|value| value as f32).collect() })
    }
}

/// The integers of some rows, with the grid of each group.
pub(super) struct Rounded {
    /// `[rows, columns]`
    pub(super) integers: Vec<i8>,
    /// `[rows, groups]`
    pub(super) grids: Vec<Grid>,
}

/// Rounds weights `[rows, columns]` in the order of `inputs`.
///
/// `grid` finds the grid of one group, given its weights and the number of its first column.
pub(super) fn round(weights: &[f32], scheme: Scheme, inputs: &Inputs, grid: &(dyn Fn(&[f32], usize) -> Grid + Sync)) -> Rounded {
    let columns = inputs.columns;
    let stripes: Vec<Rounded> =
        weights.par_chunks(ROWS * columns).map(|weights| round_rows(weights, scheme, inputs, grid)).collect();
    let mut all = Rounded { integers: Vec::with_capacity(weights.len()), grids: Vec::new() };
    for stripe in stripes {
        all.integers.extend(stripe.integers);
        all.grids.extend(stripe.grids);
    }
    all
}

fn round_rows(weights: &[f32], scheme: Scheme, inputs: &Inputs, grid: &(dyn Fn(&[f32], usize) -> Grid + Sync)) -> Rounded {
    let Inputs { columns, order, factor } = inputs;
    let columns = *columns;
    let rows = weights.len() / columns;
    let group_size = scheme.group_size.unwrap_or(columns);
    let groups = columns / group_size;
    let in_order = order.is_sorted();
    // What is left of the weights, in the order of rounding.
    let mut open = vec![0.0f32; weights.len()];
    for (open, weights) in open.chunks_exact_mut(columns).zip(weights.chunks_exact(columns)) {
        open.iter_mut().zip(order).for_each(|(open, column)| *open = weights[*column]);
    }
    let grid_of = |(index, group): (usize, &[f32])| grid(group, index % groups * group_size);
    let mut grids: Vec<Grid> = weights.chunks_exact(group_size).enumerate().map(grid_of).collect();
    let mut integers = vec![0i8; weights.len()];
    let mut errors = vec![0.0f32; rows * STRIPE];
    for first in (0..columns).step_by(STRIPE) {
        let end = (first + STRIPE).min(columns);
        for (row, open) in open.chunks_exact_mut(columns).enumerate() {
            for at in first..end {
                let column = order[at];
                let group = column / group_size;
                if in_order && group_size < columns && column % group_size == 0 {
                    // A group that reaches past the stripe has not been told all: its tail is still as it was told last.
                    grids[row * groups + group] = grid(&open[column..][..group_size], column);
                }
                let grid = grids[row * groups + group];
                let integer = &mut integers[row * columns + column..][..1];
                round_to(grid, scheme, &open[at..=at], integer);
                let rounded = (i32::from(integer[0]) - i32::from(grid.zero_point)) as f32 * grid.scale;
                let factors = &factor[at * columns..][..columns];
                let error = (open[at] - rounded) / factors[at];
                errors[row * STRIPE + at - first] = error;
                open[at..end].iter_mut().zip(&factors[at..end]).for_each(|(open, factor)| *open -= error * factor);
            }
        }
        if end < columns {
            let left = Strided { values: &errors, row: STRIPE, column: 1 };
            let right = Strided { values: &factor[first * columns + end..], row: columns, column: 1 };
            product((&mut open[end..], columns), (rows, columns - end, end - first), left, right, -1.0);
        }
    }
    Rounded { integers, grids }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use compressor_format::Dtype;

    use super::*;
    use crate::quantize::round_to_nearest::covering;

    fn wave(len: usize, step: f64) -> Vec<f32> {
        (0..len).map(|index| ((index * index) as f64 * step + index as f64).sin() as f32).collect()
    }

    /// Inputs that depend on each other, the later ones smaller.
    fn inputs(vectors: usize, columns: usize) -> Vec<f32> {
        let free = wave(vectors * columns, 0.71);
        let mix = |(index, x): (usize, &f32)| {
            let column = index % columns;
            (x + 0.8 * free[index - column]) / (1.0 + (column * 7 % 5) as f32)
        };
        free.iter().enumerate().map(mix).collect()
    }

    fn hessian(columns: usize) -> Hessian {
        // In two parts, as text comes.
        Hessian::of(columns, inputs(2 * columns, columns).chunks(columns * columns))
    }

    fn stands_for(rounded: &Rounded, group_size: usize) -> Vec<f32> {
        let groups = rounded.integers.chunks(group_size).zip(&rounded.grids);
        groups
            .flat_map(|(integers, grid)| {
                integers.iter().map(|q| (i32::from(*q) - i32::from(grid.zero_point)) as f32 * grid.scale).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn two_columns_by_hand() {
        // H = [[2, 1], [1, 2]], undamped. Rounding 0.4 to 0 leaves 0.4; the second weight takes H₁₂ / H₂₂ = ½ of it: 1.4 + 0.2 = 1.6,
        // which rounds to 2 where 1.4 alone would round to 1.
        let hessian = Hessian::of(2, [[1.0, 1.0, 1.0, 0.0, 0.0, 1.0]].iter());
        let inputs = hessian.inputs(0.0, true).unwrap();
        assert_eq!(inputs.order, [0, 1], "equal columns stay in order");
        let grid = |_: &[f32], _: usize| Grid { scale: 1.0, zero_point: 0 };
        let scheme = Scheme { bits: 4, group_size: None, symmetric: true };
        assert_eq!(round(&[0.4, 1.4], scheme, &inputs, &grid).integers, [0, 2]);
        // The other way round: 1.4 leaves 0.4 at 1, and 0.4 + 0.2 rounds to 1.
        assert_eq!(round(&[1.4, 0.4], scheme, &inputs, &grid).integers, [1, 1]);
        // An error of (0, 1) on these inputs: squares 1 + 0 + 1 over 3 vectors.
        assert!((hessian.output_error(&[0.0, 1.0]) - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(hessian.mean_squares(), [2.0 / 3.0, 2.0 / 3.0]);
        // Half as much of inputs that are even: 2 + 1 on the diagonal, and beside it what was there.
        let mut hessian = hessian;
        hessian.add_even(0.5);
        assert_eq!(hessian.mean_squares(), [1.0, 1.0]);
        assert!((hessian.output_error(&[1.0, 1.0]) - (3.0 + 3.0 + 2.0) / 3.0).abs() < 1e-6);
    }

    /// Optimal brain surgeon, one column after the other, with an inverse that shrinks (equations 2 and 3 of the paper) in f64.
    fn plainly(weights: &[f32], scheme: Scheme, hessian: &Hessian, damping: f64, order: &[usize], grids: &[Grid]) -> Vec<i8> {
        let n = hessian.columns;
        let group_size = scheme.group_size.unwrap();
        let at = |row: usize, column: usize| f64::from(hessian.sums[row.max(column) * n + row.min(column)]);
        let mean = (0..n).map(|column| at(column, column)).sum::<f64>() / n as f64;
        // Gauss and Jordan.
        let mut wide: Vec<Vec<f64>> = (0..n)
            .map(|row| {
                let mut wide: Vec<f64> = (0..n).map(|column| at(row, column)).collect();
                wide[row] += damping * mean;
                wide.extend((0..n).map(|column| if row == column { 1.0 } else { 0.0 }));
                wide
            })
            .collect();
        for pivot in 0..n {
            let factor = wide[pivot][pivot];
            wide[pivot].iter_mut().for_each(|value| *value /= factor);
            for row in (0..n).filter(|row| *row != pivot) {
                let factor = wide[row][pivot];
                let pivot_row = wide[pivot].clone();
                wide[row].iter_mut().zip(&pivot_row).for_each(|(value, other)| *value -= factor * other);
            }
        }
        let mut inverse: Vec<Vec<f64>> = wide.into_iter().map(|row| row[n..].to_vec()).collect();
        let mut open: Vec<f64> = weights.iter().map(|weight| f64::from(*weight)).collect();
        let mut integers = vec![0i8; weights.len()];
        for column in order.iter().copied() {
            let pivot = inverse[column][column];
            for (row, open) in open.chunks_exact_mut(n).enumerate() {
                let grid = grids[row * (n / group_size) + column / group_size];
                round_to(grid, scheme, &[open[column] as f32], &mut integers[row * n + column..][..1]);
                let error = open[column] - f64::from(integers[row * n + column]) * f64::from(grid.scale);
                open.iter_mut().zip(&inverse[column]).for_each(|(open, inverse)| *open -= error / pivot * inverse);
            }
            let removed = inverse[column].clone();
            for (row, inverse) in inverse.iter_mut().enumerate() {
                let factor = removed[row] / pivot;
                inverse.iter_mut().zip(&removed).for_each(|(inverse, removed)| *inverse -= factor * removed);
            }
        }
        integers
    }

    #[test]
    fn blocks_with_a_factor_round_as_the_equations_do() {
        let scheme = Scheme { bits: 4, group_size: Some(16), symmetric: true };
        for columns in [16, 48, 160] {
            let hessian = hessian(columns);
            let weights = wave(5 * columns, 0.37);
            let inputs = hessian.inputs(0.01, true).unwrap();
            assert!(!inputs.order.is_sorted());
            let grid = |group: &[f32], _: usize| covering(group, scheme, Dtype::F32);
            let rounded = round(&weights, scheme, &inputs, &grid);
            let expected = plainly(&weights, scheme, &hessian, 0.01, &inputs.order, &rounded.grids);
            let different = rounded.integers.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
            // A weight half way between two integers falls to one side in f32 and to the other in f64, and those after it follow.
            assert!(different * 100 <= expected.len(), "{columns}: {different} of {}", expected.len());
        }
    }

    #[test]
    fn the_output_errs_less_than_rounded_to_nearest_with_any_order_and_group() {
        let columns = 192;
        let hessian = hessian(columns);
        let weights = wave(40 * columns, 0.37);
        for (group_size, symmetric) in [(None, true), (Some(32), true), (Some(32), false), (Some(96), true)] {
            let scheme = Scheme { bits: 4, group_size, symmetric };
            let grid = |group: &[f32], _: usize| covering(group, scheme, Dtype::F16);
            let size = group_size.unwrap_or(columns);
            let error = |stands_for: &[f32]| {
                let errors: Vec<f32> = stands_for.iter().zip(&weights).map(|(found, weight)| found - weight).collect();
                hessian.output_error(&errors)
            };
            let mut nearest = Rounded { integers: vec![0; weights.len()], grids: Vec::new() };
            for (group, integers) in weights.chunks(size).zip(nearest.integers.chunks_mut(size)) {
                nearest.grids.push(grid(group, 0));
                round_to(nearest.grids[nearest.grids.len() - 1], scheme, group, integers);
            }
            for activation_order in [false, true] {
                let inputs = hessian.inputs(0.01, activation_order).unwrap();
                let found = error(&stands_for(&round(&weights, scheme, &inputs, &grid), size));
                let nearest = error(&stands_for(&nearest, size));
                assert!(found < 0.8 * nearest, "{scheme}, order {activation_order}: {found}, nearest {nearest}");
            }
        }
    }

    #[test]
    fn inputs_that_are_always_zero_are_rounded_to_nearest() {
        let hessian = Hessian::of(3, [[1.0, 0.0, 0.5, -1.0, 0.0, 0.7]].iter());
        let inputs = hessian.inputs(0.01, true).unwrap();
        assert_eq!(inputs.order, [0, 2, 1]);
        let scheme = Scheme { bits: 4, group_size: None, symmetric: true };
        let grid = |_: &[f32], _: usize| Grid { scale: 1.0, zero_point: 0 };
        assert_eq!(round(&[0.2, 3.4, -1.6], scheme, &inputs, &grid).integers[1], 3);
    }

    #[test]
    fn a_hessian_without_an_inverse_is_told() {
        let mut hessian = Hessian::of(2, [[1.0, 1.0]].iter());
        assert!(hessian.inputs(0.0, true).is_err());
        assert!(hessian.inputs(0.01, true).is_ok());
        hessian.add(&[f32::INFINITY, 1.0]);
        assert!(hessian.inputs(0.01, true).is_err());
    }
}
