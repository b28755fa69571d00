#!/usr/bin/env bash
# Builds the two product images and loads them into the cluster's nodes. Runs after up.sh; `make images`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$CLUSTER_DIR/node-image.sh"

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
REGISTRY=ghcr.io/vx11

# product_image NAME FOLDER-OF-DOCKERFILE
product_image() {
  local name=$1 context=$VX11_STATE/images/$1 base=gcr.io/distroless/cc-debian12:nonroot
  rm -rf "$context"
  mkdir -p "$context/rootfs/usr/local/bin"
  install -m 755 "$TARGET/release/$name" "$context/rootfs/usr/local/bin/$name"
  if [ "$(cat "$VX11_STATE/registry")" = no ]; then
    base=scratch
    with_libraries "$context/rootfs" "$TARGET/release/$name"
  fi
  docker build -q -t "$REGISTRY/$name:$VERSION" --build-arg "BASE=$base" --build-arg "VERSION=$VERSION" \
    -f "$ROOT/$2/Dockerfile" "$context"
}

# The second name of the backend lets tests roll from one image to another.
load_images() {
  docker tag "$REGISTRY/operator-backend:$VERSION" "$REGISTRY/operator-backend:$VERSION-next"
  kind load docker-image --name "$CLUSTER" "$REGISTRY/vx11-controller:$VERSION" \
    "$REGISTRY/operator-backend:$VERSION" "$REGISTRY/operator-backend:$VERSION-next"
}

if [ "${VX11_CLUSTER:-kind}" = existing ]; then
  step "existing cluster: it must be able to pull $REGISTRY/{vx11-controller,operator-backend}:$VERSION"
  exit 0
fi
step "release builds of vx11-controller and operator-backend"
cargo build --release --locked -q --manifest-path "$ROOT/Cargo.toml" --target-dir "$TARGET" \
  -p vx11-controller -p operator-backend --bins
step "images $REGISTRY/{vx11-controller,operator-backend}:$VERSION"
logged image-controller product_image vx11-controller controller
logged image-backend product_image operator-backend operator-backend
logged load-images load_images
step "images are on the nodes"
