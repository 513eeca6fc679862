//! Layer after layer over calibration text: every projection sees what the already quantized ones before it make of the text.
//!
//! One pass of the engine in f32 does it: the inputs of a projection are gathered over all windows, its weights are quantized, and only
//! then is it computed, with the values that its integers stand for. Where inputs are scaled, each layer is scaled before that. The head
//! comes last, a tied embedding as the head that it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use compressor_engine::{Block, Blocks};
use compressor_format::{
    Alternative, Architecture, Checkpoint, Dtype, LayerTensor, Levels, Method, Scaling, Storage, StoredTensor, TensorId,
};
use serde::{Deserialize, Serialize};

use super::alternatives::{Instead, NotGptq, Treatment, rounded_to_nearest};
use super::gptq::{self, Hessian, NotPositiveDefinite};
use super::journal::Journal;
use super::matrix::Matrix;
use super::scaling::{self, LayerScaling};
use super::stream::Stream;
use super::{Distance, Error, Overflow, Quantization, assemble, clipping, overflow, round_to_nearest, values};

/// Text that the quantizer looks at.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Whole windows, one after the other.
    pub tokens: Vec<u32>,
    /// Tokens of one window, which does not see the others.
    pub window: usize,
    /// A folder for layers that are finished: a quantization that was stopped goes on after them. It must belong to this quantization
    /// alone; the caller removes it when the artifact is safe.
    pub kept_in: Option<PathBuf>,
    /// A folder for the activations of the whole text, where memory is not to hold them; nothing is left there.
    pub spilled_in: Option<PathBuf>,
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
pub(super) struct Calibrated<'a> {
    /// By name: all of them, or those that no file has yet.
    tensors: BTreeMap<String, Quantized>,
    /// Where the others lie, layer by layer.
    journal: Option<Journal<'a>>,
    /// Of every tensor.
    pub(super) output_errors: Vec<OutputError>,
    /// Of each layer; empty where nothing is scaled.
    pub(super) scaling: Vec<LayerScaling>,
}

impl Calibrated<'_> {
    /// A tensor that was made, once; `None` where none was.
    ///
    /// # Errors
    /// [`Error::KeptLayer`] where the layer's file is no longer there.
    pub(super) fn take(&mut self, stored: &StoredTensor) -> Result<Option<Quantized>, Error> {
        if let (Some(journal), Some((layer, _))) = (&self.journal, place_of(stored.parts[0]))
            && !self.tensors.contains_key(&stored.name)
        {
            let (tensors, _) = journal.read(layer).ok_or_else(|| Error::KeptLayer(journal.path(layer)))?;
            self.tensors.extend(tensors);
        }
        Ok(self.tensors.remove(&stored.name))
    }
}

/// What quantized weights add to a projection's output on calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OutputError {
    /// Mean square of the difference ÷ mean square of the output.
    pub(super) relative: f64,
    /// The same, had the weights been rounded to nearest; `None` for codebooks, which round to no grid.
    pub(super) rounded_to_nearest: Option<f64>,
    /// Why it was rounded to nearest where GPTQ was asked for.
    pub(super) not_gptq: Option<NotGptq>,
}

impl OutputError {
    /// What is to be told where the tensor is not what was asked for.
    pub(super) fn instead(&self, quantization: &Quantization, name: &str, asked: Treatment) -> Option<Instead> {
        self.not_gptq.map(|why| rounded_to_nearest(quantization, name, asked, why, self.relative))
    }
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
pub(crate) const WINDOWS: usize = 4;

/// Quantizes every projection inside the layers of `checkpoint`, and the head, where `layout` wants them as integers.
///
/// `done` is called with the number of layers that are finished. Layers that `calibration.kept_in` has are taken from there, and only
/// computed with.
pub(super) fn quantize_layers<'a>(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    layout: &'a [(StoredTensor, Storage)],
    calibration: &'a Calibration,
    done: &mut dyn FnMut(usize),
) -> Result<Calibrated<'a>, Error> {
    let blocks = Blocks::new(checkpoint, crate::engine_options())?;
    let window = calibration.window;
    let mut text = Text::new(&blocks, checkpoint.architecture(), calibration)?;
    let journal = calibration.kept_in.as_deref().map(|folder| Journal::new(folder, quantization, layout));
    let mut finished = Calibrated { journal, ..Calibrated::default() };
    for index in 0..checkpoint.architecture().layers.len() {
        let mut block = blocks.block(index)?;
        let kept = finished.journal.as_ref().and_then(|journal| journal.read(index));
        let is_kept = kept.is_some();
        let (mut here, mut scaling) = kept.unwrap_or_default();
        if quantization.scaling != Scaling::None && !is_kept {
            scaling = scaling::find(checkpoint, quantization, layout, (&block, index), text.parts(), window)?;
        }
        scaling.put_dense(&mut block, checkpoint, layout, index)?;
        let tensors_at = |input| {
            let at = move |(stored, _): &&(StoredTensor, Storage)| place_of(stored.parts[0]) == Some((index, input));
            layout.iter().filter(at).filter_map(|(stored, storage)| Some((stored, *storage, storage.levels()?)))
        };
        // What is to be known of an input, where something that multiplies it is still to be quantized.
        let unseen = |input| {
            let (first, ..) = tensors_at(input).next().filter(|_| !is_kept)?;
            let hessian = Hessian::new(checkpoint.architecture().shape(first.parts[0])[1]);
            let is_static = tensors_at(input).any(|(_, storage, _)| matches!(storage, Storage::SignedStatic(_)));
            Some(Seen { hessian, largest: is_static.then_some(0.0) })
        };
        let mut quantize = |block: &mut Block<'_>, input, seen: Option<Seen>| -> Result<(), Error> {
            if let (Some(Seen { hessian, largest }), Some((first, ..))) = (seen, tensors_at(input).next()) {
                let gathered = Gathered::new(checkpoint, quantization, first, hessian)?;
                for (stored, storage, levels) in tensors_at(input) {
                    let values = scaling.apply(checkpoint.architecture(), stored, values(checkpoint, stored)?);
                    let mut quantized = gathered.quantize(stored, Rows::Memory(&values), levels)?;
                    if let (Storage::SignedStatic(_), Some(largest)) = (storage, largest) {
                        quantized.input_scale = Some(static_scale(largest, stored, quantization.scale_dtype)?);
                    }
                    here.insert(stored.name.clone(), quantized);
                }
            }
            for (stored, ..) in tensors_at(input) {
                put(block, checkpoint, stored, here[&stored.name].matrix.to_f32());
            }
            Ok(())
        };

        let mut seen = unseen(Input::Attention);
        text.look(&mut seen, |x| block.attention_input(x))?;
        quantize(&mut block, Input::Attention, seen)?;

        let mut seen = unseen(Input::Output);
        let output_inputs = text.gather(&mut seen, |x| block.output_input(block.attention_input(x), window))?;
        quantize(&mut block, Input::Output, seen)?;
        text.add(output_inputs, |x, output_input| block.add_output(x, output_input))?;

        let mut seen = unseen(Input::Mlp);
        text.look(&mut seen, |x| block.mlp_input(x))?;
        quantize(&mut block, Input::Mlp, seen)?;

        let mut seen = unseen(Input::Down);
        let down_inputs = text.gather(&mut seen, |x| block.down_input(block.mlp_input(x)))?;
        quantize(&mut block, Input::Down, seen)?;
        text.add(down_inputs, |x, down_input| block.add_down(x, down_input))?;

        finished.output_errors.extend(here.values().map(|tensor| tensor.output_error));
        match &finished.journal {
            Some(_) if is_kept => {}
            Some(journal) => journal.write(index, &here.iter().collect::<Vec<_>>(), &scaling)?,
            None => finished.tensors.append(&mut here),
        }
        finished.scaling.push(scaling);
        done(index + 1);
    }
    let head = head(checkpoint.architecture());
    let place = layout.iter().find(|(stored, _)| stored.parts[0] == head);
    if let Some((stored, levels)) = place.and_then(|(stored, storage)| Some((stored, storage.levels()?))) {
        let hessian = head_hessian(&blocks, checkpoint.architecture(), text.parts())?;
        drop(text);
        let gathered = Gathered::new(checkpoint, quantization, stored, hessian)?;
        let made = gathered.quantize(stored, Rows::File(checkpoint, head), levels)?;
        finished.output_errors.push(made.output_error);
        finished.tensors.insert(stored.name.clone(), made);
    }
    Ok(finished)
}

/// The residual stream of the whole text, which goes from layer to layer some windows at a time.
struct Text<'a> {
    calibration: &'a Calibration,
    /// Elements of one token.
    width: usize,
    x: Stream,
}

impl<'a> Text<'a> {
    /// It, as it comes into the first layer.
    fn new(blocks: &Blocks, architecture: &Architecture, calibration: &'a Calibration) -> Result<Self, Error> {
        if let Some(folder) = &calibration.spilled_in {
            fs_err::create_dir_all(folder).map_err(compressor_format::Error::from)?;
        }
        let width = architecture.hidden_size;
        let mut x = stream(calibration, width, "residual.f32")?;
        for tokens in calibration.tokens.chunks(WINDOWS * calibration.window) {
            x.push(&blocks.embed(tokens, calibration.window)?)?;
        }
        Ok(Self { calibration, width, x })
    }

    /// Part after part, each of whole windows.
    fn parts(&self) -> impl Iterator<Item = Result<Cow<'_, [f32]>, Error>> {
        (0..self.x.parts()).map(|part| Ok(self.x.part(part)?))
    }

    /// Adds to `seen` what `make` makes of each part; without one, nothing is made.
    fn look(&self, seen: &mut Option<Seen>, make: impl Fn(&[f32]) -> Vec<f32>) -> Result<(), Error> {
        let Some(seen) = seen else { return Ok(()) };
        for x in self.parts() {
            seen.add(&make(&x?));
        }
        Ok(())
    }

    /// The same, and keeps all that is made.
    fn gather(&self, seen: &mut Option<Seen>, make: impl Fn(&[f32]) -> Vec<f32>) -> Result<Stream, Error> {
        let mut all = None;
        for x in self.parts() {
            let x = x?;
            let made = make(&x);
            if let Some(seen) = seen {
                seen.add(&made);
            }
            if all.is_none() {
                all = Some(stream(self.calibration, made.len() / (x.len() / self.width), "inputs.f32")?);
            }
            all.as_mut().expect("made above").push(&made)?;
        }
        Ok(all.expect("a calibration has a window"))
    }

    /// Adds to each part what `add` makes of the part of `inputs`.
    fn add(&mut self, inputs: Stream, add: impl Fn(&mut [f32], Vec<f32>)) -> Result<(), Error> {
        for part in 0..self.x.parts() {
            let input = inputs.part(part)?.into_owned();
            self.x.change(part, |x| add(x, input))?;
        }
        Ok(())
    }
}

/// A vector of `width` elements for every token of the text; `name` is its file where memory is not to hold it.
fn stream(calibration: &Calibration, width: usize, name: &str) -> Result<Stream, Error> {
    let Calibration { tokens, window, spilled_in, .. } = calibration;
    let file = spilled_in.as_ref().map(|folder| folder.join(name));
    Ok(Stream::new((tokens.len(), WINDOWS * window), width, file.as_deref())?)
}

/// What was seen of the inputs of some projections.
struct Seen {
    hessian: Hessian,
    /// The largest magnitude, where a static scale is made of it.
    largest: Option<f32>,
}

impl Seen {
    fn add(&mut self, x: &[f32]) {
        self.hessian.add(x);
        if let Some(largest) = &mut self.largest {
            // NaN stays: a model that makes it has no scales.
            *largest = x.iter().fold(*largest, |largest, x| if x.abs() > largest || x.is_nan() { x.abs() } else { largest });
        }
    }
}

/// The scale with which the largest of the inputs of `stored` becomes 127.5, as it is stored.
///
/// # Errors
/// [`Error::InputOverflow`]
fn static_scale(largest: f32, stored: &StoredTensor, scale_dtype: Dtype) -> Result<f32, Error> {
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

/// Of what the head multiplies, for what leaves the last layer, in parts `[tokens, hidden_size]`.
///
/// A tied embedding also goes into the first layer as it is, where an error counts the same in every column.
pub(super) fn head_hessian<'a>(
    blocks: &Blocks,
    architecture: &Architecture,
    parts: impl Iterator<Item = Result<Cow<'a, [f32]>, Error>>,
) -> Result<Hessian, Error> {
    let mut hessian = Hessian::new(architecture.hidden_size);
    for x in parts {
        hessian.add(&blocks.head_input(&x?));
    }
    if architecture.tied_embeddings {
        hessian.add_even(AS_EMBEDDING);
    }
    Ok(hessian)
}

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
    /// [`Error::NotPositiveDefinite`], unless rounding to nearest is allowed; [`Error::InfiniteInputs`]
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        quantization: &'a Quantization,
        first: &StoredTensor,
        hessian: Hessian,
    ) -> Result<Self, Error> {
        let importance = hessian.mean_squares();
        let inputs = match quantization.method {
            Method::Gptq if importance.iter().any(|square| !square.is_finite()) => {
                return Err(Error::InfiniteInputs(first.name.clone()));
            }
            Method::Gptq => match hessian.inputs(quantization.damping, quantization.activation_order) {
                Ok(inputs) => Some(inputs),
                Err(NotPositiveDefinite) if quantization.allows(Alternative::RoundToNearest) => None,
                Err(NotPositiveDefinite) => {
                    let (name, damping) = (first.name.clone(), quantization.damping);
                    return Err(Error::NotPositiveDefinite { name, damping });
                }
            },
            Method::RoundToNearest | Method::Kmeans => None,
        };
        Ok(Self { checkpoint, quantization, importance, hessian, inputs })
    }

    /// What the weights become, and what that does to the outputs. Where rounding to nearest is allowed, it is taken for GPTQ where it
    /// errs less.
    pub(super) fn quantize(&self, stored: &StoredTensor, rows: Rows<'_>, levels: (Levels, bool)) -> Result<Quantized, Error> {
        let columns = self.importance.len();
        let (mut found, mut nearest) = (Made::default(), Made::default());
        let mut energy = 0.0;
        for range in rows.parts(columns) {
            let values = rows.read(range.clone(), columns)?;
            energy += self.hessian.output_error(&values);
            let error = |matrix: &Matrix| {
                let row = |at: usize| &values[at * columns..][..columns];
                let errors = |at| matrix.row(at).into_iter().zip(row(at)).map(|(stands_for, value)| stands_for - value);
                self.hessian.output_error_by_rows(range.len(), |range| range.flat_map(errors).collect())
            };
            let in_whole = |error| in_whole_matrix(error, range.start);
            found.add(self.round(&values, stored, levels).map_err(in_whole)?, error);
            if let (Levels::Grid(_), Some(_)) = (levels.0, &self.inputs) {
                nearest.add(self.nearest(&values, stored, levels).map_err(in_whole)?, error);
            }
        }
        let relative = |made: &Made| if energy > 0.0 { made.error / energy } else { 0.0 };
        let (relative, of_nearest) = (relative(&found), relative(&nearest));
        let output_error = |rounded_to_nearest, not_gptq| OutputError { relative, rounded_to_nearest, not_gptq };
        Ok(match (levels.0, &self.inputs) {
            (Levels::Codebooks(_), _) => found.quantized(output_error(None, None)),
            (Levels::Grid(_), None) => {
                let not_gptq = (self.quantization.method == Method::Gptq).then_some(NotGptq::NotPositiveDefinite);
                found.quantized(output_error(Some(relative), not_gptq))
            }
            (Levels::Grid(_), Some(_)) if of_nearest < relative && self.quantization.allows(Alternative::RoundToNearest) => {
                let not_gptq = Some(NotGptq::Worse { gptq: relative });
                nearest.quantized(OutputError { relative: of_nearest, rounded_to_nearest: Some(of_nearest), not_gptq })
            }
            (Levels::Grid(_), Some(_)) => found.quantized(output_error(Some(of_nearest), None)),
        })
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

/// What one way of rounding makes of a matrix, part after part.
#[derive(Default)]
struct Made {
    parts: Vec<Matrix>,
    distance: Distance,
    /// What it adds to the output's mean square.
    error: f64,
}

impl Made {
    fn add(&mut self, (matrix, distance): (Matrix, Distance), error: impl Fn(&Matrix) -> f64) {
        self.error += error(&matrix);
        self.distance.add(distance);
        self.parts.push(matrix);
    }

    fn quantized(self, output_error: OutputError) -> Quantized {
        Quantized { matrix: Matrix::stacked(self.parts), distance: self.distance, output_error, input_scale: None }
    }
}

/// An error told of some rows, by the row's number in the whole matrix.
fn in_whole_matrix(error: Error, first: usize) -> Error {
    match error {
        Error::Overflow { path, overflow } => {
            Error::Overflow { path, overflow: Overflow { row: first + overflow.row, ..overflow } }
        }
        other => other,
    }
}

/// Weights of a matrix, `[rows, columns]`, that are read some rows at a time.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// In memory; worked on as a whole.
    Memory(&'a [f32]),
    /// An embedding or a head where it lies: the one matrix that can be larger than all else.
    File(&'a Checkpoint, TensorId),
}

/// Elements of a matrix in a file that are worked on at once.
pub(crate) const ELEMENTS: usize = 1 << 21;

impl<'a> Rows<'a> {
    /// The rows that are worked on together.
    pub(super) fn parts(self, columns: usize) -> impl Iterator<Item = Range<usize>> {
        let (rows, at_once) = match self {
            Self::Memory(values) => (values.len() / columns, usize::MAX),
            Self::File(checkpoint, id) => (checkpoint.architecture().shape(id)[0], (ELEMENTS / columns).max(1)),
        };
        (0..rows).step_by(at_once.min(rows.max(1))).map(move |first| first..rows.min(first.saturating_add(at_once)))
    }

    pub(super) fn read(self, rows: Range<usize>, columns: usize) -> Result<Cow<'a, [f32]>, compressor_format::Error> {
        match self {
            Self::Memory(values) => Ok(Cow::Borrowed(&values[rows.start * columns..rows.end * columns])),
            Self::File(checkpoint, id) => Ok(Cow::Owned(checkpoint.rows(id, rows)?)),
        }
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
