//! What was asked for, what was got, and why: a recipe can allow something else where what it asks for can't be done. Whatever was taken
//! instead is told.

#[cfg(test)]
mod tests;

use std::fmt;

use compressor_format::{Alternative, Architecture, Levels, Method, Scheme, StoredTensor};
use serde::{Deserialize, Serialize};

use super::calibrated::head;
use super::{Quantization, QuantizationReport, sizes};

/// What a tensor is asked to become, or became.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// Left as it is.
    Dense,
    /// One of the candidates of a target.
    Candidate,
    /// Numbers of few bits.
    Quantized {
        /// What they can stand for.
        scheme: Levels,
        /// How they are chosen.
        method: Method,
    },
}

/// Short enough for a table: `INT4 g32 GPTQ`.
impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Candidate => f.write_str("a candidate"),
            Self::Quantized { scheme: Levels::Codebooks(codebooks), .. } => codebooks.fmt(f),
            Self::Quantized { scheme: Levels::Grid(scheme), method } => {
                write!(f, "INT{}", scheme.bits)?;
                if let Some(size) = scheme.group_size {
                    write!(f, " g{size}")?;
                }
                f.write_str(if scheme.symmetric { "" } else { " zp" })?;
                f.write_str(match method {
                    Method::RoundToNearest | Method::Kmeans => " to nearest",
                    Method::Gptq => " GPTQ",
                })
            }
        }
    }
}

/// A tensor that did not become what was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instead {
    /// Its name as stored.
    pub name: String,
    /// What it was asked to become.
    pub asked: Treatment,
    /// What it became.
    pub got: Treatment,
    /// Why.
    pub reason: String,
}

/// How much text was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextUse {
    /// What for.
    pub purpose: TextPurpose,
    /// Tokens that the recipe asks for, in whole windows.
    pub asked: u64,
    /// Tokens that there were; as many, unless the recipe allows less text.
    pub used: u64,
}

/// What text is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPurpose {
    /// How the artifact's weights are rounded, clipped and scaled: `calibration_tokens`.
    Quantizing,
    /// How far a tensor alone takes the model from the dense one: `sensitivity_tokens`.
    MeasuringKl,
    /// How weights are rounded and clipped while that is measured: up to eight times as much, which lies before it.
    QuantizingToMeasure,
}

impl fmt::Display for TextPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quantizing => "quantizing",
            Self::MeasuringKl => "measuring KL",
            Self::QuantizingToMeasure => "quantizing to measure KL",
        })
    }
}

/// Why a matrix was rounded to nearest and not by GPTQ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum NotGptq {
    /// What it multiplies has no positive definite Hessian.
    NotPositiveDefinite,
    /// GPTQ would have added more to its outputs.
    Worse {
        /// So much: mean square of what it adds ÷ mean square of the output.
        gptq: f64,
    },
}

impl NotGptq {
    fn reason(self, quantization: &Quantization, nearest: f64) -> String {
        match self {
            Self::NotPositiveDefinite => format!(
                "what it multiplies on the calibration text has no positive definite Hessian with damping {}",
                quantization.damping
            ),
            Self::Worse { gptq } => {
                format!("GPTQ adds {gptq:.4} to its output on the calibration text, rounding to nearest {nearest:.4}")
            }
        }
    }
}

impl Quantization {
    /// Whether the recipe allows an alternative.
    pub fn allows(&self, alternative: Alternative) -> bool {
        self.allow.contains(&alternative)
    }
}

/// What a tensor is asked to become.
pub(super) fn asked(quantization: &Quantization, architecture: &Architecture, stored: &StoredTensor) -> Treatment {
    if quantization.no_candidate.contains(&stored.name) {
        return Treatment::Candidate;
    }
    let Some((_, scheme)) = sizes::asked(quantization, stored) else { return Treatment::Dense };
    let has_inputs = stored.parts[0].is_projection() || stored.parts[0] == head(architecture);
    let method = match (scheme, quantization.method) {
        (Levels::Codebooks(_), _) => Method::Kmeans,
        (Levels::Grid(_), Method::Gptq) if has_inputs => Method::Gptq,
        // An embedding of its own multiplies nothing that could be looked at, and no index of k-means is an integer.
        (Levels::Grid(_), Method::Gptq | Method::Kmeans | Method::RoundToNearest) => Method::RoundToNearest,
    };
    Treatment::Quantized { scheme, method }
}

/// A tensor that was asked to be rounded by GPTQ, and was rounded to nearest.
pub(super) fn rounded_to_nearest(quantization: &Quantization, name: &str, asked: Treatment, why: NotGptq, error: f64) -> Instead {
    let got = match asked {
        Treatment::Quantized { scheme, .. } => Treatment::Quantized { scheme, method: Method::RoundToNearest },
        Treatment::Dense | Treatment::Candidate => asked,
    };
    Instead { name: name.to_owned(), asked, got, reason: why.reason(quantization, error) }
}

/// Whether a tensor can be written as floats: those of GPT-2's matrices lie the other way round.
pub(super) fn can_be_dense(stored: &StoredTensor) -> bool {
    !stored.transposed
}

/// Whether a tensor stays dense although it is asked to be quantized: its sizes do not take the scheme, and the recipe allows that.
pub(super) fn left_dense(quantization: &Quantization, architecture: &Architecture, stored: &StoredTensor) -> Option<Instead> {
    if !quantization.allows(Alternative::Dense) || !can_be_dense(stored) {
        return None;
    }
    let columns = || architecture.shape(stored.parts[0])[1];
    let reason = if quantization.no_candidate.contains(&stored.name) {
        format!("no candidate's group_size divides its {} columns", columns())
    } else {
        match sizes::asked(quantization, stored)? {
            (key, Levels::Grid(Scheme { group_size: Some(size), .. })) if size > 0 && !columns().is_multiple_of(size) => {
                format!("{} {size} does not divide its {} columns", sizes::size_key(key), columns())
            }
            (_, Levels::Codebooks(codebooks)) => {
                let shared = codebooks.rows.filter(|shared| *shared > 0)?;
                let rows = sizes::rows_not_divided(shared, stored, architecture)?;
                format!("codebook_rows {shared} does not divide its {rows} output rows")
            }
            (_, Levels::Grid(_)) => return None,
        }
    };
    let asked = asked(quantization, architecture, stored);
    Some(Instead { name: stored.name.clone(), asked, got: Treatment::Dense, reason })
}

/// Tensors that do not become what was asked for, a line for each kind.
pub fn lines(instead: &[Instead]) -> Vec<String> {
    let mut kinds: Vec<(&Instead, usize)> = Vec::new();
    for one in instead {
        match kinds.iter_mut().find(|(first, _)| (first.asked, first.got) == (one.asked, one.got)) {
            Some((_, count)) => *count += 1,
            None => kinds.push((one, 1)),
        }
    }
    let line = |(first, count): (&Instead, usize)| {
        let Instead { name, asked, got, reason } = first;
        let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        format!("{got} instead of {asked}: `{name}`{more}: {reason}")
    };
    kinds.into_iter().map(line).collect()
}

impl QuantizationReport {
    /// What was taken instead of what was asked for, a line for each kind; empty where everything is as it was asked for.
    pub fn taken_instead(&self) -> Vec<String> {
        let texts = self.text.iter().filter(|text| text.used < text.asked);
        let texts = texts.map(|TextUse { purpose, asked, used }| {
            format!("text for {purpose}: {used} tokens instead of {asked}: the train split has no more whole windows")
        });
        lines(&self.instead).into_iter().chain(texts).collect()
    }
}
