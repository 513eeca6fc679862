//! Layer after layer over calibration text: every projection sees what the already quantized ones before it make of the text.
//!
//! One pass of the engine in f32 does it: the inputs of a projection are gathered over all windows, its weights are quantized, and only
//! then is it computed, with the values that its integers stand for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use compressor_engine::{Block, Blocks};
use compressor_format::{Checkpoint, LayerTensor, Method, QuantizedMatrix, Scheme, Storage, StoredTensor, TensorId};
use serde::{Deserialize, Serialize};

use super::gptq::{self, Hessian, NotPositiveDefinite};
use super::journal::Journal;
use super::{Distance, Error, Quantization, assemble, clipping, overflow, quantize_matrix, values};

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
    pub(super) matrix: QuantizedMatrix,
    pub(super) distance: Distance,
    pub(super) output_error: OutputError,
}

/// What quantized weights add to a projection's output on calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OutputError {
    /// Mean square of the difference ÷ mean square of the output.
    pub(super) relative: f64,
    /// The same, had the weights been rounded to nearest.
    pub(super) rounded_to_nearest: f64,
}

/// What a projection multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Attention,
    Output,
    Mlp,
    Down,
}

impl Input {
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

/// Quantizes every projection inside the layers of `checkpoint` that `layout` wants as integers.
///
/// `done` is called with the number of layers that are finished. Layers that `calibration.kept_in` has are taken from there, and only
/// computed with.
pub(super) fn quantize_layers(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    layout: &[(StoredTensor, Storage)],
    calibration: &Calibration,
    done: &mut dyn FnMut(usize),
) -> Result<BTreeMap<String, Quantized>, Error> {
    let blocks = Blocks::new(checkpoint, crate::engine_options())?;
    let mut finished = BTreeMap::new();
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
    let journal = calibration.kept_in.as_deref().map(|folder| Journal::new(folder, layout));
    for index in 0..checkpoint.architecture().layers.len() {
        let mut block = blocks.block(index)?;
        let kept = journal.as_ref().and_then(|journal| journal.read(index));
        let is_kept = kept.is_some();
        let mut here = kept.unwrap_or_default();
        let mut quantize = |block: &mut Block<'_>, input, x: &[f32]| -> Result<(), Error> {
            let places = layout.iter().filter(|(stored, _)| place_of(stored.parts[0]) == Some((index, input)));
            let tensors: Vec<_> = places.filter_map(|(stored, storage)| Some((stored, storage.integers()?))).collect();
            if let Some((first, _)) = tensors.first().filter(|_| !is_kept) {
                let gathered = Gathered::new(checkpoint, quantization, first, x.chunks(part(x)))?;
                for (stored, (scheme, packed)) in &tensors {
                    here.insert(stored.name.clone(), gathered.quantize(stored, *scheme, *packed)?);
                }
            }
            for (stored, _) in tensors {
                put(block, checkpoint, stored, &here[&stored.name].matrix);
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
            journal.write(index, &here.iter().collect::<Vec<_>>())?;
        }
        finished.append(&mut here);
        done(index + 1);
    }
    Ok(finished)
}

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
struct Gathered<'a> {
    checkpoint: &'a Checkpoint,
    quantization: &'a Quantization,
    hessian: Hessian,
    importance: Vec<f32>,
    /// For GPTQ.
    inputs: Option<gptq::Inputs>,
}

impl<'a> Gathered<'a> {
    /// `first` is one of the projections that multiply `parts`.
    fn new(
        checkpoint: &'a Checkpoint,
        quantization: &'a Quantization,
        first: &StoredTensor,
        parts: std::slice::Chunks<'_, f32>,
    ) -> Result<Self, Error> {
        let mut hessian = Hessian::new(checkpoint.architecture().shape(first.parts[0])[1]);
        parts.for_each(|part| hessian.add(part));
        let inputs = match quantization.method {
            Method::Gptq => {
                let inputs = hessian.inputs(quantization.damping, quantization.activation_order);
                Some(inputs.map_err(|NotPositiveDefinite| Error::NotPositiveDefinite {
                    name: first.name.clone(),
                    damping: quantization.damping,
                })?)
            }
            Method::RoundToNearest => None,
        };
        Ok(Self { checkpoint, quantization, importance: hessian.mean_squares(), hessian, inputs })
    }

    fn quantize(&self, stored: &StoredTensor, scheme: Scheme, packed: bool) -> Result<Quantized, Error> {
        let Self { checkpoint, quantization, hessian, importance, inputs } = self;
        let (values, columns) = (values(checkpoint, stored)?, importance.len());
        let too_large = |row: usize| {
            let values = &values[row * columns..][..columns];
            overflow(checkpoint, stored, values, row, scheme, quantization.scale_dtype)
        };
        let nearest = quantize_matrix(&values, columns, scheme, packed, quantization, Some(importance)).map_err(too_large)?;
        let energy = hessian.output_error(&values);
        let relative = |matrix: &QuantizedMatrix| {
            let errors: Vec<f32> = matrix.to_f32().iter().zip(&values).map(|(stands_for, value)| stands_for - value).collect();
            if energy > 0.0 { hessian.output_error(&errors) / energy } else { 0.0 }
        };
        let rounded_to_nearest = relative(&nearest.0);
        let Some(inputs) = inputs else {
            let output_error = OutputError { relative: rounded_to_nearest, rounded_to_nearest };
            return Ok(Quantized { matrix: nearest.0, distance: nearest.1, output_error });
        };
        let grid = |group: &[f32], first: usize| {
            quantization.grid(group, Some(&importance[first..][..group.len()]), scheme, &mut clipping::Scratch::default())
        };
        let rounded = gptq::round(&values, scheme, inputs, &grid);
        let (matrix, distance) = assemble(&values, columns, scheme, packed, rounded).map_err(too_large)?;
        let output_error = OutputError { relative: relative(&matrix), rounded_to_nearest };
        Ok(Quantized { matrix, distance, output_error })
    }
}

/// Computes with what the integers stand for from here on.
pub(super) fn put(block: &mut Block<'_>, checkpoint: &Checkpoint, stored: &StoredTensor, matrix: &QuantizedMatrix) {
    let mut values = matrix.to_f32();
    for part in &stored.parts {
        let rest = values.split_off(checkpoint.architecture().shape(*part)[0] * matrix.columns);
        if let TensorId::Layer(_, tensor) = part {
            block.replace(*tensor, values);
        }
        values = rest;
    }
}
