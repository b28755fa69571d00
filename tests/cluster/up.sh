#!/usr/bin/env bash
# Brings up the test cluster, from nothing or from whatever an earlier run left. `make cluster`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for part in prerequisites binaries engine node-image cluster ingress smoke; do
  # shellcheck source=/dev/null
  . "$CLUSTER_DIR/$part.sh"
done

if [ "${VX11_CLUSTER:-kind}" = existing ]; then
  [ -n "${KUBECONFIG:-}" ] || fail "VX11_CLUSTER=existing needs KUBECONFIG to name the cluster to use"
  prerequisites_common
  tools
  cp "$KUBECONFIG" "$KUBECONFIG_FILE"
  kctl get --raw /readyz >/dev/null || fail "the cluster of $KUBECONFIG does not answer"
  step "using the existing cluster of $KUBECONFIG"
  exit 0
fi

# One at a time: a second run waits for the first.
exec 9>"$VX11_STATE/lock"
flock -w 1800 9 || fail "another run holds $VX11_STATE/lock"

bring_up() {
  prerequisites_common
  tools
  engine_up
  node_image
  cluster_up
  ingress_up
  smoke_test
}

# The engine and everything else that lives on must not hold the lock.
bring_up 9>&-
cat >"$VX11_STATE/env" <<ENV
export KUBECONFIG="$KUBECONFIG_FILE"
export DOCKER_HOST="${DOCKER_HOST:-unix:///var/run/docker.sock}"
export PATH="$BIN:$TOOLS:\$PATH"
ENV
step "cluster is up: kubeconfig $KUBECONFIG_FILE, Ingress http://127.0.0.1:$HTTP_PORT"
if [ "$(cat "$VX11_STATE/registry")" = no ]; then
  step "note: this cluster's pod network does not enforce NetworkPolicy (no image with kindnetd could be pulled)"
fi
