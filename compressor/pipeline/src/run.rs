//! Carries a plan out, step by step.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use compressor_engine::{Engine, Logits, Place};
use compressor_format::{
    Alternative, Architecture, Artifact, Batches, Check, Checkpoint, Dataset, Distill, Dtype, FileHash, Importance, LayerTensor,
    LearnScales, Lock, Measured, Metrics, Model, ORIGINAL, Prune, Quantize, REPORT_VERSION, Reference, Report, SampleOrder,
    Samples, Sizes, Split, Stage, StageReport, StepLosses, Student, TensorId, Threshold, Tokenizer, Train, TrainingKeys, Verify,
    WeightStorage, Weights, copy_companions, write_entropy,
};
use serde_json::{Value, json};

use crate::measure::{HeldOut, begin_windows};
use crate::plan::{Origin, Plan, Step, architecture, evenly_spaced};
use crate::quantize::{TextPurpose, TextUse};
use crate::record::{self, Inputs, Measurement, Record};
use crate::statistics::mean;
use crate::trainer::{Distillation, Start, Trainer, TrainingJob};
use crate::verify::{Bench, Subject, verify};
use crate::{Error, page, prune, quantize};

/// What a run tells while it works.
pub trait Observer {
    /// A step begins.
    fn begins(&mut self, step: &Step, number: usize, of: usize);
    /// A step is finished already and is left as it is.
    fn skips(&mut self, step: &Step, report: &StageReport);
    /// A model that is finished is measured: the one that the chain starts from, or one whose figures are of another measurement.
    fn measures(&mut self, model: &str);
    /// One training step.
    fn losses(&mut self, losses: &StepLosses, steps: u64);
    /// Part of the work of a step that does not train.
    fn advances(&mut self, what: &str, done: u64, of: u64);
    /// A step is finished.
    fn ends(&mut self, step: &Step, report: &StageReport);
}

/// Who does the work that the pipeline can't do itself.
pub struct Workers<'a> {
    /// Trains and distills.
    pub trainer: &'a dyn Trainer,
    /// Measures time and memory.
    pub bench: &'a dyn Bench,
    /// Is told what happens.
    pub observer: &'a mut dyn Observer,
}

/// Runs every step of a plan that is not finished yet; the report is saved after each.
///
/// # Errors
/// What keeps a step from being done. A check that fails is no error: `report.passed` says it.
pub fn run(plan: &Plan, workers: &mut Workers<'_>) -> Result<Report, Error> {
    fs_err::create_dir_all(&plan.run_folder)?;
    let _lock = lock(&plan.run_folder)?;
    record::clear_discarded(plan)?;
    let mut run = Run { plan, tokenizer: None, held_out: None, report: new_report(plan)? };
    let (mut inputs, mut is_after_change) = (Inputs::default(), false);
    run.start(&mut inputs, workers.observer)?;
    for (index, step) in plan.steps().iter().enumerate() {
        let read = inputs.of(plan, step)?;
        if let Some(mut record) = record::finished(step, &read, is_after_change)? {
            record::clear(step)?;
            if record.measurement != plan.measurement() {
                workers.observer.measures(&step.name);
                run.measure(step, &mut record, workers.observer)?;
                record.finish(step)?;
            }
            workers.observer.skips(step, &record.report);
            run.take(record);
            run.save()?;
            continue;
        }
        workers.observer.begins(step, index + 1, plan.steps().len());
        let carried_out = run.carry_out(step, read, workers);
        inputs.forget(&step.folder);
        is_after_change = true;
        let record = match carried_out {
            Ok(record) => record,
            Err(error) => {
                // Losses until the stop are on the page too. The stop itself is what to report, whatever becomes of the page.
                let _ = run.save();
                return Err(error);
            }
        };
        workers.observer.ends(step, &record.report);
        run.take(record);
        run.save()?;
    }
    Ok(run.report)
}

struct Run<'a> {
    plan: &'a Plan,
    tokenizer: Option<Tokenizer>,
    held_out: Option<HeldOut>,
    report: Report,
}

impl Run<'_> {
    /// Does what is left to do of one step, and leaves its record.
    fn carry_out(&mut self, step: &Step, inputs: Vec<FileHash>, workers: &mut Workers<'_>) -> Result<Record, Error> {
        crate::machine::forget_peak_memory();
        let mut record = match record::begin(step, &inputs)? {
            Some(made) => made,
            None => {
                let (made, checks) = self.make(step, workers)?;
                let mut record = Record::of(step, made, checks, inputs)?;
                if let Stage::Verify(settings) = &step.stage {
                    record.measurement = Some(Measurement::of(settings, self.plan.recipe.seed));
                }
                record.keep_made(step)?;
                record
            }
        };
        if let Stage::LearnScales(settings) = &step.stage {
            self.compare_scales(step, settings, &mut record.report.details)?;
            record = Record::of(step, record.report, record.checks, record.inputs.unwrap_or_default())?;
        }
        if record.measurement != self.plan.measurement() {
            self.measure(step, &mut record, workers.observer)?;
        }
        record.report.peak_memory_bytes = record.report.peak_memory_bytes.max(crate::machine::peak_memory_bytes());
        if let Some(most) = self.plan.max_memory_bytes {
            record.checks.push(memory_check(step, record.report.peak_memory_bytes, most));
        }
        record.finish(step)?;
        Ok(record)
    }

    /// Makes what the step is there for; a verification only finds out.
    fn make(&mut self, step: &Step, workers: &mut Workers<'_>) -> Result<(StageReport, Vec<Check>), Error> {
        let started = Instant::now();
        let mut checks = Vec::new();
        let mut made = match &step.stage {
            Stage::Train(train) => self.train(step, train, workers)?,
            Stage::Distill(distill) => self.distill(step, distill, workers)?,
            Stage::Prune(settings) => self.prune(step, settings, workers)?,
            Stage::Quantize(settings) => self.quantize(step, settings, workers)?,
            Stage::LearnScales(settings) => self.learn_scales(step, settings, workers)?,
            Stage::Verify(settings) => {
                let (made, found) = self.verify(step, settings, workers)?;
                checks = found;
                made
            }
        };
        made.seconds = started.elapsed().as_secs_f64();
        made.peak_memory_bytes = crate::machine::peak_memory_bytes();
        Ok((made, checks))
    }

    /// Writes `report.json`, and `report.html` with the curves of every step that this run has begun.
    fn save(&self) -> Result<(), Error> {
        self.report.save(&self.plan.run_folder)?;
        let mut folders = Vec::new();
        for step in self.plan.steps() {
            if record::is_begun(step)? {
                let (step, folder, metrics) = (step.name.clone(), step.folder.clone(), Metrics::path(step.metrics_folder()));
                folders.push(page::Folder { step, metrics, folder });
            }
        }
        page::save(&self.report, &folders, &self.plan.run_folder)
    }

    fn take(&mut self, record: Record) {
        let step = &self.plan.steps()[self.report.steps().len()];
        let first = || Reference { name: step.name.clone(), dtype: step.output.dtype, bytes: record.report.bytes };
        self.report.reference.get_or_insert_with(first);
        self.report.stages.push(record.report);
        if !record.checks.is_empty() {
            let allow_undecided = self.plan.measured_by().allow_undecided;
            self.report.checks.extend(record.checks);
            let findings = crate::Findings { checks: self.report.checks.clone(), perplexity: None, score: None };
            self.report.passed = Some(findings.passed(allow_undecided));
        }
    }

    fn dataset(&self) -> &Dataset {
        self.plan.dataset.as_ref().expect("checked by Plan::new: this stage has a dataset")
    }

    fn train(&mut self, step: &Step, train: &Train, workers: &mut Workers<'_>) -> Result<StageReport, Error> {
        let start = self.weights(&step.input, step)?;
        let (weights, details) = self.fit_weights(step, start, None, &train.training(), workers)?;
        self.keep(step, &weights, Dtype::F32, details)
    }

    fn distill(&mut self, step: &Step, distill: &Distill, workers: &mut Workers<'_>) -> Result<StageReport, Error> {
        let teacher_origin = step.beside.as_ref().expect("Plan::new gives every distillation a teacher");
        let teacher = self.weights(teacher_origin, step)?;
        let student = match (&distill.student, &step.student) {
            (Some(Student::Layers(layers)), _) => keep_layers(teacher.clone(), *layers),
            (_, Some(origin)) => self.weights(origin, step)?,
            (_, None) => self.weights(&step.input, step)?,
        };
        let vocab_size = shared_vocabulary([teacher.architecture(), student.architecture()], &step.folder)?;
        let (temperature, kd_ratio) = (distill.temperature, distill.kd_ratio);
        let distillation = Distillation { teacher: &teacher, vocab_size, temperature, kd_ratio };
        let (weights, mut details) = self.fit_weights(step, student, Some(distillation), &distill.training(), workers)?;
        details["teacher"] = json!(self.plan.name_of(teacher_origin));
        self.keep(step, &weights, Dtype::F32, details)
    }

    fn prune(&mut self, step: &Step, settings: &Prune, workers: &mut Workers<'_>) -> Result<StageReport, Error> {
        let path = self.plan.path_of(&step.input);
        let weights = self.weights(&step.input, step)?;
        let scores = match settings.importance {
            Importance::Activation if prune::ranks_units(settings) => {
                self.activation_scores(step, &weights, settings, workers)?
            }
            Importance::Activation | Importance::Magnitude => prune::magnitude(&weights, settings.magnitude_norm),
        };
        let (weights, cuts) = prune::prune(weights, settings, &scores)?;
        let dtype = match &path {
            Some(path) => Checkpoint::open(path)?.dtype(),
            None => Dtype::F32,
        };
        let cuts = serde_json::to_value(cuts).expect("cuts are plain data");
        self.keep(step, &weights, dtype, cuts)
    }

    fn quantize(&mut self, step: &Step, settings: &Quantize, workers: &mut Workers<'_>) -> Result<StageReport, Error> {
        let path = self.plan.path_of(&step.input).expect("checked by Plan::new: something was trained or read before");
        let checkpoint = Checkpoint::open(&path)?;
        let mut quantization = quantize::Quantization::from(settings);
        let mut progress = |done, of, name: &str| workers.observer.advances(name, done, of);
        let mut text_use = Vec::new();
        let target = quantize::Target::of(settings);
        let (mut budget, mut measured) = (None, None);
        if target.is_some() || settings.measure_kl {
            let (scored, fitted) = self.texts_of_candidates(&checkpoint, settings, &mut text_use)?;
            let texts = [&scored, &fitted];
            let file = self.plan.run_folder.join(quantize::Sensitivities::FILE);
            if let Some(target) = target {
                let choices = target.choices(&quantization, checkpoint.architecture());
                let of_all = quantize::measure_sensitivities(&checkpoint, &quantization, &choices, texts, &file, &mut progress)?;
                let (settled, found) = target
                    .choose(&quantization, checkpoint.architecture(), checkpoint.dtype(), &of_all)
                    .map_err(quantize::Error::from)?;
                quantization = settled;
                (budget, measured) = (Some(found), Some(of_all));
            }
            if settings.measure_kl {
                measured = Some(quantize::measure_each(&checkpoint, &quantization, texts, &file, &mut progress)?);
            }
        }
        let text = || self.calibration(&checkpoint, settings, &mut text_use);
        let mut calibration = quantization.calibrates().then(text).transpose()?;
        if let Some(calibration) = &mut calibration {
            // One folder, which goes with the step's end: with what a run that was killed left there, whether this one spills or not.
            let kept = record::layers_folder(step);
            calibration.spilled_in = (step.spilled_bytes > 0).then(|| kept.clone());
            calibration.kept_in = Some(kept);
        }
        let mut report = quantize::quantize(&checkpoint, &quantization, calibration.as_ref(), &step.folder, &mut progress)?;
        (report.budget, report.text) = (budget, text_use);
        if let Some(measured) = measured {
            report.tensors.iter_mut().for_each(|tensor| tensor.kl = measured.kl(&tensor.name, tensor.scheme));
        }
        if settings.storage == WeightStorage::Entropy {
            let [weights, coded] = ["model.safetensors", "model.entropy"].map(|name| step.folder.join(name));
            report.entropy_bytes = Some(write_entropy(&weights, &coded)?);
        }
        self.manifest(step, &checkpoint, &report)?;
        let mut made = self.step_report(step)?;
        made.details = serde_json::to_value(report).expect("a report is plain data");
        Ok(made)
    }

    /// Trains the scales of an artifact.
    fn learn_scales(&mut self, step: &Step, settings: &LearnScales, workers: &mut Workers<'_>) -> Result<StageReport, Error> {
        let input = self.plan.path_of(&step.input).expect("checked by Plan::new: an artifact comes before");
        let artifact = Artifact::open(&input)?;
        let teacher_origin = step.beside.as_ref().expect("Plan::new gives every such stage a teacher");
        let teacher = self.plan.path_of(teacher_origin).expect("a teacher was trained or read before");
        let teacher = Checkpoint::open(&teacher)?;
        copy_companions(&input, &step.folder)?;
        let weights = teacher.weights()?;
        let vocab_size = shared_vocabulary([teacher.architecture(), artifact.architecture()], &step.folder)?;
        let distillation = Distillation { teacher: &weights, vocab_size, temperature: settings.temperature, kd_ratio: 1.0 };
        let keys = settings.training();
        let (scales, mut details) = self.fit(step, &artifact, Some(distillation), &keys, workers, Trainer::learn_scales)?;
        let unchanged = artifact.write_with_scales(&scales, &step.folder)?;
        details["teacher"] = json!(self.plan.name_of(teacher_origin));
        details["scales"] = json!(scales.values().map(Vec::len).sum::<usize>());
        details["scales_unchanged"] = json!(unchanged);
        Ok(StageReport { details, ..self.step_report(step)? })
    }

    /// Hands learnt scales out where they are better on text that they were not trained on.
    fn compare_scales(&mut self, step: &Step, settings: &LearnScales, details: &mut Value) -> Result<(), Error> {
        let [input, teacher] = [Some(&step.input), step.beside.as_ref()]
            .map(|origin| origin.and_then(|origin| self.plan.path_of(origin)).expect("the scales were learnt of both"));
        let (artifact, teacher) = (Artifact::open(&input)?, Checkpoint::open(&teacher)?);
        let learnt = Artifact::open(&step.folder)?;
        let [before, after] = self.divergences(&teacher, [&artifact, &learnt])?;
        // NaN on either side is no proof that they are.
        if after.value.partial_cmp(&before.value) != Some(Ordering::Less) {
            let (before, after, tokens) = (before.value, after.value, before.sample_size);
            return Err(Error::ScalesNotBetter { before, after, tokens, learning_rate: settings.learning_rate });
        }
        details["kl_before"] = json!(before);
        details["kl_after"] = json!(after);
        if input.join("model.entropy").exists() {
            let [weights, coded] = ["model.safetensors", "model.entropy"].map(|name| step.folder.join(name));
            details["entropy_bytes"] = json!(write_entropy(&weights, &coded)?);
        }
        crate::artifact::write_manifest_after(&input, &teacher, &self.plan.recipe, &step.folder).map(drop)
    }

    /// Mean KL divergence of each artifact from a teacher on the valid split, which nothing is trained on, nats per token.
    fn divergences(&self, teacher: &Checkpoint, artifacts: [&Artifact; 2]) -> Result<[Measured; 2], Error> {
        let tokenizer = crate::open_tokenizer(artifacts[0].path())?;
        let examples = self.dataset().split(Split::Valid, self.plan.recipe.seed)?;
        let measured_by = self.plan.measured_by();
        let held_out = HeldOut::new(&examples, &tokenizer, &measured_by)?;
        let load = |model| Engine::load(&model, crate::engine_options_of(&measured_by));
        let teacher = load(Model::Checkpoint(teacher.clone()))?;
        let divergence = |artifact: &Artifact| -> Result<Measured, Error> {
            let kl = held_out.compare(&teacher, &load(Model::Artifact(artifact.clone()))?, &mut |_, _, _| {})?.kl;
            Ok(Measured { value: mean(&kl).0, sample_size: kl.len() as u64 })
        };
        Ok([divergence(artifacts[0])?, divergence(artifacts[1])?])
    }

    /// What the artifact's weights are quantized by.
    fn calibration(
        &self,
        checkpoint: &Checkpoint,
        settings: &Quantize,
        text_use: &mut Vec<TextUse>,
    ) -> Result<quantize::Calibration, Error> {
        let window = calibration_window(checkpoint.architecture());
        let asked = settings.calibration_tokens.next_multiple_of(window);
        let tokens = self.whole_windows(checkpoint, ("calibration_tokens", asked), 1, settings)?;
        text_use.push(TextUse { purpose: TextPurpose::Quantizing, asked: asked as u64, used: tokens.len() as u64 });
        Ok(quantize::Calibration { tokens, window, kept_in: None, spilled_in: None })
    }

    /// What candidates are scored on, and the text before it, which they are fitted to where the quantization looks at text: so no
    /// integer is fitted to a token that it is scored on.
    fn texts_of_candidates(
        &self,
        checkpoint: &Checkpoint,
        settings: &Quantize,
        text_use: &mut Vec<TextUse>,
    ) -> Result<(quantize::Calibration, quantize::Calibration), Error> {
        let window = calibration_window(checkpoint.architecture());
        let [scored, fitted] = quantize::tokens_of_candidates(settings, window);
        let least = if fitted == 0 { 1 } else { 2 };
        let mut tokens = self.whole_windows(checkpoint, ("sensitivity_tokens", scored + fitted), least, settings)?;
        let used = match tokens.len() {
            all if fitted == 0 || all == scored + fitted => scored.min(all),
            // Of less text, no more than half is scored.
            less => scored.min(less / window / 2 * window),
        };
        let scored_tokens = tokens.split_off(tokens.len() - used);
        text_use.push(TextUse { purpose: TextPurpose::MeasuringKl, asked: scored as u64, used: used as u64 });
        if fitted > 0 {
            let (asked, used) = (fitted as u64, tokens.len() as u64);
            text_use.push(TextUse { purpose: TextPurpose::QuantizingToMeasure, asked, used });
        }
        let text = |tokens| quantize::Calibration { tokens, window, kept_in: None, spilled_in: None };
        Ok((text(scored_tokens), text(tokens)))
    }

    /// Whole windows of the train split, its examples one after the other; where less text is allowed, those that there are, from
    /// `least` on.
    fn whole_windows(
        &self,
        checkpoint: &Checkpoint,
        (key, wanted): (&'static str, usize),
        least: usize,
        settings: &Quantize,
    ) -> Result<Vec<u32>, Error> {
        let window = calibration_window(checkpoint.architecture());
        let tokenizer = crate::open_tokenizer(checkpoint.path())?;
        let examples = self.dataset().split(Split::Train, self.plan.recipe.seed)?;
        let mut tokens = examples.first_tokens(&tokenizer, wanted)?;
        let used = wanted.min(tokens.len() / window * window);
        if used < least * window || (used < wanted && !settings.allow.contains(&Alternative::LessText)) {
            return Err(Error::CalibrationTooShort { key, tokens: tokens.len(), wanted, window });
        }
        tokens.truncate(used);
        begin_windows(&mut tokens, window, tokenizer.bos_of_texts());
        Ok(tokens)
    }

    fn verify(&mut self, step: &Step, settings: &Verify, workers: &mut Workers<'_>) -> Result<(StageReport, Vec<Check>), Error> {
        let artifact = self.plan.path_of(&step.input).expect("checked by Plan::new: an artifact comes before");
        let reference = step.beside.as_ref().and_then(|origin| self.plan.path_of(origin));
        let reference = reference.expect("checked by Plan::new: a checkpoint comes before every artifact");
        self.open_held_out(&reference)?;
        // As this verification measures; tables are measured as the last one does.
        let own = match self.plan.measurement() == Some(Measurement::of(settings, self.plan.recipe.seed)) {
            true => None,
            false => Some(self.held_out_by(settings)?),
        };
        let largest = self.plan.largest_checkpoint().and_then(|origin| self.plan.path_of(&origin));
        let subject = Subject {
            artifact: &artifact,
            reference: &reference,
            largest: largest.as_deref(),
            tokenizer: self.tokenizer.as_ref().expect("opened with the held-out text"),
            held_out: own.as_ref().or(self.held_out.as_ref()).expect("opened above"),
        };
        let mut advances = |what: &str, done, of| workers.observer.advances(what, done, of);
        let findings = verify(&subject, settings, &self.plan.recipe.budget, workers.trainer, workers.bench, &mut advances)?;
        let mut made = self.step_report(step)?;
        name_bos(subject.held_out, &mut made);
        made.bytes = Model::open(&artifact)?.weight_bytes()?;
        (made.perplexity, made.score) = (findings.perplexity, findings.score);
        Ok((made, findings.checks))
    }

    /// Trains weights, rounded in every forward pass where the step says to what.
    fn fit_weights(
        &mut self,
        step: &Step,
        weights: Weights,
        distillation: Option<Distillation<'_>>,
        keys: &TrainingKeys,
        workers: &mut Workers<'_>,
    ) -> Result<(Weights, Value), Error> {
        let fake_quantizer = match &step.quantization {
            Some(quantization) => Some(quantize::FakeQuantizer::new(quantization, weights.architecture())?),
            None => None,
        };
        let start = Start { weights, fake_quantizer: fake_quantizer.as_ref() };
        let (weights, mut details) = self.fit(step, start, distillation, keys, workers, Trainer::train)?;
        if let Some(quantization) = &step.quantization {
            details["rounded_to"] = json!(quantization.name());
        }
        Ok((weights, details))
    }

    /// Trains on the dataset's train split, as `train` does it.
    fn fit<'w, S, T>(
        &mut self,
        step: &Step,
        start: S,
        distillation: Option<Distillation<'_>>,
        keys: &TrainingKeys,
        workers: &mut Workers<'w>,
        train: impl FnOnce(
            &'w (dyn Trainer + 'w),
            TrainingJob<'_, S>,
            &mut dyn FnMut(&StepLosses) -> ControlFlow<()>,
        ) -> anyhow::Result<T>,
    ) -> Result<(T, Value), Error> {
        let tokenizer = Tokenizer::open(step.folder.join("tokenizer.json"))?;
        let examples = self.dataset().split(Split::Train, self.plan.recipe.seed)?;
        let samples = Samples::new(&examples, &tokenizer, keys.sequence_length)?;
        let order = SampleOrder { seed: self.plan.recipe.seed, epoch: 0, index: 0 };
        let batches = Mutex::new(samples.batches(keys.batch_size, order)?);
        let batch = |index: u64| {
            let mut batches = batches.lock().expect("no thread panics while it holds this");
            batch_at(&samples, &mut batches, keys.batch_size, order, index)
        };
        let metrics = RefCell::new(Metrics::append(step.metrics_folder())?);
        let mut last = None;
        // A state may cover no step whose line is not on disk: the line would never be written.
        let failed = RefCell::new(None);
        let before_save = || match failed.take() {
            Some(error) => Err(error),
            None => metrics.borrow().sync(),
        };
        let state_folder = record::state_folder(step);
        let job = TrainingJob {
            start,
            distillation,
            keys: *keys,
            batch: &batch,
            state_folder: &state_folder,
            fingerprint: &step.fingerprint,
            before_save: &before_save,
        };
        let trained = train(workers.trainer, job, &mut |losses| {
            last = Some(*losses);
            workers.observer.losses(losses, keys.steps as u64);
            match metrics.borrow_mut().write(losses) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed.replace(Some(error));
                    ControlFlow::Break(())
                }
            }
        });
        match failed.take() {
            Some(error) => Err(error.into()),
            None => Ok((trained.map_err(Error::Trainer)?, json!({ "last": last }))),
        }
    }

    /// Writes a checkpoint into the step's folder.
    fn keep(&mut self, step: &Step, weights: &Weights, dtype: Dtype, details: Value) -> Result<StageReport, Error> {
        weights.write(&step.folder, dtype)?;
        Ok(StageReport { details, ..self.step_report(step)? })
    }

    /// The weights of an origin, with its tokenizer copied into the step's folder.
    fn weights(&mut self, origin: &Origin, step: &Step) -> Result<Weights, Error> {
        match (origin, self.plan.path_of(origin)) {
            (Origin::New(sizes), _) => self.new_weights(sizes, step),
            (_, Some(path)) => {
                let checkpoint = Checkpoint::open(&path)?;
                checkpoint.copy_companions(&step.folder)?;
                Ok(checkpoint.weights()?)
            }
            (Origin::Path(_) | Origin::Step(_), None) => unreachable!("only new weights have no path"),
        }
    }

    /// New weights; the tokenizer is trained on the dataset unless the step has one already, its teacher's.
    fn new_weights(&mut self, sizes: &Sizes, step: &Step) -> Result<Weights, Error> {
        let path = step.folder.join("tokenizer.json");
        if !path.exists() {
            let texts = self.dataset().split(Split::Train, self.plan.recipe.seed)?.texts();
            Tokenizer::train_bpe(texts.into_iter(), sizes.vocab_size)?.save(&path)?;
        }
        let tokenizer = Tokenizer::open(&path)?;
        let mut architecture = architecture(sizes);
        architecture.eos_token_ids = tokenizer.eos().into_iter().collect();
        Ok(Weights::random(architecture, self.plan.recipe.seed))
    }

    fn activation_scores(
        &mut self,
        step: &Step,
        weights: &Weights,
        settings: &Prune,
        workers: &mut Workers<'_>,
    ) -> Result<prune::Scores, Error> {
        let tokens = settings.calibration_tokens;
        let tokenizer = Tokenizer::open(step.folder.join("tokenizer.json"))?;
        let examples = self.dataset().split(Split::Train, self.plan.recipe.seed)?;
        let window = calibration_window(weights.architecture());
        let sequences = examples.sequences(&tokenizer, window, tokens)?;
        if sequences.is_empty() {
            let (key, there) = ("calibration_tokens", examples.first_tokens(&tokenizer, window)?.len());
            return Err(Error::CalibrationTooShort { key, tokens: there, wanted: tokens, window });
        }
        let engine = Engine::from_weights(weights, crate::engine_options())?;
        let mut scores = Calibration(prune::ActivationScores::new(weights.architecture(), settings));
        let mut seen = 0;
        for mut sequence in sequences {
            begin_windows(&mut sequence, usize::MAX, tokenizer.bos_of_texts());
            let mut cache = engine.cache(sequence.len());
            engine.forward_observed(&mut cache, &sequence, Logits::Last, &mut scores)?;
            seen += sequence.len();
            workers.observer.advances("calibration tokens", seen.min(tokens) as u64, tokens as u64);
        }
        Ok(scores.0.finish(weights)?)
    }

    /// Row 0 of the report: the model that the chain starts from, where it is there already.
    fn start(&mut self, inputs: &mut Inputs, observer: &mut dyn Observer) -> Result<(), Error> {
        let Origin::Path(path) = &self.plan.start else { return Ok(()) };
        let size = &self.plan.start_size;
        let read = inputs.of_original(self.plan)?;
        let found = record::original(self.plan, &size.fingerprint, &read)?;
        if let Some(record) = found.filter(|record| record.measurement == self.plan.measurement()) {
            self.report.stages.push(record.report);
            return self.save();
        }
        crate::machine::forget_peak_memory();
        let stored_as = if path.is_file() { "as packed".to_owned() } else { size.stored_as.clone() };
        let report = StageReport {
            name: ORIGINAL.to_owned(),
            fingerprint: size.fingerprint.clone(),
            parameters: size.architecture.parameters(),
            bytes: size.weight_bytes,
            stored_as,
            compression_ratio: 1.0,
            perplexity: None,
            score: None,
            seconds: 0.0,
            peak_memory_bytes: None,
            details: json!({}),
        };
        let mut record = Record {
            report,
            checks: Vec::new(),
            files: BTreeMap::new(),
            inputs: Some(read),
            measurement: self.plan.measurement(),
        };
        if record.measurement.is_some() {
            match self.plan.memory_lacking_for_original() {
                None => {
                    observer.measures(ORIGINAL);
                    self.measure_model(path, &mut record.report, observer)?;
                    record.report.peak_memory_bytes = crate::machine::peak_memory_bytes();
                }
                Some(why) => (record.report.details["not_measured"], record.measurement) = (json!(why), None),
            }
        }
        record.keep_original(self.plan)?;
        self.report.stages.push(record.report);
        self.save()
    }

    /// Perplexity and score of what a step made; of a verification's artifact.
    fn measure(&mut self, step: &Step, record: &mut Record, observer: &mut dyn Observer) -> Result<(), Error> {
        record.measurement = self.plan.measurement();
        if record.measurement.is_none() {
            return Ok(());
        }
        let model = match &step.stage {
            Stage::Verify(_) => self.plan.path_of(&step.input).expect("checked by Plan::new: an artifact comes before"),
            _ => step.folder.clone(),
        };
        self.measure_model(&model, &mut record.report, observer)
    }

    fn measure_model(&mut self, model: &Path, made: &mut StageReport, observer: &mut dyn Observer) -> Result<(), Error> {
        self.open_held_out(model)?;
        let engine = Engine::open(model, crate::engine_options_of(&self.plan.measured_by()))?;
        let held_out = self.held_out.as_ref().expect("opened above");
        let mut advances = |what: &str, done, of| observer.advances(what, done, of);
        made.perplexity = Some(held_out.perplexity(&engine, &mut advances)?);
        name_bos(held_out, made);
        if !held_out.prompts.is_empty() {
            let tokenizer = self.tokenizer.as_ref().expect("opened with the held-out text");
            let matches = held_out.exact_matches(&engine, tokenizer, &mut advances)?;
            let hits = matches.iter().filter(|hit| **hit).count();
            made.score = Some(Measured { value: hits as f64 / matches.len() as f64, sample_size: matches.len() as u64 });
        }
        Ok(())
    }

    /// Every model of a chain shares one tokenizer, so the held-out text is cut once.
    fn open_held_out(&mut self, model: &Path) -> Result<(), Error> {
        if self.held_out.is_some() {
            return Ok(());
        }
        self.tokenizer = Some(crate::open_tokenizer(model)?);
        self.held_out = Some(self.held_out_by(&self.plan.measured_by())?);
        Ok(())
    }

    /// The held-out text as a verification cuts it.
    fn held_out_by(&self, settings: &Verify) -> Result<HeldOut, Error> {
        let examples = self.dataset().split(Split::Test, self.plan.recipe.seed)?;
        HeldOut::new(&examples, self.tokenizer.as_ref().expect("opened before"), settings)
    }

    fn step_report(&self, step: &Step) -> Result<StageReport, Error> {
        let weights = step.folder.join("model.safetensors");
        let weight_bytes = if weights.exists() { fs_err::metadata(weights)?.len() } else { step.output.weight_bytes };
        let reference_bytes = self.report.reference.as_ref().map_or(weight_bytes, |reference| reference.bytes);
        Ok(StageReport {
            name: step.name.clone(),
            fingerprint: step.fingerprint.clone(),
            parameters: step.output.architecture.parameters(),
            bytes: weight_bytes,
            stored_as: step.output.stored_as.clone(),
            compression_ratio: reference_bytes as f64 / weight_bytes as f64,
            perplexity: None,
            score: None,
            seconds: 0.0,
            peak_memory_bytes: None,
            details: Value::Null,
        })
    }

    fn manifest(&self, step: &Step, checkpoint: &Checkpoint, report: &quantize::QuantizationReport) -> Result<(), Error> {
        crate::artifact::write_manifest(&step.folder, checkpoint, report, &self.plan.recipe).map(drop)
    }
}

/// Whether a step kept within the memory that there may be.
fn memory_check(step: &Step, peak: Option<u64>, most: u64) -> Check {
    let limit = Some(Threshold::AtMost(most as f64));
    let check =
        Check::new(&format!("peak memory, {}", step.name), peak.map_or(f64::NAN, |bytes| bytes as f64), "bytes", limit, 1, None);
    match peak {
        Some(_) => check,
        None => check.note("this operating system does not tell"),
    }
}

/// Hands the engine's activations to the scores.
struct Calibration(prune::ActivationScores);

impl compressor_engine::Observer for Calibration {
    fn observe(&mut self, layer: usize, place: Place, activations: &[f32]) {
        match place {
            Place::OutputInput => self.0.observe_attention(layer, activations),
            Place::DownInput => self.0.observe_mlp(layer, activations),
            Place::LayerInput | Place::AttentionInput | Place::MlpInput | Place::LayerOutput => {}
        }
    }
}

/// Says that windows and examples begin with a token that stands in no text.
fn name_bos(held_out: &HeldOut, made: &mut StageReport) {
    if let Some(bos) = held_out.bos {
        made.details["texts_begin_with_token"] = json!(bos);
    }
}

/// Tokens that two models predict both. Where they are padded to different sizes, those that the tokenizer in `folder` has.
fn shared_vocabulary([one, other]: [&Architecture; 2], folder: &Path) -> Result<usize, Error> {
    match one.vocab_size == other.vocab_size {
        true => Ok(one.vocab_size),
        false => Ok(crate::open_tokenizer(folder)?.largest_id() as usize + 1),
    }
}

/// Tokens of one calibration window, where the model holds as many.
const CALIBRATION_WINDOW: usize = 512;

/// Tokens that calibration reads at once.
pub(crate) fn calibration_window(architecture: &Architecture) -> usize {
    architecture.max_position_embeddings.min(CALIBRATION_WINDOW)
}

/// Micro-batch `index`, cheap where they are asked for one after the other.
fn batch_at<'s>(
    samples: &'s Samples,
    batches: &mut Batches<'s>,
    rows: usize,
    order: SampleOrder,
    index: u64,
) -> compressor_format::Batch {
    let next = batches.order();
    if next.epoch * batches.per_epoch() + next.index != index {
        let order = SampleOrder { epoch: index / batches.per_epoch(), index: index % batches.per_epoch(), ..order };
        *batches = samples.batches(rows, order).expect("the same rows were enough for the first batch");
    }
    batches.next_batch()
}

/// `count` of a model's layers, evenly spaced.
fn keep_layers(weights: Weights, count: usize) -> Weights {
    let (mut architecture, config, mut tensors) = weights.into_parts();
    let kept = evenly_spaced(architecture.layers.len(), count);
    let mut student: BTreeMap<TensorId, Vec<f32>> = BTreeMap::new();
    for (id, values) in std::mem::take(&mut tensors) {
        match id {
            TensorId::Layer(layer, tensor) => {
                if let Some(place) = kept.iter().position(|kept| *kept == layer) {
                    let tensor: LayerTensor = tensor;
                    student.insert(TensorId::Layer(place, tensor), values);
                }
            }
            other => {
                student.insert(other, values);
            }
        }
    }
    architecture.layers = kept.iter().map(|layer| architecture.layers[*layer]).collect();
    Weights::new(architecture, config, student)
}

/// Held while a run works.
fn lock(folder: &Path) -> Result<Lock, Error> {
    Lock::take(&folder.join(record::LOCK))?.ok_or_else(|| Error::Busy(folder.to_owned()))
}

fn new_report(plan: &Plan) -> Result<Report, Error> {
    let reference = match plan.path_of(&plan.start) {
        None => None,
        Some(path) => {
            let checkpoint = Checkpoint::open(&path)?;
            let name = crate::artifact::name(&path);
            Some(Reference { name, dtype: checkpoint.dtype(), bytes: checkpoint.weight_bytes()? })
        }
    };
    Ok(Report {
        format_version: REPORT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: plan.recipe.name.clone(),
        recipe: serde_json::to_value(&plan.recipe).expect("a recipe is plain data"),
        reference,
        machine: crate::machine::describe(),
        stages: Vec::new(),
        checks: Vec::new(),
        passed: None,
    })
}
