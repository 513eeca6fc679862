#!/usr/bin/env bash
# Makes the Python environment that the interoperability tests run in, and prints its interpreter's path.
#   setup.sh [VENV]        VENV defaults to ${XDG_CACHE_HOME:-$HOME/.cache}/compressor-venv
# About a minute and 4.3 GB on disk the first time; does nothing where VENV already holds requirements.txt.
set -euo pipefail
requirements=$(cd "$(dirname "$0")" && pwd)/requirements.txt
venv=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/compressor-venv}
installed=$venv/compressor-requirements.txt # Written last, so a killed installation is not taken for a finished one.
if ! cmp -s "$requirements" "$installed"; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup.sh: python3 is $(python3 --version | cut -d' ' -f2), the pinned packages need 3.11 or newer" >&2
    exit 2
  }
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$requirements" >&2
  "$venv/bin/python" -c 'import compressed_tensors, gguf, torch, transformers'
  cp "$requirements" "$installed"
fi
echo "$venv/bin/python"
