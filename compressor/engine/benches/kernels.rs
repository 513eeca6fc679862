//! Products of packed integers with activations, by instruction set: `cargo bench --locked -p compressor-engine`.
//!
//! The sizes are those of SmolLM2-135M: gate and down projections, with one token (generating) and with 256 (a prompt).

use compressor_engine::{ActivationType, Kernels, Product};
use compressor_format::Scheme;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const INT4: Scheme = Scheme { bits: 4, group_size: Some(32), symmetric: true };
const INT8: Scheme = Scheme { bits: 8, group_size: None, symmetric: true };

fn kernels() -> Vec<String> {
    Kernels::available().into_iter().map(|kernels| kernels.name().to_owned()).collect()
}

/// Counts multiplications with additions.
fn product(bencher: Bencher<'_, '_>, name: &str, scheme: Scheme, shape: (usize, usize), tokens: usize, with: ActivationType) {
    let kernels = Kernels::available().into_iter().find(|kernels| kernels.name() == name);
    let kernels = kernels.expect("one of those that `kernels` listed");
    let mut product = Product::new(scheme, shape, tokens, kernels, with).expect("one thread");
    bencher.counter(ItemsCount::new(shape.0 * shape.1 * tokens)).bench_local(|| black_box(product.run()[0]));
}

const GATE: (usize, usize) = (1536, 576);
const DOWN: (usize, usize) = (576, 1536);

#[divan::bench(args = kernels())]
fn int4_gate_one_token(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT4, GATE, 1, ActivationType::Int8);
}

#[divan::bench(args = kernels())]
fn int4_gate_prompt(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT4, GATE, 256, ActivationType::Int8);
}

#[divan::bench(args = kernels())]
fn int4_down_prompt(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT4, DOWN, 256, ActivationType::Int8);
}

#[divan::bench(args = kernels())]
fn int8_gate_one_token(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT8, GATE, 1, ActivationType::Int8);
}

#[divan::bench(args = kernels())]
fn int8_gate_prompt(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT8, GATE, 256, ActivationType::Int8);
}

#[divan::bench(args = kernels())]
fn int4_gate_one_token_f32_activations(bencher: Bencher<'_, '_>, name: &str) {
    product(bencher, name, INT4, GATE, 1, ActivationType::F32);
}
