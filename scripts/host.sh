#!/usr/bin/env bash
# `make host`: a shell on the emulated host, or CMD there, in the folder SHARE if that is set. The exit status is the command's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
"$here/build.sh" >/dev/null
arguments=(host)
if [ -n "${SHARE:-}" ]; then arguments+=(--run-as-developer --share "$SHARE"); fi
if [ -n "${ICOUNT:-}" ]; then arguments+=(--icount); fi
if [ -n "${CMD:-}" ]; then arguments+=(-- "$CMD"); fi
# The driver reads these; sudo would drop them.
variables=()
for name in DEADLINE LOGS MEMORY SWAP; do
  if [ -n "${!name:-}" ]; then variables+=("$name=${!name}"); fi
done
as_root env "${variables[@]}" "$here/../target/x86_64-unknown-linux-gnu/release/garret-integration" "${arguments[@]}"
