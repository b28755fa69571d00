#!/usr/bin/env bash
# Fuzzes every parser that reads what strangers send, 30 s each (VX11_FUZZ_SECONDS), with coverage guidance on the
# stable compiler: what cargo-fuzz needs a nightly for is the address sanitizer, which code without `unsafe` can do without.
set -euo pipefail
cd "$(dirname "$0")/../operator-backend/fuzz"

state=${VX11_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vx11}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
passes="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With an explicit target the flags stay away from build scripts and macros.
RUSTFLAGS="$passes --cfg fuzzing -Ccodegen-units=1" \
  cargo build --quiet --release --target "$host" --target-dir "$state/target"

mkdir -p "$state/log" "$state/found"
for target in request-head cursor publish-body stream-query signed-token; do
  mkdir -p "$state/corpus/$target"
  seeds=()
  [ -d "seeds/$target" ] && seeds=("seeds/$target")
  echo "fuzzing $target"
  log=$state/log/$target.log
  status=0
  "$state/target/$host/release/$target" -max_total_time="${VX11_FUZZ_SECONDS:-30}" -max_len=8192 -verbosity=0 \
    -print_final_stats=1 -artifact_prefix="$state/found/$target-" "$state/corpus/$target" "${seeds[@]}" >"$log" 2>&1 ||
    status=$?
  grep -E 'number_of_executed_units|new_units_added|ERROR|panicked|Test unit' "$log" || true
  [ "$status" = 0 ] || { echo "$target: found a failure (exit code $status), see $state/found and $log" >&2; exit 1; }
done
