#!/usr/bin/env bash
# Builds everything that is installed. If machines cannot run natively, also builds the emulated host. Existing results
# are not built again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."
scripts/dependencies.sh take
cargo build --release --workspace --bins
guest-kernel/build.sh
as_root guest-image/build.sh
as_root integration/base-image/build.sh
has_virtualization || as_root integration/host/build.sh
