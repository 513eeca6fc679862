//! What a step's result depends on, as one hash.

use std::path::Path;

use compressor_format::{Result, hash_file};
use serde::Serialize;

/// Raised when a stage computes something else from the same settings: finished steps of older versions are then done again.
const VERSION: u32 = 1;

/// Collects what a result depends on.
#[derive(Clone)]
pub(crate) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    pub(crate) fn new(kind: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&VERSION.to_le_bytes());
        Self(hasher).text(kind)
    }

    /// A text, with its length, so that two neighbours can't be read as other ones.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    /// Settings, by their JSON.
    pub(crate) fn settings(self, settings: &impl Serialize) -> Self {
        let text = serde_json::to_string(settings).expect("settings are plain data with text keys");
        self.text(&text)
    }

    /// A file's name and contents.
    pub(crate) fn file(self, path: &Path) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(self.text(&name).text(&hash_file(path)?))
    }

    pub(crate) fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}
