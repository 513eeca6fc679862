//! A model on disk, dense or quantized.

use std::path::Path;

use crate::{Architecture, Artifact, Checkpoint, Result, TensorId, read_config};

/// A model on disk.
#[derive(Clone, Debug)]
pub enum Model {
    /// Dense weights.
    Checkpoint(Checkpoint),
    /// Quantized weights.
    Artifact(Artifact),
}

impl Model {
    /// Opens a folder, an artifact where its `config.json` has a `quantization_config`, or a GGUF file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Artifact::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let quantized = path.is_dir() && read_config(path)?.get("quantization_config").is_some_and(|value| !value.is_null());
        match quantized {
            true => Artifact::open(path).map(Self::Artifact),
            false => Checkpoint::open(path).map(Self::Checkpoint),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.path(),
            Self::Artifact(artifact) => artifact.path(),
        }
    }

    /// What it is.
    pub fn architecture(&self) -> &Architecture {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.architecture(),
            Self::Artifact(artifact) => artifact.architecture(),
        }
    }

    /// The values of a tensor, dequantized where need be, `[out, in]`.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for NaN or an infinity.
    pub fn values(&self, id: TensorId) -> Result<Vec<f32>> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensor(id),
            Self::Artifact(artifact) => artifact.values(id),
        }
    }

    /// Bytes of the files that hold weights.
    ///
    /// # Errors
    /// [`crate::Error::Io`] where a file is gone.
    pub fn weight_bytes(&self) -> Result<u64> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.weight_bytes(),
            Self::Artifact(artifact) => artifact.weight_bytes(),
        }
    }
}
