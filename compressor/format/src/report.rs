//! The report: what each stage made and what each check found.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Reference, Result, write_beside};

/// Everything a run found out, saved again after every stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub tool_version: String,
    /// The recipe's name.
    pub name: String,
    /// The recipe with every default filled in.
    pub recipe: Value,
    /// What compression ratios are against: the checkpoint the chain starts with, or the first one it makes.
    pub reference: Option<Reference>,
    /// What the figures of time and memory were measured on.
    pub machine: Machine,
    /// What each finished stage made, in order; before them [`ORIGINAL`], where the chain starts from a model that is there.
    pub stages: Vec<StageReport>,
    /// Every comparison, checked or only measured.
    pub checks: Vec<Check>,
    /// Whether every check passed; `None` until verification is done, or where the recipe has none.
    pub passed: Option<bool>,
}

/// What the figures of time and memory were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor, as the operating system names it.
    pub processor: String,
    /// Threads that the program may use.
    pub threads: usize,
    /// Operating system and instruction set.
    pub platform: String,
}

/// What one stage made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its folder, `2-distill` for example.
    pub name: String,
    /// BLAKE3 of its settings, its inputs and the format version.
    pub fingerprint: String,
    /// Weights, tied ones counted once.
    pub parameters: u64,
    /// Bytes of the files that hold weights.
    pub bytes: u64,
    /// The type most weights are stored in, or the scheme.
    pub stored_as: String,
    /// Bytes of the chain's reference in its own dtype ÷ `bytes`.
    pub compression_ratio: f64,
    /// Perplexity on held-out text.
    pub perplexity: Option<Measured>,
    /// Exact match on held-out examples.
    pub score: Option<Measured>,
    /// How long it took.
    pub seconds: f64,
    /// Peak memory of the program during the stage, in bytes; where the operating system keeps one peak alone, by the end of it.
    pub peak_memory_bytes: Option<u64>,
    /// What only this kind of stage has: losses, cuts, the errors of tensors.
    pub details: Value,
}

/// A figure with the sample it was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The figure.
    pub value: f64,
    /// Tokens or examples it was measured on.
    pub sample_size: u64,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was measured.
    pub name: String,
    /// What was found; `null` in JSON where it is not a number.
    #[serde(deserialize_with = "nan_for_null")]
    pub value: f64,
    /// How the value reads: `nats/token`, `bytes`, `ms`, or empty.
    pub unit: String,
    /// The limit from the recipe; `None` where it was only measured.
    pub threshold: Option<f64>,
    /// Which side of the threshold is good.
    pub limit: Option<Limit>,
    /// Tokens, examples or files it was measured on.
    pub sample_size: u64,
    /// The 95 % confidence interval, where the value comes from a sample; an end that the sample can't tell is `None`.
    pub interval: Option<[Option<f64>; 2]>,
    /// Whether it stands in nobody's way: passed, or only measured.
    pub passed: bool,
    /// What became of it.
    pub outcome: Outcome,
    /// What is needed to understand it, a file's name for example.
    pub note: Option<String>,
}

/// Which side of a threshold is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The value may not be above it.
    AtMost,
    /// The value may not be below it.
    AtLeast,
}

/// A threshold with its side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// The value may not be above it.
    AtMost(f64),
    /// The value may not be below it.
    AtLeast(f64),
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole confidence interval keeps the limit.
    Passed,
    /// The value breaks the limit.
    Failed,
    /// The value keeps the limit, but the sample is too small to be sure.
    Undecided,
    /// There is no limit.
    Measured,
}

/// The name of the row that stands before the first stage's: the model that the chain starts from.
pub const ORIGINAL: &str = "0-original";

/// Version of the report's layout.
pub const REPORT_VERSION: u32 = 1;

impl Check {
    /// Decides a comparison: the value against the threshold, then the far end of its interval.
    pub fn new(
        name: &str,
        value: f64,
        unit: &str,
        threshold: Option<Threshold>,
        sample_size: u64,
        interval: Option<[f64; 2]>,
    ) -> Self {
        let keeps = |value: f64| match threshold {
            Some(Threshold::AtMost(limit)) => value <= limit,
            Some(Threshold::AtLeast(limit)) => value >= limit,
            None => true,
        };
        let outcome = match threshold {
            None => Outcome::Measured,
            // NaN keeps nothing.
            Some(_) if !keeps(value) => Outcome::Failed,
            Some(_) if interval.is_some_and(|ends| !ends.into_iter().all(keeps)) => Outcome::Undecided,
            Some(_) => Outcome::Passed,
        };
        let (limit, threshold) = match threshold {
            None => (None, None),
            Some(Threshold::AtMost(threshold)) => (Some(Limit::AtMost), Some(threshold)),
            Some(Threshold::AtLeast(threshold)) => (Some(Limit::AtLeast), Some(threshold)),
        };
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            threshold,
            limit,
            sample_size,
            interval: interval.map(|ends| ends.map(|end| end.is_finite().then_some(end))),
            passed: matches!(outcome, Outcome::Passed | Outcome::Measured),
            outcome,
            note: None,
        }
    }

    /// With what is needed to understand it.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }
}

/// JSON has no NaN: it is written as `null`.
fn nan_for_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl StageReport {
    /// Why perplexity and score of [`ORIGINAL`] are missing although there is text to measure on.
    pub fn not_measured(&self) -> Option<&str> {
        self.details["not_measured"].as_str()
    }
}

impl Report {
    /// The model that the chain starts from, as it was measured before anything was done to it.
    pub fn original(&self) -> Option<&StageReport> {
        self.stages.first().filter(|step| step.name == ORIGINAL)
    }

    /// What the finished stages made, without [`Self::original`].
    pub fn steps(&self) -> &[StageReport] {
        &self.stages[usize::from(self.original().is_some())..]
    }

    /// What the last verification found under this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().rev().find(|check| check.name == name)
    }

    /// The report in a run folder.
    pub fn path(run_folder: &Path) -> PathBuf {
        run_folder.join("report.json")
    }

    /// Writes `report.json` beside its place and renames it.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder can't be written.
    pub fn save(&self, run_folder: &Path) -> Result<()> {
        let path = Self::path(run_folder);
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::malformed(&path, error.to_string()))?;
        write_beside(path, |file| Ok(writeln!(file, "{text}")?))
    }

    /// Reads the report of a run folder.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none, [`Error::Malformed`] where it is damaged, [`Error::Unsupported`] for another version.
    pub fn read(run_folder: &Path) -> Result<Self> {
        let path = Self::path(run_folder);
        let json = crate::read_file(&path, crate::LIST_BYTES)?;
        let report: Self =
            serde_json::from_slice(&json).map_err(|error| Error::unreadable(&path, &json, format!("is no report: {error}")))?;
        match report.format_version {
            REPORT_VERSION => Ok(report),
            version => {
                let what = format!("has format version {version}, this program reads {REPORT_VERSION}");
                Err(Error::unsupported(&path, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(value: f64, interval: Option<[f64; 2]>) -> Outcome {
        Check::new("kl_mean", value, "nats/token", Some(Threshold::AtMost(0.1)), 100, interval).outcome
    }

    #[test]
    fn a_sample_too_small_to_decide_is_undecided_and_a_broken_limit_is_failed_whatever_the_sample() {
        assert_eq!(outcome(0.05, Some([0.04, 0.06])), Outcome::Passed);
        assert_eq!(outcome(0.05, Some([-0.03, 0.13])), Outcome::Undecided);
        assert_eq!(outcome(0.11, Some([0.0, 0.22])), Outcome::Failed);
        assert_eq!(outcome(0.1, None), Outcome::Passed);
    }

    #[test]
    fn a_check_survives_json_whatever_was_measured() {
        let check = Check::new("p99", f64::NAN, "ms", Some(Threshold::AtMost(1.0)), 3, Some([0.5, f64::INFINITY]));
        let read: Check = serde_json::from_str(&serde_json::to_string(&check).expect("plain data")).expect("what was written");
        assert!(read.value.is_nan());
        assert_eq!((read.outcome, read.interval), (Outcome::Failed, Some([Some(0.5), None])));
    }

    #[test]
    fn a_report_of_another_version_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = Report {
            format_version: REPORT_VERSION,
            tool_version: "0.1.0".to_owned(),
            name: "small".to_owned(),
            recipe: Value::Null,
            reference: None,
            machine: Machine { processor: "one".to_owned(), threads: 2, platform: "linux".to_owned() },
            stages: Vec::new(),
            checks: Vec::new(),
            passed: None,
        };
        report.save(folder.path()).expect("a folder that can be written");
        assert_eq!(Report::read(folder.path()).expect("what was written"), report);
        Report { format_version: 9, ..report }.save(folder.path()).expect("a folder that can be written");
        let expected = format!("{}: has format version 9, this program reads 1", Report::path(folder.path()).display());
        assert_eq!(Report::read(folder.path()).expect_err("another version").to_string(), expected);
    }

    #[test]
    fn nan_never_passes() {
        assert_eq!(outcome(f64::NAN, None), Outcome::Failed);
        assert_eq!(outcome(0.05, Some([f64::NAN, 0.06])), Outcome::Undecided);
    }
}
