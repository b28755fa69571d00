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

if [ $# = 0 ]; then set -- --test '*'; fi
step "end-to-end tests"
cargo test -p vx11-tests "$@"
step "end-to-end tests passed"
