//! RMSNorm and LayerNorm over rows.

use rayon::prelude::*;

use super::simd::{dot, sum_by, vectorized};
use super::{Matrix, Operation, OwnedMatrix};

/// `y = x · weight / √(mean(x²) + ε)` (Zhang and Sennrich 2019): inputs `x` `[N, width]`, `weight` `[1, width]`.
///
/// Where `x` is wider than the weight, each of its rows is several to be normalized: heads side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmsNorm {
    pub(crate) epsilon: f32,
}

/// `y = (x − mean) / √(var + ε) · weight + bias` (Ba et al. 2016): inputs `x` `[N, width]`, `weight` and `bias` `[1, width]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorm {
    pub(crate) epsilon: f32,
}

/// Rows that one task normalizes. Fixed, so that the weight's gradient is summed in the same order on any number of threads.
const ROWS_PER_TASK: usize = 64;

vectorized! {
    /// out ← x · factor · weight.
    fn scale_by(out: &mut [f32], x: &[f32], factor: f32, weight: &[f32]) {
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

vectorized! {
    /// Backward pass of one RMSNorm row: with r = 1/√(mean(x²) + ε), `of_x = g·w·r − x · r³/n · Σ g·w·x` and `of_weight += g·x·r`.
    fn rms_norm_backward(of_x: &mut [f32], of_weight: &mut [f32], x: &[f32], weight: &[f32], gradient: &[f32], r: f32) {
        let n = of_x.len();
        let (of_weight, x, weight, gradient) = (&mut of_weight[..n], &x[..n], &weight[..n], &gradient[..n]);
        let along = sum_by(n, |i| gradient[i] * weight[i] * x[i]) * r * r * r / n as f32;
        for i in 0..n {
            of_x[i] = gradient[i] * weight[i] * r - x[i] * along;
            of_weight[i] += gradient[i] * x[i] * r;
        }
    }
}

vectorized! {
    /// One LayerNorm row: out ← (x − mean) · r · weight + bias.
    fn standardize(out: &mut [f32], x: &[f32], mean: f32, r: f32, weight: &[f32], bias: &[f32]) {
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * r * weight + bias;
        }
    }
}

vectorized! {
    /// Mean and 1/√(variance + ε) of a row.
    fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum_by(x.len(), |i| x[i]) / n;
        let variance = sum_by(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
        (mean, 1.0 / (variance + epsilon).sqrt())
    }
}

vectorized! {
    /// Backward pass of one LayerNorm row: with x̂ = (x − mean)·r and d = g·w,
    /// `of_x = r · (d − mean(d) − x̂ · mean(d·x̂))`, `of_weight += g·x̂`, `of_bias += g`.
    fn layer_norm_backward(
        of_x: &mut [f32], of_weight: &mut [f32], of_bias: &mut [f32], x: &[f32], weight: &[f32], gradient: &[f32], mean: f32, r: f32,
    ) {
        let n = of_x.len();
        let (of_weight, of_bias) = (&mut of_weight[..n], &mut of_bias[..n]);
        let (x, weight, gradient) = (&x[..n], &weight[..n], &gradient[..n]);
        let across = sum_by(n, |i| gradient[i] * weight[i]) / n as f32;
        let along = sum_by(n, |i| gradient[i] * weight[i] * (x[i] - mean) * r) / n as f32;
        for i in 0..n {
            let standard = (x[i] - mean) * r;
            of_x[i] = r * (gradient[i] * weight[i] - across - standard * along);
            of_weight[i] += gradient[i] * standard;
            of_bias[i] += gradient[i];
        }
    }
}

/// 1/√(mean(x²) + ε) of a row.
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// Adds the partial sums of the tasks, in their order.
fn sum_parts(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sum
}

impl Operation<2> for RmsNorm {
    fn forward(&self, [x, weight]: [Matrix<'_>; 2]) -> (OwnedMatrix, Vec<f32>) {
        let width = weight.columns;
        let mut out = OwnedMatrix::zeros(x.rows, x.columns);
        let task = width * ROWS_PER_TASK;
        out.values.par_chunks_mut(task).zip(x.values.par_chunks(task)).for_each(|(out, x)| {
            for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
                scale_by(out, x, inverse_rms(x, self.epsilon), weight.values);
            }
        });
        (out, Vec::new())
    }

    fn backward(&self, [x, weight]: [Matrix<'_>; 2], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 2] {
        let width = weight.columns;
        let task = width * ROWS_PER_TASK;
        let mut of_x = vec![0.0; x.values.len()];
        let tasks = of_x.par_chunks_mut(task).zip(x.values.par_chunks(task)).zip(gradient.values.par_chunks(task));
        let parts = tasks.map(|((of_x, x), gradient)| {
            let mut of_weight = vec![0.0; width];
            for ((of_x, x), gradient) in of_x.chunks_mut(width).zip(x.chunks(width)).zip(gradient.chunks(width)) {
                rms_norm_backward(of_x, &mut of_weight, x, weight.values, gradient, inverse_rms(x, self.epsilon));
            }
            of_weight
        });
        let parts = parts.collect();
        [of_x, sum_parts(parts, width)]
    }
}

impl Operation<3> for LayerNorm {
    fn forward(&self, [x, weight, bias]: [Matrix<'_>; 3]) -> (OwnedMatrix, Vec<f32>) {
        let width = x.columns;
        let mut out = OwnedMatrix::zeros(x.rows, width);
        let task = width * ROWS_PER_TASK;
        out.values.par_chunks_mut(task).zip(x.values.par_chunks(task)).for_each(|(out, x)| {
            for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
                let (mean, r) = moments(x, self.epsilon);
                standardize(out, x, mean, r, weight.values, bias.values);
            }
        });
        (out, Vec::new())
    }

    fn backward(&self, [x, weight, _]: [Matrix<'_>; 3], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 3] {
        let width = x.columns;
        let task = width * ROWS_PER_TASK;
        let mut of_x = vec![0.0; x.values.len()];
        let tasks = of_x.par_chunks_mut(task).zip(x.values.par_chunks(task)).zip(gradient.values.par_chunks(task));
        let parts: (Vec<_>, Vec<_>) = tasks
            .map(|((of_x, x), gradient)| {
                let (mut of_weight, mut of_bias) = (vec![0.0; width], vec![0.0; width]);
                for ((of_x, x), gradient) in of_x.chunks_mut(width).zip(x.chunks(width)).zip(gradient.chunks(width)) {
                    let (mean, r) = moments(x, self.epsilon);
                    layer_norm_backward(of_x, &mut of_weight, &mut of_bias, x, weight.values, gradient, mean, r);
                }
                (of_weight, of_bias)
            })
            .unzip();
        [of_x, sum_parts(parts.0, width), sum_parts(parts.1, width)]
    }
}
