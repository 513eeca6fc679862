//! A model made ready to run.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::path::Path;

#[cfg(feature = "std")]
use compressor_format::Weights;
use compressor_format::{
    Architecture, ArtifactTensor, InputRounding, LayerTensor, MappedBytes, Model, NormKind, Part, Positions, TensorId,
    TensorSlice,
};

use crate::cache::{Cache, KvType};
use crate::kernels::Kernels;
use crate::kernels::lines::Arena;
use crate::kernels::vector::InputScales;
use crate::linear::{Linear, Matrix, Rounding};
use crate::norm::NormWeights;
use crate::packed::Packed;
use crate::pool::Pool;
use crate::rotary::Rotary;
use crate::{Error, Result};

/// A model made ready to run on the CPU. Dense weights stay in their files, mapped into memory; integers are repacked; codebooks
/// are written out as dense weights of their centroids' type.
///
/// The same model, tokens and kernels give the same logits, bit for bit, whatever the number of threads. With all matrices
/// quantized and INT8 activations, so they do token by token and inside a prompt.
#[derive(Debug)]
pub struct Engine {
    pub(crate) architecture: Architecture,
    pub(crate) kernels: Kernels,
    pub(crate) pool: Pool,
    pub(crate) kv_type: KvType,
    /// `[vocab_size, hidden_size]`.
    pub(crate) embedding: Linear,
    /// `[max_position_embeddings, hidden_size]`.
    pub(crate) position_embedding: Option<Matrix>,
    pub(crate) rotary: Option<Rotary>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: NormWeights,
    /// `[vocab_size, hidden_size]`; none where the embedding is the head.
    pub(crate) head: Option<Linear>,
}

/// How to run a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads to compute with; one for every core where it is `None` or 0. There is one without `std`.
    #[cfg(feature = "std")]
    pub threads: Option<usize>,
    /// Instruction set; the widest there is where it is `None`.
    pub kernels: Option<Kernels>,
    /// What matrices of integers are multiplied with.
    pub activations: ActivationType,
    /// How keys and values are kept.
    pub kv_type: KvType,
}

/// What matrices of integers are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationType {
    /// Activations rounded to INT8 as they come, 32 of them with one scale: products of integers.
    #[default]
    Int8,
    /// Activations as they are, except where an artifact itself asks for rounding (W8A8).
    F32,
}

/// The weights of one layer, in the order of the computation.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) heads: usize,
    pub(crate) attention_norm: NormWeights,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) query_norm: Option<NormWeights>,
    pub(crate) key_norm: Option<NormWeights>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: NormWeights,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Engine {
    /// Opens a model folder or a GGUF file and makes it ready.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Self::load`].
    #[cfg(feature = "std")]
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        Self::load(&Model::open(path)?, options)
    }

    /// Makes a model ready whose files are at hand as bytes: its `config.json`, and its `model.safetensors`, of which dense weights
    /// are read where they lie.
    ///
    /// # Errors
    /// As [`Model::from_bytes`] and [`Self::load`].
    pub fn from_bytes(config: &[u8], weights: impl Into<MappedBytes>, options: Options) -> Result<Self> {
        Self::load(&Model::from_bytes(config, weights)?, options)
    }

    /// Makes a model ready.
    ///
    /// # Errors
    /// [`Error::Format`] for values that are not finite where they have to be read, [`Error::Layer`] for sizes that contradict each
    /// other, with `std` [`Error::Threads`].
    pub fn load(model: &Model, options: Options) -> Result<Self> {
        Self::new(model.architecture(), Source::Model(model), options, model.architecture().layers.len())
    }

    /// As [`Self::load`], without any layer.
    #[cfg(feature = "std")]
    pub(crate) fn load_ends(model: &Model, options: Options) -> Result<Self> {
        Self::new(model.architecture(), Source::Model(model), options, 0)
    }

    /// One layer of a model.
    #[cfg(feature = "std")]
    pub(crate) fn load_layer(&self, model: &Model, index: usize) -> Result<Layer> {
        let (architecture, source, activations) = (model.architecture(), Source::Model(model), ActivationType::F32);
        Loader { architecture, source, pool: &self.pool, arena: Arena::default(), activations }.layer(index)
    }

    /// Makes weights in memory ready; they are copied.
    ///
    /// # Errors
    /// [`Error::Layer`] for sizes that contradict each other, [`Error::Threads`].
    #[cfg(feature = "std")]
    pub fn from_weights(weights: &Weights, options: Options) -> Result<Self> {
        Self::new(weights.architecture(), Source::Weights(weights), options, weights.architecture().layers.len())
    }

    fn new(architecture: &Architecture, source: Source<'_>, options: Options, layers: usize) -> Result<Self> {
        check(architecture)?;
        let pool = pool(options)?;
        let loader = Loader {
            architecture,
            source,
            pool: &pool,
            arena: source.arena(architecture, layers),
            activations: options.activations,
        };
        let embedding = loader.embedding()?;
        let layers: Result<Vec<Layer>> = (0..layers).map(|layer| loader.layer(layer)).collect();
        let position_embedding = match architecture.positions {
            Positions::Learned => Some(loader.matrix(TensorId::PositionEmbedding)?),
            Positions::Rotary { .. } => None,
        };
        let head = match architecture.tied_embeddings {
            true => None,
            false => Some(loader.linear(TensorId::Head, None)?),
        };
        Ok(Self {
            kernels: options.kernels.unwrap_or_else(Kernels::best),
            kv_type: options.kv_type,
            embedding,
            position_embedding,
            rotary: match &architecture.positions {
                Positions::Rotary { theta, scaling } => Some(Rotary::new(*theta, scaling, architecture.head_dim)),
                Positions::Learned => None,
            },
            layers: layers?,
            final_norm: loader.norm(TensorId::FinalNorm)?,
            head,
            architecture: architecture.clone(),
            pool,
        })
    }

    /// What the model is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The instruction set of the inner loops.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes of all weights as they are held, mapped ones included; caches and activations come on top.
    pub fn memory_bytes(&self) -> usize {
        let head = self.head.as_ref().map(|head| &head.matrix);
        let ends = [Some(&self.embedding.matrix), self.position_embedding.as_ref(), head];
        let ends: usize = ends.into_iter().flatten().map(Matrix::memory_bytes).sum();
        let layers = self.layers.iter().map(|layer| {
            let linears = [&layer.query, &layer.key, &layer.value, &layer.output, &layer.up, &layer.down];
            let norms = [Some(&layer.attention_norm), Some(&layer.mlp_norm), layer.query_norm.as_ref(), layer.key_norm.as_ref()];
            linears.into_iter().chain(&layer.gate).map(Linear::memory_bytes).sum::<usize>()
                + norms.into_iter().flatten().map(NormWeights::memory_bytes).sum::<usize>()
        });
        ends + self.final_norm.memory_bytes() + layers.sum::<usize>()
    }

    /// An empty cache, with room for `capacity` tokens at once; it grows where more come.
    pub fn cache(&self, capacity: usize) -> Cache {
        let head_dim = self.architecture.head_dim;
        let shapes = self.layers.iter().map(|layer| (layer.key.matrix.rows / head_dim, head_dim));
        Cache::new(shapes, capacity, self.kv_type)
    }
}

/// What a forward pass takes for granted.
fn check(architecture: &Architecture) -> Result<()> {
    for (layer, shape) in architecture.layers.iter().enumerate() {
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            let what = format!("{heads} query heads can't be shared out among {kv_heads} key/value heads");
            return Err(Error::Layer { layer, what });
        }
        if shape.intermediate_size == 0 {
            return Err(Error::Layer { layer, what: "the MLP has no intermediate channels".to_owned() });
        }
        let head_dim = architecture.head_dim;
        if head_dim == 0 || (matches!(architecture.positions, Positions::Rotary { .. }) && !head_dim.is_multiple_of(2)) {
            return Err(Error::Layer { layer, what: format!("head_dim {head_dim} has no two halves to rotate") });
        }
    }
    Ok(())
}

#[cfg(feature = "std")]
fn pool(options: Options) -> Result<Pool> {
    let threads = options.threads.filter(|threads| *threads > 0);
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    Pool::new(threads).map_err(|source| Error::Threads { threads, source })
}

#[cfg(not(feature = "std"))]
fn pool(_: Options) -> Result<Pool> {
    Ok(Pool)
}

/// Where weights come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Model(&'a Model),
    #[cfg(feature = "std")]
    Weights(&'a Weights),
}

impl Source<'_> {
    /// Room for all matrices of integers up to a layer, side by side.
    fn arena(self, architecture: &Architecture, layers: usize) -> Arena {
        let Self::Model(Model::Artifact(artifact)) = self else { return Arena::default() };
        let wanted = architecture.tensors().into_iter().filter(|id| !matches!(id, TensorId::Layer(at, _) if *at >= layers));
        let lines = wanted.map(|id| match artifact.tensor(id) {
            ArtifactTensor::Quantized(matrix) => Packed::lines_of(&matrix),
            ArtifactTensor::Dense(_) | ArtifactTensor::Codebooks(_) => 0,
        });
        Arena::with_room(lines.sum())
    }
}

/// Takes an architecture's tensors from their source.
struct Loader<'a> {
    architecture: &'a Architecture,
    source: Source<'a>,
    pool: &'a Pool,
    arena: Arena,
    activations: ActivationType,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        use LayerTensor::{AttentionNorm, Down, Gate, Key, KeyNorm, MlpNorm, Output, Query, QueryNorm, Up, Value};
        let Architecture { attention, mlp, .. } = *self.architecture;
        let linear = |tensor: fn(Part) -> LayerTensor, has_bias: bool| {
            let part = |part| TensorId::Layer(index, tensor(part));
            self.linear(part(Part::Weight), has_bias.then(|| part(Part::Bias)))
        };
        let norm = |tensor: fn(Part) -> LayerTensor| self.norm(|part| TensorId::Layer(index, tensor(part)));
        let head_norm = |tensor| -> Result<NormWeights> {
            let weight = self.vector(TensorId::Layer(index, tensor))?;
            // Qwen3 normalizes heads with the epsilon of the other norms.
            Ok(NormWeights { kind: NormKind::Rms, epsilon: self.architecture.norm.epsilon as f32, weight, bias: None })
        };
        Ok(Layer {
            heads: self.architecture.layers[index].heads,
            attention_norm: norm(AttentionNorm)?,
            query: linear(Query, attention.qkv_bias)?,
            key: linear(Key, attention.qkv_bias)?,
            value: linear(Value, attention.qkv_bias)?,
            query_norm: attention.qk_norm.then(|| head_norm(QueryNorm)).transpose()?,
            key_norm: attention.qk_norm.then(|| head_norm(KeyNorm)).transpose()?,
            output: linear(Output, attention.output_bias)?,
            mlp_norm: norm(MlpNorm)?,
            gate: mlp.gated.then(|| linear(Gate, mlp.bias)).transpose()?,
            up: linear(Up, mlp.bias)?,
            down: linear(Down, mlp.bias)?,
        })
    }

    /// The embedding, which may be the head as well: no artifact rounds its input.
    fn embedding(&self) -> Result<Linear> {
        let matrix = self.matrix(TensorId::Embedding)?;
        let rounding = self.rounding(&matrix, None);
        Ok(Linear { matrix, bias: None, rounding })
    }

    fn linear(&self, weight: TensorId, bias: Option<TensorId>) -> Result<Linear> {
        let matrix = self.matrix(weight)?;
        let asked_for = match self.source {
            Source::Model(Model::Artifact(artifact)) => match artifact.input_rounding() {
                InputRounding::None => None,
                InputRounding::PerToken => artifact.rounds_input(weight).then_some(InputScales::PerToken),
                InputRounding::Static(_) => artifact.input_scale(weight).map(InputScales::Static),
            },
            Source::Model(Model::Checkpoint(_)) => None,
            #[cfg(feature = "std")]
            Source::Weights(_) => None,
        };
        let rounding = self.rounding(&matrix, asked_for);
        Ok(Linear { matrix, bias: bias.map(|bias| self.vector(bias)).transpose()?, rounding })
    }

    /// How the input of a matrix is rounded; `asked_for` is what a W8A8 artifact does.
    fn rounding(&self, matrix: &Matrix, asked_for: Option<InputScales>) -> Option<Rounding> {
        let blocks = matrix.blocks()?;
        let unless_asked = (self.activations == ActivationType::Int8).then_some(InputScales::PerBlock);
        Some(Rounding { blocks, scales: asked_for.or(unless_asked)? })
    }

    fn norm(&self, tensor: impl Fn(Part) -> TensorId) -> Result<NormWeights> {
        let norm = self.architecture.norm;
        Ok(NormWeights {
            kind: norm.kind,
            epsilon: norm.epsilon as f32,
            weight: self.vector(tensor(Part::Weight))?,
            bias: match norm.kind {
                NormKind::Rms => None,
                NormKind::Layer => Some(self.vector(tensor(Part::Bias))?),
            },
        })
    }

    fn matrix(&self, id: TensorId) -> Result<Matrix> {
        let mapped = |slice: &TensorSlice| Matrix::mapped(slice);
        let stored = match self.source {
            Source::Model(Model::Checkpoint(checkpoint)) => checkpoint.mapped(id).as_ref().and_then(mapped),
            Source::Model(Model::Artifact(artifact)) => match artifact.tensor(id) {
                ArtifactTensor::Quantized(matrix) => {
                    let packed = Packed::new(&matrix, self.pool, &self.arena);
                    matrix.release();
                    Some(Matrix::packed(packed))
                }
                // No kernel multiplies indices: written out in the centroids' type, they are what a dense matrix is.
                ArtifactTensor::Codebooks(matrix) => {
                    let dense = matrix.decoded();
                    matrix.release();
                    mapped(&dense)
                }
                ArtifactTensor::Dense(slice) => mapped(&slice),
            },
            #[cfg(feature = "std")]
            Source::Weights(_) => None,
        };
        match stored {
            Some(matrix) => Ok(matrix),
            None => Ok(Matrix::owned(self.vector(id)?, self.architecture.shape(id)[1])),
        }
    }

    fn vector(&self, id: TensorId) -> Result<Vec<f32>> {
        match self.source {
            Source::Model(model) => Ok(model.values(id)?),
            #[cfg(feature = "std")]
            Source::Weights(weights) => Ok(weights.get(id).to_vec()),
        }
    }
}
