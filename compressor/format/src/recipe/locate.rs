//! Mistakes in a recipe, each at its line.

use std::fmt;

use toml::de::{DeTable, DeValue};

use super::MOST_MISTAKES;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

    /// An entry of this list, from 0.
    pub(super) fn entry(&self, index: usize) -> Self {
        let mut parts = self.0.clone();
        parts.push(PlacePart::Index(index));
        Self(parts)
    }

    /// The name of the key, or of the list that the entry is in.
    pub(super) fn key(&self) -> &str {
        let mut keys = self.0.iter().rev().filter_map(|part| match part {
            PlacePart::Key(key) => Some(key.as_str()),
            PlacePart::Index(_) => None,
        });
        keys.next().unwrap_or_default()
    }

    /// Whether this is `other` or leads through it.
    pub(super) fn is_inside(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Whether this is a key of the table `other`.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.table() == Some(&other.0)
    }

    /// Whether both are keys of one table.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.table() == other.table()
    }

    fn table(&self) -> Option<&[PlacePart]> {
        self.0.split_last().map(|(_, table)| table)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.last() {
            Some(PlacePart::Index(index)) => write!(f, "entry {} of {}", index + 1, self.key()),
            _ => f.write_str(self.key()),
        }
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

    /// A key that nothing reads, with the known one that was probably meant.
    pub(super) fn unknown_key(key: &str, known: &[&str]) -> Self {
        let key = &shortened(key);
        let message = match nearest(key, known) {
            Some(name) => format!("unknown key `{key}`{}", meant(name)),
            None => format!("unknown key `{key}`"),
        };
        Self::new(message).hint(format!("known here: {}", known.join(", ")))
    }

    /// Whether it says that `key` was probably meant.
    pub(super) fn suggests(&self, key: &str) -> bool {
        self.message.ends_with(&meant(key))
    }
}

fn meant(key: &str) -> String {
    format!(", did you mean `{key}`?")
}

/// The known name that is most like this one, where one is.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    let nearest = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.filter(|known| likeness(known) > 0.8)
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

/// Where the lines of a text begin, for many questions about one text.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect())
    }

    fn line_at(&self, byte: usize) -> usize {
        self.0.partition_point(|start| *start <= byte) + 1
    }
}

/// What stands for mistakes that are not told.
pub(super) fn and_more(more: usize) -> Mistake {
    Mistake::new(format!("and {more} more mistakes: is this a recipe?"))
}

/// A text of the recipe as a message shows it: its start where it is long.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Reads TOML into a table.
///
/// # Errors
/// Every line that is no TOML.
pub(super) fn parse(text: &str) -> Result<toml::Table, Vec<Mistake>> {
    let error = match text.parse() {
        Ok(table) => return Ok(table),
        Err(error) => error,
    };
    let starts = LineStarts::of(text);
    let mistake = |error: &toml::de::Error| Mistake {
        line: error.span().map(|span| starts.line_at(span.start)),
        message: error.message().trim().replace('\n', ", "),
        hint: None,
    };
    // The parser goes on after a mistake; what it then says of the same line, or of keys whose table it lost, only follows from it.
    let mut mistakes: Vec<Mistake> = DeTable::parse_recoverable(text).1.iter().map(mistake).collect();
    let is_doubled = |mistake: &Mistake| mistake.message == "duplicate key";
    if !mistakes.iter().all(is_doubled) {
        mistakes.retain(|mistake| !is_doubled(mistake));
    }
    mistakes.dedup_by_key(|mistake| mistake.line);
    if let Some(more) = mistakes.len().checked_sub(MOST_MISTAKES).filter(|more| *more > 0) {
        mistakes.truncate(MOST_MISTAKES);
        mistakes.push(and_more(more));
    }
    Err(if mistakes.is_empty() { vec![mistake(&error)] } else { mistakes })
}

const MOST_PARTS: usize = 16;

/// Makes one `key=value` change and tells where; tables that are not there yet are made, entries of lists must be.
pub(super) fn change(table: &mut toml::Table, change: &str) -> Result<Place, Mistake> {
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
    insert(table, &parts, value, Place::default()).map_err(wrong)
}

/// Puts a value where the parts of a key lead.
fn insert(table: &mut toml::Table, parts: &[&str], value: toml::Value, place: Place) -> Result<Place, String> {
    let (first, rest) = match parts {
        [] | [""] => return Err("the key is empty".to_owned()),
        [last] => {
            table.insert((*last).to_owned(), value);
            return Ok(place.then(last));
        }
        [first, rest @ ..] => (*first, rest),
    };
    let place = place.then(first);
    let entry = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    match (entry, rest) {
        (toml::Value::Table(inner), rest) => insert(inner, rest, value, place),
        (toml::Value::Array(entries), [number, rest @ ..]) => {
            let count = entries.len();
            let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            match index.and_then(|index| Some((index, entries.get_mut(index)?))) {
                Some((index, toml::Value::Table(inner))) => insert(inner, rest, value, place.entry(index)),
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
