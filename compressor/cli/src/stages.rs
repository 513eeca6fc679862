//! The stage verbs: recipes of one stage, made from flags.

use std::path::{Path, PathBuf};

use compressor_format::{Begun, ByteSize, Made, ModelSource, NewFolder, Recipe, Stage, Student, check_apart};
use compressor_pipeline::Plan;
use serde_json::json;
use toml::{Table, Value};

use crate::Output;
use crate::arguments;
use crate::commands::carry_out;
use crate::failure::{Ending, Failure};
use crate::out::{self, errln};

pub(crate) fn train(arguments: &arguments::Train, output: Output) -> Result<Ending, Failure> {
    let mut stage = Table::new();
    training(&mut stage, &arguments.training);
    let paths =
        Paths::new(&arguments.model, &arguments.place, arguments.training.dataset.as_ref(), arguments.training.text.as_ref());
    one_stage("train", paths, stage, Some(&arguments.training), None, output)
}

pub(crate) fn distill(arguments: &arguments::Distill, output: Output) -> Result<Ending, Failure> {
    let mut stage = Table::new();
    training(&mut stage, &arguments.training);
    set(&mut stage, "temperature", arguments.temperature);
    set(&mut stage, "kd_ratio", arguments.kd_ratio);
    let mut student = Table::new();
    set(&mut student, "checkpoint", arguments.student.as_ref().map(|path| path.display().to_string()));
    set(&mut student, "layers", arguments.student_layers.map(|layers| layers as i64));
    if !student.is_empty() {
        stage.insert("student".to_owned(), Value::Table(student));
    }
    let paths =
        Paths::new(&arguments.teacher, &arguments.place, arguments.training.dataset.as_ref(), arguments.training.text.as_ref());
    let paths = Paths { student: arguments.student.as_deref(), ..paths };
    one_stage("distill", paths, stage, Some(&arguments.training), None, output)
}

pub(crate) fn prune(arguments: &arguments::Prune, output: Output) -> Result<Ending, Failure> {
    let mut stage = Table::new();
    set(&mut stage, "head_ratio", arguments.head_ratio);
    set(&mut stage, "channel_ratio", arguments.channel_ratio);
    set(&mut stage, "target_parameters", arguments.target_parameters.map(|count| count as i64));
    set(&mut stage, "head_unit", arguments.head_unit.clone());
    set(&mut stage, "channel_multiple", arguments.channel_multiple.map(|multiple| multiple as i64));
    set(&mut stage, "magnitude_norm", arguments.magnitude_norm.clone());
    set(&mut stage, "importance", arguments.importance.clone());
    let ratios = [arguments.head_ratio, arguments.channel_ratio].into_iter().flatten();
    let ranks_units = ratios.into_iter().any(|ratio| ratio > 0.0) || arguments.target_parameters.is_some();
    if ranks_units && arguments.importance.is_none() && !arguments.calibration.is_given() {
        return Err(anyhow::anyhow!(
            "what is removed is chosen by activations on text: give --text FILE or --dataset TOML; --importance magnitude needs no text, \
             and without training afterwards it destroys a real model"
        )
        .into());
    }
    if !arguments.layers.is_empty() {
        let layers = arguments.layers.iter().map(|layer| Value::Integer(*layer as i64)).collect();
        stage.insert("layers".to_owned(), Value::Array(layers));
    }
    let arguments::CalibrationText { dataset, text } = &arguments.calibration;
    let paths = Paths::new(&arguments.model, &arguments.place, dataset.as_ref(), text.as_ref());
    one_stage("prune", paths, stage, None, None, output)
}

pub(crate) fn quantize(arguments: &arguments::Quantize, output: Output) -> Result<Ending, Failure> {
    let mut stage = Table::new();
    set(&mut stage, "bits", arguments.bits.map(i64::from));
    set(&mut stage, "target_bytes", arguments.target_bytes.map(|ByteSize(bytes)| i64::try_from(bytes).unwrap_or(i64::MAX)));
    set(&mut stage, "target_bits_per_weight", arguments.target_bits_per_weight);
    set(&mut stage, "group_size", arguments.group_size.map(|size| size as i64));
    set(&mut stage, "symmetric", arguments.asymmetric.then_some(false));
    set(&mut stage, "method", arguments.method.clone());
    set(&mut stage, "clipping", arguments.clipping.clone());
    set(&mut stage, "scaling", arguments.scaling.clone());
    set(&mut stage, "migration_strength", arguments.migration_strength);
    set(&mut stage, "calibration_tokens", arguments.calibration_tokens.map(|tokens| tokens as i64));
    set(&mut stage, "embedding", arguments.embedding.clone());
    set(&mut stage, "scale_dtype", arguments.scale_dtype.clone());
    set(&mut stage, "activations", arguments.activations.clone());
    set(&mut stage, "storage", arguments.storage.clone());
    if !arguments.allow.is_empty() {
        stage.insert("allow".to_owned(), arguments.allow.iter().cloned().map(Value::String).collect::<Vec<_>>().into());
    }
    set(&mut stage, "measure_kl", arguments.measure_kl.then_some(true));
    let arguments::CalibrationText { dataset, text } = &arguments.calibration;
    let paths = Paths::new(&arguments.model, &arguments.place, dataset.as_ref(), text.as_ref());
    one_stage("quantize", paths, stage, None, arguments.memory.bytes(), output)
}

/// Sets a key that was given; the recipe's own defaults stand for the rest.
fn set<V: Into<Value>>(table: &mut Table, key: &str, value: Option<V>) {
    if let Some(value) = value {
        table.insert(key.to_owned(), value.into());
    }
}

fn training(stage: &mut Table, training: &arguments::Training) {
    set(stage, "steps", Some(training.steps as i64));
    set(stage, "batch_size", training.batch_size.map(|size| size as i64));
    set(stage, "sequence_length", training.sequence_length.map(|length| length as i64));
    set(stage, "learning_rate", training.learning_rate);
    set(stage, "warmup_steps", training.warmup_steps.map(|steps| steps as i64));
}

/// What a verb reads and the folder that it writes.
struct Paths<'a> {
    model: &'a Path,
    place: &'a arguments::Place,
    dataset: Option<&'a Path>,
    /// A text instead of a dataset.
    text: Option<&'a Path>,
    /// The checkpoint that a student starts from.
    student: Option<&'a Path>,
}

impl<'a> Paths<'a> {
    fn new(model: &'a Path, place: &'a arguments::Place, dataset: Option<&'a PathBuf>, text: Option<&'a PathBuf>) -> Self {
        Self { model, place, dataset: dataset.map(PathBuf::as_path), text: text.map(PathBuf::as_path), student: None }
    }
}

/// Runs a recipe of one stage whose result is a folder itself, which appears whole.
fn one_stage(
    name: &'static str,
    Paths { model, place, dataset, text, student }: Paths<'_>,
    stage: Table,
    training: Option<&arguments::Training>,
    max_memory_bytes: Option<u64>,
    output: Output,
) -> Result<Ending, Failure> {
    let folder = place.output.as_path();
    check_apart(folder, [Some(model), dataset, text, student].into_iter().flatten())?;
    // Beside the output: an unfinished run keeps its training state there, a finished one leaves nothing.
    let run_folder = NewFolder::work(folder)?;
    let mut recipe = Table::new();
    set(&mut recipe, "name", Some(name));
    set(&mut recipe, "seed", training.map(|training| training.seed as i64));
    let mut source = Table::new();
    set(&mut source, "path", Some(model.display().to_string()));
    recipe.insert("model".to_owned(), Value::Table(source));
    let mut entry = Table::new();
    entry.insert(name.to_owned(), Value::Table(stage));
    recipe.insert("stage".to_owned(), Value::Array(vec![Value::Table(entry)]));

    let mut recipe = Recipe::from_toml(&recipe.to_string()).map_err(|mistakes| Failure::Refused(None, mistakes))?;
    // The paths as they were given: a text holds only those that are UTF-8.
    recipe.dataset = dataset.map(Path::to_owned);
    recipe.text = text.map(Path::to_owned);
    recipe.output = Some(run_folder.clone());
    recipe.model = ModelSource::Path(model.to_owned());
    if let (Some(Stage::Distill(distill)), Some(checkpoint)) = (recipe.stages.first_mut(), student) {
        distill.student = Some(Student::Checkpoint(checkpoint.to_owned()));
    }

    let plan = Plan::within(recipe, None, max_memory_bytes).map_err(|mistakes| Failure::Refused(None, mistakes))?;
    let made = Made::By { command: name, fingerprint: plan.steps()[0].fingerprint.clone() };
    let new = match NewFolder::begin(folder, made, place.force)? {
        Begun::Now(new) => new,
        Begun::Before { passed } => {
            if output.json {
                out::json(&json!({ "output": folder.display().to_string(), "finished_before": true }))?;
            }
            errln!("{}: finished before, from the same inputs with the same settings", folder.display());
            return Ok(if passed { Ending::Passed } else { Ending::Failed });
        }
    };
    let plan = plan.into_folder(new.path());
    let device = training.map_or("cpu", |training| training.device.as_str());
    let ending = carry_out(&plan, device, output)?;
    new.finish(ending == Ending::Passed)?;
    errln!("written to {}", folder.display());
    Ok(ending)
}
