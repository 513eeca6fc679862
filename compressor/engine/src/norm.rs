//! Weights of a normalization over the last dimension; the loop is [`crate::kernels::vector::Normalize`].

use alloc::vec::Vec;

use compressor_format::NormKind;
#[cfg(feature = "std")]
use compressor_format::Part;

/// One normalization with its weights.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) kind: NormKind,
    /// Added to the mean square or the variance.
    pub(crate) epsilon: f32,
    /// `[width]`.
    pub(crate) weight: Vec<f32>,
    /// `[width]`, of a layer norm.
    pub(crate) bias: Option<Vec<f32>>,
}

impl NormWeights {
    /// Bytes of the weights.
    pub(crate) fn memory_bytes(&self) -> usize {
        (self.weight.len() + self.bias.as_ref().map_or(0, Vec::len)) * size_of::<f32>()
    }

    /// Puts other values in the place of a part that it has.
    #[cfg(feature = "std")]
    pub(crate) fn replace(&mut self, part: Part, values: Vec<f32>) {
        match part {
            Part::Weight => self.weight = values,
            Part::Bias => *self.bias.as_mut().expect("the norm has a bias") = values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernels;
    use crate::kernels::vector::Normalize;

    /// With every instruction set; all must agree.
    fn for_all(norm: &NormWeights, x: &mut [f32]) {
        let before = x.to_vec();
        for kernels in Kernels::available() {
            let mut found = before.clone();
            kernels.run(Normalize { norm, x: &mut found });
            if kernels != Kernels::Scalar {
                assert_eq!(found, x, "{}", kernels.name());
            }
            x.copy_from_slice(&found);
        }
    }

    #[test]
    fn rms_divides_by_the_root_of_the_mean_square_plus_epsilon() {
        let norm = NormWeights { kind: NormKind::Rms, epsilon: 3.5, weight: vec![2.0, 1.0], bias: None };
        // mean square of 3, 4 is 12.5, plus 3.5 is 16.
        let mut x = [3.0, 4.0];
        for_all(&norm, &mut x);
        assert_eq!(x, [1.5, 1.0]);
    }

    #[test]
    fn layer_norm_subtracts_the_mean_and_uses_the_population_variance() {
        let norm = NormWeights { kind: NormKind::Layer, epsilon: 3.0, weight: vec![1.0, 2.0], bias: Some(vec![0.0, 10.0]) };
        // mean 4, deviations ∓1, variance 1, plus 3 is 4.
        let mut x = [3.0, 5.0];
        for_all(&norm, &mut x);
        assert_eq!(x, [-0.5, 11.0]);
    }

    #[test]
    fn a_vector_of_zeros_stays_zero() {
        let norm = NormWeights { kind: NormKind::Rms, epsilon: 1e-5, weight: vec![1.0; 9], bias: None };
        let mut x = [0.0; 9];
        for_all(&norm, &mut x);
        assert_eq!(x, [0.0; 9]);
    }
}
