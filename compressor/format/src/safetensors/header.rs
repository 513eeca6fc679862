//! The header of a safetensors file: which tensors there are, and where. Nothing in it is believed before it is checked.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use serde_core::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::Dtype;
use crate::{Error, Result};

/// A tensor that a header names; its bytes lie inside the file and are as many as type and shape ask for.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) element: Element,
    pub(crate) shape: Vec<usize>,
    /// Counted from the end of the header.
    pub(crate) bytes: Range<usize>,
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Known(Dtype),
    /// A type of the format that nothing here reads, and that files may hold: masks, buffers.
    Other(&'static str),
}

/// Those types, each with the bits of an element.
const OTHERS: [(&str, u64); 15] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I16", 16),
    ("U16", 16),
    ("U32", 32),
    ("U64", 64),
    ("C64", 64),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
];

impl Element {
    /// The type that a header calls so.
    fn in_header(name: &str) -> Option<Self> {
        let other = || OTHERS.iter().find(|(other, _)| *other == name).map(|(other, _)| Self::Other(other));
        Dtype::in_header(name).map(Self::Known).or_else(other)
    }

    fn bits(self) -> u64 {
        match self {
            Self::Known(dtype) => 8 * dtype.bytes() as u64,
            Self::Other(name) => OTHERS.iter().find(|(other, _)| *other == name).map_or(0, |(_, bits)| *bits),
        }
    }
}

/// What a header says.
pub(crate) struct Contents {
    /// Where the header ends and the tensors begin.
    pub(crate) data: usize,
    pub(crate) metadata: BTreeMap<String, String>,
    /// In the order in which they lie in the file.
    pub(crate) entries: Vec<Entry>,
}

/// A header's length stands in front of it.
const LENGTH_BYTES: usize = size_of::<u64>();
/// The limit of the format's own implementation.
const LARGEST_HEADER_BYTES: usize = 100_000_000;

/// Reads the header of a whole file, which errors call `origin`.
pub(crate) fn read(file: &[u8], origin: &str) -> Result<Contents> {
    let malformed = |origin: &str, what: String| Error::unreadable(origin, file, what);
    let cut_short = || malformed(origin, format!("is cut short: the header reaches past the end of its {} bytes", file.len()));
    let invalid = |what: fmt::Arguments<'_>| malformed(origin, format!("is not a valid safetensors file: {what}"));
    let (length, rest) = file.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut_short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length <= LARGEST_HEADER_BYTES);
    let length = length.ok_or_else(|| {
        malformed(origin, "is not a safetensors file, or its header is damaged: the header's length is impossible".into())
    })?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut_short)?;
    let header = str::from_utf8(header).map_err(|error| invalid(format_args!("invalid UTF-8 in header: {error}")))?;
    let Header { metadata, tensors: mut described } =
        serde_json::from_str(header).map_err(|error| invalid(format_args!("invalid JSON in header: {error}")))?;
    described.sort_by_key(|(_, tensor)| tensor.data_offsets);

    let mut end = 0;
    let mut entries = Vec::with_capacity(described.len());
    for (name, Described { dtype, shape, data_offsets: (from, to) }) in described {
        if from != end || to < from {
            return Err(invalid(format_args!("invalid offset for tensor `{name}`")));
        }
        let element = Element::in_header(&dtype)
            .ok_or_else(|| invalid(format_args!("tensor `{name}` is of the type {dtype}, which there is not")))?;
        // Of 64 bits on every machine: on 32, no tensor beyond 512 MB would be read. Whole bytes first, because the product may be 0.
        let (unit, units_in_a_byte) =
            if element.bits().is_multiple_of(8) { (element.bits() / 8, 1) } else { (element.bits(), 8) };
        let units = shape.iter().try_fold(unit, |units, size| units.checked_mul(*size as u64));
        let units =
            units.ok_or_else(|| invalid(format_args!("overflow computing buffer size from shape and/or element type")))?;
        if !units.is_multiple_of(units_in_a_byte) || (to - from) as u64 != units / units_in_a_byte {
            return Err(invalid(format_args!("invalid shape, data type, or offset for tensor")));
        }
        end = to;
        entries.push(Entry { name, element, shape, bytes: from..to });
    }
    if end != data.len() {
        let what = format!("its {} bytes are not what the header says: the file is cut short or has a tail", file.len());
        return Err(malformed(origin, what));
    }
    Ok(Contents { data: LENGTH_BYTES + length, metadata, entries })
}

/// A header as it stands there.
struct Header {
    metadata: BTreeMap<String, String>,
    /// By name.
    tensors: Vec<(String, Described)>,
}

/// What a header says about a tensor.
struct Described {
    dtype: String,
    shape: Vec<usize>,
    /// From the end of the header.
    data_offsets: (usize, usize),
}

// By hand, because serde's derive would bring a compiler's worth of crates into a build for firmware.
impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;

        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut metadata, mut tensors) = (BTreeMap::new(), BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                        continue;
                    }
                    let tensor = map.next_value()?;
                    if tensors.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("tensor `{name}` stands there twice")));
                    }
                    tensors.insert(name, tensor);
                }
                Ok(Header { metadata, tensors: tensors.into_iter().collect() })
            }
        }

        deserializer.deserialize_map(Tensors)
    }
}

impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Described;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tensor's dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Described, A::Error> {
                let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "dtype" => once("dtype", &mut dtype, &mut map)?,
                        "shape" => once("shape", &mut shape, &mut map)?,
                        "data_offsets" => once("data_offsets", &mut data_offsets, &mut map)?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let missing = A::Error::missing_field;
                Ok(Described {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    data_offsets: data_offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// Reads the value of a key that may stand there once.
fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    key: &'static str,
    value: &mut Option<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    match value.replace(map.next_value()?) {
        None => Ok(()),
        Some(_) => Err(A::Error::duplicate_field(key)),
    }
}
