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
