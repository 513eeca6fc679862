//! Matrices of integers as the kernels want them: sixteen rows side by side.
//!
//! A tile is sixteen rows. It is one stream of 64-byte lines, read from front to back by every product, group after group:
//!
//! ```text
//! scales of the group            16 × f32; where the file has f16, 16 × f16 of this group and 16 × f16 of the next
//! its blocks of 32 columns, each
//!   8 bits: line k (0 … 7)       columns 4k … 4k+3 of row 0, of row 1, … of row 15, as q + 128
//!   4 bits: line k (0 … 3)       columns 4k … 4k+3 in the low halves, 16+4k … 16+4k+3 in the high halves, as q + 8
//! ```
//!
//! The last block of a group is padded with zeros where the group is no multiple of 32, the last tile with rows of zeros. One
//! layout serves every instruction set: four columns of a row are what one lane of an integer product takes, and four, eight or
//! sixteen rows are what a register holds.
//!
//! Scales stay inside the stream: with those of a tile at its head, one thread of an AMD Zen 4 read half as many bytes per second.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use compressor_format::{QuantizedMatrix, Values};

use crate::half::f16_to_f32;
use crate::kernels::lines::{Arena, Line, Lines};
use crate::kernels::{BLOCK, LANES, Simd};
use crate::pool::Pool;

/// Integers with their scales, repacked.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bits: Bits,
    /// Columns that share a scale; divides `columns`.
    pub(crate) group: usize,
    /// Scales are f16, of two groups in a line.
    half_scales: bool,
    lines: Lines,
    /// `[tiles, groups, LANES]`, where there are any.
    pub(crate) zero_points: Option<Vec<i8>>,
}

/// Width of an integer here: the narrowest that holds those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Four,
    Eight,
}

impl Bits {
    /// What is added to an integer to store it without a sign.
    pub(crate) fn offset(self) -> i32 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// Lines of one block.
    pub(crate) fn lines(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// How the columns of a matrix are split into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) columns: usize,
    /// Columns after which a block ends even if it is not full.
    pub(crate) group: usize,
}

impl Blocks {
    /// Blocks of one row.
    pub(crate) fn count(self) -> usize {
        self.columns / self.group * self.group.div_ceil(BLOCK)
    }
}

impl Packed {
    /// Repacks a matrix.
    pub(crate) fn new(matrix: &QuantizedMatrix, pool: &Pool, arena: &Arena) -> Self {
        let mut packed = Self::empty(matrix);
        let (tiles, groups) = (packed.tiles(), packed.groups());
        packed.zero_points = matrix.zero_points.as_ref().map(|points| {
            let mut tiled = vec![0; tiles * groups * LANES];
            for (row, points) in points.chunks_exact(groups).enumerate() {
                for (group, point) in points.iter().enumerate() {
                    tiled[(row / LANES * groups + group) * LANES + row % LANES] = *point;
                }
            }
            tiled
        });
        let tile_lines = packed.tile_lines();
        let mut lines = arena.lines(tiles * tile_lines);
        let tasks: Vec<_> = lines.chunks_mut(TILES_PER_TASK * tile_lines).enumerate().collect();
        pool.for_each(tasks, &|(task, lines)| {
            for (tile, lines) in lines.chunks_exact_mut(tile_lines).enumerate() {
                packed.fill(matrix, TILES_PER_TASK * task + tile, lines);
            }
        });
        packed.lines = lines;
        packed
    }

    /// Lines that a matrix takes.
    pub(crate) fn lines_of(matrix: &QuantizedMatrix) -> usize {
        let packed = Self::empty(matrix);
        packed.tiles() * packed.tile_lines()
    }

    /// The layout of a matrix without its lines and zero points.
    fn empty(matrix: &QuantizedMatrix) -> Self {
        Self {
            rows: matrix.rows,
            columns: matrix.columns,
            bits: if matrix.scheme.bits <= 4 { Bits::Four } else { Bits::Eight },
            group: matrix.group_size(),
            half_scales: matrix.scales.stored_f16().is_some(),
            lines: Lines::default(),
            zero_points: None,
        }
    }

    /// Scales of one row.
    pub(crate) fn groups(&self) -> usize {
        self.columns / self.group
    }

    /// Sixteen rows each, the last one padded.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// How the columns are split.
    pub(crate) fn blocks(&self) -> Blocks {
        // Where groups are whole blocks, all matrices of this width are split alike and can share their activations.
        let group = if self.group.is_multiple_of(BLOCK) { self.columns } else { self.group };
        Blocks { columns: self.columns, group }
    }

    /// Lines of the blocks of one group of one tile.
    fn group_lines(&self) -> usize {
        self.group.div_ceil(BLOCK) * self.bits.lines()
    }

    /// Groups that share a line of scales.
    fn groups_per_line(&self) -> usize {
        if self.half_scales { 2 } else { 1 }
    }

    /// Lines of one tile.
    fn tile_lines(&self) -> usize {
        self.groups().div_ceil(self.groups_per_line()) + self.groups() * self.group_lines()
    }

    /// The lines of one tile.
    pub(crate) fn tile(&self, tile: usize) -> &[Line] {
        &self.lines[tile * self.tile_lines()..][..self.tile_lines()]
    }

    /// Where one group of a tile lies: the line of its scales, its place in that line, the first line of its blocks.
    #[inline(always)]
    fn place(&self, group: usize) -> (usize, usize, usize) {
        let (line, at) = (group / self.groups_per_line(), group % self.groups_per_line());
        let scales = line + (group - at) * self.group_lines();
        (scales, at, scales + 1 + at * self.group_lines())
    }

    /// The scales and the blocks of one group, from the lines of its tile.
    #[inline(always)]
    pub(crate) fn group<'a>(&self, tile: &'a [Line], group: usize) -> (GroupScales<'a>, &'a [Line]) {
        let (scales, at, blocks) = self.place(group);
        let scales = match self.half_scales {
            true => GroupScales::F16(&tile[scales].halves()[at]),
            false => GroupScales::F32(tile[scales].floats()),
        };
        (scales, &tile[blocks..][..self.group_lines()])
    }

    /// The zero points of one group of one tile.
    pub(crate) fn tile_zero_points(&self, tile: usize) -> Option<&[[i8; LANES]]> {
        let points = self.zero_points.as_ref()?.as_chunks().0;
        Some(&points[tile * self.groups()..][..self.groups()])
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.lines) + self.zero_points.as_ref().map_or(0, Vec::len)
    }

    /// Writes one row as the real numbers it stands for.
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (self.tile(row / LANES), row % LANES);
        let points = self.tile_zero_points(row / LANES);
        for (group, out) in out.chunks_exact_mut(self.group).enumerate() {
            let (scales, blocks) = self.group(tile, group);
            let scale = scales.of_row(lane);
            let offset = self.bits.offset() + points.map_or(0, |points| i32::from(points[group][lane]));
            for (block, out) in blocks.chunks_exact(self.bits.lines()).zip(out.chunks_mut(BLOCK)) {
                for (column, out) in out.iter_mut().enumerate() {
                    let integer = match self.bits {
                        Bits::Eight => block[column / 4].bytes()[4 * lane + column % 4],
                        Bits::Four => {
                            let byte = block[column % 16 / 4].bytes()[4 * lane + column % 4];
                            if column < 16 { byte & 15 } else { byte >> 4 }
                        }
                    };
                    *out = (i32::from(integer) - offset) as f32 * scale;
                }
            }
        }
    }

    /// Fills the lines of one tile.
    fn fill(&self, matrix: &QuantizedMatrix, tile: usize, lines: &mut [Line]) {
        let groups = self.groups();
        let stored_scales = matrix.scales.stored_f16();
        for lane in 0..LANES {
            let row = tile * LANES + lane;
            let whole_words = self.group.is_multiple_of(BLOCK);
            let stored = (row < self.rows).then(|| Row::of(matrix, row));
            for group in 0..groups {
                let (scales, place, first) = self.place(group);
                if row < self.rows {
                    let at = row * groups + group;
                    match stored_scales {
                        Some(stored) => lines[scales].halves_mut()[place][lane] = u16::from_le_bytes(stored[at]),
                        None => lines[scales].floats_mut()[lane] = matrix.scales.get(at),
                    }
                }
                let blocks = &mut lines[first..][..self.group_lines()];
                for (block, lines) in blocks.chunks_exact_mut(self.bits.lines()).enumerate() {
                    let at = group * self.group + block * BLOCK;
                    match (&stored, self.bits) {
                        (Some(Row::Nibbles(stored)), Bits::Four) if whole_words => {
                            let bytes: &[u8; 16] = stored[at / 2..].first_chunk().expect("a whole block");
                            fill_nibbles(bytes, lane, lines);
                        }
                        (Some(Row::Bytes(stored)), Bits::Eight) if whole_words => {
                            for (line, four) in lines.iter_mut().zip(stored[at..].as_chunks::<4>().0) {
                                line.words_mut()[lane] = u32::from_le_bytes(*four).to_le();
                            }
                        }
                        (Some(Row::Signed(stored)), Bits::Eight) if whole_words => {
                            for (line, four) in lines.iter_mut().zip(stored[at..].as_chunks::<4>().0) {
                                line.words_mut()[lane] = (u32::from_le_bytes(*four) ^ 0x8080_8080).to_le();
                            }
                        }
                        (stored, bits) => {
                            let left = self.group - block * BLOCK;
                            for column in 0..BLOCK {
                                let at = at + column;
                                let integer = match stored {
                                    Some(row) if column < left => (row.integer(at) + bits.offset()) as u8,
                                    _ => bits.offset() as u8,
                                };
                                match bits {
                                    Bits::Eight => lines[column / 4].bytes_mut()[4 * lane + column % 4] = integer,
                                    Bits::Four => {
                                        let byte = &mut lines[column % 16 / 4].bytes_mut()[4 * lane + column % 4];
                                        *byte |= integer << (column / 16 * 4);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The integers of one row.
enum Row<'a> {
    /// Two in a byte, as `q + 8`.
    Nibbles(&'a [u8]),
    /// As `q + 128`.
    Bytes(&'a [u8]),
    /// As they are.
    Signed(Cow<'a, [u8]>),
}

impl<'a> Row<'a> {
    fn of(matrix: &'a QuantizedMatrix, row: usize) -> Self {
        let (Values::Packed(bytes) | Values::Signed(bytes)) = &matrix.values;
        let row_bytes = bytes.len() / matrix.rows;
        let stored = &bytes[row * row_bytes..][..row_bytes];
        match (&matrix.values, matrix.scheme.bits) {
            (Values::Signed(_), _) => Self::Signed(Cow::Borrowed(stored)),
            (Values::Packed(_), 4) => Self::Nibbles(stored),
            (Values::Packed(_), 8) => Self::Bytes(stored),
            // Widths that cross bytes.
            (Values::Packed(_), _) => Self::Signed(matrix.row_integers(row).into_iter().map(|q| q as u8).collect()),
        }
    }

    fn integer(&self, column: usize) -> i32 {
        match self {
            Self::Nibbles(bytes) => i32::from((bytes[column / 2] >> (column % 2 * 4)) & 15) - Bits::Four.offset(),
            Self::Bytes(bytes) => i32::from(bytes[column]) - Bits::Eight.offset(),
            Self::Signed(bytes) => i32::from(bytes[column] as i8),
        }
    }
}

/// The scales of one group of a tile.
#[derive(Clone, Copy)]
pub(crate) enum GroupScales<'a> {
    F32(&'a [f32; LANES]),
    F16(&'a [u16; LANES]),
}

impl GroupScales<'_> {
    #[inline(always)]
    pub(crate) fn load<S: Simd>(self, simd: S) -> S::F32 {
        match self {
            Self::F32(scales) => simd.load(scales),
            Self::F16(scales) => simd.load_f16(scales),
        }
    }

    fn of_row(self, lane: usize) -> f32 {
        match self {
            Self::F32(scales) => scales[lane],
            Self::F16(scales) => f16_to_f32(scales[lane]),
        }
    }
}

/// Tiles that one task repacks.
const TILES_PER_TASK: usize = 4;

/// A block of one row: in the file, element `2i` is the low half of byte `i`.
fn fill_nibbles(bytes: &[u8; 16], lane: usize, lines: &mut [Line]) {
    const LOW_HALVES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    let [first, second] = bytes.as_chunks().0 else { unreachable!("sixteen bytes are two times eight") };
    let (first, second) = (u64::from_le_bytes(*first), u64::from_le_bytes(*second));
    // Elements of even and of odd number, those of the first half low and those of the second half high.
    let even = (first & LOW_HALVES | (second & LOW_HALVES) << 4).to_le_bytes();
    let odd = ((first >> 4) & LOW_HALVES | second & !LOW_HALVES).to_le_bytes();
    for ((line, even), odd) in lines.iter_mut().zip(even.as_chunks::<2>().0).zip(odd.as_chunks::<2>().0) {
        line.words_mut()[lane] = u32::from_le_bytes([even[0], odd[0], even[1], odd[1]]).to_le();
    }
}
