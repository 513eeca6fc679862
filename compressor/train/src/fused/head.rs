//! The head with its losses and their gradients in one pass, without ever holding all logits.

use rayon::prelude::*;

use super::gemm::{Threads, View, multiply};
use super::simd::{exp, largest, sum_by, sum_of_exp, vectorized};
use super::{Matrix, OwnedMatrix, flex, from_matrix, matrix};
use crate::head::{HeadGradients, HeadInputs, Softened};

/// Bytes of logits that are held at a time, for the student and for the teacher each.
const CHUNK_BYTES: usize = 64 << 20;

/// As [`crate::head::head_gradients`], on Flex: rows in chunks, logits turned into their gradient in place.
pub(crate) fn head_gradients(inputs: HeadInputs<'_>) -> HeadGradients {
    let HeadInputs { hidden, head, teacher, targets, scale } = inputs;
    let (hidden, head) = (flex(hidden), flex(head));
    let (hidden, head) = (matrix(&hidden), matrix(&head));
    let teacher = teacher.map(|teacher| (flex(teacher.hidden), flex(teacher.head), teacher.softened));
    let vocab_size = head.rows;
    let chunk = (CHUNK_BYTES / size_of::<f32>() / vocab_size).clamp(16, hidden.rows.max(16));
    let mut of_hidden = OwnedMatrix::zeros(hidden.rows, hidden.columns);
    let mut of_head = OwnedMatrix::zeros(head.rows, head.columns);
    let mut logits = vec![0.0; chunk.min(hidden.rows) * vocab_size];
    let mut teacher_logits = vec![0.0; if teacher.is_some() { logits.len() } else { 0 }];
    let (mut cross_entropy, mut kl) = (0.0, 0.0);
    for first in (0..hidden.rows).step_by(chunk) {
        let rows = chunk.min(hidden.rows - first);
        let part = hidden.part(first, rows);
        let targets = &targets[first..first + rows];
        let logits = &mut logits[..rows * vocab_size];
        multiply(logits, vocab_size, part.into(), View::from(head).transposed(), 1.0, false, Threads::All);
        let losses: Vec<(f64, f64)> = match &teacher {
            None => {
                let rows = logits.par_chunks_mut(vocab_size).zip(targets);
                rows.map(|(logits, target)| (cross_entropy_row(logits, *target as usize, scale), 0.0)).collect()
            }
            Some((teacher_hidden, teacher_head, softened)) => {
                let teacher_logits = &mut teacher_logits[..rows * vocab_size];
                let (part, head) = (matrix(teacher_hidden).part(first, rows), matrix(teacher_head));
                multiply(teacher_logits, vocab_size, part.into(), View::from(head).transposed(), 1.0, false, Threads::All);
                let rows = logits.par_chunks_mut(vocab_size).zip(teacher_logits.par_chunks(vocab_size)).zip(targets);
                rows.map(|((logits, teacher), target)| distill_row(logits, teacher, *target as usize, *softened, scale)).collect()
            }
        };
        for (row_cross_entropy, row_kl) in losses {
            cross_entropy += row_cross_entropy;
            kl += row_kl;
        }
        let of_logits = Matrix { values: logits, rows, columns: vocab_size };
        let of_part = &mut of_hidden.values[first * hidden.columns..];
        multiply(of_part, hidden.columns, of_logits.into(), head.into(), 1.0, false, Threads::All);
        multiply(
            &mut of_head.values,
            head.columns,
            View::from(of_logits).transposed(),
            part.into(),
            1.0,
            first > 0,
            Threads::All,
        );
    }
    HeadGradients {
        cross_entropy,
        kl: teacher.is_some().then_some(kl),
        of_hidden: from_matrix(of_hidden),
        of_head: from_matrix(of_head),
    }
}

/// The cross entropy of a row of logits, which become `scale` times its gradient: softmax − one-hot.
fn cross_entropy_row(logits: &mut [f32], target: usize, scale: f32) -> f64 {
    let shift = largest(logits);
    let sum = sum_of_exp(logits, shift, 1.0);
    let loss = f64::from(shift - logits[target]) + f64::from(sum).ln();
    weighted_softmax(logits, shift, scale / sum);
    logits[target] -= scale;
    loss
}

/// Cross entropy and KL divergence of a row of logits, which become `scale` times the gradient of
/// `(1 − kd_ratio) · cross entropy + kd_ratio · T² · KL`; the gradient of T²·KL is T · (softmax(s/T) − softmax(t/T)).
fn distill_row(logits: &mut [f32], teacher: &[f32], target: usize, softened: Softened, scale: f32) -> (f64, f64) {
    let Softened { temperature, kd_ratio } = softened;
    let inverse = 1.0 / temperature;
    let (shift, teacher_shift) = (largest(logits), largest(teacher));
    let sum = sum_of_exp(logits, shift, 1.0);
    let cross_entropy = f64::from(shift - logits[target]) + f64::from(sum).ln();
    let soft_sum = sum_of_exp(logits, shift, inverse);
    let teacher_sum = sum_of_exp(teacher, teacher_shift, inverse);
    // Σ p · (log p − log q) with log p = (t − shift)/T − ln Z.
    let distance = log_distance(logits, teacher, shift, teacher_shift, inverse) / teacher_sum;
    let kl = f64::from(distance) + f64::from(soft_sum).ln() - f64::from(teacher_sum).ln();

    let hard = scale * (1.0 - kd_ratio);
    let soft = scale * kd_ratio * temperature;
    let weights =
        DistillWeights { hard: hard / sum, soft: soft / soft_sum, teacher: soft / teacher_sum, inverse, shift, teacher_shift };
    // Exact comparison: only a ratio of 1 leaves the cross entropy's gradient out.
    if kd_ratio == 1.0 {
        soft_gradient(logits, teacher, weights);
    } else {
        mixed_gradient(logits, teacher, weights);
        logits[target] -= hard;
    }
    (cross_entropy, kl)
}

/// What the exponentials of a row are multiplied with in its gradient.
#[derive(Clone, Copy)]
struct DistillWeights {
    hard: f32,
    soft: f32,
    teacher: f32,
    inverse: f32,
    shift: f32,
    teacher_shift: f32,
}

vectorized! {
    /// xᵢ ← weight · exp(xᵢ − shift).
    fn weighted_softmax(x: &mut [f32], shift: f32, weight: f32) {
        for x in x.iter_mut() {
            *x = weight * exp(*x - shift);
        }
    }
}

vectorized! {
    /// Σ exp(t) · (t − s) with both logits shifted and divided by the temperature.
    fn log_distance(student: &[f32], teacher: &[f32], shift: f32, teacher_shift: f32, inverse: f32) -> f32 {
        let teacher = &teacher[..student.len()];
        sum_by(student.len(), |i| {
            let (s, t) = ((student[i] - shift) * inverse, (teacher[i] - teacher_shift) * inverse);
            exp(t) * (t - s)
        })
    }
}

vectorized! {
    fn soft_gradient(student: &mut [f32], teacher: &[f32], weights: DistillWeights) {
        let DistillWeights { soft, teacher: of_teacher, inverse, shift, teacher_shift, .. } = weights;
        for (s, t) in student.iter_mut().zip(teacher) {
            *s = soft * exp((*s - shift) * inverse) - of_teacher * exp((t - teacher_shift) * inverse);
        }
    }
}

vectorized! {
    fn mixed_gradient(student: &mut [f32], teacher: &[f32], weights: DistillWeights) {
        let DistillWeights { hard, soft, teacher: of_teacher, inverse, shift, teacher_shift } = weights;
        for (s, t) in student.iter_mut().zip(teacher) {
            let x = *s - shift;
            *s = hard * exp(x) + soft * exp(x * inverse) - of_teacher * exp((t - teacher_shift) * inverse);
        }
    }
}
