//! The engine as firmware has it: no `std`, and the artifact's files inside of the program. `run.sh` names them and builds this.

#![no_std]

use compressor_engine::{Engine, Error, Options, greedy};

/// Bytes at an address where floats can be read in place.
#[repr(C, align(4))]
struct Aligned<Bytes: ?Sized>(Bytes);

static CONFIG: &[u8] = include_bytes!(env!("COMPRESSOR_ARTIFACT_CONFIG", "run.sh sets it to the artifact's config.json"));
static WEIGHTS: &Aligned<[u8]> =
    &Aligned(*include_bytes!(env!("COMPRESSOR_ARTIFACT_WEIGHTS", "run.sh sets it to the artifact's model.safetensors")));

/// Fills `out` with the most likely tokens after `prompt`; returns how many there are.
///
/// # Errors
/// As `Engine::from_bytes` and `greedy`.
pub fn continue_ids(prompt: &[u32], out: &mut [u32]) -> Result<usize, Error> {
    let engine = Engine::from_bytes(CONFIG, &WEIGHTS.0, Options::default())?;
    let ids = greedy(&engine, prompt, out.len(), &[])?;
    out[..ids.len()].copy_from_slice(&ids);
    Ok(ids.len())
}
