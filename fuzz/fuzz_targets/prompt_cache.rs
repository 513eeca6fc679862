//! A prompt cache: a file of any bytes, or one whose hash is right and whose tensors are any; what opens is given to an engine.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use compressor_engine::{Engine, KvType, Logits, Options};
use compressor_format::{CachedLayer, CachedVectors, Computation, Dtype, Family, PromptCache, TensorSlice, Weights};
use compressor_fuzz::{check_refusal, check_slice, folder, in_proportion};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    File(u8, &'a [u8]),
    Forged(Forged<'a>),
}

#[derive(Arbitrary, Debug)]
struct Forged<'a> {
    kv_type: u8,
    tokens: Vec<u32>,
    /// Keys and their scales, values and theirs.
    layers: Vec<[(Slice, Option<Slice>); 2]>,
    /// What the tensors hold, repeated.
    values: &'a [u8],
    /// Tokens to take.
    taken: u8,
}

#[derive(Arbitrary, Debug)]
struct Slice {
    /// The type that fits, or any.
    dtype: Option<u8>,
    /// The shape that fits, or any.
    shape: Option<Vec<u8>>,
}

const KV_TYPES: [(KvType, Dtype); 3] = [(KvType::F32, Dtype::F32), (KvType::F16, Dtype::F16), (KvType::Int8, Dtype::I8)];
const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I32, Dtype::I64];
/// Of the engine below.
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 6;
const MOST_ELEMENTS: usize = 1 << 12;

fuzz_target!(|input: Input<'_>| {
    let (kv_type, taken) = match &input {
        Input::File(kv_type, _) => (*kv_type, 1),
        Input::Forged(forged) => (forged.kv_type, forged.taken),
    };
    let (kv_type, dtype) = KV_TYPES[usize::from(kv_type) % 3];
    let computed = Computation { model: "a model".to_owned(), kv_type: dtype, activations: Dtype::I8, engine: 1 };
    let folder = match &input {
        Input::File(_, bytes) => folder(&[("prompt.cache", bytes)]),
        Input::Forged(forged) => {
            let folder = folder(&[]);
            let Some(cache) = forged.cache(computed.clone()) else { return };
            // Sizes whose product is zero only at the end can be more than a header may say.
            if cache.write(&folder.path().join("prompt.cache")).is_err() {
                return;
            }
            folder
        }
    };
    let path = folder.path().join("prompt.cache");
    let bytes = fs_err::metadata(&path).expect("it was written").len() as usize;
    let engine = engine(kv_type);
    in_proportion(bytes, || match PromptCache::open(&path, &computed) {
        Ok(cache) => ask(&cache.expect("there is a file"), &path, engine, taken.into()),
        Err(error) => check_refusal(&error, &path),
    });
});

/// Everything that a cache can be asked for.
fn ask(cache: &PromptCache, path: &Path, engine: &Engine, taken: usize) {
    assert!(!cache.tokens.is_empty() && !cache.layers.is_empty());
    assert_eq!(cache.common_tokens(&cache.tokens), cache.tokens.len());
    for vectors in cache.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]) {
        check_slice(&vectors.elements);
        vectors.scales.iter().for_each(check_slice);
    }
    let before = fs_err::read(path).expect("it was read");
    cache.write(path).expect("what was read can be written");
    assert_eq!(fs_err::read(path).expect("it was written"), before);
    // Values that are not finite are found in the logits.
    if let Ok(mut restored) = engine.restore(cache, taken, 0) {
        assert_eq!(restored.tokens(), taken);
        let _ = engine.forward(&mut restored, &[1, 2], Logits::Last);
    }
}

/// One layer with two key/value heads of six elements.
fn engine(kv_type: KvType) -> &'static Engine {
    static ENGINES: [OnceLock<Engine>; 3] = [const { OnceLock::new() }; 3];
    ENGINES[kv_type as usize].get_or_init(|| {
        let config = json!({
            "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "head_dim": HEAD_DIM,
            "num_attention_heads": 4, "num_key_value_heads": KV_HEADS, "intermediate_size": 10, "max_position_embeddings": 16,
        });
        let architecture = Family::read(&config, Path::new("config.json")).expect("a sound configuration");
        let options = Options { threads: Some(1), kv_type, ..Options::default() };
        Engine::from_weights(&Weights::random(architecture, 5), options).expect("a small model")
    })
}

impl Forged<'_> {
    /// `None` where it would be large.
    fn cache(&self, computed: Computation) -> Option<PromptCache> {
        if self.layers.len() > 4 || self.tokens.len() > 64 {
            return None;
        }
        let own = [KV_HEADS, self.tokens.len(), HEAD_DIM];
        let vectors = |(elements, scales): &(Slice, Option<Slice>)| {
            let scales = match scales {
                Some(scales) => Some(scales.slice(Dtype::F32, &own[..2], self.values)?),
                None => None,
            };
            Some(CachedVectors { elements: elements.slice(computed.kv_type, &own, self.values)?, scales })
        };
        let layers: Option<Vec<CachedLayer>> = self
            .layers
            .iter()
            .map(|[keys, values]| Some(CachedLayer { keys: vectors(keys)?, values: vectors(values)? }))
            .collect();
        Some(PromptCache { layers: layers?, tokens: self.tokens.clone(), computed })
    }
}

impl Slice {
    fn slice(&self, dtype: Dtype, shape: &[usize], values: &[u8]) -> Option<TensorSlice> {
        let dtype = self.dtype.map_or(dtype, |dtype| DTYPES[usize::from(dtype) % DTYPES.len()]);
        let shape = match &self.shape {
            Some(shape) => shape.iter().map(|size| usize::from(*size)).collect(),
            None => shape.to_vec(),
        };
        let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
        if elements > MOST_ELEMENTS {
            return None;
        }
        let values = if values.is_empty() { &[0] } else { values };
        let bytes: Vec<u8> = values.iter().copied().cycle().take(elements * dtype.bytes()).collect();
        Some(TensorSlice { dtype, shape, bytes: bytes.into() })
    }
}
