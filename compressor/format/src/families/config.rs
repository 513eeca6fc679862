//! Typed access to the keys of a `config.json`, with the file and the key in every error.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde_json::{Map, Value};

use crate::{Activation, Architecture, Error, Result};

/// Sizes above this are taken for damage: no model is this wide, and the bytes of a matrix of two of them fit 64 bits.
const LARGEST_SIZE: u64 = 1 << 24;
/// More layers are taken for damage: no model is this deep, and a name for each of their tensors must fit memory.
const MOST_LAYERS: u64 = 4096;

pub(super) struct Config<'a> {
    keys: &'a Map<String, Value>,
    origin: &'a str,
}

impl<'a> Config<'a> {
    pub(super) fn new(config: &'a Value, origin: &'a str) -> Result<Self> {
        let keys = config.as_object().ok_or_else(|| Error::malformed(origin, "the configuration is not a JSON object"))?;
        Ok(Self { keys, origin })
    }

    fn malformed(&self, what: String) -> Error {
        Error::malformed(self.origin, what)
    }

    pub(super) fn unsupported(&self, what: String) -> Error {
        Error::unsupported(self.origin, what)
    }

    /// The value of a key; `null` counts as absent, as it does in Transformers.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str> {
        self.text_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    fn text_or_none(&self, key: &str) -> Result<Option<&'a str>> {
        let wrong = |value: &Value| self.malformed(format!("`{key}` is {value}, a text is needed"));
        self.get(key).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        self.whole_number(key, LARGEST_SIZE)
    }

    /// The number of layers.
    pub(super) fn layers(&self, key: &str) -> Result<usize> {
        self.whole_number(key, MOST_LAYERS)?.ok_or_else(|| self.missing(key))
    }

    /// A size inside an object that stands under `key`.
    pub(super) fn inner_size(&self, key: &str, object: &Map<String, Value>, inner: &str) -> Result<usize> {
        let key = format!("{key}.{inner}");
        let value = object.get(inner).filter(|value| !value.is_null()).ok_or_else(|| self.missing(&key))?;
        self.in_range(&key, value, LARGEST_SIZE)
    }

    fn whole_number(&self, key: &str, most: u64) -> Result<Option<usize>> {
        self.get(key).map(|value| self.in_range(key, value, most)).transpose()
    }

    fn in_range(&self, key: &str, value: &Value, most: u64) -> Result<usize> {
        let whole = value.as_u64().filter(|number| (1..=most).contains(number));
        let wrong = || self.malformed(format!("`{key}` is {value}, a whole number from 1 to {most} is needed"));
        whole.map(|number| number as usize).ok_or_else(wrong)
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        number(self.keys, key)
            .map_err(|value| self.malformed(format!("`{key}` is {value}, a positive number is needed")))
            .map(|found| found.unwrap_or(default))
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let wrong = |value| self.malformed(format!("`{key}` is {value}, true or false is needed"));
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| wrong(value)))
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        let wrong = |value| self.malformed(format!("`{key}` is {value}, an object is needed"));
        self.get(key).map(|value| value.as_object().ok_or_else(|| wrong(value))).transpose()
    }

    /// A positive number inside an object that stands under `key`.
    pub(super) fn inner_number(&self, key: &str, object: &Map<String, Value>, inner: &str) -> Result<Option<f64>> {
        number(object, inner).map_err(|value| self.malformed(format!("`{key}.{inner}` is {value}, a positive number is needed")))
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

    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        match self.text_or_none(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => {
                Err(self.unsupported(format!("`{key}` is \"{other}\"; known are silu, swish, gelu, gelu_new, gelu_pytorch_tanh")))
            }
        }
    }

    /// Token ids: one number or a list of them.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.malformed(format!("`{key}` is {value}, a token id is needed")))
        };
        match value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => Ok(vec![one(single)?]),
        }
    }

    /// What must hold between the sizes, whatever the family.
    pub(super) fn check(&self, architecture: &Architecture) -> Result<()> {
        if architecture.head_dim == 0 {
            let what =
                format!("head_dim is missing, and a width of {} is less than one element a head", architecture.hidden_size);
            return Err(self.malformed(what));
        }
        for layer in &architecture.layers {
            let (heads, head_dim) = (layer.heads, architecture.head_dim);
            if heads as u64 * head_dim as u64 > LARGEST_SIZE {
                let what = format!("{heads} attention heads of {head_dim} elements are together wider than {LARGEST_SIZE}");
                return Err(self.malformed(what));
            }
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

/// `Err` holds the value that is no positive number.
fn number<'a>(keys: &'a Map<String, Value>, key: &str) -> Result<Option<f64>, &'a Value> {
    match keys.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|number| number.is_finite() && *number > 0.0).map(Some).ok_or(value),
    }
}
