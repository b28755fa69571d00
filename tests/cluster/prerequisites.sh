# shellcheck shell=bash
# The programs the other scripts call: installed where we may, named with their remedy where not.

# need COMMAND DEBIAN-PACKAGE: remembers the package when the command is missing.
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "missing programs; install these (Debian package names) and run again: ${missing[*]}"
  fi
  step "Debian packages: ${missing[*]}"
  logged apt-update apt-get update -qq
  # No service of these packages may start by itself: a policy file says so while they install.
  local policy=/usr/sbin/policy-rc.d ours=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    ours=1
  fi
  DEBIAN_FRONTEND=noninteractive logged apt-install apt-get install -y -qq --no-install-recommends "${missing[@]}"
  if [ -n "$ours" ]; then rm -f "$policy"; fi
  missing=()
}

prerequisites_common() {
  need jq jq
  need curl curl
  need gcc gcc
  need openssl openssl
  install_missing
  command -v go >/dev/null || fail "Go 1.25 or later is needed to build kind and helm: https://go.dev/doc/install"
  command -v cargo >/dev/null || fail "Rust is needed to build the images: https://rustup.rs"
}

# What a node image and stand-in images out of registry packages need.
prerequisites_node_image() {
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
  need xtables-nft-multi iptables
  install_missing
  [ "$(id -u)" = 0 ] || fail "no Docker engine answers, and starting one needs root; start Docker and run again"
}
