#!/usr/bin/env bash
# Starts the installed runner on this machine: by systemd if it runs, else in the background. If no public container
# registry answers, it first starts a registry with the images built from Debian packages, and configures garret to use
# it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
PATH=$here:$PATH
garret-registry-start "$("$here/../integration/base-image/build.sh")" "$here/../integration/host/config.toml"
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl start garret
else
  garret-daemon-start
fi
