# shellcheck shell=bash
# The kind cluster: one control plane and two workers, audit log on, everything reachable on 127.0.0.1.

kctl() { kubectl --kubeconfig "$KUBECONFIG_FILE" "$@"; }

# The nodes as they run now. Where the pod network is ours, a node that was started again has lost its routes; the
# published node images bring theirs back.
node_runs() {
  local format='{{.Id}} {{.State.StartedAt}}'
  if [ "$(cat "$VX11_STATE/registry")" = yes ]; then format='{{.Id}}'; fi
  docker ps -q --no-trunc --filter "label=io.x-k8s.kind.cluster=$CLUSTER" | sort | xargs -r docker inspect -f "$format"
}

# Whether the cluster was completed once, by these very nodes, and its API server is ready.
cluster_answers() {
  [ -s "$VX11_STATE/complete" ] && [ "$(node_runs)" = "$(cat "$VX11_STATE/complete")" ] &&
    kctl get --raw /readyz --request-timeout=5s >/dev/null 2>&1
}

cluster_up() {
  if [ -n "$(docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER")" ]; then
    step "the kind cluster $CLUSTER is incomplete or was restarted: creating it anew"
    logged kind-delete kind delete cluster --name "$CLUSTER"
  fi
  rm -f "$VX11_STATE"/{complete,loaded}
  mkdir -p "$VX11_STATE/audit" "$VX11_STATE/policy"
  rm -f "$VX11_STATE/audit/"* "$VX11_STATE/smoke-passed"
  cp "$CLUSTER_DIR/manifests/audit-policy.yaml" "$VX11_STATE/policy/audit.yaml"
  kind_config >"$VX11_STATE/kind.yaml"
  step "kind cluster $CLUSTER: one control plane, two workers"
  logged kind-create kind create cluster --name "$CLUSTER" --image "$NODE_IMAGE" \
    --config "$VX11_STATE/kind.yaml" --kubeconfig "$KUBECONFIG_FILE"
  if engine_is_ours; then remember_bridges; fi
  # Root in the node wrote it; tests and benchmarks read it on the host as anybody.
  docker exec "$CLUSTER-control-plane" chmod 644 /var/log/audit/audit.log
  if [ "$(cat "$VX11_STATE/registry")" = no ]; then pod_network; fi
  step "waiting for nodes and cluster DNS"
  logged nodes-ready kctl wait --for=condition=Ready node --all --timeout=120s
  logged dns-ready kctl -n kube-system rollout status deployment/coredns --timeout=120s
  node_runs >"$VX11_STATE/complete"
}

kind_config() {
  cat <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
YAML
  if [ "$(cat "$VX11_STATE/registry")" = no ]; then
    # Our node image has no kindnetd, and Debian's containerd drives cgroups itself.
    cat <<YAML
networking: {disableDefaultCNI: true}
containerdConfigPatches:
- |-
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
YAML
  fi
  cat <<YAML
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
YAML
  if [ "$(cat "$VX11_STATE/registry")" = no ]; then printf '  cgroupDriver: cgroupfs\n  cgroupRoot: /\n'; fi
  # Kubernetes 1.35 refuses cgroup v1 hosts unless told otherwise.
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then echo '  failCgroupV1: true'; else echo '  failCgroupV1: false'; fi
  cat <<YAML
nodes:
- role: control-plane
  labels: {vx11.test/ingress: "true"}
  extraPortMappings:
  - {containerPort: 80, hostPort: $HTTP_PORT, listenAddress: 127.0.0.1}
  extraMounts:
  - {hostPath: $VX11_STATE/audit, containerPath: /var/log/audit}
  - {hostPath: $VX11_STATE/policy, containerPath: /etc/kubernetes/policy, readOnly: true}
  kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    apiServer:
      extraArgs:
        audit-policy-file: /etc/kubernetes/policy/audit.yaml
        audit-log-path: /var/log/audit/audit.log
      extraVolumes:
      - {name: policy, hostPath: /etc/kubernetes/policy, mountPath: /etc/kubernetes/policy, readOnly: true, pathType: Directory}
      - {name: audit, hostPath: /var/log/audit, mountPath: /var/log/audit, pathType: Directory}
- role: worker
- role: worker
YAML
}

# A bridge on each node and a route to each other node's pods: what kindnetd would do.
pod_network() {
  local nodes=$VX11_STATE/nodes node range other other_range other_address
  kctl get nodes -o json | jq -r '.items[] | [.metadata.name, .spec.podCIDR,
    (.status.addresses[] | select(.type == "InternalIP") | .address | select(contains(".")))] | @tsv' >"$nodes"
  while read -r node range _; do
    jq -n --arg range "$range" '{cniVersion: "0.4.0", name: "bridge", plugins: [
      {type: "bridge", bridge: "cni0", isGateway: true, hairpinMode: true,
       ipam: {type: "host-local", ranges: [[{subnet: $range}]], routes: [{dst: "0.0.0.0/0"}]}},
      {type: "portmap", capabilities: {portMappings: true}}]}' |
      docker exec -i "$node" sh -c 'cat > /etc/cni/net.d/10-bridge.conflist'
    while read -r other other_range other_address; do
      if [ "$other" != "$node" ]; then docker exec "$node" ip route replace "$other_range" via "$other_address" </dev/null; fi
    done <"$nodes"
  done <"$nodes"
}
