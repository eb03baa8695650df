#!/usr/bin/env bash
# `make bench`: garret and its peers in one run on one host, natively or on the emulated one. ONLY=boot,fs for some of the
# benches, SIZE=full for hours on bare metal, PEERS='firecracker=/path cloud-hypervisor=/path' for peers that Debian does not
# have, COMPARE=old.jsonl to see what changed, ICOUNT=1 for counts that repeat. Interrupted, it keeps what it has; RESUME=1 goes on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."
release=target/x86_64-unknown-linux-gnu/release
out=target/bench
"$here/build.sh" >/dev/null
tools=$(as_root benches/tools/build.sh)/tools.erofs
mkdir -p "$out"

run=(run --size "${SIZE:-quick}" --commit "$(git describe --always --dirty 2>/dev/null || echo unknown)")
if [ -n "${ONLY:-}" ]; then run+=(--only "$ONLY"); fi
if [ -n "${RESUME:-}" ]; then run+=(--resume); fi
programs=()
for peer in ${PEERS:-}; do
  path=$(realpath "${peer#*=}")
  if has_virtualization; then run+=(--peer "${peer%%=*}=$path"); continue; fi
  programs+=(--program "$path")
  run+=(--peer "${peer%%=*}=/run/host/programs/${path##*/}")
done

if has_virtualization; then
  as_root "$here/install.sh" /
  as_root env "PATH=$here:$PATH" "$release/garret-bench" "${run[@]}" --tools "$tools" --out "$out" || status=$?
else
  echo "bench: this machine has no hardware virtualization: measuring in the emulated host, where times mean nothing" >&2
  options=(--no-runner --deadline "${DEADLINE:-2700}" --share "$out" --program "$release/garret-bench" --program "$tools")
  if [ -n "${ICOUNT:-}" ]; then options+=(--icount); run+=(--icount); fi
  line=$(printf '%q ' /run/host/programs/garret-bench "${run[@]}" --tools /run/host/programs/tools.erofs)
  as_root "$release/garret-integration" host "${options[@]}" "${programs[@]}" -- "$line" || status=$?
fi
[ ! -s "$out/results.jsonl" ] || "$release/garret-bench" report "$out/results.jsonl"
if [ -n "${COMPARE:-}" ]; then "$release/garret-bench" compare "$COMPARE" "$out/results.jsonl"; fi
exit "${status:-0}"
