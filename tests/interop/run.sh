#!/usr/bin/env bash
# Opens our dense, pruned and quantized outputs with Transformers and compares what both generate.
#   tests/interop/run.sh [MODEL]      MODEL: a Hugging Face folder; the golden tiny models where left out
# Makes its own Python environment the first time (4.3 GB, about 75 s); needs a built `compressor`.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(bash tests/interop/setup.sh | tail -n 1)
compressor=${CARGO_TARGET_DIR:-target}/release/compressor
[[ -x $compressor ]] || cargo build --locked --release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

same=0 different=0
# check NAME FOLDER TOKENS: both programs continue the same tokens greedily.
check() {
  local ours theirs
  # Transformers dequantizes weights and keeps activations as they are.
  ours=$("$compressor" generate "$2" --prompt-ids "$prompt" -n "$3" --ids --ignore-end --activations f32)
  theirs=$("$python" tests/interop/transformers_check.py "$2" --ids "${prompt// /,}" --generate "$3" |
    "$python" -c 'import json, sys; print(*json.load(sys.stdin)["generated_ids"])')
  if [[ $ours == "$theirs" ]]; then
    printf 'same       %-28s %s tokens\n' "$1" "$3"; same=$((same + 1))
  else
    printf 'DIFFERENT  %-28s\n  ours          %s\n  Transformers  %s\n' "$1" "$ours" "$theirs"; different=$((different + 1))
  fi
}

# Letters to calibrate on, and a tokenizer that reads them: the golden models have none.
tr -cd a-z <README.md | head -c 4096 >"$work/train.txt"
printf '[text]\ntrain = "train.txt"\n' >"$work/letters.toml"
"$python" - >"$work/tokenizer.json" <<'END'
import json, string
print(json.dumps({
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "model": {"type": "BPE", "vocab": {letter: index for index, letter in enumerate(string.ascii_lowercase)}, "merges": []},
}))
END
static=(--bits 8 --activations int8_static --embedding dense --dataset "$work/letters.toml" --calibration-tokens 1024)

if [[ $# -gt 0 ]]; then
  prompt="504 3575 282 4649 314"
  "$compressor" quantize "$1" "$work/int8" --bits 8 --embedding dense
  check "dense" "$1" 40
  check "INT8 per channel" "$work/int8" 40
else
  prompt="5 17 3 60 44 9"
  for family in llama mistral qwen2 qwen3 gpt2; do
    model=tests/golden/models/$family
    check "$family, dense" "$model" 16
    heads=(--head-ratio 0.5)
    # Transformers' GPT-2 has no head_dim: its heads can't be cut.
    [[ $family == gpt2 ]] && heads=()
    "$compressor" prune "$model" "$work/$family-pruned" "${heads[@]}" --channel-ratio 0.5 --importance magnitude
    check "$family, pruned" "$work/$family-pruned" 16
    # Conv1D is not quantized by compressed-tensors: GPT-2's artifacts open in this program alone.
    [[ $family == gpt2 ]] && continue
    "$compressor" quantize "$work/$family-pruned" "$work/$family-int8" --bits 8 --embedding dense
    check "$family, pruned, INT8" "$work/$family-int8" 16
    "$compressor" quantize "$model" "$work/$family-int4" --bits 4 --group-size 16 --embedding dense
    check "$family, INT4" "$work/$family-int4" 16
    "$compressor" quantize "$model" "$work/$family-int4-zp" --bits 4 --group-size 16 --asymmetric --embedding dense
    check "$family, INT4 with zero points" "$work/$family-int4-zp" 16
    mkdir "$work/$family"
    cp "$model"/{config.json,model.safetensors} "$work/tokenizer.json" "$work/$family"
    "$compressor" quantize "$work/$family" "$work/$family-static" "${static[@]}"
    check "$family, W8A8, static scales" "$work/$family-static" 16
  done
fi
printf '\n%s the same, %s different\n' "$same" "$different"
[[ $different == 0 ]]
