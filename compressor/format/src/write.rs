//! Writes a file beside its place and renames it, so that a kill leaves the old file or the new one.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::{Error, Result};

/// Replaces `path` by what `fill` writes, all of it or nothing.
///
/// The bytes go to `NAME.tmp` in the same folder (a rename is atomic only within one file system), are flushed and
/// synced to disk, and then renamed over `path`. When `fill` or any of those steps fails, `NAME.tmp` is removed and
/// `path` is as it was.
///
/// # Errors
/// What `fill` returned; [`Error::NoRoom`] with the way out where the disk is full or read-only; [`Error::Io`] with the path when the
/// file can't be made, written, synced or renamed for another reason.
pub fn write_beside(path: impl AsRef<Path>, fill: impl FnOnce(&mut BufWriter<fs::File>) -> Result<()>) -> Result<()> {
    let mut beside = Beside::create(path.as_ref())?;
    fill(&mut beside.file).map_err(|error| beside.not_written(error))?;
    beside.rename()
}

/// A file that is being written beside its place; dropped before [`Self::rename`], it is gone and the place is as it was.
#[derive(Debug)]
pub(crate) struct Beside {
    path: PathBuf,
    beside: PathBuf,
    pub(crate) file: BufWriter<fs::File>,
    is_renamed: bool,
}

impl Beside {
    /// Makes `NAME.tmp`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let beside = name_beside(path)?;
        let file = fs::File::create(&beside).map_err(|error| Error::not_written(path, error))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), beside, file, is_renamed: false })
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
        match error {
            Error::Io(error) => Error::not_written(self.path.as_path(), error),
            other => other,
        }
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

fn name_beside(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::malformed(path, "this names no file to write"));
    };
    let mut name = OsString::from(name);
    name.push(".tmp");
    Ok(path.with_file_name(name))
}

/// Makes the rename itself survive a power cut. Not every file system can sync a folder, and the file is whole either
/// way, so a refusal is not an error.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if let Ok(folder) = std::fs::File::open(folder) {
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
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("report.json");
        let refused = write_beside(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(refused.contains("missing/report.json.tmp"), "{refused}");
    }

    /// `/dev/full` answers every write as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_old_file_and_is_told_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("/dev/full", folder.path().join("model.safetensors.tmp")).unwrap();
        let refused = write_beside(&path, |file| Ok(file.write_all(&[b'x'; 3_000_000])?)).unwrap_err().to_string();
        let expected = format!(
            "{}: there is no space left on its disk; free some space or write to another disk, and start the same command again",
            path.display()
        );
        assert_eq!(refused, expected);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        let refused = write_beside("..", |_| Ok(())).unwrap_err().to_string();
        assert_eq!(refused, "..: this names no file to write");
    }
}
