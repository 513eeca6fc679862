//! Keys and values of the tokens that a sequence has so far.

use alloc::vec;
use alloc::vec::Vec;

use crate::half::f32_to_f16;
use crate::kernels::LANES;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As they were computed.
    #[default]
    F32,
    /// IEEE 754 halves: half the memory. What lies beyond 65504 becomes infinite, and the logits are refused.
    F16,
    /// Bytes with one scale for each key and each value of a head: a quarter of the memory and a little.
    Int8,
}

/// Keys and values of one sequence, layer by layer; made by [`crate::Engine::cache`].
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) tokens: usize,
}

/// Keys, already rotated, and values of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens that there is room for: a multiple of [`LANES`].
    capacity: usize,
    /// `[kv_heads, capacity / LANES, head_dim, LANES]`: sixteen positions side by side, as a product with queries reads them.
    keys: Stored,
    /// `[kv_heads, capacity, value_width]`, each value padded with zeros to whole vectors.
    values: Stored,
}

#[derive(Clone, Debug)]
enum Stored {
    F32(Vec<f32>),
    F16(Vec<u16>),
    /// Integers, and scales `[kv_heads, capacity]`.
    Int8(Vec<i8>, Vec<f32>),
}

/// One of the two things that a layer keeps of a token.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Keys,
    Values,
}

/// Keys and values of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) head_dim: usize,
    pub(crate) value_width: usize,
    pub(crate) keys: HeadBlocks<'a>,
    pub(crate) values: HeadBlocks<'a>,
}

/// Blocks of sixteen positions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeadBlocks<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    /// Integers and the scale of each position.
    Int8(&'a [i8], &'a [f32]),
}

/// A cache grows by itself; a caller's "no limit" must not take memory.
const LARGEST_RESERVATION: usize = 4096;

impl Cache {
    /// No tokens, and room for `capacity`; `shapes` are key/value heads and their dimension in each layer.
    pub(crate) fn new(shapes: impl Iterator<Item = (usize, usize)>, capacity: usize, kv_type: KvType) -> Self {
        let capacity = capacity.min(LARGEST_RESERVATION).next_multiple_of(LANES);
        let layer = |(kv_heads, head_dim)| LayerCache::new(kv_heads, head_dim, capacity, kv_type);
        Self { layers: shapes.map(layer).collect(), tokens: 0 }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets every token after the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    /// Bytes that the keys and values have room for.
    pub fn memory_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
    }
}

impl LayerCache {
    pub(crate) fn new(kv_heads: usize, head_dim: usize, capacity: usize, kv_type: KvType) -> Self {
        let stored = |width: usize| Stored::zeros(kv_type, kv_heads * capacity * width, kv_heads * capacity);
        let (keys, values) = (stored(head_dim), stored(head_dim.next_multiple_of(LANES)));
        Self { kv_heads, head_dim, capacity, keys, values }
    }

    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Bytes of the keys and values of `tokens`.
    pub(crate) fn bytes_of(&self, tokens: usize) -> usize {
        (self.keys.bytes() + self.values.bytes()) * tokens / self.capacity.max(1)
    }

    /// Makes room for `tokens` in all, of which `kept` are there.
    pub(crate) fn reserve(&mut self, tokens: usize, kept: usize) {
        if tokens <= self.capacity {
            return;
        }
        let capacity = tokens.max(2 * self.capacity).next_multiple_of(LANES);
        let kept = kept.next_multiple_of(LANES);
        let (key, value) = (self.head_dim, self.value_width());
        for (stored, width) in [(&mut self.keys, key), (&mut self.values, value)] {
            stored.grow(self.kv_heads, width, self.capacity, capacity, kept);
        }
        self.capacity = capacity;
    }

    /// Writes key and value, `[kv_heads, head_dim]` each, of the token at `position`.
    pub(crate) fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let (head_dim, width, capacity) = (self.head_dim, self.value_width(), self.capacity);
        for (head, (key, value)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
            let at = head * capacity + position;
            let block = (at / LANES * head_dim) * LANES + at % LANES;
            self.keys.write(key, |dim| block + dim * LANES, at);
            self.values.write(value, |dim| at * width + dim, at);
        }
    }

    #[cfg(feature = "std")]
    pub(crate) fn kv_type(&self) -> KvType {
        match &self.keys {
            Stored::F32(_) => KvType::F32,
            Stored::F16(_) => KvType::F16,
            Stored::Int8(..) => KvType::Int8,
        }
    }

    /// Keys or values of the first `tokens`, little endian, `[kv_heads, tokens, head_dim]`.
    #[cfg(feature = "std")]
    pub(crate) fn elements(&self, kept: Kept, tokens: usize) -> Vec<u8> {
        let places = self.places(kept, tokens);
        match self.stored(kept) {
            Stored::F32(values) => places.flat_map(|place| values[place].to_le_bytes()).collect(),
            Stored::F16(values) => places.flat_map(|place| values[place].to_le_bytes()).collect(),
            Stored::Int8(integers, _) => places.map(|place| integers[place] as u8).collect(),
        }
    }

    /// The scales of integers, little endian, `[kv_heads, tokens]`.
    #[cfg(feature = "std")]
    pub(crate) fn scales(&self, kept: Kept, tokens: usize) -> Option<Vec<u8>> {
        match self.stored(kept) {
            Stored::F32(_) | Stored::F16(_) => None,
            Stored::Int8(_, scales) => {
                let heads = scales.chunks_exact(self.capacity.max(1));
                Some(heads.flat_map(|head| &head[..tokens]).flat_map(|scale| scale.to_le_bytes()).collect())
            }
        }
    }

    /// Takes the first `tokens`, which there is room for, out of `stored` ones, laid out as [`Self::elements`] and [`Self::scales`]
    /// give them.
    #[cfg(feature = "std")]
    pub(crate) fn fill(&mut self, kept: Kept, tokens: usize, stored: usize, elements: &[u8], scales: &[u8]) {
        let (heads, head_dim, capacity) = (self.kv_heads, self.head_dim, self.capacity);
        let places: Vec<usize> = self.places(kept, tokens).collect();
        let from = (0..heads).flat_map(|head| (head * stored * head_dim..).take(tokens * head_dim));
        let pairs = places.into_iter().zip(from);
        let own = match kept {
            Kept::Keys => &mut self.keys,
            Kept::Values => &mut self.values,
        };
        match own {
            Stored::F32(values) => {
                let elements = elements.as_chunks().0;
                pairs.for_each(|(place, from)| values[place] = f32::from_le_bytes(elements[from]));
            }
            Stored::F16(values) => {
                let elements = elements.as_chunks().0;
                pairs.for_each(|(place, from)| values[place] = u16::from_le_bytes(elements[from]));
            }
            Stored::Int8(integers, own_scales) => {
                pairs.for_each(|(place, from)| integers[place] = elements[from] as i8);
                for (own, scales) in
                    own_scales.chunks_exact_mut(capacity.max(1)).zip(scales.as_chunks().0.chunks_exact(stored.max(1)))
                {
                    own.iter_mut().zip(&scales[..tokens]).for_each(|(own, scale)| *own = f32::from_le_bytes(*scale));
                }
            }
        }
    }

    /// Where the elements of the first `tokens` lie, head by head, token by token.
    #[cfg(feature = "std")]
    fn places(&self, kept: Kept, tokens: usize) -> impl Iterator<Item = usize> {
        let (head_dim, width, capacity) = (self.head_dim, self.value_width(), self.capacity);
        let positions = (0..self.kv_heads).flat_map(move |head| (head * capacity..).take(tokens));
        positions.flat_map(move |at| {
            (0..head_dim).map(move |dim| match kept {
                Kept::Keys => (at / LANES * head_dim + dim) * LANES + at % LANES,
                Kept::Values => at * width + dim,
            })
        })
    }

    #[cfg(feature = "std")]
    fn stored(&self, kept: Kept) -> &Stored {
        match kept {
            Kept::Keys => &self.keys,
            Kept::Values => &self.values,
        }
    }

    /// One head, with all positions there is room for.
    pub(crate) fn head(&self, head: usize) -> Head<'_> {
        let positions = head * self.capacity..(head + 1) * self.capacity;
        Head {
            head_dim: self.head_dim,
            value_width: self.value_width(),
            keys: self.keys.range(self.head_dim, positions.clone()),
            values: self.values.range(self.value_width(), positions),
        }
    }
}

impl Stored {
    fn zeros(kv_type: KvType, elements: usize, positions: usize) -> Self {
        match kv_type {
            KvType::F32 => Self::F32(vec![0.0; elements]),
            KvType::F16 => Self::F16(vec![0; elements]),
            KvType::Int8 => Self::Int8(vec![0; elements], vec![0.0; positions]),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
            Self::Int8(integers, scales) => integers.len() + size_of_val(scales.as_slice()),
        }
    }

    /// From room for `old` positions to room for `new`, keeping the first `kept` of each head.
    fn grow(&mut self, heads: usize, width: usize, old: usize, new: usize, kept: usize) {
        match self {
            Self::F32(values) => spread(values, heads, width * old, width * new, width * kept),
            Self::F16(values) => spread(values, heads, width * old, width * new, width * kept),
            Self::Int8(integers, scales) => {
                spread(integers, heads, width * old, width * new, width * kept);
                spread(scales, heads, old, new, kept);
            }
        }
    }

    /// Writes a vector whose element `dim` belongs at `place(dim)`, and its scale at `position`.
    fn write(&mut self, x: &[f32], place: impl Fn(usize) -> usize, position: usize) {
        match self {
            Self::F32(values) => x.iter().enumerate().for_each(|(dim, x)| values[place(dim)] = *x),
            Self::F16(values) => x.iter().enumerate().for_each(|(dim, x)| values[place(dim)] = f32_to_f16(*x)),
            Self::Int8(integers, scales) => {
                let largest = x.iter().fold(0.0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
                // What is not finite stays so, through the scale.
                let damage: f32 = x.iter().map(|x| x * 0.0).sum();
                scales[position] = largest / 127.0 + damage;
                let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                for (dim, x) in x.iter().enumerate() {
                    integers[place(dim)] = libm::rintf(x * factor) as i8;
                }
            }
        }
    }

    fn range(&self, width: usize, positions: core::ops::Range<usize>) -> HeadBlocks<'_> {
        let elements = positions.start * width..positions.end * width;
        match self {
            Self::F32(values) => HeadBlocks::F32(&values[elements]),
            Self::F16(values) => HeadBlocks::F16(&values[elements]),
            Self::Int8(integers, scales) => HeadBlocks::Int8(&integers[elements], &scales[positions]),
        }
    }
}

/// Gives each of `heads` parts room for `new` elements instead of `old`, keeping their first `kept`.
fn spread<T: Copy + Default>(values: &mut Vec<T>, heads: usize, old: usize, new: usize, kept: usize) {
    let mut wider = vec![T::default(); heads * new];
    if old > 0 {
        for (from, to) in values.chunks_exact(old).zip(wider.chunks_exact_mut(new)) {
            to[..kept].copy_from_slice(&from[..kept]);
        }
    }
    *values = wider;
}
