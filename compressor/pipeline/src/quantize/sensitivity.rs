//! What each candidate of each matrix does to the model alone: the mean KL divergence of the next token from the dense model's, on
//! calibration text, while only that matrix is quantized.
//!
//! The divergence itself is measured, not estimated from gradients or a Hessian. Integers are rounded to nearest inside the recipe's
//! clipping: methods that do better do so at every width.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use compressor_engine::{Block, Blocks};
use compressor_format::{Checkpoint, Clipping, QuantizedMatrix, Scheme, StoredTensor, TensorId, write_beside};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::budget::Choice;
use super::calibrated::{Calibration, Input, place_of, put};
use super::{Error, Quantization, overflow, quantize_matrix, values};
use crate::fingerprint::Fingerprint;
use crate::measure::kl_divergence;

/// Divergences measured so far, in a file that outlives a run: another target needs no others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    /// Of the checkpoint, the text, and how integers are found.
    fingerprint: String,
    /// Nats per token, by the tensor's name as stored and by scheme.
    tensors: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Sensitivities {
    /// The file's name in a run folder.
    pub const FILE: &str = "sensitivity.json";

    /// Mean KL divergence, nats per token, while only this tensor is quantized, to this scheme.
    pub fn kl(&self, name: &str, scheme: Scheme) -> Option<f64> {
        self.tensors.get(name)?.get(&scheme.to_string()).copied()
    }

    /// Those in `file`, or none where they are of another checkpoint, text or setting.
    fn open(file: &Path, fingerprint: String) -> Self {
        let found = fs_err::read(file).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let found = found.filter(|found| found.fingerprint == fingerprint);
        found.unwrap_or(Self { fingerprint, tensors: BTreeMap::new() })
    }

    fn save(&self, file: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("names and finite numbers");
        Ok(write_beside(file, |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))?)
    }

    /// Without having measured anything.
    #[cfg(test)]
    pub(super) fn made_up(tensors: BTreeMap<String, BTreeMap<String, f64>>) -> Self {
        Self { fingerprint: String::new(), tensors }
    }

    fn unknown(&self, choice: &Choice) -> Vec<Scheme> {
        choice.candidates.iter().copied().filter(|scheme| self.kl(&choice.stored.name, *scheme).is_none()).collect()
    }
}

/// Measures every candidate of `choices` that `file` does not have yet, and saves it after each tensor.
///
/// `progress` is called after each tensor with how many are done, how many there are, and its name.
///
/// # Errors
/// As [`super::quantize`].
pub fn measure_sensitivities(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    choices: &[Choice],
    calibration: &Calibration,
    file: &Path,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<Sensitivities, Error> {
    let mut known = Sensitivities::open(file, fingerprint(checkpoint, quantization, calibration)?);
    let open: Vec<(&Choice, Vec<Scheme>)> =
        choices.iter().map(|choice| (choice, known.unknown(choice))).filter(|(_, schemes)| !schemes.is_empty()).collect();
    if open.is_empty() {
        return Ok(known);
    }
    let bench = Bench::new(checkpoint, quantization, calibration)?;
    let mut done = (choices.len() - open.len()) as u64;
    let mut keep = |stored: &StoredTensor, schemes: &[Scheme], kl: Vec<f64>| -> Result<(), Error> {
        let entry = known.tensors.entry(stored.name.clone()).or_default();
        entry.extend(schemes.iter().map(Scheme::to_string).zip(kl));
        known.save(file)?;
        done += 1;
        progress(done, choices.len() as u64, &stored.name);
        Ok(())
    };
    let mut x = bench.embed(&bench.blocks)?;
    for index in 0..bench.layers() {
        let block = bench.blocks.block(index)?;
        for (Choice { stored, .. }, schemes) in &open {
            if let Some((layer, input)) = place_of(stored.parts[0]).filter(|(layer, _)| *layer == index) {
                keep(stored, schemes, bench.in_layer(layer, &block, input, &x, stored, schemes)?)?;
            }
        }
        block.forward(&mut x, calibration.window);
    }
    for (Choice { stored, .. }, schemes) in &open {
        if place_of(stored.parts[0]).is_none() {
            keep(stored, schemes, bench.at_an_end(&x, stored, schemes)?)?;
        }
    }
    Ok(known)
}

fn fingerprint(checkpoint: &Checkpoint, quantization: &Quantization, calibration: &Calibration) -> Result<String, Error> {
    let mut fingerprint = Fingerprint::new("sensitivity");
    for file in checkpoint.files() {
        fingerprint = fingerprint.file(&file)?;
    }
    let settings = (quantization.clipping, quantization.scale_dtype.to_string(), &calibration.tokens, calibration.window);
    Ok(fingerprint.settings(&settings).hex())
}

/// The dense model on the calibration text.
struct Bench<'a> {
    checkpoint: &'a Checkpoint,
    quantization: &'a Quantization,
    calibration: &'a Calibration,
    blocks: Blocks,
    /// What leaves the last layer at every place that is scored.
    reference: Vec<f32>,
}

/// Logits that are held at once, of the reference and of one candidate each.
pub(crate) const LOGIT_FLOATS: usize = 1 << 24;

impl<'a> Bench<'a> {
    fn new(checkpoint: &'a Checkpoint, quantization: &'a Quantization, calibration: &'a Calibration) -> Result<Self, Error> {
        let blocks = Blocks::new(checkpoint, crate::engine_options())?;
        let mut bench = Self { checkpoint, quantization, calibration, blocks, reference: Vec::new() };
        let mut x = bench.embed(&bench.blocks)?;
        bench.go_on(0, &mut x)?;
        bench.reference = bench.scored(&x);
        Ok(bench)
    }

    fn layers(&self) -> usize {
        self.checkpoint.architecture().layers.len()
    }

    fn embed(&self, blocks: &Blocks) -> Result<Vec<f32>, Error> {
        Ok(blocks.embed(&self.calibration.tokens, self.calibration.window)?)
    }

    /// Carries windows through the layers from `first` on.
    fn go_on(&self, first: usize, x: &mut [f32]) -> Result<(), Error> {
        for index in first..self.layers() {
            self.blocks.block(index)?.forward(x, self.calibration.window);
        }
        Ok(())
    }

    /// All but the first quarter of every window, which is context.
    fn scored(&self, x: &[f32]) -> Vec<f32> {
        let width = self.checkpoint.architecture().hidden_size;
        let window = self.calibration.window;
        x.chunks_exact(window * width).flat_map(|x| &x[window / 4 * width..]).copied().collect()
    }

    /// The divergences of the candidates of a projection, all carried through the layers after it at once.
    fn in_layer(
        &self,
        index: usize,
        block: &Block<'_>,
        input: Input,
        x: &[f32],
        stored: &StoredTensor,
        schemes: &[Scheme],
    ) -> Result<Vec<f64>, Error> {
        let importance = (self.quantization.clipping == Clipping::Activation).then(|| {
            mean_squares(&input.of(block, x, self.calibration.window), x.len() / self.checkpoint.architecture().hidden_size)
        });
        let mut all = Vec::with_capacity(schemes.len() * x.len());
        for scheme in schemes {
            let matrix = self.quantize(stored, *scheme, importance.as_deref())?;
            let mut changed = self.blocks.block(index)?;
            put(&mut changed, self.checkpoint, stored, &matrix);
            let first = all.len();
            all.extend_from_slice(x);
            changed.forward(&mut all[first..], self.calibration.window);
        }
        self.go_on(index + 1, &mut all)?;
        Ok(self.divergences(&self.blocks, &all))
    }

    /// The divergences of the candidates of the embedding or the head; `x` is what leaves the last layer.
    fn at_an_end(&self, x: &[f32], stored: &StoredTensor, schemes: &[Scheme]) -> Result<Vec<f64>, Error> {
        let mut found = Vec::new();
        for scheme in schemes {
            let mut changed = Blocks::new(self.checkpoint, crate::engine_options())?;
            changed.replace(stored.parts[0], self.quantize(stored, *scheme, None)?.to_f32());
            let mut x = Cow::Borrowed(x);
            if stored.parts[0] == TensorId::Embedding {
                x = Cow::Owned(self.embed(&changed)?);
                self.go_on(0, x.to_mut())?;
            }
            found.extend(self.divergences(&changed, &x));
        }
        Ok(found)
    }

    fn quantize(&self, stored: &StoredTensor, scheme: Scheme, importance: Option<&[f32]>) -> Result<QuantizedMatrix, Error> {
        let values = values(self.checkpoint, stored)?;
        let columns = self.checkpoint.architecture().shape(stored.parts[0])[1];
        let quantized = quantize_matrix(&values, columns, scheme, false, self.quantization, importance);
        let (matrix, _) = quantized.map_err(|row| {
            let values = &values[row * columns..][..columns];
            overflow(self.checkpoint, stored, values, row, scheme, self.quantization.scale_dtype)
        })?;
        Ok(matrix)
    }

    /// Mean KL divergence from the reference, with the head of `blocks`, of each of what leaves the last layer.
    fn divergences(&self, blocks: &Blocks, all: &[f32]) -> Vec<f64> {
        let architecture = self.checkpoint.architecture();
        let (width, vocab_size) = (architecture.hidden_size, architecture.vocab_size);
        let rows = (LOGIT_FLOATS / vocab_size).max(1) * width;
        let scored: Vec<Vec<f32>> = all.chunks_exact(self.calibration.tokens.len() * width).map(|x| self.scored(x)).collect();
        let mut sums = vec![0.0; scored.len()];
        for (part, reference) in self.reference.chunks(rows).enumerate() {
            let p = self.blocks.logits(reference);
            for (sum, scored) in sums.iter_mut().zip(&scored) {
                let q = blocks.logits(&scored[part * rows..][..reference.len()]);
                let rows = p.par_chunks(vocab_size).zip(q.par_chunks(vocab_size));
                // In the order of the rows, so that the sum does not depend on the threads.
                *sum += rows.map(|(p, q)| kl_divergence(p, q)).collect::<Vec<f64>>().iter().sum::<f64>();
            }
        }
        let places = (self.reference.len() / width) as f64;
        // A matrix that changes nothing can come out below zero by rounding.
        sums.into_iter().map(|sum| (sum / places).max(0.0)).collect()
    }
}

/// Of each column of `[rows, columns]`.
fn mean_squares(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows;
    let mut sums = vec![0.0; columns];
    for row in x.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
    }
    sums.into_iter().map(|sum| sum / rows as f32).collect()
}
