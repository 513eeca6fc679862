//! What a run keeps of each step beside its result: the record of a finished one, the mark of one that is begun, the training state.

use std::collections::BTreeMap;

use compressor_format::{Check, Metrics, Stage, StageReport, hash_file, write_beside};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::plan::Step;

/// What a finished step leaves: `step.json`, written last.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) report: StageReport,
    pub(crate) checks: Vec<Check>,
    /// BLAKE3 of each file that the step made.
    pub(crate) files: BTreeMap<String, String>,
}

pub(crate) const RECORD: &str = "step.json";
/// Says from a step's first moment that its folder is ours, and what for.
pub(crate) const MARK: &str = "fingerprint";

impl Record {
    pub(crate) fn write(&self, step: &Step) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("a record is plain data");
        Ok(write_beside(step.bookkeeping.join(RECORD), |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))?)
    }
}

/// The record of a step that is finished, whose inputs have not changed and whose files are as they were left.
pub(crate) fn finished(step: &Step) -> Result<Option<Record>, Error> {
    let redone = |why: &str| {
        tracing::info!("{}: {why}", step.name);
        Ok(None)
    };
    let Ok(bytes) = fs_err::read(step.bookkeeping.join(RECORD)) else { return redone("was never finished") };
    let Ok(record) = serde_json::from_slice::<Record>(&bytes) else { return redone("another version finished it") };
    if record.report.fingerprint != step.fingerprint {
        return redone("its settings or its inputs changed since it was finished");
    }
    if record.files != hashes(step)? {
        return redone("its files are not as they were left");
    }
    Ok(Some(record))
}

/// BLAKE3 of what a step made; a verification makes no files, and metrics grow when a run is resumed.
pub(crate) fn hashes(step: &Step) -> Result<BTreeMap<String, String>, Error> {
    let mut hashes = BTreeMap::new();
    if !step.folder.exists() {
        return Ok(hashes);
    }
    for entry in fs_err::read_dir(&step.folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && name != Metrics::FILE {
            hashes.insert(name, hash_file(&entry.path())?);
        }
    }
    Ok(hashes)
}

/// Whether what lies in a step's folder was made with the settings and inputs of this run.
pub(crate) fn is_begun(step: &Step) -> bool {
    std::fs::read_to_string(step.bookkeeping.join(MARK)).is_ok_and(|fingerprint| fingerprint == step.fingerprint)
}

/// Makes the step's folder, or empties one that this run made for something else; a training state of the same step stays.
pub(crate) fn prepare_folder(step: &Step) -> Result<(), Error> {
    let mark = step.bookkeeping.join(MARK);
    if step.holds_foreign_files() {
        return Err(Error::NotOurs(step.folder.clone()));
    }
    match fs_err::read_to_string(&mark) {
        Ok(fingerprint) if fingerprint == step.fingerprint => {}
        Ok(_) => {
            fs_err::remove_dir_all(&step.bookkeeping)?;
            if step.folder.exists() {
                fs_err::remove_dir_all(&step.folder)?;
            }
        }
        Err(_) => {}
    }
    fs_err::create_dir_all(&step.bookkeeping)?;
    if !matches!(step.stage, Stage::Verify(_)) {
        fs_err::create_dir_all(&step.folder)?;
    }
    Ok(write_beside(mark, |file| Ok(std::io::Write::write_all(file, step.fingerprint.as_bytes())?))?)
}

/// The training state has done its work when what was trained is written.
pub(crate) fn remove_state(step: &Step) -> Result<(), Error> {
    let state = step.bookkeeping.join("state");
    if state.exists() {
        fs_err::remove_dir_all(state)?;
    }
    Ok(())
}
