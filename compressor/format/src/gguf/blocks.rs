//! The ways ggml stores numbers, and what the numbers are.
//!
//! A quantized row is cut into blocks; a block carries its own scales and is read alone. Every formula is computed in f32 in the
//! order of ggml's reference code, with a rounding after each operation, so results are equal to it bit for bit.
//!
//! Layouts: ggml's `block_*` structures in `ggml-common.h` (MIT), <https://github.com/ggml-org/ggml>.

use half::{bf16, f16};
use rayon::prelude::*;

/// A ggml type that can be read; [`GgmlType::from_id`] names the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)] // ggml's names, as every message and every other program writes them
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, 5 exponent bits.
    F16,
    /// 16-bit floats, 8 exponent bits.
    BF16,
    /// 32 elements: f16 scale, 8-bit integers. 8.5 bits per weight.
    Q8_0,
    /// 32 elements: f16 scale, 4-bit integers minus 8. 4.5 bits per weight.
    Q4_0,
    /// 32 elements: f16 scale and f16 minimum, 4-bit integers. 5 bits per weight.
    Q4_1,
    /// 32 elements: f16 scale, 5-bit integers minus 16. 5.5 bits per weight.
    Q5_0,
    /// 32 elements: f16 scale and f16 minimum, 5-bit integers. 6 bits per weight.
    Q5_1,
    /// 256 elements: 8 groups of 32 with 6-bit scales and minima, 4-bit integers. 4.5 bits per weight.
    Q4_K,
    /// 256 elements: as [`GgmlType::Q4_K`], 5-bit integers. 5.5 bits per weight.
    Q5_K,
    /// 256 elements: 16 groups of 16 with 8-bit scales, 6-bit integers minus 32. 6.5625 bits per weight.
    Q6_K,
}

/// Every readable type, for lists in messages.
pub(super) const READABLE: [GgmlType; 11] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

/// What stands behind a type id in a file.
pub(super) enum TypeId {
    Readable(GgmlType),
    /// ggml defines it, nothing here reads it.
    Named(&'static str),
    Unknown,
}

/// Writes the values of `bytes` into `out`.
///
/// - `bytes`: whole blocks of `kind`, as many as `out` holds elements
/// - `out`: a whole number of blocks
pub(super) fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::F32 => each_block(bytes, out, |block, out| *out = [f32::from_le_bytes(*block)]),
        GgmlType::F16 => each_block(bytes, out, |block, out| *out = [f16::from_le_bytes(*block).to_f32()]),
        GgmlType::BF16 => each_block(bytes, out, |block, out| *out = [bf16::from_le_bytes(*block).to_f32()]),
        GgmlType::Q8_0 => each_block(bytes, out, q8_0),
        GgmlType::Q4_0 => each_block(bytes, out, q4_0),
        GgmlType::Q4_1 => each_block(bytes, out, q4_1),
        GgmlType::Q5_0 => each_block(bytes, out, q5_0),
        GgmlType::Q5_1 => each_block(bytes, out, q5_1),
        GgmlType::Q4_K => each_block(bytes, out, q4_k),
        GgmlType::Q5_K => each_block(bytes, out, q5_k),
        GgmlType::Q6_K => each_block(bytes, out, q6_k),
    }
}

impl GgmlType {
    /// The type's name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Elements in a block; a row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q4_K => 2 + 2 + 12 + 128,
            Self::Q5_K => 2 + 2 + 12 + 32 + 128,
            Self::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// The number that stands for the type in a tensor table.
    pub(super) fn id(self) -> u32 {
        let is_own = |id: &u32| matches!(Self::from_id(*id), TypeId::Readable(kind) if kind == self);
        (0..).find(is_own).expect("`from_id` has every type")
    }

    /// The type behind `id` in a tensor table, by ggml's `enum ggml_type`.
    pub(super) fn from_id(id: u32) -> TypeId {
        TypeId::Readable(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            4 => return TypeId::Named("Q4_2"),
            5 => return TypeId::Named("Q4_3"),
            9 => return TypeId::Named("Q8_1"),
            10 => return TypeId::Named("Q2_K"),
            11 => return TypeId::Named("Q3_K"),
            15 => return TypeId::Named("Q8_K"),
            16 => return TypeId::Named("IQ2_XXS"),
            17 => return TypeId::Named("IQ2_XS"),
            18 => return TypeId::Named("IQ3_XXS"),
            19 => return TypeId::Named("IQ1_S"),
            20 => return TypeId::Named("IQ4_NL"),
            21 => return TypeId::Named("IQ3_S"),
            22 => return TypeId::Named("IQ2_S"),
            23 => return TypeId::Named("IQ4_XS"),
            24 => return TypeId::Named("I8"),
            25 => return TypeId::Named("I16"),
            26 => return TypeId::Named("I32"),
            27 => return TypeId::Named("I64"),
            28 => return TypeId::Named("F64"),
            29 => return TypeId::Named("IQ1_M"),
            31 => return TypeId::Named("Q4_0_4_4"),
            32 => return TypeId::Named("Q4_0_4_8"),
            33 => return TypeId::Named("Q4_0_8_8"),
            34 => return TypeId::Named("TQ1_0"),
            35 => return TypeId::Named("TQ2_0"),
            36 => return TypeId::Named("IQ4_NL_4_4"),
            37 => return TypeId::Named("IQ4_NL_4_8"),
            38 => return TypeId::Named("IQ4_NL_8_8"),
            39 => return TypeId::Named("MXFP4"),
            40 => return TypeId::Named("NVFP4"),
            41 => return TypeId::Named("Q1_0"),
            _ => return TypeId::Unknown,
        })
    }
}

/// Runs `read` over the blocks of `bytes`, in parallel.
fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]) + Sync,
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (rows, unfilled) = out.as_chunks_mut::<ELEMENTS>();
    assert!(rest.is_empty() && unfilled.is_empty() && blocks.len() == rows.len(), "whole blocks, one for one");
    // A task of at least 16,384 elements costs more than starting it.
    blocks.par_iter().zip(rows).with_min_len(16_384 / ELEMENTS).for_each(|(block, out)| read(block, out));
}

/// The little-endian f16 at byte `at` of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d · q`; f16 d, 32 × i8 q.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(q as i8);
    }
}

/// `d · (q − 8)`; byte i holds element i in its low and element 16 + i in its high half.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, &pair) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(pair & 15) - 8.0);
        out[i + 16] = d * (f32::from(pair >> 4) - 8.0);
    }
}

/// `d · q + m`; halves as in [`q4_0`].
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &pair) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(pair & 15) + m;
        out[i + 16] = d * f32::from(pair >> 4) + m;
    }
}

/// `d · (q − 16)`; the fifth bit of element i is bit i of a little-endian u32.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    five_bits(&block[2..6], &block[6..], out, |q| d * (f32::from(q) - 16.0));
}

/// `d · q + m`; bits as in [`q5_0`].
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..8], &block[8..], out, |q| d * f32::from(q) + m);
}

fn five_bits(fifth: &[u8], low: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let fifth_bit = |i: usize| (fifth[i / 8] >> (i % 8) & 1) << 4;
    for (i, &pair) in low.iter().enumerate() {
        out[i] = value(pair & 15 | fifth_bit(i));
        out[i + 16] = value(pair >> 4 | fifth_bit(i + 16));
    }
}

/// `(d · scale) · q − (dmin · min)`, groups of 32; of every 32 bytes the low halves are one group and the high halves the next.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, low) = (&block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bit_pair(scales, group);
        let (scale, min) = (d * scale, dmin * min);
        for (i, out) in out.iter_mut().enumerate() {
            let q = low[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// As [`q4_k`]; bit g of byte i in `high` is the fifth bit of element i of group g.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, low) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bit_pair(scales, group);
        let (scale, min) = (d * scale, dmin * min);
        for (i, out) in out.iter_mut().enumerate() {
            let q = low[group / 2 * 32 + i] >> (group % 2 * 4) & 15 | (high[i] >> group & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// Scale and minimum of one of the eight groups of a K block, 6 bits each, from their 12 bytes.
///
/// Groups 0–3 keep theirs in the low 6 bits of bytes g and g + 4. Groups 4–7 keep the low four bits of both in byte g + 4, and the
/// upper two in the top of bytes g − 4 and g.
fn six_bit_pair(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        (scales[group + 4] & 15 | scales[group - 4] >> 6 << 4, scales[group + 4] >> 4 | scales[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `(d · scale) · (q − 32)`, groups of 16. The two halves of 128 elements are laid out alike: element 32·k + i has its low four bits
/// in byte i + 32·(k mod 2), upper half for k ≥ 2, and its high two bits in bits 2k of byte i.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (at, out) in out.iter_mut().enumerate() {
        let (half, k, i) = (at / 128, at / 32 % 4, at % 32);
        let low = low[half * 64 + k % 2 * 32 + i] >> (k / 2 * 4) & 15;
        let high = high[half * 32 + i] >> (2 * k) & 3;
        *out = d * f32::from(scales[at / 16] as i8) * (f32::from(low | high << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::GgufFile;
    use super::*;

    /// One of each type with gguf-py's values beside it, made by `tests/golden/make_gguf_blocks.py`.
    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf/blocks.gguf");

    #[test]
    fn every_type_reads_as_gguf_py_reads_it_bit_for_bit() {
        let file = GgufFile::open(GOLDEN).unwrap();
        for kind in READABLE {
            let found = file.tensor_f32(kind.name()).unwrap();
            let expected = file.tensor_f32(&format!("{}.expected", kind.name())).unwrap();
            assert_eq!(file.tensor(kind.name()).unwrap().kind, kind);
            assert!(found.len() >= 64, "{} has at least two blocks or 64 floats", kind.name());
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{}", kind.name());
        }
    }

    #[test]
    fn a_q4_1_block_worked_by_hand() {
        let mut block = [0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-3.0).to_le_bytes());
        block[4] = 0xf1; // element 0 is 1, element 16 is 15
        let mut out = [0.0; 32];
        q4_1(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (0.5 - 3.0, 7.5 - 3.0, -3.0));
    }

    #[test]
    fn the_sizes_are_those_of_the_blocks_read() {
        for kind in READABLE {
            let mut out = vec![0.0; kind.block_elements() * 3];
            dequantize(kind, &vec![0; kind.block_bytes() * 3], &mut out);
        }
    }
}
