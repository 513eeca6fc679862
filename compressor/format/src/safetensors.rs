//! Safetensors files: the tensors that lie in them, and their element types.
//!
//! - `header`: the one place that believes a file; `folder`: files and shards; `write`: tensor by tensor
//!
//! Format: <https://github.com/huggingface/safetensors>.

#[cfg(feature = "std")]
mod folder;
pub(crate) mod header;
#[cfg(feature = "std")]
mod write;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

#[cfg(feature = "std")]
use serde::{Deserialize, Serialize};

#[cfg(feature = "std")]
pub use self::write::{NewTensor, safetensors_file_bytes, write_safetensors, write_safetensors_with};
#[cfg(feature = "std")]
pub(crate) use self::write::{SafetensorsWriter, layout_metadata};
use crate::{Error, MappedBytes, Origin, Result};

/// The tensors of a folder or of one file's bytes, by name.
#[derive(Clone, Debug, Default)]
pub struct TensorFiles {
    #[cfg(feature = "std")]
    files: Vec<std::path::PathBuf>,
    bytes: u64,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorSlice>,
    /// Tensors of types that nothing here reads, by name, each with its type.
    others: BTreeMap<String, (&'static str, MappedBytes)>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "std", derive(Serialize, Deserialize), serde(rename_all = "lowercase"))]
pub enum Dtype {
    /// 64-bit float: read as the nearest f32, never written.
    F64,
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

impl TensorFiles {
    /// Reads the header of a whole file's bytes, which errors call `origin`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a truncated or contradictory header.
    pub fn from_bytes<O: Origin + ?Sized>(bytes: impl Into<MappedBytes>, origin: &O) -> Result<Self> {
        let mut files = Self::default();
        files.add(&bytes.into(), &origin.shown())?;
        Ok(files)
    }

    /// Adds the tensors of one more file.
    fn add(&mut self, file: &MappedBytes, origin: &str) -> Result<()> {
        let header::Contents { data, metadata, entries } = header::read(file, origin)?;
        self.metadata.extend(metadata);
        for header::Entry { name, element, shape, bytes } in entries {
            let bytes = file.slice(data + bytes.start..data + bytes.end).expect("`header::read` lets no tensor past the end");
            // Some programs write a tensor that two modules share into the shard of each.
            let is_the_same = match (&element, self.tensors.get(&name), self.others.get(&name)) {
                (_, None, None) => true,
                (header::Element::Known(dtype), Some(known), None) => {
                    (known.dtype, &known.shape, &*known.bytes) == (*dtype, &shape, &*bytes)
                }
                (header::Element::Other(dtype), None, Some((known, old))) => (known, &**old) == (dtype, &*bytes),
                _ => false,
            };
            if !is_the_same {
                return Err(Error::malformed(origin, format!("tensor `{name}` stands in another shard too, with other values")));
            }
            match element {
                header::Element::Known(dtype) => {
                    self.tensors.entry(name).or_insert(TensorSlice { dtype, shape, bytes });
                }
                header::Element::Other(dtype) => {
                    self.others.entry(name).or_insert((dtype, bytes));
                }
            }
        }
        self.bytes += file.len() as u64;
        Ok(())
    }

    /// Bytes of the files, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The texts that stand beside the tensors (`__metadata__`); where shards have one name for two, the last one's.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&TensorSlice> {
        self.tensors.get(name)
    }

    /// The error for a tensor that is asked for and not there: that its type is not read, where that is why.
    pub(crate) fn missing(&self, name: &str, origin: &str) -> Error {
        match self.others.get(name) {
            Some((dtype, _)) => Error::unsupported(origin, format!("tensor `{name}` is {dtype}; {}", Dtype::KNOWN)),
            None => Error::MissingTensor { path: origin.into(), name: name.into() },
        }
    }

    /// Refuses tensors that are not read, of any type: those for which `is_read` is false.
    pub(crate) fn refuse_unread(&self, is_read: impl Fn(&str) -> bool, origin: &str) -> Result<()> {
        match self.tensors.keys().chain(self.others.keys()).find(|name| !is_read(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("tensor `{name}` has no place in the model that config.json describes");
                Err(Error::malformed(origin, what))
            }
        }
    }

    /// Every tensor of a type that is read here, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorSlice)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl TensorSlice {
    /// The elements as f32; `None` for an integer type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.dtype.to_f32(&self.bytes)
    }
}

impl Dtype {
    const KNOWN: &'static str = "known are F64, F32, F16, BF16, I8, I32, I64";

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// True for the types weights are trained in.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Little-endian elements as f32, exactly but for f64, of which the nearest is taken, infinite beyond f32; `None` for an integer
    /// type.
    pub fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let halves = || bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        match self {
            Self::F64 => Some(bytes.as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight) as f32).collect()),
            Self::F32 => {
                Some(bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
            }
            Self::F16 => Some(halves().map(f16_to_f32).collect()),
            Self::Bf16 => Some(halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
            Self::I8 | Self::I32 | Self::I64 => None,
        }
    }

    /// The type that a header calls so.
    fn in_header(name: &str) -> Option<Self> {
        match name {
            "F64" => Some(Self::F64),
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            "I8" => Some(Self::I8),
            "I32" => Some(Self::I32),
            "I64" => Some(Self::I64),
            _ => None,
        }
    }
}

/// IEEE half precision as f32, exactly.
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    const INFINITE: u32 = 0x7c00 << 13;
    /// 2^(127 − 15): an f32's exponents start that much lower.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    match magnitude >= INFINITE {
        true => f32::from_bits(sign | 0xff << 23 | magnitude),
        // Subnormal halves are subnormal f32 before the product, and normal after it.
        false => f32::from_bits(sign | (f32::from_bits(magnitude) * SCALE).to_bits()),
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::borrow::Cow;
    use std::path::{Path, PathBuf};

    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::folder::SINGLE;
    use super::write::layout_metadata;
    use super::*;
    use crate::damage::Damage;

    const DTYPES: [Dtype; 7] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I32, Dtype::I64];

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

    fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header, data].concat()
    }

    /// What a folder with this file is refused for, which is also what its bytes are refused for.
    fn refused(header: &str, data: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let bytes = with_header(header.as_bytes(), data);
        fs_err::write(folder.path().join(SINGLE), &bytes).unwrap();
        let error = TensorFiles::open(folder.path()).unwrap_err().to_string();
        let error = error.replace(&format!("{}/", folder.path().display()), "");
        assert_eq!(TensorFiles::from_bytes(bytes, SINGLE).unwrap_err().to_string(), error);
        error
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
        let other = r#"{"t":{"dtype":"U9","shape":[4],"data_offsets":[0,4]}}"#;
        assert_eq!(
            refused(other, &[0; 4]),
            "model.safetensors: is not a valid safetensors file: tensor `t` is of the type U9, which there is not"
        );
        let half = r#"{"t":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
        assert_eq!(
            refused(half, &[0; 1]),
            "model.safetensors: is not a valid safetensors file: invalid shape, data type, or offset for tensor"
        );
    }

    #[test]
    fn types_that_nothing_reads_are_no_reason_to_refuse_a_file() {
        let header = r#"{"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},"c":{"dtype":"F4","shape":[2,2],"data_offsets":[2,4]},
                         "w":{"dtype":"F64","shape":[1],"data_offsets":[4,12]}}"#;
        let data = [&[1, 0, 7, 7][..], &1e300f64.to_le_bytes()].concat();
        let files = TensorFiles::from_bytes(with_header(header.as_bytes(), &data), SINGLE).unwrap();
        assert_eq!(files.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["w"]);
        assert_eq!(files.get("w").unwrap().to_f32().unwrap(), [f32::INFINITY], "beyond f32, which readers of values refuse");
        assert_eq!(
            files.missing("b", SINGLE).to_string(),
            "model.safetensors: tensor `b` is BOOL; known are F64, F32, F16, BF16, I8, I32, I64"
        );
        assert_eq!(
            files.refuse_unread(|name| name == "w", SINGLE).unwrap_err().to_string(),
            "model.safetensors: tensor `b` has no place in the model that config.json describes"
        );
    }

    #[test]
    fn a_tensor_may_stand_in_two_shards_with_the_same_values() {
        let folder = tempfile::tempdir().unwrap();
        let shard = |name: &str, values: [u8; 4], mask: u8| {
            let header =
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"m":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}"#;
            fs_err::write(folder.path().join(name), with_header(header.as_bytes(), &[&values[..], &[mask]].concat())).unwrap();
        };
        let index = r#"{"weight_map": {"w": "a.safetensors", "m": "b.safetensors"}}"#;
        fs_err::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        shard("a.safetensors", [1; 4], 1);
        shard("b.safetensors", [1; 4], 1);
        let files = TensorFiles::open(folder.path()).unwrap();
        assert_eq!((files.iter().count(), &*files.get("w").unwrap().bytes), (1, &[1; 4][..]));
        for (values, mask, name) in [([2; 4], 1, "w"), ([1; 4], 0, "m")] {
            shard("b.safetensors", values, mask);
            let expected = format!(
                "{}: tensor `{name}` stands in another shard too, with other values",
                folder.path().join("b.safetensors").display()
            );
            assert_eq!(TensorFiles::open(folder.path()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_header_that_is_no_table_of_tensors_is_refused() {
        let invalid = |header: &str| {
            let refused = refused(header, &[0; 4]);
            refused.strip_prefix("model.safetensors: is not a valid safetensors file: ").unwrap().to_owned()
        };
        let tensor = r#"{"dtype":"I8","shape":[4],"data_offsets":[0,4]}"#;
        assert_eq!(invalid("{"), "invalid JSON in header: EOF while parsing an object at line 1 column 1");
        assert_eq!(
            invalid("[]"),
            "invalid JSON in header: invalid type: sequence, expected a table of tensors at line 1 column 0"
        );
        assert_eq!(
            invalid(r#"{"t":4}"#),
            "invalid JSON in header: invalid type: integer `4`, expected a tensor's dtype, shape and data_offsets at line 1 column 6"
        );
        assert_eq!(
            invalid(r#"{"t":{"dtype":"I8","shape":[4]}}"#),
            "invalid JSON in header: missing field `data_offsets` at line 1 column 31"
        );
        assert_eq!(
            invalid(r#"{"t":{"dtype":"I8","dtype":"I8"}}"#),
            "invalid JSON in header: duplicate field `dtype` at line 1 column 32"
        );
        assert_eq!(
            invalid(&format!(r#"{{"t":{tensor},"t":{tensor}}}"#)),
            "invalid JSON in header: tensor `t` stands there twice at line 1 column 105"
        );
        assert_eq!(
            invalid(r#"{"t":{"dtype":"I8","shape":[5],"data_offsets":[0,4]}}"#),
            "invalid shape, data type, or offset for tensor"
        );
        assert_eq!(
            TensorFiles::from_bytes(with_header(&[0xff], &[]), SINGLE).unwrap_err().to_string(),
            "model.safetensors: is not a valid safetensors file: invalid UTF-8 in header: invalid utf-8 sequence of 1 bytes from \
             index 0"
        );
        assert_eq!(
            TensorFiles::from_bytes(vec![0xff; 8], SINGLE).unwrap_err().to_string(),
            "model.safetensors: is not a safetensors file, or its header is damaged: the header's length is impossible"
        );
        for short in [vec![9; 7], vec![9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']] {
            let expected =
                format!("model.safetensors: is cut short: the header reaches past the end of its {} bytes", short.len());
            assert_eq!(TensorFiles::from_bytes(short, SINGLE).unwrap_err().to_string(), expected);
        }
        let known = with_header(format!(r#"{{"__metadata__":{{"format":"pt"}},"t":{tensor}}}"#).as_bytes(), &[7; 4]);
        let files = TensorFiles::from_bytes(known, SINGLE).unwrap();
        assert_eq!(&*files.get("t").unwrap().bytes, &[7; 4]);
        assert!(files.files().is_empty());
    }

    #[test]
    fn every_half_is_the_float_that_the_half_crate_makes_of_it() {
        let every: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let same = |ours: Vec<f32>, theirs: fn(u16) -> f32| {
            assert_eq!(ours.len(), 1 << 16);
            for (bits, ours) in (0..=u16::MAX).zip(ours) {
                let theirs = theirs(bits);
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}: {ours} {theirs}");
            }
        };
        same(Dtype::F16.to_f32(&every).unwrap(), |bits| f16::from_bits(bits).to_f32());
        same(Dtype::Bf16.to_f32(&every).unwrap(), |bits| bf16::from_bits(bits).to_f32());
    }

    /// The `safetensors` crate reads the same tensors out of these bytes, or refuses them too.
    fn check_against_the_crate(bytes: Vec<u8>) {
        type Found = BTreeMap<String, (::safetensors::Dtype, Vec<usize>, Vec<u8>)>;
        let theirs: Option<Found> = ::safetensors::SafeTensors::deserialize(&bytes).ok().map(|tensors| {
            let tensor = |(name, view): (String, ::safetensors::tensor::TensorView<'_>)| {
                (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            };
            tensors.tensors().into_iter().map(tensor).collect()
        });
        match (TensorFiles::from_bytes(bytes, SINGLE), theirs) {
            (Ok(ours), Some(theirs)) => {
                let tensor = |(name, slice): (&str, &TensorSlice)| {
                    (name.to_owned(), (slice.dtype.stored(), slice.shape.clone(), slice.bytes.to_vec()))
                };
                let others = theirs.iter().filter(|(name, _)| ours.others.contains_key(*name)).count();
                let read: Found = ours.iter().map(tensor).collect();
                assert_eq!((read.len() + others, ours.others.len()), (theirs.len(), others));
                assert!(read.iter().all(|(name, tensor)| theirs[name] == *tensor));
            }
            (Err(_), None) => {}
            (ours, theirs) => panic!("{ours:?}, but {theirs:?}"),
        }
    }

    #[test]
    fn every_flip_of_a_bit_is_judged_as_the_safetensors_crate_judges_it() {
        let folder = tempfile::tempdir().unwrap();
        let whole = fs_err::read(write(folder.path(), &three())).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            check_against_the_crate(flipped);
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_are_judged_as_the_safetensors_crate_judges_them(
            tensors in tensors(),
            damage in Damage::any(0..3, 0.1),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut bytes = fs_err::read(write(folder.path(), &tensors)).unwrap();
            damage.change(&mut bytes);
            check_against_the_crate(bytes);
        }

        #[test]
        fn the_file_is_the_one_that_the_safetensors_crate_makes(tensors in tensors()) {
            let folder = tempfile::tempdir().unwrap();
            let written = fs_err::read(write(folder.path(), &tensors)).unwrap();
            let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
                (name, ::safetensors::tensor::TensorView::new(dtype.stored(), shape.clone(), bytes).unwrap())
            });
            prop_assert_eq!(&written, &::safetensors::serialize(views, Some(layout_metadata().into_iter().collect())).unwrap());
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
