//! `metrics.jsonl`: what every training step did, one JSON object a line.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Result, open_own};

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

/// No line has as many bytes.
const LONGEST_LINE: u64 = 64 << 10;

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
    /// [`crate::Error::Io`] where the file can't be made, [`crate::Error::Refused`] where it is a link.
    pub fn append(folder: &Path) -> Result<Self> {
        let mut file = open_own(&Self::path(folder), fs_err::File::options().read(true).append(true))?;
        let bytes = file.metadata()?.len();
        let before = bytes.saturating_sub(LONGEST_LINE);
        file.seek(SeekFrom::Start(before))?;
        let mut last = Vec::new();
        Read::by_ref(&mut file).take(LONGEST_LINE).read_to_end(&mut last)?;
        let whole = last.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        // A kill left a line half written: no saved state covers its step, which is done and written again. Much without the end of a
        // line is none of ours, and stays.
        if (whole > 0 || before == 0) && before + whole < bytes {
            file.set_len(before + whole)?;
        }
        Ok(Self(file))
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`crate::Error::NoRoom`] on a full disk, [`crate::Error::Io`] otherwise.
    pub fn write(&mut self, losses: &StepLosses) -> Result<()> {
        let line = serde_json::to_string(losses).expect("losses are plain data");
        let written = self.0.write_all(format!("{line}\n").as_bytes());
        written.map_err(|error| crate::Error::not_written(self.0.path(), error))
    }

    /// Waits until every line is on disk.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn sync(&self) -> Result<()> {
        self.0.sync_data().map_err(|error| crate::Error::not_written(self.0.path(), error))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_line_that_a_kill_left_half_written_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let losses = |step| StepLosses {
            step,
            loss: 1.0,
            cross_entropy: 1.0,
            kl: None,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            tokens: 8,
            seconds: 0.5,
        };
        Metrics::append(folder.path()).unwrap().write(&losses(1)).unwrap();
        let path = Metrics::path(folder.path());
        let whole = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("{whole}{{\"step\":2,\"lo")).unwrap();
        Metrics::append(folder.path()).unwrap().write(&losses(2)).unwrap();
        let lines = fs_err::read_to_string(&path).unwrap();
        let steps: Vec<Option<u64>> =
            lines.lines().map(|line| serde_json::from_str::<StepLosses>(line).ok().map(|losses| losses.step)).collect();
        assert_eq!(steps, [Some(1), Some(2)]);
    }
}
