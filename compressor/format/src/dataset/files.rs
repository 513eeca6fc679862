//! The files of a dataset: where they lie, and whether they are what the description says.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::Split;
use super::mistake::Source;
use crate::{Error, Result};

/// One file for each split that the description names.
#[derive(Debug, Clone)]
pub struct FileSet {
    description: PathBuf,
    kind: &'static str,
    train: Option<File>,
    valid: Option<File>,
    test: Option<File>,
}

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    sha256: Option<String>,
}

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
                let what = format!(
                    "the environment variable {0} is not set; set it to the folder that holds {1}",
                    variable.get_ref(),
                    files.join(", ")
                );
                Error::unsupported(source.path, what)
            })?,
            (None, None) => beside.to_owned(),
        };
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

    /// Reads a split's file whole: UTF-8, not empty, with the SHA-256 that the description gives.
    pub(super) fn read(&self, split: Split) -> Result<String> {
        let File { path, sha256 } = self.file(split)?;
        let bytes = fs::read(path)?;
        Error::refuse_pointer(path, &bytes)?;
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
        if bytes.is_empty() {
            return Err(Error::malformed(path, "the file is empty (0 bytes); a dataset needs text"));
        }
        let text = utf8(path, bytes)?;
        if text.trim().is_empty() {
            return Err(Error::malformed(path, format!("all {} bytes are white space; a dataset needs text", text.len())));
        }
        Ok(text)
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
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        };
        file.as_ref().ok_or_else(|| {
            Error::unsupported(&self.description, format!("[{}] names no file for the {} split", self.kind, split.name()))
        })
    }
}

/// `bytes` as text, or where they stop being text.
pub(super) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    Error::refuse_pointer(path, &bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::malformed(path, format!("byte {at} (0x{:02x}) is not UTF-8; convert the file to UTF-8", error.as_bytes()[at]))
    })
}

fn checked_sum(sum: Spanned<String>, source: &Source) -> Result<String> {
    let digits = sum.get_ref();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(digits.clone());
    }
    Err(source.mistake(sum.span(), format!("`{digits}` is no sha256; it takes 64 digits from 0123456789abcdef")))
}
