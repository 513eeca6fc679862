//! Tables and figures as a person reads them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use compressor_format::{ArtifactTensor, Check, InputRounding, Model, Outcome, Report, StageReport};
use compressor_pipeline::Plan;
use compressor_pipeline::figures::{self, bytes, count, figure, percent, perplexity, seconds};
use compressor_pipeline::quantize::{QuantizationReport, instead_lines};
use serde_json::{Value, json};

use crate::about::About;

use crate::out::outln;

/// A table without colours that fits 80 columns.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table
}

/// A table without the margins that its library leaves.
fn print_table(table: &Table) {
    for line in table.to_string().lines() {
        outln!("{}", line.strip_prefix(' ').unwrap_or(line).trim_end());
    }
}

/// Everything but the first column is a figure.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
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
    let mut shown = table(&["step", "from", "parameters", "stored as", "bytes", "memory"]);
    for step in plan.steps() {
        let exact = match (step.output.is_artifact, step.output.is_at_most) {
            (false, _) => "~",
            (true, true) => "≤ ",
            (true, false) => "",
        };
        let beside = step.beside.as_ref().map(|origin| format!(" + {}", plan.name_of(origin))).unwrap_or_default();
        let student = step.student.as_ref().map_or_else(|| plan.name_of(&step.input), |origin| plan.name_of(origin));
        shown.add_row([
            step.name.clone(),
            format!("{student}{beside}"),
            count(step.output.architecture.parameters() as f64),
            match &step.quantization {
                Some(quantization) => format!("{} for {}", step.output.stored_as, quantization.name()),
                None => step.output.stored_as.clone(),
            },
            format!("{exact}{}", step.output.weight_bytes),
            format!("~{}{}", bytes(step.peak_memory_bytes), if step.spilled_bytes > 0 { " + disk" } else { "" }),
        ]);
    }
    align(&mut shown);
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
    outln!("written to {}; ~ is an estimate, artifact bytes are exact", plan.run_folder.display());
    for step in plan.steps().iter().filter(|step| step.spilled_bytes > 0) {
        outln!("{} keeps {} of activations on the disk while it works", step.name, bytes(step.spilled_bytes));
    }
}

/// The report: what each step made, then the checks.
pub(crate) fn report(report: &Report) {
    let has_score = report.stages.iter().any(|step| step.score.is_some());
    let mut header = vec!["step", "parameters", "stored as", "bytes", "ratio", "perplexity"];
    if has_score {
        header.push("score");
    }
    header.push("seconds");
    let mut shown = table(&header);
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
        row.push(seconds(step.seconds));
        shown.add_row(row);
    }
    align(&mut shown);
    print_table(&shown);
    if let Some(reference) = &report.reference {
        // A GGUF file mixes block types; its own bytes are what it costs.
        let packed = reference.name.ends_with(".gguf");
        let stored_as = if packed { "as packed".to_owned() } else { format!("in {}", reference.dtype) };
        outln!("ratio: {} {stored_as}, {} ÷ the step's bytes", reference.name, bytes(reference.bytes));
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
    let mut shown = table(&["check", "value", "limit", "sample", "outcome"]);
    for check in checks {
        shown.add_row([
            check.name.clone(),
            figure(check.value, &check.unit),
            figures::limit(check),
            check.sample_size.to_string(),
            match check.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Undecided => "UNDECIDED",
                Outcome::Measured => "–",
            }
            .to_owned(),
        ]);
    }
    align(&mut shown);
    print_table(&shown);
    for check in checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed | Outcome::Undecided)) {
        if let Some(note) = &check.note {
            outln!("{}: {note}", check.name);
        }
        if let (Outcome::Undecided, Some([low, high])) = (check.outcome, check.interval) {
            let end = |end: Option<f64>| end.map_or_else(|| "unknown".to_owned(), |end| format!("{end:.4}"));
            outln!("{}: 95 % interval {} to {}; a larger sample would decide", check.name, end(low), end(high));
        }
    }
}

/// The plan for scripts.
pub(crate) fn plan_json(plan: &Plan) -> Value {
    let steps = plan.steps().iter().map(|step| {
        json!({
            "name": step.name, "parameters": step.output.architecture.parameters(), "stored_as": step.output.stored_as,
            "bytes": step.output.weight_bytes, "bytes_are_exact": step.output.is_artifact && !step.output.is_at_most,
            "instead": step.instead, "peak_memory_bytes": step.peak_memory_bytes, "spilled_bytes": step.spilled_bytes,
            "folder": step.folder,
        })
    });
    json!({ "run_folder": plan.run_folder, "stages": steps.collect::<Vec<_>>() })
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
