//! Takes the least important units out of a model, with every row and column that belongs to them.

use std::collections::BTreeMap;

use compressor_format::{Architecture, HeadUnit, LayerTensor, Part, Prune, TensorId, Weights};
use serde::{Deserialize, Serialize};

use super::resolve::{kept_layers, ranks_units};
use super::{Measure, Refusal, Scores, resolve};

/// What went, for the report. All indices are those before pruning, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuts {
    /// What units were ranked by; `None` where only whole layers went.
    pub measure: Option<Measure>,
    /// What [`LayerCuts::heads`] counts.
    pub head_unit: HeadUnit,
    /// Whole layers.
    pub layers: Vec<usize>,
    /// Units of each layer that stayed.
    pub units: Vec<LayerCuts>,
}

/// What went from one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCuts {
    /// The layer.
    pub layer: usize,
    /// GQA groups, or query heads counted over the whole layer.
    pub heads: Vec<usize>,
    /// Intermediate channels.
    pub channels: Vec<usize>,
}

/// Removes the least important units of every layer, and the layers that `pruning` names.
///
/// Of equally important units the one with the lower index goes first. Units that stay keep their order and their weights.
/// The result has exactly the architecture that [`resolve`] gives. `scores` are not looked at where [`ranks_units`] is false.
///
/// # Errors
/// As [`resolve`].
///
/// # Panics
/// Where `scores` are not of this model, or of another importance than `pruning` asks for: a mistake of the caller.
pub fn prune(weights: Weights, pruning: &Prune, scores: &Scores) -> Result<(Weights, Cuts), Refusal> {
    let after = resolve(pruning, weights.architecture())?;
    let ranked = ranks_units(pruning);
    if ranked {
        scores.check(pruning, weights.architecture());
    }
    let (before, config, mut old) = weights.into_parts();
    let mut cuts = Cuts {
        measure: ranked.then_some(scores.measure),
        head_unit: pruning.head_unit,
        layers: pruning.layers.clone(),
        units: Vec::new(),
    };
    cuts.layers.sort_unstable();
    for (new, layer) in kept_layers(&pruning.layers, &before).enumerate() {
        cuts.units.push(match ranked {
            true => least_important(layer, scores, pruning.head_unit, &before, &after, new),
            false => LayerCuts { layer, heads: Vec::new(), channels: Vec::new() },
        });
    }
    let mut tensors = BTreeMap::new();
    for id in after.tensors() {
        let values = match id {
            TensorId::Layer(new, tensor) => {
                let gone = &cuts.units[new];
                let values = taken(&mut old, TensorId::Layer(gone.layer, tensor));
                Kept::new(gone, pruning.head_unit, &before).of(tensor, values, before.hidden_size)
            }
            TensorId::Embedding | TensorId::PositionEmbedding | TensorId::FinalNorm(_) | TensorId::Head => taken(&mut old, id),
        };
        tensors.insert(id, values);
    }
    Ok((Weights::new(after, config, tensors), cuts))
}

/// Moves a tensor out, so that a model and its pruned copy are never in memory together.
fn taken(tensors: &mut BTreeMap<TensorId, Vec<f32>>, id: TensorId) -> Vec<f32> {
    tensors.remove(&id).expect("pruning adds no tensor, and each is taken once")
}

/// The units that go from `layer`, which will have index `new`.
fn least_important(
    layer: usize,
    scores: &Scores,
    unit: HeadUnit,
    before: &Architecture,
    after: &Architecture,
    new: usize,
) -> LayerCuts {
    let (old, left) = (before.layers[layer], after.layers[new]);
    let heads = match unit {
        _ if left.heads == old.heads => Vec::new(),
        HeadUnit::Group => least(&scores.groups[layer], old.kv_heads - left.kv_heads),
        HeadUnit::Query => {
            let (group, fewer) = (old.heads / old.kv_heads, left.heads / left.kv_heads);
            let of_group = |(kv_head, scores): (usize, &[f64])| {
                least(scores, group - fewer).into_iter().map(move |head| kv_head * group + head).collect::<Vec<_>>()
            };
            scores.queries[layer].chunks_exact(group).enumerate().flat_map(of_group).collect()
        }
    };
    LayerCuts { layer, heads, channels: least(&scores.channels[layer], old.intermediate_size - left.intermediate_size) }
}

/// Indices of the `count` smallest scores, ascending.
fn least(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Stable, so equal scores stay in the order of their indices.
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The rows and columns of one layer's projections that stay.
struct Kept {
    /// Rows of the query projection, columns of the output projection.
    queries: Option<Vec<usize>>,
    /// Rows of the key and the value projection.
    keys: Option<Vec<usize>>,
    /// Rows of gate and up, columns of down.
    channels: Option<Vec<usize>>,
}

impl Kept {
    fn new(gone: &LayerCuts, unit: HeadUnit, before: &Architecture) -> Self {
        let shape = before.layers[gone.layer];
        let group = shape.heads / shape.kv_heads;
        let head_dim = before.head_dim;
        let (queries, keys) = match unit {
            HeadUnit::Group => {
                (others(&gone.heads, shape.kv_heads, group * head_dim), others(&gone.heads, shape.kv_heads, head_dim))
            }
            HeadUnit::Query => (others(&gone.heads, shape.heads, head_dim), None),
        };
        Self { queries, keys, channels: others(&gone.channels, shape.intermediate_size, 1) }
    }

    /// What stays of a tensor; vectors are matrices of one column.
    fn of(&self, tensor: LayerTensor, values: Vec<f32>, hidden_size: usize) -> Vec<f32> {
        use LayerTensor::*;
        let width = |part| if part == Part::Weight { hidden_size } else { 1 };
        match tensor {
            Query(part) => rows(values, width(part), self.queries.as_deref()),
            Key(part) | Value(part) => rows(values, width(part), self.keys.as_deref()),
            Gate(part) | Up(part) => rows(values, width(part), self.channels.as_deref()),
            Output(Part::Weight) => columns(values, hidden_size, self.queries.as_deref()),
            Down(Part::Weight) => columns(values, hidden_size, self.channels.as_deref()),
            AttentionNorm(_) | QueryNorm | KeyNorm | Output(Part::Bias) | MlpNorm(_) | Down(Part::Bias) => values,
        }
    }
}

/// Rows of the units that are not `gone`, `rows` for each of `count` units; `None` where all stay.
fn others(gone: &[usize], count: usize, rows: usize) -> Option<Vec<usize>> {
    let mut stays = vec![true; count];
    gone.iter().for_each(|&unit| stays[unit] = false);
    let of_unit = |unit: usize| unit * rows..(unit + 1) * rows;
    (!gone.is_empty()).then(|| (0..count).filter(|&unit| stays[unit]).flat_map(of_unit).collect())
}

fn rows(values: Vec<f32>, width: usize, kept: Option<&[usize]>) -> Vec<f32> {
    match kept {
        None => values,
        Some(kept) => kept.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect(),
    }
}

fn columns(values: Vec<f32>, rows: usize, kept: Option<&[usize]>) -> Vec<f32> {
    match kept {
        None => values,
        Some(kept) => {
            let width = values.len() / rows;
            values.chunks_exact(width).flat_map(|row| kept.iter().map(|&column| row[column])).collect()
        }
    }
}
