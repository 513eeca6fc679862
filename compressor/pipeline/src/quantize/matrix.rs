//! A matrix in few bits, whatever they stand for.

use compressor_format::{CodebookMatrix, Levels, NewArtifactTensor, QuantizedMatrix};

use super::{Clipping, Distance, Quantization, kmeans, quantize_matrix};

/// What a method makes of a matrix.
pub(super) enum Matrix {
    Integers(QuantizedMatrix),
    Codebooks(CodebookMatrix),
}

impl Matrix {
    /// Quantizes a matrix `[rows, columns]`, each weight on its own; `importance` is the mean square of each of its inputs, where
    /// text was looked at.
    ///
    /// # Errors
    /// The first row whose numbers would stand for infinite values.
    pub(super) fn nearest(
        values: &[f32],
        columns: usize,
        (levels, packed): (Levels, bool),
        quantization: &Quantization,
        importance: Option<&[f32]>,
    ) -> Result<(Self, Distance), usize> {
        match levels {
            Levels::Grid(scheme) => {
                let (matrix, distance) = quantize_matrix(values, columns, scheme, packed, quantization, importance)?;
                Ok((Self::Integers(matrix), distance))
            }
            Levels::Codebooks(codebooks) => {
                let importance = match quantization.clipping {
                    Clipping::None | Clipping::Mse => None,
                    Clipping::Activation => importance,
                };
                let found = kmeans::quantize(values, columns, codebooks, importance, quantization.scale_dtype)?;
                Ok((Self::Codebooks(found.0), found.1))
            }
        }
    }

    /// The real numbers that one row stands for.
    pub(super) fn row(&self, row: usize) -> Vec<f32> {
        match self {
            Self::Integers(matrix) => matrix.row(row),
            Self::Codebooks(matrix) => matrix.row(row),
        }
    }

    /// The real numbers it stands for, `[rows, columns]`.
    pub(super) fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::Integers(matrix) => matrix.to_f32(),
            Self::Codebooks(matrix) => matrix.to_f32(),
        }
    }
}

impl From<Matrix> for NewArtifactTensor {
    fn from(matrix: Matrix) -> Self {
        match matrix {
            Matrix::Integers(matrix) => Self::Quantized(matrix),
            Matrix::Codebooks(matrix) => Self::Codebooks(matrix),
        }
    }
}
