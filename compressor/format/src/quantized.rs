//! Matrices of integers with their scales, as compressed-tensors lays them out.
//!
//! Layout and rounding: docs/artifact-format.md, checked bit for bit against files written by llm-compressor.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, Range};

#[cfg(feature = "std")]
use rayon::prelude::*;
#[cfg(feature = "std")]
use serde::{Deserialize, Serialize};

use crate::{MappedBytes, Scales};

/// Bits, granularity and symmetry of a matrix of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize))]
pub struct Scheme {
    /// Bits of one integer: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Input elements that share one scale; `None` is one scale for a whole output channel.
    pub group_size: Option<usize>,
    /// No zero points: zero is zero.
    pub symmetric: bool,
}

/// A matrix of integers: `real = scale · (q − zero_point)`.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    /// Output channels.
    pub rows: usize,
    /// Input elements; a multiple of the group size.
    pub columns: usize,
    /// How it was quantized.
    pub scheme: Scheme,
    /// The integers.
    pub values: Values,
    /// `[rows, groups]`.
    pub scales: Scales,
    /// `[rows, groups]`, where the scheme is not symmetric.
    pub zero_points: Option<Vec<i8>>,
}

/// The integers of a matrix, as they lie in the file.
#[derive(Clone, Debug)]
pub enum Values {
    /// Rows of `ceil(columns · bits / 32)` little-endian words, each integer stored as `q + 2^(bits − 1)`, low bits first:
    /// with 4 bits, element 2i is the low nibble of byte i.
    Packed(WeightBytes),
    /// `[rows, columns]` signed bytes.
    Signed(WeightBytes),
}

/// The bytes of a matrix; clones without copying.
#[derive(Clone, Debug)]
pub enum WeightBytes {
    /// A range of a mapped file, or of bytes that a whole model was read from.
    Mapped(MappedBytes),
    /// In memory, on their own.
    Owned(Arc<[u8]>),
}

impl Deref for WeightBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl WeightBytes {
    /// Some of them; what is mapped is not copied.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Mapped(mapped) => Self::Mapped(mapped.slice(range).expect("rows lie inside the matrix")),
            Self::Owned(owned) => Self::Owned(owned[range].into()),
        }
    }

    /// As [`MappedBytes::release`].
    pub(crate) fn release(&self) {
        match self {
            Self::Mapped(bytes) => bytes.release(),
            Self::Owned(_) => {}
        }
    }
}

impl Scheme {
    /// The widths that are read, written and run.
    pub const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

    /// Smallest and largest integer.
    pub fn range(self) -> (i32, i32) {
        let half = 1 << (self.bits - 1);
        (-half, half - 1)
    }

    /// Scales of one row of `columns` elements.
    pub fn groups(self, columns: usize) -> usize {
        self.group_size.map_or(1, |size| columns / size)
    }

    /// Bytes of one packed row: whole 32-bit words.
    pub fn row_bytes(self, columns: usize) -> usize {
        (columns * usize::from(self.bits)).div_ceil(32) * 4
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INT{}, ", self.bits)?;
        match self.group_size {
            Some(size) => write!(f, "groups of {size}")?,
            None => f.write_str("per channel")?,
        }
        f.write_str(if self.symmetric { ", symmetric" } else { ", zero points" })
    }
}

impl QuantizedMatrix {
    /// Elements that share a scale.
    pub fn group_size(&self) -> usize {
        self.scheme.group_size.unwrap_or(self.columns)
    }

    /// Scales of one row.
    pub fn groups(&self) -> usize {
        self.scheme.groups(self.columns)
    }

    /// As [`MappedBytes::release`], of integers and scales.
    pub fn release(&self) {
        let (Values::Packed(bytes) | Values::Signed(bytes)) = &self.values;
        bytes.release();
        self.scales.release();
    }

    /// The integers of one row.
    pub fn row_integers(&self, row: usize) -> Vec<i8> {
        match &self.values {
            Values::Signed(bytes) => bytes[row * self.columns..][..self.columns].iter().map(|byte| *byte as i8).collect(),
            Values::Packed(bytes) => {
                let row_bytes = self.scheme.row_bytes(self.columns);
                unpack(&bytes[row * row_bytes..][..row_bytes], self.scheme.bits, self.columns)
            }
        }
    }

    /// One row as the real numbers it stands for.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let mut real = vec![0.0; self.columns];
        self.dequantize_row(row, &mut real);
        real
    }

    /// The real numbers it stands for, `[rows, columns]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut real = vec![0.0; self.rows * self.columns];
        #[cfg(feature = "std")]
        let rows = real.par_chunks_exact_mut(self.columns);
        #[cfg(not(feature = "std"))]
        let rows = real.chunks_exact_mut(self.columns);
        rows.enumerate().for_each(|(row, real)| self.dequantize_row(row, real));
        real
    }

    fn dequantize_row(&self, row: usize, real: &mut [f32]) {
        let (groups, size, integers) = (self.groups(), self.group_size(), self.row_integers(row));
        for (group, (integers, real)) in integers.chunks(size).zip(real.chunks_mut(size)).enumerate() {
            let scale = self.scales.get(row * groups + group);
            let zero_point = self.zero_points.as_ref().map_or(0, |points| i32::from(points[row * groups + group]));
            for (q, real) in integers.iter().zip(real) {
                *real = (i32::from(*q) - zero_point) as f32 * scale;
            }
        }
    }

    /// Rows `first..first + rows` as a matrix of their own.
    pub fn slice_rows(&self, first: usize, rows: usize) -> Self {
        let groups = self.groups();
        let (Values::Packed(bytes) | Values::Signed(bytes)) = &self.values;
        let row_bytes = bytes.len() / self.rows;
        let bytes = bytes.slice(first * row_bytes..(first + rows) * row_bytes);
        let values = match &self.values {
            Values::Packed(_) => Values::Packed(bytes),
            Values::Signed(_) => Values::Signed(bytes),
        };
        let part = first * groups..(first + rows) * groups;
        Self {
            rows,
            columns: self.columns,
            scheme: self.scheme,
            values,
            scales: self.scales.slice(part.clone()),
            zero_points: self.zero_points.as_ref().map(|points| points[part].to_vec()),
        }
    }
}

/// Packs integers of `bits` bits into little-endian 32-bit words, low bits first, each as `q + 2^(bits − 1)`.
pub fn pack(integers: &[i8], bits: u8) -> Vec<u8> {
    let bits = usize::from(bits);
    let offset = 1i32 << (bits - 1);
    let mut packed = vec![0u8; (integers.len() * bits).div_ceil(32) * 4];
    for (index, q) in integers.iter().enumerate() {
        let unsigned = (i32::from(*q) + offset) as u16 & ((1 << bits) - 1) as u16;
        let shifted = unsigned << (index * bits % 8);
        packed[index * bits / 8] |= shifted as u8;
        if shifted > 0xff {
            packed[index * bits / 8 + 1] |= (shifted >> 8) as u8;
        }
    }
    packed
}

/// The inverse of [`pack`]: the first `len` integers.
pub fn unpack(packed: &[u8], bits: u8, len: usize) -> Vec<i8> {
    let bits = usize::from(bits);
    let offset = 1i32 << (bits - 1);
    let one = |index: usize| {
        let at = index * bits / 8;
        let pair = u16::from(packed[at]) | (u16::from(packed.get(at + 1).copied().unwrap_or(0)) << 8);
        let unsigned = (pair >> (index * bits % 8)) & ((1u32 << bits) - 1) as u16;
        (i32::from(unsigned) - offset) as i8
    };
    (0..len).map(one).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A matrix of the integers and zero points that `next` draws, and of the scales that `scale` makes of what it draws then.
    #[cfg(feature = "std")]
    pub(crate) fn drawn(
        [rows, columns]: [usize; 2],
        scheme: Scheme,
        packed: bool,
        next: &mut dyn FnMut() -> i8,
        scale: fn(i8) -> f32,
    ) -> QuantizedMatrix {
        let mut integers = |count: usize| (0..count).map(|_| next() >> (8 - scheme.bits)).collect::<Vec<i8>>();
        let values = match packed {
            true => Values::Packed(WeightBytes::Owned(
                (0..rows).flat_map(|_| pack(&integers(columns), scheme.bits)).collect::<Vec<u8>>().into(),
            )),
            false => Values::Signed(WeightBytes::Owned(integers(rows * columns).into_iter().map(|q| q as u8).collect())),
        };
        let groups = rows * scheme.groups(columns);
        let zero_points = (!scheme.symmetric).then(|| integers(groups));
        let scales = (0..groups).map(|_| scale(next())).collect::<Vec<f32>>().into();
        QuantizedMatrix { rows, columns, scheme, values, scales, zero_points }
    }

    #[test]
    fn int4_puts_the_first_element_in_the_low_nibble() {
        // -8 → 0, -7 → 1, 7 → 15, 0 → 8.
        assert_eq!(pack(&[-8, -7, 7, 0], 4), [0x10, 0x8f, 0, 0]);
    }

    #[test]
    fn int8_adds_128() {
        assert_eq!(pack(&[-128, -1, 0, 127], 8), [0, 127, 128, 255]);
    }

    #[test]
    fn a_row_dequantizes_group_by_group() {
        let matrix = QuantizedMatrix {
            rows: 1,
            columns: 4,
            scheme: Scheme { bits: 4, group_size: Some(2), symmetric: false },
            values: Values::Packed(WeightBytes::Owned(pack(&[1, 2, -8, 7], 4).into())),
            scales: vec![0.5, 2.0].into(),
            zero_points: Some(vec![1, -1]),
        };
        // (1 − 1)·0.5, (2 − 1)·0.5, (−8 + 1)·2, (7 + 1)·2
        assert_eq!(matrix.row(0), [0.0, 0.5, -14.0, 16.0]);
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(bits in 1u8..=8, integers in prop::collection::vec(any::<i8>(), 0..70)) {
            let shift = 8 - bits;
            let integers: Vec<i8> = integers.into_iter().map(|q| q >> shift).collect();
            prop_assert_eq!(unpack(&pack(&integers, bits), bits, integers.len()), integers);
        }
    }
}
