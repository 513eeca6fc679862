//! Reads GGUF files, versions 2 and 3, and writes version 3: llama.cpp's format for a model with its tokenizer in one file.
//!
//! A file is a head (metadata, then a table of tensors) and, from the next multiple of `general.alignment`, the tensors' bytes.
//! The head is believed only after every count, length and offset in it has been checked against the file's end; the tensors stay
//! in the mapped file and become f32 when they are asked for.
//!
//! - `metadata`: the head's values; `blocks`: quantized types; `parts`: models in several files
//! - `keys`: what every key means; `config`: the metadata as a Hugging Face `config.json`; `rotary`: its rotary scaling
//! - `names`: tensors by Hugging Face's names and row order
//! - `vocabulary`: the tokenizer; `words`: how it cuts text
//! - `write`: an artifact as such a file
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod blocks;
mod config;
#[cfg(test)]
mod hostile;
mod keys;
mod metadata;
mod names;
mod parts;
#[cfg(test)]
mod real;
mod rotary;
#[cfg(test)]
mod sample;
mod vocabulary;
mod words;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use blocks::GgmlType;
pub use names::gguf_name;
pub use write::{GgufReport, write_gguf};

use crate::mapped::{MappedBytes, map_file};
use crate::{Error, Result};
use blocks::TypeId;
use metadata::{Cursor, List, Value};

/// A GGUF file whose head has been read and checked, with the other parts where the model is split.
#[derive(Debug, Clone)]
pub struct GgufFile {
    path: PathBuf,
    /// Every part in order; the file itself where it is whole.
    files: Vec<PathBuf>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// A tensor as it lies in the file.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// Sizes, outermost first: GGUF writes them the other way round.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub kind: GgmlType,
    /// Its bytes, whole blocks of `kind`.
    pub bytes: MappedBytes,
}

const MAGIC: [u8; 4] = *b"GGUF";
/// Where the key `general.alignment` is missing.
const DEFAULT_ALIGNMENT: u64 = 32;
/// `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;

impl GgufFile {
    /// Maps the file at `path` and reads its head; of a model in several files the first one, which opens all.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be opened, [`Error::Malformed`] when it contradicts the format or a part is missing or of another
    /// model, [`Error::Unsupported`] for another version or byte order, for a tensor type that nothing here reads, and for a part
    /// that is not the first.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::read(path, &map_file(path)?.into())?.with_other_parts()
    }

    /// Reads the head of `file`; `path` is for messages.
    fn read(path: &Path, file: &MappedBytes) -> Result<Self> {
        let mut cursor = Cursor { path, file, at: 0 };
        check_magic_and_version(&mut cursor)?;
        let tensor_count = cursor.u64("the number of tensors")?;
        let value_count = cursor.u64("the number of metadata values")?;

        let mut metadata = BTreeMap::new();
        for index in 0..value_count {
            let key = cursor.text(format_args!("key {index} of {value_count}"))?.to_owned();
            let value = cursor.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(cursor.malformed(format_args!("the key `{key}` stands there twice")));
            }
        }
        let mut entries = BTreeMap::new();
        for index in 0..tensor_count {
            let entry = TensorEntry::read(&mut cursor, index, tensor_count)?;
            if let Some(twice) = entries.insert(entry.name.clone(), entry) {
                return Err(cursor.malformed(format_args!("the tensor `{}` stands there twice", twice.name)));
            }
        }

        let head_bytes = cursor.at as u64;
        let mut gguf = Self { path: path.to_owned(), files: vec![path.to_owned()], metadata, tensors: BTreeMap::new() };
        let alignment = gguf.alignment()?;
        let tensors_start = head_bytes.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        for entry in entries.into_values() {
            let tensor = entry.locate(path, file, tensors_start, alignment)?;
            gguf.tensors.insert(tensor.name.clone(), tensor);
        }
        gguf.refuse_overlaps()?;
        Ok(gguf)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every file that it was read from: itself, or all parts in their order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &GgufTensor> {
        self.tensors.values()
    }

    /// The tensor with this name in the file.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The values of a tensor, row-major, by its name in the file.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is no such tensor.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name).ok_or_else(|| self.malformed(format!("there is no tensor `{name}`")))?;
        let mut values = vec![0.0; tensor.shape.iter().product()];
        blocks::dequantize(tensor.kind, &tensor.bytes, &mut values);
        Ok(values)
    }

    /// A string of the metadata, such as `tokenizer.chat_template`; `None` where the key is missing.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the value is not a string.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number of the metadata; `None` where the key is missing.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the value is not a whole number or is negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.value(key, "a whole number of 0 or more", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A float of the metadata; `None` where the key is missing. An f32 becomes the shortest decimal that means it: 1e-5 stays 1e-5.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the value is not a float or not finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.value(key, "a finite float", |value| match value {
            Value::F32(number) => number.to_string().parse().ok().filter(|number: &f64| number.is_finite()),
            Value::F64(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// A bool of the metadata; `None` where the key is missing.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the value is not a bool.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.value(key, "a bool", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    fn list(&self, key: &str) -> Result<Option<&List>> {
        self.value(key, "a list", |value| match value {
            Value::List(list) => Some(list),
            _ => None,
        })
    }

    fn value<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let read = read(value);
        if read.is_none() {
            return Err(self.malformed(format!("`{key}` is {}, expected {expected}", value.kind())));
        }
        Ok(read)
    }

    fn alignment(&self) -> Result<u64> {
        let alignment = self.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(self.malformed(format!("`general.alignment` is {alignment}, expected a power of two")));
        }
        Ok(alignment)
    }

    /// Tensors that share bytes would let a small file ask for any amount of memory.
    fn refuse_overlaps(&self) -> Result<()> {
        let mut by_place: Vec<&GgufTensor> = self.tensors.values().collect();
        by_place.sort_by_key(|tensor| tensor.bytes.as_ptr());
        for pair in by_place.windows(2) {
            if pair[0].bytes.as_ptr_range().end > pair[1].bytes.as_ptr() {
                return Err(self.malformed(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)));
            }
        }
        Ok(())
    }

    fn malformed(&self, what: impl Into<String>) -> Error {
        Error::malformed(&self.path, what)
    }

    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::unsupported(&self.path, what)
    }
}

fn check_magic_and_version(cursor: &mut Cursor) -> Result<()> {
    if !cursor.file.starts_with(&MAGIC) {
        let what = "is not a GGUF file: it does not begin with the bytes `GGUF`";
        return Err(Error::unreadable(cursor.path, cursor.file, what));
    }
    cursor.u32("the magic")?;
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        // A version is a small number; in the other byte order it is not.
        version if version.swap_bytes() < 1 << 16 => Err(Error::unsupported(
            cursor.path,
            "is a big-endian GGUF file, and only little-endian ones are read: convert the model again",
        )),
        version => Err(Error::unsupported(
            cursor.path,
            format!("is a GGUF file of version {version}, and versions 2 and 3 are read: convert the model again"),
        )),
    }
}

/// A line of the tensor table.
struct TensorEntry {
    name: String,
    shape: Vec<usize>,
    kind: GgmlType,
    /// In bytes, from the start of the tensors.
    offset: u64,
    bytes: usize,
}

impl TensorEntry {
    fn read(cursor: &mut Cursor, index: u64, count: u64) -> Result<Self> {
        let name = cursor.text(format_args!("the name of tensor {index} of {count}"))?.to_owned();
        let what = format_args!("the table entry of tensor `{name}`");
        let dimensions = cursor.u32(what)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(cursor
                .malformed(format_args!("tensor `{name}` has {dimensions} dimensions, at most {MAX_DIMENSIONS} are possible")));
        }
        let mut sizes = Vec::new();
        for _ in 0..dimensions {
            sizes.push(cursor.u64(what)?);
        }
        let kind = match GgmlType::from_id(cursor.u32(what)?) {
            TypeId::Readable(kind) => kind,
            TypeId::Named(kind) => return Err(unreadable(cursor.path, &name, kind)),
            TypeId::Unknown => return Err(cursor.malformed(format_args!("tensor `{name}` has a type that ggml does not define"))),
        };
        let offset = cursor.u64(what)?;

        let row = sizes.first().copied().unwrap_or(1);
        if sizes.contains(&0) || row % kind.block_elements() as u64 != 0 {
            return Err(cursor.malformed(format_args!(
                "tensor `{name}` has shape {:?} (innermost first); sizes of {} are above 0 and the first a multiple of {}",
                sizes,
                kind.name(),
                kind.block_elements()
            )));
        }
        let elements = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        // Checked at eight bytes an element, more than any type has, so that nothing computed from the shape overflows later.
        let elements = elements.filter(|elements| elements.checked_mul(8).is_some_and(|bytes| usize::try_from(bytes).is_ok()));
        let Some(elements) = elements else {
            return Err(cursor.malformed(format_args!("tensor `{name}` has shape {sizes:?}, more elements than can be counted")));
        };
        let bytes = elements as usize / kind.block_elements() * kind.block_bytes();
        // Each size divides a count of elements that fits.
        let shape = sizes.iter().rev().map(|&size| size as usize).collect();
        Ok(Self { name, shape, kind, offset, bytes })
    }

    /// Checks where the tensor lies, `tensors_start` bytes into the file and further.
    fn locate(self, path: &Path, file: &MappedBytes, tensors_start: u64, alignment: u64) -> Result<GgufTensor> {
        let Self { name, shape, kind, offset, bytes } = self;
        if offset % alignment != 0 {
            let what = format!("tensor `{name}` begins at offset {offset}, not a multiple of the alignment {alignment}");
            return Err(Error::malformed(path, what));
        }
        let start = tensors_start.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        let Some(bytes) = range.and_then(|range| file.slice(range)) else {
            let what = format!(
                "truncated: tensor `{name}` takes {bytes} bytes from offset {offset} of the tensors, which begin at byte {tensors_start}, \
                 and the file has {}",
                file.len()
            );
            return Err(Error::malformed(path, what));
        };
        Ok(GgufTensor { name, shape, kind, bytes })
    }
}

fn unreadable(path: &Path, tensor: &str, kind: &str) -> Error {
    let readable = blocks::READABLE.map(GgmlType::name).join(", ");
    Error::unsupported(path, format!("tensor `{tensor}` is {kind}, which can't be read; these can: {readable}"))
}
