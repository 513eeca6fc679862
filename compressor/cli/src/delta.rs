//! `delta` and `apply`: what changed between two folders, and the second from the first.

use compressor_format::{Delta, write_delta};
use serde_json::json;

use crate::failure::{Ending, Failure};
use crate::out::{self, errln};
use crate::{Output, arguments};

/// Writes what changed.
pub(crate) fn delta(arguments: &arguments::Delta, output: Output) -> Result<Ending, Failure> {
    let arguments::Delta { old, new, output: written } = arguments;
    for folder in [old, new] {
        if !folder.is_dir() {
            return Err(anyhow::anyhow!("{}: is no folder", folder.display()).into());
        }
    }
    let bytes = write_delta(old, new, written)?;
    let new_bytes: u64 = Delta::open(written)?.files().iter().map(|file| file.bytes).sum();
    if output.json {
        out::json(&json!({ "output": written.display().to_string(), "bytes": bytes, "new_bytes": new_bytes }))?;
    }
    let part = 100.0 * bytes as f64 / new_bytes.max(1) as f64;
    errln!("written to {}: {bytes} bytes, {part:.1} % of the {new_bytes} of {}", written.display(), new.display());
    Ok(Ending::Passed)
}

/// Makes the new folder.
pub(crate) fn apply(arguments: &arguments::Apply, output: Output) -> Result<Ending, Failure> {
    let arguments::Apply { old, delta, place } = arguments;
    let delta = Delta::open(delta)?;
    let is_new = delta.apply(old, &place.output, place.force)?;
    let files = delta.files();
    if output.json {
        out::json(&json!({ "output": place.output.display().to_string(), "files": files }))?;
    }
    let (written, count) = (place.output.display(), files.len());
    match is_new {
        true => errln!("written to {written}: {count} files, each with the BLAKE3 that the delta names"),
        false => errln!("{written}: finished before: {count} files, each with the BLAKE3 that the delta names"),
    }
    Ok(Ending::Passed)
}
