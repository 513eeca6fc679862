//! What a text file is written in: UTF-8, with a byte order mark before it or without.
//!
//! Windows editors and PowerShell write the mark U+FEFF in front of a text. It says how the file is written and is no part of what
//! the file holds. Anywhere else it is a character like any other.

use crate::{Error, Origin, Result};

/// U+FEFF in UTF-8.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// The bytes of a text file without UTF-8's byte order mark.
///
/// # Errors
/// [`Error::Unsupported`] where the mark is that of UTF-16 or UTF-32.
pub(crate) fn unmarked<'a, O: Origin + ?Sized>(origin: &O, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let encoding = match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        _ => return Ok(bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes)),
    };
    Err(in_another(origin, encoding, "its byte order mark says so"))
}

fn in_another<O: Origin + ?Sized>(origin: &O, encoding: &str, why: &str) -> Error {
    use alloc::format;
    let what =
        format!("the file is in {encoding} ({why}), and UTF-8 is read; convert it with `iconv -f {encoding} -t UTF-8 OLD > NEW`");
    Error::unsupported(origin, what)
}

#[cfg(feature = "std")]
pub use of_files::decode_text;

#[cfg(feature = "std")]
mod of_files {
    use super::{in_another, unmarked};
    use crate::{Error, Origin, Result};

    /// The text in the bytes of a file that errors call `origin`, UTF-8 without a byte order mark that stands before it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for UTF-16 and UTF-32, [`Error::Malformed`] with the line and the byte where the text ends.
    pub fn decode_text<O: Origin + ?Sized>(origin: &O, mut bytes: Vec<u8>) -> Result<String> {
        let marked = bytes.len() - unmarked(origin, &bytes)?.len();
        if let Some(encoding) = unmarked_utf16(&bytes) {
            return Err(in_another(origin, encoding, "every second byte is zero"));
        }
        bytes.drain(..marked);
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            let what = match error.utf8_error().error_len() {
                Some(_) => "is not UTF-8; convert the file to UTF-8",
                None => "begins a character of UTF-8 that the file breaks off; it is cut short, or not UTF-8",
            };
            // Counted from the file's beginning, as a hex viewer does.
            Error::malformed(format!("{}:{line}", origin.shown()), format!("byte {} (0x{:02x}) {what}", at + marked, bytes[at]))
        })
    }

    /// UTF-16 whose mark is missing is UTF-8 too, of mostly zero bytes, where its characters are ASCII.
    fn unmarked_utf16(bytes: &[u8]) -> Option<&'static str> {
        const LOOKED_AT: usize = 4096;
        let bytes = &bytes[..bytes.len().min(LOOKED_AT)];
        let zeros = |first: usize| bytes.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
        let (even, odd) = (zeros(0), zeros(1));
        // Nine of ten characters of such a text, and no zero beside them.
        match bytes.len() / 2 {
            pairs if pairs >= 2 && even == 0 && 10 * odd >= 9 * pairs => Some("UTF-16LE"),
            pairs if pairs >= 2 && odd == 0 && 10 * even >= 9 * pairs => Some("UTF-16BE"),
            _ => None,
        }
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]

        use super::*;

        fn read(bytes: &[u8]) -> Result<String, String> {
            decode_text("a.txt", bytes.to_vec()).map_err(|error| error.to_string())
        }

        /// `text` in UTF-16, low byte first.
        fn utf16(text: &str) -> Vec<u8> {
            text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        }

        #[test]
        fn one_mark_before_the_text_is_no_part_of_it() {
            assert_eq!(read(b"\xef\xbb\xbfonce").unwrap(), "once");
            assert_eq!(read(b"\xef\xbb\xbf").unwrap(), "");
            assert_eq!(read("\u{feff}\u{feff}once".as_bytes()).unwrap(), "\u{feff}once");
            assert_eq!(read("on\u{feff}ce".as_bytes()).unwrap(), "on\u{feff}ce");
            assert_eq!(crate::encoding::UTF8_MARK, "\u{feff}".as_bytes());
        }

        #[test]
        fn other_encodings_are_refused_by_name() {
            let marked = |encoding| {
                format!(
                    "a.txt: the file is in {encoding} (its byte order mark says so), and UTF-8 is read; convert it with `iconv -f \
                     {encoding} -t UTF-8 OLD > NEW`"
                )
            };
            assert_eq!(read(&utf16("\u{feff}once")).unwrap_err(), marked("UTF-16"));
            let big_endian: Vec<u8> = "\u{feff}once".encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert_eq!(read(&big_endian).unwrap_err(), marked("UTF-16"));
            let utf32: Vec<u8> = "\u{feff}once".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
            assert_eq!(read(&utf32).unwrap_err(), marked("UTF-32"));
            let unmarked = read(&utf16("once upon a time – there")).unwrap_err();
            assert!(unmarked.starts_with("a.txt: the file is in UTF-16LE (every second byte is zero)"), "{unmarked}");
        }

        #[test]
        fn a_zero_byte_is_a_character_like_any_other() {
            assert_eq!(read(b"a\0b\n\0").unwrap(), "a\0b\n\0");
        }

        #[test]
        fn a_byte_that_is_no_text_is_named_with_its_line() {
            let at = |bytes: &[u8]| read(bytes).unwrap_err();
            assert_eq!(at(b"a\ncaf\xe9 au lait"), "a.txt:2: byte 5 (0xe9) is not UTF-8; convert the file to UTF-8");
            assert_eq!(at(b"\xef\xbb\xbf\xe9 "), "a.txt:1: byte 3 (0xe9) is not UTF-8; convert the file to UTF-8");
            assert_eq!(
                at(b"caf\xc3"),
                "a.txt:1: byte 3 (0xc3) begins a character of UTF-8 that the file breaks off; it is cut short, or not UTF-8"
            );
        }
    }
}
