//! Safetensors files, single or sharded, read by memory map and written tensor by tensor.
//!
//! Format: <https://github.com/huggingface/safetensors>. The `safetensors` crate checks every bound of the header.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{Error, MappedBytes, Result, map_file, write_beside};

/// The tensors of a folder, by name.
#[derive(Clone, Debug)]
pub struct TensorFiles {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorSlice>,
}

/// One tensor as it lies in its file.
#[derive(Clone, Debug)]
pub struct TensorSlice {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements, little endian, row-major.
    pub bytes: MappedBytes,
}

/// The element types that checkpoints and artifacts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Signed byte.
    I8,
    /// Signed 32-bit; packed integers of fewer bits.
    I32,
    /// Signed 64-bit; shapes.
    I64,
}

/// A tensor to be written: its bytes are made when their turn comes, so that one is in memory at a time.
pub struct NewTensor<'a> {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Makes the bytes, little endian, row-major, as many as dtype and shape ask for.
    pub bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl TensorFiles {
    /// Opens `model.safetensors` or every shard that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::Io`] where a file is missing; [`Error::Malformed`] for a truncated or contradictory header, an index that points
    /// outside the folder, or a name that stands in two shards; [`Error::Unsupported`] for other element types.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        let files = if single.exists() { vec![single] } else { shards(folder)? };
        let mut tensors = BTreeMap::new();
        for file in &files {
            for (name, tensor) in read_file(file)? {
                if tensors.insert(name.clone(), tensor).is_some() {
                    return Err(Error::malformed(file, format!("tensor `{name}` stands in another shard too")));
                }
            }
        }
        Ok(Self { files, tensors })
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&TensorSlice> {
        self.tensors.get(name)
    }

    /// Every tensor, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorSlice)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = folder.join(INDEX);
    if !path.exists() {
        return Err(Error::malformed(folder, format!("holds neither {SINGLE} nor {INDEX}")));
    }
    let index: Index =
        serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| Error::malformed(&path, error.to_string()))?;
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

fn read_file(path: &Path) -> Result<Vec<(String, TensorSlice)>> {
    let bytes = MappedBytes::from(map_file(path)?);
    let (header, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes)
        .map_err(|error| Error::malformed(path, describe(&error, bytes.len())))?;
    let start = header + size_of::<u64>();
    let mut tensors = Vec::new();
    for (name, tensor) in metadata.tensors() {
        let dtype = Dtype::from_stored(tensor.dtype)
            .ok_or_else(|| Error::unsupported(path, format!("tensor `{name}` is {:?}; {}", tensor.dtype, Dtype::KNOWN)))?;
        let (from, to) = tensor.data_offsets;
        let bytes = bytes
            .slice(start + from..start + to)
            .ok_or_else(|| Error::malformed(path, format!("tensor `{name}` ends past the file")))?;
        tensors.push((name, TensorSlice { dtype, shape: tensor.shape.clone(), bytes }));
    }
    Ok(tensors)
}

/// The crate's own messages name neither the sizes nor what to make of them.
fn describe(error: &::safetensors::SafeTensorError, file_bytes: usize) -> String {
    use ::safetensors::SafeTensorError::{HeaderTooLarge, HeaderTooSmall, InvalidHeaderLength, MetadataIncompleteBuffer};
    match error {
        HeaderTooSmall | InvalidHeaderLength => {
            format!("is cut short: the header reaches past the end of its {file_bytes} bytes")
        }
        MetadataIncompleteBuffer => {
            format!("its {file_bytes} bytes are not what the header says: the file is cut short or has a tail")
        }
        HeaderTooLarge => "is not a safetensors file, or its header is damaged: the header's length is impossible".to_owned(),
        other => format!("is not a valid safetensors file: {other}"),
    }
}

/// Writes a safetensors file beside its place and renames it; tensors lie by element size, then by name.
///
/// # Errors
/// Those of [`write_beside`], [`Error::NoRoom`] on a full disk among them.
pub fn write_safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (String, NewTensor<'a>)>) -> Result<()> {
    let mut tensors: Vec<(String, NewTensor<'a>)> = tensors.into_iter().collect();
    tensors.sort_by(|(left_name, left), (right_name, right)| order((left.dtype, left_name), (right.dtype, right_name)));
    let described = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype, tensor.shape.clone()));
    let (head, _) = head(described).ok_or_else(|| Error::malformed(path, "would be larger than a file can be"))?;
    write_beside(path, |file| {
        file.write_all(&head)?;
        for (name, tensor) in &tensors {
            let bytes = (tensor.bytes)();
            assert_eq!(bytes.len(), tensor.shape.iter().product::<usize>() * tensor.dtype.bytes(), "bytes of tensor `{name}`");
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// Bytes of the file that [`write_safetensors`] makes of tensors with these names, types and shapes, header included; `None` past
/// what a file's offsets can say.
pub fn safetensors_file_bytes(mut tensors: Vec<(String, Dtype, Vec<usize>)>) -> Option<u64> {
    // The order decides how many digits the offsets in the header have.
    tensors.sort_by(|(left_name, left, _), (right_name, right, _)| order((*left, left_name), (*right, right_name)));
    let (head, data) = head(tensors.into_iter())?;
    u64::try_from(head.len()).ok()?.checked_add(u64::try_from(data).ok()?)
}

/// Large elements first, so that every tensor lies at a multiple of its element's size.
fn order((left, left_name): (Dtype, &str), (right, right_name): (Dtype, &str)) -> Ordering {
    right.stored().cmp(&left.stored()).then_with(|| left_name.cmp(right_name))
}

/// What stands before the tensors, its length first, and the bytes of all of them; `None` past what a file's offsets can say.
fn head(tensors: impl Iterator<Item = (String, Dtype, Vec<usize>)>) -> Option<(Vec<u8>, usize)> {
    let mut end = 0usize;
    let mut described = Vec::new();
    for (name, dtype, shape) in tensors {
        let start = end;
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size))?;
        end = start.checked_add(bytes)?;
        described.push((name, ::safetensors::tensor::TensorInfo { dtype: dtype.stored(), shape, data_offsets: (start, end) }));
    }
    let metadata = ::safetensors::tensor::Metadata::new(Some(layout_metadata()), described).ok()?;
    let mut json = serde_json::to_vec(&metadata).ok()?;
    json.resize(json.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut head = u64::try_from(json.len()).ok()?.to_le_bytes().to_vec();
    head.extend(json);
    Some((head, end))
}

/// Transformers refuses a file that does not say which framework's layout it has.
fn layout_metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

impl TensorSlice {
    /// The elements as f32; `None` for an integer type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.dtype.to_f32(&self.bytes)
    }
}

impl Dtype {
    const KNOWN: &'static str = "known are F32, F16, BF16, I8, I32, I64";

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// True for the types weights are trained in.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Little-endian elements as f32, exactly; `None` for an integer type.
    pub fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let halves = || bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        match self {
            Self::F32 => {
                Some(bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
            }
            Self::F16 => Some(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
            Self::Bf16 => Some(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
            Self::I8 | Self::I32 | Self::I64 => None,
        }
    }

    /// Values in this float type, little endian, rounded to nearest even; `None` for an integer type.
    pub fn from_f32(self, values: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::F32 => Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::F16 => Some(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
            Self::Bf16 => Some(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
            Self::I8 | Self::I32 | Self::I64 => None,
        }
    }

    fn stored(self) -> ::safetensors::Dtype {
        match self {
            Self::F32 => ::safetensors::Dtype::F32,
            Self::F16 => ::safetensors::Dtype::F16,
            Self::Bf16 => ::safetensors::Dtype::BF16,
            Self::I8 => ::safetensors::Dtype::I8,
            Self::I32 => ::safetensors::Dtype::I32,
            Self::I64 => ::safetensors::Dtype::I64,
        }
    }

    fn from_stored(dtype: ::safetensors::Dtype) -> Option<Self> {
        match dtype {
            ::safetensors::Dtype::F32 => Some(Self::F32),
            ::safetensors::Dtype::F16 => Some(Self::F16),
            ::safetensors::Dtype::BF16 => Some(Self::Bf16),
            ::safetensors::Dtype::I8 => Some(Self::I8),
            ::safetensors::Dtype::I32 => Some(Self::I32),
            ::safetensors::Dtype::I64 => Some(Self::I64),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::damage::Damage;

    const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I32, Dtype::I64];

    type Tensor = (Dtype, Vec<usize>, Vec<u8>);

    /// Up to six tensors of any type, of up to three dimensions, empty ones among them.
    fn tensors() -> impl Strategy<Value = BTreeMap<String, Tensor>> {
        let tensor =
            (prop::sample::select(DTYPES.to_vec()), prop::collection::vec(0usize..5, 0..=3)).prop_flat_map(|(dtype, shape)| {
                let bytes = shape.iter().product::<usize>() * dtype.bytes();
                (Just(dtype), Just(shape), prop::collection::vec(any::<u8>(), bytes))
            });
        prop::collection::btree_map("[a-z.ü\"]{1,8}", tensor, 0..6)
    }

    fn write(folder: &Path, tensors: &BTreeMap<String, Tensor>) -> PathBuf {
        let path = folder.join(SINGLE);
        let new = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            let bytes = Box::new(|| Cow::Borrowed(bytes.as_slice()));
            (name.clone(), NewTensor { dtype: *dtype, shape: shape.clone(), bytes })
        });
        write_safetensors(&path, new).unwrap();
        path
    }

    /// Opens a folder whose file may be anything: every tensor has the bytes its shape asks for, or the error names the file.
    fn check_any(folder: &Path, file: &Path) {
        match TensorFiles::open(folder) {
            Ok(files) => {
                let found: usize = files.iter().map(|(_, tensor)| tensor.bytes.len()).sum();
                assert!(found < fs_err::metadata(file).unwrap().len() as usize, "tensors share no bytes");
                for (name, tensor) in files.iter() {
                    assert_eq!(tensor.bytes.len(), tensor.shape.iter().product::<usize>() * tensor.dtype.bytes(), "{name}");
                }
            }
            Err(error) => assert!(error.to_string().starts_with(&format!("{}: ", file.display())), "{error}"),
        }
    }

    fn three() -> BTreeMap<String, Tensor> {
        [
            ("a", (Dtype::F32, vec![2, 3], vec![7; 24])),
            ("b", (Dtype::Bf16, vec![4], vec![9; 8])),
            ("c", (Dtype::I64, vec![], vec![1; 8])),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    #[test]
    fn every_bit_of_a_file_can_flip_and_every_end_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &three());
        let whole = fs_err::read(&path).unwrap();
        assert_eq!(TensorFiles::open(folder.path()).unwrap().iter().count(), 3);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs_err::write(&path, flipped).unwrap();
            check_any(folder.path(), &path);
        }
        for length in 0..whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            assert!(TensorFiles::open(folder.path()).is_err(), "cut to {length}");
            check_any(folder.path(), &path);
        }
    }

    fn refused(header: &str, data: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        fs_err::write(folder.path().join(SINGLE), bytes).unwrap();
        let error = TensorFiles::open(folder.path()).unwrap_err().to_string();
        error.replace(&format!("{}/", folder.path().display()), "")
    }

    #[test]
    fn hostile_shapes_and_offsets_are_refused() {
        let huge = r#"{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#;
        assert_eq!(
            refused(huge, &[0; 4]),
            "model.safetensors: is not a valid safetensors file: overflow computing buffer size from shape and/or element type"
        );
        let beyond = r#"{"t":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}"#;
        assert_eq!(
            refused(beyond, &[0; 4]),
            format!(
                "model.safetensors: its {} bytes are not what the header says: the file is cut short or has a tail",
                8 + beyond.len() + 4
            )
        );
        let shared =
            r#"{"t":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"u":{"dtype":"I8","shape":[4],"data_offsets":[2,6]}}"#;
        assert_eq!(refused(shared, &[0; 6]), "model.safetensors: is not a valid safetensors file: invalid offset for tensor `u`");
        let other = r#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        assert_eq!(refused(other, &[0; 4]), "model.safetensors: tensor `t` is U8; known are F32, F16, BF16, I8, I32, I64");
    }

    proptest! {
        #[test]
        fn the_file_is_the_one_that_the_safetensors_crate_makes(tensors in tensors()) {
            let folder = tempfile::tempdir().unwrap();
            let written = fs_err::read(write(folder.path(), &tensors)).unwrap();
            let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
                (name, ::safetensors::tensor::TensorView::new(dtype.stored(), shape.clone(), bytes).unwrap())
            });
            prop_assert_eq!(&written, &::safetensors::serialize(views, Some(layout_metadata())).unwrap());
            let described = tensors.iter().map(|(name, (dtype, shape, _))| (name.clone(), *dtype, shape.clone())).collect();
            prop_assert_eq!(safetensors_file_bytes(described), Some(written.len() as u64));
        }

        #[test]
        fn what_is_written_is_read_back(tensors in tensors()) {
            let folder = tempfile::tempdir().unwrap();
            let path = write(folder.path(), &tensors);
            let files = TensorFiles::open(folder.path()).unwrap();
            let read: BTreeMap<String, Tensor> = files
                .iter()
                .map(|(name, tensor)| (name.to_owned(), (tensor.dtype, tensor.shape.clone(), tensor.bytes.to_vec())))
                .collect();
            prop_assert_eq!(&read, &tensors);
            let sizes = tensors.into_iter().map(|(name, (dtype, shape, _))| (name, dtype, shape)).collect();
            prop_assert_eq!(safetensors_file_bytes(sizes), Some(fs_err::metadata(path).unwrap().len()));
        }

        #[test]
        fn changed_files_open_within_their_bounds_or_are_refused_by_path(
            tensors in tensors(),
            damage in Damage::any(0..4, 0.5),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = write(folder.path(), &tensors);
            damage.strike(&path);
            check_any(folder.path(), &path);
        }
    }
}
