//! What an artifact carries beside its weights: the manifest and the tokenizer.

use std::path::Path;

use compressor_format::{Checkpoint, FileHash, Manifest, Reference, Tokenizer, Tool};
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
    recipe: Value,
) -> Result<Manifest, Error> {
    let inputs = checkpoint.files().iter().map(|path| FileHash::of(name(path), path)).collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        tool: Tool { name: "compressor".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
        files: Vec::new(),
        inputs,
        recipe,
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
pub(crate) fn write_manifest_after(before: &Path, teacher: &Checkpoint, recipe: Value, folder: &Path) -> Result<Manifest, Error> {
    let mut manifest = Manifest { recipe, ..Manifest::read(before)? };
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
