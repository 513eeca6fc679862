# Sourced by `run` and `full`, in the repository's root: steps with their seconds, and what both do.

cache=${XDG_CACHE_HOME:-$HOME/.cache}
# Burn is most of a build: a target folder outside the checkout is built once.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/compressor-target}
export CARGO_TERM_COLOR=never

step_names=()
step_starts=()

# Names what comes now.
step() {
  step_names+=("$*")
  step_starts+=("$SECONDS")
  printf '\n== %s\n' "$*"
}

# The seconds of every step.
summary() {
  step_starts+=("$SECONDS")
  printf '\n== seconds of each step\n'
  local index
  for index in "${!step_names[@]}"; do
    printf '%6d  %s\n' $((step_starts[index + 1] - step_starts[index])) "${step_names[index]}"
  done
  printf '%6d  all\n' "$SECONDS"
}

# Real models and texts, where the folder that holds them lies beside the checkout.
assets() {
  local shared=$PWD/../shared
  if [[ -d $shared ]]; then
    bash "$shared/tools/get-smollm2.sh" "$cache/compressor-assets"
    export COMPRESSOR_ASSETS=$cache/compressor-assets
    export COMPRESSOR_SAMPLES=$shared/data/compressed-tensors
    export COMPRESSOR_DATA_WIKITEXT2=$shared/data/wikitext-2
  fi
}

# What the tests of other devices depend on: the trainer's files and every crate that it is built from.
devices_tested() {
  git ls-files -s -- compressor/train Cargo.toml Cargo.lock | git hash-object --stdin
}

# Whether those tests passed on exactly these files; `.ci/full` runs them in any case, and writes the name down.
devices_were_tested() {
  git diff --quiet HEAD -- compressor/train Cargo.toml Cargo.lock && [[ $(devices_tested) == "$(cat .ci/devices-tested)" ]]
}

devices() {
  local software_vulkan
  software_vulkan=/usr/share/vulkan/icd.d/lvp_icd.$(uname -m).json
  if [[ ! -f $software_vulkan ]]; then
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends mesa-vulkan-drivers libvulkan1
  fi
  # No other adapter, so that the test is of Vulkan: without one, wgpu would take OpenGL.
  XDG_RUNTIME_DIR=$(mktemp -d) VK_ICD_FILENAMES=$software_vulkan COMPRESSOR_REQUIRE_WGPU=1 \
    cargo test --locked --release --workspace --features ndarray,wgpu --test backends --test integration -- flex devices
}
