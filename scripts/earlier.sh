#!/usr/bin/env bash
# Builds garret as it was at an earlier commit, for the test that this tree's runner adopts machines which that one started.
# Prints the folder, laid out as install.sh does: usr/bin/garret and usr/lib/garret.
#
# The commit is the oldest whose machines may still run when this tree's runner takes over. It moves when a release ends the
# support of what ran before, and for no other reason.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
commit=4956e43e9fc901502d560dea3f26315cba67126d

key=$(digest "$here/earlier.sh" </dev/null)
[ -d "$cache_root/earlier/$key" ] || git -C "$here" cat-file -e "$commit^{commit}" 2>/dev/null \
  || die "this clone has no commit $commit, whose machines a test adopts: get the whole history with \`git fetch --unshallow\`"

# build_earlier OUT WORK
build_earlier() {
  local out=$1 source=$2/source
  mkdir -p "$source"
  "$here/dependencies.sh" take "$source"
  # With the modes of a clone, and so the same hash of the images' recipes.
  git -C "$here/.." -c tar.umask=0022 archive "$commit" | tar -x -C "$source"
  (cd "$source" && cargo build --release --target-dir target -p garret -p garret-vmm -p garret-agent --bins)
  as_root "$source/scripts/install.sh" "$out"
}

build_once earlier "$key" build_earlier
