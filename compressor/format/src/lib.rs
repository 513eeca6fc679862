//! Everything `compressor` keeps on disk: recipe, model, dataset, artifact, report.
//!
//! Nothing here computes with a model, and nothing here knows Burn.

mod error;
mod mapped;
mod write;

pub use error::{Error, Result};
pub use mapped::{MappedBytes, map_file};
pub use write::write_beside;
