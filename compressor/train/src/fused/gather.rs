//! Picking rows, and adding into picked rows.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::{Matrix, Operation, OwnedMatrix, flex, matrix};

/// `y[i] = x[rows[i]]`: input `x` `[N, width]`, result `[rows, width]`. A row may be picked several times.
#[derive(Clone, Debug)]
pub(crate) struct Gather {
    pub(crate) rows: Arc<[u32]>,
}

impl Operation<1> for Gather {
    fn forward(&self, [x]: [Matrix<'_>; 1]) -> (OwnedMatrix, Vec<f32>) {
        let mut values = Vec::with_capacity(self.rows.len() * x.columns);
        for row in self.rows.iter() {
            values.extend_from_slice(x.row(*row as usize));
        }
        (OwnedMatrix { values, rows: self.rows.len(), columns: x.columns }, Vec::new())
    }

    fn backward(&self, [x]: [Matrix<'_>; 1], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 1] {
        let mut of_x = vec![0.0; x.values.len()];
        add_rows(&mut of_x, &self.rows, gradient);
        [of_x]
    }
}

/// `into[rows[i]] += from[i]`.
fn add_rows(into: &mut [f32], rows: &[u32], from: Matrix<'_>) {
    let width = from.columns;
    for (i, row) in rows.iter().enumerate() {
        let into = &mut into[*row as usize * width..][..width];
        for (into, from) in into.iter_mut().zip(from.row(i)) {
            *into += from;
        }
    }
}

/// `into[rows[i]] += from[i]`, in place where `into` is not shared.
pub(crate) fn scatter_add(into: Tensor<2>, rows: &[u32], from: Tensor<2>) -> Tensor<2> {
    let (mut into, from) = (flex(into), flex(from));
    add_rows(into.storage_mut(), rows, matrix(&from));
    Tensor::from_primitive::<burn::backend::Flex>(into)
}
