//! Reads a table into a struct and finds everything that is wrong with it, not only the first thing.
//!
//! Serde ends at the first error. So a value that can't be read is noted, a stand-in answers whatever is asked of it, and reading
//! goes on. Serde tells of a missing key only at the end of its table; the whole is then read again with a stand-in for that key.
//! Each reading adds a key of a struct, so there is a last one. What was read is then worth nothing where a stand-in went in.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::MOST_MISTAKES;
use super::byte_size::ByteSize;
use super::locate::{Mistake, Place, nearest, shortened};

/// What could be read.
pub(super) struct Reading<T> {
    /// The struct, with stand-ins at the places that could not be read.
    pub(super) value: Option<T>,
    /// Everything that is wrong.
    pub(super) mistakes: Vec<(Place, Mistake)>,
    /// Where stand-ins went in.
    pub(super) unread: Vec<Place>,
}

/// Reads a table into a struct. Every missing key takes another reading of the whole, so only so many of them are found.
pub(super) fn read<T: DeserializeOwned>(table: Table) -> Reading<T> {
    let table = Value::Table(table);
    let mut missing = Vec::new();
    loop {
        let notes = RefCell::default();
        let reader = Reader { value: Some(&table), place: Place::default(), missing: &missing, notes: &notes };
        let read = T::deserialize(reader);
        let Notes { mut mistakes, mut unread } = notes.into_inner();
        match read {
            Err(Flaw::Missing(place)) if missing.len() <= MOST_MISTAKES && !missing.contains(&place) => missing.push(place),
            read => {
                for place in missing {
                    // Inside of another stand-in nothing is missing, and a key that is only misspelt is told of already.
                    let is_told = unread.iter().any(|unread| place.is_inside(unread))
                        || mistakes.iter().any(|(other, mistake)| other.is_beside(&place) && mistake.suggests(place.key()));
                    if !is_told {
                        mistakes.push((place.clone(), Mistake::new(format!("missing key `{}`", place.key()))));
                    }
                    unread.push(place);
                }
                if let Err(Flaw::Other(place, what)) = &read {
                    mistakes.push((place.clone(), Mistake::new(what.clone())));
                }
                return Reading { value: read.ok(), mistakes, unread };
            }
        }
    }
}

#[derive(Default)]
struct Notes {
    mistakes: Vec<(Place, Mistake)>,
    unread: Vec<Place>,
}

/// Hands a value to serde, and a stand-in where there is none.
#[derive(Clone)]
struct Reader<'a> {
    value: Option<&'a Value>,
    place: Place,
    missing: &'a [Place],
    notes: &'a RefCell<Notes>,
}

impl<'a> Reader<'a> {
    /// The value under a key or an index of this one.
    fn inner(&self, place: Place, value: Option<&'a Value>) -> Self {
        Self { value, place, ..self.clone() }
    }

    fn note(&self, place: &Place, mistake: Mistake) {
        self.notes.borrow_mut().mistakes.push((place.clone(), mistake));
    }

    /// Takes what `take` finds in the value; a stand-in where it finds nothing.
    fn take<T>(&self, must_be: &str, take: impl FnOnce(&'a Value) -> Option<T>, stand_in: T) -> T {
        let Some(value) = self.value else { return stand_in };
        take(value).unwrap_or_else(|| {
            let mut mistake = Mistake::new(format!("{} is {}; it must be {must_be}", self.place, shown(value)));
            if must_be == LIST && value.is_table() {
                mistake = mistake.hint(format!("write [[{}]], in two brackets, for each entry", self.place.key()));
            }
            self.refuse(mistake);
            stand_in
        })
    }

    /// Notes that this value is not read.
    fn refuse(&self, mistake: Mistake) {
        self.note(&self.place, mistake);
        self.notes.borrow_mut().unread.push(self.place.clone());
    }

    fn whole(&self, most: u64) -> u64 {
        let range = match most {
            u64::MAX => "a whole number, 0 or more".to_owned(),
            _ => format!("a whole number from 0 to {most}"),
        };
        let fits =
            |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok()).filter(|number| *number <= most);
        self.take(&range, fits, 1)
    }

    /// The variant that the value names, with what it holds.
    fn variant(&self, variants: &'static [&'static str]) -> Variant<'a> {
        let known = |name: &str| variants.iter().copied().find(|variant| *variant == name);
        let stand_in = Variant { name: variants[0], content: self.inner(self.place.clone(), None), is_table: false };
        match self.value {
            None => stand_in,
            Some(Value::String(name)) => match known(name) {
                Some(name) => Variant { name, content: self.clone(), is_table: false },
                None => {
                    let near = nearest(name, variants).map(|near| format!("; did you mean \"{near}\"?"));
                    let message =
                        format!("{} is {}{}", self.place, shown(&Value::String(name.clone())), near.unwrap_or_default());
                    self.refuse(Mistake::new(message).hint(format!("known here: {}", variants.join(", "))));
                    stand_in
                }
            },
            Some(Value::Table(table)) => {
                let mut found = Vec::new();
                for (key, value) in table {
                    let place = self.place.then(key);
                    match known(key) {
                        Some(name) => found.push(Variant { name, content: self.inner(place, Some(value)), is_table: true }),
                        None => self.note(&place, Mistake::unknown_key(key, variants)),
                    }
                }
                let names: Vec<String> = found.iter().map(|variant| format!("`{}`", variant.name)).collect();
                match names.len() {
                    1 => {}
                    0 if table.is_empty() => {
                        self.refuse(Mistake::new(format!(
                            "{} is empty; it must hold one of {}",
                            self.place,
                            variants.join(", ")
                        )));
                    }
                    0 => self.notes.borrow_mut().unread.push(self.place.clone()),
                    _ => self.refuse(Mistake::new(format!(
                        "{} holds {}; it must hold one of them",
                        self.place,
                        names.join(" and ")
                    ))),
                }
                found.into_iter().next().unwrap_or(stand_in)
            }
            Some(other) => {
                let mistake = format!("{} is {}; it must hold one of {}", self.place, shown(other), variants.join(", "));
                self.refuse(Mistake::new(mistake));
                stand_in
            }
        }
    }
}

/// A value as a message names it: as it is written where that is short.
fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => shortened(&other.to_string()),
    }
}

const LIST: &str = "a list";

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Flaw;

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_u64(self.whole(u8::MAX.into()))
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_u64(self.whole(u64::MAX))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let number = |value: &Value| value.as_float().or(value.as_integer().map(|number| number as f64));
        visitor.visit_f64(self.take("a number", number, 1.0))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_bool(self.take("true or false", Value::as_bool, false))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_str(self.take("a text in quotes", Value::as_str, ""))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Flaw> {
        if name != ByteSize::NAME {
            return self.deserialize_any(visitor);
        }
        let bytes = |value: &Value| match value {
            Value::String(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
            other => other.as_integer().and_then(|number| u64::try_from(number).ok()),
        };
        visitor.visit_u64(self.take(ByteSize::MUST_BE, bytes, 1))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        if self.value.is_some() { visitor.visit_some(self) } else { visitor.visit_none() }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let entries = self.take(LIST, Value::as_array, const { &Vec::new() });
        let entry = |(index, value)| self.inner(self.place.entry(index), Some(value));
        visitor.visit_seq(Entries(entries.iter().enumerate().map(entry)))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        let nothing = Table::new();
        let table = self.take("a table", Value::as_table, &nothing);
        let mut fields = Vec::new();
        for (key, value) in table {
            let place = self.place.then(key);
            match known.contains(&key.as_str()) {
                true => fields.push(self.inner(place, Some(value))),
                false => self.note(&place, Mistake::unknown_key(key, known)),
            }
        }
        match self.value {
            Some(_) => {
                let missing = self.missing.iter().filter(|place| place.is_in(&self.place));
                fields.extend(missing.map(|place| self.inner(place.clone(), None)));
            }
            // A stand-in lacks nothing.
            None => fields.extend(known.iter().map(|key| self.inner(self.place.then(key), None))),
        }
        let read = visitor.visit_map(Fields { rest: fields.into_iter(), value: None });
        read.map_err(|flaw| flaw.at(&self.place))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        visitor.visit_enum(self.variant(variants)).map_err(|flaw| flaw.at(&self.place))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_unit()
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Flaw> {
        Err(Flaw::Other(self.place, "the recipe's structs ask for no such type; teach recipe/read.rs".to_owned()))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u16 u32 u128 f32 char str bytes byte_buf unit unit_struct tuple tuple_struct map identifier
    }
}

/// The entries of a list.
struct Entries<I>(I);

impl<'de, 'a, I: Iterator<Item = Reader<'a>>> SeqAccess<'de> for Entries<I> {
    type Error = Flaw;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Flaw> {
        self.0.next().map(|entry| seed.deserialize(entry)).transpose()
    }
}

/// The keys of a table that are known, and their values.
struct Fields<I, R> {
    rest: I,
    value: Option<R>,
}

impl<'de, 'a, I: Iterator<Item = Reader<'a>>> MapAccess<'de> for Fields<I, Reader<'a>> {
    type Error = Flaw;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Flaw> {
        self.value = self.rest.next();
        self.value.as_ref().map(|value| seed.deserialize(value.place.key().into_deserializer())).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Flaw> {
        seed.deserialize(self.value.take().expect("serde asks for a value after its key"))
    }
}

/// A variant by its name: `key = "name"`, or `key.name = content`.
struct Variant<'a> {
    name: &'static str,
    /// What it holds, or the name itself.
    content: Reader<'a>,
    is_table: bool,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Flaw;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Flaw> {
        Ok((seed.deserialize(self.name.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Flaw;

    fn unit_variant(self) -> Result<(), Flaw> {
        if self.is_table {
            let message = format!("{} holds a value; write its name alone, \"{}\"", self.content.place, self.name);
            self.content.refuse(Mistake::new(message));
        }
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(mut self, seed: S) -> Result<S::Value, Flaw> {
        if !self.is_table && self.content.value.take().is_some() {
            let (key, name) = (self.content.place.key(), self.name);
            self.content.refuse(Mistake::new(format!("{key} is \"{name}\" and nothing more; write {key}.{name} = …")));
        }
        seed.deserialize(self.content)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Flaw> {
        self.content.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value, Flaw> {
        self.content.deserialize_any(visitor)
    }
}

/// Why serde stopped.
#[derive(Debug)]
enum Flaw {
    /// A key that has no default is not there. Serde knows its name; the table around it adds where.
    Absent(&'static str),
    Missing(Place),
    Other(Place, String),
}

impl Flaw {
    fn at(self, table: &Place) -> Self {
        match self {
            Self::Absent(key) => Self::Missing(table.then(key)),
            Self::Other(place, what) if place == Place::default() => Self::Other(table.clone(), what),
            told => told,
        }
    }
}

impl de::Error for Flaw {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Other(Place::default(), message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Absent(field)
    }
}

impl std::error::Error for Flaw {}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(key) => write!(f, "missing key `{key}`"),
            Self::Missing(place) => write!(f, "missing key `{place}`"),
            Self::Other(_, what) => f.write_str(what),
        }
    }
}
