#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use half::f16;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::codebooks::tests::drawn as drawn_codebooks;
use crate::gguf::GgufFile;
use crate::gguf::blocks::dequantize;
use crate::gguf::words::{WORDS, Words};
use crate::quantized::tests::drawn;
use crate::{
    Codebooks, InputRounding, Levels, NewArtifact, NewArtifactTensor, QuantizedMatrix, Scheme, StoredTensor, Tokenizer, Values,
    WeightBytes, pack, write_config,
};

const INT4: Scheme = Scheme { bits: 4, group_size: Some(32), symmetric: true };
const INT4_ZERO_POINTS: Scheme = Scheme { symmetric: false, ..INT4 };
const INT8: Scheme = Scheme { bits: 8, group_size: None, symmetric: true };

/// Numbers that follow from a seed.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> i8 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 24) as i8
    }

    /// Every integer of the scheme; scales that are f16.
    fn matrix(&mut self, rows: usize, columns: usize, scheme: Scheme, packed: bool) -> QuantizedMatrix {
        let scale = |drawn| f16::from_f32((f32::from(drawn) + 0.3) / 999.0).to_f32();
        drawn([rows, columns], scheme, packed, &mut || self.next(), scale)
    }
}

/// One layer whose sizes are all different: hidden 64, two heads of 16 on one key/value head, 96 channels, 300 tokens.
fn config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 1, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "bos_token_id": 1, "eos_token_id": 0,
    })
}

/// A tokenizer of fewer tokens than the model has rows for.
fn tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(["low low low lower lower newest".to_owned()].into_iter(), 280).unwrap()
}

struct Written {
    folder: TempDir,
    out: PathBuf,
}

impl Written {
    /// An artifact with projections in one scheme, and embedding and head in another or dense.
    fn new(config: &Value, (projections, packed): (impl Into<Levels>, bool), ends: Option<Scheme>, dense_dtype: Dtype) -> Self {
        let architecture = Family::read(config, "config.json").unwrap();
        let (projections, mut numbers) = (projections.into(), Numbers(7));
        let mut tensor = |stored: StoredTensor| {
            let mut shape = stored.shape(&architecture);
            if stored.transposed {
                shape.reverse();
            }
            let levels = match stored.parts[0] {
                TensorId::Embedding | TensorId::Head => ends.map(|scheme| (scheme.into(), true)),
                part => part.is_projection().then_some((projections, packed)),
            };
            let tensor = match levels {
                Some((Levels::Grid(scheme), packed)) => {
                    NewArtifactTensor::Quantized(numbers.matrix(shape[0], shape[1], scheme, packed))
                }
                Some((Levels::Codebooks(codebooks), _)) => {
                    NewArtifactTensor::Codebooks(drawn_codebooks([shape[0], shape[1]], codebooks, Dtype::F16, &mut || {
                        numbers.next()
                    }))
                }
                None => NewArtifactTensor::Dense((0..shape.iter().product()).map(|_| f32::from(numbers.next()) / 16.0).collect()),
            };
            (stored, tensor)
        };
        let tensors = Family::stored(&architecture).into_iter().map(&mut tensor).collect();
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("artifact");
        let input_rounding = if packed { InputRounding::None } else { InputRounding::PerToken };
        let scale_dtype = Dtype::F16;
        NewArtifact { architecture: &architecture, config, dense_dtype, scale_dtype, tensors, input_rounding }
            .write(&model)
            .unwrap();
        tokenizer().save(model.join("tokenizer.json")).unwrap();
        let out = folder.path().join("model.gguf");
        Self { folder, out }
    }

    fn int4(config: &Value) -> Self {
        Self::new(config, (INT4, true), None, Dtype::F32)
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("artifact")
    }

    fn artifact(&self) -> Artifact {
        Artifact::open(&self.model()).unwrap()
    }

    fn write(&self) -> (GgufReport, GgufFile) {
        let report = write_gguf(&self.artifact(), &self.out).unwrap();
        (report, GgufFile::open(&self.out).unwrap())
    }

    /// What writing is refused with, after the path of the artifact or of a file in it.
    fn refused(&self) -> String {
        let refused = write_gguf(&self.artifact(), &self.out).unwrap_err().to_string();
        assert!(!self.out.exists(), "nothing is written");
        let path = self.model().display().to_string();
        refused.strip_prefix(&path).unwrap_or_else(|| panic!("{refused}")).trim_start_matches(": ").to_owned()
    }

    fn change_tokenizer(&self, change: impl FnOnce(&mut Value)) -> &Self {
        let path = self.model().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs_err::write(&path, json.to_string()).unwrap();
        self
    }

    fn put(&self, name: &str, contents: &Value) -> &Self {
        fs_err::write(self.model().join(name), contents.to_string()).unwrap();
        self
    }
}

/// Every tensor that our reader finds is, value for value, what the artifact stands for.
fn check_values(artifact: &Artifact, file: &GgufFile) {
    let tensors = artifact.architecture().tensors();
    assert_eq!(file.tensors().len() - file.tensors().filter(|tensor| tensor.name == "rope_freqs.weight").count(), tensors.len());
    for id in tensors {
        let name = id.to_string();
        assert_eq!(file.canonical_shape(&name).unwrap(), artifact.architecture().shape(id), "{name}");
        assert_eq!(file.canonical_f32(&name).unwrap(), artifact.values(id).unwrap(), "{name}");
    }
}

#[test]
fn every_family_reads_back_as_it_was_with_the_rows_of_q_and_k_in_order() {
    let untied_with_biases = json!({"tie_word_embeddings": false, "attention_bias": true, "mlp_bias": true});
    let tied = json!({"tie_word_embeddings": true});
    let linear = json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": true});
    let llama3 = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }});
    let one_by_one = json!({"rope_scaling": {
        "rope_type": "longrope", "attention_factor": 1.0, "short_factor": [1, 2, 1, 4, 1, 8, 1, 16],
        "long_factor": [1, 2, 1, 4, 1, 8, 1, 16],
    }});
    let models = [
        ("llama", &untied_with_biases, "llama"),
        ("llama", &linear, "llama"),
        ("llama", &llama3, "llama"),
        ("mistral", &one_by_one, "llama"),
        ("mistral", &tied, "llama"),
        ("qwen2", &tied, "qwen2"),
        ("qwen3", &tied, "qwen3"),
    ];
    for (model_type, keys, name) in models {
        let mut config = config(model_type);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        for (projections, ends, dense) in
            [((INT4, true), None, Dtype::F16), ((INT8, true), Some(INT4), Dtype::Bf16), ((INT8, false), None, Dtype::F32)]
        {
            let written = Written::new(&config, projections, ends, dense);
            let artifact = written.artifact();
            let (report, file) = written.write();
            check_values(&artifact, &file);
            assert_eq!(report.bytes, fs_err::metadata(&written.out).unwrap().len());
            assert_eq!(report.tensors.values().sum::<usize>(), file.tensors().len());
            assert_eq!((report.minima, report.rounded_minima), (0, 0));
            assert_eq!(file.architecture().unwrap(), name);
            let mut expected = artifact.architecture().clone();
            if expected.family == Family::Mistral {
                // Without the window, which is wider than the context.
                (expected.family, expected.window) = (Family::Llama, None);
            }
            assert_eq!(Family::read(&file.config().unwrap(), file.path()).unwrap(), expected);
        }
    }
}

#[test]
fn the_smallest_type_is_taken_and_vectors_are_f32() {
    let written = Written::new(&config("llama"), (INT4_ZERO_POINTS, true), Some(INT8), Dtype::F16);
    let (report, file) = written.write();
    let kind = |name: &str| file.tensor(name).unwrap().kind;
    assert_eq!(kind("blk.0.ffn_down.weight"), GgmlType::Q4_1);
    assert_eq!((kind("token_embd.weight"), kind("output_norm.weight")), (GgmlType::Q8_0, GgmlType::F32));
    assert_eq!(report.tensors, BTreeMap::from([("F32", 3), ("Q4_1", 7), ("Q8_0", 2)]), "untied: embedding and head");
    // Rows times columns of q, k, v, o, gate, up and down, in blocks of 32.
    assert_eq!(report.minima, (32 * 64 + 16 * 64 * 2 + 64 * 32 + 96 * 64 * 3) / 32);
    assert!(report.rounded_minima > 0 && report.rounded_minima < report.minima, "{report:?}");
    assert_eq!(file.unsigned("general.file_type").unwrap(), Some(7), "two ends of 300 · 64 are more than 24576");
    assert_eq!(file.unsigned("general.quantization_version").unwrap(), Some(2));

    let dense = Written::new(&config("llama"), (INT4, true), None, Dtype::Bf16);
    let (_, file) = dense.write();
    assert_eq!(file.tensor("token_embd.weight").unwrap().kind, GgmlType::BF16);
    assert_eq!(file.tensor("blk.0.attn_norm.weight").unwrap().kind, GgmlType::F32);
}

#[test]
fn the_same_artifact_gives_the_same_bytes_and_replaces_an_old_file() {
    let written = Written::int4(&config("llama"));
    fs_err::write(&written.out, "old").unwrap();
    let (_, _) = written.write();
    let first = fs_err::read(&written.out).unwrap();
    let (_, _) = written.write();
    assert_eq!(fs_err::read(&written.out).unwrap(), first);
}

#[test]
fn a_refused_artifact_leaves_the_old_file() {
    let written = Written::new(&config("llama"), (Scheme { group_size: Some(16), ..INT4 }, true), None, Dtype::F32);
    fs_err::write(&written.out, "old").unwrap();
    write_gguf(&written.artifact(), &written.out).unwrap_err();
    assert_eq!(fs_err::read(&written.out).unwrap(), b"old");
}

/// The bytes of a matrix of one block.
fn block(scheme: Scheme, integers: &[(usize, i8)], others: i8, scale: f32, zero_point: i8) -> (GgmlType, Vec<u8>) {
    let mut row = [others; 32];
    integers.iter().for_each(|(index, q)| row[*index] = *q);
    let matrix = QuantizedMatrix {
        rows: 1,
        columns: 32,
        scheme,
        values: Values::Packed(WeightBytes::Owned(pack(&row, scheme.bits).into())),
        scales: vec![scale].into(),
        zero_points: (!scheme.symmetric).then(|| vec![zero_point]),
    };
    let Holder { kind, offset } = holder(&matrix).unwrap();
    let mut bytes = Vec::new();
    integers::blocks(&matrix, 0, offset).for_each(|block| block.append(kind, &mut bytes));
    (kind, bytes)
}

fn bits(bits: u8, symmetric: bool) -> Scheme {
    Scheme { bits, group_size: None, symmetric }
}

#[test]
fn a_block_of_each_type_worked_by_hand() {
    // 0.5 is the f16 0x3800.
    let scale = [0x00, 0x38];
    let zeros = |count: usize| vec![0u8; count];
    // Element 0 in the low half of byte 0, element 16 in its high half, element 31 in the high half of the last byte.
    assert_eq!(
        block(bits(4, true), &[(0, 7), (16, -7), (31, 0)], -8, 0.5, 0),
        (GgmlType::Q4_0, [&scale[..], &[0x1f], &zeros(14), &[0x80]].concat())
    );
    // 2 bits: −2 … 1 are stored as 6 … 9.
    assert_eq!(
        block(bits(2, true), &[(0, 1), (16, -2)], 0, 0.5, 0),
        (GgmlType::Q4_0, [&scale[..], &[0x69], &[0x88; 15]].concat())
    );
    // 15 is stored as 31 and 0 as 16: the fifth bits of elements 0 and 17.
    assert_eq!(
        block(bits(5, true), &[(0, 15), (17, 0)], -16, 0.5, 0),
        (GgmlType::Q5_0, [&scale[..], &[0x01, 0x00, 0x02, 0x00], &[0x0f], &zeros(15)].concat())
    );
    assert_eq!(
        block(bits(8, true), &[(0, -128), (31, 127)], -1, 0.5, 0),
        (GgmlType::Q8_0, [&scale[..], &[0x80], &[0xff; 30], &[0x7f]].concat())
    );
    assert_eq!(block(bits(6, true), &[(1, -32)], 31, 0.5, 0).1[2..5], [31, 0xe0, 31]);
    // The minimum is −(3 + 8) · 0.5 = −5.5, the f16 0xc580.
    assert_eq!(
        block(bits(4, false), &[(0, 7), (16, -7)], -8, 0.5, 3),
        (GgmlType::Q4_1, [&scale[..], &[0x80, 0xc5], &[0x1f], &zeros(15)].concat())
    );
    // 3 bits: −4 … 3 are stored as 0 … 7, and the minimum is −(0 + 4) · 0.5 = −2, the f16 0xc000.
    assert_eq!(
        block(bits(3, false), &[(0, 3)], -4, 0.5, 0),
        (GgmlType::Q4_1, [&scale[..], &[0x00, 0xc0], &[0x07], &zeros(15)].concat())
    );
    // −(0 + 16) · 0.5 = −8, the f16 0xc800.
    assert_eq!(
        block(bits(5, false), &[(0, 15), (31, 0)], -16, 0.5, 0),
        (GgmlType::Q5_1, [&scale[..], &[0x00, 0xc8], &[0x01, 0x00, 0x00, 0x80], &[0x0f], &zeros(15)].concat())
    );
}

proptest! {
    #[test]
    fn integers_of_any_scheme_read_back(
        bits in 2u8..=8,
        group_size in prop::sample::select(vec![None, Some(32), Some(64), Some(192)]),
        symmetric in any::<bool>(),
        seed in any::<u32>(),
    ) {
        prop_assume!(symmetric || bits <= 5);
        let scheme = Scheme { bits, group_size, symmetric };
        let matrix = Numbers(seed).matrix(3, 192, scheme, true);
        let Holder { kind, offset } = holder(&matrix).unwrap();
        let expected = match (bits, symmetric) {
            (2..=4, true) => GgmlType::Q4_0,
            (5, true) => GgmlType::Q5_0,
            (_, true) => GgmlType::Q8_0,
            (2..=4, false) => GgmlType::Q4_1,
            (_, false) => GgmlType::Q5_1,
        };
        prop_assert_eq!(kind, expected);
        for row in 0..3 {
            let mut bytes = Vec::new();
            let mut is_rounded = Vec::new();
            for block in integers::blocks(&matrix, row, offset) {
                is_rounded.push(block.minimum.as_ref().is_some_and(|minimum| minimum.is_rounded()));
                block.append(kind, &mut bytes);
            }
            let mut found = vec![0.0; 192];
            dequantize(kind, &bytes, &mut found);
            for (index, (found, expected)) in found.into_iter().zip(matrix.row(row)).enumerate() {
                let scale = matrix.scales.get(row * matrix.groups() + index / matrix.group_size());
                // A minimum is at most 2^bits scales, and rounding to f16 changes it by at most 2^−11 of itself.
                let bound = if is_rounded[index / 32] { scale.abs() * f32::from(1u16 << bits) / 2048.0 } else { 0.0 };
                prop_assert!((found - expected).abs() <= bound, "{} {} {} {}", index, found, expected, bound);
            }
        }
    }
}

#[test]
fn a_matrix_that_no_type_holds_is_refused_with_the_way_out() {
    let refused = |columns: usize, scheme: Scheme, change: &dyn Fn(&mut QuantizedMatrix)| {
        let mut matrix = Numbers(1).matrix(2, columns, scheme, true);
        change(&mut matrix);
        holder(&matrix).unwrap_err()
    };
    assert_eq!(
        refused(64, bits(8, false), &|_| {}),
        "it has 8 bits with zero points, and no type of ggml has them above 5 bits; quantize with symmetric = true or with fewer \
         bits"
    );
    assert_eq!(
        refused(48, INT8, &|_| {}),
        "its rows have 48 elements, and ggml's blocks have 32; leave it dense or choose sizes that are multiples of 32"
    );
    assert_eq!(
        refused(96, Scheme { group_size: Some(48), ..INT4 }, &|_| {}),
        "its groups have 48 elements, and ggml's blocks have 32; quantize with group_size = 32"
    );
    assert_eq!(
        refused(64, INT4, &|matrix| matrix.scales = vec![0.5, 0.5, 0.25, 0.1].into()),
        "the scale of row 1, group 1 is 0.1, which is no f16, and ggml has no others; quantize with scale_dtype = \"f16\""
    );
    assert_eq!(
        refused(64, INT4, &|matrix| matrix.scales = vec![1e6; 4].into()),
        "the scale of row 0, group 0 is 1000000, which is no f16, and ggml has no others; quantize with scale_dtype = \"f16\""
    );
    assert_eq!(
        refused(64, INT4_ZERO_POINTS, &|matrix| {
            matrix.scales = vec![0.5, 0.5, 60000.0, 0.5].into();
            matrix.zero_points = Some(vec![7; 4]);
        }),
        "the minimum of row 1, group 0 is -900000, beyond the largest f16, 65504"
    );
}

#[test]
fn the_scale_of_a_group_of_zeros_is_kept() {
    let (_, bytes) = block(bits(4, true), &[], 0, f32::EPSILON, 0);
    assert_eq!(bytes[..2], [0x02, 0x00], "2^−23 is twice the smallest f16");
}

#[test]
fn what_can_not_be_said_is_refused_by_name() {
    let with = |model_type: &str, keys: Value| {
        let mut config = config(model_type);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Written::int4(&config).refused()
    };
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 300, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 16});
    assert_eq!(Written::int4(&gpt2).refused(), "gpt2 can't be written as GGUF; these can: llama, mistral, qwen2, qwen3");
    assert_eq!(
        with("llama", json!({"hidden_act": "gelu"})),
        "`hidden_act` is another than silu, the one activation that llama.cpp computes this family with"
    );
    assert_eq!(
        with("qwen3", json!({"attention_bias": true})),
        "`attention_bias` is true, and llama.cpp's Qwen has no bias on the output projection"
    );
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    assert_eq!(
        with("qwen2", json!({"rope_scaling": llama3})),
        "its rotary frequencies are scaled one by one, and llama.cpp's Qwen takes one factor for all"
    );
    let groups = Written::new(&config("llama"), (Scheme { group_size: Some(16), ..INT4 }, true), None, Dtype::F32);
    assert_eq!(
        groups.refused(),
        "tensor `model.layers.0.self_attn.q_proj.weight` can't be written as GGUF: its groups have 16 elements, and ggml's blocks \
         have 32; quantize with group_size = 32"
    );
    let codebooks = Written::new(&config("llama"), (Codebooks { bits: 4, rows: None }, true), None, Dtype::F32);
    assert_eq!(
        codebooks.refused(),
        "tensor `model.layers.0.self_attn.q_proj.weight` can't be written as GGUF: it is a 4-bit codebook per matrix, and GGUF \
         knows integers with scales; quantize with method = \"gptq\" or \"round_to_nearest\""
    );
}

#[test]
fn a_place_in_the_artifacts_folder_is_refused() {
    let written = Written::int4(&config("llama"));
    let out = written.model().join("../artifact/model.gguf");
    assert_eq!(
        write_gguf(&written.artifact(), &out).unwrap_err().to_string(),
        format!(
            "{}: lies in a folder that this command reads, and would change it ({}): name another place",
            out.display(),
            written.artifact().path().display()
        )
    );
    assert!(!out.exists());
}

#[test]
fn dense_values_that_are_not_finite_are_refused_by_place() {
    let written = Written::int4(&config("llama"));
    let path = written.model().join("model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let embedding = written.artifact().stored().find_map(|(name, tensor)| match tensor {
        ArtifactTensor::Dense(slice) if name == "model.embed_tokens.weight" => Some(slice.bytes.to_vec()),
        _ => None,
    });
    let embedding = embedding.unwrap();
    let at = bytes.windows(embedding.len()).position(|window| window == embedding).unwrap();
    // Row 2, column 1.
    bytes[at + (2 * 64 + 1) * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs_err::write(&path, bytes).unwrap();
    assert_eq!(written.refused(), "tensor `model.embed_tokens.weight` holds NaN at element 129");
}

#[test]
fn the_tokenizer_comes_back() {
    let template = "{{ bos_token }}{{ messages[0].content }}";
    let written = Written::int4(&config("llama"));
    written.put(
        "tokenizer_config.json",
        &json!({
            "bos_token": "<|command|>", "eos_token": "<|end|>", "pad_token": {"content": "<|end|>"}, "chat_template": template
        }),
    );
    written.put("generation_config.json", &json!({"eos_token_id": [0, 258]}));
    written.change_tokenizer(|json| {
        let added = json!({
            "id": tokenizer().vocab_size(), "content": "<tool>", "special": false, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false
        });
        json["added_tokens"].as_array_mut().unwrap().push(added);
    });
    let (_, file) = written.write();
    let list = |key: &str| file.list(key).unwrap().unwrap().clone();
    let (tokens, types) = (list("tokenizer.ggml.tokens").texts().unwrap(), list("tokenizer.ggml.token_type").integers().unwrap());
    assert_eq!((tokens.len(), types.len()), (300, 300), "as many as the embedding has rows");
    let original = Tokenizer::open(written.model().join("tokenizer.json")).unwrap();
    for (id, (token, kind)) in tokens.iter().zip(&types).enumerate() {
        let expected = match id {
            0 | 1 => 3,
            _ if token == "<tool>" => 4,
            _ if original.id(token).is_some() => 1,
            _ => 5,
        };
        assert_eq!(*kind, expected, "{id} {token}");
        match kind {
            5 => assert_eq!(*token, format!("[PAD{id}]")),
            _ => assert_eq!(original.id(token), Some(id as u32)),
        }
    }
    let json: Value = serde_json::from_slice(original.json()).unwrap();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    assert!(merges.contains(&"l o".to_owned()));
    assert_eq!(list("tokenizer.ggml.merges").texts().unwrap(), merges);

    let read = file.tokenizer().unwrap();
    for text in ["low lower newest 123", "<|end|>low<tool>er I'll naïve\n\n x"] {
        assert_eq!(read.encode(text, true).unwrap().get_ids(), original.encode(text).unwrap(), "{text:?}");
    }
    let id = |name: &str| file.unsigned(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
    assert_eq!((id("bos"), id("eos"), id("eot"), id("padding"), id("unknown")), (Some(1), Some(0), Some(258), Some(0), None));
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    assert_eq!(file.text("tokenizer.chat_template").unwrap(), Some(template));
}

#[test]
fn a_model_without_a_first_token_gets_the_last_ones_number_and_never_puts_it_first() {
    let mut config = config("llama");
    config["bos_token_id"] = Value::Null;
    let (_, file) = Written::int4(&config).write();
    assert_eq!(file.unsigned("tokenizer.ggml.bos_token_id").unwrap(), Some(0));
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    assert_eq!(file.text("tokenizer.chat_template").unwrap(), None);
}

#[test]
fn texts_begin_with_bos_as_the_tokenizer_does_it_whatever_its_configuration_says() {
    let adds = |written: &Written| written.write().1.flag("tokenizer.ggml.add_bos_token").unwrap().unwrap();
    let template = |token: &str, id: u32| {
        json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        })
    };
    let written = Written::int4(&config("llama"));
    written.change_tokenizer(|json| json["post_processor"] = template("<|command|>", 1));
    assert!(adds(&written));
    // As in Transformers, where `tokenizer.json` decides.
    written.put("tokenizer_config.json", &json!({"add_bos_token": false}));
    assert!(adds(&written));

    let written = Written::int4(&config("llama"));
    written.put("tokenizer_config.json", &json!({"add_bos_token": true}));
    assert!(!adds(&written));

    let written = Written::int4(&config("llama"));
    written.change_tokenizer(|json| json["post_processor"] = template("<|end|>", 0));
    assert_eq!(
        written.refused(),
        "/tokenizer.json: its `post_processor` puts token 0 before a text, and tokenizer_config.json or config.json name token 1 as \
         BOS; only BOS can be written as GGUF"
    );
}

#[test]
fn ways_of_cutting_words_are_known_by_what_they_do() {
    for (name, words) in WORDS {
        let written = Written::int4(&config("llama"));
        written.change_tokenizer(|json| {
            json["pre_tokenizer"] = serde_json::to_value(words.pre_tokenizer()).unwrap();
            json["model"]["ignore_merges"] = (words == Words::Llama3).into();
            if words == Words::Qwen2 {
                json["normalizer"] = json!({"type": "NFC"});
            }
        });
        let (_, file) = written.write();
        assert_eq!(file.text("tokenizer.ggml.pre").unwrap(), Some(name));
    }
    // GPT-2's own file, older than `use_regex`.
    let written = Written::int4(&config("llama"));
    written.change_tokenizer(|json| {
        json["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    });
    assert_eq!(written.write().1.text("tokenizer.ggml.pre").unwrap(), Some("gpt-2"));
}

#[test]
fn a_tokenizer_that_gguf_has_no_words_for_is_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let written = Written::int4(&config("llama"));
        let refused = written.change_tokenizer(change).refused();
        refused.strip_prefix("/tokenizer.json: ").unwrap().to_owned()
    };
    assert_eq!(
        refused(&|json| {
            json["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        }),
        "its model is no BPE; only byte-level BPE can be written as GGUF"
    );
    assert_eq!(
        refused(&|json| json["model"]["byte_fallback"] = true.into()),
        "its model is SentencePiece's BPE; only byte-level BPE can be written as GGUF"
    );
    assert_eq!(
        refused(&|json| json["pre_tokenizer"]["add_prefix_space"] = true.into()),
        "its `pre_tokenizer` cuts words in a way that has no name here, and GGUF has only names; known are default, gpt-2, smollm, \
         qwen2, llama-bpe; found {\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false,\"use_regex\":true}"
    );
    assert_eq!(
        refused(&|json| json["model"]["ignore_merges"] = true.into()),
        "`model.ignore_merges` is true, and llama.cpp does the other for texts that are cut in this way"
    );
    assert_eq!(
        refused(&|json| json["model"]["end_of_word_suffix"] = "</w>".into()),
        "`model.end_of_word_suffix` is \"</w>\", which GGUF can't say"
    );
    assert_eq!(
        refused(&|json| json["normalizer"] = json!({"type": "NFC"})),
        "its `normalizer` is {\"type\":\"NFC\"}, and llama.cpp has none for this vocabulary"
    );
    assert_eq!(
        refused(&|json| json["added_tokens"][1]["rstrip"] = true.into()),
        "the added token \"<|command|>\" has `rstrip`, which GGUF can't say"
    );
    assert_eq!(
        refused(&|json| {
            json["model"]["vocab"]["far"] = 300.into();
        }),
        "token `far` has number 300, and the embedding has 300 rows"
    );
    assert_eq!(
        refused(&|json| {
            let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
            vocabulary.extend([("a b".to_owned(), 297.into()), ("a bl".to_owned(), 298.into())]);
            json["model"]["merges"].as_array_mut().unwrap().push(json!(["a b", "l"]));
        }),
        "merge [\"a b\",\"l\"] has a space in a token, which GGUF can't say"
    );
}

#[test]
fn a_model_without_an_end_is_refused() {
    let mut config = config("llama");
    config["eos_token_id"] = Value::Null;
    let written = Written::int4(&config);
    written.change_tokenizer(|json| {
        let text = json.to_string().replace("<|end|>", "<|stop|>");
        *json = serde_json::from_str(&text).unwrap();
    });
    assert_eq!(
        written.refused(),
        "names no token that ends a text, and llama.cpp would take number 11 for it; set eos_token_id in config.json"
    );
    config["eos_token_id"] = 0.into();
    write_config(&written.model(), &{
        let mut said = written.artifact().config().clone();
        said["eos_token_id"] = config["eos_token_id"].clone();
        said
    })
    .unwrap();
    assert_eq!(written.write().1.unsigned("tokenizer.ggml.eos_token_id").unwrap(), Some(0));
}
