//! The safetensors files of a folder: one, or the shards that an index names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::TensorFiles;
use crate::encoding::unmarked;
use crate::entropy::ENTROPY;
use crate::read::is_there;
use crate::{EntropyFile, Error, MappedBytes, Result, map_file};

pub(super) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl TensorFiles {
    /// Opens `model.safetensors`, decodes `model.entropy` into memory, or opens every shard that `model.safetensors.index.json` names:
    /// the first of them that is there.
    ///
    /// # Errors
    /// [`Error::Io`] where a file is missing; [`Error::Malformed`] for a truncated or contradictory header, an index that points
    /// outside the folder, or a name that stands in two shards with other values. As [`EntropyFile`].
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        let coded = folder.join(ENTROPY);
        if !is_there(&single) && is_there(&coded) {
            let file = EntropyFile::open(&coded)?;
            let files = Self::from_bytes(file.restore()?, &coded)?;
            return Ok(Self { bytes: file.coded_bytes(), files: vec![coded], ..files });
        }
        let paths = if is_there(&single) { vec![single] } else { shards(folder)? };
        let mut files = Self::default();
        for path in &paths {
            files.add(&MappedBytes::from(map_file(path)?), &path.display().to_string())?;
        }
        files.files = paths;
        Ok(files)
    }

    /// The files, in the order of their names; none where the tensors were read from bytes.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Weights in another format, or under another name, and the way out.
fn what_is_there(folder: &Path) -> Option<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let find = |is_it: &dyn Fn(&str) -> bool| names.iter().find(|name| is_it(name));
    let ends_with = |name: &str, ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let is_shard = |name: &str| name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
    if let Some(name) = find(&|name| name == "adapter_model.safetensors" || name == "adapter_model.bin") {
        return Some(format!("`{name}` is an adapter: merge it into its model first (`merge_and_unload` of PEFT)"));
    }
    if let Some(name) = find(&is_shard) {
        return Some(format!("`{name}` is one of several shards: their index is missing"));
    }
    if let Some(name) = find(&|name| name.ends_with(".safetensors")) {
        return Some(format!("`{name}` is read where it is called {SINGLE}"));
    }
    if let Some(name) = find(&|name| name.ends_with(".gguf")) {
        return Some(format!("name `{name}` itself, which is a model in one file"));
    }
    let pickles = [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"];
    if let Some(name) = find(&|name| ends_with(name, &pickles)) {
        return Some(format!("`{name}` holds pickles: convert them to safetensors with Transformers (`save_pretrained`)"));
    }
    let name = find(&|name| ends_with(name, &[".h5", ".msgpack", ".onnx", ".tflite", ".npz"]))?;
    Some(format!("`{name}` is of a format that is not read: convert it to safetensors"))
}

fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = folder.join(INDEX);
    if !is_there(&path) {
        let instead = what_is_there(folder).map(|instead| format!("; {instead}")).unwrap_or_default();
        return Err(Error::malformed(folder, format!("holds none of {SINGLE}, {ENTROPY} and {INDEX}{instead}")));
    }
    let json = crate::read_file(&path, crate::LIST_BYTES)?;
    let index: Index = serde_json::from_slice(unmarked(&path, &json)?)
        .map_err(|error| Error::unreadable(&path, &json, format!("is no index of shards: {error}")))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(Error::malformed(&path, "`weight_map` names no file"));
    }
    for name in &names {
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::malformed(&path, format!("`{name}` is not the name of a file in this folder")));
        }
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
