//! Matrices of indices into codebooks: a few reals for a whole matrix, or for some of its rows, and for each weight which one it
//! is.
//!
//! Layout: docs/artifact-format.md §3.

use alloc::vec::Vec;
use core::fmt;

#[cfg(feature = "std")]
use rayon::prelude::*;
#[cfg(feature = "std")]
use serde::{Deserialize, Serialize};

use crate::{Scheme, TensorSlice, WeightBytes, unpack};

/// How many reals there are to choose from, and which weights choose among the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Codebooks {
    /// Bits of one index, 4 or 8: a codebook has 16 or 256 centroids.
    pub bits: u8,
    /// Output channels that share one codebook; `None` is one for the whole matrix.
    #[cfg_attr(feature = "std", serde(rename = "codebook_rows"))]
    pub rows: Option<usize>,
}

/// What a number stored for a weight can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize), serde(untagged))]
pub enum Levels {
    /// Reals at even distances: integers with scales.
    Grid(Scheme),
    /// Any reals: indices into codebooks.
    Codebooks(Codebooks),
}

/// A matrix of indices: `real = centroids[row / rows of a codebook, index]`.
#[derive(Clone, Debug)]
pub struct CodebookMatrix {
    /// Output channels; a multiple of those that share a codebook.
    pub rows: usize,
    /// Input elements.
    pub columns: usize,
    /// How it was quantized.
    pub codebooks: Codebooks,
    /// Rows of `ceil(columns · bits / 32)` little-endian words, low bits first: as [`Values::Packed`](crate::Values), where an
    /// index is an integer plus `2^(bits − 1)`.
    pub indices: WeightBytes,
    /// `[codebooks, 2^bits]`, of a float type.
    pub centroids: TensorSlice,
}

impl Codebooks {
    /// The widths that are read, written and run.
    pub const BITS: [u8; 2] = [4, 8];

    /// Reals of one codebook.
    pub fn centroids(self) -> usize {
        1 << self.bits
    }

    /// Codebooks of a matrix of `rows` output channels.
    pub fn count(self, rows: usize) -> usize {
        self.rows.map_or(1, |shared| rows / shared)
    }

    /// The codebook of a row.
    pub fn of_row(self, row: usize) -> usize {
        self.rows.map_or(0, |shared| row / shared)
    }

    /// Bytes of one row of indices: whole 32-bit words.
    pub fn row_bytes(self, columns: usize) -> usize {
        (columns * usize::from(self.bits)).div_ceil(32) * 4
    }
}

impl fmt::Display for Codebooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit codebook per ", self.bits)?;
        match self.rows {
            Some(rows) => write!(f, "{rows} rows"),
            None => f.write_str("matrix"),
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grid(scheme) => scheme.fmt(f),
            Self::Codebooks(codebooks) => codebooks.fmt(f),
        }
    }
}

impl From<Scheme> for Levels {
    fn from(scheme: Scheme) -> Self {
        Self::Grid(scheme)
    }
}

impl From<Codebooks> for Levels {
    fn from(codebooks: Codebooks) -> Self {
        Self::Codebooks(codebooks)
    }
}

impl CodebookMatrix {
    /// As [`MappedBytes::release`](crate::MappedBytes::release), of indices and centroids.
    pub fn release(&self) {
        self.indices.release();
        self.centroids.bytes.release();
    }

    /// The centroids of one row, as bytes of their type.
    fn row_bytes(&self, row: usize) -> impl Iterator<Item = u8> {
        let width = self.centroids.dtype.bytes();
        let codebook_bytes = self.codebooks.centroids() * width;
        let codebook = &self.centroids.bytes[self.codebooks.of_row(row) * codebook_bytes..][..codebook_bytes];
        let row_bytes = self.codebooks.row_bytes(self.columns);
        let half = 1i32 << (self.codebooks.bits - 1);
        let packed = &self.indices[row * row_bytes..][..row_bytes];
        let indices = unpack(packed, self.codebooks.bits, self.columns).into_iter().map(move |q| (i32::from(q) + half) as usize);
        indices.flat_map(move |index| codebook[index * width..][..width].iter().copied())
    }

    /// The reals that one row stands for.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let bytes: Vec<u8> = self.row_bytes(row).collect();
        self.centroids.dtype.to_f32(&bytes).expect("centroids have a float type")
    }

    /// The reals it stands for as a dense tensor `[rows, columns]` of the centroids' type: bit for bit, nothing is rounded.
    pub fn decoded(&self) -> TensorSlice {
        #[cfg(feature = "std")]
        let bytes: Vec<u8> = (0..self.rows).into_par_iter().flat_map_iter(|row| self.row_bytes(row)).collect();
        #[cfg(not(feature = "std"))]
        let bytes: Vec<u8> = (0..self.rows).flat_map(|row| self.row_bytes(row)).collect();
        TensorSlice { dtype: self.centroids.dtype, shape: [self.rows, self.columns].into(), bytes: bytes.into() }
    }

    /// The reals it stands for, `[rows, columns]`.
    ///
    /// # Panics
    /// Where the centroids have an integer type.
    pub fn to_f32(&self) -> Vec<f32> {
        self.decoded().to_f32().expect("centroids have a float type")
    }

    /// Rows `first..first + rows` as a matrix of their own; both are a multiple of the rows that share a codebook.
    pub fn slice_rows(&self, first: usize, rows: usize) -> Self {
        let row_bytes = self.codebooks.row_bytes(self.columns);
        let (count, centroids) = (self.codebooks.count(rows), self.codebooks.centroids());
        let codebook_bytes = centroids * self.centroids.dtype.bytes();
        let start = self.codebooks.of_row(first) * codebook_bytes;
        let bytes = self.centroids.bytes.slice(start..start + count * codebook_bytes).expect("codebooks of rows of the matrix");
        Self {
            rows,
            columns: self.columns,
            codebooks: self.codebooks,
            indices: self.indices.slice(first * row_bytes..(first + rows) * row_bytes),
            centroids: TensorSlice { dtype: self.centroids.dtype, shape: [count, centroids].into(), bytes },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::{Dtype, pack};

    /// A matrix of the indices and centroids that `next` draws.
    #[cfg(feature = "std")]
    pub(crate) fn drawn(
        [rows, columns]: [usize; 2],
        codebooks: Codebooks,
        dtype: Dtype,
        next: &mut dyn FnMut() -> i8,
    ) -> CodebookMatrix {
        let mut integers = |count: usize| (0..count).map(|_| next() >> (8 - codebooks.bits)).collect::<Vec<i8>>();
        let indices: Vec<u8> = (0..rows).flat_map(|_| pack(&integers(columns), codebooks.bits)).collect();
        let shape = alloc::vec![codebooks.count(rows), codebooks.centroids()];
        let centroids: Vec<f32> = (0..shape[0] * shape[1]).map(|_| f32::from(next()) / 64.0).collect();
        let bytes = dtype.from_f32(&centroids).expect("a float type").into();
        let centroids = TensorSlice { dtype, shape, bytes };
        CodebookMatrix { rows, columns, codebooks, indices: WeightBytes::Owned(indices.into()), centroids }
    }

    /// Four rows of two elements, two rows to a codebook of f32: 0, 1, 2, … and 100, 101, 102, …
    fn matrix() -> CodebookMatrix {
        let rows: [[i8; 2]; 4] = [[-8, 7], [0, -7], [-8, -6], [7, 7]];
        let codebook = |first: u8| (0..16).map(move |index| f32::from(first + index));
        let centroids: Vec<u8> = codebook(0).chain(codebook(100)).flat_map(f32::to_le_bytes).collect();
        CodebookMatrix {
            rows: 4,
            columns: 2,
            codebooks: Codebooks { bits: 4, rows: Some(2) },
            indices: WeightBytes::Owned(rows.iter().flat_map(|row| pack(row, 4)).collect::<Vec<u8>>().into()),
            centroids: TensorSlice { dtype: Dtype::F32, shape: [2, 16].into(), bytes: centroids.into() },
        }
    }

    #[test]
    fn an_index_stands_for_a_real_of_its_rows_codebook() {
        // Integers of −8 … 7 are indices of 0 … 15.
        assert_eq!(matrix().to_f32(), [0.0, 15.0, 8.0, 1.0, 100.0, 102.0, 115.0, 115.0]);
        assert_eq!((0..4).flat_map(|row| matrix().row(row)).collect::<Vec<_>>(), matrix().to_f32());
        assert_eq!(matrix().decoded().shape, [4, 2]);
    }

    #[test]
    fn some_rows_keep_their_codebooks() {
        assert_eq!(matrix().slice_rows(2, 2).to_f32(), [100.0, 102.0, 115.0, 115.0]);
        assert_eq!(matrix().slice_rows(2, 2).centroids.shape, [1, 16]);
        let whole = CodebookMatrix { codebooks: Codebooks { bits: 4, rows: None }, ..matrix() };
        assert_eq!(whole.slice_rows(3, 1).to_f32(), [15.0, 15.0]);
    }

    #[test]
    fn levels_are_named_for_people() {
        let names = [None, Some(64)].map(|rows| Levels::from(Codebooks { bits: 4, rows }).to_string());
        assert_eq!(names, ["4-bit codebook per matrix", "4-bit codebook per 64 rows"]);
    }

    #[cfg(feature = "std")]
    #[test]
    fn reports_tell_grids_from_codebooks() {
        let grid = Levels::Grid(Scheme { bits: 4, group_size: Some(32), symmetric: true });
        for levels in [grid, Levels::Codebooks(Codebooks { bits: 8, rows: None })] {
            let text = serde_json::to_string(&levels).expect("numbers");
            assert_eq!(serde_json::from_str::<Levels>(&text).expect("what was written"), levels, "{text}");
        }
    }
}
