//! Read-only views of bytes where they lie: in a file mapped into memory, in memory, or in the program itself.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, Range};
#[cfg(feature = "std")]
use std::path::Path;

#[cfg(feature = "std")]
use memmap2::Mmap;

/// A range of bytes that are read where they lie; dereferences to them, and clones without copying them.
///
/// Made from a mapped file, from an `Arc<[u8]>` or a `Vec<u8>`, or from a `&'static [u8]`, which is how firmware keeps its weights in
/// flash.
#[derive(Clone)]
pub struct MappedBytes {
    holder: Holder,
    range: Range<usize>,
}

/// What keeps the bytes alive.
#[derive(Clone)]
enum Holder {
    #[cfg(feature = "std")]
    File(Arc<Mmap>),
    Memory(Arc<[u8]>),
    Program(&'static [u8]),
}

/// What Linux maps around a page that is read, at most: 64 KiB, and from 6.18 on the whole folio that holds it in the page cache.
#[cfg(all(feature = "std", unix))]
const MAPPED_AROUND: usize = 2 << 20;

/// Maps a whole file for reading.
///
/// The pages are shared with every other reader of the file and cost memory only when touched.
///
/// # Errors
/// [`crate::Error::Io`] when the file can't be opened or mapped, [`crate::Error::Malformed`] when `path` is something else than a file.
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub fn map_file(path: impl AsRef<Path>) -> crate::Result<Arc<Mmap>> {
    let path = path.as_ref();
    let file = crate::open_file(path)?;
    // SAFETY: the map is read-only, and every file that this program writes is renamed into place and never changed afterwards,
    // so the bytes stay still unless another program rewrites the file in place, as with any mapped file.
    let map = unsafe { Mmap::map(file.file()) }
        .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(Arc::new(map))
}

impl MappedBytes {
    /// The bytes `range` of the mapped file; `None` where the range is backwards or reaches past the end.
    #[cfg(feature = "std")]
    pub fn new(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        Self::from(map).slice(range)
    }

    /// The part `range` of these bytes, counted from their own start; `None` where it is backwards or reaches past their end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        // The check above bounds both ends by this view's length, so neither sum can overflow.
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(Self { holder: self.holder.clone(), range })
    }

    /// Tells the operating system that these bytes of a mapped file are not needed soon: they take no memory until they are read
    /// again. Bytes held in memory stay.
    pub fn release(&self) {
        match &self.holder {
            #[cfg(all(feature = "std", not(unix)))]
            Holder::File(_) => {}
            #[cfg(all(feature = "std", unix))]
            #[allow(unsafe_code)]
            Holder::File(map) => {
                // Reading one page maps its neighbours too.
                let start = self.range.start.saturating_sub(MAPPED_AROUND);
                let end = self.range.end.saturating_add(MAPPED_AROUND).min(map.len());
                // SAFETY: the map is of a file, shared and never written, so pages that are dropped are read from the file again.
                // Where the advice is not taken the bytes stay, which harms nobody.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
            Holder::Memory(_) | Holder::Program(_) => {}
        }
    }
}

#[cfg(feature = "std")]
impl From<Arc<Mmap>> for MappedBytes {
    fn from(map: Arc<Mmap>) -> Self {
        let range = 0..map.len();
        Self { holder: Holder::File(map), range }
    }
}

impl From<Arc<[u8]>> for MappedBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        let range = 0..bytes.len();
        Self { holder: Holder::Memory(bytes), range }
    }
}

impl From<Vec<u8>> for MappedBytes {
    /// Copies the bytes once, as [`Arc`] asks.
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Arc::<[u8]>::from(bytes))
    }
}

impl From<&'static [u8]> for MappedBytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self { holder: Holder::Program(bytes), range: 0..bytes.len() }
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole: &[u8] = match &self.holder {
            #[cfg(feature = "std")]
            Holder::File(map) => map,
            Holder::Memory(bytes) => bytes,
            Holder::Program(bytes) => bytes,
        };
        &whole[self.range.clone()]
    }
}

impl fmt::Debug for MappedBytes {
    /// How many they are: a model's bytes are too many to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBytes({})", self.len())
    }
}

#[cfg(all(test, feature = "std"))]
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
        match &bytes.holder {
            Holder::File(map) => Arc::clone(map),
            Holder::Memory(_) | Holder::Program(_) => panic!("not mapped"),
        }
    }

    #[test]
    fn bytes_in_memory_and_in_the_program_are_cut_as_a_file_is_and_never_copied() {
        static PROGRAM: [u8; 10] = *b"0123456789";
        let memory: Arc<[u8]> = PROGRAM.into();
        for (bytes, start) in
            [(MappedBytes::from(&PROGRAM[..]), PROGRAM.as_ptr()), (MappedBytes::from(Arc::clone(&memory)), memory.as_ptr())]
        {
            let middle = bytes.slice(2..8).unwrap().slice(1..3).unwrap();
            assert_eq!(&*middle, b"34");
            assert_eq!(middle.as_ptr(), start.wrapping_add(3));
            assert!(bytes.slice(0..11).is_none());
            assert_eq!(format!("{bytes:?}"), "MappedBytes(10)");
        }
        assert_eq!(&*MappedBytes::from(PROGRAM.to_vec()), PROGRAM);
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        assert_eq!(&*mapped(b""), b"");
    }

    #[test]
    fn a_folder_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = map_file(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: is a folder, not a file", folder.path().display()));
    }
}
