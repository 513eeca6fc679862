//! The training loop: batches to gradients, gradients to updates, and a state that survives a kill.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use compressor_format::{Architecture, Artifact, Batch, Positions, ScalesByTensor, StepLosses, TensorId, Weights};

use crate::batch::{self, Packed};
use crate::device::open_device;
use crate::head::{HeadInputs, Softened, TeacherHead, head_gradients};
use crate::model::{Decoder, Parameters, Shapes, shapes};
use crate::ops::Ops;
use crate::optimizer::{AdamW, Gradients, clip_factor};
use crate::scales::LearntScales;
use crate::state::{self, State};
use crate::{Error, Training};

/// What is made small.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// Cross entropy with the targets.
    CrossEntropy,
    /// `(1 − kd_ratio) · cross entropy + kd_ratio · temperature² · KL(teacher ‖ student)` (Hinton et al. 2015).
    Distill {
        /// The model learnt from, with the student's tokenizer.
        teacher: &'a Weights,
        /// Tokens of that tokenizer. Rows beyond them, to which a vocabulary is padded, are in neither softmax and get no gradient.
        vocab_size: usize,
        /// Divides both logits before softmax in the KL term: above 0.
        temperature: f32,
        /// Part of the KL term in the loss: 0–1.
        kd_ratio: f32,
    },
}

/// A way down: what is made small, in which steps, on which data and device, and where the state is kept.
#[derive(Clone, Copy)]
pub struct Descent<'a> {
    /// What is made small.
    pub objective: Objective<'a>,
    /// Steps and optimizer.
    pub training: &'a Training,
    /// The batch with a number, the same whenever it is asked for, so that a resumed training needs no replay. With gradient
    /// accumulation over `n` batches, step `s` (counted from 0) uses batches `s · n` to `s · n + n − 1`.
    pub batches: &'a dyn Fn(u64) -> Batch,
    /// As [`open_device`] names it.
    pub device: &'a str,
    /// Where the state is saved, every `save_every` steps and when the training is stopped; a state with the same `fingerprint` is
    /// continued. On `cpu` the result is then the same, bit for bit, as without the interruption. The folder holds nothing else; the
    /// caller removes it when the weights are safe.
    pub state_folder: Option<&'a Path>,
    /// What the state belongs to.
    pub fingerprint: &'a str,
    /// Called before a state is saved: puts on disk what was noted of the steps that the state covers. Its error ends the training, and
    /// the state before stays.
    pub before_save: &'a dyn Fn() -> compressor_format::Result<()>,
}

/// What stands for a tensor's values in a forward pass: `None` for themselves, or why there is nothing, in words.
pub type Rounding<'a> = dyn Fn(TensorId, &[f32]) -> Result<Option<Vec<f32>>, String> + 'a;

/// Trains `start` and gives the trained weights.
///
/// The teacher runs without gradients. `observe` sees every step and may stop the training.
///
/// With a `rounding`, each step's losses and gradients are those of what it makes of the weights, and the weights themselves are
/// changed by these gradients as if nothing had been rounded: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432;
/// for weights of few bits Jacob et al. 2018, arXiv:1712.05877). The weights that come back are not rounded. Neither is the teacher.
///
/// # Errors
/// [`Error::Settings`] and [`Error::Device`] before any work; [`Error::Batch`] for a batch that contradicts itself or the model;
/// [`Error::NotFinite`] where loss or gradient is NaN or infinite (the last saved state stays); [`Error::Stopped`] when `observe`
/// breaks; [`Error::Rounding`] where `rounding` gives a reason; [`Error::State`], [`Error::Format`] and [`Error::Io`] where the state
/// can't be read or written.
pub fn train(
    start: Weights,
    rounding: Option<&Rounding<'_>>,
    descent: &Descent<'_>,
    observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
) -> Result<Weights, Error> {
    let device = descent.open(start.architecture())?;
    let (architecture, config, tensors) = start.into_parts();
    let student = Decoder { architecture, ops: Ops::of(&device) };
    let shapes = shapes(&student.architecture);
    let begin = || Parameters::new(&shapes, tensors, &device);
    let learnt = rounding.map_or(Learnt::Weights, |rounding| Learnt::RoundedWeights(rounding, student.ops));
    let parameters = descent.run(&student, &learnt, &shapes, begin, &device, observe)?;
    Ok(parameters.into_weights(student.architecture, config))
}

/// Trains the scales of `artifact` and gives them, `[rows, groups]` for each of its matrices of integers; everything else of it stays
/// as it is.
///
/// Weights are made of integers and scales anew in every step, and the gradients that they get, the embedding's among them, become
/// those of the scales. Scales are learnt as f32 and rounded to the type they are stored in once, when the artifact is written. All
/// else is as in [`train`]; nothing decays but by `training.weight_decay`, which here pulls scales to where they began.
///
/// # Errors
/// As [`train`], and [`Error::Settings`] where no matrix is quantized.
pub fn learn_scales(
    artifact: &Artifact,
    descent: &Descent<'_>,
    observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
) -> Result<ScalesByTensor, Error> {
    let device = descent.open(artifact.architecture())?;
    let student = Decoder { architecture: artifact.architecture().clone(), ops: Ops::of(&device) };
    let scales = LearntScales::read(artifact, student.ops, &device)?;
    let shapes = scales.shapes();
    let begin = || shapes.iter().map(|(id, shape)| (*id, Tensor::zeros(*shape, &device))).collect();
    let learnt = Learnt::Scales(&scales);
    let theta = descent.run(&student, &learnt, &shapes, begin, &device, observe)?;
    Ok(scales.scales(&theta))
}

/// What the parameters are that a descent changes.
enum Learnt<'a> {
    /// The weights themselves.
    Weights,
    /// Weights that are rounded before they are used.
    RoundedWeights(&'a Rounding<'a>, Ops),
    /// What scales are multiplied by.
    Scales(&'a LearntScales),
}

impl Learnt<'_> {
    /// The weights that the parameters make; why they make none, in words.
    fn weights<'p>(&self, parameters: &'p Parameters) -> Result<Cow<'p, Parameters>, String> {
        match self {
            Self::Weights => Ok(Cow::Borrowed(parameters)),
            Self::RoundedWeights(rounding, ops) => {
                let rounded = |(id, tensor): (TensorId, &Tensor<2>)| {
                    let rounded = ops.replace_values(tensor.clone(), |values| rounding(id, values))?;
                    Ok((id, rounded))
                };
                parameters.iter().map(rounded).collect::<Result<_, _>>().map(Cow::Owned)
            }
            Self::Scales(scales) => Ok(Cow::Owned(scales.weights(parameters))),
        }
    }

    /// The gradients of the parameters, from those of the `weights` that they made.
    fn gradients(&self, weights: &Parameters, of_weights: Gradients) -> Gradients {
        match self {
            // Straight through the rounding, whose own derivative is zero nearly everywhere.
            Self::Weights | Self::RoundedWeights(..) => of_weights,
            Self::Scales(scales) => scales.gradients(weights, of_weights),
        }
    }
}

impl Descent<'_> {
    /// Checks the settings for a student, and gives the device.
    fn open(&self, student: &Architecture) -> Result<Device, Error> {
        self.training.check()?;
        self.objective.check(student)?;
        open_device(self.device)
    }

    /// Changes parameters step by step, from a saved state or from where they `begin`.
    fn run(
        &self,
        student: &Decoder,
        learnt: &Learnt<'_>,
        shapes: &Shapes,
        begin: impl FnOnce() -> Parameters,
        device: &Device,
        observe: &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
    ) -> Result<Parameters, Error> {
        let Self { objective, training, state_folder, fingerprint, before_save, .. } = *self;
        let ops = student.ops;
        let teacher = Teacher::new(objective, ops, device);
        let resumed = match state_folder {
            Some(folder) => state::load(folder, fingerprint, shapes, device)?,
            None => None,
        };
        let mut state = resumed.unwrap_or_else(|| State { parameters: begin(), optimizer: AdamW::default() });

        while state.optimizer.steps < training.steps {
            let begun = Instant::now();
            let step = state.optimizer.steps;
            let vocab_size = objective.vocab_size(&student.architecture);
            let micro_batches = micro_batches(step, training, self.batches, student, vocab_size)?;
            let weights = learnt.weights(&state.parameters).map_err(|what| Error::Rounding { step: step + 1, what })?;
            let (losses, of_weights) = gradients(student, &weights, teacher.as_ref(), &micro_batches);
            let gradients = learnt.gradients(&weights, of_weights);
            // The update changes parameters in place where nothing shares them.
            drop(weights);
            let gradient_norm = ops.sum_of_squares(gradients.values()).sqrt();
            let learning_rate = training.learning_rate_at(step);
            for (quantity, value) in [("the loss", losses.loss(objective)), ("the gradient's norm", gradient_norm)] {
                if !value.is_finite() {
                    return Err(Error::NotFinite { step: step + 1, quantity, value, learning_rate });
                }
            }
            let factor = clip_factor(gradient_norm, training.gradient_clip);
            state.optimizer.update(ops, &mut state.parameters, gradients, training, learning_rate, factor);

            let step = state.optimizer.steps;
            let seen = observe(&StepLosses {
                step,
                loss: losses.loss(objective),
                cross_entropy: losses.cross_entropy,
                kl: losses.kl,
                learning_rate,
                gradient_norm,
                tokens: micro_batches.iter().map(|micro_batch| micro_batch.tokens).sum(),
                seconds: begun.elapsed().as_secs_f64(),
            });
            let due = training.save_every.is_some_and(|every| step.is_multiple_of(every)) && step < training.steps;
            if let Some(folder) = state_folder.filter(|_| due || seen.is_break()) {
                before_save()?;
                state::save(folder, fingerprint, &state)?;
            }
            if seen.is_break() {
                return Err(Error::Stopped { step });
            }
        }
        Ok(state.parameters)
    }
}

impl Objective<'_> {
    /// Tokens that can be learnt.
    fn vocab_size(&self, student: &Architecture) -> usize {
        match self {
            Self::CrossEntropy => student.vocab_size,
            Self::Distill { vocab_size, .. } => *vocab_size,
        }
    }

    fn check(&self, student: &Architecture) -> Result<(), Error> {
        let Self::Distill { teacher, vocab_size, temperature, kd_ratio } = self else {
            return Ok(());
        };
        let refused = |what: String| Err(Error::Settings(what));
        let (teachers, students) = (teacher.architecture().vocab_size, student.vocab_size);
        if *vocab_size > teachers.min(students) {
            return refused(format!(
                "the teacher has {teachers} tokens, the student {students}; both must have the {vocab_size} that are learnt"
            ));
        }
        if !(temperature.is_finite() && *temperature > 0.0) {
            return refused(format!("temperature is {temperature}; it must be above 0"));
        }
        if !(0.0..=1.0).contains(kd_ratio) {
            return refused(format!("kd_ratio is {kd_ratio}; it must be from 0 to 1"));
        }
        Ok(())
    }
}

/// The model learnt from, on the device, without autodiff.
struct Teacher {
    decoder: Decoder,
    parameters: Parameters,
    /// Tokens that the student has too.
    vocab_size: usize,
    softened: Softened,
}

impl Teacher {
    fn new(objective: Objective<'_>, ops: Ops, device: &Device) -> Option<Self> {
        let Objective::Distill { teacher, vocab_size, temperature, kd_ratio } = objective else {
            return None;
        };
        let decoder = Decoder { architecture: teacher.architecture().clone(), ops };
        let parameters = Parameters::from_weights(teacher, device);
        Some(Self { decoder, parameters, vocab_size, softened: Softened { temperature, kd_ratio } })
    }

    fn head(&self, packed: &Packed) -> TeacherHead {
        let hidden = self.decoder.hidden(&self.parameters, self.decoder.embed(&self.parameters, packed), packed);
        let head = first_rows(self.parameters.get(self.decoder.head()), self.vocab_size);
        TeacherHead { hidden, head, softened: self.softened }
    }
}

/// A head without the rows after the first `count`.
fn first_rows(head: Tensor<2>, count: usize) -> Tensor<2> {
    if head.dims()[0] == count { head } else { head.narrow(0, 0, count) }
}

/// A head's gradient with zeros for the rows that took no part, so that there are `count`.
fn with_rows(gradient: Tensor<2>, count: usize) -> Tensor<2> {
    let [rows, columns] = gradient.dims();
    if rows == count {
        return gradient;
    }
    let rest = Tensor::zeros([count - rows, columns], &gradient.device());
    Tensor::cat(vec![gradient, rest], 0)
}

/// One of the batches that make a step.
struct MicroBatch {
    packed: Packed,
    tokens: u64,
}

fn micro_batches(
    step: u64,
    training: &Training,
    batches: &dyn Fn(u64) -> Batch,
    student: &Decoder,
    vocab_size: usize,
) -> Result<Vec<MicroBatch>, Error> {
    let first = step * training.gradient_accumulation;
    let numbers = first..first + training.gradient_accumulation;
    let micro_batches: Vec<MicroBatch> = numbers
        .map(|index| {
            let batch = batches(index);
            batch::check(&batch, index, &student.architecture, vocab_size)?;
            Ok(MicroBatch { packed: student.ops.pack(&batch), tokens: Packed::trimmed(&batch).tokens.len() as u64 })
        })
        .collect::<Result<_, Error>>()?;
    match micro_batches.iter().any(|micro_batch| !micro_batch.packed.scored.is_empty()) {
        true => Ok(micro_batches),
        false => Err(Error::Batch { index: first, what: "masks every position: there is nothing to learn from".to_owned() }),
    }
}

/// Means over the unmasked tokens of a step.
struct Losses {
    cross_entropy: f64,
    kl: Option<f64>,
}

impl Losses {
    fn loss(&self, objective: Objective<'_>) -> f64 {
        match (objective, self.kl) {
            (Objective::Distill { temperature, kd_ratio, .. }, Some(kl)) => {
                let (temperature, kd_ratio) = (f64::from(temperature), f64::from(kd_ratio));
                (1.0 - kd_ratio) * self.cross_entropy + kd_ratio * temperature * temperature * kl
            }
            _ => self.cross_entropy,
        }
    }
}

/// Losses and gradients of a step: sums over its batches, divided by the unmasked tokens of all of them.
fn gradients(
    student: &Decoder,
    parameters: &Parameters,
    teacher: Option<&Teacher>,
    micro_batches: &[MicroBatch],
) -> (Losses, Gradients) {
    let scored: usize = micro_batches.iter().map(|micro_batch| micro_batch.packed.scored.len()).sum();
    let scale = 1.0 / scored as f64;
    let mut sums = Losses { cross_entropy: 0.0, kl: teacher.map(|_| 0.0) };
    let mut gradients = Gradients::new();
    for MicroBatch { packed, .. } in micro_batches.iter().filter(|micro_batch| !micro_batch.packed.scored.is_empty()) {
        let (losses, of_batch) = batch_gradients(student, parameters, teacher, packed, scale as f32);
        sums.cross_entropy += losses.cross_entropy * scale;
        sums.kl = sums.kl.zip(losses.kl).map(|(sum, kl)| sum + kl * scale);
        for (id, gradient) in of_batch {
            let sum = match gradients.remove(&id) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            gradients.insert(id, sum);
        }
    }
    (sums, gradients)
}

/// Summed losses of one batch, and the gradients of `scale` times their mix.
///
/// Both ends are computed here and only the layers between them by Burn's autodiff: the head's gradient comes out of the loss
/// itself, and the embedding's is added into the rows that were read. A tied embedding gets both sums in one tensor.
fn batch_gradients(
    student: &Decoder,
    parameters: &Parameters,
    teacher: Option<&Teacher>,
    packed: &Packed,
    scale: f32,
) -> (Losses, Gradients) {
    let tracked = parameters.tracked();
    let embedded = student.embed(parameters, packed).autodiff().require_grad();
    let hidden = student.hidden(&tracked, embedded.clone(), packed);
    let head = student.head();
    let rows = student.architecture.vocab_size;
    let shared = teacher.map_or(rows, |teacher| teacher.vocab_size);
    let at_head = head_gradients(
        student.ops,
        HeadInputs {
            hidden: hidden.clone().without_autodiff(),
            head: first_rows(parameters.get(head), shared),
            teacher: teacher.map(|teacher| teacher.head(packed)),
            targets: &packed.targets,
            scale,
        },
    );
    // The gradient of this sum with respect to `hidden` is the head's.
    let mut by_burn = (hidden * at_head.of_hidden).sum().backward();
    let mut gradients: Gradients = tracked
        .iter()
        .map(|(id, leaf)| (id, leaf.grad_remove(&mut by_burn).expect("every tensor of a layer takes part in the loss")))
        .collect();
    let of_embedded = embedded.grad_remove(&mut by_burn).expect("the embedding takes part in the loss");
    gradients.insert(head, with_rows(at_head.of_head, rows));
    let mut add_rows = |id: TensorId, rows: &[u32]| {
        let into = gradients.remove(&id).unwrap_or_else(|| parameters.get(id).zeros_like());
        gradients.insert(id, student.ops.scatter_add(into, rows, of_embedded.clone()));
    };
    add_rows(TensorId::Embedding, &packed.tokens);
    if student.architecture.positions == Positions::Learned {
        let positions: Vec<u32> = packed.sequences.positions().collect();
        add_rows(TensorId::PositionEmbedding, &positions);
    }
    (Losses { cross_entropy: at_head.cross_entropy, kl: at_head.kl }, gradients)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use compressor_format::{Family, LayerShape, LayerTensor, Part};
    use serde_json::json;

    use super::*;
    use crate::fused::tests::assert_close;
    use crate::model::values;

    /// A tiny model of a family, each layer with its own sizes.
    fn tiny(family: Family) -> Architecture {
        let config = match family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "n_inner": 24
            }),
            _ => json!({
                "model_type": family.model_type(), "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 6,
                "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 12,
                "tie_word_embeddings": family != Family::Mistral
            }),
        };
        let mut architecture = Family::read(&config, Path::new("config.json")).unwrap();
        let kv_heads = if family == Family::Gpt2 { 3 } else { 1 };
        architecture.layers[1] = LayerShape { heads: 3, kv_heads, intermediate_size: 20 };
        architecture
    }

    /// Rows that end early, one that is masked whole, masked beginnings.
    pub(crate) fn batch() -> Batch {
        let (rows, length) = (4, 9);
        let tokens: Vec<u32> = (0..rows * length).map(|i| (i * 11 % 30) as u32).collect();
        let targets = tokens.iter().map(|token| (token + 11) % 30).collect();
        let counts = [(3, 7), (0, 9), (0, 0), (4, 5)];
        let weights =
            counts.iter().flat_map(|(from, to)| (0..length).map(move |i| if i >= *from && i < *to { 1.0 } else { 0.0 }));
        Batch { tokens, targets, weights: weights.collect(), rows, length }
    }

    /// The loss of one batch and the gradients of the weights.
    pub(crate) fn gradients_at(
        student: &Decoder,
        weights: &Parameters,
        objective: Objective<'_>,
        batch: &Batch,
        device: &Device,
    ) -> (f64, Gradients) {
        let teacher = Teacher::new(objective, student.ops, device);
        let micro_batch = MicroBatch { packed: student.ops.pack(batch), tokens: 0 };
        let (losses, gradients) = gradients(student, weights, teacher.as_ref(), &[micro_batch]);
        (losses.loss(objective), gradients)
    }

    fn gradients_of(student: &Weights, teacher: &Weights, ops: Ops) -> (Losses, Gradients) {
        let device = Device::flex();
        let decoder = Decoder { architecture: student.architecture().clone(), ops };
        let objective =
            Objective::Distill { teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 0.5 };
        let teacher = Teacher::new(objective, ops, &device);
        let micro_batch = MicroBatch { packed: ops.pack(&batch()), tokens: 0 };
        gradients(&decoder, &Parameters::from_weights(student, &device), teacher.as_ref(), &[micro_batch])
    }

    #[test]
    fn gradients_of_rounded_weights_are_those_of_the_weights_behind_them() {
        // 0.4 and 1.6 are rounded to 0 and 2. Where the loss is 3 · a − b, the gradient of what is rounded is (3, −1); the derivative of
        // the rounding itself is zero at both, so straight through is the only way to these numbers.
        let device = Device::flex();
        let id = TensorId::Layer(0, LayerTensor::Up(Part::Weight));
        let [norm, weights, of_weights] =
            [[[1.3, 0.2]], [[0.4, 1.6]], [[3.0, -1.0]]].map(|row| Tensor::<2>::from_data(row, &device));
        let parameters: Parameters = [(id, weights), (TensorId::FinalNorm(Part::Weight), norm)].into_iter().collect();
        let rounding = |other: TensorId, values: &[f32]| -> Result<Option<Vec<f32>>, String> {
            Ok((other == id).then(|| values.iter().map(|value| value.round()).collect()))
        };
        for ops in [Ops::Fused, Ops::Plain] {
            let learnt = Learnt::RoundedWeights(&rounding, ops);
            let rounded = learnt.weights(&parameters).unwrap();
            assert_eq!(values(rounded.get(id)), [0.0, 2.0], "{ops:?}");
            assert_eq!(values(rounded.get(TensorId::FinalNorm(Part::Weight))), [1.3, 0.2], "{ops:?}: stays as it is");
            let gradients = learnt.gradients(&rounded, Gradients::from([(id, of_weights.clone())]));
            assert_eq!(values(gradients[&id].clone()), [3.0, -1.0], "{ops:?}");
            assert_eq!(values(parameters.get(id)), [0.4, 1.6], "{ops:?}: what is learnt is not rounded");
        }
    }

    #[test]
    fn both_implementations_give_one_gradient_for_every_family() {
        // The composition keeps padding and whole rows; the kernels leave out whatever can't change the loss.
        for family in Family::ALL {
            let (student, teacher) = (Weights::random(tiny(family), 1), Weights::random(tiny(family), 2));
            let (fused, fused_gradients) = gradients_of(&student, &teacher, Ops::Fused);
            let (plain, plain_gradients) = gradients_of(&student, &teacher, Ops::Plain);
            assert!((fused.cross_entropy - plain.cross_entropy).abs() < 1e-5, "{family:?}");
            assert!((fused.kl.unwrap() - plain.kl.unwrap()).abs() < 1e-6, "{family:?}");
            let ids: Vec<_> = student.architecture().tensors();
            assert_eq!(fused_gradients.keys().copied().collect::<Vec<_>>(), ids, "{family:?}: every tensor has a gradient");
            for (id, fused) in fused_gradients {
                let plain = values(plain_gradients[&id].clone());
                let fused = values(fused);
                let largest = plain.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                // The key's bias adds the same to every score of a query: its gradient is zero but for rounding.
                let is_key_bias = format!("{id}").ends_with("k_proj.bias");
                assert!(largest > 1e-7 || is_key_bias, "{family:?} {id}: a gradient of {largest} proves nothing");
                let scale = if is_key_bias { 1.0 } else { 1.0 / largest };
                let scaled = |values: Vec<f32>| values.into_iter().map(|value| value * scale).collect::<Vec<_>>();
                assert_close(&format!("{family:?} {id}"), &scaled(fused), &scaled(plain), 1e-4);
            }
        }
    }

    #[test]
    fn a_tied_embedding_gets_the_gradients_of_both_ends() {
        // The same model untied, with a copy as its head: the tied gradient is the sum of the two.
        let teacher = Weights::random(tiny(Family::Llama), 2);
        let tied = Weights::random(tiny(Family::Llama), 1);
        let (mut architecture, config, mut tensors) = tied.clone().into_parts();
        architecture.tied_embeddings = false;
        tensors.insert(TensorId::Head, tensors[&TensorId::Embedding].clone());
        let untied = Weights::new(architecture, config, tensors);
        let (_, of_tied) = gradients_of(&tied, &teacher, Ops::Fused);
        let (_, of_untied) = gradients_of(&untied, &teacher, Ops::Fused);
        let of = |gradients: &Gradients, id| values(gradients[&id].clone());
        let ends = of(&of_untied, TensorId::Embedding).into_iter().zip(of(&of_untied, TensorId::Head));
        let sum: Vec<f32> = ends.map(|(embedding, head)| embedding + head).collect();
        assert_close("embedding", &of(&of_tied, TensorId::Embedding), &sum, 1e-7);
    }
}
