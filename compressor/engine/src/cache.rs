//! Keys and values of the tokens that a sequence has so far.

/// Keys and values of one sequence, layer by layer; made by [`crate::Engine::cache`].
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) tokens: usize,
}

/// Keys, already rotated, and values of one layer, each `[tokens, kv_heads · head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    pub(crate) width: usize,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// A cache grows by itself; a caller's "no limit" must not reserve memory.
const LARGEST_RESERVATION: usize = 4096;

impl Cache {
    /// No tokens; `widths` are the elements of a key in each layer.
    pub(crate) fn new(widths: impl Iterator<Item = usize>, capacity: usize) -> Self {
        let capacity = capacity.min(LARGEST_RESERVATION);
        let layer = |width| LayerCache {
            width,
            keys: Vec::with_capacity(capacity * width),
            values: Vec::with_capacity(capacity * width),
        };
        Self { layers: widths.map(layer).collect(), tokens: 0 }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets every token after the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        for layer in &mut self.layers {
            layer.keys.truncate(self.tokens * layer.width);
            layer.values.truncate(self.tokens * layer.width);
        }
    }

    /// Bytes that the keys and values have room for.
    pub fn memory_bytes(&self) -> usize {
        self.layers.iter().map(|layer| (layer.keys.capacity() + layer.values.capacity()) * size_of::<f32>()).sum()
    }
}
