//! Matrix products over slices with strides, through the `gemm` crate.

#![allow(unsafe_code)]

use super::Matrix;

/// A matrix with strides, for transposes and columns of a wider one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread alone: inside a parallel loop.
    One,
    /// All of Rayon's.
    All,
}

/// Products smaller than this stay on one thread, multiply-adds: waking another one costs more.
const PARALLEL_FROM: usize = 128 * 128 * 64;

impl<'a> View<'a> {
    /// Columns `first..first + columns` of a row-major matrix of width `width`, from its first row.
    pub(crate) fn columns(values: &'a [f32], rows: usize, width: usize, first: usize, columns: usize) -> Self {
        Self { values: &values[first..], rows, columns, row_stride: width, column_stride: 1 }
    }

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.values.len()
    }
}

impl<'a> From<Matrix<'a>> for View<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        let Matrix { values, rows, columns } = matrix;
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }
}

/// `out ← factor · a·b`, or `out += factor · a·b` where `add`.
///
/// `out` is row-major `[a.rows, b.columns]` with rows `out_stride` apart. Every element of the result is summed in the same order
/// whatever the number of threads, so the same inputs give the same bits.
///
/// # Panics
/// Where the inner sizes differ or a matrix reaches past its slice.
pub(crate) fn multiply(out: &mut [f32], out_stride: usize, a: View<'_>, b: View<'_>, factor: f32, add: bool, threads: Threads) {
    assert_eq!(a.columns, b.rows, "inner sizes of a product");
    assert!(a.fits() && b.fits(), "a matrix reaches past its slice");
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(columns <= out_stride && (rows - 1) * out_stride + columns <= out.len(), "the product reaches past its slice");
    let parallelism = match threads {
        Threads::All if rows * inner * columns >= PARALLEL_FROM => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: the assertions above keep every element that the strides reach inside the three slices, `out` is borrowed mutably and so
    // overlaps neither input, and without `add` the old contents of `out` are not read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_by_hand_with_transpose_columns_and_sum() {
        // [1 2; 3 4; 5 6]ᵀ · [1 0; 0 1; 1 1] = [6 8; 8 10]
        let a = Matrix { values: &[1., 2., 3., 4., 5., 6.], rows: 3, columns: 2 };
        let wide = [9., 1., 0., 9., 0., 1., 9., 1., 1.];
        let b = View::columns(&wide, 3, 3, 1, 2);
        let mut out = [1.0; 6];
        multiply(&mut out, 3, View::from(a).transposed(), b, 1.0, false, Threads::One);
        assert_eq!(out, [6., 8., 1., 8., 10., 1.], "the third column is not of the product");
        multiply(&mut out, 3, View::from(a).transposed(), b, 0.5, true, Threads::One);
        assert_eq!(out, [9., 12., 1., 12., 15., 1.]);
    }

    #[test]
    #[should_panic(expected = "a matrix reaches past its slice")]
    fn strides_past_the_slice_are_refused() {
        let b = View::columns(&[0.0; 5], 2, 3, 0, 3);
        multiply(&mut [0.0; 6], 3, View::columns(&[0.0; 4], 2, 2, 0, 2), b, 1.0, false, Threads::One);
    }
}
