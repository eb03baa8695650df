#!/usr/bin/env bash
# Builds the files that the emulated host boots: `vmlinuz` (Debian's 6.12 cloud kernel, extracted from its package), `initramfs`
# and `root.ext4` (Debian trixie with the programs of a runner's host). Prints the folders: kernel and root, initramfs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
. "$here/../../scripts/debian.sh"
starters=("$here/../../scripts/garret-daemon-start" "$here/../../scripts/garret-registry-start")

# apt reports no package while its lists are being renewed.
kernel_package=$({ apt-cache depends linux-image-6.12-cloud-amd64 || true; } | sed -n 's/.*Depends: \(linux-image.*\)/\1/p')
[ -n "$kernel_package" ] || die "apt does not know linux-image-6.12-cloud-amd64: run apt-get update (make setup)"

# root OUT WORK: the packages, the kernel's modules, two developers. The disk is large and sparse: machines' disks live on it.
build_root() {
  local out=$1 work=$2 tree=$2/tree
  # apt's own unprivileged user must be able to write there.
  mkdir -m 777 "$work/deb"; (cd "$work/deb" && apt-get download "$kernel_package")
  dpkg-deb -x "$work"/deb/*.deb "$work/kernel"
  debian_tree trixie "$(packages "$here/packages")" "$tree"
  cp -a "$work/kernel/lib/modules" "$tree/usr/lib/modules"
  local version; version=$(ls "$tree/usr/lib/modules")
  depmod -b "$tree" "$version"
  cp "$work/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
  # The one module that mounting the root needs.
  mkdir "$out/modules"
  modprobe -d "$tree" -S "$version" --show-depends virtio_blk | awk '$1 == "insmod" { print $2 }' | while read -r module; do
    xz -dc "$module" >"$out/modules/$(basename "$module" .xz)"
  done
  echo host >"$tree/etc/hostname"
  printf '127.0.0.1 localhost host\n' >"$tree/etc/hosts"
  chroot "$tree" useradd -m -u 1001 -s /bin/bash alice
  chroot "$tree" useradd -m -u 1002 -s /bin/bash bob
  echo 'PS1='\''\u@emulated-host:\w\$ '\' >>"$tree/etc/bash.bashrc"
  truncate -s 128G "$out/root.ext4"
  mkfs.ext4 -q -L host-root -E lazy_itable_init=1,lazy_journal_init=1,discard -m 0 -d "$tree" "$out/root.ext4"
}

# initramfs OUT WORK: busybox, the disk's driver, and both init scripts, so that changing a script needs no new root.
build_initramfs() {
  local out=$1 tree=$2/tree
  mkdir -p "$tree"/{bin,dev,proc,root,modules}
  cp /bin/busybox "$tree/bin/busybox"
  cp "$root"/modules/* "$tree/modules/"
  install -m 755 "$here/initramfs-init" "$tree/init"
  install -m 755 "$here/host-init" "${starters[@]}" "$tree/"
  # Not compressed: unpacking costs more than reading.
  (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$out/initramfs"
}

root=$(build_once host-root "$(digest "$here/packages" "$here/build.sh" "$here/../../scripts/debian.sh" <<<"$kernel_package")" build_root)
initramfs=$(build_once host-initramfs "$(digest "$here/initramfs-init" "$here/host-init" "${starters[@]}" "$here/build.sh" <<<"$root")" build_initramfs)
echo "$root"
echo "$initramfs"
