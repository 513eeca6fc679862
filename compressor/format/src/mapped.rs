//! Read-only views of files mapped into memory.

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::{Error, Result};

/// A range of a mapped file; dereferences to its bytes, and clones without copying them.
#[derive(Debug, Clone)]
pub struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

/// Maps a whole file for reading.
///
/// The pages are shared with every other reader of the file and cost memory only when touched.
///
/// # Errors
/// [`Error::Io`] when the file can't be opened or mapped, [`Error::Malformed`] when `path` is a folder or a device.
#[allow(unsafe_code)]
pub fn map_file(path: impl AsRef<Path>) -> Result<Arc<Mmap>> {
    let path = path.as_ref();
    let file = fs_err::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::malformed(path, "is not a regular file"));
    }
    // SAFETY: the map is read-only, and every file that this program writes is renamed into place and never changed afterwards,
    // so the bytes stay still unless another program rewrites the file in place, as with any mapped file.
    let map = unsafe { Mmap::map(file.file()) }
        .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(Arc::new(map))
}

impl MappedBytes {
    /// The bytes `range` of the mapped file; `None` where the range is backwards or reaches past the end.
    pub fn new(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        Some(Self { map, range })
    }

    /// The part `range` of these bytes, counted from their own start; `None` where it is backwards or reaches past their end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        // The check above bounds both ends by this view's length, so neither sum can overflow.
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(Self { map: Arc::clone(&self.map), range })
    }
}

impl From<Arc<Mmap>> for MappedBytes {
    fn from(map: Arc<Mmap>) -> Self {
        let range = 0..map.len();
        Self { map, range }
    }
}

impl MappedBytes {
    /// Tells the operating system that these bytes are not needed soon: they take no memory until they are read again.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        // SAFETY: the map is of a file, shared and never written, so pages that are dropped are read from the file again. Where the
        // advice is not taken the bytes stay, which harms nobody.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.range.start, self.range.len()) };
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mapped(bytes: &[u8]) -> MappedBytes {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        fs_err::write(&path, bytes).unwrap();
        map_file(&path).unwrap().into()
    }

    #[test]
    fn a_slice_of_a_slice_counts_from_the_inner_start() {
        let whole = mapped(b"0123456789");
        let middle = whole.slice(2..8).unwrap();
        assert_eq!(&*middle, b"234567");
        assert_eq!(&*middle.slice(1..3).unwrap(), b"34");
        assert_eq!(&*middle.slice(6..6).unwrap(), b"");
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn a_range_past_the_end_or_backwards_is_none() {
        let whole = mapped(b"0123456789");
        let middle = whole.slice(2..8).unwrap();
        assert!(middle.slice(0..7).is_none(), "the file goes on, this view does not");
        assert!(middle.slice(usize::MAX..usize::MAX).is_none());
        assert!(middle.slice(3..2).is_none());
        assert!(MappedBytes::new(map_of(&whole), 5..11).is_none());
    }

    fn map_of(bytes: &MappedBytes) -> Arc<Mmap> {
        Arc::clone(&bytes.map)
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        assert_eq!(&*mapped(b""), b"");
    }

    #[test]
    fn a_folder_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = map_file(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: is not a regular file", folder.path().display()));
    }
}
