//! Products of f32 matrices, through the `gemm` crate.

use super::view::{View, ViewMut};

/// `out = factor · left · right`, on this thread alone: the caller shares out the work, so that how many threads there are
/// changes no bit of the result.
///
/// # Panics
/// Where the sizes do not fit.
pub(crate) fn multiply(out: &mut ViewMut<'_>, factor: f32, left: View<'_>, right: View<'_>) {
    assert_eq!((out.rows, out.columns, left.columns), (left.rows, right.columns, right.rows), "sizes of a product");
    // SAFETY: `View::new` and `ViewMut::new` checked that every element with these sizes and strides lies inside its slice, and
    // the borrows of both views last for the call. `out` is not read: `read_dst` is false.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            left.columns,
            out.pointer,
            1,
            out.row_stride as isize,
            false,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            0.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_with_a_transposed_matrix_takes_its_rows_as_columns() {
        let (x, weight) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 10.0, 100.0]);
        let mut out = [f32::NAN; 6];
        multiply(&mut ViewMut::new(&mut out, 3), 0.5, View::new(&x, 2, 2, 2), View::new(&weight, 3, 2, 2).transposed());
        assert_eq!(out, [0.5, 1.0, 105.0, 1.5, 2.0, 215.0]);
    }

    #[test]
    fn no_rows_or_no_columns_is_no_work() {
        let mut none = [];
        multiply(&mut ViewMut::new(&mut none, 3), 1.0, View::new(&[], 0, 2, 2), View::new(&[0.0; 6], 3, 2, 2).transposed());
        assert_eq!(none.len(), 0);
    }
}
