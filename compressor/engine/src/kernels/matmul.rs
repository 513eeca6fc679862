//! Products of f32 matrices, through the `gemm` crate, behind views that check their bounds once.

use std::marker::PhantomData;

/// A matrix inside a slice; its transpose is the same values with the strides exchanged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A matrix to be written, whose rows lie `row_stride` elements apart.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    pointer: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `ViewMut` is the only way to its elements, as `&mut [f32]` is, which may go to another thread.
unsafe impl Send for ViewMut<'_> {}

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

impl<'a> View<'a> {
    /// `rows` rows of `columns` elements, each beginning `row_stride` after the one before.
    ///
    /// # Panics
    /// Where they reach past the end of `values`.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(fits(values.len(), rows, columns, row_stride), "a view of {rows} rows in {} values", values.len());
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

impl<'a> ViewMut<'a> {
    /// All of `values`, as rows of `columns`.
    ///
    /// # Panics
    /// Where `values` is not whole rows.
    pub(crate) fn new(values: &'a mut [f32], columns: usize) -> Self {
        assert_eq!(values.len() % columns.max(1), 0, "whole rows");
        let rows = values.len() / columns.max(1);
        Self { pointer: values.as_mut_ptr(), rows, columns, row_stride: columns, borrow: PhantomData }
    }

    /// Stripes of at most `width` columns, beside each other, each with its first column.
    pub(crate) fn split_columns(self, width: usize) -> impl Iterator<Item = (usize, Self)> {
        let Self { pointer, rows, columns, row_stride, borrow } = self;
        (0..columns).step_by(width).map(move |first| {
            // No two stripes share a column and `self` is gone, so each is still the only way to its elements.
            let pointer = pointer.wrapping_add(first);
            (first, Self { pointer, rows, columns: width.min(columns - first), row_stride, borrow })
        })
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The elements of one row.
    ///
    /// # Panics
    /// Where there is no such row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice that `new` took; no other view has its columns, and `&mut self` lends one row at a time.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(row * self.row_stride), self.columns) }
    }
}

fn fits(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
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
    fn stripes_cover_every_column_once() {
        let mut out = [0.0; 14];
        for (first, mut stripe) in ViewMut::new(&mut out, 7).split_columns(3) {
            for row in 0..stripe.rows() {
                for (column, value) in stripe.row(row).iter_mut().enumerate() {
                    *value += (10 * row + first + column) as f32;
                }
            }
        }
        assert_eq!(out, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]);
    }

    #[test]
    fn no_rows_or_no_columns_is_no_work() {
        let mut none = [];
        multiply(&mut ViewMut::new(&mut none, 3), 1.0, View::new(&[], 0, 2, 2), View::new(&[0.0; 6], 3, 2, 2).transposed());
        assert_eq!(none.len(), 0);
    }

    #[test]
    #[should_panic(expected = "a view of 3 rows in 5 values")]
    fn a_view_that_reaches_past_its_slice_is_refused() {
        let _ = View::new(&[0.0; 5], 3, 2, 2);
    }
}
