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

/// `a·b`, row-major `[a.rows, b.columns]`.
///
/// # Panics
/// As [`multiply`].
pub(crate) fn product(a: View<'_>, b: View<'_>, threads: Threads) -> Vec<f32> {
    let len = a.rows * b.columns;
    if len == 0 || a.columns == 0 {
        return vec![0.0; len];
    }
    check(a, b);
    let mut out = Vec::with_capacity(len);
    // SAFETY: `check` passed, and `out` has room for the whole result in rows of its own width; it is new, so it overlaps no input.
    unsafe { write_product(out.as_mut_ptr(), b.columns, a, b, 1.0, false, threads) };
    // SAFETY: the product is not empty and was written whole: `len` elements, one after another.
    unsafe { out.set_len(len) };
    out
}

/// `out ← factor · a·b`, or `out += factor · a·b` where `add`.
///
/// `out` is row-major `[a.rows, b.columns]` with rows `out_stride` apart. Every element of the result is summed in the same order
/// whatever the number of threads, so the same inputs give the same bits.
///
/// # Panics
/// Where the inner sizes differ or a matrix reaches past its slice.
pub(crate) fn multiply(out: &mut [f32], out_stride: usize, a: View<'_>, b: View<'_>, factor: f32, add: bool, threads: Threads) {
    check(a, b);
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    assert!(b.columns <= out_stride && (a.rows - 1) * out_stride + b.columns <= out.len(), "the product reaches past its slice");
    // SAFETY: `check` and the assertion above keep every element that the strides reach inside the three slices, and `out` is
    // borrowed mutably and so overlaps neither input.
    unsafe { write_product(out.as_mut_ptr(), out_stride, a, b, factor, add, threads) };
}

fn check(a: View<'_>, b: View<'_>) {
    assert_eq!(a.columns, b.rows, "inner sizes of a product");
    assert!(a.fits() && b.fits(), "a matrix reaches past its slice");
}

/// # Safety
/// `check(a, b)` must have passed; `out` must be valid for writes of `a.rows` rows of `b.columns` elements, `out_stride` apart, which
/// overlap neither input, and where `add` for reads of initialized elements there.
unsafe fn write_product(out: *mut f32, out_stride: usize, a: View<'_>, b: View<'_>, factor: f32, add: bool, threads: Threads) {
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    let parallelism = match threads {
        Threads::All if rows * inner * columns >= PARALLEL_FROM => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: the caller keeps all that the strides reach inside valid memory; without `add` the contents of `out` are not read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out,
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
    use crate::fused::tests::noise;

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
        assert_eq!(product(View::from(a).transposed(), b, Threads::All), [6., 8., 8., 10.]);
        let empty = Matrix { values: &[], rows: 2, columns: 0 };
        assert_eq!(product(empty.into(), View::from(empty).transposed(), Threads::One), [0.0; 4], "a sum of nothing");
    }

    #[test]
    #[should_panic(expected = "a matrix reaches past its slice")]
    fn strides_past_the_slice_are_refused() {
        let b = View::columns(&[0.0; 5], 2, 3, 0, 3);
        multiply(&mut [0.0; 6], 3, View::columns(&[0.0; 4], 2, 2, 0, 2), b, 1.0, false, Threads::One);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let (rows, inner, columns) = (301, 517, 203);
        let (a, b) = (noise(rows * inner, 1), noise(inner * columns, 2));
        let a = Matrix { values: &a, rows, columns: inner };
        let b = Matrix { values: &b, rows: inner, columns };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be made");
            pool.install(|| product(a.into(), b.into(), Threads::All))
        };
        let one = on(1);
        assert_eq!(one, on(2));
        assert_eq!(one, on(5));
        assert_eq!(one, product(a.into(), b.into(), Threads::One));
    }
}
