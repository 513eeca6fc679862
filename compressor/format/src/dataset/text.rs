//! Plain text files, one running text for each split.
//!
//! Lines that end with CR LF, as Windows writes them, end with LF here: the same text gives the same figures wherever it was written.

use std::path::Path;

use super::files::text_in;
use super::{FileSet, Split};
use crate::Result;

/// A dataset of plain text.
#[derive(Debug, Clone)]
pub struct TextSet {
    /// Its files.
    pub files: FileSet,
}

impl TextSet {
    pub(super) fn split(&self, split: Split) -> Result<String> {
        let mut text = with_unix_lines(self.files.read(split)?);
        let Some(part) = self.files.part(split) else { return Ok(text) };
        let [from, to] = part.map(|fraction| line_after(&text, fraction));
        if from >= to || text[from..to].trim().is_empty() {
            return Err(self.files.empty_part(split, &format!("{} bytes", text.len())));
        }
        text.truncate(to);
        text.drain(..from);
        Ok(text)
    }
}

/// All of one plain text file.
pub(super) fn read(path: &Path) -> Result<String> {
    text_in(path, crate::read_file(path, u64::MAX)?).map(with_unix_lines)
}

fn with_unix_lines(text: String) -> String {
    if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }
}

/// How far a text is searched for the end of a line before it is cut between two words, in bytes.
const LONGEST_LINE: usize = 1 << 16;

/// Where to cut a text so that what stands before is about `fraction` of it: at the first line that begins there or later. In the
/// middle of a very long line it is cut after a word, or where there is not even that, after a character.
fn line_after(text: &str, fraction: f64) -> usize {
    let at = text.ceil_char_boundary((fraction * text.len() as f64) as usize);
    if at == 0 || at == text.len() {
        return at;
    }
    // Half of what is left, so that a last line of some length does not take it all.
    let end = text.floor_char_boundary(at + LONGEST_LINE.min((text.len() - at) / 2));
    let before = text.floor_char_boundary(at - 1);
    let after = |is_cut: fn(char) -> bool| {
        let (index, found) = text[before..end.max(at)].char_indices().find(|(_, character)| is_cut(*character))?;
        Some(before + index + found.len_utf8())
    };
    after(|character| character == '\n').or_else(|| after(char::is_whitespace)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use fs_err as fs;
    use proptest::prelude::*;

    use super::line_after;
    use crate::dataset::{Dataset, Examples, Split};

    /// Writes a description and its test file, and returns what loading or reading says, without the folder's name.
    fn outcome(toml: &str, test_file: &[u8]) -> Result<Examples, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("set.toml"), toml).unwrap();
        fs::write(folder.path().join("test.txt"), test_file).unwrap();
        Dataset::load_with(&folder.path().join("set.toml"), |name| (name == "SET").then(|| folder.path().to_owned()))
            .and_then(|set| set.split(Split::Test, 0))
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn a_text_with_the_right_sum_is_read_whole() {
        // SHA-256 of "abc": FIPS 180-2, appendix B.1.
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let toml = format!("[text]\ntest = \"test.txt\"\nsha256.test = \"{sum}\"\n");
        assert_eq!(outcome(&toml, b"abc"), Ok(Examples::Text("abc".into())));
        assert_eq!(
            outcome(&toml, b"").unwrap_err(),
            "test.txt: sha256 is e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, set.toml asks for \
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad; this is another edition of the file, or a \
             damaged one"
        );
    }

    #[test]
    fn a_folder_variable_names_the_folder() {
        let toml = "[text]\nfolder_variable = \"SET\"\ntest = \"test.txt\"\n";
        assert_eq!(outcome(toml, b"abc"), Ok(Examples::Text("abc".into())));
        let toml = "[text]\nfolder_variable = \"OTHER\"\nvalid = \"valid.txt\"\ntest = \"test.txt\"\n";
        assert_eq!(
            outcome(toml, b"abc").unwrap_err(),
            "set.toml: the environment variable OTHER is not set; set it to the folder that holds valid.txt, test.txt"
        );
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        let toml = "[text]\ntest = \"test.txt\"\n";
        assert_eq!(outcome(toml, b"").unwrap_err(), "test.txt: the file is empty (0 bytes); a dataset needs text");
        assert_eq!(outcome(toml, b" \n").unwrap_err(), "test.txt: all 2 bytes are white space; a dataset needs text");
        assert_eq!(
            outcome(toml, b"caf\xe9 au lait").unwrap_err(),
            "test.txt:1: byte 3 (0xe9) is not UTF-8; convert the file to UTF-8"
        );
        let utf16 = outcome(toml, b"\xff\xfeo\0n\0").unwrap_err();
        assert!(utf16.starts_with("test.txt: the file is in UTF-16 ") && utf16.contains("iconv"), "{utf16}");
    }

    #[test]
    fn a_text_as_windows_writes_it_is_the_same_text() {
        let read = |text: &[u8]| outcome("[text]\ntest = \"test.txt\"\n", text);
        assert_eq!(read(b"\xef\xbb\xbfone\r\ntwo\r\n"), read(b"one\ntwo\n"));
        // A mark or a return elsewhere is a character.
        assert_eq!(read(b"one\xef\xbb\xbf\rtwo"), Ok(Examples::Text("one\u{feff}\rtwo".into())));
        assert_eq!(outcome("\u{feff}[text]\r\ntest = \"test.txt\"\r\n", b"abc"), Ok(Examples::Text("abc".into())));
        assert_eq!(read(b"\xef\xbb\xbf").unwrap_err(), "test.txt: all 0 bytes are white space; a dataset needs text");
    }

    /// The three splits of a text file of which parts are valid and test text.
    fn split_up(keys: &str, text: &str) -> Result<[String; 3], String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("set.toml"), format!("[text]\ntrain = \"all.txt\"\n{keys}")).unwrap();
        fs::write(folder.path().join("all.txt"), text).unwrap();
        let read = || {
            let set = Dataset::load(&folder.path().join("set.toml"))?;
            let split = |split| -> crate::Result<String> {
                match set.has(split).then(|| set.split(split, 0)).transpose()? {
                    Some(Examples::Text(text)) => Ok(text),
                    Some(Examples::Pairs(_)) => unreachable!("a text set"),
                    None => Ok(String::new()),
                }
            };
            Ok([split(Split::Train)?, split(Split::Valid)?, split(Split::Test)?])
        };
        read().map_err(|error: crate::Error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn a_text_is_split_where_a_line_begins() {
        let lines = |lines: std::ops::Range<usize>| lines.map(|line| format!("line {line}\n")).collect::<String>();
        let text = lines(0..10); // 70 bytes
        let split = |keys| split_up(keys, &text).unwrap();
        assert_eq!(split("valid_fraction = 0.2\n"), [lines(0..8), lines(8..10), String::new()]);
        assert_eq!(split("valid_fraction = 0.15\n"), [lines(0..9), lines(9..10), String::new()]);
        assert_eq!(split("valid_fraction = 0.2\ntest_fraction = 0.3\n"), [lines(0..5), lines(5..7), lines(7..10)]);
        assert_eq!(split("test_fraction = 0.5\n"), [lines(0..5), String::new(), lines(5..10)]);
    }

    #[test]
    fn one_long_line_is_split_after_a_word_or_a_character() {
        let words = "word ".repeat(20);
        assert_eq!(split_up("valid_fraction = 0.49\n", &words).unwrap(), ["word ".repeat(11), "word ".repeat(9), String::new()]);
        let letters = "ä".repeat(10);
        assert_eq!(split_up("valid_fraction = 0.25\n", &letters).unwrap(), ["ä".repeat(8), "ä".repeat(2), String::new()]);
    }

    #[test]
    fn fractions_that_can_not_be_are_named() {
        let refused = |keys| split_up(keys, "a\nb\n").unwrap_err();
        assert_eq!(refused("valid_fraction = 1.5\n"), "set.toml:3: valid_fraction is 1.5; it must lie between 0 and 1");
        assert_eq!(refused("test_fraction = nan\n"), "set.toml:3: test_fraction is NaN; it must lie between 0 and 1");
        assert_eq!(
            refused("valid = \"a\"\nvalid_fraction = 0.5\n"),
            "set.toml:4: `valid` and `valid_fraction` both say what the valid split is; keep one"
        );
        assert_eq!(
            refused("valid_fraction = 0.5\ntest_fraction = 0.5\n"),
            "set.toml:4: valid_fraction 0.5 and test_fraction 0.5 leave nothing to train on"
        );
        assert_eq!(
            refused("valid_fraction = 0.001\n"),
            "all.txt: valid_fraction 0.001 of 4 bytes leaves nothing for the valid split; choose other fractions, or give more text"
        );
        assert_eq!(
            outcome("[text]\ntest = \"test.txt\"\nvalid_fraction = 0.5\n", b"abc").unwrap_err(),
            "set.toml:3: valid_fraction is a part of the train file, and `train` names none"
        );
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_leave_nothing_out(text in "[aä \n]{1,60}", valid in 0.01..0.6, test in 0.01..0.39) {
            if let Ok(parts) = split_up(&format!("valid_fraction = {valid}\ntest_fraction = {test}\n"), &text) {
                prop_assert_eq!(parts.concat(), text);
            }
        }

        #[test]
        fn later_cuts_are_never_before_earlier_ones(text in "[aä \n]{0,60}", one in 0.0..1.0, other in 0.0..1.0) {
            let (one, other): (f64, f64) = (one, other);
            prop_assert!(line_after(&text, one.min(other)) <= line_after(&text, one.max(other)));
        }
    }

    #[test]
    fn mistakes_in_the_listing_are_named() {
        let refused = |toml| outcome(toml, b"abc").unwrap_err();
        assert_eq!(refused("[text]\n"), "set.toml: [text] names no file; give it train, valid or test");
        assert_eq!(refused("[text]\nvalid = \"test.txt\"\n"), "set.toml: [text] names no file for the test split");
        assert_eq!(
            refused("[text]\ntest = \"test.txt\"\nsha256.test = \"12AB\"\n"),
            "set.toml:3: `12AB` is no sha256; it takes 64 digits from 0123456789abcdef"
        );
        assert_eq!(
            refused("[text]\ntest = \"test.txt\"\nsha256.train = \"\"\n"),
            "set.toml:3: there is a sha256 for a split that names no file"
        );
        assert_eq!(
            refused("[text]\nfolder = \".\"\nfolder_variable = \"SET\"\ntest = \"test.txt\"\n"),
            "set.toml:3: `folder` and `folder_variable` both name the folder; keep one"
        );
        let missing = refused("[text]\nfolder = \"elsewhere\"\ntest = \"test.txt\"\n");
        assert!(missing.contains("elsewhere/test.txt"), "{missing}");
    }

    #[test]
    fn wikitext_is_described_by_name_and_sum() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/wikitext-2.toml");
        let unset = Dataset::load_with(&path, |_| None).unwrap_err().to_string();
        assert!(
            unset.ends_with(
                "wikitext-2.toml: the environment variable COMPRESSOR_DATA_WIKITEXT2 is not set; set it to the folder that \
                 holds train.txt, valid.txt, test.txt: train.txt is word_language_model/data/wikitext-2/train.txt of \
                 github.com/pytorch/examples, valid.txt and test.txt are wiki.valid.raw and wiki.test.raw of WikiText-2 raw; nothing \
                 is downloaded, and recipes/README.md says more"
            ),
            "{unset}"
        );
        let set = Dataset::load_with(&path, |_| Some("/data".into())).unwrap();
        assert_eq!(set.inputs()[1..], ["/data/train.txt", "/data/valid.txt", "/data/test.txt"].map(std::path::PathBuf::from));
        assert!(!set.scored().unwrap());
    }
}
