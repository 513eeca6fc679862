//! One AdamW update in one pass over weight, gradient and both moments.

use burn::backend::Flex;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::simd::{dot, vectorized};
use super::{flex, matrix};

/// The numbers of one update, the same for every element of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWUpdate {
    /// Multiplies the gradient: clipping.
    pub(crate) gradient_factor: f32,
    /// Decays of the two moments.
    pub(crate) betas: (f32, f32),
    /// 1 − learning_rate · weight_decay.
    pub(crate) keep: f32,
    /// learning_rate / (1 − β₁ᵗ).
    pub(crate) step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub(crate) root_correction: f32,
    /// Added to the denominator.
    pub(crate) epsilon: f32,
}

/// Elements that one task updates, and whose squares are summed apart: fixed, so that sums are the same on any number of threads.
const TASK: usize = 1 << 16;

vectorized! {
    fn update(weight: &mut [f32], gradient: &[f32], moment_1: &mut [f32], moment_2: &mut [f32], by: AdamWUpdate) {
        let n = weight.len();
        let (gradient, moment_1, moment_2) = (&gradient[..n], &mut moment_1[..n], &mut moment_2[..n]);
        let (beta_1, beta_2) = by.betas;
        let (new_1, new_2) = (1.0 - beta_1, 1.0 - beta_2);
        for i in 0..n {
            let g = gradient[i] * by.gradient_factor;
            let m = beta_1 * moment_1[i] + new_1 * g;
            let v = beta_2 * moment_2[i] + new_2 * g * g;
            moment_1[i] = m;
            moment_2[i] = v;
            weight[i] = by.keep * weight[i] - by.step_size * m / (v.sqrt() * by.root_correction + by.epsilon);
        }
    }
}

/// Updates a weight and its moments; in place where they are not shared.
pub(crate) fn adamw(
    weight: Tensor<2>,
    gradient: Tensor<2>,
    moments: [Tensor<2>; 2],
    by: AdamWUpdate,
) -> (Tensor<2>, [Tensor<2>; 2]) {
    let (mut weight, gradient, [mut moment_1, mut moment_2]) = (flex(weight), flex(gradient), moments.map(flex));
    let of_gradient = matrix(&gradient).values;
    let tasks = weight.storage_mut::<f32>().par_chunks_mut(TASK).zip(of_gradient.par_chunks(TASK));
    let moments = moment_1.storage_mut::<f32>().par_chunks_mut(TASK).zip(moment_2.storage_mut::<f32>().par_chunks_mut(TASK));
    tasks.zip(moments).for_each(|((weight, gradient), (moment_1, moment_2))| update(weight, gradient, moment_1, moment_2, by));
    (Tensor::from_primitive::<Flex>(weight), [moment_1, moment_2].map(Tensor::from_primitive::<Flex>))
}

/// Σ x², in f64 over parts of fixed size.
pub(crate) fn sum_of_squares(x: &Tensor<2>) -> f64 {
    let x = flex(x.clone());
    let parts: Vec<f64> =
        matrix(&x).values.par_chunks(TASK).map(|part| part.chunks(1024).map(|x| f64::from(dot(x, x))).sum()).collect();
    parts.iter().sum()
}
