# shellcheck shell=bash
# The programs the other scripts call: installed where we may, named with their remedy where not.

# need COMMAND-OR-FILE DEBIAN-PACKAGE: remembers the package when it is missing.
missing=()
need() { [ -e "$1" ] || command -v "$1" >/dev/null || missing+=("$2"); }

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "missing programs; install these (Debian package names) and run again: ${missing[*]}"
  fi
  step "Debian packages: ${missing[*]}"
  logged apt-update apt-get update -qq
  logged apt-install install_quietly "${missing[@]}"
  missing=()
}

# No service of these packages may start by itself: a policy file says so while they install.
install_quietly() {
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    # shellcheck disable=SC2064  # the path of now
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

prerequisites_common() {
  need jq jq
  need curl curl
  install_missing
  command -v go >/dev/null || fail "Go 1.26 or later is needed to build kind and helm: https://go.dev/doc/install"
  command -v cargo >/dev/null || fail "Rust is needed to build the images: https://rustup.rs"
}

# What a node image and stand-in images out of registry packages need.
prerequisites_node_image() {
  need gcc gcc
  need /usr/include/stdio.h libc6-dev
  need debootstrap debootstrap
  need busybox busybox-static
  need conntrack conntrack
  need xtables-nft-multi iptables
  need redis-server redis-server
  need pip3 python3-pip
  install_missing
  [ "$(id -u)" = 0 ] || fail "no node image can be pulled, and building one needs root (debootstrap)"
}

prerequisites_engine() {
  need dockerd docker.io
  need python3 python3
  need ip iproute2
  need nft nftables
  need xtables-nft-multi iptables
  install_missing
  [ "$(id -u)" = 0 ] || fail "no Docker engine answers, and starting one needs root; start Docker and run again"
}
