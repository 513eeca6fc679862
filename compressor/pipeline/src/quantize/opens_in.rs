//! Which programs open an artifact. Tried with Transformers 5.17 and compressed-tensors 0.19, every family and scheme: what opens there
//! has the logits of the dequantized weights, bit for bit. vLLM by its documentation.

use std::collections::BTreeMap;

use compressor_format::{Architecture, Family, LayerTensor, Levels, OpensIn, StoredTensor, TensorId};

use super::Quantization;
use super::sizes::quantized;

/// Group sizes that vLLM's weight-only kernels are compiled for.
const VLLM_GROUPS: [usize; 3] = [32, 64, 128];

/// Bits that they are compiled for.
const VLLM_BITS: [u8; 2] = [4, 8];

/// Which programs open the artifact that `quantization` makes of `architecture`, and why.
pub fn opens_in(quantization: &Quantization, architecture: &Architecture) -> Vec<OpensIn> {
    let shared = obstacle(quantization, architecture);
    let vllm = shared.clone().or_else(|| vllm_obstacle(quantization, architecture));
    vec![
        one("compressor", None, "its own engine"),
        one("transformers", shared, "through the compressed-tensors package: every quantized tensor is a Linear's weight"),
        one("vllm", vllm, "by its documentation of compressed-tensors; not tried"),
    ]
}

/// Which programs open a folder with dense weights, and why.
pub fn opens_in_as_folder(architecture: &Architecture) -> Vec<OpensIn> {
    let shared = sizes_that_no_config_says(architecture);
    vec![
        one("compressor", None, "its own engine"),
        one("transformers", shared.clone(), "config.json, safetensors and tokenizer.json are its own formats"),
        one("vllm", shared, "by its documentation; not tried"),
    ]
}

/// Which programs open a GGUF file that this one opens, and why.
pub fn opens_in_as_gguf() -> Vec<OpensIn> {
    vec![one("compressor", None, "its own engine"), one("llama.cpp", None, "GGUF is its own format; this file was not tried")]
}

fn one(program: &str, obstacle: Option<String>, reason: &str) -> OpensIn {
    OpensIn { program: program.to_owned(), opens: obstacle.is_none(), reason: obstacle.unwrap_or_else(|| reason.to_owned()) }
}

/// What keeps vLLM alone from an artifact.
fn vllm_obstacle(quantization: &Quantization, architecture: &Architecture) -> Option<String> {
    use LayerTensor::{Gate, Key, Query, Up, Value};
    // It puts these into one matrix each, with one scheme: what the first of each has.
    let mut fused: BTreeMap<(usize, bool), (String, Option<Levels>)> = BTreeMap::new();
    for stored in Family::stored(architecture) {
        let levels = quantized(quantization, architecture, &stored).map(|(_, levels)| levels);
        if let Some(Levels::Grid(scheme)) = levels {
            if let Some(size) = scheme.group_size.filter(|size| !VLLM_GROUPS.contains(size)) {
                return Some(format!("its kernels know groups of 32, 64 and 128, not of {size}"));
            }
            if !VLLM_BITS.contains(&scheme.bits) {
                return Some(format!("its kernels know 4 and 8 bits, not {}", scheme.bits));
            }
        }
        if let TensorId::Layer(layer, tensor @ (Query(_) | Key(_) | Value(_) | Gate(_) | Up(_))) = stored.parts[0]
            && stored.parts[0].is_projection()
        {
            let key = (layer, matches!(tensor, Gate(_) | Up(_)));
            let (first, of_first) = fused.entry(key).or_insert_with(|| (stored.name.clone(), levels));
            if levels != *of_first {
                return Some(format!("it puts `{first}` and `{}` into one matrix, and their schemes differ", stored.name));
            }
        }
    }
    None
}

/// What keeps every reader of compressed-tensors from an artifact.
fn obstacle(quantization: &Quantization, architecture: &Architecture) -> Option<String> {
    if let Some(reason) = sizes_that_no_config_says(architecture) {
        return Some(reason);
    }
    if architecture.family == Family::Gpt2 {
        // Transformers says so in a warning only, and computes with random numbers.
        let reason =
            "GPT-2's projections are Conv1D modules, and compressed-tensors reads Linear modules only: they would be random";
        return Some(reason.to_owned());
    }
    let levels = |stored: StoredTensor| quantized(quantization, architecture, &stored).map(|(_, levels)| levels);
    if Family::stored(architecture).into_iter().filter_map(levels).any(|levels| matches!(levels, Levels::Codebooks(_))) {
        return Some("codebooks are no layout of compressed-tensors, which refuses them".to_owned());
    }
    let is_end = |stored: &StoredTensor| matches!(stored.parts[0], TensorId::Embedding | TensorId::Head);
    let ends = Family::stored(architecture).into_iter().filter(is_end);
    let bits = ends.filter_map(levels).find_map(|levels| match levels {
        Levels::Grid(scheme) => Some(scheme.bits),
        Levels::Codebooks(_) => None,
    })?;
    Some(format!("it can't reload a quantized embedding, and this one is INT{bits}: embedding = \"dense\" opens there"))
}

/// Numbers of heads that other programs' configurations refuse or can't hold, quantized or not.
fn sizes_that_no_config_says(architecture: &Architecture) -> Option<String> {
    let Architecture { hidden_size, head_dim, .. } = *architecture;
    let layer = *architecture.layers.first()?;
    let heads = layer.heads;
    match architecture.family {
        Family::Gpt2 if heads * head_dim != hidden_size => Some(format!(
            "its GPT-2 has no head_dim, and {heads} heads of {head_dim} do not make hidden_size {hidden_size}: keep every head"
        )),
        // A Mistral takes any number of heads.
        Family::Llama if !hidden_size.is_multiple_of(heads) && Family::written_as(architecture, layer) == Family::Llama => {
            Some(format!(
                "LlamaConfig refuses {heads} heads, which do not divide hidden_size {hidden_size}: keep a number that divides it"
            ))
        }
        _ => None,
    }
}
