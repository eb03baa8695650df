#!/usr/bin/env bash
# Builds the emulator of the emulated host: Debian's QEMU from its source, x86-64 by TCG only, with two fixes and, for
# QEMU 7.2, two patches for speed (jump-cache.patch, guest-tlb.patch). Prints its folder.
#
# 1. When a hypervisor injects an interrupt (VMRUN with EVENTINJ), QEMU delivers it at once but keeps its number as a pending
# exception. The emulator may be interrupted before the guest's next exit, by a timer while it counts instructions or by another
# of its processors. Then the guest gets that interrupt again, with interrupts disabled, and deadlocks or has a triple fault. QEMU
# 7.2 and 10.0 have this fault.
#
# 2. When a hypervisor asks for an interrupt window (VMRUN with V_IRQ), QEMU adds a bit to the processor's pending interrupts
# without the lock that all other writers hold. An interrupt that a timer or a device raises at the same moment is lost. If it was
# the host's timer and the host then sleeps, it never wakes: the emulator is idle, and the APIC's IRR contains the interrupt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../scripts/lib.sh"
. "$here/../../scripts/debian.sh"
window='cs->interrupt_request |= CPU_INTERRUPT_VIRQ;'
delivered='do_interrupt_x86_hardirq(env, vector, 1);'
# Only for QEMU 7.2 (Debian 12).
speed=("$here/jump-cache.patch" "$here/guest-tlb.patch")

# source_of_qemu VERSION WORK: as Debian builds it, in WORK/qemu.
source_of_qemu() {
  local version=$1 work=$2 apt=$2/apt suite
  # apt's own unprivileged user must be able to write there.
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,out}
  chmod 777 "$apt"/{lists/partial,cache/archives/partial,out}
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  debian_sources "$suite" | sed 's/^deb /deb-src /' >"$apt/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  # A mirror may have only the newest version of a release.
  (cd "$apt/out" && { apt-get "${options[@]}" source --download-only "qemu=$version" \
    || apt-get "${options[@]}" source --download-only qemu; })
  (cd "$work" && dpkg-source --no-check -x "$apt"/out/qemu_*.dsc qemu)
}

# build_emulator OUT WORK
build_emulator() {
  local out=$1 work=$2
  source_of_qemu "$version" "$work"
  cd "$work/qemu"
  local file; file=$(grep -rlF "$delivered" target/i386/tcg)
  sed -i "/$delivered/a cs->exception_index = -1;" "$file"
  local lock; lock=$(grep -owm1 'bql_lock\|qemu_mutex_lock_iothread' include/qemu/main-loop.h)
  sed -i -e "s/$window/{ $lock(); & ${lock/lock/unlock}(); }/" \
    -e '0,/^#include "qemu\/osdep.h"/s//&\n#include "qemu\/main-loop.h"/' "$file"
  grep -qF "$lock(); $window" "$file"
  case $version in 1:7.2*) cat "${speed[@]}" | patch -p1 ;; esac
  mkdir ../build && cd ../build
  ../qemu/configure --target-list=x86_64-softmmu --without-default-features --enable-tcg --enable-fdt=system --enable-slirp \
    --enable-vhost-user --enable-vhost-kernel --disable-werror --disable-docs --disable-debug-info
  ninja qemu-system-x86_64
  install -s -m 755 qemu-system-x86_64 "$out/"
}

version=$(dpkg-query -W -f '${source:Version}' qemu-system-x86)
# Not in a condition: bash would disable errexit inside.
set +e; emulator=$(build_once emulator "$(digest "$here/build.sh" "${speed[@]}" <<<"$version")" build_emulator); status=$?; set -e
if [ "$status" != 0 ]; then
  echo "emulator: using Debian's own instead, which sometimes hangs" >&2
  emulator=/usr/bin
fi
echo "$emulator"
