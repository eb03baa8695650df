#!/usr/bin/env bash
# Builds the data disk of test hosts' machines, `data.ext4`, and prints its folder. It is made as in guest-image/build.sh, with the
# larger images in the container engine's storage. Pulling one takes minutes on an emulated processor.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
. "$here/../../guest-image/data-disk.sh"
images=(mcr.microsoft.com/devcontainers/base:debian docker.io/library/postgres:17)

# engine_pull WORK PORT: the guest's own engine, in its root file system, pulls the images through a mirror on this port.
# The mounts end with the namespace.
engine_pull() {
  local work=$1 port=$2 image
  mkdir "$work/root"
  for image in "${images[@]}"; do
    printf '[[registry]]\nprefix = "%s"\nlocation = "%s"\n[[registry.mirror]]\nlocation = "127.0.0.1:%s"\ninsecure = true\n' \
      "${image%%/*}" "${image%%/*}" "$port"
  done >"$work/data/containers/registries.conf"
  unshare --mount --propagation private bash -euc '
    mount --bind "$1" "$3" && mount -o remount,bind,ro "$3"
    for folder in run tmp; do mount -t tmpfs tmpfs "$3/$folder"; done
    for folder in proc sys dev; do mount --rbind "/$folder" "$3/$folder"; done
    mount --bind "$2/containers" "$3/var/lib/containers"
    # The machine itself creates its networks and its database.
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TMPDIR=/tmp CONTAINERS_REGISTRIES_CONF=/var/lib/containers/registries.conf \
      chroot "$3" podman pull "${@:4}"
  ' - "$tree" "$work/data" "$work/root" "${images[@]}"
  rm -r "$work/data/containers"/{registries.conf,cache,storage/db.sql*}
}

# build_disk OUT WORK
build_disk() {
  local out=$1 work=$2 port
  data_tree "$tree" "$work/data"
  cp -al "$registry" "$work/registry"
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  printf 'version: 0.1\nlog: { level: warn }\nstorage: { filesystem: { rootdirectory: "%s" } }\nhttp: { addr: "127.0.0.1:%s" }\n' \
    "$work/registry" "$port" >"$work/registry.yml"
  docker-registry serve "$work/registry.yml" &
  server=$!
  trap 'kill "$server"' EXIT
  curl -s -o /dev/null --retry 50 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port/v2/"
  engine_pull "$work" "$port"
  data_disk "$work/data" "$out/data.ext4"
}

registry=$("$here/build.sh")
tree=$("$here/../../guest-image/build.sh" tree)
build_once preloaded "$(digest "$here/preload.sh" "$here/../../guest-image/data-disk.sh" <<<"$registry $tree")" build_disk
