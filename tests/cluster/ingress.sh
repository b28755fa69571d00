# shellcheck shell=bash
# Contour and Envoy as the default Ingress class, from Contour's own manifests with the patches of
# manifests/contour: one Contour, and Envoy on the node whose port is mapped to 127.0.0.1.

ingress_up() {
  if kctl -n projectcontour rollout status daemonset/envoy --timeout=1s >/dev/null 2>&1; then return; fi
  step "Ingress controller: Contour $CONTOUR_VERSION with Envoy"
  local folder=$VX11_STATE/contour upstream
  upstream=$(cd "$(mktemp -d)" && GOPROXY=$(go env GOPROXY | cut -d, -f1) \
    go mod download -json "github.com/projectcontour/contour@$CONTOUR_VERSION" | jq -r .Dir)/examples/contour
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$upstream"/*.yaml "$CLUSTER_DIR"/manifests/contour/*.yaml "$folder/"
  chmod -R u+w "$folder"
  logged contour-apply apply_contour "$folder"
  logged contour-ready kctl -n projectcontour rollout status deployment/contour --timeout=120s
  logged envoy-ready kctl -n projectcontour rollout status daemonset/envoy --timeout=120s
}

apply_contour() {
  kubectl kustomize "$1" | kctl apply --server-side -f -
}
