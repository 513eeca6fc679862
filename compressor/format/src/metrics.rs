//! `metrics.jsonl`: what every training step did, one JSON object a line.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;

/// What one training step did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLosses {
    /// Steps done, this one included.
    pub step: u64,
    /// The objective, mean per unmasked token.
    pub loss: f64,
    /// Cross entropy with the targets, nats per unmasked token.
    pub cross_entropy: f64,
    /// KL divergence from teacher to student at the temperature, without its square, nats per unmasked token; 0 for equal logits.
    pub kl: Option<f64>,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Euclidean norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Tokens that the model read: without padding and what else comes after a row's last unmasked position.
    pub tokens: u64,
    /// Wall time of this step.
    pub seconds: f64,
}

/// Losses written as they happen. A resumed training repeats the steps since its last saved state: of two lines with the same step, the
/// later one counts.
#[derive(Debug)]
pub struct Metrics(fs_err::File);

impl Metrics {
    /// The name of the file in a checkpoint's folder.
    pub const FILE: &str = "metrics.jsonl";

    /// Where the file of a checkpoint's folder lies.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(Self::FILE)
    }

    /// Opens the file of a checkpoint's folder to write on where it ends.
    ///
    /// # Errors
    /// [`crate::Error::Io`] where the file can't be made.
    pub fn append(folder: &Path) -> Result<Self> {
        Ok(Self(fs_err::OpenOptions::new().create(true).append(true).open(Self::path(folder))?))
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`crate::Error::Io`], such as a full disk.
    pub fn write(&mut self, losses: &StepLosses) -> Result<()> {
        let line = serde_json::to_string(losses).expect("losses are plain data");
        Ok(self.0.write_all(format!("{line}\n").as_bytes())?)
    }
}
