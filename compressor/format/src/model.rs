//! A model, dense or quantized.

use alloc::format;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::path::Path;

use serde_json::Value;

#[cfg(feature = "std")]
use crate::content::ContentHash;
use crate::encoding::unmarked;
use crate::{Architecture, Artifact, Checkpoint, Error, MappedBytes, Origin, Result, TensorFiles, TensorId};

/// The file that describes a model, and what errors call its bytes.
pub(crate) const CONFIG: &str = "config.json";
/// What errors call the bytes of the weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// A model on disk or in memory.
#[derive(Clone, Debug)]
pub enum Model {
    /// Dense weights.
    Checkpoint(Checkpoint),
    /// Quantized weights.
    Artifact(Artifact),
}

impl Model {
    /// Opens a folder, an artifact where its `config.json` has a `quantization_config`, or a GGUF file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Artifact::open`].
    #[cfg(feature = "std")]
    pub fn open(path: &Path) -> Result<Self> {
        let quantized = crate::is_model_folder(path)? && is_quantized(&crate::read_config(path)?);
        match quantized {
            true => Artifact::open(path).map(Self::Artifact),
            false => Checkpoint::open(path).map(Self::Checkpoint),
        }
    }

    /// Reads a model from the bytes of its `config.json` and its `model.safetensors`, by which names errors call them: an artifact
    /// where `config` has a `quantization_config`.
    ///
    /// Nothing is copied: tensors are ranges of `weights`, which may be a `&'static [u8]`, an `Arc<[u8]>` or a mapped file. An engine
    /// reads floats there only where they lie at an address that fits their type, so firmware aligns its weights to 4 bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] for damaged or contradictory bytes, [`Error::MissingTensor`] and [`Error::Shape`] where the two
    /// disagree, [`Error::Unsupported`] for families, types and schemes that the engine does not run.
    pub fn from_bytes(config: &[u8], weights: impl Into<MappedBytes>) -> Result<Self> {
        let config = parse_config(config, CONFIG)?;
        let files = || TensorFiles::from_bytes(weights, WEIGHTS);
        match is_quantized(&config) {
            true => Artifact::read(config, CONFIG, WEIGHTS.into(), files).map(Self::Artifact),
            false => Checkpoint::read(config, CONFIG, WEIGHTS.into(), files).map(Self::Checkpoint),
        }
    }

    /// Where it is; `model.safetensors` where it was read from bytes, as errors call it then.
    #[cfg(feature = "std")]
    pub fn path(&self) -> &Path {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.path(),
            Self::Artifact(artifact) => artifact.path(),
        }
    }

    /// What it is.
    pub fn architecture(&self) -> &Architecture {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.architecture(),
            Self::Artifact(artifact) => artifact.architecture(),
        }
    }

    /// The values of a tensor, dequantized where need be, `[out, in]`.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for NaN or an infinity.
    pub fn values(&self, id: TensorId) -> Result<Vec<f32>> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensor(id),
            Self::Artifact(artifact) => artifact.values(id),
        }
    }

    /// A hash of its configuration and of every byte of its weights, 64 hexadecimal digits: models that share it compute the same.
    ///
    /// Reads all weights, so it takes about as long as some tokens do.
    #[cfg(feature = "std")]
    pub fn content_hash(&self) -> String {
        let mut hash = ContentHash::default();
        match self {
            Self::Checkpoint(checkpoint) => {
                hash.add(CONFIG, checkpoint.config().to_string().as_bytes());
                checkpoint.add_weights(&mut hash);
            }
            Self::Artifact(artifact) => {
                hash.add(CONFIG, artifact.config().to_string().as_bytes());
                artifact.add_weights(&mut hash);
            }
        }
        hash.finish()
    }

    /// Bytes of the files that hold weights.
    ///
    /// # Errors
    /// [`Error::Io`] where a GGUF file is gone.
    #[cfg(feature = "std")]
    pub fn weight_bytes(&self) -> Result<u64> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.weight_bytes(),
            Self::Artifact(artifact) => Ok(artifact.weight_bytes()),
        }
    }
}

/// The `config.json` in these bytes, which errors call `origin`.
pub(crate) fn parse_config<O: Origin + ?Sized>(bytes: &[u8], origin: &O) -> Result<Value> {
    serde_json::from_slice(unmarked(origin, bytes)?)
        .map_err(|error| Error::unreadable(origin, bytes, format!("is not valid JSON: {error}")))
}

/// True where a `config.json` says that the weights are quantized.
pub(crate) fn is_quantized(config: &Value) -> bool {
    config.get("quantization_config").is_some_and(|quantization| !quantization.is_null())
}

#[cfg(all(test, feature = "std"))]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ArtifactTensor;

    /// Opens a folder, and its files' bytes: both are the same model, or refused for the same reason.
    pub(crate) fn check_bytes_against_folder(folder: &Path) {
        let [config, weights] = [CONFIG, WEIGHTS].map(|name| fs_err::read(folder.join(name)).unwrap());
        match (Model::open(folder), Model::from_bytes(&config, weights)) {
            (Ok(opened), Ok(read)) => check_same(&opened, &read),
            (Err(opened), Err(read)) => assert_eq!(read.to_string(), without_folder(&opened, folder)),
            (opened, read) => panic!("{opened:?}, but {read:?}"),
        }
    }

    fn check_same(opened: &Model, read: &Model) {
        assert_eq!(read.architecture(), opened.architecture());
        assert_eq!(read.weight_bytes().unwrap(), opened.weight_bytes().unwrap());
        assert_eq!(read.content_hash(), opened.content_hash());
        for id in opened.architecture().tensors() {
            match (opened.values(id), read.values(id)) {
                (Ok(opened), Ok(read)) => assert_eq!(read, opened, "{id}"),
                (Err(Error::NotFinite { .. }), Err(Error::NotFinite { .. })) => {}
                (opened, read) => panic!("{id}: {opened:?}, but {read:?}"),
            }
        }
        match (opened, read) {
            (Model::Checkpoint(opened), Model::Checkpoint(read)) => {
                assert_eq!((read.dtype(), read.config()), (opened.dtype(), opened.config()));
                for id in opened.architecture().tensors() {
                    let bytes = |checkpoint: &Checkpoint| {
                        checkpoint.mapped(id).map(|slice| (slice.dtype, slice.shape.clone(), slice.bytes.to_vec()))
                    };
                    assert_eq!(bytes(read), bytes(opened), "{id}");
                }
            }
            (Model::Artifact(opened), Model::Artifact(read)) => {
                assert_eq!((read.input_rounding(), read.config()), (opened.input_rounding(), opened.config()));
                for id in opened.architecture().tensors() {
                    match (opened.tensor(id), read.tensor(id)) {
                        (ArtifactTensor::Dense(opened), ArtifactTensor::Dense(read)) => {
                            assert_eq!((read.dtype, &read.shape, &*read.bytes), (opened.dtype, &opened.shape, &*opened.bytes));
                        }
                        (ArtifactTensor::Quantized(opened), ArtifactTensor::Quantized(read)) => {
                            assert_eq!(
                                (read.rows, read.columns, read.scheme, read.scales, read.zero_points),
                                (opened.rows, opened.columns, opened.scheme, opened.scales, opened.zero_points)
                            );
                            use crate::Values::{Packed, Signed};
                            match (&opened.values, &read.values) {
                                (Packed(opened), Packed(read)) | (Signed(opened), Signed(read)) => assert_eq!(**read, **opened),
                                (opened, read) => panic!("{id}: {opened:?}, but {read:?}"),
                            }
                        }
                        (ArtifactTensor::Codebooks(opened), ArtifactTensor::Codebooks(read)) => {
                            let centroids =
                                |matrix: &crate::CodebookMatrix| (matrix.centroids.dtype, matrix.centroids.bytes.to_vec());
                            assert_eq!((read.codebooks, centroids(&read)), (opened.codebooks, centroids(&opened)));
                            assert_eq!((&*read.indices, read.to_f32()), (&*opened.indices, opened.to_f32()));
                        }
                        (opened, read) => panic!("{id}: {opened:?}, but {read:?}"),
                    }
                }
            }
            (opened, read) => panic!("{opened:?}, but {read:?}"),
        }
    }

    /// A folder's error as its files' bytes have it: by the name of the file, and by that of the weights instead of the folder's.
    fn without_folder(error: &Error, folder: &Path) -> String {
        let folder = folder.display();
        error.to_string().replace(&format!("{folder}/"), "").replace(&format!("{folder}: "), "model.safetensors: ")
    }

    #[test]
    fn every_byte_of_the_weights_and_every_number_of_the_configuration_is_in_the_hash() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
        let [config, weights] = [CONFIG, WEIGHTS].map(|name| fs_err::read(golden.join(name)).unwrap());
        let hash = |config: &[u8], weights: &[u8]| Model::from_bytes(config, weights.to_vec()).unwrap().content_hash();
        let own = hash(&config, &weights);
        assert_eq!(Model::open(&golden).unwrap().content_hash(), own);
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        for at in (header..weights.len()).step_by(997).chain([weights.len() - 1]) {
            let mut changed = weights.clone();
            changed[at] ^= 1;
            assert_ne!(hash(&config, &changed), own, "byte {at}");
        }
        let mut changed = parse_config(&config, CONFIG).unwrap();
        changed["rms_norm_eps"] = 1e-3.into();
        assert_ne!(hash(changed.to_string().as_bytes(), &weights), own);
    }

    #[test]
    fn bytes_that_are_no_model_are_refused_by_the_name_of_the_file() {
        let refused = |config: &str| Model::from_bytes(config.as_bytes(), Vec::new()).unwrap_err().to_string();
        assert_eq!(refused(""), "config.json: is empty: copy or download it again");
        assert_eq!(refused("{"), "config.json: is not valid JSON: EOF while parsing an object at line 1 column 1");
        assert_eq!(refused("7"), "config.json: the configuration is not a JSON object");
        assert_eq!(
            refused(r#"{"model_type": "phi3"}"#),
            "config.json: model_type \"phi3\" is not a known family; known are llama, mistral, qwen2, qwen3, gpt2"
        );
        assert_eq!(
            refused(r#"{"quantization_config": {"quant_method": "gptq"}}"#),
            "config.json: quant_method \"gptq\" (AutoGPTQ, GPTQModel) is not read; known is compressed-tensors. Open the model with dense \
             weights that it was made from, and quantize that"
        );
        let small = r#"{"model_type": "gpt2", "vocab_size": 5, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}"#;
        assert_eq!(refused(small), "model.safetensors: is empty: copy or download it again");
        let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
        assert_eq!(
            Model::from_bytes(small.as_bytes(), empty.clone()).unwrap_err().to_string(),
            "model.safetensors: there is no tensor `transformer.wte.weight`, and config.json asks for it"
        );
        assert_eq!(
            Artifact::from_bytes(small.as_bytes(), empty.clone()).unwrap_err().to_string(),
            "model.safetensors: is no artifact: its config.json has no `quantization_config`"
        );
        assert_eq!(
            Checkpoint::from_bytes(br#"{"quantization_config": {}}"#, empty).unwrap_err().to_string(),
            "model.safetensors: holds quantized weights (an artifact), a checkpoint with dense ones is needed"
        );
    }
}
