//! The operations of a decoder: fused kernels on Flex, compositions of Burn's own operations on every other device.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use compressor_format::{Activation, Batch, Norm, NormKind};

use crate::batch::{Packed, Sequences};
use crate::device::is_flex;
use crate::fused::{self, RotaryTable};
use crate::model::values;
use crate::optimizer::Update;
use crate::plain;

/// Which implementation computes. Both give the same numbers up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ops {
    /// Kernels over slices: Flex alone.
    Fused,
    /// Burn's own operations: any device.
    Plain,
}

/// The sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Ops {
    /// The faster that the device has.
    pub(crate) fn of(device: &Device) -> Self {
        if is_flex(device) { Self::Fused } else { Self::Plain }
    }

    /// A batch in the form these operations take.
    pub(crate) fn pack(self, batch: &Batch) -> Packed {
        match self {
            Self::Fused => Packed::trimmed(batch),
            Self::Plain => Packed::rectangular(batch),
        }
    }

    /// A tensor with the values that `replace` makes of its own, on the host; itself where that makes none.
    pub(crate) fn replace_values<E>(
        self,
        tensor: Tensor<2>,
        replace: impl FnOnce(&[f32]) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<Tensor<2>, E> {
        let ([rows, columns], device) = (tensor.dims(), tensor.device());
        let replaced = match self {
            // Where they lie.
            Self::Fused => replace(fused::matrix(&fused::flex(tensor.clone())).values)?,
            Self::Plain => replace(&values(tensor.clone()))?,
        };
        Ok(match replaced {
            Some(values) => Tensor::from_data(TensorData::new(values, [rows, columns]), &device),
            None => tensor,
        })
    }

    /// `x·Wᵀ + bias`: `x` `[N, in]`, `weight` `[out, in]`, `bias` `[1, out]`.
    pub(crate) fn linear(self, x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<2>>) -> Tensor<2> {
        let product = match self {
            Self::Fused => fused::apply_2(fused::Linear, x, weight),
            Self::Plain => x.matmul(weight.transpose()),
        };
        match bias {
            Some(bias) => product + bias,
            None => product,
        }
    }

    /// Normalizes each row of `x` `[N, width]`; `weight` and `bias` `[1, width]`.
    pub(crate) fn norm(self, norm: Norm, x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<2>>) -> Tensor<2> {
        let epsilon = norm.epsilon as f32;
        match (norm.kind, bias) {
            (NormKind::Layer, Some(bias)) => match self {
                Self::Fused => fused::apply_3(fused::LayerNorm { epsilon }, x, weight, bias),
                Self::Plain => plain::layer_norm(x, weight, bias, epsilon),
            },
            _ => self.rms_norm(x, weight, epsilon),
        }
    }

    /// RMSNorm of each stretch of `x` `[N, heads · width]` as wide as `weight` `[1, width]`.
    pub(crate) fn rms_norm(self, x: Tensor<2>, weight: Tensor<2>, epsilon: f32) -> Tensor<2> {
        match self {
            Self::Fused => fused::apply_2(fused::RmsNorm { epsilon }, x, weight),
            Self::Plain => plain::rms_norm(x, weight, epsilon),
        }
    }

    /// `activation(gate) · up`, both `[N, width]`.
    pub(crate) fn gate(self, activation: Activation, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Fused => fused::apply_2(fused::Gate { activation }, gate, up),
            Self::Plain => plain::activate(activation, gate) * up,
        }
    }

    /// `activation(x)`.
    pub(crate) fn activate(self, activation: Activation, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Fused => fused::apply_1(fused::Activate { activation }, x),
            Self::Plain => plain::activate(activation, x),
        }
    }

    /// Rotates each head of `x` `[N, heads · head_dim]` by the angles of its position.
    pub(crate) fn rotate(self, x: Tensor<2>, table: &Arc<RotaryTable>, sequences: &Arc<Sequences>) -> Tensor<2> {
        match self {
            Self::Fused => fused::apply_1(fused::Rotate { table: table.clone(), sequences: sequences.clone() }, x),
            Self::Plain => plain::rotate(x, table, sequences),
        }
    }

    /// Causal attention within each sequence: `q` `[N, heads · head_dim]`, `k` and `v` `[N, kv_heads · head_dim]`.
    pub(crate) fn attention(
        self,
        sizes: Heads,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        sequences: &Arc<Sequences>,
    ) -> Tensor<2> {
        let Heads { heads, kv_heads, head_dim } = sizes;
        match self {
            Self::Fused => {
                let operation = fused::Attention { sequences: sequences.clone(), heads, kv_heads, head_dim };
                fused::apply_3(operation, q, k, v)
            }
            Self::Plain => plain::attention(sizes, q, k, v, sequences),
        }
    }

    /// `x[rows]`, `[rows, width]`.
    pub(crate) fn gather(self, x: Tensor<2>, rows: &Arc<[u32]>) -> Tensor<2> {
        match self {
            Self::Fused => fused::apply_1(fused::Gather { rows: rows.clone() }, x),
            Self::Plain => {
                let rows = plain::indices(rows, &x.device());
                x.select(0, rows)
            }
        }
    }

    /// `into[rows[i]] += from[i]`, without autodiff.
    pub(crate) fn scatter_add(self, into: Tensor<2>, rows: &[u32], from: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Fused => fused::scatter_add(into, rows, from),
            Self::Plain => {
                let rows = plain::indices(rows, &into.device());
                into.select_assign(0, rows, from, burn::tensor::IndexingUpdateOp::Add)
            }
        }
    }

    /// One AdamW update of a tensor and its two moments, without autodiff.
    pub(crate) fn adamw(
        self,
        weight: Tensor<2>,
        gradient: Tensor<2>,
        moments: [Tensor<2>; 2],
        by: Update,
    ) -> (Tensor<2>, [Tensor<2>; 2]) {
        match self {
            Self::Fused => fused::adamw(weight, gradient, moments, by),
            Self::Plain => plain::adamw(weight, gradient, moments, by),
        }
    }

    /// Σ x² of several tensors together, without autodiff.
    pub(crate) fn sum_of_squares<'a>(self, tensors: impl Iterator<Item = &'a Tensor<2>>) -> f64 {
        match self {
            Self::Fused => tensors.map(fused::sum_of_squares).sum(),
            Self::Plain => plain::sum_of_squares(tensors),
        }
    }
}
