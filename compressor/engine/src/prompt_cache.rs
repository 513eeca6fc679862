//! A cache as a file keeps it: see [`PromptCache`].

use compressor_format::{CachedLayer, CachedVectors, Computation, Dtype, Model, PromptCache, TensorSlice};

use crate::cache::{Cache, Kept, KvType};
use crate::engine::{ActivationType, Engine, Options};
use crate::{Error, Result};

/// Raised when the same model, options and tokens give other keys and values than before: what is stored is not used then.
const VERSION: u32 = 1;

/// What the keys and values of a run with these options depend on, last bits apart. Reads all weights: [`Model::content_hash`].
pub fn computation(model: &Model, options: Options) -> Computation {
    let activations = match options.activations {
        ActivationType::Int8 => Dtype::I8,
        ActivationType::F32 => Dtype::F32,
    };
    Computation { model: model.content_hash(), kv_type: dtype(options.kv_type), activations, engine: VERSION }
}

fn dtype(kv_type: KvType) -> Dtype {
    match kv_type {
        KvType::F32 => Dtype::F32,
        KvType::F16 => Dtype::F16,
        KvType::Int8 => Dtype::I8,
    }
}

impl Engine {
    /// A cache that has the first `tokens` of a stored prompt, with room for `capacity`.
    ///
    /// # Errors
    /// [`Error::Stored`] where the prompt has fewer, and where its layers are not this model's.
    pub fn restore(&self, stored: &PromptCache, tokens: usize, capacity: usize) -> Result<Cache> {
        let found = stored.tokens.len();
        if tokens > found {
            return Err(Error::Stored { what: format!("it has {found} tokens, asked for are {tokens}") });
        }
        let mut cache = self.cache(capacity.max(tokens));
        if stored.layers.len() != cache.layers.len() {
            let what = format!("it has {} layers, the model {}", stored.layers.len(), cache.layers.len());
            return Err(Error::Stored { what });
        }
        for (index, (layer, stored)) in cache.layers.iter_mut().zip(&stored.layers).enumerate() {
            layer.reserve(tokens, 0);
            let vectors_shape = [layer.kv_heads, found, layer.head_dim];
            for (kept, vectors) in [(Kept::Keys, &stored.keys), (Kept::Values, &stored.values)] {
                check(index, &vectors.elements, dtype(self.kv_type), &vectors_shape)?;
                let scales: &[u8] = match (self.kv_type, &vectors.scales) {
                    (KvType::F32 | KvType::F16, _) => &[],
                    (KvType::Int8, Some(scales)) => {
                        check(index, scales, Dtype::F32, &vectors_shape[..2])?;
                        &scales.bytes
                    }
                    (KvType::Int8, None) => return Err(Error::Stored { what: format!("layer {index} has no scales") }),
                };
                layer.fill(kept, tokens, found, &vectors.elements.bytes, scales);
            }
        }
        cache.tokens = tokens;
        Ok(cache)
    }
}

impl Cache {
    /// The keys and values of `tokens`, its first ones, to be written to a file.
    ///
    /// # Panics
    /// Where it has fewer tokens.
    pub fn store(&self, tokens: &[u32], computed: Computation) -> PromptCache {
        assert!(tokens.len() <= self.tokens, "{} tokens of a cache that has {}", tokens.len(), self.tokens);
        let layers = self.layers.iter().map(|layer| {
            let slice =
                |dtype, shape: &[usize], bytes: Vec<u8>| TensorSlice { dtype, shape: shape.to_vec(), bytes: bytes.into() };
            let shape = [layer.kv_heads, tokens.len(), layer.head_dim];
            let vectors = |kept| CachedVectors {
                elements: slice(dtype(layer.kv_type()), &shape, layer.elements(kept, tokens.len())),
                scales: layer.scales(kept, tokens.len()).map(|scales| slice(Dtype::F32, &shape[..2], scales)),
            };
            CachedLayer { keys: vectors(Kept::Keys), values: vectors(Kept::Values) }
        });
        PromptCache { computed, tokens: tokens.to_vec(), layers: layers.collect() }
    }
}

fn check(layer: usize, slice: &TensorSlice, dtype: Dtype, shape: &[usize]) -> Result<()> {
    if slice.dtype == dtype && slice.shape == shape {
        return Ok(());
    }
    let what = format!("layer {layer} has {} of {:?}, the model {dtype} of {shape:?}", slice.dtype, slice.shape);
    Err(Error::Stored { what })
}
