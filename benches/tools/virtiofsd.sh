#!/usr/bin/env bash
# Builds the `virtiofsd` program from its crate, and prints its folder. The version is that of the library that garret uses, so
# the file server beside QEMU is the same code in another place.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
version=$(sed -n '/^name = "virtiofsd"$/{n;s/version = "\(.*\)"/\1/p}' "$here/../../Cargo.lock")

# build_virtiofsd OUT WORK: builds outside this project, whose settings for static programs do not suit it.
build_virtiofsd() {
  (cd "$2" && env -u LIBCAPNG_LINK_TYPE -u CARGO_TARGET_DIR cargo install --locked --quiet --root installed --target-dir target \
    --version "$version" virtiofsd)
  mv "$2/installed/bin/virtiofsd" "$1/"
}

build_once virtiofsd "$(digest "$here/virtiofsd.sh" <<<"$version $(rustc --version)")" build_virtiofsd
