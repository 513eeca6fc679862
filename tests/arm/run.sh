#!/usr/bin/env bash
# The engine's tests on 64-bit ARM, emulated where this machine is none: NEON against the scalar loops and against Transformers' logits.
# Three minutes emulated, after a build of twelve.
#   tests/arm/run.sh [TEST…]       arguments for the test programs; --nocapture where left out, which shows what was compared
# Needs `rustup target add aarch64-unknown-linux-gnu` and, on other machines, Debian's gcc-aarch64-linux-gnu and qemu-user.
#
# In the release profile alone: without optimization the assembler refuses the half-precision instructions of the gemm crate, unless
# everything is compiled with `-C target-feature=+fp16`.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=aarch64-unknown-linux-gnu
if [[ $(uname -m) != aarch64 ]]; then
  missing=()
  rustup target list --installed 2>/dev/null | grep -x "$target" >/dev/null || missing+=("the Rust target ($target)")
  command -v aarch64-linux-gnu-gcc >/dev/null || missing+=("aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu)")
  command -v qemu-aarch64 >/dev/null || missing+=("qemu-aarch64 (Debian: qemu-user)")
  if [[ ${#missing[@]} -gt 0 ]]; then
    printf 'tests/arm/run.sh: needs %s\n' "${missing[@]}" >&2
    exit 2
  fi
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  # `max` has the dot products of ARMv8.2, which the kernels need.
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max"
fi
[[ $# -gt 0 ]] || set -- --nocapture
cargo test --locked --release --target "$target" --package compressor-engine --tests -- "$@"
