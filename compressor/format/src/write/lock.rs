//! Files that stay in their place: opened without following a link and without emptying them; locks among them.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::ATTEMPTS;
use crate::{Error, Result};

/// A file's lock, which this process holds until it is dropped; the operating system lets go of it when the process ends, however it
/// ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: fs::File,
}

impl Lock {
    /// Locks the file at `path`, which is made where there is none; `None` where another holds it.
    ///
    /// # Errors
    /// As [`open_own`]; [`Error::Io`] where the file system has no locks.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        for _ in 0..ATTEMPTS {
            let file = open_own(path, fs::File::options().read(true).write(true))?;
            match file.file().try_lock() {
                // Whoever held it may have removed it in between: then the name stands for another file, or for none.
                Ok(()) if !is_at(file.file(), path) => {}
                Ok(()) => return Ok(Some(Self { path: path.to_owned(), _file: file })),
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                Err(std::fs::TryLockError::Error(error)) => return Err(super::named(path, &error).into()),
            }
        }
        Ok(None)
    }

    /// Removes the file and lets go of it. One that can't be removed is only left behind.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the file at `path` as `options` say, and makes it where there is none. It is never emptied, and a link is never followed.
///
/// # Errors
/// [`Error::Refused`] where a link, a folder or a device has the name; [`Error::Io`] and [`Error::NoRoom`] where the file can't be
/// opened or made.
pub fn open_own(path: &Path, options: &fs::OpenOptions) -> Result<fs::File> {
    for _ in 0..ATTEMPTS {
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(super::named(path, &error).into()),
        };
        let Some(found) = found else {
            match options.clone().create_new(true).open(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => return made.map_err(|error| Error::not_written(path, error)),
            }
        };
        if !found.is_file() {
            let what = if found.is_symlink() { "is a link, which is not followed" } else { "is not a file" };
            return Err(Error::refused(path, format!("{what}: remove it, or move it away")));
        }
        match options.open(path) {
            Ok(file) if is_same_file(&file.metadata()?, &found) => return Ok(file),
            // Another was put there in between.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::not_written(path, error)),
        }
    }
    Err(Error::refused(path, "is made and removed by other programs all the time: name another place"))
}

/// Whether `path` itself, no link, is the name of this file.
pub(super) fn is_at(file: &std::fs::File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(file), Ok(found)) => found.is_file() && is_same_file(&file, &found),
        _ => false,
    }
}

#[cfg(unix)]
pub(super) fn is_same_file(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Where a system does not tell which file it is, an open file keeps its name: it can't be removed.
#[cfg(not(unix))]
pub(super) fn is_same_file(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_lock_is_held_once_and_again_when_it_was_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        fs::write(&path, "not emptied").unwrap();
        let held = Lock::take(&path).unwrap().unwrap();
        assert!(Lock::take(&path).unwrap().is_none());
        drop(held);
        let held = Lock::take(&path).unwrap().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"not emptied");
        held.remove();
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_refused_and_what_it_leads_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [path, victim] = ["metrics.jsonl", "victim"].map(|name| folder.path().join(name));
        fs::write(&victim, "precious").unwrap();
        for target in [victim.clone(), folder.path().join("nothing")] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            let expected = format!("{}: is a link, which is not followed: remove it, or move it away", path.display());
            assert_eq!(Lock::take(&path).unwrap_err().to_string(), expected);
            assert_eq!(open_own(&path, fs::File::options().append(true)).unwrap_err().to_string(), expected);
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(!folder.path().join("nothing").exists());
        fs::create_dir(&path).unwrap();
        let refused = Lock::take(&path).unwrap_err().to_string();
        assert_eq!(refused, format!("{}: is not a file: remove it, or move it away", path.display()));
    }

    #[test]
    fn what_is_there_is_written_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for line in ["one\n", "two\n"] {
            open_own(&path, fs::File::options().append(true)).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }
}
