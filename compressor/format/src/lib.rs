//! Everything `compressor` keeps on disk: recipe, model, dataset, artifact, report.
//!
//! Nothing here computes with a model, and nothing here knows Burn.

mod error;
mod gguf;
mod mapped;

pub use error::{Error, Result};
pub use gguf::{GgmlType, GgufFile, GgufTensor, gguf_name};
pub use mapped::{MappedBytes, map_file};
