//! What firmware and a browser have of the engine; with `std` it is the same. Runs without `std` too.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use compressor_engine::{Engine, Kernels, Options, greedy};
use compressor_format::TensorFiles;

fn read(model: &str, file: &str) -> &'static [u8] {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    std::fs::read(models.join(model).join(file)).unwrap().leak()
}

#[test]
fn golden_models_in_the_program_continue_as_in_transformers() {
    for name in ["gpt2", "llama", "qwen3"] {
        let golden = TensorFiles::from_bytes(read(name, "golden.safetensors"), "golden.safetensors").unwrap();
        let integers = &golden.get("generated_ids").unwrap().bytes;
        let ids: Vec<u32> =
            integers.as_chunks::<8>().0.iter().map(|id| u32::try_from(i64::from_le_bytes(*id)).unwrap()).collect();
        let options = Options { kernels: Some(Kernels::Scalar), ..Options::default() };
        let engine = Engine::from_bytes(read(name, "config.json"), read(name, "model.safetensors"), options).unwrap();
        assert_eq!(greedy(&engine, &ids[..8], 16, &[]).unwrap(), ids[8..], "{name}");
    }
}

#[cfg(not(feature = "std"))]
#[test]
fn one_thread_and_plain_rust_are_what_there_is() {
    let engine =
        Engine::from_bytes(read("llama", "config.json"), read("llama", "model.safetensors"), Options::default()).unwrap();
    assert_eq!((engine.threads(), engine.kernels()), (1, Kernels::Scalar));
    assert_eq!(Kernels::available(), [Kernels::Scalar]);
}

#[test]
fn a_build_for_firmware_compiles_nine_crates() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = std::process::Command::new(cargo)
        .args(["tree", "--package", env!("CARGO_PKG_NAME"), "--no-default-features", "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{lib}", "--offline"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut crates: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    crates.sort();
    crates.dedup();
    let expected =
        ["bytemuck", "compressor_engine", "compressor_format", "itoa", "libm", "memchr", "serde_core", "serde_json", "zmij"];
    assert_eq!(crates, expected, "each crate more is one that firmware must compile, or cannot");
}
