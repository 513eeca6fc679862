//! Estimates of peak memory, from what each stage keeps at once. They err on the large side; the report has what was measured.

use compressor_format::{Architecture, TrainingKeys};

const F32: u64 = 4;
/// The program, the tokenizer, the dataset, buffers.
const OVERHEAD_BYTES: u64 = 150 << 20;
/// Weights, gradients and two moments of AdamW.
const TRAINED_COPIES: u64 = 4;
/// Rows of logits that the loss works on at once, student's, teacher's and the gradient.
const LOGIT_ROWS: u64 = 3 * 512;

/// Training a student, with or without a teacher; where its weights are rounded, both are there.
pub(crate) fn training(
    student: &Architecture,
    teacher: Option<&Architecture>,
    keys: &TrainingKeys,
    quantization_aware: bool,
) -> u64 {
    let copies = TRAINED_COPIES + u64::from(quantization_aware);
    descending(student, copies * student.parameters() * F32, teacher, keys)
}

/// Learning scales: the weights made of them and their gradients, and the artifact's own bytes, of which scales, gradients and moments
/// are smaller parts.
pub(crate) fn learning_scales(student: &Architecture, teacher: &Architecture, artifact_bytes: u64, keys: &TrainingKeys) -> u64 {
    descending(student, 2 * student.parameters() * F32 + 2 * artifact_bytes, Some(teacher), keys)
}

/// Steps of a student that takes `student_bytes`.
fn descending(student: &Architecture, student_bytes: u64, teacher: Option<&Architecture>, keys: &TrainingKeys) -> u64 {
    let tokens = (keys.batch_size * keys.sequence_length) as u64;
    let logits = LOGIT_ROWS.min(tokens * 3) * student.vocab_size as u64 * F32;
    let teacher_bytes = teacher.map_or(0, |teacher| {
        let widest = teacher.layers.iter().map(|layer| layer.intermediate_size as u64).max().unwrap_or(0);
        teacher.parameters() * F32 + tokens * (widest * 4 + teacher.hidden_size as u64 * 4) * F32
    });
    OVERHEAD_BYTES + student_bytes + tape(student, tokens, keys.sequence_length as u64) + logits + teacher_bytes
}

/// What autodiff keeps for the backward pass: per layer about ten vectors of the hidden width, the projections, four of the
/// intermediate width, and the attention scores.
fn tape(model: &Architecture, tokens: u64, length: u64) -> u64 {
    let layer = |heads: usize, kv_heads: usize, channels: usize| {
        let projections = ((heads + kv_heads) * 3 * model.head_dim) as u64;
        let scores = heads as u64 * length * 2;
        10 * model.hidden_size as u64 + projections + 4 * channels as u64 + scores
    };
    let floats: u64 = model.layers.iter().map(|shape| layer(shape.heads, shape.kv_heads, shape.intermediate_size)).sum();
    tokens * floats * F32
}

/// Pruning: the weights before and after, and the engine for calibration.
pub(crate) fn pruning(model: &Architecture) -> u64 {
    OVERHEAD_BYTES + 3 * model.parameters() * F32
}

/// Quantizing: the artifact in memory and the largest matrix twice.
pub(crate) fn quantizing(model: &Architecture, artifact_bytes: u64) -> u64 {
    let largest = model.tensors().into_iter().map(|id| model.shape(id).iter().product::<usize>() as u64).max().unwrap_or(0);
    OVERHEAD_BYTES + artifact_bytes + 3 * largest * F32
}

/// Calibrating layer by layer: the residual stream, the inputs and the outputs of one projection, its Hessian and what is made of it.
pub(crate) fn calibrating(model: &Architecture, tokens: usize) -> u64 {
    let channels = model.layers.iter().map(|layer| layer.intermediate_size.max(layer.heads * model.head_dim)).max().unwrap_or(0);
    let streams = tokens * (2 * model.hidden_size + channels);
    ((streams + 10 * channels * channels) as u64) * F32
}

/// Measuring what candidates do: residual stream, inputs and outputs of a layer for each, and logits of two.
pub(crate) fn sensing(model: &Architecture, tokens: usize) -> u64 {
    let channels = model.layers.iter().map(|layer| layer.intermediate_size.max(layer.heads * model.head_dim)).max().unwrap_or(0);
    (tokens * (2 * model.hidden_size + 3 * channels)) as u64 * F32 + 2 * crate::quantize::LOGIT_FLOATS as u64 * F32
}

/// Verifying: reference and artifact in the engine and in the trainer, with one window's logits of each.
pub(crate) fn verifying(model: &Architecture, artifact_bytes: u64, window: usize) -> u64 {
    OVERHEAD_BYTES + 2 * model.parameters() * F32 + artifact_bytes + 2 * (window * model.vocab_size) as u64 * F32
}
