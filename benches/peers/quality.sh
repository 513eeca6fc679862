#!/usr/bin/env bash
# Quality by bytes on SmolLM2-135M: llama.cpp's types with its importance matrix, and this program's artifacts, on the same windows of
# the same text. One table and, with --plot, one picture.
#   quality.sh [MODEL_DIR] [--windows 40] [--calibration-tokens 65536] [--only NAME…] [--markdown FILE] [--plot FILE.svg]
# MODEL_DIR is a Hugging Face folder with a Llama; $COMPRESSOR_ASSETS/smollm2-135m where left out. COMPRESSOR_DATA_WIKITEXT2 names the
# folder with WikiText-2. Needs what run.sh needs. What was measured is kept and not measured again unless the program changes.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=()
if [[ $# == 0 || $1 == --* ]]; then
  [[ -n ${COMPRESSOR_ASSETS:-} ]] || {
    echo "quality.sh: MODEL_DIR is left out and COMPRESSOR_ASSETS is not set" >&2
    exit 2
  }
  model=("$COMPRESSOR_ASSETS/smollm2-135m")
fi
[[ -n ${COMPRESSOR_DATA_WIKITEXT2:-} ]] || {
  echo "quality.sh: COMPRESSOR_DATA_WIKITEXT2 is not set; it names the folder with WikiText-2" >&2
  exit 2
}
command -v cargo > /dev/null || {
  echo "quality.sh: cargo is not there; https://rustup.rs installs Rust" >&2
  exit 2
}
peers=$(bash "$root/benches/peers/setup.sh" | tail -n 1)
if [[ " $* " == *" --plot "* ]] && ! "$peers/venv/bin/python" -c 'import matplotlib' 2> /dev/null; then
  "$peers/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$root/benches/peers/requirements-plot.txt"
fi
(cd "$root" && cargo build --locked --release --quiet)
target=$(cd "$root" && realpath -m "${CARGO_TARGET_DIR:-target}")
"$peers/venv/bin/python" "$root/benches/peers/quality.py" "${model[@]}" "$@" --compressor "$target/release/compressor" --peers "$peers"
