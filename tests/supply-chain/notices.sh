#!/usr/bin/env bash
# Collects the licence texts of every crate that the program is built from into one file, for whoever hands out the program.
#   notices.sh [FILE]      FILE defaults to THIRD-PARTY-NOTICES.txt
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-THIRD-PARTY-NOTICES.txt}

# Name, version and folder of each crate; cargo knows where it unpacked them.
crates() {
  local listed
  listed=$(cargo tree --locked -p compressor-cli -e normal,build --prefix none --no-dedupe --format '{p}' |
    sed 's/ (.*//; s/ v/ /' | grep -v '^compressor-' | sort -u)
  cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | sed -n "s/^host: //p")" | python3 -c '
import json, os, sys
listed = {tuple(line.split()) for line in sys.argv[1].splitlines()}
for package in json.load(sys.stdin)["packages"]:
    if (package["name"], package["version"]) in listed:
        print(package["name"], package["version"], os.path.dirname(package["manifest_path"]), package["license"], sep="\t")
' "$listed"
}

without=0
while IFS=$'\t' read -r name version folder licence; do
  printf '%s\n%s %s (%s)\n%s\n\n' "$(printf '=%.0s' {1..100})" "$name" "$version" "$licence" "$(printf '=%.0s' {1..100})"
  texts=$(find "$folder" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'unlicense*' \) | sort)
  if [[ -z $texts ]]; then
    without=$((without + 1))
    echo "(the crate holds no licence text)"
  fi
  while read -r text; do
    [[ -n $text ]] && cat "$text" && echo
  done <<< "$texts"
done < <(crates) > "$out.tmp"
mv "$out.tmp" "$out"
echo "$out: $(grep -c '^====' "$out" | awk '{ print $1 / 2 }') crates" >&2
