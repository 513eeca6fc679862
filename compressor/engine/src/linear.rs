//! Matrices as they are stored, and their products with activations.

use std::cell::RefCell;
use std::sync::OnceLock;

use bytemuck::cast_slice;
use compressor_format::{Dtype, MappedBytes, QuantizedMatrix, TensorSlice, Values};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::kernels::matmul::{View, ViewMut, multiply};
use crate::kernels::{Kernels, QuantizedRow, Storage};

/// A projection: `y = x · matrixᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    /// `[rows]`.
    pub(crate) bias: Option<Vec<f32>>,
    /// The input is rounded to INT8 with one scale a token before it is multiplied (W8A8).
    pub(crate) rounds_input: bool,
}

/// A matrix `[rows, columns]`, kept as it is stored.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    elements: Elements,
}

#[derive(Debug)]
enum Elements {
    Owned(Vec<f32>),
    /// In the file, at an address that fits the type.
    Mapped(FloatType, MappedBytes),
    Quantized {
        matrix: QuantizedMatrix,
        storage: Storage,
        /// Bytes and scales of one row, divided out once instead of row by row.
        row_bytes: usize,
        groups: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum FloatType {
    F32,
    F16,
    Bf16,
}

/// One row, as it is stored.
enum Row<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Quantized(QuantizedRow<'a>),
}

/// Most input elements of a product in integers: 2¹⁷ products of at most 2¹⁴ fill the 31 bits of a sum.
pub(crate) const WIDEST_INTEGER_PRODUCT: usize = (1 << 17) - 1;

/// Rows of a matrix that one task multiplies. Fixed, so that the number of threads changes no sum.
const ROWS_PER_TASK: usize = 64;

/// Up to this many tokens, rows are read as they are stored; beyond, it pays to write them out as f32 once for all tokens.
const FEW_TOKENS: usize = 4;

/// Below this many multiplications, sharing the work out costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

thread_local! {
    /// The rows of one task as f32.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Multiplies each of some projections with the same activations.
///
/// - `x`: `[tokens, columns]`; each result is `[tokens, rows]`
pub(crate) fn project<const N: usize>(kernels: Kernels, linears: [&Linear; N], x: &[f32]) -> [Vec<f32>; N] {
    let columns = linears[0].matrix.columns;
    let tokens = x.len() / columns;
    let rounded = linears.iter().any(|linear| linear.rounds_input).then(|| Rounded::new(kernels, x, columns));
    let mut outputs = linears.map(|linear| vec![0.0; tokens * linear.matrix.rows]);
    let tasks: Vec<(&Linear, usize, ViewMut<'_>)> = linears
        .iter()
        .zip(&mut outputs)
        .flat_map(|(linear, out)| {
            let stripes = ViewMut::new(out, linear.matrix.rows).split_columns(ROWS_PER_TASK);
            stripes.map(|(first_row, stripe)| (*linear, first_row, stripe))
        })
        .collect();
    let work: usize = linears.iter().map(|linear| tokens * linear.matrix.rows * columns).sum();
    let run = |(linear, first_row, stripe): (&Linear, usize, ViewMut<'_>)| {
        let input = rounded.as_ref().filter(|_| linear.rounds_input);
        linear.multiply(kernels, x, input, first_row, stripe);
    };
    match work < WORTH_SHARING {
        true => tasks.into_iter().for_each(run),
        false => tasks.into_par_iter().for_each(run),
    }
    outputs
}

/// Activations rounded to INT8, token by token: `real = scale · q`.
struct Rounded {
    /// `[tokens, columns]`.
    integers: Vec<i8>,
    /// `[tokens]`.
    scales: Vec<f32>,
    /// [`Self::real`], computed by the first that asks.
    real: OnceLock<Vec<f32>>,
}

impl Rounded {
    fn new(kernels: Kernels, x: &[f32], columns: usize) -> Self {
        let mut integers = vec![0; x.len()];
        let scales = x.chunks_exact(columns).zip(integers.chunks_exact_mut(columns));
        let scales = scales.map(|(x, integers)| kernels.quantize_i8(x, integers)).collect();
        Self { integers, scales, real: OnceLock::new() }
    }

    /// The real numbers that the integers stand for.
    fn real(&self) -> &[f32] {
        self.real.get_or_init(|| {
            let columns = self.integers.len() / self.scales.len();
            let tokens = self.integers.chunks_exact(columns).zip(&self.scales);
            tokens.flat_map(|(integers, scale)| integers.iter().map(move |q| f32::from(*q) * scale)).collect()
        })
    }
}

impl Linear {
    /// Fills a stripe of the output, `[tokens, some rows of the matrix]`.
    fn multiply(&self, kernels: Kernels, x: &[f32], rounded: Option<&Rounded>, first_row: usize, mut out: ViewMut<'_>) {
        let columns = self.matrix.columns;
        match (rounded, self.matrix.signed_channels()) {
            (Some(rounded), Some((integers, scales))) => {
                let rows = integers[first_row * columns..].chunks_exact(columns).zip(&scales[first_row..]);
                for (at, (row, scale)) in rows.take(out.columns()).enumerate() {
                    for (token, integers) in rounded.integers.chunks_exact(columns).enumerate() {
                        out.row(token)[at] = kernels.dot_i8(row, integers) as f32 * rounded.scales[token] * scale;
                    }
                }
            }
            (Some(rounded), None) => self.matrix.multiply(kernels, rounded.real(), first_row, &mut out),
            (None, _) => self.matrix.multiply(kernels, x, first_row, &mut out),
        }
        if let Some(bias) = &self.bias {
            for token in 0..out.rows() {
                out.row(token).iter_mut().zip(&bias[first_row..]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

impl Matrix {
    /// Values in memory, `[rows, columns]`.
    pub(crate) fn owned(values: Vec<f32>, columns: usize) -> Self {
        Self { rows: values.len() / columns, columns, elements: Elements::Owned(values) }
    }

    /// A dense tensor where it lies in its file; `None` for an integer type or an address that does not fit the type.
    pub(crate) fn mapped(slice: &TensorSlice) -> Option<Self> {
        let [rows, columns] = *slice.shape else { return None };
        let bytes = &slice.bytes;
        let (float, fits) = match slice.dtype {
            Dtype::F32 => (FloatType::F32, bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok()),
            Dtype::F16 => (FloatType::F16, bytemuck::try_cast_slice::<u8, f16>(bytes).is_ok()),
            Dtype::Bf16 => (FloatType::Bf16, bytemuck::try_cast_slice::<u8, bf16>(bytes).is_ok()),
            Dtype::I8 | Dtype::I32 | Dtype::I64 => return None,
        };
        fits.then(|| Self { rows, columns, elements: Elements::Mapped(float, bytes.clone()) })
    }

    /// Integers with their scales.
    pub(crate) fn quantized(matrix: QuantizedMatrix) -> Self {
        let (rows, columns, groups) = (matrix.rows, matrix.columns, matrix.groups());
        let (storage, row_bytes) = match &matrix.values {
            Values::Signed(_) => (Storage::Signed, columns),
            Values::Packed(_) if matrix.scheme.bits == 4 => (Storage::Nibbles, matrix.scheme.row_bytes(columns)),
            Values::Packed(_) => (Storage::Unsigned, matrix.scheme.row_bytes(columns)),
        };
        Self { rows, columns, elements: Elements::Quantized { matrix, storage, row_bytes, groups } }
    }

    /// Bytes of the weights, scales and zero points included.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.elements {
            Elements::Owned(values) => size_of_val(values.as_slice()),
            Elements::Mapped(_, bytes) => bytes.len(),
            Elements::Quantized { matrix, .. } => {
                let (Values::Packed(bytes) | Values::Signed(bytes)) = &matrix.values;
                bytes.len() + size_of_val(matrix.scales.as_slice()) + matrix.zero_points.as_ref().map_or(0, Vec::len)
            }
        }
    }

    /// Writes one row as f32.
    pub(crate) fn widen_row(&self, kernels: Kernels, row: usize, out: &mut [f32]) {
        match self.row(row) {
            Row::F32(values) => out.copy_from_slice(values),
            Row::F16(values) => kernels.widen_f16(values, out),
            Row::Bf16(values) => kernels.widen_bf16(values, out),
            Row::Quantized(row) => kernels.dequantize(row, out),
        }
    }

    /// Fills a stripe of `x · selfᵀ` that begins at `first_row`.
    fn multiply(&self, kernels: Kernels, x: &[f32], first_row: usize, out: &mut ViewMut<'_>) {
        let (columns, rows, tokens) = (self.columns, out.columns(), out.rows());
        if tokens <= FEW_TOKENS {
            for at in 0..rows {
                let row = self.row(first_row + at);
                for (token, x) in x.chunks_exact(columns).enumerate() {
                    out.row(token)[at] = match row {
                        Row::F32(values) => kernels.dot_f32(values, x),
                        Row::F16(values) => kernels.dot_f16(values, x),
                        Row::Bf16(values) => kernels.dot_bf16(values, x),
                        Row::Quantized(row) => kernels.dot_quantized(row, x),
                    };
                }
            }
            return;
        }
        let x = View::new(x, tokens, columns, columns);
        if let Some(values) = self.as_f32() {
            let weights = View::new(&values[first_row * columns..], rows, columns, columns);
            return multiply(out, 1.0, x, weights.transposed());
        }
        WIDENED.with_borrow_mut(|widened| {
            widened.resize(rows * columns, 0.0);
            for (at, out) in widened.chunks_exact_mut(columns).enumerate() {
                self.widen_row(kernels, first_row + at, out);
            }
            multiply(out, 1.0, x, View::new(widened, rows, columns, columns).transposed());
        });
    }

    /// All values, where they are stored as f32.
    fn as_f32(&self) -> Option<&[f32]> {
        match &self.elements {
            Elements::Owned(values) => Some(values),
            Elements::Mapped(FloatType::F32, bytes) => Some(cast_slice(bytes)),
            Elements::Mapped(FloatType::F16 | FloatType::Bf16, _) | Elements::Quantized { .. } => None,
        }
    }

    /// Integers and scales, where each row is signed bytes with one scale and no zero point.
    fn signed_channels(&self) -> Option<(&[i8], &[f32])> {
        match &self.elements {
            Elements::Quantized {
                matrix: QuantizedMatrix { values: Values::Signed(bytes), scales, zero_points: None, .. },
                groups: 1,
                ..
            } => Some((cast_slice(bytes), scales)),
            _ => None,
        }
    }

    fn row(&self, row: usize) -> Row<'_> {
        let columns = self.columns;
        let elements = row * columns..(row + 1) * columns;
        match &self.elements {
            Elements::Owned(values) => Row::F32(&values[elements]),
            // `mapped` made sure that the casts succeed.
            Elements::Mapped(FloatType::F32, bytes) => Row::F32(&cast_slice(bytes)[elements]),
            Elements::Mapped(FloatType::F16, bytes) => Row::F16(&cast_slice(bytes)[elements]),
            Elements::Mapped(FloatType::Bf16, bytes) => Row::Bf16(&cast_slice(bytes)[elements]),
            Elements::Quantized { matrix, storage, row_bytes, groups } => {
                let (Values::Packed(bytes) | Values::Signed(bytes)) = &matrix.values;
                let part = row * groups..(row + 1) * groups;
                Row::Quantized(QuantizedRow {
                    bytes: &bytes[row * row_bytes..(row + 1) * row_bytes],
                    storage: *storage,
                    scales: &matrix.scales[part.clone()],
                    zero_points: matrix.zero_points.as_ref().map(|points| &points[part]),
                    group_size: matrix.scheme.group_size.unwrap_or(columns),
                })
            }
        }
    }
}
