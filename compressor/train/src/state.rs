//! The state of a training on disk: weights, moments and the step, all of one moment.
//!
//! A state is a folder `state-<step>` with `state.json` and `model.safetensors`. It is written as `state-<step>.tmp` and renamed, and only
//! then are older ones removed, which are renamed to `state-<step>.old` before: a kill at any moment leaves the older state or the newer
//! one, whole.

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use compressor_format::{DESCRIPTION_BYTES, Dtype, NewTensor, TensorFiles, TensorId, read_file, write_beside, write_safetensors};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::model::{Parameters, Shapes, values};
use crate::optimizer::AdamW;

/// All that changes while training.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) parameters: Parameters,
    /// Its count of updates is the number of steps done.
    pub(crate) optimizer: AdamW,
}

/// What `state.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    version: u32,
    step: u64,
    /// The caller's name for everything that decides the result: settings, inputs, data.
    fingerprint: String,
}

/// Raised when the layout of a state changes; states of another version are refused.
const VERSION: u32 = 1;
const DESCRIPTION: &str = "state.json";
/// The name under which `TensorFiles` opens a folder's tensors.
const TENSORS: &str = "model.safetensors";
/// What the names of a state that is being written, and of one that is being removed, end in.
const TEMPORARY: &str = "tmp";
const OLD: &str = "old";
const KINDS: [&str; 3] = ["weight", "moment_1", "moment_2"];

/// Saves the state and removes older ones.
pub(crate) fn save(folder: &Path, fingerprint: &str, state: &State) -> Result<(), Error> {
    let step = state.optimizer.steps;
    let name = format!("state-{step}");
    for left in states(folder)?.into_iter().filter(|found| found.step.is_none()) {
        fs::remove_dir_all(&left.path)?;
    }
    let beside = folder.join(format!("{name}.{TEMPORARY}"));
    fs::create_dir_all(&beside)?;
    let mut tensors = Vec::new();
    for (id, weight) in state.parameters.iter() {
        tensors.push((format!("weight.{id}"), weight));
        for (kind, moment) in KINDS[1..].iter().zip(state.optimizer.moments.get(&id).into_iter().flatten()) {
            tensors.push((format!("{kind}.{id}"), moment));
        }
    }
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        let bytes = move || Cow::Owned(Dtype::F32.from_f32(&values(tensor.clone())).expect("f32 is a float type"));
        (name, NewTensor { dtype: Dtype::F32, shape: tensor.dims().to_vec(), bytes: Box::new(bytes) })
    });
    write_safetensors(&beside.join(TENSORS), tensors)?;
    let description = Description { version: VERSION, step, fingerprint: fingerprint.to_owned() };
    let text = serde_json::to_string_pretty(&description).expect("two numbers and a string are JSON");
    write_beside(beside.join(DESCRIPTION), |file| Ok(file.write_all(format!("{text}\n").as_bytes())?))?;
    let place = folder.join(&name);
    if place.exists() {
        remove(&place)?;
    }
    fs::rename(&beside, &place)?;
    // Not every file system can sync a folder; without a power cut the order of the renames is kept all the same.
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    for old in states(folder)? {
        if old.path != place {
            remove(&old.path)?;
        }
    }
    Ok(())
}

/// Takes a state its name at once, and then removes it.
fn remove(state: &Path) -> Result<(), Error> {
    let old = state.with_extension(OLD);
    fs::rename(state, &old)?;
    Ok(fs::remove_dir_all(old)?)
}

/// The newest state with this fingerprint, if there is one, of parameters with these shapes.
pub(crate) fn load(folder: &Path, fingerprint: &str, shapes: &Shapes, device: &Device) -> Result<Option<State>, Error> {
    let mut found = states(folder)?;
    found.retain(|state| state.step.is_some());
    found.sort_by_key(|state| state.step);
    for Found { path, step } in found.into_iter().rev() {
        // A state gets its name when both files are in it: one without either was being removed, by a version that did so in its place.
        if !path.join(DESCRIPTION).exists() {
            continue;
        }
        let description = describe(&path)?;
        if !path.join(TENSORS).exists() {
            continue;
        }
        if description.fingerprint != fingerprint {
            continue;
        }
        let damaged = |what: String| Error::State { path: path.clone(), what };
        if Some(description.step) != step {
            return Err(damaged(format!("{DESCRIPTION} says step {}", description.step)));
        }
        let files = TensorFiles::open(&path).map_err(|error| damaged(error.to_string()))?;
        let read = |kind: &str, id: TensorId| -> Result<Vec<f32>, Error> {
            let name = format!("{kind}.{id}");
            let slice = files.get(&name).ok_or_else(|| damaged(format!("there is no tensor `{name}`")))?;
            let expected: usize = shapes[&id].iter().product();
            let values = slice.to_f32().filter(|values| values.len() == expected);
            values.ok_or_else(|| {
                damaged(format!("tensor `{name}` has shape {:?}, the model asks for {expected} values", slice.shape))
            })
        };
        let weights: Vec<_> = shapes.keys().map(|id| Ok((*id, read("weight", *id)?))).collect::<Result<_, Error>>()?;
        let parameters = Parameters::new(shapes, weights, device);
        let mut optimizer = AdamW { steps: description.step, ..AdamW::default() };
        for (id, weight) in parameters.iter() {
            let moment = |kind| -> Result<Tensor<2>, Error> {
                Ok(Tensor::from_data(TensorData::new(read(kind, id)?, weight.dims()), device))
            };
            optimizer.moments.insert(id, [moment(KINDS[1])?, moment(KINDS[2])?]);
        }
        return Ok(Some(State { parameters, optimizer }));
    }
    Ok(None)
}

fn describe(path: &Path) -> Result<Description, Error> {
    let damaged = |what: String| Error::State { path: path.to_owned(), what };
    let text = read_file(&path.join(DESCRIPTION), DESCRIPTION_BYTES).map_err(|error| damaged(error.to_string()))?;
    let description: Description =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{DESCRIPTION} is not valid: {error}")))?;
    match description.version {
        VERSION => Ok(description),
        other => Err(damaged(format!("was written in version {other}, this program reads version {VERSION}"))),
    }
}

/// A folder that a save made: of a state, or of one that was being written or removed (without a step).
struct Found {
    path: PathBuf,
    step: Option<u64>,
}

fn states(folder: &Path) -> Result<Vec<Found>, Error> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("state-"));
        let Some((step, ending)) = name.map(|name| name.split_once('.').map_or((name, None), |(step, end)| (step, Some(end))))
        else {
            continue;
        };
        match (step.parse(), ending) {
            (Ok(step), None) => found.push(Found { path, step: Some(step) }),
            (Ok(_), Some(TEMPORARY | OLD)) => found.push(Found { path, step: None }),
            _ => {}
        }
    }
    Ok(found)
}
