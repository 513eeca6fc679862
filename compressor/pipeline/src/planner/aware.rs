//! Quantization-aware stages: which quantization they train for, and why that can't be known.

use compressor_format::{Architecture, Dtype, Mistake, Place, Quantize, Stage};

use super::Planner;
use crate::fingerprint::Fingerprint;
use crate::quantize::{Quantization, Target, Unforeseen, resolve, unforeseen};

impl Planner<'_> {
    /// What a stage trains for: the quantize stage after it says.
    pub(super) fn quantization_after(&self, index: usize) -> Option<Quantization> {
        let stages = &self.recipe.stages;
        let (_, settings) = next_quantize(stages, index).filter(|_| stages[index].is_quantization_aware())?;
        Some(settings.into())
    }

    /// Refuses quantization-aware stages whose weights are not what will be rounded, or not to what is known.
    pub(super) fn check_awareness(&mut self) {
        let stages = &self.recipe.stages;
        for (index, stage) in stages.iter().enumerate().filter(|(_, stage)| stage.is_quantization_aware()) {
            let place = Place::stage(index, stage.name()).then("quantization_aware");
            let Some((quantize, settings)) = next_quantize(stages, index) else {
                let what = "quantization_aware needs a quantize stage after it, which says what weights are rounded to";
                self.refuse(&place, Mistake::new(what).hint("add [stage.quantize], or leave quantization_aware out"));
                continue;
            };
            for (other, between) in stages.iter().enumerate().take(quantize).skip(index + 1) {
                let name = format!("{}-{}", other + 1, between.name());
                if let Some(way_out) = way_out(between, &name) {
                    let what =
                        format!("quantization_aware trains the weights that [stage.quantize] rounds, and {name} changes them");
                    self.refuse(&place, Mistake::new(what).hint(way_out));
                }
            }
            for (what, way_out) in unknown(settings) {
                let what = format!("quantization_aware can't round to what [stage.quantize] asks for: {what}");
                let hint = format!("{way_out} there, or leave quantization_aware out");
                self.refuse(&place, Mistake::new(what).hint(hint));
            }
        }
    }
}

/// The quantization that comes after a stage, and which stage it is.
fn next_quantize(stages: &[Stage], index: usize) -> Option<(usize, &Quantize)> {
    let mut rest = stages.iter().enumerate().skip(index + 1);
    rest.find_map(|(other, stage)| if let Stage::Quantize(settings) = stage { Some((other, settings)) } else { None })
}

/// What helps where a stage comes between a training and the quantization that it is for; `None` where it may.
fn way_out(stage: &Stage, name: &str) -> Option<String> {
    let trains_on = |is_aware: bool| (!is_aware).then(|| format!("set quantization_aware in {name} too, or leave it out here"));
    match stage {
        Stage::Train(train) => trains_on(train.quantization_aware),
        Stage::Distill(distill) if distill.student.is_some() => {
            Some(format!("{name} begins with another student: leave quantization_aware out here"))
        }
        Stage::Distill(distill) => trains_on(distill.quantization_aware),
        Stage::Prune(_) => Some("move [stage.prune] before this stage".to_owned()),
        // Refused for their own sake, where they stand before a quantization.
        Stage::Quantize(_) | Stage::LearnScales(_) | Stage::Verify(_) => None,
    }
}

/// What is not known of a quantization before it is done, and what to set instead.
fn unknown(settings: &Quantize) -> Vec<(String, &'static str)> {
    let target = Target::of(settings).map(|_| {
        let what = "schemes that a target chooses when the weights stand still".to_owned();
        (what, "set bits, and overrides for some matrices,")
    });
    let unforeseen = unforeseen(&Quantization::from(settings)).into_iter();
    target.into_iter().chain(unforeseen.map(|what: Unforeseen| (what.to_string(), what.way_out()))).collect()
}

/// Adds what weights are rounded to, and nothing else of the quantization: with other storage, say, the training stays finished.
pub(super) fn fingerprint(fingerprint: Fingerprint, quantization: &Quantization, architecture: &Architecture) -> Fingerprint {
    match resolve(quantization, architecture, Dtype::F32) {
        Ok(sizes) => fingerprint.settings(&(sizes.tensors, quantization.clipping, quantization.scale_dtype.to_string())),
        // Refused where it is asked for.
        Err(_) => fingerprint,
    }
}
