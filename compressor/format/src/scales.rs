//! Scales of a quantized matrix.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::safetensors::f16_to_f32;
use crate::{Dtype, MappedBytes, TensorSlice};

/// Scales `[rows, groups]`, in memory or read where they lie.
#[derive(Clone)]
pub struct Scales(Kept);

#[derive(Clone)]
enum Kept {
    Owned(Vec<f32>),
    Stored(Float, MappedBytes),
}

#[derive(Clone, Copy)]
enum Float {
    F32,
    F16,
    Bf16,
}

impl Scales {
    /// A tensor as it lies in its file; `None` for a type that scales are not stored in.
    pub fn stored(slice: &TensorSlice) -> Option<Self> {
        let float = match slice.dtype {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
            Dtype::Bf16 => Float::Bf16,
            Dtype::F64 | Dtype::I8 | Dtype::I32 | Dtype::I64 => return None,
        };
        Some(Self(Kept::Stored(float, slice.bytes.clone())))
    }

    /// Their bits, little-endian, where they are stored as f16.
    pub fn stored_f16(&self) -> Option<&[[u8; 2]]> {
        match &self.0 {
            Kept::Stored(Float::F16, bytes) => Some(bytes.as_chunks().0),
            Kept::Stored(Float::F32 | Float::Bf16, _) | Kept::Owned(_) => None,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Owned(values) => values.len(),
            Kept::Stored(Float::F32, bytes) => bytes.len() / 4,
            Kept::Stored(Float::F16 | Float::Bf16, bytes) => bytes.len() / 2,
        }
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them, exactly.
    ///
    /// # Panics
    /// Where there is none with that index.
    pub fn get(&self, index: usize) -> f32 {
        let half = |bytes: &MappedBytes| u16::from_le_bytes(bytes.as_chunks().0[index]);
        match &self.0 {
            Kept::Owned(values) => values[index],
            Kept::Stored(Float::F32, bytes) => f32::from_le_bytes(bytes.as_chunks().0[index]),
            Kept::Stored(Float::F16, bytes) => f16_to_f32(half(bytes)),
            Kept::Stored(Float::Bf16, bytes) => f32::from_bits(u32::from(half(bytes)) << 16),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = f32> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The first that is NaN or an infinity, with its index.
    pub fn not_finite(&self) -> Option<(usize, f32)> {
        let halves = |bytes: &MappedBytes, exponent: u16| {
            bytes.as_chunks().0.iter().position(|pair| u16::from_le_bytes(*pair) & exponent == exponent)
        };
        let index = match &self.0 {
            Kept::Owned(values) => values.iter().position(|value| !value.is_finite()),
            Kept::Stored(Float::F32, bytes) => bytes.as_chunks().0.iter().position(|four| !f32::from_le_bytes(*four).is_finite()),
            // What is not finite has all bits of the exponent set.
            Kept::Stored(Float::F16, bytes) => halves(bytes, 0x7c00),
            Kept::Stored(Float::Bf16, bytes) => halves(bytes, 0x7f80),
        }?;
        Some((index, self.get(index)))
    }

    /// Some of them, without copying what is stored.
    ///
    /// # Panics
    /// Where the range reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let part = |bytes: &MappedBytes, width: usize| {
            bytes.slice(range.start * width..range.end * width).expect("a range inside the scales")
        };
        Self(match &self.0 {
            Kept::Owned(values) => Kept::Owned(values[range].to_vec()),
            Kept::Stored(Float::F32, bytes) => Kept::Stored(Float::F32, part(bytes, 4)),
            Kept::Stored(float, bytes) => Kept::Stored(*float, part(bytes, 2)),
        })
    }

    /// As [`MappedBytes::release`]; what is in memory stays.
    pub fn release(&self) {
        match &self.0 {
            Kept::Owned(_) => {}
            Kept::Stored(_, bytes) => bytes.release(),
        }
    }
}

impl From<Vec<f32>> for Scales {
    fn from(values: Vec<f32>) -> Self {
        Self(Kept::Owned(values))
    }
}

impl PartialEq for Scales {
    /// By their values, wherever they are.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn stored_scales_are_read_exactly_and_sliced_without_their_neighbours() {
        let values = [1.0f32, 0.5, -3.25, 65504.0, 0.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let bytes = dtype.from_f32(&values).unwrap();
            let slice = TensorSlice { dtype, shape: alloc::vec![5, 1], bytes: bytes.into() };
            let scales = Scales::stored(&slice).unwrap();
            let expected = slice.to_f32().unwrap();
            assert_eq!((scales.len(), scales.iter().collect::<Vec<f32>>()), (5, expected.clone()));
            assert_eq!(scales.stored_f16().map(<[_]>::as_flattened), (dtype == Dtype::F16).then_some(&*slice.bytes));
            assert_eq!(scales.slice(1..3), Scales::from(expected[1..3].to_vec()));
            assert_ne!(scales.slice(1..3), Scales::from(expected[1..4].to_vec()));
        }
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let bytes = dtype.from_f32(&[65504.0, -1.0, damage]).unwrap();
                let slice = TensorSlice { dtype, shape: alloc::vec![3, 1], bytes: bytes.into() };
                let (index, value) = Scales::stored(&slice).unwrap().not_finite().unwrap();
                assert!(index == 2 && !value.is_finite());
                assert_eq!(Scales::stored(&slice).unwrap().slice(0..2).not_finite(), None);
            }
        }
        assert_eq!(Scales::from(vec![1.0, f32::INFINITY]).not_finite(), Some((1, f32::INFINITY)));
        let integers = TensorSlice { dtype: Dtype::I32, shape: alloc::vec![0, 1], bytes: Vec::new().into() };
        assert!(Scales::stored(&integers).is_none());
    }
}
