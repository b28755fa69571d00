# shellcheck shell=bash
# Proves, before anything else runs, what a Ready cluster can still lack: DNS, a Service with several
# endpoints, a volume, a kube-proxy whose rules were accepted, and the Ingress port on 127.0.0.1.

smoke_test() {
  if [ -e "$VX11_STATE/smoke-passed" ]; then return; fi
  step "smoke test: DNS, a Service with three endpoints, a volume, kube-proxy, the Ingress"
  logged smoke run_smoke_test
  touch "$VX11_STATE/smoke-passed"
}

run_smoke_test() {
  local namespace=vx11-smoke
  kctl delete namespace "$namespace" --ignore-not-found --wait
  kctl create namespace "$namespace"
  kctl -n "$namespace" apply -f "$CLUSTER_DIR/manifests/smoke.yaml"
  kctl -n "$namespace" rollout status deployment/echo --timeout=90s
  if ! kctl -n "$namespace" wait --for=condition=Complete job/client --timeout=90s; then
    kctl -n "$namespace" get pods,pvc,endpointslices -o wide
    kctl -n "$namespace" logs job/client
    return 1
  fi
  local answers
  answers=$(kctl -n "$namespace" logs job/client | grep -E '^echo-' | sort -u | wc -l)
  echo "$answers of 3 endpoints answered"
  [ "$answers" = 3 ]
  if kctl -n kube-system logs -l k8s-app=kube-proxy --tail=-1 | grep 'Sync failed'; then
    echo "kube-proxy could not install its rules"
    return 1
  fi
  wait_for 30 "an answer from an Ingress at http://127.0.0.1:$HTTP_PORT" \
    curl -sf -m 5 -H 'Host: smoke.vx11.test' "http://127.0.0.1:$HTTP_PORT/"
  kctl delete namespace "$namespace" --wait=false
}
