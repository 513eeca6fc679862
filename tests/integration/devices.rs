//! The whole chain on the devices that a build has beside the default one.

use compressor_format::StepLosses;

use crate::command::{Bench, TINY};

/// Bound on the relative difference of losses after up to twelve updates.
const LOSS_ERROR: f64 = 1e-3;

fn losses(bench: &Bench, step: &str) -> Vec<f64> {
    let text = fs_err::read_to_string(bench.path("runs/tiny").join(step).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<StepLosses>(line).unwrap().loss).collect()
}

fn the_chain_runs_and_learns_as_on_cpu(device: &str) {
    let (on_cpu, on_device) = (Bench::new(), Bench::new());
    for (bench, device) in [(&on_cpu, "cpu"), (&on_device, device)] {
        bench.write("tiny.toml", TINY);
        bench.run(&["run", "tiny.toml", "--device", device]).expect(0);
    }
    for (step, steps) in [("1-train", 12), ("2-distill", 12)] {
        let (expected, found) = (losses(&on_cpu, step), losses(&on_device, step));
        assert_eq!((expected.len(), found.len()), (steps, steps));
        for (expected, found) in expected.iter().zip(&found) {
            assert!((expected - found).abs() <= LOSS_ERROR * expected, "{step} on {device}: {found}, on cpu {expected}");
        }
    }
}

#[test]
#[cfg(feature = "ndarray")]
fn the_chain_runs_on_ndarray() {
    the_chain_runs_and_learns_as_on_cpu("ndarray");
}

#[test]
#[cfg(feature = "wgpu")]
fn the_chain_runs_on_wgpu() {
    match std::env::var_os("COMPRESSOR_REQUIRE_WGPU") {
        Some(_) => the_chain_runs_and_learns_as_on_cpu("wgpu"),
        None => eprintln!("skipped: COMPRESSOR_REQUIRE_WGPU says that this machine has an adapter, and it is not set"),
    }
}
