//! Projections and what they multiply.

#[cfg(feature = "std")]
use alloc::vec;
use alloc::vec::Vec;

use bytemuck::cast_slice;
use compressor_format::{Dtype, MappedBytes, TensorSlice};

use crate::kernels::Kernels;
use crate::kernels::LANES;
use crate::kernels::dense::{Dense, Dots, Widen};
#[cfg(feature = "std")]
use crate::kernels::integer::Dequantize;
use crate::kernels::integer::{MultiplyReal, MultiplyRounded, Rest, Rounded, Vectors};
#[cfg(feature = "std")]
use crate::kernels::matmul::multiply;
use crate::kernels::vector::{Add, InputScales, Round};
#[cfg(feature = "std")]
use crate::kernels::view::View;
use crate::kernels::view::ViewMut;
use crate::packed::{Blocks, Packed};
use crate::pool::Pool;

/// A projection: `y = x · matrixᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    /// `[rows]`.
    pub(crate) bias: Option<Vec<f32>>,
    /// How the input is rounded to INT8 before it is multiplied; `None` multiplies it as it is.
    pub(crate) rounding: Option<Rounding>,
}

/// How activations become integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rounding {
    /// As the matrix is split.
    pub(crate) blocks: Blocks,
    pub(crate) scales: InputScales,
}

/// A matrix `[rows, columns]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    elements: Elements,
}

#[derive(Debug)]
enum Elements {
    Owned(Vec<f32>),
    /// Where they lie, mostly in the file, at an address that fits the type.
    Mapped(FloatType, MappedBytes),
    /// Integers with their scales.
    Packed(Packed),
}

#[derive(Clone, Copy, Debug)]
enum FloatType {
    F32,
    F16,
    Bf16,
}

/// Rows of a dense matrix that one task multiplies. Fixed: the `gemm` crate's sums depend on the size of a product.
const DENSE_ROWS_PER_TASK: usize = 64;

/// Up to this many tokens, dense rows are read as they are stored; beyond, it pays to write them out as f32 once for all tokens.
const FEW_TOKENS: usize = 4;

/// Tasks for each thread: enough to even out what the others of the machine take.
const TASKS_PER_THREAD: usize = 6;

/// Below this many multiplications, a task of its own costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// Tokens of a task on rows of activations.
const TOKENS_PER_TASK: usize = 16;

/// What some projections multiply: activations of some tokens, and the same rounded in all the ways they need.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// `[tokens, width]`
    pub(crate) real: Vec<f32>,
    rounded: Vec<RoundedInput>,
}

/// Rounded activations of some tokens.
#[derive(Debug)]
struct RoundedInput {
    rounding: Rounding,
    /// `[tokens, blocks]`
    blocks: Vec<Rounded>,
    /// Of each token.
    rests: Vec<Vec<Rest>>,
}

impl Input {
    /// Activations that are not rounded.
    #[cfg(feature = "std")]
    pub(crate) fn of(real: Vec<f32>) -> Self {
        Self { real, rounded: Vec::new() }
    }

    /// Fills `real` row by row with `fill`, which is given the row's number, and rounds it as `linears` need it.
    pub(crate) fn prepare(
        &mut self,
        (kernels, pool): (Kernels, &Pool),
        (tokens, width): (usize, usize),
        linears: &[&Linear],
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.real.resize(tokens * width, 0.0);
        // Whatever was rounded before is overwritten: static scales differ from one input to the next, the room is used again.
        let mut wanted = 0;
        for rounding in linears.iter().filter_map(|linear| linear.rounding) {
            if self.rounded[..wanted].iter().any(|known| known.rounding == rounding) {
                continue;
            }
            match self.rounded.get_mut(wanted) {
                Some(known) => known.rounding = rounding,
                None => self.rounded.push(RoundedInput { rounding, blocks: Vec::new(), rests: Vec::new() }),
            }
            wanted += 1;
        }
        self.rounded.truncate(wanted);
        let mut parts: Vec<_> = self
            .rounded
            .iter_mut()
            .map(|RoundedInput { rounding, blocks, rests }| {
                let count = rounding.blocks.count();
                blocks.resize(tokens * count, Rounded::ZERO);
                rests.resize_with(tokens, Vec::new);
                (*rounding, blocks.chunks_mut(TOKENS_PER_TASK * count).zip(rests.chunks_mut(TOKENS_PER_TASK)))
            })
            .collect();
        let mut tasks = Vec::with_capacity(tokens.div_ceil(TOKENS_PER_TASK));
        for (task, real) in self.real.chunks_mut(TOKENS_PER_TASK * width).enumerate() {
            let rounded: Vec<_> = parts.iter_mut().filter_map(|(rounding, parts)| Some((*rounding, parts.next()?))).collect();
            tasks.push((task * TOKENS_PER_TASK, real, rounded));
        }
        pool.for_each(tasks, &|(first, real, mut rounded)| {
            for (at, x) in real.chunks_exact_mut(width).enumerate() {
                fill(first + at, x);
                for (rounding, (out, rests)) in &mut rounded {
                    let Rounding { blocks, scales } = *rounding;
                    let out = &mut out[at * blocks.count()..][..blocks.count()];
                    kernels.run(Round { x, group: blocks.group, scales, out, rests: &mut rests[at] });
                }
            }
        });
    }

    fn rounded(&self, rounding: Rounding) -> Vectors<'_> {
        let found = self.rounded.iter().find(|known| known.rounding == rounding);
        let RoundedInput { blocks, rests, .. } = found.expect("`prepare` was given every projection that multiplies this");
        Vectors { blocks, rests }
    }
}

/// Multiplies each of some projections with the same activations; each output becomes `[tokens, rows]`.
pub(crate) fn project<const N: usize>(
    (kernels, pool): (Kernels, &Pool),
    linears: [&Linear; N],
    input: &Input,
    outputs: [&mut Vec<f32>; N],
) {
    let columns = linears[0].matrix.columns;
    let tokens = input.real.len() / columns;
    let all_rows: usize = linears.iter().map(|linear| linear.matrix.rows).sum();
    let least = WORTH_SHARING.div_ceil(tokens * columns);
    let rows_per_task = all_rows.div_ceil(TASKS_PER_THREAD * pool.threads()).max(least).next_multiple_of(2 * LANES);
    let mut tasks = Vec::with_capacity(N + TASKS_PER_THREAD * pool.threads());
    for (linear, out) in linears.iter().zip(outputs) {
        let rows = linear.matrix.rows;
        out.resize(tokens * rows, 0.0);
        let per_task = if linear.rounding.is_some() { rows_per_task } else { DENSE_ROWS_PER_TASK };
        tasks.extend(ViewMut::new(out, rows).split_columns(per_task).map(|(first_row, part)| (*linear, first_row, part)));
    }
    let run = |(linear, first_row, part): (&Linear, usize, ViewMut<'_>)| linear.multiply(kernels, input, first_row, part);
    match tokens * all_rows * columns < WORTH_SHARING {
        true => tasks.into_iter().for_each(run),
        false => pool.for_each(tasks, &run),
    }
}

impl Linear {
    /// Bytes of weights and bias.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.matrix.memory_bytes() + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
    }

    /// Fills a stripe of the output, `[tokens, some rows of the matrix]`; it begins with a whole tile.
    fn multiply(&self, kernels: Kernels, input: &Input, first_row: usize, mut out: ViewMut<'_>) {
        match (&self.matrix.elements, self.rounding) {
            (Elements::Packed(matrix), Some(rounding)) => {
                let (x, first_tile) = (input.rounded(rounding), first_row / LANES);
                kernels.run(MultiplyRounded { matrix, first_tile, x, out: out.reborrow() });
            }
            (_, _) => self.matrix.multiply(kernels, &input.real, first_row, &mut out),
        }
        if let Some(bias) = &self.bias {
            for token in 0..out.rows() {
                let out = out.row(token);
                let x = &bias[first_row..][..out.len()];
                kernels.run(Add { out, x });
            }
        }
    }
}

impl Matrix {
    /// Values in memory, `[rows, columns]`.
    pub(crate) fn owned(values: Vec<f32>, columns: usize) -> Self {
        Self { rows: values.len() / columns, columns, elements: Elements::Owned(values) }
    }

    /// A dense tensor where it lies in its file; `None` for an integer type, f64 or an address that does not fit the type.
    pub(crate) fn mapped(slice: &TensorSlice) -> Option<Self> {
        let [rows, columns] = *slice.shape else { return None };
        let bytes = &slice.bytes;
        let (float, fits) = match slice.dtype {
            Dtype::F32 => (FloatType::F32, bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok()),
            Dtype::F16 => (FloatType::F16, bytemuck::try_cast_slice::<u8, u16>(bytes).is_ok()),
            Dtype::Bf16 => (FloatType::Bf16, bytemuck::try_cast_slice::<u8, u16>(bytes).is_ok()),
            Dtype::F64 | Dtype::I8 | Dtype::I32 | Dtype::I64 => return None,
        };
        fits.then(|| Self { rows, columns, elements: Elements::Mapped(float, bytes.clone()) })
    }

    /// Integers with their scales.
    pub(crate) fn packed(packed: Packed) -> Self {
        Self { rows: packed.rows, columns: packed.columns, elements: Elements::Packed(packed) }
    }

    /// How the columns of a matrix of integers are split.
    pub(crate) fn blocks(&self) -> Option<Blocks> {
        match &self.elements {
            Elements::Packed(packed) => Some(packed.blocks()),
            Elements::Owned(_) | Elements::Mapped(..) => None,
        }
    }

    /// Bytes of the weights, scales and zero points included.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.elements {
            Elements::Owned(values) => size_of_val(values.as_slice()),
            Elements::Mapped(_, bytes) => bytes.len(),
            Elements::Packed(packed) => packed.memory_bytes(),
        }
    }

    /// Writes one row as f32.
    pub(crate) fn widen_row(&self, kernels: Kernels, row: usize, out: &mut [f32]) {
        match &self.elements {
            Elements::Packed(packed) => packed.widen_row(row, out),
            Elements::Owned(_) | Elements::Mapped(..) => {
                kernels.run(Widen { values: self.dense_rows(row, 1).expect("a dense matrix"), out });
            }
        }
    }

    /// Fills a stripe of `x · selfᵀ` that begins at `first_row`, without rounding `x`.
    fn multiply(&self, kernels: Kernels, x: &[f32], first_row: usize, out: &mut ViewMut<'_>) {
        let (columns, rows, tokens) = (self.columns, out.columns(), out.rows());
        let few = tokens <= FEW_TOKENS || cfg!(not(feature = "std"));
        match (self.dense_rows(first_row, rows), &self.elements) {
            (Some(dense), _) if few => {
                kernels.run(Dots { rows: dense, x, columns, out: out.reborrow() });
            }
            (None, Elements::Packed(matrix)) if few => {
                for (token, x) in x.chunks_exact(columns).enumerate() {
                    let first_tile = first_row / LANES;
                    kernels.run(MultiplyReal { matrix, first_tile, x, out: out.row(token) });
                }
            }
            #[cfg(feature = "std")]
            (dense, elements) => {
                let x = View::new(x, tokens, columns, columns);
                if let Some(Dense::F32(values)) = dense {
                    return multiply(out, 1.0, x, View::new(values, rows, columns, columns).transposed());
                }
                let mut widened = vec![0.0; rows * columns];
                match (dense, elements) {
                    (Some(values), _) => kernels.run(Widen { values, out: &mut widened }),
                    (None, Elements::Packed(matrix)) => {
                        kernels.run(Dequantize { matrix, first_tile: first_row / LANES, out: &mut widened });
                    }
                    (None, _) => unreachable!("what is not dense is packed"),
                }
                multiply(out, 1.0, x, View::new(&widened, rows, columns, columns).transposed());
            }
            #[cfg(not(feature = "std"))]
            _ => unreachable!("without `gemm` every product is one of single vectors"),
        }
    }

    /// Some rows as they are stored, of a dense matrix.
    fn dense_rows(&self, first: usize, rows: usize) -> Option<Dense<'_>> {
        let range = first * self.columns..(first + rows) * self.columns;
        // `mapped` made sure that the casts succeed.
        match &self.elements {
            Elements::Owned(values) => Some(Dense::F32(&values[range])),
            Elements::Mapped(FloatType::F32, bytes) => Some(Dense::F32(&cast_slice(bytes)[range])),
            Elements::Mapped(FloatType::F16, bytes) => Some(Dense::F16(&cast_slice(bytes)[range])),
            Elements::Mapped(FloatType::Bf16, bytes) => Some(Dense::Bf16(&cast_slice(bytes)[range])),
            Elements::Packed(_) => None,
        }
    }
}
