#!/usr/bin/env bash
# From nothing to a streaming VX11 cluster: a Kubernetes, the images, the chart, one manifest, and then the proof
# that a token of one instance opens a stream on another. Exits 0 only if all of it happened.
# shellcheck source=tests/demo-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/demo-lib.sh"
cd "$ROOT"

work=$(mktemp -d)
children=()
finish() {
  for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

title() { printf '\n== %s\n' "$*"; }
shown() {
  printf '$ %s\n' "$*"
  "$@"
}

# --- Kubernetes, images, operator, cluster -----------------------------------------------------------------------

install_operator() {
  # The images keep their tag while they are worked on, so their ids tell whether pods must be made anew.
  local id
  id=$(docker image inspect --format '{{.Id}}' "ghcr.io/vx11/vx11-controller:$VERSION" 2>/dev/null || echo "$VERSION")
  shown helm upgrade --install vx11-operator charts/vx11-operator --namespace vx11-system --create-namespace \
    --set-string "podAnnotations.vx11\.io/image=$id" --wait --timeout 3m >"$work/helm" || fail "$(cat "$work/helm")"
  head -n 1 "$work/helm"
  kubectl -n vx11-system get pods -l app.kubernetes.io/name=vx11-operator
}

renew_instances() {
  local id last=$VX11_STATE/demo-backend-image
  id=$(docker image inspect --format '{{.Id}}' "ghcr.io/vx11/operator-backend:$VERSION" 2>/dev/null || echo "$VERSION")
  if [ -e "$last" ] && [ "$(cat "$last")" != "$id" ]; then
    step "the backend image changed: renewing the instances"
    kubectl -n "$NAMESPACE" delete pod -l "app.kubernetes.io/instance=$NAME,app.kubernetes.io/component=backend" \
      --ignore-not-found --wait
  fi
  echo "$id" >"$last"
}

wait_until_ready() {
  local deadline=$((SECONDS + 180)) last='' generation observed ready line
  while :; do
    # One question, so that what is shown is what is decided on.
    IFS='|' read -r generation observed ready line <<<"$(field '{.metadata.generation}|{.status.observedGeneration}|{.status.conditions[?(@.type=="Ready")].status}|{.status.readyInstances} of {.spec.instances} instances serve, Redis {.status.redis.state}; {.status.conditions[?(@.type=="Ready")].message}')"
    if [ "$line" != "$last" ] && [[ $line = [0-9]* ]]; then step "$line"; fi
    last=$line
    if [ "$ready" = True ] && [ "$generation" = "$observed" ]; then return; fi
    [ "$SECONDS" -lt "$deadline" ] || {
      kubectl -n "$NAMESPACE" describe vx11 "$NAME" >&2
      fail "$NAME did not become Ready within 3 minutes: $line"
    }
    sleep 0.5
  done
}

# --- A way to each instance by itself ----------------------------------------------------------------------------
# Through the Ingress nobody chooses the instance; a port-forward does, and its admin port counts what it did.

pods=()
declare -A http admin
reach_instances() {
  local pod
  # Not those that are on their way out.
  mapfile -t pods < <(kubectl -n "$NAMESPACE" get pods --field-selector status.phase=Running \
    -l "app.kubernetes.io/instance=$NAME,app.kubernetes.io/component=backend" -o go-template \
    --template '{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}')
  [ "${#pods[@]}" = 3 ] || fail "expected three instances, found ${#pods[@]}: ${pods[*]}"
  for pod in "${pods[@]}"; do
    kubectl -n "$NAMESPACE" port-forward "pod/$pod" :8001 :9090 >"$work/forward-$pod" 2>&1 &
    children+=($!)
  done
  for pod in "${pods[@]}"; do
    wait_for 20 "a port-forward to $pod" grep -q -- '127.0.0.1:.*-> 9090' "$work/forward-$pod"
    http[$pod]=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\) -> 8001.*/\1/p' "$work/forward-$pod")
    admin[$pod]=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\) -> 9090.*/\1/p' "$work/forward-$pod")
  done
}

# count POD METRIC: one number of its /metrics.
count() { curl -sf "http://127.0.0.1:${admin[$1]}/metrics" | awk -v name="$2" '$1 == name {print $2; found = 1} END {if (!found) print 0}'; }

declare -A before
who=''
remember() { for pod in "${pods[@]}"; do before[$pod]=$(count "$pod" "$1"); done; }
# grown METRIC: sets who to the instance whose count grew since `remember METRIC`.
grown() {
  for pod in "${pods[@]}"; do
    if [ "$(count "$pod" "$1")" != "${before[$pod]}" ]; then
      who=$pod
      return 0
    fi
  done
  return 1
}
expect_grown() { wait_for 5 "an instance that counted it in $1" grown "$1"; }

# --- What a client does ------------------------------------------------------------------------------------------

issue() { # issue BASE-URL: sets sse_token
  local answer
  answer=$(curl -sS -f -X POST -H "X-VX11-Token: $principal" "$1/operator/api/events/sse-token") ||
    fail "no token from $1"
  sse_token=$(sed -n 's/.*"sse_token":"\([^"]*\)".*/\1/p' <<<"$answer")
  [ -n "$sse_token" ] || fail "the answer of $1 has no sse_token: $answer"
}

open_stream() { # open_stream BASE-URL FILE: with $sse_token, in the background, until its first event is there
  curl -sS -f -N "$1/operator/api/events/stream?token=$sse_token" >"$2" 2>"$2.error" &
  stream=$!
  children+=("$stream")
  wait_for 10 "a snapshot on the stream of $1" grep -q '^event: snapshot' "$2"
}

publish() { # publish BASE-URL TEXT
  curl -sS -f -X POST -H "X-VX11-Token: $principal" -H 'Content-Type: application/json' \
    --data "{\"event\":\"demo\",\"data\":{\"text\":\"$2\"}}" "$1/operator/api/events" >"$work/published" ||
    fail "publishing through $1 failed"
}

expect_event() { # expect_event FILE TEXT
  wait_for 10 "the event \"$2\" on the stream" grep -q "$2" "$1"
  # The lines of that event: everything since the last empty line before its data.
  awk -v text="$2" 'BEGIN {RS = ""} /event: demo/ && index($0, text) {gsub(/\n/, "\n       "); print "       " $0; exit}' "$1"
}

close_stream() {
  kill "$stream" 2>/dev/null || true
  wait "$stream" 2>/dev/null || true
}

# --- The demo ----------------------------------------------------------------------------------------------------

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

title "A Kubernetes"
tests/cluster/up.sh
title "The images"
tests/cluster/images.sh
# Both scripts may have started an engine and put tools in place: read again where they are.
# shellcheck source=tests/demo-lib.sh
. tests/demo-lib.sh

title "The operator"
install_operator

title "A VX11 cluster"
kubectl create namespace "$NAMESPACE" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
renew_instances
shown kubectl apply -n "$NAMESPACE" -f examples/quickstart.yaml
wait_until_ready
shown kubectl get vx11 -n "$NAMESPACE"
shown kubectl get pods -n "$NAMESPACE" -o wide

# The quickstart answers for every host name. Where another Ingress does so too, nobody knows who gets a request.
# shellcheck disable=SC2016 # the $ is of the template
rivals=$(kubectl get ingress -A -o go-template --template '{{range .items}}{{$of := .metadata}}{{range .spec.rules}}{{if not .host}}{{$of.namespace}}/{{$of.name}} {{end}}{{end}}{{end}}' |
  tr ' ' '\n' | grep -vx "$NAMESPACE/$NAME" | xargs || true)
[ -z "$rivals" ] || fail "these Ingresses answer for every host name too: $rivals; give them a host, or delete them"

principal=$(principal_token)
base=$(endpoint)
reach_instances
# The Ingress controller learns of new endpoints a moment after the cluster is Ready.
wait_for 30 "an answer through the Ingress at $base" curl -sf "$base/health"

title "Through the Ingress, as a client"
remember vx11_sse_token_issued_total
issue "$base"
expect_grown vx11_sse_token_issued_total
step "token ${sse_token:0:8}… issued by            $who"
remember vx11_sse_streams_open
open_stream "$base" "$work/ingress"
expect_grown vx11_sse_streams_open
step "stream opened with it on         $who"
remember vx11_events_published_total
marker="hello $(date -u +%H:%M:%S) $RANDOM"
publish "$base" "$marker"
expect_grown vx11_events_published_total
step "event published on               $who"
step "event arrived on the stream:"
expect_event "$work/ingress" "$marker"
close_stream

title "Instance by instance"
first=${pods[0]} second=${pods[1]} third=${pods[2]}
issue "http://127.0.0.1:${http[$first]}"
step "token ${sse_token:0:8}… issued by            $first"
remember vx11_sse_streams_open
open_stream "http://127.0.0.1:${http[$second]}" "$work/direct"
expect_grown vx11_sse_streams_open
[ "$who" = "$second" ] || fail "the stream was to open on $second and opened on $who"
step "opens a stream on                $second"
marker="across $(date -u +%H:%M:%S) $RANDOM"
publish "http://127.0.0.1:${http[$third]}" "$marker"
step "which receives the event from    $third:"
expect_event "$work/direct" "$marker"
close_stream

title "It works ($(elapsed) s). Try next"
cat <<TEXT
  export KUBECONFIG=\$(make kubeconfig)
  kubectl get vx11 -n $NAMESPACE -o wide
  kubectl describe vx11 $NAME -n $NAMESPACE
  kubectl scale vx11 $NAME -n $NAMESPACE --replicas=5
  kubectl delete pod -n $NAMESPACE $first   # streams move on, nothing is lost
  curl -X POST -H "X-VX11-Token: \$(make token)" \$(make endpoint)/operator/api/events/sse-token
  kubectl explain vx11cluster.spec
  make down                                         # remove all of it
TEXT
