//! Products of dense rows with vectors, and rows as f32.

use super::view::ViewMut;
use super::{Kernel, LANES, Simd, padded, sum};

/// Values as they are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dense<'a> {
    F32(&'a [f32]),
    /// IEEE 754 binary16 as bits.
    F16(&'a [u16]),
    /// bfloat16 as bits.
    Bf16(&'a [u16]),
}

/// One way of storing values. Not a closure, which would not be compiled for the instruction set.
trait Stored: Copy {
    type Bits: Copy + Default;
    fn load<S: Simd>(self, simd: S, values: &[Self::Bits; LANES]) -> S::F32;
}

#[derive(Clone, Copy)]
struct F32;

impl Stored for F32 {
    type Bits = f32;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, values: &[f32; LANES]) -> S::F32 {
        simd.load(values)
    }
}

#[derive(Clone, Copy)]
struct F16;

impl Stored for F16 {
    type Bits = u16;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, values: &[u16; LANES]) -> S::F32 {
        simd.load_f16(values)
    }
}

#[derive(Clone, Copy)]
struct Bf16;

impl Stored for Bf16 {
    type Bits = u16;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, values: &[u16; LANES]) -> S::F32 {
        simd.load_bf16(values)
    }
}

/// Rows `[rows, columns]` times each of some vectors `[tokens, columns]`.
pub(crate) struct Dots<'a> {
    pub(crate) rows: Dense<'a>,
    pub(crate) x: &'a [f32],
    pub(crate) columns: usize,
    /// `[tokens, rows]`
    pub(crate) out: ViewMut<'a>,
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, x, columns, mut out } = self;
        match rows {
            Dense::F32(values) => dots(simd, F32, values, x, columns, &mut out),
            Dense::F16(values) => dots(simd, F16, values, x, columns, &mut out),
            Dense::Bf16(values) => dots(simd, Bf16, values, x, columns, &mut out),
        }
    }
}

#[inline(always)]
fn dots<S: Simd, T: Stored>(simd: S, stored: T, rows: &[T::Bits], x: &[f32], columns: usize, out: &mut ViewMut<'_>) {
    for (row, values) in rows.chunks_exact(columns).enumerate() {
        for (token, x) in x.chunks_exact(columns).enumerate() {
            out.row(token)[row] = dot(simd, stored, values, x);
        }
    }
}

/// Four sums side by side hide the latency of the multiply-add.
#[inline(always)]
fn dot<S: Simd, T: Stored>(simd: S, stored: T, a: &[T::Bits], b: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let (a_fours, a_vectors) = a_vectors.as_chunks::<4>();
    let (b_fours, b_vectors) = b_vectors.as_chunks::<4>();
    for (a, b) in a_fours.iter().zip(b_fours) {
        for lane in 0..4 {
            sums[lane] = simd.mul_add(stored.load(simd, &a[lane]), simd.load(&b[lane]), sums[lane]);
        }
    }
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        sums[0] = simd.mul_add(stored.load(simd, a), simd.load(b), sums[0]);
    }
    if !a_rest.is_empty() {
        let (a, b) = (padded(a_rest, T::Bits::default()), padded(b_rest, 0.0));
        sums[1] = simd.mul_add(stored.load(simd, &a), simd.load(&b), sums[1]);
    }
    sum(simd, simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// Values as f32, exactly.
pub(crate) struct Widen<'a> {
    pub(crate) values: Dense<'a>,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { values, out } = self;
        match values {
            Dense::F32(values) => out.copy_from_slice(values),
            Dense::F16(values) => widen(simd, F16, values, out),
            Dense::Bf16(values) => widen(simd, Bf16, values, out),
        }
    }
}

#[inline(always)]
fn widen<S: Simd, T: Stored>(simd: S, stored: T, values: &[T::Bits], out: &mut [f32]) {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (out_vectors, out_rest) = out.as_chunks_mut::<LANES>();
    for (values, out) in vectors.iter().zip(out_vectors) {
        simd.store(stored.load(simd, values), out);
    }
    let mut lanes = [0.0; LANES];
    simd.store(stored.load(simd, &padded(rest, T::Bits::default())), &mut lanes);
    out_rest.copy_from_slice(&lanes[..rest.len()]);
}
