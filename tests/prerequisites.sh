#!/usr/bin/env bash
# The programs that the unit tests call: installed where we may, named with their remedy where not. Nothing is asked of
# apt when all are there.
# shellcheck source=tests/cluster/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"
# shellcheck source=tests/cluster/prerequisites.sh
. "$CLUSTER_DIR/prerequisites.sh"
# Where only root's PATH leads: ip and nft.
PATH=$PATH:/usr/sbin:/sbin

need redis-server redis-server
need redis-cli redis-tools
# Chrome does as well; Debian's is the one that can be installed from here.
command -v google-chrome >/dev/null || need chromium chromium
need chromedriver chromium-driver
need ip iproute2
need curl curl
need nft nftables
need ps procps
need openssl openssl
need setsid util-linux
install_missing
