#!/usr/bin/env bash
# Builds the guest's images: `root.erofs` (Debian trixie with a container engine and garret-agent, read-only, for pmem with
# DAX) and `data.ext4` (the sparse template of a machine's own disk). Prints the folder that holds both.
# The Debian part is cached by its own inputs: with a new agent only mkfs.erofs runs again. `build.sh tree` makes only that part
# and prints its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/lib.sh"
. "$here/../scripts/debian.sh"
. "$here/data-disk.sh"
agent=$here/../target/x86_64-unknown-linux-gnu/release/garret-agent
export SOURCE_DATE_EPOCH=1767225600                       # 2026-01-01: the same inputs, the same bytes

# tree OUT: the root file system without the agent.
build_tree() {
  local tree=$1/tree
  debian_tree trixie "$(packages "$here/packages")" "$tree"
  cp -r "$here/etc/." "$tree/etc/"
  # Every machine creates its own keys and id. Its host sends it its network and name.
  rm -f "$tree"/etc/ssh/ssh_host_* "$tree"/etc/machine-id "$tree"/etc/resolv.conf
  : >"$tree/etc/machine-id"; : >"$tree/etc/resolv.conf"
  echo garret >"$tree/etc/hostname"
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$tree/etc/hosts"
  # The agent's mount points.
  mkdir -p "$tree/workspaces" "$tree/data" "$tree/var/lib/containers" "$tree/usr/lib/garret"
  rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/cache/debconf/*-old "$tree"/var/log/* "$tree"/boot/*
  rm -rf "$tree"/usr/share/{gitweb,bash-completion,common-licenses,gcc,gdb,bug}
}

# image OUT WORK
build_image() {
  local out=$1 root=$2/root data=$2/data
  cp -al "$tree/tree" "$root"
  strip -o "$root/usr/lib/garret/garret-agent" "$agent"
  # Without compression and inlined data each page of a file can be mapped in place. pmem needs a multiple of 2 MiB.
  mkfs.erofs -E noinline_data -T "$SOURCE_DATE_EPOCH" -U 6b7b1e0e-2f5e-4c52-9d34-0e1e3f0a7c11 "$out/root.erofs" "$root" >/dev/null
  truncate -s %2M "$out/root.erofs"
  data_tree "$tree/tree" "$data"
  data_disk "$data" "$out/data.ext4"
  # Running machines map this file, so nothing may write to it.
  chmod 444 "$out/root.erofs"
}

recipe=$(cd "$here" && find . -type f | LC_ALL=C sort | tar -c --mtime=@0 --owner=0 --group=0 -T - | sha256sum)
tree=$(build_once guest-tree "$(digest "$here/../scripts/debian.sh" <<<"$recipe")" build_tree)
if [ "${1:-}" = tree ]; then echo "$tree/tree"; exit; fi
[ -x "$agent" ] || die "$agent is missing: run make build"
build_once guest-image "$(digest "$agent" <<<"$tree")" build_image
