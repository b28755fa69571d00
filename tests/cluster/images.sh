#!/usr/bin/env bash
# Builds the two product images and loads them into the cluster's nodes. Runs after up.sh; `make images`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$CLUSTER_DIR/rootfs.sh"

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
REGISTRY=ghcr.io/vx11
SOURCE=https://github.com/vx11/vx11-operator
# The second name of the backend lets tests roll from one image to another.
IMAGES=("$REGISTRY/vx11-controller:$VERSION" "$REGISTRY/operator-backend:$VERSION" "$REGISTRY/operator-backend:$VERSION-next")

# product_image NAME FOLDER-OF-DOCKERFILE: on an empty base with exactly the libraries the program was linked with
# here, since a published base may have an older C library than this machine.
product_image() {
  local name=$1 context=$VX11_STATE/images/$1
  rm -rf "$context"
  mkdir -p "$context/rootfs/usr/local/bin"
  install -m 755 "$TARGET/release/$name" "$context/rootfs/usr/local/bin/$name"
  with_libraries "$context/rootfs" "$TARGET/release/$name"
  docker build -q -t "$REGISTRY/$name:$VERSION" --target prepared --build-arg BASE=scratch \
    --build-arg "VERSION=$VERSION" -f "$ROOT/$2/Dockerfile" "$context"
}

# Which images are on which nodes when they are loaded now.
wanted() {
  docker image inspect -f '{{.Id}}' "${IMAGES[@]}"
  docker ps -q --no-trunc --filter "label=io.x-k8s.kind.cluster=$CLUSTER" | sort
}

# The kubelet removes images that nothing runs when the disk fills up.
on_every_node() {
  local node image listed
  for node in $(docker ps -q --filter "label=io.x-k8s.kind.cluster=$CLUSTER"); do
    listed=$(docker exec "$node" ctr -n k8s.io images list -q) || return 1
    for image in "${IMAGES[@]}"; do grep -qxF "$image" <<<"$listed" || return 1; done
  done
}

if [ "${VX11_CLUSTER:-kind}" = existing ]; then
  step "existing cluster: it must be able to pull ${IMAGES[*]}"
  exit 0
fi
[ -s "$VX11_STATE/complete" ] || fail "no test cluster is running; start one with: make cluster"
locked images.lock
step "release builds of vx11-controller and operator-backend"
cargo build --release --locked -q --manifest-path "$ROOT/Cargo.toml" --target-dir "$TARGET" \
  -p vx11-controller -p operator-backend --bins
step "images ${IMAGES[*]}"
logged image-controller product_image vx11-controller controller
logged image-backend product_image operator-backend operator-backend
docker tag "$REGISTRY/operator-backend:$VERSION" "$REGISTRY/operator-backend:$VERSION-next"
if [ "$(wanted)" = "$(cat "$VX11_STATE/loaded" 2>/dev/null)" ] && on_every_node; then
  step "images are on the nodes already"
  exit 0
fi
logged load-images kind load docker-image --name "$CLUSTER" "${IMAGES[@]}"
wanted >"$VX11_STATE/loaded"
# What these names meant before.
docker image prune -f --filter "label=org.opencontainers.image.source=$SOURCE" >/dev/null || true
step "images are on the nodes"
