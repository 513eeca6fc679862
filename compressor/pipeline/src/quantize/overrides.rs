//! Other schemes for some matrices, chosen by the names of their modules.

use compressor_format::{Architecture, Family, Override, Scheme, StoredTensor, TensorId};
use glob::Pattern;

use super::sizes::{Refusal, projections};
use super::{GROUP_SIZE, Quantization};

/// What `scheme` becomes for `stored`; the key that says a group size comes with it.
pub(super) fn overridden(
    quantization: &Quantization,
    stored: &StoredTensor,
    scheme: Option<(&'static str, Scheme)>,
) -> Option<(&'static str, Scheme)> {
    matching(quantization, stored).fold(scheme, |scheme, one| {
        if one.dense {
            return None;
        }
        let (key, before) = scheme.unwrap_or(("overrides", projections(quantization)));
        let bits = one.bits.unwrap_or(before.bits);
        let key = if one.group_size.is_some() { "overrides" } else { key };
        let group_size = one.group_size.or(before.group_size).or((bits < 8).then_some(GROUP_SIZE));
        Some((key, Scheme { bits, group_size, symmetric: one.symmetric.unwrap_or(before.symmetric) }))
    })
}

/// Whether an override leaves `stored` dense.
pub(super) fn asks(quantization: &Quantization, stored: &StoredTensor) -> bool {
    matching(quantization, stored).last().is_some_and(|one| one.dense)
}

/// Whether an override settles what becomes of `stored`.
pub(super) fn name_it(quantization: &Quantization, stored: &StoredTensor) -> bool {
    matching(quantization, stored).next().is_some()
}

/// Whether an override says groups or zero points of `stored`.
pub(super) fn say_a_grid(quantization: &Quantization, stored: &StoredTensor) -> bool {
    matching(quantization, stored).any(|one| one.group_size.is_some() || one.symmetric.is_some())
}

/// Everything that is wrong with the overrides themselves.
pub(super) fn refusals(quantization: &Quantization, architecture: &Architecture) -> Vec<Refusal> {
    let matrices: Vec<StoredTensor> = Family::stored(architecture).into_iter().filter(can_be_chosen).collect();
    let mut refusals = Vec::new();
    for Override { pattern, dense, .. } in &quantization.overrides {
        let parsed = match Pattern::new(pattern) {
            Ok(parsed) => parsed,
            Err(error) => {
                refusals.push(Refusal::Pattern { pattern: pattern.clone(), what: error.msg.to_owned() });
                continue;
            }
        };
        let mut matched = matrices.iter().filter(|stored| parsed.matches(module(stored))).peekable();
        if matched.peek().is_none() {
            refusals.push(Refusal::NoMatch { pattern: pattern.clone(), nearest: nearest(pattern, &matrices) });
        }
        let transposed = matched.find(|stored| *dense && stored.transposed);
        refusals.extend(transposed.map(|stored| Refusal::Transposed(stored.name.clone())));
    }
    refusals
}

fn matching<'a>(quantization: &'a Quantization, stored: &'a StoredTensor) -> impl Iterator<Item = &'a Override> {
    let chosen = can_be_chosen(stored);
    quantization
        .overrides
        .iter()
        .filter(move |one| chosen && Pattern::new(&one.pattern).is_ok_and(|pattern| pattern.matches(module(stored))))
}

fn can_be_chosen(stored: &StoredTensor) -> bool {
    matches!(stored.parts[0], TensorId::Embedding | TensorId::Head) || stored.parts[0].is_projection()
}

/// The name of the module that a tensor is the weight of.
pub(super) fn module(stored: &StoredTensor) -> &str {
    stored.name.strip_suffix(".weight").unwrap_or(&stored.name)
}

/// Names that are likest to a pattern: whole ones, or with `*.` for what stands before the last part.
fn nearest(pattern: &str, matrices: &[StoredTensor]) -> String {
    let mut names: Vec<String> = Vec::new();
    for stored in matrices {
        let whole = module(stored);
        let last = whole.rsplit_once('.').map_or(whole, |(_, last)| last);
        for name in [whole.to_owned(), format!("*.{last}")] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.sort_by_cached_key(|name| strsim::damerau_levenshtein(pattern, name));
    names.truncate(3);
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
