//! Paths as text: a recipe is kept in reports and counted in fingerprints as JSON, which holds no other text than UTF-8.
//!
//! A path that is not UTF-8 was given on the command line. It is shown with replacement characters and never read back.

use std::path::{Path, PathBuf};

use serde::Serializer;

pub(super) fn one<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

pub(super) fn optional<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.display().to_string()),
        None => serializer.serialize_none(),
    }
}
