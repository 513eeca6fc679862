//! The recipe: what to do to which model, stage by stage, with which limits.
//!
//! Every key is described here with its unit and range, its default stands here and nowhere else, and docs/recipes.md repeats it
//! for people. Reading stops at what the file alone can tell; what needs the model or the disk is checked by the plan.

mod byte_size;
mod locate;
mod path_text;
mod read;
mod stages;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use byte_size::ByteSize;
pub use locate::{Mistake, Place};
pub use stages::{
    Activations, Alternative, CandidateScheme, Clipping, Distill, EmbeddingScheme, HeadUnit, Importance, LearnScales,
    MagnitudeNorm, Method, Multiplied, Override, Prune, Quantize, ScaleDtype, Scaling, Stage, Student, Train, TrainingKeys,
    Verify, WeightStorage,
};

use crate::{Architecture, Family};

/// A recipe as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run; the run folder is `runs/<name>` unless `output` says otherwise. Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Seeds every random choice. 0 to 2⁶³ − 1, which is what TOML can hold.
    #[serde(default)]
    pub seed: u64,
    /// The dataset's description, a TOML file: what is trained, distilled, calibrated and measured on.
    #[serde(serialize_with = "path_text::optional")]
    pub dataset: Option<PathBuf>,
    /// Instead of a dataset, a plain text file that is all train split: enough to calibrate on, with nothing to measure on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// The run folder.
    #[serde(serialize_with = "path_text::optional")]
    pub output: Option<PathBuf>,
    /// Where the chain starts.
    pub model: ModelSource,
    /// What is done, in this order.
    #[serde(default, rename = "stage")]
    pub stages: Vec<Stage>,
    /// What the artifact may cost at most.
    #[serde(default)]
    pub budget: Budget,
}

/// Where the chain starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSource {
    /// A Hugging Face folder or a GGUF file.
    #[serde(serialize_with = "path_text::one")]
    Path(PathBuf),
    /// New random weights of these sizes, with a tokenizer trained on the dataset.
    New(Sizes),
}

/// The sizes of a new model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// `llama`, `mistral`, `qwen2`, `qwen3` or `gpt2`.
    #[serde(default = "llama")]
    pub family: Family,
    /// Tokens of the byte-pair tokenizer that is trained on the dataset, at least 258: the bytes and two special tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key/value heads of a layer; as many as `heads` where left out. Divides `heads`.
    pub kv_heads: Option<usize>,
    /// Width of a head; `hidden_size / heads` where left out.
    pub head_dim: Option<usize>,
    /// Intermediate channels of the MLP.
    pub intermediate_size: usize,
    /// Longest sequence, in tokens.
    #[serde(default = "positions")]
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies; not read by GPT-2.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// The head multiplies by the embedding.
    #[serde(default = "yes")]
    pub tied_embeddings: bool,
}

/// What the artifact may cost at most; every limit left out is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Bytes of every file of the artifact together.
    pub artifact_bytes: Option<ByteSize>,
    /// Peak memory of the engine with this artifact, generating, in bytes.
    pub peak_memory_bytes: Option<ByteSize>,
    /// Median milliseconds for one generated token.
    pub token_milliseconds_p50: Option<f64>,
    /// 95th percentile of the same.
    pub token_milliseconds_p95: Option<f64>,
    /// 99th percentile of the same.
    pub token_milliseconds_p99: Option<f64>,
}

fn llama() -> Family {
    Family::Llama
}

fn positions() -> usize {
    512
}

fn theta() -> f64 {
    10_000.0
}

fn yes() -> bool {
    true
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Every mistake the text alone can tell: no TOML, unknown and missing keys, wrong types, values out of range.
    pub fn load(path: &Path) -> Result<(Self, RecipeText), Vec<Mistake>> {
        Draft::load(path, &[]).finish()
    }

    /// Reads a recipe from text that is in no file.
    ///
    /// # Errors
    /// As [`Self::load`]; the lines are those of the text.
    pub fn from_toml(text: &str) -> Result<Self, Vec<Mistake>> {
        Draft::new(PathBuf::new(), text.to_owned(), &[]).finish().map(|(recipe, _)| recipe)
    }

    /// Whether it names anything to read.
    pub fn has_data(&self) -> bool {
        self.dataset.is_some() || self.text.is_some()
    }

    /// The run folder.
    pub fn run_folder(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| Path::new("runs").join(&self.name))
    }
}

/// More stages are a mistake of what wrote them.
const MOST_STAGES: usize = 256;
/// More mistakes are counted, not told: the text is something else, or what wrote it is wrong.
const MOST_MISTAKES: usize = 50;
/// Larger files are no recipes.
const MOST_BYTES: u64 = 1 << 20;

/// A recipe as far as it could be read, with everything that is wrong in its text.
#[derive(Clone, Debug)]
pub struct Draft {
    /// With stand-ins where something could not be read; `None` where the text is no TOML.
    recipe: Option<Recipe>,
    text: RecipeText,
    mistakes: Vec<(Place, Mistake)>,
}

impl Draft {
    /// Reads a recipe with keys changed, each `key=value`; stages are counted from 1: `stage.2.distill.steps=50`.
    pub fn load(path: &Path, changes: &[String]) -> Self {
        if let Some(bytes) = std::fs::metadata(path).ok().map(|file| file.len()).filter(|bytes| *bytes > MOST_BYTES) {
            return Self::unread(
                path,
                format!("{}: is no recipe: it has {bytes} bytes, and at most {MOST_BYTES} are read", path.display()),
            );
        }
        match crate::read_text(path) {
            Ok(text) => Self::new(path.to_owned(), text, changes),
            Err(error) => Self::unread(path, error.to_string()),
        }
    }

    /// A file of which nothing is known but why.
    fn unread(path: &Path, why: String) -> Self {
        let mistakes = vec![(Place::default(), Mistake::new(why))];
        Self { recipe: None, text: RecipeText::new(path.to_owned(), String::new()), mistakes }
    }

    fn new(path: PathBuf, text: String, changes: &[String]) -> Self {
        let mut text = RecipeText::new(path, text);
        let mut table = match locate::parse(&text.text) {
            Ok(table) => table,
            Err(mistakes) => {
                let mistakes = mistakes.into_iter().map(|mistake| (Place::default(), mistake)).collect();
                return Self { recipe: None, text, mistakes };
            }
        };
        let mut mistakes = Vec::new();
        for change in changes {
            match locate::change(&mut table, change) {
                Ok(place) => text.changed.push((place, change.clone())),
                Err(mistake) => mistakes.push((Place::default(), mistake)),
            }
        }
        if let Some(stages) = table.get("stage").and_then(toml::Value::as_array).filter(|stages| stages.len() > MOST_STAGES) {
            let message = format!("there are {} stages; a recipe has at most {MOST_STAGES}", stages.len());
            mistakes.push((Place::root("stage"), text.locate(&Place::root("stage"), Mistake::new(message))));
            return Self { recipe: None, text, mistakes };
        }
        let read = read::read::<Recipe>(table);
        let judged = read.value.as_ref().filter(|_| read.mistakes.len() <= MOST_MISTAKES);
        let OutOfRange { mut alone, mut together } = judged.map(out_of_range).unwrap_or_default();
        // What was not read has a stand-in, of which nothing can be said, nor of a value that must fit to it.
        alone.retain(|(place, _)| !read.unread.iter().any(|unread| place.is_inside(unread)));
        together.retain(|(place, _)| !read.unread.iter().any(|unread| place.is_inside(unread) || place.is_beside(unread)));
        let found: Vec<(Place, Mistake)> = read.mistakes.into_iter().chain(alone).chain(together).collect();
        let more = found.len().saturating_sub(MOST_MISTAKES);
        let shown = found.into_iter().take(MOST_MISTAKES);
        mistakes.extend(shown.map(|(place, mistake)| (place.clone(), text.locate(&place, mistake))));
        if more == 0 {
            return Self { recipe: read.value, text, mistakes };
        }
        // Nothing is judged by a recipe of which it is not known where it is wrong.
        mistakes.push((Place::default(), locate::and_more(more)));
        Self { recipe: None, text, mistakes }
    }

    /// Writes the run into another folder.
    #[must_use]
    pub fn with_output(mut self, folder: PathBuf) -> Self {
        if let Some(recipe) = &mut self.recipe {
            recipe.output = Some(folder);
        }
        self
    }

    /// The recipe as far as it could be read.
    pub fn recipe(&self) -> Option<&Recipe> {
        self.recipe.as_ref()
    }

    /// The text it was read from.
    pub fn text(&self) -> &RecipeText {
        &self.text
    }

    /// Everything that is wrong, each with its place.
    pub fn mistakes(&self) -> &[(Place, Mistake)] {
        &self.mistakes
    }

    /// Whether what stands at `place` was read and nothing in it is wrong.
    pub fn is_sound(&self, place: &Place) -> bool {
        self.recipe.is_some() && !self.mistakes.iter().any(|(other, _)| other.is_inside(place) || place.is_inside(other))
    }

    /// Whether it was read which stages there are, whatever is wrong inside of them.
    pub fn knows_stages(&self) -> bool {
        let stages = self.recipe.iter().flat_map(|recipe| &recipe.stages).enumerate();
        let mut places = stages.map(|(index, stage)| Place::stage(index, stage.name()));
        let is_known = |place: &Place| !self.mistakes.iter().any(|(other, _)| place.is_inside(other) || place.is_beside(other));
        self.recipe.is_some() && places.all(|place| is_known(&place))
    }

    /// The recipe and its text.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the lines.
    pub fn finish(self) -> Result<(Recipe, RecipeText), Vec<Mistake>> {
        match self.recipe {
            Some(recipe) if self.mistakes.is_empty() => Ok((recipe, self.text)),
            _ => Err(by_line(self.mistakes.into_iter().map(|(_, mistake)| mistake).collect())),
        }
    }
}

/// Mistakes in the order of their lines, those without one last.
pub fn by_line(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    mistakes.sort_by_key(|mistake| mistake.line.unwrap_or(usize::MAX));
    mistakes
}

/// The text of a recipe, kept so that a mistake found later can still name its line.
#[derive(Clone, Debug)]
pub struct RecipeText {
    path: PathBuf,
    text: String,
    /// Keys that are not as the text has them, and the changes that say so.
    changed: Vec<(Place, String)>,
}

impl RecipeText {
    fn new(path: PathBuf, text: String) -> Self {
        Self { path, text, changed: Vec::new() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line, from 1, on which the key at `place` stands.
    pub fn line(&self, place: &Place) -> Option<usize> {
        locate::line(&self.text, place)
    }

    /// Adds to a mistake the line of its key, or the change that set it.
    pub fn locate(&self, place: &Place, mistake: Mistake) -> Mistake {
        match self.changed.iter().rev().find(|(changed, _)| place.is_inside(changed)) {
            Some((_, change)) => Mistake { message: format!("--set {change}: {mistake}"), ..mistake },
            None => Mistake { line: self.line(place), ..mistake },
        }
    }
}

/// Values that can't be, each with its place.
#[derive(Debug, Default)]
struct OutOfRange {
    /// Whatever their neighbours are.
    alone: Vec<(Place, Mistake)>,
    /// Because of another value in the same table.
    together: Vec<(Place, Mistake)>,
}

/// Everything whose range the recipe alone decides.
fn out_of_range(recipe: &Recipe) -> OutOfRange {
    let mut found = OutOfRange::default();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if recipe.name.is_empty() || recipe.name.starts_with('.') || !recipe.name.chars().all(allowed) {
        let message = format!("name \"{}\" can't name a folder; letters, digits, `-`, `_` and `.` can", recipe.name);
        found.alone.push((Place::root("name"), Mistake::new(message)));
    }
    if recipe.dataset.is_some() && recipe.text.is_some() {
        let mistake = Mistake::new("`dataset` and `text` both say what is read; keep one");
        found.alone.push((Place::root("text"), mistake));
    }
    if recipe.stages.is_empty() {
        let message = "there is no [[stage]]: nothing to do".to_owned();
        found.alone.push((Place::root("stage"), Mistake::new(message)));
    }
    match &recipe.model {
        ModelSource::Path(path) => check_path(&Place::root("model").then("path"), path, &mut found),
        ModelSource::New(sizes) => sizes.check(&Place::root("model").then("new"), &mut found),
    }
    let budget = &recipe.budget;
    for (key, limit) in [
        ("token_milliseconds_p50", budget.token_milliseconds_p50),
        ("token_milliseconds_p95", budget.token_milliseconds_p95),
        ("token_milliseconds_p99", budget.token_milliseconds_p99),
    ] {
        if let Some(limit) = limit {
            locate::check_range(&Place::root("budget").then(key), key, limit, f64::MIN_POSITIVE, 1e9, &mut found.alone);
        }
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        stage.check(&Place::stage(index, stage.name()), &mut found);
    }
    found
}

/// Refuses the name of a model on a hub, which other programs take where a folder can stand.
fn check_path(place: &Place, path: &Path, found: &mut OutOfRange) {
    if let Some(name) = path.to_str().and_then(|text| text.strip_prefix("hf:")) {
        let mistake = Mistake::new(format!("{}: {}", path.display(), crate::read::not_downloaded(name)));
        found.alone.push((place.clone(), mistake));
    }
}

impl Sizes {
    fn check(&self, place: &Place, found: &mut OutOfRange) {
        let sizes = [
            ("vocab_size", self.vocab_size, 258),
            ("hidden_size", self.hidden_size, 1),
            ("heads", self.heads, 1),
            ("kv_heads", self.kv_heads.unwrap_or(1), 1),
            ("head_dim", self.head_dim.unwrap_or(1), 1),
            ("intermediate_size", self.intermediate_size, 1),
            ("max_position_embeddings", self.max_position_embeddings, 2),
        ];
        for (key, size, least) in sizes {
            let most = Architecture::LARGEST_SIZE as f64;
            locate::check_range(&place.then(key), key, size as f64, f64::from(least), most, &mut found.alone);
        }
        let most = Architecture::MOST_LAYERS as f64;
        locate::check_range(&place.then("layers"), "layers", self.layers as f64, 1.0, most, &mut found.alone);
        if let Some(kv_heads) = self.kv_heads.filter(|kv_heads| *kv_heads > 0 && !self.heads.is_multiple_of(*kv_heads)) {
            let message = format!("kv_heads {kv_heads} does not divide heads {}", self.heads);
            found.together.push((place.then("kv_heads"), Mistake::new(message)));
        }
        if self.head_dim.is_none() && self.heads > 0 && !self.hidden_size.is_multiple_of(self.heads) {
            let message = format!("heads {} does not divide hidden_size {}; set head_dim", self.heads, self.hidden_size);
            found.together.push((place.then("heads"), Mistake::new(message)));
        }
        if self.family != Family::Gpt2 {
            if let Some(head_dim) = self.head_dim.filter(|head_dim| !head_dim.is_multiple_of(2)) {
                let message = format!("head_dim {head_dim} is odd; rotary positions turn its elements in pairs");
                found.together.push((place.then("head_dim"), Mistake::new(message)));
            }
            let divided = self.hidden_size.checked_div(self.heads).filter(|_| self.hidden_size.is_multiple_of(self.heads.max(1)));
            if self.head_dim.is_none() && divided.is_some_and(|head_dim| !head_dim.is_multiple_of(2)) {
                let message = format!(
                    "hidden_size {} / heads {} is odd; rotary positions turn the elements of a head in pairs",
                    self.hidden_size, self.heads
                );
                found.together.push((place.then("heads"), Mistake::new(message).hint("set head_dim")));
            }
        }
        locate::check_range(&place.then("rope_theta"), "rope_theta", self.rope_theta, 1.0, 1e9, &mut found.alone);
    }
}

#[cfg(test)]
mod tests;
