//! Says where in a description a mistake is, and what was probably meant.

use std::ops::Range;
use std::path::Path;

use crate::Error;

/// A description's text with the path it came from.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// `what` at the line where `span` begins, counted from 1.
    pub(super) fn mistake(&self, span: Range<usize>, what: impl Into<String>) -> Error {
        let line = 1 + self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
        Error::malformed(format!("{}:{line}", self.path.display()), what)
    }

    /// The TOML reader's complaint in our words.
    pub(super) fn explain(&self, error: &toml::de::Error) -> Error {
        let message = error.message();
        // Serde knows the key and its neighbours, and says them only inside of a sentence: "unknown field `a`, expected `b`".
        let what = match message.strip_prefix("unknown field ") {
            Some(rest) => {
                let mut names = rest.split('`').skip(1).step_by(2);
                let key = names.next().unwrap_or_default();
                match nearest(key, names) {
                    Some(name) => format!("unknown key `{key}`; the nearest is `{name}`"),
                    None => format!("unknown key `{key}`"),
                }
            }
            None => message.trim().replace('\n', ", "),
        };
        match error.span() {
            Some(span) => self.mistake(span, what),
            None => Error::malformed(self.path, what),
        }
    }
}

/// Finding the nearest name takes time and memory in proportion to the product of both lengths; a longer name is no slip of a key.
const LONGEST_NAME_BYTES: usize = 256;

/// The name that takes the fewest edits to reach, the first of several; `None` for names beyond [`LONGEST_NAME_BYTES`].
pub(super) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > LONGEST_NAME_BYTES {
        return None;
    }
    names.filter(|known| known.len() <= LONGEST_NAME_BYTES).min_by_key(|known| strsim::damerau_levenshtein(name, known))
}
