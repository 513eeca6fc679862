//! Everything `compressor` keeps on disk: recipe, model, dataset, artifact, report.
//!
//! Nothing here computes with a model, and nothing here knows Burn.

mod architecture;
mod artifact;
mod chat;
mod checkpoint;
#[cfg(test)]
mod damage;
mod dataset;
mod error;
mod families;
mod gguf;
mod manifest;
mod mapped;
mod metrics;
mod model;
mod quantized;
mod recipe;
mod report;
mod safetensors;
mod tokenizer;
mod weights;
mod write;

pub use architecture::{
    Activation, Architecture, Attention, LayerShape, LayerTensor, Mlp, Norm, NormKind, Part, Positions, RotaryScaling, TensorId,
};
pub use artifact::{Artifact, ArtifactTensor, NewArtifact, NewArtifactTensor, Storage};
pub use chat::{ChatTemplate, Message, Role, end_tokens};
pub use checkpoint::{Checkpoint, copy_companions, read_config};
pub use dataset::samples::{Batch, Batches, SampleOrder, Samples, Tokens};
pub use dataset::{Dataset, Examples, FileSet, GrammarSet, JsonlSet, Pair, Split, TextSet, completion_matches};
pub use error::{Error, Result};
pub use families::{Family, StoredTensor};
pub use gguf::{GgmlType, GgufFile, GgufTensor, gguf_name};
pub use manifest::{DenseTensor, FileHash, Manifest, Mismatch, OpensIn, Reference, Tool};
pub use mapped::{MappedBytes, map_file};
pub use metrics::{Metrics, StepLosses};
pub use model::Model;
pub use quantized::{QuantizedMatrix, Scheme, Values, WeightBytes, pack, unpack};
pub use recipe::{
    Activations, Budget, Clipping, Distill, Draft, EmbeddingScheme, HeadUnit, Importance, MagnitudeNorm, Mistake, ModelSource,
    Place, Prune, Quantize, Recipe, RecipeText, Sizes, Stage, Student, Train, TrainingKeys, Verify, by_line,
};
pub use report::{Check, Limit, Machine, Measured, Outcome, REPORT_VERSION, Report, StageReport, Threshold};
pub use safetensors::{Dtype, NewTensor, TensorFiles, TensorSlice, safetensors_file_bytes, write_safetensors};
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::{Weights, check_finite, write_config};
pub use write::write_beside;
