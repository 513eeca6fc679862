#!/usr/bin/env bash
# llama.cpp and this program on SmolLM2-135M, in turn in one run: one table of medians, then their spread.
#   run.sh [MODEL_DIR] [--rounds N] [--threads N…] [--markdown FILE]
# MODEL_DIR is a Hugging Face folder with a Llama; $COMPRESSOR_ASSETS/smollm2-135m where left out. Needs Rust, Python 3.11 with venv and a
# C++ compiler. Builds llama.cpp the first time (four minutes); then 7 rounds take about 8, which should find the machine idle.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=()
if [[ $# == 0 || $1 == --* ]]; then
  [[ -n ${COMPRESSOR_ASSETS:-} ]] || {
    echo "run.sh: MODEL_DIR is left out and COMPRESSOR_ASSETS is not set" >&2
    exit 2
  }
  model=("$COMPRESSOR_ASSETS/smollm2-135m")
fi
command -v cargo > /dev/null || {
  echo "run.sh: cargo is not there; https://rustup.rs installs Rust" >&2
  exit 2
}
peers=$(bash "$root/benches/peers/setup.sh" | tail -n 1)
(cd "$root" && cargo build --locked --release --quiet)
target=$(cd "$root" && realpath -m "${CARGO_TARGET_DIR:-target}")
"$peers/venv/bin/python" "$root/benches/peers/table.py" "${model[@]}" "$@" --compressor "$target/release/compressor" --peers "$peers"
