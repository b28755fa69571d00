#!/usr/bin/env bash
# Runs cargo test; what fails is run once more by itself, so that one hiccup of a shared machine does not cost the
# whole run: the failed tests of a target, or all of it when it does not say which they are (it died, or they are doc
# tests). Both runs are shown, and a second failure counts. The promises about loss (r3_, r6_, r7_) get no second chance.
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

# One line for each failed target: what selects it, a tab, its failed tests if it names as many as it counts.
# shellcheck disable=SC2016 # awk's own variables
mapfile -t failed < <(awk '
  /^test [^ ]+( - should panic)? \.\.\. FAILED$/ { names = names " " $2; named++ }
  /^test result: FAILED\./ { match($0, /[0-9]+ failed/); counted = substr($0, RSTART) + 0 }
  /^error: (doc)?test failed, to rerun pass `/ {
    split($0, part, "`")
    print part[2] "\t" (named == counted ? names : "")
    names = ""; named = counted = 0
  }' "$log")
if [ ${#failed[@]} = 0 ]; then
  echo "cargo test ${select[*]} did not run its tests" >&2
  exit 1
fi

for line in "${failed[@]}"; do
  read -ra target <<<"${line%%$'\t'*}"
  tests=${line#*$'\t'}
  [ -n "$tests" ] || tests=$(cargo test --quiet "${target[@]}" -- --list)
  if promises=$(grep -oE '\br[367]_[a-z0-9_]+' <<<"$tests"); then
    echo "== no second chance for: ${promises//$'\n'/ }" >&2
    exit 1
  fi
done
for line in "${failed[@]}"; do
  read -ra target <<<"${line%%$'\t'*}"
  read -ra tests <<<"${line#*$'\t'}"
  echo "== once more, by itself: ${target[*]} ${tests[*]}"
  if [ ${#tests[@]} = 0 ]; then
    cargo test "${target[@]}" "$@"
  else
    cargo test "${target[@]}" -- --exact --include-ignored --test-threads=1 "${tests[@]}"
  fi
done
echo "== passed the second time only: ${failed[*]//$'\t'/}"
