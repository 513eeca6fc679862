//! The plan: a recipe checked against the files, with every step's inputs, outputs and sizes. Every refusal happens here, before
//! any work.

use std::path::{Path, PathBuf};

use compressor_format::{
    Architecture, Attention, Checkpoint, Dataset, Distill, Dtype, Family, Importance, LayerShape, Mistake, Mlp, ModelSource,
    Norm, NormKind, Place, Positions, Prune, Quantize, Recipe, RecipeText, RotaryScaling, Sizes, Split, Stage, Student,
    Tokenizer, TrainingKeys, Verify,
};

use crate::fingerprint::Fingerprint;
use crate::{memory, prune, quantize};

/// A recipe that can be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub recipe: Recipe,
    /// Where everything is written.
    pub run_folder: PathBuf,
    /// What is trained and measured on.
    pub dataset: Option<Dataset>,
    /// Where the chain starts.
    pub start: Origin,
    steps: Vec<Step>,
}

/// One stage with its paths and sizes.
#[derive(Clone, Debug)]
pub struct Step {
    /// Number and stage: `2-distill`. Also the name of its folder.
    pub name: String,
    /// Where its result goes.
    pub folder: PathBuf,
    /// Where its record and its training state are kept.
    pub bookkeeping: PathBuf,
    /// What is done.
    pub stage: Stage,
    /// BLAKE3 of its settings, its inputs and the format version.
    pub fingerprint: String,
    /// The model that goes in.
    pub input: Origin,
    /// The teacher of a distillation; the dense reference of a verification.
    pub beside: Option<Origin>,
    /// The student's source, where it is not the input.
    pub student: Option<Origin>,
    /// The model that comes out.
    pub output: ModelSize,
    /// Estimated peak memory, in bytes.
    pub peak_memory_bytes: u64,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// New weights of these sizes.
    New(Sizes),
    /// A folder or a GGUF file.
    Path(PathBuf),
    /// What the step with this index makes.
    Step(usize),
}

/// A model's description and its bytes on disk.
#[derive(Clone, Debug)]
pub struct ModelSize {
    /// The model.
    pub architecture: Architecture,
    /// The type of its dense weights.
    pub dtype: Dtype,
    /// `f32`, `bf16`, or the scheme.
    pub stored_as: String,
    /// Bytes of `model.safetensors`: exact for artifacts, without the header for checkpoints.
    pub weight_bytes: u64,
    /// Whether it is quantized.
    pub is_artifact: bool,
    /// What it depends on.
    fingerprint: String,
}

impl Plan {
    /// Checks a recipe against the files it names. Nothing is written and nothing is computed but hashes.
    ///
    /// # Errors
    /// Every refusal there is, each at its line.
    pub fn new(recipe: Recipe, text: Option<&RecipeText>) -> Result<Self, Vec<Mistake>> {
        let mut planner = Planner { recipe: &recipe, text, mistakes: Vec::new(), dataset: None, pairs: None };
        let steps = planner.plan();
        let (mistakes, dataset) = (planner.mistakes, planner.dataset);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let start = start_of(&recipe);
        Ok(Self { run_folder: recipe.run_folder(), start, dataset, steps, recipe })
    }

    /// The steps, in the order they run.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Lets a plan of one stage write its result into `folder` itself.
    #[must_use]
    pub fn into_folder(mut self, folder: PathBuf) -> Self {
        for step in &mut self.steps {
            step.folder.clone_from(&folder);
        }
        self
    }

    /// Where the files of an origin lie.
    pub fn path_of(&self, origin: &Origin) -> Option<PathBuf> {
        match origin {
            Origin::New(_) => None,
            Origin::Path(path) => Some(path.clone()),
            Origin::Step(index) => Some(self.steps[*index].folder.clone()),
        }
    }

    /// How an origin is called in tables.
    pub fn name_of(&self, origin: &Origin) -> String {
        match origin {
            Origin::New(_) => "new".to_owned(),
            Origin::Path(path) => path.display().to_string(),
            Origin::Step(index) => self.steps[*index].name.clone(),
        }
    }
}

fn start_of(recipe: &Recipe) -> Origin {
    match &recipe.model {
        ModelSource::Path(path) => Origin::Path(path.clone()),
        ModelSource::New(sizes) => Origin::New(*sizes),
    }
}

struct Planner<'a> {
    recipe: &'a Recipe,
    text: Option<&'a RecipeText>,
    mistakes: Vec<Mistake>,
    dataset: Option<Dataset>,
    /// Pairs of the train split; `None` for text, whose rows are known only once it is tokens.
    pairs: Option<usize>,
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

impl Planner<'_> {
    fn refuse(&mut self, place: &Place, mistake: Mistake) {
        let line = self.text.and_then(|text| text.line(place));
        self.mistakes.push(Mistake { line, ..mistake });
    }

    fn plan(&mut self) -> Vec<Step> {
        self.check_folder();
        let dataset_fingerprint = self.open_dataset();
        let start = start_of(self.recipe);
        let mut chain = Chain { current: start.clone(), models: Vec::new() };
        let Some(size) = self.size_of_start(&start, &dataset_fingerprint) else {
            // Without the model nothing that follows can be judged, but the order of the stages still can.
            self.check_order();
            return Vec::new();
        };
        chain.models.push((start, size));
        self.check_order();
        let mut steps = Vec::new();
        for (index, stage) in self.recipe.stages.iter().enumerate() {
            let place = Place::stage(index, stage.name());
            let step = self.step(index, stage, &place, &chain, &dataset_fingerprint);
            let Some(step) = step else { return Vec::new() };
            if !matches!(stage, Stage::Verify(_)) {
                chain.current = Origin::Step(index);
                chain.models.push((Origin::Step(index), step.output.clone()));
            }
            steps.push(step);
        }
        steps
    }

    /// The run folder must be writable; the nearest folder that exists tells.
    fn check_folder(&mut self) {
        let folder = self.recipe.run_folder();
        let existing = folder.ancestors().find(|path| path.exists() || path.as_os_str().is_empty()).unwrap_or(Path::new(""));
        let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
        let probe = existing.join(format!(".compressor-probe-{}", std::process::id()));
        let written = match existing.is_dir() {
            true => fs_err::write(&probe, b"probe").map_err(|error| error.to_string()),
            false => Err(format!("{} is not a folder", existing.display())),
        };
        let _ = std::fs::remove_file(&probe);
        if let Err(error) = written {
            let mistake = Mistake::new(format!("the run folder {} can't be written: {error}", folder.display()))
                .hint("set `output` to a folder on a disk that can be written");
            self.refuse(&Place::root("output"), mistake);
        }
    }

    /// Opens the dataset and hashes its inputs.
    fn open_dataset(&mut self) -> Option<Fingerprint> {
        let path = self.recipe.dataset.as_ref()?;
        let place = Place::root("dataset");
        let opened = Dataset::load(path).and_then(|dataset| {
            let pairs = dataset.check(self.recipe.seed)?;
            let fingerprint = Fingerprint::new("dataset").settings(&self.recipe.seed);
            let fingerprint = dataset.inputs().iter().try_fold(fingerprint, |fingerprint, input| fingerprint.file(input))?;
            Ok((dataset, pairs, fingerprint.file(path)?))
        });
        match opened {
            Ok((dataset, pairs, fingerprint)) => {
                self.dataset = Some(dataset);
                self.pairs = pairs;
                Some(fingerprint)
            }
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
                if self.recipe.dataset.is_none() {
                    let mistake = Mistake::new("a new model needs a `dataset`: its tokenizer is trained on it");
                    self.refuse(&Place::root("model"), mistake);
                }
                Some(dense(architecture(sizes), Dtype::F32, fingerprint.hex()))
            }
            Origin::Path(path) => self.size_of_path(path, &Place::root("model").then("path")),
            Origin::Step(_) => unreachable!("a chain starts outside of itself"),
        }
    }

    fn size_of_path(&mut self, path: &Path, place: &Place) -> Option<ModelSize> {
        let opened = Checkpoint::open(path).and_then(|checkpoint| {
            let fingerprint = Fingerprint::new("checkpoint");
            let fingerprint = checkpoint.files().iter().try_fold(fingerprint, |fingerprint, file| fingerprint.file(file))?;
            let mut size = dense(checkpoint.architecture().clone(), checkpoint.dtype(), fingerprint.hex());
            size.weight_bytes = checkpoint.weight_bytes()?;
            Ok(size)
        });
        match opened {
            Ok(size) => Some(size),
            Err(error) => {
                self.refuse(place, Mistake::new(error.to_string()));
                None
            }
        }
    }

    /// Refuses orders that can't be: what each stage takes is fixed.
    fn check_order(&mut self) {
        let mut quantized = false;
        for (index, stage) in self.recipe.stages.iter().enumerate() {
            let place = Place::stage(index, stage.name());
            match stage {
                Stage::Quantize(_) if !quantized => quantized = true,
                Stage::Verify(_) if quantized => {}
                Stage::Verify(_) => {
                    let mistake = Mistake::new("verify needs an artifact, and no quantize stage comes before it");
                    self.refuse(&place, mistake.hint("add [stage.quantize] before [stage.verify], or remove this stage"));
                }
                Stage::Train(_) | Stage::Distill(_) | Stage::Prune(_) | Stage::Quantize(_) if quantized => {
                    let mistake = Mistake::new(format!("{} can't follow quantize: it takes dense weights", stage.name()));
                    self.refuse(&place, mistake.hint(format!("move [stage.{}] before [stage.quantize]", stage.name())));
                }
                Stage::Train(_) | Stage::Distill(_) | Stage::Prune(_) | Stage::Quantize(_) => {}
            }
        }
    }

    fn step(&mut self, index: usize, stage: &Stage, place: &Place, chain: &Chain, data: &Option<Fingerprint>) -> Option<Step> {
        let input = chain.size(&chain.current)?.clone();
        let name = format!("{}-{}", index + 1, stage.name());
        let folder = self.recipe.run_folder().join(&name);
        let fingerprint = Fingerprint::new(stage.name()).settings(stage).settings(&self.recipe.seed).text(&input.fingerprint);
        let uses_data = match stage {
            Stage::Train(_) | Stage::Distill(_) | Stage::Verify(_) => true,
            Stage::Prune(prune) => prune.importance == Importance::Activation && prune::ranks_units(prune),
            Stage::Quantize(_) => false,
        };
        let fingerprint = match (uses_data, data) {
            (true, Some(data)) => fingerprint.text(&data.hex()),
            (true, None) => {
                if self.recipe.dataset.is_none() {
                    let mistake = Mistake::new(format!("{} needs a `dataset`, and the recipe names none", stage.name()));
                    self.refuse(place, mistake.hint("add `dataset = \"…\"` at the top of the recipe"));
                }
                fingerprint
            }
            (false, _) => fingerprint,
        };
        let mut step = Step {
            bookkeeping: self.recipe.run_folder().join(".steps").join(&name),
            name,
            folder,
            stage: stage.clone(),
            fingerprint: String::new(),
            input: chain.current.clone(),
            beside: None,
            student: None,
            output: input.clone(),
            peak_memory_bytes: 0,
        };
        let fingerprint = match stage {
            Stage::Train(train) => {
                self.check_training(&train.training(), &input, place);
                step.output = dense(input.architecture.clone(), Dtype::F32, String::new());
                step.peak_memory_bytes = memory::training(&input.architecture, None, &train.training());
                fingerprint
            }
            Stage::Distill(distill) => self.distill(distill, place, chain, &mut step, fingerprint)?,
            Stage::Prune(settings) => {
                for refusal in prune::refusals(settings, &input.architecture) {
                    self.refuse(&place.then(refusal.key()), Mistake::new(refusal.to_string()));
                }
                step.output = dense(prune::resolve(settings, &input.architecture).ok()?, input.dtype, String::new());
                self.check_calibration(settings, place);
                step.peak_memory_bytes = memory::pruning(&input.architecture);
                fingerprint
            }
            Stage::Quantize(settings) => {
                step.output = self.quantize(settings, place, &input)?;
                step.peak_memory_bytes = memory::quantizing(&input.architecture, step.output.weight_bytes);
                fingerprint
            }
            Stage::Verify(settings) => {
                let reference = chain.models.iter().rev().find(|(_, size)| !size.is_artifact);
                step.beside = reference.map(|(origin, _)| origin.clone());
                self.check_verify(settings, place, &input);
                step.peak_memory_bytes = memory::verifying(&input.architecture, input.weight_bytes, settings.window);
                fingerprint.settings(&self.recipe.budget)
            }
        };
        step.fingerprint = fingerprint.hex();
        step.output.fingerprint = step.fingerprint.clone();
        Some(step)
    }

    fn distill(
        &mut self,
        distill: &Distill,
        place: &Place,
        chain: &Chain,
        step: &mut Step,
        fingerprint: Fingerprint,
    ) -> Option<Fingerprint> {
        let (teacher_origin, teacher) = self.teacher(distill, place, chain)?;
        let keys = distill.training();
        let (student, fingerprint) = match &distill.student {
            None => (step.output.clone(), fingerprint),
            Some(Student::New(sizes)) => {
                step.student = Some(Origin::New(*sizes));
                let mut architecture = architecture(sizes);
                architecture.bos_token_id = teacher.architecture.bos_token_id;
                architecture.eos_token_ids.clone_from(&teacher.architecture.eos_token_ids);
                (dense(architecture, Dtype::F32, String::new()), fingerprint)
            }
            Some(Student::Layers(layers)) => {
                let place = place.then("student").then("layers");
                let available = teacher.architecture.layers.len();
                if *layers >= available {
                    let message = format!("layers {layers} is not fewer than the teacher's {available}");
                    self.refuse(&place, Mistake::new(message));
                    return None;
                }
                step.student = Some(teacher_origin.clone());
                let mut architecture = teacher.architecture.clone();
                architecture.layers =
                    evenly_spaced(available, *layers).into_iter().map(|layer| architecture.layers[layer]).collect();
                (dense(architecture, Dtype::F32, String::new()), fingerprint)
            }
            Some(Student::Checkpoint(path)) => {
                let size = self.size_of_path(path, &place.then("student").then("checkpoint"))?;
                step.student = Some(Origin::Path(path.clone()));
                let fingerprint = fingerprint.text(&size.fingerprint);
                (size, fingerprint)
            }
        };
        let (ours, theirs) = (student.architecture.vocab_size, teacher.architecture.vocab_size);
        if ours != theirs {
            let message = format!("the student's vocabulary of {ours} tokens differs from the teacher's {theirs}");
            let mistake =
                Mistake::new(message).hint("both must predict the same tokens; give the student the teacher's vocab_size");
            self.refuse(&place.then("student"), mistake);
            return None;
        }
        self.check_tokenizers(&step.student, &teacher_origin, place);
        self.check_training(&keys, &student, place);
        step.peak_memory_bytes = memory::training(&student.architecture, Some(&teacher.architecture), &keys);
        step.output = dense(student.architecture, Dtype::F32, String::new());
        step.beside = Some(teacher_origin);
        Some(fingerprint.text(&teacher.fingerprint))
    }

    /// The teacher that the recipe names, or the largest model of the chain so far.
    fn teacher(&mut self, distill: &Distill, place: &Place, chain: &Chain) -> Option<(Origin, ModelSize)> {
        let trained: Vec<&(Origin, ModelSize)> =
            chain.models.iter().filter(|(origin, _)| !matches!(origin, Origin::New(_))).collect();
        let Some(named) = &distill.teacher else {
            // Of equal ones the latest: it was trained the longest.
            let largest = trained.into_iter().max_by_key(|(_, size)| size.architecture.parameters());
            if largest.is_none() {
                let mistake =
                    Mistake::new("distill has no teacher: the chain starts with new weights and nothing is trained before");
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
                if named == Path::new(&name) {
                    return Some((origin.clone(), size.clone()));
                }
            }
        }
        let size = self.size_of_path(named, &place)?;
        Some((Origin::Path(named.clone()), size))
    }

    fn check_tokenizers(&mut self, student: &Option<Origin>, teacher: &Origin, place: &Place) {
        let (Some(Origin::Path(student)), Origin::Path(teacher)) = (student, teacher) else { return };
        let tokens =
            |path: &PathBuf| Tokenizer::open(path.join("tokenizer.json")).ok().map(|tokenizer| tokenizer.json().to_vec());
        if let (Some(ours), Some(theirs)) = (tokens(student), tokens(teacher))
            && ours != theirs
        {
            let message = format!("student {} and teacher {} have different tokenizers", student.display(), teacher.display());
            self.refuse(&place.then("student"), Mistake::new(message));
        }
    }

    fn check_training(&mut self, keys: &TrainingKeys, model: &ModelSize, place: &Place) {
        let most = model.architecture.max_position_embeddings;
        if keys.sequence_length > most {
            let message =
                format!("sequence_length {} is longer than the model's max_position_embeddings {most}", keys.sequence_length);
            self.refuse(&place.then("sequence_length"), Mistake::new(message));
        }
        if let Some(pairs) = self.pairs.filter(|pairs| *pairs < keys.batch_size) {
            let message = format!("batch_size {} is more than the train split's {pairs} examples", keys.batch_size);
            let mistake = Mistake::new(message).hint("lower it; gradient_accumulation puts several batches into one step");
            self.refuse(&place.then("batch_size"), mistake);
        }
        self.check_split(Split::Train, place);
    }

    fn check_calibration(&mut self, settings: &Prune, place: &Place) {
        if settings.importance == Importance::Activation && prune::ranks_units(settings) {
            self.check_split(Split::Train, place);
        }
    }

    fn check_split(&mut self, split: Split, place: &Place) {
        if let Some(dataset) = &self.dataset
            && !dataset.has(split)
        {
            let message = format!("the dataset has no {} split, and this stage reads it", split.name());
            self.refuse(place, Mistake::new(message));
        }
    }

    fn quantize(&mut self, settings: &Quantize, place: &Place, input: &ModelSize) -> Option<ModelSize> {
        let quantization = quantize::Quantization::from(settings);
        match quantize::resolve(&quantization, &input.architecture, input.dtype) {
            Ok(sizes) => Some(ModelSize {
                architecture: input.architecture.clone(),
                dtype: input.dtype,
                stored_as: quantization.name(),
                weight_bytes: sizes.artifact_bytes,
                is_artifact: true,
                fingerprint: String::new(),
            }),
            Err(refusal) => {
                let place = refusal.key().map_or_else(|| place.clone(), |key| place.then(key));
                self.refuse(&place, Mistake::new(refusal.to_string()));
                None
            }
        }
    }

    fn check_verify(&mut self, settings: &Verify, place: &Place, input: &ModelSize) {
        let Some(dataset) = &self.dataset else { return };
        let scored = dataset.scored().unwrap_or(false);
        for (key, is_set) in [
            ("score", settings.score.is_some()),
            ("score_drop", settings.score_drop.is_some()),
            ("teacher_score", settings.teacher_score.is_some()),
        ] {
            if is_set && !scored {
                let message = format!("{key} needs a dataset with answers (prompt and completion); this one is running text");
                self.refuse(&place.then(key), Mistake::new(message));
            }
        }
        let most = input.architecture.max_position_embeddings;
        if !scored && settings.window > most {
            let message = format!("window {} is longer than the model's max_position_embeddings {most}", settings.window);
            self.refuse(&place.then("window"), Mistake::new(message));
        }
        self.check_split(Split::Test, place);
    }
}

fn dense(architecture: Architecture, dtype: Dtype, fingerprint: String) -> ModelSize {
    let weight_bytes = architecture.parameters() * dtype.bytes() as u64;
    ModelSize { architecture, dtype, stored_as: dtype.to_string(), weight_bytes, is_artifact: false, fingerprint }
}

/// `count` of `available` layers, the first and the last among them.
pub(crate) fn evenly_spaced(available: usize, count: usize) -> Vec<usize> {
    match count {
        0 => Vec::new(),
        1 => vec![0],
        _ => (0..count).map(|index| (index * (available - 1) + (count - 1) / 2) / (count - 1)).collect(),
    }
}

/// The architecture of new sizes.
pub(crate) fn architecture(sizes: &Sizes) -> Architecture {
    let gpt2 = sizes.family == Family::Gpt2;
    let heads = sizes.heads;
    let layer = LayerShape {
        heads,
        kv_heads: if gpt2 { heads } else { sizes.kv_heads.unwrap_or(heads) },
        intermediate_size: sizes.intermediate_size,
    };
    let rotary = Positions::Rotary { theta: sizes.rope_theta, scaling: RotaryScaling::None };
    Architecture {
        family: sizes.family,
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.hidden_size,
        head_dim: sizes.head_dim.unwrap_or(sizes.hidden_size / heads),
        max_position_embeddings: sizes.max_position_embeddings,
        layers: vec![layer; sizes.layers],
        norm: Norm { kind: if gpt2 { NormKind::Layer } else { NormKind::Rms }, epsilon: 1e-5 },
        positions: if gpt2 { Positions::Learned } else { rotary },
        attention: Attention {
            qkv_bias: gpt2 || sizes.family == Family::Qwen2,
            output_bias: gpt2,
            qk_norm: sizes.family == Family::Qwen3,
        },
        mlp: Mlp {
            gated: !gpt2,
            activation: if gpt2 { compressor_format::Activation::GeluTanh } else { compressor_format::Activation::Silu },
            bias: gpt2,
        },
        tied_embeddings: sizes.tied_embeddings,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}
