//! `y = x·Wᵀ` with the weight as it is stored, `[out, in]`.

use super::gemm::{Threads, View, multiply};
use super::{Matrix, Operation, OwnedMatrix};

/// `y = x·Wᵀ`: inputs `x` `[N, in]` and `W` `[out, in]`, result `[N, out]`.
///
/// Its own operation because a transposed weight under Burn's autodiff gets a transposed gradient, which the optimizer would first
/// have to copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear;

/// `x·Wᵀ`, `[N, out]`.
fn linear(x: Matrix<'_>, weight: Matrix<'_>) -> OwnedMatrix {
    let mut out = OwnedMatrix::zeros(x.rows, weight.rows);
    multiply(&mut out.values, weight.rows, x.into(), View::from(weight).transposed(), 1.0, false, Threads::All);
    out
}

impl Operation<2> for Linear {
    fn forward(&self, [x, weight]: [Matrix<'_>; 2]) -> (OwnedMatrix, Vec<f32>) {
        (linear(x, weight), Vec::new())
    }

    fn backward(&self, [x, weight]: [Matrix<'_>; 2], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 2] {
        let mut of_x = vec![0.0; x.values.len()];
        multiply(&mut of_x, x.columns, gradient.into(), weight.into(), 1.0, false, Threads::All);
        let mut of_weight = vec![0.0; weight.values.len()];
        multiply(&mut of_weight, weight.columns, View::from(gradient).transposed(), x.into(), 1.0, false, Threads::All);
        [of_x, of_weight]
    }
}
