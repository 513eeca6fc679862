//! From recipe to report: the plan, the stages, pruning, quantizers and verification.

pub mod quantize;
