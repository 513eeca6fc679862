//! The head of a GGUF file: metadata, then a table of tensors.

use super::{ALIGNMENT, Planned};
use crate::gguf::MAGIC;
use crate::gguf::metadata::ValueKind;

/// Version 3 differs from 2 in naming a byte order, which is little-endian unless said.
const VERSION: u32 = 3;

/// Metadata in the making; values keep their order.
#[derive(Default)]
pub(super) struct Head {
    count: u64,
    values: Vec<u8>,
}

impl Head {
    pub(super) fn u32(&mut self, key: &str, number: u32) {
        self.key(key, ValueKind::U32);
        self.values.extend(number.to_le_bytes());
    }

    pub(super) fn f32(&mut self, key: &str, number: f32) {
        self.key(key, ValueKind::F32);
        self.values.extend(number.to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, flag: bool) {
        self.key(key, ValueKind::Bool);
        self.values.push(flag.into());
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.key(key, ValueKind::Text);
        append_text(&mut self.values, text);
    }

    pub(super) fn texts(&mut self, key: &str, items: &[String]) {
        self.list(key, ValueKind::Text, items.len());
        items.iter().for_each(|item| append_text(&mut self.values, item));
    }

    pub(super) fn integers(&mut self, key: &str, items: &[i32]) {
        self.list(key, ValueKind::I32, items.len());
        self.values.extend(items.iter().flat_map(|item| item.to_le_bytes()));
    }

    fn list(&mut self, key: &str, kind: ValueKind, count: usize) {
        self.key(key, ValueKind::List);
        self.values.extend((kind as u32).to_le_bytes());
        self.values.extend((count as u64).to_le_bytes());
    }

    fn key(&mut self, key: &str, kind: ValueKind) {
        self.count += 1;
        append_text(&mut self.values, key);
        self.values.extend((kind as u32).to_le_bytes());
    }

    /// The head with the table of `tensors`, which lie in their order, up to where the first one begins.
    pub(super) fn finish(self, tensors: &[Planned]) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend(self.count.to_le_bytes());
        head.extend(self.values);
        let mut offset = 0;
        for tensor in tensors {
            append_text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| head.extend((*size as u64).to_le_bytes()));
            head.extend(tensor.kind.id().to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += tensor.padded_bytes();
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        head
    }
}

fn append_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
