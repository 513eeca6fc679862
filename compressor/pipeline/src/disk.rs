//! What a run writes, against the room that there is.

use std::path::Path;

use compressor_format::{Mistake, Stage, WeightStorage};

use crate::plan::Step;
use crate::quantize::Quantization;

/// Bytes of a parameter in a training state: weight and both moments, in f32.
const STATE_BYTES: u64 = 3 * 4;

/// What a step puts on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Writes {
    /// What stays.
    kept: u64,
    /// One training state.
    state: u64,
    /// How often a state is saved.
    saves: usize,
}

/// The most bytes that the steps still to be done have on the disk at once, beside what is there now.
pub(crate) fn peak_bytes(steps: &[Step]) -> u64 {
    let to_do = steps.iter().filter(|step| !step.bookkeeping.join(crate::record::RECORD).exists());
    peak(to_do.map(writes))
}

fn writes(step: &Step) -> Writes {
    let saves = |steps: usize, every: usize| steps.saturating_sub(1) / every.max(1);
    let saves = match &step.stage {
        Stage::Train(train) => saves(train.steps, train.save_every),
        Stage::Distill(distill) => saves(distill.steps, distill.save_every),
        Stage::LearnScales(learning) => saves(learning.steps, learning.save_every),
        Stage::Prune(_) => 0,
        // Where text is looked at, finished layers wait beside activations until the artifact is written.
        Stage::Quantize(settings) => {
            let weights = step.output.weight_bytes;
            // What coding leaves lies beside the weights, at most as much.
            let coded = if settings.storage == WeightStorage::Entropy { weights } else { 0 };
            let kept = step.output.folder_bytes() + coded;
            let layers = if Quantization::from(settings).calibrates() { weights } else { 0 };
            return Writes { kept, state: layers + step.spilled_bytes, saves: 1 };
        }
        Stage::Verify(_) => return Writes::default(),
    };
    let learnt = match step.stage {
        // No scale takes less than two bytes of the artifact.
        Stage::LearnScales(_) => step.output.weight_bytes / 2,
        _ => step.output.architecture.parameters(),
    };
    Writes { kept: step.output.folder_bytes(), state: learnt * STATE_BYTES, saves }
}

fn peak(steps: impl Iterator<Item = Writes>) -> u64 {
    let (mut kept, mut peak) = (0_u64, 0);
    for step in steps {
        // A state is written whole before the one before it goes; the last is there until the result is.
        let saving = step.saves.min(2) as u64 * step.state;
        let ending = step.saves.min(1) as u64 * step.state + step.kept;
        peak = peak.max(kept + saving.max(ending));
        kept += step.kept;
    }
    peak
}

/// Refuses a run that can't end: the file system that holds `folder`, which exists, has less room than it writes.
pub(crate) fn refusal(folder: &Path, needed: u64) -> Option<Mistake> {
    // Not every file system tells; the write itself then does.
    too_little(needed, fs4::available_space(folder).ok()?)
}

fn too_little(needed: u64, free: u64) -> Option<Mistake> {
    (needed > free).then(|| {
        let message = format!("the run writes up to {needed} bytes, and the disk of its folder has {free} bytes free");
        Mistake::new(message).hint("free some space, or set `output` to a folder on another disk")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_peak_is_that_of_the_worst_moment() {
        let steps = |steps: &[(u64, u64, usize)]| peak(steps.iter().map(|&(kept, state, saves)| Writes { kept, state, saves }));
        assert_eq!(steps(&[]), 0);
        assert_eq!(steps(&[(100, 300, 0), (30, 90, 0)]), 130);
        // Two states of 300 are there before the checkpoint of 100 comes beside the last of them.
        assert_eq!(steps(&[(100, 300, 5), (30, 90, 0)]), 600);
        assert_eq!(steps(&[(100, 300, 1)]), 400);
        assert_eq!(steps(&[(100, 300, 0), (500, 120, 2), (10, 0, 0)]), 720);
    }

    #[test]
    fn less_room_than_is_written_is_refused_with_both_numbers() {
        assert_eq!(too_little(1000, 1000), None);
        let mistake = too_little(1001, 1000).unwrap();
        assert_eq!(mistake.message, "the run writes up to 1001 bytes, and the disk of its folder has 1000 bytes free");
        assert_eq!(mistake.hint.unwrap(), "free some space, or set `output` to a folder on another disk");
    }

    #[test]
    fn a_disk_says_how_much_room_it_has() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(refusal(folder.path(), 0), None);
        let mistake = refusal(folder.path(), u64::MAX).unwrap();
        assert!(mistake.message.starts_with("the run writes up to 18446744073709551615 bytes"), "{mistake}");
    }
}
