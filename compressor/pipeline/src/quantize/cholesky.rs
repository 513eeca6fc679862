//! The one factor that GPTQ needs, in f64: blocked, so that nearly all work is matrix products.
//!
//! Stripes of fixed size are shared out among threads, and no sum is: the bits do not depend on their number.

use rayon::prelude::*;

use super::product::{Strided, product};

/// Columns that are worked on together.
const BLOCK: usize = 64;

/// The upper triangular `U` `[n, n]` with `UᵀU = A⁻¹` for a symmetric `A` whose lower triangle is `a(row, column)`; `None` where `A` is
/// not positive definite.
///
/// With rows and columns of `A` in reverse order, `A' = LLᵀ`. Its inverse is `L⁻ᵀL⁻¹`; in the first order again, `L⁻¹` is `U`.
pub(super) fn inverse_factor(a: impl Fn(usize, usize) -> f64, n: usize) -> Option<Vec<f64>> {
    let mut reversed = vec![0.0; n * n];
    for row in 0..n {
        for column in 0..=row {
            reversed[(n - 1 - column) * n + (n - 1 - row)] = a(row, column);
        }
    }
    factor(&mut reversed, n)?;
    Some(upper_inverse(&reversed, n))
}

/// Replaces the lower triangle of `a` with its Cholesky factor.
fn factor(a: &mut [f64], n: usize) -> Option<()> {
    for first in (0..n).step_by(BLOCK) {
        let end = (first + BLOCK).min(n);
        let width = end - first;
        for row in first..end {
            for column in first..=row {
                let (left, right) = (row * n + first..row * n + column, column * n + first..column * n + column);
                let sum = a[row * n + column] - dot(&a[left], &a[right]);
                if row == column {
                    // Not a number is not positive either.
                    if !(sum > 0.0 && sum.is_finite()) {
                        return None;
                    }
                    a[row * n + row] = sum.sqrt();
                } else {
                    a[row * n + column] = sum / a[column * n + column];
                }
            }
        }
        let (above, below) = a.split_at_mut(end * n);
        let diagonal = |row: usize| &above[(first + row) * n + first..][..width];
        below.par_chunks_exact_mut(n).for_each(|row| {
            let row = &mut row[first..end];
            for column in 0..width {
                let sum = row[column] - dot(&row[..column], &diagonal(column)[..column]);
                row[column] = sum / diagonal(column)[column];
            }
        });
        let rows = n - end;
        let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| row[first..end].iter().copied()).collect();
        below.par_chunks_mut(BLOCK * n).enumerate().for_each(|(stripe, out)| {
            let start = stripe * BLOCK;
            let (height, columns) = (out.len() / n, (start + out.len() / n).min(rows));
            let left = Strided { values: &panel[start * width..], row: width, column: 1 };
            let right = Strided { values: &panel, row: 1, column: width };
            product((&mut out[end..], n), (height, columns, width), left, right, -1.0);
        });
    }
    Some(())
}

/// The inverse of a lower triangle, its rows and columns in reverse order.
fn upper_inverse(lower: &[f64], n: usize) -> Vec<f64> {
    // Stripes of columns of the inverse are found one by one: `L X = I`, from the top.
    let stripes: Vec<(usize, Vec<f64>)> = (0..n)
        .step_by(BLOCK)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|first| {
            let width = BLOCK.min(n - first);
            let mut x = vec![0.0; (n - first) * width];
            for column in 0..width {
                x[column * width + column] = 1.0;
            }
            for top in (first..n).step_by(BLOCK) {
                let height = BLOCK.min(n - top);
                let (done, open) = x.split_at_mut((top - first) * width);
                let left = Strided { values: &lower[top * n + first..], row: n, column: 1 };
                let right = Strided { values: done, row: width, column: 1 };
                product((&mut open[..height * width], width), (height, width, top - first), left, right, -1.0);
                for row in 0..height {
                    let (solved, rest) = open.split_at_mut(row * width);
                    for (known, factor) in solved.chunks_exact(width).zip(&lower[(top + row) * n + top..]) {
                        rest[..width].iter_mut().zip(known).for_each(|(x, known)| *x -= factor * known);
                    }
                    let pivot = lower[(top + row) * n + top + row];
                    rest[..width].iter_mut().for_each(|x| *x /= pivot);
                }
            }
            (first, x)
        })
        .collect();
    let mut upper = vec![0.0; n * n];
    for (first, x) in stripes {
        let width = BLOCK.min(n - first);
        for (row, x) in x.chunks_exact(width).enumerate() {
            let upper = &mut upper[(n - 1 - first - row) * n..][..n - first];
            upper.iter_mut().rev().zip(x).for_each(|(upper, x)| *upper = *x);
        }
    }
    upper
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    sums.iter().sum::<f64>() + left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum::<f64>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn two_by_two_by_hand() {
        // A⁻¹ = 1/3 [[2, −1], [−1, 2]]: U = [[√(2/3), −1/√6], [0, 1/√2]].
        let upper = inverse_factor(|row, column| [[2.0, f64::NAN], [1.0, 2.0]][row][column], 2).unwrap();
        let expected = [(2f64 / 3.0).sqrt(), -1.0 / 6f64.sqrt(), 0.0, 0.5f64.sqrt()];
        upper.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-15, "{upper:?}"));
    }

    #[test]
    fn the_factor_squared_is_the_inverse() {
        for n in [1, 5, 63, 64, 65, 200] {
            // xᵀx of 2n vectors without a pattern, and a diagonal.
            let x: Vec<f64> = (0..2 * n * n).map(|index| ((index * index + 7 * index) as f64 * 0.37).sin()).collect();
            let mut a = vec![0.0; n * n];
            for row in 0..n {
                for column in 0..n {
                    a[row * n + column] = x.chunks_exact(n).map(|x| x[row] * x[column]).sum();
                }
                a[row * n + row] += 0.1;
            }
            let upper = inverse_factor(|row, column| a[row * n + column], n).unwrap();
            let at = |row: usize, column: usize| upper[row * n + column];
            for row in 0..n {
                assert!((0..row).all(|column| at(row, column) == 0.0));
                for column in 0..n {
                    // (UᵀU)·A, one element.
                    let inverse = |other: usize| (0..n).map(|k| at(k, row) * at(k, other)).sum::<f64>();
                    let found: f64 = (0..n).map(|other| inverse(other) * a[other * n + column]).sum();
                    let expected = if row == column { 1.0 } else { 0.0 };
                    assert!((found - expected).abs() < 1e-9, "{n}: [{row}, {column}] {found}");
                    if n == 200 && column > 3 {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        assert_eq!(inverse_factor(|row, column| [[1.0, 0.0], [2.0, 1.0]][row][column], 2), None);
        for alone in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(inverse_factor(|_, _| alone, 1), None);
        }
    }
}
