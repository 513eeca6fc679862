//! Tensors by Hugging Face's names, with the rows in Hugging Face's order.
//!
//! Two things differ beside the names. Llama files hold the rows of q and k with each rotary pair side by side, where Hugging Face
//! keeps the first halves of all pairs before the second halves. And GPT-2 files hold q, k and v as one tensor.

use std::ops::Range;

use super::{GgufFile, GgufTensor, blocks};
use crate::Result;

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
struct Place<'a> {
    tensor: &'a GgufTensor,
    /// Which third of the rows, where q, k and v are one tensor.
    third: Option<usize>,
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
        let Place { tensor, third, interleaved_heads } = &place;
        let bytes = match third {
            // Rows are whole blocks, so thirds of the rows are thirds of the bytes; of a bias the rows are the elements.
            Some(third) => &tensor.bytes[tensor.bytes.len() / 3 * third..][..tensor.bytes.len() / 3],
            None => &tensor.bytes,
        };
        let mut values = vec![0.0; place.shape().iter().product()];
        blocks::dequantize(tensor.kind, bytes, &mut values);
        Ok(match interleaved_heads {
            Some(heads) => split_rotary_halves(&values, *heads, tensor.shape[0]),
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
        let Place { tensor, third, interleaved_heads } = self.place(hf_name)?;
        let columns = tensor.shape.get(1).copied().unwrap_or(1);
        if third.is_some() || interleaved_heads.is_some() {
            return Ok(self.canonical_f32(hf_name)?[rows.start * columns..rows.end * columns].to_vec());
        }
        // Rows are whole blocks.
        let row_bytes = tensor.bytes.len() / tensor.shape[0];
        let mut values = vec![0.0; rows.len() * columns];
        blocks::dequantize(tensor.kind, &tensor.bytes[rows.start * row_bytes..rows.end * row_bytes], &mut values);
        Ok(values)
    }

    /// The shape of the tensor that Hugging Face's Llama calls `hf_name`, outermost first.
    ///
    /// # Errors
    /// As [`GgufFile::canonical_f32`].
    pub fn canonical_shape(&self, hf_name: &str) -> Result<Vec<usize>> {
        Ok(self.place(hf_name)?.shape())
    }

    fn place(&self, hf_name: &str) -> Result<Place<'_>> {
        let architecture = self.architecture()?;
        let name = gguf_name(hf_name).ok_or_else(|| self.malformed(format!("GGUF has no name for the tensor `{hf_name}`")))?;
        let third = [".attn_q.", ".attn_k.", ".attn_v."].iter().position(|part| name.contains(part));
        let stored = match third {
            Some(_) if architecture == "gpt2" => {
                name.replace(".attn_q.", ".attn_qkv.").replace(".attn_k.", ".attn_qkv.").replace(".attn_v.", ".attn_qkv.")
            }
            _ => name,
        };
        let tensor = self.tensor(&stored).ok_or_else(|| {
            self.malformed(format!("there is no tensor `{stored}`, which is `{hf_name}` in Hugging Face's names"))
        })?;
        match (architecture, third) {
            ("gpt2", Some(_)) => {
                if tensor.shape.first().is_none_or(|rows| rows % 3 != 0)
                    || tensor.shape.len() == 1 && tensor.kind.block_elements() != 1
                {
                    return Err(
                        self.malformed(format!("tensor `{stored}` has shape {:?}, whose rows are not q, k and v", tensor.shape))
                    );
                }
                Ok(Place { tensor, third, interleaved_heads: None })
            }
            ("llama", Some(0 | 1)) => {
                let heads = self.unsigned("llama.attention.head_count")?;
                let kv_heads = self.unsigned("llama.attention.head_count_kv")?.or(heads);
                let heads = if third == Some(0) { heads } else { kv_heads };
                let rows = tensor.shape.first().copied().unwrap_or(1);
                let heads = heads
                    .and_then(|heads| usize::try_from(heads).ok())
                    .filter(|&heads| heads.checked_mul(2).is_some_and(|halves| halves > 0 && rows % halves == 0));
                if heads.is_none() {
                    return Err(self.malformed(format!(
                        "tensor `{stored}` has shape {:?}, whose rows do not divide among the heads",
                        tensor.shape
                    )));
                }
                Ok(Place { tensor, third: None, interleaved_heads: heads })
            }
            _ => Ok(Place { tensor, third: None, interleaved_heads: None }),
        }
    }
}

impl Place<'_> {
    fn shape(&self) -> Vec<usize> {
        let mut shape = self.tensor.shape.clone();
        if self.third.is_some() {
            shape[0] /= 3;
        }
        shape
    }
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
