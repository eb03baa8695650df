#!/usr/bin/env bash
# Builds container images that replace public ones on machines without a public registry. Puts them into the storage folder of a
# container registry (Debian's docker-registry), and prints its path:
#   devcontainers/base:debian   made from Debian's packages, with the programs of a devcontainer base image
#   library/postgres:17         PostgreSQL on top of that, used as the public image is
#   library/busybox:latest      one static program, for quick tests
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
. "$here/../../scripts/debian.sh"
export SOURCE_DATE_EPOCH=1767225600

metadata='[{"remoteUser":"vscode"}]'

# base_tree FOLDER [packages]: the base image's files, perhaps with more packages.
base_tree() {
  local tree=$1 more=${2:-}
  debian_tree trixie "$(packages "$here/packages")${more:+,$more}" "$tree" --aptopt='APT::Sandbox::User "root"'
  chroot "$tree" groupadd -g 1000 vscode
  chroot "$tree" useradd -m -u 1000 -g 1000 -s /bin/bash vscode
  echo 'vscode ALL=(root) NOPASSWD:ALL' >"$tree/etc/sudoers.d/vscode"; chmod 440 "$tree/etc/sudoers.d/vscode"
  # apt in a container goes to the mirror that this machine uses.
  debian_sources trixie >"$tree/etc/apt/sources.list"
  rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/log/* "${tree:?}"/boot/* "$tree"/etc/machine-id
  : >"$tree/etc/resolv.conf"
}

postgres_tree() {
  local tree=$1
  base_tree "$tree" postgresql-17
  # The package creates a database when it is installed. The image creates it at its first start.
  rm -r "$tree"/var/lib/postgresql/17 "$tree"/etc/postgresql/17
  # The compiler for long queries is as large as all the rest. The database works without it.
  rm "$tree"/usr/lib/x86_64-linux-gnu/lib{LLVM,z3}.so*; rm -r "$tree"/usr/lib/postgresql/17/lib/{bitcode,llvmjit*}
  install -m 755 "$here/postgres-entrypoint" "$tree/usr/local/bin/docker-entrypoint.sh"
}

busybox_tree() {
  local tree=$1 applet
  mkdir -p "$tree"/{bin,dev,etc,proc,root,sys,tmp}; chmod 1777 "$tree/tmp"
  cp /bin/busybox "$tree/bin/busybox"
  for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"; done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"; echo 'root:x:0:' >"$tree/etc/group"
}

# oci LAYOUT:TAG TREE [umoci config options]: one layer from a folder.
oci() {
  local image=$1 tree=$2; shift 2
  umoci new --image "$image"
  umoci insert --image "$image" "$tree" /
  umoci config --image "$image" --os linux --architecture amd64 --created 2026-01-01T00:00:00Z \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# oci_on LAYOUT:TAG NEW TREE WORK [umoci config options]: the image NEW, with one more layer that makes TREE of that image.
oci_on() {
  local image=$1 new=$2 tree=$3 bundle=$4/bundle; shift 4
  umoci unpack --image "$image" "$bundle"
  rm -r "$bundle/rootfs"; mv "$tree" "$bundle/rootfs"
  umoci repack --image "${image%:*}:$new" "$bundle"
  umoci config --image "${image%:*}:$new" "$@"
}

# storage OUT WORK: assembles the images and pushes them through a registry that runs only for this.
build_storage() {
  local out=$1 work=$2 port
  base_tree "$work/base"
  postgres_tree "$work/postgres"
  busybox_tree "$work/busybox"
  umoci init --layout "$work/oci"
  oci "$work/oci:base" "$work/base" --config.env LANG=C.UTF-8 --config.cmd /bin/bash --config.label "devcontainer.metadata=$metadata"
  oci_on "$work/oci:base" postgres "$work/postgres" "$work" --clear=config.labels --config.entrypoint docker-entrypoint.sh \
    --config.cmd postgres --config.stopsignal SIGINT --config.volume /var/lib/postgresql/data \
    --config.env PGDATA=/var/lib/postgresql/data --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/17/bin
  oci "$work/oci:busybox" "$work/busybox" --config.cmd /bin/sh
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  cat >"$work/registry.yml" <<YAML
version: 0.1
log: { level: warn }
storage: { filesystem: { rootdirectory: $out } }
http: { addr: "127.0.0.1:$port" }
YAML
  docker-registry serve "$work/registry.yml" &
  server=$!
  trap 'kill "$server"' EXIT                              # also after a failure: it holds the lock of build_once
  curl -s -o /dev/null --retry 50 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port/v2/"
  # Pulling zstd costs a fraction of pulling gzip, which matters on an emulated processor.
  push() { skopeo copy --dest-tls-verify=false --dest-compress-format zstd "oci:$work/oci:$1" "docker://127.0.0.1:$port/$2"; }
  push base devcontainers/base:debian
  push postgres library/postgres:17
  push busybox library/busybox:latest
}

build_once registry "$(digest "$here/packages" "$here/postgres-entrypoint" "$here/build.sh" "$here/../../scripts/debian.sh" /bin/busybox </dev/null)" build_storage
