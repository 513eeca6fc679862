//! Memory of packed matrices: cache lines, many matrices in one block.

use alloc::sync::Arc;
use core::cell::RefCell;
use core::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable, cast_mut, cast_ref};

use super::LANES;

/// One cache line of a packed matrix.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

// SAFETY: sixteen floats without padding; all bits zero are sixteen zeros.
unsafe impl Zeroable for Line {}
// SAFETY: as above, and any bits are sixteen floats.
unsafe impl Pod for Line {}

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    pub(crate) fn floats(&self) -> &[f32; LANES] {
        &self.0
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32; LANES] {
        cast_mut(&mut self.0)
    }

    /// Two times sixteen halves.
    #[inline(always)]
    pub(crate) fn halves(&self) -> &[[u16; LANES]; 2] {
        cast_ref(&self.0)
    }

    pub(crate) fn halves_mut(&mut self) -> &mut [[u16; LANES]; 2] {
        cast_mut(&mut self.0)
    }

    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8; 4 * LANES] {
        cast_ref(&self.0)
    }

    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 4 * LANES] {
        cast_mut(&mut self.0)
    }
}

/// Hands out lines. Small matrices share a block, so that the system can back it with large pages: a processor that streams
/// weights looks up one address translation for 2 MB instead of for each 4 KB.
#[derive(Debug, Default)]
pub(crate) struct Arena(RefCell<Room>);

/// What is left of a block.
#[derive(Debug, Default)]
struct Room {
    block: Option<Arc<Block>>,
    taken: usize,
    left: usize,
}

/// Lines that belong to one matrix; they are zero at first.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// None for no lines.
    block: Option<Arc<Block>>,
    first: usize,
    len: usize,
}

impl Arena {
    /// Room for so many lines, side by side. What is asked for beyond lies elsewhere.
    pub(crate) fn with_room(lines: usize) -> Self {
        let block = (lines > 0).then(|| Arc::new(Block::new(lines)));
        Self(RefCell::new(Room { block, taken: 0, left: lines }))
    }

    /// The next `len` lines.
    pub(crate) fn lines(&self, len: usize) -> Lines {
        let mut room = self.0.borrow_mut();
        if len > room.left {
            return Lines { block: Some(Arc::new(Block::new(len))), first: 0, len };
        }
        let lines = Lines { block: room.block.clone(), first: room.taken, len };
        room.taken += len;
        room.left -= len;
        lines
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: `lines` gave this range to nobody else, it lies inside the block, and the block lives as long as `self`.
        unsafe { core::slice::from_raw_parts(block.start().add(self.first), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        let Some(block) = &self.block else { return &mut [] };
        // SAFETY: as above, and `&mut self` is the only way to the range.
        unsafe { core::slice::from_raw_parts_mut(block.start().add(self.first), self.len) }
    }
}

// SAFETY: what a block holds is reached through the `Lines` that own its parts, as through a `Box<[Line]>` each.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

#[cfg(feature = "std")]
use mapped::Block;

#[cfg(feature = "std")]
mod mapped {
    use memmap2::{MmapMut, MmapOptions};

    use super::Line;

    /// Fresh memory from the operating system.
    #[derive(Debug)]
    pub(super) struct Block {
        start: *mut Line,
        /// Unmapped when it is dropped.
        _map: MmapMut,
    }

    impl Block {
        pub(super) fn new(len: usize) -> Self {
            let bytes = len * size_of::<Line>();
            let map = MmapOptions::new().len(bytes).map_anon();
            let mut map = map.unwrap_or_else(|_| {
                // As any other allocation of Rust that fails.
                let layout = std::alloc::Layout::array::<Line>(len).expect("as many bytes as the map was asked for");
                std::alloc::handle_alloc_error(layout)
            });
            // Advice: where it is not taken, only speed is lost.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            // A map begins at a page, which is a line's address.
            Self { start: map.as_mut_ptr().cast(), _map: map }
        }

        pub(super) fn start(&self) -> *mut Line {
            self.start
        }
    }
}

#[cfg(not(feature = "std"))]
use owned::Block;

#[cfg(not(feature = "std"))]
mod owned {
    use alloc::boxed::Box;
    use alloc::vec;

    use super::Line;

    /// Memory of the allocator.
    #[derive(Debug)]
    pub(super) struct Block {
        start: *mut Line,
        len: usize,
    }

    impl Block {
        pub(super) fn new(len: usize) -> Self {
            let lines = Box::leak(vec![Line::ZERO; len].into_boxed_slice());
            Self { start: lines.as_mut_ptr(), len }
        }

        pub(super) fn start(&self) -> *mut Line {
            self.start
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: `new` leaked this very box.
            drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(self.start, self.len)) });
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn parts_of_a_block_do_not_overlap_and_begin_as_zeros() {
        let sizes = [3, 1, 40, 2, 100, 7, 0];
        for arena in [Arena::default(), Arena::with_room(50), Arena::with_room(1000)] {
            let mut parts: Vec<Lines> = sizes.map(|len| arena.lines(len)).into();
            drop(arena);
            for (part, lines) in parts.iter_mut().enumerate() {
                assert!(lines.iter().all(|line| *line.floats() == [0.0; LANES]));
                lines.iter_mut().for_each(|line| line.floats_mut().fill(part as f32));
            }
            let lens: Vec<usize> = parts.iter().map(|lines| lines.len()).collect();
            assert_eq!(lens, sizes);
            for (part, lines) in parts.iter().enumerate() {
                assert!(lines.iter().all(|line| *line.floats() == [part as f32; LANES]), "part {part}");
                assert_eq!(lines.as_ptr().align_offset(64), 0);
            }
        }
    }
}
