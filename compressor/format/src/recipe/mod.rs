//! The recipe: what to do to which model, stage by stage, with which limits.
//!
//! Every key is described here with its unit and range, its default stands here and nowhere else, and docs/recipes.md repeats it
//! for people. Reading stops at what the file alone can tell; what needs the model or the disk is checked by the plan.

mod locate;
mod stages;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use locate::{Mistake, Place};
pub use stages::{
    Activations, Clipping, Distill, EmbeddingScheme, HeadUnit, Importance, MagnitudeNorm, Prune, Quantize, Stage, Student, Train,
    TrainingKeys, Verify,
};

use crate::Family;

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
    pub dataset: Option<PathBuf>,
    /// The run folder.
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
    pub artifact_bytes: Option<u64>,
    /// Peak memory of the engine with this artifact, generating, in bytes.
    pub peak_memory_bytes: Option<u64>,
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
    /// Every mistake the text alone can tell: no TOML, unknown keys, wrong types, values out of range.
    pub fn load(path: &Path) -> Result<(Self, RecipeText), Vec<Mistake>> {
        let text = match fs_err::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return Err(vec![Mistake { line: None, message: error.to_string(), hint: None }]),
        };
        let text = RecipeText { path: path.to_owned(), text };
        let recipe = text.parse()?;
        Ok((recipe, text))
    }

    /// Reads a recipe from text that is in no file.
    ///
    /// # Errors
    /// As [`Self::load`]; the lines are those of the text.
    pub fn from_toml(text: &str) -> Result<Self, Vec<Mistake>> {
        RecipeText { path: PathBuf::new(), text: text.to_owned() }.parse()
    }

    /// The run folder.
    pub fn run_folder(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| Path::new("runs").join(&self.name))
    }
}

/// The text of a recipe, kept so that a mistake found later can still name its line.
#[derive(Clone, Debug)]
pub struct RecipeText {
    path: PathBuf,
    text: String,
}

impl RecipeText {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line, from 1, on which the key at `place` stands.
    pub fn line(&self, place: &Place) -> Option<usize> {
        locate::line(&self.text, place)
    }

    /// The recipe with keys changed, each `key=value`; stages are counted from 1: `stage.2.distill.steps=50`.
    ///
    /// # Errors
    /// A change that leads nowhere, and everything [`Recipe::load`] refuses.
    pub fn with(&self, changes: &[String]) -> Result<Recipe, Vec<Mistake>> {
        let mut table: toml::Table = locate::parse(&self.text)?;
        for change in changes {
            locate::change(&mut table, change).map_err(|mistake| vec![mistake])?;
        }
        Recipe::from_toml(&table.to_string())
    }

    fn parse(&self) -> Result<Recipe, Vec<Mistake>> {
        let recipe = locate::parse::<Recipe>(&self.text)?;
        let mut mistakes = out_of_range(&recipe);
        if mistakes.is_empty() {
            return Ok(recipe);
        }
        for (place, mistake) in &mut mistakes {
            mistake.line = self.line(place);
        }
        Err(mistakes.into_iter().map(|(_, mistake)| mistake).collect())
    }
}

/// Everything whose range the recipe alone decides.
pub fn out_of_range(recipe: &Recipe) -> Vec<(Place, Mistake)> {
    let mut mistakes = Vec::new();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if recipe.name.is_empty() || recipe.name.starts_with('.') || !recipe.name.chars().all(allowed) {
        let message = format!("name \"{}\" can't name a folder; letters, digits, `-`, `_` and `.` can", recipe.name);
        mistakes.push((Place::root("name"), Mistake::new(message)));
    }
    if recipe.stages.is_empty() {
        let message = "there is no [[stage]]: nothing to do".to_owned();
        mistakes.push((Place::root("stage"), Mistake::new(message)));
    }
    if let ModelSource::New(sizes) = &recipe.model {
        sizes.check(&Place::root("model").then("new"), &mut mistakes);
    }
    let budget = &recipe.budget;
    for (key, limit) in [
        ("token_milliseconds_p50", budget.token_milliseconds_p50),
        ("token_milliseconds_p95", budget.token_milliseconds_p95),
        ("token_milliseconds_p99", budget.token_milliseconds_p99),
    ] {
        if let Some(limit) = limit {
            locate::check_range(&Place::root("budget").then(key), key, limit, f64::MIN_POSITIVE, 1e9, &mut mistakes);
        }
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        stage.check(&Place::stage(index, stage.name()), &mut mistakes);
    }
    mistakes
}

impl Sizes {
    pub(crate) fn check(&self, place: &Place, mistakes: &mut Vec<(Place, Mistake)>) {
        let sizes = [
            ("vocab_size", self.vocab_size, 258),
            ("hidden_size", self.hidden_size, 1),
            ("layers", self.layers, 1),
            ("heads", self.heads, 1),
            ("kv_heads", self.kv_heads.unwrap_or(1), 1),
            ("head_dim", self.head_dim.unwrap_or(1), 1),
            ("intermediate_size", self.intermediate_size, 1),
            ("max_position_embeddings", self.max_position_embeddings, 2),
        ];
        for (key, size, least) in sizes {
            locate::check_range(&place.then(key), key, size as f64, f64::from(least), f64::from(1 << 24), mistakes);
        }
        if let Some(kv_heads) = self.kv_heads.filter(|kv_heads| *kv_heads > 0 && !self.heads.is_multiple_of(*kv_heads)) {
            let message = format!("kv_heads {kv_heads} does not divide heads {}", self.heads);
            mistakes.push((place.then("kv_heads"), Mistake::new(message)));
        }
        if self.head_dim.is_none() && self.heads > 0 && !self.hidden_size.is_multiple_of(self.heads) {
            let message = format!("heads {} does not divide hidden_size {}; set head_dim", self.heads, self.hidden_size);
            mistakes.push((place.then("heads"), Mistake::new(message)));
        }
        locate::check_range(&place.then("rope_theta"), "rope_theta", self.rope_theta, 1.0, 1e9, mistakes);
    }
}

#[cfg(test)]
mod tests;
