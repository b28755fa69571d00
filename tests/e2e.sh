#!/usr/bin/env bash
# The tests that need a Kubernetes: brings up the test cluster and the images, then runs every integration test of
# the crate vx11-tests. Arguments go to cargo test, such as: tests/e2e.sh --test api_server
# shellcheck source=tests/demo-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-lib.sh"
cd "$ROOT"

tests/prerequisites.sh
tests/cluster/up.sh
tests/cluster/images.sh
# Both scripts may have started an engine and put tools in place: read again where they are.
# shellcheck source=tests/demo-lib.sh
. tests/demo-lib.sh

if [ $# != 0 ]; then
  cargo test -p vx11-tests "$@"
  exit
fi

for file in tests/tests/*.rs; do
  target=$(basename "$file" .rs)
  case $target in operator | verbs) continue ;; esac # last, below
  step "$file"
  tests/twice.sh -p vx11-tests --test "$target" -- --test-threads=3
done
# These take the operator away from everybody else, so they run alone and one after the other.
step "tests/tests/operator.rs"
tests/twice.sh -p vx11-tests --test operator -- --include-ignored --test-threads=1
# What the audit log says that all of them used.
step "tests/tests/verbs.rs"
tests/twice.sh -p vx11-tests --test verbs
step "end-to-end tests passed"
