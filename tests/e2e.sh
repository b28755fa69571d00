#!/usr/bin/env bash
# The tests that need a Kubernetes: brings up the test cluster and the images, then runs every integration test of
# the crate vx11-tests. Arguments go to cargo test, such as: tests/e2e.sh --test api
# shellcheck source=tests/demo-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-lib.sh"
cd "$ROOT"

tests/cluster/up.sh
tests/cluster/images.sh
# Both scripts may have started an engine and put tools in place: read again where they are.
# shellcheck source=tests/demo-lib.sh
. tests/demo-lib.sh

if [ $# != 0 ]; then
  cargo test -p vx11-tests "$@"
  exit
fi

# passed TARGET ARGUMENT…: runs one file of tests. What fails is run once more by itself, so that one hiccup of a
# shared machine does not cost the whole run; it is named either way, and a second failure counts.
again=()
passed() {
  local target=$1 log failed
  shift
  step "tests/tests/$target.rs"
  log=$(mktemp)
  if cargo test -p vx11-tests --test "$target" --no-fail-fast -- "$@" 2>&1 | tee "$log"; then
    rm -f "$log"
    return
  fi
  mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
  rm -f "$log"
  [ ${#failed[@]} -gt 0 ] || fail "tests/tests/$target.rs did not run"
  step "once more, by themselves: ${failed[*]}"
  cargo test -p vx11-tests --test "$target" -- --exact --include-ignored --test-threads=1 "${failed[@]}" ||
    fail "failed twice: ${failed[*]}"
  again+=("${failed[@]}")
}

for target in api_server cluster drift examples failure inputs scale; do passed "$target" --test-threads=3; done
# These take the operator away from everybody else, so they run alone and one after the other.
passed operator --include-ignored --test-threads=1
# What the audit log says that all of them used.
passed verbs --test-threads=1
if [ ${#again[@]} -gt 0 ]; then step "passed only the second time: ${again[*]}"; fi
step "end-to-end tests passed"
