#!/usr/bin/env bash
# Builds the guest kernel: Debian's linux-source-6.12, kernel.config as a fragment over allnoconfig, then patches/.
# Prints the folder that holds `vmlinux` (ELF with the PVH note, stripped) and `config`. The folder's name is a hash
# of every input, so an unchanged kernel is never built twice; build facts the kernel would embed (time, user, host,
# path) are pinned, so that the same inputs give the same bytes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${GARRET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/garret}/kernel
tarball=/usr/src/linux-source-6.12.tar.xz
[ -f "$tarball" ] || { echo "guest-kernel: $tarball is missing: install the package linux-source-6.12 (make setup)" >&2; exit 1; }

version=$(dpkg-query -W -f '${Version}' linux-source-6.12)
key=$({ echo "$version"; gcc --version | head -1; ld --version | head -1; cat "$here/build.sh" "$here/kernel.config"
        find "$here/patches" -name '*.patch' -print0 | sort -z | xargs -0r cat; } | sha256sum | cut -c1-16)
out=$cache/$key
if [ -f "$out/vmlinux" ]; then echo "$out"; exit 0; fi

mkdir -p "$cache"
exec 9>"$cache/lock"; flock 9                 # two builds at once would fight for the same two cores
if [ -f "$out/vmlinux" ]; then echo "$out"; exit 0; fi
work=$(mktemp -d "$cache/build.XXXXXX"); trap 'rm -rf "$work"' EXIT
echo "guest-kernel: building $version (about 9 minutes on two idle cores; log: $cache/build.log)" >&2
# Not `{ … } || …`: bash would switch off errexit inside, and a patch that does not apply would go unnoticed.
set +e
(
  set -e
  mkdir "$work/src" "$work/obj"
  tar -xJf "$tarball" -C "$work/src" --strip-components=1
  find "$here/patches" -name '*.patch' -print0 | sort -z | xargs -0rn1 patch -d "$work/src" -p1 -i
  export KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=garret KBUILD_BUILD_HOST=garret KBUILD_BUILD_VERSION=1
  # allnoconfig with the fragment as its exceptions: what the fragment does not name, and nothing it names selects, is off.
  make -C "$work/src" O="$work/obj" KCONFIG_ALLCONFIG="$here/kernel.config" allnoconfig
  lost=$(grep -E '^CONFIG_[A-Z0-9_]+=[^n]' "$here/kernel.config" | grep -vxFf "$work/obj/.config" || true)
  [ -z "$lost" ] || { echo "kernel.config asks for what this kernel cannot have:"; echo "$lost"; exit 1; }
  make -C "$work/src" O="$work/obj" -j"$(nproc)" vmlinux
  strip --strip-debug -o "$work/vmlinux" "$work/obj/vmlinux"
) >"$cache/build.log" 2>&1
status=$?
set -e
[ "$status" = 0 ] || { tail -n 30 "$cache/build.log" >&2; echo "guest-kernel: the build failed; log: $cache/build.log" >&2; exit 1; }
mkdir -p "$out.part" && cp "$work/vmlinux" "$out.part/vmlinux" && cp "$work/obj/.config" "$out.part/config"
mv -T "$out.part" "$out"
echo "$out"
