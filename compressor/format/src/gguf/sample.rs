//! Small GGUF files for tests, written from the specification by code that shares nothing with the reader.

use std::path::Path;

use memmap2::MmapMut;

use super::GgufFile;
use crate::Result;

/// A GGUF file in the making. Values and tensors keep their order; tensors lie on multiples of 32.
#[derive(Clone)]
pub(super) struct Sample {
    version: u32,
    values: Vec<Vec<u8>>,
    table: Vec<(Vec<u8>, u64)>,
    tensors: Vec<u8>,
}

/// Reads bytes as the file `sample.gguf`, which need not exist.
pub(super) fn read(bytes: &[u8]) -> Result<GgufFile> {
    // A map of no bytes can't be made, one byte with an empty view can.
    let mut map = MmapMut::map_anon(bytes.len().max(1)).expect("memory for a few bytes");
    map[..bytes.len()].copy_from_slice(bytes);
    let map = map.make_read_only().expect("an anonymous map can be protected");
    let file = crate::MappedBytes::from(std::sync::Arc::new(map));
    GgufFile::read(Path::new("sample.gguf"), &file.slice(0..bytes.len()).expect("the map is that long"))
}

fn string(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

impl Default for Sample {
    fn default() -> Self {
        Self { version: 3, values: Vec::new(), table: Vec::new(), tensors: Vec::new() }
    }
}

impl Sample {
    pub(super) fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub(super) fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.values.push([string(key), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat());
        self
    }

    /// Replaces the value of `key`, or takes it away.
    pub(super) fn without(mut self, key: &str) -> Self {
        let before = self.values.len();
        self.values.retain(|value| !value.starts_with(&string(key)));
        assert_eq!(self.values.len(), before - 1, "`{key}` was there");
        self
    }

    pub(super) fn text(self, key: &str, text: &str) -> Self {
        self.value(key, 8, &string(text))
    }

    pub(super) fn u32(self, key: &str, number: u32) -> Self {
        self.value(key, 4, &number.to_le_bytes())
    }

    pub(super) fn f32(self, key: &str, number: f32) -> Self {
        self.value(key, 6, &number.to_le_bytes())
    }

    pub(super) fn flag(self, key: &str, flag: bool) -> Self {
        self.value(key, 7, &[flag.into()])
    }

    fn list(self, key: &str, kind: u32, items: impl ExactSizeIterator<Item = Vec<u8>>) -> Self {
        let head = [kind.to_le_bytes().to_vec(), (items.len() as u64).to_le_bytes().to_vec()].concat();
        let bytes = items.fold(head, |bytes, item| [bytes, item].concat());
        self.value(key, 9, &bytes)
    }

    pub(super) fn texts(self, key: &str, items: &[&str]) -> Self {
        self.list(key, 8, items.iter().map(|item| string(item)))
    }

    pub(super) fn floats(self, key: &str, items: &[f32]) -> Self {
        self.list(key, 6, items.iter().map(|item| item.to_le_bytes().to_vec()))
    }

    pub(super) fn integers(self, key: &str, items: &[i32]) -> Self {
        self.list(key, 5, items.iter().map(|item| item.to_le_bytes().to_vec()))
    }

    /// `sizes` as GGUF writes them, innermost first.
    pub(super) fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, bytes: &[u8]) -> Self {
        let mut entry = [string(name), (sizes.len() as u32).to_le_bytes().to_vec()].concat();
        sizes.iter().for_each(|size| entry.extend(size.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        self.tensors.resize(self.tensors.len().next_multiple_of(32), 0);
        self.table.push((entry, self.tensors.len() as u64));
        self.tensors.extend(bytes);
        self
    }

    /// An F32 tensor of the values 0, 1, 2, …; `shape` outermost first.
    pub(super) fn counting(self, name: &str, shape: &[u64]) -> Self {
        let sizes: Vec<u64> = shape.iter().rev().copied().collect();
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|value: u64| (value as f32).to_le_bytes()).collect();
        self.tensor(name, &sizes, 0, &bytes)
    }

    /// Another offset for the last tensor.
    pub(super) fn offset(mut self, offset: u64) -> Self {
        self.table.last_mut().expect("a tensor to move").1 = offset;
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [b"GGUF".to_vec(), self.version.to_le_bytes().to_vec()].concat();
        bytes.extend((self.table.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        self.values.iter().for_each(|value| bytes.extend(value));
        for (entry, offset) in &self.table {
            bytes.extend(entry);
            bytes.extend(offset.to_le_bytes());
        }
        if !self.table.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.tensors);
        }
        bytes
    }

    /// A Llama of one layer: hidden 8, 2 heads of 4, 1 key/value head, 12 intermediate channels, 5 tokens.
    pub(super) fn llama() -> Self {
        Self::default()
            .text("general.architecture", "llama")
            .u32("llama.block_count", 1)
            .u32("llama.context_length", 64)
            .u32("llama.embedding_length", 8)
            .u32("llama.feed_forward_length", 12)
            .u32("llama.attention.head_count", 2)
            .u32("llama.attention.head_count_kv", 1)
            .u32("llama.rope.dimension_count", 4)
            .f32("llama.rope.freq_base", 10_000.0)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .u32("tokenizer.ggml.padding_token_id", u32::MAX)
            .counting("token_embd.weight", &[5, 8])
            .counting("blk.0.attn_q.weight", &[8, 8])
            .counting("blk.0.attn_k.weight", &[4, 8])
            .counting("blk.0.attn_v.weight", &[4, 8])
    }

    /// A GPT-2 of one layer: hidden 4, 2 heads, 16 intermediate channels, 5 tokens, 6 positions.
    pub(super) fn gpt2() -> Self {
        Self::default()
            .text("general.architecture", "gpt2")
            .u32("gpt2.block_count", 1)
            .u32("gpt2.context_length", 6)
            .u32("gpt2.embedding_length", 4)
            .u32("gpt2.feed_forward_length", 16)
            .u32("gpt2.attention.head_count", 2)
            .f32("gpt2.attention.layer_norm_epsilon", 1e-5)
            .counting("token_embd.weight", &[5, 4])
            .counting("position_embd.weight", &[6, 4])
            .counting("blk.0.attn_qkv.weight", &[12, 4])
            .counting("blk.0.attn_qkv.bias", &[12])
    }

    /// A SentencePiece vocabulary without weights: `▁ab` grows from its letters.
    pub(super) fn sentencepiece() -> Self {
        Self::default()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "▁a", "ab", "▁ab", "▁", "a", "b", "<|user|>"])
            .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -2.0, -1.0, -3.0, -4.0, -5.0, -6.0, 0.0])
            .integers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1, 1, 4])
            .u32("tokenizer.ggml.bos_token_id", 1)
    }

    /// A byte-level vocabulary without weights: the 256 bytes, then the merges' results.
    pub(super) fn byte_level(pre: &str, merges: &[&str]) -> Self {
        let mut alphabet: Vec<String> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().iter().map(char::to_string).collect();
        alphabet.sort();
        let made: Vec<String> = merges.iter().map(|merge| merge.replace(' ', "")).collect();
        let tokens: Vec<&str> = ["<|endoftext|>"].into_iter().chain(alphabet.iter().chain(&made).map(String::as_str)).collect();
        let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect();
        Self::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &tokens)
            .integers("tokenizer.ggml.token_type", &kinds)
            .texts("tokenizer.ggml.merges", merges)
            .u32("tokenizer.ggml.eos_token_id", 0)
    }
}
