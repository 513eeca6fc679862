//! Differentiable operations fused for Flex: forward and backward as kernels over slices instead of a dozen tensors each.
//!
//! An operation is a value that holds its settings and implements [`Operation`] over row-major matrices. [`FusedOps`] lifts any such
//! value to Burn's tensors, with and without autodiff. Other devices use the compositions in `plain.rs`, which are also the judge of
//! these in tests.

mod activation;
mod adamw;
mod attention;
mod gather;
mod gemm;
mod head;
mod linear;
mod norm;
mod rotary;
pub(crate) mod simd;

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Shape, Tensor};

pub(crate) use activation::{Activate, Gate};
pub(crate) use adamw::{AdamWUpdate, adamw, sum_of_squares};
pub(crate) use attention::Attention;
pub(crate) use gather::{Gather, scatter_add};
pub(crate) use head::head_gradients;
pub(crate) use linear::Linear;
pub(crate) use norm::{LayerNorm, RmsNorm};
pub(crate) use rotary::{RotaryTable, Rotate};

/// A differentiable operation on `N` matrices.
pub(crate) trait Operation<const N: usize>: Clone + Debug + Send + Sync + 'static {
    /// The result, and what [`Self::backward`] needs beside the inputs.
    fn forward(&self, inputs: [Matrix<'_>; N]) -> (OwnedMatrix, Vec<f32>);

    /// The loss' gradient with respect to each input, in its shape, from that with respect to the result.
    fn backward(&self, inputs: [Matrix<'_>; N], saved: &[f32], gradient: Matrix<'_>) -> [Vec<f32>; N];
}

/// A row-major matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    /// `[rows, columns]`.
    pub(crate) values: &'a [f32],
    /// Its rows.
    pub(crate) rows: usize,
    /// Its columns.
    pub(crate) columns: usize,
}

/// A row-major matrix that owns its values.
#[derive(Clone, Debug)]
pub(crate) struct OwnedMatrix {
    /// `[rows, columns]`.
    pub(crate) values: Vec<f32>,
    /// Its rows.
    pub(crate) rows: usize,
    /// Its columns.
    pub(crate) columns: usize,
}

/// Applies operations to Burn's tensors. The attribute writes the implementation for tensors of any device, which refuses other
/// devices than Flex by a panic: `ops.rs` never asks for that.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedOps: Backend {
    /// Applies an operation of one input.
    fn apply_1<O: Operation<1>>(operation: O, a: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Applies an operation of two inputs.
    fn apply_2<O: Operation<2>>(operation: O, a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Applies an operation of three inputs.
    fn apply_3<O: Operation<3>>(
        operation: O,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Applies an operation of one input.
pub(crate) fn apply_1(operation: impl Operation<1>, a: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::apply_1(operation, a.into_dispatch()))
}

/// Applies an operation of two inputs.
pub(crate) fn apply_2(operation: impl Operation<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::apply_2(operation, a.into_dispatch(), b.into_dispatch()))
}

/// Applies an operation of three inputs.
pub(crate) fn apply_3(operation: impl Operation<3>, a: Tensor<2>, b: Tensor<2>, c: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::apply_3(operation, a.into_dispatch(), b.into_dispatch(), c.into_dispatch()))
}

impl FusedOps for Flex {
    fn apply_1<O: Operation<1>>(operation: O, a: FlexTensor) -> FlexTensor {
        forward(&operation, &[contiguous(a)]).0
    }

    fn apply_2<O: Operation<2>>(operation: O, a: FlexTensor, b: FlexTensor) -> FlexTensor {
        forward(&operation, &[a, b].map(contiguous)).0
    }

    fn apply_3<O: Operation<3>>(operation: O, a: FlexTensor, b: FlexTensor, c: FlexTensor) -> FlexTensor {
        forward(&operation, &[a, b, c].map(contiguous)).0
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn apply_1<O: Operation<1>>(operation: O, a: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<O, C, 1>(operation, [a])
    }

    fn apply_2<O: Operation<2>>(operation: O, a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<O, C, 2>(operation, [a, b])
    }

    fn apply_3<O: Operation<3>>(
        operation: O,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<O, C, 3>(operation, [a, b, c])
    }
}

/// Runs the operation and records its backward pass where an input is tracked.
fn record<O: Operation<N>, C: CheckpointStrategy, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    match Recorded(operation.clone()).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let inputs = inputs.map(|input| contiguous(input.into_primitive()));
            let (output, saved) = forward(&operation, &inputs);
            prepared.finish((inputs, Arc::new(saved)), output)
        }
        OpsKind::UnTracked(prepared) => {
            let inputs = inputs.map(|input| contiguous(input.into_primitive()));
            prepared.finish(forward(&operation, &inputs).0)
        }
    }
}

/// The backward pass of an operation.
#[derive(Debug)]
struct Recorded<O>(O);

impl<O: Operation<N>, const N: usize> Backward<Flex, N> for Recorded<O> {
    type State = ([FlexTensor; N], Arc<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (inputs, saved) = ops.state;
        let gradient = contiguous(gradients.consume::<Flex>(&ops.node));
        let of_inputs = self.0.backward(inputs.each_ref().map(matrix), &saved, matrix(&gradient));
        for ((parent, input), values) in ops.parents.into_iter().zip(&inputs).zip(of_inputs) {
            if let Some(parent) = parent {
                let Matrix { rows, columns, .. } = matrix(input);
                gradients.register::<Flex>(parent.id, tensor(OwnedMatrix { values, rows, columns }));
            }
        }
    }
}

fn forward<O: Operation<N>, const N: usize>(operation: &O, inputs: &[FlexTensor; N]) -> (FlexTensor, Vec<f32>) {
    let (output, saved) = operation.forward(inputs.each_ref().map(matrix));
    (tensor(output), saved)
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The values behind a tensor that is contiguous, as [`flex`] makes them.
pub(crate) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let shape = tensor.layout().shape();
    let values = tensor.as_slice().expect("`contiguous` was called, and every tensor of this crate is f32");
    Matrix { values, rows: shape[0], columns: shape[1] }
}

fn tensor(matrix: OwnedMatrix) -> FlexTensor {
    let OwnedMatrix { values, rows, columns } = matrix;
    debug_assert_eq!(values.len(), rows * columns);
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(vec![rows, columns])), DType::F32)
}

/// The Flex tensor behind a tensor without autodiff.
pub(crate) fn flex(tensor: Tensor<2>) -> FlexTensor {
    contiguous(tensor.try_into_primitive::<Flex>().expect("the fused operations are asked for on Flex alone, without autodiff"))
}

/// A tensor from values made by a kernel.
pub(crate) fn from_matrix(matrix: OwnedMatrix) -> Tensor<2> {
    Tensor::from_primitive::<Flex>(tensor(matrix))
}

impl<'a> Matrix<'a> {
    /// The values of a row.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    fn part(&self, first: usize, rows: usize) -> Self {
        Self { values: &self.values[first * self.columns..(first + rows) * self.columns], rows, columns: self.columns }
    }
}

impl OwnedMatrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { values: vec![0.0; rows * columns], rows, columns }
    }
}

#[cfg(test)]
pub(crate) mod tests;
