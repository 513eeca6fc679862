//! Typed access to the keys of a `config.json`, with the file and the key in every error.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use serde_json::{Map, Value};

use super::Family;
use super::keys::{is_ignored, is_off};
use crate::{Activation, Architecture, Error, Result};

const LARGEST_SIZE: u64 = Architecture::LARGEST_SIZE as u64;
const MOST_LAYERS: u64 = Architecture::MOST_LAYERS as u64;

/// A value in an error is cut here: some keys hold whole tables.
const LONGEST_SHOWN: usize = 80;

pub(super) struct Config<'a> {
    keys: &'a Map<String, Value>,
    origin: &'a str,
    /// Every key that was asked for: these are interpreted, whatever else stands in the file.
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Config<'a> {
    pub(super) fn new(config: &'a Value, origin: &'a str) -> Result<Self> {
        let keys = config.as_object().ok_or_else(|| Error::malformed(origin, "the configuration is not a JSON object"))?;
        Ok(Self { keys, origin, asked: RefCell::default() })
    }

    pub(super) fn malformed(&self, what: String) -> Error {
        Error::malformed(self.origin, what)
    }

    pub(super) fn unsupported(&self, what: String) -> Error {
        Error::unsupported(self.origin, what)
    }

    /// The value of a key, `null` where it stands there.
    pub(super) fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.keys.get(key)
    }

    /// The value of a key; `null` counts as absent.
    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.value(key).filter(|value| !value.is_null())
    }

    /// Refuses keys that were not asked for, are not known to change nothing, and are not off.
    pub(super) fn refuse_others(&self, family: Family) -> Result<()> {
        let asked = self.asked.borrow();
        let other = |key: &str, value: &Value| !asked.contains(key) && !is_ignored(family, key) && !is_off(value);
        let Some((key, value)) = self.keys.iter().find(|(key, value)| other(key, value)) else { return Ok(()) };
        let (key, value, family) = (key.escape_debug(), shown(value), family.model_type());
        let what =
            format!("`{key}` is {value}: what it does to a {family} is not known; remove it if the model needs none of it");
        Err(self.unsupported(what))
    }

    pub(super) fn text(&self, key: &'static str) -> Result<&'a str> {
        self.text_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    fn text_or_none(&self, key: &'static str) -> Result<Option<&'a str>> {
        let wrong = |value: &Value| self.malformed(format!("`{key}` is {}, a text is needed", shown(value)));
        self.get(key).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn size(&self, key: &'static str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn size_or_none(&self, key: &'static str) -> Result<Option<usize>> {
        self.get(key).map(|value| self.as_size(key, value)).transpose()
    }

    /// A size whose absence means `default` and whose `null` means none.
    pub(super) fn size_or(&self, key: &'static str, default: Option<usize>) -> Result<Option<usize>> {
        if self.value(key).is_some() { self.size_or_none(key) } else { Ok(default) }
    }

    /// A size under either of two names; the first wins, as it does in Transformers.
    pub(super) fn size_by_either(&self, first: &'static str, second: &'static str) -> Result<usize> {
        match (self.size_or_none(first)?, self.size_or_none(second)?) {
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Err(self.missing(second)),
        }
    }

    /// The number of layers.
    pub(super) fn layers(&self, key: &'static str) -> Result<usize> {
        self.as_layers(key, self.size(key)?)
    }

    /// A size that is a number of layers.
    pub(super) fn as_layers(&self, key: &str, count: usize) -> Result<usize> {
        let wrong = || self.malformed(format!("`{key}` is {count}, a whole number from 1 to {MOST_LAYERS} is needed"));
        if count as u64 <= MOST_LAYERS { Ok(count) } else { Err(wrong()) }
    }

    /// The value of `key` as a size: a whole number, also where a program wrote it as 4096.0.
    pub(super) fn as_size(&self, key: &str, value: &Value) -> Result<usize> {
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|number| *number as u64 as f64 == *number).map(|number| number as u64));
        let wrong = || self.malformed(format!("`{key}` is {}, a whole number from 1 to {LARGEST_SIZE} is needed", shown(value)));
        whole.filter(|number| (1..=LARGEST_SIZE).contains(number)).map(|number| number as usize).ok_or_else(wrong)
    }

    /// A positive number; `null` is none, as in Transformers.
    pub(super) fn number_or(&self, key: &'static str, default: f64) -> Result<f64> {
        self.value(key).map_or(Ok(default), |value| self.as_number(key, value))
    }

    /// The value of `key` as a positive number.
    pub(super) fn as_number(&self, key: &str, value: &Value) -> Result<f64> {
        let wrong = || self.malformed(format!("`{key}` is {}, a positive number is needed", shown(value)));
        value.as_f64().filter(|number| number.is_finite() && *number > 0.0).ok_or_else(wrong)
    }

    pub(super) fn flag_or(&self, key: &'static str, default: bool) -> Result<bool> {
        let wrong = |value| self.malformed(format!("`{key}` is {}, true or false is needed", shown(value)));
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| wrong(value)))
    }

    /// An object; one without keys counts as absent.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<&'a Map<String, Value>>> {
        let wrong = |value| self.malformed(format!("`{key}` is {}, an object is needed", shown(value)));
        let object = self.get(key).map(|value| value.as_object().ok_or_else(|| wrong(value))).transpose()?;
        Ok(object.filter(|object| !object.is_empty()))
    }

    /// A number of layers, none allowed.
    pub(super) fn count_or(&self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let wrong = || self.malformed(format!("`{key}` is {}, a whole number from 0 is needed", shown(value)));
        value.as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(wrong)
    }

    /// A list of texts, of which there must be `count`.
    pub(super) fn texts(&self, key: &'static str, count: usize) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let wrong = || self.malformed(format!("`{key}` is {}, a list of {count} texts is needed", shown(value)));
        texts.filter(|texts| texts.len() == count).ok_or_else(wrong).map(Some)
    }

    /// A list of positive numbers inside an object that stands under `key`.
    pub(super) fn inner_numbers(&self, key: &str, object: &Map<String, Value>, inner: &str) -> Result<Vec<f32>> {
        let wrong = || self.malformed(format!("`{key}.{inner}` is no list of positive numbers"));
        let list = object.get(inner).and_then(Value::as_array).ok_or_else(wrong)?;
        let numbers = list
            .iter()
            .map(|item| item.as_f64().map(|number| number as f32).filter(|number| number.is_finite() && *number > 0.0));
        numbers.collect::<Option<_>>().ok_or_else(wrong)
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        self.malformed(format!("`{key}` is missing"))
    }

    /// A non-linearity by Transformers' name: several names stand for one formula.
    pub(super) fn activation(&self, key: &'static str, default: &str) -> Result<Activation> {
        match self.text_or_none(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => Ok(Activation::GeluTanh),
            other => Err(self.unsupported(format!(
                "`{key}` is \"{}\"; known are silu, swish, gelu, gelu_new, gelu_pytorch_tanh",
                other.escape_debug()
            ))),
        }
    }

    /// Token ids, as [`token_ids`] reads them; none where the key is missing.
    pub(super) fn token_ids(&self, key: &'static str) -> Result<Vec<u32>> {
        let wrong = |value| self.malformed(format!("`{key}` is {}, a token id is needed", shown(value)));
        self.value(key).map_or(Ok(Vec::new()), |value| token_ids(value).map_err(wrong))
    }

    /// What must hold between the sizes, whatever the family.
    pub(super) fn check(&self, architecture: &Architecture) -> Result<()> {
        if architecture.head_dim == 0 {
            let what =
                format!("head_dim is missing, and a width of {} is less than one element a head", architecture.hidden_size);
            return Err(self.malformed(what));
        }
        if let Some(what) = architecture.too_large() {
            return Err(self.malformed(what));
        }
        for layer in &architecture.layers {
            if layer.heads % layer.kv_heads != 0 {
                let (heads, kv_heads) = (layer.heads, layer.kv_heads);
                return Err(
                    self.malformed(format!("{heads} attention heads can't be shared out among {kv_heads} key/value heads"))
                );
            }
        }
        if let crate::Positions::Rotary { scaling: crate::RotaryScaling::PerFrequency { divisors }, .. } = &architecture.positions
            && divisors.len() != architecture.head_dim / 2
        {
            let (found, half) = (divisors.len(), architecture.head_dim / 2);
            return Err(self.malformed(format!("`short_factor` has {found} numbers, and a head has {half} frequencies")));
        }
        let needs_halves = matches!(architecture.positions, crate::Positions::Rotary { .. });
        if needs_halves && !architecture.head_dim.is_multiple_of(2) {
            return Err(self.malformed(format!("head_dim {} is odd, a rotary embedding needs two halves", architecture.head_dim)));
        }
        Ok(())
    }
}

/// Token ids: one number or a list of them; null and negative ones stand for none.
///
/// # Errors
/// The value that is no token id.
pub(crate) fn token_ids(value: &Value) -> core::result::Result<Vec<u32>, &Value> {
    let list = value.as_array().map_or(core::slice::from_ref(value), Vec::as_slice);
    let is_one = |id: &&Value| !id.is_null() && id.as_i64().is_none_or(|id| id >= 0);
    list.iter().filter(is_one).map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or(id)).collect()
}

/// A value as JSON, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
