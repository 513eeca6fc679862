//! What a `quantization_config` says of each module: how its weights are stored, and what becomes of its input.
//!
//! Whatever stands there is interpreted, is known not to matter (with the reason), or is refused by name. Meanings and defaults are
//! those of compressed-tensors 0.19; a golden file holds what it and Transformers make of every key.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;

use serde_json::{Map, Value};

use super::pattern::Pattern;
use crate::{Architecture, Codebooks, Error, Family, LayerTensor, Part, Result, Scheme, StoredTensor, TensorId};

/// The groups of a `quantization_config`.
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Which group each target is of.
    targets: Targets<usize>,
    /// What stays dense although a group names it.
    ignore: Targets<()>,
    /// How long matching may still take, all patterns and names together.
    steps: Cell<u32>,
}

/// Names and patterns of modules, each with what it stands for.
struct Targets<T> {
    /// Names of modules, or of classes.
    names: BTreeMap<String, T>,
    /// With the text that each is written as, in the order of the texts.
    patterns: BTreeMap<String, (Pattern, T)>,
}

/// One of `config_groups`.
pub(super) struct Group {
    pub(super) name: String,
    /// `None` where the group leaves its modules dense.
    pub(super) weights: Option<Weights>,
    pub(super) input: Input,
}

/// How a group's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Weights {
    /// Integers in 32-bit words or, where they are not packed, in bytes.
    Integers { bits: u8, is_packed: bool, group_size: Option<usize>, symmetric: bool },
    /// Indices into codebooks.
    Codebooks(Codebooks),
}

/// What becomes of what a group's matrices multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// It stays as it is.
    Real,
    /// INT8, symmetric, one scale for each token.
    PerToken,
    /// INT8, symmetric, one stored scale.
    Static,
}

const PATTERN: &str = "re:";
/// The class that all modules are of.
const ANY_CLASS: &str = "Module";
/// Less than a second.
const MOST_STEPS: u32 = 20_000_000;

impl Groups {
    /// Reads the `quantization_config` of a `config.json`, which errors call `origin`.
    pub(super) fn read(quantization: &Value, origin: &str) -> Result<Self> {
        let keys = Keys::of(quantization, "quantization_config", origin)?;
        keys.check_method()?;
        keys.refuse_null(&["config_groups", "format", "quantization_status"])?;
        for key in keys.object.keys() {
            match key.as_str() {
                "quant_method" | "config_groups" | "ignore" => {}
                "quantization_status" => keys.check_status()?,
                "format" => keys.check_format()?,
                "kv_cache_scheme" if keys.get(key).is_some() => {
                    return keys.refuse(key, "a rounded KV cache of the model's own is not run here");
                }
                "transform_config" if !keys.is_empty(key) => {
                    return keys.refuse(key, "transforms of activations are not run here");
                }
                "sparsity_config" if !keys.is_empty(key) => keys.check_sparsity()?,
                "kv_cache_scheme" | "transform_config" | "sparsity_config" => {}
                // A figure for people.
                "global_compression_ratio" => keys.expect(key, "a number", Value::is_number)?,
                // Which program wrote it, and how Transformers is to run it: in which type, with which kernels.
                "version" | "run_compressed" | "dequantize" | "use_optimized_inference" => {}
                unknown => return keys.refuse_unknown(unknown),
            }
        }
        if !keys.object.contains_key("quantization_status") {
            keys.check_status()?;
        }
        let groups = keys.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| Error::malformed(origin, "`quantization_config.config_groups` is missing"))?;
        let mut found = Self {
            groups: Vec::new(),
            targets: Targets::default(),
            ignore: keys.targets("ignore", &())?.unwrap_or_default(),
            steps: Cell::new(MOST_STEPS),
        };
        let mut targets = Vec::new();
        for (name, group) in groups {
            let (group, of_group) = Group::read(name, group, found.groups.len(), origin)?;
            found.groups.push(group);
            targets.push(of_group);
        }
        found.check_one_kind_of_input(origin)?;
        targets.into_iter().try_for_each(|targets| found.add(targets, origin))?;
        Ok(found)
    }

    /// Adds a group's targets. The order of the groups decides in compressed-tensors where two have the same, and objects of JSON
    /// have none.
    fn add(&mut self, targets: Targets<usize>, origin: &str) -> Result<()> {
        let Targets { names, patterns } = targets;
        let name_of = |group: usize| &self.groups[group];
        let differ = |target: &str, first: usize, second: usize| {
            let (first, second) = (name_of(first), name_of(second));
            let differ = (first.weights, first.input) != (second.weights, second.input);
            let names = if first.name < second.name { [&first.name, &second.name] } else { [&second.name, &first.name] };
            let [first, second] = names;
            let what =
                format!("`config_groups.{first}` and `config_groups.{second}` say different things of the target `{target}`");
            if differ { Err(Error::unsupported(origin, what)) } else { Ok(()) }
        };
        for (name, group) in names {
            if let Some(other) = self.targets.names.get(&name) {
                differ(&name, *other, group)?;
            }
            self.targets.names.insert(name, group);
        }
        for (text, (pattern, group)) in patterns {
            if let Some((_, other)) = self.targets.patterns.get(&text) {
                differ(&text, *other, group)?;
            }
            self.targets.patterns.insert(text, (pattern, group));
        }
        Ok(())
    }

    /// The group that a stored tensor is in: what names its module decides before what matches it, and that before its class.
    pub(super) fn of(&self, stored: &StoredTensor, origin: &str) -> Result<Option<&Group>> {
        let Some(class) = class(stored) else { return Ok(None) };
        self.of_module(module(stored), class, origin)
    }

    fn of_module(&self, module: &str, class: &str, origin: &str) -> Result<Option<&Group>> {
        let Some(group) = self.targets.find(module, class, &self.steps, origin)? else { return Ok(None) };
        let is_ignored = self.ignore.find(module, class, &self.steps, origin)?.is_some();
        Ok((!is_ignored).then(|| &self.groups[*group]))
    }

    /// Refuses what compressed-tensors would do beside the matrices of `architecture`.
    pub(super) fn check_modules(&self, architecture: &Architecture, origin: &str) -> Result<()> {
        if architecture.tied_embeddings
            && let Some(group) = self.of_module("lm_head", "Linear", origin)?
        {
            let what = format!(
                "`config_groups.{}` quantizes `lm_head`, which is one matrix with the embedding here; name it in `ignore`",
                group.name
            );
            return Err(Error::unsupported(origin, what));
        }
        let attention_itself = |target: &str| {
            let what =
                format!("`quantization_config`: the target `{target}` is attention itself, whose inputs are not rounded here");
            Err(Error::unsupported(origin, what))
        };
        if let Some(class) = self.targets.names.keys().find(|name| name.ends_with("Attention")) {
            return attention_itself(class);
        }
        let stored = Family::stored(architecture);
        let is_output = |tensor: &&StoredTensor| matches!(tensor.parts[0], TensorId::Layer(_, LayerTensor::Output(Part::Weight)));
        for output in stored.iter().filter(is_output) {
            let Some((attention, _)) = module(output).rsplit_once('.') else { continue };
            if self.targets.names.contains_key(attention) {
                return attention_itself(attention);
            }
            for (text, (pattern, _)) in &self.targets.patterns {
                // What matches the projections as well means them.
                let both = [attention, module(output)].map(|name| matches(text, pattern, name, &self.steps, origin));
                if let [Ok(true), Ok(false)] = both {
                    return attention_itself(text);
                }
                both.into_iter().collect::<Result<Vec<_>>>()?;
            }
        }
        Ok(())
    }

    /// Whether inputs are rounded with scales of each token or with stored ones, where any are: not both.
    pub(super) fn input(&self) -> Input {
        self.groups.iter().map(|group| group.input).find(|input| *input != Input::Real).unwrap_or(Input::Real)
    }

    fn check_one_kind_of_input(&self, origin: &str) -> Result<()> {
        let mut rounding = self.groups.iter().filter(|group| group.input != Input::Real);
        let Some(first) = rounding.next() else { return Ok(()) };
        match rounding.find(|group| group.input != first.input) {
            None => Ok(()),
            Some(other) => {
                let mut names = [&first.name, &other.name];
                names.sort();
                let what = format!(
                    "`config_groups.{}.input_activations` and `config_groups.{}.input_activations`: dynamic and static scales in \
                     one model are not run here",
                    names[0], names[1]
                );
                Err(Error::unsupported(origin, what))
            }
        }
    }
}

fn matches(text: &str, pattern: &Pattern, module: &str, steps: &Cell<u32>, origin: &str) -> Result<bool> {
    pattern.matches(module, steps).ok_or_else(|| {
        Error::unsupported(
            origin,
            format!("`quantization_config`: matching the pattern `{text}` takes too long; write names instead"),
        )
    })
}

impl<T> Default for Targets<T> {
    fn default() -> Self {
        Self { names: BTreeMap::new(), patterns: BTreeMap::new() }
    }
}

impl<T> Targets<T> {
    /// What stands for a module: by its name, by a pattern of it, or by its class, whichever there is first.
    fn find(&self, module: &str, class: &str, steps: &Cell<u32>, origin: &str) -> Result<Option<&T>> {
        if let Some(found) = self.names.get(module) {
            return Ok(Some(found));
        }
        for (text, (pattern, found)) in &self.patterns {
            if matches(text, pattern, module, steps, origin)? {
                return Ok(Some(found));
            }
        }
        Ok(self.names.get(class).or_else(|| self.names.get(ANY_CLASS)))
    }
}

/// The module whose weight a stored tensor is.
fn module(stored: &StoredTensor) -> &str {
    stored.name.strip_suffix(".weight").unwrap_or(&stored.name)
}

/// The class of that module, where it is one that is quantized.
fn class(stored: &StoredTensor) -> Option<&'static str> {
    match stored.parts[0] {
        TensorId::Embedding | TensorId::PositionEmbedding => Some("Embedding"),
        TensorId::Head => Some("Linear"),
        id if id.is_projection() => Some(if stored.transposed { "Conv1D" } else { "Linear" }),
        TensorId::Layer(..) | TensorId::FinalNorm(_) => None,
    }
}

impl Group {
    /// The group with this index, and its targets.
    fn read(name: &str, group: &Value, index: usize, origin: &str) -> Result<(Self, Targets<usize>)> {
        let place = format!("config_groups.{name}");
        if group.is_array() {
            return Err(Error::unsupported(origin, format!("`{place}` names a preset, and presets are not known here")));
        }
        let keys = Keys::of(group, &place, origin)?;
        keys.only(&["targets", "weights", "input_activations", "output_activations", "format"])?;
        if keys.get("output_activations").is_some() {
            return keys.refuse("output_activations", "rounded outputs are not run here");
        }
        let targets =
            keys.targets("targets", &index)?.ok_or_else(|| Error::malformed(origin, format!("`{place}.targets` is missing")))?;
        let input = keys.inner("input_activations")?.map_or(Ok(Input::Real), |keys| keys.input())?;
        let format = keys.text("format")?;
        let weights = keys.inner("weights")?.map(|weights| weights.weights(&keys, format, input)).transpose()?;
        if input != Input::Real && !matches!(weights, Some(Weights::Integers { .. })) {
            return keys.refuse("input_activations", "inputs are rounded only where the weights are integers");
        }
        Ok((Self { name: name.to_owned(), weights, input }, targets))
    }
}

/// The keys of an object in `quantization_config`.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// As errors name it.
    place: String,
    origin: &'a str,
}

impl<'a> Keys<'a> {
    fn of(value: &'a Value, place: &str, origin: &'a str) -> Result<Self> {
        match value.as_object() {
            Some(object) => Ok(Self { object, place: place.to_owned(), origin }),
            None => Err(Error::malformed(origin, format!("`{place}` is no JSON object"))),
        }
    }

    /// The value of a key; `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn inner(&self, key: &str) -> Result<Option<Self>> {
        self.get(key).map(|value| Self::of(value, &format!("{}.{key}", self.place), self.origin)).transpose()
    }

    /// Nothing, or an object or a list with nothing in it.
    fn is_empty(&self, key: &str) -> bool {
        match self.get(key) {
            None => true,
            Some(Value::Object(object)) => object.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        }
    }

    fn refuse<T>(&self, key: &str, why: &str) -> Result<T> {
        Err(Error::unsupported(self.origin, format!("`{}.{key}`: {why}", self.place)))
    }

    fn refuse_unknown<T>(&self, key: &str) -> Result<T> {
        self.refuse(key, "this key is not known here")
    }

    /// Refuses a value, naming what is known.
    fn refuse_value<T>(&self, key: &str, value: &Value, known: &str) -> Result<T> {
        Err(Error::unsupported(self.origin, format!("`{}.{key}` is {value}; {known}", self.place)))
    }

    fn only(&self, known: &[&str]) -> Result<()> {
        match self.object.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => self.refuse_unknown(unknown),
            None => Ok(()),
        }
    }

    /// Refuses `null` where compressed-tensors does: a key that is left out has a default, and `null` is none.
    fn refuse_null(&self, keys: &[&str]) -> Result<()> {
        match keys.iter().find(|key| self.object.get(**key).is_some_and(Value::is_null)) {
            Some(key) => self.refuse_value(key, &Value::Null, "leave the key out, or give it a value"),
            None => Ok(()),
        }
    }

    fn expect(&self, key: &str, what: &str, is_so: fn(&Value) -> bool) -> Result<()> {
        match self.get(key).filter(|value| !is_so(value)) {
            Some(value) => Err(Error::malformed(self.origin, format!("`{}.{key}` is {value}, {what} is needed", self.place))),
            None => Ok(()),
        }
    }

    /// A text in small letters, as compressed-tensors reads its own.
    fn text(&self, key: &str) -> Result<Option<String>> {
        self.expect(key, "a text", Value::is_string)?;
        Ok(self.get(key).and_then(Value::as_str).map(str::to_lowercase))
    }

    /// A list of names and patterns, each of which stands for `meaning`.
    fn targets<T: Clone>(&self, key: &str, meaning: &T) -> Result<Option<Targets<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || Error::malformed(self.origin, format!("`{}.{key}` is no list of texts", self.place));
        let mut found = Targets::default();
        for value in value.as_array().ok_or_else(wrong)? {
            let text = value.as_str().ok_or_else(wrong)?;
            let Some(pattern) = text.strip_prefix(PATTERN) else {
                found.names.insert(text.to_owned(), meaning.clone());
                continue;
            };
            let pattern = Pattern::new(pattern).map_err(|why| {
                Error::unsupported(
                    self.origin,
                    format!("`{}.{key}`: the pattern `{text}` {why}; write names instead", self.place),
                )
            })?;
            found.patterns.insert(text.to_owned(), (pattern, meaning.clone()));
        }
        Ok(Some(found))
    }

    fn check_method(&self) -> Result<()> {
        let method = match self.get("quant_method") {
            Some(Value::String(method)) if method == "compressed-tensors" => return Ok(()),
            Some(Value::String(method)) => method.clone(),
            Some(other) => other.to_string(),
            // Older files of bitsandbytes name no method.
            None if self.object.contains_key("load_in_4bit") || self.object.contains_key("load_in_8bit") => {
                "bitsandbytes".to_owned()
            }
            None => "none".to_owned(),
        };
        let by = match method.as_str() {
            "gptq" => " (AutoGPTQ, GPTQModel)",
            "awq" => " (AutoAWQ)",
            "auto-round" | "intel/auto-round" => " (AutoRound)",
            "fp8" | "fbgemm_fp8" | "mxfp4" | "mxfp8" | "nvfp4" => " (floats of 4 or 8 bits)",
            "modelopt" => " (NVIDIA ModelOpt)",
            _ => "",
        };
        let what = format!(
            "quant_method \"{method}\"{by} is not read; known is compressed-tensors. Open the model with dense weights that it was made \
             from, and quantize that"
        );
        Err(Error::unsupported(self.origin, what))
    }

    /// Scales and integers mean what they say in one status alone.
    fn check_status(&self) -> Result<()> {
        match self.get("quantization_status").and_then(Value::as_str) {
            Some("compressed") => Ok(()),
            _ => {
                let found =
                    self.object.get("quantization_status").map_or_else(|| "missing".to_owned(), |value| format!("{value}"));
                let what = format!(
                    "`quantization_config.quantization_status` is {found}; only weights that are \"compressed\" are read (early files of \
                     llm-compressor have integers and say \"frozen\": change that word)"
                );
                Err(Error::unsupported(self.origin, what))
            }
        }
    }

    /// The layout of the whole: that of each group decides, so it only must not say what none of them can be.
    fn check_format(&self) -> Result<()> {
        match self.text("format")?.as_deref() {
            None | Some("pack-quantized" | "int-quantized" | "naive-quantized" | "mixed-precision" | "codebook-packed") => Ok(()),
            Some(_) => self.refuse_value("format", &self.object["format"], FORMATS),
        }
    }

    /// Zeros that are stored as such change nothing.
    fn check_sparsity(&self) -> Result<()> {
        match self.inner("sparsity_config")?.map(|sparsity| sparsity.text("format")).transpose()?.flatten().as_deref() {
            Some("dense") => Ok(()),
            _ => self.refuse("sparsity_config", "sparse weights are read in format \"dense\" alone"),
        }
    }

    /// Refuses what is no `QuantizationArgs`, and passes over what does not matter: stored scales and zero points have types of their
    /// own, and the observer is what scales were found with.
    fn check_arguments(&self) -> Result<()> {
        self.only(&ARGUMENTS)?;
        self.refuse_null(&NEVER_NULL)?;
        self.expect("scale_dtype", "a text", Value::is_string)?;
        self.expect("zp_dtype", "a text", Value::is_string)?;
        self.expect("observer", "a text", Value::is_string)?;
        self.expect("observer_kwargs", "an object", Value::is_object)
    }

    /// What `input_activations` says.
    fn input(&self) -> Result<Input> {
        self.check_arguments()?;
        let text = |key: &str| self.object.get(key).map_or_else(|| "null".to_owned(), Value::to_string);
        let is_int8 =
            text("num_bits") == "8" && text("symmetric") == "true" && ["null", "\"int\""].contains(&text("type").as_str());
        let has_no_more = ["block_structure", "actorder", "scale_dtype", "group_size"].iter().all(|key| self.get(key).is_none());
        match (text("dynamic").as_str(), text("strategy").as_str()) {
            ("true", "\"token\"") if is_int8 && has_no_more => Ok(Input::PerToken),
            ("false", "\"tensor\"") if is_int8 && has_no_more => Ok(Input::Static),
            _ => {
                let what =
                    format!("`{}`: only 8 bits, symmetric, dynamic per token or static per tensor, is run here", self.place);
                Err(Error::unsupported(self.origin, what))
            }
        }
    }

    /// What `weights` says; `group` holds it.
    fn weights(&self, group: &Self, format: Option<String>, input: Input) -> Result<Weights> {
        let kind = self.text("type")?;
        if kind.as_deref() == Some("codebook") {
            return self.codebooks(group, format.as_deref());
        }
        self.check_arguments()?;
        if kind.is_some_and(|kind| kind != "int") {
            return self.refuse_value("type", &self.object["type"], "weights are read as \"int\" and \"codebook\"");
        }
        let bits = self.whole("num_bits")?.unwrap_or(8);
        let bits = u8::try_from(bits).ok().filter(|bits| (1..=8).contains(bits));
        let Some(bits) = bits else { return self.refuse_value("num_bits", &self.object["num_bits"], BITS) };
        let symmetric = self.flag("symmetric")?.unwrap_or(true);
        if self.flag("dynamic")? == Some(true) {
            return self.refuse("dynamic", "scales of weights are stored, not found as the model runs");
        }
        if self.get("block_structure").is_some() {
            return self.refuse("block_structure", "blocks of rows and columns are not read");
        }
        // The order in which columns were rounded: stored as they were, unless the columns of each group are listed (`g_idx`).
        match self.get("actorder") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::String(order)) if ["weight", "static"].contains(&order.to_lowercase().as_str()) => {}
            Some(other) => {
                return self.refuse_value("actorder", other, "columns are read in their own order, \"weight\" or \"static\"");
            }
        }
        let group_size = self.group_size()?;
        let is_packed = match format.as_deref() {
            Some("pack-quantized") => true,
            Some("int-quantized" | "naive-quantized") => false,
            // As compressed-tensors finds it.
            None => input == Input::Real,
            Some(_) => return group.refuse_value("format", &group.object["format"], FORMATS),
        };
        if is_packed && !Scheme::BITS.contains(&bits) {
            return self.refuse_value("num_bits", &self.object["num_bits"], BITS);
        }
        Ok(Weights::Integers { bits, is_packed, group_size, symmetric })
    }

    /// Input elements that share a scale; `None` for one scale for each row.
    fn group_size(&self) -> Result<Option<usize>> {
        let strategy = self.text("strategy")?;
        let size = self.get("group_size");
        let positive = size.and_then(Value::as_u64).filter(|size| *size > 0).and_then(|size| usize::try_from(size).ok());
        let is_none = size.is_none_or(|size| size.as_i64() == Some(-1));
        match (strategy.as_deref(), positive) {
            (Some("group") | None, Some(size)) => Ok(Some(size)),
            (Some("channel"), None) if is_none => Ok(None),
            (None, None) if is_none && size.is_some() => Ok(None),
            (Some("group" | "channel"), _) => {
                let found = size.map_or_else(|| "null".to_owned(), Value::to_string);
                let what = format!(
                    "`{}`: group_size {found} does not go with strategy \"{}\"",
                    self.place,
                    strategy.unwrap_or_default()
                );
                Err(Error::unsupported(self.origin, what))
            }
            _ => {
                let found = self.get("strategy").map_or_else(|| "missing, which means \"tensor\"".to_owned(), Value::to_string);
                let what = format!("`{}.strategy` is {found}; scales are read by \"group\" and by \"channel\"", self.place);
                Err(Error::unsupported(self.origin, what))
            }
        }
    }

    fn codebooks(&self, group: &Self, format: Option<&str>) -> Result<Weights> {
        self.only(&["num_bits", "type", "codebook_rows"])?;
        if !matches!(format, None | Some("codebook-packed")) {
            return group.refuse_value("format", &group.object["format"], "codebooks are read as \"codebook-packed\"");
        }
        let bits = self.get("num_bits").and_then(Value::as_u64).and_then(|bits| u8::try_from(bits).ok());
        let rows = match self.get("codebook_rows") {
            Some(rows) => rows.as_u64().and_then(|rows| usize::try_from(rows).ok()).filter(|rows| *rows > 0).map(Some),
            None => Some(None),
        };
        match (bits.filter(|bits| Codebooks::BITS.contains(bits)), rows) {
            (Some(bits), Some(rows)) => Ok(Weights::Codebooks(Codebooks { bits, rows })),
            _ => {
                let what = format!("`{}`: only codebooks of 4 and 8 bits, for 1 row or more, are read", self.place);
                Err(Error::unsupported(self.origin, what))
            }
        }
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        self.expect(key, "a whole number", Value::is_u64)?;
        Ok(self.get(key).and_then(Value::as_u64))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.object.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => self.refuse_value(key, other, "true and false are known"),
        }
    }
}

/// The keys of `QuantizationArgs`.
const ARGUMENTS: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
];

/// Those of them that have a value where they stand.
const NEVER_NULL: [&str; 5] = ["num_bits", "type", "symmetric", "dynamic", "observer_kwargs"];

const FORMATS: &str = "\"pack-quantized\", \"int-quantized\" and \"codebook-packed\" are read";
const BITS: &str = "the engine runs 2, 3, 4, 5, 6 and 8";

#[cfg(all(test, feature = "std"))]
mod tests;
