# shellcheck shell=bash disable=SC2034  # used by the scripts that source this one
# What every script here shares: where things lie, and how progress is shown. Source it, do not run it.
set -euo pipefail

CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$CLUSTER_DIR/../.." && pwd)
# shellcheck source=versions.env
. "$CLUSTER_DIR/versions.env"

VX11_STATE=${VX11_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/vx11}
VX11_CACHE=${VX11_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vx11}
mkdir -p "$VX11_STATE" "$VX11_CACHE"
# As the kernel names them: they are compared with mount points, and Docker mounts parts of them.
VX11_STATE=$(cd "$VX11_STATE" && pwd -P)
VX11_CACHE=$(cd "$VX11_CACHE" && pwd -P)
export VX11_STATE VX11_CACHE
CLUSTER=${VX11_CLUSTER_NAME:-vx11}
HTTP_PORT=${VX11_HTTP_PORT:-8080}
BIN=$VX11_CACHE/bin/$KUBERNETES_VERSION-$(cat "$CLUSTER_DIR"/build/{go.mod,coredns/main.go,pause.c} | sha256sum | cut -c1-8)
KUBECONFIG_FILE=$VX11_STATE/kubeconfig
export PATH="$BIN:$PATH"

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
  begun "$@"
  ended "$1"
}

# begun NAME COMMAND…: as logged, beside what follows; ended NAME waits for it. Its process group is its own, so that
# all of it ends with this shell: nothing may go on building or creating.
declare -A begun
begun() {
  local name=$1
  shift
  mkdir -p "$VX11_STATE/log"
  rm -f "$VX11_STATE/log/$name.status"
  set -m
  with_status "$VX11_STATE/log/$name.status" "$@" >"$VX11_STATE/log/$name.log" 2>&1 </dev/null &
  begun[$name]=$!
  set +m
  trap 'exit 130' INT TERM HUP
  trap 'for pid in "${begun[@]}"; do kill -- "-$pid" 2>/dev/null || true; done' EXIT
}

# with_status FILE COMMAND…: leaves the exit status in a file, since a shell may forget that of a job that ended long
# before it is asked for.
with_status() {
  local file=$1 status=0
  shift
  ("$@") &
  wait $! || status=$?
  echo "$status" >"$file"
}

ended() {
  local log=$VX11_STATE/log/$1.log status=$VX11_STATE/log/$1.status pid=${begun[$1]} dots=0
  while [ ! -s "$status" ] && kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    dots=$((dots + 1))
    if [ $((dots % 20)) = 0 ]; then printf '.'; fi
  done
  if [ "$dots" -ge 20 ]; then printf '\n'; fi
  unset "begun[$1]"
  if [ "$(cat "$status" 2>/dev/null)" != 0 ]; then
    tail -n 25 "$log" >&2
    fail "$1 failed; the whole log is $log"
  fi
}

# locked FILE: one run at a time, for as long as this shell lives. The lock is descriptor 9: close it (9>&-) for
# whatever outlives the shell.
locked() {
  exec 9>"$VX11_STATE/$1"
  if flock -n 9; then return; fi
  step "waiting for another run that holds $VX11_STATE/$1"
  flock -w 1800 9 || fail "another run still holds $VX11_STATE/$1"
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
engine_answers() { timeout 10 docker info >/dev/null 2>&1; }
if engine_is_ours; then export DOCKER_HOST=unix://$VX11_STATE/engine/docker.sock; fi
export DOCKER_BUILDKIT=0
