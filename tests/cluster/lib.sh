# shellcheck shell=bash disable=SC2034  # used by the scripts that source this one
# What every script here shares: where things lie, and how progress is shown. Source it, do not run it.
set -euo pipefail

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$CLUSTER_DIR/../.." && pwd)
# shellcheck source=versions.env
. "$CLUSTER_DIR/versions.env"

export VX11_STATE=${VX11_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/vx11}
export VX11_CACHE=${VX11_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vx11}
CLUSTER=${VX11_CLUSTER_NAME:-vx11}
HTTP_PORT=${VX11_HTTP_PORT:-8080}
BIN=$VX11_CACHE/bin/kubernetes-$KUBERNETES_VERSION
TOOLS=$VX11_CACHE/bin/tools-kind$KIND_VERSION-contour$CONTOUR_VERSION
KUBECONFIG_FILE=$VX11_STATE/kubeconfig
export PATH="$BIN:$TOOLS:$PATH"
mkdir -p "$VX11_STATE" "$VX11_CACHE"

# Seconds since the first script of this run began.
export VX11_STARTED=${VX11_STARTED:-$(date +%s)}
elapsed() { echo $(($(date +%s) - VX11_STARTED)); }

step() { printf '%4ss  %s\n' "$(elapsed)" "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# logged NAME COMMAND…: runs it with its output in a log file; shows a dot every two seconds, and the log's end
# when it fails.
logged() {
  local log=$VX11_STATE/log/$1.log pid dots=0
  shift
  mkdir -p "$VX11_STATE/log"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    dots=$((dots + 1))
    if [ $((dots % 20)) = 0 ]; then printf '.'; fi
  done
  if [ "$dots" -ge 20 ]; then printf '\n'; fi
  if ! wait "$pid"; then
    tail -n 25 "$log" >&2
    fail "$1 failed; the whole log is $log"
  fi
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds; says what did not happen.
wait_for() {
  local deadline=$(($(date +%s) + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$deadline" ] || fail "still waiting after the deadline: $what"
    sleep 0.2
  done
}

# The Docker engine in use: the user's when it answers, else ours.
engine_is_ours() { [ -e "$VX11_STATE/engine/ours" ]; }
if engine_is_ours; then export DOCKER_HOST=unix://$VX11_STATE/engine/docker.sock; fi
export DOCKER_BUILDKIT=0
