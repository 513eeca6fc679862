//! Checks a recipe against the files it names, and finds every refusal: a plan is what is left when there is none.
//!
//! A refused stage does not end the search. Those after it are judged by what is still known of their model: what the recipe alone
//! decides, its vocabulary and its positions, but not widths that the refused stage would have set.

mod aware;
mod reads;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use compressor_format::{
    Alternative, Architecture, ByteSize, Checkpoint, Dataset, Distill, Draft, Dtype, Importance, LearnScales, Method, Mistake,
    NewFolder, Place, Prune, Quantize, Recipe, RecipeText, Report, Sizes, Split, Stage, Student, Tokenizer, TrainingKeys, Verify,
    WeightStorage, check_writable,
};

use crate::fingerprint::Fingerprint;
use crate::plan::{ModelSize, Origin, Step, architecture, bookkeeping, dense, evenly_spaced, measured_by, start_of};
use crate::record::LOCK;
use crate::rows::{Rows, TokenizerOf};
use crate::{disk, memory, prune, quantize};

pub(crate) struct Planner<'a> {
    recipe: &'a Recipe,
    text: Option<&'a RecipeText>,
    pub(crate) mistakes: Vec<Mistake>,
    pub(crate) dataset: Option<Dataset>,
    pub(crate) max_memory_bytes: Option<u64>,
    rows: Rows,
    /// How every model is measured, and the key that says so.
    measured_by: Verify,
    measured_at: Place,
    /// Where the recipe names the model that lies here.
    named: HashMap<PathBuf, Place>,
    /// Those that were asked for; `None` where there is none to judge by.
    tokenizers: HashMap<TokenizerOf, Option<Rc<Tokenizer>>>,
    /// What lies beside the weights of a model, in bytes.
    companions: HashMap<PathBuf, u64>,
}

/// The chain's state between two steps.
struct Chain {
    current: Origin,
    /// Every model so far, the start first where it has weights.
    models: Vec<(Origin, ModelSize)>,
}

impl Chain {
    fn size(&self, origin: &Origin) -> Option<&ModelSize> {
        self.models.iter().find(|(other, _)| other == origin).map(|(_, size)| size)
    }
}

impl<'a> Planner<'a> {
    pub(crate) fn new(recipe: &'a Recipe, text: Option<&'a RecipeText>) -> Self {
        let verify = |stage: &Stage| matches!(stage, Stage::Verify(_));
        let measured_at = match recipe.stages.iter().rposition(verify) {
            Some(index) => Place::stage(index, "verify").then("window"),
            None => Place::root("dataset"),
        };
        Self {
            recipe,
            text,
            mistakes: Vec::new(),
            dataset: None,
            max_memory_bytes: None,
            rows: Rows::default(),
            measured_by: measured_by(recipe, usize::MAX),
            measured_at,
            named: HashMap::new(),
            tokenizers: HashMap::new(),
            companions: HashMap::new(),
        }
    }

    fn refuse(&mut self, place: &Place, mistake: Mistake) {
        let mistake = match self.text {
            Some(text) => text.locate(place, mistake),
            None => mistake,
        };
        // Several stages can stumble over one thing.
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Checks what does not depend on the stages' keys, of a recipe that could be read in part.
    pub(crate) fn check_sources(&mut self, draft: &Draft) {
        let [name, output, dataset, text, model] =
            ["name", "output", "dataset", "text", "model"].map(|key| draft.is_sound(&Place::root(key)));
        if output && (name || self.recipe.output.is_some()) {
            self.check_folder();
        }
        if dataset && text {
            self.open_dataset();
        }
        if model && let Origin::Path(path) = start_of(self.recipe) {
            self.size_of_path(&path, &Place::root("model").then("path"));
        }
        if draft.knows_stages() {
            self.check_order();
        }
    }

    /// The model that the chain starts from, and the steps; with a mistake among them, they are worth nothing.
    pub(crate) fn plan(&mut self) -> Option<(ModelSize, Vec<Step>)> {
        self.check_folder();
        let dataset_fingerprint = self.open_dataset();
        let start = start_of(self.recipe);
        let size = self.size_of_start(&start, &dataset_fingerprint);
        self.check_order();
        for (index, stage) in self.recipe.stages.iter().enumerate() {
            self.check_needs(stage, &Place::stage(index, stage.name()));
        }
        // Without the model nothing more can be judged.
        let size = size?;
        // What is there is measured before anything is done to it; new weights have learnt nothing yet.
        if matches!(start, Origin::Path(_)) {
            self.check_measuring(Split::Test, &size);
        }
        let mut chain = Chain { current: start.clone(), models: vec![(start.clone(), size.clone())] };
        let mut steps = Vec::new();
        for (index, stage) in self.recipe.stages.iter().enumerate() {
            let step = self.step(index, stage, &chain, &dataset_fingerprint);
            if !matches!(stage, Stage::Verify(_)) {
                chain.current = Origin::Step(index);
                chain.models.push((Origin::Step(index), step.output.clone()));
            }
            steps.push(step);
        }
        self.check_apart(&start, &steps);
        for (step, (index, stage)) in steps.iter().zip(self.recipe.stages.iter().enumerate()) {
            self.check_memory(step, &Place::stage(index, stage.name()));
        }
        // What a refused stage would write is not known.
        if let Some(artifact) = steps.iter().rfind(|step| step.output.is_artifact)
            && self.mistakes.is_empty()
        {
            self.check_budget(artifact);
        }
        if self.mistakes.is_empty()
            && let Some(mistake) = disk::refusal(&self.existing_folder(), disk::peak_bytes(&steps))
        {
            self.refuse(&Place::root("output"), mistake);
        }
        Some((size, steps))
    }

    /// Refuses a run folder in a model that the run reads, and reports in the place of files that it reads or that are somebody's.
    fn check_apart(&mut self, start: &Origin, steps: &[Step]) {
        let folder = self.recipe.run_folder();
        let of_steps = steps.iter().flat_map(|step| [Some(&step.input), step.beside.as_ref(), step.student.as_ref()]);
        let models = of_steps.flatten().chain([start]).filter_map(|origin| match origin {
            Origin::Path(path) => Some(path.clone()),
            Origin::New(_) | Origin::Step(_) => None,
        });
        let inputs: Vec<PathBuf> = models.chain(self.dataset.iter().flat_map(|dataset| dataset.inputs())).collect();
        let is_ours = [bookkeeping(&folder), folder.join(LOCK)].iter().any(|path| path.exists()) || NewFolder::is_work(&folder);
        for report in [Report::path(&folder), crate::page::path(&folder)] {
            let refused = compressor_format::check_apart(&report, inputs.iter().map(PathBuf::as_path)).err();
            let message = match refused {
                Some(error) => error.to_string(),
                None if !is_ours && report.symlink_metadata().is_ok() => {
                    format!("{} is there, and no run of this program wrote it", report.display())
                }
                None => continue,
            };
            let hint = "set `output` to a folder of its own";
            return self.refuse(&Place::root("output"), Mistake::new(message).hint(hint));
        }
    }

    /// Refuses a step that can't be held in the memory there may be.
    fn check_memory(&mut self, step: &Step, place: &Place) {
        let (needed, Some(most)) = (step.peak_memory_bytes, self.max_memory_bytes) else { return };
        if needed <= most || !step.output.is_settled {
            return;
        }
        let [needs, allowed] = [needed, most].map(crate::figures::bytes);
        let (spilled, less) = match &step.stage {
            Stage::Train(_) | Stage::Distill(_) | Stage::LearnScales(_) => ("", "lower batch_size or sequence_length, or "),
            Stage::Quantize(_) if step.spilled_bytes > 0 => (" with its activations on the disk", ""),
            Stage::Prune(_) | Stage::Quantize(_) | Stage::Verify(_) => ("", ""),
        };
        let message = format!("{} takes up to {needs} of memory{spilled}, and --max-memory allows {allowed}", step.name);
        let hint = format!("{less}allow {} MB or more", needed.div_ceil(1_000_000));
        self.refuse(place, Mistake::new(message).hint(hint));
    }

    /// Refuses a budget that the artifact can't keep, whatever its integers will be.
    fn check_budget(&mut self, artifact: &Step) {
        let Some(ByteSize(budget)) = self.recipe.budget.artifact_bytes else { return };
        let output = &artifact.output;
        // How far a target is used, and what coding leaves of the weights, only the run tells.
        let is_coded = |stage: &Stage| matches!(stage, Stage::Quantize(quantize) if quantize.storage == WeightStorage::Entropy);
        if !output.is_settled || output.is_at_most || self.recipe.stages.iter().any(is_coded) {
            return;
        }
        let least = output.least_folder_bytes();
        if least <= budget {
            return;
        }
        let mut message = format!("artifact_bytes is {budget}, and the artifact has {} bytes of weights", output.weight_bytes);
        if let Some(companions) = output.companion_bytes {
            message += &format!(" and {companions} of its tokenizer");
        }
        message += &format!(": {} too many", crate::figures::bytes(least - budget));
        let hint = "quantize to fewer bits, set `target_bytes` in [stage.quantize], prune more, or raise the budget";
        self.refuse(&Place::root("budget").then("artifact_bytes"), Mistake::new(message).hint(hint));
    }

    /// The nearest folder above the run folder that exists, or itself.
    fn existing_folder(&self) -> PathBuf {
        let folder = self.recipe.run_folder();
        let existing = folder.ancestors().find(|path| path.exists() || path.as_os_str().is_empty()).unwrap_or(Path::new(""));
        if existing.as_os_str().is_empty() { PathBuf::from(".") } else { existing.to_owned() }
    }

    /// The run folder must be writable; the nearest folder that exists tells.
    fn check_folder(&mut self) {
        let folder = self.recipe.run_folder();
        let existing = self.existing_folder();
        let written = match existing.is_dir() {
            true => check_writable(&existing).map_err(|error| error.to_string()),
            false => Err(format!("{} is not a folder", existing.display())),
        };
        if let Err(error) = written {
            let mistake = Mistake::new(format!("the run folder {} can't be written: {error}", folder.display()))
                .hint("set `output` to a folder on a disk that can be written");
            self.refuse(&Place::root("output"), mistake);
        }
    }

    /// Opens the dataset, reads its splits and hashes its inputs.
    fn open_dataset(&mut self) -> Option<Fingerprint> {
        let (place, opened) = match (&self.recipe.dataset, &self.recipe.text) {
            (Some(path), _) => (Place::root("dataset"), Dataset::load(path)),
            (None, Some(path)) => (Place::root("text"), Ok(Dataset::PlainText(path.clone()))),
            (None, None) => return None,
        };
        let dataset = match opened {
            Ok(dataset) => dataset,
            Err(error) => {
                self.refuse(&place, Mistake::new(error.to_string()));
                return None;
            }
        };
        for split in Split::ALL {
            if !dataset.has(split) {
                continue;
            }
            match dataset.split(split, self.recipe.seed) {
                Ok(examples) => self.rows.put(split, examples),
                Err(error) => self.refuse(&place, Mistake::new(error.to_string())),
            }
        }
        let fingerprint = Fingerprint::new("dataset").settings(&self.recipe.seed);
        let fingerprint = dataset.inputs().iter().try_fold(fingerprint, |fingerprint, input| fingerprint.file(input));
        let fingerprint = fingerprint.and_then(|fingerprint| match &self.recipe.dataset {
            Some(path) => fingerprint.file(path),
            None => Ok(fingerprint),
        });
        self.dataset = Some(dataset);
        match fingerprint {
            Ok(fingerprint) => Some(fingerprint),
            Err(error) => {
                self.refuse(&place, Mistake::new(error.to_string()));
                None
            }
        }
    }

    fn size_of_start(&mut self, start: &Origin, dataset: &Option<Fingerprint>) -> Option<ModelSize> {
        match start {
            Origin::New(sizes) => {
                let fingerprint = Fingerprint::new("new").settings(sizes).settings(&self.recipe.seed);
                let fingerprint = fingerprint.text(&dataset.as_ref().map(Fingerprint::hex).unwrap_or_default());
                if !self.recipe.has_data() {
                    let mistake = Mistake::new("a new model needs a `dataset`: its tokenizer is trained on it");
                    self.refuse(&Place::root("model"), mistake);
                }
                let tokenizer = TokenizerOf::Trained(sizes.vocab_size);
                let architecture = self.architecture(sizes, &Place::root("model").then("new"))?;
                Some(dense(architecture, Dtype::F32, tokenizer, fingerprint.hex()))
            }
            Origin::Path(path) => self.size_of_path(path, &Place::root("model").then("path")),
            Origin::Step(_) => unreachable!("a chain starts outside of itself"),
        }
    }

    /// What new sizes make; `None` where that is more than any model is.
    fn architecture(&mut self, sizes: &Sizes, place: &Place) -> Option<Architecture> {
        let architecture = architecture(sizes);
        match architecture.too_large() {
            None => Some(architecture),
            Some(what) => {
                self.refuse(place, Mistake::new(what));
                None
            }
        }
    }

    fn size_of_path(&mut self, path: &Path, place: &Place) -> Option<ModelSize> {
        self.named.entry(path.to_owned()).or_insert_with(|| place.clone());
        let opened = Checkpoint::open(path).and_then(|checkpoint| {
            checkpoint.check_companions()?;
            let fingerprint = Fingerprint::new("checkpoint");
            let fingerprint = checkpoint.files().iter().try_fold(fingerprint, |fingerprint, file| fingerprint.file(file))?;
            let tokenizer = TokenizerOf::Model(path.to_owned());
            let mut size = dense(checkpoint.architecture().clone(), checkpoint.dtype(), tokenizer, fingerprint.hex());
            size.weight_bytes = checkpoint.weight_bytes()?;
            Ok((size, checkpoint))
        });
        // A folder can do without a tokenizer where nothing reads text; out of a GGUF file it is made whenever weights are.
        if opened.is_ok() && path.is_file() {
            self.tokenizer(&TokenizerOf::Model(path.to_owned()));
        }
        match opened {
            Ok((size, checkpoint)) => {
                // A tokenizer that can't be read is refused where it is needed.
                self.companions.extend(checkpoint.companion_bytes().ok().map(|bytes| (path.to_owned(), bytes)));
                Some(size)
            }
            Err(error) => {
                self.refuse(place, Mistake::new(error.to_string()));
                None
            }
        }
    }

    /// Refuses orders that can't be: what each stage takes is fixed.
    fn check_order(&mut self) {
        let mut quantized = None;
        for (index, stage) in self.recipe.stages.iter().enumerate() {
            let place = Place::stage(index, stage.name());
            match stage {
                Stage::Quantize(settings) if quantized.is_none() => quantized = Some(settings.method),
                Stage::LearnScales(_) if quantized == Some(Method::Kmeans) => {
                    let mistake = Mistake::new("learn_scales needs scales, and method \"kmeans\" makes codebooks");
                    self.refuse(&place, mistake.hint("choose another method in [stage.quantize], or remove this stage"));
                }
                Stage::Verify(_) | Stage::LearnScales(_) if quantized.is_some() => {}
                Stage::Verify(_) | Stage::LearnScales(_) => {
                    let name = stage.name();
                    let mistake = Mistake::new(format!("{name} needs an artifact, and no quantize stage comes before it"));
                    let hint = format!("add [stage.quantize] before [stage.{name}], or remove this stage");
                    self.refuse(&place, mistake.hint(hint));
                }
                Stage::Train(_) | Stage::Distill(_) | Stage::Prune(_) | Stage::Quantize(_) if quantized.is_some() => {
                    let mistake = Mistake::new(format!("{} can't follow quantize: it takes dense weights", stage.name()));
                    self.refuse(&place, mistake.hint(format!("move [stage.{}] before [stage.quantize]", stage.name())));
                }
                Stage::Train(_) | Stage::Distill(_) | Stage::Prune(_) | Stage::Quantize(_) => {}
            }
        }
        self.check_awareness();
    }

    /// Refuses stages whose part of the dataset is not there.
    fn check_needs(&mut self, stage: &Stage, place: &Place) {
        let Some(split) = split_of(stage) else { return };
        let Some(dataset) = &self.dataset else {
            if !self.recipe.has_data() {
                let mistake = Mistake::new(format!("{} needs a `dataset`, and the recipe names none", stage.name()));
                self.refuse(place, mistake.hint("add `dataset = \"…\"` or `text = \"…\"` at the top of the recipe"));
            }
            return;
        };
        let [is_there, has_valid] = [split, Split::Valid].map(|split| dataset.has(split));
        if !is_there {
            let message = format!("the dataset has no {} split, and this stage reads it", split.name());
            self.refuse(place, Mistake::new(message));
        }
        if matches!(stage, Stage::LearnScales(_)) && !has_valid {
            let mistake = Mistake::new("the dataset has no valid split, on which learnt scales are compared with those before");
            self.refuse(place, mistake.hint("name one in the dataset's description: text that is neither trained nor tested on"));
        }
        if let Stage::Verify(settings) = stage {
            // A split that can't be read is refused already, and does not say whether it has answers.
            let has_answers = self.rows.pairs(Split::Test).map(|pairs| pairs.iter().all(|pair| !pair.prompt.is_empty()));
            let is_scored = has_answers.unwrap_or(self.rows.text(Split::Test).is_none());
            for (key, is_set) in [
                ("score", settings.score.is_some()),
                ("score_drop", settings.score_drop.is_some()),
                ("teacher_score", settings.teacher_score.is_some()),
            ] {
                if is_set && !is_scored {
                    let message = format!("{key} needs a dataset with answers (prompt and completion); this one is running text");
                    self.refuse(&place.then(key), Mistake::new(message));
                }
            }
        }
    }

    fn step(&mut self, index: usize, stage: &Stage, chain: &Chain, data: &Option<Fingerprint>) -> Step {
        let place = &Place::stage(index, stage.name());
        let input = chain.size(&chain.current).expect("every step's output was pushed under its index").clone();
        let name = format!("{}-{}", index + 1, stage.name());
        let mut fingerprint = Fingerprint::new(stage.name()).settings(stage).settings(&self.recipe.seed).text(&input.fingerprint);
        if let Some(data) = data.as_ref().filter(|_| split_of(stage).is_some()) {
            fingerprint = fingerprint.text(&data.hex());
        }
        let mut step = Step {
            bookkeeping: bookkeeping(&self.recipe.run_folder()).join(&name),
            folder: self.recipe.run_folder().join(&name),
            name,
            stage: stage.clone(),
            fingerprint: String::new(),
            input: chain.current.clone(),
            beside: None,
            student: None,
            quantization: self.quantization_after(index),
            output: input.clone(),
            instead: Vec::new(),
            peak_memory_bytes: 0,
            spilled_bytes: 0,
        };
        if step.holds_foreign_files() {
            let mistake = Mistake::new(crate::Error::NotOurs(step.folder.clone()).to_string());
            self.refuse(place, mistake);
        }
        let fingerprint = match stage {
            Stage::Train(train) => {
                self.check_training(&train.training(), &input, place);
                step.output.become_dense(input.architecture.clone(), Dtype::F32);
                step.peak_memory_bytes = memory::training(&input.architecture, None, &train.training(), train.quantization_aware);
                fingerprint
            }
            Stage::Distill(distill) => self.distill(distill, place, chain, &mut step, fingerprint),
            Stage::Prune(settings) => {
                self.prune(settings, place, &input, &mut step);
                fingerprint
            }
            Stage::Quantize(settings) => {
                if matches!(chain.current, Origin::New(_)) {
                    let mistake = Mistake::new(
                        "quantize has no checkpoint: the chain starts with new weights and nothing is trained before",
                    );
                    self.refuse(place, mistake.hint("add [stage.train] before it"));
                }
                self.quantize(settings, place, &input, &mut step);
                fingerprint
            }
            Stage::LearnScales(settings) => self.learn_scales(settings, place, chain, &mut step, fingerprint),
            Stage::Verify(settings) => {
                let reference = chain.models.iter().rev().find(|(_, size)| !size.is_artifact);
                step.beside = reference.map(|(origin, _)| origin.clone());
                let artifact_bytes = input.weight_bytes + input.decoded_bytes;
                step.peak_memory_bytes = memory::verifying(&input.architecture, artifact_bytes, settings.window);
                self.check_measuring_by(settings, &place.then("window"), Split::Test, &input);
                fingerprint.settings(&self.recipe.budget)
            }
        };
        self.check_measuring(Split::Test, &step.output);
        step.output.companion_bytes = match &step.output.tokenizer {
            TokenizerOf::Model(path) => self.companions.get(path).copied(),
            TokenizerOf::Trained(_) => None,
        };
        let fingerprint = match &step.quantization {
            Some(quantization) => aware::fingerprint(fingerprint, quantization, &step.output.architecture),
            None => fingerprint,
        };
        step.fingerprint = fingerprint.hex();
        step.output.fingerprint = step.fingerprint.clone();
        step
    }

    fn prune(&mut self, settings: &Prune, place: &Place, input: &ModelSize, step: &mut Step) {
        for refusal in prune::refusals(settings, &input.architecture) {
            if input.is_settled || refusal.is_of_settings() {
                self.refuse(&place.then(refusal.key()), Mistake::new(refusal.to_string()));
            }
        }
        match prune::resolve(settings, &input.architecture) {
            Ok(architecture) => step.output.become_dense(architecture, input.dtype),
            Err(_) => step.output.is_settled = false,
        }
        if split_of(&step.stage).is_some() {
            self.check_calibration(input, &place.then("importance"), "set importance to \"magnitude\"");
        }
        step.peak_memory_bytes = memory::pruning(&input.architecture);
    }

    fn quantize(&mut self, settings: &Quantize, place: &Place, input: &ModelSize, step: &mut Step) {
        let mut quantization = quantize::Quantization::from(settings);
        step.output.stored_as = quantization.name();
        let mut refusals = Vec::new();
        let target = quantize::Target::of(settings);
        let mut most_bytes = None;
        if let Some(target) = &target {
            step.output.stored_as = target.name(&quantization);
            refusals = target.refusals(&quantization, &input.architecture, input.dtype);
            most_bytes = target.most_bytes(&quantization, &input.architecture, input.dtype).ok();
            quantization = target.smallest(&quantization, &input.architecture);
        }
        refusals.extend(quantize::refusals(&quantization, &input.architecture, input.dtype));
        match quantize::resolve(&quantization, &input.architecture, input.dtype) {
            Ok(sizes) => {
                (step.output.weight_bytes, step.output.decoded_bytes) = (sizes.artifact_bytes, sizes.decoded_bytes);
                step.instead = sizes.instead;
            }
            Err(refusal) if refusals.is_empty() => refusals.push(refusal),
            Err(_) => {}
        }
        for refusal in refusals {
            if input.is_settled || refusal.is_of_settings() {
                let place = refusal.key().map_or_else(|| place.clone(), |key| place.then(key));
                let hint = refusal.hint(quantization.allows(Alternative::Dense)).map(str::to_owned);
                self.refuse(&place, Mistake { hint, ..Mistake::new(refusal.to_string()) });
            }
        }
        step.output.is_artifact = true;
        step.output.describe_artifact(self.recipe, target.is_some() || !quantization.overrides.is_empty());
        if let Some(most_bytes) = most_bytes {
            step.output.weight_bytes = most_bytes;
            step.output.is_at_most = true;
        }
        let window = crate::run::calibration_window(&input.architecture);
        let allows_less = quantization.allows(Alternative::LessText);
        if quantization.calibrates() {
            let wanted = settings.calibration_tokens.next_multiple_of(window);
            let asked =
                reads::Asked { key: "calibration_tokens", fitted: 0, wanted, least: if allows_less { window } else { wanted } };
            self.check_quantization_text(input, place, asked, QUANTIZES_WITHOUT_TEXT);
        }
        if target.is_some() || settings.measure_kl {
            let otherwise = if target.is_some() { "set bits instead of a target" } else { "leave measure_kl out" };
            let [scored, fitted] = quantize::tokens_of_candidates(settings, window);
            let wanted = scored + fitted;
            let least = match (allows_less, fitted) {
                (false, _) => wanted,
                (true, 0) => window,
                (true, _) => 2 * window,
            };
            let asked = reads::Asked { key: "sensitivity_tokens", fitted, wanted, least };
            self.check_quantization_text(input, place, asked, otherwise);
        }
        self.remember_quantizing(settings, &quantization, target.as_ref(), input, step);
    }

    /// What memory a quantization takes, its activations on the disk where that is more than there may be.
    fn remember_quantizing(
        &self,
        settings: &Quantize,
        quantization: &quantize::Quantization,
        target: Option<&quantize::Target>,
        input: &ModelSize,
        step: &mut Step,
    ) {
        let window = crate::run::calibration_window(&input.architecture);
        let window_measured = match self.dataset.as_ref().is_some_and(|dataset| dataset.has(Split::Test)) {
            true => self.measured_by.window,
            false => 0,
        };
        let measured = (step.output.weight_bytes + step.output.decoded_bytes, window_measured);
        let text = (settings.calibration_tokens, window);
        let needed = memory::quantizing(&input.architecture, quantization, text, measured);
        // Without a target each matrix is measured as the one thing that it becomes.
        let candidates = target.map(|target| target.candidates.len()).or(settings.measure_kl.then_some(1));
        let sensing = candidates.map_or(0, |candidates| {
            let tokens = settings.sensitivity_tokens * (1 + candidates) + settings.tokens_of_a_candidate();
            memory::sensing(&input.architecture, tokens)
        });
        let is_too_much = |bytes: u64| self.max_memory_bytes.is_some_and(|most| bytes > most);
        step.peak_memory_bytes = match needed.spilled {
            Some(spilled) if is_too_much(needed.in_memory) => {
                step.spilled_bytes = needed.activations;
                spilled
            }
            _ => needed.in_memory,
        };
        step.peak_memory_bytes = step.peak_memory_bytes.max(sensing);
    }

    fn distill(
        &mut self,
        distill: &Distill,
        place: &Place,
        chain: &Chain,
        step: &mut Step,
        fingerprint: Fingerprint,
    ) -> Fingerprint {
        let teacher = self.teacher(distill.teacher.as_deref(), "distill", place, chain);
        let keys = distill.training();
        let mut fingerprint = fingerprint;
        let student = match (&distill.student, &teacher) {
            (None, _) => Some(step.output.clone()),
            (Some(Student::New(sizes)), teacher) => {
                step.student = Some(Origin::New(*sizes));
                let mut tokenizer = TokenizerOf::Trained(sizes.vocab_size);
                self.architecture(sizes, &place.then("student").then("new")).map(|mut architecture| {
                    if let Some((_, teacher)) = teacher {
                        architecture.bos_token_id = teacher.architecture.bos_token_id;
                        architecture.eos_token_ids.clone_from(&teacher.architecture.eos_token_ids);
                        tokenizer = teacher.tokenizer.clone();
                    }
                    dense(architecture, Dtype::F32, tokenizer, String::new())
                })
            }
            (Some(Student::Layers(_)), None) => None,
            (Some(Student::Layers(layers)), Some((origin, teacher))) => {
                step.student = Some(origin.clone());
                self.some_layers(*layers, teacher, &place.then("student").then("layers"))
            }
            (Some(Student::Checkpoint(path)), _) => {
                step.student = Some(Origin::Path(path.clone()));
                let size = self.size_of_path(path, &place.then("student").then("checkpoint"));
                fingerprint = fingerprint.text(size.as_ref().map_or("", |size| &size.fingerprint));
                size
            }
        };
        if let Some(student) = &student {
            self.check_training(&keys, student, place);
        }
        match &student {
            Some(student) => {
                step.output =
                    ModelSize { tokenizer: student.tokenizer.clone(), is_settled: student.is_settled, ..step.output.clone() };
                step.output.become_dense(student.architecture.clone(), Dtype::F32);
            }
            None => step.output.is_settled = false,
        }
        let Some((origin, teacher)) = teacher else { return fingerprint };
        self.check_teacher_reads(&keys, &teacher, place);
        if let Some(student) = &student {
            if !self.have_one_vocabulary(student, &teacher, distill.student.as_ref(), place) {
                // As if it were mended, so that the next stage does not stumble over the same thing.
                step.output.architecture.vocab_size = teacher.architecture.vocab_size;
                step.output.tokenizer = teacher.tokenizer.clone();
            }
            step.peak_memory_bytes =
                memory::training(&student.architecture, Some(&teacher.architecture), &keys, distill.quantization_aware);
        }
        step.beside = Some(origin);
        fingerprint.text(&teacher.fingerprint)
    }

    fn learn_scales(
        &mut self,
        settings: &LearnScales,
        place: &Place,
        chain: &Chain,
        step: &mut Step,
        fingerprint: Fingerprint,
    ) -> Fingerprint {
        let (artifact, keys) = (step.output.clone(), settings.training());
        self.check_training(&keys, &artifact, place);
        self.check_measuring(Split::Valid, &artifact);
        let Some((origin, teacher)) = self.teacher(settings.teacher.as_deref(), "learn_scales", place, chain) else {
            return fingerprint;
        };
        self.check_teacher_reads(&keys, &teacher, place);
        self.have_one_vocabulary(&artifact, &teacher, None, place);
        step.peak_memory_bytes =
            memory::learning_scales(&artifact.architecture, &teacher.architecture, artifact.weight_bytes, &keys);
        step.beside = Some(origin);
        fingerprint.text(&teacher.fingerprint)
    }

    fn check_teacher_reads(&mut self, keys: &TrainingKeys, teacher: &ModelSize, place: &Place) {
        let most = teacher.architecture.max_position_embeddings;
        if keys.sequence_length > most {
            let message =
                format!("sequence_length {} is longer than the teacher's max_position_embeddings {most}", keys.sequence_length);
            self.refuse(&place.then("sequence_length"), Mistake::new(message));
        }
    }

    /// So many of the teacher's layers.
    fn some_layers(&mut self, layers: usize, teacher: &ModelSize, place: &Place) -> Option<ModelSize> {
        let available = teacher.architecture.layers.len();
        if layers >= available {
            if teacher.is_settled {
                let message = format!("layers {layers} is not fewer than the teacher's {available}");
                self.refuse(place, Mistake::new(message));
            }
            return None;
        }
        let mut student = teacher.clone();
        let kept = evenly_spaced(available, layers);
        student.architecture.layers = kept.into_iter().map(|layer| teacher.architecture.layers[layer]).collect();
        Some(student)
    }

    /// The teacher that a `stage` names, or the largest dense model of the chain so far.
    fn teacher(&mut self, named: Option<&Path>, stage: &str, place: &Place, chain: &Chain) -> Option<(Origin, ModelSize)> {
        let is_trained = |(origin, size): &&(Origin, ModelSize)| !matches!(origin, Origin::New(_)) && !size.is_artifact;
        let trained: Vec<&(Origin, ModelSize)> = chain.models.iter().filter(is_trained).collect();
        let Some(named) = named else {
            // Of equal ones the latest: it was trained the longest.
            let largest = trained.into_iter().max_by_key(|(_, size)| size.architecture.parameters());
            if largest.is_none() {
                let mistake = Mistake::new(format!(
                    "{stage} has no teacher: the chain starts with new weights and nothing is trained before"
                ));
                self.refuse(place, mistake.hint("add [stage.train] before it, or set `teacher` to a checkpoint"));
            }
            return largest.cloned();
        };
        let place = place.then("teacher");
        if named == Path::new("model") {
            let start = chain.models[0].clone();
            if matches!(start.0, Origin::New(_)) {
                self.refuse(&place, Mistake::new("teacher \"model\" has new weights: it knows nothing yet"));
                return None;
            }
            return Some(start);
        }
        for (origin, size) in &chain.models {
            if let Origin::Step(index) = origin {
                let name = format!("{}-{}", index + 1, self.recipe.stages[*index].name());
                if named == Path::new(&name) && size.is_artifact {
                    let mistake = Mistake::new(format!("teacher \"{name}\" is quantized"));
                    self.refuse(&place, mistake.hint("name a dense model, such as what was quantized"));
                    return None;
                }
                if named == Path::new(&name) {
                    return Some((origin.clone(), size.clone()));
                }
            }
        }
        let size = self.size_of_path(named, &place)?;
        Some((Origin::Path(named.to_owned()), size))
    }
}

/// The way out for a quantization whose text does not do.
const QUANTIZES_WITHOUT_TEXT: &str =
    "leave out what looks at text: method \"gptq\", clipping \"activation\", scaling and activations \"int8_static\"";

/// The split that a stage reads.
pub(crate) fn split_of(stage: &Stage) -> Option<Split> {
    match stage {
        Stage::Train(_) | Stage::Distill(_) | Stage::LearnScales(_) => Some(Split::Train),
        Stage::Prune(prune) => (prune.importance == Importance::Activation && prune::ranks_units(prune)).then_some(Split::Train),
        Stage::Quantize(settings) => {
            let calibrates = quantize::Quantization::from(settings).calibrates();
            (calibrates || settings.measure_kl || quantize::Target::of(settings).is_some()).then_some(Split::Train)
        }
        Stage::Verify(_) => Some(Split::Test),
    }
}
