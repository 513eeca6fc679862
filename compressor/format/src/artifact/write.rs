//! Writes artifacts: the layout of quantized tensors, and `quantization_config`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Artifact, ArtifactTensor, InputRounding, input_scale_name, shape_of_rows};
use crate::model::WEIGHTS;
use crate::{
    Architecture, CodebookMatrix, Codebooks, Dtype, Family, Levels, NewTensor, QuantizedMatrix, Result, Scheme, StoredTensor,
    TensorId, Values, pack, write_config, write_safetensors,
};

/// What an artifact is written from: each stored tensor, dense as f32 or quantized, `[out, in]`.
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
    /// [`crate::Error::Io`] where the folder can't be written, [`crate::Error::Unsupported`] where layers differ in size.
    ///
    /// # Panics
    /// Where inputs are rounded with static scales and a quantized projection has none: a mistake of the caller, never of a file.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut config = Family::write(self.architecture, self.config, folder)?;
        config["quantization_config"] = self.quantization_config();
        config["dtype"] = match self.dense_dtype {
            Dtype::F16 => "float16".into(),
            Dtype::Bf16 => "bfloat16".into(),
            _ => "float32".into(),
        };
        if let Some(keys) = config.as_object_mut() {
            keys.remove("torch_dtype");
        }
        fs_err::create_dir_all(folder)?;
        write_safetensors(&folder.join("model.safetensors"), self.new_tensors())?;
        write_config(folder, &config)
    }

    fn new_tensors(&self) -> Vec<(String, NewTensor<'_>)> {
        let mut tensors = Vec::new();
        for (stored, tensor) in &self.tensors {
            let name = &stored.name;
            match tensor {
                NewArtifactTensor::Dense(values) => {
                    let mut shape = stored.shape(self.architecture);
                    shape_of_rows(&mut shape, stored);
                    let dtype = self.dense_dtype;
                    let bytes = Box::new(move || Cow::Owned(dtype.from_f32(values).expect("dense tensors have a float type")));
                    tensors.push((name.clone(), NewTensor { dtype, shape, bytes }));
                }
                NewArtifactTensor::Quantized(matrix) => {
                    tensors.extend(quantized_tensors(name, matrix, self.scale_dtype));
                    if let (InputRounding::Static(scales), true) = (&self.input_rounding, stored.parts[0].is_projection()) {
                        tensors.push((input_scale_name(name), self.input_scale(scales[name])));
                    }
                }
                NewArtifactTensor::Codebooks(matrix) => tensors.extend(codebook_tensors(name, matrix)),
            }
        }
        tensors
    }

    fn input_scale(&self, scale: f32) -> NewTensor<'_> {
        let dtype = self.scale_dtype;
        let bytes = Box::new(move || Cow::Owned(dtype.from_f32(&[scale]).expect("scales have a float type")));
        NewTensor { dtype, shape: vec![1], bytes }
    }

    fn quantization_config(&self) -> Value {
        let mut ignore: Vec<&str> = Vec::new();
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (stored, tensor) in &self.tensors {
            let module = stored.name.strip_suffix(".weight").unwrap_or(&stored.name);
            let (is_head, is_projection) = (stored.parts[0] == TensorId::Head, stored.parts[0].is_projection());
            let (levels, packed): (Levels, bool) = match tensor {
                NewArtifactTensor::Quantized(matrix) => (matrix.scheme.into(), matches!(matrix.values, Values::Packed(_))),
                NewArtifactTensor::Codebooks(matrix) => (matrix.codebooks.into(), true),
                NewArtifactTensor::Dense(_) => {
                    if is_head {
                        ignore.push("lm_head");
                    } else if is_projection && stored.name.ends_with(".weight") {
                        ignore.push(module);
                    }
                    continue;
                }
            };
            let key = (levels, packed, is_projection);
            let class = if stored.transposed { "Conv1D" } else { "Linear" };
            match groups.iter_mut().find(|group| (group.levels, group.packed, group.is_projection) == key) {
                Some(group) => group.modules.push((module, class)),
                None => groups.push(Group { levels, packed, is_projection, modules: vec![(module, class)] }),
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
    levels: Levels,
    packed: bool,
    is_projection: bool,
    /// Names, with the class of each.
    modules: Vec<(&'a str, &'static str)>,
}

impl Group<'_> {
    fn format(&self) -> &'static str {
        match self.levels {
            Levels::Grid(_) if self.packed => "pack-quantized",
            Levels::Grid(_) => "int-quantized",
            Levels::Codebooks(_) => "codebook-packed",
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
        let weights = match self.levels {
            Levels::Grid(Scheme { bits, group_size, symmetric }) => json!({
                "num_bits": bits, "type": "int", "symmetric": symmetric,
                "strategy": if group_size.is_some() { "group" } else { "channel" }, "group_size": group_size, "dynamic": false,
                "observer": "memoryless_minmax",
            }),
            // No `type` of compressed-tensors: its readers refuse it, where an unknown `quant_method` is a warning to
            // Transformers, which goes on with random weights.
            Levels::Codebooks(Codebooks { bits, rows }) => {
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

/// The tensors that a matrix of indices is stored as, with their bytes.
fn codebook_tensors<'a>(name: &str, matrix: &'a CodebookMatrix) -> Vec<(String, NewTensor<'a>)> {
    let (rows, columns) = (matrix.rows, matrix.columns);
    let bytes: [Box<dyn Fn() -> Cow<'a, [u8]> + 'a>; 3] = [
        Box::new(|| Cow::Borrowed(&matrix.centroids.bytes[..])),
        Box::new(|| Cow::Borrowed(&matrix.indices[..])),
        Box::new(move || Cow::Owned(shape_bytes(rows, columns))),
    ];
    let layout = codebook_layout(name, [rows, columns], matrix.codebooks, matrix.centroids.dtype).into_iter().zip(bytes);
    layout.map(|((part, dtype, shape), bytes)| (part, NewTensor { dtype, shape, bytes })).collect()
}

/// Rows and columns as a tensor holds them.
fn shape_bytes(rows: usize, columns: usize) -> Vec<u8> {
    [rows, columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect()
}

/// The tensors that a quantized matrix is stored as, with their bytes.
fn quantized_tensors<'a>(name: &str, matrix: &'a QuantizedMatrix, scale_dtype: Dtype) -> Vec<(String, NewTensor<'a>)> {
    let packed = matches!(matrix.values, Values::Packed(_));
    let (Values::Packed(integers) | Values::Signed(integers)) = &matrix.values;
    let bytes_of = |part: &str| -> Box<dyn Fn() -> Cow<'a, [u8]> + 'a> {
        match part.strip_prefix(name).unwrap_or(part) {
            "_scale" => Box::new(move || {
                let scales: Vec<f32> = matrix.scales.iter().collect();
                Cow::Owned(scale_dtype.from_f32(&scales).expect("scales have a float type"))
            }),
            "_shape" => Box::new(|| Cow::Owned(shape_bytes(matrix.rows, matrix.columns))),
            "_zero_point" => Box::new(|| Cow::Owned(packed_zero_points(matrix))),
            _ => Box::new(|| Cow::Borrowed(&integers[..])),
        }
    };
    let layout = quantized_layout(name, [matrix.rows, matrix.columns], matrix.scheme, packed, scale_dtype);
    layout
        .into_iter()
        .map(|(part, dtype, shape)| {
            let bytes = bytes_of(&part);
            (part, NewTensor { dtype, shape, bytes })
        })
        .collect()
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
