//! One product alone, for benchmarks.

use std::sync::Arc;

use compressor_format::{QuantizedMatrix, Scheme, Values, WeightBytes};

use crate::kernels::Kernels;
use crate::kernels::lines::Arena;
use crate::kernels::vector::InputScales;
use crate::linear::{Input, Linear, Matrix, Rounding, project};
use crate::packed::Packed;
use crate::pool::Pool;
use crate::{ActivationType, Error, Result};

/// A matrix of integers and activations to multiply it with, without a model around them.
#[derive(Debug)]
pub struct Product {
    linear: Linear,
    input: Input,
    out: Vec<f32>,
    kernels: Kernels,
    pool: Pool,
}

impl Product {
    /// Integers without a pattern, `[rows, columns]`, and as many vectors of activations as `tokens`; one thread.
    ///
    /// # Errors
    /// [`Error::Threads`]
    pub fn new(
        scheme: Scheme,
        (rows, columns): (usize, usize),
        tokens: usize,
        kernels: Kernels,
        activations: ActivationType,
    ) -> Result<Self> {
        let threads = 1;
        let pool = Pool::new(threads).map_err(|source| Error::Threads { threads, source })?;
        let bytes: Arc<[u8]> = (0..rows * scheme.row_bytes(columns)).map(|index| (index * 89 + index / 7 * 31) as u8).collect();
        let groups = scheme.groups(columns);
        let matrix = QuantizedMatrix {
            rows,
            columns,
            scheme,
            values: Values::Packed(WeightBytes::Owned(bytes)),
            scales: vec![0.01; rows * groups].into(),
            zero_points: (!scheme.symmetric).then(|| vec![1; rows * groups]),
        };
        let packed = Packed::new(&matrix, &pool, &Arena::default());
        let rounding = Rounding { blocks: packed.blocks(), scales: InputScales::PerBlock };
        let rounding = (activations == ActivationType::Int8).then_some(rounding);
        let linear = Linear { matrix: Matrix::packed(packed), bias: None, rounding };
        let mut input = Input::default();
        let wave = |row: usize, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = libm::sinf((row * 7 + column) as f32));
        };
        input.prepare((kernels, &pool), (tokens, columns), &[&linear], &wave);
        Ok(Self { linear, input, out: Vec::new(), kernels, pool })
    }

    /// Multiplies; returns the result, `[tokens, rows]`.
    pub fn run(&mut self) -> &[f32] {
        project((self.kernels, &self.pool), [&self.linear], &self.input, [&mut self.out]);
        &self.out
    }
}
