//! The operations of a decoder composed of Burn's own, for devices without fused kernels. Burn derives their backward passes.

use burn::tensor::activation::{gelu, log_softmax, silu, softmax};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use compressor_format::Activation;

use crate::batch::Sequences;
use crate::fused::RotaryTable;
use crate::head::{HeadGradients, HeadInputs, TeacherHead};
use crate::ops::Heads;
use crate::optimizer::Update;

/// Row numbers as an integer tensor.
pub(crate) fn indices(rows: &[u32], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let len = rows.len();
    Tensor::from_data(TensorData::new(rows, [len]), &device.clone().without_autodiff())
}

/// RMSNorm of each stretch of `x` as wide as `weight`.
pub(crate) fn rms_norm(x: Tensor<2>, weight: Tensor<2>, epsilon: f32) -> Tensor<2> {
    let ([rows, columns], [_, width]) = (x.dims(), weight.dims());
    let x = x.reshape([rows * columns / width, width]);
    let root = (x.clone().square().mean_dim(1) + epsilon).sqrt();
    (x / root * weight).reshape([rows, columns])
}

/// LayerNorm of each row.
pub(crate) fn layer_norm(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<2>, epsilon: f32) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let root = (centred.clone().square().mean_dim(1) + epsilon).sqrt();
    centred / root * weight + bias
}

/// The non-linearity.
pub(crate) fn activate(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let cube = x.clone() * x.clone() * x.clone();
            let u = (x.clone() + cube * 0.044_715) * std::f32::consts::FRAC_2_PI.sqrt();
            x * (u.tanh() + 1.0) * 0.5
        }
    }
}

fn rectangle(sequences: &Sequences) -> (usize, usize) {
    sequences.as_rectangle().expect("`Ops::Plain` packs every batch as a rectangle")
}

/// Rotates each head by the angles of its position.
pub(crate) fn rotate(x: Tensor<2>, table: &RotaryTable, sequences: &Sequences) -> Tensor<2> {
    let (batch, length) = rectangle(sequences);
    let [rows, columns] = x.dims();
    let half = table.half;
    let heads = columns / (2 * half);
    let device = x.device().without_autodiff();
    let angles =
        |values: &[f32]| Tensor::<4>::from_data(TensorData::new(values[..length * half].to_vec(), [1, length, 1, half]), &device);
    let (cosines, sines) = (angles(&table.cosines), angles(&table.sines));
    let x = x.reshape([batch, length, heads, 2 * half]);
    let (x_1, x_2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let first = x_1.clone() * cosines.clone() - x_2.clone() * sines.clone();
    let second = x_2 * cosines + x_1 * sines;
    Tensor::cat(vec![first, second], 3).reshape([rows, columns])
}

/// Causal attention within each sequence.
pub(crate) fn attention(sizes: Heads, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
    let (batch, length) = rectangle(sequences);
    let Heads { heads, kv_heads, head_dim } = sizes;
    let group = heads / kv_heads;
    let device = q.device().without_autodiff();
    let [rows, columns] = q.dims();
    let q = q.reshape([batch, length, heads, head_dim]).swap_dims(1, 2); // [batch, heads, length, head_dim]
    // Each key/value head stands once for every query head of its group.
    let repeated = |x: Tensor<2>| {
        let x = x.reshape([batch, length, kv_heads, 1, head_dim]).repeat_dim(3, group);
        x.reshape([batch, length, heads, head_dim]).swap_dims(1, 2)
    };
    let scores = q.matmul(repeated(k).swap_dims(2, 3)) / (head_dim as f32).sqrt();
    let future: Vec<f32> = (0..length * length).map(|i| if i % length > i / length { -1e30 } else { 0.0 }).collect();
    let future = Tensor::<4>::from_data(TensorData::new(future, [1, 1, length, length]), &device);
    let out = softmax(scores + future, 3).matmul(repeated(v));
    out.swap_dims(1, 2).reshape([rows, columns])
}

/// Rows of logits that are held at a time.
const CHUNK_ROWS: usize = 256;

/// As [`crate::head::head_gradients`], in chunks of rows.
pub(crate) fn head_gradients(inputs: HeadInputs<'_>) -> HeadGradients {
    let HeadInputs { hidden, head, teacher, targets, scale } = inputs;
    let device = hidden.device();
    let [rows, _] = hidden.dims();
    let mut of_hidden = Vec::new();
    let mut of_head = head.zeros_like();
    let (mut cross_entropy, mut kl) = (0.0, 0.0);
    let sum = |x: Tensor<2>| f64::from(x.sum().into_scalar::<f32>());
    for first in (0..rows).step_by(CHUNK_ROWS) {
        let count = CHUNK_ROWS.min(rows - first);
        let part = hidden.clone().narrow(0, first, count);
        let targets = indices(&targets[first..first + count], &device).reshape([count, 1]);
        let logits = part.clone().matmul(head.clone().transpose());
        let log_probabilities = log_softmax(logits.clone(), 1);
        cross_entropy -= sum(log_probabilities.clone().gather(1, targets.clone()));
        let ratio = teacher.as_ref().map_or(0.0, |teacher| teacher.softened.kd_ratio);
        let hard = scale * (1.0 - ratio);
        let ones = Tensor::<2>::ones([count, 1], &device);
        let mut of_logits = log_probabilities.exp().mul_scalar(hard).scatter(1, targets, ones * -hard, IndexingUpdateOp::Add);
        if let Some(TeacherHead { hidden, head, softened }) = &teacher {
            let teacher_logits = hidden.clone().narrow(0, first, count).matmul(head.clone().transpose());
            let log_q = log_softmax(logits / softened.temperature, 1);
            let log_p = log_softmax(teacher_logits / softened.temperature, 1);
            let p = log_p.clone().exp();
            kl += sum(p.clone() * (log_p - log_q.clone()));
            of_logits = of_logits + (log_q.exp() - p) * (scale * ratio * softened.temperature);
        }
        of_hidden.push(of_logits.clone().matmul(head.clone()));
        of_head = of_head + of_logits.transpose().matmul(part);
    }
    HeadGradients { cross_entropy, kl: teacher.is_some().then_some(kl), of_hidden: Tensor::cat(of_hidden, 0), of_head }
}

/// One AdamW update.
pub(crate) fn adamw(weight: Tensor<2>, gradient: Tensor<2>, moments: [Tensor<2>; 2], by: Update) -> (Tensor<2>, [Tensor<2>; 2]) {
    let [moment_1, moment_2] = moments;
    let (beta_1, beta_2) = by.betas;
    let gradient = gradient * by.gradient_factor;
    let moment_1 = moment_1 * beta_1 + gradient.clone() * (1.0 - beta_1);
    let moment_2 = moment_2 * beta_2 + gradient.square() * (1.0 - beta_2);
    let change = moment_1.clone() * by.step_size / (moment_2.clone().sqrt() * by.root_correction + by.epsilon);
    (weight * by.keep - change, [moment_1, moment_2])
}

/// Σ x² of several tensors together, with one read from the device.
pub(crate) fn sum_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor<2>>) -> f64 {
    let sums: Vec<Tensor<1>> = tensors.map(|tensor| tensor.clone().square().sum()).collect();
    Tensor::cat(sums, 0).into_data().iter::<f64>().sum()
}
