//! The stage verbs: recipes of one stage, made from flags.

use std::path::Path;

use compressor_format::{ByteSize, Recipe};
use compressor_pipeline::Plan;
use toml::{Table, Value};

use crate::Output;
use crate::arguments;
use crate::commands::carry_out;
use crate::failure::{Ending, Failure};
use crate::out::errln;

pub(crate) fn train(arguments: &arguments::Train, output: Output) -> Result<Ending, Failure> {
    let mut stage = Table::new();
    training(&mut stage, &arguments.training);
    one_stage("train", [&arguments.model, &arguments.output], stage, Some(&arguments.training), None, None, output)
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
    one_stage("distill", [&arguments.teacher, &arguments.output], stage, Some(&arguments.training), None, None, output)
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
    one_stage("prune", [&arguments.model, &arguments.output], stage, None, Some(&arguments.calibration), None, output)
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
    let paths = [arguments.model.as_path(), &arguments.output];
    one_stage("quantize", paths, stage, None, Some(&arguments.calibration), arguments.memory.bytes(), output)
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

/// Runs a recipe of one stage whose result is `folder` itself.
fn one_stage(
    name: &str,
    [model, folder]: [&Path; 2],
    stage: Table,
    training: Option<&arguments::Training>,
    calibration: Option<&arguments::CalibrationText>,
    max_memory_bytes: Option<u64>,
    output: Output,
) -> Result<Ending, Failure> {
    let file_name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(file_name) = file_name else {
        return Err(anyhow::anyhow!("{}: this names no folder to write", folder.display()).into());
    };
    // Beside the output: an unfinished run keeps its training state there, a finished one leaves nothing.
    let run_folder = folder.with_file_name(format!(".{file_name}.compressor"));
    let mut recipe = Table::new();
    set(&mut recipe, "name", Some(name));
    set(&mut recipe, "seed", training.map(|training| training.seed as i64));
    let of_calibration = calibration.and_then(|calibration| calibration.dataset.as_deref());
    let dataset = training.and_then(|training| training.dataset.as_deref()).or(of_calibration);
    set(&mut recipe, "dataset", dataset.map(|path| path.display().to_string()));
    let of_calibration = calibration.and_then(|calibration| calibration.text.as_deref());
    let text = training.and_then(|training| training.text.as_deref()).or(of_calibration);
    set(&mut recipe, "text", text.map(|path| path.display().to_string()));
    set(&mut recipe, "output", Some(run_folder.display().to_string()));
    let mut source = Table::new();
    set(&mut source, "path", Some(model.display().to_string()));
    recipe.insert("model".to_owned(), Value::Table(source));
    let mut entry = Table::new();
    entry.insert(name.to_owned(), Value::Table(stage));
    recipe.insert("stage".to_owned(), Value::Array(vec![Value::Table(entry)]));

    let recipe = Recipe::from_toml(&recipe.to_string()).map_err(|mistakes| Failure::Refused(None, mistakes))?;
    let plan = Plan::within(recipe, None, max_memory_bytes).map_err(|mistakes| Failure::Refused(None, mistakes))?;
    let plan = plan.into_folder(folder.to_owned());
    let device = training.map_or("cpu", |training| training.device.as_str());
    let ending = carry_out(&plan, device, output)?;
    fs_err::remove_dir_all(run_folder)?;
    errln!("written to {}", folder.display());
    Ok(ending)
}
