# shellcheck shell=bash
# A Docker engine: the user's when one answers, else one of our own with its own data, socket and process id.

ENGINE=$VX11_STATE/engine
ENGINE_DATA=$VX11_CACHE/docker

engine_up() {
  if ! engine_is_ours && docker info >/dev/null 2>&1; then
    step "using the Docker engine that answers here"
    return
  fi
  prerequisites_engine
  mkdir -p "$ENGINE"
  touch "$ENGINE/ours"
  export DOCKER_HOST=unix://$ENGINE/docker.sock
  if docker info >/dev/null 2>&1; then return; fi
  step "starting a Docker engine of our own"
  remember_network
  stop_engine
  write_runtime_shim
  printf '{"runtimes":{"vx11":{"path":"%s"}},"default-runtime":"vx11"}' "$ENGINE/runc" >"$ENGINE/daemon.json"
  setsid nohup dockerd --config-file "$ENGINE/daemon.json" --data-root "$ENGINE_DATA" --exec-root "$ENGINE/exec" \
    --pidfile "$ENGINE/dockerd.pid" -H "$DOCKER_HOST" --storage-driver overlay2 \
    >"$ENGINE/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 150); do
    if docker info >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  tail -n 25 "$ENGINE/dockerd.log" >&2
  fail "our Docker engine did not start; the whole log is $ENGINE/dockerd.log"
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

# What the engine changes on the host and does not change back.
remember_network() {
  [ -e "$ENGINE/network" ] && return
  {
    echo "forward4=$(iptables -S FORWARD 2>/dev/null | sed -n 's/^-P FORWARD //p')"
    echo "forward6=$(ip6tables -S FORWARD 2>/dev/null | sed -n 's/^-P FORWARD //p')"
    echo "ip_forward=$(cat /proc/sys/net/ipv4/ip_forward)"
  } >"$ENGINE/network"
}

stop_engine() {
  local pid
  pid=$(cat "$ENGINE/dockerd.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && grep -qs dockerd "/proc/$pid/comm"; then
    kill "$pid"
    for _ in $(seq 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  fi
  # containerd is its child and outlives a dockerd that was killed.
  pid=$(cat "$ENGINE/exec/containerd/containerd.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && grep -qs containerd "/proc/$pid/comm"; then kill "$pid"; fi
  rm -f "$ENGINE/dockerd.pid" "$ENGINE/docker.sock"
  awk -v a="$ENGINE/" -v b="$ENGINE_DATA/" 'index($2, a) == 1 || index($2, b) == 1 {print $2}' /proc/mounts |
    sort -r | xargs -r -n 1 umount -l 2>/dev/null || true
}

# Stops our engine and takes back its bridges and firewall rules. Images stay in the cache.
engine_down() {
  engine_is_ours || return 0
  local bridges=()
  if docker info >/dev/null 2>&1; then
    mapfile -t bridges < <(docker network ls -q --filter driver=bridge --no-trunc | cut -c1-12)
    docker network rm kind >/dev/null 2>&1 || true
  fi
  stop_engine
  ip link delete docker0 2>/dev/null || true
  for bridge in "${bridges[@]}"; do ip link delete "br-$bridge" 2>/dev/null || true; done
  remove_docker_rules iptables
  remove_docker_rules ip6tables
  if [ -e "$ENGINE/network" ]; then
    # shellcheck disable=SC1091
    . "$ENGINE/network"
    if [ -n "${forward4:-}" ]; then iptables -P FORWARD "$forward4"; fi
    if [ -n "${forward6:-}" ]; then ip6tables -P FORWARD "$forward6" 2>/dev/null || true; fi
    echo "${ip_forward:-1}" >/proc/sys/net/ipv4/ip_forward
  fi
  rm -rf "$ENGINE"
}

# Every rule and chain that names DOCKER or a bridge of the engine; the others stay as they are.
remove_docker_rules() {
  command -v "$1-save" >/dev/null || return 0
  local before
  before=$("$1-save" 2>/dev/null) || return 0
  grep -qE 'DOCKER|docker0|br-[0-9a-f]{12}' <<<"$before" || return 0
  grep -vE 'DOCKER|docker0|br-[0-9a-f]{12}' <<<"$before" | "$1-restore"
}
