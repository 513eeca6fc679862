//! The command as a person uses it.

#![allow(clippy::unwrap_used)]

#[path = "integration/activations.rs"]
mod activations;
#[path = "integration/chain.rs"]
mod chain;
#[path = "integration/command.rs"]
mod command;
#[path = "integration/delta.rs"]
mod delta;
#[cfg(any(feature = "ndarray", feature = "wgpu"))]
#[path = "integration/devices.rs"]
mod devices;
#[path = "integration/documents.rs"]
mod documents;
#[path = "integration/export.rs"]
mod export;
#[cfg(target_os = "linux")]
#[path = "integration/faults.rs"]
mod faults;
#[path = "integration/folders.rs"]
mod folders;
#[path = "integration/generate.rs"]
mod generate;
#[path = "integration/layers.rs"]
mod layers;
#[path = "integration/measurements.rs"]
mod measurements;
#[path = "integration/parity.rs"]
mod parity;
#[cfg(unix)]
#[path = "integration/paths.rs"]
mod paths;
#[path = "integration/quantization_aware.rs"]
mod quantization_aware;
#[path = "integration/refusals.rs"]
mod refusals;
#[path = "integration/streams.rs"]
mod streams;
#[path = "integration/supply_chain.rs"]
mod supply_chain;
#[path = "integration/texts.rs"]
mod texts;
