//! Checkpoints on disk: folders and GGUF files, with what travels beside the weights.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::{Checkpoint, Source};
use crate::content::ContentHash;
use crate::entropy::ENTROPY;
use crate::model::{CONFIG, parse_config};
use crate::read::{check_link, is_there};
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

/// What PEFT writes, beside a model or alone.
const ADAPTERS: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAs {
    /// Its type, by the name that the format has for it.
    pub kind: String,
    /// Its elements.
    pub weights: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// A missing or damaged file, an unknown family, a tensor that is missing or of another shape than `config.json` says, and
    /// tensors that nothing would read; all by name. [`Error::Unsupported`] for a folder with quantized weights.
    pub fn open(path: &Path) -> Result<Self> {
        refuse_part(path)?;
        if !crate::is_model_folder(path)? {
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
        file.refuse_unread(&architecture)?;
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
            Source::Gguf(file) => file.files().to_vec(),
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

    /// True for a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.source, Source::Gguf(_))
    }

    /// Every tensor as it lies in the files, by its type there.
    pub fn stored(&self) -> Vec<StoredAs> {
        let stored_as = |kind: &dyn std::fmt::Display, shape: &[usize], bytes: usize| StoredAs {
            kind: kind.to_string(),
            weights: shape.iter().product::<usize>() as u64,
            bytes: bytes as u64,
        };
        match &self.source {
            Source::Safetensors(source) => {
                source.files.iter().map(|(_, slice)| stored_as(&slice.dtype, &slice.shape, slice.bytes.len())).collect()
            }
            Source::Gguf(file) => {
                file.tensors().map(|tensor| stored_as(&tensor.kind.name(), &tensor.shape, tensor.bytes.len())).collect()
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
            Source::Gguf(file) => file.files().iter().map(|path| Ok(fs_err::metadata(path)?.len())).sum(),
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
            Source::Gguf(file) => Tokenizer::from_json(&self.path, self.gguf_tokenizer(file)?),
        }
    }

    /// A GGUF file's tokenizer as `tokenizer.json`.
    fn gguf_tokenizer(&self, file: &GgufFile) -> Result<Vec<u8>> {
        let json = file.tokenizer()?.to_string(true).map_err(|error| Error::malformed(&self.path, error.to_string()))?;
        Ok(json.into_bytes())
    }

    /// Whether what makes the tokenizer can travel with the model: to be asked before the work that ends with it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a file is a link to one outside of the model.
    pub fn check_companions(&self) -> Result<()> {
        match &self.source {
            Source::Safetensors(_) => companions(&self.path).iter().try_for_each(|file| check_link(&self.path, file)),
            Source::Gguf(_) => Ok(()),
        }
    }

    /// Copies what makes the tokenizer into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file can't be copied; as [`Self::check_companions`].
    pub fn copy_companions(&self, folder: &Path) -> Result<()> {
        match &self.source {
            Source::Safetensors(_) => copy_companions(&self.path, folder),
            Source::Gguf(file) => {
                let json = self.gguf_tokenizer(file)?;
                crate::write_beside(folder.join("tokenizer.json"), |out| Ok(out.write_all(&json)?))?;
                crate::chat::files(file)?.into_iter().try_for_each(|(name, text)| {
                    crate::write_beside(folder.join(name), |out| Ok(out.write_all(text.as_bytes())?))
                })
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

/// Refuses one of the files of a model, where the folder that holds all of them is meant.
pub(crate) fn refuse_part(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_part =
        [CONFIG, ENTROPY].contains(&name) || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if !is_part || !path.is_file() {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let what = match folder.join(CONFIG).is_file() {
        true => format!("is a file of a model: name its folder instead, {}", folder.display()),
        false => format!("is a file of a model, whose folder is named, and in {} there is no {CONFIG}", folder.display()),
    };
    Err(Error::unsupported(path, what))
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// [`Error::Io`] where there is none, [`Error::Malformed`] with line and column where it is no JSON, [`Error::Unsupported`] where
/// `folder` is a file of a model, or holds GGUF files instead, or an adapter, with or without the model that it changes.
pub fn read_config(folder: &Path) -> Result<Value> {
    refuse_part(folder)?;
    if let Some(adapter) = ADAPTERS.iter().map(|name| folder.join(name)).find(|path| is_there(path)) {
        let what = "belongs to an adapter (LoRA), which changes the model it lies beside; merge it into that model's weights first, \
                     or remove its files where it is merged already";
        return Err(Error::unsupported(&adapter, what));
    }
    let path = folder.join(CONFIG);
    if let (false, Some(gguf)) = (is_there(&path), first_gguf(folder)) {
        return Err(Error::unsupported(
            folder,
            format!("holds no config.json, but GGUF files: name one of them, such as {gguf}"),
        ));
    }
    parse_config(&crate::read_file(&path, crate::DESCRIPTION_BYTES)?, &path)
}

/// The first GGUF file of a folder by name, which of a split model is the one that opens it.
fn first_gguf(folder: &Path) -> Option<String> {
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".gguf")).min()
}

/// Copies what makes the tokenizer from one folder into another.
///
/// # Errors
/// [`Error::Io`] where a file can't be copied, [`Error::Unsupported`] where one is a link to a file outside of the model.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    let companions = companions(from);
    companions.iter().try_for_each(|file| check_link(from, file))?;
    for file in companions {
        let name = file.file_name().expect("made by joining a name");
        let bytes = crate::read_file(&file, crate::LIST_BYTES)?;
        crate::write_beside(to.join(name), |out| Ok(out.write_all(&bytes)?))?;
    }
    Ok(())
}

fn companions(folder: &Path) -> Vec<PathBuf> {
    COMPANIONS.iter().map(|name| folder.join(name)).filter(|path| is_there(path)).collect()
}
