//! Reads the head of a GGUF file piece by piece, and the values of its metadata.
//!
//! Nothing is allocated by a count that stands in the file: a list is walked or measured against the bytes that are there first.

use std::fmt::Display;
use std::path::Path;

use crate::{Error, MappedBytes, Result};

/// Messages leave out longer ones, such as chat templates.
const LONGEST_SHOWN_TEXT: usize = 80;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// A list, left in the file and decoded when it is asked for; its bytes are known to be sound.
#[derive(Debug, Clone)]
pub(super) struct List {
    kind: ValueKind,
    count: usize,
    bytes: MappedBytes,
}

/// What a value's four-byte type says; in the order of the types' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

/// A place in the file; every read is checked against the file's end and moves it on.
pub(super) struct Cursor<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a MappedBytes,
    pub(super) at: usize,
}

impl Cursor<'_> {
    /// An error at the place in the file where the cursor stands.
    pub(super) fn malformed(&self, what: impl Display) -> Error {
        Error::malformed(self.path, format!("{what} (at byte {})", self.at))
    }

    /// The next `count` bytes, which are `what`.
    fn take(&mut self, count: usize, what: impl Display) -> Result<&[u8]> {
        let Some(end) = self.at.checked_add(count).filter(|&end| end <= self.file.len()) else {
            return Err(Error::malformed(
                self.path,
                format!("truncated: {what} takes {count} bytes from byte {}, and the file has {}", self.at, self.file.len()),
            ));
        };
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(*bytes.first_chunk().expect("`take` returned N bytes"))
    }

    pub(super) fn u32(&mut self, what: impl Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: impl Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string: its length in eight bytes, then UTF-8.
    pub(super) fn text(&mut self, what: impl Display + Copy) -> Result<&str> {
        let length = self.u64(format_args!("the length of {what}"))?;
        let at = self.at;
        let path = self.path;
        // A length beyond usize is beyond every file as well, and `take` says so.
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX), what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| Error::malformed(path, format!("{what} is not UTF-8 (at byte {})", at + error.valid_up_to())))
    }

    /// The value of `key`: its type in four bytes, then the value.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        let what = format_args!("the value of `{key}`");
        let kind = self.kind(format_args!("the type of `{key}`"))?;
        Ok(match kind {
            ValueKind::U8 => Value::Unsigned(u8::from_le_bytes(self.array(what)?).into()),
            ValueKind::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            ValueKind::U32 => Value::Unsigned(u32::from_le_bytes(self.array(what)?).into()),
            ValueKind::U64 => Value::Unsigned(u64::from_le_bytes(self.array(what)?)),
            ValueKind::I8 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            ValueKind::I16 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            ValueKind::I32 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            ValueKind::I64 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            ValueKind::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            ValueKind::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            ValueKind::Bool => match self.array(what)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [byte] => return Err(self.malformed(format_args!("{what} is a bool of {byte}, not 0 or 1"))),
            },
            ValueKind::Text => Value::Text(self.text(what)?.to_owned()),
            ValueKind::List => Value::List(self.list(key)?),
        })
    }

    fn kind(&mut self, what: impl Display) -> Result<ValueKind> {
        Ok(match self.u32(&what)? {
            0 => ValueKind::U8,
            1 => ValueKind::I8,
            2 => ValueKind::U16,
            3 => ValueKind::I16,
            4 => ValueKind::U32,
            5 => ValueKind::I32,
            6 => ValueKind::F32,
            7 => ValueKind::Bool,
            8 => ValueKind::Text,
            9 => ValueKind::List,
            10 => ValueKind::U64,
            11 => ValueKind::I64,
            12 => ValueKind::F64,
            other => return Err(self.malformed(format_args!("{what} is {other}, and value types go from 0 to 12"))),
        })
    }

    /// A list: the type of its items, their count in eight bytes, then the items.
    fn list(&mut self, key: &str) -> Result<List> {
        let kind = self.kind(format_args!("the item type of `{key}`"))?;
        let count = self.u64(format_args!("the count of `{key}`"))?;
        let start = self.at;
        let item_bytes = match kind {
            ValueKind::List => return Err(self.malformed(format_args!("`{key}` is a list of lists, which no model uses"))),
            ValueKind::Text => {
                for _ in 0..count {
                    self.text(format_args!("an item of `{key}`"))?;
                }
                0
            }
            ValueKind::U8 | ValueKind::I8 | ValueKind::Bool => 1,
            ValueKind::U16 | ValueKind::I16 => 2,
            ValueKind::U32 | ValueKind::I32 | ValueKind::F32 => 4,
            ValueKind::U64 | ValueKind::I64 | ValueKind::F64 => 8,
        };
        // Saturated, the product is past the end of every file, and `take` says so.
        let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(item_bytes);
        self.take(bytes, format_args!("`{key}` with its {count} items"))?;
        let bytes = self.file.slice(start..self.at).expect("`take` has checked the range");
        Ok(List { kind, count: count as usize, bytes })
    }
}

impl Value {
    /// What the value is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "a whole number",
            Self::F32(_) | Self::F64(_) => "a float",
            Self::Bool(_) => "a bool",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
        }
    }

    /// The value itself, for messages; of a long one what it is.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::F32(number) => number.to_string(),
            Self::F64(number) => number.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) if text.len() <= LONGEST_SHOWN_TEXT => format!("`{}`", text.escape_debug()),
            Self::Text(text) => format!("a string of {} bytes", text.len()),
            Self::List(list) => format!("a list of {}", list.count),
        }
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.count, &*self.bytes) == (other.kind, other.count, &*other.bytes)
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items, if they are strings.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        if self.kind != ValueKind::Text {
            return None;
        }
        let mut rest: &[u8] = &self.bytes;
        let mut texts = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let (length, after) = rest.split_first_chunk().expect("`Cursor::list` has walked the strings");
            let (text, after) = after.split_at(u64::from_le_bytes(*length) as usize);
            texts.push(str::from_utf8(text).expect("`Cursor::text` has checked the bytes").to_owned());
            rest = after;
        }
        Some(texts)
    }

    /// The items, if they are f32.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        (self.kind == ValueKind::F32).then(|| self.bytes.as_chunks().0.iter().map(|&item| f32::from_le_bytes(item)).collect())
    }

    /// The items, if they are i32 or u32 within its range; token types are written as either.
    pub(super) fn integers(&self) -> Option<Vec<i32>> {
        let items = self.bytes.as_chunks().0.iter();
        match self.kind {
            ValueKind::I32 => Some(items.map(|&item| i32::from_le_bytes(item)).collect()),
            ValueKind::U32 => items.map(|&item| i32::try_from(u32::from_le_bytes(item)).ok()).collect(),
            _ => None,
        }
    }
}
