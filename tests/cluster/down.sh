#!/usr/bin/env bash
# Removes the test cluster and, where we started it, the Docker engine with its bridges, mounts and firewall
# rules; also after a crash or half an up. Caches stay. `make down`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$CLUSTER_DIR/engine.sh"

exec 9>"$VX11_STATE/lock"
flock -w 60 9 || fail "another run holds $VX11_STATE/lock"

if docker info >/dev/null 2>&1; then
  step "removing the kind cluster $CLUSTER"
  if command -v kind >/dev/null; then kind delete cluster -q --name "$CLUSTER" || true; fi
  docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER" | xargs -r docker rm -f >/dev/null
fi
if engine_is_ours; then step "stopping our Docker engine"; fi
engine_down
rm -rf "${VX11_STATE:?}"/{kubeconfig,env,audit,policy,kind.yaml,nodes,registry,smoke-passed,images,contour,node-image}
step "done; builds and images stay in $VX11_CACHE"
