#!/usr/bin/env bash
# The engine without `std`, with an artifact inside of the program: its most likely tokens must be those of `compressor generate`.
#   tests/embedded/run.sh ARTIFACT [NUMBER…]     the token numbers to continue; a request to the quick start's model where left out
# Then builds it for a microcontroller and for browsers, where rustup has their targets, and runs the latter where there is Node. Needs a
# built `compressor`.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: tests/embedded/run.sh ARTIFACT [NUMBER…]" >&2; exit 2; }
[[ -f $1/model.safetensors ]] || { echo "$1: is no artifact, there is no model.safetensors in it" >&2; exit 2; }
artifact=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
# "could you dim the lamp in the study to thirty percent after nine", and the token that asks for its command.
prompt=(581 318 402 261 411 267 261 382 296 697 312 496 628 1)
[[ $# -eq 0 ]] || prompt=("$@")
# "dim study lamp 30 after 21:00", and the token that ends it.
tokens=9

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
compressor=$CARGO_TARGET_DIR/release/compressor
[[ -x $compressor ]] || cargo build --locked --release
export COMPRESSOR_ARTIFACT_CONFIG=$artifact/config.json COMPRESSOR_ARTIFACT_WEIGHTS=$artifact/model.safetensors
build=(cargo build --quiet --release --locked --manifest-path tests/embedded/Cargo.toml)

program=$("$compressor" generate "$artifact" --prompt-ids "${prompt[*]}" --tokens "$tokens" --ids --ignore-end)
# compare NAME IDS: what a program without std continues the prompt with.
compare() {
  if [[ $(wc -w <<<"$2") != "$tokens" || $2 != "$program" ]]; then
    printf 'DIFFERENT  %s, after %s\n  without std  %s\n  program      %s\n' "$1" "${prompt[*]}" "$2" "$program"
    exit 1
  fi
  printf 'same       %s, %s tokens after %s: %s\n' "$1" "$tokens" "${prompt[*]}" "$2"
}
# installed TARGET: whether rustup has it; says so where it does not.
installed() {
  rustup target list --installed 2>/dev/null | grep -x "$1" >/dev/null && return
  printf 'SKIPPED    %s is not built: `rustup target add %s` installs it\n' "$1" "$1"
  return 1
}

"${build[@]}"
compare "on this machine" "$("$CARGO_TARGET_DIR/release/embedded" "$tokens" "${prompt[@]}")"

target=thumbv7em-none-eabihf
if installed $target; then
  "${build[@]}" --lib --target $target
  printf 'built      %s\n' $target
fi

target=wasm32-unknown-unknown
if installed $target; then
  "${build[@]}" --example browser --target $target
  module=$CARGO_TARGET_DIR/$target/release/examples/browser.wasm
  printf 'built      %s, %s bytes with the model\n' $target "$(wc -c <"$module")"
  if command -v node >/dev/null; then
    compare "WebAssembly in Node" "$(node tests/embedded/browser.mjs "$module" "$tokens" "${prompt[@]}")"
  else
    printf 'SKIPPED    the WebAssembly module is not run: there is no node\n'
  fi
fi
