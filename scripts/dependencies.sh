#!/usr/bin/env bash
# The compiled dependencies, cached for all clones. `keep`: this clone's go into the cache, if it has none yet for the same
# inputs. `take [FOLDER]`: a tree that has compiled nothing (this one, or FOLDER) gets them.
# No fingerprint of garret's own crates is kept, so they are compiled again: cargo takes a source file that is older than its
# compiled form for unchanged, and another clone's file may be older. All of them have `garret` in their names.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."
crates=(./*/Cargo.toml)
nameless=$(grep -L '^name = "garret' "${crates[@]}" || true)
[ -z "$nameless" ] || die "the crate's name does not begin with garret: $nameless"
# C sources and libraries of Debian are compiled into some.
packages=$(dpkg-query -W gcc libc6-dev libcap-ng-dev) || die "packages are missing: run \`make setup\`"
key=$({ rustc -vV; echo "$packages"; } \
  | digest Cargo.lock Cargo.toml "${crates[@]}" .cargo/config.toml "$here/dependencies.sh")

# compiled_dependencies OUT
compiled_dependencies() {
  tar -c --exclude='*garret*' target/{.,*-linux-gnu}/release/{deps,build,.fingerprint} | tar -x -C "$1"
}

target=${2:-.}/target
case "${1:-}" in
  keep) build_once dependencies "$key" compiled_dependencies >/dev/null ;;
  take)
    if [ ! -e "$target" ] && [ -d "$cache_root/dependencies/$key" ]; then
      # Of a `take` that was killed.
      find "${target%/*}" -maxdepth 1 -name 'target.dependencies.??????' -mmin +60 -exec rm -rf {} +
      copy=$(mktemp -d "$target.dependencies.XXXXXX"); trap 'rm -rf "$copy"' EXIT
      cp -a "$cache_root/dependencies/$key/target/." "$copy"
      touch "$copy"                                       # cp gave it the age of the cached folder
      # Another `take` may have been first.
      mv -T "$copy" "$target" 2>/dev/null || [ -e "$target" ]
    fi ;;
  *) die "usage: dependencies.sh keep | take [FOLDER]" ;;
esac
