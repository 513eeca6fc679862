//! The loops with 512-bit vectors. Half-precision rows and what is short beside the products keep to [`super::avx2`].

use std::arch::x86_64::*;

use half::bf16;

use super::{QuantizedRow, Storage, scalar};

pub(super) use super::avx2::{dot_f16, widen_f16};

/// Elements in one vector.
const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b, |a: &[f32; LANES]| load(a), scalar::dot_f32)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_bf16(a: &[bf16], b: &[f32]) -> f32 {
    let widen = |a: &[bf16; LANES]| {
        // SAFETY: 16 elements of two bytes are the 32 bytes the load reads.
        let bits = unsafe { _mm256_loadu_si256(a.as_ptr().cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    };
    dot(a, b, widen, scalar::dot_bf16)
}

/// Four sums side by side hide the latency of the fused multiply-add.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot<T>(a: &[T], b: &[f32], widen: impl Fn(&[T; LANES]) -> __m512, rest: impl Fn(&[T], &[f32]) -> f32) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let (a_fours, a_vectors) = a_vectors.as_chunks::<4>();
    let (b_fours, b_vectors) = b_vectors.as_chunks::<4>();
    for (a, b) in a_fours.iter().zip(b_fours) {
        for lane in 0..4 {
            sums[lane] = _mm512_fmadd_ps(widen(&a[lane]), load(&b[lane]), sums[lane]);
        }
    }
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        sums[0] = _mm512_fmadd_ps(widen(a), load(b), sums[0]);
    }
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_reduce_add_ps(sum) + rest(a_rest, b_rest)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    let mut sums = _mm512_setzero_si512();
    let (a_vectors, a_rest) = a.as_chunks::<32>();
    let (b_vectors, b_rest) = b.as_chunks::<32>();
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        // SAFETY: each chunk has the 32 bytes the load reads.
        let (a, b) = unsafe { (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())) };
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_cvtepi8_epi16(a), _mm512_cvtepi8_epi16(b)));
    }
    _mm512_reduce_add_epi32(sums) + scalar::dot_i8(a_rest, b_rest)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_quantized(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    if !row.groups_begin_at_bytes() {
        return scalar::dot_quantized(row, x);
    }
    match (row.storage, row.group_size) {
        (Storage::Nibbles, 32) => dot_nibbles::<1>(row, x),
        (Storage::Nibbles, 64) => dot_nibbles::<2>(row, x),
        (Storage::Nibbles, 128) => dot_nibbles::<4>(row, x),
        (Storage::Nibbles, _) => dot_nibbles_of_any_group(row, x),
        (Storage::Unsigned, 32) => dot_bytes::<1>(row, x, |bytes| _mm512_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, 64) => dot_bytes::<2>(row, x, |bytes| _mm512_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, 128) => dot_bytes::<4>(row, x, |bytes| _mm512_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, _) => dot_bytes_of_any_group(row, x, |bytes| _mm512_cvtepu8_epi32(bytes), 128),
        (Storage::Signed, _) => dot_bytes_of_any_group(row, x, |bytes| _mm512_cvtepi8_epi32(bytes), 0),
    }
}

/// Groups of `BLOCKS` times 32, known when this is compiled: a group of 32 is short beside the counting around it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_bytes<const BLOCKS: usize>(row: QuantizedRow<'_>, x: &[f32], widen: impl Fn(__m128i) -> __m512i, bias: i32) -> f32 {
    let mut total = _mm512_setzero_ps();
    let mut zero_points = row.zero_points.unwrap_or_default().iter();
    let (bytes, x) = (row.bytes.as_chunks::<32>().0, x.as_chunks::<32>().0);
    let groups = bytes.as_chunks::<BLOCKS>().0.iter().zip(x.as_chunks::<BLOCKS>().0);
    for ((bytes, x), scale) in groups.zip(row.scales) {
        let zero_point = zero_points.next().map_or(0, |point| i32::from(*point));
        let offset = _mm512_set1_epi32(bias + zero_point);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (bytes, x) in bytes.iter().zip(x) {
            sums = add_bytes(bytes, x, &widen, offset, sums);
        }
        total = _mm512_fmadd_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(*scale), total);
    }
    _mm512_reduce_add_ps(total)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_bytes_of_any_group(row: QuantizedRow<'_>, x: &[f32], widen: impl Fn(__m128i) -> __m512i, bias: i32) -> f32 {
    let mut total = _mm512_setzero_ps();
    let mut rest = 0.0;
    for (group, scale) in row.scales.iter().enumerate() {
        let first = group * row.group_size;
        let offset = _mm512_set1_epi32(bias + row.zero_point(group));
        let (bytes, _) = row.bytes[first..first + row.group_size].as_chunks::<32>();
        let (x_blocks, _) = x[first..first + row.group_size].as_chunks::<32>();
        let mut sums = [_mm512_setzero_ps(); 2];
        for (bytes, x) in bytes.iter().zip(x_blocks) {
            sums = add_bytes(bytes, x, &widen, offset, sums);
        }
        total = _mm512_fmadd_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(*scale), total);
        let done = first + bytes.len() * 32;
        if done < first + row.group_size {
            rest += scale * scalar::dot_integers(row, group, done..first + row.group_size, x);
        }
    }
    _mm512_reduce_add_ps(total) + rest
}

/// Adds 32 products of integers, each less `offset`, and activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_bytes(
    bytes: &[u8; 32],
    x: &[f32; 32],
    widen: impl Fn(__m128i) -> __m512i,
    offset: __m512i,
    mut sums: [__m512; 2],
) -> [__m512; 2] {
    let (bytes, x) = (bytes.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
    for half in 0..2 {
        // SAFETY: each half has the 16 bytes the load reads.
        let q = widen(unsafe { _mm_loadu_si128(bytes[half].as_ptr().cast()) });
        let q = _mm512_cvtepi32_ps(_mm512_sub_epi32(q, offset));
        sums[half] = _mm512_fmadd_ps(q, load(&x[half]), sums[half]);
    }
    sums
}

/// Groups of `BLOCKS` times 32, as in [`dot_bytes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_nibbles<const BLOCKS: usize>(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    let mut totals = [_mm512_setzero_ps(); 2];
    let mut zero_points = row.zero_points.unwrap_or_default().iter();
    let (bytes, x) = (row.bytes.as_chunks::<16>().0, x.as_chunks::<32>().0);
    let groups = bytes.as_chunks::<BLOCKS>().0.iter().zip(x.as_chunks::<BLOCKS>().0);
    for ((bytes, x), scale) in groups.zip(row.scales) {
        let table = meanings(*scale, zero_points.next().copied());
        for (bytes, x) in bytes.iter().zip(x) {
            totals = add_nibbles(bytes, x, table, totals);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(totals[0], totals[1]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot_nibbles_of_any_group(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    let mut totals = [_mm512_setzero_ps(); 2];
    let mut rest = 0.0;
    for (group, scale) in row.scales.iter().enumerate() {
        let first = group * row.group_size;
        let table = meanings(*scale, row.zero_points.map(|points| points[group]));
        let (bytes, _) = row.bytes[first / 2..(first + row.group_size) / 2].as_chunks::<16>();
        let (x_blocks, _) = x[first..first + row.group_size].as_chunks::<32>();
        for (bytes, x) in bytes.iter().zip(x_blocks) {
            totals = add_nibbles(bytes, x, table, totals);
        }
        let done = first + bytes.len() * 32;
        if done < first + row.group_size {
            rest += scale * scalar::dot_integers(row, group, done..first + row.group_size, x);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(totals[0], totals[1])) + rest
}

/// The 16 real numbers that a nibble can mean, in the order of the nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn meanings(scale: f32, zero_point: Option<i8>) -> __m512 {
    let integers = _mm512_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
    let shifted = match zero_point {
        Some(zero_point) => _mm512_sub_ps(integers, _mm512_set1_ps(f32::from(zero_point))),
        None => integers,
    };
    _mm512_mul_ps(shifted, _mm512_set1_ps(scale))
}

/// Adds 32 products of what nibbles mean and activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_nibbles(bytes: &[u8; 16], x: &[f32; 32], table: __m512, totals: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the array has the 16 bytes the load reads.
    let pairs = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    // The look-up reads the lowest four bits of an index and no others, so what stands above the nibble does no harm.
    let high = _mm_srli_epi16::<4>(pairs);
    // Element 2i is the low nibble of byte i: interleaving the two puts the elements in order.
    let front = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(pairs, high)), table);
    let back = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(pairs, high)), table);
    let x = x.as_chunks::<LANES>().0;
    [_mm512_fmadd_ps(front, load(&x[0]), totals[0]), _mm512_fmadd_ps(back, load(&x[1]), totals[1])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: the array has as many elements as the load reads.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dequantize(row: QuantizedRow<'_>, out: &mut [f32]) {
    scalar::dequantize(row, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn widen_bf16(values: &[bf16], out: &mut [f32]) {
    scalar::widen_bf16(values, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    scalar::add_scaled(out, factor, x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn softmax(x: &mut [f32]) {
    scalar::softmax(x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn silu(x: &mut [f32]) {
    scalar::silu(x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn gelu_tanh(x: &mut [f32]) {
    scalar::gelu_tanh(x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn quantize_i8(x: &[f32], out: &mut [i8]) -> f32 {
    scalar::quantize_i8(x, out)
}
