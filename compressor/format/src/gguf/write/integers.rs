//! Rows of integers as ggml's blocks of 32, which read back as the same numbers.
//!
//! Layouts: see the readers in `blocks`, which are ggml's own, bit for bit.

use half::f16;

use crate::QuantizedMatrix;
use crate::gguf::blocks::GgmlType;

/// Elements of every block type that is written.
const BLOCK: usize = 32;

/// The type that holds a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) kind: GgmlType,
    /// What is added to an integer before it is stored.
    pub(super) offset: i32,
}

/// 32 integers as they are stored, with the scale that they share.
pub(super) struct Block {
    scale: f16,
    pub(super) minimum: Option<Minimum>,
    integers: [u8; BLOCK],
}

/// What stands for a zero point: the value of the stored integer 0.
pub(super) struct Minimum {
    /// `−(zero_point + offset) · scale`, without an error: the factors have 6 and 11 bits.
    exact: f32,
    rounded: f16,
}

/// The smallest type that holds `matrix`; `Err` says why there is none, and what to quantize with instead.
pub(super) fn holder(matrix: &QuantizedMatrix) -> Result<Holder, String> {
    let scheme = matrix.scheme;
    let half = 1 << (scheme.bits - 1);
    let (kind, offset) = match (scheme.bits, scheme.symmetric) {
        (..=4, true) => (GgmlType::Q4_0, 8),
        (5, true) => (GgmlType::Q5_0, 16),
        (_, true) => (GgmlType::Q8_0, 0),
        (..=4, false) => (GgmlType::Q4_1, half),
        (5, false) => (GgmlType::Q5_1, half),
        (bits, false) => {
            return Err(format!(
                "it has {bits} bits with zero points, and no type of ggml has them above 5 bits; quantize with symmetric = true or \
                 with fewer bits"
            ));
        }
    };
    let (columns, group_size) = (matrix.columns, matrix.group_size());
    if !columns.is_multiple_of(BLOCK) {
        return Err(format!(
            "its rows have {columns} elements, and ggml's blocks have {BLOCK}; leave it dense or choose sizes that are multiples of \
             {BLOCK}"
        ));
    }
    if !group_size.is_multiple_of(BLOCK) {
        return Err(format!(
            "its groups have {group_size} elements, and ggml's blocks have {BLOCK}; quantize with group_size = {BLOCK}"
        ));
    }
    let is_exact = |scale: f32| f16::from_f32(scale).to_f32() == scale;
    let place = |index: usize| (index / matrix.groups(), index % matrix.groups());
    if let Some((index, scale)) = matrix.scales.iter().enumerate().find(|(_, scale)| !is_exact(*scale)) {
        let (row, group) = place(index);
        return Err(format!(
            "the scale of row {row}, group {group} is {scale}, which is no f16, and ggml has no others; quantize with scale_dtype = \
             \"f16\""
        ));
    }
    for (index, point) in matrix.zero_points.iter().flatten().enumerate() {
        let minimum = Minimum::new(matrix.scales.get(index), *point, offset);
        if !minimum.rounded.is_finite() {
            let (row, group) = place(index);
            return Err(format!("the minimum of row {row}, group {group} is {}, beyond the largest f16, 65504", minimum.exact));
        }
    }
    Ok(Holder { kind, offset })
}

/// The blocks of a row.
pub(super) fn blocks(matrix: &QuantizedMatrix, row: usize, offset: i32) -> impl Iterator<Item = Block> {
    let integers = matrix.row_integers(row);
    (0..matrix.columns / BLOCK).map(move |block| {
        let group = row * matrix.groups() + block * BLOCK / matrix.group_size();
        let scale = matrix.scales.get(group);
        let minimum = matrix.zero_points.as_ref().map(|points| Minimum::new(scale, points[group], offset));
        let stored = |index| (i32::from(integers[block * BLOCK + index]) + offset) as u8;
        Block { scale: f16::from_f32(scale), minimum, integers: std::array::from_fn(stored) }
    })
}

impl Minimum {
    fn new(scale: f32, zero_point: i8, offset: i32) -> Self {
        let exact = -((i32::from(zero_point) + offset) as f32 * scale);
        Self { exact, rounded: f16::from_f32(exact) }
    }

    pub(super) fn is_rounded(&self) -> bool {
        self.rounded.to_f32() != self.exact
    }
}

impl Block {
    /// Scale, minimum, fifth bits, integers: what `kind` has of them, in this order.
    pub(super) fn append(&self, kind: GgmlType, out: &mut Vec<u8>) {
        out.extend(self.scale.to_le_bytes());
        if let Some(minimum) = &self.minimum {
            out.extend(minimum.rounded.to_le_bytes());
        }
        if matches!(kind, GgmlType::Q5_0 | GgmlType::Q5_1) {
            let fifth = self.integers.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
            out.extend(fifth.to_le_bytes());
        }
        if kind == GgmlType::Q8_0 {
            out.extend(self.integers);
        } else {
            let (low, high) = self.integers.split_at(BLOCK / 2);
            out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
        }
    }
}
