//! The page as a reader of XML sees it.

#![allow(clippy::unwrap_used)]

use compressor_format::{DenseTensor, Dtype, HeadUnit, Method, OpensIn, Recipe, Reference, Scheme, Threshold};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::json;

use super::*;
use crate::prune::{LayerCuts, Measure};
use crate::quantize::{TextPurpose, Treatment};

/// Text that would change the page if it were not escaped.
const HOSTILE: &str = "</pre><script>alert(\"1\")</script> & 'x'";

const RECIPE: &str = r#"
name = "sample"
dataset = "DATASET"
[model]
path = "assets/teacher"
[[stage]]
[stage.distill]
steps = 3
learning_rate = 1e-4
[[stage]]
[stage.prune]
channel_ratio = 0.25
[[stage]]
[stage.quantize]
bits = 4
[[stage]]
[stage.verify]
kl_mean = 0.05
"#;

fn step(name: &str, bytes: u64, perplexity: f64, details: Value) -> StageReport {
    StageReport {
        name: name.to_owned(),
        fingerprint: format!("fingerprint of {name}"),
        parameters: 1000,
        bytes,
        stored_as: "f32".to_owned(),
        compression_ratio: 4000.0 / bytes as f64,
        perplexity: Some(Measured { value: perplexity, sample_size: 500 }),
        score: None,
        seconds: 1.0,
        peak_memory_bytes: None,
        details,
    }
}

fn quantization(tensors: usize) -> QuantizationReport {
    let scheme = Scheme { bits: 4, group_size: Some(32), symmetric: true }.into();
    let asked = Treatment::Quantized { scheme, method: Method::Gptq };
    let tensor = |index: usize| TensorReport {
        name: format!("layers.{index}.{HOSTILE}"),
        scheme,
        asked,
        got: asked,
        weights: 100,
        bytes: 60,
        bits_per_weight: 4.8,
        mean_squared_error: 1e-6,
        relative_error: 0.01 / (index + 1) as f64,
        max_absolute_error: 0.1,
        output_error: None,
        output_error_rounded_to_nearest: None,
        input_scale: None,
        kl: None,
    };
    QuantizationReport {
        artifact_bytes: 500,
        bits_per_weight: 4.5,
        tensors: (0..tensors).map(tensor).collect(),
        dense: vec![DenseTensor { name: "norm".to_owned(), bytes: 20, reason: HOSTILE.to_owned() }],
        instead: Vec::new(),
        text: Vec::new(),
        opens_in: vec![OpensIn { program: "compressor".to_owned(), opens: true, reason: "made here".to_owned() }],
        scaling: Vec::new(),
        budget: None,
        entropy_bytes: None,
    }
}

/// A report with every kind of step and every outcome.
fn report() -> Report {
    let recipe = Recipe::from_toml(&RECIPE.replace("\"DATASET\"", &json!(HOSTILE).to_string())).unwrap();
    let cuts = Cuts {
        measure: Some(Measure::Activation { tokens: 4096 }),
        head_unit: HeadUnit::Group,
        layers: vec![2],
        units: (0..2).map(|layer| LayerCuts { layer, heads: Vec::new(), channels: vec![1, 5, 7] }).collect(),
    };
    let losses = json!({ "last": { "step": 3, "loss": 0.5, "kl": 0.25 }, "teacher": HOSTILE });
    Report {
        format_version: 1,
        tool_version: "9.8.7".to_owned(),
        name: HOSTILE.to_owned(),
        recipe: serde_json::to_value(recipe).unwrap(),
        reference: Some(Reference { name: HOSTILE.to_owned(), dtype: Dtype::F32, bytes: 4000 }),
        machine: compressor_format::Machine { processor: HOSTILE.to_owned(), threads: 2, platform: "here".to_owned() },
        stages: vec![
            step("1-distill", 4000, 10.0, losses),
            step("2-prune", 3000, 30.0, serde_json::to_value(cuts).unwrap()),
            step("3-quantize", 500, 31.0, serde_json::to_value(quantization(23)).unwrap()),
            step("4-verify", 500, 31.0, Value::Null),
        ],
        checks: vec![
            Check::new("kept", 0.01, "nats/token", Some(Threshold::AtMost(0.05)), 1234, Some([0.005, 0.015])),
            Check::new("broken", 9e6, "bytes", Some(Threshold::AtMost(1e6)), 1, None).note(HOSTILE),
            Check::new("open", 0.04, "", Some(Threshold::AtMost(0.05)), 7, Some([0.01, 0.09])),
            Check::new("perplexity increase", 0.033, "", None, 500, Some([0.02, f64::INFINITY])),
            Check::new("unknown", f64::NAN, "ms", Some(Threshold::AtMost(1.0)), 0, None),
        ],
        passed: Some(false),
    }
}

fn parsed(html: &str) -> Document<'_> {
    let document = Document::parse_with_options(html, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() });
    document.unwrap_or_else(|error| panic!("{error}\n{html}"))
}

/// The text of every cell of the tables of a class, row by row, without their headers.
fn rows(document: &Document<'_>, class: &str) -> Vec<Vec<String>> {
    let tables = document.descendants().filter(|node| node.has_tag_name("table") && node.attribute("class") == Some(class));
    let bodies = tables.flat_map(|table| table.children().filter(|node| node.has_tag_name("tbody")));
    let rows = bodies.flat_map(|body| body.children().filter(Node::is_element)).collect::<Vec<_>>();
    rows.into_iter().map(|row| row.children().filter(Node::is_element).map(text).collect()).collect()
}

fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect()
}

fn count_of(document: &Document<'_>, tag: &str) -> usize {
    document.descendants().filter(|node| node.is_element() && node.tag_name().name() == tag).count()
}

fn folder_with_losses(step: &str, text: &str) -> (tempfile::TempDir, Folder) {
    let folder = tempfile::tempdir().unwrap();
    let metrics = folder.path().join("metrics.jsonl");
    fs_err::write(&metrics, text).unwrap();
    let folder_of_step = folder.path().to_owned();
    (folder, Folder { step: step.to_owned(), metrics, folder: folder_of_step })
}

fn losses(steps: u64) -> String {
    let line =
        |step: u64| format!("{{\"step\":{step},\"loss\":{},\"kl\":0.5,\"tokens\":64,\"seconds\":0.25}}\n", 40.0 / step as f64);
    (1..=steps).map(line).collect()
}

#[test]
fn every_step_check_and_tensor_has_its_row() {
    let report = report();
    let html = html(&report, &[]).unwrap();
    let document = parsed(&html);
    let names = |class: &str| rows(&document, class).into_iter().map(|mut row| row.remove(0)).collect::<Vec<_>>();
    assert_eq!(names("steps"), ["1-distill", "2-prune", "3-quantize", "4-verify"]);
    assert_eq!(names("fingerprints"), names("steps"));
    let broken = format!("broken{HOSTILE}");
    assert_eq!(names("checks"), ["keptnats/token", &broken, "open", "perplexity increase", "unknown"]);
    assert_eq!((names("tensors").len(), names("dense").len(), names("programs")), (23, 1, vec!["compressor".to_owned()]));
    assert_eq!(names("tensors")[0], format!("layers.0.{HOSTILE}"), "worst first");
    let outcomes: Vec<String> = rows(&document, "checks").into_iter().map(|mut row| row.remove(1)).collect();
    assert_eq!(outcomes, ["✓ passed", "✗ failed", "? undecided", "– measured", "✗ failed"], "told apart without colour");
    assert_eq!(rows(&document, "checks")[0][2..], ["0.0100", "≤ 0.0500", "0.0050 to 0.0150", "1,234"]);
    assert_eq!(rows(&document, "checks")[3][4], "0.0200 to unknown");
    assert_eq!(rows(&document, "checks")[4][2], "not a number");
    assert_eq!(rows(&document, "steps")[2], ["3-quantize", "1000", "f32", "500 B", "8.00×", "31.000", "", "1.0"]);
}

#[test]
fn the_first_twenty_tensors_are_shown_and_the_rest_is_folded_away() {
    let html = html(&report(), &[]).unwrap();
    let document = parsed(&html);
    let is_folded = |node: &Node<'_, '_>| node.ancestors().any(|node| node.has_tag_name("details"));
    let tables: Vec<Node<'_, '_>> = document.descendants().filter(|node| node.attribute("class") == Some("tensors")).collect();
    let sizes: Vec<(bool, usize)> = tables
        .iter()
        .map(|table| (is_folded(table), table.descendants().filter(|node| node.has_tag_name("tr")).count() - 1))
        .collect();
    assert_eq!(sizes, [(false, 20), (true, 3)]);
}

#[test]
fn what_a_user_can_name_is_text_and_never_markup() {
    let (_keep, folder) = folder_with_losses("1-distill", &losses(3));
    let html = html(&report(), &[folder]).unwrap();
    let document = parsed(&html);
    assert_eq!(count_of(&document, "script"), 0);
    assert!(!html.contains("<script"), "the bytes say the same");
    let title = document.descendants().find(|node| node.has_tag_name("title")).unwrap();
    assert_eq!(text(title), format!("{HOSTILE}: failed"));
    let recipe = text(document.descendants().find(|node| node.has_tag_name("pre")).unwrap());
    let again = Recipe::from_toml(&recipe).unwrap();
    assert_eq!(again.dataset.unwrap(), Path::new(HOSTILE));
}

#[test]
fn the_recipe_on_the_page_is_the_one_that_ran() {
    let report = report();
    let html = html(&report, &[]).unwrap();
    let shown = text(parsed(&html).descendants().find(|node| node.has_tag_name("pre")).unwrap());
    let again = Recipe::from_toml(&shown).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), report.recipe);
}

#[test]
fn nothing_is_fetched_and_the_same_report_gives_the_same_bytes() {
    let (_keep, folder) = folder_with_losses("1-distill", &losses(500));
    let folders = [folder];
    let once = html(&report(), &folders).unwrap();
    assert_eq!(once, html(&report(), &folders).unwrap());
    let document = parsed(&once);
    for tag in ["script", "link", "img", "iframe", "object", "base"] {
        assert_eq!(count_of(&document, tag), 0, "{tag}");
    }
    for attribute in document.descendants().flat_map(|node| node.attributes()) {
        assert!(!["src", "href", "srcset", "onload"].contains(&attribute.name()), "{attribute:?}");
    }
    assert!(!once.contains("url(") && !once.contains("@import"), "the style needs no other file");
}

#[test]
fn every_colour_of_a_chart_has_its_name_in_the_style() {
    let (_keep, folder) = folder_with_losses("1-distill", &losses(500));
    let html = html(&report(), &[folder]).unwrap();
    let document = parsed(&html);
    let style = text(document.descendants().find(|node| node.has_tag_name("style")).unwrap());
    let svgs = document.descendants().filter(|node| node.tag_name().name() == "svg");
    let mut colours = 0;
    for node in svgs.flat_map(|svg| svg.descendants()) {
        for name in ["fill", "stroke"] {
            if let Some(colour) = node.attribute(name).filter(|colour| *colour != "none") {
                assert!(style.contains(&format!("[{name}=\"{colour}\"]")), "{name} {colour} stays the same in the dark");
                colours += 1;
            }
        }
    }
    assert!(colours > 50, "{colours}");
}

#[test]
fn a_run_that_is_not_finished_shows_what_there_is() {
    let mut report = report();
    report.stages.truncate(1);
    report.checks.clear();
    report.passed = None;
    let torn = losses(5) + "{\"step\":6,\"lo";
    let (_keep, folder) = folder_with_losses("2-distill", &torn);
    let html_of_it = html(&report, &[folder]).unwrap();
    let document = parsed(&html_of_it);
    let shown = text(document.root_element());
    assert!(shown.contains("unfinished 1 of 4 steps are finished"), "{shown}");
    assert!(shown.contains("2-distill (unfinished)"), "{shown}");
    assert!(shown.contains("1 line of 2-distill/metrics.jsonl could not be read; the rest is drawn."), "{shown}");
    assert_eq!(count_of(&document, "svg"), 3, "loss, KL and speed of five steps");

    report.stages.clear();
    report.reference = None;
    let nothing = html(&report, &[]).unwrap();
    assert!(text(parsed(&nothing).root_element()).contains("No step is finished."));
}

#[test]
fn the_verdict_names_what_failed_and_what_is_undecided() {
    let mut report = report();
    let said = |report: &Report| {
        let verdict = verdict(report);
        (verdict.word, verdict.sentence)
    };
    let sentence = "beyond their limits: broken; unknown; undecided, the sample is too small: open";
    assert_eq!(said(&report), ("failed", sentence.to_owned()));
    report.checks.retain(|check| check.passed || check.outcome == Outcome::Undecided);
    report.passed = Some(true);
    assert_eq!(said(&report), ("passed", "no limit is broken; undecided, which the recipe allows: open".to_owned()));
    report.checks.retain(|check| check.passed);
    assert_eq!(said(&report), ("passed", "its one limit is kept".to_owned()));
    report.passed = None;
    assert_eq!(said(&report), ("not verified", "the recipe verifies nothing".to_owned()));
}

#[test]
fn what_was_lost_is_against_the_first_model_where_the_chain_made_it() {
    let mut report = report();
    let change = |report: &Report| {
        let tile = tiles(report).unwrap().pop().unwrap();
        (tile.label, tile.figure, tile.lines)
    };
    // The chain starts with a checkpoint that no step measured: only quantizing has a before and an after.
    assert_eq!(change(&report), ("Change of perplexity".to_owned(), "+3.30 %".to_owned(), vec!["by quantizing".to_owned()]));
    report.reference.as_mut().unwrap().name = "1-distill".to_owned();
    let lines = vec!["since 1-distill (10.000)".to_owned(), "by quantizing alone +3.30 %".to_owned()];
    assert_eq!(change(&report), ("Change of perplexity".to_owned(), "+210.00 %".to_owned(), lines));
    for (step, score) in report.stages.iter_mut().zip([0.97, 0.5, 0.96, 0.9635]) {
        step.score = Some(Measured { value: score, sample_size: 2000 });
    }
    report.checks.push(Check::new("score lost", 0.002, "", None, 2000, None));
    let lines = vec!["since 1-distill (97.0 %)".to_owned(), "by quantizing alone −0.20 points".to_owned()];
    assert_eq!(change(&report), ("Change of score".to_owned(), "−0.65 points".to_owned(), lines));
}

#[test]
fn notes_say_what_units_were_ranked_by() {
    let report = report();
    let notes: Vec<String> = report.stages.iter().filter_map(|step| note(step).unwrap()).map(|note| note.text).collect();
    assert_eq!(
        notes,
        [
            format!("teacher {HOSTILE}, 3 steps, last loss 0.5000, last KL 0.2500 nats/token"),
            "importance by activation on 4096 tokens; cut from each of 2 layers: intermediate channels: 3; whole layers cut: 2"
                .to_owned(),
            "4.50 bits per weight over all; 23 tensors quantized, 1 left dense".to_owned(),
        ]
    );
}

#[test]
fn the_note_of_a_quantization_says_how_inputs_were_scaled() {
    let divided = || "norm".to_owned();
    let awq = |exponent| ScalingOutcome::Awq { divided: divided(), exponent, error: 0.1, error_unscaled: 0.2 };
    let smoothquant = || ScalingOutcome::SmoothQuant { divided: divided(), migration_strength: 0.5 };
    let left = || ScalingOutcome::Left { reason: "a reason".to_owned() };
    let told = |outcomes: Vec<ScalingOutcome>| {
        let scaling = outcomes.into_iter().map(|outcome| InputScaling { tensors: Vec::new(), outcome }).collect();
        scaled(&QuantizationReport { scaling, ..quantization(1) })
    };
    assert_eq!(told(Vec::new()), None);
    let expected = "3 of 5 inputs scaled by AWQ, exponents 0.00 to 0.95, 0.45 in the middle";
    assert_eq!(told(vec![awq(0.45), left(), awq(0.95), awq(0.0), awq(0.3)]).as_deref(), Some(expected));
    let expected = "1 of 1 inputs scaled by AWQ, exponents 0.50 to 0.50, 0.50 in the middle";
    assert_eq!(told(vec![awq(0.5)]).as_deref(), Some(expected));
    let expected = "2 of 3 inputs scaled by SmoothQuant, migration strength 0.5";
    assert_eq!(told(vec![smoothquant(), left(), smoothquant()]).as_deref(), Some(expected));

    let mut report = report();
    report.stages[2].details["scaling"] =
        serde_json::to_value([InputScaling { tensors: Vec::new(), outcome: smoothquant() }]).unwrap();
    let expected = "4.50 bits per weight over all; 23 tensors quantized, 1 left dense; 1 of 1 inputs scaled by SmoothQuant, migration \
                    strength 0.5";
    assert_eq!(note(&report.stages[2]).unwrap().unwrap().text, expected);
}

#[test]
fn a_long_training_is_thinned_and_the_page_says_so() {
    let (_keep, folder) = folder_with_losses("1-distill", &losses(100_000));
    let long = html(&report(), &[folder]).unwrap();
    let (_keep, folder) = folder_with_losses("1-distill", &losses(96));
    let short = html(&report(), &[folder]).unwrap();
    assert!(long.len() < short.len() + 20_000, "{} and {} bytes", long.len(), short.len());
    assert!(long.contains("; ≤ 1,042 steps a point"));
    assert!(!short.contains("steps a point"));
}

#[test]
fn saving_replaces_the_page_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    save(&report(), &[], folder.path()).unwrap();
    save(&report(), &[], folder.path()).unwrap();
    let names: Vec<_> = fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["report.html"]);
}

#[test]
fn what_was_taken_instead_is_shown_with_what_was_asked_and_why() {
    let mut report = report();
    let mut of = quantization(2);
    let scheme = of.tensors[1].scheme;
    let (asked, nearest) = (of.tensors[1].asked, Treatment::Quantized { scheme, method: Method::RoundToNearest });
    (of.tensors[1].got, of.tensors[1].output_error, of.tensors[1].kl) = (nearest, Some(0.25), Some(0.5));
    of.instead = vec![
        Instead { name: "a".to_owned(), asked, got: Treatment::Dense, reason: HOSTILE.to_owned() },
        Instead { name: of.tensors[1].name.clone(), asked, got: nearest, reason: "a reason".to_owned() },
        Instead { name: "c".to_owned(), asked, got: Treatment::Dense, reason: "another".to_owned() },
    ];
    of.text = vec![
        TextUse { purpose: TextPurpose::MeasuringKl, asked: 512, used: 512 },
        TextUse { purpose: TextPurpose::Quantizing, asked: 65_536, used: 1536 },
    ];
    let lines = [
        format!("dense instead of INT4 g32 GPTQ: `a`, and 1 more: {HOSTILE}"),
        format!("INT4 g32 to nearest instead of INT4 g32 GPTQ: `{}`: a reason", of.tensors[1].name),
        "text for quantizing: 1536 tokens instead of 65536: the train split has no more whole windows".to_owned(),
    ];
    assert_eq!(of.taken_instead(), lines);
    report.stages[2].details = serde_json::to_value(of).unwrap();
    let expected = "4.50 bits per weight over all; 2 tensors quantized, 1 left dense; 3 not as asked, which the recipe allows; 1,536 of \
                    65,536 tokens of text for quantizing";
    assert_eq!(note(&report.stages[2]).unwrap().unwrap().text, expected);
    let html = html(&report, &[]).unwrap();
    let document = parsed(&html);
    assert_eq!(rows(&document, "instead")[0], ["a", "INT4 g32 GPTQ", "dense", HOSTILE]);
    let second = format!("layers.1.{HOSTILE}");
    let expected = [&second, "INT4 g32 GPTQ", "INT4 g32 to nearest", "4.80", "0.0050", "0.2500", "0.5000", "0.1000", "60 B"];
    assert_eq!(rows(&document, "tensors")[1], expected);
    let shown = text(document.root_element());
    let expected = "Calibration text: 512 tokens for measuring KL; 1,536 tokens (asked: 65,536) for quantizing.";
    assert!(shown.contains(expected), "{shown}");
}
