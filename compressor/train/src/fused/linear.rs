//! `y = x·Wᵀ` with the weight as it is stored, `[out, in]`.

use super::gemm::{Threads, View, product};
use super::{Matrix, Operation, OwnedMatrix};

/// `y = x·Wᵀ`: inputs `x` `[N, in]` and `W` `[out, in]`, result `[N, out]`.
///
/// Its own operation because a transposed weight under Burn's autodiff gets a transposed gradient, which the optimizer would first
/// have to copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear;

/// `x·Wᵀ`, `[N, out]`.
fn linear(x: Matrix<'_>, weight: Matrix<'_>) -> OwnedMatrix {
    let values = product(x.into(), View::from(weight).transposed(), Threads::All);
    OwnedMatrix { values, rows: x.rows, columns: weight.rows }
}

impl Operation<2> for Linear {
    fn forward(&self, [x, weight]: [Matrix<'_>; 2]) -> (OwnedMatrix, Vec<f32>) {
        (linear(x, weight), Vec::new())
    }

    fn backward(&self, [x, weight]: [Matrix<'_>; 2], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 2] {
        let of_x = product(gradient.into(), weight.into(), Threads::All);
        let of_weight = product(View::from(gradient).transposed(), x.into(), Threads::All);
        [of_x, of_weight]
    }
}
