//! One hash over named parts: what a model or a file holds, wherever it lies.

use alloc::collections::BTreeMap;

use crate::TensorSlice;

/// BLAKE3 over parts; no part can stand for the end of one and the start of the next.
#[derive(Default)]
pub(crate) struct ContentHash(blake3::Hasher);

impl ContentHash {
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update_rayon(part);
        }
    }

    /// Texts with their names, in the order of the names.
    pub(crate) fn add_texts(&mut self, texts: &BTreeMap<String, String>) {
        texts.iter().for_each(|(name, text)| self.add(name, text.as_bytes()));
    }

    pub(crate) fn add_tensor(&mut self, name: &str, TensorSlice { dtype, shape, bytes }: &TensorSlice) {
        self.add(&format!("{name} {dtype} {shape:?}"), bytes);
    }

    /// 64 hexadecimal digits.
    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}
