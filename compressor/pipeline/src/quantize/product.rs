//! Matrix products over parts of slices, on one thread.

use gemm::{Parallelism, gemm};

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a, T> {
    pub(super) values: &'a [T],
    /// Elements from one row to the next.
    pub(super) row: usize,
    /// Elements from one column to the next.
    pub(super) column: usize,
}

/// `out += factor · left · right`: `out` is `[rows, columns]` with rows `stride` apart, `left` `[rows, depth]`.
///
/// # Panics
/// Where an operand reaches past its slice.
pub(super) fn product<T: Copy + From<i8> + 'static>(
    (out, stride): (&mut [T], usize),
    (rows, columns, depth): (usize, usize, usize),
    left: Strided<'_, T>,
    right: Strided<'_, T>,
    factor: T,
) {
    if rows == 0 || columns == 0 || depth == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= out.len(), "the product reaches past `out`");
    assert!((rows - 1) * left.row + (depth - 1) * left.column < left.values.len(), "`left` reaches past its slice");
    assert!((depth - 1) * right.row + (columns - 1) * right.column < right.values.len(), "`right` reaches past its slice");
    // SAFETY: the largest offset of each operand was checked to lie inside its slice, and `out` is borrowed alone.
    #[allow(unsafe_code)]
    unsafe {
        gemm(
            rows,
            columns,
            depth,
            out.as_mut_ptr(),
            1,
            stride as isize,
            true,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            T::from(1),
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_by_two_by_hand() {
        // [1 2; 3 4] · [5 6; 7 8]ᵀ = [17 23; 39 53], halved and added to rows of three.
        let mut out = [100.0, 100.0, -1.0, 100.0, 100.0, -1.0];
        let left = Strided { values: &[1.0, 2.0, 3.0, 4.0], row: 2, column: 1 };
        let right = Strided { values: &[5.0, 6.0, 7.0, 8.0], row: 1, column: 2 };
        product((&mut out, 3), (2, 2, 2), left, right, 0.5f32);
        assert_eq!(out, [108.5, 111.5, -1.0, 119.5, 126.5, -1.0]);
    }
}
