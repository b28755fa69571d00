#!/usr/bin/env bash
# Removes the test cluster and, where we started it, the Docker engine with its bridges, mounts and firewall
# rules; also after a crash or half an up. Caches stay. `make down`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$CLUSTER_DIR/engine.sh"

if [ "${VX11_CLUSTER:-kind}" = existing ]; then
  step "the existing cluster is not ours to remove"
  exit 0
fi
locked lock

if engine_is_ours; then
  step "removing the kind cluster $CLUSTER and our Docker engine"
  engine_down
elif command -v docker >/dev/null && engine_answers; then
  step "removing the kind cluster $CLUSTER"
  docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER" | xargs -r docker rm -f -v >/dev/null
fi
rm -rf "${VX11_STATE:?}"/{kubeconfig,env,audit,policy,kind.yaml,nodes,registry,complete,loaded,smoke-passed,images,contour,node-image}
step "done; builds and images stay in $VX11_CACHE"
