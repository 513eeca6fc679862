//! Tensors by Hugging Face's names, with the rows in Hugging Face's order.
//!
//! Two things differ beside the names. Llama files hold the rows of q and k with each rotary pair side by side, where Hugging Face
//! keeps the first halves of all pairs before the second halves. And GPT-2 files hold q, k and v as one tensor, as others do that
//! llama.cpp's converter was told to fuse.

use std::collections::HashSet;
use std::ops::Range;

use super::rotary::ROPE_FREQS;
use super::{GgufFile, GgufTensor, blocks};
use crate::{Architecture, Result};

/// Hugging Face's name within a layer, then GGUF's.
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name in GGUF of the tensor that Hugging Face's Llama calls `hf`; `None` where there is no such tensor.
///
/// GPT-2's tensors go by the same names: `model.embed_positions.weight`, `mlp.up_proj` for `c_fc`, and so on.
pub fn gguf_name(hf: &str) -> Option<String> {
    let fixed = match hf {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.embed_positions.weight" => Some("position_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "model.norm.bias" => Some("output_norm.bias"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = fixed {
        return Some(name.to_owned());
    }
    let (layer, part) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
    let (part, kind) = part.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let (_, part) = LAYER_PARTS.iter().find(|(name, _)| *name == part)?;
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// Where a tensor of Hugging Face's lies in the file.
enum Place<'a> {
    Stored(StoredRows<'a>),
    /// A bias that the file leaves out, `[rows]`: llama.cpp takes each bias where it is, so it stands for zeros.
    Zeros(usize),
}

/// Rows of a stored tensor; of a vector its elements.
struct StoredRows<'a> {
    tensor: &'a GgufTensor,
    rows: Range<usize>,
    /// How many heads have their rotary pairs side by side.
    interleaved_heads: Option<usize>,
}

impl GgufFile {
    /// The values of the tensor that Hugging Face's Llama calls `hf_name`, row-major in its orientation `[out, in]`.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) when there is no such tensor or its rows do not divide among the heads,
    /// [`Error::Unsupported`](crate::Error::Unsupported) for another architecture.
    pub fn canonical_f32(&self, hf_name: &str) -> Result<Vec<f32>> {
        let place = self.place(hf_name)?;
        let StoredRows { tensor, rows, interleaved_heads } = match place {
            Place::Stored(stored) => stored,
            Place::Zeros(rows) => return Ok(vec![0.0; rows]),
        };
        let (values, rows) = (dequantized(tensor, rows.clone()), rows.len());
        Ok(match interleaved_heads {
            Some(heads) => split_rotary_halves(&values, heads, rows),
            None => values,
        })
    }

    /// Some rows of such a matrix, `[rows, in]`.
    ///
    /// # Errors
    /// As [`GgufFile::canonical_f32`].
    ///
    /// # Panics
    /// Where the matrix has fewer rows.
    pub fn canonical_rows(&self, hf_name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        match self.place(hf_name)? {
            Place::Stored(StoredRows { tensor, rows: stored, interleaved_heads: None }) => {
                Ok(dequantized(tensor, stored.start + rows.start..stored.start + rows.end))
            }
            place => {
                let columns = place.shape().get(1).copied().unwrap_or(1);
                Ok(self.canonical_f32(hf_name)?[rows.start * columns..rows.end * columns].to_vec())
            }
        }
    }

    /// The shape of the tensor that Hugging Face's Llama calls `hf_name`, outermost first.
    ///
    /// # Errors
    /// As [`GgufFile::canonical_f32`].
    pub fn canonical_shape(&self, hf_name: &str) -> Result<Vec<usize>> {
        Ok(self.place(hf_name)?.shape())
    }

    /// True where one of these parts of a layer has a bias in any of the first `layers` ones.
    pub(super) fn has_bias(&self, layers: u64, parts: &[&str]) -> bool {
        self.tensors.keys().any(|name| {
            let Some((layer, rest)) = in_layer(name) else { return false };
            layer < layers && rest.strip_suffix(".bias").is_some_and(|part| parts.contains(&part))
        })
    }

    /// Refuses the first tensor that no part of `architecture` is read from: it would change what the model computes.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) with its name.
    pub(crate) fn refuse_unread(&self, architecture: &Architecture) -> Result<()> {
        let mut read = HashSet::new();
        for id in architecture.tensors() {
            if let Place::Stored(stored) = self.place(&id.to_string())? {
                read.insert(stored.tensor.name.as_str());
            }
        }
        let name = self.architecture()?;
        let has_divisors = name == "llama";
        let is_read = |name: &str| {
            read.contains(name)
                // `config` looked at both: a head is tied where it is the embedding again.
                || architecture.tied_embeddings && name == "output.weight"
                || has_divisors && name == ROPE_FREQS
        };
        let Some(unread) = self.tensors.keys().find(|name| !is_read(name)) else { return Ok(()) };
        let layers = architecture.layers.len();
        Err(self.unsupported(match in_layer(unread) {
            Some((layer, _)) if layer >= layers as u64 => {
                format!("tensor `{unread}` is of layer {layer}, counted from 0, and `{name}.block_count` is {layers}")
            }
            _ => format!("tensor `{unread}` is not understood, and without it the model might compute something else"),
        }))
    }

    fn place(&self, hf_name: &str) -> Result<Place<'_>> {
        let architecture = self.architecture()?;
        let name = gguf_name(hf_name).ok_or_else(|| self.malformed(format!("GGUF has no name for the tensor `{hf_name}`")))?;
        let projection = ["attn_q", "attn_k", "attn_v"].iter().position(|part| name.contains(&format!(".{part}.")));
        let missing = || self.malformed(format!("there is no tensor `{name}`, which is `{hf_name}` in Hugging Face's names"));
        let found = match (self.tensor(&name), projection) {
            (Some(tensor), _) => Some((tensor, 0..tensor.shape.first().copied().unwrap_or(1))),
            (None, Some(projection)) => self.fused(&name, projection)?,
            (None, None) => None,
        };
        let Some((tensor, rows)) = found else {
            let weight = name.strip_suffix(".bias").filter(|_| architecture != "gpt2").map(|stem| format!("{stem}.weight"));
            let Some(hf_weight) = weight.and_then(|_| hf_name.strip_suffix(".bias")).map(|stem| format!("{stem}.weight")) else {
                return Err(missing());
            };
            return Ok(Place::Zeros(self.place(&hf_weight)?.shape()[0]));
        };
        let interleaved_heads = match (architecture, projection) {
            ("llama", Some(projection @ (0 | 1))) => Some(self.heads_of(&tensor.name, projection, rows.len())?),
            _ => None,
        };
        Ok(Place::Stored(StoredRows { tensor, rows, interleaved_heads }))
    }

    /// The rows of q, k or v, the `projection`-th of the three, in the tensor that holds all of them; `None` where there is none.
    fn fused(&self, name: &str, projection: usize) -> Result<Option<(&GgufTensor, Range<usize>)>> {
        let (stem, kind) = name.rsplit_once('.').expect("`gguf_name` ends with `.weight` or `.bias`");
        let (layer, _) = stem.rsplit_once('.').expect("`gguf_name` begins with the layer");
        let Some(tensor) = self.tensor(&format!("{layer}.attn_qkv.{kind}")) else { return Ok(None) };
        let [heads, kv_heads] = self.heads()?;
        let all = kv_heads.checked_mul(2).and_then(|kv_heads| kv_heads.checked_add(heads)).filter(|all| *all > 0);
        let rows = tensor.shape.first().copied().unwrap_or(1);
        // Elements of a vector are its rows, and only types without blocks are cut between them.
        let is_cut = tensor.shape.len() > 1 || tensor.kind.block_elements() == 1;
        let Some(head_dim) = all.filter(|all| is_cut && rows % all == 0).map(|all| rows / all) else {
            return Err(
                self.malformed(format!("tensor `{}` has shape {:?}, whose rows are not q, k and v", tensor.name, tensor.shape))
            );
        };
        let bounds = [0, heads, heads + kv_heads, heads + 2 * kv_heads].map(|heads| heads * head_dim);
        Ok(Some((tensor, bounds[projection]..bounds[projection + 1])))
    }

    /// How many heads share `rows`, each with two halves; `projection` is 0 for q and 1 for k.
    fn heads_of(&self, stored: &str, projection: usize, rows: usize) -> Result<usize> {
        let heads = self.heads()?[projection];
        match heads.checked_mul(2).is_some_and(|halves| halves > 0 && rows.is_multiple_of(halves)) {
            true => Ok(heads),
            false => {
                let shape = &self.tensor(stored).expect("the caller found it").shape;
                Err(self.malformed(format!("tensor `{stored}` has shape {shape:?}, whose rows do not divide among the heads")))
            }
        }
    }

    /// Heads of the queries and of the keys and values; 0 where the file does not say.
    fn heads(&self) -> Result<[usize; 2]> {
        let architecture = self.architecture()?;
        let heads = self.unsigned(&format!("{architecture}.attention.head_count"))?;
        let kv_heads = self.unsigned(&format!("{architecture}.attention.head_count_kv"))?.or(heads);
        Ok([heads, kv_heads].map(|heads| heads.and_then(|heads| usize::try_from(heads).ok()).unwrap_or(0)))
    }
}

impl Place<'_> {
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Zeros(rows) => vec![*rows],
            Self::Stored(StoredRows { tensor, rows, .. }) => {
                let mut shape = tensor.shape.clone();
                if let Some(first) = shape.first_mut() {
                    *first = rows.len();
                }
                shape
            }
        }
    }
}

/// The layer of `blk.N.rest`, and the rest.
fn in_layer(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Some rows of a tensor, whole blocks each; of a vector all elements, or some where its type has no blocks.
fn dequantized(tensor: &GgufTensor, rows: Range<usize>) -> Vec<f32> {
    let columns: usize = tensor.shape.iter().skip(1).product();
    let elements = rows.start * columns..rows.end * columns;
    let bytes = [elements.start, elements.end].map(|at| at / tensor.kind.block_elements() * tensor.kind.block_bytes());
    let mut values = vec![0.0; elements.len()];
    blocks::dequantize(tensor.kind, &tensor.bytes[bytes[0]..bytes[1]], &mut values);
    values
}

/// Brings the rows of each head from pairs side by side (a0 b0 a1 b1 …) to halves (a0 a1 … b0 b1 …).
///
/// - `values`: `[rows, width]`, `rows` a multiple of `2 · heads`
fn split_rotary_halves(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let head_dim = rows / heads;
    let width = values.len() / rows;
    let mut split = Vec::with_capacity(values.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + pair * 2 + half;
                split.extend_from_slice(&values[row * width..][..width]);
            }
        }
    }
    split
}

/// Which of Hugging Face's rows is the `row`-th in a Llama file, where rotary pairs are side by side.
pub(super) fn row_in_halves(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::sample::{Sample, read};
    use super::*;

    #[test]
    fn names_follow_llama_cpp() {
        let expected = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.embed_positions.weight", "position_embd.weight"),
            ("model.norm.bias", "output_norm.bias"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.31.post_attention_layernorm.bias", "blk.31.ffn_norm.bias"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.12.self_attn.o_proj.weight", "blk.12.attn_output.weight"),
            ("model.layers.2.self_attn.k_norm.weight", "blk.2.attn_k_norm.weight"),
            ("model.layers.2.mlp.gate_proj.weight", "blk.2.ffn_gate.weight"),
            ("model.layers.2.mlp.down_proj.weight", "blk.2.ffn_down.weight"),
        ];
        for (hf, gguf) in expected {
            assert_eq!(gguf_name(hf).as_deref(), Some(gguf));
        }
        for unknown in [
            "model.layers.0.self_attn.q_proj",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.+1.mlp.up_proj.weight",
            "wte.weight",
        ] {
            assert_eq!(gguf_name(unknown), None);
        }
    }

    /// The first element of each row, divided by the row's width: the row's number in the file.
    fn rows(values: &[f32], width: usize) -> Vec<f32> {
        values.chunks(width).map(|row| row[0] / width as f32).collect()
    }

    #[test]
    fn llama_rows_of_q_and_k_go_back_to_rotary_halves() {
        let file = read(&Sample::llama().bytes()).unwrap();
        let q = file.canonical_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
        assert_eq!(rows(&q, 8), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0], "two heads of four rows");
        assert_eq!(q[8..16], [16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0], "rows stay whole");
        let k = file.canonical_f32("model.layers.0.self_attn.k_proj.weight").unwrap();
        assert_eq!(rows(&k, 8), [0.0, 2.0, 1.0, 3.0]);
        let v = file.canonical_f32("model.layers.0.self_attn.v_proj.weight").unwrap();
        assert_eq!(rows(&v, 8), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(file.canonical_shape("model.layers.0.self_attn.q_proj.weight").unwrap(), [8, 8]);
    }

    #[test]
    fn some_rows_are_those_of_the_whole() {
        let (llama, gpt2) = (read(&Sample::llama().bytes()).unwrap(), read(&Sample::gpt2().bytes()).unwrap());
        for (file, name) in [
            (&llama, "model.embed_tokens.weight"),
            (&llama, "model.layers.0.self_attn.q_proj.weight"),
            (&gpt2, "model.layers.0.self_attn.v_proj.weight"),
        ] {
            let (whole, columns) = (file.canonical_f32(name).unwrap(), file.canonical_shape(name).unwrap()[1]);
            assert_eq!(file.canonical_rows(name, 1..3).unwrap(), whole[columns..3 * columns], "{name}");
        }
    }

    #[test]
    fn gpt2_is_cut_into_q_k_and_v() {
        let file = read(&Sample::gpt2().bytes()).unwrap();
        let row_of = |part: &str| rows(&file.canonical_f32(&format!("model.layers.0.self_attn.{part}_proj.weight")).unwrap(), 4);
        assert_eq!(row_of("q"), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(row_of("k"), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(row_of("v"), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(file.canonical_f32("model.layers.0.self_attn.v_proj.bias").unwrap(), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(file.canonical_shape("model.layers.0.self_attn.k_proj.weight").unwrap(), [4, 4]);
        assert_eq!(file.canonical_shape("model.layers.0.self_attn.k_proj.bias").unwrap(), [4]);
    }

    #[test]
    fn fused_projections_are_cut_by_the_number_of_heads() {
        let fused = |sample: Sample, shape: &[u64], kind: &str| sample.counting(&format!("blk.0.attn_qkv.{kind}"), shape);
        let heads = || Sample::default().text("general.architecture", "llama").u32("llama.attention.head_count", 2);
        let sample = fused(heads().u32("llama.attention.head_count_kv", 1), &[16, 8], "weight");
        let file = read(&fused(sample, &[16], "bias").bytes()).unwrap();
        let row_of = |part: &str| rows(&file.canonical_f32(&format!("model.layers.0.self_attn.{part}_proj.weight")).unwrap(), 8);
        assert_eq!(row_of("q"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(row_of("k"), [8.0, 10.0, 9.0, 11.0]);
        assert_eq!(row_of("v"), [12.0, 13.0, 14.0, 15.0]);
        assert_eq!(file.canonical_f32("model.layers.0.self_attn.k_proj.bias").unwrap(), [8.0, 10.0, 9.0, 11.0]);
        let odd = read(&fused(heads(), &[16, 8], "weight").bytes()).unwrap();
        assert_eq!(
            odd.canonical_shape("model.layers.0.self_attn.v_proj.weight").unwrap_err().to_string(),
            "sample.gguf: tensor `blk.0.attn_qkv.weight` has shape [16, 8], whose rows are not q, k and v"
        );
    }

    #[test]
    fn a_bias_that_is_left_out_is_zeros() {
        let file = read(&Sample::llama().bytes()).unwrap();
        assert_eq!(file.canonical_f32("model.layers.0.self_attn.k_proj.bias").unwrap(), [0.0; 4]);
        assert_eq!(file.canonical_shape("model.layers.0.self_attn.q_proj.bias").unwrap(), [8]);
        let gpt2 = read(&Sample::gpt2().bytes()).unwrap().canonical_f32("model.layers.0.self_attn.o_proj.bias").unwrap_err();
        assert_eq!(
            gpt2.to_string(),
            "sample.gguf: there is no tensor `blk.0.attn_output.bias`, which is `model.layers.0.self_attn.o_proj.bias` in Hugging \
             Face's names"
        );
    }

    /// The rest of the layer of `Sample::llama`.
    fn whole_llama() -> Sample {
        Sample::llama()
            .counting("output_norm.weight", &[8])
            .counting("blk.0.attn_norm.weight", &[8])
            .counting("blk.0.attn_output.weight", &[8, 8])
            .counting("blk.0.ffn_norm.weight", &[8])
            .counting("blk.0.ffn_gate.weight", &[12, 8])
            .counting("blk.0.ffn_up.weight", &[12, 8])
            .counting("blk.0.ffn_down.weight", &[8, 12])
    }

    /// Opened from a file, as a model.
    fn opened(sample: Sample) -> Result<crate::Checkpoint> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.gguf");
        fs_err::write(&path, sample.bytes()).unwrap();
        crate::Checkpoint::open(&path)
    }

    #[test]
    fn every_tensor_is_read_or_refused_by_name() {
        assert!(opened(whole_llama()).is_ok());
        let biases =
            opened(whole_llama().counting("blk.0.attn_output.bias", &[8]).counting("blk.0.ffn_down.bias", &[8])).unwrap();
        let bias = |tensor: fn(crate::Part) -> crate::LayerTensor| crate::TensorId::Layer(0, tensor(crate::Part::Bias));
        assert_eq!(biases.tensor(bias(crate::LayerTensor::Output)).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(biases.tensor(bias(crate::LayerTensor::Query)).unwrap(), [0.0; 8]);
        assert_eq!(biases.tensor(bias(crate::LayerTensor::Up)).unwrap(), [0.0; 12]);
        assert!(opened(whole_llama().counting("output.weight", &[5, 8])).is_ok(), "the embedding again");
        assert!(
            opened(whole_llama().tensor("rope_freqs.weight", &[2], 0, &[1.0f32, 8.0].map(f32::to_le_bytes).concat())).is_ok()
        );

        let unread = [
            ("blk.0.attn_q.scale", "is not understood, and without it the model might compute something else"),
            ("blk.0.attn_q_norm.weight", "is not understood, and without it the model might compute something else"),
            ("blk.0.ffn_up.input_scale", "is not understood, and without it the model might compute something else"),
            ("output.bias", "is not understood, and without it the model might compute something else"),
            ("cls.output.weight", "is not understood, and without it the model might compute something else"),
            ("rope_factors_long.weight", "is not understood, and without it the model might compute something else"),
            ("blk.1.attn_q.weight", "is of layer 1, counted from 0, and `llama.block_count` is 1"),
            ("blk.9.attn_q.bias", "is of layer 9, counted from 0, and `llama.block_count` is 1"),
        ];
        for (name, expected) in unread {
            let refused = opened(whole_llama().counting(name, &[8])).unwrap_err().to_string();
            assert!(refused.ends_with(&format!("sample.gguf: tensor `{name}` {expected}")), "{refused}");
        }
        let wide = opened(whole_llama().counting("blk.0.attn_output.bias", &[9])).unwrap_err().to_string();
        assert!(wide.contains("tensor `model.layers.0.self_attn.o_proj.bias` has shape [9], "), "{wide}");
    }

    #[test]
    fn what_is_missing_is_named_both_ways() {
        let file = read(&Sample::llama().bytes()).unwrap();
        assert_eq!(
            file.canonical_f32("model.layers.7.mlp.up_proj.weight").unwrap_err().to_string(),
            "sample.gguf: there is no tensor `blk.7.ffn_up.weight`, which is `model.layers.7.mlp.up_proj.weight` in Hugging Face's names"
        );
        assert_eq!(
            file.canonical_shape("wte.weight").unwrap_err().to_string(),
            "sample.gguf: GGUF has no name for the tensor `wte.weight`"
        );
        let odd = Sample::llama().without("llama.attention.head_count").u32("llama.attention.head_count", 3);
        assert_eq!(
            read(&odd.bytes()).unwrap().canonical_f32("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string(),
            "sample.gguf: tensor `blk.0.attn_q.weight` has shape [8, 8], whose rows do not divide among the heads"
        );
    }
}
