//! What a run keeps of each step beside its result: a mark from its first moment, the training state, a record in the end.
//!
//! A step ends in this order: what it made is written, then `made.json`; it is measured; `step.json`; and only then everything goes that
//! a step which was ended needs to go on. So a kill at any moment loses no more than what was done since the last of these. What has to
//! go is renamed into a folder that nothing reads, and removed there: half of it is never found in its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use compressor_format::{
    Check, Checkpoint, Dataset, FileHash, LIST_BYTES, Metrics, Multiplied, ORIGINAL, Split, Stage, StageReport, Verify,
    hash_file, read_file, write_beside,
};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::fingerprint::Fingerprint;
use crate::plan::{Origin, Plan, Step};
use crate::planner::split_of;

/// What a step leaves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) report: StageReport,
    pub(crate) checks: Vec<Check>,
    /// BLAKE3 of each file that the step made.
    pub(crate) files: BTreeMap<String, String>,
    /// Every file that the step read, as it was when the step began; `None` where a version wrote this that did not record it.
    #[serde(default)]
    pub(crate) inputs: Option<Vec<FileHash>>,
    /// What perplexity and score were measured on; `None` where they were not, or where a version wrote this that did not record it.
    #[serde(default)]
    pub(crate) measurement: Option<Measurement>,
}

/// What decides how a model is measured. Figures that stand in one table are of one measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    windows: usize,
    window: usize,
    first_scored: usize,
    examples: usize,
    activations: Multiplied,
    /// Decides which rows of a dataset are held out.
    seed: u64,
}

impl Measurement {
    /// As a verification measures, in a recipe of this seed.
    pub(crate) fn of(settings: &Verify, seed: u64) -> Self {
        let &Verify { windows, window, first_scored, examples, activations, .. } = settings;
        Self { windows, window, first_scored, examples, activations, seed }
    }
}

/// The record of a finished step, with its figures.
pub(crate) const RECORD: &str = "step.json";
/// The record of a step that has made its model and not measured it yet.
const MADE: &str = "made.json";
/// Says from a step's first moment that its folder is ours, and what for.
pub(crate) const MARK: &str = "fingerprint";
/// The state of a training.
const STATE: &str = "state";
/// Layers that a quantization has finished, and activations that it keeps on the disk.
const LAYERS: &str = "layers";
/// In the run folder, from a run's first moment: held as long as it is at work.
pub(crate) const LOCK: &str = ".lock";
/// Where what has to go waits for being removed: among the steps' folders, whose names begin with a number.
const REMOVED: &str = "removed";

pub(crate) fn state_folder(step: &Step) -> PathBuf {
    step.bookkeeping.join(STATE)
}

pub(crate) fn layers_folder(step: &Step) -> PathBuf {
    step.bookkeeping.join(LAYERS)
}

impl Record {
    /// Of a step that has made what it makes.
    pub(crate) fn of(step: &Step, report: StageReport, checks: Vec<Check>, inputs: Vec<FileHash>) -> Result<Self, Error> {
        Ok(Self { report, checks, files: hashes(step)?, inputs: Some(inputs), measurement: None })
    }

    /// Says that the model is made, and has yet to be measured.
    pub(crate) fn keep_made(&self, step: &Step) -> Result<(), Error> {
        self.write(step, MADE)
    }

    /// Says that the step is finished, and removes what it needed to go on.
    pub(crate) fn finish(&self, step: &Step) -> Result<(), Error> {
        self.write(step, RECORD)?;
        clear(step)
    }

    /// Keeps the figures of the model that the chain starts from, in place of whatever lies there.
    pub(crate) fn keep_original(&self, plan: &Plan) -> Result<(), Error> {
        let folder = original_folder(plan);
        discard(&plan.bookkeeping, &[&folder])?;
        fs_err::create_dir_all(&folder)?;
        self.write_into(&folder, RECORD)
    }

    /// `None` where it is missing or damaged.
    fn read(path: &Path) -> Result<Option<Self>, Error> {
        Ok(read_own(path)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn write(&self, step: &Step, name: &str) -> Result<(), Error> {
        self.write_into(&step.bookkeeping, name)
    }

    fn write_into(&self, folder: &Path, name: &str) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("a record is plain data");
        Ok(write_beside(folder.join(name), |file| Ok(file.write_all(text.as_bytes())?))?)
    }
}

/// A file of the bookkeeping; `None` where it is missing or is none that a run writes. What the disk fails to give is an error: a training
/// isn't done again for it.
fn read_own(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read_file(path, LIST_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(compressor_format::Error::Io(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Beside the folders of the steps.
fn original_folder(plan: &Plan) -> PathBuf {
    plan.bookkeeping.join(ORIGINAL)
}

/// The figures of the model that the chain starts from, where it and what it is measured on are as they were.
pub(crate) fn original(plan: &Plan, fingerprint: &str, inputs: &[FileHash]) -> Result<Option<Record>, Error> {
    let record = Record::read(&original_folder(plan).join(RECORD))?;
    Ok(record.filter(|record| record.report.fingerprint == fingerprint && record.inputs.as_deref() == Some(inputs)))
}

/// The record of a step that is finished, and whose settings, inputs and files are as they were left.
///
/// The version before recorded no inputs. Its steps count as finished where all steps before them are, which then are as they were left
/// too; `is_after_change` says that one of them was done again.
pub(crate) fn finished(step: &Step, inputs: &[FileHash], is_after_change: bool) -> Result<Option<Record>, Error> {
    let redone = |why: &str| {
        tracing::info!("{}: {why}", step.name);
        Ok(None)
    };
    let path = step.bookkeeping.join(RECORD);
    let Some(record) = Record::read(&path)? else {
        return redone(if path.exists() { "its record can't be read" } else { "was never finished" });
    };
    if record.report.fingerprint != step.fingerprint {
        return redone("its settings or its inputs changed since it was finished");
    }
    match &record.inputs {
        Some(recorded) if recorded != inputs => return redone("files that it read changed since it was finished"),
        None if is_after_change => {
            return redone("a step before it was done again, and no record says which files this one read");
        }
        Some(_) | None => {}
    }
    if record.files != hashes(step)? {
        return redone("its files are not as they were left");
    }
    Ok(Some(record))
}

/// Removes what a finished step, or one that was being finished, needed to go on.
pub(crate) fn clear(step: &Step) -> Result<(), Error> {
    discard(folder_of_all(step), &[&state_folder(step), &layers_folder(step), &step.bookkeeping.join(MADE)])
}

/// Makes a step's folders ready for it; gives the record of what it has made, where nothing is left to do but to measure it.
///
/// What lies there stays where it belongs to this step and its inputs: a training state or finished layers, and losses. Of the result
/// itself nothing is believed but what a record has the hashes of. What was made for something else, or is not as it was left, goes.
pub(crate) fn begin(step: &Step, inputs: &[FileHash]) -> Result<Option<Record>, Error> {
    if step.holds_foreign_files() {
        return Err(Error::NotOurs(step.folder.clone()));
    }
    let mut made = read_made(step, inputs)?;
    let is_finished = step.bookkeeping.join(RECORD).exists();
    if matches!(made, Made::Otherwise) || is_finished || !is_mark_of(step, Some(inputs))?.unwrap_or(true) {
        // The result first: a folder that is not empty always has its mark.
        discard(folder_of_all(step), &[&step.folder, &step.bookkeeping])?;
        made = Made::Nothing;
    }
    fs_err::create_dir_all(&step.bookkeeping)?;
    if !matches!(step.stage, Stage::Verify(_)) {
        fs_err::create_dir_all(&step.folder)?;
    }
    write_beside(step.bookkeeping.join(MARK), |file| Ok(file.write_all(mark(step, inputs).as_bytes())?))?;
    let made = match made {
        Made::AsRecorded(record) => Some(*record),
        Made::Nothing | Made::Otherwise => None,
    };
    remove_others(step, made.as_ref())?;
    Ok(made)
}

/// What `made.json` says.
enum Made {
    Nothing,
    AsRecorded(Box<Record>),
    Otherwise,
}

fn read_made(step: &Step, inputs: &[FileHash]) -> Result<Made, Error> {
    let path = step.bookkeeping.join(MADE);
    if path.symlink_metadata().is_err() {
        return Ok(Made::Nothing);
    }
    let Some(record) = Record::read(&path)? else { return Ok(Made::Otherwise) };
    if record.report.fingerprint != step.fingerprint || record.inputs.as_deref() != Some(inputs) {
        return Ok(Made::Otherwise);
    }
    // Others may lie beside them, such as the coded weights of scales that were being compared.
    let found = hashes(step)?;
    match record.files.iter().all(|(name, hash)| found.get(name) == Some(hash)) {
        true => Ok(Made::AsRecorded(Box::new(record))),
        false => Ok(Made::Otherwise),
    }
}

/// Removes every file of the step's folder but losses and what is made: what is half written, or was changed meanwhile.
fn remove_others(step: &Step, made: Option<&Record>) -> Result<(), Error> {
    for path in files_in(&step.folder)? {
        let name = name_of(&path);
        if made.is_none_or(|made| !made.files.contains_key(&name)) {
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}

/// What the mark says: the fingerprint, and one hash of all inputs.
fn mark(step: &Step, inputs: &[FileHash]) -> String {
    format!("{}\n{}\n", step.fingerprint, Fingerprint::new("inputs").settings(&inputs).hex())
}

/// Whether the mark is that of this step and, where they are given, of these inputs; `None` where there is no mark. The version before
/// wrote the fingerprint alone.
fn is_mark_of(step: &Step, inputs: Option<&[FileHash]>) -> Result<Option<bool>, Error> {
    let path = step.bookkeeping.join(MARK);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let found = read_own(&path)?.unwrap_or_default();
    Ok(Some(match inputs {
        Some(inputs) => found == step.fingerprint.as_bytes() || found == mark(step, inputs).as_bytes(),
        None => found.split(|byte| *byte == b'\n').next() == Some(step.fingerprint.as_bytes()),
    }))
}

/// Whether what lies in a step's folder was made with the settings of this run.
pub(crate) fn is_begun(step: &Step) -> Result<bool, Error> {
    Ok(is_mark_of(step, None)?.unwrap_or(false))
}

/// The folder of what a run keeps of all its steps.
fn folder_of_all(step: &Step) -> &Path {
    step.bookkeeping.parent().expect("the bookkeeping of a step lies in that of its run")
}

/// Puts files and folders out of reach, one rename each, and then removes them; `bookkeeping` is that of the run.
fn discard(bookkeeping: &Path, paths: &[&Path]) -> Result<(), Error> {
    let removed = bookkeeping.join(REMOVED);
    for (number, path) in paths.iter().enumerate() {
        if path.symlink_metadata().is_ok() {
            fs_err::create_dir_all(&removed)?;
            fs_err::rename(path, removed.join(number.to_string()))?;
        }
    }
    remove_discarded(&removed)
}

/// Removes what a run that was killed had put out of reach.
pub(crate) fn clear_discarded(plan: &Plan) -> Result<(), Error> {
    remove_discarded(&plan.bookkeeping.join(REMOVED))
}

fn remove_discarded(folder: &Path) -> Result<(), Error> {
    match folder.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(found) if !found.is_dir() => Ok(fs_err::remove_file(folder)?),
        _ => Ok(fs_err::remove_dir_all(folder)?),
    }
}

/// BLAKE3 of what a step made; a verification makes no files, and losses grow when a run is resumed.
fn hashes(step: &Step) -> Result<BTreeMap<String, String>, Error> {
    files_in(&step.folder)?.into_iter().map(|path| Ok((name_of(&path), hash_file(&path)?))).collect()
}

/// The files of a step's folder but its losses, sorted.
fn files_in(folder: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut files = BTreeSet::new();
    if folder.exists() {
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != Metrics::FILE {
                files.insert(entry.path());
            }
        }
    }
    Ok(files)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Hashes of the files that steps read, each file hashed once.
#[derive(Default)]
pub(crate) struct Inputs(HashMap<PathBuf, FileHash>);

impl Inputs {
    /// Every file that a step reads, as it is now: of models with all that lies beside the weights, and of the dataset, also where a step
    /// is only measured on it.
    pub(crate) fn of(&mut self, plan: &Plan, step: &Step) -> Result<Vec<FileHash>, Error> {
        let is_verification = matches!(step.stage, Stage::Verify(_));
        let largest = plan.largest_checkpoint().filter(|_| is_verification);
        let models = [
            ("input", Some(&step.input)),
            (if is_verification { "reference" } else { "teacher" }, step.beside.as_ref()),
            ("student", step.student.as_ref()),
            ("largest", largest.as_ref()),
        ];
        let mut inputs = Vec::new();
        for (role, origin) in models {
            self.add_model(role, origin, plan, &mut inputs)?;
        }
        let reads = |dataset: &&Dataset| split_of(&step.stage).is_some() || dataset.has(Split::Test);
        self.add_dataset(plan.dataset.as_ref().filter(reads), &mut inputs)?;
        Ok(inputs)
    }

    /// Every file that measuring the start of the chain reads.
    pub(crate) fn of_original(&mut self, plan: &Plan) -> Result<Vec<FileHash>, Error> {
        let mut inputs = Vec::new();
        self.add_model("input", Some(&plan.start), plan, &mut inputs)?;
        self.add_dataset(plan.dataset.as_ref().filter(|dataset| dataset.has(Split::Test)), &mut inputs)?;
        Ok(inputs)
    }

    fn add_model(&mut self, role: &str, origin: Option<&Origin>, plan: &Plan, to: &mut Vec<FileHash>) -> Result<(), Error> {
        let files = match origin {
            None | Some(Origin::New(_)) => Vec::new(),
            Some(Origin::Path(path)) => Checkpoint::open(path)?.files(),
            Some(Origin::Step(index)) => files_in(&plan.steps()[*index].folder)?.into_iter().collect(),
        };
        files.iter().try_for_each(|file| self.add(role, file, to))
    }

    fn add_dataset(&mut self, dataset: Option<&Dataset>, to: &mut Vec<FileHash>) -> Result<(), Error> {
        let files = dataset.map(Dataset::inputs).unwrap_or_default();
        files.iter().try_for_each(|file| self.add("dataset", file, to))
    }

    /// Forgets what lay in a folder that was written anew.
    pub(crate) fn forget(&mut self, folder: &Path) {
        self.0.retain(|path, _| !path.starts_with(folder));
    }

    fn add(&mut self, role: &str, path: &Path, to: &mut Vec<FileHash>) -> Result<(), Error> {
        let hash = match self.0.get(path) {
            Some(hash) => hash.clone(),
            None => FileHash::of(name_of(path), path)?,
        };
        self.0.insert(path.to_owned(), hash.clone());
        // By what it is for and not by its path: a run folder can be moved.
        to.push(FileHash { name: format!("{role}/{}", hash.name), ..hash });
        Ok(())
    }
}
