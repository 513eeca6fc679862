//! A matrix in few bits, whatever they stand for.

use compressor_format::{CodebookMatrix, Levels, NewArtifactTensor, QuantizedMatrix, Values, WeightBytes};

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

    /// Matrices of integers one below the other; one alone stays what it is.
    ///
    /// # Panics
    /// Where there are several with codebooks, or none.
    pub(super) fn stacked(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let parts: Vec<QuantizedMatrix> = parts
            .into_iter()
            .map(|part| match part {
                Self::Integers(matrix) => matrix,
                Self::Codebooks(_) => panic!("codebooks are found for a whole matrix at once"),
            })
            .collect();
        let all_bytes =
            |bytes: fn(&Values) -> &WeightBytes| parts.iter().flat_map(|part| bytes(&part.values).iter().copied()).collect();
        let bytes = WeightBytes::Owned(all_bytes(|(Values::Packed(bytes) | Values::Signed(bytes))| bytes));
        let first = parts.first().expect("a matrix has rows");
        Self::Integers(QuantizedMatrix {
            rows: parts.iter().map(|part| part.rows).sum(),
            columns: first.columns,
            scheme: first.scheme,
            values: match first.values {
                Values::Packed(_) => Values::Packed(bytes),
                Values::Signed(_) => Values::Signed(bytes),
            },
            scales: parts.iter().flat_map(|part| part.scales.iter()).collect::<Vec<f32>>().into(),
            zero_points: (!first.scheme.symmetric)
                .then(|| parts.iter().flat_map(|part| part.zero_points.iter().flatten().copied()).collect()),
        })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use compressor_format::Scheme;

    use super::*;

    #[test]
    fn parts_one_below_the_other_are_the_whole() {
        let values: Vec<f32> = (0..6 * 16).map(|index| ((index * index) as f32 * 0.37).sin()).collect();
        for (bits, symmetric, packed) in [(4, true, true), (3, false, true), (8, true, false)] {
            let scheme = Scheme { bits, group_size: Some(8), symmetric };
            let quantization = Quantization::default();
            let nearest =
                |values: &[f32]| Matrix::nearest(values, 16, (Levels::Grid(scheme), packed), &quantization, None).unwrap().0;
            let (Matrix::Integers(whole), Matrix::Integers(stacked)) = (
                nearest(&values),
                Matrix::stacked(vec![nearest(&values[..2 * 16]), nearest(&values[2 * 16..5 * 16]), nearest(&values[5 * 16..])]),
            ) else {
                panic!("a grid makes integers")
            };
            assert_eq!((stacked.rows, stacked.columns, stacked.scheme), (6, 16, scheme));
            assert_eq!(stacked.to_f32(), whole.to_f32());
            assert_eq!(stacked.zero_points, whole.zero_points);
            let bytes = |matrix: &QuantizedMatrix| match &matrix.values {
                Values::Packed(bytes) => (true, bytes.to_vec()),
                Values::Signed(bytes) => (false, bytes.to_vec()),
            };
            assert_eq!(bytes(&stacked), bytes(&whole));
            assert_eq!(bytes(&stacked).0, packed);
        }
    }
}
