//! Scaling of input channels before anything is rounded: what some projections multiply is divided by one factor for each channel, their
//! columns are multiplied by it, and whatever makes the input takes the division. The model computes the same, and no reader of the
//! artifact needs to know.
//!
//! | input of | divided instead |
//! |---|---|
//! | query, key, value | the norm before attention, with its bias |
//! | output | the rows of the value projection, with its bias: attention mixes tokens and never channels, and its weights sum to 1. Query heads that share a value head share its factors |
//! | gate, up | the norm before the MLP, with its bias |
//! | down | the rows of the up projection, with its bias, where there is a gate: `activation(gate) · up` is linear in up |
//!
//! Where there is no gate, the activation function stands between up and down, and down's input stays as it is.
//!
//! A norm is stored in a float type of few bits. So the factor that counts is the one by which the norm, as stored, was really divided:
//! the columns take exactly that one, and rounding the norm costs nothing. A bias is rounded as every dense tensor is. Rows of integers
//! keep their integers when they are divided; their scales take it all.

use std::borrow::Cow;
use std::collections::BTreeMap;

use compressor_engine::Block;
use compressor_format::{Architecture, Checkpoint, Dtype, LayerTensor, Part, Scaling, Storage, StoredTensor, TensorId};
use serde::{Deserialize, Serialize};

use super::calibrated::{Input, place_of, put};
use super::gptq::Hessian;
use super::matrix::Matrix;
use super::{Error, Quantization, awq, overflow, sizes, smoothquant, values};

/// What became of the input of some projections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputScaling {
    /// The projections that multiply it, as stored.
    pub tensors: Vec<String>,
    /// How it was scaled.
    #[serde(flatten)]
    pub outcome: ScalingOutcome,
}

/// How an input was scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScalingOutcome {
    /// By AWQ.
    Awq {
        /// What was divided, as stored.
        divided: String,
        /// The power of the inputs' mean magnitudes; 0 leaves everything as it was.
        exponent: f64,
        /// What quantized weights add to the outputs of the projections, rounded to nearest: sum of relative mean squares.
        error: f64,
        /// The same without scaling.
        error_unscaled: f64,
    },
    /// By SmoothQuant.
    SmoothQuant {
        /// What was divided, as stored.
        divided: String,
        /// How much of the inputs' range went to the weights.
        migration_strength: f64,
    },
    /// Not at all.
    Left {
        /// Why.
        reason: String,
    },
}

/// The scaling of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerScaling {
    /// Of each column; none for an input that stays as it is.
    factors: BTreeMap<Input, Vec<f32>>,
    /// What is told of it.
    pub(super) report: Vec<InputScaling>,
}

impl LayerScaling {
    /// What the values of a tensor of this layer, parts one below the other, become.
    pub(super) fn apply(&self, architecture: &Architecture, stored: &StoredTensor, mut values: Vec<f32>) -> Vec<f32> {
        let mut rest = values.as_mut_slice();
        for part in &stored.parts {
            let (here, after) = rest.split_at_mut(architecture.shape(*part).iter().product());
            if let TensorId::Layer(layer, tensor) = part {
                self.fold(architecture, *layer, *tensor, here);
            }
            rest = after;
        }
        values
    }

    fn fold(&self, architecture: &Architecture, layer: usize, tensor: LayerTensor, values: &mut [f32]) {
        use LayerTensor::{AttentionNorm, Down, Gate, Key, KeyNorm, MlpNorm, Output, Query, QueryNorm, Up, Value};
        use Part::{Bias, Weight};
        let multiply = |values: &mut [f32], input| {
            if let Some(factors) = self.factors.get(&input) {
                multiply_columns(values, factors);
            }
        };
        let divide = |values: &mut [f32], input| {
            if let Some(factors) = self.factors.get(&input) {
                divide_rows(values, &factors_of_source(architecture, layer, input, factors));
            }
        };
        match tensor {
            AttentionNorm(_) => divide(values, Input::Attention),
            Query(Weight) | Key(Weight) => multiply(values, Input::Attention),
            Value(Weight) => {
                multiply(values, Input::Attention);
                divide(values, Input::Output);
            }
            Value(Bias) => divide(values, Input::Output),
            Output(Weight) => multiply(values, Input::Output),
            MlpNorm(_) => divide(values, Input::Mlp),
            Gate(Weight) => multiply(values, Input::Mlp),
            Up(Weight) => {
                multiply(values, Input::Mlp);
                divide(values, Input::Down);
            }
            Up(Bias) => divide(values, Input::Down),
            Down(Weight) => multiply(values, Input::Down),
            Query(Bias) | Key(Bias) | QueryNorm | KeyNorm | Output(Bias) | Gate(Bias) | Down(Bias) => {}
        }
    }

    /// Whether nothing is scaled.
    pub(super) fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Puts what stays dense into `block` as it will be stored; what becomes integers is put there when it is.
    pub(super) fn put_dense(
        &self,
        block: &mut Block<'_>,
        checkpoint: &Checkpoint,
        layout: &[(StoredTensor, Storage)],
        layer: usize,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        for (stored, storage) in layout {
            let (Storage::Dense(dtype), TensorId::Layer(index, _)) = (storage, stored.parts[0]) else { continue };
            if index == layer {
                let values = self.apply(checkpoint.architecture(), stored, values(checkpoint, stored)?);
                put(block, checkpoint, stored, rounded(values, *dtype));
            }
        }
        Ok(())
    }
}

/// The values of a stored tensor with the scaling of its layer; `layers` is empty where nothing is scaled.
pub(super) fn scaled(
    layers: &[LayerScaling],
    checkpoint: &Checkpoint,
    stored: &StoredTensor,
) -> Result<Vec<f32>, compressor_format::Error> {
    let values = values(checkpoint, stored)?;
    let TensorId::Layer(layer, _) = stored.parts[0] else { return Ok(values) };
    Ok(match layers.get(layer) {
        Some(scaling) => scaling.apply(checkpoint.architecture(), stored, values),
        None => values,
    })
}

/// Finds the scaling of a layer.
///
/// `x` is what comes into it, in parts of whole windows. Inside the layer weights are dense: what its own projections will err is not
/// known before they are scaled.
pub(super) fn find<'x>(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    layout: &[(StoredTensor, Storage)],
    (block, layer): (&Block<'_>, usize),
    x: impl Iterator<Item = Result<Cow<'x, [f32]>, Error>>,
    window: usize,
) -> Result<LayerScaling, Error> {
    let places = Input::ALL.map(|input| Place { checkpoint, quantization, layout, layer, input });
    let mut inputs = places.each_ref().map(Place::inputs);
    for x in x {
        let x = x?;
        let mut gather = |input: Input, x: &[f32]| inputs[input as usize].iter_mut().for_each(|inputs| inputs.add(x));
        let attention_input = block.attention_input(&x);
        gather(Input::Attention, &attention_input);
        let output_input = block.output_input(attention_input, window);
        gather(Input::Output, &output_input);
        let mut x = x.into_owned();
        block.add_output(&mut x, output_input);
        let mlp_input = block.mlp_input(&x);
        gather(Input::Mlp, &mlp_input);
        gather(Input::Down, &block.down_input(mlp_input));
    }
    let mut scaling = LayerScaling::default();
    for (place, inputs) in places.iter().zip(&inputs) {
        let outcome = match inputs {
            Ok(inputs) => {
                let (factors, outcome) = place.scale(inputs)?;
                scaling.factors.insert(place.input, factors);
                outcome
            }
            Err(reason) => ScalingOutcome::Left { reason: (*reason).to_owned() },
        };
        let tensors = place.tensors().map(|(stored, _)| stored.name.clone()).collect();
        scaling.report.push(InputScaling { tensors, outcome });
    }
    Ok(scaling)
}

/// What is known of an input on calibration text.
pub(super) enum Inputs {
    /// What AWQ asks for.
    Awq {
        /// `Σ x xᵀ`
        hessian: Hessian,
        /// `Σ |x|` of each channel.
        magnitudes: Vec<f64>,
    },
    /// What SmoothQuant asks for.
    SmoothQuant {
        /// `max |x|` of each channel.
        largest: Vec<f64>,
    },
}

impl Inputs {
    /// Adds some inputs, `[vectors, columns]`.
    pub(super) fn add(&mut self, x: &[f32]) {
        match self {
            Self::Awq { hessian, magnitudes } => {
                hessian.add(x);
                for x in x.chunks_exact(magnitudes.len()) {
                    magnitudes.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(x.abs()));
                }
            }
            Self::SmoothQuant { largest } => keep_largest(largest, x),
        }
    }
}

/// The projections of a layer that share an input.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) quantization: &'a Quantization,
    /// What every tensor of the layer becomes.
    pub(super) layout: &'a [(StoredTensor, Storage)],
    pub(super) layer: usize,
    pub(super) input: Input,
}

impl Place<'_> {
    /// The weights of the projections.
    fn tensors(&self) -> impl Iterator<Item = &(StoredTensor, Storage)> {
        let is_here = |id: TensorId| id.is_projection() && place_of(id) == Some((self.layer, self.input));
        self.layout.iter().filter(move |(stored, _)| is_here(stored.parts[0]))
    }

    /// Input channels.
    fn columns(&self) -> usize {
        let (stored, _) = self.tensors().next().expect("every layer has projections for every input");
        self.checkpoint.architecture().shape(stored.parts[0])[1]
    }

    /// What is divided instead of the input.
    fn source(&self) -> TensorId {
        let tensor = match self.input {
            Input::Attention => LayerTensor::AttentionNorm(Part::Weight),
            Input::Output => LayerTensor::Value(Part::Weight),
            Input::Mlp => LayerTensor::MlpNorm(Part::Weight),
            Input::Down => LayerTensor::Up(Part::Weight),
        };
        TensorId::Layer(self.layer, tensor)
    }

    fn stored_source(&self) -> &(StoredTensor, Storage) {
        let source = self.source();
        self.layout.iter().find(|(stored, _)| stored.parts.contains(&source)).expect("every layer has norms, value and up")
    }

    /// What is to be known of the input, of nothing yet.
    ///
    /// # Errors
    /// Why the input stays as it is.
    pub(super) fn inputs(&self) -> Result<Inputs, &'static str> {
        let stays_dense =
            |stored: &StoredTensor| sizes::quantized(self.quantization, self.checkpoint.architecture(), stored).is_none();
        let comes_from_a_norm = matches!(self.input, Input::Attention | Input::Mlp);
        let columns = self.columns();
        if self.tensors().all(|(stored, _)| stays_dense(stored)) {
            return Err("what multiplies it stays dense");
        }
        match self.quantization.scaling {
            Scaling::None => Err("no scaling is asked for"),
            Scaling::SmoothQuant if !comes_from_a_norm => Err("SmoothQuant scales what norms make"),
            Scaling::SmoothQuant => Ok(Inputs::SmoothQuant { largest: vec![0.0; columns] }),
            Scaling::Awq if self.input == Input::Down && !self.checkpoint.architecture().mlp.gated => {
                Err("an activation function stands between it and the projection before")
            }
            Scaling::Awq if !comes_from_a_norm && stays_dense(&self.stored_source().0) => {
                Err("the projection before it stays dense, and so do its rows")
            }
            Scaling::Awq => Ok(Inputs::Awq { hessian: Hessian::new(columns), magnitudes: vec![0.0; columns] }),
        }
    }

    /// The factors of the columns, and how they came about.
    pub(super) fn scale(&self, inputs: &Inputs) -> Result<(Vec<f32>, ScalingOutcome), Error> {
        let matrices = self.tensors().map(|(stored, storage)| Ok((stored, *storage, values(self.checkpoint, stored)?)));
        let matrices = matrices.collect::<Result<Vec<_>, Error>>()?;
        let divided = self.stored_source().0.name.clone();
        let norm = self.norm()?;
        let settle = |factors: Vec<f32>| match &norm {
            Some((norm, dtype)) => as_stored(norm, *dtype, &factors),
            None => factors,
        };
        match inputs {
            Inputs::Awq { hessian, magnitudes } => {
                let means: Vec<f64> = magnitudes.iter().map(|sum| sum / hessian.vectors.max(1) as f64).collect();
                let energies: Vec<f64> = matrices.iter().map(|(_, _, values)| hessian.output_error(values)).collect();
                let relative = |(matrix, energy), factors: &[f32]| {
                    let error = self.output_error(matrix, hessian, factors)?;
                    Ok(if energy > 0.0 { error / energy } else { 0.0 })
                };
                let error =
                    |factors: &[f32]| matrices.iter().zip(energies.iter().copied()).map(|one| relative(one, factors)).sum();
                let awq::Found { exponent, factors, error, error_unscaled } = awq::search(&self.shared(&means), settle, error)?;
                Ok((factors, ScalingOutcome::Awq { divided, exponent, error, error_unscaled }))
            }
            Inputs::SmoothQuant { largest } => {
                let mut weights = vec![0.0; largest.len()];
                matrices.iter().for_each(|(_, _, values)| keep_largest(&mut weights, values));
                let migration_strength = self.quantization.migration_strength;
                let factors = settle(smoothquant::factors(largest, &weights, migration_strength));
                Ok((factors, ScalingOutcome::SmoothQuant { divided, migration_strength }))
            }
        }
    }

    /// The weight of the norm that makes the input, with the type it will be stored in; `None` where a projection makes it.
    fn norm(&self) -> Result<Option<(Vec<f32>, Dtype)>, Error> {
        match (self.input, self.stored_source()) {
            (Input::Attention | Input::Mlp, (stored, Storage::Dense(dtype))) => {
                Ok(Some((values(self.checkpoint, stored)?, *dtype)))
            }
            _ => Ok(None),
        }
    }

    /// The same for all channels that share one of the source: their mean.
    fn shared(&self, channels: &[f64]) -> Vec<f64> {
        let Input::Output = self.input else { return channels.to_vec() };
        let (heads, head_dim) = group(self.checkpoint.architecture(), self.layer);
        let of_a_group = |group: &[f64]| {
            let mean = |at| group[at..].iter().step_by(head_dim).sum::<f64>() / heads as f64;
            let means: Vec<f64> = (0..head_dim).map(mean).collect();
            means.repeat(heads)
        };
        channels.chunks_exact(heads * head_dim).flat_map(of_a_group).collect()
    }

    /// What a matrix, scaled and quantized, adds to the mean square of its output.
    fn output_error(
        &self,
        (stored, storage, values): &(&StoredTensor, Storage, Vec<f32>),
        hessian: &Hessian,
        factors: &[f32],
    ) -> Result<f64, Error> {
        let columns = factors.len();
        let mut scaled = values.clone();
        multiply_columns(&mut scaled, factors);
        let importance: Vec<f32> = hessian.mean_squares().iter().zip(factors).map(|(x, factor)| x / (factor * factor)).collect();
        let mut errors = match (*storage, storage.levels()) {
            (Storage::Dense(dtype), _) => rounded(scaled, dtype),
            (_, levels) => {
                let (levels, _) = levels.expect("what is not dense has levels");
                let found = Matrix::nearest(&scaled, columns, (levels, false), self.quantization, Some(&importance));
                let (matrix, _) = found.map_err(|row| {
                    let row_values = &scaled[row * columns..][..columns];
                    overflow(self.checkpoint, stored, row_values, row, levels, self.quantization.scale_dtype)
                })?;
                matrix.to_f32()
            }
        };
        divide_columns(&mut errors, factors);
        errors.iter_mut().zip(values).for_each(|(error, value)| *error -= value);
        Ok(hessian.output_error(&errors))
    }
}

/// What is divided instead of an input, for each of its channels.
fn factors_of_source<'a>(architecture: &Architecture, layer: usize, input: Input, factors: &'a [f32]) -> Cow<'a, [f32]> {
    let Input::Output = input else { return Cow::Borrowed(factors) };
    let (heads, head_dim) = group(architecture, layer);
    factors.chunks_exact(heads * head_dim).flat_map(|group| &group[..head_dim]).copied().collect::<Vec<f32>>().into()
}

/// Query heads that share a value head, and the width of each.
fn group(architecture: &Architecture, layer: usize) -> (usize, usize) {
    let shape = architecture.layers[layer];
    (shape.heads / shape.kv_heads, architecture.head_dim)
}

/// The factors by which a norm is divided when the quotients are stored as `dtype`; 1 where they would be zero or infinite.
fn as_stored(norm: &[f32], dtype: Dtype, factors: &[f32]) -> Vec<f32> {
    let one = |(weight, factor): (&f32, &f32)| {
        let really = weight / dtype.nearest(weight / factor).expect("`layout` refused integer types");
        if really.is_finite() && really > 0.0 { really } else { 1.0 }
    };
    norm.iter().zip(factors).map(one).collect()
}

fn rounded(values: Vec<f32>, dtype: Dtype) -> Vec<f32> {
    values.into_iter().map(|value| dtype.nearest(value).expect("`layout` refused integer types")).collect()
}

fn keep_largest(largest: &mut [f64], values: &[f32]) {
    for values in values.chunks_exact(largest.len()) {
        largest.iter_mut().zip(values).for_each(|(largest, value)| *largest = largest.max(f64::from(value.abs())));
    }
}

/// `W · diag(factors)`
pub(super) fn multiply_columns(values: &mut [f32], factors: &[f32]) {
    for row in values.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    }
}

/// `W · diag(factors)⁻¹`
pub(super) fn divide_columns(values: &mut [f32], factors: &[f32]) {
    for row in values.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(value, factor)| *value /= factor);
    }
}

/// Divides the rows of a matrix, or the elements of a vector.
fn divide_rows(values: &mut [f32], factors: &[f32]) {
    let width = values.len() / factors.len();
    for (row, factor) in values.chunks_exact_mut(width).zip(factors) {
        row.iter_mut().for_each(|value| *value /= factor);
    }
}

#[cfg(test)]
pub(super) mod tests;
