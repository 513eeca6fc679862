//! SentencePiece's table of characters and what stands for them, checked before it is believed.
//!
//! `precompiled_charsmap` is base64 of a length, a trie of that many bytes (darts-clone's double array, 4 bytes a unit) and texts that
//! end with a zero byte. The crate that reads it follows every offset on trust.

use serde::{Deserialize, Deserializer, de};
use tokenizers::normalizers::Precompiled;

/// A table whose every path stays inside.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Charsmap(Precompiled);

impl Charsmap {
    pub(super) fn normalizer(&self) -> Precompiled {
        self.0.clone()
    }

    fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        check(bytes)?;
        Precompiled::from(bytes).map(Self).map_err(|_| "its texts are not UTF-8")
    }
}

impl<'de> Deserialize<'de> for Charsmap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = base64(&text).ok_or_else(|| de::Error::custom("precompiled_charsmap is not base64"))?;
        Self::new(&bytes).map_err(|what| de::Error::custom(format!("precompiled_charsmap is damaged: {what}")))
    }
}

/// Follows every path of the trie once.
fn check(bytes: &[u8]) -> Result<(), &'static str> {
    const OUTSIDE: &str = "a path of its trie leads outside";
    let (length, rest) = bytes.split_first_chunk().ok_or("it has no length")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, texts) = rest.split_at_checked(length).ok_or("its trie is longer than the table")?;
    let units: Vec<usize> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize).collect();
    if !length.is_multiple_of(4) {
        return Err("its trie ends inside of a unit");
    }
    let texts = std::str::from_utf8(texts).map_err(|_| "its texts are not UTF-8")?;
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let label = |unit: usize| unit & ((1 << 31) | 0xFF);
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(*units.first().ok_or("its trie is empty")?)];
    while let Some(base) = open.pop() {
        for byte in 1..=0xFF {
            // The reader looks there before it knows whether the byte leads on.
            let unit = *units.get(base ^ byte).ok_or(OUTSIDE)?;
            if label(unit) != byte || std::mem::replace(&mut seen[base ^ byte], true) {
                continue;
            }
            let next = base ^ byte ^ offset(unit);
            if (unit >> 8) & 1 == 1 {
                let text = *units.get(next).ok_or(OUTSIDE)? & ((1 << 31) - 1);
                if !texts.is_char_boundary(text) {
                    return Err("an entry of its trie is no text");
                }
            }
            open.push(next);
        }
    }
    Ok(())
}

/// The standard alphabet, padded.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let digits = match text {
        [.., b'=', b'='] => &text[..text.len() - 2],
        [.., b'='] => &text[..text.len() - 1],
        _ => text,
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let whole = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend_from_slice(&whole[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokenizers::{NormalizedString, Normalizer};

    use super::*;

    /// A double array in which `a` stands for `xyz`: the root's children lie at 256, the leaf of `a` at 512.
    fn table() -> Vec<u8> {
        let mut units = vec![0u32; 768];
        units[0] = 256 << 10;
        units[256 ^ 0x61] = (256 ^ 0x61 ^ 512) << 10 | 1 << 8 | 0x61;
        units[512] = 1 << 31 | 2;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(trie.len() as u32).to_le_bytes()[..], &trie, b"q\0xyz\0"].concat()
    }

    fn changed(at: usize, unit: u32) -> &'static str {
        let mut table = table();
        table[4 + 4 * at..8 + 4 * at].copy_from_slice(&unit.to_le_bytes());
        Charsmap::new(&table).unwrap_err()
    }

    #[test]
    fn a_sound_table_replaces() {
        let mut text = NormalizedString::from("banana");
        Charsmap::new(&table()).unwrap().normalizer().normalize(&mut text).unwrap();
        assert_eq!(text.get(), "bxyznxyznxyz");
    }

    #[test]
    fn a_table_that_leads_outside_is_refused() {
        let outside = "a path of its trie leads outside";
        assert_eq!(changed(0, 1024 << 10), outside);
        assert_eq!(changed(256 ^ 0x61, 4000 << 10 | 1 << 8 | 0x61), outside);
        assert_eq!(changed(512, 1 << 31 | 70), "an entry of its trie is no text");
        assert_eq!(Charsmap::new(&[9]).unwrap_err(), "it has no length");
        assert_eq!(Charsmap::new(&u32::MAX.to_le_bytes()).unwrap_err(), "its trie is longer than the table");
        assert_eq!(Charsmap::new(&[0; 4]).unwrap_err(), "its trie is empty");
        // The same child twice: every place is looked at once, so this ends.
        let mut circle = table();
        circle[4 + 4 * (256 ^ 0x61)..8 + 4 * (256 ^ 0x61)].copy_from_slice(&((0x61u32) << 10 | 0x61).to_le_bytes());
        Charsmap::new(&circle).unwrap();
    }

    #[test]
    fn base64_is_read_with_its_padding() {
        // RFC 4648 §10.
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(["Zg", "Zg=a", "Z===", "é000"].map(base64), [const { None }; 4]);
    }
}
