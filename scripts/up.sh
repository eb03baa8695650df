#!/usr/bin/env bash
# `make up`: sets everything up and runs a command in a devcontainer. WORKSPACE is the folder (default:
# examples/python-service), CMD a shell command to run in its container. The exit status is the command's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
if [ -z "${WORKSPACE:-}" ]; then
  WORKSPACE=$here/../examples/python-service
  CMD=${CMD:-python3 -m unittest -v}
fi
[ -d "$WORKSPACE" ] || die "WORKSPACE=$WORKSPACE is not a folder"
workspace=$(realpath "$WORKSPACE")

"$here/setup.sh"
"$here/build.sh" >/dev/null
arguments=(up "$workspace")
if [ -n "${CMD:-}" ]; then arguments+=(-- sh -c "$CMD"); fi

if has_virtualization; then
  as_root "$here/install.sh" /
  as_root "$here/start.sh"
  exec garret "${arguments[@]}"
fi
echo "up: this machine has no hardware virtualization: running in the emulated host" >&2
line=$(printf '%q ' garret "${arguments[@]}")
driver=$here/../target/x86_64-unknown-linux-gnu/release/garret-integration
# A second `garret up` completes what the first began, so another host may repeat it after a hang.
as_root env "USER=${USER:-root}" "$driver" host --repeatable --run-as-developer --share "$workspace" \
  --as "$(id -u):$(id -g)" "$line"
