//! Artifacts: a Hugging Face folder whose weights are quantized as compressed-tensors stores them.

mod groups;
mod pattern;
#[cfg(feature = "std")]
mod write;

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::path::Path;

use serde_json::Value;

use self::groups::{Group, Groups, Input, Weights};
#[cfg(feature = "std")]
pub use self::write::{ArtifactLayout, ArtifactWriter, NewArtifact, NewArtifactTensor, ScalesByTensor, Storage};
#[cfg(feature = "std")]
use crate::content::ContentHash;
use crate::model::{CONFIG, WEIGHTS, is_quantized, parse_config};
use crate::origin::Kept;
use crate::quantized::{Values, WeightBytes, unpack};
use crate::{
    Architecture, CodebookMatrix, Codebooks, Dtype, Error, Family, MappedBytes, Origin, QuantizedMatrix, Result, Scales, Scheme,
    StoredTensor, TensorFiles, TensorId, TensorSlice, check_finite,
};

/// An artifact, every tensor's presence, shape and scheme checked; integers stay where they lie.
#[derive(Clone, Debug)]
pub struct Artifact {
    path: Kept,
    architecture: Architecture,
    config: Value,
    files: TensorFiles,
    tensors: BTreeMap<String, ArtifactTensor>,
    parts: BTreeMap<TensorId, (String, usize)>,
    input_rounding: InputRounding,
    /// The stored matrices that round what they multiply.
    rounds_input: BTreeSet<String>,
}

/// What the matrices of an artifact that round what they multiply do with it: those that its `quantization_config` says it of, which
/// are all projections inside the layers in what this program writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum InputRounding {
    /// Nothing.
    #[default]
    None,
    /// Round it to INT8, symmetric, with one scale for each token, found as they run (W8A8).
    PerToken,
    /// Round it to INT8, symmetric, with one scale for all tokens: of each quantized projection, by the name of its weight as stored
    /// (W8A8).
    Static(BTreeMap<String, f32>),
}

/// A stored tensor of an artifact, `[out, in]` where it is a matrix.
#[derive(Clone, Debug)]
pub enum ArtifactTensor {
    /// Left dense.
    Dense(TensorSlice),
    /// Integers with scales.
    Quantized(QuantizedMatrix),
    /// Indices into codebooks.
    Codebooks(CodebookMatrix),
}

impl Artifact {
    /// Opens an artifact that this program or llm-compressor wrote.
    ///
    /// # Errors
    /// A missing or damaged file or tensor, by name; [`Error::Unsupported`] for schemes the engine does not run.
    #[cfg(feature = "std")]
    pub fn open(path: &Path) -> Result<Self> {
        let config = crate::read_config(path)?;
        Self::read(config, &path.join(CONFIG).shown(), path.to_owned(), || TensorFiles::open(path))
    }

    /// Reads an artifact from the bytes of its `config.json` and its `model.safetensors`, by which names errors call them.
    ///
    /// # Errors
    /// As [`crate::Model::from_bytes`]; [`Error::Unsupported`] where the weights are dense.
    pub fn from_bytes(config: &[u8], weights: impl Into<MappedBytes>) -> Result<Self> {
        let config = parse_config(config, CONFIG)?;
        Self::read(config, CONFIG, WEIGHTS.into(), || TensorFiles::from_bytes(weights, WEIGHTS))
    }

    /// Reads an artifact, whose tensors are asked for when `config`, which errors call `config_origin`, is believed.
    pub(crate) fn read(
        config: Value,
        config_origin: &str,
        path: Kept,
        files: impl FnOnce() -> Result<TensorFiles>,
    ) -> Result<Self> {
        let origin = path.shown();
        if !is_quantized(&config) {
            return Err(Error::unsupported(&origin, "is no artifact: its config.json has no `quantization_config`"));
        }
        let groups = Groups::read(&config["quantization_config"], config_origin)?;
        let mut architecture = Family::read(&config, config_origin)?;
        let files = files()?;
        Family::settle_head(&mut architecture, &files);
        groups.check_modules(&architecture, config_origin)?;
        let mut input_rounding = match groups.input() {
            Input::Real => InputRounding::None,
            Input::PerToken => InputRounding::PerToken,
            Input::Static => InputRounding::Static(BTreeMap::new()),
        };
        let mut reader =
            Reader { origin: &origin, config_origin, files: &files, architecture: &architecture, groups, used: BTreeSet::new() };
        let mut tensors = BTreeMap::new();
        let mut parts = BTreeMap::new();
        let mut rounds_input = BTreeSet::new();
        for stored in Family::stored(&architecture) {
            let mut first_row = 0;
            for part in &stored.parts {
                parts.insert(*part, (stored.name.clone(), first_row));
                first_row += architecture.shape(*part)[0];
            }
            let (tensor, input) = reader.read(&stored)?;
            if input != Input::Real {
                rounds_input.insert(stored.name.clone());
            }
            if let (InputRounding::Static(scales), Input::Static) = (&mut input_rounding, input) {
                scales.insert(stored.name.clone(), reader.input_scale(&stored.name)?);
            }
            tensors.insert(stored.name, tensor);
        }
        if rounds_input.is_empty() {
            input_rounding = InputRounding::None;
        }
        let used = reader.used;
        files.refuse_unread(|name| used.contains(name) || Family::is_ignored(&architecture, name), &origin)?;
        Ok(Self { path, architecture, config, files, tensors, parts, input_rounding, rounds_input })
    }

    /// Where it is; `model.safetensors` where it was read from bytes, as errors call it then.
    #[cfg(feature = "std")]
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

    /// What those of its matrices do with what they multiply that round it at all, which [`Self::rounds_input`] tells.
    pub fn input_rounding(&self) -> &InputRounding {
        &self.input_rounding
    }

    /// Whether one of the architecture's tensors rounds what it multiplies.
    pub fn rounds_input(&self, id: TensorId) -> bool {
        self.rounds_input.contains(&self.parts[&id].0)
    }

    /// The scale with which one of the architecture's tensors has its input rounded, where that is the same for all tokens.
    pub fn input_scale(&self, id: TensorId) -> Option<f32> {
        match &self.input_rounding {
            InputRounding::None | InputRounding::PerToken => None,
            InputRounding::Static(scales) => scales.get(&self.parts[&id].0).copied(),
        }
    }

    /// Bytes of the files that hold weights.
    pub fn weight_bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// Every tensor of its files.
    #[cfg(feature = "std")]
    pub(crate) fn add_weights(&self, hash: &mut ContentHash) {
        self.files.iter().for_each(|(name, tensor)| hash.add_tensor(name, tensor));
    }

    /// The stored tensors, by the names Hugging Face has for them.
    pub fn stored(&self) -> impl Iterator<Item = (&str, &ArtifactTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// One of the architecture's tensors, cut out of the stored one that holds it.
    pub fn tensor(&self, id: TensorId) -> ArtifactTensor {
        let (name, first_row) = &self.parts[&id];
        let shape = self.architecture.shape(id);
        match &self.tensors[name] {
            ArtifactTensor::Quantized(matrix) if matrix.rows == shape[0] => ArtifactTensor::Quantized(matrix.clone()),
            ArtifactTensor::Quantized(matrix) => ArtifactTensor::Quantized(matrix.slice_rows(*first_row, shape[0])),
            ArtifactTensor::Codebooks(matrix) if matrix.rows == shape[0] => ArtifactTensor::Codebooks(matrix.clone()),
            ArtifactTensor::Codebooks(matrix) => ArtifactTensor::Codebooks(matrix.slice_rows(*first_row, shape[0])),
            ArtifactTensor::Dense(slice) => {
                let row_bytes = slice.dtype.bytes() * shape[1..].iter().product::<usize>();
                let range = first_row * row_bytes..(first_row + shape[0]) * row_bytes;
                let bytes = slice.bytes.slice(range).expect("shapes were checked by `open`");
                ArtifactTensor::Dense(TensorSlice { dtype: slice.dtype, shape, bytes })
            }
        }
    }

    /// The values of one of the architecture's tensors, dequantized, `[out, in]`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity.
    pub fn values(&self, id: TensorId) -> Result<Vec<f32>> {
        let values = match self.tensor(id) {
            ArtifactTensor::Dense(slice) => slice.to_f32().expect("`open` refused integer types"),
            ArtifactTensor::Quantized(matrix) => matrix.to_f32(),
            ArtifactTensor::Codebooks(matrix) => matrix.to_f32(),
        };
        check_finite(&self.path, &self.parts[&id].0, &values)?;
        Ok(values)
    }
}

/// Reads the stored tensors of an artifact, remembering which names it used.
struct Reader<'a> {
    origin: &'a str,
    config_origin: &'a str,
    files: &'a TensorFiles,
    architecture: &'a Architecture,
    groups: Groups,
    used: BTreeSet<String>,
}

impl Reader<'_> {
    /// A stored tensor as config.json says that it is stored, and what becomes of what it multiplies.
    fn read(&mut self, stored: &StoredTensor) -> Result<(ArtifactTensor, Input)> {
        let mut shape = stored.shape(self.architecture);
        let packed_name = format!("{}_packed", stored.name);
        let is_packed = self.files.get(&packed_name).is_some();
        let is_signed = self.files.get(&stored.name).is_some_and(|slice| slice.dtype == Dtype::I8);
        if is_packed || is_signed {
            self.refuse_integers_of_a_vector(stored, &shape)?;
        }
        let group = self.groups.of(stored, self.config_origin)?;
        let Some((Group { name: group, input, .. }, weights)) = group.and_then(|group| Some((group, group.weights?))) else {
            if is_packed || is_signed {
                let what = format!("tensor `{}` is quantized, and no group of `quantization_config` says how", stored.name);
                return Err(Error::unsupported(self.origin, what));
            }
            return Ok((ArtifactTensor::Dense(self.dense(stored, &shape)?), Input::Real));
        };
        let (group, input) = (group.clone(), *input);
        if input != Input::Real && !(stored.parts[0].is_projection() || stored.parts[0] == TensorId::Head) {
            let what = format!("`config_groups.{group}.input_activations`: the input of `{}` is not rounded here", stored.name);
            return Err(Error::unsupported(self.config_origin, what));
        }
        if self.files.get(&stored.name).is_some_and(|slice| slice.dtype.is_float()) {
            let what =
                format!("tensor `{}` is dense, and `config_groups.{group}` quantizes it: name it in `ignore`", stored.name);
            return Err(Error::unsupported(self.origin, what));
        }
        shape_of_rows(&mut shape, stored);
        let is_words = !matches!(weights, Weights::Integers { is_packed: false, .. });
        if is_packed != is_words && (is_packed || is_signed) {
            let [found, asked] = if is_packed { ["packed", "int-quantized"] } else { ["not packed", "packed"] };
            let what = format!("tensor `{}` is {found}, and the format of `config_groups.{group}` is {asked}", stored.name);
            return Err(Error::unsupported(self.origin, what));
        }
        let name = if is_words { &packed_name } else { &stored.name };
        let slice = self.take(name).ok_or_else(|| self.missing(name))?;
        if is_words {
            self.expect_said_shape(&stored.name, &shape)?;
            self.expect_words(&stored.name, &slice)?;
        }
        let tensor = match weights {
            Weights::Codebooks(codebooks) => ArtifactTensor::Codebooks(self.codebooks(stored, slice, &shape, codebooks)?),
            Weights::Integers { bits, is_packed: true, group_size, symmetric } => {
                let scheme = Scheme { bits, group_size, symmetric };
                ArtifactTensor::Quantized(self.packed(&stored.name, &slice, &shape, scheme)?)
            }
            Weights::Integers { is_packed: false, group_size, symmetric, .. } => {
                let scheme = Scheme { bits: 8, group_size, symmetric };
                ArtifactTensor::Quantized(self.signed(&stored.name, slice, &shape, scheme)?)
            }
        };
        Ok((tensor, input))
    }

    fn dense(&mut self, stored: &StoredTensor, shape: &[usize]) -> Result<TensorSlice> {
        let slice = self.take(&stored.name).ok_or_else(|| self.missing(&stored.name))?;
        if !slice.dtype.is_float() || slice.dtype == Dtype::F64 {
            return Err(Error::unsupported(self.origin, format!("tensor `{}` is {}", stored.name, slice.dtype)));
        }
        self.expect_shape(&stored.name, &slice, shape)?;
        if stored.transposed {
            // Only GPT-2 stores `[in, out]`; this program writes its artifacts with every matrix quantized or turned.
            return Err(Error::unsupported(self.origin, format!("tensor `{}` is dense and stored [in, out]", stored.name)));
        }
        Ok(slice)
    }

    fn refuse_integers_of_a_vector(&self, stored: &StoredTensor, shape: &[usize]) -> Result<()> {
        match shape {
            [_, _] => Ok(()),
            _ => Err(Error::unsupported(self.origin, format!("tensor `{}` is quantized, only matrices can be", stored.name))),
        }
    }

    fn take(&mut self, name: &str) -> Option<TensorSlice> {
        let slice = self.files.get(name)?.clone();
        self.used.insert(name.to_owned());
        Some(slice)
    }

    fn packed(&mut self, name: &str, packed: &TensorSlice, shape: &[usize], scheme: Scheme) -> Result<QuantizedMatrix> {
        let (rows, columns) = (shape[0], shape[1]);
        let words = (columns * usize::from(scheme.bits)).div_ceil(32);
        self.expect_shape(&format!("{name}_packed"), packed, &[rows, words])?;
        let (scales, groups) = self.scales(name, rows, columns, scheme)?;
        let zero_points = match scheme.symmetric {
            true => None,
            false => Some(self.zero_points(name, rows, groups, scheme.bits)?),
        };
        let values = Values::Packed(WeightBytes::Mapped(packed.bytes.clone()));
        Ok(QuantizedMatrix { rows, columns, scheme, values, scales, zero_points })
    }

    fn codebooks(
        &mut self,
        stored: &StoredTensor,
        packed: TensorSlice,
        shape: &[usize],
        codebooks: Codebooks,
    ) -> Result<CodebookMatrix> {
        let name = &stored.name;
        let (rows, columns) = (shape[0], shape[1]);
        // Of each matrix that is fused into this one, so that it can be cut out.
        let mut parts = stored.parts.iter().map(|part| self.architecture.shape(*part)[0]);
        if let Some(shared) = codebooks.rows
            && let Some(rows) = parts.find(|rows| !rows.is_multiple_of(shared))
        {
            let what = format!("tensor `{name}`: codebooks of {shared} rows do not divide {rows} rows");
            return Err(Error::malformed(self.origin, what));
        }
        self.expect_shape(&format!("{name}_packed"), &packed, &[rows, codebooks.row_bytes(columns) / 4])?;
        let codebook_name = format!("{name}_codebook");
        let centroids = self.take(&codebook_name).ok_or_else(|| self.missing(&codebook_name))?;
        self.expect_shape(&codebook_name, &centroids, &[codebooks.count(rows), codebooks.centroids()])?;
        let integers = || Error::unsupported(self.origin, format!("tensor `{codebook_name}` is {}", centroids.dtype));
        let values = centroids.to_f32().filter(|_| centroids.dtype != Dtype::F64);
        check_finite(self.origin, &codebook_name, &values.ok_or_else(integers)?)?;
        Ok(CodebookMatrix { rows, columns, codebooks, indices: WeightBytes::Mapped(packed.bytes), centroids })
    }

    fn signed(&mut self, name: &str, slice: TensorSlice, shape: &[usize], scheme: Scheme) -> Result<QuantizedMatrix> {
        let (rows, columns) = (shape[0], shape[1]);
        self.expect_shape(name, &slice, shape)?;
        if slice.dtype != Dtype::I8 {
            return Err(Error::unsupported(self.origin, format!("tensor `{name}` is {}, i8 is needed", slice.dtype)));
        }
        if !scheme.symmetric || self.files.get(&format!("{name}_zero_point")).is_some() {
            return Err(Error::unsupported(self.origin, format!("tensor `{name}` is INT8 with zero points and not packed")));
        }
        let (scales, _) = self.scales(name, rows, columns, scheme)?;
        let values = Values::Signed(WeightBytes::Mapped(slice.bytes));
        Ok(QuantizedMatrix { rows, columns, scheme, values, scales, zero_points: None })
    }

    /// Scales `[rows, groups]`, with the number of groups.
    fn scales(&mut self, name: &str, rows: usize, columns: usize, scheme: Scheme) -> Result<(Scales, usize)> {
        let scale_name = format!("{name}_scale");
        let slice = self.take(&scale_name).ok_or_else(|| self.missing(&scale_name))?;
        let group_size = scheme.group_size.unwrap_or(columns);
        if !columns.is_multiple_of(group_size) {
            let what = format!("tensor `{name}`: groups of {group_size} do not divide its {columns} columns");
            return Err(Error::malformed(self.origin, what));
        }
        let groups = columns / group_size;
        self.expect_shape(&scale_name, &slice, &[rows, groups])?;
        let integers = || Error::unsupported(self.origin, format!("tensor `{scale_name}` is {}", slice.dtype));
        let scales = Scales::stored(&slice).ok_or_else(integers)?;
        if let Some((index, value)) = scales.not_finite() {
            return Err(Error::NotFinite { path: self.origin.to_owned(), name: scale_name, value, index });
        }
        // Read to be checked, and not needed again before the model is.
        scales.release();
        Ok((scales, groups))
    }

    /// The one scale of what a matrix multiplies.
    fn input_scale(&mut self, weight: &str) -> Result<f32> {
        let name = input_scale_name(weight);
        let slice = self.take(&name).ok_or_else(|| self.missing(&name))?;
        self.expect_shape(&name, &slice, &[1])?;
        let Some(scale) = slice.to_f32().and_then(|scales| scales.first().copied()) else {
            return Err(Error::unsupported(self.origin, format!("tensor `{name}` is {}", slice.dtype)));
        };
        check_finite(self.origin, &name, &[scale])?;
        if scale <= 0.0 {
            return Err(Error::malformed(self.origin, format!("tensor `{name}` holds {scale}, and a scale is above 0")));
        }
        Ok(scale)
    }

    /// Zero points are packed down the rows: `[ceil(rows · bits / 32), groups]` words.
    fn zero_points(&mut self, name: &str, rows: usize, groups: usize, bits: u8) -> Result<Vec<i8>> {
        let point_name = format!("{name}_zero_point");
        let slice = self.take(&point_name).ok_or_else(|| self.missing(&point_name))?;
        let words = (rows * usize::from(bits)).div_ceil(32);
        if slice.dtype != Dtype::I32 {
            return Err(Error::unsupported(
                self.origin,
                format!("tensor `{point_name}` is {}, packed i32 is needed", slice.dtype),
            ));
        }
        self.expect_shape(&point_name, &slice, &[words, groups])?;
        let mut points = vec![0i8; rows * groups];
        for group in 0..groups {
            let column: Vec<u8> =
                (0..words).flat_map(|word| slice.bytes[(word * groups + group) * 4..][..4].iter().copied()).collect();
            for (row, point) in unpack(&column, bits, rows).into_iter().enumerate() {
                points[row * groups + group] = point;
            }
        }
        Ok(points)
    }

    /// The shape of a packed matrix is a tensor of its own.
    fn expect_said_shape(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let shape_name = format!("{name}_shape");
        let said = self.take(&shape_name).ok_or_else(|| self.missing(&shape_name))?;
        let said = said.bytes.as_chunks().0.iter().map(|eight| i64::from_le_bytes(*eight));
        // As an i64: on 32 bits, another shape could wrap to the one that is asked for.
        if said.clone().eq(shape.iter().map(|size| *size as i64)) {
            return Ok(());
        }
        let found = said.map(|size| size as usize).collect();
        Err(Error::Shape { path: self.origin.to_owned(), name: name.to_owned(), found, expected: shape.to_vec() })
    }

    fn expect_words(&self, name: &str, packed: &TensorSlice) -> Result<()> {
        if packed.dtype == Dtype::I32 {
            return Ok(());
        }
        let what = format!("tensor `{name}_packed` is {}, packed i32 is needed", packed.dtype);
        Err(Error::unsupported(self.origin, what))
    }

    fn expect_shape(&self, name: &str, slice: &TensorSlice, expected: &[usize]) -> Result<()> {
        if slice.shape == expected {
            return Ok(());
        }
        let (found, expected) = (slice.shape.clone(), expected.to_vec());
        Err(Error::Shape { path: self.origin.to_owned(), name: name.to_owned(), found, expected })
    }

    fn missing(&self, name: &str) -> Error {
        self.files.missing(name, self.origin)
    }
}

/// Quantized matrices are always `[out, in]`.
fn shape_of_rows(shape: &mut [usize], stored: &StoredTensor) {
    if stored.transposed {
        shape.reverse();
    }
}

/// The tensor with the one scale of what a matrix multiplies.
fn input_scale_name(weight: &str) -> String {
    format!("{}.input_scale", weight.strip_suffix(".weight").unwrap_or(weight))
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::borrow::Cow;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::codebooks::tests::drawn as drawn_codebooks;
    use crate::damage::Damage;
    use crate::model::tests::check_bytes_against_folder;
    use crate::quantized::tests::drawn;
    use crate::{Levels, NewTensor, write_safetensors};

    /// One layer whose widths are all different: hidden 8, two heads of 4 on one key/value head, 16 channels, 5 tokens.
    fn architecture(family: Family) -> Architecture {
        let config = match family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": 5, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "n_inner": 16
            }),
            _ => json!({
                "model_type": family.model_type(), "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1, "head_dim": 4,
                "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "max_position_embeddings": 16
            }),
        };
        Family::read(&config, Path::new("config.json")).unwrap()
    }

    /// How the matrices of a model are quantized; groups divide every width of [`architecture`].
    #[derive(Clone, Copy, Debug)]
    struct Quantized {
        projections: (Levels, bool),
        ends: Option<Scheme>,
        /// Signed projections have static scales for their inputs, not one for each token.
        inputs_are_static: bool,
    }

    fn quantized() -> impl Strategy<Value = (Family, Quantized)> {
        let packed = (
            prop::sample::select(Scheme::BITS.to_vec()),
            prop::sample::select(vec![None, Some(1), Some(2), Some(8)]),
            any::<bool>(),
        );
        let packed = packed.prop_map(|(bits, group_size, symmetric)| Scheme { bits, group_size, symmetric });
        let signed = Just((Scheme { bits: 8, group_size: None, symmetric: true }.into(), false));
        let codebooks =
            (prop::sample::select(Codebooks::BITS.to_vec()), prop::sample::select(vec![None, Some(1), Some(2), Some(4)]));
        let projections = prop_oneof![
            4 => packed.clone().prop_map(|scheme| (scheme.into(), true)),
            2 => signed,
            2 => codebooks.prop_map(|(bits, rows)| (Codebooks { bits, rows }.into(), true)),
        ];
        let quantized = (projections, prop::option::of(packed), any::<bool>())
            .prop_map(|(projections, ends, inputs_are_static)| Quantized { projections, ends, inputs_are_static });
        (prop::sample::select(Family::ALL.to_vec()), quantized)
    }

    /// Values that follow from a seed: every integer of the scheme, scales of both signs, zeros among the dense ones.
    fn tensors(architecture: &Architecture, quantized: Quantized, seed: u8) -> Vec<(StoredTensor, NewArtifactTensor)> {
        let mut state = u32::from(seed);
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as i8
        };
        let mut tensor = |stored: StoredTensor| {
            let mut shape = stored.shape(architecture);
            shape_of_rows(&mut shape, &stored);
            let levels = match stored.parts[0] {
                TensorId::Embedding | TensorId::Head => quantized.ends.map(|scheme| (scheme.into(), true)),
                part => part.is_projection().then_some(quantized.projections),
            };
            let Some((levels, packed)) = levels else {
                let values = (0..shape.iter().product()).map(|_| f32::from(next()) / 16.0).collect();
                return (stored, NewArtifactTensor::Dense(values));
            };
            let shape = [shape[0], shape[1]];
            let tensor = match levels {
                Levels::Grid(scheme) => {
                    NewArtifactTensor::Quantized(drawn(shape, scheme, packed, &mut next, |drawn| f32::from(drawn) / 1024.0))
                }
                Levels::Codebooks(codebooks) => {
                    NewArtifactTensor::Codebooks(drawn_codebooks(shape, codebooks, scale_dtype(seed), &mut next))
                }
            };
            (stored, tensor)
        };
        Family::stored(architecture).into_iter().map(&mut tensor).collect()
    }

    /// Another static scale for each projection: values of every float type.
    fn input_rounding(architecture: &Architecture, quantized: Quantized) -> InputRounding {
        let projections = Family::stored(architecture).into_iter().filter(|stored| stored.parts[0].is_projection());
        let scales = projections.zip(1u8..).map(|(stored, at)| (stored.name, f32::from(at) / 64.0));
        match (quantized.projections.1, quantized.inputs_are_static) {
            (true, _) => InputRounding::None,
            (false, false) => InputRounding::PerToken,
            (false, true) => InputRounding::Static(scales.collect()),
        }
    }

    fn scale_dtype(seed: u8) -> Dtype {
        [Dtype::F16, Dtype::F32, Dtype::Bf16][usize::from(seed % 3)]
    }

    fn written(family: Family, quantized: Quantized, seed: u8) -> (tempfile::TempDir, Vec<(StoredTensor, NewArtifactTensor)>) {
        let folder = tempfile::tempdir().unwrap();
        let architecture = architecture(family);
        let new = NewArtifact {
            architecture: &architecture,
            config: &json!({}),
            dense_dtype: Dtype::F32,
            scale_dtype: scale_dtype(seed),
            tensors: tensors(&architecture, quantized, seed),
            input_rounding: input_rounding(&architecture, quantized),
        };
        new.write(folder.path()).unwrap();
        (folder, new.tensors)
    }

    fn int4() -> Quantized {
        let projections = (Scheme { bits: 4, group_size: Some(2), symmetric: false }.into(), true);
        Quantized { projections, ends: None, inputs_are_static: false }
    }

    fn codebooks() -> Quantized {
        Quantized { projections: (Codebooks { bits: 4, rows: Some(4) }.into(), true), ends: None, inputs_are_static: false }
    }

    fn static_inputs() -> Quantized {
        let projections = (Scheme { bits: 8, group_size: None, symmetric: true }.into(), false);
        Quantized { projections, ends: None, inputs_are_static: true }
    }

    /// Opens a folder whose files may be anything, and reads every tensor: either all is in bounds, or the error names the folder.
    fn check_any(folder: &Path) {
        let named = |error: Error| assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
        let artifact = match Artifact::open(folder) {
            Ok(artifact) => artifact,
            Err(error) => return named(error),
        };
        for id in artifact.architecture().tensors() {
            let expected: usize = artifact.architecture().shape(id).iter().product();
            match artifact.values(id) {
                Ok(values) => assert_eq!(values.len(), expected, "{id}"),
                Err(error) => named(error),
            }
        }
    }

    fn refused(change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) -> String {
        refused_of(int4(), change)
    }

    fn refused_of(quantized: Quantized, change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) -> String {
        let (folder, _) = written(Family::Llama, quantized, 1);
        let files = TensorFiles::open(folder.path()).unwrap();
        let mut tensors: Vec<_> = files
            .iter()
            .map(|(name, tensor)| (name.to_owned(), tensor.dtype, tensor.shape.clone(), tensor.bytes.to_vec()))
            .collect();
        drop(files);
        change(&mut tensors);
        let new = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name.clone(), NewTensor { dtype: *dtype, shape: shape.clone(), bytes: Box::new(|| Cow::Borrowed(bytes.as_slice())) })
        });
        write_safetensors(&folder.path().join("model.safetensors"), new).unwrap();
        let error = Artifact::open(folder.path()).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", folder.path().display())).unwrap().to_owned()
    }

    /// The tensor with this name.
    fn named<'a>(
        tensors: &'a mut [(String, Dtype, Vec<usize>, Vec<u8>)],
        name: &str,
    ) -> &'a mut (String, Dtype, Vec<usize>, Vec<u8>) {
        tensors.iter_mut().find(|(found, ..)| found == name).unwrap()
    }

    #[test]
    fn a_quantized_vector_is_refused_by_name() {
        let expected = "tensor `model.norm.weight` is quantized, only matrices can be";
        let signed = refused(|tensors| {
            let norm = named(tensors, "model.norm.weight");
            (norm.1, norm.3) = (Dtype::I8, vec![1; 8]);
        });
        assert_eq!(signed, expected);
        let packed = refused(|tensors| {
            let norm = named(tensors, "model.norm.weight");
            *norm = ("model.norm.weight_packed".to_owned(), Dtype::I32, vec![2], vec![1; 8]);
        });
        assert_eq!(packed, expected);
    }

    #[test]
    fn parts_of_a_matrix_that_contradict_each_other_are_refused_by_name() {
        const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
        let scale = refused(|tensors| {
            let scale = named(tensors, &format!("{QUERY}_scale"));
            (scale.2, scale.3) = (vec![8, 3], vec![0; 96]);
        });
        assert_eq!(scale, format!("tensor `{QUERY}_scale` has shape [8, 3], config.json asks for [8, 4]"));
        let shape = refused(|tensors| named(tensors, &format!("{QUERY}_shape")).3 = vec![0xff; 16]);
        assert!(shape.starts_with(&format!("tensor `{QUERY}` has shape [18446744073709551615, ")), "{shape}");
        let words = refused(|tensors| named(tensors, &format!("{QUERY}_packed")).1 = Dtype::F32);
        assert_eq!(words, format!("tensor `{QUERY}_packed` is f32, packed i32 is needed"));
        let points = refused(|tensors| {
            let points = named(tensors, &format!("{QUERY}_zero_point"));
            (points.2, points.3) = (vec![1, 1], vec![0; 4]);
        });
        assert_eq!(points, format!("tensor `{QUERY}_zero_point` has shape [1, 1], config.json asks for [1, 4]"));
    }

    #[test]
    fn static_scales_that_are_none_are_refused_by_name() {
        let name = "model.layers.0.mlp.down_proj.input_scale";
        let gone = refused_of(static_inputs(), |tensors| tensors.retain(|(found, ..)| found != name));
        assert_eq!(gone, format!("there is no tensor `{name}`, and config.json asks for it"));
        for (shape, said) in [(vec![], "[]"), (vec![1, 1], "[1, 1]"), (vec![2], "[2]"), (vec![0], "[0]")] {
            let refused = refused_of(static_inputs(), |tensors| {
                let scale = named(tensors, name);
                scale.3 = vec![1; 4 * shape.iter().product::<usize>()];
                scale.2 = shape;
            });
            assert_eq!(refused, format!("tensor `{name}` has shape {said}, config.json asks for [1]"));
        }
        let holding = |bytes: [u8; 4]| refused_of(static_inputs(), |tensors| named(tensors, name).3 = bytes.to_vec());
        for (value, said) in [(0.0f32, "0"), (-0.0, "-0"), (-0.5, "-0.5")] {
            assert_eq!(holding(value.to_le_bytes()), format!("tensor `{name}` holds {said}, and a scale is above 0"));
        }
        for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            assert_eq!(holding(value.to_le_bytes()), format!("tensor `{name}` holds {said} at element 0"));
        }
        let integer = refused_of(static_inputs(), |tensors| named(tensors, name).1 = Dtype::I32);
        assert_eq!(integer, format!("tensor `{name}` is i32"));
        // Of the norm, which multiplies nothing, and of weights whose config.json says nothing of inputs.
        let unread = |quantized, name: &str| {
            let refused =
                refused_of(quantized, |tensors| tensors.push((name.to_owned(), Dtype::F32, vec![1], vec![0, 0, 128, 63])));
            assert_eq!(refused, format!("tensor `{name}` has no place in the model that config.json describes"));
        };
        unread(static_inputs(), "model.norm.input_scale");
        unread(int4(), name);
        unread(Quantized { inputs_are_static: false, ..static_inputs() }, name);
    }

    #[test]
    fn a_config_that_asks_for_other_activations_is_refused_by_its_group() {
        let (folder, _) = written(Family::Gpt2, static_inputs(), 1);
        let path = folder.path().join("config.json");
        let config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        assert_eq!(
            config["quantization_config"]["config_groups"]["group_0"]["input_activations"],
            json!({
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false, "group_size": null,
                "observer": "static_minmax"
            })
        );
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut changed = config.clone();
            change(&mut changed["quantization_config"]["config_groups"]);
            fs_err::write(&path, changed.to_string()).unwrap();
            let error = Artifact::open(folder.path()).unwrap_err().to_string();
            check_bytes_against_folder(folder.path());
            error
        };
        let unknown = format!(
            "{}: `config_groups.group_0.input_activations`: only 8 bits, symmetric, dynamic per token or static per tensor, is run \
             here",
            path.display()
        );
        for (key, value) in [
            ("num_bits", json!(4)),
            ("symmetric", json!(false)),
            ("type", json!("float")),
            ("strategy", json!("channel")),
            ("strategy", json!("group")),
            ("strategy", json!("token")),
            ("strategy", json!(null)),
            ("dynamic", json!(true)),
            ("dynamic", json!("local")),
        ] {
            assert_eq!(changed(&|groups| groups["group_0"]["input_activations"][key] = value.clone()), unknown, "{key} {value}");
        }
        let both = changed(&|groups| {
            groups["group_1"] = groups["group_0"].clone();
            let activations = &mut groups["group_1"]["input_activations"];
            (activations["dynamic"], activations["strategy"]) = (json!(true), json!("token"));
        });
        let expected = format!(
            "{}: `config_groups.group_0.input_activations` and `config_groups.group_1.input_activations`: dynamic and static scales \
             in one model are not run here",
            path.display()
        );
        assert_eq!(both, expected);
        // Static scales are there, and nothing asks for them.
        let dynamic = changed(&|groups| {
            let activations = &mut groups["group_0"]["input_activations"];
            (activations["dynamic"], activations["strategy"]) = (json!(true), json!("token"));
        });
        let end = "tensor `transformer.h.0.attn.c_attn.input_scale` has no place in the model that config.json describes";
        assert!(dynamic.ends_with(end), "{dynamic}");
    }

    #[test]
    fn parts_of_a_matrix_share_its_static_scale() {
        let (folder, _) = written(Family::Gpt2, static_inputs(), 1);
        let artifact = Artifact::open(folder.path()).unwrap();
        let scale =
            |tensor: fn(crate::Part) -> crate::LayerTensor| artifact.input_scale(TensorId::Layer(0, tensor(crate::Part::Weight)));
        use crate::LayerTensor::{AttentionNorm, Down, Key, Output, Query, Up, Value};
        let found = [scale(Query), scale(Key), scale(Value), scale(Output), scale(Up), scale(Down)];
        assert_eq!(found, [1., 1., 1., 2., 3., 4.].map(|at| Some(at / 64.0)));
        assert_eq!((scale(AttentionNorm), artifact.input_scale(TensorId::Embedding)), (None, None));
    }

    #[test]
    fn codebooks_that_contradict_their_config_are_refused_by_name() {
        const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
        let codebook = format!("{QUERY}_codebook");
        let gone = refused_of(codebooks(), |tensors| tensors.retain(|(name, ..)| *name != codebook));
        assert_eq!(gone, format!("there is no tensor `{codebook}`, and config.json asks for it"));
        let shape = refused_of(codebooks(), |tensors| named(tensors, &codebook).2 = vec![4, 8]);
        assert_eq!(shape, format!("tensor `{codebook}` has shape [4, 8], config.json asks for [2, 16]"));
        let integers = refused_of(codebooks(), |tensors| named(tensors, &codebook).1 = Dtype::I32);
        assert_eq!(integers, format!("tensor `{codebook}` is i32"));
        let infinite = refused_of(codebooks(), |tensors| {
            named(tensors, &codebook).3[17 * 4..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        });
        assert_eq!(infinite, format!("tensor `{codebook}` holds -inf at element 17"));
        let words = refused_of(codebooks(), |tensors| {
            let packed = named(tensors, &format!("{QUERY}_packed"));
            (packed.2, packed.3) = (vec![8, 2], vec![0; 64]);
        });
        assert_eq!(words, format!("tensor `{QUERY}_packed` has shape [8, 2], config.json asks for [8, 1]"));
        let floats = refused_of(codebooks(), |tensors| named(tensors, &format!("{QUERY}_packed")).1 = Dtype::F32);
        assert_eq!(floats, format!("tensor `{QUERY}_packed` is f32, packed i32 is needed"));
        let said = refused_of(codebooks(), |tensors| named(tensors, &format!("{QUERY}_shape")).3 = vec![0; 16]);
        assert_eq!(said, format!("tensor `{QUERY}` has shape [0, 0], config.json asks for [8, 8]"));
        let scales = refused_of(codebooks(), |tensors| named(tensors, &codebook).0 = format!("{QUERY}_scale"));
        assert_eq!(scales, format!("there is no tensor `{codebook}`, and config.json asks for it"));
        let both = refused_of(codebooks(), |tensors| {
            tensors.push((format!("{QUERY}_scale"), Dtype::F32, vec![1], vec![0; 4]));
        });
        assert_eq!(both, format!("tensor `{QUERY}_scale` has no place in the model that config.json describes"));
    }

    #[test]
    fn a_config_that_says_no_such_codebooks_is_refused_by_its_group() {
        let (folder, _) = written(Family::Gpt2, codebooks(), 1);
        let path = folder.path().join("config.json");
        let config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        let weights = &config["quantization_config"]["config_groups"]["group_0"]["weights"];
        assert_eq!(*weights, json!({"num_bits": 4, "type": "codebook", "codebook_rows": 4}));
        assert_eq!(config["quantization_config"]["format"], "codebook-packed");
        let with = |key: &str, value: Value| {
            let mut changed = config.clone();
            changed["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
            fs_err::write(&path, changed.to_string()).unwrap();
            Artifact::open(folder.path()).unwrap_err().to_string()
        };
        let unread = format!(
            "{}: `config_groups.group_0.weights`: only codebooks of 4 and 8 bits, for 1 row or more, are read",
            path.display()
        );
        for (key, value) in
            [("num_bits", json!(3)), ("num_bits", json!(260)), ("codebook_rows", json!(0)), ("codebook_rows", json!("all"))]
        {
            assert_eq!(with(key, value), unread, "{key}");
        }
        // GPT-2 keeps three matrices of 8 rows in one of 24.
        let cut = format!(
            "{}: tensor `transformer.h.0.attn.c_attn.weight`: codebooks of 12 rows do not divide 8 rows",
            folder.path().display()
        );
        assert_eq!(with("codebook_rows", json!(12)), cut);
        // Integers have none.
        let integers = with("type", json!("int"));
        let unknown = "`config_groups.group_0.weights.codebook_rows`: this key is not known here";
        assert!(integers.ends_with(unknown), "{integers}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back((family, quantized) in quantized(), seed in any::<u8>()) {
            let (folder, tensors) = written(family, quantized, seed);
            let artifact = Artifact::open(folder.path()).unwrap();
            check_bytes_against_folder(folder.path());
            prop_assert_eq!(artifact.input_rounding(), &input_rounding(artifact.architecture(), quantized));
            prop_assert_eq!(artifact.stored().count(), tensors.len());
            for (stored, new) in &tensors {
                let (_, read) = artifact.stored().find(|(name, _)| *name == stored.name).unwrap();
                match (new, read) {
                    (NewArtifactTensor::Dense(new), ArtifactTensor::Dense(read)) => prop_assert_eq!(&read.to_f32().unwrap(), new),
                    (NewArtifactTensor::Quantized(new), ArtifactTensor::Quantized(read)) => {
                        prop_assert_eq!((read.rows, read.columns, read.scheme), (new.rows, new.columns, new.scheme));
                        prop_assert_eq!((&read.scales, &read.zero_points), (&new.scales, &new.zero_points));
                        for row in 0..new.rows {
                            prop_assert_eq!(read.row_integers(row), new.row_integers(row));
                        }
                    }
                    (NewArtifactTensor::Codebooks(new), ArtifactTensor::Codebooks(read)) => {
                        prop_assert_eq!((read.rows, read.columns, read.codebooks), (new.rows, new.columns, new.codebooks));
                        prop_assert_eq!((&*read.centroids.bytes, &*read.indices), (&*new.centroids.bytes, &*new.indices));
                        let parts: Vec<f32> = stored.parts.iter().flat_map(|part| artifact.values(*part).unwrap()).collect();
                        prop_assert_eq!(parts, new.to_f32());
                    }
                    _ => prop_assert!(false, "{} changed its storage", stored.name),
                }
            }
        }

        #[test]
        fn other_scales_change_no_other_byte((family, quantized) in quantized(), seed in any::<u8>()) {
            let (folder, _) = written(family, quantized, seed);
            let artifact = Artifact::open(folder.path()).unwrap();
            let file = |folder: &Path, name: &str| fs_err::read(folder.join(name)).unwrap();
            let written = |change: &dyn Fn(usize, f32) -> f32| {
                let out = tempfile::tempdir().unwrap();
                let scales = |id| match artifact.tensor(id) {
                    ArtifactTensor::Quantized(matrix) => {
                        Some((id, matrix.scales.iter().enumerate().map(|(index, scale)| change(index, scale)).collect()))
                    }
                    ArtifactTensor::Codebooks(_) | ArtifactTensor::Dense(_) => None,
                };
                let scales = artifact.architecture().tensors().into_iter().filter_map(scales).collect();
                let kept = artifact.write_with_scales(&scales, out.path()).unwrap();
                (out, kept)
            };
            for (name, (out, _)) in [
                ("the same", written(&|_, scale| scale)),
                ("none that could be stored", written(&|index, _| if index % 2 == 0 { 0.0 } else { f32::MAX })),
            ] {
                for file_name in ["config.json", "model.safetensors"] {
                    prop_assert!(file(out.path(), file_name) == file(folder.path(), file_name), "{}: {}", name, file_name);
                }
            }
            let (out, kept) = written(&|index, scale| scale * (1.0 + index as f32 / 512.0));
            let zeros = artifact.stored().filter_map(|(_, tensor)| match tensor {
                ArtifactTensor::Quantized(matrix) => Some(matrix.scales.iter().filter(|scale| *scale == 0.0).count() as u64),
                ArtifactTensor::Codebooks(_) | ArtifactTensor::Dense(_) => None,
            });
            prop_assert_eq!(kept, zeros.sum::<u64>());
            prop_assert!(file(out.path(), "config.json") == file(folder.path(), "config.json"));
            let (old, new) = (TensorFiles::open(folder.path()).unwrap(), TensorFiles::open(out.path()).unwrap());
            prop_assert_eq!((old.bytes(), old.iter().count()), (new.bytes(), new.iter().count()));
            for ((old_name, old), (new_name, new)) in old.iter().zip(new.iter()) {
                prop_assert_eq!((old_name, old.dtype, &old.shape), (new_name, new.dtype, &new.shape));
                prop_assert!(old_name.ends_with("weight_scale") || old.bytes[..] == new.bytes[..], "{}", old_name);
            }
            // Fused parts count their scales each from 0.
            for id in artifact.architecture().tensors() {
                let (ArtifactTensor::Quantized(old), ArtifactTensor::Quantized(new)) =
                    (artifact.tensor(id), Artifact::open(out.path()).unwrap().tensor(id)) else { continue };
                let dtype = [Dtype::F16, Dtype::F32, Dtype::Bf16][usize::from(seed % 3)];
                for (index, (old, new)) in old.scales.iter().zip(new.scales.iter()).enumerate() {
                    prop_assert_eq!(Some(new), dtype.nearest(old * (1.0 + index as f32 / 512.0)), "{}", id);
                }
            }
        }

        #[test]
        fn changed_files_are_in_bounds_or_refused_by_path(
            (family, quantized) in quantized(),
            in_config in any::<bool>(),
            damage in Damage::any(0..4, 0.2),
        ) {
            let (folder, _) = written(family, quantized, 3);
            let path = folder.path().join(if in_config { "config.json" } else { "model.safetensors" });
            damage.strike(&path);
            check_any(folder.path());
            check_bytes_against_folder(folder.path());
        }
    }
}
