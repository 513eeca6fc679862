//! Verification: loads what was written with the engine and compares it with what the recipe allows.

use std::path::Path;

use compressor_engine::{Engine, Logits};
use compressor_format::{
    Artifact, Budget, ByteSize, Check, Checkpoint, Manifest, Measured, Model, NewFolder, Outcome, Threshold, Tokenizer, Verify,
};
use serde::{Deserialize, Serialize};

use crate::measure::{Advances, Comparison, HeldOut};
use crate::statistics::{least_sample, mean, proportion, quantile};
use crate::{Error, Trainer};

/// Everything a verification found.
pub struct Findings {
    /// Every comparison.
    pub checks: Vec<Check>,
    /// Perplexity of the artifact.
    pub perplexity: Option<Measured>,
    /// Exact match of the artifact.
    pub score: Option<Measured>,
}

impl Findings {
    /// Whether nothing failed, and nothing is undecided unless that is allowed.
    pub fn passed(&self, allow_undecided: bool) -> bool {
        self.checks.iter().all(|check| match check.outcome {
            Outcome::Passed | Outcome::Measured => true,
            Outcome::Undecided => allow_undecided,
            Outcome::Failed => false,
        })
    }
}

/// Time and memory of an artifact, measured in a process of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    /// Milliseconds from start to the model being ready.
    pub load_milliseconds: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Milliseconds from the prompt to the first token.
    pub first_token_milliseconds: f64,
    /// Tokens of the prompt read in a second, when the model has run before.
    pub prompt_tokens_per_second: f64,
    /// Tokens generated in a second, on average.
    pub generate_tokens_per_second: f64,
    /// Milliseconds of each generated token after the first.
    pub token_milliseconds: Vec<f64>,
    /// Peak memory of the process, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// Measures time and memory in a process of its own, whose peak memory is the artifact's alone.
pub trait Bench {
    /// Loads the model and times `tokens` generated tokens.
    ///
    /// # Errors
    /// What the process said.
    fn bench(&self, model: &Path, tokens: usize) -> Result<BenchResult, Error>;
}

/// What a verification compares.
pub struct Subject<'a> {
    /// What is handed out.
    pub artifact: &'a Path,
    /// The dense checkpoint it was made from.
    pub reference: &'a Path,
    /// The chain's largest checkpoint, where the recipe asks something of it.
    pub largest: Option<&'a Path>,
    /// The tokenizer of all of them.
    pub tokenizer: &'a Tokenizer,
    /// What they are measured on.
    pub held_out: &'a HeldOut,
}

/// Tokens of the sequence on which engine and trainer are compared.
const PARITY_TOKENS: usize = 64;

/// Verifies an artifact.
///
/// # Errors
/// What keeps a check from being made; a check that fails is a finding, not an error.
pub fn verify(
    subject: &Subject<'_>,
    settings: &Verify,
    budget: &Budget,
    trainer: &dyn Trainer,
    bench: &dyn Bench,
    advances: Advances<'_>,
) -> Result<Findings, Error> {
    let mut checks = vec![integrity(subject.artifact)?];
    let artifact = Artifact::open(subject.artifact)?;
    let checkpoint = Checkpoint::open(subject.reference)?;
    let candidate = Engine::load(&Model::Artifact(artifact.clone()), crate::engine_options_of(settings))?;
    let reference = Engine::load(&Model::Checkpoint(checkpoint.clone()), crate::engine_options())?;
    checks.push(parity(&reference, &checkpoint, subject.held_out, trainer, settings.parity)?);

    let comparison = subject.held_out.compare(&reference, &candidate, advances)?;
    let samples = comparison.kl.len() as u64;
    checks.extend(closeness(&comparison, settings));
    let perplexity = Measured { value: mean(&comparison.losses[1]).0.exp(), sample_size: samples };

    let mut score = None;
    if !subject.held_out.prompts.is_empty() {
        let theirs = subject.held_out.exact_matches(&candidate, subject.tokenizer, advances)?;
        let ours = subject.held_out.exact_matches(&reference, subject.tokenizer, advances)?;
        let (value, interval) = proportion(count(&theirs), theirs.len());
        let samples = theirs.len() as u64;
        score = Some(Measured { value, sample_size: samples });
        checks.push(Check::new("score", value, "", settings.score.map(Threshold::AtLeast), samples, Some(interval)));
        checks.push(score_drop(&ours, &theirs, settings.score_drop));
    }
    if let Some(largest) = subject.largest {
        checks.extend(largest_checks(largest, &artifact, subject, settings, advances)?);
    }
    checks.extend(budget_checks(subject.artifact, budget, bench)?);
    Ok(Findings { checks, perplexity: Some(perplexity), score })
}

/// Verifies an artifact that stands alone: its files, that it loads and runs, and its bytes where there is a limit.
///
/// # Errors
/// What keeps a check from being made.
pub fn verify_alone(artifact: &Path, most_bytes: Option<ByteSize>) -> Result<Findings, Error> {
    let mut checks = vec![integrity(artifact)?];
    if checks[0].outcome == Outcome::Passed {
        let engine = Engine::open(artifact, crate::engine_options())?;
        let mut cache = engine.cache(2);
        let architecture = engine.architecture();
        // Some configurations name a token that the vocabulary does not have, and nobody reads it.
        let bos = architecture.bos_token_id.filter(|token| (*token as usize) < architecture.vocab_size);
        let tokens = [bos.unwrap_or(0), 0];
        let logits = engine.forward(&mut cache, &tokens, Logits::All)?;
        let broken = logits.iter().filter(|logit| !logit.is_finite()).count();
        checks.push(Check::new("logits not finite", broken as f64, "", Some(Threshold::AtMost(0.0)), logits.len() as u64, None));
    }
    if most_bytes.is_some() {
        checks.push(artifact_bytes(artifact, most_bytes)?);
    }
    Ok(Findings { checks, perplexity: None, score: None })
}

/// Every file against the manifest.
fn integrity(artifact: &Path) -> Result<Check, Error> {
    let manifest = Manifest::read(artifact)?;
    let mismatches = manifest.check(artifact)?;
    let count = mismatches.len() as f64;
    let check = Check::new("files changed", count, "", Some(Threshold::AtMost(0.0)), manifest.files.len() as u64, None);
    let notes: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
    Ok(if notes.is_empty() { check } else { check.note(notes.join("; ")) })
}

/// The engine's logits against the trainer's, on the dense checkpoint.
fn parity(
    engine: &Engine,
    checkpoint: &Checkpoint,
    held_out: &HeldOut,
    trainer: &dyn Trainer,
    threshold: f64,
) -> Result<Check, Error> {
    let longest = held_out.sequences.iter().max_by_key(|sequence| sequence.tokens.len());
    let tokens = longest.map_or(&[][..], |sequence| &sequence.tokens[..sequence.tokens.len().min(PARITY_TOKENS)]);
    let mut cache = engine.cache(tokens.len());
    let ours = engine.forward(&mut cache, tokens, Logits::All)?;
    let theirs = trainer.logits(&checkpoint.weights()?, tokens).map_err(Error::Trainer)?;
    let difference = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    // A length that differs, or NaN on either side, is no agreement.
    let all = ours.len() == theirs.len() && ours.iter().chain(&theirs).all(|logit| logit.is_finite());
    let difference = if all { difference } else { f64::NAN };
    Ok(Check::new("engine − trainer, logits", difference, "", Some(Threshold::AtMost(threshold)), ours.len() as u64, None))
}

/// How close the artifact stays to the reference on the same tokens.
fn closeness(comparison: &Comparison, settings: &Verify) -> Vec<Check> {
    let samples = comparison.kl.len() as u64;
    let [ours, theirs] = &comparison.losses;
    // Paired: both saw the same tokens, so the tokens' own difficulty cancels.
    let differences: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs - ours).collect();
    let (difference, [low, high]) = mean(&differences);
    let increase = |difference: f64| difference.exp() - 1.0;
    let (kl, kl_interval) = mean(&comparison.kl);
    let (p99, p99_interval) = quantile(&comparison.kl, 0.99);
    let (agreement, agreement_interval) = proportion(count(&comparison.agrees), comparison.agrees.len());
    let at_most = |limit: Option<f64>| limit.map(Threshold::AtMost);
    let interval = Some([increase(low), increase(high)]);
    let reference = format!("reference {:.4}, artifact {:.4}", mean(ours).0.exp(), mean(theirs).0.exp());
    vec![
        Check::new("perplexity increase", increase(difference), "", at_most(settings.perplexity_increase), samples, interval)
            .note(reference),
        Check::new("KL divergence, mean", kl, "nats/token", at_most(settings.kl_mean), samples, Some(kl_interval)),
        Check::new("KL divergence, p99", p99, "nats/token", at_most(settings.kl_p99), samples, Some(p99_interval)),
        Check::new(
            "top-1 agreement",
            agreement,
            "",
            settings.top1_agreement.map(Threshold::AtLeast),
            samples,
            Some(agreement_interval),
        ),
    ]
}

/// Right answers lost against the reference, paired by example; flips in both directions are named.
fn score_drop(ours: &[bool], theirs: &[bool], threshold: Option<f64>) -> Check {
    let drops: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| f64::from(*ours) - f64::from(*theirs)).collect();
    let (drop, interval) = mean(&drops);
    let lost = drops.iter().filter(|drop| **drop > 0.0).count();
    let won = drops.iter().filter(|drop| **drop < 0.0).count();
    Check::new("score lost", drop, "", threshold.map(Threshold::AtMost), drops.len() as u64, Some(interval))
        .note(format!("{lost} right answers turned wrong, {won} turned right"))
}

/// What the recipe asks of the chain's largest checkpoint.
fn largest_checks(
    largest: &Path,
    artifact: &Artifact,
    subject: &Subject<'_>,
    settings: &Verify,
    advances: Advances<'_>,
) -> Result<Vec<Check>, Error> {
    let checkpoint = Checkpoint::open(largest)?;
    let mut checks = Vec::new();
    let dense_bytes = checkpoint.architecture().parameters() * 4;
    let ratio = dense_bytes as f64 / artifact.weight_bytes() as f64;
    let check = Check::new("compression ratio", ratio, "×", settings.compression_ratio.map(Threshold::AtLeast), 1, None);
    checks.push(check.note("f32 bytes of the largest checkpoint ÷ bytes of the artifact's weights"));
    if settings.teacher_score.is_some() && !subject.held_out.prompts.is_empty() {
        let engine = Engine::load(&Model::Checkpoint(checkpoint), crate::engine_options())?;
        let matches = subject.held_out.exact_matches(&engine, subject.tokenizer, advances)?;
        let (value, interval) = proportion(count(&matches), matches.len());
        let threshold = settings.teacher_score.map(Threshold::AtLeast);
        checks.push(Check::new("score of the teacher", value, "", threshold, matches.len() as u64, Some(interval)));
    }
    Ok(checks)
}

/// Bytes, memory and time against the budget.
fn budget_checks(artifact: &Path, budget: &Budget, bench: &dyn Bench) -> Result<Vec<Check>, Error> {
    let mut checks = vec![artifact_bytes(artifact, budget.artifact_bytes)?];
    let result = bench.bench(artifact, timed_tokens(budget))?;
    let tokens = result.token_milliseconds.len() as u64;
    let memory_limit = budget.peak_memory_bytes.map(|ByteSize(limit)| Threshold::AtMost(limit as f64));
    match result.peak_memory_bytes {
        Some(memory) => checks.push(Check::new("peak memory", memory as f64, "bytes", memory_limit, 1, None)),
        None if memory_limit.is_some() => {
            let check = Check::new("peak memory", f64::NAN, "bytes", memory_limit, 0, None);
            checks.push(check.note("this operating system does not tell"));
        }
        None => {}
    }
    for (name, q, limit) in token_times(budget) {
        let (value, interval) = quantile(&result.token_milliseconds, q);
        checks.push(Check::new(name, value, "ms", limit.map(Threshold::AtMost), tokens, Some(interval)));
    }
    Ok(checks)
}

/// Which quantiles of a token's time are told: name, quantile, limit in milliseconds.
fn token_times(budget: &Budget) -> [(&'static str, f64, Option<f64>); 3] {
    [
        ("token time, p50", 0.5, budget.token_milliseconds_p50),
        ("token time, p95", 0.95, budget.token_milliseconds_p95),
        ("token time, p99", 0.99, budget.token_milliseconds_p99),
    ]
}

/// Tokens that are timed where no limit needs more.
const TIMED_TOKENS: usize = 128;

/// Enough tokens to decide every limit: twice the least, so that its interval does not end at the slowest token of all.
fn timed_tokens(budget: &Budget) -> usize {
    let limited = token_times(budget).into_iter().filter(|(.., limit)| limit.is_some());
    limited.map(|(_, q, _)| 2 * least_sample(q)).fold(TIMED_TOKENS, usize::max)
}

/// The bytes of what is shipped: every file of the artifact, but the record of what made its folder, and the weights as they are
/// where they lie coded beside.
fn artifact_bytes(artifact: &Path, limit: Option<ByteSize>) -> Result<Check, Error> {
    let is_coded = artifact.join("model.entropy").exists();
    let (mut bytes, mut left_out) = (0, 0);
    for entry in fs_err::read_dir(artifact)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == NewFolder::RECORD {
            continue;
        }
        let counted = if is_coded && name == "model.safetensors" { &mut left_out } else { &mut bytes };
        *counted += entry.metadata()?.len();
    }
    let limit = limit.map(|ByteSize(limit)| Threshold::AtMost(limit as f64));
    let check = Check::new("artifact bytes", bytes as f64, "bytes", limit, 1, None);
    Ok(match left_out {
        0 => check,
        left_out => {
            let left_out = crate::figures::bytes(left_out);
            check.note(format!("without model.safetensors, {left_out}: model.entropy holds the same weights and opens alone"))
        }
    })
}

fn count(hits: &[bool]) -> usize {
    hits.iter().filter(|hit| **hit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_a_quantile_times_as_many_tokens_as_decide_it() {
        let budget = Budget::default();
        assert_eq!(timed_tokens(&budget), 128);
        assert_eq!(timed_tokens(&Budget { token_milliseconds_p50: Some(1.0), ..budget }), 128);
        assert_eq!(timed_tokens(&Budget { token_milliseconds_p95: Some(1.0), ..budget }), 220);
        assert_eq!(timed_tokens(&Budget { token_milliseconds_p99: Some(1.0), ..budget }), 1126);
        // Times that all keep the limit pass it.
        let (value, interval) = quantile(&[0.5; 220], 0.95);
        let check = Check::new("token time, p95", value, "ms", Some(Threshold::AtMost(1.0)), 220, Some(interval));
        assert_eq!(check.outcome, Outcome::Passed);
    }

    #[test]
    fn weights_that_lie_coded_beside_are_not_counted_and_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, bytes: usize| fs_err::write(folder.path().join(name), vec![0; bytes]).expect("room for it");
        write("model.safetensors", 1_200_000);
        write("config.json", 30);
        write(NewFolder::RECORD, 500);
        let bytes = |limit| artifact_bytes(folder.path(), Some(ByteSize(limit))).expect("a folder that can be read");
        assert_eq!((bytes(1_200_030).value, bytes(1_200_030).note), (1_200_030.0, None));
        write("model.entropy", 700);
        let check = bytes(729);
        assert_eq!((check.value, check.outcome), (730.0, Outcome::Failed));
        let expected = "without model.safetensors, 1.20 MB: model.entropy holds the same weights and opens alone";
        assert_eq!(check.note.as_deref(), Some(expected));
    }
}
