//! `export`: an artifact as a GGUF file.

use compressor_format::{GgufReport, InputRounding, Model, write_gguf};
use serde_json::json;

use crate::Output;
use crate::arguments;
use crate::failure::{Ending, Failure};
use crate::out::{self, errln, outln};

pub(crate) fn export(arguments: &arguments::Export, output: Output) -> Result<Ending, Failure> {
    let artifact = match Model::open(&arguments.model)? {
        Model::Artifact(artifact) => artifact,
        Model::Checkpoint(_) => {
            let path = arguments.model.display();
            return Err(anyhow::anyhow!("{path}: holds dense weights, and only artifacts are exported: quantize it first").into());
        }
    };
    let report = write_gguf(&artifact, &arguments.output)?;
    let GgufReport { bytes, tensors, minima, rounded_minima } = &report;
    if output.json {
        out::json(&json!({
            "output": arguments.output.display().to_string(), "bytes": bytes, "tensors": tensors, "minima": minima, "rounded_minima": rounded_minima,
        }))?;
    } else {
        let counts: Vec<String> = tensors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        outln!("tensors  {}", counts.join(", "));
        outln!("bytes    {bytes}");
        if *minima > 0 {
            outln!("minima   {minima} for zero points, {rounded_minima} of them rounded to f16");
        }
    }
    if *artifact.input_rounding() != InputRounding::None {
        errln!("note: INT8 activations are not carried over: GGUF has no word for them, llama.cpp rounds activations as it does");
    }
    errln!("written to {}", arguments.output.display());
    Ok(Ending::Passed)
}
