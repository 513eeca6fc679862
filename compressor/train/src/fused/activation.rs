//! The non-linearity of the MLP, alone or as a gate.

use compressor_format::Activation;
use rayon::prelude::*;

use super::simd::{exp, vectorized};
use super::{Matrix, Operation, OwnedMatrix};

/// `y = activation(a) · b`: inputs `a` and `b` `[N, width]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub(crate) activation: Activation,
}

/// `y = activation(x)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activate {
    pub(crate) activation: Activation,
}

/// A non-linearity and its derivative.
trait Curve {
    fn at(x: f32) -> f32;
    /// Value and derivative.
    fn with_slope(x: f32) -> (f32, f32);
}

struct Silu;
struct Gelu;
struct GeluTanh;

impl Curve for Silu {
    #[inline(always)]
    fn at(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    #[inline(always)]
    fn with_slope(x: f32) -> (f32, f32) {
        let sigmoid = 1.0 / (1.0 + exp(-x));
        let value = x * sigmoid;
        (value, sigmoid + value * (1.0 - sigmoid))
    }
}

/// Φ(x) and φ(x) of the normal distribution; erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let polynomial = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = exp(-z * z);
    let above = 0.5 * polynomial * tail;
    let below = if x < 0.0 { above } else { 1.0 - above };
    (below, tail * 0.398_942_3)
}

impl Curve for Gelu {
    #[inline(always)]
    fn at(x: f32) -> f32 {
        x * normal(x).0
    }

    #[inline(always)]
    fn with_slope(x: f32) -> (f32, f32) {
        let (below, density) = normal(x);
        (x * below, below + x * density)
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    // 0.5·(1 + tanh u) is the logistic function of 2u.
    #[inline(always)]
    fn at(x: f32) -> f32 {
        let u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
        x / (1.0 + exp(-2.0 * u))
    }

    #[inline(always)]
    fn with_slope(x: f32) -> (f32, f32) {
        let u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
        let logistic = 1.0 / (1.0 + exp(-2.0 * u));
        let slope_of_u = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
        (x * logistic, logistic + 2.0 * x * logistic * (1.0 - logistic) * slope_of_u)
    }
}

vectorized! {
    fn gate<C: Curve>(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = C::at(*a) * b;
        }
    }
}

vectorized! {
    fn gate_backward<C: Curve>(of_a: &mut [f32], of_b: &mut [f32], a: &[f32], b: &[f32], gradient: &[f32]) {
        let n = of_a.len();
        let (of_b, a, b, gradient) = (&mut of_b[..n], &a[..n], &b[..n], &gradient[..n]);
        for i in 0..n {
            let (value, slope) = C::with_slope(a[i]);
            of_a[i] = gradient[i] * b[i] * slope;
            of_b[i] = gradient[i] * value;
        }
    }
}

vectorized! {
    fn activate<C: Curve>(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = C::at(*x);
        }
    }
}

vectorized! {
    fn activate_backward<C: Curve>(of_x: &mut [f32], x: &[f32], gradient: &[f32]) {
        for ((of_x, x), gradient) in of_x.iter_mut().zip(x).zip(gradient) {
            *of_x = gradient * C::with_slope(*x).1;
        }
    }
}

/// Elements that one task computes.
const TASK: usize = 1 << 14;

impl Operation<2> for Gate {
    fn forward(&self, [a, b]: [Matrix<'_>; 2]) -> (OwnedMatrix, Vec<f32>) {
        let kernel = match self.activation {
            Activation::Silu => gate::<Silu>,
            Activation::Gelu => gate::<Gelu>,
            Activation::GeluTanh => gate::<GeluTanh>,
        };
        let mut out = OwnedMatrix::zeros(a.rows, a.columns);
        let tasks = out.values.par_chunks_mut(TASK).zip(a.values.par_chunks(TASK)).zip(b.values.par_chunks(TASK));
        tasks.for_each(|((out, a), b)| kernel(out, a, b));
        (out, Vec::new())
    }

    fn backward(&self, [a, b]: [Matrix<'_>; 2], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 2] {
        let kernel = match self.activation {
            Activation::Silu => gate_backward::<Silu>,
            Activation::Gelu => gate_backward::<Gelu>,
            Activation::GeluTanh => gate_backward::<GeluTanh>,
        };
        let (mut of_a, mut of_b) = (vec![0.0; a.values.len()], vec![0.0; b.values.len()]);
        let outputs = of_a.par_chunks_mut(TASK).zip(of_b.par_chunks_mut(TASK));
        let inputs = a.values.par_chunks(TASK).zip(b.values.par_chunks(TASK)).zip(gradient.values.par_chunks(TASK));
        outputs.zip(inputs).for_each(|((of_a, of_b), ((a, b), gradient))| kernel(of_a, of_b, a, b, gradient));
        [of_a, of_b]
    }
}

impl Operation<1> for Activate {
    fn forward(&self, [x]: [Matrix<'_>; 1]) -> (OwnedMatrix, Vec<f32>) {
        let kernel = match self.activation {
            Activation::Silu => activate::<Silu>,
            Activation::Gelu => activate::<Gelu>,
            Activation::GeluTanh => activate::<GeluTanh>,
        };
        let mut out = OwnedMatrix::zeros(x.rows, x.columns);
        out.values.par_chunks_mut(TASK).zip(x.values.par_chunks(TASK)).for_each(|(out, x)| kernel(out, x));
        (out, Vec::new())
    }

    fn backward(&self, [x]: [Matrix<'_>; 1], _: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; 1] {
        let kernel = match self.activation {
            Activation::Silu => activate_backward::<Silu>,
            Activation::Gelu => activate_backward::<Gelu>,
            Activation::GeluTanh => activate_backward::<GeluTanh>,
        };
        let mut of_x = vec![0.0; x.values.len()];
        let tasks = of_x.par_chunks_mut(TASK).zip(x.values.par_chunks(TASK)).zip(gradient.values.par_chunks(TASK));
        tasks.for_each(|((of_x, x), gradient)| kernel(of_x, x, gradient));
        [of_x]
    }
}
