//! Activations of all calibration text, part by part: in memory, or in a file where memory is not to hold them.

use std::borrow::Cow;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytemuck::{cast_slice, cast_slice_mut};
use compressor_format::{Error, create_scratch};

/// Vectors of one width, one for each token, in the order of the text.
pub(super) struct Stream {
    /// Elements of one part; the last may have fewer.
    part: usize,
    store: Store,
}

enum Store {
    Memory(Vec<f32>),
    File(Spilled),
}

/// A file that is gone when this is.
struct Spilled {
    path: PathBuf,
    file: fs_err::File,
    /// Elements.
    len: usize,
}

impl Stream {
    /// An empty one for `vectors` of `width` elements, `vectors_per_part` in a part; with `file`, in that file instead of in memory.
    ///
    /// # Errors
    /// [`Error::Io`] where the file can't be made.
    pub(super) fn new((vectors, vectors_per_part): (usize, usize), width: usize, file: Option<&Path>) -> Result<Self, Error> {
        let store = match file {
            // One allocation of its full size, which goes back whole.
            None => Store::Memory(Vec::with_capacity(vectors * width)),
            Some(path) => Store::File(Spilled { path: path.to_owned(), file: create_scratch(path)?, len: 0 }),
        };
        Ok(Self { part: vectors_per_part * width, store })
    }

    /// How many parts there are.
    pub(super) fn parts(&self) -> usize {
        let len = match &self.store {
            Store::Memory(values) => values.len(),
            Store::File(spilled) => spilled.len,
        };
        len.div_ceil(self.part)
    }

    /// Adds a part.
    ///
    /// # Errors
    /// [`Error::NoRoom`] where the disk is full; [`Error::Io`].
    pub(super) fn push(&mut self, values: &[f32]) -> Result<(), Error> {
        match &mut self.store {
            Store::Memory(all) => all.extend_from_slice(values),
            Store::File(spilled) => {
                spilled.write(spilled.len, values)?;
                spilled.len += values.len();
            }
        }
        Ok(())
    }

    /// One part.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be read back.
    pub(super) fn part(&self, index: usize) -> Result<Cow<'_, [f32]>, Error> {
        let start = index * self.part;
        match &self.store {
            Store::Memory(values) => Ok(Cow::Borrowed(&values[start..values.len().min(start + self.part)])),
            Store::File(spilled) => {
                let mut values = vec![0.0; self.part.min(spilled.len - start)];
                spilled.read(start, &mut values)?;
                Ok(Cow::Owned(values))
            }
        }
    }

    /// Changes one part.
    ///
    /// # Errors
    /// As [`Self::part`] and [`Self::push`].
    pub(super) fn change(&mut self, index: usize, change: impl FnOnce(&mut [f32])) -> Result<(), Error> {
        let start = index * self.part;
        match &mut self.store {
            Store::Memory(values) => {
                let end = values.len().min(start + self.part);
                change(&mut values[start..end]);
            }
            Store::File(spilled) => {
                let mut values = vec![0.0; self.part.min(spilled.len - start)];
                spilled.read(start, &mut values)?;
                change(&mut values);
                spilled.write(start, &values)?;
            }
        }
        Ok(())
    }
}

impl Spilled {
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), Error> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start((start * size_of::<f32>()) as u64))?;
        Ok(file.read_exact(cast_slice_mut(values))?)
    }

    fn write(&self, start: usize, values: &[f32]) -> Result<(), Error> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start((start * size_of::<f32>()) as u64))?;
        file.write_all(cast_slice(values)).map_err(|error| Error::not_written(&self.path, error))
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        // One that can't be removed lies in the run's own folder, and is written over by the next.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_holds_what_memory_does_and_is_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let values: Vec<f32> = (0..14).map(|value| value as f32 - 3.5).collect();
        for file in [None, Some(path.as_path())] {
            // Seven vectors of two, three in a part: the last part has one.
            let mut stream = Stream::new((7, 3), 2, file).unwrap();
            values.chunks(6).for_each(|part| stream.push(part).unwrap());
            assert_eq!(stream.parts(), 3);
            assert_eq!(file.is_some(), path.exists());
            stream.change(1, |part| part.iter_mut().for_each(|value| *value *= 2.0)).unwrap();
            stream.change(2, |part| part[1] = 9.0).unwrap();
            let part = |index: usize| stream.part(index).unwrap().into_owned();
            assert_eq!(part(0), &values[..6]);
            assert_eq!(part(1), values[6..12].iter().map(|value| 2.0 * value).collect::<Vec<_>>());
            assert_eq!(part(2), [8.5, 9.0]);
        }
        assert!(!path.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_with_the_file_and_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.f32");
        let file = fs_err::File::options().write(true).open("/dev/full").unwrap();
        let mut stream = Stream { part: 1, store: Store::File(Spilled { path: path.clone(), file, len: 0 }) };
        let told = stream.push(&[1.0]).unwrap_err().to_string();
        let expected = format!(
            "{}: there is no space left on its disk; free some space or write to another disk, and start the same command again",
            path.display()
        );
        assert_eq!(told, expected);
    }
}
