# shellcheck shell=bash disable=SC2034
# What the demo and `make kubeconfig|endpoint|token` share: where the demo runs and how it is reached.
# shellcheck source=tests/cluster/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"

NAMESPACE=vx11-demo
NAME=quickstart
if [ "${VX11_CLUSTER:-kind}" = existing ]; then KUBECONFIG_FILE=${KUBECONFIG:-$HOME/.kube/config}; fi
export KUBECONFIG=$KUBECONFIG_FILE

# field JSONPATH: of the demo's VX11Cluster.
field() { kubectl -n "$NAMESPACE" get vx11 "$NAME" -o "jsonpath=$1"; }

# Base URL of the demo's cluster: the port mapped to 127.0.0.1, or what the Ingress says elsewhere.
endpoint() {
  if [ "${VX11_CLUSTER:-kind}" = existing ]; then
    field '{.status.endpoint}'
  else
    printf 'http://127.0.0.1:%s' "$HTTP_PORT"
  fi
}

principal_token() {
  kubectl -n "$NAMESPACE" get secret "$NAME-principal-tokens" -o 'jsonpath={.data.principal}' | base64 -d
}
