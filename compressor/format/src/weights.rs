//! A dense model in memory: an architecture and the f32 values of each of its tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::checkpoint::transpose;
use crate::safetensors::{Dtype, NewTensor, write_safetensors};
use crate::{Architecture, Error, Family, LayerTensor, Part, Result, StoredTensor, TensorId, check_finite, write_beside};

/// A dense model in memory. Matrices are `[out, in]`, row-major.
#[derive(Clone, Debug)]
pub struct Weights {
    architecture: Architecture,
    config: Value,
    tensors: BTreeMap<TensorId, Vec<f32>>,
}

/// Standard deviation of new projections, as in GPT-2.
const INITIAL_DEVIATION: f32 = 0.02;

impl Weights {
    /// Joins an architecture with its values.
    ///
    /// `config` is the `config.json` the model was read with (or an empty object): keys this project does not know survive in it.
    ///
    /// # Panics
    /// Where a tensor of the architecture is missing or has another number of values: a mistake of the caller, never of a file.
    pub fn new(architecture: Architecture, config: Value, tensors: BTreeMap<TensorId, Vec<f32>>) -> Self {
        for id in architecture.tensors() {
            let expected: usize = architecture.shape(id).iter().product();
            let found = tensors.get(&id).map(Vec::len);
            assert_eq!(found, Some(expected), "values of {id}");
        }
        Self { architecture, config, tensors }
    }

    /// New random weights: projections normal with deviation 0.02, those back into the residual stream divided by √(2 · layers)
    /// (GPT-2); embedding and head normal with deviation 1/√hidden_size, so that first logits have deviation one; norms one, biases
    /// zero. The same seed gives the same weights on every machine.
    pub fn random(architecture: Architecture, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = 1.0 / (2.0 * architecture.layers.len() as f32).sqrt();
        let tensors = architecture.tensors().into_iter().map(|id| {
            let len: usize = architecture.shape(id).iter().product();
            let deviation = match id {
                TensorId::Layer(_, LayerTensor::Output(_) | LayerTensor::Down(_)) => INITIAL_DEVIATION * residual,
                // Small models learn to copy words much sooner than with 0.02: docs/decisions.md.
                TensorId::Embedding | TensorId::Head => 1.0 / (architecture.hidden_size as f32).sqrt(),
                _ => INITIAL_DEVIATION,
            };
            let values = match id {
                _ if id.is_matrix() => normal(&mut rng, len, deviation),
                TensorId::FinalNorm(Part::Weight)
                | TensorId::Layer(
                    _,
                    LayerTensor::AttentionNorm(Part::Weight)
                    | LayerTensor::MlpNorm(Part::Weight)
                    | LayerTensor::QueryNorm
                    | LayerTensor::KeyNorm,
                ) => vec![1.0; len],
                _ => vec![0.0; len],
            };
            (id, values)
        });
        let tensors = tensors.collect();
        Self::new(architecture, Value::Object(serde_json::Map::new()), tensors)
    }

    /// What the values belong to.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The `config.json` the model was read with.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The values of one of the architecture's tensors.
    pub fn get(&self, id: TensorId) -> &[f32] {
        &self.tensors[&id]
    }

    /// Every tensor with its values, in the order of the computation.
    pub fn iter(&self) -> impl Iterator<Item = (TensorId, &[f32])> {
        self.tensors.iter().map(|(id, values)| (*id, values.as_slice()))
    }

    /// Gives the parts back.
    pub fn into_parts(self) -> (Architecture, Value, BTreeMap<TensorId, Vec<f32>>) {
        (self.architecture, self.config, self.tensors)
    }

    /// Writes `config.json` and `model.safetensors` into `folder`, in the family's own names and orientation.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity, by tensor; [`Error::Io`] where the folder can't be written;
    /// [`Error::Unsupported`] where layers differ in size or `dtype` is an integer type.
    pub fn write(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        if !dtype.is_float() {
            return Err(Error::unsupported(folder, format!("dense weights can't be written as {dtype}")));
        }
        let mut config = Family::write(&self.architecture, &self.config, folder)?;
        config["dtype"] = match dtype {
            Dtype::F16 => "float16".into(),
            Dtype::Bf16 => "bfloat16".into(),
            _ => "float32".into(),
        };
        if let Some(keys) = config.as_object_mut() {
            keys.remove("torch_dtype");
        }
        let stored = Family::stored(&self.architecture);
        for tensor in &stored {
            for part in &tensor.parts {
                check_finite(folder, &tensor.name, self.get(*part))?;
            }
        }
        fs_err::create_dir_all(folder)?;
        let tensors = stored.iter().map(|tensor| {
            let bytes = Box::new(move || Cow::Owned(dtype.from_f32(&self.stored(tensor)).expect("a float type, checked above")));
            (tensor.name.clone(), NewTensor { dtype, shape: tensor.shape(&self.architecture), bytes })
        });
        write_safetensors(&folder.join("model.safetensors"), tensors)?;
        // Last, so that a folder with a configuration has its weights.
        write_config(folder, &config)
    }

    /// The values as a family stores them: parts stacked, then transposed where it keeps `[in, out]`.
    fn stored(&self, tensor: &StoredTensor) -> Vec<f32> {
        let stacked: Vec<f32> = tensor.parts.iter().flat_map(|part| self.get(*part)).copied().collect();
        match tensor.transposed {
            true => transpose(&stacked, self.architecture.shape(tensor.parts[0])[1]),
            false => stacked,
        }
    }
}

/// Writes a folder's `config.json`.
///
/// # Errors
/// [`Error::Io`] where the folder can't be written.
pub fn write_config(folder: &Path, config: &Value) -> Result<()> {
    write_beside(folder.join("config.json"), |file| Ok(file.write_all(format!("{config:#}\n").as_bytes())?))
}

/// Box-Muller on uniform draws: the same values on every machine, which a library's tables do not promise across versions.
fn normal(rng: &mut ChaCha8Rng, len: usize, deviation: f32) -> Vec<f32> {
    let draw = |_| {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32 * deviation
    };
    (0..len).map(draw).collect()
}
