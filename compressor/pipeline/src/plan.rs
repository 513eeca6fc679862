//! The plan: a recipe checked against the files, with every step's inputs, outputs and sizes. Every refusal happens here, before
//! any work.

use std::path::{Path, PathBuf};

use compressor_format::{
    Architecture, Attention, Dataset, Draft, Dtype, Family, LayerShape, Mistake, Mlp, ModelSource, Norm, NormKind, Positions,
    Recipe, RecipeText, RotaryScaling, Sizes, Split, Stage, Verify, by_line,
};

use crate::memory;
use crate::planner::Planner;
use crate::quantize::{Instead, Quantization};
use crate::record::Measurement;
use crate::rows::TokenizerOf;

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
    /// The model that the chain starts from.
    pub(crate) start_size: ModelSize,
    /// Where everything is kept of the steps that is no result.
    pub(crate) bookkeeping: PathBuf,
    /// The most memory that a step may take, in bytes, where it is limited.
    pub max_memory_bytes: Option<u64>,
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
    /// The teacher of a distillation or of learnt scales; the dense reference of a verification.
    pub beside: Option<Origin>,
    /// The student's source, where it is not the input.
    pub student: Option<Origin>,
    /// What the weights are rounded to in every forward pass of a quantization-aware training.
    pub quantization: Option<Quantization>,
    /// The model that comes out.
    pub output: ModelSize,
    /// Tensors that will not become what is asked for, as the recipe allows, as far as their sizes say so.
    pub instead: Vec<Instead>,
    /// Estimated peak memory, in bytes.
    pub peak_memory_bytes: u64,
    /// What a quantization keeps on the disk instead of in memory, in bytes: 0 unless memory is limited.
    pub spilled_bytes: u64,
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
    /// Bytes of the tokenizer and what else is copied beside the weights; `None` where the run will train the tokenizer.
    pub companion_bytes: Option<u64>,
    /// Bytes of `config.json` and `manifest.json`, estimated.
    pub(crate) description_bytes: u64,
    /// Bytes that the engine needs beside the file, where it writes codebooks out as dense weights.
    pub decoded_bytes: u64,
    /// Whether it is quantized.
    pub is_artifact: bool,
    /// Whether `weight_bytes` is what a target allows, and the file may be smaller.
    pub is_at_most: bool,
    /// Its tokenizer.
    pub(crate) tokenizer: TokenizerOf,
    /// Whether its sizes are known: not those that a refused stage would have set.
    pub(crate) is_settled: bool,
    /// What it depends on.
    pub(crate) fingerprint: String,
}

impl Plan {
    /// Checks a recipe against the files it names. Nothing is written and no weight is computed with.
    ///
    /// # Errors
    /// Every refusal there is, in the order of the lines.
    pub fn new(recipe: Recipe, text: Option<&RecipeText>) -> Result<Self, Vec<Mistake>> {
        Self::within(recipe, text, None)
    }

    /// As [`Self::new`], where no step may take more than `max_memory_bytes`: a quantization that would keeps its activations on the
    /// disk, and what can't be held all the same is refused.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn within(recipe: Recipe, text: Option<&RecipeText>, max_memory_bytes: Option<u64>) -> Result<Self, Vec<Mistake>> {
        let mut planner = Planner::new(&recipe, text);
        planner.max_memory_bytes = max_memory_bytes;
        let planned = planner.plan();
        let Planner { mistakes, dataset, .. } = planner;
        let Some((start_size, steps)) = planned.filter(|_| mistakes.is_empty()) else { return Err(by_line(mistakes)) };
        let (start, run_folder) = (start_of(&recipe), recipe.run_folder());
        let bookkeeping = bookkeeping(&run_folder);
        Ok(Self { run_folder, start, start_size, bookkeeping, dataset, max_memory_bytes, steps, recipe })
    }

    /// Checks a recipe as far as it could be read.
    ///
    /// # Errors
    /// Every mistake of its text, with what can be told of the files and of the stages' order all the same.
    pub fn of(draft: Draft) -> Result<Self, Vec<Mistake>> {
        Self::of_within(draft, None)
    }

    /// As [`Self::of`], with memory limited as in [`Self::within`].
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn of_within(draft: Draft, max_memory_bytes: Option<u64>) -> Result<Self, Vec<Mistake>> {
        if let Some(recipe) = draft.recipe().filter(|_| !draft.mistakes().is_empty()) {
            let mut planner = Planner::new(recipe, Some(draft.text()));
            planner.check_sources(&draft);
            let of_text = draft.mistakes().iter().map(|(_, mistake)| mistake.clone());
            return Err(by_line(of_text.chain(planner.mistakes).collect()));
        }
        let (recipe, text) = draft.finish()?;
        Self::within(recipe, Some(&text), max_memory_bytes)
    }

    /// The chain's largest checkpoint, the first of equal ones.
    pub(crate) fn largest_checkpoint(&self) -> Option<Origin> {
        if matches!(self.start, Origin::Path(_)) {
            return Some(self.start.clone());
        }
        let dense = self.steps.iter().enumerate().filter(|(_, step)| !step.output.is_artifact);
        let largest = dense.min_by_key(|(_, step)| std::cmp::Reverse(step.output.architecture.parameters()));
        largest.map(|(index, _)| Origin::Step(index))
    }

    /// The steps, in the order they run.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Lets a plan of one stage write its result into `folder` itself, which its run folder may hold.
    #[must_use]
    pub fn into_folder(mut self, folder: PathBuf) -> Self {
        for step in &mut self.steps {
            step.folder.clone_from(&folder);
        }
        self
    }

    /// How every model is measured: as the recipe's last verification does it, or in windows that every model can hold.
    pub(crate) fn measured_by(&self) -> Verify {
        let models = self.steps.iter().map(|step| &step.output).chain([&self.start_size]);
        let most = models.map(|model| model.architecture.max_position_embeddings).min();
        measured_by(&self.recipe, most.unwrap_or(usize::MAX))
    }

    /// What identifies that measurement; `None` where there is no text to measure on.
    pub(crate) fn measurement(&self) -> Option<Measurement> {
        let is_measured = self.dataset.as_ref().is_some_and(|dataset| dataset.has(Split::Test));
        is_measured.then(|| Measurement::of(&self.measured_by(), self.recipe.seed))
    }

    /// Why the model that the chain starts from is not measured: that takes more memory than there may be.
    pub(crate) fn memory_lacking_for_original(&self) -> Option<String> {
        let needed = memory::measuring(&self.start_size.architecture, self.measured_by().window);
        let allowed = self.max_memory_bytes.filter(|most| needed > *most)?;
        let [needed, allowed] = [needed, allowed].map(crate::figures::bytes);
        Some(format!("takes up to {needed} of memory, and --max-memory allows {allowed}"))
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

impl Step {
    /// Where its losses are written: beside a checkpoint; an artifact's folder has nothing that its manifest does not list.
    pub(crate) fn metrics_folder(&self) -> &Path {
        if self.output.is_artifact { &self.bookkeeping } else { &self.folder }
    }

    /// Whether its folder has something in it that no run of this recipe put there.
    pub(crate) fn holds_foreign_files(&self) -> bool {
        let is_used = std::fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_some());
        is_used && !self.bookkeeping.join(crate::record::MARK).exists()
    }
}

/// A token in a `tokenizer.json` with its merge, in bytes.
const TOKEN_BYTES: u64 = 48;
/// What `config.json` says of a checkpoint, in bytes, and generously.
const CONFIG_BYTES: u64 = 4 << 10;
/// What `config.json` and `manifest.json` say of an artifact beside its recipe, of each dense vector, and of a matrix where it is named.
const DESCRIPTION_BYTES: u64 = 5 << 10;
const VECTOR_BYTES: u64 = 140;
const NAMED_BYTES: u64 = 96;

impl ModelSize {
    /// Bytes that the folder has at least: weights, and the tokenizer where it is there already.
    pub fn least_folder_bytes(&self) -> u64 {
        self.weight_bytes + self.companion_bytes.unwrap_or(0)
    }

    /// Bytes of the whole folder, estimated: a tokenizer that is not trained yet, `config.json` and `manifest.json` with them.
    pub fn folder_bytes(&self) -> u64 {
        let companions = self.companion_bytes.unwrap_or(self.architecture.vocab_size as u64 * TOKEN_BYTES);
        self.weight_bytes + companions + self.description_bytes
    }

    /// Estimates what describes an artifact: its manifest has the recipe and the dense tensors, its configuration the matrices where not
    /// all are alike.
    pub(crate) fn describe_artifact(&mut self, recipe: &Recipe, names_tensors: bool) {
        let recipe = serde_json::to_string_pretty(recipe).expect("a recipe is plain data");
        let tensors = self.architecture.tensors();
        let vectors = tensors.iter().filter(|id| self.architecture.shape(**id).len() == 1).count();
        let named = if names_tensors { tensors.len() - vectors } else { 0 };
        self.description_bytes =
            DESCRIPTION_BYTES + recipe.len() as u64 + vectors as u64 * VECTOR_BYTES + named as u64 * NAMED_BYTES;
    }

    /// Gets other sizes, and stays what it is otherwise.
    pub(crate) fn become_dense(&mut self, architecture: Architecture, dtype: Dtype) {
        let of = dense(architecture, dtype, self.tokenizer.clone(), String::new());
        *self = Self { is_settled: self.is_settled, ..of };
    }
}

/// Where a run keeps what is no result: records, marks and training states.
pub(crate) fn bookkeeping(run_folder: &Path) -> PathBuf {
    run_folder.join(".steps")
}

pub(crate) fn start_of(recipe: &Recipe) -> Origin {
    match &recipe.model {
        ModelSource::Path(path) => Origin::Path(path.clone()),
        ModelSource::New(sizes) => Origin::New(*sizes),
    }
}

pub(crate) fn dense(architecture: Architecture, dtype: Dtype, tokenizer: TokenizerOf, fingerprint: String) -> ModelSize {
    let weight_bytes = architecture.parameters() * dtype.bytes() as u64;
    let stored_as = dtype.to_string();
    ModelSize {
        architecture,
        dtype,
        stored_as,
        weight_bytes,
        companion_bytes: None,
        description_bytes: CONFIG_BYTES,
        decoded_bytes: 0,
        is_artifact: false,
        is_at_most: false,
        tokenizer,
        is_settled: true,
        fingerprint,
    }
}

/// How models are measured whose positions end at `most`.
pub(crate) fn measured_by(recipe: &Recipe, most: usize) -> Verify {
    let verify = |stage: &Stage| if let Stage::Verify(verify) = stage { Some(verify.clone()) } else { None };
    recipe.stages.iter().filter_map(verify).next_back().unwrap_or_else(|| measured_within(most))
}

/// How a model is measured where nothing else is said and its positions end at `most`.
pub fn measured_within(most: usize) -> Verify {
    let default = Verify::default();
    match default.window <= most {
        true => default,
        // Half of the window is context, as by default.
        false => Verify { window: most, first_scored: (most / 2 + 1).min(most.saturating_sub(1)), ..default },
    }
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
        window: None,
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
