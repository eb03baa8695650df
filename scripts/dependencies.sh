#!/usr/bin/env bash
# The compiled dependencies, cached for all clones. `keep`: this clone's go into the cache. `take [FOLDER]`: a tree that has
# compiled nothing (this one, or FOLDER) gets them.
# Nothing of garret's own crates is kept: cargo takes a source file that is older than its compiled form for unchanged, and
# another clone's file may be older.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/.."
key=$(rustc -vV | digest Cargo.lock Cargo.toml ./*/Cargo.toml .cargo/config.toml "$here/dependencies.sh")

# compiled_dependencies OUT
compiled_dependencies() { tar -c --exclude='*garret*' target/{.,*-linux-gnu}/release/{deps,build,.fingerprint} | tar -x -C "$1"; }

target=${2:-.}/target
case "${1:-}" in
  keep) build_once dependencies "$key" compiled_dependencies >/dev/null ;;
  take)
    if [ ! -e "$target" ] && [ -d "$cache_root/dependencies/$key" ]; then
      rm -rf "$target.new"
      cp -a "$cache_root/dependencies/$key/target" "$target.new"
      mv -T "$target.new" "$target"
    fi ;;
  *) die "usage: dependencies.sh keep | take [FOLDER]" ;;
esac
