//! Everything `compressor` keeps on disk: recipe, model, dataset, artifact, report.
//!
//! Nothing here computes with a model, and nothing here knows Burn.

pub mod dataset;
mod error;
mod mapped;
pub mod tokenizer;
mod write;

pub use dataset::{Dataset, Examples, Pair, Split};
pub use error::{Error, Result};
pub use mapped::{MappedBytes, map_file};
pub use tokenizer::Tokenizer;
pub use write::write_beside;
