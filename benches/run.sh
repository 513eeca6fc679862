#!/usr/bin/env bash
# The figures in docs/benchmarks.md, measured again on this machine.
#   benches/run.sh
# Training steps beside PyTorch's, ours and theirs in turn; with COMPRESSOR_ASSETS (a folder that holds smollm2-135m) and
# COMPRESSOR_DATA_WIKITEXT2 also the engine and the quantizer on a real model.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}/release
cargo build --locked --release --quiet
# Of the whole workspace, so that Burn is not compiled again with other features.
cargo build --locked --release --quiet --workspace --examples
python=$(bash tests/interop/setup.sh | tail -n 1)
rounds=${ROUNDS:-3}

grep -m 1 'model name' /proc/cpuinfo || true
printf '%s threads\n' "$(nproc)"

# speeds NAME FLAGS…: teacher forward and student step, tokens per second, medians over rounds taken in turn.
speeds() {
  local name=$1; shift
  local ours=() theirs=()
  for _ in $(seq "$rounds"); do
    ours+=("$("$target/examples/step_speed" "$@" | "$python" -c 'import json,sys; print(json.load(sys.stdin)["tokens_per_second"])')")
    theirs+=("$("$python" benches/torch_step.py "$@" | "$python" -c 'import json,sys; print(json.load(sys.stdin)["tokens_per_second"])')")
  done
  median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }
  printf '%-44s ours %8.0f   PyTorch %8.0f tokens/s\n' "$name" "$(median "${ours[@]}")" "$(median "${theirs[@]}")"
}

printf '\nteacher forward and student step\n'
speeds "5.2 M teacher, 1.1 M student, 8 × 128"
speeds "SmolLM2-135M shapes, both, 4 × 128" --vocab 49152 --batch 4 --sequence 128 --steps 3 --warm-up 1 \
  --teacher-hidden 576 --teacher-layers 30 --teacher-heads 9 --teacher-kv-heads 3 --teacher-ff 1536 \
  --student-hidden 576 --student-layers 30 --student-heads 9 --student-kv-heads 3 --student-ff 1536

model=${COMPRESSOR_ASSETS:-}/smollm2-135m
if [[ ! -d $model ]]; then
  printf '\nskipped: the real model (COMPRESSOR_ASSETS is not set)\n'
  exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '\nquantizing SmolLM2-135M, wall seconds of the whole command\n'
for flags in "--bits 8" "--bits 4 --group-size 32" "--bits 4 --group-size 32 --clipping mse"; do
  rm -rf "$work/out"
  start=$(date +%s.%N)
  # shellcheck disable=SC2086
  "$target/compressor" quantize "$model" "$work/out" $flags > /dev/null 2>&1
  printf '%-44s %6.2f s\n' "$flags" "$(echo "$(date +%s.%N) - $start" | bc)"
done
printf '\nengine, SmolLM2-135M INT4 in groups of 32\n'
"$target/compressor" bench "$work/out" --prompt-tokens 512 --generate-tokens 128 --threads 2
