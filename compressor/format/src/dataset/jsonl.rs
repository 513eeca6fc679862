//! Files with one JSON object in a line: `text`, or `prompt` with `completion`.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::mistake::nearest;
use super::{FileSet, Pair, Split};
use crate::{Error, Result};

/// A dataset of JSON lines.
#[derive(Debug, Clone)]
pub struct JsonlSet {
    /// Its files.
    pub files: FileSet,
}

impl JsonlSet {
    pub(super) fn split(&self, split: Split) -> Result<Vec<Pair>> {
        let mut pairs = pairs(self.files.path(split)?, &self.files.read(split)?)?;
        let Some(part) = self.files.part(split) else { return Ok(pairs) };
        let [from, to] = part.map(|fraction| (fraction * pairs.len() as f64).round() as usize);
        if from == to {
            return Err(self.files.empty_part(split, &format!("{} examples", pairs.len())));
        }
        pairs.truncate(to);
        Ok(pairs.split_off(from))
    }
}

/// The columns that are learnt.
const COLUMNS: [&str; 3] = ["text", "prompt", "completion"];

/// One line: what it has of each of [`COLUMNS`], and how its other columns are called.
#[derive(Default)]
struct Line {
    columns: [Option<String>; 3],
    others: Vec<String>,
}

/// One pair from each line; a `text` becomes a completion without a prompt, so all of it is learnt. Empty lines are skipped.
fn pairs(path: &Path, text: &str) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Files that are put together keep the marks in front of each.
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        let refused = |what: String| Error::malformed(format!("{}:{}", path.display(), index + 1), what);
        let Line { columns, others } = read(line).map_err(refused)?;
        let pair = match columns {
            [Some(text), None, None] => Pair { prompt: String::new(), completion: text },
            [None, Some(prompt), Some(completion)] => {
                if prompt.is_empty() {
                    return Err(refused("`prompt` is empty; a line without a prompt uses `text`".to_owned()));
                }
                Pair { prompt, completion }
            }
            columns => return Err(refused(no_example(&columns, &others))),
        };
        if pair.completion.is_empty() {
            return Err(refused("there is nothing to learn: `text` or `completion` is empty".to_owned()));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Reads a line, or says why it is none.
fn read(line: &str) -> Result<Line, String> {
    const ONE_A_LINE: &str = "give one object per line: `jq -c . OLD > NEW`";
    if line.trim_start().starts_with('[') {
        return Err("this is a JSON array; give one object per line: `jq -c '.[]' OLD > NEW`".to_owned());
    }
    serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        // The reader sees one line only, so its own "line 1" would mislead.
        let message = error.to_string();
        let message = message.split(" at line 1 column").next().unwrap_or(&message);
        if error.is_data() {
            return message.to_owned();
        }
        if error.is_eof() {
            return format!("the object does not end where its line does; {ONE_A_LINE}");
        }
        match message {
            "trailing characters" => format!("column {column}: more follows after the object; {ONE_A_LINE}"),
            "expected value" => format!("column {column}: expected value{}", no_number(line, column)),
            "lone leading surrogate in hex escape" | "unexpected end of hex escape" => format!(
                "column {column}: half of a character stands here, a UTF-16 surrogate without its other half; write the character \
                 whole, or \\ufffd"
            ),
            other => format!("column {column}: {other}"),
        }
    })
}

/// What other programs write for numbers that JSON does not have.
fn no_number(line: &str, column: usize) -> String {
    let rest = line.get(column.saturating_sub(1)..).unwrap_or_default();
    let name = ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| rest.starts_with(name));
    name.map(|name| format!("; {name} is not JSON, null is")).unwrap_or_default()
}

/// Why a line is no example, with what was probably meant.
fn no_example(columns: &[Option<String>; 3], others: &[String]) -> String {
    const EITHER: &str = "a line holds either `text`, or `prompt` and `completion`";
    let given: Vec<String> =
        COLUMNS.iter().zip(columns).filter(|(_, value)| value.is_some()).map(|(name, _)| format!("`{name}`")).collect();
    if columns[0].is_some() {
        return format!("{EITHER}; this one holds {}", given.join(" and "));
    }
    // Of columns that are missing; two edits of a short name can make anything of it.
    let missing = || COLUMNS.into_iter().zip(columns).filter(|(_, value)| value.is_none()).map(|(name, _)| name);
    let is_near = |name: &str, other: &str| strsim::damerau_levenshtein(name, &other.to_lowercase()) <= name.len() / 3;
    let slip = others.iter().find_map(|other| {
        let name = nearest(other, missing())?;
        is_near(name, other).then(|| format!("; did you mean `{name}` by `{other}`?"))
    });
    let found = || match given.iter().cloned().chain(others.iter().map(|other| format!("`{other}`"))).collect::<Vec<_>>() {
        found if found.is_empty() => String::new(),
        found => format!("; this one holds {}", found.join(", ")),
    };
    format!("{EITHER}{}", slip.unwrap_or_else(found))
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LineVisitor)
    }
}

/// Keeps the columns that are learnt and passes over the others, whatever they hold.
struct LineVisitor;

/// Names of other columns that a message shows.
const NAMES_SHOWN: usize = 12;

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Line, M::Error> {
        let mut line = Line::default();
        let mut seen = [false; COLUMNS.len()];
        while let Some(key) = map.next_key::<String>()? {
            let Some(index) = COLUMNS.iter().position(|column| *column == key) else {
                map.next_value::<IgnoredAny>()?;
                if line.others.len() < NAMES_SHOWN {
                    line.others.push(key.chars().take(60).collect());
                }
                continue;
            };
            if std::mem::replace(&mut seen[index], true) {
                return Err(serde::de::Error::custom(format!("`{key}` stands twice in one line")));
            }
            let what = match map.next_value()? {
                Value::String(text) => {
                    line.columns[index] = Some(text);
                    continue;
                }
                // As if the column were not there: how tables with gaps are written.
                Value::Null => continue,
                Value::Bool(_) => "true or false",
                Value::Number(_) => "a number",
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
            };
            return Err(serde::de::Error::custom(format!("`{key}` is {what}; it must be a string")));
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &str) -> Result<Vec<Pair>, String> {
        pairs(Path::new("train.jsonl"), text).map_err(|error| error.to_string())
    }

    fn refused(text: &str) -> String {
        read_all(text).unwrap_err()
    }

    fn text(text: &str) -> Pair {
        Pair { prompt: String::new(), completion: text.into() }
    }

    const EITHER: &str = "a line holds either `text`, or `prompt` and `completion`";

    #[test]
    fn both_kinds_of_lines_are_read() {
        let lines = "{\"text\": \"once\"}\r\n\n{\"completion\": \"off\", \"prompt\": \"turn it \\u00f6ff\"}\n";
        let expected = [text("once"), Pair { prompt: "turn it öff".into(), completion: "off".into() }];
        assert_eq!(read_all(lines).unwrap(), expected);
    }

    #[test]
    fn other_columns_are_passed_over_whatever_they_hold() {
        for other in ["7", "null", "1e999", "\"\\ud83d\"", "{\"a\": [{}, {\"text\": \"not this\"}]}", "[[], \"b\"]", "true"] {
            assert_eq!(read_all(&format!("{{\"id\": {other}, \"text\": \"a\"}}")).unwrap(), [text("a")], "{other}");
            assert_eq!(read_all(&format!("{{\"text\": \"a\", \"meta\": {other}}}")).unwrap(), [text("a")], "{other}");
        }
        let twice = "{\"id\": 1, \"id\": 2, \"txt\": \"b\", \"text\": \"a\"}";
        assert_eq!(read_all(twice).unwrap(), [text("a")], "what nothing reads can stand twice, and is no slip");
        let nulls = "{\"text\": null, \"prompt\": \"p\", \"completion\": \"c\"}";
        assert_eq!(read_all(nulls).unwrap(), [Pair { prompt: "p".into(), completion: "c".into() }]);
    }

    #[test]
    fn a_line_that_is_no_example_is_named_with_what_it_holds() {
        assert_eq!(refused("{\"text\": \"a\"}\n{}"), format!("train.jsonl:2: {EITHER}"));
        assert_eq!(
            refused("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}"),
            format!("train.jsonl:1: {EITHER}; this one holds `text` and `prompt` and `completion`")
        );
        assert_eq!(refused("\n\n{\"prompt\": \"b\"}"), format!("train.jsonl:3: {EITHER}; this one holds `prompt`"));
        assert_eq!(refused("{\"text\": null}"), format!("train.jsonl:1: {EITHER}"));
        assert_eq!(
            refused("{\"question\": \"a\", \"answer\": \"b\"}"),
            format!("train.jsonl:1: {EITHER}; this one holds `question`, `answer`")
        );
        assert_eq!(refused("{\"text\": 3}"), "train.jsonl:1: `text` is a number; it must be a string");
        assert_eq!(refused("{\"text\": [\"a\"]}"), "train.jsonl:1: `text` is a list; it must be a string");
        assert_eq!(refused("{\"text\": \"a\", \"text\": \"b\"}"), "train.jsonl:1: `text` stands twice in one line");
        assert_eq!(
            refused("{\"prompt\": \"\", \"completion\": \"c\"}"),
            "train.jsonl:1: `prompt` is empty; a line without a prompt uses `text`"
        );
        assert_eq!(refused("{\"text\": \"\"}"), "train.jsonl:1: there is nothing to learn: `text` or `completion` is empty");
        assert_eq!(refused("\"a\""), "train.jsonl:1: invalid type: string \"a\", expected an object");
    }

    #[test]
    fn a_slip_is_named_where_the_column_is_missing() {
        let slip = |name, other| format!("train.jsonl:1: {EITHER}; did you mean `{name}` by `{other}`?");
        assert_eq!(refused("{\"id\": 1, \"txt\": \"a\"}"), slip("text", "txt"));
        assert_eq!(refused("{\"Text\": \"a\"}"), slip("text", "Text"));
        assert_eq!(refused("{\"prompt\": \"a\", \"completions\": \"b\"}"), slip("completion", "completions"));
        assert_eq!(refused("{\"completion\": \"a\", \"promt\": \"b\"}"), slip("prompt", "promt"));
        assert_eq!(refused("{\"test\": 1, \"x\": 2}"), slip("text", "test"));
    }

    #[test]
    fn json_that_is_not_one_object_a_line_is_told_how_to_become_that() {
        let array = "train.jsonl:1: this is a JSON array; give one object per line: `jq -c '.[]' OLD > NEW`";
        assert_eq!(refused("[{\"text\": \"a\"}, {\"text\": \"b\"}]"), array);
        assert_eq!(refused(" [\n {\"text\": \"a\"}\n]"), array);
        assert_eq!(
            refused("{\n  \"text\": \"a\"\n}\n"),
            "train.jsonl:1: the object does not end where its line does; give one object per line: `jq -c . OLD > NEW`"
        );
        assert_eq!(
            refused("{\"text\": \"a\"}{\"text\": \"b\"}"),
            "train.jsonl:1: column 14: more follows after the object; give one object per line: `jq -c . OLD > NEW`"
        );
    }

    #[test]
    fn what_json_does_not_have_is_named() {
        assert_eq!(
            refused("{\"score\": NaN, \"text\": \"a\"}"),
            "train.jsonl:1: column 11: expected value; NaN is not JSON, null is"
        );
        assert_eq!(
            refused("{\"text\": \"a\\ud83d b\"}"),
            "train.jsonl:1: column 18: half of a character stands here, a UTF-16 surrogate without its other half; write the \
             character whole, or \\ufffd"
        );
        // No stack is used up.
        assert!(refused(&format!("{{\"text\": \"a\", \"meta\": {}", "[".repeat(100_000))).starts_with("train.jsonl:1: "));
        assert!(refused(&format!("{{\"text\": {}", "[".repeat(100_000))).starts_with("train.jsonl:1: "));
    }

    #[test]
    fn marks_before_files_that_were_put_together_are_no_part_of_their_lines() {
        let lines = "{\"text\": \"a\"}\n\u{feff}{\"text\": \"\u{feff}b\"}\n\u{feff}\n";
        assert_eq!(read_all(lines).unwrap(), [text("a"), text("\u{feff}b")]);
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
