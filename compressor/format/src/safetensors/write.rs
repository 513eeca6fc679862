//! Writes safetensors files, tensor by tensor.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};

use super::Dtype;
use crate::write::Beside;
use crate::{Error, Result};

/// A tensor to be written: its bytes are made when their turn comes, so that one is in memory at a time.
pub struct NewTensor<'a> {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Makes the bytes, little endian, row-major, as many as dtype and shape ask for.
    pub bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

/// Writes a safetensors file beside its place and renames it; tensors lie by element size, then by name.
///
/// # Errors
/// Those of [`crate::write_beside`], [`Error::NoRoom`] on a full disk among them.
pub fn write_safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (String, NewTensor<'a>)>) -> Result<()> {
    write_safetensors_with(path, layout_metadata(), tensors)
}

/// As [`write_safetensors`], with these texts beside the tensors (`__metadata__`).
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_with<'a>(
    path: &Path,
    metadata: BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (String, NewTensor<'a>)>,
) -> Result<()> {
    let tensors: Vec<(String, NewTensor<'a>)> = tensors.into_iter().collect();
    let described = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype, tensor.shape.clone())).collect();
    let mut file = SafetensorsWriter::begin(path, metadata, described)?;
    for (name, tensor) in &tensors {
        file.put(name, &(tensor.bytes)())?;
    }
    file.finish()
}

/// A safetensors file under way: every tensor has its place before the first is written, so they come in any order, and none has to be
/// in memory but the one that is put.
#[derive(Debug)]
pub(crate) struct SafetensorsWriter {
    beside: Beside,
    /// Where the tensors begin.
    first: usize,
    /// Counted from there; those that have not come yet.
    open: BTreeMap<String, Range<usize>>,
}

impl SafetensorsWriter {
    /// Begins with the header; dropped before [`Self::finish`], nothing is left.
    ///
    /// # Errors
    /// Those of [`crate::write_beside`].
    pub(crate) fn begin(
        path: &Path,
        metadata: BTreeMap<String, String>,
        mut described: Vec<(String, Dtype, Vec<usize>)>,
    ) -> Result<Self> {
        described.sort_by(|(left_name, left, _), (right_name, right, _)| order((*left, left_name), (*right, right_name)));
        let head = head(metadata, described.iter().cloned());
        let (head, _) = head.ok_or_else(|| Error::malformed(path, "would be larger than a file can be"))?;
        let mut end = 0;
        let place = |(name, dtype, shape): (String, Dtype, Vec<usize>)| {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bytes();
            (name, start..end)
        };
        let open = described.into_iter().map(place).collect();
        let mut beside = Beside::create(path)?;
        beside.file.write_all(&head).map_err(|error| beside.not_written(error.into()))?;
        Ok(Self { beside, first: head.len(), open })
    }

    /// Writes the bytes of a tensor, little endian, row-major.
    ///
    /// # Errors
    /// Those of [`crate::write_beside`].
    ///
    /// # Panics
    /// Where no tensor of this name is still to come, or it has another number of bytes: a mistake of the caller.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.open.remove(name).unwrap_or_else(|| panic!("no tensor `{name}` is to come"));
        assert_eq!(bytes.len(), place.len(), "bytes of tensor `{name}`");
        let file = &mut self.beside.file;
        let written = file.seek(SeekFrom::Start((self.first + place.start) as u64)).and_then(|_| file.write_all(bytes));
        written.map_err(|error| self.beside.not_written(error.into()))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// Those of [`crate::write_beside`].
    ///
    /// # Panics
    /// Where a tensor has not come: a mistake of the caller.
    pub(crate) fn finish(self) -> Result<()> {
        assert!(self.open.is_empty(), "tensors that have not come: {:?}", self.open.keys());
        self.beside.rename()
    }
}

/// Bytes of the file that [`write_safetensors`] makes of tensors with these names, types and shapes, header included; `None` past
/// what a file's offsets can say.
pub fn safetensors_file_bytes(mut tensors: Vec<(String, Dtype, Vec<usize>)>) -> Option<u64> {
    // The order decides how many digits the offsets in the header have.
    tensors.sort_by(|(left_name, left, _), (right_name, right, _)| order((*left, left_name), (*right, right_name)));
    let (head, data) = head(layout_metadata(), tensors.into_iter())?;
    u64::try_from(head.len()).ok()?.checked_add(u64::try_from(data).ok()?)
}

/// Large elements first, so that every tensor lies at a multiple of its element's size.
fn order((left, left_name): (Dtype, &str), (right, right_name): (Dtype, &str)) -> Ordering {
    right.stored().cmp(&left.stored()).then_with(|| left_name.cmp(right_name))
}

/// What stands before the tensors, its length first, and the bytes of all of them; `None` past what a file's offsets can say.
fn head(texts: BTreeMap<String, String>, tensors: impl Iterator<Item = (String, Dtype, Vec<usize>)>) -> Option<(Vec<u8>, usize)> {
    let mut end = 0usize;
    let mut described = Vec::new();
    for (name, dtype, shape) in tensors {
        let start = end;
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size))?;
        end = start.checked_add(bytes)?;
        described.push((name, ::safetensors::tensor::TensorInfo { dtype: dtype.stored(), shape, data_offsets: (start, end) }));
    }
    let texts = HashMap::from_iter(texts);
    let mut header = serde_json::to_value(::safetensors::tensor::Metadata::new(Some(texts), described).ok()?).ok()?;
    // A hash map has another order in every run, and the same contents are to give the same bytes.
    header.get_mut("__metadata__")?.as_object_mut()?.sort_keys();
    let mut json = serde_json::to_vec(&header).ok()?;
    json.resize(json.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut head = u64::try_from(json.len()).ok()?.to_le_bytes().to_vec();
    head.extend(json);
    Some((head, end))
}

/// Transformers refuses a file that does not say which framework's layout it has.
pub(crate) fn layout_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

impl Dtype {
    /// Values in this float type, little endian, rounded to nearest even; `None` for an integer type.
    pub fn from_f32(self, values: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::F64 => Some(values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect()),
            Self::F32 => Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::F16 => Some(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
            Self::Bf16 => Some(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
            Self::I8 | Self::I32 | Self::I64 => None,
        }
    }

    /// The nearest value of this float type, half to even; infinite beyond its range. `None` for an integer type.
    pub fn nearest(self, value: f32) -> Option<f32> {
        match self {
            Self::F64 | Self::F32 => Some(value),
            Self::F16 => Some(f16::from_f32(value).to_f32()),
            Self::Bf16 => Some(bf16::from_f32(value).to_f32()),
            Self::I8 | Self::I32 | Self::I64 => None,
        }
    }

    /// The type by the name that the `safetensors` crate has for it.
    pub(super) fn stored(self) -> ::safetensors::Dtype {
        match self {
            Self::F64 => ::safetensors::Dtype::F64,
            Self::F32 => ::safetensors::Dtype::F32,
            Self::F16 => ::safetensors::Dtype::F16,
            Self::Bf16 => ::safetensors::Dtype::BF16,
            Self::I8 => ::safetensors::Dtype::I8,
            Self::I32 => ::safetensors::Dtype::I32,
            Self::I64 => ::safetensors::Dtype::I64,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn described() -> Vec<(String, Dtype, Vec<usize>)> {
        vec![
            ("b".to_owned(), Dtype::I8, vec![3]),
            ("a".to_owned(), Dtype::F32, vec![1, 2]),
            ("c".to_owned(), Dtype::F16, vec![1]),
        ]
    }

    #[test]
    fn tensors_that_come_in_any_order_make_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |name: &str| -> &[u8] {
            match name {
                "a" => b"aaaaAAAA",
                "b" => b"bBb",
                _ => b"cC",
            }
        };
        let written = |names: [&str; 3]| {
            let path = folder.path().join(names.concat());
            let mut file = SafetensorsWriter::begin(&path, layout_metadata(), described()).unwrap();
            names.iter().for_each(|name| file.put(name, bytes(name)).unwrap());
            assert!(!path.exists(), "nothing is there before it is whole");
            file.finish().unwrap();
            fs_err::read(path).unwrap()
        };
        let one = written(["a", "b", "c"]);
        assert!(one.ends_with(b"aaaaAAAAcCbBb"), "by element size");
        assert_eq!(written(["c", "b", "a"]), one);
        assert_eq!(written(["b", "a", "c"]), one);
    }

    #[test]
    fn one_that_is_given_up_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs_err::write(&path, "old").unwrap();
        let mut file = SafetensorsWriter::begin(&path, layout_metadata(), described()).unwrap();
        file.put("b", b"bBb").unwrap();
        drop(file);
        assert_eq!(fs_err::read(&path).unwrap(), b"old");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }
}
