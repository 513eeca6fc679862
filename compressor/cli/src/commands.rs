//! The commands that work on recipes, artifacts and models; the stage verbs are in `stages.rs`.

use std::path::Path;

use compressor_engine::Engine;
use compressor_format::{
    Begun, Budget, Checkpoint, Dataset, Draft, Dtype, Examples, Made, Manifest, Model, Multiplied, NewFolder, Report, Split,
    Tokenizer, Verify, check_apart, check_finite, fingerprint_of,
};
use compressor_pipeline::{Findings, HeldOut, Plan, Subject, Workers, figures, measured_within, open_tokenizer};
use serde_json::json;

use crate::Output;
use crate::arguments::{self, DenseType};
use crate::bench::Child;
use crate::failure::{Ending, Failure};
use crate::out::{self, errln, outln};
use crate::progress::Progress;
use crate::show;
use crate::trainer::Burn;

/// Reads a recipe, makes the changes asked for, and checks it against the files.
fn planned(path: &Path, changes: &arguments::Changes, memory: arguments::Memory) -> Result<Plan, Failure> {
    let draft = Draft::load(path, &changes.set);
    let draft = match &changes.out {
        Some(out) => draft.with_output(out.clone()),
        None => draft,
    };
    Plan::of_within(draft, memory.bytes()).map_err(|mistakes| Failure::Refused(Some(path.to_owned()), mistakes))
}

pub(crate) fn plan(arguments: &arguments::Plan, output: Output) -> Result<Ending, Failure> {
    let plan = planned(&arguments.recipe, &arguments.changes, arguments.memory)?;
    match output.json {
        true => out::json(&show::plan_json(&plan))?,
        false => show::plan(&plan),
    }
    Ok(Ending::Passed)
}

pub(crate) fn run(arguments: &arguments::Run, output: Output) -> Result<Ending, Failure> {
    let plan = planned(&arguments.recipe, &arguments.changes, arguments.memory)?;
    let ending = carry_out(&plan, &arguments.device, output)?;
    errln!("report: {}", compressor_pipeline::page_path(&plan.run_folder).display());
    errln!("        {}", Report::path(&plan.run_folder).display());
    Ok(ending)
}

/// Runs a plan and shows its report.
pub(crate) fn carry_out(plan: &Plan, device: &str, output: Output) -> Result<Ending, Failure> {
    let trainer = Burn::new(device)?;
    let mut progress = Progress::new();
    let mut workers = Workers { trainer: &trainer, bench: &Child, observer: &mut progress };
    let report = compressor_pipeline::run(plan, &mut workers)?;
    match output.json {
        true => out::json(&report)?,
        false => show::report(&report),
    }
    Ok(if report.passed == Some(false) { Ending::Failed } else { Ending::Passed })
}

pub(crate) fn verify(arguments: &arguments::Verify, output: Output) -> Result<Ending, Failure> {
    let findings = match &arguments.reference {
        None => {
            let measures = [
                ("--perplexity-increase", arguments.perplexity_increase.is_some()),
                ("--kl-mean", arguments.kl_mean.is_some()),
                ("--top1-agreement", arguments.top1_agreement.is_some()),
                ("--text", arguments.text.text.is_some()),
                ("--dataset", arguments.text.dataset.is_some()),
            ];
            if let Some((flag, _)) = measures.into_iter().find(|(_, given)| *given) {
                return Err(anyhow::anyhow!("{flag} needs --reference: there is nothing to compare with").into());
            }
            compressor_pipeline::verify_alone(&arguments.artifact, arguments.artifact_bytes)?
        }
        Some(reference) => against(arguments, reference)?,
    };
    let passed = findings.passed(false);
    match output.json {
        true => out::json(&json!({ "passed": passed, "checks": findings.checks }))?,
        false => show::checks(&findings.checks),
    }
    Ok(if passed { Ending::Passed } else { Ending::Failed })
}

/// Measures an artifact against a reference on a text.
fn against(arguments: &arguments::Verify, reference: &Path) -> Result<Findings, Failure> {
    // Before the text is read: it may be no artifact.
    Manifest::read(&arguments.artifact)?;
    let tokenizer = open_tokenizer(&arguments.artifact)?;
    let most = positions(&arguments.artifact)?.min(positions(reference)?);
    let settings = Verify {
        perplexity_increase: arguments.perplexity_increase,
        kl_mean: arguments.kl_mean,
        top1_agreement: arguments.top1_agreement,
        activations: match arguments.activations {
            arguments::ActivationType::Int8 => Multiplied::Int8,
            arguments::ActivationType::F32 => Multiplied::F32,
        },
        ..measured_on(&arguments.text, most)
    };
    let held_out = held_out(&arguments.text, &tokenizer, &settings, most)?;
    let subject = Subject { artifact: &arguments.artifact, reference, largest: None, tokenizer: &tokenizer, held_out: &held_out };
    let budget = Budget { artifact_bytes: arguments.artifact_bytes, ..Budget::default() };
    let trainer = Burn::new("cpu")?;
    let mut progress = Progress::new();
    let mut advances = |what: &str, done, of| progress.advance(done, of, what.to_owned());
    let findings = compressor_pipeline::verify(&subject, &settings, &budget, &trainer, &Child, &mut advances);
    progress.clear();
    Ok(findings?)
}

/// Tokens that a model holds.
fn positions(model: &Path) -> Result<usize, Failure> {
    Ok(Model::open(model)?.architecture().max_position_embeddings)
}

/// How a model that holds `most` tokens is measured: in shorter windows by default, where those would be too long.
fn measured_on(text: &arguments::Text, most: usize) -> Verify {
    let default = measured_within(most);
    let window = text.window.unwrap_or(default.window);
    let first_scored = match default.first_scored < window {
        true => default.first_scored,
        false => (window / 2 + 1).min(window.saturating_sub(1)),
    };
    let first_scored = text.score_from.unwrap_or(first_scored);
    Verify { windows: text.windows, window, first_scored, examples: text.examples, ..default }
}

fn held_out(text: &arguments::Text, tokenizer: &Tokenizer, settings: &Verify, most: usize) -> Result<HeldOut, Failure> {
    let in_window = 1..settings.window;
    if settings.windows == 0 || !in_window.contains(&settings.first_scored) {
        let (window, first) = (settings.window, settings.first_scored);
        return Err(
            anyhow::anyhow!("--score-from {first} must lie from 1 to below --window {window}, and --windows above 0").into()
        );
    }
    let examples = match (&text.text, &text.dataset) {
        (Some(path), _) => Examples::of_text_file(path)?,
        (None, Some(path)) => Dataset::load(path)?.split(Split::Test, text.seed)?,
        (None, None) => return Err(anyhow::anyhow!("name what to measure on: --text FILE or --dataset TOML").into()),
    };
    let window = settings.window;
    if matches!(examples, Examples::Text(_)) {
        if window > most {
            return Err(anyhow::anyhow!("--window {window} is longer than the model's max_position_embeddings {most}").into());
        }
        if text.window.is_none() && window < Verify::default().window {
            let usual = Verify::default().window;
            errln!("measured in windows of {window} tokens instead of {usual}: the model's max_position_embeddings are {most}");
        }
    }
    Ok(HeldOut::new(&examples, tokenizer, settings)?)
}

pub(crate) fn eval(arguments: &arguments::Eval, output: Output) -> Result<Ending, Failure> {
    let tokenizer = open_tokenizer(&arguments.model)?;
    let most = positions(&arguments.model)?;
    let held_out = held_out(&arguments.text, &tokenizer, &measured_on(&arguments.text, most), most)?;
    let engine = Engine::open(&arguments.model, output.options(arguments.engine))?;
    let started = std::time::Instant::now();
    let mut progress = Progress::new();
    let mut advances = |what: &str, done, of| progress.advance(done, of, what.to_owned());
    let perplexity = held_out.perplexity(&engine, &mut advances)?;
    let seconds = started.elapsed().as_secs_f64();
    let matches = held_out.exact_matches(&engine, &tokenizer, &mut advances)?;
    progress.clear();
    let hits = matches.iter().filter(|hit| **hit).count();
    let score = (!matches.is_empty()).then(|| hits as f64 / matches.len() as f64);
    if output.json {
        out::json(&json!({
            "perplexity": perplexity.value, "tokens_scored": perplexity.sample_size, "score": score, "examples": matches.len(),
            "seconds": seconds, "bos": held_out.bos,
        }))?;
        return Ok(Ending::Passed);
    }
    outln!("perplexity  {:.4}  ({} tokens scored, {seconds:.1} s)", perplexity.value, figures::whole(perplexity.sample_size));
    if let Some(bos) = held_out.bos {
        outln!("            every window and example begins with token {bos}, as the tokenizer begins texts");
    }
    if let Some(score) = score {
        outln!("score       {:.2} %  ({} examples)", 100.0 * score, matches.len());
    }
    Ok(Ending::Passed)
}

pub(crate) fn inspect(arguments: &arguments::Inspect, output: Output) -> Result<Ending, Failure> {
    let model = Model::open(&arguments.model)?;
    match output.json {
        true => out::json(&show::model_json(&model)?)?,
        false => show::model(&model, arguments.tensors)?,
    }
    Ok(Ending::Passed)
}

pub(crate) fn import(arguments: &arguments::Import, output: Output) -> Result<Ending, Failure> {
    let folder = arguments.place.output.as_path();
    check_apart(folder, [arguments.model.as_path()])?;
    let checkpoint = Checkpoint::open(&arguments.model)?;
    checkpoint.check_companions()?;
    let dtype = match arguments.dtype {
        DenseType::F32 => Dtype::F32,
        DenseType::F16 => Dtype::F16,
        DenseType::Bf16 => Dtype::Bf16,
    };
    let made = Made::By { command: "import", fingerprint: fingerprint_of(&dtype, &checkpoint.files())? };
    let is_new = match NewFolder::begin(folder, made, arguments.place.force)? {
        Begun::Before { .. } => false,
        Begun::Now(new) => {
            new.fill(|folder| write_dense(&checkpoint, dtype, folder))?;
            true
        }
    };
    if output.json {
        let parameters = checkpoint.architecture().parameters();
        out::json(&json!({ "output": folder.display().to_string(), "parameters": parameters, "dtype": dtype }))?;
    }
    match is_new {
        true => errln!("written to {}", folder.display()),
        false => errln!("{}: finished before, from the same files in the same type", folder.display()),
    }
    Ok(Ending::Passed)
}

/// Writes a checkpoint into a folder, its weights in one float type.
fn write_dense(checkpoint: &Checkpoint, dtype: Dtype, folder: &Path) -> Result<(), compressor_format::Error> {
    let weights = checkpoint.weights()?;
    if dtype == Dtype::F16 {
        for (id, values) in weights.iter() {
            // f16 ends at 65504: what lies above would be written as an infinity.
            let rounded: Vec<f32> =
                values.iter().map(|value| if value.abs() > 65504.0 { f32::INFINITY } else { *value }).collect();
            check_finite(checkpoint.path(), &format!("{id} as f16"), &rounded)?;
        }
    }
    checkpoint.copy_companions(folder)?;
    weights.write(folder, dtype)
}
