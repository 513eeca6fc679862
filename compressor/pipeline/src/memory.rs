//! Estimates of peak memory, from what each stage keeps at once. They err on the large side; the report has what was measured.

use compressor_format::{Architecture, EmbeddingScheme, LayerShape, Scaling, TensorId, TrainingKeys};

use crate::quantize::{self, Quantization};

// Sums are of 128 bits: limits of the recipe's keys and of a model's sizes, multiplied with each other, leave 64.
const F32: u128 = 4;
/// The program, the tokenizer, the dataset, buffers.
const OVERHEAD_BYTES: u128 = 100 << 20;
/// Weights, gradients and two moments of AdamW.
const TRAINED_COPIES: u128 = 4;
/// Rows of logits that the loss works on at once, student's, teacher's and the gradient.
const LOGIT_ROWS: u128 = 3 * 512;

fn parameters(model: &Architecture) -> u128 {
    model.parameters().into()
}

fn clamped(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Training a student, with or without a teacher; where its weights are rounded, both are there.
pub(crate) fn training(
    student: &Architecture,
    teacher: Option<&Architecture>,
    keys: &TrainingKeys,
    quantization_aware: bool,
) -> u64 {
    let copies = TRAINED_COPIES + u128::from(quantization_aware);
    clamped(descending(student, copies * parameters(student) * F32, teacher, keys))
}

/// Learning scales: the weights made of them and their gradients, and the artifact's own bytes, of which scales, gradients and moments
/// are smaller parts.
pub(crate) fn learning_scales(student: &Architecture, teacher: &Architecture, artifact_bytes: u64, keys: &TrainingKeys) -> u64 {
    clamped(descending(student, 2 * parameters(student) * F32 + 2 * u128::from(artifact_bytes), Some(teacher), keys))
}

/// Steps of a student that takes `student_bytes`.
fn descending(student: &Architecture, student_bytes: u128, teacher: Option<&Architecture>, keys: &TrainingKeys) -> u128 {
    let tokens = (keys.batch_size * keys.sequence_length) as u128;
    let logits = LOGIT_ROWS.min(tokens * 3) * student.vocab_size as u128 * F32;
    let teacher_bytes = teacher.map_or(0, |teacher| {
        let widest = teacher.layers.iter().map(|layer| layer.intermediate_size as u128).max().unwrap_or(0);
        parameters(teacher) * F32 + tokens * (widest * 4 + teacher.hidden_size as u128 * 4) * F32
    });
    OVERHEAD_BYTES + student_bytes + tape(student, tokens, keys.sequence_length as u128) + logits + teacher_bytes
}

/// What autodiff keeps for the backward pass: per layer about ten vectors of the hidden width, the projections, four of the
/// intermediate width, and the attention scores.
fn tape(model: &Architecture, tokens: u128, length: u128) -> u128 {
    let layer = |heads: usize, kv_heads: usize, channels: usize| {
        let projections = ((heads + kv_heads) * 3 * model.head_dim) as u128;
        let scores = heads as u128 * length * 2;
        10 * model.hidden_size as u128 + projections + 4 * channels as u128 + scores
    };
    let floats: u128 = model.layers.iter().map(|shape| layer(shape.heads, shape.kv_heads, shape.intermediate_size)).sum();
    tokens * floats * F32
}

/// Pruning: the weights before and after, and the engine for calibration.
pub(crate) fn pruning(model: &Architecture) -> u64 {
    clamped(OVERHEAD_BYTES + 3 * parameters(model) * F32)
}

/// What a quantization holds at its worst moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantizing {
    /// With everything in memory.
    pub(crate) in_memory: u64,
    /// With the activations of the text on the disk; `None` where it looks at no text.
    pub(crate) spilled: Option<u64>,
    /// Bytes of those activations.
    pub(crate) activations: u64,
}

/// Quantizing: the matrix that is worked on, and where text is looked at one layer, what is known of an input and some windows of
/// activations; then the artifact in the engine, on one window of `measured_window` tokens, where it is not 0.
pub(crate) fn quantizing(
    model: &Architecture,
    quantization: &Quantization,
    (calibration_tokens, window): (usize, usize),
    (artifact_bytes, measured_window): (u64, usize),
) -> Quantizing {
    let weights = |id: &TensorId| model.shape(*id).iter().product::<usize>() as u128;
    let (ends, inside): (Vec<TensorId>, Vec<TensorId>) =
        model.tensors().into_iter().partition(|id| matches!(id, TensorId::Embedding | TensorId::Head));
    // Query, key and value are one matrix in some families.
    let largest = 3 * inside.iter().map(weights).max().unwrap_or(0);
    let end = ends.iter().map(weights).max().unwrap_or(0);
    let worked_on = BYTES_WORKED_ON * largest.max(end.min(quantize::ELEMENTS as u128));
    let dense_end = if quantization.embedding == EmbeddingScheme::Dense { 2 * F32 * end } else { 0 };
    let measuring = match measured_window {
        0 => 0,
        window => u128::from(artifact_bytes) * 5 / 4 + 2 * (window * model.vocab_size) as u128 * F32,
    };
    let plain = OVERHEAD_BYTES + worked_on.max(dense_end).max(measuring);
    if !quantization.calibrates() {
        return Quantizing { in_memory: clamped(plain), spilled: None, activations: 0 };
    }
    let layer = inside.iter().map(weights).sum::<u128>() / model.layers.len().max(1) as u128;
    let inputs = widths(model);
    let widest = inputs.into_iter().max().unwrap_or(0) as u128;
    // Sums in f32; the matrix and the factor in f64, with half of another between them.
    let mut of_inputs = 28 * widest * widest;
    if quantization.scaling != Scaling::None {
        of_inputs += F32 * inputs.into_iter().map(|width| (width * width) as u128).sum::<u128>();
    }
    let some_windows = (quantize::WINDOWS * window) as u128 * (10 * model.hidden_size as u128 + 5 * widest) * F32;
    let activations = calibration_tokens as u128 * (model.hidden_size as u128 + widest) * F32;
    let spilled = (OVERHEAD_BYTES + worked_on.max(dense_end) + 3 * layer * F32 + of_inputs + some_windows).max(plain);
    let in_memory = clamped((spilled + activations).max(plain));
    Quantizing { in_memory, spilled: Some(clamped(spilled)), activations: clamped(activations) }
}

/// Bytes for each weight of a matrix that is worked on: the weights, twice, their integers, the reals that these stand for, errors.
const BYTES_WORKED_ON: u128 = 24;

/// Of what the projections of a layer multiply, the widest of all layers.
fn widths(model: &Architecture) -> [usize; 4] {
    let widest = |width: fn(&LayerShape) -> usize| model.layers.iter().map(width).max().unwrap_or(0);
    let heads = widest(|layer| layer.heads) * model.head_dim;
    [model.hidden_size, heads, model.hidden_size, widest(|layer| layer.intermediate_size)]
}

/// Measuring what candidates do: residual stream, inputs and outputs of a layer for each, logits of two, and an embedding in f32 beside
/// the model's own, with what it is made of.
pub(crate) fn sensing(model: &Architecture, tokens: usize) -> u64 {
    let channels = widths(model).into_iter().max().unwrap_or(0);
    let end = (model.vocab_size * model.hidden_size) as u128;
    let streams = tokens as u128 * (2 * model.hidden_size + 3 * channels) as u128 * F32;
    clamped(OVERHEAD_BYTES + streams + 4 * end * F32 + 2 * crate::quantize::LOGIT_FLOATS as u128 * F32)
}

/// Measuring a checkpoint: its weights in the engine, and the logits of one window.
pub(crate) fn measuring(model: &Architecture, window: usize) -> u64 {
    clamped(OVERHEAD_BYTES + parameters(model) * F32 + 2 * (window * model.vocab_size) as u128 * F32)
}

/// Verifying: reference and artifact in the engine and in the trainer, with one window's logits of each.
pub(crate) fn verifying(model: &Architecture, artifact_bytes: u64, window: usize) -> u64 {
    let logits = 2 * (window * model.vocab_size) as u128 * F32;
    clamped(OVERHEAD_BYTES + 2 * parameters(model) * F32 + u128::from(artifact_bytes) + logits)
}
