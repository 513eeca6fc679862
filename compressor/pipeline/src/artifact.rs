//! What an artifact carries beside its weights: the manifest and the tokenizer.

use std::path::{Path, PathBuf};

use compressor_format::{
    Checkpoint, Distill, FileHash, LearnScales, Manifest, ModelSource, Recipe, Reference, Stage, Student, Tokenizer, Tool,
};
use serde_json::Value;

use crate::Error;
use crate::quantize::QuantizationReport;

/// Opens the tokenizer that lies with a model, a folder or a GGUF file.
///
/// # Errors
/// Where there is none, or it is damaged.
pub fn open_tokenizer(model: &Path) -> Result<Tokenizer, Error> {
    match compressor_format::is_model_folder(model)? {
        true => Ok(Tokenizer::open(model.join("tokenizer.json"))?),
        false => Ok(Checkpoint::open(model)?.tokenizer()?),
    }
}

/// Writes the manifest of an artifact: the hashes of its files and of everything it was made from.
///
/// # Errors
/// Where a file can't be read or written.
pub fn write_manifest(
    folder: &Path,
    checkpoint: &Checkpoint,
    report: &QuantizationReport,
    recipe: &Recipe,
) -> Result<Manifest, Error> {
    let inputs = checkpoint.files().iter().map(|path| FileHash::of(name(path), path)).collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        tool: Tool { name: "compressor".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
        files: Vec::new(),
        inputs,
        recipe: without_places(recipe),
        opens_in: report.opens_in.clone(),
        reference: Reference { name: name(checkpoint.path()), dtype: checkpoint.dtype(), bytes: checkpoint.weight_bytes()? },
        dense_tensors: report.dense.clone(),
    };
    Ok(manifest.write(folder)?)
}

/// Writes the manifest of an artifact that was made of the one in `before` and with `teacher`, whose files become inputs too.
///
/// # Errors
/// Where a file can't be read or written.
pub(crate) fn write_manifest_after(
    before: &Path,
    teacher: &Checkpoint,
    recipe: &Recipe,
    folder: &Path,
) -> Result<Manifest, Error> {
    let mut manifest = Manifest { recipe: without_places(recipe), ..Manifest::read(before)? };
    for path in teacher.files() {
        let hash = FileHash::of(name(&path), &path)?;
        // The teacher is often what the artifact was quantized from.
        if !manifest.inputs.contains(&hash) {
            manifest.inputs.push(hash);
        }
    }
    Ok(manifest.write(folder)?)
}

/// What a file or a model's folder is called: the last part of its path, found out where that is `.` or `..`.
pub(crate) fn name(path: &Path) -> String {
    let whole = if path.file_name().is_none() { path.canonicalize().ok() } else { None };
    let name = whole.as_deref().unwrap_or(path).file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A recipe as a manifest has it: of paths their last names, and of the run folder nothing, so that equal artifacts are equal bytes
/// wherever they and their inputs lie.
fn without_places(recipe: &Recipe) -> Value {
    let last = |path: &Path| PathBuf::from(name(path));
    let mut recipe = recipe.clone();
    recipe.output = None;
    recipe.dataset = recipe.dataset.as_deref().map(last);
    if let ModelSource::Path(path) = &mut recipe.model {
        *path = last(path);
    }
    for stage in &mut recipe.stages {
        match stage {
            Stage::Distill(Distill { teacher, student, .. }) => {
                *teacher = teacher.as_deref().map(last);
                if let Some(Student::Checkpoint(path)) = student {
                    *path = last(path);
                }
            }
            Stage::LearnScales(LearnScales { teacher, .. }) => *teacher = teacher.as_deref().map(last),
            Stage::Train(_) | Stage::Prune(_) | Stage::Quantize(_) | Stage::Verify(_) => {}
        }
    }
    serde_json::to_value(&recipe).expect("a recipe is plain data")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_manifest_has_no_place_in_it() {
        let recipe = |model: &str, dataset: &str, output: &str| {
            let toml = format!(
                "name = \"small\"\ndataset = \"{dataset}\"\noutput = \"{output}\"\n[model]\npath = \"{model}\"\n\
                 [[stage]]\n[stage.distill]\nsteps = 2\nteacher = \"{model}\"\nstudent.checkpoint = \"{model}\"\n\
                 [[stage]]\n[stage.quantize]\nbits = 8\n[[stage]]\n[stage.learn_scales]\nsteps = 2\nteacher = \"{model}\"\n"
            );
            without_places(&Recipe::from_toml(&toml).unwrap())
        };
        let here = recipe("models/dense", "data/set.toml", "runs/one");
        let there = recipe("/elsewhere/dense", "/data/set.toml", "/tmp/two");
        assert_eq!(here, there);
        assert_eq!(here["model"]["path"], "dense");
        assert!(here["output"].is_null());
        assert_ne!(here, recipe("models/another", "data/set.toml", "runs/one"));
    }
}
