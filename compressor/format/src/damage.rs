//! Damage to a file, for the property tests of its readers.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

/// Bytes that are set, then perhaps an end that is cut off.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    bytes: Vec<(Index, u8)>,
    cut: Option<Index>,
}

impl Damage {
    /// So many changed bytes, and a cut with this probability.
    pub(crate) fn any(changes: std::ops::Range<usize>, cuts: f64) -> impl Strategy<Value = Self> {
        let bytes = prop::collection::vec((any::<Index>(), any::<u8>()), changes);
        let cut = prop::option::weighted(cuts, any::<Index>());
        (bytes, cut).prop_map(|(bytes, cut)| Self { bytes, cut })
    }

    /// Damages the file, which is not empty.
    pub(crate) fn strike(&self, path: &Path) {
        let mut file = fs_err::read(path).expect("a test's own file");
        self.change(&mut file);
        fs_err::write(path, file).expect("a test's own file");
    }

    /// Damages a file's bytes, of which there are some.
    pub(crate) fn change(&self, file: &mut Vec<u8>) {
        for (at, byte) in &self.bytes {
            let at = at.index(file.len());
            file[at] = *byte;
        }
        if let Some(cut) = self.cut {
            file.truncate(cut.index(file.len()));
        }
    }
}
