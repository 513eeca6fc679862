//! The safetensors files of a folder: one, or the shards that an index names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::TensorFiles;
use crate::encoding::unmarked;
use crate::entropy::ENTROPY;
use crate::{EntropyFile, Error, MappedBytes, Result, map_file};

pub(super) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl TensorFiles {
    /// Opens `model.safetensors`, decodes `model.entropy` into memory, or opens every shard that `model.safetensors.index.json` names:
    /// the first of them that is there.
    ///
    /// # Errors
    /// [`Error::Io`] where a file is missing; [`Error::Malformed`] for a truncated or contradictory header, an index that points
    /// outside the folder, or a name that stands in two shards; [`Error::Unsupported`] for other element types. As [`EntropyFile`].
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        let coded = folder.join(ENTROPY);
        if !single.exists() && coded.exists() {
            let file = EntropyFile::open(&coded)?;
            let files = Self::from_bytes(file.restore()?, &coded)?;
            return Ok(Self { bytes: file.coded_bytes(), files: vec![coded], ..files });
        }
        let paths = if single.exists() { vec![single] } else { shards(folder)? };
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

fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = folder.join(INDEX);
    if !path.exists() {
        return Err(Error::malformed(folder, format!("holds none of {SINGLE}, {ENTROPY} and {INDEX}")));
    }
    let index: Index = serde_json::from_slice(unmarked(&path, &fs_err::read(&path)?)?)
        .map_err(|error| Error::malformed(&path, error.to_string()))?;
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
