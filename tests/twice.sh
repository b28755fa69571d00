#!/usr/bin/env bash
# Runs cargo test; what fails is run once more by itself, so that one hiccup of a shared machine does not cost the
# whole run. Both runs are shown, and a second failure counts.
#   tests/twice.sh CARGO-TEST-ARGUMENT… [-- TEST-ARGUMENT…]
set -euo pipefail
select=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  select+=("$1")
  shift
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo test "${select[@]}" --no-fail-fast "$@" 2>&1 | tee "$log"; then exit; fi
mapfile -t failed < <(sed -n 's/^test \([^ ]*\)\( - should panic\)\? \.\.\. FAILED$/\1/p' "$log" | sort -u)
if [ ${#failed[@]} = 0 ]; then
  echo "cargo test ${select[*]} did not run its tests" >&2
  exit 1
fi
echo "== once more, by themselves: ${failed[*]}"
cargo test "${select[@]}" -- --exact --include-ignored --test-threads=1 "${failed[@]}"
echo "== passed the second time only: ${failed[*]}"
