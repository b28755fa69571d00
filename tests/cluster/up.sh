#!/usr/bin/env bash
# Brings up the test cluster, from nothing or from whatever an earlier run left. `make cluster`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for part in prerequisites binaries engine rootfs node-image cluster ingress smoke; do
  # shellcheck source=/dev/null
  . "$CLUSTER_DIR/$part.sh"
done

if [ "${VX11_CLUSTER:-kind}" = existing ]; then
  [ -n "${KUBECONFIG:-}" ] || fail "VX11_CLUSTER=existing needs KUBECONFIG to name the cluster to use"
  prerequisites_common
  locked lock
  tools
  kubectl get --raw /readyz --request-timeout=10s >/dev/null || fail "the cluster of $KUBECONFIG does not answer"
  step "using the existing cluster of $KUBECONFIG"
  exit 0
fi

bring_up() {
  prerequisites_common
  engine_up
  if ! cluster_answers; then
    node_image
    tools
    cluster_up
  fi
  tools
  ingress_up
  smoke_test
}

locked lock
bring_up
cat >"$VX11_STATE/env" <<ENV
export KUBECONFIG="$KUBECONFIG_FILE"
export DOCKER_HOST="${DOCKER_HOST:-unix:///var/run/docker.sock}"
export PATH="$BIN:\$PATH"
ENV
step "cluster is up: kubeconfig $KUBECONFIG_FILE, Ingress http://127.0.0.1:$HTTP_PORT"
if [ "$(cat "$VX11_STATE/registry")" = no ]; then
  step "NOTE: NetworkPolicy is NOT enforced by this cluster's pod network (no image with kindnetd could be pulled)"
fi
