//! Runs a checkpoint or an artifact on the CPU.
//!
//! [`Engine`] interprets a [`compressor_format::Architecture`] over slices. It shares no code with the trainer on purpose: each is
//! the other's proof.
//!
//! Without the feature `std`, which is on by default, what is left needs `alloc` alone and few crates: [`Engine::from_bytes`] and
//! [`Engine::load`], on one thread, with [`Kernels::Scalar`]. That is the engine for firmware and for a browser.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;
#[cfg(all(test, not(feature = "std")))]
#[macro_use]
extern crate std;

mod attention;
#[cfg(feature = "std")]
mod blocks;
mod cache;
mod engine;
mod error;
mod forward;
mod generate;
mod half;
mod kernels;
mod linear;
mod norm;
mod packed;
mod pool;
#[cfg(feature = "std")]
mod product;
#[cfg(feature = "std")]
mod profile;
#[cfg(feature = "std")]
mod prompt_cache;
mod rotary;
mod sample;
mod stop;

#[cfg(feature = "std")]
pub use blocks::{Block, Blocks};
pub use cache::{Cache, KvType};
pub use engine::{ActivationType, Engine, Options};
pub use error::{Error, Result};
pub use forward::{Logits, Observer, Operation, Place, Sequence};
pub use generate::{Finish, generate, generate_batch, generate_on, greedy};
pub use kernels::Kernels;
#[cfg(target_arch = "aarch64")]
pub use kernels::Neon;
#[cfg(target_arch = "x86_64")]
pub use kernels::{Avx2, Avx512, AvxVnni};
#[cfg(feature = "std")]
pub use product::Product;
#[cfg(feature = "std")]
pub use profile::{Cost, Profile, memory_speed};
#[cfg(feature = "std")]
pub use prompt_cache::computation;
pub use sample::{InvalidSampling, Sampler, Sampling};
pub use stop::{Piece, StopStrings};
