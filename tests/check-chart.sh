#!/usr/bin/env bash
# Checks the chart without a cluster: lint, rendering with several sets of values, refusal of wrong values,
# rights and versions that agree, and a README that names every value.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/cluster/lib.sh
. tests/cluster/lib.sh
chart=charts/vx11-operator

if ! command -v helm >/dev/null; then
  # shellcheck source=tests/cluster/prerequisites.sh
  . tests/cluster/prerequisites.sh
  # shellcheck source=tests/cluster/binaries.sh
  . tests/cluster/binaries.sh
  prerequisites_common
  tools
fi

render() { helm template vx11-operator "$chart" --namespace vx11-system --kube-version 1.35.0 "$@"; }

# expect_kinds COUNT KIND ARGS…: how many objects of a kind the values render.
expect_kinds() {
  local want=$1 kind=$2 found
  shift 2
  found=$(render "$@" | grep -c "^kind: $kind\$" || true)
  [ "$found" = "$want" ] || fail "helm template $*: $found objects of kind $kind, expected $want"
}

# expect_refusal WORD ARGS…: the values schema refuses the values and names the key.
expect_refusal() {
  local word=$1 output
  shift
  if output=$(render "$@" 2>&1); then fail "helm template $*: accepted, expected a refusal"; fi
  [[ $output == *"$word"* ]] || fail "helm template $*: the refusal does not name $word: $output"
}

helm lint --strict --quiet "$chart"

expect_kinds 1 Deployment
expect_kinds 2 ClusterRoleBinding
expect_kinds 1 CustomResourceDefinition
expect_kinds 0 CustomResourceDefinition --set crds.install=false
expect_kinds 1 PodDisruptionBudget
expect_kinds 0 PodDisruptionBudget --set replicas=1
expect_kinds 3 Role --set 'watchNamespaces={team-a,team-b}'
expect_kinds 0 ClusterRole --set 'watchNamespaces={team-a}' --set rbac.classReader=false --set rbac.aggregateToUserRoles=false
expect_kinds 0 Role --set rbac.create=false
expect_kinds 0 Service --set metrics.service.enabled=false
expect_kinds 0 ServiceAccount --set serviceAccount.create=false --set serviceAccount.name=mine

[[ $(render) == *"helm.sh/resource-policy: keep"* ]] || fail "the CRD lost its keep policy"
[[ $(render --set crds.keep=false) != *"helm.sh/resource-policy: keep"* ]] || fail "crds.keep=false keeps the CRD"
[[ $(render --set image.digest="sha256:$(printf '0%.0s' {1..64})") == *"vx11-controller@sha256:0000"* ]] ||
  fail "image.digest does not win over the tag"

expect_refusal replica --set replica=3
expect_refusal /replicas --set replicas=many
expect_refusal tga --set image.tga=1
expect_refusal /watchNamespaces --set 'watchNamespaces={Not_A_Name}'
expect_refusal app.kubernetes.io/name --set 'podLabels.app\.kubernetes\.io/name=x'
expect_refusal serviceAccount.name --set serviceAccount.create=false

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
for key in version appVersion; do
  grep -qx "$key: $version" "$chart/Chart.yaml" || fail "Chart.yaml: $key is not the workspace's version $version"
done

# The role grants what the code says it uses (controller/src/permissions.rs), no more and no less.
granted() {
  render --show-only templates/rbac-controller.yaml | awk '
    function items(line) { gsub(/.*\[|\].*|"| /, "", line); return line }
    /apiGroups:/ { group = items($0) }
    /resources:/ { resources = items($0) }
    /verbs:/ {
      count = split(resources, names, ","); verb_count = split(items($0), verbs, ",")
      for (i = 1; i <= count; i++) for (j = 1; j <= verb_count; j++) print group "/" names[i], verbs[j]
    }' | sort -u
}
used() {
  local source name verbs
  source=$(sed '/^mod tests/,$d' controller/src/permissions.rs | tr -d '\n')
  for name in OWNED KEPT; do
    verbs=$(grep -oE "const $name: &\[&str\] = &\[[^]]*\]" <<<"$source" | sed 's/.*= //')
    source=${source//", $name,"/", $verbs,"}
  done
  grep -oE 'rule\( *"[^"]*", *"[^"]*", *&\[[^]]*\]' <<<"$source" |
    sed -E 's/rule\( *"([^"]*)", *"([^"]*)", *&\[(.*)\]/\1|\2|\3/' |
    awk -F '|' '{gsub(/"| /, "", $3); count = split($3, verbs, ","); for (i = 1; i <= count; i++) if (verbs[i] != "") print $1 "/" $2, verbs[i]}' |
    sort -u
}
[ "$(used | wc -l)" -gt 20 ] || fail "controller/src/permissions.rs is not read as it is written now"
diff <(used) <(granted) || fail "the chart's role (>) is not what controller/src/permissions.rs says (<)"

# Every value of the schema, leaf by leaf, stands in the README's table.
jq -r 'def leaves($path): to_entries[] | ($path + [.key]) as $here
    | if .value.properties and ($here[0] != "resources") then .value.properties | leaves($here) else $here | join(".") end;
  .properties | leaves([])' "$chart/values.schema.json" | grep -v '^global$' | while read -r value; do
  grep -qF "| \`$value\` |" "$chart/README.md" || fail "$chart/README.md does not describe the value $value"
done
echo "chart: lint, rendering, refusals, rights, versions and README agree"
