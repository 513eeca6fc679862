//! Cuts attention heads, intermediate channels and layers out of a model, with every tensor that must shrink with them.
//!
//! [`resolve`] says beforehand what a recipe's `[stage.prune]` leaves of an architecture, or why it can't; [`magnitude`] or
//! [`ActivationScores`] give every unit its importance; [`prune`] removes the least important ones. The same count goes from
//! every layer, so that `config.json` stays an ordinary one.

mod activation;
mod cut;
mod magnitude;
mod resolve;

use std::fmt;

use compressor_format::{Architecture, Importance, MagnitudeNorm, Prune};
use serde::{Deserialize, Serialize};

pub use self::activation::ActivationScores;
pub use self::cut::{Cuts, LayerCuts, prune};
pub use self::magnitude::magnitude;
pub use self::resolve::{Refusal, ranks_units, refusals, resolve};

/// The importance of every unit of a model: scored once, good for any cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// What was measured.
    pub measure: Measure,
    /// `[layers][kv_heads]`: GQA groups.
    pub groups: Vec<Vec<f64>>,
    /// `[layers][heads]`: query heads.
    pub queries: Vec<Vec<f64>>,
    /// `[layers][intermediate_size]`: intermediate channels.
    pub channels: Vec<Vec<f64>>,
}

/// What importance was measured by, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Size of what units contribute to the residual stream on text.
    Activation {
        /// Tokens of that text.
        tokens: usize,
    },
    /// Norm of the weights that units own.
    Magnitude {
        /// Which norm.
        norm: MagnitudeNorm,
    },
}

impl Measure {
    /// The recipe's word for it.
    pub fn importance(self) -> Importance {
        match self {
            Self::Activation { .. } => Importance::Activation,
            Self::Magnitude { .. } => Importance::Magnitude,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation { tokens } => write!(f, "activation on {tokens} tokens"),
            Self::Magnitude { norm: MagnitudeNorm::L2 } => f.write_str("magnitude (L2 norm)"),
            Self::Magnitude { norm: MagnitudeNorm::L1 } => f.write_str("magnitude (L1 norm)"),
            Self::Magnitude { norm: MagnitudeNorm::Product } => f.write_str("magnitude (product of norms)"),
        }
    }
}

impl Scores {
    /// A caller's mistake where a score that `pruning` ranks by is missing.
    fn check(&self, pruning: &Prune, architecture: &Architecture) {
        let asked = pruning.importance;
        assert_eq!(self.measure.importance(), asked, "scores are not of the importance that the recipe asks for");
        for (layer, shape) in architecture.layers.iter().enumerate() {
            if pruning.head_ratio > 0.0 {
                assert_eq!(self.groups[layer].len(), shape.kv_heads, "group scores of layer {layer}");
                assert_eq!(self.queries[layer].len(), shape.heads, "query head scores of layer {layer}");
            }
            assert_eq!(self.channels[layer].len(), shape.intermediate_size, "channel scores of layer {layer}");
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
