//! Mistakes in a recipe, each at its line.

use std::fmt;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// Something wrong in a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong, with the values found.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
}

/// Where a key stands: the names and indices that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Vec<PlacePart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum PlacePart {
    Key(String),
    Index(usize),
}

impl Place {
    /// A key at the top of the file.
    pub fn root(key: &str) -> Self {
        Self(vec![PlacePart::Key(key.to_owned())])
    }

    /// The table of the stage with this index, from 0, and name.
    pub fn stage(index: usize, name: &str) -> Self {
        Self(vec![PlacePart::Key("stage".into()), PlacePart::Index(index), PlacePart::Key(name.into())])
    }

    /// A key inside this table.
    #[must_use]
    pub fn then(&self, key: &str) -> Self {
        let mut parts = self.0.clone();
        parts.push(PlacePart::Key(key.to_owned()));
        Self(parts)
    }
}

impl Mistake {
    /// A mistake whose line is not known yet.
    pub fn new(message: impl Into<String>) -> Self {
        Self { line: None, message: message.into(), hint: None }
    }

    /// With the way out.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The line on which the deepest part of `place` that the text has stands.
pub(super) fn line(text: &str, place: &Place) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut found = None;
    let mut value: Option<&DeValue<'_>> = None;
    for part in &place.0 {
        let next = match (part, value) {
            (PlacePart::Key(key), None) => find(table.get_ref(), key),
            (PlacePart::Key(key), Some(DeValue::Table(inner))) => find(inner, key),
            (PlacePart::Index(index), Some(DeValue::Array(array))) => {
                array.get(*index).map(|item| (item.span().start, item.get_ref()))
            }
            _ => None,
        };
        let Some((start, inner)) = next else { break };
        found = Some(start);
        value = Some(inner);
    }
    Some(line_at(text, found?))
}

/// A key's place and its value.
fn find<'a>(table: &'a DeTable<'_>, key: &str) -> Option<(usize, &'a DeValue<'a>)> {
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some((name.span().start, value.get_ref()))
}

fn line_at(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Reads TOML; several unknown keys are reported together, each with the nearest known one.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Mistake>> {
    let mut rest = text.to_owned();
    let mut mistakes = Vec::new();
    loop {
        let error = match toml::from_str::<T>(&rest) {
            Ok(recipe) if mistakes.is_empty() => return Ok(recipe),
            Ok(_) => return Err(mistakes),
            Err(error) => error,
        };
        let span = error.span();
        let line = span.as_ref().map(|span| line_at(text, span.start));
        match unknown_key(error.message()) {
            Some((key, known)) => {
                mistakes.push(unknown(key, &known, line));
                // Blank the key and look for the next mistake, so that a person sees them all at once.
                let blanked = span.and_then(|span| blank_line(&rest, span.start));
                match blanked {
                    Some(blanked) if mistakes.len() < MOST_MISTAKES => rest = blanked,
                    _ => return Err(mistakes),
                }
            }
            None => {
                // What was blanked before may be what is missing now.
                if mistakes.is_empty() {
                    mistakes.push(Mistake { line, message: error.message().to_owned(), hint: None });
                }
                return Err(mistakes);
            }
        }
    }
}

const MOST_MISTAKES: usize = 20;

/// Turns a `key = value` line into blanks; `None` for anything else, a table's head for example.
fn blank_line(text: &str, byte: usize) -> Option<String> {
    let start = text[..byte].rfind('\n').map_or(0, |end| end + 1);
    let end = text[byte..].find('\n').map_or(text.len(), |length| byte + length);
    let line = &text[start..end];
    let is_pair = line.contains('=') && !line.trim_start().starts_with('[');
    is_pair.then(|| format!("{}{}{}", &text[..start], " ".repeat(line.len()), &text[end..]))
}

/// Takes serde's "unknown field `a`, expected one of `b`, `c`" apart.
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

fn unknown(key: &str, known: &[&str], line: Option<usize>) -> Mistake {
    let nearest = known.iter().max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)));
    let near = nearest.filter(|name| strsim::jaro_winkler(key, name) > 0.8);
    let message = match near {
        Some(name) => format!("unknown key `{key}`, did you mean `{name}`?"),
        None => format!("unknown key `{key}`"),
    };
    Mistake { line, message, hint: Some(format!("known here: {}", known.join(", "))) }
}

const MOST_PARTS: usize = 16;

/// Makes one `key=value` change; tables that are not there yet are made, entries of lists must be.
pub(super) fn change(table: &mut toml::Table, change: &str) -> Result<(), Mistake> {
    let wrong = |why: String| Mistake::new(format!("--set {change}: {why}"));
    let (key, text) = change.split_once('=').ok_or_else(|| wrong("a key, `=` and a value are needed".to_owned()))?;
    // A value that is no TOML is a text that was written without its quotes.
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let parts: Vec<&str> = key.trim().split('.').collect();
    // Tables are walked by recursion, and the deepest key of a recipe has six parts.
    if parts.len() > MOST_PARTS {
        return Err(Mistake::new(format!("--set: a key of {} parts; at most {MOST_PARTS} are possible", parts.len())));
    }
    insert(table, &parts, value).map_err(wrong)
}

/// Puts a value where the parts of a key lead.
fn insert(table: &mut toml::Table, parts: &[&str], value: toml::Value) -> Result<(), String> {
    let (first, rest) = match parts {
        [] | [""] => return Err("the key is empty".to_owned()),
        [last] => {
            table.insert((*last).to_owned(), value);
            return Ok(());
        }
        [first, rest @ ..] => (*first, rest),
    };
    let entry = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    match (entry, rest) {
        (toml::Value::Table(inner), rest) => insert(inner, rest, value),
        (toml::Value::Array(entries), [number, rest @ ..]) => {
            let count = entries.len();
            let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            match index.and_then(|index| entries.get_mut(index)) {
                Some(toml::Value::Table(inner)) => insert(inner, rest, value),
                _ => Err(format!("`{number}` is not one of the {count} stages, counted from 1")),
            }
        }
        (other, _) => Err(format!("`{first}` is a {}, not a table", other.type_str())),
    }
}

/// Adds a mistake where `value` is outside `least..=most`.
pub(super) fn check_range(place: &Place, key: &str, value: f64, least: f64, most: f64, mistakes: &mut Vec<(Place, Mistake)>) {
    if !(least..=most).contains(&value) {
        let least = if least == f64::MIN_POSITIVE { "more than 0".to_owned() } else { format!("{least}") };
        mistakes.push((place.clone(), Mistake::new(format!("{key} is {value}; it must lie from {least} to {most}"))));
    }
}
