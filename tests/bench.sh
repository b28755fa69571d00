#!/usr/bin/env bash
# Measures the product beside its peers and prints the figures: tests/bench.sh backend|operator [OPTION…], such as
#   tests/bench.sh backend --only issuance --rounds 3
# The operator is measured on the test cluster, which is brought up first.
# shellcheck source=tests/cluster/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"
# shellcheck source=tests/cluster/prerequisites.sh
. "$CLUSTER_DIR/prerequisites.sh"
cd "$ROOT"
if [ "${1:-}" = operator ]; then
  tests/cluster/up.sh
  tests/cluster/images.sh
else
  need nginx nginx
  need /usr/lib/nginx/modules/ngx_nchan_module.so libnginx-mod-nchan
  need redis-server redis-server
  need taskset util-linux
  need /usr/share/doc/python3-venv python3-venv
  need pip3 python3-pip
  install_missing

  peers=tests/bench/peers
  environment=$VX11_CACHE/bench-peers-$(sha256sum $peers/requirements.txt | cut -c1-8)
  if [ ! -x "$environment/bin/uvicorn" ]; then
    step "the Python peer's packages"
    rm -rf "$environment"
    logged bench-venv python3 -m venv "$environment"
    logged bench-packages "$environment/bin/pip" install -q -r $peers/requirements.txt
  fi
  export VX11_BENCH_PYTHON=$environment/bin/python
fi

# Measurements of latency change it, and would leave it so when they are interrupted.
halt_poll=/sys/module/haltpoll/parameters/guest_halt_poll_ns
if [ -w $halt_poll ]; then
  polled_for=$(cat $halt_poll)
  trap 'echo "$polled_for" >$halt_poll' EXIT
fi

step "release builds"
cargo build --release --locked -q -p operator-backend -p vx11-bench
ulimit -n "$(ulimit -Hn)"
"${CARGO_TARGET_DIR:-target}/release/vx11-bench" "$@"
