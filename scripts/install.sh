#!/usr/bin/env bash
# Installs garret under a folder (`/` for this machine): the programs, the guest's kernel and images. Builds the kernel and
# the images first if they are not in the cache. `make build` must have built the programs.
# A file is never changed in place: a running machine keeps using the old one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
[ $# = 1 ] || die "usage: install.sh FOLDER"
programs=$here/../target/x86_64-unknown-linux-gnu/release
lib=${1%/}/usr/lib/garret
bin=${1%/}/usr/bin
units=${1%/}/usr/lib/systemd/system
docs=${1%/}/usr/share/doc/garret

# Size and time identify a version: copies keep the time, and reading 64 GiB of holes would be slow.
version() { stat -c '%s %.9Y' "$1" 2>/dev/null; }

# place FILE FOLDER: makes a hard link if possible (a staging folder), else a sparse copy, and renames it into place.
place() {
  local name; name=$(basename "$1")
  if [ "$(version "$1")" = "$(version "$2/$name")" ]; then return; fi
  if [ "$lib" = /usr/lib/garret ] || ! ln -f "$1" "$2/$name.new" 2>/dev/null; then
    cp --reflink=auto --sparse=always --preserve=mode,timestamps "$1" "$2/$name.new"
  fi
  mv -f "$2/$name.new" "$2/$name"
}

kernel=$("$here/../guest-kernel/build.sh")
image=$("$here/../guest-image/build.sh")
mkdir -p "$lib" "$bin" "$units" "$docs"
for program in garret garret-vmm; do [ -x "$programs/$program" ] || die "$programs/$program is missing: run make build"; done
place "$programs/garret" "$bin"
place "$programs/garret-vmm" "$lib"
place "$here/../runner/garret.service" "$units"
place "$here/../runner/config.toml" "$docs"
place "$kernel/vmlinux" "$lib"
place "$image/root.erofs" "$lib"
place "$image/data.ext4" "$lib"
