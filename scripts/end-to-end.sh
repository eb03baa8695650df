#!/usr/bin/env bash
# Runs the end-to-end tests on this machine: installs garret, creates the two developers of the tests, starts the
# runner.
# Arguments: the test programs, and optionally a part of the names of the tests to run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
as_root "$here/install.sh" /
uid=1001
for name in alice bob; do
  id "$name" >/dev/null 2>&1 || as_root useradd -m -u "$uid" -s /bin/bash "$name"
  uid=$((uid + 1))
done
as_root "$here/start.sh"
earlier=$("$here/earlier.sh")
driver=$here/../target/x86_64-unknown-linux-gnu/release/garret-integration
variables=("PATH=$here:$PATH" "GARRET_EARLIER=$earlier" "GARRET_DRIVER=$driver")
only=()
status=0
for argument in "$@"; do [ -x "$argument" ] || only=("$argument"); done
for argument in "$@"; do
  if [ -x "$argument" ]; then as_root env "${variables[@]}" "$argument" --test-threads=1 "${only[@]}" || status=$?; fi
done
exit $status
