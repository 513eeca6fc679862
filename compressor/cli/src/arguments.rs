//! What can be typed.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use compressor_format::ByteSize;

/// Fits a language model into a device: distill, prune, quantize, and prove what was written.
///
/// Exit code 0: everything passed. 1: a check or a budget failed, or could not be decided; the artifact is kept.
/// 2: could not run, or its results could not be written. 130: interrupted.
#[derive(Debug, Parser)]
#[command(name = "compressor", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Say why steps are done again, and what a prompt cache saved; twice for what libraries say too.
    #[arg(long, short, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads to compute with; all there are where left out.
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// When to colour what is read on a terminal.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorChoice,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a recipe; finished steps are skipped, a killed run continues.
    Run(Run),
    /// Shows what a recipe would do: sizes, bytes, memory, and every refusal.
    Plan(Plan),
    /// Checks an artifact's files and that it runs; with a reference, measures how close it stays.
    Verify(Verify),
    /// Measures perplexity, and exact match where a dataset has answers.
    Eval(Eval),
    /// Continues a text, or answers a message.
    Generate(Generate),
    /// Shows what a model is made of and which programs open it.
    Inspect(Inspect),
    /// Measures load time, time per token and peak memory.
    Bench(Bench),
    /// Turns a GGUF file or a folder into a Hugging Face folder with dense weights.
    Import(Import),
    /// Writes an artifact as a GGUF file, with the same integers.
    Export(Export),
    /// Writes into one file what changed from one folder to another: artifacts or checkpoints.
    Delta(Delta),
    /// Makes the new folder of a delta from the old one, bit for bit.
    Apply(Apply),
    /// Trains a model on a dataset.
    Train(Train),
    /// Trains a student to answer as its teacher does.
    Distill(Distill),
    /// Removes attention heads, intermediate channels or layers.
    Prune(Prune),
    /// Turns weights into integers and writes an artifact.
    Quantize(Quantize),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The recipe, a TOML file.
    pub(crate) recipe: PathBuf,
    /// Where to train: cpu, ndarray, wgpu[:N], vulkan[:N] or cuda[:N], as far as they are in this build.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) memory: Memory,
    #[command(flatten)]
    pub(crate) changes: Changes,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The recipe, a TOML file.
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) memory: Memory,
    #[command(flatten)]
    pub(crate) changes: Changes,
}

/// What a run may take of the machine.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Memory {
    /// Most memory that a step may take, "2GiB" for example: quantize then keeps activations on the disk, what can't be held is refused
    /// before any work, and the measured peak is a check.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_memory: Option<ByteSize>,
}

impl Memory {
    pub(crate) fn bytes(self) -> Option<u64> {
        self.max_memory.map(|ByteSize(bytes)| bytes)
    }
}

impl CalibrationText {
    pub(crate) fn is_given(&self) -> bool {
        self.text.is_some() || self.dataset.is_some()
    }
}

/// What is changed in a recipe without editing it.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// The run folder, instead of the recipe's.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Change a key, stages counted from 1: stage.2.distill.steps=50. May be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// What to measure on.
#[derive(Debug, Args)]
pub(crate) struct Text {
    /// A text file.
    #[arg(long, conflicts_with = "dataset")]
    pub(crate) text: Option<PathBuf>,
    /// A dataset's description; its test split is read.
    #[arg(long)]
    pub(crate) dataset: Option<PathBuf>,
    /// Windows to measure on.
    #[arg(long, default_value_t = 20)]
    pub(crate) windows: usize,
    /// Tokens of one window [default: 512, or as many as the model holds].
    #[arg(long)]
    pub(crate) window: Option<usize>,
    /// First scored token of a window, counted from 0 [default: 257, or the middle of a window that ends before].
    #[arg(long)]
    pub(crate) score_from: Option<usize>,
    /// Examples to answer, where the dataset has answers.
    #[arg(long, default_value_t = 1000)]
    pub(crate) examples: usize,
    /// Seed of a generated dataset.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The artifact's folder.
    pub(crate) artifact: PathBuf,
    /// The dense checkpoint to compare with.
    #[arg(long)]
    pub(crate) reference: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) text: Text,
    /// Largest perplexity ÷ the reference's − 1.
    #[arg(long)]
    pub(crate) perplexity_increase: Option<f64>,
    /// Largest mean KL divergence, nats per token.
    #[arg(long)]
    pub(crate) kl_mean: Option<f64>,
    /// Least part of positions with the same most likely token.
    #[arg(long)]
    pub(crate) top1_agreement: Option<f64>,
    /// Largest size of the artifact in bytes.
    #[arg(long)]
    pub(crate) artifact_bytes: Option<ByteSize>,
    /// What matrices of integers are multiplied with: activations rounded to INT8 as they come, or as they are.
    #[arg(long, value_name = "TYPE", default_value = "int8")]
    pub(crate) activations: ActivationType,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A checkpoint or an artifact.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
    #[command(flatten)]
    pub(crate) text: Text,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A checkpoint, an artifact or a GGUF file.
    pub(crate) model: PathBuf,
    /// The text to continue; - reads it from standard input, without the last line break.
    #[arg(long, short, value_name = "TEXT", required_unless_present = "prompt_ids")]
    pub(crate) prompt: Option<String>,
    /// The token numbers to continue, with spaces between them; needs no tokenizer with --ids.
    #[arg(long, value_name = "NUMBERS", conflicts_with = "prompt")]
    pub(crate) prompt_ids: Option<String>,
    /// Tokens to generate at most.
    #[arg(long, short = 'n', default_value_t = 40)]
    pub(crate) tokens: usize,
    /// End before this text; may be given several times.
    #[arg(long, value_name = "TEXT", conflicts_with = "ids", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Go on after the end-of-text token.
    #[arg(long)]
    pub(crate) ignore_end: bool,
    /// Print token numbers instead of text.
    #[arg(long)]
    pub(crate) ids: bool,
    /// Keep the computed prompt in this file; a later prompt that begins alike goes on from there. A longer prompt replaces it.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_cache: Option<PathBuf>,
    /// Treat the prompt as a request of a dataset with answers, and print the answer alone.
    #[arg(long)]
    pub(crate) answer: bool,
    /// Treat the prompt as a message to a model that was taught to talk, and print its answer alone.
    #[arg(long, help_heading = CHAT, conflicts_with_all = ["prompt_ids", "answer"])]
    pub(crate) chat: bool,
    /// Tell the model first how to behave.
    #[arg(long, help_heading = CHAT, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Divides the logits: above 1 more surprising, below 1 less; 0 always takes the most likely token.
    #[arg(long, help_heading = SAMPLING, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Choose among so many of the most likely tokens.
    #[arg(long, help_heading = SAMPLING, value_name = "COUNT")]
    pub(crate) top_k: Option<usize>,
    /// Choose among the fewest tokens that together have this probability.
    #[arg(long, help_heading = SAMPLING, value_name = "PART", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Choose among tokens with at least this part of the most likely one's probability.
    #[arg(long, help_heading = SAMPLING, value_name = "PART", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Makes tokens that are in the text so far less likely, above 1; 1 changes nothing.
    #[arg(long, help_heading = SAMPLING, value_name = "NUMBER", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,
    /// Seed of the choices: the same seed gives the same text.
    #[arg(long, help_heading = SAMPLING, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
}

/// Headings of `generate --help`.
const CHAT: &str = "Chat";
const SAMPLING: &str = "Sampling";

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A checkpoint, an artifact or a GGUF file.
    pub(crate) model: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// A checkpoint or an artifact.
    pub(crate) model: PathBuf,
    /// Tokens of the prompt [default: 16, fewer where the model holds fewer].
    #[arg(long)]
    pub(crate) prompt_tokens: Option<usize>,
    /// Tokens to generate and time; more than the model holds are generated in rounds, each after the same prompt.
    #[arg(long, default_value_t = 128)]
    pub(crate) generate_tokens: usize,
    /// Show the time and bytes of every operation and layer, and how near they come to the memory's limit.
    #[arg(long)]
    pub(crate) profile: bool,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
}

/// How the engine runs a model.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct EngineOptions {
    /// What matrices of integers are multiplied with: activations rounded to INT8 as they come, or as they are.
    #[arg(long, value_name = "TYPE", default_value = "int8")]
    pub(crate) activations: ActivationType,
    /// How keys and values are kept.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) kv_dtype: KvType,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ActivationType {
    Int8,
    F32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KvType {
    F32,
    F16,
    Int8,
}

/// Where a command writes a folder.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The folder to write; where the same command made it before, there is nothing to do.
    pub(crate) output: PathBuf,
    /// Replace a folder that this program made from other inputs or with other settings, once the new one is whole.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A GGUF file or a folder with dense weights.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Element type to write.
    #[arg(long, value_enum, default_value_t = DenseType::F32)]
    pub(crate) dtype: DenseType,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The artifact's folder.
    pub(crate) model: PathBuf,
    /// The GGUF file to write; one that is there is replaced.
    pub(crate) output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DenseType {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Args)]
pub(crate) struct Delta {
    /// The folder that is there already where the delta is applied.
    pub(crate) old: PathBuf,
    /// The folder that is to be there.
    pub(crate) new: PathBuf,
    /// The file to write.
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The folder that the delta was made from; it stays as it is.
    pub(crate) old: PathBuf,
    /// The delta.
    pub(crate) delta: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// The flags that every training stage has.
#[derive(Debug, Args)]
pub(crate) struct Training {
    /// The dataset's description, a TOML file.
    #[arg(long, value_name = "TOML", required_unless_present = "text")]
    pub(crate) dataset: Option<PathBuf>,
    /// A text file to learn from instead; nothing is measured then.
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    pub(crate) text: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long)]
    pub(crate) steps: usize,
    /// Sequences in one batch.
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Tokens of one sequence.
    #[arg(long)]
    pub(crate) sequence_length: Option<usize>,
    /// Peak learning rate.
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// Steps over which the learning rate rises.
    #[arg(long)]
    pub(crate) warmup_steps: Option<usize>,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Where to train: cpu, ndarray, wgpu[:N], vulkan[:N] or cuda[:N], as far as they are in this build.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The checkpoint to train on.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) training: Training,
}

#[derive(Debug, Args)]
pub(crate) struct Distill {
    /// The teacher.
    pub(crate) teacher: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
    /// The checkpoint that the student starts from.
    #[arg(long, conflicts_with = "student_layers")]
    pub(crate) student: Option<PathBuf>,
    /// Start from so many of the teacher's layers, evenly spaced.
    #[arg(long)]
    pub(crate) student_layers: Option<usize>,
    /// Divides both logits before the softmax.
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Part of the KL term in the loss.
    #[arg(long)]
    pub(crate) kd_ratio: Option<f64>,
    #[command(flatten)]
    pub(crate) training: Training,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// The checkpoint.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Part of the attention heads to remove.
    #[arg(long)]
    pub(crate) head_ratio: Option<f64>,
    /// Part of the intermediate channels to remove.
    #[arg(long)]
    pub(crate) channel_ratio: Option<f64>,
    /// Remove channels until at most so many parameters are left.
    #[arg(long)]
    pub(crate) target_parameters: Option<u64>,
    /// Whole layers to remove, by index from 0.
    #[arg(long, value_delimiter = ',')]
    pub(crate) layers: Vec<usize>,
    /// group or query.
    #[arg(long)]
    pub(crate) head_unit: Option<String>,
    /// The channels kept are a multiple of this.
    #[arg(long)]
    pub(crate) channel_multiple: Option<usize>,
    /// activation (needs --text or --dataset) or magnitude, which needs no text and alone destroys a real model [default: activation].
    #[arg(long)]
    pub(crate) importance: Option<String>,
    /// l2, l1 or product.
    #[arg(long)]
    pub(crate) magnitude_norm: Option<String>,
    #[command(flatten)]
    pub(crate) calibration: CalibrationText,
}

/// What a stage looks at to rank units, or to quantize by.
#[derive(Debug, Args)]
pub(crate) struct CalibrationText {
    /// A text file to look at: for importance by activation, gptq, clipping by activation, scaling, static activations, a target.
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    pub(crate) text: Option<PathBuf>,
    /// A dataset's description; its train split is looked at, and the result is measured on its test split.
    #[arg(long, value_name = "TOML")]
    pub(crate) dataset: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// The checkpoint.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) place: Place,
    /// 2, 3, 4, 5, 6 or 8.
    #[arg(long, required_unless_present_any = ["target_bytes", "target_bits_per_weight"])]
    pub(crate) bits: Option<u8>,
    /// Chooses the bits of each matrix: the best that fits in "80 MB"; needs --text or --dataset.
    #[arg(long, conflicts_with = "bits")]
    pub(crate) target_bytes: Option<ByteSize>,
    /// The same by bits per weight, scales included.
    #[arg(long, conflicts_with_all = ["bits", "target_bytes"])]
    pub(crate) target_bits_per_weight: Option<f64>,
    /// Input elements that share one scale.
    #[arg(long)]
    pub(crate) group_size: Option<usize>,
    /// With zero points.
    #[arg(long)]
    pub(crate) asymmetric: bool,
    /// `round_to_nearest` or gptq.
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// none, mse or activation.
    #[arg(long)]
    pub(crate) clipping: Option<String>,
    /// none, awq or smoothquant: divides inputs and multiplies columns first, so that they are easier to round.
    #[arg(long)]
    pub(crate) scaling: Option<String>,
    /// `SmoothQuant`'s α, 0 to 1.
    #[arg(long)]
    pub(crate) migration_strength: Option<f64>,
    #[command(flatten)]
    pub(crate) calibration: CalibrationText,
    /// Tokens of the text, or of the dataset's train split, to look at.
    #[arg(long)]
    pub(crate) calibration_tokens: Option<usize>,
    /// dense, int8, int6, int5, int4, int3 or int2.
    #[arg(long)]
    pub(crate) embedding: Option<String>,
    /// The float type of scales: f16, bf16 or f32.
    #[arg(long)]
    pub(crate) scale_dtype: Option<String>,
    /// none, int8 (W8A8, one scale for a token) or `int8_static` (one for all tokens, from text).
    #[arg(long)]
    pub(crate) activations: Option<String>,
    /// What may be taken instead where something can't be done, each listed where it was: dense, `round_to_nearest`, `less_text`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) allow: Vec<String>,
    /// Measures what each quantized tensor changes alone; needs --text or --dataset, and minutes.
    #[arg(long)]
    pub(crate) measure_kl: bool,
    /// plain, or entropy: model.entropy beside model.safetensors, the same in fewer bytes.
    #[arg(long)]
    pub(crate) storage: Option<String>,
    #[command(flatten)]
    pub(crate) memory: Memory,
}
