//! What is left of an architecture after pruning, or why a recipe can't have it: pure, so that a plan asks before any work.

use compressor_format::{Architecture, HeadUnit, LayerShape, Prune};

/// Why a model can't be pruned as the recipe says. Whoever knows the recipe's file puts the line of [`Refusal::key`] beside it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Neither heads nor channels nor layers are to go.
    #[error("nothing to cut: set head_ratio, channel_ratio, target_parameters or layers")]
    NothingAsked,
    /// A ratio is no part of a whole.
    #[error("{key} {ratio} is not between 0 and 1")]
    RatioRange {
        /// The recipe's key.
        key: &'static str,
        /// Its value.
        ratio: f64,
    },
    /// The ratio takes every head.
    #[error("head_ratio {ratio} would leave no attention head; it must be below 1")]
    NoHead {
        /// The recipe's `head_ratio`.
        ratio: f64,
    },
    /// The ratio takes every channel.
    #[error("channel_ratio {ratio} would leave no intermediate channel; it must be below 1")]
    NoChannel {
        /// The recipe's `channel_ratio`.
        ratio: f64,
    },
    /// The ratio rounds to no head.
    #[error("head_ratio {ratio} of {units} {} cuts nothing; the smallest that does is {smallest}", units_name(*unit))]
    NoHeadCut {
        /// The recipe's `head_ratio`.
        ratio: f64,
        /// Units it is a part of.
        units: usize,
        /// What a unit is.
        unit: HeadUnit,
        /// The smallest ratio that cuts one unit, in as few decimals as say so, at least two.
        smallest: f64,
    },
    /// There is one unit, which must stay.
    #[error("head_unit \"{}\" has nothing to cut: {}", unit_name(*unit), lone_unit(*unit, *other))]
    LoneHead {
        /// What a unit is.
        unit: HeadUnit,
        /// Units of the other kind, of which some could go where there are several.
        other: usize,
    },
    /// Rounding to the multiple leaves every channel.
    #[error(
        "channel_ratio {ratio} of {channels} intermediate channels, kept in multiples of {multiple}, cuts nothing; \
         the smallest that does is {smallest}"
    )]
    NoChannelCut {
        /// The recipe's `channel_ratio`.
        ratio: f64,
        /// Intermediate channels of a layer.
        channels: usize,
        /// The recipe's `channel_multiple`.
        multiple: usize,
        /// The smallest ratio that cuts as few channels as can be, in as few decimals as say so, at least two.
        smallest: f64,
    },
    /// No multiple is smaller than the width.
    #[error("channel_multiple {multiple} must be below intermediate_size {channels} for any channel to go")]
    MultipleTooLarge {
        /// The recipe's `channel_multiple`.
        multiple: usize,
        /// Intermediate channels of a layer.
        channels: usize,
    },
    /// Multiples of zero.
    #[error("channel_multiple 0 must be at least 1")]
    ZeroMultiple,
    /// Two keys decide one number.
    #[error("target_parameters and channel_ratio both say how many channels go; give one of them")]
    TargetAndRatio,
    /// The target asks for no cut.
    #[error("target_parameters {target} is not below the {parameters} parameters that the model has")]
    TargetNotBelow {
        /// The recipe's `target_parameters`.
        target: u64,
        /// Parameters before pruning.
        parameters: u64,
    },
    /// Channels alone don't reach the target.
    #[error(
        "target_parameters {target} is out of reach: with {} to {} intermediate channels kept the model has {} to {} parameters; \
         cut heads or layers too",
        fewest.0, most.0, fewest.1, most.1
    )]
    TargetOutOfReach {
        /// The recipe's `target_parameters`.
        target: u64,
        /// Fewest channels that can be kept, and the model's parameters then.
        fewest: (usize, u64),
        /// Most channels below all of them, and the model's parameters then.
        most: (usize, u64),
    },
    /// There is no such layer.
    #[error("layers names {index}, the model has {layers} layers, 0 to {}", layers - 1)]
    NoSuchLayer {
        /// The index in the recipe.
        index: usize,
        /// Layers of the model, at least 1.
        layers: usize,
    },
    /// A layer can go once.
    #[error("layers names {index} twice")]
    LayerTwice {
        /// The index in the recipe.
        index: usize,
    },
    /// No layer would be left.
    #[error("layers names all {layers} layers of the model; at least one must stay")]
    AllLayers {
        /// Layers of the model.
        layers: usize,
    },
    /// One count can't be the same part of different widths.
    #[error("{key} needs layers of one size, and this model's layers differ; only whole layers can be cut from it")]
    UnevenLayers {
        /// The recipe's key.
        key: &'static str,
    },
    /// Importance was to be measured on text, and no token came.
    #[error("importance \"activation\" saw no token in layer {layer}; give calibration text or set importance to \"magnitude\"")]
    NothingObserved {
        /// The first such layer.
        layer: usize,
    },
    /// The model overflows on the calibration text.
    #[error("importance \"activation\" met NaN or an infinity in the {what} of layer {layer}")]
    NotFinite {
        /// Which activations.
        what: &'static str,
        /// The first such layer.
        layer: usize,
    },
}

impl Refusal {
    /// The recipe's key at fault; `prune`, the stage itself, where no key is there to be at fault.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NothingAsked => "prune",
            Self::RatioRange { key, .. } | Self::UnevenLayers { key } => key,
            Self::NoHead { .. } | Self::NoHeadCut { .. } => "head_ratio",
            Self::LoneHead { .. } => "head_unit",
            Self::NoChannel { .. } | Self::NoChannelCut { .. } => "channel_ratio",
            Self::MultipleTooLarge { .. } | Self::ZeroMultiple => "channel_multiple",
            Self::TargetAndRatio | Self::TargetNotBelow { .. } | Self::TargetOutOfReach { .. } => "target_parameters",
            Self::NoSuchLayer { .. } | Self::LayerTwice { .. } | Self::AllLayers { .. } => "layers",
            Self::NothingObserved { .. } | Self::NotFinite { .. } => "importance",
        }
    }

    /// Whether the recipe alone is at fault, whatever the model's sizes.
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::NothingAsked | Self::RatioRange { .. } | Self::NoChannel { .. } | Self::ZeroMultiple => true,
            Self::NoHead { ratio } => *ratio >= 1.0,
            Self::TargetAndRatio | Self::LayerTwice { .. } => true,
            Self::NoHeadCut { .. }
            | Self::LoneHead { .. }
            | Self::NoChannelCut { .. }
            | Self::MultipleTooLarge { .. }
            | Self::TargetNotBelow { .. }
            | Self::TargetOutOfReach { .. }
            | Self::NoSuchLayer { .. }
            | Self::AllLayers { .. }
            | Self::UnevenLayers { .. }
            | Self::NothingObserved { .. }
            | Self::NotFinite { .. } => false,
        }
    }
}

/// What `pruning` leaves of `architecture`.
///
/// - Heads: `⌊head_ratio · units⌋` units go from every layer (from every GQA group where the unit is a query head).
/// - Channels: `(1 − channel_ratio) · intermediate_size` stay, rounded to the nearest multiple of `channel_multiple` (a half
///   rounds to more), at least one multiple. With `target_parameters` the most channels stay, all of them or a multiple, that
///   keep the model within it.
/// - Layers: those named go, by their index before pruning; widths and the target are those of what remains.
///
/// # Errors
/// The first of [`refusals`].
pub fn resolve(pruning: &Prune, architecture: &Architecture) -> Result<Architecture, Refusal> {
    let (after, refusals) = attempt(pruning, architecture);
    refusals.into_iter().next().map_or(Ok(after), Err)
}

/// Everything that is wrong with `pruning` for this architecture; empty exactly where [`resolve`] succeeds.
pub fn refusals(pruning: &Prune, architecture: &Architecture) -> Vec<Refusal> {
    attempt(pruning, architecture).1
}

/// True where units are chosen by importance; false where only whole layers go, which the recipe names.
pub fn ranks_units(pruning: &Prune) -> bool {
    pruning.head_ratio > 0.0 || pruning.channel_ratio > 0.0 || pruning.target_parameters.is_some()
}

fn attempt(pruning: &Prune, architecture: &Architecture) -> (Architecture, Vec<Refusal>) {
    let mut after = architecture.clone();
    let mut refusals = Vec::new();
    let widths = [
        ("head_ratio", pruning.head_ratio != 0.0),
        ("channel_ratio", pruning.channel_ratio != 0.0),
        ("target_parameters", pruning.target_parameters.is_some()),
    ];
    let first_width = widths.into_iter().find(|(_, asked)| *asked).map(|(key, _)| key);
    if first_width.is_none() && pruning.layers.is_empty() {
        refusals.push(Refusal::NothingAsked);
    }
    match check_layers(&pruning.layers, architecture.layers.len()) {
        Ok(()) => after.layers = kept_layers(&pruning.layers, architecture).map(|layer| architecture.layers[layer]).collect(),
        Err(refusal) => refusals.push(refusal),
    }
    let Some(key) = first_width else { return (after, refusals) };
    let Some(shape) = after.uniform_layer() else {
        refusals.push(Refusal::UnevenLayers { key });
        return (after, refusals);
    };
    match heads_left(pruning, shape) {
        Ok((heads, kv_heads)) => after.layers.fill(LayerShape { heads, kv_heads, ..shape }),
        Err(refusal) => refusals.push(refusal),
    }
    let channels = match pruning.target_parameters {
        None => channels_left(pruning, shape.intermediate_size),
        Some(_) if pruning.channel_ratio != 0.0 => Err(Refusal::TargetAndRatio),
        Some(target) if target >= architecture.parameters() => {
            Err(Refusal::TargetNotBelow { target, parameters: architecture.parameters() })
        }
        // What channels must still give depends on what the other keys give.
        Some(_) if !refusals.is_empty() => return (after, refusals),
        Some(target) => channels_within(target, pruning.channel_multiple, &after, shape.intermediate_size),
    };
    match channels {
        Ok(channels) => after.layers.iter_mut().for_each(|layer| layer.intermediate_size = channels),
        Err(refusal) => refusals.push(refusal),
    }
    (after, refusals)
}

/// Indices of the layers that stay.
pub(super) fn kept_layers<'a>(cut: &'a [usize], architecture: &'a Architecture) -> impl Iterator<Item = usize> + 'a {
    (0..architecture.layers.len()).filter(|layer| !cut.contains(layer))
}

fn check_layers(cut: &[usize], layers: usize) -> Result<(), Refusal> {
    for (position, &index) in cut.iter().enumerate() {
        if layers > 0 && index >= layers {
            return Err(Refusal::NoSuchLayer { index, layers });
        }
        if cut[..position].contains(&index) {
            return Err(Refusal::LayerTwice { index });
        }
    }
    match cut.len() >= layers {
        true => Err(Refusal::AllLayers { layers }),
        false => Ok(()),
    }
}

/// Query heads and key/value heads that stay in a layer.
fn heads_left(pruning: &Prune, shape: LayerShape) -> Result<(usize, usize), Refusal> {
    let LayerShape { heads, kv_heads, .. } = shape;
    let ratio = pruning.head_ratio;
    check_ratio("head_ratio", ratio)?;
    if ratio == 0.0 {
        return Ok((heads, kv_heads));
    }
    let group = heads.checked_div(kv_heads).unwrap_or(0);
    let unit = pruning.head_unit;
    let (units, other) = match unit {
        HeadUnit::Group => (kv_heads, group),
        HeadUnit::Query => (group, kv_heads),
    };
    let cut = heads_cut(ratio, units);
    if cut >= units {
        return Err(Refusal::NoHead { ratio });
    }
    if units == 1 {
        return Err(Refusal::LoneHead { unit, other });
    }
    if cut == 0 {
        let smallest = smallest_ratio(1, |ratio| heads_cut(ratio, units));
        return Err(Refusal::NoHeadCut { ratio, units, unit, smallest });
    }
    Ok(match unit {
        HeadUnit::Group => ((kv_heads - cut) * group, kv_heads - cut),
        HeadUnit::Query => (kv_heads * (group - cut), kv_heads),
    })
}

/// Products like 0.07 · 100 miss their whole number by one unit in the last place.
const ROUNDING: f64 = 1e-9;

fn heads_cut(ratio: f64, units: usize) -> usize {
    (ratio * units as f64 + ROUNDING).floor() as usize
}

/// Intermediate channels that stay in a layer of `channels`.
fn channels_left(pruning: &Prune, channels: usize) -> Result<usize, Refusal> {
    let (ratio, multiple) = (pruning.channel_ratio, pruning.channel_multiple);
    check_ratio("channel_ratio", ratio)?;
    if ratio == 0.0 {
        return Ok(channels);
    }
    if ratio == 1.0 {
        return Err(Refusal::NoChannel { ratio });
    }
    check_multiple(multiple, channels)?;
    let kept = channels_kept(ratio, channels, multiple);
    if kept >= channels {
        let fewest = channels - largest_multiple_below(channels, multiple);
        let smallest = smallest_ratio(fewest, |ratio| channels.saturating_sub(channels_kept(ratio, channels, multiple)));
        return Err(Refusal::NoChannelCut { ratio, channels, multiple, smallest });
    }
    Ok(kept)
}

fn channels_kept(ratio: f64, channels: usize, multiple: usize) -> usize {
    let multiples = (1.0 - ratio) * channels as f64 / multiple as f64;
    (multiples + 0.5 + ROUNDING).floor().max(1.0) as usize * multiple
}

fn largest_multiple_below(channels: usize, multiple: usize) -> usize {
    (channels - 1) / multiple * multiple
}

/// The most intermediate channels, all of them or a multiple, that keep `architecture` within `target` parameters.
fn channels_within(target: u64, multiple: usize, architecture: &Architecture, channels: usize) -> Result<usize, Refusal> {
    let parameters = |channels: usize| {
        let mut candidate = architecture.clone();
        candidate.layers.iter_mut().for_each(|layer| layer.intermediate_size = channels);
        candidate.parameters()
    };
    if parameters(channels) <= target {
        return Ok(channels);
    }
    check_multiple(multiple, channels)?;
    let most = largest_multiple_below(channels, multiple);
    let candidates = (1..=most / multiple).rev().map(|multiples| multiples * multiple);
    candidates.into_iter().find(|&kept| parameters(kept) <= target).ok_or_else(|| Refusal::TargetOutOfReach {
        target,
        fewest: (multiple, parameters(multiple)),
        most: (most, parameters(most)),
    })
}

fn check_ratio(key: &'static str, ratio: f64) -> Result<(), Refusal> {
    match (0.0..=1.0).contains(&ratio) {
        true => Ok(()),
        false => Err(Refusal::RatioRange { key, ratio }),
    }
}

fn check_multiple(multiple: usize, channels: usize) -> Result<(), Refusal> {
    match multiple {
        0 => Err(Refusal::ZeroMultiple),
        _ if multiple >= channels => Err(Refusal::MultipleTooLarge { multiple, channels }),
        _ => Ok(()),
    }
}

/// The smallest ratio of two or more decimals for which `cut`, which grows with it, gives `fewest`, its first value above 0.
fn smallest_ratio(fewest: usize, cut: impl Fn(f64) -> usize) -> f64 {
    let mut ratio = 1.0;
    for decimals in 2..=9 {
        let steps = 10_u64.pow(decimals);
        let (mut none, mut some) = (0, steps);
        while some - none > 1 {
            let middle = (none + some) / 2;
            match cut(middle as f64 / steps as f64) {
                0 => none = middle,
                _ => some = middle,
            }
        }
        ratio = some as f64 / steps as f64;
        if cut(ratio) == fewest {
            break;
        }
    }
    ratio
}

fn unit_name(unit: HeadUnit) -> &'static str {
    match unit {
        HeadUnit::Group => "group",
        HeadUnit::Query => "query",
    }
}

fn units_name(unit: HeadUnit) -> &'static str {
    match unit {
        HeadUnit::Group => "GQA groups",
        HeadUnit::Query => "query heads in a GQA group",
    }
}

fn lone_unit(unit: HeadUnit, other: usize) -> String {
    match (unit, other) {
        (_, 0..=1) => "the model has a single attention head".to_owned(),
        (HeadUnit::Group, _) => format!("the model has one GQA group; \"query\" cuts among its {other} query heads"),
        (HeadUnit::Query, _) => format!("a GQA group has one query head; \"group\" cuts among the {other} groups"),
    }
}
