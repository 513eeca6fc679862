//! Writes an artifact as a GGUF file, with the integers that it has.
//!
//! Nothing is quantized again: a matrix becomes the smallest type of ggml that holds its integers, and what no type holds is refused
//! by the tensor's name before anything is written. Types and their conditions: docs/artifact-format.md.
//!
//! - `head`: the file's head; `integers`: the blocks of a row; `vocabulary`: the tokenizer

mod head;
mod integers;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use self::head::Head;
use self::integers::{Holder, holder};
use super::blocks::GgmlType;
use super::gguf_name;
use super::names::row_in_halves;
use super::rotary;
use crate::{
    Activation, Architecture, Artifact, ArtifactTensor, Dtype, Error, Family, LayerTensor, NormKind, Origin, Positions, Result,
    RotaryScaling, TensorId, TensorSlice, check_apart, write_beside,
};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// How many tensors have which type, by ggml's name.
    pub tensors: BTreeMap<&'static str, usize>,
    /// Blocks with a minimum, which stands for a zero point.
    pub minima: u64,
    /// How many of these minima are no f16 and were rounded to one.
    pub rounded_minima: u64,
}

/// Bytes that every tensor begins at a multiple of.
const ALIGNMENT: usize = super::DEFAULT_ALIGNMENT as usize;
/// `GGML_QNT_VERSION`: the layout of the blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// Writes `artifact` as the GGUF file `out`, which llama.cpp opens; a file that is there is replaced.
///
/// # Errors
/// [`Error::Unsupported`] for what GGUF or llama.cpp can't express, by name and with the way out: a family, a scheme, a scale, a
/// tokenizer. [`Error::Refused`] where `out` lies in the artifact's folder; [`Error::Io`] where it can't be written.
pub fn write_gguf(artifact: &Artifact, out: &Path) -> Result<GgufReport> {
    check_apart(out, [artifact.path()])?;
    let name = architecture_name(artifact)?;
    let tensors = planned(artifact, name)?;
    let mut head = Head::default();
    describe(artifact.architecture(), name, &tensors, &mut head);
    vocabulary::describe(artifact, &mut head)?;
    let head = head.finish(&tensors);

    let mut report = GgufReport { bytes: head.len() as u64, tensors: BTreeMap::new(), minima: 0, rounded_minima: 0 };
    for tensor in &tensors {
        *report.tensors.entry(tensor.kind.name()).or_default() += 1;
        report.bytes += tensor.padded_bytes() as u64;
    }
    write_beside(out, |file| {
        file.write_all(&head)?;
        for tensor in &tensors {
            tensor.write(artifact, file, &mut report)?;
            file.write_all(&[0; ALIGNMENT][..tensor.padded_bytes() - tensor.bytes()])?;
        }
        Ok(())
    })?;
    Ok(report)
}

/// A tensor of the file.
struct Planned {
    values: Source,
    /// Its name in GGUF.
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    kind: GgmlType,
    /// What is added to integers before they are stored.
    offset: i32,
    /// Rows to a head where rotary pairs are brought side by side.
    interleaved: Option<usize>,
}

/// Where a tensor's values come from.
enum Source {
    /// The artifact.
    Artifact(TensorId),
    /// What rotary frequencies are divided by, one by one.
    Divisors(Vec<f32>),
}

/// The name in GGUF of the artifact's architecture.
fn architecture_name(artifact: &Artifact) -> Result<&'static str> {
    let refused = |what: &str| Err(Error::unsupported(artifact.path(), what));
    let architecture = artifact.architecture();
    let name = match architecture.family {
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gpt2 => return refused("gpt2 can't be written as GGUF; these can: llama, mistral, qwen2, qwen3"),
    };
    if architecture.mlp.activation != Activation::Silu {
        return refused("`hidden_act` is another than silu, the one activation that llama.cpp computes this family with");
    }
    if name != "llama" && architecture.mlp.bias {
        return refused("`mlp_bias` is true, and llama.cpp's Qwen has no biases there");
    }
    if name != "llama" && architecture.attention.output_bias {
        return refused("`attention_bias` is true, and llama.cpp's Qwen has no bias on the output projection");
    }
    if name != "llama" && scaled_one_by_one(architecture).is_some() {
        return refused("its rotary frequencies are scaled one by one, and llama.cpp's Qwen takes one factor for all");
    }
    Ok(name)
}

/// What each rotary frequency is divided by, where they differ.
fn scaled_one_by_one(architecture: &Architecture) -> Option<Vec<f32>> {
    let Positions::Rotary { theta, scaling } = &architecture.positions else { return None };
    match scaling {
        RotaryScaling::None | RotaryScaling::Linear { .. } => None,
        RotaryScaling::Llama3 { .. } | RotaryScaling::PerFrequency { .. } => {
            rotary::divisors(scaling, *theta, architecture.head_dim / 2)
        }
    }
}

/// Every tensor with the type it is written in.
fn planned(artifact: &Artifact, architecture_name: &str) -> Result<Vec<Planned>> {
    let architecture = artifact.architecture();
    let mut tensors = Vec::new();
    if let Some(divisors) = scaled_one_by_one(architecture) {
        let (name, shape) = (rotary::ROPE_FREQS.to_owned(), vec![divisors.len()]);
        let values = Source::Divisors(divisors);
        tensors.push(Planned { values, name, shape, kind: GgmlType::F32, offset: 0, interleaved: None });
    }
    for id in architecture.tensors() {
        let hf_name = id.to_string();
        let name = gguf_name(&hf_name).expect("every tensor of a family that is written has a name in GGUF");
        let Holder { kind, offset } = match artifact.tensor(id) {
            ArtifactTensor::Dense(slice) => Holder { kind: dense_type(&slice), offset: 0 },
            ArtifactTensor::Quantized(matrix) => {
                let holder = holder(&matrix).map_err(|what| {
                    Error::unsupported(artifact.path(), format!("tensor `{hf_name}` can't be written as GGUF: {what}"))
                })?;
                matrix.release();
                holder
            }
            ArtifactTensor::Codebooks(matrix) => {
                let what = format!(
                    "tensor `{hf_name}` can't be written as GGUF: it is a {}, and GGUF knows integers with scales; quantize with \
                     method = \"gptq\" or \"round_to_nearest\"",
                    matrix.codebooks
                );
                return Err(Error::unsupported(artifact.path(), what));
            }
        };
        let is_rotated = matches!(id, TensorId::Layer(_, LayerTensor::Query(_) | LayerTensor::Key(_)));
        let interleaved = (is_rotated && architecture_name == "llama").then_some(architecture.head_dim);
        let values = Source::Artifact(id);
        tensors.push(Planned { values, name, shape: architecture.shape(id), kind, offset, interleaved });
    }
    Ok(tensors)
}

/// Matrices stay as they are stored; llama.cpp wants vectors in f32.
fn dense_type(slice: &TensorSlice) -> GgmlType {
    match slice.dtype {
        _ if slice.shape.len() == 1 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        Dtype::Bf16 => GgmlType::BF16,
        Dtype::F32 => GgmlType::F32,
        Dtype::F64 | Dtype::I8 | Dtype::I32 | Dtype::I64 => unreachable!("`Artifact::open` refused these types"),
    }
}

/// Everything about the model but its vocabulary.
fn describe(architecture: &Architecture, name: &str, tensors: &[Planned], head: &mut Head) {
    let layer = architecture.uniform_layer().expect("config.json has one size for all layers");
    let Architecture { hidden_size, head_dim, max_position_embeddings, vocab_size, .. } = *architecture;
    head.text("general.architecture", name);
    head.u32("general.alignment", ALIGNMENT as u32);
    head.u32("general.quantization_version", QUANTIZATION_VERSION);
    head.u32("general.file_type", file_type(tensors));
    let sizes = [
        ("block_count", architecture.layers.len()),
        ("context_length", max_position_embeddings),
        ("embedding_length", hidden_size),
        ("feed_forward_length", layer.intermediate_size),
        ("attention.head_count", layer.heads),
        ("attention.head_count_kv", layer.kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", vocab_size),
    ];
    for (key, size) in sizes {
        head.u32(&format!("{name}.{key}"), u32::try_from(size).expect("`Config` refuses sizes above 2^24"));
    }
    match architecture.norm.kind {
        NormKind::Rms => head.f32(&format!("{name}.attention.layer_norm_rms_epsilon"), architecture.norm.epsilon as f32),
        NormKind::Layer => unreachable!("only GPT-2 has it, which `architecture_name` refused"),
    }
    if let Positions::Rotary { theta, scaling } = &architecture.positions {
        head.f32(&format!("{name}.rope.freq_base"), *theta as f32);
        if let RotaryScaling::Linear { factor } = scaling {
            head.text(&format!("{name}.rope.scaling.type"), "linear");
            head.f32(&format!("{name}.rope.scaling.factor"), *factor as f32);
        }
    }
}

/// llama.cpp's number for a file whose elements are mostly of one type, by its `enum llama_ftype`.
fn file_type(tensors: &[Planned]) -> u32 {
    let types = [
        (GgmlType::F32, 0),
        (GgmlType::F16, 1),
        (GgmlType::Q4_0, 2),
        (GgmlType::Q4_1, 3),
        (GgmlType::Q8_0, 7),
        (GgmlType::Q5_0, 8),
        (GgmlType::Q5_1, 9),
        (GgmlType::BF16, 32),
    ];
    let elements = |kind: GgmlType| -> usize {
        tensors.iter().filter(|tensor| tensor.kind == kind).map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    };
    let (_, number) = types.into_iter().max_by_key(|(kind, _)| elements(*kind)).expect("the list is not empty");
    number
}

impl Planned {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.kind.block_elements() * self.kind.block_bytes()
    }

    fn padded_bytes(&self) -> usize {
        self.bytes().next_multiple_of(ALIGNMENT)
    }

    /// Writes the tensor row by row.
    fn write(&self, artifact: &Artifact, file: &mut impl Write, report: &mut GgufReport) -> Result<()> {
        let id = match &self.values {
            Source::Artifact(id) => *id,
            Source::Divisors(divisors) => {
                return divisors.iter().try_for_each(|divisor| Ok(file.write_all(&divisor.to_le_bytes())?));
            }
        };
        let rows = (0..self.shape[0]).map(|row| self.interleaved.map_or(row, |head_dim| row_in_halves(row, head_dim)));
        match artifact.tensor(id) {
            ArtifactTensor::Dense(slice) => {
                let row_shape = slice.shape[1..].to_vec();
                let row_bytes = slice.dtype.bytes() * row_shape.iter().product::<usize>();
                for row in rows {
                    let bytes = slice.bytes.slice(row * row_bytes..(row + 1) * row_bytes).expect("`open` checked the shape");
                    let stored = TensorSlice { dtype: slice.dtype, shape: row_shape.clone(), bytes };
                    let values = stored.to_f32().expect("`open` refused integer types");
                    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                        return Err(Error::NotFinite {
                            path: artifact.path().shown(),
                            name: id.to_string(),
                            value: values[index],
                            index: row * values.len() + index,
                        });
                    }
                    match self.kind {
                        GgmlType::F32 => values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
                        _ => file.write_all(&stored.bytes)?,
                    }
                }
                slice.bytes.release();
            }
            ArtifactTensor::Quantized(matrix) => {
                let mut blocks = Vec::new();
                for row in rows {
                    blocks.clear();
                    for block in integers::blocks(&matrix, row, self.offset) {
                        if let Some(minimum) = &block.minimum {
                            report.minima += 1;
                            report.rounded_minima += u64::from(minimum.is_rounded());
                        }
                        block.append(self.kind, &mut blocks);
                    }
                    file.write_all(&blocks)?;
                }
                matrix.release();
            }
            ArtifactTensor::Codebooks(_) => unreachable!("`planned` refused codebooks"),
        }
        Ok(())
    }
}
