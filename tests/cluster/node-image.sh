# shellcheck shell=bash
# The kind node image: pulled where a registry answers, else built from Debian packages and our binaries.

PATH_LINE='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

# Sets NODE_IMAGE; $VX11_STATE/registry says "yes" where images can be pulled.
node_image() {
  if docker image inspect "$KIND_NODE_IMAGE" >/dev/null 2>&1 || pull_node_image; then
    NODE_IMAGE=$KIND_NODE_IMAGE
    echo yes >"$VX11_STATE/registry"
    return
  fi
  echo no >"$VX11_STATE/registry"
  local inputs
  inputs=$(cat "$CLUSTER_DIR"/{versions.env,rootfs.sh,node-image.sh,manifests/default-storage.yaml} |
    sha256sum | cut -c1-12)
  NODE_IMAGE=vx11/kind-node:$(basename "$BIN")-$inputs
  if docker image inspect "$NODE_IMAGE" >/dev/null 2>&1; then return; fi
  prerequisites_node_image
  build_node_image
}

# Only with an engine that was here before us: whoever runs one has a way to a registry, or an answer at once.
pull_node_image() {
  if engine_is_ours; then return 1; fi
  step "pulling $KIND_NODE_IMAGE"
  timeout 600 docker pull -q "$KIND_NODE_IMAGE" >/dev/null 2>&1
}

build_node_image() {
  WORK=$VX11_STATE/node-image
  rm -rf "$WORK"
  mkdir -p "$WORK"
  step "node root file system (debootstrap), beside the following"
  begun node-rootfs node_rootfs
  node_binaries
  step "images of the control plane, the add-ons and the stand-ins"
  logged node-parts preloaded_images
  ended node-rootfs
  step "node image $NODE_IMAGE"
  logged node-commit commit_node_image
  rm -rf "$WORK"
  # Node images of earlier versions; one that still runs stays.
  docker images -q vx11/kind-node --filter "before=$NODE_IMAGE" | xargs -r docker rmi >/dev/null 2>&1 || true
}

# image NAME FOLDER DOCKERFILE-LINE…: an image of just that folder.
image() {
  local name=$1 folder=$2
  shift 2
  { printf '%s\n' 'FROM scratch' 'COPY . /' "$@"; } >"$folder.Dockerfile"
  docker build -q -t "$name" -f "$folder.Dockerfile" "$folder"
  echo "$name" >>"$WORK/names"
}

preloaded_images() {
  local part folder
  for part in kube-apiserver kube-controller-manager kube-scheduler; do
    folder=$WORK/$part
    mkdir -p "$folder/usr/local/bin" "$folder/tmp"
    cp "$BIN/$part" "$folder/usr/local/bin/"
    image "registry.k8s.io/$part:$KUBERNETES_VERSION" "$folder" "$PATH_LINE"
  done
  "$BIN/kubeadm" config images list --kubernetes-version "$KUBERNETES_VERSION" 2>/dev/null >"$WORK/list"
  mkdir -p "$WORK/etcd/usr/local/bin" "$WORK/coredns" "$WORK/pause" "$WORK/local-path/usr/bin"
  cp "$BIN/etcd" "$WORK/etcd/usr/local/bin/"
  image "$(grep /etcd: "$WORK/list")" "$WORK/etcd" "$PATH_LINE"
  cp "$BIN/coredns" "$WORK/coredns/"
  image "$(grep coredns "$WORK/list")" "$WORK/coredns" 'ENTRYPOINT ["/coredns"]'
  cp "$BIN/pause" "$WORK/pause/"
  image "$(grep /pause: "$WORK/list")" "$WORK/pause" 'ENTRYPOINT ["/pause"]'
  docker tag "$(grep /pause: "$WORK/list")" registry.k8s.io/pause:3.10
  echo registry.k8s.io/pause:3.10 >>"$WORK/names"
  cp "$BIN/local-path-provisioner" "$WORK/local-path/usr/bin/"
  image "docker.io/rancher/local-path-provisioner:$LOCAL_PATH_VERSION" "$WORK/local-path" \
    'ENTRYPOINT ["/usr/bin/local-path-provisioner"]'
  busybox_into "$WORK/busybox"
  image "$BUSYBOX_IMAGE" "$WORK/busybox" 'ENV PATH=/bin' 'CMD ["sh"]'
  kube_proxy_image
  ingress_images
  redis_image
  xargs docker save -o "$WORK/images.tar" <"$WORK/names"
}

# kube-proxy runs iptables and conntrack with all their extensions: without libm, "-m statistic" fails and
# every Service with several endpoints is dead.
kube_proxy_image() {
  local folder=$WORK/kube-proxy extensions=/usr/lib/x86_64-linux-gnu/xtables command
  [ -d "$extensions" ] || extensions=$(dirname "$(dpkg -L iptables libxtables12 | grep -m 1 libxt_statistic.so)")
  mkdir -p "$folder"/{usr/local/bin,usr/sbin,bin,etc,run,tmp} "$folder$(dirname "$extensions")"
  cp "$BIN/kube-proxy" "$folder/usr/local/bin/"
  cp "$(command -v xtables-nft-multi)" "$(command -v conntrack)" "$folder/usr/sbin/"
  for command in ip{,6}tables{,-save,-restore}; do ln -s xtables-nft-multi "$folder/usr/sbin/$command"; done
  cp -r "$extensions" "$folder$(dirname "$extensions")/"
  with_libraries "$folder" "$(command -v xtables-nft-multi)" "$(command -v conntrack)" "$extensions"/*.so
  cp /etc/protocols /etc/services "$folder/etc/" 2>/dev/null || true
  image "registry.k8s.io/kube-proxy:$KUBERNETES_VERSION" "$folder" "$PATH_LINE"
}

ingress_images() {
  mkdir -p "$WORK/contour/bin" "$WORK/contour/tmp" "$WORK/envoy/usr/local/bin" "$WORK/envoy/tmp"
  cp "$BIN/contour" "$WORK/contour/bin/"
  image "$CONTOUR_IMAGE" "$WORK/contour" 'ENV PATH=/bin' 'ENTRYPOINT ["/bin/contour"]'
  cp "$BIN/envoy-$ENVOY_VERSION" "$WORK/envoy/usr/local/bin/envoy"
  with_libraries "$WORK/envoy" "$BIN/envoy-$ENVOY_VERSION"
  chmod 1777 "$WORK/contour/tmp" "$WORK/envoy/tmp"
  image "$ENVOY_IMAGE" "$WORK/envoy" "$PATH_LINE" 'ENTRYPOINT ["/usr/local/bin/envoy"]'
}

redis_image() {
  local folder=$WORK/redis
  busybox_into "$folder"
  mkdir -p "$folder/usr/local/bin" "$folder/data"
  cp -L "$(command -v redis-server)" "$(command -v redis-cli)" "$folder/usr/local/bin/"
  with_libraries "$folder" "$(command -v redis-server)" "$(command -v redis-cli)"
  image "$REDIS_IMAGE" "$folder" 'ENV PATH=/usr/local/bin:/bin' 'RUN chown -R 999:999 /data' 'USER 999:999' \
    'WORKDIR /data' 'CMD ["redis-server"]'
}

# kind's own base files (entrypoint, units, containerd's configuration) on Debian.
node_rootfs() {
  local root=$WORK/rootfs files
  files=$(in_module go mod download -json sigs.k8s.io/kind | jq -r .Dir)/images/base/files
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,containerd,runc,iptables,iproute2,kmod,conntrack,ethtool,socat,mount,ca-certificates,curl,jq,procps,hostname,pigz,nfs-common,containernetworking-plugins bookworm "$root"
  cp -r --no-preserve=mode "$files/etc/." "$root/etc/"
  mkdir -p "$root"/{kind/manifests,etc/kubernetes/manifests,opt/cni/bin,etc/cni/net.d}
  cp -r --no-preserve=mode "$files/kind/." "$root/kind/"
  chmod 755 "$root/kind" "$root/kind/bin" "$root"/kind/bin/*
  install -m 755 "$files"/usr/local/bin/* "$root/usr/local/bin/"
  rm -f "$root"/lib/systemd/system/{sysinit.target.wants/systemd-tmpfiles-setup.service,multi-user.target.wants/*,local-fs.target.wants/*,sockets.target.wants/*udev*,sockets.target.wants/*initctl*,basic.target.wants/*} \
    "$root"/etc/systemd/system/*.wants/*
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  local program
  for program in containerd ctr containerd-shim-runc-v2; do ln -sf "/usr/bin/$program" "$root/usr/local/bin/$program"; done
  chroot "$root" systemctl -q enable kubelet.service containerd.service undo-mount-hacks.service
  chroot "$root" systemctl -q mask systemd-binfmt.service
  "$root/usr/bin/ctr" oci spec | jq 'del(.process.rlimits)' >"$root/etc/containerd/cri-base.json"
  sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root/etc/containerd/config.toml"
  sed -i '/^Limit.*infinity/d;/^OOMScoreAdjust/d' "$root/etc/systemd/system/containerd.service"
  cp "$root"/usr/lib/cni/{bridge,host-local,loopback,ptp,portmap} "$root/opt/cni/bin/"
  echo "$KUBERNETES_VERSION" >"$root/kind/version"
  cp "$CLUSTER_DIR/manifests/default-storage.yaml" "$root/kind/manifests/default-storage.yaml"
  rm -rf "$root/var/cache/apt" "$root/usr/share/doc" "$root/usr/share/man"
  mkdir -p "$root/var/cache/apt"
}

# The root file system with the images preloaded into its containerd.
commit_node_image() {
  local entrypoint='ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]' builder=$CLUSTER-node-build
  cp "$BIN"/{kubeadm,kubectl,kubelet} "$WORK/rootfs/usr/bin/"
  tar -C "$WORK/rootfs" -c . | docker import - vx11/node-rootfs:build
  # docker import takes no STOPSIGNAL; a build does, and the commit below keeps it.
  printf 'FROM vx11/node-rootfs:build\nENV container=docker\nSTOPSIGNAL SIGRTMIN+3\n%s\n' "$entrypoint" |
    docker build -q -t vx11/node-base:build -
  docker rm -f "$builder" >/dev/null 2>&1 || true
  docker run -d --name "$builder" --privileged --entrypoint sleep -v "$WORK:/work" vx11/node-base:build infinity
  # shellcheck disable=SC2016  # expanded inside the container
  docker exec "$builder" sh -c 'containerd >/dev/null 2>&1 & p=$!
    for i in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.2; done
    ctr -n k8s.io images import --no-unpack /work/images.tar; result=$?
    kill $p; wait $p; rm -rf /tmp/*; exit $result'
  docker commit --change "$entrypoint" "$builder" "$NODE_IMAGE"
  docker rm -f "$builder"
  # The parts live on inside the node image; the engine's own copies are not needed.
  { cat "$WORK/names"; echo vx11/node-base:build vx11/node-rootfs:build; } | xargs docker rmi >/dev/null 2>&1 || true
}
