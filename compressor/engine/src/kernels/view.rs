//! Parts of matrices, whose bounds are checked once.

use core::marker::PhantomData;

/// A matrix inside a slice; its transpose is the same values with the strides exchanged.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

/// A matrix to be written, whose rows lie `row_stride` elements apart.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    pub(super) pointer: *mut f32,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `ViewMut` is the only way to its elements, as `&mut [f32]` is, which may go to another thread.
unsafe impl Send for ViewMut<'_> {}

#[cfg(feature = "std")]
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

    /// Parts of at most `count` rows, below each other, each with its first row.
    pub(crate) fn split_rows(self, count: usize) -> impl Iterator<Item = (usize, Self)> {
        let Self { pointer, rows, columns, row_stride, borrow } = self;
        (0..rows).step_by(count).map(move |first| {
            // No two parts share a row and `self` is gone.
            let pointer = pointer.wrapping_add(first * row_stride);
            (first, Self { pointer, rows: count.min(rows - first), columns, row_stride, borrow })
        })
    }

    /// The first `rows` rows and the others.
    ///
    /// # Panics
    /// Where there are fewer.
    pub(crate) fn split_at_row(self, rows: usize) -> (Self, Self) {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        let Self { pointer, columns, row_stride, borrow, .. } = self;
        // The two share no row and `self` is gone.
        let rest = pointer.wrapping_add(rows * row_stride);
        (Self { rows, ..self }, Self { pointer: rest, rows: self.rows - rows, columns, row_stride, borrow })
    }

    /// The same elements, for a while.
    pub(crate) fn reborrow(&mut self) -> ViewMut<'_> {
        let Self { pointer, rows, columns, row_stride, .. } = *self;
        ViewMut { pointer, rows, columns, row_stride, borrow: PhantomData }
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
        unsafe { core::slice::from_raw_parts_mut(self.pointer.add(row * self.row_stride), self.columns) }
    }
}

#[cfg(feature = "std")]
fn fits(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn parts_cover_every_row_once() {
        let mut out = [0.0; 10];
        let parts = ViewMut::new(&mut out, 2)
            .split_columns(1)
            .flat_map(|(column, part)| part.split_rows(2).map(move |part| (column, part)));
        for (column, (first, mut part)) in parts {
            for row in 0..part.rows() {
                part.row(row)[0] += (10 * (first + row) + column) as f32;
            }
        }
        assert_eq!(out, [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 40.0, 41.0]);
    }

    #[cfg(feature = "std")]
    #[test]
    #[should_panic(expected = "a view of 3 rows in 5 values")]
    fn a_view_that_reaches_past_its_slice_is_refused() {
        let _ = View::new(&[0.0; 5], 3, 2, 2);
    }
}
