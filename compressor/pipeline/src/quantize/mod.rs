//! Turns a checkpoint into an artifact: every projection becomes integers with scales, written as compressed-tensors safetensors.
//!
//! One method is one file: [`round_to_nearest`] lays a grid over a group of weights, [`clipping`] looks for a better one. [`resolve`]
//! says what will be written, to the byte, before any of it is done. [`allocate()`] shares a budget of bytes among tensors.

mod allocate;
mod clipping;
mod opens_in;
mod round_to_nearest;
mod sizes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use compressor_format::{
    Activations, Checkpoint, Clipping, DenseTensor, Dtype, EmbeddingScheme, NewArtifact, NewArtifactTensor, OpensIn,
    QuantizedMatrix, Scheme, Storage, StoredTensor, Values, WeightBytes, pack,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::round_to_nearest::Grid;

pub use self::allocate::{Allocation, AllocationError, Candidate, allocate};
pub use self::opens_in::opens_in;
pub use self::sizes::{QuantizedSize, QuantizedSizes, Refusal, Width, refusals, resolve};

/// What to make of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Bits of one integer of a projection: 4 or 8.
    pub bits: u8,
    /// Input elements of a projection that share one scale; `None` is one scale per output channel, for 8 bits only.
    pub group_size: Option<usize>,
    /// No zero points, in projections and embedding.
    pub symmetric: bool,
    /// How the range of a group is chosen.
    pub clipping: Clipping,
    /// What becomes of the embedding, and of the head where it is a tensor of its own.
    pub embedding: EmbeddingScheme,
    /// Input elements of the embedding that share one scale.
    pub embedding_group_size: usize,
    /// What becomes of the inputs of projections as they run.
    pub activations: Activations,
    /// The type of what stays dense; `None` is the type most of the checkpoint is stored in.
    pub dense_dtype: Option<Dtype>,
}

impl From<&compressor_format::Quantize> for Quantization {
    fn from(stage: &compressor_format::Quantize) -> Self {
        Self {
            bits: stage.bits,
            group_size: stage.group_size.or((stage.bits == 4).then_some(INT4_GROUP_SIZE)),
            symmetric: stage.symmetric,
            clipping: stage.clipping,
            embedding: stage.embedding,
            embedding_group_size: stage.embedding_group_size,
            activations: stage.activations,
            dense_dtype: None,
        }
    }
}

/// Of projections with 4 bits, where the recipe does not say.
const INT4_GROUP_SIZE: usize = 32;

impl Quantization {
    /// The scheme of the projections, short enough for a table: `INT4 g32`.
    pub fn name(&self) -> String {
        let group = self.group_size.map(|size| format!(" g{size}")).unwrap_or_default();
        let zero_points = if self.symmetric { "" } else { " zp" };
        let activations = if self.activations == Activations::Int8 { " W8A8" } else { "" };
        format!("INT{}{group}{zero_points}{activations}", self.bits)
    }
}

impl Default for Quantization {
    /// INT8 per output channel, symmetric, the embedding in groups of 32.
    fn default() -> Self {
        Self {
            bits: 8,
            group_size: None,
            symmetric: true,
            clipping: Clipping::None,
            embedding: EmbeddingScheme::Int8,
            embedding_group_size: 32,
            activations: Activations::None,
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
    /// Which programs open the artifact.
    pub opens_in: Vec<OpensIn>,
}

/// How far a quantized tensor is from the dense one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its name as stored.
    pub name: String,
    /// How it was quantized.
    pub scheme: Scheme,
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
    #[error(
        "{path}: tensor `{name}` holds weights from {low:e} to {high:e} in row {row}: quantized to {scheme}, they stand for values \
         beyond f32"
    )]
    Overflow {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name as stored.
        name: String,
        /// The output channel.
        row: usize,
        /// The smallest weight of the row.
        low: f32,
        /// The largest weight of the row.
        high: f32,
        /// What it was to be quantized to.
        scheme: Scheme,
    },
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

/// Quantizes `checkpoint` into the folder `out`: `config.json`, `model.safetensors` and what makes the tokenizer.
///
/// `progress` is called after each stored tensor with the weights done, the weights there are, and the tensor's name.
/// The bytes written depend on nothing but the checkpoint and `quantization`; the number of threads changes none of them.
///
/// # Errors
/// [`Error::Format`] for NaN and infinities by tensor and place, and for a disk that is full or read-only; otherwise as the variants
/// of [`Error`] say.
pub fn quantize(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
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

    let total = architecture.parameters();
    let mut done = 0;
    let mut tensors = Vec::new();
    let mut reports = Vec::new();
    for (stored, storage) in layout {
        let values = values(checkpoint, &stored)?;
        done += values.len() as u64;
        let name = stored.name.clone();
        let tensor = match storage {
            Storage::Dense(dtype) => {
                refuse_dense_overflow(checkpoint, &stored, &values, dtype)?;
                NewArtifactTensor::Dense(values)
            }
            Storage::Packed(scheme) | Storage::Signed(scheme) => {
                let columns = architecture.shape(stored.parts[0])[1];
                let packed = matches!(storage, Storage::Packed(_));
                let (matrix, distance) = quantize_matrix(&values, columns, scheme, packed, quantization.clipping)
                    .map_err(|row| overflow(checkpoint, &stored, &values[row * columns..][..columns], row, scheme))?;
                reports.push(distance.report(&stored, scheme, storage.bytes(&stored, architecture), values.len() as u64));
                NewArtifactTensor::Quantized(matrix)
            }
        };
        tensors.push((stored, tensor));
        progress(done, total, &name);
    }
    reports.sort_by(|left, right| right.relative_error.total_cmp(&left.relative_error).then_with(|| left.name.cmp(&right.name)));

    // The tokenizer first: a folder with a configuration is whole.
    checkpoint.copy_companions(out)?;
    NewArtifact {
        architecture,
        config: checkpoint.config(),
        dense_dtype: quantization.dense_dtype.unwrap_or(checkpoint.dtype()),
        tensors,
        activation_bits: match quantization.activations {
            Activations::None => None,
            Activations::Int8 => Some(8),
        },
    }
    .write(out)?;
    Ok(QuantizationReport {
        artifact_bytes: sizes.artifact_bytes,
        bits_per_weight: sizes.bits_per_weight,
        tensors: reports,
        dense: sizes.dense,
        opens_in: opens_in(quantization, architecture),
    })
}

fn is_same_folder(checkpoint: &Path, out: &Path) -> bool {
    matches!((checkpoint.canonicalize(), out.canonicalize()), (Ok(from), Ok(to)) if from == to)
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

fn overflow(checkpoint: &Checkpoint, stored: &StoredTensor, row_values: &[f32], row: usize, scheme: Scheme) -> Error {
    let (low, high) = round_to_nearest::range(row_values);
    Error::Overflow { path: checkpoint.path().to_owned(), name: stored.name.clone(), row, low, high, scheme }
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
    clipping: Clipping,
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
            let distance = quantize_row(row, scheme, clipping, scratch, scales, zero_points)?;
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
    clipping: Clipping,
    scratch: &mut Scratch,
    scales: &mut [f32],
    zero_points: &mut [i8],
) -> Option<Distance> {
    let group_size = scheme.group_size.unwrap_or(row.len());
    scratch.integers.resize(row.len(), 0);
    let mut distance = Distance::default();
    for (index, (group, integers)) in row.chunks_exact(group_size).zip(scratch.integers.chunks_exact_mut(group_size)).enumerate()
    {
        let grid = match clipping {
            Clipping::None => round_to_nearest::covering(group, scheme),
            Clipping::Mse => clipping::least_squared_error(group, scheme, &mut scratch.clipping),
        };
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
#[derive(Clone, Copy, Default)]
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
        let mut distance = Self::default();
        let zero_point = i32::from(grid.zero_point);
        for (weight, q) in group.iter().zip(integers) {
            let weight = f64::from(*weight);
            let error = (weight - f64::from((i32::from(*q) - zero_point) as f32 * grid.scale)).abs();
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

    fn report(self, stored: &StoredTensor, scheme: Scheme, bytes: u64, weights: u64) -> TensorReport {
        TensorReport {
            name: stored.name.clone(),
            scheme,
            weights,
            bytes,
            bits_per_weight: bytes as f64 * 8.0 / weights as f64,
            mean_squared_error: self.squared_error / weights as f64,
            relative_error: if self.squared_weights > 0.0 { self.squared_error / self.squared_weights } else { 0.0 },
            max_absolute_error: self.largest,
        }
    }
}
