//! What an artifact carries beside its weights: the manifest and the tokenizer.

use std::path::Path;

use compressor_format::{Checkpoint, Tokenizer};

use crate::Error;

/// Opens the tokenizer that lies with a model, a folder or a GGUF file.
///
/// # Errors
/// Where there is none, or it is damaged.
pub fn open_tokenizer(model: &Path) -> Result<Tokenizer, Error> {
    match model.is_dir() {
        true => Ok(Tokenizer::open(model.join("tokenizer.json"))?),
        false => Ok(Checkpoint::open(model)?.tokenizer()?),
    }
}
