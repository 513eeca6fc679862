//! Turns a checkpoint into an artifact: every projection becomes integers with scales, or indices into codebooks, as
//! compressed-tensors lays them out in safetensors.
//!
//! One method is one file: [`round_to_nearest`] lays a grid over a group of weights, [`clipping`] looks for a better one,
//! [`kmeans`] needs none. [`resolve`] says what will be written, to the byte, before any of it is done. [`allocate()`] shares a
//! budget of bytes among tensors.

mod allocate;
mod alternatives;
mod awq;
mod budget;
mod calibrated;
mod cholesky;
mod clipping;
mod fake;
mod gptq;
mod journal;
mod kmeans;
mod matrix;
mod opens_in;
mod overrides;
mod product;
mod round_to_nearest;
mod scaling;
mod sensitivity;
mod sizes;
mod smoothquant;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use compressor_format::{
    Activations, Alternative, ArtifactLayout, Checkpoint, Clipping, Codebooks, DenseTensor, Dtype, EmbeddingScheme,
    InputRounding, Levels, Method, NewArtifactTensor, OpensIn, Override, QuantizedMatrix, Scaling, Scheme, StoredTensor,
    TensorId, Values, WeightBytes, pack,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::calibrated::{Calibrated, OutputError, Quantized, Rows};
use self::matrix::Matrix;
use self::round_to_nearest::Grid;

pub use self::allocate::{Allocation, AllocationError, Candidate, allocate};
pub use self::alternatives::{Instead, TextPurpose, TextUse, Treatment, lines as instead_lines};
pub use self::budget::{Budget, Choice, Most, Target};
pub use self::calibrated::Calibration;
pub(crate) use self::calibrated::{ELEMENTS, WINDOWS};
pub use self::fake::{FakeQuantizer, Unforeseen, unforeseen};
pub use self::opens_in::{opens_in, opens_in_as_folder, opens_in_as_gguf};
pub use self::scaling::{InputScaling, ScalingOutcome};
pub(crate) use self::sensitivity::LOGIT_FLOATS;
pub use self::sensitivity::{Sensitivities, measure_each, measure_sensitivities};
pub use self::sizes::{QuantizedSize, QuantizedSizes, Refusal, Width, refusals, resolve};

/// What to make of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// Bits of one integer of a projection: one of [`Scheme::BITS`].
    pub bits: u8,
    /// Input elements of a projection that share one scale; `None` is one scale per output channel, for 8 bits only.
    pub group_size: Option<usize>,
    /// No zero points, in projections and embedding.
    pub symmetric: bool,
    /// How integers are chosen.
    pub method: Method,
    /// Output channels of a projection that share one codebook of k-means; `None` is one codebook for the whole matrix.
    pub codebook_rows: Option<usize>,
    /// How the range of a group is chosen.
    pub clipping: Clipping,
    /// What input channels are divided by before anything is rounded.
    pub scaling: Scaling,
    /// SmoothQuant's α.
    pub migration_strength: f64,
    /// Part of the mean of GPTQ's diagonal that is added to it.
    pub damping: f64,
    /// GPTQ rounds the columns with the largest inputs first.
    pub activation_order: bool,
    /// What becomes of the embedding, and of the head where it is a tensor of its own.
    pub embedding: EmbeddingScheme,
    /// Input elements of the embedding that share one scale.
    pub embedding_group_size: usize,
    /// What becomes of the inputs of projections as they run.
    pub activations: Activations,
    /// The float type of scales.
    pub scale_dtype: Dtype,
    /// What some matrices get instead.
    pub overrides: Vec<Override>,
    /// What a [`Target`] chose, by the tensor's name as stored.
    pub chosen: BTreeMap<String, Scheme>,
    /// What none of a [`Target`]'s candidates fits, by the same names: it stays dense, where that is allowed.
    pub no_candidate: BTreeSet<String>,
    /// What may be taken instead of what can't be done.
    pub allow: Vec<Alternative>,
    /// The type of what stays dense; `None` is the type most of the checkpoint is stored in.
    pub dense_dtype: Option<Dtype>,
}

impl From<&compressor_format::Quantize> for Quantization {
    fn from(stage: &compressor_format::Quantize) -> Self {
        Self {
            // Of what a target does not choose for and an override does not say.
            bits: stage.bits.unwrap_or(8),
            group_size: match stage.method {
                Method::RoundToNearest | Method::Gptq => stage.group_size.or((stage.bits.unwrap_or(8) < 8).then_some(GROUP_SIZE)),
                Method::Kmeans => stage.group_size,
            },
            symmetric: stage.symmetric,
            method: stage.method,
            codebook_rows: stage.codebook_rows,
            clipping: stage.clipping,
            scaling: stage.scaling,
            migration_strength: stage.migration_strength.unwrap_or(MIGRATION_STRENGTH),
            damping: stage.damping,
            activation_order: stage.activation_order,
            embedding: stage.embedding.unwrap_or_default(),
            embedding_group_size: stage.embedding_group_size,
            activations: stage.activations,
            scale_dtype: stage.scale_dtype.into(),
            overrides: stage.overrides.clone(),
            chosen: BTreeMap::new(),
            no_candidate: BTreeSet::new(),
            allow: stage.allow.clone(),
            dense_dtype: None,
        }
    }
}

/// Tokens that candidates are scored on, and those before that they are fitted to, both in whole windows; none where the quantization
/// looks at no text.
pub(crate) fn tokens_of_candidates(stage: &compressor_format::Quantize, window: usize) -> [usize; 2] {
    let fitted = if Quantization::from(stage).calibrates() { stage.tokens_of_a_candidate() } else { 0 };
    [stage.sensitivity_tokens, fitted].map(|tokens| tokens.next_multiple_of(window))
}

/// Of projections with fewer than 8 bits, where the recipe does not say.
const GROUP_SIZE: usize = 32;

/// SmoothQuant's α, where the recipe does not say: the paper's for most models.
const MIGRATION_STRENGTH: f64 = 0.5;

impl Quantization {
    /// Whether anything is asked for that looks at text.
    pub fn calibrates(&self) -> bool {
        self.method == Method::Gptq
            || self.clipping == Clipping::Activation
            || self.scaling != Scaling::None
            || self.activations == Activations::Int8Static
    }

    /// The grid of one group; `importance` is the mean square of each of its inputs, where text was looked at.
    fn grid(&self, group: &[f32], importance: Option<&[f32]>, scheme: Scheme, scratch: &mut clipping::Scratch) -> Grid {
        let search = |importance, scratch| clipping::least_squared_error(group, importance, scheme, self.scale_dtype, scratch);
        match self.clipping {
            Clipping::None => round_to_nearest::covering(group, scheme, self.scale_dtype),
            Clipping::Mse => search(None, scratch),
            // An embedding of its own, of whose inputs nothing is gathered, is searched without weights.
            Clipping::Activation => search(importance, scratch),
        }
    }

    /// What the projections become, short enough for a table: `INT4 g32`.
    pub fn name(&self) -> String {
        let mixed = if self.overrides.is_empty() { "" } else { " mixed" };
        if self.method == Method::Kmeans {
            let codebooks = Codebooks { bits: self.bits, rows: self.codebook_rows };
            return format!("{codebooks}{}{mixed}", self.methods());
        }
        let group = self.group_size.map(|size| format!(" g{size}")).unwrap_or_default();
        let zero_points = if self.symmetric { "" } else { " zp" };
        let activations = match self.activations {
            Activations::None => "",
            Activations::Int8 => " W8A8",
            Activations::Int8Static => " W8A8 static",
        };
        format!("INT{}{group}{zero_points}{activations}{}{mixed}", self.bits, self.methods())
    }

    /// What is done beside rounding to nearest, with a space before each: ` AWQ GPTQ`.
    fn methods(&self) -> String {
        let scaling = match self.scaling {
            Scaling::None => "",
            Scaling::Awq => " AWQ",
            Scaling::SmoothQuant => " SmoothQuant",
        };
        let method = match self.method {
            Method::RoundToNearest | Method::Kmeans => "",
            Method::Gptq => " GPTQ",
        };
        format!("{scaling}{method}")
    }
}

impl Default for Quantization {
    /// INT8 per output channel, symmetric, the embedding in groups of 32, scales in f16.
    fn default() -> Self {
        Self {
            bits: 8,
            group_size: None,
            symmetric: true,
            method: Method::RoundToNearest,
            codebook_rows: None,
            clipping: Clipping::None,
            scaling: Scaling::None,
            migration_strength: MIGRATION_STRENGTH,
            damping: 0.01,
            activation_order: true,
            embedding: EmbeddingScheme::Int8,
            embedding_group_size: 32,
            activations: Activations::None,
            scale_dtype: Dtype::F16,
            overrides: Vec::new(),
            chosen: BTreeMap::new(),
            no_candidate: BTreeSet::new(),
            allow: Vec::new(),
            dense_dtype: None,
        }
    }
}

/// What was written, and how far it is from the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizationReport {
    /// Bytes of `model.safetensors`.
    pub artifact_bytes: u64,
    /// Bits of everything stored ÷ the model's weights, scales and dense tensors included.
    pub bits_per_weight: f64,
    /// The quantized tensors, the largest relative error first.
    pub tensors: Vec<TensorReport>,
    /// The tensors left dense, with the reason.
    pub dense: Vec<DenseTensor>,
    /// What did not become what was asked for, which the recipe allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead: Vec<Instead>,
    /// How much text was looked at; empty where none was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextUse>,
    /// Which programs open the artifact.
    pub opens_in: Vec<OpensIn>,
    /// What became of the inputs of the projections, layer by layer, where they were to be scaled. Errors of tensors are those of scaled
    /// weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaling: Vec<InputScaling>,
    /// What a target came to, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Bytes of `model.entropy`, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_bytes: Option<u64>,
}

/// How far a quantized tensor is from the dense one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its name as stored.
    pub name: String,
    /// How it was quantized.
    pub scheme: Levels,
    /// What it was asked to become; under a target, what that chose.
    pub asked: Treatment,
    /// What it became: where it is not what was asked for, [`QuantizationReport::instead`] says why.
    pub got: Treatment,
    /// Values it holds.
    pub weights: u64,
    /// Bytes it takes, scales included.
    pub bytes: u64,
    /// `8 · bytes / weights`
    pub bits_per_weight: f64,
    /// Mean of `(w − ŵ)²`.
    pub mean_squared_error: f64,
    /// `‖W − Ŵ‖² / ‖W‖²`; 0 for a tensor of zeros.
    pub relative_error: f64,
    /// Largest `|w − ŵ|`.
    pub max_absolute_error: f64,
    /// Where text was looked at: mean square of what this adds to the output ÷ mean square of the output, the inputs being what the
    /// quantized layers before make of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// The same, had the weights been rounded to nearest; not of codebooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error_rounded_to_nearest: Option<f64>,
    /// With static scales of activations: the scale of what this multiplies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_scale: Option<f32>,
    /// Where a target chose, or the recipe asks for it: mean KL divergence, nats per token, while only this tensor is quantized, its
    /// inputs not scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

/// Why nothing was quantized.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be read, written or believed.
    #[error(transparent)]
    Format(#[from] compressor_format::Error),
    /// A quantization that can't be; [`resolve`] says so before any work.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The artifact would be written over the checkpoint it is made from.
    #[error("{0}: holds the checkpoint; an artifact needs a folder of its own")]
    SameFolder(PathBuf),
    /// Weights so large that the scale, or an integer times the scale, is infinite.
    #[error("{path}: {overflow}")]
    Overflow {
        /// The checkpoint.
        path: PathBuf,
        /// Which weights.
        overflow: Overflow,
    },
    /// A quantization whose numbers are not known while weights are trained.
    #[error("weights can't be trained for {0}")]
    Unforeseen(#[from] Unforeseen),
    /// Something that looks at text, without any.
    #[error(
        "method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\" look at text: a dataset is needed"
    )]
    NoCalibration,
    /// Inputs that no static scale covers.
    #[error(
        "tensor `{name}`: what it multiplies reaches {largest:e} on the calibration text, which no scale in {scale_dtype} \
         covers{}", if .largest.is_finite() { hint(.scale_dtype) } else { "" }
    )]
    InputOverflow {
        /// The first tensor that multiplies them, as stored.
        name: String,
        /// The largest magnitude.
        largest: f32,
        /// The float type of the scales.
        scale_dtype: Dtype,
    },
    /// Inputs that GPTQ can't work with.
    #[error(
        "tensor `{name}`: what it multiplies on the calibration text has no positive definite Hessian with damping {damping}; raise \
         damping, or calibration_tokens, or allow = [\"round_to_nearest\"]"
    )]
    NotPositiveDefinite {
        /// The first tensor that multiplies it, as stored.
        name: String,
        /// Part of the mean of the diagonal that was added to it.
        damping: f64,
    },
    /// Inputs that are no numbers.
    #[error("tensor `{0}`: what it multiplies on the calibration text is infinite, or its squares are")]
    InfiniteInputs(String),
    /// GPTQ that does harm.
    #[error(
        "GPTQ adds {gptq:.4} to the outputs of the projections on the calibration text, rounding to nearest {nearest:.4} (sums of \
         relative mean squares): method = \"round_to_nearest\" is better here, or more calibration_tokens, or \
         allow = [\"round_to_nearest\"], which takes the better of both for each matrix"
    )]
    WorseThanNearest {
        /// Sum of [`TensorReport::output_error`].
        gptq: f64,
        /// Sum of [`TensorReport::output_error_rounded_to_nearest`].
        nearest: f64,
    },
    /// A finished layer that was taken away while the quantization was under way.
    #[error("{}: was written a moment ago and can't be read; start the same command again", .0.display())]
    KeptLayer(PathBuf),
    /// A layer that can't be computed.
    #[error(transparent)]
    Engine(#[from] compressor_engine::Error),
    /// Dense values that the dense type can't hold.
    #[error("{path}: tensor `{name}` holds {value:e}, which is infinite as {dtype}; dense_dtype = \"f32\" keeps it")]
    DenseOverflow {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name as stored.
        name: String,
        /// The largest magnitude.
        value: f32,
        /// The type it was to be stored in.
        dtype: Dtype,
    },
}

/// Weights so large that the scale, or an integer times the scale, is infinite.
#[derive(Debug, thiserror::Error)]
#[error(
    "tensor `{name}` holds weights from {low:e} to {high:e} in row {row}: quantized to {scheme} with scales in {scale_dtype}, they stand \
     for infinite values{}", hint(.scale_dtype)
)]
pub struct Overflow {
    /// The tensor's name as stored.
    pub name: String,
    /// The output channel.
    pub row: usize,
    /// The smallest weight of the row.
    pub low: f32,
    /// The largest weight of the row.
    pub high: f32,
    /// What it was to be quantized to.
    pub scheme: Levels,
    /// The float type of the scales or centroids.
    pub scale_dtype: Dtype,
}

impl Overflow {
    /// Of a row of a tensor.
    fn of(stored: &StoredTensor, values: &[f32], row: usize, scheme: impl Into<Levels>, scale_dtype: Dtype) -> Self {
        let (low, high) = round_to_nearest::range(values);
        Self { name: stored.name.clone(), row, low, high, scheme: scheme.into(), scale_dtype }
    }
}

/// What helps where a scale is infinite.
fn hint(scale_dtype: &Dtype) -> &'static str {
    if *scale_dtype == Dtype::F32 { "" } else { "; scale_dtype = \"f32\" may hold them" }
}

/// Quantizes `checkpoint` into the folder `out`: `config.json`, `model.safetensors` and what makes the tokenizer.
///
/// `progress` is called after each layer that looked at text and each stored tensor, with what is done, what there is, and of what.
/// The bytes written depend on nothing but the checkpoint and `quantization`; the number of threads changes none of them.
///
/// # Errors
/// [`Error::Format`] for NaN and infinities by tensor and place, and for a disk that is full or read-only; otherwise as the variants
/// of [`Error`] say.
pub fn quantize(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    calibration: Option<&Calibration>,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<QuantizationReport, Error> {
    let architecture = checkpoint.architecture();
    let sizes = resolve(quantization, architecture, checkpoint.dtype())?;
    let layout = sizes::layout(quantization, architecture, checkpoint.dtype())?;
    fs_err::create_dir_all(out).map_err(compressor_format::Error::from)?;
    if is_same_folder(checkpoint.path(), out) {
        return Err(Error::SameFolder(out.to_owned()));
    }

    let layout = ArtifactLayout {
        architecture,
        config: checkpoint.config(),
        dense_dtype: quantization.dense_dtype.unwrap_or(checkpoint.dtype()),
        scale_dtype: quantization.scale_dtype,
        tensors: layout,
        input_rounding: match quantization.activations {
            Activations::None => InputRounding::None,
            Activations::Int8 => InputRounding::PerToken,
            Activations::Int8Static => InputRounding::Static(BTreeMap::new()),
        },
    };
    let mut calibrated = Calibrated::default();
    if quantization.calibrates() {
        let calibration = calibration.ok_or(Error::NoCalibration)?;
        let layers = architecture.layers.len() as u64;
        let mut done = |layer: usize| progress(layer as u64, layers, "layers");
        calibrated = calibrated::quantize_layers(checkpoint, quantization, &layout.tensors, calibration, &mut done)?;
        refuse_harm(&calibrated.output_errors)?;
    }

    let total = architecture.parameters();
    let mut done = 0;
    let mut reports = Vec::new();
    let mut instead = sizes.instead;
    let mut artifact = layout.begin(out)?;
    for (stored, storage) in &layout.tensors {
        let weights = stored.shape(architecture).iter().product::<usize>() as u64;
        done += weights;
        let asked = alternatives::asked(quantization, architecture, stored);
        let report = |distance: Distance, levels| {
            distance.report(stored, (levels, asked), storage.bytes(stored, architecture, quantization.scale_dtype), weights)
        };
        // What stays dense is in no layer's file, which would be read again for it.
        let made = if storage.levels().is_some() { calibrated.take(stored)? } else { None };
        let tensor = match (storage.levels(), made) {
            (None, _) => {
                let values = scaling::scaled(&calibrated.scaling, checkpoint, stored)?;
                refuse_dense_overflow(checkpoint, stored, &values, layout.dense_dtype)?;
                NewArtifactTensor::Dense(values)
            }
            (Some((levels, _)), Some(Quantized { matrix, distance, output_error, input_scale })) => {
                if let Some(scale) = input_scale {
                    artifact.put_input_scale(stored, scale)?;
                }
                let other = output_error.instead(quantization, &stored.name, asked);
                reports.push(TensorReport {
                    got: other.as_ref().map_or(asked, |other| other.got),
                    output_error: Some(output_error.relative),
                    output_error_rounded_to_nearest: output_error.rounded_to_nearest,
                    input_scale,
                    ..report(distance, levels)
                });
                instead.extend(other);
                matrix.into()
            }
            (Some(levels), None) => {
                let (matrix, distance) = nearest(checkpoint, quantization, stored, levels)?;
                reports.push(report(distance, levels.0));
                matrix.into()
            }
        };
        artifact.put(stored, &tensor)?;
        progress(done, total, &stored.name);
    }
    reports.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error).then_with(|| left.name.cmp(&right.name)));

    // The tokenizer first: a folder with a configuration is whole.
    checkpoint.copy_companions(out)?;
    artifact.finish()?;
    Ok(QuantizationReport {
        artifact_bytes: sizes.artifact_bytes,
        bits_per_weight: sizes.bits_per_weight,
        tensors: reports,
        dense: sizes.dense,
        instead,
        text: Vec::new(),
        opens_in: opens_in(quantization, architecture),
        scaling: calibrated.scaling.into_iter().flat_map(|layer| layer.report).collect(),
        budget: None,
        entropy_bytes: None,
    })
}

fn is_same_folder(checkpoint: &Path, out: &Path) -> bool {
    matches!((checkpoint.canonicalize(), out.canonicalize()), (Ok(from), Ok(to)) if from == to)
}

/// A stored matrix rounded to nearest, an embedding or a head some rows at a time.
fn nearest(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    stored: &StoredTensor,
    levels: (Levels, bool),
) -> Result<(Matrix, Distance), Error> {
    let columns = checkpoint.architecture().shape(stored.parts[0])[1];
    let whole;
    let rows = match stored.parts[0] {
        id @ (TensorId::Embedding | TensorId::Head) => Rows::File(checkpoint, id),
        _ => {
            whole = values(checkpoint, stored)?;
            Rows::Memory(&whole)
        }
    };
    let (mut parts, mut distance) = (Vec::new(), Distance::default());
    for range in rows.parts(columns) {
        let values = rows.read(range.clone(), columns)?;
        let (matrix, of_part) = Matrix::nearest(&values, columns, levels, quantization, None).map_err(|row| {
            let values = &values[row * columns..][..columns];
            overflow(checkpoint, stored, values, range.start + row, levels.0, quantization.scale_dtype)
        })?;
        parts.push(matrix);
        distance.add(of_part);
    }
    Ok((Matrix::stacked(parts), distance))
}

/// The values of a stored tensor, `[out, in]`, fused parts one below the other.
fn values(checkpoint: &Checkpoint, stored: &StoredTensor) -> Result<Vec<f32>, compressor_format::Error> {
    match stored.parts.as_slice() {
        [one] => checkpoint.tensor(*one),
        several => {
            let parts: Result<Vec<_>, _> = several.iter().map(|part| checkpoint.tensor(*part)).collect();
            Ok(parts?.concat())
        }
    }
}

fn overflow(
    checkpoint: &Checkpoint,
    stored: &StoredTensor,
    row_values: &[f32],
    row: usize,
    scheme: impl Into<Levels>,
    scale_dtype: Dtype,
) -> Error {
    let overflow = Overflow::of(stored, row_values, row, scheme, scale_dtype);
    Error::Overflow { path: checkpoint.path().to_owned(), overflow }
}

fn refuse_dense_overflow(checkpoint: &Checkpoint, stored: &StoredTensor, values: &[f32], dtype: Dtype) -> Result<(), Error> {
    let (low, high) = round_to_nearest::range(values);
    let value = if -low > high { low } else { high };
    let rounded = dtype.from_f32(&[value]).and_then(|bytes| dtype.to_f32(&bytes)).expect("`layout` refused integer types");
    if rounded[0].is_finite() {
        return Ok(());
    }
    Err(Error::DenseOverflow { path: checkpoint.path().to_owned(), name: stored.name.clone(), value, dtype })
}

/// Quantizes a `[rows, columns]` matrix row by row.
///
/// # Errors
/// The first row whose integers would stand for infinite values.
fn quantize_matrix(
    values: &[f32],
    columns: usize,
    scheme: Scheme,
    packed: bool,
    quantization: &Quantization,
    importance: Option<&[f32]>,
) -> Result<(QuantizedMatrix, Distance), usize> {
    let rows = values.len() / columns;
    let groups = scheme.groups(columns);
    let row_bytes = if packed { scheme.row_bytes(columns) } else { columns };
    let mut bytes = vec![0u8; rows * row_bytes];
    let mut scales = vec![0f32; rows * groups];
    let mut zero_points = vec![0i8; rows * groups];
    let distances: Vec<Option<Distance>> = values
        .par_chunks_exact(columns)
        .zip(bytes.par_chunks_exact_mut(row_bytes))
        .zip(scales.par_chunks_exact_mut(groups))
        .zip(zero_points.par_chunks_exact_mut(groups))
        .map_init(Scratch::default, |scratch, (((row, bytes), scales), zero_points)| {
            let distance = quantize_row(row, scheme, (quantization, importance), scratch, scales, zero_points)?;
            match packed {
                true => bytes.copy_from_slice(&pack(&scratch.integers, scheme.bits)),
                false => bytes.iter_mut().zip(&scratch.integers).for_each(|(byte, q)| *byte = *q as u8),
            }
            Some(distance)
        })
        .collect();
    // In the order of the rows, so that the sums do not depend on the threads.
    let mut whole = Distance::default();
    for (row, distance) in distances.into_iter().enumerate() {
        whole.add(distance.ok_or(row)?);
    }
    let bytes = WeightBytes::Owned(bytes.into());
    let matrix = QuantizedMatrix {
        rows,
        columns,
        scheme,
        values: if packed { Values::Packed(bytes) } else { Values::Signed(bytes) },
        scales: scales.into(),
        zero_points: (!scheme.symmetric).then_some(zero_points),
    };
    Ok((matrix, whole))
}

/// A matrix of integers and grids that were found elsewhere.
///
/// # Errors
/// As [`quantize_matrix`].
fn assemble(
    values: &[f32],
    columns: usize,
    scheme: Scheme,
    packed: bool,
    rounded: gptq::Rounded,
) -> Result<(QuantizedMatrix, Distance), usize> {
    let gptq::Rounded { integers, grids } = rounded;
    let (rows, groups) = (values.len() / columns, scheme.groups(columns));
    if let Some(at) = grids.iter().position(|grid| !round_to_nearest::is_finite(*grid, scheme)) {
        return Err(at / groups);
    }
    let group_size = scheme.group_size.unwrap_or(columns);
    let mut distance = Distance::default();
    for ((values, integers), grid) in values.chunks_exact(group_size).zip(integers.chunks_exact(group_size)).zip(&grids) {
        distance.add(Distance::between(values, integers, *grid));
    }
    let rows_of_integers = integers.chunks_exact(columns);
    let values = match packed {
        true => Values::Packed(WeightBytes::Owned(rows_of_integers.flat_map(|row| pack(row, scheme.bits)).collect())),
        false => Values::Signed(WeightBytes::Owned(integers.iter().map(|q| *q as u8).collect())),
    };
    let matrix = QuantizedMatrix {
        rows,
        columns,
        scheme,
        values,
        scales: grids.iter().map(|grid| grid.scale).collect::<Vec<f32>>().into(),
        zero_points: (!scheme.symmetric).then(|| grids.iter().map(|grid| grid.zero_point).collect()),
    };
    Ok((matrix, distance))
}

/// GPTQ minimizes what rounding to nearest leaves; where it does not, its text was too short or unlike what comes.
fn refuse_harm(errors: &[OutputError]) -> Result<(), Error> {
    let sum = |error: fn(&OutputError) -> f64| errors.iter().map(error).sum::<f64>();
    let (gptq, nearest) = (sum(|error| error.relative), sum(|error| error.rounded_to_nearest.unwrap_or(error.relative)));
    if gptq > nearest { Err(Error::WorseThanNearest { gptq, nearest }) } else { Ok(()) }
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    integers: Vec<i8>,
    clipping: clipping::Scratch,
}

/// Quantizes one row into `scratch.integers`, `scales` and `zero_points`; `None` where a value would be infinite.
fn quantize_row(
    row: &[f32],
    scheme: Scheme,
    (quantization, importance): (&Quantization, Option<&[f32]>),
    scratch: &mut Scratch,
    scales: &mut [f32],
    zero_points: &mut [i8],
) -> Option<Distance> {
    let group_size = scheme.group_size.unwrap_or(row.len());
    scratch.integers.resize(row.len(), 0);
    let mut distance = Distance::default();
    for (index, (group, integers)) in row.chunks_exact(group_size).zip(scratch.integers.chunks_exact_mut(group_size)).enumerate()
    {
        let importance = importance.map(|importance| &importance[index * group_size..][..group_size]);
        let grid = quantization.grid(group, importance, scheme, &mut scratch.clipping);
        if !round_to_nearest::is_finite(grid, scheme) {
            return None;
        }
        round_to_nearest::round_to(grid, scheme, group, integers);
        distance.add(Distance::between(group, integers, grid));
        scales[index] = grid.scale;
        zero_points[index] = grid.zero_point;
    }
    Some(distance)
}

/// Sums over weights and what their integers stand for.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Distance {
    /// `Σ (w − ŵ)²`
    squared_error: f64,
    /// `Σ w²`
    squared_weights: f64,
    /// `max |w − ŵ|`
    largest: f64,
}

impl Distance {
    fn between(group: &[f32], integers: &[i8], grid: Grid) -> Self {
        let zero_point = i32::from(grid.zero_point);
        Self::of(group, integers.iter().map(|q| (i32::from(*q) - zero_point) as f32 * grid.scale))
    }

    /// Between weights and the reals in their places.
    fn of(weights: &[f32], reals: impl Iterator<Item = f32>) -> Self {
        let mut distance = Self::default();
        for (weight, real) in weights.iter().zip(reals) {
            let weight = f64::from(*weight);
            let error = (weight - f64::from(real)).abs();
            distance.squared_error += error * error;
            distance.squared_weights += weight * weight;
            distance.largest = distance.largest.max(error);
        }
        distance
    }

    fn add(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_weights += other.squared_weights;
        self.largest = self.largest.max(other.largest);
    }

    fn report(self, stored: &StoredTensor, (scheme, asked): (Levels, Treatment), bytes: u64, weights: u64) -> TensorReport {
        TensorReport {
            name: stored.name.clone(),
            scheme,
            asked,
            got: asked,
            weights,
            bytes,
            bits_per_weight: bytes as f64 * 8.0 / weights as f64,
            mean_squared_error: self.squared_error / weights as f64,
            relative_error: if self.squared_weights > 0.0 { self.squared_error / self.squared_weights } else { 0.0 },
            max_absolute_error: self.largest,
            output_error: None,
            output_error_rounded_to_nearest: None,
            input_scale: None,
            kl: None,
        }
    }
}
