#!/usr/bin/env bash
# `make bench`: garret and its peers in one run on one host, natively or on the emulated one. ONLY=boot,fs runs some of the
# benches, and SIZE=full takes hours on bare metal. PEERS='firecracker=/path cloud-hypervisor=/path' adds peers that Debian does
# not have. COMPARE=old.jsonl shows what changed, and ICOUNT=1 counts instructions. After MINUTES=24 no round of the quick size
# begins. An interrupted run keeps its results; RESUME=1 continues it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."
release=target/x86_64-unknown-linux-gnu/release
out=target/bench
"$here/build.sh" >/dev/null
tools=$(as_root benches/tools/build.sh)/tools.erofs
virtiofsd=$(benches/tools/virtiofsd.sh)/virtiofsd
mkdir -p "$out"

run=(run --size "${SIZE:-quick}" --commit "$(git describe --always --dirty 2>/dev/null || echo unknown)")
if [ -n "${ONLY:-}" ]; then run+=(--only "$ONLY"); fi
resume=${RESUME:+--resume}
programs=()
for peer in "virtiofsd=$virtiofsd" ${PEERS:-}; do
  path=$(realpath "${peer#*=}")
  if has_virtualization; then run+=(--peer "${peer%%=*}=$path"); continue; fi
  programs+=(--program "$path")
  run+=(--peer "${peer%%=*}=/run/host/programs/${path##*/}")
done

if has_virtualization; then
  as_root "$here/install.sh" /
  as_root env "PATH=$here:$PATH" "$release/garret-bench" "${run[@]}" ${MINUTES:+--minutes "$MINUTES"} $resume --tools "$tools" --out "$out" || status=$?
else
  echo "bench: this machine has no hardware virtualization: measuring in the emulated host, where times mean nothing" >&2
  options=(--no-runner --share "$out" --program "$release/garret-bench" --program "$tools")
  if [ -n "${ICOUNT:-}" ]; then options+=(--icount); run+=(--icount); fi
  # The emulator may hang. The results until then are kept, and another emulator measures the rest.
  attempts=4
  while
    minutes=$(( ${MINUTES:-24} - SECONDS / 60 ))
    if [ "${SIZE:-quick}" = quick ]; then limit=(--minutes $((minutes > 0 ? minutes : 0))); else limit=(); fi
    line=$(printf '%q ' /run/host/programs/garret-bench "${run[@]}" "${limit[@]}" $resume --tools /run/host/programs/tools.erofs)
    status=0
    as_root "$release/garret-integration" host --deadline "${DEADLINE:-2700}" "${options[@]}" "${programs[@]}" -- "$line" || status=$?
    attempts=$((attempts - 1))
    [ "$status" = 125 ] && [ "$attempts" -gt 0 ]
  do resume=--resume; done
fi
[ ! -s "$out/results.jsonl" ] || "$release/garret-bench" report "$out/results.jsonl"
if [ -n "${COMPARE:-}" ]; then "$release/garret-bench" compare "$COMPARE" "$out/results.jsonl"; fi
exit "${status:-0}"
