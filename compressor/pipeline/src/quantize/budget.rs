//! A target for the size of the artifact, and the schemes that meet it at the least cost.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::fmt;

use compressor_format::{Alternative, Architecture, Dtype, Family, Scheme, Storage, StoredTensor, TensorId};
use serde::{Deserialize, Serialize};

use super::allocate::{Allocation, Candidate, allocate};
use super::sensitivity::Sensitivities;
use super::sizes::{Refusal, asked};
use super::{Activations, Method, Quantization, QuantizedSizes, alternatives, overrides, resolve};

/// What the artifact may take, and what each matrix may become.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What it may take.
    pub most: Most,
    /// What a matrix may become; one whose rows its groups do not fill is left out for that matrix.
    pub candidates: Vec<Scheme>,
    /// Embedding and head are chosen for, too.
    pub chooses_embedding: bool,
}

/// The size that a target sets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Most {
    /// Bytes of `model.safetensors`, header included.
    Bytes(u64),
    /// Bits of everything stored ÷ the model's weights.
    BitsPerWeight(f64),
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "target_bytes {bytes}"),
            Self::BitsPerWeight(bits) => write!(f, "target_bits_per_weight {bits}"),
        }
    }
}

/// A tensor that a target chooses for.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The tensor.
    pub stored: StoredTensor,
    /// What it may become.
    pub candidates: Vec<Scheme>,
}

/// What a target came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// What was asked for.
    pub most: Most,
    /// Sum of the divergences measured for each tensor alone, nats per token.
    pub kl_sum: f64,
    /// No choice that takes no more beside the header of this one has a sum below `kl_sum - gap`: 0 where it is proven to be the least.
    pub gap: f64,
}

impl Target {
    /// The target of a recipe, where it sets one.
    pub fn of(stage: &compressor_format::Quantize) -> Option<Self> {
        let bytes = stage.target_bytes.map(|bytes| Most::Bytes(bytes.0));
        let most = bytes.or(stage.target_bits_per_weight.map(Most::BitsPerWeight))?;
        let scheme = |candidate: &compressor_format::CandidateScheme| Scheme {
            bits: candidate.bits,
            group_size: candidate.group_size,
            symmetric: stage.symmetric,
        };
        let candidates = stage.candidates.iter().map(scheme).collect();
        Some(Self { most, candidates, chooses_embedding: stage.embedding.is_none() })
    }

    /// What the matrices become, short enough for a table: `INT3–INT8 GPTQ`.
    pub fn name(&self, quantization: &Quantization) -> String {
        let bits = |pick: fn(u8, u8) -> u8| self.candidates.iter().map(|scheme| scheme.bits).reduce(pick).unwrap_or_default();
        format!("INT{}–INT{}{}", bits(u8::min), bits(u8::max), quantization.methods())
    }

    /// The tensors that are chosen for; what an override names is settled, and so is what no candidate fits, where it may stay dense.
    pub fn choices(&self, quantization: &Quantization, architecture: &Architecture) -> Vec<Choice> {
        let mut choices = self.all_choices(quantization, architecture);
        choices.retain(|choice| !choice.candidates.is_empty() || !may_stay_dense(quantization, &choice.stored));
        choices
    }

    /// `quantization`, in which what no candidate fits stays dense, where that is allowed.
    fn leaving_dense(&self, quantization: &Quantization, architecture: &Architecture) -> Quantization {
        let left = self.all_choices(quantization, architecture).into_iter();
        let left = left.filter(|choice| choice.candidates.is_empty() && may_stay_dense(quantization, &choice.stored));
        Quantization { no_candidate: left.map(|choice| choice.stored.name).collect(), ..quantization.clone() }
    }

    fn all_choices(&self, quantization: &Quantization, architecture: &Architecture) -> Vec<Choice> {
        let stored = Family::stored(architecture).into_iter().filter(|stored| self.chooses_for(quantization, stored));
        let choice = |stored: StoredTensor| {
            let columns = architecture.shape(stored.parts[0])[1];
            let fits = |scheme: &Scheme| scheme.group_size.is_none_or(|size| size > 0 && columns.is_multiple_of(size));
            Choice { candidates: self.candidates.iter().copied().filter(fits).collect(), stored }
        };
        stored.map(choice).collect()
    }

    fn chooses_for(&self, quantization: &Quantization, stored: &StoredTensor) -> bool {
        let is_chosen_for = match stored.parts[0] {
            TensorId::Embedding | TensorId::Head => self.chooses_embedding,
            id => id.is_projection(),
        };
        is_chosen_for && asked(quantization, stored).is_some() && !overrides::name_it(quantization, stored)
    }

    /// Everything that is wrong with the target for this architecture.
    pub fn refusals(&self, quantization: &Quantization, architecture: &Architecture, stored_dtype: Dtype) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if quantization.method == Method::Kmeans {
            refusals.push(Refusal::CodebooksWithTarget);
        }
        for scheme in &self.candidates {
            if !Scheme::BITS.contains(&scheme.bits) {
                refusals.push(Refusal::Bits { key: "candidates", bits: scheme.bits });
            } else if scheme.bits < 8 && scheme.group_size.is_none() {
                refusals.push(Refusal::CandidatePerChannel(scheme.bits));
            }
        }
        let activations = quantization.activations;
        if activations != Activations::None {
            refusals.extend(self.candidates.first().map(|found| Refusal::Activations { activations, found: *found }));
        }
        let choices = self.choices(quantization, architecture);
        if let Some(Choice { stored, .. }) = choices.iter().find(|choice| choice.candidates.is_empty()) {
            let columns = architecture.shape(stored.parts[0])[1];
            let can_be_dense = alternatives::can_be_dense(stored);
            refusals.push(Refusal::NoCandidate { can_be_dense, tensor: stored.name.clone(), columns });
        }
        if refusals.is_empty()
            && let Ok(least) = self.least(quantization, architecture, stored_dtype)
        {
            let fits = match self.most {
                Most::Bytes(bytes) => least.artifact_bytes <= bytes,
                Most::BitsPerWeight(bits) => least.bits_per_weight <= bits,
            };
            if !fits {
                let (bytes, bits_per_weight) = (least.artifact_bytes, format!("{:.4}", round_up(least.bits_per_weight)));
                refusals.push(Refusal::TooSmall { target: self.most.to_string(), key: self.key(), bytes, bits_per_weight });
            }
        }
        refusals
    }

    fn key(&self) -> &'static str {
        match self.most {
            Most::Bytes(_) => "target_bytes",
            Most::BitsPerWeight(_) => "target_bits_per_weight",
        }
    }

    /// The smallest artifact that the candidates make.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn least(
        &self,
        quantization: &Quantization,
        architecture: &Architecture,
        stored_dtype: Dtype,
    ) -> Result<QuantizedSizes, Refusal> {
        resolve(&self.smallest(quantization, architecture), architecture, stored_dtype)
    }

    /// Every tensor by the candidate with the fewest bytes.
    pub fn smallest(&self, quantization: &Quantization, architecture: &Architecture) -> Quantization {
        self.every(quantization, architecture, |bytes| bytes)
    }

    /// Every tensor by the candidate that ranks first.
    fn every<R: Ord>(&self, quantization: &Quantization, architecture: &Architecture, rank: fn(u64) -> R) -> Quantization {
        let quantization = &self.leaving_dense(quantization, architecture);
        let choices = self.choices(quantization, architecture);
        let first = choices.iter().filter_map(|choice| {
            let rank = |scheme: &Scheme| rank(bytes(choice, *scheme, quantization, architecture));
            Some((choice, choice.candidates.iter().copied().min_by_key(rank)?))
        });
        settled(quantization, first)
    }

    /// Bytes that the artifact takes at most.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn most_bytes(
        &self,
        quantization: &Quantization,
        architecture: &Architecture,
        stored_dtype: Dtype,
    ) -> Result<u64, Refusal> {
        let largest = resolve(&self.every(quantization, architecture, Reverse), architecture, stored_dtype)?;
        let stored: u64 = largest.tensors.iter().map(|tensor| tensor.bytes).chain(largest.dense.iter().map(|it| it.bytes)).sum();
        let most = match self.most {
            Most::Bytes(bytes) => bytes,
            Most::BitsPerWeight(bits) => (architecture.parameters() as f64 * bits / 8.0) as u64 + largest.artifact_bytes - stored,
        };
        Ok(most.min(largest.artifact_bytes))
    }

    /// Chooses for every tensor: of all choices within the target, one whose divergences have the least sum.
    ///
    /// The bytes are those of the file as it will be written. Its header is a little longer or shorter with another choice, so the
    /// choice is made again with the room that the header left, until that changes nothing.
    ///
    /// # Errors
    /// The first of [`refusals`](Self::refusals).
    ///
    /// # Panics
    /// Where `sensitivities` lacks a candidate.
    pub fn choose(
        &self,
        quantization: &Quantization,
        architecture: &Architecture,
        stored_dtype: Dtype,
        sensitivities: &Sensitivities,
    ) -> Result<(Quantization, Budget), Refusal> {
        if let Some(refusal) = self.refusals(quantization, architecture, stored_dtype).into_iter().next() {
            return Err(refusal);
        }
        let quantization = &self.leaving_dense(quantization, architecture);
        let choices = self.choices(quantization, architecture);
        let candidate = |choice: &Choice, scheme: Scheme| Candidate {
            bytes: bytes(choice, scheme, quantization, architecture),
            cost: sensitivities.kl(&choice.stored.name, scheme).expect("every candidate was measured"),
        };
        let tensors: Vec<Vec<Candidate>> =
            choices.iter().map(|choice| choice.candidates.iter().map(|scheme| candidate(choice, *scheme)).collect()).collect();
        let made = |chosen: &[usize]| {
            settled(quantization, choices.iter().zip(chosen).map(|(choice, at)| (choice, choice.candidates[*at])))
        };
        // Bytes that the chosen tensors take, and what they leave of the target; below 0 where they take too much.
        let measured = |chosen: &[usize]| -> Result<(i128, i128), Refusal> {
            let sizes = resolve(&made(chosen), architecture, stored_dtype)?;
            let left = match self.most {
                Most::Bytes(bytes) => i128::from(bytes) - i128::from(sizes.artifact_bytes),
                Most::BitsPerWeight(bits) => {
                    ((bits - sizes.bits_per_weight) * architecture.parameters() as f64 / 8.0).floor() as i128
                }
            };
            Ok((tensors.iter().zip(chosen).map(|(it, at)| i128::from(it[*at].bytes)).sum(), left))
        };
        let smallest =
            |it: &Vec<Candidate>| it.iter().enumerate().min_by_key(|(_, candidate)| candidate.bytes).map_or(0, |(at, _)| at);
        let mut last: Vec<usize> = tensors.iter().map(smallest).collect();
        let kl_sum = tensors.iter().zip(&last).map(|(it, at)| it[*at].cost).sum();
        let mut best = (last.clone(), Budget { most: self.most, kl_sum, gap: kl_sum });
        for _ in 0..ROUNDS {
            let (taken, left) = measured(&last)?;
            let room = u64::try_from(taken + left).unwrap_or(0);
            let Ok(Allocation { choices: found, cost: kl_sum, gap, .. }) = allocate(&tensors, room) else { break };
            if measured(&found)?.1 >= 0 && kl_sum <= best.1.kl_sum {
                best = (found.clone(), Budget { most: self.most, kl_sum, gap });
            }
            if found == last {
                break;
            }
            last = found;
        }
        Ok((made(&best.0), best.1))
    }
}

/// How often a choice is made again with another header; two or three times settle it.
const ROUNDS: usize = 8;

/// Bytes of a tensor in the file, scales included.
fn bytes(choice: &Choice, scheme: Scheme, quantization: &Quantization, architecture: &Architecture) -> u64 {
    Storage::Packed(scheme).bytes(&choice.stored, architecture, quantization.scale_dtype)
}

fn may_stay_dense(quantization: &Quantization, stored: &StoredTensor) -> bool {
    quantization.allows(Alternative::Dense) && alternatives::can_be_dense(stored)
}

/// `quantization` with a scheme for each of some tensors.
fn settled<'a>(quantization: &Quantization, chosen: impl Iterator<Item = (&'a Choice, Scheme)>) -> Quantization {
    let chosen = chosen.map(|(choice, scheme)| (choice.stored.name.clone(), scheme)).collect();
    Quantization { chosen, ..quantization.clone() }
}

/// At four digits behind the point, so that what a refusal names is enough.
fn round_up(bits: f64) -> f64 {
    (bits * 1e4).ceil() / 1e4
}
