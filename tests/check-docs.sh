#!/usr/bin/env bash
# Holds the pages against the code: links resolve, tasks exist, and metrics, conditions and examples are all
# documented, and only those that exist.
set -euo pipefail
cd "$(dirname "$0")/.."
problems=0
problem() {
  echo "error: $*" >&2
  problems=$((problems + 1))
}

mapfile -t pages < <(git ls-files --cached --others --exclude-standard -- '*.md')

# Relative links, without their anchors.
for page in "${pages[@]}"; do
  while read -r link; do
    target=$(dirname "$page")/${link%%#*}
    [ -e "$target" ] || problem "$page links to $link, which does not exist"
  done < <(grep -oE '\]\([^)]+\)' "$page" | sed 's/^](//; s/)$//' | grep -vE '^(https?:|mailto:|#)' || true)
  while read -r target; do
    grep -qE "^$target:" Makefile || problem "$page mentions make $target, which does not exist"
  done < <(grep -oE '(`|^|\()make [a-z][a-z0-9-]+' "$page" | sed 's/.*make //' | sort -u)
done

# Metrics of the instances: each one in the code is in the page, each one in the page is in the code.
monitoring=docs/monitoring.md
code=operator-backend/src/metrics.rs
while read -r metric; do
  grep -qE "\`$metric(_total)?[\`{]" "$monitoring" || problem "$monitoring lacks the metric $metric"
done < <(sed '/^mod tests/,$d' "$code" | grep -oE '"vx11_[a-z_]+"' | tr -d '"' | sort -u)
while read -r metric; do
  name=${metric%_total}
  own=${name#vx11_controller_} # the registry adds the prefix, and the unit
  grep -q "\"$name\"" "$code" || grep -q "\"${own%_seconds}\"" controller/src/telemetry.rs controller/src/telemetry/*.rs || problem "$monitoring has the metric $metric, which does not exist"
done < <(grep -oE '`vx11_[a-z_]+' "$monitoring" | tr -d '`' | grep -v '^vx11_cluster$' | sort -u)
# Metrics of the controller: each one that is registered is in the page.
while read -r metric; do
  grep -qE "\`vx11_controller_$metric(_seconds|_total)?[\`{]" "$monitoring" || problem "$monitoring lacks the metric vx11_controller_$metric"
done < <(
  sed '/^mod tests/,$d' controller/src/telemetry.rs | tr -d '\n' | grep -oE 'register(_with_unit)?\( *"[a-z_]+"' | grep -oE '"[a-z_]+"' | tr -d '"'
  grep -oE '"cluster_[a-z_]+"' controller/src/telemetry/clusters.rs | tr -d '"'
)

# Dependencies: each one has its reason.
while read -r dependency; do
  grep -qE "(^\| |[ ,])$dependency( |,|\()" docs/dependencies.md || problem "docs/dependencies.md gives no reason for $dependency"
done < <(sed -n '/^\[workspace.dependencies\]/,/^\[workspace.lints/p' Cargo.toml | grep -oE '^[a-z0-9_-]+ =' | tr -d ' =' | grep -v '^vx11-')

# Examples.
for example in examples/*.yaml; do
  grep -q "$example" README.md || problem "README.md does not list $example"
done

# Reasons of conditions and events.
conditions=docs/troubleshooting/conditions.md
while read -r reason; do
  grep -q "\`$reason\`" "$conditions" || problem "$conditions lacks the reason $reason"
done < <(tests/reasons.sh)
# shellcheck disable=SC2016 # backticks are what is looked for
while read -r reason; do
  grep -rqF "\"$reason\"" controller/src || problem "$conditions has the reason $reason, which no code gives"
done < <(grep -oE '^\| `[A-Z][A-Za-z]+`' "$conditions" | tr -d '|` ' | sort -u)

[ "$problems" = 0 ] || exit 1
echo "docs: ${#pages[@]} pages agree with the code"
