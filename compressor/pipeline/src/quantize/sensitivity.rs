//! What each candidate of each matrix, or what each becomes without a target, does to the model alone: the mean KL divergence of the next token from the dense model's, on
//! calibration text, while only that matrix is quantized.
//!
//! The divergence itself is measured, not estimated from gradients or a Hessian, with the integers that the recipe's method finds: for
//! GPTQ and clipping by activation, inputs are gathered from the dense model on a longer text. Inputs are not scaled: the factors of a
//! layer depend on what becomes of all of its matrices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use compressor_engine::Blocks;
use compressor_format::{
    Alternative, Checkpoint, LIST_BYTES, Levels, Method, Scheme, StoredTensor, TensorId, read_file, write_beside,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::budget::Choice;
use super::calibrated::{Calibration, Gathered, Input, Rows, WINDOWS, head, head_hessian, place_of, put};
use super::gptq::Hessian;
use super::matrix::Matrix;
use super::sizes::layout;
use super::{Error, Quantization, nearest, values};
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
    pub fn kl(&self, name: &str, scheme: impl Into<Levels>) -> Option<f64> {
        self.tensors.get(name)?.get(&scheme.into().to_string()).copied()
    }

    /// Those in `file`, or none where they are of another checkpoint, text or setting.
    fn open(file: &Path, fingerprint: String) -> Self {
        let found = read_file(file, LIST_BYTES).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
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

    /// Without what is known already.
    fn open_of(&self, Asked { stored, levels }: Asked) -> Asked {
        let levels = levels.into_iter().filter(|levels| self.kl(&stored.name, *levels).is_none()).collect();
        Asked { stored, levels }
    }
}

/// A tensor, and what it is measured as.
struct Asked {
    stored: StoredTensor,
    levels: Vec<Levels>,
}

/// Measures every candidate of `choices` that `file` does not have yet on the text `scored`, and saves it after each tensor.
///
/// What integers are rounded by is seen on `looked_at`, where the quantization looks at text.
/// `progress` is called after each tensor with how many are done, how many there are, and its name.
///
/// # Errors
/// As [`super::quantize`].
pub fn measure_sensitivities(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    choices: &[Choice],
    texts: [&Calibration; 2],
    file: &Path,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<Sensitivities, Error> {
    let levels = |candidates: &[Scheme]| candidates.iter().copied().map(Levels::from).collect();
    let asked = choices.iter().map(|choice| Asked { stored: choice.stored.clone(), levels: levels(&choice.candidates) });
    measure(checkpoint, quantization, asked.collect(), texts, file, progress)
}

/// Measures every tensor that `quantization` quantizes as what it becomes. What `file` has of a target is as good: both measure the same.
///
/// # Errors
/// As [`super::quantize`].
pub fn measure_each(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    texts: [&Calibration; 2],
    file: &Path,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<Sensitivities, Error> {
    let layout = layout(quantization, checkpoint.architecture(), checkpoint.dtype())?;
    let asked = layout.into_iter().filter_map(|(stored, storage)| Some(Asked { stored, levels: vec![storage.levels()?.0] }));
    measure(checkpoint, quantization, asked.collect(), texts, file, progress)
}

fn measure(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    asked: Vec<Asked>,
    [scored, looked_at]: [&Calibration; 2],
    file: &Path,
    progress: &mut dyn FnMut(u64, u64, &str),
) -> Result<Sensitivities, Error> {
    let mut known = Sensitivities::open(file, fingerprint(checkpoint, quantization, [scored, looked_at])?);
    let of = asked.len();
    let open: Vec<Asked> = asked.into_iter().map(|asked| known.open_of(asked)).filter(|open| !open.levels.is_empty()).collect();
    if open.is_empty() {
        return Ok(known);
    }
    let bench = Bench::new(checkpoint, quantization, scored)?;
    let mut done = (of - open.len()) as u64;
    let mut keep = |stored: &StoredTensor, levels: &[Levels], kl: Vec<f64>| -> Result<(), Error> {
        let entry = known.tensors.entry(stored.name.clone()).or_default();
        entry.extend(levels.iter().map(Levels::to_string).zip(kl));
        known.save(file)?;
        done += 1;
        progress(done, of as u64, &stored.name);
        Ok(())
    };
    let width = checkpoint.architecture().hidden_size;
    let mut x = bench.embed(&bench.blocks)?;
    let mut seen = match quantization.calibrates() {
        true => Some(bench.blocks.embed(&looked_at.tokens, looked_at.window)?),
        false => None,
    };
    for index in 0..bench.layers() {
        let block = bench.blocks.block(index)?;
        for input in Input::ALL {
            let here: Vec<_> = open.iter().filter(|asked| place_of(asked.stored.parts[0]) == Some((index, input))).collect();
            let Some(Asked { stored: first, .. }) = here.first() else { continue };
            let gather = |seen: &Vec<f32>| {
                let windows = seen.chunks(looked_at.window * width).map(|x| input.of(&block, x, looked_at.window));
                let hessian = Hessian::of(checkpoint.architecture().shape(first.parts[0])[1], windows);
                Gathered::new(checkpoint, quantization, first, hessian)
            };
            let gathered = seen.as_ref().map(gather).transpose()?;
            for Asked { stored, levels } in here {
                keep(stored, levels, bench.in_layer(index, &x, stored, levels, gathered.as_ref())?)?;
            }
        }
        block.forward(&mut x, scored.window);
        if let Some(seen) = &mut seen {
            seen.chunks_mut(looked_at.window * width).for_each(|x| block.forward(x, looked_at.window));
        }
    }
    let head = head(checkpoint.architecture());
    for Asked { stored, levels } in open.iter().filter(|asked| place_of(asked.stored.parts[0]).is_none()) {
        let gather = |seen: &Vec<f32>| {
            let parts = seen.chunks(WINDOWS * looked_at.window * width).map(|x| Ok(Cow::Borrowed(x)));
            let hessian = head_hessian(&bench.blocks, checkpoint.architecture(), parts)?;
            Gathered::new(checkpoint, quantization, stored, hessian)
        };
        // Of a lone embedding's inputs there is nothing to know.
        let gathered = seen.as_ref().filter(|_| stored.parts[0] == head).map(gather).transpose()?;
        keep(stored, levels, bench.at_an_end(&x, stored, levels, gathered.as_ref())?)?;
    }
    Ok(known)
}

fn fingerprint(checkpoint: &Checkpoint, quantization: &Quantization, texts: [&Calibration; 2]) -> Result<String, Error> {
    let mut fingerprint = Fingerprint::new("sensitivity");
    for file in checkpoint.files() {
        fingerprint = fingerprint.file(&file)?;
    }
    let Quantization { method, clipping, damping, activation_order, scale_dtype, .. } = quantization;
    let settings = (method, clipping, damping, activation_order, scale_dtype.to_string());
    let mut fingerprint = fingerprint.settings(&settings);
    if *method == Method::Gptq && quantization.allows(Alternative::RoundToNearest) {
        fingerprint = fingerprint.settings(&Alternative::RoundToNearest);
    }
    Ok(fingerprint.settings(&texts.map(|text| (&text.tokens, text.window))).hex())
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
        x: &[f32],
        stored: &StoredTensor,
        levels: &[Levels],
        gathered: Option<&Gathered<'_>>,
    ) -> Result<Vec<f64>, Error> {
        let mut all = Vec::with_capacity(levels.len() * x.len());
        for levels in levels {
            let matrix = self.quantize(stored, *levels, gathered)?;
            let mut changed = self.blocks.block(index)?;
            put(&mut changed, self.checkpoint, stored, matrix.to_f32());
            let first = all.len();
            all.extend_from_slice(x);
            changed.forward(&mut all[first..], self.calibration.window);
        }
        self.go_on(index + 1, &mut all)?;
        Ok(self.divergences(&self.blocks, &all))
    }

    /// The divergences of the candidates of the embedding or the head; `x` is what leaves the last layer.
    fn at_an_end(
        &self,
        x: &[f32],
        stored: &StoredTensor,
        levels: &[Levels],
        gathered: Option<&Gathered<'_>>,
    ) -> Result<Vec<f64>, Error> {
        let mut found = Vec::new();
        for levels in levels {
            let mut changed = Blocks::new(self.checkpoint, crate::engine_options())?;
            changed.replace(stored.parts[0], self.quantize(stored, *levels, gathered)?.to_f32());
            let mut x = Cow::Borrowed(x);
            if stored.parts[0] == TensorId::Embedding {
                x = Cow::Owned(self.embed(&changed)?);
                self.go_on(0, x.to_mut())?;
            }
            found.extend(self.divergences(&changed, &x));
        }
        Ok(found)
    }

    fn quantize(&self, stored: &StoredTensor, levels: Levels, gathered: Option<&Gathered<'_>>) -> Result<Matrix, Error> {
        // Packing changes no integer.
        let levels = (levels, false);
        let Some(gathered) = gathered else {
            return Ok(nearest(self.checkpoint, self.quantization, stored, levels)?.0);
        };
        let values = values(self.checkpoint, stored)?;
        match self.quantization.allows(Alternative::RoundToNearest) {
            true => Ok(gathered.quantize(stored, Rows::Memory(&values), levels)?.matrix),
            false => Ok(gathered.round(&values, stored, levels)?.0),
        }
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
