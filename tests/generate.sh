#!/usr/bin/env bash
# Writes the files that are derived from the API types: `make generate`. With --check it writes nothing and fails
# when one of them is stale.
set -euo pipefail
cd "$(dirname "$0")/.."
check=${1:-}
stale=0
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT

# write FILE COMMAND…: only the whole output of a command that succeeded replaces the file.
write() {
  local file=$1
  shift
  "$@" >"$fresh"
  cmp -s "$fresh" "$file" && return
  if [ "$check" = --check ]; then
    echo "error: $file is stale; run \`make generate\` and commit it" >&2
    stale=1
  else
    mkdir -p "$(dirname "$file")"
    cat "$fresh" >"$file"
    echo "wrote $file"
  fi
}

# shellcheck disable=SC2317 # called through write
controller() { cargo run -q -p vx11-controller -- "$@"; }

write crds/vx11clusters.yaml controller crd
write charts/vx11-operator/files/vx11clusters.yaml controller crd
write docs/api.md controller api-docs
exit "$stale"
