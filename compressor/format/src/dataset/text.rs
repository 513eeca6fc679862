//! Plain text files, one running text for each split.

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
        self.files.read(split)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use fs_err as fs;

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
            "test.txt: byte 3 (0xe9) is not UTF-8; convert the file to UTF-8"
        );
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
