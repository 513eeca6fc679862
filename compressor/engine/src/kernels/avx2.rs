//! The loops with 256-bit vectors.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{QuantizedRow, Storage, scalar};

/// Elements in one vector.
const LANES: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the chunk has as many elements as the load reads.
    dot(a, b, |a: &[f32; LANES]| unsafe { _mm256_loadu_ps(a.as_ptr()) }, scalar::dot_f32)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_bf16(a: &[bf16], b: &[f32]) -> f32 {
    let widen = |a: &[bf16; LANES]| {
        // SAFETY: eight elements of two bytes are the 16 bytes the load reads.
        let bits = unsafe { _mm_loadu_si128(a.as_ptr().cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    };
    dot(a, b, widen, scalar::dot_bf16)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_f16(a: &[f16], b: &[f32]) -> f32 {
    // SAFETY: eight elements of two bytes are the 16 bytes the load reads.
    let widen = |a: &[f16; LANES]| _mm256_cvtph_ps(unsafe { _mm_loadu_si128(a.as_ptr().cast()) });
    dot(a, b, widen, scalar::dot_f16)
}

/// Four sums side by side hide the latency of the fused multiply-add.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<T>(a: &[T], b: &[f32], widen: impl Fn(&[T; LANES]) -> __m256, rest: impl Fn(&[T], &[f32]) -> f32) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let (a_fours, a_vectors) = a_vectors.as_chunks::<4>();
    let (b_fours, b_vectors) = b_vectors.as_chunks::<4>();
    for (a, b) in a_fours.iter().zip(b_fours) {
        for lane in 0..4 {
            sums[lane] = _mm256_fmadd_ps(widen(&a[lane]), load(&b[lane]), sums[lane]);
        }
    }
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        sums[0] = _mm256_fmadd_ps(widen(a), load(b), sums[0]);
    }
    horizontal_sum(sum_of_four(sums)) + rest(a_rest, b_rest)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    let mut sums = _mm256_setzero_si256();
    let (a_vectors, a_rest) = a.as_chunks::<16>();
    let (b_vectors, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        // SAFETY: each chunk has the 16 bytes the load reads.
        let (a, b) = unsafe { (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast())) };
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_cvtepi8_epi16(a), _mm256_cvtepi8_epi16(b)));
    }
    let mut lanes = [0i32; 8];
    // SAFETY: eight sums of four bytes are the 32 bytes the store writes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
    lanes.iter().sum::<i32>() + scalar::dot_i8(a_rest, b_rest)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_quantized(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    if !row.groups_begin_at_bytes() {
        return scalar::dot_quantized(row, x);
    }
    match (row.storage, row.group_size) {
        (Storage::Nibbles, 32) => dot_nibbles::<1>(row, x),
        (Storage::Nibbles, 64) => dot_nibbles::<2>(row, x),
        (Storage::Nibbles, 128) => dot_nibbles::<4>(row, x),
        (Storage::Nibbles, _) => dot_nibbles_of_any_group(row, x),
        (Storage::Unsigned, 32) => dot_bytes::<1>(row, x, |bytes| _mm256_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, 64) => dot_bytes::<2>(row, x, |bytes| _mm256_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, 128) => dot_bytes::<4>(row, x, |bytes| _mm256_cvtepu8_epi32(bytes), 128),
        (Storage::Unsigned, _) => dot_bytes_of_any_group(row, x, |bytes| _mm256_cvtepu8_epi32(bytes), 128),
        (Storage::Signed, _) => dot_bytes_of_any_group(row, x, |bytes| _mm256_cvtepi8_epi32(bytes), 0),
    }
}

/// Groups of `BLOCKS` times 32, known when this is compiled: a group of 32 is short beside the counting around it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_bytes<const BLOCKS: usize>(row: QuantizedRow<'_>, x: &[f32], widen: impl Fn(__m128i) -> __m256i, bias: i32) -> f32 {
    let mut total = _mm256_setzero_ps();
    let mut zero_points = row.zero_points.unwrap_or_default().iter();
    let (bytes, x) = (row.bytes.as_chunks::<32>().0, x.as_chunks::<32>().0);
    let groups = bytes.as_chunks::<BLOCKS>().0.iter().zip(x.as_chunks::<BLOCKS>().0);
    for ((bytes, x), scale) in groups.zip(row.scales) {
        let zero_point = zero_points.next().map_or(0, |point| i32::from(*point));
        let offset = _mm256_set1_epi32(bias + zero_point);
        let mut sums = [_mm256_setzero_ps(); 4];
        for (bytes, x) in bytes.iter().zip(x) {
            sums = add_bytes(bytes, x, &widen, offset, sums);
        }
        total = _mm256_fmadd_ps(sum_of_four(sums), _mm256_set1_ps(*scale), total);
    }
    horizontal_sum(total)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_bytes_of_any_group(row: QuantizedRow<'_>, x: &[f32], widen: impl Fn(__m128i) -> __m256i, bias: i32) -> f32 {
    let mut total = _mm256_setzero_ps();
    let mut rest = 0.0;
    for (group, scale) in row.scales.iter().enumerate() {
        let first = group * row.group_size;
        let offset = _mm256_set1_epi32(bias + row.zero_point(group));
        let (bytes, _) = row.bytes[first..first + row.group_size].as_chunks::<32>();
        let (x_blocks, _) = x[first..first + row.group_size].as_chunks::<32>();
        let mut sums = [_mm256_setzero_ps(); 4];
        for (bytes, x) in bytes.iter().zip(x_blocks) {
            sums = add_bytes(bytes, x, &widen, offset, sums);
        }
        total = _mm256_fmadd_ps(sum_of_four(sums), _mm256_set1_ps(*scale), total);
        let done = first + bytes.len() * 32;
        if done < first + row.group_size {
            rest += scale * scalar::dot_integers(row, group, done..first + row.group_size, x);
        }
    }
    horizontal_sum(total) + rest
}

/// Adds 32 products of integers, each less `offset`, and activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_bytes(
    bytes: &[u8; 32],
    x: &[f32; 32],
    widen: impl Fn(__m128i) -> __m256i,
    offset: __m256i,
    mut sums: [__m256; 4],
) -> [__m256; 4] {
    let (bytes, x) = (bytes.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
    for quarter in 0..4 {
        // SAFETY: each quarter has the eight bytes the load reads.
        let q = widen(unsafe { _mm_loadl_epi64(bytes[quarter].as_ptr().cast()) });
        let q = _mm256_cvtepi32_ps(_mm256_sub_epi32(q, offset));
        sums[quarter] = _mm256_fmadd_ps(q, load(&x[quarter]), sums[quarter]);
    }
    sums
}

/// Groups of `BLOCKS` times 32, as in [`dot_bytes`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_nibbles<const BLOCKS: usize>(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    let mut total = _mm256_setzero_ps();
    let mut zero_points = row.zero_points.unwrap_or_default().iter();
    let (bytes, x) = (row.bytes.as_chunks::<16>().0, x.as_chunks::<32>().0);
    let groups = bytes.as_chunks::<BLOCKS>().0.iter().zip(x.as_chunks::<BLOCKS>().0);
    for ((bytes, x), scale) in groups.zip(row.scales) {
        let zero_point = zero_points.next().copied().unwrap_or(0);
        let mut sums = [_mm256_setzero_ps(); 4];
        for (bytes, x) in bytes.iter().zip(x) {
            sums = add_nibbles(bytes, x, zero_point, sums);
        }
        total = _mm256_fmadd_ps(sum_of_four(sums), _mm256_set1_ps(*scale), total);
    }
    horizontal_sum(total)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_nibbles_of_any_group(row: QuantizedRow<'_>, x: &[f32]) -> f32 {
    let mut total = _mm256_setzero_ps();
    let mut rest = 0.0;
    for (group, scale) in row.scales.iter().enumerate() {
        let first = group * row.group_size;
        let zero_point = row.zero_points.map_or(0, |points| points[group]);
        let (bytes, _) = row.bytes[first / 2..(first + row.group_size) / 2].as_chunks::<16>();
        let (x_blocks, _) = x[first..first + row.group_size].as_chunks::<32>();
        let mut sums = [_mm256_setzero_ps(); 4];
        for (bytes, x) in bytes.iter().zip(x_blocks) {
            sums = add_nibbles(bytes, x, zero_point, sums);
        }
        total = _mm256_fmadd_ps(sum_of_four(sums), _mm256_set1_ps(*scale), total);
        let done = first + bytes.len() * 32;
        if done < first + row.group_size {
            rest += scale * scalar::dot_integers(row, group, done..first + row.group_size, x);
        }
    }
    horizontal_sum(total) + rest
}

/// Adds 32 products of what nibbles stand for, less the zero point, and activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_nibbles(bytes: &[u8; 16], x: &[f32; 32], zero_point: i8, mut sums: [__m256; 4]) -> [__m256; 4] {
    let low_nibble = _mm_set1_epi8(15);
    // A zero point lies within ±8, so that bytes hold every difference.
    let offset = _mm_set1_epi8(8 + zero_point);
    // SAFETY: the array has the 16 bytes the load reads.
    let pairs = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let low = _mm_sub_epi8(_mm_and_si128(pairs, low_nibble), offset);
    let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(pairs), low_nibble), offset);
    // Element 2i is the low nibble of byte i: interleaving the two puts the elements in order.
    let (front, back) = (_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high));
    let quarters = [front, _mm_srli_si128::<8>(front), back, _mm_srli_si128::<8>(back)];
    let x = x.as_chunks::<LANES>().0;
    for quarter in 0..4 {
        let q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quarters[quarter]));
        sums[quarter] = _mm256_fmadd_ps(q, load(&x[quarter]), sums[quarter]);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of_four(sums: [__m256; 4]) -> __m256 {
    _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: the array has as many elements as the load reads.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn horizontal_sum(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dequantize(row: QuantizedRow<'_>, out: &mut [f32]) {
    scalar::dequantize(row, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_bf16(values: &[bf16], out: &mut [f32]) {
    scalar::widen_bf16(values, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_f16(values: &[f16], out: &mut [f32]) {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (out_vectors, out_rest) = out.as_chunks_mut::<LANES>();
    for (values, out) in vectors.iter().zip(out_vectors) {
        // SAFETY: eight halves are the 16 bytes the load reads, eight floats the 32 bytes the store writes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast()))) };
    }
    scalar::widen_f16(rest, out_rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    scalar::add_scaled(out, factor, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn softmax(x: &mut [f32]) {
    scalar::softmax(x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn silu(x: &mut [f32]) {
    scalar::silu(x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gelu_tanh(x: &mut [f32]) {
    scalar::gelu_tanh(x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize_i8(x: &[f32], out: &mut [i8]) -> f32 {
    scalar::quantize_i8(x, out)
}
