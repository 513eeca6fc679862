//! Tables and figures as a person reads them.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use compressor_format::{
    ArtifactTensor, ByteSize, Check, InputRounding, Limit, Model, ORIGINAL, Outcome, Report, Stage, StageReport,
};
use compressor_pipeline::figures::{self, bytes, count, figure, percent, perplexity, seconds, whole};
use compressor_pipeline::quantize::{QuantizationReport, instead_lines};
use compressor_pipeline::{Change, Origin, Plan};
use serde_json::{Value, json};

use crate::about::About;
use crate::out::{self, Colour, outln};

/// Columns that every line of a table fits in, as terminals have them at least.
const COLUMNS: u16 = 80;

/// A table whose figures stand on the right, and of which `texts`, by index, are columns that are broken into lines where all is too wide.
fn table(header: &[&str], texts: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // Its library leaves a margin on each side.
    table.set_width(COLUMNS + 2).set_header(header.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        if !texts.contains(&index) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A row of other people's names and our figures.
fn add_row(table: &mut Table, cells: impl IntoIterator<Item = String>) {
    table.add_row(cells.into_iter().map(|cell| out::escaped(&cell).into_owned()));
}

/// The lines of a table without the margins that its library leaves.
fn lines(table: &Table) -> Vec<String> {
    let text = table.to_string();
    text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned()).collect()
}

fn print_table(table: &Table) {
    for line in lines(table) {
        outln!("{line}");
    }
}

/// One line on what a step made.
pub(crate) fn step_line(step: &StageReport) -> String {
    let mut parts = vec![format!("{} parameters", count(step.parameters as f64)), bytes(step.bytes)];
    parts.extend(step.perplexity.map(|measured| format!("perplexity {}", perplexity(measured.value))));
    parts.extend(step.score.map(|score| format!("score {}", percent(score.value))));
    parts.push(format!("{} s", seconds(step.seconds)));
    parts.join(", ")
}

/// What a step took instead of what was asked for, a line for each kind.
pub(crate) fn taken_instead(step: &StageReport) -> Vec<String> {
    // Only what quantizes has this; details of other steps are none of such a report.
    serde_json::from_value::<QuantizationReport>(step.details.clone()).map(|report| report.taken_instead()).unwrap_or_default()
}

/// The plan's steps.
pub(crate) fn plan(plan: &Plan) {
    let mut shown = table(&["step", "from", "params", "stored as", "bytes", "memory"], &[1, 3]);
    for step in plan.steps() {
        let weight_bytes = match (step.output.is_artifact, step.output.is_at_most) {
            (false, _) => format!("~{}", bytes(step.output.weight_bytes)),
            (true, true) => format!("≤ {}", whole(step.output.weight_bytes)),
            (true, false) => whole(step.output.weight_bytes),
        };
        let beside = step.beside.as_ref().map(|origin| format!(" + {}", short_name(plan, origin))).unwrap_or_default();
        let student = short_name(plan, step.student.as_ref().unwrap_or(&step.input));
        let cells = [
            step.name.clone(),
            format!("{student}{beside}"),
            count(step.output.architecture.parameters() as f64),
            match &step.quantization {
                Some(quantization) => format!("{} for {}", step.output.stored_as, quantization.name()),
                None => step.output.stored_as.clone(),
            },
            weight_bytes,
            format!("~{}", bytes(step.peak_memory_bytes)),
        ];
        add_row(&mut shown, cells);
    }
    if let Some(column) = shown.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    print_table(&shown);
    for step in plan.steps() {
        for line in instead_lines(&step.instead) {
            outln!("{}: {line}", step.name);
        }
    }
    outln!();
    if let Origin::Path(path) = &plan.start {
        outln!("model: {}", path.display());
    }
    outln!("will be written to {}; ~ is an estimate, artifact bytes are exact", plan.run_folder.display());
    if let Some(artifact) = plan.steps().iter().rfind(|step| step.output.is_artifact && !matches!(step.stage, Stage::Verify(_))) {
        let allowed = plan.recipe.budget.artifact_bytes.map(|ByteSize(most)| format!(", the budget allows {}", whole(most)));
        let all = whole(artifact.output.folder_bytes());
        outln!("{}: ~{all} bytes in all files{}", artifact.name, allowed.unwrap_or_default());
    }
    for step in plan.steps().iter().filter(|step| step.spilled_bytes > 0) {
        outln!("{} keeps {} of activations on the disk while it works", step.name, bytes(step.spilled_bytes));
    }
}

/// The report: what each step made, then the checks.
pub(crate) fn report(report: &Report) {
    let has_score = report.stages.iter().any(|step| step.score.is_some());
    let mut header = vec!["step", "params", "stored as", "bytes", "ratio", "perplexity"];
    if has_score {
        header.push("score");
    }
    header.push("seconds");
    let mut shown = table(&header, &[2]);
    for step in &report.stages {
        let mut row = vec![
            step.name.clone(),
            count(step.parameters as f64),
            step.stored_as.clone(),
            bytes(step.bytes),
            figures::ratio(step.compression_ratio),
            step.perplexity.map(|measured| perplexity(measured.value)).unwrap_or_default(),
        ];
        if has_score {
            row.push(step.score.map(|score| percent(score.value)).unwrap_or_default());
        }
        // Nothing was made of the original.
        row.push(if step.name == ORIGINAL { String::new() } else { seconds(step.seconds) });
        add_row(&mut shown, row);
    }
    print_table(&shown);
    if let Some(reference) = &report.reference {
        // A GGUF file mixes block types; its own bytes are what it costs.
        let packed = reference.name.ends_with(".gguf");
        let stored_as = if packed { "as packed".to_owned() } else { format!("in {}", reference.dtype) };
        outln!("ratio: {} {stored_as}, {} ÷ the step's bytes", reference.name, bytes(reference.bytes));
    }
    if let Some(Change { what, figure, since, by_quantizing }) = Change::of(report) {
        let label = format!("change of {what}: ");
        match since {
            Some((name, before)) => outln!("{label}{figure} since {name} ({before})"),
            None => outln!("{label}{figure} by quantizing"),
        }
        if let Some(change) = by_quantizing {
            outln!("{:1$}{change} by quantizing alone", "", label.len());
        }
    }
    if let Some(why) = report.original().and_then(StageReport::not_measured) {
        outln!("{ORIGINAL}: not measured: {why}");
    }
    for step in &report.stages {
        for line in taken_instead(step) {
            outln!("{}: {line}", step.name);
        }
    }
    if !report.checks.is_empty() {
        outln!();
        checks(&report.checks);
    }
}

/// One line a check.
pub(crate) fn checks(checks: &[Check]) {
    let mut shown = table(&["check", "value", "limit", "sample", "outcome"], &[0]);
    for check in checks {
        let cells = [
            check.name.clone(),
            figure(check.value, &check.unit),
            figures::limit(check),
            whole(check.sample_size),
            word(check.outcome).0.to_owned(),
        ];
        add_row(&mut shown, cells);
    }
    for line in lines(&shown) {
        let outcomes = [Outcome::Undecided, Outcome::Failed, Outcome::Passed].map(word);
        match outcomes.into_iter().find(|(word, _)| line.ends_with(word)) {
            Some((word, colour)) => out::verdict_line(&line, word, colour),
            None => outln!("{line}"),
        }
    }
    for check in checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed | Outcome::Undecided)) {
        if let Some(note) = &check.note {
            outln!("{}: {note}", check.name);
        }
        if let (Outcome::Undecided, Some([low, high])) = (check.outcome, check.interval) {
            let end = |end: Option<f64>| end.map_or_else(|| "unknown".to_owned(), |end| format!("{end:.4}"));
            outln!("{}: 95 % interval {} to {}; a larger sample would decide", check.name, end(low), end(high));
        }
    }
    if let Some(verdict) = verdict(checks) {
        outln!("{verdict}");
    }
}

fn word(outcome: Outcome) -> (&'static str, Colour) {
    match outcome {
        Outcome::Passed => ("passed", Colour::Green),
        Outcome::Failed => ("FAILED", Colour::Red),
        Outcome::Undecided => ("UNDECIDED", Colour::Yellow),
        Outcome::Measured => ("–", Colour::Green),
    }
}

/// How many limits are kept, and by how much the others are exceeded; nothing where there is no limit.
fn verdict(checks: &[Check]) -> Option<String> {
    let with = |outcome: Outcome| checks.iter().filter(move |check| check.outcome == outcome);
    let limits = checks.iter().filter(|check| check.outcome != Outcome::Measured).count();
    let exceeded: Vec<String> = with(Outcome::Failed).map(by_how_much).collect();
    let undecided: Vec<&str> = with(Outcome::Undecided).map(|check| check.name.as_str()).collect();
    let of = |count: usize| format!("{count} of {limits} {}", if limits == 1 { "limit" } else { "limits" });
    let mut said = Vec::new();
    if !exceeded.is_empty() {
        said.push(format!("{} exceeded: {}", of(exceeded.len()), exceeded.join(", ")));
    }
    if !undecided.is_empty() {
        said.push(format!("{} undecided: {}", of(undecided.len()), undecided.join(", ")));
    }
    match (limits, said.is_empty()) {
        (0, _) => None,
        (_, false) => Some(said.join("; ")),
        (1, true) => Some("the limit is kept".to_owned()),
        (_, true) => Some(format!("all {limits} limits are kept")),
    }
}

/// A check that failed, and how far its value is beyond its limit.
fn by_how_much(check: &Check) -> String {
    let (name, threshold) = (&check.name, check.threshold.unwrap_or(f64::NAN));
    let beyond = figure((check.value - threshold).abs(), &check.unit);
    match check.limit {
        _ if !check.value.is_finite() => format!("{name}, which has no value"),
        Some(Limit::AtLeast) => format!("{name} too small by {beyond}"),
        Some(Limit::AtMost) | None => format!("{name} by {beyond}"),
    }
}

/// What a model is called in a table: the step, `model` where the chain starts, or the last part of a path.
fn short_name(plan: &Plan, origin: &Origin) -> String {
    match origin {
        Origin::Path(_) if *origin == plan.start => "model".to_owned(),
        Origin::Path(path) => path.file_name().map_or_else(|| plan.name_of(origin), |name| name.to_string_lossy().into_owned()),
        Origin::New(_) | Origin::Step(_) => plan.name_of(origin),
    }
}

/// The plan for scripts.
pub(crate) fn plan_json(plan: &Plan) -> Value {
    let steps = plan.steps().iter().map(|step| {
        json!({
            "name": step.name, "parameters": step.output.architecture.parameters(), "stored_as": step.output.stored_as,
            "bytes": step.output.weight_bytes, "folder_bytes": step.output.folder_bytes(), "bytes_are_exact": step.output.is_artifact && !step.output.is_at_most,
            "instead": step.instead, "peak_memory_bytes": step.peak_memory_bytes, "spilled_bytes": step.spilled_bytes,
            "folder": step.folder.display().to_string(),
        })
    });
    json!({ "run_folder": plan.run_folder.display().to_string(), "stages": steps.collect::<Vec<_>>() })
}

/// How the tensors of a model are stored: scheme, tensors, weights; in the order they are first met.
fn schemes(model: &Model) -> Vec<(String, usize, u64)> {
    let stored: Vec<(String, u64)> = match model {
        Model::Checkpoint(checkpoint) => checkpoint.stored().into_iter().map(|stored| (stored.kind, stored.weights)).collect(),
        Model::Artifact(artifact) => artifact.stored().map(|(_, tensor)| scheme(tensor)).collect(),
    };
    let mut schemes: Vec<(String, usize, u64)> = Vec::new();
    for (scheme, weights) in stored {
        match schemes.iter_mut().find(|(known, ..)| *known == scheme) {
            Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + weights),
            None => schemes.push((scheme, 1, weights)),
        }
    }
    schemes
}

fn scheme(tensor: &ArtifactTensor) -> (String, u64) {
    match tensor {
        ArtifactTensor::Quantized(matrix) => (matrix.scheme.to_string(), (matrix.rows * matrix.columns) as u64),
        ArtifactTensor::Codebooks(matrix) => (matrix.codebooks.to_string(), (matrix.rows * matrix.columns) as u64),
        ArtifactTensor::Dense(slice) => (format!("dense {}", slice.dtype), slice.shape.iter().product::<usize>() as u64),
    }
}

/// A model for scripts.
pub(crate) fn model_json(model: &Model) -> anyhow::Result<Value> {
    let schemes = schemes(model).into_iter();
    let stored = schemes.map(|(scheme, tensors, weights)| json!({ "scheme": scheme, "tensors": tensors, "weights": weights }));
    let mut shown = json!({
        "architecture": model.architecture(), "parameters": model.architecture().parameters(), "bytes": model.weight_bytes()?,
        "stored": stored.collect::<Vec<_>>(),
    });
    for (key, value) in About::of(model)?.json() {
        shown[key] = value;
    }
    Ok(shown)
}

/// What a model is made of and which programs open it.
pub(crate) fn model(model: &Model, tensors: bool) -> anyhow::Result<()> {
    let architecture = model.architecture();
    let layer = architecture.layers[0];
    outln!("family        {}", architecture.family.model_type());
    outln!("parameters    {} ({})", architecture.parameters(), count(architecture.parameters() as f64));
    outln!("bytes         {}", bytes(model.weight_bytes()?));
    outln!("vocabulary    {}", architecture.vocab_size);
    outln!("width         {} in {} layers", architecture.hidden_size, architecture.layers.len());
    outln!("attention     {} heads of width {} in {} groups", layer.heads, architecture.head_dim, layer.kv_heads);
    outln!("MLP           {} channels", layer.intermediate_size);
    outln!("embedding     {}", if architecture.tied_embeddings { "tied with the head" } else { "apart from the head" });
    let about = About::of(model)?;
    outln!("context       {} tokens", about.context);
    outln!("positions     {}", about.positions);
    match &about.tokenizer {
        Ok((kind, tokens)) => outln!("tokenizer     {kind}, {tokens} tokens"),
        Err(error) => outln!("tokenizer     none: {error}"),
    }
    outln!("chat template {}", if about.has_chat_template { "yes" } else { "none" });
    for (scheme, count_of, weights) in schemes(model) {
        outln!("stored as     {scheme}: {count_of} tensors, {} weights", count(weights as f64));
    }
    outln!("bits a weight {:.2}", about.bits_per_weight);
    if let Model::Artifact(artifact) = model {
        match artifact.input_rounding() {
            InputRounding::None => {}
            InputRounding::PerToken => outln!("activations   INT8, per token, as it runs"),
            InputRounding::Static(_) => outln!("activations   INT8, one stored scale for each projection"),
        }
    }
    match &about.opens_in {
        Ok(readers) => {
            for reader in readers {
                let opens = if reader.opens { "yes" } else { "no" };
                outln!("opens in      {}: {opens}, {}", reader.program, reader.reason);
            }
        }
        Err(error) => outln!("manifest      none: {error}"),
    }
    if tensors {
        match model {
            Model::Checkpoint(_) => {
                for id in architecture.tensors() {
                    outln!("  {id}  {:?}", architecture.shape(id));
                }
            }
            Model::Artifact(artifact) => {
                for (name, tensor) in artifact.stored() {
                    outln!("  {name}  {}", scheme(tensor).0);
                }
            }
        }
    }
    Ok(())
}
