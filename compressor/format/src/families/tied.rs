//! Tied embeddings as files hold them: once, under the name of either, or twice.

use alloc::borrow::ToOwned;
use alloc::string::String;

use super::Family;
use crate::{Architecture, TensorFiles, TensorSlice};

/// The head's name in every family.
const HEAD: &str = "lm_head.weight";
/// Elements that are compared at once.
const COMPARED: usize = 1 << 20;

impl Family {
    /// Unties `architecture` where the file holds a head beside the embedding that is another matrix, as Transformers does: adapters
    /// that were merged into one of them leave such files, whatever their `config.json` says.
    pub(crate) fn settle_head(architecture: &mut Architecture, files: &TensorFiles) {
        if !architecture.tied_embeddings {
            return;
        }
        let embedding = &Self::stored(architecture)[0].name;
        let of = |name: &str| {
            let module = name.strip_suffix("weight").unwrap_or(name);
            let short = module.strip_prefix(architecture.family.optional_prefix()).unwrap_or(module);
            files.iter().any(|(found, _)| found.starts_with(module) || found.starts_with(short))
        };
        if !of(HEAD) || !of(embedding) {
            return;
        }
        let dense = Self::name_in(files, architecture, embedding).and_then(|name| files.get(&name));
        let same = matches!((dense, files.get(HEAD)), (Some(embedding), Some(head)) if are_equal(embedding, head));
        architecture.tied_embeddings = same;
    }

    /// The name that a tensor has in these files, which may leave out the family's prefix, and may hold a tied embedding under the
    /// name of the head alone.
    pub(crate) fn name_in(files: &TensorFiles, architecture: &Architecture, name: &str) -> Option<String> {
        let short = name.strip_prefix(architecture.family.optional_prefix());
        let is_tied = architecture.tied_embeddings && name == Self::stored(architecture)[0].name;
        let names = [Some(name), short, is_tied.then_some(HEAD)];
        names.into_iter().flatten().find(|name| files.get(name).is_some()).map(str::to_owned)
    }
}

/// True for matrices of the same values, piece by piece: two of the largest heads do not fit memory as f32.
fn are_equal(one: &TensorSlice, other: &TensorSlice) -> bool {
    let len = one.shape.iter().product::<usize>();
    let values = |tensor: &TensorSlice, start: usize| {
        let bytes = tensor.dtype.bytes();
        let piece = tensor.bytes.slice(start * bytes..len.min(start + COMPARED) * bytes)?;
        let values = tensor.dtype.to_f32(&piece);
        piece.release();
        values
    };
    let same = |start| matches!((values(one, start), values(other, start)), (Some(one), Some(other)) if one == other);
    one.shape == other.shape && (0..len).step_by(COMPARED).all(same)
}
