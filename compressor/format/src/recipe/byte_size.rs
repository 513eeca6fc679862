//! Sizes as people write them: `80_000_000`, `"80 MB"`, `"1.5 GiB"`.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// A number of bytes: a whole number, or a text with a unit (kB, MB, GB of 1000; KiB, MiB, GiB of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The name by which a reader of recipes knows the type.
    pub(super) const NAME: &'static str = "ByteSize";
    /// What it must be, as a message says it.
    pub(super) const MUST_BE: &'static str = "a whole number of bytes, or a text such as \"80 MB\" or \"1.5 GiB\"";
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sized: bytesize::ByteSize = text.parse().map_err(|_| format!("\"{text}\" is not {}", Self::MUST_BE))?;
        Ok(Self(sized.as_u64()))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;

        impl<'de> Visitor<'de> for Size {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ByteSize::MUST_BE)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            /// As it was written by [`Serialize`].
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<ByteSize, D::Error> {
                u64::deserialize(deserializer).map(ByteSize)
            }
        }

        deserializer.deserialize_newtype_struct(Self::NAME, Size)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn units_by_hand() {
        let bytes = ["80 MB", "80MB", "1.5 GiB", "12 kB", "3 KiB", "7", "7 B"].map(|text| text.parse::<ByteSize>().unwrap().0);
        assert_eq!(bytes, [80_000_000, 80_000_000, 3 << 29, 12_000, 3072, 7, 7]);
        for text in ["", "MB", "-1 MB", "80 XB", "8o MB"] {
            let message = text.parse::<ByteSize>().unwrap_err();
            assert_eq!(message, format!("\"{text}\" is not a whole number of bytes, or a text such as \"80 MB\" or \"1.5 GiB\""));
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(serde_json::from_str::<ByteSize>(&serde_json::to_string(&ByteSize(80)).unwrap()).unwrap(), ByteSize(80));
    }
}
