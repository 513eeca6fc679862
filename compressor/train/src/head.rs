//! The loss: cross entropy and KL divergence at the head, and their gradients.

use burn::tensor::Tensor;

use crate::ops::Ops;
use crate::{fused, plain};

/// What the loss is computed from. `M` is the number of positions that count; no tensor carries autodiff.
pub(crate) struct HeadInputs<'a> {
    /// The student's normalized activations `[M, hidden_size]`.
    pub(crate) hidden: Tensor<2>,
    /// The student's head `[vocab_size, hidden_size]`.
    pub(crate) head: Tensor<2>,
    /// The teacher, where there is one.
    pub(crate) teacher: Option<TeacherHead>,
    /// The token to be predicted at each position, `[M]`.
    pub(crate) targets: &'a [u32],
    /// Multiplies the gradients: 1 / positions that count in the whole step.
    pub(crate) scale: f32,
}

/// The teacher's side of a distillation.
pub(crate) struct TeacherHead {
    /// Its normalized activations `[M, its hidden_size]`.
    pub(crate) hidden: Tensor<2>,
    /// Its head `[vocab_size, its hidden_size]`.
    pub(crate) head: Tensor<2>,
    /// How the two losses are mixed.
    pub(crate) softened: Softened,
}

/// The settings of a distillation's loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softened {
    /// Divides both logits before softmax.
    pub(crate) temperature: f32,
    /// `loss = (1 − kd_ratio) · cross entropy + kd_ratio · temperature² · KL`.
    pub(crate) kd_ratio: f32,
}

/// Losses summed over positions, and the gradient of `scale · loss`.
pub(crate) struct HeadGradients {
    /// Σ −log softmax(logits)\[target\], nats.
    pub(crate) cross_entropy: f64,
    /// Σ KL(softmax(teacher/T) ‖ softmax(student/T)), nats, without the factor T².
    pub(crate) kl: Option<f64>,
    /// With respect to the activations, `[M, hidden_size]`.
    pub(crate) of_hidden: Tensor<2>,
    /// With respect to the head, `[vocab_size, hidden_size]`.
    pub(crate) of_head: Tensor<2>,
}

/// Computes both losses and the gradient of their mix at the head, as Hinton et al. 2015 (arXiv:1503.02531) weigh it.
///
/// Logits exist for some rows at a time: all of them, with their gradients, would be most of a step's memory.
pub(crate) fn head_gradients(ops: Ops, inputs: HeadInputs<'_>) -> HeadGradients {
    match ops {
        Ops::Fused => fused::head_gradients(inputs),
        Ops::Plain => plain::head_gradients(inputs),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::fused::tests::{assert_close, noise};
    use crate::model::values;

    fn tensor(values: &[f32], columns: usize) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / columns, columns]), &Device::flex())
    }

    /// Two tokens, one position, hidden size 1: logits are the head itself.
    fn one_position(ops: Ops, student: [f32; 2], teacher: [f32; 2], softened: Softened) -> HeadGradients {
        let hidden = tensor(&[1.0], 1);
        let teacher = TeacherHead { hidden: hidden.clone(), head: tensor(&teacher, 1), softened };
        head_gradients(ops, HeadInputs { hidden, head: tensor(&student, 1), teacher: Some(teacher), targets: &[0], scale: 1.0 })
    }

    #[test]
    fn losses_and_gradients_at_temperature_2_worked_by_hand() {
        // Teacher logits (2 ln 3, 0) over T = 2: (ln 3, 0), p = (3/4, 1/4). Student logits (0, 0): q = (1/2, 1/2).
        // KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 − 0.173287 = 0.130812. Cross entropy with token 0: ln 2 = 0.693147.
        // Gradient of the mix at kd_ratio 1/2: 1/2 (q − (1, 0)) + 1/2 T (q − p) = (−1/4, 1/4) + (−1/4, 1/4).
        let softened = Softened { temperature: 2.0, kd_ratio: 0.5 };
        for ops in [Ops::Fused, Ops::Plain] {
            let found = one_position(ops, [0.0, 0.0], [2.0 * 3.0_f32.ln(), 0.0], softened);
            assert!((found.kl.unwrap() - 0.130_812).abs() < 1e-6, "{ops:?}: {:?}", found.kl);
            assert!((found.cross_entropy - std::f64::consts::LN_2).abs() < 1e-6, "{ops:?}: {}", found.cross_entropy);
            assert_close("head", &values(found.of_head), &[-0.5, 0.5], 1e-6);
            assert_close("hidden", &values(found.of_hidden), &[0.0], 1e-6);
        }
    }

    #[test]
    fn the_ratio_takes_one_gradient_or_the_other() {
        for ops in [Ops::Fused, Ops::Plain] {
            for (kd_ratio, expected) in [(0.0, [-0.5, 0.5]), (1.0, [-0.5, 0.5])] {
                // Cross entropy alone: q − (1, 0) = (−1/2, 1/2). KL alone: T (q − p) = 2 · (−1/4, 1/4). Both are reported all the same.
                let found = one_position(ops, [0.0, 0.0], [2.0 * 3.0_f32.ln(), 0.0], Softened { temperature: 2.0, kd_ratio });
                assert_close("head", &values(found.of_head), &expected, 1e-6);
                assert!((found.kl.unwrap() - 0.130_812).abs() < 1e-6);
                assert!((found.cross_entropy - std::f64::consts::LN_2).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn equal_logits_have_no_divergence_and_no_gradient() {
        for (ops, bound) in [(Ops::Fused, 0.0), (Ops::Plain, 1e-7)] {
            let found = one_position(ops, [1.5, -0.25], [1.5, -0.25], Softened { temperature: 2.0, kd_ratio: 1.0 });
            assert!(found.kl.unwrap().abs() <= bound, "{ops:?}");
            assert_close("head", &values(found.of_head), &[0.0, 0.0], 1e-7);
        }
    }

    #[test]
    fn chunks_and_both_implementations_agree_at_a_size_of_several_chunks() {
        // 300 rows: two chunks of the composition.
        let (rows, width, teacher_width, vocab_size) = (300, 6, 5, 37);
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 7 % vocab_size as u32).collect();
        let run = |ops| {
            let teacher = TeacherHead {
                hidden: tensor(&noise(rows * teacher_width, 1), teacher_width),
                head: tensor(&noise(vocab_size * teacher_width, 2), teacher_width),
                softened: Softened { temperature: 1.5, kd_ratio: 0.7 },
            };
            let (hidden, head) = (tensor(&noise(rows * width, 3), width), tensor(&noise(vocab_size * width, 4), width));
            head_gradients(ops, HeadInputs { hidden, head, teacher: Some(teacher), targets: &targets, scale: 0.5 })
        };
        let (fused, plain) = (run(Ops::Fused), run(Ops::Plain));
        assert!((fused.cross_entropy - plain.cross_entropy).abs() < 1e-5 * plain.cross_entropy);
        assert!((fused.kl.unwrap() - plain.kl.unwrap()).abs() < 1e-5 * plain.kl.unwrap());
        assert_close("hidden", &values(fused.of_hidden), &values(plain.of_hidden), 1e-6);
        assert_close("head", &values(fused.of_head), &values(plain.of_head), 1e-6);
    }
}
