//! Files with one JSON object in a line: `text`, or `prompt` with `completion`.

use std::path::Path;

use serde::Deserialize;

use super::{FileSet, Pair, Split};
use crate::{Error, Result};

/// A dataset of JSON lines.
#[derive(Debug, Clone)]
pub struct JsonlSet {
    /// Its files.
    pub files: FileSet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
}

impl JsonlSet {
    pub(super) fn split(&self, split: Split) -> Result<Vec<Pair>> {
        pairs(self.files.path(split)?, &self.files.read(split)?)
    }
}

/// One pair from each line; a `text` becomes a completion without a prompt, so all of it is learnt. Empty lines are skipped.
fn pairs(path: &Path, text: &str) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let at = || format!("{}:{}", path.display(), index + 1);
        let line: Line = serde_json::from_str(line).map_err(|error| {
            // The reader sees one line only, so its own "line 1" would mislead.
            let message = error.to_string();
            let message = message.split(" at line 1 column").next().unwrap_or(&message).to_owned();
            Error::malformed(at(), format!("column {}: {message}", error.column()))
        })?;
        let pair = match line {
            Line { text: Some(text), prompt: None, completion: None } => Pair { prompt: String::new(), completion: text },
            Line { text: None, prompt: Some(prompt), completion: Some(completion) } => {
                if prompt.is_empty() {
                    return Err(Error::malformed(at(), "`prompt` is empty; a line without a prompt uses `text`"));
                }
                Pair { prompt, completion }
            }
            _ => return Err(Error::malformed(at(), "a line holds either `text`, or `prompt` and `completion`")),
        };
        if pair.completion.is_empty() {
            return Err(Error::malformed(at(), "there is nothing to learn: `text` or `completion` is empty"));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        pairs(Path::new("train.jsonl"), text).unwrap_err().to_string()
    }

    #[test]
    fn both_kinds_of_lines_are_read() {
        let text = "{\"text\": \"once\"}\r\n\n{\"completion\": \"off\", \"prompt\": \"turn it \\u00f6ff\"}\n";
        let expected = [
            Pair { prompt: String::new(), completion: "once".into() },
            Pair { prompt: "turn it öff".into(), completion: "off".into() },
        ];
        assert_eq!(pairs(Path::new("train.jsonl"), text).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_no_example_is_named() {
        let either = "a line holds either `text`, or `prompt` and `completion`";
        assert_eq!(refused("{\"text\": \"a\"}\n{}"), format!("train.jsonl:2: {either}"));
        assert_eq!(refused("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}"), format!("train.jsonl:1: {either}"));
        assert_eq!(refused("\n\n{\"prompt\": \"b\"}"), format!("train.jsonl:3: {either}"));
        assert_eq!(
            refused("{\"txt\": \"a\"}"),
            "train.jsonl:1: column 6: unknown field `txt`, expected one of `text`, `prompt`, `completion`"
        );
        assert_eq!(refused("{\"text\": 3}"), "train.jsonl:1: column 10: invalid type: integer `3`, expected a string");
        assert_eq!(
            refused("{\"prompt\": \"\", \"completion\": \"c\"}"),
            "train.jsonl:1: `prompt` is empty; a line without a prompt uses `text`"
        );
        assert_eq!(refused("{\"text\": \"\"}"), "train.jsonl:1: there is nothing to learn: `text` or `completion` is empty");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_with_its_line(text in ".{0,60}(\n.{0,60}){0,3}") {
            if let Err(error) = pairs(Path::new("x.jsonl"), &text) {
                prop_assert!(error.to_string().starts_with("x.jsonl:"));
            }
        }

        #[test]
        fn what_serde_json_writes_is_read_back(prompt in ".{1,40}", completion in ".{1,40}") {
            let line = serde_json::json!({ "prompt": prompt, "completion": completion }).to_string();
            prop_assert_eq!(pairs(Path::new("x.jsonl"), &line).unwrap(), vec![Pair { prompt, completion }]);
        }
    }
}
