//! Checkpoints: a model with dense weights, from a Hugging Face folder, a GGUF file or bytes.

#[cfg(feature = "std")]
mod folder;

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

#[cfg(feature = "std")]
pub(crate) use self::folder::refuse_part;
#[cfg(feature = "std")]
pub use self::folder::{StoredAs, copy_companions, read_config};
use crate::model::{CONFIG, WEIGHTS, is_quantized, parse_config};
use crate::origin::Kept;
use crate::safetensors::{Dtype, TensorFiles, TensorSlice};
use crate::{Architecture, Error, Family, MappedBytes, Origin, Result, StoredTensor, TensorId, check_finite};

/// A checkpoint: its architecture is read and every tensor's presence and shape checked; values stay where they lie.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: Kept,
    architecture: Architecture,
    config: Value,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Safetensors(SafetensorsSource),
    #[cfg(feature = "std")]
    Gguf(alloc::boxed::Box<crate::GgufFile>),
}

impl Checkpoint {
    /// Reads a checkpoint from the bytes of its `config.json` and its `model.safetensors`, by which names errors call them.
    ///
    /// # Errors
    /// As [`crate::Model::from_bytes`]; [`Error::Unsupported`] where the weights are quantized.
    pub fn from_bytes(config: &[u8], weights: impl Into<MappedBytes>) -> Result<Self> {
        let config = parse_config(config, CONFIG)?;
        Self::read(config, CONFIG, WEIGHTS.into(), || TensorFiles::from_bytes(weights, WEIGHTS))
    }

    /// Reads a checkpoint, whose tensors are asked for when `config`, which errors call `config_origin`, is believed.
    pub(crate) fn read(
        config: Value,
        config_origin: &str,
        path: Kept,
        files: impl FnOnce() -> Result<TensorFiles>,
    ) -> Result<Self> {
        let origin = path.shown();
        if is_quantized(&config) {
            return Err(Error::unsupported(
                &origin,
                "holds quantized weights (an artifact), a checkpoint with dense ones is needed",
            ));
        }
        let mut architecture = Family::read(&config, config_origin)?;
        let files = files()?;
        Family::settle_head(&mut architecture, &files);
        let source = Source::Safetensors(SafetensorsSource::new(files, &architecture, &origin)?);
        Ok(Self { path, architecture, config, source })
    }

    /// What it is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The element type that most weights are stored in; f32 for a GGUF file, whose blocks are dequantized.
    pub fn dtype(&self) -> Dtype {
        match &self.source {
            Source::Safetensors(source) => source.dtype(),
            #[cfg(feature = "std")]
            Source::Gguf(_) => Dtype::F32,
        }
    }

    /// The values of one of the architecture's tensors, `[out, in]`. What a mapped file holds of it is let go of.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity.
    pub fn tensor(&self, id: TensorId) -> Result<Vec<f32>> {
        match &self.source {
            Source::Safetensors(source) => {
                let values = source.values(&self.architecture, id);
                check_finite(&self.path, &source.location(id).tensor.name, &values)?;
                Ok(values)
            }
            #[cfg(feature = "std")]
            Source::Gguf(file) => {
                let name = id.to_string();
                let values = file.canonical_f32(&name)?;
                check_finite(&self.path, &name, &values)?;
                Ok(values)
            }
        }
    }

    /// Some rows of a matrix, `[rows, in]`, in the memory of those rows alone wherever the file has them side by side.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    ///
    /// # Panics
    /// Where the matrix has fewer rows.
    #[cfg(feature = "std")]
    pub fn rows(&self, id: TensorId, rows: core::ops::Range<usize>) -> Result<Vec<f32>> {
        let columns = self.architecture.shape(id)[1];
        let (name, values) = match &self.source {
            Source::Safetensors(source) => {
                let Some(mapped) = source.mapped(&self.architecture, id) else {
                    return Ok(self.tensor(id)?[rows.start * columns..rows.end * columns].to_vec());
                };
                let row_bytes = columns * mapped.dtype.bytes();
                let bytes = mapped.bytes.slice(rows.start * row_bytes..rows.end * row_bytes).expect("the matrix has these rows");
                let values = mapped.dtype.to_f32(&bytes).expect("`new` refused integer types");
                bytes.release();
                (source.location(id).tensor.name.clone(), values)
            }
            Source::Gguf(file) => (id.to_string(), file.canonical_rows(&id.to_string(), rows.clone())?),
        };
        match check_finite(&self.path, &name, &values) {
            Err(Error::NotFinite { path, name, value, index }) => {
                Err(Error::NotFinite { path, name, value, index: index + rows.start * columns })
            }
            checked => checked.map(|()| values),
        }
    }

    /// The bytes of a tensor as they lie in the file, where they lie there as `[out, in]` rows of a float type.
    pub fn mapped(&self, id: TensorId) -> Option<TensorSlice> {
        match &self.source {
            Source::Safetensors(source) => source.mapped(&self.architecture, id),
            #[cfg(feature = "std")]
            Source::Gguf(_) => None,
        }
    }
}

/// Tensors in safetensors files, found by what they are.
#[derive(Clone, Debug)]
struct SafetensorsSource {
    files: TensorFiles,
    locations: BTreeMap<TensorId, Location>,
}

/// Where a tensor lies: rows `first_row..` of a stored one.
#[derive(Clone, Debug)]
struct Location {
    tensor: StoredTensor,
    name_in_file: String,
    first_row: usize,
}

impl SafetensorsSource {
    fn new(files: TensorFiles, architecture: &Architecture, origin: &str) -> Result<Self> {
        let mut locations = BTreeMap::new();
        let mut known = Vec::new();
        for tensor in Family::stored(architecture) {
            let name_in_file = Family::name_in(&files, architecture, &tensor.name)
                .ok_or_else(|| missing(&files, architecture, &tensor.name, origin))?;
            let slice = files.get(&name_in_file).expect("found by name above");
            let expected = tensor.shape(architecture);
            if slice.shape != expected {
                let found = slice.shape.clone();
                return Err(Error::Shape { path: origin.to_owned(), name: name_in_file, found, expected });
            }
            if !slice.dtype.is_float() {
                let what = format!("tensor `{name_in_file}` is {}, dense weights are f64, f32, f16 or bf16", slice.dtype);
                return Err(Error::unsupported(origin, what));
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
        let is_read = |name: &str| known.binary_search(&name.to_owned()).is_ok() || Family::is_ignored(architecture, name);
        files.refuse_unread(is_read, origin)?;
        Ok(Self { files, locations })
    }

    fn location(&self, id: TensorId) -> &Location {
        self.locations.get(&id).expect("`new` located every tensor of the architecture")
    }

    fn slice(&self, location: &Location) -> &TensorSlice {
        self.files.get(&location.name_in_file).expect("`new` found this name")
    }

    fn values(&self, architecture: &Architecture, id: TensorId) -> Vec<f32> {
        let location = self.location(id);
        let read = |slice: &TensorSlice| {
            let values = slice.to_f32().expect("`new` refused integer types");
            slice.bytes.release();
            values
        };
        if let Some(mapped) = self.mapped(architecture, id) {
            return read(&mapped);
        }
        let slice = self.slice(location);
        let columns = slice.shape[1];
        let whole = transpose(&read(slice), columns);
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
            // What is read as f32 is written as f32.
            let dtype = if slice.dtype == Dtype::F64 { Dtype::F32 } else { slice.dtype };
            *bytes.entry(dtype).or_insert(0) += slice.bytes.len();
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Dtype::F32, |(dtype, _)| dtype)
    }
}

/// The error for a tensor that is under neither name.
fn missing(files: &TensorFiles, architecture: &Architecture, name: &str, origin: &str) -> Error {
    match name.strip_prefix(architecture.family.optional_prefix()).map(|short| files.missing(short, origin)) {
        Some(error @ Error::Unsupported { .. }) => error,
        _ => files.missing(name, origin),
    }
}

/// Turns row-major `[rows, columns]` into `[columns, rows]`.
pub(crate) fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Weights;
    use crate::damage::Damage;
    use crate::model::tests::check_bytes_against_folder;

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
    fn some_rows_are_those_of_the_whole() {
        for family in [Family::Llama, Family::Gpt2] {
            let (folder, weights) = written(family, Dtype::F32);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let matrices = weights.iter().filter(|(id, _)| checkpoint.architecture().shape(*id).len() == 2);
            for (id, whole) in matrices {
                let columns = checkpoint.architecture().shape(id)[1];
                assert_eq!(checkpoint.rows(id, 2..5).unwrap(), whole[2 * columns..5 * columns], "{id}");
            }
        }
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
            check_bytes_against_folder(folder.path());
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

    /// Rewrites the weights with these names added or, where nothing stands there, renamed from the first of the pair.
    fn with_head(folder: &Path, head: impl Fn(&[f32]) -> Vec<f32>, keep_embedding: bool) {
        let files = TensorFiles::open(folder).unwrap();
        let name = "model.embed_tokens.weight";
        let mut tensors: BTreeMap<String, TensorSlice> = files
            .iter()
            .map(|(name, tensor)| (name.to_owned(), TensorSlice { bytes: tensor.bytes.to_vec().into(), ..tensor.clone() }))
            .collect();
        let mut matrix = tensors[name].clone();
        matrix.bytes = matrix.dtype.from_f32(&head(&matrix.to_f32().unwrap())).unwrap().into();
        if !keep_embedding {
            tensors.remove(name);
        }
        tensors.insert("lm_head.weight".to_owned(), matrix);
        let new = tensors.into_iter().map(|(name, TensorSlice { dtype, shape, bytes })| {
            (name, crate::NewTensor { dtype, shape, bytes: Box::new(move || bytes.to_vec().into()) })
        });
        crate::write_safetensors(&folder.join("model.safetensors"), new).unwrap();
    }

    #[test]
    fn a_tied_head_is_the_embedding_where_both_are_equal_or_it_stands_alone_and_its_own_matrix_else() {
        let (folder, weights) = written(Family::Llama, Dtype::F32);
        let embedding = weights.get(TensorId::Embedding);
        let open = || Checkpoint::open(folder.path()).unwrap();

        with_head(folder.path(), <[f32]>::to_vec, true);
        assert_eq!(open().architecture(), weights.architecture());

        let other = |values: &[f32]| values.iter().map(|value| value + 1.0).collect::<Vec<_>>();
        with_head(folder.path(), other, true);
        assert!(!open().architecture().tied_embeddings);
        assert_eq!(open().tensor(TensorId::Embedding).unwrap(), embedding);
        assert_eq!(open().tensor(TensorId::Head).unwrap(), other(embedding));
        // What is written from it says so.
        let again = tempfile::tempdir().unwrap();
        open().weights().unwrap().write(again.path(), Dtype::F32).unwrap();
        assert_eq!(read_config(again.path()).unwrap()["tie_word_embeddings"], json!(false));

        with_head(folder.path(), <[f32]>::to_vec, false);
        assert!(open().architecture().tied_embeddings);
        assert_eq!(open().tensor(TensorId::Embedding).unwrap(), embedding);
        assert_eq!(open().rows(TensorId::Embedding, 1..3).unwrap(), embedding[8..24]);
        check_bytes_against_folder(folder.path());
    }

    #[test]
    fn an_adapter_is_refused_with_or_without_the_model_it_changes() {
        let (folder, _) = written(Family::Llama, Dtype::F32);
        let config = folder.path().join("adapter_config.json");
        fs_err::write(&config, "{}").unwrap();
        let expected = format!(
            "{}: belongs to an adapter (LoRA), which changes the model it lies beside; merge it into that model's weights first, or \
             remove its files where it is merged already",
            config.display()
        );
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
        fs_err::remove_file(folder.path().join("config.json")).unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }

    fn write_config_of(folder: &Path, config: &Value) {
        fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    /// Adds a tensor of four bytes, of any type of the format, to a folder's weights.
    fn add_tensor(folder: &Path, name: &str, dtype: &str, shape: &[usize]) {
        let path = folder.join("model.safetensors");
        let file = fs_err::read(&path).unwrap();
        let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let (header, data) = file[8..].split_at(length);
        let mut header: Value = serde_json::from_slice(header).unwrap();
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), data.len() + 4]});
        let header = header.to_string().into_bytes();
        fs_err::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], data, &[1; 4]].concat()).unwrap();
    }

    #[test]
    fn masks_of_gpt2_may_be_of_any_type() {
        let (folder, weights) = written(Family::Gpt2, Dtype::F32);
        add_tensor(folder.path(), "h.0.attn.bias", "BOOL", &[1, 1, 2, 2]);
        add_tensor(folder.path(), "transformer.h.1.attn.bias", "U8", &[1, 1, 2, 2]);
        add_tensor(folder.path(), "h.1.attn.masked_bias", "F8_E4M3", &[4]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.tensor(TensorId::Embedding).unwrap(), weights.get(TensorId::Embedding));
        check_bytes_against_folder(folder.path());
        add_tensor(folder.path(), "h.0.attn.rotation", "U8", &[4]);
        let shown = folder.path().display();
        let expected = format!("{shown}: tensor `h.0.attn.rotation` has no place in the model that config.json describes");
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn weights_of_a_type_that_is_not_read_are_refused_by_it() {
        for (family, name) in [(Family::Llama, "model.norm.weight"), (Family::Gpt2, "ln_f.weight")] {
            let (folder, _) = written(family, Dtype::F32);
            let path = folder.path().join("model.safetensors");
            let file = fs_err::read(&path).unwrap();
            let full = if family == Family::Gpt2 { "transformer.ln_f.weight" } else { name };
            let text = String::from_utf8_lossy(&file[8..4096]);
            let at = 8 + text.find(&format!("\"{full}\":{{\"dtype\":\"F32\"")).unwrap();
            let mut changed = file.clone();
            let dtype = at + full.len() + 13;
            assert_eq!(&changed[dtype..dtype + 3], b"F32");
            changed[dtype] = b'U';
            fs_err::write(&path, changed).unwrap();
            let expected =
                format!("{}: tensor `{full}` is U32; known are F64, F32, F16, BF16, I8, I32, I64", folder.path().display());
            assert_eq!(Checkpoint::open(folder.path()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn weights_in_f64_are_read_as_f32() {
        for family in [Family::Llama, Family::Gpt2] {
            let (folder, weights) = written(family, Dtype::F64);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.dtype(), Dtype::F32);
            for (id, values) in weights.iter() {
                assert_eq!(checkpoint.tensor(id).unwrap(), values, "{id}");
            }
            check_bytes_against_folder(folder.path());
            let path = folder.path().join("model.safetensors");
            let mut file = fs_err::read(&path).unwrap();
            let last = file.len() - 8;
            file[last..].copy_from_slice(&1e300f64.to_le_bytes());
            fs_err::write(&path, file).unwrap();
            let error = Checkpoint::open(folder.path()).unwrap().weights().unwrap_err().to_string();
            assert!(error.contains(" holds inf at element "), "{error}");
        }
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

    proptest! {
        #[test]
        fn changed_files_and_their_bytes_are_one_model_or_refused_for_one_reason(
            family in prop::sample::select(Family::ALL.to_vec()),
            in_config in any::<bool>(),
            damage in Damage::any(0..4, 0.2),
        ) {
            let (folder, _) = written(family, Dtype::F16);
            damage.strike(&folder.path().join(if in_config { "config.json" } else { "model.safetensors" }));
            check_bytes_against_folder(folder.path());
        }
    }
}
