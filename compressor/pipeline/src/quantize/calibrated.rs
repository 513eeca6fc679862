//! Layer after layer over calibration text: every projection sees what the already quantized ones before it make of the text.
//!
//! One pass of the engine in f32 does it: the inputs of a projection are gathered over all windows, its weights are quantized, and only
//! then is it computed, with the values that its integers stand for. Where inputs are scaled, each layer is scaled before that. The head
//! comes last, a tied embedding as the head that it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use compressor_engine::{Block, Blocks};
use compressor_format::{Architecture, Checkpoint, Dtype, LayerTensor, Levels, Method, Scaling, Storage, StoredTensor, TensorId};
use serde::{Deserialize, Serialize};

use super::gptq::{self, Hessian, NotPositiveDefinite};
use super::journal::Journal;
use super::matrix::Matrix;
use super::scaling::{self, LayerScaling};
use super::{Distance, Error, Quantization, assemble, clipping, overflow, round_to_nearest, values};

/// Text that the quantizer looks at.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Whole windows, one after the other.
    pub tokens: Vec<u32>,
    /// Tokens of one window, which does not see the others.
    pub window: usize,
    /// A folder for layers that are finished: a quantization that was stopped goes on after them. It must belong to this quantization
    /// alone, and is removed in the end.
    pub kept_in: Option<PathBuf>,
}

/// A tensor that is finished.
pub(super) struct Quantized {
    pub(super) matrix: Matrix,
    pub(super) distance: Distance,
    pub(super) output_error: OutputError,
    /// Of what it multiplies, where that is rounded with one scale for all tokens.
    pub(super) input_scale: Option<f32>,
}

/// Everything that was made layer by layer.
#[derive(Default)]
pub(super) struct Calibrated {
    /// By name.
    pub(super) tensors: BTreeMap<String, Quantized>,
    /// Of each layer; empty where nothing is scaled.
    pub(super) scaling: Vec<LayerScaling>,
}

/// What quantized weights add to a projection's output on calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OutputError {
    /// Mean square of the difference ÷ mean square of the output.
    pub(super) relative: f64,
    /// The same, had the weights been rounded to nearest; `None` for codebooks, which round to no grid.
    pub(super) rounded_to_nearest: Option<f64>,
}

/// What a projection multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Input {
    Attention,
    Output,
    Mlp,
    Down,
}

impl Input {
    /// In the order of the computation.
    pub(super) const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Mlp, Self::Down];

    /// It, for what comes into the layer.
    pub(super) fn of(self, block: &Block<'_>, x: &[f32], window: usize) -> Vec<f32> {
        let attention_input = block.attention_input(x);
        if self == Self::Attention {
            return attention_input;
        }
        let output_input = block.output_input(attention_input, window);
        if self == Self::Output {
            return output_input;
        }
        let mut x = x.to_vec();
        block.add_output(&mut x, output_input);
        let mlp_input = block.mlp_input(&x);
        if self == Self::Mlp { mlp_input } else { block.down_input(mlp_input) }
    }
}

/// Windows that go through a layer together.
const WINDOWS: usize = 4;

/// Quantizes every projection inside the layers of `checkpoint`, and the head, where `layout` wants them as integers.
///
/// `done` is called with the number of layers that are finished. Layers that `calibration.kept_in` has are taken from there, and only
/// computed with.
pub(super) fn quantize_layers(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    layout: &[(StoredTensor, Storage)],
    calibration: &Calibration,
    done: &mut dyn FnMut(usize),
) -> Result<Calibrated, Error> {
    let blocks = Blocks::new(checkpoint, crate::engine_options())?;
    let mut finished = Calibrated::default();
    let Calibration { tokens, window, .. } = calibration;
    let (tokens, window) = (tokens.len(), *window);
    // The residual stream, and what the next projections multiply: one allocation each, so that freed ones go back to the system.
    let mut x = blocks.embed(&calibration.tokens, window)?;
    let part = |values: &[f32]| WINDOWS * window * (values.len() / tokens);
    let through = |values: &[f32], step: &dyn Fn(&[f32]) -> Vec<f32>| {
        let mut all = Vec::new();
        let width = values.len() / tokens;
        for values in values.chunks(part(values)) {
            let made = step(values);
            if all.is_empty() {
                all.reserve_exact(made.len() / (values.len() / width) * tokens);
            }
            all.extend_from_slice(&made);
        }
        all
    };
    let journal = calibration.kept_in.as_deref().map(|folder| Journal::new(folder, quantization, layout));
    for index in 0..checkpoint.architecture().layers.len() {
        let mut block = blocks.block(index)?;
        let kept = journal.as_ref().and_then(|journal| journal.read(index));
        let is_kept = kept.is_some();
        let (mut here, mut scaling) = kept.unwrap_or_default();
        if quantization.scaling != Scaling::None && !is_kept {
            scaling = scaling::find(checkpoint, quantization, layout, (&block, index), x.chunks(part(&x)), window)?;
        }
        scaling.put_dense(&mut block, checkpoint, layout, index)?;
        let mut quantize = |block: &mut Block<'_>, input, x: &[f32]| -> Result<(), Error> {
            let places = layout.iter().filter(|(stored, _)| place_of(stored.parts[0]) == Some((index, input)));
            let tensors: Vec<_> = places.filter_map(|(stored, storage)| Some((stored, storage, storage.levels()?))).collect();
            if let Some((first, ..)) = tensors.first().filter(|_| !is_kept) {
                let hessian = Hessian::of(x.len() / tokens, x.chunks(part(x)));
                let gathered = Gathered::new(checkpoint, quantization, first, hessian)?;
                for (stored, storage, levels) in &tensors {
                    let values = scaling.apply(checkpoint.architecture(), stored, values(checkpoint, stored)?);
                    let mut quantized = gathered.quantize(stored, &values, *levels)?;
                    if let Storage::SignedStatic(_) = storage {
                        quantized.input_scale = Some(static_scale(x, stored, quantization.scale_dtype)?);
                    }
                    here.insert(stored.name.clone(), quantized);
                }
            }
            for (stored, ..) in tensors {
                put(block, checkpoint, stored, here[&stored.name].matrix.to_f32());
            }
            Ok(())
        };
        let attention_input = through(&x, &|x| block.attention_input(x));
        quantize(&mut block, Input::Attention, &attention_input)?;
        let output_input = through(&attention_input, &|x| block.output_input(x.to_vec(), window));
        drop(attention_input);
        quantize(&mut block, Input::Output, &output_input)?;
        let part_of_x = part(&x);
        for (x, output_input) in x.chunks_mut(part_of_x).zip(output_input.chunks(part(&output_input))) {
            block.add_output(x, output_input.to_vec());
        }
        drop(output_input);
        let mlp_input = through(&x, &|x| block.mlp_input(x));
        quantize(&mut block, Input::Mlp, &mlp_input)?;
        let down_input = through(&mlp_input, &|x| block.down_input(x.to_vec()));
        drop(mlp_input);
        quantize(&mut block, Input::Down, &down_input)?;
        for (x, down_input) in x.chunks_mut(part_of_x).zip(down_input.chunks(part(&down_input))) {
            block.add_down(x, down_input.to_vec());
        }
        if let Some(journal) = journal.as_ref().filter(|_| !is_kept) {
            journal.write(index, &here.iter().collect::<Vec<_>>(), &scaling)?;
        }
        finished.tensors.append(&mut here);
        finished.scaling.push(scaling);
        done(index + 1);
    }
    let head = head(checkpoint.architecture());
    let place = layout.iter().find(|(stored, _)| stored.parts[0] == head);
    if let Some((stored, levels)) = place.and_then(|(stored, storage)| Some((stored, storage.levels()?))) {
        let hessian = head_hessian(&blocks, head, &x, tokens);
        drop(x);
        let gathered = Gathered::new(checkpoint, quantization, stored, hessian)?;
        finished.tensors.insert(stored.name.clone(), gathered.quantize(stored, &values(checkpoint, stored)?, levels)?);
    }
    Ok(finished)
}

/// The scale with which the largest of the inputs of `stored` becomes 127.5, as it is stored.
///
/// # Errors
/// [`Error::InputOverflow`]
fn static_scale(x: &[f32], stored: &StoredTensor, scale_dtype: Dtype) -> Result<f32, Error> {
    // NaN stays: a model that makes it has no scales.
    let larger = |largest: f32, x: &f32| if x.abs() > largest || x.is_nan() { x.abs() } else { largest };
    let largest = x.iter().fold(0.0, larger);
    let scale = round_to_nearest::stored(largest / 127.5, scale_dtype);
    match scale.is_finite() {
        true => Ok(scale),
        false => Err(Error::InputOverflow { name: stored.name.clone(), largest, scale_dtype }),
    }
}

/// What the logits are made with.
pub(super) fn head(architecture: &Architecture) -> TensorId {
    if architecture.tied_embeddings { TensorId::Embedding } else { TensorId::Head }
}

/// Of what `head` multiplies, for what leaves the last layer, `[tokens, hidden_size]`.
///
/// A tied embedding also goes into the first layer as it is, where an error counts the same in every column.
pub(super) fn head_hessian(blocks: &Blocks, head: TensorId, x: &[f32], tokens: usize) -> Hessian {
    let width = x.len() / tokens;
    let mut hessian = Hessian::of(width, x.chunks(TOKENS * width).map(|x| blocks.head_input(x)));
    if head == TensorId::Embedding {
        hessian.add_even(AS_EMBEDDING);
    }
    hessian
}

/// Tokens whose inputs are gathered at once.
const TOKENS: usize = 2048;

/// What an error of a tied embedding counts for in the first layer, as a part of what it counts for in the head.
///
/// On SmolLM2-135M, rounded to nearest in groups of 32 with 3 to 5 bits, the divergence by the head alone is 4.5 to 8 times that by the
/// first layer alone.
const AS_EMBEDDING: f32 = 0.125;

/// The layer of a projection's weight, and what it multiplies.
pub(super) fn place_of(id: TensorId) -> Option<(usize, Input)> {
    use LayerTensor::{AttentionNorm, Down, Gate, Key, KeyNorm, MlpNorm, Output, Query, QueryNorm, Up, Value};
    let TensorId::Layer(index, tensor) = id else { return None };
    let input = match tensor {
        Query(_) | Key(_) | Value(_) => Input::Attention,
        Output(_) => Input::Output,
        Gate(_) | Up(_) => Input::Mlp,
        Down(_) => Input::Down,
        AttentionNorm(_) | QueryNorm | KeyNorm | MlpNorm(_) => return None,
    };
    Some((index, input))
}

/// What is known of the inputs of some projections.
pub(super) struct Gathered<'a> {
    checkpoint: &'a Checkpoint,
    quantization: &'a Quantization,
    hessian: Hessian,
    importance: Vec<f32>,
    /// For GPTQ.
    inputs: Option<gptq::Inputs>,
}

impl<'a> Gathered<'a> {
    /// `first` is one of the projections that multiply these inputs.
    ///
    /// # Errors
    /// [`Error::NotPositiveDefinite`]
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        quantization: &'a Quantization,
        first: &StoredTensor,
        hessian: Hessian,
    ) -> Result<Self, Error> {
        let inputs = match quantization.method {
            Method::Gptq => {
                let inputs = hessian.inputs(quantization.damping, quantization.activation_order);
                Some(inputs.map_err(|NotPositiveDefinite| Error::NotPositiveDefinite {
                    name: first.name.clone(),
                    damping: quantization.damping,
                })?)
            }
            Method::RoundToNearest | Method::Kmeans => None,
        };
        Ok(Self { checkpoint, quantization, importance: hessian.mean_squares(), hessian, inputs })
    }

    /// What the weights become, and what that does to the outputs.
    fn quantize(&self, stored: &StoredTensor, values: &[f32], (levels, packed): (Levels, bool)) -> Result<Quantized, Error> {
        let columns = self.importance.len();
        let rows = values.len() / columns;
        let row = |at: usize| &values[at * columns..][..columns];
        let energy = self.hessian.output_error(values);
        let relative = |matrix: &Matrix| {
            let errors = |at| matrix.row(at).into_iter().zip(row(at)).map(|(stands_for, value)| stands_for - value);
            let error = self.hessian.output_error_by_rows(rows, |range| range.flat_map(errors).collect());
            if energy > 0.0 { error / energy } else { 0.0 }
        };
        let (matrix, distance) = self.round(values, stored, (levels, packed))?;
        let found = relative(&matrix);
        let rounded_to_nearest = match (levels, &self.inputs) {
            (Levels::Codebooks(_), _) => None,
            (Levels::Grid(_), None) => Some(found),
            (Levels::Grid(_), Some(_)) => Some(relative(&self.nearest(values, stored, (levels, packed))?.0)),
        };
        let output_error = OutputError { relative: found, rounded_to_nearest };
        Ok(Quantized { matrix, distance, output_error, input_scale: None })
    }

    /// What the quantization's method makes of `values`, `[out, in]`.
    pub(super) fn round(
        &self,
        values: &[f32],
        stored: &StoredTensor,
        (levels, packed): (Levels, bool),
    ) -> Result<(Matrix, Distance), Error> {
        let (Some(inputs), Levels::Grid(scheme)) = (&self.inputs, levels) else {
            return self.nearest(values, stored, (levels, packed));
        };
        let grid = |group: &[f32], first: usize| {
            let importance = &self.importance[first..][..group.len()];
            self.quantization.grid(group, Some(importance), scheme, &mut clipping::Scratch::default())
        };
        let rounded = gptq::round(values, scheme, inputs, &grid);
        let assembled = assemble(values, self.importance.len(), scheme, packed, rounded);
        let (matrix, distance) = assembled.map_err(|row| self.overflow(values, stored, levels, row))?;
        Ok((Matrix::Integers(matrix), distance))
    }

    fn nearest(&self, values: &[f32], stored: &StoredTensor, levels: (Levels, bool)) -> Result<(Matrix, Distance), Error> {
        let importance = &self.importance;
        let nearest = Matrix::nearest(values, importance.len(), levels, self.quantization, Some(importance));
        nearest.map_err(|row| self.overflow(values, stored, levels.0, row))
    }

    fn overflow(&self, values: &[f32], stored: &StoredTensor, levels: Levels, row: usize) -> Error {
        let columns = self.importance.len();
        let values = &values[row * columns..][..columns];
        overflow(self.checkpoint, stored, values, row, levels, self.quantization.scale_dtype)
    }
}

/// Computes with what the stored numbers stand for from here on, `[rows, columns]`.
pub(super) fn put(block: &mut Block<'_>, checkpoint: &Checkpoint, stored: &StoredTensor, mut values: Vec<f32>) {
    for part in &stored.parts {
        let rest = values.split_off(checkpoint.architecture().shape(*part).iter().product());
        if let TensorId::Layer(_, tensor) = part {
            block.replace(*tensor, values);
        }
        values = rest;
    }
}
