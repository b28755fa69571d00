#!/usr/bin/env bash
# Prints one value on stdout and nothing else: kubeconfig, endpoint or token.
# shellcheck source=tests/demo-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-lib.sh"

[ -s "$KUBECONFIG_FILE" ] || fail "no test cluster is running; start one with: make cluster"
case ${1:-} in
kubeconfig) printf '%s\n' "$KUBECONFIG_FILE" ;;
endpoint)
  field '{.metadata.name}' >/dev/null 2>&1 || fail "the demo is not running; start it with: make demo"
  printf '%s\n' "$(endpoint)"
  ;;
token)
  field '{.metadata.name}' >/dev/null 2>&1 || fail "the demo is not running; start it with: make demo"
  printf '%s\n' "$(principal_token)"
  ;;
*) fail "usage: tests/show.sh kubeconfig|endpoint|token" ;;
esac
