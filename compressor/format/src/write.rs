//! The one way in which files are written: beside their place under a name of their own, then renamed, so that a kill leaves the old
//! file or the new one, and no writer ever meets another's half file or follows a link.

pub(crate) mod folder;
mod inputs;
mod lock;

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

pub use self::inputs::check_apart;
pub use self::lock::{Lock, open_own};
use self::lock::{is_at, is_same_file};
use crate::{Error, Result};

/// Replaces `path` by what `fill` writes, all of it or nothing.
///
/// The bytes go to `.NAME.<8 random digits>.tmp` in the same folder (a rename is atomic only within one file system), are flushed and
/// synced to disk, and then renamed over `path`: a link there is replaced, not followed. The file is made anew and locked while it is
/// written; a later writer of the same name removes those that no living process holds. When `fill` or any of the steps fails, the
/// file is removed and `path` is as it was.
///
/// # Errors
/// What `fill` returned; [`Error::NoRoom`] with the way out where the disk is full or read-only; [`Error::Io`] with the path when the
/// file can't be made, written, synced or renamed for another reason.
pub fn write_beside(path: impl AsRef<Path>, fill: impl FnOnce(&mut BufWriter<fs::File>) -> Result<()>) -> Result<()> {
    let mut beside = Beside::create(path.as_ref())?;
    fill(&mut beside.file).map_err(|error| beside.not_written(error))?;
    beside.rename()
}

/// Writes the file `path` into a folder that is renamed as a whole when every file in it is there: it is made in its place, which must
/// be free, and synced.
pub(crate) fn write_new(path: &Path, fill: impl FnOnce(&mut BufWriter<fs::File>) -> Result<()>) -> Result<()> {
    let file = fs::File::options().write(true).create_new(true).open(path);
    let mut file = buffered(file.map_err(|error| Error::not_written(path, error))?);
    let filled = fill(&mut file).and_then(|()| Ok(file.flush().and_then(|()| file.get_ref().sync_all())?));
    filled.map_err(|error| not_written(path, error))
}

/// Tries whether files can be made and removed in `folder`; nothing is left there.
///
/// # Errors
/// [`Error::Io`] and [`Error::NoRoom`] with the folder where they can't.
pub fn check_writable(folder: &Path) -> Result<()> {
    let mut probe = Beside::create_for(&folder.join("compressor-probe"), folder)?;
    // Who goes on has no second look at this folder, and what is left in it would stay.
    fs::remove_file(&probe.beside).map_err(|error| Error::not_written(folder, named(folder, &error)))?;
    probe.is_renamed = true;
    Ok(())
}

/// Makes the file `path`, to be read and written, in the place of whatever file or link has this name: for what one process keeps on
/// the disk for itself.
///
/// # Errors
/// [`Error::NoRoom`] and [`Error::Io`] where it can't be made.
pub fn create_scratch(path: &Path) -> Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Err(_) | Ok(()) => {}
    }
    let file = fs::File::options().read(true).write(true).create_new(true).open(path);
    file.map_err(|error| Error::not_written(path, error))
}

/// A file that is being written beside its place; dropped before [`Self::rename`], it is gone and the place is as it was.
#[derive(Debug)]
pub(crate) struct Beside {
    path: PathBuf,
    beside: PathBuf,
    /// Locked as long as it is open, where the file system has locks.
    pub(crate) file: BufWriter<fs::File>,
    is_renamed: bool,
}

/// How often another name is tried, or a place that another process is just clearing.
const ATTEMPTS: usize = 100;

impl Beside {
    /// Makes the file, after those were removed that dead writers of the same name left.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::create_for(path, path)
    }

    /// The same, where errors name `asked`.
    fn create_for(path: &Path, asked: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::malformed(path, "this names no file to write"))?;
        // A link to a file, or to nothing, is replaced. A device or a pipe would be too, for everybody, and so would be `/dev/stdout`.
        let is_other = |found: &std::fs::Metadata| !found.is_file() && !found.is_symlink();
        if [std::fs::symlink_metadata(path), std::fs::metadata(path)].iter().flatten().any(is_other) {
            return Err(Error::refused(path, "is there already and is not a file: name another place"));
        }
        clear_leftovers(folder_of(path), |left| temporary_of(left) == Some(name.as_encoded_bytes()));
        for _ in 0..ATTEMPTS {
            let beside = path.with_file_name(temporary_name(name));
            let file = match fs::File::options().write(true).create_new(true).open(&beside) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                // The message names the file that was asked for.
                Err(error) => return Err(Error::not_written(asked, named(asked, &error))),
            };
            match file.file().try_lock() {
                // Between the two calls another writer may have taken it for a dead one's.
                Ok(()) if !is_at(file.file(), &beside) => continue,
                Err(std::fs::TryLockError::WouldBlock) => continue,
                // A file system without locks: nobody can lock the file to remove it either.
                Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
            }
            return Ok(Self { path: path.to_owned(), beside, file: buffered(file), is_renamed: false });
        }
        Err(Error::malformed(path, format!("{ATTEMPTS} temporary names beside it were taken")))
    }

    /// Syncs it and puts it in its place.
    pub(crate) fn rename(mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let renamed = synced.and_then(|()| fs::rename(&self.beside, &self.path));
        renamed.map_err(|error| self.not_written(error.into()))?;
        self.is_renamed = true;
        sync_folder(&self.path);
        Ok(())
    }

    /// What is told of an error while it is written.
    pub(crate) fn not_written(&self, error: Error) -> Error {
        not_written(&self.path, error)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.is_renamed {
            // The first error is the one to report; a temporary file that can't be removed is only left behind.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

fn buffered(file: fs::File) -> BufWriter<fs::File> {
    BufWriter::with_capacity(1 << 20, file)
}

fn not_written(path: &Path, error: Error) -> Error {
    match error {
        Error::Io(error) => Error::not_written(path, error),
        other => other,
    }
}

/// The system's refusal with the path that was asked for.
fn named(path: &Path, error: &io::Error) -> io::Error {
    // What `fs_err` says names the file that was tried, and stands on the system's own.
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    io::Error::new(error.kind(), format!("{}: {reason}", path.display()))
}

/// `.NAME.0123abcd.tmp`
fn temporary_name(name: &OsStr) -> OsString {
    // Each hasher of the standard library has other keys.
    let random = RandomState::new().build_hasher().finish() as u32;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{random:08x}.tmp"));
    temporary
}

/// The name of the file that a temporary one is for, or was; `None` where it is no such name.
fn temporary_of(name: &OsStr) -> Option<&[u8]> {
    let rest = name.as_encoded_bytes().strip_prefix(b".")?.strip_suffix(b".tmp")?;
    let (name, digits) = rest.split_last_chunk::<8>()?;
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    name.strip_suffix(b".").filter(|name| !name.is_empty() && digits.iter().all(is_digit))
}

/// Removes every temporary file in `folder` that no living process is writing.
pub(crate) fn clear_all_leftovers(folder: &Path) {
    clear_leftovers(folder, |name| temporary_of(name).is_some());
}

fn clear_leftovers(folder: &Path, is_ours: impl Fn(&OsStr) -> bool) {
    // A folder that can't be read is written to all the same, or that is what fails.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    entries.flatten().filter(|entry| is_ours(&entry.file_name())).for_each(|entry| remove_dead(&entry.path()));
}

/// Removes a temporary file whose writer is dead: nobody holds its lock. What can't be told is left.
fn remove_dead(path: &Path) {
    let Ok(found) = std::fs::symlink_metadata(path) else { return };
    if !found.is_file() {
        return;
    }
    let Ok(file) = std::fs::File::options().read(true).write(true).open(path) else { return };
    let is_that = file.metadata().is_ok_and(|opened| is_same_file(&opened, &found));
    if is_that && file.try_lock().is_ok() && is_at(&file, path) {
        let _ = std::fs::remove_file(path);
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the rename itself survive a power cut. Not every file system can sync a folder, and the file is whole either
/// way, so a refusal is not an error.
fn sync_folder(path: &Path) {
    if let Ok(folder) = std::fs::File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_new_bytes_replace_the_old_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, "old and longer").unwrap();
        write_beside(&path, |file| Ok(file.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_writer_that_fails_half_way_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, "old").unwrap();
        let refused = write_beside(&path, |file| {
            file.write_all(&[b'x'; 3_000_000])?;
            Err(Error::malformed("report.json", "half way"))
        });
        assert_eq!(refused.unwrap_err().to_string(), "report.json: half way");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["report.json"]);
    }

    #[test]
    fn a_rename_that_fails_removes_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("by a folder")).unwrap();
        assert!(write_beside(&path, |file| Ok(file.write_all(b"new")?)).is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_with_the_file_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("report.json");
        let refused = write_beside(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{}: ", path.display())), "{refused}");
    }

    /// `/dev/full` answers every write as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_old_file_and_is_told_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, "old").unwrap();
        let refused = write_beside(&path, |file| {
            *file = buffered(fs::File::options().write(true).open("/dev/full")?);
            Ok(file.write_all(&[b'x'; 3_000_000])?)
        });
        let expected = format!(
            "{}: there is no space left on its disk; free some space or write to another disk, and start the same command again",
            path.display()
        );
        assert_eq!(refused.unwrap_err().to_string(), expected);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [path, victim] = ["model.safetensors", "victim"].map(|name| folder.path().join(name));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write_beside(&path, |file| Ok(file.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(write_new(&path, |_| Ok(())).is_err());
        create_scratch(&path).unwrap().write_all(b"mine").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_folder_that_can_be_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        let missing = folder.path().join("missing");
        let refused = check_writable(&missing).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{}: ", missing.display())), "{refused}");
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let refused = write_beside(&path, |_| Ok(())).unwrap_err().to_string();
        assert_eq!(refused, format!("{}: is there already and is not a file: name another place", path.display()));
        #[cfg(unix)]
        {
            assert!(write_beside("/dev/null", |_| Ok(())).is_err());
            // As `/dev/stdout` is a link to it.
            let link = folder.path().join("link");
            std::os::unix::fs::symlink("/dev/null", &link).unwrap();
            assert!(write_beside(&link, |_| Ok(())).is_err());
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
    }

    #[test]
    fn what_dead_writers_left_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let others = [
            "a.bin.tmp",
            ".a.bin.tmp",
            ".a.bin.0123abcd.tmp~",
            ".a.bin.0123ABCD.tmp",
            ".b.bin.0123abcd.tmp",
            ".a.bin.123abcd.tmp",
            "..0123abcd.tmp",
        ];
        for name in others.iter().chain(&[".a.bin.0123abcd.tmp", ".a.bin.ffffffff.tmp"]) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        fs::create_dir(folder.path().join(".a.bin.00000000.tmp")).unwrap();
        write_beside(&path, |file| Ok(file.write_all(b"new")?)).unwrap();
        let mut expected: Vec<&str> = others.iter().copied().chain([".a.bin.00000000.tmp", "a.bin"]).collect();
        expected.sort_unstable();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_file_that_is_being_written_is_left_to_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let mut first = Beside::create(&path).unwrap();
        write_beside(&path, |file| Ok(file.write_all(b"second")?)).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        first.file.write_all(b"first").unwrap();
        first.rename().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["cache"]);
    }

    #[test]
    fn writers_of_one_file_at_once_all_succeed_and_leave_a_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..25 {
                        // What a dead one left, for the others to find at the same time.
                        fs::write(path.with_file_name(temporary_name(OsStr::new("cache"))), "half").unwrap();
                        write_beside(path, |file| Ok(file.write_all(&[writer; 5000])?)).unwrap();
                        let found = fs::read(path).unwrap();
                        assert!(found.len() == 5000 && found.iter().all(|byte| *byte == found[0]));
                    }
                });
            }
        });
        write_beside(&path, |file| Ok(file.write_all(b"last")?)).unwrap();
        assert_eq!(names(folder.path()), ["cache"]);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        let refused = write_beside("..", |_| Ok(())).unwrap_err().to_string();
        assert_eq!(refused, "..: this names no file to write");
    }
}
