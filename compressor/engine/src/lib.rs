//! Runs a checkpoint or an artifact on the CPU.
//!
//! [`Engine`] interprets a [`compressor_format::Architecture`] over slices. It shares no code with the trainer on purpose: each is
//! the other's proof.

extern crate alloc;

mod attention;
mod cache;
mod engine;
mod error;
mod forward;
mod generate;
mod kernels;
mod linear;
mod norm;
mod rotary;
mod rows;
mod sample;
mod stop;

pub use cache::Cache;
pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use forward::{Logits, Observer, Place, Sequence};
pub use generate::{Finish, generate, generate_batch, greedy};
pub use kernels::Kernels;
#[cfg(target_arch = "x86_64")]
pub use kernels::{Avx2, Avx512};
pub use sample::{InvalidSampling, Sampler, Sampling};
pub use stop::{Piece, StopStrings};
