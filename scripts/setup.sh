#!/usr/bin/env bash
# Installs the Debian packages that building, testing and running garret need. If they are installed, it prints nothing
# and returns at once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

command -v apt-get >/dev/null || die "this is not a Debian: install what scripts/setup.sh lists yourself"
wanted=(
  # to build the programs
  gcc libc6-dev pkg-config libcap-ng-dev libseccomp-dev
  # to build the guest's kernel
  linux-source-6.12 make flex bison bc patch xz-utils libelf-dev libssl-dev perl
  # to build the images: the guest's, the emulated host's and the containers'
  mmdebstrap debian-archive-keyring erofs-utils e2fsprogs cpio kmod busybox-static skopeo umoci docker-registry python3 curl
  # to check texts and scripts
  codespell shellcheck
  # to run machines
  nftables iproute2 conntrack procps ca-certificates git
  # for the end-to-end tests on a host that runs machines itself
  openssl tinyproxy-bin
  # the emulated host
  qemu-system-x86 qemu-system-common util-linux dpkg-dev meson ninja-build libglib2.0-dev libpixman-1-dev libslirp-dev libfdt-dev
  zlib1g-dev
)
# Debian's npm and pip are installed only if there are none, so that an installation from elsewhere stays.
command -v npm >/dev/null || wanted+=(nodejs npm)
command -v pip3 >/dev/null || wanted+=(python3-pip)

installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
  grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
if [ ${#missing[@]} != 0 ]; then
  echo "setup: installing ${missing[*]}" >&2
  log=$(mktemp)
  { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; die "apt-get failed; its output: $log"; }
  rm "$log"
  # The package starts a registry for the whole network; garret starts its own where it needs one.
  case " ${missing[*]} " in *" docker-registry "*)
    if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now docker-registry; fi ;;
  esac
elif ! apt-cache show linux-image-6.12-cloud-amd64 >/dev/null 2>&1; then
  as_root apt-get update >/dev/null                       # the emulated host's kernel is downloaded, not installed
fi
command -v cargo >/dev/null || die "there is no cargo: install Rust 1.95 or newer with rustup (https://rustup.rs), then run this again"
