//! Layers that are finished, kept while a quantization is under way: one that was stopped goes on with the next layer.
//!
//! One safetensors file a layer, with each tensor's integers as they will be stored, its scales and its zero points, or its
//! indices and centroids, and what the report says of it in the file's metadata, beside the scaling of the layer. A file is
//! written beside its place and renamed, so it is whole or not there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compressor_format::{
    CodebookMatrix, Dtype, Levels, MappedBytes, NewTensor, QuantizedMatrix, Storage, StoredTensor, TensorFiles, TensorSlice,
    Values, WeightBytes, map_file, write_safetensors_with,
};
use serde::{Deserialize, Serialize};

use super::calibrated::{OutputError, Quantized};
use super::matrix::Matrix;
use super::scaling::LayerScaling;
use super::{Distance, Error, Quantization};
use crate::fingerprint::Fingerprint;

/// The files of one quantization.
pub(super) struct Journal<'a> {
    folder: &'a Path,
    /// Of what every tensor becomes and how it is scaled: with another choice, layers that were finished are none of this quantization.
    layout: String,
    tensors: &'a [(StoredTensor, Storage)],
}

/// What the metadata says of a tensor.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    rows: usize,
    columns: usize,
    levels: Levels,
    packed: bool,
    distance: Distance,
    output_error: OutputError,
    /// To the last bit, as the factors of the scaling.
    input_scale: Option<f32>,
}

/// The metadata's keys.
const ENTRIES: &str = "tensors";
const LAYOUT: &str = "layout";
const SCALING: &str = "scaling";

/// The tensors of a layer, and its scaling.
type Layer = (BTreeMap<String, Quantized>, LayerScaling);

impl<'a> Journal<'a> {
    pub(super) fn new(folder: &'a Path, quantization: &Quantization, tensors: &'a [(StoredTensor, Storage)]) -> Self {
        let text = |fingerprint: Fingerprint, (stored, storage): &(StoredTensor, Storage)| {
            fingerprint.text(&stored.name).text(&format!("{storage:?}"))
        };
        let settings = (quantization.scaling, quantization.migration_strength);
        let layout = tensors.iter().fold(Fingerprint::new("layers").settings(&settings), text).hex();
        Self { folder, layout, tensors }
    }

    /// The file of a layer.
    pub(super) fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("layer-{layer}.safetensors"))
    }

    /// A layer that is finished; `None` where there is no such file, or none of this version.
    pub(super) fn read(&self, layer: usize) -> Option<Layer> {
        let path = self.path(layer);
        if !path.exists() {
            return None;
        }
        let found = map_file(&path).ok().and_then(|map| TensorFiles::from_bytes(MappedBytes::from(map), path.as_path()).ok());
        let of_this = found.as_ref().filter(|files| files.metadata().get(LAYOUT) == Some(&self.layout));
        let kept = of_this.and_then(|files| Some((tensors(files)?, scaling(files)?)));
        let kept = kept.filter(|(kept, _)| self.has_input_scales(kept));
        if kept.is_none() {
            tracing::info!("{}: can't be read, or is of another choice; the layer is quantized again", path.display());
        }
        kept
    }

    /// Whether every tensor that has a static scale for its input has one that can be.
    fn has_input_scales(&self, kept: &BTreeMap<String, Quantized>) -> bool {
        self.tensors.iter().all(|(stored, storage)| match (storage, kept.get(&stored.name)) {
            (Storage::SignedStatic(_), Some(kept)) => kept.input_scale.is_some_and(|scale| scale.is_finite() && scale > 0.0),
            _ => true,
        })
    }

    /// Keeps a layer.
    pub(super) fn write(&self, layer: usize, tensors: &[(&String, &Quantized)], scaling: &LayerScaling) -> Result<(), Error> {
        fs_err::create_dir_all(self.folder).map_err(compressor_format::Error::from)?;
        let mut entries = Vec::new();
        let mut parts = Vec::new();
        for (name, Quantized { matrix, distance, output_error, input_scale }) in tensors {
            let entry = |(rows, columns), levels, packed| Entry {
                name: (*name).clone(),
                rows,
                columns,
                levels,
                packed,
                distance: *distance,
                output_error: *output_error,
                input_scale: *input_scale,
            };
            match matrix {
                Matrix::Integers(matrix) => {
                    let (values, packed) = match &matrix.values {
                        Values::Packed(bytes) => (bytes, true),
                        Values::Signed(bytes) => (bytes, false),
                    };
                    entries.push(entry((matrix.rows, matrix.columns), matrix.scheme.into(), packed));
                    parts.push(part(name, "values", Dtype::I8, values.len(), || Cow::Borrowed(&**values)));
                    let scales = || Cow::Owned(matrix.scales.iter().flat_map(f32::to_le_bytes).collect());
                    parts.push(part(name, "scales", Dtype::F32, matrix.scales.len(), scales));
                    if let Some(points) = &matrix.zero_points {
                        let bytes = || Cow::Owned(points.iter().map(|point| *point as u8).collect());
                        parts.push(part(name, "zero_points", Dtype::I8, points.len(), bytes));
                    }
                }
                Matrix::Codebooks(CodebookMatrix { rows, columns, codebooks, indices, centroids }) => {
                    entries.push(entry((*rows, *columns), (*codebooks).into(), true));
                    parts.push(part(name, "values", Dtype::I8, indices.len(), || Cow::Borrowed(&**indices)));
                    let len = centroids.shape.iter().product();
                    parts.push(part(name, "centroids", centroids.dtype, len, || Cow::Borrowed(&*centroids.bytes)));
                }
            }
        }
        let entries = serde_json::to_string(&entries).expect("names and finite numbers");
        let scaling = serde_json::to_string(scaling).expect("names and finite numbers");
        let metadata = [(ENTRIES, entries), (LAYOUT, self.layout.clone()), (SCALING, scaling)];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(write_safetensors_with(&self.path(layer), metadata, parts)?)
    }
}

/// One of the vectors that a tensor is kept as.
fn part<'a>(name: &str, kind: &str, dtype: Dtype, len: usize, bytes: impl Fn() -> Cow<'a, [u8]> + 'a) -> (String, NewTensor<'a>) {
    (format!("{name}.{kind}"), NewTensor { dtype, shape: vec![len], bytes: Box::new(bytes) })
}

/// With every factor to the last bit: JSON keeps the shortest digits that stand for one float alone.
fn scaling(files: &TensorFiles) -> Option<LayerScaling> {
    serde_json::from_str(files.metadata().get(SCALING)?).ok()
}

fn tensors(files: &TensorFiles) -> Option<BTreeMap<String, Quantized>> {
    let entries: Vec<Entry> = serde_json::from_str(files.metadata().get(ENTRIES)?).ok()?;
    let tensor = |entry: Entry| {
        let Entry { name, rows, columns, levels, packed, distance, output_error, input_scale } = entry;
        let part = |kind: &str| files.get(&format!("{name}.{kind}"));
        let values = WeightBytes::Owned(part("values")?.bytes.to_vec().into());
        let matrix = match levels {
            Levels::Grid(scheme) => {
                let row_bytes = if packed { scheme.row_bytes(columns) } else { columns };
                let scales = part("scales")?.to_f32()?;
                let groups = rows * scheme.groups(columns);
                let zero_points: Option<Vec<i8>> = match scheme.symmetric {
                    true => None,
                    false => Some(part("zero_points")?.bytes.iter().map(|byte| *byte as i8).collect()),
                };
                let fits = values.len() == rows * row_bytes
                    && scales.len() == groups
                    && zero_points.as_ref().is_none_or(|points| points.len() == groups);
                let values = if packed { Values::Packed(values) } else { Values::Signed(values) };
                let matrix = QuantizedMatrix { rows, columns, scheme, values, scales: scales.into(), zero_points };
                fits.then_some(Matrix::Integers(matrix))
            }
            Levels::Codebooks(codebooks) => {
                let shape = vec![codebooks.count(rows), codebooks.centroids()];
                let kept = part("centroids")?;
                let fits = values.len() == rows * codebooks.row_bytes(columns) && kept.shape == [shape.iter().product::<usize>()];
                let bytes = kept.bytes.to_vec().into();
                let centroids = TensorSlice { dtype: kept.dtype, shape, bytes };
                fits.then_some(Matrix::Codebooks(CodebookMatrix { rows, columns, codebooks, indices: values, centroids }))
            }
        }?;
        Some((name, Quantized { matrix, distance, output_error, input_scale }))
    };
    entries.into_iter().map(tensor).collect()
}
