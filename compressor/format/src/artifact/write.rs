//! Writes artifacts: the layout of quantized tensors, and `quantization_config`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Artifact, ArtifactTensor, InputRounding, input_scale_name, shape_of_rows};
use crate::model::WEIGHTS;
use crate::safetensors::{SafetensorsWriter, layout_metadata};
use crate::{
    Architecture, CodebookMatrix, Codebooks, Dtype, Family, Levels, NewTensor, QuantizedMatrix, Result, Scheme, StoredTensor,
    TensorId, Values, pack, write_config, write_safetensors,
};

/// What an artifact that is to be written holds, before any of it is made.
#[derive(Clone, Debug)]
pub struct ArtifactLayout<'a> {
    /// What the model is.
    pub architecture: &'a Architecture,
    /// The `config.json` of the checkpoint.
    pub config: &'a Value,
    /// The type that `config.json` names: that of dense tensors.
    pub dense_dtype: Dtype,
    /// The float type that scales are written in, and centroids are of; every scale is one of its values.
    pub scale_dtype: Dtype,
    /// Every stored tensor of the architecture.
    pub tensors: Vec<(StoredTensor, Storage)>,
    /// What quantized projections do with what they multiply; static scales themselves come with the tensors.
    pub input_rounding: InputRounding,
}

/// An artifact under way, written tensor by tensor: none has to be in memory but the one that is put.
#[derive(Debug)]
pub struct ArtifactWriter<'a> {
    layout: &'a ArtifactLayout<'a>,
    folder: &'a Path,
    weights: SafetensorsWriter,
}

/// What an artifact is written from that is in memory as a whole: each stored tensor, dense as f32 or quantized, `[out, in]`.
pub struct NewArtifact<'a> {
    /// What the model is.
    pub architecture: &'a Architecture,
    /// The `config.json` of the checkpoint.
    pub config: &'a Value,
    /// The type dense tensors are written in.
    pub dense_dtype: Dtype,
    /// The float type that scales are written in, and centroids are of; every scale is one of its values.
    pub scale_dtype: Dtype,
    /// Every stored tensor of the architecture, quantized or left dense.
    pub tensors: Vec<(StoredTensor, NewArtifactTensor)>,
    /// What quantized projections do with what they multiply; a static scale is one of the values of `scale_dtype`.
    pub input_rounding: InputRounding,
}

/// A tensor to be written.
pub enum NewArtifactTensor {
    /// Stays dense: `[out, in]` values.
    Dense(Vec<f32>),
    /// Integers with scales.
    Quantized(QuantizedMatrix),
    /// Indices into codebooks.
    Codebooks(CodebookMatrix),
}

/// How a stored tensor lies in an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Dense, in this type.
    Dense(Dtype),
    /// Integers packed into 32-bit words.
    Packed(Scheme),
    /// Signed bytes, one scale per output channel: the layout of W8A8.
    Signed(Scheme),
    /// The same, with one scale for what the matrix multiplies: W8A8 with static scales of activations.
    SignedStatic(Scheme),
    /// Indices packed into 32-bit words, centroids beside them.
    Codebooks(Codebooks),
}

impl Storage {
    /// What the stored numbers can stand for, and whether they are packed; `None` for dense.
    pub fn levels(self) -> Option<(Levels, bool)> {
        match self {
            Self::Dense(_) => None,
            Self::Packed(scheme) => Some((scheme.into(), true)),
            Self::Signed(scheme) | Self::SignedStatic(scheme) => Some((scheme.into(), false)),
            Self::Codebooks(codebooks) => Some((codebooks.into(), true)),
        }
    }

    /// What `stored` is written as in this layout, with scales or centroids of type `scale_dtype`: names, types and shapes.
    ///
    /// Matrices are written `[out, in]`, whatever their family does.
    pub fn layout(
        self,
        stored: &StoredTensor,
        architecture: &Architecture,
        scale_dtype: Dtype,
    ) -> Vec<(String, Dtype, Vec<usize>)> {
        let mut shape = stored.shape(architecture);
        shape_of_rows(&mut shape, stored);
        match self {
            Self::Dense(dtype) => vec![(stored.name.clone(), dtype, shape)],
            Self::Packed(scheme) | Self::Signed(scheme) => {
                quantized_layout(&stored.name, [shape[0], shape[1]], scheme, matches!(self, Self::Packed(_)), scale_dtype)
            }
            Self::SignedStatic(scheme) => {
                let mut layout = quantized_layout(&stored.name, [shape[0], shape[1]], scheme, false, scale_dtype);
                layout.push((input_scale_name(&stored.name), scale_dtype, vec![1]));
                layout
            }
            Self::Codebooks(codebooks) => codebook_layout(&stored.name, [shape[0], shape[1]], codebooks, scale_dtype),
        }
    }

    /// Bytes that `stored` takes in this layout, scales included.
    pub fn bytes(self, stored: &StoredTensor, architecture: &Architecture, scale_dtype: Dtype) -> u64 {
        let bytes = |(_, dtype, shape): (_, Dtype, Vec<usize>)| shape.iter().product::<usize>() as u64 * dtype.bytes() as u64;
        self.layout(stored, architecture, scale_dtype).into_iter().map(bytes).sum()
    }
}

/// The tensors that a quantized matrix is stored as.
fn quantized_layout(
    name: &str,
    [rows, columns]: [usize; 2],
    scheme: Scheme,
    packed: bool,
    scale_dtype: Dtype,
) -> Vec<(String, Dtype, Vec<usize>)> {
    let groups = scheme.groups(columns);
    let mut layout = vec![(format!("{name}_scale"), scale_dtype, vec![rows, groups])];
    if packed {
        layout.push((format!("{name}_packed"), Dtype::I32, vec![rows, scheme.row_bytes(columns) / 4]));
        layout.push((format!("{name}_shape"), Dtype::I64, vec![2]));
    } else {
        layout.push((name.to_owned(), Dtype::I8, vec![rows, columns]));
    }
    if !scheme.symmetric {
        layout.push((format!("{name}_zero_point"), Dtype::I32, vec![scheme.row_bytes(rows) / 4, groups]));
    }
    layout
}

/// The tensors that a matrix of indices is stored as.
fn codebook_layout(
    name: &str,
    [rows, columns]: [usize; 2],
    codebooks: Codebooks,
    dtype: Dtype,
) -> Vec<(String, Dtype, Vec<usize>)> {
    vec![
        (format!("{name}_codebook"), dtype, vec![codebooks.count(rows), codebooks.centroids()]),
        (format!("{name}_packed"), Dtype::I32, vec![rows, codebooks.row_bytes(columns) / 4]),
        (format!("{name}_shape"), Dtype::I64, vec![2]),
    ]
}

impl NewArtifact<'_> {
    /// Writes `config.json` and `model.safetensors` into `folder`.
    ///
    /// # Errors
    /// As [`ArtifactLayout::begin`].
    ///
    /// # Panics
    /// Where inputs are rounded with static scales and a quantized projection has none: a mistake of the caller, never of a file.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let storage = |(stored, tensor): &(StoredTensor, NewArtifactTensor)| (stored.clone(), tensor.storage(self.dense_dtype));
        let layout = ArtifactLayout {
            architecture: self.architecture,
            config: self.config,
            dense_dtype: self.dense_dtype,
            scale_dtype: self.scale_dtype,
            tensors: self.tensors.iter().map(storage).collect(),
            input_rounding: self.input_rounding.clone(),
        };
        let mut writer = layout.begin(folder)?;
        for (stored, tensor) in &self.tensors {
            writer.put(stored, tensor)?;
            if let (InputRounding::Static(scales), true) = (&self.input_rounding, layout.rounds_input(stored)) {
                writer.put_input_scale(stored, scales[&stored.name])?;
            }
        }
        writer.finish()
    }
}

impl NewArtifactTensor {
    /// How it lies in an artifact; dense ones in the type `dense`.
    fn storage(&self, dense: Dtype) -> Storage {
        match self {
            Self::Dense(_) => Storage::Dense(dense),
            Self::Quantized(QuantizedMatrix { values: Values::Packed(_), scheme, .. }) => Storage::Packed(*scheme),
            Self::Quantized(QuantizedMatrix { values: Values::Signed(_), scheme, .. }) => Storage::Signed(*scheme),
            Self::Codebooks(matrix) => Storage::Codebooks(matrix.codebooks),
        }
    }
}

impl<'a> ArtifactLayout<'a> {
    /// Begins to write into `folder`: nothing of an artifact is there before [`ArtifactWriter::finish`].
    ///
    /// # Errors
    /// [`crate::Error::Io`] and [`crate::Error::NoRoom`] where the folder can't be written.
    pub fn begin(&'a self, folder: &'a Path) -> Result<ArtifactWriter<'a>> {
        fs_err::create_dir_all(folder)?;
        let parts = |(stored, storage): &(StoredTensor, Storage)| {
            let mut parts = storage.layout(stored, self.architecture, self.scale_dtype);
            let has_scale = matches!(storage, Storage::SignedStatic(_));
            if matches!(self.input_rounding, InputRounding::Static(_)) && self.rounds_input(stored) && !has_scale {
                parts.push((input_scale_name(&stored.name), self.scale_dtype, vec![1]));
            }
            parts
        };
        let described = self.tensors.iter().flat_map(parts).collect();
        let weights = SafetensorsWriter::begin(&folder.join(WEIGHTS), layout_metadata(), described)?;
        Ok(ArtifactWriter { layout: self, folder, weights })
    }

    /// Whether a tensor is a quantized projection, and so rounds what it multiplies where anything does.
    fn rounds_input(&self, stored: &StoredTensor) -> bool {
        let is_integers = |storage: &Storage| match storage {
            Storage::Packed(_) | Storage::Signed(_) | Storage::SignedStatic(_) => true,
            Storage::Dense(_) | Storage::Codebooks(_) => false,
        };
        let found = self.tensors.iter().find(|(other, _)| other.name == stored.name);
        stored.parts[0].is_projection() && found.is_some_and(|(_, storage)| is_integers(storage))
    }

    fn quantization_config(&self) -> Value {
        let mut ignore: Vec<&str> = Vec::new();
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (stored, storage) in &self.tensors {
            let module = stored.name.strip_suffix(".weight").unwrap_or(&stored.name);
            let (is_head, is_projection) = (stored.parts[0] == TensorId::Head, stored.parts[0].is_projection());
            if let Storage::Dense(_) = storage {
                if is_head {
                    ignore.push("lm_head");
                } else if is_projection && stored.name.ends_with(".weight") {
                    ignore.push(module);
                }
                continue;
            }
            let class = if stored.transposed { "Conv1D" } else { "Linear" };
            match groups.iter_mut().find(|group| (group.storage, group.is_projection) == (*storage, is_projection)) {
                Some(group) => group.modules.push((module, class)),
                None => groups.push(Group { storage: *storage, is_projection, modules: vec![(module, class)] }),
            }
        }
        if self.architecture.tied_embeddings {
            ignore.push("lm_head");
        }
        // The scheme of most projections is said of their class, any other of each module by name.
        let most = groups.iter().filter(|group| group.is_projection).map(|group| group.modules.len()).max();
        let common = groups.iter().position(|group| group.is_projection && Some(group.modules.len()) == most);
        let format = common.map_or("pack-quantized", |index| groups[index].format());
        let groups: serde_json::Map<String, Value> = groups
            .iter()
            .enumerate()
            .map(|(index, group)| (format!("group_{index}"), group.json(&self.input_rounding, common == Some(index))))
            .collect();
        json!({
            "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
            "config_groups": groups, "ignore": ignore, "kv_cache_scheme": null, "global_compression_ratio": null,
        })
    }
}

impl ArtifactWriter<'_> {
    /// Writes a tensor; they come in any order, each once.
    ///
    /// # Errors
    /// As [`ArtifactLayout::begin`].
    ///
    /// # Panics
    /// Where the tensor is not what the layout says of it: a mistake of the caller.
    pub fn put(&mut self, stored: &StoredTensor, tensor: &NewArtifactTensor) -> Result<()> {
        let name = &stored.name;
        match tensor {
            NewArtifactTensor::Dense(values) => {
                let dense = self.layout.tensors.iter().find(|(other, _)| other.name == *name);
                let Some((_, Storage::Dense(dtype))) = dense else { panic!("the layout has no dense tensor `{name}`") };
                self.weights.put(name, &dtype.from_f32(values).expect("dense tensors have a float type"))
            }
            NewArtifactTensor::Quantized(matrix) => {
                let (Values::Packed(integers) | Values::Signed(integers)) = &matrix.values;
                let scales: Vec<f32> = matrix.scales.iter().collect();
                let scales = self.layout.scale_dtype.from_f32(&scales).expect("scales have a float type");
                self.weights.put(&format!("{name}_scale"), &scales)?;
                if matrix.zero_points.is_some() {
                    self.weights.put(&format!("{name}_zero_point"), &packed_zero_points(matrix))?;
                }
                match &matrix.values {
                    Values::Packed(_) => {
                        self.weights.put(&format!("{name}_shape"), &shape_bytes(matrix.rows, matrix.columns))?;
                        self.weights.put(&format!("{name}_packed"), integers)
                    }
                    Values::Signed(_) => self.weights.put(name, integers),
                }
            }
            NewArtifactTensor::Codebooks(matrix) => {
                self.weights.put(&format!("{name}_codebook"), &matrix.centroids.bytes)?;
                self.weights.put(&format!("{name}_shape"), &shape_bytes(matrix.rows, matrix.columns))?;
                self.weights.put(&format!("{name}_packed"), &matrix.indices)
            }
        }
    }

    /// Writes the static scale of what a projection multiplies: of each with [`Storage::SignedStatic`], once.
    ///
    /// # Errors
    /// As [`ArtifactLayout::begin`].
    ///
    /// # Panics
    /// Where the layout has none for this tensor: a mistake of the caller.
    pub fn put_input_scale(&mut self, stored: &StoredTensor, scale: f32) -> Result<()> {
        let bytes = self.layout.scale_dtype.from_f32(&[scale]).expect("scales have a float type");
        self.weights.put(&input_scale_name(&stored.name), &bytes)
    }

    /// Puts `model.safetensors` in its place and writes `config.json`: a folder with a configuration is whole.
    ///
    /// # Errors
    /// As [`ArtifactLayout::begin`]; [`crate::Error::Unsupported`] where layers differ in size.
    ///
    /// # Panics
    /// Where a tensor has not come: a mistake of the caller.
    pub fn finish(self) -> Result<()> {
        let Self { layout, folder, weights } = self;
        let mut config = Family::write(layout.architecture, layout.config, folder)?;
        config["quantization_config"] = layout.quantization_config();
        config["dtype"] = match layout.dense_dtype {
            Dtype::F16 => "float16".into(),
            Dtype::Bf16 => "bfloat16".into(),
            _ => "float32".into(),
        };
        if let Some(keys) = config.as_object_mut() {
            keys.remove("torch_dtype");
        }
        weights.finish()?;
        write_config(folder, &config)
    }
}

/// The scales of an artifact's matrices, `[rows, groups]`, by what they are.
pub type ScalesByTensor = BTreeMap<TensorId, Vec<f32>>;

impl Artifact {
    /// Writes `config.json` and `model.safetensors` into `folder` with other scales: every other byte is this artifact's.
    ///
    /// Each scale is rounded here, once, to the nearest value of the type that it is stored in, half to even. One that would then be
    /// zero, or stand for something infinite, stays as it was; returns how many did.
    ///
    /// # Errors
    /// [`crate::Error::Io`] where the folder can't be written.
    ///
    /// # Panics
    /// Where a quantized matrix has no scales in `scales`, or another number of them: a mistake of the caller, never of a file.
    pub fn write_with_scales(&self, scales: &ScalesByTensor, folder: &Path) -> Result<u64> {
        let mut replaced = BTreeMap::new();
        let mut kept = 0;
        for stored in Family::stored(&self.architecture) {
            let ArtifactTensor::Quantized(matrix) = &self.tensors[&stored.name] else { continue };
            let name = format!("{}_scale", stored.name);
            let slice = self.files.get(&name).expect("`open` read the scales of every quantized matrix");
            // Parts of a fused matrix lie one below the other, and so do their scales.
            let new: Vec<f32> = stored.parts.iter().flat_map(|part| &scales[part]).copied().collect();
            assert_eq!(new.len(), matrix.scales.len(), "scales of {}", stored.name);
            let rounded = new.into_iter().zip(matrix.scales.iter()).map(|(new, old)| {
                let nearest = slice.dtype.nearest(new).expect("`open` refused scales of an integer type");
                // No integer is farther from its zero point than there are integers.
                let is_sound = nearest != 0.0 && (nearest * f32::from(1u16 << matrix.scheme.bits)).is_finite();
                kept += u64::from(!is_sound);
                if is_sound { nearest } else { old }
            });
            let rounded: Vec<f32> = rounded.collect();
            replaced.insert(name, slice.dtype.from_f32(&rounded).expect("`open` refused scales of an integer type"));
        }
        let tensors = self.files.iter().map(|(name, slice)| {
            let bytes: &[u8] = replaced.get(name).map_or(&slice.bytes, |scales| scales);
            let (dtype, shape) = (slice.dtype, slice.shape.clone());
            (name.to_owned(), NewTensor { dtype, shape, bytes: Box::new(move || Cow::Borrowed(bytes)) })
        });
        fs_err::create_dir_all(folder)?;
        write_safetensors(&folder.join(WEIGHTS), tensors)?;
        write_config(folder, &self.config)?;
        Ok(kept)
    }
}

/// Modules whose numbers stand for the same.
struct Group<'a> {
    /// Not dense.
    storage: Storage,
    is_projection: bool,
    /// Names, with the class of each.
    modules: Vec<(&'a str, &'static str)>,
}

impl Group<'_> {
    fn format(&self) -> &'static str {
        match self.storage {
            Storage::Packed(_) | Storage::Dense(_) => "pack-quantized",
            Storage::Signed(_) | Storage::SignedStatic(_) => "int-quantized",
            Storage::Codebooks(_) => "codebook-packed",
        }
    }

    /// One of `config_groups`; `by_class` names classes for targets instead of modules.
    fn json(&self, input_rounding: &InputRounding, by_class: bool) -> Value {
        let mut targets: Vec<&str> =
            self.modules.iter().map(|(module, class)| if by_class { class } else { module }).copied().collect();
        targets.dedup();
        let activations = match input_rounding {
            InputRounding::PerToken if self.is_projection => json!({
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true, "group_size": null,
                "observer": null,
            }),
            InputRounding::Static(_) if self.is_projection => json!({
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false, "group_size": null,
                "observer": "static_minmax",
            }),
            InputRounding::None | InputRounding::PerToken | InputRounding::Static(_) => Value::Null,
        };
        let weights = match self.storage.levels().map(|(levels, _)| levels) {
            None => Value::Null,
            Some(Levels::Grid(Scheme { bits, group_size, symmetric })) => json!({
                "num_bits": bits, "type": "int", "symmetric": symmetric,
                "strategy": if group_size.is_some() { "group" } else { "channel" }, "group_size": group_size, "dynamic": false,
                "observer": "memoryless_minmax",
            }),
            // No `type` of compressed-tensors: its readers refuse it, where an unknown `quant_method` is a warning to
            // Transformers, which goes on with random weights.
            Some(Levels::Codebooks(Codebooks { bits, rows })) => {
                json!({ "num_bits": bits, "type": "codebook", "codebook_rows": rows })
            }
        };
        json!({
            "format": self.format(),
            "targets": targets,
            "weights": weights,
            "input_activations": activations,
            "output_activations": null,
        })
    }
}

/// Rows and columns as a tensor holds them.
fn shape_bytes(rows: usize, columns: usize) -> Vec<u8> {
    [rows, columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect()
}

/// Zero points packed down the rows: `[ceil(rows · bits / 32), groups]` words.
fn packed_zero_points(matrix: &QuantizedMatrix) -> Vec<u8> {
    let (rows, groups) = (matrix.rows, matrix.groups());
    let Some(points) = &matrix.zero_points else { return Vec::new() };
    let column = |group| (0..rows).map(|row| points[row * groups + group]).collect::<Vec<i8>>();
    let columns: Vec<Vec<u8>> = (0..groups).map(|group| pack(&column(group), matrix.scheme.bits)).collect();
    let words = matrix.scheme.row_bytes(rows) / 4;
    (0..words).flat_map(|word| columns.iter().flat_map(move |column| column[word * 4..][..4].iter().copied())).collect()
}
