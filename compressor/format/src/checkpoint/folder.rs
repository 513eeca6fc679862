//! Checkpoints on disk: folders and GGUF files, with what travels beside the weights.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::{Checkpoint, Source};
use crate::content::ContentHash;
use crate::model::{CONFIG, parse_config};
use crate::{Error, Family, GgufFile, GgufTensor, Origin, Result, TensorFiles, Tokenizer, Weights};

/// The files that make a tokenizer; they travel with the model.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
];

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// A missing or damaged file, an unknown family, a tensor that is missing or of another shape than `config.json` says, and
    /// tensors that nothing would read; all by name. [`Error::Unsupported`] for a folder with quantized weights.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        let config = read_config(path)?;
        Self::read(config, &path.join(CONFIG).shown(), path.to_owned(), || TensorFiles::open(path))
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let config = file.config()?;
        let architecture = Family::read(&config, path)?;
        for id in architecture.tensors() {
            let name = id.to_string();
            let (found, expected) = (file.canonical_shape(&name)?, architecture.shape(id));
            if found != expected {
                return Err(Error::Shape { path: path.shown(), name, found, expected });
            }
        }
        Ok(Self { path: path.to_owned(), architecture, config, source: Source::Gguf(Box::new(file)) })
    }

    /// Where it is; `model.safetensors` where it was read from bytes, as errors call it then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files it was read from: configuration, weights, and what makes the tokenizer; none where it was read from bytes.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Safetensors(source) if source.files.files().is_empty() => Vec::new(),
            Source::Safetensors(source) => {
                let mut files = vec![self.path.join(CONFIG)];
                files.extend_from_slice(source.files.files());
                files.extend(companions(&self.path));
                files
            }
            Source::Gguf(_) => vec![self.path.clone()],
        }
    }

    /// Every tensor of its files.
    pub(crate) fn add_weights(&self, hash: &mut ContentHash) {
        match &self.source {
            Source::Safetensors(source) => source.files.iter().for_each(|(name, tensor)| hash.add_tensor(name, tensor)),
            Source::Gguf(file) => {
                for GgufTensor { name, shape, kind, bytes } in file.tensors() {
                    hash.add(&format!("{name} {kind:?} {shape:?}"), bytes);
                }
            }
        }
    }

    /// Bytes of the files that hold weights.
    ///
    /// # Errors
    /// [`Error::Io`] where a GGUF file is gone.
    pub fn weight_bytes(&self) -> Result<u64> {
        match &self.source {
            Source::Safetensors(source) => Ok(source.files.bytes()),
            Source::Gguf(_) => Ok(fs_err::metadata(&self.path)?.len()),
        }
    }

    /// Every tensor's values, in memory.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn weights(&self) -> Result<Weights> {
        let values: Result<BTreeMap<_, _>> =
            self.architecture.tensors().into_par_iter().map(|id| Ok((id, self.tensor(id)?))).collect();
        Ok(Weights::new(self.architecture.clone(), self.config.clone(), values?))
    }

    /// The tokenizer that lies with the weights: `tokenizer.json`, or the one inside a GGUF file.
    ///
    /// # Errors
    /// Where there is none, or it is damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.source {
            Source::Safetensors(_) => Tokenizer::open(self.path.join("tokenizer.json")),
            Source::Gguf(file) => {
                Tokenizer::from_json(self.gguf_tokenizer(file)?).map_err(|error| Error::malformed(&self.path, error.to_string()))
            }
        }
    }

    /// A GGUF file's tokenizer as `tokenizer.json`.
    fn gguf_tokenizer(&self, file: &GgufFile) -> Result<Vec<u8>> {
        let json = file.tokenizer()?.to_string(true).map_err(|error| Error::malformed(&self.path, error.to_string()))?;
        Ok(json.into_bytes())
    }

    /// Copies what makes the tokenizer into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file can't be copied.
    pub fn copy_companions(&self, folder: &Path) -> Result<()> {
        match &self.source {
            Source::Safetensors(_) => copy_companions(&self.path, folder),
            Source::Gguf(file) => {
                let json = self.gguf_tokenizer(file)?;
                crate::write_beside(folder.join("tokenizer.json"), |out| Ok(out.write_all(&json)?))?;
                crate::chat::write_files(file, folder)
            }
        }
    }

    /// Bytes of what [`Self::copy_companions`] writes.
    ///
    /// # Errors
    /// As that.
    pub fn companion_bytes(&self) -> Result<u64> {
        match &self.source {
            Source::Safetensors(_) => {
                companions(&self.path).iter().try_fold(0, |sum, file| Ok(sum + fs_err::metadata(file)?.len()))
            }
            Source::Gguf(file) => {
                let texts = crate::chat::files(file)?;
                let texts: usize = texts.iter().map(|(_, text)| text.len()).sum();
                Ok((self.gguf_tokenizer(file)?.len() + texts) as u64)
            }
        }
    }
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// [`Error::Io`] where there is none, [`Error::Malformed`] with line and column where it is no JSON.
pub fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join(CONFIG);
    parse_config(&fs_err::read(&path)?, &path)
}

/// Copies what makes the tokenizer from one folder into another.
///
/// # Errors
/// [`Error::Io`] where a file can't be copied.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for file in companions(from) {
        let name = file.file_name().expect("made by joining a name");
        let bytes = fs_err::read(&file)?;
        crate::write_beside(to.join(name), |out| Ok(out.write_all(&bytes)?))?;
    }
    Ok(())
}

fn companions(folder: &Path) -> Vec<PathBuf> {
    COMPANIONS.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
}
