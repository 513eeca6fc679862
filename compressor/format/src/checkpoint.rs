//! Checkpoints: a Hugging Face folder or a GGUF file with dense weights.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::chat;
use crate::safetensors::{Dtype, TensorFiles, TensorSlice};
use crate::weights::transpose;
use crate::{Architecture, Error, Family, GgufFile, Result, StoredTensor, TensorId, Tokenizer, Weights};

/// A checkpoint on disk: its architecture is read and every tensor's presence and shape checked; values stay in the file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    architecture: Architecture,
    config: Value,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Safetensors(SafetensorsSource),
    Gguf(Box<GgufFile>),
}

/// The files that make a tokenizer; they travel with the model.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
];

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// A missing or damaged file, an unknown family, a tensor that is missing or of another shape than `config.json` says, and
    /// tensors that nothing would read; all by name. [`Error::Unsupported`] for a folder with quantized weights.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        let config = read_config(path)?;
        if config.get("quantization_config").is_some_and(|quantized| !quantized.is_null()) {
            return Err(Error::unsupported(
                path,
                "holds quantized weights (an artifact), a checkpoint with dense ones is needed",
            ));
        }
        let architecture = Family::read(&config, &path.join("config.json"))?;
        let source = Source::Safetensors(SafetensorsSource::open(path, &architecture)?);
        Ok(Self { path: path.to_owned(), architecture, config, source })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let config = file.config()?;
        let architecture = Family::read(&config, path)?;
        for id in architecture.tensors() {
            let name = id.to_string();
            let (found, expected) = (file.canonical_shape(&name)?, architecture.shape(id));
            if found != expected {
                return Err(Error::Shape { path: path.to_owned(), name, found, expected });
            }
        }
        Ok(Self { path: path.to_owned(), architecture, config, source: Source::Gguf(Box::new(file)) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The files it was read from: configuration, weights, and what makes the tokenizer.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Safetensors(source) => {
                let mut files = vec![self.path.join("config.json")];
                files.extend_from_slice(source.files.files());
                files.extend(companions(&self.path));
                files
            }
            Source::Gguf(_) => vec![self.path.clone()],
        }
    }

    /// The element type that most weights are stored in; f32 for a GGUF file, whose blocks are dequantized.
    pub fn dtype(&self) -> Dtype {
        match &self.source {
            Source::Safetensors(source) => source.dtype(),
            Source::Gguf(_) => Dtype::F32,
        }
    }

    /// Bytes of the files that hold weights.
    ///
    /// # Errors
    /// [`Error::Io`] where a file is gone.
    pub fn weight_bytes(&self) -> Result<u64> {
        let bytes = |file: &PathBuf| Ok(fs_err::metadata(file)?.len());
        match &self.source {
            Source::Safetensors(source) => source.files.files().iter().map(bytes).sum(),
            Source::Gguf(_) => bytes(&self.path),
        }
    }

    /// The values of one of the architecture's tensors, `[out, in]`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity.
    pub fn tensor(&self, id: TensorId) -> Result<Vec<f32>> {
        match &self.source {
            Source::Safetensors(source) => {
                let values = source.values(&self.architecture, id);
                crate::check_finite(&self.path, &source.location(id).tensor.name, &values)?;
                Ok(values)
            }
            Source::Gguf(file) => {
                let name = id.to_string();
                let values = file.canonical_f32(&name)?;
                crate::check_finite(&self.path, &name, &values)?;
                Ok(values)
            }
        }
    }

    /// The bytes of a tensor as they lie in the file, where they lie there as `[out, in]` rows of a float type.
    pub fn mapped(&self, id: TensorId) -> Option<TensorSlice> {
        match &self.source {
            Source::Safetensors(source) => source.mapped(&self.architecture, id),
            Source::Gguf(_) => None,
        }
    }

    /// Every tensor's values, in memory.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn weights(&self) -> Result<Weights> {
        let values: Result<BTreeMap<_, _>> =
            self.architecture.tensors().into_par_iter().map(|id| Ok((id, self.tensor(id)?))).collect();
        Ok(Weights::new(self.architecture.clone(), self.config.clone(), values?))
    }

    /// The tokenizer that lies with the weights: `tokenizer.json`, or the one inside a GGUF file.
    ///
    /// # Errors
    /// Where there is none, or it is damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.source {
            Source::Safetensors(_) => Tokenizer::open(self.path.join("tokenizer.json")),
            Source::Gguf(file) => {
                Tokenizer::from_json(self.gguf_tokenizer(file)?).map_err(|error| Error::malformed(&self.path, error.to_string()))
            }
        }
    }

    /// A GGUF file's tokenizer as `tokenizer.json`.
    fn gguf_tokenizer(&self, file: &GgufFile) -> Result<Vec<u8>> {
        let json = file.tokenizer()?.to_string(true).map_err(|error| Error::malformed(&self.path, error.to_string()))?;
        Ok(json.into_bytes())
    }

    /// Copies what makes the tokenizer into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file can't be copied.
    pub fn copy_companions(&self, folder: &Path) -> Result<()> {
        match &self.source {
            Source::Safetensors(_) => copy_companions(&self.path, folder),
            Source::Gguf(file) => {
                let json = self.gguf_tokenizer(file)?;
                crate::write_beside(folder.join("tokenizer.json"), |out| Ok(out.write_all(&json)?))?;
                chat::write_files(file, folder)
            }
        }
    }
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// [`Error::Io`] where there is none, [`Error::Malformed`] with line and column where it is no JSON.
pub fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| Error::malformed(&path, format!("is not valid JSON: {error}")))
}

/// Copies what makes the tokenizer from one folder into another.
///
/// # Errors
/// [`Error::Io`] where a file can't be copied.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for file in companions(from) {
        let name = file.file_name().expect("made by joining a name");
        let bytes = fs_err::read(&file)?;
        crate::write_beside(to.join(name), |out| Ok(out.write_all(&bytes)?))?;
    }
    Ok(())
}

fn companions(folder: &Path) -> Vec<PathBuf> {
    COMPANIONS.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
}

/// Tensors in safetensors files, found by what they are.
#[derive(Clone, Debug)]
struct SafetensorsSource {
    files: TensorFiles,
    locations: HashMap<TensorId, Location>,
}

/// Where a tensor lies: rows `first_row..` of a stored one.
#[derive(Clone, Debug)]
struct Location {
    tensor: StoredTensor,
    name_in_file: String,
    first_row: usize,
}

impl SafetensorsSource {
    fn open(folder: &Path, architecture: &Architecture) -> Result<Self> {
        let files = TensorFiles::open(folder)?;
        let mut locations = HashMap::new();
        let mut known = Vec::new();
        for tensor in Family::stored(architecture) {
            let name_in_file = name_in(&files, architecture, &tensor.name)
                .ok_or_else(|| Error::MissingTensor { path: folder.to_owned(), name: tensor.name.clone() })?;
            let slice = files.get(&name_in_file).expect("found by name above");
            let expected = tensor.shape(architecture);
            if slice.shape != expected {
                let found = slice.shape.clone();
                return Err(Error::Shape { path: folder.to_owned(), name: name_in_file, found, expected });
            }
            if !slice.dtype.is_float() {
                let what = format!("tensor `{name_in_file}` is {}, dense weights are f32, f16 or bf16", slice.dtype);
                return Err(Error::unsupported(folder, what));
            }
            let mut first_row = 0;
            for part in &tensor.parts {
                let location = Location { tensor: tensor.clone(), name_in_file: name_in_file.clone(), first_row };
                locations.insert(*part, location);
                first_row += architecture.shape(*part)[0];
            }
            known.push(name_in_file);
        }
        known.sort();
        let unread = |name: &str| known.binary_search(&name.to_owned()).is_err() && !Family::is_ignored(architecture, name);
        if let Some((name, _)) = files.iter().find(|(name, _)| unread(name)) {
            let what = format!("tensor `{name}` has no place in the model that config.json describes");
            return Err(Error::malformed(folder, what));
        }
        Ok(Self { files, locations })
    }

    fn location(&self, id: TensorId) -> &Location {
        self.locations.get(&id).expect("`open` located every tensor of the architecture")
    }

    fn slice(&self, location: &Location) -> &TensorSlice {
        self.files.get(&location.name_in_file).expect("`open` found this name")
    }

    fn values(&self, architecture: &Architecture, id: TensorId) -> Vec<f32> {
        let location = self.location(id);
        if let Some(mapped) = self.mapped(architecture, id) {
            return mapped.to_f32().expect("`open` refused integer types");
        }
        let slice = self.slice(location);
        let columns = slice.shape[1];
        let whole = transpose(&slice.to_f32().expect("`open` refused integer types"), columns);
        let per_row = slice.shape[0];
        let rows = architecture.shape(id)[0];
        whole[location.first_row * per_row..(location.first_row + rows) * per_row].to_vec()
    }

    fn mapped(&self, architecture: &Architecture, id: TensorId) -> Option<TensorSlice> {
        let location = self.location(id);
        if location.tensor.transposed {
            return None;
        }
        let slice = self.slice(location);
        let shape = architecture.shape(id);
        let row_bytes = slice.dtype.bytes() * shape[1..].iter().product::<usize>();
        let bytes = slice.bytes.slice(location.first_row * row_bytes..(location.first_row + shape[0]) * row_bytes)?;
        Some(TensorSlice { dtype: slice.dtype, shape, bytes })
    }

    fn dtype(&self) -> Dtype {
        let mut bytes = BTreeMap::new();
        for location in self.locations.values() {
            let slice = self.slice(location);
            *bytes.entry(slice.dtype).or_insert(0) += slice.bytes.len();
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Dtype::F32, |(dtype, _)| dtype)
    }
}

/// The name a tensor has in these files, which may leave out the family's prefix.
fn name_in(files: &TensorFiles, architecture: &Architecture, name: &str) -> Option<String> {
    let short = name.strip_prefix(architecture.family.optional_prefix());
    [Some(name), short].into_iter().flatten().find(|name| files.get(name).is_some()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn architecture(family: Family) -> Architecture {
        let config = match family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 12
            }),
            _ => json!({
                "model_type": family.model_type(), "vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "head_dim": 6,
                "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16,
                "tie_word_embeddings": true
            }),
        };
        Family::read(&config, Path::new("config.json")).unwrap()
    }

    fn written(family: Family, dtype: Dtype) -> (tempfile::TempDir, Weights) {
        let folder = tempfile::tempdir().unwrap();
        let weights = Weights::random(architecture(family), 5);
        weights.write(folder.path(), dtype).unwrap();
        (folder, weights)
    }

    #[test]
    fn every_family_reads_the_values_it_wrote() {
        for family in Family::ALL {
            let (folder, weights) = written(family, Dtype::F32);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.architecture(), weights.architecture());
            for (id, values) in weights.iter() {
                assert_eq!(checkpoint.tensor(id).unwrap(), values, "{family:?} {id}");
            }
        }
    }

    #[test]
    fn gpt2_stores_conv1d_as_in_by_out_with_query_key_value_side_by_side() {
        let (folder, weights) = written(Family::Gpt2, Dtype::F32);
        let files = TensorFiles::open(folder.path()).unwrap();
        let fused = files.get("transformer.h.1.attn.c_attn.weight").unwrap();
        assert_eq!(fused.shape, [8, 24]);
        let key = weights.get(TensorId::Layer(1, crate::LayerTensor::Key(crate::Part::Weight)));
        // Key row 3, column 5 lies at row 5, column 8 + 3.
        assert_eq!(fused.to_f32().unwrap()[5 * 24 + 11], key[3 * 8 + 5]);
    }

    #[test]
    fn half_types_round_to_nearest_and_are_named() {
        let (folder, weights) = written(Family::Llama, Dtype::Bf16);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.dtype(), Dtype::Bf16);
        for (stored, exact) in checkpoint.tensor(TensorId::Embedding).unwrap().iter().zip(weights.get(TensorId::Embedding)) {
            assert!((stored - exact).abs() <= exact.abs() / 256.0, "eight significant bits: half a step is 2⁻⁸");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_without_a_panic() {
        let (folder, _) = written(Family::Llama, Dtype::F32);
        let path = folder.path().join("model.safetensors");
        let whole = fs_err::read(&path).unwrap();
        for len in [0, 1, 7, 8, 9, 100, 1000, whole.len() - 1] {
            fs_err::write(&path, &whole[..len]).unwrap();
            let error = Checkpoint::open(folder.path()).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{len} bytes: {error}");
        }
        fs_err::write(&path, &whole[..whole.len() - 1]).unwrap();
        let expected = format!(
            "{}: its {} bytes are not what the header says: the file is cut short or has a tail",
            path.display(),
            whole.len() - 1
        );
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_configuration_that_disagrees_with_the_tensors_is_refused_by_tensor() {
        let (folder, _) = written(Family::Llama, Dtype::F32);
        let mut config = read_config(folder.path()).unwrap();
        config["intermediate_size"] = json!(16);
        write_config_of(folder.path(), &config);
        let shown = folder.path().display();
        let expected =
            format!("{shown}: tensor `model.layers.0.mlp.gate_proj.weight` has shape [12, 8], config.json asks for [16, 8]");
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);

        config["intermediate_size"] = json!(12);
        config["num_hidden_layers"] = json!(3);
        write_config_of(folder.path(), &config);
        let expected =
            format!("{shown}: there is no tensor `model.layers.2.input_layernorm.weight`, and config.json asks for it");
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);

        config["num_hidden_layers"] = json!(1);
        write_config_of(folder.path(), &config);
        let expected = format!(
            "{shown}: tensor `model.layers.1.input_layernorm.weight` has no place in the model that config.json describes"
        );
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }

    fn write_config_of(folder: &Path, config: &Value) {
        fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    #[test]
    fn nan_is_refused_by_tensor_and_place_when_written_and_when_read() {
        let (folder, weights) = written(Family::Llama, Dtype::F32);
        let (architecture, config, mut tensors) = weights.into_parts();
        tensors.get_mut(&TensorId::Embedding).unwrap()[9] = f32::NAN;
        let poisoned = Weights::new(architecture, config, tensors);
        let expected = format!("{}: tensor `model.embed_tokens.weight` holds NaN at element 9", folder.path().display());
        assert_eq!(poisoned.write(folder.path(), Dtype::F32).unwrap_err().to_string(), expected);
    }

    #[test]
    fn shards_are_read_as_one_and_may_not_leave_the_folder() {
        let (folder, weights) = written(Family::Llama, Dtype::F32);
        let whole = folder.path().join("model.safetensors");
        fs_err::rename(&whole, folder.path().join("model-00001-of-00001.safetensors")).unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        fs_err::write(&index, r#"{"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}"#).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.tensor(TensorId::Embedding).unwrap(), weights.get(TensorId::Embedding));
        fs_err::write(&index, r#"{"weight_map": {"model.norm.weight": "../secret.safetensors"}}"#).unwrap();
        let expected = format!("{}: `../secret.safetensors` is not the name of a file in this folder", index.display());
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }
}
