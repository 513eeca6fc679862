//! Prompt caches: keys and values of a prompt's tokens in a file, so that a prompt that begins alike does not compute them again.
//!
//! Layout: docs/artifact-format.md §9.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::content::ContentHash;
use crate::{Dtype, Error, MappedBytes, NewTensor, Origin, Result, TensorFiles, TensorSlice, map_file, write_safetensors_with};

/// Keys and values of a prompt's tokens.
#[derive(Clone, Debug)]
pub struct PromptCache {
    /// How they were computed.
    pub computed: Computation,
    /// What they were computed of: at least one token.
    pub tokens: Vec<u32>,
    /// At least one.
    pub layers: Vec<CachedLayer>,
}

/// What keys and values depend on beside the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computation {
    /// [`crate::Model::content_hash`].
    pub model: String,
    /// How keys and values are kept: [`Dtype::F32`], [`Dtype::F16`] or [`Dtype::I8`].
    pub kv_type: Dtype,
    /// What matrices of integers are multiplied with: [`Dtype::I8`] or [`Dtype::F32`].
    pub activations: Dtype,
    /// Version of the engine's arithmetic.
    pub engine: u32,
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
pub struct CachedLayer {
    /// Already rotated.
    pub keys: CachedVectors,
    /// As the projection gives them.
    pub values: CachedVectors,
}

/// One vector for each head and token.
#[derive(Clone, Debug)]
pub struct CachedVectors {
    /// `[kv_heads, tokens, head_dim]`.
    pub elements: TensorSlice,
    /// `[kv_heads, tokens]` in f32, where the elements are integers.
    pub scales: Option<TensorSlice>,
}

/// What `format` in `__metadata__` says.
const FORMAT: &str = "compressor-prompt-cache";
/// Raised when the layout changes.
const VERSION: &str = "1";
/// The hash of everything else, in `__metadata__`.
const HASH: &str = "blake3";
const TOKENS: &str = "tokens";
const NO_PROMPT_CACHE: &str = "is no prompt cache";

impl PromptCache {
    /// Opens the file at `path` for a run that computes as `expected`; `None` where there is no file.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read. [`Error::Malformed`] and [`Error::Unsupported`], with the way out, for a file that is
    /// none, one that is damaged, and one of another version, model or way to compute.
    pub fn open(path: &Path, expected: &Computation) -> Result<Option<Self>> {
        let file = match map_file(path) {
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Self::from_bytes(file, path, expected).map(Some)
    }

    /// Reads a file's bytes, which errors call `origin`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes<O: Origin + ?Sized>(bytes: impl Into<MappedBytes>, origin: &O, expected: &Computation) -> Result<Self> {
        let origin = origin.shown();
        let read = TensorFiles::from_bytes(bytes, &origin).and_then(|files| Reader { files, origin }.read(expected));
        read.map_err(|error| match error {
            Error::Malformed { path, what } => Error::Malformed { path, what: with_way_out(what) },
            Error::Unsupported { path, what } => Error::Unsupported { path, what: with_way_out(what) },
            other => other,
        })
    }

    /// How many tokens it has in common with the start of `prompt`.
    pub fn common_tokens(&self, prompt: &[u32]) -> usize {
        self.tokens.iter().zip(prompt).take_while(|(stored, asked)| stored == asked).count()
    }

    /// Writes it beside its place and renames it.
    ///
    /// # Errors
    /// Those of [`crate::write_beside`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let ids: Vec<u8> = self.tokens.iter().flat_map(|token| i64::from(*token).to_le_bytes()).collect();
        let ids = TensorSlice { dtype: Dtype::I64, shape: vec![self.tokens.len()], bytes: ids.into() };
        let mut tensors = BTreeMap::from([(TOKENS.to_owned(), ids)]);
        for (index, layer) in self.layers.iter().enumerate() {
            for (part, vectors) in [("keys", &layer.keys), ("values", &layer.values)] {
                tensors.insert(name(index, part), vectors.elements.clone());
                tensors.extend(vectors.scales.clone().map(|scales| (name_of_scales(index, part), scales)));
            }
        }
        let texts = [("format", FORMAT.to_owned()), ("version", VERSION.to_owned())].into_iter().chain(self.computed.texts());
        write(path, texts.map(|(name, text)| (name.to_owned(), text)).collect(), &tensors)
    }
}

impl Computation {
    /// As `__metadata__` has it.
    fn texts(&self) -> [(&'static str, String); 4] {
        [
            ("model", self.model.clone()),
            ("engine", self.engine.to_string()),
            ("kv_type", type_name(self.kv_type).to_owned()),
            ("activations", type_name(self.activations).to_owned()),
        ]
    }
}

/// Writes texts and tensors with the hash of both.
fn write(path: &Path, mut texts: BTreeMap<String, String>, tensors: &BTreeMap<String, TensorSlice>) -> Result<()> {
    let hash = hash(&texts, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    texts.insert(HASH.to_owned(), hash);
    let tensors = tensors.iter().map(|(name, tensor)| {
        let TensorSlice { dtype, shape, bytes } = tensor;
        (name.clone(), NewTensor { dtype: *dtype, shape: shape.clone(), bytes: Box::new(|| Cow::Borrowed(&**bytes)) })
    });
    write_safetensors_with(path, texts, tensors)
}

fn hash<'a>(texts: &BTreeMap<String, String>, tensors: impl Iterator<Item = (&'a str, &'a TensorSlice)>) -> String {
    let mut hash = ContentHash::default();
    hash.add_texts(texts);
    tensors.for_each(|(name, tensor)| hash.add_tensor(name, tensor));
    hash.finish()
}

/// What to do about a file; one of somebody else's is not to be deleted.
fn with_way_out(what: String) -> String {
    match what.as_str() {
        NO_PROMPT_CACHE => format!("{what}; name another file"),
        _ => format!("{what}; delete it or name another"),
    }
}

/// The types as the command's flags and the engine's documents call them.
fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "f64",
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::I8 => "int8",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
    }
}

fn name(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

fn name_of_scales(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}.scales")
}

/// Reads a file whose header is sound, and believes nothing else of it.
struct Reader {
    files: TensorFiles,
    origin: String,
}

impl Reader {
    fn read(&self, expected: &Computation) -> Result<PromptCache> {
        if self.text("format") != FORMAT {
            return Err(self.malformed(NO_PROMPT_CACHE));
        }
        if self.text("version") != VERSION {
            let what = format!("is version {} of a prompt cache, this program reads {VERSION}", self.text("version"));
            return Err(Error::unsupported(&self.origin, what));
        }
        let mut texts = self.files.metadata().clone();
        let written = texts.remove(HASH);
        if written != Some(hash(&texts, self.files.iter())) {
            return Err(self.malformed("is damaged: its contents do not have the hash that they were written with"));
        }
        self.compare(expected)?;
        let tokens = self.tokens()?;
        let mut layers = Vec::new();
        while self.files.get(&name(layers.len(), "keys")).is_some() {
            let vectors = |part| self.vectors(layers.len(), part, tokens.len(), expected.kv_type);
            let layer = CachedLayer { keys: vectors("keys")?, values: vectors("values")? };
            layers.push(layer);
        }
        let of_a_layer = if expected.kv_type == Dtype::I8 { 4 } else { 2 };
        let (read, found) = (1 + of_a_layer * layers.len(), self.files.iter().count());
        if layers.is_empty() || read != found {
            return Err(self.malformed(format!("has {found} tensors, {} layers have {read}", layers.len())));
        }
        Ok(PromptCache { computed: expected.clone(), tokens, layers })
    }

    fn text(&self, name: &str) -> &str {
        self.files.metadata().get(name).map_or("none", String::as_str)
    }

    fn malformed(&self, what: impl Into<String>) -> Error {
        Error::malformed(&self.origin, what)
    }

    /// Refuses what was computed in another way.
    fn compare(&self, expected: &Computation) -> Result<()> {
        for (name, expected) in expected.texts() {
            let found = self.text(name);
            if found == expected {
                continue;
            }
            let what = match name {
                "model" => "belongs to another model".to_owned(),
                "engine" => format!("was computed by version {found} of the engine's arithmetic, this program has {expected}"),
                "kv_type" => format!("keeps keys and values as {found}, this run as {expected}"),
                _ => format!("was computed with {found} activations, this run has {expected}"),
            };
            return Err(Error::unsupported(&self.origin, what));
        }
        Ok(())
    }

    fn tensor(&self, name: &str, dtype: Dtype) -> Result<&TensorSlice> {
        let tensor = self.files.get(name).ok_or_else(|| self.malformed(format!("there is no tensor `{name}`")))?;
        match tensor.dtype == dtype {
            true => Ok(tensor),
            false => Err(self.malformed(format!("tensor `{name}` is {}, it must be {dtype}", tensor.dtype))),
        }
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        let tensor = self.tensor(TOKENS, Dtype::I64)?;
        if tensor.shape.len() != 1 || tensor.bytes.is_empty() {
            return Err(self.malformed(format!("tensor `{TOKENS}` has shape {:?}, which is no list of tokens", tensor.shape)));
        }
        let ids = tensor.bytes.as_chunks().0.iter().map(|eight| i64::from_le_bytes(*eight));
        ids.map(|id| u32::try_from(id).map_err(|_| self.malformed(format!("{id} is no token")))).collect()
    }

    fn vectors(&self, layer: usize, part: &str, tokens: usize, dtype: Dtype) -> Result<CachedVectors> {
        let name = name(layer, part);
        let elements = self.tensor(&name, dtype)?;
        let wrong = |name: &str, shape: &[usize]| {
            self.malformed(format!("tensor `{name}` has shape {shape:?}, which is not that of {tokens} tokens"))
        };
        let kv_heads = match elements.shape[..] {
            [kv_heads, found, _] if found == tokens && !elements.bytes.is_empty() => kv_heads,
            _ => return Err(wrong(&name, &elements.shape)),
        };
        let scales = match dtype {
            Dtype::I8 => {
                let name = name_of_scales(layer, part);
                let scales = self.tensor(&name, Dtype::F32)?;
                if scales.shape != [kv_heads, tokens] {
                    return Err(wrong(&name, &scales.shape));
                }
                Some(scales.clone())
            }
            _ => None,
        };
        Ok(CachedVectors { elements: elements.clone(), scales })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::damage::Damage;

    const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::I8];

    fn computation(kv_type: Dtype) -> Computation {
        Computation { model: "ab".repeat(32), kv_type, activations: Dtype::I8, engine: 1 }
    }

    fn slice(dtype: Dtype, shape: &[usize], first: u8) -> TensorSlice {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let bytes: Vec<u8> = (0..bytes).map(|at| first.wrapping_add(at as u8) & 0x3f).collect();
        TensorSlice { dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// Two layers of different sizes, three tokens.
    fn sample(kv_type: Dtype) -> PromptCache {
        let vectors = |kv_heads, first| CachedVectors {
            elements: slice(kv_type, &[kv_heads, 3, 4], first),
            scales: (kv_type == Dtype::I8).then(|| slice(Dtype::F32, &[kv_heads, 3], first + 1)),
        };
        let layers =
            [2, 1].map(|kv_heads| CachedLayer { keys: vectors(kv_heads, 10), values: vectors(kv_heads, 20) }).into_iter();
        PromptCache { computed: computation(kv_type), tokens: vec![7, 0, u32::MAX], layers: layers.collect() }
    }

    fn bytes_of(cache: &PromptCache) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.cache");
        cache.write(&path).unwrap();
        fs_err::read(path).unwrap()
    }

    fn read(bytes: Vec<u8>, kv_type: Dtype) -> Result<PromptCache> {
        PromptCache::from_bytes(bytes, "prompt.cache", &computation(kv_type))
    }

    /// Everything that a cache holds.
    fn contents(cache: &PromptCache) -> Vec<(Dtype, Vec<usize>, Vec<u8>)> {
        let vectors = cache.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]);
        let slices = vectors.flat_map(|vectors| [Some(&vectors.elements), vectors.scales.as_ref()]).flatten();
        slices.map(|slice| (slice.dtype, slice.shape.clone(), slice.bytes.to_vec())).collect()
    }

    #[test]
    fn what_is_written_reads_back_and_gives_the_same_bytes() {
        for kv_type in TYPES {
            let sample = sample(kv_type);
            let bytes = bytes_of(&sample);
            let found = read(bytes.clone(), kv_type).unwrap();
            assert_eq!((&found.computed, &found.tokens), (&sample.computed, &sample.tokens));
            assert_eq!(contents(&found), contents(&sample));
            assert_eq!(bytes_of(&found), bytes);
        }
    }

    #[test]
    fn the_file_is_as_the_document_says() {
        let bytes = bytes_of(&sample(Dtype::I8));
        let files = TensorFiles::from_bytes(bytes, "prompt.cache").unwrap();
        let found: Vec<_> = files.iter().map(|(name, tensor)| (name, tensor.dtype, tensor.shape.as_slice())).collect();
        let expected: [(&str, Dtype, &[usize]); 9] = [
            ("layers.0.keys", Dtype::I8, &[2, 3, 4]),
            ("layers.0.keys.scales", Dtype::F32, &[2, 3]),
            ("layers.0.values", Dtype::I8, &[2, 3, 4]),
            ("layers.0.values.scales", Dtype::F32, &[2, 3]),
            ("layers.1.keys", Dtype::I8, &[1, 3, 4]),
            ("layers.1.keys.scales", Dtype::F32, &[1, 3]),
            ("layers.1.values", Dtype::I8, &[1, 3, 4]),
            ("layers.1.values.scales", Dtype::F32, &[1, 3]),
            ("tokens", Dtype::I64, &[3]),
        ];
        assert_eq!(found, expected);
        let mut texts = files.metadata().clone();
        assert_eq!(texts.remove("blake3").unwrap().len(), 64);
        let expected = [
            ("activations", "int8"),
            ("engine", "1"),
            ("format", "compressor-prompt-cache"),
            ("kv_type", "int8"),
            ("model", &"ab".repeat(32)),
            ("version", "1"),
        ];
        assert!(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).eq(expected), "{texts:?}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_end_is_refused() {
        for kv_type in TYPES {
            let whole = bytes_of(&sample(kv_type));
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                check_refusal(&read(flipped, kv_type).unwrap_err());
            }
            for length in 0..whole.len() {
                check_refusal(&read(whole[..length].to_vec(), kv_type).unwrap_err());
            }
        }
    }

    #[track_caller]
    fn check_refusal(error: &Error) {
        let text = error.to_string();
        let way_out = ["; delete it or name another", "; name another file"].into_iter().any(|way_out| text.ends_with(way_out));
        assert!(text.starts_with("prompt.cache: ") && way_out, "{text}");
    }

    proptest! {
        #[test]
        fn damage_is_refused_by_the_name_of_the_file(damage in Damage::any(1..8, 0.3)) {
            let whole = bytes_of(&sample(Dtype::I8));
            let mut damaged = whole.clone();
            damage.change(&mut damaged);
            match read(damaged.clone(), Dtype::I8) {
                Ok(_) => prop_assert_eq!(damaged, whole),
                Err(error) => check_refusal(&error),
            }
        }
    }

    #[test]
    fn what_was_computed_in_another_way_is_refused() {
        let bytes = bytes_of(&sample(Dtype::F16));
        let own = computation(Dtype::F16);
        let refused = |expected: Computation| {
            let text = PromptCache::from_bytes(bytes.clone(), "prompt.cache", &expected).unwrap_err().to_string();
            text.strip_prefix("prompt.cache: ").unwrap().strip_suffix("; delete it or name another").unwrap().to_owned()
        };
        assert_eq!(refused(Computation { model: "cd".repeat(32), ..own.clone() }), "belongs to another model");
        assert_eq!(
            refused(Computation { engine: 2, ..own.clone() }),
            "was computed by version 1 of the engine's arithmetic, this program has 2"
        );
        assert_eq!(refused(Computation { kv_type: Dtype::I8, ..own.clone() }), "keeps keys and values as f16, this run as int8");
        assert_eq!(
            refused(Computation { activations: Dtype::F32, ..own }),
            "was computed with int8 activations, this run has f32"
        );
    }

    /// What a file is refused for whose hash is right and whose contents `change` has changed.
    fn forged(change: impl FnOnce(&mut BTreeMap<String, String>, &mut BTreeMap<String, TensorSlice>)) -> String {
        let sound = TensorFiles::from_bytes(bytes_of(&sample(Dtype::I8)), "prompt.cache").unwrap();
        let mut texts = sound.metadata().clone();
        texts.remove(HASH);
        let mut tensors = sound.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        change(&mut texts, &mut tensors);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.cache");
        write(&path, texts, &tensors).unwrap();
        let text = read(fs_err::read(path).unwrap(), Dtype::I8).unwrap_err().to_string();
        let text = text.strip_prefix("prompt.cache: ").unwrap();
        text.strip_suffix("; delete it or name another").unwrap_or(text).to_owned()
    }

    #[test]
    fn forged_contents_are_refused_by_what_is_wrong() {
        let tensor = |name: &'static str, slice: TensorSlice| {
            forged(move |_, tensors| {
                tensors.insert(name.to_owned(), slice);
            })
        };
        let without = |name: &'static str| {
            forged(move |_, tensors| {
                tensors.remove(name).unwrap();
            })
        };
        let said = |name: &'static str, text: &'static str| {
            forged(move |texts, _| {
                texts.insert(name.to_owned(), text.to_owned());
            })
        };
        assert_eq!(said("format", "pt"), "is no prompt cache; name another file");
        assert_eq!(said("version", "2"), "is version 2 of a prompt cache, this program reads 1");
        assert_eq!(said("kv_type", "int4"), "keeps keys and values as int4, this run as int8");
        assert_eq!(without("tokens"), "there is no tensor `tokens`");
        assert_eq!(tensor("tokens", slice(Dtype::I32, &[3], 0)), "tensor `tokens` is i32, it must be i64");
        assert_eq!(tensor("tokens", slice(Dtype::I64, &[0], 0)), "tensor `tokens` has shape [0], which is no list of tokens");
        assert_eq!(
            tensor("tokens", slice(Dtype::I64, &[1, 3], 0)),
            "tensor `tokens` has shape [1, 3], which is no list of tokens"
        );
        let negative = TensorSlice { bytes: (-1i64).to_le_bytes().to_vec().into(), ..slice(Dtype::I64, &[1], 0) };
        assert_eq!(tensor("tokens", negative), "-1 is no token");
        let keys = "tensor `layers.0.keys` has shape";
        let wrong = |shape: &[usize]| tensor("layers.0.keys", slice(Dtype::I8, shape, 0));
        assert_eq!(wrong(&[2, 4, 4]), format!("{keys} [2, 4, 4], which is not that of 3 tokens"));
        assert_eq!(wrong(&[6, 4]), format!("{keys} [6, 4], which is not that of 3 tokens"));
        // No bytes, and a size that nothing could hold.
        assert_eq!(wrong(&[1 << 60, 3, 0]), format!("{keys} [1152921504606846976, 3, 0], which is not that of 3 tokens"));
        assert_eq!(tensor("layers.1.values", slice(Dtype::F16, &[1, 3, 4], 0)), "tensor `layers.1.values` is f16, it must be i8");
        assert_eq!(
            tensor("layers.1.values.scales", slice(Dtype::F32, &[3], 0)),
            "tensor `layers.1.values.scales` has shape [3], which is not that of 3 tokens"
        );
        assert_eq!(without("layers.1.values"), "there is no tensor `layers.1.values`");
        assert_eq!(without("layers.1.keys.scales"), "there is no tensor `layers.1.keys.scales`");
        assert_eq!(without("layers.0.keys"), "has 8 tensors, 0 layers have 1");
        assert_eq!(tensor("layers.3.keys", slice(Dtype::I8, &[1, 3, 4], 0)), "has 10 tensors, 2 layers have 9");
    }

    #[test]
    fn other_files_are_refused_and_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.cache");
        let own = computation(Dtype::F32);
        assert!(PromptCache::open(&path, &own).unwrap().is_none());
        fs_err::write(&path, "a letter to my sister").unwrap();
        let refused = |path: &Path| PromptCache::open(path, &own).unwrap_err().to_string();
        assert_eq!(
            refused(&path),
            format!(
                "{}: is not a safetensors file, or its header is damaged: the header's length is impossible; delete it or name \
                 another",
                path.display()
            )
        );
        assert_eq!(refused(folder.path()), format!("{}: is a folder, not a file", folder.path().display()));
    }

    #[test]
    fn the_longest_common_start_is_found() {
        let cache = sample(Dtype::F32);
        for (prompt, common) in
            [(&[][..], 0), (&[8], 0), (&[7], 1), (&[7, 1, u32::MAX], 1), (&[7, 0, u32::MAX], 3), (&[7, 0, u32::MAX, 5], 3)]
        {
            assert_eq!(cache.common_tokens(prompt), common, "{prompt:?}");
        }
    }
}
