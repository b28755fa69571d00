# shellcheck shell=bash
# What an engine and a kubelet change on the host and do not change back: kept before, restored after.
# No "… | grep -q" here: grep stops reading at a match, the writer may die of it, and with pipefail a match then
# counts as none.

# Settings that dockerd and the kubelets of a kind cluster write, and that reach beyond their containers.
SETTINGS=(net/ipv4/ip_forward vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

# Once, before the first start of the engine; after a crash the first state counts.
remember_host() {
  local before=$ENGINE/before setting
  if [ -d "$before" ]; then return; fi
  rm -rf "$before.new"
  mkdir -p "$before.new"
  firewall_parts >"$before.new/parts"
  iptables-save >"$before.new/iptables"
  ip6tables-save >"$before.new/ip6tables"
  for setting in "${SETTINGS[@]}"; do
    if [ -r "/proc/sys/$setting" ]; then echo "$setting $(cat "/proc/sys/$setting")"; fi
  done >"$before.new/settings"
  mv "$before.new" "$before"
}

# The bridges of our engine's networks, in case it can no longer be asked.
remember_bridges() {
  docker network ls -q --filter driver=bridge --filter type=custom --no-trunc | sed 's/^\(.\{12\}\).*/br-\1/' \
    >>"$ENGINE/bridges"
}

restore_host() {
  local before=$ENGINE/before setting value bridge
  awk -v a="$ENGINE/" -v b="$ENGINE_DATA/" 'index($2 "/", a) == 1 || index($2 "/", b) == 1 {print $2}' /proc/mounts |
    sort -r | xargs -r -n 1 umount -l 2>/dev/null || true
  if [ ! -d "$before" ]; then return; fi
  remove_rules iptables
  remove_rules ip6tables
  remove_empty_parts
  if [ -e "$ENGINE/bridges" ]; then
    sort -u "$ENGINE/bridges" | while read -r bridge; do ip link delete "$bridge" 2>/dev/null || true; done
  fi
  while read -r setting value; do
    if [ "$(cat "/proc/sys/$setting")" != "$value" ]; then echo "$value" >"/proc/sys/$setting" || true; fi
  done <"$before/settings"
  remove_control_groups
}

# Docker's control groups, only once no container of any engine is in them.
remove_control_groups() {
  local group
  for group in /sys/fs/cgroup/docker /sys/fs/cgroup/*/docker; do
    if [ ! -d "$group" ] || [ -n "$(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null)" ]; then continue; fi
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
}

# remove_rules iptables|ip6tables: deletes, one by one, the rules that were not there before and that name a chain
# of Docker's, a bridge of ours, or a container's traffic to itself; then the chains; then restores the policy.
# Rules of anybody else are neither touched nor written again.
remove_rules() {
  local before=$ENGINE/before/$1 bridges policy now
  bridges=$(sort -u "$ENGINE/bridges" 2>/dev/null | paste -sd '|')
  "$1-save" | awk -v ours="DOCKER|${bridges:-DOCKER}" -v before="$before" '
    BEGIN { while ((getline line < before) > 0) {
      if (line ~ /^\*/) t = line; else { sub(/ \[.*/, "", line); old[t line] = 1 } } }
    # A port of a container is masqueraded for the container itself: -s ADDRESS -d the same ADDRESS.
    function hairpin() { return $3 == "-s" && $5 == "-d" && $4 == $6 && $NF == "MASQUERADE" }
    /^\*/ { table = $0; rules = flush = remove = ""; next }
    /^COMMIT/ { if ((rules flush) != "") printf "%s\n%s%s%sCOMMIT\n", table, rules, flush, remove; next }
    { line = $0; sub(/ \[.*/, "", line) }
    (table line) in old { next }
    /^:DOCKER/ { chain = substr($1, 2); flush = flush "-F " chain "\n"; remove = remove "-X " chain "\n" }
    /^-A/ && ($0 ~ ours || hairpin()) && $2 !~ /^DOCKER/ { sub(/^-A/, "-D"); rules = rules $0 "\n" }
  ' >"$ENGINE/undo-$1"
  if [ -s "$ENGINE/undo-$1" ]; then "$1-restore" --noflush <"$ENGINE/undo-$1"; fi
  policy=$(sed -n '/^\*filter/,/^COMMIT/s/^:FORWARD \([A-Z]*\).*/\1/p' "$before")
  now=$("$1-save" | sed -n '/^\*filter/,/^COMMIT/s/^:FORWARD \([A-Z]*\).*/\1/p')
  if [ -n "$now" ] && [ "$now" != "${policy:-ACCEPT}" ]; then "$1" -P FORWARD "${policy:-ACCEPT}"; fi
}

# Every table and chain of the kernel's packet filter: "FAMILY TABLE" and "FAMILY TABLE CHAIN" lines, chains first.
firewall_parts() {
  nft list chains | awk '$1 == "table" {table = $2 " " $3} $1 == "chain" {print table, $2}'
  nft list tables | cut -d ' ' -f 2-
}

# The tables and hooks that iptables made for Docker: those that were not there before and hold nothing now.
remove_empty_parts() {
  local family table chain save held
  firewall_parts | { grep -vxF -f "$ENGINE/before/parts" || true; } | while read -r family table chain; do
    case $family in ip) save=iptables-save ;; ip6) save=ip6tables-save ;; *) continue ;; esac
    case $table in filter | nat | mangle | raw) ;; *) continue ;; esac
    case $chain in
    INPUT | FORWARD | OUTPUT | PREROUTING | POSTROUTING)
      # nft deletes a chain with its rules: only one that provably has none.
      held=$("$save" -t "$table") || continue
      if ! grep -q "^-A $chain " <<<"$held"; then nft delete chain "$family" "$table" "$chain" || true; fi
      ;;
    '')
      held=$(nft list table "$family" "$table" 2>/dev/null) || continue
      if ! grep -q 'chain ' <<<"$held"; then nft delete table "$family" "$table" || true; fi
      ;;
    esac
  done
}
