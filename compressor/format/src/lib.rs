//! Everything `compressor` keeps on disk: recipe, model, dataset, artifact, report.
//!
//! Nothing here computes with a model, and nothing here knows Burn.
//!
//! Without the feature `std`, which is on by default, what is left needs `alloc` alone: [`Model::from_bytes`] and the types of what
//! it reads. An engine for firmware or a browser is built on that.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod architecture;
mod artifact;
mod checkpoint;
mod codebooks;
mod encoding;
mod error;
mod families;
mod mapped;
mod mistaken;
mod model;
mod origin;
mod quantized;
mod safetensors;
mod scales;

#[cfg(feature = "std")]
mod chat;
#[cfg(feature = "std")]
mod coded;
#[cfg(feature = "std")]
mod content;
#[cfg(all(test, feature = "std"))]
mod damage;
#[cfg(feature = "std")]
mod dataset;
#[cfg(feature = "std")]
mod delta;
#[cfg(feature = "std")]
mod entropy;
#[cfg(feature = "std")]
mod gguf;
#[cfg(feature = "std")]
mod manifest;
#[cfg(feature = "std")]
mod metrics;
#[cfg(feature = "std")]
mod prompt_cache;
#[cfg(feature = "std")]
mod read;
#[cfg(feature = "std")]
mod recipe;
#[cfg(feature = "std")]
mod report;
#[cfg(feature = "std")]
mod tokenizer;
#[cfg(feature = "std")]
mod weights;
#[cfg(feature = "std")]
mod write;

pub use architecture::{
    Activation, Architecture, Attention, LayerShape, LayerTensor, Mlp, Norm, NormKind, Part, Positions, RotaryScaling, TensorId,
};
pub use artifact::{Artifact, ArtifactTensor, InputRounding};
pub use checkpoint::Checkpoint;
pub use codebooks::{CodebookMatrix, Codebooks, Levels};
pub use error::{Error, Result, check_finite};
pub use families::{Family, StoredTensor};
pub use mapped::MappedBytes;
pub use model::Model;
pub use origin::Origin;
pub use quantized::{QuantizedMatrix, Scheme, Values, WeightBytes, pack, unpack};
pub use safetensors::{Dtype, TensorFiles, TensorSlice};
pub use scales::Scales;

#[cfg(feature = "std")]
pub use {
    artifact::{ArtifactLayout, ArtifactWriter, NewArtifact, NewArtifactTensor, ScalesByTensor, Storage},
    chat::process::{answer_rendering, limit_rendering},
    chat::{ChatTemplate, Message, Role, end_tokens},
    checkpoint::{StoredAs, copy_companions, read_config},
    dataset::samples::{Batch, Batches, SampleOrder, Samples, Tokens},
    dataset::{Dataset, Examples, FileSet, GrammarSet, JsonlSet, Pair, Split, TextSet, completion_matches},
    delta::{Delta, write_delta},
    encoding::decode_text,
    entropy::{EntropyFile, write_entropy},
    gguf::{GgmlType, GgufFile, GgufReport, GgufTensor, gguf_name, write_gguf},
    manifest::{DenseTensor, FileHash, Manifest, Mismatch, OpensIn, Reference, Tool, hash_file},
    mapped::map_file,
    metrics::{Metrics, StepLosses},
    prompt_cache::{CachedLayer, CachedVectors, Computation, PromptCache},
    read::{DESCRIPTION_BYTES, LIST_BYTES, is_model_folder, open_file, read_file, read_text},
    recipe::{
        Activations, Alternative, Budget, ByteSize, CandidateScheme, Clipping, Distill, Draft, EmbeddingScheme, HeadUnit,
        Importance, LearnScales, MagnitudeNorm, Method, Mistake, ModelSource, Multiplied, Override, Place, Prune, Quantize,
        Recipe, RecipeText, ScaleDtype, Scaling, Sizes, Stage, Student, Train, TrainingKeys, Verify, WeightStorage, by_line,
    },
    report::{Check, Limit, Machine, Measured, ORIGINAL, Outcome, REPORT_VERSION, Report, StageReport, Threshold},
    safetensors::{NewTensor, safetensors_file_bytes, write_safetensors, write_safetensors_with},
    tokenizer::{TextStream, Tokenizer},
    weights::{Weights, write_config},
    write::folder::{Begun, Made, NewFolder, fingerprint_of},
    write::{Lock, check_apart, check_writable, create_scratch, open_own, write_beside},
};
