//! The files of a dataset: where they lie, and whether they are what the description says.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::Split;
use super::mistake::Source;
use crate::{Error, Result, decode_text};

/// One file for each split that the description names.
#[derive(Debug, Clone)]
pub struct FileSet {
    description: PathBuf,
    kind: &'static str,
    train: Option<File>,
    valid: Option<File>,
    test: Option<File>,
    /// What of the train file is the valid split, and what the test split; `None` where they have files of their own, or are not there.
    fractions: Fractions,
}

#[derive(Debug, Clone, Copy)]
struct Fractions {
    valid: Option<f64>,
    test: Option<f64>,
}

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    sha256: Option<String>,
}

/// Where the files of this repository's own descriptions come from, by their variable. Not in the descriptions: those are counted in
/// fingerprints, and a changed one would have finished steps done again.
const ORIGINS: [(&str, &str); 1] = [(
    "COMPRESSOR_DATA_WIKITEXT2",
    ": train.txt is word_language_model/data/wikitext-2/train.txt of github.com/pytorch/examples, valid.txt and test.txt are \
     wiki.valid.raw and wiki.test.raw of WikiText-2 raw; nothing is downloaded, and recipes/README.md says more",
)];

/// `[text]` or `[jsonl]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    /// Where the files lie, relative to the description; its own folder when absent.
    folder: Option<Spanned<String>>,
    /// The environment variable that names the folder instead.
    folder_variable: Option<Spanned<String>>,
    train: Option<String>,
    valid: Option<String>,
    test: Option<String>,
    /// What of the train file is the valid split instead of a file of its own.
    valid_fraction: Option<Spanned<f64>>,
    /// What of the train file, at its end, is the test split.
    test_fraction: Option<Spanned<f64>>,
    #[serde(default)]
    sha256: Sums,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Sums {
    train: Option<Spanned<String>>,
    valid: Option<Spanned<String>>,
    test: Option<Spanned<String>>,
}

impl FileSet {
    pub(super) fn new(
        kind: &'static str,
        listing: Listing,
        source: &Source,
        folder_of: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self> {
        let beside = source.path.parent().unwrap_or(Path::new(""));
        let folder = match (&listing.folder, &listing.folder_variable) {
            (Some(_), Some(variable)) => {
                return Err(source.mistake(variable.span(), "`folder` and `folder_variable` both name the folder; keep one"));
            }
            (Some(folder), None) => beside.join(folder.get_ref()),
            (None, Some(variable)) => folder_of(variable.get_ref()).ok_or_else(|| {
                let files: Vec<&str> =
                    [&listing.train, &listing.valid, &listing.test].into_iter().flatten().map(String::as_str).collect();
                let variable = variable.get_ref();
                let from = ORIGINS.iter().find(|(known, _)| known == variable).map_or("", |(_, from)| from);
                let files = files.join(", ");
                let what =
                    format!("the environment variable {variable} is not set; set it to the folder that holds {files}{from}");
                Error::unsupported(source.path, what)
            })?,
            (None, None) => beside.to_owned(),
        };
        let fractions = fractions(&listing, source)?;
        let file = |name: Option<String>, sum: Option<Spanned<String>>| match (name, sum) {
            (None, Some(sum)) => Err(source.mistake(sum.span(), "there is a sha256 for a split that names no file")),
            (None, None) => Ok(None),
            (Some(name), sum) => {
                let sha256 = sum.map(|sum| checked_sum(sum, source)).transpose()?;
                Ok(Some(File { path: folder.join(name), sha256 }))
            }
        };
        let set = Self {
            description: source.path.to_owned(),
            kind,
            train: file(listing.train, listing.sha256.train)?,
            valid: file(listing.valid, listing.sha256.valid)?,
            test: file(listing.test, listing.sha256.test)?,
            fractions,
        };
        if set.files().next().is_none() {
            return Err(Error::malformed(source.path, format!("[{kind}] names no file; give it train, valid or test")));
        }
        Ok(set)
    }

    /// The file of a split.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the description names none.
    pub fn path(&self, split: Split) -> Result<&Path> {
        Ok(&self.file(split)?.path)
    }

    /// Reads the file of a split whole: UTF-8, not empty, with the SHA-256 that the description gives.
    pub(super) fn read(&self, split: Split) -> Result<String> {
        let File { path, sha256 } = self.file(split)?;
        let bytes = crate::read_file(path, u64::MAX)?;
        if let Some(expected) = sha256 {
            let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            if found != *expected {
                let what = format!(
                    "sha256 is {found}, {} asks for {expected}; this is another edition of the file, or a damaged one",
                    self.description.display()
                );
                return Err(Error::malformed(path, what));
            }
        }
        text_in(path, bytes)
    }

    /// From where to where a split goes in its file, as fractions of the file; `None` where it is all of it.
    ///
    /// The test split is the end of the train file, the valid split what stands before it.
    pub(super) fn part(&self, split: Split) -> Option<[f64; 2]> {
        let Fractions { valid, test } = self.fractions;
        let test_begins = 1.0 - test.unwrap_or(0.0);
        let valid_begins = test_begins - valid.unwrap_or(0.0);
        match split {
            Split::Train => valid.or(test).map(|_| [0.0, valid_begins]),
            Split::Valid => valid.map(|_| [valid_begins, test_begins]),
            Split::Test => test.map(|_| [test_begins, 1.0]),
        }
    }

    /// The refusal of a part of a file in which `there_is` too little to divide.
    pub(super) fn empty_part(&self, split: Split, there_is: &str) -> Error {
        let Fractions { valid, test } = self.fractions;
        let fractions: Vec<String> = [("valid_fraction", valid), ("test_fraction", test)]
            .into_iter()
            .filter_map(|(name, fraction)| Some(format!("{name} {}", fraction?)))
            .collect();
        let what = format!(
            "{} of {there_is} leaves nothing for the {} split; choose other fractions, or give more text",
            fractions.join(" and "),
            split.name()
        );
        match self.path(split) {
            Ok(path) => Error::malformed(path, what),
            Err(error) => error,
        }
    }

    pub(super) fn inputs(&self) -> Vec<PathBuf> {
        let mut inputs = vec![self.description.clone()];
        inputs.extend(self.files().map(|file| file.path.clone()));
        inputs
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        [&self.train, &self.valid, &self.test].into_iter().flatten()
    }

    fn file(&self, split: Split) -> Result<&File> {
        let file = match split {
            Split::Valid if self.fractions.valid.is_none() => &self.valid,
            Split::Test if self.fractions.test.is_none() => &self.test,
            Split::Train | Split::Valid | Split::Test => &self.train,
        };
        file.as_ref().ok_or_else(|| {
            Error::unsupported(&self.description, format!("[{}] names no file for the {} split", self.kind, split.name()))
        })
    }
}

/// The text in a file's bytes, which must hold some.
pub(super) fn text_in(path: &Path, bytes: Vec<u8>) -> Result<String> {
    if bytes.is_empty() {
        return Err(Error::malformed(path, "the file is empty (0 bytes); a dataset needs text"));
    }
    let text = decode_text(path, bytes)?;
    match text.trim().is_empty() {
        true => Err(Error::malformed(path, format!("all {} bytes are white space; a dataset needs text", text.len()))),
        false => Ok(text),
    }
}

/// The fractions of the train file that are other splits.
fn fractions(listing: &Listing, source: &Source) -> Result<Fractions> {
    let checked = |name: &str, fraction: &Option<Spanned<f64>>, file: &Option<String>| {
        let Some(fraction) = fraction else { return Ok(None) };
        let refused = |what: String| Err(source.mistake(fraction.span(), what));
        let value = *fraction.get_ref();
        if file.is_some() {
            return refused(format!("`{name}` and `{name}_fraction` both say what the {name} split is; keep one"));
        }
        if listing.train.is_none() {
            return refused(format!("{name}_fraction is a part of the train file, and `train` names none"));
        }
        if !(value > 0.0 && value < 1.0) {
            return refused(format!("{name}_fraction is {value}; it must lie between 0 and 1"));
        }
        Ok(Some(value))
    };
    let fractions = Fractions {
        valid: checked("valid", &listing.valid_fraction, &listing.valid)?,
        test: checked("test", &listing.test_fraction, &listing.test)?,
    };
    if let (Fractions { valid: Some(valid), test: Some(test) }, Some(at)) = (fractions, &listing.test_fraction)
        && valid + test >= 1.0
    {
        let what = format!("valid_fraction {valid} and test_fraction {test} leave nothing to train on");
        return Err(source.mistake(at.span(), what));
    }
    Ok(fractions)
}

fn checked_sum(sum: Spanned<String>, source: &Source) -> Result<String> {
    let digits = sum.get_ref();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(digits.clone());
    }
    Err(source.mistake(sum.span(), format!("`{digits}` is no sha256; it takes 64 digits from 0123456789abcdef")))
}
