#!/usr/bin/env bash
# Checks every shell script of the project with shellcheck, and that each one can be run.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v shellcheck >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: shellcheck is missing; install the package shellcheck and run again" >&2
    exit 1
  fi
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends shellcheck >/dev/null
fi

mapfile -t scripts < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run)
shellcheck -x --source-path=SCRIPTDIR --source-path=. "${scripts[@]}"
for script in "${scripts[@]}"; do
  # A script that is sourced says so in its first line and needs no mode.
  if [ "$(head -c 2 "$script")" = '#!' ] && [ ! -x "$script" ]; then
    echo "error: $script starts with #! and is not executable: chmod +x $script" >&2
    exit 1
  fi
done
echo "scripts: ${#scripts[@]} checked"
