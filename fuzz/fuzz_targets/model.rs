//! A model put together tensor by tensor: the file is sound, and what is in it need not be what `config.json` asks for.
//!
//! Changed bytes alone hardly ever make another sound header, so this is how readers of tensors meet wrong ones.
#![no_main]

use std::borrow::Cow;
use std::path::Path;

use arbitrary::Arbitrary;
use compressor_format::{Codebooks, Dtype, Family, Model, NewTensor, Scheme, Storage, write_safetensors};
use compressor_fuzz::{ask_model, check_refusal, folder, in_proportion};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    family: u8,
    /// Vocabulary, layers, heads, key/value heads, head_dim, hidden, intermediate.
    sizes: [u8; 7],
    tied: bool,
    /// How matrices are stored.
    scheme: Option<QuantizedAs>,
    config: Vec<(u8, Changed)>,
    tensors: Vec<Edit>,
    /// What the tensors hold, repeated.
    values: &'a [u8],
}

#[derive(Arbitrary, Debug)]
struct QuantizedAs {
    wide: bool,
    signed: bool,
    group: Option<u8>,
    zero_points: bool,
    activations: bool,
    embedding: bool,
    /// Codebooks for the projections instead of integers, of so many rows; one for all where 0 of them.
    codebook_rows: Option<u8>,
}

/// Another value for a key of `config.json`.
#[derive(Arbitrary, Debug)]
enum Changed {
    Gone,
    Null,
    Flag(bool),
    Small(u8),
    Whole(i64),
    Float(f64),
    Text(u8),
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Remove(u8),
    Rename(u8, u8),
    Dtype(u8, u8),
    Shape(u8, Vec<u8>),
    Add(u8, u8, u8, Vec<u8>),
}

const KEYS: [&str; 29] = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "sliding_window",
    "use_sliding_window",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "n_positions",
    "layer_norm_epsilon",
    "activation_function",
    "quantization_config",
];
const TEXTS: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gelu", "silu", ""];
const SUFFIXES: [&str; 7] = ["_packed", "_scale", "_shape", "_zero_point", "_codebook", "", "_"];
const DTYPES: [Dtype; 7] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I32, Dtype::I64];
/// Elements of all tensors together.
const MOST_ELEMENTS: usize = 1 << 16;

type Layout = Vec<(String, Dtype, Vec<usize>)>;

fuzz_target!(|input: Input<'_>| {
    let mut config = config(&input);
    for (key, changed) in &input.config {
        change(&mut config, KEYS[usize::from(*key) % KEYS.len()], changed);
    }
    let Ok(architecture) = Family::read(&config, Path::new("config.json")) else { return };
    if architecture.layers.len() > 4 {
        return;
    }
    let mut matrices = Vec::new();
    let mut layout = Layout::new();
    for stored in Family::stored(&architecture) {
        let storage = input.scheme.as_ref().and_then(|scheme| scheme.storage(&stored, &architecture));
        if storage.is_some() {
            matrices.push((format!("{}_shape", stored.name), architecture.shape(stored.parts[0])[1]));
        }
        match storage {
            Some(storage) => layout.extend(storage.layout(&stored, &architecture, Dtype::F16)),
            None => layout.push((stored.name.clone(), Dtype::F32, stored.shape(&architecture))),
        }
    }
    let sound = input.tensors.is_empty() && input.config.is_empty() && architecture.family != Family::Gpt2;
    input.tensors.iter().for_each(|edit| edit.apply(&mut layout));
    let elements = layout.iter().try_fold(0usize, |sum, (_, _, shape)| {
        sum.checked_add(shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?)
    });
    if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
        return;
    }

    let folder = folder(&[("config.json", config.to_string().as_bytes())]);
    let rows = |name: &str| {
        let packed = layout.iter().find(|(other, ..)| *other == name.replace("_shape", "_packed"));
        packed.and_then(|(_, _, shape)| shape.first().copied())
    };
    let tensors = layout.iter().map(|(name, dtype, shape)| {
        let size = shape.iter().product::<usize>() * dtype.bytes();
        let said =
            matrices.iter().find(|(other, _)| other == name && size == 16).and_then(|(_, columns)| Some([rows(name)?, *columns]));
        let bytes = match said {
            Some(said) => said.iter().flat_map(|size| (*size as i64).to_le_bytes()).collect(),
            None => contents(*dtype, size, input.values),
        };
        (name.clone(), NewTensor { dtype: *dtype, shape: shape.clone(), bytes: Box::new(move || Cow::Owned(bytes.clone())) })
    });
    write_safetensors(&folder.path().join("model.safetensors"), tensors.collect::<Vec<_>>()).expect("distinct names");
    let bytes = fs_err::metadata(folder.path().join("model.safetensors")).expect("just written").len() as usize;
    in_proportion(bytes, || match Model::open(folder.path()) {
        Ok(model) => ask_model(&model),
        Err(error) => {
            assert!(!sound, "{error}");
            check_refusal(&error, folder.path());
        }
    });
});

fn config(input: &Input<'_>) -> Value {
    let size = |at: usize, most: u8| 1 + input.sizes[at] % most;
    let kv_heads = size(3, 3);
    let heads = kv_heads * size(2, 3);
    let family = Family::ALL[usize::from(input.family) % Family::ALL.len()];
    let (head_dim, hidden, layers) = (2 * size(4, 20), size(5, 70), 1 + input.sizes[1] % 2);
    let mut config = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2", "vocab_size": size(0, 40), "n_embd": hidden, "n_layer": layers, "n_head": heads,
            "n_positions": 16, "n_inner": size(6, 70), "head_dim": head_dim, "tie_word_embeddings": input.tied,
        }),
        _ => json!({
            "model_type": family.model_type(), "vocab_size": size(0, 40), "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": size(6, 70),
            "max_position_embeddings": 16, "tie_word_embeddings": input.tied,
        }),
    };
    if let Some(scheme) = &input.scheme {
        let activations = json!({"num_bits": 8, "dynamic": true, "strategy": "token", "symmetric": true});
        // Every matrix by its name: whether groups divide its columns is another for each width.
        let architecture = Family::read(&config, Path::new("config.json"));
        let stored = architecture.iter().flat_map(|architecture| Family::stored(architecture).into_iter().map(move |stored| (architecture, stored)));
        let groups: serde_json::Map<String, Value> = stored
            .enumerate()
            .filter_map(|(index, (architecture, stored))| {
                let storage = scheme.storage(&stored, architecture)?;
                let weights = match storage {
                    Storage::Codebooks(codebooks) => {
                        json!({"num_bits": codebooks.bits, "type": "codebook", "codebook_rows": codebooks.rows})
                    }
                    Storage::Packed(Scheme { bits, group_size, symmetric }) | Storage::Signed(Scheme { bits, group_size, symmetric }) => json!({
                        "num_bits": bits, "strategy": if group_size.is_some() { "group" } else { "channel" },
                        "group_size": group_size, "symmetric": symmetric,
                    }),
                    Storage::Dense(_) | Storage::SignedStatic(_) => return None,
                };
                let is_rounded = scheme.activations && stored.parts[0].is_projection() && !matches!(storage, Storage::Codebooks(_));
                let group = json!({
                    "targets": [stored.name.trim_end_matches(".weight")],
                    "format": match storage {
                        Storage::Signed(_) => "int-quantized",
                        Storage::Codebooks(_) => "codebook-packed",
                        Storage::Packed(_) | Storage::Dense(_) | Storage::SignedStatic(_) => "pack-quantized",
                    },
                    "weights": weights,
                    "input_activations": if is_rounded { activations.clone() } else { Value::Null },
                });
                Some((format!("group_{index}"), group))
            })
            .collect();
        if !groups.is_empty() {
            config["quantization_config"] = json!({
                "quant_method": "compressed-tensors", "quantization_status": "compressed", "config_groups": groups,
                "ignore": if input.tied { json!(["lm_head"]) } else { json!([]) },
            });
        }
    }
    config
}

fn change(config: &mut Value, key: &str, changed: &Changed) {
    let value = match changed {
        Changed::Gone => {
            config.as_object_mut().expect("an object").remove(key);
            return;
        }
        Changed::Null => Value::Null,
        Changed::Flag(flag) => json!(flag),
        Changed::Small(number) => json!(number),
        Changed::Whole(number) => json!(number),
        Changed::Float(number) => json!(number),
        Changed::Text(text) => json!(TEXTS[usize::from(*text) % TEXTS.len()]),
    };
    config[key] = value;
}

impl QuantizedAs {
    fn bits(&self) -> u8 {
        if self.wide || self.signed { 8 } else { 4 }
    }

    fn codebooks(&self) -> Option<Codebooks> {
        let rows = usize::from(self.codebook_rows?);
        Some(Codebooks { bits: self.bits(), rows: (rows > 0).then_some(rows) })
    }

    /// How a matrix is stored; `None` for what stays dense.
    fn storage(
        &self,
        stored: &compressor_format::StoredTensor,
        architecture: &compressor_format::Architecture,
    ) -> Option<Storage> {
        let first = stored.parts[0];
        let end = matches!(first, compressor_format::TensorId::Embedding | compressor_format::TensorId::Head);
        if !(first.is_projection() || self.embedding && end) {
            return None;
        }
        if let Some(codebooks) = self.codebooks().filter(|_| first.is_projection()) {
            let whole = |shared: usize| stored.parts.iter().all(|part| architecture.shape(*part)[0].is_multiple_of(shared));
            return codebooks.rows.is_none_or(whole).then_some(Storage::Codebooks(codebooks));
        }
        let columns = architecture.shape(first)[1];
        let group = self.group.map(|group| 1 + usize::from(group) % columns).filter(|group| columns.is_multiple_of(*group));
        let scheme = Scheme { bits: self.bits(), group_size: group, symmetric: self.signed || !self.zero_points };
        Some(if self.signed { Storage::Signed(scheme) } else { Storage::Packed(scheme) })
    }
}

impl Edit {
    fn apply(&self, layout: &mut Layout) {
        if layout.is_empty() {
            return;
        }
        let index = |at: u8| usize::from(at) % layout.len();
        let suffix = |which: u8| SUFFIXES[usize::from(which) % SUFFIXES.len()];
        let dtype = |which: u8| DTYPES[usize::from(which) % DTYPES.len()];
        let shape = |sizes: &[u8]| sizes.iter().take(4).map(|size| usize::from(*size)).collect::<Vec<_>>();
        match self {
            Self::Remove(at) => {
                let at = index(*at);
                layout.remove(at);
            }
            Self::Rename(at, which) => {
                let at = index(*at);
                let plain = SUFFIXES.iter().find_map(|suffix| layout[at].0.strip_suffix(suffix)).unwrap_or_default();
                let name = format!("{plain}{}", suffix(*which));
                if layout.iter().all(|(other, ..)| *other != name) {
                    layout[at].0 = name;
                }
            }
            Self::Dtype(at, which) => {
                let at = index(*at);
                layout[at].1 = dtype(*which);
            }
            Self::Shape(at, sizes) => {
                let at = index(*at);
                layout[at].2 = shape(sizes);
            }
            Self::Add(at, which, kind, sizes) => {
                let name = format!("{}{}", layout[index(*at)].0, suffix(*which));
                if layout.iter().all(|(other, ..)| *other != name) {
                    layout.push((name, dtype(*kind), shape(sizes)));
                }
            }
        }
    }
}

/// Small numbers in the float types, so that most models can run; anything in the others.
fn contents(dtype: Dtype, size: usize, values: &[u8]) -> Vec<u8> {
    let elements = size / dtype.bytes();
    let value = |at: usize| if values.is_empty() { 1 } else { values[at % values.len()] };
    match dtype.is_float() {
        true => {
            let floats: Vec<f32> = (0..elements).map(|at| f32::from(value(at) as i8) / 64.0).collect();
            dtype.from_f32(&floats).expect("a float type")
        }
        false => (0..size).map(value).collect(),
    }
}
