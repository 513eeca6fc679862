//! What a chain cost its model, in one figure: against the model that it starts from, and by quantizing alone beside it.

use compressor_format::{Measured, Report, StageReport};

use crate::figures::{percent, perplexity, signed};

/// A change as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `score` where the dataset has answers, `perplexity` otherwise.
    pub what: &'static str,
    /// How much: since the first model where there is one that was measured, by quantizing otherwise.
    pub figure: String,
    /// The model that the chain starts from, or the first that it makes, with its own figure.
    pub since: Option<(String, String)>,
    /// The artifact against the dense model that it was made from.
    pub by_quantizing: Option<String>,
}

impl Change {
    /// What became of score or perplexity; `None` where neither was measured twice.
    pub fn of(report: &Report) -> Option<Self> {
        let points = |value: f64| format!("{} points", signed(100.0 * value, 2));
        let increase = |value: f64| format!("{} %", signed(100.0 * value, 2));
        let by_score = report.check("score lost").map(|check| points(-check.value));
        let by_perplexity = report.check("perplexity increase").map(|check| increase(check.value));
        let change = |what, figure, (first, before): (&StageReport, String), by_quantizing| {
            Some(Self { what, figure, since: Some((first.name.clone(), before)), by_quantizing })
        };
        let alone = |what, figure| Some(Self { what, figure, since: None, by_quantizing: None });
        if let Some((first, before, after)) = since_first(report, |step| step.score) {
            change("score", points(after - before), (first, percent(before)), by_score)
        } else if let Some(by_score) = by_score {
            alone("score", by_score)
        } else if let Some((first, before, after)) = since_first(report, |step| step.perplexity) {
            change("perplexity", increase(after / before - 1.0), (first, perplexity(before)), by_perplexity)
        } else {
            alone("perplexity", by_perplexity?)
        }
    }
}

/// The model that the chain starts from, or the one it made first where the ratio is against that, with its figure and the last one's.
fn since_first(report: &Report, of: fn(&StageReport) -> Option<Measured>) -> Option<(&StageReport, f64, f64)> {
    let made_first = || report.stages.first().filter(|step| report.reference.as_ref().is_some_and(|of| of.name == step.name));
    let first = report.original().or_else(made_first)?;
    let last = report.stages.last().filter(|last| last.name != first.name)?;
    Some((first, of(first)?.value, of(last)?.value))
}
