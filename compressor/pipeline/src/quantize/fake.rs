//! Fake quantization: a model's weights as the reals that its artifact will hold, so that a training sees what rounding does to them.

use std::collections::BTreeMap;

use compressor_format::{Activations, Architecture, Clipping, Dtype, Levels, Method, Scaling, Scheme, StoredTensor, TensorId};

use super::{Error, Overflow, Quantization, quantize_matrix, sizes};

/// Rounds the weights of a model as [`quantize`](super::quantize) will when they are what it is given.
///
/// Integers and scales come from the function that writes them, and reals from the one that reads them, so there is nothing to keep
/// equal. Matrices that are stored as one are rounded one by one: a grid belongs to a group inside of a row.
#[derive(Clone, Debug)]
pub struct FakeQuantizer {
    quantization: Quantization,
    /// Those that are rounded.
    matrices: BTreeMap<TensorId, Matrix>,
}

/// A matrix, or its part of several that are stored as one.
#[derive(Clone, Debug)]
struct Matrix {
    stored: StoredTensor,
    /// Of what is stored.
    first_row: usize,
    columns: usize,
    scheme: Scheme,
}

impl FakeQuantizer {
    /// Of a model that is trained, and so stored as f32.
    ///
    /// # Errors
    /// [`Error::Refused`] as [`resolve`](super::resolve); [`Error::Unforeseen`] for the first of [`unforeseen`].
    pub fn new(quantization: &Quantization, architecture: &Architecture) -> Result<Self, Error> {
        if let Some(unforeseen) = unforeseen(quantization).into_iter().next() {
            return Err(unforeseen.into());
        }
        let mut matrices = BTreeMap::new();
        for (stored, storage) in sizes::layout(quantization, architecture, Dtype::F32)? {
            let Some((Levels::Grid(scheme), _)) = storage.levels() else { continue };
            let mut first_row = 0;
            for part in &stored.parts {
                let (rows, columns) = (architecture.shape(*part)[0], architecture.shape(*part)[1]);
                matrices.insert(*part, Matrix { stored: stored.clone(), first_row, columns, scheme });
                first_row += rows;
            }
        }
        Ok(Self { quantization: quantization.clone(), matrices })
    }

    /// The reals that stand for a tensor's `values` in the artifact; `None` where it stays dense.
    ///
    /// # Errors
    /// Where they would be infinite.
    pub fn round(&self, id: TensorId, values: &[f32]) -> Result<Option<Vec<f32>>, Overflow> {
        let Some(Matrix { stored, first_row, columns, scheme }) = self.matrices.get(&id) else { return Ok(None) };
        // Packing changes no integer, and takes time in every step.
        match quantize_matrix(values, *columns, *scheme, false, &self.quantization, None) {
            Ok((matrix, _)) => Ok(Some(matrix.to_f32())),
            Err(row) => {
                let of_row = &values[row * columns..][..*columns];
                Err(Overflow::of(stored, of_row, first_row + row, *scheme, self.quantization.scale_dtype))
            }
        }
    }
}

/// What a quantization does that nobody knows while the weights are still trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unforeseen {
    /// Errors that others take back.
    #[error("method \"gptq\", whose integers depend on calibration text")]
    Gptq,
    /// No integers.
    #[error("method \"kmeans\", whose codebooks are made when the weights stand still")]
    Kmeans,
    /// Ranges by what is multiplied.
    #[error("clipping \"activation\", which depends on calibration text")]
    Clipping,
    /// Factors of columns.
    #[error("scaling, whose factors depend on calibration text")]
    Scaling,
    /// What is multiplied is rounded too.
    #[error("activations \"{0}\": weights alone are rounded in training")]
    Activations(Activations),
}

impl Unforeseen {
    /// The way out, in the quantize stage.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Gptq | Self::Kmeans => "method = \"round_to_nearest\"",
            Self::Clipping => "clipping = \"mse\" or \"none\"",
            Self::Scaling => "scaling = \"none\"",
            Self::Activations(_) => "activations = \"none\"",
        }
    }
}

/// Everything of a quantization that can't be foreseen.
pub fn unforeseen(quantization: &Quantization) -> Vec<Unforeseen> {
    let method = match quantization.method {
        Method::RoundToNearest => None,
        Method::Gptq => Some(Unforeseen::Gptq),
        Method::Kmeans => Some(Unforeseen::Kmeans),
    };
    let clipping = match quantization.clipping {
        Clipping::None | Clipping::Mse => None,
        Clipping::Activation => Some(Unforeseen::Clipping),
    };
    let scaling = match quantization.scaling {
        Scaling::None => None,
        Scaling::Awq | Scaling::SmoothQuant => Some(Unforeseen::Scaling),
    };
    let activations = match quantization.activations {
        Activations::None => None,
        Activations::Int8 | Activations::Int8Static => Some(Unforeseen::Activations(quantization.activations)),
    };
    [method, clipping, scaling, activations].into_iter().flatten().collect()
}
