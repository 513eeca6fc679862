//! `report.html`: the report as a person reads it, in one file that needs nothing beside it.
//!
//! Everything on the page is the report's, but for the curves, which are drawn from each step's `metrics.jsonl`, and the hashes of
//! files, which are the artifact's manifest's. It is well-formed XML as well as HTML, so that any reader of either can check it.

mod charts;
mod curves;

use std::io::Write;
use std::path::{Path, PathBuf};

use compressor_format::{Check, FileHash, Manifest, Measured, ORIGINAL, Outcome, Report, StageReport, write_beside};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use plotters::style::RGBColor;
use serde::Serialize;
use serde_json::Value;

use self::charts::{Scale, Spot};
use self::curves::{Bucket, Curves, Point};
use crate::Error;
use crate::change::Change;
use crate::figures::{self, bytes, count, figure, percent, perplexity, ratio, whole};
use crate::prune::Cuts;
use crate::quantize::{InputScaling, Instead, QuantizationReport, ScalingOutcome, TensorReport, TextUse};

/// A step with what lies in its folder, as far as it has come.
pub(crate) struct Folder {
    /// The step's name.
    pub(crate) step: String,
    /// Its losses.
    pub(crate) metrics: PathBuf,
    /// Its weights, and the manifest where they are an artifact's.
    pub(crate) folder: PathBuf,
}

/// What the template is filled with. Figures are text already, so that the template says only where they stand.
#[derive(Serialize)]
struct Page<'a> {
    name: &'a str,
    verdict: Verdict,
    tiles: Vec<Tile>,
    steps: Vec<StepRow<'a>>,
    has_score: bool,
    reference: Option<String>,
    notes: Vec<Note<'a>>,
    sizes: Option<Sizes>,
    checks: Vec<CheckRow<'a>>,
    trainings: Vec<Training<'a>>,
    quantized: Vec<Quantized<'a>>,
    artifacts: Vec<Files<'a>>,
    recipe: String,
    machine: Machine<'a>,
    colours: Vec<(&'static str, String)>,
}

/// How it ended, in a word and in a sentence.
#[derive(Serialize)]
struct Verdict {
    /// `passed`, `failed`, `unfinished` or `unchecked`.
    class: &'static str,
    symbol: &'static str,
    word: &'static str,
    sentence: String,
}

/// One of the figures at the top.
#[derive(Serialize)]
struct Tile {
    label: String,
    figure: String,
    lines: Vec<String>,
}

#[derive(Serialize)]
struct StepRow<'a> {
    name: &'a str,
    parameters: String,
    stored_as: &'a str,
    bytes: String,
    ratio: String,
    perplexity: String,
    score: String,
    memory: String,
    seconds: String,
    fingerprint: &'a str,
}

/// What only one kind of step has to say.
#[derive(Serialize)]
struct Note<'a> {
    step: &'a str,
    text: String,
}

#[derive(Serialize)]
struct Sizes {
    quality: &'static str,
    svg: String,
}

#[derive(Serialize)]
struct CheckRow<'a> {
    name: &'a str,
    note: Option<&'a str>,
    value: String,
    unit: &'a str,
    limit: String,
    interval: String,
    sample: String,
    class: &'static str,
    symbol: &'static str,
    word: &'static str,
}

/// The curves of one step.
#[derive(Serialize)]
struct Training<'a> {
    step: &'a str,
    is_finished: bool,
    unreadable: usize,
    charts: Vec<Chart>,
}

#[derive(Serialize)]
struct Chart {
    title: &'static str,
    summary: String,
    svg: String,
}

/// The tensors of one artifact.
#[derive(Serialize)]
struct Quantized<'a> {
    step: &'a str,
    bits_per_weight: String,
    tensors: usize,
    has_output_error: bool,
    has_kl: bool,
    instead: Vec<InsteadRow>,
    texts: Vec<TextRow>,
    worst: Vec<TensorRow>,
    rest: Vec<TensorRow>,
    dense: Vec<DenseRow>,
    opens_in: Vec<compressor_format::OpensIn>,
}

/// A tensor that did not become what was asked for.
#[derive(Serialize)]
struct InsteadRow {
    name: String,
    asked: String,
    got: String,
    reason: String,
}

/// Text that was looked at.
#[derive(Serialize)]
struct TextRow {
    purpose: String,
    used: String,
    /// Empty where as much was there.
    asked: String,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    asked: String,
    got: String,
    /// Whether that is something else.
    differs: bool,
    bits_per_weight: String,
    relative_error: String,
    /// Per cent of the worst tensor's.
    part: String,
    max_absolute_error: String,
    /// What text told: output error, and the divergence alone; empty where it was not asked.
    output_error: String,
    kl: String,
    bytes: String,
}

#[derive(Serialize)]
struct DenseRow {
    name: String,
    bytes: String,
    reason: String,
}

/// What an artifact was made from and what it is made of.
#[derive(Serialize)]
struct Files<'a> {
    step: &'a str,
    inputs: Vec<FileHash>,
    files: Vec<FileHash>,
}

#[derive(Serialize)]
struct Machine<'a> {
    tool_version: &'a str,
    format_version: u32,
    processor: &'a str,
    threads: usize,
    platform: &'a str,
}

/// The page of a run folder.
pub fn path(run_folder: &Path) -> PathBuf {
    run_folder.join("report.html")
}

/// Writes `report.html` beside its place and renames it.
///
/// `folders` are those of the steps that this run has begun or finished.
///
/// # Errors
/// [`Error::Format`] where the folder can't be written or the report's details are not what this program writes.
pub(crate) fn save(report: &Report, folders: &[Folder], run_folder: &Path) -> Result<(), Error> {
    let text = html(report, folders)?;
    Ok(write_beside(path(run_folder), |file| Ok(file.write_all(text.as_bytes())?))?)
}

/// The whole page.
fn html(report: &Report, folders: &[Folder]) -> Result<String, Error> {
    let trainings: Vec<Training<'_>> =
        folders.iter().map(|folder| training(report, folder)).filter_map(Result::transpose).collect::<Result<_, _>>()?;
    let page = Page {
        name: &report.name,
        verdict: verdict(report),
        tiles: tiles(report)?,
        steps: report.stages.iter().map(step_row).collect(),
        has_score: report.stages.iter().any(|step| step.score.is_some()),
        reference: report.reference.as_ref().map(|reference| {
            format!("{} {}, {}", reference.name, stored_as(&reference.name, reference.dtype), bytes(reference.bytes))
        }),
        notes: report.stages.iter().map(note).filter_map(Result::transpose).collect::<Result<_, _>>()?,
        sizes: sizes(report)?,
        checks: report.checks.iter().map(check_row).collect(),
        trainings,
        quantized: report.stages.iter().map(quantized).filter_map(Result::transpose).collect::<Result<_, _>>()?,
        artifacts: folders.iter().filter_map(files).collect(),
        recipe: recipe(&report.recipe)?,
        machine: Machine {
            tool_version: &report.tool_version,
            format_version: report.format_version,
            processor: &report.machine.processor,
            threads: report.machine.threads,
            platform: &report.machine.platform,
        },
        colours: vec![
            ("chart-ink", css(charts::INK)),
            ("chart-grid", css(charts::GRID)),
            ("chart-curve", css(charts::CURVE)),
            ("chart-on-curve", css(charts::ON_CURVE)),
        ],
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
    let filled = environment.render_str(include_str!("report.html"), Serde(page));
    filled.map_err(|error| Error::Page(format!("{error:#}")))
}

/// As the SVG library writes a colour.
fn css(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// How a reference stores its weights; a GGUF file mixes block types, so its own bytes are what it costs.
fn stored_as(name: &str, dtype: compressor_format::Dtype) -> String {
    if name.ends_with(".gguf") { "as packed".to_owned() } else { format!("in {dtype}") }
}

fn verdict(report: &Report) -> Verdict {
    let asked = report.recipe["stage"].as_array().map_or(0, Vec::len).max(report.steps().len());
    let done = report.steps().len();
    let names = |outcome: Outcome| {
        let names: Vec<&str> =
            report.checks.iter().filter(|check| check.outcome == outcome).map(|check| check.name.as_str()).collect();
        names.join("; ")
    };
    let limits = report.checks.iter().filter(|check| check.threshold.is_some()).count();
    let mut sentence: Vec<String> = Vec::new();
    if report.passed == Some(false) {
        for (said, outcome) in
            [("beyond their limits", Outcome::Failed), ("undecided, the sample is too small", Outcome::Undecided)]
        {
            let names = names(outcome);
            if !names.is_empty() {
                sentence.push(format!("{said}: {names}"));
            }
        }
    }
    if done < asked {
        sentence.push(format!("{done} of {asked} steps are finished"));
    }
    let (class, symbol, word) = match report.passed {
        Some(false) => ("failed", "✗", "failed"),
        _ if done < asked => ("unfinished", "…", "unfinished"),
        Some(true) => {
            let undecided = names(Outcome::Undecided);
            sentence.push(match undecided.is_empty() {
                true if limits == 1 => "its one limit is kept".to_owned(),
                true => format!("all {limits} limits are kept"),
                false => format!("no limit is broken; undecided, which the recipe allows: {undecided}"),
            });
            ("passed", "✓", "passed")
        }
        None => {
            sentence.push("the recipe verifies nothing".to_owned());
            ("unchecked", "–", "not verified")
        }
    };
    Verdict { class, symbol, word, sentence: sentence.join("; ") }
}

/// What a person asks first: how large, how much smaller, how good, what it cost.
fn tiles(report: &Report) -> Result<Vec<Tile>, Error> {
    let Some(last) = report.stages.last() else { return Ok(Vec::new()) };
    let is_artifact = report.stages.iter().any(|step| step.details.get("bits_per_weight").is_some());
    let mut size = vec![format!("weights, {}", last.stored_as), format!("{} parameters", count(last.parameters as f64))];
    size.extend(report.check("artifact bytes").map(|check| {
        let limit = figures::limit(check);
        let limit = if limit.is_empty() { limit } else { format!(" ({limit})") };
        format!("all files {}", unbroken(&format!("{}{limit}", figure(check.value, &check.unit))))
    }));
    let label = if is_artifact { "Artifact" } else { "Checkpoint" }.to_owned();
    let mut tiles = vec![Tile { label, figure: bytes(last.bytes), lines: size }];
    if let Some(reference) = &report.reference {
        let than = format!("than {} {}", reference.name, stored_as(&reference.name, reference.dtype));
        let lines = vec![than, bytes(reference.bytes)];
        tiles.push(Tile { label: "Smaller".to_owned(), figure: ratio(last.compression_ratio), lines });
    }
    if let Some(score) = last.score {
        let mut lines = vec![format!("exact match on {} examples", whole(score.sample_size))];
        lines.extend(last.perplexity.map(|measured| format!("perplexity {}", perplexity(measured.value))));
        tiles.push(Tile { label: "Score".to_owned(), figure: percent(score.value), lines });
    } else if let Some(measured) = last.perplexity {
        let lines = vec![format!("on {} tokens", whole(measured.sample_size))];
        tiles.push(Tile { label: "Perplexity".to_owned(), figure: perplexity(measured.value), lines });
    }
    tiles.extend(lost(report));
    Ok(tiles)
}

/// What the whole chain cost, where its first model was measured; what quantizing alone cost otherwise.
fn lost(report: &Report) -> Option<Tile> {
    let change = Change::of(report)?;
    let mut lines: Vec<String> = Vec::new();
    lines.extend(change.since.map(|(name, before)| format!("since {name} ({before})")));
    lines.extend(change.by_quantizing.map(|change| format!("by quantizing alone {change}")));
    if lines.is_empty() {
        lines.push("by quantizing".to_owned());
    }
    lines.extend(report.check("top-1 agreement").map(|check| format!("same next token as before: {}", percent(check.value))));
    Some(Tile { label: format!("Change of {}", change.what), figure: change.figure, lines })
}

/// On one line.
fn unbroken(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}

fn step_row(step: &StageReport) -> StepRow<'_> {
    StepRow {
        name: &step.name,
        parameters: count(step.parameters as f64),
        stored_as: &step.stored_as,
        bytes: bytes(step.bytes),
        ratio: ratio(step.compression_ratio),
        perplexity: step.perplexity.map(|measured| perplexity(measured.value)).unwrap_or_default(),
        score: step.score.map(|measured| percent(measured.value)).unwrap_or_default(),
        memory: step.peak_memory_bytes.map(bytes).unwrap_or_default(),
        // Nothing was made of the original.
        seconds: if step.name == ORIGINAL { String::new() } else { figures::seconds(step.seconds) },
        fingerprint: &step.fingerprint,
    }
}

/// One sentence on what a step did, from what only its kind reports.
fn note(step: &StageReport) -> Result<Option<Note<'_>>, Error> {
    let details = &step.details;
    let text = if let Some(why) = step.not_measured() {
        format!("not measured: {why}")
    } else if details.get("head_unit").is_some() {
        cut(&read(step)?)
    } else if details.get("bits_per_weight").is_some() {
        let report: QuantizationReport = read(step)?;
        let (quantized, dense) = (report.tensors.len(), report.dense.len());
        let mut text =
            format!("{:.2} bits per weight over all; {quantized} tensors quantized, {dense} left dense", report.bits_per_weight);
        if !report.instead.is_empty() {
            text += &format!("; {} not as asked, which the recipe allows", report.instead.len());
        }
        if let Some(short) = report.text.iter().find(|text| text.used < text.asked) {
            text += &format!("; {} of {} tokens of text for {}", whole(short.used), whole(short.asked), short.purpose);
        }
        if let Some(budget) = &report.budget {
            text +=
                &format!("; {}: divergences of the matrices alone sum to {} nats/token", budget.most, figure(budget.kl_sum, ""));
        }
        text += &scaled(&report).map(|scaled| format!("; {scaled}")).unwrap_or_default();
        text + &report.entropy_bytes.map(|coded| format!("; model.entropy {}", bytes(coded))).unwrap_or_default()
    } else if let Some(last) = details.get("last").filter(|last| last.is_object()) {
        let mut parts: Vec<String> =
            details["teacher"].as_str().map(|teacher| format!("teacher {teacher}")).into_iter().collect();
        parts.extend(last["step"].as_u64().map(|steps| format!("{} steps", whole(steps))));
        parts.extend(last["loss"].as_f64().map(|loss| format!("last loss {}", figure(loss, ""))));
        parts.extend(last["kl"].as_f64().map(|kl| format!("last KL {} nats/token", figure(kl, ""))));
        parts.extend(learnt_scales(details));
        parts.join(", ")
    } else {
        return Ok(None);
    };
    Ok(Some(Note { step: &step.name, text }))
}

/// What learning scales brought, on text that they were not learnt from.
fn learnt_scales(details: &Value) -> Option<String> {
    let measured = |key: &str| serde_json::from_value::<Measured>(details[key].clone()).ok();
    let (before, after) = (measured("kl_before")?, measured("kl_after")?);
    let [before_kl, after_kl] = [&before, &after].map(|measured| figure(measured.value, ""));
    let (scales, tokens) = (whole(details["scales"].as_u64()?), whole(after.sample_size));
    Some(format!("{scales} scales: KL {after_kl} after {before_kl} nats/token on {tokens} tokens of the valid split"))
}

/// How many inputs of projections were scaled, and how; `None` where none were to be.
fn scaled(report: &QuantizationReport) -> Option<String> {
    let mut exponents = Vec::new();
    let mut strengths = Vec::new();
    for InputScaling { outcome, .. } in &report.scaling {
        match outcome {
            ScalingOutcome::Awq { exponent, .. } => exponents.push(*exponent),
            ScalingOutcome::SmoothQuant { migration_strength, .. } => strengths.push(*migration_strength),
            ScalingOutcome::Left { .. } => {}
        }
    }
    let of = |scaled: usize| format!("{scaled} of {} inputs scaled", report.scaling.len());
    exponents.sort_by(f64::total_cmp);
    if let [least, .., most] | [least @ most] = exponents.as_slice() {
        let scaled = exponents.iter().filter(|exponent| **exponent > 0.0).count();
        let median = exponents[exponents.len() / 2];
        return Some(format!("{} by AWQ, exponents {least:.2} to {most:.2}, {median:.2} in the middle", of(scaled)));
    }
    let strength = strengths.first()?;
    Some(format!("{} by SmoothQuant, migration strength {strength}", of(strengths.len())))
}

/// What was pruned, and what units were ranked by.
fn cut(cuts: &Cuts) -> String {
    let mut parts = Vec::new();
    parts.extend(cuts.measure.map(|measure| format!("importance by {measure}")));
    let of_layers = |count: fn(&crate::prune::LayerCuts) -> usize| {
        let low = cuts.units.iter().map(count).min().unwrap_or(0);
        let high = cuts.units.iter().map(count).max().unwrap_or(0);
        (high > 0).then(|| if low == high { whole(high as u64) } else { format!("{low} to {high}") })
    };
    let heads = match cuts.head_unit {
        compressor_format::HeadUnit::Group => "GQA groups",
        compressor_format::HeadUnit::Query => "query heads",
    };
    let mut of_each = Vec::new();
    of_each.extend(of_layers(|layer| layer.heads.len()).map(|count| format!("{heads}: {count}")));
    of_each.extend(of_layers(|layer| layer.channels.len()).map(|count| format!("intermediate channels: {count}")));
    if !of_each.is_empty() {
        parts.push(format!("cut from each of {} layers: {}", cuts.units.len(), of_each.join(", ")));
    }
    if !cuts.layers.is_empty() {
        let layers: Vec<String> = cuts.layers.iter().map(usize::to_string).collect();
        parts.push(format!("whole layers cut: {}", layers.join(", ")));
    }
    parts.join("; ")
}

/// What a step reports of its own kind.
fn read<D: serde::de::DeserializeOwned>(step: &StageReport) -> Result<D, Error> {
    serde_json::from_value(step.details.clone()).map_err(|error| Error::Page(format!("details of {}: {error}", step.name)))
}

/// Size against what is left, where at least two models were measured.
fn sizes(report: &Report) -> Result<Option<Sizes>, Error> {
    let has_score = report.stages.iter().filter(|step| step.score.is_some()).count() > 1;
    let measured = |step: &StageReport| if has_score { step.score } else { step.perplexity };
    let mut spots: Vec<Spot> = Vec::new();
    for step in &report.stages {
        let Some(measured) = measured(step).filter(|measured| measured.value.is_finite()) else { continue };
        let number = step.name.split('-').next().unwrap_or_default();
        let spot = Spot { label: number.to_owned(), bytes: step.bytes as f64, quality: measured.value };
        // A verification makes no model: it would hide the step that did.
        if !spots.iter().any(|other| (other.bytes, other.quality) == (spot.bytes, spot.quality)) {
            spots.push(spot);
        }
    }
    if spots.len() < 2 {
        return Ok(None);
    }
    let (quality, svg) = match has_score {
        true => ("score", charts::sizes(&spots, &|score| format!("{:.0} %", 100.0 * score), Scale::Linear)?),
        false => {
            let values: Vec<Bucket> = spots
                .iter()
                .map(|spot| Bucket { step: 0.0, median: spot.quality, low: spot.quality, high: spot.quality })
                .collect();
            ("perplexity", charts::sizes(&spots, &charts::tick, charts::scale(&values))?)
        }
    };
    Ok(Some(Sizes { quality, svg }))
}

fn check_row(check: &Check) -> CheckRow<'_> {
    let (class, symbol, word) = match check.outcome {
        Outcome::Passed => ("passed", "✓", "passed"),
        Outcome::Failed => ("failed", "✗", "failed"),
        Outcome::Undecided => ("undecided", "?", "undecided"),
        Outcome::Measured => ("measured", "–", "measured"),
    };
    let end = |end: Option<f64>| end.map_or_else(|| "unknown".to_owned(), |end| figure(end, &check.unit));
    CheckRow {
        name: &check.name,
        note: check.note.as_deref(),
        value: if check.value.is_finite() { figure(check.value, &check.unit) } else { "not a number".to_owned() },
        unit: if matches!(check.unit.as_str(), "bytes" | "×" | "ms") { "" } else { &check.unit },
        limit: figures::limit(check),
        interval: check.interval.map(|[low, high]| format!("{} to {}", end(low), end(high))).unwrap_or_default(),
        sample: whole(check.sample_size),
        class,
        symbol,
        word,
    }
}

/// Points of a curve: few enough that the median of each tells a trend from noise.
const BUCKETS: usize = 96;

/// The curves of a step; `None` where it trained nothing.
fn training<'a>(report: &Report, folder: &'a Folder) -> Result<Option<Training<'a>>, Error> {
    let Some(curves) = Curves::read(&folder.metrics)? else { return Ok(None) };
    let drawn = |title: &'static str, points: &[Point], from_zero: bool| -> Result<Option<Chart>, Error> {
        let [.., last] = points else { return Ok(None) };
        let buckets = curves::thin(points, BUCKETS);
        let scale = if from_zero { Scale::FromZero } else { charts::scale(&buckets) };
        let mut summary = match from_zero {
            true => format!("median {}", count(median(points))),
            false => format!("{} → {}", charts::short(points[0].value), charts::short(last.value)),
        };
        if scale == Scale::Logarithmic {
            summary += "; logarithmic";
        }
        if points.len() > buckets.len() {
            let steps = points.len().div_ceil(buckets.len());
            summary += &format!("; ≤ {} steps a point", whole(steps as u64));
        }
        Ok(Some(Chart { title, summary, svg: charts::curve(&buckets, scale)? }))
    };
    let charts = [
        drawn("Loss", &curves.loss, false)?,
        drawn("KL from the teacher, nats/token", &curves.kl, false)?,
        drawn("Tokens per second", &curves.speed, true)?,
    ];
    Ok(Some(Training {
        step: &folder.step,
        is_finished: report.stages.iter().any(|step| step.name == folder.step),
        unreadable: curves.unreadable,
        charts: charts.into_iter().flatten().collect(),
    }))
}

fn median(points: &[Point]) -> f64 {
    curves::thin(points, 1)[0].median
}

/// Tensors that are shown at once.
const WORST: usize = 20;

/// The tensors of an artifact; `None` where a step made none.
fn quantized(step: &StageReport) -> Result<Option<Quantized<'_>>, Error> {
    if step.details.get("bits_per_weight").is_none() {
        return Ok(None);
    }
    let report: QuantizationReport = read(step)?;
    let worst_error = report.tensors.iter().map(|tensor| tensor.relative_error).fold(0.0, f64::max);
    let row = |tensor: &TensorReport| TensorRow {
        name: tensor.name.clone(),
        asked: tensor.asked.to_string(),
        got: tensor.got.to_string(),
        differs: tensor.got != tensor.asked,
        bits_per_weight: format!("{:.2}", tensor.bits_per_weight),
        relative_error: figure(tensor.relative_error, ""),
        part: format!("{:.1}", if worst_error > 0.0 { 100.0 * tensor.relative_error / worst_error } else { 0.0 }),
        max_absolute_error: figure(tensor.max_absolute_error, ""),
        output_error: tensor.output_error.map(|error| figure(error, "")).unwrap_or_default(),
        kl: tensor.kl.map(|kl| figure(kl, "")).unwrap_or_default(),
        bytes: bytes(tensor.bytes),
    };
    let mut rows: Vec<TensorRow> = report.tensors.iter().map(row).collect();
    let rest = rows.split_off(rows.len().min(WORST));
    let instead = report.instead.into_iter().map(|Instead { name, asked, got, reason }| InsteadRow {
        name,
        asked: asked.to_string(),
        got: got.to_string(),
        reason,
    });
    let text = |text: &TextUse| TextRow {
        purpose: text.purpose.to_string(),
        used: whole(text.used),
        asked: if text.used < text.asked { whole(text.asked) } else { String::new() },
    };
    let dense = report.dense.into_iter();
    Ok(Some(Quantized {
        step: &step.name,
        bits_per_weight: format!("{:.2}", report.bits_per_weight),
        tensors: report.tensors.len(),
        has_output_error: report.tensors.iter().any(|tensor| tensor.output_error.is_some()),
        has_kl: report.tensors.iter().any(|tensor| tensor.kl.is_some()),
        instead: instead.collect(),
        texts: report.text.iter().map(text).collect(),
        worst: rows,
        rest,
        dense: dense.map(|tensor| DenseRow { name: tensor.name, bytes: bytes(tensor.bytes), reason: tensor.reason }).collect(),
        opens_in: report.opens_in,
    }))
}

/// The hashes in a step's manifest; only artifacts have one.
fn files(folder: &Folder) -> Option<Files<'_>> {
    let manifest = Manifest::read(&folder.folder).ok()?;
    Some(Files { step: &folder.step, inputs: manifest.inputs, files: manifest.files })
}

/// The resolved recipe as TOML, so that it can be run again.
fn recipe(recipe: &Value) -> Result<String, Error> {
    toml::to_string(&without_nulls(recipe)).map_err(|error| Error::Page(format!("the recipe as TOML: {error}")))
}

/// TOML has no null: a key that is not set is not there.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let set = entries.iter().filter(|(_, value)| !value.is_null());
            Value::Object(set.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(without_nulls).collect()),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests;
