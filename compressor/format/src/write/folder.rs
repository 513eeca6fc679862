//! A folder that appears as a whole: it is made beside its place and renamed, with a record of what made it.
//!
//! The work lies in `.OUT.compressor` beside `OUT`, under a lock. `new` there becomes `OUT` with one rename; what is replaced waits as
//! `replaced` until that is done. A kill at any moment leaves the old folder or the new one, and the same command goes on from there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{ATTEMPTS, Lock, clear_all_leftovers, folder_of, sync_folder, write_beside};
use crate::entropy::ENTROPY;
use crate::manifest::file_names;
use crate::model::WEIGHTS;
use crate::read::is_there;
use crate::{Error, FileHash, Manifest, Metrics, Result};

/// The name of the record in a folder. It says what made the folder, and is no part of the model: no manifest lists it, no delta
/// carries it, and it is not counted.
pub(crate) const RECORD: &str = ".compressor.json";
/// Raised when the layout of the record changes; a folder with another is one that this program did not make.
const RECORD_VERSION: u32 = 1;
/// Of the folder under way, in the work folder.
const LOCK: &str = ".folder.lock";
const NEW: &str = "new";
const REPLACED: &str = "replaced";
/// The name of the command that the work is of.
const COMMAND: &str = "command";
const MOST_COMMAND_BYTES: u64 = 100;
/// What a run leaves in its run folder: an unfinished training, and the lock that versions before this one made.
const RUN: [&str; 2] = [".steps", ".lock"];

/// What tells that a folder is what is wanted.
#[derive(Clone, Debug)]
pub enum Made {
    /// Its record says that it was made by this command from these inputs with these settings.
    By {
        /// The command's name.
        command: &'static str,
        /// A hash over everything that decides what is made.
        fingerprint: String,
    },
    /// It holds these files and no others.
    Of(Vec<FileHash>),
}

impl Made {
    /// The name of the command.
    fn command(&self) -> &str {
        match self {
            Self::By { command, .. } => command,
            Self::Of(_) => "apply",
        }
    }
}

/// What there is to do for a folder.
#[derive(Debug)]
pub enum Begun {
    /// It was finished before, and is as it was left.
    Before {
        /// Whether what was checked of it had passed.
        passed: bool,
    },
    /// It is to be made.
    Now(NewFolder),
}

/// A folder under way. Dropped before [`Self::finish`], what there is stays for the next command that makes this folder.
#[derive(Debug)]
pub struct NewFolder {
    out: PathBuf,
    work: PathBuf,
    made: Made,
    lock: Lock,
}

/// `.compressor.json`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    /// The command.
    made_by: String,
    fingerprint: String,
    /// Whether what was checked had passed.
    passed: bool,
    /// Without `metrics.jsonl`, which is told of and not made.
    files: Vec<FileHash>,
}

/// What lies where a folder is to be.
enum Found {
    Nothing,
    /// What is wanted.
    Finished {
        passed: bool,
    },
    /// Something else, and what that is.
    Other(String),
}

impl NewFolder {
    /// The name of the record in a folder that a command made.
    pub const RECORD: &str = RECORD;

    /// The folder in which the folder `out` is made.
    ///
    /// # Errors
    /// [`Error::Malformed`] where `out` has no name.
    pub fn work(out: &Path) -> Result<PathBuf> {
        let name = out.file_name().ok_or_else(|| Error::malformed(out, "this names no folder to write"))?;
        let mut work = OsString::from(".");
        work.push(name);
        work.push(".compressor");
        Ok(out.with_file_name(work))
    }

    /// Whether this is a folder that [`Self::work`] names, of a command that began in it or was clearing it.
    pub fn is_work(folder: &Path) -> bool {
        is_there(&folder.join(LOCK))
    }

    /// Looks what there is to do for the folder `out`, and keeps other processes away from it. With `replace`, a folder that this
    /// program made from something else is replaced in the end, and what another command left unfinished is given up.
    ///
    /// # Errors
    /// [`Error::Refused`] where another process makes the same folder, where another command left a run of its own unfinished, where
    /// something else is there that is not to be replaced, and
    /// where it is not this program's; [`Error::Io`] and [`Error::NoRoom`] where the folder beside it can't be made.
    pub fn begin(out: &Path, made: Made, replace: bool) -> Result<Begun> {
        let work = Self::work(out)?;
        let lock = lock(&work, out)?;
        let folder = Self { out: out.to_owned(), work, made, lock };
        let found = folder.undo_half_a_replacement().and_then(|()| folder.found());
        let refusal = match found {
            Err(error) => Some(error),
            Ok(Found::Nothing) => None,
            Ok(Found::Finished { passed }) => {
                // What is left of a killed clean-up; another folder under way is somebody's work.
                if folder.path().exists() {
                    folder.leave()
                } else {
                    folder.clean()
                }
                return Ok(Begun::Before { passed });
            }
            Ok(Found::Other(what)) => {
                let refused = || {
                    (!replace).then(|| Error::refused(out, format!("{what}; name another folder, or replace it with --force")))
                };
                folder.refuse_to_replace().err().or_else(refused)
            }
        };
        match refusal {
            Some(error) => {
                folder.leave();
                Err(error)
            }
            None => {
                folder.take_over(replace)?;
                // After a kill before the rename: what was under way, and the record, are written again.
                clear_all_leftovers(&folder.path());
                let _ = std::fs::remove_file(folder.path().join(RECORD));
                Ok(Begun::Now(folder))
            }
        }
    }

    /// Where the folder's files are to be written. It may hold what a killed command wrote, for those that go on from there.
    pub fn path(&self) -> PathBuf {
        self.work.join(NEW)
    }

    /// Makes the work this command's. A run that another one left unfinished may be hours of training: `replace` gives it up.
    fn take_over(&self, replace: bool) -> Result<()> {
        let command = self.made.command();
        let path = self.work.join(COMMAND);
        let left_by = crate::read_file(&path, MOST_COMMAND_BYTES).ok().and_then(|name| String::from_utf8(name).ok());
        let holds_run = RUN.iter().any(|name| is_there(&self.work.join(name)));
        if left_by.as_deref() != Some(command) {
            if holds_run && !replace {
                let by = left_by.map_or("another command".to_owned(), |name| format!("`{name}`"));
                let what =
                    format!("{by} began it and did not finish: finish that, name another folder, or give it up with --force");
                return Err(Error::refused(&self.out, what));
            }
            self.clear(&[LOCK, REPLACED]);
            write_beside(&path, |file| Ok(file.write_all(command.as_bytes())?))?;
        } else if !holds_run {
            // Nothing goes on from files that no run recorded.
            remove_folder(&self.path())?;
        }
        Ok(())
    }

    /// Makes it anew, lets `fill` write its files, and puts it in its place; where that fails, nothing is left.
    ///
    /// # Errors
    /// What `fill` returned; as [`Self::finish`].
    pub fn fill<T, E: From<Error>>(self, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
        let path = self.path();
        let made = remove_folder(&path).and_then(|()| Ok(fs::create_dir(&path)?));
        match made.map_err(E::from).and_then(|()| fill(&path)) {
            Ok(made) => {
                self.finish(true)?;
                Ok(made)
            }
            Err(error) => {
                self.clean();
                Err(error)
            }
        }
    }

    /// Puts the folder in its place, with its record. `passed` says whether what was checked of it passed.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::NoRoom`]; what was in the place is there as before.
    pub fn finish(self, passed: bool) -> Result<()> {
        let path = self.path();
        if let Made::By { command, fingerprint } = &self.made {
            let files = hashes(&path, file_names_of_record(&path)?)?;
            let record = Record {
                version: RECORD_VERSION,
                made_by: (*command).to_owned(),
                fingerprint: fingerprint.clone(),
                passed,
                files,
            };
            let text = serde_json::to_string_pretty(&record).expect("a record is plain data");
            write_beside(path.join(RECORD), |file| Ok(writeln!(file, "{text}")?))?;
        }
        let replaced = self.work.join(REPLACED);
        let replaces = self.out.exists();
        if replaces {
            fs::rename(&self.out, &replaced)?;
        }
        if let Err(error) = fs::rename(&path, &self.out) {
            if replaces {
                fs::rename(&replaced, &self.out)?;
            }
            return Err(error.into());
        }
        sync_folder(&self.out);
        self.clean();
        Ok(())
    }

    /// A kill may have come between the two renames of a replacement, or after them.
    fn undo_half_a_replacement(&self) -> Result<()> {
        let replaced = self.work.join(REPLACED);
        match (replaced.exists(), is_there(&self.out), self.path().exists()) {
            (false, ..) => Ok(()),
            (true, false, _) => Ok(fs::rename(&replaced, &self.out)?),
            (true, true, false) => remove_folder(&replaced),
            (true, true, true) => {
                let what = format!("is what was in {} before, and something else is there now: move it away", self.out.display());
                Err(Error::refused(replaced.as_path(), what))
            }
        }
    }

    fn found(&self) -> Result<Found> {
        let out = self.out.as_path();
        let Ok(found) = std::fs::symlink_metadata(out) else { return Ok(Found::Nothing) };
        if found.is_symlink() {
            return Err(Error::refused(
                out,
                "is a link, which is not followed: name the folder that it leads to, or another one",
            ));
        }
        if !found.is_dir() {
            return Err(Error::refused(out, "is there already and is not a folder: name another one"));
        }
        if fs::read_dir(out)?.next().is_none() {
            return match is_mount(&found, out) {
                true => Err(Error::refused(out, "is where another disk begins and can't be renamed: name a folder inside it")),
                false => Ok(Found::Nothing),
            };
        }
        let other = |what: &str| Ok(Found::Other(format!("is not empty: {what}")));
        match &self.made {
            Made::By { command, fingerprint } => match Record::read(out) {
                None => other("no record says what made it"),
                Some(record) if record.made_by != *command => other(&format!("`{}` made it", record.made_by)),
                Some(record) if record.fingerprint != *fingerprint => {
                    other(&format!("`{command}` made it from other inputs or with other settings"))
                }
                Some(record) => match record.changed(out)? {
                    None => Ok(Found::Finished { passed: record.passed }),
                    Some(name) => other(&format!("`{name}` is not as `{command}` left it")),
                },
            },
            Made::Of(files) => {
                let found = file_names(out, "", "").and_then(|names| hashes(out, names));
                let mut wanted = files.clone();
                wanted.sort_by(|left, right| left.name.cmp(&right.name));
                match found.is_ok_and(|found| found == wanted) {
                    true => Ok(Found::Finished { passed: true }),
                    false => other("its files are others than those to be written"),
                }
            }
        }
    }

    /// Only what this program made is replaced, and nothing that was put beside it.
    fn refuse_to_replace(&self) -> Result<()> {
        let out = self.out.as_path();
        let mut ours: BTreeSet<String> = [RECORD, Metrics::FILE].map(str::to_owned).into();
        match (Record::read(out), Manifest::read(out)) {
            (Some(record), _) => ours.extend(record.files.into_iter().map(|file| file.name)),
            (None, Ok(manifest)) => {
                ours.extend(manifest.files.into_iter().map(|file| file.name));
                ours.extend([Manifest::FILE, WEIGHTS, ENTROPY].map(str::to_owned));
            }
            (None, Err(_)) => {
                let what =
                    "is not empty, and no record or manifest says that this program made it; move it away or name another folder";
                return Err(Error::refused(out, what));
            }
        }
        for entry in fs::read_dir(out)? {
            let name = entry?.file_name();
            if !name.to_str().is_some_and(|name| ours.contains(name)) {
                return Err(Error::refused(out, format!("holds {name:?}, which this program did not make: move that away")));
            }
        }
        Ok(())
    }

    /// Removes the work folder, its lock at last. What can't be removed is found by the next command for this folder.
    fn clean(self) {
        self.clear(&[LOCK]);
        self.leave();
    }

    /// Removes what is in the work folder, but these.
    fn clear(&self, but: &[&str]) {
        let entries = std::fs::read_dir(&self.work).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !but.iter().any(|name| entry.file_name() == *name)) {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_folder { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        }
    }

    /// Leaves the work folder as it is, and removes it where nothing but the lock is in it.
    fn leave(self) {
        let Self { work, lock, .. } = self;
        let is_idle = std::fs::read_dir(&work).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOCK));
        if is_idle {
            lock.remove();
            // Another process may have its own lock in it by now: then it is not empty, and stays.
            let _ = std::fs::remove_dir(&work);
        }
    }
}

/// Makes the work folder and locks it.
fn lock(work: &Path, out: &Path) -> Result<Lock> {
    for _ in 0..ATTEMPTS {
        fs::create_dir_all(work).map_err(|error| Error::not_written(work, error))?;
        if std::fs::symlink_metadata(work).is_ok_and(|found| found.is_symlink()) {
            return Err(Error::refused(work, "is a link, which is not followed: remove it, or move it away"));
        }
        match is_ours(work) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
            Ok(true) => {}
            Ok(false) => return Err(Error::refused(work, "is not empty, and this program did not make it: move it away")),
        }
        return match Lock::take(&work.join(LOCK)) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(Error::refused(out, "another process is writing this folder: wait for it, or name another folder")),
            // Another one has finished and removes the work folder in this moment.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
    }
    Err(Error::refused(work, "is made and removed by other processes all the time: name another folder"))
}

/// Whether a work folder is empty, or a command of this program began in it.
fn is_ours(work: &Path) -> io::Result<bool> {
    let has_lock = || std::iter::once(LOCK).chain(RUN).any(|name| work.join(name).exists());
    Ok(has_lock() || fs::read_dir(work)?.next().is_none() || has_lock())
}

impl Record {
    /// The record of a folder, if it has one that this version can read.
    fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(RECORD);
        std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let record: Self = serde_json::from_slice(&crate::read_file(&path, crate::LIST_BYTES).ok()?).ok()?;
        (record.version == RECORD_VERSION).then_some(record)
    }

    /// The first file that is not as it was left. What was added is nobody's matter.
    fn changed(&self, folder: &Path) -> Result<Option<&str>> {
        let names = file_names_of_record(folder).unwrap_or_default();
        for file in &self.files {
            // What has another length, which may be any, isn't read.
            let has_length = fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.len() == file.bytes);
            if !names.contains(&file.name) || !has_length || FileHash::of(file.name.clone(), &folder.join(&file.name))? != *file {
                return Ok(Some(&file.name));
            }
        }
        Ok(None)
    }
}

/// A hash over what decides what a command makes: its settings, and the names and contents of the files that it reads.
///
/// # Errors
/// [`Error::Io`] where one can't be read.
pub fn fingerprint_of(settings: &impl Serialize, inputs: &[PathBuf]) -> Result<String> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let inputs = inputs.iter().map(|path| FileHash::of(name(path), path)).collect::<Result<Vec<_>>>()?;
    let text = serde_json::to_string(&(RECORD_VERSION, settings, inputs)).expect("settings are plain data with text keys");
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

fn file_names_of_record(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = file_names(folder, "a record can't name it", "a record is of files only")?;
    names.remove(Metrics::FILE);
    Ok(names)
}

fn hashes(folder: &Path, names: BTreeSet<String>) -> Result<Vec<FileHash>> {
    names.into_iter().map(|name| FileHash::of(name.clone(), &folder.join(name))).collect()
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Whether a folder lies on another disk than the one that holds it.
#[cfg(unix)]
fn is_mount(folder: &std::fs::Metadata, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder_of(path)).is_ok_and(|around| around.dev() != folder.dev())
}

#[cfg(not(unix))]
fn is_mount(_: &std::fs::Metadata, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const BUSY: &str = "another process is writing this folder: wait for it, or name another folder";

    fn made(fingerprint: &str) -> Made {
        Made::By { command: "import", fingerprint: fingerprint.to_owned() }
    }

    fn begin(out: &Path, fingerprint: &str, replace: bool) -> Result<NewFolder> {
        match NewFolder::begin(out, made(fingerprint), replace)? {
            Begun::Now(folder) => Ok(folder),
            Begun::Before { .. } => panic!("was finished before"),
        }
    }

    fn fill(folder: NewFolder, text: &str) {
        folder.fill(|path| Ok::<_, Error>(fs::write(path.join("config.json"), text)?)).unwrap();
    }

    fn is_finished(out: &Path, fingerprint: &str) -> bool {
        matches!(NewFolder::begin(out, made(fingerprint), false), Ok(Begun::Before { passed: true }))
    }

    fn refusal(out: &Path, fingerprint: &str, replace: bool) -> String {
        let text = begin(out, fingerprint, replace).unwrap_err().to_string();
        text.strip_prefix(&format!("{}: ", out.display())).unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    /// A folder for all, and the place of one in it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        (folder, out)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_another_command_left_unfinished_is_given_up_only_where_asked() {
        let (all, out) = place();
        let run = |path: &Path| {
            fs::create_dir_all(path.join(".steps")).unwrap();
            fs::create_dir_all(path.join("new")).unwrap();
            fs::write(path.join("new/model.safetensors"), "half").unwrap();
        };
        let train = || Made::By { command: "train", fingerprint: "t".to_owned() };
        let Begun::Now(folder) = NewFolder::begin(&out, train(), false).unwrap() else { panic!("nothing is there") };
        run(&NewFolder::work(&out).unwrap());
        drop(folder);
        let expected = "`train` began it and did not finish: finish that, name another folder, or give it up with --force";
        assert_eq!(refusal(&out, "a", false), expected);
        // It goes on itself.
        let Begun::Now(folder) = NewFolder::begin(&out, train(), false).unwrap() else { panic!("nothing is there") };
        assert!(folder.path().join("model.safetensors").exists());
        drop(folder);
        let folder = begin(&out, "a", true).unwrap();
        assert!(!folder.path().exists() && !NewFolder::work(&out).unwrap().join(".steps").exists());
        fill(folder, "first");
        assert!(is_finished(&out, "a"));
        // A version before noted nowhere what it was.
        let out = all.path().join("old");
        run(&NewFolder::work(&out).unwrap());
        let expected = expected.replace("`train`", "another command");
        assert_eq!(refusal(&out, "a", false), expected);
        // Files that no run recorded are nobody's.
        fs::remove_dir_all(NewFolder::work(&out).unwrap().join(".steps")).unwrap();
        fs::write(NewFolder::work(&out).unwrap().join(LOCK), "").unwrap();
        assert!(!begin(&out, "a", false).unwrap().path().exists());
    }

    #[test]
    fn a_folder_appears_whole_and_the_same_again_is_finished_before() {
        let (all, out) = place();
        let folder = begin(&out, "a", false).unwrap();
        assert!(!out.exists());
        fill(folder, "first");
        assert_eq!(names(all.path()), ["out"]);
        assert_eq!(names(&out), [RECORD, "config.json"]);
        assert!(is_finished(&out, "a"));
        assert_eq!(names(all.path()), ["out"]);
        let bytes = fs::read(out.join(RECORD)).unwrap();
        fs::remove_dir_all(&out).unwrap();
        fill(begin(&out, "a", false).unwrap(), "first");
        assert_eq!(fs::read(out.join(RECORD)).unwrap(), bytes, "no time and no place is in it");
    }

    #[test]
    fn another_result_takes_the_place_of_what_this_program_made_where_that_is_asked_for() {
        let (all, out) = place();
        fill(begin(&out, "a", false).unwrap(), "first");
        let way_out = "name another folder, or replace it with --force";
        let expected = format!("is not empty: `import` made it from other inputs or with other settings; {way_out}");
        assert_eq!(refusal(&out, "b", false), expected);
        let Err(error) = NewFolder::begin(&out, Made::By { command: "prune", fingerprint: "a".to_owned() }, false) else {
            panic!()
        };
        assert_eq!(error.to_string(), format!("{}: is not empty: `import` made it; {way_out}", out.display()));
        let folder = begin(&out, "b", true).unwrap();
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"first", "until the new one is whole");
        fill(folder, "second");
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"second");
        assert!(is_finished(&out, "b"));

        fs::write(out.join("config.json"), "changed").unwrap();
        assert_eq!(refusal(&out, "b", false), format!("is not empty: `config.json` is not as `import` left it; {way_out}"));
        fs::write(out.join("notes.txt"), "mine").unwrap();
        for replace in [false, true] {
            assert_eq!(refusal(&out, "b", replace), "holds \"notes.txt\", which this program did not make: move that away");
        }
        fs::remove_file(out.join(RECORD)).unwrap();
        for replace in [false, true] {
            let expected =
                "is not empty, and no record or manifest says that this program made it; move it away or name another folder";
            assert_eq!(refusal(&out, "b", replace), expected);
        }
        assert_eq!(names(&out), ["config.json", "notes.txt"]);
        assert_eq!(names(all.path()), ["out"]);
    }

    #[test]
    fn two_at_once_do_not_mix() {
        let (_all, out) = place();
        let first = begin(&out, "a", false).unwrap();
        assert_eq!(refusal(&out, "b", true), BUSY);
        assert_eq!(refusal(&out, "a", false), BUSY);
        fill(first, "first");
        assert!(is_finished(&out, "a"));
        let results = std::thread::scope(|scope| {
            let racers: Vec<_> = ["c", "d", "e", "f"]
                .map(|fingerprint| {
                    let out = out.with_file_name("race");
                    scope.spawn(move || match NewFolder::begin(&out, made(fingerprint), false) {
                        Ok(Begun::Now(folder)) => {
                            fill(folder, fingerprint);
                            Some(fingerprint)
                        }
                        Ok(Begun::Before { .. }) => panic!("nobody else makes this"),
                        Err(error) => {
                            let text = error.to_string();
                            assert!(text.ends_with(BUSY) || text.contains("with other settings"), "{text}");
                            None
                        }
                    })
                })
                .into();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect::<Vec<_>>()
        });
        let [winner] = results[..] else { panic!("{results:?}") };
        assert_eq!(fs::read_to_string(out.with_file_name("race").join("config.json")).unwrap(), winner);
        assert!(!out.with_file_name(".race.compressor").exists());
    }

    #[test]
    fn a_failure_leaves_nothing_and_the_old_folder() {
        let (all, out) = place();
        fill(begin(&out, "a", false).unwrap(), "first");
        let refused = begin(&out, "b", true).unwrap().fill(|path| {
            fs::write(path.join("config.json"), "half")?;
            Err::<(), _>(Error::malformed("model", "half way"))
        });
        assert_eq!(refused.unwrap_err().to_string(), "model: half way");
        assert_eq!(names(all.path()), ["out"]);
        assert!(is_finished(&out, "a"));
    }

    /// Every state that a kill can leave of a replacement, and of the clean-up after it.
    #[test]
    fn a_kill_between_renames_leaves_the_old_folder_or_the_new_one() {
        let (all, out) = place();
        let work = all.path().join(".out.compressor");
        let (new, replaced) = (work.join(NEW), work.join(REPLACED));
        fill(begin(&out, "a", false).unwrap(), "first");

        // The old one was renamed away, the new one was whole.
        drop(begin(&out, "b", true).unwrap());
        fs::create_dir(&new).unwrap();
        fs::write(new.join("config.json"), "second").unwrap();
        fs::rename(&out, &replaced).unwrap();
        assert!(refusal(&out, "b", false).contains("--force"));
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"first");
        assert!(!replaced.exists() && new.exists(), "work under way stays");
        fill(begin(&out, "b", true).unwrap(), "second");

        // The record was under way.
        drop(begin(&out, "c", true).unwrap());
        for made in [&new, &work.join(".steps")] {
            fs::create_dir(made).unwrap();
        }
        for name in ["config.json", RECORD, "..compressor.json.0123abcd.tmp"] {
            fs::write(new.join(name), "third").unwrap();
        }
        begin(&out, "c", true).unwrap().finish(true).unwrap();
        assert_eq!(names(&out), [RECORD, "config.json"]);
        assert!(is_finished(&out, "c"));
        fill(begin(&out, "b", true).unwrap(), "second");

        // The new one is in its place, the old one was not removed yet; then only the lock was left.
        fs::create_dir(&work).unwrap();
        fs::write(work.join(LOCK), "").unwrap();
        fs::create_dir(&replaced).unwrap();
        fs::write(replaced.join("config.json"), "first").unwrap();
        assert!(is_finished(&out, "b"));
        assert_eq!(names(all.path()), ["out"]);
        fs::create_dir(&work).unwrap();
        assert!(is_finished(&out, "b"));
        assert_eq!(names(all.path()), ["out"]);
    }

    #[test]
    fn what_is_not_this_programs_is_not_touched() {
        let (all, out) = place();
        let work = all.path().join(".out.compressor");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("mine.txt"), "mine").unwrap();
        let refused = begin(&out, "a", true).unwrap_err().to_string();
        let expected = format!("{}: is not empty, and this program did not make it: move it away", work.display());
        assert_eq!(refused, expected);
        assert_eq!(names(&work), ["mine.txt"]);
        fs::remove_dir_all(&work).unwrap();

        // An unfinished run for the same folder.
        fs::create_dir_all(work.join(".steps/1-train/state")).unwrap();
        fs::write(work.join(LOCK), "").unwrap();
        assert!(refusal(&out, "a", false).starts_with("another command began it"));
        assert!(work.join(".steps/1-train/state").exists());
        fs::remove_dir_all(&work).unwrap();

        fs::write(&out, "a file").unwrap();
        assert_eq!(refusal(&out, "a", true), "is there already and is not a folder: name another one");
        assert_eq!(names(all.path()), ["out"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let (all, out) = place();
        let victim = all.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("config.json"), "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &out).unwrap();
        let expected = "is a link, which is not followed: name the folder that it leads to, or another one";
        assert_eq!(refusal(&out, "a", true), expected);
        fs::remove_file(&out).unwrap();
        let work = all.path().join(".out.compressor");
        std::os::unix::fs::symlink(&victim, &work).unwrap();
        let refused = begin(&out, "a", true).unwrap_err().to_string();
        assert_eq!(refused, format!("{}: is a link, which is not followed: remove it, or move it away", work.display()));
        assert_eq!(names(&victim), ["config.json"]);
    }

    #[test]
    fn a_fingerprint_is_of_settings_names_and_contents_and_of_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("a/x", "one"), ("b/x", "one"), ("c/x", "two"), ("a/y", "one")] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), text).unwrap();
        }
        let of = |settings: &str, input: &str| fingerprint_of(&settings, &[at(input)]).unwrap();
        assert_eq!(of("f32", "a/x"), of("f32", "b/x"));
        for (settings, input) in [("f16", "a/x"), ("f32", "c/x"), ("f32", "a/y")] {
            assert_ne!(of("f32", "a/x"), of(settings, input));
        }
    }
}
