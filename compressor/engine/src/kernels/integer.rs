//! Products of packed integers with activations, rounded to INT8 or not.
//!
//! With INT8 activations, `out = Σ_b x_scale[b] · scale[b] · (Σ_i q[i] · x[i] − zero_point · Σ_i x[i])`: the sums inside a block
//! are exact, and blocks are added one after the other, so a row's result is the same bits alone or inside a matrix product.
//!
//! A few blocks of a vector have scales far above the others', and most of its rounding error. What rounding leaves over of them
//! is rounded once more and multiplied as a block of its own, after all others: 16 bits where they count. Dettmers et al.,
//! "LLM.int8()", 2022, section 3 keep columns with outliers in 16 bits; here it is decided for each block of each token.

use alloc::vec;
use alloc::vec::Vec;

use super::lines::Line;
use super::view::ViewMut;
use super::{BLOCK, Kernel, LANES, Simd, padded};
use crate::packed::{Bits, Packed};

/// Activations of one block, rounded to INT8: `real = scale · integer`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Rounded {
    pub(crate) integers: [i8; BLOCK],
    pub(crate) scale: f32,
    /// `−Σ` of the integers: what one unit of a zero point adds.
    pub(crate) minus_sum: i32,
    /// `−8 Σ` and `−128 Σ`: what takes back the offset of weights stored without a sign, in 4 and in 8 bits.
    pub(crate) starts: [i32; 2],
}

impl Rounded {
    pub(crate) const ZERO: Self = Self { integers: [0; BLOCK], scale: 0.0, minus_sum: 0, starts: [0; 2] };

    /// Fills in what follows from the integers.
    #[inline(always)]
    pub(crate) fn add_up(&mut self) {
        let mut sum = 0;
        for q in self.integers {
            sum += i32::from(q);
        }
        self.minus_sum = -sum;
        self.starts = [-8 * sum, -128 * sum];
    }
}

/// What the rounding of one block left over, itself rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    pub(crate) block: usize,
    pub(crate) rounded: Rounded,
}

/// Vectors of rounded activations.
#[derive(Clone, Copy)]
pub(crate) struct Vectors<'a> {
    /// `[tokens, blocks]`
    pub(crate) blocks: &'a [Rounded],
    /// Of each token, in the order of the blocks.
    pub(crate) rests: &'a [Vec<Rest>],
}

/// How far ahead of a product its stream of lines is fetched: some 2.5 KB.
const AHEAD: usize = 40;

/// One line in so many is not fetched ahead: the processor finds it missing and goes on fetching by itself. Where every line of
/// INT8 weights was asked for, one thread of an AMD Zen 4 read 21 GB/s instead of 27.
const LEFT_OUT: usize = 4;

/// Rows of whole tiles times each of some vectors of rounded activations.
pub(crate) struct MultiplyRounded<'a> {
    pub(crate) matrix: &'a Packed,
    pub(crate) first_tile: usize,
    pub(crate) x: Vectors<'a>,
    /// `[tokens, some rows]`, those of the tiles from the first one on.
    pub(crate) out: ViewMut<'a>,
}

impl Kernel for MultiplyRounded<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let matrix = self.matrix;
        let blocks = matrix.blocks().count();
        let tiles = self.out.columns().div_ceil(LANES);
        if let [rests] = self.x.rests {
            for at in 0..tiles {
                let (tile, x) = (self.first_tile + at, (self.x.blocks, rests.as_slice()));
                let sums = match (matrix.bits, matrix.tile_zero_points(tile)) {
                    (Bits::Four, None) => one_vector::<S, true, false>(simd, matrix, tile, x, &[]),
                    (Bits::Four, Some(points)) => one_vector::<S, true, true>(simd, matrix, tile, x, points),
                    (Bits::Eight, None) => one_vector::<S, false, false>(simd, matrix, tile, x, &[]),
                    (Bits::Eight, Some(points)) => one_vector::<S, false, true>(simd, matrix, tile, x, points),
                };
                write(simd, sums, &mut self.out, 0, at);
            }
            return;
        }
        let mut pair = [Unpacked::new(matrix), Unpacked::new(matrix)];
        let together = if S::WIDE { 2 } else { 1 };
        for tile in (0..tiles).step_by(together) {
            let here = together.min(tiles - tile);
            for (at, unpacked) in pair.iter_mut().enumerate().take(here) {
                unpacked.fill(simd, matrix, self.first_tile + tile + at);
            }
            let [first, second] = &pair;
            let (zero_points, out) = (matrix.zero_points.is_some(), &mut self.out);
            match (here, zero_points) {
                (2, false) => all_vectors::<S, 2, false>(simd, [first, second], self.x, out, tile, blocks),
                (2, true) => all_vectors::<S, 2, true>(simd, [first, second], self.x, out, tile, blocks),
                (_, false) => all_vectors::<S, 1, false>(simd, [first], self.x, out, tile, blocks),
                (_, true) => all_vectors::<S, 1, true>(simd, [first], self.x, out, tile, blocks),
            }
        }
    }
}

/// Some tiles times all vectors, as many at once as keep their sums in registers.
#[inline(always)]
fn all_vectors<S: Simd, const R: usize, const ZERO_POINTS: bool>(
    simd: S,
    tiles: [&Unpacked; R],
    x: Vectors<'_>,
    out: &mut ViewMut<'_>,
    column: usize,
    blocks: usize,
) {
    let mut token = 0;
    while token < x.rests.len() {
        let (x, at) = (Vectors { blocks: &x.blocks[token * blocks..], rests: &x.rests[token..] }, (token, column));
        token += match x.rests.len() {
            6.. if S::WIDE => many_vectors::<S, R, ZERO_POINTS, 6>(simd, tiles, x, out, at),
            4.. => many_vectors::<S, R, ZERO_POINTS, 4>(simd, tiles, x, out, at),
            2.. => many_vectors::<S, R, ZERO_POINTS, 2>(simd, tiles, x, out, at),
            _ => many_vectors::<S, R, ZERO_POINTS, 1>(simd, tiles, x, out, at),
        };
    }
    for (token, rests) in x.rests.iter().enumerate().filter(|(_, rests)| !rests.is_empty()) {
        add_rests::<S, R, ZERO_POINTS>(simd, tiles, rests, out, (token, column));
    }
}

/// Adds the products of some tiles with the rests of one vector.
#[inline(always)]
fn add_rests<S: Simd, const R: usize, const ZERO_POINTS: bool>(
    simd: S,
    tiles: [&Unpacked; R],
    rests: &[Rest],
    out: &mut ViewMut<'_>,
    (token, column): (usize, usize),
) {
    let mut totals = [simd.splat(0.0); R];
    let mut weights: [&[[Line; 8]]; R] = [&[]; R];
    for tile in 0..R {
        totals[tile] = simd.load(&padded(lanes_of(out.row(token), column + tile), 0.0));
        weights[tile] = tiles[tile].weights.as_chunks().0;
    }
    for Rest { block, rounded: x } in rests {
        let mut block_weights = [bytes(&weights[0][*block]); R];
        for tile in 1..R {
            block_weights[tile] = bytes(&weights[tile][*block]);
        }
        let dots = simd.dots(block_weights, [&x.integers], [start_of_bytes(simd, x)]);
        for tile in 0..R {
            let dots = match ZERO_POINTS {
                true => without(simd, dots[tile][0], &tiles[tile].zero_points[*block], x),
                false => dots[tile][0],
            };
            let scale = simd.mul(simd.load(tiles[tile].scales[*block].floats()), simd.splat(x.scale));
            totals[tile] = simd.mul_add(simd.to_f32(dots), scale, totals[tile]);
        }
    }
    for (tile, total) in totals.into_iter().enumerate() {
        write(simd, total, out, token, column + tile);
    }
}

/// The outputs of one tile.
fn lanes_of(out: &[f32], tile: usize) -> &[f32] {
    let out = &out[tile * LANES..];
    &out[..out.len().min(LANES)]
}

/// One tile times one vector, straight from the stream.
#[inline(always)]
fn one_vector<S: Simd, const NIBBLES: bool, const ZERO_POINTS: bool>(
    simd: S,
    matrix: &Packed,
    tile: usize,
    (x, rests): (&[Rounded], &[Rest]),
    zero_points: &[[i8; LANES]],
) -> S::F32 {
    let tile = matrix.tile(tile);
    let mut total = simd.splat(0.0);
    let per_block = if NIBBLES { 4 } else { 8 };
    let per_group = matrix.group.div_ceil(BLOCK);
    for (group, x) in x.chunks_exact(per_group).enumerate() {
        let (scales, blocks) = matrix.group(tile, group);
        let scales = scales.load(simd);
        for (block, x) in blocks.chunks_exact(per_block).zip(x) {
            let ahead = block.as_ptr().wrapping_add(AHEAD).cast::<u8>();
            for line in (0..per_block).filter(|line| line % LEFT_OUT != 0) {
                simd.prefetch(ahead.wrapping_add(64 * line));
            }
            let zero_points = if ZERO_POINTS { Some(&zero_points[group]) } else { None };
            let dots = one_block::<S, NIBBLES>(simd, block, x, zero_points);
            total = simd.mul_add(simd.to_f32(dots), simd.mul(scales, simd.splat(x.scale)), total);
        }
    }
    for Rest { block, rounded: x } in rests {
        let group = block / per_group;
        let (scales, blocks) = matrix.group(tile, group);
        let block = &blocks[block % per_group * per_block..][..per_block];
        let zero_points = if ZERO_POINTS { Some(&zero_points[group]) } else { None };
        let dots = one_block::<S, NIBBLES>(simd, block, x, zero_points);
        total = simd.mul_add(simd.to_f32(dots), simd.mul(scales.load(simd), simd.splat(x.scale)), total);
    }
    total
}

/// The sums of one block of a tile.
#[inline(always)]
fn one_block<S: Simd, const NIBBLES: bool>(simd: S, block: &[Line], x: &Rounded, zero_points: Option<&[i8; LANES]>) -> S::I32 {
    let dots = match NIBBLES {
        true => simd.dot_nibbles(bytes(block), &x.integers, simd.splat_i32(x.starts[0])),
        false => simd.dots([bytes(block)], [&x.integers], [start_of_bytes(simd, x)])[0][0],
    };
    match zero_points {
        Some(points) => without(simd, dots, points, x),
        None => dots,
    }
}

/// Sums less what the zero points add to them.
#[inline(always)]
fn without<S: Simd>(simd: S, dots: S::I32, zero_points: &[i8; LANES], x: &Rounded) -> S::I32 {
    simd.add_i32(dots, simd.mul_i32(simd.load_i8_as_i32(zero_points), simd.splat_i32(x.minus_sum)))
}

/// What a product with bytes begins with, so that their offset is taken back.
#[inline(always)]
fn start_of_bytes<S: Simd>(simd: S, x: &Rounded) -> S::I32 {
    simd.splat_i32(if S::SIGNED { 0 } else { x.starts[1] })
}

/// Lines as an array of bytes of their length.
#[inline(always)]
fn bytes<const N: usize>(lines: &[Line]) -> &[u8; N] {
    bytemuck::cast_slice(lines).first_chunk().expect("as many lines as a block has")
}

/// A tile with one integer in a byte as `q + 128`, for products with many vectors.
struct Unpacked {
    /// `[blocks, 8]`
    weights: Vec<Line>,
    /// Of each block, with the group's scale repeated.
    scales: Vec<Line>,
    /// Of each block; empty where there are none.
    zero_points: Vec<[i8; LANES]>,
}

impl Unpacked {
    fn new(matrix: &Packed) -> Self {
        let blocks = matrix.blocks().count();
        Self {
            weights: vec![Line::ZERO; blocks * Bits::Eight.lines()],
            scales: vec![Line::ZERO; blocks],
            zero_points: Vec::new(),
        }
    }

    #[inline(always)]
    fn fill<S: Simd>(&mut self, simd: S, matrix: &Packed, tile: usize) {
        let per_group = matrix.group.div_ceil(BLOCK);
        let lines = matrix.tile(tile);
        let out = self.weights.chunks_exact_mut(per_group * Bits::Eight.lines());
        for (group, (out, out_scales)) in out.zip(self.scales.chunks_exact_mut(per_group)).enumerate() {
            let (scales, blocks) = matrix.group(lines, group);
            let scales = scales.load(simd);
            for line in out_scales {
                simd.store(scales, line.floats_mut());
            }
            let blocks = blocks.chunks_exact(matrix.bits.lines());
            for (block, out) in blocks.zip(out.chunks_exact_mut(Bits::Eight.lines())) {
                match matrix.bits {
                    Bits::Eight => out.copy_from_slice(block),
                    Bits::Four => {
                        let (low, high) = out.split_at_mut(4);
                        for (line, (low, high)) in block.iter().zip(low.iter_mut().zip(high)) {
                            for (byte, (low, high)) in line.bytes().iter().zip(low.bytes_mut().iter_mut().zip(high.bytes_mut())) {
                                *low = (byte & 15) + OFFSET_OF_NIBBLES;
                                *high = (byte >> 4) + OFFSET_OF_NIBBLES;
                            }
                        }
                    }
                }
            }
        }
        if let Some(points) = matrix.tile_zero_points(tile) {
            self.zero_points.clear();
            self.zero_points.extend(points.iter().flat_map(|points| core::iter::repeat_n(*points, per_group)));
        }
    }

    /// What is subtracted from the stored bytes of a block: their offset and the zero points.
    #[inline(always)]
    fn offset<S: Simd>(&self, simd: S, block: usize) -> S::F32 {
        let offset = simd.splat(Bits::Eight.offset() as f32);
        match self.zero_points.get(block) {
            Some(points) => simd.add(offset, simd.load_i8(points)),
            None => offset,
        }
    }
}

/// From `q + 8` to `q + 128`.
const OFFSET_OF_NIBBLES: u8 = 120;

/// `R` tiles times the first `T` vectors, the sums in registers; returns `T`.
#[inline(always)]
fn many_vectors<S: Simd, const R: usize, const ZERO_POINTS: bool, const T: usize>(
    simd: S,
    tiles: [&Unpacked; R],
    x: Vectors<'_>,
    out: &mut ViewMut<'_>,
    (first_token, column): (usize, usize),
) -> usize {
    let blocks = tiles[0].scales.len();
    let mut rows: [&[Rounded]; T] = [&[]; T];
    for (row, x) in rows.iter_mut().zip(x.blocks.chunks_exact(blocks)) {
        *row = x;
    }
    let mut weights: [&[[Line; 8]]; R] = [&[]; R];
    let mut scales: [&[Line]; R] = [&[]; R];
    for tile in 0..R {
        weights[tile] = &tiles[tile].weights.as_chunks().0[..blocks];
        scales[tile] = &tiles[tile].scales[..blocks];
    }
    let mut totals = [[simd.splat(0.0); T]; R];
    for block in 0..blocks {
        let mut start = [simd.splat_i32(0); T];
        let mut integers = [&Rounded::ZERO.integers; T];
        for token in 0..T {
            let x = &rows[token][block];
            start[token] = start_of_bytes(simd, x);
            integers[token] = &x.integers;
        }
        let mut block_weights = [bytes(&weights[0][block]); R];
        for tile in 1..R {
            block_weights[tile] = bytes(&weights[tile][block]);
        }
        let mut dots = simd.dots(block_weights, integers, start);
        if ZERO_POINTS {
            for tile in 0..R {
                for token in 0..T {
                    let points = &tiles[tile].zero_points[block];
                    dots[tile][token] = without(simd, dots[tile][token], points, &rows[token][block]);
                }
            }
        }
        let mut block_scales = [simd.splat(0.0); R];
        for tile in 0..R {
            block_scales[tile] = simd.load(scales[tile][block].floats());
        }
        for token in 0..T {
            let scale = simd.splat(rows[token][block].scale);
            for tile in 0..R {
                let scale = simd.mul(block_scales[tile], scale);
                totals[tile][token] = simd.mul_add(simd.to_f32(dots[tile][token]), scale, totals[tile][token]);
            }
        }
    }
    for (tile, totals) in totals.into_iter().enumerate() {
        for (token, total) in totals.into_iter().enumerate() {
            write(simd, total, out, first_token + token, column + tile);
        }
    }
    T
}

/// Writes the rows of a tile that the matrix has.
#[inline(always)]
fn write<S: Simd>(simd: S, values: S::F32, out: &mut ViewMut<'_>, token: usize, tile: usize) {
    let out = &mut out.row(token)[tile * LANES..];
    match out.first_chunk_mut() {
        Some(out) => simd.store(values, out),
        None => {
            let mut lanes = [0.0; LANES];
            simd.store(values, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// Rows of whole tiles times one vector that is not rounded.
pub(crate) struct MultiplyReal<'a> {
    pub(crate) matrix: &'a Packed,
    pub(crate) first_tile: usize,
    /// `[columns]`
    pub(crate) x: &'a [f32],
    /// Those rows of the tiles that there are.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for MultiplyReal<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let matrix = self.matrix;
        let mut unpacked = Unpacked::new(matrix);
        let per_group = matrix.group.div_ceil(BLOCK);
        for (tile, out) in self.out.chunks_mut(LANES).enumerate() {
            unpacked.fill(simd, matrix, self.first_tile + tile);
            let mut total = simd.splat(0.0);
            for (group, x) in self.x.chunks_exact(matrix.group).enumerate() {
                let mut sums = [simd.splat(0.0); 4];
                let first = group * per_group;
                let offset = unpacked.offset(simd, first);
                for (lines, x) in unpacked.weights[8 * first..].chunks_exact(8).zip(x.chunks(BLOCK)) {
                    for (line, x) in lines.iter().zip(x.chunks(4)) {
                        for (byte, x) in x.iter().enumerate() {
                            let weight = simd.sub(simd.load_column(line.bytes(), byte), offset);
                            sums[byte] = simd.mul_add(weight, simd.splat(*x), sums[byte]);
                        }
                    }
                }
                let sum = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
                total = simd.mul_add(sum, simd.load(unpacked.scales[first].floats()), total);
            }
            match out.first_chunk_mut() {
                Some(out) => simd.store(total, out),
                None => {
                    let mut lanes = [0.0; LANES];
                    simd.store(total, &mut lanes);
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}

/// Some rows of whole tiles as the real numbers they stand for, `[rows, columns]`.
#[cfg(any(feature = "std", test))]
pub(crate) struct Dequantize<'a> {
    pub(crate) matrix: &'a Packed,
    pub(crate) first_tile: usize,
    pub(crate) out: &'a mut [f32],
}

#[cfg(any(feature = "std", test))]
impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let matrix = self.matrix;
        let mut unpacked = Unpacked::new(matrix);
        let per_group = matrix.group.div_ceil(BLOCK);
        for (tile, out) in self.out.chunks_mut(LANES * matrix.columns).enumerate() {
            unpacked.fill(simd, matrix, self.first_tile + tile);
            for group in 0..matrix.groups() {
                let first = group * per_group;
                let offset = unpacked.offset(simd, first);
                let scales = simd.load(unpacked.scales[first].floats());
                for column in 0..matrix.group {
                    let line = &unpacked.weights[8 * (first + column / BLOCK) + column % BLOCK / 4];
                    let weight = simd.sub(simd.load_column(line.bytes(), column % 4), offset);
                    let mut lanes = [0.0; LANES];
                    simd.store(simd.mul(weight, scales), &mut lanes);
                    for (out, lane) in out.chunks_exact_mut(matrix.columns).zip(lanes) {
                        out[group * matrix.group + column] = lane;
                    }
                }
            }
        }
    }
}
