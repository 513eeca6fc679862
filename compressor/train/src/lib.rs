//! Trains and distills dense language models with Burn, and is the only crate that names it.
//!
//! [`train`] is what a reader comes for: it takes weights and a [`Descent`], which is an [`Objective`] with the settings and the batches,
//! and gives weights back.
//! [`learn_scales`] does the same with the scales of an artifact, whose integers stay.
//! A model is interpreted from its [`compressor_format::Architecture`]; nothing here knows a family.

mod batch;
mod device;
mod error;
mod fused;
mod head;
mod model;
mod ops;
mod optimizer;
mod plain;
mod scales;
mod state;
mod train;
mod training;

pub use device::{open_device, tune_allocator};
pub use error::Error;
pub use model::logits;
pub use train::{Descent, Objective, Rounding, learn_scales, train};
pub use training::Training;
