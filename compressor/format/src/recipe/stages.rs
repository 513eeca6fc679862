//! The stages and their keys.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::byte_size::ByteSize;
use super::locate::{Mistake, Place, check_range};
use super::{OutOfRange, Sizes, check_path};
use crate::{Architecture, Dtype};

/// One entry of the recipe's `[[stage]]` list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// Trains the model on the dataset.
    Train(Train),
    /// Trains a student to answer as a teacher does.
    Distill(Distill),
    /// Removes attention heads, intermediate channels or layers.
    Prune(Prune),
    /// Turns weights into integers and writes the artifact.
    Quantize(Quantize),
    /// Trains the artifact's scales towards a teacher; its integers stay.
    LearnScales(LearnScales),
    /// Loads the artifact with the engine and measures what it claims.
    Verify(Verify),
}

/// Declares a stage that trains: its own keys, then those that every training stage has.
macro_rules! training_stage {
    ($(#[$about:meta])* $name:ident { $($(#[$key_about:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$key_about])* pub $key: $type,)*
            /// Optimizer steps, at least 1.
            pub steps: usize,
            /// Sequences in one micro-batch, at least 1.
            #[serde(default = "default::batch_size")]
            pub batch_size: usize,
            /// Tokens that one sequence predicts: text is cut into windows of it, a prompt with its completion must fit. At least 2,
            /// at most what the model can hold.
            #[serde(default = "default::sequence_length")]
            pub sequence_length: usize,
            /// Peak learning rate of AdamW, above 0 and at most 1.
            #[serde(default = "default::learning_rate")]
            pub learning_rate: f64,
            /// The cosine ends at this part of the peak, 0 to 1.
            #[serde(default = "default::min_learning_rate_ratio")]
            pub min_learning_rate_ratio: f64,
            /// Steps over which the learning rate rises from 0 to its peak; fewer than `steps`.
            #[serde(default)]
            pub warmup_steps: usize,
            /// Decoupled weight decay of matrices, 0 to 1.
            #[serde(default = "default::weight_decay")]
            pub weight_decay: f64,
            /// AdamW's decay of the gradient's mean, 0 to below 1.
            #[serde(default = "default::beta_1")]
            pub beta_1: f64,
            /// AdamW's decay of the gradient's mean square, 0 to below 1.
            #[serde(default = "default::beta_2")]
            pub beta_2: f64,
            /// AdamW's ε, above 0.
            #[serde(default = "default::epsilon")]
            pub epsilon: f64,
            /// Largest global norm of the gradient, above 0.
            #[serde(default = "default::gradient_clip")]
            pub gradient_clip: f64,
            /// Micro-batches whose gradients make one step, at least 1.
            #[serde(default = "default::gradient_accumulation")]
            pub gradient_accumulation: usize,
            /// The training state is saved every so many steps, at least 1.
            #[serde(default = "default::save_every")]
            pub save_every: usize,
            /// Every forward pass sees the weights as `[stage.quantize]` after this stage will round them.
            #[serde(default)]
            pub quantization_aware: bool,
        }

        impl $name {
            /// The keys that every training stage has.
            pub fn training(&self) -> TrainingKeys {
                TrainingKeys {
                    steps: self.steps,
                    batch_size: self.batch_size,
                    sequence_length: self.sequence_length,
                    learning_rate: self.learning_rate,
                    min_learning_rate_ratio: self.min_learning_rate_ratio,
                    warmup_steps: self.warmup_steps,
                    weight_decay: self.weight_decay,
                    beta_1: self.beta_1,
                    beta_2: self.beta_2,
                    epsilon: self.epsilon,
                    gradient_clip: self.gradient_clip,
                    gradient_accumulation: self.gradient_accumulation,
                    save_every: self.save_every,
                }
            }
        }
    };
}

/// The keys that every training stage has; what they mean stands at [`Train`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct TrainingKeys {
    pub steps: usize,
    pub batch_size: usize,
    pub sequence_length: usize,
    pub learning_rate: f64,
    pub min_learning_rate_ratio: f64,
    pub warmup_steps: usize,
    pub weight_decay: f64,
    pub beta_1: f64,
    pub beta_2: f64,
    pub epsilon: f64,
    pub gradient_clip: f64,
    pub gradient_accumulation: usize,
    pub save_every: usize,
}

training_stage! {
    /// Trains the model on the dataset with cross entropy.
    Train {}
}

training_stage! {
    /// Trains a student to answer as a teacher does: loss = (1 − kd_ratio) · cross entropy + kd_ratio · T² · KL (Hinton et al. 2015).
    Distill {
        /// The teacher: the name of an earlier step (`"1-train"`), `"model"` for where the chain starts, or the path of a checkpoint.
        /// Left out, it is the largest model of the chain so far.
        #[serde(default, serialize_with = "super::path_text::optional")]
        teacher: Option<PathBuf>,
        /// What the student starts from; left out, the chain's current model (healing after a cut).
        #[serde(default)]
        student: Option<Student>,
        /// Divides both logits before the softmax, above 0.
        #[serde(default = "default::temperature")]
        temperature: f64,
        /// Part of the KL term in the loss, 0 to 1.
        #[serde(default = "default::kd_ratio")]
        kd_ratio: f64,
    }
}

/// What a student starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Student {
    /// New random weights of these sizes, with the teacher's tokenizer.
    New(Sizes),
    /// So many of the teacher's layers, evenly spaced, the first and the last among them.
    Layers(usize),
    /// A checkpoint.
    #[serde(serialize_with = "super::path_text::one")]
    Checkpoint(PathBuf),
}

/// Removes attention heads, intermediate channels or layers; the model gets smaller and stays dense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Part of the attention heads to remove from every layer, 0 to below 1.
    #[serde(default)]
    pub head_ratio: f64,
    /// Part of the intermediate channels to remove from every layer, 0 to below 1.
    #[serde(default)]
    pub channel_ratio: f64,
    /// Removes channels until the model has at most so many parameters; instead of `channel_ratio`.
    pub target_parameters: Option<u64>,
    /// What a head is: `"group"`, a key/value head with its query heads, or `"query"`, the same number of query heads in every group.
    #[serde(default)]
    pub head_unit: HeadUnit,
    /// The channels kept are a multiple of this, at least 1.
    #[serde(default = "default::channel_multiple")]
    pub channel_multiple: usize,
    /// Whole layers to remove, by index from 0.
    #[serde(default)]
    pub layers: Vec<usize>,
    /// What makes a unit important: `"activation"`, the size of what it contributes on calibration text, or `"magnitude"`.
    #[serde(default)]
    pub importance: Importance,
    /// The norm that `"magnitude"` takes: `"l2"`, `"l1"`, or `"product"` of the norms on both sides.
    #[serde(default)]
    pub magnitude_norm: MagnitudeNorm,
    /// Tokens of the train split that `"activation"` is measured on, at least 1.
    #[serde(default = "default::calibration_tokens")]
    pub calibration_tokens: usize,
}

/// What counts as one attention head when heads are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadUnit {
    /// A key/value head with the query heads that share it.
    #[default]
    Group,
    /// A query head; the same number goes from every GQA group.
    Query,
}

/// What makes a unit important.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    /// Size of what the unit contributes on calibration text.
    #[default]
    Activation,
    /// Norm of the weights the unit owns.
    Magnitude,
}

/// The norm that magnitude importance takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MagnitudeNorm {
    /// Square root of the sum of squares.
    #[default]
    L2,
    /// Sum of absolute values.
    L1,
    /// Norm of the incoming weights times norm of the outgoing ones, which rescaling a unit can't change.
    Product,
}

/// Turns weights into integers and writes the artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// Bits of one integer: 2, 3, 4, 5, 6 or 8. Left out where a target chooses them, matrix by matrix.
    pub bits: Option<u8>,
    /// Most bytes of `model.safetensors`: each matrix gets one of the candidates, so that together they fit and change the least.
    pub target_bytes: Option<ByteSize>,
    /// The same by bits of everything stored ÷ the model's weights, above 0.
    pub target_bits_per_weight: Option<f64>,
    /// What a target chooses from.
    #[serde(default = "default::candidates")]
    pub candidates: Vec<CandidateScheme>,
    /// Tokens of the train split on which the change that each candidate makes is measured, in whole windows; at least 1.
    #[serde(default = "default::sensitivity_tokens")]
    pub sensitivity_tokens: usize,
    /// Input elements that share one scale; divides every width. Left out: one scale for an output channel with 8 bits, 32 with fewer.
    pub group_size: Option<usize>,
    /// No zero points.
    #[serde(default = "default::symmetric")]
    pub symmetric: bool,
    /// How numbers are chosen: `"round_to_nearest"`; `"gptq"`, which lets weights still open make up for those rounded before; or
    /// `"kmeans"`, codebooks of any 16 or 256 reals instead of integers with scales.
    #[serde(default)]
    pub method: Method,
    /// Output rows that share one codebook of `"kmeans"`; divides every matrix's. Left out: one codebook for the whole matrix.
    pub codebook_rows: Option<usize>,
    /// How the range of a group is chosen: `"none"`, its largest value; `"mse"`, the range with the least squared error;
    /// `"activation"`, the same with each error weighted by the mean square of its input, as `"kmeans"` then does too.
    #[serde(default)]
    pub clipping: Clipping,
    /// What input channels are divided by, and columns of weights multiplied, before anything is rounded: `"none"`; `"awq"`, powers of
    /// the inputs' mean magnitudes, the power searched; `"smoothquant"`, what brings inputs and weights to ranges of one size.
    #[serde(default)]
    pub scaling: Scaling,
    /// SmoothQuant's α, how much of the inputs' range is left to the weights, 0 to 1; 0.5 where left out. Only with `"smoothquant"`.
    pub migration_strength: Option<f64>,
    /// Tokens of the train split that `"gptq"`, `"activation"`, scaling and `"int8_static"` look at, in whole windows; at least 1.
    #[serde(default = "default::quantization_tokens")]
    pub calibration_tokens: usize,
    /// Part of the mean of GPTQ's diagonal that is added to it, above 0 and at most 1.
    #[serde(default = "default::damping")]
    pub damping: f64,
    /// GPTQ rounds the columns with the largest inputs first.
    #[serde(default = "default::activation_order")]
    pub activation_order: bool,
    /// Embedding and head: `"int8"`, `"int6"`, `"int5"`, `"int4"`, `"int3"`, `"int2"` or `"dense"`. Left out: `"int8"`, or what a
    /// target chooses.
    pub embedding: Option<EmbeddingScheme>,
    /// Group size of embedding and head; divides `hidden_size`.
    #[serde(default = "default::embedding_group_size")]
    pub embedding_group_size: usize,
    /// `"none"`: weights alone are quantized; `"int8"`: projections also quantize their input, per token, as they run (W8A8);
    /// `"int8_static"`: with one scale for all tokens, from the largest input on calibration text.
    #[serde(default)]
    pub activations: Activations,
    /// The float type of scales and centroids: `"f16"`, `"bf16"` or `"f32"`.
    #[serde(default)]
    pub scale_dtype: ScaleDtype,
    /// `"plain"`: `model.safetensors` alone; `"entropy"`: `model.entropy` beside it, the same coded without loss, for delivery.
    #[serde(default)]
    pub storage: WeightStorage,
    /// What some matrices get instead; of several that match one, the last that says something decides.
    #[serde(default)]
    pub overrides: Vec<Override>,
    /// What may be taken instead where something can't be done, and is listed in the report where it was: `"dense"`,
    /// `"round_to_nearest"`, `"less_text"`. Whatever is not named here is refused.
    #[serde(default)]
    pub allow: Vec<Alternative>,
    /// Measures for the report what each quantized tensor changes alone, on `sensitivity_tokens`; a target does so anyway for those that it
    /// chooses for.
    #[serde(default)]
    pub measure_kl: bool,
}

/// What may be taken instead of what a recipe asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alternative {
    /// A matrix that can't take its scheme, because of its sizes, stays as it is.
    Dense,
    /// A matrix that GPTQ can't round, or rounds with more error, is rounded to nearest.
    RoundToNearest,
    /// Where there is less text than is asked for, all its whole windows do.
    LessText,
}

/// A scheme that a target can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateScheme {
    /// Bits of one integer: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Input elements that share one scale; one scale for an output channel where it is left out, with 8 bits only.
    pub group_size: Option<usize>,
}

/// Another scheme for the matrices whose names match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// A module's name, such as `model.layers.3.mlp.down_proj`; `*` stands for any text, `?` for one character.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Bits of one integer: 2, 3, 4, 5, 6 or 8.
    pub bits: Option<u8>,
    /// Input elements that share one scale.
    pub group_size: Option<usize>,
    /// No zero points.
    pub symmetric: Option<bool>,
    /// Left as it is.
    #[serde(default)]
    pub dense: bool,
}

/// How the range of a group is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clipping {
    /// The largest value decides.
    #[default]
    None,
    /// The range with the least squared error.
    Mse,
    /// The range with the least squared error, weighted by the mean square of each input.
    Activation,
}

/// What input channels are divided by before anything is rounded; the model computes the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Nothing.
    #[default]
    None,
    /// Powers of the mean magnitudes of the inputs, the power with the least error of the outputs (Lin et al. 2023).
    Awq,
    /// What shares the range of the inputs between inputs and weights (Xiao et al. 2022).
    SmoothQuant,
}

/// How the numbers that are stored for weights are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Each weight on its own.
    #[default]
    RoundToNearest,
    /// One column after the other, the error taken back by those still open.
    Gptq,
    /// Each weight the nearest of a few reals, which k-means finds.
    Kmeans,
}

/// What becomes of the embedding and the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingScheme {
    /// Left as it is; needed where Transformers or vLLM must open the artifact.
    Dense,
    /// 8 bits in groups.
    #[default]
    Int8,
    /// 6 bits in groups.
    Int6,
    /// 5 bits in groups.
    Int5,
    /// 4 bits in groups.
    Int4,
    /// 3 bits in groups.
    Int3,
    /// 2 bits in groups.
    Int2,
}

impl EmbeddingScheme {
    /// Bits of one integer; `None` for dense.
    pub fn bits(self) -> Option<u8> {
        match self {
            Self::Dense => None,
            Self::Int8 => Some(8),
            Self::Int6 => Some(6),
            Self::Int5 => Some(5),
            Self::Int4 => Some(4),
            Self::Int3 => Some(3),
            Self::Int2 => Some(2),
        }
    }
}

/// The files that weights are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightStorage {
    /// `model.safetensors`.
    #[default]
    Plain,
    /// `model.entropy` beside it: the same bytes, coded without loss.
    Entropy,
}

/// The float type of scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleDtype {
    /// 11 bits of precision, 6·10⁻⁸ to 65504: what GGUF has.
    #[default]
    F16,
    /// 8 bits of precision, the range of f32: what most checkpoints are stored in.
    Bf16,
    /// As computed.
    F32,
}

impl From<ScaleDtype> for Dtype {
    fn from(scales: ScaleDtype) -> Self {
        match scales {
            ScaleDtype::F16 => Self::F16,
            ScaleDtype::Bf16 => Self::Bf16,
            ScaleDtype::F32 => Self::F32,
        }
    }
}

/// What is done to activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// Left as they are.
    #[default]
    None,
    /// 8 bits, one scale for each token, found as it runs.
    Int8,
    /// 8 bits, one scale for all tokens, found on calibration text.
    Int8Static,
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int8Static => "int8_static",
        })
    }
}

/// Trains the scales of an artifact towards a teacher's predictions, T² · KL(teacher ‖ artifact); integers, zero points and all that is
/// dense stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnScales {
    /// As in [`Distill`]: an earlier step, `"model"`, or the path of a checkpoint; left out, the largest dense model of the chain.
    #[serde(default, serialize_with = "super::path_text::optional")]
    pub teacher: Option<PathBuf>,
    /// Divides both logits before the softmax, above 0.
    #[serde(default = "default::temperature")]
    pub temperature: f64,
    /// Optimizer steps, at least 1.
    pub steps: usize,
    /// Sequences in one micro-batch, at least 1.
    #[serde(default = "default::batch_size")]
    pub batch_size: usize,
    /// Tokens that one sequence predicts, as in [`Train`].
    #[serde(default = "default::sequence_length")]
    pub sequence_length: usize,
    /// Peak learning rate, above 0 and at most 1: the part of itself by which a step changes a scale at most, or nearly so.
    #[serde(default = "default::scale_learning_rate")]
    pub learning_rate: f64,
    /// The cosine ends at this part of the peak, 0 to 1.
    #[serde(default = "default::min_learning_rate_ratio")]
    pub min_learning_rate_ratio: f64,
    /// Steps over which the learning rate rises from 0 to its peak; fewer than `steps`.
    #[serde(default)]
    pub warmup_steps: usize,
    /// Micro-batches whose gradients make one step, at least 1.
    #[serde(default = "default::gradient_accumulation")]
    pub gradient_accumulation: usize,
    /// The training state is saved every so many steps, at least 1.
    #[serde(default = "default::save_every")]
    pub save_every: usize,
}

impl LearnScales {
    /// As every training stage has them: AdamW as it is by default, without decay.
    pub fn training(&self) -> TrainingKeys {
        TrainingKeys {
            steps: self.steps,
            batch_size: self.batch_size,
            sequence_length: self.sequence_length,
            learning_rate: self.learning_rate,
            min_learning_rate_ratio: self.min_learning_rate_ratio,
            warmup_steps: self.warmup_steps,
            weight_decay: 0.0,
            beta_1: default::beta_1(),
            beta_2: default::beta_2(),
            epsilon: default::epsilon(),
            gradient_clip: default::gradient_clip(),
            gradient_accumulation: self.gradient_accumulation,
            save_every: self.save_every,
        }
    }
}

/// Loads the artifact with the engine and measures what it claims. A threshold left out is measured and not checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Windows of held-out text to measure on, at least 1; fewer where the text ends.
    #[serde(default = "default::windows")]
    pub windows: usize,
    /// Tokens of one window, at least 2.
    #[serde(default = "default::window")]
    pub window: usize,
    /// The first token of a window that is scored, counted from 0; those before are context. From 1 to below `window`.
    #[serde(default = "default::first_scored")]
    pub first_scored: usize,
    /// Examples whose answer is generated and compared, where the dataset has answers; at least 1.
    #[serde(default = "default::examples")]
    pub examples: usize,
    /// Largest difference of a logit between engine and trainer on the dense checkpoint, above 0.
    #[serde(default = "default::parity")]
    pub parity: f64,
    /// Largest perplexity ÷ the reference's − 1, at least 0.
    pub perplexity_increase: Option<f64>,
    /// Largest mean KL divergence from the reference, nats per token, at least 0.
    pub kl_mean: Option<f64>,
    /// Largest 99th percentile of the same.
    pub kl_p99: Option<f64>,
    /// Least part of positions where artifact and reference pick the same token, 0 to 1.
    pub top1_agreement: Option<f64>,
    /// Least exact match of the artifact, 0 to 1.
    pub score: Option<f64>,
    /// Largest exact match lost against the reference, 0 to 1.
    pub score_drop: Option<f64>,
    /// Least exact match of the chain's largest checkpoint, 0 to 1: a student of a bad teacher proves nothing.
    pub teacher_score: Option<f64>,
    /// Least bytes of the chain's largest checkpoint in f32 ÷ bytes of the artifact's weights, at least 1.
    pub compression_ratio: Option<f64>,
    /// A check whose sample is too small to decide counts as passed.
    #[serde(default)]
    pub allow_undecided: bool,
    /// What integers are multiplied with while this is measured: `"int8"`, activations rounded as they come, or `"f32"`, as they are.
    #[serde(default)]
    pub activations: Multiplied,
}

/// What the engine multiplies matrices of integers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Multiplied {
    /// Activations rounded to INT8 as they come: as it runs everywhere.
    #[default]
    Int8,
    /// Activations as they are: what the weights alone cost.
    F32,
}

/// The defaults; each stands here and nowhere else.
mod default {
    use super::CandidateScheme;

    pub(super) fn batch_size() -> usize {
        16
    }
    pub(super) fn sequence_length() -> usize {
        256
    }
    pub(super) fn learning_rate() -> f64 {
        1e-3
    }
    pub(super) fn scale_learning_rate() -> f64 {
        1e-3
    }
    pub(super) fn min_learning_rate_ratio() -> f64 {
        0.1
    }
    pub(super) fn weight_decay() -> f64 {
        0.01
    }
    pub(super) fn beta_1() -> f64 {
        0.9
    }
    pub(super) fn beta_2() -> f64 {
        0.95
    }
    pub(super) fn epsilon() -> f64 {
        1e-8
    }
    pub(super) fn gradient_clip() -> f64 {
        1.0
    }
    pub(super) fn gradient_accumulation() -> usize {
        1
    }
    pub(super) fn save_every() -> usize {
        100
    }
    pub(super) fn temperature() -> f64 {
        2.0
    }
    pub(super) fn kd_ratio() -> f64 {
        0.5
    }
    pub(super) fn channel_multiple() -> usize {
        32
    }
    pub(super) fn calibration_tokens() -> usize {
        16_384
    }
    pub(super) fn quantization_tokens() -> usize {
        65_536
    }
    pub(super) fn candidates() -> Vec<CandidateScheme> {
        let candidate = |(bits, group_size)| CandidateScheme { bits, group_size: Some(group_size) };
        [(3, 32), (4, 32), (5, 64), (6, 64), (8, 64)].map(candidate).to_vec()
    }
    pub(super) fn sensitivity_tokens() -> usize {
        512
    }
    pub(super) fn damping() -> f64 {
        0.01
    }
    pub(super) fn activation_order() -> bool {
        true
    }
    pub(super) fn symmetric() -> bool {
        true
    }
    pub(super) fn embedding_group_size() -> usize {
        32
    }
    pub(super) fn windows() -> usize {
        20
    }
    pub(super) fn window() -> usize {
        512
    }
    pub(super) fn first_scored() -> usize {
        257
    }
    pub(super) fn examples() -> usize {
        1000
    }
    pub(super) fn parity() -> f64 {
        1e-2
    }
}

impl Default for Verify {
    /// Measures and checks nothing but integrity and parity.
    fn default() -> Self {
        Self {
            windows: default::windows(),
            window: default::window(),
            first_scored: default::first_scored(),
            examples: default::examples(),
            parity: default::parity(),
            perplexity_increase: None,
            kl_mean: None,
            kl_p99: None,
            top1_agreement: None,
            score: None,
            score_drop: None,
            teacher_score: None,
            compression_ratio: None,
            allow_undecided: false,
            activations: Multiplied::default(),
        }
    }
}

impl Stage {
    /// Its name in the recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Train(_) => "train",
            Self::Distill(_) => "distill",
            Self::Prune(_) => "prune",
            Self::Quantize(_) => "quantize",
            Self::LearnScales(_) => "learn_scales",
            Self::Verify(_) => "verify",
        }
    }

    /// Whether it trains weights as they will be rounded.
    pub fn is_quantization_aware(&self) -> bool {
        match self {
            Self::Train(train) => train.quantization_aware,
            Self::Distill(distill) => distill.quantization_aware,
            Self::Prune(_) | Self::Quantize(_) | Self::LearnScales(_) | Self::Verify(_) => false,
        }
    }

    /// Adds every value that is out of its range.
    pub(super) fn check(&self, place: &Place, found: &mut OutOfRange) {
        match self {
            Self::Train(train) => check_training(&train.training(), place, found),
            Self::Distill(distill) => {
                check_training(&distill.training(), place, found);
                check_temperature(distill.temperature, place, found);
                check_range(&place.then("kd_ratio"), "kd_ratio", distill.kd_ratio, 0.0, 1.0, &mut found.alone);
                if let Some(teacher) = &distill.teacher {
                    check_path(&place.then("teacher"), teacher, found);
                }
                match &distill.student {
                    Some(Student::New(sizes)) => sizes.check(&place.then("student").then("new"), found),
                    Some(Student::Layers(layers)) => {
                        let most = Architecture::MOST_LAYERS as f64;
                        check_range(&place.then("student").then("layers"), "layers", *layers as f64, 1.0, most, &mut found.alone);
                    }
                    Some(Student::Checkpoint(path)) => check_path(&place.then("student").then("checkpoint"), path, found),
                    None => {}
                }
            }
            Self::Prune(prune) => {
                for (key, value, least, most) in [
                    ("head_ratio", prune.head_ratio, 0.0, 1.0),
                    ("channel_ratio", prune.channel_ratio, 0.0, 1.0),
                    ("channel_multiple", prune.channel_multiple as f64, 1.0, 65536.0),
                    ("calibration_tokens", prune.calibration_tokens as f64, 1.0, 1e9),
                ] {
                    check_range(&place.then(key), key, value, least, most, &mut found.alone);
                }
            }
            Self::Quantize(quantize) => {
                for (key, value, least, most) in [
                    ("calibration_tokens", quantize.calibration_tokens as f64, 1.0, 1e9),
                    ("sensitivity_tokens", quantize.sensitivity_tokens as f64, 1.0, 1e9),
                    ("damping", quantize.damping, f64::MIN_POSITIVE, 1.0),
                    ("target_bits_per_weight", quantize.target_bits_per_weight.unwrap_or(1.0), f64::MIN_POSITIVE, 32.0),
                    ("migration_strength", quantize.migration_strength.unwrap_or_default(), 0.0, 1.0),
                ] {
                    check_range(&place.then(key), key, value, least, most, &mut found.alone);
                }
                for (key, entries, most) in [
                    ("candidates", quantize.candidates.len(), MOST_CANDIDATES),
                    ("overrides", quantize.overrides.len(), MOST_OVERRIDES),
                ] {
                    if entries > most {
                        let message = format!("{key} has {entries} entries; at most {most} are taken");
                        found.alone.push((place.then(key), Mistake::new(message)));
                    }
                }
                quantize.check_target(place, found);
                if quantize.migration_strength.is_some() && quantize.scaling != Scaling::SmoothQuant {
                    let message = "migration_strength is set, and scaling is not \"smoothquant\"".to_owned();
                    let hint = "leave migration_strength out, or set scaling = \"smoothquant\"";
                    found.together.push((place.then("migration_strength"), Mistake::new(message).hint(hint)));
                }
            }
            Self::LearnScales(learning) => {
                check_training(&learning.training(), place, found);
                check_temperature(learning.temperature, place, found);
                if let Some(teacher) = &learning.teacher {
                    check_path(&place.then("teacher"), teacher, found);
                }
            }
            Self::Verify(verify) => {
                for (key, value, least, most) in [
                    ("windows", Some(verify.windows as f64), 1.0, 1e9),
                    ("window", Some(verify.window as f64), 2.0, 1e6),
                    ("examples", Some(verify.examples as f64), 1.0, 1e9),
                    ("parity", Some(verify.parity), f64::MIN_POSITIVE, 1e6),
                    ("perplexity_increase", verify.perplexity_increase, 0.0, 1e6),
                    ("kl_mean", verify.kl_mean, 0.0, 1e6),
                    ("kl_p99", verify.kl_p99, 0.0, 1e6),
                    ("top1_agreement", verify.top1_agreement, 0.0, 1.0),
                    ("score", verify.score, 0.0, 1.0),
                    ("score_drop", verify.score_drop, 0.0, 1.0),
                    ("teacher_score", verify.teacher_score, 0.0, 1.0),
                    ("compression_ratio", verify.compression_ratio, 1.0, 1e6),
                ] {
                    if let Some(value) = value {
                        check_range(&place.then(key), key, value, least, most, &mut found.alone);
                    }
                }
                let (first, most) = (verify.first_scored as f64, (verify.window.max(2) - 1) as f64);
                check_range(&place.then("first_scored"), "first_scored", first, 1.0, most, &mut found.together);
            }
        }
    }
}

impl Quantize {
    /// Tokens that `"gptq"` and `"activation"` look at to quantize a candidate whose change is measured: eight times those it is
    /// measured on, and no more than `calibration_tokens`.
    pub fn tokens_of_a_candidate(&self) -> usize {
        (8 * self.sensitivity_tokens).min(self.calibration_tokens)
    }

    /// Bits are given, or one of the targets chooses them.
    fn check_target(&self, place: &Place, found: &mut OutOfRange) {
        let targets =
            [("target_bytes", self.target_bytes.is_some()), ("target_bits_per_weight", self.target_bits_per_weight.is_some())];
        let given: Vec<&str> = targets.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| *key).collect();
        let mut refuse =
            |place: Place, message: String, hint: &str| found.together.push((place, Mistake::new(message).hint(hint)));
        match (self.bits, given.as_slice()) {
            (Some(_), []) | (None, [_]) => {}
            (None, []) => refuse(place.clone(), "missing key `bits`".to_owned(), "or set target_bytes, which chooses them"),
            (Some(_), [target, ..]) => {
                let message = format!("bits and {target} are both set: a target chooses the bits of each matrix");
                refuse(place.then("bits"), message, "leave bits out; `overrides` settle those of some matrices");
            }
            (None, _) => {
                let message = "target_bytes and target_bits_per_weight are both set".to_owned();
                refuse(place.then("target_bits_per_weight"), message, "leave one of them out");
            }
        }
        if let [target] = given.as_slice() {
            if self.candidates.is_empty() {
                refuse(
                    place.then("candidates"),
                    format!("candidates is empty: {target} has nothing to choose from"),
                    "name some",
                );
            }
            if self.group_size.is_some() {
                let message = format!("group_size is set, and {target} chooses among the group sizes of `candidates`");
                refuse(place.then("group_size"), message, "leave group_size out");
            }
        }
    }
}

/// Each is measured on every matrix.
const MOST_CANDIDATES: usize = 64;
/// Each is held against every matrix.
const MOST_OVERRIDES: usize = 1000;

fn check_temperature(temperature: f64, place: &Place, found: &mut OutOfRange) {
    check_range(&place.then("temperature"), "temperature", temperature, f64::MIN_POSITIVE, 1e6, &mut found.alone);
}

fn check_training(keys: &TrainingKeys, place: &Place, found: &mut OutOfRange) {
    for (key, value, least, most) in [
        ("steps", keys.steps as f64, 1.0, 1e9),
        ("batch_size", keys.batch_size as f64, 1.0, 1e6),
        ("sequence_length", keys.sequence_length as f64, 2.0, 1e6),
        ("learning_rate", keys.learning_rate, f64::MIN_POSITIVE, 1.0),
        ("min_learning_rate_ratio", keys.min_learning_rate_ratio, 0.0, 1.0),
        ("weight_decay", keys.weight_decay, 0.0, 1.0),
        ("beta_1", keys.beta_1, 0.0, 0.999_999),
        ("beta_2", keys.beta_2, 0.0, 0.999_999),
        ("epsilon", keys.epsilon, f64::MIN_POSITIVE, 1.0),
        ("gradient_clip", keys.gradient_clip, f64::MIN_POSITIVE, 1e6),
        ("gradient_accumulation", keys.gradient_accumulation as f64, 1.0, 1e6),
        ("save_every", keys.save_every as f64, 1.0, 1e9),
    ] {
        check_range(&place.then(key), key, value, least, most, &mut found.alone);
    }
    let (warmup, most) = (keys.warmup_steps as f64, keys.steps.max(1) as f64 - 1.0);
    check_range(&place.then("warmup_steps"), "warmup_steps", warmup, 0.0, most, &mut found.together);
}
