# shellcheck shell=bash
# A Docker engine: the user's when one answers, else one of our own with its own data, socket and process id.
# What it changes on the host, and how that is taken back, is in host.sh.

ENGINE=$VX11_STATE/engine
ENGINE_DATA=$VX11_CACHE/docker
# shellcheck source=host.sh
. "$CLUSTER_DIR/host.sh"

engine_up() {
  if ! engine_is_ours && engine_answers; then
    step "using the Docker engine that answers here"
    return
  fi
  if engine_is_ours && engine_answers; then return; fi
  prerequisites_engine
  refuse_second_engine
  mkdir -p "$ENGINE"
  remember_host
  touch "$ENGINE/ours"
  export DOCKER_HOST=unix://$ENGINE/docker.sock
  step "starting a Docker engine of our own"
  engine_start || {
    tail -n 25 "$ENGINE/dockerd.log" >&2
    fail "our Docker engine did not start; the whole log is $ENGINE/dockerd.log"
  }
}

# Two engines on one network or on one data folder break each other.
refuse_second_engine() {
  local pid owner
  for pid in $(pgrep -x dockerd || true); do
    if [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ] || runs_here "$pid"; then continue; fi
    fail "a Docker engine runs here (process $pid) but does not answer: point DOCKER_HOST to its socket, or stop it"
  done
  owner=$(cat "$ENGINE_DATA.owner" 2>/dev/null || true)
  if [ -n "$owner" ] && [ "$owner" != "$ENGINE" ] && pgrep -f -- "--pidfile $owner/dockerd.pid" >/dev/null; then
    fail "the engine of $owner uses $ENGINE_DATA: run down.sh with its VX11_STATE, or set another VX11_CACHE"
  fi
}

# The engine does without its default bridge (kind makes its own network), and containers outlive a dockerd that
# died, so that starting it again is all the repair a cluster needs.
engine_start() {
  stop_engine
  echo "$ENGINE" >"$ENGINE_DATA.owner"
  write_runtime_shim
  printf '{"runtimes": {"vx11": {"path": "%s"}}, "default-runtime": "vx11", "bridge": "none", "live-restore": true}' \
    "$ENGINE/runc" >"$ENGINE/daemon.json"
  setsid nohup dockerd --config-file "$ENGINE/daemon.json" --data-root "$ENGINE_DATA" --exec-root "$ENGINE/exec" \
    --pidfile "$ENGINE/dockerd.pid" -H "$DOCKER_HOST" --storage-driver overlay2 \
    >"$ENGINE/dockerd.log" 2>&1 </dev/null 9>&- &
  local _
  for _ in $(seq 150); do
    if engine_answers; then return; fi
    sleep 0.2
  done
  return 1
}

# Where root itself lacks CAP_SYS_RESOURCE (some sandboxes), runc cannot grant it: ask it for less there.
write_runtime_shim() {
  cat >"$ENGINE/runc" <<'PY'
#!/usr/bin/env python3
"""runc, with what this machine's root may not grant taken out of each request."""
import json, os, sys

CAP_SYS_RESOURCE = 24
argv = sys.argv[1:]
bounding = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapBnd"))


def lower(process):
    for names in (process.get("capabilities") or {}).values():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")
    process["oomScoreAdj"] = max(process.get("oomScoreAdj") or 0, 0)
    process["rlimits"] = []


def rewrite(path, pick):
    with open(path) as file:
        document = json.load(file)
    lower(pick(document))
    with open(path, "w") as file:
        json.dump(document, file)


def value_of(*flags):
    return next((argv[argv.index(flag) + 1] for flag in flags if flag in argv), None)


if not int(bounding, 16) >> CAP_SYS_RESOURCE & 1:
    if "create" in argv or "run" in argv:
        rewrite(os.path.join(value_of("--bundle", "-b") or ".", "config.json"), lambda spec: spec["process"])
    elif "exec" in argv and value_of("--process", "-p"):
        rewrite(value_of("--process", "-p"), lambda process: process)
os.execvp("runc", ["runc"] + argv)
PY
  chmod +x "$ENGINE/runc"
}

# runs_here PID: whether that process is part of our engine. Process ids are used again after a crash or a reboot,
# so the command line has to name our folder; a dead process that nobody has waited for has none.
runs_here() { { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null | grep -qF -- "$ENGINE/"; }

stop_process() { # stop_process PID-FILE
  local pid _
  pid=$(cat "$1" 2>/dev/null) || return 0
  runs_here "$pid" || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 150); do
    runs_here "$pid" || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

# Ends dockerd and its containerd; containers go on.
stop_engine() {
  stop_process "$ENGINE/dockerd.pid"
  stop_process "$ENGINE/exec/containerd/containerd.pid"
  # A dockerd waits in vain for a containerd whose process id is still taken, be it by a dead process.
  rm -f "$ENGINE/dockerd.pid" "$ENGINE/docker.sock" "$ENGINE/exec/containerd/containerd.pid"
}

# Removes every container and network of our engine, stops it, and leaves the host as it was. Images stay in the
# cache. An engine that crashed is started once more: it knows best what it left behind.
engine_down() {
  engine_is_ours || return 0
  if ! engine_answers; then engine_start || step "our engine does not start any more: cleaning up without it"; fi
  if engine_answers; then
    remember_bridges
    docker ps -aq | xargs -r -n 1 -P 4 docker rm -f -v >/dev/null || true
    docker network ls -q --filter type=custom | xargs -r docker network rm >/dev/null || true
    docker volume prune -f >/dev/null || true
  fi
  stop_engine
  end_containers
  restore_host
  rm -rf "$ENGINE" "$ENGINE_DATA.owner"
}

# Containers whose engine is gone: each hangs on a shim that names our folder.
end_containers() {
  local shim
  for shim in $(pgrep -f -- "containerd-shim.* -address $ENGINE/" || true); do
    runs_here "$shim" || continue
    # The shim ends by itself when its container has; the kernel ends all else in the container's process space.
    pkill -KILL -P "$shim" || true
    kill "$shim" 2>/dev/null || true
  done
}
