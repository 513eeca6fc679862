//! What a quantization makes of an architecture, before any work: the layout of every tensor, exact bytes, and every refusal.

use std::fmt;

use compressor_format::{
    Architecture, Codebooks, DenseTensor, Dtype, Family, LayerTensor, Levels, Method, Scheme, Storage, StoredTensor, TensorId,
    safetensors_file_bytes,
};
use serde::Serialize;

use super::alternatives::{self, Instead};
use super::overrides;
use super::{Activations, Quantization};

/// What will be written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedSizes {
    /// Bytes of `model.safetensors`, header included.
    pub artifact_bytes: u64,
    /// Bytes of what the engine makes of codebooks: dense weights of the centroids' type.
    pub decoded_bytes: u64,
    /// Bits of the quantized and dense tensors ÷ the model's weights, scales included.
    pub bits_per_weight: f64,
    /// The quantized tensors, in the order of the computation.
    pub tensors: Vec<QuantizedSize>,
    /// The tensors left dense, with the reason.
    pub dense: Vec<DenseTensor>,
    /// Those of them that were asked to become something else.
    pub instead: Vec<Instead>,
}

/// A tensor that will be quantized.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedSize {
    /// Its name as stored.
    pub name: String,
    /// How.
    pub scheme: Levels,
    /// Values it holds.
    pub weights: u64,
    /// Bytes it will take, scales included.
    pub bytes: u64,
}

/// A quantization that can't be, and the key that asks for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bits that nothing here runs.
    #[error("bits {bits} is not there; 2, 3, 4, 5, 6 and 8 are")]
    Bits {
        /// The key.
        key: &'static str,
        /// Its value.
        bits: u8,
    },
    /// Few bits with one scale a row.
    #[error("{0} bits need a group_size: one scale for a whole output channel loses too much; usual are 32, 64 and 128")]
    PerChannel(u8),
    /// A group without elements.
    #[error("{} 0 makes no groups; usual are 32, 64 and 128", size_key(.key))]
    EmptyGroup {
        /// The key.
        key: &'static str,
    },
    /// Groups that do not fill a row.
    #[error(
        "{} {group_size} does not divide {} {columns} (`{tensor}`); divisors of {columns} are {}", size_key(.key), .width,
        divisors(*.columns)
    )]
    Divides {
        /// Whether the tensor could stay dense instead.
        can_be_dense: bool,
        /// The key.
        key: &'static str,
        /// Its value.
        group_size: usize,
        /// What the width is called.
        width: Width,
        /// The width.
        columns: usize,
        /// The first tensor that has it.
        tensor: String,
    },
    /// INT8 activations with other weights than the INT8 kernels multiply.
    #[error("activations \"{activations}\" needs 8 bits, symmetric, per channel: leave group_size out; found {found}")]
    Activations {
        /// What was asked for.
        activations: Activations,
        /// The first other scheme.
        found: Scheme,
    },
    /// Codebooks of a size that nothing here runs.
    #[error("method \"kmeans\" makes codebooks of 16 or 256 values: bits 4 or 8; found {bits}")]
    CodebookBits {
        /// The key.
        key: &'static str,
        /// Its value.
        bits: u8,
    },
    /// Groups of input elements, which a codebook knows nothing of.
    #[error("method \"kmeans\" has no group_size: codebook_rows says which output rows share a codebook")]
    CodebookGroups,
    /// The same, or zero points, of some projections.
    #[error("overrides: method \"kmeans\" has neither group_size nor symmetric; of `{0}` only bits or dense can be said")]
    CodebookGrid(String),
    /// No rows for a codebook.
    #[error("codebook_rows 0 makes no codebooks; leave it out for one per matrix")]
    EmptyCodebooks,
    /// Rows that share codebooks, and no codebooks.
    #[error("codebook_rows is for method \"kmeans\"; leave it out")]
    NoCodebooks,
    /// Codebooks that do not divide a matrix.
    #[error(
        "codebook_rows {shared} does not divide the {rows} output rows of `{tensor}`; divisors of {rows} are {}", divisors(*.rows)
    )]
    CodebookRows {
        /// Whether the matrix could stay dense instead.
        can_be_dense: bool,
        /// Rows that share a codebook.
        shared: usize,
        /// Rows of the matrix.
        rows: usize,
        /// The first such matrix.
        tensor: String,
    },
    /// INT8 activations and no integers to multiply them with.
    #[error("activations \"{0}\" multiplies integers, and method \"kmeans\" makes codebooks: leave one of them out")]
    CodebooksWithActivations(Activations),
    /// A target and a method that is none of its candidates.
    #[error(
        "method \"kmeans\" makes codebooks, and a target chooses among schemes of integers: set bits = 4 or 8 instead of a target"
    )]
    CodebooksWithTarget,
    /// An override of nothing.
    #[error("overrides: `{pattern}` matches no matrix; nearest are {nearest}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Names that are like it, with commas between them.
        nearest: String,
    },
    /// A pattern that is none.
    #[error("overrides: `{pattern}` is no pattern: {what}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        what: String,
    },
    /// A matrix that no reader takes dense.
    #[error("overrides: `{0}` can't stay dense: its family stores matrices [in, out], and an artifact has them [out, in]")]
    Transposed(String),
    /// A candidate with few bits and one scale a row.
    #[error(
        "candidates: {0} bits need a group_size: one scale for a whole output channel loses too much; usual are 32, 64 and 128"
    )]
    CandidatePerChannel(u8),
    /// A tensor that no candidate fits.
    #[error(
        "candidates: no group_size of theirs divides the {columns} columns of `{tensor}`; divisors of {columns} are {}",
        divisors(*.columns)
    )]
    NoCandidate {
        /// Whether it could stay dense instead.
        can_be_dense: bool,
        /// The first such tensor, as stored.
        tensor: String,
        /// Its input elements.
        columns: usize,
    },
    /// A target that nothing meets.
    #[error(
        "{target} is too small: the smallest artifact that the candidates make has {bytes} bytes, {bits_per_weight} bits per weight"
    )]
    TooSmall {
        /// The key and its value.
        target: String,
        /// The key.
        key: &'static str,
        /// Bytes of the smallest `model.safetensors`.
        bytes: u64,
        /// Its bits per weight, rounded up.
        bits_per_weight: String,
    },
    /// Dense tensors of an integer type.
    #[error("dense_dtype {0} is an integer type; f32, f16 and bf16 are there")]
    DenseDtype(Dtype),
    /// Layers of different sizes.
    #[error("layers of different sizes can't be written: config.json has one size for all layers")]
    UnevenLayers,
    /// A file that no offset can describe.
    #[error("the artifact would be larger than a file can be")]
    TooLarge,
}

impl Refusal {
    /// The key of the quantization that asks for it, where it is one.
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::PerChannel(_) => Some("group_size"),
            Self::Bits { key, .. } | Self::EmptyGroup { key } | Self::Divides { key, .. } => Some(key),
            Self::CandidatePerChannel(_) | Self::NoCandidate { .. } => Some("candidates"),
            Self::TooSmall { key, .. } => Some(key),
            Self::Activations { .. } | Self::CodebooksWithActivations(_) => Some("activations"),
            Self::CodebookBits { key, .. } => Some(key),
            Self::CodebookGroups => Some("group_size"),
            Self::CodebookGrid(_) => Some("overrides"),
            Self::EmptyCodebooks | Self::NoCodebooks | Self::CodebookRows { .. } => Some("codebook_rows"),
            Self::CodebooksWithTarget => Some("method"),
            Self::NoMatch { .. } | Self::Pattern { .. } | Self::Transposed(_) => Some("overrides"),
            Self::DenseDtype(_) => Some("dense_dtype"),
            Self::UnevenLayers | Self::TooLarge => None,
        }
    }

    /// What is to be said of staying dense, where the sizes of one tensor are at fault; `allows_dense` is whether the recipe would have it.
    pub fn hint(&self, allows_dense: bool) -> Option<&'static str> {
        match self {
            Self::Divides { can_be_dense, .. }
            | Self::CodebookRows { can_be_dense, .. }
            | Self::NoCandidate { can_be_dense, .. } => match (can_be_dense, allows_dense) {
                (true, _) => Some("or allow = [\"dense\"]: what can't take its scheme then stays dense, and the report lists it"),
                (false, true) => {
                    Some("it can't stay dense: its family stores matrices [in, out], and an artifact has them [out, in]")
                }
                (false, false) => None,
            },
            Self::Bits { .. }
            | Self::PerChannel(_)
            | Self::EmptyGroup { .. }
            | Self::Activations { .. }
            | Self::CodebookBits { .. }
            | Self::CodebookGroups
            | Self::CodebookGrid(_)
            | Self::EmptyCodebooks
            | Self::NoCodebooks
            | Self::CodebooksWithActivations(_)
            | Self::CodebooksWithTarget
            | Self::NoMatch { .. }
            | Self::Pattern { .. }
            | Self::Transposed(_)
            | Self::CandidatePerChannel(_)
            | Self::TooSmall { .. }
            | Self::DenseDtype(_)
            | Self::UnevenLayers
            | Self::TooLarge => None,
        }
    }

    /// Whether the recipe alone is at fault, whatever the model's sizes.
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::Bits { .. }
            | Self::PerChannel(_)
            | Self::CandidatePerChannel(_)
            | Self::EmptyGroup { .. }
            | Self::Activations { .. }
            | Self::CodebookBits { .. }
            | Self::CodebookGroups
            | Self::EmptyCodebooks
            | Self::NoCodebooks
            | Self::CodebooksWithActivations(_)
            | Self::CodebooksWithTarget
            | Self::Pattern { .. } => true,
            Self::NoMatch { .. }
            | Self::Transposed(_)
            | Self::DenseDtype(_)
            | Self::NoCandidate { .. }
            | Self::TooSmall { .. }
            | Self::Divides { .. }
            | Self::CodebookGrid(_)
            | Self::CodebookRows { .. }
            | Self::UnevenLayers
            | Self::TooLarge => false,
        }
    }

    /// Whether both say the same of one width, in different tensors.
    fn is_same_width(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Divides { key, width, .. }, Self::Divides { key: other_key, width: other_width, .. }) => {
                (key, width) == (other_key, other_width)
            }
            (Self::CodebookRows { rows, .. }, Self::CodebookRows { rows: other_rows, .. }) => rows == other_rows,
            _ => self == other,
        }
    }
}

/// The sizes that rows of matrices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The residual stream.
    HiddenSize,
    /// What attention hands to its output projection.
    Heads,
    /// The MLP.
    IntermediateSize,
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HiddenSize => "hidden_size",
            Self::Heads => "heads · head_dim",
            Self::IntermediateSize => "intermediate_size",
        })
    }
}

/// The key that says a group size, inside an override too.
pub(super) fn size_key(key: &'static str) -> &'static str {
    if key == "overrides" { "group_size" } else { key }
}

/// Every divisor, smallest first: "1, 2, 4, 8".
fn divisors(size: usize) -> String {
    let small: Vec<usize> =
        (1..).take_while(|divisor| divisor * divisor <= size).filter(|divisor| size.is_multiple_of(*divisor)).collect();
    let large = small.iter().rev().map(|divisor| size / divisor).filter(|divisor| divisor * divisor > size);
    let all: Vec<String> = small.iter().copied().chain(large).map(|divisor| divisor.to_string()).collect();
    all.join(", ")
}

/// What `quantization` makes of `architecture`, whose checkpoint stores `stored_dtype`.
///
/// # Errors
/// The first [`Refusal`].
pub fn resolve(quantization: &Quantization, architecture: &Architecture, stored_dtype: Dtype) -> Result<QuantizedSizes, Refusal> {
    let layout = layout(quantization, architecture, stored_dtype)?;
    let mut tensors = Vec::new();
    let mut dense = Vec::new();
    let mut instead = Vec::new();
    let (mut stored_bytes, mut decoded_bytes) = (0, 0);
    for (stored, storage) in &layout {
        let bytes = storage.bytes(stored, architecture, quantization.scale_dtype);
        stored_bytes += bytes;
        match storage.levels() {
            Some((scheme, _)) => {
                let weights = stored.shape(architecture).iter().product::<usize>() as u64;
                if matches!(scheme, Levels::Codebooks(_)) {
                    decoded_bytes += weights * quantization.scale_dtype.bytes() as u64;
                }
                tensors.push(QuantizedSize { name: stored.name.clone(), scheme, weights, bytes });
            }
            None => {
                let left = alternatives::left_dense(quantization, architecture, stored);
                let reason = match &left {
                    Some(left) => format!("{}, and the recipe allows dense", left.reason),
                    None if overrides::asks(quantization, stored) => "an override of the recipe asks for it".to_owned(),
                    None => reason_to_stay_dense(stored.parts[0], architecture).to_owned(),
                };
                instead.extend(left);
                dense.push(DenseTensor { name: stored.name.clone(), bytes, reason });
            }
        }
    }
    let parts =
        layout.iter().flat_map(|(stored, storage)| storage.layout(stored, architecture, quantization.scale_dtype)).collect();
    let artifact_bytes = safetensors_file_bytes(parts).ok_or(Refusal::TooLarge)?;
    let bits_per_weight = stored_bytes as f64 * 8.0 / architecture.parameters() as f64;
    Ok(QuantizedSizes { artifact_bytes, decoded_bytes, bits_per_weight, tensors, dense, instead })
}

/// Everything that is wrong with `quantization` for this architecture; empty exactly where [`resolve`] succeeds, but for an artifact
/// that is [too large](Refusal::TooLarge).
pub fn refusals(quantization: &Quantization, architecture: &Architecture, stored_dtype: Dtype) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let of_projections = (quantization.method != Method::Kmeans).then_some(("bits", quantization.bits));
    let overrides = quantization.overrides.iter().filter_map(|one| Some(("overrides", one.bits?)));
    for (key, bits) in of_projections.into_iter().chain(overrides) {
        if !Scheme::BITS.contains(&bits) {
            refusals.push(Refusal::Bits { key, bits });
        }
    }
    match quantization.method {
        Method::Kmeans => refusals.extend(codebook_refusals(quantization, architecture)),
        Method::RoundToNearest | Method::Gptq => refusals.extend(grid_refusals(quantization, architecture)),
    }
    refusals.extend(overrides::refusals(quantization, architecture));
    let dense_dtype = quantization.dense_dtype.unwrap_or(stored_dtype);
    if !dense_dtype.is_float() {
        refusals.push(Refusal::DenseDtype(dense_dtype));
    }
    if architecture.uniform_layer().is_none() {
        refusals.push(Refusal::UnevenLayers);
    }
    for stored in Family::stored(architecture) {
        let refusal = match quantized(quantization, architecture, &stored) {
            Some((key, Levels::Grid(Scheme { group_size: Some(group_size), .. }))) => {
                wrong_group(key, group_size, &stored, architecture)
            }
            Some((_, Levels::Codebooks(codebooks))) => wrong_rows(codebooks, &stored, architecture),
            Some((_, Levels::Grid(Scheme { group_size: None, .. }))) | None => None,
        };
        // Layers are alike: each width is told of once.
        if let Some(refusal) = refusal.filter(|refusal| !refusals.iter().any(|told| told.is_same_width(refusal))) {
            refusals.push(refusal);
        }
    }
    refusals
}

/// What is wrong where projections become integers.
fn grid_refusals(quantization: &Quantization, architecture: &Architecture) -> Vec<Refusal> {
    let scheme = projections(quantization);
    let mut refusals = Vec::new();
    if scheme.bits < 8 && scheme.group_size.is_none() {
        refusals.push(Refusal::PerChannel(scheme.bits));
    }
    if quantization.codebook_rows.is_some() {
        refusals.push(Refusal::NoCodebooks);
    }
    let activations = quantization.activations;
    if activations != Activations::None {
        let grids = projection_levels(quantization, architecture).filter_map(|(_, levels)| match levels {
            Levels::Grid(scheme) => Some(scheme),
            Levels::Codebooks(_) => None,
        });
        let per_channel_int8 = Scheme { bits: 8, group_size: None, symmetric: true };
        let first = grids.chain([scheme]).find(|scheme| *scheme != per_channel_int8);
        refusals.extend(first.map(|found| Refusal::Activations { activations, found }));
    }
    refusals
}

/// What is wrong where projections become codebooks.
fn codebook_refusals(quantization: &Quantization, architecture: &Architecture) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let others = projection_levels(quantization, architecture).find_map(|(_, levels)| match levels {
        Levels::Codebooks(Codebooks { bits, .. }) => Some(bits).filter(|bits| !Codebooks::BITS.contains(bits)),
        Levels::Grid(_) => None,
    });
    match (quantization.bits, others) {
        (bits, _) if !Codebooks::BITS.contains(&bits) => refusals.push(Refusal::CodebookBits { key: "bits", bits }),
        (_, Some(bits)) => refusals.push(Refusal::CodebookBits { key: "overrides", bits }),
        (_, None) => {}
    }
    if quantization.group_size.is_some() {
        refusals.push(Refusal::CodebookGroups);
    }
    let grid = projection_levels(quantization, architecture).find(|(stored, _)| overrides::say_a_grid(quantization, stored));
    refusals.extend(grid.map(|(stored, _)| Refusal::CodebookGrid(overrides::module(&stored).to_owned())));
    if quantization.activations != Activations::None {
        refusals.push(Refusal::CodebooksWithActivations(quantization.activations));
    }
    refusals
}

/// What the quantized projections become.
fn projection_levels(quantization: &Quantization, architecture: &Architecture) -> impl Iterator<Item = (StoredTensor, Levels)> {
    let projections = Family::stored(architecture).into_iter().filter(|stored| stored.parts[0].is_projection());
    let levels = |stored: StoredTensor| Some((quantized(quantization, architecture, &stored)?.1, stored));
    projections.filter_map(levels).map(|(levels, stored)| (stored, levels))
}

/// How every stored tensor will lie in the artifact.
pub(super) fn layout(
    quantization: &Quantization,
    architecture: &Architecture,
    stored_dtype: Dtype,
) -> Result<Vec<(StoredTensor, Storage)>, Refusal> {
    if let Some(refusal) = refusals(quantization, architecture, stored_dtype).into_iter().next() {
        return Err(refusal);
    }
    let one = |stored: StoredTensor| {
        let storage = match (quantized(quantization, architecture, &stored), quantization.activations) {
            (None, _) => Storage::Dense(quantization.dense_dtype.unwrap_or(stored_dtype)),
            (Some((_, Levels::Codebooks(codebooks))), _) => Storage::Codebooks(codebooks),
            (Some((_, Levels::Grid(scheme))), activations) => match (activations, stored.parts[0].is_projection()) {
                (Activations::Int8, true) => Storage::Signed(scheme),
                (Activations::Int8Static, true) => Storage::SignedStatic(scheme),
                (Activations::None, _) | (_, false) => Storage::Packed(scheme),
            },
        };
        (stored, storage)
    };
    Ok(Family::stored(architecture).into_iter().map(one).collect())
}

pub(super) fn projections(quantization: &Quantization) -> Scheme {
    Scheme { bits: quantization.bits, group_size: quantization.group_size, symmetric: quantization.symmetric }
}

/// What a tensor becomes, with the key that says its group size or its codebooks' rows; `None` for one that stays dense.
pub(super) fn quantized(
    quantization: &Quantization,
    architecture: &Architecture,
    stored: &StoredTensor,
) -> Option<(&'static str, Levels)> {
    let asked = asked(quantization, stored)?;
    alternatives::left_dense(quantization, architecture, stored).is_none().then_some(asked)
}

/// What a tensor is asked to become, whether its sizes allow that or not.
pub(super) fn asked(quantization: &Quantization, stored: &StoredTensor) -> Option<(&'static str, Levels)> {
    if let Some(chosen) = quantization.chosen.get(&stored.name) {
        return Some(("candidates", (*chosen).into()));
    }
    let (key, scheme) = overrides::overridden(quantization, stored, unless_overridden(quantization, stored))?;
    match quantization.method {
        Method::Kmeans if stored.parts[0].is_projection() => {
            Some(("codebook_rows", Codebooks { bits: scheme.bits, rows: quantization.codebook_rows }.into()))
        }
        Method::Kmeans | Method::RoundToNearest | Method::Gptq => Some((key, scheme.into())),
    }
}

fn unless_overridden(quantization: &Quantization, stored: &StoredTensor) -> Option<(&'static str, Scheme)> {
    match stored.parts[0] {
        TensorId::Embedding | TensorId::Head => {
            let bits = quantization.embedding.bits()?;
            let group_size = Some(quantization.embedding_group_size);
            Some(("embedding_group_size", Scheme { bits, group_size, symmetric: quantization.symmetric }))
        }
        id => id.is_projection().then(|| ("group_size", projections(quantization))),
    }
}

fn wrong_group(key: &'static str, group_size: usize, stored: &StoredTensor, architecture: &Architecture) -> Option<Refusal> {
    if group_size == 0 {
        return Some(Refusal::EmptyGroup { key });
    }
    let columns = architecture.shape(stored.parts[0])[1];
    if columns.is_multiple_of(group_size) {
        return None;
    }
    let width = match stored.parts[0] {
        TensorId::Layer(_, LayerTensor::Output(_)) => Width::Heads,
        TensorId::Layer(_, LayerTensor::Down(_)) => Width::IntermediateSize,
        _ => Width::HiddenSize,
    };
    let can_be_dense = alternatives::can_be_dense(stored);
    Some(Refusal::Divides { can_be_dense, key, group_size, width, columns, tensor: stored.name.clone() })
}

/// Every matrix must be whole codebooks, those that are stored as one too: the engine takes them apart.
fn wrong_rows(codebooks: Codebooks, stored: &StoredTensor, architecture: &Architecture) -> Option<Refusal> {
    let shared = codebooks.rows?;
    if shared == 0 {
        return Some(Refusal::EmptyCodebooks);
    }
    let rows = rows_not_divided(shared, stored, architecture)?;
    let can_be_dense = alternatives::can_be_dense(stored);
    Some(Refusal::CodebookRows { can_be_dense, shared, rows, tensor: stored.name.clone() })
}

/// The rows of the first part of a tensor that are not whole codebooks of `shared` rows.
pub(super) fn rows_not_divided(shared: usize, stored: &StoredTensor, architecture: &Architecture) -> Option<usize> {
    stored.parts.iter().map(|part| architecture.shape(*part)[0]).find(|rows| !rows.is_multiple_of(shared))
}

fn reason_to_stay_dense(id: TensorId, architecture: &Architecture) -> &'static str {
    use LayerTensor::*;
    match id {
        TensorId::Embedding if architecture.tied_embeddings => "the embedding, which is also the head, was asked to stay dense",
        TensorId::Embedding => "the embedding was asked to stay dense",
        TensorId::Head => "the head stays as the embedding does: dense",
        TensorId::PositionEmbedding => "positions are added to the embedding and multiply nothing",
        TensorId::FinalNorm(_) | TensorId::Layer(_, AttentionNorm(_) | MlpNorm(_) | QueryNorm | KeyNorm) => {
            "a norm: one value per channel"
        }
        TensorId::Layer(_, Query(_) | Key(_) | Value(_) | Output(_) | Gate(_) | Up(_) | Down(_)) => {
            "a bias: one value per channel"
        }
    }
}
